//! Collapsed forwarding through the running binary (DESIGN section 5): who waits, who shares, who goes on alone, and
//! what happens to all of them when somebody leaves, fails or is slow.
//!
//! Nothing here waits for time to pass: answers of the origin stand behind gates, and the proxy's own metrics say when
//! everybody is where the test wants them.

mod crowd;
mod failures;
mod leaving;
mod pinned;
mod purges;
mod ranges;
mod sharing;
mod slow;
mod stale;

use crate::support::client::{Answer, Client};
use crate::support::origin::{Gate, Origin, PATIENCE, Recorded, Script, Step};
use crate::support::server::Tiercel;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WAITING: &str = "tiercel_coalesce_waiting";
const CONNECTIONS: &str = "tiercel_connections";

/// An origin, and a proxy in front of it.
struct Stage {
    origin: Origin,
    proxy: Tiercel,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// `respond` gets the number of the request, from 0.
    fn new(respond: impl Fn(usize, &Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::with("", respond)
    }

    /// With further lines of configuration, dotted keys all.
    fn with(config: &str, respond: impl Fn(usize, &Recorded) -> Script + Send + Sync + 'static) -> Self {
        let numbers = AtomicUsize::new(0);
        let origin = Origin::start(move |request| respond(numbers.fetch_add(1, Ordering::SeqCst), request));
        let folder = tempfile::tempdir().expect("a folder for the configuration");
        let proxy = Tiercel::with_config(&configuration(&origin.url(), config), folder.path());
        Self { origin, proxy, _folder: folder }
    }

    /// Sends a request on a connection of its own; the answer is left to be read.
    async fn send(&self, method: &str, path: &str, fields: &[&str]) -> Client {
        let mut client = Client::connect(self.proxy.http).await;
        let lines: String = fields.iter().map(|line| format!("{line}\r\n")).collect();
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n")).await;
        client
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[]).await.answer(false).await.expect("an answer")
    }

    /// The leader's connection: its request has reached the origin, as its `count`th for this path.
    async fn lead(&self, path: &str, fields: &[&str], count: usize) -> Client {
        let client = self.send("GET", path, fields).await;
        self.origin.until("the leader's request", |origin| origin.count(path) == count).await;
        client
    }

    /// Followers of the only flight: they wait for its head.
    async fn follow(&self, path: &str, fields: &[&str], count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.send("GET", path, fields).await);
        }
        self.until_metric(WAITING, count as u64).await;
        clients
    }

    /// A leader and its followers, all of them waiting for the head of the first answer.
    async fn line_up(&self, path: &str, followers: usize) -> Vec<Client> {
        let mut clients = vec![self.lead(path, &[], 1).await];
        clients.extend(self.follow(path, &[], followers).await);
        clients
    }

    /// A sample of the metrics, 0 where there is none.
    async fn metric(&self, series: &str) -> u64 {
        let mut client = Client::connect(self.proxy.admin).await;
        let answer = client.ask(format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", self.proxy.admin)).await;
        let sample = answer.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        sample.map_or(0, |value| value.parse::<f64>().expect("a number") as u64)
    }

    async fn until_metric(&self, series: &str, want: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.metric(series).await;
            if now == want {
                return;
            }
            assert!(Instant::now() < deadline, "{series} stays {now}, {want} was expected");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn purge(&self, body: &Value) {
        let body = body.to_string();
        let head = format!("POST /v1/purge HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n", self.proxy.admin);
        let mut client = Client::connect(self.proxy.admin).await;
        let answer = client.ask(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// A line of /proc/PID/status, in bytes.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).expect("it runs");
        let value = status.lines().find_map(|text| text.strip_prefix(line)).expect("the kernel tells it");
        1024 * value.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().expect("a number of KiB")
    }
}

fn configuration(upstream: &str, more: &str) -> String {
    format!("log.access.target = \"off\"\nupstreams.default.endpoints = [\"{upstream}\"]\nsites.default.upstream = \"default\"\n{more}\n")
}

/// The answers to requests that were sent.
async fn answers(clients: impl IntoIterator<Item = Client>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for mut client in clients {
        answers.push(client.answer(false).await.expect("an answer"));
    }
    answers
}

/// Storable for a minute, if it says nothing else.
fn fresh(body: impl Into<Vec<u8>>) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=60")
}

/// A fresh answer of which half is sent, and the rest when the gate opens.
fn in_halves(body: &str, gate: &Gate) -> Script {
    let (first, second) = body.split_at(body.len() / 2);
    let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {}\r\n\r\n{first}", body.len());
    Script::raw(head).then(Step::Wait(gate.clone())).then(Step::Bytes(second.into()))
}

/// Bytes that tell where they are.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}
