//! What wakes a connection besides its socket: one timer, and the signal to drain.
//!
//! The fast path must not pay for them: the timer is an [`Alarm`], and the drain signal is registered once and stays so.

use crate::clock::Alarm;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::sync::watch;
use tokio::time::Instant;

pub(super) struct Alarms {
    alarm: Alarm,
    drain: watch::Receiver<bool>,
    draining: bool,
    changed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whom the drain signal wakes.
    listener: Option<Waker>,
}

impl Alarms {
    pub fn new(drain: watch::Receiver<bool>) -> Self {
        let draining = *drain.borrow();
        Self { alarm: Alarm::default(), drain, draining, changed: None, listener: None }
    }

    /// Ready once `deadline` passed; until then the task is woken in time. Several deadlines may be asked for in turn.
    pub fn poll_deadline(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.alarm.poll_deadline(context, deadline)
    }

    /// Whether the connection is to end: one atomic load.
    pub fn draining(&mut self) -> bool {
        // An error says that nobody can ask to drain any more.
        if !self.draining && self.drain.has_changed().unwrap_or(false) {
            self.draining = *self.drain.borrow_and_update();
        }
        self.draining
    }

    /// Ready once the connection is to end.
    pub fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let seen = self.drain.has_changed().unwrap_or(false);
        if self.draining() {
            return Poll::Ready(());
        }
        let registered = self.listener.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if registered && !seen {
            return Poll::Pending;
        }
        self.listener = Some(context.waker().clone());
        let drain = &self.drain;
        let changed = self.changed.get_or_insert_with(|| Box::pin(turned_true(drain.clone())));
        changed.as_mut().poll(context)
    }
}

async fn turned_true(mut drain: watch::Receiver<bool>) {
    if drain.wait_for(|draining| *draining).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::LAST_LOOK;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_deadlines_wakes_and_the_later_stands() {
        let (_sender, receiver) = watch::channel(false);
        let mut alarms = Alarms::new(receiver);
        let began = Instant::now();
        let (soon, late) = (began + Duration::from_secs(1), began + Duration::from_secs(9));
        poll_fn(|context| {
            assert!(alarms.poll_deadline(context, late).is_pending());
            alarms.poll_deadline(context, soon)
        })
        .await;
        assert_eq!(Instant::now(), soon + LAST_LOOK);
        poll_fn(|context| alarms.poll_deadline(context, late)).await;
        assert_eq!(Instant::now(), late + LAST_LOOK);
    }

    #[tokio::test(start_paused = true)]
    async fn an_armed_timer_is_not_moved_but_serves_a_later_deadline() {
        let (_sender, receiver) = watch::channel(false);
        let mut alarms = Alarms::new(receiver);
        let began = Instant::now();
        poll_fn(|context| {
            assert!(alarms.poll_deadline(context, began + Duration::from_secs(1)).is_pending());
            Poll::Ready(())
        })
        .await;
        poll_fn(|context| alarms.poll_deadline(context, began + Duration::from_secs(5))).await;
        assert_eq!(Instant::now(), began + Duration::from_secs(5) + LAST_LOOK);
    }

    #[tokio::test]
    async fn the_drain_signal_wakes_and_stays() {
        let (sender, receiver) = watch::channel(false);
        let mut alarms = Alarms::new(receiver);
        assert!(!alarms.draining());
        let asked = tokio::spawn(async move {
            poll_fn(|context| alarms.poll_drain(context)).await;
            alarms.draining()
        });
        sender.send(true).unwrap();
        assert!(asked.await.unwrap());
    }
}
