//! Revalidation: the conditional request to the origin, and updating the stored response (RFC 9111 §4.3).
//!
//! What [`update`] returns is a response like any other: whether it may (still) be stored and what of it is kept is
//! asked of [`super::storage`] again.

use super::cache_control::ResponseDirectives;
use super::freshness::{self, Facts};
use super::{Fields, Name, Response, StatusCode, date, hop, name, precondition};

/// The fields by which a client makes a request conditional or partial (RFC 9110 §13.1, §14.2).
const CONDITIONS: [Name; 6] =
    [name::IF_MATCH, name::IF_NONE_MATCH, name::IF_MODIFIED_SINCE, name::IF_UNMODIFIED_SINCE, name::IF_RANGE, name::RANGE];

/// Fields of a 304 that never replace stored ones (§3.1, §3.2): those specific to a proxy, the length of a body that is
/// not there, what is processed with a body (Content-Range), and Age, which is kept in the facts.
const NEVER_UPDATED: [Name; 6] = [
    name::CONTENT_LENGTH,
    name::CONTENT_RANGE,
    name::AGE,
    name::PROXY_AUTHENTICATE,
    name::PROXY_AUTHENTICATION_INFO,
    name::PROXY_AUTHORIZATION,
];

/// Changes of these make derived forms void.
const REPRESENTATION: [Name; 3] = [name::CONTENT_TYPE, name::CONTENT_ENCODING, name::ETAG];

/// Removes the client's conditions and range from a request that others may join or that we revalidate with.
///
/// They are evaluated for each client on the answer ([`precondition::evaluate`], [`super::range::select`]).
pub fn strip_conditions(fields: &mut Fields) {
    for condition in CONDITIONS {
        fields.remove(condition);
    }
}

/// Adds If-None-Match and If-Modified-Since for this stored response; false if it has no validator.
///
/// Both are sent, for the sake of old intermediaries (§4.3.1). The entity tag goes as it came, weak or malformed too;
/// Last-Modified byte for byte, since some origins compare it so, and only if it is a date.
pub fn add_conditions(fields: &mut Fields, stored: Response<'_>, facts: &Facts) -> bool {
    let by_tag = freshness::etag(stored.fields).is_some_and(|tag| fields.set(name::IF_NONE_MATCH, tag).is_ok());
    let modified = facts.last_modified_ms().and(stored.fields.get(name::LAST_MODIFIED));
    let by_date = modified.is_some_and(|date| fields.set(name::IF_MODIFIED_SINCE, date).is_ok());
    by_tag || by_date
}

/// Whether a 304 with these fields may update the response with these stored (§4.3.4): its validators do not contradict.
///
/// Strong validators decide where the 304 has any: one of them must be the stored one. A Last-Modified is strong if the
/// stored Date is at least a second later (RFC 9110 §8.8.2.2). Without strong ones a weak one must correspond. A 304
/// without validators can only mean the one response that the request named (§4.3.3).
pub fn selects(not_modified: &Fields, stored: &Fields, facts: &Facts) -> bool {
    let candidates = candidates(not_modified, stored, facts);
    let candidates = || candidates.iter().flatten();
    if candidates().any(|validator| validator.is_strong) {
        candidates().any(|validator| validator.is_strong && validator.same_strongly)
    } else {
        candidates().next().is_none() || candidates().any(|validator| validator.same_weakly)
    }
}

/// Whether a 304 that updates one response that its request could have chosen updates this one too, which could have
/// been chosen as well: it has one of the 304's strong validators (§4.3.4).
pub fn also_selects(not_modified: &Fields, stored: &Fields, facts: &Facts) -> bool {
    candidates(not_modified, stored, facts).iter().flatten().any(|validator| validator.is_strong && validator.same_strongly)
}

/// The validators of a 304, each compared with the stored one of its kind.
fn candidates(not_modified: &Fields, stored: &Fields, facts: &Facts) -> [Option<Candidate>; 2] {
    let old = freshness::etag(stored);
    let tag = not_modified.get(name::ETAG).map(|tag| Candidate {
        is_strong: !tag.starts_with(b"W/"),
        same_strongly: old.is_some_and(|old| precondition::strong_match(old, tag)),
        same_weakly: old.is_some_and(|old| precondition::weak_match(old, tag)),
    });
    let modified = not_modified.get(name::LAST_MODIFIED).and_then(|value| date::parse(value, facts.response_time.wall_ms));
    let modified = modified.map(|modified| {
        let same = facts.last_modified_ms() == Some(modified);
        let is_strong = precondition::is_strong_date(modified, facts.date_ms);
        Candidate { is_strong, same_strongly: same && is_strong, same_weakly: same }
    });
    [tag, modified]
}

