//! The chunked transfer coding. However it is split on arrival: the same data, the same trailers, the same refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::http1::chunked::{ChunkError, Chunked};
use tiercel::semantics::Fields;
use tiercel_fuzz::Arrival;

const BODY_BYTES: u64 = 256; // small enough to be reached
const TRAILER_LINES: usize = 4;

fuzz_target!(|data: &[u8]| {
    let of_request = || Chunked::new(BODY_BYTES, TRAILER_LINES);
    let of_response = || Chunked::of_response(TRAILER_LINES);
    let [at_once, others @ ..] = Arrival::ways(data);
    let (request, response) = (decode(of_request(), data, at_once), decode(of_response(), data, at_once));
    for arrival in others {
        assert_eq!(request, decode(of_request(), data, arrival));
        assert_eq!(response, decode(of_response(), data, arrival));
    }
    assert!(request.data.len() as u64 <= BODY_BYTES);
    if request.error.is_none() {
        // A response may only have more said of it, never anything else.
        assert_eq!(request, response);
    }
});

#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    data: Vec<u8>,
    consumed: usize,
    error: Option<ChunkError>,
    /// As wire bytes.
    trailers: Option<Vec<u8>>,
}

fn decode(mut chunked: Chunked, input: &[u8], mut arrival: Arrival) -> Decoded {
    let mut decoded = Decoded { data: Vec::new(), consumed: 0, error: None, trailers: None };
    while decoded.consumed < input.len() && !chunked.is_done() {
        let there = arrival.next(decoded.consumed, input.len());
        match chunked.decode(&input[decoded.consumed..there]) {
            Ok(step) => {
                assert!(step.consumed > 0 && step.data <= step.consumed);
                decoded.consumed += step.consumed;
                decoded.data.extend_from_slice(&input[decoded.consumed - step.data..decoded.consumed]);
            }
            Err(error) => {
                decoded.error = Some(error);
                decoded.consumed = 0; // where in a piece it was found does not matter
                break;
            }
        }
    }
    decoded.trailers = chunked.take_trailers().map(|fields: Fields| fields.wire().to_vec());
    decoded
}
