//! A connection from its preface to its end: h2 and the socket below it, driven together.

use super::leaving::Leaving;
use super::watched::{Seen, Watched};
use super::{Shared, builder, stream};
use crate::clock::{self, Alarm};
use crate::config::settings::{Http2, Limits};
use crate::listener::{Handler, Socket};
use bytes::Bytes;
use h2::server::Handshake;
use h2::{Ping, PingPong, Reason};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// Requests that are taken before other connections of the worker have their turn.
const TURN: usize = 64;

pub(super) struct Connection<S, H: Handler> {
    shared: Arc<Shared<H>>,
    socket: Watched<S>,
    seen: Arc<Seen>,
    state: State<S>,
    leaving: Arc<Leaving<H>>,
    /// It is to end once what is under way is answered.
    ends: bool,
    /// What its client asks for is not even looked at any more.
    refuses: bool,
}

enum State<S> {
    Begins(Handshake<Watched<S>, Bytes>),
    Open(h2::server::Connection<Watched<S>, Bytes>, KeepAlive),
}

impl<S: Socket, H: Handler> Connection<S, H> {
    pub fn new(socket: S, shared: Arc<Shared<H>>) -> Self {
        let (socket, seen) = Watched::new(socket, &shared.limits.http2);
        let state = State::Begins(builder(&shared.limits).handshake(socket.share()));
        let leaving = Arc::new(Leaving::new(&seen));
        Self { shared, socket, seen, state, leaving, ends: false, refuses: false }
    }

    /// What was seen on the socket.
    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    /// Takes no more requests than the client has sent by the time it hears of it.
    pub fn end(&mut self) {
        match &mut self.state {
            State::Begins(_) => self.ends = true,
            State::Open(connection, _) => connection.graceful_shutdown(),
        }
    }

    /// Takes no more requests: those that come may be sent again elsewhere.
    pub fn refuse(&mut self) {
        self.refuses = true;
    }

    /// Answers what came, and sends what is there to be sent; ready once the connection is over.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let served = self.poll_served(context);
        // A client that takes nothing is seen to by its write timeout.
        _ = self.socket.poll_send(context);
        self.socket.look_at_open(|open| self.leaving.look(open, context));
        served
    }

    fn poll_served(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let State::Begins(handshake) = &mut self.state {
            let mut connection = ready!(Pin::new(handshake).poll(context))?;
            if self.ends {
                connection.graceful_shutdown();
            }
            let keep_alive = KeepAlive::new(connection.ping_pong(), &self.shared.limits);
            self.state = State::Open(connection, keep_alive);
        }
        let State::Open(connection, keep_alive) = &mut self.state else { return Poll::Pending };
        if keep_alive.poll(&self.seen, context).is_ready() {
            tracing::debug!(client = %self.shared.peer.client, "a connection of HTTP/2 does not answer");
            connection.abrupt_shutdown(Reason::NO_ERROR);
            _ = connection.poll_closed(context); // says so, where it can be said
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURN {
            match ready!(connection.poll_accept(context)) {
                Some(accepted) => {
                    let (request, mut respond) = accepted?;
                    match self.refuses {
                        true => respond.send_reset(Reason::REFUSED_STREAM),
                        false => stream::begin(&self.shared, &self.leaving, request, respond, context),
                    }
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S, H: Handler> Drop for Connection<S, H> {
    fn drop(&mut self) {
        self.leaving.close();
    }
}

/// Asks a client of which nothing comes whether it is there.
struct KeepAlive {
    pings: Option<PingPong>,
    limits: Arc<Limits>,
    alarm: Alarm,
    look_at: Instant,
    /// Boot-time nanoseconds.
    asked_at: Option<u64>,
}

impl KeepAlive {
    fn new(pings: Option<PingPong>, limits: &Arc<Limits>) -> Self {
        let look_at = Instant::now() + limits.http2.keep_alive;
        Self { pings, limits: Arc::clone(limits), alarm: Alarm::default(), look_at, asked_at: None }
    }

    /// Ready where nothing came of it.
    fn poll(&mut self, seen: &Seen, context: &mut Context<'_>) -> Poll<()> {
        let Http2 { keep_alive, keep_alive_timeout, .. } = self.limits.http2;
        loop {
            ready!(self.alarm.poll_deadline(context, self.look_at));
            let (now, heard_at) = (clock::nanos(), seen.heard_at());
            let silent = Duration::from_nanos(now.saturating_sub(heard_at));
            if self.asked_at.is_some_and(|asked_at| heard_at <= asked_at) {
                return Poll::Ready(());
            }
            self.asked_at = None;
            self.look_at = Instant::now() + keep_alive.saturating_sub(silent);
            if silent < keep_alive {
                continue;
            }
            if let Some(pings) = &mut self.pings {
                _ = pings.poll_pong(context); // the answer to the one before was heard
                _ = pings.send_ping(Ping::opaque());
            }
            (self.asked_at, self.look_at) = (Some(now), Instant::now() + keep_alive_timeout);
        }
    }
}
