//! The fleet's journal in one Redis: what a purge on one node means on the others, whatever happens to Redis, to the links
//! to it and to the nodes.

mod flood;

use crate::support::client::Client;
use crate::support::fleet::{Fleet, Node, Plan};
use crate::support::link::Trouble;
use crate::support::origin::{Gate, Origin, PATIENCE, Script};
use crate::support::redis::{Cluster, Redis, Reply, Restart, Sentinels, Servers};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const HOST: &str = "shop.test";
const PATH: &str = "/article";

/// Nodes, their Redis, and an origin whose content has a version.
struct Stage<R = Redis> {
    fleet: Fleet,
    redis: R,
    origin: Origin,
    version: Arc<AtomicU64>,
}

impl Stage {
    /// Each node has a link of its own to one server.
    fn new(nodes: usize, journal: &str) -> Self {
        let redis = Redis::start();
        let server = Some(redis.address());
        Stage::on(redis, server, nodes, &format!("{journal}\nredis.url = 'redis://@REDIS@'"))
    }
}

impl<R> Stage<R> {
    fn on(redis: R, server: Option<SocketAddr>, nodes: usize, journal: &str) -> Self {
        let version = Arc::new(AtomicU64::new(1));
        let now = Arc::clone(&version);
        let origin = Origin::start(move |request| {
            if request.method == "POST" {
                return Script::status(204, "");
            }
            Script::ok(now.load(Ordering::SeqCst).to_string()).header("cache-control", "max-age=3600").header("surrogate-key", "red")
        });
        let plan = Plan {
            nodes,
            config: format!(
                "[server]\nname = '@NODE@'\nworkers = 1\n[upstreams.default]\nendpoints = ['@ORIGIN@']\n\
                 [journal]\nnode = '@NODE@'\ntrust = '1s'\n{journal}\n"
            ),
            origin: origin.url(),
            redis: server,
            ..Plan::default()
        };
        let stage = Self { fleet: Fleet::start(&plan), redis, origin, version };
        stage.until_trusted();
        stage
    }

    fn node(&self, number: usize) -> &Node {
        &self.fleet.nodes[number]
    }

    fn until_trusted(&self) {
        for node in &self.fleet.nodes {
            until("the node is trusted", || node.metric("tiercel_journal_trusted", &[]) == Some(1.0));
        }
        // Who serves while cut off does so once the fleet remembers it.
        for node in &self.fleet.nodes {
            until("the node is remembered", || node.metric("tiercel_journal_remembered", &[]) == Some(1.0));
        }
    }

    /// Stores the version of now on every node.
    async fn fill(&self, path: &str) {
        for node in &self.fleet.nodes {
            assert_eq!(node.get(HOST, path).await.text(), self.version().to_string(), "{}", node.name);
            assert!(is_hit(node, path).await, "{}", node.name);
        }
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// The origin has something new.
    fn publish(&self) -> String {
        (self.version.fetch_add(1, Ordering::SeqCst) + 1).to_string()
    }

    /// Purges by a surrogate key on a node, and waits for the fleet.
    fn purge(&self, number: usize, timeout: &str) -> (u16, Value) {
        let body = json!({"tags": ["red"], "wait": "fleet", "timeout": timeout}).to_string();
        self.node(number).admin("POST", "/v1/purge", &body).expect("an answer")
    }

    async fn all_have(&self, path: &str, version: &str) {
        for node in &self.fleet.nodes {
            assert_eq!(node.get(HOST, path).await.text(), version, "{}", node.name);
        }
    }
}

async fn is_hit(node: &Node, path: &str) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // What is being stored is not stored yet.
        if node.get(HOST, path).await.says("hit") {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5)); // nobody announces it
    }
}

/// State of a node in a receipt.
fn state<'a>(receipt: &'a Value, node: &str) -> &'a str {
    let nodes = receipt["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    nodes.iter().find(|entry| entry["node"] == node).and_then(|entry| entry["state"].as_str()).unwrap_or_default()
}

/// From the purge's issue until this state of a node was known, as its receipt says.
fn elapsed(receipt: &Value, node: &str) -> Duration {
    let nodes = receipt["nodes"].as_array().expect("nodes");
    let found = nodes.iter().find(|entry| entry["node"] == node).and_then(|entry| entry["elapsed_ms"].as_u64());
    Duration::from_millis(found.unwrap_or_else(|| panic!("no time of {node}: {receipt}")))
}

