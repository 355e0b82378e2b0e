//! Invalidation by requests: the PURGE method, and unsafe methods (RFC 9111 §4.4).

use super::exchange::{Arrival, Exchange};
use super::{Proxy, admit, answer};
use crate::cache::named_groups;
use crate::invalidation::{Mode, Selector};
use crate::listener::{Response, ResponseFields};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::{CacheResult, Outcome, Source};
use crate::semantics::key::KeyPolicy;
use crate::semantics::{CacheKey, Fields, Method, Now, Target, invalidation, name};
use crate::upstream::Inbound;

/// PURGE, where the route allows it: a URL, or the surrogate keys that the request names.
pub fn by_method(proxy: &Proxy, arrival: &Arrival<'_>, now: Now) -> Response {
    let outcome = Outcome { result: CacheResult::Local, source: Source::Tiercel, ..arrival.outcome() };
    let allowed = &arrival.routed.route.purge_from;
    let refuse = |status, message: &str| {
        let body = serde_json::json!({"error": {"message": message, "remedy": "list the network in `purge.allow` of the route, or use the admin API"}});
        let mut response = answer::json(status, &body, outcome.clone());
        if status == 405
            && let ResponseFields::Own(fields) = &mut response.fields
        {
            let _ = fields.push("allow", answer::ALLOW); // RFC 9110 §15.5.6; a constant
        }
        response
    };
    if allowed.is_empty() {
        return refuse(405, "PURGE is not allowed here");
    }
    if !admit::is_in(allowed, arrival.client) {
        return refuse(403, "PURGE is not allowed from this address");
    }
    let (selectors, soft_by_field) = selectors(arrival);
    if selectors.len() > arrival.routed.settings.purge.selectors_per_call {
        return refuse(400, "too many keys in one PURGE");
    }
    let soft = soft_by_field || arrival.fields.get(name::FASTLY_SOFT_PURGE).is_some_and(|value| value == b"1");
    let mode = if soft { Mode::Soft } else { Mode::Hard };
    let stored_here = matches!(selectors[..], [Selector::Url(_)])
        .then(|| proxy.memory.get(arrival.key.hash()).is_some_and(|set| *set.key() == arrival.key));
    let actor = format!("purge:{}", arrival.client);
    let receipt = proxy.purge(selectors, mode, &actor, now);
    let mut body = serde_json::to_value(&receipt).unwrap_or_default();
    if let (Some(stored_here), Some(body)) = (stored_here, body.as_object_mut()) {
        body.insert("stored_here".into(), stored_here.into());
    }
    answer::json(200, &body, outcome)
}

/// Keys named by Surrogate-Key, xkey or xkey-softpurge (by space), Cache-Tag (by comma); else the URL itself.
fn selectors(arrival: &Arrival<'_>) -> (Vec<Selector>, bool) {
    let mut keys = Vec::new();
    for field in [name::SURROGATE_KEY, name::CACHE_TAG, name::EDGE_CACHE_TAG, name::XKEY, name::XKEY_SOFTPURGE] {
        for value in arrival.fields.values(field) {
            let text = String::from_utf8_lossy(value);
            keys.extend(text.split([' ', ',', '\t']).filter(|key| !key.is_empty()).map(|key| Selector::Key(key.to_owned())));
        }
    }
    if keys.is_empty() {
        keys.push(Selector::Url(url_text(&arrival.key).to_owned()));
    }
    (keys, arrival.fields.has(name::XKEY_SOFTPURGE))
}

/// `authority/path?query` of a key.
pub fn url_text(key: &CacheKey) -> &str {
    key.url().split_once("://").map_or("", |(_, text)| text)
}

/// A successful answer to an unsafe method invalidates its URL and those of Location and Content-Location; groups that
/// it names by Cache-Group-Invalidation likewise (RFC 9875 §3).
pub fn by_unsafe_method(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound) {
    if !exchange.routed.settings.purge.unsafe_methods {
        return;
    }
    let response = crate::semantics::Response { status: inbound.status, fields: &inbound.fields };
    let now = crate::clock::now();
    let targets = invalidation::invalidated(exchange.request(), response);
    if targets.is_empty() {
        return;
    }
    let urls: Vec<u128> = targets.iter().flat_map(|target| proxy.keys_of(target)).map(|key| key.url_hash()).collect();
    if !urls.is_empty() {
        proxy.journal.invalidate_unsafe(&urls, now);
        proxy.metrics.unsafe_invalidation();
    }
    let mut groups = named_groups(&inbound.fields, name::CACHE_GROUP_INVALIDATION, exchange.target.origin());
    if groups.len() > GROUPS_PER_ANSWER {
        proxy.metrics.bound(Bound::InvalidatedGroups);
        groups.truncate(GROUPS_PER_ANSWER);
    }
    if !groups.is_empty() {
        proxy.journal.invalidate_groups(&groups, now);
        proxy.metrics.unsafe_invalidation();
    }
}

/// Groups of one Cache-Group-Invalidation that are heeded: what an answer may be tagged with must fit (RFC 9875 §3).
const GROUPS_PER_ANSWER: usize = 32;

impl Proxy {
    /// Invalidates, counts and writes the audit line.
    pub fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> crate::invalidation::Receipt {
        let selectors = self.widen(selectors);
        for selector in &selectors {
            self.metrics.purged(selector.kind().as_str(), mode.as_str());
        }
        let receipt = self.journal.purge(selectors, mode, actor, now);
        tracing::info!(id = receipt.id, mode = mode.as_str(), actor, selectors = receipt.selectors.len(), "purge");
        receipt
    }

    /// The key of a GET for this URL by the rules of its route; as it stands where no site has its host.
    pub fn key_of(&self, target: &Target) -> CacheKey {
        let (live, nothing) = (self.live.load(), Fields::new());
        match live.route(target, &Method::GET, &nothing) {
            Some(routed) => CacheKey::new(target, &nothing, &routed.route.key),
            None => CacheKey::new(target, &nothing, &KeyPolicy::default()),
        }
    }

    /// The keys of this URL by the rules of every route of its site: which route stored it may have hung on its fields.
    fn keys_of(&self, target: &Target) -> Vec<CacheKey> {
        let (live, nothing) = (self.live.load(), Fields::new());
        let mut keys = vec![self.key_of(target)];
        for policy in live.key_policies(target) {
            let key = CacheKey::new(target, &nothing, policy);
            if !keys.iter().any(|there| there.url_hash() == key.url_hash()) {
                keys.push(key);
            }
        }
        keys
    }

    /// URL selectors together with what the same URLs are under the other routes of their sites.
    fn widen(&self, selectors: Vec<Selector>) -> Vec<Selector> {
        let mut all = Vec::with_capacity(selectors.len());
        for selector in selectors {
            if let Selector::Url(text) = &selector
                && let Ok(target) = Target::from_url(&format!("http://{text}"))
            {
                let others = self.keys_of(&target).iter().map(|key| Selector::Url(url_text(key).to_owned())).collect::<Vec<_>>();
                all.extend(others.into_iter().filter(|other| *other != selector));
            }
            all.push(selector);
        }
        all
    }
}
