//! Forms against a dictionary (RFC 9842 §4, §5): what is written is gathered, and coded in one piece at the end.
//!
//! Such a form is some hundredths of what it is of, so that nobody gains by its first bytes coming early; and only what is
//! known whole is coded in a window that holds dictionary and content, which no client has to make larger than it must.

use crate::semantics::coding::Coding;
use crate::semantics::dictionary::Dictionary;
use brotli::enc::{BrotliEncoderParams, StandardAlloc};
use brotli::{BrotliCompressCustomIoCustomDict, Decompressor, IoReaderWrapper, IoWriterWrapper};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use zstd::zstd_safe::CParameter;

/// What was written so far, and what it is to be coded against.
pub struct Delta {
    coding: Coding,
    level: u8,
    dictionary: Arc<Dictionary>,
    pieces: Pieces,
}

/// Before the hash in a `dcb` (§4).
const DCB_MAGIC: [u8; 4] = [0xff, 0x44, 0x43, 0x42];
/// Before the hash in a `dcz`: with it a frame that decoders skip (§5).
const DCZ_MAGIC: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0];
/// The largest window of brotli, 16 MiB, of which a few bytes are never reached. Dictionary and content have to be within
/// one: only there are distances the same whether a dictionary counts as part of the window or not (RFC 9841 §8.2).
const BROTLI_WINDOW_LOG_MAX: u32 = 24;
const BROTLI_WINDOW_UNUSED: usize = 16;
const BROTLI_WINDOW_LOG_MIN: u32 = 10;
/// Below it brotli's encoder finds too little in a dictionary (at 4, of a bundle with one letter in a hundred edited, six times as
/// much goes out), and is no faster; below 2 it takes none.
const BROTLI_LEVEL_MIN: u8 = 5;
const BROTLI_BUFFER: usize = 16 << 10;
/// Of what is found, not of what decoders keep: a frame of known length has that for a window.
const ZSTD_WINDOW_LOGS: (u32, u32) = (10, 24);

impl Delta {
    pub fn new(coding: Coding, level: u8, dictionary: Arc<Dictionary>) -> Self {
        Self { coding, level, dictionary, pieces: Pieces::default() }
    }

    pub fn push(&mut self, bytes: &Bytes) {
        if !bytes.is_empty() {
            self.pieces.bytes += bytes.len();
            self.pieces.left.push_back(bytes.clone());
        }
    }

    /// Bytes that the end of it goes through.
    pub fn work(&self) -> usize {
        self.pieces.bytes + self.dictionary.bytes().len()
    }

    pub fn finish(self) -> io::Result<Bytes> {
        let magic = if self.coding == Coding::Dcb { &DCB_MAGIC[..] } else { &DCZ_MAGIC[..] };
        let out = [magic, &self.dictionary.hash().0].concat();
        let out = if self.coding == Coding::Dcb { self.brotli(out) } else { self.zstd(out) };
        out.map(Into::into)
    }

    fn brotli(self, begin: Vec<u8>) -> io::Result<Vec<u8>> {
        match self.with_end_that_nothing_copies() {
            Some(dictionary) => self.brotli_seeing(&dictionary, begin),
            None => self.brotli_against(&[], begin),
        }
    }

    /// What the encoder makes that sees this for the dictionary, or nothing for it where decoders would read something else:
    /// hardly anybody else codes against dictionaries with this encoder, so what it made is read once before anybody gets it.
    fn brotli_seeing(&self, dictionary: &[u8], begin: Vec<u8>) -> io::Result<Vec<u8>> {
        let made = self.brotli_against(dictionary, begin.clone())?;
        if self.is_what_is_read_of(&made[begin.len()..]) {
            return Ok(made);
        }
        tracing::error!(level = self.level, "brotli's encoder made wrong use of a dictionary; the form does without");
        self.brotli_against(&[], begin)
    }

