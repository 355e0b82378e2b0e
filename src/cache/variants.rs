//! The stored responses of one cache key, chosen among by Vary (RFC 9111 §4.1).

use super::{StoredHead, StoredResponse};
use crate::clock;
use crate::invalidation::Journal;
use crate::semantics::freshness::Facts;
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::Validity;
use crate::semantics::vary::Vary;
use crate::semantics::{CacheKey, Fields, Now};
use crate::tier::memory::Held;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// An immutable set of variants, newest first. Every change makes a new set.
#[derive(Debug)]
pub struct Variants {
    /// At least one; all of one key, which is kept nowhere else.
    responses: SmallVec<[Arc<StoredResponse>; 1]>,
    /// When the last of them is worth nothing any more, boot-time milliseconds.
    drop_at_mono_ms: u64,
}

/// What inserting a response came to.
#[derive(Debug)]
pub enum Insertion {
    Put {
        set: Variants,
        /// A response that was worth something had to go: there were `max`.
        crowded: bool,
    },
    /// A response whose fetch began later is there: nothing to do.
    Older,
}

/// What the tier keeps per value beside the value: a slot of the index, and moka's table slot, entry, access list node and
/// reference counts. 320 to 360 bytes by the resident size of 50,000 to 200,000 entries, as the tables double.
const BOOKKEEPING: usize = 340;

impl Variants {
    /// The set after `response` was added: it replaces the one with its secondary key, and older ones that would have been
    /// `selected` by the request that it answers, or they would go on being chosen before it; at most `max` stay, the
    /// oldest go; what the journal or the clock has made worthless goes too.
    pub fn with(
        there: Option<&Self>,
        response: Arc<StoredResponse>,
        selected: impl Fn(&StoredHead) -> bool,
        max: usize,
        journal: &Journal,
        now: Now,
    ) -> Insertion {
        let mut responses = SmallVec::new();
        let others = there.filter(|set| *set.key() == response.head.key).map_or(&[][..], |set| &set.responses[..]);
        let same = |other: &&Arc<StoredResponse>| {
            other.head.secondary == response.head.secondary && other.head.facts.vary == response.head.facts.vary
        };
        if others.iter().filter(same).any(|other| other.head.fetch > response.head.fetch) {
            return Insertion::Older;
        }
        let is_replaced = |other: &Arc<StoredResponse>| same(&other) || (other.head.fetch < response.head.fetch && selected(&other.head));
        responses.push(Arc::clone(&response));
        let mut kept = others
            .iter()
            .filter(|other| !is_replaced(other) && other.drop_at_mono_ms > now.mono_ms && other.head.check(journal) != Validity::Purged);
        responses.extend(kept.by_ref().take(max.saturating_sub(1)).cloned());
        let crowded = kept.next().is_some();
        let drop_at_mono_ms = responses.iter().map(|response: &Arc<StoredResponse>| response.drop_at_mono_ms).max().unwrap_or(0);
        Insertion::Put { set: Self { responses, drop_at_mono_ms }, crowded }
    }

    /// The key of them all; not to be asked of a set that lost its last response.
    pub fn key(&self) -> &CacheKey {
        &self.responses[0].head.key // a set is made around a response
    }

    /// The set without the response that `gone` stands for, if its fetch began before number `before`; `None` where that
    /// is not there.
    pub fn without(&self, gone: &StoredHead, before: u64) -> Option<Self> {
        let goes = |other: &StoredHead| {
            other.secondary == gone.secondary && other.facts.vary == gone.facts.vary && other.fetch < before && *self.key() == gone.key
        };
        let responses: SmallVec<_> = self.responses.iter().filter(|other| !goes(&other.head)).cloned().collect();
        (responses.len() < self.responses.len()).then(|| Self { drop_at_mono_ms: self.drop_at_mono_ms, responses })
    }

    /// The set with `new` in the place of `old`; `None` where that is not there any more.
    pub fn swapped(&self, old: &Arc<StoredResponse>, new: &Arc<StoredResponse>) -> Option<Self> {
        let mut responses = self.responses.clone();
        *responses.iter_mut().find(|response| Arc::ptr_eq(response, old))? = Arc::clone(new);
        let drop_at_mono_ms = responses.iter().map(|response| response.drop_at_mono_ms).max().unwrap_or(0);
        Some(Self { responses, drop_at_mono_ms })
    }

