//! Broken and hostile clients and origins.

use super::*;
use crate::support::origin::Step;

#[tokio::test]
async fn malformed_requests_reach_neither_cache_nor_origin() {
    let served = serve(|_| fresh("body"));
    for (raw, status) in [
        ("GARBAGE\r\n\r\n", 400),
        ("GET /a\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\n\r\n", 400),
        ("GET /a HTTP/1.0\r\n\r\n", 400),
        ("GET http://shop.example/a HTTP/1.0\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: shop example\r\n\r\n", 400),
        ("GET http://other.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET http://user@shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET ftp://shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /../a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a%2fb HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a\\b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a%00 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a/..;/b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a#b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost : shop.example\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nHost: shop.example\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET /a HTTP/1.1\nHost: shop.example\n\n", 400),
        ("GET /a HTTP/1.1\r\nHost: shop.example\r\nX: a\0b\r\n\r\n", 400),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: +1\r\n\r\nx", 400),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("POST /a HTTP/1.1\r\nHost: shop.example\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx", 417),
        ("GET /a HTTP/2.0\r\nHost: shop.example\r\n\r\n", 505),
        ("CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", 501),
    ] {
        let mut client = served.client().await;
        client.send(raw).await;
        client.finish_sending().await;
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer to {raw:?}"));
        assert_eq!(answer.status, status, "{raw:?}: {}", answer.head);
        assert!(!answer.says("hit"), "{raw:?}");
    }
    assert_eq!((served.origin.total(), served.origin.connections()), (0, 0));
    assert_eq!(served.explain("/a").await["stored"], Value::Null);
}

#[tokio::test]
async fn requests_beyond_a_limit_are_refused_by_name() {
    let config = "[limits]\nheader_bytes = \"4KiB\"\nheader_count = 16\nurl_bytes = \"256B\"\nbody_bytes = \"1KiB\"\n";
    let served = serve_with(config, |_| fresh("body"));
    let many: String = (0..20).map(|number| format!("X-{number}: 1\r\n")).collect();
    for (raw, status) in [
        (request("GET", &format!("/{}", "a".repeat(300)), "", ""), 414),
        (request("GET", "/a", &format!("X: {}\r\n", "a".repeat(5000)), ""), 431),
        (request("GET", "/a", &many, ""), 431),
        (request("POST", "/a", "Content-Length: 2000\r\n", ""), 413),
    ] {
        let mut client = served.client().await;
        client.send(&raw).await;
        assert_eq!(client.answer(false).await.expect("an answer").status, status, "{raw}");
    }
    assert_eq!(served.origin.total(), 0);
}

#[tokio::test]
async fn a_broken_answer_is_a_502_with_its_reason_and_never_stored() {
    let flood: String = (0..300).map(|number| format!("X-{number}: 1\r\n")).collect();
    let cases = [
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody".to_owned(),
            "http_protocol_error",
        ),
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4, 5\r\n\r\nbody".to_owned(), "http_protocol_error"),
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "http_protocol_error",
        ),
        ("complete garbage\r\n\r\n".to_owned(), "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nno colon\r\nContent-Length: 0\r\n\r\n".to_owned(), "http_protocol_error"),
        (
            "HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nbody"
                .to_owned(),
            "http_protocol_error",
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_owned(), "http_protocol_error"),
        (format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{flood}Content-Length: 0\r\n\r\n"), "http_response_header_section_size"),
        (
            format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(80_000)),
            "http_response_header_section_size",
        ),
    ];
    for (raw, token) in cases {
        let shown = raw[..raw.len().min(120)].to_owned();
        let served = serve(move |_| Script::raw(raw.clone()).then(Step::Close));
        for _ in 0..2 {
            let answer = served.get("/a").await;
            assert_eq!((answer.status, answer.field("proxy-status")), (502, Some(&*format!("tiercel; error={token}"))), "{shown}");
            assert!(!answer.says("hit") && !answer.says("stored"), "{shown}: {}", answer.head);
        }
        assert!(served.origin.count("/a") >= 2, "{shown}: asked again");
        assert_eq!(served.explain("/a").await["stored"], Value::Null, "{shown}");
    }
}

#[tokio::test]
async fn errors_that_a_clients_oddities_may_have_caused_are_not_stored() {
    let served = serve(|_| Script::status(400, "bad").header("Cache-Control", "max-age=60"));
    let long = format!("X-Long: {}\r\n", "a".repeat(20_000));
    for (path, lines) in [
        ("/odd-field", "X-Odd: \u{e9}\r\n"),
        ("/long", &*long),
        ("/odd-query?a={b}", ""),
        ("/override", "X-HTTP-Method-Override: POST\r\n"),
    ] {
        let answer = served.get_with(path, lines).await;
        assert_eq!((answer.status, answer.says("detail=POISON-GUARD")), (400, true), "{path}: {}", answer.head);
        assert_eq!(served.explain(path).await["stored"], Value::Null, "{path}");
    }
    served.get("/plain").await;
    assert_eq!(served.until_hit("/plain", "").await.status, 400, "what nothing odd caused may be kept as the origin says");
    let implicit = serve(|_| Script::status(405, "no").header("Last-Modified", &date_in(-100_000)));
    assert!(implicit.get("/a").await.says("detail=POISON-GUARD"), "not by heuristics");
}

#[tokio::test]
async fn a_hostile_head_cannot_split_a_response() {
    let served = serve(|_| fresh("body").header("X-Tab", "a\tb"));
    let answer = served.get("/a?x=%0d%0aSet-Cookie:%20a=b").await;
    assert_eq!((answer.status, answer.field("set-cookie"), answer.field("x-tab")), (200, None, Some("a\tb")));
    let redirecting =
        serve_with("[[sites.default.routes]]\npath = \"/old\"\nredirect = { location = \"/new{query}\" }\n", |_| fresh("body"));
    let answer = redirecting.get("/old?x=%0d%0aSet-Cookie:%20a=b").await;
    assert_eq!((answer.field("location"), answer.field("set-cookie")), (Some("/new?x=%0D%0ASet-Cookie:%20a=b"), None));
}