/// What has happened to the journal, as a node saw it.
fn events(node: &Node, event: &str) -> f64 {
    node.metric("tiercel_journal_events_total", &[&format!("event=\"{event}\"")]).expect("it runs")
}

fn until_complete(node: &Node, receipt: &Value) -> Value {
    let path = format!("/v1/purge/{}", receipt["id"].as_str().expect("an id"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, now) = node.admin("GET", &path, "").expect("an answer");
        if now["complete"] == true {
            return now;
        }
        assert!(Instant::now() < deadline, "it does not become complete: {now}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(5)); // nobody announces it
    }
}

#[tokio::test]
async fn a_purge_that_is_complete_is_in_force_on_every_node() {
    let stage = Stage::new(3, "");
    for round in 0..20 {
        stage.fill(PATH).await;
        let new = stage.publish();
        let sent = Instant::now();
        let (status, receipt) = stage.purge(round % 3, "10s");
        let took = sent.elapsed();
        assert_eq!((status, &receipt["complete"], &receipt["acknowledged"]), (200, &json!(true), &json!("fleet")), "{receipt}");
        let others = receipt["nodes"].as_array().expect("nodes");
        assert!(others.len() == 2 && others.iter().all(|node| node["state"] == "applied"), "{receipt}");
        for other in others {
            let elapsed = elapsed(&receipt, other["node"].as_str().expect("a name"));
            assert!(elapsed <= took, "the answer came after {took:?}: {receipt}");
        }
        stage.all_have(PATH, &new).await;
    }
    let (_, nodes) = stage.node(0).admin("GET", "/v1/nodes", "").expect("an answer");
    assert_eq!(nodes["node"], "node-0");
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(2), "{nodes}");
}

