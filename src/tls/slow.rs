//! Signatures that take longer than a worker may be held up (RSA, P-384): made on threads of their own.

use std::sync::LazyLock;
use tokio::runtime::{Builder, Runtime};

/// It runs nothing but blocking work; its queue is bounded by the handshakes that listeners allow at a time.
static ELSEWHERE: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let built = Builder::new_current_thread().max_blocking_threads(threads).thread_name("tls-sign").build();
    built.inspect_err(|error| tracing::error!(%error, "no threads for signatures: workers make them")).ok()
});

/// What `work` comes to; `None` where it panicked.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match &*ELSEWHERE {
        Some(runtime) => runtime.spawn_blocking(work).await.ok(),
        None => Some(work()),
    }
}
