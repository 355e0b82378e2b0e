//! Upgrades that go through and upgrades that do not: the table "Upgrades" in `docs/http1.md`, on bytes through the running
//! binary.

use super::*;
use crate::support::client::Ended;
use crate::support::origin::Step;

/// An origin that switches to whatever it is asked for and repeats what it hears; who asks for nothing gets a body.
fn willing(request: &Recorded) -> Script {
    match request.field("upgrade") {
        Some(protocol) => switch(protocol),
        None => fresh("plain"),
    }
}

fn switch(protocol: &str) -> Script {
    let head = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nhello\n");
    Script::raw(head).then(Step::Echo)
}

fn asking(path: &str, version: &str, protocols: &str) -> String {
    format!(
        "GET {path} HTTP/{version}\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings, keep-alive\r\nUpgrade: {protocols}\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
}

#[tokio::test]
async fn an_ignored_upgrade_is_a_request_like_any_other() {
    let served = serve(willing);
    for (number, (version, protocols)) in [
        ("1.0", "websocket"),
        ("1.1", "h2c"),
        ("1.1", "H2C"),
        ("1.1", "h2, h2c/1"),
        ("1.1", "TLS/1.0"),
        ("1.1", "tls"),
        ("1.1", "h2c, tls/1.2\r\nUpgrade: h2"),
        ("1.1", "web socket, \"websocket\", /1"),
        ("1.1", ","),
    ]
    .into_iter()
    .enumerate()
    {
        let (path, shown) = (format!("/{number}"), format!("{version} {protocols}"));
        let mut client = served.client().await;
        let miss = client.ask(asking(&path, version, protocols)).await;
        assert_eq!((miss.status, miss.text(), miss.field("upgrade")), (200, "plain", None), "{shown}");
        let seen = served.last(&path);
        for name in ["upgrade", "http2-settings", "connection"] {
            assert_eq!(seen.field(name), None, "{shown}");
        }
        served.until_hit(&path, "").await;
        let hit = client.ask(asking(&path, version, protocols)).await;
        assert!(hit.says("hit") && hit.text() == "plain", "{shown}: {}", hit.head);
        assert_eq!(served.origin.count(&path), 1, "{shown}");
    }
}

#[tokio::test]
async fn an_upgrade_of_an_old_client_is_never_a_tunnel() {
    let served = serve(|_| switch("websocket"));
    let answer = served.client().await.ask(asking("/a", "1.0", "websocket")).await;
    assert_eq!((answer.status, answer.field("upgrade")), (502, None), "{}", answer.head);
}

#[tokio::test]
async fn of_several_protocols_those_that_may_pass_are_asked_for() {
    let served = serve(willing);
    for (path, protocols, passed) in
        [("/a", "h2c, websocket", "websocket"), ("/b", "chat/2, TLS/1.0\r\nUpgrade: h2, spdy/3.1", "chat/2, spdy/3.1")]
    {
        let mut client = served.client().await;
        let switched = client.ask(asking(path, "1.1", protocols)).await;
        assert_eq!((switched.status, switched.field("upgrade")), (101, Some(passed)), "{}", switched.head);
        let seen = served.last(path);
        assert_eq!((seen.field("upgrade"), seen.field("connection"), seen.field("http2-settings")), (Some(passed), Some("upgrade"), None));
        assert_eq!(client.until("hello\n").await.as_deref(), Some("hello\n"));
        client.send("there\n").await;
        assert_eq!(client.until("there\n").await.as_deref(), Some("there\n"));
    }
}

#[tokio::test]
async fn a_switch_to_what_was_not_asked_for_is_a_malformed_answer() {
    for named in ["h2c", "websocket, h2c", "websocket\r\nUpgrade: h2c", "websocket/2", ""] {
        let served = serve(move |_| switch(named));
        let answer = served.client().await.ask(asking("/chat", "1.1", "h2c, websocket")).await;
        assert_eq!((answer.status, answer.field("upgrade")), (502, None), "{named}: {}", answer.head);
        assert_eq!(answer.field("proxy-status"), Some("tiercel; error=http_protocol_error"), "{named}");
        assert!(answer.whole && !answer.text().contains("hello"), "{named}");
        served.origin.until("the connection is closed", |origin| origin.open_connections() == 0).await;
    }
}

#[tokio::test]
async fn who_offers_h2c_goes_on_in_http_1_and_who_begins_http_2_is_refused() {
    let served = serve(willing);
    let offer = asking("/a", "1.1", "h2c");
    let mut client = served.client().await;
    client.send(format!("{offer}{offer}{}", request("GET", "/b", "", ""))).await;
    for _ in 0..3 {
        assert_eq!(client.answer(false).await.expect("an answer").text(), "plain");
    }
    client.send(offer + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(client.answer(false).await.expect("an answer").text(), "plain");
    assert_eq!(client.answer(false).await.expect("a refusal").status, 505);
    assert_eq!(client.ended().await, Ended::Closed);
}
