//! A request on its way: borrowed from the connection while it can be answered at once, owned afterwards.

use super::live::Routed;
use crate::listener::{Peer, RequestHead};
use crate::proxy::outcome::Outcome;
use crate::semantics::policy::CachePolicy;
use crate::semantics::{CacheKey, Fields, Method, Request, Target};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// A request that was admitted.
pub struct Arrival<'a> {
    pub peer: &'a Peer,
    pub head: &'a RequestHead,
    /// As the client sent them, but for cookies that the route strips.
    pub fields: Cow<'a, Fields>,
    pub target: Target,
    pub routed: Arc<Routed>,
    pub key: CacheKey,
    /// The client as believed.
    pub client: IpAddr,
    /// The peer is a trusted proxy: its forwarding fields count.
    pub trusted: bool,
    pub request_id: Option<Arc<str>>,
}

impl Arrival<'_> {
    pub fn request(&self) -> Request<'_> {
        Request { method: &self.head.method, target: &self.target, fields: &self.fields }
    }

    pub fn policy(&self) -> &CachePolicy {
        &self.routed.route.cache
    }

    /// A record of what happens from here on.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            route: self.routed.id,
            client: self.trusted.then_some(self.client),
            log_query: self.routed.route.log_query,
            request_id: self.request_id.clone(),
            ..Outcome::default()
        }
    }

    /// The same request, owned.
    pub fn own(self) -> Exchange {
        let request_id = self.request_id.unwrap_or_else(new_request_id);
        Exchange {
            method: self.head.method.clone(),
            minor_version: self.head.minor_version,
            fields: self.fields.into_owned(),
            target: self.target,
            peer: self.peer.clone(),
            routed: self.routed,
            key: self.key,
            client: self.client,
            trusted: self.trusted,
            request_id,
        }
    }
}

/// A request that goes on beyond the connection's call.
pub struct Exchange {
    pub method: Method,
    pub minor_version: u8,
    pub target: Target,
    pub fields: Fields,
    pub peer: Peer,
    pub routed: Arc<Routed>,
    pub key: CacheKey,
    pub client: IpAddr,
    pub trusted: bool,
    pub request_id: Arc<str>,
}

impl Exchange {
    pub fn request(&self) -> Request<'_> {
        Request { method: &self.method, target: &self.target, fields: &self.fields }
    }

    pub fn policy(&self) -> &CachePolicy {
        &self.routed.route.cache
    }

    pub fn outcome(&self) -> Outcome {
        Outcome {
            route: self.routed.id,
            client: self.trusted.then_some(self.client),
            log_query: self.routed.route.log_query,
            request_id: Some(Arc::clone(&self.request_id)),
            upstream: self.routed.upstream.as_ref().map(|upstream| Arc::clone(&upstream.name)),
            ..Outcome::default()
        }
    }
}

/// 32 random hexadecimal digits.
pub fn new_request_id() -> Arc<str> {
    format!("{:032x}", rand::random::<u128>()).into()
}