#[tokio::test]
async fn a_journal_that_is_flushed_begins_anew_and_purges_go_on() {
    let stage = Stage::new(2, "");
    stage.fill(PATH).await;
    let before = stage.node(0).metric("tiercel_journal_epoch", &[]).expect("it runs");
    stage.redis.flush_all();
    for node in &stage.fleet.nodes {
        until("a new epoch", || node.metric("tiercel_journal_epoch", &[]).is_some_and(|epoch| epoch > before));
    }
    let new = stage.publish();
    let (_, receipt) = stage.purge(1, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.all_have(PATH, &new).await;
}

/// The nodes that followed them are gone, so that nobody who is asked knows of them.
#[tokio::test]
async fn streams_whose_record_was_lost_do_not_stay_for_ever() {
    let mut stage = Stage::new(1, "");
    assert_eq!(stage.purge(0, "10s").0, 200);
    let (old, record) = (stage.streams(), "tiercel:{journal}");
    assert_eq!(stage.redis.ask(&["EXISTS", &old[0]]).integer(), 1);
    stage.fleet.nodes[0].terminate();
    stage.redis.ask(&["DEL", record]);
    stage.fleet.nodes[0].start();
    stage.until_trusted();
    assert_eq!(stage.purge(0, "10s").0, 200);
    let new = stage.streams();
    assert_ne!(new, old);
    let mut there: Vec<_> = stage.redis.ask(&["KEYS", "tiercel:{journal}*"]).list().iter().map(Reply::text).collect();
    there.sort();
    assert_eq!(there, [record, "tiercel:{journal}:epochs", &new[0]]);
}

#[tokio::test]
async fn a_redis_that_comes_back_from_an_old_snapshot_loses_no_purge() {
    let mut stage = Stage::new(2, "");
    stage.purge(0, "10s");
    stage.redis.save();
    stage.fill(PATH).await;
    let new = stage.publish();
    let (_, receipt) = stage.purge(0, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    let before = stage.node(1).metric("tiercel_journal_epoch", &[]).expect("it runs");
    stage.redis.kill();
    stage.redis.start_again(Restart::Saved);
    for node in &stage.fleet.nodes {
        until("a new epoch", || node.metric("tiercel_journal_epoch", &[]).is_some_and(|epoch| epoch > before));
    }
    stage.until_trusted();
    stage.all_have(PATH, &new).await;
    let newer = stage.publish();
    let (_, receipt) = stage.purge(1, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.all_have(PATH, &newer).await;
}

/// What a node missed was trimmed: it cannot know what that was. It is no loss, for the others have it.
#[tokio::test]
async fn a_node_that_comes_back_behind_the_trim_drops_what_it_holds_and_nobody_else_does() {
    let stage = Stage::new(2, "on_cutoff = 'revalidate'");
    assert_eq!(stage.purge(0, "10s").0, 200);
    for path in [PATH, "/kept"] {
        stage.fill(path).await;
    }
    let epoch = |node: &Node| node.metric("tiercel_journal_epoch", &[]);
    let before = epoch(stage.node(0));
    let link = stage.node(1).link.as_ref().expect("a link");
    link.make(Trouble::Cut);
    until("it is cut off", || stage.node(1).metric("tiercel_journal_trusted", &[]) == Some(0.0));
    let new = stage.publish();
    for path in [PATH, "/other"] {
        let body = json!({"urls": [format!("http://{HOST}{path}")], "wait": "fleet", "timeout": "10s"}).to_string();
        let (status, receipt) = stage.node(0).admin("POST", "/v1/purge", &body).expect("an answer");
        assert_eq!((status, state(&receipt, "node-1")), (200, "cut_off"), "{receipt}");
    }
    let trimmed = stage.redis.ask(&["XTRIM", &stage.streams()[0], "MAXLEN", "=", "1"]).integer();
    assert!(trimmed >= 2, "the purge that it missed is among {trimmed}");
    link.mend();
    stage.until_trusted();
    assert_eq!([0, 1].map(|node| events(stage.node(node), "behind_trim")), [0.0, 1.0]);
    assert_eq!([0, 1].map(|node| epoch(stage.node(node))), [before, before], "nothing is lost for the fleet");
    stage.all_have(PATH, &new).await;
    assert!(stage.node(0).get(HOST, "/kept").await.says("hit"), "who read it all keeps what it holds");
    let dropped = stage.node(1).get(HOST, "/kept").await;
    assert!(!dropped.says("hit") && dropped.text() == new, "{}", dropped.head);
}

/// Redis takes out whole blocks of entries (`MAXLEN ~`), so there are some more than `max_entries`.
#[tokio::test]
async fn neither_stream_grows_beyond_its_entries_and_a_block_however_many_come() {
    const MAX_ENTRIES: i64 = 1000;
    const LENGTHS: std::ops::RangeInclusive<i64> = MAX_ENTRIES..=MAX_ENTRIES + 200;
    const PURGES: usize = 3000;
    // A node tells what was written a hundred times a second, however much that was.
    const BATCHES: f64 = 1500.0;
    let stage = Stage::new(2, &format!("max_entries = {MAX_ENTRIES}"));
    let entries = |node: &Node, what: &str, class: &str| node.metric(&format!("tiercel_journal_{what}_total"), &[class]).expect("it runs");
    // Nobody is behind by as many as a stream holds: that is another test.
    let until_read = |class: &str| {
        let appended = stage.fleet.nodes.iter().map(|node| entries(node, "appended", class)).sum();
        until("all have read them", || stage.fleet.nodes.iter().all(|node| entries(node, "applied", class) >= appended));
        appended
    };
    let address = stage.node(0).admin;
    let mut admin = Client::connect(address).await;
    for number in 0..PURGES {
        let body = json!({"urls": [format!("http://{HOST}/purged/{number}")]}).to_string();
        let lines = format!("Host: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        assert_eq!(admin.ask(format!("POST /v1/purge HTTP/1.1\r\n{lines}\r\n{body}")).await.status, 200);
        if number % 100 == 0 {
            until_read("\"purge\"");
        }
    }
    until("all purges are told", || until_read("\"purge\"") >= PURGES as f64);
    let mut writers = [Client::connect(stage.node(0).http).await, Client::connect(stage.node(1).http).await];
    let deadline = Instant::now() + 3 * PATIENCE;
    for number in 0.. {
        for writer in &mut writers {
            let write = format!("POST /written/{number} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(writer.ask(write).await.status, 204);
        }
        if number % 100 == 0 && until_read("\"unsafe_method\"") >= BATCHES {
            break;
        }
        assert!(Instant::now() < deadline, "{number} writes on each node came in too few batches");
    }
    for stream in stage.streams() {
        let length = stage.redis.ask(&["XLEN", &stream]).integer();
        assert!(LENGTHS.contains(&length), "{stream} has {length} entries");
    }
    stage.fill(PATH).await;
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    stage.all_have(PATH, &new).await;
    for node in &stage.fleet.nodes {
        assert_eq!(node.metric("tiercel_journal_trusted", &[]), Some(1.0), "{}", node.name);
        assert_eq!(["loss", "behind_trim", "gap", "hole"].map(|event| events(node, event)), [0.0; 4], "{}", node.name);
    }
}

#[tokio::test]
async fn misses_that_another_nodes_purge_caused_reach_the_origin_a_few_at_a_time() {
    const PLACES: usize = 3;
    const PATHS: usize = 12;
    let (gate, is_held) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    let (held, holds) = (gate.clone(), Arc::clone(&is_held));
    let origin = Origin::start(move |request| {
        let script = Script::ok(request.path.clone()).header("cache-control", "max-age=3600");
        if holds.load(Ordering::SeqCst) { script.after(&held) } else { script }
    });
    let config = format!(
        "[upstreams.default]\nendpoints = ['@ORIGIN@']\npurge_concurrency = {PLACES}\n\
         [journal]\nnode = '@NODE@'\ntrust = '1s'\nredis.url = 'redis://@REDIS@'\n"
    );
    let redis = Redis::start();
    let plan = Plan { nodes: 2, config, origin: origin.url(), redis: Some(redis.address()), ..Plan::default() };
    let fleet = Fleet::start(&plan);
    let (here, there) = (&fleet.nodes[0], &fleet.nodes[1]);
    until("both are trusted", || fleet.sum("tiercel_journal_trusted", &[]) == 2.0);
    for number in 0..PATHS {
        there.get(HOST, &format!("/a/{number}")).await;
        assert!(is_hit(there, &format!("/a/{number}")).await);
    }
    is_held.store(true, Ordering::SeqCst);
    let before = origin.total();
    let body = json!({"prefixes": [format!("http://{HOST}/a/")], "wait": "fleet", "timeout": "10s"}).to_string();
    let (status, receipt) = here.admin("POST", "/v1/purge", &body).expect("an answer");
    assert_eq!((status, state(&receipt, "node-1")), (200, "applied"), "{receipt}");
    let mut clients = Vec::new();
    for number in 0..PATHS {
        let mut client = Client::connect(there.http).await;
        client.send(format!("GET /a/{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        clients.push(client);
    }
    let waiting = |node: &Node| node.metric("tiercel_upstream_purge_waiting", &[]);
    until("the others wait in line", || waiting(there) == Some((PATHS - PLACES) as f64));
    origin.until("those with a place came", |origin| origin.total() == before + PLACES).await;
    assert_eq!(waiting(here), Some(0.0));
    gate.open();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer(false).await.expect("an answer").text(), format!("/a/{number}"));
    }
    assert_eq!((origin.total(), waiting(there)), (before + PATHS, Some(0.0)));
    assert_eq!(there.metric("tiercel_upstream_purge_fetches_total", &[]), Some(PATHS as f64));
}

#[tokio::test]
async fn a_node_that_is_cut_off_and_revalidates_does_not_hold_a_purge_up() {
    let stage = Stage::new(2, "on_cutoff = 'revalidate'");
    stage.fill(PATH).await;
    let link = stage.node(1).link.as_ref().expect("a link");
    link.make(Trouble::Cut);
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, state(&receipt, "node-1")), (200, "cut_off"), "{receipt}");
    stage.all_have(PATH, &new).await;
    link.mend();
    stage.until_trusted();
    stage.all_have(PATH, &new).await;
}

/// Where both connections of a node took turns, each given up because the other was missing, it was cut off for ever.
#[tokio::test]
async fn a_node_whose_connections_come_back_one_after_the_other_is_back_too() {
    let stage = Stage::new(2, "");
    let link = stage.node(1).link.as_ref().expect("a link");
    link.make(Trouble::Cut);
    until("it is cut off", || stage.node(1).metric("tiercel_journal_trusted", &[]) == Some(0.0));
    link.make(Trouble::OneEvery(Duration::from_millis(1200)));
    stage.until_trusted();
}

#[tokio::test]
async fn a_purge_waits_for_a_node_that_is_cut_off_and_serves() {
    let stage = Stage::new(2, "on_cutoff = 'serve'");
    stage.fill(PATH).await;
    let old = stage.version().to_string();
    let link = stage.node(1).link.as_ref().expect("a link");
    link.make(Trouble::Held);
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "3s");
    assert_eq!((status, &receipt["complete"], state(&receipt, "node-1")), (202, &json!(false), "waiting"), "{receipt}");
    assert!(elapsed(&receipt, "node-1") < Duration::from_secs(3), "since when it waits for that node: {receipt}");
    let answer = stage.node(1).get(HOST, PATH).await;
    assert_eq!(answer.text(), old, "it serves");
    assert!(answer.says("detail=CUT-OFF"), "{}", answer.head);
    link.mend();
    let receipt = until_complete(stage.node(0), &receipt);
    assert_eq!(state(&receipt, "node-1"), "applied", "{receipt}");
    assert!(elapsed(&receipt, "node-1") >= Duration::from_secs(3), "the link was held for so long: {receipt}");
    stage.all_have(PATH, &new).await;
}

#[tokio::test]
async fn a_node_that_was_stopped_does_not_serve_what_was_purged_meanwhile() {
    let stage = Stage::new(2, "on_cutoff = 'revalidate'");
    stage.fill(PATH).await;
    stage.node(1).pause();
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, state(&receipt, "node-1")), (200, "cut_off"), "{receipt}");
    // It is there before the node goes on, and is the first that it sees.
    let mut client = Client::connect(stage.node(1).http).await;
    client.send(format!("GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    stage.node(1).resume();
    assert_eq!(client.answer(false).await.expect("an answer").text(), new);
}

#[tokio::test]
async fn a_purge_without_redis_is_in_force_here_and_told_when_redis_is_back() {
    let mut stage = Stage::new(2, "on_cutoff = 'revalidate'");
    stage.fill(PATH).await;
    stage.redis.save();
    stage.redis.kill();
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "2s");
    assert_eq!((status, &receipt["acknowledged"], &receipt["complete"]), (202, &json!("local"), &json!(false)), "{receipt}");
    assert!(receipt["reason"].as_str().is_some_and(|reason| reason.contains("Redis")), "{receipt}");
    assert_eq!(stage.node(0).get(HOST, PATH).await.text(), new);
    stage.redis.start_again(Restart::Saved);
    let receipt = until_complete(stage.node(0), &receipt);
    assert_eq!(receipt["acknowledged"], "fleet");
    stage.all_have(PATH, &new).await;
}

#[tokio::test]
async fn a_node_that_leaves_or_is_forgotten_or_comes_back_new_is_not_waited_for() {
    let mut stage = Stage::new(3, "on_cutoff = 'serve'");
    stage.fleet.nodes[2].terminate();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, state(&receipt, "node-2")), (200, ""), "it left: {receipt}");
    stage.fleet.nodes[1].kill();
    let (status, receipt) = stage.purge(0, "3s");
    assert_eq!((status, state(&receipt, "node-1")), (202, "waiting"), "it may serve: {receipt}");
    let (status, answer) = stage.node(0).admin("DELETE", "/v1/nodes/node-7", "").expect("an answer");
    assert_eq!(status, 404, "{answer}");
    let (status, answer) = stage.node(0).admin("DELETE", "/v1/nodes/node-1", "").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    until_complete(stage.node(0), &receipt);
    stage.fleet.nodes[1].start();
    stage.fleet.nodes[1].until_ready();
    let deadline = Instant::now() + PATIENCE;
    while state(&stage.purge(0, "10s").1, "node-1") != "applied" {
        assert!(Instant::now() < deadline, "it takes part again");
    }
}

