//! What HTTP caching allows: pure functions from requests, stored responses, policy and `now` to
//! decisions with reasons. No clock, no async, no I/O (proved by `tests/it/architecture.rs`).
//!
//! The four questions: may this response be stored ([`storage`]); may a stored response answer
//! this request ([`reuse`]); how is it revalidated ([`validation`]); what is invalid now
//! ([`invalidation`]). Start reading at [`reuse::reuse`].

pub mod cache_control;
pub mod cache_status;
pub mod class;
pub mod coding;
pub mod condition;
pub mod content;
pub mod date;
pub mod dictionary;
pub mod fields;
pub mod forwarding;
pub mod freshness;
pub mod hop;
pub mod invalidation;
pub mod key;
pub mod no_vary_search;
pub mod partial;
pub mod policy;
pub mod precondition;
pub mod proxy_status;
pub mod query;
pub mod range;
pub mod reuse;
pub mod storage;
pub mod structured;
pub mod target;
pub mod targeted;
pub mod terms;
pub mod tracking;
pub mod upgrade;
pub mod validation;
pub mod vary;
pub mod widening;

pub use fields::{Fields, Name, name};
pub use http::{Method, StatusCode};
pub use key::CacheKey;
pub use target::Target;

/// One reading of the clocks, taken once per phase of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Wall clock: milliseconds since 1970-01-01 UTC. Compared with Date, Expires, Last-Modified only.
    pub wall_ms: i64,
    /// Boot-time clock: milliseconds, never goes back, counts while the machine sleeps. Ages inside
    /// this process are differences of these.
    pub mono_ms: u64,
}

impl Now {
    /// This instant moved by `ms` on both clocks.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self { wall_ms: self.wall_ms.saturating_add_unsigned(ms), mono_ms: self.mono_ms.saturating_add(ms) }
    }
}

/// A request as the rules see it: normalised target, fields as they came.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a Method,
    pub target: &'a Target,
    pub fields: &'a Fields,
}

/// The head of a response as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    pub status: StatusCode,
    pub fields: &'a Fields,
}
