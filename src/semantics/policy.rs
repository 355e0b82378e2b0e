//! The cache policy of a route, as the rules read it. Resolved by `config`, applied when a response
//! is stored *and* when it is reused, so that a reload takes effect on what is already stored.

use super::coding::Coding;
use super::fields::trim;
use super::targeted::TargetList;
use super::{Method, StatusCode};
use std::num::NonZeroU64;
use std::sync::Arc;

/// What a route allows the cache to do. Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePolicy {
    /// `cache.enabled`; false: every request goes past the cache, with detail DISABLED.
    pub enabled: bool,
    /// `cache.ttl.override`: lifetimes that replace what the origin says, first match wins.
    /// Never lifts no-store or private.
    pub ttl_override: Vec<TtlRule>,
    /// `cache.ttl.default`: lifetimes for responses without explicit freshness, before heuristics.
    pub ttl_default: Vec<TtlRule>,
    /// `cache.ttl.jitter`: share of the lifetime, 0 to 1, by which it is shortened at most, for each stored response by
    /// another part of it; never lengthened.
    pub ttl_jitter: f64,
    /// `cache.heuristic`: RFC 9111 §4.2.2, a tenth of the time since Last-Modified.
    pub heuristic: bool,
    /// `cache.heuristic_max`: upper bound of a heuristic lifetime.
    pub heuristic_max_ms: u64,
    /// `cache.stale_while_revalidate`: where the response says nothing (RFC 5861 §3).
    pub stale_while_revalidate_ms: u64,
    /// `cache.stale_if_error`: where the response says nothing (RFC 5861 §4; RFC 9111 §4.2.4).
    pub stale_if_error_ms: u64,
    /// `cache.early_refresh`: share of the lifetime, 0 to 1; a hit in so much of it before its end refreshes what it found.
    pub early_refresh: f64,
    /// `cache.store_after`: the request for a key with which a response is stored first; 1: at once.
    pub store_after: u8,
    /// `cache.deception_guard`: nothing dynamic is stored under a path that looks static, unless the origin says so.
    pub deception_guard: bool,
    /// `cache.error_guard`: an error that an odd request may have caused is stored only with explicit freshness, and not for
    /// a request that is odd.
    pub error_guard: bool,
    /// `cache.keep_stale`: how long past its freshness a response with a validator is kept to be revalidated.
    pub keep_stale_ms: u64,
    /// `cache.targeted`: fields that govern before Cache-Control.
    pub targeted: TargetList,
    /// `cache.set_cookie`.
    pub set_cookie: SetCookie,
    /// `cache.client_directives`.
    pub client_directives: ClientDirectives,
    /// `cache.max_object_size`: bytes; longer bodies are not stored.
    pub max_object_bytes: u64,
    /// `cache.range_whole_max`: a range on a miss fetches the whole up to this many bytes.
    pub range_whole_max_bytes: u64,
    /// `cache.range_parts_max`: ranges of one request; more are answered with the whole.
    pub range_parts_max: usize,
    /// `cache.blocks`: large responses are kept in blocks of this many bytes, fetched as they are wanted.
    pub blocks: Option<NonZeroU64>,
    /// `cache.collapse`.
    pub collapse: bool,
    /// `cache.heuristic_with_cookie`: whether requests with Cookie may get heuristic freshness (false by default).
    pub heuristic_with_cookie: bool,
    /// `cache.vary`: what is made of the fields that Vary names.
    pub vary: VaryPolicy,
    /// `accept_encoding`: what codings the origin is asked for, and so what Vary: Accept-Encoding selects on.
    pub accept_encoding: AcceptEncoding,
    /// `compression`: what we code ourselves; the origin is then asked for no coding, whatever `accept_encoding` says.
    pub compression: Option<Arc<Compression>>,
    /// `cache.no_vary_search`: whether a response's No-Vary-Search counts.
    pub no_vary_search: bool,
    /// `cache.max_variants`: per key.
    pub max_variants: usize,
    /// `cache.body_key`.
    pub body_key: BodyKey,
}

impl CachePolicy {
    /// The lifetime in milliseconds that replaces what the origin says, first match wins.
    pub fn override_ms(&self, status: StatusCode) -> Option<u64> {
        first_match(&self.ttl_override, status)
    }

