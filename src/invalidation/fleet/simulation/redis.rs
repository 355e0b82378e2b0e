//! A model of the Redis that keeps the journal: the record, the streams, the scripts of [`super::super::protocol`] word by
//! word, and a shared tier beside them.

use super::super::protocol::UnsafeEntry;
use super::super::protocol::{
    Answer, Batch, Beat, BeatAnswer, Command, Doubt, Member, Proposal, Read, Record, Refusal, Server, Taken, Vouch,
};
use super::world::TierEntry;
use crate::invalidation::{Entry, Position, Purge, PurgeId};
use std::collections::{BTreeMap, VecDeque};

/// What a snapshot holds and a replica copies.
#[derive(Debug, Clone, Default)]
pub(super) struct Data {
    record: Option<Kept>,
    purges: Stream<Purge>,
    unsafe_methods: Stream<Batch>,
    pub(super) tier: BTreeMap<(u64, usize), TierEntry>,
}

#[derive(Debug, Clone)]
struct Kept {
    epoch: u64,
    base: Position,
    last: Position,
    unsafe_last: Position,
    server: Server,
    since_ms: i64,
    ids_from_ms: i64,
    doubt: Option<Doubt>,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone)]
struct Stream<T> {
    epoch: u64,
    entries: VecDeque<(Position, Position, T)>,
}

impl<T> Default for Stream<T> {
    fn default() -> Self {
        Self { epoch: 0, entries: VecDeque::new() }
    }
}

#[derive(Debug)]
pub(super) struct Redis {
    pub(super) server: Server,
    /// Its clock against the world's.
    pub(super) clock_ms: i64,
    pub(super) data: Data,
}

impl Redis {
    pub(super) fn new(name: u64) -> Self {
        Self { server: server(name), clock_ms: 0, data: Data::default() }
    }

    /// Another process or another master, with this data.
    pub(super) fn become_another(&mut self, name: u64, data: Data, clock_ms: i64) {
        *self = Self { server: server(name), clock_ms, data };
    }

    fn now_ms(&self, world_ms: u64) -> i64 {
        1_000_000 + i64::try_from(world_ms).unwrap() + self.clock_ms
    }

    /// Does a command; `None` where a read has nothing to answer yet.
    pub(super) fn run(&mut self, command: &Command, world_ms: u64) -> Option<Answer> {
        let now_ms = self.now_ms(world_ms);
        Some(match command {
            Command::Beat(beat) => Answer::Beat(Box::new(self.beat(beat, now_ms))),
            Command::Read(read) => return self.read(read),
            Command::Append { epoch, purge } => Answer::Appended(self.append(*epoch, purge, now_ms)),
            Command::AppendUnsafe { epoch, batch } => Answer::Appended(self.append_unsafe(*epoch, batch, now_ms)),
            Command::Propose(proposal) => Answer::Proposed { epoch: self.propose(proposal, now_ms) },
            Command::Leave { name, instance } => {
                let member = self.data.record.as_mut().and_then(|record| record.members.get_mut(name));
                if let Some(member) = member.filter(|member| instance.is_none_or(|instance| instance == member.instance)) {
                    member.left = true;
                    member.at_ms = now_ms;
                }
                Answer::Left
            }
        })
    }

    fn beat(&mut self, beat: &Beat, now_ms: i64) -> BeatAnswer {
        let taken = self.take_beat(beat, now_ms);
        BeatAnswer { server: self.server.clone(), now_ms, taken, record: self.record() }
    }

    fn take_beat(&mut self, beat: &Beat, now_ms: i64) -> Result<Taken, Refusal> {
        let record = self.data.record.as_mut().ok_or(Refusal::NoRecord)?;
        if record.server != self.server && record.doubt.as_ref().is_none_or(|doubt| doubt.server != self.server) {
            let newest_ms = record.members.values().map(|member| member.at_ms).max().unwrap_or(0);
            record.doubt = Some(Doubt { server: self.server.clone(), since_ms: now_ms, newest_ms, spoiled: false });
        }
        if beat.server != self.server {
            return Err(Refusal::OtherServer);
        }
        if record.epoch != beat.applied.epoch {
            return Err(Refusal::OtherEpoch);
        }
        let first_previous = self.data.purges.first_previous(record.last);
        if beat.applied < first_previous || beat.unsafe_applied < self.data.unsafe_methods.first_previous(record.unsafe_last) {
            return Err(Refusal::BehindTrim);
        }
        let there = beat.applied > first_previous && beat.witness.is_some();
        if beat.applied > record.last || there && self.data.purges.id_at(beat.applied) != beat.witness {
            return Err(Refusal::EntryLost);
        }
        let before = record.members.get(&beat.name).filter(|member| !member.left);
        let continued = before.is_some_and(|member| member.instance == beat.instance && member.beat >= beat.acknowledged);
        let replaced = before.is_some_and(|member| member.instance != beat.instance);
        if let Some(doubt) = record.doubt.as_mut()
            && !continued
            && (beat.acknowledged != 0 || replaced)
        {
            doubt.spoiled = true;
        }
        let prune_ms = i64::try_from(beat.prune_ms).unwrap();
        record.members.retain(|_, member| now_ms - member.at_ms < prune_ms);
        for member in &beat.restore {
            record.members.entry(member.name.clone()).or_insert_with(|| member.clone());
        }
        record.members.insert(
            beat.name.clone(),
            Member {
                name: beat.name.clone(),
                instance: beat.instance,
                policy: beat.policy,
                beat: beat.beat,
                acknowledged: beat.acknowledged,
                applied: beat.applied,
                at_ms: now_ms,
                server: self.server.clone(),
                left: false,
            },
        );
        let vouched = match beat.vouch {
            Some(Vouch::Unbroken { until_ms }) => now_ms <= until_ms,
            Some(Vouch::Together) => record.doubt.as_ref().is_some_and(|doubt| !doubt.spoiled),
            None => false,
        };
        if vouched && record.server != self.server {
            (record.server, record.since_ms, record.doubt) = (self.server.clone(), now_ms, None);
            record.ids_from_ms = now_ms + Vouch::IDS_AHEAD_MS;
        }
        Ok(Taken { continued })
    }

