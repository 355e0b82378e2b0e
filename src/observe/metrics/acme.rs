//! Series of certificates that are obtained by ACME.

use super::{children, series};
use crate::config::settings::Challenge;
use prometheus::{IntCounter, IntGaugeVec, Registry};

/// What came of asking for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AcmeOutcome {
    Obtained,
    /// The authority does not want to certify, or did not find the host to be ours.
    Refused,
    /// It was not reached, or what came could not be used or kept.
    Failed,
    Timeout,
    /// Another node of the fleet had obtained it.
    Given,
}

impl AcmeOutcome {
    pub const ALL: [Self; 5] = [Self::Obtained, Self::Refused, Self::Failed, Self::Timeout, Self::Given];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Obtained => "obtained",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Given => "given",
        }
    }
}

/// What is counted of it.
pub struct AcmeSeries {
    orders: Vec<IntCounter>,
    /// http-01, tls-alpn-01.
    challenges: Vec<IntCounter>,
    next: IntGaugeVec,
    failures: IntGaugeVec,
}

impl AcmeSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let challenges = [Challenge::Http01, Challenge::TlsAlpn01].map(Challenge::as_str);
        Self {
            orders: children(&series::ACME_ORDERS.counters(registry), AcmeOutcome::ALL.map(AcmeOutcome::as_str)),
            challenges: children(&series::ACME_CHALLENGES.counters(registry), challenges),
            next: series::ACME_NEXT.gauges(registry),
            failures: series::ACME_FAILURES.gauges(registry),
        }
    }

    /// An order ended.
    pub fn ended(&self, outcome: AcmeOutcome) {
        self.orders[outcome as usize].inc();
    }

    /// An authority was answered.
    pub fn answered(&self, challenge: Challenge) {
        self.challenges[usize::from(challenge == Challenge::TlsAlpn01)].inc();
    }

    /// A certificate is asked for at this Unix time, after so many attempts that failed.
    pub fn waits(&self, certificate: &str, until: i64, failures: u32) {
        self.next.with_label_values(&[certificate]).set(until);
        self.failures.with_label_values(&[certificate]).set(failures.into());
    }

    /// A certificate is not wanted any more.
    pub fn forget(&self, certificate: &str) {
        // An error says that it was not there.
        let _ = (self.next.remove_label_values(&[certificate]), self.failures.remove_label_values(&[certificate]));
    }
}
