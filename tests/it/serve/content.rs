//! QUERY (RFC 10008), and POST where a route takes it as safe: answered by what they carry.

use super::*;
use crate::support::origin::Gate;

const JSON: &str = "Content-Type: application/json\r\n";
const POST_TOO: &str = "[cache.body_key]\nmethods = [\"QUERY\", \"POST\"]\n";

/// An origin that answers with what it was asked, and counts.
fn echo(config: &str) -> Served {
    serve_with(config, |request| {
        let text = format!("{} {}", request.method, String::from_utf8_lossy(&request.body));
        confirm_or(request, Script::status(304, ""), fresh(&text).header("ETag", "\"v1\""))
    })
}

impl Served {
    async fn until_answered_from_store(&self, method: &str, path: &str, lines: &str, body: &str) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(method, path, lines, body).await;
            if answer.says("hit") {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited in vain: {}", answer.head);
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }
}

#[tokio::test]
async fn a_query_is_answered_from_store_by_its_content() {
    let served = echo("");
    let miss = served.ask("QUERY", "/a", JSON, "{1}").await;
    assert_eq!(miss.said(), "tiercel; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!((miss.text(), miss.field("age")), ("QUERY {1}", None));
    let seen = served.last("/a");
    assert_eq!((&*seen.method, &*seen.body, seen.field("content-length")), ("QUERY", &b"{1}"[..], Some("3")));
    assert_eq!(seen.field("content-type"), Some("application/json"));
    let hit = served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
    assert_eq!((hit.text(), served.origin.count("/a")), ("QUERY {1}", 1));
    let status = hit.field("cache-status").expect("told");
    assert!(status.starts_with("tiercel; hit; ttl=") && status.ends_with("; detail=MEMORY"), "{status}");
    // Whatever else is asked of the URL is something else.
    for (method, lines, body, text) in [
        ("QUERY", JSON, "{2}", "QUERY {2}"),
        ("QUERY", JSON, "", "QUERY "),
        ("QUERY", "Content-Type: application/sql\r\n", "{1}", "QUERY {1}"),
        ("QUERY", "Content-Type: application/json\r\nContent-Language: de\r\n", "{1}", "QUERY {1}"),
        ("GET", "", "", "GET "),
        ("POST", JSON, "{3}", "POST {3}"),
    ] {
        let before = served.origin.count("/a");
        let answer = served.ask(method, "/a", lines, body).await;
        assert_eq!((answer.text(), served.origin.count("/a")), (text, before + 1), "{method} {lines} {body}");
    }
}

#[tokio::test]
async fn chunks_make_the_same_content() {
    let served = echo("");
    served.ask("QUERY", "/a", JSON, "some text").await;
    served.until_answered_from_store("QUERY", "/a", JSON, "some text").await;
    let chunked = "4\r\nsome\r\n5\r\n text\r\n0\r\nX-Trailer: 1\r\n\r\n";
    let lines = format!("{JSON}Transfer-Encoding: chunked\r\n");
    let hit = served.client().await.ask(request("QUERY", "/a", &lines, "") + chunked).await;
    assert!(hit.says("hit"), "{}", hit.head);
    let mut client = served.client().await;
    client.send(request("QUERY", "/a", &format!("{JSON}Expect: 100-continue\r\nContent-Length: 9\r\n"), "")).await;
    assert_eq!(client.answer(false).await.expect("an interim answer").status, 100);
    client.send("some text").await;
    assert!(client.answer(false).await.expect("an answer").says("hit"));
    assert_eq!(served.origin.count("/a"), 1);
}

#[tokio::test]
async fn what_a_query_stored_is_confirmed_by_a_query() {
    let served = echo("");
    served.ask("QUERY", "/a", JSON, "{1}").await;
    served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
    let not_modified = served.ask("QUERY", "/a", &format!("{JSON}If-None-Match: \"v1\"\r\n"), "{1}").await;
    assert_eq!((not_modified.status, not_modified.says("hit")), (304, true), "RFC 10008 section 2.6");
    served.soften().await;
    let confirmed = served.ask("QUERY", "/a", JSON, "{1}").await;
    assert!(confirmed.says("fwd=stale") && confirmed.says("fwd-status=304"), "{}", confirmed.head);
    assert_eq!(confirmed.text(), "QUERY {1}");
    let seen = served.last("/a");
    assert_eq!((&*seen.method, &*seen.body, seen.field("if-none-match")), ("QUERY", &b"{1}"[..], Some("\"v1\"")));
    served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
}

#[tokio::test]
async fn a_stale_query_is_refreshed_behind_with_its_content() {
    let served = serve(|request| {
        let script = Script::ok(request.body.clone()).header("Cache-Control", "max-age=60, stale-while-revalidate=600");
        confirm_or(request, Script::status(304, "").header("Age", "0"), script.header("Age", "100").header("ETag", "\"v1\""))
    });
    served.ask("QUERY", "/a", JSON, "{1}").await;
    let hit = served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
    assert_eq!(hit.text(), "{1}");
    served.origin.wait_for_requests("/a", 2);
    let seen = served.last("/a");
    assert_eq!((&*seen.method, &*seen.body, seen.field("if-none-match")), ("QUERY", &b"{1}"[..], Some("\"v1\"")));
}

#[tokio::test]
async fn a_query_invalidates_nothing_and_a_write_or_purge_of_the_url_reaches_all_of_them() {
    let served = serve(|request| match request.method.as_str() {
        "QUERY" => fresh("x").header("Location", "/b").header("Content-Location", "/c"),
        _ => fresh("x"),
    });
    for path in ["/b", "/c"] {
        served.get(path).await;
        served.until_hit(path, "").await;
    }
    let store = async || {
        for body in ["{1}", "{2}"] {
            served.ask("QUERY", "/a", JSON, body).await;
            served.until_answered_from_store("QUERY", "/a", JSON, body).await;
        }
    };
    let are_gone = async || {
        for body in ["{1}", "{2}"] {
            assert!(!served.ask("QUERY", "/a", JSON, body).await.says("hit"), "{body}");
        }
    };
    store().await;
    assert!(served.get("/b").await.says("hit") && served.get("/c").await.says("hit"));
    served.ask("PUT", "/a", "", "x").await;
    are_gone().await;
    store().await;
    let url = json!({"urls": [format!("http://{HOST}/a")]}).to_string();
    assert_eq!(served.admin("POST", "/v1/purge", &url).await.0, 200);
    are_gone().await;
}

#[tokio::test]
async fn content_beyond_what_is_read_goes_through_whole() {
    let config = "[cache.body_key]\nmethods = [\"QUERY\", \"POST\"]\nmax_bytes = \"1KiB\"\n";
    let served = serve_with(config, |request| fresh(&request.body.len().to_string()));
    let piece = "x".repeat(700);
    for method in ["QUERY", "POST"] {
        for (lines, sent) in [
            (String::new(), format!("{piece}{piece}")),
            ("Transfer-Encoding: chunked\r\n".to_owned(), format!("2bc\r\n{piece}\r\n2bc\r\n{piece}\r\n0\r\n\r\n")),
        ] {
            let before = served.origin.count("/a");
            let lines = format!("{JSON}{lines}");
            let declared = if lines.contains("chunked") { String::new() } else { format!("Content-Length: {}\r\n", sent.len()) };
            for asked in 1..=2 {
                let answer = served.client().await.ask(request(method, "/a", &format!("{lines}{declared}"), "") + &sent).await;
                assert_eq!(answer.text(), "1400", "{method} {lines}");
                assert!(answer.says("fwd=bypass") && answer.says("detail=CONTENT-TOO-LARGE"), "{}", answer.head);
                assert_eq!(served.origin.count("/a"), before + asked);
                assert_eq!(served.last("/a").body, piece.repeat(2).into_bytes());
            }
        }
    }
    assert_eq!(served.bound("body_key_bytes").await, 4, "those that were declared are not read");
    let most = "x".repeat(1024);
    served.ask("QUERY", "/a", JSON, &most).await;
    served.until_answered_from_store("QUERY", "/a", JSON, &most).await;
}

#[tokio::test]
async fn a_client_that_wants_only_what_is_stored_is_not_forwarded_however_much_it_sends() {
    let served = serve_with("[cache.body_key]\nmax_bytes = \"1KiB\"\n", |_| fresh("x"));
    let lines = format!("{JSON}Cache-Control: only-if-cached\r\n");
    let chunked = format!("5dc\r\n{}\r\n0\r\n\r\n", "x".repeat(1500));
    let answers = [
        served.ask("QUERY", "/a", &lines, "small").await,
        served.ask("QUERY", "/a", &lines, &"x".repeat(1500)).await,
        served.client().await.ask(request("QUERY", "/a", &format!("{lines}Transfer-Encoding: chunked\r\n"), "") + &chunked).await,
    ];
    assert_eq!(answers.map(|answer| answer.status), [504; 3]);
    assert_eq!(served.origin.count("/a"), 0);
}

#[tokio::test]
async fn a_query_without_content_type_is_forwarded_and_not_stored() {
    let served = echo("");
    for asked in 1..=2 {
        let answer = served.ask("QUERY", "/a", "", "{1}").await;
        assert_eq!((answer.text(), served.origin.count("/a")), ("QUERY {1}", asked));
        assert_eq!(answer.field("cache-status"), Some("tiercel; fwd=bypass; fwd-status=200; detail=NO-CONTENT-TYPE"));
    }
}

#[tokio::test]
async fn query_can_be_left_out() {
    let served = echo("[cache.body_key]\nmethods = []\n");
    for asked in 1..=2 {
        let answer = served.ask("QUERY", "/a", JSON, "{1}").await;
        assert_eq!((answer.text(), served.origin.count("/a")), ("QUERY {1}", asked));
        assert!(answer.says("fwd=method"), "{}", answer.head);
    }
}

#[tokio::test]
async fn a_post_is_answered_from_store_where_the_route_says_so() {
    let served = echo(POST_TOO);
    served.ask("POST", "/a", JSON, "{1}").await;
    let hit = served.until_answered_from_store("POST", "/a", JSON, "{1}").await;
    let status = hit.field("cache-status").expect("told");
    assert!(status.ends_with("; detail=POST-BY-CONTENT"), "it is said where RFC 9110 section 9.3.3 is widened: {status}");
    assert_eq!((hit.text(), served.origin.count("/a")), ("POST {1}", 1));
    assert_eq!(served.ask("POST", "/a", JSON, "{2}").await.text(), "POST {2}");
    assert_eq!(served.get("/a").await.text(), "GET ", "nothing of it is for GET");
    served.until_hit("/a", "").await;
    // It changes nothing, then.
    served.ask("POST", "/a", JSON, "{3}").await;
    served.ask("POST", "/a", "", "no type").await;
    let conditional = served.ask("POST", "/a", &format!("{JSON}If-Match: \"v0\"\r\n"), "{1}").await;
    assert!(conditional.says("detail=CONDITION"), "{}", conditional.head);
    assert_eq!(served.last("/a").field("if-match"), Some("\"v0\""));
    assert!(served.get("/a").await.says("hit"));
    served.until_answered_from_store("POST", "/a", JSON, "{1}").await;
    // And what does is heard.
    served.ask("DELETE", "/a", "", "").await;
    assert!(!served.ask("POST", "/a", JSON, "{1}").await.says("hit"));
}

#[tokio::test]
async fn a_post_without_explicit_freshness_is_not_stored() {
    let served =
        serve_with(POST_TOO, |_| Script::ok("x").header("Last-Modified", "Sun, 12 Nov 2023 22:13:20 GMT").header("ETag", "\"v1\""));
    for asked in 1..=2 {
        let answer = served.ask("POST", "/a", JSON, "{1}").await;
        assert!(answer.says("detail=NO-FRESHNESS") && !answer.says("stored"), "{}", answer.head);
        assert_eq!(served.origin.count("/a"), asked);
    }
    served.ask("QUERY", "/a", JSON, "{1}").await;
    served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
}

#[tokio::test]
async fn queries_of_the_same_content_share_one_fetch() {
    for method in ["QUERY", "POST"] {
        let gate = Gate::new();
        let served = serve_with(POST_TOO, {
            let gate = gate.clone();
            move |request| fresh(&String::from_utf8_lossy(&request.body)).after(&gate)
        });
        let asking = |body: &'static str| {
            let client = served.client();
            async move { client.await.ask(request(method, "/a", JSON, body)).await }
        };
        let all = async { tokio::join!(asking("{1}"), asking("{1}"), asking("{1}"), asking("{2}")) };
        let opened = async {
            served.until_waiting(2).await;
            served.origin.until("two fetches", |origin| origin.count("/a") == 2).await;
            gate.open();
        };
        let ((one, two, three, other), ()) = tokio::join!(all, opened);
        assert_eq!([one.text(), two.text(), three.text(), other.text()], ["{1}", "{1}", "{1}", "{2}"]);
        assert_eq!([&one, &two, &three].iter().filter(|answer| answer.says("collapsed")).count(), 2, "{method}");
        assert_eq!(served.origin.count("/a"), 2);
    }
}

