//! Rate limits, before the cache: a request that comes too early is answered here.

use super::exchange::Arrival;
use super::{Proxy, answer};
use crate::config::settings::LimitBy;
use crate::limit::{Caller, Limiter, Rejected};
use crate::listener::Response;
use crate::semantics::Method;
use std::net::IpAddr;

/// Counts a request; the answer where there were too many.
pub fn check(limiter: &Limiter, arrival: &Arrival<'_>) -> Option<Response> {
    let rejected = match &limiter.settings.by {
        // PURGE has a limit of its own (`purge.rate`).
        _ if is_purge(arrival.method) => return None,
        LimitBy::Everybody => limiter.check(Caller::Everybody),
        LimitBy::Client => limiter.check(Caller::Client(arrival.client)),
        LimitBy::Field(name) => match arrival.fields.joined(name.as_str()) {
            Some(value) => limiter.check(Caller::Field(&value)),
            // Who leaves the field out gains nothing by it.
            None => limiter.check(Caller::Client(arrival.client)),
        },
    };
    Some(answer::too_many_requests(arrival, &limiter.settings, rejected.err()?))
}

fn is_purge(method: &Method) -> bool {
    method.as_str() == "PURGE"
}

impl Proxy {
    /// Whether this caller may purge so many selectors now (`purge.rate`).
    pub fn admit_purge(&self, caller: IpAddr, selectors: usize) -> Result<(), Rejected> {
        match &self.live.load().purge_limiter {
            Some(limiter) => limiter.check_several(Caller::Client(caller), selectors),
            None => Ok(()),
        }
    }
}
