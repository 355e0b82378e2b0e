//! The admin listener (axum, a thread of its own) and the read-only metrics listener.
//!
//! It speaks JSON and plain text, never HTML; no GET changes anything. What it does to the rest of the program goes
//! through [`Control`]. Start reading at [`serve`], then `api`.

mod api;
mod auth;
mod connection;
mod purge;

use crate::config::settings::Secret;
use crate::invalidation::stream::Stream;
use crate::invalidation::{Mode, Receipt, Selector};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What the admin API can do to the rest of the program; `server::assembly` implements it.
pub trait Control: Send + Sync + 'static {
    /// Whether this caller may purge so many selectors now; else the seconds after which it may try again.
    fn admit_purge(&self, caller: IpAddr, selectors: usize) -> Result<(), u64>;
    /// Writes the audit line of a purge that was refused.
    fn refused_purge(&self, actor: &str, status: u16, reason: &str);
    /// Invalidates and writes the audit line; selectors are already normalised.
    fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt;
    fn receipt(&self, id: &str) -> Option<Receipt>;
    /// This node's end of the fleet's journal, where it is in a fleet.
    fn fleet(&self) -> Option<Arc<Stream>> {
        None
    }
    /// How long a purge waits for the fleet where nobody says.
    fn fleet_timeout(&self) -> Duration {
        Duration::ZERO
    }
    /// The `authority/path?query` of a URL, before any route's key rules.
    fn normalise_url(&self, url: &str) -> Result<String, String>;
    /// Whether a site has this name; else what helps.
    fn check_site(&self, name: &str) -> Result<(), String>;
    /// Whether something of this URL is in memory here.
    fn stored_here(&self, url: &str) -> bool;
    /// What the cache knows and would do for a request (`tiercel explain`).
    fn explain(&self, request: ExplainRequest) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>>;
    /// Re-reads the configuration whole or not at all; the error names every problem.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, ReloadRefused>> + Send>>;
    /// What is kept in Redis, as far as a bounded look tells (`tiercel redis-stats`).
    fn redis_usage(&self) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>> {
        Box::pin(async { Err("no Redis is configured ([cache.redis] url, [journal.redis] url)".into()) })
    }
    /// `Ok` when requests are welcome; else why not.
    fn ready(&self) -> Result<(), String>;
    /// What `journal.on_cutoff` says, while this node is cut off from the fleet's journal.
    fn cut_off(&self) -> Option<&'static str> {
        None
    }
    fn metrics(&self) -> String;
    /// The effective configuration, secrets masked.
    fn config(&self) -> serde_json::Value;
    fn status(&self) -> serde_json::Value;
    /// What has to be sent along, as the configuration says now: a reload may change it.
    fn token(&self) -> Option<Secret>;
    /// Most selectors in one call.
    fn selectors_per_call(&self) -> usize;
    /// The listener's connections are at their bound; a metric should show it.
    fn connections_full(&self) {}
}

/// Why a reload changed nothing, and what helps.
#[derive(Debug)]
pub struct ReloadRefused {
    pub message: String,
    pub remedy: &'static str,
}

/// A request to be explained, not made.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    pub url: String,
    #[serde(default = "get")]
    pub method: String,
    /// Request fields: pairs of name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// What the request carries, where that is part of the key.
    #[serde(default)]
    pub content: String,
}

fn get() -> String {
    "GET".into()
}

/// How long connections may take to end once the listener shuts down.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// A listener that runs.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    thread: JoinHandle<()>,
}

impl Handle {
    /// The bound address: the port is known even where 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the thread to end: at most two seconds after `shutdown`.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!(address = %self.address, "admin listener panicked");
        }
    }
}

/// Serves on a thread of its own until `shutdown` is ready.
///
/// `metrics_only`: nothing but `/metrics`, `/healthz` and `/readyz`, on any address. The whole admin API needs a token
/// unless the listener is bound to loopback; without one this fails with `InvalidInput`.
pub fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    metrics_only: bool,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Handle> {
    let address = listener.local_addr()?;
    if !metrics_only && control.token().is_none() && !address.ip().is_loopback() {
        let message = format!("the admin listener on {address} needs a token: only loopback does without");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        connection::Listener::new(tokio::net::TcpListener::from_std(listener)?, control.clone())
    };
    let guard = auth::Guard { control: (!metrics_only).then(|| control.clone()), loopback: address.ip().is_loopback() };
    let router = api::router(control, guard, metrics_only);
    let name = if metrics_only { "metrics" } else { "admin" };
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || runtime.block_on(run(listener, router, shutdown)))?;
    Ok(Handle { address, thread })
}

async fn run(listener: connection::Listener, router: axum::Router, shutdown: impl Future<Output = ()> + Send + 'static) {
    let (begun, begins) = tokio::sync::oneshot::channel();
    let signal = async move {
        shutdown.await;
        let _ = begun.send(());
    };
    let service = router.into_make_service_with_connect_info::<connection::PeerAddress>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(signal);
    tokio::select! {
        result = async { serving.await } => {
            if let Err(error) = result {
                tracing::error!(%error, "admin listener failed");
            }
        }
        () = async { let _ = begins.await; tokio::time::sleep(SHUTDOWN_WAIT).await } => {}
    }
}
