//! `tiercel config print` and `tiercel config schema`.

use super::flags::ConfigFlags;
use super::{Failure, print, print_warnings};
use crate::config::{effective, schema};
use anyhow::Context;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print everything in effect, defaults included, secrets masked; loads again as it is
    Print(Box<Options>),
    /// Print the JSON Schema of the configuration
    Schema,
}

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigFlags,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Print(options) => {
            let (_, settings) = options.config.load()?;
            print_warnings(&settings.warnings);
            let tree = effective(&settings);
            let toml = || toml::to_string_pretty(&tree).context("the configuration cannot be written as TOML");
            print(&if options.json { format!("{tree:#}\n") } else { toml()? })
        }
        Command::Schema => print(&format!("{:#}\n", schema())),
    }
}
