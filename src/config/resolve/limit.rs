//! Rate limits.

use super::NAME_BYTES_MAX;
use super::table::Table;
use crate::config::raw::{RawOnFault, RawPurge, RawRate, RawRateLimit};
use crate::config::report::Report;
use crate::config::settings::{LimitBy, OnFault, Rate, RateLimit, Settings};
use crate::config::shape::join;
use crate::config::units;
use crate::semantics::fields::is_token_byte;
use std::collections::HashMap;
use std::time::Duration;

/// Selectors that one caller may purge: a second, and at once.
const PURGE_RATE: Rate = Rate { count: 1000, per: Duration::from_secs(1) };
pub const PURGE_BURST: u32 = 10_000;
/// Largest burst.
const BURST_MAX: u64 = 1_000_000_000;

/// The limit that is written at `at`; `None` where it is off.
pub fn route(at: &str, scope: &str, raw: &RawRateLimit, report: &mut Report) -> Option<RateLimit> {
    if raw.rate.is_none() && !report.is_removed(&join(at, "rate")) {
        report.problem(at, "a limit without a rate", "", units::RATE_ALLOWED, "write rate = \"100/s\"");
    }
    let rate = rate(&mut Table::new(report, at), raw.rate.as_ref())?;
    let name = match &raw.name {
        Some(name) => checked_name(&join(at, "name"), name, report),
        None => scope.to_owned(),
    };
    let burst = Table::new(report, at).count("burst", raw.burst, u64::from(rate.count), 1..=BURST_MAX);
    let on_fault = match raw.on_fault {
        None | Some(RawOnFault::Allow) => OnFault::Allow,
        Some(RawOnFault::Deny) => OnFault::Deny,
    };
    let (by, shared) = (by(&join(at, "by"), raw.by.as_deref(), report), raw.shared.unwrap_or(false));
    Some(RateLimit { name, rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), by, shared, on_fault })
}

fn rate(table: &mut Table<'_>, raw: Option<&RawRate>) -> Option<Rate> {
    let (count, seconds) = table.quantity("rate", &raw?.0, units::rate, units::RATE_ALLOWED)??;
    Some(Rate { count, per: Duration::from_secs(seconds) })
}

/// Names of sites and of routes, and both with a dot between, are names of limits.
fn checked_name(path: &str, name: &str, report: &mut Report) -> String {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if name.is_empty() || name.len() > 2 * NAME_BYTES_MAX + 1 || !is_plain {
        report.problem(path, "not a name", format!("\"{name}\""), "letters, digits, '-', '_' and '.'", "choose another name");
    }
    name.to_owned()
}

fn by(path: &str, text: Option<&str>, report: &mut Report) -> LimitBy {
    match text {
        None | Some("client") => LimitBy::Client,
        Some("everybody") => LimitBy::Everybody,
        Some(field) => {
            if field.is_empty() || !field.bytes().all(is_token_byte) {
                let allowed = "\"client\", \"everybody\", or the name of a request field";
                report.problem(path, "not the name of a field", format!("\"{field}\""), allowed, "write \"client\"");
            }
            LimitBy::Field(field.to_ascii_lowercase())
        }
    }
}

/// The limit of purges, per caller.
pub fn purge(raw: &RawPurge, report: &mut Report) -> Option<RateLimit> {
    let mut table = Table::new(report, "purge");
    let rate = match &raw.rate {
        None => PURGE_RATE,
        Some(_) => rate(&mut table, raw.rate.as_ref())?,
    };
    let burst = table.count("burst", raw.burst, u64::from(PURGE_BURST), 1..=BURST_MAX);
    let burst = u32::try_from(burst).unwrap_or(u32::MAX);
    Some(RateLimit { name: "purge".into(), rate, burst, by: LimitBy::Client, shared: false, on_fault: OnFault::Allow })
}

/// Limits of one name count together: they have to be the same. Shared ones need a place where they are counted.
pub fn check(settings: &Settings, report: &mut Report) {
    let mut named: HashMap<&str, &RateLimit> = HashMap::new();
    let routes = settings.sites.iter().flat_map(|site| site.routes.iter().map(move |route| (site, route)));
    for (site, route) in routes {
        let Some(limit) = &route.rate_limit else { continue };
        if limit.shared && settings.redis.is_none() {
            let path = format!("{}.routes", join("sites", &site.name));
            let (found, allowed) = (format!("limit \"{}\"", limit.name), "shared limits are counted in Redis");
            let remedy = "write [cache.redis] with url = \"redis://127.0.0.1:6379\", or shared = false";
            report.problem(&path, "a shared limit without Redis", found, allowed, remedy);
        }
        if named.insert(&limit.name, limit).is_some_and(|other| other != limit) {
            let path = format!("{}.routes", join("sites", &site.name));
            let what = format!("two different limits are called \"{}\"", limit.name);
            report.problem(
                &path,
                what,
                format!("route \"{}\"", route.name),
                "limits of one name are the same",
                "write name = \"...\" in one of them",
            );
        }
    }
}
