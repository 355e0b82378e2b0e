//! What a 304 may change of what is stored (RFC 9111 §3.2, §4.3.4).

use super::*;

#[tokio::test]
async fn a_304_that_changes_vary_takes_the_place_of_what_it_confirmed() {
    let served = serve(|request| {
        let language = request.field("accept-language").unwrap_or("none").to_owned();
        let not_modified = Script::status(304, "").header("ETag", "\"v1\"").header("Vary", "Accept-Language");
        confirm_or(request, not_modified, fresh(&language).header("ETag", "\"v1\""))
    });
    let (german, french) = ("Accept-Language: de\r\n", "Accept-Language: fr\r\n");
    served.get_with("/a", german).await;
    assert_eq!(served.until_hit("/a", french).await.text(), "de", "it does not vary yet");
    served.soften().await;
    assert_eq!(served.get_with("/a", german).await.text(), "de");
    let explained = served.explain("/a").await;
    assert_eq!((&explained["variants"], &explained["vary_known"]), (&json!(1), &json!(["accept-language"])));
    assert!(served.get_with("/a", german).await.says("hit"));
    let other = served.get_with("/a", french).await;
    assert!(other.says("fwd=vary-miss"), "what it was before is gone: {}", other.head);
    assert_eq!(other.text(), "fr");
}

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

/// An origin that answers GET with this, HEAD with that.
fn head_differs(get: Lines, head: (u16, Lines)) -> Served {
    serve_with("[cache]\nclient_directives = \"honour\"\n", move |request| {
        let (status, lines) = if request.method == "HEAD" { head } else { (200, get) };
        lines.iter().fold(Script::status(status, "body"), |script, (name, value)| script.header(name, value))
    })
}

const STALE: (&str, &str) = ("Age", "100");
const FRESH: (&str, &str) = ("Cache-Control", "max-age=60");

#[tokio::test]
async fn a_head_that_fits_freshens_what_a_get_stored() {
    let get: Lines = &[FRESH, STALE, ("ETag", "\"v1\""), ("X-Kept", "1"), ("X-New", "old")];
    let head: Lines = &[("Cache-Control", "max-age=600"), ("Age", "0"), ("X-New", "new")];
    let served = head_differs(get, (200, head));
    served.get("/a").await;
    served.until_stored("/a").await;
    let answer = served.ask("HEAD", "/a", "", "").await;
    let seen = served.last("/a");
    assert_eq!((&*seen.method, seen.field("if-none-match")), ("HEAD", Some("\"v1\"")));
    assert!(answer.field("cache-status").expect("told").starts_with("tiercel; fwd=stale; fwd-status=200; ttl="), "{}", answer.head);
    assert!(answer.says("stored"), "{}", answer.head);
    let hit = served.get("/a").await;
    assert!(hit.says("hit"), "{}", hit.head);
    for answer in [&answer, &hit] {
        assert_eq!((answer.field("x-new"), answer.field("x-kept")), (Some("new"), Some("1")));
        assert_eq!((answer.field("content-length"), answer.field("etag")), (Some("4"), Some("\"v1\"")));
    }
    assert_eq!((hit.text(), served.origin.count("/a")), ("body", 2));
}

#[tokio::test]
async fn a_304_to_a_head_freshens_what_a_get_stored() {
    let served = serve(|request| confirm_or(request, Script::status(304, "").header("Age", "0"), stale("body")));
    served.get("/a").await;
    served.until_stored("/a").await;
    let answer = served.ask("HEAD", "/a", "Range: bytes=0-1\r\nIf-None-Match: \"other\"\r\n", "").await;
    assert_eq!((answer.status, answer.field("content-length"), answer.says("fwd-status=304")), (200, Some("4"), true), "{}", answer.head);
    let seen = served.last("/a");
    assert_eq!((&*seen.method, seen.field("range"), seen.field("if-none-match")), ("HEAD", None, Some("\"v1\"")));
    assert!(served.get("/a").await.says("hit"));
}

#[tokio::test]
async fn a_head_that_does_not_fit_leaves_what_is_stored_stale() {
    let rows: [(u16, Lines); 5] = [
        (200, &[("Cache-Control", "max-age=600"), ("ETag", "\"v2\"")]),
        (200, &[("Cache-Control", "max-age=600"), ("Last-Modified", "Sun, 12 Nov 2023 22:13:20 GMT")]),
        (410, &[("Cache-Control", "max-age=600"), ("ETag", "\"v1\"")]),
        (404, &[("Cache-Control", "max-age=600")]),
        (503, &[("Cache-Control", "max-age=600")]),
    ];
    for (status, head) in rows {
        let served = head_differs(&[FRESH, STALE, ("ETag", "\"v1\"")], (status, head));
        served.get("/a").await;
        served.until_stored("/a").await;
        served.ask("HEAD", "/a", "", "").await;
        let answer = served.get("/a").await;
        assert!(answer.says("fwd=stale"), "{status} {head:?}: {}", answer.head);
        assert_eq!((served.last("/a").field("if-none-match"), served.origin.count("/a")), (Some("\"v1\""), 3), "{status}");
    }
}

#[tokio::test]
async fn a_fresh_response_that_a_head_contradicts_is_used_no_more() {
    let get: Lines = &[FRESH, ("ETag", "\"v1\"")];
    for (tag, goes) in [("\"v1\"", false), ("\"v2\"", true)] {
        let head = Box::leak(Box::new([("Cache-Control", "max-age=60"), ("ETag", tag)]));
        let served = head_differs(get, (200, head));
        served.get("/a").await;
        served.until_hit("/a", "").await;
        let answer = served.ask("HEAD", "/a", "Cache-Control: no-cache\r\n", "").await;
        assert!(answer.says("fwd=request"), "{}", answer.head);
        assert_eq!(!served.get("/a").await.says("hit"), goes, "{tag}");
    }
}

#[tokio::test]
async fn a_304_updates_all_that_have_its_strong_validator_and_could_have_been_chosen() {
    // Two responses to the same request: one that varies on X and one that does not, of the same representation.
    let served = serve(|request| {
        let varies = if request.field("x-vary").is_some() { "X" } else { "Y" };
        let first =
            Script::ok("body").header("ETag", "\"v1\"").header("Vary", varies).header("Cache-Control", "max-age=60").header("Age", "100");
        let not_modified = Script::status(304, "").header("ETag", "\"v1\"").header("X-New", "1").header("Age", "0");
        confirm_or(request, not_modified, first)
    });
    for (lines, count) in [("X: 1\r\nX-Vary: 1\r\n", 1), ("Y: 1\r\n", 2)] {
        served.get_with("/a", lines).await;
        served.until_explained("/a", "a variant", |explained| explained["variants"] == count).await;
    }
    // This one could be answered by both.
    let both = "X: 1\r\nY: 1\r\n";
    assert!(served.get_with("/a", both).await.says("fwd-status=304"));
    for lines in [both, "X: 1\r\n", "Y: 1\r\n"] {
        let hit = served.get_with("/a", lines).await;
        assert!(hit.says("hit") && hit.field("x-new") == Some("1"), "{lines}: {}", hit.head);
    }
    assert_eq!(served.origin.count("/a"), 3);
}
