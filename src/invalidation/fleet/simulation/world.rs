//! The world of the simulation: nodes with memory caches and flights, a Redis that fails in every way that we know, and
//! the network between them. One thread, virtual time, everything drawn from one seed.

use super::super::codec::Fields;
use super::super::protocol::{Answer, Command, Found, Instance, Policy, Read, Ticket};
use super::super::{Action, Event, Faults, Fleet, Note, Settings};
use super::chance::Chance;
use super::redis::{Data, Redis};
use crate::config::settings::PurgeBounds;
use crate::invalidation::journal::Order;
use crate::invalidation::kind::Kinds;
use crate::invalidation::model::LedgerFaults;
use crate::invalidation::selector::{group_hash, key_hash, union};
use crate::invalidation::{CheckedUpTo, Journal, Mode, Position, PurgeId, Selector, Stamp, Subject};
use crate::semantics::Now;
use crate::semantics::key::hash128;
use crate::semantics::reuse::Validity;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

const TRUST_MS: u64 = 3000;
const NODES: usize = 3;

/// Site, authority, path and query.
const RESOURCES: [(&str, &str, &str); 5] = [
    ("shop", "a.test", "/"),
    ("shop", "a.test", "/x"),
    ("shop", "a.test", "/x/y?q=1"),
    ("blog", "b.test", "/x"),
    ("blog", "c.test:8080", "/é/z"),
];
const NAMES: [&str; 3] = ["red", "green", "blue"];

/// What is done wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    StampAtFetchEnd,
    OwnEntryOutOfOrder,
    AcknowledgedBeforeApply,
    SoftOverwritesHard,
    PromotedUnchecked,
    PreviousIgnored,
    ResumedUntrusted,
}

/// What a response is about, and when its fetch (or last validation) began, in [`World::moment`]s.
#[derive(Debug, Clone)]
struct Facts {
    resource: usize,
    began: u64,
    began_ms: u64,
    keys: Vec<usize>,
    groups: Vec<usize>,
    hashes: [Rc<[u128]>; 2],
}

impl Facts {
    fn new(resource: usize, (began, began_ms): (u64, u64), keys: Vec<usize>, groups: Vec<usize>) -> Self {
        let origin = format!("http://{}", RESOURCES[resource].1);
        let key_hashes = keys.iter().map(|&key| key_hash(NAMES[key])).collect();
        let group_hashes = groups.iter().map(|&group| group_hash(&origin, NAMES[group])).collect();
        Self { resource, began, began_ms, keys, groups, hashes: [key_hashes, group_hashes] }
    }

