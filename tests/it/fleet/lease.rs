//! Three nodes and one Redis, without a shield: one of them fetches, the others have it from Redis.

use super::crowd::{CROWD, HOST, body_of, everybody_gets_its_variant, fresh, gather, its_variant, room_for_a_crowd, until_waiting};
use crate::support::client::{Answer, Client};
use crate::support::fleet::{Fleet, Node, Plan};
use crate::support::link::Trouble;
use crate::support::origin::{Gate, Origin, PATIENCE, Recorded, Script, Step, eventually};
use crate::support::redis::{Redis, Servers};
use rand::RngExt;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const NODES: usize = 3;

/// Nobody's patience ends before the crowd is there, and a busy machine keeps the budget, and renews leases in time.
const CONFIG: &str = "
[server]
name = '@NODE@'
workers = 2
[upstreams.default]
endpoints = ['@ORIGIN@']
first_byte_timeout = '5m'
[limits]
connections = 8000
[journal]
node = '@NODE@'
trust = '1s'
[lease]
wait = '@WAIT@'
ttl = '5s'
[cache.redis]
url = 'redis://@REDIS@'
lookup_budget = '5s'
";

/// Beside it, for nodes that ask each other.
const SHIELD: &str = "[shield]\nlisten = '@PEER@'\npeers = [@PEERS@]\nsecret = '0123456789abcdef0123456789abcdef'\n\
    first_byte_timeout = '6m'\nconnect_timeout = '1m'\nkeep_alive = '1m'\n";

struct Stage<R = Redis> {
    origin: Origin,
    fleet: Fleet,
    redis: R,
}

impl Stage {
    fn new(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::with("2m", "", respond)
    }

    /// `more` is of `[cache.redis]`.
    fn with(wait: &str, more: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        let redis = Redis::start();
        let server = Some(redis.address());
        Stage::on(redis, server, format!("{}{more}\n", CONFIG.replace("@WAIT@", wait)), respond)
    }
}

impl Stage<Servers> {
    fn on_several(servers: Servers, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::on_several_with(servers, "", respond)
    }

    /// `more` is of `[cache.redis]`.
    fn on_several_with(servers: Servers, more: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        let config = CONFIG.replace("@WAIT@", "2m").replace("url = 'redis://@REDIS@'", &servers.config());
        Self::on(servers, None, format!("{config}{more}"), respond)
    }
}

impl<R> Stage<R> {
    /// All nodes are trusted.
    fn on(redis: R, server: Option<SocketAddr>, config: String, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        let origin = Origin::start(respond);
        let plan = Plan { nodes: NODES, config, origin: origin.url(), redis: server, ..Plan::default() };
        let stage = Self { fleet: Fleet::start(&plan), origin, redis };
        until_trusted(&stage.fleet);
        stage
    }

    fn node(&self, number: usize) -> &Node {
        &self.fleet.nodes[number]
    }

    async fn get(&self, node: usize, path: &str) -> Answer {
        self.node(node).get(HOST, path).await
    }

    fn asked(&self, result: &str) -> usize {
        self.fleet.sum("tiercel_lease_asked_total", &[&format!("result=\"{result}\"")]) as usize
    }

    fn ended(&self, outcome: &str) -> usize {
        self.fleet.sum("tiercel_lease_ended_total", &[&format!("outcome=\"{outcome}\"")]) as usize
    }

    async fn until_lease_waiters(&self, count: usize) {
        eventually("nodes wait for another's fetch", || self.fleet.sum("tiercel_lease_waiting", &[]) as usize == count).await;
    }

    /// The node that fetches for the fleet, once one does.
    async fn leader(&self) -> usize {
        let leads = |node: &Node| node.metric("tiercel_lease_asked_total", &["result=\"led\""]) >= Some(1.0);
        eventually("a node leads", || self.fleet.nodes.iter().any(leads)).await;
        self.fleet.nodes.iter().position(leads).expect("one of them")
    }

