//! Configuration: [`raw`] as written, `resolve` into [`settings`] as used. Only `resolve` applies defaults.
//!
//! Sources are merged in the order defaults, files, environment, flags. Everything that is wrong is
//! found in one go ([`Problems`]), each with its place and a remedy. Start reading at [`load`].

mod changes;
mod files;
mod machine;
mod print;
mod problem;
pub mod raw;
mod report;
mod resolve;
pub mod settings;
mod shape;
mod typing;
pub mod units;
mod variables;

pub use changes::changes;
pub use print::{effective, policy_hash};
pub use problem::{Place, Problem, Problems};
pub use settings::Settings;
pub use shape::schema;

use report::{Origin, Report};
use serde_json::{Value, json};
use shape::{Step, Steps};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Name of the upstream that `--upstream` makes, and of the site that leads to it.
pub const DEFAULT: &str = "default";

/// Where a configuration comes from. Kept for reloads, which read the files again.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// The whole environment: `TIERCEL__...` overrides, the rest is for `${VAR}`.
    pub env: Vec<(String, String)>,
    /// What the command line says, as a tree of the same keys as a file.
    pub flags: Value,
}

impl Sources {
    /// A file, if any, under the environment of this process.
    pub fn new(file: Option<PathBuf>, flags: Value) -> Self {
        let env = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
        Self { file, env, flags }
    }
}

/// Which flag stands for which keys: for places in problems.
const FLAGS: &[(&str, &str)] = &[
    ("upstreams.", "--upstream"),
    ("listeners.", "--listen"),
    ("admin.address", "--admin"),
    ("memory.limit", "--memory"),
    ("server.workers", "--workers"),
    ("server.name", "--name"),
    ("log.access.target", "--access-log"),
    ("metrics.address", "--metrics"),
];

/// What helps who named a site that does not exist: the nearest names, or some of them all.
pub fn site_remedy(name: &str, sites: &[Arc<settings::Site>]) -> String {
    const SHOWN_MAX: usize = 10;
    let names = || sites.iter().map(|site| site.name.as_str());
    let shown = names().take(SHOWN_MAX).collect::<Vec<_>>().join(", ");
    let more = if sites.len() > SHOWN_MAX { format!(" and {} more", sites.len() - SHOWN_MAX) } else { String::new() };
    match problem::nearest(name, names()) {
        Some(nearest) => format!("did you mean `{nearest}`? The sites are: {shown}{more}"),
        None => format!("the sites are: {shown}{more}"),
    }
}

/// Reads, merges, types and resolves. Needs no network; may be called again for a reload.
pub fn load(sources: &Sources) -> Result<Settings, Problems> {
    let mut report = Report::default();
    let environment: HashMap<&str, &str> = sources.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let read = sources.file.as_deref().map_or(Some(Vec::new()), |file| files::read(file, &environment, &mut report));
    let Some(mut layers) = read else { return Err(report.into_problems()) };
    let written = typing::merge(layers.clone(), &mut report);
    layers.push(variables::overrides(&sources.env, &written, &mut report));
    layers.push(flags(&sources.flags, &written, &mut report));
    let tree = typing::merge(layers, &mut report);
    let raw = typing::typed(tree, &mut report);
    let mut settings = resolve::resolve(&raw, &mut report);
    settings.warnings = report.finish()?;
    settings.hash = print::hash(&settings);
    Ok(settings)
}

/// The flags' tree; `--upstream` also leads the default site to its upstream, whatever that site is called.
fn flags(flags: &Value, written: &Value, report: &mut Report) -> Value {
    let mut tree = if flags.is_object() { flags.clone() } else { json!({}) };
    if tree.pointer("/upstreams/default").is_some() {
        let sites = written.get("sites").and_then(Value::as_object).into_iter().flatten();
        let is_default = |site: &Value| site.get("hosts").and_then(Value::as_array).is_none_or(Vec::is_empty);
        let default = sites.filter(|(_, site)| is_default(site)).map(|(name, _)| name.clone()).next();
        let site = default.unwrap_or_else(|| DEFAULT.to_owned());
        shape::set_at(&mut tree, &["sites".into(), site, "upstream".into()], json!(DEFAULT));
    }
    flag_origins(&tree, &mut Vec::new(), report);
    tree
}

fn flag_origins(value: &Value, steps: &mut Vec<Step>, report: &mut Report) {
    let children: Vec<(Step, &Value)> = match value {
        Value::Object(table) => table.iter().map(|(key, value)| (Step::Key(key.clone()), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (Step::Index(index), value)).collect(),
        _ => Vec::new(),
    };
    let path = Steps(steps).to_string();
    if !value.is_object() {
        let flag = FLAGS.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or("--upstream", |(_, flag)| flag);
        report.forget_elements(&path);
        report.set_origin(path, Origin::Flag(flag.to_owned()));
    }
    for (step, child) in children {
        steps.push(step);
        flag_origins(child, steps, report);
        steps.pop();
    }
}
