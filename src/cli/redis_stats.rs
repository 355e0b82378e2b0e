//! `tiercel redis-stats`.

use super::Failure;
use super::client::AdminOptions;
use clap::Args;
use http::Method;

/// Shows what is kept in Redis: keys and bytes by kind, the fleet's journal, its memory, and what should be changed there. It looks at 100,000 keys
/// at most, for five seconds at most.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    admin: AdminOptions,
}

pub fn run(options: Options) -> Result<(), Failure> {
    options.admin.ask_and_print(Method::GET, "/v1/redis")
}
