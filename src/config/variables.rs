//! The environment: `${VAR}` in values of files, and `TIERCEL__SECTION__KEY` over them.

use super::report::{Origin, Report};
use super::shape::{Shape, Step, Steps, set_at};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What the names of overriding variables begin with.
const PREFIX: &str = "TIERCEL__";

/// Replaces `${VAR}`, `${VAR:-default}` and `$$` in every text of a file.
pub fn fill(tree: &mut Value, environment: &HashMap<&str, &str>, report: &mut Report) {
    fill_at(tree, environment, &mut Vec::new(), report);
}

fn fill_at(value: &mut Value, environment: &HashMap<&str, &str>, steps: &mut Vec<Step>, report: &mut Report) {
    match value {
        Value::String(text) if text.contains('$') => match expand(text, environment) {
            Ok(filled) if filled == *text => {}
            Ok(filled) => *value = Shape::get().coerce(Shape::get().at(steps), &filled),
            Err(problem) => {
                let path = Steps(steps).to_string();
                let (what, remedy) = problem.explain();
                report.problem(&path, what, format!("\"{text}\""), "${VAR}, ${VAR:-default}, or $$ for a dollar sign", remedy);
                report.removed(path);
            }
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                steps.push(Step::Index(index));
                fill_at(item, environment, steps, report);
                steps.pop();
            }
        }
        Value::Object(table) => {
            for (key, item) in table.iter_mut() {
                steps.push(Step::Key(key.clone()));
                fill_at(item, environment, steps, report);
                steps.pop();
            }
        }
        _ => {}
    }
}

#[derive(Debug, PartialEq, Eq)]
enum ExpandError {
    Unset(String),
    Malformed,
}

impl ExpandError {
    fn explain(&self) -> (String, String) {
        match self {
            Self::Unset(name) => {
                (format!("environment variable {name} is not set"), format!("set {name}, or write a default: ${{{name}:-value}}"))
            }
            Self::Malformed => ("a malformed reference to the environment".into(), "close the brace, or write $$ for a dollar sign".into()),
        }
    }
}

/// A dollar sign before anything but `{` and `$` stands for itself, so that regular expressions stay readable.
fn expand(text: &str, environment: &HashMap<&str, &str>) -> Result<String, ExpandError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            filled.push('$');
            rest = after;
        } else if let Some(reference) = rest.strip_prefix('{') {
            let (reference, after) = reference.split_once('}').ok_or(ExpandError::Malformed)?;
            filled.push_str(look_up(reference, environment)?);
            rest = after;
        } else {
            filled.push('$');
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// `VAR` or `VAR:-default`; as in a shell, an empty variable takes the default, too.
fn look_up<'a>(reference: &'a str, environment: &HashMap<&str, &'a str>) -> Result<&'a str, ExpandError> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(ExpandError::Malformed);
    }
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default),
        (None, None) => Err(ExpandError::Unset(name.to_owned())),
    }
}

/// The tree that `TIERCEL__...` variables make. `merged` is what the files say: names in it are found without case.
pub fn overrides(environment: &[(String, String)], merged: &Value, report: &mut Report) -> Value {
    let mut tree = Value::Object(Map::new());
    let mut variables: Vec<_> = environment.iter().filter_map(|(name, value)| Some((name, name.strip_prefix(PREFIX)?, value))).collect();
    variables.sort();
    for (name, spelled, value) in variables {
        let keys = canonical(spelled, merged);
        let steps: Vec<Step> = keys.iter().cloned().map(Step::Key).collect();
        let path = Steps(&steps).to_string();
        let node = Shape::get().at(&steps);
        report.forget_elements(&path);
        report.set_origin(path.clone(), Origin::Environment(name.clone()));
        if let Some(list) = (1..steps.len()).find(|n| Shape::get().at(&steps[..*n]).is_some_and(|node| Shape::get().takes(node, "array"))) {
            let whole = format!("{PREFIX}{}", keys[..list].join("__").to_uppercase());
            report.problem(&path, "an element of a list cannot be set by itself", "", "", format!("set the whole list: {whole}='[...]'"));
            continue;
        }
        set_at(&mut tree, &keys, Shape::get().coerce(node, value));
    }
    tree
}

/// `SITES__SHOP__CACHE` as the keys that the schema and the files spell.
fn canonical(spelled: &str, merged: &Value) -> Vec<String> {
    let shape = Shape::get();
    let (mut node, mut value) = (Some(shape.root()), Some(merged));
    let mut keys = Vec::new();
    for part in spelled.split("__") {
        let known = node.and_then(|node| shape.keys(node)).unwrap_or_default();
        let written = value.and_then(Value::as_object).into_iter().flat_map(|table| table.keys().map(String::as_str));
        let key = known.into_iter().chain(written).find(|key| key.eq_ignore_ascii_case(part));
        let key = key.map_or_else(|| part.to_ascii_lowercase(), str::to_owned);
        node = node.and_then(|node| shape.child(node, &Step::Key(key.clone())));
        value = value.and_then(|value| value.get(&key));
        keys.push(key);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_filled_in() {
        let environment = HashMap::from([("A", "one"), ("EMPTY", "")]);
        for (text, want) in [
            ("${A}", "one"),
            ("x${A}y${A}", "xoneyone"),
            ("${B:-two}", "two"),
            ("${EMPTY:-three}", "three"),
            ("${EMPTY}", ""),
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("\\.css$", "\\.css$"),
            ("$1", "$1"),
        ] {
            assert_eq!(expand(text, &environment).as_deref(), Ok(want), "{text}");
        }
        assert_eq!(expand("${B}", &environment), Err(ExpandError::Unset("B".into())));
        for bad in ["${A", "${}", "${a b}", "${:-x}"] {
            assert_eq!(expand(bad, &environment), Err(ExpandError::Malformed), "{bad}");
        }
    }

    #[test]
    fn names_of_the_environment_are_found_without_case() {
        let merged = serde_json::json!({"sites": {"Shop": {}}});
        assert_eq!(canonical("SITES__SHOP__CACHE__STALE_IF_ERROR", &merged), ["sites", "Shop", "cache", "stale_if_error"]);
        assert_eq!(canonical("NOTHING__LIKE_IT", &merged), ["nothing", "like_it"]);
    }

    proptest! {
        #[test]
        fn text_without_a_dollar_is_itself_and_none_panics(text in "\\PC{0,40}") {
            let filled = expand(&text, &HashMap::new());
            if !text.contains('$') {
                prop_assert_eq!(filled, Ok(text));
            }
        }
    }
}
