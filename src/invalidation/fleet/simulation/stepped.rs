//! Courses of events that seeds seldom hit, stepped by hand.

use super::super::protocol::{Answer, Command, Found, Instance, Policy, Ticket};
use super::super::{Action, Event, Fleet, Note, OUTAGE_MS, Settings};
use super::redis::Redis;
use crate::config::settings::PurgeBounds;
use crate::invalidation::journal::Order;
use crate::invalidation::outbox::Outbox;
use crate::invalidation::{Journal, Mode, PurgeId, Selector, Stamp, Subject};
use crate::semantics::Now;
use crate::semantics::key::hash128;
use crate::semantics::reuse::Validity;
use std::sync::Arc;

const RECEIPTS: usize = 3;
const TRUST_MS: u64 = 3000;
const FORGET_AFTER_MS: u64 = 3_600_000;

struct Node {
    fleet: Fleet,
    journal: Arc<Journal>,
    /// Sent at this time, and not answered.
    waiting: Vec<(Ticket, Command, u64)>,
    notes: Vec<Note>,
    forgotten: Vec<String>,
    /// Cut off, where false.
    reads: bool,
    sends: bool,
}

/// What Redis did not do.
const REFUSED: &str = "refused";

struct World {
    nodes: Vec<Node>,
    redis: Redis,
    is_up: bool,
    now_ms: u64,
    /// Appends that came to Redis or would have.
    appends: usize,
}

impl World {
    /// Nodes that trust the journal.
    fn new(policies: &[Policy]) -> Self {
        let nodes = policies.iter().enumerate().map(|(number, &policy)| Node::new(number, policy)).collect();
        let mut world = Self { nodes, redis: Redis::new(0), is_up: true, now_ms: 10_000, appends: 0 };
        world.pass(2 * TRUST_MS);
        for node in &world.nodes {
            assert!(node.journal.is_trusted(world.now()));
        }
        world
    }

    fn now(&self) -> Now {
        Now { wall_ms: 1_000_000 + i64::try_from(self.now_ms).expect("small"), mono_ms: self.now_ms }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now_ms += 10;
            self.turn();
        }
    }

    /// Redis does what was asked, and the nodes get its answers.
    fn turn(&mut self) {
        let now = self.now();
        for node in &mut self.nodes {
            node.drive(Event::Tick, now);
            for (ticket, command, sent) in std::mem::take(&mut node.waiting) {
                let is_read = matches!(command, Command::Read(_));
                if !node.sends || is_read && !node.reads {
                    node.waiting.push((ticket, command, sent));
                    continue;
                }
                self.appends += usize::from(matches!(command, Command::Append { .. } | Command::AppendUnsafe { .. }));
                if !self.is_up {
                    node.drive(Event::Failed(ticket, REFUSED.into()), now);
                } else if let Some(answer) = self.redis.run(&command, self.now_ms) {
                    node.drive(Event::Answered(ticket, answer), now);
                } else if let Command::Read(read) = &command
                    && sent + read.wait_ms <= self.now_ms
                {
                    let found = Found { read_to: (read.purges_after, read.unsafe_after), ..Found::default() };
                    node.drive(Event::Answered(ticket, Answer::Read(found)), now);
                } else {
                    node.waiting.push((ticket, command, sent));
                }
            }
        }
    }

    fn purge(&mut self, node: usize, url: &str) -> PurgeId {
        let now = self.now();
        let node = &mut self.nodes[node];
        let purge = node.journal.issue(vec![Selector::Url(url.into())], Mode::Hard, "test", now);
        let id = purge.id;
        node.drive(Event::Issued(purge), now);
        id
    }

    fn write(&mut self, node: usize, hash: u128) {
        let now = self.now();
        let node = &mut self.nodes[node];
        node.journal.invalidate_unsafe(&[hash], &subject(""), &node.journal.stamp(), now);
    }

    /// Whether what was fetched at the stamp may be used there.
    fn validity(&self, node: usize, url: &str, stamp: &Stamp) -> Validity {
        self.nodes[node].journal.validity(&subject(url), stamp)
    }

    /// Whether a node of the fleet may use what another one stored just now.
    fn shares(&self, from: usize, to: usize, url: &str) -> bool {
        let shared = self.nodes[from].journal.stamp().shared();
        self.validity(to, url, &self.nodes[to].journal.of_shared(&shared, None)) == Validity::Valid
    }
}

