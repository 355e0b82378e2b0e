//! Broken and hostile answers of upstreams: what the client gets, whether it is stored, whether the connection is used
//! again. The rows of the table "Answers of upstreams" in `docs/http1.md`, on bytes through the running binary, with our own
//! codec and with hyper's client.

use super::*;
use crate::support::document::rows_of;
use crate::support::origin::{Gate, Step};
use crate::upstream::{codec_settings, fails, get};
use std::collections::HashMap;
use std::sync::Arc;
use tiercel::config::settings::{self, UpstreamCodec};
use tiercel::observe::metrics::Metrics;
use tiercel::upstream::{FetchError, Upstream};

/// One worker, so that there is one shelf of idle connections.
const ONE_WORKER: &str = "[server]\nworkers = 1\n";

/// How the origin's connection goes on after its bytes.
#[derive(Clone, Copy)]
enum Then {
    Open,
    Fin,
}
use Then::{Fin, Open};

/// What the client gets.
#[derive(Clone, Copy)]
enum Gets {
    /// A whole answer with this body.
    Whole(u16, &'static str),
    /// 502 of our own, for this reason, or with this error.
    Refused(&'static str),
    /// The head, and a body that never looks whole.
    Cut,
}
use Gets::{Cut, Refused, Whole};

/// Who holds to it where hyper's client reads the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Hyper,
    /// Our check on what hyper hands over.
    Check,
    /// Nobody: the answer is whole, with this body, stored, and its connection used again.
    Nobody(&'static str),
}
use By::{Check, Hyper, Nobody};

impl By {
    /// As the document says it.
    const fn word(self) -> &'static str {
        match self {
            Hyper => "hyper",
            Check => "our check",
            Nobody(_) => "taken:",
        }
    }
}

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    then: Then,
    gets: Gets,
    stored: bool,
    pooled: bool,
    by: By,
}

/// A row of the document, which begins so, and its cases.
struct Row {
    begins: &'static str,
    cases: Vec<Case>,
}

fn row(begins: &'static str, cases: impl Into<Vec<Case>>) -> Row {
    Row { begins, cases: cases.into() }
}

/// A row with tests of its own: below, or where it says.
fn elsewhere(begins: &'static str) -> Row {
    row(begins, [])
}

fn kept(name: &'static str, bytes: impl Into<Vec<u8>>, body: &'static str, by: By) -> Case {
    Case { name, bytes: bytes.into(), then: Open, gets: Whole(200, body), stored: true, pooled: true, by }
}

fn closed(name: &'static str, bytes: impl Into<Vec<u8>>, then: Then, by: By) -> Case {
    Case { then, pooled: false, ..kept(name, bytes, "ok", by) }
}

fn refused(name: &'static str, bytes: impl Into<Vec<u8>>, reason: &'static str, by: By) -> Case {
    Case { name, bytes: bytes.into(), then: Open, gets: Refused(reason), stored: false, pooled: false, by }
}

/// Refused for these lines of a head that is good otherwise.
fn line(name: &'static str, lines: &str, reason: &'static str, by: By) -> Case {
    refused(name, ok(&format!("{lines}\r\n{TWO}"), "ok"), reason, by)
}

/// Cut off after a good chunk.
fn cut(name: &'static str, rest: &str, then: Then, by: By) -> Case {
    Case { then, gets: Cut, ..refused(name, ok(CHUNKED, &format!("2\r\nok\r\n{rest}")), "", by) }
}

