//! Ways in which Redis may be set up: with TLS, with a user of few rights, with a server of its own for the journal, with a
//! policy of eviction that does not suit.

use crate::support::client::{Answer, Client};
use crate::support::fleet::{Fleet, Node, Plan};
use crate::support::link::Trouble;
use crate::support::origin::{Gate, Origin, PATIENCE, Script, eventually};
use crate::support::pki::{EC, Pki};
use crate::support::process::run;
use crate::support::redis::{Cluster, Redis, Reply, Restart, Sentinels};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HOST: &str = "a.example";

/// A budget that a busy machine keeps.
const CONFIG: &str = "[server]\nworkers = 1\n[upstreams.default]\nendpoints = ['@ORIGIN@']\n\
    [journal]\nnode = '@NODE@'\ntrust = '1s'\non_cutoff = 'revalidate'\n\
    [cache.redis]\nurl = 'redis://@REDIS@'\nlookup_budget = '2s'\n";

fn plan(nodes: usize, origin: &Origin, redis: SocketAddr, config: String) -> Plan {
    Plan { nodes, config, origin: origin.url(), redis: Some(redis), fault: None }
}

fn origin() -> Origin {
    Origin::start(|request| Script::ok(request.path.clone()).header("cache-control", "max-age=600"))
}

/// Starts the nodes and waits until they follow the journal.
async fn start(plan: &Plan) -> Fleet {
    let fleet = Fleet::start(plan);
    until_trusted(&fleet, true).await;
    fleet
}

async fn until_trusted(fleet: &Fleet, is_trusted: bool) {
    for node in &fleet.nodes {
        eventually("the journal is as expected", || node.metric("tiercel_journal_trusted", &[]) == Some(f64::from(is_trusted))).await;
    }
}

fn is_from_redis(answer: &Answer) -> bool {
    answer.says("hit") && answer.says("detail=REDIS")
}

/// Has the first node store it in the tier.
async fn store(fleet: &Fleet, path: &str) {
    let node = &fleet.nodes[0];
    let stored = || node.metric("tiercel_tier_writes_total", &["outcome=\"stored\""]).expect("it answers");
    let before = stored();
    assert_eq!(node.get(HOST, path).await.text(), path);
    eventually("it is in the tier", || stored() > before).await;
}

fn purge(node: &Node, path: &str) -> (u16, Value) {
    let body = json!({"urls": [format!("http://{HOST}{path}")], "wait": "fleet", "timeout": "10s"}).to_string();
    node.admin("POST", "/v1/purge", &body).expect("an answer")
}

/// What one node stored another has, until a third party purges it on both.
async fn are_one_cache(fleet: &Fleet, origin: &Origin, path: &str) {
    store(fleet, path).await;
    let found = fleet.nodes[1].get(HOST, path).await;
    assert!(is_from_redis(&found), "{}", found.head);
    assert_eq!(origin.count(path), 1);
    let (status, receipt) = purge(&fleet.nodes[1], path);
    assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    let again = fleet.nodes[0].get(HOST, path).await;
    assert!(!again.says("hit") && again.text() == path, "{}", again.head);
    assert_eq!(origin.count(path), 2);
}

/// The configuration with TLS, and files of an authority.
fn encrypted(roots: Option<&Pki>, certificate: Option<&Pki>) -> String {
    let show = |pki: &Pki| format!("tls.certificate = '{0}.pem'\ntls.key = '{0}.key'\n", pki.path("node").display());
    let show = certificate.map(show).unwrap_or_default();
    let trust = roots.map(|pki| format!("tls.roots = '{}'\n", pki.path("ca.pem").display())).unwrap_or_default();
    format!("{}{trust}{show}", CONFIG.replace("redis://", "rediss://"))
}

/// The same where Redis is at several addresses.
fn encrypted_at(pki: &Pki, addresses: &[SocketAddr], mode: &str) -> String {
    let urls: Vec<_> = addresses.iter().map(|address| format!("'rediss://{address}'")).collect();
    encrypted(Some(pki), Some(pki)).replace("url = 'rediss://@REDIS@'", &format!("url = [{}]\n{mode}", urls.join(", ")))
}

