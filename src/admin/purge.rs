//! `POST /v1/purge`: from what was written to selectors, and back to an answer.

use super::Control;
use super::api::Problem;
use crate::invalidation::{Mode, Selector};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;

/// Bytes of one surrogate key or cache group.
const KEY_BYTES_MAX: usize = 1024;
/// Longest wait for an acknowledgement.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The body of a purge.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PurgeBody {
    urls: Vec<String>,
    #[serde(alias = "keys")]
    tags: Vec<String>,
    groups: Vec<Group>,
    prefixes: Vec<String>,
    hosts: Vec<String>,
    sites: Vec<String>,
    everything: bool,
    mode: Option<Mode>,
    wait: Option<Wait>,
    timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    origin: String,
    group: String,
}

/// What may stand in the query as well.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PurgeQuery {
    mode: Option<Mode>,
    wait: Option<Wait>,
    timeout: Option<String>,
}

/// Whose acknowledgement the answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wait {
    None,
    Local,
    Fleet,
}

/// A purge that can be carried out.
#[derive(Debug)]
pub(super) struct Order {
    /// As given, and normalised.
    selectors: Vec<(String, Selector)>,
    mode: Mode,
    wait: Wait,
    /// For the fleet; `None`: as long as that takes where a node does not answer.
    timeout: Option<Duration>,
}

pub(super) fn parse(mut body: PurgeBody, query: PurgeQuery, control: &dyn Control) -> Result<Order, Problem> {
    let mode = agree("mode", body.mode, query.mode)?.unwrap_or(Mode::Hard);
    let wait = agree("wait", body.wait, query.wait)?.unwrap_or(Wait::Local);
    let timeout = agree("timeout", body.timeout.take(), query.timeout)?.map(|text| parse_timeout(&text)).transpose()?;
    let count = [&body.urls, &body.tags, &body.prefixes, &body.hosts, &body.sites].map(Vec::len).iter().sum::<usize>()
        + body.groups.len()
        + usize::from(body.everything);
    let most = control.selectors_per_call();
    if count == 0 {
        return Err(Problem::bad("nothing to purge is named", "give urls, tags, groups, prefixes, hosts, sites, or everything"));
    }
    if count > most {
        let message = format!("{count} selectors in one call; at most {most} are allowed");
        return Err(Problem::bad(message, "split the call, purge by tag or prefix, or raise purge.selectors_per_call"));
    }
    Ok(Order { selectors: selectors(body, control)?, mode, wait, timeout })
}

/// Body and query may both say it, but not differ.
fn agree<T: PartialEq>(name: &str, body: Option<T>, query: Option<T>) -> Result<Option<T>, Problem> {
    match (body, query) {
        (Some(body), Some(query)) if body != query => {
            Err(Problem::bad(format!("{name} is one thing in the body and another in the query"), "say it once"))
        }
        (body, query) => Ok(body.or(query)),
    }
}

/// `500ms`, `2s`, `1m`. Only the fleet is waited for: here a purge is in force before the answer.
fn parse_timeout(text: &str) -> Result<Duration, Problem> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit_ms: Option<u64> = match &text[digits..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let ms = text[..digits].parse().ok().zip(unit_ms).and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
    match ms.map(Duration::from_millis) {
        Some(timeout) if timeout <= TIMEOUT_MAX => Ok(timeout),
        _ => Err(Problem::bad(format!("timeout `{text}` is not a duration of at most 1m"), "write it with its unit: 500ms, 2s")),
    }
}

fn selectors(body: PurgeBody, control: &dyn Control) -> Result<Vec<(String, Selector)>, Problem> {
    let mut all = Vec::new();
    for url in body.urls {
        let normalised = normalise(&url, "urls", control)?;
        all.push((url, Selector::Url(normalised)));
    }
    for tag in body.tags {
        let key = checked(&tag, "tags")?.to_owned();
        all.push((tag, Selector::Key(key)));
    }
    for Group { origin, group } in body.groups {
        let selector = Selector::Group { origin: normalise_origin(&origin, control)?, group: checked(&group, "groups")?.to_owned() };
        all.push((format!("{origin} {group}"), selector));
    }
    for prefix in body.prefixes {
        let url = if prefix.contains("://") { prefix.clone() } else { format!("http://{prefix}") };
        all.push((prefix, Selector::Prefix(normalise(&url, "prefixes", control)?)));
    }
    for host in body.hosts {
        let authority = normalise_authority("http", &host, "hosts", control)?;
        all.push((host, Selector::Host(authority)));
    }
    for site in body.sites {
        let name = checked(&site, "sites")?.to_owned();
        // A name that is mistyped would match nothing, and look like success.
        control.check_site(&name).map_err(|remedy| Problem::bad(format!("sites: there is no site `{name}`"), remedy))?;
        all.push((site, Selector::Site(name)));
    }
    if body.everything {
        all.push((String::new(), Selector::Everything));
    }
    Ok(all)
}

fn normalise(url: &str, list: &str, control: &dyn Control) -> Result<String, Problem> {
    let remedy = "give an absolute URL such as https://shop.example/a";
    control.normalise_url(url).map_err(|error| Problem::bad(format!("{list}: `{url}`: {error}"), remedy))
}

/// `host[:port]` as targets have it: by the same function, with the shortest path.
fn normalise_authority(scheme: &str, host: &str, list: &str, control: &dyn Control) -> Result<String, Problem> {
    if host.is_empty() || host.contains(['/', '?', '#', '@', '\\']) {
        return Err(Problem::bad(format!("{list}: `{host}` is not a host"), "give a name and, where it is not the default, a port"));
    }
    let url = normalise(&format!("{scheme}://{host}/"), list, control)?;
    Ok(url.split('/').next().unwrap_or_default().to_owned())
}

