//! The map of one class of entries: per selector the last hard and the last soft mark; folding when full.
//!
//! Invariant: each entry that was put here is found by every subject that it matches, in its slot or in a fold. What a
//! bound makes inexact matches more than was asked for: a fold holds several selectors, and beyond
//! [`PREFIX_LENGTHS_MAX`] a prefix is widened.

use super::kind::{Kind, Kinds};
use super::outbox::Outbox;
use super::slots::Slots;
use super::unshared::Unshared;
use super::{Mark, Mode, Position, PurgeId, Selector, Subject};
#[cfg(not(test))]
use crate::faults::{Fault, planted};
use crate::semantics::key::{hash128, search_hash};
use crate::semantics::reuse::Validity;
use foldhash::fast::RandomState;
use std::collections::{BTreeSet, HashMap};

/// Distinct lengths of prefixes that are looked up; a prefix of a further length is widened.
pub(super) const PREFIX_LENGTHS_MAX: usize = 64;

/// What an entry invalidates, selectors being hashed already.
#[derive(Debug, Clone, Copy)]
pub(super) enum Aim<'a> {
    Hash(Kind, u128),
    Prefix(&'a str),
    Everything,
}

impl<'a> Aim<'a> {
    /// What a selector invalidates. A URL, and a prefix that reaches into a query, besides: what is stored for many queries
    /// of the path (No-Vary-Search), since the URL may be one that it answers.
    pub(super) fn all_of(selector: &'a Selector) -> impl Iterator<Item = Self> {
        let text = match selector {
            Selector::Url(text) => Some(text),
            Selector::Prefix(text) => Some(text).filter(|text| text.contains('?')),
            _ => None,
        };
        let search = text.map(|text| Self::Hash(Kind::Url, search_hash(text)));
        std::iter::once(Self::of(selector)).chain(search)
    }

    fn of(selector: &'a Selector) -> Self {
        let hash = match selector {
            Selector::Prefix(prefix) => return Self::Prefix(prefix),
            Selector::Everything => return Self::Everything,
            Selector::Url(text) | Selector::Host(text) | Selector::Site(text) => hash128(text.as_bytes()),
            Selector::Key(key) => super::selector::key_hash(key),
            Selector::Group { origin, group } => super::selector::group_hash(origin, group),
        };
        Self::Hash(selector.kind(), hash)
    }
}

/// Bounds of a ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Selectors kept exactly.
    pub(super) slots: usize,
    pub(super) folds: usize,
    /// Own entries that wait for their place in the order.
    pub(super) provisional: usize,
}

/// What was last done to a selector, or to all that folded into one place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) hard: Mark,
    pub(super) soft: Mark,
    /// When the last soft entry was applied here, on the boot-time clock.
    soft_since_mono_ms: u64,
}

impl Slot {
    fn raise(&mut self, mode: Mode, mark: Mark, mono_ms: u64) {
        match mode {
            Mode::Hard => self.hard.raise(mark),
            Mode::Soft => {
                self.soft.raise(mark);
                self.soft_since_mono_ms = mono_ms;
            }
        }
    }

    /// Drops provisional entries up to this local sequence: what is put in order here now is later than all of them.
    fn settle(&mut self, mode: Mode, local: u64) {
        let mark = match mode {
            Mode::Hard => &mut self.hard,
            Mode::Soft => &mut self.soft,
        };
        if mark.local <= local {
            mark.local = 0;
        }
    }

    /// Takes in another slot. Of two soft times the earlier holds: staler is the safe side.
    fn absorb(&mut self, other: &Self) {
        if other.soft != Mark::default() {
            let first = self.soft == Mark::default();
            self.soft_since_mono_ms = if first { other.soft_since_mono_ms } else { self.soft_since_mono_ms.min(other.soft_since_mono_ms) };
        }
        self.hard.raise(other.hard);
        self.soft.raise(other.soft);
    }

    /// Hard wins whatever the order.
    fn severity(&self, stamp: &Mark) -> u64 {
        self.severity_of(Mode::Hard, stamp).max(self.severity_of(Mode::Soft, stamp))
    }

