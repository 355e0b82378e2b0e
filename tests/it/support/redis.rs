//! Real Redis servers: `redis-server` as a process of its own, with its files in a folder of its own. Replicas, Sentinel and
//! Cluster are made of the same.

mod cluster;
mod sentinel;
mod servers;

pub use cluster::Cluster;
pub use sentinel::Sentinels;
pub use servers::Servers;

use super::address;
use super::origin::PATIENCE;
use super::pki::{EC, Pki};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that runs, or was stopped and may be started again at the same address. It ends when dropped.
pub struct Redis {
    program: &'static str,
    address: SocketAddr,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

/// What a server finds when it starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// What [`Redis::save`] wrote last, however old.
    Saved,
    /// Nothing.
    Empty,
}

impl Redis {
    /// A server that keeps everything in memory.
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    /// The same with further directives of its configuration: `("maxmemory", "64mb")`.
    pub fn with_options(options: &[(&str, &str)]) -> Self {
        let own = [("save", "''"), ("appendonly", "no"), ("repl-diskless-sync-delay", "0")];
        Self::launch("redis-server", |_| [&own, options].concat().iter().map(|(name, value)| format!("{name} {value}\n")).collect())
    }

    /// One that also takes connections with TLS, at [`Redis::tls_address`], of those who show a certificate of this authority. Its
    /// own is for the host of that address, where links are too.
    pub fn with_tls(pki: &Pki) -> Self {
        Self::launch("redis-server", |address| format!("save ''\nappendonly no\n{}", encrypted(pki, address)))
    }

    /// A replica of such a server, in step with it over TLS.
    pub fn replica_with_tls(master: &Self, pki: &Pki) -> Self {
        let (host, port) = (master.address.ip(), master.tls_address().port());
        let own = "save ''\nappendonly no\nrepl-diskless-sync-delay 0\n";
        let replica = Self::launch("redis-server", |address| format!("{own}{}replicaof {host} {port}\n", encrypted(pki, address)));
        replica.until_in_step();
        replica
    }

    /// A replica of another server, in step with it.
    pub fn replica_of(master: &Self, options: &[(&str, &str)]) -> Self {
        let (host, port) = (master.address.ip().to_string(), master.address.port().to_string());
        let replica = Self::with_options(&[&[("replicaof", format!("{host} {port}").as_str())], options].concat());
        replica.until_in_step();
        replica
    }

    fn until_in_step(&self) {
        self.until("the replica is in step", |redis| redis.info("replication", "master_link_status").as_deref() == Some("up"));
    }

    /// A program of Redis with a configuration file, which is of the address too.
    fn launch(program: &'static str, options: impl Fn(SocketAddr) -> String) -> Self {
        loop {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let address = address::free();
            let (ip, port) = (address.ip(), address.port());
            let mut text =
                format!("bind {ip}\nbind-source-addr {ip}\nport {port}\nprotected-mode no\ndir {}\nlogfile log\n", folder.path().display());
            text.push_str(&options(address));
            std::fs::write(folder.path().join("redis.conf"), text).expect("a writable folder");
            let mut redis = Self { program, address, folder, child: None };
            if redis.try_run() {
                return redis;
            }
            assert!(redis.log().contains("Address already in use"), "{program} does not start:\n{}", redis.log());
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn tls_address(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), tls_port(self.address))
    }

