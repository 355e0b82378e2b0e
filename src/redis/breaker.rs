//! Leaves a Redis alone while it does not answer, so that not every request waits for it.
//!
//! ```text
//! closed --failures in a row--> open --wait over--> a probe is due --answered--> closed
//!                                 ^------------------- failed, waits twice as long ---'
//! ```

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// From opening to the first probe; doubled with each that fails, up to the second.
const WAIT_FIRST_MS: u64 = 250;
const WAIT_LAST_MS: u64 = 2000;

/// What it is told and asked comes with the time; it reads no clock.
#[derive(Debug)]
pub struct Breaker {
    after: u32,
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    wait_ms: u64,
    probe_at_ms: u64,
}

impl Breaker {
    /// Opens after so many failures in a row.
    pub fn new(after: u32) -> Self {
        Self { after, closed: AtomicBool::new(true), state: Mutex::default() }
    }

    /// Whether what it guards may be used.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether it is open, and time to ask once whether that is still right.
    pub fn is_probe_due(&self, now_ms: u64) -> bool {
        !self.is_closed() && now_ms >= self.state.lock().probe_at_ms
    }

    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        self.closed.store(true, Ordering::Release);
    }

    /// True if that opened it.
    pub fn failed(&self, now_ms: u64) -> bool {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < self.after {
            return false;
        }
        let was_closed = self.closed.swap(false, Ordering::AcqRel);
        // Those under way when it opened say nothing new.
        if was_closed || now_ms >= state.probe_at_ms {
            state.wait_ms = (state.wait_ms * 2).clamp(WAIT_FIRST_MS, WAIT_LAST_MS);
            state.probe_at_ms = now_ms + state.wait_ms;
        }
        was_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_only_then() {
        let breaker = Breaker::new(3);
        for _ in 0..2 {
            assert!(!breaker.failed(0));
            assert!(!breaker.failed(0));
            breaker.succeeded();
        }
        assert!(!breaker.failed(0) && !breaker.failed(0) && breaker.is_closed());
        assert!(breaker.failed(0) && !breaker.is_closed());
        assert!(!breaker.failed(1), "it is open");
    }

    #[test]
    fn probes_come_ever_later_until_one_is_answered() {
        let breaker = Breaker::new(1);
        breaker.failed(1000);
        breaker.failed(1001); // it was under way
        let mut now = 1000;
        for wait in [250, 500, 1000, 2000, 2000] {
            assert!(!breaker.is_probe_due(now + wait - 1), "{wait}");
            now += wait;
            assert!(breaker.is_probe_due(now), "{wait}");
            breaker.failed(now);
        }
        breaker.succeeded();
        assert!(breaker.is_closed() && !breaker.is_probe_due(u64::MAX));
        assert!(breaker.failed(now) && breaker.is_probe_due(now + 250), "from the start again");
    }
}
