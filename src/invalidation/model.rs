//! A simulated cache on the real journal against a model: the list of all invalidations and a linear matcher.
//!
//! Memory tier, lower tier with promotion, fills and refreshes that take their time, flights, a sweep. The model knows
//! when each fetch began. Where nothing folds the journal must agree with it exactly; where it folds it may find more
//! invalid, never less. Planted faults prove that the model would notice.

use super::journal::Order;
use super::{CheckedUpTo, Journal, Mode, Selector, Stamp, Subject};
use crate::config::settings::PurgeBounds;
use crate::semantics::Now;
use crate::semantics::key::hash128;
use crate::semantics::reuse::Validity;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::rc::Rc;

/// Faults in the ledger itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LedgerFaults {
    pub(super) soft_overwrites_hard: bool,
    pub(super) fold_forgets: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    StampAtFetchEnd,
    SoftOverwritesHard,
    FoldForgets,
    PromotionWithoutCheck,
    RefreshStampedAtItsEnd,
    RefreshForgetsOldKeys,
    RefreshOfPurged,
    JoinWithoutCheck,
    WriteWithoutInvalidation,
}

/// Site, authority, path and query.
const RESOURCES: [(&str, &str, &str); 6] = [
    ("shop", "a.test", "/"),
    ("shop", "a.test", "/x"),
    ("shop", "a.test", "/x/y?q=1"),
    ("shop", "b.test", "/xy"),
    ("blog", "c.test:8080", "/x"),
    ("blog", "c.test:8080", "/é/z"),
];
const NAMES: [&str; 4] = ["red", "green", "blue", "grey"];
/// What no resource is in: such purges only fill the map.
const STRANGERS: u16 = 500;

#[derive(Debug, Clone)]
enum Op {
    Pass { ms: u8 },
    Begin { resource: usize },
    End { fill: prop::sample::Index, names: [u8; 2] },
    BeginRefresh { resource: usize },
    EndRefresh { refresh: prop::sample::Index, names: [u8; 2] },
    Join { resource: usize },
    Lookup { resource: usize },
    Evict { resource: usize },
    Sweep,
    Purge { selectors: Vec<Selector>, mode: Mode },
    Write { resource: usize },
    InvalidateGroup { resource: usize, name: usize },
}

fn url_text(resource: usize) -> String {
    let (_, authority, path) = RESOURCES[resource];
    format!("{authority}{path}")
}

fn origin(resource: usize) -> String {
    format!("http://{}", RESOURCES[resource].1)
}

fn selectors() -> impl Strategy<Value = Selector> {
    let resource = 0..RESOURCES.len();
    prop_oneof![
        4 => resource.clone().prop_map(|resource| Selector::Url(url_text(resource))),
        4 => prop::sample::select(&NAMES[..]).prop_map(|name| Selector::Key(name.into())),
        2 => (resource.clone(), prop::sample::select(&NAMES[..]))
            .prop_map(|(resource, name)| Selector::Group { origin: origin(resource), group: name.into() }),
        2 => (resource.clone(), any::<prop::sample::Index>()).prop_map(|(resource, cut)| {
            let text = url_text(resource);
            let ends: Vec<usize> = (1..=text.len()).filter(|&end| text.is_char_boundary(end)).collect();
            Selector::Prefix(text[..ends[cut.index(ends.len())]].into())
        }),
        1 => resource.clone().prop_map(|resource| Selector::Host(RESOURCES[resource].1.into())),
        1 => resource.prop_map(|resource| Selector::Site(RESOURCES[resource].0.into())),
        1 => Just(Selector::Everything),
        3 => (0..STRANGERS).prop_map(|number| Selector::Key(format!("stranger-{number}"))),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let resource = 0..RESOURCES.len();
    let mode = prop_oneof![Just(Mode::Hard), Just(Mode::Soft)];
    let op = prop_oneof![
        1 => (0..50_u8).prop_map(|ms| Op::Pass { ms }),
        4 => resource.clone().prop_map(|resource| Op::Begin { resource }),
        4 => (any::<prop::sample::Index>(), any::<[u8; 2]>()).prop_map(|(fill, names)| Op::End { fill, names }),
        2 => resource.clone().prop_map(|resource| Op::BeginRefresh { resource }),
        2 => (any::<prop::sample::Index>(), any::<[u8; 2]>()).prop_map(|(refresh, names)| Op::EndRefresh { refresh, names }),
        2 => resource.clone().prop_map(|resource| Op::Join { resource }),
        6 => resource.clone().prop_map(|resource| Op::Lookup { resource }),
        2 => resource.clone().prop_map(|resource| Op::Evict { resource }),
        1 => Just(Op::Sweep),
        5 => (prop::collection::vec(selectors(), 1..4), mode).prop_map(|(selectors, mode)| Op::Purge { selectors, mode }),
        1 => resource.clone().prop_map(|resource| Op::Write { resource }),
        1 => (resource, 0..NAMES.len()).prop_map(|(resource, name)| Op::InvalidateGroup { resource, name }),
    ];
    prop::collection::vec(op, 1..60)
}

/// Selectors kept exactly, places for folds, whether that is enough to be exact.
fn capacities() -> impl Strategy<Value = (usize, usize, bool)> {
    prop_oneof![Just((1000, 8, true)), (1..4_usize, 1..2000_usize).prop_map(|(slots, folds)| (slots, folds, false))]
}

fn names(bits: u8) -> Vec<&'static str> {
    NAMES.into_iter().enumerate().filter(|(index, _)| bits & (1 << index) != 0).map(|(_, name)| name).collect()
}

