//! What the origin sees of a request, and what is kept from either side.

use super::*;

#[tokio::test]
async fn the_client_is_described_to_the_origin() {
    let served = serve(|_| fresh("body"));
    served.get("/a").await;
    let seen = served.last("/a");
    for (name, value) in [
        ("host", "shop.example"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "shop.example"),
        ("forwarded", "for=127.0.0.1;host=\"shop.example\";proto=http"),
        ("via", "1.1 tiercel"),
        ("cdn-loop", "tiercel"),
    ] {
        assert_eq!(seen.field(name), Some(value), "{name}");
    }
    let id = seen.field("x-request-id").expect("an id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    served.get("/b").await;
    assert_ne!(served.last("/b").field("x-request-id"), Some(id));
}

/// What it is called, the bytes that come, what the origin sees in its head, what it does not, and the body that it gets.
type Row<'a> = (&'a str, Vec<u8>, &'a [&'a [u8]], &'a [&'a [u8]], &'a str);

/// The rows of the table "Normalised" in `docs/http1.md`: what comes, and what the origin sees in its place.
#[tokio::test]
async fn what_is_normalised_reaches_the_origin_in_one_form_only() {
    let served = serve(|_| Script::ok("ok").header("Cache-Control", "no-store"));
    let host = "Host: shop.example\r\n";
    let chunked = format!("POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
    let rows: [Row<'_>; 14] = [
        (
            "empty line before the request",
            format!("\r\nGET /a HTTP/1.1\r\n{host}\r\n").into(),
            &[b"GET /a HTTP/1.1\r\n"],
            &[b"\r\nGET"],
            "",
        ),
        ("names in any case", format!("GET /a HTTP/1.1\r\n{host}X-OdD: V\r\n\r\n").into(), &[b"\r\nx-odd: V\r\n"], &[b"X-OdD"], ""),
        (
            "white space around a value",
            format!("GET /a HTTP/1.1\r\n{host}X-Odd: \t a \t b\t \r\nX-None: \t\r\n\r\n").into(),
            &[b"\r\nx-odd: a \t b\r\n", b"\r\nx-none: \r\n"],
            &[],
            "",
        ),
        (
            "obs-text",
            [format!("GET /a HTTP/1.1\r\n{host}").as_bytes(), b"X-Odd: \x80\xff\r\n\r\n"].concat(),
            &[b"\r\nx-odd: \x80\xff\r\n"],
            &[],
            "",
        ),
        ("unknown method", format!("BREW /a HTTP/1.1\r\n{host}\r\n").into(), &[b"BREW /a HTTP/1.1\r\n"], &[], ""),
        (
            "leading zeros of a length",
            format!("POST /a HTTP/1.1\r\n{host}Content-Length: 0000000000000000005\r\n\r\nhello").into(),
            &[b"\r\ncontent-length: 5\r\n"],
            &[b"transfer-encoding"],
            "hello",
        ),
        (
            "chunk sizes and extensions",
            format!("{chunked}000000000000000A;x;y=z\r\n0123456789\r\n00\r\n\r\n").into(),
            &[b"\r\ntransfer-encoding: chunked\r\n"],
            &[b"content-length", b"y=z"],
            "0123456789",
        ),
        (
            "coding in any case",
            format!("POST /a HTTP/1.1\r\n{host}TRANSFER-ENCODING: ChunkeD\r\n\r\n2\r\nhi\r\n0\r\n\r\n").into(),
            &[b"\r\ntransfer-encoding: chunked\r\n"],
            &[b"ChunkeD", b"content-length"],
            "hi",
        ),
        ("trailer fields", format!("{chunked}2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n").into(), &[], &[b"x-sum"], "hi"),
        (
            "expectation",
            format!("POST /a HTTP/1.1\r\n{host}Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi").into(),
            &[],
            &[b"expect"],
            "hi",
        ),
        (
            "expectation without a body",
            format!("GET /a HTTP/1.1\r\n{host}Expect: 100-Continue\r\n\r\n").into(),
            &[],
            &[b"expect", b"content-length", b"transfer-encoding"],
            "",
        ),
        (
            "expectation in HTTP/1.0",
            format!("POST /a HTTP/1.0\r\n{host}Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi").into(),
            &[b"POST /a HTTP/1.1\r\n", b"\r\ncontent-length: 2\r\n"],
            &[b"expect"],
            "hi",
        ),
        (
            "dot and default port of a host",
            "GET /a HTTP/1.1\r\nHost: SHOP.example.:80\r\n\r\n".into(),
            &[b"\r\nhost: shop.example\r\n"],
            &[b"SHOP"],
            "",
        ),
        ("absolute target", format!("GET http://shop.example/a HTTP/1.1\r\n{host}\r\n").into(), &[b"GET /a HTTP/1.1\r\n"], &[], ""),
    ];
    for (row, sent, there, gone, body) in rows {
        let mut client = served.client().await;
        let mut answer = client.ask(&sent).await;
        while answer.status < 200 {
            answer = client.answer(false).await.expect("a final answer");
        }
        assert_eq!(answer.text(), "ok", "{row}");
        let seen = served.last("/a");
        let holds = |bytes: &[u8]| memchr::memmem::find_iter(&seen.head, bytes).count();
        for line in there {
            assert_eq!(holds(line), 1, "{row}: {} in {}", line.escape_ascii(), seen.head.escape_ascii());
        }
        for bytes in gone {
            assert_eq!(holds(bytes), 0, "{row}: {} in {}", bytes.escape_ascii(), seen.head.escape_ascii());
        }
        assert_eq!(String::from_utf8_lossy(&seen.body), body, "{row}");
        assert_eq!(seen.trailers, "", "{row}");
        let frames = holds(b"\r\ncontent-length:") + holds(b"\r\ntransfer-encoding:");
        assert_eq!(frames, usize::from(!body.is_empty()), "{row}: framed once: {}", seen.head.escape_ascii());
    }
}

const SAID: &str = "X-Forwarded-For: 192.0.2.6\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\n\
                    X-Forwarded-Prefix: /x\r\nX-Forwarded-Scheme: https\r\nX-Real-IP: 192.0.2.6\r\nForwarded: for=192.0.2.6\r\nX-Request-Id: mine\r\n";

#[tokio::test]
async fn what_an_untrusted_client_says_of_itself_is_dropped() {
    let served = serve(|_| fresh("body"));
    served.get_with("/a", SAID).await;
    served.ask("POST", "/b", SAID, "x").await;
    for path in ["/a", "/b"] {
        let seen = served.last(path);
        assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.field("x-forwarded-host"), Some(HOST));
        assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.field("forwarded"), Some("for=127.0.0.1;host=\"shop.example\";proto=http"));
        assert_ne!(seen.field("x-request-id"), Some("mine"));
        let head = String::from_utf8_lossy(&seen.head).to_ascii_lowercase();
        for gone in ["192.0.2.6", "evil", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-scheme", "x-real-ip"] {
            assert!(!head.contains(gone), "{gone}: {head}");
        }
    }
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_kept_and_continued() {
    let served = serve_with("show_key = true\n[server]\ntrusted_proxies = [\"127.0.0.1\"]\n", |_| fresh("body"));
    let answer = served.get_with("/a", SAID).await;
    let seen = served.last("/a");
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.6, 127.0.0.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=192.0.2.6, for=127.0.0.1;host=\"shop.example\";proto=https"),
        ("x-request-id", "mine"),
    ] {
        assert_eq!(seen.field(name), Some(value), "{name}");
    }
    let key = "key=\"https://shop.example/a%0Aforwarded x-forwarded-host:evil.example%0Aforwarded x-forwarded-port:1%0Aforwarded x-forwarded-prefix:/x\"";
    assert!(answer.says(key), "the scheme is the client's: {}", answer.head);
}

