//! What sites and routes do to requests and responses.

use super::*;

#[tokio::test]
async fn paths_and_queries_are_rewritten_towards_the_origin_alone() {
    let config = r#"
show_key = true
[[sites.default.routes]]
path = "/api/"
rewrite = [{ strip_prefix = "/api" }, { add_prefix = "/v2" }, { set_query = { lang = "en" } }]
[[sites.default.routes]]
path = "/img/"
rewrite = [{ pattern = "^/img/([a-z]+)-([0-9]+)$", with = "/media/$2/$1" }]
[[sites.default.routes]]
path = "/dropped"
rewrite = [{ drop_query = ["utm_*"] }]
"#;
    let served = serve_with(config, |request| fresh(&request.target));
    for (path, seen) in [("/api/users?id=1", "/v2/users?id=1&lang=en"), ("/img/cat-7", "/media/7/cat"), ("/other", "/other")] {
        let answer = served.get(path).await;
        assert_eq!(answer.text(), seen);
        assert!(answer.says(&format!("key=\"http://shop.example{path}\"")), "{}", answer.head);
    }
    assert_eq!(served.get("/dropped?utm_source=x&a=1").await.text(), "/dropped?a=1");
    assert_eq!(served.until_hit("/dropped?a=1&utm_medium=y", "").await.text(), "/dropped?a=1", "dropped for the key, too");
    assert_eq!(served.origin.count("/dropped"), 1);
}

#[tokio::test]
async fn redirects_and_fixed_answers_ask_no_origin() {
    let config = r#"
[[sites.default.routes]]
path = "/old/"
redirect = { status = 301, location = "https://{host}/new{path}{query}" }
[[sites.default.routes]]
exact = "/robots.txt"
respond = { body = "User-agent: *\n" }
[[sites.default.routes]]
exact = "/teapot"
respond = { status = 418, content_type = "text/html", body = "<p>short</p>" }
response_headers = { set = { x-kind = "tea" } }
"#;
    let served = serve_with(config, |_| fresh("body"));
    let redirect = served.get("/old/a?b=c").await;
    assert_eq!((redirect.status, redirect.field("location")), (301, Some("https://shop.example/new/old/a?b=c")));
    assert_eq!(
        served.get_with("/old/a", "Host: shop.example:8080\r\n").await.field("location"),
        Some("https://shop.example:8080/new/old/a")
    );
    let robots = served.get("/robots.txt").await;
    assert_eq!((robots.status, robots.text(), robots.field("content-type")), (200, "User-agent: *\n", Some("text/plain; charset=utf-8")));
    let mut client = served.client().await;
    let head = client.ask(request("HEAD", "/robots.txt", "", "")).await;
    assert_eq!((head.status, head.field("content-length")), (200, Some("14")));
    let teapot = client.ask(request("GET", "/teapot", "", "")).await;
    assert_eq!((teapot.status, teapot.field("content-type"), teapot.field("x-kind")), (418, Some("text/html"), Some("tea")));
    assert_eq!(served.origin.total(), 0);
}

