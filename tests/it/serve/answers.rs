//! Broken and hostile answers of upstreams: what the client gets, whether it is stored, whether the connection is used
//! again. The rows of the table "Answers of upstreams" in `docs/http1.md`, on bytes through the running binary.

use super::*;
use crate::support::origin::{Gate, Step};
use std::collections::HashMap;

/// One worker, so that there is one shelf of idle connections.
const ONE_WORKER: &str = "[server]\nworkers = 1\n";

/// How the origin's connection goes on after its bytes.
#[derive(Clone, Copy)]
enum Then {
    Open,
    Fin,
}

/// What the client gets.
enum Gets {
    /// A whole answer with this body.
    Whole(u16, &'static str),
    /// 502 of our own.
    Refused,
    /// The head, and a body that never looks whole.
    Cut,
}
use Gets::{Cut, Refused, Whole};

struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    then: Then,
    gets: Gets,
    stored: bool,
    pooled: bool,
}

fn row(name: &'static str, bytes: impl Into<Vec<u8>>, then: Then, gets: Gets, stored: bool, pooled: bool) -> Row {
    Row { name, bytes: bytes.into(), then, gets, stored, pooled }
}

/// A head that may be stored, and what comes behind it.
fn ok(lines: &str, rest: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n{lines}\r\n{rest}").into_bytes()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const TWO: &str = "Content-Length: 2\r\n";

fn framing() -> Vec<Row> {
    let refused = |name, lines: &str| row(name, ok(lines, "ok"), Then::Open, Refused, false, false);
    vec![
        row("length", ok(TWO, "ok"), Then::Open, Whole(200, "ok"), true, true),
        row("length-0", ok("Content-Length: 0\r\n", ""), Then::Open, Whole(200, ""), true, true),
        row("length-repeated", ok("Content-Length: 2\r\nContent-Length: 2, 02\r\n", "ok"), Then::Open, Whole(200, "ok"), true, true),
        refused("length-contradicts", "Content-Length: 2\r\nContent-Length: 3\r\n"),
        refused("length-list-contradicts", "Content-Length: 2, 3\r\n"),
        refused("length-signed", "Content-Length: +2\r\n"),
        refused("length-empty", "Content-Length:\r\n"),
        refused("length-hex", "Content-Length: 0x2\r\n"),
        refused("length-overflow", "Content-Length: 99999999999999999999\r\n"),
        refused("length-and-coding", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        refused("coding-gzip", "Transfer-Encoding: gzip, chunked\r\n"),
        refused("coding-twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        refused("coding-after-chunked", "Transfer-Encoding: chunked, word\r\n"),
        row("coding-in-1.0", format!("HTTP/1.0 200 OK\r\n{CHUNKED}\r\n2\r\nok\r\n0\r\n\r\n"), Then::Fin, Refused, false, false),
        row("coding-unknown", ok("Transfer-Encoding: word\r\n", "ok"), Then::Fin, Whole(200, "ok"), true, false),
        row("close-delimited", ok("", "ok"), Then::Fin, Whole(200, "ok"), true, false),
        row("chunked", ok(CHUNKED, "2;a=b\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"), Then::Open, Whole(200, "ok"), true, true),
        row(
            "version-1.0",
            "HTTP/1.0 200 OK\r\nCache-Control: max-age=600\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            Then::Open,
            Whole(200, "ok"),
            true,
            false,
        ),
        row("says-close", ok("Content-Length: 2\r\nConnection: close\r\n", "ok"), Then::Open, Whole(200, "ok"), true, false),
        row("closes-soon", ok("Content-Length: 2\r\nKeep-Alive: timeout=1\r\n", "ok"), Then::Open, Whole(200, "ok"), true, false),
    ]
}

fn heads() -> Vec<Row> {
    let refused = |name, bytes: &str| row(name, bytes, Then::Open, Refused, false, false);
    let line = |name, line: &str| row(name, ok(&format!("{line}\r\n{TWO}"), "ok"), Then::Open, Refused, false, false);
    vec![
        refused("http-0.9", "<html>ok</html>\r\n\r\n"),
        refused("status-letters", "HTTP/1.1 2xx OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("status-short", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("status-long", "HTTP/1.1 1000 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("status-bare-cr", "HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok"),
        refused("status-low", "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("status-spaces", "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("version-2", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("version-1.2", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("leading-line", "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        refused("bare-lf", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
        line("bare-lf-in-line", "A: b\nC: d"),
        line("bare-cr", "A: b\rc"),
        line("nul", "A: b\0c"),
        line("control", "A: b\x01c"),
        line("obs-fold", "A: b\r\n c"),
        line("space-before-colon", "A : b"),
        line("no-name", ": b"),
        line("no-colon", "A"),
        row("many-lines", ok(&format!("{}{TWO}", "A: b\r\n".repeat(300)), "ok"), Then::Open, Refused, false, false),
        row("long-head", ok(&format!("A: {}\r\n{TWO}", "b".repeat(70_000)), "ok"), Then::Open, Refused, false, false),
        row("unasked-101", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", Then::Open, Refused, false, false),
        row(
            "unasked-206",
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
            Then::Open,
            Refused,
            false,
            false,
        ),
        refused("unasked-416", "HTTP/1.1 416 No\r\nContent-Range: bytes */9\r\nContent-Length: 2\r\n\r\nno"),
        row("head-cut", "HTTP/1.1 200 OK\r\nContent-Le", Then::Fin, Refused, false, false),
        row("interim-then-nothing", "HTTP/1.1 103 Early\r\n\r\n", Then::Fin, Refused, false, false),
        row(
            "interim",
            [b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n", &ok(TWO, "ok")[..]].concat(),
            Then::Open,
            Whole(200, "ok"),
            true,
            true,
        ),
        row(
            "interim-body",
            [b"HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nok", &ok(TWO, "ok")[..]].concat(),
            Then::Open,
            Refused,
            false,
            false,
        ),
        row("interim-many", [&b"HTTP/1.1 102 P\r\n\r\n".repeat(17)[..], &ok(TWO, "ok")].concat(), Then::Open, Refused, false, false),
        row(
            "interim-long",
            [&format!("HTTP/1.1 103 Early\r\nA: {}\r\n\r\n", "b".repeat(40_000)).into_bytes().repeat(2)[..], &ok(TWO, "ok")].concat(),
            Then::Open,
            Refused,
            false,
            false,
        ),
    ]
}

fn bodies() -> Vec<Row> {
    let cut = |name, rest: &str, then| row(name, ok(CHUNKED, &format!("2\r\nok\r\n{rest}")), then, Cut, false, false);
    vec![
        row("length-cut", ok("Content-Length: 9\r\n", "ok"), Then::Fin, Cut, false, false),
        cut("chunked-cut", "", Then::Fin),
        cut("chunk-cut", "9\r\nok", Then::Fin),
        cut("last-chunk-cut", "0\r\n", Then::Fin),
        cut("chunk-size", "zz\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-empty", "\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-signed", "+2\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-hex", "0x2\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-space", "2 \r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-lf", "2\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-size-long", "00000000000000002\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-data", "2\r\nokok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-extension", "2; a\r\nok\r\n0\r\n\r\n", Then::Open),
        cut("chunk-extensions-long", &format!("2;{}\r\nok\r\n0\r\n\r\n", "a".repeat(5000)), Then::Open),
        cut("trailer-fold", "0\r\nA: b\r\n c\r\n\r\n", Then::Open),
        cut("trailers-long", &format!("0\r\nA: {}\r\n\r\n", "b".repeat(9000)), Then::Open),
        cut("trailers-many", &format!("0\r\n{}\r\n", "A: b\r\n".repeat(201)), Then::Open),
        row("surplus", ok(TWO, "okHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), Then::Open, Whole(200, "ok"), true, false),
        row("surplus-chunked", ok(CHUNKED, "2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), Then::Open, Whole(200, "ok"), true, false),
        row(
            "body-of-204",
            "HTTP/1.1 204 No\r\nCache-Control: no-store\r\nContent-Length: 4\r\n\r\nevil",
            Then::Open,
            Whole(204, ""),
            false,
            false,
        ),
    ]
}

/// What became of a row.
#[derive(Debug, PartialEq, Eq)]
struct Became {
    status: u16,
    body: String,
    whole: bool,
    stored: bool,
    pooled: bool,
}

impl Row {
    /// Whether that is what the row says.
    fn allows(&self, became: &Became) -> bool {
        let Became { status, body, whole, stored, pooled } = became;
        let gets = match self.gets {
            Whole(wanted, text) => (*status, &**body, *whole) == (wanted, text, true),
            Refused => (*status, *whole) == (502, true),
            Cut => (*status, *whole) == (200, false),
        };
        gets && (*stored, *pooled) == (self.stored, self.pooled)
    }
}

/// The answer behind the interim ones that may have been relayed before it proved malformed.
async fn final_answer(served: &Served, path: &str) -> Answer {
    let mut client = served.client().await;
    client.send(request("GET", path, "", "")).await;
    loop {
        let answer = client.answer(false).await.expect(path);
        if answer.status >= 200 {
            return answer;
        }
    }
}

/// Asks for a row, and then for something good: whoever comes next is answered with what was asked for, in any case.
async fn became(served: &Served, row: &Row) -> Became {
    let path = format!("/{}", row.name);
    let answer = final_answer(served, &path).await;
    if row.stored && answer.status < 500 {
        served.until_stored(&path).await;
    }
    let stored = served.explain(&path).await["stored"] != Value::Null;
    let next = format!("/next-after-{}", row.name);
    let good = served.get(&next).await;
    assert_eq!((good.status, good.text(), good.whole), (200, "next", true), "{next}");
    assert_eq!(served.origin.count(&path), 1, "{path}");
    let pooled = served.last(&next).connection == served.last(&path).connection;
    Became { status: answer.status, body: String::from_utf8_lossy(&answer.body).into_owned(), whole: answer.whole, stored, pooled }
}

fn rows() -> Vec<Row> {
    framing().into_iter().chain(heads()).chain(bodies()).collect()
}

/// Serves every row at its name.
fn serve_rows() -> Served {
    let scripts: HashMap<String, (Vec<u8>, Then)> =
        rows().into_iter().map(|row| (format!("/{}", row.name), (row.bytes, row.then))).collect();
    serve_with(ONE_WORKER, move |request| match scripts.get(&request.path) {
        Some((bytes, Then::Fin)) => Script::raw(bytes.clone()).then(Step::Close),
        Some((bytes, Then::Open)) => Script::raw(bytes.clone()),
        None => Script::ok("next").header("Cache-Control", "no-store"),
    })
}

#[tokio::test]
async fn no_malformed_answer_is_whole_or_stored_or_stays_in_the_pool() {
    let served = serve_rows();
    for row in rows() {
        let became = became(&served, &row).await;
        assert!(row.allows(&became), "{}: {became:?}", row.name);
    }
    // What each bound and each end of a connection is counted as.
    for (bound, rows) in [("upstream_header_bytes", 1), ("upstream_header_count", 1), ("upstream_interim", 2)] {
        assert_eq!(served.bound(bound).await, rows, "{bound}");
    }
    for (reason, rows) in [("surplus", 3), ("early", 0)] {
        assert_eq!(served.dropped(reason).await, rows, "{reason}");
    }
}

impl Served {
    /// How many connections to the upstream were not used again for this.
    async fn dropped(&self, reason: &str) -> u64 {
        self.metric(&dropped(reason)).await
    }
}

fn dropped(reason: &str) -> String {
    format!("tiercel_upstream_connections_dropped_total{{reason=\"{reason}\",upstream=\"default\"}}")
}

#[tokio::test]
async fn bytes_behind_a_304_are_no_body_and_no_answer() {
    let not_modified = "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nContent-Length: 4\r\n\r\nevil";
    let served = serve_with(ONE_WORKER, move |request| match request.path.as_str() {
        "/a" => confirm_or(request, Script::raw(not_modified), stale("body")),
        _ => Script::ok("next").header("Cache-Control", "no-store"),
    });
    assert_eq!(served.get("/a").await.text(), "body");
    served.until_stored("/a").await;
    let confirmed = served.get("/a").await;
    assert_eq!((confirmed.status, confirmed.text(), confirmed.field("content-length")), (200, "body", Some("4")));
    assert_eq!(served.last("/a").field("if-none-match"), Some("\"v1\""));
    assert_eq!(served.dropped("surplus").await, 1);
    assert_eq!(served.get("/b").await.text(), "next");
    assert_ne!(served.last("/a").connection, served.last("/b").connection);
}

#[tokio::test]
async fn trailer_fields_that_frame_a_message_are_dropped() {
    let trailers = "Content-Length: 9\r\nX-Sum: 1\r\nTransfer-Encoding: gzip\r\nHost: evil\r\nTrailer: A\r\nConnection: close\r\n";
    let bytes = ok(CHUNKED, &format!("2\r\nok\r\n0\r\n{trailers}\r\n"));
    let served = serve_with(ONE_WORKER, move |_| Script::raw(bytes.clone()));
    let answer = served.get_with("/a", "TE: trailers\r\nConnection: TE\r\n").await;
    assert_eq!((answer.text(), answer.whole, &*answer.trailers), ("ok", true, "x-sum: 1\r\n"));
    served.get("/b").await;
    assert_eq!(served.last("/a").connection, served.last("/b").connection, "the answer is whole and the connection good");
}

#[tokio::test]
async fn a_connection_that_the_origin_closed_while_idle_is_counted() {
    let gate = Gate::new();
    let served = serve_with(ONE_WORKER, {
        let gate = gate.clone();
        move |_| Script::ok("ok").header("Cache-Control", "no-store").then(Step::Wait(gate.clone())).then(Step::Close)
    });
    assert_eq!(served.get("/a").await.text(), "ok");
    assert_eq!(served.dropped("closed").await, 0);
    gate.open();
    served.until_metric(&dropped("closed"), 1).await;
}

#[tokio::test]
async fn a_connection_whose_answer_came_before_the_request_body_was_sent_is_counted() {
    let gate = Gate::new();
    let origin = Origin::start_at_head({
        let gate = gate.clone();
        move |_| Script::status(413, "too much").then(Step::Wait(gate.clone()))
    });
    let served = serve_origin(ONE_WORKER, origin);
    let mut client = served.client().await;
    client.send(format!("{}begin", request("POST", "/a", "Content-Length: 1000000\r\n", ""))).await;
    let answer = client.answer(false).await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (413, "too much"));
    served.until_metric(&dropped("early"), 1).await;
    gate.open();
}

#[tokio::test]
async fn an_answer_cut_off_by_a_reset_is_neither_whole_nor_stored() {
    for lines in ["", "Content-Length: 9\r\n", CHUNKED, "Transfer-Encoding: word\r\n"] {
        let gate = Gate::new();
        let begun = if lines == CHUNKED { "2\r\nok\r\n" } else { "ok" };
        let served = serve_with(ONE_WORKER, {
            let (gate, bytes) = (gate.clone(), ok(lines, begun));
            move |_| Script::raw(bytes.clone()).then(Step::Wait(gate.clone())).then(Step::Reset)
        });
        let mut client = served.client().await;
        client.send(request("GET", "/a", "", "")).await;
        let heard = client.until("ok").await.expect("the head and what came of the body");
        assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
        gate.open();
        let rest = client.rest().await;
        let length = if lines.contains('9') { "content-length: 9" } else { "transfer-encoding: chunked" };
        assert!(heard.contains(length) && !rest.ends_with(b"0\r\n\r\n") && rest.len() < 7, "{lines:?}: {heard}{rest:?}");
        assert_eq!(served.explain("/a").await["stored"], Value::Null);
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let served = serve_with(ONE_WORKER, |request| match request.method.as_str() {
        "HEAD" => Script::raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        _ => Script::ok("next").header("Cache-Control", "no-store"),
    });
    let mut client = served.client().await;
    client.send(request("HEAD", "/a", "", "")).await;
    let answer = client.answer(true).await.expect("an answer");
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("4")));
    assert_eq!(served.get("/b").await.text(), "next");
    assert_ne!(served.last("/a").connection, served.last("/b").connection);
}

#[tokio::test]
async fn bytes_that_come_while_a_connection_is_idle_are_never_an_answer() {
    let gate = Gate::new();
    let served = serve_with(ONE_WORKER, {
        let gate = gate.clone();
        move |request| match request.path.as_str() {
            "/first" => Script::ok("first")
                .header("Cache-Control", "no-store")
                .then(Step::Wait(gate.clone()))
                .then(Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec())),
            _ => Script::ok("second").header("Cache-Control", "no-store"),
        }
    });
    assert_eq!(served.get("/first").await.text(), "first");
    gate.open();
    served.until_metric(&dropped("spoke"), 1).await;
    assert_eq!(served.get("/second").await.text(), "second");
    assert_ne!(served.last("/first").connection, served.last("/second").connection);
}

#[tokio::test]
async fn an_answer_of_a_part_is_taken_only_where_the_range_went_to_the_origin() {
    let config = format!("{ONE_WORKER}[sites.shop]\n[[sites.shop.routes]]\npath = \"/past/\"\ncache.enabled = false\n");
    let served = serve_with(&config, |request| {
        assert!(request.field("range").is_none() || request.path.starts_with("/past/"));
        Script::raw("HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok")
    });
    let answer = served.get_with("/past/a", "Range: bytes=0-1\r\n").await;
    assert_eq!((answer.status, answer.text(), answer.field("content-range")), (206, "ok", Some("bytes 0-1/9")));
    assert_eq!(served.get_with("/cached", "Range: bytes=0-1\r\n").await.status, 502);
    assert_eq!(served.get("/past/a").await.status, 502);
}
