//! The journal through its public interface: order, provisional entries, receipts, threads. The model of stores, fills
//! and purges is beside the code (`src/invalidation/model.rs`).

use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tiercel::config::settings;
use tiercel::invalidation::selector::{group_hash, key_hash};
use tiercel::invalidation::{CheckedUpTo, Entry, Journal, Mark, Mode, Position, Purge, Refused, Selector, Stamp, Subject};
use tiercel::semantics::Now;
use tiercel::semantics::key::hash128;
use tiercel::semantics::reuse::Validity;

const NOW: Now = Now { wall_ms: 1_795_299_066_123, mono_ms: 5000 };

fn journal() -> Journal {
    Journal::new(&settings::PurgeBounds { receipts: 1000, map_capacity: 1000, fold_slots: 64, recovery: std::time::Duration::ZERO })
}

/// `http://shop.test:8080/a/b?q` of site `shop`.
fn subject<'a>(keys: &'a [u128], groups: &'a [u128]) -> Subject<'a> {
    let url_text = "shop.test:8080/a/b?q";
    Subject { url: hash128(url_text.as_bytes()), url_text, authority: "shop.test:8080", site: "shop", keys, groups }
}

/// An unsafe request, the answer to which is not stored.
fn written(journal: &Journal, urls: &[u128], now: Now) {
    journal.invalidate_unsafe(urls, &subject(&[], &[]), &journal.stamp(), now);
}

fn key(name: &str) -> Selector {
    Selector::Key(name.into())
}

#[test]
fn each_kind_of_selector_matches_its_own_and_nothing_else() {
    let (keys, groups) = ([key_hash("red"), key_hash("green")], [group_hash("http://shop.test:8080", "news")]);
    let subject = subject(&keys, &groups);
    let rows = [
        (Selector::Url("shop.test:8080/a/b?q".into()), true),
        (Selector::Url("shop.test:8080/a/b".into()), false),
        (key("green"), true),
        (key("gree"), false),
        (Selector::Group { origin: "http://shop.test:8080".into(), group: "news".into() }, true),
        (Selector::Group { origin: "https://shop.test:8080".into(), group: "news".into() }, false),
        (Selector::Prefix("shop.test:8080/a".into()), true),
        (Selector::Prefix("shop.test:8080/a/b?q".into()), true),
        (Selector::Prefix("shop.test:8080/a/b?q=1".into()), false),
        (Selector::Prefix("shop.test:8080/b".into()), false),
        (Selector::Host("shop.test:8080".into()), true),
        (Selector::Host("shop.test".into()), false),
        (Selector::Site("shop".into()), true),
        (Selector::Site("blog".into()), false),
        // The same text as another kind.
        (key("shop"), false),
        (Selector::Everything, true),
    ];
    for (selector, matches) in rows {
        let journal = journal();
        let stamp = journal.stamp();
        let checked = CheckedUpTo::default();
        assert_eq!(journal.check(&subject, &stamp, &checked), Validity::Valid);
        journal.purge(vec![selector.clone()], Mode::Hard, "test", NOW);
        let expected = if matches { Validity::Purged } else { Validity::Valid };
        assert_eq!(journal.check(&subject, &stamp, &checked), expected, "{selector:?}");
        assert_eq!(journal.validity(&subject, &stamp), expected, "{selector:?}");
        assert_eq!(journal.validity(&subject, &journal.stamp()), Validity::Valid, "fetched after it: {selector:?}");
        assert_eq!(journal.deciding_match(&subject, &stamp).is_some(), matches, "{selector:?}");
    }
}

#[test]
fn soft_purge_counts_from_when_it_was_applied_and_is_remembered() {
    let journal = journal();
    let subject = subject(&[], &[]);
    let (stamp, checked) = (journal.stamp(), CheckedUpTo::default());
    journal.purge(vec![Selector::Site("shop".into())], Mode::Soft, "test", NOW);
    assert_eq!(journal.check(&subject, &stamp, &checked), Validity::Soft { since_mono_ms: 5000 });
    journal.purge(vec![Selector::Site("shop".into())], Mode::Soft, "test", NOW.plus_ms(700));
    assert_eq!(journal.check(&subject, &stamp, &checked), Validity::Soft { since_mono_ms: 5000 }, "stale already");
    journal.purge(vec![Selector::Host("shop.test:8080".into())], Mode::Hard, "test", NOW.plus_ms(800));
    assert_eq!(journal.check(&subject, &stamp, &checked), Validity::Purged);
    journal.purge(vec![Selector::Host("shop.test:8080".into())], Mode::Soft, "test", NOW.plus_ms(900));
    assert_eq!(journal.check(&subject, &stamp, &checked), Validity::Purged);
}