/// A response, or one being fetched, as the model knows it; and the hashes that the journal sees.
#[derive(Debug, Clone)]
struct Facts {
    resource: usize,
    /// Step at which the fetch, or the request that was answered by 304, was sent.
    began: usize,
    keys: Vec<&'static str>,
    groups: Vec<&'static str>,
    hashes: [Vec<u128>; 2],
    text: String,
}

impl Facts {
    fn new(resource: usize, began: usize, keys: Vec<&'static str>, groups: Vec<&'static str>) -> Self {
        let key_hashes = keys.iter().map(|key| super::selector::key_hash(key)).collect();
        let group_hashes = groups.iter().map(|group| super::selector::group_hash(&origin(resource), group)).collect();
        Self { resource, began, keys, groups, hashes: [key_hashes, group_hashes], text: url_text(resource) }
    }

    fn subject(&self) -> Subject<'_> {
        let (site, authority, _) = RESOURCES[self.resource];
        let [keys, groups] = &self.hashes;
        Subject { url: hash128(self.text.as_bytes()), url_text: &self.text, authority, site, keys, groups }
    }

    fn matches(&self, selector: &Selector) -> bool {
        let (site, authority, _) = RESOURCES[self.resource];
        match selector {
            Selector::Url(url) => *url == self.text,
            Selector::Key(key) => self.keys.contains(&key.as_str()),
            Selector::Group { origin: of, group } => *of == origin(self.resource) && self.groups.contains(&group.as_str()),
            Selector::Prefix(prefix) => self.text.starts_with(prefix.as_str()),
            Selector::Host(host) => host == authority,
            Selector::Site(name) => name == site,
            Selector::Everything => true,
        }
    }
}

#[derive(Debug)]
struct Stored {
    facts: Facts,
    stamp: Stamp,
    checked: CheckedUpTo,
}

impl Stored {
    fn new(facts: Facts, stamp: Stamp) -> Rc<Self> {
        Rc::new(Self { facts, stamp, checked: CheckedUpTo::default() })
    }
}

#[derive(Debug)]
struct Logged {
    step: usize,
    mono_ms: u64,
    mode: Mode,
    selector: Selector,
}

struct World {
    fault: Fault,
    /// Nothing folds: the journal and the model agree exactly.
    exact: bool,
    journal: Journal,
    now: Now,
    step: usize,
    log: Vec<Logged>,
    fills: Vec<(Facts, Stamp)>,
    refreshes: Vec<(Rc<Stored>, usize, Stamp)>,
    memory: [Option<Rc<Stored>>; RESOURCES.len()],
    lower: [Option<Rc<Stored>>; RESOURCES.len()],
}

