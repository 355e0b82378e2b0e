//! One request and its answer on a stream.

use super::connections::{Held, Stream};
use super::upload::Upload;
use crate::body::{BodyError, BodyStream, Chunk};
use crate::clock::Alarm;
use crate::http1::response::{BodyEnd, Fault, INTERIM_MAX, vet};
use crate::http2;
use crate::listener::RequestBody;
use crate::semantics::{StatusCode, hop};
use crate::upstream::codec::{Answer, Broken, Order, Pace, Reach};
use crate::upstream::{Arriving, FetchError, Outbound};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// Sends a request on a stream and waits for the head of its answer. Dropping this resets the stream.
pub(crate) async fn exchange(
    order: &Order<'_>,
    message: http::Request<()>,
    request: &mut Outbound,
    stream: Stream,
) -> Result<Answer, Broken> {
    let Stream { mut sender, held, .. } = stream;
    let is_bodiless = matches!(request.body, RequestBody::Empty | RequestBody::Stream { length: Some(0), .. })
        || matches!(&request.body, RequestBody::Full(bytes) if bytes.is_empty());
    let (response, sink) = match sender.send_request(message, is_bodiless) {
        Ok(begun) => begun,
        Err(error) => return Err(Broken { error: in_head(&error), reach: Reach::Unwritten }),
    };
    drop(sender);
    let body = std::mem::replace(&mut request.body, RequestBody::Empty);
    let upload = Upload::new(sink, if is_bodiless { RequestBody::Empty } else { body }, order.began);
    let mut talk = Conversation { response, upload, alarm: Alarm::default(), interims: 0 };
    match poll_fn(|context| talk.poll_head(context, order)).await {
        Ok(response) => answer(response, talk.upload, held, order),
        Err(Trouble::Stream(error)) => {
            let mut reach = reach(&error);
            if reach == Reach::Unwritten {
                match talk.upload.into_request_body() {
                    Some(body) => request.body = body,
                    None => reach = Reach::Answered, // what went of the body cannot be sent again
                }
            }
            Err(Broken { error: in_head(&error), reach })
        }
        Err(Trouble::Other(error)) => Err(Broken { error, reach: Reach::Answered }),
    }
}

struct Conversation {
    response: ResponseFuture,
    upload: Upload,
    alarm: Alarm,
    interims: u32,
}

/// Why there was no head.
enum Trouble {
    Stream(h2::Error),
    Other(FetchError),
}

impl Conversation {
    fn poll_head(&mut self, context: &mut Context<'_>, order: &Order<'_>) -> Poll<Result<http::Response<RecvStream>, Trouble>> {
        if let Poll::Ready(Err(error)) = self.upload.poll(context) {
            return Poll::Ready(Err(Trouble::Other(FetchError::RequestBody(error))));
        }
        while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(context) {
            self.relay(&interim, order).map_err(Trouble::Other)?;
        }
        if let Poll::Ready(response) = Pin::new(&mut self.response).poll(context) {
            return Poll::Ready(response.map_err(Trouble::Stream));
        }
        // An upload takes as long as the client needs for it.
        let Some(since) = self.upload.origin_silent_since() else { return Poll::Pending };
        ready!(self.alarm.poll_deadline(context, since + order.terms.first_byte_timeout));
        Poll::Ready(Err(Trouble::Other(FetchError::ResponseTimeout)))
    }

    fn relay(&mut self, interim: &http::Response<()>, order: &Order<'_>) -> Result<(), FetchError> {
        self.interims += 1;
        if self.interims > INTERIM_MAX {
            return Err(order.fault(Fault::Flood));
        }
        if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(FetchError::Malformed("unasked-101".to_owned())); // RFC 9113 §8.6
        }
        let mut fields = http2::fields(interim.headers()).map_err(|error| FetchError::Malformed(error.to_string()))?;
        hop::strip(&mut fields);
        order.relay(interim.status(), fields);
        Ok(())
    }
}

