//! Clients that take their answers slowly, or not at all.

use super::{Client, Stream, cached, dial_with, request, start};
use crate::support::client;
use crate::support::origin::{Origin, PATIENCE, Script};
use crate::support::process::Process;
use crate::tls::{metric, metric_reaches};
use bytes::Buf;
use http::{Method, StatusCode};
use quinn::{TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

const WRITE_TIMEOUT: &str = "tiercel_bound_reached_total{bound=\"write_timeout\"}";
const READER_DETACHED: &str = "tiercel_bound_reached_total{bound=\"reader_detached\"}";
const PINNED: &str = "tiercel_pinned_bytes";

async fn purge_everything(process: &Process) {
    let mut admin = client::Client::connect(process.admin()).await;
    let body = "{\"everything\": true}";
    let purge = format!(
        "POST /v1/purge HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        process.admin(),
        body.len()
    );
    assert_eq!(admin.ask(purge).await.status, 200);
}

/// Whether the answer whose head comes now is from the cache.
async fn is_hit(stream: &mut Stream) -> bool {
    stream.recv_response().await.expect("a head").headers()["cache-status"].to_str().unwrap().contains("; hit")
}

/// Reads the rest of an answer; whether it came to its end.
async fn answer_is_whole(mut stream: Stream) -> bool {
    loop {
        match tokio::time::timeout(PATIENCE, stream.recv_data()).await.expect("the server fell silent") {
            Ok(Some(_)) => {}
            ended => return ended.is_ok(),
        }
    }
}

#[tokio::test]
async fn answers_that_wait_their_turn_on_a_slow_connection_all_come() {
    const STREAMS: usize = 100;
    const LENGTH: usize = 96 << 10;
    let origin = Origin::start(|_| cached(&"x".repeat(LENGTH)));
    let (pki, process, address) = start(&origin, "", "[limits]\nwrite_timeout = '500ms'\n");
    let mut transport = TransportConfig::default();
    transport.receive_window(VarInt::from_u32(128 << 10)).stream_receive_window(VarInt::from_u32(64 << 10));
    let mut client = Client::over(dial_with(&pki, address, transport).await).await;
    let began = std::time::Instant::now();
    let pace = Arc::new(tokio::sync::Mutex::new(()));
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let mut stream = client.begin(request(Method::GET, "/")).await;
        stream.finish().await.unwrap();
        let pace = Arc::clone(&pace);
        answers.spawn(async move {
            let head = stream.recv_response().await.expect("a head");
            let (mut length, mut pieces) = (0, 0);
            while let Some(data) = stream.recv_data().await.expect("it goes on") {
                length += data.remaining();
                while pieces < length / (16 << 10) {
                    pieces += 1;
                    let _one_at_a_time = pace.lock().await;
                    tokio::time::sleep(Duration::from_millis(6)).await; // how slow this client is
                }
            }
            (head.status(), length)
        });
    }
    while let Some(answered) = answers.join_next().await {
        assert_eq!(answered.expect("it goes on"), (StatusCode::OK, LENGTH), "after {:?}", began.elapsed());
    }
    let turn = began.elapsed() * (16 << 10) / LENGTH as u32;
    assert!(turn > Duration::from_millis(500), "a turn took {turn:?}: nobody waited for long");
    assert_eq!(metric(&process, WRITE_TIMEOUT).await, 0.0);
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_is_given_up_and_what_it_pins_let_go_though_others_go_on() {
    const LENGTH: usize = 1 << 20;
    let origin =
        Origin::start(|request| if request.path == "/large" { cached(&"x".repeat(LENGTH)) } else { Script::ok("y".repeat(4 << 10)) });
    let (pki, process, address) = start(&origin, "", "[limits]\nwrite_timeout = '4s'\n");
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(64 << 10));
    let mut client = Client::over(dial_with(&pki, address, transport).await).await;
    while !client.get("/large").await.field("cache-status").contains("; hit") {}
    let mut stalled = client.begin(request(Method::GET, "/large")).await;
    stalled.finish().await.unwrap();
    assert!(is_hit(&mut stalled).await);
    purge_everything(&process).await;
    metric_reaches(&process, PINNED, LENGTH as f64).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while metric(&process, PINNED).await > 0.0 {
        assert!(std::time::Instant::now() < deadline, "it is pinned for ever");
        assert_eq!(client.get("/other").await.body.len(), 4 << 10);
    }
    assert_eq!(metric(&process, WRITE_TIMEOUT).await, 1.0);
    assert!(!answer_is_whole(stalled).await, "it is reset");
    assert_eq!(client.get("/other").await.body.len(), 4 << 10);
}

