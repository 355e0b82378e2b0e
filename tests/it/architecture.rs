//! Reads the sources and fails where a dependency points the wrong way or a pure module reaches for the world.
//!
//! A reference is any path that begins at the root of the crate (`crate::`, enough `super::`, `tiercel::` in the binary),
//! with the groups of `use` spelled out. Comments, literals and test modules do not count: tests may use what they like.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and the paths below the root of the crate that it may name. The longest row that fits a module counts alone.
/// A module may always name what is in the same row's module. `a::b` stands for everything below it; `a::*` for the
/// types of `a` itself, not for its modules. A module that fits no row is an error: write down where it belongs.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli", "allocator"]),
    ("lib", &[]),
    ("allocator", &[]),
    ("cli", &["server", "config", "semantics::tracking"]),
    ("cli::demo", &["server", "config", "observe::log", "semantics::key::hash128"]),
    (
        "server",
        &[
            "admin",
            "listener",
            "proxy",
            "cache",
            "coalesce",
            "upstream",
            "invalidation",
            "limit",
            "route",
            "tier",
            "tls",
            "redis",
            "observe",
            "config",
            "semantics",
            "redis",
            "pages",
            "body",
            "clock",
        ],
    ),
    ("admin", &["invalidation", "config::settings", "observe", "semantics", "clock"]),
    ("http1", &["semantics"]),
    ("http2", &["http1", "semantics", "body"]),
    (
        "listener",
        &[
            "http1",
            "http2",
            "proxy::outcome",
            "cache::StoredHead",
            "body",
            "pages",
            "config::settings",
            "tls",
            "observe",
            "semantics",
            "clock",
        ],
    ),
    (
        "proxy",
        &[
            "listener::*",
            "cache",
            "coalesce",
            "upstream",
            "shield",
            "invalidation",
            "limit",
            "route",
            "tier::memory",
            "tier::redis",
            "tls::challenges",
            "transform",
            "redis",
            "pages",
            "faults",
            "observe",
            "config::Settings",
            "config::settings",
            "semantics",
            "pages",
            "body",
            "clock",
            "faults",
        ],
    ),
    ("proxy::outcome", &["semantics::cache_status", "semantics::coding", "semantics::storage", "semantics::widening"]),
    ("redis", &["observe", "config::settings", "clock"]),
    ("route", &["config::settings", "semantics"]),
    ("cache", &["tier", "invalidation", "coalesce::pinned", "observe", "config::settings", "semantics", "body", "pages", "clock"]),
    (
        "invalidation",
        &["semantics::Now", "semantics::key", "semantics::reuse::Validity", "observe", "config::settings", "clock", "faults", "sync"],
    ),
    ("invalidation::fleet", &["invalidation", "semantics::Now", "faults"]),
    (
        "invalidation::stream",
        &["invalidation", "redis", "semantics::Now", "observe::metrics", "observe::log::RateLimit", "config::settings", "clock", "sync"],
    ),
    ("invalidation::selector", &["semantics::key", "invalidation::Kind"]),
    ("transform", &["semantics", "observe::metrics", "body"]),
    ("tier::redis", &["coalesce::lease", "redis", "observe", "config::settings", "clock"]),
    ("limit", &["semantics::key::hash128", "redis", "observe", "config::settings", "clock"]),
    ("limit::fields", &["limit::*", "config::settings"]),
    ("tier", &["semantics::key::hash128", "observe", "config::settings", "body", "clock"]),
    ("coalesce", &["observe", "config::settings", "semantics", "body", "pages", "clock"]),
    ("coalesce::lease", &["redis", "observe::metrics", "config::settings", "clock"]),
    (
        "coalesce::flight",
        &["coalesce::sync", "coalesce::wake", "semantics::key::CacheKeyText", "semantics::vary::SecondaryKey", "observe", "clock"],
    ),
    (
        "upstream",
        &[
            "http1",
            "http2",
            "listener::*",
            "tls::client",
            "tls::ALPN_HTTP1",
            "tls::ALPN_HTTP2",
            "observe",
            "config::settings",
            "semantics",
            "body",
            "clock",
        ],
    ),
    (
        "shield",
        &[
            "http1::response",
            "http2",
            "listener::*",
            "upstream",
            "tls::client",
            "tls::ALPN_HTTP2",
            "invalidation::Position",
            "observe",
            "config::policy_hash",
            "config::settings",
            "semantics",
            "body",
            "clock",
        ],
    ),
    ("shield::ring", &["semantics::key::hash128"]),
    ("shield::hop", &["invalidation::Position"]),
    ("shield::replay", &["shield::hop"]),
    ("shield::health", &[]),
    ("observe", &["proxy::outcome", "listener::*", "body::BodyError", "config::settings", "semantics", "clock"]),
    ("config", &["semantics", "tls::SUITES", "tls::certificate", "tls::client", "tls::clients", "tls::tickets", "clock"]),
    ("config::settings", &["semantics::condition", "semantics::key", "semantics::policy"]),
    ("body", &["semantics::Fields"]),
    ("clock", &["semantics::Now"]),
    ("faults", &[]),
    ("pages", &[]),
    ("tls", &["observe", "config::settings", "semantics::date", "clock"]),
    ("tls::acme", &["tls", "redis", "observe::metrics", "config::settings", "clock"]),
    ("tls::x509", &["semantics::date"]),
    ("tls::ocsp", &["tls::x509"]),
    ("sync", &[]),
    ("semantics", &[]),
];

