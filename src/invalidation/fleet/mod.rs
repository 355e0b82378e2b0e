//! The fleet's journal as one node follows it: a state machine without I/O, clock or waiting.
//!
//! [`Fleet::on`] takes what happened and the time, changes the [`Journal`], and says what to do next. Whoever drives it
//! sends the commands of [`protocol`] to Redis and brings back what came of them; tests step several of them by hand.
//!
//! What must hold (P2): a purge that is told as complete is in force on every node that may serve what it has stored.
//! Why it does, sentence by sentence: `docs/decisions/0010-fleet-journal.md`. Where each part lives:
//! - `codec`: how all of that is written in Redis;
//! - `lease`: until when this node may believe that it misses nothing;
//! - `members`: the other nodes, and which of them a purge waits for;
//! - `own`: this node's purges until they have a place in the order, and for a while after, to be appended again.

pub(super) mod codec;
mod lease;
mod members;
mod own;
pub mod protocol;
#[cfg(test)]
mod simulation;

pub use members::Seen;

use super::{Journal, Kind, Position, Purge, PurgeId, Refused};
use crate::semantics::Now;
use lease::Lease;
use members::{Members, Question};
use own::Own;
use protocol::{
    Answer, Batch, Beat, BeatAnswer, Command, Doubt, Found, Instance, Policy, Proposal, Read, Record, Refusal, Server, Ticket, UnsafeEntry,
    Vouch,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Entries of each stream in one read.
const READ_COUNT: usize = 512;
/// How long a read waits in Redis, and at most between heartbeats.
const BEAT_MS: u64 = 1000;
/// Between heartbeats while purges wait for other nodes; [`RETRY_MS`] once they have waited for [`SOON_MS`], and no more
/// often than usual when their answers have long been given.
const POLL_MS: u64 = 10;
const SOON_MS: u64 = 200;
/// After a failure, before the same is tried again.
const RETRY_MS: u64 = 100;
/// Between batches of unsafe methods, unless one is full.
const BATCH_MS: u64 = 10;
/// Batches under way at once.
const BATCHES_MAX: usize = 8;
/// Batches that are told again to another server, which may have lost them; no more are appended and not read yet.
const BATCHES_REPEATED: usize = 64;
/// What registrations and leases of others may differ by.
const MARGIN_MS: u64 = 1000;
/// How long it is tried to tell Redis that a node is forgotten.
const FORGET_MS: u64 = 5000;
/// Outage of Redis after which nobody can say any more that nothing was missed.
const OUTAGE_MS: u64 = 60_000;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Unique in the fleet; stays over restarts.
    pub name: String,
    pub policy: Policy,
    /// How long a heartbeat and a read let this node believe that it misses nothing.
    pub trust_ms: u64,
    /// Own purges younger than this are appended again to a new epoch.
    pub repair_ms: u64,
    /// A node that serves while cut off, and was not heard of for so long, is no longer waited for.
    pub forget_after_ms: u64,
    /// Own purges kept at most.
    pub receipts: usize,
}

impl Settings {
    /// Between heartbeats, and for a read that waits: so often that one that is lost does not end the trust.
    fn beat_ms(&self) -> u64 {
        BEAT_MS.min(self.trust_ms / 3)
    }

    /// A node whose registration was not renewed for so long, on any other's clock, is cut off and knows it.
    const fn lapse_ms(&self) -> u64 {
        self.trust_ms + MARGIN_MS
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Time passed. Wanted at [`Fleet::wake_at`] at the latest; and when an unsafe method has invalidated something.
    Tick,
    /// [`Journal::issue`] made this.
    Issued(Purge),
    Answered(Ticket, Answer),
    /// No answer will come; whether the command was done is not known.
    Failed(Ticket, String),
    /// The name of a node that never comes back, by hand.
    Forget(String),
    /// This node stops, and serves no more.
    Leave,
}

/// What to do. In this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Each is to end in [`Event::Answered`] or [`Event::Failed`], within a few seconds. A `Read` takes the place of one that
    /// is under way; those of one kind are sent in order, on a connection that `Read` does not share.
    Send(Ticket, Command),
    /// The receipt of this purge has changed: [`Journal::receipt`].
    Told(PurgeId),
    /// Redis has noted that the node of this name is gone.
    Forgotten(String),
    Note(Note),
}

