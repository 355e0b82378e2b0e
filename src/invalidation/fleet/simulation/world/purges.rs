//! Purges, and writes.

use super::resources::{NAMES, RESOURCES, url_hash, url_text};
use super::{Logged, Outcome, World};
use crate::invalidation::fleet::Event;
use crate::invalidation::kind::Kinds;
use crate::invalidation::selector::group_hash;
use crate::invalidation::{Mode, Selector, Subject};

impl World {
    pub(super) fn purge(&mut self, node: usize) -> Outcome {
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

    pub(super) fn selector(&mut self) -> Selector {
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

    pub(super) fn write(&mut self, node: usize) -> Outcome {
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
}