    /// The response that this request selects. Of several that match, one with Vary goes before one without, whose Vary
    /// may have been forgotten (RFC 9111 §4.1), then the one generated last (§4), then the one fetched last.
    pub fn select(&self, request: &Fields, policy: &CachePolicy) -> Option<&Arc<StoredResponse>> {
        let mut chosen: Option<&Arc<StoredResponse>> = None;
        for response in &self.responses {
            let facts = &response.head.facts;
            // With the same Vary only one matches: its secondary key is the set's only one.
            let is_beaten = |chosen: &Arc<StoredResponse>| {
                let other = &chosen.head.facts;
                other.vary == facts.vary || preference(other) >= preference(facts)
            };
            if !chosen.is_some_and(is_beaten) && facts.vary.matches(request, &response.head.secondary, policy) {
                chosen = Some(response);
            }
        }
        chosen
    }

    pub fn responses(&self) -> &[Arc<StoredResponse>] {
        &self.responses
    }
}

/// What decides between responses that a request selects both.
fn preference(facts: &Facts) -> (bool, i64) {
    (facts.vary != Vary::Nothing, facts.date_ms)
}

impl Held for Variants {
    fn weight(&self) -> u32 {
        let responses: usize = self.responses.iter().map(|response| response.memory()).sum();
        let spilled = if self.responses.spilled() { self.responses.capacity() * size_of::<usize>() } else { 0 };
        let own = size_of::<Self>() + spilled + self.key().as_str().len() + BOOKKEEPING;
        u32::try_from(responses + own).unwrap_or(u32::MAX)
    }

    fn keep(&self) -> Duration {
        Duration::from_millis(self.drop_at_mono_ms.saturating_sub(clock::now().mono_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coalesce::fill::FillBudget;
    use crate::coalesce::pinned::{Kept, Pins};
    use crate::invalidation::Stamp;
    use crate::semantics::key::KeyPolicy;
    use crate::semantics::{Method, Request, Response, StatusCode, Target};

    /// A response that varies on a field which each request has with a value of its own.
    fn varied(number: u64, policy: &CachePolicy, pins: &Arc<Pins>, now: Now) -> Arc<StoredResponse> {
        let fields_of = |name: &str, value: &str| {
            let mut fields = Fields::new();
            fields.push(name, value).unwrap();
            fields
        };
        let (asked, target) = (fields_of("x-junk", &format!("{number:05}")), Target::from_url("http://a/").unwrap());
        let mut fields = fields_of("vary", "X-Junk");
        fields.push("cache-control", "max-age=60").unwrap();
        let (request, response) =
            (Request { method: &Method::GET, target: &target, fields: &asked }, Response { status: StatusCode::OK, fields: &fields });
        let facts = Facts::new(request, response, &policy.targeted, now, now);
        let head = StoredHead {
            secondary: facts.vary.secondary_key(&asked, policy),
            key: CacheKey::new(&target, &asked, &KeyPolicy::default()),
            facts,
            fields,
            stamp: Stamp::default().into(),
            checked: Default::default(),
            tags: Default::default(),
            site: Arc::new("a".into()),
            fetch: number,
            sent_mono_ms: now.mono_ms,
        };
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
        let (mut set, mut crowded_out, mut alone, mut heaviest): (Option<Variants>, usize, u32, u32) = (None, 0, 0, 0);
        for number in 0..10_000 {
            let response = varied(number, &policy, &pins, now);
            let Insertion::Put { set: next, crowded } =
                Variants::with(set.as_ref(), response, |_| false, policy.max_variants, &journal, now)
            else {
                panic!("{number}: nothing newer is there");
            };
            crowded_out += usize::from(crowded);
            alone = if number == 0 { next.weight() } else { alone };
            heaviest = heaviest.max(next.weight());
            set = Some(next);
        }
        let kept: Vec<u64> = set.unwrap().responses().iter().map(|response| response.head.fetch).collect();
        assert_eq!((kept.len(), kept[0], kept[63]), (64, 9_999, 9_936), "the newest stay");
        assert_eq!(crowded_out, 10_000 - 64);
        assert!(heaviest <= 64 * (alone + 16), "{heaviest} bytes, {alone} for one");
    }
}
