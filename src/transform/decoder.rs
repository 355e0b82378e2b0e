//! One decoder for all codings, with bounds: a few bytes may stand for gigabytes.

use crate::semantics::coding::Coding;
use crate::semantics::policy::DecodeLimits;
use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use bytes::{Buf, Bytes};
use flate2::write::MultiGzDecoder;
use std::collections::VecDeque;
use std::io::{self, Write};

/// Takes a coding off the bytes that it is given.
pub struct Decoder {
    inner: Inner,
    /// The rest of the piece that it is in.
    piece: Bytes,
    /// It may have more to give of what it was given.
    has_more: bool,
    failed: Option<DecodeError>,
    /// Bytes that it was given.
    read: u64,
    limits: DecodeLimits,
}

enum Inner {
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Brotli(Box<Brotli>),
    Zstd(zstd::stream::write::Decoder<'static, Bounded>),
}

/// Its own writer would go through all that it is given, whatever comes of it.
struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    buffer: Box<[u8]>,
    is_whole: bool,
    out: Bounded,
}

/// What came out, and how much more may.
#[derive(Default)]
struct Bounded {
    out: Vec<u8>,
    written: u64,
    most: u64,
}

/// Where so many bytes have come out, no more are made before they are taken; [`OUT_MAX`] at most are held.
const OUT_ENOUGH: usize = 256 << 10;
/// With what one block of a coding may stand for beside them.
pub const OUT_MAX: usize = OUT_ENOUGH + (256 << 10);
/// What no ratio is asked of: short texts of one letter are no attack.
const FREE: u64 = 1 << 20;
/// What brotli's decoder hands on at a time.
const BROTLI_BUFFER: usize = 16 << 10;
/// No more is kept to decode with (RFC 9659 §3): 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Why it goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it stands for more than may be")]
    TooLarge,
    #[error("it is not in that coding, or not whole")]
    Malformed,
}

