//! Where a request ends and what it asks of the connection (RFC 9112 §6, §7, §9.3). Pure.

use super::bad;
use crate::body::BodyError;
use crate::config::settings::Limits;
use crate::listener::{Refusal, RequestHead};
use crate::semantics::fields::{is_token_byte, is_value_byte, list};
use crate::semantics::{Fields, Name, name};
use memchr::memchr;

/// Bytes of chunk extensions in one body; they are checked and ignored.
const EXTENSION_BYTES: usize = 4096;
/// Bytes of a trailer section.
const TRAILER_BYTES: usize = 8192;
/// Hex digits of a chunk size: what 64 bits hold.
const SIZE_DIGITS: u8 = 16;
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

/// Why a chunked body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    Malformed(&'static str),
    /// The body is longer than allowed.
    TooLarge,
}

impl ChunkError {
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Malformed(reason) => bad(reason),
            Self::TooLarge => Refusal { status: 413, reason: "body-bytes" },
        }
    }

    /// As the body's reader learns it.
    pub const fn body_error(self) -> BodyError {
        match self {
            Self::Malformed(_) => BodyError::Malformed,
            Self::TooLarge => BodyError::TooLarge,
        }
    }
}

/// What a call of [`Chunked::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes taken from the input.
    pub consumed: usize,
    /// The last `data` of them belong to the body.
    pub data: usize,
}

/// Undoes the chunked transfer coding (RFC 9112 §7.1) as bytes come in.
///
/// `Size -> (Extension ->) SizeLf -> Data -> DataCr -> DataLf -> Size ... -> Trailer <-> TrailerLf -> Done`
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Of the size being read, then of the data still to come.
    size: u64,
    digits: u8,
    extension_bytes: usize,
    /// Body bytes that may still be announced.
    allowed: u64,
    trailer_line: Vec<u8>,
    trailer_bytes: usize,
    trailer_lines_max: usize,
    trailers: Fields,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extension(Extension),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    Done,
}

/// Inside `;name=value;name="quoted \" value"`. White space outside quotes is refused: nobody sends it, and parsers
/// that skipped it disagreed on where the line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    Closed,
}

impl Chunked {
    /// `body_bytes`: what the body may have; `trailer_lines`: what its trailer section may have.
    pub fn new(body_bytes: u64, trailer_lines: usize) -> Self {
        Self {
            state: State::Size,
            size: 0,
            digits: 0,
            extension_bytes: 0,
            allowed: body_bytes,
            trailer_line: Vec::new(),
            trailer_bytes: 0,
            trailer_lines_max: trailer_lines,
            trailers: Fields::new(),
        }
    }

    /// Takes bytes up to the end of one run of data, of the body, or of the input.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut consumed = 0;
        while consumed < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let data = usize::try_from(self.size).unwrap_or(usize::MAX).min(input.len() - consumed);
                self.size -= data as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Step { consumed: consumed + data, data });
            }
            self.state = self.after(input[consumed])?;
            consumed += 1;
        }
        Ok(Step { consumed, data: 0 })
    }

    /// Whether the body ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer section, once the body ended; `None` where it was empty.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        (self.is_done() && !self.trailers.is_empty()).then(|| std::mem::take(&mut self.trailers))
    }

    fn after(&mut self, byte: u8) -> Result<State, ChunkError> {
        match (self.state, byte) {
            (State::Size, _) => self.after_size_byte(byte),
            (State::Extension(extension), _) => self.after_extension_byte(extension, byte),
            (State::SizeLf, b'\n') => self.after_size_line(),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::DataCr | State::DataLf, _) => Err(ChunkError::Malformed("chunk-data")),
            (State::Trailer, _) => self.after_trailer_byte(byte),
            (State::TrailerLf, b'\n') => self.after_trailer_line(),
            (State::TrailerLf, _) => Err(ChunkError::Malformed("trailer-field")),
            (State::SizeLf | State::Data | State::Done, _) => Err(ChunkError::Malformed("chunk-size")),
        }
    }

    fn after_size_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if self.digits > 0 => return Ok(State::SizeLf),
            b';' if self.digits > 0 => return Ok(State::Extension(Extension::NameStart)),
            _ => return Err(ChunkError::Malformed("chunk-size")),
        };
        if self.digits == SIZE_DIGITS {
            return Err(ChunkError::Malformed("chunk-size"));
        }
        self.digits += 1;
        self.size = self.size << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn after_extension_byte(&mut self, extension: Extension, byte: u8) -> Result<State, ChunkError> {
        use Extension::{Closed, Escaped, Name, NameStart, Quoted, Value, ValueStart};
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES {
            return Err(ChunkError::Malformed("chunk-extension"));
        }
        let next = match (extension, byte) {
            (Name | Value | Closed, b'\r') => return Ok(State::SizeLf),
            (Name | Value | Closed, b';') => NameStart,
            (Name, b'=') => ValueStart,
            (ValueStart, b'"') => Quoted,
            (Quoted, b'"') => Closed,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_value_byte(byte) => Quoted,
            (NameStart | Name, _) if is_token_byte(byte) => Name,
            (ValueStart | Value, _) if is_token_byte(byte) => Value,
            _ => return Err(ChunkError::Malformed("chunk-extension")),
        };
        Ok(State::Extension(next))
    }

    fn after_size_line(&mut self) -> Result<State, ChunkError> {
        self.digits = 0;
        self.allowed = self.allowed.checked_sub(self.size).ok_or(ChunkError::TooLarge)?;
        Ok(if self.size == 0 { State::Trailer } else { State::Data })
    }

    fn after_trailer_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        if byte == b'\r' {
            return Ok(State::TrailerLf);
        }
        self.trailer_bytes += 1;
        if byte == b'\n' || self.trailer_bytes > TRAILER_BYTES {
            return Err(ChunkError::Malformed("trailer-field"));
        }
        self.trailer_line.push(byte);
        Ok(State::Trailer)
    }

    fn after_trailer_line(&mut self) -> Result<State, ChunkError> {
        if self.trailer_line.is_empty() {
            return Ok(State::Done);
        }
        let refused = ChunkError::Malformed("trailer-field");
        let colon = memchr(b':', &self.trailer_line).ok_or(refused)?;
        let (field, value) = self.trailer_line.split_at(colon);
        if self.trailers.len() == self.trailer_lines_max || frames_messages(field) {
            return Err(refused);
        }
        self.trailers.push(field, &value[1..]).map_err(|_| refused)?;
        self.trailer_line.clear();
        Ok(State::Trailer)
    }
}

