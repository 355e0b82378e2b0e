//! The tier that the fleet shares, with real nodes and a real Redis: what one stored the others have, and whatever is wrong
//! with Redis is a miss and nothing worse.

mod bounds;
mod several;

use crate::support::client::{Answer, Client};
use crate::support::fleet::{Fleet, Node, Plan};
use crate::support::link::Trouble;
use crate::support::origin::{Gate, Origin, PATIENCE, Script};
use crate::support::redis::{Redis, Reply, Restart, Servers};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A budget that a busy machine keeps; what it is by default is nothing that a test could rely on.
const CONFIG: &str = "[upstreams.default]\nendpoints = ['@ORIGIN@']\n[cache]\nmax_object_size = '32MiB'\n\
    [cache.redis]\nurl = 'redis://@REDIS@'\nlookup_budget = '2s'\nremember_misses = '0s'\n";

fn plan(nodes: usize, origin: &Origin, redis: &Redis, more: &str) -> Plan {
    let (config, origin) = (format!("{CONFIG}{more}"), origin.url());
    Plan { nodes, config, origin, redis: Some(redis.address()), fault: None }
}

/// Says what is in the path: `/a/300000` has as many bytes, `/vary/..` varies by language.
fn origin() -> Origin {
    Origin::start(|request| {
        let script = Script::ok(body(&request.path, request.field("accept-language").unwrap_or("")));
        let script = script.header("cache-control", "max-age=600").header("etag", "\"1\"").header("content-type", "text/plain");
        if request.path.starts_with("/vary") { script.header("vary", "accept-language") } else { script }
    })
}

fn body(path: &str, language: &str) -> Vec<u8> {
    let length = path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0);
    let text = if path.starts_with("/vary") { format!("{path} in {language} ") } else { format!("{path} ") };
    text.bytes().cycle().take(text.len().max(length)).collect()
}

/// On a connection of its own.
async fn get(node: &Node, path: &str, language: &str) -> Answer {
    let mut client = Client::connect(node.http).await;
    client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nAccept-Language: {language}\r\nConnection: close\r\n\r\n")).await
}

fn is_from_redis(answer: &Answer) -> bool {
    answer.says("hit") && answer.says("detail=REDIS")
}

/// Waits until so many responses of a node were written.
async fn until_written(node: &Node, count: f64) {
    let written = || node.metric("tiercel_tier_writes_total", &["outcome=\"stored\""]) >= Some(count);
    until(&format!("{count} responses are written"), node, written).await;
}

async fn until(what: &str, node: &Node, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain: {what}; {} wrote:\n{}", node.name, node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lookups(node: &Node, result: &str) -> f64 {
    node.metric("tiercel_tier_lookups_total", &[&format!("result=\"{result}\"")]).expect("it answers")
}

fn heads(redis: &Redis) -> Vec<String> {
    redis.ask(&["KEYS", "*}:h:*"]).list().iter().map(Reply::text).collect()
}

#[tokio::test]
async fn an_empty_node_has_what_another_stored() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    for (number, path) in ["/small", "/a/262144", "/a/262145", "/a/3000000"].into_iter().enumerate() {
        let first = get(&fleet.nodes[0], path, "").await;
        assert!(first.whole && first.is_miss(), "{path}: {}", first.head);
        until_written(&fleet.nodes[0], number as f64 + 1.0).await;
        let asked = || ["lookup", "bodies"].map(|purpose| commands(&fleet.nodes[1], purpose, "answered"));
        let before = asked();
        let found = get(&fleet.nodes[1], path, "").await;
        if path == "/small" {
            assert_eq!(asked(), [before[0] + 1.0, before[1]], "one round trip for head and body");
        }
        assert!(found.whole && found.body == body(path, ""), "{path}: {} bytes", found.body.len());
        assert!(is_from_redis(&found), "{path}: {}", found.head);
        assert!(found.field("age").is_some() && found.field("etag") == Some("\"1\""), "{}", found.head);
        let deadline = Instant::now() + PATIENCE;
        let mut again = get(&fleet.nodes[1], path, "").await;
        while !again.says("detail=MEMORY") && Instant::now() < deadline {
            again = get(&fleet.nodes[1], path, "").await; // a long one is promoted when all of it is there
        }
        assert!(again.says("hit") && again.says("detail=MEMORY"), "promoted: {}", again.head);
        assert_eq!(again.body, body(path, ""));
        assert_eq!(origin.count(path), 1, "{path}");
    }
    assert!(lookups(&fleet.nodes[1], "hit") >= 4.0);
}

