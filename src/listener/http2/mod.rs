//! HTTP/2 connections: h2 speaks the protocol, [`Handler`] answers.
//!
//! Streams are requests that go on at once, each with its own flow control, so that a slow reader holds up nobody but
//! itself. A stream that is reset drops the work for it. What can be answered at once is answered on the spot, and all
//! answers to what came together go out together ([`connection`], [`stream`], [`watched`]). What became of them the socket
//! tells ([`leaving`]).
//!
//! In plain text it is spoken by prior knowledge (RFC 9113 §3.3): between nodes ([`crate::shield`]), and on listeners that
//! allow it, where [`http1`](super::http1) sees the preface and hands the socket over. An Upgrade to h2c is not taken: RFC
//! 9113 knows it no more.

pub(in crate::listener) mod answer;
mod connection;
mod duplex;
mod frames;
mod leaving;
mod request;
mod stream;
mod watched;

use crate::clock::{self, Alarm};
use crate::config::settings::Limits;
use crate::listener::turn::LOOKS_PER_WRITE_TIMEOUT;
use crate::listener::{Handler, Peer, Protocol, Socket};
use crate::observe::metrics::Bound;
use connection::Connection;
use frames::Excess;
use h2::server::Builder;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use watched::Seen;

/// What the requests of one connection share.
pub(in crate::listener) struct Shared<H> {
    pub peer: Peer,
    pub limits: Arc<Limits>,
    pub handler: Arc<H>,
    activity: Mutex<Activity>,
    /// Requests that wait for us, not for their client.
    ours: AtomicUsize,
    /// As many requests as a connection may have came.
    pub enough: Notify,
}

struct Activity {
    /// Requests under way.
    active: u32,
    served: u64,
    /// Since when there are none.
    idle_since: Instant,
}

impl<H: Handler> Shared<H> {
    pub fn new(peer: Peer, limits: Arc<Limits>, handler: Arc<H>) -> Arc<Self> {
        let activity = Mutex::new(Activity { active: 0, served: 0, idle_since: Instant::now() });
        Arc::new(Self { peer, limits, handler, activity, ours: AtomicUsize::new(0), enough: Notify::new() })
    }

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
        if activity.active == 0 {
            activity.idle_since = Instant::now();
        }
    }

    /// Answers are still on their way to the client: the time without a request begins when they are there. False before the
    /// first one.
    fn put_off_idling(&self) -> bool {
        let mut activity = self.activity.lock();
        if activity.served > 0 {
            activity.idle_since = Instant::now();
        }
        activity.served > 0
    }

    /// An answer is ready of which the client does not take the next byte.
    fn is_held_up(&self, seen: &Seen) -> bool {
        seen.open() > self.ours.load(Ordering::Relaxed)
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    /// Requests under way.
    pub fn under_way(&self) -> u32 {
        self.activity.lock().active
    }

    /// Until when the connection may stay without a request.
    pub fn idle_until(&self) -> Instant {
        let Activity { active, served, idle_since } = *self.activity.lock();
        match (active, served) {
            (0, 0) => idle_since + self.limits.header_timeout,
            (0, _) => idle_since + self.limits.idle_timeout,
            _ => Instant::now() + self.limits.idle_timeout,
        }
    }
}

