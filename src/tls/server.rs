//! TLS as a listener offers it: versions, suites, tickets, and the certificates, which files may change at any time.

use super::certificate::{Certificate, CertificateError};
use super::names::Names;
use super::provider;
use super::tickets::Tickets;
use crate::clock;
use crate::config::settings::{CertificateFiles, ListenerTls, PemFile};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What a listener shows to its clients.
pub struct Server {
    pub config: Arc<ServerConfig>,
    pub handshake_timeout: Duration,
    /// Handshakes at a time; whoever comes then waits for one to end.
    pub handshakes: Semaphore,
    shown: Arc<Shown>,
    files: Mutex<Vec<Watched>>,
}

/// Why there can be no such listener.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{path}: {error}")]
    Certificate { path: String, error: CertificateError },
    #[error("{0}: name a suite of each version that is offered")]
    Suites(rustls::Error),
}

/// The files of a certificate as they were last seen, usable or not, and what is shown for them.
struct Watched {
    files: CertificateFiles,
    certificate: Arc<Certificate>,
    /// A file could not be read when it was last looked at.
    is_unreadable: bool,
}

/// What came of looking at the files of a certificate again.
#[derive(Debug)]
pub enum Refreshed {
    Replaced {
        file: String,
        days_left: i64,
    },
    /// They are not usable, or cannot be read: the certificate from before stays.
    Refused {
        file: String,
        error: String,
        remedy: String,
    },
}

impl Server {
    pub fn new(settings: &ListenerTls) -> Result<Self, BuildError> {
        let now = clock::now().wall_ms;
        let watched: Vec<Watched> = settings.certificates.iter().map(|files| Watched::new(files, now)).collect::<Result<_, _>>()?;
        let shown = Arc::new(Shown(ArcSwap::from_pointee(Names::new(&certificates(&watched)))));
        let config = config(settings, Arc::clone(&shown))?;
        Ok(Self {
            config: Arc::new(config),
            handshake_timeout: settings.handshake_timeout,
            handshakes: Semaphore::new(settings.handshakes),
            shown,
            files: Mutex::new(watched),
        })
    }

    /// Whether the signature of the certificate that this client gets is to be made elsewhere.
    pub fn is_slow(&self, hello: &ClientHello<'_>) -> bool {
        self.shown.0.load().choose(hello.server_name(), hello.signature_schemes()).is_some_and(|certificate| certificate.is_slow)
    }

    /// Name of the file and end of validity of each certificate, milliseconds since 1970.
    pub fn expiries(&self) -> Vec<(String, i64)> {
        self.files.lock().iter().map(|watched| (shown_path(&watched.files.certificate.path), watched.certificate.not_after)).collect()
    }

    /// Takes up what has changed in the files. Blocks.
    ///
    /// Contents count, not times: links that are exchanged, as certbot and Kubernetes do, are seen like any change. What
    /// was refused is told once, until the files change again.
    pub fn refresh(&self) -> Vec<Refreshed> {
        let mut files = self.files.lock();
        let now = clock::now().wall_ms;
        let told: Vec<Refreshed> = files.iter_mut().filter_map(|watched| watched.refresh(now)).collect();
        if told.iter().any(|one| matches!(one, Refreshed::Replaced { .. })) {
            self.shown.0.store(Arc::new(Names::new(&certificates(&files))));
        }
        told
    }
}

const DAY_MS: i64 = 86_400_000;

fn shown_path(path: &Path) -> String {
    path.display().to_string()
}

fn certificates(watched: &[Watched]) -> Vec<Arc<Certificate>> {
    watched.iter().map(|watched| Arc::clone(&watched.certificate)).collect()
}

impl Watched {
    fn new(files: &CertificateFiles, now: i64) -> Result<Self, BuildError> {
        let certificate =
            Certificate::read(files, now).map_err(|error| BuildError::Certificate { path: shown_path(&error.file(files).path), error })?;
        Ok(Self { files: files.clone(), certificate: Arc::new(certificate), is_unreadable: false })
    }

    fn refresh(&mut self, now: i64) -> Option<Refreshed> {
        let files = match read_again(&self.files) {
            Ok(files) if files == self.files && !self.is_unreadable => return None,
            Ok(files) => files,
            Err((path, error)) => {
                // What comes next is new in any case, and this is told once.
                let known = std::mem::replace(&mut self.is_unreadable, true);
                let remedy = "put the file back, readable to the user of this process".into();
                return (!known).then(|| Refreshed::Refused { file: shown_path(&path), error: format!("cannot be read: {error}"), remedy });
            }
        };
        (self.files, self.is_unreadable) = (files, false);
        match Certificate::read(&self.files, now) {
            Ok(certificate) => {
                let days_left = (certificate.not_after - now) / DAY_MS;
                self.certificate = Arc::new(certificate);
                Some(Refreshed::Replaced { file: shown_path(&self.files.certificate.path), days_left })
            }
            Err(error) => {
                let file = shown_path(&error.file(&self.files).path);
                Some(Refreshed::Refused { file, error: error.to_string(), remedy: error.remedy() })
            }
        }
    }
}

/// Which file cannot be read, and why.
fn read_again(files: &CertificateFiles) -> Result<CertificateFiles, (PathBuf, String)> {
    let read = |file: &PemFile| PemFile::read(&file.path).map_err(|error| (file.path.clone(), error));
    Ok(CertificateFiles { certificate: read(&files.certificate)?, key: read(&files.key)? })
}

fn config(settings: &ListenerTls, shown: Arc<Shown>) -> Result<ServerConfig, BuildError> {
    let builder = ServerConfig::builder_with_provider(provider(&settings.suites));
    let builder = builder.with_protocol_versions(settings.min_version.and_later()).map_err(BuildError::Suites)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(shown);
    config.ignore_client_order = !settings.suites.is_empty();
    config.alpn_protocols = if settings.http2 { vec![ALPN_HTTP2.into(), ALPN_HTTP1.into()] } else { vec![ALPN_HTTP1.into()] };
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::new(Tickets::new(settings.ticket_key.as_ref().map(|file| &file.pem[..]), b""));
    Ok(config)
}

/// RFC 7301 §6, RFC 9113 §3.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
pub const ALPN_HTTP2: &[u8] = b"h2";

/// The certificates of a listener, to be exchanged at any time.
#[derive(Debug)]
struct Shown(ArcSwap<Names>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let names = self.0.load();
        let certificate = names.choose(hello.server_name(), hello.signature_schemes())?;
        Some(Arc::clone(&certificate.key))
    }
}
