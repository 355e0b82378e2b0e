//! Byte ranges (RFC 9110 §14) from complete representations.

use super::{Method, Request, Response, StatusCode, date, fields, name, precondition};
use std::ops::Range;

/// What a Range field asks of a representation of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// No Range, another unit, malformed, If-Range does not match, or not a GET: the whole.
    Whole,
    /// One range, half open.
    One(Range<u64>),
    /// Several ranges, coalesced and in order of asking.
    Many(Vec<Range<u64>>),
    /// More ranges than are served: the whole (§14.2 allows to ignore them; §17.15 why).
    TooMany,
    /// 416.
    Unsatisfiable,
}

/// Bytes between two ranges for which they are sent as one: a further part of a multipart answer costs more (§15.3.7.2).
pub const GAP_BYTES: u64 = 80;

/// Bytes of the longest representation of which parts are sent: the lengths of a few parts and what stands between them
/// add up within 64 bits, whatever an origin says.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// Evaluates Range and If-Range for a 200 response with `length` bytes; at most `parts_max` ranges are looked at.
///
/// An empty representation is always sent whole, as §14.2 allows: no Content-Range can describe a part of it.
pub fn select(request: Request<'_>, response: Response<'_>, length: u64, parts_max: usize, now_wall_ms: i64) -> Selection {
    if response.status != StatusCode::OK || length == 0 || length > LENGTH_MAX {
        return Selection::Whole;
    }
    let Some(specs) = requested(request) else { return Selection::Whole };
    if !if_range_holds(request, response, now_wall_ms) {
        return Selection::Whole;
    }
    if specs.len() > parts_max {
        return Selection::TooMany;
    }
    let mut ranges = coalesce(specs.into_iter().filter_map(|spec| spec.resolve(length)));
    match ranges.len() {
        0 => Selection::Unsatisfiable,
        1 => Selection::One(ranges.remove(0)),
        _ => Selection::Many(ranges),
    }
}

/// The first byte that a Range field asks for where that is known without the length: to decide whether waiting pays.
///
/// `None` also for a suffix anywhere in the set. If-Range is not looked at.
pub fn first_byte(request: Request<'_>) -> Option<u64> {
    requested(request)?.into_iter().map(Spec::first).min().flatten()
}

/// Whether the request asks for ranges that are not to be ignored. If-Range is not looked at.
pub fn is_asked(request: Request<'_>) -> bool {
    requested(request).is_some()
}

/// Whether a Content-Range says: from byte `first` up to `end`, or to the last byte where there is no end (§14.4).
pub fn is_rest(content_range: &[u8], first: u64, end: Option<u64>) -> bool {
    let Some((range, length)) = told(content_range) else { return false };
    range.start == first && Some(range.end) == end.or(length)
}

/// The bytes of a Content-Range, and the length of the whole unless it is `*` (§14.4). Never empty, never past the end.
pub fn told(content_range: &[u8]) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = content_range.split_at_checked(6)?;
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    let Spec::Bounded(first, last) = Spec::parse(&rest[..slash])? else { return None };
    let length = match &rest[slash + 1..] {
        b"*" => None,
        digits => Some(number(digits)?),
    };
    let range = first..last.checked_add(1)?;
    let fits = length.is_none_or(|length| range.end <= length);
    (unit.eq_ignore_ascii_case(b"bytes ") && fits).then_some((range, length))
}

/// `bytes 0-4/10`.
pub fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1))
}

/// `bytes */10`, for a 416.
pub fn unsatisfied_range(length: u64) -> String {
    format!("bytes */{length}")
}

/// A range-spec of §14.1.1 in bytes. Numbers saturate (§14.1.2): no representation reaches that far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// From the first to the last byte, inclusive.
    Bounded(u64, u64),
    From(u64),
    /// The last bytes, this many.
    Suffix(u64),
}