    /// `redis://127.1.2.3:12345`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server wrote into its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Whether it was neither killed nor stopped.
    pub const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }

    /// Ends it as an operator does; it writes nothing.
    pub fn stop(&mut self) {
        let ends = self.connect().and_then(|mut connection| connection.send(&["SHUTDOWN", "NOSAVE", "NOW", "FORCE"]));
        ends.unwrap_or_else(|error| panic!("{} cannot be told to end: {error}", self.program));
        let mut child = self.child.take().expect("it runs");
        child.wait().expect("a child of ours");
    }

    /// Starts it again after [`Redis::kill`] or [`Redis::stop`].
    pub fn start_again(&mut self, with: Restart) {
        assert!(self.child.is_none(), "it runs");
        if with == Restart::Empty {
            let _ = std::fs::remove_file(self.folder.path().join("dump.rdb")); // there may be none
        }
        assert!(self.try_run(), "{} does not start again:\n{}", self.program, self.log());
    }

    /// SIGSTOP: connections stay, and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a child of ours");
    }

    /// Writes what it holds to its disk, for [`Restart::Saved`].
    pub fn save(&self) {
        self.ask(&["SAVE"]);
    }

    pub fn flush_all(&self) {
        self.ask(&["FLUSHALL"]);
    }

    /// Changes a directive while it runs.
    pub fn set(&self, directive: &str, value: &str) {
        self.ask(&["CONFIG", "SET", directive, value]);
    }

    /// From now on this replica misses what its master is told: it lags, until it is made the master or
    /// [`Redis::follow_again`].
    pub fn stop_following(&self) {
        // The master asks for no password, so that it refuses this one.
        self.set("masterauth", "refused");
        self.until("the replica has lost its master", |redis| {
            let _ = redis.try_ask(&["CLIENT", "KILL", "TYPE", "master"]); // there may be none at the moment
            redis.info("replication", "master_link_status").as_deref() == Some("down")
        });
    }

    pub fn follow_again(&self) {
        self.set("masterauth", "");
    }

    /// A command on a connection of its own. It must succeed.
    pub fn ask(&self, command: &[&str]) -> Reply {
        match self.try_ask(command) {
            Ok(Reply::Error(error)) => panic!("{command:?}: {error}"),
            Ok(reply) => reply,
            Err(error) => panic!("{command:?} on {} {}: {error}", self.program, self.address),
        }
    }

    /// A command that may fail, or that nobody may answer.
    pub fn try_ask(&self, command: &[&str]) -> std::io::Result<Reply> {
        self.connect()?.ask(command)
    }

    pub fn connect(&self) -> std::io::Result<Connection> {
        Connection::to(self.address)
    }

    /// A field of `INFO section`.
    pub fn info(&self, section: &str, field: &str) -> Option<String> {
        let text = self.try_ask(&["INFO", section]).ok()?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }

    /// Waits until a condition holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.until_within(PATIENCE, what, holds);
    }

    fn until_within(&self, patience: Duration, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + patience;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}; the log of {}:\n{}", self.address, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs the program; false where it ended at once.
    fn try_run(&mut self) -> bool {
        let mut command = Command::new(self.program);
        command.arg(self.folder.path().join("redis.conf")).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{} (Debian: apt-get install redis): {error}", self.program));
        let own = child.id().to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if child.try_wait().expect("a child of ours").is_some() {
                return false;
            }
            // Loading what it saved it answers already, and with errors.
            let loaded = self.info("persistence", "loading").is_none_or(|loading| loading == "0");
            if self.info("server", "process_id") == Some(own.clone()) && loaded {
                self.child = Some(child);
                return true;
            }
            assert!(Instant::now() < deadline, "{} does not answer:\n{}", self.program, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Directives of one that takes connections with TLS, at [`tls_port`], of those who show a certificate of this authority, and
/// that speaks TLS to its like.
fn encrypted(pki: &Pki, address: SocketAddr) -> String {
    let name = format!("redis-{}", address.ip());
    pki.issue(&name, &[&address.ip().to_string()], EC, 30);
    let file = |name: &str| pki.path(name).display().to_string();
    let (port, certificate, key) = (tls_port(address), file(&format!("{name}.pem")), file(&format!("{name}.key")));
    let authority = file("ca.pem");
    format!(
        "tls-port {port}\ntls-auth-clients yes\ntls-replication yes\ntls-cert-file {certificate}\ntls-key-file {key}\n\
         tls-ca-cert-file {authority}\n"
    )
}

/// Nobody else is at that address.
const fn tls_port(address: SocketAddr) -> u16 {
    address.port() + 10_000
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection that speaks RESP2, blocking.
pub struct Connection(BufReader<TcpStream>);

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Nothing,
    Text(Vec<u8>),
    Integer(i64),
    Error(String),
    List(Vec<Reply>),
}

impl Reply {
    /// A text, or an empty one.
    pub fn text(&self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        }
    }

    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(value) => *value,
            other => panic!("no integer: {other:?}"),
        }
    }

    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            other => panic!("no list: {other:?}"),
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

impl Connection {
    pub fn to(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn ask(&mut self, command: &[&str]) -> std::io::Result<Reply> {
        self.send(command)?;
        self.reply()
    }

    pub fn send(&mut self, command: &[&str]) -> std::io::Result<()> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
        self.0.get_mut().write_all(&bytes)
    }

    pub fn reply(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let number = || rest.parse::<i64>().map_err(std::io::Error::other);
        Ok(match kind {
            "+" => Reply::Text(rest.into()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" | "*" if rest == "-1" => Reply::Nothing,
            "$" => {
                let mut bytes = vec![0; usize::try_from(number()?).map_err(std::io::Error::other)? + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Text(bytes)
            }
            "*" => Reply::List((0..number()?).map(|_| self.reply()).collect::<std::io::Result<_>>()?),
            _ => return Err(std::io::Error::other(format!("no reply: {line:?}"))),
        })
    }
}
