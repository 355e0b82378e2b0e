//! What happens to nodes, links and Redis meanwhile, and that the fleet recovers from each of it.

use super::load::{ask, judge};
use super::purges::purge;
use super::world::Resource;
use super::{Fire, Setup};
use crate::support::client::Client;
use crate::support::fleet::Fleet;
use crate::support::link;
use crate::support::redis::{Redis, Reply, Restart, Sentinels};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// How long the fleet has to be whole again after a trouble.
const RECOVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    NodeStoppedShortly,
    NodeStoppedBeyondTrust,
    NodeKilled,
    LinkCut,
    LinkHeld,
    LinkSlow,
    LinkGarbled,
    AllLinksCut,
    RedisPaused,
    RedisKilledAndEmpty,
    RedisFromOldSnapshot,
    /// The same, while a node has not seen what is lost by it.
    RedisFromOldSnapshotBehindANode,
    RedisFlushed,
    StreamsTrimmed,
    /// An entry is taken out of the journal's stream before a node has read it, and others come behind it.
    EntryTakenOut,
    /// Somebody puts entries of their own into the journal's streams.
    ForeignEntries,
    MemoryFull,
    MemoryEvicting,
    FailoverToLaggingReplica,
}

use Trouble::*;

impl Trouble {
    pub fn of(setup: Setup) -> Vec<Self> {
        let nodes = [NodeStoppedShortly, NodeStoppedBeyondTrust, NodeKilled];
        let links = [LinkCut, LinkHeld, LinkSlow, LinkGarbled, AllLinksCut];
        let servers = [
            RedisPaused,
            RedisKilledAndEmpty,
            RedisFromOldSnapshot,
            RedisFromOldSnapshotBehindANode,
            RedisFlushed,
            StreamsTrimmed,
            EntryTakenOut,
            ForeignEntries,
            MemoryFull,
            MemoryEvicting,
        ];
        match setup {
            Setup::Alone => nodes.to_vec(),
            Setup::Standalone => [&nodes[..], &links, &servers].concat(),
            Setup::Cluster => [&nodes[..], &[RedisPaused, StreamsTrimmed]].concat(),
            Setup::Sentinel => [&nodes[..], &[RedisPaused, RedisFlushed, StreamsTrimmed, FailoverToLaggingReplica]].concat(),
        }
    }
}

/// What troubles are made to.
pub struct Stage {
    pub fire: Arc<Fire>,
    pub fleet: Fleet,
    /// The master first; of a cluster all masters.
    pub redis: Vec<Redis>,
    pub sentinels: Option<Sentinels>,
    pub random: StdRng,
    pub clients: Handle,
    /// Of [`Stage::warm`], what nodes counted that were killed since.
    pub warm: HashMap<&'static str, f64>,
}

impl Stage {
    /// Makes one trouble after the other until the fire is over, each of them as often as any other.
    pub fn trouble_until_over(&mut self) {
        let mut round = Vec::new();
        while !self.fire.is_over() {
            if round.is_empty() {
                round = self.fire.plan.troubles.clone();
                round.shuffle(&mut self.random);
                if round.is_empty() {
                    self.fire.wait(Duration::from_millis(50));
                    continue;
                }
            }
            let trouble = round.pop().expect("it is not empty");
            *self.fire.trouble.lock() = format!("{trouble:?}");
            self.fire.tell(format!("{trouble:?}"));
            self.make(trouble);
            self.recover(trouble);
            self.fire.troubles.count(format!("{trouble:?}"));
            *self.fire.trouble.lock() = format!("after {trouble:?}");
            self.fire.wait(Duration::from_millis(500));
        }
        self.end();
    }

