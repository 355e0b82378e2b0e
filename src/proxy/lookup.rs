//! Cache key -> variant -> stored response, and what the rules make of it now.

use super::Proxy;
use super::exchange::{Arrival, Exchange};
use super::standing::Standing;
use crate::cache::{StoredHead, StoredResponse};
use crate::observe::metrics::Bound;
use crate::semantics::no_vary_search::{NoVarySearch, TooLong};
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::{Reuse, Validity, reuse};
use crate::semantics::{CacheKey, Fields, Now, Request, name};
use crate::tier::memory::Change;
use std::sync::Arc;

/// What the tiers hold for a request.
pub enum Found {
    Stored {
        response: Arc<StoredResponse>,
        reuse: Reuse,
        validity: Validity,
    },
    /// The key is there, but no variant that this request selects.
    OtherVariants,
    Nothing,
}

impl Found {
    /// Whether it answers without the origin.
    pub const fn is_answer(&self) -> bool {
        matches!(self, Self::Stored { reuse: Reuse::Fresh { .. } | Reuse::StaleNow { .. }, .. })
    }
}

/// Where the URL alone has no answer: what is stored for all URLs equivalent to it, by the rule that its path had last
/// (No-Vary-Search §7). From here on the request goes under their key.
pub fn find_equivalent(proxy: &Proxy, arrival: &mut Arrival<'_>, found: Found, now: Now) -> Found {
    if found.is_answer() {
        return found;
    }
    let Some(key) = proxy.equivalent_key(&arrival.key, arrival.policy()) else { return found };
    let equivalent = find(proxy, arrival.request(), &key, arrival.policy(), arrival.standing, now);
    arrival.exact = Some(Box::new(std::mem::replace(&mut arrival.key, key)));
    match (&found, &equivalent) {
        (_, Found::Stored { .. }) | (Found::Nothing, _) => equivalent,
        _ => found,
    }
}

/// What the tiers hold by now, under any key of a request.
pub fn find_again(proxy: &Proxy, exchange: &Exchange, now: Now) -> Found {
    let find = |key: &CacheKey| find(proxy, exchange.request(), key, exchange.policy(), exchange.standing, now);
    let found = find(&exchange.key);
    if found.is_answer() || !proxy.search_rules.any() {
        return found;
    }
    let exact = exchange.exact_key();
    let others = [Some(exact.clone()), proxy.equivalent_key(exact, exchange.policy())];
    let mut others = others.into_iter().flatten().filter(|key| *key != exchange.key).map(|key| find(&key));
    others.find(Found::is_answer).unwrap_or(found)
}

impl Proxy {
    /// The key of all URLs equivalent to the one of this key, by the rule that its path had last, if it had any.
    pub(super) fn equivalent_key(&self, exact: &CacheKey, policy: &CachePolicy) -> Option<CacheKey> {
        if !policy.no_vary_search || !self.search_rules.any() {
            return None;
        }
        Some(exact.under(&*self.search_rules.get(exact.search_hash())?))
    }

    /// Learns of a response that may be stored: the rule of its path is its own from now on. One that comes in place of a
    /// response with a rule and has none withdraws it.
    pub(super) fn learn_search_rule(&self, exchange: &Exchange, response: &Fields, old: Option<&StoredHead>) {
        let has_rule = |fields: &Fields| fields.has(name::NO_VARY_SEARCH);
        if !exchange.policy().no_vary_search || !(has_rule(response) || old.is_some_and(|old| has_rule(&old.fields))) {
            return;
        }
        let path = exchange.exact_key().search_hash();
        match NoVarySearch::of(response) {
            Ok(Some(rule)) => self.search_rules.remember(path, rule),
            Ok(None) => self.search_rules.forget(path),
            Err(TooLong) => self.metrics.bound(Bound::NoVarySearchBytes),
        }
    }
}

/// Finds the stored response that a request selects; one read of the tier.
pub fn find(proxy: &Proxy, request: Request<'_>, key: &CacheKey, policy: &CachePolicy, standing: Standing, now: Now) -> Found {
    let Some(variants) = proxy.memory.get_at(key.hash(), now.mono_ms).filter(|variants| variants.head.key == *key) else {
        return Found::Nothing;
    };
    let Some(selected) = variants.select(request.fields, policy) else { return Found::OtherVariants };
    let selected = if selected.head.facts.targets != policy.targeted.id() {
        Some(reread(proxy, selected, policy, now))
    } else {
        (!Arc::ptr_eq(selected, &variants)).then(|| Arc::clone(selected))
    };
    let response = selected.unwrap_or(variants);
    let validity = standing.validity(proxy, &response.head);
    let reuse = reuse(request, &response.head.facts, policy, validity, now);
    Found::Stored { response, reuse, validity }
}

/// The response as `cache.targeted` of today reads it, in the place of what a configuration of before made of it.
#[cold]
fn reread(proxy: &Proxy, stored: &Arc<StoredResponse>, policy: &CachePolicy, now: Now) -> Arc<StoredResponse> {
    let reread = Arc::new(stored.reread(policy, now));
    proxy.memory.update(stored.head.key.hash(), |there| there.map_or(Change::Keep, |set| set.swapped(stored, &reread)));
    reread
}
