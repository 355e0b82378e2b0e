//! Methods other than GET and HEAD: what they invalidate, and request bodies.

use super::*;

async fn store(served: &Served, paths: &[&str]) {
    for path in paths {
        served.get(path).await;
        served.until_hit(path, "").await;
    }
}

/// An origin whose answers to unsafe methods have this status and these fields.
fn writable(status: u16, lines: &'static [(&'static str, &'static str)]) -> Served {
    serve(move |request| match request.method.as_str() {
        "GET" => fresh("body"),
        _ => lines.iter().fold(Script::status(status, "done"), |script, (name, value)| script.header(name, value)),
    })
}

#[tokio::test]
async fn unsafe_methods_invalidate_their_url_before_the_answer_goes_out() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "FROBNICATE"] {
        let served = writable(200, &[]);
        store(&served, &["/a", "/a?b=c", "/other"]).await;
        let answer = served.ask(method, "/a", "", "x").await;
        assert_eq!((answer.status, answer.says("fwd=method")), (200, true), "{method}");
        let read = served.get("/a").await;
        assert!(read.is_miss(), "{method}: {}", read.head);
        assert_eq!(served.last("/a").field("if-none-match"), None);
        assert!(served.get("/a?b=c").await.says("hit") && served.get("/other").await.says("hit"), "{method}");
    }
}

#[tokio::test]
async fn location_and_content_location_of_the_same_origin_go_with_it() {
    let served = writable(201, &[("Location", "/new"), ("Content-Location", "http://shop.example/copy?x")]);
    store(&served, &["/new", "/copy?x", "/copy"]).await;
    served.ask("POST", "/a", "", "x").await;
    for path in ["/new", "/copy?x"] {
        assert!(served.get(path).await.is_miss(), "{path}");
    }
    assert!(served.get("/copy").await.says("hit"));
}

#[tokio::test]
async fn what_is_of_another_origin_stays() {
    let served = writable(201, &[("Location", "http://other.example/new")]);
    let other = "Host: other.example\r\n";
    served.get_with("/new", other).await;
    served.until_hit("/new", other).await;
    served.ask("POST", "/a", "", "x").await;
    assert!(served.get_with("/new", other).await.says("hit"));
}

#[tokio::test]
async fn errors_and_safe_methods_invalidate_nothing() {
    for (method, status) in
        [("POST", 400), ("DELETE", 404), ("PUT", 500), ("OPTIONS", 200), ("PROPFIND", 200), ("REPORT", 200), ("SEARCH", 200)]
    {
        let served = writable(status, &[("Location", "/new")]);
        store(&served, &["/a", "/new"]).await;
        assert_eq!(served.ask(method, "/a", "", "").await.status, status);
        assert!(served.get("/a").await.says("hit") && served.get("/new").await.says("hit"), "{method} {status}");
    }
}

/// An origin that knows of one write: what it answers to it, and to a GET.
fn representing(config: &str, status: u16, lines: &'static [(&'static str, &'static str)]) -> Served {
    serve_with(config, move |request| match request.method.as_str() {
        "GET" => fresh("old"),
        _ => lines.iter().fold(Script::status(status, "new"), |script, (name, value)| script.header(name, value)),
    })
}

const REPRESENTS: &[(&str, &str)] = &[("Cache-Control", "max-age=60"), ("Content-Location", "/a?b")];

#[tokio::test]
async fn the_answer_to_a_write_that_represents_its_target_answers_those_who_get_it() {
    for (method, config) in [("POST", ""), ("PATCH", ""), ("POST", "[purge]\nunsafe_methods = \"off\"\n")] {
        let served = representing(config, 200, REPRESENTS);
        store(&served, &["/a?b"]).await;
        let answer = served.ask(method, "/a?b", "", "x").await;
        assert_eq!(answer.said(), "tiercel; fwd=method; fwd-status=200; stored");
        assert_eq!(answer.text(), "new");
        let hit = served.until("/a?b", "", "what the write stored", |answer| answer.text() == "new").await;
        assert!(hit.says("hit"), "{}", hit.head);
        assert_eq!(served.origin.count("/a"), 2, "{method} {config}");
        let again = served.ask(method, "/a?b", "", "x").await;
        assert!(again.says("fwd=method"), "a write is not answered from store: {}", again.head);
    }
}

