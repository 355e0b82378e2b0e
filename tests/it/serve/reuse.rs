//! Miss and hit: what is added, what is left alone, and what Cache-Status says.

use super::*;
use crate::support::origin::Gate;

#[tokio::test]
async fn a_miss_is_stored_and_then_a_hit() {
    let (date, expires) = (date_in(-10), date_in(3600));
    let served = serve({
        let (date, expires) = (date.clone(), expires.clone());
        move |_| Script::ok("body").header("Date", &date).header("Expires", &expires).header("X-Own", "kept")
    });
    let miss = served.get("/a").await;
    assert_eq!((miss.status, miss.text()), (200, "body"));
    assert_eq!(miss.said(), "tiercel; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(miss.field("age"), None, "what comes from the origin has no Age");
    let hit = served.until_hit("/a", "").await;
    for answer in [&miss, &hit] {
        assert_eq!(answer.field("date"), Some(&*date));
        assert_eq!(answer.field("expires"), Some(&*expires));
        assert_eq!(answer.field("x-own"), Some("kept"));
        assert_eq!(answer.field("content-length"), Some("4"));
    }
    assert_eq!((hit.status, hit.text()), (200, "body"));
    let age: i64 = hit.field("age").expect("a hit has Age").parse().expect("seconds");
    assert!((10..100).contains(&age), "{}", hit.head);
    let status = hit.field("cache-status").expect("Cache-Status");
    let ttl: i64 =
        status.strip_prefix("tiercel; hit; ttl=").and_then(|rest| rest.strip_suffix("; detail=MEMORY")?.parse().ok()).expect(status);
    assert!((3609..=3610).contains(&(age + ttl)), "lifetime is Expires minus Date: {}", hit.head);
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn a_response_without_date_is_dated_by_its_receipt() {
    let served = serve(|_| fresh("body"));
    let miss = served.get("/a").await;
    let hit = served.until_hit("/a", "").await;
    let dated = miss.field("date").expect("a Date is added");
    assert_eq!(hit.field("date"), Some(dated), "and stays the same");
}

#[tokio::test]
async fn an_age_from_a_cache_behind_goes_on_counting() {
    let served = serve(|_| fresh("body").header("Age", "100"));
    let miss = served.get("/a").await;
    let age = |answer: &Answer| answer.field("age").and_then(|age| age.parse::<u64>().ok()).expect("Age");
    assert!((100..200).contains(&age(&miss)), "{}", miss.head);
    assert!((100..200).contains(&age(&served.until_hit("/a", "").await)));
}

#[tokio::test]
async fn both_sides_see_via_and_the_origin_cdn_loop() {
    let served = serve(|_| fresh("body").header("Via", "1.1 inner"));
    let answer = served.get_with("/a", "Via: 1.0 outer\r\nCDN-Loop: other; v=1\r\n").await;
    assert_eq!(answer.all("via"), "1.1 inner, 1.1 tiercel");
    assert_eq!(served.until_hit("/a", "").await.all("via"), "1.1 inner, 1.1 tiercel");
    let seen = served.last("/a");
    assert_eq!(seen.field("via"), Some("1.0 outer, 1.1 tiercel"));
    assert_eq!(seen.field("cdn-loop"), Some("other; v=1, tiercel"));
}

#[tokio::test]
async fn a_request_that_came_around_is_refused() {
    let served = serve_with("[server]\nname = \"edge-1\"\n", |_| fresh("body"));
    let refused = served.get_with("/a", "CDN-Loop: other, edge-1; v=2\r\n").await;
    assert_eq!(refused.status, 508);
    assert_eq!(refused.field("proxy-status"), Some("edge-1; error=proxy_loop_detected; details=\"loop\""));
    assert_eq!(served.get_with("/a", "CDN-Loop: edge-2\r\n").await.status, 200);
    assert_eq!(served.last("/a").field("cdn-loop"), Some("edge-2, edge-1"));
    assert_eq!(served.origin.total(), 1);
}

#[tokio::test]
async fn x_cache_and_the_key_are_told_where_wanted() {
    let served = serve_with("x_cache = true\nshow_key = true\n", |_| fresh("body"));
    let miss = served.get("/a?b=c").await;
    assert_eq!((miss.field("x-cache"), miss.says("key=\"http://shop.example/a?b=c\"")), (Some("MISS"), true), "{}", miss.head);
    assert_eq!(served.until_hit("/a?b=c", "").await.field("x-cache"), Some("HIT"));
    let plain = serve_with("cache_status = false\n", |_| fresh("body"));
    let answer = plain.get("/a").await;
    assert_eq!((answer.field("x-cache"), answer.field("cache-status")), (None, None));
}

#[tokio::test]
async fn cache_status_says_why_a_request_went_forward() {
    let config = "[cache]\nclient_directives = \"honour\"\n[[bypass]]\nreason = \"preview\"\nquery = { preview = { present = true } }\n";
    let served = serve_with(config, |request| match request.path.as_str() {
        "/language" => fresh("body").header("Vary", "Accept-Language"),
        "/stale" => confirm_or(request, Script::status(304, ""), stale("body")),
        _ => fresh("body"),
    });
    served.get_with("/language", "Accept-Language: de\r\n").await;
    served.until_hit("/language", "Accept-Language: de\r\n").await;
    let other = served.get_with("/language", "Accept-Language: fr\r\n").await;
    assert_eq!(other.said(), "tiercel; fwd=vary-miss; fwd-status=200; stored");

    served.get("/stale").await;
    served.until_stored("/stale").await;
    let confirmed = served.get("/stale").await;
    assert!(confirmed.says("fwd=stale") && confirmed.says("fwd-status=304") && confirmed.says("stored"), "{}", confirmed.head);

    served.get("/a").await;
    served.until_hit("/a", "").await;
    let asked = served.get_with("/a", "Cache-Control: no-cache\r\n").await;
    assert!(asked.says("fwd=request") && asked.says("fwd-status=200"), "{}", asked.head);
    let bypassed = served.get("/a?preview=1").await;
    assert_eq!(bypassed.field("cache-status"), Some("tiercel; fwd=bypass; fwd-status=200; detail=preview"));
    let posted = served.ask("POST", "/b", "", "x").await;
    assert_eq!(posted.field("cache-status"), Some("tiercel; fwd=method; fwd-status=200; detail=METHOD"));
}

#[tokio::test]
async fn cache_status_says_why_a_response_was_not_stored() {
    let served = serve(|request| match request.path.as_str() {
        "/no-store" => Script::ok("x").header("Cache-Control", "no-store"),
        "/private" => Script::ok("x").header("Cache-Control", "private, max-age=60"),
        "/star" => fresh("x").header("Vary", "*"),
        "/bare" => Script::ok("x"),
        "/page.css" => Script::ok("x").header("Content-Type", "text/html").header("Last-Modified", &date_in(-100_000)),
        path => unreachable!("{path}"),
    });
    for (path, detail) in [
        ("/no-store", "NO-STORE"),
        ("/private", "PRIVATE"),
        ("/star", "VARY-STAR"),
        ("/bare", "NO-FRESHNESS"),
        ("/page.css", "DECEPTION-GUARD"),
    ] {
        for asked in 1..=2 {
            let answer = served.get(path).await;
            assert!(answer.says(&format!("detail={detail}")) && !answer.says("stored"), "{path}: {}", answer.head);
            assert_eq!(served.origin.count(path), asked, "{path}");
        }
        assert_eq!(served.explain(path).await["stored"], Value::Null, "{path}");
    }
}

#[tokio::test]
async fn a_follower_says_that_it_was_collapsed() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |_| fresh("body").after(&gate)
    });
    let (mut first, mut second) = (served.client().await, served.client().await);
    first.send(request("GET", "/a", "", "")).await;
    served.origin.until("the first request", |origin| origin.count("/a") == 1).await;
    second.send(request("GET", "/a", "", "")).await;
    served.until_waiting(1).await;
    gate.open();
    assert_eq!(first.answer(false).await.expect("an answer").said(), "tiercel; fwd=uri-miss; fwd-status=200; stored");
    let followed = second.answer(false).await.expect("an answer");
    assert_eq!(followed.said(), "tiercel; fwd=uri-miss; fwd-status=200; collapsed");
    assert_eq!((followed.text(), served.origin.count("/a")), ("body", 1));
}

