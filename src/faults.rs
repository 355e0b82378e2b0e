//! Faults that tests plant, to show that the harness which is to find them does (`tests/it/fleet/fire`).
//!
//! Named by the environment variable `TIERCEL_FAULT`, in builds with debug assertions only: a release has none of it.

/// What may be done wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The stamp of a response is taken when its fetch ends.
    StampAtFetchEnd,
    /// A node's own entry counts as applied in order before its turn.
    OwnEntryOutOfOrder,
    /// A purge is acknowledged before it is applied.
    AcknowledgedBeforeApply,
    /// A soft entry takes the place of a hard one.
    SoftOverwritesHard,
    /// What a lower tier holds is promoted without a look at the journal.
    PromotedUnchecked,
    /// `prev` is not compared after a failover.
    PreviousIgnored,
    /// A node that was stopped goes on without a look at its trust.
    ResumedUntrusted,
}

/// Whether this fault is planted in this process.
#[cfg(debug_assertions)]
pub fn planted(fault: Fault) -> bool {
    use std::sync::LazyLock;
    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIERCEL_FAULT").ok());
    PLANTED.as_ref().is_some_and(|named| *named == format!("{fault:?}"))
}

/// Whether this fault is planted in this process: never in a release.
#[cfg(not(debug_assertions))]
pub const fn planted(_: Fault) -> bool {
    false
}
