//! Certificates of clients: who may issue them, and which were revoked. Pure: what was read comes in.

use super::provider;
use super::x509;
use crate::config::settings::{Asked, ClientCertificates, PemFile};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use std::sync::Arc;

/// How certificates of clients are verified, and until when that can be done with the lists that are there.
#[derive(Debug)]
pub struct Clients {
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// When the first revocation list is out of date, milliseconds since 1970; then nobody is let in.
    pub lists_until: Option<i64>,
}

/// Why certificates of clients cannot be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientsError {
    #[error("holds no certificate of an authority that can be used")]
    NoAuthority,
    #[error("holds no revocation list")]
    NoList,
    #[error("revocation list {0} cannot be used: {1}")]
    List(usize, String),
    #[error("revocation list {0} is out of date: nobody would be let in")]
    OutOfDate(usize),
}

impl ClientsError {
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::NoAuthority => "name a PEM file with the certificates of those who may certify clients",
            Self::NoList => "name a PEM file with the lists of all authorities: openssl crl -inform der -in OLD -out NEW",
            Self::List(..) => "have it issued again, as version 2 (RFC 5280 section 5)",
            Self::OutOfDate(_) => "fetch the new list from the authority; renew it before its time",
        }
    }

    /// The file that is wrong.
    pub fn file<'a>(&self, policy: &'a ClientCertificates) -> Option<&'a PemFile> {
        match self {
            Self::NoAuthority => policy.authorities.as_ref(),
            Self::NoList | Self::List(..) | Self::OutOfDate(_) => policy.revoked.as_ref(),
        }
    }
}

impl Clients {
    /// `None`: no certificates are asked for. `now`: milliseconds since 1970.
    pub fn new(policy: &ClientCertificates, now: i64) -> Result<Option<Self>, ClientsError> {
        if policy.asked == Asked::Nothing {
            return Ok(None);
        }
        let authorities = policy.authorities.as_ref().map_or_else(RootCertStore::empty, authorities);
        let lists = policy.revoked.as_ref().map(lists).transpose()?.unwrap_or_default();
        let mut lists_until: Option<i64> = None;
        for (at, list) in lists.iter().enumerate() {
            let until =
                x509::next_update(list).ok_or_else(|| ClientsError::List(at + 1, "it does not say when the next one is due".into()))?;
            if until < now {
                return Err(ClientsError::OutOfDate(at + 1));
            }
            lists_until = Some(lists_until.map_or(until, |before| before.min(until)));
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider(&[]));
        let builder = builder.with_crls(lists).enforce_revocation_expiration();
        let builder = if policy.asked == Asked::Optional { builder.allow_unauthenticated() } else { builder };
        let verifier = builder.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(error) => ClientsError::List(1, format!("{error:?}")),
            _ => ClientsError::NoAuthority,
        })?;
        Ok(Some(Self { verifier, lists_until }))
    }
}

/// Certificates of authorities, as far as they can be used.
pub(super) fn authorities(file: &PemFile) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&file.pem).filter_map(Result::ok));
    store
}

fn lists(file: &PemFile) -> Result<Vec<CertificateRevocationListDer<'static>>, ClientsError> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&file.pem).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err(ClientsError::NoList),
        Ok(lists) => Ok(lists),
        Err(error) => Err(ClientsError::List(1, error.to_string())),
    }
}

impl ClientCertificates {
    /// What a session that was begun under this policy may be resumed under: the policy, and what its files say.
    pub(super) fn circumstances(&self) -> Vec<u8> {
        let mut circumstances = vec![self.asked as u8];
        for file in [&self.authorities, &self.revoked].into_iter().flatten() {
            circumstances.extend((file.pem.len() as u64).to_be_bytes());
            circumstances.extend(&file.pem);
        }
        circumstances
    }
}
