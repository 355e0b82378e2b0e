//! The only source of time.

use crate::semantics::Now;
use rustix::time::{ClockId, clock_gettime};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Reads both clocks.
pub fn now() -> Now {
    Now { wall_ms: read(ClockId::Realtime), mono_ms: read(ClockId::Boottime).unsigned_abs() }
}

/// The second of [`now`]'s readings alone.
pub fn mono_ms() -> u64 {
    read(ClockId::Boottime).unsigned_abs()
}

/// Boot-time nanoseconds, for durations.
pub fn nanos() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// A length in milliseconds, and the most that can be said where it is longer.
pub fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// One timer for all deadlines of a connection, at the price of the rarest of them.
///
/// It is armed only while something waits, and not moved while it stands early enough: it then fires early, once in a
/// while, and is set to the deadline that counts by then.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    sleeper: Option<Waker>,
}

impl Alarm {
    /// Ready once `deadline` passed; until then the task is woken in time. Several deadlines may be asked for in turn.
    pub fn poll_deadline(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        let registered = self.sleeper.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if registered && sleep.deadline() <= deadline && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        if !registered {
            self.sleeper = Some(context.waker().clone());
        }
        while sleep.as_mut().poll(context).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Lets go of the task that it would wake; the timer stays for the next one.
    pub fn release(&mut self) {
        self.sleeper = None;
        if let Some(sleep) = &mut self.sleep {
            let _ = sleep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}
