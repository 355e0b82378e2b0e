//! This node's purges: waiting for their place in the order, waiting for the other nodes, and kept for a while to be
//! appended again to a new epoch.

use super::super::receipt::{NodeReceipt, NodeState};
use super::super::{Journal, Position, Purge, PurgeId};
use super::members::{Members, Question};
use super::{Faults, RETRY_MS};
use crate::semantics::Now;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Appends under way at once.
const APPENDS_MAX: usize = 32;
/// Longest wait before appends that fail are tried again.
const RETRY_MAX_MS: u64 = 1000;

#[derive(Debug)]
pub(super) struct Own {
    limit: usize,
    /// In the order in which they were issued, by number.
    issued: BTreeMap<u64, Issued>,
    numbers: HashMap<PurgeId, u64>,
    next_number: u64,
    wanted: BTreeSet<u64>,
    asked: usize,
    /// In their place, and not complete.
    waiting: BTreeSet<u64>,
    /// Names the time since when appends count: answers to those before say nothing.
    term: u64,
    /// No append before this boot-time ms, after so many failures in a row.
    not_before: u64,
    failures: u32,
    /// When all that wait were last asked about, not only the young ones.
    asked_all_at: u64,
}

#[derive(Debug)]
struct Issued {
    purge: Purge,
    /// Boot-time ms.
    issued_at: u64,
    place: Place,
    complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To be appended.
    Wanted,
    Asked,
    /// Redis says that it was appended. That counts for nothing yet: Redis may lose it before anybody has read it.
    Told,
    /// Read in order, so that what follows on any server vouches for it. Known since this boot-time ms.
    At {
        position: Position,
        known_at: u64,
    },
}

