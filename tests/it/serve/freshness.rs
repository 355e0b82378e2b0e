//! Stale: revalidation, and what may be served without it (RFC 9111 §4.2.4, §4.3; RFC 5861).

use super::*;
use crate::support::origin::{Gate, Step};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[tokio::test]
async fn a_304_updates_the_stored_fields_at_once_and_for_later() {
    let served = serve(|request| {
        let not_modified = Script::status(304, "").header("ETag", "\"v1\"").header("X-Version", "2").header("Cache-Control", "max-age=600");
        confirm_or(
            request,
            not_modified,
            stale("body").header("X-Version", "1").header("X-Old", "stays").header("Last-Modified", &date_in(-9000)),
        )
    });
    assert_eq!(served.get("/a").await.field("x-version"), Some("1"));
    served.until_stored("/a").await;
    let now = served.get("/a").await;
    let asked = served.last("/a");
    assert_eq!(asked.field("if-none-match"), Some("\"v1\""));
    assert!(asked.field("if-modified-since").is_some(), "both validators are sent");
    let later = served.until_hit("/a", "").await;
    for answer in [&now, &later] {
        assert_eq!((answer.status, answer.text()), (200, "body"));
        assert_eq!((answer.field("x-version"), answer.field("x-old")), (Some("2"), Some("stays")));
        assert_eq!((answer.field("cache-control"), answer.field("content-length")), (Some("max-age=600"), Some("4")));
    }
    assert!(now.says("fwd=stale") && now.says("fwd-status=304") && now.says("stored"), "{}", now.head);
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn a_200_replaces_what_was_stale() {
    let served = serve(|request| confirm_or(request, fresh("new").header("ETag", "\"v2\""), stale("old").header("X-Old", "gone")));
    assert_eq!(served.get("/a").await.text(), "old");
    served.until_stored("/a").await;
    let replaced = served.get("/a").await;
    assert!(replaced.says("fwd=stale") && replaced.says("fwd-status=200"), "{}", replaced.head);
    let later = served.until_hit("/a", "").await;
    assert_eq!((later.text(), later.field("etag"), later.field("x-old")), ("new", Some("\"v2\""), None));
}

#[tokio::test]
async fn without_validator_a_stale_response_is_fetched_anew() {
    let count = AtomicUsize::new(0);
    let served = serve(move |_| fresh(if count.fetch_add(1, Ordering::SeqCst) == 0 { "one" } else { "two" }));
    served.get("/a").await;
    served.until_hit("/a", "").await;
    served.soften().await;
    let answer = served.get("/a").await;
    assert_eq!((answer.text(), answer.says("fwd=stale")), ("two", true), "{}", answer.head);
    let asked = served.last("/a");
    assert_eq!((asked.field("if-none-match"), asked.field("if-modified-since")), (None, None));
}

#[tokio::test]
async fn what_has_aged_past_its_lifetime_is_revalidated() {
    let served = serve(|request| {
        confirm_or(request, Script::status(304, ""), Script::ok("body").header("Cache-Control", "max-age=1").header("ETag", "\"v1\""))
    });
    served.get("/a").await;
    served.until_hit("/a", "").await;
    served.until_stale("/a").await;
    assert_eq!(served.origin.count("/a"), 1);
    let answer = served.get("/a").await;
    assert!(answer.says("fwd=stale") && answer.says("fwd-status=304"), "{}", answer.head);
    assert_eq!(answer.field("age"), Some("0"), "the age counts from the validation");
}

#[tokio::test]
async fn no_cache_is_stored_and_revalidated_each_time() {
    let served = serve(|request| {
        confirm_or(request, Script::status(304, ""), Script::ok("body").header("Cache-Control", "no-cache").header("ETag", "\"v1\""))
    });
    served.get("/a").await;
    served.until_stored("/a").await;
    for asked in 2..=3 {
        let answer = served.get("/a").await;
        assert_eq!((answer.text(), answer.says("fwd-status=304")), ("body", true), "{}", answer.head);
        assert_eq!(served.origin.count("/a"), asked);
    }
}

#[tokio::test]
async fn a_client_with_the_current_tag_gets_a_304_after_revalidation() {
    let served = serve(|request| confirm_or(request, Script::status(304, ""), stale("body")));
    served.get("/a").await;
    served.until_stored("/a").await;
    let answer = served.get_with("/a", "If-None-Match: \"other\", \"v1\"\r\n").await;
    assert_eq!((answer.status, answer.field("etag")), (304, Some("\"v1\"")));
    assert_eq!(served.last("/a").field("if-none-match"), Some("\"v1\""), "the origin is asked about what is stored");
}

/// An origin that breaks down once the switch is on.
fn breaks_down(cache_control: &'static str, failure: fn() -> Script) -> (Served, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let served = serve({
        let broken = Arc::clone(&broken);
        move |_| {
            if broken.load(Ordering::SeqCst) {
                return failure();
            }
            Script::ok("body").header("Cache-Control", cache_control).header("ETag", "\"v1\"")
        }
    });
    (served, broken)
}

