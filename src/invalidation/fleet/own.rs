//! This node's purges: waiting for their place in the order, waiting for the other nodes, and kept for a while to be
//! appended again to a new epoch.

use super::super::receipt::{NodeReceipt, NodeState};
use super::super::{Journal, Position, Purge, PurgeId};
use super::Faults;
use super::members::{Members, Question};
use crate::semantics::Now;
use std::collections::VecDeque;

/// Appends under way at once.
const APPENDS_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Own {
    limit: usize,
    oldest_first: VecDeque<Issued>,
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
    /// To be appended, not before this boot-time ms.
    Wanted {
        at: u64,
    },
    Asked,
    /// In the current epoch; known since this boot-time ms. `is_read`: this node has read it there, so that it would miss it. Until
    /// then a failover may lose it and nobody here notices; others would seem to have applied it by what comes in its place.
    At {
        position: Position,
        known_at: u64,
        is_read: bool,
    },
}

impl Own {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), oldest_first: VecDeque::new() }
    }

    /// Beyond the limit the oldest is no longer followed: it stays applied here, and its receipt as it was.
    pub(super) fn issue(&mut self, purge: Purge, now_ms: u64) {
        if self.oldest_first.len() >= self.limit {
            self.oldest_first.pop_front();
        }
        self.oldest_first.push_back(Issued { purge, issued_at: now_ms, place: Place::Wanted { at: now_ms }, complete: false });
    }

    pub(super) fn next_to_append(&mut self, now_ms: u64) -> Option<Purge> {
        if self.oldest_first.iter().filter(|issued| issued.place == Place::Asked).count() >= APPENDS_MAX {
            return None;
        }
        let next = self.oldest_first.iter_mut().find(|issued| matches!(issued.place, Place::Wanted { at } if at <= now_ms))?;
        next.place = Place::Asked;
        Some(next.purge.clone())
    }

    /// When the next one is to be appended.
    pub(super) fn next_at(&self) -> u64 {
        let wanted = self.oldest_first.iter().filter_map(|issued| match issued.place {
            Place::Wanted { at } => Some(at),
            Place::Asked | Place::At { .. } => None,
        });
        wanted.min().unwrap_or(u64::MAX)
    }

    pub(super) fn unappended(&self) -> usize {
        self.oldest_first.iter().filter(|issued| !matches!(issued.place, Place::At { .. })).count()
    }

    /// When the last of those was issued that wait for other nodes.
    pub(super) fn youngest_waiting(&self) -> Option<u64> {
        let waiting = |issued: &&Issued| !issued.complete && matches!(issued.place, Place::At { .. });
        self.oldest_first.iter().rev().find(waiting).map(|issued| issued.issued_at)
    }

    /// It was not appended, as far as is known: once more, later.
    pub(super) fn failed(&mut self, id: PurgeId, again_at: u64) {
        if let Some(issued) = self.find(id)
            && issued.place == Place::Asked
        {
            issued.place = Place::Wanted { at: again_at };
        }
    }

    /// What has been read up to here is read: whoever was to be there, and was not, is to be appended again.
    pub(super) fn read_to(&mut self, applied: Position, now_ms: u64) {
        for issued in &mut self.oldest_first {
            if matches!(issued.place, Place::At { position, is_read: false, .. } if position <= applied) {
                issued.place = Place::Wanted { at: now_ms };
            }
        }
    }

    /// It has its place in the current epoch. The first that was read counts: the same purge may be there twice. Gives
    /// whether its receipt has changed.
    pub(super) fn placed(&mut self, id: PurgeId, position: Position, is_read: bool, now_ms: u64, journal: &Journal) -> bool {
        let is_news = |place: Place| !matches!(place, Place::At { is_read: read_before, .. } if read_before || !is_read);
        let Some(issued) = self.find(id).filter(|issued| is_news(issued.place)) else { return false };
        issued.place = Place::At { position, known_at: now_ms, is_read };
        journal.change_receipt(id, |receipt| {
            receipt.position = position;
            receipt.acknowledged = "fleet";
            receipt.reason = None;
        });
        true
    }

    /// A new epoch has none of them: all that are young enough, or never were complete, are appended again. Says how many.
    pub(super) fn repair(&mut self, now_ms: u64, repair_ms: u64) -> usize {
        self.oldest_first.retain(|issued| !issued.complete || now_ms.saturating_sub(issued.issued_at) < repair_ms);
        for issued in &mut self.oldest_first {
            issued.place = Place::Wanted { at: now_ms };
        }
        self.oldest_first.len()
    }

    /// Which nodes have done what with those that are not complete; those whose receipt has changed. `settled`: whoever
    /// believed by an earlier server or epoch has found out by now.
    pub(super) fn ask(
        &mut self,
        question: &Question<'_>,
        members: &Members,
        settled: bool,
        faults: Faults,
        journal: &Journal,
        now: Now,
    ) -> Vec<PurgeId> {
        let mut told = Vec::new();
        for issued in self.oldest_first.iter_mut().filter(|issued| !issued.complete) {
            let Place::At { position, known_at, is_read: true } = issued.place else { continue };
            if question.sent < known_at {
                continue;
            }
            let elapsed_ms = now.mono_ms.saturating_sub(issued.issued_at);
            let states: Vec<(String, NodeState)> =
                members.iter().map(|seen| (seen.member.name.clone(), seen.state(position, question))).collect();
            let all = states.iter().all(|(_, state)| *state != NodeState::Waiting) || faults.acknowledged_before_apply;
            issued.complete = all && settled;
            let complete = issued.complete;
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

    fn find(&mut self, id: PurgeId) -> Option<&mut Issued> {
        self.oldest_first.iter_mut().find(|issued| issued.purge.id == id)
    }
}
