//! Failures of the origin: shared where they do not depend on the request, tried once more where a connection was
//! lost, and never taken for a whole answer.

use super::*;
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};

const PATH: &str = "/fragile";
const FOLLOWERS: usize = 6;

fn errors(token: &str) -> String {
    format!("tiercel_upstream_errors_total{{error=\"{token}\",upstream=\"default\"}}")
}

fn is_told(answer: &Answer, status: u16, token: &str) {
    assert_eq!((answer.status, answer.whole), (status, true), "{}", answer.head);
    let told = answer.field("proxy-status").expect("Proxy-Status").to_owned();
    assert!(told.contains(&format!("error={token}")), "{told}");
}

/// The gates before the first and the second answer.
fn reset_then(second: impl Fn() -> Script + Send + Sync + 'static) -> (Stage, Gate, Gate) {
    let (first_gate, second_gate) = (Gate::new(), Gate::new());
    let (first_held, second_held) = (first_gate.clone(), second_gate.clone());
    let stage = Stage::new(move |number, _| match number {
        0 => Script::reset().after(&first_held),
        1 => second().after(&second_held),
        _ => fresh("once more"),
    });
    (stage, first_gate, second_gate)
}

#[tokio::test]
async fn after_a_reset_one_follower_leads_anew_and_a_second_reset_is_shared() {
    let (stage, first, second) = reset_then(Script::reset);
    let mut clients = stage.line_up(PATH, FOLLOWERS).await;
    first.open();
    let leader = clients.remove(0).answer(false).await.expect("an answer");
    is_told(&leader, 502, "connection_terminated");
    stage.origin.until("one leads anew", |origin| origin.count(PATH) == 2).await;
    second.open();
    for answer in answers(clients).await {
        is_told(&answer, 502, "connection_terminated");
    }
    assert_eq!(stage.origin.count(PATH), 2);
    assert_eq!(stage.get(PATH).await.text(), "once more");
}

#[tokio::test]
async fn after_a_reset_the_answer_to_the_one_that_leads_anew_serves_all() {
    let (stage, first, second) = reset_then(|| fresh("at last"));
    let mut clients = stage.line_up(PATH, FOLLOWERS).await;
    first.open();
    is_told(&clients.remove(0).answer(false).await.expect("an answer"), 502, "connection_terminated");
    second.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (200, "at last"));
    }
    assert_eq!(stage.origin.count(PATH), 2);
    assert_eq!(stage.get(PATH).await.text(), "at last", "and it is stored");
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn the_request_that_leads_anew_is_that_of_a_follower() {
    let (stage, first, second) = reset_then(|| fresh("at last"));
    let leader = stage.lead(PATH, &["X-Who: leader"], 1).await;
    let follower = stage.follow(PATH, &["X-Who: follower"], 1).await;
    first.open();
    second.open();
    answers([leader]).await;
    assert_eq!(answers(follower).await[0].text(), "at last");
    let who: Vec<_> = stage.origin.requests(PATH).iter().map(|request| request.field("x-who").unwrap_or_default().to_owned()).collect();
    assert_eq!(who, ["leader", "follower"]);
}

#[tokio::test]
async fn a_malformed_answer_is_tried_once_more_and_then_shared() {
    let (stage, first, second) = reset_then(|| Script::raw("HTTP/1.1 nonsense\r\n\r\n").then(Step::Close));
    let mut clients = stage.line_up(PATH, FOLLOWERS).await;
    first.open();
    second.open();
    clients.remove(0).answer(false).await.expect("an answer");
    for answer in answers(clients).await {
        is_told(&answer, 502, "http_protocol_error");
    }
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn an_origin_that_refuses_connections_is_told_to_everybody_at_once() {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Tiercel::with_config(&configuration(&format!("http://{address}"), "upstreams.default.retries = 0"), folder.path());
    let stage = Stage { origin: Origin::start(|_| Script::close()), proxy, _folder: folder };
    let mut clients = Vec::new();
    for _ in 0..FOLLOWERS {
        clients.push(stage.send("GET", PATH, &[]).await);
    }
    for answer in answers(clients).await {
        is_told(&answer, 502, "connection_refused");
    }
    assert_eq!(stage.metric(&errors("connection_refused")).await, stage.metric("tiercel_coalesce_leaders_total").await);
}

/// An address that answers no connection: its queue is full.
fn deaf() -> (SocketAddr, Vec<Socket>) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let listener = socket();
    listener.bind(&any.into()).expect("a port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address").as_socket().expect("of the internet");
    let mut held = vec![listener];
    for _ in 0..4 {
        let client = socket();
        client.set_nonblocking(true).expect("an option");
        let _ = client.connect(&address.into()); // under way is enough, and once the queue is full it stays so
        held.push(client);
    }
    (address, held)
}

