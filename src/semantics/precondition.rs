//! The client's own conditions, evaluated against a stored response (RFC 9110 §13.2).
//!
//! A reverse proxy is the origin server towards its clients (RFC 9110 §3.7). If-Match and If-Unmodified-Since are
//! therefore evaluated here although a cache elsewhere leaves them alone (RFC 9111 §4.3.2): a client that resumes a
//! download with them would otherwise be given bytes of another representation.

use super::fields::Names;
use super::{Fields, Name, Request, Response, StatusCode, date, name};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Deliver.
    Holds,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since in the order of §13.2.2 for GET, HEAD and
/// QUERY (RFC 10008 §2.6) on a response with status 200; anything else holds. The stored Date stands in for a missing Last-Modified in
/// If-Modified-Since (RFC 9111 §4.3.2). `now_wall_ms` is for two-digit years.
pub fn evaluate(request: Request<'_>, response: Response<'_>, now_wall_ms: i64) -> Precondition {
    let selects = matches!(request.method.as_str(), "GET" | "HEAD" | "QUERY");
    if !selects || response.status != StatusCode::OK {
        return Precondition::Holds;
    }
    let (asked, stored) = (request.fields, response.fields);
    if asked.has(name::IF_MATCH) {
        if !any_tag_matches(asked, name::IF_MATCH, stored, strong_match) {
            return Precondition::Failed;
        }
    } else if is_modified_since(asked, name::IF_UNMODIFIED_SINCE, || last_modified(stored, now_wall_ms), now_wall_ms) == Some(true) {
        return Precondition::Failed;
    }
    let unchanged = if asked.has(name::IF_NONE_MATCH) {
        any_tag_matches(asked, name::IF_NONE_MATCH, stored, weak_match)
    } else {
        is_modified_since(asked, name::IF_MODIFIED_SINCE, || modification_date(stored, now_wall_ms), now_wall_ms) == Some(false)
    };
    if unchanged { Precondition::NotModified } else { Precondition::Holds }
}

/// Representation metadata that a 304 leaves out (§15.4.5). Content-Digest (RFC 9530 §2) is of content that it has not.
const METADATA: [Name; 6] =
    [name::CONTENT_DIGEST, name::CONTENT_ENCODING, name::CONTENT_LANGUAGE, name::CONTENT_LENGTH, name::CONTENT_RANGE, name::CONTENT_TYPE];
const NOT_IN_304: Names = Names::of(&METADATA);
/// Where there is an ETag to guide the client's update.
const NOT_BESIDE_ETAG: Names = NOT_IN_304.with(name::LAST_MODIFIED);

/// Room for what a 304 says besides: Age, Cache-Status, Via.
const ADDED_BYTES: usize = 128;
const ADDED_LINES: usize = 4;

/// The fields of a 304 made from a stored response: all but representation metadata other than those of §15.4.5.
///
/// Last-Modified stays only where there is no ETag to guide the client's update.
pub fn not_modified_fields(stored: &Fields) -> Fields {
    let left_out = if stored.has(name::ETAG) { NOT_BESIDE_ETAG } else { NOT_IN_304 };
    stored.copy_without(left_out, ADDED_BYTES, ADDED_LINES)
}

/// Whether two entity tags match weakly (§8.8.3.2). Tags that lack their quotes match only themselves.
pub fn weak_match(a: &[u8], b: &[u8]) -> bool {
    opaque(a) == opaque(b)
}

/// Whether two entity tags match strongly (§8.8.3.2): neither is weak.
pub fn strong_match(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

/// Whether a Last-Modified is a strong validator: the Date that came with it is at least a second later (§8.8.2.2).
pub fn is_strong_date(modified_ms: i64, date_ms: i64) -> bool {
    date_ms >= modified_ms.saturating_add(1000)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether the list in `field` is `*` or holds the tag of the stored response (§13.1.1, §13.1.2).
fn any_tag_matches(asked: &Fields, field: Name, stored: &Fields, same: fn(&[u8], &[u8]) -> bool) -> bool {
    let tag = stored.get(name::ETAG);
    asked.values(field).flat_map(entity_tags).any(|listed| listed == b"*" || tag.is_some_and(|tag| same(listed, tag)))
}

/// The members of a list of entity tags. Unlike in a quoted string, a backslash in a tag escapes nothing (§8.8.3), and
/// a tag may hold commas. A member without quotes goes to the next comma.
fn entity_tags(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = value;
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        if rest.is_empty() {
            return None;
        }
        let prefix = if rest.starts_with(b"W/") { 2 } else { 0 };
        let closing = match rest.get(prefix) {
            Some(b'"') => rest[prefix + 1..].iter().position(|byte| *byte == b'"').map(|at| prefix + 1 + at + 1),
            _ => None,
        };
        let end = closing.or_else(|| rest.iter().position(|byte| *byte == b',')).unwrap_or(rest.len());
        let (member, after) = rest.split_at(end);
        rest = after;
        Some(super::fields::trim(member))
    })
}

