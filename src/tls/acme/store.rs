//! Where account, certificates and keys are kept: a folder for each directory, readable to this user alone.
//!
//! A file is written beside its place and then moved there, so that whoever reads finds the old or the new one whole.

use super::schedule::{Attempts, Validity};
use crate::config::settings::{AcmeCertificate, CertificateFiles, PemFile};
use crate::tls::certificate::{Certificate, CertificateError};
use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder of one directory.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
pub struct StoredAccount {
    pub contact: Vec<String>,
    /// [`AccountCredentials`], which cannot be copied.
    credentials: serde_json::Value,
}

impl StoredAccount {
    pub fn new(contact: &[String], credentials: &AccountCredentials) -> io::Result<Self> {
        Ok(Self { contact: contact.to_vec(), credentials: serde_json::to_value(credentials)? })
    }

    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// Whether these are the bytes of another account.
    pub fn is_another(&self, bytes: &[u8]) -> bool {
        serde_json::from_slice::<Self>(bytes).is_ok_and(|other| other.credentials != self.credentials)
    }

    fn credentials(&self) -> Result<AccountCredentials, Damage> {
        serde_json::from_value(self.credentials.clone()).map_err(Damage::Malformed)
    }
}

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("not what was written there: {0}")]
    Malformed(serde_json::Error),
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("not for {0}")]
    Host(String),
}

const ACCOUNT: &str = "account.json";
const OLD_ACCOUNT: &str = "account.json.old";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

impl Store {
    /// Where this certificate is.
    pub fn of(certificate: &AcmeCertificate) -> Self {
        Self { folder: certificate.file.parent().map(Path::to_owned).unwrap_or_default() }
    }

    pub fn account(&self) -> Result<Option<(StoredAccount, AccountCredentials)>, Damage> {
        let kept: Option<StoredAccount> = read_json(&self.folder.join(ACCOUNT))?;
        kept.map(|kept| kept.credentials().map(|credentials| (kept, credentials))).transpose()
    }

    pub fn keep_account(&self, account: &StoredAccount) -> io::Result<()> {
        self.write(&self.folder.join(ACCOUNT), &account.bytes()?)
    }

    /// One that another node made. Another one that stands in its place, or what is not to be read there, is kept beside it first: where.
    pub fn keep_shared_account(&self, bytes: &[u8]) -> io::Result<Option<PathBuf>> {
        let file = self.folder.join(ACCOUNT);
        let is_another = |there: &PemFile| {
            let kept: Result<StoredAccount, _> = serde_json::from_slice(&there.pem);
            kept.map_or(there.pem != bytes, |kept| kept.is_another(bytes))
        };
        let beside = self.folder.join(OLD_ACCOUNT);
        let old = match read(&file).map(|there| there.filter(is_another)) {
            Ok(Some(another)) => {
                self.write(&beside, &another.pem)?;
                Some(beside)
            }
            Ok(None) => None,
            // What cannot be read can be moved.
            Err(_) => {
                std::fs::rename(&file, &beside)?;
                Some(beside)
            }
        };
        self.write(&file, bytes).map(|()| old)
    }

    /// The authority does not know it any more.
    pub fn forget_account(&self) -> io::Result<()> {
        remove(&self.folder.join(ACCOUNT))
    }

    pub fn attempts(&self, certificate: &AcmeCertificate) -> Result<Attempts, Damage> {
        read_json(&attempts_file(certificate)).map(Option::unwrap_or_default)
    }

    pub fn keep_attempts(&self, certificate: &AcmeCertificate, attempts: &Attempts) -> io::Result<()> {
        self.write(&attempts_file(certificate), &serde_json::to_vec_pretty(attempts)?)
    }

    pub fn forget_attempts(&self, certificate: &AcmeCertificate) -> io::Result<()> {
        remove(&attempts_file(certificate))
    }

    /// The certificate that is there with its key, if it can be used.
    pub fn certificate(&self, certificate: &AcmeCertificate, now: i64) -> Result<Option<Validity>, Damage> {
        read(&certificate.file)?.map(|file| verify(certificate, file, now)).transpose()
    }

    /// The same as it is kept.
    pub fn certificate_file(&self, certificate: &AcmeCertificate) -> Result<Option<PemFile>, Damage> {
        read(&certificate.file)
    }

    /// Puts one with its key in its place, once it is sure that it can be used.
    pub fn keep_certificate(&self, certificate: &AcmeCertificate, pem: &[u8]) -> io::Result<()> {
        self.write(&certificate.file, pem)
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.folder)?;
        std::fs::set_permissions(&self.folder, Permissions::from_mode(FOLDER_MODE))?; // it may have been there
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let beside = self.folder.join(format!(".{name}.{:016x}", rand::random::<u64>()));
        let written = write_new(&beside, bytes).and_then(|()| std::fs::rename(&beside, file));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&beside); // the error says enough
            return Err(error);
        }
        File::open(&self.folder)?.sync_all()
    }
}

/// Whether a certificate, with its key, is one that can be shown for its hosts.
pub fn verify(certificate: &AcmeCertificate, file: PemFile, now: i64) -> Result<Validity, Damage> {
    let files = CertificateFiles { certificate: file.clone(), key: file, ocsp: None };
    let read = Certificate::read(&files, now)?;
    match certificate.hosts.iter().find(|host| !read.names.contains(host)) {
        Some(host) => Err(Damage::Host(host.clone())),
        None => Ok(Validity { from: read.not_before, until: read.not_after }),
    }
}

