//! Builds the program from settings, and rebuilds what a reload changes.

use super::accept::Doorway;
use super::sockets::{Opened, SocketFile};
use super::workers::Workers;
use super::{background, certificates, control::Controller, sockets};
use crate::admin;
use crate::coalesce::lease::Leases;
use crate::config::settings::{ListenAddress, Listener, ListenerKind};
use crate::config::{self, Settings, Sources};
use crate::invalidation::journal::{Journal, Order};
use crate::invalidation::stream::Stream;
use crate::listener::AltSvc;
use crate::observe::access_log::AccessLog;
use crate::observe::log::LogHandle;
use crate::observe::metrics::{Bound, Metrics};
use crate::proxy::remote::Remote;
use crate::proxy::{Live, Proxy};
use crate::redis::Redis;
use crate::route::Router;
use crate::semantics::target::Scheme;
use crate::tier::redis::RedisTier;
use crate::tls;
use crate::tls::challenges::Challenges;
use anyhow::{Context, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
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
    /// The error log, whose level a reload may change.
    log: Option<LogHandle>,
    doors: Mutex<Doors>,
    /// Obtains certificates, where some are wanted.
    #[cfg(feature = "acme")]
    acme: Mutex<Option<tls::acme::Acme>>,
    drain: watch::Sender<bool>,
    /// Held by a reload from reading files to the end.
    reloading: Mutex<()>,
}

struct Doors {
    workers: Option<Workers>,
    open: Vec<Door>,
}

/// An open listener.
struct Door {
    wanted: ListenAddress,
    bound: ListenAddress,
    /// The name of its socket, which goes with the door.
    _file: Option<SocketFile>,
    stop: watch::Sender<bool>,
    doorway: Arc<Doorway>,
}

impl Door {
    fn name(&self) -> String {
        self.doorway.name.lock().to_string()
    }

    /// Whether this is what the configuration means. A name may change while the socket stays, but for port 0: there
    /// only the name tells which is which.
    fn is(&self, listener: &Listener) -> bool {
        let alike = self.wanted == listener.address && self.doorway.kind == listener.kind;
        alike && (!self.wanted.is_any_port() || self.name() == listener.name)
    }
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    pub name: String,
    pub address: ListenAddress,
    pub is_secure: bool,
}

impl Listening {
    pub fn url(&self) -> String {
        let scheme = if self.is_secure { Scheme::Https } else { Scheme::Http };
        match &self.address {
            ListenAddress::Tcp(address) => format!("{}://{address}", scheme.as_str()),
            socket @ ListenAddress::Unix { .. } => socket.to_string(),
        }
    }

    /// `None`: a socket of this machine.
    pub const fn tcp(&self) -> Option<SocketAddr> {
        match &self.address {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix { .. } => None,
        }
    }
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("the process is ending")]
    Ending,
    /// What `tiercel check` finds, too.
    #[error("{0}")]
    Wrong(config::Problems),
    /// Right as such, but not what the process was started with.
    #[error("{0}")]
    Fixed(config::Problems),
    /// An address that nobody could know to be taken without binding it.
    #[error("{0:#}")]
    Address(anyhow::Error),
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl ReloadError {
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Ending => "reload the process that takes its place",
            Self::Wrong(_) => "`tiercel check` shows the same problems",
            Self::Fixed(_) => "write these keys as they were and reload, or restart the process",
            Self::Address(_) => "give the listener another address, or end what listens there, and reload",
            Self::Failed(_) => "the message says what failed; reload again once that is mended",
        }
    }
}

/// What listeners with TLS show, by their names.
type Secured = HashMap<String, Arc<tls::Server>>;

fn secure(settings: &Settings, challenges: &Arc<Challenges>) -> Result<Secured> {
    let secure = |listener: Listener| {
        let tls = listener.tls.as_ref()?;
        let (sites, key) = match listener.kind {
            ListenerKind::Clients => (clients_of_sites(settings), format!("listeners.{}.tls", listener.name)),
            ListenerKind::Peers => (tls::Sites::none(), "shield.tls".into()),
        };
        let server = tls::Server::new(tls, sites, Arc::clone(challenges)).context(key);
        Some(server.map(|server| (listener.name, Arc::new(server))))
    };
    settings.sockets().filter_map(secure).collect()
}

fn clients_of_sites(settings: &Settings) -> tls::Sites<'_> {
    let router = Router::new(&settings.sites);
    let policies = settings.sites.iter().map(|site| site.client_certificates.as_ref()).collect();
    tls::Sites { policies, site_of: Box::new(move |host| router.site(host)) }
}