/// A head that may be stored, and what comes behind it.
fn ok(lines: &str, rest: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n{lines}\r\n{rest}").into_bytes()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const TWO: &str = "Content-Length: 2\r\n";

/// Errors of RFC 9209 that stand for a reason.
const TOO_LARGE: &str = "http_response_header_section_size";
const INCOMPLETE: &str = "http_response_incomplete";

/// The table "Answers of upstreams", in its order.
fn table() -> Vec<Row> {
    [framing(), heads(), interims(), bodies(), connections()].into_iter().flatten().collect()
}

fn framing() -> Vec<Row> {
    let lines = |name, lines: &str, reason, by| refused(name, ok(lines, "ok"), reason, by);
    let version_1_0 = |lines: &str, rest: &str| format!("HTTP/1.0 200 OK\r\nCache-Control: max-age=600\r\n{lines}\r\n{rest}");
    vec![
        row(
            "Content-Length empty",
            [
                lines("length-signed", "Content-Length: +2\r\n", "content-length", Hyper),
                lines("length-empty", "Content-Length:\r\n", "content-length", Hyper),
                lines("length-hex", "Content-Length: 0x2\r\n", "content-length", Hyper),
                lines("length-overflow", "Content-Length: 99999999999999999999\r\n", "content-length", Hyper),
                lines("length-contradicts", "Content-Length: 2\r\nContent-Length: 3\r\n", "content-length-contradicts", Hyper),
                lines("length-list-contradicts", "Content-Length: 2, 3\r\n", "content-length-contradicts", Hyper),
                refused("length-of-204", "HTTP/1.1 204 No\r\nContent-Length: 0x2\r\n\r\n", "content-length", Check),
            ],
        ),
        row("Content-Length repeated", [kept("length-repeated", ok("Content-Length: 2\r\nContent-Length: 2, 02\r\n", "ok"), "ok", Check)]),
        row(
            "Content-Length together",
            [lines("length-and-coding", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "length-and-transfer-encoding", Check)],
        ),
        row(
            "Transfer-Encoding with a known coding",
            [
                lines("coding-gzip", "Transfer-Encoding: gzip, chunked\r\n", "transfer-encoding", Check),
                lines("coding-twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "transfer-encoding", Check),
                lines("coding-after-chunked", "Transfer-Encoding: chunked, word\r\n", "transfer-encoding", Check),
            ],
        ),
        row(
            "Transfer-Encoding in HTTP/1.0",
            [refused("coding-in-1.0", version_1_0(CHUNKED, "2\r\nok\r\n0\r\n\r\n"), "transfer-encoding-in-1.0", Hyper)],
        ),
        row(
            "Transfer-Encoding of unknown words only",
            [
                closed("coding-unknown", ok("Transfer-Encoding: word\r\n", "ok"), Fin, Hyper),
                closed("close-delimited", ok("", "ok"), Fin, Hyper),
            ],
        ),
        elsewhere("the same, ended by a reset"),
        row(
            "status line of another protocol",
            [
                refused("http-0.9", "<html>ok</html>\r\n\r\n", "status-line", Hyper),
                refused("status-letters", "HTTP/1.1 2xx OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("status-short", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("status-long", "HTTP/1.1 1000 OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("status-low", "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("status-spaces", "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("status-bare-cr", "HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("version-2", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "status-line", Hyper),
                refused("version-1.2", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok", "version", Hyper),
                refused("leading-line", [b"\r\n", &ok(TWO, "ok")[..]].concat(), "status-line", Nobody("ok")),
            ],
        ),
        row("HTTP/1.0", [closed("version-1.0", version_1_0("Connection: keep-alive\r\nContent-Length: 2\r\n", "ok"), Open, Check)]),
    ]
}

fn heads() -> Vec<Row> {
    vec![
        row(
            "bare LF",
            [
                refused("bare-lf", "HTTP/1.1 200 OK\nCache-Control: max-age=600\nContent-Length: 2\n\nok", "bare-lf", Nobody("ok")),
                line("bare-lf-in-line", "A: b\nC: d", "bare-lf", Nobody("ok")),
                line("bare-cr", "A: b\rc", "field-value", Hyper),
                line("bare-cr-before-line", "\rA: b", "bare-cr", Hyper),
                line("nul", "A: b\0c", "field-value", Hyper),
                line("control", "A: b\x01c", "field-value", Hyper),
                line("obs-fold", "A: b\r\n c", "obs-fold", Hyper),
                line("space-before-colon", "A : b", "field-name", Hyper),
                line("no-name", ": b", "field-name", Hyper),
                line("no-colon", "A", "field-name", Hyper),
            ],
        ),
        row(
            "head longer than",
            [
                refused("many-lines", ok(&format!("{}{TWO}", "A: b\r\n".repeat(300)), "ok"), TOO_LARGE, Hyper),
                refused("long-head", ok(&format!("A: {}\r\n{TWO}", "b".repeat(70_000)), "ok"), TOO_LARGE, Hyper),
            ],
        ),
        row(
            "101 that was not asked for",
            [refused("unasked-101", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "unasked-101", Check)],
        ),
        row(
            "206 or 416",
            [
                refused(
                    "unasked-206",
                    "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
                    "unasked-range",
                    Check,
                ),
                refused(
                    "unasked-416",
                    "HTTP/1.1 416 No\r\nContent-Range: bytes */9\r\nContent-Length: 2\r\n\r\nno",
                    "unasked-range",
                    Check,
                ),
            ],
        ),
    ]
}

fn interims() -> Vec<Row> {
    let before = |interim: &str| [interim.as_bytes(), &ok(TWO, "ok")[..]].concat();
    let long = format!("HTTP/1.1 103 Early\r\nA: {}\r\n\r\n", "b".repeat(40_000));
    let flood = |name, interims: &str| refused(name, before(interims), "too many interim responses", Check);
    let incomplete = |name, bytes: &str| Case { then: Fin, ..refused(name, bytes, INCOMPLETE, Hyper) };
    vec![
        row("interim responses", [kept(RELAYED, before("HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n"), "ok", Hyper)]),
        row("100", [kept("continue", before("HTTP/1.1 100 Continue\r\n\r\n"), "ok", Check)]),
        row("more than 16", [flood("interim-many", &"HTTP/1.1 102 P\r\n\r\n".repeat(17)), flood("interim-long", &long.repeat(2))]),
        row(
            "an interim response with a body",
            [refused("interim-body", before("HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nok"), "status-line", Hyper)],
        ),
        row(
            "close before the head is whole",
            [incomplete("head-cut", "HTTP/1.1 200 OK\r\nContent-Le"), incomplete("interim-then-nothing", "HTTP/1.1 103 Early\r\n\r\n")],
        ),
    ]
}

/// The case whose interim response the client is to get.
const RELAYED: &str = "interim";

fn bodies() -> Vec<Row> {
    vec![
        row(
            "fewer bytes than announced",
            [
                Case { gets: Cut, then: Fin, ..refused("length-cut", ok("Content-Length: 9\r\n", "ok"), "", Hyper) },
                cut("chunked-cut", "", Fin, Hyper),
                cut("chunk-cut", "9\r\nok", Fin, Hyper),
                cut("last-chunk-cut", "0\r\n", Fin, Hyper),
                cut("trailer-cut", "0\r\nA: b\r\n", Fin, Hyper),
            ],
        ),
        row(
            "chunk size empty",
            [
                cut("chunk-size", "zz\r\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-empty", "\r\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-signed", "+2\r\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-hex", "0x2\r\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-lf", "2\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-overflow", "10000000000000002\r\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-size-space", "2 \r\nok\r\n0\r\n\r\n", Open, Nobody("okok")),
                cut("chunk-size-long", "00000000000000002\r\nok\r\n0\r\n\r\n", Open, Nobody("okok")),
                cut("chunk-data", "2\r\nokok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-extension", "2; a\r\nok\r\n0\r\n\r\n", Open, Nobody("okok")),
                cut("chunk-extension-lf", "2;a\nok\r\n0\r\n\r\n", Open, Hyper),
                cut("chunk-extensions-long", &format!("2;{}\r\nok\r\n0\r\n\r\n", "a".repeat(5_000)), Open, Nobody("okok")),
                cut("chunk-extensions-longer", &format!("2;{}\r\nok\r\n0\r\n\r\n", "a".repeat(17_000)), Open, Hyper),
            ],
        ),
        row(
            "trailer section malformed",
            [
                cut("trailer-fold", "0\r\nA: b\r\n c\r\n\r\n", Open, Hyper),
                cut("trailer-lf", "0\r\nA: b\n\r\n\r\n", Open, Nobody("ok")),
                cut("trailers-long", &format!("0\r\nA: {}\r\n\r\n", "b".repeat(9_000)), Open, Check),
                cut("trailers-many", &format!("0\r\n{}\r\n", "A: b\r\n".repeat(201)), Open, Hyper),
            ],
        ),
        elsewhere("trailer fields"),
    ]
}

fn connections() -> Vec<Row> {
    let body_of_204 = "HTTP/1.1 204 No\r\nCache-Control: no-store\r\nContent-Length: 4\r\n\r\nevil";
    vec![
        row(
            "bytes behind a complete answer",
            [
                closed("surplus", ok(TWO, "okHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), Open, Hyper),
                closed("surplus-chunked", ok(CHUNKED, "2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), Open, Hyper),
                Case { gets: Whole(204, ""), stored: false, ..closed("body-of-204", body_of_204, Open, Hyper) },
            ],
        ),
        elsewhere("bytes while the connection is idle"),
        row(
            "`Connection: close`",
            [
                closed("says-close", ok("Content-Length: 2\r\nConnection: close\r\n", "ok"), Open, Check),
                closed("closes-soon", ok("Content-Length: 2\r\nKeep-Alive: timeout=1\r\n", "ok"), Open, Check),
            ],
        ),
        elsewhere("an answer before the request body was sent"),
        elsewhere("101 that was asked for"),
    ]
}

/// What nothing is wrong with.
fn well_formed() -> [Case; 3] {
    [
        kept("length", ok(TWO, "ok"), "ok", Hyper),
        kept("length-0", ok("Content-Length: 0\r\n", ""), "", Hyper),
        kept("chunked", ok(CHUNKED, "2;a=b\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"), "ok", Hyper),
    ]
}

fn cases() -> impl Iterator<Item = Case> {
    well_formed().into_iter().chain(table().into_iter().flat_map(|row| row.cases))
}

#[test]
fn the_table_is_what_the_document_says() {
    let (table, documented) = (table(), rows_of("Answers of upstreams"));
    assert_eq!(table.len(), documented.len());
    for (Row { begins, cases }, cells) in table.iter().zip(&documented) {
        let &[answer, gets, stored, connection, by] = &cells[..] else { panic!("five cells: {cells:?}") };
        assert!(answer.starts_with(begins), "{begins}: {answer}");
        for case in cases {
            let (name, is_whole) = (case.name, matches!(case.gets, Whole(..)));
            assert_eq!(
                (gets == "502", gets == "cut", case.stored && stored == "no"),
                match case.gets {
                    Whole(..) => (false, false, false),
                    Refused(_) => (true, false, false),
                    Cut => (false, true, false),
                },
                "{name}"
            );
            assert!(!is_whole || connection.is_empty() || connection.starts_with("kept") == case.pooled, "{name}");
            if let Refused(reason) = case.gets {
                assert!([TOO_LARGE, INCOMPLETE].contains(&reason) || answer.contains(&format!("`{reason}`")), "{name}: {reason}");
            }
        }
        for word in [Hyper.word(), Check.word(), Nobody("").word()].into_iter().filter(|_| !cases.is_empty()) {
            assert_eq!(by.contains(word), cases.iter().any(|case| case.by.word() == word), "{begins}: {word} in {by}");
        }
    }
}

/// What became of a case.
#[derive(Debug, PartialEq, Eq)]
struct Became {
    status: u16,
    body: String,
    whole: bool,
    interims: Vec<u16>,
    stored: bool,
    pooled: bool,
}

impl Case {
    /// What is to come of it through this codec: what the client gets, whether that is stored, whether the connection is used again.
    fn through(&self, codec: &str) -> (Gets, bool, bool) {
        match self.by {
            Nobody(body) if codec == "hyper" => (Whole(200, body), true, true),
            _ => (self.gets, self.stored, self.pooled),
        }
    }
}

impl Became {
    fn is(&self, case: &Case, codec: &str) -> bool {
        let (gets, stored, pooled) = case.through(codec);
        let as_wanted = match gets {
            Whole(status, body) => {
                let interims: &[u16] = if case.name == RELAYED { &[103] } else { &[] };
                (self.status, &*self.body, self.whole, &*self.interims) == (status, body, true, interims)
            }
            Refused(_) => (self.status, self.whole) == (502, true),
            Cut => (self.status, self.whole) == (200, false),
        };
        as_wanted && (self.stored, self.pooled) == (stored, pooled)
    }
}

/// The answer, and the statuses of the interim ones before it: some may have been relayed before it proved malformed.
async fn final_answer(served: &Served, path: &str) -> (Answer, Vec<u16>) {
    let mut client = served.client().await;
    client.send(request("GET", path, "", "")).await;
    let mut interims = Vec::new();
    loop {
        let answer = client.answer(false).await.expect(path);
        if answer.status >= 200 {
            return (answer, interims);
        }
        interims.push(answer.status);
    }
}

/// Asks for a case, and then for something good: whoever comes next is answered with what was asked for, in any case.
async fn became(served: &Served, case: &Case, codec: &str) -> Became {
    let path = format!("/{}", case.name);
    let (answer, interims) = final_answer(served, &path).await;
    if case.through(codec).1 && answer.status < 500 {
        served.until_stored(&path).await;
    }
    let stored = served.explain(&path).await["stored"] != Value::Null;
    let next = format!("/next-after-{}", case.name);
    let good = served.get(&next).await;
    assert_eq!((good.status, good.text(), good.whole), (200, "next", true), "{next}");
    assert_eq!(served.origin.count(&path), 1, "{path}");
    let pooled = served.last(&next).connection == served.last(&path).connection;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    Became { status: answer.status, body, whole: answer.whole, interims, stored, pooled }
}

/// Serves every case at its name.
fn serving_cases() -> impl Fn(&Recorded) -> Script + Send + Sync + 'static {
    let scripts: HashMap<String, (Vec<u8>, Then)> = cases().map(|case| (format!("/{}", case.name), (case.bytes, case.then))).collect();
    move |request| match scripts.get(&request.path) {
        Some((bytes, Fin)) => Script::raw(bytes.clone()).then(Step::Close),
        Some((bytes, Open)) => Script::raw(bytes.clone()),
        None => next(),
    }
}

/// What is asked for after something else, and not stored.
fn next() -> Script {
    Script::ok("next").header("Cache-Control", "no-store")
}

/// One worker, and this codec towards the origin; `config`: tables besides.
fn serve_through(codec: &str, config: &str, origin: Origin) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let config = through(codec, &whole(&format!("{ONE_WORKER}{config}"), &origin));
    Served { tiercel: Tiercel::with_config(&config, folder.path()), origin, folder }
}

#[tokio::test]
async fn no_malformed_answer_is_whole_or_stored_or_stays_in_the_pool() {
    for (codec, header_bytes, header_count, surplus) in [("own", 1, 1, 3), ("hyper", 2, 0, 0)] {
        let served = serve_through(codec, "", Origin::start(serving_cases()));
        for case in cases() {
            let became = became(&served, &case, codec).await;
            assert!(became.is(&case, codec), "{codec}, {}: {became:?}", case.name);
        }
        // What each bound and each end of a connection is counted as; hyper does not say which bound it was, nor of bytes behind.
        for (bound, count) in [("upstream_header_bytes", header_bytes), ("upstream_header_count", header_count), ("upstream_interim", 2)] {
            assert_eq!(served.bound(bound).await, count, "{codec}, {bound}");
        }
        for (reason, count) in [("surplus", surplus), ("early", 0)] {
            assert_eq!(served.dropped(reason).await, count, "{codec}, {reason}");
        }
    }
}

#[tokio::test]
async fn who_refuses_a_head_is_who_the_table_names() {
    let origin = Origin::start(serving_cases());
    for (name, codec) in CODECS.into_iter().zip([UpstreamCodec::Own, UpstreamCodec::Hyper]) {
        let bounds = settings::Upstream { header_bytes: 64 << 10, header_count: 200, ..codec_settings(codec, origin.addr()) };
        let upstream = Upstream::new(Arc::new(bounds), 1, Metrics::new(1));
        for case in cases() {
            let (Refused(reason), _, _) = case.through(name) else { continue };
            let said = match fails(&upstream, get(&format!("/{}", case.name))).await {
                FetchError::Malformed(text) => text,
                error => error.token().to_owned(),
            };
            // Where hyper refused it the words are hyper's.
            let is_ours = codec == UpstreamCodec::Own || case.by == Check || [TOO_LARGE, INCOMPLETE].contains(&reason);
            assert_eq!(said == reason, is_ours, "{name}, {}: {said}", case.name);
        }
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
    const NOT_MODIFIED: &str = "HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nContent-Length: 4\r\n\r\nevil";
    for (codec, surplus) in [("own", 1), ("hyper", 0)] {
        let origin = Origin::start(|request| match request.path.as_str() {
            "/a" => confirm_or(request, Script::raw(NOT_MODIFIED), stale("body")),
            _ => next(),
        });
        let served = serve_through(codec, "", origin);
        assert_eq!(served.get("/a").await.text(), "body");
        served.until_stored("/a").await;
        let confirmed = served.get("/a").await;
        assert_eq!((confirmed.status, confirmed.text(), confirmed.field("content-length")), (200, "body", Some("4")));
        assert_eq!(served.last("/a").field("if-none-match"), Some("\"v1\""));
        assert_eq!(served.dropped("surplus").await, surplus, "{codec}");
        assert_eq!(served.get("/b").await.text(), "next");
        assert_ne!(served.last("/a").connection, served.last("/b").connection, "{codec}");
    }
}

#[tokio::test]
async fn trailer_fields_that_frame_a_message_are_dropped() {
    let trailers = "Content-Length: 9\r\nX-Sum: 1\r\nTransfer-Encoding: gzip\r\nHost: evil\r\nTrailer: A\r\nConnection: close\r\n";
    let bytes = ok(CHUNKED, &format!("2\r\nok\r\n0\r\n{trailers}\r\n"));
    for codec in CODECS {
        let bytes = bytes.clone();
        let served = serve_through(codec, "", Origin::start(move |_| Script::raw(bytes.clone())));
        let answer = served.get_with("/a", "TE: trailers\r\nConnection: TE\r\n").await;
        assert_eq!((answer.text(), answer.whole, &*answer.trailers), ("ok", true, "x-sum: 1\r\n"), "{codec}");
        served.get("/b").await;
        assert_eq!(served.last("/a").connection, served.last("/b").connection, "{codec}: the answer is whole and the connection good");
    }
}

#[tokio::test]
async fn a_connection_that_the_origin_closed_while_idle_is_counted() {
    for codec in CODECS {
        let gate = Gate::new();
        let origin = Origin::start({
            let gate = gate.clone();
            move |_| next().then(Step::Wait(gate.clone())).then(Step::Close)
        });
        let served = serve_through(codec, "", origin);
        assert_eq!(served.get("/a").await.text(), "next");
        assert_eq!(served.dropped("closed").await, 0, "{codec}");
        gate.open();
        served.until_metric(&dropped("closed"), 1).await;
    }
}

#[tokio::test]
async fn a_connection_whose_answer_came_before_the_request_body_was_sent_is_not_used_again() {
    for (codec, early) in [("own", 1), ("hyper", 0)] {
        let gate = Gate::new();
        let origin = Origin::start_at_head({
            let gate = gate.clone();
            move |_| Script::status(413, "too much").then(Step::Wait(gate.clone()))
        });
        let served = serve_through(codec, "", origin);
        let mut client = served.client().await;
        client.send(format!("{}begin", request("POST", "/a", "Content-Length: 1000000\r\n", ""))).await;
        let answer = client.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.text()), (413, "too much"), "{codec}");
        assert_eq!(served.get("/b").await.status, 413, "{codec}");
        assert_ne!(served.last("/a").connection, served.last("/b").connection, "{codec}");
        served.until_metric(&dropped("early"), early).await;
        gate.open();
    }
}

#[tokio::test]
async fn an_answer_cut_off_by_a_reset_is_neither_whole_nor_stored() {
    for (codec, lines) in CODECS
        .into_iter()
        .flat_map(|codec| ["", "Content-Length: 9\r\n", CHUNKED, "Transfer-Encoding: word\r\n"].map(|lines| (codec, lines)))
    {
        let gate = Gate::new();
        let begun = if lines == CHUNKED { "2\r\nok\r\n" } else { "ok" };
        let origin = Origin::start({
            let (gate, bytes) = (gate.clone(), ok(lines, begun));
            move |_| Script::raw(bytes.clone()).then(Step::Wait(gate.clone())).then(Step::Reset)
        });
        let served = serve_through(codec, "", origin);
        let mut client = served.client().await;
        client.send(request("GET", "/a", "", "")).await;
        let heard = client.until("ok").await.expect("the head and what came of the body");
        assert!(heard.starts_with("HTTP/1.1 200 "), "{codec}: {heard}");
        gate.open();
        let rest = client.rest().await;
        let length = if lines.contains('9') { "content-length: 9" } else { "transfer-encoding: chunked" };
        assert!(heard.contains(length) && !rest.ends_with(b"0\r\n\r\n") && rest.len() < 7, "{codec}, {lines:?}: {heard}{rest:?}");
        assert_eq!(served.explain("/a").await["stored"], Value::Null);
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    for codec in CODECS {
        let origin = Origin::start(|request| match request.method.as_str() {
            "HEAD" => Script::raw("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
            _ => next(),
        });
        let served = serve_through(codec, "", origin);
        let mut client = served.client().await;
        client.send(request("HEAD", "/a", "", "")).await;
        let answer = client.answer(true).await.expect("an answer");
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("4")), "{codec}");
        assert_eq!(served.get("/b").await.text(), "next");
        assert_ne!(served.last("/a").connection, served.last("/b").connection, "{codec}");
    }
}

#[tokio::test]
async fn bytes_that_come_while_a_connection_is_idle_are_never_an_answer() {
    for (codec, counted_as) in [("own", "spoke"), ("hyper", "closed")] {
        let gate = Gate::new();
        let origin = Origin::start({
            let gate = gate.clone();
            move |request| match request.path.as_str() {
                "/first" => Script::ok("first")
                    .header("Cache-Control", "no-store")
                    .then(Step::Wait(gate.clone()))
                    .then(Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec())),
                _ => next(),
            }
        });
        let served = serve_through(codec, "", origin);
        assert_eq!(served.get("/first").await.text(), "first");
        gate.open();
        served.until_metric(&dropped(counted_as), 1).await;
        assert_eq!(served.get("/second").await.text(), "next");
        assert_ne!(served.last("/first").connection, served.last("/second").connection, "{codec}");
    }
}

#[tokio::test]
async fn an_answer_of_a_part_is_taken_only_where_the_range_went_to_the_origin() {
    const CONFIG: &str = "[sites.shop]\n[[sites.shop.routes]]\npath = \"/past/\"\ncache.enabled = false\n";
    for codec in CODECS {
        let origin = Origin::start(|request| {
            assert!(request.field("range").is_none() || request.path.starts_with("/past/"));
            Script::raw("HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok")
        });
        let served = serve_through(codec, CONFIG, origin);
        let answer = served.get_with("/past/a", "Range: bytes=0-1\r\n").await;
        assert_eq!((answer.status, answer.text(), answer.field("content-range")), (206, "ok", Some("bytes 0-1/9")), "{codec}");
        assert_eq!(served.get_with("/cached", "Range: bytes=0-1\r\n").await.status, 502, "{codec}");
        assert_eq!(served.get("/past/a").await.status, 502, "{codec}");
    }
}