/// For the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Entries of the journal are missing in Redis: a new epoch is proposed.
    Loss(Refusal),
    /// Another server answers.
    ServerChanged,
    /// Nobody vouched for that server in time: a new epoch is proposed.
    Unvouched,
    /// This node is in another epoch now; whether it kept what it had stored.
    Epoch { epoch: u64, kept: bool },
    /// Entries that this node has not seen are trimmed: it dropped what it had stored.
    BehindTrim,
    /// An entry does not follow the last one applied.
    Gap,
    /// An entry is missing in the stream and nothing else is wrong: this node dropped what it had stored.
    Hole,
    /// Entries of the stream that are none of the journal's were passed over.
    Foreign { entries: usize },
    /// Own purges appended again to a new epoch.
    Repaired { purges: usize },
    /// More own purges waited for Redis than are kept: something else is to tell the fleet of these.
    GivenUp { purges: usize },
    /// In the stead of own invalidations that were not kept the fleet drops everything.
    StoodIn,
    /// This node's name is used by another that runs.
    NameTaken,
}

/// One node's side of the fleet's journal.
#[derive(Debug)]
pub struct Fleet {
    settings: Settings,
    instance: Instance,
    journal: Arc<Journal>,
    tickets: u64,
    under_way: HashMap<Ticket, UnderWay>,
    /// The server that answered last; empty before any did.
    server: Server,
    /// When another one answered; 0 before that happened.
    server_since: u64,
    /// Applied in order, of both classes. Epoch 0 before the journal was heard of.
    applied: Position,
    unsafe_applied: Position,
    /// The purge at `applied`.
    witness: Option<PurgeId>,
    lease: Lease,
    beat: Beats,
    read: Reads,
    members: Members,
    own: Own,
    /// The purge that is appended in the stead of those that were given up.
    stand_in: Option<PurgeId>,
    batches: Batches,
    /// Nodes that Redis is to be told to forget, by name.
    forgetting: BTreeMap<String, Forgetting>,
    leaving: bool,
    faults: Faults,
}

/// A command that was sent, as far as its answer needs it.
#[derive(Debug)]
enum UnderWay {
    Beat {
        sent: u64,
        applied: Position,
    },
    Read {
        sent: u64,
        epoch: u64,
    },
    /// `term`: of [`Own`]; what was sent in another may be lost.
    Append {
        term: u64,
        id: PurgeId,
    },
    AppendUnsafe {
        term: u64,
        batch: Batch,
    },
    Propose,
    Forget {
        name: String,
        instance: Instance,
    },
    Leave,
}

#[derive(Debug, Default)]
struct Beats {
    number: u64,
    acknowledged: u64,
    under_way: bool,
    next_at: u64,
    /// The position that the record has of this node.
    reported: Position,
    vouch: Option<Vouch>,
    proposing: bool,
    /// Another life of this name that keeps this one from being registered, its last heartbeat, and whether it went on.
    namesake: Option<(Instance, u64, bool)>,
}

#[derive(Debug, Default)]
struct Reads {
    under_way: Option<Ticket>,
    next_at: u64,
    /// How far the streams were read; beyond what was applied only where others have put something there.
    read_to: (Position, Position),
    /// The last entries of both streams by a heartbeat, where they were not applied yet, and when its answer came.
    owed: Option<((Position, Position), u64)>,
    missing: Option<Missing>,
}

/// Entries that a read did not find where they should be. What is wrong a heartbeat tells; if it knows of nothing, they are lost.
#[derive(Debug)]
struct Missing {
    /// Where both streams go on.
    after: (Position, Position),
    seen_at: u64,
}

#[derive(Debug, Default)]
struct Batches {
    /// Taken from the journal, to be appended (again).
    waiting: VecDeque<Batch>,
    /// The last that were appended, and whether they were read in their place.
    recent: VecDeque<(Batch, bool)>,
    unread: usize,
    under_way: usize,
    next_at: u64,
    /// After a failure, whatever waits.
    retry_at: u64,
}

impl Batches {
    /// An append has ended; where it did nothing, as far as is known, it is done again later.
    fn failed(&mut self, batch: Batch, now_ms: u64) {
        self.under_way -= 1;
        self.waiting.push_back(batch);
        self.retry_at = now_ms + RETRY_MS;
    }

    fn appended(&mut self, batch: Batch, was_read: bool) {
        self.under_way -= 1;
        self.unread += usize::from(!was_read);
        self.recent.push_back((batch, was_read));
        while self.recent.len() > BATCHES_REPEATED && self.recent.front().is_some_and(|(_, was_read)| *was_read) {
            self.recent.pop_front();
        }
    }

    /// It was read in its place.
    fn placed(&mut self, id: PurgeId) {
        if let Some((_, was_read)) = self.recent.iter_mut().find(|(batch, was_read)| batch.id == id && !was_read) {
            *was_read = true;
            self.unread -= 1;
        }
    }

    fn repeat(&mut self) {
        self.waiting.extend(self.recent.drain(..).map(|(batch, _)| batch));
        self.unread = 0;
    }

