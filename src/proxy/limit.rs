//! Rate limits, before the cache: a request that comes too early is answered here.

use super::exchange::{Arrival, PanicNote};
use super::{Proxy, answer};
use crate::clock;
use crate::config::settings::LimitBy;
use crate::limit::{Caller, Limiter, Rejected};
use crate::listener::{Handled, InterimSlot, RequestBody, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// What a route's limit makes of a request.
pub enum Checked {
    Passed,
    /// The answer.
    Refused(Box<Response>),
    /// The fleet counts it, for this caller.
    InFleet(Arc<Limiter>, u128),
}

/// Counts a request, where its route has a limit.
pub fn check(arrival: &Arrival<'_>) -> Checked {
    match &arrival.routed.limiter {
        // PURGE has a limit of its own (`purge.rate`).
        Some(limiter) if arrival.method.as_str() != "PURGE" => count(limiter, arrival),
        _ => Checked::Passed,
    }
}

#[cold]
fn count(limiter: &Arc<Limiter>, arrival: &Arrival<'_>) -> Checked {
    let field = match &limiter.settings.by {
        LimitBy::Field(name) => arrival.fields.joined(name.as_str()),
        LimitBy::Client | LimitBy::Everybody => None,
    };
    let caller = match (&limiter.settings.by, &field) {
        (LimitBy::Everybody, _) => Caller::Everybody,
        (_, Some(value)) => Caller::Field(value),
        // Who leaves the field out gains nothing by it.
        (_, None) => Caller::Client(arrival.client),
    };
    if limiter.is_shared() {
        return Checked::InFleet(Arc::clone(limiter), caller.hash());
    }
    match limiter.check(caller) {
        Err(rejected) => Checked::Refused(Box::new(answer::too_many_requests(arrival, &limiter.settings, rejected))),
        Ok(()) => Checked::Passed,
    }
}

/// Asks the fleet, then goes the way of any other request.
pub fn in_fleet(
    proxy: &Arc<Proxy>,
    limiter: Arc<Limiter>,
    caller: u128,
    arrival: Arrival<'_>,
    body: RequestBody,
    interim: &mut InterimSlot,
) -> Handled {
    let interim = (arrival.minor_version > 0).then(|| interim.sender());
    let (proxy, exchange) = (Arc::clone(proxy), Arc::new(arrival.own()));
    Handled::Later(Box::pin(async move {
        let _note = PanicNote::on(Arc::clone(&exchange));
        if let Err(rejected) = limiter.check_shared(caller).await {
            return Box::new(answer::too_many_requests(&exchange.arrival(), &limiter.settings, rejected));
        }
        proxy.go(exchange.arrival(), body, &mut InterimSlot::of(interim), clock::now()).response().await
    }))
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