    /// What the entries of one mode alone do.
    pub(super) fn severity_of(&self, mode: Mode, stamp: &Mark) -> u64 {
        match mode {
            Mode::Hard if self.hard.came_after(stamp) => PURGED,
            Mode::Soft if self.soft.came_after(stamp) => severity_of_soft(self.soft_since_mono_ms),
            _ => VALID,
        }
    }
}

/// Validity as a number that grows with severity, so that a max merges findings: the earlier soft is the worse.
const VALID: u64 = 0;
const PURGED: u64 = u64::MAX;

fn severity_of_soft(since_mono_ms: u64) -> u64 {
    (PURGED - 1).saturating_sub(since_mono_ms).max(1)
}

pub(super) fn validity_of(severity: u64) -> Validity {
    match severity {
        VALID => Validity::Valid,
        PURGED => Validity::Purged,
        soft => Validity::Soft { since_mono_ms: PURGED - 1 - soft },
    }
}

/// An own purge, or a batch of own invalidations, that waits for its place in the order.
#[derive(Debug, Clone, Copy)]
struct Provisional {
    /// Local sequences that it stands for.
    first: u64,
    local: u64,
    mono_ms: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    limits: Limits,
    /// The last position applied, and the last local sequence given.
    mark: Mark,
    slots: Slots,
    /// Never folds: it is one.
    everything: Slot,
    /// Empty until something folds.
    folds: Vec<Slot>,
    folded: u64,
    /// Lengths of prefixes put so far, ascending. They stay: a folded prefix is looked up by its length too.
    prefix_lengths: Vec<usize>,
    provisional: HashMap<PurgeId, Provisional, RandomState>,
    /// By the first local sequence that each stands for.
    provisional_oldest_first: BTreeSet<(u64, PurgeId)>,
    /// Of the class of unsafe methods in a fleet: what it has not been told yet.
    pub(super) outbox: Outbox,
    /// The first local sequence that will not come in order by itself: something has to stand in for it.
    given_up: Option<u64>,
    /// Of the class of unsafe methods, where the fleet is not told.
    pub(super) unshared: Unshared,
    #[cfg(test)]
    pub(super) faults: super::model::LedgerFaults,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            mark: Mark::default(),
            slots: Slots::new(),
            everything: Slot::default(),
            folds: Vec::new(),
            folded: 0,
            prefix_lengths: Vec::new(),
            provisional: HashMap::default(),
            provisional_oldest_first: BTreeSet::new(),
            outbox: Outbox::default(),
            given_up: None,
            unshared: Unshared::default(),
            #[cfg(test)]
            faults: super::model::LedgerFaults::default(),
        }
    }

    pub(super) const fn mark(&self) -> Mark {
        self.mark
    }

    /// Selectors kept exactly, and how many have folded since the start.
    pub(super) fn usage(&self) -> (usize, u64) {
        (self.slots.len(), self.folded)
    }

    /// Applies an own entry ahead of its place in the order. Beyond the bound the oldest is no longer expected back:
    /// it stays applied, and what arrives in order counts as somebody else's.
    pub(super) fn put_provisional<'a>(
        &mut self,
        id: PurgeId,
        aims: impl Iterator<Item = Aim<'a>>,
        mode: Mode,
        mono_ms: u64,
        moved: &mut Kinds,
    ) {
        let local = self.put_ahead(aims, mode, mono_ms, moved);
        self.expect(id, local, local, mono_ms);
    }

    /// Applies something ahead of its place in the order, which [`Ledger::expect`] tells of later; gives its local sequence.
    pub(super) fn put_ahead<'a>(&mut self, aims: impl Iterator<Item = Aim<'a>>, mode: Mode, mono_ms: u64, moved: &mut Kinds) -> u64 {
        self.mark.local += 1;
        let local = self.mark.local;
        for aim in aims {
            self.put(aim, mode, Mark { position: Position::default(), local }, mono_ms, moved);
        }
        local
    }

    /// What was applied here from the local sequence `first` up to `local` will come in order under this id.
    pub(super) fn expect(&mut self, id: PurgeId, first: u64, local: u64, mono_ms: u64) {
        self.provisional.insert(id, Provisional { first, local, mono_ms });
        self.provisional_oldest_first.insert((first, id));
        while self.provisional.len() > self.limits.provisional.max(1) {
            if let Some((first, oldest)) = self.provisional_oldest_first.pop_first() {
                self.provisional.remove(&oldest);
                self.give_up(first);
            }
        }
    }

    /// What has this local sequence stays provisional until [`Ledger::stand_in`] has come in order.
    pub(super) fn give_up(&mut self, local: u64) {
        self.given_up = Some(self.given_up.map_or(local, |first| first.min(local)));
    }

    pub(super) const fn has_given_up(&self) -> bool {
        self.given_up.is_some()
    }

    /// What was expected under this id does not come any more.
    pub(super) fn withdraw(&mut self, id: PurgeId) {
        let first = self.provisional.remove(&id).map(|provisional| provisional.first);
        if let Some(first) = first {
            self.provisional_oldest_first.remove(&(first, id));
        }
        self.give_up(first.unwrap_or(self.mark.local));
    }

    /// Where something was given up: from now on `id`, a hard invalidation of everything, is expected in its stead, and for
    /// all that was applied until now.
    pub(super) fn stand_in(&mut self, id: PurgeId, mono_ms: u64) -> bool {
        let Some(first) = self.given_up.take() else { return false };
        // What waits to be told is covered as well.
        let first = self.outbox.first().map_or(first, |waiting| waiting.min(first));
        self.outbox.clear();
        self.expect(id, first, self.mark.local, mono_ms);
        true
    }

    /// Everything applied ahead up to this local sequence has come in order, or is older than what was fetched at
    /// `fetched_mono_ms` (`None` if nobody knows).
    pub(super) fn settled(&self, fetched_mono_ms: Option<u64>) -> u64 {
        let expected = self.provisional_oldest_first.first().map(|&(first, _)| first);
        let first = [expected, self.given_up, self.outbox.first()].into_iter().flatten().min();
        let in_order = first.map_or(self.mark.local, |first| first.saturating_sub(1));
        self.unshared.older_than(fetched_mono_ms).map_or(in_order, |older| older.min(in_order))
    }

    /// Goes on at another place of the order: what lies between was missed, or belongs to an epoch that ended. `drop_held`:
    /// whatever was fetched before that place is unusable.
    pub(super) fn jump(&mut self, to: Position, drop_held: bool, mono_ms: u64, moved: &mut Kinds) {
        if drop_held {
            self.put(Aim::Everything, Mode::Hard, Mark { position: to, local: 0 }, mono_ms, moved);
        }
        self.mark.position = to;
    }

    /// Applies an entry in its place, which the caller has found to be the next; drops its provisional form.
    pub(super) fn put_in_order<'a>(
        &mut self,
        position: Position,
        own: Option<PurgeId>,
        aims: impl Iterator<Item = Aim<'a>>,
        mode: Mode,
        mono_ms: u64,
        moved: &mut Kinds,
    ) {
        let own = own.and_then(|id| self.provisional.remove(&id).map(|provisional| (id, provisional)));
        // Staleness counts from when the purge first took effect here.
        let mono_ms = own.map_or(mono_ms, |(_, own)| own.mono_ms);
        for aim in aims {
            let slot = self.put(aim, mode, Mark { position, local: 0 }, mono_ms, moved);
            if let Some((_, own)) = own {
                slot.settle(mode, own.local);
            }
        }
        if let Some((id, own)) = own {
            self.provisional_oldest_first.remove(&(own.first, id));
        }
        self.mark.position = position;
    }

    /// The worst that entries of these kinds after the stamp do to the subject.
    pub(super) fn find(&self, subject: &Subject<'_>, stamp: &Mark, kinds: Kinds) -> u64 {
        if self.mark == *stamp {
            return VALID;
        }
        let mut worst = VALID;
        self.each_match(subject, kinds, |_, slot, _| worst = worst.max(slot.severity(stamp)));
        worst
    }

    /// Every slot and fold that matches the subject: kind, slot, whether it is a fold.
    pub(super) fn each_match(&self, subject: &Subject<'_>, kinds: Kinds, mut see: impl FnMut(Kind, &Slot, bool)) {
        let mut seek = |kind: Kind, hash: u128| {
            let key = slot_key(kind, hash);
            if let Some(slot) = self.slots.get(key) {
                see(kind, slot, false);
            }
            if let Some(fold) = self.folds.get(self.fold_index(key)) {
                see(kind, fold, true);
            }
        };
        if kinds.contains(Kind::Url) {
            seek(Kind::Url, subject.url);
        }
        if kinds.contains(Kind::Key) {
            subject.keys.iter().for_each(|&key| seek(Kind::Key, key));
        }
        if kinds.contains(Kind::Group) {
            subject.groups.iter().for_each(|&group| seek(Kind::Group, group));
        }
        if kinds.contains(Kind::Prefix) {
            let url = subject.url_text.as_bytes();
            self.prefix_lengths.iter().map_while(|&length| url.get(..length)).for_each(|prefix| seek(Kind::Prefix, hash128(prefix)));
        }
        if kinds.contains(Kind::Host) {
            seek(Kind::Host, hash128(subject.authority.as_bytes()));
        }
        if kinds.contains(Kind::Site) {
            seek(Kind::Site, hash128(subject.site.as_bytes()));
        }
        if kinds.contains(Kind::Everything) {
            see(Kind::Everything, &self.everything, false);
        }
    }

    /// Raises the slot of an aim and returns it, folding the oldest where there are too many.
    fn put(&mut self, aim: Aim<'_>, mode: Mode, mark: Mark, mono_ms: u64, moved: &mut Kinds) -> &mut Slot {
        let (kind, hash) = match aim {
            Aim::Hash(kind, hash) => (kind, hash),
            Aim::Prefix(prefix) => self.place_of_prefix(prefix),
            Aim::Everything => (Kind::Everything, 0),
        };
        moved.insert(kind);
        #[cfg(test)]
        let planted = self.faults.soft_overwrites_hard;
        #[cfg(not(test))]
        let planted = planted(Fault::SoftOverwritesHard);
        let slot = if kind == Kind::Everything { &mut self.everything } else { self.slot(slot_key(kind, hash)) };
        if planted && mode == Mode::Soft {
            slot.hard = Mark::default();
        }
        slot.raise(mode, mark, mono_ms);
        slot
    }

    /// The slot of a key, now the youngest; the oldest folds where there would be too many.
    fn slot(&mut self, key: u128) -> &mut Slot {
        if let Some((oldest, slot)) = self.slots.make_room(key, self.limits.slots.max(1)) {
            self.fold(oldest, &slot);
        }
        self.slots.youngest(key)
    }

    fn fold(&mut self, key: u128, slot: &Slot) {
        self.folded += 1;
        #[cfg(test)]
        if self.faults.fold_forgets {
            return;
        }
        if self.folds.is_empty() {
            self.folds = vec![Slot::default(); self.limits.folds.max(1)];
        }
        let index = self.fold_index(key);
        self.folds[index].absorb(slot);
    }

    /// Folds both halves of the key first, so that every bit of it counts.
    fn fold_index(&self, key: u128) -> usize {
        let mixed = (key >> 64) as u64 ^ key as u64;
        (mixed % self.limits.folds.max(1) as u64) as usize
    }

    /// Where a prefix is kept. Of a length too many: as a shorter prefix of a length in use, else as its host, else as
    /// everything; each matches all that the prefix does.
    fn place_of_prefix(&mut self, prefix: &str) -> (Kind, u128) {
        let at = match self.prefix_lengths.binary_search(&prefix.len()) {
            Ok(at) => at,
            Err(at) if self.prefix_lengths.len() < PREFIX_LENGTHS_MAX => {
                self.prefix_lengths.insert(at, prefix.len());
                at
            }
            Err(0) => {
                return match prefix.split_once('/') {
                    Some((authority, _)) => (Kind::Host, hash128(authority.as_bytes())),
                    None => (Kind::Everything, 0),
                };
            }
            Err(longer) => longer - 1,
        };
        (Kind::Prefix, hash128(&prefix.as_bytes()[..self.prefix_lengths[at]]))
    }
}

