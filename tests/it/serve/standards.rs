//! Sentences of the standards that no other file here is about; docs/conformance.toml names them.

use super::*;

#[tokio::test]
async fn of_several_that_match_the_most_recent_by_date_is_used() {
    let served = serve(|request| match request.field("x-a") {
        Some("1") => fresh("later").header("Vary", "X-A").header("Date", &date_in(-10)),
        _ => fresh("earlier").header("Vary", "X-B").header("Date", &date_in(-100)),
    });
    served.get_with("/a", "X-A: 1\r\n").await;
    served.until_hit("/a", "X-A: 1\r\n").await;
    served.get_with("/a", "X-A: 2\r\nX-B: 1\r\n").await;
    assert_eq!(served.until_hit("/a", "X-A: 2\r\nX-B: 1\r\n").await.text(), "earlier");
    let both = served.get_with("/a", "X-A: 1\r\nX-B: 1\r\n").await;
    assert_eq!((both.says("hit"), both.text()), (true, "later"), "9111 4: by Date, not by when it was fetched");
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn a_response_with_vary_goes_before_one_without() {
    let served = serve(|request| match request.field("x-a") {
        Some("1") => fresh("varied").header("Vary", "X-A").header("Date", &date_in(-100)),
        _ => fresh("plain").header("Date", &date_in(-10)),
    });
    served.get_with("/a", "X-A: 1\r\n").await;
    served.until_hit("/a", "X-A: 1\r\n").await;
    served.get_with("/a", "X-A: 2\r\n").await;
    assert_eq!(served.until_hit("/a", "X-A: 2\r\n").await.text(), "plain");
    let both = served.get_with("/a", "X-A: 1\r\n").await;
    assert_eq!((both.says("hit"), both.text()), (true, "varied"), "9111 4.1");
    assert_eq!(served.origin.count("/a"), 2);
}

const DIRECTIVES: &str = "max-age=3600, X-Unknown=\"a, b\", s-maxage=9";

#[tokio::test]
async fn cache_directives_pass_through_both_ways() {
    let served = serve(|_| Script::ok("body").header("Cache-Control", DIRECTIVES));
    let asked = "Cache-Control: max-age=5, x-mine=\"1, 2\"\r\n";
    assert_eq!(served.get_with("/a", asked).await.field("cache-control"), Some(DIRECTIVES));
    assert_eq!(served.last("/a").field("cache-control"), Some("max-age=5, x-mine=\"1, 2\""));
    assert_eq!(served.until_hit("/a", "").await.field("cache-control"), Some(DIRECTIVES), "9111 5.2: from the store too");
}

#[tokio::test]
async fn a_vary_of_the_origin_is_passed_on_as_it_came() {
    let served = serve(|request| match request.path.as_str() {
        "/star" => fresh("body").header("Vary", "*"),
        "/none" => fresh("body"),
        _ => fresh("body").header("Vary", "X-A,x-b").header("Vary", "Origin"),
    });
    for (path, want) in [("/star", Some("*")), ("/none", None)] {
        assert_eq!(served.get(path).await.field("vary"), want, "{path}");
    }
    served.get("/a").await;
    let head = served.until_hit("/a", "").await.head.to_ascii_lowercase();
    assert!(head.contains("vary: x-a,x-b\r\n") && head.contains("vary: origin\r\n"), "{head}");
    assert_eq!(served.get("/none").await.field("vary"), None, "9110 12.5.5: none is made up");
}

#[tokio::test]
async fn conditions_go_on_where_nothing_is_cached() {
    let served = serve_with("[cache]\nenabled = false\n", |request| match request.field("if-none-match") {
        Some("\"v1\"") => Script::status(304, "").header("ETag", "\"v1\""),
        _ => Script::ok("body").header("ETag", "\"v2\""),
    });
    let lines = "If-None-Match: \"v1\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nIf-Match: \"v1\"\r\nIf-Range: \"v1\"\r\n";
    let answer = served.get_with("/a", lines).await;
    assert_eq!((answer.status, answer.field("etag")), (304, Some("\"v1\"")), "9110 15.4.5: the 304 is passed on");
    let seen = served.last("/a");
    for (name, value) in [
        ("if-none-match", "\"v1\""),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("if-match", "\"v1\""),
        ("if-range", "\"v1\""),
    ] {
        assert_eq!(seen.field(name), Some(value), "9110 13.2.1");
    }
    let answer = served.ask("PUT", "/a", "If-Match: \"v1\"\r\n", "x").await;
    assert_eq!((answer.status, served.last("/a").field("if-match")), (200, Some("\"v1\"")), "9110 13.2.1: an unsafe one too");
}

#[tokio::test]
async fn a_part_has_the_fields_of_the_whole() {
    let date = date_in(-10);
    let lines: Vec<(&str, String)> = [
        ("date", &*date),
        ("etag", "\"v1\""),
        ("content-location", "/b"),
        ("expires", &*date_in(3000)),
        ("cache-control", "max-age=3600"),
        ("vary", "x-a"),
        ("content-type", "text/plain"),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec();
    let answered = lines.clone();
    let served = serve(move |_| answered.iter().fold(Script::ok("0123456789"), |script, (name, value)| script.header(name, value)));
    served.get("/a").await;
    served.until_hit("/a", "").await;
    for condition in ["", "If-Range: \"v1\"\r\n"] {
        let part = served.get_with("/a", &format!("Range: bytes=1-2\r\n{condition}")).await;
        assert_eq!((part.status, part.text()), (206, "12"));
        for (name, value) in &lines {
            assert_eq!(part.field(name), Some(value.as_str()), "9110 15.3.7: {name}");
        }
    }
}

#[tokio::test]
async fn members_of_caches_behind_are_kept_before_ours() {
    let served = serve(|_| fresh("body").header("Cache-Status", "origin; hit, inner; fwd=uri-miss").header("X-Other", "1"));
    let members = |answer: &Answer| {
        let lines = answer.head.lines().filter_map(|line| line.split_once(':'));
        let values = lines.filter(|(name, _)| name.eq_ignore_ascii_case("cache-status")).map(|(_, value)| value.trim().to_owned());
        values.collect::<Vec<_>>().join(", ")
    };
    let miss = members(&served.get("/a").await);
    assert!(miss.starts_with("origin; hit, inner; fwd=uri-miss, tiercel; fwd=uri-miss"), "9211 2: {miss}");
    let hit = members(&served.until("/a", "", "a hit", |answer| members(answer).contains("tiercel; hit")).await);
    assert!(hit.starts_with("origin; hit, inner; fwd=uri-miss, tiercel; hit"), "9211 2: {hit}");
}

#[tokio::test]
async fn answers_of_our_own_name_no_cache() {
    let served = serve(|_| fresh("body"));
    for (lines, path, status) in [("Host: other\r\nHost: another\r\n", "/a", 400), ("CDN-Loop: tiercel\r\n", "/a", 508)] {
        let answer = served.get_with(path, lines).await;
        assert_eq!((answer.status, answer.field("cache-status")), (status, None), "9211 2: {}", answer.head);
    }
    let dead = serve(|_| Script::close());
    let failed = dead.get("/a").await;
    assert_eq!((failed.status, failed.field("cache-status")), (502, None), "9211 2: {}", failed.head);
    assert!(failed.field("proxy-status").is_some_and(|said| said.starts_with("tiercel; error=")), "{}", failed.head);
}