    fn explain(&self, node: usize, path: &str) -> Value {
        let asked = json!({"url": format!("http://{HOST}{path}")}).to_string();
        let (status, explained) = self.node(node).admin("POST", "/v1/explain", &asked).expect("it answers");
        assert_eq!(status, 200, "{explained}");
        explained
    }

    fn purge(&self, node: usize, path: &str, mode: &str) {
        let body = json!({"urls": [format!("http://{HOST}{path}")], "mode": mode, "wait": "fleet", "timeout": "10s"});
        let (status, receipt) = self.node(node).admin("POST", "/v1/purge", &body.to_string()).expect("it answers");
        assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    }
}

fn until_trusted(fleet: &Fleet) {
    let deadline = Instant::now() + PATIENCE;
    while fleet.sum("tiercel_journal_trusted", &[]) < fleet.nodes.len() as f64 {
        assert!(Instant::now() < deadline, "the journal is never trusted");
        std::thread::sleep(Duration::from_millis(5)); // nobody announces it
    }
}

/// A request that is on its way.
async fn send(node: &Node, path: &str) -> Client {
    let mut client = Client::connect(node.http).await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    client
}

async fn answer(client: &mut Client) -> Answer {
    client.answer(false).await.expect("an answer")
}

/// Requests that the origin got, in order: each is held by the gate of its number, the later ones by the last.
fn in_turn<R>(gates: Vec<Gate>, respond: R) -> impl Fn(&Recorded) -> Script + Send + Sync + use<R>
where
    R: Fn(usize, &Recorded) -> Script + Send + Sync + 'static,
{
    let came = AtomicUsize::new(0);
    move |request| {
        let number = came.fetch_add(1, SeqCst);
        let script = respond(number, request);
        match gates.get(number.min(gates.len().saturating_sub(1))) {
            Some(gate) => script.after(gate),
            None => script,
        }
    }
}

/// What is asked for with a variant is held up until the gate opens.
fn holding_variants() -> (Gate, impl Fn(&Recorded) -> Script + Send + Sync + 'static) {
    let gate = Gate::new();
    let held = gate.clone();
    let respond = move |request: &Recorded| {
        let script = its_variant(request);
        if request.field("x-variant").is_none() { script } else { script.after(&held) }
    };
    (gate, respond)
}

/// Every variant is held up until the gate opens: nobody knows of Vary before.
fn holding_all_variants() -> (Gate, impl Fn(&Recorded) -> Script + Send + Sync + 'static) {
    let gate = Gate::new();
    (gate.clone(), in_turn(vec![gate], |_, request| its_variant(request)))
}

/// Everything is held up until the gate opens.
fn holding() -> (Gate, impl Fn(&Recorded) -> Script + Send + Sync + 'static) {
    let gate = Gate::new();
    (gate.clone(), in_turn(vec![gate], |_, _| fresh(body_of("0"))))
}

async fn a_crowd_is_one_origin_request<R>(stage: Stage<R>, gate: Gate) {
    let crowd = gather(&stage.fleet, "/cold", 1).await;
    until_waiting(&stage.fleet, CROWD - NODES).await;
    stage.until_lease_waiters(NODES - 1).await;
    assert_eq!(stage.explain(0, "/cold")["redis"]["lease"], "held: a node fetches, and others wait");
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert_eq!(stage.origin.total(), 1);
    assert_eq!((stage.asked("led"), stage.asked("given"), stage.ended("stored")), (1, NODES - 1, 1));
    assert_eq!(stage.fleet.sum("tiercel_lease_waiting", &[]), 0.0);
}

async fn a_crowd_for_four_variants_of_a_known_vary_is_four<R>(stage: Stage<R>, gate: Gate) {
    for node in 0..NODES {
        assert_eq!(stage.get(node, "/cold").await.body, body_of("none"));
    }
    assert_eq!(stage.origin.total(), 1, "the others have it from Redis");
    let crowd = gather(&stage.fleet, "/cold", 4).await;
    until_waiting(&stage.fleet, CROWD - 4 * NODES).await;
    stage.until_lease_waiters(4 * (NODES - 1)).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert_eq!(stage.origin.total(), 1 + 4);
}

