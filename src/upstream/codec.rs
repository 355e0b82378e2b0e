//! The seam between an exchange and what carries it: two codecs for HTTP/1.1, our own and hyper's client, that take the
//! same request and give the same answer or the same error. `own` is the default; `hyper_client` is there to be compared
//! with, and to fall back to.

use super::pool::{Connection, Hold};
use super::wire::Wire;
use super::{Arriving, FetchError, Outbound, hyper_client, own, settings};
use crate::body::Tunnel;
use crate::config::settings::UpstreamCodec;
use crate::http1::response::{self, Asked, Fault, Head};
use crate::listener::{Interim, InterimSender};
use crate::observe::metrics::{Bound, Metrics};
use crate::semantics::{Fields, StatusCode};
use crate::tls::client::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An open connection to an endpoint. Dropping it closes it.
pub(super) enum Link {
    Own(Box<own::Link>),
    Hyper(hyper_client::Link),
}

/// What an idle connection turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    Quiet,
    /// The peer closed it.
    Closed,
    /// The peer sent bytes that nobody asked for: they must not be taken for the next answer.
    Spoke,
}

impl Link {
    /// Shakes hands where there is TLS to be.
    pub(super) async fn open(
        stream: TcpStream,
        secure: Option<(&Client, &str)>,
        settings: &settings::Upstream,
        home: usize,
        deadline: Instant,
    ) -> Result<Self, FetchError> {
        Ok(match (settings.http1, secure) {
            (_, Some((client, host))) => Self::Own(own::Link::new(Wire::secure(stream, client, host, deadline).await?, home).into()),
            (UpstreamCodec::Own, None) => Self::Own(own::Link::new(Wire::Plain(stream), home).into()),
            (UpstreamCodec::Hyper, None) => Self::Hyper(hyper_client::Link::new(stream, settings, home).await?),
        })
    }

    /// Worker on whose runtime it lives.
    pub(super) fn home(&self) -> usize {
        match self {
            Self::Own(link) => link.home,
            Self::Hyper(link) => link.home,
        }
    }

    /// Whether a request may go out on it; `closely`: also if that takes a look at the socket itself.
    pub(super) fn idle(&mut self, closely: bool) -> Idle {
        match self {
            Self::Own(link) => link.idle(closely),
            Self::Hyper(link) => link.idle(closely),
        }
    }
}

/// A request head as a codec takes it, made before there is a connection.
pub(super) enum Message {
    Own(Vec<u8>),
    Hyper(Box<http::Request<()>>),
}

impl Message {
    /// Nothing was sent where this fails.
    pub(super) fn new(codec: UpstreamCodec, request: &Outbound, asked: &Asked, authority: &str) -> Result<Self, FetchError> {
        if request.method == http::Method::CONNECT {
            return Err(FetchError::InvalidRequest("CONNECT is not passed on"));
        }
        Ok(match codec {
            UpstreamCodec::Own => Self::Own(own::request::head(request, asked.upgrade.is_some(), authority)?),
            UpstreamCodec::Hyper => Self::Hyper(Box::new(hyper_client::message(request, asked.upgrade.is_some(), authority)?)),
        })
    }
}

/// What a codec has to know of an exchange.
pub(crate) struct Order<'a> {
    pub terms: Terms,
    pub metrics: &'a Arc<Metrics>,
    pub asked: Asked,
    /// Where interim responses go.
    pub interim: Option<&'a InterimSender>,
    pub began: Instant,
    /// End of the exchange, whatever comes.
    pub deadline: Option<Instant>,
}

/// Bounds on an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// From the request sent to the head of the response.
    pub first_byte_timeout: Duration,
    /// Between two reads of the body.
    pub read_timeout: Duration,
    pub header_bytes: usize,
    pub header_count: usize,
}

impl Terms {
    pub(super) fn of(settings: &settings::Upstream) -> Self {
        let settings::Upstream { first_byte_timeout, read_timeout, header_bytes, header_count, .. } = *settings;
        Self { first_byte_timeout, read_timeout, header_bytes, header_count }
    }
}

/// Bounds on the time that a response body takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two reads.
    pub read_timeout: Duration,
    /// End of the exchange, whatever comes.
    pub deadline: Option<Instant>,
}

impl Pace {
    /// When a wait that began at `since` is over. An upload takes as long as the client needs for it: meanwhile the origin
    /// need not say anything, and only the end of the exchange ends the wait.
    pub(super) fn silent_until(self, since: Instant, origins_turn: Option<Instant>) -> Option<Instant> {
        let silent_until = origins_turn.map(|turn| turn.max(since) + self.read_timeout);
        silent_until.into_iter().chain(self.deadline).min()
    }
}

/// The answer of an endpoint.
pub(crate) struct Answer {
    pub head: Head,
    /// When the head was there.
    pub at: Instant,
    pub body: Option<Arriving>,
    pub tunnel: Option<Box<dyn Tunnel>>,
}

/// An exchange that came to no answer.
#[derive(Debug)]
pub(crate) struct Broken {
    pub error: FetchError,
    pub reach: Reach,
}

/// How far a broken exchange came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Not a byte was written, or the origin says that it did not act upon it; the request has its body back.
    Unwritten,
    /// Nothing came back.
    Unanswered,
    Answered,
}

impl Order<'_> {
    /// Sends the request and waits for the head of the answer. The request's body is used up unless it comes back
    /// unwritten.
    pub(super) async fn carry_out(&self, message: Message, request: &mut Outbound, connection: Connection) -> Result<Answer, Broken> {
        let Connection { link, hold } = connection;
        match (message, link) {
            (Message::Own(head), Link::Own(link)) => own::exchange(self, head, request, link, hold).await,
            (Message::Hyper(message), Link::Hyper(link)) => Box::pin(hyper_client::exchange(self, *message, request, link, hold)).await,
            // The connections of a pool are all of the one codec that its settings name, and so are its messages.
            (_, link) => Err(mixed_up(link, hold)),
        }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace { read_timeout: self.terms.read_timeout, deadline: self.deadline }
    }

    pub(super) fn limits(&self) -> response::Limits {
        response::Limits { header_bytes: self.terms.header_bytes, header_count: self.terms.header_count }
    }

    /// Passes an interim response on (but 100: it belongs to our hop).
    pub(super) fn relay(&self, status: StatusCode, fields: Fields) {
        if let Some(interim) = self.interim {
            relay(interim, status, fields, self.metrics);
        }
    }

    /// A fault in a head as an error, with its bound counted.
    pub(super) fn fault(&self, fault: Fault) -> FetchError {
        match fault {
            Fault::Malformed(reason) => FetchError::Malformed(reason.to_owned()),
            Fault::HeadTooLarge(bound) => {
                self.metrics.bound(if bound == "header-count" { Bound::UpstreamHeaderCount } else { Bound::UpstreamHeaderBytes });
                FetchError::HeadTooLarge
            }
            Fault::Flood => {
                self.metrics.bound(Bound::UpstreamInterim);
                FetchError::Malformed("too many interim responses".to_owned())
            }
            Fault::Truncated => FetchError::Closed,
        }
    }
}

pub(super) fn relay(to: &InterimSender, status: StatusCode, fields: Fields, metrics: &Metrics) {
    if status != StatusCode::CONTINUE && to.try_send(Interim { status, fields }).is_err() {
        metrics.bound(Bound::InterimDropped);
    }
}

fn mixed_up(link: Link, hold: Hold) -> Broken {
    drop((link, hold));
    Broken { error: FetchError::InvalidRequest("the connection speaks through another codec"), reach: Reach::Answered }
}
