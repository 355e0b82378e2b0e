//! May this response be stored (RFC 9111 §3), and what is left out (§3.1)?

use super::freshness::Facts;
use super::policy::CachePolicy;
use super::{Fields, Request, Response};

/// The answer to "may this be stored".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Stored,
    Not(NotStored),
}

/// Why a response is not stored. Tokens go into Cache-Status `detail`, logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum NotStored {
    /// The route does not cache.
    Disabled,
    /// A bypass rule of the route matched.
    BypassRule,
    /// Request method is not cacheable here.
    Method,
    /// no-store in the response.
    NoStore,
    /// no-store in the request.
    RequestNoStore,
    /// private in the response.
    Private,
    /// Set-Cookie in the response.
    SetCookie,
    /// Authorization in the request without permission in the response (§3.5).
    Authorization,
    /// Neither explicit freshness, nor a rule, nor a heuristic, nor a validator.
    NoFreshness,
    /// The status is not understood, or not final, or needs explicit freshness.
    Status,
    /// 206 or Content-Range: partial content is not stored yet.
    Partial,
    /// Vary: *.
    VaryStar,
    /// Body larger than `cache.max_object_size`.
    TooLarge,
    /// Memory for fills was exhausted.
    Memory,
    /// The head is larger than what is kept.
    HeadTooLarge,
    /// An error that request oddities may have caused (poisoned error guard).
    PoisonGuard,
    /// Static-looking path with a dynamic type (cache deception guard).
    DeceptionGuard,
    /// More surrogate keys than allowed.
    TooManyKeys,
    /// The fetch was purged while under way.
    Purged,
    /// The body did not end as announced.
    Incomplete,
    /// The tier refused it.
    Rejected,
}

impl NotStored {
    pub const ALL: [Self; 21] = [
        Self::Disabled,
        Self::BypassRule,
        Self::Method,
        Self::NoStore,
        Self::RequestNoStore,
        Self::Private,
        Self::SetCookie,
        Self::Authorization,
        Self::NoFreshness,
        Self::Status,
        Self::Partial,
        Self::VaryStar,
        Self::TooLarge,
        Self::Memory,
        Self::HeadTooLarge,
        Self::PoisonGuard,
        Self::DeceptionGuard,
        Self::TooManyKeys,
        Self::Purged,
        Self::Incomplete,
        Self::Rejected,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "DISABLED",
            Self::BypassRule => "BYPASS-RULE",
            Self::Method => "METHOD",
            Self::NoStore => "NO-STORE",
            Self::RequestNoStore => "REQUEST-NO-STORE",
            Self::Private => "PRIVATE",
            Self::SetCookie => "SET-COOKIE",
            Self::Authorization => "AUTHORIZATION",
            Self::NoFreshness => "NO-FRESHNESS",
            Self::Status => "STATUS",
            Self::Partial => "PARTIAL",
            Self::VaryStar => "VARY-STAR",
            Self::TooLarge => "TOO-LARGE",
            Self::Memory => "MEMORY",
            Self::HeadTooLarge => "HEAD-TOO-LARGE",
            Self::PoisonGuard => "POISON-GUARD",
            Self::DeceptionGuard => "DECEPTION-GUARD",
            Self::TooManyKeys => "TOO-MANY-KEYS",
            Self::Purged => "PURGED",
            Self::Incomplete => "INCOMPLETE",
            Self::Rejected => "REJECTED",
        }
    }
    /// Whether the reason lies in the response itself, so that waiting in line for the next one is pointless too
    /// (DESIGN section 5: sets the "do not line up" marker).
    pub const fn is_of_response(self) -> bool {
        matches!(
            self,
            Self::NoStore
                | Self::Private
                | Self::SetCookie
                | Self::NoFreshness
                | Self::Status
                | Self::Partial
                | Self::VaryStar
                | Self::TooLarge
                | Self::HeadTooLarge
                | Self::TooManyKeys
                | Self::Authorization
        )
    }
}

/// May this response to this request be stored? `facts` are of the same response.
pub fn may_store(request: Request<'_>, response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Storage {
    let _ = (request, response, facts, policy);
    todo!()
}

/// The fields of a response that are kept: without those of one connection (§3.1, RFC 9110 §7.6.1), without Age
/// (kept in the facts), without those named by private="..."; without Set-Cookie under [`super::policy::SetCookie::Strip`];
/// with Date, added where the origin sent none (RFC 9110 §6.6.1).
pub fn stored_fields(response: Response<'_>, facts: &Facts, policy: &CachePolicy) -> Fields {
    let _ = (response, facts, policy);
    todo!()
}
