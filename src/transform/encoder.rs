//! One encoder for all codings: bytes in, what came out of it so far.

use super::delta::Delta;
use crate::semantics::coding::{Coding, Wanted};
use crate::semantics::policy::Levels;
use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::sync::Arc;

/// Makes a form of the bytes that are written to it.
pub enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    /// Against a dictionary: nothing comes out before the end.
    Delta(Delta),
}

/// A decoder need not keep more than this (RFC 9659 §3): 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Up to so many bytes a smaller window finds as much, and costs far less to set up.
const SMALL: u64 = 256 << 10;
const BROTLI_WINDOW_SMALL: i32 = 18;
const BROTLI_WINDOW: i32 = 22;
/// What brotli's writer hands on at a time.
const BROTLI_BUFFER: usize = 16 << 10;

impl Encoder {
    /// `length`: of what will be written, where it is known.
    pub fn new(wanted: &Wanted, levels: &Levels, length: Option<u64>) -> io::Result<Self> {
        let level = levels.of(wanted.coding);
        Ok(match wanted.coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(u32::from(level)))),
            Coding::Brotli => {
                let is_small = length.is_some_and(|length| length <= SMALL);
                let params = BrotliEncoderParams {
                    quality: i32::from(level),
                    lgwin: if is_small { BROTLI_WINDOW_SMALL } else { BROTLI_WINDOW },
                    size_hint: length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0),
                    ..BrotliEncoderParams::default()
                };
                Self::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), BROTLI_BUFFER, &params)))
            }
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), i32::from(level))?;
                if let Some(length) = length {
                    encoder.set_pledged_src_size(Some(length))?;
                }
                if length.is_none_or(|length| length >= 1 << ZSTD_WINDOW_LOG) {
                    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(ZSTD_WINDOW_LOG.min(window_log(level))))?;
                }
                Self::Zstd(encoder)
            }
            coding @ (Coding::Dcb | Coding::Dcz) => {
                let dictionary = wanted.dictionary.as_ref().ok_or_else(|| io::Error::other("this coding takes a dictionary"))?;
                Self::Delta(Delta::new(coding, level, Arc::clone(dictionary)))
            }
        })
    }

    /// Takes bytes; what came out may be none.
    pub fn write(&mut self, bytes: &Bytes) -> io::Result<Bytes> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(bytes)?,
            Self::Brotli(encoder) => encoder.write_all(bytes)?,
            Self::Zstd(encoder) => encoder.write_all(bytes)?,
            Self::Delta(delta) => delta.push(bytes),
        }
        Ok(self.take())
    }

    /// Everything that was written can be read from what came out by now, unless it is coded at the end.
    pub fn flush(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Gzip(encoder) => encoder.flush()?,
            Self::Brotli(encoder) => encoder.flush()?,
            Self::Zstd(encoder) => encoder.flush()?,
            Self::Delta(_) => {}
        }
        Ok(self.take())
    }

    /// The end of the form.
    pub fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(encoder) => encoder.finish()?.into(),
            Self::Brotli(encoder) => encoder.into_inner().into(),
            Self::Zstd(encoder) => encoder.finish()?.into(),
            Self::Delta(delta) => delta.finish()?,
        })
    }

    /// Bytes that are gone through where these are written.
    pub fn work_to_write(&self, bytes: &[u8]) -> usize {
        if matches!(self, Self::Delta(_)) { 0 } else { bytes.len() }
    }

    /// Bytes that are gone through at the end.
    pub fn work_to_finish(&self) -> usize {
        if let Self::Delta(delta) = self { delta.work() } else { 0 }
    }

    fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Delta(_) => return Bytes::new(),
        };
        std::mem::take(out).into()
    }
}

/// Logarithm of the window that zstd takes at a level for input of unknown length.
const fn window_log(level: u8) -> u32 {
    match level {
        0..=2 => 20,
        3..=8 => 21,
        9..=16 => 22,
        _ => 23,
    }
}

/// All of it in one go.
pub fn encode(wanted: &Wanted, levels: &Levels, pieces: &[Bytes]) -> io::Result<Bytes> {
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut encoder = Encoder::new(wanted, levels, Some(length))?;
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&encoder.write(piece)?);
    }
    let last = encoder.finish()?;
    if out.is_empty() {
        return Ok(last);
    }
    out.extend_from_slice(&last);
    Ok(out.into())
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use std::io::Read;

    /// The bytes that a form stands for, whole or as far as it goes.
    pub fn decode(coding: Coding, form: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut reader: Box<dyn Read + '_> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(form)),
            Coding::Brotli => Box::new(brotli::Decompressor::new(form, 4096)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(form)?),
            Coding::Dcb | Coding::Dcz => return Err(io::Error::other("see decode_against")),
        };
        let mut buffer = [0; 4096];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(out),
                Ok(read) => out.extend_from_slice(&buffer[..read]),
                Err(error) if out.is_empty() => return Err(error),
                Err(_) => return Ok(out),
            }
        }
    }

    /// The same of a whole form against a dictionary.
    pub fn decode_against(coding: Coding, dictionary: &[u8], form: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        if coding == Coding::Dcb {
            let dictionary = dictionary.to_vec().into();
            brotli::Decompressor::new_with_custom_dict(&form[36..], 4096, dictionary).read_to_end(&mut out)?;
        } else {
            // The frame before it, which is to be skipped, would end what is said of the next one.
            zstd::stream::read::Decoder::with_ref_prefix(&form[40..], dictionary)?.read_to_end(&mut out)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::decode;
    use super::*;
    use crate::semantics::policy::Compression;
    use proptest::prelude::*;

    #[test]
    fn what_was_flushed_can_be_read() {
        for coding in Coding::PLAIN {
            let mut encoder = Encoder::new(&Wanted::plain(coding), &Compression::default().level, None).unwrap();
            let (mut out, mut sent) = (Vec::new(), Vec::new());
            for event in 0..20 {
                let text = format!("data: event number {event}\n\n");
                out.extend_from_slice(&encoder.write(&Bytes::from(text.clone())).unwrap());
                out.extend_from_slice(&encoder.flush().unwrap());
                sent.extend_from_slice(text.as_bytes());
                assert_eq!(decode(coding, &out).unwrap(), sent, "{coding:?} after {event}");
            }
            out.extend_from_slice(&encoder.finish().unwrap());
            assert_eq!(decode(coding, &out).unwrap(), sent);
        }
    }

    #[test]
    fn text_shrinks_at_every_level() {
        let text = Bytes::from("a line of a page that is like the others, but for a number\n".repeat(200));
        for coding in Coding::PLAIN {
            let most = [9, 11, 19][coding as usize];
            for level in 1..=most {
                let levels = Levels { gzip: level, brotli: level, zstd: level };
                let form = encode(&Wanted::plain(coding), &levels, std::slice::from_ref(&text)).unwrap();
                assert!(form.len() < text.len() / 20, "{coding:?} {level}: {}", form.len());
                assert_eq!(decode(coding, &form).unwrap(), text);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_come_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..6)) {
            let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
            for coding in Coding::PLAIN {
                let form = encode(&Wanted::plain(coding), &Compression::default().level, &pieces).unwrap();
                prop_assert_eq!(decode(coding, &form).unwrap(), pieces.concat());
            }
        }
    }
}