async fn a_crowd_for_four_variants_of_an_unknown_vary_is_at_most_five<R>(stage: Stage<R>, gate: Gate) {
    let crowd = gather(&stage.fleet, "/cold", 4).await;
    until_waiting(&stage.fleet, CROWD - NODES).await;
    stage.until_lease_waiters(NODES - 1).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert!((4..=5).contains(&stage.origin.total()), "{} origin requests", stage.origin.total());
}

async fn a_crowd_whose_leader_is_killed_is_at_most_two<R>(mut stage: Stage<R>, gate: Gate) {
    let kill_at = rand::rng().random_range(1..CROWD);
    let (mut crowd, mut killed) = (Vec::with_capacity(CROWD), None);
    for number in 0..CROWD {
        if number == kill_at {
            let leader = stage.leader().await;
            stage.fleet.nodes[leader].kill();
            killed = Some(leader);
        }
        let node = number % NODES;
        if killed != Some(node) {
            crowd.push((node, 0, send(stage.node(node), "/cold").await));
        }
    }
    // Its own clients are lost with it.
    crowd.retain(|(node, ..)| killed != Some(*node));
    until_waiting(&stage.fleet, crowd.len() - (NODES - 1)).await;
    stage.until_lease_waiters(1).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert!(stage.origin.total() <= 2, "killed at {kill_at}: {} origin requests", stage.origin.total());
}

async fn a_crowd_before_a_shield_is_one_origin_request<R>(stage: Stage<R>, gate: Gate) {
    let crowd = gather(&stage.fleet, "/cold", 1).await;
    // One leads on each node; those of the others follow on the owner, too.
    until_waiting(&stage.fleet, CROWD - NODES + (NODES - 1)).await;
    gate.open();
    everybody_gets_its_variant(crowd).await;
    assert_eq!(stage.origin.total(), 1);
    assert_eq!((stage.asked("led"), stage.fleet.sum("tiercel_lease_asked_total", &[])), (1, 1.0), "the owner alone asks for the lease");
    assert_eq!(stage.fleet.sum("tiercel_shield_requests_total", &["outcome=\"answered\""]), (NODES - 1) as f64);
}

#[tokio::test]
async fn three_thousand_requests_spread_over_three_nodes_are_one_origin_request() {
    let _guard = room_for_a_crowd().await;
    let (gate, respond) = holding();
    a_crowd_is_one_origin_request(Stage::new(respond), gate).await;
}

#[tokio::test]
async fn four_variants_of_a_known_vary_are_four_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let (gate, respond) = holding_variants();
    a_crowd_for_four_variants_of_a_known_vary_is_four(Stage::new(respond), gate).await;
}

#[tokio::test]
async fn so_they_are_where_redis_is_a_cluster_or_is_watched_by_sentinels() {
    let _guard = room_for_a_crowd().await;
    for start in Servers::EVERY_KIND {
        let (gate, respond) = holding();
        a_crowd_is_one_origin_request(Stage::on_several(start(), respond), gate).await;
        let (gate, respond) = holding_variants();
        a_crowd_for_four_variants_of_a_known_vary_is_four(Stage::on_several(start(), respond), gate).await;
        let (gate, respond) = holding_all_variants();
        a_crowd_for_four_variants_of_an_unknown_vary_is_at_most_five(Stage::on_several(start(), respond), gate).await;
        let (gate, respond) = holding();
        a_crowd_whose_leader_is_killed_is_at_most_two(Stage::on_several(start(), respond), gate).await;
        let (gate, respond) = holding();
        a_crowd_before_a_shield_is_one_origin_request(Stage::on_several_with(start(), SHIELD, respond), gate).await;
    }
}

#[tokio::test]
async fn four_variants_of_an_unknown_vary_are_at_most_five_origin_requests() {
    let _guard = room_for_a_crowd().await;
    let (gate, respond) = holding_all_variants();
    a_crowd_for_four_variants_of_an_unknown_vary_is_at_most_five(Stage::new(respond), gate).await;
}

