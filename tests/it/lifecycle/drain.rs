//! Ending: nobody who asked in time goes without an answer.

use super::process::{HANGUP, Process, TERMINATE, config, write_config};
use super::{get, keeping, metric, until};
use crate::support::client::{Client, Ended};
use crate::support::origin::{Gate, Origin, Recorded, Script};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Answers at once, but `/held` only when the gate is open.
fn origin(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request: &Recorded| match request.path.as_str() {
        "/held" => Script::ok("held").after(&gate),
        _ => Script::ok("fresh").header("cache-control", "max-age=60"),
    })
}

async fn until_draining(admin: SocketAddr) {
    let answer = until("readiness goes", || get(admin, "/readyz"), |answer| answer.status == 503).await;
    assert!(answer.text().contains("draining"));
}

#[tokio::test]
async fn what_is_under_way_is_answered_and_what_is_idle_closes() {
    let gate = Gate::new();
    let origin = origin(&gate);
    let mut process = Process::run(&["--upstream", &origin.url()]);
    let (http, admin) = (process.http(), process.admin());
    let mut idle = Client::connect(http).await;
    assert_eq!(idle.ask(keeping("/a")).await.field("connection"), None);
    let mut busy = Client::connect(http).await;
    busy.send(keeping("/held")).await;
    origin.wait_for_requests("/held", 1);

    process.signal(TERMINATE);
    until_draining(admin).await;
    assert_eq!(get(admin, "/healthz").await.status, 200, "the process lives");
    assert_eq!(idle.ended().await, Ended::Closed);
    gate.open();
    let answer = busy.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.text(), answer.field("connection")), (200, "held", Some("close")));
    assert_eq!(busy.ended().await, Ended::Closed);
    assert_eq!(process.end(), Some(0));
    assert!(TcpStream::connect(http).is_err());
}

#[tokio::test]
async fn what_outlasts_the_drain_timeout_is_cut_and_the_exit_code_says_so() {
    for runtime in ["per_core", "shared"] {
        let origin = origin(&Gate::new());
        let folder = tempfile::tempdir().unwrap();
        let text = config(&origin.url(), &format!("[server]\ndrain_timeout = '300ms'\nruntime = '{runtime}'\n"));
        let mut process = Process::with_config(folder.path(), &text);
        let mut client = Client::connect(process.http()).await;
        client.send(keeping("/held")).await;
        origin.wait_for_requests("/held", 1);
        process.signal(TERMINATE);
        assert!(client.answer(false).await.is_none());
        assert_eq!(process.end(), Some(1), "{runtime}");
        process.err.wait("reason", |line| line.contains("drain timeout"));
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let origin = origin(&Gate::new());
    let log = tempfile::NamedTempFile::new().unwrap();
    // The drain timeout of 30 s is longer than this test waits.
    let mut process = Process::run(&["--upstream", &origin.url(), "--access-log", log.path().to_str().unwrap()]);
    assert_eq!(get(process.http(), "/asked").await.status, 200);
    let mut client = Client::connect(process.http()).await;
    client.send(keeping("/held")).await;
    origin.wait_for_requests("/held", 1);
    process.signal(TERMINATE);
    until_draining(process.admin()).await;
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(1));
    let warnings = process.err.whole().into_iter().filter(|line| line.contains("second signal")).collect::<Vec<_>>();
    assert!(matches!(&warnings[..], [line] if line.contains("WARN")), "{warnings:?}");
    let lines = std::fs::read_to_string(log.path()).unwrap();
    assert!(lines.contains("/asked"), "what was queued is written: {lines}");
}

#[test]
fn a_signal_right_after_the_addresses_were_printed_is_an_orderly_end() {
    for _ in 0..5 {
        let mut process = Process::run(&["--upstream", "http://127.0.0.1:1"]);
        process.admin();
        process.signal(TERMINATE);
        assert_eq!(process.end(), Some(0));
    }
}

