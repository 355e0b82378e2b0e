//! Codings of upstreams that are taken off: the first byte of the input says which, and in pieces of what size the rest comes.
//!
//! Whatever it is, no more comes out than may, and nothing after an error. Split anywhere it comes to the same bytes.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use tiercel::semantics::coding::Coding;
use tiercel::semantics::policy::DecodeLimits;
use tiercel::transform::decoder::{DecodeError, Decoder, OUT_MAX};

/// Small enough that a bomb is one at the length of an input here.
const LIMITS: DecodeLimits = DecodeLimits { ratio: 20, bytes: 3 << 20 };
/// No ratio is asked of so many bytes.
const FREE: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((first, form)) = data.split_first() else { return };
    let coding = Coding::PLAIN[usize::from(first % 3)];
    let whole = decode(coding, form, form.len().max(1));
    let split = decode(coding, form, usize::from(first / 3) + 1);
    if let (Ok(whole), Ok(split)) = (&whole, &split) {
        assert!(whole == split);
    }
    // In pieces the ratio is asked of what has come so far: only that may make a difference.
    assert!(whole.is_ok() == split.is_ok() || split == Err(DecodeError::TooLarge) || whole == Err(DecodeError::TooLarge));
});

fn decode(coding: Coding, form: &[u8], size: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(coding, LIMITS).expect("memory");
    let (mut out, mut read) = (Vec::new(), 0);
    for piece in form.chunks(size) {
        read += piece.len() as u64;
        let (mut input, mut has_more) = (VecDeque::from([Bytes::copy_from_slice(piece)]), true);
        while has_more {
            let bytes;
            (bytes, has_more) = decoder.decode(&mut input)?;
            assert!(bytes.len() <= OUT_MAX);
            out.extend_from_slice(&bytes);
        }
        assert!(out.len() as u64 <= (read * LIMITS.ratio).max(FREE).min(LIMITS.bytes));
    }
    out.extend_from_slice(&decoder.finish()?);
    assert!(out.len() as u64 <= (read * LIMITS.ratio).max(FREE).min(LIMITS.bytes));
    Ok(out)
}
