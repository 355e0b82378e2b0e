//! A request on its way: borrowed from the connection while it can be answered at once, owned afterwards.

use super::content::Content;
use super::live::Routed;
use super::shield::FromPeer;
use super::standing::Standing;
use crate::listener::{Peer, RequestBody};
use crate::proxy::outcome::{self, Outcome};
use crate::semantics::no_vary_search::NoVarySearch;
use crate::semantics::policy::CachePolicy;
use crate::semantics::target::Scheme;
use crate::semantics::widening::Widening;
use crate::semantics::{CacheKey, Fields, Method, Request, Target, name};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// A request that was admitted.
pub struct Arrival<'a> {
    pub peer: &'a Peer,
    pub method: &'a Method,
    pub minor_version: u8,
    /// As the client sent them, but for forwarding fields of one that is not trusted, cookies that the route strips and the
    /// values of client classes.
    pub fields: Cow<'a, Fields>,
    pub target: Target,
    /// Not counted as held: all workers would write that count with each request.
    pub routed: &'a Arc<Routed>,
    pub key: CacheKey,
    /// The key of the URL alone, where `key` is that of all URLs equivalent to it (No-Vary-Search).
    pub exact: Option<Box<CacheKey>>,
    /// The client as believed.
    pub client: IpAddr,
    /// The peer is a trusted proxy: its forwarding fields count.
    pub trusted: bool,
    pub request_id: Option<Arc<str>>,
    /// What it carries, where that is part of the key.
    pub content: Option<Arc<Content>>,
    /// Another node of the fleet asks.
    pub from_peer: Option<Arc<FromPeer>>,
    pub standing: Standing,
}

impl Arrival<'_> {
    pub fn request(&self) -> Request<'_> {
        Request { method: self.method, target: &self.target, fields: &self.fields }
    }

    pub fn policy(&self) -> &CachePolicy {
        &self.routed.route.cache
    }

    /// A record of what happens from here on.
    pub fn outcome(&self) -> Outcome {
        let mut outcome = self.routed.outcome(self.trusted.then_some(self.client), self.request_id.clone());
        outcome.is_equivalent = self.exact.is_some();
        outcome.contact = self.standing.contact();
        outcome.is_secure = self.target.scheme() == Scheme::Https;
        outcome.widening = (self.content.is_some() && *self.method == Method::POST).then_some(Widening::PostByContent);
        outcome
    }

    /// The same request, owned.
    pub fn own(self) -> Exchange {
        let request_id = self.request_id.unwrap_or_else(new_request_id);
        Exchange {
            method: self.method.clone(),
            minor_version: self.minor_version,
            fields: self.fields.into_owned(),
            target: self.target,
            peer: self.peer.clone(),
            routed: Arc::clone(self.routed),
            key: self.key,
            exact: self.exact,
            client: self.client,
            trusted: self.trusted,
            request_id,
            content: self.content,
            from_peer: self.from_peer,
            standing: self.standing,
        }
    }
}

/// A request that goes on beyond the connection's call.
#[derive(Clone)]
pub struct Exchange {
    pub method: Method,
    pub minor_version: u8,
    pub target: Target,
    pub fields: Fields,
    pub peer: Peer,
    pub routed: Arc<Routed>,
    /// What it is collapsed under, and looked up by.
    pub key: CacheKey,
    /// As in [`Arrival`].
    pub exact: Option<Box<CacheKey>>,
    pub client: IpAddr,
    pub trusted: bool,
    pub request_id: Arc<str>,
    pub content: Option<Arc<Content>>,
    /// As in [`Arrival`].
    pub from_peer: Option<Arc<FromPeer>>,
    pub standing: Standing,
}

impl Exchange {
    pub fn request(&self) -> Request<'_> {
        Request { method: &self.method, target: &self.target, fields: &self.fields }
    }

    /// As if it had just been admitted.
    pub fn arrival(&self) -> Arrival<'_> {
        Arrival {
            peer: &self.peer,
            method: &self.method,
            minor_version: self.minor_version,
            fields: Cow::Borrowed(&self.fields),
            target: self.target.clone(),
            routed: &self.routed,
            key: self.key.clone(),
            exact: self.exact.clone(),
            client: self.client,
            trusted: self.trusted,
            request_id: Some(Arc::clone(&self.request_id)),
            content: self.content.clone(),
            from_peer: self.from_peer.clone(),
            standing: self.standing,
        }
    }

    /// What it carries, to be sent; nothing where that was not read.
    pub fn body(&self) -> RequestBody {
        self.content.as_ref().map_or(RequestBody::Empty, |content| content.body())
    }

    /// The request whose answer is stored: HEAD asks about what a GET stored.
    pub fn as_stored(&self) -> Request<'_> {
        let method = if self.method == Method::HEAD { &Method::GET } else { &self.method };
        Request { method, ..self.request() }
    }

    pub fn policy(&self) -> &CachePolicy {
        &self.routed.route.cache
    }

    /// The key of its URL alone.
    pub fn exact_key(&self) -> &CacheKey {
        self.exact.as_deref().unwrap_or(&self.key)
    }

    /// The key under which a response with these fields answers this request: that of its URL, or of all URLs that the
    /// response calls equivalent to it.
    pub fn key_of(&self, response: &Fields) -> CacheKey {
        let honoured = self.policy().no_vary_search && response.has(name::NO_VARY_SEARCH);
        match honoured.then(|| NoVarySearch::of(response).unwrap_or_default()).flatten() {
            Some(rule) => self.exact_key().under(&rule),
            None => self.exact_key().clone(),
        }
    }

    /// The same request under another of its keys.
    pub fn under(&self, key: CacheKey) -> Self {
        let exact = self.exact_key();
        let exact = (key != *exact).then(|| Box::new(exact.clone()));
        Self { key, exact, ..self.clone() }
    }

    pub fn outcome(&self) -> Outcome {
        let upstream = self.routed.upstream.as_ref().map(|upstream| Arc::clone(&upstream.name));
        let known = self.routed.outcome(self.trusted.then_some(self.client), Some(Arc::clone(&self.request_id)));
        let widening = (self.content.is_some() && self.method == Method::POST).then_some(Widening::PostByContent);
        let is_secure = self.target.scheme() == Scheme::Https;
        Outcome { upstream, widening, is_equivalent: self.exact.is_some(), contact: self.standing.contact(), is_secure, ..known }
    }
}

/// Notes whose request it was where a task or future that holds this is ended by a panic: the panic itself tells only
/// where it happened.
pub struct PanicNote(Arc<Exchange>);

impl PanicNote {
    pub const fn on(exchange: Arc<Exchange>) -> Self {
        Self(exchange)
    }
}

impl Drop for PanicNote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Exchange { request_id, routed, .. } = &*self.0;
            tracing::error!(request_id = &**request_id, site = &*routed.site, "panic in a request");
        }
    }
}

/// 32 random hexadecimal digits.
pub fn new_request_id() -> Arc<str> {
    std::str::from_utf8(&outcome::new_id()).expect("hexadecimal digits are ASCII").into()
}
