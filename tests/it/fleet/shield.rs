//! Three nodes of which one asks the origin for a key.

mod names;
mod tls;
mod warm;

use super::crowd::{CROWD, HOST, body_of, everybody_gets_its_variant, fresh, gather, its_variant, room_for_a_crowd, until_waiting};
use crate::support::client::{Answer, Client};
use crate::support::fleet::{Fleet, Node, Plan};
use crate::support::origin::{Gate, Origin, PATIENCE, Recorded, Script, Step, eventually};
use crate::support::redis::Redis;
use crate::support::server::Tiercel;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::RngExt;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tiercel::shield::hop::{Asked, Hop, Key, Standing, Wanted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NODES: usize = 3;

/// Nobody's patience ends before the crowd is there, nor on a machine that is busy with other things.
const CONFIG: &str = "
[server]
workers = 2
[upstreams.default]
endpoints = ['@ORIGIN@']
first_byte_timeout = '5m'
[limits]
connections = 8000
[cache]
targeted = ['Surrogate-Control']
[shield]
listen = '@PEER@'
peers = [@PEERS@]
secret = '0123456789abcdef0123456789abcdef'
first_byte_timeout = '6m'
connect_timeout = '1m'
keep_alive = '1m'
back_off = '200ms'
back_off_max = '400ms'
warm_budget = '1m'
";

struct Stage {
    origin: Origin,
    fleet: Fleet,
    /// Where the fleet has its journal, if it has one.
    redis: Option<Redis>,
}

impl Stage {
    fn new(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::with_config(CONFIG, respond)
    }

    fn with_config(config: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        let origin = Origin::start(respond);
        let plan = Plan { nodes: NODES, config: config.into(), origin: origin.url(), ..Plan::default() };
        Self { fleet: Fleet::start(&plan), origin, redis: None }
    }

    /// Nodes with one journal, all of them trusted.
    fn with_journal(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::with_journal_and_config(CONFIG, respond)
    }

    fn with_journal_and_config(config: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        let (origin, redis) = (Origin::start(respond), Redis::start());
        let config = format!("{config}[journal]\nnode = '@NODE@'\ntrust = '1s'\nredis.url = 'redis://@REDIS@'\n");
        let plan = Plan { nodes: NODES, config, origin: origin.url(), redis: Some(redis.address()), ..Plan::default() };
        let stage = Self { fleet: Fleet::start(&plan), origin, redis: Some(redis) };
        let deadline = Instant::now() + PATIENCE;
        while stage.sum("tiercel_journal_trusted", &[]) < NODES as f64 {
            assert!(Instant::now() < deadline, "the journal is never trusted");
            std::thread::sleep(Duration::from_millis(5)); // nobody announces it
        }
        stage
    }

    fn node(&self, number: usize) -> &Node {
        &self.fleet.nodes[number]
    }

    /// Which node owns a path; all of them say the same.
    fn owner(&self, path: &str) -> usize {
        let owner = |node: &Node| {
            let asked = json!({"url": format!("http://{HOST}{path}")}).to_string();
            let (status, explained) = node.admin("POST", "/v1/explain", &asked).expect("it answers");
            assert_eq!(status, 200, "{explained}");
            explained["shield"]["owner"].as_str().expect("an owner").to_owned()
        };
        let name = owner(self.node(0));
        assert!(self.fleet.nodes.iter().all(|node| owner(node) == name), "nodes disagree about the owner");
        self.fleet.nodes.iter().position(|node| node.peer.to_string() == name).expect("one of the nodes")
    }

    /// A path that this node owns.
    fn path_of(&self, owner: usize) -> String {
        self.path_below("/owned", owner)
    }

    fn path_below(&self, folder: &str, owner: usize) -> String {
        (0..200).map(|number| format!("{folder}/{number}")).find(|path| self.owner(path) == owner).expect("it owns a third")
    }

    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.fleet.sum(name, labels)
    }

    async fn get(&self, node: usize, path: &str) -> Answer {
        self.node(node).get(HOST, path).await
    }
}

