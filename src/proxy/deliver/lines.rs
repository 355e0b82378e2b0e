//! Lines that answers get from us: Age, Cache-Status, Via; edits of the route; what clients are not told.

use crate::config::settings::{FieldEdit, Route};
use crate::listener::ExtraLines;
use crate::proxy::live::Routed;
use crate::proxy::outcome::Outcome;
use crate::semantics::policy::CachePolicy;
use crate::semantics::{Fields, Name, fields, name};
use smallvec::SmallVec;
use std::borrow::Cow;

/// Where lines of an answer go: after a stored block, or into a section of its own.
pub trait Lines {
    fn add(&mut self, name: Name, value: &[u8]);

    /// Adds a value that is written piece by piece.
    fn add_written(&mut self, name: Name, write: impl FnOnce(&mut ExtraLines)) {
        let mut value = ExtraLines::new();
        write(&mut value);
        self.add(name, &value);
    }
}

impl Lines for ExtraLines {
    fn add(&mut self, name: Name, value: &[u8]) {
        self.extend_from_slice(name.as_str().as_bytes());
        self.extend_from_slice(b": ");
        self.extend_from_slice(value);
        self.extend_from_slice(b"\r\n");
    }

    fn add_written(&mut self, name: Name, write: impl FnOnce(&mut ExtraLines)) {
        self.extend_from_slice(name.as_str().as_bytes());
        self.extend_from_slice(b": ");
        write(self);
        self.extend_from_slice(b"\r\n");
    }
}

impl Lines for Fields {
    fn add(&mut self, name: Name, value: &[u8]) {
        let added = self.append(name, value);
        debug_assert!(added.is_ok(), "values of ours are field values");
    }
}

pub fn line(lines: &mut impl Lines, name: Name, value: &[u8]) {
    lines.add(name, value);
}

/// Age, Cache-Status, Vary, Via, X-Cache: what every answer from the origin or a store gets.
pub fn add_lines(lines: &mut impl Lines, routed: &Routed, key: &str, age_ms: Option<u64>, outcome: &Outcome) {
    if let Some(age_ms) = age_ms {
        line(lines, name::AGE, itoa::Buffer::new().format(age_ms / 1000).as_bytes());
    }
    let route = &routed.route;
    if route.cache_status {
        let status = outcome.cache_status(route.show_key.then_some(key));
        lines.add_written(name::CACHE_STATUS, |value| status.write(&routed.node, value));
    }
    if outcome.negotiated {
        line(lines, name::VARY, name::ACCEPT_ENCODING.as_str().as_bytes());
    }
    add_own_lines(lines, routed, outcome);
}

/// Via, X-Cache and Strict-Transport-Security. All that an answer has that we made up: it comes from no cache (RFC 9211 §2), and Proxy-Status says
/// what happened.
pub fn add_own_lines(lines: &mut impl Lines, routed: &Routed, outcome: &Outcome) {
    line(lines, name::VIA, routed.via.as_bytes());
    if routed.route.x_cache {
        line(lines, name::X_CACHE, outcome.x_cache().as_bytes());
    }
    add_hsts(lines, routed, outcome);
}

/// Strict-Transport-Security, which is for answers over https alone (RFC 6797 §7.2).
pub fn add_hsts(lines: &mut impl Lines, routed: &Routed, outcome: &Outcome) {
    if outcome.is_secure
        && let Some(hsts) = &routed.route.hsts
    {
        line(lines, name::STRICT_TRANSPORT_SECURITY, hsts.value.as_bytes());
    }
}

/// The route's changes to response fields.
pub fn edit(fields: &mut Fields, edits: &[FieldEdit]) {
    for edit in edits {
        // The configuration was checked: names are tokens and values field values.
        let _ = match edit {
            FieldEdit::Add { name, value } => fields.push(name, value),
            FieldEdit::Set { name, value } => fields.set(name.as_str(), value),
            FieldEdit::Remove { name } => {
                fields.remove(name.as_str());
                Ok(())
            }
        };
    }
}

/// Takes out of an origin's fields what the route says itself, and keeps browsers from reusing for nobody what was selected by
/// a certificate (RFC 9440 §2.4).
pub fn mend(fields: &mut Cow<'_, Fields>, request: &Fields, route: &Route) {
    if route.hsts.is_some() && fields.has(name::STRICT_TRANSPORT_SECURITY) {
        fields.to_mut().remove(name::STRICT_TRANSPORT_SECURITY);
    }
    if request.has(name::CLIENT_CERT) && fields.has(name::VARY) && selects_by_certificate(fields) {
        let set = fields.to_mut().set(name::VARY, "*");
        debug_assert!(set.is_ok(), "a star is a field value");
    }
}

fn selects_by_certificate(response: &Fields) -> bool {
    let is_of_certificate = |member: &[u8]| {
        let known = [name::CLIENT_CERT, name::CLIENT_CERT_CHAIN];
        known.iter().any(|name| member.eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    response.values(name::VARY).flat_map(fields::list).any(is_of_certificate)
}

/// Removes surrogate keys, but for the fields that the route forwards.
pub fn strip_tags(fields: &mut Fields, forwarded: &[String]) {
    for tag in crate::cache::TAG_FIELDS {
        if fields.has(tag) && !forwarded.iter().any(|name| name.eq_ignore_ascii_case(tag.as_str())) {
            fields.remove(tag);
        }
    }
}

/// Removes what was said to this cache alone (Surrogate-Control, X-Accel-Expires), and understood.
pub fn strip_consumed(fields: &mut Fields, policy: &CachePolicy) {
    let consumed: SmallVec<[Name; 2]> = policy.targeted.consumed(fields).collect();
    for field in consumed {
        fields.remove(field);
    }
}

pub fn has_tags(fields: &Fields) -> bool {
    fields.has(name::CACHE_GROUPS) || crate::cache::TAG_FIELDS.iter().any(|tag| fields.has(*tag))
}
