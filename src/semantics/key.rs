//! The effective request target and the cache key (RFC 9110 §7.1, RFC 9111 §2).
//!
//! One normaliser feeds routing, cache key and upstream request: they all use the bytes of one
//! [`Target`].

use super::Fields;
use std::fmt;
use std::sync::Arc;

/// Fixed-key 128-bit hash, equal on all nodes. Finds; never decides alone where bytes can be compared.
pub fn hash128(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// A normalised http or https URL: `scheme://authority/path[?query]`.
///
/// Authority in lower case without userinfo and default port; the path begins with `/`; there is
/// no fragment, no dot segment, no control byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    text: String,
    /// Where the authority begins: past `://`.
    authority_start: u32,
    path_start: u32,
    /// Where `?` is, or the length.
    path_end: u32,
}

/// Why a target was refused; each is a 400 unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("request target holds a byte that is not allowed")]
    Byte,
    #[error("request target is in no form that is served here")]
    Form,
    #[error("Host is missing")]
    HostMissing,
    #[error("Host is repeated")]
    HostRepeated,
    #[error("Host is malformed")]
    HostMalformed,
    #[error("Host disagrees with the absolute target")]
    HostDisagrees,
    #[error("userinfo in the target")]
    Userinfo,
    #[error("path is ambiguous: encoded slash, backslash or NUL, or a dot segment above the root")]
    Path,
}

impl Target {
    /// The target of a request line and its Host lines, normalised.
    ///
    /// Takes origin form, absolute form (then Host must agree), and `*` (as path `*` for OPTIONS only).
    /// Dot segments are removed, unreserved characters percent-decoded, hex digits upper-cased, an empty path is
    /// `/`. Encoded slashes (%2F), backslashes (raw or %5C), %00 and control bytes are refused unless `lenient_path`
    /// (then kept as they are, encoded). Fragments are refused.
    pub fn parse(scheme: Scheme, raw: &[u8], hosts: &Fields, lenient_path: bool) -> Result<Self, TargetError> {
        let _ = (scheme, raw, hosts, lenient_path);
        todo!()
    }

    /// Builds a target from a URL as an operator writes it in a purge or on the command line.
    pub fn from_url(url: &str) -> Result<Self, TargetError> {
        let _ = url;
        todo!()
    }

    /// The same target with another path and query (rewrites, relative references). Both are normalised.
    pub fn with_path_and_query(&self, path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        let _ = (path, query);
        todo!()
    }

    /// A reference such as Location, resolved against this target (RFC 3986 §5.2).
    pub fn resolve(&self, reference: &str) -> Result<Self, TargetError> {
        let _ = reference;
        todo!()
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
    pub fn scheme(&self) -> Scheme {
        if self.authority_start == 8 { Scheme::Https } else { Scheme::Http }
    }
    /// Host and, where it is not the default one, port.
    pub fn authority(&self) -> &str {
        &self.text[self.authority_start as usize..self.path_start as usize]
    }
    /// Host without port; IPv6 in brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.rfind(':') {
            Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
            _ => authority,
        }
    }
    pub fn path(&self) -> &str {
        &self.text[self.path_start as usize..self.path_end as usize]
    }
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path_end as usize + 1..)
    }
    /// Path and query as they go into a request line.
    pub fn path_and_query(&self) -> &str {
        &self.text[self.path_start as usize..]
    }
    /// Scheme and authority: `http://shop.example`.
    pub fn origin(&self) -> &str {
        &self.text[..self.path_start as usize]
    }
    /// Everything but the scheme: what a URL purge is matched on, hashed.
    pub fn url_hash(&self) -> u128 {
        hash128(&self.text.as_bytes()[self.authority_start as usize..])
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the client reached us, or is taken to have (trusted X-Forwarded-Proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a route makes of the target and fields for the cache key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPolicy {
    /// Sort query parameters by name, stable.
    pub query_sort: bool,
    /// Only these parameters count; `None`: all.
    pub query_allow: Option<Vec<String>>,
    /// These parameters do not count; a trailing `*` matches a prefix.
    pub query_ignore: Vec<String>,
    /// Request fields whose values are part of the key.
    pub headers: Vec<String>,
    /// Cookies whose values are part of the key.
    pub cookies: Vec<String>,
}

impl KeyPolicy {
    /// Whether the key is the target as it is: no allocation beyond it.
    pub fn is_plain(&self) -> bool {
        !self.query_sort && self.query_allow.is_none() && self.query_ignore.is_empty() && self.headers.is_empty() && self.cookies.is_empty()
    }
}

/// The primary cache key: compared whole on every hit; the hash only finds it.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// The normalised URL (after the query rules), then one line per further part.
    text: Arc<str>,
    /// Length of the URL part of the text.
    url_length: u32,
    hash: u128,
    url_hash: u128,
}

impl CacheKey {
    /// The key of a request on a route.
    pub fn new(target: &Target, fields: &Fields, policy: &KeyPolicy) -> Self {
        let _ = (target, fields, policy);
        todo!()
    }

    /// The whole key as text; parts after the URL are on lines of their own.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// [`CacheKey::as_str`], shared.
    pub fn text(&self) -> &CacheKeyText {
        &self.text
    }
    /// The URL part.
    pub fn url(&self) -> &str {
        &self.text[..self.url_length as usize]
    }
    /// Hash of the whole key.
    pub const fn hash(&self) -> u128 {
        self.hash
    }
    /// Hash of authority, path and query after the route's rules: what a URL purge matches.
    pub const fn url_hash(&self) -> u128 {
        self.url_hash
    }
}

/// The text of a whole primary key, shared.
pub type CacheKeyText = Arc<str>;

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
