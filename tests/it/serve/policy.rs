//! What a route's policy adds: lifetimes by status, jitter, early refresh, storing what is asked for often; and that an
//! answer which needed a line of the configuration says so.

use super::*;
use crate::support::origin::Gate;

#[tokio::test]
async fn errors_are_kept_for_as_long_as_their_status_says() {
    let config = "[cache.ttl.default]\n404 = \"1h\"\n4xx = \"2h\"\n503 = \"3h\"\n";
    let served = serve_with(config, |request| Script::status(request.path[1..].parse().expect("a status"), "sorry"));
    for (path, hours, detail) in [("/404", 1.0, "MEMORY"), ("/403", 2.0, "TTL-DEFAULT"), ("/503", 3.0, "TTL-DEFAULT")] {
        served.get(path).await;
        let hit = served.until_hit(path, "").await;
        assert!(hit.says(&format!("detail={detail}")) && hit.text() == "sorry", "{path}: {}", hit.head);
        let stored = &served.explain(path).await["stored"];
        assert_eq!(stored["freshness_lifetime_seconds"], json!(hours * 3600.0), "{path}");
        assert_eq!(served.origin.count(path), 1);
    }
    for asked in 1..=2 {
        assert_eq!(served.get("/500").await.status, 500);
        assert_eq!(served.origin.count("/500"), asked, "no rule, not kept");
    }
}

#[tokio::test]
async fn an_answer_says_which_line_of_the_configuration_it_needed() {
    let modified = date_in(-86_400);
    for (line, fields, asked, detail) in [
        ("ttl.override = \"1h\"", vec![("Cache-Control", "max-age=0")], "", "TTL-OVERRIDE"),
        ("set_cookie = \"store\"", vec![("Cache-Control", "max-age=60"), ("Set-Cookie", "a=b")], "", "SET-COOKIE-STORED"),
        ("set_cookie = \"strip\"", vec![("Cache-Control", "max-age=60"), ("Set-Cookie", "a=b")], "", "SET-COOKIE-STRIPPED"),
        ("vary.ignore = [\"user-agent\"]", vec![("Cache-Control", "max-age=60"), ("Vary", "User-Agent")], "", "VARY-IGNORED"),
        ("heuristic_with_cookie = true", vec![("Last-Modified", &*modified)], "Cookie: a=b\r\n", "HEURISTIC-WITH-COOKIE"),
        (
            "stale_while_revalidate = \"1h\"",
            vec![("Cache-Control", "max-age=60"), ("Age", "100"), ("ETag", "\"a\"")],
            "",
            "STALE-BY-POLICY",
        ),
        ("heuristic = true", vec![("Cache-Control", "max-age=60"), ("Vary", "User-Agent")], "", "MEMORY"),
    ] {
        let answered: Vec<(String, String)> = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let served = serve_with(&format!("[cache]\n{line}\n"), move |_| {
            answered.iter().fold(Script::ok("body"), |script, (name, value)| script.header(name, value))
        });
        served.get_with("/a", asked).await;
        let hit = served.until_hit("/a", asked).await;
        assert!(hit.says(&format!("detail={detail}")), "{line}: {}", hit.head);
        assert_eq!(hit.field("set-cookie").is_some(), detail == "SET-COOKIE-STORED", "{line}");
        let widened_by = &served.explain("/a").await["stored"]["widened_by"];
        let said = !["MEMORY", "STALE-BY-POLICY"].contains(&detail);
        assert_eq!(widened_by.as_str(), said.then_some(detail), "{line}");
    }
}

#[tokio::test]
async fn a_hit_near_the_end_of_freshness_refreshes_what_it_found() {
    let gate = Gate::new();
    let served = serve_with("[cache]\nearly_refresh = \"50%\"\n", {
        let gate = gate.clone();
        move |request| {
            let old = Script::ok("old").header("Cache-Control", "max-age=3600").header("Age", "2000").header("ETag", "\"v1\"");
            confirm_or(request, fresh("new").after(&gate), old)
        }
    });
    served.get("/a").await;
    let hit = served.until_hit("/a", "").await;
    assert!(hit.text() == "old" && !hit.field("cache-status").expect("Cache-Status").contains("ttl=-"), "{}", hit.head);
    served.origin.until("the refresh", |origin| origin.count("/a") == 2).await;
    for _ in 0..3 {
        let hit = served.get("/a").await;
        assert!(hit.says("hit") && hit.text() == "old", "served while the origin is at work: {}", hit.head);
    }
    gate.open();
    served.until("/a", "", "the new response", |answer| answer.text() == "new").await;
    for _ in 0..3 {
        assert!(served.get("/a").await.says("hit"));
    }
    assert_eq!(served.origin.count("/a"), 2, "one refresh for all, and none where freshness has just begun");
    assert_eq!(served.metric("tiercel_cache_early_refreshes_total").await, 1);
}

