//! The only source of time.

use crate::semantics::Now;
use rustix::time::{ClockId, clock_gettime};

/// Reads both clocks.
pub fn now() -> Now {
    Now { wall_ms: read(ClockId::Realtime), mono_ms: read(ClockId::Boottime).unsigned_abs() }
}

/// Boot-time nanoseconds, for durations.
pub fn nanos() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}
