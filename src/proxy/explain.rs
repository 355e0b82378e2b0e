//! What the cache knows and would do for a request, without making it (`tiercel explain`).

use super::exchange::Arrival;
use super::lookup::{self, Found};
use super::standing::Standing;
use super::{Proxy, admit, blocks, remote, shield};
use crate::cache::StoredResponse;
use crate::clock;
use crate::listener::{Peer, RequestBody, RequestHead};
use crate::semantics::reuse::{MustAsk, Reuse, StaleWhy, Unusable, Validity};
use crate::semantics::storage::NotStored;
use crate::semantics::widening::{Widening, widening};
use crate::semantics::{Fields, Now, content, date, dictionary, name};
use serde_json::{Value, json};
use std::sync::Arc;

impl Proxy {
    /// The decision record for a request as if it came from loopback now.
    pub async fn explain(&self, url: &str, method: &str, headers: &[(String, String)], content: &str) -> Result<Value, String> {
        let (scheme, rest) = url.split_once("://").ok_or("the URL needs a scheme: http://host/path")?;
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        let mut fields = Fields::new();
        fields.push("host", authority).map_err(|error| format!("host: {error}"))?;
        for (name, value) in headers {
            fields.push(name, value).map_err(|error| format!("field `{name}`: {error}"))?;
        }
        let head = RequestHead {
            method: method.parse().map_err(|_| format!("`{method}` is not a method"))?,
            target: if path.starts_with('/') { path.into() } else { format!("/{path}").into_bytes() },
            minor_version: 1,
            fields,
        };
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let scheme = if scheme == "https" { crate::semantics::target::Scheme::Https } else { crate::semantics::target::Scheme::Http };
        let peer = Peer { scheme, ..Peer::plain(loopback, loopback, 0, "explain") };
        let live = self.live.load_full();
        let mut arrival = admit::admit(&live, &peer, &head, None)
            .map_err(|refused| format!("{} {}: {}", refused.status, refused.reason, refused.text))?;
        let now = clock::now();
        arrival.standing = Standing::of(&self.journal, &live.settings.journal, now);
        let way = admit::way(&arrival, &RequestBody::Empty);
        if matches!(way, admit::Way::CacheByContent) {
            arrival.key = content::key(&arrival.key, arrival.method, &arrival.fields, content.as_bytes());
        }
        let mut explained = self.explain_arrival(&mut arrival, way, now);
        explained["redis"] = remote::explain(self, &arrival.own(), decision).await;
        Ok(explained)
    }

    fn explain_arrival(&self, arrival: &mut Arrival<'_>, way: admit::Way, now: Now) -> Value {
        let found = lookup::find(self, arrival.request(), &arrival.key, arrival.policy(), arrival.standing, now);
        let found = lookup::find_equivalent(self, arrival, found, now);
        let route = &arrival.routed.route;
        let way = match way {
            admit::Way::Cache => "cache".to_owned(),
            admit::Way::CacheByContent => "cache, by its content".to_owned(),
            admit::Way::Past(why) => format!("past the cache: {}", why.text()),
            admit::Way::Local(_) => "answered by configuration".to_owned(),
            admit::Way::Purge => "purge".to_owned(),
        };
        let (found, decision) = match found {
            Found::Nothing => (Value::Null, "fetch: nothing is stored for this key (uri-miss)".to_owned()),
            Found::OtherVariants => {
                (Value::Null, "fetch: other variants are stored, none that this request selects (vary-miss)".to_owned())
            }
            Found::Stored { response, reuse, validity } => (self.explain_stored(arrival, &response, validity, now), decision(reuse)),
        };
        json!({
            "url": arrival.target.as_str(),
            "site": &*arrival.routed.site,
            "route": route.name,
            "upstream": arrival.routed.upstream.as_ref().map(|upstream| upstream.settings.name.clone()),
            "way": way,
            "cut_off": arrival.standing.as_str(),
            "key": arrival.key.shown(),
            "no_vary_search": self.search_rules.get(arrival.key.search_hash()).map(|rule| rule.text()),
            "tracking_list": route.key.ignore_tracking.then_some(crate::semantics::tracking::VERSION),
            "key_parts": arrival.key.shown().lines().collect::<Vec<_>>(),
            "vary_known": self.vary_memory.get(arrival.key.hash()).map(|vary| json!(vary.names())),
            "shield": arrival.routed.shield.as_ref().map(|shield| shield::explain(&self.journal, shield, arrival.exact.as_deref().unwrap_or(&arrival.key), now)),
            "do_not_line_up": self.markers.is_set(arrival.key.hash(), now.mono_ms),
            "dictionary": self.explain_dictionary(arrival),
            "stored": found,
            "not_stored": self.refusals.get(arrival.key.hash()).map(NotStored::as_str),
            "variants": self.memory.get(arrival.key.hash()).filter(|set| set.head.key == arrival.key).map_or(0, |set| set.responses().len()),
            "decision": decision,
        })
    }