/// Nobody but this test has a connection in plain text.
fn is_asked_over_tls_alone(redis: &Redis) {
    let list = redis.ask(&["CLIENT", "LIST", "TYPE", "NORMAL"]).text();
    let at = |port: u16| {
        list.lines().filter(|line| line.split(' ').any(|word| word.starts_with("laddr=") && word.ends_with(&format!(":{port}")))).count()
    };
    assert!(at(redis.address().port()) == 1 && at(redis.tls_address().port()) > 0, "{list}");
}

fn authority() -> Pki {
    let pki = Pki::new();
    pki.issue("node", &["node"], EC, 30);
    pki
}

#[tokio::test]
async fn tier_and_journal_work_over_tls_with_a_certificate() {
    let (origin, pki) = (origin(), authority());
    let redis = Redis::with_tls(&pki);
    let fleet = start(&plan(2, &origin, redis.tls_address(), encrypted(Some(&pki), Some(&pki)))).await;
    are_one_cache(&fleet, &origin, "/a").await;
    assert_eq!(fleet.sum("tiercel_redis_connects_total", &["failed"]), 0.0);
}

#[tokio::test]
async fn tier_and_journal_work_over_a_socket_of_the_machine() {
    for scheme in ["unix:", "unix://"] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("redis.sock").display().to_string();
        let (origin, redis) = (origin(), Redis::with_options(&[("unixsocket", &socket)]));
        let config = CONFIG.replace("redis://@REDIS@", &format!("{scheme}{socket}"));
        let fleet = start(&Plan { redis: None, ..plan(2, &origin, redis.address(), config) }).await;
        are_one_cache(&fleet, &origin, "/a").await;
        let list = redis.ask(&["CLIENT", "LIST"]).text();
        let (here, all) = (list.lines().filter(|line| line.contains(&socket)).count(), list.lines().count());
        assert!(here > 0 && all == here + 1, "but for this test nobody comes by TCP: {list}");
    }
}

#[tokio::test]
async fn tier_and_journal_work_over_tls_where_sentinels_name_the_master() {
    let (origin, pki) = (origin(), authority());
    let mut master = Redis::with_tls(&pki);
    let replica = Redis::replica_with_tls(&master, &pki);
    let sentinels = Sentinels::watch_with_tls(&pki, &master, 1, 500);
    let config = encrypted_at(&pki, &sentinels.tls_addresses(), "mode = 'sentinel'\nsentinel_master = 'fleet'");
    let fleet = start(&Plan { redis: None, ..plan(2, &origin, master.address(), config) }).await;
    are_one_cache(&fleet, &origin, "/a").await;
    is_asked_over_tls_alone(&master);
    master.kill();
    sentinels.until_master(&replica);
    until_trusted(&fleet, true).await;
    // The tier is left alone until a probe has found the new master.
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let path = format!("/b/{number}");
        assert_eq!(fleet.nodes[0].get(HOST, &path).await.text(), path);
        if is_from_redis(&fleet.nodes[1].get(HOST, &path).await) {
            break;
        }
        assert!(Instant::now() < deadline, "the tier is not used again:\n{}", fleet.nodes[0].log());
    }
    are_one_cache(&fleet, &origin, "/c").await;
    is_asked_over_tls_alone(&replica);
}

#[tokio::test]
async fn tier_and_journal_work_over_tls_in_a_cluster() {
    let (origin, pki) = (origin(), authority());
    let cluster = Cluster::with_tls(&pki);
    let config = encrypted_at(&pki, &cluster.tls_addresses(), "mode = 'cluster'");
    let fleet = start(&Plan { redis: None, ..plan(2, &origin, cluster.addresses()[0], config) }).await;
    for number in 0..12 {
        are_one_cache(&fleet, &origin, &format!("/a/{number}")).await;
    }
    assert!(cluster.masters.iter().all(|master| master.ask(&["DBSIZE"]).integer() > 0), "each has some");
    cluster.masters.iter().for_each(is_asked_over_tls_alone);
    assert_eq!(fleet.sum("tiercel_redis_connects_total", &["failed"]), 0.0);
}