#[tokio::test]
async fn everything_there_expires_and_nothing_is_left_without_a_head() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(1, &origin, &redis, ""));
    get(&fleet.nodes[0], "/a/700000", "").await;
    until_written(&fleet.nodes[0], 1.0).await;
    let mut keys: Vec<_> = redis.ask(&["KEYS", "tiercel:c:*"]).list().iter().map(Reply::text).collect();
    // What came of the fetch is known for two seconds.
    keys.retain(|key| !key.contains("}:l:") || redis.ask(&["PTTL", key]).integer() == -1);
    assert_eq!(keys.len(), 4, "primary record, head and two segments: {keys:?}");
    let lives = |key: &str| redis.ask(&["PTTL", key]).integer();
    assert!(keys.iter().all(|key| lives(key) > 0), "{keys:?}");
    let (status, usage) = fleet.nodes[0].admin("GET", "/v1/redis", "").expect("it answers");
    let counted = |kind: &str| usage[kind]["keys"].as_u64();
    assert_eq!((status, counted("primary"), counted("heads"), counted("segments")), (200, Some(1), Some(1), Some(2)), "{usage}");
    assert!(usage["segments"]["bytes"].as_u64() > Some(400_000), "{usage}");
    assert!(usage["warnings"][0].as_str().is_some_and(|warning| warning.starts_with("maxmemory")), "{usage}");
    let head = lives(&heads(&redis)[0]);
    let segments: Vec<_> = keys.iter().filter(|key| key.contains("}:s:")).collect();
    assert!(segments.iter().all(|key| lives(key) > head), "segments outlive the head");
}

#[tokio::test]
async fn variants_are_told_apart_also_by_a_node_that_knows_nothing_of_them() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    for (number, language) in ["de", "en"].into_iter().enumerate() {
        get(&fleet.nodes[0], "/vary", language).await;
        until_written(&fleet.nodes[0], number as f64 + 1.0).await;
    }
    for language in ["de", "en"] {
        let found = get(&fleet.nodes[1], "/vary", language).await;
        assert!(is_from_redis(&found), "{}", found.head);
        assert_eq!(found.body, body("/vary", language));
    }
    let other = get(&fleet.nodes[1], "/vary", "fr").await;
    assert!(!other.says("hit"), "{}", other.head);
    assert_eq!(other.body, body("/vary", "fr"));
    assert_eq!(origin.total(), 3);
}

#[tokio::test]
async fn many_at_once_make_one_look_up_and_no_fetch() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    for path in ["/small", "/a/2000000"] {
        get(&fleet.nodes[0], path, "").await;
    }
    until_written(&fleet.nodes[0], 2.0).await;
    for path in ["/small", "/a/2000000"] {
        let all: Vec<_> = (0..40).map(|_| (fleet.nodes[1].http, path)).collect();
        let asked = all.into_iter().map(|(address, path)| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await
            })
        });
        for answer in asked.collect::<Vec<_>>() {
            let answer = answer.await.unwrap();
            assert!(answer.whole && answer.body == body(path, "") && answer.says("hit"), "{}", answer.head);
        }
        assert_eq!(origin.count(path), 1);
    }
}

#[tokio::test]
async fn what_was_purged_is_not_promoted() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(1, &origin, &redis, ""));
    let node = &fleet.nodes[0];
    get(node, "/small", "").await;
    until_written(node, 1.0).await;
    assert_eq!(heads(&redis).len(), 1);
    let (status, receipt) =
        node.admin("POST", "/v1/purge", r#"{"urls": ["http://a.example/small"], "wait": "fleet"}"#).expect("it answers");
    assert_eq!(status, 200, "{receipt}");
    let after = get(node, "/small", "").await;
    assert!(!after.says("hit"), "{}", after.head);
    assert_eq!(origin.count("/small"), 2);
    assert!(lookups(node, "unusable") >= 1.0, "it was there, and was refused");
    until_written(node, 2.0).await;
}

