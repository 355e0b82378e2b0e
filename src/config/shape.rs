//! The JSON Schema of the raw types, and questions to it: which keys, which type, what is allowed.

use super::problem::either;
use super::raw::RawConfig;
use serde_json::{Map, Value, json};
use std::fmt;
use std::sync::OnceLock;

/// One step into a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// Steps as they are printed: `sites.shop.routes[2].path`; keys that are not bare are quoted.
pub struct Steps<'a>(pub &'a [Step]);

impl fmt::Display for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => write!(f, "{}", bare(key))?,
                Step::Key(key) => write!(f, ".{}", bare(key))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// `path.key`, quoted where the key needs it.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { bare(key) } else { format!("{path}.{}", bare(key)) }
}

fn bare(key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if plain { key.to_owned() } else { format!("\"{}\"", key.escape_default()) }
}

/// The value at a place of a tree.
pub fn value_at<'a>(tree: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(tree, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

/// Sets a value in a tree of tables, making those that are missing.
pub fn set_at(tree: &mut Value, keys: &[String], value: Value) {
    let mut at = tree;
    for key in keys {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key.as_str()];
    }
    *at = value;
}

/// The schema.
#[derive(Debug)]
pub struct Shape {
    root: Value,
}

impl Shape {
    /// The one schema of this program.
    pub fn get() -> &'static Self {
        static SHAPE: OnceLock<Shape> = OnceLock::new();
        SHAPE.get_or_init(|| Self { root: schema() })
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    /// What a node refers to, or the node.
    pub fn follow<'a>(&'a self, node: &'a Value) -> &'a Value {
        let target = node.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"));
        target.and_then(|name| self.root["$defs"].get(name)).unwrap_or(node)
    }

    /// The node one step further; `None` where the schema knows nothing there.
    pub fn child<'a>(&'a self, node: &'a Value, step: &Step) -> Option<&'a Value> {
        let node = self.follow(node);
        match step {
            Step::Key(key) => node["properties"].get(key).or_else(|| node.get("additionalProperties").filter(|more| more.is_object())),
            Step::Index(_) => node.get("items"),
        }
    }

    pub fn at(&self, steps: &[Step]) -> Option<&Value> {
        steps.iter().try_fold(&self.root, |node, step| self.child(node, step))
    }

    /// The keys that a table of this kind knows; `None` where keys are free (names) or it is no table.
    pub fn keys<'a>(&'a self, node: &'a Value) -> Option<Vec<&'a str>> {
        let node = self.follow(node);
        let closed = node.get("additionalProperties") == Some(&Value::Bool(false));
        let properties = node.get("properties").and_then(Value::as_object).filter(|_| closed)?;
        Some(properties.keys().map(String::as_str).collect())
    }

    /// Whether a value of this JSON type may stand here.
    pub fn takes(&self, node: &Value, json_type: &str) -> bool {
        let node = self.follow(node);
        let alternatives = node.get("oneOf").and_then(Value::as_array);
        let is_among = |types: &Value| types.as_array().is_some_and(|types| types.iter().any(|one| one == json_type));
        node["type"] == json_type
            || is_among(&node["type"])
            || alternatives.is_some_and(|all| all.iter().any(|one| self.takes(one, json_type)))
    }

    /// The words that may stand here, where it is a choice of words.
    pub fn words<'a>(&'a self, node: &'a Value) -> Vec<&'a str> {
        let node = self.follow(node);
        let listed = node.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let alternatives = node.get("oneOf").and_then(Value::as_array).into_iter().flatten().flat_map(|one| self.words(one));
        listed.chain(node.get("const").and_then(Value::as_str)).chain(alternatives).collect()
    }

