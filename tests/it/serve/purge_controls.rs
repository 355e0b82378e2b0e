//! What keeps purges in bounds: how many, and that nobody purges much by mistake.

use super::*;
use crate::support::origin::Gate;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test]
async fn a_caller_purges_no_more_than_its_rate() {
    let served = serve_with("[purge]\nallow = [\"127.0.0.0/8\"]\nrate = \"1/h\"\nburst = 3\n", |_| fresh("body"));
    let refused = served.ask("PURGE", "/a", "Surrogate-Key: a b c d\r\n", "").await;
    assert_eq!(refused.status, 200, "a call larger than the burst takes the whole of it");
    let refused = served.ask("PURGE", "/a", "", "").await;
    assert_eq!(refused.status, 429, "{}", refused.head);
    let seconds: u64 = refused.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((3500..=3600).contains(&seconds), "{seconds}");
    let (status, answer) = served.admin("POST", "/v1/purge", r#"{"everything": true}"#).await;
    assert_eq!((status, &answer["error"]["message"]), (429, &json!("too many purges")), "one address is one caller, whichever way");
    assert_eq!(served.metric("tiercel_limit_rejections_total{limit=\"purge\"}").await, 2);
    served.reload("[purge]\nrate = \"off\"\n").await;
    for _ in 0..5 {
        served.soften().await;
    }
}

/// Runs the command line on a terminal, typing `input`.
fn on_a_terminal(served: &Served, arguments: &str, input: &str) -> Output {
    let command = format!("{} purge {arguments} --admin http://{}", env!("CARGO_BIN_EXE_tiercel"), served.tiercel.admin);
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--echo", "never", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script, of util-linux, runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

#[tokio::test]
async fn much_is_purged_from_a_terminal_only_after_a_word() {
    let served = serve(|_| fresh("body").header("ETag", "\"v1\""));
    let purged = async |mode: &str| served.metric(&format!("tiercel_purge_requests_total{{kind=\"everything\",mode=\"{mode}\"}}")).await;
    let ask = |arguments: &str, input: &str| {
        let output = on_a_terminal(&served, arguments, input);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (done, said) = ask("--everything", "\n");
    assert!(!done && said.contains("[s]oft, [h]ard, [N]o") && said.contains("nothing was purged"), "{said}");
    let (done, said) = ask("--everything", "what\nno\n");
    assert!(!done && said.matches("Purge?").count() == 2, "asked again: {said}");
    assert_eq!((purged("hard").await, purged("soft").await), (0, 0));
    let (done, said) = ask("--everything", "s\n");
    assert!(done, "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (0, 1));
    let (done, said) = ask("--everything", "hard\n");
    assert!(done, "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (1, 1));
    let (done, said) = ask("--everything --soft", "y\n");
    assert!(done && said.contains("marks as stale: everything"), "{said}");
    let (done, said) = ask("--everything --yes", "");
    assert!(done && !said.contains("[N]o"), "{said}");
    assert_eq!((purged("hard").await, purged("soft").await), (2, 2));
    let (done, said) = ask("--key a", "");
    assert!(done && !said.contains("[N]o"), "a key is not wide: {said}");
}

#[tokio::test]
async fn nobody_is_asked_without_a_terminal() {
    let served = serve(|_| fresh("body"));
    let admin = format!("http://{}", served.tiercel.admin);
    let output = Command::new(env!("CARGO_BIN_EXE_tiercel"))
        .args(["purge", "--prefix", "http://shop.example/", "--admin", &admin])
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(served.metric("tiercel_purge_requests_total{kind=\"prefix\",mode=\"hard\"}").await, 1);
}

/// Asks for these paths at the same time, each on a connection of its own.
fn ask_for(served: &Served, paths: impl IntoIterator<Item = String>) -> Vec<tokio::task::JoinHandle<Answer>> {
    let address = served.tiercel.http;
    let ask = |path: String| tokio::spawn(async move { Client::connect(address).await.ask(request("GET", &path, "", "")).await });
    paths.into_iter().map(ask).collect()
}

const WAITING: &str = "tiercel_upstream_purge_waiting{upstream=\"default\"}";
const CAUSED: &str = "tiercel_upstream_purge_fetches_total{upstream=\"default\"}";

#[tokio::test]
async fn misses_of_a_wide_purge_reach_the_origin_a_few_at_a_time() {
    let (served, gate, is_held) = holding(&places(3));
    let paths = || (0..12).map(|number| format!("/a/{number}"));
    for path in paths() {
        served.get(&path).await;
        served.until_hit(&path, "").await;
    }
    assert_eq!(served.metric(CAUSED).await, 0);
    is_held.store(true, Ordering::Release);
    let before = served.origin.total();
    let (status, answer) = served.admin("POST", "/v1/purge", r#"{"prefixes": ["http://shop.example/a/"]}"#).await;
    assert_eq!(status, 200, "{answer}");
    let answers = ask_for(&served, paths());
    served.until_metric(WAITING, 9).await;
    // Others do not stand in that line.
    let others = ask_for(&served, (0..4).map(|number| format!("/b/{number}")));
    served.origin.until("the others came", |origin| origin.total() >= before + 7).await;
    assert_eq!(served.origin.total(), before + 7, "three of those that were purged, and four others");
    gate.open();
    for answer in answers.into_iter().chain(others) {
        assert_eq!(answer.await.expect("a task").text(), "body");
    }
    assert_eq!((served.origin.total(), served.metric(WAITING).await, served.metric(CAUSED).await), (before + 16, 0, 12));
}

/// Two sites, each with an upstream of its own, which is the same origin.
const TWO_SITES: &str = "purge_concurrency = 1
[upstreams.other]
endpoints = [\"@ORIGIN@\"]
purge_concurrency = 1
[sites.shop]
hosts = [\"shop.example\"]
upstream = \"default\"
[sites.other]
hosts = [\"other.example\"]
upstream = \"other\"
";

#[tokio::test]
async fn each_upstream_has_places_of_its_own_for_what_the_purge_of_a_site_caused() {
    let (served, gate, is_held) = holding(TWO_SITES);
    let waiting = async |upstream: &str, count: u64| {
        served.until_metric(&format!("tiercel_upstream_purge_waiting{{upstream=\"{upstream}\"}}"), count).await;
    };
    is_held.store(true, Ordering::Release);
    let ask = |host: &'static str| {
        let address = served.tiercel.http;
        let ask = |number| request("GET", &format!("/{host}/{number}"), &format!("Host: {host}\r\n"), "");
        (0..3).map(ask).map(|text| tokio::spawn(async move { Client::connect(address).await.ask(text).await })).collect::<Vec<_>>()
    };
    let mut answers = Vec::new();
    for (site, host, upstream) in [("shop", "shop.example", "default"), ("other", "other.example", "other")] {
        let before = served.origin.total();
        let (status, answer) = served.admin("POST", "/v1/purge", &json!({"sites": [site]}).to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answers.extend(ask(host));
        waiting(upstream, 2).await;
        served.origin.until("the one with a place came", |origin| origin.total() == before + 1).await;
    }
    waiting("default", 2).await;
    gate.open();
    for answer in answers {
        assert_eq!(answer.await.expect("a task").text(), "body");
    }
    assert_eq!(served.origin.total(), 6);
}

/// An origin that answers with what may be stored until it is told to hold what comes. `upstream`: the rest of its table, and others.
fn holding(upstream: &str) -> (Served, Gate, Arc<AtomicBool>) {
    let (gate, is_held) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    let (opens, holds) = (gate.clone(), Arc::clone(&is_held));
    let origin = Origin::start(move |request| {
        let script = confirm_or(request, Script::status(304, ""), fresh("body").header("ETag", "\"v1\""));
        if holds.load(Ordering::Acquire) { script.after(&gate) } else { script }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!("[log.access]\ntarget = \"off\"\n[upstreams.default]\nendpoints = [\"@ORIGIN@\"]\n{upstream}");
    let config = config.replace("@ORIGIN@", &origin.url());
    (Served { tiercel: Tiercel::with_config(&config, folder.path()), origin, folder }, opens, is_held)
}

fn places(count: usize) -> String {
    format!("purge_concurrency = {count}\n")
}

#[tokio::test]
async fn what_is_stored_again_waits_no_more_and_soft_purges_stand_in_line_too() {
    let (served, gate, is_held) = holding(&places(1));
    let paths = ["/a/1", "/a/2", "/a/3"];
    for path in paths {
        served.get(path).await;
        served.until_hit(path, "").await;
    }
    let (status, _) = served.admin("POST", "/v1/purge", r#"{"hosts": ["shop.example"], "mode": "soft"}"#).await;
    assert_eq!(status, 200);
    is_held.store(true, Ordering::Release);
    let answers = ask_for(&served, paths.map(str::to_owned));
    served.until_metric(WAITING, 2).await;
    gate.open();
    for answer in answers {
        assert_eq!(answer.await.expect("a task").text(), "body");
    }
    assert_eq!(served.metric(CAUSED).await, 3);
    // Valid since, and stale by another cause: no purge has to do with it.
    let (status, _) = served.admin("POST", "/v1/purge", r#"{"urls": ["http://shop.example/a/1"], "mode": "soft"}"#).await;
    assert_eq!(status, 200);
    served.get("/a/2").await;
    assert_eq!(served.metric(CAUSED).await, 3);
}

#[tokio::test]
async fn the_line_after_a_purge_has_an_end_in_number_and_in_time() {
    let (served, gate, is_held) = holding(&format!("{}queue = 1\npurge_queue_timeout = \"300ms\"\n", places(1)));
    is_held.store(true, Ordering::Release);
    let (status, _) = served.admin("POST", "/v1/purge", r#"{"everything": true}"#).await;
    assert_eq!(status, 200);
    let first = ask_for(&served, ["/a/1".to_owned()]);
    served.origin.until("the first came", |origin| origin.count("/a/1") == 1).await;
    let second = ask_for(&served, ["/a/2".to_owned()]);
    served.until_metric(WAITING, 1).await;
    let third = served.get("/a/3").await;
    assert_eq!((third.status, third.field("retry-after").is_some()), (503, true), "{}", third.head);
    for answer in second {
        assert_eq!(answer.await.expect("a task").status, 503, "its time is over");
    }
    assert_eq!((served.bound("upstream_purge_queue").await, served.bound("upstream_purge_queue_timeout").await), (1, 1));
    gate.open();
    for answer in first {
        assert_eq!(answer.await.expect("a task").status, 200);
    }
    assert_eq!(served.get("/a/4").await.status, 200, "the place is free again");
    assert_eq!(served.origin.count("/a/2") + served.origin.count("/a/3"), 0);
}