/// Asks on a connection to the origin that was idle and is closed without an answer.
async fn on_a_dying_connection(method: &str) -> (Served, Answer) {
    let served = serve_with(POST_TOO, |request| match (request.connection, request.exchange) {
        (0, 1..) => Script::close(),
        _ => fresh(&String::from_utf8_lossy(&request.body)),
    });
    // On one connection of ours, so that both are of one worker, which keeps idle connections of its own.
    let mut client = served.client().await;
    client.ask(request("GET", "/warm", "", "")).await;
    let answer = client.ask(request(method, "/a", JSON, "{1}")).await;
    (served, answer)
}

#[tokio::test]
async fn a_query_is_sent_again_on_a_connection_that_lives() {
    let (served, answer) = on_a_dying_connection("QUERY").await;
    assert_eq!((answer.status, answer.text()), (200, "{1}"), "{}", answer.head);
    let bodies: Vec<_> = served.origin.requests("/a").into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"{1}", b"{1}"]);
}

#[tokio::test]
async fn a_post_is_not_sent_again_though_it_is_taken_as_safe() {
    let (served, answer) = on_a_dying_connection("POST").await;
    assert_eq!((answer.status, served.origin.count("/a")), (502, 1), "{}", answer.head);
}

#[tokio::test]
async fn content_that_does_not_come_whole_is_not_asked_about() {
    let served = echo("");
    let mut client = served.client().await;
    client.send(request("QUERY", "/a", &format!("{JSON}Transfer-Encoding: chunked\r\n"), "") + "5\r\nab\r\n0\r\n\r\n").await;
    assert_eq!(client.answer(false).await.expect("an answer").status, 400);
    assert_eq!(served.origin.total(), 0);
}

