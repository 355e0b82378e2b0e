//! Accepting connections and serving them.

use super::sockets;
use super::workers::{Counted, Shared};
use crate::clock;
use crate::config::settings::{Limits, ListenerKind, is_in};
use crate::listener::proxy_protocol;
use crate::listener::{self, AltSvc, Announced, ClientSocket, Handler, Peer, Refusal, SecureSocket, Shaken, http1, http2};
use crate::observe::log::RateLimit;
use crate::observe::metrics::Bound;
use crate::proxy::{PeerDoor, Proxy};
use crate::semantics::target::Scheme;
use crate::tls;
use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags};
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// What connections of one listener need.
pub struct Doorway {
    /// A reload may give it another name.
    pub name: Mutex<Arc<str>>,
    pub kind: ListenerKind,
    /// A reload may change it; connections keep what they began as.
    pub h2c: AtomicBool,
    /// Who begins each connection with the PROXY protocol; a reload may change it.
    pub announcing: ArcSwap<Vec<IpNet>>,
    /// A reload may change it; connections keep what they have.
    pub tls: ArcSwapOption<tls::Server>,
    /// Tells clients where HTTP/3 is.
    pub alternative: Option<Arc<AltSvc<Proxy>>>,
    /// Port of https where clients are sent that come without it, 0: they are served. A reload may change it.
    pub redirect_to_https: AtomicU16,
    pub proxy: Arc<Proxy>,
    /// Turns true when the process drains.
    pub drain: watch::Receiver<bool>,
}

impl Doorway {
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.name.lock())
    }

    /// Bounds as the configuration says now: a connection keeps those under which it was accepted.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.proxy.live.load().limits)
    }

    /// Plain HTTP/1.1 is served in place. All else is boxed: what it needs for a moment would be a part of every connection,
    /// idle ones too.
    async fn serve(&self, stream: TcpStream, mut peer: Peer, tls: Option<Arc<tls::Server>>) {
        let limits = self.limits();
        let is_announced = is_in(&self.announcing.load(), peer.client.ip());
        let socket = match is_announced {
            false => Some(ClientSocket::new(stream)),
            true => Box::pin(self.announced(stream, &mut peer, limits.header_timeout)).await,
        };
        let Some(socket) = socket else { return };
        match (self.kind, tls) {
            (ListenerKind::Clients, None) if self.h2c.load(Ordering::Relaxed) => Box::pin(self.serve_either(socket, peer, limits)).await,
            (ListenerKind::Clients, None) => http1::serve(socket, peer, limits, Arc::clone(&self.proxy), self.drain.clone()).await,
            (ListenerKind::Clients, Some(tls)) => Box::pin(self.serve_secure(socket, peer, limits, tls)).await,
            (ListenerKind::Peers, tls) => Box::pin(self.serve_peer(socket, peer, limits, tls)).await,
        }
    }

    /// HTTP/1.1, or HTTP/2 by prior knowledge.
    async fn serve_either(&self, socket: ClientSocket, peer: Peer, limits: Arc<Limits>) {
        let (proxy, drain) = (Arc::clone(&self.proxy), self.drain.clone());
        let handed_over = http1::serve_unless_http2(socket, peer.clone(), Arc::clone(&limits), Arc::clone(&proxy), drain.clone()).await;
        if let Some(socket) = handed_over {
            Box::pin(http2::serve(socket, peer, limits, proxy, drain)).await;
        }
    }

    /// Another node. Who it is the handshake has found out: nobody asks further.
    async fn serve_peer(&self, socket: ClientSocket, peer: Peer, limits: Arc<Limits>, tls: Option<Arc<tls::Server>>) {
        let (limits, door, drain) = (Arc::new(PeerDoor::limits(&limits)), PeerDoor::new(Arc::clone(&self.proxy)), self.drain.clone());
        let Some(tls) = tls else { return http2::serve(socket, peer, limits, door, drain).await };
        if let Some(Shaken { socket, .. }) = listener::shake_hands(socket, &tls, &self.proxy.metrics).await {
            drop(tls);
            http2::serve(socket, peer, limits, door, drain).await;
        }
    }

    async fn serve_secure(&self, socket: ClientSocket, mut peer: Peer, limits: Arc<Limits>, tls: Arc<tls::Server>) {
        let (proxy, drain) = (Arc::clone(&self.proxy), self.drain.clone());
        let shaken = Box::pin(listener::shake_hands(socket, &tls, &proxy.metrics)).await;
        let Some(Shaken { socket, identity }) = shaken else { return };
        drop(tls);
        peer.identity = identity;
        match &self.alternative {
            None => Box::pin(serve_secure(socket, peer, limits, proxy, drain)).await,
            Some(handler) => Box::pin(serve_secure(socket, peer, limits, Arc::clone(handler), drain)).await,
        }
    }

    /// The socket of a connection, behind the header of the balancer that begins it: `peer` is then whom it names.
    async fn announced(&self, stream: TcpStream, peer: &mut Peer, within: Duration) -> Option<ClientSocket> {
        let began = clock::nanos();
        let mut stream = tokio::net::TcpStream::from_std(stream).ok()?;
        let read = clock::timeout(within, pin!(proxy_protocol::read(&mut stream))).await;
        let refusal = match read {
            Ok(Ok(announced)) => {
                if let Some(Announced { client, local }) = announced {
                    (peer.client, peer.local) = (client, local);
                }
                return Some(stream.into());
            }
            // A balancer that only looks whether we are there sends nothing.
            Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => return None,
            Ok(Err(_)) => Refusal { status: 400, reason: "proxy-protocol" },
            Err(_) => Refusal { status: 408, reason: "header-timeout" },
        };
        self.proxy.refused(peer, None, refusal, clock::nanos() - began);
        None
    }
}

