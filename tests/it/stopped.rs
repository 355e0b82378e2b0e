//! A process that is stopped for longer than its deadlines (SIGSTOP, a machine that is moved): what came before a deadline was
//! looked at is in time, though the timers are the first to fire when it goes on.

use crate::support::client::Client;
use crate::support::h2::{ask, connect, get};
use crate::support::h2_origin;
use crate::support::origin::{Gate, Origin, PATIENCE, Script, Step};
use crate::support::pki::{EC, Pki, Secure};
use crate::support::process::{CONTINUE, Process, config};
use crate::tls::metric_if_there;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Of everything that can have one; long enough for what a test does before it stops the process, also on a busy machine.
const DEADLINES: &str = "[limits]\nheader_timeout = '5s'\nidle_timeout = '5s'\nbody_timeout = '5s'\n\
    body_rate = '512B'\nwrite_timeout = '5s'\n[limits.http2]\nkeep_alive = '5s'\nkeep_alive_timeout = '5s'\n";
/// Beyond all of them.
const STOPPED: Duration = Duration::from_millis(5500);

const REQUEST: &str = "GET /again HTTP/1.1\r\nHost: shop.example\r\n\r\n";

struct Stage {
    process: Process,
    origin: Origin,
    _folder: TempDir,
}

impl Stage {
    /// `listener` and `upstream` are added to their tables.
    fn new(listener: &str, upstream: &str, respond: impl Fn(&str) -> Script + Send + Sync + 'static) -> Self {
        let origin = Origin::start(move |request| respond(&request.path));
        let (process, _folder) = start(&origin.url(), listener, upstream);
        Self { process, origin, _folder }
    }

    fn plain() -> Self {
        Self::new("", "", |path| Script::ok(path))
    }
}

fn start(origin: &str, listener: &str, upstream: &str) -> (Process, TempDir) {
    start_workers(2, origin, listener, upstream)
}

fn start_workers(workers: usize, origin: &str, listener: &str, upstream: &str) -> (Process, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = config(origin, &format!("[server]\nworkers = {workers}\n{DEADLINES}")).replace("[admin]", &format!("{listener}[admin]"));
    let process = Process::with_config(folder.path(), &format!("{text}{upstream}"));
    (process, folder)
}

/// Stops the process, lets others act, and lets it go on when all deadlines have passed.
async fn while_stopped<T>(process: &Process, act: impl Future<Output = T>) -> T {
    process.stop();
    let done = act.await;
    tokio::time::sleep(STOPPED).await; // that the time passes is what this is about
    process.signal(CONTINUE);
    done
}

/// Waits until the server has read all that this client sent, as the kernel knows it.
async fn until_read(client: &Client) {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(address) => format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port()),
        SocketAddr::V6(_) => panic!("an address of IPv4"),
    };
    let (here, there) = (client.stream.local_addr().expect("bound"), client.stream.peer_addr().expect("connected"));
    let ends = format!(" {} {} ", hex(there), hex(here));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let line = table.lines().find(|line| line.contains(&ends)).expect("the server's end");
        if line.split_whitespace().nth(4).is_some_and(|queues| queues.ends_with(":00000000")) {
            return;
        }
        assert!(Instant::now() < deadline, "it is not read: {line}");
        tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
    }
}

#[tokio::test]
async fn a_request_on_an_idle_connection_is_answered() {
    let stage = Stage::plain();
    let address = stage.process.http();
    let opened = (0..64).map(|_| async move {
        let mut client = Client::connect(address).await;
        assert_eq!(client.ask(REQUEST).await.status, 200);
        client
    });
    let mut clients = opened.collect::<JoinSet<_>>().join_all().await;
    while_stopped(&stage.process, async {
        for client in &mut clients {
            client.send(REQUEST).await;
        }
    })
    .await;
    for client in &mut clients {
        assert_eq!(client.answer(false).await.expect("an answer").text(), "/again");
    }
}

#[tokio::test]
async fn a_head_whose_rest_came_is_answered() {
    let stage = Stage::plain();
    let mut client = Client::connect(stage.process.http()).await;
    let (first, rest) = REQUEST.split_at(20);
    client.send(first).await;
    until_read(&client).await;
    while_stopped(&stage.process, client.send(rest)).await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "/again"));
}

#[tokio::test]
async fn a_head_whose_rest_did_not_come_is_refused_with_408() {
    let stage = Stage::plain();
    let mut client = Client::connect(stage.process.http()).await;
    client.send(&REQUEST[..20]).await;
    until_read(&client).await;
    while_stopped(&stage.process, async {}).await;
    assert_eq!(client.answer(false).await.expect("an answer").status, 408);
}

