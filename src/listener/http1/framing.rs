//! Where a request ends and what it asks of the connection (RFC 9112 §6, §7, §9.3). Pure.

use super::bad;
use crate::config::settings::Limits;
use crate::listener::{Refusal, RequestHead};
use crate::semantics::fields::{is_token_byte, list};
use crate::semantics::{Fields, Name, name};

/// Digits of a Content-Length: what 64 bits surely hold.
const LENGTH_DIGITS: usize = 19;

/// How a request body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    None,
    Exact(u64),
    Chunked,
}

/// What a request head asks of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPlan {
    pub body: BodyLength,
    /// The client means to send further requests (RFC 9112 §9.3).
    pub persist: bool,
    /// The client waits for 100 before it sends the body (RFC 9110 §10.1.1).
    pub expect: bool,
}

/// Decides, or refuses what two parsers could read differently. A Content-Length with leading zeros is rewritten.
pub fn plan(head: &mut RequestHead, limits: &Limits) -> Result<RequestPlan, Refusal> {
    let body = body_length(head)?;
    if matches!(body, BodyLength::Exact(length) if length > limits.body_bytes) {
        return Err(Refusal { status: 413, reason: "body-bytes" });
    }
    let expect = expectation(&head.fields)? && head.minor_version > 0 && body != BodyLength::None;
    Ok(RequestPlan { body, persist: persists(head), expect })
}

fn body_length(head: &mut RequestHead) -> Result<BodyLength, Refusal> {
    let has_length = head.fields.has(name::CONTENT_LENGTH);
    if !head.fields.has(name::TRANSFER_ENCODING) {
        return if has_length { content_length(&mut head.fields) } else { Ok(BodyLength::None) };
    }
    if head.minor_version == 0 {
        return Err(bad("transfer-encoding-in-1.0"));
    }
    if has_length {
        return Err(bad("length-and-transfer-encoding"));
    }
    let mut values = head.fields.values(name::TRANSFER_ENCODING);
    match (values.next(), values.next()) {
        (Some(value), None) if value.eq_ignore_ascii_case(b"chunked") => Ok(BodyLength::Chunked),
        (Some(value), None) if is_unknown_coding_then_chunked(value) => Err(Refusal { status: 501, reason: "transfer-coding" }),
        _ => Err(bad("transfer-encoding")),
    }
}

/// A coding that is not implemented, correctly applied (RFC 9112 §6.1: 501). Anything else is 400 (§6.3).
fn is_unknown_coding_then_chunked(value: &[u8]) -> bool {
    let mut codings: Vec<&[u8]> = value.split(|byte| *byte == b',').map(crate::semantics::fields::trim).collect();
    let last = codings.pop().unwrap_or_default();
    let other =
        |coding: &&[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked") && coding.iter().copied().all(is_token_byte);
    last.eq_ignore_ascii_case(b"chunked") && !codings.is_empty() && codings.iter().all(other)
}

fn content_length(fields: &mut Fields) -> Result<BodyLength, Refusal> {
    if fields.values(name::CONTENT_LENGTH).nth(1).is_some() {
        return Err(bad("content-length-repeated"));
    }
    let value = fields.get(name::CONTENT_LENGTH).unwrap_or_default();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("content-length"));
    }
    if value.len() > LENGTH_DIGITS {
        return Err(bad("content-length-overflow"));
    }
    let length = value.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    if value.len() > 1 && value[0] == b'0' {
        // Valid by the grammar; written anew so that nobody behind us reads it as octal.
        fields.set(name::CONTENT_LENGTH, itoa::Buffer::new().format(length)).map_err(|_| bad("content-length"))?;
    }
    Ok(if length == 0 { BodyLength::None } else { BodyLength::Exact(length) })
}

/// Whether 100 is expected; an expectation that is not known is 417 (RFC 9110 §10.1.1).
fn expectation(fields: &Fields) -> Result<bool, Refusal> {
    if !fields.has(name::EXPECT) {
        return Ok(false);
    }
    let mut expectations = fields.values(name::EXPECT).flat_map(list);
    match expectations.all(|one| one.eq_ignore_ascii_case(b"100-continue")) {
        true => Ok(true),
        false => Err(Refusal { status: 417, reason: "expectation" }),
    }
}