/// Modules that decide and do not act: `now` comes in as a value, and nothing but values goes out.
const PURE: &[&str] = &[
    "semantics",
    "http1",
    "invalidation::fleet",
    "invalidation::selector",
    "limit::fields",
    "route",
    "shield::ring",
    "shield::hop",
    "shield::replay",
    "shield::health",
];

/// Words that a pure module has no use for: waiting, clocks, sockets, files, threads and the crates that bring them.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "TcpSocket",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "File",
    "OpenOptions",
    "fs",
    "env",
    "thread",
    "spawn",
    "tokio",
    "hyper",
    "rustix",
    "socket2",
    "rand",
];

#[test]
fn dependencies_point_one_way_and_pure_modules_are_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 30, "the sources are not where they are looked for: {}", root.display());
    let mut wrong = Vec::new();
    for file in &files {
        let source = std::fs::read_to_string(file).expect("a readable source");
        wrong.extend(violations(&module_of(file.strip_prefix(&root).expect("below src")), &source));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All `.rs` files below `folder` but test modules in files and folders of their own.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() && !path.ends_with("simulation") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") && path.file_stem().is_some_and(|stem| stem != "tests") {
            found.push(path);
        }
    }
    found
}

/// `proxy/mod.rs` is `proxy`, `proxy/outcome.rs` is `proxy::outcome`.
fn module_of(file: &Path) -> String {
    let path = file.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).filter(|part| part != "mod").collect();
    parts.join("::")
}

/// What is wrong with this source of this module, one line each.
fn violations(module: &str, source: &str) -> Vec<String> {
    let words = without_tests(words(source));
    let mut wrong = wrong_arrows(module, &words);
    if PURE.iter().any(|pure| is_below(module, pure)) {
        wrong.extend(impurities(module, &words));
    }
    wrong
}

fn wrong_arrows(module: &str, words: &[String]) -> Vec<String> {
    let Some((row, allowed)) = ARROWS.iter().filter(|(row, _)| is_below(module, row)).max_by_key(|(row, _)| row.len()) else {
        return vec![format!("{module}: no row in ARROWS says where it belongs")];
    };
    let is_allowed = |path: &str| {
        let fits = |allowed: &&str| match allowed.strip_suffix("::*") {
            Some(types) => {
                path.strip_prefix(types).and_then(|rest| rest.strip_prefix("::")).is_some_and(|rest| rest.starts_with(char::is_uppercase))
            }
            None => is_below(path, allowed),
        };
        is_below(path, row) || allowed.iter().any(fits)
    };
    references(module, words).iter().filter(|path| !is_allowed(path)).map(|path| format!("{module} must not name {path}")).collect()
}

fn impurities(module: &str, words: &[String]) -> Vec<String> {
    let is_impure =
        |at: usize| IMPURE.contains(&words[at].as_str()) || (words[at] == "now" && words.get(at + 1).is_some_and(|next| next == "("));
    (0..words.len()).filter(|at| is_impure(*at)).map(|at| format!("{module} is pure and must not use {}", words[at])).collect()
}

/// Whether `path` is `module` or something in it.
fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All paths from the root of the crate, without `crate::`.
fn references(module: &str, words: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let leads_on = |at: usize| words.get(at + 1).is_some_and(|next| next == "::");
    for at in (0..words.len()).filter(|at| leads_on(*at) && (*at == 0 || words[at - 1] != "::")) {
        match words[at].as_str() {
            "crate" | "tiercel" => {
                read_path(words, at + 1, "", &mut found);
            }
            "super" => found.extend(climb(module, words, at)),
            _ => {}
        }
    }
    found
}

