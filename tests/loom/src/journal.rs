//! Apply against check against insert: the core of `src/invalidation`.
//!
//! The state is the last position per kind in place of the ledger; counters, memory and locks are the real ones.

#[path = "../../../src/invalidation/clockwork.rs"]
mod clockwork;
#[path = "../../../src/invalidation/kind.rs"]
mod kind;

use crate::sync::Mutex;
use clockwork::{CheckedUpTo, Clockwork};
use kind::{Kind, Kinds};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

#[derive(Debug, Default, Clone, Copy)]
struct Ledger {
    position: u64,
    sequence: u64,
    last: [u64; Kind::ALL.len()],
}

#[derive(Debug)]
struct Journal {
    classes: [Clockwork<Ledger>; 2],
}

impl Journal {
    fn new() -> Arc<Self> {
        Arc::new(Self { classes: [Clockwork::new(Ledger::default()), Clockwork::new(Ledger::default())] })
    }

    fn purge(&self, class: usize, kind: Kind) {
        self.classes[class].change(|ledger, moved| {
            ledger.position += 1;
            ledger.last[kind as usize] = ledger.position;
            moved.insert(kind);
            ledger.sequence += 1;
        });
    }

    fn stamp(&self) -> [u64; 2] {
        [0, 1].map(|class| {
            self.classes[class].read(|ledger| {
                assert_eq!(ledger.position, ledger.sequence, "both parts of a stamp are read together");
                ledger.position
            })
        })
    }

    fn look(&self, stamp: [u64; 2], since: [u64; 2]) -> u64 {
        let found = [0, 1].map(|class| {
            self.classes[class].look(since[class], |ledger: &Ledger, kinds: Kinds| {
                u64::from(Kind::ALL.into_iter().any(|kind| kinds.contains(kind) && ledger.last[kind as usize] > stamp[class]))
            })
        });
        found[0].max(found[1])
    }

    /// As `Journal::check` does it.
    fn usable(&self, stamp: [u64; 2], checked: &CheckedUpTo) -> bool {
        let counts = [0, 1].map(|class| self.classes[class].count());
        let severity = match checked.covers(counts) {
            Some(remembered) => remembered,
            None => checked.remember(counts, self.look(stamp, checked.counts())),
        };
        severity == 0
    }

    /// Planted: the count is read after the look-up.
    fn usable_by_late_count(&self, stamp: [u64; 2], checked: &CheckedUpTo) -> bool {
        let found = self.look(stamp, checked.counts());
        let counts = [0, 1].map(|class| self.classes[class].count());
        checked.remember(counts, found) == 0
    }
}

/// Explores all schedules with at most this many forced switches: more than any known fault of this kind needs.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn no_check_that_starts_after_a_purge_returned_finds_it_usable() {
    explore(|| {
        let journal = Journal::new();
        let checked = Arc::new(CheckedUpTo::default());
        let returned = Arc::new(AtomicBool::new(false));
        let purger = thread::spawn({
            let (journal, returned) = (journal.clone(), returned.clone());
            move || {
                journal.purge(0, Kind::Key);
                returned.store(true, Ordering::Release);
            }
        });
        let other = thread::spawn({
            let (journal, checked) = (journal.clone(), checked.clone());
            move || journal.usable([0, 0], &checked)
        });
        let purged = returned.load(Ordering::Acquire);
        let usable = journal.usable([0, 0], &checked);
        assert!(!(purged && usable));
        purger.join().unwrap();
        other.join().unwrap();
        assert!(!journal.usable([0, 0], &checked), "nobody's memory hides the purge");
    });
}

#[test]
fn purges_of_both_classes_do_not_hide_each_other() {
    explore(|| {
        let journal = Journal::new();
        let checked = Arc::new(CheckedUpTo::default());
        let writer = thread::spawn({
            let journal = journal.clone();
            move || journal.purge(1, Kind::Url)
        });
        let checker = thread::spawn({
            let (journal, checked) = (journal.clone(), checked.clone());
            move || journal.usable([1, 0], &checked)
        });
        // Newer than this purge, older than the write.
        journal.purge(0, Kind::Key);
        checker.join().unwrap();
        writer.join().unwrap();
        assert!(!journal.usable([1, 0], &checked));
    });
}

#[test]
fn two_purges_at_once_are_both_found() {
    explore(|| {
        let journal = Journal::new();
        let checked = Arc::new(CheckedUpTo::default());
        let purgers = [Kind::Key, Kind::Site].map(|kind| {
            let journal = journal.clone();
            thread::spawn(move || journal.purge(0, kind))
        });
        // Older than whichever comes second. In a thread of its own: loom explores more orders so.
        let checker = thread::spawn({
            let (journal, checked) = (journal.clone(), checked.clone());
            move || journal.usable([1, 0], &checked)
        });
        checker.join().unwrap();
        for purger in purgers {
            purger.join().unwrap();
        }
        assert!(!journal.usable([1, 0], &checked));
        assert!(journal.usable([2, 0], &CheckedUpTo::default()));
    });
}

#[test]
fn response_inserted_while_a_purge_runs_is_found_invalid() {
    explore(|| {
        let journal = Journal::new();
        let cache: Arc<Mutex<Option<([u64; 2], Arc<CheckedUpTo>)>>> = Arc::new(Mutex::new(None));
        let returned = Arc::new(AtomicBool::new(false));
        let filler = thread::spawn({
            let (journal, cache, returned) = (journal.clone(), cache.clone(), returned.clone());
            move || {
                let purged = returned.load(Ordering::Acquire);
                let stamp = journal.stamp();
                assert!(!purged || stamp[0] == 1, "a fetch that began after the purge returned is stamped after it");
                if journal.look(stamp, [0, 0]) == 0 {
                    *cache.lock() = Some((stamp, Arc::new(CheckedUpTo::default())));
                }
            }
        });
        let purger = thread::spawn({
            let (journal, returned) = (journal.clone(), returned.clone());
            move || {
                journal.purge(0, Kind::Url);
                returned.store(true, Ordering::Release);
            }
        });
        let purged = returned.load(Ordering::Acquire);
        let stored = cache.lock().clone();
        if let Some((stamp, checked)) = stored {
            let usable = journal.usable(stamp, &checked);
            assert!(!(purged && usable && stamp[0] == 0), "stored before the purge, served after it");
        }
        purger.join().unwrap();
        filler.join().unwrap();
        let left = cache.lock().clone();
        if let Some((stamp, checked)) = left {
            assert_eq!(journal.usable(stamp, &checked), stamp[0] == 1);
        }
    });
}

#[test]
#[should_panic(expected = "hides the purge")]
fn count_read_after_the_look_up_is_noticed() {
    explore(|| {
        let journal = Journal::new();
        let checked = CheckedUpTo::default();
        let purger = thread::spawn({
            let journal = journal.clone();
            move || journal.purge(0, Kind::Key)
        });
        journal.usable_by_late_count([0, 0], &checked);
        purger.join().unwrap();
        assert!(!journal.usable([0, 0], &checked), "a memory hides the purge");
    });
}
