//! Why a fetch failed.

use crate::body::BodyError;
use std::sync::Arc;

/// Causes, named after RFC 9209's error tokens where there is one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error("no address for the upstream's name")]
    Dns,
    #[error("the upstream's name was not resolved in time")]
    DnsTimeout,
    #[error("no route to the upstream's address")]
    Unroutable,
    #[error("connection refused")]
    Refused,
    #[error("connecting took too long")]
    ConnectTimeout,
    #[error("connection failed: {0}")]
    Connect(String),
    #[error("no connection free within the queue's deadline")]
    QueueTimeout,
    #[error("too many requests wait for a connection")]
    QueueFull,
    #[error("no response head in time")]
    ResponseTimeout,
    #[error("the connection ended before a response head")]
    Closed,
    #[error("the connection was reset before a response head")]
    Reset,
    #[error("the response was malformed: {0}")]
    Malformed(String),
    #[error("the response head is larger than allowed")]
    HeadTooLarge,
    #[error("the request body failed: {0}")]
    RequestBody(BodyError),
    #[error("the request took longer than allowed in all")]
    TotalTimeout,
    #[error("{0}")]
    TlsCertificate(String),
    #[error("{0}")]
    TlsAlert(String),
    #[error("{0}")]
    TlsProtocol(String),
    /// Nothing was sent.
    #[error("the request cannot be sent: {0}")]
    InvalidRequest(&'static str),
}

/// A request without an answer: why, and which endpoint was tried last, if any was.
#[derive(Debug, Clone)]
pub struct Unanswered {
    pub error: FetchError,
    pub endpoint: Option<Arc<str>>,
}

impl From<FetchError> for Unanswered {
    /// No endpoint was tried.
    fn from(error: FetchError) -> Self {
        Self { error, endpoint: None }
    }
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Client,
    Upstream,
    Us,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// On a fresh connection, if the request is idempotent.
    FreshConnection,
}

impl FetchError {
    /// Whether the cause is here, so that it says nothing of who was to be asked: a request that cannot be sent, a full line.
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::InvalidRequest(_) | Self::QueueFull | Self::QueueTimeout)
    }

    /// RFC 9209 §2.3 token for Proxy-Status.
    pub const fn token(&self) -> &'static str {
        match self {
            Self::Dns => "dns_error",
            Self::DnsTimeout => "dns_timeout",
            Self::Unroutable => "destination_ip_unroutable",
            Self::Refused => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::Connect(_) => "destination_unavailable",
            Self::QueueTimeout | Self::QueueFull => "connection_limit_reached",
            Self::ResponseTimeout | Self::TotalTimeout => "http_response_timeout",
            Self::Closed => "http_response_incomplete",
            Self::Reset => "connection_terminated",
            Self::Malformed(_) => "http_protocol_error",
            Self::HeadTooLarge => "http_response_header_section_size",
            Self::TlsCertificate(_) => "tls_certificate_error",
            Self::TlsAlert(_) => "tls_alert_received",
            Self::TlsProtocol(_) => "tls_protocol_error",
            Self::RequestBody(_) | Self::InvalidRequest(_) => "http_request_error",
        }
    }

    /// The error that another node of the fleet met on its way to the upstream, by the token that it told; `None` where the
    /// cause lies elsewhere.
    pub fn of_token(token: &str) -> Option<Self> {
        Some(match token {
            "dns_error" => Self::Dns,
            "dns_timeout" => Self::DnsTimeout,
            "destination_ip_unroutable" => Self::Unroutable,
            "connection_refused" => Self::Refused,
            "connection_timeout" => Self::ConnectTimeout,
            "destination_unavailable" => Self::Connect("told by the owner".into()),
            "connection_limit_reached" => Self::QueueFull,
            "http_response_timeout" => Self::ResponseTimeout,
            "http_response_incomplete" => Self::Closed,
            "connection_terminated" => Self::Reset,
            "http_protocol_error" => Self::Malformed("told by the owner".into()),
            "http_response_header_section_size" => Self::HeadTooLarge,
            "tls_certificate_error" => Self::TlsCertificate("told by the owner".into()),
            "tls_alert_received" => Self::TlsAlert("told by the owner".into()),
            "tls_protocol_error" => Self::TlsProtocol("told by the owner".into()),
            _ => return None,
        })
    }

    /// The status that the client gets where nothing stale can be served.
    pub const fn status(&self) -> u16 {
        match self {
            Self::DnsTimeout | Self::ConnectTimeout | Self::ResponseTimeout | Self::TotalTimeout => 504,
            Self::QueueTimeout | Self::QueueFull => 503,
            Self::RequestBody(BodyError::Timeout) => 408,
            Self::RequestBody(BodyError::TooLarge) => 413,
            Self::RequestBody(_) | Self::InvalidRequest(_) => 400,
            _ => 502,
        }
    }

    pub const fn fault(&self) -> Fault {
        match self {
            Self::RequestBody(_) | Self::InvalidRequest(_) => Fault::Client,
            Self::QueueTimeout | Self::QueueFull => Fault::Us,
            _ => Fault::Upstream,
        }
    }

    pub const fn retry(&self) -> Retry {
        match self {
            Self::Closed | Self::Reset | Self::Refused | Self::Unroutable | Self::Connect(_) => Retry::FreshConnection,
            _ => Retry::Never,
        }
    }

    /// RFC 5861 §4: whether a stale response may stand in.
    pub const fn stale_may_be_served(&self) -> bool {
        !matches!(self, Self::RequestBody(_) | Self::InvalidRequest(_))
    }

    /// Whether the cause lies before anything of the request was answered and does not depend on the request, so that
    /// everybody who waits shares it.
    pub const fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Dns
                | Self::DnsTimeout
                | Self::Unroutable
                | Self::Refused
                | Self::ConnectTimeout
                | Self::Connect(_)
                | Self::TlsCertificate(_)
                | Self::TlsAlert(_)
                | Self::TlsProtocol(_)
                | Self::QueueTimeout
                | Self::QueueFull
                | Self::ResponseTimeout
                | Self::TotalTimeout
        )
    }
}
