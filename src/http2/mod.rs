//! What both sides of HTTP/2 need: field sections between our form and that of the crates which speak the protocol, and bodies.
//!
//! h2 speaks it; what it lets through is checked here only where it does not.

mod body;

pub use body::{poll_next, poll_room};

use crate::body::{BodyError, Chunk};
use crate::http1::response::of_trailer_section;
use crate::semantics::fields::{FieldError, trim};
use crate::semantics::hop::OF_CONNECTION;
use crate::semantics::{Fields, Name, name};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue, InvalidHeaderValue};
use memchr::{memchr, memchr_iter};

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

/// Appends a line, but for those of a connection (RFC 9113 §8.2.2), which do not go on; false where it fits no section.
pub fn append(to: &mut HeaderMap, name: &[u8], value: &[u8]) -> bool {
    append_value(to, name, HeaderValue::from_bytes(value))
}

/// Appends the lines of a block as it goes on an HTTP/1 wire; their values share its memory. False as for [`append`].
pub fn append_block(to: &mut HeaderMap, block: &Bytes) -> bool {
    let mut start = 0;
    memchr_iter(b'\n', block).all(|end| {
        let line = block[start..end].strip_suffix(b"\r").unwrap_or(&block[start..end]);
        start = end + 1;
        let Some(colon) = memchr(b':', line) else { return false };
        append_value(to, &line[..colon], HeaderValue::from_maybe_shared(block.slice_ref(trim(&line[colon + 1..]))))
    })
}

fn append_value(to: &mut HeaderMap, name: &[u8], value: Result<HeaderValue, InvalidHeaderValue>) -> bool {
    let name = match Name::lookup_any_case(name) {
        Some(known) if OF_CONNECTION.contains(known) => return true,
        Some(known) => Ok(HeaderName::from_static(known.as_str())),
        None => HeaderName::from_bytes(name),
    };
    let (Ok(name), Ok(value)) = (name, value) else { return false };
    to.try_append(name, value).is_ok()
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

    #[test]
    fn blocks_are_appended_line_by_line() {
        let block = "etag: \"a\"\r\nx-own: 1\r\nage:5\r\nupgrade: h2c\r\nX-Own: \r\nvia: 2 a:b \r\n".into();
        let mut head = HeaderMap::new();
        assert!(append_block(&mut head, &block));
        assert_eq!(fields(&head).unwrap().wire(), b"etag: \"a\"\r\nx-own: 1\r\nx-own: \r\nage: 5\r\nvia: 2 a:b\r\n");
        for unfit in ["no colon\r\n", "a b: 1\r\n", "x: \u{1}\r\n", ": 1\r\n"] {
            assert!(!append_block(&mut head, &unfit.into()), "{unfit:?}");
        }
    }
}
