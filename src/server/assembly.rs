//! Builds the program from settings, and rebuilds what a reload changes.

use super::accept::Doorway;
use super::workers::Workers;
use super::{background, control::Controller, sockets};
use crate::admin;
use crate::config::{self, Settings, Sources};
use crate::invalidation::Journal;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Bound, Metrics};
use crate::proxy::{Live, Proxy};
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A running server.
pub struct Server {
    pub state: Arc<State>,
    pub admin: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    admin_stop: watch::Sender<bool>,
}

/// What a reload and the admin API reach.
pub struct State {
    pub proxy: Arc<Proxy>,
    pub sources: Sources,
    pub draining: AtomicBool,
    pub started: Instant,
    doors: Mutex<Doors>,
    drain: watch::Sender<bool>,
}

struct Doors {
    workers: Option<Workers>,
    open: HashMap<String, Door>,
}

/// An open listener.
struct Door {
    wanted: SocketAddr,
    bound: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Binds every address, then starts to serve. Nothing is left behind on an error.
    pub fn start(sources: Sources, mut settings: Settings) -> Result<Self> {
        let descriptors = sockets::raise_descriptor_limit();
        settings.limits.connections = settings.limits.connections.min(connections_for(descriptors, &settings));
        for warning in &settings.warnings {
            tracing::warn!(warning, "configuration");
        }
        let admin_socket = settings.admin.address.map(|address| sockets::bind(address, 1)).transpose().context("admin listener")?;
        let metrics_socket = settings.metrics.address.map(|address| sockets::bind(address, 1)).transpose().context("metrics listener")?;
        let metrics = Metrics::new(settings.server.workers);
        let access_log = Arc::new(AccessLog::open(&settings.log.access, Arc::clone(&metrics)).context("cannot open the access log")?);
        let journal = Arc::new(Journal::new(&settings.purge));
        let live = Live::new(settings.clone(), None, &metrics);
        let proxy = Proxy::new(&settings, live, journal, Arc::clone(&metrics), access_log);
        metrics.observe_gauges(Arc::clone(&proxy) as _);
        metrics.reloaded(true, &settings.hash);
        let workers = Workers::start(settings.server.runtime, settings.server.workers)?;
        let doors = Mutex::new(Doors { workers: Some(workers), open: HashMap::new() });
        let state = Arc::new(State {
            proxy,
            sources,
            draining: AtomicBool::new(false),
            started: Instant::now(),
            doors,
            drain: watch::Sender::new(false),
        });
        state.open(&settings)?;
        background::spawn(Arc::downgrade(&state.proxy))?;
        let admin_stop = watch::Sender::new(false);
        let control: Arc<dyn admin::Control> = Arc::new(Controller { state: Arc::clone(&state) });
        let serve = |socket: Option<Vec<std::net::TcpListener>>, token, metrics_only| -> Result<Option<SocketAddr>> {
            let Some(socket) = socket.and_then(|mut sockets| sockets.pop()) else { return Ok(None) };
            let address = socket.local_addr()?;
            let mut stop = admin_stop.subscribe();
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await; // an error means that the server is gone
            };
            admin::serve(socket, Arc::clone(&control), token, metrics_only, stopped)?;
            Ok(Some(address))
        };
        let admin = serve(admin_socket, settings.admin.token.clone(), false)?;
        let metrics = serve(metrics_socket, None, true)?;
        Ok(Self { state, admin, metrics, admin_stop })
    }

    /// Names and bound addresses of the listeners, in order of name.
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        self.state.listeners()
    }

    /// Stops accepting, answers what is under way, ends; true if nothing had to be cut within the drain timeout.
    pub fn drain(self) -> bool {
        let state = &self.state;
        state.draining.store(true, Ordering::Release);
        let timeout = state.proxy.live.load().settings.server.drain_timeout;
        let deadline = Instant::now() + timeout;
        state.close_all();
        state.drain.send_replace(true);
        while state.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(DRAIN_POLL);
        }
        let left = state.connections();
        if left > 0 {
            state.proxy.metrics.bound(Bound::DrainTimeout);
            tracing::warn!(connections = left, "drain timeout: connections are cut");
        }
        self.admin_stop.send_replace(true);
        let workers = state.doors.lock().workers.take();
        if let Some(workers) = workers {
            workers.end();
        }
        state.proxy.access_log.close();
        left == 0
    }
}

