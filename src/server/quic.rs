//! Accepting QUIC connections, one endpoint per listener.
//!
//! All of a listener's come in by one socket, and so live on one worker: a client that moves to another address keeps its
//! connection, because whoever gets its packets knows it.

use super::accept::Doorway;
use super::workers::Shared;
use crate::clock;
use crate::config::settings::{Http3, Limits};
use crate::listener::http3::Terms;
use crate::listener::{Peer, Protocol, http3};
use crate::observe::metrics::{Bound, Handshake};
use crate::semantics::target::Scheme;
use crate::tls;
use quinn::{ConnectionError, Endpoint, EndpointConfig, Incoming};
use std::net::{SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// Handshakes at a time with clients whose address is not known to be theirs; past that they have to show that it is (Retry,
/// RFC 9000 §8.1.2), which costs them a round trip and us next to nothing.
const UNVALIDATED_MAX: usize = 64;

/// Accepts on the current runtime until `stop`; connections that are there then go on.
pub fn spawn(
    worker: usize,
    (socket, settings): (UdpSocket, Http3),
    doorway: Arc<Doorway>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
    open: Arc<()>,
) {
    let terms = doorway.tls.load_full().and_then(|tls| Terms::new(&tls, doorway.limits()));
    let opened = terms.and_then(|terms| Some((endpoint(socket, &terms)?, terms)));
    let Some(((endpoint, bound), mut terms)) = opened else {
        return tracing::error!(listener = &*doorway.name(), "no HTTP/3 on this listener: QUIC could not be set up");
    };
    tokio::spawn(async move {
        let unvalidated = Arc::new(AtomicUsize::new(0));
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => place(incoming, (worker, bound), &settings, &mut terms, &doorway, &shared, &unvalidated),
                    None => break,
                },
            }
        }
        endpoint.set_server_config(None);
        drop(open);
    });
}

/// With the address that it is bound to.
fn endpoint(socket: UdpSocket, terms: &Terms) -> Option<(Endpoint, SocketAddr)> {
    let bound = socket.local_addr().ok()?;
    let config = quinn::ServerConfig::clone(&terms.config);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(quinn::TokioRuntime)).ok()?;
    Some((endpoint, bound))
}

fn place(
    incoming: Incoming,
    (worker, bound): (usize, SocketAddr),
    settings: &Http3,
    terms: &mut Terms,
    doorway: &Arc<Doorway>,
    shared: &Arc<Shared>,
    unvalidated: &Arc<AtomicUsize>,
) {
    let metrics = &doorway.proxy.metrics;
    if shared.connections() >= doorway.limits().connections {
        metrics.bound(Bound::Connections);
        return incoming.refuse();
    }
    let is_validated = incoming.remote_address_validated();
    if !is_validated && incoming.may_retry() && (settings.retry || unvalidated.load(Ordering::Relaxed) >= UNVALIDATED_MAX) {
        metrics.http3_retry();
        _ = incoming.retry(); // an error: it may not be retried, and it is dropped
        return;
    }
    let Some(tls) = doorway.tls.load_full() else { return incoming.refuse() };
    let limits = doorway.limits();
    if !terms.are_of(&tls, &limits) {
        let Some(made) = Terms::new(&tls, Arc::clone(&limits)) else { return incoming.refuse() };
        *terms = made;
    }
    let config = Arc::clone(&terms.config);
    let counted = shared.count(worker);
    let handshake = (!is_validated).then(|| Handshaking::begin(unvalidated));
    let doorway = Arc::clone(doorway);
    tokio::spawn(async move {
        let metrics = Arc::clone(&doorway.proxy.metrics);
        metrics.connection_opened();
        serve(incoming, (config, limits), (worker, bound), &doorway, tls, handshake).await;
        metrics.connection_closed();
        drop(counted);
    });
}

/// Counted while it is.
struct Handshaking(Arc<AtomicUsize>);

impl Handshaking {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(
    incoming: Incoming,
    (config, limits): (Arc<quinn::ServerConfig>, Arc<Limits>),
    (worker, bound): (usize, SocketAddr),
    doorway: &Doorway,
    tls: Arc<tls::Server>,
    handshake: Option<Handshaking>,
) {
    let series = &doorway.proxy.metrics.tls;
    let shaken = async {
        let _turn = tls.handshakes.acquire().await;
        incoming.accept_with(config)?.await
    };
    let connection = match clock::timeout(tls.handshake_timeout, pin!(shaken)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::TransportError(error))) => {
            tracing::debug!(%error, "QUIC handshake refused");
            return series.handshake(None, Handshake::Refused);
        }
        Ok(Err(_)) => return series.handshake(None, Handshake::ClientLeft),
        Err(_) => return series.handshake(None, Handshake::Timeout),
    };
    series.handshake(Some("1.3"), Handshake::Full);
    drop((handshake, tls));
    let client = connection.remote_address();
    let local = SocketAddr::new(connection.local_ip().unwrap_or(bound.ip()), bound.port());
    let peer = Peer { scheme: Scheme::Https, protocol: Protocol::Http3, ..Peer::plain(client, local, worker, doorway.name()) };
    http3::serve(connection, peer, limits, Arc::clone(&doorway.proxy), doorway.drain.clone()).await;
}
