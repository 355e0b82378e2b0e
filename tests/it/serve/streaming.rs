//! Bodies as they come, tunnels, old clients, pipelines.

use super::*;
use crate::support::client::Ended;
use crate::support::origin::{Gate, Step};

fn bytes(text: &str) -> Step {
    Step::Bytes(text.as_bytes().to_vec())
}

const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

#[tokio::test]
async fn a_websocket_passes_bytes_both_ways() {
    let served = serve(|_| {
        Script::steps([
            bytes(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello\n",
            ),
            Step::Echo,
        ])
    });
    let mut client = served.client().await;
    client.send(request("GET", "/chat", UPGRADE, "")).await;
    let switched = client.answer(false).await.expect("an answer");
    assert_eq!((switched.status, switched.field("sec-websocket-accept")), (101, Some("x")));
    assert_eq!(switched.field("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    assert_eq!(switched.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    let seen = served.last("/chat");
    assert_eq!((seen.field("upgrade"), seen.field("sec-websocket-version")), (Some("websocket"), Some("13")));
    assert_eq!(client.until("hello\n").await.as_deref(), Some("hello\n"));
    for line in ["\u{1}one\n", "two\n"] {
        client.send(line).await;
        assert_eq!(client.until("\n").await.as_deref(), Some(line));
    }
    client.finish_sending().await;
    assert_eq!(client.ended().await, Ended::Closed);
}

#[tokio::test]
async fn no_byte_of_a_client_goes_into_a_tunnel_that_was_refused() {
    let served = serve(|_| Script::status(403, "no"));
    let mut client = served.client().await;
    let early = "GET /smuggled HTTP/1.1\r\nHost: internal.example\r\n\r\n";
    client.send(request("GET", "/chat", UPGRADE, "") + early).await;
    assert_eq!(client.answer(false).await.expect("an answer").status, 403);
    client.finish_sending().await;
    client.rest().await;
    assert!(served.origin.requests("/smuggled").iter().all(|request| request.field("via").is_some()), "it was a request like any other");
}

#[tokio::test]
async fn upgrades_are_never_stored() {
    let served = serve(|_| fresh("plain"));
    for asked in 1..=2 {
        let answer = served.get_with("/chat", UPGRADE).await;
        assert!(answer.says("fwd=bypass") && answer.says("detail=UPGRADE"), "{}", answer.head);
        assert_eq!(served.origin.count("/chat"), asked);
    }
}

#[tokio::test]
async fn events_are_passed_on_as_they_come() {
    for cache_control in ["no-store", "max-age=60"] {
        let gate = Gate::new();
        let served = serve({
            let gate = gate.clone();
            move |_| {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: {cache_control}\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                Script::steps([
                    bytes(&head),
                    bytes("9\r\ndata: 1\n\n\r\n"),
                    Step::Wait(gate.clone()),
                    bytes("9\r\ndata: 2\n\n\r\n0\r\n\r\n"),
                ])
            }
        });
        let mut client = served.client().await;
        client.send(request("GET", "/events", "Accept: text/event-stream\r\n", "")).await;
        assert!(client.until("data: 1\n\n").await.expect("the first event").contains("text/event-stream"));
        gate.open();
        assert!(client.until("0\r\n\r\n").await.expect("the end").contains("data: 2\n\n"), "{cache_control}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_stored_and_then_has_one() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |_| {
            Script::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
                .then(Step::Wait(gate.clone()))
                .then(Step::Bytes(b"4\r\ndefg\r\n0\r\n\r\n".to_vec()))
        }
    });
    let mut client = served.client().await;
    client.send(request("GET", "/a", "", "")).await;
    let head = client.until("abc\r\n").await.expect("the first piece");
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    gate.open();
    assert_eq!(client.until("0\r\n\r\n").await.expect("the end"), "4\r\ndefg\r\n0\r\n\r\n");
    let hit = served.until_hit("/a", "").await;
    assert_eq!((hit.text(), hit.field("content-length"), hit.field("transfer-encoding")), ("abcdefg", Some("7"), None));
}

#[tokio::test]
async fn a_body_that_ends_early_is_never_whole_and_never_stored() {
    for head in ["Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"] {
        let body = if head.starts_with("Content") { "half\n" } else { "5\r\nhalf\n\r\n" };
        let raw = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{head}\r\n{body}");
        let served = serve(move |_| Script::raw(raw.clone()).then(Step::Close));
        for asked in 1..=2 {
            let answer = served.get("/a").await;
            assert!(!answer.whole && answer.body == b"half\n", "{}", answer.head);
            assert_eq!(served.origin.count("/a"), asked, "{head}");
        }
    }
}

#[tokio::test]
async fn an_old_client_gets_no_chunks() {
    let served =
        serve(|_| Script::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"));
    let mut client = served.client().await;
    let miss = client.ask("GET /a HTTP/1.0\r\nHost: shop.example\r\n\r\n").await;
    assert_eq!((miss.text(), miss.field("transfer-encoding")), ("abc", None));
    assert_eq!(client.ended().await, Ended::Closed);
    assert_eq!(served.last("/a").field("via"), Some("1.0 tiercel"));
    served.until_hit("/a", "").await;
    let mut client = served.client().await;
    for _ in 0..2 {
        let hit = client.ask("GET /a HTTP/1.0\r\nHost: shop.example\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!((hit.text(), hit.field("content-length")), ("abc", Some("3")));
        assert_eq!(hit.field("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
    }
}

#[tokio::test]
async fn a_pipeline_of_hits_and_misses_is_answered_in_order() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |request| match request.path.as_str() {
            "/slow" => fresh("slow").after(&gate),
            path => fresh(path),
        }
    });
    served.get("/hit").await;
    served.until_hit("/hit", "").await;
    let mut client = served.client().await;
    let paths = ["/hit", "/slow", "/hit", "/miss", "/slow", "/hit"];
    client.send(paths.map(|path| request("GET", path, "", "")).concat()).await;
    assert_eq!(client.answer(false).await.expect("the first").text(), "/hit");
    served.origin.until("the slow one", |origin| origin.count("/slow") == 1).await;
    gate.open();
    for body in ["slow", "/hit", "/miss", "slow", "/hit"] {
        assert_eq!(client.answer(false).await.expect(body).text(), body);
    }
    assert_eq!((served.origin.count("/slow"), served.origin.count("/hit")), (1, 1));
}

#[tokio::test]
async fn interim_responses_are_relayed_to_clients_that_know_them() {
    let served = serve(|_| {
        Script::raw("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    });
    let mut client = served.client().await;
    let hints = client.ask(request("GET", "/a", "", "")).await;
    assert_eq!((hints.status, hints.field("link")), (103, Some("</a.css>; rel=preload")));
    assert_eq!(client.answer(false).await.expect("the final one").text(), "body");
    let old = served.client().await.ask("GET /a HTTP/1.0\r\nHost: shop.example\r\n\r\n").await;
    assert_eq!((old.status, old.text()), (200, "body"));
}