#[tokio::test]
async fn only_if_cached_never_asks_the_origin() {
    let served = serve(|_| fresh("body"));
    let nothing = served.get_with("/a", "Cache-Control: only-if-cached\r\n").await;
    assert_eq!((nothing.status, nothing.field("cache-status").is_none()), (504, true), "{}", nothing.head);
    assert_eq!(served.origin.total(), 0);
    served.get("/a").await;
    served.until_hit("/a", "").await;
    assert_eq!(served.get_with("/a", "Cache-Control: only-if-cached\r\n").await.text(), "body");
}

#[tokio::test]
async fn only_if_cached_asks_no_origin_where_nothing_is_ever_cached() {
    let served = serve_with("[cache]\nenabled = false\n", |_| fresh("body"));
    for (method, status) in [("GET", 504), ("HEAD", 504), ("POST", 200)] {
        assert_eq!(served.ask(method, "/a", "Cache-Control: only-if-cached\r\n", "").await.status, status, "{method}");
    }
    let cached = serve(|_| fresh("body"));
    assert_eq!(cached.get_with("/a", "Cache-Control: only-if-cached, no-store\r\n").await.status, 504);
    assert_eq!((served.origin.total(), cached.origin.total()), (1, 0));
}

#[tokio::test]
async fn a_request_with_no_store_is_neither_answered_from_nor_put_into_the_store() {
    let served = serve(|_| fresh("body"));
    let first = served.get_with("/a", "Cache-Control: no-store\r\n").await;
    assert!(first.says("detail=REQUEST-NO-STORE") && !first.says("stored"), "{}", first.head);
    assert_eq!(served.explain("/a").await["stored"], Value::Null);
    served.get("/a").await;
    served.until_hit("/a", "").await;
    assert!(served.get_with("/a", "Cache-Control: no-store\r\n").await.says("fwd=bypass"));
    assert_eq!(served.origin.count("/a"), 3);
}

