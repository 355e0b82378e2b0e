//! What is wrong with a configuration: where, what was found, what is allowed, what to do.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong. Everything but `path` may be empty; an empty part is not printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `sites.shop.cache.stale_if_error`, `sites.shop.routes[2].path`.
    pub path: String,
    pub place: Place,
    /// One sentence.
    pub what: String,
    /// The value as written; secrets are masked.
    pub found: String,
    pub allowed: String,
    pub remedy: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Line and column count from 1, columns in characters. `width` characters are meant.
    Line { file: PathBuf, line: usize, column: usize, width: usize, excerpt: String },
    /// A file whose format gives no positions.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
    /// Nothing that was written: a default, or the absence of something.
    Nowhere,
}

impl Place {
    /// The line, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Line { line, .. } => Some(*line),
            _ => None,
        }
    }

    /// The column, where there is one.
    pub fn column(&self) -> Option<usize> {
        match self {
            Self::Line { column, .. } => Some(*column),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => writeln!(f, "error: {}", self.what)?,
            path => writeln!(f, "error: {path}: {}", self.what)?,
        }
        write!(f, "{}", self.place)?;
        for (label, text) in [("found", &self.found), ("allowed", &self.allowed), ("do", &self.remedy)] {
            if !text.is_empty() {
                writeln!(f, "   {label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line, column, width, excerpt } => {
                let gutter = line.to_string().len();
                writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", file.display())?;
                writeln!(f, "{:gutter$} |", "")?;
                writeln!(f, "{line} | {excerpt}")?;
                writeln!(f, "{:gutter$} | {:indent$}{:^<width$}", "", "", "^", indent = column - 1, width = (*width).max(1))
            }
            Self::File(file) => writeln!(f, " --> {}", file.display()),
            Self::Environment(name) => writeln!(f, " --> environment variable {name}"),
            Self::Flag(name) => writeln!(f, " --> flag {name}"),
            Self::Nowhere => Ok(()),
        }
    }
}

/// Every problem of a configuration, in the order of places. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.place {
            Place::Line { file, line, column, .. } => (0, file.clone(), *line, *column),
            Place::File(file) => (1, file.clone(), 0, 0),
            Place::Environment(_) => (2, PathBuf::new(), 0, 0),
            Place::Flag(_) => (3, PathBuf::new(), 0, 0),
            Place::Nowhere => (4, PathBuf::new(), 0, 0),
        });
        Self(problems)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self {
            writeln!(f, "{problem}")?;
        }
        let count = self.len();
        write!(f, "{count} problem{} in the configuration", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Problems {}

/// The candidate that looks most like `word`, if any is close enough to be meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`, letters compared without case.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replace = last[j] + usize::from(a[i] != b[j]);
            let mut best = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// `"a", "b" or "c"`.
pub(super) fn either<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_nearest_word_is_offered_and_nothing_where_none_is_near() {
        let words = ["stale_if_error", "stale_while_revalidate", "ttl", "enabled"];
        assert_eq!(nearest("stale_if_eror", words), Some("stale_if_error"));
        assert_eq!(nearest("enbaled", words), Some("enabled"));
        assert_eq!(nearest("tll", words), Some("ttl"));
        assert_eq!(nearest("upstream", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn a_problem_shows_its_line() {
        let problem = Problem {
            path: "sites.shop.hosts".into(),
            place: Place::Line { file: "a.toml".into(), line: 12, column: 9, width: 3, excerpt: "hosts = 300".into() },
            what: "wrong type".into(),
            found: "300".into(),
            allowed: "a list".into(),
            remedy: String::new(),
        };
        let want = "error: sites.shop.hosts: wrong type\n  --> a.toml:12:9\n   |\n12 | hosts = 300\n   |         ^^^\n   found: 300\n   allowed: a list\n";
        assert_eq!(problem.to_string(), want);
    }

    proptest! {
        #[test]
        fn distance_is_a_metric_on_what_it_is_asked(a in "[a-z_]{0,12}", b in "[a-z_]{0,12}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
        }
    }
}
