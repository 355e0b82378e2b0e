//! However the bytes of a connection are split on arrival, it comes to the same: what its handler is asked, the bodies it reads, the
//! answers, how it ends. The fuzz target `http1_connection` looks for inputs where that fails; here are those that are known, split at
//! every place, and random ones that are mostly HTTP.

use crate::support::arrival::Arrival;
use crate::support::wire::{Told, connection};
use proptest::prelude::*;
use proptest::sample::select;

/// Seeds of the fuzz target, one for most things that can happen.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/http1_connection");
    let files = std::fs::read_dir(folder).expect("the seeds").map(|entry| entry.expect("a readable entry").path());
    let mut seeds: Vec<_> = files.map(|file| (file.display().to_string(), std::fs::read(&file).expect("a readable seed"))).collect();
    seeds.sort();
    seeds
}

#[test]
fn known_connections_come_to_the_same_wherever_their_bytes_are_split() {
    let seeds = seeds();
    assert!(seeds.len() >= 20, "{} seeds", seeds.len());
    let (mut requests, mut refusals) = (0, 0);
    for (seed, bytes) in &seeds {
        let whole = connection(bytes, Arrival::AtOnce);
        requests += whole.requests.len();
        refusals += whole.reports.iter().filter(|report| report.status >= 400).count();
        for at in 1..bytes.len() {
            assert_eq!(whole, connection(bytes, Arrival::Split(at)), "{seed} split at {at}");
        }
        assert_eq!(whole, connection(bytes, Arrival::Bytewise), "{seed} byte by byte");
    }
    assert!(requests > 15 && refusals > 5, "{requests} requests, {refusals} refusals");
}

/// Parts of which random connections are made: in any order they are requests, what is behind them, and what is neither.
const PARTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n\r\n",
    b"HEAD /a?b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\n",
    b"PUT /echo HTTP/1.1\r\n",
    b"DELETE / HTTP/1.1\r\n",
    b"Host: x\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"TE: trailers\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 300\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Upgrade: chat\r\n",
    b"A : b\r\n",
    b" folded\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"00A;x=\"y\"\r\n0123456789\r\n",
    b"0\r\n\r\n",
    b"0\r\nX-Sum: 1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![12 => select(PARTS).prop_map(<[u8]>::to_vec), 1 => prop::collection::vec(any::<u8>(), 1..40)];
    prop::collection::vec(part, 1..24).prop_map(|parts| parts.concat())
}

fn arrival() -> impl Strategy<Value = Arrival> {
    prop_oneof![2 => (1usize..400).prop_map(Arrival::Split), 2 => (1u64..).prop_map(Arrival::Uneven), 1 => Just(Arrival::Bytewise)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_to_the_same_however_they_are_split(bytes in bytes(), arrival in arrival()) {
        let whole: Told = connection(&bytes, Arrival::AtOnce);
        prop_assert_eq!(whole, connection(&bytes, arrival), "{}", bytes.escape_ascii());
    }
}