#[tokio::test]
async fn who_wrote_on_one_node_reads_its_write_on_another() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(3, &origin, &redis, ""));
    get(&fleet.nodes[0], "/small", "").await;
    until_written(&fleet.nodes[0], 1.0).await;
    let mut client = Client::connect(fleet.nodes[1].http).await;
    let posted = client.ask("POST /small HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!(posted.status, 200);
    let raised = || fleet.nodes[1].metric("tiercel_tier_writes_total", &["outcome=\"floor\""]) >= Some(1.0);
    until("the floor is raised", &fleet.nodes[1], raised).await;
    let read = get(&fleet.nodes[2], "/small", "").await;
    assert!(!read.says("hit"), "{}", read.head);
    assert_eq!(origin.count("/small"), 3);
}

#[tokio::test]
async fn a_flood_of_writes_keeps_no_response_out() {
    const WRITES: usize = 400;
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, "queue_entries = 64\n"));
    let node = &fleet.nodes[0];
    node.link.as_ref().expect("a link").make(Trouble::Slow(Duration::from_millis(50)));
    let mut client = Client::connect(node.http).await;
    for number in 0..WRITES {
        client.send(format!("POST /write/{number} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(client.answer(false).await.expect("an answer").status, 200);
    }
    get(node, "/small", "").await;
    until_written(node, 1.0).await;
    let outcome = |name: &str| node.metric("tiercel_tier_writes_total", &[&format!("outcome=\"{name}\"")]);
    // Each write is of a URL, and of what answers many queries of it.
    until("every floor is raised", node, || outcome("floor") == Some(2.0 * WRITES as f64)).await;
    assert_eq!((outcome("full"), outcome("floor_dropped"), outcome("failed")), (Some(0.0), Some(0.0), Some(0.0)));
    assert_eq!(redis.ask(&["KEYS", "*}:f"]).list().len(), 2 * WRITES);
    assert!(is_from_redis(&get(&fleet.nodes[1], "/small", "").await));
}

#[tokio::test]
async fn what_the_origin_confirms_is_not_written_again_but_kept_longer() {
    let redis = Redis::start();
    let origin = Origin::start(|request| {
        let is_there = request.field("if-none-match") == Some("\"1\"");
        let script = if is_there { Script::status(304, "") } else { Script::ok(body(&request.path, "")) };
        script.header("cache-control", "max-age=600").header("etag", "\"1\"")
    });
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    let (node, path) = (&fleet.nodes[0], "/a/700000");
    get(node, path, "").await;
    until_written(node, 1.0).await;
    let before = segments(&redis);
    for key in before.iter().chain(&heads(&redis)) {
        redis.ask(&["PEXPIRE", key, "100000"]);
    }
    let purge = format!(r#"{{"urls": ["http://a.example{path}"], "mode": "soft", "wait": "fleet"}}"#);
    assert_eq!(node.admin("POST", "/v1/purge", &purge).expect("it answers").0, 200);
    let confirmed = get(node, path, "").await;
    assert!(confirmed.says("fwd=stale") && confirmed.body == body(path, ""), "{}", confirmed.head);
    until_written(node, 2.0).await;
    let (mut after, mut expected) = (segments(&redis), before);
    after.sort();
    expected.sort();
    assert_eq!(after, expected, "the same segments");
    assert!(after.iter().chain(&heads(&redis)).all(|key| redis.ask(&["PTTL", key]).integer() > 100_000), "kept longer");
    let found = get(&fleet.nodes[1], path, "").await;
    assert!(is_from_redis(&found) && found.whole && found.body == body(path, ""), "{}", found.head);
}

fn segments(redis: &Redis) -> Vec<String> {
    redis.ask(&["KEYS", "*}:s:*"]).list().iter().map(Reply::text).collect()
}

#[tokio::test]
async fn the_body_of_a_response_that_was_replaced_goes() {
    const DELIVERY_MS: i64 = 600_000;
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(1, &origin, &redis, ""));
    let (node, path) = (&fleet.nodes[0], "/a/700000");
    get(node, path, "").await;
    until_written(node, 1.0).await;
    let first = segments(&redis);
    let lives = |key: &String| redis.ask(&["PTTL", key]).integer();
    assert!(first.len() == 2 && first.iter().all(|key| lives(key) > DELIVERY_MS), "{first:?}");
    let purge = format!(r#"{{"urls": ["http://a.example{path}"], "wait": "fleet"}}"#);
    assert_eq!(node.admin("POST", "/v1/purge", &purge).expect("it answers").0, 200);
    assert_eq!(get(node, path, "").await.body, body(path, ""));
    until_written(node, 2.0).await;
    let all = segments(&redis);
    assert_eq!(all.len(), 4, "{all:?}");
    for key in &all {
        assert_eq!(lives(key) <= DELIVERY_MS, first.contains(key), "{key} of {all:?}: {} ms", lives(key));
    }
}

#[tokio::test]
async fn of_a_response_that_redis_refuses_nothing_is_left() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(1, &origin, &redis, ""));
    let used: u64 = redis.info("memory", "used_memory").and_then(|used| used.parse().ok()).expect("a number");
    redis.set("maxmemory", &(used + (2 << 20)).to_string());
    let node = &fleet.nodes[0];
    let path = "/a/8000000";
    assert_eq!(get(node, path, "").await.body, body(path, ""));
    let failed = || node.metric("tiercel_tier_writes_total", &["outcome=\"failed\""]) >= Some(1.0);
    until("the write fails", node, failed).await;
    let refused: u64 =
        redis.info("errorstats", "errorstat_OOM").and_then(|text| text.strip_prefix("count=")?.parse().ok()).expect("a number");
    assert!(refused >= 1, "it is full");
    assert_eq!(segments(&redis), Vec::<String>::new());
}

