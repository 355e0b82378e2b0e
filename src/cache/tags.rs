//! Surrogate keys and cache groups of a response.

use crate::config::settings::KeyBounds;
use crate::invalidation::selector::{group_hash, key_hash};
use crate::semantics::{Fields, Name, fields, name, structured};

/// Response fields that carry surrogate keys; removed towards clients unless the route forwards them.
pub const TAG_FIELDS: [Name; 4] = [name::SURROGATE_KEY, name::CACHE_TAG, name::EDGE_CACHE_TAG, name::XKEY];

/// The keys and groups that invalidations can name, hashed, and the text of the keys for `explain`. Most responses have
/// none, which takes no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tags(Option<Box<Named>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    keys: Box<[u128]>,
    groups: Box<[u128]>,
    text: Box<str>,
}

/// A response named more surrogate keys, or longer ones, than is allowed: it is not stored, because a purge could miss it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyKeys;

impl Tags {
    /// Reads Surrogate-Key and xkey (separated by space), Cache-Tag and Edge-Cache-Tag (by comma), Cache-Groups (RFC 9875).
    pub fn parse(response: &Fields, origin: &str, limits: &KeyBounds) -> Result<Self, TooManyKeys> {
        let mut texts: Vec<&str> = Vec::new();
        for field in TAG_FIELDS {
            for value in response.values(field) {
                let Ok(value) = std::str::from_utf8(value) else { return Err(TooManyKeys) };
                texts.extend(value.split([' ', ',', '\t']).filter(|key| !key.is_empty()));
            }
        }
        texts.sort_unstable();
        texts.dedup();
        if texts.len() > limits.keys_per_response || texts.iter().any(|key| key.len() > limits.key_bytes) {
            return Err(TooManyKeys);
        }
        let groups = groups(response, origin).ok_or(TooManyKeys)?;
        let keys = texts.iter().map(|key| key_hash(key)).collect();
        Ok(Self::of(keys, groups, texts.join(" ").into()))
    }

    /// The tags of both, for a 304 whose newer keys do not lift purges of older ones.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let both = |a: &[u128], b: &[u128]| {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.dedup();
            all.into_boxed_slice()
        };
        Self::of(both(self.keys(), other.keys()), both(self.groups(), other.groups()), other.text().into())
    }

    pub fn memory(&self) -> usize {
        let named = |named: &Named| size_of::<Named>() + (named.keys.len() + named.groups.len()) * size_of::<u128>() + named.text.len();
        self.0.as_deref().map_or(0, named)
    }

    pub fn keys(&self) -> &[u128] {
        self.0.as_deref().map_or(&[], |named| &named.keys)
    }

    pub fn groups(&self) -> &[u128] {
        self.0.as_deref().map_or(&[], |named| &named.groups)
    }

    /// Keys as they came, one space between; empty where there are none.
    pub fn text(&self) -> &str {
        self.0.as_deref().map_or("", |named| &named.text)
    }

    /// Of hashes and text that were parsed before.
    pub(super) fn of(keys: Box<[u128]>, groups: Box<[u128]>, text: Box<str>) -> Self {
        let none = keys.is_empty() && groups.is_empty();
        Self((!none).then(|| Box::new(Named { keys, groups, text })))
    }
}

/// Groups that one response may be in, and that one Cache-Group-Invalidation may name; at least 32 (RFC 9875 §2, §3).
pub const GROUPS_MAX: usize = 128;

/// Members of Cache-Groups: quoted strings (RFC 9875 §2). `None` where there are more than [`GROUPS_MAX`].
fn groups(response: &Fields, origin: &str) -> Option<Box<[u128]>> {
    let groups = named_groups(response, name::CACHE_GROUPS, origin);
    (groups.len() <= GROUPS_MAX).then(|| groups.into())
}

/// Hashes of the groups of an origin that a field names: a List of Strings (RFC 9875 §2, §3).
///
/// A member that is no String is left out, and not all of the field with it as RFC 9651 §4.2 has it: whoever purges a group
/// that is plainly there must not miss. A cache may drop what it stores at any time, so that nothing is lost by it but
/// freshness.
pub fn named_groups(response: &Fields, field: Name, origin: &str) -> Vec<u128> {
    let Some(value) = response.joined(field) else { return Vec::new() };
    fields::list(&value).filter_map(structured::string_member).map(|group| group_hash(origin, &group)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> KeyBounds {
        KeyBounds { keys_per_response: 4, key_bytes: 8 }
    }

    fn response(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    #[test]
    fn keys_of_all_fields_are_read_once() {
        let fields = response(&[("Surrogate-Key", "a b"), ("Cache-Tag", "b,c"), ("Cache-Groups", "\"g\", \"h\"")]);
        let tags = Tags::parse(&fields, "http://a", &limits()).unwrap();
        assert_eq!(tags.text(), "a b c");
        assert_eq!(tags.keys().len(), 3);
        assert_eq!(tags.groups(), [group_hash("http://a", "g"), group_hash("http://a", "h")]);
    }

    #[test]
    fn groups_are_strings_of_structured_fields() {
        let fields = response(&[("Cache-Groups", r#""a\"b", "c,d";x="e", f, "g"#)]);
        let tags = Tags::parse(&fields, "http://a", &limits()).unwrap();
        assert_eq!(tags.groups(), [r#"a"b"#, "c,d"].map(|group| group_hash("http://a", group)));
    }

    #[test]
    fn more_keys_than_allowed_are_an_error_and_never_cut_short() {
        assert_eq!(Tags::parse(&response(&[("xkey", "a b c d e")]), "", &limits()), Err(TooManyKeys));
        assert_eq!(Tags::parse(&response(&[("xkey", "123456789")]), "", &limits()), Err(TooManyKeys));
    }

    #[test]
    fn a_union_keeps_both() {
        let one = Tags::parse(&response(&[("xkey", "a b")]), "", &limits()).unwrap();
        let two = Tags::parse(&response(&[("xkey", "b c")]), "", &limits()).unwrap();
        let both = one.union(&two);
        assert_eq!(both.keys().len(), 3);
        assert_eq!(both.text(), "b c");
    }
}
