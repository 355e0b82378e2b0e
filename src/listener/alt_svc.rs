//! Alt-Svc (RFC 7838): answers say where the same is to be had over HTTP/3.

use super::{Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use std::sync::Arc;

/// For how long clients may remember it, seconds.
const MAX_AGE: u32 = 86_400;
const NAME: &str = "alt-svc";

/// A handler, and what its answers say besides. One serves all connections of a listener.
pub struct AltSvc<H> {
    handler: Arc<H>,
    value: Arc<str>,
}

impl<H> AltSvc<H> {
    /// `port`: where clients find HTTP/3.
    pub fn new(handler: Arc<H>, port: u16) -> Arc<Self> {
        let value = format!("h3=\":{port}\"; ma={MAX_AGE}").into();
        Arc::new(Self { handler, value })
    }
}

fn tell(response: &mut Response, value: &str) {
    match &mut response.fields {
        ResponseFields::Stored { extra, .. } => {
            [NAME, ": ", value, "\r\n"].iter().for_each(|part| extra.extend_from_slice(part.as_bytes()));
        }
        ResponseFields::Own(fields) => _ = fields.push(NAME, value), // visible ASCII
    }
}

impl<H: Handler> Handler for AltSvc<H> {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        match self.handler.handle(peer, head, body, interim) {
            Handled::Ready(mut response) => {
                tell(&mut response, &self.value);
                Handled::Ready(response)
            }
            Handled::Later(later) => {
                let value = Arc::clone(&self.value);
                Handled::Later(Box::pin(async move {
                    let mut response = later.await;
                    tell(&mut response, &value);
                    response
                }))
            }
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
