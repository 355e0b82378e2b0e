//! One stream of a connection: a request that comes in, and its answer on its way out.
//!
//! What can be answered at once is, on the connection's own task, and so is what of its body fits the client's windows. The rest
//! goes on in a task of its own, which ends with the stream.

use super::answer::{self, Answer, Asked, Event, Outgoing, Piece};
use super::duplex::Duplex;
use super::leaving::Leaving;
use super::{Shared, request};
use crate::body::BodyError;
use crate::clock::Alarm;
use crate::http2;
use crate::listener::turn::{Ahead, PIECE, Turn};
use crate::listener::{Handler, RequestBody};
use crate::observe::metrics::Bound;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Method;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::copy_bidirectional;
use tokio::time::Instant;

/// The longest frame that every client takes (RFC 9113 §4.2).
const FRAME: usize = PIECE;

/// Takes a request, and answers it as far as that needs no waiting. Where that panics its stream alone fails.
pub(super) fn begin<H: Handler>(
    shared: &Arc<Shared<H>>,
    leaving: &Arc<Leaving<H>>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    context: &mut Context<'_>,
) {
    let mut respond = Some(respond);
    let begun = catch_unwind(AssertUnwindSafe(|| answer(shared, leaving, request, &mut respond, context)));
    if let (Err(_), Some(respond)) = (begun, &mut respond) {
        respond.send_reset(Reason::INTERNAL_ERROR);
    }
}

/// `respond` is taken where the answer goes on in a task of its own.
fn answer<H: Handler>(
    shared: &Arc<Shared<H>>,
    leaving: &Arc<Leaving<H>>,
    request: http::Request<RecvStream>,
    respond: &mut Option<SendResponse<Bytes>>,
    context: &mut Context<'_>,
) {
    let (parts, incoming) = request.into_parts();
    let (tunnel, mut body) = if parts.method == Method::CONNECT { (Some(incoming), None) } else { (None, Some(incoming)) };
    let asked = answer::ask(shared, parts, |head, limits, expected| match body.take() {
        Some(incoming) => request::body(head, incoming, limits, expected),
        None => Ok(RequestBody::Empty),
    });
    let answer = match asked {
        Asked::Answered(answer) => answer,
        Asked::Later(waiting) => {
            if let Some(respond) = respond.take() {
                tokio::spawn(wait(waiting, respond, tunnel, Arc::clone(leaving)));
            }
            return;
        }
    };
    let Some(mut sending) = respond.as_mut().and_then(|respond| Sending::begin(answer, respond, tunnel)) else { return };
    if sending.tunnel.is_none() && sending.poll(leaving, context).is_ready() {
        leaving.add(sending);
    } else {
        tokio::spawn(sending.finish(Arc::clone(leaving)));
    }
}

/// Waits for the answer, and sends it to its end. Interim responses go before it.
async fn wait<H: Handler>(
    mut waiting: answer::Waiting<H>,
    mut respond: SendResponse<Bytes>,
    tunnel: Option<RecvStream>,
    leaving: Arc<Leaving<H>>,
) {
    let come = loop {
        tokio::select! {
            biased;
            event = waiting.event() => match event {
                // Where the stream has ended meanwhile nobody is left to be told.
                Event::Interim(head) => _ = respond.send_informational(head),
                Event::Response(come) => break come,
            },
            _ = poll_fn(|context| respond.poll_reset(context)) => return,
        }
    };
    if let Some(sending) = Sending::begin(waiting.answer(come), &mut respond, tunnel) {
        sending.finish(leaving).await;
    }
}

/// An answer of which the head went out.
pub(super) struct Sending<H: Handler> {
    stream: SendStream<Bytes>,
    body: Outgoing<H>,
    /// Waits for the client's windows.
    piece: Bytes,
    /// What comes from the client, where the stream is a tunnel.
    tunnel: Option<RecvStream>,
    /// For room, while there is none.
    turn: Option<Turn>,
    alarm: Alarm,
}

