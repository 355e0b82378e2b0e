//! Keys and what is signed with them: requests for certificates, and the certificates that answer challenges.

use crate::config::settings::KeyType;
use crate::tls::provider;
use crate::tls::server::ALPN_ACME;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, RsaKeySize};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A new key in PEM, and a request in DER that it be certified for these hosts.
pub struct Request {
    pub key: String,
    pub der: Vec<u8>,
}

impl Request {
    pub fn new(hosts: &[String], kind: KeyType) -> Result<Self, rcgen::Error> {
        let key = match kind {
            KeyType::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyType::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyType::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        }?;
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = DistinguishedName::new(); // the names are enough, and what else is said is not certified
        let der = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key: key.serialize_pem(), der })
    }
}

/// A key and its certificate with the chain, as they are kept: one file, so that they change together.
pub fn together(key: &str, chain: &str) -> Vec<u8> {
    [key.trim_end(), "\n", chain.trim_start()].concat().into_bytes()
}

/// How a handshake goes on that shows that a host is ours (RFC 8737 §3): with a certificate that says what was agreed on.
pub fn challenge(host: &str, key_authorization: &str) -> Option<Arc<ServerConfig>> {
    let key = KeyPair::generate().ok()?;
    let mut params = CertificateParams::new([host.to_owned()]).ok()?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&Sha256::digest(key_authorization))];
    let certificate = params.self_signed(&key).ok()?.der().clone();
    let provider = provider(&[]);
    let key = provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into()).ok()?;
    // rustls' own way to set a certificate looks into it, and refuses critical extensions that it does not know.
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ALPN_ACME.into()];
    Some(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_is_made_and_asks_for_its_hosts() {
        for kind in [KeyType::P256, KeyType::P384, KeyType::Rsa2048] {
            let request = Request::new(&["shop.example".into(), "www.shop.example".into()], kind).unwrap();
            assert!(request.key.starts_with("-----BEGIN PRIVATE KEY-----"));
            assert!(request.der.windows(16).any(|part| part == b"www.shop.example"), "{}", kind.as_str());
        }
    }

    #[test]
    fn a_challenge_is_answered_by_its_protocol_alone() {
        let config = challenge("shop.example", "token.thumbprint").unwrap();
        assert_eq!(config.alpn_protocols, [ALPN_ACME]);
        assert!(challenge("b\u{fc}cher.example", "token.thumbprint").is_none(), "hosts are ASCII by then");
    }
}