    /// Whether the dictionary is here that the request names.
    fn explain_dictionary(&self, arrival: &Arrival<'_>) -> Option<&'static str> {
        let hash = dictionary::available(&arrival.fields)?;
        let is_here = self.dictionaries.get(arrival.target.origin(), hash).is_some();
        Some(if is_here { "kept" } else { "unknown" })
    }

    fn explain_stored(&self, arrival: &Arrival<'_>, response: &Arc<StoredResponse>, validity: Validity, now: Now) -> Value {
        let (head, policy) = (&response.head, arrival.policy());
        let lifetime = head.facts.lifetime(policy);
        let age_ms = head.facts.age_ms(now);
        let received_ms = now.wall_ms - i64::try_from(now.mono_ms.saturating_sub(head.facts.response_time.mono_ms)).unwrap_or(0);
        let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8_lossy(value).into_owned());
        json!({
            "tier": "memory",
            "status": head.status().as_u16(),
            "bytes": response.length,
            "blocks": blocks::count(self, response).map(|(here, of)| json!({"size": response.blocks().map(|blocks| blocks.size), "here": here, "of": of})),
            "forms": response.forms.iter().flat_map(|forms| forms.iter()).map(|form| (form.id.to_string(), json!(form.length))).collect::<serde_json::Map<_, _>>(),
            "age_seconds": age_ms as f64 / 1000.0,
            "freshness_lifetime_seconds": lifetime.ms as f64 / 1000.0,
            "freshness_from": lifetime.source.as_str(),
            "governed_by": head.facts.governed_by(),
            "widened_by": widening(&head.facts, policy, None).map(Widening::as_str),
            "remaining_seconds": (lifetime.ms as f64 - age_ms as f64) / 1000.0,
            "received": String::from_utf8_lossy(&date::format(received_ms)),
            "cache_control": text(head.fields.get(name::CACHE_CONTROL)),
            "etag": text(head.fields.get(name::ETAG)),
            "last_modified": text(head.fields.get(name::LAST_MODIFIED)),
            "vary": text(head.fields.get(name::VARY)),
            "variant": String::from_utf8_lossy(&head.secondary.0).lines().collect::<Vec<_>>(),
            "surrogate_keys": head.tags.text().split(' ').filter(|key| !key.is_empty()).collect::<Vec<_>>(),
            "stamp": head.stamp.purge.position,
            "validity": validity_text(validity),
            "matching_purge": self.journal.deciding_match(&head.subject(), &head.stamp),
            "dropped_in_seconds": response.keep(now).as_secs(),
        })
    }
}

const fn validity_text(validity: Validity) -> &'static str {
    match validity {
        Validity::Valid => "valid",
        Validity::Soft { .. } => "soft-purged",
        Validity::Unconfirmed => "unconfirmed",
        Validity::Purged => "purged",
    }
}

fn decision(reuse: Reuse) -> String {
    match reuse {
        Reuse::Fresh { .. } => "hit: the stored response is fresh".into(),
        Reuse::StaleNow { why, .. } => format!("serve stale: {}", stale_text(why)),
        Reuse::Revalidate { why, .. } => format!("ask the origin first: {}", must_ask_text(why)),
        Reuse::Unusable(why) => format!("fetch: {}", unusable_text(why)),
    }
}

const fn stale_text(why: StaleWhy) -> &'static str {
    match why {
        StaleWhy::WhileRevalidate => "stale-while-revalidate, with a refresh behind",
        StaleWhy::MaxStale => "the request's max-stale allows it",
    }
}

const fn must_ask_text(why: MustAsk) -> &'static str {
    match why {
        MustAsk::Stale => "what is stored is stale",
        MustAsk::SoftPurged => "what is stored was soft-purged",
        MustAsk::Unconfirmed => "this node is cut off from the fleet's journal, and what is stored may have been purged",
        MustAsk::NoCache => "what is stored says no-cache",
        MustAsk::Request => "the request wants it so",
    }
}

const fn unusable_text(why: Unusable) -> &'static str {
    match why {
        Unusable::Purged => "what is stored was purged",
        Unusable::Forbidden => "what is stored is for another request alone (no-store or private)",
        Unusable::Authorization => "what is stored may not be shared between requests with Authorization",
        Unusable::Policy => "today's configuration would not have stored it",
        Unusable::VaryStar => "what is stored has Vary: *",
    }
}
