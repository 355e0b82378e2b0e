//! One stream of a connection: a request that comes in, and its answer on its way out.
//!
//! What can be answered at once is, on the connection's own task, and so is what of its body fits the client's windows. The rest
//! goes on in a task of its own, which ends with the stream.

use super::answer::{self, Answer, Asked, Outgoing, Piece};
use super::duplex::Duplex;
use super::{Shared, request};
use crate::body::BodyError;
use crate::http2;
use crate::listener::{Handler, RequestBody};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Method;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::copy_bidirectional;

/// Takes a request, and answers it as far as that needs no waiting.
pub(super) fn begin<H: Handler>(
    shared: &Arc<Shared<H>>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    context: &mut Context<'_>,
) {
    let (parts, incoming) = request.into_parts();
    let (tunnel, mut body) = if parts.method == Method::CONNECT { (Some(incoming), None) } else { (None, Some(incoming)) };
    let asked = answer::ask(shared, parts, |head, limits| match body.take() {
        Some(incoming) => request::body(head, incoming, limits),
        None => Ok(RequestBody::Empty),
    });
    let sending = match asked {
        Asked::Answered(answer) => Sending::begin(answer, &mut respond, tunnel),
        Asked::Later(waiting) => {
            tokio::spawn(async move {
                let answer = tokio::select! {
                    biased;
                    answer = waiting.answer() => answer,
                    _ = poll_fn(|context| respond.poll_reset(context)) => return,
                };
                if let Some(sending) = Sending::begin(answer, &mut respond, tunnel) {
                    sending.finish().await;
                }
            });
            return;
        }
    };
    if let Some(mut sending) = sending
        && (sending.tunnel.is_some() || sending.poll(context).is_pending())
    {
        tokio::spawn(sending.finish());
    }
}

/// An answer of which the head went out, and not all of the body.
struct Sending<H: Handler> {
    stream: SendStream<Bytes>,
    body: Outgoing<H>,
    /// Waits for the client's windows.
    piece: Bytes,
    /// What comes from the client, where the stream is a tunnel.
    tunnel: Option<RecvStream>,
}

impl<H: Handler> Sending<H> {
    /// Sends the head; `None` where that was all. Who takes a refused stream's answer back is told that the client left.
    fn begin(answer: Answer<H>, respond: &mut SendResponse<Bytes>, incoming: Option<RecvStream>) -> Option<Self> {
        let Answer { head, body } = answer;
        let is_end = body.is_end();
        match respond.send_response(head, is_end) {
            Ok(stream) if !is_end => Some(Self { stream, piece: Bytes::new(), tunnel: incoming.filter(|_| body.is_tunnel()), body }),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }

    async fn finish(mut self) {
        match self.tunnel.take() {
            Some(incoming) => self.tunnel(incoming).await,
            None => poll_fn(|context| self.poll(context)).await,
        }
    }

    async fn tunnel(mut self, incoming: RecvStream) {
        let Some(mut upstream) = self.body.take_tunnel() else { return };
        let copied = copy_bidirectional(&mut Duplex::new(incoming, self.stream), &mut upstream).await;
        let (to_client, aborted) = copied.map_or((0, Some(BodyError::Reset)), |(_, to_client)| (to_client, None));
        self.body.tunnelled(to_client, aborted);
    }

    /// Sends what there is of the body, as the client takes it; ready at its end, or where nobody wants it any more.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.piece.is_empty() {
                // No more is reserved than shows that there is room: what others could use would lie idle while this waits.
                if ready!(http2::poll_room(&mut self.stream, 1, context)).is_none() {
                    return Poll::Ready(());
                }
                let (piece, is_end) = (std::mem::take(&mut self.piece), self.body.is_end());
                if self.stream.send_data(piece, is_end).is_err() || is_end {
                    return Poll::Ready(());
                }
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
}