/// Fields whose place is the head alone, because they say where a message ends or whom it is for (RFC 9110 §6.5.1).
fn frames_messages(field: &[u8]) -> bool {
    [name::CONTENT_LENGTH, name::TRANSFER_ENCODING, name::HOST, name::TRAILER, name::CONNECTION]
        .iter()
        .any(|one| field.eq_ignore_ascii_case(one.as_str().as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use http::Method;
    use proptest::prelude::*;
    use std::time::Duration;

    pub fn limits() -> Limits {
        Limits {
            connections: 100,
            requests_per_connection: 1000,
            header_bytes: 8192,
            header_count: 200,
            url_bytes: 2048,
            body_bytes: 1 << 20,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            body_rate: 100,
            write_timeout: Duration::from_secs(10),
            waiting: 100,
        }
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

    /// Body, trailer lines, bytes taken.
    type Decoded = (Vec<u8>, Vec<u8>, usize);

    /// The whole of what `bytes` decode to when they come in pieces of `step`.
    fn decoded(bytes: &[u8], step: usize) -> Result<Option<Decoded>, ChunkError> {
        let (mut chunked, mut body, mut at) = (Chunked::new(1000, 3), Vec::new(), 0);
        while at < bytes.len() && !chunked.is_done() {
            let end = bytes.len().min(at.saturating_add(step.max(1)));
            let done = chunked.decode(&bytes[at..end])?;
            body.extend_from_slice(&bytes[at + done.consumed - done.data..at + done.consumed]);
            at += done.consumed;
        }
        let trailers = chunked.take_trailers().map(|fields| fields.wire().to_vec()).unwrap_or_default();
        Ok(chunked.is_done().then_some((body, trailers, at)))
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let bytes = b"5\r\nhello\r\n006;a;b=c;d=\"e\\\";\x80 \"\r\n world\r\n0\r\nX-Sum: 1 \r\n\r\nnext";
        let (body, trailers, taken) = decoded(bytes, 1000).unwrap().unwrap();
        assert_eq!((&body[..], &trailers[..], &bytes[taken..]), (&b"hello world"[..], &b"x-sum: 1\r\n"[..], &b"next"[..]));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for bytes in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\n",
            "5\rhello",
            "5 ;a\r\n",
            "5;\r\n",
            "5; a\r\n",
            "5;a =b\r\n",
            "5;a=\r\n",
            "5;a=\"b\r\n",
            "5;a\n",
            "5;\x01\r\n",
            "5\r\nhello5\r\n",
            "5\r\nhello\n",
            "5\r\nhello\r\r",
            "11111111111111111\r\n",
            "0\r\n x: y\r\n",
            "0\r\nx : y\r\n",
            "0\r\nx\r\n",
            "0\r\nx: y\n",
            "0\r\nx: \0\r\n",
            "0\r\ncontent-length: 5\r\n",
            "0\r\nHost: a\r\n",
            "0\r\n\n",
            "0\r\na:1\r\nb:2\r\nc:3\r\nd:4\r\n",
        ] {
            assert!(matches!(decoded(bytes.as_bytes(), 1000), Err(ChunkError::Malformed(_))), "{bytes:?}");
        }
        assert_eq!(decoded(b"3e9\r\n", 1000), Err(ChunkError::TooLarge));
        assert_eq!(decoded(b"ffffffffffffffff\r\n", 1000), Err(ChunkError::TooLarge));
        assert!(decoded(format!("1;{}\r\n", "a".repeat(5000)).as_bytes(), 1000).is_err());
        assert!(decoded(format!("0\r\na: {}\r\n", "a".repeat(9000)).as_bytes(), 1000).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_split_anywhere_decode_the_same(bytes in prop::collection::vec(prop_oneof![
            Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'3'), Just(b';'), Just(b':'), Just(b'a'), any::<u8>()], 0..120), step in 1usize..20) {
            prop_assert_eq!(decoded(&bytes, step), decoded(&bytes, usize::MAX));
        }

        #[test]
        fn what_is_chunked_comes_out_again(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..20), step in 1usize..60) {
            let mut wire = Vec::new();
            for piece in &pieces {
                wire.extend_from_slice(format!("{:x};n=\"v\"\r\n", piece.len()).as_bytes());
                wire.extend_from_slice(piece);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nt: v\r\n\r\n");
            let length = wire.len();
            wire.extend_from_slice(b"rest");
            prop_assert_eq!(decoded(&wire, step), Ok(Some((pieces.concat(), b"t: v\r\n".to_vec(), length))));
        }
    }
}
