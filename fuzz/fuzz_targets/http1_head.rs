//! A request head as it comes from a socket: where it ends, what it says, how its body is delimited.
//!
//! What is said of the bytes must not depend on how they were split on arrival: a byte more or less per read is all that an
//! attacker needs to make two parsers disagree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use tiercel::config::settings::Limits;
use tiercel::listener::http1::framing::{self, BodyLength};
use tiercel::listener::http1::parse::{self, HeadScan};
use tiercel::listener::{Refusal, RequestHead};
use tiercel::semantics::{Fields, Method, name};

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let whole = HeadScan::default().scan(data, &limits);
    let bytewise = scan_bytewise(data, &limits);
    match (&whole, &bytewise) {
        (Ok(Some(whole)), Ok(Some(piece))) => assert_eq!(whole, piece),
        (Ok(None), Ok(None)) => {}
        (Err(whole), Err(piece)) => assert_eq!(whole, piece),
        _ => panic!("at once {whole:?}, byte by byte {bytewise:?}"),
    }
    let Ok(Some(extent)) = whole else { return };
    let mut head = RequestHead { method: Method::GET, target: Vec::new(), minor_version: 1, fields: Fields::new() };
    if parse::parse(&data[extent.start..extent.end], extent.field_lines, &limits, &mut head).is_err() {
        return;
    }
    assert_eq!(head.fields.len(), extent.field_lines);
    let lengths = head.fields.values(name::CONTENT_LENGTH).count();
    let has_coding = head.fields.has(name::TRANSFER_ENCODING);
    if let Ok(plan) = framing::plan(&mut head, &limits) {
        assert!(lengths <= 1 && !(lengths == 1 && has_coding), "framing that two parsers could read differently was taken");
        assert_eq!(plan.body == BodyLength::Chunked, has_coding);
    }
});

fn scan_bytewise(data: &[u8], limits: &Limits) -> Result<Option<parse::HeadExtent>, Refusal> {
    let mut scan = HeadScan::default();
    for end in 0..=data.len() {
        if let Some(extent) = scan.scan(&data[..end], limits)? {
            return Ok(Some(extent));
        }
    }
    Ok(None)
}

fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits {
        connections: 1,
        requests_per_connection: 1,
        header_bytes: 4096,
        header_count: 64,
        url_bytes: 1024,
        body_bytes: 1 << 20,
        header_timeout: second,
        idle_timeout: second,
        body_timeout: second,
        write_timeout: second,
        waiting: 1,
    }
}
