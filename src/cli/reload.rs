//! `tiercel reload`.

use super::Failure;
use super::client::AdminOptions;
use clap::Args;
use serde_json::json;

/// Makes a running server read its configuration again. Where anything is wrong with it, or cannot change while the
/// server runs, the old one stays whole.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    admin: AdminOptions,
}

pub fn run(options: Options) -> Result<(), Failure> {
    options.admin.post_and_print("/v1/reload", &json!({}))
}
