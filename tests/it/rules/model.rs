//! A cache of one URL, made of the rules, against a model of it that is simple enough to be seen to be right: the same
//! requests, answers, failures, purges and steps of time must give the same bodies from the same places.
//!
//! Not modelled: Vary and keys (`super::vary`, `super::key`), Expires, Date and heuristics (`super::freshness`), request
//! directives, Authorization and cookies (`super::reuse`, `super::storage`), ranges and conditions of clients, other
//! methods, and what the proxy does around the rules: tiers, eviction, collapsing, several nodes. A refresh in the
//! background is over before the next step.

use super::reuse::{Asked, NOW, fields};
use proptest::prelude::*;
use std::collections::HashMap;
use tiercel::semantics::freshness::Facts;
use tiercel::semantics::policy::CachePolicy;
use tiercel::semantics::reuse::{Reuse, Validity, may_serve_on_error, reuse};
use tiercel::semantics::storage::{Storage, may_store, stored_fields};
use tiercel::semantics::validation::{add_conditions, selects, update};
use tiercel::semantics::{Fields, Now, Response, StatusCode, name};

/// What the origin would answer now: directives in seconds, and a tag that tells whether the body is still the same.
#[derive(Debug, Clone, Default)]
struct Answer {
    max_age: Option<u64>,
    s_maxage: Option<u64>,
    while_revalidate: u64,
    if_error: Option<u64>,
    no_store: bool,
    private: bool,
    no_cache: bool,
    must_revalidate: bool,
    age: u64,
    tag: Option<u8>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A request, and what the origin does if it is asked: `None` means that it fails.
    Ask(Option<Answer>),
    /// Milliseconds go by.
    Wait(u64),
    Purge,
    SoftPurge,
}

/// What a request came to. Bodies are numbered in the order in which the origin made them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Served {
    FromStore {
        body: u32,
        age_ms: u64,
    },
    /// Stale while it is revalidated.
    Stale {
        body: u32,
        age_ms: u64,
    },
    /// Stale because the origin failed.
    InsteadOfError {
        body: u32,
        age_ms: u64,
    },
    /// The stored one, after a 304.
    Validated {
        body: u32,
    },
    FromOrigin {
        body: u32,
    },
    Error,
}

/// Seconds for which a stale response stands in for a failing origin by default.
const IF_ERROR: u64 = 60;

// ---- the model ----

#[derive(Debug, Clone)]
struct Kept {
    body: u32,
    said: Answer,
    since_ms: u64,
    soft_ms: Option<u64>,
}

#[derive(Default)]
struct Model {
    now_ms: u64,
    made: u32,
    kept: Option<Kept>,
}

impl Answer {
    fn lifetime_ms(&self) -> u64 {
        1000 * self.s_maxage.or(self.max_age).unwrap_or(0)
    }
    fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.no_cache || self.s_maxage.is_some()
    }
    fn may_be_kept(&self) -> bool {
        let windows = if self.must_revalidate { 0 } else { self.while_revalidate.max(self.if_error.unwrap_or(0)) };
        let is_of_use = !self.no_cache && self.lifetime_ms() + 1000 * windows > 1000 * self.age;
        !self.no_store && !self.private && (is_of_use || self.tag.is_some())
    }
}

impl Kept {
    fn age_ms(&self, now_ms: u64) -> u64 {
        1000 * self.said.age + (now_ms - self.since_ms)
    }
    /// How long it has been stale, if it is.
    fn stale_ms(&self, now_ms: u64) -> Option<u64> {
        let by_age = self.age_ms(now_ms).checked_sub(self.said.lifetime_ms());
        let by_purge = self.soft_ms.map(|since| now_ms - since);
        by_age.max(by_purge)
    }
    fn is_within(&self, now_ms: u64, seconds: u64) -> bool {
        !self.said.forbids_stale() && seconds > 0 && self.stale_ms(now_ms).is_none_or(|stale| stale <= 1000 * seconds)
    }
    fn is_fresh(&self, now_ms: u64) -> bool {
        !self.said.no_cache && self.stale_ms(now_ms).is_none()
    }
}

