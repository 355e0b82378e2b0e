//! Joins rules and tiers: stored responses and their variants.

pub mod codec;
mod dictionaries;
mod form;
mod request_counts;
mod search_rules;
mod stored_response;
mod tags;
mod variants;
mod vary_memory;

pub use dictionaries::Dictionaries;
pub use form::{Effort, Form, Forms};
pub use request_counts::{Counted, RequestCounts};
pub use search_rules::SearchRules;
#[cfg(test)]
pub use stored_response::tests as for_tests;
pub use stored_response::{Blocks, StoredHead, StoredResponse, subject};
pub use tags::{GROUPS_MAX, TAG_FIELDS, Tags, named_groups};
pub use variants::Insertion;
pub use vary_memory::VaryMemory;

use moka::notification::RemovalCause;
use std::sync::Arc;

/// For a bounded map, to call `on_full` for each entry that had to go for others.
fn when_full<K, V>(on_full: impl Fn() + Send + Sync + 'static) -> impl Fn(Arc<K>, V, RemovalCause) + Send + Sync + 'static {
    move |_, _, cause| {
        if cause == RemovalCause::Size {
            on_full();
        }
    }
}
