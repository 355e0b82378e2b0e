//! Cache key -> variant -> stored response, and what the rules make of it now.

use super::Proxy;
use super::exchange::Arrival;
use crate::cache::StoredResponse;
use crate::semantics::Now;
use crate::semantics::reuse::{Reuse, Validity, reuse};
use std::sync::Arc;

/// What the tiers hold for a request.
pub enum Found {
    Stored { response: Arc<StoredResponse>, reuse: Reuse, validity: Validity },
    /// The key is there, but no variant that this request selects.
    OtherVariants,
    Nothing,
}

/// Finds the stored response that this request selects; one read of the tier.
pub fn find(proxy: &Proxy, arrival: &Arrival<'_>, now: Now) -> Found {
    let Some(variants) = proxy.memory.get(arrival.key.hash()).filter(|variants| variants.key == arrival.key) else {
        return Found::Nothing;
    };
    let Some(response) = variants.select(&arrival.fields, arrival.policy()) else { return Found::OtherVariants };
    let validity = response.head.check(&proxy.journal);
    let reuse = reuse(arrival.request(), &response.head.facts, arrival.policy(), validity, now);
    Found::Stored { response: Arc::clone(response), reuse, validity }
}
