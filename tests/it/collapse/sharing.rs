//! Who shares an answer, who goes on alone, and who does not wait at all.

use super::*;
use serde_json::json;

const FOLLOWERS: usize = 8;
/// Markers that no slow machine outlives.
const LONG_MARKERS: &str = "fill.marker_first = \"10m\"\nfill.marker_max = \"10m\"";

/// A leader behind one gate, everybody else behind another.
fn two_gates(answer: impl Fn(usize) -> Script + Send + Sync + 'static) -> (Stage, Gate, Gate) {
    let (first, others) = (Gate::new(), Gate::new());
    let (first_held, others_held) = (first.clone(), others.clone());
    let stage = Stage::with(LONG_MARKERS, move |number, _| answer(number).after(if number == 0 { &first_held } else { &others_held }));
    (stage, first, others)
}

async fn goes_to_everybody_alone(name: &'static str, value: &'static str) {
    const PATH: &str = "/personal";
    let (stage, first, others) = two_gates(move |number| Script::ok(format!("for request {number}")).header(name, value));
    let mut clients = stage.line_up(PATH, FOLLOWERS).await;
    first.open();
    stage.origin.until("everybody asks, in parallel", |origin| origin.count(PATH) == FOLLOWERS + 1).await;
    assert_eq!(stage.metric("tiercel_markers").await, 1, "{value}");
    // The next do not line up: they are at the origin while it holds back what came before them.
    for _ in 0..FOLLOWERS {
        clients.push(stage.send("GET", PATH, &[]).await);
    }
    stage.origin.until("nobody lines up", |origin| origin.count(PATH) == 2 * FOLLOWERS + 1).await;
    assert_eq!(stage.metric(WAITING).await, 0);
    others.open();
    let mut bodies: Vec<String> = answers(clients).await.iter().map(|answer| answer.text().to_owned()).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 2 * FOLLOWERS + 1, "each has its own: {bodies:?}");
}

#[tokio::test]
async fn markers_that_crowd_each_other_out_are_counted() {
    let stage = Stage::with("fill.marker_count = 1", |_, _| Script::ok("mine").header("Cache-Control", "private"));
    let series = "tiercel_bound_reached_total{bound=\"markers\"}";
    stage.get("/a").await;
    assert_eq!((stage.metric(series).await, stage.metric("tiercel_markers").await), (0, 1));
    stage.get("/b").await;
    assert_eq!((stage.metric(series).await, stage.metric("tiercel_markers").await), (1, 1));
}

#[tokio::test]
async fn no_store_goes_to_everybody_alone() {
    goes_to_everybody_alone("Cache-Control", "no-store").await;
}

#[tokio::test]
async fn private_goes_to_everybody_alone() {
    goes_to_everybody_alone("Cache-Control", "private, max-age=60").await;
}

#[tokio::test]
async fn set_cookie_goes_to_everybody_alone() {
    goes_to_everybody_alone("Set-Cookie", "session=1").await;
}

#[tokio::test]
async fn what_is_stale_at_once_and_has_no_validator_goes_to_everybody_alone() {
    goes_to_everybody_alone("Cache-Control", "max-age=0").await;
}

#[tokio::test]
async fn a_storable_answer_clears_the_marker() {
    const PATH: &str = "/changing";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(LONG_MARKERS, move |number, _| match number {
        0 => Script::ok("personal").header("Cache-Control", "no-store"),
        1 => fresh("for all"),
        _ => fresh("for all").after(&held),
    });
    assert_eq!(stage.get(PATH).await.text(), "personal");
    assert_eq!(stage.metric("tiercel_markers").await, 1);
    assert_eq!(stage.get(PATH).await.text(), "for all");
    assert_eq!(stage.metric("tiercel_markers").await, 0);
    stage.purge(&json!({ "everything": true })).await;
    let mut clients = vec![stage.lead(PATH, &[], 3).await];
    clients.extend(stage.follow(PATH, &[], FOLLOWERS).await);
    gate.open();
    answers(clients).await;
    assert_eq!(stage.origin.count(PATH), 3);
}