/// Whether `modified_ms` is later than the date in `field`; `None` where either is missing, the date is not one, or the
/// field is repeated (§13.1.3, §13.1.4).
fn is_modified_since(asked: &Fields, field: Name, modified_ms: impl FnOnce() -> Option<i64>, now_wall_ms: i64) -> Option<bool> {
    let mut values = asked.values(field);
    let since = date::parse(values.next()?, now_wall_ms)?;
    if values.next().is_some() {
        return None;
    }
    Some(modified_ms()? > since)
}

fn last_modified(stored: &Fields, now_wall_ms: i64) -> Option<i64> {
    date::parse(stored.get(name::LAST_MODIFIED)?, now_wall_ms)
}

/// Last-Modified, or Date where there is none (RFC 9111 §4.3.2); not where it is unreadable.
fn modification_date(stored: &Fields, now_wall_ms: i64) -> Option<i64> {
    if stored.has(name::LAST_MODIFIED) {
        return last_modified(stored, now_wall_ms);
    }
    date::parse(stored.get(name::DATE)?, now_wall_ms)
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{Asked, NOW, fields};
    use super::*;
    use proptest::prelude::*;

    fn answer(asked: &[(&str, &str)], stored: &[(&str, &str)]) -> Precondition {
        let stored = fields(stored);
        evaluate(Asked::get(asked).request(), Response { status: StatusCode::OK, fields: &stored }, NOW.wall_ms)
    }

    #[test]
    fn members_are_read_to_their_closing_quote() {
        let members = |list: &'static str| entity_tags(list.as_bytes()).map(|tag| tag.escape_ascii().to_string()).collect::<Vec<_>>();
        assert_eq!(members(" , \"a\", W/\"b,c\" ,,d ,\"\""), [r#"\"a\""#, r#"W/\"b,c\""#, "d", r#"\"\""#]);
        assert_eq!(members("\"open, \"b\""), [r#"\"open, \""#, r#"b\""#], "a tag may hold spaces and commas here");
        assert_eq!(members("W/, \"a"), ["W/", r#"\"a"#]);
        assert_eq!(members(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn lists_of_tags_are_read_back(tags in prop::collection::vec("(W/)?\"[!#-~]{0,8}\"", 0..6), glue in prop::sample::select(vec![",", ", ", " ,\t", ",,"])) {
            let list = tags.join(glue);
            let read: Vec<_> = entity_tags(list.as_bytes()).map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
            prop_assert_eq!(read, tags);
        }

        #[test]
        fn any_bytes_are_read_without_panic(list in prop::collection::vec(any::<u8>(), 0..40)) {
            let members: Vec<_> = entity_tags(&list).collect();
            prop_assert!(members.iter().map(|member| member.len()).sum::<usize>() <= list.len());
            prop_assert!(members.iter().all(|member| !member.is_empty()));
        }

        #[test]
        fn a_listed_tag_is_not_modified_wherever_it_stands(before in prop::collection::vec("\"[b-z,]{0,5}\"", 0..4), weak in any::<bool>()) {
            let stored = [("etag", if weak { "W/\"a\"" } else { "\"a\"" })];
            let without = before.join(", ");
            let with = format!("{without}, \"a\"");
            prop_assert_eq!(answer(&[("if-none-match", &with)], &stored), Precondition::NotModified);
            prop_assert_eq!(answer(&[("if-none-match", &without)], &stored), Precondition::Holds);
            prop_assert_eq!(answer(&[("if-match", &with)], &stored), if weak { Precondition::Failed } else { Precondition::Holds });
        }

        #[test]
        fn strong_matches_are_weak_matches(a in "(W/)?\"[ab]{0,2}\"", b in "(W/)?\"[ab]{0,2}\"") {
            prop_assert!(!strong_match(a.as_bytes(), b.as_bytes()) || weak_match(a.as_bytes(), b.as_bytes()));
            prop_assert_eq!(weak_match(a.as_bytes(), b.as_bytes()), a.trim_start_matches("W/") == b.trim_start_matches("W/"));
        }
    }
}