#[tokio::test]
async fn without_redis_a_node_starts_cut_off_and_says_so() {
    let mut redis = Redis::start();
    redis.kill();
    let origin = Origin::start(|_| Script::ok("body").header("cache-control", "max-age=60"));
    let plan = Plan {
        nodes: 1,
        config: "[upstreams.default]\nendpoints = ['@ORIGIN@']\n[journal]\nnode = '@NODE@'\ntrust = '1s'\nredis.url = 'redis://@REDIS@'\n"
            .into(),
        origin: origin.url(),
        redis: Some(redis.address()),
        ..Plan::default()
    };
    let fleet = Fleet::start(&plan);
    let node = &fleet.nodes[0];
    let answer = node.get(HOST, PATH).await;
    assert_eq!(answer.text(), "body");
    assert!(answer.says("detail=CUT-OFF"), "{}", answer.head);
    redis.start_again(Restart::Empty);
    until("the node is trusted", || node.metric("tiercel_journal_trusted", &[]) == Some(1.0));
}

#[tokio::test]
async fn what_a_write_invalidates_on_one_node_goes_on_all() {
    let stage = Stage::new(2, "");
    stage.fill(PATH).await;
    stage.fill("/other").await;
    let new = stage.publish();
    let mut client = Client::connect(stage.node(0).http).await;
    let written = client.ask(format!("POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n")).await;
    assert_eq!(written.status, 204);
    assert_eq!(stage.node(0).get(HOST, PATH).await.text(), new, "who wrote reads its write");
    let deadline = Instant::now() + PATIENCE;
    while stage.node(1).get(HOST, PATH).await.text() != new {
        assert!(Instant::now() < deadline, "the other node is not told");
    }
    for node in &stage.fleet.nodes {
        assert!(node.get(HOST, "/other").await.says("hit"), "{}", node.name);
    }
}

