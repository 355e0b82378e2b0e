//! Every bound on clients: what they get beyond it, and the metric that shows it.

use super::logs::{lines_of, logging};
use super::process::{Process, config, write_config};
use super::{bound, get, get_with, keeping, metric, until};
use crate::support::client::{Client, Ended, patient};
use crate::support::origin::{Origin, Script};
use std::net::SocketAddr;
use std::path::Path;

fn origin() -> Origin {
    Origin::start(|request| {
        let body = if request.path == "/large" { vec![b'l'; 32 << 20] } else { b"fresh".to_vec() };
        Script::ok(body).header("cache-control", "max-age=60")
    })
}

/// A server with these limits; the folder is no longer needed once it runs.
fn limited(origin: &Origin, limits: &str) -> Process {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &config(&origin.url(), &format!("[limits]\n{limits}\n")));
    process.admin();
    process
}

async fn refused(admin: SocketAddr, reason: &str) -> f64 {
    metric(admin, "tiercel_refused_total", &[&format!("reason=\"{reason}\"")]).await
}

/// Status and reason in the line of the access log that is written after so many.
async fn logged(log: &Path, after: usize) -> (u64, String) {
    let line: serde_json::Value = serde_json::from_str(&lines_of(log, after + 1).await[after]).unwrap();
    (line["status"].as_u64().expect("a status"), line["detail"].as_str().expect("a reason").to_owned())
}

#[tokio::test]
async fn a_connection_too_many_is_told_to_come_back() {
    for runtime in ["per_core", "shared"] {
        let origin = origin();
        let folder = tempfile::tempdir().unwrap();
        let text = config(&origin.url(), &format!("[server]\nworkers = 2\nruntime = '{runtime}'\n[limits]\nconnections = 3\n"));
        let process = Process::with_config(folder.path(), &text);
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = Client::connect(process.http()).await;
            assert_eq!(client.ask(keeping("/a")).await.status, 200);
            clients.push(client);
        }
        let mut late = Client::connect(process.http()).await;
        let answer = late.ask(keeping("/a")).await;
        assert_eq!((answer.status, answer.field("retry-after"), answer.field("connection")), (503, Some("1"), Some("close")));
        assert_eq!(late.ended().await, Ended::Closed);
        assert_eq!(bound(process.admin(), "connections").await, 1.0);
        assert_eq!(clients[0].ask(keeping("/a")).await.status, 200, "those within the limit go on");
        clients.pop();
        until("there is room again", || get(process.http(), "/a"), |answer| answer.status == 200).await;
    }
}

/// With 64 descriptors 16 connections are allowed; those that are to be turned away, and say nothing, hold all the others.
#[tokio::test]
async fn hits_go_on_while_there_are_no_descriptors_and_accepting_does_afterwards() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    let file = write_config(folder.path(), &config(&origin.url(), "[server]\nworkers = 1\n"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tiercel"), "run", "--config", file.to_str().unwrap()]);
    let process = Process::spawn(&mut shell);
    let mut kept = Client::connect(process.http()).await;
    assert_eq!(kept.ask(keeping("/a")).await.status, 200);
    let silent: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(process.http()).unwrap()).collect();
    process.err.wait("that accepting fails", |line| line.contains("cannot accept"));
    for _ in 0..100 {
        assert_eq!(kept.ask(keeping("/a")).await.text(), "fresh");
    }
    assert_eq!(origin.count("/a"), 1);
    drop(silent);
    until("others are accepted again", || get(process.http(), "/a"), |answer| answer.status == 200).await;
    assert!(bound(process.admin(), "connections").await >= 2.0, "those turned away, and those that could not be accepted");
    until("they are counted out", || metric(process.admin(), "tiercel_connections", &[]), |count| *count == 1.0).await;
}

