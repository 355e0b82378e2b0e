//! The stored responses of one cache key, chosen among by Vary (RFC 9111 §4.1).
//!
//! A set is what the memory tier keeps of a key, as a [`StoredResponse`]: most keys have one, which then costs nothing
//! beside itself. Sets are immutable, newest first; every change makes a new one.

use super::stored_response::{ALLOCATION, Content, Elsewhere};
use super::{StoredHead, StoredResponse};
use crate::clock;
use crate::invalidation::Journal;
use crate::semantics::freshness::Facts;
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::Validity;
use crate::semantics::vary::Vary;
use crate::semantics::{Fields, Now};
use crate::tier::memory::{Change, Held};
use std::sync::Arc;
use std::time::Duration;

/// What inserting a response came to.
#[derive(Debug)]
pub enum Insertion {
    Put {
        set: StoredResponse,
        /// A response that was worth something had to go: there were `max`.
        crowded: bool,
    },
    /// A response whose fetch began later is there: nothing to do.
    Older,
}

/// What the tier keeps per value beside the value: a slot of the index, and moka's table slot, entry, access list node and
/// reference counts. 320 to 360 bytes by the resident size of 50,000 to 200,000 entries, as the tables double.
const BOOKKEEPING: usize = 340;

impl StoredResponse {
    /// The set after this response was added: it replaces the one with its secondary key, and older ones that would have been
    /// `selected` by the request that it answers, or they would go on being chosen before it; at most `max` stay, the
    /// oldest go; what the journal or the clock has made worthless goes too.
    pub fn joining(
        self: &Arc<Self>,
        there: Option<&Arc<Self>>,
        selected: impl Fn(&StoredHead) -> bool,
        max: usize,
        journal: &Journal,
        now: Now,
    ) -> Insertion {
        let others = there.filter(|set| set.head.key == self.head.key).map_or(&[][..], |set| set.responses());
        let same = |other: &&Arc<Self>| other.head.secondary == self.head.secondary && other.head.facts.vary == self.head.facts.vary;
        if others.iter().filter(same).any(|other| other.head.fetch > self.head.fetch) {
            return Insertion::Older;
        }
        let is_replaced = |other: &Arc<Self>| same(&other) || (other.head.fetch < self.head.fetch && selected(&other.head));
        let mut kept = others
            .iter()
            .filter(|other| !is_replaced(other) && other.drop_at_mono_ms > now.mono_ms && other.head.check(journal) != Validity::Purged);
        let set = self.and(kept.by_ref().take(max.saturating_sub(1)));
        Insertion::Put { set, crowded: kept.next().is_some() }
    }

    /// A new set of this response and older ones.
    fn and<'r>(self: &'r Arc<Self>, others: impl Iterator<Item = &'r Arc<Self>>) -> Self {
        let all: Box<[Arc<Self>]> = std::iter::once(self).chain(others).cloned().collect();
        if all.len() == 1 {
            return self.until(self.drop_at_mono_ms);
        }
        let drop_at_mono_ms = all.iter().map(|response| response.drop_at_mono_ms).max().unwrap_or(0);
        let content = Content::Elsewhere(Box::new(Elsewhere::Variants(all)));
        Self { head: Arc::clone(&self.head), content, length: 0, drop_at_mono_ms, forms: None }
    }

    /// What becomes of the set without the response that `gone` stands for, if its fetch began before number `before`.
    pub fn without(self: &Arc<Self>, gone: &StoredHead, before: u64) -> Change<Self> {
        let goes = |other: &StoredHead| {
            other.secondary == gone.secondary && other.facts.vary == gone.facts.vary && other.fetch < before && other.key == gone.key
        };
        if !self.responses().iter().any(|other| goes(&other.head)) {
            return Change::Keep;
        }
        let mut left = self.responses().iter().filter(|other| !goes(&other.head));
        left.next().map_or(Change::Remove, |newest| Change::Put(Arc::new(newest.and(left))))
    }

    /// What becomes of the set with `new` in the place of `old`, if that is still there.
    pub fn swapped(self: &Arc<Self>, old: &Arc<Self>, new: &Arc<Self>) -> Change<Self> {
        if !self.responses().iter().any(|response| Arc::ptr_eq(response, old)) {
            return Change::Keep;
        }
        let mut responses = self.responses().iter().map(|response| if Arc::ptr_eq(response, old) { new } else { response });
        responses.next().map_or(Change::Keep, |newest| Change::Put(Arc::new(newest.and(responses))))
    }

    /// The response of the set that this request selects. Of several that match, one with Vary goes before one without, whose
    /// Vary may have been forgotten (RFC 9111 §4.1), then the one generated last (§4), then the one fetched last.
    pub fn select(self: &Arc<Self>, request: &Fields, policy: &CachePolicy) -> Option<&Arc<Self>> {
        let mut chosen: Option<&Arc<Self>> = None;
        for response in self.responses() {
            let facts = &response.head.facts;
            // With the same Vary only one matches: its secondary key is the set's only one.
            let is_beaten = |chosen: &Arc<Self>| {
                let other = &chosen.head.facts;
                other.vary == facts.vary || preference(other) >= preference(facts)
            };
            if !chosen.is_some_and(is_beaten) && facts.vary.matches(request, &response.head.secondary, policy) {
                chosen = Some(response);
            }
        }
        chosen
    }

    /// The responses of the set; all are of the key of its head.
    pub fn responses(self: &Arc<Self>) -> &[Arc<Self>] {
        self.several().unwrap_or(std::slice::from_ref(self))
    }

    /// The responses of a set of several.
    fn several(&self) -> Option<&[Arc<Self>]> {
        match &self.content {
            Content::Elsewhere(elsewhere) => match &**elsewhere {
                Elsewhere::Variants(responses) => Some(responses),
                Elsewhere::Blocks(_) => None,
            },
            Content::Whole(_) => None,
        }
    }
}