    fn record(&self) -> Option<Record> {
        self.data.record.as_ref().map(|kept| Record {
            epoch: kept.epoch,
            base: kept.base,
            last: kept.last,
            unsafe_last: kept.unsafe_last,
            first_previous: self.data.purges.first_previous(kept.last),
            unsafe_first_previous: self.data.unsafe_methods.first_previous(kept.unsafe_last),
            server: kept.server.clone(),
            since_ms: kept.since_ms,
            doubt: kept.doubt.clone(),
            members: kept.members.values().cloned().collect(),
        })
    }

    fn read(&self, read: &Read) -> Option<Answer> {
        let purges: Vec<Entry> = self
            .data
            .purges
            .after(read.epoch, read.purges_after)
            .take(read.count)
            .map(|(position, previous, purge)| Entry { position: *position, previous: *previous, purge: purge.clone() })
            .collect();
        let unsafe_methods: Vec<UnsafeEntry> = self
            .data
            .unsafe_methods
            .after(read.epoch, read.unsafe_after)
            .take(read.count)
            .map(|(position, previous, batch)| UnsafeEntry { position: *position, previous: *previous, batch: batch.clone() })
            .collect();
        (!purges.is_empty() || !unsafe_methods.is_empty()).then_some(Answer::Read { purges, unsafe_methods })
    }

    fn append(&mut self, epoch: u64, purge: &Purge, now_ms: i64) -> Option<Position> {
        let record = self.data.record.as_mut().filter(|record| record.epoch == epoch && record.server == self.server)?;
        record.last = self.data.purges.append(epoch, record.last, purge.clone(), now_ms.max(record.ids_from_ms));
        Some(record.last)
    }

    fn append_unsafe(&mut self, epoch: u64, batch: &Batch, now_ms: i64) -> Option<Position> {
        let record = self.data.record.as_mut().filter(|record| record.epoch == epoch && record.server == self.server)?;
        record.unsafe_last = self.data.unsafe_methods.append(epoch, record.unsafe_last, batch.clone(), now_ms.max(record.ids_from_ms));
        Some(record.unsafe_last)
    }

    fn propose(&mut self, proposal: &Proposal, now_ms: i64) -> u64 {
        let epoch = self.data.record.as_ref().map(|record| record.epoch);
        if epoch != proposal.expected {
            return epoch.unwrap_or(0);
        }
        let epoch = proposal.at_least.max(epoch.unwrap_or(0) + 1).max(now_ms.unsigned_abs());
        let start = Position::start_of(epoch);
        let members = self.data.record.take().map(|record| record.members).unwrap_or_default();
        self.data.record = Some(Kept {
            epoch,
            base: proposal.base,
            last: start,
            unsafe_last: start,
            server: self.server.clone(),
            since_ms: now_ms,
            ids_from_ms: 0,
            doubt: None,
            members,
        });
        self.data.purges = Stream { epoch, entries: VecDeque::new() };
        self.data.unsafe_methods = Stream { epoch, entries: VecDeque::new() };
        epoch
    }

    pub(super) fn epoch(&self) -> u64 {
        self.data.record.as_ref().map_or(0, |record| record.epoch)
    }

    pub(super) fn flush(&mut self) {
        self.data = Data::default();
    }

    pub(super) fn evict_record(&mut self) {
        self.data.record = None;
    }

    pub(super) fn evict_stream(&mut self, unsafe_methods: bool) {
        if unsafe_methods {
            self.data.unsafe_methods.entries.clear();
        } else {
            self.data.purges.entries.clear();
        }
    }

    pub(super) fn trim(&mut self, keep: usize) {
        self.data.purges.trim(keep);
        self.data.unsafe_methods.trim(keep);
    }
}

impl<T> Stream<T> {
    fn append(&mut self, epoch: u64, previous: Position, value: T, now_ms: i64) -> Position {
        let position = previous.next(now_ms);
        if self.epoch != epoch {
            *self = Self { epoch, entries: VecDeque::new() };
        }
        self.entries.push_back((position, previous, value));
        position
    }

    fn after(&self, epoch: u64, position: Position) -> impl Iterator<Item = &(Position, Position, T)> {
        self.entries.iter().filter(move |(at, ..)| self.epoch == epoch && *at > position)
    }

    fn first_previous(&self, last: Position) -> Position {
        self.entries.front().filter(|(at, ..)| at.epoch == last.epoch).map_or(last, |(_, previous, _)| *previous)
    }

    fn trim(&mut self, keep: usize) {
        while self.entries.len() > keep {
            self.entries.pop_front();
        }
    }
}

impl Stream<Purge> {
    fn id_at(&self, position: Position) -> Option<PurgeId> {
        self.entries.iter().find(|(at, ..)| *at == position).map(|(.., purge)| purge.id)
    }
}

fn server(name: u64) -> Server {
    Server(format!("server-{name}").into())
}