impl Decoder {
    pub fn new(coding: Coding, limits: DecodeLimits) -> io::Result<Self> {
        let out = Bounded::default();
        let inner = match coding {
            Coding::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(out))),
            Coding::Brotli => Inner::Brotli(Box::new(Brotli::new())),
            Coding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(out)?;
                decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Inner::Zstd(decoder)
            }
            Coding::Dcb | Coding::Dcz => return Err(io::Error::other("nobody says against which dictionary it is")),
        };
        Ok(Self { inner, piece: Bytes::new(), has_more: false, failed: None, read: 0, limits })
    }

    /// Takes pieces from the front of `input`, and gives what they stand for as far as that is certain, [`OUT_MAX`] bytes at
    /// most; says whether there may be more. What came before an error comes before it.
    pub fn decode(&mut self, input: &mut VecDeque<Bytes>) -> Result<(Bytes, bool), DecodeError> {
        if self.failed.is_none() {
            self.failed = self.fill(input).err();
        }
        let out = std::mem::take(&mut self.out().out);
        match self.failed {
            Some(error) if out.is_empty() => Err(error),
            failed => Ok((out.into(), failed.is_some() || self.has_more || !input.is_empty())),
        }
    }

    /// The end: what it was given, and has gone through, must be whole.
    pub fn finish(mut self) -> Result<Bytes, DecodeError> {
        let finished = match &mut self.inner {
            Inner::Gzip(decoder) => decoder.try_finish(),
            Inner::Brotli(decoder) if decoder.is_whole => Ok(()),
            Inner::Brotli(_) => Err(malformed()),
            Inner::Zstd(decoder) => decoder.do_finish(),
        };
        match self.failed.or_else(|| finished.err().map(|_| self.why())) {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut self.out().out).into()),
        }
    }

    fn fill(&mut self, input: &mut VecDeque<Bytes>) -> Result<(), DecodeError> {
        while self.out().out.len() < OUT_ENOUGH {
            if !self.has_more {
                let Some(piece) = input.pop_front() else { return Ok(()) };
                self.read += piece.len() as u64;
                let by_ratio = self.read.saturating_mul(self.limits.ratio).max(FREE);
                self.out().most = by_ratio.min(self.limits.bytes);
                self.piece = piece;
                if self.piece.is_empty() {
                    continue;
                }
            }
            self.has_more = self.step().map_err(|_| self.why())?;
        }
        Ok(())
    }

    /// Takes a part of the piece, or what was kept back of it; says whether there may be more.
    fn step(&mut self) -> io::Result<bool> {
        let taken = match &mut self.inner {
            Inner::Brotli(decoder) => return decoder.step(&mut self.piece),
            Inner::Gzip(decoder) if self.piece.is_empty() => return decoder.flush().map(|()| false),
            Inner::Zstd(decoder) if self.piece.is_empty() => return decoder.flush().map(|()| false),
            Inner::Gzip(decoder) => decoder.write(&self.piece)?,
            Inner::Zstd(decoder) => decoder.write(&self.piece)?,
        };
        if taken == 0 {
            return Err(malformed());
        }
        self.piece.advance(taken);
        Ok(true)
    }

    /// Why a codec gave up.
    fn why(&mut self) -> DecodeError {
        let out = self.out();
        if out.written > out.most { DecodeError::TooLarge } else { DecodeError::Malformed }
    }

    fn out(&mut self) -> &mut Bounded {
        match &mut self.inner {
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Brotli(decoder) => &mut decoder.out,
            Inner::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl Brotli {
    fn new() -> Self {
        // Strict: no window beyond the 16 MiB of RFC 7932, where its own writer takes up to a gigabyte.
        let state = BrotliState::new_strict(StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
        Self { state, buffer: vec![0; BROTLI_BUFFER].into(), is_whole: false, out: Bounded::default() }
    }

    fn step(&mut self, piece: &mut Bytes) -> io::Result<bool> {
        let (mut left, mut taken, mut room, mut made, mut total) = (piece.len(), 0, self.buffer.len(), 0, 0);
        let result =
            BrotliDecompressStream(&mut left, &mut taken, piece, &mut room, &mut made, &mut self.buffer, &mut total, &mut self.state);
        piece.advance(taken);
        self.out.write_all(&self.buffer[..made])?;
        match result {
            BrotliResult::NeedsMoreOutput => Ok(true),
            // It says so also where it has more than there was room for.
            BrotliResult::NeedsMoreInput => Ok(!piece.is_empty() || made == self.buffer.len()),
            BrotliResult::ResultSuccess if piece.is_empty() => {
                self.is_whole = true;
                Ok(false)
            }
            BrotliResult::ResultSuccess | BrotliResult::ResultFailure => Err(malformed()),
        }
    }
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written += bytes.len() as u64;
        if self.written > self.most {
            return Err(io::Error::other(DecodeError::TooLarge));
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::encode;
    use super::*;
    use crate::semantics::coding::Wanted;
    use crate::semantics::policy::Compression;
    use proptest::prelude::*;

    const LIMITS: DecodeLimits = DecodeLimits { ratio: 50, bytes: 64 << 20 };

    fn form(coding: Coding, bytes: &[u8]) -> Bytes {
        encode(&Wanted::plain(coding), &Compression::default().level, &[Bytes::copy_from_slice(bytes)]).unwrap()
    }

    fn decode(coding: Coding, limits: DecodeLimits, pieces: &[&[u8]]) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::new(coding, limits).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            let mut input = VecDeque::from([Bytes::copy_from_slice(piece)]);
            let mut has_more = true;
            while has_more {
                let (bytes, more) = decoder.decode(&mut input)?;
                out.extend_from_slice(&bytes);
                has_more = more;
            }
        }
        out.extend_from_slice(&decoder.finish()?);
        Ok(out)
    }

    #[test]
    fn a_bomb_is_stopped_before_it_is_held() {
        for coding in Coding::PLAIN {
            let bomb = form(coding, &vec![0; 32 << 20]);
            assert!(bomb.len() < 64 << 10, "{coding:?}: {}", bomb.len());
            let mut decoder = Decoder::new(coding, LIMITS).unwrap();
            let (mut input, mut held) = (bomb.chunks(1000).map(Bytes::copy_from_slice).collect(), 0);
            let error = loop {
                match decoder.decode(&mut input) {
                    Ok((out, _)) => held += out.len() as u64,
                    Err(error) => break error,
                }
            };
            assert_eq!(error, DecodeError::TooLarge, "{coding:?}");
            assert!(held <= FREE.max(50 * bomb.len() as u64), "{held}");
            let absolute = DecodeLimits { ratio: u64::MAX, bytes: 1 << 20 };
            assert_eq!(decode(coding, absolute, &[&bomb]), Err(DecodeError::TooLarge), "{coding:?}");
        }
    }

    #[test]
    fn what_came_before_an_error_comes_before_it() {
        let text = b"a text that comes to more than nothing before its end; ".repeat(40);
        for coding in Coding::PLAIN {
            let mut decoder = Decoder::new(coding, LIMITS).unwrap();
            let bad = [form(coding, &text), Bytes::from_static(b"and what is in no coding")];
            // Brotli has one form and nothing behind it, the others one behind the other.
            let mut input = VecDeque::from(bad);
            assert_eq!(decoder.decode(&mut input), Ok((Bytes::from(text.clone()), true)), "{coding:?}");
            assert_eq!(decoder.decode(&mut input), Err(DecodeError::Malformed), "{coding:?}");
            assert_eq!(decoder.decode(&mut input), Err(DecodeError::Malformed), "{coding:?}: nor after that");
            assert_eq!(decoder.finish(), Err(DecodeError::Malformed), "{coding:?}");
        }
    }

    /// Brotli's own writer takes windows of up to a gigabyte, which is not the coding `br` (RFC 7932 §9.1).
    #[test]
    fn a_window_larger_than_the_coding_has_is_refused() {
        let params = brotli::enc::BrotliEncoderParams { large_window: true, lgwin: 28, quality: 5, ..Default::default() };
        let mut form = Vec::new();
        brotli::BrotliCompress(&mut &b"a text".repeat(1000)[..], &mut form, &params).unwrap();
        assert_eq!(decode(Coding::Brotli, LIMITS, &[&form]), Err(DecodeError::Malformed));
    }

    #[test]
    fn what_is_not_whole_is_no_end() {
        let text = b"a text that is long enough to be cut off anywhere in it; ".repeat(40);
        for coding in Coding::PLAIN {
            let whole = form(coding, &text);
            assert_eq!(decode(coding, LIMITS, &[&whole]).unwrap(), text);
            for end in 1..whole.len() {
                assert_eq!(decode(coding, LIMITS, &[&whole[..end]]), Err(DecodeError::Malformed), "{coding:?} up to {end}");
            }
            assert_eq!(decode(coding, LIMITS, &[b"no such coding"]), Err(DecodeError::Malformed), "{coding:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_come_back_however_they_are_cut(bytes in prop::collection::vec(any::<u8>(), 0..5000), size in 1usize..600) {
            for coding in Coding::PLAIN {
                let form = form(coding, &bytes);
                let pieces: Vec<&[u8]> = form.chunks(size).collect();
                prop_assert_eq!(decode(coding, LIMITS, &pieces).unwrap(), bytes.clone());
            }
        }

        #[test]
        fn any_bytes_are_read_within_the_bounds(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            for coding in Coding::PLAIN {
                let mut bad = form(coding, &bytes).to_vec();
                let at = cut % bad.len();
                bad[at] ^= 0x5a;
                let _ = decode(coding, LIMITS, &[&bad]);
                let _ = decode(coding, LIMITS, &[&bytes]);
            }
        }
    }
}