impl<H: Handler> Sending<H> {
    /// Sends the head. Who takes a refused stream's answer back is told that the client left.
    fn begin(answer: Answer<H>, respond: &mut SendResponse<Bytes>, incoming: Option<RecvStream>) -> Option<Self> {
        let Answer { head, body } = answer;
        match respond.send_response(head, body.is_end()) {
            Ok(stream) => {
                let tunnel = incoming.filter(|_| body.is_tunnel());
                Some(Self { stream, body, piece: Bytes::new(), tunnel, turn: None, alarm: Alarm::default() })
            }
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }

    async fn finish(mut self, leaving: Arc<Leaving<H>>) {
        match self.tunnel.take() {
            Some(incoming) => self.tunnel(incoming).await,
            None => {
                poll_fn(|context| self.poll(&leaving, context)).await;
                leaving.hand_over(self);
            }
        }
    }

    async fn tunnel(mut self, incoming: RecvStream) {
        let Some(mut upstream) = self.body.take_tunnel() else { return };
        let stream = Arc::new(Mutex::new(self.stream));
        let mut client = Duplex::new(incoming, Arc::clone(&stream));
        let copied = tokio::select! {
            biased;
            copied = copy_bidirectional(&mut client, &mut upstream) => copied.ok(),
            // After the client's end nothing is read that would tell.
            _ = poll_fn(|context| stream.lock().poll_reset(context)) => None,
        };
        let (to_client, aborted) = copied.map_or((0, Some(BodyError::Reset)), |(_, to_client)| (to_client, None));
        self.body.tunnelled(to_client, aborted);
    }

    /// Sends what there is of the body, as the client takes it; ready when h2 has all of it, or nobody gets any more.
    fn poll(&mut self, leaving: &Leaving<H>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.body.is_revoked() {
                return self.give_up(Bound::ReaderDetached);
            }
            if !self.piece.is_empty() {
                let Some(room) = ready!(self.poll_room(leaving, context)) else { return Poll::Ready(()) };
                let next = self.piece.split_to(room.min(self.piece.len()));
                let is_end = self.piece.is_empty() && self.body.is_end();
                if self.stream.send_data(next, is_end).is_err() {
                    return Poll::Ready(());
                }
                continue;
            }
            if self.body.is_end() {
                return Poll::Ready(());
            }
            let Poll::Ready(next) = self.body.poll_piece(context) else {
                return self.stream.poll_reset(context).map(drop);
            };
            match next {
                Some(Ok(Piece::Data(data))) => {
                    self.piece = data;
                    continue;
                }
                // Where the stream has ended meanwhile nobody is left to be told.
                Some(Ok(Piece::Trailers(trailers))) => _ = self.stream.send_trailers(trailers),
                None => _ = self.stream.send_data(Bytes::new(), true),
                Some(Err(_)) => self.stream.send_reset(Reason::INTERNAL_ERROR),
            }
            return Poll::Ready(());
        }
    }

    /// Bytes of a frame that the client's windows and h2 have room for; `None` where it gets no more. h2 is given no more than that:
    /// what it has nobody gets back, and of a frame that it has to divide it forgets the rest where the stream is reset.
    fn poll_room(&mut self, leaving: &Leaving<H>, context: &mut Context<'_>) -> Poll<Option<usize>> {
        let write_timeout = self.body.shared().limits.write_timeout;
        loop {
            if let Poll::Ready(room) = http2::poll_room(&mut self.stream, self.piece.len().min(FRAME), context) {
                self.turn = None;
                return Poll::Ready(room.map(|room| room.min(FRAME)));
            }
            let turn = self.turn.get_or_insert_with(|| Turn::begin(Instant::now(), leaving.line(), write_timeout));
            ready!(self.alarm.poll_deadline(context, turn.look_at));
            // h2 goes round the streams frame by frame, and has windows go to those first that have waited longest: before it is this
            // one's turn each other may send what h2 has of it, and a frame.
            let ahead = Ahead { of_each: self.body.shared().limits.http2.send_buffer.saturating_add(FRAME) as u64, of_all: 0 };
            // A connection of which nothing is taken at all is given up as a whole.
            if turn.is_passed_over(Instant::now(), leaving.line(), ahead, write_timeout) && leaving.goes_on_within(write_timeout / 2) {
                return self.give_up(Bound::WriteTimeout).map(|()| None);
            }
        }
    }

    fn give_up(&mut self, bound: Bound) -> Poll<()> {
        self.body.detach(bound);
        self.stream.send_reset(Reason::CANCEL);
        Poll::Ready(())
    }

    /// Whether the client does not have all of it, and may get it: its stream is one of those that are `open` on the wire. A body that
    /// is given up counts as in use until the client was told, because what it is told waits behind a piece of that.
    pub fn is_on_its_way(&mut self, open: &[u32], context: &mut Context<'_>) -> bool {
        if open.binary_search(&self.stream.stream_id().as_u32()).is_ok() {
            if self.body.is_revoked() {
                _ = self.give_up(Bound::ReaderDetached);
            }
            return true;
        }
        if self.body.is_end() && self.stream.poll_reset(context).is_pending() {
            self.body.taken();
        }
        false
    }
}