/// The paths that the `super` at `at` leads to. A module inside the file climbs less than the file would, so that what
/// seems to be at the root may be its neighbour: there only names of modules count.
fn climb(module: &str, words: &[String], at: usize) -> BTreeSet<String> {
    let climbs = words[at..].chunks(2).take_while(|pair| pair[0] == "super" && pair.get(1).is_some_and(|next| next == "::")).count();
    let left = module.split("::").count().saturating_sub(climbs);
    let base: Vec<_> = module.split("::").take(left).collect();
    let mut found = BTreeSet::new();
    read_path(words, at + 2 * climbs - 1, &base.join("::"), &mut found);
    found.retain(|path| left > 0 || ARROWS.iter().any(|(row, _)| !row.contains("::") && is_below(path, row)));
    found
}

/// Collects what the `::` at `at` leads to from `base`: a path, or each member of a group. Returns where it ended.
fn read_path(words: &[String], mut at: usize, base: &str, found: &mut BTreeSet<String>) -> usize {
    let mut path = base.to_owned();
    while words.get(at).is_some_and(|word| word == "::") {
        match words.get(at + 1) {
            Some(word) if word == "{" => return read_group(words, at + 2, &path, found),
            Some(word) if word.starts_with(|first: char| first.is_alphabetic() || first == '_') => {
                path = if path.is_empty() { word.clone() } else { format!("{path}::{word}") };
                at += 2;
            }
            _ => break,
        }
    }
    found.insert(path);
    at
}

fn read_group(words: &[String], mut at: usize, base: &str, found: &mut BTreeSet<String>) -> usize {
    while let Some(word) = words.get(at) {
        match word.as_str() {
            "}" => return at + 1,
            "," => at += 1,
            "self" => {
                found.insert(base.to_owned());
                at += 1;
            }
            "as" => at += 2,
            "*" => at += 1,
            _ => {
                let path = if base.is_empty() { word.clone() } else { format!("{base}::{word}") };
                at = read_path(words, at + 1, &path, found);
            }
        }
    }
    at
}

/// The words of a source: names, `::`, and single other characters; no comments, literals, lifetimes or white space.
fn words(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let (mut words, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let next = text.get(at + 1).copied().unwrap_or(' ');
        match text[at] {
            '/' if next == '/' => at = find(&text, at, |rest| rest[0] == '\n'),
            '/' if next == '*' => at = past_block_comment(&text, at),
            '"' => at = past_string(&text, at),
            '\'' => at = past_quote(&text, at),
            ':' if next == ':' => {
                words.push("::".to_owned());
                at += 2;
            }
            letter if letter.is_alphanumeric() || letter == '_' => {
                let end = find(&text, at, |rest| !(rest[0].is_alphanumeric() || rest[0] == '_'));
                let word: String = text[at..end].iter().collect();
                at = match (word.as_str(), text.get(end)) {
                    ("r" | "br" | "cr", Some('"' | '#')) if is_raw_string(&text, end) => past_raw_string(&text, end),
                    _ => {
                        words.push(word);
                        end
                    }
                };
            }
            space if space.is_whitespace() => at += 1,
            other => {
                words.push(other.to_string());
                at += 1;
            }
        }
    }
    words
}

/// The first place from `at` where `there` holds of the rest, or the end.
fn find(text: &[char], at: usize, there: impl Fn(&[char]) -> bool) -> usize {
    (at..text.len()).find(|at| there(&text[*at..])).unwrap_or(text.len())
}

fn past_block_comment(text: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn past_string(text: &[char], opening: usize) -> usize {
    let mut at = opening + 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Past a character literal or a lifetime.
fn past_quote(text: &[char], at: usize) -> usize {
    match (text.get(at + 1), text.get(at + 2)) {
        (Some('\\'), _) => find(text, at + 3, |rest| rest[0] == '\'') + 1,
        (Some(_), Some('\'')) => at + 3,
        _ => find(text, at + 1, |rest| !(rest[0].is_alphanumeric() || rest[0] == '_')),
    }
}

fn is_raw_string(text: &[char], at: usize) -> bool {
    text[find(text, at, |rest| rest[0] != '#')..].first() == Some(&'"')
}

fn past_raw_string(text: &[char], hashes: usize) -> usize {
    let opening = find(text, hashes, |rest| rest[0] != '#');
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', opening - hashes)).collect();
    (find(text, opening + 1, |rest| rest.starts_with(&closing)) + closing.len()).min(text.len())
}

/// The words without modules and other items marked `#[cfg(test)]`.
fn without_tests(words: Vec<String>) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < words.len() {
        if words[at..].iter().take(MARK.len()).eq(MARK.iter()) {
            at = past_item(&words, at + MARK.len());
        } else {
            kept.push(words[at].clone());
            at += 1;
        }
    }
    kept
}

/// Past the next `;` or block, whichever is first.
fn past_item(words: &[String], mut at: usize) -> usize {
    let mut depth = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        match word.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            ";" if depth == 0 => break,
            _ => {}
        }
    }
    at
}

