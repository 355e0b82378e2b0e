//! What a node asks of the Redis that keeps the fleet's journal, and what that answers.
//!
//! Redis holds one hash, the *record* ([`Record`]), and per epoch two streams, purges and unsafe methods. All in one
//! slot. Each command but [`Command::Read`] is one script, so that it happens at once and only on a master; a script
//! compares and reports, it decides nothing that is not written here. `simulation` has them as a model to compare with.
//!
//! Positions inside a stream are `ms-sequence`, the epoch is known from the stream's key. What cannot be read of an entry
//! (damaged, or of a later version) is never skipped: whoever reads makes it a hard purge of everything. What does not say
//! which entry it follows was put there by somebody else: it has no place in the order, and is passed over.

use super::super::{Entry, Kind, Position, Purge, PurgeId};
use std::fmt;
use std::sync::Arc;

/// Which server answered: its run id and its replication id. Another after each restart and each failover.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Server(pub Arc<str>);

/// Names one life of a node: another after each start. 128 random bits, as text 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(pub u128);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a node does with stored responses while it is cut off from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Serves them, for so long; then it does as `Revalidate`. `None`: nobody knows for how long.
    Serve { at_most_ms: Option<u64>, every_ms: u64 },
    /// Serves those that were validated so long before the request at most.
    Revalidate { every_ms: u64 },
    /// Serves none.
    Bypass,
}

/// A node as the record has it. As text: see `docs/formats.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Configured, unique in the fleet; stays over restarts.
    pub name: String,
    pub instance: Instance,
    pub policy: Policy,
    /// Number of the heartbeat that wrote this, from 1 in each life.
    pub beat: u64,
    /// The last heartbeat whose answer the node had when it sent this one.
    pub acknowledged: u64,
    /// The last purge that it has applied.
    pub applied: Position,
    /// Redis' time of the heartbeat; written by the script.
    pub at_ms: i64,
    /// The server that took the heartbeat; written by the script.
    pub server: Server,
    /// It left in order, or was forgotten by hand: nothing waits for it, and nobody restores it.
    pub left: bool,
}

/// A batch of invalidations by unsafe methods, of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Random, as that of a purge.
    pub id: PurgeId,
    /// [`Kind::Url`], [`Kind::Group`] or [`Kind::Host`], and the hash; at most [`Batch::HASHES_MAX`]. Or [`Kind::Everything`]
    /// and 0, in the stead of more than a node keeps.
    pub hashes: Vec<(Kind, u128)>,
}

impl Batch {
    pub const HASHES_MAX: usize = 256;
}

/// A batch in its place in the stream of unsafe methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeEntry {
    pub position: Position,
    pub previous: Position,
    pub batch: Batch,
}

/// Names a command that was sent; its outcome comes back with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Script. [`Answer::Beat`].
    Beat(Box<Beat>),
    /// A blocking read of both streams, on a connection of its own. [`Answer::Read`].
    Read(Read),
    /// Script: adds the purge to the stream of `epoch`, with `prev` (the record's `last`), and sets the record's `last`.
    /// The id is the latest of Redis' time, the record's `ids_from` (see [`Vouch`]), the next after `last` (so that a
    /// stream that was evicted looks like one that was trimmed), and the next after whatever else is in the stream. Refused
    /// where the record has another epoch, vouches for another server, or is gone. [`Answer::Appended`].
    Append { epoch: u64, purge: Purge },
    /// The same for the stream of unsafe methods, with the record's `unsafe_last`. [`Answer::Appended`].
    AppendUnsafe { epoch: u64, batch: Batch },
    /// Script: a new epoch, if the record still is as expected. [`Answer::Proposed`].
    Propose(Proposal),
    /// Script: sets `left` for the member if it still is this instance. [`Answer::Left`].
    Leave { name: String, instance: Instance },
}