#[tokio::test]
async fn unkeyed_fields_cannot_poison_a_cached_response() {
    let served = serve(|request| {
        let reflected = ["x-forwarded-host", "x-original-url", "x-rewrite-url", "x-http-method-override", "x-forwarded-scheme"];
        let seen: Vec<_> = reflected.iter().filter_map(|name| request.field(name)).collect();
        fresh(&seen.join(" "))
    });
    let lines = "X-Forwarded-Host: evil.example\r\nX-Original-URL: /evil\r\nX-Rewrite-URL: /evil\r\nX-HTTP-Method-Override: POST\r\nX-Forwarded-Scheme: nothttps\r\n";
    assert_eq!(served.get_with("/a", lines).await.text(), HOST);
    served.get("/a").await;
    assert_eq!(served.until_hit("/a", "").await.text(), HOST);
}

/// Echoes every field by which an origin could be told of another host, scheme, path or method.
fn echo_of_forwarding(request: &Recorded) -> Script {
    const NAMES: [&str; 18] = [
        "forwarded",
        "front-end-https",
        "x-forwarded-anything",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-forwarded-scheme",
        "x-forwarded-server",
        "x-forwarded-ssl",
        "x-host",
        "x-http-host-override",
        "x-http-method-override",
        "x-original-host",
        "x-original-url",
        "x-rewrite-url",
        "x-scheme",
        "x-url-scheme",
    ];
    let seen = NAMES.iter().filter_map(|name| Some(format!("{name}={}", request.field(name)?)));
    fresh(&seen.collect::<Vec<_>>().join(" "))
}

