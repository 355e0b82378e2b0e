//! Compression dictionaries on the request path (RFC 9842): kept when they are stored, found when a client has one.

use super::Proxy;
use super::exchange::Exchange;
use super::forms::{Choice, Make};
use crate::cache::{Forms, StoredHead, StoredResponse};
use crate::observe::metrics::{Bound, DictionaryUse};
use crate::semantics::coding::{self, FormId, Wanted};
use crate::semantics::policy::Compression;
use crate::semantics::{Request, dictionary};
use crate::transform::coded::AT_ONCE;

/// Keeps what was just stored as a dictionary, if its origin declares it one.
pub fn keep(proxy: &Proxy, exchange: &Exchange, stored: &StoredResponse) {
    let compression = exchange.policy().compression.as_ref();
    let Some(policy) = compression.and_then(|compression| compression.dictionaries()) else { return };
    if !dictionary::is_dictionary(exchange.as_stored(), stored.head.as_response()) {
        return;
    }
    let Some(body) = stored.body() else { return };
    if stored.length > policy.max_bytes {
        proxy.metrics.bound(Bound::DictionarySize);
        return;
    }
    if stored.length <= AT_ONCE as u64 {
        proxy.dictionaries.keep(exchange.target.origin(), body.segments());
        return;
    }
    // Hashing takes a while, and nobody waits for it.
    let (dictionaries, origin, body) = (proxy.dictionaries.clone(), exchange.target.origin().to_owned(), body.clone());
    tokio::spawn(proxy.pool.clone().run(move || dictionaries.keep(&origin, body.segments())));
}

/// What a client gets that has a dictionary, of a response of so many bytes; `None` where that does not help. `made`: the forms
/// that are there.
pub fn choose<'m>(
    proxy: &Proxy,
    request: Request<'_>,
    policy: &Compression,
    head: &StoredHead,
    length: Option<u64>,
    made: Option<&'m Forms>,
) -> Option<Choice<'m>> {
    let hash = dictionary::available(request.fields)?;
    let coding = coding::coding_with_dictionary(request, &policy.codings)?;
    if !dictionary::may_be_used(request.fields, &head.fields) {
        proxy.metrics.dictionary(DictionaryUse::OtherOrigin);
        return None;
    }
    let id = FormId { coding, dictionary: Some(hash) };
    if let Some(form) = made.and_then(|made| made.get(id)) {
        proxy.metrics.dictionary(DictionaryUse::Used);
        return Some(Choice::Made(form));
    }
    // Coded in one piece, it has to be known that it is not too long.
    if length.is_none_or(|length| length > policy.dictionaries.max_bytes) {
        proxy.metrics.dictionary(DictionaryUse::Length);
        return None;
    }
    let Some(dictionary) = proxy.dictionaries.get(request.target.origin(), hash) else {
        proxy.metrics.dictionary(DictionaryUse::Unknown);
        return None;
    };
    proxy.metrics.dictionary(DictionaryUse::Used);
    Some(Choice::Make(Make::Coded(Wanted { coding, dictionary: Some(dictionary) })))
}
