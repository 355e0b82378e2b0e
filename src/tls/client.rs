//! TLS towards upstreams: whom we believe, what we show, and what is said where the two do not agree.

use super::certificate::Certificate;
use super::clients::authorities;
use super::watch::{DAY_MS, Expiry, Files, Look, Refreshed, Unreadable, read_again, shown_path};
use super::{certificate, provider};
use crate::clock;
use crate::config::settings::{CertificateFiles, PemFile, TlsVersion, UpstreamTls};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use std::sync::Arc;

/// What connections to one upstream have in common.
#[derive(Clone)]
pub struct Client {
    pub config: Arc<ClientConfig>,
    /// Asked for and verified instead of the endpoint's host.
    name: Option<String>,
}

/// Sessions of an upstream that may be resumed.
const SESSIONS: usize = 256;

impl Client {
    /// What is wrong otherwise.
    pub fn new(settings: &UpstreamTls) -> Result<Self, ClientError> {
        let provider = provider(&[]);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(settings.min_version.and_later()).map_err(ClientError::Versions)?;
        let builder = match settings.verify {
            true => builder.with_webpki_verifier(verifier(settings.roots.as_ref(), &provider)?),
            false => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        };
        let mut config = match &settings.certificate {
            Some(files) => with_certificate(builder, files)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![super::ALPN_HTTP1.into()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self { config: Arc::new(config), name: settings.server_name.clone() })
    }

    /// The same, but that these protocols are offered (ALPN), the best first.
    pub fn offering(&self, protocols: &[&[u8]]) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    /// The name to ask for and to verify; `host`: that of the endpoint.
    pub fn name(&self, host: &str) -> Option<ServerName<'static>> {
        let name = self.name.as_deref().unwrap_or(host);
        ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_owned()).ok()
    }
}

/// A [`Client`] whose files may change at any time. Connections keep what they began with.
pub struct Watched {
    seen: Mutex<Seen>,
    client: ArcSwap<Client>,
    protocols: &'static [&'static [u8]],
}

struct Seen {
    settings: Files<UpstreamTls>,
    /// When the certificate in use ends, milliseconds since 1970.
    not_after: Option<i64>,
}

impl Watched {
    /// `protocols`: those that are offered, the best first.
    pub fn new(settings: UpstreamTls, protocols: &'static [&'static [u8]]) -> Result<Self, ClientError> {
        let client = ArcSwap::from_pointee(Client::new(&settings)?.offering(protocols));
        let not_after = end_of(&settings);
        Ok(Self { seen: Mutex::new(Seen { settings: Files::new(settings), not_after }), client, protocols })
    }

    pub fn current(&self) -> Arc<Client> {
        self.client.load_full()
    }

    /// The file of the certificate that we show, and when it ends.
    pub fn expiry(&self) -> Option<Expiry> {
        let seen = self.seen.lock();
        Some((shown_path(&seen.settings.seen().certificate.as_ref()?.certificate.path), seen.not_after?))
    }

    /// Takes up what has changed in the files, as [`super::Server::refresh`] does. Blocks.
    pub fn refresh(&self) -> Option<Refreshed> {
        let mut seen = self.seen.lock();
        let Seen { settings, not_after } = &mut *seen;
        let now = again(settings.seen());
        match settings.look(now) {
            Look::Same => return None,
            Look::Unreadable(told) => return Some(told),
            Look::Changed { .. } => {}
        }
        let settings = settings.seen();
        let files = [settings.certificate.as_ref().map(|files| &files.certificate), settings.roots.as_ref()];
        let file = files.into_iter().flatten().next().map_or_else(String::new, |file| shown_path(&file.path));
        Some(match Client::new(settings) {
            Ok(client) => {
                self.client.store(Arc::new(client.offering(self.protocols)));
                *not_after = end_of(settings);
                let days_left = not_after.map(|until| (until - clock::now().wall_ms) / DAY_MS);
                Refreshed::Replaced { file, days_left }
            }
            Err(error) => Refreshed::Refused { file, error: error.to_string(), remedy: error.remedy().into() },
        })
    }
}

