//! Well-formed responses mean the same through our codec and through hyper's: status, fields, interim responses, body,
//! trailers, and whether the connection is used again.

use crate::support::origin::{Origin, Recorded, Script, Step};
use crate::upstream::{codec_settings, get};
use proptest::prelude::*;
use proptest::sample::select;
use std::future::poll_fn;
use std::sync::Arc;
use tiercel::body::Chunk;
use tiercel::config::settings::UpstreamCodec;
use tiercel::listener::InterimSlot;
use tiercel::observe::metrics::Metrics;
use tiercel::semantics::{Fields, Method};
use tiercel::upstream::{Outbound, Upstream};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn well_formed_responses_mean_the_same_to_both_codecs(response in response(), step in 1usize..300) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let [ours, theirs] = [UpstreamCodec::Own, UpstreamCodec::Hyper].map(|codec| runtime.block_on(heard(&response, step, codec)));
        prop_assert_eq!(&ours.body, &response.body());
        prop_assert_eq!(ours, theirs);
    }
}

#[derive(Debug, Clone)]
struct Response {
    to_head: bool,
    interims: Vec<(u16, Vec<Line>)>,
    minor_version: u8,
    status: u16,
    reason: &'static str,
    lines: Vec<Line>,
    body: Body,
}

type Line = (String, Vec<u8>);

#[derive(Debug, Clone)]
enum Body {
    Length(Vec<u8>),
    Chunked(Vec<(Vec<u8>, &'static str)>, Vec<Line>),
    UntilClose(Vec<u8>),
}

/// What came through a codec.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    status: u16,
    length: Option<u64>,
    fields: Vec<Line>,
    interims: Vec<(u16, Vec<Line>)>,
    body: Vec<u8>,
    trailers: Vec<Line>,
    idle: usize,
}

fn line(name: &'static str) -> impl Strategy<Value = Line> {
    let inner = prop_oneof![8 => 0x21u8..=0x7e, 1 => 0x80u8..=0xff, 1 => Just(b' '), 1 => Just(b'\t')];
    let visible = || prop_oneof![5 => 0x21u8..=0x7e, 1 => 0x80u8..=0xff];
    let value = prop_oneof![
        1 => Just(Vec::new()),
        6 => (visible(), prop::collection::vec(inner, 0..40), visible()).prop_map(|(first, inner, last)| [&[first], &inner[..], &[last]].concat()),
    ];
    (name, value)
}

fn response() -> impl Strategy<Value = Response> {
    let lines = || prop::collection::vec(line("(Date|ETag|Set-Cookie|Vary|X-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,12})"), 0..9);
    let interims =
        prop::collection::vec((select(vec![100u16, 102, 103, 199]), prop::collection::vec(line("(Link|X-[a-z]{1,5})"), 0..3)), 0..3);
    let status = select(vec![200u16, 201, 203, 204, 301, 304, 404, 418, 500, 503, 599]);
    let reason = select(vec![" OK", " ", "", " Not\tso \u{e9}"]);
    let bytes = || prop::collection::vec(any::<u8>(), 0..500);
    let piece = (prop::collection::vec(any::<u8>(), 1..200), select(vec!["", "", ";a", ";a=b;c=\"d;e\""]));
    let body = prop_oneof![
        bytes().prop_map(Body::Length),
        (prop::collection::vec(piece, 0..5), prop::collection::vec(line("X-T-[a-z]{1,8}"), 0..3))
            .prop_map(|(pieces, trailers)| Body::Chunked(pieces, trailers)),
        bytes().prop_map(Body::UntilClose),
    ];
    let version = prop_oneof![4 => Just(1u8), 1 => Just(0u8)];
    (prop::bool::weighted(0.1), interims, version, status, reason, lines(), body).prop_map(
        |(to_head, interims, minor_version, status, reason, lines, body)| {
            let body = match body {
                // RFC 9112 §6.1: HTTP/1.0 knows no transfer codings.
                Body::Chunked(pieces, _) if minor_version == 0 => Body::Length(pieces.into_iter().flat_map(|piece| piece.0).collect()),
                body => body,
            };
            Response { to_head, interims, minor_version, status, reason, lines, body }
        },
    )
}

impl Response {
    fn has_body(&self) -> bool {
        !self.to_head && !matches!(self.status, 204 | 304)
    }

