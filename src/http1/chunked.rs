//! The chunked transfer coding (RFC 9112 §7.1): undone as bytes come in, and begun. Pure.

use crate::semantics::fields::{is_token_byte, is_value_byte};
use crate::semantics::{Fields, name};
use memchr::memchr;
use std::io::Write as _;

/// Bytes of chunk extensions in one body; they are checked and ignored.
const EXTENSION_BYTES: usize = 4096;
/// Bytes of a trailer section.
pub const TRAILER_BYTES: usize = 8192;
/// Hex digits of a chunk size: what 64 bits hold.
const SIZE_DIGITS: u8 = 16;

/// Writes the line that begins a chunk. An empty chunk would end the body: callers skip those.
pub fn begin_chunk(out: &mut Vec<u8>, length: usize) {
    let _ = write!(out, "{length:x}\r\n"); // writing to memory cannot fail
}

/// Why a chunked body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    Malformed(&'static str),
    /// The body is longer than allowed.
    TooLarge,
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
    /// Fields that frame messages are dropped from the trailer section; else they are refused.
    drops_framing: bool,
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
            drops_framing: false,
        }
    }

    /// For a response: as long as it likes. What frames messages is dropped from its trailer section, because such
    /// fields are ignored there (RFC 9110 §6.5.1) and the body is already on its way.
    pub fn of_response(trailer_lines: usize) -> Self {
        Self { drops_framing: true, ..Self::new(u64::MAX, trailer_lines) }
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
        let framing = frames_messages(field);
        if self.trailers.len() == self.trailer_lines_max || framing && !self.drops_framing {
            return Err(refused);
        }
        if !framing {
            self.trailers.push(field, &value[1..]).map_err(|_| refused)?;
        }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

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