/// The same with its files as they are now.
fn again(settings: &UpstreamTls) -> Result<UpstreamTls, Unreadable> {
    let pair = |files: &CertificateFiles| {
        let (certificate, key) = (read_again(&files.certificate)?, read_again(&files.key)?);
        Ok(CertificateFiles { certificate, key, ocsp: files.ocsp.clone() })
    };
    Ok(UpstreamTls {
        roots: settings.roots.as_ref().map(read_again).transpose()?,
        certificate: settings.certificate.as_ref().map(pair).transpose()?,
        ..settings.clone()
    })
}

/// When the certificate that is shown ends.
fn end_of(settings: &UpstreamTls) -> Option<i64> {
    Some(Certificate::read(settings.certificate.as_ref()?, clock::now().wall_ms).ok()?.not_after)
}

/// Why there can be no TLS to an upstream.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Versions(Error),
    #[error("holds no certificate of an authority that can be used")]
    NoRoots,
    #[error("this machine has no certificates of authorities")]
    NoSystemRoots,
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
}

impl ClientError {
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Versions(_) => "leave min_version out",
            Self::NoRoots => "name a PEM file with the certificates of those who may certify the upstream",
            Self::NoSystemRoots => "install ca-certificates, or name ca_file",
            Self::Certificate(_) => "name the certificate, then its chain, in cert_file, and its key in key_file",
        }
    }
}

fn verifier(roots: Option<&PemFile>, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, ClientError> {
    let (store, none) = match roots {
        Some(file) => (authorities(file), ClientError::NoRoots),
        None => {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            (store, ClientError::NoSystemRoots)
        }
    };
    if store.is_empty() {
        return Err(none);
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build().map_err(|_| none)
}

type Verified = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn with_certificate(builder: Verified, files: &CertificateFiles) -> Result<ClientConfig, ClientError> {
    let wrong = |error: &dyn std::fmt::Display| ClientError::Certificate(error.to_string());
    let chain = certificate::chain(&files.certificate.pem).map_err(|error| wrong(&error))?;
    let key = certificate::private_key(&files.key.pem).map_err(|error| wrong(&error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))
}

impl TlsVersion {
    /// It and all that came after it.
    pub(super) const fn and_later(self) -> &'static [&'static SupportedProtocolVersion] {
        const FROM_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        const FROM_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        match self {
            Self::Tls12 => FROM_12,
            Self::Tls13 => FROM_13,
        }
    }
}

/// Takes every certificate (`insecure_skip_verify`); that the other side has its key is still verified.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a handshake with an upstream failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its certificate is not one that we accept.
    Certificate(String),
    /// It refused us.
    Alert(String),
    Protocol(String),
}

impl Failure {
    /// `name`: whose certificate was expected.
    pub fn of(error: &Error, name: &str) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::Certificate(told(error, name)),
            Error::AlertReceived(alert) => Self::Alert(format!(
                "{name} refused the handshake ({alert:?}); does it want a client certificate (tls.cert_file), another name (tls.server_name), or another version?"
            )),
            Error::InvalidMessage(_) => {
                Self::Protocol(format!("{name} does not speak TLS on this port: write http://, or name its port for https"))
            }
            error => Self::Protocol(format!("{name}: {error}")),
        }
    }
}

fn told(error: &CertificateError, name: &str) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the certificate of {name} has expired: have it renewed there")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the certificate of {name} is not valid yet: look at the clocks")
        }
        CertificateError::NotValidForName => format!("the certificate is not for {name}: set tls.server_name to a name that it is for"),
        CertificateError::NotValidForNameContext { presented, .. } => {
            // `DnsName("shop.example")`, as the verifier tells it.
            let names: Vec<_> = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
            let names = names.join(", ");
            format!("the certificate is for {names}, not for {name}: set tls.server_name to a name that it is for")
        }
        CertificateError::UnknownIssuer => {
            format!("the certificate of {name} was issued by an authority that is not trusted here: name its certificate in tls.ca_file")
        }
        error => format!("the certificate of {name} is not acceptable: {error}"),
    }
}
