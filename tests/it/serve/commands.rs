//! The commands that talk to a running server: exit codes, text and JSON.

use super::*;
use std::process::{Command, Output};

/// Runs `tiercel` with these arguments.
fn tiercel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tiercel")).args(arguments).env_remove("TIERCEL_ADMIN_TOKEN").output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Standard output of a command that must succeed.
fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a command that must fail with this code, saying nothing on standard output.
fn complaint(output: &Output, code: i32) -> &str {
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), ""), "{}", text(&output.stderr));
    text(&output.stderr)
}

impl Served {
    /// Runs a command against the admin listener.
    fn command(&self, arguments: &[&str]) -> Output {
        let admin = format!("http://{}", self.tiercel.admin);
        tiercel(&[arguments, &["--admin", &admin]].concat())
    }
}

#[tokio::test]
async fn purge_invalidates_and_prints_the_receipt() {
    let served = serve(|_| fresh("body").header("Surrogate-Key", "k1"));
    for arguments in [
        &["purge", "http://shop.example/a"][..],
        &["purge", "--key", "k1"],
        &["purge", "--everything"],
        &["purge", "--host", "shop.example"],
    ] {
        served.get("/a").await;
        served.until_hit("/a", "").await;
        let output = served.command(&[arguments, &["--json"]].concat());
        let receipt: Value = serde_json::from_str(said(&output)).expect("JSON");
        assert_eq!((&receipt["complete"], &receipt["mode"]), (&json!(true), &json!("hard")), "{receipt}");
        assert!(served.get("/a").await.is_miss(), "{arguments:?}");
    }
    let output = served.command(&["purge", "http://shop.example/a", "--soft"]);
    let lines = said(&output);
    assert!(lines.lines().any(|line| line.starts_with("mode") && line.ends_with("soft")), "{lines}");
}

#[tokio::test]
async fn purge_says_what_was_wrong_and_what_helps() {
    let served = serve(|_| fresh("body"));
    let output = served.command(&["purge", "not-a-url"]);
    let said = complaint(&output, 1);
    assert!(said.contains("400") && said.contains("not-a-url") && said.contains("\nremedy: give an absolute URL"), "{said}");
    assert!(!said.contains('{'), "no raw JSON: {said}");
    complaint(&served.command(&["purge"]), 2);
    let nobody = tiercel(&["purge", "--everything", "--admin", "http://127.0.0.1:1"]);
    assert!(complaint(&nobody, 1).contains("cannot connect to 127.0.0.1:1"));
}

#[tokio::test]
async fn purge_of_a_site_that_does_not_exist_is_refused_with_the_nearest() {
    let served = serve(|_| fresh("body"));
    let output = served.command(&["purge", "--site", "defualt"]);
    let said = complaint(&output, 1);
    assert!(said.contains("no site `defualt`") && said.contains("did you mean `default`?"), "{said}");
    assert!(complaint(&served.command(&["purge", "--site", "elsewhere"]), 1).contains("the sites are: default"));
    assert!(served.command(&["purge", "--site", "default"]).status.success());
}

