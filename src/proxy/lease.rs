//! One fetch for the fleet, where there is no shield (DESIGN section 5): a leader that misses asks Redis for the response and,
//! in the same round trip, for the lease to fetch it. Where another node has that, it waits and looks again.
//!
//! What another node fetched passes the same check as all that is in Redis: one that began before a purge which this node
//! knows of is not used, and then this node asks for the lease anew. No lease is asked for where nothing would come to
//! others by Redis: what is kept in blocks, or too early to be kept; nor where another node is asked that owns the key,
//! which has the lease itself; nor while this node is cut off from the fleet's journal.

use super::exchange::Exchange;
use super::flight::Candidate;
use super::remote::{self, Answer, Looked};
use super::{Proxy, shield, store};
use crate::coalesce::lease::{Claim, Ended, Lease, Leases, Verdict};
use crate::observe::metrics::LeaseAsked;
use crate::proxy::outcome::Contact;

/// Times that what another node has stored may prove of no use; then this node fetches for itself.
const ROUNDS: usize = 4;

/// What looking, and waiting, came to.
pub struct Sought {
    pub answer: Answer,
    /// The lease to fetch it, if this node got that.
    pub lease: Option<Lease>,
    /// Another node fetched it while this one waited.
    pub is_given: bool,
    pub contact: Contact,
}

/// Asks the tier, as [`remote::look`], and where it has no answer for the lease.
pub async fn look(proxy: &Proxy, exchange: &Exchange, candidate: &Candidate, is_refresh: bool, fetch: u64) -> Sought {
    let Some(leases) = leases_for(proxy, exchange, candidate) else {
        let Looked { answer, contact, .. } = remote::look(proxy, exchange, candidate, is_refresh, fetch, None).await;
        return Sought { answer, lease: None, is_given: false, contact };
    };
    let (deadline, mut useless, mut last) = (leases.deadline(), None, Answer::Nothing);
    for _ in 0..ROUNDS {
        let looked = remote::look(proxy, exchange, candidate, is_refresh, fetch, Some((leases, useless.as_ref()))).await;
        let Looked { answer, claim, contact } = looked;
        if matches!(answer, Answer::Whole(_) | Answer::Long(_)) {
            let is_given = useless.is_some();
            if is_given {
                proxy.metrics.lease.asked(LeaseAsked::Given);
            }
            return Sought { answer, lease: None, is_given, contact };
        }
        let verdict = match claim {
            Claim::Lead(lease) => Verdict::Lead(lease),
            Claim::Ended(key, outcome) if outcome.ended == Ended::Stored => leases.ask(&key, Some(&outcome), deadline).await,
            Claim::Ended(_, outcome) => Verdict::Ended(outcome),
            Claim::Free(key) | Claim::Held(key) => leases.ask(&key, useless.as_ref(), deadline).await,
            Claim::Unknown => Verdict::Unknown,
        };
        let (asked, lease) = match verdict {
            Verdict::Ended(outcome) if outcome.ended == Ended::Stored => {
                (useless, last) = (Some(outcome), answer);
                continue;
            }
            Verdict::Lead(lease) => (LeaseAsked::Led, Some(lease)),
            Verdict::Ended(_) => (LeaseAsked::Alone, None),
            Verdict::TimedOut => (LeaseAsked::TimedOut, None),
            Verdict::Unknown => (LeaseAsked::Unknown, None),
        };
        proxy.metrics.lease.asked(asked);
        return Sought { answer, lease, is_given: false, contact };
    }
    proxy.metrics.lease.asked(LeaseAsked::Alone);
    Sought { answer: last, lease: None, is_given: false, contact: Contact::Whole }
}

/// Where to ask for the lease, if one is wanted for this fetch.
fn leases_for<'a>(proxy: &'a Proxy, exchange: &Exchange, candidate: &Candidate) -> Option<&'a Leases> {
    let leases = proxy.remote.get()?.leases.as_deref()?;
    let comes_by_redis = !exchange.standing.is_cut_off()
        && exchange.routed.route.redis.enabled
        && exchange.policy().blocks.is_none()
        && !store::is_too_early(proxy, exchange, candidate)
        && !shield::is_anothers(exchange);
    comes_by_redis.then_some(leases)
}
