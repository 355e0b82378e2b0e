//! Several `tiercel` processes in front of one origin, each with a link of its own to one Redis.

use super::address;
use super::client::{Answer, Client};
use super::link::Link;
use super::origin::PATIENCE;
use super::process::{CONTINUE, KILL, Process, TERMINATE, command, write_config};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the nodes of a fleet have in common.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub nodes: usize,
    /// What is written before the listeners, for each node: `@NODE@` is its name, `@ORIGIN@` that of the origin, `@REDIS@` is `host:port`
    /// (through the link of the node), `@NODES@` a list of the addresses of all listeners,
    /// `@PEER@` where other nodes reach it, `@PEERS@` a list of all of those as URLs, `@SECURE_PEERS@` the same with https.
    pub config: String,
    pub origin: String,
    /// The server that `@REDIS@` leads to.
    pub redis: Option<SocketAddr>,
    /// Goes into the environment as `TIERCEL_FAULT`.
    pub fault: Option<String>,
}

/// The nodes. All end when dropped.
pub struct Fleet {
    pub nodes: Vec<Node>,
}

/// One process, or none at the moment.
pub struct Node {
    pub name: String,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    /// Where other nodes reach it, if the plan lets it listen there.
    pub peer: SocketAddr,
    /// Before its link: it ends first.
    process: Option<Process>,
    /// To Redis, where the plan names one.
    pub link: Option<Link>,
    fault: Option<String>,
    folder: tempfile::TempDir,
}

impl Fleet {
    /// Starts all nodes at once and waits until they are ready.
    pub fn start(plan: &Plan) -> Self {
        let fleet = Self::launch(plan);
        fleet.nodes.iter().for_each(Node::until_ready);
        fleet
    }

    /// Starts all nodes at once.
    pub fn launch(plan: &Plan) -> Self {
        let places: Vec<_> = (0..plan.nodes).map(|_| (address::free(), address::free(), address::free())).collect();
        let listeners = places.iter().map(|(http, ..)| format!("\"{http}\"")).collect::<Vec<_>>().join(", ");
        let peers = places.iter().map(|(.., peer)| format!("\"http://{peer}\"")).collect::<Vec<_>>().join(", ");
        let node = |(number, (http, admin, peer)): (usize, &(SocketAddr, SocketAddr, SocketAddr))| {
            let name = format!("node-{number}");
            let link = plan.redis.map(Link::to);
            let mut text = format!(
                "{}\n[listeners.http]\naddress = '{http}'\n[admin]\naddress = '{admin}'\n[log.access]\ntarget = 'off'\n",
                plan.config
            );
            let own = peer.to_string();
            for (placeholder, value) in [
                ("@NODE@", name.as_str()),
                ("@ORIGIN@", plan.origin.as_str()),
                ("@NODES@", &listeners),
                ("@PEERS@", &peers),
                ("@SECURE_PEERS@", &peers.replace("http://", "https://")),
                ("@PEER@", &own),
            ] {
                text = text.replace(placeholder, value);
            }
            if let Some(link) = &link {
                text = text.replace("@REDIS@", &link.address().to_string());
            }
            let folder = tempfile::tempdir().expect("a temporary folder");
            write_config(folder.path(), &text);
            let mut node = Node { name, http: *http, admin: *admin, peer: *peer, process: None, link, fault: plan.fault.clone(), folder };
            node.start();
            node
        };
        Self { nodes: places.iter().enumerate().map(node).collect() }
    }

    /// [`Node::metric`] of all nodes that answer, added up.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.nodes.iter().filter_map(|node| node.metric(name, labels)).sum()
    }
}

impl Node {
    /// Starts the process, at the same addresses as before.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let file = self.folder.path().join("tiercel.toml");
        let mut run = command(&["run", "--config", file.to_str().expect("a UTF-8 path")]);
        if let Some(fault) = &self.fault {
            run.env("TIERCEL_FAULT", fault);
        }
        self.process = Some(Process::spawn(&mut run));
    }

    /// Waits until its probe says that it is ready.
    pub fn until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.readiness().is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "{} is not ready; it wrote:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What its probe says.
    pub fn readiness(&self) -> Option<(u16, String)> {
        self.ask("GET", "/readyz", "")
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(KILL);
        self.ended();
    }

    /// Ends it with SIGTERM, and waits until it has drained.
    pub fn terminate(&mut self) {
        self.signal(TERMINATE);
        self.ended();
    }

    fn ended(&mut self) {
        self.process.take().expect("it runs").end();
    }

    /// SIGSTOP: connections stay, and nothing is answered.
    pub fn pause(&self) {
        self.process.as_ref().expect("it runs").stop();
    }

    pub fn resume(&self) {
        self.signal(CONTINUE);
    }

    fn signal(&self, number: i32) {
        self.process.as_ref().expect("it runs").signal(number);
    }

    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::runs)
    }

    /// What it wrote to standard error, from its last start.
    pub fn log(&self) -> String {
        self.process.as_ref().map(|process| process.err.all().join("\n")).unwrap_or_default()
    }

    /// The sum of all series of this name whose labels hold all of these texts; `None` where it does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, text) = self.ask("GET", "/metrics", "")?;
        let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        Some(lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")).sum())
    }

    /// An answer of the admin API as JSON; `None` where it does not answer.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let (status, text) = self.ask(method, path, body)?;
        Some((status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))))
    }

    /// Blocking, on a connection of its own, with [`PATIENCE`].
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let lines = format!("Host: {}\r\nConnection: close\r\nContent-Type: application/json\r\n", self.admin);
        write!(stream, "{method} {path} HTTP/1.1\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
    }

    /// A GET to the proxy, on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        let mut client = Client::connect(self.http).await;
        client.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }
}
