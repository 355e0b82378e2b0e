//! Certificates from an authority (ACME): who it is, and for which hosts.

use super::table::Table;
use super::{check_fleet_secret, secret, secs};
use crate::config::raw::{RawAcme, RawChallenge, RawKeyType};
use crate::config::report::Report;
use crate::config::settings::{Acme, AcmeCertificate, Challenge, ExternalAccount, KeyType, Settings, UpstreamTls};
use crate::config::shape::join;
use crate::semantics::key::hash128;
use crate::tls::client::Client;
use std::path::PathBuf;
use std::time::Duration;

const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
const FOLDER: &str = "/var/lib/tiercel/acme";
/// Names of one certificate: the usual bound of authorities.
const HOSTS_MAX: usize = 100;
const CONTACTS_MAX: usize = 10;
/// Bytes of a URL or of a name that an authority gave out.
const TEXT_BYTES_MAX: usize = 1024;
/// Longest time between two attempts.
const RETRY_MAX: Duration = secs(7 * 86_400);

/// `[acme]`.
pub fn acme(raw: &RawAcme, report: &mut Report) -> Acme {
    let directory = raw.directory.as_deref().unwrap_or(DIRECTORY).to_owned();
    if !is_https(&directory) {
        let remedy = "write the URL that the authority names, https included";
        report.problem("acme.directory", "not a URL with https", format!("\"{directory}\""), DIRECTORY, remedy);
    }
    let roots = raw.ca_file.as_deref().and_then(|given| super::tls::file("acme.ca_file", given, report));
    if let Some(file) = &roots {
        let tls = UpstreamTls { roots: Some(file.clone()), ..UpstreamTls::default() };
        if let Err(error) = Client::new(&tls) {
            let found = format!("\"{}\"", file.path.display());
            report.problem("acme.ca_file", error.to_string(), found, "certificates that can be used", error.remedy());
        }
    }
    let (contact, eab) = (contact(raw, report), eab(raw, report));
    let seal = secret("acme.seal", raw.seal.as_deref(), raw.seal_file.as_deref(), report);
    check_fleet_secret("acme.seal", raw.seal_file.is_some(), seal.as_ref(), report);
    let folder = report.directory("acme.folder").join(raw.folder.as_deref().unwrap_or(FOLDER));
    let challenges = challenges(raw, report);
    let mut table = Table::new(report, "acme");
    let (retry_first, retry_max) = (
        table.timeout("retry_first", raw.retry_first.as_ref(), secs(60)),
        table.timeout("retry_max", raw.retry_max.as_ref(), secs(86_400)),
    );
    if retry_max < retry_first || retry_max > RETRY_MAX {
        table.wrong_text("retry_max", "out of bounds", String::new(), "retry_first to 7d", "write for example \"1d\"");
    }
    Acme {
        directory,
        roots,
        contact,
        agree_to_terms: raw.agree_to_terms.unwrap_or(false),
        eab,
        key_type: match raw.key_type {
            None | Some(RawKeyType::P256) => KeyType::P256,
            Some(RawKeyType::P384) => KeyType::P384,
            Some(RawKeyType::Rsa2048) => KeyType::Rsa2048,
        },
        folder,
        challenges,
        renew_before: raw.renew_before.as_ref().map(|raw| table.timeout("renew_before", Some(raw), Duration::ZERO)),
        renew_jitter: table.share("renew_jitter", raw.renew_jitter.as_ref(), 0.10),
        retry_first,
        retry_max,
        order_timeout: table.timeout("order_timeout", raw.order_timeout.as_ref(), secs(300)),
        request_timeout: table.timeout("request_timeout", raw.request_timeout.as_ref(), secs(30)),
        orders: table.count("orders", raw.orders, 4, 1..=1000) as usize,
        seal,
    }
}

