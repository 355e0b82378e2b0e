//! HTTP/3 connections: quinn has QUIC, h3 the protocol, [`Handler`] answers. Experimental, as h3 is.
//!
//! A request is answered by what answers those of HTTP/2 ([`super::http2::answer`]); here is what differs: how it comes in and
//! how its answer goes out. [`quic`] is between quinn and h3 and sees to what h3 does not: frames that are too long, streams
//! that end in the middle of one, and answers that did not end as they should and must not look as if they had.

pub mod quic;
mod request;

use crate::clock::{self, Alarm};
use crate::config::settings::Limits;
use crate::listener::http2::{Shared, answer, header_list};
use crate::listener::turn::{Ahead, Line, PIECE, Turn};
use crate::listener::{Handler, Peer, Protocol};
use crate::observe::metrics::Bound;
use crate::tls;
use answer::{Asked, Event, Outgoing, Piece};
use bytes::Bytes;
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use quic::Stopped;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, ServerConfig, TransportConfig, VarInt};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// RFC 9114 §3.1.
const ALPN: &[u8] = b"h3";
/// Streams besides requests that a client may have: control, two of QPACK, and some of no known kind.
const OTHER_STREAMS: u32 = 8;
/// Bytes of answers that quinn keeps per connection until they have arrived.
const SEND_WINDOW: u64 = 1 << 20;
/// What may go out before it is an answer's turn: a piece of each other, which may be lost and sent again, and what quinn has.
const AHEAD: Ahead = Ahead { of_each: 2 * PIECE as u64, of_all: SEND_WINDOW };
/// Over how long resets are counted.
const RESET_WINDOW: std::time::Duration = std::time::Duration::from_secs(10);

type Send = RequestStream<quic::SendStream<Bytes>, Bytes>;
type Resolver = RequestResolver<quic::Connection, Bytes>;

/// What a listener's QUIC connections are accepted with.
pub struct Terms {
    pub config: Arc<ServerConfig>,
    /// What it was made of.
    secure: Arc<rustls::ServerConfig>,
    limits: Arc<Limits>,
}

impl Terms {
    pub fn new(tls: &tls::Server, limits: Arc<Limits>) -> Option<Self> {
        let secure = tls.own_way();
        Some(Self { config: config(&secure, &limits)?, secure, limits })
    }

    /// Whether they would be the same by now.
    pub fn are_of(&self, tls: &tls::Server, limits: &Arc<Limits>) -> bool {
        Arc::ptr_eq(&self.secure, &tls.own_way()) && Arc::ptr_eq(&self.limits, limits)
    }
}

fn config(secure: &rustls::ServerConfig, limits: &Limits) -> Option<Arc<ServerConfig>> {
    let mut secure = secure.clone();
    secure.alpn_protocols = vec![ALPN.into()];
    secure.max_early_data_size = 0; // what comes in 0-RTT may be a replay
    let initial = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?.quic_suite()?;
    let secure = QuicServerConfig::with_initial(Arc::new(secure), initial).ok()?;
    let (bounds, mut transport) = (&limits.http2, TransportConfig::default());
    transport
        .max_concurrent_bidi_streams(bounds.streams.into())
        .max_concurrent_uni_streams(OTHER_STREAMS.into())
        .stream_receive_window(bounds.stream_window.into())
        .receive_window(bounds.connection_window.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok());
    let mut config = ServerConfig::with_crypto(Arc::new(secure));
    config.transport_config(Arc::new(transport));
    Some(Arc::new(config))
}

