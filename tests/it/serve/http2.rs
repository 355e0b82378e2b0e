//! HTTP/2 in plain text, by prior knowledge, through the running binary.

use super::*;
use crate::support::h2::{DATA, END, END_HEADERS, GET, HEADERS, Raw, SETTINGS, ask, connect, frame, get, line};
use crate::support::origin::Step;
use http_body_util::{BodyExt, Full};
use std::process::{Command, Stdio};

const H2C: &str = "[listeners.http]\nh2c = true\n";

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).stdin(Stdio::null()).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn both_protocols_are_served_on_one_port_from_one_store() {
    let served = serve_with(H2C, |_| fresh("stored"));
    let mut client = connect(served.tiercel.http).await;
    let miss = ask(&mut client, get("/a?b=c")).await;
    assert_eq!((miss.status().as_u16(), &miss.body()[..]), (200, &b"stored"[..]));
    let seen = served.last("/a");
    assert_eq!((seen.field("host"), seen.field("via"), seen.field("x-forwarded-proto")), (Some(HOST), Some("2 tiercel"), Some("http")));
    assert!(served.until_hit("/a?b=c", "").await.text() == "stored", "what came over HTTP/2 answers HTTP/1");
    let hit = ask(&mut client, get("/a?b=c")).await;
    assert!(hit.headers()["cache-status"].to_str().unwrap().contains("; hit"), "{:?}", hit.headers());
    assert_eq!(served.origin.count("/a"), 1);
    let url = format!("http://{}/a?b=c", served.tiercel.http);
    let host = format!("Host: {HOST}");
    for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1"), ("--http2", "1.1")] {
        assert_eq!(curl(&[flag, "-H", &host, "-w", " %{http_version}", &url]), format!("stored {version}"), "{flag}");
    }
}

#[tokio::test]
async fn the_preface_may_come_in_pieces_and_what_is_nearly_one_is_refused() {
    let served = serve_with(H2C, |_| fresh("stored"));
    let mut raw = Raw { stream: tokio::net::TcpStream::connect(served.tiercel.http).await.unwrap() };
    raw.stream.set_nodelay(true).unwrap();
    for byte in crate::support::h2::PREFACE {
        raw.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(raw.next().await.expect("settings come first").kind, SETTINGS);
    for nearly in
        ["PRI * HTTP/2.0\r\nHost: a\r\n\r\n", "PRI / HTTP/2.0\r\n\r\n", "GET * HTTP/2.0\r\n\r\n", "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let answer = served.client().await.ask(nearly).await;
        assert_eq!(answer.status, 505, "{nearly:?}: {}", answer.head);
    }
    let mut later = served.client().await;
    assert_eq!(later.ask(request("GET", "/", "", "")).await.status, 200);
    assert_eq!(later.ask(crate::support::h2::PREFACE).await.status, 505, "a connection that spoke HTTP/1 goes on with it");
}

/// A body that looks like the beginning of HTTP/2 is not one: who could send it would speak for whoever made the connection.
#[tokio::test]
async fn what_comes_behind_a_head_that_is_refused_is_no_connection_of_http2() {
    let served = serve_with(H2C, |_| fresh("stored"));
    let body = [crate::support::h2::PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END | END_HEADERS, 1, GET)].concat();
    for (fields, status) in [
        ("Expect: foo\r\nContent-Length: 500\r\n", 417),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nContent-Length: 500\r\n", 400),
        ("Content-Length: 99999999999999\r\n", 413),
    ] {
        let mut client = served.client().await;
        client.send([format!("POST /x HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n").as_bytes(), &body].concat()).await;
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("an answer to {fields:?}"));
        assert_eq!(answer.status, status, "{fields:?}: {}", answer.head);
        assert!(client.answer(false).await.is_none(), "{fields:?}: nothing comes behind it");
    }
    assert_eq!(served.origin.count("/"), 0);
}

#[tokio::test]
async fn without_the_option_the_preface_is_refused_and_a_reload_allows_it() {
    let served = serve(|_| fresh("stored"));
    assert_eq!(served.client().await.ask(crate::support::h2::PREFACE).await.status, 505);
    served.reload(H2C).await;
    let mut client = connect(served.tiercel.http).await;
    assert_eq!(ask(&mut client, get("/")).await.status(), 200);
}