    fn make(&mut self, trouble: Trouble) {
        if self.sentinels.is_some() {
            // A pause before may have been one too many for the Sentinels.
            self.until_replicated();
        }
        let node = self.random.random_range(0..self.fleet.nodes.len());
        let beyond_trust = self.fire.plan.trust + Duration::from_millis(self.random.random_range(300..1500));
        match trouble {
            NodeStoppedShortly => {
                let shortly = Duration::from_millis(self.random.random_range(50..700));
                self.stop_node(node, shortly);
            }
            NodeStoppedBeyondTrust => self.stop_node_and_purge(node, beyond_trust),
            NodeKilled => self.kill_node_until_others_help(node),
            LinkCut => self.link(node, link::Trouble::Cut, beyond_trust),
            LinkHeld => self.link(node, link::Trouble::Held, beyond_trust),
            LinkSlow => {
                let delay = Duration::from_millis(self.random.random_range(20..300));
                self.link(node, link::Trouble::Slow(delay), beyond_trust);
            }
            LinkGarbled => self.link(node, link::Trouble::Garbled, beyond_trust),
            AllLinksCut => {
                self.fleet.nodes.iter().filter_map(|node| node.link.as_ref()).for_each(|link| link.make(link::Trouble::Cut));
                self.fire.wait(beyond_trust);
            }
            RedisPaused => {
                let master = self.master();
                master.pause();
                self.fire.wait(beyond_trust);
                master.resume();
            }
            RedisKilledAndEmpty => self.restart(Restart::Empty, Duration::from_millis(200)),
            RedisFromOldSnapshot => {
                self.master().save();
                self.fire.wait(Duration::from_millis(800));
                self.restart(Restart::Saved, Duration::from_millis(10));
            }
            RedisFromOldSnapshotBehindANode => {
                self.master().save();
                let link = self.fleet.nodes[node].link.as_ref().expect("a link");
                link.make(link::Trouble::Held);
                // Not for so long that the node loses its trust.
                self.fire.wait(self.fire.plan.trust / 3);
                // What was held is lost with the connection.
                link.make(link::Trouble::Cut);
                self.redis[0].kill();
                link.mend();
                self.redis[0].start_again(Restart::Saved);
            }
            RedisFlushed => self.master().flush_all(),
            StreamsTrimmed => self.trim(node, beyond_trust),
            EntryTakenOut => self.take_entry_out(node),
            ForeignEntries => {
                for stream in streams(self.master()) {
                    self.master().ask(&["XADD", &stream, "*", "message", "hello"]);
                }
                self.fire.wait(beyond_trust);
            }
            MemoryFull => self.limit("noeviction", beyond_trust),
            MemoryEvicting => self.limit("allkeys-random", beyond_trust),
            FailoverToLaggingReplica => self.fail_over(),
        }
    }

    /// The server that has the journal; not to be asked for while one is paused.
    fn master(&self) -> &Redis {
        if self.sentinels.is_some() {
            return &self.redis[0];
        }
        self.redis.iter().find(|redis| has_streams(redis)).unwrap_or(&self.redis[0])
    }

    fn stop_node(&self, node: usize, how_long: Duration) {
        self.rest(node, true);
        self.fleet.nodes[node].pause();
        self.fire.wait(how_long);
        self.fleet.nodes[node].resume();
        self.rest(node, false);
    }

