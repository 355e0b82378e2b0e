//! Who may be given whose response: Vary, cookies, Authorization, fields for one client alone.

use super::*;

#[tokio::test]
async fn variants_are_kept_apart_and_each_is_a_hit() {
    let served = serve(|request| fresh(request.field("accept-language").unwrap_or("none")).header("Vary", "Accept-Language"));
    for (language, body) in [("Accept-Language: de\r\n", "de"), ("Accept-Language: fr\r\n", "fr"), ("", "none")] {
        assert_eq!(served.get_with("/a", language).await.text(), body);
        assert_eq!(served.until_hit("/a", language).await.text(), body);
    }
    assert_eq!(served.until_hit("/a", "Accept-Language: de\r\n").await.text(), "de", "others did not push it out");
    assert_eq!(served.origin.count("/a"), 3);
}

#[tokio::test]
async fn variants_per_key_are_capped() {
    let served = serve_with("[cache]\nmax_variants = 2\n", |request| fresh(request.field("x-v").unwrap_or("")).header("Vary", "X-V"));
    let store = async |value: &str| {
        served.get_with("/a", &format!("X-V: {value}\r\n")).await;
        served.until_hit("/a", &format!("X-V: {value}\r\n")).await;
    };
    store("1").await;
    store("2").await;
    // Fetched anew, each replaces its own.
    served.soften().await;
    store("1").await;
    store("2").await;
    assert_eq!((served.explain("/a").await["variants"].as_u64(), served.bound("variants").await), (Some(2), 0), "nothing was dropped");
    store("3").await;
    assert_eq!((served.explain("/a").await["variants"].as_u64(), served.bound("variants").await), (Some(2), 1));
    assert!(served.get_with("/a", "X-V: 2\r\n").await.says("hit"));
    assert!(served.get_with("/a", "X-V: 1\r\n").await.says("fwd=vary-miss"), "the oldest went");
}

