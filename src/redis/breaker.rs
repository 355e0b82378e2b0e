//! Leaves a Redis alone while it does not answer, so that not every request waits for it.
//!
//! ```text
//! closed --failures in a row--> open --wait over--> one probe is admitted --answered--> closed
//!                                 ^---------------------- failed, waits twice as long ---'
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
    /// A probe was admitted and has not ended.
    is_probing: bool,
}

impl Breaker {
    /// Opens after so many failures in a row.
    pub fn new(after: u32) -> Self {
        Self { after, closed: AtomicBool::new(true), state: Mutex::default() }
    }

    /// Whether what it guards may be used by all.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether what it guards may be used now: by all while it is closed; while it is open by one of those who ask each time
    /// that the wait is over. A probe that never ends is followed by another after as long again.
    pub fn admits(&self, now_ms: u64) -> bool {
        if self.is_closed() {
            return true;
        }
        let mut state = self.state.lock();
        let is_admitted = now_ms >= state.probe_at_ms;
        if is_admitted {
            (state.is_probing, state.probe_at_ms) = (true, now_ms + state.wait_ms);
        }
        is_admitted
    }

    /// True if that closed it.
    pub fn succeeded(&self) -> bool {
        let mut state = self.state.lock();
        *state = State::default();
        !self.closed.swap(true, Ordering::AcqRel)
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
        if was_closed || state.is_probing {
            state.wait_ms = (state.wait_ms * 2).clamp(WAIT_FIRST_MS, WAIT_LAST_MS);
            (state.is_probing, state.probe_at_ms) = (false, now_ms + state.wait_ms);
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
            assert!(!breaker.succeeded(), "it was closed");
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
            assert!(!breaker.admits(now + wait - 1), "{wait}");
            now += wait;
            assert!(breaker.admits(now), "{wait}");
            assert!(!breaker.admits(now + 1), "one at a time");
            breaker.failed(now);
        }
        assert!(breaker.succeeded() && breaker.is_closed() && breaker.admits(now));
        assert!(breaker.failed(now) && !breaker.admits(now + 249) && breaker.admits(now + 250), "from the start again");
    }

    #[test]
    fn a_probe_that_nobody_hears_of_again_is_followed_by_another() {
        let breaker = Breaker::new(1);
        breaker.failed(0);
        assert!(breaker.admits(250) && !breaker.admits(499) && breaker.admits(500));
    }

    #[test]
    fn an_answer_to_what_was_under_way_closes_it_and_says_so() {
        let breaker = Breaker::new(1);
        assert!(breaker.failed(0));
        assert!(breaker.succeeded() && !breaker.succeeded());
    }
}