impl Model {
    fn step(&mut self, step: &Step) -> Option<Served> {
        match step {
            Step::Wait(ms) => self.now_ms += ms,
            Step::Purge => self.kept = None,
            Step::SoftPurge => {
                let now_ms = self.now_ms;
                self.kept.iter_mut().for_each(|kept| _ = kept.soft_ms.get_or_insert(now_ms));
            }
            Step::Ask(origin) => return Some(self.ask(origin.as_ref())),
        }
        None
    }

    fn ask(&mut self, origin: Option<&Answer>) -> Served {
        let Some(kept) = self.kept.clone() else { return self.fetch(origin) };
        let (body, age_ms) = (kept.body, kept.age_ms(self.now_ms));
        if kept.is_fresh(self.now_ms) {
            return Served::FromStore { body, age_ms };
        }
        if kept.is_within(self.now_ms, kept.said.while_revalidate) {
            self.fetch(origin);
            return Served::Stale { body, age_ms };
        }
        match self.fetch(origin) {
            Served::Error if kept.is_within(self.now_ms, kept.said.if_error.unwrap_or(IF_ERROR)) => Served::InsteadOfError { body, age_ms },
            served => served,
        }
    }

    fn fetch(&mut self, origin: Option<&Answer>) -> Served {
        let Some(answer) = origin else { return Served::Error };
        let confirmed = self.kept.as_ref().filter(|kept| kept.said.tag.is_some() && kept.said.tag == answer.tag).map(|kept| kept.body);
        let body = confirmed.unwrap_or_else(|| {
            self.made += 1;
            self.made
        });
        if answer.may_be_kept() {
            self.kept = Some(Kept { body, said: answer.clone(), since_ms: self.now_ms, soft_ms: None });
        } else if confirmed.is_some() {
            self.kept = None;
        }
        if confirmed.is_some() { Served::Validated { body } } else { Served::FromOrigin { body } }
    }
}

// ---- the rules ----

struct Stored {
    body: u32,
    fields: Fields,
    facts: Facts,
    validity: Validity,
}

struct Rules {
    now: Now,
    made: u32,
    stored: Option<Stored>,
    /// When the origin last sent a body or confirmed it.
    confirmed: HashMap<u32, u64>,
    policy: CachePolicy,
}

impl Answer {
    fn fields(&self) -> Fields {
        let mut control = vec!["x-unknown".to_owned()];
        control.extend(self.max_age.map(|seconds| format!("max-age={seconds}")));
        control.extend(self.s_maxage.map(|seconds| format!("s-maxage={seconds}")));
        control.extend((self.while_revalidate > 0).then(|| format!("stale-while-revalidate={}", self.while_revalidate)));
        control.extend(self.if_error.map(|seconds| format!("stale-if-error={seconds}")));
        for (flag, text) in
            [(self.no_store, "no-store"), (self.private, "private"), (self.no_cache, "no-cache"), (self.must_revalidate, "must-revalidate")]
        {
            control.extend(flag.then(|| text.to_owned()));
        }
        let mut lines = fields(&[("cache-control", &control.join(", ")), ("age", &self.age.to_string())]);
        if let Some(tag) = self.tag {
            lines.push("etag", format!("\"{tag}\"")).expect("a valid line");
        }
        lines
    }
}

fn ok(fields: &Fields) -> Response<'_> {
    Response { status: StatusCode::OK, fields }
}

impl Rules {
    fn new() -> Self {
        let policy = CachePolicy { stale_if_error_ms: 1000 * IF_ERROR, ..CachePolicy::default() };
        Self { now: NOW, made: 0, stored: None, confirmed: HashMap::new(), policy }
    }

    fn step(&mut self, step: &Step) -> Option<Served> {
        match step {
            Step::Wait(ms) => self.now = self.now.plus_ms(*ms),
            Step::Purge => self.stored.iter_mut().for_each(|stored| stored.validity = Validity::Purged),
            Step::SoftPurge => {
                let since_mono_ms = self.now.mono_ms;
                let valid = self.stored.iter_mut().filter(|stored| stored.validity == Validity::Valid);
                valid.for_each(|stored| stored.validity = Validity::Soft { since_mono_ms });
            }
            Step::Ask(origin) => return Some(self.ask(origin.as_ref())),
        }
        None
    }