    /// A node sleeps past its trust. What it holds is purged meanwhile, and asked for before it wakes up: the first that it does
    /// then is to answer.
    fn stop_node_and_purge(&self, node: usize, how_long: Duration) {
        let fire = &self.fire;
        let first = self.fleet.nodes.len() * 7;
        let held: Vec<_> = fire.world.resources.iter().skip(first).take(12).collect();
        self.clients.block_on(async {
            for resource in &held {
                ask(fire, &mut None, node, resource, true).await;
            }
        });
        self.rest(node, true);
        self.fleet.nodes[node].pause();
        fire.wait(how_long);
        let others: Vec<_> = (0..fire.nodes.len()).filter(|other| *other != node).collect();
        self.clients.block_on(async {
            if let Some(&other) = others.first() {
                // Each waits for the node that sleeps: together they wait once.
                let purges = held.iter().map(|resource| {
                    let (fire, prepared) = (fire.clone(), fire.world.prepare_url(resource.number, true));
                    async move { purge(&fire, other, prepared).await }
                });
                purges.collect::<JoinSet<()>>().join_all().await;
            }
            let mut asked = Vec::new();
            for resource in &held {
                let demand = fire.world.demand(resource, node);
                let Some(mut client) = Client::try_connect(fire.nodes[node].http).await else { continue };
                client.send(format!("GET {} HTTP/1.1\r\nHost: {}\r\nX-V: 1\r\n\r\n", resource.path, resource.host)).await;
                asked.push((*resource, demand, client));
            }
            self.fleet.nodes[node].resume();
            for (resource, demand, mut client) in asked {
                if let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(10), client.answer(false)).await {
                    fire.troubles.count("answers of a node that woke up");
                    judge(fire, node, resource, demand, &answer);
                }
            }
        });
        self.rest(node, false);
    }

    /// Where nodes have only each other: again, should a purge of everything have come between each time.
    fn kill_node_until_others_help(&mut self, node: usize) {
        let found = self.found();
        for _ in 0..KILLS_MAX {
            self.kill_node(node);
            if !self.fire.plan.warms() || self.found() > found || self.fire.is_over() {
                return;
            }
        }
    }

    fn kill_node(&mut self, node: usize) {
        self.rest(node, true);
        // What it counted goes with it.
        for outcome in WARM {
            *self.warm.entry(outcome).or_default() += self.fleet.nodes[node].metric(WARM_TOTAL, &[&labelled(outcome)]).unwrap_or(0.0);
        }
        self.fleet.nodes[node].kill();
        // Not before: a connection that is made until then ends with this life of it.
        self.fire.world.forget(node);
        self.fire.wait(Duration::from_millis(200));
        // Others hold then what it owns, and it finds that there.
        for other in (0..self.fleet.nodes.len()).filter(|other| *other != node) {
            self.ask_for_all(other);
        }
        self.fleet.nodes[node].start();
        self.fleet.nodes[node].until_ready();
        self.ask_for_all(node);
        self.rest(node, false);
    }

    /// A client goes through everything, where nodes ask each other.
    fn ask_for_all(&self, node: usize) {
        let fire = &self.fire;
        let all = fire.world.resources.iter().filter(|_| fire.plan.shield);
        self.clients.block_on(async {
            let mut client = None;
            for resource in all {
                ask(fire, &mut client, node, resource, true).await;
            }
        });
    }

    /// Answers of others to nodes that started.
    pub fn found(&self) -> f64 {
        self.warm().into_iter().find(|(outcome, _)| *outcome == "found").map_or(0.0, |(_, count)| count)
    }

    /// Questions of nodes that started for what others hold of their keys, by outcome.
    pub fn warm(&self) -> Vec<(&'static str, f64)> {
        let since_start = |outcome: &str| self.fleet.sum(WARM_TOTAL, &[&labelled(outcome)]);
        WARM.map(|outcome| (outcome, self.warm.get(outcome).copied().unwrap_or_default() + since_start(outcome))).to_vec()
    }

    fn rest(&self, node: usize, rests: bool) {
        self.fire.nodes[node].resting.store(rests, SeqCst);
    }

    fn link(&self, node: usize, trouble: link::Trouble, how_long: Duration) {
        self.fleet.nodes[node].link.as_ref().expect("a link").make(trouble);
        self.fire.wait(how_long);
    }

    fn restart(&mut self, with: Restart, after: Duration) {
        self.redis[0].kill();
        self.fire.wait(after);
        self.redis[0].start_again(with);
    }

    /// A node is cut off, and finds that what it missed was trimmed.
    fn trim(&self, node: usize, how_long: Duration) {
        let link = self.fleet.nodes[node].link.as_ref();
        link.inspect(|link| link.make(link::Trouble::Cut));
        self.fire.wait(how_long);
        for stream in streams(self.master()) {
            self.master().ask(&["XTRIM", &stream, "MAXLEN", "=", "1"]);
            self.fire.troubles.count("streams trimmed");
        }
    }

    /// A node that holds something does not hear that it is purged, for somebody takes that out of the stream before the node is
    /// connected again; later purges it does hear of.
    fn take_entry_out(&self, node: usize) {
        let fire = &self.fire;
        let (issuer, first) = ((node + 1) % self.fleet.nodes.len(), self.fleet.nodes.len() * 7);
        let held: Vec<_> = fire.world.resources.iter().skip(first).take(6).collect();
        let link = self.fleet.nodes[node].link.as_ref().expect("a link");
        self.clients.block_on(async {
            for resource in &held {
                ask(fire, &mut None, node, resource, true).await;
            }
        });
        link.make(link::Trouble::Cut);
        // Their answers wait for the node that is cut off.
        for resource in &held {
            let (fire, prepared) = (fire.clone(), fire.world.prepare_url(resource.number, true));
            self.clients.spawn(async move { purge(&fire, issuer, prepared).await });
        }
        fire.wait(fire.plan.trust / 4);
        let later = &fire.world.resources[first + held.len()];
        let (own, prepared) = (fire.clone(), fire.world.prepare_url(later.number, true));
        self.clients.spawn(async move { purge(&own, issuer, prepared).await });
        fire.wait(fire.plan.trust / 4);
        let entries = |stream: &str| self.master().ask(&["XREVRANGE", stream, "+", "-", "COUNT", "20"]).list().to_vec();
        for stream in streams(self.master()).iter().filter(|stream| stream.contains(":purges:")) {
            // Not the last: those who have read it would miss it.
            for entry in entries(stream).iter().skip(1).filter(|entry| entry.list()[1].list().iter().any(|word| names(word, &held))) {
                self.master().ask(&["XDEL", stream, &entry.list()[0].text()]);
                fire.troubles.count("entries taken out");
            }
        }
        link.mend();
        fire.wait(fire.plan.trust);
    }

    /// Less memory than is used, for a while.
    fn limit(&self, policy: &str, how_long: Duration) {
        let used: u64 = self.master().info("memory", "used_memory").and_then(|used| used.parse().ok()).expect("a number");
        self.master().set("maxmemory-policy", policy);
        self.master().set("maxmemory", &(used.saturating_sub(100_000)).to_string());
        self.fire.wait(how_long);
        self.master().set("maxmemory", "0");
        self.master().set("maxmemory-policy", "noeviction");
    }

    /// The replica misses what comes, and is made the master.
    fn fail_over(&mut self) {
        self.redis[1].stop_following();
        self.fire.wait(Duration::from_millis(500));
        self.redis[0].kill();
        self.sentinels.as_ref().expect("sentinels").until_master(&self.redis[1]);
        self.redis[1].follow_again();
        self.redis.swap(0, 1);
        self.redis[1].start_again(Restart::Empty);
        // It may have been the one that lagged before, and its file says so.
        self.redis[1].follow_again();
        self.until_replicated();
    }

    /// Waits until the first server is the master, as the Sentinels see it, and the other one follows it.
    fn until_replicated(&mut self) {
        let sentinels = self.sentinels.as_ref().expect("sentinels");
        let deadline = Instant::now() + RECOVERY;
        loop {
            // On a busy machine they may change their minds meanwhile.
            let master = sentinels.master();
            self.redis.sort_by_key(|redis| master != Some(redis.address()));
            let role = |redis: &Redis| redis.info("replication", "role");
            let roles = [role(&self.redis[0]), role(&self.redis[1])];
            let follows = self.redis[1].info("replication", "master_link_status").as_deref() == Some("up");
            if roles[0].as_deref() == Some("master") && follows || self.fire.is_over() {
                return;
            }
            assert!(Instant::now() < deadline, "nobody follows:\n{}\n{}", self.redis[0].log(), self.redis[1].log());
            // Sentinel would do that in its own time, some ten seconds later.
            if roles.iter().all(|role| role.as_deref() == Some("master")) {
                let address = self.redis[0].address();
                let _ = self.redis[1].try_ask(&["REPLICAOF", &address.ip().to_string(), &address.port().to_string()]);
            }
            self.fire.wait(Duration::from_millis(300));
        }
    }

    /// Ends every trouble, and waits until each node can have a purge acknowledged by all.
    fn recover(&self, trouble: Trouble) {
        for link in self.fleet.nodes.iter().filter_map(|node| node.link.as_ref()) {
            link.mend();
        }
        if self.fire.plan.setup == Setup::Alone {
            return;
        }
        let deadline = Instant::now() + RECOVERY;
        for node in &self.fleet.nodes {
            loop {
                if self.fire.is_over() {
                    return;
                }
                let answer = node.admin("POST", "/v1/purge", r#"{"tags": ["nothing-has-this"], "wait": "fleet"}"#);
                if answer.as_ref().is_some_and(|(status, receipt)| *status == 200 && receipt["complete"] == true) {
                    break;
                }
                if Instant::now() > deadline {
                    let told = format!("{} has not recovered from {trouble:?}: {answer:?}\n{}", node.name, last_lines(&node.log()));
                    self.fire.failed.count("not recovered");
                    return self.fire.tell(told);
                }
                self.fire.wait(Duration::from_millis(50));
            }
        }
    }

    /// All nodes are there at the end, whatever happened to them.
    fn end(&mut self) {
        for node in &mut self.fleet.nodes {
            if !node.runs() {
                self.fire.failed.count("a node ended by itself");
                self.fire.tell(format!("{} ended:\n{}", node.name, last_lines(&node.log())));
            }
        }
        if self.fire.plan.is_verbose || self.fire.failed.total() > 0 {
            self.fleet.nodes.iter().for_each(|node| eprintln!("{}:\n{}", node.name, last_lines(&node.log())));
        }
    }
}

