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
pub use stored_response::{Blocks, Content, StoredHead, StoredResponse, subject};
pub use tags::{GROUPS_MAX, TAG_FIELDS, Tags, named_groups};
pub use variants::{Insertion, Variants};
pub use vary_memory::VaryMemory;