#[tokio::test]
async fn who_takes_nothing_loses_its_answers_after_the_write_timeout_alive_as_it_may_be() {
    const STREAMS: usize = 20;
    let origin = Origin::start(|request| cached(&"x".repeat(if request.path == "/large" { 1 << 20 } else { 2 })));
    let (pki, process, address) = start(&origin, "", "[limits]\nwrite_timeout = '300ms'\n");
    let mut other = Client::connect(&pki, address).await;
    while !other.get("/large").await.field("cache-status").contains("; hit") {}
    let given_up = metric(&process, WRITE_TIMEOUT).await;
    let windows: [fn(&mut TransportConfig); 2] = [
        |transport| _ = transport.stream_receive_window(VarInt::from_u32(16 << 10)),
        |transport| _ = transport.receive_window(VarInt::from_u32(64 << 10)),
    ];
    for (number, narrow) in windows.into_iter().enumerate() {
        let mut transport = TransportConfig::default();
        // Each is acknowledged: what the server sends meanwhile is no progress.
        transport.keep_alive_interval(Some(Duration::from_millis(5)));
        narrow(&mut transport);
        let mut client = Client::over(dial_with(&pki, address, transport).await).await;
        let mut stalled = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = client.begin(request(Method::GET, "/large")).await;
            stream.finish().await.unwrap();
            stalled.push(stream);
        }
        let acknowledged = client.quinn.stats().udp_rx.datagrams;
        let expected = given_up + (STREAMS * (number + 1)) as f64;
        metric_reaches(&process, WRITE_TIMEOUT, expected).await;
        assert_eq!(metric(&process, WRITE_TIMEOUT).await, expected);
        assert!(client.quinn.stats().udp_rx.datagrams > acknowledged, "it showed that it is alive");
        assert!(client.quinn.close_reason().is_none(), "the connection goes on");
        for mut stream in stalled {
            assert!(stream.recv_response().await.is_err() || !answer_is_whole(stream).await, "it is reset");
        }
        assert_eq!(client.get("/").await.body, b"xx");
        assert_eq!(other.get("/").await.body, b"xx");
    }
}

#[tokio::test]
async fn an_answer_that_waits_for_its_client_is_cut_off_where_its_memory_is_wanted_back() {
    const LENGTH: usize = 12 << 20;
    let body = "x".repeat(LENGTH);
    let origin = Origin::start(move |_| cached(&body));
    // 4 % are 16 MiB, of which half may be pinned for longer than a moment.
    let bounds = "[memory]\nlimit = '400MiB'\nfill_share = '4%'\n[fill]\nstall = '10ms'\n[limits]\nwrite_timeout = '4s'\n";
    let (pki, process, address) = start(&origin, "", bounds);
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(64 << 10));
    let mut client = Client::over(dial_with(&pki, address, transport).await).await;
    let mut other = Client::connect(&pki, address).await;
    while !other.get("/").await.field("cache-status").contains("; hit") {}
    let mut slow = client.begin(request(Method::GET, "/")).await;
    slow.finish().await.unwrap();
    assert!(is_hit(&mut slow).await);
    purge_everything(&process).await;
    metric_reaches(&process, "tiercel_bound_reached_total{bound=\"pinned_memory\"}", 1.0).await;
    metric_reaches(&process, READER_DETACHED, 1.0).await;
    assert_eq!(metric(&process, WRITE_TIMEOUT).await, 0.0, "it was not for its client");
    assert!(!answer_is_whole(slow).await);
    assert_eq!(metric(&process, PINNED).await, 0.0);
}
