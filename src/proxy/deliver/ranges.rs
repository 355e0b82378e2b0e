//! Parts of a response: 206 with one range or several (RFC 9110 §14, §15.3.7), and 416.

use super::{Asked, Body, dated, for_client, line, own};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody};
use crate::cache::StoredHead;
use crate::listener::Response;
use crate::proxy::outcome::Outcome;
use crate::semantics::{Fields, Now, StatusCode, name, range};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// 206 with one range.
pub fn one(
    asked: &Asked<'_>,
    head: &Arc<StoredHead>,
    body: Body<'_>,
    range: &Range<u64>,
    length: u64,
    age_ms: Option<u64>,
    outcome: Outcome,
) -> Response {
    let mut fields = partial_fields(asked, head, &outcome);
    line(&mut fields, name::CONTENT_RANGE, range::content_range(range, length).as_bytes());
    line(&mut fields, name::CONTENT_LENGTH, itoa::Buffer::new().format(range.end - range.start).as_bytes());
    let body = body.part(head, range.start, Some(range.end));
    own(asked, StatusCode::PARTIAL_CONTENT, fields, body, age_ms, outcome)
}

/// 206 with several: multipart/byteranges (§14.6).
pub fn several(
    asked: &Asked<'_>,
    head: &Arc<StoredHead>,
    body: Body<'_>,
    ranges: &[Range<u64>],
    length: u64,
    age_ms: Option<u64>,
    outcome: Outcome,
) -> Response {
    let boundary = format!("{:032x}", rand::random::<u128>());
    let mut fields = partial_fields(asked, head, &outcome);
    let kind = fields.get(name::CONTENT_TYPE);
    let parts: Vec<Part> =
        ranges.iter().map(|range| Part { opening: opening(&boundary, kind, range, length), range: range.clone() }).collect();
    let closing = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let total = parts.iter().map(|part| part.opening.len() as u64 + part.range.end - part.range.start).sum::<u64>() + closing.len() as u64;
    fields.remove(name::CONTENT_TYPE);
    line(&mut fields, name::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}").as_bytes());
    line(&mut fields, name::CONTENT_LENGTH, itoa::Buffer::new().format(total).as_bytes());
    let body = match body {
        Body::Stored { body, .. } => at_hand(body, parts, closing, total),
        body => ResponseBody::Stream { length: Some(total), stream: Box::pin(InTurn::new(&body, head, parts, closing)) },
    };
    own(asked, StatusCode::PARTIAL_CONTENT, fields, body, age_ms, outcome)
}

/// 416, with the length that there is (§15.5.17).
pub fn unsatisfiable(asked: &Asked<'_>, length: u64, outcome: Outcome, now: Now) -> Response {
    let mut fields = dated(now);
    line(&mut fields, name::CONTENT_RANGE, range::unsatisfied_range(length).as_bytes());
    own(asked, StatusCode::RANGE_NOT_SATISFIABLE, fields, ResponseBody::Empty, None, outcome)
}

/// The fields of a 206: without the length of the whole, a Content-Range that came with it, and Content-Digest, which is
/// of the content that a message has (RFC 9530 §2); Repr-Digest is of the representation and stays (§3).
///
/// Under If-Range the other representation fields stay, too, though the client should have them (RFC 9110 §15.3.7): one
/// that keeps bytes and tag alone would have a body without a type.
fn partial_fields(asked: &Asked<'_>, head: &StoredHead, outcome: &Outcome) -> Fields {
    let mut fields = for_client(asked, head, outcome).into_owned();
    fields.remove(name::CONTENT_LENGTH);
    fields.remove(name::CONTENT_RANGE);
    fields.remove("content-digest");
    fields
}

/// A range of a multipart answer, and what stands before its bytes.
struct Part {
    opening: Bytes,
    range: Range<u64>,
}

fn opening(boundary: &str, kind: Option<&[u8]>, range: &Range<u64>, length: u64) -> Bytes {
    let mut opening = format!("\r\n--{boundary}\r\n").into_bytes();
    if let Some(kind) = kind {
        opening.extend_from_slice(&[b"content-type: ", kind, b"\r\n"].concat());
    }
    opening.extend_from_slice(format!("content-range: {}\r\n\r\n", range::content_range(range, length)).as_bytes());
    opening.into()
}

/// Slices of the segments of a stored body: nothing is copied.
fn at_hand(whole: &Arc<StoredBody>, parts: Vec<Part>, closing: Bytes, total: u64) -> ResponseBody {
    let mut segments: Vec<Bytes> = Vec::new();
    for part in parts {
        segments.push(part.opening);
        slices(whole.segments(), &part.range, &mut segments);
    }
    segments.push(closing);
    ResponseBody::Stored { body: Arc::new(StoredBody::of_parts(&segments, whole)), start: 0, end: total }
}

/// Appends the pieces of `segments` that make up `range`.
pub fn slices(segments: &[Bytes], range: &Range<u64>, out: &mut Vec<Bytes>) {
    let mut at = 0u64;
    for segment in segments {
        let end = at + segment.len() as u64;
        let (from, to) = (range.start.max(at), range.end.min(end));
        if from < to {
            out.push(segment.slice((from - at) as usize..(to - at) as usize));
        }
        at = end;
    }
}

/// Parts of a body, each behind its opening. Each is opened at the start: a flight keeps for its readers what they have
/// yet to get, whatever order they were asked for in. An opening goes when the first bytes of its part are there: until
/// then the answer is worth nothing.
struct InTurn {
    parts: VecDeque<(Bytes, Pin<Box<dyn BodyStream>>)>,
    /// Behind the opening that went last.
    first: Option<Bytes>,
    closing: Option<Bytes>,
}

impl InTurn {
    fn new(body: &Body<'_>, head: &Arc<StoredHead>, parts: Vec<Part>, closing: Bytes) -> Self {
        let open = |part: Part| Some((part.opening, body.stream(head, part.range)?));
        Self { parts: parts.into_iter().filter_map(open).collect(), first: None, closing: Some(closing) }
    }
}

impl BodyStream for InTurn {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        let data = |bytes| Poll::Ready(Some(Ok(Chunk::Data(bytes))));
        if let Some(first) = this.first.take() {
            return data(first);
        }
        while let Some((opening, part)) = this.parts.front_mut() {
            match ready!(part.as_mut().poll_chunk(context)) {
                Some(Ok(Chunk::Data(bytes))) if opening.is_empty() => return data(bytes),
                Some(Ok(Chunk::Data(bytes))) => {
                    this.first = Some(bytes);
                    return data(std::mem::take(opening));
                }
                Some(Ok(Chunk::Trailers(_))) => {} // of the whole, if at all
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => drop(this.parts.pop_front()),
            }
        }
        Poll::Ready(this.closing.take().map(|closing| Ok(Chunk::Data(closing))))
    }

    fn is_revoked(&self) -> bool {
        self.parts.front().is_some_and(|(_, part)| part.is_revoked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the segments, a range of them is the range of the whole.
        #[test]
        fn slices_make_up_the_range(
            segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8), start in 0usize..60, span in 1usize..60,
        ) {
            let whole = segments.concat();
            let segments: Vec<Bytes> = segments.into_iter().map(Bytes::from).collect();
            let range = start.min(whole.len())..(start + span).min(whole.len());
            let mut out = Vec::new();
            slices(&segments, &(range.start as u64..range.end as u64), &mut out);
            prop_assert!(out.iter().all(|slice| !slice.is_empty()));
            prop_assert_eq!(out.concat(), &whole[range]);
        }
    }
}
