//! Revalidation: the conditional request to the origin, and updating the stored response (RFC 9111 §4.3).

use super::freshness::Facts;
use super::{Fields, Response};

/// Removes the client's conditions and range from a request that others may join or that we revalidate with.
pub fn strip_conditions(fields: &mut Fields) {
    let _ = fields;
    todo!()
}

/// Adds If-None-Match and If-Modified-Since for this stored response; false if it has no validator.
pub fn add_conditions(fields: &mut Fields, stored: Response<'_>, facts: &Facts) -> bool {
    let _ = (fields, stored, facts);
    todo!()
}

/// Whether a 304 with these fields may update this stored response (§4.3.4): its validators do not contradict.
pub fn selects(not_modified: &Fields, stored: &Facts) -> bool {
    let _ = (not_modified, stored);
    todo!()
}

/// The stored fields updated by a 304's (§3.2): all of its fields replace, except Content-Length, those of a
/// connection and Age. What the 304 leaves out stays.
pub fn update(stored: &Fields, not_modified: &Fields) -> Fields {
    let _ = (stored, not_modified);
    todo!()
}

/// Whether a 200 to HEAD fits the stored GET response, so that it may freshen it (§4.3.5).
pub fn head_fits(head: Response<'_>, stored: Response<'_>, stored_facts: &Facts) -> bool {
    let _ = (head, stored, stored_facts);
    todo!()
}

/// Whether a change of fields makes derived forms (codings) void.
pub fn changes_representation(before: &Fields, after: &Fields) -> bool {
    let _ = (before, after);
    todo!()
}
