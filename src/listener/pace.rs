//! How long a client may keep us waiting for a request body, in one piece and in sum. Pure: told of the time.

use crate::clock::LAST_LOOK;
use crate::config::settings::Limits;
use crate::listener::Refusal;
use std::time::Duration;
use tokio::time::Instant;

const BODY_TIMEOUT: Refusal = Refusal { status: 408, reason: "body-timeout" };
const BODY_RATE: Refusal = Refusal { status: 408, reason: "body-rate" };

/// The waiting for one body. Time in which we take nothing in, because its reader has no room, is not the client's.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// In sum, what goes on now apart.
    waited: Duration,
    wait: Option<Wait>,
    /// Since when the sum is used up. One last look is for all waits from then on, or each byte would bring the next look.
    overdrawn: Option<Instant>,
    received: u64,
}

/// What goes on now.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    /// How long it may take.
    granted: Duration,
}

impl Pace {
    /// We wait for the client. When that must have an end, and what it is refused with then.
    pub fn wait(&mut self, now: impl FnOnce() -> Instant, limits: &Limits) -> (Instant, Refusal) {
        let since = self.wait.map_or_else(now, |wait| wait.since);
        let left = self.allowed(limits).map_or(Duration::MAX, |allowed| allowed.saturating_sub(self.waited));
        self.wait = Some(Wait { since, granted: left.min(limits.body_timeout) });
        self.overdrawn = left.is_zero().then(|| self.overdrawn.unwrap_or(since));
        match left < limits.body_timeout {
            true => (self.overdrawn.unwrap_or(since) + left, BODY_RATE),
            false => (since + limits.body_timeout, BODY_TIMEOUT),
        }
    }

    /// So many bytes came, or there is no room for more. Time in which the process was stopped is not the client's: who finds it
    /// later than the last look was not looking.
    pub fn stop(&mut self, now: impl FnOnce() -> Instant, received: usize) {
        self.received += received as u64;
        if let Some(Wait { since, granted }) = self.wait.take() {
            self.waited += now().saturating_duration_since(since).min(granted + LAST_LOOK);
        }
    }

    /// What waiting may add up to; the first `body_timeout` is for clients that begin slowly.
    fn allowed(&self, limits: &Limits) -> Option<Duration> {
        let earned_ms = self.received.saturating_mul(1000).checked_div(limits.body_rate)?;
        Some(limits.body_timeout.saturating_add(Duration::from_millis(earned_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::http1::limits;

    const SECOND: Duration = Duration::from_secs(1);

    /// A client that sends `bytes` every `every`: after how many seconds it is refused, and why.
    fn refused_after(bytes: usize, every: Duration, limits: &Limits) -> Option<(u64, &'static str)> {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let mut now = began;
        for _ in 0..10_000 {
            let (end, refusal) = pace.wait(|| now, limits);
            if end + LAST_LOOK <= now + every {
                return Some(((end - began).as_secs(), refusal.reason));
            }
            now += every;
            pace.stop(|| now, bytes);
        }
        None
    }

    #[test]
    fn a_body_that_drips_is_refused_and_one_at_the_rate_is_not() {
        let limits = Limits { body_timeout: 10 * SECOND, body_rate: 100, ..limits() };
        assert_eq!(refused_after(1, 11 * SECOND, &limits), Some((10, "body-timeout")));
        assert_eq!(refused_after(1, SECOND, &limits), Some((10, "body-rate")));
        assert_eq!(refused_after(50, SECOND, &limits), Some((19, "body-rate")));
        assert_eq!(refused_after(100, SECOND, &limits), None);
        // More often than a last look lasts, and at half the rate in pieces that earn as much.
        let fast = Limits { body_rate: 100 << 10, ..limits.clone() };
        assert_eq!(refused_after(1, LAST_LOOK / 2, &fast), Some((10, "body-rate")));
        assert_eq!(refused_after(1 << 10, 2 * LAST_LOOK - SECOND / 1000, &fast), Some((21, "body-rate")));
        assert_eq!(refused_after(1 << 10, LAST_LOOK, &fast), None);
        assert_eq!(refused_after(1, SECOND, &Limits { body_rate: 0, ..limits }), None);
    }

    #[test]
    fn time_without_room_is_not_the_clients() {
        let limits = Limits { body_timeout: 10 * SECOND, body_rate: 100, ..limits() };
        let (mut pace, began) = (Pace::default(), Instant::now());
        pace.wait(|| began, &limits);
        pace.stop(|| began + 4 * SECOND, 0);
        pace.stop(|| began + 999 * SECOND, 0);
        let later = began + 1000 * SECOND;
        assert_eq!(pace.wait(|| later, &limits), (later + 6 * SECOND, BODY_RATE));
    }

    #[test]
    fn time_in_which_nobody_looked_is_not_the_clients() {
        let limits = Limits { body_timeout: 10 * SECOND, body_rate: 100, ..limits() };
        let (mut pace, began) = (Pace::default(), Instant::now());
        pace.wait(|| began, &limits);
        let later = began + 1000 * SECOND;
        pace.stop(|| later, 300);
        assert_eq!(pace.wait(|| later, &limits), (later + 3 * SECOND - LAST_LOOK, BODY_RATE));
    }
}
