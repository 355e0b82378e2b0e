//! Files: reading, includes, and the positions of what they say.

use super::problem::{Place, Problem};
use super::report::{Origin, Report};
use super::shape::{Step, Steps};
use super::variables;
use serde_json::{Map, Number, Value};
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

/// Longest configuration file.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most files, includes counted.
const FILES_MAX: usize = 256;
/// Includes within includes.
const INCLUDE_DEPTH_MAX: usize = 8;

/// Reads a file and what it includes, in the order in which they are merged. Variables are filled in.
///
/// `None` where one of them could not be read: what else is said about the rest would mislead.
pub fn read(path: &Path, environment: &HashMap<&str, &str>, report: &mut Report) -> Option<Vec<Value>> {
    let mut reader = Reader { environment, report, layers: Vec::new(), open: Vec::new(), is_whole: true };
    reader.file(path, None);
    reader.is_whole.then_some(reader.layers)
}

struct Reader<'a> {
    environment: &'a HashMap<&'a str, &'a str>,
    report: &'a mut Report,
    layers: Vec<Value>,
    /// Files whose includes are being read.
    open: Vec<PathBuf>,
    /// Every file could be read.
    is_whole: bool,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, included_at: Option<Place>) {
        let problem = |what: String, remedy: &str| Problem {
            path: path.display().to_string(),
            place: included_at.clone().unwrap_or(Place::Nowhere),
            what,
            found: String::new(),
            allowed: String::new(),
            remedy: remedy.into(),
        };
        let text = match read_text(path, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) => {
                let remedy = "give a readable file that ends in .toml, .yaml, .yml or .json";
                return self.unreadable(problem(format!("cannot be read: {error}"), remedy));
            }
        };
        let identity = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.open.contains(&identity) {
            return self.unreadable(problem("includes itself".into(), "remove one of the includes"));
        }
        if self.open.len() > INCLUDE_DEPTH_MAX || self.layers.len() >= FILES_MAX {
            let what = format!("more than {FILES_MAX} files, or includes deeper than {INCLUDE_DEPTH_MAX}");
            return self.unreadable(problem(what, "include less"));
        }
        let Some(mut tree) = self.parse(path, text) else { return };
        variables::fill(&mut tree, self.environment, self.report);
        let patterns = tree.as_object_mut().and_then(|table| table.remove("include"));
        self.layers.push(tree);
        self.open.push(identity);
        self.includes(path, patterns);
        self.open.pop();
    }

    fn parse(&mut self, path: &Path, text: String) -> Option<Value> {
        let file = self.report.add_file(path, text.clone());
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => self.parse_toml(file, &text),
            Some("yaml" | "yml") => self.parse_other(file, path, &text, ::config::FileFormat::Yaml),
            Some("json") => self.parse_json(file, path, &text),
            _ => {
                self.syntax(path, Place::File(path.to_owned()), "the file's ending names no format", ".toml, .yaml, .yml, .json");
                None
            }
        }
    }

    fn parse_toml(&mut self, file: usize, text: &str) -> Option<Value> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let place = self.report.line(file, error.span().unwrap_or(0..0));
            self.syntax(Path::new(""), place, &format!("not TOML: {}", error.message()), "");
        }
        if !errors.is_empty() {
            return None;
        }
        let mut steps = Vec::new();
        Some(toml_table(table.get_ref(), file, &mut steps, self.report))
    }

    fn parse_json(&mut self, file: usize, path: &Path, text: &str) -> Option<Value> {
        if let Err(error) = serde_json::from_str::<Map<String, Value>>(text) {
            let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            let at = line_start + error.column().saturating_sub(1);
            let place = self.report.line(file, at..at + 1);
            self.syntax(Path::new(""), place, &format!("not a JSON object: {error}"), "");
            return None;
        }
        self.parse_other(file, path, text, ::config::FileFormat::Json)
    }

    /// YAML and JSON: the format gives no positions.
    fn parse_other(&mut self, file: usize, path: &Path, text: &str, format: ::config::FileFormat) -> Option<Value> {
        let parsed = ::config::Format::parse(&format, None, text).map_err(|error| error.to_string());
        let tree = parsed.and_then(|table| ::config::Value::new(None, table).try_deserialize::<Value>().map_err(|error| error.to_string()));
        match tree {
            Ok(mut tree) => {
                drop_nulls(&mut tree);
                let tree = if tree.is_null() { Value::Object(Map::new()) } else { tree };
                register(&tree, file, &mut Vec::new(), self.report);
                Some(tree)
            }
            Err(error) => {
                self.syntax(Path::new(""), Place::File(path.to_owned()), &format!("cannot be parsed: {error}"), "");
                None
            }
        }
    }

    fn syntax(&mut self, path: &Path, place: Place, what: &str, allowed: &str) {
        let path = path.display().to_string();
        self.unreadable(Problem { path, place, what: what.into(), found: String::new(), allowed: allowed.into(), remedy: String::new() });
    }

    fn unreadable(&mut self, problem: Problem) {
        self.is_whole = false;
        self.report.push(problem);
    }

    fn includes(&mut self, path: &Path, patterns: Option<Value>) {
        let Some(patterns) = patterns else { return };
        let Some(patterns) = patterns.as_array().filter(|all| all.iter().all(Value::is_string)) else {
            return self.report.problem(
                "include",
                "wrong type",
                super::report::shown(&patterns),
                "a list of file names",
                r#"write ["conf.d/*.toml"]"#,
            );
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        let patterns: Vec<(Place, &str)> = patterns
            .iter()
            .enumerate()
            .filter_map(|(at, pattern)| Some((self.report.place(&format!("include[{at}]"), super::report::Part::Value), pattern.as_str()?)))
            .collect();
        for (place, pattern) in patterns {
            for included in glob(directory, pattern) {
                self.file(&included, Some(place.clone()));
            }
        }
    }
}

