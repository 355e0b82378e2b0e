//! What the cache did, as a member of Cache-Status (RFC 9211).

/// `fwd` (RFC 9211 §2.2): why the request went forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Miss,
    Request,
    Stale,
    Partial,
}

impl Forward {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

/// The parameters of our member, in the order of the RFC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    pub hit: bool,
    pub forward: Option<Forward>,
    pub forward_status: Option<u16>,
    /// Remaining freshness in seconds, negative when stale.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    /// Token: `MEMORY`, `SET-COOKIE`, ...
    pub detail: Option<&'a str>,
    /// Only where the route shows it.
    pub key: Option<&'a str>,
}

impl CacheStatus<'_> {
    /// Appends `name; hit; ttl=30; detail=MEMORY` to `out`. `name` is a configured token, `detail` a token, `key` is
    /// written as a string with anything outside ASCII and `"` `\` escaped or replaced.
    pub fn write(&self, name: &str, out: &mut impl Extend<u8>) {
        let _ = (name, out);
        todo!()
    }
}