/// `scheme://authority`; a slash at its end is forgiven.
fn normalise_origin(origin: &str, control: &dyn Control) -> Result<String, Problem> {
    let parts = origin.split_once("://").map(|(scheme, host)| (scheme.to_ascii_lowercase(), host));
    match parts {
        Some((scheme, host)) if scheme == "http" || scheme == "https" => {
            let authority = normalise_authority(&scheme, host.strip_suffix('/').unwrap_or(host), "groups", control)?;
            Ok(format!("{scheme}://{authority}"))
        }
        _ => Err(Problem::bad(format!("groups: `{origin}` is not an origin"), "give scheme and host: https://shop.example")),
    }
}

/// A name as it is, without white space around it.
fn checked<'a>(text: &'a str, list: &str) -> Result<&'a str, Problem> {
    let trimmed = text.trim();
    if trimmed.is_empty() || trimmed.len() > KEY_BYTES_MAX || trimmed.contains(char::is_control) {
        let message = format!("{list}: a value is empty, longer than {KEY_BYTES_MAX} bytes, or holds control characters");
        return Err(Problem::bad(message, "give it as the origin sends it"));
    }
    Ok(trimmed)
}

impl Order {
    /// How many selectors were given.
    pub(super) const fn len(&self) -> usize {
        self.selectors.len()
    }
}

/// Purges and builds the answer: 202 where the fleet is waited for, and a node of it may still serve what was purged.
pub(super) async fn carry_out(order: Order, control: &dyn Control, actor: &str) -> (StatusCode, Value) {
    let stored_here = match order.selectors.as_slice() {
        [(_, Selector::Url(url))] => Some(control.stored_here(url)),
        _ => None,
    };
    let (given, selectors): (Vec<_>, Vec<_>) = order.selectors.into_iter().unzip();
    let fleet = control.fleet();
    let mut told = fleet.map(|fleet| fleet.told());
    let mut receipt = control.purge(selectors, order.mode, actor);
    if let Some(told) = told.as_mut().filter(|_| order.wait == Wait::Fleet) {
        let waited = tokio::time::timeout(order.timeout.unwrap_or_else(|| control.fleet_timeout()), complete(&receipt.id, control, told));
        let _ = waited.await; // what is known then is told
        receipt = control.receipt(&receipt.id).unwrap_or(receipt);
    }
    let mut answer = receipt.json(given);
    if let Some(stored) = stored_here {
        answer["stored_here"] = stored.into();
    }
    let status = if order.wait == Wait::Fleet && !receipt.complete { StatusCode::ACCEPTED } else { StatusCode::OK };
    if order.wait == Wait::Fleet && told.is_none() {
        answer["reason"] = "this node belongs to no fleet: the purge is complete here, and nobody else was told".into();
    }
    (status, answer)
}

/// Until no node of the fleet may serve what was purged.
async fn complete(id: &str, control: &dyn Control, told: &mut watch::Receiver<u64>) {
    while control.receipt(id).is_some_and(|receipt| !receipt.complete) && told.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ExplainRequest;
    use crate::invalidation::{Position, Receipt};
    use proptest::prelude::*;
    use std::pin::Pin;

    /// Takes URLs as they are.
    struct Plain;

    impl Control for Plain {
        fn token(&self) -> Option<crate::config::settings::Secret> {
            None
        }
        fn admit_purge(&self, _: std::net::IpAddr, _: usize) -> Result<(), u64> {
            Ok(())
        }
        fn refused_purge(&self, _: &str, _: u16, _: &str) {}
        fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt {
            let (id, issued_at, actor) = ("f00".into(), String::new(), actor.into());
            let (position, reason, nodes) = (Position::default(), None, Vec::new());
            Receipt { id, mode, selectors, position, issued_at, actor, acknowledged: "local", reason, complete: true, nodes }
        }
        fn receipt(&self, _: &str) -> Option<Receipt> {
            None
        }
        fn normalise_url(&self, url: &str) -> Result<String, String> {
            url.split_once("://").map(|(_, rest)| rest.to_owned()).ok_or_else(|| "no scheme".into())
        }
        fn check_site(&self, _: &str) -> Result<(), String> {
            Ok(())
        }
        fn stored_here(&self, _: &str) -> bool {
            false
        }
        fn explain(&self, _: ExplainRequest) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> {
            Box::pin(async { Ok(Value::Null) })
        }
        fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Value, crate::admin::ReloadRefused>> + Send>> {
            Box::pin(async { Ok(Value::Null) })
        }
        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
        fn metrics(&self) -> String {
            String::new()
        }
        fn config(&self) -> Value {
            Value::Null
        }
        fn status(&self) -> Value {
            Value::Null
        }
        fn selectors_per_call(&self) -> usize {
            100
        }
    }

    proptest! {
        #[test]
        fn any_body_is_refused_or_makes_a_selector_for_each_value(
            texts in proptest::collection::vec(any::<String>(), 5),
            timeout in proptest::option::of("[0-9]{0,25}(ms|s|m|h|é)?"),
            everything in any::<bool>(),
        ) {
            let list = |at: usize| vec![texts[at].clone()];
            let body = PurgeBody {
                urls: list(0), tags: list(1), prefixes: list(2), hosts: list(3), sites: list(4), everything, timeout,
                groups: vec![Group { origin: format!("http://{}", texts[0]), group: texts[1].clone() }],
                ..PurgeBody::default()
            };
            if let Ok(order) = parse(body, PurgeQuery::default(), &Plain) {
                prop_assert_eq!(order.selectors.len(), 6 + usize::from(everything));
            }
        }
    }
}