/// A certificate for these hosts, and where it is kept: another directory, kind of key, or set of hosts is another file.
pub fn certificate(at: &str, hosts: &[String], acme: &Acme, report: &mut Report) -> Option<AcmeCertificate> {
    if hosts.is_empty() || hosts.len() > HOSTS_MAX {
        let remedy = "write acme = [\"shop.example.com\", \"www.shop.example.com\"]";
        report.problem(at, "a certificate needs hosts", hosts.len().to_string(), format!("1 to {HOSTS_MAX}"), remedy);
        return None;
    }
    let mut certified: Vec<String> = Vec::with_capacity(hosts.len());
    for (index, given) in hosts.iter().enumerate() {
        let host = given.to_ascii_lowercase();
        let refusal = match host.as_str() {
            host if host.starts_with("*.") => Some((
                "neither http-01 nor tls-alpn-01 certifies a wildcard",
                "list each host, or obtain it by DNS elsewhere and name its files",
            )),
            host if !is_dns_name(host) => {
                Some(("not a host name that can be certified", "write a DNS name, without scheme, port and path"))
            }
            host if certified.iter().any(|known| known == host) => Some(("the same host twice", "remove one")),
            _ => None,
        };
        match refusal {
            Some((what, remedy)) => {
                report.problem(&format!("{at}[{index}]"), what, format!("\"{given}\""), "\"shop.example.com\"", remedy);
            }
            None => certified.push(host),
        }
    }
    let first = certified.first()?;
    let mut set = certified.clone();
    set.sort();
    let own = short_hash(&format!("{} {}", acme.key_type.as_str(), set.join(" ")));
    let file = folder_of(acme).join(format!("{first}-{own}.pem"));
    Some(AcmeCertificate { hosts: certified, file })
}

/// Where everything of the directory is.
fn folder_of(acme: &Acme) -> PathBuf {
    let host = acme.directory.split('/').nth(2).unwrap_or_default();
    let plain: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    acme.folder.join(format!("{plain}-{}", short_hash(&acme.directory)))
}

fn short_hash(text: &str) -> String {
    format!("{:032x}", hash128(text.as_bytes()))[..8].to_owned()
}

/// What is of use only together, or at all only where a listener wants a certificate.
pub fn check(settings: &Settings, report: &mut Report) {
    let acme = &settings.acme;
    if settings.acme_certificates().is_empty() {
        return;
    }
    check_build(cfg!(feature = "acme"), report);
    if !acme.agree_to_terms {
        let remedy = "read the terms of service that the directory names, and write agree_to_terms = true";
        report.problem("acme.agree_to_terms", "nothing is certified without consent to the authority's terms", "false", "true", remedy);
    }
    if settings.journal_redis().is_some() && acme.seal.is_none() {
        report.warn(
            "acme.seal_file",
            "without this secret each node of a fleet orders certificates for itself, and answers only its own challenges",
        );
    }
}

fn check_build(has_acme: bool, report: &mut Report) {
    if !has_acme {
        let remedy = "build with the feature `acme` (on by default), or name cert_file and key_file";
        report.problem("acme", "this build has no ACME", "", "certificates from files", remedy);
    }
}

fn is_https(url: &str) -> bool {
    let is_plain = url.len() <= TEXT_BYTES_MAX && url.bytes().all(|b| b.is_ascii_graphic());
    let uri = url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    is_plain && uri.is_some_and(|uri| uri.host().is_some_and(super::net::is_host) && !url.contains(['@', '#']))
}

/// Labels of letters, digits and hyphens (RFC 5890 §2.3.1).
fn is_dns_name(host: &str) -> bool {
    let is_label = |label: &str| label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-') && !label.contains('_');
    super::net::is_host(host)
        && !host.ends_with('.')
        && host.split('.').all(is_label)
        && host.parse::<std::net::IpAddr>().is_err()
        && !host.starts_with('[')
}

fn contact(raw: &RawAcme, report: &mut Report) -> Vec<String> {
    let all = raw.contact.as_deref().unwrap_or_default();
    let is_mail = |url: &str| {
        url.strip_prefix("mailto:")
            .is_some_and(|mail| mail.contains('@') && mail.bytes().all(|b| b.is_ascii_graphic() && !b"?,".contains(&b)))
    };
    for (index, given) in all.iter().enumerate().filter(|(_, given)| !is_mail(given) || given.len() > TEXT_BYTES_MAX) {
        let remedy = if given.contains('@') {
            format!("write \"mailto:{}\"", given.trim_start_matches("mailto:"))
        } else {
            "write a mail address".into()
        };
        report.problem(
            &format!("acme.contact[{index}]"),
            "not a way to reach you",
            format!("\"{given}\""),
            "\"mailto:admin@example.com\"",
            remedy,
        );
    }
    if all.len() > CONTACTS_MAX {
        report.problem("acme.contact", "too many", all.len().to_string(), format!("at most {CONTACTS_MAX}"), "name fewer");
    }
    all.to_vec()
}

