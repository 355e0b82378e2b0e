//! `tiercel nodes`.

use super::Failure;
use super::client::AdminOptions;
use clap::{Args, Subcommand};
use http::Method;

/// Lists the nodes of the fleet as a running server sees them, or makes it forget one.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let no purge wait any longer for a node that never comes back
    ///
    /// Whoever says so answers for it: a node that runs after all, cut off, may serve what was purged.
    Forget {
        /// The node's name
        #[arg(value_name = "NODE")]
        node: String,
        #[command(flatten)]
        admin: AdminOptions,
    },
}

pub fn run(options: Options) -> Result<(), Failure> {
    match options.command {
        None => options.admin.ask_and_print(Method::GET, "/v1/nodes"),
        Some(Command::Forget { node, admin }) => admin.ask_and_print(Method::DELETE, &format!("/v1/nodes/{node}")),
    }
}