    fn brotli_against(&self, dictionary: &[u8], mut out: Vec<u8>) -> io::Result<Vec<u8>> {
        let window_log = log_of(self.work() + BROTLI_WINDOW_UNUSED);
        if window_log > BROTLI_WINDOW_LOG_MAX {
            return Err(io::Error::other("dictionary and content are too long for the window of brotli"));
        }
        let params = BrotliEncoderParams {
            quality: i32::from(self.level.max(BROTLI_LEVEL_MIN)),
            lgwin: window_log.max(BROTLI_WINDOW_LOG_MIN) as i32, // 24 at most
            size_hint: self.pieces.bytes,
            // Its own dictionary begins where that of ours ends, and the encoder takes it to begin elsewhere.
            use_dictionary: false,
            ..BrotliEncoderParams::default()
        };
        let (mut input, mut output) = (vec![0; BROTLI_BUFFER], vec![0; BROTLI_BUFFER]);
        BrotliCompressCustomIoCustomDict(
            &mut IoReaderWrapper(&mut self.pieces.clone()),
            &mut IoWriterWrapper(&mut out),
            &mut input,
            &mut output,
            &params,
            StandardAlloc::default(),
            &mut |_, _, _, _| (),
            dictionary,
            io::ErrorKind::UnexpectedEof.into(),
        )?;
        Ok(out)
    }

    /// The dictionary as the encoder is to see it: its last byte is one that cannot be a part of any copy.
    ///
    /// The encoder takes a dictionary for content that came before, and copies across the end of it, which decoders refuse
    /// (RFC 9841 §8.2: a copy is of one or the other). A copy, of two bytes at least, that has the last byte in it has the
    /// one before it, too, or goes on with the first of the content: so the last byte is one that never stands after the
    /// former or before the latter in the content. `None` where every byte does; then nothing can be taken from the dictionary.
    fn with_end_that_nothing_copies(&self) -> Option<Vec<u8>> {
        let mut dictionary = self.dictionary.bytes().to_vec();
        let (last, rest) = dictionary.split_last_mut()?;
        let (first, last_but_one) = (*self.pieces.left.front()?.first()?, rest.last().copied());
        let (mut is_copied, mut before) = ([false; 256], None);
        for byte in self.pieces.left.iter().flatten().copied() {
            if let Some(before) = before {
                is_copied[usize::from(before)] |= byte == first;
                is_copied[usize::from(byte)] |= last_but_one == Some(before);
            }
            before = Some(byte);
        }
        *last = (0..=u8::MAX).find(|byte| !is_copied[usize::from(*byte)])?;
        Some(dictionary)
    }

    /// Whether this, read with the dictionary, is what was written.
    fn is_what_is_read_of(&self, coded: &[u8]) -> bool {
        let mut decoder = Decompressor::new_with_custom_dict(coded, BROTLI_BUFFER, self.dictionary.bytes().to_vec().into());
        let mut read = vec![0; BROTLI_BUFFER];
        let is_next = |piece: &Bytes| {
            piece.chunks(BROTLI_BUFFER).all(|part| {
                let read = &mut read[..part.len()];
                decoder.read_exact(read).is_ok() && read == part
            })
        };
        self.pieces.left.iter().all(is_next) && matches!(decoder.read(&mut [0]), Ok(0))
    }

    fn zstd(self, out: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(out, i32::from(self.level), self.dictionary.bytes())?;
        encoder.set_pledged_src_size(Some(self.pieces.bytes as u64))?;
        let (least, most) = ZSTD_WINDOW_LOGS;
        encoder.set_parameter(CParameter::WindowLog(log_of(self.work()).clamp(least, most)))?;
        // What is far away is found at any level: of two releases most is the same, and as far away as the dictionary is long.
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
        for piece in &self.pieces.left {
            encoder.write_all(piece)?;
        }
        encoder.finish()
    }
}

/// Of the smallest power of two that is as large.
const fn log_of(bytes: usize) -> u32 {
    bytes.next_power_of_two().trailing_zeros()
}

