//! Edits of fields, and rewriting of path and query.

use super::matching::regex;
use crate::config::raw::{RawEdits, RawFieldValues, RawRewrite};
use crate::config::report::{Report, shown};
use crate::config::settings::{FieldEdit, Rewrite};
use crate::config::shape::join;
use crate::semantics::fields::{is_token_byte, is_value_byte};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Fields that frame messages or belong to one connection: they are not for editing.
const FRAMING: &[&str] =
    &["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Edits of all levels so far, as one level would have written them.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    remove: BTreeSet<String>,
    set: BTreeMap<String, String>,
    add: Vec<(String, String)>,
}

impl Edits {
    /// Takes the edits of a level inside those so far: they come later, so what they remove or set is void outside.
    pub fn apply(&mut self, path: &str, raw: &RawEdits, is_request: bool, report: &mut Report) {
        for (index, name) in raw.remove.iter().enumerate() {
            let Some(name) = field_name(&join(path, &format!("remove[{index}]")).replace('"', ""), name, is_request, report) else {
                continue;
            };
            self.forget(&name);
            self.remove.insert(name);
        }
        for (name, value) in &raw.set {
            let at = join(&join(path, "set"), name);
            let (Some(name), Some(value)) = (field_name(&at, name, is_request, report), field_value(&at, value, report)) else { continue };
            self.forget(&name);
            self.set.insert(name, value);
        }
        for (name, values) in &raw.add {
            let at = join(&join(path, "add"), name);
            let Some(name) = field_name(&at, name, is_request, report) else { continue };
            self.add.extend(field_values(&at, values, report).into_iter().map(|value| (name.clone(), value)));
        }
    }

    fn forget(&mut self, name: &str) {
        self.remove.remove(name);
        self.set.remove(name);
        self.add.retain(|(added, _)| added != name);
    }

    /// In the order in which they are carried out.
    pub fn finish(&self) -> Vec<FieldEdit> {
        let remove = self.remove.iter().map(|name| FieldEdit::Remove { name: name.clone() });
        let set = self.set.iter().map(|(name, value)| FieldEdit::Set { name: name.clone(), value: value.clone() });
        let add = self.add.iter().map(|(name, value)| FieldEdit::Add { name: name.clone(), value: value.clone() });
        remove.chain(set).chain(add).collect()
    }
}

pub fn field_name(path: &str, name: &str, is_request: bool, report: &mut Report) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if lower.is_empty() || !lower.bytes().all(is_token_byte) {
        report.wrong_name(path, "not a field name", name, "letters, digits and -", "write for example \"x-frame-options\"");
        return None;
    }
    if is_request && lower == "host" {
        report.wrong_name(path, "Host is not for editing", name, "", "write host = \"preserve\", \"upstream\" or a literal host");
        return None;
    }
    if FRAMING.contains(&lower.as_str()) {
        let allowed = format!("any but {}", FRAMING.join(", "));
        report.wrong_name(path, "a field that frames messages is not for editing", name, &allowed, "remove it");
        return None;
    }
    Some(lower)
}

fn field_value(path: &str, value: &str, report: &mut Report) -> Option<String> {
    if value.bytes().all(is_value_byte) {
        return Some(value.trim().to_owned());
    }
    report.problem(path, "not a field value", format!("{value:?}"), "text without line breaks and control characters", "remove them");
    None
}

fn field_values(path: &str, raw: &RawFieldValues, report: &mut Report) -> Vec<String> {
    let texts: Option<Vec<&str>> = match &raw.0 {
        Value::String(text) => Some(vec![text]),
        Value::Array(items) => items.iter().map(Value::as_str).collect(),
        _ => None,
    };
    if texts.is_none() {
        report.problem(path, "wrong type", shown(&raw.0), "text, or a list of texts", "write \"value\" or [\"first\", \"second\"]");
    }
    texts.unwrap_or_default().into_iter().filter_map(|text| field_value(path, text, report)).collect()
}

/// One step as written; `set_query` may make several.
pub fn rewrite(at: &str, raw: &RawRewrite, report: &mut Report) -> Vec<Rewrite> {
    let forms =
        [raw.strip_prefix.is_some(), raw.add_prefix.is_some(), raw.pattern.is_some(), raw.drop_query.is_some(), raw.set_query.is_some()];
    if forms.iter().filter(|given| **given).count() != 1 || raw.pattern.is_some() != raw.with.is_some() {
        let allowed = "one of strip_prefix, add_prefix, pattern and with, drop_query, set_query";
        report.problem(at, "not one step", "", allowed, "write one table per step, pattern and with together");
        return Vec::new();
    }
    for (key, prefix) in [("strip_prefix", &raw.strip_prefix), ("add_prefix", &raw.add_prefix)] {
        if let Some(prefix) = prefix
            && (!prefix.starts_with('/') || prefix.contains(['?', '#', ' ']))
        {
            report.problem(
                &join(at, key),
                "not a path",
                format!("\"{prefix}\""),
                "a path that begins with /",
                format!("write \"/{}\"", prefix.trim_start_matches('/')),
            );
        }
    }
    let pattern = raw.pattern.as_deref().and_then(|pattern| regex(&join(at, "pattern"), pattern, report));
    let replace = pattern.map(|pattern| Rewrite::Replace { pattern, with: raw.with.clone().unwrap_or_default() });
    let one = raw.strip_prefix.clone().map(Rewrite::StripPrefix).or(raw.add_prefix.clone().map(Rewrite::AddPrefix)).or(replace);
    let one = one.or(raw.drop_query.clone().map(Rewrite::DropQuery));
    let set = raw.set_query.iter().flatten().map(|(name, value)| Rewrite::SetQuery { name: name.clone(), value: value.clone() });
    one.into_iter().chain(set).collect()
}