    /// What may stand here, in words.
    pub fn allowed(&self, node: &Value) -> String {
        let words = self.words(node);
        let node = self.follow(node);
        if !words.is_empty() {
            return either(words);
        }
        match node["type"].as_str() {
            Some("integer") => "a whole number, 0 or more".into(),
            Some("boolean") => "true or false".into(),
            Some("string") => "text in quotes".into(),
            Some("array") => format!("a list of: {}", self.allowed(&node["items"])),
            Some("object") => match self.keys(node) {
                Some(keys) => format!("a table with the keys {}", keys.join(", ")),
                None => "a table of names".into(),
            },
            _ => node["description"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Text from the environment as the type that the schema has here; text that does not fit stays text.
    pub fn coerce(&self, node: Option<&Value>, text: &str) -> Value {
        let plain = Value::String(text.to_owned());
        let Some(node) = node else { return plain };
        let trimmed = text.trim();
        if self.takes(node, "integer")
            && let Ok(number) = trimmed.parse::<i64>()
        {
            return json!(number);
        }
        if self.takes(node, "boolean")
            && let Ok(switch) = trimmed.parse::<bool>()
        {
            return json!(switch);
        }
        let structured = self.takes(node, "array") && trimmed.starts_with('[') || self.takes(node, "object") && trimmed.starts_with('{');
        if structured && let Ok(table) = toml::from_str::<Value>(&format!("value = {trimmed}")) {
            return table["value"].clone();
        }
        if self.takes(node, "array") && !self.takes(node, "string") {
            let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
            return items.map(|item| Value::String(item.to_owned())).collect();
        }
        plain
    }
}

/// JSON Schema of the configuration (draft 2020-12).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(RawConfig).to_value();
    schema["title"] = json!("Tiercel configuration");
    tidy(&mut schema);
    schema
}

/// An absent key is absent: no `null`, neither as a type nor as a default.
fn tidy(node: &mut Value) {
    match node {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(table) => {
            table.remove("default");
            if let Some(Value::Array(types)) = table.get("type").cloned()
                && let [one] = types.into_iter().filter(|name| name != "null").collect::<Vec<_>>().as_slice()
            {
                table.insert("type".into(), one.clone());
            }
            if let Some(Value::Array(alternatives)) = table.get("anyOf").cloned()
                && let [Value::Object(one)] = alternatives.into_iter().filter(|one| one["type"] != "null").collect::<Vec<_>>().as_slice()
            {
                table.remove("anyOf");
                one.iter().for_each(|(key, value)| drop(table.insert(key.clone(), value.clone())));
            }
            for (key, value) in table.iter_mut() {
                match (key.as_str(), value) {
                    ("properties" | "$defs", Value::Object(named)) => named.values_mut().for_each(tidy),
                    (_, value) => tidy(value),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &[&str]) -> &'static Value {
        let steps: Vec<Step> = path.iter().map(|key| key.parse().map_or_else(|_| Step::Key((*key).into()), Step::Index)).collect();
        Shape::get().at(&steps).unwrap()
    }

    #[test]
    fn the_schema_knows_types_keys_and_words() {
        let shape = Shape::get();
        assert!(shape.takes(node(&["server", "workers"]), "integer"));
        assert!(shape.takes(node(&["cache", "collapse"]), "boolean"));
        assert!(shape.takes(node(&["sites", "any", "routes", "0", "methods"]), "array"));
        assert_eq!(shape.words(node(&["server", "runtime"])), ["per_core", "shared"]);
        assert_eq!(shape.words(node(&["cache", "set_cookie"])), ["bypass", "store", "strip"]);
        assert!(shape.keys(node(&["cache", "ttl"])).unwrap().contains(&"override"));
        assert_eq!(shape.keys(node(&["sites"])), None);
        assert!(!schema().to_string().contains("null"), "absent keys are absent");
    }

    #[test]
    fn text_of_the_environment_becomes_what_the_key_takes() {
        let shape = Shape::get();
        assert_eq!(shape.coerce(Some(node(&["server", "workers"])), "4"), json!(4));
        assert_eq!(shape.coerce(Some(node(&["server", "workers"])), "auto"), json!("auto"));
        assert_eq!(shape.coerce(Some(node(&["server", "name"])), "4"), json!("4"));
        assert_eq!(shape.coerce(Some(node(&["cache", "collapse"])), "false"), json!(false));
        assert_eq!(shape.coerce(Some(node(&["cache", "collapse"])), "no"), json!("no"));
        assert_eq!(shape.coerce(Some(node(&["server", "trusted_proxies"])), "10.0.0.0/8, ::1"), json!(["10.0.0.0/8", "::1"]));
        assert_eq!(shape.coerce(Some(node(&["cache", "ttl", "default"])), "{ \"4xx\" = \"1s\" }"), json!({"4xx": "1s"}));
        assert_eq!(shape.coerce(Some(node(&["cache", "ttl", "default"])), "1h"), json!("1h"));
    }

    #[test]
    fn paths_quote_what_is_not_bare() {
        let steps =
            [Step::Key("sites".into()), Step::Key("a.b".into()), Step::Key("routes".into()), Step::Index(2), Step::Key("path".into())];
        assert_eq!(Steps(&steps).to_string(), "sites.\"a.b\".routes[2].path");
        assert_eq!(join("", "sites"), "sites");
    }
}