/// One key space for all kinds; the kind in the top byte.
const fn slot_key(kind: Kind, hash: u128) -> u128 {
    hash ^ ((kind as u128 + 1) << 120)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(slots: usize, folds: usize) -> Ledger {
        Ledger::new(Limits { slots, folds, provisional: 4 })
    }

    fn at(ms: u64) -> Position {
        Position { epoch: 0, ms, sequence: 0 }
    }

    fn order(ledger: &mut Ledger, ms: u64, aim: Aim<'_>, mode: Mode) -> Kinds {
        let mut moved = Kinds::default();
        ledger.put_in_order(at(ms), None, std::iter::once(aim), mode, ms * 10, &mut moved);
        moved
    }

    fn subject(url_text: &str) -> Subject<'_> {
        let authority = url_text.split('/').next().unwrap_or_default();
        Subject { url: hash128(url_text.as_bytes()), url_text, authority, site: "shop", keys: &[1, 2], groups: &[3] }
    }

    fn look(ledger: &Ledger, url_text: &str, stamp_ms: u64) -> Validity {
        let stamp = Mark { position: at(stamp_ms), local: 0 };
        validity_of(ledger.find(&subject(url_text), &stamp, Kinds::ALL))
    }

    #[test]
    fn hard_wins_whatever_the_order() {
        for modes in [[Mode::Hard, Mode::Soft], [Mode::Soft, Mode::Hard]] {
            let mut ledger = ledger(8, 8);
            order(&mut ledger, 1, Aim::Hash(Kind::Key, 1), modes[0]);
            order(&mut ledger, 2, Aim::Hash(Kind::Key, 1), modes[1]);
            assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged);
        }
    }

    #[test]
    fn response_between_hard_and_soft_is_only_stale() {
        let mut ledger = ledger(8, 8);
        order(&mut ledger, 1, Aim::Hash(Kind::Group, 3), Mode::Hard);
        order(&mut ledger, 3, Aim::Hash(Kind::Group, 3), Mode::Soft);
        assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged);
        assert_eq!(look(&ledger, "a.test/", 2), Validity::Soft { since_mono_ms: 30 });
        assert_eq!(look(&ledger, "a.test/", 3), Validity::Valid);
    }

    #[test]
    fn severity_survives_extreme_times() {
        assert_eq!(validity_of(severity_of_soft(0)), Validity::Soft { since_mono_ms: 0 });
        assert!(matches!(validity_of(severity_of_soft(u64::MAX)), Validity::Soft { .. }));
        assert!(severity_of_soft(5) > severity_of_soft(6), "the earlier soft is the worse");
    }

    #[test]
    fn the_oldest_slot_folds_and_still_matches() {
        let mut ledger = ledger(2, 1 << 20);
        order(&mut ledger, 1, Aim::Hash(Kind::Key, 1), Mode::Hard);
        order(&mut ledger, 2, Aim::Hash(Kind::Key, 70), Mode::Hard);
        // Raised again: now 70 is the oldest.
        order(&mut ledger, 3, Aim::Hash(Kind::Key, 1), Mode::Soft);
        order(&mut ledger, 4, Aim::Hash(Kind::Key, 71), Mode::Hard);
        assert_eq!(ledger.usage(), (2, 1));
        assert!(ledger.slots.get(slot_key(Kind::Key, 1)).is_some());
        order(&mut ledger, 5, Aim::Hash(Kind::Key, 72), Mode::Hard);
        assert_eq!(ledger.usage(), (2, 2));
        assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged, "folded, hard");
        assert_eq!(look(&ledger, "a.test/", 1), Validity::Soft { since_mono_ms: 30 }, "folded, soft");
        assert_eq!(look(&ledger, "a.test/", 3), Validity::Valid, "newer than the fold");
    }

    #[test]
    fn folded_hard_and_a_later_soft_slot_are_both_seen() {
        let mut ledger = ledger(1, 4);
        order(&mut ledger, 1, Aim::Hash(Kind::Key, 1), Mode::Hard);
        order(&mut ledger, 2, Aim::Hash(Kind::Key, 99), Mode::Hard);
        order(&mut ledger, 3, Aim::Hash(Kind::Key, 1), Mode::Soft);
        assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged);
    }

    #[test]
    fn one_fold_for_all_invalidates_too_much_and_not_what_is_newer() {
        let mut ledger = ledger(1, 1);
        order(&mut ledger, 1, Aim::Hash(Kind::Key, 500), Mode::Hard);
        order(&mut ledger, 2, Aim::Hash(Kind::Key, 501), Mode::Hard);
        assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged, "matched by nothing but the fold");
        assert_eq!(look(&ledger, "a.test/", 1), Validity::Valid);
    }

    #[test]
    fn fold_counts_soft_from_the_earlier() {
        let mut fold = Slot::default();
        for (ms, mono_ms) in [(1, 50), (2, 20), (3, 90)] {
            let mut slot = Slot::default();
            slot.raise(Mode::Soft, Mark { position: at(ms), local: 0 }, mono_ms);
            fold.absorb(&slot);
        }
        assert_eq!(fold.soft.position, at(3));
        assert_eq!(fold.soft_since_mono_ms, 20);
    }

    #[test]
    fn provisional_beyond_the_bound_stays_applied() {
        let mut ledger = ledger(64, 8);
        let ids: Vec<PurgeId> = (0..6).map(|_| PurgeId::random()).collect();
        for (index, &id) in ids.iter().enumerate() {
            let aim = Aim::Hash(Kind::Key, index as u128);
            ledger.put_provisional(id, std::iter::once(aim), Mode::Hard, 0, &mut Kinds::default());
        }
        assert_eq!(ledger.provisional.len(), 4);
        assert_eq!(ledger.provisional_oldest_first.len(), 4);
        assert_eq!(look(&ledger, "a.test/", 0), Validity::Purged, "key 1 is among the oldest");
        ledger.put_in_order(at(1), Some(ids[1]), std::iter::once(Aim::Hash(Kind::Key, 1)), Mode::Hard, 0, &mut Kinds::default());
        assert_eq!(look(&ledger, "a.test/", 1), Validity::Purged, "not recognised as its own: too much, never too little");
    }

    #[test]
    fn prefix_of_a_length_too_many_is_widened() {
        let mut ledger = ledger(1000, 8);
        let long = format!("a.test/{}", "x".repeat(200));
        for extra in 0..PREFIX_LENGTHS_MAX {
            let moved = order(&mut ledger, 1, Aim::Prefix(&long[..20 + extra * 2]), Mode::Soft);
            assert!(moved.contains(Kind::Prefix));
        }
        assert_eq!(ledger.prefix_lengths.len(), PREFIX_LENGTHS_MAX);
        let odd = format!("b.test/{}", "y".repeat(18));
        let moved = order(&mut ledger, 2, Aim::Prefix(&odd), Mode::Hard);
        assert!(moved.contains(Kind::Prefix) && !moved.contains(Kind::Host));
        assert_eq!(look(&ledger, &odd, 1), Validity::Purged);
        assert_eq!(look(&ledger, &odd[..24], 1), Validity::Purged, "widened by one");
        assert_eq!(look(&ledger, &odd[..23], 1), Validity::Valid);
        let moved = order(&mut ledger, 3, Aim::Prefix("c.test/short"), Mode::Hard);
        assert!(moved.contains(Kind::Host));
        assert_eq!(look(&ledger, "c.test/short/1", 2), Validity::Purged);
        assert_eq!(look(&ledger, "c.test/", 2), Validity::Purged, "the whole host");
        assert_eq!(look(&ledger, "d.test/", 2), Validity::Valid);
        let moved = order(&mut ledger, 4, Aim::Prefix("d.te"), Mode::Hard);
        assert!(moved.contains(Kind::Everything));
        assert_eq!(look(&ledger, "e.test/", 3), Validity::Purged);
        assert_eq!(ledger.prefix_lengths.len(), PREFIX_LENGTHS_MAX);
    }

    proptest! {
        /// Whatever lengths are in use and however much folds: what begins with a purged prefix is gone.
        #[test]
        fn prefix_matches_at_least_what_begins_with_it(
            prefixes in prop::collection::vec(("[ab]\\.test", "(/[a-cé]{0,30}){0,4}"), 1..120),
            rest in "[a-z/]{0,8}",
            slots in 1..200_usize,
        ) {
            let mut ledger = ledger(slots, 3);
            for (index, (authority, path)) in prefixes.iter().enumerate() {
                order(&mut ledger, index as u64 + 1, Aim::Prefix(&format!("{authority}/{path}")), Mode::Hard);
                prop_assert!(ledger.usage().0 <= slots);
                prop_assert!(ledger.prefix_lengths.len() <= PREFIX_LENGTHS_MAX);
            }
            for (index, (authority, path)) in prefixes.iter().enumerate() {
                prop_assert_eq!(look(&ledger, &format!("{authority}/{path}{rest}"), index as u64), Validity::Purged);
            }
        }
    }
}