/// How long handshakes that have begun may take to end before a listening socket closes; and then one round trip is due.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(200);
/// Connections accepted before others get their turn: hundreds that come at once hold up hits by well below a millisecond.
const ACCEPTS_IN_A_ROW: usize = 16;
/// Between attempts to accept while there are no descriptors or no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Between two warnings of that, milliseconds.
const WARN_INTERVAL_MS: u64 = 10_000;

/// Accepts on the current runtime until `stop`; `open` is held as long as the socket is.
pub fn spawn(
    worker: usize,
    socket: std::net::TcpListener,
    doorway: Arc<Doorway>,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    open: Arc<()>,
) {
    let local = local(&socket);
    match register(socket) {
        Ok(listener) => {
            tokio::spawn(async move {
                let acceptor = Acceptor { worker, turn: worker, local, doorway, shared };
                acceptor.run(listener, stop).await;
                drop(open);
            });
        }
        Err(error) => tracing::error!(%error, listener = &*doorway.name(), "cannot listen"),
    }
}

/// Where every connection arrives, if that is one place.
fn local(socket: &TcpListener) -> Option<SocketAddr> {
    let is_unix = SockRef::from(socket).local_addr().is_ok_and(|local| local.is_unix());
    if is_unix { Some(THIS_MACHINE) } else { socket.local_addr().ok().filter(|local| !local.ip().is_unspecified()) }
}

/// What stands for both ends of a connection over a socket of this machine: who may connect is a matter of its permissions.
const THIS_MACHINE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// tokio's own listener would register each connection with epoll at once: see [`ClientSocket`].
#[expect(unsafe_code, reason = "tokio wants to be told that the descriptor stays the same one")]
fn register(socket: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: the listener owns its descriptor and has no other one until it is dropped, and AsyncFd lends it out shared only.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// What accepts from one socket.
struct Acceptor {
    worker: usize,
    turn: usize,
    /// Where every connection arrives; `None`: each has to be asked.
    local: Option<SocketAddr>,
    doorway: Arc<Doorway>,
    shared: Arc<Shared>,
}

impl Acceptor {
    async fn run(mut self, listener: AsyncFd<TcpListener>, mut stop: watch::Receiver<bool>) {
        for number in 1_usize.. {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = listener.async_io(Interest::READABLE, accept) => accepted,
            };
            match accepted {
                Ok((stream, client)) => self.place(stream, client),
                Err(error) => self.pause(&error).await,
            }
            if number.is_multiple_of(ACCEPTS_IN_A_ROW) {
                tokio::task::yield_now().await;
            }
        }
        self.close(listener).await;
    }

    /// Linux resets what is queued on a listening socket when it closes. So no new handshake may begin, those under way
    /// end, and whoever is queued then is served.
    async fn close(mut self, listener: AsyncFd<TcpListener>) {
        if let Err(error) = sockets::refuse_handshakes(&listener) {
            tracing::debug!(%error, "a connection that comes while the socket closes may be lost");
        }
        let until = Instant::now() + HANDSHAKE_WAIT;
        while let Ok(accepted) = timeout_at(until, listener.async_io(Interest::READABLE, accept)).await {
            match accepted {
                Ok((stream, client)) => self.place(stream, client),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => break,
            }
        }
        // The runtime asks the kernel only after it was told of something: the kernel itself has the last word.
        while let Ok((stream, client)) = accept(listener.get_ref()) {
            self.place(stream, client);
        }
    }

    /// Out of descriptors or memory: the connection stays queued; trying again at once would spin.
    async fn pause(&self, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        self.doorway.proxy.metrics.bound(Bound::Connections);
        static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
        if let Some(held_back) = LIMIT.pass(clock::now().mono_ms) {
            tracing::warn!(%error, listener = &*self.doorway.name(), held_back, "cannot accept");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// Serves here, or hands over to an idler worker, or says that there is no room.
    fn place(&mut self, stream: TcpStream, client: SocketAddr) {
        self.turn = self.turn.wrapping_add(1);
        let shared = &self.shared;
        if shared.connections() >= self.doorway.limits().connections {
            return turn_away(stream, &self.doorway, shared);
        }
        match shared.better_than(self.worker) {
            None => {
                let counted = shared.count(shared.counts_for(self.worker, self.turn));
                serve(Arrived { stream, client, local: self.local, counted }, &self.doorway);
            }
            Some(idler) => {
                let arrived = Arrived { stream, client, local: self.local, counted: shared.count(idler) };
                shared.hand_over(arrived, &self.doorway);
            }
        }
    }
}

/// Errors of the connection that would have been accepted, not of the socket (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// The next connection in the queue, not blocking.
fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, client) = rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let client = client.and_then(|client| match client.address_family() {
        AddressFamily::UNIX => Some(THIS_MACHINE),
        _ => SocketAddr::try_from(client).ok(),
    });
    Ok((stream.into(), client.ok_or(io::ErrorKind::ConnectionAborted)?))
}