/// A validator of a 304 compared with the stored one of its kind.
#[derive(Clone, Copy)]
struct Candidate {
    is_strong: bool,
    same_strongly: bool,
    same_weakly: bool,
}

/// The stored fields updated by those of a 304, or of a 200 to HEAD (§3.2): all of its fields replace, except
/// Content-Length, Content-Range, those of a connection and Age. What it leaves out stays.
///
/// But for Date: a message without one is dated by its receipt (RFC 9110 §6.6.1), so that freshness restarts from the
/// validation. The stored Date is dropped then, and whoever stores the result dates it.
pub fn update(stored: &Fields, not_modified: &Fields) -> Fields {
    let mut newer = not_modified.clone();
    hop::strip(&mut newer);
    for field in NEVER_UPDATED {
        newer.remove(field);
    }
    let mut updated = stored.clone();
    updated.remove(name::DATE);
    updated.retain(|_, field, _| !newer.iter().any(|(replaced, _)| replaced.as_bytes() == field));
    for (field, value) in newer.iter() {
        // Both sections fit below the bounds on heads, and their lines were valid: nothing is refused here.
        let taken = updated.push(field, value);
        debug_assert!(taken.is_ok(), "{field}");
    }
    updated
}

/// Whether a 200 to HEAD fits the stored GET response, so that it may freshen it (§4.3.5).
///
/// Validators that the HEAD response has must equal the stored ones, its Content-Length the `length` of the stored
/// body; a validator that only it has does not. Where it does not fit, the stored response is to be taken as stale.
pub fn head_fits(head: Response<'_>, stored: Response<'_>, length: u64) -> bool {
    let same = |field| head.fields.get(field).is_none_or(|value| stored.fields.get(field) == Some(value));
    let same_tag = head.fields.get(name::ETAG).is_none_or(|tag| freshness::etag(stored.fields) == Some(tag));
    let both_ok = head.status == StatusCode::OK && stored.status == StatusCode::OK;
    let same_length = head.fields.text(name::CONTENT_LENGTH).is_none_or(|text| text.parse() == Ok(length));
    both_ok && same_tag && same(name::LAST_MODIFIED) && same_length
}

/// Whether a change of fields makes derived forms (codings) void: another type, coding or entity tag, or a no-transform
/// that was not there.
pub fn changes_representation(before: &Fields, after: &Fields) -> bool {
    let no_transform = |fields| ResponseDirectives::parse(fields).no_transform;
    REPRESENTATION.iter().any(|field| before.joined(*field) != after.joined(*field)) || (no_transform(after) && !no_transform(before))
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{facts, fields};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_or_unwritable_entity_tag_is_no_validator() {
        for tag in [&b""[..], b"\"a\r\nx: y\""] {
            let mut stored = Fields::new();
            let _ = stored.push("etag", tag);
            let mut request = Fields::new();
            assert!(!add_conditions(&mut request, Response { status: StatusCode::OK, fields: &stored }, &facts("")));
            assert!(request.is_empty());
        }
    }

    fn sections() -> impl Strategy<Value = Fields> {
        let names = prop::sample::select(vec![
            "a",
            "b",
            "cache-control",
            "etag",
            "date",
            "age",
            "content-length",
            "content-range",
            "connection",
            "x-hop",
        ]);
        prop::collection::vec((names, "[a-z]{0,3}"), 0..8).prop_map(|lines| {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            fields(&lines)
        })
    }

    proptest! {
        #[test]
        fn each_field_of_an_update_is_wholly_old_or_wholly_new(stored in sections(), newer in sections()) {
            let updated = update(&stored, &newer);
            for (field, _) in stored.iter().chain(newer.iter()).chain(updated.iter()) {
                let values = |fields: &Fields| fields.values(field).map(<[u8]>::to_vec).collect::<Vec<_>>();
                let result = values(&updated);
                let dropped_date = field == "date" && result.is_empty();
                prop_assert!(result == values(&stored) || result == values(&newer) || dropped_date, "{field}");
                if matches!(field, "content-length" | "content-range" | "age") {
                    prop_assert_eq!(result, values(&stored));
                }
            }
        }

        #[test]
        fn the_same_update_twice_is_the_same(stored in sections(), newer in sections()) {
            let once = update(&stored, &newer);
            prop_assert_eq!(update(&once, &newer), once);
        }
    }
}