    fn body(&self) -> Vec<u8> {
        match &self.body {
            _ if !self.has_body() => Vec::new(),
            Body::Length(bytes) | Body::UntilClose(bytes) => bytes.clone(),
            Body::Chunked(pieces, _) => pieces.iter().flat_map(|piece| piece.0.clone()).collect(),
        }
    }

    fn wire(&self) -> Vec<u8> {
        let mut wire = Vec::new();
        for (status, lines) in &self.interims {
            wire.extend_from_slice(format!("HTTP/1.1 {status} Interim\r\n").as_bytes());
            write_lines(&mut wire, lines);
        }
        wire.extend_from_slice(format!("HTTP/1.{} {}{}\r\n", self.minor_version, self.status, self.reason).as_bytes());
        let mut lines = self.lines.clone();
        match &self.body {
            Body::Length(bytes) => lines.push(("Content-Length".into(), bytes.len().to_string().into_bytes())),
            Body::Chunked(..) => lines.push(("Transfer-Encoding".into(), b"chunked".to_vec())),
            Body::UntilClose(_) => {}
        }
        write_lines(&mut wire, &lines);
        match &self.body {
            _ if !self.has_body() => {}
            Body::Length(bytes) | Body::UntilClose(bytes) => wire.extend_from_slice(bytes),
            Body::Chunked(pieces, trailers) => {
                for (piece, extension) in pieces {
                    wire.extend_from_slice(format!("{:x}{extension}\r\n", piece.len()).as_bytes());
                    wire.extend_from_slice(piece);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\n");
                write_lines(&mut wire, trailers);
            }
        }
        wire
    }
}

fn write_lines(wire: &mut Vec<u8>, lines: &[Line]) {
    for (name, value) in lines {
        wire.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    wire.extend_from_slice(b"\r\n");
}

/// By name; lines of one name stay in order.
fn sorted(fields: &Fields) -> Vec<Line> {
    let mut lines: Vec<_> = fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    lines.sort_by(|one, other| one.0.cmp(&other.0));
    lines
}

async fn heard(response: &Response, step: usize, codec: UpstreamCodec) -> Heard {
    let (wire, closes) = (response.wire(), matches!(response.body, Body::UntilClose(_)) && response.has_body());
    let origin = Origin::start(move |_: &Recorded| {
        let script = Script::steps(wire.chunks(step).map(|piece| Step::Bytes(piece.to_vec())));
        if closes { script.then(Step::Close) } else { script }
    });
    let upstream = Upstream::new(Arc::new(codec_settings(codec, origin.addr())), 1, Metrics::new(1));
    let (mut slot, method) = (InterimSlot::default(), if response.to_head { Method::HEAD } else { Method::GET });
    let interim = Some(slot.sender());
    let mut inbound = upstream.send(Outbound { interim, method, ..get("/") }).await.expect("an answer");
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    while let Some(arriving) = &mut inbound.body {
        match poll_fn(|context| arriving.poll_chunk(context)).await {
            Some(Ok(Chunk::Data(data))) => body.extend_from_slice(&data),
            Some(Ok(Chunk::Trailers(fields))) => trailers = sorted(&fields),
            Some(Err(error)) => panic!("{codec:?}: {error}"),
            None => break,
        }
    }
    let mut interims = Vec::new();
    let mut receiver = slot.take().expect("made above");
    while let Some(interim) = receiver.try_recv() {
        interims.push((interim.status.as_u16(), sorted(&interim.fields)));
    }
    let idle = upstream.usage().idle;
    Heard { status: inbound.status.as_u16(), length: inbound.length, fields: sorted(&inbound.fields), interims, body, trailers, idle }
}
