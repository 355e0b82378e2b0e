//! Invalidation by requests: the PURGE method, and unsafe methods (RFC 9111 §4.4).

use super::exchange::{Arrival, Exchange};
use super::{Proxy, answer, remote};
use crate::cache::{GROUPS_MAX, Tags, named_groups, subject};
use crate::config::settings::is_in;
use crate::invalidation::{Mode, Receipt, Selector, Stamp};
use crate::listener::{Response, ResponseFields};
use crate::observe::log::RateLimit;
use crate::observe::metrics::Bound;
use crate::proxy::outcome::{CacheResult, Outcome, Source};
use crate::semantics::policy::CachePolicy;
use crate::semantics::{CacheKey, Fields, Method, Now, Target, invalidation, name};
use crate::upstream::Inbound;

/// PURGE, where the route allows it: a URL, or the surrogate keys that the request names.
pub fn by_method(proxy: &Proxy, arrival: &Arrival<'_>, now: Now) -> Response {
    let outcome = Outcome { result: CacheResult::Local, source: Source::Tiercel, ..arrival.outcome() };
    let allowed = &arrival.routed.route.purge_from;
    let actor = format!("purge:{}", arrival.client);
    let refuse = |status, message: &str, remedy: &str| {
        // A method that is not taken at all is no attempt that anybody has to know of.
        if status != 405 {
            log_refusal(&actor, status, message, now);
        }
        let body = serde_json::json!({"error": {"message": message, "remedy": remedy}});
        let mut response = answer::json(status, &body, outcome.clone());
        if status == 405
            && let ResponseFields::Own(fields) = &mut response.fields
        {
            let _ = fields.push("allow", answer::ALLOW); // RFC 9110 §15.5.6; a constant
        }
        response
    };
    if allowed.is_empty() {
        return refuse(405, "PURGE is not allowed here", ALLOW_IT);
    }
    if !is_in(allowed, arrival.client) {
        return refuse(403, "PURGE is not allowed from this address", ALLOW_IT);
    }
    let (given, selectors) = selectors(arrival);
    let most = arrival.routed.settings.purge.selectors_per_call;
    if selectors.len() > most {
        let message = format!("{} keys in one PURGE; at most {most} are allowed", selectors.len());
        return refuse(400, &message, "send several, purge by a key that they share, or raise purge.selectors_per_call");
    }
    if let Err(rejected) = proxy.admit_purge(arrival.client, selectors.len()) {
        let seconds = rejected.retry_after_seconds();
        let mut response =
            refuse(429, "too many purges", &format!("try again in {seconds} s, purge by a key that they share, or raise purge.rate"));
        if let ResponseFields::Own(fields) = &mut response.fields {
            let _ = fields.append(name::RETRY_AFTER, seconds.to_string()); // digits are a field value
        }
        return response;
    }
    let soft = arrival.fields.has(name::XKEY_SOFTPURGE) || arrival.fields.get(name::FASTLY_SOFT_PURGE).is_some_and(|value| value == b"1");
    let mode = if soft { Mode::Soft } else { Mode::Hard };
    let stored_here = matches!(selectors[..], [Selector::Url(_)]).then(|| proxy.holds(&arrival.key) || proxy.holds_url(&arrival.target));
    let mut body = proxy.purge(selectors, mode, &actor, now).json(given);
    if let Some(stored_here) = stored_here {
        body["stored_here"] = stored_here.into();
    }
    answer::json(200, &body, outcome)
}

const ALLOW_IT: &str = "list the network in `purge.allow` of the route, or use the admin API";

/// Keys named by any of the tag fields, parted by spaces, commas or tabs in each of them; else the URL itself. As given,
/// and as selectors.
fn selectors(arrival: &Arrival<'_>) -> (Vec<String>, Vec<Selector>) {
    let mut keys = Vec::new();
    for field in [name::SURROGATE_KEY, name::CACHE_TAG, name::EDGE_CACHE_TAG, name::XKEY, name::XKEY_SOFTPURGE] {
        for value in arrival.fields.values(field) {
            let text = String::from_utf8_lossy(value);
            keys.extend(text.split([' ', ',', '\t']).filter(|key| !key.is_empty()).map(str::to_owned));
        }
    }
    if keys.is_empty() {
        let url = &arrival.target;
        return (vec![url.as_str().to_owned()], vec![Selector::Url(url.without_scheme().to_owned())]);
    }
    let selectors = keys.iter().cloned().map(Selector::Key).collect();
    (keys, selectors)
}

