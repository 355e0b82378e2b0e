//! What an entry of the journal matches.

use crate::semantics::key::hash128;

/// Hard: gone. Soft: stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Hard,
    Soft,
}

/// What to invalidate. Texts are normalised by whoever makes the selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum Selector {
    /// `authority/path?query` after the route's rules, no scheme: all keys and variants of that URL.
    Url(String),
    /// A surrogate key.
    Key(String),
    /// A cache group of an origin (RFC 9875): `scheme://authority`, group.
    Group {
        origin: String,
        group: String,
    },
    /// `authority/path...`: every URL that begins so.
    Prefix(String),
    /// Authority.
    Host(String),
    /// Name of a site.
    Site(String),
    Everything,
}

/// A stored response, or one being fetched, as the journal sees it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `CacheKey::url_hash`.
    pub url: u128,
    /// `authority/path?query` after the route's rules, for prefixes.
    pub url_text: &'a str,
    /// Authority, for hosts.
    pub authority: &'a str,
    /// Name of the site.
    pub site: &'a str,
    /// [`key_hash`] of its surrogate keys.
    pub keys: &'a [u128],
    /// [`group_hash`] of its cache groups.
    pub groups: &'a [u128],
}

/// Hash of a surrogate key, equal on all nodes.
pub fn key_hash(key: &str) -> u128 {
    hash128(key.as_bytes())
}

/// Hash of a cache group of an origin.
pub fn group_hash(origin: &str, group: &str) -> u128 {
    hash128([origin.as_bytes(), b"\n", group.as_bytes()].concat().as_slice())
}
