//! What is left of requests: a line each, and a count each.

use super::process::{Process, TERMINATE, USER_1, config};
use super::{get, get_with, keeping, metric, post, until, until_settled};
use crate::support::client::Client;
use crate::support::origin::{Gate, Origin, Recorded, Script, Step};
use std::path::{Path, PathBuf};

/// Writes its access log into this folder; `more`: tables besides.
pub(super) fn logging(folder: &Path, upstream: &str, format: &str, more: &str) -> (Process, PathBuf) {
    let log = folder.join("access.log");
    let target = format!("target = '{}'\nformat = '{format}'", log.display());
    let text = config(upstream, more).replace("target = 'off'", &target);
    (Process::with_config(folder, &text), log)
}

fn lines(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

pub(super) async fn lines_of(log: &Path, count: usize) -> Vec<String> {
    until("the lines", async || lines(log), |lines| lines.len() >= count).await
}

fn origin(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request: &Recorded| match request.path.as_str() {
        "/held" => Script::ok("held").after(&gate),
        "/torn" => Script::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()), Step::Reset]),
        "/private" => Script::ok("mine").header("cache-control", "private"),
        _ => Script::ok("fresh").header("cache-control", "max-age=60"),
    })
}

#[tokio::test]
async fn sigusr1_moves_to_a_new_file_and_loses_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let origin = origin(&Gate::new());
    let (mut process, log) = logging(folder.path(), &origin.url(), "combined", "");
    assert_eq!(get(process.http(), "/before").await.status, 200);
    lines_of(&log, 1).await; // or it is written where the name leads by then
    let rotated = folder.path().join("access.log.1");
    std::fs::rename(&log, &rotated).unwrap();
    process.signal(USER_1);
    until("the file is opened anew", async || log.exists(), |exists| *exists).await;
    assert_eq!(get(process.http(), "/after").await.status, 200);
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
    let (old, new) = (lines(&rotated), lines(&log));
    assert!(old.len() == 1 && old[0].contains("GET /before "), "{old:?}");
    assert!(new.len() == 1 && new[0].contains("GET /after "), "{new:?}");
}

#[tokio::test]
async fn a_purge_is_logged_once_however_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let origin = origin(&Gate::new());
    let mut process = Process::with_config(folder.path(), &config(&origin.url(), "[purge]\nallow = ['127.0.0.0/8']\n"));
    assert_eq!(post(process.admin(), "/v1/purge", r#"{"tags": ["of-admin"]}"#).await.status, 200);
    let mut client = Client::connect(process.http()).await;
    assert_eq!(client.ask("PURGE / HTTP/1.1\r\nHost: test.example\r\nSurrogate-Key: of-method\r\n\r\n").await.status, 200);
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
    let written = process.err.whole();
    for (key, actor) in [("key of-admin", "admin:127.0.0.1"), ("key of-method", "purge:127.0.0.1")] {
        let lines: Vec<_> = written.iter().filter(|line| line.contains("purge") && line.contains(key)).collect();
        assert!(lines.len() == 1 && lines[0].contains(actor), "{key} by {actor}: {written:#?}");
    }
    assert_eq!(written.iter().filter(|line| line.contains("purge")).count(), 2, "{written:#?}");
}

#[tokio::test]
async fn crowded_variants_are_logged_once_in_a_while_with_route_and_url_but_no_query() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin::start(|_: &Recorded| Script::ok("x").header("cache-control", "max-age=60").header("vary", "x-junk"));
    let mut process = Process::with_config(folder.path(), &config(&origin.url(), "[cache]\nmax_variants = 2\n"));
    for value in 0..6 {
        get_with(process.http(), "/a?token=hidden", &format!("x-junk: {value}\r\n")).await;
        until_settled(process.admin()).await;
    }
    assert_eq!(metric(process.admin(), "tiercel_bound_reached_total", &["bound=\"variants\""]).await, 4.0);
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
    let written: Vec<_> = process.err.whole().into_iter().filter(|line| line.contains("too many variants")).collect();
    assert_eq!(written.len(), 1, "{written:#?}");
    for part in ["WARN", "route", "default", "/a", "most"] {
        assert!(written[0].contains(part), "{part}: {}", written[0]);
    }
    assert!(!written[0].contains("hidden"), "{}", written[0]);
}

#[tokio::test]
async fn every_request_has_a_line_also_those_that_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::new();
    let origin = origin(&gate);
    let (process, log) = logging(folder.path(), &origin.url(), "json", "");
    let http = process.http();
    get(http, "/a").await;
    until_settled(process.admin()).await;
    get(http, "/a").await;
    get(http, "/torn").await;
    Client::connect(http).await.ask("GET / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n").await;
    let mut leaver = Client::connect(http).await;
    leaver.send(keeping("/held")).await;
    origin.wait_for_requests("/held", 1);
    leaver.reset();
    let lines = lines_of(&log, 5).await;
    let values: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = |path: &str, status: u16| {
        let all: Vec<_> = values.iter().filter(|line| line["path"] == path && line["status"] == status).collect();
        assert!(!all.is_empty(), "{path} {status} in {lines:#?}");
        all
    };
    // Each worker gathers its own lines: among them the order is not that of the requests.
    let mut both: Vec<_> = found("/a", 200).iter().map(|line| (line["result"].to_string(), line["tier"].to_string())).collect();
    both.sort();
    assert_eq!(both, [("\"hit\"".into(), "\"memory\"".into()), ("\"miss\"".into(), "\"upstream\"".into())]);
    // Who led has the times of the fetch, though the fetch was a task's.
    let times = |line: &serde_json::Value| line["upstream_ms"].is_number() && line["connect_ms"].is_number();
    assert!(found("/a", 200).iter().all(|line| times(line) == (line["result"] == "miss")), "{lines:#?}");
    assert!(found("/torn", 200)[0]["error"].is_string());
    assert_eq!((&found("-", 400)[0]["error"], &found("-", 400)[0]["detail"]), (&"http_request_error".into(), &"field-name".into()));
    let left = found("/held", 499)[0];
    assert_eq!((&left["error"], &left["site"], &left["host"]), (&"client_left".into(), &"default".into(), &"test.example".into()));
    assert_eq!(lines.len(), 5);
    gate.open();
}

