//! Work that no request waits for: memory watch, housekeeping of the memory tier and of dictionaries, sweeping what was purged, taking back
//! what slow clients pin.

use crate::observe::metrics::Gauges;
use crate::proxy::{Pressure, Proxy};
use crate::semantics::reuse::Validity;
use crate::tier::memory::Change;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often memory is read.
const TICK: Duration = Duration::from_secs(1);

/// The least that a thread can ask for: it runs when no other wants to.
const LOWEST_PRIORITY: i32 = 19;

/// Starts the threads; they end with the proxy.
pub fn spawn(proxy: Weak<Proxy>) -> std::io::Result<()> {
    let served = proxy.clone();
    std::thread::Builder::new().name("forms".into()).spawn(move || {
        if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST_PRIORITY) {
            tracing::info!(%error, "forms that are sent often are made anew at the priority of the process");
        }
        while let Some(proxy) = served.upgrade() {
            proxy.tend_forms(TICK);
        }
    })?;
    std::thread::Builder::new().name("background".into()).spawn(move || {
        let (mut swept, mut scale) = (None, Scale::default());
        while let Some(proxy) = proxy.upgrade() {
            proxy.memory.tend();
            proxy.relieve();
            proxy.dictionaries.tend();
            watch_memory(&proxy, &mut scale);
            // Unsafe methods invalidate too often for a walk each time; what they made invalid goes with the next look-up.
            let applied = proxy.journal.stamp().purge;
            if swept != Some(applied) {
                sweep(&proxy);
                swept = Some(applied);
            }
            drop(proxy);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(())
}

fn watch_memory(proxy: &Proxy, scale: &mut Scale) {
    let memory = proxy.live.load().settings.memory.clone();
    if let Some(resident) = resident_bytes() {
        let held = proxy.memory_tier().bytes + proxy.fill_memory().0;
        proxy.press(scale.weigh(resident, (memory.limit as f64 * memory.pressure) as u64, held));
    }
}

/// Decides, reading by reading, what to do about the memory of the process.
///
/// What is freed mostly stays with the allocator and is used again, so the process hardly shrinks: shedding for as long as
/// it is too large would empty the cache (with a limit of 64 MiB, 38 MiB of responses became 1). So what is held when the
/// bound is passed, less a tenth, becomes the most that may be held; it is lowered again only where the process grows
/// nevertheless, and lifted once it has become smaller.
#[derive(Debug, Default)]
struct Scale {
    ceiling: Option<Ceiling>,
}

#[derive(Debug, Clone, Copy)]
struct Ceiling {
    /// Bytes that responses and fills may hold.
    held: u64,
    /// Bytes of the process when that was decided.
    resident: u64,
}

impl Scale {
    /// `resident`: bytes of the process, which should not pass `bound`; `held`: bytes of responses and fills among them.
    fn weigh(&mut self, resident: u64, bound: u64, held: u64) -> Pressure {
        if resident < bound - bound / RELIEF {
            self.ceiling = None;
            return Pressure::None;
        }
        let most = match self.ceiling {
            None if resident <= bound => return Pressure::None,
            None => self.lower(resident, held),
            Some(ceiling) if resident > ceiling.resident + bound / GROWTH => self.lower(resident, held.min(ceiling.held)),
            Some(ceiling) => ceiling.held,
        };
        match held {
            _ if held > most => Pressure::Shed,
            _ if held == most => Pressure::Full,
            _ => Pressure::None,
        }
    }

    fn lower(&mut self, resident: u64, held: u64) -> u64 {
        let held = held - held / 10;
        self.ceiling = Some(Ceiling { held, resident });
        held
    }
}

/// The process is small again when it is this part of the bound below it.
const RELIEF: u64 = 20;
/// It has grown when it is this part of the bound larger than before.
const GROWTH: u64 = 50;

/// Bytes of this process in memory (RSS).
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Frees what a purge made worthless; lookups do not depend on it.
fn sweep(proxy: &Proxy) {
    for variants in proxy.memory.values() {
        if variants.responses().iter().all(|response| response.head.check(&proxy.journal) == Validity::Purged) {
            // Only if it is still what was looked at: a newer response may have come.
            proxy.memory.update(variants.head.key.hash(), |there| match there {
                Some(there) if Arc::ptr_eq(there, &variants) => Change::Remove,
                _ => Change::Keep,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: u64 = 1000;

    #[test]
    fn a_process_that_does_not_shrink_keeps_what_it_may_hold() {
        let mut scale = Scale::default();
        assert_eq!(scale.weigh(1000, BOUND, 600), Pressure::None);
        assert_eq!(scale.weigh(1001, BOUND, 600), Pressure::Shed);
        assert_eq!(scale.weigh(1001, BOUND, 541), Pressure::Shed, "not enough yet");
        assert_eq!(scale.weigh(1001, BOUND, 540), Pressure::Full);
        for _ in 0..100 {
            assert_eq!(scale.weigh(1015, BOUND, 530), Pressure::None, "what was freed is used again");
        }
        assert_eq!(scale.weigh(1015, BOUND, 545), Pressure::Shed);
    }

    #[test]
    fn a_process_that_grows_nevertheless_may_hold_less_each_time() {
        let mut scale = Scale::default();
        assert_eq!(scale.weigh(1001, BOUND, 600), Pressure::Shed);
        assert_eq!(scale.weigh(1030, BOUND, 500), Pressure::Shed);
        assert_eq!(scale.weigh(1030, BOUND, 450), Pressure::Full);
        assert_eq!(scale.weigh(2000, BOUND, 0), Pressure::Full, "others hold it all: nothing may be added");
    }

    #[test]
    fn a_process_that_has_become_smaller_may_hold_all_again() {
        let mut scale = Scale::default();
        assert_eq!(scale.weigh(1001, BOUND, 600), Pressure::Shed);
        assert_eq!(scale.weigh(960, BOUND, 590), Pressure::Shed, "nearly as large as before");
        assert_eq!(scale.weigh(949, BOUND, 590), Pressure::None);
        assert_eq!(scale.weigh(999, BOUND, 590), Pressure::None);
    }
}