/// Serves one connection to its end.
pub async fn serve<H: Handler>(
    connection: quinn::Connection,
    mut peer: Peer,
    limits: Arc<Limits>,
    handler: Arc<H>,
    mut drain: watch::Receiver<bool>,
) {
    peer.protocol = Protocol::Http3;
    let shared = Shared::new(peer, limits, handler);
    let limits = Arc::clone(&shared.limits);
    let (quic, mut stopped, queue) = quic::Connection::guarded(connection.clone(), u64::from(header_list(&limits)));
    let mut builder = h3::server::builder();
    builder.max_field_section_size(header_list(&limits).into()).send_grease(false);
    let Ok(Ok(mut serving)) = clock::timeout(limits.header_timeout, pin!(builder.build(quic))).await else { return };
    let (mut requests, mut resets, mut alarm) = (JoinSet::new(), Resets::default(), Alarm::default());
    // Once it ends: until when what is under way may go on; a drain has its own end.
    let mut ending: Option<Option<Instant>> = None;
    let code = loop {
        if ending.is_some() && requests.is_empty() {
            break Code::H3_NO_ERROR;
        }
        let wake_at = ending.flatten().unwrap_or_else(|| shared.idle_until());
        let begins_to_end = tokio::select! {
            biased; // the deadline last: it has passed only if all else was looked at
            Some(ended) = requests.join_next() => {
                if matches!(ended, Ok(Ended::Reset)) && resets.one_more() > limits.http2.resets {
                    shared.handler.bound(Bound::Http3Resets);
                    break Code::H3_EXCESSIVE_LOAD;
                }
                false
            }
            _ = drain.wait_for(|drain| *drain), if ending.is_none() => {
                ending = Some(None);
                true
            }
            () = shared.enough.notified(), if ending.is_none() => {
                ending = Some(None);
                true
            }
            accepted = serving.accept() => match accepted {
                Ok(Some(resolver)) => {
                    let stopped = stopped.of(resolver.frame_stream.id().into_inner());
                    let out = Out { shared: Arc::clone(&shared), connection: connection.clone(), queue: Arc::clone(&queue) };
                    requests.spawn(answered(out, resolver, stopped));
                    false
                }
                Ok(None) => break Code::H3_NO_ERROR,
                Err(error) => {
                    tracing::debug!(client = %shared.peer.client, %error, "an HTTP/3 connection ended");
                    return;
                }
            },
            () = alarm.passed(wake_at) => match ending {
                Some(Some(_)) => break Code::H3_NO_ERROR,
                None if shared.idle_until() <= Instant::now() => {
                    shared.handler.bound(Bound::IdleTimeout);
                    ending = Some(Some(Instant::now() + limits.header_timeout));
                    true
                }
                _ => false,
            },
        };
        if begins_to_end && serving.shutdown(0).await.is_err() {
            return;
        }
    };
    connection.close(VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX), b"");
}

/// Requests that their client gave up.
#[derive(Default)]
struct Resets {
    since: Option<Instant>,
    count: u64,
}

impl Resets {
    /// How many there are now in the present window.
    fn one_more(&mut self) -> u64 {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since > RESET_WINDOW) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        self.count
    }
}

/// How a request ended.
enum Ended {
    /// As far as the client is concerned it was answered, or could not be.
    Answered,
    /// The client wants no answer any more, or never said what it wants.
    Reset,
}

/// One request, from its stream to the last byte of its answer in the client's hands. What is left of its stream when this is
/// dropped is reset.
async fn answered<H: Handler>(out: Out<H>, resolver: Resolver, mut stopped: Stopped) -> Ended {
    let limits = Arc::clone(&out.shared.limits);
    let resolved = clock::timeout(limits.header_timeout, pin!(resolver.resolve_request())).await;
    // Malformed and too large ones h3 has answered, or reset.
    let Ok(Ok((request, stream))) = resolved else { return Ended::Reset };
    let (mut send, receive) = stream.split();
    let parts = request.into_parts().0;
    if request::is_malformed(&parts) {
        send.stop_stream(Code::H3_MESSAGE_ERROR);
        return Ended::Reset;
    }
    let Some(body) = request::Incoming::begin(receive, &parts, &limits).await else { return Ended::Reset };
    let answer = match answer::ask(&out.shared, parts, |_, limits, expected| body.into_body(limits, expected)) {
        Asked::Answered(answer) => answer,
        Asked::Later(mut waiting) => loop {
            let event = tokio::select! {
                event = waiting.event() => event,
                _ = &mut stopped => return Ended::Reset,
            };
            match event {
                Event::Interim(head) => {
                    if !matches!(out.in_turn(send.send_response(head), || false).await, Some(Ok(()))) {
                        return Ended::Reset;
                    }
                }
                Event::Response(come) => break waiting.answer(come),
            }
        },
    };
    let (head, mut body) = (answer.head, answer.body);
    if !out.part(send.send_response(head), &mut body).await {
        return Ended::Reset;
    }
    let written = tokio::select! {
        written = out.write(&mut send, &mut body) => written,
        _ = &mut stopped => return Ended::Reset,
    };
    if written && out.part(send.finish(), &mut body).await {
        // Until it has arrived: the connection may be closed then.
        match out.in_turn_of(|| out.sent(), stopped, revoked(&mut body)).await {
            Some(true) => body.taken(),
            Some(false) => {}
            None => give_up(&mut body),
        }
    } else {
        send.stop_stream(Code::H3_INTERNAL_ERROR);
    }
    Ended::Answered
}

