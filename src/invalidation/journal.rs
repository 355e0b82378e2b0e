//! The journal as this node has applied it: stamps, checks, purges (DESIGN section 6).

use super::clockwork::{CheckedUpTo, Clockwork};
use super::entry::{Entry, Purge, PurgeId, Refused};
use super::fleet::protocol::Batch;
use super::kind::{Kind, Kinds};
use super::ledger::{Aim, Ledger, Limits, validity_of};
use super::receipt::{Receipts, rfc3339};
use super::wide::WidePurges;
use super::{Mark, Mode, Position, Receipt, Selector, Stamp, Subject};
use crate::config::settings::PurgeBounds;
use crate::semantics::Now;
use crate::semantics::key::hash128;
use crate::semantics::reuse::Validity;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use serde_json::json;

/// Two classes of entries with maps and folds of their own, so that a flood of writes cannot touch what operators
/// purged. One per process. What it hands out is compared with another's only as [`Stamp::shared`].
#[derive(Debug)]
pub struct Journal {
    purges: Clockwork<Ledger>,
    unsafe_methods: Clockwork<Ledger>,
    receipts: Mutex<Receipts>,
    wide: WidePurges,
    /// How unsafe methods are told, and whether positions are a fleet's.
    order: Order,
    /// Boot-time ms up to which this node knows that it misses nothing.
    trusted_until: AtomicU64,
    /// Boot-time ms; 0 without a fleet.
    followed_since: AtomicU64,
    remembered: AtomicBool,
}

/// Who gives entries their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// This node: it has no fleet.
    Own,
    /// The fleet's journal; `tell_unsafe` whether unsafe methods are told to it.
    Fleet { tell_unsafe: bool },
}

/// Batches of unsafe methods that are expected in order; fewer are under way (`fleet::Batches`).
const BATCHES_EXPECTED: usize = 1024;
/// Who issues what stands in for purges that are no longer kept.
const STAND_IN_ACTOR: &str = "journal";

impl Journal {
    /// Each class keeps `map_capacity` selectors exactly and folds the older ones into `fold_slots` places.
    pub fn new(bounds: &PurgeBounds) -> Self {
        Self::with_order(bounds, Order::Own)
    }

    /// As [`Journal::new`]. In a fleet it is not trusted until [`Journal::trust_until`] says so, and `fleet::Fleet` applies.
    pub fn with_order(bounds: &PurgeBounds, order: Order) -> Self {
        // Beside those that are followed: one that was just issued, and what stands in for others.
        let limits = Limits { slots: bounds.map_capacity, folds: bounds.fold_slots, provisional: bounds.receipts + 2 };
        let limits_of_unsafe = Limits { provisional: BATCHES_EXPECTED, ..limits };
        Self {
            purges: Clockwork::new(Ledger::new(limits)),
            unsafe_methods: Clockwork::new(Ledger::new(limits_of_unsafe)),
            receipts: Mutex::new(Receipts::new(bounds.receipts)),
            wide: WidePurges::new(bounds.recovery.as_millis() as u64),
            order,
            remembered: AtomicBool::new(false),
            followed_since: AtomicU64::new(0),
            trusted_until: AtomicU64::new(if order == Order::Own { u64::MAX } else { 0 }),
        }
    }

    /// Whether this node misses nothing that the fleet counts as complete: always without a fleet. Else it is cut off.
    ///
    /// To be compared with a clock read after whatever is judged by it: what was trusted when a request came may not be
    /// when an answer from a shared tier arrives.
    pub fn is_trusted(&self, now: Now) -> bool {
        now.mono_ms <= self.trusted_until()
    }

    /// Boot-time ms until which the journal is trusted.
    pub fn trusted_until(&self) -> u64 {
        self.trusted_until.load(Ordering::Acquire)
    }

    /// The lease was renewed. It never gets shorter: what was promised holds until then.
    pub fn trust_until(&self, mono_ms: u64) {
        self.trusted_until.fetch_max(mono_ms, Ordering::AcqRel);
    }

    /// Since when, in boot-time ms, this node has followed the fleet's journal without a gap: it started then, or came back. 0
    /// without a fleet.
    pub fn followed_since(&self) -> u64 {
        self.followed_since.load(Ordering::Acquire)
    }

