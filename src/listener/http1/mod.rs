//! HTTP/1 to clients: a connection of our own on httparse.

use super::{Handler, Peer};
use crate::config::settings::Limits;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves one connection until it ends. Returns when the client left, a limit was reached, or `drain` turned true and
/// the request under way is answered.
pub async fn serve<S, H>(stream: S, peer: Peer, limits: Arc<Limits>, handler: Arc<H>, drain: tokio::sync::watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let _ = (stream, peer, limits, handler, drain);
    todo!()
}
