//! Rate limits: who makes too many requests is told so before the cache is asked.

use super::*;
use crate::support::redis::Redis;

/// Answers until the first 429, which is given too.
async fn until_refused(served: &Served, path: &str, lines: &str) -> (usize, Answer) {
    for number in 0..100 {
        let answer = served.get_with(path, lines).await;
        if answer.status == 429 {
            return (number, answer);
        }
        assert_eq!(answer.status, 200, "{}", answer.head);
    }
    panic!("nobody is refused");
}

async fn rejections(served: &Served, limit: &str) -> u64 {
    served.metric(&format!("tiercel_limit_rejections_total{{limit=\"{limit}\"}}")).await
}

#[tokio::test]
async fn a_request_too_many_is_refused_before_the_cache() {
    let served = serve_with("[rate_limit]\nrate = \"2/h\"\n", |_| fresh("body"));
    let (let_through, refused) = until_refused(&served, "/a", "").await;
    assert_eq!(let_through, 2);
    assert_eq!(refused.field("ratelimit-policy"), Some("\"default\";q=2;w=3600"));
    let seconds: u64 = refused.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1790..=1800).contains(&seconds), "{seconds}");
    assert_eq!(refused.field("ratelimit"), Some(&*format!("\"default\";r=0;t={seconds}")));
    assert_eq!(refused.field("proxy-status"), Some("tiercel; error=http_request_denied; details=\"rate-limit\""));
    assert_eq!((refused.field("cache-status"), refused.field("cache-control")), (None, Some("no-store")));
    assert_eq!(served.get("/b").await.status, 429, "the client's requests count together");
    assert_eq!(served.ask("POST", "/a", "", "text").await.status, 429);
    assert_eq!((served.origin.requests("/a").len(), served.origin.requests("/b").len()), (1, 0));
    assert_eq!(rejections(&served, "default").await, 3);
    served.until_metric("tiercel_limit_callers", 1).await;
}

/// Limits at each level, and routes that share one by name.
const LEVELS: &str = r#"
[rate_limit]
rate = "3/h"
by = "everybody"
[sites.default]
[[sites.default.routes]]
path = "/api/"
rate_limit = { rate = "100/h", burst = 1, by = "X-Api-Key" }
[[sites.default.routes]]
path = "/open/"
rate_limit = { rate = "off" }
[[sites.default.routes]]
path = "/first/"
rate_limit = { rate = "2/d", name = "both" }
[[sites.default.routes]]
path = "/second/"
rate_limit = { rate = "2/d", name = "both" }
"#;

