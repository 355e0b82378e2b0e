//! TLS as a listener offers it: versions, suites, tickets, the certificates and whom clients must be certified by, which
//! files may change at any time.

use super::certificate::{Certificate, CertificateError};
use super::challenges::Challenges;
use super::clients::{Clients, ClientsError};
use super::names::Names;
use super::provider::{HYBRID, provider, provider_of_hybrids};
use super::tickets::Tickets;
use super::watch::{DAY_MS, Expiry, Files, Look, Refreshed, Unreadable, read_again, shown_path};
use crate::clock;
use crate::config::settings::{CertificateFiles, CertificateSource, ClientCertificates, ListenerTls, PemFile};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What a listener shows to its clients, and wants to see of them.
pub struct Server {
    pub handshake_timeout: Duration,
    /// Handshakes at a time; whoever comes then waits for one to end.
    pub handshakes: Semaphore,
    settings: ListenerTls,
    challenges: Arc<Challenges>,
    shown: Arc<Shown>,
    certificates: Mutex<Vec<Own>>,
    /// The listener's own way first.
    ways: Vec<Way>,
    /// By the number of a site; none: the listener's own.
    of_sites: Vec<Option<usize>>,
    site_of: SiteOf,
}

/// The number of the site of a host.
pub type SiteOf = Box<dyn Fn(&str) -> Option<usize> + Send + Sync>;

/// What sites want of clients for themselves.
pub struct Sites<'a> {
    /// By the number of a site.
    pub policies: Vec<Option<&'a Arc<ClientCertificates>>>,
    pub site_of: SiteOf,
}

impl Sites<'_> {
    pub fn none() -> Self {
        Self { policies: Vec::new(), site_of: Box::new(|_| None) }
    }
}

/// How handshakes go that ask clients for certificates alike.
struct Way {
    /// `None`: nothing is asked for, and nothing was configured.
    policy: Option<Arc<ClientCertificates>>,
    configs: ArcSwap<Configs>,
    /// `None`: there are no files.
    seen: Option<Mutex<SeenPolicy>>,
}

/// What rustls is told. All but the key exchange is the same.
struct Configs {
    usual: Arc<ServerConfig>,
    /// For clients that know the hybrid key exchange.
    hybrid: Arc<ServerConfig>,
}

struct SeenPolicy {
    policy: Files<ClientCertificates>,
    /// When the revocation lists in use are out of date, milliseconds since 1970.
    lists_until: Option<i64>,
}

/// How a handshake goes on once it is known whom the client wants.
pub struct Chosen {
    pub config: Arc<ServerConfig>,
    /// `None`: no certificates are asked for here.
    pub policy: Option<Arc<ClientCertificates>>,
    /// As the listener has it, not a site.
    pub is_of_listener: bool,
}

/// Why there can be no such listener.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{path}: {error}")]
    Certificate { path: String, error: CertificateError },
    #[error("{path}: {error}")]
    Clients { path: String, error: ClientsError },
    #[error("{0}: name a suite of each version that is offered")]
    Suites(rustls::Error),
}

/// A certificate, and its files.
struct Own {
    source: CertificateSource,
    /// `None`: not there yet, and to be obtained.
    files: Files<Option<CertificateFiles>>,
    /// What is shown for them.
    certificate: Option<Arc<Certificate>>,
}

/// How long what is in use is good.
pub struct Expiries {
    pub certificates: Vec<Expiry>,
    /// Revocation lists and OCSP responses.
    pub revocation: Vec<Expiry>,
}