const KILLS_MAX: usize = 5;
const WARM_TOTAL: &str = "tiercel_shield_warm_total";
const WARM: [&str; 6] = ["found", "nothing", "rejected", "late", "failed", "bypassed"];

fn labelled(outcome: &str) -> String {
    format!("outcome=\"{outcome}\"")
}

/// Whether the data of an entry is of a purge of one of these.
fn names(data: &Reply, resources: &[&Resource]) -> bool {
    let text = data.text();
    resources.iter().any(|resource| text.contains(&format!("\"{}{}\"", resource.host, resource.path)))
}

/// Looks at all keys of a Redis, and gives their number. All expire but the journal's: its record, the set of its epochs, and two
/// streams that are trimmed.
pub fn expires_but_for_the_journal(redis: &Redis) -> usize {
    let keys = scan(redis, &[]);
    let mut connection = redis.connect().expect("it runs");
    // -2: it has expired meanwhile.
    let mut lives = |key: &String| connection.ask(&["PTTL", key]).expect("an answer").integer();
    let stay: Vec<_> = keys.iter().filter(|key| lives(key) == -1).collect();
    let are_known = stay.iter().all(|key| key.starts_with("tiercel:{journal}"));
    assert!(are_known && stay.len() <= 4, "of {} keys these never expire: {stay:?}", keys.len());
    keys.len()
}

