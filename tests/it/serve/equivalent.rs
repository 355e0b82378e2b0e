//! No-Vary-Search: one response for all URLs whose queries the origin calls equivalent.

use super::*;
use crate::support::origin::Gate;

/// Answers with the target that it was asked for, and with a rule.
fn with_rule(rule: &'static str) -> impl Fn(&Recorded) -> Script + Send + Sync + 'static {
    move |request| fresh(&request.target).header("No-Vary-Search", rule)
}

#[tokio::test]
async fn a_response_answers_urls_that_it_calls_equivalent_and_no_others() {
    let served = serve_with("show_key = true\n", with_rule("key-order, params=(\"utm_source\" \"%C3%A9\")"));
    assert_eq!(served.get("/a?b=1&c=2&utm_source=x").await.text(), "/a?b=1&c=2&utm_source=x");
    for same in ["/a?c=2&b=1", "/a?b=%31&c=2&%C3%A9=y&utm_source=", "/a?&b=1&&c=2&", "/a?b=1&c=2&utm_source=x"] {
        let hit = served.until_hit(same, "").await;
        assert_eq!(hit.text(), "/a?b=1&c=2&utm_source=x", "{same}");
        assert!(hit.says("detail=NO-VARY-SEARCH"), "{same}: {}", hit.head);
        let key = "key=\"http://shop.example/a?b=1&c=2%0Ano-vary-search key-order, params=(\\\"utm_source\\\" \\\"%C3%A9\\\")\"";
        assert!(hit.says(key), "{same}: {}", hit.head);
    }
    assert_eq!(served.origin.total(), 1);
    for other in ["/a?b=1&c=3", "/a?b=1", "/a", "/a?b=1&c=2&d", "/b?b=1&c=2"] {
        assert_eq!(served.get(other).await.text(), other);
    }
}

#[tokio::test]
async fn a_rule_that_says_nothing_changes_nothing() {
    for rule in ["params=()", "key-order=?0", "params=(\"x\"), except=(\"y\")", "params=x", "nonsense(", ""] {
        let served = serve(with_rule(rule));
        served.get("/a?x=1").await;
        served.until_hit("/a?x=1", "").await;
        assert_eq!(served.get("/a?x=2").await.text(), "/a?x=2", "{rule}");
        assert_eq!(served.get("/a").await.text(), "/a", "{rule}");
        assert_eq!(served.get("/a?").await.text(), "/a?", "{rule}: not even what an urlencoded parser takes for equal");
    }
}

#[tokio::test]
async fn a_route_may_opt_out_and_a_reload_takes_effect_on_what_is_stored() {
    let served = serve(with_rule("except=()"));
    served.get("/a?x=1").await;
    served.until_hit("/a?x=2", "").await;
    served.reload("[cache]\nno_vary_search = false\n").await;
    assert_eq!(served.get("/a?x=3").await.text(), "/a?x=3");
    assert_eq!(served.until_hit("/a?x=3", "").await.text(), "/a?x=3");
    assert_eq!(served.get("/a?x=4").await.text(), "/a?x=4");
}

#[tokio::test]
async fn purges_and_writes_to_any_equivalent_url_take_it() {
    let served = serve_with("[purge]\nallow = [\"127.0.0.1\"]\n", |request| {
        if request.method == "GET" { fresh(&request.target).header("No-Vary-Search", "except=(\"id\")") } else { Script::ok("written") }
    });
    let store = async || {
        served.get("/a?id=1&x=0").await;
        served.until_hit("/a?id=1&x=1", "").await
    };
    let urls = |url: &str| json!({"urls": [format!("http://{HOST}{url}")]}).to_string();
    for purge in [
        urls("/a?id=1&x=0"),
        urls("/a?y=9&id=1"),
        urls("/a"),
        json!({"prefixes": [format!("{HOST}/a?id=1&z")]}).to_string(),
        json!({"prefixes": [format!("{HOST}/a")]}).to_string(),
    ] {
        store().await;
        let before = served.origin.total();
        assert_eq!(served.admin("POST", "/v1/purge", &purge).await.0, 200, "{purge}");
        assert!(!served.get("/a?id=1&x=2").await.says("hit"), "{purge}");
        assert_eq!(served.origin.total(), before + 1, "{purge}");
    }
    for (method, url) in [("PURGE", "/a?id=1&w=1"), ("POST", "/a?v=1&id=1"), ("DELETE", "/a?id=1")] {
        store().await;
        let answer = served.ask(method, url, "", "").await;
        assert_eq!(answer.status, 200);
        if method == "PURGE" {
            let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(answer["stored_here"], true);
        }
        assert!(!served.get("/a?id=1&x=3").await.says("hit"), "{method}");
    }
    store().await;
    served.admin("POST", "/v1/purge", &urls("/b?id=1")).await;
    assert!(served.get("/a?id=1&x=4").await.says("hit"), "another path is no concern of it");
}

#[tokio::test]
async fn a_purge_while_the_first_response_of_a_path_is_fetched_keeps_it_from_answering_equivalents() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |request| fresh(&request.target).header("No-Vary-Search", "params=(\"x\")").after(&gate)
    });
    let first = tokio::spawn({
        let mut client = served.client().await;
        async move { client.ask(request("GET", "/a?x=1", "", "")).await }
    });
    served.origin.until("the fetch has begun", |origin| origin.total() == 1).await;
    // Nobody knows of any rule yet.
    served.admin("POST", "/v1/purge", &json!({"urls": [format!("http://{HOST}/a?x=2")]}).to_string()).await;
    gate.open();
    assert_eq!(first.await.expect("an answer").text(), "/a?x=1");
    assert_eq!(served.get("/a?x=2").await.text(), "/a?x=2");
}

