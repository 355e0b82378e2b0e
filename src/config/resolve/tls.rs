//! TLS: certificates are read and tried here, so that `tiercel check` says all that is wrong with them.

use super::SECRET_FILE_BYTES_MAX;
use super::table::Table;
use crate::clock;
use crate::config::problem::nearest;
use crate::config::raw::{
    ClientKeys, RawAsked, RawCertificate, RawListenerTls, RawShieldTls, RawSiteTls, RawTlsVersion, RawTold, RawUpstreamTls,
};
use crate::config::report::Report;
use crate::config::settings::{
    Acme, Asked, CertificateFiles, CertificateSource, ClientCertificates, ListenerTls, PemFile, ShieldTls, TlsVersion, Told, UpstreamTls,
};
use crate::config::shape::join;
use crate::tls::SUITES;
use crate::tls::certificate::{Certificate, Part};
use crate::tls::client::{Client, ClientError};
use crate::tls::clients::{Clients, ClientsError};
use crate::tls::tickets::SECRET_BYTES_MIN;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

/// Certificates of one listener.
const CERTIFICATES_MAX: usize = 10_000;

pub fn listener(at: &str, raw: &RawListenerTls, acme: &Acme, report: &mut Report) -> ListenerTls {
    if raw.certificates.is_empty() || raw.certificates.len() > CERTIFICATES_MAX {
        let remedy = "write certificates = [{ cert_file = \"shop.pem\", key_file = \"shop.key\" }]";
        let found = format!("{} certificates", raw.certificates.len());
        report.problem(at, "TLS needs certificates", found, format!("1 to {CERTIFICATES_MAX}"), remedy);
    }
    let list = join(at, "certificates");
    let each = raw.certificates.iter().enumerate();
    let certificates = each.filter_map(|(index, raw)| source(&format!("{list}[{index}]"), raw, acme, report)).collect();
    let min_version = version(raw.min_version);
    let suites = suites(&join(at, "suites"), raw.suites.as_deref(), min_version, report);
    let ticket_key = ticket_key(&join(at, "ticket_key_file"), raw.ticket_key_file.as_deref(), report);
    let client_certificates = clients(at, raw.client_keys(), report).filter(|clients| clients.asked != Asked::Nothing).map(Arc::new);
    let mut table = Table::new(report, at);
    ListenerTls {
        certificates,
        min_version,
        suites,
        http2: raw.http2.unwrap_or(true),
        handshake_timeout: table.timeout("handshake_timeout", raw.handshake_timeout.as_ref(), Duration::from_secs(10)),
        handshakes: table.count("handshakes", raw.handshakes, 1024, 1..=1_000_000) as usize,
        ticket_key,
        client_certificates,
    }
}

/// What a site asks of clients; `None`: what the listener does.
pub fn site(at: &str, raw: &RawSiteTls, report: &mut Report) -> Option<Arc<ClientCertificates>> {
    clients(at, raw.client_keys(), report).map(Arc::new)
}

/// `None`: nothing is said.
fn clients(at: &str, keys: ClientKeys<'_>, report: &mut Report) -> Option<ClientCertificates> {
    let asked = match keys.asked {
        None | Some(RawAsked::Off) => Asked::Nothing,
        Some(RawAsked::Optional) => Asked::Optional,
        Some(RawAsked::Required) => Asked::Required,
    };
    if asked == Asked::Nothing {
        let more = [("client_ca_file", keys.ca_file.is_some()), ("client_crl_file", keys.crl_file.is_some())];
        for (key, _) in more.iter().chain(&[("client_cert_field", keys.field.is_some())]).filter(|(_, given)| *given) {
            let remedy = "write client_certificates = \"required\" (or \"optional\"), or remove it";
            report.problem(&join(at, key), "client certificates that are not asked for", "", "with client_certificates", remedy);
        }
        return keys.asked.map(|_| ClientCertificates { asked, authorities: None, revoked: None, told: Told::Nothing });
    }
    let (ca_at, crl_at) = (join(at, "client_ca_file"), join(at, "client_crl_file"));
    if keys.ca_file.is_none() {
        let remedy = "name a PEM file with the certificates of those who may certify clients";
        report.problem(&ca_at, "client certificates need an authority", "", "a PEM file", remedy);
    }
    let policy = ClientCertificates {
        asked,
        authorities: keys.ca_file.and_then(|given| file(&ca_at, given, report)),
        revoked: keys.crl_file.and_then(|given| file(&crl_at, given, report)),
        told: match keys.field {
            Some(RawTold::Off) => Told::Nothing,
            None | Some(RawTold::Cert) => Told::Certificate,
            Some(RawTold::Chain) => Told::Chain,
        },
    };
    let was_read = policy.authorities.is_some() && policy.revoked.is_some() == keys.crl_file.is_some();
    if was_read && let Err(error) = Clients::new(&policy, clock::now().wall_ms) {
        let at = if error == ClientsError::NoAuthority { &ca_at } else { &crl_at };
        let found = error.file(&policy).map_or_else(String::new, |file| format!("\"{}\"", file.path.display()));
        report.problem(at, error.to_string(), found, "PEM that can be used", error.remedy());
    }
    Some(policy)
}

