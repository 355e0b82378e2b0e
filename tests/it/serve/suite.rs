//! What the newer edition of the public caching suite asks beyond the one that can be installed, in tests of our own. Where it
//! waits for a response to grow old, the origin here sends an Age.

use super::*;
use crate::support::origin::Step;

/// What the second request for a response gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Hit,
    Asks,
}
use Second::{Asks, Hit};

type Lines = &'static [(&'static str, &'static str)];

/// Asks for each response, one path each, until it is a hit, or three times.
async fn check(status: u16, rows: &'static [(&'static str, Lines, Second)]) {
    let served = serve(move |request| {
        let row: usize = request.path.trim_start_matches('/').parse().expect("a row");
        rows[row].1.iter().fold(Script::status(status, "body"), |script, (name, value)| script.header(name, value))
    });
    for (number, (rule, lines, second)) in rows.iter().enumerate() {
        let path = format!("/{number}");
        let miss = served.get(&path).await;
        for (name, value) in lines.iter().filter(|(name, _)| *name == "CDN-Cache-Control") {
            assert_eq!(miss.field(name), Some(*value), "{rule}: passed on as it came");
        }
        if *second == Hit {
            served.until_hit(&path, "").await;
            assert_eq!(served.origin.count(&path), 1, "{rule}: {lines:?}");
        } else {
            for asked in 2..=3 {
                assert!(!served.get(&path).await.says("hit"), "{rule}: {lines:?}");
                assert_eq!(served.origin.count(&path), asked, "{rule}: {lines:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_targeted_field_governs_alone() {
    const CDN: &str = "CDN-Cache-Control";
    const CONTROL: &str = "Cache-Control";
    const PAST: (&str, &str) = ("Expires", "Sun, 06 Nov 1994 08:49:37 GMT");
    const AHEAD: (&str, &str) = ("Expires", "Thu, 01 Jan 2150 00:00:00 GMT");
    const ROWS: &[(&str, Lines, Second)] = &[
        ("max-age", &[(CDN, "max-age=3600")], Hit),
        ("2^31", &[(CDN, "max-age=2147483648")], Hit),
        ("far above", &[(CDN, "max-age=99999999999")], Hit),
        ("Age counts", &[(CDN, "max-age=3600"), ("Age", "7200")], Asks),
        ("white space before the =: invalid", &[(CDN, "max-age =100"), (CONTROL, "max-age=1"), ("Age", "3")], Asks),
        ("white space after the =: invalid", &[(CDN, "max-age= 100"), (CONTROL, "max-age=1"), ("Age", "3")], Asks),
        ("zero", &[(CDN, "max-age=0")], Asks),
        ("an extension beside it", &[(CDN, "foobar, max-age=3600")], Hit),
        ("keys are lower case", &[(CDN, "MaX-aGe=3600")], Asks),
        ("over a past Expires", &[(CDN, "max-age=3600"), PAST], Hit),
        ("over an invalid Expires", &[(CDN, "max-age=3600"), ("Expires", "0")], Hit),
        ("zero over a future Expires", &[(CDN, "max-age=0"), AHEAD], Asks),
        ("longer than max-age", &[(CDN, "max-age=3600"), (CONTROL, "max-age=1"), ("Age", "3")], Hit),
        ("shorter than max-age", &[(CDN, "max-age=1"), (CONTROL, "max-age=3600"), ("Age", "3")], Asks),
        ("private", &[(CDN, "private"), (CONTROL, "max-age=10000"), AHEAD], Asks),
        ("no-cache", &[(CDN, "no-cache"), (CONTROL, "max-age=10000"), AHEAD], Asks),
        ("no-store", &[(CDN, "no-store"), (CONTROL, "max-age=10000"), AHEAD], Asks),
        ("in spite of no-store", &[(CDN, "max-age=10000"), (CONTROL, "no-store")], Hit),
        ("no structured field", &[(CDN, "max-age=10000, &&&&&"), (CONTROL, "no-store")], Asks),
        ("of another type", &[(CDN, "max-age=\"10000\""), (CONTROL, "no-store")], Asks),
        ("an unknown directive alone leaves nothing explicit", &[(CDN, "foo"), (CONTROL, "max-age=10000"), AHEAD], Asks),
    ];
    check(200, ROWS).await;
}

#[tokio::test]
async fn a_hit_by_a_targeted_field_has_an_age_and_the_date_and_expires_it_came_with() {
    let (date, expires) = (date_in(-5), date_in(-4));
    let lines = [("Date", date.clone()), ("Expires", expires.clone())];
    let served = serve(move |_| {
        let script = Script::ok("body").header("Cache-Control", "max-age=1").header("CDN-Cache-Control", "max-age=10000");
        lines.iter().fold(script, |script, (name, value)| script.header(name, value))
    });
    served.get("/a").await;
    let hit = served.until_hit("/a", "").await;
    assert_eq!((hit.field("date"), hit.field("expires")), (Some(&*date), Some(&*expires)));
    assert!(hit.field("age").and_then(|age| age.parse::<u64>().ok()).is_some_and(|age| age >= 4), "{}", hit.head);
}

#[tokio::test]
async fn the_first_age_counts_and_an_invalid_one_does_not() {
    const FOR_AN_HOUR: (&str, &str) = ("Cache-Control", "max-age=3600");
    const ROWS: &[(&str, Lines, Second)] = &[
        ("no number", &[FOR_AN_HOUR, ("Age", "abc")], Hit),
        ("negative", &[FOR_AN_HOUR, ("Age", "-7200")], Hit),
        ("a fraction", &[FOR_AN_HOUR, ("Age", "7200.0")], Hit),
        ("2^31 - 1", &[FOR_AN_HOUR, ("Age", "2147483647")], Asks),
        ("2^31", &[FOR_AN_HOUR, ("Age", "2147483648")], Asks),
        ("2^31 + 1", &[FOR_AN_HOUR, ("Age", "2147483649")], Asks),
        ("old first", &[FOR_AN_HOUR, ("Age", "7200, 0")], Asks),
        ("old last", &[FOR_AN_HOUR, ("Age", "0, 7200")], Hit),
        ("old first, on two lines", &[FOR_AN_HOUR, ("Age", "7200"), ("Age", "0")], Asks),
        ("old last, on two lines", &[FOR_AN_HOUR, ("Age", "0"), ("Age", "7200")], Hit),
        ("the same twice", &[FOR_AN_HOUR, ("Age", "0, 0")], Hit),
        ("the same on two lines", &[FOR_AN_HOUR, ("Age", "0"), ("Age", "0")], Hit),
        ("not old yet", &[("Cache-Control", "max-age=10000"), ("Age", "3600"), ("Age", "3600")], Hit),
        ("a parameter", &[FOR_AN_HOUR, ("Age", "7200;foo=bar")], Hit),
    ];
    check(200, ROWS).await;
}

#[tokio::test]
async fn must_understand_lifts_no_store_for_what_is_understood() {
    const STRICT: &[(&str, Lines, Second)] = &[("must-understand", &[("Cache-Control", "max-age=3600, no-store, must-understand")], Hit)];
    const UNKNOWN: &[(&str, Lines, Second)] = &[("must-understand", &[("Cache-Control", "max-age=3600, no-store, must-understand")], Asks)];
    check(200, STRICT).await;
    check(599, UNKNOWN).await;
}

#[tokio::test]
async fn an_expires_that_is_no_date_of_the_grammar_is_past() {
    const ROWS: &[(&str, Lines, Second)] = &[
        ("2038", &[("Expires", "Tue, 19 Jan 2038 14:14:08 GMT")], Hit),
        ("far ahead", &[("Expires", "Sun, 21 Nov 2286 04:46:39 GMT")], Hit),
        ("letters in any case", &[("Expires", "thu, 18 aug 2050 02:01:18 gMT")], Hit),
        ("rfc850", &[("Expires", "Thursday, 18-Aug-50 02:01:18 GMT")], Hit),
        ("asctime, whatever its weekday", &[("Expires", "Mon Aug 18 02:01:18 2050")], Hit),
        ("another zone", &[("Expires", "Thu, 18 Aug 2050 02:01:18 UTC")], Asks),
        ("another zone", &[("Expires", "Thu, 18 Aug 2050 02:01:18 AEST")], Asks),
        ("two digits of a year", &[("Expires", "Thu, 18 Aug 50 02:01:18 GMT")], Asks),
        ("no comma", &[("Expires", "Thu 18 Aug 2050 02:01:18 GMT")], Asks),
        ("two spaces", &[("Expires", "Thu, 18  Aug  2050 02:01:18 GMT")], Asks),
        ("dashes", &[("Expires", "Thu, 18-Aug-2050 02:01:18 GMT")], Asks),
        ("dots", &[("Expires", "Thu, 18 Aug 2050 02.01.18 GMT")], Asks),
        ("one digit of an hour", &[("Expires", "Thu, 18 Aug 2050 2:01:18 GMT")], Asks),
        ("several that differ", &[("Expires", "Thu, 18 Aug 2050 02:01:18 GMT"), ("Expires", "Thu, 18 Aug 2050 02:01:19 GMT")], Asks),
    ];
    check(200, ROWS).await;
}

#[tokio::test]
async fn interim_responses_go_first_and_leave_nothing_behind() {
    let served = serve(|_| {
        Script::raw(
            "HTTP/1.1 102 Processing\r\nX-Step: 1\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\nX-My-Header: test\r\n\r\n\
             HTTP/1.1 200 OK\r\nCache-Control: max-age=100000\r\nContent-Length: 4\r\n\r\nbody",
        )
    });
    let mut client = served.client().await;
    let first = client.ask(request("GET", "/a", "", "")).await;
    assert_eq!((first.status, first.field("x-step")), (102, Some("1")));
    let second = client.answer(false).await.expect("the second one");
    assert_eq!((second.status, second.field("link")), (103, Some("</a.css>; rel=preload; as=style")));
    assert_eq!(second.field("x-my-header"), Some("test"));
    let last = client.answer(false).await.expect("the final one");
    assert_eq!((last.status, last.text(), last.field("x-my-header"), last.field("link")), (200, "body", None, None));
    let hit = served.until_hit("/a", "").await;
    assert_eq!((hit.status, hit.field("x-my-header"), hit.field("link")), (200, None, None));
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn a_refresh_carries_the_fields_of_the_client_and_what_it_brings_governs() {
    let served = serve(|request| match request.field("x-turn") {
        Some("1") => Script::ok("old")
            .header("Cache-Control", "max-age=1, stale-while-revalidate=3600")
            .header("ETag", "\"abc\"")
            .header("Age", "60"),
        _ => Script::ok("new").header("Cache-Control", "no-cache").header("ETag", "\"def\""),
    });
    served.get_with("/a", "X-Turn: 1\r\n").await;
    served.until_stored("/a").await;
    let stale = served.get_with("/a", "X-Turn: 2\r\n").await;
    assert_eq!((stale.says("hit"), stale.text()), (true, "old"), "{}", stale.head);
    served.origin.until("the refresh", |origin| origin.count("/a") == 2).await;
    let refresh = served.last("/a");
    assert_eq!((refresh.field("x-turn"), refresh.field("if-none-match")), (Some("2"), Some("\"abc\"")));
    served.until_explained("/a", "the new response", |explained| explained["stored"].to_string().contains("def")).await;
    assert_eq!(served.get_with("/a", "X-Turn: 3\r\n").await.text(), "new");
    let validation = served.last("/a");
    assert_eq!(
        (validation.field("x-turn"), validation.field("if-none-match")),
        (Some("3"), Some("\"def\"")),
        "no-cache: the origin is asked"
    );
}

#[tokio::test]
async fn past_the_window_of_stale_while_revalidate_the_origin_is_asked() {
    const ROWS: &[(&str, Lines, Second)] = &[
        ("within", &[("Cache-Control", "max-age=1, stale-while-revalidate=3600"), ("Age", "60")], Hit),
        ("past", &[("Cache-Control", "max-age=1, stale-while-revalidate=4"), ("Age", "6"), ("ETag", "\"abc\"")], Asks),
    ];
    let served = serve(|request| {
        let (_, lines, _) = ROWS[usize::from(request.path == "/past")];
        lines.iter().fold(Script::ok("body"), |script, (name, value)| script.header(name, value))
    });
    served.get("/within").await;
    served.until_stored("/within").await;
    assert!(served.get("/within").await.says("hit"), "served at once, refreshed behind it");
    served.get("/past").await;
    served.until_stored("/past").await;
    let asked = served.get("/past").await;
    assert!(!asked.says("hit") && served.last("/past").field("if-none-match").is_some(), "{}", asked.head);
}

#[tokio::test]
async fn date_and_expires_stay_and_a_miss_has_no_age() {
    let (date, expires) = (date_in(-30), date_in(3600));
    let served = serve({
        let (date, expires) = (date.clone(), expires.clone());
        move |request| match request.path.as_str() {
            "/max-age" => fresh("body").header("Date", &date),
            _ => Script::ok("body").header("Date", &date).header("Expires", &expires),
        }
    });
    for path in ["/max-age", "/expires"] {
        assert_eq!(served.get(path).await.field("age"), None, "9111 5.1: the origin was asked for this request");
        let hit = served.until_hit(path, "").await;
        assert_eq!(hit.field("date"), Some(&*date), "{path}");
        assert_eq!(hit.field("expires"), (path == "/expires").then_some(&*expires), "{path}");
        assert!(hit.field("age").and_then(|age| age.parse::<u64>().ok()).is_some_and(|age| age >= 29), "{path}: {}", hit.head);
    }
}

#[tokio::test]
async fn what_is_fresh_is_used_whatever_the_origin_would_say_by_now() {
    let served = serve(|request| match request.field("x-turn") {
        None => fresh("body").header("A", "1"),
        Some(_) => Script::ok("other").header("Cache-Control", "no-store, max-age=0").header("A", "2"),
    });
    served.get("/a").await;
    served.until_hit("/a", "").await;
    for turn in 2..4 {
        let answer = served.get_with("/a", &format!("X-Turn: {turn}\r\n")).await;
        assert_eq!((answer.says("hit"), answer.field("a")), (true, Some("1")));
    }
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn odd_framing_of_a_response_does_not_keep_it_from_the_store() {
    let served = serve(|request| {
        let fresh = "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\n";
        match request.path.as_str() {
            "/longer" => Script::raw(format!("{fresh}Content-Length: 10\r\n\r\n0123456789abcdefghijklmnopqrstuvwxyz")),
            "/coding" => Script::raw(format!("{fresh}Transfer-Encoding: odd\r\n\r\n0123456789")).then(Step::Close),
            _ => Script::raw(format!(
                "{fresh}Content-Length: 10\r\nContent-Encoding: odd\r\nContent-Range: odd\r\nKeep-Alive: odd\r\nUpgrade: odd\r\nConnection: a, b\r\nA: 1\r\nB: 2\r\n\r\n0123456789"
            )),
        }
    });
    for path in ["/longer", "/coding", "/fields"] {
        assert_eq!(served.get(path).await.text(), "0123456789", "{path}");
        let hit = served.until_hit(path, "").await;
        assert_eq!((hit.text(), served.origin.count(path)), ("0123456789", 1), "{path}: {}", hit.head);
        for gone in ["a", "b", "upgrade", "keep-alive", "transfer-encoding"] {
            assert_eq!(hit.field(gone), None, "{path}: {gone}");
        }
    }
    assert_eq!(served.until_hit("/fields", "").await.field("content-encoding"), Some("odd"));
}
