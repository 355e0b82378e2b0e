//! A request head as it comes from a socket: where it ends, what it says, how its body is delimited.
//!
//! However the bytes are split on arrival, the same is said of them. `http1_connection` drives the connection behind this.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::config::settings::Limits;
use tiercel::listener::http1::framing::{self, BodyLength};
use tiercel::listener::http1::parse::{self, HeadExtent, HeadScan};
use tiercel::listener::{Refusal, RequestHead};
use tiercel::semantics::{Fields, Method, name};
use tiercel_fuzz::Arrival;

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let whole = HeadScan::default().scan(data, &limits);
    for arrival in Arrival::ways(data) {
        assert_eq!(whole, scan_as_it_comes(data, arrival, &limits), "{arrival:?}");
    }
    let mut plain = empty();
    let plain_end = parse::read_plain(data, &limits, &mut plain);
    let parsed = whole.ok().flatten().and_then(|extent| {
        let mut head = empty();
        parse::parse(&data[extent.start..extent.end], extent.field_lines, &limits, &mut head).ok()?;
        Some((head, extent))
    });
    let Some((mut head, extent)) = parsed else {
        assert_eq!(plain_end, None, "read in one step what is refused in two");
        return;
    };
    if let Some(end) = plain_end {
        let told = |head: &RequestHead| (head.method.clone(), head.target.clone(), head.minor_version, head.fields.clone());
        assert_eq!((end, told(&plain)), (extent.end, told(&head)));
        assert!(plain.fields.iter().eq(head.fields.iter()));
    }
    assert_eq!(head.fields.len(), extent.field_lines);
    let lengths = head.fields.values(name::CONTENT_LENGTH).count();
    let has_coding = head.fields.has(name::TRANSFER_ENCODING);
    if let Ok(plan) = framing::plan(&mut head, &limits) {
        assert!(lengths <= 1 && !(lengths == 1 && has_coding), "framing that two parsers could read differently was taken");
        assert_eq!(plan.body == BodyLength::Chunked, has_coding);
    }
});

fn empty() -> RequestHead {
    RequestHead { method: Method::GET, target: Vec::new(), minor_version: 1, fields: Fields::new() }
}

fn scan_as_it_comes(data: &[u8], mut arrival: Arrival, limits: &Limits) -> Result<Option<HeadExtent>, Refusal> {
    let (mut scan, mut there) = (HeadScan::default(), 0);
    loop {
        let found = scan.scan(&data[..there], limits)?;
        if found.is_some() || there == data.len() {
            return Ok(found);
        }
        there = arrival.next(there, data.len());
    }
}

/// Small enough for every bound to be reached.
fn limits() -> Limits {
    Limits { header_bytes: 1024, header_count: 8, url_bytes: 256, body_bytes: 1 << 20, ..Limits::default() }
}
