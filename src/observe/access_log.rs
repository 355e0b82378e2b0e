//! One line per request, written by a thread of its own; a full queue drops and counts.

use crate::config::settings;
use crate::listener::{Peer, RequestHead, Sent};
use crate::observe::metrics::Metrics;
use crate::proxy::outcome::Outcome;
use std::sync::Arc;

/// The access log.
#[derive(Debug)]
pub struct AccessLog {}

impl AccessLog {
    /// Opens the target. `Off` costs one branch per request.
    pub fn open(settings: &settings::AccessLog, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let _ = (settings, metrics);
        todo!()
    }
    pub fn enabled(&self) -> bool {
        todo!()
    }
    /// Formats and queues a line; never blocks.
    pub fn record(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        let _ = (peer, head, outcome, sent);
        todo!()
    }
    /// Reopens the file (SIGUSR1).
    pub fn reopen(&self) {
        todo!()
    }
    /// Writes what is queued and ends the thread.
    pub fn close(&self) {
        todo!()
    }
}