impl World {
    fn new(fault: Fault, (map_capacity, fold_slots, exact): (usize, usize, bool)) -> Self {
        let bounds = PurgeBounds { receipts: 3, map_capacity, fold_slots, recovery: std::time::Duration::ZERO };
        let faults = LedgerFaults { soft_overwrites_hard: fault == Fault::SoftOverwritesHard, fold_forgets: fault == Fault::FoldForgets };
        Self {
            fault,
            exact,
            journal: Journal::with_faults(&bounds, Order::Own, faults),
            now: Now { wall_ms: 1_000_000, mono_ms: 1000 },
            step: 0,
            log: Vec::new(),
            fills: Vec::new(),
            refreshes: Vec::new(),
            memory: Default::default(),
            lower: Default::default(),
        }
    }

    fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        self.step += 1;
        match op {
            Op::Pass { ms } => self.now = self.now.plus_ms(u64::from(*ms)),
            Op::Begin { resource } => {
                let facts = Facts::new(*resource, self.step, vec![], vec![]);
                self.fills.push((facts, self.journal.stamp()));
            }
            Op::End { fill, names } if !self.fills.is_empty() => {
                let (facts, stamp) = self.fills.swap_remove(fill.index(self.fills.len()));
                self.end_fill(&facts, stamp, *names)?;
            }
            Op::BeginRefresh { resource } => self.begin_refresh(*resource)?,
            Op::EndRefresh { refresh, names } if !self.refreshes.is_empty() => {
                let (stored, began, stamp) = self.refreshes.swap_remove(refresh.index(self.refreshes.len()));
                self.end_refresh(&stored, began, stamp, *names)?;
            }
            Op::End { .. } | Op::EndRefresh { .. } => {}
            Op::Join { resource } => self.join(*resource)?,
            Op::Lookup { resource } => self.look_up(*resource)?,
            Op::Evict { resource } => self.memory[*resource] = None,
            Op::Sweep => self.sweep()?,
            Op::Purge { selectors, mode } => {
                self.journal.purge(selectors.clone(), *mode, "model", self.now);
                self.note(*mode, selectors);
            }
            Op::Write { resource } => {
                let text = url_text(*resource);
                if self.fault != Fault::WriteWithoutInvalidation {
                    let answer = Subject { url: 0, url_text: "", authority: "", site: "", keys: &[], groups: &[] };
                    self.journal.invalidate_unsafe(&[hash128(text.as_bytes())], &answer, &self.journal.stamp(), self.now);
                }
                self.note(Mode::Hard, &[Selector::Url(text)]);
            }
            Op::InvalidateGroup { resource, name } => {
                let (origin, group) = (origin(*resource), NAMES[*name].to_owned());
                self.journal.invalidate_groups(&[super::selector::group_hash(&origin, &group)], self.now);
                self.note(Mode::Hard, &[Selector::Group { origin, group }]);
            }
        }
        Ok(())
    }

    fn note(&mut self, mode: Mode, selectors: &[Selector]) {
        let (step, mono_ms) = (self.step, self.now.mono_ms);
        self.log.extend(selectors.iter().map(|selector| Logged { step, mono_ms, mode, selector: selector.clone() }));
    }

    fn end_fill(&mut self, begun: &Facts, stamp: Stamp, bits: [u8; 2]) -> Result<(), TestCaseError> {
        let facts = Facts::new(begun.resource, begun.began, names(bits[0]), names(bits[1]));
        let stamp = if self.fault == Fault::StampAtFetchEnd { self.journal.stamp() } else { stamp };
        let validity = self.journal.validity(&facts.subject(), &stamp);
        self.agree(&facts, validity, "at the end of a fetch")?;
        self.store(facts, stamp, validity);
        Ok(())
    }

    fn begin_refresh(&mut self, resource: usize) -> Result<(), TestCaseError> {
        let Some(stored) = self.memory[resource].clone() else { return Ok(()) };
        let mut stamp = self.journal.stamp_of_refresh(&stored.facts.subject(), &stored.stamp);
        if self.fault == Fault::RefreshOfPurged {
            stamp = Some(self.journal.stamp());
        }
        let purged = self.expected(&stored.facts).0 == 2;
        prop_assert!(!purged || stamp.is_none(), "validators of a hard-purged response are used");
        prop_assert!(!self.exact || purged || stamp.is_some(), "a valid response may not be refreshed");
        self.refreshes.extend(stamp.map(|stamp| (stored, self.step, stamp)));
        Ok(())
    }

    /// A 304 came.
    fn end_refresh(&mut self, stored: &Stored, began: usize, stamp: Stamp, bits: [u8; 2]) -> Result<(), TestCaseError> {
        let union = |old: &[&'static str], new: Vec<&'static str>| -> Vec<&'static str> {
            new.iter().chain(old.iter().filter(|name| !new.contains(name))).copied().collect()
        };
        let truth = Facts::new(
            stored.facts.resource,
            began,
            union(&stored.facts.keys, names(bits[0])),
            union(&stored.facts.groups, names(bits[1])),
        );
        let mut facts = Facts::new(stored.facts.resource, began, names(bits[0]), names(bits[1]));
        if self.fault != Fault::RefreshForgetsOldKeys {
            for (new, old) in facts.hashes.iter_mut().zip(&stored.facts.hashes) {
                *new = super::selector::union(old, new).into_vec();
            }
            prop_assert_eq!(&facts.hashes, &truth.hashes);
        }
        let stamp = if self.fault == Fault::RefreshStampedAtItsEnd { self.journal.stamp() } else { stamp };
        let validity = self.journal.validity(&facts.subject(), &stamp);
        let facts = Facts { keys: truth.keys, groups: truth.groups, ..facts };
        self.agree(&facts, validity, "at a 304")?;
        self.store(facts, stamp, validity);
        Ok(())
    }

    /// Into both tiers, unless purged meanwhile or what is there began later.
    fn store(&mut self, facts: Facts, stamp: Stamp, validity: Validity) {
        if validity == Validity::Purged {
            return;
        }
        for tier in [&mut self.memory, &mut self.lower] {
            let place = &mut tier[facts.resource];
            if place.as_ref().is_none_or(|there| facts.began > there.facts.began) {
                *place = Some(Stored::new(facts.clone(), stamp));
            }
        }
    }

    fn join(&mut self, resource: usize) -> Result<(), TestCaseError> {
        for (facts, stamp) in self.fills.iter().filter(|(facts, _)| facts.resource == resource) {
            let Subject { url, url_text, authority, site, .. } = facts.subject();
            let joinable = self.fault == Fault::JoinWithoutCheck || self.journal.joinable(url, url_text, authority, site, stamp);
            // Keys and groups are not known yet: the facts of a running fill have none.
            let newer = self.expected(facts).0 > 0;
            prop_assert!(!newer || !joinable, "a request joins a flight that was purged before it came");
            prop_assert!(!self.exact || newer || joinable, "a request does not join a flight that nothing touched");
        }
        Ok(())
    }

    fn look_up(&mut self, resource: usize) -> Result<(), TestCaseError> {
        if let Some(stored) = self.memory[resource].clone() {
            let validity = self.journal.check(&stored.facts.subject(), &stored.stamp, &stored.checked);
            self.agree(&stored.facts, validity, "in memory")?;
            if validity != Validity::Purged {
                return Ok(());
            }
            self.memory[resource] = None;
        }
        let Some(stored) = self.lower[resource].clone() else { return Ok(()) };
        let promoted = Stored::new(stored.facts.clone(), stored.stamp);
        let validity = match self.fault {
            Fault::PromotionWithoutCheck => Validity::Valid,
            _ => self.journal.check(&promoted.facts.subject(), &promoted.stamp, &promoted.checked),
        };
        self.agree(&promoted.facts, validity, "in the lower tier")?;
        if validity == Validity::Purged {
            self.lower[resource] = None;
        } else {
            self.memory[resource] = Some(promoted);
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), TestCaseError> {
        for resource in 0..RESOURCES.len() {
            let Some(stored) = self.memory[resource].clone() else { continue };
            let validity = self.journal.check(&stored.facts.subject(), &stored.stamp, &stored.checked);
            self.agree(&stored.facts, validity, "in a sweep")?;
            if validity == Validity::Purged {
                self.memory[resource] = None;
            }
        }
        Ok(())
    }

    /// What the model says: 0 valid, 1 soft, 2 purged; and when each soft purge was applied.
    fn expected(&self, facts: &Facts) -> (u8, Vec<u64>) {
        let matching = || self.log.iter().filter(|entry| entry.step > facts.began && facts.matches(&entry.selector));
        let soft: Vec<u64> = matching().filter(|entry| entry.mode == Mode::Soft).map(|entry| entry.mono_ms).collect();
        let hard = matching().any(|entry| entry.mode == Mode::Hard);
        (if hard { 2 } else { u8::from(!soft.is_empty()) }, soft)
    }

    fn agree(&self, facts: &Facts, validity: Validity, place: &str) -> Result<(), TestCaseError> {
        let (expected, soft) = self.expected(facts);
        let found = match validity {
            Validity::Valid => 0,
            Validity::Soft { .. } => 1,
            Validity::Purged => 2,
            Validity::Unconfirmed => unreachable!("the journal knows or is not asked"),
        };
        prop_assert!(found >= expected, "{place}: {validity:?} where the model says {expected}: {facts:?}");
        if self.exact {
            prop_assert!(found == expected, "{place}: {validity:?} where the model says {expected}: {facts:?}");
        }
        if let Validity::Soft { since_mono_ms } = validity {
            let last = soft.iter().max().copied().unwrap_or(u64::MAX);
            prop_assert!(since_mono_ms <= last, "{place}: soft since {since_mono_ms}, last applied at {last}");
            prop_assert!(!self.exact || soft.contains(&since_mono_ms), "{place}: nothing was applied at {since_mono_ms}");
        }
        Ok(())
    }
}

