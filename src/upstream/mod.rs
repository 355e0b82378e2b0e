//! Requests to upstreams: an own pool on hyper's connection API.

pub mod error;

pub use error::FetchError;

use crate::body::BodyStream;
use crate::config::settings;
use crate::listener::{InterimSender, RequestBody};
use crate::observe::metrics::Metrics;
use crate::semantics::{Fields, StatusCode};
use http::Method;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A request ready to go: fields without those of a connection; Host included in `fields`.
pub struct Outbound {
    pub method: Method,
    /// Path and query as they go into the request line.
    pub path_and_query: String,
    /// Host field; `None`: the endpoint's own authority.
    pub host: Option<String>,
    pub fields: Fields,
    pub body: RequestBody,
    /// The client asked to upgrade to this protocol: `fields` hold Upgrade, the pool adds Connection.
    pub upgrade: bool,
    /// Where 1xx (but 100 and 101) go.
    pub interim: Option<InterimSender>,
    /// Worker on whose runtime this runs.
    pub worker: usize,
}

/// A response head and its body. Dropping the body early closes the connection.
pub struct Inbound {
    pub status: StatusCode,
    /// As they came, minus those of the connection (RFC 9110 §7.6.1).
    pub fields: Fields,
    /// Content-Length where valid and the body is delimited by it.
    pub length: Option<u64>,
    pub body: Option<Pin<Box<dyn BodyStream>>>,
    /// After 101.
    pub tunnel: Option<Box<dyn crate::body::Tunnel>>,
    pub endpoint: Arc<str>,
    pub connect: Option<Duration>,
    pub first_byte: Duration,
}

/// One upstream: its endpoints, their connections, counters.
pub struct Upstream {
    pub settings: Arc<settings::Upstream>,
}

impl Upstream {
    /// `workers`: how many cores keep idle connections of their own.
    pub fn new(settings: Arc<settings::Upstream>, workers: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let _ = (workers, metrics);
        Arc::new(Self { settings })
    }

    /// Sends a request and waits for the head of the answer, by the upstream's timeouts, with a retry on a fresh
    /// connection where that is safe.
    pub async fn send(self: &Arc<Self>, request: Outbound) -> Result<Inbound, FetchError> {
        let _ = request;
        todo!()
    }
}