/// The marker is that of the Vary which was known; the answer that clears it has none.
#[tokio::test]
async fn a_storable_answer_clears_the_marker_that_sent_its_request_alone() {
    const PATH: &str = "/partly";
    let stage = Stage::with(LONG_MARKERS, |number, _| match number {
        0 => fresh("for some").header("Vary", "X-Variant"),
        1 => Script::ok("personal").header("Vary", "X-Variant").header("Cache-Control", "no-store"),
        _ => fresh("for all"),
    });
    for (variant, text, markers) in [("a", "for some", 0), ("b", "personal", 1), ("b", "for all", 0)] {
        let client = stage.send("GET", PATH, &[&format!("X-Variant: {variant}")]).await;
        assert_eq!(answers([client]).await[0].text(), text);
        assert_eq!(stage.metric("tiercel_markers").await, markers, "after {text}");
    }
}

#[tokio::test]
async fn a_confirmation_that_makes_it_fresh_clears_the_marker() {
    const PATH: &str = "/confirmed";
    let stage = Stage::with(LONG_MARKERS, |number, request| match number {
        0 => Script::ok("the page").header("Cache-Control", "max-age=0").header("ETag", "\"1\""),
        _ => {
            assert_eq!(request.field("if-none-match"), Some("\"1\""));
            Script::raw("HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: \"1\"\r\n\r\n")
        }
    });
    assert_eq!(stage.get(PATH).await.text(), "the page");
    assert_eq!(stage.metric("tiercel_markers").await, 1);
    assert_eq!(stage.get(PATH).await.text(), "the page");
    assert_eq!((stage.metric("tiercel_markers").await, stage.origin.count(PATH)), (0, 2));
    assert_eq!(stage.get(PATH).await.text(), "the page");
    assert_eq!(stage.origin.count(PATH), 2, "it is fresh by now");
}

#[tokio::test]
async fn a_marker_is_for_the_variant_that_cannot_be_shared() {
    const PATH: &str = "/partly";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with(LONG_MARKERS, move |number, request| {
        let personal = request.field("x-variant") == Some("personal");
        let script = Script::ok("the page").header("Vary", "X-Variant");
        let script = script.header("Cache-Control", if personal { "no-store" } else { "max-age=60" });
        if number < 2 { script } else { script.after(&held) }
    });
    let shared = stage.send("GET", PATH, &["X-Variant: shared"]).await;
    answers([shared]).await;
    let personal = stage.send("GET", PATH, &["X-Variant: personal"]).await;
    answers([personal]).await;
    assert_eq!(stage.metric("tiercel_markers").await, 1);
    stage.purge(&json!({ "everything": true })).await;
    let mut clients = vec![stage.lead(PATH, &["X-Variant: shared"], 3).await];
    clients.extend(stage.follow(PATH, &["X-Variant: shared"], 2).await);
    clients.push(stage.send("GET", PATH, &["X-Variant: personal"]).await);
    clients.push(stage.send("GET", PATH, &["X-Variant: personal"]).await);
    stage.origin.until("the marked ones ask, each for itself", |origin| origin.count(PATH) == 5).await;
    gate.open();
    answers(clients).await;
    assert_eq!(stage.origin.count(PATH), 5);
}

#[tokio::test]
async fn a_request_that_wants_nothing_stored_does_not_wait_and_sets_no_marker() {
    const PATH: &str = "/page";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |number, _| if number == 0 { fresh("for all").after(&held) } else { fresh("for you") });
    let clients = stage.line_up(PATH, 1).await;
    let mut own = stage.send("GET", PATH, &["Cache-Control: no-store"]).await;
    assert_eq!(own.answer(false).await.expect("an answer while the others wait").text(), "for you");
    assert_eq!(stage.metric("tiercel_markers").await, 0);
    gate.open();
    assert_eq!(answers(clients).await[1].text(), "for all");
}

