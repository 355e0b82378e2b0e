//! `tiercel man`.

use super::{Cli, Failure, print};
use anyhow::Context;
use clap::{Args, CommandFactory};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    /// Write one page per command to this directory instead
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<(), Failure> {
    if let Some(directory) = options.output {
        let written = std::fs::create_dir_all(&directory).and_then(|()| clap_mangen::generate_to(Cli::command(), &directory));
        return Ok(written.with_context(|| format!("cannot write to {}", directory.display()))?);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).context("cannot render the page")?;
    print(&String::from_utf8_lossy(&page))
}