impl Server {
    pub fn new(settings: &ListenerTls, sites: Sites<'_>, challenges: Arc<Challenges>) -> Result<Self, BuildError> {
        let now = clock::now().wall_ms;
        let own: Vec<Own> = settings.certificates.iter().map(|source| Own::new(source, now)).collect::<Result<_, _>>()?;
        let shown = Arc::new(Shown(ArcSwap::from_pointee(Names::new(&certificates(&own)))));
        let mut ways = vec![Way::new(settings, settings.client_certificates.as_ref(), &shown, now)?];
        let mut of_sites = Vec::with_capacity(sites.policies.len());
        for policy in sites.policies {
            let Some(policy) = policy else {
                of_sites.push(None);
                continue;
            };
            let known = ways.iter().position(|way| way.policy.as_ref().is_some_and(|there| there.is_like(policy)));
            if known.is_none() {
                ways.push(Way::new(settings, Some(policy), &shown, now)?);
            }
            of_sites.push(Some(known.unwrap_or(ways.len() - 1)));
        }
        Ok(Self {
            handshake_timeout: settings.handshake_timeout,
            handshakes: Semaphore::new(settings.handshakes),
            settings: settings.clone(),
            challenges,
            shown,
            certificates: Mutex::new(own),
            ways,
            of_sites,
            site_of: sites.site_of,
        })
    }

    /// The listener's own way, whomever the client wants: where the two cannot be told apart.
    pub fn own_way(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.ways[0].configs.load().usual)
    }

    /// How the handshake with this client goes on.
    pub fn choose(&self, hello: &ClientHello<'_>) -> Chosen {
        let of_site = || *self.of_sites.get((self.site_of)(hello.server_name()?)?)?;
        let at = if self.ways.len() == 1 { 0 } else { of_site().unwrap_or(0) };
        let way = &self.ways[at];
        let (configs, groups) = (way.configs.load(), hello.named_groups().unwrap_or_default());
        let config = if groups.contains(&HYBRID) { &configs.hybrid } else { &configs.usual };
        Chosen { config: Arc::clone(config), policy: way.policy.clone(), is_of_listener: at == 0 }
    }

    /// How the handshake goes on with an authority that looks whether a host is ours (RFC 8737): after it nothing comes.
    ///
    /// `None`: it is none, or of a host that is not being certified; then the handshake fails like any other in which no
    /// protocol is agreed on.
    pub async fn answer_challenge(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        if !self.challenges.may_be_any() || !is_challenge(hello) {
            return None;
        }
        self.challenges.certificate(hello.server_name()?).await
    }

    /// Whether the signature of the certificate that this client gets is to be made elsewhere.
    pub fn is_slow(&self, hello: &ClientHello<'_>) -> bool {
        self.shown.0.load().choose(hello.server_name(), hello.signature_schemes()).is_some_and(|certificate| certificate.is_slow)
    }

    /// How long what is in use is good; a staple that is not: until `now`.
    pub fn expiries(&self, now: i64) -> Expiries {
        let certificates = self.certificates.lock();
        let shown = || certificates.iter().filter_map(|own| Some((own.files.seen().as_ref()?, own.certificate.as_ref()?)));
        let certificates = shown().map(|(files, certificate)| (shown_path(&files.certificate.path), certificate.not_after)).collect();
        let staples = shown().filter_map(|(files, certificate)| {
            let until = certificate.staple?.unwrap_or(now);
            Some((shown_path(&files.ocsp.as_ref()?.path), until))
        });
        let lists = self.ways.iter().filter_map(|way| {
            let seen = way.seen.as_ref()?.lock();
            Some((shown_path(&seen.policy.seen().revoked.as_ref()?.path), seen.lists_until?))
        });
        Expiries { certificates, revocation: staples.chain(lists).collect() }
    }

    /// Takes up what has changed in the files. Blocks.
    ///
    /// Contents count, not times: links that are exchanged, as certbot and Kubernetes do, are seen like any change. What
    /// was refused is told once, until the files change again.
    pub fn refresh(&self) -> Vec<Refreshed> {
        let mut told = self.refresh_those(|_| true);
        let now = clock::now().wall_ms;
        told.extend(self.ways.iter().filter_map(|way| way.refresh(&self.settings, &self.shown, now)));
        told
    }

    /// The same for certificates that were obtained by ACME alone.
    pub fn refresh_obtained(&self) -> Vec<Refreshed> {
        self.refresh_those(|source| matches!(source, CertificateSource::Acme(_)))
    }

    fn refresh_those(&self, which: impl Fn(&CertificateSource) -> bool) -> Vec<Refreshed> {
        let mut all = self.certificates.lock();
        let now = clock::now().wall_ms;
        let mut told = Vec::new();
        let looked_at = all.iter_mut().filter(|own| which(&own.source));
        let changed = looked_at.filter_map(|own| own.refresh(now, &mut told).then_some(())).count();
        if changed > 0 {
            self.shown.0.store(Arc::new(Names::new(&certificates(&all))));
        }
        told
    }
}