/// The bytes of a regular file, at most so many. A device may have no end; a pipe keeps its reader waiting, and could not
/// be read again by a reload.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let in_words = |error: io::Error| error.to_string();
    if !std::fs::metadata(path).map_err(in_words)?.is_file() {
        return Err("not a regular file".into());
    }
    let mut bytes = Vec::new();
    // Not by the length that it says: files of /proc say 0, and one may grow.
    let read = std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).map_err(in_words)?;
    if read as u64 > most { Err(format!("longer than {most} bytes")) } else { Ok(bytes) }
}

/// [`read_bytes`] as text.
pub fn read_text(path: &Path, most: u64) -> Result<String, String> {
    String::from_utf8(read_bytes(path, most)?).map_err(|error| format!("not UTF-8: {error}"))
}

/// The files that a pattern names, sorted. A pattern without `*` and `?` names one file, there or not.
fn glob(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let is_wild = |name: &str| name.contains(['*', '?']);
    let mut found = vec![directory.to_owned()];
    for component in Path::new(pattern).components() {
        let name = component.as_os_str().to_string_lossy().into_owned();
        if !is_wild(&name) {
            found.iter_mut().for_each(|path| path.push(&name));
            continue;
        }
        found = found
            .iter()
            .flat_map(|path| std::fs::read_dir(if path.as_os_str().is_empty() { Path::new(".") } else { path }))
            .flatten()
            .filter_map(|entry| Some((entry.as_ref().ok()?.file_name(), entry.ok()?)))
            .filter(|(file, _)| file.to_str().is_some_and(|file| !file.starts_with('.') && wild_match(name.as_bytes(), file.as_bytes())))
            .filter_map(|(file, entry)| Some(entry.path().parent()?.join(file)))
            .collect();
    }
    if is_wild(pattern) {
        found.retain(|path| path.is_file());
        found.sort();
    }
    found
}

/// Whether a name matches a pattern of `*` (any bytes) and `?` (one byte).
fn wild_match(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b) if *b == b'?' || *b == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

