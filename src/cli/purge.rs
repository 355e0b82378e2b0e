//! `tiercel purge`.

use super::Failure;
use super::client::AdminOptions;
use anyhow::anyhow;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};

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
    /// Do not ask before purging a prefix, a host, a site or everything; it is asked on a terminal only
    #[arg(short, long)]
    yes: bool,
    /// What to wait for; with `fleet` the exit code is 3 where a node may still serve what was purged
    #[arg(long, value_name = "WHOM")]
    wait: Option<Wait>,
    /// How long to wait for the fleet, for example 2s [default: as long as a node that does not answer can take]
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    #[command(flatten)]
    admin: AdminOptions,
}

/// What a purge waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Nothing more: here a purge is in force before it is answered
    None,
    /// This node
    Local,
    /// All nodes of the fleet
    Fleet,
}

pub fn run(mut options: Options) -> Result<(), Failure> {
    let wide = wide(&options);
    if !wide.is_empty() && !options.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        match ask(&wide, options.soft)? {
            Choice::AsOrdered => {}
            Choice::Soft => options.soft = true,
            Choice::Nothing => return Err(Failure::Runtime(anyhow!("nothing was purged"))),
        }
    }
    let answer = options.admin.post("/v1/purge", &body(&options))?;
    options.admin.print(&answer)?;
    let is_complete = answer["complete"] == true || options.wait != Some(Wait::Fleet);
    if is_complete { Ok(()) } else { Err(Failure::Incomplete) }
}

/// What may hit so much that the origin feels it, in words.
fn wide(options: &Options) -> Vec<String> {
    let named = |kind: &str, texts: &[String]| texts.iter().map(|text| format!("{kind} {text}")).collect::<Vec<_>>();
    let mut wide = named("prefix", &options.prefix);
    wide.extend(named("host", &options.host));
    wide.extend(named("site", &options.site));
    if options.everything {
        wide.push("everything".into());
    }
    wide
}

/// What is done after asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    AsOrdered,
    /// Marked as stale, though the order was to make unusable.
    Soft,
    Nothing,
}

/// Asks until there is an answer; the end of the input is a no.
fn ask(wide: &[String], soft: bool) -> Result<Choice, Failure> {
    let (mut terminal, wide) = (std::io::stderr(), wide.join(", "));
    let question = if soft {
        format!("This marks as stale: {wide}.\nThe origin is asked again for each of it that is wanted. Go on? [y]es, [N]o: ")
    } else {
        format!(
            "This makes unusable at once: {wide}.\nThe origin has to send again whatever is wanted of it. Marked as stale instead (--soft) it can still \
             answer while the origin is asked.\nPurge? [s]oft, [h]ard, [N]o: "
        )
    };
    loop {
        terminal.write_all(question.as_bytes()).map_err(anyhow::Error::from)?;
        terminal.flush().map_err(anyhow::Error::from)?;
        let mut line = String::new();
        let ended = std::io::stdin().read_line(&mut line).map_err(anyhow::Error::from)? == 0;
        if let Some(choice) = choice(&line, soft) {
            return Ok(choice);
        }
        if ended {
            return Ok(Choice::Nothing);
        }
    }
}

/// What an answer means; `None` where it is none.
fn choice(answer: &str, soft: bool) -> Option<Choice> {
    match (answer.trim().to_ascii_lowercase().as_str(), soft) {
        ("" | "n" | "no", _) => Some(Choice::Nothing),
        ("y" | "yes", true) | ("h" | "hard", false) => Some(Choice::AsOrdered),
        ("s" | "soft", _) => Some(Choice::Soft),
        _ => None,
    }
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
    if let Some(timeout) = &options.timeout {
        body["timeout"] = json!(timeout);
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
    fn only_a_plain_answer_is_one() {
        for (answer, hard, soft) in [
            ("", Some(Choice::Nothing), Some(Choice::Nothing)),
            ("No\n", Some(Choice::Nothing), Some(Choice::Nothing)),
            ("s\n", Some(Choice::Soft), Some(Choice::Soft)),
            (" HARD \n", Some(Choice::AsOrdered), None),
            ("y\n", None, Some(Choice::AsOrdered)),
            ("yess\n", None, None),
        ] {
            assert_eq!((choice(answer, false), choice(answer, true)), (hard, soft), "{answer:?}");
        }
    }

    #[test]
    fn what_may_hit_much_is_wide() {
        let options = |arguments: &[&str]| Purge::try_parse_from(["purge"].iter().chain(arguments)).unwrap().options;
        assert!(wide(&options(&["http://a/b", "--key", "k", "--group", "http://a", "g"])).is_empty());
        let all = ["--prefix", "http://a/", "--host", "a", "--site", "s", "--everything"];
        assert_eq!(wide(&options(&all)), ["prefix http://a/", "host a", "site s", "everything"]);
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