/// Serves one connection to its end.
pub async fn serve<S, H>(io: S, mut peer: Peer, limits: Arc<Limits>, handler: Arc<H>, mut drain: watch::Receiver<bool>)
where
    S: Socket,
    H: Handler,
{
    peer.protocol = Protocol::Http2;
    let shared = Shared::new(peer, limits, handler);
    let mut serving = Connection::new(io, Arc::clone(&shared));
    let seen = Arc::clone(serving.seen());
    let (mut stall, mut alarm) = (Stall::default(), Alarm::default());
    // Once it ends: until when what is under way may go on; a drain has its own end.
    let mut ending: Option<Option<Instant>> = None;
    // Until when a client that was told of the end may go on asking: only its word that it has heard of it ends that before.
    let mut last_call: Option<Instant> = None;
    let mut given = false;
    loop {
        let look_at = Instant::now() + shared.limits.write_timeout / LOOKS_PER_WRITE_TIMEOUT;
        let looks = seen.open() > 0;
        let wake_at = match ending {
            Some(Some(until)) => until,
            Some(None) => last_call.filter(|at| *at > Instant::now()).map_or(look_at, |at| at.min(look_at)),
            None if looks => look_at.min(shared.idle_until()),
            None => shared.idle_until(),
        };
        tokio::select! {
            biased;
            served = poll_fn(|context| serving.poll(context)) => {
                if seen.is_given_up() && !given {
                    tell_excess(&shared, &seen);
                }
                if let Err(error) = served {
                    ended(&shared, &error);
                }
                return;
            }
            () = given_up(&seen), if !given => {
                given = true;
                ending = Some(Some(Instant::now() + GOODBYE));
                tell_excess(&shared, &seen);
            }
            // Until now there was nobody to look after, and the time to wake was that of an idle connection.
            () = opened(&seen), if !looks && ending.is_none() => {}
            _ = drain.wait_for(|drain| *drain), if ending.is_none() => {
                serving.end();
                ending = Some(None);
            }
            () = shared.enough.notified() => {
                serving.end();
                ending = ending.or(Some(None));
                last_call = Some(Instant::now() + shared.limits.header_timeout);
            }
            () = alarm.passed(wake_at) => match ending {
                Some(Some(_)) => return,
                _ if stall.lasts(&shared, &seen) => seen.give_up(),
                Some(None) if last_call.is_some_and(|at| at <= Instant::now()) => match shared.is_idle() {
                    true => return,
                    false => serving.refuse(),
                },
                None if seen.open() > 0 && shared.put_off_idling() => {}
                None if shared.idle_until() <= Instant::now() => {
                    shared.handler.bound(Bound::IdleTimeout);
                    serving.end();
                    ending = Some(Some(Instant::now() + shared.limits.header_timeout));
                }
                _ => {}
            },
        }
    }
}

/// How long a connection that is given up listens, so that its last frame is not lost to a reset.
const GOODBYE: Duration = Duration::from_secs(1);

/// Counts the bound for which the connection is given up.
fn tell_excess<H: Handler>(shared: &Shared<H>, seen: &Seen) {
    shared.handler.bound(match seen.excess() {
        Some(Excess::Resets) => Bound::Http2Resets,
        Some(Excess::Frames) => Bound::Http2IdleFrames,
        None => Bound::WriteTimeout,
    });
}

/// Ready once the connection is given up, which it finds out itself while it is served.
async fn given_up(seen: &Seen) {
    poll_fn(|_| if seen.is_given_up() { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Ready once a stream is open that could not be answered at once, which comes of serving, too: then not before others had their
/// turn, or a connection that ends its own would go on at once.
async fn opened(seen: &Seen) {
    poll_fn(|_| if seen.open() > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    tokio::task::yield_now().await;
}

/// For how long nothing of any answer could be written.
#[derive(Debug, Default)]
struct Stall {
    /// Since when it was so at each look, boot-time nanoseconds.
    since: Option<u64>,
}

impl Stall {
    /// Looks; true once a client has taken nothing for `write_timeout` of answers that are there: by closed windows, or by
    /// not reading at all.
    fn lasts<H: Handler>(&mut self, shared: &Shared<H>, seen: &Seen) -> bool {
        if !shared.is_held_up(seen) {
            self.since = None;
            return false;
        }
        let now = clock::nanos();
        let since = (*self.since.get_or_insert(now)).max(seen.progress_at());
        Duration::from_nanos(now.saturating_sub(since)) >= shared.limits.write_timeout
    }
}

/// A connection ended with an error: counts the bound of h2 that was behind it.
fn ended<H: Handler>(shared: &Shared<H>, error: &h2::Error) {
    tracing::debug!(client = %shared.peer.client, %error, "an HTTP/2 connection ended");
    if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) {
        shared.handler.bound(Bound::Http2Errors);
    }
}

/// Bytes that a field line takes beyond its own in the size of a list (RFC 9113 §6.5.2).
const LINE_OVERHEAD: usize = 32;

/// The size of a list of fields that may be understood: what is beyond `limits` is refused by us, and told of; h2 refuses in
/// silence.
pub(in crate::listener) fn header_list(limits: &Limits) -> u32 {
    u32::try_from(limits.header_bytes.saturating_add(limits.header_count.saturating_mul(LINE_OVERHEAD))).unwrap_or(u32::MAX)
}

fn builder(limits: &Limits) -> Builder {
    let bounds = &limits.http2;
    let mut builder = Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(bounds.streams)
        .initial_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .max_send_buffer_size(bounds.send_buffer)
        .max_pending_accept_reset_streams(bounds.resets_pending)
        .max_local_error_reset_streams(Some(bounds.errors))
        .max_header_list_size(header_list(limits));
    builder
}