/// What decides between responses that a request selects both.
fn preference(facts: &Facts) -> (bool, i64) {
    (facts.vary != Vary::Nothing, facts.date_ms)
}

impl Held for StoredResponse {
    fn weight(&self) -> u32 {
        let responses = match self.several() {
            Some(responses) => {
                let own = size_of::<Self>() + size_of::<Elsewhere>() + size_of_val(responses) + 3 * ALLOCATION;
                own + responses.iter().map(|response| response.memory()).sum::<usize>()
            }
            None => self.memory(),
        };
        u32::try_from(responses + self.head.key.as_str().len() + BOOKKEEPING).unwrap_or(u32::MAX)
    }

    fn keep(&self) -> Duration {
        Duration::from_millis(self.drop_at_mono_ms.saturating_sub(clock::now().mono_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::for_tests::stored_head;
    use crate::coalesce::fill::FillBudget;
    use crate::coalesce::pinned::{Kept, Pins};

    /// A response that varies on a field which each request has with a value of its own.
    fn varied(number: u64, policy: &CachePolicy, pins: &Arc<Pins>, now: Now) -> Arc<StoredResponse> {
        let (asked, lines) = ([("x-junk", &*format!("{number:05}"))], [("vary", "X-Junk"), ("cache-control", "max-age=60")]);
        let head = StoredHead { fetch: number, ..stored_head("http://a/", &asked, &lines, policy, now) };
        let body = [bytes::Bytes::from(vec![0; 100])];
        Arc::new(StoredResponse::new(Arc::new(head), Kept::new(&body, pins), 100, policy, now))
    }

    #[test]
    fn ten_thousand_values_of_a_junk_field_weigh_no_more_than_the_most_variants() {
        let (policy, now) = (CachePolicy::default(), Now { wall_ms: 1_700_000_000_000, mono_ms: 5_000 });
        let journal = Journal::new(&crate::config::settings::PurgeBounds {
            receipts: 1,
            map_capacity: 16,
            fold_slots: 16,
            recovery: std::time::Duration::ZERO,
        });
        let pins = Pins::new(&FillBudget::new(1 << 20));
        let (mut set, mut crowded_out, mut alone, mut heaviest): (Option<Arc<StoredResponse>>, usize, u32, u32) = (None, 0, 0, 0);
        for number in 0..10_000 {
            let response = varied(number, &policy, &pins, now);
            let Insertion::Put { set: next, crowded } = response.joining(set.as_ref(), |_| false, policy.max_variants, &journal, now)
            else {
                panic!("{number}: nothing newer is there");
            };
            crowded_out += usize::from(crowded);
            alone = if number == 0 { next.weight() } else { alone };
            heaviest = heaviest.max(next.weight());
            set = Some(Arc::new(next));
        }
        let kept: Vec<u64> = set.unwrap().responses().iter().map(|response| response.head.fetch).collect();
        assert_eq!((kept.len(), kept[0], kept[63]), (64, 9_999, 9_936), "the newest stay");
        assert_eq!(crowded_out, 10_000 - 64);
        assert!(heaviest <= 64 * (alone + 16), "{heaviest} bytes, {alone} for one");
    }
}
