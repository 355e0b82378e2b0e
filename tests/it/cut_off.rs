//! What requests meet on a node that is cut off from the fleet's journal (DESIGN section 6, `journal.on_cutoff`).
//!
//! The server runs in this process, and its Redis beside it: a node is cut off when that is away for as long as it is trusted.

use crate::support::client::{Answer, Client};
use crate::support::origin::{Gate, Origin, PATIENCE, Recorded, Script};
use crate::support::redis::Redis;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tiercel::config::{self, Sources};
use tiercel::server::Server;

const PATH: &str = "/article";

struct Node {
    server: Option<Server>,
    address: SocketAddr,
    origin: Origin,
    redis: Redis,
    _folder: TempDir,
}

impl Node {
    /// `respond` gets the number of the request, from 0.
    async fn new(journal: &str, respond: impl Fn(usize, &Recorded) -> Script + Send + Sync + 'static) -> Self {
        let numbers = AtomicUsize::new(0);
        let origin = Origin::start(move |request| respond(numbers.fetch_add(1, Ordering::SeqCst), request));
        let redis = Redis::start();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tiercel.toml");
        let config = format!(
            "listeners.http.address = \"127.0.0.1:0\"\nadmin.address = \"off\"\nserver.workers = 1\nlog.access.target = \"off\"\n\
             upstreams.default.endpoints = [\"{}\"]\n[journal]\nnode = \"a\"\ntrust = \"1s\"\n{journal}\nredis.url = \"{}\"\n",
            origin.url(),
            redis.url(),
        );
        std::fs::write(&file, config).expect("a writable folder");
        let sources = Sources { file: Some(file), ..Sources::default() };
        let settings = config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::start(sources, settings, None).expect("it starts");
        let address = server.listeners()[0].tcp().expect("a port");
        let node = Self { server: Some(server), address, origin, redis, _folder: folder };
        node.until_trusted(1).await;
        node
    }

    /// Redis does not answer any more, and the trust in what was heard of it has ended. Before the fleet is sure to remember
    /// it, no node serves then.
    async fn cut_off(&self) {
        self.until("tiercel_journal_remembered", 1).await;
        self.redis.pause();
        self.until_trusted(0).await;
    }

    async fn trust(&self) {
        self.redis.resume();
        self.until_trusted(1).await;
    }

    async fn until_trusted(&self, trusted: u64) {
        self.until("tiercel_journal_trusted", trusted).await;
    }

    async fn until(&self, series: &str, value: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(series) != value {
            assert!(Instant::now() < deadline, "waited in vain: {series} {value}");
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    async fn send(&self, lines: &str) -> Client {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {PATH} HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n")).await;
        client
    }

    async fn get(&self) -> Answer {
        self.send("").await.answer(false).await.expect("an answer")
    }

    async fn until_hit(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.get().await.says("hit") {
            assert!(Instant::now() < deadline, "it is not stored");
        }
    }

    fn metric(&self, series: &str) -> u64 {
        let text = self.server.as_ref().expect("it runs").state.proxy.metrics.render();
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).expect(series)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain();
        }
    }
}

/// Fresh for long, with a validator that never changes.
fn versioned(number: usize) -> Script {
    Script::ok(format!("version {number}")).header("Cache-Control", "max-age=3600").header("ETag", "\"v\"")
}

/// Confirms whatever it is asked about.
fn confirming(number: usize, request: &Recorded) -> Script {
    if request.field("if-none-match").is_some() { Script::status(304, "").header("ETag", "\"v\"") } else { versioned(number) }
}

#[tokio::test]
async fn a_node_that_serves_while_cut_off_says_so() {
    let node = Node::new("on_cutoff = \"serve\"", |number, _| versioned(number)).await;
    node.until_hit().await;
    node.cut_off().await;
    let answer = node.get().await;
    assert_eq!(answer.text(), "version 0");
    assert!(answer.says("hit") && answer.says("detail=CUT-OFF"), "{}", answer.head);
    node.trust().await;
    assert!(!node.get().await.says("detail=CUT-OFF"));
}