#[tokio::test]
async fn of_a_response_that_is_older_than_what_is_there_nothing_is_left() {
    let (gate, redis) = (Gate::new(), Redis::start());
    let (held, asked) = (gate.clone(), AtomicUsize::new(0));
    let origin = Origin::start(move |request| {
        let script = Script::ok(body(&request.path, "")).header("cache-control", "max-age=600");
        if asked.fetch_add(1, Ordering::Relaxed) == 0 { script.after(&held) } else { script }
    });
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    let path = "/a/700000";
    let mut first = Client::connect(fleet.nodes[0].http).await;
    first.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
    origin.until("the first node asks", |origin| origin.count(path) == 1).await;
    assert_eq!(get(&fleet.nodes[1], path, "").await.body, body(path, ""));
    until_written(&fleet.nodes[1], 1.0).await;
    let mut there = segments(&redis);
    gate.open();
    assert!(first.answer(false).await.expect("an answer").whole);
    let older = || fleet.nodes[0].metric("tiercel_tier_writes_total", &["outcome=\"older\""]) >= Some(1.0);
    until("the older one is refused", &fleet.nodes[0], older).await;
    let mut after = segments(&redis);
    there.sort();
    after.sort();
    assert_eq!(after, there);
}

#[tokio::test]
async fn a_body_with_a_lost_or_wrong_segment_is_never_whole() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(3, &origin, &redis, ""));
    let path = "/a/900000";
    for (spoilt, spoil) in [("lost", 0), ("wrong", 1)] {
        get(&fleet.nodes[0], path, "").await;
        until_written(&fleet.nodes[0], f64::from(spoil) + 1.0).await;
        let mut segments = segments(&redis);
        segments.sort();
        let last = segments.last().expect("it has segments");
        if spoil == 0 {
            redis.ask(&["DEL", last]);
        } else {
            redis.ask(&["SETRANGE", last, "5000", "spoilt"]);
        }
        let node = &fleet.nodes[1 + spoil as usize];
        let mut client = Client::connect(node.http).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
        let answer = client.answer(false).await.expect("a head");
        assert!(!answer.whole, "{spoilt}: {} of 900000 bytes, and it ended well", answer.body.len());
        assert!(body(path, "").starts_with(&answer.body), "{spoilt}: no byte of it is wrong");
        assert_eq!(node.metric("tiercel_tier_broken_bodies_total", &[]), Some(1.0));
        until("the entry is gone", node, || heads(&redis).is_empty()).await;
        let again = get(node, path, "").await;
        assert!(again.whole && again.is_miss() && again.body == body(path, ""), "{spoilt}: {}", again.head);
        // For the next round the first node forgets what it has, and so does Redis.
        until_written(node, 1.0).await;
        for key in redis.ask(&["KEYS", "tiercel:c:*"]).list().iter().map(Reply::text) {
            redis.ask(&["DEL", &key]);
        }
        fleet.nodes[0].admin("POST", "/v1/purge", r#"{"everything": true, "wait": "fleet"}"#);
    }
}

