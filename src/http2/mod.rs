//! What both sides of HTTP/2 need: field sections between our form and hyper's, and bodies as they come.
//!
//! hyper speaks the protocol; what it lets through is checked here only where it does not.

mod body;

pub use body::Incoming;

use crate::body::{BodyError, Chunk};
use crate::http1::response::of_trailer_section;
use crate::semantics::fields::FieldError;
use crate::semantics::{Fields, name};
use http::header::{CONNECTION, COOKIE, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, header};

/// What there is of trailers that may be passed on.
pub fn trailers(section: &HeaderMap) -> Result<Option<Chunk>, BodyError> {
    let fields = of_trailer_section(fields(section).map_err(|_| BodyError::Malformed)?);
    Ok((!fields.is_empty()).then_some(Chunk::Trailers(fields)))
}

/// A section as our fields. Cookie crumbs become one line again (RFC 9113 §8.2.3).
pub fn fields(head: &HeaderMap) -> Result<Fields, FieldError> {
    let bytes = head.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut fields = Fields::with_capacity(bytes, head.len());
    let mut crumbs = head.get_all(COOKIE).iter();
    for (name, value) in head.iter().filter(|(name, _)| *name != COOKIE) {
        fields.push(name.as_str(), value.as_bytes())?;
    }
    if let Some(first) = crumbs.next() {
        let mut cookie = first.as_bytes().to_vec();
        for crumb in crumbs {
            cookie.extend_from_slice(b"; ");
            cookie.extend_from_slice(crumb.as_bytes());
        }
        fields.append(name::COOKIE, cookie)?;
    }
    Ok(fields)
}

/// Appends a line, but for those of a connection (RFC 9113 §8.2.2); false where it fits no section of hyper's.
pub fn append(to: &mut HeaderMap, name: &[u8], value: &[u8]) -> bool {
    let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { return false };
    is_of_connection(&name) || to.try_append(name, value).is_ok()
}

fn is_of_connection(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, UPGRADE, header::TE, header::TRAILER].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_one_line_and_fields_of_a_connection_stay_behind() {
        let mut head = HeaderMap::new();
        for (name, value) in [("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("connection", "close"), ("keep-alive", "1"), ("x", "2")] {
            assert!(append(&mut head, name.as_bytes(), value.as_bytes()));
        }
        assert!(!append(&mut head, b"not a name", b"") && !append(&mut head, b"x", b"\n"));
        assert_eq!(fields(&head).unwrap().wire(), b"x: 1\r\nx: 2\r\ncookie: a=1; b=2\r\n");
    }
}
