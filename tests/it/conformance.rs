//! `docs/conformance.md` is what `docs/conformance.toml` says, and what that says is so: each test it names exists, and
//! each requirement that is ours has a test or a reason.
//!
//! `WRITE_DOCS=1 cargo test --test it conformance` writes the document anew.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    standard: Vec<Standard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Standard {
    name: String,
    rows: Vec<Requirement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    section: String,
    level: Level,
    text: String,
    #[serde(default)]
    role: Role,
    #[serde(default)]
    tests: Vec<String>,
    /// Why we deviate, or do not take what is offered.
    why: Option<String>,
    /// What is missing.
    open: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
enum Level {
    #[serde(rename = "MUST")]
    Must,
    #[serde(rename = "MUST NOT")]
    MustNot,
    #[serde(rename = "SHOULD")]
    Should,
    #[serde(rename = "SHOULD NOT")]
    ShouldNot,
    #[serde(rename = "MAY")]
    May,
    /// Without a key word, but meant.
    #[serde(rename = "ought")]
    Ought,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::MustNot => "MUST NOT",
            Self::Should => "SHOULD",
            Self::ShouldNot => "SHOULD NOT",
            Self::May => "MAY",
            Self::Ought => "ought",
        }
    }
}

/// Whom a requirement binds.
#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(from = "String")]
enum Role {
    #[default]
    Cache,
    Proxy,
    Server,
    Client,
    Other(String),
}

impl From<String> for Role {
    fn from(text: String) -> Self {
        match &*text {
            "proxy" => Self::Proxy,
            "server" => Self::Server,
            "client" => Self::Client,
            _ => Self::Other(text),
        }
    }
}

impl Role {
    fn as_str(&self) -> &str {
        match self {
            Self::Cache => "shared cache",
            Self::Proxy => "proxy",
            Self::Server => "server",
            Self::Client => "client",
            Self::Other(text) => text,
        }
    }
}

impl Requirement {
    const fn is_ours(&self) -> bool {
        !matches!(self.role, Role::Other(_))
    }

    fn shown(&self) -> String {
        let mut shown: Vec<String> = Vec::new();
        shown.extend(self.open.as_ref().map(|open| format!("**Open:** {open}.")));
        shown.extend(self.why.as_ref().map(|why| format!("{why}.")));
        if !self.tests.is_empty() {
            shown.push(self.tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", "));
        }
        if shown.is_empty() { "not on us".to_owned() } else { shown.join(" ") }
    }
}

impl Source {
    fn read() -> Self {
        toml::from_str(&read(&root().join("docs/conformance.toml"))).expect("docs/conformance.toml is as its head says")
    }

    fn rows(&self) -> impl Iterator<Item = (&str, &Requirement)> {
        self.standard.iter().flat_map(|standard| standard.rows.iter().map(|row| (&*standard.name, row)))
    }

    fn document(&self) -> String {
        let ours = || self.rows().map(|(_, row)| row).filter(|row| row.is_ours());
        let open = ours().filter(|row| row.open.is_some()).count();
        let deviating = ours().filter(|row| row.why.is_some()).count();
        let mut document = format!(
            "# Conformance\n\n\
             <!-- Made from conformance.toml: WRITE_DOCS=1 cargo test --test it conformance -->\n\n\
             What the standards ask of a shared cache and of a gateway, in our own words, and the tests that show it: names of test\n\
             functions in `src/` and `tests/it/`. Of {total} requirements that are on us {open} are open; {deviating} have a remark: we do\n\
             otherwise, for the reason given, or do not take what is offered. Rows for others are listed so that none seems forgotten.\n",
            total = ours().count(),
        );
        for standard in &self.standard {
            write!(document, "\n## {}\n\n| section | level | on | requirement | shown by |\n|---|---|---|---|---|\n", standard.name)
                .expect("a string takes everything");
            for row in &standard.rows {
                let cells = [&row.section, row.level.as_str(), row.role.as_str(), &row.text, &row.shown()];
                writeln!(document, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")).expect("a string takes everything");
            }
        }
        document
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every test function below `folder`, and how often its name occurs.
fn tests_below(folder: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            tests_below(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            tests_of(&read(&entry), found);
        }
    }
}

fn tests_of(source: &str, found: &mut BTreeMap<String, usize>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))
            && is_test
        {
            let name = name.split(['(', '<']).next().unwrap_or(name);
            *found.entry(name.to_owned()).or_default() += 1;
            is_test = false;
        }
    }
}

#[test]
fn every_requirement_has_a_test_that_exists_or_a_reason() {
    let mut tests = BTreeMap::new();
    tests_below(&root().join("src"), &mut tests);
    tests_below(&root().join("tests/it"), &mut tests);
    let mut wrong = Vec::new();
    for (standard, row) in Source::read().rows() {
        let at = format!("{standard}, {}: {}", row.section, row.text);
        if row.is_ours() && row.tests.is_empty() && row.why.is_none() && row.open.is_none() {
            wrong.push(format!("{at}: neither test nor reason"));
        }
        wrong.extend(row.tests.iter().filter(|test| !tests.contains_key(*test)).map(|test| format!("{at}: there is no test {test}")));
    }
    assert!(wrong.is_empty(), "docs/conformance.toml:\n{}", wrong.join("\n"));
}

#[test]
fn the_document_is_what_its_source_generates() {
    let (path, document) = (root().join("docs/conformance.md"), Source::read().document());
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(&path, &document).expect("docs can be written");
    }
    assert!(read(&path) == document, "write it anew: WRITE_DOCS=1 cargo test --test it conformance");
}

#[test]
fn test_functions_are_found_and_nothing_else() {
    let mut found = BTreeMap::new();
    tests_of("#[test]\nfn one() {}\nfn helper() {}\n  #[tokio::test(start_paused = true)]\n  async fn two() {}\n", &mut found);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["one", "two"]);
}
