//! Answers of which h2 has all, and the client not yet.
//!
//! h2 says nothing of what became of what it was given. The socket does: it sees the frame that ends a stream. Until then an
//! answer counts as on its way, its body as in use, and its client as one that may still be too slow.

use super::stream::Sending;
use super::watched::Seen;
use crate::clock;
use crate::listener::Handler;
use crate::listener::turn::Line;
use parking_lot::Mutex;
use std::mem::take;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

/// Those of one connection.
pub(super) struct Leaving<H: Handler> {
    state: Mutex<State<H>>,
    seen: Arc<Seen>,
}

struct State<H: Handler> {
    streams: Vec<Sending<H>>,
    /// The connection's task, which looks.
    connection: Option<Waker>,
    /// Nothing leaves any more.
    is_over: bool,
}

impl<H: Handler> Leaving<H> {
    pub fn new(seen: &Arc<Seen>) -> Self {
        let state = Mutex::new(State { streams: Vec::new(), connection: None, is_over: false });
        Self { state, seen: Arc::clone(seen) }
    }

    /// What went out, and which answers wait.
    pub fn line(&self) -> Line {
        Line { bytes: self.seen.written(), open: self.seen.open() }
    }

    /// Whether something of any answer of the connection was taken in this time.
    pub fn goes_on_within(&self, time: Duration) -> bool {
        clock::nanos().saturating_sub(self.seen.progress_at()) < time.as_nanos() as u64
    }

    /// Sees one off, from the connection's own task.
    pub fn add(&self, stream: Sending<H>) {
        let mut state = self.state.lock();
        if !state.is_over {
            state.streams.push(stream);
        }
    }

    /// Sees one off, from another task.
    pub fn hand_over(&self, stream: Sending<H>) {
        self.add(stream);
        let connection = self.state.lock().connection.take();
        if let Some(connection) = connection {
            connection.wake();
        }
    }

    /// Lets those go that are not among the `open` streams any more, and gives up those whose memory is wanted back.
    pub fn look(&self, open: &[u32], context: &mut Context<'_>) {
        let mut state = self.state.lock();
        if !state.connection.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.connection = Some(context.waker().clone());
        }
        if state.streams.is_empty() {
            return;
        }
        let mut streams = take(&mut state.streams);
        drop(state);
        streams.retain_mut(|stream| stream.is_on_its_way(open, context));
        if !streams.is_empty() {
            let mut state = self.state.lock();
            streams.append(&mut state.streams);
            state.streams = streams;
        }
    }

    /// The connection is over, and with it what was on its way.
    pub fn close(&self) {
        let mut state = self.state.lock();
        (state.is_over, state.connection) = (true, None);
        let streams = take(&mut state.streams);
        drop(state);
        drop(streams);
    }
}