    fn matches(&self, selector: &Selector) -> bool {
        let (site, authority, path) = RESOURCES[self.resource];
        let text = || format!("{authority}{path}");
        match selector {
            Selector::Url(url) => *url == text(),
            Selector::Key(key) => self.keys.iter().any(|&own| NAMES[own] == key),
            Selector::Group { origin, group } => {
                *origin == format!("http://{authority}") && self.groups.iter().any(|&own| NAMES[own] == group)
            }
            Selector::Prefix(prefix) => text().starts_with(prefix.as_str()),
            Selector::Host(host) => host == authority,
            Selector::Site(name) => name == site,
            Selector::Everything => true,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct TierEntry {
    facts: Facts,
    stamp: Stamp,
}

#[derive(Debug)]
struct Stored {
    facts: Facts,
    stamp: Stamp,
    checked: CheckedUpTo,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    resource: usize,
    /// When it came.
    born: u64,
}

/// What sort of trouble a seed makes: few kinds at a time get further than all at once.
#[derive(Debug)]
struct Temper {
    /// Of [`World::disturb`], as bits.
    kinds: u64,
    /// One message in so many is lost, or late; 0 for none.
    lost: u64,
    late: u64,
    /// One answer in so many is not what it should be.
    damaged: u64,
    /// Nodes are cut off, or paused, at most so long; and Redis is down.
    long_ms: u64,
    outage_ms: u64,
    resources: usize,
}

impl Temper {
    fn new(chance: &mut Chance) -> Self {
        let kinds = if chance.one_in(4) { u64::MAX } else { chance.next() };
        Self {
            kinds,
            lost: chance.of([0, 200, 60, 20]),
            late: chance.of([0, 100, 25, 8]),
            damaged: chance.of([0, 0, 200, 40]),
            long_ms: chance.of([1500, 5000, 9000, 20_000]),
            outage_ms: chance.of([100, 1500, 5000, 9000]),
            resources: chance.of([1, 2, 4, RESOURCES.len()]),
        }
    }
}

#[derive(Debug)]
struct Flight {
    number: u64,
    facts: Facts,
    stamp: Stamp,
    /// What a 304 would keep.
    refreshes: Option<Rc<Stored>>,
    waiters: Vec<Request>,
}

/// What a running process holds.
struct Process {
    /// None where it is alone.
    fleet: Option<Fleet>,
    journal: Arc<Journal>,
    memory: [Option<Rc<Stored>>; RESOURCES.len()],
    flights: Vec<Flight>,
    /// Own purges that may have hit much, and when they were issued on the boot-time clock.
    wide: Vec<(Selector, u64)>,
}

/// What a process is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Member,
    /// Somebody starts it under the name of a member, in some worlds.
    Twin,
    /// It has a journal of its own.
    Alone,
}

struct Node {
    role: Role,
    name: String,
    policy: Policy,
    /// Its boot-time clock against the world's.
    clock_ms: u64,
    life: u64,
    process: Option<Process>,
    paused_until: u64,
    /// Planted: it was paused and goes on without a look at its trust.
    careless: bool,
    cut_until: u64,
    wakes_at: u64,
    /// What came while it was paused.
    inbox: Vec<What>,
}

/// Something on its way, or a time to come.
#[derive(Debug)]
enum What {
    ToRedis { node: usize, life: u64, ticket: Ticket, command: Command },
    ToNode { node: usize, life: u64, ticket: Ticket, answer: Result<Answer, &'static str> },
    ReadEnds { node: usize, life: u64, ticket: Ticket },
    Wake { node: usize, life: u64 },
    FetchEnds { node: usize, life: u64, flight: u64 },
    TierAsked { node: usize, life: u64, epoch: u64, request: Request },
    TierAnswers { node: usize, life: u64, request: Request, entry: Option<TierEntry> },
    TierPut { entry: TierEntry },
}

struct Logged {
    id: PurgeId,
    node: usize,
    life: u64,
    selectors: Vec<Selector>,
    mode: Mode,
    issued: u64,
    complete: Option<u64>,
}

pub(super) struct World {
    fault: Fault,
    serve: bool,
    chance: Chance,
    temper: Temper,
    now_ms: u64,
    /// Orders everything that happens.
    moment: u64,
    redis: Redis,
    servers: u64,
    /// Refuses and answers nothing until then.
    redis_down_until: u64,
    /// Answers nothing until then.
    redis_paused_until: u64,
    /// Fails over when it has answered the next append, to a server that has not got that.
    loses_next_append: bool,
    replica: (u64, Data),
    snapshot: Data,
    parked: Vec<(usize, u64, Ticket, Read)>,
    nodes: Vec<Node>,
    coming: BTreeMap<(u64, u64), What>,
    purges: Vec<Logged>,
    writes: Vec<(usize, u64, Selector, u64)>,
    /// Writes up to this moment, made since all was calm, are known on every node.
    told_writes: u64,
    /// Purges that nobody here can read: their places, and when they were made.
    later_versions: Vec<(Position, u64)>,
    recovery_ms: u64,
    tells_unsafe: bool,
    calm_since: u64,
    flights: u64,
    calm: bool,
    pub(super) seen: Tally,
}

/// That the simulation does what it says.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) served: u64,
    pub(super) promoted: u64,
    pub(super) complete: u64,
    pub(super) purges: u64,
    pub(super) epochs: u64,
    pub(super) kept: u64,
    pub(super) trims: u64,
    pub(super) gaps: u64,
    pub(super) servers: u64,
    pub(super) unvouched: u64,
    pub(super) holes: u64,
    pub(super) foreign: u64,
    pub(super) names_taken: u64,
    /// Purges of nodes without a fleet.
    pub(super) alone: u64,
    pub(super) recovering: u64,
    pub(super) damaged: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { served, promoted, complete, purges, epochs, kept, trims, gaps, servers, unvouched, holes, foreign, names_taken, .. } =
            other;
        self.alone += other.alone;
        self.recovering += other.recovering;
        self.damaged += other.damaged;
        self.served += served;
        self.promoted += promoted;
        self.complete += complete;
        self.purges += purges;
        self.epochs += epochs;
        self.kept += kept;
        self.trims += trims;
        self.gaps += gaps;
        self.servers += servers;
        self.unvouched += unvouched;
        self.holes += holes;
        self.foreign += foreign;
        self.names_taken += names_taken;
    }
}

pub(super) type Outcome = Result<(), String>;

impl World {
    pub(super) fn new(seed: u64, fault: Fault) -> Self {
        let mut chance = Chance::new(seed);
        let serve = chance.one_in(2);
        // Who uses while cut off what it has stored, or confirmed a while ago, cannot be told that its name was given away.
        let twin = (!serve && chance.one_in(3)).then_some(Role::Twin);
        let alone = chance.one_in(3).then_some(Role::Alone);
        let nodes = [Role::Member; NODES].into_iter().chain(twin).chain(alone).enumerate();
        let nodes = nodes
            .map(|(number, role)| {
                let policy = match (serve, chance.below(3)) {
                    (true, 0) => Policy::Serve { at_most_ms: Some(2000), every_ms: chance.of([0, 3000]) },
                    (true, _) => Policy::Serve { at_most_ms: None, every_ms: 0 },
                    (false, 0) => Policy::Bypass,
                    (false, _) if twin.is_some() => Policy::Revalidate { every_ms: 0 },
                    (false, _) => Policy::Revalidate { every_ms: chance.of([0, 3000]) },
                };
                let clock_ms = 1000 + chance.below(1_000_000);
                Node {
                    role,
                    name: format!("node-{}", number % NODES),
                    policy,
                    clock_ms,
                    life: 0,
                    process: None,
                    paused_until: 0,
                    careless: false,
                    cut_until: 0,
                    wakes_at: 0,
                    inbox: Vec::new(),
                }
            })
            .collect();
        let temper = Temper::new(&mut chance);
        let (recovery_ms, tells_unsafe) = (chance.of([0, 500, 10_000]), !chance.one_in(8));
        let mut world = Self {
            fault,
            serve,
            chance,
            temper,
            now_ms: 0,
            moment: 0,
            redis: Redis::new(0),
            servers: 0,
            redis_down_until: 0,
            redis_paused_until: 0,
            loses_next_append: false,
            replica: (0, Data::default()),
            snapshot: Data::default(),
            parked: Vec::new(),
            nodes,
            coming: BTreeMap::new(),
            purges: Vec::new(),
            writes: Vec::new(),
            told_writes: 0,
            later_versions: Vec::new(),
            recovery_ms,
            tells_unsafe,
            calm_since: u64::MAX,
            flights: 0,
            calm: false,
            seen: Tally::default(),
        };
        for node in 0..world.nodes.len() {
            if world.nodes[node].role != Role::Twin {
                world.start(node);
            }
        }
        world
    }

    /// One random thing, after some time.
    pub(super) fn step(&mut self) -> Outcome {
        let pass = match self.chance.below(10) {
            0..6 => self.chance.below(40),
            6..9 => self.chance.below(300),
            _ => self.chance.below(1500),
        };
        self.pass(pass)?;
        let node = self.index(self.nodes.len());
        match self.chance.below(100) {
            0..64 => {
                for _ in 0..4 {
                    let (node, resource) = (self.index(self.nodes.len()), self.resource());
                    self.request(node, resource)?;
                }
                Ok(())
            }
            64..78 => self.purge(node),
            78..82 => self.write(node),
            82..85 => self.evict_from_memory(node),
            _ => self.disturb(node),
        }
    }

