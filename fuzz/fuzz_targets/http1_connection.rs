//! A whole client connection: bytes in, from the first head to the close, with bodies, further requests and answers out.
//!
//! However the bytes are split on arrival, the handler is asked the same, is given the same bodies, and the client gets the same
//! answers; every answer is one that a strict reader takes; every connection ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel_fuzz::{Arrival, arrival};
use wire::connection;

#[path = "../../tests/it/support/wire.rs"]
mod wire;

fuzz_target!(|data: &[u8]| {
    let [at_once, others @ ..] = Arrival::ways(data);
    let whole = connection(data, at_once);
    for arrival in others {
        assert_eq!(whole, connection(data, arrival), "{arrival:?}");
    }
});
