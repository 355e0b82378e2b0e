//! Joins rules and tiers: stored responses and their variants.

mod stored_response;

pub use stored_response::StoredResponse;