/// A connection that was accepted.
pub struct Arrived {
    /// Does not block.
    pub stream: TcpStream,
    pub client: SocketAddr,
    /// Where it arrived, if that is known without asking.
    pub local: Option<SocketAddr>,
    pub counted: Counted,
}

/// Serves a connection on the present runtime.
pub fn serve(arrived: Arrived, doorway: &Arc<Doorway>) {
    let Arrived { stream, client, local, counted } = arrived;
    let Ok(local) = local.map_or_else(|| stream.local_addr(), Ok) else { return };
    let tls = doorway.tls.load_full();
    let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
    let redirect_to_https = Some(doorway.redirect_to_https.load(Ordering::Relaxed)).filter(|port| *port != 0);
    let peer = Peer { scheme, redirect_to_https, ..Peer::plain(client, local, counted.worker(), doorway.name()) };
    let doorway = Arc::clone(doorway);
    tokio::spawn(async move {
        let metrics = Arc::clone(&doorway.proxy.metrics);
        metrics.connection_opened();
        doorway.serve(stream, peer, tls).await;
        metrics.connection_closed();
        drop(counted);
    });
}

async fn serve_secure<H: Handler>(socket: SecureSocket, peer: Peer, limits: Arc<Limits>, handler: Arc<H>, drain: watch::Receiver<bool>) {
    if socket.is_http2() {
        http2::serve(socket, peer, limits, handler, drain).await;
    } else {
        http1::serve(socket, peer, limits, handler, drain).await;
    }
}

/// 503 for a connection above the limit, if the client asks within a moment; where even these are many, nothing.
fn turn_away(stream: TcpStream, doorway: &Doorway, shared: &Shared) {
    doorway.proxy.metrics.bound(Bound::Connections);
    if doorway.tls.load().is_some() {
        return; // a handshake would cost more than it tells
    }
    let Some(turned_away) = shared.turn_away() else { return };
    tokio::spawn(async move {
        let _ = timeout(TURN_AWAY_TIME, say_full(stream)).await; // whatever came of it, the connection ends
        drop(turned_away);
    });
}

/// Unread bytes at close would become a reset, which can destroy the answer (RFC 9112 §9.6): so the request is read.
async fn say_full(stream: TcpStream) -> io::Result<()> {
    let mut stream = ClientSocket::new(stream);
    let mut bytes = [0; 4096];
    if stream.read(&mut bytes).await? == 0 {
        return Ok(());
    }
    stream.write_all(FULL).await?;
    stream.shutdown().await?;
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

const TURN_AWAY_TIME: Duration = Duration::from_secs(1);
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that every connection takes while it is served, idle ones too: 4 KiB are promised in all.
    const SERVING_MAX: usize = 3 * 1024;

    #[test]
    fn what_few_connections_need_is_no_part_of_all_of_them() {
        fn size<F>(_: impl FnOnce(&'static Doorway, TcpStream, Peer, Option<Arc<tls::Server>>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(Doorway::serve);
        assert!(size <= SERVING_MAX, "{size} bytes");
    }
}
