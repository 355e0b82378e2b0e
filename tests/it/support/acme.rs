//! An authority that speaks ACME: Debian's `pebble`, with a name server (`pebble-challtestsrv`) by which every host leads to where
//! a test says.

use super::address;
use super::origin::PATIENCE;
use super::pki::{EC, Pki};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Both processes; they end when dropped.
pub struct Pebble {
    plan: Plan,
    pki: Pki,
    address: SocketAddr,
    management: SocketAddr,
    names: Names,
    child: Option<Child>,
}

/// What it is like, and where it looks whether hosts are somebody's.
#[derive(Debug, Clone)]
pub struct Plan {
    pub http: SocketAddr,
    /// At the same IP.
    pub https: SocketAddr,
    /// Of the certificates that it issues.
    pub seconds: u32,
    /// It wants one of these accounts: key id, key.
    pub external: Option<(&'static str, &'static str)>,
    /// Hosts that it does not certify.
    pub refused: Vec<&'static str>,
}

/// The name server.
struct Names {
    dns: SocketAddr,
    management: SocketAddr,
    child: Child,
}

impl Plan {
    /// For listeners that are to be at free addresses of one IP.
    pub fn new() -> Self {
        let http = address::free();
        let port = (20_000..30_000).find(|port| TcpListener::bind((http.ip(), *port)).is_ok()).expect("a free port");
        Self { http, https: (http.ip(), port).into(), seconds: 86_400, external: None, refused: Vec::new() }
    }

    /// For listeners with the same ports at another IP.
    pub fn beside(&self) -> Self {
        let mut places = std::iter::repeat_with(|| address::free().ip());
        let is_free = |ip: &IpAddr| [self.http, self.https].iter().all(|place| TcpListener::bind((*ip, place.port())).is_ok());
        let ip = places.find(is_free).expect("there are many");
        Self { http: (ip, self.http.port()).into(), https: (ip, self.https.port()).into(), ..self.clone() }
    }
}

impl Pebble {
    pub fn start(plan: Plan) -> Self {
        let mut pebble = Self::stopped(plan);
        pebble.run();
        pebble
    }

    /// One that does not run yet; its directory has an address all the same.
    pub fn stopped(plan: Plan) -> Self {
        let (address, management, pki) = (address::free(), address::free(), Pki::new());
        pki.issue("pebble", &[&address.ip().to_string(), &management.ip().to_string()], EC, 30);
        let names = Names::start(plan.http.ip());
        Self { plan, pki, address, management, names, child: None }
    }

    pub fn run(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let plan = &self.plan;
        let keys = plan.external.map(|(id, key)| serde_json::json!({ id: key })).unwrap_or_default();
        let config = serde_json::json!({"pebble": {
            "listenAddress": self.address.to_string(),
            "managementListenAddress": self.management.to_string(),
            "certificate": self.pki.path("pebble.pem"),
            "privateKey": self.pki.path("pebble.key"),
            "httpPort": plan.http.port(),
            "tlsPort": plan.https.port(),
            "externalAccountBindingRequired": plan.external.is_some(),
            "externalAccountMACKeys": keys,
            "domainBlocklist": plan.refused,
            "certificateValidityPeriod": plan.seconds,
        }});
        std::fs::write(self.pki.path("pebble.json"), config.to_string()).expect("a file");
        let log = std::fs::File::create(self.pki.path("pebble.log")).expect("a file");
        let mut command = Command::new("pebble");
        command.args(["-config", "pebble.json", "-dnsserver", &self.names.dns.to_string()]).current_dir(self.pki.folder());
        // Of itself it refuses one good nonce in twenty: now and then the three in a row at which an attempt ends.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log).spawn();
        self.child = Some(child.expect("pebble runs (Debian: apt-get install pebble)"));
        until_listening(self.address, || self.log());
        until_listening(self.management, || self.log());
    }

    /// Ends it; what it issued stays valid, and it will know nobody when it runs again.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.pki.path("pebble.log")).unwrap_or_default()
    }

    /// From now on this host leads to this IP.
    pub fn lead(&self, host: &str, to: IpAddr) {
        self.names.lead(host, to);
    }

    /// The keys of `[acme]` that lead here, with what is kept in this folder.
    pub fn config(&self, folder: &str) -> String {
        let external = self.plan.external.map(|(id, key)| format!("eab_key_id = '{id}'\neab_key = '{key}'\n")).unwrap_or_default();
        format!(
            "[acme]\ndirectory = 'https://{}/dir'\nca_file = '{}'\nagree_to_terms = true\nfolder = '{folder}'\n{external}",
            self.address,
            self.pki.path("ca.pem").display(),
        )
    }

    /// The root of what it issues, in a file.
    pub fn root(&self) -> std::path::PathBuf {
        let file = self.pki.path("root.pem");
        let url = format!("https://{}/roots/0", self.management);
        let mut get = Command::new("curl");
        get.args(["-sSf", "--max-time", "20", "--cacert"]).arg(self.pki.path("ca.pem")).arg("-o").arg(&file).arg(url);
        assert!(get.status().expect("curl runs").success());
        file
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Names {
    fn start(to: IpAddr) -> Self {
        let (dns, management) = (address::free(), address::free());
        let mut command = Command::new("pebble-challtestsrv");
        command.args(["-dns01", &dns.to_string(), "-management", &management.to_string(), "-defaultIPv4", &to.to_string()]);
        command.args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let names = Self { dns, management, child: child.expect("pebble-challtestsrv runs (Debian: apt-get install pebble)") };
        until_listening(management, String::new);
        names
    }

    fn lead(&self, host: &str, to: IpAddr) {
        let body = serde_json::json!({"host": format!("{host}."), "addresses": [to.to_string()]}).to_string();
        let url = format!("http://{}/add-a", self.management);
        let told = Command::new("curl").args(["-sSf", "--max-time", "20", "-d", &body, &url]).status();
        assert!(told.expect("curl runs").success());
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill(); // it may have ended
    let _ = child.wait();
}

fn until_listening(address: SocketAddr, log: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {address}: {}", log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