#[tokio::test]
async fn a_leader_killed_while_all_wait_costs_one_more_origin_request() {
    let _guard = room_for_a_crowd().await;
    let (gate, respond) = holding();
    a_crowd_whose_leader_is_killed_is_at_most_two(Stage::new(respond), gate).await;
}

#[tokio::test]
async fn a_leader_killed_while_it_answers_costs_at_most_one_more_origin_request() {
    let _guard = room_for_a_crowd().await;
    // Two parts in Redis, and not more bytes than a build for tests sends two thousand clients in seconds.
    let body: Vec<u8> = (0..300_000_u32).map(|at| (at / 7) as u8).collect();
    for _ in 0..2 {
        let gate = Gate::new();
        let whole = body.clone();
        let mut stage = Stage::new(in_turn(vec![gate.clone()], move |_, _| fresh(whole.clone())));
        let crowd = gather(&stage.fleet, "/large", 1).await;
        until_waiting(&stage.fleet, CROWD - NODES).await;
        stage.until_lease_waiters(NODES - 1).await;
        let leader = stage.leader().await;
        gate.open();
        let moment = Duration::from_micros(rand::rng().random_range(0..60_000));
        tokio::time::sleep(moment).await; // the moment is what is tested
        stage.fleet.nodes[leader].kill();
        for (node, _, mut client) in crowd.into_iter().filter(|(node, ..)| *node != leader) {
            let answer = answer(&mut client).await;
            assert!(answer.whole && answer.body == body, "killed after {moment:?}: node {node}: {}", answer.head);
        }
        assert!(stage.origin.total() <= 2, "killed after {moment:?}: {} origin requests", stage.origin.total());
    }
}

#[tokio::test]
async fn what_cannot_be_shared_is_fetched_by_all_at_once_after_the_head() {
    const EACH: usize = 20;
    let (first, second, third) = (Gate::new(), Gate::new(), Gate::new());
    let mut gates = vec![first.clone()];
    gates.resize(1 + (EACH - 1) + (NODES - 1), second.clone());
    gates.push(third.clone());
    let before_third = gates.len() - 1;
    let stage = Stage::new(in_turn(gates, |number, _| Script::ok(number.to_string()).header("Cache-Control", "no-store")));
    let mut clients = Vec::new();
    for number in 0..EACH * NODES {
        clients.push(send(stage.node(number % NODES), "/own").await);
    }
    until_waiting(&stage.fleet, EACH * NODES - NODES).await;
    stage.until_lease_waiters(NODES - 1).await;
    first.open();
    // Those who followed the leader, and those who lead on the other nodes: all of them, while none is answered.
    stage.origin.until("they do not wait for each other", |origin| origin.total() == before_third).await;
    second.open();
    stage.origin.until("nor do those who followed them", |origin| origin.total() == EACH * NODES).await;
    third.open();
    let mut bodies = Vec::new();
    for client in &mut clients {
        bodies.push(answer(client).await.text().to_owned());
    }
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), EACH * NODES, "each has its own");
    assert_eq!((stage.asked("led"), stage.asked("alone"), stage.ended("uncacheable")), (1, NODES - 1, 1));
}