fn play(fault: Fault, capacities: (usize, usize, bool), ops: &[Op]) -> Result<(), TestCaseError> {
    let mut world = World::new(fault, capacities);
    ops.iter().try_for_each(|op| world.run(op))?;
    // Whatever is left is looked at once more, tier by tier.
    (0..RESOURCES.len()).try_for_each(|resource| world.run(&Op::Lookup { resource }))?;
    let (entries, _) = world.journal.usage();
    prop_assert!(entries <= 2 * capacities.0, "{entries} entries are kept");
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 1500, ..Config::default() })]

    #[test]
    fn no_response_outlives_a_purge_that_came_after_its_fetch_began(capacities in capacities(), ops in ops()) {
        play(Fault::None, capacities, &ops)?;
    }
}

/// Runs the model with a fault on, always the same cases; the message of the first failure.
fn found_within(cases: u32, fault: Fault) -> Option<String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    match runner.run(&(capacities(), ops()), |(capacities, ops)| play(fault, capacities, &ops)) {
        Ok(()) => None,
        Err(TestError::Fail(why, _)) => Some(why.to_string()),
        Err(TestError::Abort(why)) => panic!("the runner gave up: {why}"),
    }
}

#[test]
fn planted_faults_are_found() {
    assert_eq!(found_within(1000, Fault::None), None);
    for (fault, told) in [
        (Fault::StampAtFetchEnd, "at the end of a fetch: "),
        (Fault::SoftOverwritesHard, "where the model says 2"),
        (Fault::FoldForgets, "Valid where the model says"),
        (Fault::PromotionWithoutCheck, "in the lower tier: Valid where"),
        (Fault::RefreshStampedAtItsEnd, "at a 304: "),
        (Fault::RefreshForgetsOldKeys, "where the model says"),
        (Fault::RefreshOfPurged, "validators of a hard-purged response"),
        (Fault::JoinWithoutCheck, "a request joins a flight"),
        (Fault::WriteWithoutInvalidation, "where the model says 2"),
    ] {
        let why = found_within(1000, fault).unwrap_or_else(|| panic!("{fault:?} is not found"));
        assert!(why.contains(told), "{fault:?} is found as something else: {why}");
    }
}