#[tokio::test]
async fn a_token_is_asked_for_and_read_from_a_file() {
    let served = serve_with("[admin]\ntoken = \"only-for-tests\"\n", |_| fresh("body"));
    let output = served.command(&["purge", "--everything"]);
    let said = complaint(&output, 1);
    assert!(said.contains("401") && said.contains("--token-file"), "{said}");
    let file = served.folder.path().join("token");
    std::fs::write(&file, "only-for-tests\n").expect("a writable folder");
    let output = served.command(&["purge", "--everything", "--token-file", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[tokio::test]
async fn explain_tells_what_the_cache_knows_and_would_do() {
    let served = serve(|_| fresh("body").header("Surrogate-Key", "k1 k2").header("Vary", "Accept-Language"));
    let output = served.command(&["explain", "http://shop.example/a", "--json"]);
    let before: Value = serde_json::from_str(said(&output)).expect("JSON");
    assert_eq!((before["site"].as_str(), before["stored"].is_null()), (Some("default"), true), "{before}");
    assert!(before["decision"].as_str().is_some_and(|decision| decision.contains("uri-miss")), "{before}");
    served.get_with("/a", "Accept-Language: de\r\n").await;
    served.until_hit("/a", "Accept-Language: de\r\n").await;
    let output = served.command(&["explain", "http://shop.example/a", "-H", "Accept-Language: de", "--json"]);
    let after: Value = serde_json::from_str(said(&output)).expect("JSON");
    assert_eq!((&after["stored"]["status"], &after["stored"]["freshness_from"]), (&json!(200), &json!("max-age")), "{after}");
    assert_eq!(after["stored"]["surrogate_keys"], json!(["k1", "k2"]));
    assert_eq!((&after["vary_known"], &after["stored"]["variant"]), (&json!(["accept-language"]), &json!(["accept-language:de"])));
    assert_eq!((&after["stored"]["validity"], &after["stored"]["matching_purge"]), (&json!("valid"), &Value::Null));
    assert!(after["decision"].as_str().is_some_and(|decision| decision.starts_with("hit")), "{after}");
    let output = served.command(&["explain", "http://shop.example/a", "-H", "Accept-Language: fr"]);
    assert!(said(&output).lines().any(|line| line.starts_with("decision") && line.contains("vary-miss")), "{}", said(&output));
    assert_eq!(served.origin.total(), 1, "explaining asks nobody");
    assert!(complaint(&served.command(&["explain", "/a"]), 1).contains("remedy: "));
}

#[tokio::test]
async fn explain_names_the_purge_that_decides_and_speaks_in_words() {
    let served = serve_with("[[bypass]]\nreason = \"ADMIN\"\npath = \"/admin\"\n", |_| fresh("body").header("Surrogate-Key", "k"));
    served.until_hit("/a", "").await;
    let purge = async |body: &str| assert_eq!(served.admin("POST", "/v1/purge", body).await.0, 200, "{body}");
    purge(r#"{"urls": ["http://shop.example/a"], "mode": "soft"}"#).await;
    let soft = served.explain("/a").await;
    let deciding = |explained: &Value| {
        let purge = &explained["stored"]["matching_purge"];
        [&explained["stored"]["validity"], &purge["kind"], &purge["mode"], &purge["applies"]].map(Clone::clone)
    };
    assert_eq!(deciding(&soft), [json!("soft-purged"), json!("url"), json!("soft"), json!(true)], "{soft}");
    assert_eq!(soft["decision"], "ask the origin first: what is stored was soft-purged");
    served.until_hit("/a", "").await;
    let again = served.explain("/a").await;
    assert_eq!(deciding(&again), [json!("valid"), json!("url"), json!("soft"), json!(false)], "{again}");
    assert_eq!(served.explain("/admin").await["way"], "past the cache: a bypass rule (ADMIN)");
}

#[tokio::test]
async fn explain_tells_why_nothing_was_stored() {
    let served = serve(|_| Script::ok("body").header("Cache-Control", "no-store"));
    served.get("/a").await;
    let output = served.command(&["explain", "http://shop.example/a", "--json"]);
    let told: Value = serde_json::from_str(said(&output)).expect("JSON");
    assert_eq!((&told["stored"], &told["not_stored"]), (&Value::Null, &json!("NO-STORE")), "{told}");
}

#[tokio::test]
async fn get_makes_a_request_and_says_what_the_cache_did() {
    let served = serve(|_| fresh("body"));
    let proxy = format!("http://{}", served.tiercel.http);
    let file = served.folder.path().join("body");
    let get = |more: &[&str]| tiercel(&[&["get", "http://shop.example/a?b", "--proxy", &proxy], more].concat());
    let output = get(&["-o", file.to_str().expect("UTF-8")]);
    let miss = said(&output);
    assert!(miss.starts_with("HTTP/1.1 200 OK\n") && miss.contains("\ncache   ") && miss.contains("\nbody    4 bytes\n"), "{miss}");
    assert_eq!(std::fs::read(&file).expect("the body"), b"body");
    served.until_hit("/a?b", "").await;
    let output = get(&["--json", "-H", "X-Own: 1"]);
    let hit: Value = serde_json::from_str(said(&output)).expect("JSON");
    assert_eq!((&hit["status"], &hit["body_bytes"]), (&json!(200), &json!(4)));
    assert!(hit["cache"].to_string().contains("hit"), "{hit}");
    let output = get(&["-I"]);
    assert!(said(&output).contains("\nbody    0 bytes\n"), "{}", said(&output));
    assert_eq!(served.origin.count("/a"), 1);
    let output = tiercel(&["get", "http://shop.example/", "--proxy", "http://127.0.0.1:1"]);
    assert!(complaint(&output, 1).contains("cannot connect"));
    complaint(&tiercel(&["get", "http://", "--proxy", &proxy]), 2);
}

#[tokio::test]
async fn reload_takes_the_new_configuration_whole_or_not_at_all() {
    let served = serve(|_| fresh("body"));
    let write = |config: &str| std::fs::write(served.config_file(), whole(config, &served.origin)).expect("a writable folder");
    write("x_cache = true\n");
    assert_eq!(served.get("/a").await.field("x-cache"), None, "not before it is told");
    let output = served.command(&["reload", "--json"]);
    let answer: Value = serde_json::from_str(said(&output)).expect("JSON");
    assert_eq!(answer["reloaded"], true);
    assert!(served.get("/a").await.field("x-cache").is_some());
    write("x_cache = false\nx_cahe = true\n[cache]\nkeep_stale = \"long\"\n");
    let output = served.command(&["reload"]);
    let said = complaint(&output, 1);
    assert!(said.contains("x_cahe") && said.contains("cache.keep_stale") && said.contains("\nremedy: "), "all problems at once: {said}");
    assert!(served.get("/a").await.field("x-cache").is_some(), "the one before stays");
}