#[tokio::test]
async fn three_thousand_requests_spread_over_three_nodes_are_one_origin_request() {
    let (gate, respond) = held_up();
    the_crowd_costs_one_origin_request(|| Stage::new(respond), &gate).await;
}

#[tokio::test]
async fn so_they_are_where_the_owner_asks_first_what_another_node_holds() {
    let (gate, respond) = held_up();
    let stage = the_crowd_costs_one_origin_request(|| Stage::with_journal(respond), &gate).await;
    assert_eq!(stage.sum("tiercel_shield_warm_total", &["outcome=\"nothing\""]), 1.0);
}

fn held_up() -> (Gate, impl Fn(&Recorded) -> Script + Send + Sync + 'static) {
    let gate = Gate::new();
    let held = gate.clone();
    (gate, move |_: &Recorded| fresh(body_of("0")).after(&held))
}

async fn the_crowd_costs_one_origin_request(stage: impl FnOnce() -> Stage, gate: &Gate) -> Stage {
    let _guard = room_for_a_crowd().await;
    let stage = stage();
    let crowd = gather(&stage.fleet, "/cold", 1).await;
    // One leads on each node; those of the others follow on the owner, too.
    until_waiting(&stage.fleet, CROWD - NODES + (NODES - 1)).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert_eq!(stage.origin.total(), 1);
    assert_eq!(stage.sum("tiercel_shield_requests_total", &["outcome=\"answered\""]), 2.0);
    assert_eq!(
        stage.sum("tiercel_shield_requests_total", &["outcome=\"plain\""])
            + stage.sum("tiercel_shield_requests_total", &["outcome=\"served\""]),
        2.0
    );
    stage
}

#[tokio::test]
async fn four_variants_of_a_known_vary_are_four_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |request| {
        let script = its_variant(request);
        if request.field("x-variant").is_none() { script } else { script.after(&held) }
    });
    for node in 0..NODES {
        assert_eq!(stage.get(node, "/cold").await.body, body_of("none"));
    }
    assert_eq!(stage.origin.total(), 1, "the others have it from the owner");
    let crowd = gather(&stage.fleet, "/cold", 4).await;
    until_waiting(&stage.fleet, CROWD - 4 * NODES + 4 * (NODES - 1)).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert_eq!(stage.origin.total(), 1 + 4);
}

#[tokio::test]
async fn four_variants_of_an_unknown_vary_are_at_most_five_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |request| its_variant(request).after(&held));
    let crowd = gather(&stage.fleet, "/cold", 4).await;
    until_waiting(&stage.fleet, CROWD - NODES + (NODES - 1)).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert!((4..=5).contains(&stage.origin.total()), "{} origin requests", stage.origin.total());
}

#[tokio::test]
async fn an_owner_killed_while_all_wait_costs_one_more_origin_request() {
    let _guard = room_for_a_crowd().await;
    for _ in 0..2 {
        let gate = Gate::new();
        let held = gate.clone();
        let mut stage = Stage::new(move |_| fresh(body_of("0")).after(&held));
        let (path, owner) = ("/cold", stage.owner("/cold"));
        let kill_at = rand::rng().random_range(0..CROWD);
        let mut crowd = Vec::with_capacity(CROWD);
        for number in 0..CROWD {
            if number == kill_at {
                stage.fleet.nodes[owner].kill();
            }
            let node = number % NODES;
            if node == owner {
                // Its own clients are lost with it: they are there to make it busy.
                if let Ok(mut stream) = TcpStream::connect(stage.node(node).http).await {
                    _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await;
                    drop(stream);
                }
                continue;
            }
            let mut client = Client::connect(stage.node(node).http).await;
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            crowd.push((node, 0, client));
        }
        let others = crowd.len();
        // One leads on each of the two that are left, and one of these follows on the other.
        until_waiting(&stage.fleet, others - 2 + 1).await;
        gate.open();
        everybody_gets_its_variant(crowd).await;
        assert!(stage.origin.total() <= 2, "killed at {kill_at}: {} origin requests", stage.origin.total());
    }
}