#[tokio::test]
async fn a_node_under_the_name_of_another_is_not_ready_and_harms_nobody() {
    let mut stage = Stage::new(2, "on_cutoff = 'revalidate'");
    stage.fill(PATH).await;
    let events = |node: &Node| node.metric("tiercel_journal_events_total", &["name_taken"]);
    let plan = Plan {
        nodes: 1,
        config: "[upstreams.default]\nendpoints = ['@ORIGIN@']\n[journal]\nnode = 'node-1'\ntrust = '1s'\nredis.url = 'redis://@REDIS@'\n"
            .into(),
        origin: stage.origin.url(),
        redis: Some(stage.redis.address()),
        ..Plan::default()
    };
    let twins = Fleet::launch(&plan);
    let twin = &twins.nodes[0];
    until("the twin knows", || events(twin).is_some_and(|events| events > 0.0));
    let (status, why) = twin.readiness().expect("an answer");
    assert!(status == 503 && why.contains("under the name of this one, \\\"node-1\\\""), "{status}: {why}");
    assert!(twin.log().contains("another running node has the name of this one"), "{}", twin.log());
    for round in 0..3 {
        let new = stage.publish();
        let (status, receipt) = stage.purge(round % 2, "10s");
        assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
        stage.all_have(PATH, &new).await;
        assert_eq!(twin.get(HOST, PATH).await.text(), new);
    }
    for node in &stage.fleet.nodes {
        assert_eq!((events(node), node.metric("tiercel_journal_trusted", &[])), (Some(0.0), Some(1.0)), "{}", node.name);
    }
    // The name gets free without a word.
    stage.fleet.nodes[1].kill();
    twin.until_ready();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, state(&receipt, "node-1")), (200, "applied"), "{receipt}");
    assert_eq!(events(twin), Some(1.0), "told once");
}

