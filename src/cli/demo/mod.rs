//! `tiercel demo`: a built-in sample origin, Tiercel in front of it, admin beside it; nothing else is needed.

mod origin;

use crate::config::{self, Sources};
use anyhow::Result;
use std::io::Write;
use std::net::SocketAddr;

/// Serves a built-in sample origin with Tiercel in front of it and the admin listener beside it; prints the
/// addresses and things to try; stops on Ctrl-C. Port 0 takes a free one.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address of the proxy.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of the admin API and metrics.
    #[arg(long, default_value = "127.0.0.1:9180")]
    pub admin: SocketAddr,
    /// Address of the sample origin.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub origin: SocketAddr,
}

/// Runs until Ctrl-C or SIGTERM.
pub fn run(options: Options) -> Result<()> {
    let origin = origin::start(options.origin)?;
    let sources = Sources {
        flags: serde_json::json!({
            "listeners": {"http": {"address": options.listen.to_string()}},
            "admin": {"address": options.admin.to_string()},
            // Whoever ends a demo does not want to wait for streams that never end.
            "server": {"drain_timeout": "1s"},
            "upstreams": {"demo": {"endpoints": [format!("http://{origin}")]}},
            "sites": {"demo": {
                "upstream": "demo",
                "purge": {"allow": ["127.0.0.0/8", "::1/128"]},
                "cache": {"stale_if_error": "10m"},
            }},
        }),
        ..Sources::default()
    };
    let settings = config::load(&sources).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    crate::server::serve(sources, settings, |server| {
        let proxy = server.listeners().first().map_or(options.listen, |listener| listener.tcp().unwrap_or(options.listen));
        let text = welcome(proxy, server.admin.unwrap_or(options.admin), origin);
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush()); // nobody may be reading
    })?;
    Ok(())
}

fn welcome(proxy: SocketAddr, admin: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "\
Tiercel demo
  proxy   http://{proxy}/
  admin   http://{admin}/   (metrics at /metrics)
  origin  http://{origin}/  (the sample site itself)

Things to try in another terminal:
  curl -i http://{proxy}/articles/1             # miss, then hit: look at Cache-Status and Age
  curl -i -X PURGE http://{proxy}/articles/1    # purge the URL, then ask again
  tiercel purge --admin http://{admin} --key author-2    # purge by surrogate key
  seq 50 | xargs -P50 -n1 sh -c 'curl -s -o /dev/null http://{proxy}/slow'; curl http://{proxy}/origin/requests
  curl -X POST http://{proxy}/origin/down; curl -i http://{proxy}/flaky    # stale while the origin is down
  curl -X POST http://{proxy}/origin/up
  curl -N http://{proxy}/events                 # server-sent events, never cached, flushed as they come
  curl -i -r 0-99 http://{proxy}/large.bin      # a range of a large file
  tiercel explain --admin http://{admin} http://{proxy}/articles/1

Ctrl-C stops it.
"
    )
}