    fn disturb(&mut self, node: usize) -> Outcome {
        let kind = self.chance.below(29);
        if self.temper.kinds & (1 << kind) == 0 {
            return Ok(());
        }
        match kind {
            0..3 => {
                let long = self.duration();
                self.nodes[node].cut_until = self.now_ms + long;
            }
            3..6 => {
                let long = self.duration();
                self.nodes[node].paused_until = self.now_ms + long;
            }
            6 => self.crash(node),
            7..9 => self.start(node),
            9 => self.leave(node)?,
            10 => {
                let long = self.chance.below(self.temper.outage_ms);
                self.redis_down_until = self.now_ms + long;
                self.drop_parked();
            }
            11 => {
                let long = self.chance.below(self.temper.outage_ms);
                self.redis_paused_until = self.now_ms + long;
            }
            12..14 => self.snapshot = self.redis.data.clone(),
            14 if self.chance.one_in(3) => self.restart_redis(self.snapshot.clone()),
            15 => self.restart_redis(self.redis.data.clone()),
            16..18 => self.restart_redis(self.replica.1.clone()),
            18 if self.chance.one_in(3) => self.redis.flush(),
            19 if self.chance.one_in(3) => self.redis.evict_record(),
            20 => {
                let stream = self.index(2);
                self.redis.evict_stream(stream);
            }
            21 => {
                let keep = self.index(3);
                self.redis.trim(keep);
            }
            22..24 => {
                let (stream, from_last) = (self.index(2), self.index(3));
                self.redis.delete_entry(stream, from_last);
            }
            24 => self.put_something_foreign(),
            25 => {
                if let Some(twin) = self.twin() {
                    self.crash(twin);
                    let of = self.index(NODES);
                    self.nodes[twin].name = self.nodes[of].name.clone();
                    self.start(twin);
                }
            }
            26 => self.forget(node)?,
            27 => self.purge_by_a_later_version(),
            _ => self.loses_next_append = true,
        }
        Ok(())
    }

    fn twin(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.role == Role::Twin)
    }

    /// Somebody says on a node that another one never comes back. It has ended; its name may come back.
    fn forget(&mut self, node: usize) -> Outcome {
        let gone = self.index(NODES);
        let name = self.nodes[gone].name.clone();
        let runs = self.nodes.iter().any(|other| other.name == name && other.process.is_some());
        if runs || !self.runs(node) || self.nodes[node].role == Role::Alone {
            return Ok(());
        }
        self.drive(node, Event::Forget(name))
    }

    /// A node of a later version purges by what this one cannot read.
    fn purge_by_a_later_version(&mut self) {
        if self.redis_down_until > self.now_ms {
            return;
        }
        self.moment += 1;
        if let Some(position) = self.redis.append_later_version(self.now_ms) {
            self.later_versions.push((position, self.moment));
            self.answer_parked();
        }
    }

    /// Into one of the journal's streams, by somebody who has nothing to do with it.
    fn put_something_foreign(&mut self) {
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let fields = match self.chance.below(4) {
            0 => Fields::new(),
            1 => Fields::from([field("prev", "soon"), field("id", "7")]),
            2 => Fields::from([field("prev", "1-1"), field("data", "{}")]),
            _ => Fields::from([field("message", "hello")]),
        };
        let ahead_ms = self.chance.of([0, 0, 0, 60_000, 1 << 52]);
        let stream = self.index(2);
        self.redis.add_foreign(stream, fields, ahead_ms, self.now_ms);
        self.answer_parked();
    }

    /// Everything works again, and after a while everything has to be as it should: every node trusts, in one epoch, and
    /// a purge gets complete.
    pub(super) fn calm_down(&mut self) -> Outcome {
        self.calm = true;
        self.loses_next_append = false;
        if let Some(twin) = self.twin() {
            self.crash(twin);
        }
        (self.redis_down_until, self.redis_paused_until) = (self.now_ms, self.now_ms);
        for node in 0..NODES {
            (self.nodes[node].cut_until, self.nodes[node].paused_until) = (self.now_ms, self.now_ms);
            if self.nodes[node].process.is_none() {
                self.start(node);
            }
            let life = self.nodes[node].life;
            self.later(0, What::Wake { node, life });
        }
        self.pass(4 * TRUST_MS)?;
        self.purge(0)?;
        let id = self.purges.last().map(|purge| purge.id).expect("a purge was just made");
        self.calm_since = self.moment;
        self.write(1)?;
        self.pass(3 * TRUST_MS)?;
        let epoch = self.redis_epoch();
        for node in 0..NODES {
            let now = self.now(node);
            let Some(process) = &self.nodes[node].process else { return Err(format!("node {node} is gone")) };
            let Some(fleet) = &process.fleet else { return Err(format!("node {node} has no fleet")) };
            let others: Vec<_> = fleet.members().map(|seen| seen.member.name.clone()).collect();
            let knows_all = (0..NODES).filter(|other| *other != node).all(|other| others.contains(&self.nodes[other].name));
            let is_whole = fleet.has_started() && !fleet.is_name_taken() && fleet.unappended() == 0 && knows_all;
            if !is_whole || self.redis.last() != Some(fleet.applied()) {
                return Err(format!("node {node} knows {others:?} and has not all: {}", self.state(node)));
            }
            if !process.journal.is_trusted(now) || process.journal.epoch() != epoch {
                return Err(format!("node {node} does not trust the journal, or is in another epoch than {epoch}: {}", self.state(node)));
            }
        }
        if self.purges.iter().any(|purge| purge.id == id && purge.complete.is_none()) {
            let receipt = self.nodes[0].process.as_ref().and_then(|process| process.journal.receipt(&id.to_string()));
            let states = (0..NODES).map(|node| self.state(node)).collect::<Vec<_>>().join("\n");
            return Err(format!("a purge in a healthy fleet does not get complete: {receipt:?}\n{states}"));
        }
        // What was written on one node has been told to all.
        let told = self.moment;
        self.told_writes = told;
        for node in 0..NODES {
            for resource in 0..RESOURCES.len() {
                self.request(node, resource)?;
            }
        }
        self.pass(1000)
    }