#[test]
fn flood_of_writes_cannot_touch_what_operators_purged() {
    let journal = journal();
    let (purged, kept) = ([key_hash("red")], [key_hash("blue")]);
    let stamp = journal.stamp();
    journal.purge(vec![key("red")], Mode::Hard, "test", NOW);
    for write in 0..100_000_u128 {
        written(&journal, &[hash128(&write.to_le_bytes())], NOW);
    }
    let (entries, folded) = journal.usage();
    assert_eq!((entries, folded), (1001, 99_000), "writes fill their own map only");
    assert_eq!(journal.validity(&subject(&purged, &[]), &stamp), Validity::Purged);
    let stamp = Stamp { unsafe_method: journal.stamp().unsafe_method, ..stamp };
    assert_eq!(journal.validity(&subject(&kept, &[]), &stamp), Validity::Valid, "no fold of the purges is used");
}

#[test]
fn the_answer_to_a_write_is_newer_than_its_own_invalidation_and_no_other() {
    let journal = journal();
    let (answer, before) = (subject(&[], &[]), journal.stamp());
    let sent = journal.stamp();
    let first = journal.invalidate_unsafe(&[answer.url], &answer, &sent, NOW).expect("nothing came between");
    assert_eq!(journal.validity(&answer, &first), Validity::Valid);
    assert_eq!(journal.validity(&answer, &before), Validity::Purged);
    let second = journal.invalidate_unsafe(&[answer.url], &answer, &sent, NOW);
    assert_eq!(second, None, "it may have been answered before the first was");
    assert_eq!(journal.validity(&answer, &first), Validity::Purged, "the later write invalidates what the first stored");
    let sent = journal.stamp();
    journal.purge(vec![Selector::Everything], Mode::Hard, "test", NOW);
    let third = journal.invalidate_unsafe(&[answer.url], &answer, &sent, NOW).expect("no other write");
    assert_eq!(journal.validity(&answer, &third), Validity::Purged, "purges since it was sent count");
}

#[test]
fn writes_invalidate_urls_and_groups() {
    let journal = journal();
    let groups = [group_hash("http://shop.test:8080", "news")];
    let stamp = journal.stamp();
    written(&journal, &[1, subject(&[], &[]).url], NOW);
    assert_eq!(journal.validity(&subject(&[], &[]), &stamp), Validity::Purged);
    let stamp = journal.stamp();
    journal.invalidate_groups(&groups, NOW);
    assert_eq!(journal.validity(&subject(&[], &[]), &stamp), Validity::Valid);
    assert_eq!(journal.validity(&subject(&[], &groups), &stamp), Validity::Purged);
    assert_eq!(journal.stamp().purge, Mark::default(), "operators' purges have a mark of their own");
}

#[test]
fn flight_is_joined_only_while_nothing_known_of_it_was_purged() {
    let joinable = |journal: &Journal, stamp: &Stamp| {
        let Subject { url, url_text, authority, site, .. } = subject(&[], &[]);
        journal.joinable(url, url_text, authority, site, stamp)
    };
    let rows = [
        (Selector::Url("shop.test:8080/a/b?q".into()), false),
        (Selector::Prefix("shop.test:8080/a".into()), false),
        (Selector::Host("shop.test:8080".into()), false),
        (Selector::Site("shop".into()), false),
        (Selector::Everything, false),
        (Selector::Url("shop.test:8080/".into()), true),
        (key("red"), true),
        (Selector::Group { origin: "http://shop.test:8080".into(), group: "news".into() }, true),
    ];
    for mode in [Mode::Hard, Mode::Soft] {
        for (selector, expected) in &rows {
            let journal = journal();
            let stamp = journal.stamp();
            assert!(joinable(&journal, &stamp));
            journal.purge(vec![selector.clone()], mode, "test", NOW);
            assert_eq!(joinable(&journal, &stamp), *expected, "{selector:?}");
            assert!(joinable(&journal, &journal.stamp()), "a flight begun after it: {selector:?}");
        }
    }
}

