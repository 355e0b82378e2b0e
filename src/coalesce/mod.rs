//! Collapsed forwarding (RFC 9111 §4; DESIGN section 5): one fetch, many readers.
//!
//! [`flight`] is the table of fetches under way and knows nothing of HTTP; [`fill`] the body that one
//! writer fills and any number of readers follow; [`marker`] remembers keys for which lining up is pointless.

pub mod fill;
pub mod flight;
pub mod marker;