impl Own {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            issued: BTreeMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            wanted: BTreeSet::new(),
            asked: 0,
            waiting: BTreeSet::new(),
            term: 0,
            not_before: 0,
            failures: 0,
            asked_all_at: 0,
        }
    }

    /// Beyond the limit the oldest are no longer followed: they stay applied here, and their receipts as they were. Gives
    /// those of them that have no place in the order.
    pub(super) fn issue(&mut self, purge: Purge, now_ms: u64) -> Vec<PurgeId> {
        let mut given_up = Vec::new();
        while self.issued.len() >= self.limit {
            let Some((number, oldest)) = self.issued.pop_first() else { break };
            self.unlist(number, &oldest);
            if !matches!(oldest.place, Place::At { .. }) {
                given_up.push(oldest.purge.id);
            }
        }
        self.want(purge, now_ms);
        given_up
    }

    /// As [`Own::issue`], for what stands in for those that were given up: none more is.
    pub(super) fn want(&mut self, purge: Purge, now_ms: u64) {
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(purge.id, number);
        self.wanted.insert(number);
        self.issued.insert(number, Issued { purge, issued_at: now_ms, place: Place::Wanted, complete: false });
    }

    /// It is not to be appended any more.
    pub(super) fn withdraw(&mut self, id: PurgeId) {
        if let Some(number) = self.numbers.get(&id).copied()
            && let Some(issued) = self.issued.remove(&number)
        {
            self.unlist(number, &issued);
        }
    }

    fn unlist(&mut self, number: u64, issued: &Issued) {
        self.numbers.remove(&issued.purge.id);
        self.wanted.remove(&number);
        self.waiting.remove(&number);
        self.asked -= usize::from(issued.place == Place::Asked);
    }

    pub(super) fn may_append(&self, now_ms: u64) -> bool {
        self.asked < APPENDS_MAX && now_ms >= self.not_before
    }

    pub(super) fn next_to_append(&mut self, now_ms: u64) -> Option<Purge> {
        if !self.may_append(now_ms) {
            return None;
        }
        let next = self.issued.get_mut(&self.wanted.pop_first()?)?;
        next.place = Place::Asked;
        self.asked += 1;
        Some(next.purge.clone())
    }

    /// When the next one is to be appended.
    pub(super) fn next_at(&self) -> u64 {
        if self.wanted.is_empty() || self.asked >= APPENDS_MAX { u64::MAX } else { self.not_before }
    }

    pub(super) const fn term(&self) -> u64 {
        self.term
    }

    /// Those that Redis was not told, as far as is known.
    pub(super) fn unappended(&self) -> usize {
        self.wanted.len() + self.asked
    }

    /// When the last of those was issued that wait for other nodes.
    pub(super) fn youngest_waiting(&self) -> Option<u64> {
        self.waiting.last().and_then(|number| self.issued.get(number)).map(|issued| issued.issued_at)
    }

    /// It was not appended, as far as is known: once more, later. Those that fail together count as one failure.
    pub(super) fn failed(&mut self, id: PurgeId, now_ms: u64) {
        if self.leave_asked(id, Place::Wanted) && now_ms >= self.not_before {
            self.not_before = now_ms + (RETRY_MS << self.failures.min(8)).min(RETRY_MAX_MS);
            self.failures += 1;
        }
    }

    /// Redis says that it was appended.
    pub(super) fn told(&mut self, id: PurgeId) {
        if self.leave_asked(id, Place::Told) {
            (self.not_before, self.failures) = (0, 0);
        }
    }

    fn leave_asked(&mut self, id: PurgeId, to: Place) -> bool {
        let Some((&number, issued)) = self.numbers.get(&id).and_then(|number| Some((number, self.issued.get_mut(number)?))) else {
            return false;
        };
        if issued.place != Place::Asked {
            return false;
        }
        issued.place = to;
        self.asked -= 1;
        if to == Place::Wanted {
            self.wanted.insert(number);
        }
        true
    }

    /// It was read in its place in the current epoch. The first that is known counts: the same purge may be there twice.
    /// Gives whether its receipt has changed.
    pub(super) fn placed(&mut self, id: PurgeId, position: Position, now_ms: u64, journal: &Journal) -> bool {
        let Some((&number, issued)) = self.numbers.get(&id).and_then(|number| Some((number, self.issued.get_mut(number)?))) else {
            return false;
        };
        match issued.place {
            Place::At { .. } => return false,
            Place::Asked => self.asked -= 1,
            Place::Wanted | Place::Told => {}
        }
        issued.place = Place::At { position, known_at: now_ms };
        self.wanted.remove(&number);
        if !issued.complete {
            self.waiting.insert(number);
        }
        journal.change_receipt(id, |receipt| {
            receipt.position = position;
            receipt.acknowledged = "fleet";
            receipt.reason = None;
        });
        true
    }

    /// What was appended and not read yet may be lost: it is appended again. Twice does no harm.
    pub(super) fn append_again(&mut self) {
        let not_read = self.issued.iter_mut().filter(|(_, issued)| !matches!(issued.place, Place::At { .. }));
        for (&number, issued) in not_read {
            issued.place = Place::Wanted;
            self.wanted.insert(number);
        }
        self.asked = 0;
        self.not_before = 0;
        self.term += 1;
    }

    /// A new epoch has none of them: all that are young enough, or never were complete, are appended again. Says how many.
    pub(super) fn repair(&mut self, now_ms: u64, repair_ms: u64) -> usize {
        self.issued.retain(|_, issued| !issued.complete || now_ms.saturating_sub(issued.issued_at) < repair_ms);
        self.numbers.retain(|_, number| self.issued.contains_key(number));
        for issued in self.issued.values_mut() {
            issued.place = Place::Wanted;
        }
        (self.wanted, self.waiting) = (BTreeSet::new(), BTreeSet::new());
        self.append_again();
        self.issued.len()
    }

    /// Which nodes have done what with those that are not complete; those whose receipt has changed. `settled`: whoever
    /// believed by an earlier server or epoch has found out by now. Those that have waited for long are asked about only
    /// once in a while: what they wait for does not come within milliseconds.
    pub(super) fn ask(
        &mut self,
        question: &Question<'_>,
        members: &Members,
        settled: bool,
        faults: Faults,
        journal: &Journal,
        now: Now,
    ) -> Vec<PurgeId> {
        let young_since = if question.sent >= self.asked_all_at + question.beat_ms {
            self.asked_all_at = question.sent;
            0
        } else {
            now.mono_ms.saturating_sub(2 * question.lapse_ms)
        };
        let mut told = Vec::new();
        let youngest_first: Vec<u64> = self.waiting.iter().rev().copied().collect();
        for number in youngest_first {
            let Some(issued) = self.issued.get_mut(&number) else { continue };
            if issued.issued_at < young_since {
                break;
            }
            let Place::At { position, known_at } = issued.place else { continue };
            if question.sent < known_at {
                continue;
            }
            let elapsed_ms = now.mono_ms.saturating_sub(issued.issued_at);
            let states: Vec<(String, NodeState)> =
                members.iter().map(|seen| (seen.member.name.clone(), seen.state(position, issued.issued_at, question))).collect();
            let all = states.iter().all(|(_, state)| *state != NodeState::Waiting) || faults.acknowledged_before_apply;
            let complete = all && settled;
            issued.complete = complete;
            if complete {
                self.waiting.remove(&number);
            }
            let mut changed = complete;
            journal.change_receipt(issued.purge.id, |receipt| {
                let nodes: Vec<_> = states
                    .into_iter()
                    .map(|(node, state)| {
                        let before = receipt.nodes.iter().find(|before| before.node == node && before.state == state);
                        before.cloned().unwrap_or(NodeReceipt { node, state, elapsed_ms })
                    })
                    .collect();
                changed |= nodes != receipt.nodes;
                receipt.nodes = nodes;
                receipt.complete = complete;
            });
            if changed {
                told.push(issued.purge.id);
            }
        }
        told
    }
}
