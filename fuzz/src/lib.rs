//! What the fuzz targets share.

#[path = "../../tests/it/support/arrival.rs"]
pub mod arrival;

pub use arrival::Arrival;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tiercel::config::{Settings, Sources, load};
use tiercel::invalidation::Journal;
use tiercel::observe::access_log::AccessLog;
use tiercel::observe::metrics::Metrics;
use tiercel::proxy::{Live, Proxy};

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