#[tokio::test]
async fn a_node_that_revalidates_asks_for_each_request_and_takes_the_answer() {
    let node = Node::new("on_cutoff = \"revalidate\"", confirming).await;
    node.until_hit().await;
    node.cut_off().await;
    for request in 1..4 {
        let answer = node.get().await;
        assert_eq!(answer.text(), "version 0", "confirmed");
        assert!(answer.says("fwd=stale") && answer.says("fwd-status=304") && answer.says("detail=CUT-OFF"), "{}", answer.head);
        assert_eq!(node.origin.count(PATH), 1 + request);
    }
    node.trust().await;
    assert!(node.get().await.says("hit"));
    assert_eq!(node.origin.count(PATH), 4);
}

#[tokio::test]
async fn what_was_stored_does_not_stand_in_for_an_error_while_cut_off() {
    let stored = "stale-if-error=60";
    for (journal, status) in [("on_cutoff = \"revalidate\"", 503), ("on_cutoff = \"serve\"", 200)] {
        let node = Node::new(journal, move |number, _| match number {
            0 => Script::ok("old").header("Cache-Control", &format!("max-age=3600, {stored}")),
            _ => Script::status(503, "down"),
        })
        .await;
        node.until_hit().await;
        node.cut_off().await;
        assert_eq!(node.get().await.status, status, "{journal}");
    }
}

#[tokio::test]
async fn requests_that_find_an_older_fetch_under_way_wait_and_share_the_next_one() {
    let gate = Gate::new();
    let held = gate.clone();
    let node = Node::new("on_cutoff = \"revalidate\"", move |number, _| match number {
        0 => versioned(number).after(&held),
        _ => versioned(number),
    })
    .await;
    let mut first = node.send("").await;
    node.origin.until("the first request", |origin| origin.count(PATH) == 1).await;
    node.cut_off().await;
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(node.send("").await);
    }
    node.until("tiercel_coalesce_waiting", 20).await;
    assert_eq!(node.origin.count(PATH), 1, "one at a time");
    gate.open();
    assert_eq!(first.answer(false).await.expect("an answer").text(), "version 0", "it came while the node was trusted");
    for mut client in others {
        let answer = client.answer(false).await.expect("an answer");
        assert_ne!(answer.text(), "version 0", "that fetch began before this request");
    }
    let fetches = node.origin.count(PATH);
    assert!((2..=5).contains(&fetches), "{fetches} fetches for 21 requests");
    assert_eq!(node.metric("tiercel_coalesce_followers_total{outcome=\"too_old\"}"), 20);
}

#[tokio::test]
async fn a_confirmation_may_count_for_longer_where_that_is_configured() {
    let node = Node::new("on_cutoff = \"revalidate\"\nrevalidate_every = \"1h\"", confirming).await;
    node.until_hit().await;
    node.cut_off().await;
    assert!(node.get().await.says("hit"));
    assert_eq!(node.origin.count(PATH), 1);
}

#[tokio::test]
async fn a_node_that_bypasses_neither_uses_nor_fills_its_cache_while_cut_off() {
    let node = Node::new("on_cutoff = \"bypass\"", |number, _| versioned(number)).await;
    node.until_hit().await;
    node.cut_off().await;
    let answer = node.get().await;
    assert_eq!(answer.text(), "version 1");
    assert!(answer.says("fwd=bypass") && answer.says("detail=CUT-OFF"), "{}", answer.head);
    let refused = node.send("Cache-Control: only-if-cached\r\n").await.answer(false).await.expect("an answer");
    assert_eq!(refused.status, 504);
    node.trust().await;
    assert_eq!(node.get().await.text(), "version 0");
}

#[tokio::test]
async fn serving_ends_after_the_time_given() {
    let node = Node::new("on_cutoff = \"serve\"\nserve_at_most = \"1ms\"", confirming).await;
    node.until_hit().await;
    node.cut_off().await;
    let answer = node.get().await;
    assert!(answer.says("fwd=stale") && answer.says("fwd-status=304"), "{}", answer.head);
}
