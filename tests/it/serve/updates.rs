//! What a 304 may change of what is stored (RFC 9111 §3.2, §4.3.4).

use super::*;

/// How what is stored becomes stale: by its age on arrival, so that requests for it do not line up, or later.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Staleness {
    OnArrival,
    Later,
}

type Lines = &'static [(&'static str, &'static str)];

/// An origin whose 304 has these fields; a stale response with a validator is stored.
async fn confirmed(config: &str, staleness: Staleness, lines: Lines) -> (Served, Answer) {
    let served = serve_with(config, move |request| {
        let not_modified = lines.iter().fold(Script::status(304, ""), |script, (name, value)| script.header(name, value));
        let first = match staleness {
            Staleness::OnArrival => stale("body"),
            Staleness::Later => fresh("body").header("ETag", "\"v1\""),
        };
        confirm_or(request, not_modified, first.header("X-Private", "of-the-first"))
    });
    served.get("/a").await;
    served.until_stored("/a").await;
    if staleness == Staleness::Later {
        served.soften().await;
    }
    let answer = served.get("/a").await;
    assert_eq!((answer.status, answer.text()), (200, "body"));
    assert!(answer.says("fwd=stale") && answer.says("fwd-status=304"), "{}", answer.head);
    (served, answer)
}

async fn confirmed_by(config: &str, lines: Lines) -> (Served, Answer) {
    confirmed(config, Staleness::OnArrival, lines).await
}

#[tokio::test]
async fn a_304_that_forbids_storing_is_delivered_and_what_was_stored_goes() {
    let cases: [(Lines, &str); 4] = [
        (&[("Cache-Control", "no-store")], "NO-STORE"),
        (&[("Cache-Control", "private, max-age=60")], "PRIVATE"),
        (&[("Set-Cookie", "id=1"), ("Cache-Control", "max-age=60")], "SET-COOKIE"),
        (&[("Vary", "*"), ("Cache-Control", "max-age=60")], "VARY-STAR"),
    ];
    let all = cases.into_iter().flat_map(|case| [Staleness::OnArrival, Staleness::Later].map(|staleness| (staleness, case)));
    for (staleness, (lines, detail)) in all {
        let (served, answer) = confirmed("", staleness, lines).await;
        assert!(answer.says(&format!("detail={detail}")) && !answer.says("stored"), "{}", answer.head);
        for (name, value) in lines {
            assert_eq!(answer.field(name), Some(*value), "who asked gets what the 304 said");
        }
        assert!(answer.field("date").is_some());
        assert_eq!(served.explain("/a").await["stored"], Value::Null, "{detail} {staleness:?}");
        served.get("/a").await;
        assert_eq!(served.last("/a").field("if-none-match"), None, "{detail}: there is nothing to confirm any more");
    }
}

#[tokio::test]
async fn a_200_by_which_the_origin_withdraws_a_response_takes_the_stored_one_with_it() {
    let personal = "Cookie: session=1\r\n";
    let cases = [
        ("Cache-Control", "no-store", "", true),
        ("Cache-Control", "private", "", true),
        ("Cache-Control", "private", personal, false),
        ("Set-Cookie", "id=1", "", false),
    ];
    for (collapse, (name, value, lines, goes)) in [true, false].into_iter().flat_map(|collapse| cases.map(|case| (collapse, case))) {
        let served = serve_with(&format!("[cache]\ncollapse = {collapse}\n"), move |request| match request.field("if-none-match") {
            None => stale("old"),
            Some(_) => Script::ok("new").header(name, value),
        });
        served.get("/a").await;
        served.until_stored("/a").await;
        let answer = served.get_with("/a", lines).await;
        assert_eq!((answer.text(), answer.says("stored")), ("new", false), "{}", answer.head);
        assert_eq!(served.explain("/a").await["stored"].is_null(), goes, "{name}: {value} {lines} collapse={collapse}");
    }
}