#[tokio::test]
async fn limits_count_what_they_cover_by_what_they_say() {
    let served = serve_with(LEVELS, |_| fresh("body"));
    let status = async |path: &str, lines: &str| served.get_with(path, lines).await.status;
    assert_eq!([status("/api/a", "X-Api-Key: 1\r\n").await, status("/api/a", "X-Api-Key: 1\r\n").await], [200, 429]);
    assert_eq!(status("/api/a", "X-Api-Key: 2\r\n").await, 200, "another key");
    assert_eq!([status("/api/a", "").await, status("/api/a", "").await], [200, 429], "without a key it is the client");
    for _ in 0..10 {
        assert_eq!(status("/open/a", "").await, 200);
    }
    assert_eq!([status("/first/a", "").await, status("/second/a", "").await, status("/first/a", "").await], [200, 200, 429]);
    assert_eq!(until_refused(&served, "/other", "").await.0, 3);
    let counts = [rejections(&served, "default.api").await, rejections(&served, "both").await, rejections(&served, "default").await];
    assert_eq!(counts, [2, 1, 1]);
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_are_told_apart_and_nobody_else_can_pretend() {
    let config = "[rate_limit]\nrate = \"1/h\"\n[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
    let served = serve_with(config, |_| fresh("body"));
    let status = async |from: &str| served.get_with("/a", &format!("X-Forwarded-For: {from}\r\n")).await.status;
    assert_eq!([status("192.0.2.1").await, status("192.0.2.2").await, status("192.0.2.1").await], [200, 200, 429]);
    assert_eq!([status("2001:db8::1").await, status("2001:db8::2").await, status("2001:db8:1::1").await], [200, 429, 200]);
    let served = serve_with("[rate_limit]\nrate = \"1/h\"\n", |_| fresh("body"));
    let status = async |from: &str| served.get_with("/a", &format!("X-Forwarded-For: {from}\r\n")).await.status;
    assert_eq!([status("192.0.2.1").await, status("192.0.2.2").await], [200, 429]);
}

#[tokio::test]
async fn a_reload_keeps_what_was_counted_where_the_limit_stays() {
    let limit = "[rate_limit]\nrate = \"2/h\"\n";
    let served = serve_with(limit, |_| fresh("body"));
    until_refused(&served, "/a", "").await;
    served.reload(&format!("x_cache = true\n{limit}")).await;
    let answer = served.get("/a").await;
    assert_eq!(answer.status, 429, "{}", answer.head);
    served.reload("[rate_limit]\nrate = \"3/h\"\n").await;
    assert_eq!(until_refused(&served, "/a", "").await.0, 3, "another limit counts anew");
    served.reload("").await;
    assert_eq!(served.get("/a").await.status, 200);
}

#[tokio::test]
async fn what_is_refused_is_logged_with_its_reason() {
    let served = serve_logged("[rate_limit]\nrate = \"1/h\"\n", |_| fresh("body"));
    for _ in 0..2 {
        served.get("/a").await;
    }
    let lines = served.until_logged(2).await;
    let line = lines.iter().find(|line| line["status"] == 429).expect("a line of the refusal");
    let facts = ["status", "route", "result", "tier", "detail"].map(|name| line[name].clone());
    assert_eq!(Value::from(facts.to_vec()), json!([429, "default", "error", "tiercel", "RATE-LIMIT"]), "{line}");
}

/// Two nodes with one origin and one Redis, and a limit that they share.
struct Pair {
    nodes: [Served; 2],
    redis: Redis,
}

const UNCOUNTED: &str = "tiercel_limit_uncounted_total{limit=\"default\"}";

fn shared_config(name: &str, on_fault: &str, budget: &str, redis: &Redis) -> String {
    format!(
        "[journal]\nnode = \"{name}\"\n[rate_limit]\nrate = \"10/h\"\nby = \"X-Key\"\nshared = true\non_fault = \"{on_fault}\"\n\
         [limits]\nrate_limit_budget = \"{budget}\"\n[cache.redis]\nurl = \"{}\"\n",
        redis.url()
    )
}

impl Pair {
    /// `budget`: what Redis may take. Both nodes have a connection to it.
    async fn start(on_fault: &str, budget: &str) -> Self {
        let redis = Redis::start();
        let node = |name| serve_with(&shared_config(name, on_fault, budget, &redis), |_| fresh("body"));
        let pair = Self { nodes: [node("a"), node("b")], redis };
        for node in &pair.nodes {
            node.get_with("/warm", "X-Key: warm\r\n").await;
            node.until_metric("tiercel_redis_connections{use=\"limit\"}", 1).await;
        }
        pair
    }

    /// Asks both in turn, and counts what is let through.
    async fn let_through(&self, requests: usize, key: &str) -> usize {
        let mut count = 0;
        for number in 0..requests {
            let answer = self.nodes[number % 2].get_with("/a", &format!("X-Key: {key}\r\n")).await;
            assert!(matches!(answer.status, 200 | 429), "{}", answer.head);
            count += usize::from(answer.status == 200);
        }
        count
    }
}

#[tokio::test]
async fn two_nodes_let_through_what_one_may() {
    let pair = Pair::start("deny", "10s").await;
    assert_eq!(pair.let_through(24, "a").await, 10);
    assert_eq!(pair.let_through(24, "b").await, 10, "another caller");
    let keys = pair.redis.ask(&["KEYS", "*:limit:*"]);
    assert_eq!(keys.list().len(), 3, "{keys:?}");
    for key in keys.list() {
        let left = pair.redis.ask(&["PTTL", &key.text()]).integer();
        assert!(left > 0 && left <= 3_600_001, "it goes when its bucket is full: {left}");
    }
    let rejected = pair.nodes[0].get_with("/a", "X-Key: a\r\n").await;
    let seconds: u64 = rejected.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((300..=360).contains(&seconds), "one is free in six minutes: {seconds}");
    assert_eq!(rejected.field("ratelimit-policy"), Some("\"default\";q=10;w=3600"));
    assert_eq!(rejected.field("ratelimit"), Some(&*format!("\"default\";r=0;t={seconds}")));
    let all_at_once = pair.nodes.iter().flat_map(|node| {
        let address = node.tiercel.http;
        (0..20).map(move |_| {
            tokio::spawn(async move { Client::connect(address).await.ask(request("GET", "/a", "X-Key: c\r\n", "")).await.status })
        })
    });
    let mut passed = 0;
    for status in all_at_once.collect::<Vec<_>>() {
        passed += usize::from(status.await.expect("a task") == 200);
    }
    assert_eq!(passed, 10, "also at the same time");
    for node in &pair.nodes {
        assert_eq!(node.metric(UNCOUNTED).await, 0);
    }
}

#[tokio::test]
async fn a_reload_changes_how_long_redis_may_take() {
    let pair = Pair::start("deny", "5m").await;
    pair.nodes[0].reload(&shared_config("a", "deny", "100ms", &pair.redis)).await;
    assert_eq!(pair.nodes[0].get_with("/a", "X-Key: a\r\n").await.status, 200);
    pair.redis.pause();
    assert_eq!(pair.nodes[0].get_with("/a", "X-Key: a\r\n").await.status, 429, "nobody waits for five minutes");
    pair.redis.resume();
}

#[tokio::test]
async fn without_redis_each_node_counts_for_itself_or_nobody_is_let_through() {
    let pair = Pair::start("allow", "100ms").await;
    pair.redis.pause();
    assert_eq!(pair.let_through(30, "a").await, 20, "ten at each node");
    assert!(pair.nodes[0].metric(UNCOUNTED).await >= 10);
    pair.redis.resume();
    let pair = Pair::start("deny", "100ms").await;
    pair.redis.pause();
    assert_eq!(pair.let_through(30, "a").await, 0);
    for node in &pair.nodes {
        // Five faults in a row, and then a probe now and then.
        let waited = node.metric("tiercel_redis_commands_total{outcome=\"timeout\",use=\"limit\"}").await;
        assert!((5..=8).contains(&waited), "{waited} of 15 requests waited for Redis");
    }
    pair.redis.resume();
    let deadline = Instant::now() + PATIENCE;
    while pair.nodes[0].get_with("/a", "X-Key: b\r\n").await.status != 200 {
        assert!(Instant::now() < deadline, "Redis is back, and nobody asks it");
        tokio::time::sleep(Duration::from_millis(20)).await; // nobody announces it
    }
}

#[tokio::test]
async fn a_post_passes_a_shared_limit_with_its_body() {
    let pair = Pair::start("deny", "10s").await;
    let answer = pair.nodes[0].ask("POST", "/post", "X-Key: p\r\n", "the whole body").await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(pair.nodes[0].last("/post").body, b"the whole body");
}

#[tokio::test]
async fn a_shared_limit_without_redis_is_refused_by_the_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tiercel.toml");
    std::fs::write(&file, "[upstreams.app]\nendpoints = [\"http://127.0.0.1:1\"]\n[rate_limit]\nrate = \"1/s\"\nshared = true\n")
        .expect("a writable folder");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tiercel"))
        .args(["check", "--config", file.to_str().expect("UTF-8")])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("a shared limit without Redis") && said.contains("[cache.redis]"), "{said}");
}