#[tokio::test]
async fn the_answer_to_a_write_is_stored_only_if_it_is_known_to_represent_its_target() {
    type Lines = &'static [(&'static str, &'static str)];
    let rows: [(&str, u16, Lines); 8] = [
        ("PUT", 200, REPRESENTS),
        ("DELETE", 200, REPRESENTS),
        ("POST", 201, REPRESENTS),
        ("POST", 200, &[("Cache-Control", "max-age=60")]),
        ("POST", 200, &[("Content-Location", "/a?b"), ("Last-Modified", "Sun, 12 Nov 2023 22:13:20 GMT")]),
        ("POST", 200, &[("Cache-Control", "max-age=60"), ("Content-Location", "/a")]),
        ("POST", 200, &[("Cache-Control", "max-age=60"), ("Content-Location", "http://other.example/a?b")]),
        ("POST", 200, &[("Cache-Control", "max-age=60, no-store"), ("Content-Location", "/a?b")]),
    ];
    for (method, status, lines) in rows {
        let served = representing("", status, lines);
        let answer = served.ask(method, "/a?b", "", "x").await;
        assert_eq!((answer.status, answer.says("stored"), answer.says("detail=METHOD")), (status, false, true), "{}", answer.head);
        assert_eq!(served.explain("/a?b").await["stored"], Value::Null, "{method} {status} {lines:?}");
        assert_eq!(served.get("/a?b").await.text(), "old");
    }
}

#[tokio::test]
async fn a_write_that_says_what_the_key_does_not_hold_leaves_nothing_behind() {
    for lines in ["X-Original-URL: /other\r\n", "X-HTTP-Method-Override: PUT\r\n"] {
        let served = representing("", 200, REPRESENTS);
        assert!(!served.ask("POST", "/a?b", lines, "x").await.says("stored"), "{lines}");
        assert_eq!(served.explain("/a?b").await["stored"], Value::Null, "{lines}");
    }
}

#[tokio::test]
async fn a_write_with_parameters_that_do_not_count_leaves_nothing_behind() {
    let served = serve_with("[cache.key]\nignore_tracking = true\n", |request| {
        let script = fresh(&format!("{} {}", request.method, request.target));
        if request.method == "POST" { script.header("Content-Location", &request.target) } else { script }
    });
    assert!(!served.ask("POST", "/a?utm_source=x", "", "x").await.says("stored"));
    assert_eq!(served.get("/a").await.text(), "GET /a");
    assert!(served.ask("POST", "/b?c=d", "", "x").await.says("stored"), "those that count do no harm");
}

#[tokio::test]
async fn a_write_of_a_client_whose_reads_go_past_the_cache_leaves_nothing_behind() {
    let config = "[[bypass]]\nreason = \"session\"\ncookies = [\"session\"]\n";
    let served = representing(config, 200, REPRESENTS);
    assert!(!served.ask("POST", "/a?b", "Cookie: session=1\r\n", "x").await.says("stored"));
    assert_eq!(served.get("/a?b").await.text(), "old");
}

#[tokio::test]
async fn a_request_body_reaches_the_origin_with_its_length() {
    let served = writable(200, &[]);
    let mut client = served.client().await;
    for body in ["some body", "another"] {
        assert_eq!(client.ask(request("POST", "/a", "Content-Type: text/plain\r\n", body)).await.text(), "done");
        let seen = served.last("/a");
        assert_eq!((seen.field("content-length"), seen.field("transfer-encoding")), (Some(&*body.len().to_string()), None));
        assert_eq!((seen.field("content-type"), &*seen.body), (Some("text/plain"), body.as_bytes()));
    }
}