/// One line of each of them, with a value that says where it came from.
fn every_forwarding_line(host: &str) -> String {
    let names = "X-Forwarded-Anything X-Forwarded-Server X-Host X-HTTP-Host-Override X-Original-Host X-Forwarded-Host X-Forwarded-Prefix";
    let lines: String = names.split(' ').map(|name| format!("{name}: {host}\r\n")).collect();
    format!(
        "{lines}Forwarded: for=192.0.2.1;host={host};proto=https\r\nFront-End-Https: on\r\nX-Forwarded-Scheme: https\r\nX-Forwarded-SSL: on\r\n\
         X-Original-URL: /{host}\r\nX-Rewrite-URL: /{host}\r\nX-Scheme: https\r\nX-Url-Scheme: https\r\nX-Forwarded-Port: 81\r\n"
    )
}

#[tokio::test]
async fn no_forwarding_field_shapes_what_is_stored_for_others() {
    let served = serve(echo_of_forwarding);
    let own = "forwarded=for=127.0.0.1;host=\"shop.example\";proto=http x-forwarded-host=shop.example x-forwarded-proto=http";
    assert_eq!(served.get_with("/a", &every_forwarding_line("evil.example")).await.text(), own);
    assert_eq!(served.until_hit("/a", "").await.text(), own);
    assert_eq!(served.until_hit("/a", &every_forwarding_line("other.example")).await.text(), own, "nor is it part of the key");
}

#[tokio::test]
async fn what_a_trusted_proxy_says_shapes_only_what_is_keyed_by_it() {
    let served = serve_with("[server]\ntrusted_proxies = [\"127.0.0.1\"]\n", echo_of_forwarding);
    let mut bodies = Vec::new();
    for tenant in ["one.example", "two.example"] {
        let lines = every_forwarding_line(tenant);
        let text = served.get_with("/a", &lines).await.text().to_owned();
        let want = format!(
            "forwarded=for=192.0.2.1, for=127.0.0.1;host=\"shop.example\";proto=http x-forwarded-host={tenant} x-forwarded-port=81 \
             x-forwarded-prefix={tenant} x-forwarded-proto=http"
        );
        assert_eq!(text, want);
        assert_eq!(served.until_hit("/a", &lines).await.text(), want);
        bodies.push(text);
    }
    let plain = served.get("/a").await;
    assert!(!plain.says("hit") && !bodies.iter().any(|body| body == plain.text()), "{}", plain.text());
    assert_eq!(served.admin("POST", "/v1/purge", &json!({"urls": [format!("http://{HOST}/a")]}).to_string()).await.0, 200);
    for tenant in ["one.example", "two.example"] {
        assert!(!served.get_with("/a", &every_forwarding_line(tenant)).await.says("hit"), "a purge of the URL takes all of them");
    }
}

#[tokio::test]
async fn the_scheme_that_the_origin_is_told_is_that_of_the_key() {
    let served = serve_with("show_key = true\n[server]\ntrusted_proxies = [\"127.0.0.1\"]\n", echo_of_forwarding);
    for (said, scheme) in [("https", "https"), ("http, https", "https"), ("https, http", "http"), ("wss", "http")] {
        let answer = served.get_with("/a", &format!("X-Forwarded-Proto: {said}\r\nCache-Control: no-store\r\n")).await;
        assert!(answer.text().contains(&format!("x-forwarded-proto={scheme}")), "{said}: {}", answer.text());
        assert!(answer.says(&format!("key=\"{scheme}://shop.example/a\"")), "{said}: {}", answer.head);
    }
}

#[tokio::test]
async fn a_field_that_is_keyed_is_sent() {
    let served = serve_with("[cache.key]\nheaders = [\"x-original-url\"]\n", echo_of_forwarding);
    for path in ["/one", "/two"] {
        let lines = format!("X-Original-URL: {path}\r\n");
        assert!(served.get_with("/a", &lines).await.text().contains(&format!("x-original-url={path}")));
        assert!(served.until_hit("/a", &lines).await.text().contains(&format!("x-original-url={path}")));
    }
}