    fn state(&self, node: usize) -> String {
        let Some(Process { fleet: Some(fleet), .. }) = &self.nodes[node].process else { return "none".into() };
        let now = self.now(node).mono_ms;
        format!("at {now}: {} {} {:?} {:?} {:?}", fleet.applied, fleet.unsafe_applied, fleet.lease, fleet.beat, fleet.read)
    }

    fn redis_epoch(&self) -> u64 {
        self.redis.epoch()
    }

    fn duration(&mut self) -> u64 {
        self.chance.below(self.temper.long_ms)
    }

    fn resource(&mut self) -> usize {
        self.index(self.temper.resources)
    }

    fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.chance.below(below as u64)).expect("it came from a usize")
    }

    fn now(&self, node: usize) -> Now {
        let mono_ms = self.now_ms + self.nodes[node].clock_ms;
        Now { wall_ms: 1_000_000 + i64::try_from(self.now_ms).expect("a short simulation"), mono_ms }
    }

    /// Lets time pass, and happen what is to happen.
    fn pass(&mut self, ms: u64) -> Outcome {
        let end = self.now_ms + ms;
        while let Some(entry) = self.coming.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            self.now_ms = self.now_ms.max(at);
            self.moment += 1;
            self.happen(what)?;
        }
        self.now_ms = end;
        self.moment += 1;
        // A replica follows within a second, mostly at once (`min-replicas-max-lag`).
        if self.chance.one_in(3) || self.replica.0 + 1000 < self.now_ms {
            self.replica = (self.now_ms, self.redis.data.clone());
        }
        Ok(())
    }

    fn later(&mut self, ms: u64, what: What) {
        self.moment += 1;
        self.coming.insert((self.now_ms + ms, self.moment), what);
    }

    fn delay(&mut self) -> u64 {
        let late = !self.calm && self.temper.late > 0 && self.chance.one_in(self.temper.late);
        if late { self.chance.below(2500) } else { 1 + self.chance.below(4) }
    }

    fn loses(&mut self) -> bool {
        !self.calm && self.temper.lost > 0 && self.chance.one_in(self.temper.lost)
    }

    fn happen(&mut self, what: What) -> Outcome {
        match what {
            What::ToNode { node, life, .. }
            | What::Wake { node, life }
            | What::FetchEnds { node, life, .. }
            | What::TierAnswers { node, life, .. } => {
                if self.nodes[node].life != life || self.nodes[node].process.is_none() {
                    return Ok(());
                }
                if self.nodes[node].paused_until > self.now_ms {
                    self.nodes[node].inbox.push(what);
                    let left = self.nodes[node].paused_until - self.now_ms;
                    self.later(left, What::Wake { node, life });
                    return Ok(());
                }
                self.resume(node)?;
                self.happen_to(node, what)
            }
            What::ToRedis { node, life, ticket, command } => {
                self.at_redis(node, life, ticket, &command);
                Ok(())
            }
            What::ReadEnds { node, life, ticket } => {
                let is_it = |(parked, of, number, _): &(usize, u64, Ticket, Read)| (*parked, *of, *number) == (node, life, ticket);
                if let Some(at) = self.parked.iter().position(is_it) {
                    let (.., read) = self.parked.remove(at);
                    self.answer(
                        node,
                        life,
                        ticket,
                        Answer::Read(Found { read_to: (read.purges_after, read.unsafe_after), ..Found::default() }),
                    );
                }
                Ok(())
            }
            What::TierAsked { node, life, epoch, request } => {
                let entry = self.redis.data.tier.get(&(epoch, request.resource)).cloned();
                let entry = entry.filter(|_| self.redis_down_until <= self.now_ms);
                let delay = self.delay();
                self.later(delay, What::TierAnswers { node, life, request, entry });
                Ok(())
            }
            What::TierPut { entry } => {
                let key = (entry.stamp.purge.position.epoch, entry.facts.resource);
                let tier = &mut self.redis.data.tier;
                if tier.get(&key).is_none_or(|there| entry.facts.began > there.facts.began) {
                    tier.insert(key, entry);
                }
                Ok(())
            }
        }
    }

    /// What waited while the node was paused comes first.
    fn resume(&mut self, node: usize) -> Outcome {
        for what in std::mem::take(&mut self.nodes[node].inbox) {
            if self.fault == Fault::ResumedUntrusted {
                self.nodes[node].careless = true;
            }
            self.moment += 1;
            self.happen_to(node, what)?;
        }
        Ok(())
    }

    fn happen_to(&mut self, node: usize, what: What) -> Outcome {
        match what {
            What::ToNode { ticket, answer, .. } => {
                let event = match answer {
                    Ok(answer) => Event::Answered(ticket, answer),
                    Err(why) => Event::Failed(ticket, why.into()),
                };
                self.drive(node, event)
            }
            What::Wake { .. } => self.drive(node, Event::Tick),
            What::FetchEnds { flight, .. } => self.fetch_ends(node, flight),
            What::TierAnswers { request, entry, .. } => self.tier_answers(node, request, entry),
            What::ToRedis { .. } | What::ReadEnds { .. } | What::TierAsked { .. } | What::TierPut { .. } => Ok(()),
        }
    }

    // Nodes and their state machines.

    fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        let receipts = self.chance.of([40, 40, 40, 3]);
        let bounds = PurgeBounds {
            receipts,
            map_capacity: if self.chance.one_in(4) { 3 } else { 1000 },
            fold_slots: 64,
            recovery: std::time::Duration::from_millis(self.recovery_ms),
        };
        let ledger = LedgerFaults { soft_overwrites_hard: self.fault == Fault::SoftOverwritesHard, fold_forgets: false };
        if self.nodes[node].role == Role::Alone {
            self.begin(node, None, Arc::new(Journal::new(&bounds)));
            return;
        }
        let journal = Arc::new(Journal::with_faults(&bounds, Order::Fleet { tell_unsafe: self.tells_unsafe }, ledger));
        let instance = Instance(u128::from(self.chance.next()));
        let settings = Settings {
            name: self.nodes[node].name.clone(),
            policy: self.nodes[node].policy,
            trust_ms: TRUST_MS,
            repair_ms: 600_000,
            forget_after_ms: 3_600_000,
            receipts,
        };
        let mut fleet = Fleet::new(settings, instance, Arc::clone(&journal));
        fleet.faults = Faults {
            own_entry_out_of_order: self.fault == Fault::OwnEntryOutOfOrder,
            acknowledged_before_apply: self.fault == Fault::AcknowledgedBeforeApply,
            previous_ignored: self.fault == Fault::PreviousIgnored,
        };
        self.begin(node, Some(fleet), journal);
    }

    fn begin(&mut self, node: usize, fleet: Option<Fleet>, journal: Arc<Journal>) {
        let place = &mut self.nodes[node];
        place.life += 1;
        (place.careless, place.paused_until, place.wakes_at) = (false, 0, 0);
        place.process = Some(Process { fleet, journal, memory: Default::default(), flights: Vec::new(), wide: Vec::new() });
        let life = place.life;
        self.later(0, What::Wake { node, life });
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].process = None;
        self.nodes[node].inbox.clear();
        self.parked.retain(|(parked, ..)| *parked != node);
    }

    fn leave(&mut self, node: usize) -> Outcome {
        if self.runs(node) {
            self.drive(node, Event::Leave)?;
            self.crash(node);
        }
        Ok(())
    }

    fn runs(&self, node: usize) -> bool {
        self.nodes[node].process.is_some() && self.nodes[node].paused_until <= self.now_ms
    }

    fn drive(&mut self, node: usize, event: Event) -> Outcome {
        let now = self.now(node);
        let life = self.nodes[node].life;
        let fleet = |world: &mut Self| world.nodes[node].process.as_mut().and_then(|process| process.fleet.take());
        let Some(mut fleet) = fleet(self) else { return Ok(()) };
        let (actions, wake_at) = (fleet.on(event, now), fleet.wake_at());
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.fleet = Some(fleet);
        }
        for action in actions {
            match action {
                Action::Send(ticket, command) => self.send(node, life, ticket, command),
                Action::Told(id) => self.told(node, id)?,
                Action::Forgotten(_) => {}
                Action::Note(note) => self.note(note),
            }
        }
        let wake_ms = wake_at.saturating_sub(now.mono_ms).max(1);
        let place = &mut self.nodes[node];
        if wake_ms < 1_000_000 && !(self.now_ms + 1..=self.now_ms + wake_ms).contains(&place.wakes_at) {
            place.wakes_at = self.now_ms + wake_ms;
            self.later(wake_ms, What::Wake { node, life });
        }
        Ok(())
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Epoch { kept, .. } => {
                self.seen.epochs += 1;
                self.seen.kept += u64::from(kept);
            }
            Note::BehindTrim => self.seen.trims += 1,
            Note::Gap => self.seen.gaps += 1,
            Note::ServerChanged => self.seen.servers += 1,
            Note::Unvouched => self.seen.unvouched += 1,
            Note::Hole => self.seen.holes += 1,
            Note::Foreign { entries } => self.seen.foreign += entries as u64,
            Note::NameTaken => self.seen.names_taken += 1,
            Note::Loss(_) | Note::Repaired { .. } | Note::GivenUp { .. } | Note::StoodIn => {}
        }
    }

    /// A client is told of its purge: what counts is what it reads.
    fn told(&mut self, node: usize, id: PurgeId) -> Outcome {
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        let Some(receipt) = process.journal.receipt(&id.to_string()) else { return Ok(()) };
        let Some(logged) = self.purges.iter_mut().find(|logged| logged.id == id) else { return Ok(()) };
        let told = receipt.json(logged.selectors.iter().map(|selector| selector.text().into_owned()));
        let is_complete = told["complete"] == true;
        let waits = told["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["state"] == "waiting"));
        let place: Option<Position> = told["position"].as_str().and_then(|text| text.parse().ok());
        let is_placed = told["acknowledged"] == "fleet" && place == Some(receipt.position);
        let as_given = told["selectors"].as_array().is_some_and(|all| all.iter().all(|one| one["given"] == one["normalised"]));
        let consistent = if is_complete { is_placed && !waits } else { is_placed || place.is_none() };
        if !consistent && self.fault == Fault::None || !as_given {
            return Err(format!("a receipt contradicts itself: {told}"));
        }
        if is_complete && logged.complete.is_none() {
            logged.complete = Some(self.moment);
            self.seen.complete += 1;
        }
        Ok(())
    }

    // The network and Redis.

    fn send(&mut self, node: usize, life: u64, ticket: Ticket, command: Command) {
        if matches!(command, Command::Read(_)) {
            self.parked.retain(|(parked, ..)| *parked != node);
        }
        let cut = self.nodes[node].cut_until > self.now_ms;
        if cut || self.loses() {
            let answer = Err("lost on the way there");
            let after = if self.chance.one_in(2) { 20 } else { 1000 };
            self.later(after, What::ToNode { node, life, ticket, answer });
            return;
        }
        let delay = self.delay();
        self.later(delay, What::ToRedis { node, life, ticket, command });
    }

    fn at_redis(&mut self, node: usize, life: u64, ticket: Ticket, command: &Command) {
        if self.redis_down_until > self.now_ms {
            self.later(1, What::ToNode { node, life, ticket, answer: Err("refused") });
            return;
        }
        if self.redis_paused_until > self.now_ms {
            let left = self.redis_paused_until - self.now_ms;
            self.later(left, What::ToRedis { node, life, ticket, command: command.clone() });
            return;
        }
        let is_append = matches!(command, Command::Append { .. } | Command::AppendUnsafe { .. });
        if is_append && std::mem::take(&mut self.loses_next_append) {
            let before = self.redis.data.clone();
            if let Some(answer) = self.redis.run(command, self.now_ms) {
                self.answer(node, life, ticket, answer);
            }
            return self.restart_redis(before);
        }
        if !self.calm && self.temper.damaged > 0 && self.chance.one_in(self.temper.damaged) {
            self.seen.damaged += 1;
            let pick = self.chance.next();
            let answer = if pick.is_multiple_of(4) { Ok(Answer::Left) } else { self.redis.run_damaged(command, self.now_ms, pick) };
            self.later(1, What::ToNode { node, life, ticket, answer });
            if is_append {
                self.answer_parked();
            }
            return;
        }
        match self.redis.run(command, self.now_ms) {
            Some(answer) => self.answer(node, life, ticket, answer),
            None => {
                let Command::Read(read) = command else { return };
                self.parked.push((node, life, ticket, *read));
                self.later(read.wait_ms, What::ReadEnds { node, life, ticket });
            }
        }
        if is_append {
            self.answer_parked();
        }
    }

    /// There is something new in the streams.
    fn answer_parked(&mut self) {
        for (node, life, ticket, read) in std::mem::take(&mut self.parked) {
            match self.redis.run(&Command::Read(read), self.now_ms) {
                Some(answer) => self.answer(node, life, ticket, answer),
                None => self.parked.push((node, life, ticket, read)),
            }
        }
    }

    fn answer(&mut self, node: usize, life: u64, ticket: Ticket, answer: Answer) {
        let lost = self.nodes[node].cut_until > self.now_ms || self.loses();
        if lost {
            self.later(1000, What::ToNode { node, life, ticket, answer: Err("lost on the way back") });
        } else {
            let delay = self.delay();
            self.later(delay, What::ToNode { node, life, ticket, answer: Ok(answer) });
        }
    }

    fn drop_parked(&mut self) {
        for (node, life, ticket, _) in std::mem::take(&mut self.parked) {
            self.later(1, What::ToNode { node, life, ticket, answer: Err("closed") });
        }
    }

    fn restart_redis(&mut self, data: Data) {
        self.drop_parked();
        self.servers += 1;
        // No node remembers these: what a server loses of them is lost.
        self.later_versions.clear();
        let ahead_ms = i64::try_from(self.chance.below(400)).expect("small") - 200;
        self.redis.become_another(self.servers, data, ahead_ms);
        let down_ms = self.chance.below(self.temper.outage_ms);
        self.redis_down_until = self.redis_down_until.max(self.now_ms + down_ms);
    }

    // Requests.

    fn subject(facts: &Facts) -> Subject<'_> {
        let (site, authority, _) = RESOURCES[facts.resource];
        let [keys, groups] = &facts.hashes;
        let url_text = url_text(facts.resource);
        Subject { url: url_hash(facts.resource), url_text, authority, site, keys, groups }
    }

    fn request(&mut self, node: usize, resource: usize) -> Outcome {
        if !self.runs(node) {
            return Ok(());
        }
        self.moment += 1;
        let request = Request { resource, born: self.moment };
        self.resume(node)?;
        self.look_up(node, request)
    }

    fn look_up(&mut self, node: usize, request: Request) -> Outcome {
        let now = self.now(node);
        let (life, policy, careless) = (self.nodes[node].life, self.nodes[node].policy, self.nodes[node].careless);
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        let trusted = process.journal.is_trusted(now);
        let cut_off_ms = now.mono_ms.saturating_sub(process.journal.trusted_until());
        let serves = match policy {
            Policy::Serve { at_most_ms, .. } => {
                process.fleet.as_ref().is_some_and(Fleet::is_remembered) && at_most_ms.is_none_or(|most| cut_off_ms < most)
            }
            Policy::Revalidate { .. } | Policy::Bypass => false,
        };
        if !trusted && !serves && !careless {
            let every_ms = match policy {
                Policy::Serve { every_ms, .. } | Policy::Revalidate { every_ms }
                    if process.fleet.as_ref().is_some_and(Fleet::is_remembered) =>
                {
                    every_ms
                }
                _ => 0,
            };
            let recent = process.memory[request.resource].clone().filter(|stored| self.now_ms < stored.facts.began_ms + every_ms);
            return match recent {
                Some(stored) if process.journal.check(&Self::subject(&stored.facts), &stored.stamp, &stored.checked) == Validity::Valid => {
                    self.serve(node, request, &stored.facts, "memory, confirmed of late", false)
                }
                _ => self.fetch(node, request, None),
            };
        }
        let is_alone = process.fleet.is_none();
        if let Some(stored) = process.memory[request.resource].clone() {
            if request.born.is_multiple_of(8) {
                self.explain(node, &stored)?;
            }
            match process.journal.check(&Self::subject(&stored.facts), &stored.stamp, &stored.checked) {
                Validity::Valid => return self.serve(node, request, &stored.facts, "memory", false),
                Validity::Soft { .. } if self.chance.one_in(2) => return self.serve(node, request, &stored.facts, "memory, stale", true),
                Validity::Soft { .. } => return self.fetch(node, request, Some(stored)),
                Validity::Purged | Validity::Unconfirmed => {}
            }
        }
        if trusted && !is_alone && !self.chance.one_in(4) {
            let epoch = process.journal.epoch();
            let delay = self.delay();
            self.later(delay, What::TierAsked { node, life, epoch, request });
            return Ok(());
        }
        self.join_or_fetch(node, request, trusted)
    }

    fn join_or_fetch(&mut self, node: usize, request: Request, trusted: bool) -> Outcome {
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        let Process { journal, flights, .. } = process;
        let (site, authority, _) = RESOURCES[request.resource];
        let (url, text) = (url_hash(request.resource), url_text(request.resource));
        let joinable = flights.iter_mut().find(|flight| {
            flight.facts.resource == request.resource
                && flight.refreshes.is_none()
                && journal.joinable(url, text, authority, site, &flight.stamp)
        });
        match joinable {
            Some(flight) if trusted => {
                flight.waiters.push(request);
                Ok(())
            }
            _ => self.fetch(node, request, None),
        }
    }

    fn tier_answers(&mut self, node: usize, request: Request, entry: Option<TierEntry>) -> Outcome {
        let now = self.now(node);
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        let trusted = process.journal.is_trusted(now);
        if let Some(TierEntry { facts, stamp }) = entry.filter(|_| trusted) {
            let stored = Rc::new(Stored { stamp: process.journal.of_shared(&stamp, None), facts, checked: CheckedUpTo::default() });
            let validity = match self.fault {
                Fault::PromotedUnchecked => Validity::Valid,
                _ => process.journal.check(&Self::subject(&stored.facts), &stored.stamp, &stored.checked),
            };
            if validity != Validity::Purged {
                process.memory[request.resource] = Some(Rc::clone(&stored));
            }
            if validity == Validity::Valid {
                self.seen.promoted += 1;
                return self.serve(node, request, &stored.facts, "the shared tier", false);
            }
        }
        self.join_or_fetch(node, request, trusted)
    }

    fn fetch(&mut self, node: usize, request: Request, stale: Option<Rc<Stored>>) -> Outcome {
        self.flights += 1;
        self.moment += 1;
        let (number, began) = (self.flights, self.moment);
        let slow = self.chance.one_in(5);
        let long = self.chance.below(if slow { 3000 } else { 100 });
        let life = self.nodes[node].life;
        self.recovers(node, request.resource)?;
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        let facts = Facts::new(request.resource, (began, self.now_ms), vec![], vec![]);
        let refreshed =
            stale.and_then(|old| process.journal.stamp_of_refresh(&Self::subject(&old.facts), &old.stamp).map(|stamp| (old, stamp)));
        if let Some((old, _)) = &refreshed {
            // A hard-purged response is no source of validators.
            let facts = old.facts.clone();
            self.serve(node, request, &facts, "validators", true)?;
        }
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        let (stamp, refreshes) = match refreshed {
            Some((old, stamp)) => (stamp, Some(old)),
            None => (process.journal.stamp(), None),
        };
        process.flights.push(Flight { number, facts, stamp, refreshes, waiters: vec![request] });
        self.later(long, What::FetchEnds { node, life, flight: number });
        Ok(())
    }

    fn fetch_ends(&mut self, node: usize, number: u64) -> Outcome {
        let now = self.now(node);
        let (keys, groups) = (self.names(), self.names());
        let fault = self.fault;
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        let Some(index) = process.flights.iter().position(|flight| flight.number == number) else { return Ok(()) };
        let Flight { facts, stamp, refreshes, waiters, .. } = process.flights.swap_remove(index);
        let mut facts = Facts::new(facts.resource, (facts.began, facts.began_ms), keys, groups);
        if let Some(old) = &refreshes {
            // A 304: what was stored, with the keys of both.
            for (new, old) in facts.hashes.iter_mut().zip(&old.facts.hashes) {
                *new = union(old, new).into();
            }
            for (new, old) in [(&mut facts.keys, &old.facts.keys), (&mut facts.groups, &old.facts.groups)] {
                new.extend(old);
            }
        }
        let stamp = if fault == Fault::StampAtFetchEnd { process.journal.stamp() } else { stamp };
        let validity = process.journal.validity(&Self::subject(&facts), &stamp);
        let trusted = process.journal.is_trusted(now) && process.fleet.is_some();
        if validity != Validity::Purged {
            let place = &mut process.memory[facts.resource];
            if place.as_ref().is_none_or(|there| facts.began > there.facts.began) {
                *place = Some(Rc::new(Stored { facts: facts.clone(), stamp, checked: CheckedUpTo::default() }));
            }
            if trusted && self.redis_down_until <= self.now_ms && self.nodes[node].cut_until <= self.now_ms {
                let delay = self.delay();
                self.later(delay, What::TierPut { entry: TierEntry { facts: facts.clone(), stamp: stamp.shared() } });
            }
        }
        for (place, request) in waiters.into_iter().enumerate() {
            if place == 0 && refreshes.is_none() || validity == Validity::Valid {
                self.serve(node, request, &facts, "a flight", false)?;
            } else {
                self.fetch(node, request, None)?;
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Vec<usize> {
        (0..NAMES.len()).filter(|_| self.chance.one_in(3)).collect()
    }

    /// Whether this may be: the promise itself.
    /// `stale` answers, and those that are only asked about at the origin, may be older than a soft purge.
    fn serve(&mut self, node: usize, request: Request, facts: &Facts, from: &str, stale: bool) -> Outcome {
        self.seen.served += 1;
        let (life, is_alone) = (self.nodes[node].life, self.nodes[node].role == Role::Alone);
        for purge in &self.purges {
            let here = purge.node == node && purge.life == life && purge.issued < request.born;
            let complete = !is_alone && purge.complete.is_some_and(|complete| complete < request.born);
            let newer = facts.began < purge.issued && purge.selectors.iter().any(|selector| facts.matches(selector));
            if newer && (here || complete) && !(stale && purge.mode == Mode::Soft) {
                return Err(format!(
                    "node {node} (life {life}) answers from {from} at {} ms what began at {} to a request of {}, though {:?} {:?} of \
                     node {} (life {}) was issued at {} and complete at {:?}; cut-off nodes serve: {}",
                    self.now_ms,
                    facts.began,
                    request.born,
                    purge.mode,
                    purge.selectors,
                    purge.node,
                    purge.life,
                    purge.issued,
                    purge.complete,
                    self.serve
                ));
            }
        }
        for (writer, life_of_writer, selector, written) in &self.writes {
            let is_told = self.tells_unsafe && !is_alone && (self.calm_since..self.told_writes).contains(written);
            let here = *writer == node && *life_of_writer == life || is_told;
            if here && *written < request.born && facts.began < *written && facts.matches(selector) {
                return Err(format!(
                    "node {node} answers from {from} what began at {} though it wrote {selector:?} at {written}",
                    facts.began
                ));
            }
        }
        Ok(())
    }

    /// What `tiercel explain` says of a stored response agrees with what is done with it.
    fn explain(&self, node: usize, stored: &Stored) -> Outcome {
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        let subject = Self::subject(&stored.facts);
        let validity = process.journal.validity(&subject, &stored.stamp);
        let told = process.journal.deciding_match(&subject, &stored.stamp);
        let applies = told.as_ref().filter(|told| told["applies"] == true);
        let agrees = match validity {
            Validity::Purged => applies.is_some_and(|told| told["mode"] == "hard"),
            Validity::Soft { .. } => applies.is_some_and(|told| told["mode"] == "soft"),
            Validity::Valid | Validity::Unconfirmed => applies.is_none(),
        };
        // What has its place says which, and when; what is provisional neither.
        let is_dated = told.as_ref().is_none_or(|told| match told["position"].as_str() {
            Some(text) => text.parse::<Position>().is_ok() && told["at"].is_string(),
            None => told["at"].is_null(),
        });
        let later = self.later_versions.iter().any(|&(position, moment)| {
            let applied = process.journal.stamp().purge.position;
            stored.facts.began < moment && applied.epoch == position.epoch && applied >= position
        });
        if !agrees || !is_dated || later && validity != Validity::Purged {
            return Err(format!(
                "node {node} finds {validity:?} and explains it by {told:?}; unreadable purges: {:?}",
                self.later_versions
            ));
        }
        Ok(())
    }

    /// A miss of what a wide purge took of late counts as caused by it.
    fn recovers(&mut self, node: usize, resource: usize) -> Outcome {
        let now = self.now(node);
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        let facts = Facts::new(resource, (0, 0), vec![], vec![]);
        let recovers = process.journal.is_recovering(&Self::subject(&facts), now);
        // Purges that follow each other closely count as one, from the first on.
        let window_ms = self.recovery_ms - self.recovery_ms.div_ceil(32);
        let took = |(selector, at): &(Selector, u64)| now.mono_ms - at < window_ms && facts.matches(selector);
        if process.wide.iter().any(took) && !recovers || recovers && self.recovery_ms == 0 {
            return Err(format!("node {node}: recovering {recovers} within {} ms, after {:?}", self.recovery_ms, process.wide));
        }
        self.seen.recovering += u64::from(recovers);
        Ok(())
    }

    fn purge(&mut self, node: usize) -> Outcome {
        if !self.runs(node) {
            return Ok(());
        }
        let now = self.now(node);
        let count = 1 + self.index(2);
        let selectors: Vec<Selector> = (0..count).map(|_| self.selector()).collect();
        let mode = if self.chance.one_in(3) { Mode::Soft } else { Mode::Hard };
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        self.moment += 1;
        let issued = self.moment;
        let wide = selectors.iter().filter(|selector| Kinds::WIDE.contains(selector.kind()));
        process.wide.extend(wide.map(|selector| (selector.clone(), now.mono_ms)));
        if process.fleet.is_none() {
            let receipt = process.journal.purge(selectors.clone(), mode, "simulation", now);
            let kept = process.journal.receipt(&receipt.id);
            if kept.map(|kept| kept.json([])) != Some(receipt.json([])) || !receipt.complete {
                return Err(format!("a purge of a node without a fleet is not complete at once: {receipt:?}"));
            }
            let id = receipt.id.parse().map_err(|_| format!("no id: {receipt:?}"))?;
            self.purges.push(Logged { id, node, life, selectors, mode, issued, complete: None });
            self.seen.alone += 1;
            return Ok(());
        }
        let purge = process.journal.issue(selectors.clone(), mode, "simulation", now);
        self.purges.push(Logged { id: purge.id, node, life, selectors, mode, issued, complete: None });
        self.seen.purges += 1;
        self.drive(node, Event::Issued(purge))
    }

    fn selector(&mut self) -> Selector {
        let (resource, name) = (self.resource(), self.index(NAMES.len()));
        let (site, authority, _) = RESOURCES[resource];
        match self.chance.below(12) {
            0..4 => Selector::Url(url_text(resource).into()),
            4..7 => Selector::Key(NAMES[name].into()),
            7 => Selector::Group { origin: format!("http://{authority}"), group: NAMES[name].into() },
            8 => Selector::Prefix(format!("{authority}/")),
            9 => Selector::Host(authority.into()),
            10 => Selector::Site(site.into()),
            _ => Selector::Everything,
        }
    }

    fn write(&mut self, node: usize) -> Outcome {
        if !self.runs(node) {
            return Ok(());
        }
        let now = self.now(node);
        let (resource, name) = (self.resource(), self.index(NAMES.len()));
        let authority = RESOURCES[resource].1;
        let what = self.chance.below(4);
        let life = self.nodes[node].life;
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        self.moment += 1;
        let selector = match what {
            0 => {
                let origin = format!("http://{authority}");
                process.journal.invalidate_groups(&[group_hash(&origin, NAMES[name])], now);
                Selector::Group { origin, group: NAMES[name].into() }
            }
            1 => {
                process.journal.invalidate_host(authority, now);
                Selector::Host(authority.into())
            }
            _ => {
                let answer = Subject { url: 0, url_text: "", authority: "", site: "", keys: &[], groups: &[] };
                process.journal.invalidate_unsafe(&[url_hash(resource)], &answer, &process.journal.stamp(), now);
                Selector::Url(url_text(resource).into())
            }
        };
        self.writes.push((node, life, selector, self.moment));
        self.drive(node, Event::Tick)
    }

    fn evict_from_memory(&mut self, node: usize) -> Outcome {
        let resource = self.resource();
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.memory[resource] = None;
        }
        Ok(())
    }
}

thread_local! {
    /// Texts and hashes of the resources, made once.
    static URLS: Vec<(&'static str, u128)> = RESOURCES
        .iter()
        .map(|(_, authority, path)| {
            let text: &'static str = Box::leak(format!("{authority}{path}").into_boxed_str());
            (text, hash128(text.as_bytes()))
        })
        .collect();
}

fn url_text(resource: usize) -> &'static str {
    URLS.with(|urls| urls[resource].0)
}

fn url_hash(resource: usize) -> u128 {
    URLS.with(|urls| urls[resource].1)
}
