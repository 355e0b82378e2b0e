//! One line per request, written by a thread of its own; a full queue drops and counts.
//!
//! Each worker formats its lines into a buffer of its own, under a lock that nobody else wants but the writer, and the
//! writer only to swap the buffer out. So a line costs its formatting, and the writer makes few, large writes: every
//! `COLLECT` while there are lines, at once past `BATCH_BYTES`, never while there are none.

mod line;
mod shared;
#[cfg(test)]
mod tests;
mod text;

use crate::clock;
use crate::config::settings::{self, AccessFormat, LogTarget};
use crate::listener::{Peer, RequestHead, Sent};
use crate::observe::log::RateLimit;
use crate::observe::metrics::Metrics;
use crate::proxy::outcome::Outcome;
use line::Line;
use parking_lot::{Condvar, Mutex};
use shared::Shared;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the writer lets lines gather.
const COLLECT: Duration = Duration::from_millis(50);
/// Bytes in a worker's buffer that make the writer hurry.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes in a worker's buffer past which lines are dropped, however few they are.
const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long closing waits for a target that takes nothing, such as a pipe that nobody reads.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Between two warnings about the same failure, milliseconds.
const WARN_INTERVAL_MS: u64 = 10_000;

/// The access log.
#[derive(Debug)]
pub struct AccessLog {
    /// `None`: off.
    queue: Option<Arc<Queue>>,
}

impl AccessLog {
    /// Opens the target. `Off` costs one branch per request.
    pub fn open(settings: &settings::AccessLog, metrics: Arc<Metrics>) -> io::Result<Self> {
        let target = match &settings.target {
            LogTarget::Off => return Ok(Self { queue: None }),
            LogTarget::Stdout => Target { writer: Box::new(io::stdout()), path: None },
            LogTarget::File(path) => Target { writer: Box::new(open_file(path)?), path: Some(path.clone()) },
        };
        Self::start(settings, target, metrics)
    }

    fn start(settings: &settings::AccessLog, target: Target, metrics: Arc<Metrics>) -> io::Result<Self> {
        let workers = metrics.workers();
        let queue = Arc::new(Queue {
            buffers: (0..workers).map(|_| Slot::default()).collect(),
            lines_max: settings.queue.div_ceil(workers).max(1),
            format: settings.format,
            metrics,
            wanted: Mutex::default(),
            wake: Condvar::new(),
            ended: Condvar::new(),
        });
        let writer = queue.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(target))?;
        Ok(Self { queue: Some(queue) })
    }

    pub const fn enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Formats and queues a line; never blocks. Where the worker's share of the queue is full, or the log is closed, the
    /// line is dropped and counted.
    pub fn record(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        if let Some(queue) = &self.queue {
            let (site, route) = queue.metrics.route_names_ref(outcome.route);
            let line = Line { wall_ms: clock::now().wall_ms, peer, head, outcome, sent, site, route };
            queue.push(peer.worker, &line);
        }
    }

    /// Reopens the file (SIGUSR1), after what is queued has been written. Returns at once; where the file cannot be
    /// opened the old one stays in use and an error is logged.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.signal(|wanted| wanted.reopen = true);
        }
    }

    /// Writes what is queued and ends the thread; waits for it, but not for longer than two seconds.
    pub fn close(&self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// What one worker has to be written. Aligned so that two workers' locks never share a cache line.
#[derive(Default)]
#[repr(align(128))]
struct Slot(Mutex<Buffer>);

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: usize,
    shared: Shared,
    closed: bool,
}

/// What the writer is asked to do.
#[derive(Debug, Default)]
struct Wanted {
    /// There are lines.
    lines: bool,
    /// There are many.
    hurry: bool,
    reopen: bool,
    close: bool,
    /// Set by the writer, last.
    ended: bool,
}