/// A listener that is bound and not served yet.
struct Bind {
    listener: Listener,
    opened: Opened,
    /// For HTTP/3.
    quic: Option<UdpSocket>,
}

impl Server {
    /// Binds every address, then starts to serve. Nothing is left behind on an error.
    pub fn start(sources: Sources, mut settings: Settings, log: Option<LogHandle>) -> Result<Self> {
        for warning in &settings.warnings {
            tracing::warn!(warning, "configuration");
        }
        fit_descriptors(&mut settings);
        reserve_pages(&settings);
        let challenges = Arc::default();
        let secured = secure(&settings, &challenges)?;
        let bound = bind_all(&settings, settings.sockets())?;
        let admin_socket = bind_one("admin.address", settings.admin.address)?;
        let metrics_socket = bind_one("metrics.address", settings.metrics.address)?;
        let metrics = Metrics::new(settings.server.workers);
        let access_log = AccessLog::open(&settings.log.access, Arc::clone(&metrics)).context("log.access.target: cannot be opened")?;
        let order = match settings.journal_redis() {
            Some(_) => Order::Fleet { tell_unsafe: settings.journal.tell_unsafe },
            None => Order::Own,
        };
        let journal = Arc::new(Journal::with_order(&settings.purge.bounds, order));
        let live = Live::new(settings.clone(), None, &metrics);
        let proxy = Proxy::new(&settings, live, journal, Arc::clone(&metrics), Arc::new(access_log), challenges);
        if let Some(tier) = &settings.redis {
            let redis = Redis::new(&tier.server, &metrics).context("cache.redis")?;
            let leases = settings.lease.enabled.then(|| Arc::new(Leases::new(&redis, settings.lease, tier.lookup_budget, &metrics)));
            let tier = RedisTier::start(redis, tier.clone(), settings.server.workers, &metrics).context("cache.redis")?;
            proxy.share(Remote::new(tier, leases));
        }
        metrics.observe_gauges(Arc::clone(&proxy) as _);
        metrics.reloaded(true, &settings.hash);
        let workers = Workers::start(settings.server.runtime, settings.server.workers)?;
        let state = Arc::new(State {
            proxy,
            sources,
            draining: AtomicBool::new(false),
            started: Instant::now(),
            log,
            doors: Mutex::new(Doors { workers: Some(workers), open: Vec::new() }),
            #[cfg(feature = "acme")]
            acme: Mutex::default(),
            drain: watch::Sender::new(false),
            reloading: Mutex::default(),
        });
        background::spawn(Arc::downgrade(&state.proxy))?;
        follow_journal(&state.proxy, &settings)?;
        let admin_stop = watch::Sender::new(false);
        let control: Arc<dyn admin::Control> = Arc::new(Controller { state: Arc::clone(&state) });
        let serve = |socket: Option<TcpListener>, metrics_only| -> Result<Option<SocketAddr>> {
            let Some(socket) = socket else { return Ok(None) };
            let mut stop = admin_stop.subscribe();
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await; // an error means that the server is gone
            };
            Ok(Some(admin::serve(socket, Arc::clone(&control), metrics_only, stopped)?.address()))
        };
        let (admin, metrics) = (serve(admin_socket, false)?, serve(metrics_socket, true)?);
        state.listen(&settings, bound, &secured)?;
        certificates::tell_expiries(&state);
        certificates::spawn(Arc::downgrade(&state))?;
        #[cfg(feature = "acme")]
        state.obtain_certificates(&settings)?;
        Ok(Self { state, admin, metrics, admin_stop })
    }

    /// The listeners, in order of name.
    pub fn listeners(&self) -> Vec<Listening> {
        self.state.listeners()
    }

    /// Gives others the time to notice that we are about to go, stops accepting, answers what is under way, ends; true if
    /// nothing had to be cut within the drain timeout.
    pub fn drain(self) -> bool {
        let state = &self.state;
        // Readiness first: whoever asks from here on is told to send requests elsewhere.
        state.draining.store(true, Ordering::Release);
        let (delay, timeout) = {
            let server = &state.proxy.live.load().settings.server;
            (server.drain_delay, server.drain_timeout)
        };
        std::thread::sleep(delay);
        let deadline = Instant::now() + timeout;
        for door in self.state.doors.lock().open.drain(..) {
            door.stop.send_replace(true);
        }
        state.drain.send_replace(true);
        while state.is_busy() && Instant::now() < deadline {
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
        if let Some(fleet) = state.proxy.fleet.get() {
            fleet.leave();
        }
        state.proxy.access_log.close();
        left == 0
    }
}

const DRAIN_POLL: Duration = Duration::from_millis(5);

