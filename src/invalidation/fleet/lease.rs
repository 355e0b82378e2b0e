//! Until when this node may believe that it misses nothing.
//!
//! The lease is renewed by a heartbeat (it is registered: purges wait for it) together with a read (it gets what is
//! appended), counted from when the older of the two was sent. Once it lapsed, others complete purges without this node;
//! so it begins anew only when everything has been applied that was there at a heartbeat after the lapse.

use super::super::Position;

#[derive(Debug, Default)]
pub(super) struct Lease {
    until: u64,
    /// When those were sent that were answered in this epoch by a server that is vouched for.
    beat_sent: Option<u64>,
    read_sent: Option<u64>,
    /// What has to be applied, of both classes, before a lapsed lease begins anew.
    reach: Option<(Position, Position)>,
    /// Since when it holds without a break.
    since: u64,
    remembered: bool,
}

impl Lease {
    pub(super) const fn until(&self) -> u64 {
        self.until
    }

    pub(super) const fn holds(&self, now_ms: u64) -> bool {
        now_ms <= self.until
    }

    pub(super) const fn is_remembered(&self) -> bool {
        self.remembered
    }

    /// Since when it has held, or will once it begins.
    pub(super) const fn since(&self) -> u64 {
        self.since
    }

    /// How long it has held; 0 where it lapsed.
    pub(super) const fn unbroken_for(&self, now_ms: u64) -> u64 {
        if self.holds(now_ms) { now_ms.saturating_sub(self.since) } else { 0 }
    }

    /// A heartbeat was taken, and `last` was there then. `unbroken`: this node was registered all the time.
    pub(super) fn beat(&mut self, sent: u64, unbroken: bool, last: (Position, Position), now_ms: u64) {
        self.beat_sent = Some(sent);
        if unbroken {
            self.reach = None;
        } else {
            self.reach = Some(last);
            self.since = now_ms;
        }
    }

    pub(super) fn read(&mut self, sent: u64) {
        self.read_sent = Some(sent);
    }

    /// It is not renewed by anything that was answered before.
    pub(super) fn doubt(&mut self) {
        (self.beat_sent, self.read_sent) = (None, None);
    }

    /// The fleet no longer waits for this node.
    pub(super) fn forget(&mut self) {
        self.remembered = false;
    }

    /// The new end, where it moved.
    pub(super) fn extend(&mut self, applied: (Position, Position), trust_ms: u64, lapse_ms: u64) -> Option<u64> {
        let sent = self.beat_sent?.min(self.read_sent?);
        if self.reach.is_some_and(|reach| applied.0 < reach.0 || applied.1 < reach.1) {
            return None;
        }
        let until = sent + trust_ms;
        if until <= self.until {
            return None;
        }
        self.until = until;
        self.remembered |= sent.saturating_sub(self.since) >= lapse_ms;
        Some(until)
    }
}