#[test]
fn receipt_says_what_was_purged_and_is_found_again() {
    let journal = journal();
    let selectors = vec![Selector::Url("shop.test/".into()), key("red")];
    let receipt = journal.purge(selectors, Mode::Soft, "ops@127.0.0.1", NOW);
    assert_eq!(receipt.id.len(), 32);
    assert!(receipt.id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    let json = journal.receipt(&receipt.id).unwrap().json(["http://Shop.test".into()]);
    let expected = serde_json::json!({
        "id": receipt.id,
        "mode": "soft",
        "selectors": [{"kind": "url", "given": "http://Shop.test", "normalised": "shop.test/"}, {"kind": "key", "normalised": "red"}],
        "position": "0-1795299066123-0",
        "issued_at": "2026-11-21T22:11:06.123Z",
        "actor": "ops@127.0.0.1",
        "acknowledged": "local",
        "complete": true,
    });
    assert_eq!(json, expected);
    assert!(journal.receipt("00").is_none());
    let next = journal.purge(vec![key("red")], Mode::Hard, "ops", NOW);
    assert!(next.position > receipt.position && next.id != receipt.id);
}

#[test]
fn explain_names_the_match_that_decides() {
    let journal = journal();
    let keys = [key_hash("red")];
    let subject = subject(&keys, &[]);
    let before = journal.stamp();
    assert_eq!(journal.deciding_match(&subject, &before), None);
    journal.purge(vec![key("red")], Mode::Hard, "test", NOW);
    let between = journal.stamp();
    journal.purge(vec![Selector::Host("shop.test:8080".into())], Mode::Soft, "test", NOW.plus_ms(1000));
    journal.purge(vec![key("green")], Mode::Hard, "test", NOW.plus_ms(2000));
    let soft = |applies: bool| {
        Some(serde_json::json!({
            "class": "purge", "kind": "host", "mode": "soft", "position": "0-1795299067123-0",
            "at": "2026-11-21T22:11:07.123Z", "folded": false, "applies": applies,
        }))
    };
    let hard = serde_json::json!({
        "class": "purge", "kind": "key", "mode": "hard", "position": "0-1795299066123-0",
        "at": "2026-11-21T22:11:06.123Z", "folded": false, "applies": true,
    });
    assert_eq!(journal.deciding_match(&subject, &before), Some(hard), "hard wins, though the soft one came later");
    assert_eq!(journal.deciding_match(&subject, &between), soft(true), "fetched after the hard one");
    assert_eq!(journal.deciding_match(&subject, &journal.stamp()), soft(false), "fetched after both");
    written(&journal, &[subject.url], NOW.plus_ms(3000));
    let deciding = journal.deciding_match(&subject, &before).unwrap();
    assert_eq!((&deciding["class"], &deciding["kind"]), (&"unsafe_method".into(), &"url".into()));
    journal.issue(vec![key("red")], Mode::Hard, "test", NOW);
    let deciding = journal.deciding_match(&subject, &before).unwrap();
    assert_eq!((&deciding["kind"], &deciding["position"], &deciding["at"]), (&"key".into(), &().into(), &().into()));
}

/// The stream of a fleet: what has been appended, in order.
#[derive(Default)]
struct Stream {
    entries: Vec<Entry>,
}

impl Stream {
    fn last(&self) -> Position {
        self.entries.last().map_or(Position::start_of(1), |entry| entry.position)
    }

    fn append(&mut self, purge: Purge) {
        let previous = self.last();
        let position = Position { sequence: previous.sequence + 1, ..previous };
        self.entries.push(Entry { position, previous, purge });
    }

    fn new_epoch(&mut self, purge: Purge) {
        let previous = Position::start_of(self.last().epoch + 1);
        self.entries.push(Entry { position: Position { ms: 1, ..previous }, previous, purge });
    }
}

/// A purge as another node issues it.
fn foreign(selectors: Vec<Selector>, mode: Mode) -> Purge {
    journal().issue(selectors, mode, "elsewhere", NOW)
}

#[test]
fn provisional_purge_works_at_once_and_is_dropped_when_it_arrives_in_order() {
    let journal = journal();
    let keys = [key_hash("red")];
    let subject = subject(&keys, &[]);
    let before = journal.stamp();
    let checked = CheckedUpTo::default();
    let purge = journal.issue(vec![key("red")], Mode::Hard, "test", NOW);
    assert_eq!(journal.check(&subject, &before, &checked), Validity::Purged);
    let after = journal.stamp();
    assert_eq!(after.purge, Mark { position: Position::default(), local: 1 });
    assert!(after.is_later_than(&before));
    assert_eq!(journal.validity(&subject, &after), Validity::Valid);

    let mut stream = Stream::default();
    stream.append(foreign(vec![key("blue")], Mode::Hard));
    stream.append(purge);
    // A response that another node fetched after both: it has seen the positions, but not our local sequence.
    let elsewhere = Stamp { purge: Mark { position: stream.last(), local: 0 }, ..Stamp::default() };
    assert_eq!(journal.apply(&stream.entries[0], NOW), Ok(()));
    assert_eq!(journal.validity(&subject, &elsewhere), Validity::Purged, "provisional still");
    assert_eq!(journal.apply(&stream.entries[1], NOW), Ok(()));
    assert_eq!(journal.validity(&subject, &elsewhere), Validity::Valid, "in its place");
    assert_eq!(journal.validity(&subject, &before), Validity::Purged);
    assert_eq!(journal.check(&subject, &before, &checked), Validity::Purged);
}

#[test]
fn later_provisional_purge_survives_the_arrival_of_an_earlier_one() {
    let journal = journal();
    let keys = [key_hash("red")];
    let subject = subject(&keys, &[]);
    let first = journal.issue(vec![key("red")], Mode::Hard, "test", NOW);
    let between = journal.stamp();
    let second = journal.issue(vec![key("red")], Mode::Hard, "test", NOW);
    let mut stream = Stream::default();
    stream.append(first);
    journal.apply(&stream.entries[0], NOW).unwrap();
    let fetched_elsewhere = Stamp { purge: Mark { position: stream.last(), local: 0 }, ..Stamp::default() };
    assert_eq!(journal.validity(&subject, &between), Validity::Purged);
    assert_eq!(journal.validity(&subject, &fetched_elsewhere), Validity::Purged, "the second is provisional still");
    stream.append(second);
    journal.apply(&stream.entries[1], NOW).unwrap();
    assert_eq!(journal.validity(&subject, &fetched_elsewhere), Validity::Purged, "the second is newer");
    assert_eq!(journal.validity(&subject, &journal.stamp()), Validity::Valid);
}

#[test]
fn own_soft_purge_counts_from_when_it_took_effect_here() {
    let journal = journal();
    let subject = subject(&[], &[]);
    let before = journal.stamp();
    let mut stream = Stream::default();
    stream.append(journal.issue(vec![Selector::Everything], Mode::Soft, "test", NOW));
    stream.append(foreign(vec![Selector::Site("shop".into())], Mode::Soft));
    journal.apply(&stream.entries[0], NOW.plus_ms(400)).unwrap();
    assert_eq!(journal.validity(&subject, &before), Validity::Soft { since_mono_ms: 5000 });
    let between = journal.stamp();
    journal.apply(&stream.entries[1], NOW.plus_ms(600)).unwrap();
    assert_eq!(journal.validity(&subject, &between), Validity::Soft { since_mono_ms: 5600 });
}

#[test]
fn refused_entries_change_nothing() {
    let journal = journal();
    let subject = subject(&[], &[]);
    let mut stream = Stream::default();
    for _ in 0..4 {
        stream.append(foreign(vec![Selector::Everything], Mode::Hard));
    }
    stream.new_epoch(foreign(vec![Selector::Everything], Mode::Hard));
    let entry = |index: usize| &stream.entries[index];
    let applied = Position::default();
    assert_eq!(journal.apply(entry(1), NOW), Err(Refused::Gap { applied, previous: entry(0).position }));
    assert_eq!(journal.apply(entry(0), NOW), Ok(()));
    let stamp = journal.stamp();
    let applied = entry(0).position;
    assert_eq!(journal.apply(entry(0), NOW), Err(Refused::Duplicate { applied }));
    assert_eq!(journal.apply(entry(2), NOW), Err(Refused::Gap { applied, previous: entry(1).position }));
    assert_eq!(journal.stamp(), stamp);
    assert_eq!(journal.validity(&subject, &stamp), Validity::Valid);
    assert_eq!(journal.apply(entry(4), NOW), Ok(()), "a later epoch is above everything");
    let applied = entry(4).position;
    assert_eq!(journal.apply(entry(3), NOW), Err(Refused::OlderEpoch { applied }));
    assert_eq!(journal.validity(&subject, &stamp), Validity::Purged);
}

#[derive(Debug, Clone)]
enum Op {
    Issue {
        selector: Selector,
        mode: Mode,
    },
    /// The oldest purge of ours that is not in the stream yet gets there.
    Append,
    Foreign {
        selector: Selector,
        mode: Mode,
        new_epoch: bool,
    },
    /// The node reads on; or first reads something that it must refuse.
    Deliver {
        again: bool,
        skip: bool,
    },
    Fetch {
        red: bool,
    },
    Hit(prop::sample::Index),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let selector = prop_oneof![
        Just(key("red")),
        Just(key("blue")),
        Just(Selector::Everything),
        Just(Selector::Prefix("shop.test:8080/a".into())),
        Just(Selector::Host("other.test".into())),
    ];
    let mode = prop_oneof![Just(Mode::Hard), Just(Mode::Soft)];
    let op = prop_oneof![
        3 => (selector.clone(), mode.clone()).prop_map(|(selector, mode)| Op::Issue { selector, mode }),
        3 => Just(Op::Append),
        2 => (selector, mode, prop::bool::weighted(0.1))
            .prop_map(|(selector, mode, new_epoch)| Op::Foreign { selector, mode, new_epoch }),
        4 => any::<(bool, bool)>().prop_map(|(again, skip)| Op::Deliver { again, skip }),
        4 => any::<bool>().prop_map(|red| Op::Fetch { red }),
        6 => any::<prop::sample::Index>().prop_map(Op::Hit),
    ];
    prop::collection::vec(op, 1..60)
}

/// A node, its fleet's stream, and a model: what took effect here and at which step.
#[derive(Default)]
struct Fleet {
    stream: Stream,
    delivered: usize,
    unsent: std::collections::VecDeque<Purge>,
    effects: Vec<(usize, Selector, Mode)>,
    fetched: Vec<(usize, bool, Stamp, CheckedUpTo)>,
}

impl Fleet {
    fn run(&mut self, journal: &Journal, step: usize, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Issue { selector, mode } => {
                self.unsent.push_back(journal.issue(vec![selector.clone()], mode, "test", NOW));
                self.effects.push((step, selector, mode));
            }
            Op::Append => {
                if let Some(purge) = self.unsent.pop_front() {
                    self.stream.append(purge);
                }
            }
            Op::Foreign { selector, mode, new_epoch } => {
                let purge = foreign(vec![selector], mode);
                if new_epoch { self.stream.new_epoch(purge) } else { self.stream.append(purge) }
            }
            Op::Deliver { again, skip } => self.deliver(journal, step, again, skip)?,
            Op::Fetch { red } => self.fetched.push((step, red, journal.stamp(), CheckedUpTo::default())),
            Op::Hit(index) if !self.fetched.is_empty() => self.hit(journal, index.index(self.fetched.len()))?,
            Op::Hit(_) => {}
        }
        Ok(())
    }

    fn deliver(&mut self, journal: &Journal, step: usize, again: bool, skip: bool) -> Result<(), TestCaseError> {
        let entries = &self.stream.entries;
        if again && self.delivered > 0 {
            let refused = journal.apply(&entries[self.delivered - 1], NOW);
            prop_assert!(matches!(refused, Err(Refused::Duplicate { .. })), "{:?}", refused);
        }
        if let Some(later) = entries.get(self.delivered + 1).filter(|later| skip && later.previous.sequence > 0) {
            let refused = journal.apply(later, NOW);
            prop_assert!(matches!(refused, Err(Refused::Gap { .. })), "{:?}", refused);
        }
        if let Some(entry) = entries.get(self.delivered) {
            prop_assert_eq!(journal.apply(entry, NOW), Ok(()));
            self.delivered += 1;
            // What we fetched between issue and arrival goes once more: too much, never too little.
            self.effects.push((step, entry.purge.selectors[0].clone(), entry.purge.mode));
        }
        Ok(())
    }

    fn hit(&self, journal: &Journal, index: usize) -> Result<(), TestCaseError> {
        let (began, red, stamp, checked) = &self.fetched[index];
        let keys = [key_hash(if *red { "red" } else { "blue" })];
        let matching = self.effects.iter().filter(|(step, selector, _)| {
            let matches = match selector {
                Selector::Key(key) => key_hash(key) == keys[0],
                Selector::Host(_) => false,
                _ => true,
            };
            step > began && matches
        });
        let expected = matching.map(|(_, _, mode)| *mode).min_by_key(|mode| *mode == Mode::Soft);
        let found = match journal.check(&subject(&keys, &[]), stamp, checked) {
            Validity::Valid => None,
            Validity::Soft { .. } => Some(Mode::Soft),
            Validity::Purged => Some(Mode::Hard),
            Validity::Unconfirmed => unreachable!("the journal knows or is not asked"),
        };
        prop_assert_eq!(found, expected);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Own purges take effect when issued, wherever they end up in the stream; others when they arrive.
    #[test]
    fn node_that_follows_a_stream_agrees_with_the_model(ops in ops()) {
        let journal = journal();
        let mut fleet = Fleet::default();
        for (step, op) in ops.into_iter().enumerate() {
            fleet.run(&journal, step, op)?;
        }
        // Once everything has arrived nothing is provisional: what anybody fetches now is valid here.
        while let Some(purge) = fleet.unsent.pop_front() {
            fleet.stream.append(purge);
        }
        while fleet.delivered < fleet.stream.entries.len() {
            fleet.deliver(&journal, usize::MAX, false, false)?;
        }
        let elsewhere = Stamp { purge: Mark { position: journal.stamp().purge.position, local: 0 }, ..Stamp::default() };
        for name in ["red", "blue"] {
            prop_assert_eq!(journal.validity(&subject(&[key_hash(name)], &[]), &elsewhere), Validity::Valid);
        }
        for index in 0..fleet.fetched.len() {
            fleet.hit(&journal, index)?;
        }
    }
}

/// Real threads: purgers number their purges when these have returned; a checker reads the number first and then may
/// find nothing usable that was fetched before that purge was made.
#[test]
fn no_thread_finds_a_response_usable_after_its_purge_returned() {
    const CAUGHT: u64 = 4000;
    let journal = journal();
    let keys = [key_hash("red")];
    let (returned, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let (caught, late) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Acquire) {
                    let stamp = journal.stamp();
                    // Read after the stamp: at most this many purges had returned when the fetch began.
                    let seen = returned.load(Ordering::Acquire);
                    let checked = CheckedUpTo::default();
                    loop {
                        let now = returned.load(Ordering::Acquire);
                        let validity = journal.check(&subject(&keys, &[]), &stamp, &checked);
                        // One purge more may have been applied, but not have returned, when the stamp was taken.
                        let caught_late = now > seen + 1 && validity != Validity::Purged;
                        if now > seen + 1 || ended.load(Ordering::Acquire) {
                            late.fetch_add(u64::from(caught_late), Ordering::Relaxed);
                            caught.fetch_add(1, Ordering::Release);
                            break;
                        }
                    }
                }
            });
        }
        let other = scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                written(&journal, &[1, 2, 3], NOW);
                journal.purge(vec![key("blue")], Mode::Hard, "test", NOW);
            }
        });
        while caught.load(Ordering::Acquire) < CAUGHT {
            journal.purge(vec![key("red")], Mode::Hard, "test", NOW);
            returned.fetch_add(1, Ordering::Release);
        }
        ended.store(true, Ordering::Release);
        other.join().expect("the other purger ends");
    });
    // Counted, not asserted on the thread: a checker that panicked would leave the purger waiting for it.
    assert_eq!(late.into_inner(), 0, "usable after its purge returned");
    assert!(journal.usage().0 <= 5, "two keys, three URLs");
}
