//! What an entry of the journal matches.

use super::Kind;
use crate::semantics::key::hash128;
use std::borrow::Cow;

/// Hard: gone. Soft: stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Hard,
    Soft,
}

impl Mode {
    /// As in metrics, receipts and `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
        }
    }
}

/// What to invalidate. Texts are normalised by whoever makes the selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum Selector {
    /// `authority/path?query`, no scheme: all keys and variants of that URL. In the journal after the rules of a route.
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

impl Selector {
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Url(_) => Kind::Url,
            Self::Key(_) => Kind::Key,
            Self::Group { .. } => Kind::Group,
            Self::Prefix(_) => Kind::Prefix,
            Self::Host(_) => Kind::Host,
            Self::Site(_) => Kind::Site,
            Self::Everything => Kind::Everything,
        }
    }

    /// What is matched, for people: a group with its origin, `*` for everything.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Url(text) | Self::Key(text) | Self::Prefix(text) | Self::Host(text) | Self::Site(text) => text.into(),
            Self::Group { origin, group } => format!("{origin} {group}").into(),
            Self::Everything => "*".into(),
        }
    }
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

/// Keys (or groups) of a response updated by a 304: what an entry newer than its stamp is matched against. The new
/// ones first; the caller's bound on keys of a response holds for the union too.
pub fn union(old: &[u128], new: &[u128]) -> Box<[u128]> {
    let added = old.iter().filter(|key| !new.contains(key));
    new.iter().chain(added).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn union_has_each_key_once() {
        assert_eq!(*union(&[1, 2, 3], &[3, 4]), [3, 4, 1, 2]);
        assert_eq!(*union(&[], &[5]), [5]);
        assert_eq!(*union(&[5], &[]), [5]);
    }

    #[test]
    fn groups_of_different_origins_differ() {
        assert_ne!(group_hash("http://a.test", "g"), group_hash("http://b.test", "g"));
        assert_ne!(group_hash("http://a.test", "g"), group_hash("https://a.test", "g"));
    }
}
