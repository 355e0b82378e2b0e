//! Merging the sources and typing the result.
//!
//! Crate `config` merges and does nothing else: its own typing turns words into numbers. The merged
//! tree is typed strictly; what does not fit is reported and taken out until the rest fits, so that
//! one run finds everything.

use super::problem::{Problem, nearest};
use super::raw::RawConfig;
use super::report::{PROBLEMS_MAX, Part, Report, shown};
use super::shape::{Shape, Step, Steps, value_at};
use ::config::{Config, ConfigError, Map, Source, Value as Merged};
use serde_json::{Value, json};
use serde_path_to_error::Segment;

/// The one top-level key of every layer. `config` reads top-level keys as paths, so that a dot in one would split it.
const ROOT: &str = "root";

/// Keys of other servers, and what is meant here.
const SYNONYMS: &[(&str, &str)] = &[
    ("backend", "upstream"),
    ("backends", "upstreams"),
    ("servers", "endpoints"),
    ("listen", "address"),
    ("bind", "address"),
    ("server_name", "hosts"),
    ("host_names", "hosts"),
    ("locations", "routes"),
    ("location", "routes"),
    ("grace", "stale_if_error"),
    ("keep", "keep_stale"),
    ("max_size", "limit"),
    ("capacity", "limit"),
    ("vary_ignore", "vary"),
    ("coalesce", "collapse"),
    ("cookies_heuristic", "heuristic_with_cookie"),
];

#[derive(Debug, Clone)]
struct Layer(Value);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Merged>, ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), to_merged(&self.0))]))
    }
}

fn to_merged(value: &Value) -> Merged {
    use ::config::ValueKind;
    let kind = match value {
        Value::Null => ValueKind::Nil,
        Value::Bool(switch) => ValueKind::Boolean(*switch),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => ValueKind::String(text.clone()),
        Value::Array(items) => ValueKind::Array(items.iter().map(to_merged).collect()),
        Value::Object(table) => ValueKind::Table(table.iter().map(|(key, value)| (key.clone(), to_merged(value))).collect()),
    };
    Merged::new(None, kind)
}

/// Merges layers: later ones win, tables are merged, lists are replaced.
pub fn merge(layers: Vec<Value>, report: &mut Report) -> Value {
    let builder = layers.into_iter().fold(Config::builder(), |builder, layer| builder.add_source(Layer(layer)));
    let merged = builder.build().and_then(Config::try_deserialize::<Value>);
    match merged {
        Ok(mut tree) => tree.get_mut(ROOT).map_or_else(|| json!({}), Value::take),
        Err(error) => {
            report.problem("", format!("the sources cannot be merged: {error}"), "", "", "");
            json!({})
        }
    }
}

/// Types the merged tree.
pub fn typed(mut tree: Value, report: &mut Report) -> RawConfig {
    for _ in 0..PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(&tree) {
            Ok(raw) => return raw,
            Err(error) => error,
        };
        let steps = steps(error.path(), &tree);
        report.push(describe(&steps, &tree, &error.inner().to_string(), report));
        if !take_out(&mut tree, &steps) {
            break;
        }
        report.removed(Steps(&steps).to_string());
    }
    RawConfig::default()
}

/// The path of an error as far as it leads into the tree.
fn steps(path: &serde_path_to_error::Path, tree: &Value) -> Vec<Step> {
    let mut steps = Vec::new();
    for segment in path {
        match segment {
            Segment::Map { key } => steps.push(Step::Key(key.clone())),
            Segment::Seq { index } => steps.push(Step::Index(*index)),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
        if value_at(tree, &steps).is_none() {
            steps.pop();
            break;
        }
    }
    steps
}

fn describe(steps: &[Step], tree: &Value, error: &str, report: &Report) -> Problem {
    let shape = Shape::get();
    let path = Steps(steps).to_string();
    let parent = steps.split_last().and_then(|(last, parent)| Some((last, shape.at(parent)?)));
    if let Some((Step::Key(key), parent)) = parent
        && let Some(keys) = shape.keys(parent)
        && !keys.contains(&key.as_str())
    {
        let synonym = SYNONYMS.iter().find(|(theirs, ours)| theirs == key && keys.contains(ours)).map(|(_, ours)| *ours);
        let remedy = match synonym.or_else(|| nearest(key, keys.iter().copied())) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "remove it".into(),
        };
        let what = format!("unknown key \"{key}\"");
        return Problem { place: report.place(&path, Part::Key), path, what, found: String::new(), allowed: keys.join(", "), remedy };
    }
    let found = value_at(tree, steps).unwrap_or(&Value::Null);
    let node = shape.at(steps);
    let words = node.map(|node| shape.words(node)).unwrap_or_default();
    let what = match (found, node) {
        (Value::String(_), Some(_)) if !words.is_empty() => "not one of the words that may stand here".into(),
        (_, Some(_)) => "wrong type".into(),
        (_, None) => error.to_owned(),
    };
    let allowed = node.map(|node| shape.allowed(node)).unwrap_or_default();
    let remedy = node.map(|node| remedy(found, node, &words)).unwrap_or_default();
    Problem { place: report.place(&path, Part::Value), path, what, found: shown(found), allowed, remedy }
}

