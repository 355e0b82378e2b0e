//! The one provider of cryptography: aws-lc-rs.

use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{CipherSuite, Error, NamedGroup, ProtocolVersion, SupportedCipherSuite};
use std::sync::Arc;

/// Suites by the names of IANA, in our order. All have forward secrecy and authenticated encryption: there is nothing
/// weaker to switch on.
pub const SUITES: [(&str, CipherSuite); 9] = [
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// X25519 and ML-KEM at once: what is recorded today withstands the quantum computer of tomorrow.
pub const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;

/// What both ends of connections use: these suites in this order, or all of them; of key exchanges the hybrid one first.
pub fn provider(suites: &[String]) -> Arc<CryptoProvider> {
    let all = aws_lc_rs::ALL_CIPHER_SUITES;
    let named = |name: &String| SUITES.iter().find(|(known, _)| known == name).map(|(_, suite)| *suite);
    let supported = |suite: CipherSuite| all.iter().find(|supported| supported.suite() == suite).copied();
    let chosen: Vec<SupportedCipherSuite> = suites.iter().filter_map(named).filter_map(supported).collect();
    Arc::new(CryptoProvider {
        cipher_suites: if chosen.is_empty() { all.to_vec() } else { chosen },
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// The same for clients that know the hybrid key exchange: they get that, also where they name another first. A server of rustls goes
/// by the client's order among what it is given, so it is given no other; but for TLS 1.2, which has no hybrid one.
pub fn provider_of_hybrids(suites: &[String]) -> Arc<CryptoProvider> {
    static X25519: Before13 = Before13(aws_lc_rs::kx_group::X25519);
    static SECP256R1: Before13 = Before13(aws_lc_rs::kx_group::SECP256R1);
    static SECP384R1: Before13 = Before13(aws_lc_rs::kx_group::SECP384R1);
    let kx_groups: Vec<&'static dyn SupportedKxGroup> = vec![aws_lc_rs::kx_group::X25519MLKEM768, &X25519, &SECP256R1, &SECP384R1];
    Arc::new(CryptoProvider { kx_groups, ..Arc::unwrap_or_clone(provider(suites)) })
}

/// A key exchange for TLS 1.2 alone.
#[derive(Debug)]
struct Before13(&'static dyn SupportedKxGroup);

impl SupportedKxGroup for Before13 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        self.0.start()
    }

    fn start_and_complete(&self, share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        self.0.start_and_complete(share)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        self.0.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version != ProtocolVersion::TLSv1_3 && self.0.usable_for_version(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_has_a_name_and_stands_in_the_order_that_was_asked_for() {
        let all: Vec<_> = SUITES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(provider(&all).cipher_suites.len(), aws_lc_rs::ALL_CIPHER_SUITES.len());
        assert_eq!(provider(&[]).cipher_suites.len(), aws_lc_rs::ALL_CIPHER_SUITES.len());
        let two = provider(&[all[2].clone(), all[0].clone()]);
        let names: Vec<_> = two.cipher_suites.iter().map(SupportedCipherSuite::suite).collect();
        assert_eq!(names, [SUITES[2].1, SUITES[0].1]);
    }
}
