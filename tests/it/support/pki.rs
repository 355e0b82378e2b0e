//! Certificates made by openssl, in a folder that goes when this is dropped, and clients that trust them.

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority.
pub struct Pki {
    folder: tempfile::TempDir,
}

/// Kind of a key, as openssl wants it.
pub const EC: &str = "ec -pkeyopt ec_paramgen_curve:prime256v1";
pub const RSA: &str = "rsa:2048";

impl Pki {
    pub fn new() -> Self {
        let pki = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        pki.openssl(&format!("req -x509 -newkey {EC} -nodes -keyout ca.key -out ca.pem -subj /CN=Authority -days 30"));
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(self.folder.path()).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `NAME.pem` and `NAME.key` for these hosts, valid from now for so many days.
    pub fn issue(&self, name: &str, hosts: &[&str], key: &str, days: i32) {
        let names: Vec<_> = hosts
            .iter()
            .map(|host| if host.parse::<std::net::IpAddr>().is_ok() { format!("IP:{host}") } else { format!("DNS:{host}") })
            .collect();
        let names = if names.is_empty() { String::new() } else { format!(" -addext subjectAltName={}", names.join(",")) };
        self.openssl(&format!("req -new -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}{names}"));
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -copy_extensions copy -days {days} -out {name}.pem"));
    }

    /// Keeps a book about what was issued (`openssl ca`), and does this in it.
    fn book(&self, arguments: &str) {
        if !self.path("ca.cnf").exists() {
            let text = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\nunique_subject=no\n";
            for (name, text) in [("ca.cnf", text), ("index", ""), ("number", "01")] {
                std::fs::write(self.path(name), text).expect("a file");
            }
        }
        self.openssl(&format!("ca -config ca.cnf -keyfile ca.key -cert ca.pem {arguments}"));
    }

    /// Notes a certificate as good.
    pub fn note(&self, name: &str) {
        self.book(&format!("-valid {name}.pem"));
    }

    pub fn revoke(&self, name: &str) {
        self.book(&format!("-revoke {name}.pem"));
    }

    /// The revocation list of this moment, there all at once; `until`: more arguments.
    pub fn list_revoked(&self, file: &str, until: &str) {
        self.book(&format!("-gencrl {until} -out {file}.new"));
        std::fs::rename(self.path(&format!("{file}.new")), self.path(file)).expect("a file");
    }

    /// What the book says of a certificate (OCSP), there all at once.
    pub fn tell_status(&self, name: &str, file: &str) {
        let signer = "-CA ca.pem -rsigner ca.pem -rkey ca.key -issuer ca.pem";
        self.openssl(&format!("ocsp -index index {signer} -cert {name}.pem -respout {file}.new -ndays 1"));
        std::fs::rename(self.path(&format!("{file}.new")), self.path(file)).expect("a file");
    }

    /// A table of the configuration for a certificate that was issued.
    pub fn entry(&self, name: &str) -> String {
        format!("{{ cert_file = '{0}.pem', key_file = '{0}.key' }}", self.path(name).display())
    }

    /// A client that trusts this authority. It resumes no sessions: it sees what a server shows each time.
    pub fn client(&self) -> ClientConfig {
        let mut config = self.verifying().with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        config
    }

    /// One that shows a certificate that was issued, and resumes sessions.
    pub fn client_with(&self, name: &str) -> ClientConfig {
        self.client_showing(&self.path(name))
    }

    /// One that shows what another authority may have issued: `FILE.pem` and `FILE.key`.
    pub fn client_showing(&self, file: &Path) -> ClientConfig {
        let certificate = CertificateDer::from_pem_file(file.with_extension("pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(file.with_extension("key")).expect("a key");
        self.verifying().with_client_auth_cert(vec![certificate], key).expect("a key of the certificate")
    }

    fn verifying(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).expect("a certificate")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        builder.with_root_certificates(roots)
    }
}

/// A connection with TLS that speaks HTTP/1.1.
pub struct Secure {
    pub stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Secure {
    pub async fn connect(address: SocketAddr, host: &str, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(host.to_owned()).expect("a name");
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// The certificate that the server showed.
    pub fn shown(&self) -> CertificateDer<'static> {
        self.stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone().into_owned()
    }

    /// Sends a request, reads an answer with Content-Length: its head and its body.
    pub async fn ask(&mut self, request: &str) -> std::io::Result<(String, Vec<u8>)> {
        self.stream.write_all(request.as_bytes()).await?;
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length = head.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.map_or(0, |(_, length)| length.parse().expect("a length"));
        while self.buffer.len() < end + length {
            self.more().await?;
        }
        let body = self.buffer[end..end + length].to_vec();
        self.buffer.drain(..end + length);
        Ok((head, body))
    }

    async fn more(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