#[tokio::test]
async fn a_request_body_whose_rest_came_is_taken() {
    let stage = Stage::plain();
    let mut client = Client::connect(stage.process.http()).await;
    client.send("POST /body HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 6\r\n\r\nabc").await;
    until_read(&client).await;
    while_stopped(&stage.process, client.send("def")).await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "/body"));
    assert_eq!(stage.origin.requests("/body")[0].body, b"abcdef");
}

#[tokio::test]
async fn a_request_body_may_take_the_time_that_what_came_earns_it() {
    const EARNS_A_SECOND: [u8; 512] = [b'.'; 512];
    let stage = Stage::plain();
    let mut client = Client::connect(stage.process.http()).await;
    client.send("POST /body HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 518\r\n\r\nabc").await;
    until_read(&client).await;
    while_stopped(&stage.process, client.send(EARNS_A_SECOND)).await;
    until_read(&client).await;
    // Longer than a last look, and much less than a second.
    let is_silent = tokio::time::timeout(Duration::from_millis(100), client.stream.readable()).await.is_err();
    client.send("def").await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text(), is_silent), (200, "/body", true));
}

#[tokio::test]
async fn an_answer_that_its_client_took_meanwhile_goes_on() {
    const LENGTH: usize = 16 << 20;
    let stage = Stage::new("", "", |_| Script::ok(vec![b'.'; LENGTH]));
    let mut client = Client::narrow(stage.process.http()).await;
    client.send(REQUEST).await;
    // So much is there, and nobody takes it: soon no more can be written.
    let mut seen = vec![0; 110_000];
    while client.stream.peek(&mut seen).await.expect("an answer") < seen.len() {
        tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
    }
    let head = while_stopped(&stage.process, async {
        let head = client.until("\r\n\r\n").await.expect("a head");
        (head, client.take_exactly(100_000).await.len())
    })
    .await;
    assert!(head.0.contains(&LENGTH.to_string()), "{}", head.0);
    assert_eq!(client.take_exactly(LENGTH - head.1).await.len(), LENGTH - head.1);
}

/// Of the origin's answer so much comes before the process is stopped, and the rest while it is.
async fn an_answer_of_the_origin_is_in_time(upstream: &str, before: &'static [u8], rest: &'static [u8]) {
    let gate = Gate::new();
    let held = gate.clone();
    let script = move |_: &str| Script::steps([Step::Bytes(before.to_vec()), Step::Wait(held.clone()), Step::Bytes(rest.to_vec())]);
    let stage = Stage::new("", upstream, script);
    let mut client = Client::connect(stage.process.http()).await;
    client.send(REQUEST).await;
    stage.origin.until("it is asked", |origin| origin.total() == 1).await;
    if !before.is_empty() {
        client.stream.readable().await.expect("what came");
    }
    while_stopped(&stage.process, async { gate.open() }).await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "abcdef"), "{upstream}: {}", answer.head);
    assert_eq!(stage.origin.total(), 1);
}

const WITHIN_FIVE_SECONDS: &str = "retries = 0\nconnect_timeout = '5s'\nfirst_byte_timeout = '5s'\nread_timeout = '5s'\n";

#[tokio::test]
async fn an_answer_of_the_origin_that_came_meanwhile_is_no_timeout() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef";
    let part = ANSWER.len() - 3;
    for codec in ["own", "hyper"] {
        let upstream = format!("{WITHIN_FIVE_SECONDS}http1 = '{codec}'\n");
        an_answer_of_the_origin_is_in_time(&upstream, b"", ANSWER).await;
        an_answer_of_the_origin_is_in_time(&upstream, &ANSWER[..part], &ANSWER[part..]).await;
    }
}

/// A process whose origin speaks HTTP/2, and answers once it may.
struct Held {
    process: Process,
    _folder: TempDir,
    asked: watch::Receiver<usize>,
    may_answer: watch::Sender<bool>,
}

impl Held {
    async fn new(upstream: &str) -> Self {
        let ((asks, asked), (may_answer, may)) = (watch::channel(0), watch::channel(false));
        let origin = h2_origin::Origin::start(move |(_, respond)| {
            let (asks, mut may) = (asks.clone(), may.clone());
            async move {
                asks.send_modify(|asked| *asked += 1);
                may.wait_for(|may| *may).await.expect("the test goes on");
                h2_origin::say(respond, "abcdef");
            }
        })
        .await;
        let upstream = format!("{WITHIN_FIVE_SECONDS}http = '2'\nhttp2.keep_alive = '5s'\n{upstream}");
        // What another worker frees, it may free after the last look of who waits for it.
        let (process, _folder) = start_workers(1, &format!("http://{}", origin.address), "", &upstream);
        Self { process, _folder, asked, may_answer }
    }