#[tokio::test]
async fn an_error_that_may_not_be_stored_leaves_what_is_stored() {
    let served = serve_with("[cache]\nstale_if_error = \"0s\"\n", |request| {
        confirm_or(request, Script::status(503, "no").header("Cache-Control", "no-store"), stale("old"))
    });
    served.get("/a").await;
    served.until_stored("/a").await;
    assert_eq!(served.get("/a").await.status, 503);
    assert_eq!(served.explain("/a").await["stored"]["status"], 200);
}

#[tokio::test]
async fn a_cookie_of_a_304_is_for_nobody_where_cookies_are_stripped() {
    let (served, answer) =
        confirmed_by("[cache]\nset_cookie = \"strip\"\n", &[("Set-Cookie", "id=1"), ("Cache-Control", "max-age=600"), ("Age", "0")]).await;
    assert_eq!((answer.field("set-cookie"), answer.says("stored")), (None, true));
    assert_eq!(served.until_hit("/a", "").await.field("set-cookie"), None);
}

#[tokio::test]
async fn fields_that_a_304_makes_private_reach_nobody_else() {
    let private = [("Cache-Control", "max-age=600, private=\"x-private\""), ("X-Private", "of-the-second")];
    let (served, answer) = confirmed_by("", Box::leak(Box::new(private))).await;
    assert_eq!(answer.field("x-private"), Some("of-the-second"));
    assert_eq!(served.until_hit("/a", "").await.field("x-private"), None);
}

#[tokio::test]
async fn a_304_without_date_restarts_freshness_and_is_dated_by_its_receipt() {
    let served = serve(|request| {
        confirm_or(
            request,
            Script::status(304, ""),
            Script::ok("body").header("Cache-Control", "max-age=600").header("ETag", "\"v1\"").header("Date", &date_in(-1000)),
        )
    });
    let first = served.get("/a").await;
    served.until_stored("/a").await;
    let confirmed = served.get("/a").await;
    assert!(confirmed.says("fwd-status=304"), "{}", confirmed.head);
    assert_ne!(confirmed.field("date").expect("a Date"), first.field("date").expect("a Date"));
    let hit = served.until_hit("/a", "").await;
    assert_eq!(hit.field("date"), confirmed.field("date"));
    assert!(hit.field("age").and_then(|age| age.parse::<u64>().ok()).expect("Age") < 600);
}

#[tokio::test]
async fn a_304_never_changes_the_length_or_brings_fields_of_its_connection() {
    let lines: &[(&str, &str)] = &[("Cache-Control", "max-age=600"), ("Connection", "X-Hop"), ("X-Hop", "1"), ("X-New", "1")];
    let (served, answer) = confirmed_by("", lines).await;
    let hit = served.until_hit("/a", "").await;
    for answer in [&answer, &hit] {
        assert_eq!(answer.field("content-length"), Some("4"));
        assert_eq!((answer.field("x-hop"), answer.field("x-new")), (None, Some("1")));
    }
}

#[tokio::test]
async fn a_304_for_another_validator_confirms_nothing() {
    let served = serve(|request| match request.field("if-none-match") {
        Some(_) => Script::status(304, "").header("ETag", "\"other\""),
        None => stale("body"),
    });
    served.get("/a").await;
    served.until_stored("/a").await;
    let answer = served.get("/a").await;
    assert_eq!((answer.status, answer.text()), (200, "body"));
    assert_eq!(served.origin.count("/a"), 3, "asked again, without conditions");
    assert_eq!(served.last("/a").field("if-none-match"), None);
}

#[tokio::test]
async fn surrogate_keys_of_a_304_replace_those_before() {
    let (served, _) = confirmed_by("", &[("Cache-Control", "max-age=600"), ("Surrogate-Key", "new")]).await;
    assert_eq!(served.until_hit("/a", "").await.field("surrogate-key"), None);
    assert_eq!(served.explain("/a").await["stored"]["surrogate_keys"], json!(["new"]));
}