#[tokio::test]
async fn a_connection_that_comes_about_too_late_is_one_attempt_for_everybody() {
    let (address, _held) = deaf();
    let folder = tempfile::tempdir().expect("a folder");
    let config = configuration(&format!("http://{address}"), "upstreams.default.connect_timeout = \"3s\"");
    let stage = Stage { origin: Origin::start(|_| Script::close()), proxy: Tiercel::with_config(&config, folder.path()), _folder: folder };
    let leader = stage.send("GET", PATH, &[]).await;
    stage.until_metric("tiercel_coalesce_leaders_total", 1).await;
    let mut clients = stage.follow(PATH, &[], FOLLOWERS).await;
    clients.push(leader);
    for answer in answers(clients).await {
        is_told(&answer, 504, "connection_timeout");
    }
    assert_eq!(stage.metric("tiercel_coalesce_leaders_total").await, 1);
    assert_eq!(stage.metric(&errors("connection_timeout")).await, 1);
}

#[tokio::test]
async fn an_origin_that_is_too_slow_before_the_head_is_one_attempt_for_everybody() {
    let stage = Stage::with("upstreams.default.first_byte_timeout = \"3s\"", |number, _| {
        if number == 0 { Script::steps([Step::Echo]) } else { fresh("in time") }
    });
    let clients = stage.line_up(PATH, FOLLOWERS).await;
    for answer in answers(clients).await {
        is_told(&answer, 504, "http_response_timeout");
    }
    assert_eq!(stage.origin.count(PATH), 1);
    assert_eq!(stage.get(PATH).await.text(), "in time");
}

/// Everybody gets what came before the origin died, and knows that it is not all; nothing of it is kept.
async fn nobody_takes_a_part_for_the_whole(head: &'static str, part: &'static str, body: &'static str) {
    let (start, gate) = (Gate::new(), Gate::new());
    let (started, held) = (start.clone(), gate.clone());
    let stage = Stage::new(move |number, _| match number {
        0 => Script::raw(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{head}\r\n\r\n{part}"))
            .then(Step::Wait(held.clone()))
            .then(Step::Close)
            .after(&started),
        _ => fresh("whole"),
    });
    let mut clients = stage.line_up(PATH, FOLLOWERS).await;
    start.open();
    clients.push(stage.send("GET", PATH, &[]).await);
    for client in &mut clients {
        let begun = client.until(body).await.expect("what there is goes out at once");
        assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    }
    gate.open();
    for client in &mut clients {
        let rest = client.rest().await;
        assert!(rest.is_empty() || rest == b"\r\n", "ended as if whole: {rest:?}");
    }
    assert_eq!(stage.origin.count(PATH), 1);
    assert_eq!(stage.get(PATH).await.text(), "whole");
    assert_eq!(stage.origin.count(PATH), 2);
}

#[tokio::test]
async fn an_origin_that_dies_within_a_declared_length_aborts_everybody() {
    nobody_takes_a_part_for_the_whole("Content-Length: 1000", "only this", "only this").await;
}

#[tokio::test]
async fn an_origin_that_dies_between_chunks_aborts_everybody() {
    nobody_takes_a_part_for_the_whole("Transfer-Encoding: chunked", "9\r\nonly this\r\n", "only this").await;
}

#[tokio::test]
async fn errors_without_explicit_freshness_are_never_shared() {
    let gates = [400, 405, 413, 414, 421, 431, 501, 500, 503].map(|status| (status, Gate::new(), Gate::new()));
    let held = gates.clone();
    let stage = Stage::new(move |number, request| {
        let status: u16 = request.path[1..].parse().expect("a status");
        let (_, first, others) = held.iter().find(|(known, ..)| *known == status).expect("known");
        let is_first = request.field("x-who") == Some("leader");
        Script::status(status, format!("answer {number}")).after(if is_first { first } else { others })
    });
    for (status, first, others) in gates {
        let path = format!("/{status}");
        let mut clients = vec![stage.lead(&path, &["X-Who: leader"], 1).await];
        clients.extend(stage.follow(&path, &[], FOLLOWERS).await);
        first.open();
        stage.origin.until("everybody asks, all at once", |origin| origin.count(&path) == FOLLOWERS + 1).await;
        others.open();
        let mut bodies: Vec<String> = answers(clients).await.iter().map(|answer| format!("{} {}", answer.status, answer.text())).collect();
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), FOLLOWERS + 1, "each has its own: {bodies:?}");
    }
}

#[tokio::test]
async fn errors_with_explicit_freshness_are_shared() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_, _| Script::status(405, "not here").header("Cache-Control", "max-age=60").after(&held));
    let clients = stage.line_up(PATH, FOLLOWERS).await;
    gate.open();
    for answer in answers(clients).await {
        assert_eq!((answer.status, answer.text()), (405, "not here"));
    }
    assert_eq!(stage.origin.count(PATH), 1);
}