#[tokio::test]
async fn an_owner_killed_in_the_middle_of_a_body_never_ends_it_cleanly() {
    let gate = Gate::new();
    let held = gate.clone();
    let body: Vec<u8> = (0..400_000_u32).map(|at| (at / 7) as u8).collect();
    let (begun, rest) = (body[..200_000].to_vec(), body[200_000..].to_vec());
    let asked = AtomicUsize::new(0);
    let whole = body.clone();
    let mut stage = Stage::new(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => {
            let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n", begun.len() + rest.len());
            Script::steps([Step::Bytes([head.as_bytes(), &begun].concat()), Step::Wait(held.clone()), Step::Bytes(rest.clone())])
        }
        _ => fresh(whole.clone()),
    });
    let owner = stage.owner("/large");
    let others: Vec<_> = (0..NODES).filter(|node| *node != owner).collect();
    let mut clients = Vec::new();
    for node in &others {
        let mut client = Client::connect(stage.node(*node).http).await;
        client.send(format!("GET /large HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        client.until("\r\n\r\n").await.expect("a head");
        assert_eq!(client.take_exactly(100_000).await, body[..100_000], "it is streamed through");
        clients.push(client);
    }
    stage.fleet.nodes[owner].kill();
    for client in &mut clients {
        let rest = client.rest().await;
        assert!(rest.len() < 300_000, "a part of a body was delivered as the whole");
        assert_eq!(rest, body[100_000..100_000 + rest.len()]);
    }
    gate.open();
    for node in &others {
        let answer = stage.get(*node, "/large").await;
        assert!(answer.whole && answer.body == body, "what is asked for later is right: {}", answer.head);
    }
    assert_eq!(stage.origin.total(), 2);
}

#[tokio::test]
async fn what_the_origin_cuts_off_is_never_ended_by_the_owner_as_if_it_were_whole() {
    let stage = Stage::new(|request| match request.path.as_str() {
        "/length" => Script::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: 1000\r\n\r\nhalf").then(Step::Close),
        "/chunks" => Script::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            .then(Step::Close),
        _ => Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").then(Step::Reset), // not stored
    });
    for path in ["/length", "/chunks", "/not-stored"] {
        for node in 0..NODES {
            let mut client = Client::connect(stage.node(node).http).await;
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
            let answer = client.answer(false).await;
            assert!(answer.is_none_or(|answer| !answer.whole), "{path} at node {node} ended as if it were whole");
        }
    }
}

#[tokio::test]
async fn an_emptied_node_does_not_go_to_the_origin_for_what_owners_hold() {
    let mut stage = Stage::new(|request| fresh(request.path.clone()));
    let paths: Vec<_> = (0..30).map(|number| format!("/warm/{number}")).collect();
    for path in &paths {
        assert_eq!(stage.get(0, path).await.text(), path);
    }
    assert_eq!(stage.origin.total(), paths.len());
    // The first node emptied: what it owns itself is lost, the rest is with its owners.
    let own = paths.iter().filter(|path| stage.owner(path) == 0).count();
    assert!((1..paths.len()).contains(&own));
    stage.fleet.nodes[0].terminate();
    stage.fleet.nodes[0].start();
    stage.node(0).until_ready();
    for path in &paths {
        assert_eq!(stage.get(0, path).await.text(), path);
    }
    assert_eq!(stage.origin.total(), paths.len() + own);
    for path in &paths {
        assert!(stage.get(0, path).await.says("hit"), "the node keeps what it got from others");
    }
}

#[tokio::test]
async fn answers_of_the_owner_say_where_they_come_from_and_how_old_they_are() {
    let stage = Stage::new(|_| fresh("x").header("Surrogate-Key", "a b").header("Surrogate-Control", "max-age=1000").header("Age", "100"));
    let path = stage.path_of(1);
    let first = stage.get(0, &path).await;
    let said = first.all("cache-status");
    assert!(said.contains("detail=SHIELD"), "{}", first.head);
    assert_eq!(said.matches("tiercel; ").count(), 2, "the owner's member stands before ours: {said}");
    assert!(first.field("age").is_some_and(|age| (100..110).contains(&age.parse::<u32>().unwrap())), "{}", first.head);
    for name in ["tiercel-stamp", "tiercel-error", "surrogate-key", "surrogate-control"] {
        assert_eq!(first.field(name), None, "{}", first.head);
    }
    // From the owner's memory, for another node.
    let second = stage.get(2, &path).await;
    assert!(second.all("cache-status").contains("; hit"), "{}", second.head);
    let asked = stage.origin.requests(&path);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].field("tiercel-hop"), None, "the origin is not told of it");
    assert_eq!(asked[0].field("cdn-loop"), Some("tiercel, tiercel"), "it passed two nodes");
    assert_eq!(asked[0].field("x-forwarded-for").map(|list| list.split(", ").count()), Some(2));
    assert!(asked[0].field("x-forwarded-for").unwrap().starts_with("127.0.0.1, "), "the client first");
    // Freshness is the one that the origin said to caches alone, also on the node that asked another.
    let again = stage.get(0, &path).await;
    let said = again.all("cache-status");
    let own = said.rsplit("tiercel; ").next().unwrap();
    let ttl = own.split("; ").find_map(|said| said.strip_prefix("ttl=")).expect("a ttl").parse::<u32>().unwrap();
    assert!(own.starts_with("hit") && (850..=900).contains(&ttl), "{said}");
}

