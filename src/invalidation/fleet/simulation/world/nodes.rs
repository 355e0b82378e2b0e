//! Nodes, and what their state machines want.

use super::{Fault, Outcome, Process, Role, TRUST_MS, What, World};
use crate::config::settings::PurgeBounds;
use crate::invalidation::fleet::protocol::Instance;
use crate::invalidation::fleet::{Action, Event, Faults, Fleet, Note, Settings};
use crate::invalidation::journal::Order;
use crate::invalidation::model::LedgerFaults;
use crate::invalidation::{Journal, Position, PurgeId};
use std::sync::Arc;

impl World {
    pub(super) fn start(&mut self, node: usize) {
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

    pub(super) fn begin(&mut self, node: usize, fleet: Option<Fleet>, journal: Arc<Journal>) {
        let place = &mut self.nodes[node];
        place.life += 1;
        (place.careless, place.paused_until, place.wakes_at) = (false, 0, 0);
        place.process = Some(Process { fleet, journal, memory: Default::default(), flights: Vec::new(), wide: Vec::new() });
        let life = place.life;
        self.later(0, What::Wake { node, life });
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.nodes[node].process = None;
        self.nodes[node].inbox.clear();
        self.parked.retain(|(parked, ..)| *parked != node);
    }

    pub(super) fn leave(&mut self, node: usize) -> Outcome {
        if self.runs(node) {
            self.drive(node, Event::Leave)?;
            self.crash(node);
        }
        Ok(())
    }

    pub(super) fn runs(&self, node: usize) -> bool {
        self.nodes[node].process.is_some() && self.nodes[node].paused_until <= self.now_ms
    }

    pub(super) fn drive(&mut self, node: usize, event: Event) -> Outcome {
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

    pub(super) fn note(&mut self, note: Note) {
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
    pub(super) fn told(&mut self, node: usize, id: PurgeId) -> Outcome {
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
}
