use super::*;
use crate::body::BodyError;
use crate::observe::metrics::Bound;
use crate::proxy::outcome::{CacheResult, Source, Timing};
use crate::semantics::cache_status::Forward;
use crate::semantics::storage::NotStored;
use crate::semantics::{Fields, Method, StatusCode};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::mpsc;

/// 2026-11-21T22:04:05.123Z
const WALL_MS: i64 = 1_795_298_645_123;

fn peer(worker: usize) -> Peer {
    Peer::plain("192.0.2.7:4711".parse().unwrap(), "192.0.2.1:80".parse().unwrap(), worker, "http")
}

fn head(target: &[u8], fields: &[(&str, &[u8])]) -> RequestHead {
    let mut all = Fields::new();
    for (name, value) in fields {
        all.push(name, value).unwrap();
    }
    RequestHead { method: Method::GET, target: target.to_vec(), minor_version: 1, fields: all }
}

fn miss() -> Outcome {
    Outcome {
        result: CacheResult::Miss,
        source: Source::Upstream,
        forward: Some(Forward::UriMiss),
        forward_status: Some(200),
        not_stored: Some(NotStored::SetCookie),
        upstream: Some("app".into()),
        endpoint: Some("127.0.0.1:3000".into()),
        request_id: Some("id-1".into()),
        timing: Timing { waited: None, first_byte: Some(Duration::from_micros(12_345)), connect: Some(Duration::from_micros(200)) },
        ..Outcome::default()
    }
}

fn sent() -> Sent {
    Sent { status: StatusCode::OK, body_bytes: 321, duration_ns: 13_000_999, aborted: None }
}

fn written(format: AccessFormat, head: &RequestHead, outcome: &Outcome, sent: &Sent) -> String {
    let peer = peer(0);
    let line = Line { wall_ms: WALL_MS, peer: &peer, head, outcome, sent, site: "shop", route: "default" };
    let mut out = Vec::new();
    line.write(format, &mut Shared::default(), &mut out);
    String::from_utf8(out).unwrap()
}

fn json(format: AccessFormat, head: &RequestHead, outcome: &Outcome, sent: &Sent) -> Value {
    serde_json::from_str(&written(format, head, outcome, sent)).unwrap()
}

#[test]
fn combined_is_the_known_format_and_then_pairs() {
    let head = head(b"/a?q=1", &[("host", b"shop.example"), ("user-agent", b"curl/8"), ("referer", b"http://u:p@other.example/x?y=z")]);
    assert_eq!(
        written(AccessFormat::Combined, &head, &miss(), &sent()),
        concat!(
            r#"192.0.2.7 - - [21/Nov/2026:22:04:05 +0000] "GET /a HTTP/1.1" 200 321 "http://other.example/x" "curl/8""#,
            " result=miss tier=upstream reason=SET-COOKIE detail=- error=- site=shop route=default host=shop.example",
            " upstream=app endpoint=127.0.0.1:3000 request_id=id-1 upstream_ms=12.345 wait_ms=- duration_ms=13.000\n"
        )
    );
}

#[test]
fn json_has_every_fact_of_the_outcome() {
    let traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let head = head(b"/a?q=1", &[("host", b"shop.example"), ("user-agent", b"curl/8"), ("traceparent", traceparent)]);
    let line = json(AccessFormat::Json, &head, &miss(), &sent());
    assert_eq!(
        line,
        serde_json::json!({
            "timestamp": "2026-11-21T22:04:05.123Z", "client": "192.0.2.7", "method": "GET", "scheme": "http",
            "host": "shop.example", "path": "/a", "protocol": "HTTP/1.1", "status": 200, "bytes": 321, "duration_ms": 13.0,
            "result": "miss", "tier": "upstream", "reason": "SET-COOKIE", "stored": false,
            "collapsed": false, "site": "shop", "route": "default", "listener": "http", "upstream": "app",
            "endpoint": "127.0.0.1:3000", "upstream_status": 200, "connect_ms": 0.2, "upstream_ms": 12.345,
            "request_id": "id-1", "trace_id": "0af7651916cd43dd8448eb211c80319c", "user_agent": "curl/8",
        })
    );
}

#[test]
fn a_hit_and_a_follower_tell_their_age_and_wait() {
    let hit = Outcome {
        result: CacheResult::Hit,
        source: Source::Memory,
        age_ms: Some(5000),
        ttl_ms: Some(-3),
        client: Some("2001:db8::9".parse().unwrap()),
        timing: Timing { waited: Some(Duration::from_millis(7)), ..Timing::default() },
        ..Outcome::default()
    };
    let line = json(AccessFormat::Json, &head(b"/", &[]), &hit, &sent());
    let facts = ["result", "tier", "reason", "age_ms", "ttl_ms", "wait_ms", "client"].map(|name| line[name].clone());
    let want = ["hit".into(), "memory".into(), Value::Null, 5000.into(), (-3).into(), 7.0.into(), "2001:db8::9".into()];
    assert_eq!(facts, want);
    let id = line["request_id"].as_str().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    for name in ["reason", "stored", "collapsed", "upstream", "endpoint", "upstream_ms", "error", "user_agent"] {
        assert!(line.get(name).is_none(), "{name} does not apply to a hit");
    }
}