impl Stage {
    /// The stream of purges of the epoch that it is in, and that of unsafe methods.
    fn streams(&self) -> [String; 2] {
        let epoch = self.node(0).metric("tiercel_journal_epoch", &[]).expect("it runs");
        ["purges", "unsafe"].map(|class| format!("tiercel:{{journal}}:{class}:{epoch}"))
    }
}

#[tokio::test]
async fn what_others_put_into_the_streams_is_passed_over() {
    let stage = Stage::new(2, "");
    let before = stage.node(0).metric("tiercel_journal_epoch", &[]);
    let in_an_hour = format!("{}-7", std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() + 3_600_000);
    for (round, place) in ["*", &in_an_hour].into_iter().enumerate() {
        stage.fill(PATH).await;
        for stream in stage.streams() {
            stage.redis.ask(&["XADD", &stream, place, "message", "hello"]);
            stage.redis.ask(&["XADD", &stream, "*", "prev", "soon", "id", "7"]);
        }
        for node in &stage.fleet.nodes {
            let foreign = || node.metric("tiercel_journal_events_total", &["foreign"]);
            until("they are seen", || foreign().is_some_and(|foreign| foreign >= 4.0 * (round + 1) as f64));
        }
        let new = stage.publish();
        let (status, receipt) = stage.purge(round, "10s");
        assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
        stage.all_have(PATH, &new).await;
    }
    for node in &stage.fleet.nodes {
        let of = |name: &str, label: &[&str]| node.metric(name, label);
        assert_eq!((of("tiercel_journal_trusted", &[]), of("tiercel_journal_epoch", &[])), (Some(1.0), before), "{}", node.name);
        assert_eq!(of("tiercel_journal_events_total", &["gap"]), Some(0.0), "{}", node.name);
        assert!(node.log().contains("entries that are not the journal's"), "{}", node.log());
    }
    // Behind the last place that there is nothing can be added: as if all were lost.
    stage.redis.ask(&["XADD", &stage.streams()[0], "18446744073709551615-18446744073709551615", "message", "hello"]);
    for node in &stage.fleet.nodes {
        until("a new epoch", || node.metric("tiercel_journal_epoch", &[]) > before);
    }
    stage.until_trusted();
    stage.fill(PATH).await;
    let new = stage.publish();
    let (status, receipt) = stage.purge(1, "10s");
    assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    stage.all_have(PATH, &new).await;
}

