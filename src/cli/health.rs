//! `tiercel health`: for probes that run a command, where there is no other HTTP client.

use super::client::{Authority, block_on, send};
use super::{Failure, print};
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use std::time::Duration;

/// Where the probes are by default: the read-only listener, else the admin listener.
const DEFAULTS: [&str; 2] = ["http://127.0.0.1:9181", "http://127.0.0.1:9180"];
/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is looked at.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Asks the metrics or admin listener of a running server whether it is ready; for health checks of containers.
#[derive(Debug, Args)]
pub struct Options {
    /// What to ask; /readyz where it has no path [default: http://127.0.0.1:9181, else http://127.0.0.1:9180]
    #[arg(value_name = "URL")]
    url: Option<String>,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let Some(url) = options.url else {
        // Refused there: asked elsewhere. An answer of any kind counts.
        let first = ask(DEFAULTS[0], &Authority::parse(DEFAULTS[0])?);
        let unreached = matches!(&first, Err(Failure::Runtime(error)) if error.root_cause().is::<std::io::Error>());
        return if unreached { ask(DEFAULTS[1], &Authority::parse(DEFAULTS[1])?) } else { first };
    };
    let authority = Authority::parse(&url).map_err(|error| Failure::Usage(format!("{error:#}")))?;
    ask(&url, &authority)
}

fn ask(url: &str, authority: &Authority) -> Result<(), Failure> {
    let request = Request::get(path(url)).header(header::HOST, &authority.text).header(header::CONNECTION, "close");
    let request = request.body(Full::new(Bytes::new())).context("the request cannot be made")?;
    block_on(async {
        let exchange = async {
            let answer = send(authority, request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| anyhow!("the answer ended early: {error}"))?.to_bytes();
            if !status.is_success() {
                bail!("not ready: {status}: {}", String::from_utf8_lossy(&body).trim().escape_debug());
            }
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| anyhow!("no answer from {url} within {TIMEOUT:?}"))?
    })?;
    print("ready\n")
}

/// The path of a URL that [`Authority`] could read.
fn path(url: &str) -> String {
    let uri = if url.contains("://") { url.parse::<Uri>() } else { format!("http://{url}").parse() };
    let path = uri.ok().and_then(|uri| Some(uri.path_and_query()?.as_str().to_owned()));
    path.filter(|path| path != "/").unwrap_or_else(|| "/readyz".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_path_is_asked_for_readiness() {
        assert_eq!(path("http://127.0.0.1:9181"), "/readyz");
        assert_eq!(path("127.0.0.1:9181/"), "/readyz");
        assert_eq!(path("http://a:1/healthz?x"), "/healthz?x");
    }
}