#[tokio::test]
async fn directives_of_clients_do_nothing_unless_honoured() {
    let served = serve(|_| fresh("body"));
    served.get("/a").await;
    served.until_hit("/a", "").await;
    for lines in ["Cache-Control: no-cache\r\n", "Cache-Control: max-age=0\r\n", "Pragma: no-cache\r\n"] {
        assert!(served.get_with("/a", lines).await.says("hit"), "{lines}");
    }
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get_and_never_stored_itself() {
    let served = serve(|_| fresh("body"));
    let alone = served.ask("HEAD", "/a", "", "").await;
    assert_eq!((alone.status, alone.field("content-length")), (200, Some("4")));
    assert_eq!((alone.says("fwd=uri-miss"), alone.says("stored")), (true, false), "{}", alone.head);
    assert_eq!(served.last("/a").method, "HEAD");
    served.get("/a").await;
    served.until_hit("/a", "").await;
    let mut client = served.client().await;
    let stored = client.ask(request("HEAD", "/a", "", "")).await;
    assert_eq!((stored.says("hit"), stored.field("content-length")), (true, Some("4")));
    assert_eq!(client.ask(request("GET", "/a", "", "")).await.text(), "body", "no body followed the head");
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn errors_with_explicit_freshness_are_reused_and_others_are_not() {
    let served = serve(|request| match request.path.as_str() {
        "/gone" => Script::status(404, "gone").header("Cache-Control", "max-age=60"),
        _ => Script::status(503, "sick"),
    });
    assert_eq!(served.get("/gone").await.status, 404);
    assert_eq!(served.until_hit("/gone", "").await.status, 404);
    for asked in 1..=2 {
        assert_eq!(served.get("/sick").await.status, 503);
        assert_eq!(served.origin.count("/sick"), asked);
    }
}

#[tokio::test]
async fn an_answer_without_vary_replaces_the_variant_it_was_asked_in_place_of() {
    let served = serve(|request| match request.field("if-none-match") {
        None => {
            Script::ok("old").header("Cache-Control", "max-age=0, stale-while-revalidate=600").header("ETag", "\"1\"").header("Vary", "X-A")
        }
        Some(_) => fresh("new"),
    });
    assert_eq!(served.get_with("/a", "X-A: other\r\n").await.text(), "old");
    assert_eq!(served.get("/a").await.text(), "old");
    served.until("/a", "", "the new response", |answer| answer.text() == "new").await;
    assert_eq!(served.until_hit("/a", "").await.text(), "new");
}