/// Keys of all streams of a Redis.
fn streams(redis: &Redis) -> Vec<String> {
    scan(redis, &["TYPE", "stream"])
}

/// All keys of a Redis of which this holds; those found so far where it goes away.
fn scan(redis: &Redis, which: &[&str]) -> Vec<String> {
    let (mut keys, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let Ok(reply) = redis.try_ask(&[&["SCAN", &cursor, "COUNT", "1000"], which].concat()) else { return keys };
        keys.extend(reply.list()[1].list().iter().map(Reply::text));
        cursor = reply.list()[0].text();
        if cursor == "0" {
            return keys;
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Whether a Redis has a stream: the fleet's journal is there.
pub fn has_streams(redis: &Redis) -> bool {
    let reply = redis.ask(&["SCAN", "0", "COUNT", "100000", "TYPE", "stream"]);
    reply.list().get(1).is_some_and(|keys| matches!(keys, Reply::List(keys) if !keys.is_empty()))
}

pub fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

#[test]
fn no_setup_meets_a_trouble_that_it_has_nothing_for() {
    let needs_links = [LinkCut, LinkHeld, LinkSlow, LinkGarbled, AllLinksCut, RedisFromOldSnapshotBehindANode, EntryTakenOut];
    let (alone, standalone, sentinel) = (Trouble::of(Setup::Alone), Trouble::of(Setup::Standalone), Trouble::of(Setup::Sentinel));
    assert!(needs_links.iter().all(|trouble| standalone.contains(trouble) && !sentinel.contains(trouble) && !alone.contains(trouble)));
    assert!(alone.iter().all(|trouble| matches!(trouble, NodeStoppedShortly | NodeStoppedBeyondTrust | NodeKilled)));
    assert!(sentinel.contains(&FailoverToLaggingReplica) && !standalone.contains(&FailoverToLaggingReplica));
}
