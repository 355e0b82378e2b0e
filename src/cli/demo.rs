//! `tiercel demo`.

use clap::Args;

/// Serves a built-in sample origin with Tiercel in front of it and the admin listener beside it; prints the
/// addresses and things to try; stops on Ctrl-C. Port 0 takes a free one.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Address to listen on
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// Address of the admin listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9180")]
    pub admin: String,
    /// Address of the sample origin
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub origin: String,
}

/// Serves until Ctrl-C.
pub fn run(options: Options) -> anyhow::Result<()> {
    anyhow::bail!("this build has no sample origin to listen on {}", options.origin)
}