#[tokio::test]
async fn whoever_connects_during_the_drain_delay_is_served_and_a_second_signal_ends_it() {
    let origin = origin(&Gate::new());
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::with_config(folder.path(), &config(&origin.url(), ""));
    let (http, admin) = (process.http(), process.admin());
    // Longer than this test waits for anything.
    write_config(folder.path(), &config(&origin.url(), "[server]\ndrain_delay = '10m'\n"));
    process.signal(HANGUP);
    process.err.wait("the reload", |line| line.contains("configuration reloaded"));
    process.signal(TERMINATE);
    until_draining(admin).await;
    let mut client = Client::connect(http).await;
    for _ in 0..2 {
        let answer = client.ask(keeping("/a")).await;
        assert_eq!((answer.status, answer.text(), answer.field("connection")), (200, "fresh", None));
    }
    assert_eq!(get(admin, "/readyz").await.status, 503);
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(1));
}

#[tokio::test]
async fn after_the_drain_delay_the_process_drains() {
    let origin = origin(&Gate::new());
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::with_config(folder.path(), &config(&origin.url(), "[server]\ndrain_delay = '300ms'\n"));
    let http = process.http();
    let mut idle = Client::connect(http).await;
    assert_eq!(idle.ask(keeping("/a")).await.status, 200);
    process.signal(TERMINATE);
    assert_eq!(idle.ended().await, Ended::Closed);
    assert_eq!(process.end(), Some(0));
    assert!(TcpStream::connect(http).is_err());
}

/// How a client that connects again and again ended.
#[derive(Debug, PartialEq)]
enum Last {
    /// The port is closed: no connection was made.
    Refused,
    /// There was a connection, but no whole answer on it.
    Lost(String),
}

fn ask_until_refused(http: SocketAddr, answered: &AtomicUsize) -> Last {
    loop {
        let mut stream = match TcpStream::connect(http) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Last::Refused,
            // Closed while the handshake was under way: the connection never stood.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Last::Refused,
            Err(error) => return Last::Lost(format!("connect: {error}")),
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        let exchanged =
            stream.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").and_then(|()| stream.read_to_end(&mut answer));
        match exchanged {
            Ok(_) if answer.ends_with(b"fresh") => _ = answered.fetch_add(1, Ordering::Relaxed),
            Ok(_) => return Last::Lost(format!("answer: {:?}", String::from_utf8_lossy(&answer))),
            Err(error) => return Last::Lost(format!("exchange: {error}")),
        }
    }
}

#[tokio::test]
async fn whoever_is_queued_when_the_process_drains_is_served() {
    for runtime in ["per_core", "shared"] {
        let origin = origin(&Gate::new());
        let folder = tempfile::tempdir().unwrap();
        let text = config(&origin.url(), &format!("[server]\nworkers = 2\nruntime = '{runtime}'\n"));
        let mut process = Process::with_config(folder.path(), &text);
        let http = process.http();
        assert_eq!(get(http, "/a").await.status, 200);
        let answered = AtomicUsize::new(0);
        let ends: Vec<Last> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| ask_until_refused(http, &answered))).collect();
            while answered.load(Ordering::Relaxed) < 200 {
                std::thread::yield_now();
            }
            process.signal(TERMINATE);
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert!(ends.iter().all(|end| *end == Last::Refused), "{runtime}: {ends:?}");
        assert_eq!(process.end(), Some(0), "{runtime}");
    }
}

#[tokio::test]
async fn every_connection_is_counted_out_again() {
    let origin = origin(&Gate::new());
    let process = Process::run(&["--upstream", &origin.url()]);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(process.http()).await;
        client.ask(keeping("/a")).await;
        clients.push(client);
    }
    assert_eq!(metric(process.admin(), "tiercel_connections", &[]).await, 20.0);
    drop(clients);
    until("all are counted out", || metric(process.admin(), "tiercel_connections", &[]), |open| *open == 0.0).await;
}