#[tokio::test]
async fn records_that_are_damaged_or_sealed_otherwise_are_misses() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    let sealed = Fleet::start(&plan(2, &origin, &redis, "seal = 'a-secret-of-the-fleet'\n"));
    get(&fleet.nodes[0], "/small", "").await;
    until_written(&fleet.nodes[0], 1.0).await;
    let head = heads(&redis).pop().unwrap();
    let foreign = get(&sealed.nodes[0], "/small", "").await;
    assert!(foreign.is_miss() && foreign.body == body("/small", ""), "{}", foreign.head);
    until_written(&sealed.nodes[0], 1.0).await;
    assert!(is_from_redis(&get(&sealed.nodes[1], "/small", "").await), "who has the secret reads it");
    redis.ask(&["SETRANGE", &head, "100", "?"]);
    let damaged = get(&fleet.nodes[1], "/small", "").await;
    assert!(damaged.is_miss() && damaged.body == body("/small", ""), "{}", damaged.head);
    assert_eq!(fleet.nodes[1].metric("tiercel_tier_unreadable_total", &["reason=\"damaged\""]), Some(1.0));
    for nonsense in ["", "TCL", "something else altogether"] {
        redis.ask(&["SET", &head, nonsense]);
        fleet.nodes[1].admin("POST", "/v1/purge", r#"{"everything": true, "wait": "fleet"}"#);
        assert_eq!(get(&fleet.nodes[1], "/small", "").await.body, body("/small", ""));
    }
}

#[tokio::test]
async fn what_routes_keep_back_is_not_shared() {
    let (origin, redis) = (origin(), Redis::start());
    let more = "max_object_size = '1KiB'\ncontent_types = ['text/*']\n\
        [[sites.default.routes]]\npath = '/a'\n[[sites.default.routes]]\npath = '/own'\ncache.redis.enabled = false\n\
        [[sites.default.routes]]\npath = '/image'\ncache.redis.content_types = ['image/*']\n";
    let fleet = Fleet::start(&plan(1, &origin, &redis, more));
    for path in ["/own", "/image", "/a/2000", "/a/10"] {
        let first = get(&fleet.nodes[0], path, "").await;
        assert!(first.is_miss(), "{path}: {}", first.head);
    }
    until_written(&fleet.nodes[0], 1.0).await;
    assert_eq!(heads(&redis).len(), 1, "only /a/10");
}

