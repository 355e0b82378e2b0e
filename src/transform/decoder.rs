//! One decoder for all codings, with bounds: a few bytes may stand for gigabytes.

use crate::semantics::coding::Coding;
use crate::semantics::policy::DecodeLimits;
use brotli::DecompressorWriter;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use std::io::{self, Write};

/// Takes a coding off the bytes that are written to it.
pub struct Decoder {
    inner: Inner,
    /// Bytes that were written to it.
    read: u64,
    limits: DecodeLimits,
}

enum Inner {
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Brotli(Box<DecompressorWriter<Bounded>>),
    Zstd(zstd::stream::write::Decoder<'static, Bounded>),
}

/// What came out, and how much more may.
#[derive(Default)]
struct Bounded {
    out: Vec<u8>,
    written: u64,
    most: u64,
}

/// What no ratio is asked of: short texts of one letter are no attack.
const FREE: u64 = 1 << 20;
/// What brotli's writer hands on at a time.
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
            Coding::Brotli => Inner::Brotli(Box::new(DecompressorWriter::new(out, BROTLI_BUFFER))),
            Coding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(out)?;
                decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Inner::Zstd(decoder)
            }
            Coding::Dcb | Coding::Dcz => return Err(io::Error::other("nobody says against which dictionary it is")),
        };
        Ok(Self { inner, read: 0, limits })
    }

    /// Takes bytes; gives what they stand for as far as that is certain.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Bytes, DecodeError> {
        self.read += bytes.len() as u64;
        let by_ratio = self.read.saturating_mul(self.limits.ratio).max(FREE);
        self.out().most = by_ratio.min(self.limits.bytes);
        let written = match &mut self.inner {
            Inner::Gzip(decoder) => decoder.write_all(bytes).and_then(|()| decoder.flush()),
            Inner::Brotli(decoder) => decoder.write_all(bytes),
            Inner::Zstd(decoder) => decoder.write_all(bytes).and_then(|()| decoder.flush()),
        };
        self.after(written)
    }

    /// The end: what was written must be whole.
    pub fn finish(mut self) -> Result<Bytes, DecodeError> {
        let finished = match &mut self.inner {
            Inner::Gzip(decoder) => decoder.try_finish(),
            Inner::Brotli(decoder) => decoder.close(),
            Inner::Zstd(decoder) => decoder.do_finish(),
        };
        self.after(finished)
    }

    fn after(&mut self, result: io::Result<()>) -> Result<Bytes, DecodeError> {
        let out = self.out();
        match result {
            Ok(()) => Ok(std::mem::take(&mut out.out).into()),
            Err(_) if out.written > out.most => Err(DecodeError::TooLarge),
            Err(_) => Err(DecodeError::Malformed),
        }
    }

    fn out(&mut self) -> &mut Bounded {
        match &mut self.inner {
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Brotli(decoder) => decoder.get_mut(),
            Inner::Zstd(decoder) => decoder.get_mut(),
        }
    }
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
            out.extend_from_slice(&decoder.write(piece)?);
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
            let mut held = 0;
            let error = bomb.chunks(1000).find_map(|piece| match decoder.write(piece) {
                Ok(out) => {
                    held += out.len() as u64;
                    None
                }
                Err(error) => Some(error),
            });
            assert_eq!(error, Some(DecodeError::TooLarge), "{coding:?}");
            assert!(held <= FREE.max(50 * bomb.len() as u64), "{held}");
            let absolute = DecodeLimits { ratio: u64::MAX, bytes: 1 << 20 };
            assert_eq!(decode(coding, absolute, &[&bomb]), Err(DecodeError::TooLarge), "{coding:?}");
        }
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
