//! `tiercel version`.

use super::{Failure, print};
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match options.json {
        true => print(&format!("{}\n", json!({"name": "tiercel", "version": version}))),
        false => print(&format!("tiercel {version}\n")),
    }
}