#[tokio::test]
async fn a_request_with_authorization_waits_where_the_key_is_known_to_be_shareable() {
    const PATH: &str = "/public";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |number, _| {
        let script = Script::ok("for all").header("Cache-Control", "public, max-age=60").header("ETag", "\"v1\"");
        if number == 0 { script } else { script.after(&held) }
    });
    stage.get(PATH).await;
    stage.purge(&json!({ "everything": true, "mode": "soft" })).await;
    let mut clients = vec![stage.lead(PATH, &[], 2).await];
    clients.extend(stage.follow(PATH, &["Authorization: Basic abc"], 2).await);
    gate.open();
    for answer in answers(clients).await {
        assert_eq!(answer.text(), "for all");
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn a_request_with_authorization_does_not_wait() {
    const PATH: &str = "/mixed";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, request| match request.field("authorization") {
        Some(_) => Script::ok("for you").header("Cache-Control", "max-age=60"),
        None => fresh("for all").after(&held),
    });
    let clients = stage.line_up(PATH, 1).await;
    let mut known = stage.send("GET", PATH, &["Authorization: Basic abc"]).await;
    assert_eq!(known.answer(false).await.expect("an answer while the others wait").text(), "for you");
    gate.open();
    for answer in answers(clients).await {
        assert_eq!(answer.text(), "for all");
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn where_a_route_does_not_collapse_everybody_asks() {
    const PATH: &str = "/each";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("cache.collapse = false", move |_, _| fresh("for all").after(&held));
    let mut clients = Vec::new();
    for _ in 0..FOLLOWERS {
        clients.push(stage.send("GET", PATH, &[]).await);
    }
    stage.origin.until("everybody asks", |origin| origin.count(PATH) == FOLLOWERS).await;
    gate.open();
    answers(clients).await;
}

#[tokio::test]
async fn head_follows() {
    const PATH: &str = "/page";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| fresh("the page").after(&held));
    let mut leader = stage.lead(PATH, &[], 1).await;
    let mut head = stage.send("HEAD", PATH, &[]).await;
    stage.until_metric(WAITING, 1).await;
    gate.open();
    let answer = head.answer(true).await.expect("an answer");
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("8")));
    assert_eq!(leader.answer(false).await.expect("an answer").text(), "the page");
    // Nothing of a body follows: the connection is good for another request.
    assert_eq!(head.ask("GET /page HTTP/1.1\r\nHost: shop.test\r\n\r\n").await.text(), "the page");
    assert_eq!(stage.origin.count(PATH), 1);
}

#[tokio::test]
async fn head_never_leads() {
    const PATH: &str = "/page";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, request| if request.method == "HEAD" { fresh("the page").after(&held) } else { fresh("the page") });
    let mut head = stage.send("HEAD", PATH, &[]).await;
    stage.origin.until("it goes alone", |origin| origin.count(PATH) == 1).await;
    assert_eq!(stage.get(PATH).await.text(), "the page", "without waiting for the other");
    gate.open();
    assert_eq!(head.answer(true).await.expect("an answer").status, 200);
    let methods: Vec<_> = stage.origin.requests(PATH).into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["HEAD", "GET"]);
}

#[tokio::test]
async fn unsafe_methods_do_not_wait_and_what_they_change_is_fetched_anew() {
    const PATH: &str = "/item";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |number, request| match (number, request.method.as_str()) {
        (0, _) => fresh("before").after(&held),
        (_, "POST") => Script::ok("written"),
        _ => fresh("after"),
    });
    let clients = stage.line_up(PATH, 1).await;
    let mut post = stage.send("POST", PATH, &["Content-Length: 0"]).await;
    assert_eq!(post.answer(false).await.expect("an answer while the others wait").text(), "written");
    assert_eq!(stage.get(PATH).await.text(), "after", "a request after the write does not join the fetch before it");
    gate.open();
    assert_eq!(answers(clients).await[0].text(), "before");
    assert_eq!(stage.get(PATH).await.text(), "after", "what was fetched before the write is not used after it");
}

