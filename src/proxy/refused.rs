//! Requests that the connection refused, and those whose clients left before there was an answer: counted and logged
//! like all others.

use super::{Proxy, admit};
use crate::body::BodyError;
use crate::listener::{Peer, Refusal, RequestHead, Sent};
use crate::observe::metrics::{Bound, Metrics};
use crate::proxy::outcome::{CacheResult, Outcome, Source};
use crate::semantics::{Fields, Method, StatusCode};

/// Counts a refusal, and the bound that it enforces.
pub fn count(metrics: &Metrics, refusal: Refusal) {
    metrics.refused(refusal.reason, refusal.status);
    if let Some(bound) = bound(refusal.reason) {
        metrics.bound(bound);
    }
}

/// The bound behind a reason of `listener::http1`.
fn bound(reason: &str) -> Option<Bound> {
    use Bound::{BodyBytes, BodyRate, BodyTimeout, HeaderBytes, HeaderCount, HeaderTimeout, UrlBytes};
    [HeaderBytes, HeaderCount, UrlBytes, BodyBytes, HeaderTimeout, BodyTimeout, BodyRate]
        .into_iter()
        .find(|bound| bound.as_str().bytes().map(|byte| if byte == b'_' { b'-' } else { byte }).eq(reason.bytes()))
}

/// Writes the line of a request of which no outcome is known: its head, where there is one, says where it belongs.
pub fn log(proxy: &Proxy, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64) {
    let method = Method::from_bytes(b"-").expect("a hyphen is a token");
    let nothing = RequestHead { method, target: b"-".to_vec(), minor_version: 1, fields: Fields::new() };
    let known = head.and_then(|head| Some(admit::admit(&proxy.live.load(), peer, head, None).ok()?.outcome()));
    let outcome = Outcome {
        result: CacheResult::Error,
        source: Source::Tiercel,
        error: Some(refusal.error()),
        detail: (refusal.status != CLIENT_LEFT).then(|| refusal.reason.into()),
        ..known.unwrap_or_default()
    };
    let sent = Sent {
        status: StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST),
        body_bytes: 0,
        duration_ns,
        aborted: (refusal.status == CLIENT_LEFT).then_some(BodyError::ClientLeft),
    };
    proxy.access_log.record(peer, head.unwrap_or(&nothing), &outcome, &sent);
}

/// Stands for a client that left; no such status goes out.
const CLIENT_LEFT: u16 = 499;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_stand_for_a_bound_count_it() {
        for (reason, want) in [
            ("header-bytes", Some(Bound::HeaderBytes)),
            ("body-timeout", Some(Bound::BodyTimeout)),
            ("body-rate", Some(Bound::BodyRate)),
            ("bare-lf", None),
        ] {
            assert_eq!(bound(reason), want);
        }
    }
}