    fn ask(&mut self, origin: Option<&Answer>) -> Served {
        let asked = Asked::get(&[]);
        let Some(stored) = &self.stored else { return self.fetch(origin) };
        let body = stored.body;
        match reuse(asked.request(), &stored.facts, &self.policy, stored.validity, self.now) {
            Reuse::Fresh { age_ms, .. } => Served::FromStore { body, age_ms },
            Reuse::StaleNow { age_ms, .. } => {
                self.fetch(origin);
                Served::Stale { body, age_ms }
            }
            Reuse::Unusable(_) => {
                self.stored = None;
                self.fetch(origin)
            }
            Reuse::Revalidate { age_ms, .. } => {
                let instead = may_serve_on_error(&stored.facts, &self.policy, stored.validity, self.now);
                match self.fetch(origin) {
                    Served::Error if instead => Served::InsteadOfError { body, age_ms },
                    served => served,
                }
            }
        }
    }

    fn fetch(&mut self, origin: Option<&Answer>) -> Served {
        let Some(answer) = origin else { return Served::Error };
        let mut request = Fields::new();
        let conditional = self.stored.as_ref().is_some_and(|stored| add_conditions(&mut request, ok(&stored.fields), &stored.facts));
        let received = answer.fields();
        let matches = conditional && request.get(name::IF_NONE_MATCH) == received.get(name::ETAG);
        if !matches {
            self.made += 1;
            self.store(self.made, &received);
            return Served::FromOrigin { body: self.made };
        }
        let old = self.stored.take().expect("it made the request conditional");
        assert!(selects(&received, &old.fields, &old.facts), "a 304 with the tag that was sent");
        let mut updated = update(&old.fields, &received);
        updated.set(name::AGE, received.get(name::AGE).expect("all have one")).expect("a valid value");
        self.store(old.body, &updated);
        Served::Validated { body: old.body }
    }

    fn store(&mut self, body: u32, received: &Fields) {
        self.confirmed.insert(body, self.now.mono_ms);
        let asked = Asked::get(&[]);
        let facts = Facts::new(asked.request(), ok(received), &self.policy.targeted, self.now, self.now);
        if may_store(asked.request(), ok(received), &facts, &self.policy) == Storage::Stored {
            let fields = stored_fields(ok(received), &facts, &self.policy);
            self.stored = Some(Stored { body, fields, facts, validity: Validity::Valid });
        }
    }
}

fn answers() -> impl Strategy<Value = Answer> {
    let seconds = || prop::sample::select(vec![0_u64, 1, 2, 5, 60]);
    let rarely = || prop::bool::weighted(0.1);
    let numbers = (
        prop::option::weighted(0.8, seconds()),
        prop::option::weighted(0.2, seconds()),
        prop_oneof![2 => Just(0), 1 => seconds()],
        prop::option::weighted(0.3, seconds()),
        prop_oneof![3 => Just(0), 1 => seconds()],
    );
    (numbers, (rarely(), rarely(), rarely(), rarely()), prop::option::weighted(0.6, 0..2u8)).prop_map(
        |((max_age, s_maxage, while_revalidate, if_error, age), (no_store, private, no_cache, must_revalidate), tag)| Answer {
            max_age,
            s_maxage,
            while_revalidate,
            if_error,
            no_store,
            private,
            no_cache,
            must_revalidate,
            age,
            tag,
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::option::weighted(0.8, answers()).prop_map(Step::Ask),
        4 => prop::sample::select(vec![1_u64, 999, 1000, 1001, 2500, 5000, 59_000, 61_000]).prop_map(Step::Wait),
        1 => Just(Step::Purge),
        1 => Just(Step::SoftPurge),
    ];
    prop::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn the_rules_serve_what_a_simple_model_serves(steps in steps()) {
        let (mut model, mut rules) = (Model::default(), Rules::new());
        let mut purged = 0; // the newest body that there was before the last hard purge
        for (number, step) in steps.iter().enumerate() {
            let (wanted, served) = (model.step(step), rules.step(step));
            prop_assert_eq!(&served, &wanted, "step {}: {:?}", number, step);
            if matches!(step, Step::Purge) {
                purged = rules.made;
            }
            if let Some(Served::FromStore { body, age_ms } | Served::Stale { body, age_ms } | Served::InsteadOfError { body, age_ms }) = served {
                prop_assert!(body > purged, "step {}: purged is gone", number);
                let here_ms = rules.now.mono_ms - rules.confirmed[&body];
                prop_assert!(age_ms >= here_ms, "step {}: no younger than the time since the origin spoke of it", number);
            }
        }
    }
}