/// It is asked for alone (RFC 8737 §3).
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(ALPN_ACME) && protocols.next().is_none())
}

fn certificates(all: &[Own]) -> Vec<Arc<Certificate>> {
    all.iter().filter_map(|own| own.certificate.clone()).collect()
}

impl Own {
    fn new(source: &CertificateSource, now: i64) -> Result<Self, BuildError> {
        let (files, certificate) = match source {
            CertificateSource::Files(files) => {
                let certificate = Certificate::read(files, now)
                    .map_err(|error| BuildError::Certificate { path: shown_path(&error.file(files).path), error })?;
                (Some(files.clone()), Some(certificate))
            }
            // What cannot be used is as good as not there: whoever obtains it says so, and obtains another.
            CertificateSource::Acme(_) => {
                let files = files_of(source).ok();
                let certificate = files.as_ref().and_then(|files| Certificate::read(files, now).ok());
                (files, certificate)
            }
        };
        Ok(Self { source: source.clone(), files: Files::new(files), certificate: certificate.map(Arc::new) })
    }

    /// Whether something else is to be shown from now on.
    fn refresh(&mut self, now: i64, told: &mut Vec<Refreshed>) -> bool {
        let files = files_of(&self.source);
        if files.is_err() && self.files.seen().is_none() {
            return false; // not there yet
        }
        let staple = self.certificate.as_ref().and_then(|certificate| certificate.staple);
        let ended = matches!(staple, Some(Ok(until)) if until < now);
        match self.files.look(files.map(Some)) {
            Look::Same => ended && self.read(now, false, told),
            Look::Changed { before } => {
                let pair = |files: &CertificateFiles| (files.certificate.clone(), files.key.clone());
                let replaced = before.flatten().as_ref().map(pair) != self.files.seen().as_ref().map(pair);
                self.read(now, replaced, told)
            }
            Look::Unreadable(why) => {
                told.push(why);
                false
            }
        }
    }

    /// Makes of the files what can be made; `replaced`: more than the staple is new.
    fn read(&mut self, now: i64, replaced: bool, told: &mut Vec<Refreshed>) -> bool {
        let Some(files) = self.files.seen() else { return false };
        let certificate = match Certificate::read(files, now) {
            Ok(certificate) => certificate,
            Err(error) => {
                let file = shown_path(&error.file(files).path);
                told.push(Refreshed::Refused { file, error: error.to_string(), remedy: error.remedy() });
                return false;
            }
        };
        if replaced {
            let days_left = Some((certificate.not_after - now) / DAY_MS);
            told.push(Refreshed::Replaced { file: shown_path(&files.certificate.path), days_left });
        }
        if let (Some(staple), Some(file)) = (certificate.staple, &files.ocsp) {
            let file = shown_path(&file.path);
            told.push(match staple {
                Ok(until) => Refreshed::Replaced { file, days_left: Some((until - now) / DAY_MS) },
                Err(error) => Refreshed::Unstapled { file, error },
            });
        }
        self.certificate = Some(Arc::new(certificate));
        true
    }
}

/// The files of a certificate as they are now.
fn files_of(source: &CertificateSource) -> Result<CertificateFiles, Unreadable> {
    match source {
        CertificateSource::Files(files) => {
            let (certificate, key) = (read_again(&files.certificate)?, read_again(&files.key)?);
            Ok(CertificateFiles { certificate, key, ocsp: files.ocsp.as_ref().map(read_again).transpose()? })
        }
        CertificateSource::Acme(obtained) => {
            let file = PemFile::read(&obtained.file).map_err(|error| (obtained.file.clone(), error))?;
            Ok(CertificateFiles { certificate: file.clone(), key: file, ocsp: None })
        }
    }
}

