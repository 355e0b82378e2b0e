//! Asking the authority: one origin, over https, within bounds. Redirects are not followed.

use super::USER_AGENT;
use crate::config::settings::{Acme, UpstreamTls};
use crate::tls::client::Client;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, Uri};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest answer; a chain of certificates takes some 10 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const PORT: u16 = 443;

/// The way to an authority.
#[derive(Clone)]
pub struct Http(Arc<Shared>);

struct Shared {
    /// Nobody else is asked, whatever the directory names.
    authority: Authority,
    tls: Client,
    within: Duration,
    /// How long the last answer that refused something asked to wait.
    wait: Mutex<Option<Duration>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the directory leads to {0}, which is another origin")]
    Elsewhere(String),
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("the connection failed: {0}")]
    Broken(String),
}

impl Http {
    /// `None`: the configuration would have been refused.
    pub fn new(settings: &Acme) -> Option<Self> {
        let authority = settings.directory.parse::<Uri>().ok()?.into_parts().authority?;
        let tls = Client::new(&UpstreamTls { roots: settings.roots.clone(), ..UpstreamTls::default() }).ok()?;
        Some(Self(Arc::new(Shared { authority, tls, within: settings.request_timeout, wait: Mutex::default() })))
    }

    /// How long the authority asked to wait since this was last asked for, with what it refused.
    pub fn take_wait(&self) -> Option<Duration> {
        self.0.wait.lock().take()
    }
}

impl HttpClient for Http {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let answer = timeout(shared.within, shared.exchange(request)).await.unwrap_or(Err(HttpError::Timeout(shared.within)));
            let (parts, body) = answer.map_err(|error| Error::Other(Box::new(error)))?.into_parts();
            let wait = parts.headers.get(RETRY_AFTER).filter(|_| !parts.status.is_success());
            *shared.wait.lock() = wait.and_then(seconds);
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// Whole seconds; a date is as good as nothing said.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

impl Shared {
    async fn exchange(&self, mut request: Request<BodyWrapper<Bytes>>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri();
        if uri.scheme_str() != Some("https") || uri.authority() != Some(&self.authority) {
            return Err(HttpError::Elsewhere(uri.to_string()));
        }
        let broken = |error: &dyn std::fmt::Display| HttpError::Broken(error.to_string());
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse().map_err(|error| broken(&error))?;
        let host = HeaderValue::from_str(self.authority.as_str()).map_err(|error| broken(&error))?;
        *request.uri_mut() = path;
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(|error| broken(&error))?;
        tokio::spawn(connection); // ends with its sender
        let (parts, body) = sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| broken(&error))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, HttpError> {
        let (host, port) = (self.authority.host(), self.authority.port_u16().unwrap_or(PORT));
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((address, port)).await.map_err(HttpError::Unreachable)?;
        let name = self.tls.name(host).ok_or_else(|| HttpError::Tls(format!("{host} is no name for a certificate")))?;
        let shaken = TlsConnector::from(Arc::clone(&self.tls.config)).connect(name, stream).await;
        shaken.map_err(|error| match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
            Some(cause) => HttpError::Tls(format!("{host}: {cause}")),
            None => HttpError::Unreachable(error),
        })
    }
}