#[tokio::test]
async fn a_chunked_request_body_is_framed_anew_and_its_trailers_end_here() {
    let served = writable(200, &[]);
    let chunked = "4;ext=1\r\nsome\r\n5\r\n body\r\n0\r\nX-Trailer: end\r\n\r\n";
    let answer =
        served.client().await.ask(request("POST", "/a", "Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n", "") + chunked).await;
    assert_eq!(answer.text(), "done");
    let seen = served.last("/a");
    assert_eq!((seen.field("transfer-encoding"), seen.field("content-length")), (Some("chunked"), None));
    assert_eq!(&*seen.body, b"some body");
    assert_eq!(
        (&*seen.trailers, seen.field("trailer"), seen.field("x-trailer")),
        ("", None, None),
        "RFC 9110 section 6.5.1 allows to drop them, not to merge them"
    );
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_before_it_sends() {
    let served = writable(200, &[]);
    let mut client = served.client().await;
    client.send(request("POST", "/a", "Expect: 100-continue\r\nContent-Length: 4\r\n", "")).await;
    assert_eq!(client.answer(false).await.expect("an interim answer").status, 100);
    client.send("body").await;
    assert_eq!(client.answer(false).await.expect("an answer").text(), "done");
    let seen = served.last("/a");
    assert_eq!((&*seen.body, seen.field("expect")), (&b"body"[..], None));
}

#[tokio::test]
async fn a_large_upload_goes_through() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 24;
    let served = writable(200, &[]);
    let mut client = served.client().await;
    client.send(request("PUT", "/a", &format!("Content-Length: {}\r\n", PIECE * PIECES), "")).await;
    let piece = vec![b'x'; PIECE];
    for _ in 0..PIECES {
        client.send(&piece).await;
    }
    assert_eq!(client.answer(false).await.expect("an answer").text(), "done");
    assert_eq!(served.origin.body_bytes(), (PIECE * PIECES) as u64);
}

#[tokio::test]
async fn a_get_with_a_body_goes_past_the_cache() {
    let served = writable(200, &[]);
    for asked in 1..=2 {
        let answer = served.ask("GET", "/a", "", "query").await;
        assert!(answer.says("fwd=bypass") && answer.says("detail=REQUEST-BODY"), "{}", answer.head);
        assert_eq!((&*served.last("/a").body, served.origin.count("/a")), (&b"query"[..], asked));
    }
}

#[tokio::test]
async fn trailers_of_responses_are_kept_apart_and_replayed() {
    let served = serve(|_| {
        Script::raw(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
    });
    let miss = served.get_with("/a", "TE: trailers\r\nConnection: TE\r\n").await;
    assert_eq!((miss.text(), miss.field("x-sum")), ("body", None));
    assert_eq!(miss.trailers.to_ascii_lowercase(), "x-sum: 1\r\n");
    let hit = served.until_hit("/a", "").await;
    assert_eq!((hit.text(), hit.field("x-sum"), hit.whole), ("body", None, true));
}

#[tokio::test]
async fn the_asterisk_is_for_options_only() {
    let served = writable(200, &[]);
    assert_eq!(served.ask("OPTIONS", "*", "", "").await.text(), "done");
    let seen = served.last("*");
    assert_eq!((&*seen.method, &*seen.target, seen.field("host")), ("OPTIONS", "*", Some(HOST)));
    for method in ["GET", "HEAD", "POST", "PURGE", "FROBNICATE"] {
        assert_eq!(served.ask(method, "*", "", "").await.status, 400, "{method}");
    }
    assert_eq!(served.origin.total(), 1);
}

#[tokio::test]
async fn options_goes_no_further_than_max_forwards_allows() {
    let served = writable(200, &[]);
    let ours = served.ask("OPTIONS", "/a", "Max-Forwards: 0\r\n", "").await;
    assert_eq!((ours.status, served.origin.total()), (204, 0));
    assert!(ours.field("allow").expect("Allow").contains("GET"));
    served.ask("OPTIONS", "/a", "Max-Forwards: 3\r\n", "").await;
    assert_eq!(served.last("/a").field("max-forwards"), Some("2"));
}

#[tokio::test]
async fn trace_is_refused() {
    let served = writable(200, &[]);
    let answer = served.ask("TRACE", "/a", "Cookie: secret=1\r\n", "").await;
    assert_eq!((answer.status, answer.field("allow").is_some(), answer.text()), (405, true, ""));
    assert_eq!(served.origin.total(), 0);
}
