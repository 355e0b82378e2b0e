//! `tiercel completions`.

use super::{Cli, Failure, print};
use clap::{Args, CommandFactory};

#[derive(Debug, Args)]
pub struct Options {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "tiercel", &mut script);
    print(&String::from_utf8_lossy(&script))
}
