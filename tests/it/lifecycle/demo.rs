//! `tiercel demo`: what its welcome promises.

use super::process::{INTERRUPT, Process, command};
use super::{get, get_with, post, until_settled};
use crate::support::client::Client;
use std::net::SocketAddr;

fn demo() -> (Process, SocketAddr) {
    let process = Process::spawn(&mut command(&["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]));
    let proxy = process.address("proxy");
    (process, proxy)
}

async fn cache_status(proxy: SocketAddr, path: &str) -> String {
    get(proxy, path).await.field("cache-status").unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_demo_shows_what_it_promises_and_ends_on_ctrl_c() {
    let (mut process, proxy) = demo();
    for name in ["proxy", "admin", "origin"] {
        assert_ne!(process.address(name).port(), 0, "{name}");
    }
    assert!(get(process.address("origin"), "/").await.text().contains("Falcon"));
    assert_eq!(get(process.admin(), "/readyz").await.status, 200);

    assert!(cache_status(proxy, "/articles/1").await.contains("fwd=uri-miss"));
    until_settled(process.admin()).await;
    assert!(cache_status(proxy, "/articles/1").await.contains("hit"));
    let mut client = Client::connect(proxy).await;
    assert_eq!(client.ask(format!("PURGE /articles/1 HTTP/1.1\r\nHost: {proxy}\r\n\r\n")).await.status, 200);
    assert!(cache_status(proxy, "/articles/1").await.contains("fwd="));
    assert_eq!(post(process.admin(), "/v1/purge", r#"{"tags":["author-1"]}"#).await.status, 200);
    assert!(cache_status(proxy, "/articles/1").await.contains("fwd="));

    let slow: Vec<_> = (0..50).map(|_| tokio::spawn(async move { get(proxy, "/slow").await })).collect();
    for answer in slow {
        assert_eq!(answer.await.unwrap().text(), "that took a second\n");
    }
    let requests: serde_json::Value = serde_json::from_slice(&get(proxy, "/origin/requests").await.body).unwrap();
    assert_eq!((&requests["/slow"], &requests["/articles/1"]), (&1.into(), &3.into()));

    let range = get_with(proxy, "/large.bin", "Range: bytes=0-99\r\n").await;
    assert_eq!((range.status, range.body.len(), range.field("content-range")), (206, 100, Some("bytes 0-99/33554432")));

    // The stream never ends: neither may the demo wait for it.
    let mut events = Client::connect(proxy).await;
    events.send(format!("GET /events HTTP/1.1\r\nHost: {proxy}\r\n\r\n")).await;
    assert!(events.until("data: 1").await.is_some_and(|bytes| bytes.contains("text/event-stream") && bytes.contains("data: 0")));
    process.signal(INTERRUPT);
    assert_eq!(process.end(), Some(0));
}

#[tokio::test]
async fn the_demo_serves_stale_while_its_origin_is_down() {
    let (_process, proxy) = demo();
    assert_eq!(get(proxy, "/articles/2").await.status, 200);
    assert_eq!(get(proxy, "/flaky").await.status, 200);
    assert_eq!(post(proxy, "/origin/down", "").await.status, 200);
    // A soft purge makes stale what would be fresh for minutes.
    let address = _process.admin();
    assert_eq!(post(address, "/v1/purge", r#"{"everything":true,"mode":"soft"}"#).await.status, 200);
    for path in ["/articles/2", "/flaky"] {
        let stale = get(proxy, path).await;
        assert_eq!(stale.status, 200, "{path}");
        assert!(stale.field("cache-status").is_some_and(|status| status.contains("fwd=stale")), "{}", stale.head);
    }
    assert_eq!(get(proxy, "/articles/3").await.status, 503, "nothing is stored of this one");
    assert_eq!(post(proxy, "/origin/up", "").await.status, 200);
    assert_eq!(get(proxy, "/articles/3").await.status, 200);
}