fn persists(head: &RequestHead) -> bool {
    if !head.fields.has(name::CONNECTION) {
        return head.minor_version > 0;
    }
    let asked = |option| has_option(&head.fields, name::CONNECTION, option);
    !asked("close") && (head.minor_version > 0 || asked("keep-alive"))
}

/// Whether a comma-separated field names `option`.
pub fn has_option(fields: &Fields, name: Name, option: &str) -> bool {
    fields.has(name) && fields.values(name).flat_map(list).any(|one| one.eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use http::Method;

    pub fn limits() -> Limits {
        Limits { header_bytes: 8192, header_count: 200, url_bytes: 2048, body_bytes: 1 << 20, ..Limits::default() }
    }

    fn planned(minor_version: u8, lines: &[(&str, &str)]) -> Result<RequestPlan, Refusal> {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        plan(&mut RequestHead { method: Method::POST, target: b"/".to_vec(), minor_version, fields }, &limits())
    }

    #[test]
    fn body_length_by_the_fields() {
        let length = |minor, lines: &[(&str, &str)]| planned(minor, lines).map(|plan| plan.body).map_err(|refusal| refusal.status);
        let (cl, te) = ("content-length", "transfer-encoding");
        assert_eq!(length(1, &[]), Ok(BodyLength::None));
        assert_eq!(length(1, &[(cl, "0")]), Ok(BodyLength::None));
        assert_eq!(length(1, &[(cl, "12")]), Ok(BodyLength::Exact(12)));
        assert_eq!(length(0, &[(cl, "12")]), Ok(BodyLength::Exact(12)));
        assert_eq!(length(1, &[(cl, "0012")]), Ok(BodyLength::Exact(12)));
        assert_eq!(length(1, &[(te, "Chunked")]), Ok(BodyLength::Chunked));
        assert_eq!(length(1, &[(cl, "1048577")]), Err(413));
        for value in ["", "+5", "-5", "5,5", "5, 5", "0x5", "5 5", "five", "5.0", "99999999999999999999"] {
            assert_eq!(length(1, &[(cl, value)]), Err(400), "content-length: {value}");
        }
        assert_eq!(length(1, &[(cl, "5"), (cl, "5")]), Err(400));
        assert_eq!(length(1, &[(cl, "5"), (te, "chunked")]), Err(400));
        assert_eq!(length(0, &[(te, "chunked")]), Err(400));
        assert_eq!(length(1, &[(te, "chunked"), (te, "chunked")]), Err(400));
        assert_eq!(length(1, &[(te, "gzip, chunked")]), Err(501));
        for value in [
            "",
            "identity",
            "gzip",
            "chunked, gzip",
            "chunked, chunked",
            ", chunked",
            "chunked,",
            "chunked;q=1",
            "x chunked",
            "\"chunked\"",
        ] {
            assert_eq!(length(1, &[(te, value)]), Err(400), "transfer-encoding: {value}");
        }
    }

    #[test]
    fn a_length_with_leading_zeros_is_written_anew() {
        let mut head =
            crate::listener::RequestHead { method: Method::POST, target: b"/".to_vec(), minor_version: 1, fields: Fields::new() };
        head.fields.push("content-length", "007").unwrap();
        plan(&mut head, &limits()).unwrap();
        assert_eq!(head.fields.get(name::CONTENT_LENGTH), Some(&b"7"[..]));
    }

    #[test]
    fn persistence_by_version_and_connection() {
        let persists = |minor, value: Option<&str>| {
            let lines: Vec<_> = value.iter().map(|value| ("connection", *value)).collect();
            planned(minor, &lines).unwrap().persist
        };
        assert!(persists(1, None) && persists(1, Some("keep-alive")) && persists(0, Some("x, Keep-Alive")));
        assert!(!persists(0, None) && !persists(1, Some("a, Close")) && !persists(0, Some("keep-alive, close")));
    }

    #[test]
    fn expectations() {
        let body = ("content-length", "1");
        assert!(planned(1, &[body, ("expect", "100-Continue")]).unwrap().expect);
        assert!(!planned(0, &[body, ("expect", "100-continue")]).unwrap().expect);
        assert!(!planned(1, &[("expect", "100-continue")]).unwrap().expect);
        assert_eq!(planned(1, &[body, ("expect", "tea")]).unwrap_err().status, 417);
    }
}
