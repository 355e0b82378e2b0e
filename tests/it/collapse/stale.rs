//! Revalidation and background refreshes are collapsed, too.

use super::*;
use serde_json::json;

const PATH: &str = "/news";
const FOLLOWERS: usize = 8;

fn version(number: usize, cache_control: &str) -> Script {
    Script::ok(format!("version {number}")).header("Cache-Control", cache_control).header("ETag", &format!("\"v{number}\""))
}

/// A stored response that a soft purge has made stale, and the gate before the second answer.
async fn stale(cache_control: &'static str, second: impl Fn() -> Script + Send + Sync + 'static) -> (Stage, Gate) {
    stale_with("", cache_control, second).await
}

async fn stale_with(config: &str, cache_control: &'static str, second: impl Fn() -> Script + Send + Sync + 'static) -> (Stage, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(config, move |number, _| match number {
        0 => version(0, cache_control),
        1 => second().after(&held),
        _ => version(number, cache_control),
    });
    assert_eq!(stage.get(PATH).await.text(), "version 0");
    assert_eq!(stage.get(PATH).await.text(), "version 0");
    assert_eq!(stage.origin.count(PATH), 1);
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    stage.purge(&json!({ "everything": true, "mode": "soft" })).await;
    (stage, gate)
}

async fn one_conditional_request(stage: &Stage, gate: &Gate, body: &str) {
    let mut clients = vec![stage.lead(PATH, &[], 2).await];
    clients.extend(stage.follow(PATH, &[], FOLLOWERS).await);
    assert_eq!(stage.origin.requests(PATH)[1].field("if-none-match"), Some("\"v0\""));
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, body), "{}", answer.head);
    }
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    let hit = stage.get(PATH).await;
    assert!(hit.text() == body && hit.field("cache-status").is_some_and(|status| status.contains("; hit")), "{}", hit.head);
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn many_requests_on_a_stale_response_are_one_conditional_request_and_a_304_serves_all() {
    let not_modified = || Script::raw("HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: \"v0\"\r\n\r\n");
    let (stage, gate) = stale("max-age=60", not_modified).await;
    one_conditional_request(&stage, &gate, "version 0").await;
}

#[tokio::test]
async fn many_requests_on_a_stale_response_are_one_conditional_request_and_a_200_replaces_it() {
    let (stage, gate) = stale("max-age=60", || version(1, "max-age=60")).await;
    one_conditional_request(&stage, &gate, "version 1").await;
}

#[tokio::test]
async fn a_failed_revalidation_is_one_request_and_serves_everybody_stale() {
    let (stage, gate) = stale("max-age=60, stale-if-error=600", || Script::status(503, "down")).await;
    let mut clients = vec![stage.lead(PATH, &[], 2).await];
    clients.extend(stage.follow(PATH, &[], FOLLOWERS).await);
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, "version 0"), "{}", answer.head);
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn more_than_may_wait_are_served_stale_where_that_is_allowed() {
    let (stage, gate) = stale_with("limits.waiting = 2", "max-age=60, stale-if-error=600", || version(1, "max-age=60")).await;
    let mut clients = vec![stage.lead(PATH, &[], 2).await];
    clients.extend(stage.follow(PATH, &[], 2).await);
    assert_eq!(stage.get(PATH).await.text(), "version 0");
    gate.open();
    for answer in answers(clients).await {
        assert_eq!(answer.text(), "version 1");
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn while_it_is_refreshed_in_the_background_everybody_gets_the_stale_one() {
    let (stage, gate) = stale("max-age=60, stale-while-revalidate=600", || version(1, "max-age=60")).await;
    for _ in 0..FOLLOWERS {
        assert_eq!(stage.get(PATH).await.text(), "version 0");
    }
    stage.origin.until("one refresh", |origin| origin.count(PATH) == 2).await;
    for _ in 0..FOLLOWERS {
        assert_eq!(stage.get(PATH).await.text(), "version 0");
    }
    assert_eq!(stage.origin.requests(PATH)[1].field("if-none-match"), Some("\"v0\""));
    gate.open();
    stage.until_metric("tiercel_cache_refresh_total{outcome=\"replaced\"}", 1).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1");
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn a_refresh_that_outgrows_what_may_be_stored_ends() {
    let endless = || {
        Script::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\n".to_vec()), Step::Endless(vec![b'x'; 10_000])])
    };
    let small = "cache.max_object_size = \"1MiB\"\nfill.lag = \"64KiB\"\nupstreams.default.idle_connections = 0";
    let (stage, gate) = stale_with(small, "max-age=60, stale-while-revalidate=600", endless).await;
    gate.open();
    assert_eq!(stage.get(PATH).await.text(), "version 0");
    stage.origin.until("the refresh", |origin| origin.count(PATH) == 2).await;
    stage.origin.until("the origin sees the connection close", |origin| origin.open_connections() == 0).await;
    stage.until_metric("tiercel_coalesce_in_flight", 0).await;
    assert_eq!(stage.get(PATH).await.text(), "version 0");
}

#[tokio::test]
async fn a_refresh_goes_on_though_nobody_is_there() {
    let (stage, gate) = stale("max-age=60, stale-while-revalidate=600", || version(1, "max-age=60")).await;
    let client = stage.send("GET", PATH, &[]).await;
    stage.origin.until("the refresh", |origin| origin.count(PATH) == 2).await;
    client.reset();
    stage.until_metric(CONNECTIONS, 0).await;
    gate.open();
    stage.until_metric("tiercel_cache_refresh_total{outcome=\"replaced\"}", 1).await;
    assert_eq!(stage.get(PATH).await.text(), "version 1");
}