/// A heartbeat: renews the registration of the node and asks how things stand.
///
/// The script compares in this order, and writes nothing where it refuses:
/// 1. no record, or no epoch in it: [`Refusal::NoRecord`];
/// 2. `server` is not the one that runs the script: [`Refusal::OtherServer`]. (Before it answers: if the record's
///    `server` is not this one and its `doubt` is not of this one, it sets `doubt` to this server, the time, and the
///    newest `at_ms` of all members.)
/// 3. the record's epoch is not that of `applied`: [`Refusal::OtherEpoch`];
/// 4. `applied` is before the `prev` of the first purge in the stream: [`Refusal::BehindTrim`]. (The same for the other stream.)
/// 5. `applied` is after `last`, or others have used up the places of a stream, or `witness` is given, the stream reaches back to `applied`, and the entry there is not
///    the purge of that id: [`Refusal::EntryLost`];
/// 6. a member of this name that has not left is of another instance, and its `at_ms` and the time differ by less than
///    `lapse_ms`: [`Refusal::NameTaken`].
///
/// Else it writes the member. `continued` is whether one of this name and instance was there, had not left, and had a
/// `beat` of at least `acknowledged`. If it was not, and `acknowledged` is not 0 or another instance was there that had
/// not left, the doubt (if there is one) is spoiled. The script puts back those of `restore` that the record does not
/// have, with the `at_ms` and `server` that are given; takes out members whose `at_ms` is older than `prune_ms`; and,
/// where `vouch` holds, makes this server the record's, since now, and ends the doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    pub name: String,
    pub instance: Instance,
    pub policy: Policy,
    pub beat: u64,
    pub acknowledged: u64,
    /// What this node applied; its epoch is the node's.
    pub applied: Position,
    pub unsafe_applied: Position,
    /// Id of the purge at `applied`, where this node applied one there.
    pub witness: Option<PurgeId>,
    /// The server that this node believes to talk to.
    pub server: Server,
    pub vouch: Option<Vouch>,
    pub restore: Vec<Member>,
    pub prune_ms: u64,
    pub lapse_ms: u64,
}

/// That nothing of what counted as complete is missing on a server that began or was promoted under the journal.
///
/// When it holds, the script also sets the record's `ids_from` to its time and [`Vouch::IDS_AHEAD_MS`]: entries that the
/// server before gave out and lost had lower ids than all that come now, whatever the difference of the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouch {
    /// By a node that was trusted without a break, and whose last entry is there (5. above): holds if Redis' time is not
    /// past this.
    Unbroken { until_ms: i64 },
    /// By all: holds if the doubt is not spoiled.
    Together,
}

impl Vouch {
    pub const IDS_AHEAD_MS: i64 = 10_000;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeatAnswer {
    /// Who answered, whatever the answer.
    pub server: Server,
    /// Redis' time.
    pub now_ms: i64,
    pub taken: Result<Taken, Refusal>,
    /// As it is after the script; `None` where there is none.
    pub record: Option<Record>,
}

/// The heartbeat was taken: the node is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub continued: bool,
}

/// Why a heartbeat was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoRecord,
    OtherServer,
    OtherEpoch,
    BehindTrim,
    EntryLost,
    /// Another life of this name is registered, and may still believe that it is.
    NameTaken,
}

/// The journal's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub epoch: u64,
    /// What the node that made this epoch had applied.
    pub base: Position,
    /// The last id of the stream of purges; [`Position::start_of`] the epoch before the first.
    pub last: Position,
    pub unsafe_last: Position,
    /// Of the streams, not the record: `prev` of the first entry; `last` where the stream is empty.
    pub first_previous: Position,
    pub unsafe_first_previous: Position,
    /// The server that is vouched for.
    pub server: Server,
    /// Redis' time since which it is, in this epoch.
    pub since_ms: i64,
    pub doubt: Option<Doubt>,
    pub members: Vec<Member>,
}

/// The server that answers is not the one that the record vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The one in doubt.
    pub server: Server,
    /// Redis' time of its first heartbeat.
    pub since_ms: i64,
    /// The newest `at_ms` of all members before that.
    pub newest_ms: i64,
    /// A heartbeat that was acknowledged is missing.
    pub spoiled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    pub epoch: u64,
    pub purges_after: Position,
    pub unsafe_after: Position,
    /// How long to wait where there is nothing.
    pub wait_ms: u64,
    /// Entries of each stream at most.
    pub count: usize,
}

/// Makes an epoch if the record's is `expected` (`None`: if there is none): the epoch is the greatest of `at_least`,
/// Redis' time in ms, and one above the record's. Sets `base`, this server since now, both last ids to the epoch's start;
/// ends a doubt; keeps the members. Streams of epochs before are removed, also where the record was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposal {
    pub expected: Option<u64>,
    pub at_least: u64,
    pub base: Position,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Beat(Box<BeatAnswer>),
    Read(Found),
    /// `None`: another epoch, or no record.
    Appended(Option<Position>),
    /// Whoever made it, the epoch that the record has now.
    Proposed {
        epoch: u64,
    },
    Left,
}

/// What a read came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub purges: Vec<Entry>,
    pub unsafe_methods: Vec<UnsafeEntry>,
    /// The last of what was found in each stream, whoever put it there; where it was read from, if there was nothing.
    pub read_to: (Position, Position),
    /// Entries that are none of the journal's.
    pub foreign: usize,
    /// As many entries as were asked for: there may be more.
    pub is_full: bool,
}