/// What connections to an upstream need, some of which have TLS or not.
pub fn upstream(at: &str, raw: &RawUpstreamTls, is_secure: bool, report: &mut Report) -> UpstreamTls {
    if !is_secure {
        if *raw != RawUpstreamTls::default() {
            report.problem(at, "TLS for an upstream without it", "", "endpoints with https://", "write https://, or remove this table");
        }
        return UpstreamTls::default();
    }
    let (ca_at, has_certificate) = (join(at, "ca_file"), raw.cert_file.is_some() || raw.key_file.is_some());
    let pair = RawCertificate { cert_file: raw.cert_file.clone(), key_file: raw.key_file.clone(), ocsp_file: None, acme: None };
    let tls = UpstreamTls {
        verify: !raw.insecure_skip_verify.unwrap_or(false),
        roots: raw.ca_file.as_deref().and_then(|given| file(&ca_at, given, report)),
        certificate: has_certificate.then(|| certificate(at, &pair, report)).flatten(),
        server_name: raw.server_name.as_deref().map(str::to_ascii_lowercase),
        min_version: version(raw.min_version),
    };
    if !tls.verify {
        report.warn(&join(at, "insecure_skip_verify"), "whoever sits between here and the upstream can read and change everything");
    }
    let was_read = tls.roots.is_some() == raw.ca_file.is_some() && tls.certificate.is_some() == has_certificate;
    check_client(at, &tls, was_read, report);
    tls
}

fn check_client(at: &str, tls: &UpstreamTls, was_read: bool, report: &mut Report) {
    if let Some(name) = tls.server_name.as_deref().filter(|name| !super::net::is_host(name)) {
        report.problem(&join(at, "server_name"), "not a name", format!("\"{name}\""), "a host name or an address", "correct it");
    }
    if was_read && let Err(error) = Client::new(tls) {
        let (at, found) = match (&error, &tls.roots) {
            (ClientError::NoRoots, Some(file)) => (join(at, "ca_file"), format!("\"{}\"", file.path.display())),
            _ => (at.to_owned(), String::new()),
        };
        report.problem(&at, error.to_string(), found, "certificates that can be used", error.remedy());
    }
}

/// TLS between the nodes of a fleet; `None`: something of it is wrong.
pub fn peers(at: &str, raw: &RawShieldTls, report: &mut Report) -> Option<ShieldTls> {
    let pair = RawCertificate { cert_file: raw.cert_file.clone(), key_file: raw.key_file.clone(), ocsp_file: None, acme: None };
    let certificate = certificate(at, &pair, report);
    let ca_at = join(at, "ca_file");
    if raw.ca_file.is_none() {
        let remedy = "name a PEM file with the certificates of those who certify the nodes, and nobody else";
        report.problem(&ca_at, "nodes with TLS need an authority of their own", "", "a PEM file", remedy);
    }
    let authorities = raw.ca_file.as_deref().and_then(|given| file(&ca_at, given, report));
    let server_name = raw.server_name.as_deref().map(str::to_ascii_lowercase);
    let tls = ShieldTls { certificate: certificate?, authorities: authorities?, server_name };
    check_client(at, &tls.towards_owners(), true, report);
    Some(tls)
}

fn version(raw: Option<RawTlsVersion>) -> TlsVersion {
    match raw {
        None | Some(RawTlsVersion::Tls12) => TlsVersion::Tls12,
        Some(RawTlsVersion::Tls13) => TlsVersion::Tls13,
    }
}

/// Files, or hosts to be certified.
fn source(at: &str, raw: &RawCertificate, acme: &Acme, report: &mut Report) -> Option<CertificateSource> {
    let Some(hosts) = &raw.acme else { return certificate(at, raw, report).map(CertificateSource::Files) };
    let files = [("cert_file", &raw.cert_file), ("key_file", &raw.key_file), ("ocsp_file", &raw.ocsp_file)];
    for (key, _) in files.iter().filter(|(_, file)| file.is_some()) {
        let remedy = "remove it, or acme";
        report.problem(&join(at, key), "a file beside hosts to be certified", "", "one of the two", remedy);
    }
    super::acme::certificate(&join(at, "acme"), hosts, acme, report).map(CertificateSource::Acme)
}