#[tokio::test]
async fn the_origin_is_asked_for_gzip_or_identity_and_clients_share_the_answers() {
    let served = serve(|request| {
        let asked = request.field("accept-encoding").unwrap_or("absent").to_owned();
        fresh(&asked).header("Vary", "Accept-Encoding")
    });
    assert_eq!(served.get_with("/a", "Accept-Encoding: br;q=1.0, gzip;q=0.8, deflate\r\n").await.text(), "gzip");
    for same in ["gzip", "deflate, gzip", "*", "x-gzip"] {
        assert_eq!(served.until_hit("/a", &format!("Accept-Encoding: {same}\r\n")).await.text(), "gzip", "{same}");
    }
    assert_eq!(served.get("/a").await.text(), "identity");
    for same in ["br", "gzip;q=0", "identity"] {
        assert_eq!(served.until_hit("/a", &format!("Accept-Encoding: {same}\r\n")).await.text(), "identity", "{same}");
    }
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn accept_encoding_may_be_forwarded_or_fixed() {
    for (mode, seen) in [("forward", Some("br, gzip")), ("identity", Some("identity"))] {
        let served = serve_with(&format!("accept_encoding = \"{mode}\"\n"), |_| fresh("x"));
        served.get_with("/a", "Accept-Encoding: br, gzip\r\n").await;
        assert_eq!(served.last("/a").field("accept-encoding"), seen);
    }
}

fn with_cookie(_: &Recorded) -> Script {
    fresh("body").header("Set-Cookie", "id=1")
}

#[tokio::test]
async fn a_response_with_set_cookie_is_not_stored_by_default() {
    let served = serve(with_cookie);
    for asked in 1..=2 {
        let answer = served.get("/a").await;
        assert_eq!((answer.field("set-cookie"), answer.says("detail=SET-COOKIE")), (Some("id=1"), true), "{}", answer.head);
        assert_eq!(served.origin.count("/a"), asked);
    }
}

#[tokio::test]
async fn set_cookie_is_replayed_or_stripped_where_configured() {
    for (mode, replayed) in [("store", Some("id=1")), ("strip", None)] {
        let served = serve_with(&format!("[cache]\nset_cookie = \"{mode}\"\n"), with_cookie);
        served.get("/a").await;
        assert_eq!(served.until_hit("/a", "").await.field("set-cookie"), replayed, "{mode}");
    }
}

#[tokio::test]
async fn a_stored_cookie_is_withheld_once_the_policy_forbids_it() {
    let served = serve_with("[cache]\nset_cookie = \"store\"\n", |request| match request.path.as_str() {
        "/part" => fresh("0123456789").header("Set-Cookie", "id=1").header("ETag", "\"v1\""),
        _ => with_cookie(request),
    });
    for path in ["/a", "/part"] {
        served.get(path).await;
        assert_eq!(served.until_hit(path, "").await.field("set-cookie"), Some("id=1"));
    }
    served.reload("[cache]\nset_cookie = \"strip\"\n").await;
    for (path, lines, status) in [
        ("/a", "", 200),
        ("/part", "Range: bytes=0-1\r\n", 206),
        ("/part", "Range: bytes=0-1,5-6\r\n", 206),
        ("/part", "If-None-Match: \"v1\"\r\n", 304),
    ] {
        let answer = served.get_with(path, lines).await;
        assert_eq!((answer.status, answer.says("hit"), answer.field("set-cookie")), (status, true, None), "{lines}: {}", answer.head);
    }
    served.reload("[cache]\nset_cookie = \"bypass\"\n").await;
    let answer = served.get("/a").await;
    assert!(!answer.says("hit"), "what would not be stored today is not used: {}", answer.head);
    assert_eq!(answer.field("set-cookie"), Some("id=1"), "it is the client's own");
}

#[tokio::test]
async fn responses_to_authorization_are_shared_only_if_the_origin_says_so() {
    let served = serve(|request| match request.path.as_str() {
        "/public" => Script::ok("x").header("Cache-Control", "public, max-age=60"),
        "/s-maxage" => Script::ok("x").header("Cache-Control", "s-maxage=60"),
        "/must-revalidate" => Script::ok("x").header("Cache-Control", "max-age=60, must-revalidate"),
        _ => fresh("x"),
    });
    let authorized = "Authorization: Basic YTpi\r\n";
    for path in ["/public", "/s-maxage", "/must-revalidate"] {
        served.get_with(path, authorized).await;
        served.until_stored(path).await;
        assert!(served.get(path).await.says("hit"), "{path}");
        assert!(served.get_with(path, "Authorization: Basic Yzpk\r\n").await.says("hit"), "{path}");
        assert_eq!(served.origin.count(path), 1);
    }
    let alone = served.get_with("/plain", authorized).await;
    assert!(alone.says("detail=AUTHORIZATION"), "{}", alone.head);
    served.get("/plain").await;
    served.until_hit("/plain", "").await;
    assert!(!served.get_with("/plain", authorized).await.says("hit"), "what was stored without may be another answer");
}

#[tokio::test]
async fn cookies_of_requests_do_not_part_responses_but_forbid_heuristics() {
    let served = serve(|request| match request.path.as_str() {
        "/explicit" => fresh("x"),
        _ => Script::ok("x").header("Last-Modified", &date_in(-100_000)),
    });
    served.get_with("/explicit", "Cookie: a=1\r\n").await;
    assert!(served.until_hit("/explicit", "Cookie: a=2\r\n").await.says("hit"));
    served.get_with("/heuristic", "Cookie: a=1\r\n").await;
    served.until_stored("/heuristic").await;
    assert!(served.get("/heuristic").await.says("fwd=stale"), "a guess may be one user's");
}

#[tokio::test]
async fn fields_named_by_private_are_for_the_client_that_asked_alone() {
    let served = serve(|_| {
        let script = Script::ok("body").header("Cache-Control", "max-age=60, private=\"x-user, set-cookie\"");
        script.header("X-User", "ann").header("Set-Cookie", "id=1").header("X-All", "yes")
    });
    let own = served.get("/a").await;
    assert_eq!((own.field("x-user"), own.field("set-cookie"), own.says("stored")), (Some("ann"), Some("id=1"), true), "{}", own.head);
    let other = served.until_hit("/a", "").await;
    assert_eq!((other.field("x-user"), other.field("set-cookie"), other.field("x-all")), (None, None, Some("yes")));
}

#[tokio::test]
async fn fields_named_by_no_cache_are_withheld_until_the_origin_was_asked() {
    let served = serve(|request| {
        let cache_control = "max-age=600, no-cache=\"x-user\"";
        let not_modified = Script::status(304, "").header("X-User", "bob").header("Cache-Control", cache_control);
        let first = Script::ok("0123456789").header("Cache-Control", cache_control).header("X-User", "ann").header("ETag", "\"v1\"");
        confirm_or(request, not_modified, first)
    });
    assert_eq!(served.get("/a").await.field("x-user"), Some("ann"), "the origin was asked");
    served.until_hit("/a", "").await;
    for lines in ["", "Range: bytes=0-1\r\n", "Range: bytes=0-1,5-6\r\n", "If-None-Match: \"v1\"\r\n"] {
        let answer = served.get_with("/a", lines).await;
        assert_eq!((answer.says("hit"), answer.field("x-user")), (true, None), "{lines}: {}", answer.head);
    }
    served.soften().await;
    let confirmed = served.get("/a").await;
    assert_eq!((confirmed.says("fwd-status=304"), confirmed.field("x-user")), (true, Some("bob")), "{}", confirmed.head);
    assert_eq!(served.until_hit("/a", "").await.field("x-user"), None);
}