    /// What is read no more would never be known to be there: nothing is appended that could not be told again.
    const fn may_append(&self) -> bool {
        self.under_way < BATCHES_MAX && self.under_way + self.unread < BATCHES_REPEATED
    }
}

/// A life of a node that Redis is to be told to forget: when next, and until when it is tried.
#[derive(Debug)]
struct Forgetting {
    instance: Instance,
    next_at: u64,
    until: u64,
}

/// Faults that tests plant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    own_entry_out_of_order: bool,
    acknowledged_before_apply: bool,
    previous_ignored: bool,
}

impl Faults {
    fn planted() -> Self {
        use crate::faults::{Fault, planted};
        Self {
            own_entry_out_of_order: planted(Fault::OwnEntryOutOfOrder),
            acknowledged_before_apply: planted(Fault::AcknowledgedBeforeApply),
            previous_ignored: planted(Fault::PreviousIgnored),
        }
    }
}

/// Where a stream goes on with an entry that does not follow what was applied: where that entry says that it follows, or
/// behind it, where that is no later place.
fn goes_on(applied: Position, previous: Position, position: Position) -> Position {
    if previous > applied { previous } else { position }
}

impl Fleet {
    /// `instance` is new in each life of the process; the journal has `Order::Fleet`.
    pub fn new(settings: Settings, instance: Instance, journal: Arc<Journal>) -> Self {
        Self {
            own: Own::new(settings.receipts),
            settings,
            instance,
            journal,
            tickets: 0,
            under_way: HashMap::new(),
            server: Server::default(),
            server_since: 0,
            applied: Position::default(),
            unsafe_applied: Position::default(),
            witness: None,
            lease: Lease::default(),
            beat: Beats::default(),
            read: Reads::default(),
            members: Members::default(),
            stand_in: None,
            batches: Batches::default(),
            forgetting: BTreeMap::new(),
            leaving: false,
            faults: Faults::planted(),
        }
    }