/// Planted faults: the checker has to see each of them, and nothing in what is right.
mod checker {
    use super::{ARROWS, module_of, violations, words};
    use std::path::Path;

    #[test]
    fn wrong_arrows_are_seen_however_they_are_written() {
        let planted = [
            ("semantics::range", "use crate::cache::StoredResponse;", "cache::StoredResponse"),
            ("semantics::range", "use super::super::cache::StoredResponse;", "cache::StoredResponse"),
            ("semantics", "pub use super::proxy;", "proxy"),
            ("semantics::key", "fn f() -> crate::body::Chunk { g() }", "body::Chunk"),
            ("semantics::key", "use crate::{semantics::Fields, config::{self, settings::{Fill, Site}}};", "config"),
            ("semantics::key", "use crate::{semantics::Fields, config::{self, settings::{Fill, Site}}};", "config::settings::Site"),
            ("tier::memory", "use crate::semantics::freshness::Facts;", "semantics::freshness::Facts"),
            ("tier::memory", "use crate::semantics::{key::hash128, Fields as F};", "semantics::Fields"),
            ("tier", "use crate::cache;", "cache"),
            ("cache::variants", "use crate::proxy::outcome::Outcome;", "proxy::outcome::Outcome"),
            ("cache", "use crate::coalesce::fill::Fill;", "coalesce::fill::Fill"),
            ("coalesce::flight", "use crate::semantics::Fields;", "semantics::Fields"),
            ("upstream::pool", "use crate::listener::http1::serve;", "listener::http1::serve"),
            ("upstream", "use crate::proxy::outcome::Outcome;", "proxy::outcome::Outcome"),
            ("proxy::fill", "use crate::listener::http1;", "listener::http1"),
            ("proxy::fill", "let x = crate::admin::f();", "admin::f"),
            ("proxy::outcome", "use crate::listener::Peer;", "listener::Peer"),
            ("listener::http1", "use crate::proxy::Proxy;", "proxy::Proxy"),
            ("listener", "use crate::cache::Cache;", "cache::Cache"),
            ("cli::purge", "use crate::admin::Control;", "admin::Control"),
            ("observe::metrics", "use crate::proxy::fill::Fill;", "proxy::fill::Fill"),
            ("config::settings", "use crate::route::Routes;", "route::Routes"),
            ("config::settings", "use crate::semantics::Fields;", "semantics::Fields"),
            ("invalidation::journal", "use crate::semantics::Fields;", "semantics::Fields"),
            ("body", "use crate::coalesce::fill::FillReader;", "coalesce::fill::FillReader"),
            ("clock", "/* fine */ use crate::observe::metrics;", "observe::metrics"),
            ("main", "fn main() { tiercel::server::run() }", "server::run"),
            ("server", "use crate::cli::run;", "cli::run"),
            ("lib", "use crate::semantics::Fields;", "semantics::Fields"),
            ("body", "use super::proxy::outcome;", "proxy::outcome"),
            ("body", "pub(crate) use crate::{proxy::outcome};", "proxy::outcome"),
        ];
        for (module, source, path) in planted {
            let wrong = violations(module, source);
            assert!(wrong.contains(&format!("{module} must not name {path}")), "{module}: {source}: {wrong:?}");
        }
    }

