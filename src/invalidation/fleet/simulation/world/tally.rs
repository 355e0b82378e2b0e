//! What was seen.

/// That the simulation does what it says.
#[derive(Debug, Default, Clone, Copy)]
pub(in super::super) struct Tally {
    pub(in super::super) served: u64,
    pub(in super::super) promoted: u64,
    pub(in super::super) complete: u64,
    pub(in super::super) purges: u64,
    pub(in super::super) epochs: u64,
    pub(in super::super) kept: u64,
    pub(in super::super) trims: u64,
    pub(in super::super) gaps: u64,
    pub(in super::super) servers: u64,
    pub(in super::super) unvouched: u64,
    pub(in super::super) holes: u64,
    pub(in super::super) foreign: u64,
    pub(in super::super) names_taken: u64,
    /// Purges of nodes without a fleet.
    pub(in super::super) alone: u64,
    pub(in super::super) recovering: u64,
    pub(in super::super) damaged: u64,
}

impl Tally {
    pub(in super::super) fn add(&mut self, other: &Self) {
        let Self { served, promoted, complete, purges, epochs, kept, trims, gaps, servers, unvouched, holes, foreign, names_taken, .. } =
            other;
        self.alone += other.alone;
        self.recovering += other.recovering;
        self.damaged += other.damaged;
        self.served += served;
        self.promoted += promoted;
        self.complete += complete;
        self.purges += purges;
        self.epochs += epochs;
        self.kept += kept;
        self.trims += trims;
        self.gaps += gaps;
        self.servers += servers;
        self.unvouched += unvouched;
        self.holes += holes;
        self.foreign += foreign;
        self.names_taken += names_taken;
    }
}