    /// Takes what happened by `now`, which was read after it.
    pub fn on(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Issued(purge) => {
                if self.applied.epoch == 0 {
                    let why = "the fleet's journal was not heard of yet";
                    self.journal.change_receipt(purge.id, |receipt| receipt.reason = Some(why.into()));
                }
                let given_up = self.own.issue(purge, now.mono_ms);
                given_up.iter().for_each(|&id| self.journal.give_up(id));
                if !given_up.is_empty() {
                    actions.push(Action::Note(Note::GivenUp { purges: given_up.len() }));
                }
            }
            Event::Answered(ticket, answer) => self.answered(ticket, answer, now, &mut actions),
            Event::Failed(ticket, why) => self.failed(ticket, &why, now, &mut actions),
            Event::Forget(name) => {
                // The life that is known here: it may be back by now, and then purges have to wait for it.
                match self.members.instance(&name) {
                    Some(instance) => {
                        let forgetting = Forgetting { instance, next_at: now.mono_ms, until: now.mono_ms + FORGET_MS };
                        self.forgetting.insert(name, forgetting);
                    }
                    None => actions.push(Action::Forgotten(name)),
                }
            }
            Event::Leave => {
                self.leaving = true;
                let command = Command::Leave { name: self.settings.name.clone(), instance: self.instance };
                self.send(UnderWay::Leave, command, &mut actions);
            }
        }
        if !self.leaving {
            self.send_due(now, &mut actions);
        }
        actions
    }

    /// Boot-time ms at which the next [`Event::Tick`] is wanted, where nothing else happens.
    pub fn wake_at(&self) -> u64 {
        let beat = if self.beat.under_way { u64::MAX } else { self.beat.next_at };
        let beat = self.forgetting.values().map(|forgetting| forgetting.next_at).fold(beat, u64::min);
        if self.applied.epoch == 0 {
            return beat;
        }
        let read = if self.read.under_way.is_some() { u64::MAX } else { self.read.next_at };
        let has_batch = self.batches.may_append() && (!self.batches.waiting.is_empty() || self.journal.untold().0 > 0);
        let batch = if has_batch { self.batches.next_at.max(self.batches.retry_at) } else { u64::MAX };
        beat.min(read).min(batch).min(self.own.next_at())
    }

    /// Read to the tail once: what this node has may be used, and it may be called ready.
    pub fn has_started(&self) -> bool {
        self.lease.until() > 0
    }

    /// Whether the fleet will remember this node as one that serves while it is cut off: its registration stood for so
    /// long that a failover has it too. Until then `Policy::Serve` is not in force: it revalidates.
    pub fn is_remembered(&self) -> bool {
        self.lease.is_remembered()
    }

    pub const fn applied(&self) -> Position {
        self.applied
    }

    /// The other nodes as this one last saw them.
    pub fn members(&self) -> impl Iterator<Item = &Seen> {
        self.members.iter()
    }

    /// Another life of this node's name is registered, so that this one cannot be: a node that runs, or one that was killed
    /// so shortly ago that nobody can tell.
    pub const fn is_name_taken(&self) -> bool {
        self.beat.namesake.is_some()
    }

    /// Own purges that have no place in the order yet.
    pub fn unappended(&self) -> usize {
        self.own.unappended()
    }

    /// What is in force here and Redis was not told, as far as is known: purges, batches, and what is in no batch yet.
    pub fn untold(&self) -> usize {
        self.unappended() + self.batches.waiting.len() + self.batches.under_way + self.journal.untold().0
    }

    fn answered(&mut self, ticket: Ticket, answer: Answer, now: Now, actions: &mut Vec<Action>) {
        match (self.under_way.remove(&ticket), answer) {
            (Some(UnderWay::Beat { sent, applied }), Answer::Beat(answer)) => {
                self.beat.under_way = false;
                self.beat_answered(sent, applied, *answer, now, actions);
            }
            (Some(UnderWay::Read { sent, epoch }), Answer::Read(found)) => {
                if self.read.under_way == Some(ticket) {
                    self.read.under_way = None;
                }
                if epoch == self.applied.epoch {
                    self.read_answered(sent, found, now, actions);
                }
            }
            (Some(UnderWay::Append { term, id }), Answer::Appended(position)) => {
                if term == self.own.term() {
                    self.appended(id, position, now, actions);
                }
            }
            (Some(UnderWay::AppendUnsafe { term, batch }), Answer::Appended(position)) => match position {
                Some(position) if term == self.own.term() => self.batches.appended(batch, position <= self.unsafe_applied),
                _ => {
                    self.batches.failed(batch, now.mono_ms);
                    self.beat.next_at = now.mono_ms;
                }
            },
            (Some(UnderWay::Propose), _) => {
                self.beat.proposing = false;
                self.beat.next_at = now.mono_ms;
            }
            (Some(UnderWay::Forget { name, instance }), Answer::Left) => {
                self.forgetting.remove(&name);
                self.members.forget(&name, instance);
                actions.push(Action::Forgotten(name));
            }
            (Some(UnderWay::Leave) | None, _) => {}
            (Some(under_way), _) => {
                // Not what was asked for: as if no answer had come.
                self.under_way.insert(ticket, under_way);
                self.failed(ticket, "the answer is of another kind", now, actions);
            }
        }
    }

    fn failed(&mut self, ticket: Ticket, why: &str, now: Now, actions: &mut Vec<Action>) {
        let retry_at = now.mono_ms + RETRY_MS;
        match self.under_way.remove(&ticket) {
            Some(UnderWay::Beat { .. }) => {
                self.beat.under_way = false;
                self.beat.next_at = retry_at;
            }
            Some(UnderWay::Read { .. }) => {
                if self.read.under_way == Some(ticket) {
                    (self.read.under_way, self.read.next_at) = (None, retry_at);
                }
            }
            Some(UnderWay::Append { term, id }) => {
                if term == self.own.term() {
                    self.not_appended(id, why, now, actions);
                }
            }
            Some(UnderWay::AppendUnsafe { batch, .. }) => self.batches.failed(batch, now.mono_ms),
            Some(UnderWay::Propose) => {
                self.beat.proposing = false;
                self.beat.next_at = retry_at;
            }
            Some(UnderWay::Forget { name, .. }) => {
                if let Some(forgetting) = self.forgetting.get_mut(&name) {
                    forgetting.next_at = retry_at;
                }
            }
            Some(UnderWay::Leave) | None => {}
        }
    }

    fn beat_answered(&mut self, sent: u64, reported: Position, answer: BeatAnswer, now: Now, actions: &mut Vec<Action>) {
        self.beat.next_at = now.mono_ms + self.settings.beat_ms();
        if answer.server != self.server {
            if self.server != Server::default() {
                self.server_since = now.mono_ms;
                self.append_again();
                actions.push(Action::Note(Note::ServerChanged));
            }
            self.server = answer.server.clone();
        }
        if let Some(record) = &answer.record {
            self.members.see(&record.members, &self.settings.name, now.mono_ms, self.settings.forget_after_ms);
        }
        match (answer.taken, &answer.record) {
            (Ok(taken), Some(record)) if record.epoch == self.applied.epoch => {
                self.beat.acknowledged = self.beat.number;
                self.beat.reported = reported;
                self.beat.namesake = None;
                if record.server == answer.server {
                    self.registered(sent, taken.continued, &answer, record, now, actions);
                } else {
                    self.doubted(&answer, record, now, actions);
                }
            }
            (Err(Refusal::OtherEpoch), Some(record)) if record.epoch > self.applied.epoch => self.enter(record, now, actions),
            (Err(Refusal::BehindTrim), Some(record)) if record.epoch == self.applied.epoch => self.leap(record, now, actions),
            (Err(refusal @ Refusal::EntryLost), Some(record)) if record.epoch == self.applied.epoch => {
                self.lost(refusal, Some(record.epoch), now, actions);
            }
            (Err(Refusal::OtherEpoch), Some(record)) if record.epoch < self.applied.epoch => {
                self.lost(Refusal::OtherEpoch, Some(record.epoch), now, actions);
            }
            (Err(Refusal::NameTaken), Some(record)) => self.refused_its_name(record, answer.now_ms, now, actions),
            (Err(Refusal::NoRecord), _) | (_, None) => self.lost(Refusal::NoRecord, None, now, actions),
            // Another server, or this node has moved on meanwhile.
            _ => self.beat.next_at = now.mono_ms,
        }
    }

    /// The heartbeat was taken by a server that is vouched for.
    fn registered(&mut self, sent: u64, continued: bool, answer: &BeatAnswer, record: &Record, now: Now, actions: &mut Vec<Action>) {
        self.beat.vouch = None;
        if self.read.missing.as_ref().is_some_and(|missing| missing.seen_at + self.settings.beat_ms() <= sent) {
            return self.leap_over_hole(now, actions);
        }
        self.look_back(record, now);
        let unbroken = continued && self.lease.holds(now.mono_ms);
        if !unbroken {
            self.members.joined();
        }
        self.lease.beat(sent, unbroken, (record.last, record.unsafe_last), now.mono_ms);
        self.extend();
        let lapse_ms = self.settings.lapse_ms();
        let settled = answer.now_ms.saturating_sub(record.since_ms) >= i64::try_from(lapse_ms).unwrap_or(i64::MAX)
            && (self.server_since == 0 || sent >= self.server_since + lapse_ms);
        let question = Question {
            sent,
            server: &self.server,
            lapse_ms,
            beat_ms: self.settings.beat_ms(),
            forget_after_ms: self.settings.forget_after_ms,
            long_unbroken: self.lease.unbroken_for(now.mono_ms) >= OUTAGE_MS,
            epoch: self.applied.epoch,
        };
        let told =
            self.own.ask(&question, &self.members, settled || self.faults.acknowledged_before_apply, self.faults, &self.journal, now);
        actions.extend(told.into_iter().map(Action::Told));
    }

    /// Another life of this name is registered. This node begins when that one's lease has surely ended, which it never does
    /// where that one goes on.
    fn refused_its_name(&mut self, record: &Record, redis_ms: i64, now: Now, actions: &mut Vec<Action>) {
        self.lease.doubt();
        // Purges no longer wait for this one.
        self.lease.forget();
        let Some(other) = record.members.iter().find(|member| member.name == self.settings.name) else { return };
        let before = self.beat.namesake.filter(|(instance, ..)| *instance == other.instance);
        let went_on = before.is_some_and(|(_, beat, went_on)| went_on || beat != other.beat);
        if went_on && before.is_some_and(|(.., known)| !known) {
            actions.push(Action::Note(Note::NameTaken));
        }
        self.beat.namesake = Some((other.instance, other.beat, went_on));
        let left_ms = self.settings.lapse_ms().saturating_sub(redis_ms.abs_diff(other.at_ms));
        self.beat.next_at = now.mono_ms + left_ms.clamp(POLL_MS, self.settings.beat_ms());
    }

    /// What the record says is there, and was not read yet, may lie before something that others have put into the streams.
    fn look_back(&mut self, record: &Record, now: Now) {
        let last = (record.last, record.unsafe_last);
        let is_behind = |last: (Position, Position)| last.0 > self.applied || last.1 > self.unsafe_applied;
        // The first that is owed stays until it is there: a read was sent after each heartbeat some time.
        let owed = self.read.owed.filter(|(last, _)| is_behind(*last));
        self.read.owed = owed.or_else(|| is_behind(last).then_some((last, now.mono_ms)));
        if last.0 > self.applied && last.0 <= self.read.read_to.0 {
            self.read.read_to.0 = self.applied;
        }
        if last.1 > self.unsafe_applied && last.1 <= self.read.read_to.1 {
            self.read.read_to.1 = self.unsafe_applied;
        }
    }

    /// The server that took the heartbeat is not the one that the record vouches for: it may have lost something.
    fn doubted(&mut self, answer: &BeatAnswer, record: &Record, now: Now, actions: &mut Vec<Action>) {
        self.lease.doubt();
        let Some(doubt) = record.doubt.as_ref().filter(|doubt| doubt.server == answer.server) else { return };
        let seen_all = self.witness.is_some() || self.applied == Position::start_of(self.applied.epoch);
        self.beat.next_at = now.mono_ms + POLL_MS;
        self.beat.vouch = if self.lease.holds(now.mono_ms) && seen_all {
            let left = i64::try_from(self.lease.until() - now.mono_ms).unwrap_or(0);
            Some(Vouch::Unbroken { until_ms: answer.now_ms + left })
        } else {
            self.all_are_back(doubt, record).then_some(Vouch::Together)
        };
        let waited_ms = answer.now_ms.saturating_sub(doubt.since_ms);
        if self.beat.vouch.is_none() && waited_ms >= i64::try_from(self.settings.lapse_ms()).unwrap_or(i64::MAX) {
            actions.push(Action::Note(Note::Unvouched));
            self.propose(Some(record.epoch), actions);
        }
    }

    /// Whether every node that was registered when the last server was lost has come to this one, and misses nothing;
    /// and the outage was so short that nobody else can have completed a purge in it.
    fn all_are_back(&self, doubt: &Doubt, record: &Record) -> bool {
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let recent_ms = doubt.newest_ms.saturating_sub(ms(self.settings.lapse_ms()));
        let missing = record.members.iter().any(|member| !member.left && member.at_ms > recent_ms && member.server != doubt.server);
        !doubt.spoiled
            && !missing
            && doubt.since_ms.saturating_sub(doubt.newest_ms) < ms(OUTAGE_MS)
            && self.members.absent_from(&record.members).next().is_none()
    }

    /// Moves to a later epoch. What is stored stays if this node missed nothing that counts as complete.
    fn enter(&mut self, record: &Record, now: Now, actions: &mut Vec<Action>) {
        let kept = self.applied.epoch > 0 && self.lease.holds(now.mono_ms) && self.applied >= record.base;
        let start = Position::start_of(record.epoch);
        self.go_to(start, start, !kept, now);
        self.lease.doubt();
        self.append_again();
        self.beat.next_at = now.mono_ms;
        let again = self.own.repair(now.mono_ms, self.settings.repair_ms);
        actions.push(Action::Note(Note::Epoch { epoch: record.epoch, kept }));
        if again > 0 {
            actions.push(Action::Note(Note::Repaired { purges: again }));
        }
    }

    /// Goes on where the streams begin: what was before is trimmed.
    fn leap(&mut self, record: &Record, now: Now, actions: &mut Vec<Action>) {
        let (purges, unsafe_methods) = (record.first_previous, record.unsafe_first_previous);
        self.go_to(purges.max(self.applied), unsafe_methods.max(self.unsafe_applied), true, now);
        self.append_again();
        self.beat.next_at = now.mono_ms;
        actions.push(Action::Note(Note::BehindTrim));
    }

    /// What was appended, and not read here yet, may be lost, or lies before where this node goes on.
    fn append_again(&mut self) {
        self.give_up_stand_in();
        self.own.append_again();
        self.batches.repeat();
    }

    /// Another will stand in for all that was given up until then.
    fn give_up_stand_in(&mut self) {
        if let Some(id) = self.stand_in.take() {
            self.own.withdraw(id);
            self.journal.give_up(id);
        }
    }

    /// Entries are missing, and a heartbeat that was sent later found nothing wrong: somebody took them out of the stream. What
    /// they purged is not known; so this node drops all that it holds, and goes on behind them.
    fn leap_over_hole(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(Missing { after, .. }) = self.read.missing.take() else { return };
        self.go_to(after.0.max(self.applied), after.1.max(self.unsafe_applied), true, now);
        self.append_again();
        self.beat.next_at = now.mono_ms;
        actions.push(Action::Note(Note::Hole));
    }

    fn go_to(&mut self, purges: Position, unsafe_methods: Position, drop_held: bool, now: Now) {
        self.journal.jump(purges, unsafe_methods, drop_held, now);
        if purges != self.applied {
            self.witness = None;
        }
        (self.applied, self.unsafe_applied) = (purges, unsafe_methods);
        // What is under way reads from elsewhere.
        if let Some(before) = self.read.under_way {
            self.under_way.remove(&before);
        }
        self.read = Reads { next_at: now.mono_ms, ..Reads::default() };
    }

    fn lost(&mut self, refusal: Refusal, expected: Option<u64>, now: Now, actions: &mut Vec<Action>) {
        self.lease.doubt();
        self.beat.next_at = now.mono_ms + RETRY_MS;
        if self.applied.epoch > 0 {
            actions.push(Action::Note(Note::Loss(refusal)));
        }
        self.propose(expected, actions);
    }

    fn propose(&mut self, expected: Option<u64>, actions: &mut Vec<Action>) {
        if !self.beat.proposing {
            self.beat.proposing = true;
            let proposal = Proposal { expected, at_least: self.applied.epoch + 1, base: self.applied };
            self.send(UnderWay::Propose, Command::Propose(proposal), actions);
        }
    }

    fn read_answered(&mut self, sent: u64, found: Found, now: Now, actions: &mut Vec<Action>) {
        if found.foreign > 0 {
            actions.push(Action::Note(Note::Foreign { entries: found.foreign }));
        }
        let (purges, unsafe_methods) = (self.apply(found.purges, now, actions), self.apply_unsafe(&found.unsafe_methods, now));
        if purges.is_ok() {
            self.read.read_to.0 = self.read.read_to.0.max(found.read_to.0);
        }
        if unsafe_methods.is_ok() {
            self.read.read_to.1 = self.read.read_to.1.max(found.read_to.1);
        }
        let followed = purges.is_ok() && unsafe_methods.is_ok();
        let owed = self.read.owed.filter(|(_, since)| !found.is_full && *since <= sent).map(|(last, _)| last);
        let owed = owed.filter(|last| last.0 > self.applied || last.1 > self.unsafe_applied);
        if followed {
            self.lease.read(sent);
            self.extend();
            self.read.next_at = now.mono_ms;
        } else {
            actions.push(Action::Note(Note::Gap));
            self.read.next_at = now.mono_ms + RETRY_MS;
        }
        self.read.missing = match (followed, owed) {
            (true, None) => None,
            // Behind a gap there may be another: each is looked at in its turn.
            (false, _) => Some((purges.err(), unsafe_methods.err())),
            (true, Some((purge, unsafe_method))) => Some((Some(purge), Some(unsafe_method))),
        }
        .map(|(purge, unsafe_method)| Missing {
            after: (purge.unwrap_or(self.applied), unsafe_method.unwrap_or(self.unsafe_applied)),
            seen_at: self.read.missing.as_ref().map_or(now.mono_ms, |missing| missing.seen_at),
        });
        if self.read.missing.is_some() || self.applied != self.beat.reported {
            // The heartbeat finds out whether this is a loss, or behind the trim, or neither.
            self.beat.next_at = now.mono_ms;
        }
    }

    /// Fails with where the stream goes on, if that is not after what was applied.
    fn apply(&mut self, entries: Vec<super::Entry>, now: Now, actions: &mut Vec<Action>) -> Result<(), Position> {
        for mut entry in entries {
            if self.faults.previous_ignored {
                entry.previous = self.applied;
            }
            match self.journal.apply(&entry, now) {
                Ok(()) => {
                    (self.applied, self.witness) = (entry.position, Some(entry.purge.id));
                    if self.stand_in == Some(entry.purge.id) {
                        self.stand_in = None;
                        actions.push(Action::Note(Note::StoodIn));
                    }
                    if self.own.placed(entry.purge.id, entry.position, now.mono_ms, &self.journal) {
                        actions.push(Action::Told(entry.purge.id));
                    }
                }
                Err(Refused::Duplicate { .. }) => {}
                Err(Refused::Gap { .. } | Refused::OlderEpoch { .. }) => return Err(goes_on(self.applied, entry.previous, entry.position)),
            }
        }
        Ok(())
    }

    fn apply_unsafe(&mut self, entries: &[UnsafeEntry], now: Now) -> Result<(), Position> {
        for entry in entries {
            // What this node has beyond `previous` was lost by a failover. Writes come so fast that each failover loses some,
            // so this is no new epoch: nothing is missed here, and what others missed is told again (`Batches::repeat`).
            let previous = entry.previous.max(self.unsafe_applied);
            match self.journal.apply_unsafe(entry.position, previous, &entry.batch, now) {
                Ok(()) => {
                    self.unsafe_applied = entry.position;
                    self.batches.placed(entry.batch.id);
                }
                Err(Refused::Duplicate { .. }) => {}
                Err(Refused::Gap { .. } | Refused::OlderEpoch { .. }) => return Err(previous),
            }
        }
        Ok(())
    }

    /// Renews the lease as far as what was answered goes.
    fn extend(&mut self) {
        if let Some(until) = self.lease.extend((self.applied, self.unsafe_applied), self.settings.trust_ms, self.settings.lapse_ms()) {
            self.journal.set_followed_since(self.lease.since());
            self.journal.trust_until(until);
        }
    }

    fn appended(&mut self, id: PurgeId, position: Option<Position>, now: Now, actions: &mut Vec<Action>) {
        let Some(position) = position else {
            self.beat.next_at = now.mono_ms;
            return self.not_appended(id, "the journal is not sure what Redis holds: it is being found out", now, actions);
        };
        self.own.told(id);
        if self.faults.own_entry_out_of_order && position > self.applied {
            self.go_to(position, self.unsafe_applied, false, now);
        }
    }

    fn not_appended(&mut self, id: PurgeId, why: &str, now: Now, actions: &mut Vec<Action>) {
        self.own.failed(id, now.mono_ms);
        if self.stand_in == Some(id) {
            return self.give_up_stand_in();
        }
        self.journal.change_receipt(id, |receipt| receipt.reason = Some(why.to_owned()));
        actions.push(Action::Told(id));
    }

    fn send_due(&mut self, now: Now, actions: &mut Vec<Action>) {
        let now_ms = now.mono_ms;
        if !self.beat.under_way && now_ms >= self.beat.next_at {
            self.send_beat(now_ms, actions);
        }
        self.send_forgotten(now_ms, actions);
        let epoch = self.applied.epoch;
        if epoch == 0 {
            return;
        }
        if self.read.under_way.is_none() && now_ms >= self.read.next_at {
            let (purges_after, unsafe_after) = (self.applied.max(self.read.read_to.0), self.unsafe_applied.max(self.read.read_to.1));
            let read = Read { epoch, purges_after, unsafe_after, wait_ms: self.settings.beat_ms(), count: READ_COUNT };
            self.read.under_way = Some(self.send(UnderWay::Read { sent: now_ms, epoch }, Command::Read(read), actions));
        }
        if self.stand_in.is_none()
            && self.own.may_append(now_ms)
            && let Some(purge) = self.journal.stand_in(now)
        {
            self.stand_in = Some(purge.id);
            self.own.want(purge, now_ms);
        }
        while let Some(purge) = self.own.next_to_append(now_ms) {
            let under_way = UnderWay::Append { term: self.own.term(), id: purge.id };
            self.send(under_way, Command::Append { epoch, purge }, actions);
        }
        self.send_batches(epoch, now, actions);
        if let Some(issued_at) = self.own.youngest_waiting()
            && !self.beat.under_way
        {
            let waited_ms = now_ms.saturating_sub(issued_at);
            let poll_ms = match waited_ms {
                ..SOON_MS => POLL_MS,
                _ if waited_ms <= 2 * self.settings.lapse_ms() => RETRY_MS,
                _ => self.settings.beat_ms(),
            };
            self.beat.next_at = self.beat.next_at.min(now_ms + poll_ms);
        }
    }

    fn send_beat(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        self.beat.number += 1;
        self.beat.under_way = true;
        let beat = Beat {
            name: self.settings.name.clone(),
            instance: self.instance,
            policy: self.settings.policy,
            beat: self.beat.number,
            acknowledged: self.beat.acknowledged,
            applied: self.applied,
            unsafe_applied: self.unsafe_applied,
            witness: self.witness,
            server: self.server.clone(),
            vouch: self.beat.vouch.take(),
            restore: self.members.lost().collect(),
            prune_ms: 2 * self.settings.forget_after_ms,
            lapse_ms: self.settings.lapse_ms(),
        };
        self.send(UnderWay::Beat { sent: now_ms, applied: self.applied }, Command::Beat(Box::new(beat)), actions);
    }

    fn send_forgotten(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        self.forgetting.retain(|_, forgetting| now_ms < forgetting.until);
        let mut due = Vec::new();
        for (name, forgetting) in &mut self.forgetting {
            if forgetting.next_at <= now_ms {
                forgetting.next_at = forgetting.until; // unless it fails
                due.push((name.clone(), forgetting.instance));
            }
        }
        for (name, instance) in due {
            self.send(UnderWay::Forget { name: name.clone(), instance }, Command::Leave { name, instance }, actions);
        }
    }

    fn send_batches(&mut self, epoch: u64, now: Now, actions: &mut Vec<Action>) {
        let is_early = now.mono_ms < self.batches.next_at && self.journal.untold().0 < Batch::HASHES_MAX;
        if is_early || now.mono_ms < self.batches.retry_at {
            return;
        }
        self.batches.next_at = now.mono_ms + BATCH_MS;
        while self.batches.may_append() {
            let batch = match self.batches.waiting.pop_front() {
                Some(again) => again,
                None => {
                    let Some(batch) = self.journal.take_batch(now) else { return };
                    if batch.hashes == [(Kind::Everything, 0)] {
                        actions.push(Action::Note(Note::StoodIn));
                    }
                    batch
                }
            };
            self.batches.under_way += 1;
            let command = Command::AppendUnsafe { epoch, batch: batch.clone() };
            self.send(UnderWay::AppendUnsafe { term: self.own.term(), batch }, command, actions);
        }
    }

    fn send(&mut self, under_way: UnderWay, command: Command, actions: &mut Vec<Action>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.under_way.insert(ticket, under_way);
        actions.push(Action::Send(ticket, command));
        ticket
    }
}