#[tokio::test]
async fn conditions_are_not_sent_from_a_flight_and_are_evaluated_for_each() {
    const PATH: &str = "/tagged";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| {
        fresh("the page").header("ETag", "\"v2\"").header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT").after(&held)
    });
    let leader = stage.lead(PATH, &["If-None-Match: \"v2\"", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"], 1).await;
    let same = stage.follow(PATH, &["If-None-Match: \"v1\", W/\"v2\""], 1).await;
    let other = stage.send("GET", PATH, &["If-None-Match: \"v1\""]).await;
    let since = stage.send("GET", PATH, &["If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"]).await;
    let plain = stage.send("GET", PATH, &[]).await;
    stage.until_metric(WAITING, 4).await;
    gate.open();
    let statuses: Vec<_> =
        answers(std::iter::once(leader).chain(same).chain([other, since, plain])).await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [304, 304, 200, 304, 200]);
    let requests = stage.origin.requests(PATH);
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].field("if-none-match"), requests[0].field("if-modified-since")), (None, None));
}

#[tokio::test]
async fn interim_responses_go_to_all_who_are_there() {
    const PATH: &str = "/hinted";
    let (hints, rest) = (Gate::new(), Gate::new());
    let (hints_held, rest_held) = (hints.clone(), rest.clone());
    let stage = Stage::new(move |_, _| {
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n".to_vec();
        let page = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 8\r\n\r\nthe page".to_vec();
        Script::steps([Step::Wait(hints_held.clone()), Step::Bytes(early), Step::Wait(rest_held.clone()), Step::Bytes(page)])
    });
    let mut clients = stage.line_up(PATH, 3).await;
    hints.open();
    for client in &mut clients {
        let early = client.answer(false).await.expect("hints before the answer");
        assert_eq!((early.status, early.field("link")), (103, Some("</style.css>; rel=preload")));
    }
    rest.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, "the page"));
    }
    assert_eq!(stage.get(PATH).await.status, 200, "nothing of the hints is stored");
}

#[tokio::test]
async fn more_than_may_wait_are_told_to_come_again() {
    const PATH: &str = "/crowded";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("limits.waiting = 4", move |_, _| fresh("the page").after(&held));
    let clients = stage.line_up(PATH, 4).await;
    for _ in 0..3 {
        let answer = stage.get(PATH).await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    }
    assert_eq!(stage.metric("tiercel_bound_reached_total{bound=\"waiting\"}").await, 3);
    assert_eq!(stage.metric("tiercel_coalesce_followers_total{outcome=\"full\"}").await, 3);
    gate.open();
    for answer in answers(clients).await {
        assert_eq!(answer.text(), "the page");
    }
    assert_eq!(stage.origin.count(PATH), 1);
    assert_eq!(stage.get(PATH).await.text(), "the page");
}

#[tokio::test]
async fn trailers_reach_everybody_who_wants_them() {
    const PATH: &str = "/summed";
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n";
        Script::raw(format!("{head}8\r\nthe page\r\n0\r\nx-sum: 42\r\n\r\n")).after(&held)
    });
    let wants = &["Connection: TE", "TE: trailers"];
    let mut clients = vec![stage.lead(PATH, wants, 1).await];
    clients.extend(stage.follow(PATH, wants, 3).await);
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.text(), answer.field("x-sum")), ("the page", None), "never merged into the fields");
        assert_eq!(answer.trailers.to_ascii_lowercase(), "x-sum: 42\r\n");
    }
    assert_eq!(stage.get(PATH).await.trailers, "");
    assert_eq!(stage.origin.count(PATH), 1);
}
