//! The chunked transfer coding. At once or byte by byte: the same data, the same trailers, the same refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::http1::chunked::{ChunkError, Chunked};
use tiercel::semantics::Fields;

const BODY_BYTES: u64 = 1 << 16;
const TRAILER_LINES: usize = 16;

fuzz_target!(|data: &[u8]| {
    let at_once = decode(data, data.len());
    let bytewise = decode(data, 1);
    assert_eq!(at_once.data, bytewise.data);
    assert_eq!(at_once.consumed, bytewise.consumed);
    assert_eq!(at_once.error, bytewise.error);
    assert_eq!(at_once.trailers.as_ref().map(Fields::wire), bytewise.trailers.as_ref().map(Fields::wire));
    assert!(at_once.data.len() as u64 <= BODY_BYTES);
});

struct Decoded {
    data: Vec<u8>,
    consumed: usize,
    error: Option<ChunkError>,
    trailers: Option<Fields>,
}

/// Decodes as if `piece` bytes came at a time.
fn decode(input: &[u8], piece: usize) -> Decoded {
    let mut chunked = Chunked::new(BODY_BYTES, TRAILER_LINES);
    let mut decoded = Decoded { data: Vec::new(), consumed: 0, error: None, trailers: None };
    while decoded.consumed < input.len() && !chunked.is_done() {
        let end = input.len().min(decoded.consumed + piece);
        match chunked.decode(&input[decoded.consumed..end]) {
            Ok(step) => {
                assert!(step.consumed > 0 && step.data <= step.consumed);
                let taken = decoded.consumed + step.consumed;
                decoded.data.extend_from_slice(&input[taken - step.data..taken]);
                decoded.consumed = taken;
            }
            Err(error) => {
                decoded.error = Some(error);
                decoded.consumed = 0; // where in a piece it was found does not matter
                return decoded;
            }
        }
    }
    decoded.trailers = chunked.take_trailers();
    decoded
}
