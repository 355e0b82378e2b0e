//! Interim responses (1xx) on their way from an upstream to clients (RFC 9110 §15.2).
//!
//! Nearly every request has none, so a queue costs one small allocation and nothing more until something is sent.

use crate::semantics::{Fields, StatusCode};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// An interim response (1xx other than 101), to be sent before the final one. An upstream's 100 is not relayed.
#[derive(Debug, Clone)]
pub struct Interim {
    pub status: StatusCode,
    pub fields: Fields,
}

/// Interim responses that wait to be relayed; more are refused.
const QUEUE: usize = 16;

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Interim>,
    waker: Option<Waker>,
    closed: bool,
}

/// Where interim responses are sent while a request is handled.
#[derive(Debug, Clone)]
pub struct InterimSender(Arc<Mutex<State>>);

/// The other end. Dropping it closes the queue.
#[derive(Debug)]
pub struct InterimReceiver(Arc<Mutex<State>>);

/// Why an interim response was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// Too many wait.
    Full,
    /// Nobody listens any more.
    Closed,
}

impl InterimSender {
    /// A queue of its own.
    pub fn queue() -> (Self, InterimReceiver) {
        let state = Arc::<Mutex<State>>::default();
        (Self(Arc::clone(&state)), InterimReceiver(state))
    }

    /// Queues; never waits.
    pub fn try_send(&self, interim: Interim) -> Result<(), NotTaken> {
        let mut state = self.0.lock();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        if state.waiting.len() >= QUEUE {
            return Err(NotTaken::Full);
        }
        state.waiting.push_back(interim);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl InterimReceiver {
    /// The next one, if one waits.
    pub fn try_recv(&mut self) -> Option<Interim> {
        self.0.lock().waiting.pop_front()
    }

    /// The next one; pending for ever where none comes. One task waits at a time.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Interim> {
        let mut state = self.0.lock();
        if let Some(interim) = state.waiting.pop_front() {
            return Poll::Ready(interim);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// [`InterimReceiver::poll_recv`] as a future; cancel-safe.
    pub async fn recv(&mut self) -> Interim {
        poll_fn(|context| self.poll_recv(context)).await
    }
}

impl Drop for InterimReceiver {
    fn drop(&mut self) {
        // Without a sender there is nobody to tell, and there can be none any more.
        if Arc::strong_count(&self.0) == 1 {
            return;
        }
        let mut state = self.0.lock();
        state.closed = true;
        state.waiting.clear();
    }
}

/// Hands out a sender of interim responses, made when first asked for.
#[derive(Debug, Default)]
pub struct InterimSlot {
    receiver: Option<InterimReceiver>,
    /// Made before, and handed out in place of another.
    made: Option<InterimSender>,
}

impl InterimSlot {
    /// Hands out this one.
    pub const fn of(made: Option<InterimSender>) -> Self {
        Self { receiver: None, made }
    }

    pub fn sender(&mut self) -> InterimSender {
        if let Some(made) = &self.made {
            return made.clone();
        }
        let (sender, receiver) = InterimSender::queue();
        self.receiver = Some(receiver);
        sender
    }

    /// Like [`InterimSlot::sender`]; whoever asks afterwards gets the same one.
    fn shared_sender(&mut self) -> InterimSender {
        let sender = self.sender();
        self.made = Some(sender.clone());
        sender
    }

    /// The other end, for the connection.
    pub fn take(&mut self) -> Option<InterimReceiver> {
        self.receiver.take()
    }
}

/// The 100 that a client expects before it sends the body of its request (RFC 9110 §10.1.1): it is told once somebody wants that.
#[derive(Debug)]
pub(super) struct Continue(InterimSender);

impl Continue {
    pub fn expected(slot: &mut InterimSlot) -> Self {
        Self(slot.shared_sender())
    }

    /// Where there is an answer already none may follow it, and nobody listens.
    pub fn tell(self) {
        _ = self.0.try_send(Interim { status: StatusCode::CONTINUE, fields: Fields::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn early_hints() -> Interim {
        Interim { status: StatusCode::from_u16(103).unwrap(), fields: Fields::new() }
    }

    #[test]
    fn a_queue_is_bounded_and_closes_with_its_receiver() {
        let (sender, mut receiver) = InterimSender::queue();
        for _ in 0..QUEUE {
            sender.try_send(early_hints()).unwrap();
        }
        assert_eq!(sender.try_send(early_hints()), Err(NotTaken::Full));
        assert!(receiver.try_recv().is_some());
        sender.try_send(early_hints()).unwrap();
        drop(receiver);
        assert_eq!(sender.try_send(early_hints()), Err(NotTaken::Closed));
    }

    #[test]
    fn the_100_that_is_expected_goes_the_way_of_all_others() {
        let mut slot = InterimSlot::default();
        let expected = Continue::expected(&mut slot);
        let sender = slot.sender();
        let mut receiver = slot.take().unwrap();
        assert!(receiver.try_recv().is_none());
        expected.tell();
        sender.try_send(early_hints()).unwrap();
        let came: Vec<_> = std::iter::from_fn(|| receiver.try_recv()).map(|interim| interim.status.as_u16()).collect();
        assert_eq!(came, [100, 103]);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (sender, mut receiver) = InterimSender::queue();
        let waiting = tokio::spawn(async move { receiver.recv().await.status });
        tokio::task::yield_now().await;
        sender.try_send(early_hints()).unwrap();
        assert_eq!(waiting.await.unwrap(), 103);
    }
}
