//! Requests: from memory, from the tier that all share, from the origin; and whether the answer was right.

use super::resources::{Facts, NAMES, RESOURCES, Stored, TierEntry, url_hash, url_text};
use super::{Fault, Flight, Outcome, Process, Request, Role, What, World};
use crate::invalidation::fleet::Fleet;
use crate::invalidation::fleet::protocol::Policy;
use crate::invalidation::selector::union;
use crate::invalidation::{CheckedUpTo, Mode, Position, Selector, Subject};
use crate::semantics::reuse::Validity;
use std::rc::Rc;

impl World {
    pub(super) fn subject(facts: &Facts) -> Subject<'_> {
        let (site, authority, _) = RESOURCES[facts.resource];
        let [keys, groups] = &facts.hashes;
        let url_text = url_text(facts.resource);
        Subject { url: url_hash(facts.resource), url_text, authority, site, keys, groups }
    }

    pub(super) fn request(&mut self, node: usize, resource: usize) -> Outcome {
        if !self.runs(node) {
            return Ok(());
        }
        self.moment += 1;
        let request = Request { resource, born: self.moment };
        self.resume(node)?;
        self.look_up(node, request)
    }

    pub(super) fn look_up(&mut self, node: usize, request: Request) -> Outcome {
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

    pub(super) fn join_or_fetch(&mut self, node: usize, request: Request, trusted: bool) -> Outcome {
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

    pub(super) fn tier_answers(&mut self, node: usize, request: Request, entry: Option<TierEntry>) -> Outcome {
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

    pub(super) fn fetch(&mut self, node: usize, request: Request, stale: Option<Rc<Stored>>) -> Outcome {
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

    pub(super) fn fetch_ends(&mut self, node: usize, number: u64) -> Outcome {
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

    pub(super) fn names(&mut self) -> Vec<usize> {
        (0..NAMES.len()).filter(|_| self.chance.one_in(3)).collect()
    }

    /// Whether this may be: the promise itself.
    /// `stale` answers, and those that are only asked about at the origin, may be older than a soft purge.
    pub(super) fn serve(&mut self, node: usize, request: Request, facts: &Facts, from: &str, stale: bool) -> Outcome {
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
    pub(super) fn explain(&self, node: usize, stored: &Stored) -> Outcome {
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
    pub(super) fn recovers(&mut self, node: usize, resource: usize) -> Outcome {
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

    pub(super) fn evict_from_memory(&mut self, node: usize) -> Outcome {
        let resource = self.resource();
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.memory[resource] = None;
        }
        Ok(())
    }
}