#[tokio::test]
async fn what_redis_is_not_given_each_node_fetches_once() {
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("2m", "max_object_size = '1KiB'\ncontent_types = ['text/*']", move |request| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n";
        match request.path.as_str() {
            // The rest comes when all have asked: it is told at the head.
            "/declared" => Script::raw(format!("{head}Content-Type: text/plain\r\nContent-Length: 5000\r\n\r\n"))
                .then(Step::Wait(held.clone()))
                .then(Step::Bytes(vec![b'.'; 5000])),
            "/image" => Script::raw(format!("{head}Content-Type: image/png\r\nContent-Length: 100\r\n\r\n"))
                .then(Step::Wait(held.clone()))
                .then(Step::Bytes(vec![b'.'; 100])),
            _ => Script::raw(format!(
                "{head}Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{}\r\n0\r\n\r\n",
                ".".repeat(5000)
            )),
        }
    });
    let mut clients = Vec::new();
    for path in ["/declared", "/image"] {
        for number in 0..30 {
            clients.push(send(stage.node(number % NODES), path).await);
        }
        stage.origin.until("each node asks", |origin| origin.count(path) == NODES).await;
    }
    gate.open();
    for client in &mut clients {
        let answer = answer(client).await;
        assert!(answer.status == 200 && answer.whole && [100, 5000].contains(&answer.body.len()), "{}", answer.head);
    }
    assert_eq!((stage.origin.count("/declared"), stage.origin.count("/image")), (NODES, NODES));
    assert_eq!((stage.ended("too_large"), stage.ended("not_taken"), stage.asked("alone")), (1, 1, 2 * (NODES - 1)));
    // Known at the end only: nobody waits in vain for longer than that.
    for number in 0..NODES {
        assert_eq!(stage.get(number, "/chunked").await.body.len(), 5000);
    }
    assert_eq!(stage.origin.count("/chunked"), NODES);
    eventually("it is told", || stage.ended("too_large") == 2).await;
}

#[tokio::test]
async fn a_redis_that_stops_while_nodes_wait_holds_nobody_up_for_longer_than_the_wait() {
    for pauses in [true, false] {
        let (first_gate, open) = (Gate::new(), Gate::new());
        open.open();
        let mut stage = Stage::with("2s", "", in_turn(vec![first_gate.clone(), open], |number, _| fresh(number.to_string())));
        let mut first = send(stage.node(0), "/x").await;
        stage.leader().await;
        let began = Instant::now();
        let mut second = send(stage.node(1), "/x").await;
        stage.until_lease_waiters(1).await;
        if pauses {
            stage.redis.pause();
        } else {
            stage.redis.kill();
        }
        assert_eq!(answer(&mut second).await.text(), "1", "it fetched for itself");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        first_gate.open();
        assert_eq!(answer(&mut first).await.text(), "0");
        if pauses {
            stage.redis.resume();
        }
    }
}

#[tokio::test]
async fn without_redis_each_node_fetches_once_and_at_once() {
    let gate = Gate::new();
    let mut stage = Stage::new(in_turn(vec![gate.clone()], |_, _| fresh("x")));
    eventually("they may serve while cut off", || stage.fleet.sum("tiercel_journal_remembered", &[]) == NODES as f64).await;
    stage.redis.kill();
    eventually("the journal is not trusted any more", || stage.fleet.sum("tiercel_journal_trusted", &[]) == 0.0).await;
    let mut clients = Vec::new();
    for number in 0..60 {
        clients.push(send(stage.node(number % NODES), "/x").await);
    }
    stage.origin.until("each node asks", |origin| origin.total() == NODES).await;
    until_waiting(&stage.fleet, 60 - NODES).await;
    gate.open();
    for client in &mut clients {
        assert_eq!(answer(client).await.text(), "x");
    }
    assert_eq!(stage.origin.total(), NODES);
}

#[tokio::test]
async fn a_node_that_is_cut_off_asks_for_no_lease_and_waits_for_none() {
    let (gate, open) = (Gate::new(), Gate::new());
    open.open();
    let stage = Stage::new(in_turn(vec![gate.clone(), open], |number, _| fresh(number.to_string())));
    stage.node(2).link.as_ref().expect("it has one").make(Trouble::Held);
    eventually("it is cut off", || stage.node(2).metric("tiercel_journal_trusted", &[]) == Some(0.0)).await;
    let mut first = send(stage.node(0), "/x").await;
    stage.leader().await;
    assert_eq!(stage.get(2, "/x").await.text(), "1", "for itself, while the other is at it");
    assert_eq!(stage.node(2).metric("tiercel_lease_asked_total", &[]), Some(0.0));
    gate.open();
    assert_eq!(answer(&mut first).await.text(), "0");
    stage.node(2).link.as_ref().expect("it has one").mend();
}

