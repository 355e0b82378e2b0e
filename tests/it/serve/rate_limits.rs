//! Rate limits: who makes too many requests is told so before the cache is asked.

use super::*;

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
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let origin = Origin::start(|_| fresh("body"));
    let endpoints = format!("[upstreams.default]\nendpoints = [\"{}\"]\n", origin.url());
    let access = format!("[log.access]\nformat = \"json\"\ntarget = \"{}\"\n", log.display());
    let tiercel = Tiercel::with_config(&format!("[rate_limit]\nrate = \"1/h\"\n{endpoints}{access}"), folder.path());
    for _ in 0..2 {
        Client::connect(tiercel.http).await.ask(request("GET", "/a", "", "")).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let line = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.contains("429")) {
            break serde_json::from_str::<Value>(line).expect("JSON");
        }
        assert!(Instant::now() < deadline, "waited in vain for the line: {text}");
        tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
    };
    let facts = ["status", "route", "result", "tier", "detail"].map(|name| line[name].clone());
    assert_eq!(Value::from(facts.to_vec()), json!([429, "default", "error", "tiercel", "RATE-LIMIT"]), "{line}");
}
