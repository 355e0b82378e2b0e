//! Freshness lifetime and current age (RFC 9111 §4.2), and the facts of a response that the rules need.

use super::cache_control::ResponseDirectives;
use super::policy::CachePolicy;
use super::vary::Vary;
use super::{Now, Request, Response, StatusCode};

/// What the rules need of a response, parsed once when it is received or updated.
///
/// Raw inputs only: policy is applied by the functions that read them, so that a changed policy
/// takes effect on stored responses.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub status: StatusCode,
    pub directives: ResponseDirectives,
    /// When the request that brought the response was sent.
    pub request_time: Now,
    /// When its head was received.
    pub response_time: Now,
    /// Date in wall milliseconds; the time of receipt where absent or unreadable.
    pub date_ms: i64,
    /// Age of the response when received, in milliseconds: corrected_initial_age of §4.2.3.
    pub initial_age_ms: u64,
    /// Expires: `None` absent, `Some(None)` present and unreadable (stale), `Some(Some(ms))`.
    pub expires_ms: Option<Option<i64>>,
    pub last_modified_ms: Option<i64>,
    /// Entity tag as it came, quotes and `W/` included.
    pub etag: Option<Box<[u8]>>,
    pub vary: Vary,
    /// The request carried Authorization.
    pub authorized: bool,
    /// The request carried Cookie.
    pub cookie: bool,
    /// The response carries Set-Cookie.
    pub set_cookie: bool,
}

impl Facts {
    pub fn new(request: Request<'_>, response: Response<'_>, request_time: Now, response_time: Now) -> Self {
        let _ = (request, response, request_time, response_time);
        todo!()
    }

    /// Current age in milliseconds, rounded down nowhere (§4.2.3).
    pub fn age_ms(&self, now: Now) -> u64 {
        let _ = now;
        todo!()
    }

    /// Time this response may be served without contacting the origin, counted from its generation.
    pub fn lifetime(&self, policy: &CachePolicy) -> Lifetime {
        let _ = policy;
        todo!()
    }
}

/// A freshness lifetime and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    pub ms: u64,
    pub source: LifetimeSource,
}

/// The governing field or rule (§4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifetimeSource {
    PolicyOverride,
    SMaxage,
    MaxAge,
    Expires,
    PolicyDefault,
    Heuristic,
    /// No explicit freshness and no heuristic applies: stale at once.
    None,
}

impl LifetimeSource {
    /// For `explain`: `s-maxage`, `heuristic`, ...
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicyOverride => "policy-override",
            Self::SMaxage => "s-maxage",
            Self::MaxAge => "max-age",
            Self::Expires => "expires",
            Self::PolicyDefault => "policy-default",
            Self::Heuristic => "heuristic",
            Self::None => "none",
        }
    }
    /// Whether the origin named it.
    pub const fn is_explicit(self) -> bool {
        matches!(self, Self::SMaxage | Self::MaxAge | Self::Expires)
    }
}
