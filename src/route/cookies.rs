//! Cookies of requests (RFC 6265 §4.2): found and taken out by name.

use crate::semantics::fields::trim;
use crate::semantics::{Fields, name};

/// Name and whole pair (`name=value`) of every cookie of a Cookie line.
pub fn cookie_pairs(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|byte| *byte == b';').map(trim).filter(|pair| !pair.is_empty()).map(|pair| {
        let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        (trim(&pair[..end]), pair)
    })
}

/// Whether one of the names is meant; a trailing `*` matches a prefix.
fn is_named(cookie: &[u8], names: &[String]) -> bool {
    names.iter().any(|name| match name.strip_suffix('*') {
        Some(prefix) => cookie.starts_with(prefix.as_bytes()),
        None => cookie == name.as_bytes(),
    })
}

/// Whether a request has one of these cookies.
pub(super) fn any(fields: &Fields, names: &[String]) -> bool {
    fields.has(name::COOKIE) && fields.values(name::COOKIE).any(|line| cookie_pairs(line).any(|(cookie, _)| is_named(cookie, names)))
}

/// Takes the named cookies out; the others keep their order and stand in one line. Says whether any went.
pub fn strip_cookies(fields: &mut Fields, names: &[String]) -> bool {
    if names.is_empty() || !any(fields, names) {
        return false;
    }
    let mut kept = Vec::new();
    for (cookie, pair) in fields.values(name::COOKIE).flat_map(cookie_pairs) {
        if !is_named(cookie, names) {
            if !kept.is_empty() {
                kept.extend_from_slice(b"; ");
            }
            kept.extend_from_slice(pair);
        }
    }
    fields.remove(name::COOKIE);
    if !kept.is_empty() {
        // Its bytes come from lines that were taken as values before.
        let taken = fields.append(name::COOKIE, &kept);
        debug_assert!(taken.is_ok());
    }
    true
}
