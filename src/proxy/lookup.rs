//! Cache key -> variant -> stored response, and what the rules make of it now.

use super::Proxy;
use crate::cache::StoredResponse;
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::{Reuse, Validity, reuse};
use crate::semantics::{CacheKey, Now, Request};
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

/// Finds the stored response that a request selects; one read of the tier.
pub fn find(proxy: &Proxy, request: Request<'_>, key: &CacheKey, policy: &CachePolicy, now: Now) -> Found {
    let Some(variants) = proxy.memory.get_at(key.hash(), now.mono_ms).filter(|variants| *variants.key() == *key) else {
        return Found::Nothing;
    };
    let Some(response) = variants.select(request.fields, policy) else { return Found::OtherVariants };
    let response =
        if response.head.facts.targets == policy.targeted.id() { Arc::clone(response) } else { reread(proxy, response, policy, now) };
    let validity = response.head.check(&proxy.journal);
    let reuse = reuse(request, &response.head.facts, policy, validity, now);
    Found::Stored { response, reuse, validity }
}

/// The response as `cache.targeted` of today reads it, in the place of what a configuration of before made of it.
#[cold]
fn reread(proxy: &Proxy, stored: &Arc<StoredResponse>, policy: &CachePolicy, now: Now) -> Arc<StoredResponse> {
    let reread = Arc::new(stored.reread(policy, now));
    proxy.memory.update(stored.head.key.hash(), |there| match there.and_then(|set| set.swapped(stored, &reread)) {
        Some(set) => Change::Put(Arc::new(set)),
        None => Change::Keep,
    });
    reread
}
