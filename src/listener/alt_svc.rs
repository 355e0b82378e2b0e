//! Alt-Svc (RFC 7838): answers say where the same is to be had over HTTP/3.

use super::{Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use std::sync::Arc;

/// For how long clients may remember it, seconds.
const MAX_AGE: u32 = 86_400;
const NAME: &str = "alt-svc";

/// A handler, and what its answers say besides.
pub struct AltSvc<H> {
    handler: Arc<H>,
    port: u16,
}

impl<H> AltSvc<H> {
    /// `port`: where clients find HTTP/3.
    pub fn new(handler: Arc<H>, port: u16) -> Arc<Self> {
        Arc::new(Self { handler, port })
    }
}

fn told(mut response: Response, port: u16) -> Response {
    let value = format!("h3=\":{port}\"; ma={MAX_AGE}");
    match &mut response.fields {
        ResponseFields::Stored { extra, .. } => extra.extend_from_slice([NAME, ": ", &value, "\r\n"].concat().as_bytes()),
        ResponseFields::Own(fields) => _ = fields.push(NAME, value), // visible ASCII
    }
    response
}

impl<H: Handler> Handler for AltSvc<H> {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        let port = self.port;
        match self.handler.handle(peer, head, body, interim) {
            Handled::Ready(response) => Handled::Ready(told(response, port)),
            Handled::Later(response) => Handled::Later(Box::pin(async move { told(response.await, port) })),
        }
    }

    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        self.handler.finished(peer, head, outcome, sent);
    }

    fn refused(&self, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64) {
        self.handler.refused(peer, head, refusal, duration_ns);
    }

    fn name(&self) -> String {
        self.handler.name()
    }

    fn bound(&self, bound: Bound) {
        self.handler.bound(bound);
    }
}