#[tokio::test]
async fn a_purge_holds_on_its_node_though_the_owner_still_has_the_response() {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let stage = Stage::new(move |_| fresh(served.load(Ordering::Relaxed).to_string()).header("Surrogate-Key", "shoes"));
    for selector in ["url", "key"] {
        let path = stage.path_below(&format!("/by-{selector}"), 1);
        version.store(1, Ordering::Relaxed);
        assert_eq!(stage.get(0, &path).await.text(), "1");
        version.store(2, Ordering::Relaxed);
        let body = match selector {
            "url" => json!({"urls": [format!("http://{HOST}{path}")]}),
            _ => json!({"keys": ["shoes"]}),
        };
        let (status, answer) = stage.node(0).admin("POST", "/v1/purge", &body.to_string()).unwrap();
        assert_eq!(status, 200, "{answer}");
        let answer = stage.get(0, &path).await;
        assert_eq!(answer.text(), "2", "by {selector}: {}", answer.head);
        assert_eq!(stage.get(2, &path).await.text(), "1", "nobody told the others: without a journal each node is its own");
    }
}

#[tokio::test]
async fn what_may_not_be_shared_is_nobody_elses_through_the_owner_either() {
    let stage = Stage::new(|request| {
        let who = request.field("cookie").or(request.field("authorization")).unwrap_or("nobody").to_owned();
        let script = Script::ok(who);
        match request.path.as_str() {
            path if path.starts_with("/no-store") => script.header("Cache-Control", "no-store"),
            path if path.starts_with("/private") => script.header("Cache-Control", "private, max-age=60"),
            _ => script.header("Cache-Control", "max-age=60"),
        }
    });
    for (kind, field) in [("/no-store", "Cookie"), ("/private", "Cookie"), ("/auth", "Authorization")] {
        let path = stage.path_below(kind, 1);
        for (node, who) in [(0, "a=1"), (2, "b=2"), (0, "c=3"), (1, "d=4")] {
            let mut client = Client::connect(stage.node(node).http).await;
            let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{field}: {who}\r\n\r\n")).await;
            assert_eq!(answer.text(), who, "{path}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn a_head_is_answered_from_what_the_owner_holds() {
    let stage = Stage::new(|_| fresh("12345"));
    let path = stage.path_of(1);
    assert_eq!(stage.get(1, &path).await.text(), "12345");
    let mut client = Client::connect(stage.node(0).http).await;
    let answer = client.ask(format!("HEAD {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("5")), "{}", answer.head);
    assert_eq!(stage.origin.total(), 1);
}

#[tokio::test]
async fn an_upstream_that_fails_the_owner_is_not_asked_again_by_all_who_wait() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::new(move |_| Script::reset().after(&held));
    let path = stage.path_of(1);
    let mut clients = Vec::new();
    for number in 0..60 {
        let mut client = Client::connect(stage.node(number % NODES).http).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        clients.push(client);
    }
    until_waiting(&stage.fleet, 60 - NODES + (NODES - 1)).await;
    gate.open();
    for mut client in clients {
        assert_eq!(client.answer(false).await.expect("an answer").status, 502);
    }
    assert!(stage.origin.total() <= 6, "{} origin requests", stage.origin.total());
}

#[tokio::test]
async fn an_owner_that_is_stopped_is_bypassed_until_it_answers_again() {
    let impatient = CONFIG.replace("connect_timeout = '1m'\nkeep_alive = '1m'", "connect_timeout = '500ms'\nkeep_alive = '1s'");
    let stage = Stage::with_config(&impatient, |request| fresh(request.path.clone()));
    let (path, mut number) = (stage.path_of(1), 0);
    let mut next = || {
        number += 1;
        format!("{path}?{number}")
    };
    stage.node(1).pause();
    let ejected = || stage.node(0).metric("tiercel_shield_peers", &["state=\"ejected\""]);
    let deadline = Instant::now() + PATIENCE;
    while ejected() != Some(1.0) {
        let path = next();
        assert_eq!(stage.get(0, &path).await.status, 200, "a peer that fails is no failure of a request");
        assert!(Instant::now() < deadline, "it is never given up");
    }
    let asked = Instant::now();
    for _ in 0..20 {
        let path = next();
        assert_eq!(stage.get(0, &path).await.status, 200);
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for what is known to be sick");
    stage.node(1).resume();
    let deadline = Instant::now() + PATIENCE;
    while ejected() != Some(0.0) {
        let path = next();
        assert_eq!(stage.get(0, &path).await.status, 200);
        assert!(Instant::now() < deadline, "it is never asked again");
    }
}

#[tokio::test]
async fn in_a_fleet_a_purge_holds_on_every_node_and_costs_one_origin_request() {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let stage = Stage::with_journal(move |_| fresh(served.load(Ordering::SeqCst).to_string()).header("Surrogate-Key", "shoes"));
    for round in 0..12 {
        let path = stage.path_below(&format!("/purged/{round}"), round % NODES);
        let (before, old) = (stage.origin.total(), version.load(Ordering::SeqCst).to_string());
        for node in 0..NODES {
            assert_eq!(stage.get(node, &path).await.text(), old, "round {round}, node {node}");
        }
        assert_eq!(stage.origin.total(), before + 1, "the owner's stamp is taken: round {round}");
        let new = (version.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let selector = if round % 2 == 0 { json!({"urls": [format!("http://{HOST}{path}")]}) } else { json!({"tags": ["shoes"]}) };
        let mut body = selector;
        body["wait"] = json!("fleet");
        body["timeout"] = json!("10s");
        let (status, receipt) = stage.node((round + 1) % NODES).admin("POST", "/v1/purge", &body.to_string()).expect("it answers");
        assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
        for node in 0..NODES {
            assert_eq!(stage.get(node, &path).await.text(), new, "round {round}, node {node}");
        }
        assert_eq!(stage.origin.total(), before + 2, "round {round}");
    }
    assert_eq!(stage.sum("tiercel_shield_requests_total", &["outcome=\"rejected\""]), 0.0);
    assert_eq!(stage.sum("tiercel_shield_requests_total", &["outcome=\"plain\""]), 0.0);
}

#[tokio::test]
async fn in_a_fleet_who_purged_has_the_new_response_at_once_also_from_an_owner_that_knows_of_it_later() {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let stage = Stage::with_journal(move |_| fresh(served.load(Ordering::SeqCst).to_string()));
    let path = stage.path_of(1);
    for round in 0..60 {
        let (asker, old) = ([0, 2][round % 2], version.load(Ordering::SeqCst).to_string());
        assert_eq!(stage.get(asker, &path).await.text(), old, "round {round}");
        let new = (version.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let body = json!({"urls": [format!("http://{HOST}{path}")]}).to_string();
        let (status, receipt) = stage.node(asker).admin("POST", "/v1/purge", &body).expect("it answers");
        assert_eq!(status, 200, "{receipt}");
        assert_eq!(stage.get(asker, &path).await.text(), new, "round {round}: {receipt}");
        // The others have it a moment later: so that the next round begins alike.
        for node in 0..NODES {
            let deadline = Instant::now() + PATIENCE;
            while stage.get(node, &path).await.text() != new {
                assert!(Instant::now() < deadline, "round {round}: node {node} never hears of the purge");
            }
        }
    }
}

#[tokio::test]
async fn a_node_that_is_cut_off_from_the_journal_asks_no_other() {
    let stage = Stage::with_journal(|request| fresh(request.path.clone()));
    let before = stage.path_below("/before", 1);
    assert_eq!(stage.get(0, &before).await.text(), before);
    let asked = |node: usize| stage.node(node).metric("tiercel_shield_requests_total", &["outcome=\"answered\""]).expect("it runs");
    assert_eq!(asked(0), 1.0);
    stage.redis.as_ref().expect("a journal").pause();
    eventually("the journal is not trusted any more", || stage.sum("tiercel_journal_trusted", &[]) == 0.0).await;
    let after = stage.path_below("/after", 1);
    assert_eq!(stage.get(0, &after).await.text(), after);
    assert_eq!(asked(0), 1.0, "it went to the origin itself");
    stage.redis.as_ref().expect("a journal").resume();
}

/// A node that only asks.
fn edge(stage: &Stage, peers: &str, folder: &std::path::Path) -> Tiercel {
    Tiercel::with_config(&edge_config(stage, peers), folder)
}

fn edge_config(stage: &Stage, peers: &str) -> String {
    let origin = stage.origin.url();
    format!(
        "[upstreams.default]\nendpoints = ['{origin}']\n[shield]\npeers = [{peers}]\nsecret = '{SECRET}'\n[log.access]\ntarget = 'off'\n"
    )
}

/// How many nodes a request for a new path passed.
async fn passed(stage: &Stage, node: SocketAddr, number: &mut u32) -> usize {
    *number += 1;
    let path = format!("/new/{number}");
    let mut client = Client::connect(node).await;
    assert_eq!(client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await.text(), path);
    let asked = stage.origin.requests(&path);
    assert_eq!(asked.len(), 1, "{path}");
    asked[0].field("cdn-loop").expect("CDN-Loop").split(", ").count()
}

async fn until_passed(stage: &Stage, node: SocketAddr, nodes: usize, number: &mut u32) {
    let deadline = Instant::now() + PATIENCE;
    while passed(stage, node, number).await != nodes {
        assert!(Instant::now() < deadline, "requests never pass {nodes} nodes");
    }
}

#[tokio::test]
async fn peers_are_found_by_name_and_a_reload_takes_the_shield_out_and_in() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let (folder, mut number) = (tempfile::tempdir().unwrap(), 0);
    let name = format!("'dns:{}'", stage.node(0).peer);
    let edge = edge(&stage, &name, folder.path());
    until_passed(&stage, edge.http, 2, &mut number).await;
    let file = folder.path().join("tiercel.toml");
    std::fs::write(&file, edge_config(&stage, "")).unwrap();
    edge.signal(1);
    until_passed(&stage, edge.http, 1, &mut number).await;
    std::fs::write(&file, edge_config(&stage, &format!("'http://{}'", stage.node(1).peer))).unwrap();
    edge.signal(1);
    until_passed(&stage, edge.http, 2, &mut number).await;
}

#[tokio::test]
async fn a_name_that_is_not_resolved_takes_nobody_out() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let (folder, mut number) = (tempfile::tempdir().unwrap(), 0);
    let names = format!("'dns:nowhere.invalid:9182', 'dns:{}'", stage.node(0).peer);
    let edge = edge(&stage, &names, folder.path());
    until_passed(&stage, edge.http, 2, &mut number).await;
}

#[tokio::test]
async fn an_owner_that_is_configured_otherwise_shapes_nothing_that_is_stored() {
    let past_the_cache = CONFIG.replace("[cache]\n", "[cache]\nenabled = false\n");
    let stage = Stage::with_config(&past_the_cache, |request| {
        let said = ["x-original-url", "x_forwarded_host", "accept-language"].map(|name| request.field(name));
        fresh(format!("{} {said:?}", request.target))
    });
    let folder = tempfile::tempdir().unwrap();
    let config = edge_config(&stage, &format!("'http://{}'", stage.node(0).peer));
    let edge =
        Tiercel::with_config(&format!("{config}[cache]\nkey.query_ignore = ['utm_*']\nvary.languages = ['de', 'en']\n"), folder.path());
    let mut client = Client::connect(edge.http).await;
    let lines = "X-Original-URL: /evil\r\nX_Forwarded_Host: evil.example\r\nAccept-Language: xx, de-AT\r\n";
    let poisoned = client.ask(format!("GET /a?utm_source=evil&b=1 HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n")).await;
    assert!(poisoned.all("cache-status").contains("detail=SHIELD"), "{}", poisoned.head);
    let expected = r#"/a?b=1 [None, None, Some("de")]"#;
    assert_eq!(poisoned.text(), expected);
    let other = client.ask(format!("GET /a?b=1 HTTP/1.1\r\nHost: {HOST}\r\nAccept-Language: de\r\n\r\n")).await;
    assert!(other.all("cache-status").contains("tiercel; hit") && other.text() == expected, "{}", other.head);
}

/// Speaks HTTP/2 and refuses everything, as a connection does that does not let a request through to a node.
async fn refuses_everything() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let refuse = hyper::service::service_fn(async |_| {
                let answer = http::Response::builder().status(431).header("cache-control", "max-age=600");
                Ok::<_, std::convert::Infallible>(answer.body(Empty::<Bytes>::new()).unwrap())
            });
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), refuse));
        }
    });
    address
}