/// A successful answer to an unsafe method invalidates its URL and those of Location and Content-Location; groups that
/// it names by Cache-Group-Invalidation likewise (RFC 9875 §3).
///
/// Gives the stamp that the answer to a request sent at `sent` has if it is stored itself; `None` where another write
/// came between.
pub fn by_unsafe_method(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound, sent: &Stamp) -> Option<Stamp> {
    if !exchange.routed.settings.purge.unsafe_methods {
        return Some(*sent);
    }
    let response = crate::semantics::Response { status: inbound.status, fields: &inbound.fields };
    let now = crate::clock::now();
    let targets = invalidation::invalidated(exchange.request(), response);
    if targets.is_empty() {
        return None;
    }
    let urls: Vec<u128> =
        targets.iter().flat_map(|target| proxy.keys_of(target)).flat_map(|key| [key.url_hash(), key.search_hash()]).collect();
    let (own, untagged) = (exchange.key_of(&inbound.fields), Tags::default());
    let stamp = proxy.journal.invalidate_unsafe(&urls, &subject(&own, &exchange.routed.site, &untagged), sent, now);
    proxy.metrics.unsafe_invalidation();
    remote::raise_floors(proxy, &urls, now);
    let groups = named_groups(&inbound.fields, name::CACHE_GROUP_INVALIDATION, exchange.target.origin());
    if groups.len() > GROUPS_MAX {
        // Too much rather than too little: all of the host may be in one of them.
        proxy.metrics.bound(Bound::InvalidatedGroups);
        proxy.journal.invalidate_host(exchange.target.authority(), now);
        proxy.metrics.unsafe_invalidation();
    } else if !groups.is_empty() {
        proxy.journal.invalidate_groups(&groups, now);
        proxy.metrics.unsafe_invalidation();
    }
    if let Some(fleet) = proxy.fleet.get() {
        fleet.nudge();
    }
    stamp
}

impl Proxy {
    /// Invalidates, counts and writes the audit line. URLs are what was asked for: what the routes make of them is found here.
    pub fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Receipt {
        let selectors = self.under_all_routes(selectors);
        for selector in &selectors {
            self.metrics.purged(selector.kind().as_str(), mode.as_str());
        }
        let receipt = match self.fleet.get() {
            Some(fleet) => fleet.purge(selectors, mode, actor, now),
            None => self.journal.purge(selectors, mode, actor, now),
        };
        log(&receipt);
        receipt
    }

    /// Whether something of this URL is in memory, whichever route stored it; what it stored by parts of requests, fields
    /// or cookies in its key, is not looked for.
    pub fn holds_url(&self, target: &Target) -> bool {
        self.keys_of(target).iter().any(|key| self.holds(key))
    }

    fn holds(&self, key: &CacheKey) -> bool {
        let is_there = |key: &CacheKey| self.memory.get(key.hash()).is_some_and(|set| set.head.key == *key);
        is_there(key) || self.equivalent_key(key, &CachePolicy::default()).is_some_and(|key| is_there(&key))
    }