    /// What [`Journal::followed_since`] says from now on.
    pub fn set_followed_since(&self, mono_ms: u64) {
        self.followed_since.store(mono_ms, Ordering::Release);
    }

    /// Whether the fleet is sure to remember this node: purges wait for it then, and it may serve while it is cut off.
    pub fn is_remembered(&self) -> bool {
        self.remembered.load(Ordering::Acquire)
    }

    /// What [`Journal::is_remembered`] says from now on.
    pub fn set_remembered(&self, is_remembered: bool) {
        self.remembered.store(is_remembered, Ordering::Release);
    }

    /// The epoch that this node is in; 0 without a fleet, and before it was first heard of.
    pub fn epoch(&self) -> u64 {
        self.purges.read(Ledger::mark).position.epoch
    }

    /// A stamp from a shared tier or a peer, to be compared here: what this node applied ahead of its place counts as
    /// later, unless it has got its place since. `fetched_mono_ms`: when the fetch began, where that is known, for what
    /// never gets a place (`purge.unsafe_methods = "local"`).
    #[must_use]
    pub fn of_shared(&self, shared: &Stamp, fetched_mono_ms: Option<u64>) -> Stamp {
        let settled = |class: &Clockwork<Ledger>| class.read(|ledger| ledger.settled(fetched_mono_ms));
        let part = |mark: &Mark, class: &Clockwork<Ledger>| Mark { position: mark.position, local: settled(class) };
        Stamp { purge: part(&shared.purge, &self.purges), unsafe_method: part(&shared.unsafe_method, &self.unsafe_methods) }
    }

    /// Positions applied now; taken before a request is sent upstream.
    ///
    /// Position and local sequence of a class are read together. The classes need not be: their entries are compared
    /// with their own mark only.
    pub fn stamp(&self) -> Stamp {
        Stamp { purge: self.purges.read(Ledger::mark), unsafe_method: self.unsafe_methods.read(Ledger::mark) }
    }

    /// Whether a response whose fetch began at `stamp` is usable now. Where nothing new was applied since `checked`:
    /// five loads, no lock. Else the kinds that moved are looked up.
    ///
    /// `checked` belongs to this subject and stamp: a refreshed or promoted response gets a new one.
    pub fn check(&self, subject: &Subject<'_>, stamp: &Stamp, checked: &CheckedUpTo) -> Validity {
        // Read before the look-up: an entry applied meanwhile is found now or by the next check, never by neither.
        let counts = [self.purges.count(), self.unsafe_methods.count()];
        let severity = match checked.covers(counts) {
            Some(remembered) => remembered,
            None => checked.remember(counts, self.look(subject, stamp, checked.counts())),
        };
        validity_of(severity)
    }

    /// What the last [`Journal::check`] said, where nothing new was applied since.
    pub fn remembered(&self, checked: &CheckedUpTo) -> Option<Validity> {
        checked.covers([self.purges.count(), self.unsafe_methods.count()]).map(validity_of)
    }

    /// [`Journal::check`] without memory: for flights, 304s and insertions.
    pub fn validity(&self, subject: &Subject<'_>, stamp: &Stamp) -> Validity {
        validity_of(self.look(subject, stamp, [0, 0]))
    }

    /// Whether a request may join a flight that began at `stamp`: no URL, prefix, host, site or everything entry is
    /// newer. Keys and groups are not known before the head; then [`Journal::validity`] decides.
    pub fn joinable(&self, url: u128, url_text: &str, authority: &str, site: &str, stamp: &Stamp) -> bool {
        let subject = Subject { url, url_text, authority, site, keys: &[], groups: &[] };
        self.validity(&subject, stamp) == Validity::Valid
    }

    /// The stamp of a conditional request for what was stored at `stored`, or `None` if that is hard-purged: then it is
    /// no source of validators. On 304 the response gets this stamp and is valid by [`Journal::validity`] with the
    /// [`super::selector::union`] of old and new keys and groups; purged by that, the 304 is discarded.
    pub fn stamp_of_refresh(&self, subject: &Subject<'_>, stored: &Stamp) -> Option<Stamp> {
        // In this order: an entry applied between the two is seen by the check.
        let stamp = self.stamp();
        (self.validity(subject, stored) != Validity::Purged).then_some(stamp)
    }