#[tokio::test]
async fn what_the_connection_of_an_owner_refuses_is_no_answer_of_the_origin() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let folder = tempfile::tempdir().unwrap();
    let edge = edge(&stage, &format!("'http://{}'", refuses_everything().await), folder.path());
    assert_eq!(passed(&stage, edge.http, &mut 0).await, 1, "the origin answered, asked by this node");
}

#[tokio::test]
async fn a_head_that_a_client_may_send_reaches_the_origin_through_an_owner() {
    let stage = Stage::new(|request| fresh(request.fields.len().to_string()));
    let path = stage.path_of(1);
    // 128 lines are allowed, and 32 KiB.
    let lines: String = (0..126).map(|number| format!("X-{number}: {}\r\n", "v".repeat(220))).collect();
    let mut client = Client::connect(stage.node(0).http).await;
    let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n")).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    let asked = &stage.origin.requests(&path)[0];
    assert_eq!(asked.field("cdn-loop"), Some("tiercel, tiercel"), "it passed two nodes");
    assert_eq!(asked.field("x-125").map(str::len), Some(220));
}

// ---- the door of a node ----

async fn knock(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn now_ms() -> i64 {
    tiercel::clock::now().wall_ms
}

/// A hop that is right, to be made wrong.
fn hop(number: u64) -> Hop {
    Hop { at_ms: now_ms(), sender: 0x7e57, number, policy: 1, standing: Standing::default(), wanted: Wanted::Response }
}

fn signed(hop: &Hop, secret: &str, path: &str) -> String {
    hop.write(&Key::new(secret.as_bytes()), &Asked { method: "GET", scheme: "http", authority: HOST, target: path })
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, path: &str, fields: &[(&str, &str)]) -> (u16, Option<String>, Bytes) {
    let mut request = http::Request::get(format!("http://{HOST}{path}")).body(Empty::new()).unwrap();
    for (name, value) in fields {
        request.headers_mut().append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    let answer = sender.send_request(request).await.expect("an answer");
    let error = answer.headers().get("tiercel-error").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), error, answer.into_body().collect().await.expect("a body").to_bytes())
}