#[tokio::test]
async fn a_refresh_that_brings_nothing_to_keep_is_not_tried_with_every_hit() {
    let served = serve_with("[fill]\nmarker_first = \"1h\"\nmarker_max = \"2h\"\n[cache]\nearly_refresh = \"50%\"\n", |request| {
        let old = Script::ok("old").header("Cache-Control", "max-age=3600").header("Age", "2000").header("ETag", "\"v1\"");
        confirm_or(request, Script::ok("yours").header("Cache-Control", "private"), old)
    });
    served.get("/a").await;
    let cookie = "Cookie: session=1\r\n"; // what it gets says nothing of what others would
    served.until_hit("/a", cookie).await;
    served.until_metric("tiercel_cache_refresh_total{outcome=\"failed\"}", 1).await;
    for _ in 0..5 {
        assert_eq!(served.get_with("/a", cookie).await.text(), "old");
    }
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn a_response_is_stored_with_the_nth_request_for_it() {
    let served = serve_with("[cache]\nstore_after = 3\n", |_| fresh("body"));
    for asked in 1..=2 {
        let miss = served.get("/a").await;
        assert!(miss.says("detail=STORE-AFTER") && !miss.says("stored"), "{}", miss.head);
        assert_eq!(served.explain("/a").await["not_stored"], "STORE-AFTER");
        assert_eq!(served.origin.count("/a"), asked);
    }
    assert!(served.get("/a").await.says("stored"));
    served.until_hit("/a", "").await;
    assert_eq!(served.origin.count("/a"), 3);
    assert_eq!(served.metric("tiercel_cache_not_stored_total{reason=\"STORE-AFTER\"}").await, 2);
}

#[tokio::test]
async fn what_is_not_stored_yet_is_shared_all_the_same() {
    let gate = Gate::new();
    let served = serve_with("[cache]\nstore_after = 100\n", {
        let gate = gate.clone();
        move |_| fresh("body").after(&gate)
    });
    let mut crowd = Vec::new();
    for _ in 0..5 {
        let mut client = served.client().await;
        client.send(request("GET", "/a", "", "")).await;
        crowd.push(client);
    }
    served.until_waiting(4).await;
    gate.open();
    for client in &mut crowd {
        let answer = client.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, "body"), "{}", answer.head);
    }
    assert_eq!(served.origin.count("/a"), 1, "one fetch for all who ask at the same time");
    assert!(served.get("/a").await.says("detail=STORE-AFTER"));
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn what_was_stored_once_is_updated_whoever_asks() {
    let served = serve_with("[cache]\nstore_after = 2\n", |request| confirm_or(request, fresh("new"), stale("old")));
    served.get("/a").await;
    served.get("/a").await;
    served.until_stored("/a").await;
    let replaced = served.get("/a").await;
    assert!(replaced.text() == "new" && replaced.says("stored"), "{}", replaced.head);
}

#[tokio::test]
async fn lifetimes_are_spread_and_never_longer() {
    let served = serve_with("[cache]\nttl.jitter = \"50%\"\n", |_| fresh("body"));
    let mut lifetimes = Vec::new();
    for number in 0..8 {
        let path = format!("/{number}");
        served.get(&path).await;
        served.until_hit(&path, "").await;
        let lifetime = |explained: Value| explained["stored"]["freshness_lifetime_seconds"].as_f64().expect("seconds");
        let first = lifetime(served.explain(&path).await);
        assert!((1800.0..=3600.0).contains(&first), "{first}");
        assert_eq!(lifetime(served.explain(&path).await), first, "of one response always the same");
        lifetimes.push(first);
    }
    lifetimes.sort_by(f64::total_cmp);
    lifetimes.dedup();
    assert!(lifetimes.len() > 4, "{lifetimes:?}");
}