    /// The keys of this URL by the rules of every route that could answer it, for a request with no fields: which route
    /// stored it may have hung on them. The first is that of a plain GET; as it stands where no site has its host.
    fn keys_of(&self, target: &Target) -> Vec<CacheKey> {
        let (live, nothing) = (self.live.load(), Fields::new());
        let plain = live.route(target, &Method::GET, &nothing).map(|routed| routed.route.key.clone()).unwrap_or_default();
        let mut keys = vec![CacheKey::new(target, &nothing, &plain)];
        for policy in live.key_policies(target) {
            let key = CacheKey::new(target, &nothing, policy);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// URLs as they are under the rules of their routes: in place of each the first, further ones behind all others. So
    /// each that was given keeps its place.
    fn under_all_routes(&self, mut selectors: Vec<Selector>) -> Vec<Selector> {
        let mut further = Vec::new();
        for selector in &mut selectors {
            match selector {
                Selector::Url(text) => {
                    let Some(target) = Target::from_text(text) else { continue };
                    let keys = self.keys_of(&target);
                    let mut urls: Vec<&str> = Vec::new();
                    for url in keys.iter().map(CacheKey::url_text) {
                        // Keys may differ in other parts.
                        if !urls.contains(&url) {
                            urls.push(url);
                        }
                    }
                    let mut urls = urls.into_iter().map(str::to_owned);
                    *text = urls.next().unwrap_or_default(); // a URL has one key at least
                    further.extend(urls.map(Selector::Url));
                }
                Selector::Prefix(text) => self.shorten(text),
                _ => {}
            }
        }
        selectors.append(&mut further);
        selectors
    }

    /// A prefix that reaches into the query ends before it, where a route of its site changes queries: what is stored
    /// there may not begin as the URL did.
    fn shorten(&self, prefix: &mut String) {
        let (Some(query_at), Some(target)) = (prefix.find('?'), Target::from_text(prefix)) else { return };
        let live = self.live.load();
        let site = live.router.site(target.host()).and_then(|site| live.settings.sites.get(site));
        if site.is_some_and(|site| site.routes.iter().any(|route| !route.key.keeps_query())) {
            prefix.truncate(query_at);
        }
    }
}

/// The audit line of a purge that was refused: whoever tries shows, and whoever goes on trying does not fill the log.
pub fn log_refusal(actor: &str, status: u16, reason: &str, now: Now) {
    static LINES: RateLimit = RateLimit::new(REFUSAL_INTERVAL_MS);
    if let Some(held_back) = LINES.pass(now.mono_ms) {
        tracing::warn!(actor, status, reason, held_back, "purge refused");
    }
}

/// Between lines about purges that were refused.
const REFUSAL_INTERVAL_MS: u64 = 200;

/// The audit line. Of the selectors the first, without its query string: those may hold what no log should.
fn log(receipt: &Receipt) {
    let first = receipt.selectors.first().map(|selector| {
        let text = selector.text();
        format!("{} {}", selector.kind().as_str(), text.split('?').next().unwrap_or_default())
    });
    let (id, mode, actor, count) = (&receipt.id, receipt.mode.as_str(), &receipt.actor, receipt.selectors.len());
    tracing::info!(actor, id, mode, selectors = count, first, "purge");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{AccessFormat, AccessLog, Log, LogFormat, LogTarget};
    use crate::invalidation::Position;
    use serde_json::{Value, json};
    use std::fs::File;

    #[test]
    fn a_purge_is_logged_with_its_actor_and_without_query_strings() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let access = AccessLog { target: LogTarget::Off, format: AccessFormat::Json, queue: 1 };
        let settings = Log { level: "info".into(), format: LogFormat::Json, access };
        let writer = File::options().append(true).open(file.path()).unwrap();
        let (subscriber, _) = crate::observe::log::subscriber(&settings, writer).unwrap();
        let receipt = Receipt {
            id: "f00".into(),
            mode: Mode::Hard,
            selectors: vec![Selector::Url("shop.example/a?token=hidden".into()), Selector::Everything],
            position: Position::default(),
            issued_at: String::new(),
            actor: "admin:192.0.2.7:1".into(),
            acknowledged: "local",
            reason: None,
            complete: true,
            nodes: Vec::new(),
        };
        tracing::subscriber::with_default(subscriber, || log(&receipt));
        let event: Value = serde_json::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
        let facts = ["level", "message", "actor", "id", "mode", "selectors", "first"].map(|name| event[name].clone());
        assert_eq!(Value::from(facts.to_vec()), json!(["INFO", "purge", "admin:192.0.2.7:1", "f00", "hard", 2, "url shop.example/a"]));
    }
}