impl Node {
    fn new(number: usize, policy: Policy) -> Self {
        let bounds =
            PurgeBounds { receipts: RECEIPTS, map_capacity: 100_000, fold_slots: 64, recovery: std::time::Duration::from_secs(60) };
        let journal = Arc::new(Journal::with_order(&bounds, Order::Fleet { tell_unsafe: true }));
        let settings = Settings {
            name: format!("node-{number}"),
            policy,
            trust_ms: TRUST_MS,
            repair_ms: 600_000,
            forget_after_ms: FORGET_AFTER_MS,
            receipts: RECEIPTS,
        };
        let fleet = Fleet::new(settings, Instance(number as u128), Arc::clone(&journal));
        Self { fleet, journal, waiting: Vec::new(), notes: Vec::new(), forgotten: Vec::new(), reads: true, sends: true }
    }

    fn drive(&mut self, event: Event, now: Now) {
        for action in self.fleet.on(event, now) {
            match action {
                Action::Send(ticket, command) => {
                    if matches!(command, Command::Read(_)) {
                        self.waiting.retain(|(_, command, _)| !matches!(command, Command::Read(_)));
                    }
                    self.waiting.push((ticket, command, now.mono_ms));
                }
                Action::Told(_) => {}
                Action::Forgotten(name) => self.forgotten.push(name),
                Action::Note(note) => self.notes.push(note),
            }
        }
    }

    fn is_complete(&self, id: PurgeId) -> bool {
        self.journal.receipt(&id.to_string()).expect("it is kept").complete
    }
}

fn subject(url: &str) -> Subject<'_> {
    Subject { url: hash128(url.as_bytes()), url_text: url, authority: "a.test", site: "shop", keys: &[], groups: &[] }
}

#[test]
fn an_append_that_redis_lost_before_anybody_read_it_is_made_again() {
    let mut world = World::new(&[Policy::Bypass, Policy::Bypass]);
    let before_all = world.nodes[1].journal.stamp();
    let witness = world.purge(0, "a.test/witness");
    world.pass(5000);
    assert!(world.nodes[0].is_complete(witness));

    let lost_with_it = world.redis.data.clone();
    (world.nodes[0].reads, world.nodes[1].reads) = (false, false);
    let lost = world.purge(0, "a.test/lost");
    world.pass(20);
    assert_eq!(world.nodes[0].fleet.unappended(), 0, "Redis has taken it");
    world.redis.become_another(1, lost_with_it, 0);
    (world.nodes[0].reads, world.nodes[1].reads) = (true, true);
    world.pass(500);
    let epoch = world.nodes[0].journal.epoch();
    let next = world.purge(0, "a.test/next");
    world.pass(10_000);
    assert_eq!((world.nodes[0].journal.epoch(), world.nodes[0].is_complete(next)), (epoch, true), "nothing that was read is missing");
    assert!(world.nodes[0].is_complete(lost));
    assert_eq!(world.validity(1, "a.test/lost", &before_all), Validity::Purged, "it was told as complete");
}

#[test]
fn purges_that_cannot_be_kept_are_made_up_for_by_one_of_everything() {
    let mut world = World::new(&[Policy::Bypass, Policy::Bypass]);
    let before_all = world.nodes[1].journal.stamp();
    world.is_up = false;
    for number in 0..4 * RECEIPTS {
        world.purge(0, &format!("a.test/{number}"));
        world.pass(300);
    }
    assert!(!world.shares(1, 0, "a.test/0"), "purged here, and nobody else knows");
    world.is_up = true;
    world.pass(10_000);
    assert_eq!(world.validity(1, "a.test/0", &before_all), Validity::Purged, "the fleet was told in the end");
    assert_eq!(world.nodes[0].notes.iter().filter(|note| **note == Note::StoodIn).count(), 1);
    assert!(world.shares(1, 0, "a.test/0"), "what others fetched since may be used");
    assert_eq!(world.nodes[0].fleet.unappended(), 0);
}

#[test]
fn writes_that_cannot_be_kept_are_made_up_for_by_one_of_everything() {
    let mut world = World::new(&[Policy::Bypass, Policy::Bypass]);
    let before_all = world.nodes[1].journal.stamp();
    world.is_up = false;
    for hash in 0..Outbox::MAX as u128 {
        world.write(0, hash);
    }
    world.write(0, hash128(b"a.test/"));
    world.pass(1000);
    world.is_up = true;
    world.pass(10_000);
    assert_eq!(world.validity(1, "a.test/", &before_all), Validity::Purged);
    assert_eq!(world.nodes[0].notes.iter().filter(|note| **note == Note::StoodIn).count(), 1);
    assert!(world.shares(1, 0, "a.test/"), "what others fetched since may be used");
    assert_eq!(world.nodes[0].journal.untold().0, 0);
}