#[tokio::test]
async fn no_trouble_with_redis_is_trouble_for_a_request() {
    let origin = origin();
    let troubles = [Trouble::Cut, Trouble::Held, Trouble::Slow(Duration::from_secs(2)), Trouble::Garbled];
    for (number, trouble) in troubles.into_iter().enumerate() {
        let redis = Redis::start();
        let mut plan = plan(1, &origin, &redis, "");
        plan.config = plan.config.replace("'2s'", "'25ms'");
        let fleet = Fleet::start(&plan);
        let (node, link) = (&fleet.nodes[0], fleet.nodes[0].link.as_ref().expect("the plan names a Redis"));
        get(node, &format!("/before/{number}"), "").await;
        let counts = || ["skipped", "timeout", "failed"].map(|result| lookups(node, result));
        let (before, mut said) = (counts(), [0.0; 3]);
        link.make(trouble);
        for request in 0..30 {
            let path = format!("/t/{number}/{request}");
            let answer = get(node, &path, "").await;
            assert!(answer.status == 200 && answer.whole && answer.body == body(&path, ""), "{trouble:?}: {}", answer.head);
            // Without Redis for some time the node is cut off, too, and says no more than that.
            let details = ["REDIS-SKIPPED", "REDIS-TIMEOUT", "REDIS-FAILED", "CUT-OFF"];
            let detail = details.iter().position(|detail| answer.says(&format!("detail={detail}")));
            said[detail.unwrap_or_else(|| panic!("{trouble:?}: {}", answer.head)) % said.len()] += 1.0;
        }
        assert_eq!(counts(), [0, 1, 2].map(|result| before[result] + said[result]), "{trouble:?}");
        assert_eq!(node.metric("tiercel_tier_breaker_open", &[]), Some(1.0), "{trouble:?}: it is left alone");
        assert!(lookups(node, "skipped") >= 1.0, "{trouble:?}");
        link.mend();
        let deadline = Instant::now() + PATIENCE;
        for request in 0.. {
            let answer = get(node, &format!("/after/{number}/{request}"), "").await;
            if node.metric("tiercel_tier_breaker_open", &[]) == Some(0.0) && !answer.all("cache-status").contains("detail=") {
                break;
            }
            assert!(Instant::now() < deadline, "{trouble:?}: never used again:\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_fails_no_request() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    get(&fleet.nodes[0], "/small", "").await;
    until_written(&fleet.nodes[0], 1.0).await;
    for (number, (directive, refusing, well)) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")].into_iter().enumerate() {
        redis.set(directive, refusing);
        for request in 0..10 {
            let path = format!("/refused/{number}/{request}");
            let answer = get(&fleet.nodes[0], &path, "").await;
            assert!(answer.status == 200 && answer.whole && answer.body == body(&path, ""), "{}", answer.head);
        }
        let failed = || fleet.nodes[0].metric("tiercel_tier_writes_total", &["outcome=\"failed\""]) >= Some(number as f64 + 1.0);
        until("a write fails", &fleet.nodes[0], failed).await;
        redis.set(directive, well);
    }
}

#[tokio::test]
async fn a_redis_that_comes_late_or_again_is_used_from_then_on() {
    let (origin, mut redis) = (origin(), Redis::start());
    redis.kill();
    let config = CONFIG.replace("'2s'", "'25ms'");
    let plan = Plan { nodes: 2, config, origin: origin.url(), redis: Some(redis.address()), fault: None };
    let fleet = Fleet::start(&plan);
    for request in 0..10 {
        assert_eq!(get(&fleet.nodes[0], &format!("/early/{request}"), "").await.status, 200);
    }
    redis.start_again(Restart::Empty);
    let deadline = Instant::now() + PATIENCE;
    for request in 0.. {
        let path = format!("/late/{request}");
        get(&fleet.nodes[0], &path, "").await;
        if is_from_redis(&get(&fleet.nodes[1], &path, "").await) {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is shared:\n{}", fleet.nodes[0].log());
    }
}

#[tokio::test]
async fn a_cluster_of_three_masters_is_one_tier() {
    let (origin, cluster) = (origin(), Servers::cluster());
    let config = CONFIG.replace("url = 'redis://@REDIS@'", &cluster.config());
    let fleet = Fleet::start(&Plan { nodes: 2, config, origin: origin.url(), redis: None, fault: None });
    for number in 0..12 {
        let path = format!("/{number}/{}", 100_000 * number);
        get(&fleet.nodes[0], &path, "").await;
        until_written(&fleet.nodes[0], f64::from(number) + 1.0).await;
        let found = get(&fleet.nodes[1], &path, "").await;
        assert!(is_from_redis(&found) && found.whole && found.body == body(&path, ""), "{path}: {}", found.head);
    }
    assert_eq!(origin.total(), 12);
    let names = |pattern: &str| cluster.all.iter().map(|master| master.ask(&["KEYS", pattern]).list().len() as u64).sum::<u64>();
    assert!(cluster.all.iter().all(|master| master.ask(&["DBSIZE"]).integer() > 0), "each has some");
    let (status, usage) = fleet.nodes[0].admin("GET", "/v1/redis", "").expect("it answers");
    assert_eq!((status, usage["servers"].as_u64(), usage["partial"].as_bool()), (200, Some(3), Some(false)), "{usage}");
    for (kind, pattern) in [("primary", "*}:p:*"), ("heads", "*}:h:*"), ("segments", "*}:s:*")] {
        assert_eq!(usage[kind]["keys"].as_u64(), Some(names(pattern)), "{kind}: {usage}");
    }
    assert!(usage["used_memory_bytes"].as_u64() > Some(1_000_000), "{usage}");
}

#[tokio::test]
async fn the_master_that_sentinel_names_is_followed_through_a_failover() {
    let (origin, mut servers) = (origin(), Servers::watched());
    let config = CONFIG.replace("url = 'redis://@REDIS@'", &servers.config());
    let fleet = Fleet::start(&Plan { nodes: 2, config, origin: origin.url(), redis: None, fault: None });
    get(&fleet.nodes[0], "/small", "").await;
    until_written(&fleet.nodes[0], 1.0).await;
    servers.all[1].until("the replica has it", |replica| !heads(replica).is_empty());
    servers.all[0].kill();
    servers.until_master(1);
    let deadline = Instant::now() + PATIENCE;
    for request in 0.. {
        let path = format!("/after/{request}");
        assert_eq!(get(&fleet.nodes[0], &path, "").await.status, 200);
        if is_from_redis(&get(&fleet.nodes[1], &path, "").await) {
            break;
        }
        assert!(Instant::now() < deadline, "the new master is not found:\n{}", fleet.nodes[0].log());
    }
}

#[tokio::test]
async fn what_redis_holds_stands_in_for_everybody_while_the_origin_fails() {
    let (gate, redis) = (Gate::new(), Redis::start());
    let (held, fails) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let failing = Arc::clone(&fails);
    let origin = Origin::start(move |request| {
        if failing.load(Ordering::Relaxed) {
            return Script::status(503, "").after(&held);
        }
        Script::ok(body(&request.path, "")).header("cache-control", "max-age=0, stale-if-error=3600").header("etag", "\"1\"")
    });
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    let path = "/small";
    assert_eq!(get(&fleet.nodes[0], path, "").await.status, 200);
    until_written(&fleet.nodes[0], 1.0).await;
    fails.store(true, Ordering::Relaxed);
    let empty = &fleet.nodes[1];
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(empty.http).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
        clients.push(client);
    }
    until("one leads and the others wait", empty, || empty.metric("tiercel_coalesce_waiting", &[]) == Some(4.0)).await;
    gate.open();
    for mut client in clients {
        let answer = client.answer(false).await.expect("an answer");
        assert!(answer.status == 200 && answer.body == body(path, ""), "{}", answer.head);
    }
}

#[tokio::test]
async fn what_its_origin_withdrew_is_not_found_in_redis_either() {
    let (redis, withdrawn) = (Redis::start(), Arc::new(AtomicBool::new(false)));
    let is_withdrawn = Arc::clone(&withdrawn);
    let origin = Origin::start(move |request| match is_withdrawn.load(Ordering::Relaxed) {
        true => Script::ok("other").header("cache-control", "no-store"),
        false => Script::ok(body(&request.path, "")).header("cache-control", "max-age=600").header("etag", "\"1\""),
    });
    let mut plan = plan(2, &origin, &redis, "");
    plan.config = plan.config.replace("[cache]\n", "[cache]\nclient_directives = 'honour'\n");
    let fleet = Fleet::start(&plan);
    let node = &fleet.nodes[0];
    get(node, "/small", "").await;
    until_written(node, 1.0).await;
    withdrawn.store(true, Ordering::Relaxed);
    let mut client = Client::connect(node.http).await;
    let asked = client.ask("GET /small HTTP/1.1\r\nHost: a.example\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n").await;
    assert_eq!(asked.text(), "other", "{}", asked.head);
    until("the entry is gone", node, || heads(&redis).is_empty()).await;
    assert_eq!(get(&fleet.nodes[1], "/small", "").await.text(), "other");
}

/// Look-ups by commands of their own alone, so that a test may forbid one.
const WITHOUT_LEASES: &str = "[lease]\nenabled = false\n";

fn commands(node: &Node, purpose: &str, outcome: &str) -> f64 {
    let labels = [format!("use=\"{purpose}\""), format!("outcome=\"{outcome}\"")];
    node.metric("tiercel_redis_commands_total", &labels.each_ref().map(String::as_str)).expect("it answers")
}

#[tokio::test]
async fn what_redis_refuses_to_look_ups_it_refuses_to_probes() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(1, &origin, &redis, WITHOUT_LEASES));
    let node = &fleet.nodes[0];
    redis.ask(&["ACL", "SETUSER", "default", "-mget"]);
    let is_open = || node.metric("tiercel_tier_breaker_open", &[]) == Some(1.0);
    let deadline = Instant::now() + PATIENCE;
    let mut number = 0;
    while commands(node, "lookup", "refused") < 8.0 {
        number += 1;
        assert_eq!(get(node, &format!("/{number}"), "").await.status, 200);
        assert!(Instant::now() < deadline, "it is not probed:\n{}", node.log());
    }
    assert_eq!(lookups(node, "failed"), 5.0, "five open it, and only probes are refused from then on");
    assert!(is_open());
    redis.ask(&["ACL", "SETUSER", "default", "+mget"]);
    while is_open() {
        number += 1;
        get(node, &format!("/{number}"), "").await;
        assert!(Instant::now() < deadline, "never used again:\n{}", node.log());
    }
}

