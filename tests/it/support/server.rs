//! A running `tiercel`: the built binary as a process of its own, on port 0, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The process and where it listens.
pub struct Tiercel {
    child: Child,
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

impl Tiercel {
    /// `tiercel run` with an upstream and more arguments.
    pub fn in_front_of(upstream: &str, arguments: &[&str]) -> Self {
        let mut all = vec!["run", "--upstream", upstream, "--access-log", "off"];
        all.extend(arguments);
        Self::start(&all)
    }

    /// `tiercel run` with a configuration of its own, which must not name listeners or admin.
    pub fn with_config(config: &str, folder: &std::path::Path) -> Self {
        let file = folder.join("tiercel.toml");
        std::fs::write(&file, config).expect("a writable folder");
        Self::start(&["run", "--config", file.to_str().expect("a UTF-8 path")])
    }

    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tiercel"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut address = |what: &str| {
            let line = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(what)).expect("a bound address is printed");
            line.rsplit_once("http://").and_then(|(_, address)| address.parse().ok()).expect("an address")
        };
        let (http, admin) = (address("listener http "), address("admin "));
        // Whatever else it prints must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, http, admin }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by number: 15 TERM, 1 HUP, 10 USR1, 9 KILL.
    pub fn signal(&self, number: i32) {
        let sent = Command::new("kill").arg(format!("-{number}")).arg(self.pid().to_string()).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the end and gives the exit code.
    pub fn wait(&mut self, at_most: Duration) -> Option<i32> {
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the process did not end within {at_most:?}");
    }
}

impl Drop for Tiercel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
