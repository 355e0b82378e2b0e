//! server

use crate::config::{Settings, Sources};

/// Serves until told to stop.
pub fn run(sources: Sources, settings: Settings) -> anyhow::Result<()> {
    let _ = (sources, settings);
    todo!()
}