#[tokio::test]
async fn where_the_origin_fails_one_the_next_tries() {
    let gate = Gate::new();
    let held = gate.clone();
    let came = AtomicUsize::new(0);
    let stage = Stage::new(move |_| match came.fetch_add(1, SeqCst) {
        0 => Script::steps([Step::Wait(held.clone()), Step::Reset]),
        number => fresh(number.to_string()),
    });
    let mut first = send(stage.node(0), "/x").await;
    stage.leader().await;
    let mut others = [send(stage.node(1), "/x").await, send(stage.node(2), "/x").await];
    stage.until_lease_waiters(2).await;
    gate.open();
    assert_eq!(answer(&mut first).await.status, 502);
    for other in &mut others {
        assert_eq!(answer(other).await.text(), "1");
    }
    assert_eq!(stage.origin.total(), 2);
    assert_eq!((stage.ended("failed"), stage.ended("stored"), stage.asked("given")), (1, 1, 1));
}

#[tokio::test]
async fn a_miss_that_was_met_a_moment_ago_is_no_reason_to_fetch_what_another_node_fetches() {
    let gate = Gate::new();
    let held = gate.clone();
    let came = AtomicUsize::new(0);
    let stage = Stage::with("2m", "remember_misses = '5m'", move |_| match came.fetch_add(1, SeqCst) {
        0 => Script::reset(),
        number => fresh(number.to_string()).after(&held),
    });
    assert_eq!(stage.get(1, "/x").await.status, 502, "it looked, and there was nothing");
    let mut first = send(stage.node(0), "/x").await;
    stage.origin.until("another node is at it", |origin| origin.total() == 2).await;
    let mut second = send(stage.node(1), "/x").await;
    stage.until_lease_waiters(1).await;
    gate.open();
    for client in [&mut first, &mut second] {
        assert_eq!(answer(client).await.text(), "1");
    }
    assert_eq!(stage.origin.total(), 2);
}

/// What the origin has: each version is answered while it is the last.
fn versions(gates: Vec<Gate>) -> (Arc<AtomicUsize>, impl Fn(&Recorded) -> Script + Send + Sync + use<>) {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let respond = in_turn(gates, move |_, request| {
        let tag = format!("\"{}\"", served.load(SeqCst));
        let script =
            if request.field("if-none-match") == Some(&tag) { Script::status(304, "") } else { Script::ok(&tag[1..tag.len() - 1]) };
        script.header("ETag", &tag).header("Cache-Control", "max-age=600")
    });
    (version, respond)
}

#[tokio::test]
async fn what_was_purged_is_fetched_again_by_one_node_for_all() {
    let (version, respond) = versions(vec![]);
    let stage = Stage::new(respond);
    for round in 1..=20 {
        let path = "/purged";
        let text = version.load(SeqCst).to_string();
        let mut clients = Vec::new();
        for number in 0..12 {
            clients.push(send(stage.node(number % NODES), path).await);
        }
        for client in &mut clients {
            assert_eq!(answer(client).await.text(), text, "round {round}");
        }
        assert_eq!(stage.origin.count(path), round, "round {round}: what came of the round before is no outcome of this one");
        if round % 2 == 0 {
            version.fetch_add(1, SeqCst);
            stage.purge(round % NODES, path, "hard");
        } else {
            // Confirmed by one, for all.
            stage.purge(round % NODES, path, "soft");
        }
    }
}

#[tokio::test]
async fn who_asks_after_a_purge_is_not_given_what_was_fetched_before_it() {
    let (gate, open) = (Gate::new(), Gate::new());
    open.open();
    let (version, respond) = versions(vec![gate.clone(), open]);
    let stage = Stage::new(respond);
    let mut before = send(stage.node(0), "/x").await;
    stage.origin.until("the first version is on its way", |origin| origin.total() == 1).await;
    version.store(2, SeqCst);
    stage.purge(1, "/x", "hard");
    let mut after = [send(stage.node(1), "/x").await, send(stage.node(2), "/x").await];
    stage.until_lease_waiters(2).await;
    gate.open();
    assert_eq!(answer(&mut before).await.text(), "1", "it asked before the purge");
    for client in &mut after {
        assert_eq!(answer(client).await.text(), "2");
    }
    assert_eq!(stage.origin.total(), 2, "one of them fetched, for both");
}