#[test]
fn a_redis_that_takes_nothing_is_asked_seldom() {
    let mut world = World::new(&[Policy::Bypass]);
    world.is_up = false;
    for hash in 0..5000 {
        world.write(0, hash);
    }
    world.purge(0, "a.test/1");
    world.purge(0, "a.test/2");
    world.appends = 0;
    let (mut turns, end_ms) = (0, world.now_ms + 10_000);
    while world.now_ms < end_ms {
        // As the driver waits.
        world.now_ms = world.nodes[0].fleet.wake_at().clamp(world.now_ms, end_ms);
        world.turn();
        turns += 1;
    }
    assert!(turns < 500, "{turns} turns in ten seconds");
    assert!((10..1500).contains(&world.appends), "{} appends in ten seconds", world.appends);
}

#[test]
fn before_the_journal_is_heard_of_nothing_but_the_heartbeat_wakes() {
    let mut node = Node::new(0, Policy::Bypass);
    let now = Now { wall_ms: 0, mono_ms: 50_000 };
    node.drive(Event::Tick, now);
    let purge = node.journal.issue(vec![Selector::Everything], Mode::Hard, "test", now);
    let id = purge.id.to_string();
    node.drive(Event::Issued(purge), now);
    assert!(node.fleet.wake_at() > now.mono_ms, "the heartbeat is under way");
    assert!(node.journal.receipt(&id).and_then(|receipt| receipt.reason).is_some_and(|reason| reason.contains("not heard of")));
}

#[test]
fn what_a_node_drops_because_it_was_trimmed_counts_as_a_wide_purge() {
    let mut world = World::new(&[Policy::Bypass, Policy::Bypass]);
    assert!(!world.nodes[1].journal.is_recovering(&subject("a.test/"), world.now()), "it has just begun");
    world.nodes[1].sends = false;
    world.pass(OUTAGE_MS / 2);
    world.purge(0, "a.test/1");
    world.purge(0, "a.test/2");
    world.pass(100);
    world.redis.trim(1);
    world.nodes[1].sends = true;
    world.pass(5000);
    assert!(world.nodes[1].notes.contains(&Note::BehindTrim), "{:?}", world.nodes[1].notes);
    assert!(world.nodes[1].journal.is_recovering(&subject("a.test/"), world.now()));
}

#[test]
fn a_node_is_forgotten_when_redis_has_noted_it() {
    let serves = Policy::Serve { at_most_ms: Some(FORGET_AFTER_MS - 4000), every_ms: 0 };
    let mut world = World::new(&[Policy::Bypass, serves, serves]);
    world.nodes[1].sends = false;
    let id = world.purge(0, "a.test/");
    world.is_up = false;
    world.pass(200);
    let now = world.now();
    world.nodes[0].drive(Event::Forget("node-1".into()), now);
    world.pass(1000);
    assert!(world.nodes[0].forgotten.is_empty(), "nobody was told");
    world.is_up = true;
    world.pass(1000);
    assert_eq!(world.nodes[0].forgotten, ["node-1"]);
    world.pass(2 * TRUST_MS);
    assert!(world.nodes[0].is_complete(id));
    world.is_up = false;
    let now = world.now();
    world.nodes[0].drive(Event::Forget("node-2".into()), now);
    world.pass(10_000);
    world.is_up = true;
    world.pass(1000);
    assert_eq!(world.nodes[0].forgotten, ["node-1"], "whoever asked has been told that it failed");
    let now = world.now();
    world.nodes[0].drive(Event::Forget("node-1".into()), now);
    assert_eq!(world.nodes[0].forgotten, ["node-1", "node-1"], "there is nothing to do");
}

#[test]
fn a_node_that_is_back_in_another_life_is_not_forgotten() {
    let serves = Policy::Serve { at_most_ms: Some(FORGET_AFTER_MS - 4000), every_ms: 0 };
    let mut world = World::new(&[Policy::Bypass, serves]);
    world.nodes[0].sends = false;
    let mut again = Node::new(1, serves);
    again.fleet.instance = Instance(7);
    world.nodes[1] = again;
    world.pass(3 * TRUST_MS);
    assert!(world.nodes[1].journal.is_trusted(world.now()), "it has its name again");
    let now = world.now();
    world.nodes[0].drive(Event::Forget("node-1".into()), now);
    world.nodes[0].sends = true;
    world.pass(1000);
    assert_eq!(world.nodes[0].forgotten, ["node-1"], "the life that was known");
    world.nodes[1].sends = false;
    let id = world.purge(0, "a.test/");
    world.pass(3 * TRUST_MS);
    assert!(!world.nodes[0].is_complete(id), "it may serve");
}
