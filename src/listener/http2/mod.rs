//! HTTP/2 connections: hyper speaks the protocol, [`Handler`] answers.
//!
//! Streams are requests that go on at once, each with its own flow control, so that a slow reader holds up nobody but
//! itself. A stream that is reset drops the work for it. Interim responses (1xx) do not go out: hyper has no way for
//! them; they are counted.
//!
//! In plain text it is spoken by prior knowledge (RFC 9113 §3.3): between nodes ([`crate::shield`]), and on listeners that
//! allow it, where [`http1`](super::http1) sees the preface and hands the socket over. An Upgrade to h2c is not taken: RFC
//! 9113 knows it no more.

mod answer;
mod request;

use crate::config::settings::Limits;
use crate::listener::{Handler, Peer, Protocol, Socket};
use crate::observe::metrics::Bound;
use answer::Outgoing;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// What a connection may make us hold or do, besides [`Limits`].
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests at a time on one connection.
    pub streams: u32,
    /// Bytes of a request body that may come before they are read.
    pub stream_window: u32,
    /// The same for all of a connection.
    pub connection_window: u32,
    /// Bytes of an answer that are taken over before the socket takes them, per stream.
    pub send_buffer: usize,
    /// Streams that the other side reset before they were looked at; one more closes the connection (CVE-2023-44487).
    pub resets_pending: usize,
    /// Streams that we had to reset for its errors; one more closes the connection.
    pub resets_of_errors: usize,
    /// A connection on which nothing comes for this long is asked whether it is there...
    pub keep_alive: Duration,
    /// ...and closed if it does not answer within this.
    pub keep_alive_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            streams: 256,
            stream_window: 64 << 10,
            connection_window: 1 << 20,
            send_buffer: 256 << 10,
            resets_pending: 20,
            resets_of_errors: 256,
            keep_alive: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(10),
        }
    }
}

/// What the requests of one connection share.
struct Shared<H> {
    peer: Peer,
    limits: Arc<Limits>,
    handler: Arc<H>,
    activity: Mutex<Activity>,
    /// As many requests as a connection may have came.
    enough: Notify,
}

struct Activity {
    /// Requests under way.
    active: u32,
    served: u64,
    /// Since when there are none.
    idle_since: Instant,
}

impl<H: Handler> Shared<H> {
    fn began(&self) {
        let mut activity = self.activity.lock();
        activity.active += 1;
        activity.served += 1;
        if activity.served == self.limits.requests_per_connection {
            self.handler.bound(Bound::RequestsPerConnection);
            self.enough.notify_one();
        }
    }

    fn ended(&self) {
        let mut activity = self.activity.lock();
        activity.active -= 1;
        activity.idle_since = Instant::now();
    }

    /// Until when the connection may stay without a request.
    fn idle_until(&self) -> Instant {
        let Activity { active, served, idle_since } = *self.activity.lock();
        match (active, served) {
            (0, 0) => idle_since + self.limits.header_timeout,
            (0, _) => idle_since + self.limits.idle_timeout,
            _ => Instant::now() + self.limits.idle_timeout,
        }
    }
}

/// Serves one connection to its end.
pub async fn serve<S, H>(io: S, mut peer: Peer, limits: Arc<Limits>, bounds: Bounds, handler: Arc<H>, mut drain: watch::Receiver<bool>)
where
    S: Socket,
    H: Handler,
{
    peer.protocol = Protocol::Http2;
    let activity = Mutex::new(Activity { active: 0, served: 0, idle_since: Instant::now() });
    let shared = Arc::new(Shared { peer, limits, handler, activity, enough: Notify::new() });
    let service = {
        let shared = Arc::clone(&shared);
        service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<http::Response<Outgoing<H>>, Infallible>(answer::to(shared, request).await) }
        })
    };
    let mut serving = pin!(builder(&shared.limits, &bounds).serve_connection(TokioIo::new(io), service));
    // Once it ends: until when what is under way may go on; a drain has its own end.
    let mut ending: Option<Option<Instant>> = None;
    loop {
        let wake_at = match ending {
            Some(Some(until)) => until,
            Some(None) => Instant::now() + shared.limits.idle_timeout,
            None => shared.idle_until(),
        };
        tokio::select! {
            biased;
            served = &mut serving => {
                if let Err(error) = served {
                    tracing::debug!(client = %shared.peer.client, %error, "an HTTP/2 connection ended");
                }
                return;
            }
            _ = drain.wait_for(|drain| *drain), if ending.is_none() => {
                serving.as_mut().graceful_shutdown();
                ending = Some(None);
            }
            () = shared.enough.notified() => {
                serving.as_mut().graceful_shutdown();
                ending = ending.or(Some(None));
            }
            () = sleep_until(wake_at) => match ending {
                Some(Some(_)) => return,
                None if shared.idle_until() <= Instant::now() => {
                    shared.handler.bound(Bound::IdleTimeout);
                    serving.as_mut().graceful_shutdown();
                    ending = Some(Some(Instant::now() + shared.limits.header_timeout));
                }
                _ => {}
            },
        }
    }
}

fn builder(limits: &Limits, bounds: &Bounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(bounds.streams)
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .max_send_buf_size(bounds.send_buffer)
        .max_pending_accept_reset_streams(bounds.resets_pending)
        .max_local_error_reset_streams(bounds.resets_of_errors)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(bounds.keep_alive)
        .keep_alive_timeout(bounds.keep_alive_timeout);
    builder
}
