//! The only source of time.

use crate::semantics::Now;
use rustix::time::{ClockId, clock_gettime};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::coop::unconstrained;
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

/// Between a deadline and what is done about it. The process may have been stopped: then the deadline is found to have passed
/// before the sockets are looked at, for epoll_wait(2) ends without events where the process is continued. Within this time the
/// runtime hands out what came until then, also to thousands of connections.
pub const LAST_LOOK: Duration = Duration::from_millis(10);

/// One timer for all deadlines of a connection, at the price of the rarest of them.
///
/// It is armed only while something waits, and not moved while it stands early enough: it then fires early, once in a
/// while, and is set to the deadline that counts by then.
///
/// A deadline holds still until it has passed, or what it waits for has made real progress: one that whoever asks moves on each
/// time is never found to have passed. Who asks in a loop keeps one alarm for all its turns, for each alarm has its own last look.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    sleeper: Option<Waker>,
    /// When a deadline was last found to have passed: from then on the sockets are looked at once more.
    found: Option<Instant>,
}

impl Alarm {
    /// Ready once `deadline` passed and what came before it was handed out; until then the task is woken in time. Whoever asks
    /// has looked for what it waits for. Several deadlines may be asked for in turn.
    pub fn poll_deadline(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        let registered = self.sleeper.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if registered && sleep.deadline() <= deadline && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        let mut until = end_of_wait(self.found, deadline);
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        if !registered {
            self.sleeper = Some(context.waker().clone());
        }
        while poll_timer(sleep.as_mut(), context).is_ready() {
            if sleep.deadline() >= until {
                if until > deadline {
                    return Poll::Ready(());
                }
                self.found = Some(Instant::now().max(deadline));
                until = end_of_wait(self.found, deadline);
            }
            sleep.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// Lets go of the task that it would wake; the timer stays for the next one.
    pub fn release(&mut self) {
        self.sleeper = None;
        if let Some(sleep) = &mut self.sleep {
            let _ = poll_timer(sleep.as_mut(), &mut Context::from_waker(Waker::noop()));
        }
    }

    /// What `future` comes to, unless `deadline` passes before. It comes pinned: moved in, it would stand twice in whatever waits
    /// for this.
    pub async fn timeout_at<F: Future + Unpin>(&mut self, deadline: Instant, mut future: F) -> Result<F::Output, Elapsed> {
        poll_fn(|context| match Pin::new(&mut future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_deadline(context, deadline).map(|()| Err(Elapsed)),
        })
        .await
    }

    /// Ready once `deadline` passed.
    pub async fn passed(&mut self, deadline: Instant) {
        poll_fn(|context| self.poll_deadline(context, deadline)).await;
    }
}

/// A timer that goes off also for a task that has spent its turn: who never blocks has a deadline, too.
fn poll_timer(timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<()> {
    Pin::new(&mut unconstrained(timer)).poll(context)
}

/// When whoever waits for `deadline` has waited long enough.
fn end_of_wait(found: Option<Instant>, deadline: Instant) -> Instant {
    found.filter(|found| deadline <= *found).map_or(deadline, |found| found + LAST_LOOK)
}

/// The time for something is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// [`Alarm::timeout_at`] with an alarm of its own.
pub async fn timeout_at<F: Future + Unpin>(deadline: Instant, mut future: F) -> Result<F::Output, Elapsed> {
    Alarm::default().timeout_at(deadline, &mut future).await
}

/// [`timeout_at`] for what may take so long from now on.
pub fn timeout<F: Future + Unpin>(within: Duration, future: F) -> impl Future<Output = Result<F::Output, Elapsed>> {
    timeout_at(Instant::now() + within, future)
}

/// [`Alarm::passed`] with an alarm of its own.
pub async fn passed(deadline: Instant) {
    Alarm::default().passed(deadline).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// As where the process was stopped: the timer fires first, and what came is handed out in the turn after that.
    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_deadline_is_in_time_though_it_is_looked_at_after_it() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let handed_out = deadline + LAST_LOOK / 2;
        assert_eq!(timeout_at(deadline, pin!(tokio::time::sleep_until(handed_out))).await, Ok(()));
        assert_eq!(Instant::now(), handed_out);
        assert_eq!(timeout_at(deadline, std::future::pending::<()>()).await, Err(Elapsed));
        assert_eq!(Instant::now(), handed_out + LAST_LOOK);
    }

    #[tokio::test]
    async fn what_never_blocks_is_timed_out() {
        let busy = pin!(async {
            loop {
                tokio::task::coop::consume_budget().await;
            }
        });
        let timed = pin!(timeout(Duration::from_millis(20), busy));
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), timed).await, Ok(Err::<(), _>(Elapsed)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_last_look_serves_all_deadlines_that_have_passed() {
        let mut alarm = Alarm::default();
        let began = Instant::now();
        let (first, second) = (began + Duration::from_secs(1), began + Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        poll_fn(|context| alarm.poll_deadline(context, second)).await;
        assert_eq!(Instant::now(), began + Duration::from_secs(3) + LAST_LOOK);
        poll_fn(|context| alarm.poll_deadline(context, first)).await;
        assert_eq!(Instant::now(), began + Duration::from_secs(3) + LAST_LOOK);
        let later = Instant::now() + Duration::from_secs(1);
        poll_fn(|context| {
            assert!(alarm.poll_deadline(context, later).is_pending());
            alarm.poll_deadline(context, first)
        })
        .await;
        poll_fn(|context| alarm.poll_deadline(context, later)).await;
        assert_eq!(Instant::now(), later + LAST_LOOK);
    }
}