fn eab(raw: &RawAcme, report: &mut Report) -> Option<ExternalAccount> {
    let key = secret("acme.eab_key", raw.eab_key.as_deref(), raw.eab_key_file.as_deref(), report);
    let has_key = raw.eab_key.is_some() || raw.eab_key_file.is_some();
    match (&raw.eab_key_id, has_key) {
        (None, false) => return None,
        (Some(id), true) if !id.is_empty() && id.len() <= TEXT_BYTES_MAX => {}
        _ => {
            let remedy = "write eab_key_id and eab_key_file, as the authority gave them out, or neither";
            report.problem("acme.eab_key_id", "an external account is its key id and its key", "", "both", remedy);
            return None;
        }
    }
    let account = ExternalAccount { key_id: raw.eab_key_id.clone()?, key: key? };
    if account.key_bytes().is_none() {
        let at = if raw.eab_key_file.is_some() { "acme.eab_key_file" } else { "acme.eab_key" };
        report.problem(at, "not base64url", "***", "letters, digits, - and _", "copy it as the authority gave it out");
    }
    Some(account)
}

fn challenges(raw: &RawAcme, report: &mut Report) -> Vec<Challenge> {
    let Some(given) = &raw.challenges else { return vec![Challenge::Http01, Challenge::TlsAlpn01] };
    let all: Vec<_> = given
        .iter()
        .map(|challenge| match challenge {
            RawChallenge::Http01 => Challenge::Http01,
            RawChallenge::TlsAlpn01 => Challenge::TlsAlpn01,
        })
        .collect();
    let is_set = all.iter().enumerate().all(|(at, challenge)| !all[..at].contains(challenge));
    if all.is_empty() || !is_set {
        let remedy = "write challenges = [\"http-01\", \"tls-alpn-01\"]";
        report.problem(
            &join("acme", "challenges"),
            "none, or one twice",
            format!("{} of them", all.len()),
            "each once, at least one",
            remedy,
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Secret;

    #[test]
    fn keys_of_external_accounts_are_decoded() {
        let decoded = |text: &str| ExternalAccount { key_id: "id".into(), key: Secret::new(text) }.key_bytes();
        assert_eq!(decoded("-_-_").as_deref(), Some(&[0xfb, 0xff, 0xbf][..]));
        assert_eq!(decoded("Zm9vYg").as_deref(), Some(&b"foob"[..]));
        assert_eq!(decoded("Zm9vYg==").as_deref(), Some(&b"foob"[..]));
        for wrong in ["", "A", "+/+/", "Zm 9v"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_names_that_can_be_certified_are() {
        for (host, is) in [
            ("shop.example.com", true),
            ("xn--bcher-kva.example", true),
            ("localhost", true),
            ("-a.example", false),
            ("a-.example", false),
            ("a_b.example", false),
            ("a..example", false),
            ("a.example.", false),
            ("192.0.2.1", false),
            ("[2001:db8::1]", false),
            ("a/b", false),
            ("../../etc", false),
            ("", false),
        ] {
            assert_eq!(is_dns_name(host), is, "{host}");
        }
        assert!(!is_dns_name(&format!("{}.example", "a".repeat(64))));
    }

    #[test]
    fn a_build_without_it_says_which_feature_is_missing() {
        let mut report = Report::default();
        check_build(true, &mut report);
        check_build(false, &mut report);
        let text = report.into_problems().to_string();
        assert!(text.contains("this build has no ACME") && text.contains("feature `acme`") && text.contains("1 problem"), "{text}");
    }

    #[test]
    fn directories_are_urls_with_https() {
        for (url, is) in [
            (DIRECTORY, true),
            ("https://127.0.0.1:14000/dir", true),
            ("https://[::1]:14000/dir", true),
            ("http://ca.example/dir", false),
            ("https://user@ca.example/dir", false),
            ("https:///dir", false),
            ("ca.example", false),
        ] {
            assert_eq!(is_https(url), is, "{url}");
        }
    }
}