#[tokio::test]
async fn segments_that_redis_does_not_give_are_not_asked_for_all_the_time() {
    const BODIES: usize = 15;
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, WITHOUT_LEASES));
    let path = |number: usize| format!("/{number}/300000");
    for number in 0..BODIES {
        get(&fleet.nodes[0], &path(number), "").await;
    }
    until_written(&fleet.nodes[0], BODIES as f64).await;
    redis.ask(&["ACL", "SETUSER", "default", "-get"]);
    let node = &fleet.nodes[1];
    for number in 0..BODIES {
        let answer = get(node, &path(number), "").await;
        assert!(answer.whole && answer.body == body(&path(number), ""), "{}", answer.head);
    }
    let refused = commands(node, "bodies", "refused");
    assert!((5.0..10.0).contains(&refused), "five, and a probe now and then: {refused} of {BODIES}");
}

#[tokio::test]
async fn a_full_redis_that_has_nothing_is_hardly_asked() {
    const REQUESTS: usize = 320;
    const THERE: usize = 20;
    let (origin, redis) = (origin(), Redis::start());
    let fleet = Fleet::start(&plan(2, &origin, &redis, ""));
    let (full, other) = (&fleet.nodes[0], &fleet.nodes[1]);
    for number in 0..THERE {
        get(other, &format!("/there/{number}"), "").await;
    }
    until_written(other, THERE as f64).await;
    redis.set("maxmemory", "1");
    let mut client = Client::connect(full.http).await;
    for number in 0..20 {
        client.ask(format!("GET /full/{number} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
    }
    let skipped = || full.metric("tiercel_tier_writes_total", &["outcome=\"skipped\""]) >= Some(1.0);
    until("it is known to take no writes", full, skipped).await;
    for number in 0..REQUESTS {
        let path = format!("/vain/{number}");
        let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        assert!(answer.status == 200 && answer.body == body(&path, ""), "{}", answer.head);
    }
    let spared = lookups(full, "spared");
    assert!(spared >= 50.0, "of {REQUESTS} requests {spared} were not looked for");
    assert_eq!(full.metric("tiercel_tier_breaker_open", &[]), Some(0.0), "it answers");
    // One look-up that finds something, and all are made again.
    let mut found = Vec::new();
    for number in 0..THERE {
        found.push(is_from_redis(&get(full, &format!("/there/{number}"), "").await));
    }
    let first = found.iter().position(|found| *found).expect("one in so many is made");
    assert!(found[first..].iter().all(|found| *found), "{found:?}");
}