    async fn ask(&self, path: &str) -> Client {
        let mut client = Client::connect(self.process.http()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n")).await;
        client
    }

    async fn until_asked(&self) {
        self.asked.clone().wait_for(|asked| *asked == 1).await.expect("the origin runs");
    }

    /// One is with the origin and another waits, as `waiting` says; the answer to the first comes while the process is stopped.
    async fn both_are_answered(&self, waiting: &str) {
        let first = self.ask("/first").await;
        self.until_asked().await;
        let second = self.ask("/second").await;
        until_metric(&self.process, waiting, 1.0).await;
        while_stopped(&self.process, async { self.may_answer.send_replace(true) }).await;
        for mut client in [first, second] {
            let answer = client.answer(false).await.expect("an answer");
            assert_eq!((answer.status, answer.text()), (200, "abcdef"), "{}", answer.head);
        }
        assert_eq!(*self.asked.borrow(), 2);
    }
}

#[tokio::test]
async fn an_answer_over_http2_that_came_meanwhile_is_no_timeout() {
    let held = Held::new("").await;
    let mut client = held.ask("/again").await;
    held.until_asked().await;
    while_stopped(&held.process, async { held.may_answer.send_replace(true) }).await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "abcdef"), "{}", answer.head);
    assert_eq!(*held.asked.borrow(), 1);
}

#[tokio::test]
async fn a_request_on_an_idle_connection_of_http2_is_answered() {
    let stage = Stage::new("h2c = true\n", "", |path| Script::ok(path));
    let address = stage.process.http();
    let opened = (0..16).map(|_| async move {
        let mut client = connect(address).await;
        assert_eq!(&ask(&mut client, get("/a")).await.body()[..], b"/a");
        client
    });
    let clients = opened.collect::<JoinSet<_>>().join_all().await;
    let answers = while_stopped(&stage.process, async {
        let mut answers = JoinSet::new();
        for mut client in clients {
            client.ready().await.expect("the connection goes on");
            let answer = client.send_request(get("/b"));
            answers.spawn(async move { (answer.await.map(|answer| answer.status().as_u16()), client) });
        }
        answers
    })
    .await;
    for (answer, _) in answers.join_all().await {
        assert_eq!(answer.expect("an answer"), 200);
    }
}

#[tokio::test]
async fn a_handshake_whose_client_spoke_meanwhile_ends_well_and_so_does_a_request_behind_tls() {
    let (pki, origin) = (Pki::new(), Origin::start(|request| Script::ok(request.path.clone())));
    pki.issue("shop", &["shop.example"], EC, 30);
    let listener = format!(
        "[listeners.https]\naddress = '127.0.0.1:0'\n[listeners.https.tls]\nhandshake_timeout = '5s'\ncertificates = [{}]\n",
        pki.entry("shop")
    );
    let (process, _folder) = start(&origin.url(), &listener, "");
    let (address, trusting) = (process.address("listener https"), Arc::new(pki.client()));
    let mut idle = Secure::connect(address, "shop.example", &trusting).await.expect("a handshake");
    idle.ask(REQUEST).await.expect("an answer");
    // A connection of which nothing was heard yet.
    let silent = Client::connect(address).await;
    until_metric(&process, "tiercel_connections", 2.0).await;
    let asked = while_stopped(&process, async {
        let again = tokio::spawn(async move { idle.ask(REQUEST).await });
        let name = rustls::pki_types::ServerName::try_from("shop.example").expect("a name");
        let shaken = tokio::spawn(tokio_rustls::TlsConnector::from(Arc::clone(&trusting)).connect(name, silent.stream));
        (again, shaken)
    })
    .await;
    assert_eq!(asked.0.await.expect("no panic").expect("an answer").1, b"/again");
    asked.1.await.expect("no panic").expect("a handshake");
}

async fn until_metric(process: &Process, series: &str, want: f64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = metric_if_there(process, series).await;
        if now == Some(want) {
            return;
        }
        assert!(Instant::now() < deadline, "{series} is {now:?}, not {want}");
    }
}

#[tokio::test]
async fn a_request_in_line_for_a_stream_that_became_free_meanwhile_is_answered() {
    let held = Held::new("connections = 1\nqueue_timeout = '5s'\nhttp2.streams = 1\n").await;
    held.both_are_answered("tiercel_bound_reached_total{bound=\"upstream_connections\"}").await;
}

#[tokio::test]
async fn a_request_in_line_after_a_purge_for_a_place_that_became_free_meanwhile_is_answered() {
    let held = Held::new("purge_concurrency = 1\npurge_queue_timeout = '5s'\n").await;
    let admin = held.process.admin();
    let body = r#"{"everything": true}"#;
    let purge = format!(
        "POST /v1/purge HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(Client::connect(admin).await.ask(purge).await.status, 200);
    held.both_are_answered("tiercel_upstream_purge_waiting{upstream=\"default\"}").await;
}