fn remedy(found: &Value, node: &Value, words: &[&str]) -> String {
    let shape = Shape::get();
    match found {
        Value::String(text) if !words.is_empty() => {
            nearest(text, words.iter().copied()).map(|word| format!("did you mean \"{word}\"?")).unwrap_or_default()
        }
        Value::String(text) if shape.takes(node, "integer") && text.parse::<u64>().is_ok() => format!("write {text} without quotes"),
        Value::String(text) if shape.takes(node, "boolean") => match text.as_str() {
            "yes" | "on" | "true" | "1" => "write true".into(),
            "no" | "off" | "false" | "0" => "write false".into(),
            _ => String::new(),
        },
        Value::String(_) if shape.takes(node, "array") => format!("write [{}]", shown(found)),
        Value::Number(_) | Value::Bool(_) if shape.takes(node, "string") => format!("write \"{found}\""),
        Value::String(_) | Value::Number(_) if shape.keys(node).is_some_and(|keys| keys.contains(&"default")) => {
            format!("write {{ default = {} }}", shown(found))
        }
        Value::Object(_) if shape.takes(node, "array") => "write a list of tables".into(),
        _ => String::new(),
    }
}

/// Takes the value at these steps out of the tree; an element of a list leaves an empty one, so that the others keep their places.
fn take_out(tree: &mut Value, steps: &[Step]) -> bool {
    let Some((last, parent)) = steps.split_last() else { return false };
    let Some(at) = parent.iter().try_fold(tree, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    }) else {
        return false;
    };
    let shape = Shape::get();
    match (last, at) {
        (Step::Key(key), Value::Object(table)) => table.remove(key).is_some(),
        (Step::Index(index), Value::Array(items)) => {
            let is_table = shape.at(steps).is_some_and(|node| shape.takes(node, "object"));
            items.get_mut(*index).is_some_and(|item| {
                let empty = if is_table { json!({}) } else { json!("") };
                let changes = *item != empty;
                *item = empty;
                changes
            })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_become_numbers_and_all_errors_are_found() {
        let mut report = Report::default();
        let tree = json!({
            "server": {"workers": 2, "lenient_path": "no", "nam": "x"},
            "limits": {"connections": "off"},
            "sites": {"a.b": {"hosts": ["x", 5, "y"], "routes": [{"path": "/", "cash": {}}, 7]}}
        });
        let merged = merge(vec![tree.clone()], &mut report);
        assert_eq!(merged, tree, "merging changes no type and splits no key");
        let raw = typed(merged, &mut report);
        assert_eq!(raw.limits.connections, None);
        assert_eq!(raw.sites["a.b"].routes.len(), 2);
        let problems = report.finish().unwrap_err();
        let mut paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        paths.sort_unstable();
        let mut want = [
            "server.lenient_path",
            "server.nam",
            "limits.connections",
            "sites.\"a.b\".hosts[1]",
            "sites.\"a.b\".routes[0].cash",
            "sites.\"a.b\".routes[1]",
        ];
        want.sort_unstable();
        assert_eq!(paths, want);
    }

    #[test]
    fn later_layers_win_tables_merge_and_lists_are_replaced() {
        let mut report = Report::default();
        let merged = merge(
            vec![json!({"a": {"x": 1, "y": [1, 2, 3]}, "b": {}}), json!({"a": {"y": [4], "z": true}}), json!({"a": {"x": "t"}})],
            &mut report,
        );
        assert_eq!(merged, json!({"a": {"x": "t", "y": [4], "z": true}, "b": {}}));
    }
}
