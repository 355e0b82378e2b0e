//! What the fuzz targets share.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tiercel::config::{Settings, Sources, load};
use tiercel::invalidation::Journal;
use tiercel::observe::access_log::AccessLog;
use tiercel::observe::metrics::Metrics;
use tiercel::proxy::{Live, Proxy};

/// How bytes are split on arrival. What is said of them must not depend on it: a byte more or less per read is all that an
/// attacker needs to make two parsers disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    AtOnce,
    Bytewise,
    /// Pieces of any size; the state of the generator of their sizes.
    Uneven(u64),
}

impl Arrival {
    /// The ways in which an input is tried. The uneven one follows from the input, so that a finding needs nothing else to come
    /// back, and each mutation of an input is split elsewhere.
    pub fn ways(input: &[u8]) -> [Self; 3] {
        let seed = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        [Self::AtOnce, Self::Bytewise, Self::Uneven(seed | 1)]
    }

    /// Bytes of the next piece, at least one.
    pub fn piece(&mut self) -> usize {
        match self {
            Self::AtOnce => usize::MAX,
            Self::Bytewise => 1,
            Self::Uneven(state) => {
                *state ^= *state << 13; // xorshift: never zero where the seed is not
                *state ^= *state >> 7;
                *state ^= *state << 17;
                1 + (*state as usize >> 8) % [2, 16, 128, 1024][*state as usize % 4]
            }
        }
    }

    /// Up to where bytes are there after the next piece.
    pub fn next(&mut self, there: usize, length: usize) -> usize {
        length.min(there.saturating_add(self.piece()))
    }
}

/// What a configuration comes to; it must be right.
pub fn settings(name: &str, config: &str) -> Settings {
    let file = std::env::temp_dir().join(format!("tiercel-fuzz-{name}-{}.toml", std::process::id()));
    std::fs::write(&file, config).expect("a writable directory for temporary files");
    load(&Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A proxy that runs nowhere.
pub fn proxy(settings: &Settings) -> Arc<Proxy> {
    let metrics = Metrics::new(1);
    let access_log = Arc::new(AccessLog::open(&settings.log.access, Arc::clone(&metrics)).expect("off"));
    let live = Live::new(settings.clone(), None, &metrics);
    Proxy::new(settings, live, Arc::new(Journal::new(&settings.purge.bounds)), metrics, access_log, Arc::default())
}

/// What is there without waiting for anything.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("there is nothing to wait for"),
    }
}
