//! Where every value came from, and what was found wrong on the way.

use super::problem::{Place, Problem, Problems};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Problems that are reported at most; what is wrong beyond is found in the next run.
pub const PROBLEMS_MAX: usize = 200;

/// Characters of a found value that are shown.
const FOUND_MAX: usize = 80;

/// Where a value was written.
#[derive(Debug, Clone)]
pub enum Origin {
    File {
        file: usize,
        key: Option<Range<usize>>,
        value: Range<usize>,
    },
    /// A file whose format gives no positions.
    FileOnly(usize),
    Environment(String),
    Flag(String),
}

/// Which part of `key = value` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Key,
    Value,
}

/// What has been read and what was wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    files: Vec<(PathBuf, String)>,
    origins: HashMap<String, Origin>,
    problems: Vec<Problem>,
    /// Paths whose values were taken out after a problem: nothing else is said about them.
    removed: HashSet<String>,
    pub warnings: Vec<String>,
}

impl Report {
    /// Remembers the text of a file for excerpts; returns its number.
    pub fn add_file(&mut self, path: &Path, text: String) -> usize {
        self.files.push((path.to_owned(), text));
        self.files.len() - 1
    }

    /// A byte of a file.
    pub fn byte(&self, file: usize, at: usize) -> Option<u8> {
        self.files[file].1.as_bytes().get(at).copied()
    }

    /// A later source has set this path.
    pub fn set_origin(&mut self, path: String, origin: Origin) {
        self.origins.insert(path, origin);
    }

    /// A later source has replaced the list here: what was known of its elements is void.
    pub fn forget_elements(&mut self, path: &str) {
        self.origins.retain(|known, _| !known.strip_prefix(path).is_some_and(|rest| rest.starts_with('[')));
    }

    /// Directory against which a file name written at this path is resolved: its file's, or the current one.
    pub fn directory(&self, path: &str) -> PathBuf {
        match self.origin(path) {
            Some((Origin::File { file, .. } | Origin::FileOnly(file), _)) => {
                self.files[*file].0.parent().map_or_else(PathBuf::new, Path::to_owned)
            }
            _ => PathBuf::new(),
        }
    }

    /// The origin of the path, or of the nearest table around it.
    fn origin(&self, path: &str) -> Option<(&Origin, bool)> {
        let mut at = path;
        loop {
            if let Some(origin) = self.origins.get(at) {
                return Some((origin, at == path));
            }
            at = &at[..at.rfind(['.', '['])?];
        }
    }

    /// Where a path was written; where it was not, where the table around it was.
    pub fn place(&self, path: &str, part: Part) -> Place {
        match self.origin(path) {
            Some((Origin::File { file, key, value }, exact)) => {
                let span = if exact && part == Part::Value { value } else { key.as_ref().unwrap_or(value) };
                self.line(*file, span.clone())
            }
            Some((Origin::FileOnly(file), _)) => Place::File(self.files[*file].0.clone()),
            Some((Origin::Environment(name), _)) => Place::Environment(name.clone()),
            Some((Origin::Flag(name), _)) => Place::Flag(name.clone()),
            None => self.files.first().map_or(Place::Nowhere, |(path, _)| Place::File(path.clone())),
        }
    }

    /// The line of a file in which a span of bytes begins.
    pub fn line(&self, file: usize, span: Range<usize>) -> Place {
        let (path, text) = &self.files[file];
        let start = (0..=span.start.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = (0..=span.end.clamp(start, line_end)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(start).max(start);
        Place::Line {
            file: path.clone(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            excerpt: mask(text[line_start..line_end].trim_end_matches('\r')),
        }
    }

    /// Says that the value at `path` is wrong.
    pub fn problem(
        &mut self,
        path: &str,
        what: impl Into<String>,
        found: impl Into<String>,
        allowed: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let place = self.place(path, Part::Value);
        self.push(Problem {
            path: path.into(),
            place,
            what: what.into(),
            found: found.into(),
            allowed: allowed.into(),
            remedy: remedy.into(),
        });
    }

    /// Says that the name, the last key of `path`, is wrong, whatever its value.
    pub fn wrong_name(&mut self, path: &str, what: &str, name: &str, allowed: &str, remedy: &str) {
        let (place, found) = (self.place(path, Part::Key), format!("\"{name}\""));
        self.push(Problem { path: path.into(), place, what: what.into(), found, allowed: allowed.into(), remedy: remedy.into() });
    }

    /// Takes a problem unless it follows from one that is known: of a value that was taken out, or of the table that lacks it now.
    pub fn push(&mut self, mut problem: Problem) {
        let path = problem.path.as_str();
        let known = self.removed.iter().any(|removed| {
            let is_inside = path.strip_prefix(removed.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            is_inside || removed.rsplit_once('.').is_some_and(|(table, _)| table == path)
        });
        if known || self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        if is_secret(&problem.path) && !problem.found.is_empty() {
            problem.found = "***".into();
        }
        self.problems.push(problem);
    }

    /// The value at this path was wrong and has been taken out.
    pub fn removed(&mut self, path: String) {
        self.removed.insert(path);
    }

    pub fn is_removed(&self, path: &str) -> bool {
        self.removed.contains(path)
    }

    pub fn warn(&mut self, path: &str, text: &str) {
        self.warnings.push(format!("{path}: {text}"));
    }

    /// The problems so far, where there is no going on.
    pub fn into_problems(self) -> Problems {
        Problems::new(self.problems)
    }

    /// The warnings, or the problems, if there are any.
    pub fn finish(self) -> Result<Vec<String>, Problems> {
        if self.problems.is_empty() { Ok(self.warnings) } else { Err(Problems::new(self.problems)) }
    }
}

/// Whether the last key of a path holds a secret.
fn is_secret(path: &str) -> bool {
    let key = path.rsplit('.').next().unwrap_or(path);
    ["token", "password", "secret"].iter().any(|word| key.ends_with(word))
}

/// A line of a file without what may be a secret.
fn mask(line: &str) -> String {
    let at = ["token", "password", "secret"].iter().filter_map(|word| line.find(word).map(|at| at + word.len())).min();
    match at {
        Some(end) if line[end..].trim_start_matches(['"', ' ', '\'']).starts_with(['=', ':']) => {
            let value = end + line[end..].find(['=', ':']).unwrap_or(0) + 1;
            format!("{} ***", &line[..value])
        }
        _ => line.to_owned(),
    }
}

/// A value as a problem shows it: one line, not too long.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(FOUND_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_with_secrets_are_masked() {
        assert_eq!(mask("token = \"abc\""), "token = ***");
        assert_eq!(mask("admin = { \"token\" : \"abc\" }"), "admin = { \"token\" : ***");
        assert_eq!(mask("token_file = \"/run/token\""), "token_file = \"/run/token\"");
        assert_eq!(mask("redis_password='x'"), "redis_password= ***");
    }

    #[test]
    fn a_missing_key_is_shown_at_the_table_around_it() {
        let mut report = Report::default();
        let file = report.add_file(Path::new("a.toml"), "[admin]\naddress = 5\n".into());
        report.set_origin("admin".into(), Origin::File { file, key: Some(1..6), value: 0..7 });
        let place = report.place("admin.token", Part::Value);
        assert_eq!((place.line(), place.column()), (Some(1), Some(2)));
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_has_a_line(text in "\\PC{0,40}", start in 0usize..50, length in 0usize..50) {
            let mut report = Report::default();
            let file = report.add_file(Path::new("a"), text);
            let place = report.line(file, start..start + length);
            prop_assert!(place.line().unwrap() >= 1);
        }
    }
}