#[tokio::test]
async fn request_directives_count_for_a_query_too() {
    let served = echo("");
    let only = format!("{JSON}Cache-Control: only-if-cached\r\n");
    assert_eq!(served.ask("QUERY", "/a", &only, "{1}").await.status, 504);
    assert_eq!(served.origin.total(), 0);
    let answer = served.ask("QUERY", "/a", &format!("{JSON}Cache-Control: no-store\r\n"), "{1}").await;
    assert!(answer.says("detail=REQUEST-NO-STORE"), "{}", answer.head);
    served.ask("QUERY", "/a", JSON, "{1}").await;
    served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
    assert_eq!(served.ask("QUERY", "/a", &only, "{1}").await.status, 200);
}

#[tokio::test]
async fn a_query_is_explained_by_its_content() {
    let served = echo("show_key = true\n");
    let answer = served.ask("QUERY", "/a", JSON, "{secret}").await;
    assert!(answer.says(&format!("key=\"http://{HOST}/a\"")), "content is not shown: {}", answer.head);
    served.until_answered_from_store("QUERY", "/a", JSON, "{secret}").await;
    let asked = |content: &str| json!({"url": format!("http://{HOST}/a"), "method": "QUERY", "headers": [["content-type", "application/json"]], "content": content});
    let (status, explained) = served.admin("POST", "/v1/explain", &asked("{secret}").to_string()).await;
    assert_eq!((status, &explained["way"], explained["stored"].is_null()), (200, &json!("cache, by its content"), false), "{explained}");
    let (_, explained) = served.admin("POST", "/v1/explain", &asked("{other}").to_string()).await;
    assert!(explained["stored"].is_null(), "{explained}");
}

#[tokio::test]
async fn a_client_that_leaves_in_its_content_leaves_nothing_behind() {
    let served = echo("");
    let mut client = served.client().await;
    client.send(request("QUERY", "/a", &format!("{JSON}Content-Length: 10\r\n"), "") + "half").await;
    drop(client);
    served.ask("QUERY", "/a", JSON, "{1}").await;
    served.until_answered_from_store("QUERY", "/a", JSON, "{1}").await;
    assert_eq!(served.origin.count("/a"), 1);
}
