//! The world of the simulation: nodes with memory caches and flights, a Redis that fails in every way that we know, and
//! the network between them. One thread, virtual time, everything drawn from one seed.

mod network;
mod nodes;
mod purges;
mod requests;
mod resources;
mod tally;
mod trouble;

pub(super) use resources::TierEntry;
pub(super) use tally::Tally;

use super::super::protocol::{Answer, Command, Found, Policy, Read, Ticket};
use super::super::{Event, Fleet};
use super::chance::Chance;
use super::redis::{Data, Redis};
use crate::invalidation::{Journal, Mode, Position, PurgeId, Selector, Stamp};
use crate::semantics::Now;
use resources::{Facts, RESOURCES, Stored};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use trouble::Temper;

const TRUST_MS: u64 = 3000;
const NODES: usize = 3;

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

#[derive(Debug, Clone, Copy)]
struct Request {
    resource: usize,
    /// When it came.
    born: u64,
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
}
