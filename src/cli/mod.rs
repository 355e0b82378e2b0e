//! The command line: one file per command. Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration.

mod check;
mod client;
mod completions;
mod config;
pub mod demo;
mod explain;
mod flags;
mod get;
mod health;
mod man;
mod nodes;
mod purge;
mod redis_stats;
mod reload;
mod run;
mod verdict;
mod version;

use crate::config::Problems;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// A multi-layer caching reverse proxy: correct, fast, and able to explain every decision.
#[derive(Debug, Parser)]
#[command(
    name = "tiercel",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration.\n\n\
    Start without a file:  tiercel run --upstream http://127.0.0.1:3000\n\
    Look around first:     tiercel demo"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: from a file, from flags, or both
    ///
    /// Flags add to the file and override it. SIGTERM and Ctrl-C drain, SIGHUP reads the configuration again, SIGUSR1
    /// reopens log files.
    Run(run::Options),
    /// Serve a built-in sample origin, to look around
    Demo(demo::Options),
    /// Check a configuration without serving; prints every problem, needs no network
    Check(check::Options),
    /// Print the configuration in effect, or its JSON Schema
    #[command(subcommand)]
    Config(config::Command),
    /// Invalidate stored responses of a running server
    Purge(purge::Options),
    /// Make a request through a running server and say what the cache did
    Get(get::Options),
    /// Ask a running server what it knows and would do for a request, without making it
    Explain(explain::Options),
    /// Make a running server read its configuration again, whole or not at all
    Reload(reload::Options),
    /// Show what is kept in Redis
    RedisStats(redis_stats::Options),
    /// List the nodes of the fleet, or forget one
    Nodes(nodes::Options),
    /// Ask whether a running server wants requests: exit code 0 if so, else 1
    Health(health::Options),
    /// Print the version
    Version(version::Options),
    /// Print completions for a shell
    Completions(completions::Options),
    /// Print the manual page, or write all of them to a directory
    Man(man::Options),
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2.
    Config(Problems),
    /// Exit code 2.
    Usage(String),
    /// Exit code 1.
    Runtime(anyhow::Error),
    /// Exit code 2; everything has been said.
    Said,
    /// Exit code 3; the answer has been printed: what was asked for goes on, and was not complete in time.
    Incomplete,
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}

/// Reads the arguments of the process and carries out the command.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse_from(with_command(std::env::args_os().collect())).command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = match failure {
                Failure::Runtime(_) => 1,
                Failure::Config(_) | Failure::Usage(_) | Failure::Said => 2,
                Failure::Incomplete => 3,
            };
            complain(&failure);
            ExitCode::from(code)
        }
    }
}

/// A first argument that begins with a hyphen is a flag of `run`, so that a container can be given flags alone.
fn with_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let own = ["-h", "--help", "-V", "--version"];
    if arguments.get(1).is_some_and(|first| first.as_encoded_bytes().starts_with(b"-") && !own.iter().any(|flag| first == flag)) {
        arguments.insert(1, "run".into());
    }
    arguments
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(options) => run::run(options),
        Command::Demo(options) => Ok(demo::run(options)?),
        Command::Check(options) => check::run(options),
        Command::Config(command) => config::run(command),
        Command::Purge(options) => purge::run(options),
        Command::Get(options) => get::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Reload(options) => reload::run(options),
        Command::RedisStats(options) => redis_stats::run(options),
        Command::Nodes(options) => nodes::run(options),
        Command::Health(options) => health::run(options),
        Command::Version(options) => version::run(options),
        Command::Completions(options) => completions::run(options),
        Command::Man(options) => man::run(options),
    }
}

fn complain(failure: &Failure) {
    let text = match failure {
        Failure::Config(problems) => problems.to_string(),
        Failure::Usage(text) => format!("error: {text}"),
        Failure::Runtime(error) => format!("error: {error:#}"),
        Failure::Said => return,
        Failure::Incomplete => "not complete yet: nodes of the fleet may still serve it (GET /v1/purge/<id> tells)".to_owned(),
    };
    // Where not even stderr takes it, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to stdout; who reads only the head of it has had enough.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Runtime(error.into())),
        _ => Ok(()),
    }
}

/// Says what a configuration widens, one line each, on stderr.
fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_leading_flag_is_one_of_run() {
        let with = |arguments: &[&str]| with_command(arguments.iter().map(Into::into).collect());
        assert_eq!(with(&["tiercel", "--memory", "2GiB"]), ["tiercel", "run", "--memory", "2GiB"]);
        assert_eq!(with(&["tiercel", "-c", "a.toml"]), ["tiercel", "run", "-c", "a.toml"]);
        for own in [&["tiercel", "--help"][..], &["tiercel", "-V"], &["tiercel"], &["tiercel", "check", "--json"]] {
            assert_eq!(with(own), own);
        }
    }

    #[test]
    fn every_command_and_option_has_help() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
            command.get_subcommands().filter(|inner| inner.get_name() != "help").for_each(|inner| check(inner, &path));
        }
        check(&Cli::command(), "");
    }
}
