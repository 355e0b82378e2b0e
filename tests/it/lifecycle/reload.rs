//! Reading the configuration again: whole or not at all, and nobody notices but by what changed.

use super::process::{HANGUP, Process, config, run, write_config};
use super::{get, get_with, keeping, metric, post, until};
use crate::support::client::{Client, Ended};
use crate::support::origin::{Origin, Script};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A server whose only route answers with this text.
fn saying(text: &str, more: &str) -> String {
    format!("{}\n[[sites.default.routes]]\npath = '/'\nrespond = {{ body = '{text}' }}\n", config("http://127.0.0.1:1", more))
}

async fn said(http: SocketAddr) -> String {
    get(http, "/").await.text().to_owned()
}

async fn reload(admin: SocketAddr) -> (u16, String) {
    let answer = post(admin, "/v1/reload", "{}").await;
    (answer.status, answer.text().to_owned())
}

async fn listener(admin: SocketAddr, name: &str) -> Option<SocketAddr> {
    let status: serde_json::Value = serde_json::from_slice(&get(admin, "/v1/status").await.body).unwrap();
    status["listeners"][name].as_str().map(|address| address.parse().unwrap())
}

/// An address that no other test uses: a loopback network of this process, and a port that is free there.
fn own_address(last: u8) -> SocketAddr {
    let own = std::process::id().to_be_bytes();
    TcpListener::bind(SocketAddr::from(([127, 100 + own[2] % 100, own[3], last], 0))).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn sighup_changes_routes_while_connections_stay() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("one", ""));
    let mut kept = Client::connect(process.http()).await;
    assert_eq!(kept.ask(keeping("/")).await.text(), "one");
    write_config(folder.path(), &saying("two", ""));
    process.signal(HANGUP);
    until("the new route", || said(process.http()), |text| text == "two").await;
    assert_eq!(kept.ask(keeping("/")).await.text(), "two");
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_and_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("one", ""));
    let (http, admin) = (process.http(), process.admin());
    let success = || metric(admin, "tiercel_config_last_reload_success", &[]);
    let command = || run(&["reload", "--admin", &format!("http://{admin}")]);
    assert_eq!(success().await, 1.0);

    write_config(folder.path(), &saying("two", "unknown_key = 1"));
    let refused = command();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(message.contains("unknown_key") && message.contains("`tiercel check` shows the same"), "{message}");
    assert_eq!((success().await, said(http).await.as_str()), (0.0, "one"));
    process.signal(HANGUP);
    process.err.wait("refusal", |line| line.contains("refused") && line.contains("unknown_key"));
    assert_eq!((success().await, said(http).await.as_str()), (0.0, "one"));

    write_config(folder.path(), &saying("three", ""));
    assert!(command().status.success());
    assert_eq!((success().await, said(http).await.as_str()), (1.0, "three"));
}

#[tokio::test]
async fn what_cannot_change_live_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("one", "[server]\nworkers = 2\n"));
    let log = folder.path().join("access.log");
    let text = saying("two", "[server]\nworkers = 3\nruntime = 'shared'\n[metrics]\naddress = '127.0.0.1:0'\n[memory]\nlimit = '65MiB'\n")
        .replace("[admin]\naddress = '127.0.0.1:0'", "[admin]\naddress = 'off'")
        .replace("target = 'off'", &format!("target = '{}'\nformat = 'json'", log.display()));
    write_config(folder.path(), &text);
    let (status, answer) = reload(process.admin()).await;
    assert_eq!(status, 422);
    let keys =
        ["server.workers", "server.runtime", "metrics.address", "memory.limit", "admin.address", "log.access.target", "log.access.format"];
    for key in keys {
        assert!(answer.contains(&format!("{key}: cannot change while the process runs")), "{key}: {answer}");
    }
    assert!(answer.contains("restart the process") && !answer.contains("tiercel check"), "{answer}");
    assert_eq!(said(process.http()).await, "one");
}

#[tokio::test]
async fn listeners_are_added_moved_renamed_and_removed_live() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("x", ""));
    let admin = process.admin();
    let (first, second) = (own_address(1), own_address(2));
    let with = |listeners: &str| format!("{}{listeners}", saying("x", ""));
    let apply = async |listeners: &str| {
        write_config(folder.path(), &with(listeners));
        let (status, answer) = reload(admin).await;
        assert_eq!(status, 200, "{answer}");
    };

    apply(&format!("[listeners.b]\naddress = '{first}'\n[listeners.free]\naddress = '127.0.0.1:0'\n")).await;
    let free = listener(admin, "free").await.unwrap();
    assert_eq!((said(first).await.as_str(), said(free).await.as_str()), ("x", "x"));

    let mut kept = Client::connect(first).await;
    assert_eq!(kept.ask(keeping("/")).await.status, 200);
    apply(&format!("[listeners.b]\naddress = '{second}'\n[listeners.free]\naddress = '127.0.0.1:0'\n")).await;
    assert_eq!(listener(admin, "free").await, Some(free), "what did not change is not bound anew");
    assert_eq!(said(second).await, "x");
    until("the old address closes", async || TcpStream::connect(first).is_err(), |closed| *closed).await;
    assert_eq!(kept.ask(keeping("/")).await.status, 200, "a connection outlives its listener");

    apply(&format!("[listeners.c]\naddress = '{second}'\n")).await;
    assert_eq!((listener(admin, "b").await, listener(admin, "c").await), (None, Some(second)));
    assert_eq!((said(second).await.as_str(), listener(admin, "free").await), ("x", None));
    until("the removed listener closes", async || TcpStream::connect(free).is_err(), |closed| *closed).await;
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_refuses_the_whole_reload() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("one", ""));
    let text = format!("{}[listeners.b]\naddress = '{}'\n", saying("two", ""), taken.local_addr().unwrap());
    write_config(folder.path(), &text);
    let (status, answer) = reload(process.admin()).await;
    assert_eq!(status, 422);
    assert!(answer.contains("listeners.b.address") && answer.contains(&taken.local_addr().unwrap().to_string()), "{answer}");
    assert!(answer.contains("another address") && !answer.contains("tiercel check"), "{answer}");
    assert_eq!((said(process.http()).await.as_str(), listener(process.admin(), "b").await), ("one", None));
}

