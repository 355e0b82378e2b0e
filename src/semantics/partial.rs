//! Partial content of the origin: which may be kept, and what may be put together (RFC 9110 §15.3.7, RFC 9111 §3.3, §3.4).
//!
//! Parts belong together if they share a strong validator (§3.4). Here that is a strong entity tag, with the length of
//! the whole beside it; a Last-Modified is not taken for one, though it can be strong (RFC 9110 §8.8.2.2): it is so by
//! the origin's clock alone. A 206 counts for what was asked for, byte for byte, or for nothing.

use super::{Fields, Response, StatusCode, fields, name, precondition, range};
use std::ops::Range;

/// What all parts of one representation share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// A strong entity tag of visible ASCII.
    tag: Box<str>,
    /// Bytes of the whole.
    length: u64,
}

impl Version {
    /// Of a response to which the whole of `length` bytes belongs; `None` where it has no strong entity tag.
    pub fn of(fields: &Fields, length: u64) -> Option<Self> {
        Some(Self { tag: strong_tag(fields)?.into(), length })
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }

    pub const fn length(&self) -> u64 {
        self.length
    }
}

/// The bytes that a 206 has, of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub range: Range<u64>,
    pub length: u64,
}

impl Part {
    pub fn is_all(&self) -> bool {
        self.range == (0..self.length)
    }
}

/// What the origin's answer to a request for a further part says of the version that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// The part, of the same version.
    Same,
    /// There is another version by now, or none.
    Other,
    /// The same version, but not in parts as they were asked for.
    NotInParts,
    /// It could not tell.
    Failed,
}

/// The part that a response has, if it is the one that was asked for, or what there is of it where the whole ends
/// earlier. `None` where Content-Range says something else, is missing, as it is in multipart/byteranges, is repeated, or
/// leaves the length open, and where Content-Length disagrees with it.
pub fn part(response: Response<'_>, asked: &Range<u64>) -> Option<Part> {
    if response.status != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let mut values = response.fields.values(name::CONTENT_RANGE);
    let (value, repeated) = (values.next()?, values.next().is_some());
    let (range, length) = range::told(value)?;
    let length = length.filter(|_| !repeated)?;
    let fits = range.start == asked.start && range.end == asked.end.min(length);
    let declared = response.fields.text(name::CONTENT_LENGTH);
    let agrees = declared.is_none_or(|text| text.parse() == Ok(range.end - range.start));
    (fits && agrees).then_some(Part { range, length })
}

/// What a response to a request for `asked` under If-Range with the tag of `version` came to.
pub fn follows(version: &Version, response: Response<'_>, asked: &Range<u64>) -> Following {
    let tag = strong_tag(response.fields);
    let same_tag = tag.is_some_and(|tag| precondition::strong_match(tag.as_bytes(), version.tag.as_bytes()));
    match response.status.as_u16() {
        206 => match part(response, asked) {
            Some(part) if same_tag && part.length == version.length => Following::Same,
            None if same_tag => Following::NotInParts,
            // Without a tag there is nothing to hold on to (§3.4), whatever it is.
            _ => Following::Other,
        },
        200 if same_tag => Following::NotInParts,
        401 | 403 | 407 | 408 | 421 | 425 | 429 | 500.. => Following::Failed,
        _ => Following::Other,
    }
}

/// Whether a 200 says that the origin answers ranges of it (RFC 9110 §14.3).
pub fn takes_ranges(fields: &Fields) -> bool {
    fields.values(name::ACCEPT_RANGES).flat_map(fields::list).any(|unit| unit.eq_ignore_ascii_case(b"bytes"))
}

