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
        Some(Command::Forget { node, admin }) => admin.ask_and_print(Method::DELETE, &format!("/v1/nodes/{}", encoded(&node))),
    }
}

/// As a part of a path: names of nodes may hold what means something in a URL.
fn encoded(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    name.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(encoded("edge-1.test:8080"), "edge-1.test:8080");
        assert_eq!(encoded("a?b#c%d"), "a%3Fb%23c%25d");
    }
}