#[test]
fn reason_is_why_it_went_forward_where_it_was_stored() {
    let stored = Outcome { not_stored: None, stored: true, ..miss() };
    assert_eq!(json(AccessFormat::Json, &head(b"/", &[]), &stored, &sent())["reason"], "uri-miss");
}

#[test]
fn an_answer_that_broke_off_says_how() {
    let aborted = Sent { aborted: Some(BodyError::ClientLeft), ..sent() };
    assert_eq!(json(AccessFormat::Json, &head(b"/", &[]), &miss(), &aborted)["error"], "client_left");
    let failed = Outcome { error: Some("connection_refused"), ..miss() };
    assert_eq!(json(AccessFormat::Ecs, &head(b"/", &[]), &failed, &sent())["tiercel.error"], "connection_refused");
}

#[test]
fn ecs_uses_its_own_names() {
    let head = head(b"/a", &[("host", b"shop.example:8080"), ("user-agent", b"curl/8"), ("referer", b"https://other.example/x?y")]);
    let line = json(AccessFormat::Ecs, &head, &miss(), &sent());
    for (name, want) in [
        ("@timestamp", Value::from("2026-11-21T22:04:05.123Z")),
        ("http.request.method", "GET".into()),
        ("http.request.referrer", "https://other.example/x".into()),
        ("http.request.id", "id-1".into()),
        ("url.path", "/a".into()),
        ("url.domain", "shop.example".into()),
        ("http.response.status_code", 200.into()),
        ("http.response.body.bytes", 321.into()),
        ("event.duration", 13_000_999.into()),
        ("client.ip", "192.0.2.7".into()),
        ("tiercel.reason", "SET-COOKIE".into()),
        ("tiercel.result", "miss".into()),
        ("tiercel.upstream_ms", 12.345.into()),
    ] {
        assert_eq!(line[name], want, "{name}");
    }
}

#[test]
fn query_strings_are_logged_only_where_allowed() {
    let secret = head(b"/a?token=hidden", &[("referer", b"http://x.example/?token=hidden")]);
    let allowed = Outcome { log_query: true, ..miss() };
    for format in [AccessFormat::Combined, AccessFormat::Json, AccessFormat::Ecs] {
        assert!(!written(format, &secret, &miss(), &sent()).contains("hidden"));
        assert_eq!(written(format, &secret, &allowed, &sent()).matches("token=hidden").count(), 2);
    }
}

#[test]
fn credentials_are_never_logged() {
    let fields: [(&str, &[u8]); 3] =
        [("authorization", b"Bearer hidden"), ("cookie", b"session=hidden"), ("referer", b"https://me:hidden@x.example/")];
    for target in [&b"http://me:hidden@shop.example/a"[..], b"http://me:hidden@shop.example", b"me:hidden@shop.example:443"] {
        for format in [AccessFormat::Combined, AccessFormat::Json, AccessFormat::Ecs] {
            let line = written(format, &head(target, &fields), &Outcome { log_query: true, ..miss() }, &sent());
            assert!(!line.contains("hidden"), "{line}");
        }
    }
}

