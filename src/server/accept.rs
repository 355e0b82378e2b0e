//! Accepting connections and serving them.

use super::workers::Shared;
use crate::config::settings::Limits;
use crate::listener::{Peer, http1};
use crate::observe::metrics::Bound;
use crate::proxy::Proxy;
use crate::semantics::key::Scheme;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What connections of one listener need.
pub struct Doorway {
    pub name: Arc<str>,
    pub proxy: Arc<Proxy>,
    pub limits: Arc<Limits>,
    /// Turns true when the process drains.
    pub drain: watch::Receiver<bool>,
}

/// Accepts on the current runtime until `stop`.
pub fn spawn(worker: usize, socket: std::net::TcpListener, doorway: Arc<Doorway>, shared: Arc<Shared>, stop: watch::Receiver<bool>) {
    match TcpListener::from_std(socket) {
        Ok(listener) => {
            tokio::spawn(accept(worker, listener, doorway, shared, stop));
        }
        Err(error) => tracing::error!(%error, listener = &*doorway.name, "cannot listen"),
    }
}

async fn accept(worker: usize, listener: TcpListener, doorway: Arc<Doorway>, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut turn = worker;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                turn = turn.wrapping_add(1);
                place(worker, turn, stream, client, &doorway, &shared);
            }
            Err(error) => pause(&error, &doorway).await,
        }
    }
    // Linux resets what is queued on a closed socket: empty it first.
    while let Ok(Ok((stream, client))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        serve(worker, stream, client, &doorway, &shared);
    }
}

/// Out of descriptors or memory: the connection stays queued; trying again at once would spin.
async fn pause(error: &std::io::Error, doorway: &Doorway) {
    if matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset) {
        return;
    }
    doorway.proxy.metrics.bound(Bound::Connections);
    tracing::warn!(%error, listener = &*doorway.name, "cannot accept");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Serves here, or hands over to an idler worker.
fn place(worker: usize, turn: usize, stream: TcpStream, client: SocketAddr, doorway: &Arc<Doorway>, shared: &Arc<Shared>) {
    match shared.better_than(worker) {
        None => serve(shared.counts_for(worker, turn), stream, client, doorway, shared),
        Some(idler) => match stream.into_std() {
            Ok(stream) => shared.hand_over(idler, stream, doorway),
            Err(error) => tracing::debug!(%error, "a connection was lost while it was handed over"),
        },
    }
}

/// Serves a connection that another worker accepted.
pub fn serve_std(worker: usize, stream: std::net::TcpStream, doorway: &Arc<Doorway>, shared: &Arc<Shared>) {
    let served = stream.peer_addr().and_then(|client| Ok((TcpStream::from_std(stream)?, client)));
    if let Ok((stream, client)) = served {
        serve(worker, stream, client, doorway, shared);
    }
}

fn serve(worker: usize, stream: TcpStream, client: SocketAddr, doorway: &Arc<Doorway>, shared: &Arc<Shared>) {
    if shared.connections() >= doorway.limits.connections {
        doorway.proxy.metrics.bound(Bound::Connections);
        let _ = stream.try_write(FULL); // it may have left already
        return;
    }
    let _ = stream.set_nodelay(true); // a missed option costs latency, not correctness
    let Ok(local) = stream.local_addr() else { return };
    let peer = Peer { client, local, worker, scheme: Scheme::Http, listener: Arc::clone(&doorway.name) };
    let (counted, doorway) = (shared.count(worker), Arc::clone(doorway));
    tokio::spawn(async move {
        doorway.proxy.metrics.connection_opened();
        let (limits, handler, drain) = (Arc::clone(&doorway.limits), Arc::clone(&doorway.proxy), doorway.drain.clone());
        http1::serve(stream, peer, limits, handler, drain).await;
        doorway.proxy.metrics.connection_closed();
        drop(counted);
    });
}

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