/// The answer, where its head may be believed.
fn answer(response: http::Response<RecvStream>, mut upload: Upload, held: Held, order: &Order<'_>) -> Result<Answer, Broken> {
    let (parts, incoming) = response.into_parts();
    let vetted = if parts.headers.len() > order.terms.header_count {
        Err(order.fault(Fault::HeadTooLarge("header-count")))
    } else {
        match http2::fields(&parts.headers) {
            Err(error) => Err(FetchError::Malformed(error.to_string())),
            Ok(fields) if fields.wire().len() > order.terms.header_bytes => Err(order.fault(Fault::HeadTooLarge("header-bytes"))),
            Ok(fields) => vet(&order.asked, 1, parts.status, fields).map_err(|fault| order.fault(fault)),
        }
    };
    let head = vetted.map_err(|error| Broken { error, reach: Reach::Answered })?;
    if head.status.as_u16() >= 400 {
        upload.stop(); // who refuses a request need not have the rest of it
    }
    let body = if head.body == BodyEnd::None || incoming.is_end_stream() {
        None
    } else {
        let open = Some(Open { incoming, upload, alarm: Alarm::default(), _held: held });
        Some(Arriving::Stream(Box::pin(Download { open, pace: order.pace(), silent_since: None })))
    };
    Ok(Answer { head, at: Instant::now(), body, tunnel: None })
}

/// How far a request came whose stream failed before there was an answer.
fn reach(error: &h2::Error) -> Reach {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    match (error.is_remote(), error.is_io()) {
        // RFC 9113 §8.7: the peer says that it did not act upon it. h2 tells a GOAWAY to the streams beyond its last alone.
        (true, _) if is_refused || error.is_go_away() => Reach::Unwritten,
        (_, true) => Reach::Unanswered,
        _ => Reach::Answered,
    }
}

fn in_head(error: &h2::Error) -> FetchError {
    match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => FetchError::Closed,
        Some(_) => FetchError::Reset,
        None if error.is_remote() && error.is_go_away() => FetchError::Closed,
        None if error.is_remote() => FetchError::Reset,
        None => FetchError::Malformed(error.to_string()),
    }
}

fn in_body(error: &h2::Error) -> BodyError {
    match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => BodyError::Truncated,
        None if !error.is_remote() => BodyError::Malformed,
        _ => BodyError::Reset,
    }
}

/// A response body on its way down. Its end gives the stream back; dropping it before resets the stream.
struct Download {
    /// `None` once the body has ended.
    open: Option<Open>,
    pace: Pace,
    /// Set when a read has to wait.
    silent_since: Option<Instant>,
}

struct Open {
    incoming: RecvStream,
    /// The client may still be sending to an origin that answers meanwhile.
    upload: Upload,
    alarm: Alarm,
    _held: Held,
}

impl Open {
    /// What comes next; `None` at the orderly end of the stream.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Chunk>, BodyError>> {
        if let Poll::Ready(Err(error)) = self.upload.poll(context) {
            return Poll::Ready(Err(error));
        }
        http2::poll_next(&mut self.incoming, context, in_body)
    }
}

impl BodyStream for Download {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = &mut *self;
        let Some(open) = &mut this.open else { return Poll::Ready(None) };
        let next = match open.poll_next(context) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                let since = *this.silent_since.get_or_insert_with(Instant::now);
                let Some(at) = this.pace.silent_until(since, open.upload.origin_silent_since()) else { return Poll::Pending };
                ready!(open.alarm.poll_deadline(context, at));
                Err(BodyError::Timeout)
            }
        };
        this.silent_since = None;
        let is_overdue = this.pace.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let next = if is_overdue { next.and(Err(BodyError::Timeout)) } else { next };
        if !matches!(next, Ok(Some(Chunk::Data(_)))) || open.incoming.is_end_stream() {
            this.open = None;
        }
        Poll::Ready(next.transpose())
    }
}