#[tokio::test]
async fn the_endpoint_that_failed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (process, log) = logging(folder.path(), "http://127.0.0.1:1", "json", "");
    assert_eq!(get(process.http(), "/a").await.status, 502);
    let mut posting = Client::connect(process.http()).await;
    assert_eq!(posting.ask("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await.status, 502);
    for line in lines_of(&log, 2).await {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["error"], &line["endpoint"]), (&"connection_refused".into(), &"127.0.0.1:1".into()), "{line}");
    }
}

#[tokio::test]
async fn clients_cannot_write_lines_of_their_own() {
    for format in ["combined", "json", "ecs"] {
        let folder = tempfile::tempdir().unwrap();
        let origin = origin(&Gate::new());
        let (process, log) = logging(folder.path(), &origin.url(), format, "");
        let mut client = Client::connect(process.http()).await;
        let mut request =
            b"GET /%22/evil HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: \"x\\\" status=200 \xff\xe2\x80\xa8\t{}\r\n".to_vec();
        request
            .extend_from_slice(b"Referer: http://u:secret@h/?token=1 \"\r\nCookie: session=hidden\r\nAuthorization: Basic hidden\r\n\r\n");
        assert_eq!(client.ask(request).await.status, 200);
        assert_eq!(get_with(process.http(), "/last", "").await.status, 200);
        let lines = lines_of(&log, 2).await;
        assert_eq!(lines.len(), 2, "{format}: {lines:?}");
        assert!(lines.iter().all(|line| line.bytes().all(|byte| (0x20..0x7f).contains(&byte))), "{format}: {lines:?}");
        let evil = lines.iter().find(|line| line.contains("evil")).expect("its line");
        assert!(!evil.contains("hidden") && !evil.contains("secret") && !evil.contains("token"), "{format}: {lines:?}");
        if format == "combined" {
            assert!(evil.contains("GET /%22/evil HTTP/1.1\" 200 5 ") && evil.contains("\\xff"), "{lines:?}");
        } else {
            let line: serde_json::Value = serde_json::from_str(evil).unwrap();
            let agent = if format == "json" { &line["user_agent"] } else { &line["user_agent.original"] };
            assert!(agent.as_str().is_some_and(|agent| agent.contains("\"x\\\" status=200")), "{line}");
        }
    }
}

#[tokio::test]
async fn the_log_may_go_to_standard_output() {
    let origin = origin(&Gate::new());
    let process = Process::run(&["--upstream", &origin.url(), "--access-log", "stdout"]);
    get(process.http(), "/seen").await;
    process.out.wait("line", |line| line.contains("\"GET /seen HTTP/1.1\" 200 5") && line.contains(" result=miss "));
}

#[tokio::test]
async fn metrics_count_every_request_once() {
    let gate = Gate::new();
    let origin = origin(&gate);
    let process = Process::run(&["--upstream", &origin.url()]);
    let (http, admin) = (process.http(), process.admin());
    let requests = async |labels: &[&str]| metric(admin, "tiercel_requests_total", labels).await;
    let default = "site=\"default\",route=\"default\"";
    for path in ["/a", "/a", "/a", "/b", "/private"] {
        assert_eq!(get(http, path).await.status, 200);
        until_settled(admin).await;
    }
    let mut client = Client::connect(http).await;
    assert_eq!(client.ask("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await.status, 200);
    assert_eq!(client.ask("TRACE /a HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 405);
    let until_all = || requests(&[]);
    until("all are counted", until_all, |count| *count >= 7.0).await;
    for (labels, count) in [
        (&["result=\"miss\"", "tier=\"upstream\"", "code=\"2xx\"", default][..], 3.0),
        (&["result=\"hit\"", "tier=\"memory\"", "code=\"2xx\"", default], 2.0),
        (&["result=\"bypass\"", "tier=\"upstream\"", "code=\"2xx\"", default], 1.0),
        (&["result=\"local\"", "tier=\"tiercel\"", "code=\"4xx\"", default], 1.0),
        (&[], 7.0),
    ] {
        assert_eq!(requests(labels).await, count, "{labels:?}");
    }
    assert_eq!(metric(admin, "tiercel_response_bytes_total", &["result=\"hit\""]).await, 10.0);
    assert_eq!(metric(admin, "tiercel_request_duration_seconds_count", &[]).await, 7.0);
    assert_eq!(metric(admin, "tiercel_unsafe_invalidations_total", &[]).await, 1.0);
    assert_eq!(metric(admin, "tiercel_panics_total", &[]).await, 0.0);
}