#[tokio::test]
async fn a_member_that_cannot_be_read_harms_nobody_and_one_of_a_later_version_is_waited_for() {
    let stage = Stage::new(2, "on_cutoff = 'revalidate'");
    stage.fill(PATH).await;
    let record = "tiercel:{journal}";
    stage.redis.ask(&["HSET", record, "node:odd", "nonsense"]);
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    stage.all_have(PATH, &new).await;
    assert!(matches!(stage.redis.ask(&["HEXISTS", record, "node:odd"]), Reply::Integer(0)), "it was taken out");

    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    stage.redis.ask(&["HSET", record, "node:later", &format!("{:032x} 1 0 0-0-0 {now_ms} stays dreams:7 server more", 7)]);
    let (status, receipt) = stage.purge(0, "3s");
    assert_eq!((status, state(&receipt, "later"), state(&receipt, "node-1")), (202, "waiting", "applied"), "{receipt}");
    let admin = format!("http://{}", stage.node(0).admin);
    let command = ["purge", "--key", "red", "--wait", "fleet", "--timeout", "100ms", "--admin", &admin];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tiercel")).args(command).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let forget = ["nodes", "forget", "later", "--admin", &admin];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tiercel")).args(forget).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let again = ["purge", "--key", "red", "--wait", "fleet", "--timeout", "10s", "--admin", &admin];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tiercel")).args(again).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for node in &stage.fleet.nodes {
        assert_eq!(node.metric("tiercel_journal_trusted", &[]), Some(1.0), "{}", node.name);
    }
}

#[tokio::test]
async fn an_entry_that_is_taken_out_of_the_stream_is_not_missed_in_silence() {
    let stage = Stage::new(2, "on_cutoff = 'serve'");
    let before = stage.node(0).metric("tiercel_journal_epoch", &[]);
    let holes = || stage.node(1).metric("tiercel_journal_events_total", &["hole"]);
    // Else what is taken out is the first of all, and looks like one that was trimmed.
    assert_eq!(stage.purge(0, "10s").0, 200);
    // Between two others, and then the last.
    for is_last in [false, true] {
        stage.fill(PATH).await;
        let link = stage.node(1).link.as_ref().expect("a link");
        link.make(Trouble::Cut);
        let new = stage.publish();
        let (_, receipt) = stage.purge(0, "10ms");
        let receipt = until_placed(stage.node(0), &receipt);
        let place = receipt["position"].as_str().and_then(|position| position.split_once('-')).expect("a position").1.to_owned();
        if !is_last {
            let body = json!({"tags": ["other"]}).to_string();
            let (_, other) = stage.node(0).admin("POST", "/v1/purge", &body).expect("an answer");
            until_placed(stage.node(0), &other);
        }
        assert_eq!(stage.redis.ask(&["XDEL", &stage.streams()[0], &place]).integer(), 1);
        link.mend();
        let receipt = until_complete(stage.node(0), &receipt);
        assert_eq!(state(&receipt, "node-1"), "applied", "{receipt}");
        stage.all_have(PATH, &new).await;
        assert_eq!(holes(), Some(1.0));
        // Who has applied the last one misses it: as if the journal had lost its tail.
        let is_another = stage.node(1).metric("tiercel_journal_epoch", &[]) != before;
        assert_eq!(is_another, is_last);
    }
}

fn until_placed(node: &Node, receipt: &Value) -> Value {
    let path = format!("/v1/purge/{}", receipt["id"].as_str().expect("an id"));
    let now = || node.admin("GET", &path, "").expect("an answer").1;
    until("it has its place", || now()["acknowledged"] == "fleet");
    now()
}