    /// Applies a purge here at once and remembers a receipt. This node being the journal, the purge has its place in the
    /// order at once: nobody could see it provisional.
    pub fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Receipt {
        let purge = new_purge(selectors, mode, actor, now);
        let (before, position) = self.purges.change(|ledger, moved| {
            let before = ledger.mark();
            let position = before.position.next(now.wall_ms);
            ledger.put_in_order(position, None, purge.selectors.iter().flat_map(Aim::all_of), mode, now.mono_ms, moved);
            (before, position)
        });
        self.note_wide(&purge, before, now);
        let receipt = Receipt::local(purge, position);
        self.receipts.lock().keep(receipt.clone());
        receipt
    }

    /// Applies an own purge provisionally, ahead of its place in the order, remembers a receipt and returns it to be
    /// appended: for `fleet::Event::Issued`.
    pub fn issue(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Purge {
        let purge = new_purge(selectors, mode, actor, now);
        let before = self.purges.change(|ledger, moved| {
            let before = ledger.mark();
            ledger.put_provisional(purge.id, purge.selectors.iter().flat_map(Aim::all_of), mode, now.mono_ms, moved);
            before
        });
        self.note_wide(&purge, before, now);
        self.receipts.lock().keep(Receipt::provisional(purge.clone()));
        purge
    }

    /// This purge is no longer followed, and has no place in the order.
    pub(super) fn give_up(&self, id: PurgeId) {
        self.purges.arrange(|ledger| ledger.withdraw(id));
    }

    /// What is to be appended in the stead of purges that were given up.
    pub(super) fn stand_in(&self, now: Now) -> Option<Purge> {
        if !self.purges.read(Ledger::has_given_up) {
            return None;
        }
        let purge = new_purge(vec![Selector::Everything], Mode::Hard, STAND_IN_ACTOR, now);
        self.purges.arrange(|ledger| ledger.stand_in(purge.id, now.mono_ms)).then_some(purge)
    }

    /// Applies the next entry in order; an own purge's provisional form is dropped. `now` is when it arrived.
    pub fn apply(&self, entry: &Entry, now: Now) -> Result<(), Refused> {
        let Entry { position, purge, .. } = entry;
        let before = self.purges.change(|ledger, moved| {
            let before = ledger.mark();
            entry.follows(before.position)?;
            ledger.put_in_order(*position, Some(purge.id), purge.selectors.iter().flat_map(Aim::all_of), purge.mode, now.mono_ms, moved);
            Ok(before)
        })?;
        self.note_wide(purge, before, now);
        Ok(())
    }

    /// Whether a miss of this URL is likely to be the doing of a purge of late that may have hit much (`purge.recovery`);
    /// keys and groups do not count. One load where there was none.
    pub fn is_recovering(&self, subject: &Subject<'_>, now: Now) -> bool {
        let Some(before) = self.wide.before_first(now.mono_ms) else { return false };
        validity_of(self.purges.read(|ledger| ledger.find(subject, &before, Kinds::WIDE))) != Validity::Valid
    }

    fn note_wide(&self, purge: &Purge, before: Mark, now: Now) {
        if purge.selectors.iter().any(|selector| Kinds::WIDE.contains(selector.kind())) {
            self.wide.note(before, now.mono_ms);
        }
    }

    /// Applies the next batch of its class, at `position` after `previous`; an own batch's provisional form is dropped.
    pub(super) fn apply_unsafe(&self, position: Position, previous: Position, batch: &Batch, now: Now) -> Result<(), Refused> {
        self.unsafe_methods.change(|ledger, moved| {
            Refused::unless_next(position, previous, ledger.mark().position)?;
            let aims = batch.hashes.iter().map(|&(kind, hash)| Aim::Hash(kind, hash));
            ledger.put_in_order(position, Some(batch.id), aims, Mode::Hard, now.mono_ms, moved);
            Ok(())
        })
    }

    /// What unsafe methods invalidated here and the fleet has not been told: the oldest of it, as a batch to append. All at
    /// once, by a batch that invalidates everything, where too much of it waited.
    pub fn take_batch(&self, now: Now) -> Option<Batch> {
        self.unsafe_methods.arrange(|ledger| {
            let id = PurgeId::random();
            if ledger.stand_in(id, now.mono_ms) {
                return Some(Batch { id, hashes: vec![(Kind::Everything, 0)] });
            }
            let (first, hashes) = ledger.outbox.take(Batch::HASHES_MAX)?;
            let last = ledger.mark().local;
            ledger.expect(id, first, last, now.mono_ms);
            Some(Batch { id, hashes })
        })
    }

    /// Invalidations that wait to be told to the fleet, and how many were not each, because too many waited.
    pub fn untold(&self) -> (usize, u64) {
        self.unsafe_methods.read(|ledger| (ledger.outbox.len(), ledger.outbox.lost()))
    }

    /// Goes on at these positions of both classes. `drop_held`: whatever was fetched before them is unusable.
    pub(super) fn jump(&self, purges: Position, unsafe_methods: Position, drop_held: bool, now: Now) {
        let before = self.purges.change(|ledger, moved| {
            let before = ledger.mark();
            ledger.jump(purges, drop_held, now.mono_ms, moved);
            before
        });
        // A node that starts holds nothing that it could lose.
        if drop_held && before.position.epoch > 0 {
            self.wide.note(before, now.mono_ms);
        }
        self.unsafe_methods.change(|ledger, moved| ledger.jump(unsafe_methods, drop_held, now.mono_ms, moved));
    }

    pub(super) fn change_receipt(&self, id: PurgeId, change: impl FnOnce(&mut Receipt)) {
        self.receipts.lock().change(&id.to_string(), change);
    }

    /// A receipt by purge id.
    pub fn receipt(&self, id: &str) -> Option<Receipt> {
        self.receipts.lock().find(id)
    }

    /// Invalidates URLs for an unsafe method (RFC 9111 section 4.4): the cheaper class.
    ///
    /// The answer to the request that does it, sent at `sent`, may be stored itself: the stamp for it, in which this
    /// write counts as seen. `None` where another write matched `answer` meanwhile, which it may know nothing of.
    pub fn invalidate_unsafe(&self, urls: &[u128], answer: &Subject<'_>, sent: &Stamp, now: Now) -> Option<Stamp> {
        self.unsafe_methods.change(|ledger, moved| {
            let untouched = validity_of(ledger.find(answer, &sent.unsafe_method, Kinds::ALL)) == Validity::Valid;
            self.put_hashes(ledger, Kind::Url, urls, now, moved);
            untouched.then(|| Stamp { purge: sent.purge, unsafe_method: ledger.mark() })
        })
    }

    /// Invalidates cache groups, by [`super::selector::group_hash`], for `Cache-Group-Invalidation` (RFC 9875 section 3):
    /// the cheaper class too.
    pub fn invalidate_groups(&self, groups: &[u128], now: Now) {
        self.unsafe_methods.change(|ledger, moved| self.put_hashes(ledger, Kind::Group, groups, now, moved));
    }

    /// Invalidates all of a host, for a Cache-Group-Invalidation that names more groups than are looked at.
    pub fn invalidate_host(&self, authority: &str, now: Now) {
        let host = hash128(authority.as_bytes());
        self.unsafe_methods.change(|ledger, moved| self.put_hashes(ledger, Kind::Host, &[host], now, moved));
    }

    /// Selectors kept exactly, and how many have folded since the start; of both classes.
    pub fn usage(&self) -> (usize, u64) {
        let purges = self.purges.read(Ledger::usage);
        let unsafe_methods = self.unsafe_methods.read(Ledger::usage);
        (purges.0 + unsafe_methods.0, purges.1 + unsafe_methods.1)
    }

    /// The entry that decides about what was fetched at `stamp`, for `explain`: hard before soft, then the last; where
    /// all that match are older than the fetch, the last of them. `class`, `kind`, `mode`, `position` and `at` (both null
    /// while it is provisional), `folded` if it may have been meant for something else, `applies` unless the fetch began
    /// after it.
    pub fn deciding_match(&self, subject: &Subject<'_>, stamp: &Stamp) -> Option<serde_json::Value> {
        // As a check does: a kind that never moved is not looked for in what was folded either.
        let purge = self.purges.look(0, |ledger, kinds| Match::deciding(ledger, "purge", kinds, subject, &stamp.purge));
        let unsafe_method =
            self.unsafe_methods.look(0, |ledger, kinds| Match::deciding(ledger, "unsafe_method", kinds, subject, &stamp.unsafe_method));
        let deciding = purge.into_iter().chain(unsafe_method).max_by_key(Match::rank)?;
        Some(deciding.json())
    }

    fn look(&self, subject: &Subject<'_>, stamp: &Stamp, since: [u64; 2]) -> u64 {
        let purged = self.purges.look(since[0], |ledger, kinds| ledger.find(subject, &stamp.purge, kinds));
        let written = self.unsafe_methods.look(since[1], |ledger, kinds| ledger.find(subject, &stamp.unsafe_method, kinds));
        purged.max(written)
    }

    fn put_hashes(&self, ledger: &mut Ledger, kind: Kind, hashes: &[u128], now: Now, moved: &mut Kinds) {
        let aims = hashes.iter().map(|&hash| Aim::Hash(kind, hash));
        match self.order {
            Order::Own => {
                let position = ledger.mark().position.next(now.wall_ms);
                ledger.put_in_order(position, None, aims, Mode::Hard, now.mono_ms, moved);
            }
            Order::Fleet { tell_unsafe } => {
                let local = ledger.put_ahead(aims, Mode::Hard, now.mono_ms, moved);
                if !tell_unsafe {
                    return ledger.unshared.note(local, now.mono_ms);
                }
                // Each is put, whether the one before it found a place or not.
                let untold = hashes.iter().filter(|&&hash| !ledger.outbox.put(local, (kind, hash))).count();
                if untold > 0 {
                    ledger.give_up(local);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn with_faults(bounds: &PurgeBounds, order: Order, faults: super::model::LedgerFaults) -> Self {
        let journal = Self::with_order(bounds, order);
        journal.purges.change(|ledger, _| ledger.faults = faults);
        journal.unsafe_methods.change(|ledger, _| ledger.faults = faults);
        journal
    }
}

fn new_purge(selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Purge {
    Purge { id: PurgeId::random(), selectors, mode, issued_at: rfc3339(now.wall_ms), actor: actor.to_owned() }
}

/// An entry that matches a subject.
#[derive(Debug, Clone, Copy)]
struct Match {
    class: &'static str,
    kind: Kind,
    mode: Mode,
    mark: Mark,
    folded: bool,
    /// What it does to what was fetched at the stamp: [`validity_of`].
    severity: u64,
}

impl Match {
    fn deciding(ledger: &Ledger, class: &'static str, kinds: Kinds, subject: &Subject<'_>, stamp: &Mark) -> Option<Self> {
        let mut deciding: Option<Self> = None;
        ledger.each_match(subject, kinds, |kind, slot, folded| {
            for (mode, mark) in [(Mode::Soft, slot.soft), (Mode::Hard, slot.hard)] {
                let found = Self { class, kind, mode, mark, folded, severity: slot.severity_of(mode, stamp) };
                if mark != Mark::default() && deciding.is_none_or(|deciding| found.rank() >= deciding.rank()) {
                    deciding = Some(found);
                }
            }
        });
        deciding
    }

    /// The worst, then the last. Provisional entries are later than all in order; positions of both classes begin with
    /// the time.
    const fn rank(&self) -> (u64, u64, super::Position) {
        (self.severity, self.mark.local, self.mark.position)
    }

    fn json(&self) -> serde_json::Value {
        let in_order = self.mark.local == 0;
        let wall_ms = i64::try_from(self.mark.position.ms).unwrap_or(i64::MAX);
        json!({
            "class": self.class,
            "kind": self.kind.as_str(),
            "mode": self.mode.as_str(),
            "position": in_order.then_some(self.mark.position),
            "at": in_order.then(|| rfc3339(wall_ms)),
            "folded": self.folded,
            "applies": validity_of(self.severity) != Validity::Valid,
        })
    }
}