#[tokio::test]
async fn of_a_query_the_origin_gets_what_counts_unless_the_request_goes_past_the_cache() {
    let config = "[cache.key]\nignore_tracking = true\nquery_sort = true\n[[bypass]]\nreason = \"preview\"\nheaders = { x-preview = { present = true } }\n";
    let served = serve_with(config, |request| fresh(&request.target));
    assert_eq!(served.get("/a?utm_source=x&b=1&a=2&gclid=y").await.text(), "/a?a=2&b=1");
    assert_eq!(served.until_hit("/a?a=2&b=1&fbclid=z", "").await.text(), "/a?a=2&b=1");
    assert_eq!(served.get("/b?gclid=y").await.text(), "/b");
    assert_eq!(served.get_with("/a?utm_source=x&b=1", "X-Preview: 1\r\n").await.text(), "/a?utm_source=x&b=1");
    assert_eq!(served.ask("POST", "/a?utm_source=x", "", "body").await.text(), "/a?utm_source=x");
    assert_eq!(served.explain("/a").await["tracking_list"], tiercel::semantics::tracking::VERSION);
}

#[tokio::test]
async fn a_class_of_clients_is_keyed_and_told_to_the_origin() {
    let config = "[cache.key.classes.device]\nrules = [{ value = \"mobile\", headers = { user-agent = { pattern = \"(?i)mobile\" } } }]\n\
                  default = \"desktop\"\nforward = \"X-Device\"\n";
    let served = serve_with(config, |request| fresh(request.field("x-device").unwrap_or("none")).header("Vary", "X-Device"));
    for (agent, device) in [("A Mobile/1", "mobile"), ("Desk/1", "desktop")] {
        assert_eq!(served.get_with("/a", &format!("User-Agent: {agent}\r\nX-Device: evil\r\n")).await.text(), device);
        assert_eq!(served.until_hit("/a", &format!("User-Agent: {agent}/2\r\nX-Device: other\r\n")).await.text(), device);
    }
    assert_eq!(served.origin.count("/a"), 2);
    let parts = served.explain("/a").await["key_parts"].clone();
    assert_eq!(parts, json!(["http://shop.example/a", "class device:desktop"]));
}