#[tokio::test]
async fn new_connections_have_the_new_limits_and_old_ones_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::with_config(folder.path(), &saying("x", ""));
    let long = format!("/{}", "a".repeat(500));
    let mut old = Client::connect(process.http()).await;
    assert_eq!(old.ask(keeping(&long)).await.status, 200);
    write_config(folder.path(), &saying("x", "[limits]\nurl_bytes = '100B'\n"));
    assert_eq!(reload(process.admin()).await.0, 200);
    assert_eq!(get(process.http(), &long).await.status, 414);
    assert_eq!(old.ask(keeping(&long)).await.status, 200);
    write_config(folder.path(), &saying("x", ""));
    assert_eq!(reload(process.admin()).await.0, 200);
    assert_eq!(get(process.http(), &long).await.status, 200);
}

#[tokio::test]
async fn a_new_token_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let text = config("http://127.0.0.1:1", "")
        .replace("[admin]\naddress = '127.0.0.1:0'", &format!("[admin]\naddress = '127.0.0.1:0'\ntoken_file = '{}'", token.display()));
    let process = Process::with_config(folder.path(), &text);
    let status = async |token: &str| get_with(process.admin(), "/v1/status", &format!("Authorization: Bearer {token}\r\n")).await.status;
    assert_eq!((status("first").await, status("second").await), (200, 401));
    std::fs::write(&token, "second\n").unwrap();
    let command = |token: &Path| {
        run(&["reload", "--admin", &format!("http://{}", process.admin()), "--token-file", token.to_str().unwrap()]).status.code()
    };
    assert_eq!(command(&token), Some(1), "the new token is not known yet");
    let old = folder.path().join("old");
    std::fs::write(&old, "first").unwrap();
    assert_eq!(command(&old), Some(0));
    assert_eq!((status("first").await, status("second").await), (401, 200));
    assert_eq!(command(&token), Some(0));
}

#[tokio::test]
async fn the_log_level_changes_whichever_way_the_reload_comes() {
    let folder = tempfile::tempdir().unwrap();
    let leveled =
        |level: &str| config("http://127.0.0.1:1", "").replace("[log.access]", &format!("[log]\nlevel = '{level}'\n[log.access]"));
    let process = Process::with_config(folder.path(), &leveled("info"));
    assert_eq!(get(process.http(), "/").await.status, 502);
    write_config(folder.path(), &leveled("debug"));
    assert_eq!(reload(process.admin()).await.0, 200);
    assert!(!process.err.all().iter().any(|line| line.contains("request failed")));
    assert_eq!(get(process.http(), "/").await.status, 502);
    process.err.wait("debug line", |line| line.contains("request failed"));
}

/// Asks on one connection until told to stop; the answers, none of which may be missing.
async fn ask_meanwhile(http: SocketAddr, stop: &AtomicBool, answers: &AtomicUsize) {
    let mut client = Client::connect(http).await;
    while !stop.load(Ordering::Relaxed) {
        let answer = client.ask(keeping("/fetched")).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        assert!(answer.field("x-version").is_some_and(|version| version == "even" || version == "odd"), "{}", answer.head);
        assert_eq!(answer.field("connection"), None);
        assert_eq!(get(http, "/").await.status, 200);
        answers.fetch_add(1, Ordering::Relaxed);
    }
    client.finish_sending().await;
    assert_eq!(client.ended().await, Ended::Closed);
}

#[tokio::test]
async fn two_hundred_reloads_under_load_fail_no_request() {
    let origin = Origin::start(|_| Script::ok("x").header("cache-control", "no-store"));
    let folder = tempfile::tempdir().unwrap();
    let version = |number: usize| {
        let word = if number.is_multiple_of(2) { "even" } else { "odd" };
        // The upstream's own settings change too: its pool is a new one each time.
        let text = config(&origin.url(), "[server]\nworkers = 2\n");
        format!("{text}queue = {}\n[response_headers]\nset = {{ x-version = '{word}' }}\n", 1000 + number)
    };
    let process = Process::with_config(folder.path(), &version(0));
    let (http, admin) = (process.http(), process.admin());
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reloads = async {
        for number in 1..=200 {
            write_config(folder.path(), &version(number));
            let (status, answer) = reload(admin).await;
            assert_eq!(status, 200, "{answer}");
            let before = answers.load(Ordering::Relaxed);
            if number % 20 == 0 {
                until("requests go on", async || answers.load(Ordering::Relaxed), |now| *now > before).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ask = || ask_meanwhile(http, &stop, &answers);
    tokio::join!(reloads, ask(), ask(), ask(), ask());
    assert_eq!(metric(admin, "tiercel_requests_total", &["code=\"5xx\""]).await, 0.0);
    assert_eq!(metric(admin, "tiercel_refused_total", &[]).await, 0.0);
}