#[tokio::test]
async fn only_nodes_of_the_fleet_are_let_in_and_each_hop_once() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let mut door = knock(stage.node(0).peer).await;
    let good = signed(&hop(1), SECRET, "/a");
    let (status, error, body) = ask(&mut door, "/a", &[("tiercel-hop", &good)]).await;
    assert_eq!((status, error, &body[..]), (200, None, &b"/a"[..]));
    let forged = signed(&hop(2), "another secret of theirs", "/a");
    let elsewhere = signed(&hop(3), SECRET, "/b");
    let old = signed(&Hop { at_ms: now_ms() - 31_000, ..hop(4) }, SECRET, "/a");
    let early = signed(&Hop { at_ms: now_ms() + 31_000, ..hop(5) }, SECRET, "/a");
    for (field, reason) in [
        (None, "hop-missing"),
        (Some(good.as_str()), "hop-replayed"),
        (Some(forged.as_str()), "hop-forged"),
        (Some(elsewhere.as_str()), "hop-forged"),
        (Some(old.as_str()), "hop-stale"),
        (Some(early.as_str()), "hop-stale"),
        (Some("1 2 3"), "hop-malformed"),
    ] {
        let fields: Vec<_> = field.map(|field| ("tiercel-hop", field)).into_iter().collect();
        let (status, error, _) = ask(&mut door, "/a", &fields).await;
        assert_eq!((status, error.as_deref()), (403, Some(reason)));
    }
    assert_eq!(stage.origin.total(), 1, "what is refused goes nowhere");
    assert_eq!(stage.node(0).metric("tiercel_shield_requests_total", &["outcome=\"refused\""]), Some(7.0));
    // The client listener takes no notice of the field, and the origin never sees it.
    let mut client = Client::connect(stage.node(0).http).await;
    let field = signed(&hop(9), SECRET, "/c");
    assert_eq!(client.ask(format!("GET /c HTTP/1.1\r\nHost: {HOST}\r\nTiercel-Hop: {field}\r\n\r\n")).await.status, 200);
    assert_eq!(stage.origin.requests("/c")[0].field("tiercel-hop"), None);
}

