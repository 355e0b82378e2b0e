//! End-to-end tests of the HTTP/1 connection: bytes in, bytes out, a scripted handler behind it.

use crate::support::client::{Answer, Client, Ended, patient};
use crate::support::document::reasons_of;
use crate::support::scripted::{Fed, Server, data, later, limits, next, peer, pieces, response, text};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tiercel::body::{BodyError, Chunk, ResponseBody, StoredBody};
use tiercel::clock::LAST_LOOK;
use tiercel::config::settings::Limits;
use tiercel::listener::http1::serve;
use tiercel::listener::{Handled, Interim, InterimSlot, Refusal, RequestBody, RequestHead};
use tiercel::semantics::{Fields, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

async fn start(limits: Limits, script: impl Fn(&RequestHead, RequestBody, &mut InterimSlot) -> Handled + Send + Sync + 'static) -> Server {
    Server::start(limits, |c| serve(c.socket, c.peer, c.limits, c.handler, c.draining), script).await
}

/// Answers with what was asked, fields and all, once the body is there.
fn echo(head: &RequestHead, mut body: RequestBody) -> Handled {
    let head = head.clone();
    later(async move {
        let (mut bytes, mut trailers) = (Vec::new(), String::new());
        while let Some(chunk) = next(&mut body).await {
            match chunk {
                Ok(Chunk::Data(data)) => bytes.extend_from_slice(&data),
                Ok(Chunk::Trailers(fields)) => trailers = String::from_utf8_lossy(fields.wire()).into_owned(),
                Err(error) => return text(format!("{error}")),
            }
        }
        let (target, fields) = (String::from_utf8_lossy(&head.target), String::from_utf8_lossy(head.fields.wire()));
        text(format!("{} {target} 1.{}\n{fields}\n{}|{trailers}", head.method, head.minor_version, String::from_utf8_lossy(&bytes)))
    })
}

async fn echo_server() -> Server {
    start(limits(), |head, body, _| echo(head, body)).await
}

async fn hello_server(limits: Limits) -> Server {
    start(limits, |_, _, _| Handled::Ready(text("hello"))).await
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

// ---- what is refused, and what is normalised: docs/http1.md ----

/// Name, bytes, status, reason.
fn refusals() -> Vec<(&'static str, String, u16, &'static str)> {
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\nhello");
    let chunked = |(name, body, status, reason)| {
        (name, format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}"), status, reason)
    };
    let mut rows: Vec<_> = malformed_bodies().into_iter().map(chunked).collect();
    rows.extend([
        ("bare LF after the request line", "GET / HTTP/1.1\nHost: x\r\n\r\n".into(), 400, "bare-lf"),
        ("bare LF after a field", "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n".into(), 400, "bare-lf"),
        ("bare LF as the empty line", "GET / HTTP/1.1\r\nHost: x\r\n\n".into(), 400, "bare-lf"),
        ("bare LF before the request", "\nGET / HTTP/1.1\r\n\r\n".into(), 400, "bare-lf"),
        ("bare CR in a field", get("A: b\rc\r\n"), 400, "field-value"),
        ("bare CR in the request line", "GET / HTTP/1.1\rX\r\n\r\n".into(), 400, "bare-cr"),
        ("obs-fold", get("A: b\r\n c\r\n"), 400, "obs-fold"),
        ("obs-fold with a tab", get("A: b\r\n\tc\r\n"), 400, "obs-fold"),
        ("white space before the first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n".into(), 400, "obs-fold"),
        ("white space before the request line", " GET / HTTP/1.1\r\n\r\n".into(), 400, "leading-space"),
        ("two empty lines before the request line", "\r\n\r\nGET / HTTP/1.1\r\n\r\n".into(), 400, "leading-lines"),
        ("NUL in a value", get("A: b\0c\r\n"), 400, "field-value"),
        ("DEL in a value", get("A: b\x7fc\r\n"), 400, "field-value"),
        ("control byte in a value", get("A: b\x01c\r\n"), 400, "field-value"),
        ("NUL in a name", get("A\0: b\r\n"), 400, "field-name"),
        ("white space before the colon", get("A : b\r\n"), 400, "field-name"),
        ("white space in a name", get("A b: c\r\n"), 400, "field-name"),
        ("empty name", get(": c\r\n"), 400, "field-name"),
        ("line without a colon", get("nonsense\r\n"), 400, "field-name"),
        ("two spaces in the request line", "GET  / HTTP/1.1\r\n\r\n".into(), 400, "request-line"),
        ("space in the target", "GET /a b HTTP/1.1\r\n\r\n".into(), 400, "request-line"),
        ("tab in the request line", "GET\t/ HTTP/1.1\r\n\r\n".into(), 400, "request-line"),
        ("space after the version", "GET / HTTP/1.1 \r\n\r\n".into(), 400, "request-line"),
        ("no version (HTTP/0.9)", "GET /\r\n\r\n".into(), 400, "request-line"),
        ("version in lower case", "GET / http/1.1\r\n\r\n".into(), 400, "request-line"),
        ("version with two digits behind the dot", "GET / HTTP/1.10\r\n\r\n".into(), 400, "request-line"),
        ("version with two digits before the dot", "GET / HTTP/11.1\r\n\r\n".into(), 400, "request-line"),
        ("version without a dot", "GET / HTTP/1\r\n\r\n".into(), 400, "request-line"),
        ("version of another protocol", "GET / RTSP/1.0\r\n\r\n".into(), 400, "request-line"),
        ("control byte in the target", "GET /\x01 HTTP/1.1\r\n\r\n".into(), 400, "request-line"),
        ("method that is no token", "G(T / HTTP/1.1\r\n\r\n".into(), 400, "request-line"),
        ("TLS on a plain port", "\x16\x03\x01\x02\0\x01\0\x01".into(), 400, "request-line"),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".into(), 501, "connect"),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, "version"),
        ("HTTP/1.2", "GET / HTTP/1.2\r\n\r\n".into(), 505, "version"),
        ("HTTP/3.0", "GET / HTTP/3.0\r\n\r\n".into(), 505, "version"),
        ("long target", format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2048)), 414, "url-bytes"),
        ("request line without an end", "G".repeat(3000), 414, "url-bytes"),
        ("long field section", get(&format!("A: {}\r\n", "a".repeat(9000))), 431, "header-bytes"),
        ("many fields", get(&"A: b\r\n".repeat(100)), 431, "header-count"),
        ("Content-Length twice", post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400, "content-length-repeated"),
        ("Content-Length list", post("Content-Length: 5, 5\r\n"), 400, "content-length"),
        ("Content-Length with a plus", post("Content-Length: +5\r\n"), 400, "content-length"),
        ("Content-Length with a minus", post("Content-Length: -5\r\n"), 400, "content-length"),
        ("Content-Length empty", post("Content-Length:\r\n"), 400, "content-length"),
        ("Content-Length in hex", post("Content-Length: 0x5\r\n"), 400, "content-length"),
        ("Content-Length in letters", post("Content-Length: five\r\n"), 400, "content-length"),
        ("Content-Length with inner space", post("Content-Length: 0 5\r\n"), 400, "content-length"),
        ("Content-Length with a fraction", post("Content-Length: 5.0\r\n"), 400, "content-length"),
        ("Content-Length beyond 19 digits", post("Content-Length: 18446744073709551621\r\n"), 400, "content-length-overflow"),
        (
            "Content-Length and Transfer-Encoding",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            400,
            "length-and-transfer-encoding",
        ),
        (
            "Transfer-Encoding in HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
            "transfer-encoding-in-1.0",
        ),
        ("Transfer-Encoding twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding not ending in chunked", post("Transfer-Encoding: chunked, gzip\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding empty", post("Transfer-Encoding:\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding with chunked twice on a line", post("Transfer-Encoding: chunked, chunked\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding with an empty member", post("Transfer-Encoding: , chunked\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding identity", post("Transfer-Encoding: identity\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding with a parameter", post("Transfer-Encoding: chunked;a=b\r\n"), 400, "transfer-encoding"),
        ("Transfer-Encoding with a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n"), 400, "field-value"),
        ("Transfer-Encoding unknown, then chunked", post("Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer-coding"),
        ("body announced beyond the limit", post("Content-Length: 67108865\r\n"), 413, "body-bytes"),
        ("unknown expectation", post("Content-Length: 5\r\nExpect: tea\r\n"), 417, "expectation"),
    ]);
    rows
}

/// Chunked bodies that are refused, as [`refusals`].
pub fn malformed_bodies() -> Vec<(&'static str, String, u16, &'static str)> {
    vec![
        ("chunk beyond the limit", "4000001\r\n".into(), 413, "body-bytes"),
        ("chunk size empty", "\r\n".into(), 400, "chunk-size"),
        ("chunk size with 0x", "0x5\r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-size"),
        ("chunk size with a sign", "+5\r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-size"),
        ("chunk size beyond 16 digits", "00000000000000005\r\n".into(), 400, "chunk-size"),
        ("white space after a chunk size", "5 \r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-size"),
        ("bare LF after a chunk size", "5\nhello\r\n0\r\n\r\n".into(), 400, "chunk-size"),
        ("bare LF in a chunk extension", "5;a\nhello\r\n0\r\n\r\n".into(), 400, "chunk-extension"),
        ("white space in a chunk extension", "5; a\r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-extension"),
        ("chunk extension without a name", "5;\r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-extension"),
        ("long chunk extensions", format!("5;{}\r\n", "a".repeat(5000)), 400, "chunk-extension"),
        ("chunk longer than its size", "4\r\nhello\r\n0\r\n\r\n".into(), 400, "chunk-data"),
        ("bare LF after chunk data", "5\r\nhello\n0\r\n\r\n".into(), 400, "chunk-data"),
        ("Content-Length as a trailer", "0\r\nContent-Length: 5\r\n\r\n".into(), 400, "trailer-field"),
        ("Transfer-Encoding as a trailer", "0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "trailer-field"),
        ("Host as a trailer", "0\r\nHost: y\r\n\r\n".into(), 400, "trailer-field"),
        ("Trailer as a trailer", "0\r\nTrailer: A\r\n\r\n".into(), 400, "trailer-field"),
        ("Connection as a trailer", "0\r\nCONNECTION: close\r\n\r\n".into(), 400, "trailer-field"),
        ("white space before the colon of a trailer", "0\r\nA : b\r\n\r\n".into(), 400, "trailer-field"),
        ("trailer without a name", "0\r\n: b\r\n\r\n".into(), 400, "trailer-field"),
        ("trailer without a colon", "0\r\nnonsense\r\n\r\n".into(), 400, "trailer-field"),
        ("control byte in a trailer", "0\r\nA: b\x01c\r\n\r\n".into(), 400, "trailer-field"),
        ("bare CR in a trailer", "0\r\nA: b\rc\r\n\r\n".into(), 400, "trailer-field"),
        ("many trailers", format!("0\r\n{}\r\n", "A: b\r\n".repeat(101)), 400, "trailer-field"),
        ("obs-fold in a trailer", "0\r\nA: b\r\n c\r\n\r\n".into(), 400, "trailer-field"),
        ("bare LF after a trailer", "0\r\nA: b\n\r\n".into(), 400, "trailer-field"),
        ("long trailers", format!("0\r\nA: {}\r\n\r\n", "a".repeat(9000)), 400, "trailer-field"),
    ]
}

#[tokio::test]
async fn what_two_parsers_could_read_differently_is_refused_and_the_connection_closed() {
    for (row, bytes, status, reason) in refusals() {
        let server = echo_server().await;
        let mut client = Client::connect(server.address).await;
        // A second request behind it must not be answered, whatever the first is taken for.
        client.send(format!("{bytes}{GET}")).await;
        client.finish_sending().await;
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("{row}: no answer"));
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{row}: {}", answer.head);
        assert!(answer.field("date").is_some_and(|date| date.ends_with(" GMT")), "{row}: {}", answer.head);
        let error = if status < 500 { "http_request_error" } else { "proxy_internal_response" };
        let proxy_status = format!("tiercel; error={error}; details=\"{reason}\"");
        assert_eq!(answer.field("proxy-status"), Some(&*proxy_status), "{row}");
        assert_eq!(client.ended().await, Ended::Closed, "{row}");
        let told = server.told(|told| told.ended == 1).await;
        assert_eq!(told.refused, [Refusal { status, reason }], "{row}");
        assert!(told.finished.is_empty(), "{row}: {:?}", told.handled);
    }
}

#[tokio::test]
async fn what_is_read_in_one_way_only_reaches_the_handler_normalised() {
    for (row, bytes, expected) in [
        ("one empty line before the request line", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a 1.1\nhost: x\r\n\n|"),
        ("names in lower case, white space around values dropped", "GET / HTTP/1.1\r\nHOST: \t x \t\r\n\r\n", "GET / 1.1\nhost: x\r\n\n|"),
        ("empty value", "GET / HTTP/1.1\r\nA:\r\n\r\n", "GET / 1.1\na: \r\n\n|"),
        ("obs-text", "GET / HTTP/1.1\r\nA: \u{e9}\r\n\r\n", "GET / 1.1\na: \u{e9}\r\n\n|"),
        ("unknown method", "BREW /pot HTTP/1.1\r\n\r\n", "BREW /pot 1.1\n\n|"),
        ("absolute form", "GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://x/a 1.1\nhost: x\r\n\n|"),
        ("asterisk form", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * 1.1\nhost: x\r\n\n|"),
        ("leading zeros", "POST / HTTP/1.1\r\nContent-Length: 005\r\n\r\nhello", "POST / 1.1\ncontent-length: 5\r\n\nhello|"),
        (
            "HTTP/1.0 with a length",
            "POST / HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
            "POST / 1.0\ncontent-length: 5\r\nconnection: keep-alive\r\n\nhello|",
        ),
        (
            "Transfer-Encoding in any case",
            "POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
            "POST / 1.1\ntransfer-encoding: CHUNKED\r\n\n|",
        ),
        (
            "chunk sizes in any case, with zeros and extensions",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00A;x;y=z;q=\"\\\"\"\r\n0123456789\r\n0\r\n\r\n",
            "POST / 1.1\ntransfer-encoding: chunked\r\n\n0123456789|",
        ),
        (
            "trailers are kept apart",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
            "POST / 1.1\ntransfer-encoding: chunked\r\n\na|x-sum: 1\r\n",
        ),
        ("GET with a body", "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "GET / 1.1\ncontent-length: 5\r\n\nhello|"),
    ] {
        let server = echo_server().await;
        let mut client = Client::connect(server.address).await;
        assert_eq!(client.ask(bytes).await.text(), expected, "{row}");
        // The connection goes on exactly behind the request.
        assert_eq!(client.ask(GET).await.text(), "GET / 1.1\nhost: x\r\n\n|", "{row}");
    }
}

#[tokio::test]
async fn an_expectation_of_100_without_a_body_or_from_http_1_0_is_ignored() {
    let server = echo_server().await;
    let mut client = Client::connect(server.address).await;
    let (get, next) = ("GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", "GET / 1.1\nexpect: 100-continue\r\n\n|");
    for _ in 0..2 {
        assert_eq!(client.ask(get).await.text(), next);
    }
    client.send("POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    // By then the body was asked for, and 100 would be out.
    server.told(|told| told.handled.len() == 3).await;
    client.send("hello").await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.text().ends_with("\nhello|")), (200, true), "{}", answer.head);
}

/// Rows with a time-out of their own, as [`refusals`].
fn stalls() -> Vec<(Limits, &'static str, u16, &'static str)> {
    let (short, long) = (Duration::from_millis(30), limits());
    vec![
        (Limits { header_timeout: short, ..long.clone() }, "GET / HTTP/1.1\r\nHo", 408, "header-timeout"),
        (Limits { body_timeout: short, ..long }, "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhe", 408, "body-timeout"),
    ]
}

/// What a client sends before it closes, and the reason of the 400.
const CUT_SHORT: [(&str, &str); 3] = [
    ("Content-Length: 10\r\n\r\nhello", "body-truncated"),
    ("Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "body-truncated"),
    ("Content-Len", "head-truncated"),
];

/// Reason of the 408 in [`heads_and_bodies_that_drip_come_to_an_end`].
const TOO_SLOW: &str = "body-rate";

#[test]
fn what_is_refused_is_what_the_document_says() {
    let mut tested: Vec<(u16, &str)> = refusals().iter().map(|(_, _, status, reason)| (*status, *reason)).collect();
    tested.extend(stalls().iter().map(|(_, _, status, reason)| (*status, *reason)));
    tested.extend(CUT_SHORT.map(|(_, reason)| (400, reason)));
    tested.push((408, TOO_SLOW));
    let documented = [reasons_of("Heads"), reasons_of("Framing of requests")].concat();
    for (status, reason) in &tested {
        assert!(documented.iter().any(|row| (row.0, &*row.1) == (*status, *reason)), "not in the document: {status} {reason}");
    }
    for (status, reason) in &documented {
        assert!(tested.contains(&(*status, reason.as_str())), "without a test: {status} {reason}");
    }
}

// ---- persistence, pipelining ----

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_though_the_first_takes_longer() {
    let (release, released) = oneshot::channel::<()>();
    let released = Mutex::new(Some(released));
    let server = start(limits(), move |head, _, _| {
        let target = String::from_utf8_lossy(&head.target).into_owned();
        match released.lock().take() {
            Some(released) => later(async move {
                _ = released.await;
                text(target)
            }),
            None => Handled::Ready(text(target)),
        }
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n").await;
    server.told(|told| told.handled.len() == 1).await;
    release.send(()).unwrap();
    for expected in ["/1", "/2", "/3"] {
        assert_eq!(client.answer(false).await.unwrap().text(), expected);
    }
}

/// A connection in this process, of which `room` bytes may be on their way to either side; for those that must not depend on
/// when a socket is ready.
fn connected(server: &Server, limits: Limits, room: usize) -> (DuplexStream, JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(room);
    let peer = peer(server.address, server.address);
    (far, tokio::spawn(serve(near, peer, Arc::new(limits), Arc::clone(&server.handler), server.drain.subscribe())))
}

#[tokio::test]
async fn one_connection_cannot_keep_another_waiting_however_much_it_pipelines() {
    let server = hello_server(limits()).await;
    let (mut greedy, _) = connected(&server, limits(), 1 << 16);
    let (mut other, _) = connected(&server, limits(), 1 << 16);
    greedy.write_all("GET /greedy HTTP/1.1\r\n\r\n".repeat(200).as_bytes()).await.unwrap();
    other.write_all(b"GET /other HTTP/1.1\r\n\r\n").await.unwrap();
    let handled = server.told(|told| told.finished.len() == 201).await.handled;
    assert_eq!(handled.iter().position(|request| request == "GET /other"), Some(32));
}

#[tokio::test]
async fn of_later_requests_no_more_is_taken_in_than_the_bound_while_one_is_answered() {
    const ROOM: usize = 1024;
    let (release, released) = oneshot::channel::<()>();
    let released = Mutex::new(Some(released));
    let server = start(limits(), move |_, _, _| match released.lock().take() {
        Some(released) => later(async move {
            _ = released.await;
            text("first")
        }),
        None => Handled::Ready(text("next")),
    })
    .await;
    let (far, _) = connected(&server, limits(), ROOM);
    let (mut reading, mut writing) = tokio::io::split(far);
    let sent = Arc::new(AtomicUsize::new(0));
    let all = GET.repeat(900);
    let sending = tokio::spawn({
        let (sent, all) = (Arc::clone(&sent), all.clone());
        async move {
            while let Some(rest) = all.as_bytes().get(sent.load(Relaxed)..).filter(|rest| !rest.is_empty()) {
                let written = writing.write(rest).await.unwrap();
                sent.fetch_add(written, Relaxed);
            }
            writing
        }
    });
    server.told(|told| told.handled.len() == 1).await;
    // There is nothing but these two tasks: what does not go on in so many turns waits for the answer.
    let mut before = usize::MAX;
    while std::mem::replace(&mut before, sent.load(Relaxed)) != sent.load(Relaxed) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    let taken = before - ROOM;
    assert!((16 << 10..=(16 << 10) + 2 * ROOM).contains(&taken) && before < all.len(), "{taken} bytes");
    release.send(()).unwrap();
    let mut answers = Vec::new();
    while memchr::memmem::find_iter(&answers, b"\r\n\r\nnext").count() < 899 {
        assert!(reading.read_buf(&mut answers).await.unwrap() > 0);
    }
    assert!(memchr::memmem::find(&answers, b"\r\n\r\nfirst").is_some_and(|at| at < 200));
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_burst_of_pipelined_requests_and_a_request_byte_by_byte_are_answered() {
    let server = hello_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    client.send(GET.repeat(200)).await;
    for _ in 0..200 {
        assert_eq!(client.answer(false).await.unwrap().text(), "hello");
    }
    for byte in GET.as_bytes() {
        client.send([*byte]).await;
    }
    assert_eq!(client.answer(false).await.unwrap().text(), "hello");
}

#[tokio::test]
async fn connections_persist_as_version_and_fields_say() {
    let server = hello_server(limits()).await;
    for (request, connection, persists) in [
        ("GET / HTTP/1.1\r\n\r\n", None, true),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", Some("close"), false),
        ("GET / HTTP/1.0\r\n\r\n", Some("close"), false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Some("keep-alive"), true),
    ] {
        let mut client = Client::connect(server.address).await;
        let answer = client.ask(request).await;
        assert_eq!((answer.field("connection"), answer.text()), (connection, "hello"));
        if persists {
            assert_eq!(client.ask(GET).await.text(), "hello");
        } else {
            assert_eq!(client.ended().await, Ended::Closed);
        }
    }
}

#[tokio::test]
async fn the_last_request_that_a_connection_may_carry_is_answered_with_close() {
    let server = hello_server(Limits { requests_per_connection: 2, ..limits() }).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.ask(GET).await.field("connection"), None);
    client.send(GET.repeat(3)).await;
    assert_eq!(client.answer(false).await.unwrap().field("connection"), Some("close"));
    assert_eq!(client.ended().await, Ended::Closed);
}

// ---- framing of answers ----

#[tokio::test]
async fn answers_without_a_body_have_none_and_the_next_follows() {
    let server = start(limits(), |head, _, _| {
        let body = ResponseBody::Full(Bytes::from_static(b"never sent"));
        let status = String::from_utf8_lossy(&head.target[1..]).parse().unwrap();
        Handled::Ready(response(status, body))
    })
    .await;
    let mut client = Client::connect(server.address).await;
    for (request, expected) in [
        ("HEAD /200 HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nx-test: yes\r\ncontent-length: 10\r\n\r\n"),
        ("GET /204 HTTP/1.1\r\n\r\n", "HTTP/1.1 204 No Content\r\nx-test: yes\r\n\r\n"),
        ("GET /304 HTTP/1.1\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nx-test: yes\r\n\r\n"),
        ("GET /404 HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\nx-test: yes\r\ncontent-length: 10\r\n\r\nnever sent"),
    ] {
        client.send(request).await;
        assert_eq!(client.until(&expected[expected.len() - 8..]).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn streamed_answers_are_framed_for_the_client_that_asks() {
    let server = start(limits(), |head, _, _| {
        let length = (&head.target[..] == b"/known").then_some(6);
        let mut trailers = Fields::new();
        trailers.push("x-sum", "1").unwrap();
        let mut all = vec![data("abc"), data(""), data("def")];
        if length.is_none() {
            all.push(Ok(Chunk::Trailers(trailers)));
        }
        Handled::Ready(response(200, pieces(length, all)))
    })
    .await;
    for (request, expected) in [
        ("GET /unknown HTTP/1.1\r\n", "x-test: yes\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"),
        (
            "GET /unknown HTTP/1.1\r\nTE: trailers\r\n",
            "x-test: yes\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        ("GET /known HTTP/1.1\r\n", "x-test: yes\r\ncontent-length: 6\r\n\r\nabcdef"),
        ("GET /unknown HTTP/1.0\r\nConnection: keep-alive\r\n", "x-test: yes\r\nconnection: close\r\n\r\nabcdef"),
        ("HEAD /unknown HTTP/1.1\r\n", "x-test: yes\r\n\r\n"),
    ] {
        let mut client = Client::connect(server.address).await;
        client.send(format!("{request}\r\n")).await;
        client.finish_sending().await;
        assert_eq!(String::from_utf8(client.rest().await).unwrap(), format!("HTTP/1.1 200 OK\r\n{expected}"), "{request}");
    }
    let told = server.told(|told| told.finished.len() == 5).await;
    assert_eq!(told.finished.iter().map(|sent| sent.body_bytes).collect::<Vec<_>>(), [6, 6, 6, 6, 0]);
}

#[tokio::test]
async fn the_head_and_each_piece_go_out_as_they_come() {
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = Mutex::new(Some(fed));
    let server = start(limits(), move |_, _, _| {
        let stream = Box::pin(Fed(fed.lock().take().unwrap()));
        Handled::Ready(response(200, ResponseBody::Stream { length: None, stream }))
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    assert!(client.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200"));
    for piece in ["first", "second"] {
        feed.send(data(piece)).unwrap();
        assert_eq!(client.until(&format!("{piece}\r\n")).await.unwrap(), format!("{:x}\r\n{piece}\r\n", piece.len()));
    }
    drop(feed);
    assert_eq!(client.until("0\r\n\r\n").await.unwrap(), "0\r\n\r\n");
}

#[tokio::test]
async fn a_body_that_ends_wrongly_never_looks_whole() {
    let server = start(limits(), |head, _, _| {
        let (length, pieces_of) = match &head.target[..] {
            b"/fails" => (None, vec![data("abc"), Err(BodyError::Truncated)]),
            b"/short" => (Some(9), vec![data("abc")]),
            b"/long" => (Some(4), vec![data("abc"), data("def")]),
            _ => unreachable!(),
        };
        Handled::Ready(response(200, pieces(length, pieces_of)))
    })
    .await;
    for (target, error) in [("/fails", BodyError::Truncated), ("/short", BodyError::Truncated), ("/long", BodyError::Malformed)] {
        let before = server.handler.told.borrow().finished.len();
        let mut client = Client::connect(server.address).await;
        let answer = client.ask(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
        assert_eq!((answer.whole, answer.text()), (false, "abc"), "{target}");
        let told = server.told(|told| told.finished.len() > before).await;
        assert_eq!(told.finished[before].aborted, Some(error));
    }
    // Without framing only a reset tells an HTTP/1.0 client.
    let mut client = Client::connect(server.address).await;
    client.send("GET /fails HTTP/1.0\r\n\r\n").await;
    let end = loop {
        match client.ended().await {
            Ended::MoreBytes => client.forget(),
            end => break end,
        }
    };
    assert_eq!(end, Ended::Reset);
}

#[tokio::test]
async fn a_large_stored_body_reaches_a_client_that_reads_late() {
    let segments: Vec<Bytes> = (0..400u32).map(|i| Bytes::from(vec![i as u8; 20_000])).collect();
    let expected = segments.concat()[5..7_999_990].to_vec();
    let body = Arc::new(StoredBody::new(&segments));
    let server = start(limits(), move |_, _, _| {
        Handled::Ready(response(206, ResponseBody::Stored { body: Arc::clone(&body), start: 5, end: 7_999_990 }))
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    server.told(|told| told.handled.len() == 1).await;
    let answer = client.answer(false).await.unwrap();
    assert!(answer.whole && answer.body == expected);
    assert_eq!(server.told(|told| told.finished.len() == 1).await.finished[0].body_bytes, expected.len() as u64);
}

#[tokio::test]
async fn a_stored_body_that_is_wanted_back_is_let_go_of_by_slow_clients() {
    let body = Arc::new(StoredBody::new(&vec![Bytes::from(vec![0; 64 << 10]); 512]));
    let (kept, gone) = (Arc::clone(&body), Arc::downgrade(&body));
    let length = body.length();
    let answer = move || response(200, ResponseBody::Stored { body: Arc::clone(&kept), start: 0, end: length });
    let server = start(limits(), move |_, _, _| Handled::Ready(answer())).await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    client.until("\r\n\r\n").await.expect("a head");
    assert_eq!(gone.strong_count(), 3, "the test, the handler, the connection");
    body.revoke();
    assert!((client.rest().await.len() as u64) < length);
    let sent = server.told(|told| told.finished.len() == 1).await.finished[0];
    assert_eq!(sent.aborted, Some(BodyError::Detached));
    server.told(|told| told.ended == 1).await;
    assert_eq!(gone.strong_count(), 2);
}

// ---- request bodies ----

#[tokio::test]
async fn a_client_that_expects_100_gets_it_when_the_body_is_read_and_not_before() {
    let post = "POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let server = echo_server().await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.ask(post).await.head, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.ask("hello").await.text().ends_with("hello|"));

    let server = hello_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    let answer = client.ask(post).await;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert_eq!(client.ended().await, Ended::Closed);
}

/// Answers at once, with the body as it comes.
async fn streaming_echo_server(limits: Limits) -> Server {
    start(limits, |_, body, _| match body {
        RequestBody::Stream { length, stream } => Handled::Ready(response(200, ResponseBody::Stream { length, stream })),
        RequestBody::Empty | RequestBody::Full(_) => Handled::Ready(text("")),
    })
    .await
}

#[tokio::test]
async fn a_body_that_is_first_read_once_its_answer_began_is_taken_without_100() {
    let head = "POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let server = streaming_echo_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    client.send(head).await;
    let answer = client.until("\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    client.send("hello").await;
    assert_eq!(client.rest().await, b"hello");

    // One that sends nothing is not waited for longer than for any other body.
    let server = streaming_echo_server(Limits { body_timeout: Duration::from_millis(50), ..limits() }).await;
    let mut client = Client::connect(server.address).await;
    client.send(head).await;
    client.until("\r\n\r\n").await.unwrap();
    client.ended().await;
    let told = server.told(|told| told.ended == 1).await;
    assert_eq!(told.finished[0].aborted, Some(BodyError::Timeout));

    // One that leaves is noticed.
    let server = streaming_echo_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    client.send(head).await;
    client.until("\r\n\r\n").await.unwrap();
    drop(client);
    let told = server.told(|told| told.ended == 1).await;
    assert_eq!(told.finished[0].aborted, Some(BodyError::ClientLeft));
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    let server = hello_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    let inner = "GET /smuggled HTTP/1.1\r\n\r\n";
    client.send(format!("POST /outer HTTP/1.1\r\nContent-Length: {}\r\n\r\n{inner}{GET}", inner.len())).await;
    assert_eq!(client.answer(false).await.unwrap().text(), "hello");
    assert_eq!(client.answer(false).await.unwrap().text(), "hello");
    assert_eq!(server.told(|told| told.handled.len() >= 2).await.handled, ["POST /outer", "GET /"]);

    // Too long to be thrown away: the answer says so, and arrives though the client goes on sending.
    let mut client = Client::connect(server.address).await;
    client.send("POST /long HTTP/1.1\r\nContent-Length: 300000\r\n\r\n").await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!((answer.text(), answer.field("connection")), ("hello", Some("close")));
    client.send(vec![b'x'; 100_000]).await;
    assert_eq!(client.ended().await, Ended::Closed);
}

#[tokio::test]
async fn answer_and_request_body_flow_at_the_same_time() {
    let server = start(limits(), |_, mut body, _| {
        let (feed, fed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(chunk) = next(&mut body).await {
                _ = feed.send(chunk);
            }
        });
        Handled::Ready(response(200, ResponseBody::Stream { length: None, stream: Box::pin(Fed(fed)) }))
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.is_some());
    for round in 0..50 {
        let piece = format!("round {round:03}");
        client.send(format!("9\r\n{piece}\r\n")).await;
        assert_eq!(client.until(&format!("{piece}\r\n")).await.unwrap(), format!("9\r\n{piece}\r\n"));
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.until("0\r\n\r\n").await.unwrap(), "0\r\n\r\n");
    assert_eq!(client.ask("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await.text(), "");
}

#[tokio::test]
async fn a_large_upload_arrives_whole_through_a_slow_reader() {
    let server = start(limits(), |_, mut body, _| {
        later(async move {
            let mut sum = 0;
            while let Some(Ok(Chunk::Data(data))) = next(&mut body).await {
                sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                tokio::task::yield_now().await;
            }
            text(sum.to_string())
        })
    })
    .await;
    let mut client = Client::connect(server.address).await;
    let upload = vec![3u8; 8 << 20];
    client.send(format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", upload.len())).await;
    client.send(&upload).await;
    assert_eq!(client.answer(false).await.unwrap().text(), (3 * upload.len()).to_string());
}

const REFUSED: &str = "GET / HTTP/1.2\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_closing_connection_listens_for_two_seconds_to_a_client_that_says_nothing() {
    let server = hello_server(limits()).await;
    let (mut far, connection) = connected(&server, limits(), 1 << 16);
    far.write_all(REFUSED.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut answer = String::new();
    far.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
    assert_eq!(began.elapsed(), Duration::ZERO, "the end is told at once");
    connection.await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_closing_connection_takes_so_many_bytes_of_a_client_that_goes_on() {
    const ROOM: usize = 1024;
    let server = hello_server(limits()).await;
    let (mut far, connection) = connected(&server, limits(), ROOM);
    far.write_all(REFUSED.as_bytes()).await.unwrap();
    let (began, mut sent) = (Instant::now(), 0);
    while let Ok(written) = far.write(&[b'x'; ROOM]).await {
        sent += written;
    }
    connection.await.unwrap();
    assert!((256 << 10..=(256 << 10) + 2 * ROOM + 4096).contains(&sent), "{sent} bytes");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_client_that_goes_on_with_a_refused_upload_gets_its_answer_and_is_ended() {
    for announced in ["Content-Length: 67108865\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4000001\r\n"] {
        let server = echo_server().await;
        let mut client = Client::connect(server.address).await;
        client.send(format!("POST / HTTP/1.1\r\n{announced}")).await;
        client.send(vec![b'x'; 100_000]).await;
        let answer = client.answer(false).await.unwrap();
        assert_eq!((answer.status, answer.whole, answer.field("connection")), (413, true, Some("close")), "{announced}");
        // Far less than it announced: the connection is gone before.
        let mut sent = 0;
        while sent < 64 << 20 && client.stream.write_all(&[b'x'; 1 << 16]).await.is_ok() {
            sent += 1 << 16;
        }
        assert!(sent < 32 << 20, "{sent} bytes");
        assert_eq!(server.told(|told| told.ended == 1).await.refused, [Refusal { status: 413, reason: "body-bytes" }]);
    }
}

#[tokio::test]
async fn a_request_cut_short_is_an_error_and_is_answered() {
    for (rest, reason) in CUT_SHORT {
        let server = echo_server().await;
        let mut client = Client::connect(server.address).await;
        client.send(format!("POST / HTTP/1.1\r\n{rest}")).await;
        client.finish_sending().await;
        assert_eq!(client.answer(false).await.unwrap().status, 400);
        assert_eq!(server.told(|told| told.ended == 1).await.refused, [Refusal { status: 400, reason }]);
    }
}

// ---- interim responses, upgrades ----

#[tokio::test]
async fn interim_responses_go_before_the_final_one_and_to_http_1_1_only() {
    let server = start(limits(), |_, _, interim| {
        let sender = interim.sender();
        later(async move {
            for link in ["</a>", "</b>"] {
                let mut fields = Fields::new();
                fields.push("link", link).unwrap();
                _ = sender.try_send(Interim { status: StatusCode::from_u16(103).unwrap(), fields });
            }
            text("final")
        })
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    for expected in ["HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n"] {
        assert_eq!(client.answer(false).await.unwrap().head, expected);
    }
    assert_eq!(client.answer(false).await.unwrap().text(), "final");

    let mut client = Client::connect(server.address).await;
    assert_eq!(client.ask("GET / HTTP/1.0\r\n\r\n").await.text(), "final");
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";

#[tokio::test]
async fn after_101_bytes_pass_both_ways_until_both_sides_ended() {
    let (near, far) = tokio::io::duplex(4096);
    let near = Mutex::new(Some(near));
    let server =
        start(limits(), move |_, _, _| Handled::Ready(response(101, ResponseBody::Tunnel(Box::new(near.lock().take().unwrap()))))).await;
    let mut client = Client::connect(server.address).await;
    client.send(format!("{UPGRADE}early ")).await;
    assert_eq!(client.until("\r\n\r\n").await.unwrap(), "HTTP/1.1 101 Switching Protocols\r\nx-test: yes\r\nconnection: upgrade\r\n\r\n");
    client.send("later").await;
    client.finish_sending().await;
    let (mut reading, mut writing) = tokio::io::split(far);
    let mut heard = String::new();
    reading.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "early later");
    // The other direction goes on after the first ended.
    writing.write_all(b"goodbye").await.unwrap();
    writing.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"goodbye");
    assert_eq!(server.told(|told| told.finished.len() == 1).await.finished[0].body_bytes, 7);
}

#[tokio::test]
async fn bytes_sent_ahead_of_a_declined_upgrade_are_not_read_as_http() {
    let server = hello_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    client.send(format!("{UPGRADE}GET /smuggled HTTP/1.1\r\n\r\n")).await;
    assert_eq!(client.answer(false).await.unwrap().text(), "hello");
    assert_eq!(client.ended().await, Ended::Closed);
    assert_eq!(server.told(|told| told.ended == 1).await.handled, ["GET /chat"]);

    let mut client = Client::connect(server.address).await;
    assert_eq!(client.ask(UPGRADE).await.text(), "hello");
    assert_eq!(client.ask(GET).await.text(), "hello");
}

#[tokio::test]
async fn clients_that_offer_h2c_keep_their_connection_and_may_go_on_at_once() {
    let offer = "GET /offer HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let server = hello_server(limits()).await;
    let mut client = Client::connect(server.address).await;
    client.send(format!("{offer}{offer}{GET}")).await;
    for _ in 0..3 {
        let answer = client.answer(false).await.unwrap();
        assert_eq!((answer.text(), answer.field("connection")), ("hello", None));
    }
    assert_eq!(client.ask(GET).await.text(), "hello");
    assert_eq!(server.told(|told| told.finished.len() == 4).await.handled, ["GET /offer", "GET /offer", "GET /", "GET /"]);
}

#[tokio::test]
async fn what_begins_in_an_ignored_protocol_is_never_read_as_a_request() {
    for (protocols, bytes, status) in [
        ("h2c", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", Some(505)),
        ("TLS/1.2", "\x16\x03\x01\x02\0GET /smuggled HTTP/1.1\r\n\r\n", Some(400)),
        ("h2c, chat", "GET /smuggled HTTP/1.1\r\n\r\n", None),
        ("h2c, \"", "GET /smuggled HTTP/1.1\r\n\r\n", None),
    ] {
        let server = hello_server(limits()).await;
        let mut client = Client::connect(server.address).await;
        client.send(format!("GET /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: {protocols}\r\n\r\n{bytes}")).await;
        assert_eq!(client.answer(false).await.unwrap().text(), "hello", "{protocols}");
        if let Some(status) = status {
            assert_eq!(client.answer(false).await.unwrap().status, status, "{protocols}");
        }
        assert_eq!(client.ended().await, Ended::Closed, "{protocols}");
        drop(client); // the server listens on for as long as it stays
        assert_eq!(server.told(|told| told.ended == 1).await.handled, ["GET /a"], "{protocols}");
    }
}

// ---- clients that leave, stall, or find us leaving ----

#[tokio::test]
async fn a_client_that_closed_its_sending_side_is_still_answered() {
    let (release, released) = oneshot::channel::<()>();
    let released = Mutex::new(Some(released));
    let server = start(limits(), move |_, _, _| {
        let released = released.lock().take().unwrap();
        later(async move {
            _ = released.await;
            text("still")
        })
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    client.finish_sending().await;
    server.told(|told| told.handled.len() == 1).await;
    release.send(()).unwrap();
    assert_eq!(client.answer(false).await.unwrap().text(), "still");
    assert_eq!(client.ended().await, Ended::Closed);
}

#[tokio::test]
async fn a_client_that_resets_the_connection_cancels_its_request() {
    let (alive, mut cancelled) = mpsc::channel::<()>(1);
    let server = start(limits(), move |_, _, _| {
        let alive = alive.clone();
        later(async move {
            let _alive = alive;
            std::future::pending().await
        })
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    server.told(|told| told.handled.len() == 1).await;
    client.reset();
    let told = server.told(|told| told.ended == 1).await;
    assert_eq!(told.refused, [Refusal { status: 499, reason: "client-left" }]);
    drop(server);
    // Nothing but the script holds the sender now, and the script is gone with the server.
    while cancelled.recv().await.is_some() {}
}

#[tokio::test]
async fn slow_heads_and_bodies_get_408_and_idle_connections_a_quiet_close() {
    for (limits, bytes, status, reason) in stalls() {
        let server = start(limits, |head, body, _| echo(head, body)).await;
        let mut client = Client::connect(server.address).await;
        assert_eq!(client.ask(bytes).await.status, status);
        assert_eq!(client.ended().await, Ended::Closed);
        assert_eq!(server.told(|told| !told.refused.is_empty()).await.refused, [Refusal { status, reason }]);
    }
    let server = hello_server(Limits { idle_timeout: Duration::from_millis(30), ..limits() }).await;
    // An empty line behind a request is nothing to complain about.
    for (ended, request) in [GET.to_owned(), format!("{GET}\r\n")].iter().enumerate() {
        let (mut client, answer) = patient(|| Client::connect(server.address), request).await;
        assert_eq!(answer.text(), "hello");
        assert_eq!(client.ended().await, Ended::Closed);
        assert!(server.told(|told| told.ended > ended).await.refused.is_empty());
    }
}

/// Sends `opening` and then `drip` every so often by a paused clock until the connection answers; after how many seconds.
async fn dripped_until_refused(limits: Limits, opening: &str, drip: &str, every: Duration) -> (u64, String) {
    let server = start(limits.clone(), |head, body, _| echo(head, body)).await;
    let began = Instant::now();
    let (mut far, _) = connected(&server, limits, 1 << 16);
    far.write_all(opening.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while tokio::time::timeout(every, far.read_buf(&mut answer)).await.is_err() {
        far.write_all(drip.as_bytes()).await.unwrap();
    }
    let after = began.elapsed().as_secs();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    let refused = server.told(|told| !told.refused.is_empty()).await.refused;
    assert_eq!(refused.len(), 1, "{refused:?}");
    (after, refused[0].reason.to_owned())
}

#[tokio::test(start_paused = true)]
async fn heads_and_bodies_that_drip_come_to_an_end() {
    let seconds = Duration::from_secs;
    let limits = Limits { header_timeout: seconds(10), body_timeout: seconds(20), body_rate: 100, ..limits() };
    let dripped = async |opening: &str, drip: &str| dripped_until_refused(limits.clone(), opening, drip, seconds(1)).await;
    assert_eq!(dripped("GET / HTTP/1.1\r\nHost: a\r\nX: ", "y").await, (10, "header-timeout".into()));
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(dripped(&format!("{post}Content-Length: 9999\r\n\r\n"), "y").await, (20, TOO_SLOW.into()));
    assert_eq!(dripped(&format!("{post}Transfer-Encoding: chunked\r\n\r\n"), "1\r\ny\r\n").await, (21, TOO_SLOW.into()));
    // Half as fast as it has to be, and so allowed twice as long.
    assert_eq!(dripped(&format!("{post}Content-Length: 9999\r\n\r\n"), &"y".repeat(50)).await, (39, TOO_SLOW.into()));
    // More often than the last look at a socket lasts.
    let fast = Limits { body_rate: 100 << 10, ..limits.clone() };
    let often = dripped_until_refused(fast, &format!("{post}Content-Length: 9999\r\n\r\n"), "y", LAST_LOOK / 2).await;
    assert_eq!(often, (20, TOO_SLOW.into()));
}

#[tokio::test(start_paused = true)]
async fn a_body_at_the_rate_may_take_its_time() {
    let slow = Limits { body_timeout: Duration::from_secs(20), body_rate: 100, ..limits() };
    let server = start(slow.clone(), |head, body, _| echo(head, body)).await;
    let (mut far, _) = connected(&server, slow, 1 << 16);
    far.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n").await.unwrap();
    for _ in 0..60 {
        far.write_all(&[b'y'; 150]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await; // of the paused clock
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"y|") {
        assert!(far.read_buf(&mut answer).await.unwrap() > 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_connection_that_idled_long_enough_to_give_its_buffers_back_goes_on() {
    let server = start(limits(), |head, body, _| echo(head, body)).await;
    tokio::time::pause();
    let (mut far, connection) = connected(&server, limits(), 1 << 16);
    for _ in 0..2 {
        far.write_all(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hi|") {
            far.read_buf(&mut answer).await.unwrap();
        }
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    tokio::time::advance(Duration::from_secs(61)).await;
    connection.await.unwrap();
    assert_eq!(far.read_buf(&mut Vec::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_dropped() {
    let server = start(Limits { write_timeout: Duration::from_millis(50), ..limits() }, |_, _, _| {
        Handled::Ready(response(200, ResponseBody::Full(Bytes::from(vec![0; 32 << 20]))))
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.send(GET).await;
    let told = server.told(|told| told.ended == 1).await;
    assert_eq!(told.finished[0].aborted, Some(BodyError::Detached));
    assert!(!client.answer(false).await.unwrap().whole);
}

#[tokio::test]
async fn draining_closes_idle_connections_and_answers_busy_ones_with_close() {
    let (release, released) = oneshot::channel::<()>();
    let released = Mutex::new(Some(released));
    let server = start(limits(), move |head, _, _| match &head.target[..] {
        b"/busy" => {
            let released = released.lock().take().unwrap();
            later(async move {
                _ = released.await;
                text("busy")
            })
        }
        _ => Handled::Ready(text("idle")),
    })
    .await;
    let (mut idle, mut busy) = (Client::connect(server.address).await, Client::connect(server.address).await);
    assert_eq!(idle.ask(GET).await.text(), "idle");
    busy.send("GET /busy HTTP/1.1\r\n\r\n").await;
    server.told(|told| told.handled.len() == 2).await;
    server.drain.send(true).unwrap();
    assert_eq!(idle.ended().await, Ended::Closed);
    release.send(()).unwrap();
    let answer = busy.answer(false).await.unwrap();
    assert_eq!((answer.text(), answer.field("connection")), ("busy", Some("close")));
    assert_eq!(busy.ended().await, Ended::Closed);
}

#[tokio::test]
async fn a_panic_fails_its_request_and_nothing_else() {
    let server = start(limits(), |head, _, _| match &head.target[..] {
        b"/at-once" => panic!("scripted"),
        b"/later" => later(async { panic!("scripted") }),
        _ => Handled::Ready(text("hello")),
    })
    .await;
    for target in ["/at-once", "/later"] {
        let mut client = Client::connect(server.address).await;
        let answer: Answer = client.ask(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("connection")), (500, Some("close")));
    }
    assert_eq!(Client::connect(server.address).await.ask(GET).await.text(), "hello");
    assert_eq!(server.handler.told.borrow().refused, [Refusal { status: 500, reason: "panic" }; 2]);
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let server = hello_server(limits()).await;
    let (stream, _far) = tokio::io::duplex(64);
    let drain = watch::channel(false).1;
    let connection = serve(stream, peer(server.address, server.address), Arc::new(limits()), Arc::clone(&server.handler), drain);
    let size = std::mem::size_of_val(&connection);
    // With its timer and drain signal, and without the buffers that it gives back, well below 4 KiB.
    assert!(size <= 1024, "{size} bytes");
}
