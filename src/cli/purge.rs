//! `tiercel purge`.

use super::Failure;
use super::client::AdminOptions;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Value, json};

/// Invalidates stored responses. Several selectors may be given; each is one purge of its own.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("selector").required(true).multiple(true).args(["urls", "key", "prefix", "host", "site", "group", "everything"]))]
pub struct Options {
    /// URLs: everything stored for them, all variants
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// Everything with this surrogate key; may be repeated
    #[arg(short, long, value_name = "KEY")]
    key: Vec<String>,
    /// Everything whose URL begins so, for example http://shop.example/assets/; may be repeated
    #[arg(long, value_name = "URL")]
    prefix: Vec<String>,
    /// Everything of this host; may be repeated
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// Everything of this site of the configuration; may be repeated
    #[arg(long, value_name = "SITE")]
    site: Vec<String>,
    /// Everything of this cache group (RFC 9875) of an origin; may be repeated
    #[arg(long, num_args = 2, value_names = ["ORIGIN", "GROUP"])]
    group: Vec<String>,
    /// Everything
    #[arg(long)]
    everything: bool,
    /// Mark as stale instead of making unusable
    #[arg(long)]
    soft: bool,
    /// What to wait for
    #[arg(long, value_name = "WHOM")]
    wait: Option<Wait>,
    #[command(flatten)]
    admin: AdminOptions,
}

/// What a purge waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Nothing
    None,
    /// This node
    Local,
    /// All nodes of the fleet
    Fleet,
}

pub fn run(options: Options) -> Result<(), Failure> {
    options.admin.post_and_print("/v1/purge", &body(&options))
}

fn body(options: &Options) -> Value {
    let groups: Vec<Value> = options.group.chunks_exact(2).map(|pair| json!({"origin": pair[0], "group": pair[1]})).collect();
    let mut body = json!({
        "urls": options.urls,
        "tags": options.key,
        "groups": groups,
        "prefixes": options.prefix,
        "hosts": options.host,
        "sites": options.site,
        "everything": options.everything,
        "mode": if options.soft { "soft" } else { "hard" },
    });
    if let Some(wait) = options.wait {
        body["wait"] = json!(match wait {
            Wait::None => "none",
            Wait::Local => "local",
            Wait::Fleet => "fleet",
        });
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Purge {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Option<Value> {
        Purge::try_parse_from(["purge"].iter().chain(arguments)).ok().map(|purge| body(&purge.options))
    }

    #[test]
    fn arguments_become_selectors() {
        let all = parse(&[
            "http://a/b",
            "--key",
            "k1",
            "--key",
            "k2",
            "--group",
            "http://a",
            "g",
            "--prefix",
            "http://a/c",
            "--soft",
            "--wait",
            "local",
        ]);
        let want = json!({
            "urls": ["http://a/b"], "tags": ["k1", "k2"], "groups": [{"origin": "http://a", "group": "g"}], "prefixes": ["http://a/c"],
            "hosts": [], "sites": [], "everything": false, "mode": "soft", "wait": "local",
        });
        assert_eq!(all, Some(want));
        assert_eq!(parse(&["--everything"]).map(|body| body["mode"].clone()), Some(json!("hard")));
        assert_eq!(parse(&[]), None, "a purge of nothing is a mistake");
        assert_eq!(parse(&["--group", "http://a"]), None);
    }
}
