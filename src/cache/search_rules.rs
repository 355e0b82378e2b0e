//! The No-Vary-Search of paths: by which rule a request's URL may be equivalent to others.

use super::when_full;
use crate::semantics::no_vary_search::NoVarySearch;
use moka::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bounded map from a path ([`crate::semantics::CacheKey::search_hash`]) to the rule that its responses had last. What
/// is lost costs a fetch, never correctness: a response says by its own key what it answers.
pub struct SearchRules {
    known: Cache<u128, Arc<NoVarySearch>>,
    /// Whether there ever was one; most processes never see any.
    any: AtomicBool,
}

/// What the map keeps per rule beside it, about.
const BOOKKEEPING: usize = 250;

impl SearchRules {
    /// `on_full` is told of each rule that had to go because all of them had this many `bytes`.
    pub fn new(bytes: u64, on_full: impl Fn() + Send + Sync + 'static) -> Self {
        let weigh = |_: &u128, rule: &Arc<NoVarySearch>| u32::try_from(rule.memory() + BOOKKEEPING).unwrap_or(u32::MAX);
        let known = Cache::builder().max_capacity(bytes).weigher(weigh).eviction_listener(when_full(on_full)).build();
        Self { known, any: AtomicBool::new(false) }
    }

    /// Whether any rule was ever known: one load.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    pub fn get(&self, path: u128) -> Option<Arc<NoVarySearch>> {
        if self.any() { self.known.get(&path) } else { None }
    }

    /// From now on this is the rule of the path.
    pub fn remember(&self, path: u128, rule: NoVarySearch) {
        self.any.store(true, Ordering::Relaxed);
        // What is known already is not written again: every response of the path passes here.
        if self.known.get(&path).is_none_or(|known| *known != rule) {
            self.known.insert(path, Arc::new(rule));
        }
    }

    /// The path has no rule any more.
    pub fn forget(&self, path: u128) {
        self.known.invalidate(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::Fields;
    use std::sync::atomic::AtomicUsize;

    fn rule(value: &str) -> NoVarySearch {
        let mut fields = Fields::new();
        fields.push("no-vary-search", value).unwrap();
        NoVarySearch::of(&fields).unwrap().unwrap()
    }

    #[test]
    fn the_last_rule_of_a_path_counts_until_it_is_forgotten() {
        let rules = SearchRules::new(1 << 20, || ());
        assert!(!rules.any() && rules.get(1).is_none());
        rules.remember(1, rule("key-order"));
        rules.remember(1, rule("params=(\"a\")"));
        assert_eq!(rules.get(1).as_deref(), Some(&rule("params=(\"a\")")));
        assert!(rules.any() && rules.get(2).is_none());
        rules.forget(1);
        assert!(rules.get(1).is_none());
    }

    #[test]
    fn rules_are_bounded_and_what_goes_is_told() {
        let gone = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&gone);
        let rules = SearchRules::new(10_000, move || {
            told.fetch_add(1, Ordering::Relaxed);
        });
        for path in 0..1000 {
            rules.remember(path, rule("key-order"));
        }
        rules.known.run_pending_tasks();
        let (kept, bytes) = (rules.known.entry_count(), rules.known.weighted_size());
        assert!((1..=40).contains(&kept) && bytes <= 10_000, "{kept} of {bytes} bytes");
        assert_eq!(gone.load(Ordering::Relaxed), 1000 - kept as usize);
    }
}