#[tokio::test]
async fn what_is_wrong_with_tls_to_redis_is_said_with_what_helps() {
    let (origin, pki, other) = (origin(), authority(), authority());
    let redis = Redis::with_tls(&pki);
    let cases = [
        ("the authorities of the system", encrypted(None, Some(&pki)), "UnknownIssuer", "tls.roots"),
        ("another authority of that name", encrypted(Some(&other), Some(&pki)), "BadSignature", "tls.roots"),
        ("no certificate", encrypted(Some(&pki), None), "CertificateRequired", "tls.certificate"),
        ("a certificate of another authority", encrypted(Some(&pki), Some(&other)), "", "tls.certificate"),
    ];
    for (case, config, cause, remedy) in cases {
        let fleet = Fleet::launch(&plan(1, &origin, redis.tls_address(), config));
        let node = &fleet.nodes[0];
        let is_said =
            || node.log().lines().any(|line| line.contains("no connection to Redis") && line.contains(cause) && line.contains(remedy));
        let deadline = Instant::now() + PATIENCE;
        while !is_said() {
            assert!(Instant::now() < deadline, "{case}: {}", node.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        node.until_ready();
        assert_eq!(node.get(HOST, "/a").await.status, 200, "{case}: requests are answered all the same");
    }
}

/// The user is the one that `docs/configuration.md` names.
#[tokio::test]
async fn a_user_without_dangerous_commands_runs_everything() {
    let (redis, gate) = (Redis::start(), Gate::new());
    let held = gate.clone();
    let origin = Origin::start(move |request| {
        let script = Script::ok(request.path.clone()).header("cache-control", "max-age=600");
        if request.path == "/held" { script.after(&held) } else { script }
    });
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).expect("the docs");
    let rights = ["~tiercel:*", "&tiercel:*", "+@all", "-@dangerous", "+info"];
    assert!(docs.contains("It needs `~<prefix>:*`, `&<prefix>:*` and `+@all -@dangerous +info`"), "the docs say something else");
    redis.ask(&[&["ACL", "SETUSER", "node", "on", ">secret"], &rights[..]].concat());
    let config = format!("{CONFIG}user = 'node'\npassword = 'secret'\n[rate_limit]\nrate = '1000/h'\nshared = true\n");
    let fleet = start(&plan(2, &origin, redis.address(), config)).await;
    are_one_cache(&fleet, &origin, "/a").await;

    // One waits for the other's fetch, and is woken over a channel.
    let mut clients = Vec::new();
    for node in &fleet.nodes {
        let mut client = Client::connect(node.http).await;
        client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
        origin.until("one of them asks", |origin| origin.count("/held") == 1).await;
        clients.push(client);
    }
    eventually("the other waits", || fleet.sum("tiercel_lease_waiting", &[]) == 1.0).await;
    gate.open();
    for mut client in clients {
        assert_eq!(client.answer(false).await.expect("an answer").text(), "/held");
    }
    assert_eq!(origin.count("/held"), 1);

    let mut writer = Client::connect(fleet.nodes[0].http).await;
    let posted = writer.ask(format!("POST /a HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(posted.status, 200);
    eventually("its floors are raised", || fleet.sum("tiercel_tier_writes_total", &["outcome=\"floor\""]) == 2.0).await;
    eventually("the fleet is told", || fleet.sum("tiercel_journal_appended_total", &["unsafe_method"]) == 1.0).await;

    let (status, kept) = fleet.nodes[0].admin("GET", "/v1/redis", "").expect("an answer");
    assert_eq!((status, &kept["partial"]), (200, &json!(false)), "{kept}");
    let keys = |kind: &str| kept[kind]["keys"].as_u64().expect("a number");
    assert!(keys("rate_limits") == 1 && keys("floors") == 2 && keys("heads") >= 1, "{kept}");
    let journal = &kept["journal"];
    assert_eq!((&journal["nodes"], &journal["keys"]), (&json!(2), &json!(4)), "the record, the epoch, two streams: {kept}");
    assert_eq!((&journal["purges"]["entries"], &journal["unsafe_methods"]["entries"]), (&json!(1), &json!(1)), "{kept}");
    let bytes = |of: &Value| of["bytes"].as_u64().expect("a number");
    assert!(bytes(&journal["purges"]) > 0 && bytes(journal) > bytes(&journal["purges"]) + bytes(&journal["unsafe_methods"]), "{kept}");

    let admin = format!("http://{}", fleet.nodes[0].admin);
    let output = run(&["redis-stats", "--json", "--admin", &admin]);
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{output:?}");
    for kind in ["heads", "floors", "rate_limits", "journal"] {
        assert_eq!(printed[kind]["keys"], kept[kind]["keys"], "{kind}: {printed}");
    }

    assert_eq!(fleet.sum("tiercel_redis_commands_total", &["refused"]), 0.0);
    assert_eq!(fleet.sum("tiercel_redis_connects_total", &["failed"]), 0.0);
    assert_eq!(redis.info("errorstats", "errorstat_NOPERM"), None);
}

/// Two servers: the journal's, and the tier's.
async fn two_servers() -> (Redis, Redis, Origin, Fleet) {
    let (journal, tier, origin) = (Redis::start(), Redis::start(), origin());
    let config = format!("{CONFIG}[journal.redis]\nurl = '{}'\n", journal.url());
    let fleet = start(&plan(2, &origin, tier.address(), config)).await;
    (journal, tier, origin, fleet)
}

#[tokio::test]
async fn purges_go_on_while_the_server_of_the_tier_is_gone() {
    let (journal, mut tier, origin, fleet) = two_servers().await;
    are_one_cache(&fleet, &origin, "/a").await;
    let keys = |redis: &Redis, pattern: &str| redis.ask(&["KEYS", pattern]).list().iter().map(Reply::text).count();
    assert_eq!((keys(&journal, "tiercel:c:*"), keys(&tier, "*{journal}*")), (0, 0), "each has its own");
    let (status, kept) = fleet.nodes[0].admin("GET", "/v1/redis", "").expect("an answer");
    assert_eq!((status, &kept["journal"]), (200, &Value::Null), "{kept}");
    let own = &kept["journal_redis"];
    assert_eq!((&own["address"], &own["journal"]["nodes"]), (&json!(journal.url()), &json!(2)), "{kept}");

    tier.kill();
    for round in 0..4 {
        let path = format!("/b/{round}");
        for node in &fleet.nodes {
            assert_eq!(node.get(HOST, &path).await.text(), path);
        }
        let asked = origin.count(&path);
        let (status, receipt) = purge(&fleet.nodes[round % 2], &path);
        assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
        for node in &fleet.nodes {
            assert!(!node.get(HOST, &path).await.says("hit"), "{}", node.name);
        }
        assert_eq!(origin.count(&path), asked + 2, "each for itself");
        assert_eq!(fleet.sum("tiercel_journal_trusted", &[]), 2.0);
    }
    tier.start_again(Restart::Empty);
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        let path = format!("/c/{round}");
        assert_eq!(fleet.nodes[0].get(HOST, &path).await.text(), path);
        if is_from_redis(&fleet.nodes[1].get(HOST, &path).await) {
            break;
        }
        assert!(Instant::now() < deadline, "the tier is not used again:\n{}", fleet.nodes[0].log());
    }
}

#[tokio::test]
async fn the_tier_is_left_alone_while_the_server_of_the_journal_is_silent() {
    let (journal, _tier, origin, fleet) = two_servers().await;
    let (here, there) = (&fleet.nodes[0], &fleet.nodes[1]);
    for path in ["/a", "/b"] {
        store(&fleet, path).await;
    }
    journal.pause();
    until_trusted(&fleet, false).await;
    let skipped = || there.metric("tiercel_tier_lookups_total", &["result=\"skipped\""]).expect("it answers");
    let before = skipped();
    // It may have been purged, for all that this node knows.
    assert_eq!(there.get(HOST, "/a").await.text(), "/a");
    assert!(skipped() > before);
    assert_eq!(origin.count("/a"), 2);
    // As `on_cutoff` says.
    let confirmed = here.get(HOST, "/b").await;
    assert!(confirmed.text() == "/b" && origin.count("/b") == 2, "{}", confirmed.head);
    let (_, kept) = here.admin("GET", "/v1/redis", "").expect("an answer");
    assert!(kept["heads"]["keys"].as_u64() >= Some(2) && kept["journal_redis"]["error"].is_string(), "{kept}");

    journal.resume();
    until_trusted(&fleet, true).await;
    let found = there.get(HOST, "/b").await;
    assert!(is_from_redis(&found), "nothing was lost: {}", found.head);
}

#[tokio::test]
async fn in_a_cluster_the_policy_of_one_master_is_warned_of() {
    let (origin, cluster) = (origin(), Cluster::start());
    // Not the one that has the journal, which is asked for that.
    let other = cluster.masters.iter().find(|master| master.try_ask(&["GET", "{journal}"]).is_ok_and(|reply| reply.is_error()));
    let other = other.expect("the journal is on one of three");
    other.set("maxmemory", "64mb");
    other.set("maxmemory-policy", "noeviction");
    let urls: Vec<_> = cluster.addresses().iter().map(|address| format!("'redis://{address}'")).collect();
    let config = CONFIG.replace("url = 'redis://@REDIS@'", &format!("url = [{}]\nmode = 'cluster'", urls.join(", ")));
    let fleet = start(&Plan { redis: None, ..plan(1, &origin, other.address(), config) }).await;
    store(&fleet, "/a").await;
    let node = &fleet.nodes[0];
    let unsuited = |purpose: &str| node.metric("tiercel_redis_policy_unsuited", &[&format!("use=\"{purpose}\"")]);
    eventually("all masters were looked at", || unsuited("bodies") == Some(1.0)).await;
    assert_eq!(unsuited("journal"), Some(0.0));
    let warned = || node.log().lines().filter(|line| line.contains("set maxmemory-policy") && line.contains("noeviction")).count();
    eventually("it is said", || warned() > 0).await;
    assert_eq!(warned(), 1, "{}", node.log());
}

#[tokio::test]
async fn a_policy_that_may_evict_the_journal_is_warned_of_once() {
    let (origin, redis) = (origin(), Redis::with_options(&[("maxmemory", "64mb"), ("maxmemory-policy", "allkeys-lru")]));
    let fleet = start(&plan(1, &origin, redis.address(), CONFIG.to_owned())).await;
    store(&fleet, "/a").await;
    let node = &fleet.nodes[0];
    let unsuited = |purpose: &str| node.metric("tiercel_redis_policy_unsuited", &[&format!("use=\"{purpose}\"")]);
    let warnings = |text: &str| node.log().lines().filter(|line| line.contains("set maxmemory-policy") && line.contains(text)).count();
    // A connection that nobody uses is not known to be gone, and one that failed is left alone for a while: so it is used
    // until it has looked.
    let until_unsuited = async |path: &str, wanted: (f64, f64)| {
        let deadline = Instant::now() + PATIENCE;
        for number in 0.. {
            if (unsuited("journal"), unsuited("bodies")) == (Some(wanted.0), Some(wanted.1)) {
                return;
            }
            assert!(Instant::now() < deadline, "never {wanted:?}");
            node.get(HOST, &format!("{path}/{number}")).await;
            tokio::time::sleep(Duration::from_millis(20)).await; // nobody announces it
        }
    };
    let reconnect = async |path: &str| {
        let connects = || node.metric("tiercel_redis_connects_total", &["journal", "connected"]);
        let (before, link) = (connects(), node.link.as_ref().expect("a link"));
        link.make(Trouble::Cut);
        link.mend();
        eventually("it connects again", || connects() > before).await;
        assert_eq!(node.get(HOST, path).await.text(), path);
    };
    assert_eq!((unsuited("journal"), unsuited("bodies")), (Some(1.0), Some(0.0)));
    reconnect("/b").await;
    assert_eq!((warnings("allkeys-lru"), warnings("")), (1, 1), "{}", node.log());
    redis.set("maxmemory-policy", "noeviction");
    reconnect("/c").await;
    until_unsuited("/c", (0.0, 1.0)).await;
    redis.set("maxmemory-policy", "volatile-lru");
    reconnect("/d").await;
    until_unsuited("/d", (0.0, 0.0)).await;
    assert_eq!((warnings("allkeys-lru"), warnings("noeviction")), (1, 1), "{}", node.log());
}