fn urls(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| format!("'redis://{address}'")).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn a_purge_that_a_lagging_replica_never_had_is_told_again_after_the_failover() {
    let master = Redis::start();
    let replica = Redis::replica_of(&master, &[]);
    let sentinels = Sentinels::watch(&master, 1, 500);
    let redis = format!("redis.url = [{}]\nredis.mode = 'sentinel'\nredis.sentinel_master = 'fleet'", urls(&sentinels.addresses()));
    let mut stage = Stage::on((master, replica), None, 2, &redis);
    stage.fill(PATH).await;
    let (_, receipt) = stage.purge(0, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.fill(PATH).await;
    stage.redis.1.stop_following();
    let new = stage.publish();
    let (_, receipt) = stage.purge(0, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    let before = stage.node(0).metric("tiercel_journal_epoch", &[]).expect("it runs");
    stage.redis.0.kill();
    sentinels.until_master(&stage.redis.1);
    for node in &stage.fleet.nodes {
        until("a new epoch", || node.metric("tiercel_journal_epoch", &[]).is_some_and(|epoch| epoch > before));
    }
    stage.until_trusted();
    stage.all_have(PATH, &new).await;
    let newer = stage.publish();
    let (_, receipt) = stage.purge(1, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.all_have(PATH, &newer).await;
}

/// The replica has it all, and all nodes are there to say so: neither a new epoch nor a response that is dropped.
#[tokio::test]
async fn a_failover_that_lost_nothing_costs_nothing() {
    let servers = Servers::watched();
    let redis = servers.config().replace("url =", "redis.url =").replace("mode =", "redis.mode =");
    let redis = redis.replace("sentinel_master =", "redis.sentinel_master =");
    let mut stage = Stage::on(servers, None, 2, &redis);
    stage.fill(PATH).await;
    let new = stage.publish();
    let (_, receipt) = stage.purge(0, "10s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.fill(PATH).await;
    let (asked, epochs) = (stage.origin.total(), [0, 1].map(|node| stage.node(node).metric("tiercel_journal_epoch", &[])));
    // Nobody says anything that the replica might not hear of any more.
    stage.fleet.nodes.iter().for_each(Node::pause);
    let [master, replica] = &mut stage.redis.all[..] else { panic!("a master and a replica") };
    let offset = |redis: &Redis| redis.info("replication", "master_repl_offset");
    replica.until("the replica has it all", |replica| offset(replica) == offset(master));
    master.kill();
    stage.redis.until_master(1);
    stage.fleet.nodes.iter().for_each(Node::resume);
    for node in &stage.fleet.nodes {
        until("the other server is seen", || events(node, "server_changed") >= 1.0);
    }
    stage.until_trusted();
    assert_eq!([0, 1].map(|node| stage.node(node).metric("tiercel_journal_epoch", &[])), epochs);
    for node in &stage.fleet.nodes {
        assert_eq!(["loss", "unvouched"].map(|event| events(node, event)), [0.0, 0.0], "{}", node.name);
        let kept = node.get(HOST, PATH).await;
        assert!(kept.says("hit") && kept.text() == new, "{}: {}", node.name, kept.head);
    }
    assert_eq!(stage.origin.total(), asked);
    let newer = stage.publish();
    let (_, receipt) = stage.purge(1, "20s");
    assert_eq!(receipt["complete"], true, "{receipt}");
    stage.all_have(PATH, &newer).await;
}

#[tokio::test]
async fn a_journal_in_a_cluster_is_followed_like_any_other() {
    let cluster = Cluster::start();
    let redis = format!("redis.url = [{}]\nredis.mode = 'cluster'", urls(&cluster.addresses()));
    let stage = Stage::on(cluster, None, 2, &redis);
    for round in 0..3 {
        stage.fill(PATH).await;
        let new = stage.publish();
        let (status, receipt) = stage.purge(round % 2, "10s");
        assert_eq!((status, state(&receipt, &format!("node-{}", (round + 1) % 2))), (200, "applied"), "{receipt}");
        stage.all_have(PATH, &new).await;
    }
}

#[tokio::test]
async fn a_redis_that_is_full_takes_purges_all_the_same() {
    let stage = Stage::new(2, "");
    stage.fill(PATH).await;
    stage.redis.set("maxmemory-policy", "noeviction");
    stage.redis.set("maxmemory", "1mb");
    let full = stage.redis.try_ask(&["SET", "other", "x"]).expect("an answer");
    assert!(full.is_error(), "{full:?}");
    let new = stage.publish();
    let (status, receipt) = stage.purge(0, "10s");
    assert_eq!((status, &receipt["complete"]), (200, &json!(true)), "{receipt}");
    stage.all_have(PATH, &new).await;
    assert!(stage.fleet.nodes.iter().all(|node| node.metric("tiercel_journal_trusted", &[]) == Some(1.0)));
}
