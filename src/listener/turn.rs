//! Whether an answer for which there is no room waits for its turn, or for a client that does not take it. Pure: told of the
//! time and of what went out.
//!
//! Answers of one connection take turns. Where there are many of them and the connection is slow, each waits for long though its
//! client takes all that it can. So time alone says nothing: an answer is passed over where all others have had their turn, and
//! more, or where its client takes next to nothing of any.

use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked, once the time is over, whether a client takes its answers.
pub(super) const LOOKS_PER_WRITE_TIMEOUT: u32 = 4;

/// Bytes of a turn, and of what a connection whose answers wait has to take in each write timeout.
pub(super) const PIECE: usize = 16 << 10;

/// What went out of a connection so far, and how many answers wait for it now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub bytes: u64,
    pub open: usize,
}

/// Bytes that may go out before it is an answer's turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// Of each answer.
    pub of_each: u64,
    /// And of all together.
    pub of_all: u64,
}

/// An answer's wait for room.
#[derive(Debug)]
pub(super) struct Turn {
    since: Instant,
    /// When it is to be looked at it.
    pub look_at: Instant,
    bytes: u64,
    /// Answers that were there at any look.
    open: usize,
}

impl Turn {
    pub fn begin(now: Instant, line: Line, write_timeout: Duration) -> Self {
        Self { since: now, look_at: now + write_timeout, bytes: line.bytes, open: line.open }
    }

    /// Looks: whether the answer would have had its turn by now, had its client taken it.
    pub fn is_passed_over(&mut self, now: Instant, line: Line, ahead: Ahead, write_timeout: Duration) -> bool {
        self.look_at = now + write_timeout / LOOKS_PER_WRITE_TIMEOUT;
        self.open = self.open.max(line.open);
        let went_out = line.bytes.saturating_sub(self.bytes);
        let waited = now.saturating_duration_since(self.since).as_nanos();
        let least = waited.saturating_mul(PIECE as u128) / write_timeout.as_nanos().max(1);
        u128::from(went_out) < least || went_out > ahead.of_each.saturating_mul(self.open as u64).saturating_add(ahead.of_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const IN_HAND: u64 = 80 << 10;
    const AHEAD: Ahead = Ahead { of_each: IN_HAND, of_all: 0 };

    /// Of a connection with `open` answers that takes `rate` bytes a second, and never this one: after how many seconds it is given
    /// up, at most an hour.
    fn given_up_after(open: usize, rate: u64) -> Option<u64> {
        let begun = Instant::now();
        let line = |now: Instant| Line { bytes: 1000 + (now - begun).as_secs() * rate, open };
        let mut turn = Turn::begin(begun, line(begun), TIMEOUT);
        while turn.look_at < begun + Duration::from_secs(3600) {
            let now = turn.look_at;
            if turn.is_passed_over(now, line(now), AHEAD, TIMEOUT) {
                return Some((now - begun).as_secs());
            }
        }
        None
    }

    #[test]
    fn an_answer_is_given_up_once_all_others_had_their_turn_and_never_before() {
        assert_eq!(given_up_after(1, 0), Some(30));
        assert_eq!(given_up_after(100, 0), Some(30));
        assert_eq!(given_up_after(100, 500), Some(30), "less than 16 KiB in 30 s is next to nothing");
        assert_eq!(given_up_after(100, 1000), None, "its turn comes after more than two hours");
        assert_eq!(given_up_after(100, 100_000), Some(82), "8 MiB of 100 answers");
        assert_eq!(given_up_after(2, 100_000), Some(30));
    }

    #[test]
    fn answers_that_ended_meanwhile_had_their_turn_too() {
        let begun = Instant::now();
        let mut turn = Turn::begin(begun, Line { bytes: 0, open: 10 }, TIMEOUT);
        let now = turn.look_at;
        let mut is_passed_over = |bytes, open, of_all| turn.is_passed_over(now, Line { bytes, open }, Ahead { of_all, ..AHEAD }, TIMEOUT);
        assert!(!is_passed_over(10 * IN_HAND, 1, 0));
        assert!(!is_passed_over(12 * IN_HAND, 12, 0), "others came");
        assert!(!is_passed_over(12 * IN_HAND + 1, 1, 1));
        assert!(is_passed_over(12 * IN_HAND + 1, 1, 0));
        assert_eq!(turn.look_at, now + TIMEOUT / 4);
    }
}
