//! Request content as part of the cache key: QUERY (RFC 10008 §2.7), and POST where a route takes it as safe.
//!
//! The whole content counts, byte for byte, with the fields that say what it is. Nothing in it is normalised: what an
//! origin takes as the same is not known here.

use super::key::CacheKey;
use super::policy::CachePolicy;
use super::{Fields, Method, Name, invalidation, name};

/// Metadata of a request's content (RFC 9110 §8), and which part of a representation it is (RFC 9110 §14.5).
const METADATA: [Name; 5] =
    [name::CONTENT_TYPE, name::CONTENT_ENCODING, name::CONTENT_LANGUAGE, name::CONTENT_LOCATION, name::CONTENT_RANGE];

/// Conditions that a POST leaves to the origin: a cache has no word in them (RFC 9110 §13.2.1, RFC 9111 §4.3.2).
const CONDITIONS: [Name; 6] =
    [name::IF_MATCH, name::IF_NONE_MATCH, name::IF_MODIFIED_SINCE, name::IF_UNMODIFIED_SINCE, name::IF_RANGE, name::RANGE];

/// Why a request is not answered by its content although its method would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkeyed {
    /// No Content-Type: an origin has to refuse a QUERY without one (RFC 10008 §2), and must not have to guess.
    NoType,
    /// A POST with conditions or a range.
    Condition,
    /// Longer than `cache.body_key.max_bytes`, or no memory was left to read it into.
    TooLarge,
}

impl Unkeyed {
    /// Token for Cache-Status, log and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoType => "NO-CONTENT-TYPE",
            Self::Condition => "CONDITION",
            Self::TooLarge => "CONTENT-TOO-LARGE",
        }
    }

    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoType => "its content has no Content-Type",
            Self::Condition => "conditions and ranges of a POST are for the origin",
            Self::TooLarge => "its content is larger than is read for the cache key",
        }
    }
}

/// Why a request whose method is answered by content is not, as far as its head tells. `length`: of the content, where
/// that is declared.
pub fn unkeyed(method: &Method, fields: &Fields, length: Option<u64>, policy: &CachePolicy) -> Option<Unkeyed> {
    if !fields.has(name::CONTENT_TYPE) {
        Some(Unkeyed::NoType)
    } else if *method == Method::POST && CONDITIONS.iter().any(|condition| fields.has(*condition)) {
        Some(Unkeyed::Condition)
    } else {
        length.is_some_and(|length| length > policy.body_key.max_bytes).then_some(Unkeyed::TooLarge)
    }
}

/// Whether a request changes nothing at the origin: by its method, or because the route takes POST so.
pub fn is_safe(method: &Method, policy: &CachePolicy) -> bool {
    invalidation::is_safe(method) || (*method == Method::POST && policy.body_key.post)
}

/// The key of a request with this content: that of its URL and, behind it, method, metadata and content.
pub fn key(url: &CacheKey, method: &Method, fields: &Fields, content: &[u8]) -> CacheKey {
    let mut part = String::with_capacity(content.len() + 64);
    // No other part of a key begins its line with a method: those are in capitals.
    part.push('\n');
    part.push_str(method.as_str());
    for field in METADATA {
        for value in fields.values(field) {
            part.push('\n');
            part.push_str(field.as_str());
            part.push(':');
            part.extend(value.escape_ascii().map(char::from));
        }
    }
    // The content ends the key, so that it needs no escaping; but a key is text.
    match std::str::from_utf8(content) {
        Ok(text) => {
            part.push_str("\ntext:");
            part.push_str(text);
        }
        Err(_) => {
            part.push_str("\nbytes:");
            part.extend(content.escape_ascii().map(char::from));
        }
    }
    url.with_content(&part)
}

#[cfg(test)]
mod tests {
    use super::super::key::KeyPolicy;
    use super::super::reuse::testing::{Asked, fields};
    use super::*;
    use proptest::prelude::*;

    fn url() -> CacheKey {
        CacheKey::new(&Asked::get(&[]).target, &Fields::new(), &KeyPolicy::default())
    }

    fn of(method: &str, lines: &[(&str, &str)], content: &[u8]) -> CacheKey {
        key(&url(), &Method::from_bytes(method.as_bytes()).unwrap(), &fields(lines), content)
    }

    const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

    #[test]
    fn method_metadata_and_content_all_count() {
        let one = of("QUERY", JSON, b"{}");
        let others = [
            url(),
            of("POST", JSON, b"{}"),
            of("QUERY", &[("content-type", "application/sql")], b"{}"),
            of("QUERY", &[], b"{}"),
            of("QUERY", &[JSON[0], ("content-encoding", "gzip")], b"{}"),
            of("QUERY", &[JSON[0], ("content-language", "de")], b"{}"),
            of("QUERY", &[JSON[0], ("content-range", "bytes 0-1/4")], b"{}"),
            of("QUERY", &[("content-type", "application/json"), ("content-type", "")], b"{}"),
            of("QUERY", JSON, b"{} "),
            of("QUERY", JSON, b""),
            of("QUERY", JSON, b"{}\xff"),
        ];
        for other in &others {
            assert!(one != *other && one.hash() != other.hash(), "{other:?}");
            assert_eq!((other.url_hash(), other.url()), (one.url_hash(), one.url()), "a purge of the URL reaches all");
        }
        assert_eq!(one, of("QUERY", &[JSON[0], ("accept", "x")], b"{}"));
        assert_eq!(one.shown(), url().as_str(), "content is not shown");
    }

    #[test]
    fn only_content_of_a_known_kind_and_size_is_read() {
        let policy = CachePolicy::default();
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<u64>, Option<Unkeyed>);
        let rows: [Row<'_>; 7] = [
            ("QUERY", JSON, None, None),
            ("QUERY", &[JSON[0], ("if-none-match", "\"a\""), ("range", "bytes=0-1")], None, None),
            ("QUERY", &[], Some(2), Some(Unkeyed::NoType)),
            ("QUERY", JSON, Some(64 << 10), None),
            ("QUERY", JSON, Some((64 << 10) + 1), Some(Unkeyed::TooLarge)),
            ("POST", JSON, Some(2), None),
            ("POST", &[JSON[0], ("if-match", "\"a\"")], Some(2), Some(Unkeyed::Condition)),
        ];
        for (method, lines, length, want) in rows {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(unkeyed(&method, &fields(lines), length, &policy), want, "{method} {lines:?} {length:?}");
        }
    }

    proptest! {
        #[test]
        fn different_content_has_different_keys(a in prop::collection::vec(any::<u8>(), 0..24), b in prop::collection::vec(any::<u8>(), 0..24), of_type in "[a-z\n:]{0,4}") {
            prop_assert_eq!(of("QUERY", JSON, &a) == of("QUERY", JSON, &b), a == b);
            // What one says in its content no other can say by a field.
            let typed = of_type.replace('\n', "");
            let inside = [b"\ntext:", &a[..]].concat();
            prop_assert_ne!(of("QUERY", &[("content-type", &typed)], &inside), of("QUERY", &[], &a));
        }

        #[test]
        fn escaped_bytes_and_text_are_told_apart(bytes in prop::collection::vec(any::<u8>(), 1..16)) {
            let escaped = bytes.escape_ascii().to_string();
            if escaped.as_bytes() != bytes {
                prop_assert_ne!(of("QUERY", JSON, &bytes), of("QUERY", JSON, escaped.as_bytes()));
            }
        }
    }
}
