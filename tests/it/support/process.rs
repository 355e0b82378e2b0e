//! A `tiercel` process with all that it writes; killed when dropped.

use super::origin::PATIENCE;
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const HANGUP: i32 = 1;
pub const KILL: i32 = 9;
pub const INTERRUPT: i32 = 2;
pub const USER_1: i32 = 10;
pub const TERMINATE: i32 = 15;
pub const CONTINUE: i32 = 18;
const STOP: i32 = 19;

pub struct Process {
    child: Child,
    pub out: Lines,
    pub err: Lines,
}

/// The lines of a stream so far.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Followed>, Condvar)>);

#[derive(Default)]
struct Followed {
    lines: Vec<String>,
    ended: bool,
}

/// The binary with these arguments, in an environment that says nothing about it.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tiercel"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIERCEL")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command that ends by itself.
pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

/// What a command that must fail wrote, and its exit code. It has nothing to say on standard output.
pub fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

impl Process {
    /// `tiercel run` with these arguments, and with free ports where they name none.
    pub fn run(arguments: &[&str]) -> Self {
        let mut all = vec!["run"];
        all.extend(arguments);
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0"), ("--access-log", "off")] {
            if !arguments.contains(&flag) && !arguments.contains(&"--config") {
                all.extend([flag, value]);
            }
        }
        Self::spawn(&mut command(&all))
    }

    /// `tiercel run --config` with this text in a file of this folder.
    pub fn with_config(folder: &Path, text: &str) -> Self {
        let file = write_config(folder, text);
        let process = Self::run(&["--config", file.to_str().expect("a UTF-8 path")]);
        // The file has been read: tests may write another.
        process.http();
        process
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let (out, err) = (Lines::default(), Lines::default());
        out.follow(child.stdout.take().expect("piped"));
        err.follow(child.stderr.take().expect("piped"));
        Self { child, out, err }
    }

    /// The bound address that is printed behind this name: `listener http`, `admin`, `metrics`.
    pub fn address(&self, name: &str) -> SocketAddr {
        let line = self.out.find(|line| line.trim_start().starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|printed| panic!("no {name} in {printed:#?}; it said {:#?}", self.err.so_far()));
        let (_, rest) = line.split_once("://").expect("a URL");
        rest.split(['/', ' ']).next().and_then(|address| address.parse().ok()).expect("an address")
    }

    pub fn http(&self) -> SocketAddr {
        self.address("listener http")
    }

    pub fn admin(&self) -> SocketAddr {
        self.address("admin")
    }

    pub fn signal(&self, number: i32) {
        let sent = Command::new("kill").args([format!("-{number}"), self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// SIGSTOP, and waits until all of its threads have stopped: they go on for a while after the signal was sent.
    pub fn stop(&self) {
        self.signal(STOP);
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::STOPPED).expect("a child of ours");
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits for the end; the exit code.
    pub fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the process goes on; it wrote:\n{}", self.err.all().join("\n"));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

impl Lines {
    fn follow(&self, stream: impl Read + Send + 'static) {
        let shared = self.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                shared.0.lock().lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().ended = true;
            shared.1.notify_all();
        });
    }

    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().lines.clone()
    }

    /// Waits for the end of the stream; all lines.
    pub fn whole(&self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut read = self.0.0.lock();
        while !read.ended {
            assert!(!self.0.1.wait_until(&mut read, deadline).timed_out(), "the stream goes on: {:#?}", read.lines);
        }
        read.lines.clone()
    }

    /// Waits for the first such line.
    pub fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        self.find(is).unwrap_or_else(|lines| panic!("no {what} in {lines:#?}"))
    }

    pub fn so_far(&self) -> Vec<String> {
        self.0.0.lock().lines.clone()
    }

    /// The first such line, or all where none comes.
    fn find(&self, is: impl Fn(&str) -> bool) -> Result<String, Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut read = self.0.0.lock();
        loop {
            if let Some(line) = read.lines.iter().find(|line| is(line)) {
                return Ok(line.clone());
            }
            if read.ended || self.0.1.wait_until(&mut read, deadline).timed_out() {
                return read.lines.iter().find(|line| is(line)).cloned().ok_or_else(|| read.lines.clone());
            }
        }
    }
}

pub fn write_config(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("tiercel.toml");
    std::fs::write(&file, text).expect("a writable folder");
    file
}

/// A configuration with free ports, no access log, and one upstream for every host.
pub fn config(upstream: &str, more: &str) -> String {
    format!(
        "{more}\n[listeners.http]\naddress = '127.0.0.1:0'\n[admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n\
         [upstreams.default]\nendpoints = ['{upstream}']\n"
    )
}
