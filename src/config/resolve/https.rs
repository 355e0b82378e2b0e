//! What brings clients to https and keeps them there: redirects, Strict-Transport-Security.

use super::table::Table;
use crate::config::raw::{RawHsts, RawRedirectToHttps};
use crate::config::report::Report;
use crate::config::settings::{Asked, Hsts, Settings};
use crate::config::shape::join;
use crate::config::units;
use serde_json::Value;

const PORT: u16 = 443;

/// The port of https that clients are sent to; `outer`: what the level around says.
pub fn redirect(at: &str, raw: Option<&RawRedirectToHttps>, outer: Option<u16>, report: &mut Report) -> Option<u16> {
    let Some(RawRedirectToHttps(value)) = raw else { return outer };
    match value {
        Value::Bool(wanted) => wanted.then_some(PORT),
        _ => {
            let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            if port.is_none() {
                let allowed = "true, false, or the port of https as clients see it";
                Table::new(report, at).wrong("redirect_to_https", "not a port", value, allowed, "write true for port 443");
            }
            port
        }
    }
}

/// Browsers take hosts into their lists only with these (hstspreload.org).
const PRELOAD_SECONDS_MIN: u64 = 31_536_000;

/// The value of Strict-Transport-Security. A table replaces the whole of an outer one.
pub fn hsts(at: &str, raw: &RawHsts, outer: Option<Hsts>, report: &mut Report) -> Option<Hsts> {
    if *raw == RawHsts::default() {
        return outer;
    }
    let Some(max_age) = &raw.max_age else {
        let remedy = "write max_age = \"365d\" beside it";
        report.problem(at, "Strict-Transport-Security without a time", "", "max_age, and more as wanted", remedy);
        return None;
    };
    if max_age.0 == "off" {
        return None;
    }
    let allowed = "a duration such as \"365d\" (\"0s\" takes it back), or \"off\"";
    let max_age = Table::new(report, at).quantity("max_age", &max_age.0, units::duration, allowed)?;
    let (include_subdomains, preload) = (raw.include_subdomains.unwrap_or(false), raw.preload.unwrap_or(false));
    if preload && (!include_subdomains || max_age.as_secs() < PRELOAD_SECONDS_MIN) {
        let remedy = "write max_age = \"365d\" and include_subdomains = true, or remove preload";
        let what = "preload without all subdomains for a year: browsers would not take it";
        report.problem(&join(at, "preload"), what, "true", "max_age of 365d or more, and include_subdomains", remedy);
    }
    let options = [(include_subdomains, "; includeSubDomains"), (preload, "; preload")];
    let options: String = options.iter().filter_map(|(is_on, option)| is_on.then_some(*option)).collect();
    let value = format!("max-age={}{options}", max_age.as_secs());
    Some(Hsts { max_age, include_subdomains, preload, value })
}

/// What needs https is of use only where it is served.
pub fn check(settings: &Settings, report: &mut Report) {
    if settings.listeners.iter().any(|listener| listener.tls.is_some()) {
        return;
    }
    for site in &settings.sites {
        if site.client_certificates.as_ref().is_some_and(|clients| clients.asked != Asked::Nothing) {
            let at = join(&join(&join("sites", &site.name), "tls"), "client_certificates");
            let remedy = "write [listeners.https.tls] with certificates, or remove it";
            report.problem(&at, "client certificates, and no listener with TLS", "", "a listener with tls", remedy);
        }
    }
}