/// The way out of the answers of a connection.
struct Out<H> {
    shared: Arc<Shared<H>>,
    connection: quinn::Connection,
    queue: Arc<quic::Queue>,
}

impl<H: Handler> Out<H> {
    /// Of what there was room for: what is sent while a client takes nothing, acknowledgements above all, is not in it.
    fn taken(&self) -> Line {
        Line { bytes: self.queue.taken(), open: self.shared.under_way() as usize }
    }

    /// Of all that was sent: once quinn has all of an answer, it alone knows what is on its way.
    fn sent(&self) -> Line {
        Line { bytes: self.connection.stats().udp_tx.bytes, ..self.taken() }
    }

    async fn in_turn<T>(&self, sending: impl Future<Output = T>, is_unwanted: impl FnMut() -> bool) -> Option<T> {
        self.in_turn_of(|| self.taken(), sending, is_unwanted).await
    }

    /// What it comes to; `None` where the client does not take it though it would have been its turn, or is not waited for any
    /// longer.
    async fn in_turn_of<T>(
        &self,
        line: impl Fn() -> Line,
        sending: impl Future<Output = T>,
        mut is_unwanted: impl FnMut() -> bool,
    ) -> Option<T> {
        let write_timeout = self.shared.limits.write_timeout;
        let mut sending = pin!(sending);
        if let Poll::Ready(sent) = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await {
            return Some(sent);
        }
        let mut turn = Turn::begin(Instant::now(), line(), write_timeout);
        loop {
            if let Ok(sent) = clock::timeout_at(turn.look_at, sending.as_mut()).await {
                return Some(sent);
            }
            if is_unwanted() || turn.is_passed_over(Instant::now(), line(), AHEAD, write_timeout) {
                return None;
            }
        }
    }

    /// Sends a part of an answer with this body; false where the connection does not take it, or its client too slowly.
    async fn part<T, E>(&self, sending: impl Future<Output = Result<T, E>>, body: &mut Outgoing<H>) -> bool {
        match self.in_turn(sending, revoked(body)).await {
            Some(sent) => sent.is_ok(),
            None => {
                give_up(body);
                false
            }
        }
    }

    /// Writes the body of an answer; false where it did not come to its end, or the client takes it too slowly. What is taken in time
    /// is a piece, so that nobody holds a body for long by a few bytes now and then.
    async fn write(&self, send: &mut Send, body: &mut Outgoing<H>) -> bool {
        while !body.is_end() {
            let mut data = match poll_fn(|context| body.poll_piece(context)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(Piece::Data(data))) => data,
                Some(Ok(Piece::Trailers(trailers))) => {
                    return self.part(send.send_trailers(trailers), body).await;
                }
            };
            while !data.is_empty() {
                if body.is_revoked() {
                    give_up(body);
                    return false;
                }
                let piece = data.split_to(PIECE.min(data.len()));
                if !self.part(send.send_data(piece), body).await {
                    return false;
                }
                others_first().await;
            }
        }
        true
    }
}

/// Whether the memory behind a body is wanted back, asked again and again. It is held alone: other threads may not look at it.
fn revoked<H: Handler>(body: &mut Outgoing<H>) -> impl FnMut() -> bool {
    move || body.is_revoked()
}

/// It goes no further: its memory is wanted back, or else its client takes it too slowly.
fn give_up<H: Handler>(body: &mut Outgoing<H>) {
    body.detach(if body.is_revoked() { Bound::ReaderDetached } else { Bound::WriteTimeout });
}

/// Lets those go first that were woken meanwhile: they wait for the same room.
async fn others_first() {
    let mut is_behind = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
