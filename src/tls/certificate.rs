//! A certificate with its chain and key, from two files in PEM. Pure: what was read comes in, and the time.

use super::ocsp::{self, StapleError};
use super::provider;
use super::x509::{self, Facts};
use crate::config::settings::{CertificateFiles, PemFile};
use crate::semantics::date;
use rustls::SignatureScheme;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::Arc;

/// A certificate that can be shown.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// Names that it is for, lower case, `*.` before those for all below a name.
    pub names: Vec<String>,
    /// From when until when it is valid, milliseconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// Until when what its authority says is stapled to it, milliseconds since 1970; or why it is not. `None`: there is none.
    pub staple: Option<Result<i64, StapleError>>,
    /// Nothing follows it, and it was issued by another: clients that do not know that one refuse it.
    pub is_alone: bool,
    /// A signature takes longer than a worker may be held up.
    pub is_slow: bool,
}

/// Why files are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("holds no certificate{}", found(.0))]
    NoCertificate(Vec<String>),
    #[error("holds no private key{}", found(.0))]
    NoKey(Vec<String>),
    #[error("not PEM: {0}")]
    NotPem(String),
    #[error("certificate {0} is malformed")]
    Malformed(usize),
    #[error("certificate {0} did not issue the one before it")]
    Order(usize),
    #[error("expired on {0}")]
    Expired(String),
    #[error("not valid before {0}")]
    Early(String),
    #[error("is not the key of {}", .0.display())]
    Mismatch(PathBuf),
    #[error("a key that cannot be used: {0}")]
    Key(String),
}

/// Which of the two files is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Certificate,
    Key,
}

impl CertificateError {
    /// The file that is wrong.
    pub fn file<'a>(&self, files: &'a CertificateFiles) -> &'a PemFile {
        match self.part() {
            Part::Certificate => &files.certificate,
            Part::Key => &files.key,
        }
    }

    pub const fn part(&self) -> Part {
        match self {
            Self::NoKey(_) | Self::Mismatch(_) | Self::Key(_) => Part::Key,
            _ => Part::Certificate,
        }
    }

    pub fn remedy(&self) -> String {
        match self {
            Self::NoCertificate(kinds) if kinds.iter().any(|kind| kind.ends_with("PRIVATE KEY")) => {
                "it is a key: swap cert_file and key_file".into()
            }
            Self::NoCertificate(_) => "name the file with the certificate and its chain, as issued (fullchain.pem)".into(),
            Self::NoKey(kinds) if kinds.iter().any(|kind| kind.contains("ENCRYPTED")) => {
                "take the passphrase away: openssl pkey -in KEY -out NEW, readable to this user alone".into()
            }
            Self::NoKey(_) => "name the file with the private key of the certificate".into(),
            Self::NotPem(_) => "convert it: openssl x509 -inform der -in OLD -out NEW (openssl pkey for a key)".into(),
            Self::Malformed(_) => "have it issued again, or remove it from the file".into(),
            Self::Order(_) => "put the certificate first, then its issuer, then the issuer's: each certified by the next".into(),
            Self::Expired(_) => "have it renewed".into(),
            Self::Early(_) => "look at the clock of this machine, or take the certificate before it".into(),
            Self::Mismatch(_) => "name the key with which the certificate was asked for".into(),
            Self::Key(_) => "make an ECDSA P-256 key: openssl ecparam -genkey -name prime256v1, and have its certificate issued".into(),
        }
    }
}

/// Behind "holds no ...": what it has instead.
fn found(kinds: &[String]) -> String {
    if kinds.is_empty() { ", nor anything else in PEM".into() } else { format!(", but {}", kinds.join(", ")) }
}

impl Certificate {
    /// `now`: milliseconds since 1970.
    pub fn read(files: &CertificateFiles, now: i64) -> Result<Self, CertificateError> {
        let chain = chain(&files.certificate.pem)?;
        let facts = in_order(&chain)?;
        let (not_before, not_after) = (facts[0].not_before, facts[0].not_after);
        if now > not_after {
            return Err(CertificateError::Expired(day(not_after)));
        }
        if now < not_before {
            return Err(CertificateError::Early(day(not_before)));
        }
        let is_alone = chain.len() == 1 && !facts[0].is_self_issued();
        let names = names(&chain[0]).ok_or(CertificateError::Malformed(1))?;
        let key = private_key(&files.key.pem)?;
        let staple = files.ocsp.as_ref().map(|file| ocsp::good_until(&file.pem, facts[0].serial, now));
        let mut certified = CertifiedKey::from_der(chain.clone(), key, &provider(&[])).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch(files.certificate.path.clone()),
            error => CertificateError::Key(error.to_string()),
        })?;
        if let (Some(Ok(_)), Some(file)) = (&staple, &files.ocsp) {
            certified.ocsp = Some(file.pem.clone());
        }
        let is_slow = certified.key.choose_scheme(&FAST).is_none();
        Ok(Self { key: Arc::new(certified), names, not_before, not_after, staple, is_alone, is_slow })
    }
}

/// Well below 200 us on any machine; RSA takes a multiple of it, P-384 too.
const FAST: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

fn day(ms: i64) -> String {
    String::from_utf8_lossy(&date::format(ms)).into_owned()
}

pub(super) fn chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match chain.map_err(not_pem)? {
        chain if chain.is_empty() => Err(nothing(text, CertificateError::NoCertificate)),
        chain => Ok(chain),
    }
}

pub(super) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => Err(nothing(text, CertificateError::NoKey)),
        Err(error) => Err(CertificateError::Key(format!("not PEM: {error}"))),
    }
}

fn not_pem(error: pem::Error) -> CertificateError {
    CertificateError::NotPem(error.to_string())
}

/// What was looked for is not there; tells what is.
fn nothing(text: &[u8], error: impl FnOnce(Vec<String>) -> CertificateError) -> CertificateError {
    let is_text = std::str::from_utf8(text).is_ok();
    let kinds: Vec<String> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.trim_ascii().strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----"))
        .map(|kind| String::from_utf8_lossy(kind).into_owned())
        .collect();
    match is_text || !kinds.is_empty() {
        true => error(kinds),
        false => CertificateError::NotPem("binary data".into()),
    }
}

/// What the certificates say, once it is sure that each was issued by the next (RFC 8446 §4.4.2 lets clients be lenient;
/// not all are).
fn in_order<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<Facts<'a>>, CertificateError> {
    let mut facts: Vec<Facts<'a>> = Vec::with_capacity(chain.len());
    for (at, certificate) in chain.iter().enumerate() {
        let next = x509::facts(certificate).ok_or(CertificateError::Malformed(at + 1))?;
        if facts.last().is_some_and(|before| before.issuer != next.subject) {
            return Err(CertificateError::Order(at + 1));
        }
        facts.push(next);
    }
    Ok(facts)
}

fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}