/// A certificate and its key that fit each other and are valid now.
fn certificate(at: &str, raw: &RawCertificate, report: &mut Report) -> Option<CertificateFiles> {
    let (cert_at, key_at) = (join(at, "cert_file"), join(at, "key_file"));
    let certificate = part(&cert_at, raw.cert_file.as_deref(), report);
    let key = part(&key_at, raw.key_file.as_deref(), report);
    let ocsp_at = join(at, "ocsp_file");
    let ocsp = raw.ocsp_file.as_deref().and_then(|given| file(&ocsp_at, given, report));
    let files = CertificateFiles { certificate: certificate?, key: key?, ocsp };
    match Certificate::read(&files, clock::now().wall_ms) {
        Ok(read) => {
            if let Some(Err(error)) = read.staple {
                report.warn(&ocsp_at, &format!("{error}, and is not stapled: {}", error.remedy()));
            }
            advise(&cert_at, &key_at, &files, &read, report);
        }
        Err(error) => {
            let (at, allowed) = match error.part() {
                Part::Certificate => (&cert_at, "PEM: a valid certificate, then its chain"),
                Part::Key => (&key_at, "PEM: the private key of the certificate, without a passphrase"),
            };
            report.problem(at, error.to_string(), format!("\"{}\"", error.file(&files).path.display()), allowed, error.remedy());
        }
    }
    Some(files)
}

/// What works and may still surprise.
fn advise(cert_at: &str, key_at: &str, files: &CertificateFiles, read: &Certificate, report: &mut Report) {
    if read.is_alone {
        let text = "no intermediate certificate follows: clients that do not know its issuer refuse it; name the file with the whole chain";
        report.warn(cert_at, text);
    }
    if read.names.is_empty() {
        report.warn(cert_at, "it names no host (subjectAltName): no client accepts it for a name");
    }
    const READABLE_BY_ALL: u32 = 0o004;
    let mode = std::fs::metadata(&files.key.path).map(|file| file.permissions().mode());
    if mode.is_ok_and(|mode| mode & READABLE_BY_ALL != 0) {
        report.warn(key_at, "every user of this machine can read the key: chmod o-r");
    }
}

/// One of the two files of a certificate.
fn part(at: &str, given: Option<&str>, report: &mut Report) -> Option<PemFile> {
    let Some(given) = given else {
        report.problem(at, "a certificate needs both files", "", "cert_file and key_file", "name the file");
        return None;
    };
    file(at, given, report)
}

/// A file that is there and can be read.
pub(super) fn file(at: &str, given: &str, report: &mut Report) -> Option<PemFile> {
    let path = report.directory(at).join(given);
    match PemFile::read(&path) {
        Ok(file) => Some(file),
        Err(error) => {
            let remedy = if error.contains("ermission denied") {
                "let the user of this process read it: chown or chmod, also for the directories above it"
            } else {
                "create it, or correct the name"
            };
            report.problem(at, format!("cannot be read: {error}"), format!("\"{given}\""), "a readable PEM file", remedy);
            None
        }
    }
}

fn suites(at: &str, names: Option<&[String]>, min_version: TlsVersion, report: &mut Report) -> Vec<String> {
    let Some(names) = names else { return Vec::new() };
    let known = SUITES.map(|(name, _)| name);
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !known.contains(&name.as_str())) {
        let remedy = match nearest(name, known) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "suites without forward secrecy or authenticated encryption are not there; leave this one out".into(),
        };
        report.problem(&format!("{at}[{index}]"), "not a suite that there is", format!("\"{name}\""), known.join(", "), remedy);
    }
    let has = |is_13: bool| names.iter().any(|name| name.contains("_WITH_") != is_13);
    if !has(true) || min_version == TlsVersion::Tls12 && !has(false) {
        let remedy = "name one of each version that is offered (those of 1.3 have no _WITH_), or raise min_version, or leave suites out";
        report.problem(at, "a version without a suite", names.join(", "), "a suite of TLS 1.3, and of 1.2 where that is offered", remedy);
    }
    names.to_vec()
}

fn ticket_key(at: &str, given: Option<&str>, report: &mut Report) -> Option<PemFile> {
    let given = given?;
    let path = report.directory(at).join(given);
    let what = match PemFile::read(&path) {
        Ok(file) if file.pem.trim_ascii().len() >= SECRET_BYTES_MIN => return Some(file),
        Ok(_) => "too short a secret".to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    };
    let allowed = format!("a readable file with at least {SECRET_BYTES_MIN} bytes");
    report.problem(at, what, format!("\"{given}\""), allowed, "make one for all nodes: openssl rand -hex 32");
    None
}

impl PemFile {
    /// Reads a file of a length that certificates, keys and secrets have; else says why not.
    pub fn read(path: &std::path::Path) -> Result<Self, String> {
        let pem = crate::config::files::read_bytes(path, SECRET_FILE_BYTES_MAX)?;
        Ok(Self { path: path.to_owned(), pem })
    }
}
