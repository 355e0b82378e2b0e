//! Connections to a real Redis, which comes, goes, hangs and talks nonsense.

use crate::support::redis::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use std::future::{Future, poll_fn};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};
use tiercel::config::settings::{Redis as Settings, RedisAddress, RedisMode, RedisTls, Secret};
use tiercel::observe::metrics::Metrics;
use tiercel::redis::{Link, Message, Redis, RedisError, Role, Script, Use, cmd, pipe};

const PATIENCE: Duration = Duration::from_secs(20);
/// For an answer of a server that is well.
const WITHIN: Duration = Duration::from_secs(5);

/// A server on a socket in a folder of its own; both go with it.
struct Server {
    folder: tempfile::TempDir,
    options: Vec<String>,
    child: Option<Child>,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { folder: tempfile::tempdir().unwrap(), options, child: None };
        server.run();
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    fn run(&mut self) {
        let child = Command::new("redis-server")
            .current_dir(self.folder.path())
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .args(&self.options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian: apt-get install redis-server)");
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id() as i32)).expect("it runs");
        kill_process(pid, signal).unwrap();
    }

    fn settings(&self) -> Settings {
        settings(self.socket())
    }

    fn redis(&self) -> Redis {
        Redis::new(&self.settings(), &Metrics::new(1)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn settings(path: PathBuf) -> Settings {
    Settings {
        mode: RedisMode::Standalone,
        addresses: vec![RedisAddress::Unix { path }],
        sentinel_password: None,
        user: None,
        password: None,
        database: 0,
        tls: RedisTls::default(),
        prefix: "test".into(),
        connect_timeout: Duration::from_millis(300),
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(4 * PATIENCE, test).await.expect("the test hangs") });
}

/// Repeats until there is what is waited for.
async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ping(link: &Link, within: Duration) -> Result<String, RedisError> {
    link.query(&cmd("PING"), within).await
}

#[test]
fn commands_pipelines_and_scripts_are_answered() {
    run(async {
        let server = Server::start(&[]);
        let link = server.redis().link(Use::Admin);
        assert_eq!(ping(&link, WITHIN).await, Err(RedisError::Away), "the first use only begins to connect");
        let connected = link.ready(PATIENCE).await.unwrap();
        assert_eq!((connected.generation, connected.server.role), (1, Role::Master));
        assert_eq!(connected.server.run_id.len(), 40);
        assert_eq!(ping(&link, WITHIN).await.unwrap(), "PONG");
        let (set, got): (String, Vec<u8>) =
            link.pipeline(pipe().cmd("SET").arg("{a}1").arg(b"\0\r\n").cmd("GET").arg("{a}1"), WITHIN).await.unwrap();
        assert_eq!((set.as_str(), got.as_slice()), ("OK", b"\0\r\n".as_slice()));
        let script = Script::new("return {KEYS[1], ARGV[1] + 1}");
        for forgotten in [true, false, true] {
            if forgotten {
                link.query::<String>(cmd("SCRIPT").arg("FLUSH"), WITHIN).await.unwrap();
            }
            let answer: (String, i64) = link.script(&script, &["k"], &[41], WITHIN).await.unwrap();
            assert_eq!(answer, ("k".to_owned(), 42));
        }
        let wrong = link.query::<i64>(cmd("GET").arg("{a}1"), WITHIN).await;
        assert!(matches!(wrong, Err(RedisError::Unexpected(_))), "{wrong:?}");
        let unknown = link.query::<i64>(&cmd("NONSENSE"), WITHIN).await;
        assert!(matches!(&unknown, Err(RedisError::Refused { code, .. }) if code == "ERR"), "{unknown:?}");
        assert_eq!(link.connected().unwrap().generation, 1, "no error of a command costs the connection");
        assert_eq!(link.server("any", WITHIN).await.unwrap(), connected.server);
    });
}

#[test]
fn a_server_that_went_away_fails_at_once_and_is_found_again() {
    run(async {
        let mut server = Server::start(&[]);
        let link = server.redis().link(Use::Journal);
        let before = link.ready(PATIENCE).await.unwrap();
        server.kill();
        until("that the link is away", async || (ping(&link, WITHIN).await == Err(RedisError::Away)).then_some(())).await;
        let waits_for_nothing = poll_fn(|context| Poll::Ready(pin!(ping(&link, WITHIN)).poll(context))).await;
        assert_eq!(waits_for_nothing, Poll::Ready(Err(RedisError::Away)));
        server.run();
        let after = until("another connection", async || link.ready(WITHIN).await.ok()).await;
        assert!(after.generation > before.generation);
        assert_ne!(after.server.run_id, before.server.run_id, "another process, and it says so");
        assert_eq!(ping(&link, WITHIN).await.unwrap(), "PONG");
    });
}

#[test]
fn a_server_that_hangs_costs_the_time_given_and_then_nothing() {
    run(async {
        let server = Server::start(&[]);
        let link = server.redis().link(Use::Lookup);
        link.ready(PATIENCE).await.unwrap();
        server.signal(Signal::STOP);
        let short = Duration::from_millis(25);
        assert_eq!(ping(&link, short).await, Err(RedisError::Timeout));
        until("that the silent connection is given up", async || (ping(&link, short).await == Err(RedisError::Away)).then_some(())).await;
        server.signal(Signal::CONT);
        until("that it is found again", async || ping(&link, WITHIN).await.ok()).await;
    });
}

#[test]
fn one_late_answer_is_no_reason_to_reconnect_and_is_not_anothers() {
    run(async {
        let server = Server::start(&["--enable-debug-command", "yes"]);
        let redis = server.redis();
        let (link, other) = (redis.link(Use::Lookup), redis.link(Use::Admin));
        link.ready(PATIENCE).await.unwrap();
        other.ready(PATIENCE).await.unwrap();
        // It is busy for 200 ms; what was asked in vain is answered later, and to nobody.
        let busy = tokio::spawn(async move { other.query::<String>(cmd("DEBUG").arg("SLEEP").arg("0.2"), WITHIN).await });
        let late = until("a late answer", async || {
            let answer = link.query::<String>(cmd("ECHO").arg("late"), Duration::from_millis(10)).await;
            (answer == Err(RedisError::Timeout)).then_some(answer)
        });
        late.await.unwrap_err();
        let answer: String = link.query(cmd("ECHO").arg("mine"), WITHIN).await.unwrap();
        assert_eq!(answer, "mine");
        assert_eq!(link.connected().unwrap().generation, 1);
        busy.await.unwrap().unwrap_or_else(|error| panic!("DEBUG SLEEP: {error}"));
    });
}

#[test]
fn a_login_that_is_refused_is_no_connection_and_one_that_is_right_is() {
    run(async {
        let server = Server::start(&["--requirepass", "open sesame"]);
        let with = |password: &str| {
            let settings = Settings { password: Some(Secret::new(password)), ..server.settings() };
            Redis::new(&settings, &Metrics::new(1)).unwrap().link(Use::Admin)
        };
        let (wrong, right) = (with("sesame"), with("open sesame"));
        right.ready(PATIENCE).await.unwrap();
        assert_eq!(ping(&right, WITHIN).await.unwrap(), "PONG");
        assert_eq!(wrong.ready(Duration::from_millis(300)).await, Err(RedisError::Away));
    });
}

#[test]
fn a_user_that_may_not_ask_who_is_there_can_still_work() {
    run(async {
        let server = Server::start(&["--user", "small", "on", ">pass", "~test:*", "&test:*", "+@all", "-@dangerous"]);
        let settings = Settings { user: Some("small".into()), password: Some(Secret::new("pass")), ..server.settings() };
        let link = Redis::new(&settings, &Metrics::new(1)).unwrap().link(Use::Admin);
        let connected = link.ready(PATIENCE).await.unwrap();
        assert_eq!((connected.server.run_id.as_str(), connected.server.role), ("", Role::Unknown));
        link.query::<String>(cmd("SET").arg("test:a").arg("b"), WITHIN).await.unwrap();
        let other = link.query::<String>(cmd("SET").arg("other").arg("b"), WITHIN).await;
        assert!(matches!(&other, Err(RedisError::Refused { code, .. }) if code == "NOPERM"), "{other:?}");
    });
}

#[test]
fn a_full_server_says_so() {
    run(async {
        let server = Server::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
        let link = server.redis().link(Use::Bodies);
        link.ready(PATIENCE).await.unwrap();
        let full = link.query::<String>(cmd("SET").arg("a").arg(vec![0_u8; 2 << 20]), WITHIN).await;
        let full = match full {
            Ok(_) => link.query::<String>(cmd("SET").arg("b").arg("c"), WITHIN).await,
            full => full,
        };
        assert!(full.as_ref().is_err_and(RedisError::is_out_of_memory), "{full:?}");
    });
}

#[test]
fn nonsense_in_place_of_answers_is_an_error() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = { stream }.write_all(&[b"$99999999999999999999\r\n".as_slice(), &[0xff; 4096]].concat());
            }
        });
        let link = Redis::new(&settings(folder.path().join("socket")), &Metrics::new(1)).unwrap().link(Use::Lookup);
        assert_eq!(link.ready(Duration::from_millis(500)).await, Err(RedisError::Away));
        assert_eq!(ping(&link, WITHIN).await, Err(RedisError::Away));
    });
}

