//! Broken and hostile clients and origins.

use super::*;
use crate::http1::malformed_bodies;
use crate::support::client::Ended;
use crate::support::document::reasons_of;
use crate::support::origin::Step;

/// Bytes, status, reason: of those that the connection refuses (all of them in `http1.rs`) a few.
const REFUSED_BY_THE_CONNECTION: &[(&[u8], u16, &str)] = &[
    (b"GARBAGE\r\n\r\n", 400, "request-line"),
    (b"GET /a\r\nHost: shop.example\r\n\r\n", 400, "request-line"),
    (b"GET /\xff HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "request-line"),
    (b"GET /a HTTP/1.1\r\nHost : shop.example\r\n\r\n", 400, "field-name"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example\r\nX: a\r\n b\r\n\r\n", 400, "obs-fold"),
    (b"GET /a HTTP/1.1\nHost: shop.example\n\n", 400, "bare-lf"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example\r\nX: a\0b\r\n\r\n", 400, "field-value"),
    (b"POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400, "content-length-repeated"),
    (b"POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: +1\r\n\r\nx", 400, "content-length"),
    (
        b"POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "length-and-transfer-encoding",
    ),
    (b"POST /a HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, "transfer-encoding"),
    (b"POST /a HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "transfer-coding"),
    (b"POST /a HTTP/1.1\r\nHost: shop.example\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx", 417, "expectation"),
    (b"GET /a HTTP/2.0\r\nHost: shop.example\r\n\r\n", 505, "version"),
    (b"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", 501, "connect"),
];

/// Those that are refused where the target is normalised, and behind it: the rows of "Decided behind this connection" in
/// `docs/http1.md`.
const REFUSED_BEHIND_IT: &[(&[u8], u16, &str)] = &[
    (b"GET /a HTTP/1.1\r\n\r\n", 400, "host-missing"),
    (b"GET /a HTTP/1.0\r\n\r\n", 400, "host-missing"),
    (b"GET http://shop.example/a HTTP/1.0\r\n\r\n", 400, "host-missing"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", 400, "host-repeated"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example\r\nHost: shop.example\r\n\r\n", 400, "host-repeated"),
    (b"GET /a HTTP/1.1\r\nHost:\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop example\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example, other.example\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: user@shop.example\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example/b\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: sh\xc3\xb6p.example\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example..\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example:80:80\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example:http\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example:-1\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example:0\r\n\r\n", 400, "host-malformed"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example:65536\r\n\r\n", 400, "host-malformed"),
    (b"GET http:///a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "host-malformed"),
    (b"GET http://other.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "host-disagrees"),
    (b"GET http://shop.example:81/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "host-disagrees"),
    (b"GET http://shop.example/a HTTP/1.1\r\nHost: shop.example:81\r\n\r\n", 400, "host-disagrees"),
    (b"GET http://user@shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "userinfo"),
    (b"GET http://user:password@shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "userinfo"),
    (b"GET ftp://shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-form"),
    (b"GET https://shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-form"),
    (b"GET http:/a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-form"),
    (b"GET a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-form"),
    (b"GET shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", 400, "target-form"),
    (b"GET * HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-form"),
    (b"GET /a#b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-byte"),
    (b"GET /a?b#c HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-byte"),
    (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-byte"),
    (b"GET /a?\xc3\xa9 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-byte"),
    (b"GET /a%zz HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "target-byte"),
    (b"GET /../a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a%2fb HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a\\b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a%5Cb HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a%00 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a/..;/b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400, "path-ambiguous"),
    (b"GET /a HTTP/1.1\r\nHost: shop.example\r\nCDN-Loop: other, tiercel\r\n\r\n", 508, "loop"),
    (b"GET /a HTTP/1.1\r\nHost: unknown.example\r\n\r\n", 421, "no-site"),
];

#[tokio::test]
async fn malformed_requests_reach_neither_cache_nor_origin_and_are_counted_and_logged_with_their_reason() {
    let served = serve_logged("[sites.shop]\nhosts = [\"shop.example\"]\n", |_| fresh("body"));
    let mut counted = BTreeMap::<String, u64>::new();
    let rows = [REFUSED_BY_THE_CONNECTION, REFUSED_BEHIND_IT].concat();
    for (at, (raw, status, reason)) in rows.iter().enumerate() {
        let shown = raw.escape_ascii();
        let mut client = served.client().await;
        client.send(raw).await;
        client.finish_sending().await;
        let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer to {shown}"));
        assert_eq!(answer.status, *status, "{shown}: {}", answer.head);
        assert!(!answer.says("hit"), "{shown}");
        let closes = at < REFUSED_BY_THE_CONNECTION.len() || shown.to_string().contains("HTTP/1.0");
        assert_eq!(answer.field("connection"), closes.then_some("close"), "{shown}");
        let error = match status {
            501 | 505 => "proxy_internal_response",
            508 => "proxy_loop_detected",
            _ => "http_request_error",
        };
        assert_eq!(answer.field("proxy-status"), Some(&*format!("tiercel; error={error}; details=\"{reason}\"")), "{shown}");
        let logged = served.until_logged(at + 1).await.remove(at);
        assert_eq!((&logged["status"], &logged["error"], &logged["detail"]), (&json!(status), &json!(error), &json!(reason)), "{shown}");
        *counted.entry(format!("{{code=\"{}xx\",reason=\"{reason}\"}}", status / 100)).or_default() += 1;
    }
    assert_eq!(served.metrics("tiercel_refused_total").await, counted);
    assert_eq!((served.origin.total(), served.origin.connections()), (0, 0));
    assert_eq!(served.explain("/a").await["stored"], Value::Null);
}

#[test]
fn what_is_refused_behind_the_connection_is_what_the_document_says() {
    let documented = reasons_of("Decided behind this connection");
    let tested: Vec<(u16, String)> = REFUSED_BEHIND_IT.iter().map(|(_, status, reason)| (*status, (*reason).to_owned())).collect();
    for row in &tested {
        assert!(documented.contains(row), "not in the document: {row:?}");
    }
    for row in &documented {
        assert!(tested.contains(row), "without a test: {row:?}");
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
/// A good beginning of a chunked body.
const GOOD: &str = "4\r\ngood\r\n";

/// Framing, a good beginning with four bytes of data, and what the client sends then before it closes.
const CUT_SHORT: [(&str, &str, &str); 7] = [
    ("Content-Length: 10\r\n", "good", ""),
    ("Content-Length: 10\r\n", "good", " news"),
    (CHUNKED, GOOD, ""),
    (CHUNKED, GOOD, "5\r\nwors"),
    (CHUNKED, GOOD, "5\r\nworse\r"),
    (CHUNKED, GOOD, "0\r\n"),
    (CHUNKED, GOOD, "0\r\nX-Sum: 1\r\n"),
];

#[tokio::test]
async fn a_body_that_goes_wrong_on_its_way_never_ends_at_the_origin() {
    let behind = request("GET", "/behind", "", "");
    let malformed =
        malformed_bodies().into_iter().map(|(_, bytes, status, reason)| (CHUNKED, GOOD, format!("{bytes}{behind}"), status, reason));
    let cut_short = CUT_SHORT.into_iter().map(|(framing, good, bytes)| (framing, good, bytes.to_owned(), 400, "body-truncated"));
    let rows: Vec<_> = malformed.chain(cut_short).collect();
    for codec in CODECS {
        // As the rows have it that are beyond a limit.
        let limits = "[limits]\nbody_bytes = \"64MiB\"\nheader_count = 100\n";
        let served = serve_logged_through(codec, limits, Origin::start(|_| fresh("taken")));
        let mut counted = BTreeMap::<String, u64>::new();
        for (at, (framing, good, bytes, status, reason)) in rows.iter().enumerate() {
            let shown = format!("{codec}, {framing:?}, {:?}", &bytes[..bytes.len().min(40)]);
            let before = served.origin.body_bytes();
            let mut client = served.client().await;
            client.send(format!("{}{good}", request("POST", "/a", framing, ""))).await;
            served.origin.until("the good beginning", |origin| origin.body_bytes() == before + 4).await;
            client.send(bytes).await;
            client.finish_sending().await;
            let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer to {shown}"));
            assert_eq!((answer.status, answer.field("connection")), (*status, Some("close")), "{shown}: {}", answer.head);
            let proxy_status = format!("tiercel; error=http_request_error; details=\"{reason}\"");
            assert_eq!(answer.field("proxy-status"), Some(&*proxy_status), "{shown}");
            assert_eq!(client.ended().await, Ended::Closed, "{shown}");
            served.origin.until("the end of its connection", |origin| origin.open_connections() == 0).await;
            // A request counts there once its body has ended.
            assert_eq!((served.origin.total(), served.origin.connections()), (0, at + 1), "{shown}");
            let logged = served.until_logged(at + 1).await.remove(at);
            let said = (&logged["status"], &logged["error"], &logged["detail"]);
            assert_eq!(said, (&json!(status), &json!("http_request_error"), &json!(reason)), "{shown}");
            *counted.entry(format!("{{code=\"4xx\",reason=\"{reason}\"}}")).or_default() += 1;
        }
        assert_eq!(served.metrics("tiercel_refused_total").await, counted, "{codec}");
        assert_eq!(served.explain("/a").await["stored"], Value::Null, "{codec}");
    }
}

#[tokio::test]
async fn a_body_that_goes_wrong_behind_the_beginning_of_its_answer_ends_at_neither_side() {
    for codec in CODECS {
        let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n".to_vec();
        let origin = Origin::start_at_head(move |_| {
            Script::raw(begun.clone()).then(Step::ReadBody).then(Step::Bytes(b"5\r\ncame!\r\n0\r\n\r\n".to_vec()))
        });
        let served = serve_logged_through(codec, "", origin);
        let mut client = served.client().await;
        client.send(format!("{}{GOOD}", request("POST", "/a", CHUNKED, ""))).await;
        client.until("all").await.expect("the beginning of the answer");
        client.send(format!("5 \r\nworse\r\n0\r\n\r\n{}", request("GET", "/behind", "", ""))).await;
        client.finish_sending().await;
        assert_eq!(client.rest().await, b"\r\n", "{codec}: what ends the chunk, and nothing that ends the answer");
        served.origin.until("the end of its connection", |origin| origin.open_connections() == 0).await;
        assert_eq!((served.origin.connections(), served.origin.body_bytes()), (1, 4), "{codec}");
        let logged = served.until_logged(1).await.remove(0);
        assert_eq!((&logged["status"], &logged["error"]), (&json!(200), &json!("body_malformed")), "{codec}: {logged}");
    }
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