#[test]
fn a_line_cannot_be_forged_by_target_or_fields() {
    let mut hostile = head(b"/a\" 200 0\r\n192.0.2.9 - - \x1b[2J\x00\xff", &[("user-agent", "\"},{\"status\":\u{2028}\\".as_bytes())]);
    hostile.fields.push("host", "a result=hit").unwrap();
    for format in [AccessFormat::Combined, AccessFormat::Json, AccessFormat::Ecs] {
        let line = written(format, &hostile, &miss(), &sent());
        assert!(line.trim_end_matches('\n').bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
    }
    let combined = written(AccessFormat::Combined, &hostile, &miss(), &sent());
    assert_eq!(combined.matches('"').count(), 6, "{combined}");
    assert_eq!(combined.matches(" result=").count(), 1, "{combined}");
    let path = json(AccessFormat::Json, &hostile, &miss(), &sent())["path"].clone();
    assert_eq!(path, "/a\" 200 0\r\n192.0.2.9 - - \u{1b}[2J\0\\xff");
}

#[test]
fn long_texts_are_cut() {
    let long = [b"/".as_slice(), &[b'a'; 100_000]].concat();
    let line = written(AccessFormat::Json, &head(&long, &[("user-agent", &long)]), &miss(), &sent());
    assert!(line.len() < 8 * 1024, "{}", line.len());
}

proptest! {
    #[test]
    fn json_lines_always_parse_and_are_one_line(
        target in proptest::collection::vec(any::<u8>(), 0..80),
        value in "[^\\x00-\\x08\\x0a-\\x1f\\x7f]{0,40}",
        detail in any::<Option<String>>(),
        log_query in any::<bool>(),
    ) {
        let head = head(&target, &[("host", value.as_bytes()), ("referer", value.as_bytes()), ("user-agent", value.as_bytes())]);
        let outcome = Outcome { detail: detail.map(Into::into), request_id: Some(value.as_str().into()), log_query, ..miss() };
        for format in [AccessFormat::Json, AccessFormat::Ecs, AccessFormat::Combined] {
            let line = written(format, &head, &outcome, &sent());
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            if format != AccessFormat::Combined {
                prop_assert!(serde_json::from_str::<Value>(&line).unwrap().is_object());
            }
        }
    }
}

/// A target that hands each write over and takes it only when let.
struct Gate {
    writes: mpsc::Sender<Vec<u8>>,
    permits: mpsc::Receiver<()>,
}

impl Write for Gate {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.writes.send(lines.to_vec()).unwrap();
        let _ = self.permits.recv(); // a dropped sender opens the gate for good
        Ok(lines.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gated(queue: usize, workers: usize) -> (AccessLog, Arc<Metrics>, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
    let metrics = Metrics::new(workers);
    let (writes, written) = mpsc::channel();
    let (permit, permits) = mpsc::channel();
    let settings = settings::AccessLog { target: LogTarget::Stdout, format: AccessFormat::Combined, queue };
    let target = Target { writer: Box::new(Gate { writes, permits }), path: None };
    (AccessLog::start(&settings, target, metrics.clone()).unwrap(), metrics, written, permit)
}

fn record(log: &AccessLog, worker: usize, target: &[u8]) {
    log.record(&peer(worker), &head(target, &[]), &miss(), &sent());
}

fn counted(metrics: &Metrics, series: &str) -> String {
    let text = metrics.render();
    text.lines().find_map(|line| line.strip_prefix(series)).unwrap().trim().to_owned()
}

#[test]
fn a_full_queue_drops_and_counts_and_never_blocks() {
    let (log, metrics, written, permit) = gated(2, 1);
    record(&log, 0, b"/first");
    assert!(written.recv().unwrap().starts_with(b"192.0.2.7 "), "the writer is stuck in its write now");
    for target in [b"/a", b"/b", b"/c", b"/d"] {
        record(&log, 0, target);
    }
    let bound = format!("tiercel_bound_reached_total{{bound=\"{}\"}}", Bound::AccessLogQueue.as_str());
    assert_eq!(counted(&metrics, &bound), "2");
    assert_eq!(counted(&metrics, "tiercel_access_log_lost_total{reason=\"queue\"}"), "2");
    drop(permit);
    log.close();
    let rest = String::from_utf8(written.recv().unwrap()).unwrap();
    assert!(rest.contains("/a ") && rest.contains("/b ") && !rest.contains("/c "), "{rest}");
}

#[test]
fn many_lines_make_few_writes() {
    let (log, _, written, permit) = gated(100_000, 2);
    drop(permit);
    for number in 0..2000 {
        record(&log, number % 2, b"/a");
    }
    log.close();
    let writes: Vec<_> = written.try_iter().collect();
    let lines: usize = writes.iter().map(|write| write.iter().filter(|byte| **byte == b'\n').count()).sum();
    assert_eq!(lines, 2000);
    assert!(writes.len() < 200, "{}", writes.len());
    assert!(writes.iter().all(|write| write.ends_with(b"\n")), "writes end with a line");
}

#[test]
fn closing_writes_everything_and_later_lines_are_counted_as_lost() {
    let (log, metrics, written, permit) = gated(10, 3);
    drop(permit);
    for worker in 0..3 {
        record(&log, worker, b"/a");
    }
    log.close();
    log.close();
    assert_eq!(written.try_iter().flatten().filter(|byte| *byte == b'\n').count(), 3);
    record(&log, 0, b"/late");
    assert_eq!(counted(&metrics, "tiercel_access_log_lost_total{reason=\"queue\"}"), "1");
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("disk full"))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let metrics = Metrics::new(1);
    let settings = settings::AccessLog { target: LogTarget::Stdout, format: AccessFormat::Json, queue: 10 };
    let log = AccessLog::start(&settings, Target { writer: Box::new(Broken), path: None }, metrics.clone()).unwrap();
    record(&log, 0, b"/a");
    record(&log, 0, b"/b");
    log.close();
    assert_eq!(counted(&metrics, "tiercel_access_log_lost_total{reason=\"write\"}"), "2");
}