#[tokio::test]
async fn a_hundred_streams_on_each_of_sixteen_connections_are_served_without_an_error() {
    let served = serve_with(H2C, |_| fresh("stored"));
    served.until_hit("/", "").await;
    let url = format!("http://{}/", served.tiercel.http);
    let load = ["-n", "8000", "-c", "16", "-m", "100", "-H", ":authority: shop.example", &url];
    let output = Command::new("h2load").args(load).stdin(Stdio::null()).output().expect("h2load runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("8000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
    assert!(report.contains("8000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{report}");
}

#[tokio::test]
async fn trailers_of_an_upstream_arrive_and_its_interim_responses_go_before() {
    let served = serve_with(H2C, |_| {
        Script::raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\n\
             Transfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n",
        )
    });
    let mut client = connect(served.tiercel.http).await;
    let mut request = get("/Service/Method");
    *request.method_mut() = http::Method::POST;
    *request.body_mut() = Full::from("question");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let answer = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().expect("they came")["grpc-status"], "0");
    assert_eq!(answer.to_bytes(), "abc");
    assert_eq!(served.last("/Service/Method").body, b"question");
    assert_eq!(served.bound("interim_dropped").await, 0);
    let url = format!("http://{}/Service/Method", served.tiercel.http);
    let curl = Command::new("curl").args(["-sSi", "--http2-prior-knowledge", "-d", "question", &url]).output().expect("curl runs");
    let heard = String::from_utf8_lossy(&curl.stdout).to_lowercase();
    assert!(heard.starts_with("http/2 103 \r\nlink: </a.css>\r\n\r\nhttp/2 200"), "{heard}");
}

/// Extended CONNECT (RFC 8441) on this stream.
fn connects(stream: u32, protocol: &str, path: &str) -> Vec<u8> {
    let lines = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", path),
        (":authority", HOST),
        ("sec-websocket-version", "13"),
    ];
    let head: Vec<u8> = lines.iter().flat_map(|(name, value)| line(name, value)).collect();
    frame(HEADERS, END_HEADERS, stream, &head)
}

#[tokio::test]
async fn a_websocket_goes_through_to_an_upstream_of_http_1() {
    let served = serve_with(H2C, |request| match (request.path.as_str(), request.field("upgrade")) {
        ("/chat", Some("websocket")) => {
            let head =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello";
            Script::raw(head).then(Step::Echo)
        }
        ("/closed", _) => Script::status(403, "no"),
        _ => fresh("plain"),
    });
    let mut raw = Raw::connect(served.tiercel.http, &[]).await;
    let settings = raw.until(|frame| frame.kind == SETTINGS && frame.flags == 0).await.expect("its settings");
    assert!(settings.payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "it offers extended CONNECT");
    raw.send(&connects(1, "websocket", "/chat")).await;
    let head = raw.until(|frame| frame.stream == 1).await.expect("an answer");
    assert_eq!((head.kind, head.flags & END, head.payload[0]), (HEADERS, 0, 0x88), "200, and it goes on");
    let mut heard = Vec::new();
    raw.send(&frame(DATA, 0, 1, b" and back")).await;
    while heard.len() < b"hello and back".len() {
        heard.extend(raw.until(|frame| frame.kind == DATA && frame.stream == 1).await.expect("bytes").payload);
    }
    assert_eq!(heard, b"hello and back");
    raw.send(&frame(DATA, END, 1, b"")).await;
    assert!(raw.until(|frame| frame.stream == 1 && frame.flags & END != 0).await.is_some(), "the other side ends, too");
    let seen = served.last("/chat");
    assert_eq!((seen.method.as_str(), seen.field("connection"), seen.field("sec-websocket-version")), ("GET", Some("upgrade"), Some("13")));
    let key = seen.field("sec-websocket-key").expect("a key");
    assert!(key.len() == 24 && key.ends_with("=="), "{key}");
    // What is no tunnel does not look like one.
    for (stream, protocol, path) in [(3, "websocket", "/closed"), (5, "websocket", "/plain"), (7, "chat", "/chat")] {
        raw.send(&connects(stream, protocol, path)).await;
        let head = raw.until(|frame| frame.stream == stream).await.expect("an answer");
        assert!(head.kind == HEADERS && head.payload[0] != 0x88, "{path}: {head:?}");
    }
}
