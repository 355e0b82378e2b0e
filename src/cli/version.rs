//! `tiercel version`.

use super::{Failure, print};
use crate::semantics::tracking;
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let (version, list) = (env!("CARGO_PKG_VERSION"), tracking::VERSION);
    match options.json {
        true => print(&format!("{}\n", json!({"name": "tiercel", "version": version, "tracking_list": list}))),
        false => print(&format!("tiercel {version}\ntracking parameters: list {list}\n")),
    }
}
