//! A response as it comes from an upstream. However it is split on arrival: the same heads, body, trailers, end, or the same fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::http1::response::{Asked, Event, Fault, Limits, Reader};
use tiercel_fuzz::Arrival;

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let asked = Asked { head: flags & 1 > 0, range: flags & 2 > 0, upgrade: (flags & 4 > 0).then(|| (*b"a, b").into()) };
    let [at_once, others @ ..] = Arrival::ways(bytes);
    let whole = read(asked.clone(), bytes, at_once);
    for arrival in others {
        assert_eq!(whole, read(asked.clone(), bytes, arrival), "{arrival:?}");
    }
});

/// Heads in order as text, body, trailers, bytes taken, and whether it ended.
type Read = (Vec<String>, Vec<u8>, Vec<u8>, usize, bool);

/// Reads what arrives, and then the end of the connection.
fn read(asked: Asked, bytes: &[u8], mut arrival: Arrival) -> Result<Read, Fault> {
    let mut reader = Reader::new(asked, Limits { header_bytes: 1024, header_count: 8 });
    let (mut heads, mut body, mut trailers, mut taken, mut there) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
    loop {
        let (length, event) = reader.next(&bytes[taken..there])?;
        taken += length;
        match event {
            Event::More if there == bytes.len() => break,
            Event::More => there = arrival.next(there, bytes.len()),
            Event::Interim(status, fields) => heads.push(format!("{status} {fields:?}")),
            Event::Final(head) => heads.push(format!("{head:?}")),
            Event::Data(data) => {
                assert!(data > 0 && data <= length);
                body.extend_from_slice(&bytes[taken - data..taken]);
            }
            Event::Trailers(fields) => trailers = fields.wire().to_vec(),
            Event::End => return Ok((heads, body, trailers, taken, true)),
        }
    }
    reader.close()?;
    Ok((heads, body, trailers, taken, true))
}
