//! The other nodes of the fleet as this one has seen them in the record, and which of them a purge waits for.
//!
//! What counts is this node's own clock: a node is cut off, and knows it, when its heartbeats have not changed for longer
//! than any lease lasts. A node that vanishes from the record without having left was lost by Redis, not gone: it is waited
//! for all the same, and put back.

use super::super::Position;
use super::super::receipt::NodeState;
use super::protocol::{Instance, Member, Policy, Server};
use std::collections::BTreeMap;

/// A node, and since when its heartbeat stands.
#[derive(Debug, Clone)]
pub struct Seen {
    pub member: Member,
    /// Boot-time ms at which this heartbeat was first seen here.
    pub changed_at: u64,
    /// The heartbeat that it had when this node registered: what it acknowledges after that, it knows this node by.
    beat_when_joined: u64,
    /// It was in the record when that was last read.
    present: bool,
}

#[derive(Debug, Default)]
pub(super) struct Members {
    by_name: BTreeMap<String, Seen>,
}

/// What is asked about a purge, at a heartbeat of this node that was taken after the purge had its place.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// When that heartbeat was sent: what others did later is not in its answer.
    pub(super) sent: u64,
    pub(super) server: &'a Server,
    pub(super) epoch: u64,
    pub(super) lapse_ms: u64,
    pub(super) beat_ms: u64,
    pub(super) forget_after_ms: u64,
    /// This node was registered for so long that whoever does not know it comes back as from a long outage.
    pub(super) long_unbroken: bool,
}

impl Members {
    /// Takes in the members of a record, but for this node itself.
    pub(super) fn see(&mut self, members: &[Member], own_name: &str, now_ms: u64, forget_after_ms: u64) {
        for seen in self.by_name.values_mut() {
            seen.present = false;
        }
        for member in members.iter().filter(|member| member.name != own_name) {
            if member.left {
                self.by_name.remove(&member.name);
                continue;
            }
            let fresh = Seen { member: member.clone(), changed_at: now_ms, beat_when_joined: member.beat, present: true };
            let seen = self.by_name.entry(member.name.clone()).or_insert_with(|| fresh.clone());
            if seen.member.instance != member.instance {
                *seen = fresh;
            } else if seen.member.beat != member.beat {
                *seen = Seen { beat_when_joined: seen.beat_when_joined, ..fresh };
            }
            seen.present = true;
        }
        self.by_name.retain(|_, seen| seen.present || now_ms < seen.changed_at + forget_after_ms);
    }

    /// This node's registration began anew.
    pub(super) fn joined(&mut self) {
        for seen in self.by_name.values_mut() {
            seen.beat_when_joined = seen.member.beat;
        }
    }

    /// The life of this name that is known here.
    pub(super) fn instance(&self, name: &str) -> Option<Instance> {
        self.by_name.get(name).map(|seen| seen.member.instance)
    }

    /// Unless the node is back, in another life.
    pub(super) fn forget(&mut self, name: &str, instance: Instance) {
        if self.instance(name) == Some(instance) {
            self.by_name.remove(name);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.by_name.values()
    }

    /// Those that the record has lost.
    pub(super) fn lost(&self) -> impl Iterator<Item = Member> {
        self.iter().filter(|seen| !seen.present).map(|seen| seen.member.clone())
    }

    pub(super) fn absent_from<'a>(&'a self, members: &'a [Member]) -> impl Iterator<Item = &'a Seen> {
        self.iter().filter(|seen| !members.iter().any(|member| member.name == seen.member.name))
    }
}

impl Seen {
    /// What this node has done with the purge at `position`, issued at this boot-time ms, as far as can be known.
    pub(super) fn state(&self, position: Position, issued_at: u64, question: &Question<'_>) -> NodeState {
        let Member { applied, server, policy, acknowledged, .. } = &self.member;
        if applied.epoch == question.epoch && *applied >= position && server == question.server {
            return NodeState::Applied;
        }
        let unheard_ms = question.sent.saturating_sub(self.changed_at);
        // It has to come back as one that missed something, whatever Redis loses until then.
        let comes_back_lapsed = *acknowledged > self.beat_when_joined || question.long_unbroken;
        let (serves_for_ms, every_ms) = match *policy {
            Policy::Serve { at_most_ms, every_ms } => (at_most_ms, every_ms),
            Policy::Revalidate { every_ms } => (Some(0), every_ms),
            Policy::Bypass => (Some(0), 0),
        };
        // By its own account: what others are configured with does not end it.
        let serves_no_more = serves_for_ms.is_none_or(|ms| unheard_ms >= question.lapse_ms.saturating_add(ms));
        // What it confirmed before the purge is too old for it by then.
        let is_confirmed_anew = every_ms == 0 || question.sent.saturating_sub(issued_at) >= every_ms.saturating_add(question.lapse_ms);
        match serves_no_more && is_confirmed_anew {
            true if unheard_ms >= question.forget_after_ms => NodeState::Gone,
            true if comes_back_lapsed && serves_for_ms.is_some() => NodeState::CutOff,
            _ => NodeState::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Instance;
    use super::*;

    const LAPSE_MS: u64 = 4000;
    const FORGET_AFTER_MS: u64 = 60_000;

    /// Of a node that was last heard of at 0, about a purge that was issued then, by a heartbeat sent at `sent`.
    fn state(policy: Policy, sent: u64) -> NodeState {
        let member = Member {
            name: "b".into(),
            instance: Instance(1),
            policy,
            beat: 9,
            acknowledged: 8,
            applied: Position::start_of(1),
            at_ms: 0,
            server: Server::default(),
            left: false,
        };
        let seen = Seen { member, changed_at: 0, beat_when_joined: 1, present: true };
        let server = Server::default();
        let (lapse_ms, forget_after_ms) = (LAPSE_MS, FORGET_AFTER_MS);
        let question = Question { sent, server: &server, epoch: 1, lapse_ms, beat_ms: 1000, forget_after_ms, long_unbroken: false };
        seen.state(Position { epoch: 1, ms: 1, sequence: 0 }, 0, &question)
    }

    #[test]
    fn a_purge_waits_for_as_long_as_a_node_that_is_cut_off_may_serve() {
        let serve = |at_most_ms| Policy::Serve { at_most_ms, every_ms: 0 };
        for (policy, waits_ms, then) in [
            (Policy::Bypass, LAPSE_MS, NodeState::CutOff),
            (Policy::Revalidate { every_ms: 0 }, LAPSE_MS, NodeState::CutOff),
            // What it confirmed before the purge answers for so long.
            (Policy::Revalidate { every_ms: 5000 }, LAPSE_MS + 5000, NodeState::CutOff),
            (serve(Some(30_000)), LAPSE_MS + 30_000, NodeState::CutOff),
            (Policy::Serve { at_most_ms: Some(1000), every_ms: 9000 }, LAPSE_MS + 9000, NodeState::CutOff),
            // Its own limit counts, though others would have forgotten it by then.
            (serve(Some(2 * FORGET_AFTER_MS)), LAPSE_MS + 2 * FORGET_AFTER_MS, NodeState::Gone),
            (serve(None), FORGET_AFTER_MS, NodeState::Gone),
        ] {
            assert_eq!(state(policy, waits_ms - 1), NodeState::Waiting, "{policy:?}");
            assert_eq!(state(policy, waits_ms), then, "{policy:?}");
        }
    }
}
