//! Cache-Control directives of requests and responses, parsed once (RFC 9111 §5.2).

use super::{Fields, Name};

/// Delta-seconds, saturated at 2^31 (RFC 9111 §1.2.2).
pub type Seconds = u32;

/// Directives of a response. A malformed or contradictory number is `Some(0)`: stale is the safe side (§4.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    pub max_age: Option<Seconds>,
    pub s_maxage: Option<Seconds>,
    pub no_store: bool,
    /// no-cache without an argument.
    pub no_cache: bool,
    /// Fields named by `no-cache="..."`, lower case.
    pub no_cache_fields: Vec<String>,
    /// private without an argument.
    pub private: bool,
    /// Fields named by `private="..."`, lower case.
    pub private_fields: Vec<String>,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
    pub stale_while_revalidate: Option<Seconds>,
    pub stale_if_error: Option<Seconds>,
}

/// Directives of a request (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub max_age: Option<Seconds>,
    /// `Some(u32::MAX)`: max-stale without a value, any staleness.
    pub max_stale: Option<Seconds>,
    pub min_fresh: Option<Seconds>,
    pub no_cache: bool,
    pub no_store: bool,
    pub no_transform: bool,
    pub only_if_cached: bool,
    pub stale_if_error: Option<Seconds>,
}

impl ResponseDirectives {
    /// Reads all Cache-Control lines.
    pub fn parse(fields: &Fields) -> Self {
        Self::parse_field(fields, super::name::CACHE_CONTROL)
    }
    /// Reads all lines of a field with Cache-Control's syntax.
    pub fn parse_field(fields: &Fields, field: Name) -> Self {
        let _ = (fields, field);
        todo!()
    }
}

impl RequestDirectives {
    pub fn parse(fields: &Fields) -> Self {
        let _ = fields;
        todo!()
    }
}