impl Spec {
    /// Not for other-range, which bytes do not have, nor for a last position before the first.
    fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (&text[..dash], &text[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, _) => Some(Self::Suffix(number(last)?)),
            (false, true) => Some(Self::From(number(first)?)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Bounded(first, last))
            }
        }
    }

    /// The bytes of a representation of this length, or `None` where not satisfiable. Never empty, never past the end.
    fn resolve(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Bounded(first, last) => first..last.saturating_add(1).min(length),
            Self::From(first) => first..length,
            Self::Suffix(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }

    fn first(self) -> Option<u64> {
        match self {
            Self::Bounded(first, _) | Self::From(first) => Some(first),
            Self::Suffix(_) => None,
        }
    }
}

/// The range set of a GET with one well-formed Range field in bytes; `None` where it is to be ignored (§14.2).
fn requested(request: Request<'_>) -> Option<Vec<Spec>> {
    if *request.method != Method::GET {
        return None;
    }
    let mut values = request.fields.values(name::RANGE);
    let (value, repeated) = (values.next()?, values.next().is_some());
    let equals = value.iter().position(|byte| *byte == b'=')?;
    if repeated || !value[..equals].eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for member in value[equals + 1..].split(|byte| *byte == b',').map(fields::trim).filter(|member| !member.is_empty()) {
        specs.push(Spec::parse(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

/// 1*DIGIT, saturating.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

/// §13.1.5. True where there is no If-Range. A date has to be the Last-Modified, and that a strong validator.
fn if_range_holds(request: Request<'_>, response: Response<'_>, now_wall_ms: i64) -> bool {
    let mut values = request.fields.values(name::IF_RANGE);
    let Some(condition) = values.next() else { return true };
    if values.next().is_some() {
        return false;
    }
    // A quote within the first three bytes tells a tag from a date.
    if condition.iter().take(3).any(|byte| *byte == b'"') {
        return response.fields.get(name::ETAG).is_some_and(|tag| precondition::strong_match(condition, tag));
    }
    let date_in = |field| response.fields.get(field).and_then(|value| date::parse(value, now_wall_ms));
    match (date::parse(condition, now_wall_ms), date_in(name::LAST_MODIFIED), date_in(name::DATE)) {
        (Some(condition), Some(modified), Some(date)) => condition == modified && precondition::is_strong_date(modified, date),
        _ => false,
    }
}

/// Merges ranges that overlap, touch or lie closer than [`GAP_BYTES`] (§15.3.7.2); each merged one stands where the first
/// of its parts was asked for.
fn coalesce(asked: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for mut range in asked {
        let mut at = ranges.len();
        // From the back, so that `at` ends up at the first that is touched. There are few: `parts_max` bounds them. Kept
        // ranges are further apart than the gap, so what one merges with does not depend on the order.
        for index in (0..ranges.len()).rev() {
            let other = &ranges[index];
            if range.start < other.end.saturating_add(GAP_BYTES) && other.start < range.end.saturating_add(GAP_BYTES) {
                range = range.start.min(other.start)..range.end.max(other.end);
                ranges.remove(index);
                at = index;
            }
        }
        ranges.insert(at, range);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{Asked, NOW, fields};
    use super::*;
    use proptest::prelude::*;

    fn selected(range: &str, length: u64) -> Selection {
        let (asked, stored) = (Asked::get(&[("range", range)]), fields(&[]));
        select(asked.request(), Response { status: StatusCode::OK, fields: &stored }, length, PARTS_MAX, NOW.wall_ms)
    }

    const PARTS_MAX: usize = 16;

    fn ranges(selection: Selection, length: u64) -> Vec<Range<u64>> {
        match selection {
            Selection::Whole | Selection::TooMany => std::iter::once(0..length).collect(),
            Selection::One(range) => std::iter::once(range).collect(),
            Selection::Many(ranges) => ranges,
            Selection::Unsatisfiable => Vec::new(),
        }
    }

    #[test]
    fn the_rest_of_a_body_is_told_from_other_parts() {
        for (value, first, end, is) in [
            ("bytes 5-9/10", 5, None, true),
            ("Bytes 5-9/10", 5, None, true),
            ("bytes 5-8/10", 5, None, false),
            ("bytes 4-9/10", 5, None, false),
            ("bytes 5-9/*", 5, None, false),
            ("bytes 5-9/*", 5, Some(10), true),
            ("bytes 5-7/10", 5, Some(8), true),
            ("bytes 5-9/10", 5, Some(8), false),
            ("bytes 5-9/9", 5, Some(10), false),
            ("bytes */10", 5, None, false),
            ("bytes 5-/10", 5, None, false),
            ("items 5-9/10", 5, None, false),
            ("bytes=5-9/10", 5, None, false),
            ("bytes", 5, None, false),
        ] {
            assert_eq!(is_rest(value.as_bytes(), first, end), is, "{value}");
        }
    }

    #[test]
    fn merged_ranges_stand_where_the_first_was_asked_for() {
        assert_eq!(selected("bytes=500-599,0-99,600-699", 1000), Selection::Many(vec![500..700, 0..100]));
        assert_eq!(selected("bytes=0-99,500-599,50-549", 1000), Selection::One(0..600));
        assert_eq!(selected("bytes=800-899,0-99,500-599,50-549", 1000), Selection::Many(vec![800..900, 0..600]));
        assert_eq!(selected("bytes=3-4,3-4,3-4", 100), Selection::One(3..5));
    }

    #[test]
    fn a_gap_that_is_cheaper_to_send_than_a_further_part_is_sent() {
        assert_eq!(selected("bytes=0-9,89-99", 1000), Selection::One(0..100));
        assert_eq!(selected("bytes=0-9,90-99", 1000), Selection::Many(vec![0..10, 90..100]));
        assert_eq!(selected("bytes=160-169,0-9,80-89", 1000), Selection::One(0..170), "descending ones, too");
    }

    #[test]
    fn a_field_that_is_repeated_or_asks_for_too_much_is_ignored() {
        let many = |count: u64| (0..count).map(|n| format!("{}-{}", n * 100, n * 100)).collect::<Vec<_>>().join(",");
        assert!(matches!(selected(&format!("bytes={}", many(16)), 2000), Selection::Many(all) if all.len() == PARTS_MAX));
        assert_eq!(selected(&format!("bytes={}", many(17)), 2000), Selection::TooMany);
        let twice = Asked::get(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]);
        let stored = fields(&[]);
        assert_eq!(select(twice.request(), Response { status: StatusCode::OK, fields: &stored }, 10, 16, NOW.wall_ms), Selection::Whole);
    }

    #[test]
    fn of_what_nothing_is_as_long_as_no_parts_are_sent() {
        let range = "bytes=0-9223372036854775000,9223372036854775100-";
        assert!(matches!(selected(range, LENGTH_MAX), Selection::Many(_)));
        assert_eq!(selected(range, LENGTH_MAX + 1), Selection::Whole);
        assert_eq!(selected(range, u64::MAX), Selection::Whole);
    }

    #[test]
    fn the_first_byte_is_known_unless_a_suffix_is_asked_for() {
        let first = |range| first_byte(Asked::get(&[("range", range)]).request());
        assert_eq!(first("bytes=7-"), Some(7));
        assert_eq!(first("bytes=70-80, 5-6"), Some(5));
        assert_eq!(first("bytes=-5"), None);
        assert_eq!(first("bytes=7-8,-5"), None);
        assert_eq!(first("lines=7-8"), None);
        assert_eq!(first_byte(Asked::get(&[]).request()), None);
    }

    #[test]
    fn content_range_has_the_last_byte_inclusive() {
        assert_eq!(content_range(&(0..5), 10), "bytes 0-4/10");
        assert_eq!(unsatisfied_range(10), "bytes */10");
    }

    fn specs() -> impl Strategy<Value = Vec<String>> {
        let one = prop_oneof![
            (0u64..1200, 0u64..60).prop_map(|(first, more)| format!("{first}-{}", first + more)),
            (0u64..1200).prop_map(|first| format!("{first}-")),
            (0u64..1200).prop_map(|count| format!("-{count}")),
        ];
        prop::collection::vec(one, 1..=PARTS_MAX)
    }

    proptest! {
        #[test]
        fn what_is_described_is_understood(first in 0_u64..1000, span in 1_u64..1000, beyond in 0_u64..3) {
            let (end, length) = (first + span, first + span + beyond);
            let value = content_range(&(first..end), length);
            prop_assert!(is_rest(value.as_bytes(), first, Some(end)));
            prop_assert_eq!(is_rest(value.as_bytes(), first, None), beyond == 0);
        }

        #[test]
        fn no_content_range_is_too_odd(value in proptest::collection::vec(any::<u8>(), 0..40), first: u64, end: Option<u64>) {
            let rest = is_rest(&value, first, end);
            prop_assert!(!rest || end.is_none_or(|end| first < end));
            let odd = [b"bytes ", &value[..]].concat();
            let rest = is_rest(&odd, first, end);
            prop_assert!(!rest || end.is_none_or(|end| first < end));
        }

        #[test]
        fn any_bytes_are_read_without_panic(value in "[ -~]{0,40}", length in any::<u64>()) {
            for range in ranges(selected(&value, length), length) {
                prop_assert!(range.start <= range.end && range.end <= length);
            }
        }

        #[test]
        fn hostile_numbers_stay_within_the_length(
            range in "bytes=([0-9]{0,25}-[0-9]{0,25},){0,3}[0-9]{0,25}-[0-9]{0,25}", length in any::<u64>(),
        ) {
            let asked = Asked::get(&[("range", &range)]);
            let selection = selected(&range, length);
            if !matches!(selection, Selection::Whole | Selection::TooMany) {
                for range in ranges(selection, length) {
                    prop_assert!(range.start < range.end && range.end <= length);
                    prop_assert!(first_byte(asked.request()).is_none_or(|first| first <= range.start));
                }
            }
        }

        #[test]
        fn the_bytes_sent_are_those_asked_for_and_small_gaps_once(specs in specs(), length in 1u64..1500) {
            let selection = selected(&format!("bytes={}", specs.join(", ")), length);
            let mut sent = vec![0u32; length as usize];
            for range in ranges(selection, length) {
                sent[range.start as usize..range.end as usize].iter_mut().for_each(|byte| *byte += 1);
            }
            let mut asked = vec![0u32; length as usize];
            for spec in &specs {
                if let Selection::One(range) = selected(&format!("bytes={spec}"), length) {
                    asked[range.start as usize..range.end as usize].fill(1);
                }
            }
            prop_assert!(sent.iter().all(|times| *times <= 1));
            prop_assert!(asked.iter().zip(&sent).all(|(asked, sent)| asked <= sent));
            // What was not asked for stands between bytes that were, in a run shorter than the gap.
            for run in sent.iter().zip(&asked).collect::<Vec<_>>().chunk_by(|a, b| a == b).filter(|run| run[0] == (&1, &0)) {
                prop_assert!((run.len() as u64) < GAP_BYTES, "{}", run.len());
            }
            let edges = |bytes: &[u32]| (bytes.iter().position(|times| *times > 0), bytes.iter().rposition(|times| *times > 0));
            prop_assert_eq!(edges(&sent), edges(&asked));
        }

        #[test]
        fn parts_in_turn_make_the_whole(cuts in prop::collection::btree_set(1u64..200, 0..15), body in prop::collection::vec(any::<u8>(), 200)) {
            let edges: Vec<u64> = [0].into_iter().chain(cuts).chain([200]).collect();
            let mut whole = Vec::new();
            for pair in edges.windows(2) {
                let Selection::One(range) = selected(&format!("bytes={}-{}", pair[0], pair[1] - 1), 200) else { panic!("{pair:?}") };
                prop_assert_eq!(content_range(&range, 200), format!("bytes {}-{}/200", pair[0], pair[1] - 1));
                whole.extend_from_slice(&body[range.start as usize..range.end as usize]);
            }
            prop_assert_eq!(whole, body);
        }

        #[test]
        fn merged_ranges_neither_overlap_nor_touch(specs in specs(), length in 1u64..1500) {
            if let Selection::Many(mut ranges) = selected(&format!("bytes={}", specs.join(",")), length) {
                prop_assert!(ranges.len() > 1);
                ranges.sort_by_key(|range| range.start);
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end + GAP_BYTES <= pair[1].start), "{:?}", ranges);
            }
        }
    }
}