const DRAIN_POLL: Duration = Duration::from_millis(5);

/// Descriptors for everything but clients and upstreams: listeners, runtimes, logs, name servers, admin connections.
const RESERVED_DESCRIPTORS: usize = 256;

/// Client connections for which there are descriptors when every upstream has all of its own; at least the half of
/// what there is, and 16: where the caps of upstreams promise more than the limit, not all of them are used at once.
fn connections_for(descriptors: u64, settings: &Settings) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let upstreams = settings.upstreams.iter().map(|upstream| upstream.connections.saturating_mul(upstream.endpoints.len()));
    let upstreams = upstreams.fold(0, usize::saturating_add).min(descriptors / 2);
    (descriptors - upstreams).saturating_sub(RESERVED_DESCRIPTORS).max(16)
}

impl State {
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let mut all: Vec<_> = self.doors.lock().open.iter().map(|(name, door)| (name.clone(), door.bound)).collect();
        all.sort();
        all
    }

    pub fn connections(&self) -> usize {
        self.doors.lock().workers.as_ref().map_or(0, |workers| workers.shared.connections())
    }

    /// Opens what is wanted and not open yet; on an error what was open stays as it was.
    fn open(&self, settings: &Settings) -> Result<()> {
        let mut doors = self.doors.lock();
        let Some(workers) = &doors.workers else { return Ok(()) };
        let is_open =
            |listener: &config::settings::Listener| doors.open.get(&listener.name).is_some_and(|door| door.wanted == listener.address);
        let mut bound = Vec::new();
        for listener in settings.listeners.iter().filter(|listener| !is_open(listener)) {
            let sockets =
                sockets::bind(listener.address, workers.sockets_per_address()).with_context(|| format!("listeners.{}", listener.name))?;
            bound.push((listener.clone(), sockets));
        }
        let mut opened = Vec::new();
        for (listener, sockets) in bound {
            let address = sockets[0].local_addr()?;
            let stop = watch::Sender::new(false);
            let doorway = Arc::new(Doorway {
                name: listener.name.as_str().into(),
                proxy: Arc::clone(&self.proxy),
                limits: Arc::new(settings.limits.clone()),
                drain: self.drain.subscribe(),
            });
            workers.listen(sockets, &doorway, &stop.subscribe());
            opened.push((listener.name, Door { wanted: listener.address, bound: address, stop }));
        }
        for (name, door) in opened {
            if let Some(before) = doors.open.insert(name, door) {
                before.stop.send_replace(true);
            }
        }
        Ok(())
    }

    fn close_all(&self) {
        for (_, door) in self.doors.lock().open.drain() {
            door.stop.send_replace(true);
        }
    }

    /// Re-reads the configuration whole or not at all.
    pub fn reload(&self) -> Result<Arc<Settings>, String> {
        let result = self.try_reload();
        match &result {
            Ok(settings) => {
                self.proxy.metrics.reloaded(true, &settings.hash);
                tracing::info!(hash = settings.hash, "configuration reloaded");
            }
            Err(error) => {
                self.proxy.metrics.reloaded(false, &self.proxy.live.load().settings.hash);
                tracing::error!(error, "configuration refused; the old one stays");
            }
        }
        result
    }

    fn try_reload(&self) -> Result<Arc<Settings>, String> {
        let mut settings = config::load(&self.sources).map_err(|problems| problems.to_string())?;
        let before = self.proxy.live.load_full();
        config::changes(&before.settings, &settings).map_err(|problems| problems.to_string())?;
        settings.limits.connections = settings.limits.connections.min(before.settings.limits.connections.max(16));
        self.open(&settings).map_err(|error| format!("{error:#}"))?;
        let live = Arc::new(Live::new(settings, Some(&before), &self.proxy.metrics));
        let settings = Arc::clone(&live.settings);
        self.proxy.live.store(live);
        let mut doors = self.doors.lock();
        let gone: Vec<String> =
            doors.open.keys().filter(|name| !settings.listeners.iter().any(|wanted| wanted.name == **name)).cloned().collect();
        for name in gone {
            if let Some(door) = doors.open.remove(&name) {
                door.stop.send_replace(true);
            }
        }
        Ok(settings)
    }
}