fn toml_table(table: &DeTable<'_>, file: usize, steps: &mut Vec<Step>, report: &mut Report) -> Value {
    let mut tree = Map::new();
    for (key, value) in table {
        steps.push(Step::Key(key.get_ref().to_string()));
        tree.insert(key.get_ref().to_string(), toml_value(Some(key.span()), value, file, steps, report));
        steps.pop();
    }
    Value::Object(tree)
}

fn toml_value(
    key: Option<std::ops::Range<usize>>,
    value: &Spanned<DeValue<'_>>,
    file: usize,
    steps: &mut Vec<Step>,
    report: &mut Report,
) -> Value {
    let path = Steps(steps).to_string();
    if value.get_ref().is_array() {
        report.forget_elements(&path);
    }
    let span = value.span();
    let is_header = value.get_ref().is_table() && report.byte(file, span.start) != Some(b'{');
    let value_span = key.clone().filter(|_| is_header).unwrap_or(span);
    report.set_origin(path, Origin::File { file, key, value: value_span });
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => integer(number),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
        DeValue::Boolean(switch) => Value::Bool(*switch),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Table(table) => toml_table(table, file, steps, report),
        DeValue::Array(items) => {
            let mut list = Vec::new();
            for (index, item) in items.iter().enumerate() {
                steps.push(Step::Index(index));
                list.push(toml_value(None, item, file, steps, report));
                steps.pop();
            }
            Value::Array(list)
        }
    }
}

/// A number beyond 64 bits becomes text, which no key for numbers takes.
fn integer(number: &DeInteger<'_>) -> Value {
    i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| Value::String(number.as_str().to_owned()), Value::from)
}

/// A key without a value is an absent key.
fn drop_nulls(tree: &mut Value) {
    match tree {
        Value::Object(table) => {
            table.retain(|_, value| !value.is_null());
            table.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn register(tree: &Value, file: usize, steps: &mut Vec<Step>, report: &mut Report) {
    if !steps.is_empty() {
        let path = Steps(steps).to_string();
        if tree.is_array() {
            report.forget_elements(&path);
        }
        report.set_origin(path, Origin::FileOnly(file));
    }
    match tree {
        Value::Object(table) => {
            for (key, value) in table {
                steps.push(Step::Key(key.clone()));
                register(value, file, steps, report);
                steps.pop();
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                steps.push(Step::Index(index));
                register(value, file, steps, report);
                steps.pop();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, want) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a?c*", "abcd", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("*a*b", "xaxbab", true),
        ] {
            assert_eq!(wild_match(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_finds_files_in_order_and_hidden_ones_not() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        for name in ["b.toml", "a.toml", ".hidden.toml", "c.txt"] {
            std::fs::write(directory.path().join("conf.d").join(name), "").unwrap();
        }
        let found = glob(directory.path(), "conf.d/*.toml");
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.toml", "b.toml"]);
        assert_eq!(glob(directory.path(), "none.toml"), [directory.path().join("none.toml")]);
    }

    #[test]
    fn only_a_regular_file_within_its_bound_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        assert_eq!(read_text(file.path(), 5).as_deref(), Ok("12345"));
        assert_eq!(read_text(file.path(), 4).unwrap_err(), "longer than 4 bytes");
        assert!(read_text(Path::new("/proc/self/environ"), 0).is_err(), "a file that says that it has no bytes");
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(read_text(file.path(), 5).unwrap_err().starts_with("not UTF-8"));
        for other in [Path::new("/dev/zero"), file.path().parent().unwrap()] {
            assert_eq!(read_bytes(other, 5).unwrap_err(), "not a regular file");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,60}") {
            for name in ["a.toml", "a.yaml", "a.json"] {
                let mut report = Report::default();
                let environment = HashMap::new();
                let mut reader = Reader { environment: &environment, report: &mut report, layers: Vec::new(), open: Vec::new(), is_whole: true };
                let _ = reader.parse(Path::new(name), text.clone());
            }
        }

        #[test]
        fn a_star_matches_everything_between(head in "[a-z]{0,5}", middle in "[a-z.]{0,8}", tail in "[a-z]{0,5}") {
            let pattern = format!("{head}*{tail}");
            let name = format!("{head}{middle}{tail}");
            prop_assert!(wild_match(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
