//! `tiercel check`.

use super::flags::ConfigFlags;
use super::{Failure, print, print_warnings};
use crate::config::{Place, Problem, Problems, Settings};
use clap::Args;
use serde_json::{Value, json};

/// Reads everything that `run` would read and prints every problem: file, line, what was found, what is allowed,
/// what to do. Opens no socket.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    config: ConfigFlags,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let loaded = options.config.load();
    if options.json {
        let result = match &loaded {
            Ok((_, settings)) => json!({"ok": true, "hash": settings.hash, "warnings": settings.warnings, "problems": []}),
            Err(problems) => json!({"ok": false, "problems": as_json(problems)}),
        };
        print(&format!("{result:#}\n"))?;
        return loaded.map(drop).map_err(|_| Failure::Said);
    }
    let (_, settings) = loaded?;
    print_warnings(&settings.warnings);
    print(&summary(&settings))
}

fn summary(settings: &Settings) -> String {
    let routes: usize = settings.sites.iter().map(|site| site.routes.len()).sum();
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let parts = [
        count(settings.listeners.len(), "listener"),
        count(settings.upstreams.len(), "upstream"),
        count(settings.sites.len(), "site"),
        count(routes, "route"),
    ];
    format!("The configuration is fine: {}; hash {}.\n", parts.join(", "), settings.hash)
}

fn as_json(problems: &Problems) -> Vec<Value> {
    problems.iter().map(problem_as_json).collect()
}

fn problem_as_json(problem: &Problem) -> Value {
    let source = match &problem.place {
        Place::Line { file, .. } | Place::File(file) => file.display().to_string(),
        Place::Environment(name) => format!("environment variable {name}"),
        Place::Flag(name) => format!("flag {name}"),
        Place::Nowhere => String::new(),
    };
    json!({
        "path": problem.path,
        "source": source,
        "line": problem.place.line(),
        "column": problem.place.column(),
        "what": problem.what,
        "found": problem.found,
        "allowed": problem.allowed,
        "do": problem.remedy,
    })
}