/// In a Cluster on all of its masters; with Sentinels also on the replica that became the master.
#[tokio::test]
async fn leases_are_given_by_all_masters_there_are() {
    for start in Servers::EVERY_KIND {
        let mut stage = Stage::on_several(start(), |request| fresh(request.path.clone()));
        until_each_node_leads(&stage, "before").await;
        ten_paths_are_fetched_once_each(&stage, "first").await;
        if stage.redis.mode() == "sentinel" {
            stage.redis.all[0].kill();
            stage.redis.until_master(1);
            for node in &stage.fleet.nodes {
                let seen = || node.metric("tiercel_journal_events_total", &["server_changed"]) >= Some(1.0);
                eventually("the other server is seen", seen).await;
            }
            until_trusted(&stage.fleet);
            until_each_node_leads(&stage, "between").await;
            ten_paths_are_fetched_once_each(&stage, "after").await;
        }
    }
}

/// A node that is not connected yet, or not again, fetches for itself.
async fn until_each_node_leads<R>(stage: &Stage<R>, folder: &str) {
    for (number, node) in stage.fleet.nodes.iter().enumerate() {
        let led = || node.metric("tiercel_lease_asked_total", &["result=\"led\""]).expect("it runs");
        let (deadline, before) = (Instant::now() + PATIENCE, led());
        for attempt in 0.. {
            let path = format!("/{folder}/{number}/{attempt}");
            assert_eq!(stage.get(number, &path).await.text(), path);
            if led() > before && stage.get((number + 1) % NODES, &path).await.says("hit") {
                break;
            }
            assert!(Instant::now() < deadline, "it is given no lease:\n{}", node.log());
        }
    }
}

async fn ten_paths_are_fetched_once_each<R>(stage: &Stage<R>, folder: &str) {
    let mut clients = Vec::new();
    for number in 0..120 {
        let path = format!("/{folder}/{}", number / 12);
        clients.push((send(stage.node(number % NODES), &path).await, path));
    }
    for (client, path) in &mut clients {
        assert_eq!(answer(client).await.text(), path);
    }
    for path in (0..10).map(|number| format!("/{folder}/{number}")) {
        assert_eq!(stage.origin.count(&path), 1, "{path}");
    }
}

#[tokio::test]
async fn who_was_given_what_another_node_fetched_is_told_so() {
    let gate = Gate::new();
    let stage = Stage::new(in_turn(vec![gate.clone()], |_, _| fresh("x")));
    let mut first = send(stage.node(0), "/x").await;
    stage.leader().await;
    let mut others = [send(stage.node(1), "/x").await, send(stage.node(1), "/x").await];
    stage.until_lease_waiters(1).await;
    gate.open();
    assert!(answer(&mut first).await.says("fwd=uri-miss"));
    for other in &mut others {
        let answer = answer(other).await;
        assert!(answer.says("hit") && answer.says("detail=LEASE"), "{}", answer.head);
    }
    let found = stage.get(2, "/x").await;
    assert!(found.says("hit") && found.says("detail=REDIS"), "it was there when it asked: {}", found.head);
}