#[tokio::test]
async fn accept_fields_are_reduced_for_the_origin_as_for_the_key() {
    let config = "[cache.vary]\nlanguages = [\"en\", \"de\"]\nimages = [\"image/avif\", \"image/webp\"]\n";
    let served = serve_with(config, |request| {
        let seen = |name| request.field(name).unwrap_or("none").to_owned();
        fresh(&format!("{} {}", seen("accept-language"), seen("accept"))).header("Vary", "Accept, Accept-Language")
    });
    let lines = "Accept-Language: fr;q=0.9, de-CH, en;q=0.5\r\nAccept: image/avif, image/webp, image/apng, */*\r\n";
    assert_eq!(served.get_with("/a", lines).await.text(), "de image/avif, image/webp, */*;q=0.8");
    let same = "Accept: */*, image/webp;q=0.1, image/avif\r\nAccept-Language: DE\r\n";
    assert_eq!(served.until_hit("/a", same).await.text(), "de image/avif, image/webp, */*;q=0.8");
    assert_eq!(served.get_with("/a", "Accept-Language: fr\r\n").await.text(), "none */*;q=0.8");
    assert_eq!(served.until_hit("/a", "").await.text(), "none */*;q=0.8");
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn a_response_that_varies_on_the_clients_address_is_not_shared() {
    let served = serve(|_| fresh("body").header("Vary", "X-Forwarded-For"));
    for _ in 0..2 {
        let answer = served.get("/a").await;
        assert!(answer.says("detail=VARY-STAR"), "{}", answer.head);
    }
}

#[tokio::test]
async fn trace_context_is_passed_on() {
    let served = serve(|_| fresh("body"));
    let lines = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\nbaggage: c=d\r\n";
    served.get_with("/a", lines).await;
    let seen = served.last("/a");
    assert_eq!(seen.field("traceparent"), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert_eq!((seen.field("tracestate"), seen.field("baggage")), (Some("a=b"), Some("c=d")));
}

#[tokio::test]
async fn fields_of_a_connection_stay_on_it() {
    let served = serve(|_| {
        let script =
            fresh("body").header("Connection", "X-Hop, keep-alive, cache-control").header("X-Hop", "1").header("Keep-Alive", "timeout=60");
        script.header("Proxy-Connection", "keep-alive").header("Upgrade", "h2c").header("X-End", "1")
    });
    let lines = "Connection: X-Hop, Keep-Alive, Cookie\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
                 Trailer: X\r\nUpgrade: h2c\r\nProxy-Authorization: Basic eDp5\r\nX-End: 1\r\nCookie: a=b\r\n";
    let miss = served.get_with("/a", lines).await;
    let seen = served.last("/a");
    for name in ["x-hop", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "proxy-authorization", "connection"] {
        assert_eq!(seen.field(name), None, "{name}");
    }
    assert_eq!((seen.field("x-end"), seen.field("cookie")), (Some("1"), Some("a=b")), "a client cannot have others' fields removed");
    for answer in [miss, served.until_hit("/a", "").await] {
        for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "connection", "transfer-encoding"] {
            assert_eq!(answer.field(name), None, "{name}: {}", answer.head);
        }
        assert_eq!((answer.field("x-end"), answer.field("cache-control")), (Some("1"), Some("max-age=3600")));
    }
}

#[tokio::test]
async fn host_is_preserved_or_the_upstreams_or_a_literal() {
    for (config, wanted) in [
        ("", Some(HOST)),
        ("host = \"preserve\"\n", Some(HOST)),
        ("host = \"api.internal:81\"\n", Some("api.internal:81")),
        ("host = \"upstream\"\n", None),
    ] {
        let served = serve_with(config, |_| fresh("body"));
        served.get("/a").await;
        let address = served.origin.addr().to_string();
        assert_eq!(served.last("/a").field("host"), Some(wanted.unwrap_or(&address)), "{config}");
        assert_eq!(served.last("/a").field("x-forwarded-host"), Some(HOST));
    }
}

#[tokio::test]
async fn stripped_cookies_reach_neither_origin_nor_key() {
    let served = serve_with("strip_cookies = [\"_ga*\", \"track\"]\n", |request| {
        fresh(request.field("cookie").unwrap_or("none")).header("Vary", "Cookie")
    });
    assert_eq!(served.get_with("/a", "Cookie: _ga=1; session=2; _ga_x=3; track=4\r\n").await.text(), "session=2");
    assert_eq!(served.until_hit("/a", "Cookie: session=2; _ga=9\r\n").await.text(), "session=2");
    assert_eq!(served.get_with("/a", "Cookie: track=1\r\n").await.text(), "none");
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn the_origin_sees_the_target_that_was_keyed() {
    let served = serve_with("show_key = true\n", |request| fresh(&request.target));
    for (sent, seen) in [
        ("/a/./b/../c", "/a/c"),
        ("/%7Euser/%c3%a9", "/~user/%C3%A9"),
        ("/a?b=%7e&c=%zz", "/a?b=~&c=%25zz"),
        ("/a//b", "/a//b"),
        ("/a?", "/a?"),
    ] {
        let answer = served.get(sent).await;
        assert_eq!(answer.text(), seen, "{sent}");
        assert!(answer.says(&format!("key=\"http://shop.example{seen}\"")), "{sent}: {}", answer.head);
    }
    let absolute = served.client().await.ask("GET http://SHOP.example:80/x HTTP/1.1\r\nHost: shop.example\r\n\r\n").await;
    assert_eq!(absolute.text(), "/x");
}

#[tokio::test]
async fn what_connection_names_counts_for_nobody() {
    let served = serve_with("[cache.key]\nheaders = [\"x-tenant\"]\n", |request| {
        let said = |name| request.field(name).unwrap_or("none").to_owned();
        fresh(&format!("{} {}", said("accept-language"), said("x-tenant"))).header("Vary", "Accept-Language")
    });
    let lines = "Accept-Language: de\r\nX-Tenant: a\r\n";
    let cut = format!("{lines}Connection: keep-alive, Accept-Language, x-tenant\r\n");
    assert_eq!(served.get_with("/a", &cut).await.text(), "none none");
    assert_eq!(served.get_with("/a", lines).await.text(), "de a", "not what was made for nobody's language and tenant");
    assert_eq!(served.until_hit("/a", "").await.text(), "none none");
    assert_eq!(served.until_hit("/a", &cut).await.text(), "none none");
    assert_eq!(served.origin.count("/a"), 2);
}

#[tokio::test]
async fn underscores_do_not_carry_a_field_past_the_key() {
    let served = serve(|_| fresh("body"));
    served.get_with("/a", "X_Forwarded_Host: evil\r\nAccept_Language: de\r\nX-Original-Uri: /evil\r\nmy_own: 1\r\n").await;
    let seen = served.last("/a");
    for gone in ["x_forwarded_host", "accept_language", "x-original-uri"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert_eq!(seen.field("my_own"), Some("1"));
}
