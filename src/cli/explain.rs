//! `tiercel explain`.

use super::Failure;
use super::client::{AdminOptions, header_argument, method_argument};
use clap::Args;
use http::Method;
use serde_json::json;

/// Asks a running server about a request without making it: route, key and its parts, variant, tier, age, freshness
/// and where it came from, why it was stored or not, surrogate keys, the last purge that matches.
#[derive(Debug, Args)]
pub struct Options {
    /// The URL as a client would ask for it
    #[arg(value_name = "URL")]
    url: String,
    /// A request field; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header_argument)]
    headers: Vec<(String, String)>,
    /// The method
    #[arg(long, value_name = "METHOD", default_value = "GET", value_parser = method_argument)]
    method: Method,
    /// What the request carries, for QUERY and POST that are answered by their content
    #[arg(long, value_name = "TEXT", default_value = "")]
    content: String,
    #[command(flatten)]
    admin: AdminOptions,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let request = json!({"url": options.url, "method": options.method.as_str(), "headers": options.headers, "content": options.content});
    options.admin.post_and_print("/v1/explain", &request)
}