#[tokio::test]
async fn concurrent_requests_for_equivalent_urls_share_one_fetch_once_the_rule_is_known() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |request| {
            let script = fresh(&request.target).header("No-Vary-Search", "params=(\"x\")");
            if request.target.contains("p=1") { script.after(&gate) } else { script }
        }
    });
    served.get("/a?x=0&p=0").await;
    served.until_hit("/a?p=0", "").await;
    let http = served.tiercel.http;
    let ask =
        |path: String| tokio::spawn(async move { Client::connect(http).await.ask(request("GET", &path, "", "")).await.text().to_owned() });
    let mut answers = Vec::new();
    for x in 0..8 {
        answers.push(ask(format!("/a?p=1&x={x}")));
    }
    served.until_waiting(7).await;
    gate.open();
    let mut texts = Vec::new();
    for answer in answers {
        texts.push(answer.await.expect("an answer"));
    }
    texts.dedup();
    assert_eq!((texts.len(), served.origin.total()), (1, 2), "{texts:?}");
}

#[tokio::test]
async fn followers_whose_url_the_answer_is_not_for_fetch_their_own() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |request| {
            let script = fresh(&request.target);
            match request.target.contains("p=0") {
                true => script.header("No-Vary-Search", "params=(\"x\")"),
                false => script.header("No-Vary-Search", "params=(\"y\")").after(&gate),
            }
        }
    });
    served.get("/a?p=0").await;
    served.until_hit("/a?p=0&x=1", "").await;
    let http = served.tiercel.http;
    let ask = |path: &'static str| {
        tokio::spawn(async move { Client::connect(http).await.ask(request("GET", path, "", "")).await.text().to_owned() })
    };
    let (one, two) = (ask("/a?p=1&x=1"), ask("/a?p=1&x=2"));
    served.until_waiting(1).await;
    gate.open();
    assert_eq!(one.await.expect("an answer"), "/a?p=1&x=1");
    assert_eq!(two.await.expect("an answer"), "/a?p=1&x=2");
    assert_eq!(served.until_hit("/a?p=1&x=2&y=3", "").await.text(), "/a?p=1&x=2", "the rule is the new one");
}

#[tokio::test]
async fn a_changed_or_withdrawn_rule_takes_effect() {
    let served = serve(|request| {
        let rule = request.field("x-rule").unwrap_or("");
        let not_modified = Script::status(304, "").header("ETag", "\"v1\"").header("No-Vary-Search", rule);
        confirm_or(request, not_modified, fresh(&request.target).header("ETag", "\"v1\"").header("No-Vary-Search", rule))
    });
    let get = async |path: &str, rule: &str| served.get_with(path, &format!("X-Rule: {rule}\r\n")).await;
    get("/a?x=1", "params=(\"x\")").await;
    served.until_hit("/a?x=2", "").await;
    assert_eq!(served.explain("/a?x=9").await["no_vary_search"], "params=(\"x\")");
    // A 304 changes it: what was stored answers by the new one.
    served.soften().await;
    assert_eq!(get("/a?x=1", "params=(\"y\")").await.text(), "/a?x=1");
    assert_eq!(served.explain("/a").await["no_vary_search"], "params=(\"y\")");
    assert_eq!(served.until_hit("/a?x=1&y=1", "").await.text(), "/a?x=1");
    assert_eq!(get("/a?x=2", "params=(\"y\")").await.text(), "/a?x=2");
    // A 304 withdraws it.
    served.soften().await;
    assert_eq!(get("/a?x=1&y=5", "").await.text(), "/a?x=1");
    assert_eq!(served.explain("/a").await["no_vary_search"], Value::Null);
    assert_eq!(served.until_hit("/a?x=1&y=5", "").await.text(), "/a?x=1");
    assert_eq!(get("/a?x=1&y=6", "").await.text(), "/a?x=1&y=6");
}

#[tokio::test]
async fn variants_classes_and_methods_stay_apart_within_it() {
    let served = serve_with("[cache.key]\nheaders = [\"x-country\"]\n", |request| {
        let said = |name| request.field(name).unwrap_or("-").to_owned();
        fresh(&format!("{} {}", said("x-country"), said("accept-language")))
            .header("No-Vary-Search", "except=()")
            .header("Vary", "Accept-Language")
    });
    for country in ["de", "fr"] {
        for language in ["a", "b"] {
            let lines = format!("X-Country: {country}\r\nAccept-Language: {language}\r\n");
            assert_eq!(served.get_with("/a?1", &lines).await.text(), format!("{country} {language}"));
            assert_eq!(served.until_hit("/a?2", &lines).await.text(), format!("{country} {language}"));
        }
    }
    assert_eq!(served.origin.total(), 4);
    let head = served.ask("HEAD", "/a?3", "X-Country: de\r\nAccept-Language: a\r\n", "").await;
    assert!(head.says("hit"), "{}", head.head);
}

#[tokio::test]
async fn what_is_stored_for_all_equivalent_urls_replaces_what_the_url_alone_had() {
    let served = serve(|request| match request.field("if-none-match") {
        None => Script::ok("old").header("Cache-Control", "max-age=0, stale-while-revalidate=600").header("ETag", "\"1\""),
        Some(_) => fresh("new").header("No-Vary-Search", "params=(\"x\")"),
    });
    assert_eq!(served.get("/a?x=1").await.text(), "old");
    served.until_stored("/a?x=1").await;
    served.until("/a?x=1", "", "the new response", |answer| answer.text() == "new").await;
    assert_eq!(served.until_hit("/a?x=1", "").await.text(), "new");
}
