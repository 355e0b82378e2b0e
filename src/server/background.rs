//! Work that no request waits for: memory watch, housekeeping of the memory tier, sweeping what was purged.

use crate::proxy::Proxy;
use crate::semantics::reuse::Validity;
use crate::tier::memory::Change;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often memory is read.
const TICK: Duration = Duration::from_secs(1);

/// Starts the thread; it ends with the proxy.
pub fn spawn(proxy: Weak<Proxy>) -> std::io::Result<()> {
    std::thread::Builder::new().name("background".into()).spawn(move || {
        let mut swept = None;
        while let Some(proxy) = proxy.upgrade() {
            watch_memory(&proxy);
            proxy.memory.tend();
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

fn watch_memory(proxy: &Proxy) {
    let memory = proxy.live.load().settings.memory.clone();
    if let Some(resident) = resident_bytes() {
        proxy.press(resident as f64 > memory.limit as f64 * memory.pressure);
    }
}

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
            proxy.memory.update(variants.key().hash(), |there| match there {
                Some(there) if Arc::ptr_eq(there, &variants) => Change::Remove,
                _ => Change::Keep,
            });
        }
    }
}