#[tokio::test]
async fn a_request_that_came_around_is_refused_also_between_nodes() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let mut door = knock(stage.node(0).peer).await;
    for (number, (passed, status)) in
        [("tiercel", 200), ("other, tiercel", 200), ("tiercel, tiercel", 508), ("tiercel, other", 508)].into_iter().enumerate()
    {
        let path = format!("/{number}");
        let field = signed(&hop(number as u64 + 1), SECRET, &path);
        assert_eq!(ask(&mut door, &path, &[("tiercel-hop", &field), ("cdn-loop", passed)]).await.0, status, "{passed}");
    }
}

#[tokio::test]
async fn abuse_of_the_door_harms_nobody() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let path = stage.path_of(1);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    let mut resets = preface.clone();
    for stream in (1..20_000_u32).step_by(2) {
        resets.extend([0, 0, 6, 1, 5]);
        resets.extend(stream.to_be_bytes());
        resets.extend([0x82, 0x86, 0x84, 0x41, 1, b'a']);
        resets.extend([0, 0, 4, 3, 0]);
        resets.extend(stream.to_be_bytes());
        resets.extend(8_u32.to_be_bytes());
    }
    for bytes in [vec![0xa5; 100_000], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), resets] {
        let mut stream = TcpStream::connect(stage.node(1).peer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut heard = Vec::new();
        let sending = async {
            _ = write.write_all(&bytes).await; // it may be closed before
        };
        let both = async { tokio::join!(sending, read.read_to_end(&mut heard)) };
        _ = tokio::time::timeout(PATIENCE, both).await.expect("the connection is closed");
        assert_eq!(stage.get(0, &path).await.text(), path);
        assert_eq!(stage.get(1, &path).await.text(), path);
    }
    assert_eq!(stage.origin.total(), 1);
}
