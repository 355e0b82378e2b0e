//! `tiercel run`.

use super::Failure;
use super::flags::ConfigFlags;
use clap::Args;

/// Serves. A file, flags, or both: flags add to the file and override it. SIGTERM and Ctrl-C
/// drain, SIGHUP reads the configuration again, SIGUSR1 reopens log files.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigFlags,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let (sources, settings) = options.config.load()?;
    Ok(crate::server::run(sources, settings)?)
}