#[derive(Clone, Default)]
struct Pieces {
    left: VecDeque<Bytes>,
    /// In all.
    bytes: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.left.front_mut() else { return Ok(0) };
        let taken = piece.len().min(out.len());
        piece.copy_to_slice(&mut out[..taken]);
        if piece.is_empty() {
            self.left.pop_front();
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::testing::decode_against;
    use super::super::encoder::{Encoder, encode};
    use super::*;
    use crate::semantics::coding::Wanted;
    use crate::semantics::policy::{Compression, Levels};
    use proptest::prelude::*;

    const DELTAS: [Coding; 2] = [Coding::Dcb, Coding::Dcz];

    fn against(coding: Coding, dictionary: &[u8]) -> Wanted {
        Wanted { coding, dictionary: Some(Arc::new(Dictionary::new(Bytes::copy_from_slice(dictionary)))) }
    }

    /// Text of so many lines, none of which is like another.
    fn text(lines: u64) -> Vec<u8> {
        let line = |line: u64| format!("line {line} says {:x}\n", line.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (0..lines).flat_map(|number| line(number).into_bytes()).collect()
    }

    #[test]
    fn a_form_begins_with_magic_and_hash() {
        let wanted = |coding| against(coding, b"a dictionary");
        let hash = wanted(Coding::Dcb).dictionary.unwrap().hash().0;
        let form = |coding| encode(&wanted(coding), &Compression::default().level, &[Bytes::from_static(b"content")]).unwrap();
        assert_eq!(form(Coding::Dcb)[..36], [&b"\xffDCB"[..], &hash].concat());
        assert_eq!(form(Coding::Dcz)[..40], [&b"\x5e\x2a\x4d\x18\x20\0\0\0"[..], &hash].concat());
    }

    #[test]
    fn another_version_is_a_fraction_at_every_level() {
        let old = text(5_000);
        let mut new = old.clone();
        new.splice(30_000..30_100, b"something else".iter().copied());
        new.extend_from_slice(b"and an end\n");
        for coding in DELTAS {
            for level in 0..=11 {
                let levels = Levels { gzip: 1, brotli: level, zstd: level.max(1) };
                let form = encode(&against(coding, &old), &levels, &[Bytes::from(new.clone())]).unwrap();
                assert!(form.len() < 1000, "{coding:?} {level}: {}", form.len());
                assert!(decode_against(coding, &old, &form).unwrap() == new, "{coding:?} {level}");
            }
        }
    }

    /// Neither is there in a window of a fast level's own size.
    #[test]
    fn what_is_far_away_is_found() {
        let old = text(120_000); // 4 MB
        let new = [&old[2_000_000..], &old[..2_000_000]].concat();
        for coding in DELTAS {
            let form = encode(&against(coding, &old), &Compression::default().level, &[Bytes::from(new.clone())]).unwrap();
            assert!(form.len() < 4000, "{coding:?}: {} of {}", form.len(), new.len());
            assert!(decode_against(coding, &old, &form).unwrap() == new);
        }
    }

    #[test]
    fn a_dictionary_that_looks_like_one_of_zstd_is_bytes_like_any() {
        let old = [&[0x37, 0xa4, 0x30, 0xec][..], &text(100)].concat(); // the magic number of RFC 8878 §5
        for coding in DELTAS {
            let form = encode(&against(coding, &old), &Compression::default().level, &[Bytes::from(old.clone())]).unwrap();
            assert!(form.len() < 200 && decode_against(coding, &old, &form).unwrap() == old);
        }
    }

    /// Brotli's encoder would copy across the end of the dictionary here, if it could: what follows its end in the content is
    /// like the beginning of the content.
    #[test]
    fn what_is_appended_may_begin_like_the_whole() {
        let old = text(3000);
        for coding in DELTAS {
            for level in 2..=11 {
                let (new, levels) = ([&old[..], &old[..5000]].concat(), Levels { gzip: 1, brotli: level, zstd: level });
                let form = encode(&against(coding, &old), &levels, &[Bytes::from(new.clone())]).unwrap();
                assert!(form.len() < 500, "{coding:?} {level}: {}", form.len());
                assert!(decode_against(coding, &old, &form).unwrap() == new, "{coding:?} {level}");
            }
        }
    }

    /// The encoder sees another last byte than decoders do.
    #[test]
    fn nothing_is_copied_with_the_end_of_the_dictionary() {
        let old = text(100);
        let (last, rest) = old.split_last().unwrap();
        for coding in DELTAS {
            for (level, other) in (2..=11).flat_map(|level| (0..=u8::MAX).step_by(15).map(move |other| (level, other))) {
                let (end, levels) = (&rest[rest.len() - 300..], Levels { gzip: 1, brotli: level, zstd: level });
                let new = [&[0, 1, 2], end, &[other], end, &[*last, other, 0, other], end, &[other.wrapping_add(1)]].concat();
                let form = encode(&against(coding, &old), &levels, &[Bytes::from(new.clone())]).unwrap();
                assert!(decode_against(coding, &old, &form).unwrap() == new, "{coding:?} {level} {other}");
            }
        }
    }

    #[test]
    fn a_form_that_is_read_as_something_else_is_made_without_the_dictionary() {
        let (old, begin) = (text(1000), [&DCB_MAGIC[..], &[0; 32]].concat());
        let new = [&old[1000..], b"and an end"].concat();
        let mut delta = Delta::new(Coding::Dcb, 5, against(Coding::Dcb, &old).dictionary.unwrap());
        delta.push(&Bytes::from(new.clone()));
        let right = delta.with_end_that_nothing_copies().unwrap();
        // Distances count from the end: without its first byte it is as good.
        for (seen, is_used) in [(&right[..], true), (&right[1..], true), (&right[..right.len() - 1], false), (&right[..500], false)] {
            let form = delta.brotli_seeing(seen, begin.clone()).unwrap();
            assert!(decode_against(Coding::Dcb, &old, &form).unwrap() == new);
            assert_eq!(form.len() < 300, is_used, "{} bytes seen: {}", seen.len(), form.len());
        }
    }

    #[test]
    fn where_every_byte_stands_before_the_first_the_content_comes_back() {
        let old = text(300);
        let length = |bytes: std::ops::RangeInclusive<u8>| {
            let new: Vec<u8> = [b'l'].into_iter().chain(bytes.flat_map(|byte| [byte, b'l'])).chain(old.iter().copied()).collect();
            let form = encode(&against(Coding::Dcb, &old), &Compression::default().level, &[Bytes::from(new.clone())]).unwrap();
            assert!(decode_against(Coding::Dcb, &old, &form).unwrap() == new);
            form.len()
        };
        let (with, without) = (length(0..=254), length(0..=255));
        assert!(with < 800 && without > 2000, "{with} {without}");
    }

    #[test]
    fn no_client_needs_more_than_it_must_have() {
        let old = text(1000);
        let form = encode(&against(Coding::Dcz, &old), &Compression::default().level, &[Bytes::from(vec![b'a'; 8_000_000])]).unwrap();
        let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(&form[40..], &old).unwrap();
        decoder.window_log_max(23).unwrap();
        assert_eq!(io::copy(&mut decoder, &mut io::sink()).unwrap(), 8_000_000);
    }

    #[test]
    fn what_is_beyond_the_window_is_an_error() {
        let wanted = against(Coding::Dcb, &vec![0; 9 << 20]);
        let mut encoder = Encoder::new(&wanted, &Compression::default().level, None).unwrap();
        encoder.write(&Bytes::from(vec![0; 8 << 20])).unwrap();
        assert!(encoder.finish().is_err());
        assert!(Encoder::new(&Wanted::plain(Coding::Dcb), &Compression::default().level, None).is_err(), "there is no dictionary");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_come_back(
            dictionary in prop::collection::vec(any::<u8>(), 1..5000),
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..800), 0usize..5000, 0usize..3000), 0..6),
            alphabet in prop::sample::select(vec![1u8, 2, 5, 255]),
            level in 1u8..=11,
        ) {
            let reduced = |bytes: &[u8]| -> Vec<u8> { bytes.iter().map(|byte| byte % alphabet).collect() };
            let (dictionary, levels) = (reduced(&dictionary), Levels { gzip: 1, brotli: level, zstd: level });
            // Parts of the dictionary, and others.
            let part = |at: usize, length: usize| {
                let at = at % dictionary.len();
                &dictionary[at..(at + length).min(dictionary.len())]
            };
            let pieces: Vec<Bytes> = pieces.iter().map(|(own, at, length)| [&reduced(own), part(*at, *length)].concat().into()).collect();
            for coding in DELTAS {
                let form = encode(&against(coding, &dictionary), &levels, &pieces).unwrap();
                prop_assert_eq!(decode_against(coding, &dictionary, &form).unwrap(), pieces.concat());
            }
        }
    }
}