/// The only entity tag, if it is strong, well-formed and plain: in quotes, of visible ASCII.
fn strong_tag(fields: &Fields) -> Option<&str> {
    let mut values = fields.values(name::ETAG);
    let (tag, repeated) = (values.next()?, values.next().is_some());
    let opaque = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let plain = opaque.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"');
    std::str::from_utf8(tag).ok().filter(|_| plain && !repeated)
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::fields;
    use super::*;
    use proptest::prelude::*;

    fn read(lines: &[(&str, &str)], asked: Range<u64>) -> Option<Part> {
        part(Response { status: StatusCode::PARTIAL_CONTENT, fields: &fields(lines) }, &asked)
    }

    #[test]
    fn a_part_is_what_was_asked_for_or_nothing() {
        for (value, is) in [
            ("bytes 10-19/100", true),
            ("bytes 10-14/15", true),
            ("bytes 10-14/100", false),
            ("bytes 9-19/100", false),
            ("bytes 10-20/100", false),
            ("bytes 10-19/*", false),
            ("bytes 10-19/19", false),
            ("bytes */100", false),
            ("items 10-19/100", false),
            ("10-19/100", false),
        ] {
            let part = read(&[("content-range", value)], 10..20);
            assert_eq!(part.is_some(), is, "{value}: {part:?}");
        }
    }

    #[test]
    fn a_content_length_or_a_second_content_range_that_disagrees_spoils_it() {
        let range = ("content-range", "bytes 10-19/100");
        assert!(read(&[range, ("content-length", "10")], 10..20).is_some());
        assert_eq!(read(&[range, ("content-length", "9")], 10..20), None);
        assert_eq!(read(&[range, range], 10..20), None);
        assert_eq!(read(&[("content-type", "multipart/byteranges; boundary=a")], 10..20), None);
    }

    #[test]
    fn only_strong_plain_tags_name_a_version() {
        for (tag, is) in [("\"a\"", true), ("\"\"", true), ("W/\"a\"", false), ("a", false), ("\"a", false), ("\"a\"b\"", false)] {
            assert_eq!(Version::of(&fields(&[("etag", tag)]), 1).is_some(), is, "{tag}");
        }
        assert_eq!(Version::of(&fields(&[("etag", "\"a\""), ("etag", "\"a\"")]), 1), None);
        assert_eq!(Version::of(&fields(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]), 1), None);
    }

    #[test]
    fn what_follows_is_of_the_same_version_or_not_used() {
        let version = Version::of(&fields(&[("etag", "\"a\"")]), 100).unwrap();
        const SAME: (&str, &str) = ("etag", "\"a\"");
        const OTHER: (&str, &str) = ("etag", "\"b\"");
        type Lines = &'static [(&'static str, &'static str)];
        let rows: [(u16, Lines, Following); 14] = [
            (206, &[SAME, ("content-range", "bytes 10-19/100")], Following::Same),
            (206, &[OTHER, ("content-range", "bytes 10-19/100")], Following::Other),
            (206, &[SAME, ("content-range", "bytes 10-19/101")], Following::Other),
            (206, &[("content-range", "bytes 10-19/100")], Following::Other),
            (206, &[("etag", "W/\"a\""), ("content-range", "bytes 10-19/100")], Following::Other),
            (206, &[SAME, ("content-range", "bytes 11-19/100")], Following::NotInParts),
            (206, &[SAME], Following::NotInParts),
            (200, &[SAME], Following::NotInParts),
            (200, &[OTHER], Following::Other),
            (404, &[], Following::Other),
            (412, &[], Following::Other),
            (416, &[("content-range", "bytes */5")], Following::Other),
            (403, &[], Following::Failed),
            (503, &[], Following::Failed),
        ];
        for (status, lines, want) in rows {
            let (status, lines) = (StatusCode::from_u16(status).unwrap(), fields(lines));
            assert_eq!(follows(&version, Response { status, fields: &lines }, &(10..20)), want, "{status} {lines:?}");
        }
    }

    #[test]
    fn accept_ranges_is_a_list_of_units() {
        for (value, takes) in [("bytes", true), ("Bytes", true), ("lines, bytes", true), ("none", false), ("", false)] {
            assert_eq!(takes_ranges(&fields(&[("accept-ranges", value)])), takes, "{value}");
        }
        assert!(!takes_ranges(&Fields::new()));
    }

    proptest! {
        #[test]
        fn whatever_came_a_part_lies_where_it_was_asked_for(value in "(bytes )?[0-9]{0,20}-?[0-9]{0,20}/?[0-9*]{0,20}", start in 0u64..50, span in 1u64..50) {
            let asked = start..start + span;
            if let Some(part) = read(&[("content-range", &value)], asked.clone()) {
                prop_assert!(part.range.start == asked.start && part.range.end <= asked.end);
                prop_assert!(part.range.start < part.range.end && part.range.end <= part.length);
            }
        }

        #[test]
        fn what_is_told_is_read(start in 0u64..1000, span in 1u64..1000, beyond in 0u64..1000) {
            let (range, length) = (start..start + span, start + span + beyond);
            let told = range::content_range(&range, length);
            let part = read(&[("content-range", &told)], range.clone()).unwrap();
            prop_assert_eq!(part.is_all(), start == 0 && beyond == 0);
            prop_assert_eq!(part, Part { range, length });
        }
    }
}