#[tokio::test]
async fn explain_says_what_redis_holds_and_what_a_look_up_would_give() {
    let stage = Stage::new(|request| match request.path.as_str() {
        "/vary" => fresh("x").header("Vary", "X-Variant"),
        _ => fresh("x"),
    });
    assert_eq!(stage.explain(0, "/x")["redis"], json!({"lookup": "miss: nothing is there", "stored": null, "lease": null}));
    for path in ["/x", "/vary"] {
        let mut client = Client::connect(stage.node(0).http).await;
        assert_eq!(client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Variant: 1\r\n\r\n")).await.status, 200);
    }
    eventually("both are in Redis", || stage.ended("stored") == 2).await;
    let there = stage.explain(1, "/x");
    assert_eq!(there["stored"], Value::Null, "not in its memory");
    assert_eq!(there["redis"]["lookup"], "hit: the stored response is fresh");
    assert_eq!(there["redis"]["lease"], "stored");
    assert_eq!((&there["redis"]["stored"]["bytes"], &there["redis"]["stored"]["status"]), (&json!(1), &json!(200)));
    assert!(there["redis"]["stored"]["dropped_in_seconds"].as_u64() > Some(500), "{there}");
    let other = &stage.explain(1, "/vary")["redis"];
    assert_eq!(other["lookup"], "miss: other variants are there, none that this request selects");
    assert_eq!(stage.origin.total(), 2, "asking changes nothing");
    assert!(stage.explain(1, "/x")["stored"].is_null(), "nor does it promote");
    stage.purge(2, "/x", "hard");
    let purged = &stage.explain(1, "/x")["redis"];
    assert_eq!(purged["lookup"], "fetch: what is stored was purged");
    assert_eq!(purged["stored"]["matching_purge"]["kind"], "url", "{purged}");
    stage.redis.pause();
    let away = stage.explain(1, "/x")["redis"]["lookup"].as_str().expect("a text").to_owned();
    assert!(away.starts_with("none: Redis does not answer"), "{away}");
    stage.redis.resume();
}

#[tokio::test]
async fn where_no_owner_is_fit_the_fleet_still_fetches_once() {
    let nowhere = [crate::support::address::free(), crate::support::address::free()].map(|peer| format!("'http://{peer}'")).join(", ");
    let more = format!(
        "[shield]\npeers = [{nowhere}]\nsecret = '0123456789abcdef0123456789abcdef'\nfailures = 1\nback_off = '5m'\nback_off_max = '5m'\n"
    );
    let gate = Gate::new();
    let held = gate.clone();
    let stage = Stage::with("2m", &more, move |request| {
        let script = fresh(request.path.clone());
        if request.path == "/once" { script.after(&held) } else { script }
    });
    for node in 0..NODES {
        for number in 0.. {
            if stage.node(node).metric("tiercel_shield_peers", &["state=\"ejected\""]) == Some(2.0) {
                break;
            }
            assert!(number < 100, "owners that are not there are never ejected");
            stage.get(node, &format!("/warm/{node}/{number}")).await;
        }
    }
    let mut clients = Vec::new();
    for node in &stage.fleet.nodes {
        let mut client = Client::connect(node.http).await;
        client.send(format!("GET /once HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        clients.push(client);
    }
    stage.until_lease_waiters(NODES - 1).await;
    gate.open();
    for mut client in clients {
        assert_eq!(client.answer(false).await.expect("an answer").text(), "/once");
    }
    assert_eq!(stage.origin.count("/once"), 1);
}

#[tokio::test]
async fn with_a_shield_the_owner_has_the_lease_and_writes_to_redis() {
    let stage = Stage::with("2m", SHIELD, |request| fresh(request.path.clone()));
    for number in 0..30 {
        let path = format!("/{number}");
        assert_eq!(stage.get(number % NODES, &path).await.text(), path);
    }
    let own = |node: &Node, name: &str, label: &str| node.metric(name, &[label]).expect("it runs") as usize;
    eventually("all are told", || stage.ended("stored") == 30).await;
    for node in &stage.fleet.nodes {
        let led = own(node, "tiercel_lease_asked_total", "result=\"led\"");
        assert_eq!(own(node, "tiercel_tier_writes_total", "outcome=\"stored\""), led, "{}: what it fetched, and nothing else", node.name);
        assert_eq!(own(node, "tiercel_lease_asked_total", ""), led, "{}", node.name);
    }
    assert!(stage.fleet.sum("tiercel_shield_requests_total", &["outcome=\"answered\""]) > 0.0);
    assert_eq!(stage.origin.total(), 30);
}