#[test]
fn messages_arrive_and_listening_goes_on_after_a_restart() {
    run(async {
        let mut server = Server::start(&[]);
        let redis = server.redis();
        let mut messages = redis.subscribe(vec![redis.keys().channel("a")], 16);
        assert_eq!(messages.next().await, Some(Message::Listening));
        let link = redis.link(Use::Admin);
        link.ready(PATIENCE).await.unwrap();
        let publish = async |text: &str| link.query::<i64>(cmd("PUBLISH").arg("test:channel:a").arg(text), WITHIN).await;
        assert_eq!(publish("one").await, Ok(1));
        let message = |text: &str| Message::Published { channel: "test:channel:a".into(), message: text.into() };
        assert_eq!(messages.next().await, Some(message("one")));
        server.kill();
        server.run();
        assert_eq!(messages.next().await, Some(Message::Listening), "what came between was missed, and that is told");
        until("that it is published", async || (publish("two").await == Ok(1)).then_some(())).await;
        assert_eq!(messages.next().await, Some(message("two")));
    });
}

#[test]
fn what_happens_is_counted_by_use_and_outcome() {
    run(async {
        let mut server = Server::start(&[]);
        let metrics = Metrics::new(1);
        let redis = Redis::new(&server.settings(), &metrics).unwrap();
        let link = redis.link(Use::Limit);
        link.ready(PATIENCE).await.unwrap();
        ping(&link, WITHIN).await.unwrap();
        let has = |line: &str| assert!(metrics.render().lines().any(|there| there == line), "{line} in\n{}", metrics.render());
        has(r#"tiercel_redis_commands_total{outcome="answered",use="limit"} 1"#);
        has(r#"tiercel_redis_connections{use="limit"} 1"#);
        has(r#"tiercel_redis_connects_total{outcome="connected",use="limit"} 1"#);
        assert!(redis.time_ms(1_000_000).abs_diff(1_000_000) < 1000, "it is this host's clock");
        server.kill();
        until("that it is away", async || (ping(&link, WITHIN).await == Err(RedisError::Away)).then_some(())).await;
        has(r#"tiercel_redis_connections{use="limit"} 0"#);
    });
}

#[test]
fn a_floor_that_comes_late_lowers_nothing() {
    let server = Server::start(&[]);
    run(async {
        let link = server.redis().link(Use::Floors);
        link.ready(WITHIN).await.unwrap();
        let script = Script::new(include_str!("../../src/tier/redis/floor.lua"));
        let raise = async |floors: &[(&str, i64, u64)]| {
            let calls: Vec<_> = floors.iter().map(|(key, floor, lives_ms)| (*key, [floor.to_string(), lives_ms.to_string()])).collect();
            link.script_each(&script, &calls, WITHIN).await.unwrap();
        };
        let floor = async |key: &str| link.query::<Option<i64>>(cmd("GET").arg(key), WITHIN).await.unwrap();
        let lives_ms = async |key: &str| link.query::<i64>(cmd("PTTL").arg(key), WITHIN).await.unwrap();
        // Redis does not know the script yet: it is sent whole, for all of them.
        raise(&[("a", 1_700_000_000_020, 50_000), ("b", 1_700_000_000_010, 50_000)]).await;
        assert_eq!((floor("a").await, floor("b").await), (Some(1_700_000_000_020), Some(1_700_000_000_010)));
        raise(&[("a", 1_700_000_000_010, 900_000), ("b", 1_700_000_000_020, 900_000), ("c", -5, 900_000)]).await;
        assert_eq!((floor("a").await, floor("b").await), (Some(1_700_000_000_020), Some(1_700_000_000_020)));
        assert_eq!(floor("c").await, Some(-5));
        for key in ["a", "b", "c"] {
            let left = lives_ms(key).await;
            assert!((50_001..=900_000).contains(&left), "{key} lives {left} ms: as long as who came last wants");
        }
        link.query::<String>(cmd("SCRIPT").arg("FLUSH"), WITHIN).await.unwrap();
        raise(&[("a", 1_700_000_000_030, 900_000)]).await;
        assert_eq!(floor("a").await, Some(1_700_000_000_030), "what was forgotten is sent again");
    });
}

#[test]
fn a_floor_of_a_clock_that_is_ahead_keeps_nothing_out_for_longer_than_a_second() {
    const HOUR_MS: i64 = 3_600_000;
    let server = Server::start(&[]);
    run(async {
        let link = server.redis().link(Use::Floors);
        link.ready(WITHIN).await.unwrap();
        let script = Script::new(include_str!("../../src/tier/redis/floor.lua"));
        let time = async || {
            let (seconds, us) = link.query::<(i64, i64)>(&cmd("TIME"), WITHIN).await.unwrap();
            seconds * 1000 + us / 1000
        };
        let raised = async |floor: i64| {
            let before = time().await;
            link.script_each(&script, &[("a", [floor.to_string(), "900000".to_owned()])], WITHIN).await.unwrap();
            (before, link.query::<i64>(cmd("GET").arg("a"), WITHIN).await.unwrap(), time().await)
        };
        let (before, floor, after) = raised(time().await + HOUR_MS).await;
        assert!((before + 1000..=after + 1000).contains(&floor), "{before} {floor} {after}");
        // One that an earlier release left there.
        link.query::<String>(cmd("SET").arg("a").arg(time().await + HOUR_MS), WITHIN).await.unwrap();
        let (before, floor, after) = raised(time().await).await;
        assert!((before + 1000..=after + 1000).contains(&floor), "{before} {floor} {after}");
    });
}

#[test]
fn a_record_of_a_clock_that_is_ahead_is_not_taken_and_stands_in_nobodys_way() {
    const BEGAN_AT: usize = 4;
    let server = Server::start(&[]);
    run(async {
        let link = server.redis().link(Use::Bodies);
        link.ready(WITHIN).await.unwrap();
        let script = Script::new(include_str!("../../src/tier/redis/store.lua"));
        let (seconds, _) = link.query::<(i64, i64)>(&cmd("TIME"), WITHIN).await.unwrap();
        let record = |ahead_ms: i64| [b"TCL".as_slice(), &(seconds * 1000 + ahead_ms).to_le_bytes(), b" of then"].concat();
        let put = async |ahead_ms: i64| {
            let numbers = [60_000, BEGAN_AT, 100].map(|number: usize| number.to_string().into_bytes());
            let arguments = [vec![record(ahead_ms); 2], numbers.to_vec()].concat();
            link.script::<(bool, Vec<u8>, u32), _, _>(&script, &["head", "primary"], &arguments, WITHIN).await.unwrap().0
        };
        let there = async |key: &str| link.query::<Vec<u8>>(cmd("GET").arg(key), WITHIN).await.unwrap();
        assert!(put(-10_000).await && !put(-20_000).await && put(-5000).await, "the later fetch counts");
        assert!(!put(3_600_000).await, "no floor would be above it");
        for key in ["head", "primary"] {
            link.query::<()>(cmd("SET").arg(key).arg(record(3_600_000)), WITHIN).await.unwrap();
        }
        assert!(put(0).await, "it does not stand in the way for an hour");
        assert_eq!((there("head").await, there("primary").await), (record(0), record(0)));
    });
}

/// What each server of a Cluster makes of a script is its own matter, and so is each key.
#[test]
fn a_script_that_one_master_forgot_runs_there_though_it_fails_for_another_key_first() {
    let cluster = Cluster::start();
    let mode = RedisMode::Cluster;
    let tcp = |address: SocketAddr| RedisAddress::Tcp { host: address.ip().to_string(), port: address.port() };
    let addresses = cluster.addresses().into_iter().map(tcp).collect();
    let redis = Redis::new(&Settings { mode, addresses, ..settings(PathBuf::new()) }, &Metrics::new(1)).unwrap();
    run(async {
        let link = redis.link(Use::Floors);
        link.ready(WITHIN).await.unwrap();
        let script = Script::new(include_str!("../../src/tier/redis/floor.lua"));
        let call = |key: &'static str| (key, ["1700000000000".to_owned(), "900000".to_owned()]);
        // "foo" (slot 12182) is the third master's, "b" (3300) the first one's.
        let (third, first) = (&cluster.masters[2], &cluster.masters[0]);
        link.script_each(&script, &[call("foo"), call("b")], WITHIN).await.unwrap();
        for master in [first, third] {
            assert_eq!(master.ask(&["DBSIZE"]).integer(), 1, "each has a key");
        }
        third.ask(&["DEL", "foo"]);
        third.ask(&["LPUSH", "foo", "no floor"]);
        first.ask(&["DEL", "b"]);
        first.ask(&["SCRIPT", "FLUSH"]);
        // What the first one says is heard last.
        first.pause();
        let calls = [call("foo"), call("b")];
        let run = link.script_each(&script, &calls, WITHIN);
        let resume = until("the other one has refused", async || third.info("errorstats", "errorstat_WRONGTYPE").map(|_| first.resume()));
        let (ran, ()) = tokio::join!(run, resume);
        assert!(matches!(&ran, Err(RedisError::Refused { code, .. }) if code == "WRONGTYPE"), "{ran:?}");
        assert_eq!(first.ask(&["GET", "b"]).text(), "1700000000000");
    });
}