impl Way {
    fn new(settings: &ListenerTls, policy: Option<&Arc<ClientCertificates>>, shown: &Arc<Shown>, now: i64) -> Result<Self, BuildError> {
        let (configs, lists_until) = configs(settings, policy.map(|policy| &**policy), shown, now)?;
        let seen = policy.map(|policy| Mutex::new(SeenPolicy { policy: Files::new((**policy).clone()), lists_until }));
        Ok(Self { policy: policy.cloned(), configs: ArcSwap::from_pointee(configs), seen })
    }

    fn refresh(&self, settings: &ListenerTls, shown: &Arc<Shown>, now: i64) -> Option<Refreshed> {
        let mut seen = self.seen.as_ref()?.lock();
        let SeenPolicy { policy, lists_until } = &mut *seen;
        let file = shown_path(&policy.seen().authorities.as_ref()?.path);
        let files = policy_again(policy.seen());
        match policy.look(files) {
            Look::Same => return None,
            Look::Unreadable(told) => return Some(told),
            Look::Changed { .. } => {}
        }
        match configs(settings, Some(policy.seen()), shown, now) {
            Ok((configs, until)) => {
                self.configs.store(Arc::new(configs));
                *lists_until = until;
                let days_left = until.map(|until| (until - now) / DAY_MS);
                Some(Refreshed::Replaced { file, days_left })
            }
            Err(BuildError::Clients { path, error }) => {
                Some(Refreshed::Refused { file: path, error: error.to_string(), remedy: error.remedy().into() })
            }
            Err(error) => Some(Refreshed::Refused { file, error: error.to_string(), remedy: "reload the configuration".into() }),
        }
    }
}

/// The same policy with its files as they are now.
fn policy_again(policy: &ClientCertificates) -> Result<ClientCertificates, Unreadable> {
    let again = |file: &Option<PemFile>| file.as_ref().map(read_again).transpose();
    Ok(ClientCertificates { authorities: again(&policy.authorities)?, revoked: again(&policy.revoked)?, ..*policy })
}

/// What rustls is told, and when the revocation lists end.
fn configs(
    settings: &ListenerTls,
    policy: Option<&ClientCertificates>,
    shown: &Arc<Shown>,
    now: i64,
) -> Result<(Configs, Option<i64>), BuildError> {
    let wrong = |error: ClientsError| {
        let path = policy.and_then(|policy| error.file(policy)).map_or_else(String::new, |file| shown_path(&file.path));
        BuildError::Clients { path, error }
    };
    let clients = policy.map(|policy| Clients::new(policy, now)).transpose().map_err(wrong)?.flatten();
    let lists_until = clients.as_ref().and_then(|clients| clients.lists_until);
    let circumstances = policy.filter(|_| clients.is_some()).map(ClientCertificates::circumstances).unwrap_or_default();
    let tickets = Arc::new(Tickets::new(settings.ticket_key.as_ref().map(|file| &file.pem[..]), &circumstances));
    let config = |provider| {
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(settings.min_version.and_later()).map_err(BuildError::Suites)?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(shown) as _);
        config.ignore_client_order = !settings.suites.is_empty();
        config.alpn_protocols = if settings.http2 { vec![ALPN_HTTP2.into(), ALPN_HTTP1.into()] } else { vec![ALPN_HTTP1.into()] };
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&tickets) as _;
        Ok(Arc::new(config))
    };
    let configs = Configs { usual: config(provider(&settings.suites))?, hybrid: config(provider_of_hybrids(&settings.suites))? };
    Ok((configs, lists_until))
}

/// RFC 7301 §6, RFC 9113 §3.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
pub const ALPN_HTTP2: &[u8] = b"h2";
/// RFC 8737 §6.2.
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

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