#[tokio::test]
async fn a_connection_carries_so_many_requests() {
    let origin = origin();
    let process = limited(&origin, "requests_per_connection = 3");
    let mut client = Client::connect(process.http()).await;
    for last in [None, None, Some("close")] {
        assert_eq!(client.ask(keeping("/a")).await.field("connection"), last);
    }
    assert_eq!(client.ended().await, Ended::Closed);
    assert_eq!(bound(process.admin(), "requests_per_connection").await, 1.0);
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_counted() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    let limits = "[limits]\nheader_bytes = '4KiB'\nheader_count = 10\nurl_bytes = '200B'\nbody_bytes = '1KiB'\n";
    let (process, log) = logging(folder.path(), &origin.url(), "json", limits);
    let admin = process.admin();
    let request = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let cases = [
        (request(&format!("/{}", "u".repeat(200)), ""), 414, "url-bytes", "url_bytes"),
        (request("/", &format!("a: {}\r\n", "v".repeat(4096))), 431, "header-bytes", "header_bytes"),
        (request("/", &"a: b\r\n".repeat(10)), 431, "header-count", "header_count"),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n{}", "b".repeat(1025)), 413, "body-bytes", "body_bytes"),
        (
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n401\r\n{}\r\n0\r\n\r\n", "b".repeat(1025)),
            413,
            "body-bytes",
            "body_bytes",
        ),
    ];
    for (before, (request, status, reason, name)) in cases.into_iter().enumerate() {
        let (refusals, reached) = (refused(admin, reason).await, bound(admin, name).await);
        let mut client = Client::connect(process.http()).await;
        let answer = client.ask(request).await;
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{reason}");
        assert_eq!(client.ended().await, Ended::Closed, "{reason}");
        assert_eq!((refused(admin, reason).await, bound(admin, name).await), (refusals + 1.0, reached + 1.0), "{reason}");
        assert_eq!(logged(&log, before).await, (u64::from(status), reason.to_owned()));
    }
    assert_eq!(origin.total(), 0);
    let within = format!("/{}", "u".repeat(190));
    assert_eq!(get_with(process.http(), &within, &"a: b\r\n".repeat(7)).await.status, 200);
}

#[tokio::test]
async fn who_is_too_slow_is_let_go_and_counted() {
    let origin = origin();
    let folder = tempfile::tempdir().unwrap();
    let limits = "[limits]\nheader_timeout = '100ms'\nidle_timeout = '100ms'\nbody_timeout = '100ms'\n";
    let (process, log) = logging(folder.path(), &origin.url(), "json", limits);
    let admin = process.admin();
    let slow = [
        ("GET / HTTP/1.1\r\nHost:", "header-timeout", "header_timeout"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", "body-timeout", "body_timeout"),
    ];
    for (before, (request, reason, name)) in slow.into_iter().enumerate() {
        let mut client = Client::connect(process.http()).await;
        let answer = client.ask(request).await;
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")), "{reason}");
        assert_eq!(client.ended().await, Ended::Closed, "{reason}");
        assert_eq!((refused(admin, reason).await, bound(admin, name).await), (1.0, 1.0), "{reason}");
        assert_eq!(logged(&log, before).await, (408, reason.to_owned()));
    }
    assert_eq!(origin.total(), 0);
    let mut silent = Client::connect(process.http()).await;
    assert_eq!(silent.ended().await, Ended::Closed);
    let (mut idle, answer) = patient(|| Client::connect(process.http()), &keeping("/a")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(idle.ended().await, Ended::Closed);
    assert!(bound(admin, "idle_timeout").await >= 2.0);
}

#[tokio::test]
async fn who_does_not_read_is_cut_and_counted() {
    let origin = origin();
    let process = limited(&origin, "write_timeout = '1s'");
    let mut client = Client::connect(process.http()).await;
    client.send(keeping("/large")).await;
    until("the bound is reached", || bound(process.admin(), "write_timeout"), |count| *count >= 1.0).await;
    let answer = client.answer(false).await.unwrap();
    assert!(!answer.whole && answer.status == 200);
    assert_eq!(get(process.http(), "/large").await.body.len(), 32 << 20, "others get it whole");
}
