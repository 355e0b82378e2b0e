//! Series of TLS.

use super::series;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Registry};

/// What came of a handshake with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Handshake {
    Full,
    /// By a ticket of an earlier session.
    Resumed,
    /// The two have no version, suite or kind of signature in common, or one of them does not like what the other shows.
    Refused,
    /// Not over in time.
    Timeout,
    ClientLeft,
    /// An authority has seen that a host is ours (RFC 8737).
    Challenge,
}

impl Handshake {
    pub const ALL: [Self; 6] = [Self::Full, Self::Resumed, Self::Refused, Self::Timeout, Self::ClientLeft, Self::Challenge];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::ClientLeft => "client_left",
            Self::Challenge => "challenge",
        }
    }
}

/// What came of files of certificates that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateChange {
    Replaced,
    /// Not usable.
    Refused,
    /// The certificate is shown without the OCSP response that it had.
    Unstapled,
}

/// What is counted of TLS.
pub struct TlsSeries {
    handshakes: IntCounterVec,
    expiry: IntGaugeVec,
    revocation: IntGaugeVec,
    /// As [`CertificateChange`] has them.
    changes: [IntCounter; 3],
}

impl TlsSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let handshakes = series::TLS_HANDSHAKES.counters(registry);
        for outcome in Handshake::ALL {
            let versions: &[&str] = if matches!(outcome, Handshake::Full | Handshake::Resumed) { &["1.2", "1.3"] } else { &["none"] };
            for version in versions {
                handshakes.with_label_values(&[*version, outcome.as_str()]);
            }
        }
        let changes = series::TLS_CERTIFICATE_CHANGES.counters(registry);
        let changes = ["replaced", "refused", "unstapled"].map(|outcome| changes.with_label_values(&[outcome]));
        let (expiry, revocation) = (series::TLS_CERTIFICATE_EXPIRY.gauges(registry), series::TLS_REVOCATION_EXPIRY.gauges(registry));
        Self { handshakes, expiry, revocation, changes }
    }

    /// A handshake ended; `version` where it came to one.
    pub fn handshake(&self, version: Option<&'static str>, outcome: Handshake) {
        self.handshakes.with_label_values(&[version.unwrap_or("none"), outcome.as_str()]).inc();
    }

    /// Files changed.
    pub fn certificate_changed(&self, change: CertificateChange) {
        self.changes[change as usize].inc();
    }

    /// Forgets the certificates of listeners that are not there any more.
    pub fn forget_certificates(&self) {
        self.expiry.reset();
        self.revocation.reset();
    }

    /// How long a revocation list or a staple is still good; zero or negative: it is not.
    pub fn revocation_expires(&self, listener: &str, file: &str, seconds: i64) {
        self.revocation.with_label_values(&[listener, file]).set(seconds);
    }

    /// How long a certificate is still valid; negative: since when it is not.
    pub fn certificate_expires(&self, listener: &str, certificate: &str, seconds: i64) {
        self.expiry.with_label_values(&[listener, certificate]).set(seconds);
    }
}