/// In a fleet, follows its journal; from then on purges are told to all.
fn follow_journal(proxy: &Proxy, settings: &Settings) -> Result<()> {
    let Some(redis) = settings.journal_redis() else { return Ok(()) };
    let redis = Redis::new(redis, &proxy.metrics).context("the journal's Redis")?;
    let stream = Stream::start(settings, redis, Arc::clone(&proxy.journal), Arc::clone(&proxy.metrics))?;
    let _ = proxy.fleet.set(stream); // once, at the start
    Ok(())
}

/// Addresses for large bodies: each of five sizes may at some time be the only one, and takes up to twice its bytes.
fn reserve_pages(settings: &Settings) {
    const ADDRESSES: u64 = 10;
    let most = settings.memory.stored_bytes() + settings.memory.fill_bytes();
    if let Err(error) = crate::pages::reserve(most.saturating_mul(ADDRESSES)) {
        tracing::info!(%error, "large bodies will be copied into sockets: no memory for them that sockets take by page");
    }
}

/// Takes the limit on connections down to what the process has descriptors for.
fn fit_descriptors(settings: &mut Settings) {
    let descriptors = sockets::raise_descriptor_limit();
    settings.limits.connections = settings.limits.connections.min(connections_for(descriptors, settings));
}

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

/// Binds these listeners, all or none.
fn bind_all(settings: &Settings, listeners: impl IntoIterator<Item = Listener>) -> Result<Vec<Bind>> {
    let count = Workers::sockets_per_address(settings.server.runtime, settings.server.workers);
    let bind = |listener: Listener| {
        let key = || match listener.kind {
            ListenerKind::Clients => format!("listeners.{}.address", listener.name),
            ListenerKind::Peers => "shield.listen".to_owned(),
        };
        let opened = sockets::bind_listener(&listener.address, count).with_context(key)?;
        let quic = match (listener.http3, &opened.address) {
            (Some(_), ListenAddress::Tcp(address)) => Some(sockets::bind_udp(*address).with_context(key)?),
            _ => None, // the configuration would have been refused
        };
        Ok(Bind { listener, opened, quic })
    };
    listeners.into_iter().map(bind).collect()
}

fn bind_one(key: &'static str, address: Option<SocketAddr>) -> Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    Ok(sockets::bind(address, 1).context(key)?.pop())
}

impl State {
    pub fn listeners(&self) -> Vec<Listening> {
        let listening =
            |door: &Door| Listening { name: door.name(), address: door.bound.clone(), is_secure: door.doorway.tls.load().is_some() };
        let mut all: Vec<_> = self.doors.lock().open.iter().map(listening).collect();
        all.sort();
        all
    }

    /// Listeners with TLS, and what they show.
    pub fn secured(&self) -> Vec<(String, Arc<tls::Server>)> {
        self.doors.lock().open.iter().filter_map(|door| Some((door.name(), door.doorway.tls.load_full()?))).collect()
    }

    pub fn connections(&self) -> usize {
        self.connections_by_worker().iter().sum()
    }

    pub fn connections_by_worker(&self) -> Vec<usize> {
        self.doors.lock().workers.as_ref().map_or_else(Vec::new, |workers| workers.shared.connections_by_worker())
    }

    /// There are connections, or there may be: a listening socket has not emptied its queue.
    fn is_busy(&self) -> bool {
        let doors = self.doors.lock();
        doors.workers.as_ref().is_some_and(|workers| workers.shared.open_sockets() > 0 || workers.shared.connections() > 0)
    }

    /// Binds what is wanted and not open; on an error everything is as it was.
    fn bind(&self, settings: &Settings) -> Result<Vec<Bind>> {
        let doors = self.doors.lock();
        bind_all(settings, settings.sockets().filter(|listener| !doors.open.iter().any(|door| door.is(listener))))
    }