    #[test]
    fn impure_words_are_seen_in_pure_modules_only() {
        let planted = [
            ("async fn f() {}", "async"),
            ("fn f() { g().await }", "await"),
            ("fn f() { let at = clock.now(); }", "now"),
            ("use std::time::{Duration, Instant};", "Instant"),
            ("fn f() { std::time::SystemTime::now(); }", "SystemTime"),
            ("use std::net::TcpStream;", "TcpStream"),
            ("fn f() { std::fs::read(\"x\"); }", "fs"),
            ("use std::fs::File;", "File"),
            ("fn f() { std::thread::sleep(d) }", "thread"),
            ("use tokio::sync::Mutex;", "tokio"),
            ("const A: &'static str = \"'\"; async fn f() {}", "async"),
            ("const A: char = '\"'; async fn f() {} const B: char = '\"';", "async"),
            ("const A: &str = r#\"\"\"#; async fn f() {}", "async"),
            ("#[cfg(test)] mod tests { fn f() {} } async fn f() {}", "async"),
            ("#[cfg(test)] use a::B; async fn f() {}", "async"),
            ("/* /* */ */ async fn f() {}", "async"),
        ];
        for (source, word) in planted {
            for module in ["semantics::range", "semantics", "invalidation::selector", "route::matcher"] {
                let wrong = violations(module, source);
                assert!(wrong.contains(&format!("{module} is pure and must not use {word}")), "{source}: {wrong:?}");
            }
            assert_eq!(violations("upstream::pool", source), [""; 0], "{source}");
        }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let right = [
            ("semantics::range", "use super::{Fields, Now, name}; use std::ops::Range; fn f(now: Now) { g(now) }"),
            ("semantics::range", "//! Not async, no now(), no crate::cache.\n/* Instant */ const A: &str = \"crate::cache async\";"),
            ("semantics::range", "const A: &str = r#\"a \" crate::cache async\"#; const B: &[u8] = br\"crate::proxy\";"),
            ("semantics::range", "fn f<'async_>(a: &'a str) -> char { '\\'' } const C: [char; 2] = ['\\u{1F600}', 'x'];"),
            ("semantics::range", "#[cfg(test)]\nmod tests { use crate::cache::StoredResponse; async fn f() { { } } }\nfn g() {}"),
            ("semantics::range", "#[cfg(test)] mod tests; fn g() {}"),
            ("body", "pub(crate) fn f() {} pub(super) fn g() {} mod inner { use super::Chunk; }"),
            ("tier::memory", "use crate::semantics::key::hash128; use super::Tier; use crate::clock;"),
            ("proxy::fill", "use crate::listener::{Handler, Response}; use super::outcome::Outcome; use crate::cache::*;"),
            ("upstream", "use crate::listener::{InterimSender, RequestBody};"),
            ("coalesce::flight", "pub key: crate::semantics::key::CacheKeyText, pub x: crate::semantics::vary::SecondaryKey"),
            ("observe::access_log", "use crate::listener::{Peer, RequestHead, Sent};"),
            ("main", "fn main() -> std::process::ExitCode { tiercel::cli::main() }"),
            ("server::assembly", "use crate::{admin::Control, proxy, config::{self, settings::Site}};"),
        ];
        for (module, source) in right {
            assert_eq!(violations(module, source), [""; 0], "{module}: {source}");
        }
    }

    #[test]
    fn a_module_without_a_row_is_an_error() {
        assert_eq!(violations("util", ""), ["util: no row in ARROWS says where it belongs"]);
        assert_eq!(violations("cached", "").len(), 1, "the beginning of a name is not a module");
    }

    #[test]
    fn the_table_itself_points_one_way() {
        let allowed = |from: &str| ARROWS.iter().find(|(row, _)| *row == from).map_or(&[][..], |(_, allowed)| allowed);
        assert_eq!(allowed("semantics"), [""; 0], "semantics depends on nothing");
        for (row, paths) in ARROWS {
            assert!(*row == "server" || !paths.contains(&"admin"), "only server knows admin, not {row}");
            assert!(row.starts_with("cli") || !paths.contains(&"server"), "only cli calls server, not {row}");
            assert!(*row == "main" || !paths.contains(&"cli"), "only main calls cli, not {row}");
            assert!(["server", "cache"].contains(row) || !paths.contains(&"tier"), "only the cache uses tiers, not {row}");
        }
    }

    #[test]
    fn files_are_modules_and_text_is_words() {
        assert_eq!(module_of(Path::new("proxy/mod.rs")), "proxy");
        assert_eq!(module_of(Path::new("listener/http1/parse.rs")), "listener::http1::parse");
        assert_eq!(module_of(Path::new("lib.rs")), "lib");
        assert_eq!(words("a::b<'c>(d, \"e\") // f\n+ 'g' r\"h\" i_2"), ["a", "::", "b", "<", ">", "(", "d", ",", ")", "+", "i_2"]);
    }
}