    /// The lifetime in milliseconds for a response that names none, first match wins.
    pub fn default_ms(&self, status: StatusCode) -> Option<u64> {
        first_match(&self.ttl_default, status)
    }
}

/// Requests that are answered by what they carry: their content is part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyKey {
    /// QUERY (RFC 10008 §2.7).
    pub query: bool,
    /// POST, taken as safe; widens RFC 9110 §9.3.3.
    pub post: bool,
    /// Content that is longer is not read for it.
    pub max_bytes: u64,
}

impl BodyKey {
    /// Whether requests with this method are answered so.
    pub fn has(&self, method: &Method) -> bool {
        match method.as_str() {
            "QUERY" => self.query,
            "POST" => self.post,
            _ => false,
        }
    }
}

impl Default for BodyKey {
    fn default() -> Self {
        Self { query: true, post: false, max_bytes: 64 << 10 }
    }
}

fn first_match(rules: &[TtlRule], status: StatusCode) -> Option<u64> {
    rules.iter().find(|rule| rule.statuses.contains(status)).map(|rule| rule.lifetime_ms)
}

/// What is made of the fields that Vary names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VaryPolicy {
    /// Fields that the operator declares irrelevant, in any letter case; widens the RFC, warned about.
    pub ignore: Vec<String>,
    /// Languages that the origin has: Accept-Language is reduced to the best of them. Empty: it is not.
    pub languages: Vec<String>,
    /// Image formats that the origin may answer with: Accept is reduced to those that the client names. Empty: it is not.
    pub images: Vec<String>,
}

/// A lifetime for responses with certain statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TtlRule {
    pub statuses: Statuses,
    pub lifetime_ms: u64,
}

/// Which statuses a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statuses {
    /// 200, 203, 204, 206, 300, 301, 308, 404, 410: what a rule without a status means.
    Usual,
    /// One status.
    One(u16),
    /// A class: 4 for 4xx.
    Class(u8),
}

impl Statuses {
    /// Whether the rule is for this status.
    pub fn contains(self, status: StatusCode) -> bool {
        match self {
            Self::Usual => matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 410),
            Self::One(one) => status.as_u16() == one,
            Self::Class(class) => status.as_u16() / 100 == u16::from(class),
        }
    }
}

/// What Set-Cookie does to storing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetCookie {
    /// Not stored.
    #[default]
    Bypass,
    /// Stored and replayed, as RFC 9111 §7.3 allows.
    Store,
    /// Stored without the field, which nobody gets then.
    Strip,
}

/// What codings the origin is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceptEncoding {
    /// `gzip` where the client takes it, else `identity`.
    #[default]
    Normalise,
    Identity,
    /// As the client sent it.
    Forward,
}

/// What is coded here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// `compression.codings`: the first of those that a client likes equally is taken.
    pub codings: Vec<Coding>,
    /// `compression.types`: lower case; `text/*` is all of a kind, `*+json` all with that suffix.
    pub types: Vec<String>,
    /// `compression.min_size`: shorter responses are not coded.
    pub min_bytes: u64,
    /// `compression.sensitive`: responses may show secrets beside what a request said. Only what is stored for everybody is coded.
    pub sensitive: bool,
    /// `compression.level`: of what a client waits for.
    pub level: Levels,
    /// `compression.hot_hits`: answers after which a form is made anew at [`Compression::hot_level`]; 0: never.
    pub hot_hits: u32,
    /// `compression.hot_level`.
    pub hot_level: Levels,
    /// `compression.hot_max_size`: longer responses are not made anew.
    pub hot_max_bytes: u64,
    pub decode: DecodeLimits,
    pub dictionaries: DictionaryPolicy,
}

/// Compression dictionaries (RFC 9842).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DictionaryPolicy {
    /// `compression.dictionaries`: responses that the origin declares to be dictionaries are kept, and others coded against them.
    pub enabled: bool,
    /// `compression.dictionary_max_size`: neither a dictionary nor what is coded against one is longer.
    pub max_bytes: u64,
    /// `compression.dictionary_forms`: forms of one response against dictionaries.
    pub forms_max: usize,
}

/// What a coded response of the upstream may stand for, where a client cannot read its coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// `compression.decode_max_ratio`: bytes for each that came, beyond the first MiB.
    pub ratio: u64,
    /// `compression.decode_max_size`.
    pub bytes: u64,
}