/// A file, if it is there.
fn read(path: &Path) -> Result<Option<PemFile>, Damage> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        _ => PemFile::read(path).map(Some).map_err(Damage::Unreadable),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Damage> {
    read(path)?.map(|file| serde_json::from_slice(&file.pem).map_err(Damage::Malformed)).transpose()
}

fn write_new(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(file)?;
    new.write_all(bytes)?;
    new.sync_all()
}

fn attempts_file(certificate: &AcmeCertificate) -> PathBuf {
    certificate.file.with_extension("json")
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::acme::keys;
    use rcgen::{CertificateParams, KeyPair};

    const NOW: i64 = 1_800_000_000_000;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn wanted(folder: &Path) -> AcmeCertificate {
        AcmeCertificate { hosts: vec!["shop.example".into(), "www.shop.example".into()], file: folder.join("ca/shop.example-1.pem") }
    }

    /// Key and certificate as an authority might have made it.
    fn pem(hosts: &[&str]) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap().self_signed(&key);
        keys::together(&key.serialize_pem(), &certificate.unwrap().pem())
    }

    #[test]
    fn what_is_written_is_read_again_and_nobody_else_may() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = wanted(folder.path());
        let store = Store::of(&certificate);
        assert!(store.certificate(&certificate, NOW).unwrap().is_none());
        assert_eq!(store.attempts(&certificate).unwrap(), Attempts::default());
        assert!(store.account().unwrap().is_none());
        let attempts = Attempts { failures: 3, next_ms: 5, error: "refused".into() };
        store.keep_attempts(&certificate, &attempts).unwrap();
        store.keep_certificate(&certificate, &pem(&["shop.example", "www.shop.example"])).unwrap();
        assert_eq!(store.attempts(&certificate).unwrap(), attempts);
        assert!(store.certificate(&certificate, NOW).unwrap().is_some());
        assert_eq!(mode(&folder.path().join("ca")), 0o700);
        let files: Vec<_> = std::fs::read_dir(folder.path().join("ca")).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 2, "nothing is left of writing: {files:?}");
        assert!(files.iter().all(|file| mode(file) == 0o600));
        store.forget_attempts(&certificate).unwrap();
        store.forget_attempts(&certificate).unwrap();
        assert_eq!(store.attempts(&certificate).unwrap(), Attempts::default());
    }

    #[test]
    fn another_account_is_kept_beside_the_one_of_the_fleet() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = wanted(folder.path());
        let store = Store::of(&certificate);
        let account = |id: &str, contact: &str| {
            let credentials = serde_json::json!({"id": id, "key_pkcs8": "", "directory": "https://ca.example/"});
            serde_json::to_vec(&serde_json::json!({"contact": [contact], "credentials": credentials})).unwrap()
        };
        let kept = |name: &str| std::fs::read(folder.path().join("ca").join(name)).ok();
        assert_eq!(store.keep_shared_account(&account("one", "mailto:a@a.example")).unwrap(), None);
        assert_eq!(store.keep_shared_account(&account("one", "mailto:b@a.example")).unwrap(), None, "the same one");
        let old = store.keep_shared_account(&account("two", "mailto:b@a.example")).unwrap().expect("there was another");
        assert_eq!((old.file_name().unwrap().to_str(), mode(&old)), (Some("account.json.old"), 0o600));
        assert_eq!(kept("account.json"), Some(account("two", "mailto:b@a.example")));
        assert_eq!(kept("account.json.old"), Some(account("one", "mailto:b@a.example")));
        std::fs::write(folder.path().join("ca/account.json"), "{").unwrap();
        assert!(store.keep_shared_account(&account("two", "mailto:b@a.example")).unwrap().is_some());
        assert_eq!(kept("account.json.old").as_deref(), Some(&b"{"[..]), "what a person may yet mend");
        std::fs::write(folder.path().join("ca/account.json"), " ".repeat(1 << 20)).unwrap();
        assert!(store.keep_shared_account(&account("two", "mailto:b@a.example")).unwrap().is_some(), "it is too long to be read");
        assert_eq!(kept("account.json.old").map(|kept| kept.len()), Some(1 << 20));
    }

    #[test]
    fn damage_is_told_and_never_taken_for_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = wanted(folder.path());
        let store = Store::of(&certificate);
        let good = pem(&["shop.example", "www.shop.example"]);
        let key_end = good.windows(8).position(|part| part == b"-----END").unwrap();
        for spoilt in [&b""[..], b"hello", &good[..key_end], &good[..good.len() - 40], &pem(&["shop.example"])] {
            store.keep_certificate(&certificate, spoilt).unwrap();
            assert!(store.certificate(&certificate, NOW).is_err(), "{}", String::from_utf8_lossy(spoilt));
        }
        for name in ["account.json", "shop.example-1.json"] {
            std::fs::write(folder.path().join("ca").join(name), "{\"failures\": -1").unwrap();
        }
        assert!(matches!(store.account(), Err(Damage::Malformed(_))));
        assert!(matches!(store.attempts(&certificate), Err(Damage::Malformed(_))));
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = wanted(folder.path());
        let store = Store::of(&certificate);
        std::fs::create_dir_all(&certificate.file).unwrap(); // nothing can be moved over a folder
        assert!(store.keep_certificate(&certificate, b"new").is_err());
        assert_eq!(std::fs::read_dir(folder.path().join("ca")).unwrap().count(), 1);
    }
}