    /// Serves what was bound, renames what stays, closes what is not wanted any more.
    fn listen(&self, settings: &Settings, bound: Vec<Bind>, secured: &Secured) -> Result<()> {
        let wanted: Vec<_> = settings.sockets().collect();
        let mut doors = self.doors.lock();
        let Doors { workers: Some(workers), open } = &mut *doors else { return Ok(()) }; // draining: nothing opens any more
        open.retain(|door| match wanted.iter().find(|listener| door.is(listener)) {
            Some(listener) => {
                *door.doorway.name.lock() = listener.name.as_str().into();
                door.doorway.h2c.store(listener.h2c, Ordering::Relaxed);
                door.doorway.announcing.store(Arc::new(listener.proxy_protocol.clone()));
                door.doorway.tls.store(secured.get(&listener.name).cloned());
                door.doorway.redirect_to_https.store(listener.redirect_to_https.unwrap_or(0), Ordering::Relaxed);
                true
            }
            None => {
                door.stop.send_replace(true);
                false
            }
        });
        for Bind { listener, opened: Opened { address: bound, sockets, file }, quic } in bound {
            let alternative = listener.http3.map(|http3| AltSvc::new(Arc::clone(&self.proxy), http3.port.unwrap_or(bound.port())));
            let stop = watch::Sender::new(false);
            let name = Mutex::new(listener.name.as_str().into());
            let (kind, h2c) = (listener.kind, AtomicBool::new(listener.h2c));
            let (proxy, drain) = (Arc::clone(&self.proxy), self.drain.subscribe());
            let announcing = ArcSwap::from_pointee(listener.proxy_protocol.clone());
            let tls = ArcSwapOption::new(secured.get(&listener.name).cloned());
            let redirect_to_https = AtomicU16::new(listener.redirect_to_https.unwrap_or(0));
            let doorway = Arc::new(Doorway { name, kind, h2c, announcing, tls, alternative, redirect_to_https, proxy, drain });
            workers.listen(sockets, &doorway, &stop.subscribe());
            #[cfg(feature = "http3")]
            if let Some(socket) = quic.zip(listener.http3) {
                workers.listen_quic(socket, &doorway, &stop.subscribe());
            }
            #[cfg(not(feature = "http3"))]
            drop(quic); // there is none: the configuration would have been refused
            open.push(Door { wanted: listener.address, bound, _file: file, stop, doorway });
        }
        Ok(())
    }

    /// Re-reads the configuration whole or not at all.
    pub fn reload(self: &Arc<Self>) -> Result<Arc<Settings>, ReloadError> {
        let _one_at_a_time = self.reloading.lock();
        let result = self.try_reload();
        match &result {
            Ok(settings) => {
                self.proxy.metrics.reloaded(true, &settings.hash);
                tracing::info!(hash = settings.hash, "configuration reloaded");
            }
            Err(error) => {
                self.proxy.metrics.reloaded(false, &self.proxy.live.load().settings.hash);
                tracing::error!(%error, "configuration refused; the old one stays");
            }
        }
        result
    }

    fn try_reload(self: &Arc<Self>) -> Result<Arc<Settings>, ReloadError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ReloadError::Ending);
        }
        let mut settings = config::load(&self.sources).map_err(ReloadError::Wrong)?;
        let before = self.proxy.live.load_full();
        config::changes(&before.settings, &settings).map_err(ReloadError::Fixed)?;
        fit_descriptors(&mut settings);
        let secured = secure(&settings, &self.proxy.challenges).map_err(ReloadError::Failed)?;
        let bound = self.bind(&settings).map_err(ReloadError::Address)?;
        if let Some(log) = &self.log {
            log.set_level(&settings.log).map_err(|error| ReloadError::Failed(error.into()))?;
        }
        let live = Arc::new(Live::new(settings, Some(&before), &self.proxy.metrics));
        let settings = Arc::clone(&live.settings);
        self.proxy.live.store(live);
        self.listen(&settings, bound, &secured).map_err(ReloadError::Failed)?;
        self.proxy.metrics.tls.forget_certificates();
        certificates::tell_expiries(self);
        #[cfg(feature = "acme")]
        {
            certificates::take_up_obtained(self); // what came since it was read
            self.obtain_certificates(&settings).map_err(|error| ReloadError::Failed(error.into()))?;
        }
        Ok(settings)
    }

    /// Has those certificates obtained, and renewed, that listeners want from the authority.
    #[cfg(feature = "acme")]
    fn obtain_certificates(self: &Arc<Self>, settings: &Settings) -> std::io::Result<()> {
        let wanted = tls::acme::Wanted { settings: Arc::clone(&settings.acme), certificates: settings.acme_certificates() };
        let mut acme = self.acme.lock();
        match &*acme {
            Some(running) => running.want(wanted),
            None if wanted.certificates.is_empty() => {}
            None => {
                let state = Arc::downgrade(self);
                let obtained = Arc::new(move || state.upgrade().iter().for_each(|state| certificates::take_up_obtained(state)));
                let (challenges, metrics) = (Arc::clone(&self.proxy.challenges), Arc::clone(&self.proxy.metrics));
                let redis = settings.journal_redis().map(|redis| Redis::new(redis, &metrics)).transpose();
                let redis = redis.map_err(std::io::Error::other)?;
                *acme = Some(tls::acme::Acme::start(wanted, tls::acme::Means { challenges, metrics, redis, obtained })?);
            }
        }
        Ok(())
    }
}