/// How much work goes into a form, in each coding's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// 1 to 9.
    pub gzip: u8,
    /// 0 to 11.
    pub brotli: u8,
    /// 1 to 19.
    pub zstd: u8,
}

impl Levels {
    /// The one of this coding.
    pub const fn of(&self, coding: Coding) -> u8 {
        match coding {
            Coding::Gzip => self.gzip,
            Coding::Brotli | Coding::Dcb => self.brotli,
            Coding::Zstd | Coding::Dcz => self.zstd,
        }
    }
}

/// Types that shrink: text of any kind, and some binary ones that were made with a coding in mind.
pub const COMPRESSIBLE_TYPES: [&str; 13] = [
    "text/*",
    "*+json",
    "*+xml",
    "*+text",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/wasm",
    "application/x-ndjson",
    "application/x-javascript",
    "application/vnd.ms-fontobject",
    "font/otf",
    "font/ttf",
];

impl Compression {
    /// How dictionaries are used; `None` where they are not: what shows secrets beside what others chose is neither made
    /// one nor coded against one (RFC 9842 §9.2).
    pub fn dictionaries(&self) -> Option<&DictionaryPolicy> {
        (self.dictionaries.enabled && !self.sensitive).then_some(&self.dictionaries)
    }

    /// Whether a Content-Type is of these types.
    pub fn is_of_types(&self, content_type: &[u8]) -> bool {
        let essence = trim(content_type.split(|byte| *byte == b';').next().unwrap_or_default());
        self.types.iter().any(|wanted| match (wanted.strip_suffix('*'), wanted.strip_prefix('*')) {
            (Some(kind), _) => essence.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind.as_bytes())),
            (None, Some(suffix)) => {
                let start = essence.len().checked_sub(suffix.len());
                start.is_some_and(|start| essence[start..].eq_ignore_ascii_case(suffix.as_bytes()))
            }
            (None, None) => essence.eq_ignore_ascii_case(wanted.as_bytes()),
        })
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            types: COMPRESSIBLE_TYPES.iter().map(|kind| (*kind).to_owned()).collect(),
            min_bytes: 1024,
            sensitive: false,
            level: Levels { gzip: 4, brotli: 4, zstd: 3 },
            hot_hits: 64,
            hot_level: Levels { gzip: 9, brotli: 11, zstd: 19 },
            hot_max_bytes: 2 << 20,
            decode: DecodeLimits { ratio: 100, bytes: 256 << 20 },
            dictionaries: DictionaryPolicy { enabled: false, max_bytes: 4 << 20, forms_max: 8 },
        }
    }
}

/// What a client's Cache-Control does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientDirectives {
    /// Nothing, but for only-if-cached and no-store.
    #[default]
    Ignore,
    /// RFC 9111 §5.2.1, never widening what a shared cache may do.
    Honour,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            ttl_override: Vec::new(),
            ttl_default: Vec::new(),
            ttl_jitter: 0.0,
            heuristic: true,
            heuristic_max_ms: 24 * 3_600_000,
            stale_while_revalidate_ms: 0,
            stale_if_error_ms: 60_000,
            early_refresh: 0.0,
            store_after: 1,
            deception_guard: true,
            error_guard: true,
            keep_stale_ms: 3_600_000,
            targeted: TargetList::default(),
            set_cookie: SetCookie::default(),
            client_directives: ClientDirectives::default(),
            max_object_bytes: 32 << 20,
            range_whole_max_bytes: 16 << 20,
            range_parts_max: 16,
            blocks: None,
            collapse: true,
            heuristic_with_cookie: false,
            vary: VaryPolicy::default(),
            accept_encoding: AcceptEncoding::default(),
            compression: None,
            no_vary_search: true,
            max_variants: 64,
            body_key: BodyKey::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_a_status_wins() {
        let rule = |statuses, lifetime_ms| TtlRule { statuses, lifetime_ms };
        let policy = CachePolicy {
            ttl_override: vec![rule(Statuses::One(404), 1), rule(Statuses::Class(4), 2), rule(Statuses::Usual, 3)],
            ttl_default: vec![rule(Statuses::Class(5), 4)],
            ..CachePolicy::default()
        };
        for (status, over, default) in
            [(404, Some(1), None), (410, Some(2), None), (200, Some(3), None), (302, None, None), (503, None, Some(4))]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!((policy.override_ms(status), policy.default_ms(status)), (over, default), "{status}");
        }
    }
}