#[tokio::test]
async fn fields_are_edited_on_both_ways() {
    let config = r#"
[request_headers]
remove = ["x-debug"]
set = { x-api-key = "of-ours" }
add = { x-list = ["1", "2"] }
[response_headers]
remove = ["server", "x-powered-by"]
set = { cache-control = "no-cache" }
add = { x-served-by = "edge" }
"#;
    let served =
        serve_with(config, |_| fresh("0123456789").header("Server", "secret/1").header("X-Powered-By", "y").header("ETag", "\"v1\""));
    let miss = served.get_with("/a", "X-Debug: 1\r\nX-Api-Key: guessed\r\n").await;
    let seen = served.last("/a");
    assert_eq!((seen.field("x-debug"), seen.field("x-api-key")), (None, Some("of-ours")));
    assert_eq!(seen.fields.iter().filter(|(name, _)| name == "x-list").map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    served.until_hit("/a", "").await;
    let (hit, part) = (served.get("/a").await, served.get_with("/a", "Range: bytes=0-1\r\n").await);
    let not_modified = served.get_with("/a", "If-None-Match: \"v1\"\r\n").await;
    assert_eq!((part.status, not_modified.status), (206, 304));
    for answer in [&miss, &hit, &part, &not_modified] {
        assert_eq!((answer.field("server"), answer.field("x-powered-by")), (None, None), "{}", answer.head);
        assert_eq!((answer.all("cache-control"), answer.field("x-served-by")), ("no-cache".to_owned(), Some("edge")));
    }
    assert!(hit.says("hit"), "edits of the answer do not decide what is reused");
}

#[tokio::test]
async fn bypass_rules_go_by_all_their_conditions_and_give_their_reason() {
    let config = r#"
[[bypass]]
reason = "logged-in"
cookies = ["session*"]
[[bypass]]
reason = "preview"
path = "/draft/"
headers = { x-preview = "1" }
"#;
    let served = serve_with(config, |_| fresh("body"));
    let reason = |answer: &Answer| answer.field("cache-status").unwrap_or_default().split("detail=").nth(1).map(str::to_owned);
    for (path, lines, wanted) in [
        ("/a", "Cookie: session_id=1\r\n", Some("logged-in")),
        ("/draft/a", "X-Preview: 1\r\n", Some("preview")),
        ("/draft/b", "X-Preview: 2\r\n", None),
        ("/b", "X-Preview: 1\r\n", None),
    ] {
        let answer = served.get_with(path, lines).await;
        assert_eq!(reason(&answer).as_deref(), wanted, "{path} {lines}: {}", answer.head);
        assert_eq!((answer.says("fwd=bypass"), answer.says("stored")), (wanted.is_some(), wanted.is_none()));
    }
    let off = serve_with("[cache]\nenabled = false\n", |_| fresh("body"));
    let answer = off.get("/a").await;
    assert!(answer.says("fwd=bypass") && answer.says("detail=DISABLED"), "{}", answer.head);
}

#[tokio::test]
async fn query_parameters_count_as_the_key_says() {
    let ignoring = serve_with("[cache.key]\nquery_sort = true\nquery_ignore = [\"utm_*\"]\n", |request| fresh(&request.target));
    assert_eq!(ignoring.get("/a?b=2&utm_x=1&a=1").await.text(), "/a?a=1&b=2", "the origin sees what counts");
    for same in ["/a?a=1&b=2", "/a?utm_y=3&b=2&a=1"] {
        assert_eq!(ignoring.until_hit(same, "").await.text(), "/a?a=1&b=2");
    }
    for other in ["/a?a=1", "/a?a=1&b=3", "/a"] {
        assert_eq!(ignoring.get(other).await.text(), other);
    }
    let allowing = serve_with("[cache.key]\nquery_allow = [\"page\"]\n", |request| fresh(&request.target));
    allowing.get("/a?page=1&x=2").await;
    assert_eq!(allowing.until_hit("/a?y=3&page=1", "").await.text(), "/a?page=1");
    assert!(!allowing.get("/a?page=2").await.says("hit"));
    assert!(!allowing.get("/a?x=1;page=3").await.says("hit"), "some origins part at semicolons");
}

#[tokio::test]
async fn fields_and_cookies_count_as_the_key_says() {
    let config = "[cache.key]\nheaders = [\"X-Country\"]\ncookies = [\"plan\"]\n";
    let served = serve_with(config, |request| {
        fresh(&format!("{} {}", request.field("x-country").unwrap_or("-"), request.field("cookie").unwrap_or("-")))
    });
    for (lines, body) in [("X-Country: de\r\n", "de -"), ("X-Country: fr\r\n", "fr -"), ("Cookie: plan=pro\r\n", "- plan=pro"), ("", "- -")]
    {
        assert_eq!(served.get_with("/a", lines).await.text(), body);
        assert_eq!(served.until_hit("/a", lines).await.text(), body);
    }
    assert!(served.get_with("/a", "X-Country: de\r\nCookie: other=1\r\n").await.says("hit"), "other cookies do not count");
    assert_eq!(served.origin.count("/a"), 4);
    served.admin("POST", "/v1/purge", r#"{"urls": ["http://shop.example/a"]}"#).await;
    for lines in ["X-Country: de\r\n", "Cookie: plan=pro\r\n", ""] {
        assert!(!served.get_with("/a", lines).await.says("hit"), "a URL purge takes all its keys: {lines}");
    }
}

const SITES: &str = r#"
[sites.shop]
hosts = ["shop.example", "www.shop.example"]
[sites.shop.response_headers]
set = { x-site = "shop" }
[sites.wild]
hosts = ["*.example"]
[sites.wild.response_headers]
set = { x-site = "wild" }
"#;

#[tokio::test]
async fn sites_are_chosen_by_host_and_others_are_misdirected() {
    let served = serve_with(SITES, |_| fresh("body"));
    for (host, site) in [
        ("shop.example", Some("shop")),
        ("SHOP.example:8080", Some("shop")),
        ("www.shop.example", Some("shop")),
        ("other.example", Some("wild")),
        ("a.b.example", Some("wild")),
        ("example", None),
        ("shop.example.evil", None),
        ("127.0.0.1", None),
    ] {
        let answer = served.get_with("/a", &format!("Host: {host}\r\n")).await;
        assert_eq!((answer.status, answer.field("x-site")), (if site.is_some() { 200 } else { 421 }, site), "{host}");
    }
}

#[tokio::test]
async fn hosts_never_share_what_is_stored() {
    let served = serve_with(SITES, |request| fresh(request.field("host").unwrap_or_default()));
    for host in ["shop.example", "www.shop.example", "shop.example:8080"] {
        let lines = format!("Host: {host}\r\n");
        assert_eq!(served.get_with("/a", &lines).await.text(), host);
        assert_eq!(served.until_hit("/a", &lines).await.text(), host);
    }
}

#[tokio::test]
async fn routes_are_chosen_in_order_by_all_their_conditions() {
    let config = r#"
[[sites.default.routes]]
path = "/r/"
methods = ["POST"]
respond = { body = "post" }
[[sites.default.routes]]
path = "/r/"
headers = { accept = { pattern = "json" } }
respond = { body = "json" }
[[sites.default.routes]]
path = "/r/"
query = { v = "2" }
respond = { body = "v2" }
[[sites.default.routes]]
pattern = "\\.png$"
respond = { body = "png" }
"#;
    let served = serve_with(config, |_| fresh("origin"));
    for (method, path, lines, body) in [
        ("POST", "/r/a", "", "post"),
        ("GET", "/r/a", "Accept: application/json\r\n", "json"),
        ("GET", "/r/a?v=2", "", "v2"),
        ("GET", "/r/a.png?v=2", "", "v2"),
        ("GET", "/r/a.png?v=3", "", "png"),
        ("GET", "/r/a", "", "origin"),
    ] {
        assert_eq!(served.ask(method, path, lines, "").await.text(), body, "{method} {path} {lines}");
    }
}

#[tokio::test]
async fn lifetimes_are_configured_by_status() {
    let config = "[cache.ttl]\ndefault = { \"200\" = \"5m\", \"404\" = \"1m\" }\noverride = { \"301\" = \"1h\" }\n";
    let served = serve_with(config, |request| match request.path.as_str() {
        "/ok" => Script::ok("x"),
        "/said" => Script::ok("x").header("Cache-Control", "max-age=7"),
        "/missing" => Script::status(404, "x"),
        "/moved" => Script::status(301, "x").header("Location", "/").header("Cache-Control", "max-age=1"),
        "/private" => Script::status(301, "x").header("Cache-Control", "private"),
        path => unreachable!("{path}"),
    });
    for (path, from, seconds) in [
        ("/ok", "policy-default", 300.0),
        ("/said", "max-age", 7.0),
        ("/missing", "policy-default", 60.0),
        ("/moved", "policy-override", 3600.0),
    ] {
        served.get(path).await;
        let stored = served.until_stored(path).await["stored"].clone();
        assert_eq!(
            (stored["freshness_from"].as_str(), stored["freshness_lifetime_seconds"].as_f64()),
            (Some(from), Some(seconds)),
            "{path}"
        );
    }
    assert!(served.get("/private").await.says("detail=PRIVATE"), "an override never lifts private");
}

#[tokio::test]
async fn routes_that_fields_or_parameters_choose_do_not_share_what_they_store() {
    let config = r#"
[cache.key]
query_ignore = ["preview"]
[[sites.default.routes]]
headers = { x-beta = "1" }
request_headers = { set = { x-seen-by = "beta" } }
[[sites.default.routes]]
query = { preview = "1" }
request_headers = { set = { x-seen-by = "preview" } }
"#;
    let served = serve_with(config, |request| fresh(request.field("x-seen-by").unwrap_or("default")));
    for _ in 0..2 {
        for (path, lines, want) in
            [("/a", "X-Beta: 1\r\n", "beta"), ("/a?preview=1", "", "preview"), ("/a", "", "default"), ("/a?preview=2", "", "default")]
        {
            assert_eq!(served.get_with(path, lines).await.text(), want, "{path} {lines}");
            served.until_hit(path, lines).await;
        }
    }
    let purged = json!({"urls": [format!("http://{HOST}/a")]}).to_string();
    assert_eq!(served.admin("POST", "/v1/purge", &purged).await.0, 200);
    for (path, lines) in [("/a", "X-Beta: 1\r\n"), ("/a?preview=1", ""), ("/a", "")] {
        assert!(!served.get_with(path, lines).await.says("hit"), "{path} {lines}");
    }
}