async fn answer_of_a_broken_origin(cache_control: &'static str, failure: fn() -> Script) -> Answer {
    let (served, broken) = breaks_down(cache_control, failure);
    served.get("/a").await;
    served.until_stored("/a").await;
    served.soften().await;
    broken.store(true, Ordering::SeqCst);
    served.get("/a").await
}

#[tokio::test]
async fn a_stale_response_stands_in_for_an_origin_that_does_not_answer() {
    for failure in [Script::close, Script::reset] {
        let answer = answer_of_a_broken_origin("max-age=600, stale-if-error=600", failure).await;
        assert_eq!((answer.status, answer.text()), (200, "body"));
        assert!(answer.says("fwd=stale") && answer.says("detail=STALE-IF-ERROR"), "{}", answer.head);
        assert!(answer.field("age").is_some());
    }
}

#[tokio::test]
async fn a_stale_response_stands_in_for_5xx() {
    for failure in
        [|| Script::status(500, "sick"), || Script::status(502, "sick"), || Script::status(503, "sick"), || Script::status(504, "sick")]
    {
        let answer = answer_of_a_broken_origin("max-age=600, stale-if-error=600", failure).await;
        assert_eq!((answer.status, answer.text()), (200, "body"));
        assert!(answer.says("fwd=stale") && answer.says("detail=STALE-IF-ERROR"), "{}", answer.head);
    }
    let answer = answer_of_a_broken_origin("max-age=600, stale-if-error=600", || Script::status(404, "gone")).await;
    assert_eq!((answer.status, answer.text()), (404, "gone"), "404 is an answer");
    let answer = answer_of_a_broken_origin("max-age=600, stale-if-error=0", || Script::status(503, "sick")).await;
    assert_eq!((answer.status, answer.text()), (503, "sick"), "the origin may close the window");
}

#[tokio::test]
async fn nothing_stale_is_served_against_the_origins_word() {
    for forbidden in ["must-revalidate", "proxy-revalidate", "s-maxage=600", "no-cache"] {
        let cache_control: &'static str = format!("max-age=600, stale-if-error=600, {forbidden}").leak();
        let answer = answer_of_a_broken_origin(cache_control, Script::close).await;
        assert_eq!(answer.status, 502, "{forbidden}: {}", answer.head);
        assert_eq!(answer.field("proxy-status"), Some("tiercel; error=http_response_incomplete"), "{forbidden}");
        assert!(!answer.says("detail=STALE-IF-ERROR") && answer.text() != "body", "{forbidden}");
        let answer = answer_of_a_broken_origin(cache_control, || Script::status(503, "sick")).await;
        assert_eq!((answer.status, answer.text()), (503, "sick"), "{forbidden}");
    }
}

#[tokio::test]
async fn by_default_a_stale_response_stands_in_for_a_minute_and_no_longer() {
    for (age, status) in [("65", 200), ("200", 502)] {
        let served = serve(move |request| {
            let first = Script::ok("body").header("Cache-Control", "max-age=60").header("ETag", "\"v1\"");
            confirm_or(request, Script::close(), first.header("Age", age))
        });
        served.get("/a").await;
        served.until_stored("/a").await;
        let answer = served.get("/a").await;
        assert_eq!((answer.status, answer.says("detail=STALE-IF-ERROR")), (status, status == 200), "{age}: {}", answer.head);
    }
}

/// How an origin fails.
type Failing = fn() -> Script;

