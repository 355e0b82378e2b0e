//! Fields that are for this cache: `cache.targeted` (RFC 9213), Surrogate-Control, X-Accel-Expires.

use super::*;

const SURROGATE: &str = "[cache]\ntargeted = [\"surrogate-control\"]\n";

#[tokio::test]
async fn a_targeted_field_governs_in_spite_of_cache_control_and_is_passed_on() {
    let served = serve(|_| {
        Script::ok("body").header("Cache-Control", "no-store").header("CDN-Cache-Control", "max-age=3600, ext").header("Expires", "0")
    });
    let miss = served.get("/a").await;
    let hit = served.until_hit("/a", "").await;
    for answer in [&miss, &hit] {
        assert_eq!(answer.field("cdn-cache-control"), Some("max-age=3600, ext"));
        assert_eq!((answer.field("cache-control"), answer.field("expires")), (Some("no-store"), Some("0")));
    }
    let stored = &served.explain("/a").await["stored"];
    assert_eq!((stored["governed_by"].as_str(), stored["freshness_from"].as_str()), (Some("cdn-cache-control"), Some("max-age")));
}

#[tokio::test]
async fn a_targeted_field_forbids_what_cache_control_allows() {
    for (value, detail) in [("no-store", "NO-STORE"), ("private", "PRIVATE"), ("max-age=0", "NO-FRESHNESS")] {
        let served = serve(move |_| fresh("body").header("CDN-Cache-Control", value));
        for asked in 1..=2 {
            let answer = served.get("/a").await;
            assert!(answer.says(&format!("detail={detail}")), "{value}: {}", answer.head);
            assert_eq!(served.origin.count("/a"), asked, "{value}");
        }
    }
}

#[tokio::test]
async fn one_that_is_broken_or_not_named_says_nothing() {
    let served = serve(|_| fresh("body").header("CDN-Cache-Control", "no-store, &&&&&").header("Surrogate-Control", "no-store"));
    assert_eq!(served.get("/a").await.field("surrogate-control"), Some("no-store"), "it is for somebody else");
    assert_eq!(served.until_hit("/a", "").await.field("surrogate-control"), Some("no-store"));
    assert_eq!(served.explain("/a").await["stored"]["governed_by"], "cache-control");
    assert_eq!(served.last("/a").field("surrogate-capability"), None);
}

#[tokio::test]
async fn a_304_updates_the_field_that_governs() {
    let first = || Script::ok("body").header("Cache-Control", "no-store").header("ETag", "\"v1\"").header("Age", "100");
    let served = serve(move |request| {
        let newer = Script::status(304, "").header("CDN-Cache-Control", "max-age=3600");
        let silent = Script::status(304, "");
        let not_modified = if request.path == "/newer" { newer } else { silent };
        confirm_or(request, not_modified, first().header("CDN-Cache-Control", "max-age=60"))
    });
    for path in ["/newer", "/silent"] {
        served.get(path).await;
        served.until_stored(path).await;
        assert!(served.get(path).await.says("fwd-status=304"));
        served.until_hit(path, "").await;
        assert_eq!(served.explain(path).await["stored"]["governed_by"], "cdn-cache-control", "{path}: merged, then read");
    }
    let lifetime = |explained: &Value| explained["stored"]["freshness_lifetime_seconds"].as_f64();
    assert_eq!(lifetime(&served.explain("/newer").await), Some(3600.0));
    assert_eq!(lifetime(&served.explain("/silent").await), Some(60.0));
}

#[tokio::test]
async fn must_revalidate_in_a_targeted_field_forbids_stale_answers() {
    for (value, status) in [("max-age=60, stale-if-error=600", 200), ("max-age=60, stale-if-error=600, must-revalidate", 502)] {
        let served = serve(move |request| confirm_or(request, Script::close(), stale("body").header("CDN-Cache-Control", value)));
        served.get("/a").await;
        served.until_stored("/a").await;
        assert_eq!(served.get("/a").await.status, status, "{value}");
    }
}

#[tokio::test]
async fn surrogate_control_is_for_this_cache_alone() {
    let served = serve_with(SURROGATE, |request| {
        let first = Script::ok("body").header("Cache-Control", "no-store").header("ETag", "\"v1\"");
        let first = first.header("Surrogate-Control", "max-age=1;other, max-age=60;tiercel").header("Age", "100");
        confirm_or(request, Script::status(304, ""), first)
    });
    let miss = served.get_with("/a", "Surrogate-Capability: x=\"ESI/1.0\"\r\n").await;
    let asked = served.last("/a");
    assert_eq!(asked.field("surrogate-capability"), Some("tiercel=\"Surrogate/1.0\""), "and nothing that a client claims");
    served.until_stored("/a").await;
    let confirmed = served.get("/a").await;
    let hit = served.until_hit("/a", "").await;
    for answer in [&miss, &confirmed, &hit] {
        assert_eq!((answer.text(), answer.field("surrogate-control")), ("body", None), "{}", answer.head);
    }
    assert_eq!(served.explain("/a").await["stored"]["governed_by"], "surrogate-control", "a 304 without it leaves it in force");
}

#[tokio::test]
async fn surrogate_control_that_forbids_storing_is_not_passed_on_either() {
    let served = serve_with(SURROGATE, |_| fresh("body").header("Surrogate-Control", "no-store"));
    let answer = served.get("/a").await;
    assert!(answer.says("detail=NO-STORE"), "{}", answer.head);
    assert_eq!(answer.field("surrogate-control"), None);
    let served = serve_with(SURROGATE, |_| fresh("body").header("Surrogate-Control", "max-age=1;other"));
    assert_eq!(served.get("/a").await.field("surrogate-control"), Some("max-age=1;other"), "not for us: passed on");
    served.until_hit("/a", "").await;
}

#[tokio::test]
async fn x_accel_expires_counts_where_it_is_named() {
    let in_an_hour = format!("@{}", clock::now().wall_ms / 1000 + 3600);
    let config = "[cache]\ntargeted = [\"x-accel-expires\"]\n";
    let served = serve_with(config, move |request| {
        let value = match &*request.path {
            "/instant" => in_an_hour.clone(),
            path => path[1..].to_owned(),
        };
        Script::ok("body").header("Cache-Control", "no-store").header("X-Accel-Expires", &value)
    });
    for path in ["/600", "/instant"] {
        assert_eq!(served.get(path).await.field("x-accel-expires"), None);
        assert_eq!(served.until_hit(path, "").await.field("x-accel-expires"), None);
    }
    for path in ["/0", "/off"] {
        assert!(served.get(path).await.says("detail=NO-STORE"), "{path}");
    }
}

#[tokio::test]
async fn another_list_counts_at_once_for_what_is_stored() {
    let served = serve(|_| {
        let both = Script::ok("body").header("Cache-Control", "max-age=3600").header("CDN-Cache-Control", "max-age=7200");
        both.header("Surrogate-Control", "no-store")
    });
    served.get("/a").await;
    served.until_hit("/a", "").await;
    served.reload("[cache]\ntargeted = []\n").await;
    assert!(served.get("/a").await.says("hit"));
    let stored = &served.explain("/a").await["stored"];
    assert_eq!((&stored["governed_by"], &stored["freshness_lifetime_seconds"]), (&json!("cache-control"), &json!(3600.0)));
    served.reload("[cache]\ntargeted = [\"surrogate-control\"]\n").await;
    assert!(served.get("/a").await.says("detail=NO-STORE"), "it would not have been stored");
    assert_eq!(served.origin.count("/a"), 2);
}