struct Queue {
    /// One per worker.
    buffers: Box<[Slot]>,
    /// Lines that may wait in one of them.
    lines_max: usize,
    format: AccessFormat,
    metrics: Arc<Metrics>,
    wanted: Mutex<Wanted>,
    wake: Condvar,
    ended: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("format", &self.format).field("lines_max", &self.lines_max).finish_non_exhaustive()
    }
}

impl Queue {
    fn push(&self, worker: usize, line: &Line<'_>) {
        let Some(slot) = self.buffers.get(worker).or_else(|| self.buffers.first()) else { return };
        let mut buffer = slot.0.lock();
        let Buffer { bytes, lines, shared, closed } = &mut *buffer;
        if *closed || *lines >= self.lines_max || bytes.len() >= BUFFER_BYTES_MAX {
            drop(buffer);
            return self.metrics.access_log_full();
        }
        let before = bytes.len();
        line.write(self.format, shared, bytes);
        *lines += 1;
        let first = *lines == 1;
        let many = before < BATCH_BYTES && bytes.len() >= BATCH_BYTES || *lines == self.lines_max.div_ceil(2);
        drop(buffer);
        if first || many {
            self.signal(|wanted| {
                wanted.lines = true;
                wanted.hurry |= many;
            });
        }
    }

    fn signal(&self, ask: impl FnOnce(&mut Wanted)) {
        ask(&mut self.wanted.lock());
        self.wake.notify_one();
    }

    fn close(&self) {
        self.signal(|wanted| wanted.close = true);
        let timed_out = self.ended.wait_while_for(&mut self.wanted.lock(), |wanted| !wanted.ended, CLOSE_WAIT).timed_out();
        if timed_out {
            tracing::warn!("access log was not written to its end: its target takes nothing");
        }
    }

    /// The writer's thread.
    fn run(&self, mut target: Target) {
        let mut spare = Vec::new();
        loop {
            let (reopen, close) = self.wait();
            for slot in &self.buffers {
                self.drain(slot, close, &mut spare, &mut target);
            }
            if reopen {
                target.reopen();
            }
            if close {
                break;
            }
        }
        self.wanted.lock().ended = true;
        self.ended.notify_all();
    }

    /// Waits for lines, then a little for more of them. Says whether to reopen and whether to close.
    fn wait(&self) -> (bool, bool) {
        let mut wanted = self.wanted.lock();
        self.wake.wait_while(&mut wanted, |wanted| !(wanted.lines || wanted.reopen || wanted.close));
        self.wake.wait_while_for(&mut wanted, |wanted| !(wanted.hurry || wanted.reopen || wanted.close), COLLECT);
        (wanted.lines, wanted.hurry) = (false, false);
        (std::mem::take(&mut wanted.reopen), wanted.close)
    }

    fn drain(&self, slot: &Slot, close: bool, spare: &mut Vec<u8>, target: &mut Target) {
        let mut buffer = slot.0.lock();
        std::mem::swap(&mut buffer.bytes, spare);
        let lines = std::mem::take(&mut buffer.lines);
        buffer.closed = close;
        drop(buffer);
        if !spare.is_empty() {
            if let Err(error) = target.write(spare) {
                self.metrics.access_log_unwritten(lines as u64);
                static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
                if let Some(held_back) = LIMIT.pass(clock::now().mono_ms) {
                    tracing::warn!(%error, lines, held_back, "access log could not be written");
                }
            }
            spare.clear();
            spare.shrink_to(2 * BATCH_BYTES);
        }
    }
}

/// Where lines go.
struct Target {
    writer: Box<dyn Write + Send>,
    /// Of a file that can be reopened.
    path: Option<PathBuf>,
}

impl Target {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.writer.write_all(lines)?;
        self.writer.flush()
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open_file(path) {
            Ok(file) => self.writer = Box::new(file),
            Err(error) => tracing::error!(%error, path = %path.display(), "access log could not be reopened"),
        }
    }
}

/// Appends; others than owner and group cannot read who asked for what.
fn open_file(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o640).open(path)
}