#[tokio::test]
async fn however_the_origin_fails_the_client_gets_an_answer_of_ours() {
    fn ends(bytes: &str) -> Script {
        Script::steps([Step::Bytes(bytes.into()), Step::Close])
    }
    let failures: [(&str, Failing); 5] = [
        ("closed", Script::close),
        ("reset", Script::reset),
        ("no HTTP", || ends("SSH-2.0-x\r\n\r\n")),
        ("half a head", || ends("HTTP/1.1 200 OK\r\nX-Own: 1\r\nCache-Co")),
        ("framing of two minds", || ends("HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")),
    ];
    for (name, failure) in failures {
        let served = serve(move |request| {
            let first = Script::ok("body").header("Cache-Control", "max-age=60, must-revalidate").header("X-Own", "1");
            confirm_or(request, failure(), first.header("Age", "65").header("ETag", "\"v1\""))
        });
        served.get("/a").await;
        served.until_stored("/a").await;
        let mut client = served.client().await;
        for path in ["/a", "/a"] {
            let answer = client.ask(request("GET", path, "", "")).await;
            assert_eq!((answer.status, answer.text()), (502, "Bad Gateway\n"), "{name}: {}", answer.head);
            assert!(
                answer.field("x-own").is_none() && answer.field("etag").is_none() && answer.field("age").is_none(),
                "{name}: {}",
                answer.head
            );
            assert!(answer.field("proxy-status").is_some() && answer.says("fwd=stale"), "{name}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn a_stale_response_stands_in_for_an_origin_that_cannot_be_reached() {
    for (cache_control, status) in [("max-age=60, stale-if-error=600", 200), ("max-age=60, stale-if-error=600, s-maxage=60", 502)] {
        let served = serve(move |_| Script::ok("body").header("Cache-Control", cache_control).header("Age", "65").header("ETag", "\"v1\""));
        served.get("/a").await;
        served.until_stored("/a").await;
        served.reload("[sites.default]\nupstream = \"gone\"\n[upstreams.gone]\nendpoints = [\"http://127.0.0.1:1\"]\n").await;
        let answer = served.get("/a").await;
        assert_eq!((answer.status, answer.field("proxy-status").is_some()), (status, status == 502), "{cache_control}: {}", answer.head);
    }
}

#[tokio::test]
async fn a_client_may_take_an_error_window_of_its_own_where_that_is_honoured() {
    for (mode, status) in [("honour", 200), ("ignore", 503)] {
        let config = format!("[cache]\nclient_directives = \"{mode}\"\nstale_if_error = \"0s\"\n");
        let served = serve_with(&config, |request| confirm_or(request, Script::status(503, "sick"), stale("body")));
        served.get("/a").await;
        served.until_stored("/a").await;
        let answer = served.get_with("/a", "Cache-Control: stale-if-error=600\r\n").await;
        assert_eq!(answer.status, status, "{mode}: {}", answer.head);
    }
}

#[tokio::test]
async fn an_origin_that_cannot_be_reached_is_a_502_of_ours() {
    let served = serve(|_| fresh("body"));
    let config = "[sites.default]\nupstream = \"gone\"\n[upstreams.gone]\nendpoints = [\"http://127.0.0.1:1\"]\n";
    served.reload(config).await;
    let answer = served.get("/a").await;
    assert_eq!((answer.status, answer.field("proxy-status")), (502, Some("tiercel; error=connection_refused")));
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    assert!(!answer.text().contains("127.0.0.1"), "nothing internal is told: {}", answer.text());
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_refreshes_in_the_background() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |request| {
            let first = Script::ok("old")
                .header("Cache-Control", "max-age=60, stale-while-revalidate=600")
                .header("Age", "100")
                .header("ETag", "\"v1\"");
            confirm_or(request, fresh("new").after(&gate), first)
        }
    });
    served.get("/a").await;
    let stale = served.until("/a", "", "a stale answer", |answer| answer.says("hit")).await;
    assert_eq!(stale.text(), "old");
    let ttl = stale.field("cache-status").expect("Cache-Status");
    assert!(ttl.contains("; ttl=-"), "{ttl}");
    served.origin.until("the refresh", |origin| origin.count("/a") == 2).await;
    for _ in 0..3 {
        assert_eq!(served.get("/a").await.text(), "old", "served while the origin is at work");
    }
    gate.open();
    served.until("/a", "", "the new response", |answer| answer.text() == "new").await;
    assert_eq!(served.origin.count("/a"), 2, "one refresh for all");
}

#[tokio::test]
async fn a_failing_refresh_leaves_the_stale_response_in_its_window() {
    let served = serve(|request| {
        let first = Script::ok("old")
            .header("Cache-Control", "max-age=60, stale-while-revalidate=600")
            .header("Age", "100")
            .header("ETag", "\"v1\"");
        confirm_or(request, Script::status(503, "sick"), first)
    });
    served.get("/a").await;
    assert_eq!(served.until_hit("/a", "").await.text(), "old");
    served.origin.until("a refresh", |origin| origin.count("/a") >= 2).await;
    // The next refresh waits for a while; what is stale is served all the same.
    for _ in 0..3 {
        assert_eq!(served.until_hit("/a", "").await.text(), "old");
    }
}
