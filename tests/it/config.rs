//! Configuration from files, environment and flags, and the commands that need no server.

use crate::support::pki::{EC, Pki};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use tiercel::config::settings::{Action, FieldEdit, LogTarget, PathMatch, Rewrite, Settings, UpstreamCodec, UpstreamHost};
use tiercel::config::{Place, Problem, Problems, Sources, changes, effective, load, schema};
use tiercel::semantics::condition::ValueMatch;
use tiercel::semantics::policy::{SetCookie, Statuses, TtlRule};

const UPSTREAM: &str = "[upstreams.app]\nendpoints = [\"http://127.0.0.1:3000\"]\n";

/// A directory with one file of configuration, and what is loaded from it.
struct Case {
    directory: TempDir,
    sources: Sources,
}

impl Case {
    fn new(name: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        Self { directory, sources: Sources { file: Some(file), env: Vec::new(), flags: Value::Null } }
    }

    fn toml(text: &str) -> Self {
        Self::new("tiercel.toml", text)
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn flags(mut self, flags: Value) -> Self {
        self.sources.flags = flags;
        self
    }

    fn settings(&self) -> Settings {
        load(&self.sources).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn problems(&self) -> Problems {
        load(&self.sources).expect_err("the configuration is wrong")
    }
}

fn only(problems: &Problems) -> &Problem {
    assert_eq!(problems.len(), 1, "{problems}");
    problems.iter().next().unwrap()
}

/// A broken file has exactly this problem: line, column, and words of the path, of what is wrong, of the remedy.
#[track_caller]
fn refused(text: &str, line: usize, column: usize, path: &str, what: &str, remedy: &str) {
    let case = Case::toml(text);
    let problems = case.problems();
    let problem = only(&problems);
    let shown = problem.to_string();
    assert_eq!((problem.place.line(), problem.place.column()), (Some(line), Some(column)), "{shown}");
    assert_eq!(problem.path, path, "{shown}");
    assert!(problem.what.contains(what), "what: {shown}");
    assert!(problem.remedy.contains(remedy), "remedy: {shown}");
    assert!(shown.contains(text.lines().nth(line - 1).unwrap()), "the excerpt is shown: {shown}");
}

/// The same behind a configuration that is fine; lines count from the text's own.
#[track_caller]
fn refused_after(text: &str, line: usize, column: usize, path: &str, what: &str, remedy: &str) {
    refused(&format!("{UPSTREAM}{text}"), line + 2, column, path, what, remedy);
}

#[test]
fn syntax_errors_are_placed() {
    let case = Case::toml("[server]\nname = \n[limits\nwaiting = 1\n");
    let problems = case.problems();
    assert!(problems.len() >= 2, "all of them in one go: {problems}");
    assert!(problems.iter().all(|problem| problem.what.contains("not TOML")));
    assert_eq!(problems.iter().next().unwrap().place.line(), Some(2));
    let json = Case::new("a.json", "{\n  \"server\": {,}\n}");
    let problem = only(&json.problems()).clone();
    assert_eq!((problem.place.line(), problem.place.column()), (Some(2), Some(14)), "{problem}");
    let yaml = Case::new("a.yaml", "server:\n  name: [\n");
    assert!(only(&yaml.problems()).what.contains("cannot be parsed"));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    refused_after("[server]\nworker = 3\n", 2, 1, "server.worker", "unknown key", "did you mean \"workers\"?");
    refused_after(
        "[sites.s]\nupstream = 'app'\n[[sites.s.routes]]\ncache.stale_if_eror = \"1m\"\n",
        4,
        7,
        "sites.s.routes[0].cache.stale_if_eror",
        "unknown key",
        "\"stale_if_error\"",
    );
    refused_after("[listner.http]\n", 1, 2, "listner", "unknown key", "\"listeners\"");
    refused_after("[sites.s]\nbackend = 'app'\n", 2, 1, "sites.s.backend", "unknown key", "\"upstream\"");
    refused_after("[admin]\nwobble = 1\n", 2, 1, "admin.wobble", "unknown key", "remove it");
}

#[test]
fn types_are_not_guessed() {
    refused_after("[server]\nlenient_path = \"no\"\n", 2, 16, "server.lenient_path", "wrong type", "write false");
    refused_after("[limits]\nwaiting = \"5\"\n", 2, 11, "limits.waiting", "wrong type", "write 5 without quotes");
    refused_after("[limits]\nwaiting = 1.5\n", 2, 11, "limits.waiting", "wrong type", "");
    refused_after("[limits]\nwaiting = -1\n", 2, 11, "limits.waiting", "wrong type", "");
    refused_after("[server]\nname = 5\n", 2, 8, "server.name", "wrong type", "write \"5\"");
    refused_after("[sites.s]\nhosts = \"a.example\"\n", 2, 9, "sites.s.hosts", "wrong type", "write [\"a.example\"]");
    refused_after("[sites.s]\nhosts = [\"a.example\", 5]\n", 2, 23, "sites.s.hosts[1]", "wrong type", "write \"5\"");
    refused_after("[cache]\nttl = \"1h\"\n", 2, 7, "cache.ttl", "wrong type", "write { default = \"1h\" }");
    refused_after("[sites.s]\nroutes = { path = '/' }\n", 2, 10, "sites.s.routes", "wrong type", "list of tables");
}

#[test]
fn what_follows_from_a_problem_is_not_another_problem() {
    refused("[upstreams.app]\nendpoint = ['http://a']\n", 2, 1, "upstreams.app.endpoint", "unknown key", "\"endpoints\"");
    refused("[upstreams.app]\nendpoints = 'http://a'\n", 2, 13, "upstreams.app.endpoints", "wrong type", "[\"http://a\"]");
    refused_after("[listeners.http]\nport = 80\n", 2, 1, "listeners.http.port", "unknown key", "");
}

#[test]
fn words_are_checked() {
    refused_after("[server]\nruntime = \"percore\"\n", 2, 11, "server.runtime", "not one of the words", "did you mean \"per_core\"?");
    refused_after("[cache]\nset_cookie = \"keep\"\n", 2, 14, "cache.set_cookie", "not one of the words", "");
    refused_after("[log]\nlevel = \"warning\"\n", 2, 9, "log.level", "not a log level", "\"warn\"");
    refused_after("[log.access]\nformat = \"jsn\"\n", 2, 10, "log.access.format", "not one of the words", "\"json\"");
}

#[test]
fn quantities_need_units() {
    refused_after("[cache]\nstale_if_error = 300\n", 2, 18, "cache.stale_if_error", "needs a unit", "\"300s\"");
    refused_after("[cache]\nstale_if_error = \"300\"\n", 2, 18, "cache.stale_if_error", "needs a unit", "\"300s\"");
    refused_after("[cache]\nmax_object_size = 1000\n", 2, 19, "cache.max_object_size", "needs a unit", "\"1000B\"");
    refused_after("[memory]\nlimit = \"512m\"\n", 2, 9, "memory.limit", "not a unit", "\"512MiB\"");
    refused_after("[memory]\nstored_share = 0.6\n", 2, 16, "memory.stored_share", "percent sign", "60%");
    refused_after("[cache.ttl]\ndefault = { \"200\" = 60 }\n", 2, 21, "cache.ttl.default.200", "needs a unit", "\"60s\"");
    refused_after("[cache.ttl]\noverride = true\n", 2, 12, "cache.ttl.override", "wrong type", "");
    refused_after("[limits]\nheader_timeout = \"0s\"\n", 2, 18, "limits.header_timeout", "zero", "");
    refused_after("[limits]\nheader_bytes = \"1B\"\n", 2, 16, "limits.header_bytes", "out of bounds", "");
    refused_after("[server]\nworkers = 0\n", 2, 11, "server.workers", "number of threads", "auto");
    refused_after("[memory]\nlimit = \"1MiB\"\n", 2, 9, "memory.limit", "too little", "");
}

#[test]
fn addresses_hosts_and_networks_are_checked() {
    refused_after("[listeners.http]\naddress = \":8080\"\n", 2, 11, "listeners.http.address", "not an address", "\"0.0.0.0:8080\"");
    refused_after(
        "[listeners.http]\naddress = \"localhost:8080\"\n",
        2,
        11,
        "listeners.http.address",
        "not an address",
        "\"127.0.0.1:8080\"",
    );
    refused_after("[listeners.http]\n", 1, 12, "listeners.http", "without an address", "address = ");
    refused_after("[sites.s]\nhosts = [\"https://Shop.example/\"]\n", 2, 10, "sites.s.hosts[0]", "not a host", "\"shop.example\"");
    refused_after("[sites.s]\nhosts = [\"*\"]\n", 2, 10, "sites.s.hosts[0]", "not a host", "leave hosts empty");
    refused_after("[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"lb\"]\n", 2, 34, "server.trusted_proxies[1]", "not a network", "");
    refused_after("[purge]\nallow = [\"300.0.0.1\"]\n", 2, 10, "purge.allow[0]", "not a network", "");
    refused_after("[sites.s]\nhost = \"http://x\"\n", 2, 8, "sites.s.host", "not a host", "without scheme");
}

#[test]
fn upstreams_are_checked() {
    let refused = |url: &str, what: &str, remedy: &str| {
        super::config::refused(&format!("[upstreams.app]\nendpoints = [\"{url}\"]\n"), 2, 14, "upstreams.app.endpoints[0]", what, remedy);
    };
    refused("app:3000", "needs a scheme", "\"http://app:3000\"");
    refused("ftp://app", "not a scheme", "");
    refused("http://app/base", "no path", "add_prefix");
    refused("http://app:0", "not a port", "");
    refused("http://app:99999", "not a port", "");
    refused("http://", "not a host", "");
    refused("http://user@app", "not a host", "");
    refused_after("http1 = \"hypr\"\n", 1, 9, "upstreams.app.http1", "not one of the words", "did you mean \"hyper\"?");
    super::config::refused("[upstreams.app]\nretries = 1\n", 1, 12, "upstreams.app", "needs endpoints", "endpoints = ");
    refused_after("[sites.s]\nupstream = \"ap\"\n", 2, 12, "sites.s.upstream", "there is no upstream", "did you mean \"app\"?");
    refused_after(
        "[sites.s]\nupstream = 'app'\n[[sites.s.routes]]\nupstream = \"other\"\n",
        4,
        12,
        "sites.s.routes[0].upstream",
        "there is no upstream",
        "[upstreams.other]",
    );
}

#[test]
fn what_speaks_to_an_upstream_can_be_chosen() {
    let codec = |line: &str| Case::toml(&format!("{UPSTREAM}{line}")).settings().upstreams[0].http1;
    assert_eq!((codec(""), codec("http1 = 'own'")), (UpstreamCodec::Own, UpstreamCodec::Own));
    assert_eq!(codec("http1 = 'hyper'"), UpstreamCodec::Hyper);
}

#[test]
fn a_configuration_that_serves_nothing_is_refused() {
    let empty = load(&Sources::default()).unwrap_err();
    assert!(only(&empty).what.contains("no upstream at all") && only(&empty).remedy.contains("--upstream"), "{empty}");
    let several = format!("{UPSTREAM}[upstreams.b]\nendpoints = ['http://b']\n");
    assert!(only(&Case::toml(&several).problems()).what.contains("several upstreams"));
    refused(&format!("{several}[sites.s]\nhosts = ['a.example']\n"), 5, 8, "sites.s", "leads to no upstream", "upstream = \"app\"");
    let one = Case::toml(&format!("{UPSTREAM}[sites.s]\nhosts = ['a.example']\n")).settings();
    assert!(matches!(&one.sites[0].routes[0].action, Action::Proxy(upstream) if upstream.name == "app"), "one upstream needs no mention");
    let local = "[sites.s]\n[[sites.s.routes]]\nrespond = { body = 'x' }\n";
    assert!(Case::toml(local).settings().upstreams.is_empty(), "fixed answers need no upstream");
}

#[test]
fn the_whole_is_checked_for_conflicts() {
    refused_after(
        "[listeners.a]\naddress = '127.0.0.1:81'\n[listeners.b]\naddress = '0.0.0.0:81'\n",
        4,
        11,
        "listeners.b.address",
        "the same address as listeners.a",
        "another port",
    );
    refused_after(
        "[listeners.a]\naddress = '127.0.0.1:9180'\n[admin]\naddress = '127.0.0.1:9180'\n",
        4,
        11,
        "admin.address",
        "the same address",
        "",
    );
    refused_after("[admin]\naddress = \"0.0.0.0:9180\"\n", 2, 11, "admin.address", "needs a token", "token_file");
    refused_after(
        "[sites.a]\nupstream='app'\nhosts = ['x.example']\n[sites.b]\nupstream='app'\nhosts = ['y.example', 'X.example']\n",
        6,
        23,
        "sites.b.hosts[1]",
        "site \"a\" has",
        "",
    );
    refused_after("[sites.a]\nupstream='app'\n[sites.b]\nupstream='app'\n", 3, 8, "sites.b", "no hosts, like site \"a\"", "hosts");
    refused_after("[memory]\nstored_share = '80%'\nfill_share = '30%'\n", 3, 14, "memory.fill_share", "more than the whole", "");
    refused_after("[fill]\nmarker_first = '1h'\nmarker_max = '1m'\n", 3, 14, "fill.marker_max", "longer", "");
    refused_after(
        "[cache]\nmax_object_size = '1MiB'\nrange_whole_max = '2MiB'\n",
        3,
        19,
        "cache.range_whole_max",
        "larger than max_object_size",
        "",
    );
    for (size, what) in [("96KiB", "not a size of blocks"), ("32KiB", "not a size of blocks"), ("32MiB", "")] {
        refused_after(&format!("[cache]\nblocks = '{size}'\n"), 2, 10, "cache.blocks", what, "");
    }
    refused_after("[cache]\ncollapse = false\nblocks = '1MiB'\n", 3, 10, "cache.blocks", "blocks without collapse", "");
    refused_after("[cache.key]\nquery_allow = ['a']\nquery_ignore = ['b']\n", 3, 16, "cache.key.query_ignore", "contradict", "");
    let port_zero = Case::toml(&format!("{UPSTREAM}[listeners.a]\naddress='127.0.0.1:0'\n[listeners.b]\naddress='127.0.0.1:0'\n"));
    assert_eq!(port_zero.settings().listeners.len(), 2);
}

#[test]
fn what_is_no_host_moves_no_other_and_leaves_no_site_without() {
    let case = Case::toml(&format!("{UPSTREAM}[sites.s]\nhosts = ['exa mple.com', '*.*.x', 'a.com', 'A.com']\n"));
    let problems = case.problems();
    let told: Vec<_> = problems.iter().map(|problem| (problem.path.as_str(), problem.what.as_str(), problem.found.as_str())).collect();
    let expected = [
        ("sites.s.hosts[0]", "not a host", "\"exa mple.com\""),
        ("sites.s.hosts[1]", "not a host", "\"*.*.x\""),
        ("sites.s.hosts[3]", "a host named twice", "\"A.com\""),
    ];
    assert_eq!(told, expected, "{problems}");
    let hosts = [("['b/d']", "['c d']"), ("'a.example'", "'b.example'")];
    for (first, second) in hosts {
        let problems = Case::toml(&format!("{UPSTREAM}[sites.a]\nhosts = {first}\n[sites.b]\nhosts = {second}\n")).problems();
        assert!(problems.iter().all(|problem| problem.path.contains(".hosts")), "{problems}");
        assert_eq!(problems.len(), 2, "{problems}");
    }
}

#[test]
fn routes_are_checked() {
    let refused = |route: &str, column: usize, key: &str, what: &str, remedy: &str| {
        let text = format!("[sites.s]\nupstream = 'app'\n[[sites.s.routes]]\n{route}\n");
        let path = if key.is_empty() { "sites.s.routes[0]".to_owned() } else { format!("sites.s.routes[0].{key}") };
        refused_after(&text, if key.is_empty() { 3 } else { 4 }, column, &path, what, remedy);
    };
    refused("path = '/assets/*'", 8, "path", "not a path", "\"/assets/\"");
    refused("exact = 'robots.txt'", 9, "exact", "not a path", "\"/robots.txt\"");
    refused("pattern = '(a'", 11, "pattern", "not a regular expression: unclosed group", "");
    refused("methods = ['get']", 12, "methods[0]", "not a method", "\"GET\"");
    refused("headers = { x-a = { equal = 'b' } }", 19, "headers.x-a", "not a condition", "");
    refused("redirect = { status = 200, location = '/' }", 23, "redirect.status", "not a status for redirects", "308");
    refused("redirect = { status = 301 }", 12, "redirect", "needs a location", "location = ");
    refused("redirect = { location = '/{file}' }", 25, "redirect.location", "not a location", "");
    refused("respond = { status = 99 }", 22, "respond.status", "not a status", "");
    refused("respond = { body_file = 'none.txt' }", 25, "respond.body_file", "cannot be read", "");
    refused("cache.ttl.default = { '20x' = '1s' }", 23, "cache.ttl.default.20x", "not a status", "\"2xx\"");
    refused("bypass = [{ reason = 'logged in', cookies = ['s'] }]", 22, "bypass[0].reason", "not a token", "");
    refused("bypass = [{ reason = 'r' }]", 11, "bypass[0]", "without a condition", "cache.enabled");
    refused("rewrite = [{ strip_prefix = '/a', add_prefix = '/b' }]", 12, "rewrite[0]", "not one step", "one table per step");
    refused("rewrite = [{ strip_prefix = 'a' }]", 29, "rewrite[0].strip_prefix", "not a path", "\"/a\"");
    refused("response_headers.set.content-length = '5'", 22, "response_headers.set.content-length", "frames messages", "");
    refused("request_headers.set.host = 'x'", 21, "request_headers.set.host", "Host is not for editing", "host = ");
    refused("response_headers.set.x-a = \"a\\nb\"", 28, "response_headers.set.x-a", "not a field value", "");
    refused("strip_cookies = ['a b']", 18, "strip_cookies[0]", "not the name of a cookie", "");
}

#[test]
fn contradictory_routes_are_refused() {
    let route = |keys: &str| format!("{UPSTREAM}[sites.s]\nupstream = 'app'\n[[sites.s.routes]]\n{keys}\n");
    for (keys, what) in [
        ("path = '/a'\nexact = '/b'", "path and exact contradict"),
        ("upstream = 'app'\nredirect = { location = '/' }", "upstream and redirect contradict"),
        ("respond = { body = 'a', body_file = 'b' }", "body and body_file contradict"),
        ("respond = { status = 204, body = 'a' }", "cannot be sent"),
        ("path = '/'\n[[sites.s.routes]]\npath = '/a'", "never reached"),
        ("name = 'x'\npath = '/a'\n[[sites.s.routes]]\nname = 'x'\npath = '/b'", "another route of this site has"),
        ("name = 'a b'", "not a name"),
    ] {
        let problems = Case::toml(&route(keys)).problems();
        assert!(only(&problems).what.contains(what), "{problems}");
    }
}

#[test]
fn all_problems_come_in_one_go_in_the_order_of_the_file() {
    let text = "[server]\nname = \"a b\"\nworkrs = 2\n[cache]\nstale_if_error = 5\ncollapse = \"yes\"\n[sites.s]\nupstream = \"none\"\nhosts = [7, \"ok.example\", \"b/d\"]\n";
    let problems = Case::toml(&format!("{UPSTREAM}{text}")).problems();
    let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    let want = [
        "server.name",
        "server.workrs",
        "cache.stale_if_error",
        "cache.collapse",
        "sites.s.upstream",
        "sites.s.hosts[0]",
        "sites.s.hosts[2]",
    ];
    assert_eq!(paths, want, "{problems}");
    assert!(problems.to_string().ends_with("7 problems in the configuration"));
}

#[test]
fn sources_override_each_other_in_order() {
    let case = || Case::toml(&format!("{UPSTREAM}[server]\nname = 'file'\nworkers = 2\n[limits]\nwaiting = 7\n"));
    assert_eq!(case().settings().server.drain_timeout.as_secs(), 30, "a default");
    assert_eq!(case().settings().server.name, "file");
    let env = case().env("TIERCEL__SERVER__NAME", "env").env("TIERCEL__SERVER__WORKERS", "3");
    let settings = env.settings();
    assert_eq!((settings.server.name.as_str(), settings.server.workers, settings.limits.waiting), ("env", 3, 7));
    let flags = env.flags(json!({"server": {"name": "flag"}}));
    let settings = flags.settings();
    assert_eq!((settings.server.name.as_str(), settings.server.workers), ("flag", 3));
}

#[test]
fn the_environment_reaches_every_kind_of_value() {
    let settings = Case::toml(&format!("{UPSTREAM}[sites.Shop]\nupstream = 'app'\n"))
        .env("TIERCEL__UPSTREAMS__APP__ENDPOINTS", "http://a:1,http://b:2")
        .env("TIERCEL__SITES__SHOP__HOSTS", "['shop.example']")
        .env("TIERCEL__SITES__SHOP__CACHE__TTL__DEFAULT", "{ \"404\" = \"5s\" }")
        .env("TIERCEL__CACHE__COLLAPSE", "false")
        .env("TIERCEL__SERVER__NAME", "42")
        .env("TIERCEL_ADMIN_TOKEN", "not an override")
        .settings();
    assert_eq!(settings.upstreams[0].endpoints.iter().map(|endpoint| endpoint.port).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(settings.sites[0].hosts, ["shop.example"]);
    let cache = &settings.sites[0].routes[0].cache;
    assert_eq!(cache.ttl_default, [TtlRule { statuses: Statuses::One(404), lifetime_ms: 5000 }]);
    assert!(!cache.collapse);
    assert_eq!(settings.server.name, "42", "text stays text");
}

#[test]
fn problems_of_the_environment_and_of_flags_name_them() {
    let case = Case::toml(UPSTREAM)
        .env("TIERCEL__SERVER__WORKRS", "3")
        .env("TIERCEL__CACHE__COLLAPSE", "maybe")
        .env("TIERCEL__SITES__S__ROUTES__0__PATH", "/")
        .flags(json!({"memory": {"limit": "5"}, "listeners": {"http": {"address": "x"}}}));
    let problems = case.problems();
    let find = |path: &str| problems.iter().find(|problem| problem.path == path).unwrap_or_else(|| panic!("{path}: {problems}"));
    assert_eq!(find("server.workrs").place, Place::Environment("TIERCEL__SERVER__WORKRS".into()));
    assert_eq!(find("cache.collapse").place, Place::Environment("TIERCEL__CACHE__COLLAPSE".into()));
    assert!(find("sites.s.routes.0.path").remedy.contains("TIERCEL__SITES__S__ROUTES='"));
    assert_eq!(find("memory.limit").place, Place::Flag("--memory".into()));
    assert_eq!(find("listeners.http.address").place, Place::Flag("--listen".into()));
}

#[test]
fn variables_are_filled_in() {
    let text = "[upstreams.app]\nendpoints = [\"${ORIGIN}\"]\n[server]\nname = \"${NAME:-fallback}\"\nworkers = \"${WORKERS}\"\n[sites.s]\nupstream = 'app'\n[[sites.s.routes]]\npattern = '\\.css$'\n[[sites.s.routes]]\nexact = '/$${x}'\n";
    let settings = Case::toml(text).env("ORIGIN", "http://o:5").env("WORKERS", "2").settings();
    assert_eq!(settings.upstreams[0].endpoints[0].port, 5);
    assert_eq!((settings.server.name.as_str(), settings.server.workers), ("fallback", 2));
    let routes = &settings.sites[0].routes;
    assert!(matches!(&routes[0].matcher.path, PathMatch::Pattern(pattern) if pattern.as_str() == "\\.css$"));
    assert!(matches!(&routes[1].matcher.path, PathMatch::Exact(path) if path == "/${x}"));
    let problems = Case::toml(text).env("WORKERS", "2").problems();
    let problem = only(&problems);
    assert_eq!((problem.place.line(), problem.place.column()), (Some(2), Some(14)));
    assert!(problem.what.contains("ORIGIN is not set") && problem.remedy.contains("${ORIGIN:-value}"), "{problem}");
}

#[test]
fn includes_are_merged_over_the_file_in_order() {
    let case = Case::toml(&format!("include = ['conf.d/*.toml', 'extra.json']\n{UPSTREAM}[server]\nname = 'main'\nworkers = 2\n"))
        .file("conf.d/20-b.toml", "[server]\nname = 'b'\n")
        .file("conf.d/10-a.toml", "include = ['deep/x.yaml']\n[server]\nname = 'a'\n[limits]\nwaiting = 3\n")
        .file("conf.d/deep/x.yaml", "limits:\n  waiting: 9\n  header_count:\n")
        .file("conf.d/ignored.txt", "not read")
        .file("extra.json", "{\"memory\": {\"policy\": \"lru\"}}");
    let settings = case.settings();
    assert_eq!((settings.server.name.as_str(), settings.server.workers, settings.limits.waiting), ("b", 2, 9));
    assert_eq!(settings.memory.policy, tiercel::config::settings::Eviction::Lru);
}

#[test]
fn files_that_are_no_files_or_have_no_end_are_refused() {
    let device = |name: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join(name)).unwrap();
        folder
    };
    let folder = device("endless.toml");
    let included = Case::toml(&format!("include = ['{}']\n{UPSTREAM}", folder.path().join("endless.toml").display())).problems();
    assert!(only(&included).what.contains("not a regular file"), "{included}");
    for keys in ["[admin]\ntoken_file = '/dev/zero'\n", "[[sites.s.routes]]\nrespond = { body_file = '/dev/zero' }\n"] {
        let problems = Case::toml(&format!("{UPSTREAM}{keys}")).problems();
        assert!(only(&problems).what.contains("not a regular file"), "{problems}");
    }
    let long = Case::toml(&format!("{UPSTREAM}[admin]\ntoken_file = 'token'\n")).file("token", &"x".repeat(70_000)).problems();
    assert!(only(&long).what.contains("longer than 65536 bytes"), "{long}");
}

#[test]
fn problems_in_includes_name_the_included_file() {
    let case = Case::toml(&format!("include = ['a.toml']\n{UPSTREAM}")).file("a.toml", "\n[cache]\nkeep_stale = 5\n");
    let problems = case.problems();
    let Place::Line { file, line, .. } = &only(&problems).place else { panic!("{problems}") };
    assert_eq!((file.file_name().unwrap().to_str(), *line), (Some("a.toml"), 3));
    let missing = Case::toml(&format!("include = ['none.toml']\n{UPSTREAM}")).problems();
    assert!(only(&missing).what.contains("cannot be read"), "{missing}");
    assert_eq!(only(&missing).place.line(), Some(1));
    let circle = Case::toml(&format!("include = ['b.toml']\n{UPSTREAM}")).file("b.toml", "include = ['tiercel.toml']\n").problems();
    assert!(only(&circle).what.contains("includes itself"), "{circle}");
    let none = Case::toml(&format!("include = ['conf.d/*.toml']\n{UPSTREAM}"));
    assert_eq!(none.settings().upstreams.len(), 1, "a pattern may match nothing");
    refused(&format!("include = 'a.toml'\n{UPSTREAM}"), 1, 11, "include", "wrong type", "");
}

#[test]
fn missing_and_odd_files_are_refused() {
    let missing = load(&Sources { file: Some(PathBuf::from("/nonexistent/tiercel.toml")), ..Sources::default() }).unwrap_err();
    assert!(only(&missing).path.contains("/nonexistent/tiercel.toml") && only(&missing).what.contains("cannot be read"), "{missing}");
    let odd = Case::new("tiercel.conf", UPSTREAM).problems();
    assert!(only(&odd).what.contains("names no format"), "{odd}");
}

#[test]
fn yaml_and_json_say_the_same_as_toml() {
    let toml =
        Case::toml(&format!("{UPSTREAM}[sites.s]\nhosts = ['a.example']\nupstream = 'app'\n[cache]\nheuristic = false\n")).settings();
    let yaml = "upstreams:\n  app:\n    endpoints: ['http://127.0.0.1:3000']\nsites:\n  s:\n    hosts: [a.example]\n    upstream: app\ncache:\n  heuristic: false\n";
    let json = json!({"upstreams": {"app": {"endpoints": ["http://127.0.0.1:3000"]}}, "sites": {"s": {"hosts": ["a.example"], "upstream": "app"}}, "cache": {"heuristic": false}});
    assert_eq!(Case::new("a.yaml", yaml).settings().hash, toml.hash);
    assert_eq!(Case::new("a.json", &json.to_string()).settings().hash, toml.hash);
    let problems = Case::new("a.yml", &yaml.replace("heuristic:", "heuristics:")).problems();
    assert!(matches!(&only(&problems).place, Place::File(file) if file.ends_with("a.yml")), "{problems}");
}

#[test]
fn secrets_come_from_files_and_never_show() {
    let text = format!("{UPSTREAM}[admin]\naddress = '0.0.0.0:0'\ntoken_file = 'token'\n");
    let case = Case::toml(&text).file("token", "s3cret-one\n");
    let settings = case.settings();
    assert_eq!(settings.admin.token.as_ref().unwrap().expose(), "s3cret-one");
    assert!(!format!("{settings:?}{}", effective(&settings)).contains("s3cret"));
    assert_eq!(effective(&settings)["admin"]["token"], "***");
    std::fs::write(case.directory.path().join("token"), "s3cret-two").unwrap();
    let reloaded = case.settings();
    assert_eq!(reloaded.admin.token.as_ref().unwrap().expose(), "s3cret-two", "read again");
    assert_ne!(reloaded.hash, settings.hash);
    assert_eq!(changes(&settings, &reloaded).unwrap(), ["admin.token"]);

    let twice = Case::toml(&format!("{UPSTREAM}[admin]\ntoken = 's3cret'\ntoken_file = 'token'\n")).problems();
    assert!(only(&twice).what.contains("given twice") && !twice.to_string().contains("s3cret"), "{twice}");
    let missing = Case::toml(&text).problems();
    assert!(only(&missing).what.contains("cannot be read"), "{missing}");
    let bad = Case::toml(&format!("{UPSTREAM}[admin]\ntoken = 's3cret with spaces'\n")).problems();
    assert!(only(&bad).what.contains("not usable") && !bad.to_string().contains("s3cret"), "{bad}");
    let typed = Case::toml(&format!("{UPSTREAM}[admin]\ntoken = ['s3cret']\n")).problems();
    assert!(!typed.to_string().contains("s3cret"), "{typed}");
}

#[test]
fn flags_lead_the_default_site_to_their_upstream() {
    let flags = json!({"upstreams": {"default": {"endpoints": ["http://flag:1"]}}});
    let bare = load(&Sources { flags: flags.clone(), ..Sources::default() }).unwrap();
    assert_eq!((bare.sites[0].name.as_str(), bare.listeners[0].address.to_string()), ("default", "127.0.0.1:8080".to_owned()));
    assert_eq!(bare.admin.address.unwrap().to_string(), "127.0.0.1:9180");
    let file = format!("{UPSTREAM}[sites.web]\nupstream = 'app'\n[[sites.web.routes]]\npath = '/api/'\nupstream = 'app'\n");
    let settings = Case::toml(&file).flags(flags.clone()).settings();
    assert_eq!(settings.sites.len(), 1);
    let upstream = |route: usize| match &settings.sites[0].routes[route].action {
        Action::Proxy(upstream) => upstream.name.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((upstream(0).as_str(), upstream(1).as_str()), ("app", "default"));
    let other = format!("{UPSTREAM}[sites.web]\nupstream = 'app'\nhosts = ['a.example']\n");
    let settings = Case::toml(&other).flags(flags).settings();
    assert_eq!(settings.sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>(), ["default", "web"]);
}

#[test]
fn routes_inherit_from_site_and_top() {
    let text = format!(
        "{UPSTREAM}x_cache = true
        [cache]\nttl.default = '1m'\nstale_if_error = '2m'\nkey.query_ignore = ['utm_*']
        [response_headers]\nremove = ['server']\nset = {{ x-a = 'top', x-b = 'top' }}
        [sites.s]\nupstream = 'app'\nhost = 'upstream'\ncache.stale_if_error = '3m'\nbypass = [{{ reason = 'site', cookies = ['s'] }}]
        [[sites.s.routes]]\npath = '/a/'\ncache.stale_if_error = '4m'\ncache.ttl.default = {{ default = '9s', '4xx' = '2s', '404' = '1s' }}
        bypass = [{{ reason = 'route', methods = ['POST'] }}]\nresponse_headers = {{ set = {{ x-a = 'route', server = 'x' }}, add = {{ link = ['<a>', '<b>'] }} }}
        rewrite = [{{ drop_query = ['debug'] }}, {{ strip_prefix = '/a' }}]\n"
    );
    let text = text.replace(&format!("{UPSTREAM}x_cache = true"), &format!("x_cache = true\n{UPSTREAM}"));
    let settings = Case::toml(&text).settings();
    let [inner, rest] = settings.sites[0].routes.as_slice() else { panic!("{settings:?}") };
    assert_eq!((inner.name.as_str(), rest.name.as_str()), ("a", "default"));
    assert_eq!((inner.cache.stale_if_error_ms, rest.cache.stale_if_error_ms), (240_000, 180_000));
    assert_eq!(rest.cache.ttl_default, [TtlRule { statuses: Statuses::Usual, lifetime_ms: 60_000 }]);
    let statuses: Vec<Statuses> = inner.cache.ttl_default.iter().map(|rule| rule.statuses).collect();
    assert_eq!(statuses, [Statuses::One(404), Statuses::Class(4), Statuses::Usual], "the narrow ones first");
    assert_eq!(inner.bypass.iter().map(|rule| rule.reason.as_str()).collect::<Vec<_>>(), ["route", "site"]);
    assert_eq!((&inner.host, inner.x_cache), (&UpstreamHost::Upstream, true));
    assert_eq!(inner.key.query_ignore, ["utm_*", "debug"], "what the upstream does not see does not count");
    assert!(matches!(inner.rewrite.as_slice(), [Rewrite::DropQuery(_), Rewrite::StripPrefix(_)]));
    let set = |name: &str, value: &str| FieldEdit::Set { name: name.into(), value: value.into() };
    let add = |value: &str| FieldEdit::Add { name: "link".into(), value: value.into() };
    assert_eq!(inner.response_edits, [set("server", "x"), set("x-a", "route"), set("x-b", "top"), add("<a>"), add("<b>")]);
    assert_eq!(rest.response_edits.len(), 3);
}

#[test]
fn overrides_that_widen_the_rules_are_warned_about_once() {
    let settings = Case::toml(&format!(
        "{UPSTREAM}[purge]\nunsafe_methods = 'off'\n[cache]\nset_cookie = 'store'\nvary.ignore = ['user-agent']\n[sites.s]\nupstream='app'\n[[sites.s.routes]]\npath='/a'\ncache.ttl.override = '1h'\n"
    ))
    .settings();
    let starts: Vec<&str> = settings.warnings.iter().map(|warning| warning.split(':').next().unwrap()).collect();
    let mut sorted = starts.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        ["cache.set_cookie", "cache.vary.ignore", "purge.unsafe_methods", "sites.s.routes[0].cache.ttl.override"],
        "{settings:?}"
    );
    assert!(Case::toml(UPSTREAM).settings().warnings.is_empty());
    let defaults = |rules: &str| Case::toml(&format!("{UPSTREAM}[cache]\nttl.default = {rules}\n")).settings().warnings.len();
    assert_eq!(defaults("{ '404' = '1m', '200' = '1h', default = '5m' }"), 0);
    assert_eq!(defaults("'1h'"), 0);
    for beyond in ["{ '403' = '1m' }", "{ '4xx' = '1m' }", "{ '503' = '1s', '404' = '1m' }"] {
        assert_eq!(defaults(beyond), 1, "{beyond}: RFC 9111 section 3");
    }
}

#[test]
fn shares_of_a_lifetime_and_lists_of_fields_have_bounds() {
    for (keys, path) in [
        ("ttl.jitter = '60%'", "cache.ttl.jitter"),
        ("early_refresh = '51%'", "cache.early_refresh"),
        ("store_after = 0", "cache.store_after"),
        ("store_after = 256", "cache.store_after"),
        ("targeted = ['cache-control']", "cache.targeted[0]"),
        ("targeted = ['a b']", "cache.targeted[0]"),
        ("targeted = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']", "cache.targeted"),
    ] {
        let problems = Case::toml(&format!("{UPSTREAM}[cache]\n{keys}\n")).problems();
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [path], "{keys}");
    }
    let settings =
        Case::toml(&format!("{UPSTREAM}[server]\nname = 'edge'\n[cache]\ntargeted = ['Surrogate-Control']\nttl.jitter = '10%'\n"))
            .settings();
    let cache = &settings.sites[0].routes[0].cache;
    assert_eq!(
        (cache.targeted.names().collect::<Vec<_>>(), cache.targeted.device(), cache.ttl_jitter),
        (vec!["surrogate-control"], "edge", 0.1)
    );
}

#[test]
fn the_journal_has_bounds_and_a_node_of_a_fleet_a_name() {
    for (keys, path) in [
        ("trust = '500ms'", "journal.trust"),
        ("trust = '2m'", "journal.trust"),
        ("repair = '1s'", "journal.repair"),
        ("forget_after = '1s'", "journal.forget_after"),
        ("trust = '60s'\nforget_after = '61s'", "journal.forget_after"),
        ("serve_at_most = '0s'", "journal.serve_at_most"),
        ("max_entries = 10", "journal.max_entries"),
        ("node = 'a b'", "journal.node"),
        ("node = ''", "journal.node"),
        ("redis.mode = 'cluster'", "journal.redis.mode"),
    ] {
        let problems = Case::toml(&format!("{UPSTREAM}[journal]\n{keys}\n")).problems();
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [path], "{keys}");
    }
    let listener = |port: u16| format!("{UPSTREAM}[listeners.http]\naddress = '127.0.0.1:{port}'\n");
    let fleet = "[cache.redis]\nurl = 'redis://127.0.0.1'\n";
    let problems = Case::toml(&format!("{}{fleet}", listener(0))).problems();
    assert_eq!(problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), ["journal.node"]);
    let settings = Case::toml(&format!("{}{fleet}", listener(8081))).settings();
    assert!(settings.journal.node.ends_with(":8081"), "{}", settings.journal.node);
    assert_eq!(settings.journal_redis(), settings.redis.as_ref().map(|tier| &tier.server), "that of the tier");
    let own = "[journal]\nnode = 'edge-1'\nredis.url = 'redis://127.0.0.2'\n";
    let settings = Case::toml(&format!("{}{fleet}{own}", listener(0))).settings();
    assert_eq!((settings.journal.node.as_str(), settings.journal_redis()), ("edge-1", settings.journal.redis.as_ref()));
    assert!(Case::toml(UPSTREAM).settings().journal_redis().is_none());
    let tells = |value: &str| {
        let settings = Case::toml(&format!("{UPSTREAM}[purge]\nunsafe_methods = '{value}'\n")).settings();
        (settings.purge.unsafe_methods, settings.journal.tell_unsafe)
    };
    assert_eq!(["fleet", "local", "off"].map(tells), [(true, true), (true, false), (false, false)]);
}

#[test]
fn addresses_of_valkey_are_those_of_redis() {
    for (given, means) in [
        ("valkey://cache.example", "redis://cache.example:6379"),
        ("valkey://[::1]:7000/", "redis://[::1]:7000"),
        ("valkeys://cache.example:7000", "rediss://cache.example:7000"),
    ] {
        let settings = Case::toml(&format!("{UPSTREAM}[journal]\nnode = 'a'\nredis.url = '{given}'\n")).settings();
        let redis = settings.journal.redis.expect("a connection");
        assert_eq!(redis.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), [means], "{given}");
    }
}

#[test]
fn a_reload_names_what_changes_and_refuses_what_cannot() {
    let load = |text: &str| Case::toml(&format!("{UPSTREAM}{text}")).settings();
    let old = load("[server]\nworkers = 2\n[memory]\nlimit = '64MiB'\n");
    assert_eq!(changes(&old, &old).unwrap(), Vec::<String>::new());
    let live =
        load("[server]\nworkers = 2\n[memory]\nlimit = '64MiB'\n[listeners.b]\naddress = '127.0.0.1:0'\n[limits]\nidle_timeout = '1s'\n");
    assert_eq!(changes(&old, &live).unwrap(), ["limits.idle_timeout", "listeners.b", "listeners.http"]);
    let fixed = load("[server]\nworkers = 3\nruntime = 'shared'\n[memory]\nlimit = '65MiB'\npolicy = 'lru'\n");
    let refused = changes(&old, &fixed).unwrap_err();
    let paths: Vec<&str> = refused.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["memory.limit", "memory.policy", "server.runtime", "server.workers"]);
    assert!(refused.to_string().contains("3, running with 2"), "{refused}");
}

#[test]
fn what_is_printed_loads_again_as_the_same() {
    let text = std::fs::read_to_string(example("tiercel.toml")).unwrap();
    let more = "[sites.other]\nhosts = ['*.example']\nupstream = 'shop'\nhost = 'literal:81'\n[[sites.other.routes]]\npattern = '^/(a|b)$'\nmethods = ['GET']\nheaders = { x-a = { pattern = 'x$' }, x-b = { present = false } }\nquery = { q = { prefix = '$${' } }\ncache.ttl.jitter = '10%'\ncache.early_refresh = '5%'\ncache.store_after = 2\ncache.targeted = ['x-accel-expires', 'cdn-cache-control']\nrewrite = [{ drop_query = ['d'] }, { pattern = '^/(.*)$', with = '/$1' }, { set_query = { a = '1' } }]\ncache.key.query_allow = ['q']\nrequest_headers = { add = { x = ['1', '2'] } }\n";
    let first = Case::toml(&format!("{text}\n{more}")).settings();
    let printed = toml::to_string_pretty(&effective(&first)).unwrap();
    let second = Case::toml(&printed).settings();
    assert_eq!(effective(&first), effective(&second));
    assert_eq!(first.hash, second.hash);
}

#[test]
#[cfg(feature = "acme")]
fn hosts_to_be_certified_survive_printing_and_are_shared_only_with_a_secret() {
    let text = "[listeners.https]\naddress = '127.0.0.1:8443'\n[listeners.https.tls]\ncertificates = [{ acme = ['Shop.example', 'a.example'] }]\n[acme]\nagree_to_terms = true\ncontact = ['mailto:a@shop.example']\nkey_type = 'rsa2048'\nchallenges = ['tls-alpn-01']\nrenew_before = '20d'\nrenew_jitter = '5%'\nretry_first = '2m'\norders = 2\nfolder = '/kept'\n";
    let first = Case::toml(&format!("{UPSTREAM}{text}")).settings();
    let second = Case::toml(&toml::to_string_pretty(&effective(&first)).unwrap()).settings();
    assert_eq!(effective(&first), effective(&second));
    let wanted = first.acme_certificates();
    assert_eq!(wanted, second.acme_certificates());
    assert_eq!(wanted[0].hosts, ["shop.example", "a.example"]);
    let kept = wanted[0].file.to_str().unwrap();
    assert!(kept.starts_with("/kept/acme-v02.api.letsencrypt.org-") && kept.contains("/shop.example-"), "{kept}");
    assert!(first.warnings.is_empty(), "{:?}", first.warnings);
    let in_fleet = |more: &str| {
        let text = format!("{UPSTREAM}{text}{more}\n[cache.redis]\nurl = 'redis://127.0.0.1:6379'\n[journal]\nnode = 'one'\n");
        Case::toml(&text).settings().warnings.iter().any(|warning| warning.contains("acme.seal_file"))
    };
    assert!(in_fleet("") && !in_fleet("seal = 'a-secret-of-this-fleet'"));
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn the_examples_load() {
    for name in ["tiercel.toml", "api.toml", "conformance.toml", "default.toml"] {
        let sources = Sources { file: Some(example(name)), env: vec![("ORIGIN".into(), "http://127.0.0.1:1".into())], flags: Value::Null };
        let settings = load(&sources).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        let widens = settings.warnings.iter().filter(|warning| !warning.starts_with("cache.set_cookie")).count();
        assert_eq!(widens, 0, "{name}: {:?}", settings.warnings);
        if name == "conformance.toml" {
            assert_eq!(settings.sites[0].routes[0].cache.set_cookie, SetCookie::Store);
            assert_eq!(settings.log.access.target, LogTarget::Off);
        }
        if name == "api.toml" {
            assert!(matches!(&settings.sites[0].routes[1].bypass[0].condition.headers[0].1, ValueMatch::Present));
        }
    }
}

#[test]
fn classes_and_choices_are_checked() {
    for (text, path) in [
        ("[cache.key.classes.device]\nrules = []\n", "cache.key.classes.device"),
        ("[cache.key.classes.device]\nrules = [{ value = 'a' }]\n", "cache.key.classes.device.rules[0]"),
        ("[cache.key.classes.device]\nrules = [{ value = 'a b', headers = { x = '1' } }]\n", "cache.key.classes.device.rules[0].value"),
        (
            "[cache.key.classes.device]\nrules = [{ value = 'a', headers = { x = { pattern = '(' } } }]\n",
            "cache.key.classes.device.rules[0].headers.x.pattern",
        ),
        (
            "[cache.key.classes.device]\nforward = 'host'\nrules = [{ value = 'a', headers = { x = '1' } }]\n",
            "cache.key.classes.device.forward",
        ),
        ("[cache.key.classes.'a:b']\nrules = [{ value = 'a', headers = { x = '1' } }]\n", "cache.key.classes.\"a:b\""),
        ("[cache.key]\ncookies = ['_ga*']\n", "cache.key.cookies[0]"),
        ("[cache.vary]\nlanguages = ['en', 'EN']\n", "cache.vary.languages[1]"),
        ("[cache.vary]\nlanguages = ['*']\n", "cache.vary.languages[0]"),
        ("[cache.vary]\nimages = ['image/*']\n", "cache.vary.images[0]"),
        ("[cache]\nvary_ignore = ['x']\n", "cache.vary_ignore"),
        ("[cache.body_key]\nmethods = ['QUERY', 'PUT']\n", "cache.body_key.methods[1]"),
        ("[cache.body_key]\nmax_bytes = '2MiB'\n", "cache.body_key.max_bytes"),
    ] {
        let problems = Case::toml(&format!("{UPSTREAM}{text}")).problems();
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.clone()).collect();
        assert_eq!(paths, [path], "{text}");
    }
}

#[test]
fn default_toml_says_what_the_code_does() {
    let file = load(&Sources { file: Some(example("default.toml")), ..Sources::default() }).unwrap_or_else(|problems| panic!("{problems}"));
    let flags = json!({"upstreams": {"default": {"endpoints": ["http://127.0.0.1:3000"]}}});
    let built_in = load(&Sources { flags, ..Sources::default() }).unwrap();
    assert_eq!(format!("{file:#?}"), format!("{built_in:#?}"));
}

#[test]
fn rate_limits_are_checked_and_survive_printing() {
    let refused = |text: &str, line, column, path: &str, what: &str, remedy: &str| refused_after(text, line, column, path, what, remedy);
    refused("[rate_limit]\nrate = \"100\"\n", 2, 8, "rate_limit.rate", "needs a unit", "\"100/s\"");
    refused("[rate_limit]\nrate = 100\n", 2, 8, "rate_limit.rate", "needs a unit", "\"100/s\"");
    refused("[rate_limit]\nrate = \"100/w\"\n", 2, 8, "rate_limit.rate", "not a unit", "s, m, h, d");
    refused("[rate_limit]\nburst = 5\n", 1, 2, "rate_limit", "without a rate", "rate = ");
    refused("[rate_limit]\nrate = \"1/s\"\nburst = 0\n", 3, 9, "rate_limit.burst", "out of bounds", "");
    refused("[rate_limit]\nrate = \"1/s\"\nby = \"a b\"\n", 3, 6, "rate_limit.by", "not the name of a field", "client");
    refused("[rate_limit]\nrate = \"1/s\"\nname = \"a b\"\n", 3, 8, "rate_limit.name", "not a name", "");
    refused("[purge]\nrate = \"0/s\"\n", 2, 8, "purge.rate", "out of bounds", "off");
    let two = "[[sites.s.routes]]\npath = '/a'\nrate_limit = { rate = '1/s', name = 'x' }\n[[sites.s.routes]]\npath = '/b'\nrate_limit = { rate = '2/s', name = 'x' }\n";
    let problems = Case::toml(&format!("{UPSTREAM}{two}")).problems();
    assert!(only(&problems).what.contains("two different limits are called \"x\""), "{problems}");
    let text = "[rate_limit]\nrate = \"100/m\"\nby = \"X-Key\"\n[purge]\nrate = \"5/h\"\nburst = 7\n[sites.s]\n[[sites.s.routes]]\npath = \"/a/\"\nrate_limit = { rate = \"1/d\" }\n[[sites.s.routes]]\npath = \"/b/\"\nrate_limit.rate = \"off\"\n";
    let settings = Case::toml(&format!("{UPSTREAM}{text}")).settings();
    let limits: Vec<_> = settings.sites[0].routes.iter().map(|route| route.rate_limit.clone()).collect();
    let names: Vec<_> = limits.iter().map(|limit| limit.as_ref().map(|limit| limit.name.as_str())).collect();
    assert_eq!(names, [Some("s.a"), None, Some("default")]);
    let printed = Case::new("printed.json", &effective(&settings).to_string()).settings();
    assert_eq!(limits, printed.sites[0].routes.iter().map(|route| route.rate_limit.clone()).collect::<Vec<_>>());
    assert_eq!(settings.purge.rate_limit, printed.purge.rate_limit);
}

/// Every table type of the schema with each of its keys that occurs in a tree.
fn seen(schema: &Value, node: &Value, value: &Value, found: &mut Vec<String>) {
    let name = node.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"));
    let node = name.map_or(node, |name| &schema["$defs"][name]);
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                if let Some(inner) = node["properties"].get(key) {
                    found.push(format!("{}.{key}", name.unwrap_or_default()));
                    seen(schema, inner, value, found);
                } else if let Some(inner) = node.get("additionalProperties").filter(|inner| inner.is_object()) {
                    seen(schema, inner, value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| seen(schema, &node["items"], item, found)),
        _ => {}
    }
}

#[test]
fn default_toml_names_every_key_of_the_schema() {
    let text = std::fs::read_to_string(example("default.toml")).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let tree: Value = toml::from_str(&uncommented).unwrap_or_else(|error| panic!("with the commented keys: {error}"));
    let schema = schema();
    let mut found = Vec::new();
    seen(&schema, &schema, &tree, &mut found);
    let keys = |name: &str, node: &Value| {
        node["properties"].as_object().into_iter().flatten().map(|(key, _)| format!("{name}.{key}")).collect::<Vec<_>>()
    };
    let defs = schema["$defs"].as_object().unwrap().iter().filter(|(name, _)| *name != "RawValueMatch");
    let all = defs.flat_map(|(name, node)| keys(name, node)).chain(keys("", &schema));
    let missing: Vec<String> = all.filter(|key| !found.contains(key)).collect();
    assert!(missing.is_empty(), "config/default.toml does not name {missing:?}");
    let comments = text.lines().filter(|line| line.starts_with("# ")).count();
    assert!(comments > 80, "keys are explained");
}

#[test]
fn random_files_never_panic() {
    use proptest::prelude::*;
    let pieces = [
        "[cache]\n",
        "ttl",
        " = ",
        "\"1h\"",
        "[[sites.a.routes]]\n",
        "path",
        "'/x'\n",
        "5\n",
        "{ default = '1s' }\n",
        "${",
        "}",
        "[sites.b]\n",
        "hosts = ['x']\n",
        "\n",
        "é",
        "include = ['*']\n",
        "[listeners.x]\n",
        "address = ':1'\n",
    ];
    let text = proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..14).prop_map(|parts| parts.concat());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.toml");
    let sources = Sources { file: Some(file.clone()), ..Sources::default() };
    proptest!(ProptestConfig::with_cases(128), |(text in text)| {
        std::fs::write(&file, &text).unwrap();
        if let Err(problems) = load(&sources) {
            prop_assert!(!problems.is_empty());
            let _ = problems.to_string();
        }
    });
}

// -- The binary ----------------------------------------------------------------

fn tiercel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tiercel")).args(arguments).env_remove("TIERCEL_ADMIN_TOKEN").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_says_fine_or_everything_that_is_wrong() {
    let fine = tiercel(&["check", "--config", example("tiercel.toml").to_str().unwrap()]);
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine.stderr));
    assert!(text(&fine.stdout).contains("The configuration is fine: 1 listener, 1 upstream, 1 site, 5 routes"), "{}", text(&fine.stdout));
    let case = Case::toml("[server]\nworkrs = 1\n[cache]\nkeep_stale = 5\n");
    let file = case.sources.file.as_ref().unwrap().to_str().unwrap();
    let broken = tiercel(&["check", "-c", file]);
    assert_eq!(broken.status.code(), Some(2));
    let errors = text(&broken.stderr);
    for want in [
        "tiercel.toml:2:1",
        "2 | workrs = 1",
        "did you mean \"workers\"?",
        "tiercel.toml:4:14",
        "\"5s\"",
        "no upstream at all",
        "3 problems",
    ] {
        assert!(errors.contains(want), "{want}: {errors}");
    }
    assert!(broken.stdout.is_empty());
    let as_json = tiercel(&["check", "-c", file, "--json"]);
    assert_eq!(as_json.status.code(), Some(2));
    let result: Value = serde_json::from_slice(&as_json.stdout).unwrap();
    assert_eq!((result["ok"].clone(), result["problems"][0]["line"].clone()), (json!(false), json!(2)));
}

#[test]
fn flags_are_checked_like_a_file() {
    let fine = tiercel(&["check", "--upstream", "http://127.0.0.1:3000", "--listen", "127.0.0.1:0", "--memory", "64MiB", "--workers", "2"]);
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine.stderr));
    let wrong = tiercel(&["run", "--upstream", "app:3000", "--memory", "64", "--workers", "many"]);
    assert_eq!(wrong.status.code(), Some(2));
    let errors = text(&wrong.stderr);
    for want in ["flag --upstream", "\"http://app:3000\"", "flag --memory", "\"64MiB\"", "flag --workers", "3 problems"] {
        assert!(errors.contains(want), "{want}: {errors}");
    }
}

#[test]
fn config_print_shows_what_is_in_effect() {
    let case = Case::toml(&format!("{UPSTREAM}[admin]\ntoken = 'hidden-token'\n"));
    let file = case.sources.file.as_ref().unwrap().to_str().unwrap();
    let printed = tiercel(&["config", "print", "-c", file, "--name", "edge", "--access-log", "off"]);
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    let printed = text(&printed.stdout);
    assert!(!printed.contains("hidden-token"));
    let tree: Value = toml::from_str(&printed).unwrap();
    assert_eq!(tree["server"]["name"], "edge");
    assert_eq!(tree["log"]["access"]["target"], "off");
    assert_eq!(tree["admin"]["token"], "***");
    let as_json: Value =
        serde_json::from_slice(&tiercel(&["config", "print", "-c", file, "--name", "edge", "--access-log", "off", "--json"]).stdout)
            .unwrap();
    assert_eq!(as_json, tree);
}

#[test]
fn config_schema_is_a_json_schema() {
    let output = tiercel(&["config", "schema"]);
    assert_eq!(output.status.code(), Some(0));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, schema());
    assert!(printed["$schema"].as_str().unwrap().contains("2020-12"));
    assert_eq!(printed["additionalProperties"], false);
    assert!(printed["$defs"]["RawCache"]["properties"]["stale_if_error"]["description"].as_str().unwrap().contains("RFC 5861"));
}

#[test]
fn help_version_completions_and_manual_are_complete() {
    let help = tiercel(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["run", "demo", "check", "config", "purge", "get", "explain", "reload", "redis-stats", "version", "completions", "man"] {
        assert!(text(&help.stdout).contains(&format!("  {command} ")), "{command}");
        let own = tiercel(&[command, "--help"]);
        assert_eq!(own.status.code(), Some(0), "{command}");
    }
    let run = text(&tiercel(&["run", "--help"]).stdout);
    for flag in ["--config", "--upstream", "--listen", "--admin", "--memory", "--workers", "--name", "--access-log", "--metrics"] {
        assert!(run.contains(flag), "{flag}: {run}");
    }
    let list = tiercel::semantics::tracking::VERSION;
    assert_eq!(text(&tiercel(&["version"]).stdout), format!("tiercel {}\ntracking parameters: list {list}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(text(&tiercel(&["--version"]).stdout), format!("tiercel {}\n", env!("CARGO_PKG_VERSION")));
    assert!(text(&tiercel(&["completions", "bash"]).stdout).contains("_tiercel"));
    assert!(text(&tiercel(&["man"]).stdout).contains(".TH tiercel"));
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(tiercel(&["man", "--output", directory.path().to_str().unwrap()]).status.code(), Some(0));
    assert!(directory.path().join("tiercel-purge.1").exists());
}

#[test]
fn wrong_usage_is_exit_code_two_and_failure_is_one() {
    for arguments in [
        &[][..],
        &["sing"],
        &["run", "--nothing"],
        &["purge"],
        &["get"],
        &["explain"],
        &["config"],
        &["get", "https://x/"],
        &["purge", "--everything", "--admin", "ftp://x"],
        &["explain", "http://a/", "-H", "no colon"],
        &["reload", "--token-file", "/nonexistent"],
    ] {
        let output = tiercel(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    // A port that was free a moment ago and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    for arguments in [
        &["reload", "--admin", &url][..],
        &["purge", "--everything", "--admin", &url],
        &["explain", "http://a/", "--admin", &url],
        &["get", "http://a/", "--proxy", &url],
    ] {
        let output = tiercel(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("cannot connect"), "{}", text(&output.stderr));
    }
}

/// A server for one exchange: returns its address, and what it was sent once it has answered.
fn answer_once(answer: &'static [u8]) -> (String, std::thread::JoinHandle<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let taken = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..taken]);
            let sent = text(&request);
            let whole = sent.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head
                    .lines()
                    .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse::<usize>().ok()));
                body.len() >= length.unwrap_or(0)
            });
            if whole || taken == 0 {
                stream.write_all(answer).unwrap();
                return sent;
            }
        }
    });
    (url, server)
}

#[test]
fn commands_speak_to_the_admin_api() {
    let (url, server) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 33\r\n\r\n{\"id\": \"abc\", \"complete\":  true}\n");
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "tok\n").unwrap();
    let output = tiercel(&["purge", "--key", "k", "--soft", "--admin", &url, "--token-file", token.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "complete  yes\nid        abc\n");
    let request = server.join().unwrap();
    assert!(request.starts_with("POST /v1/purge HTTP/1.1\r\n") && request.contains("authorization: Bearer tok\r\n"), "{request}");
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((body["tags"].clone(), body["mode"].clone()), (json!(["k"]), json!("soft")));

    let (url, server) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{\"forgotten\": \"edge-1\"}\n");
    let output = tiercel(&["nodes", "forget", "edge-1", "--admin", &url]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "forgotten  edge-1\n".into()), "{}", text(&output.stderr));
    assert!(server.join().unwrap().starts_with("DELETE /v1/nodes/edge-1 HTTP/1.1\r\n"));

    let (url, server) = answer_once(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 22\r\n\r\n{\"error\":\"no such url\"}");
    let output = tiercel(&["explain", "http://a/", "-H", "Accept: text/html", "--method", "HEAD", "--admin", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(server.join().unwrap().contains(r#"{"content":"","headers":[["Accept","text/html"]],"method":"HEAD","url":"http://a/"}"#));
    let _ = url;
}

#[test]
fn get_shows_what_the_cache_did() {
    let (url, server) = answer_once(b"HTTP/1.1 200 OK\r\ncache-status: tiercel; hit; ttl=9\r\nage: 3\r\ncontent-length: 5\r\n\r\nhello");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    let output = tiercel(&["get", "http://shop.example/a?b=c", "--proxy", &url, "-H", "X-A: 1", "--output", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for want in ["HTTP/1.1 200 OK", "age: 3", "cache   tiercel: hit, fresh for 9 s more", "age     3 s", "body    5 bytes"] {
        assert!(shown.contains(want), "{want}: {shown}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"hello");
    let request = server.join().unwrap();
    assert!(
        request.starts_with("GET /a?b=c HTTP/1.1\r\n") && request.contains("host: shop.example\r\n") && request.contains("x-a: 1\r\n"),
        "{request}"
    );

    let (url, server) = answer_once(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort");
    let output = tiercel(&["get", "http://shop.example/", "--proxy", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ended early, after 5 bytes"), "{}", text(&output.stderr));
    server.join().unwrap();
}

#[test]
fn secrets_of_a_fleet_that_can_be_guessed_are_refused() {
    let server = "[cache.redis]\nurl = 'redis://127.0.0.1'\n";
    let peers = "[shield]\npeers = ['http://10.0.0.1:1']\n";
    for (text, path) in [
        (format!("{UPSTREAM}{server}seal = 'fifteen-letters'\n"), "cache.redis.seal"),
        (format!("{UPSTREAM}{peers}secret = 'fifteen-letters'\n"), "shield.secret"),
    ] {
        let problems = Case::toml(&text).problems();
        let problem = only(&problems);
        assert!(problem.path == path && problem.what.contains("can be guessed"), "{problem}");
    }
    let sealed = Case::toml(&format!("{UPSTREAM}[cache.redis]\nurl = 'redis://127.0.0.1'\nseal = 'sixteen--letters'\n"));
    assert!(sealed.settings().redis.is_some_and(|redis| redis.key.is_some()));
}

#[test]
fn a_shield_that_gives_up_before_an_owner_does_is_warned_about() {
    let warnings = |shield: &str, upstream: &str| {
        let shield = format!("[shield]\npeers = ['http://10.0.0.1:1']\nsecret = '0123456789abcdef'\n{shield}");
        Case::toml(&format!("[upstreams.app]\nendpoints = ['http://127.0.0.1:1']\n{upstream}{shield}")).settings().warnings
    };
    assert_eq!(warnings("", ""), Vec::<String>::new(), "the defaults go together");
    for (shield, upstream) in
        [("first_byte_timeout = '68s'\n", ""), ("", "first_byte_timeout = '40s'\n"), ("", "purge_queue_timeout = '40s'\n")]
    {
        let warned = warnings(shield, upstream);
        assert!(warned.len() == 1 && warned[0].starts_with("shield.first_byte_timeout: "), "{shield}{upstream}: {warned:?}");
    }
}

#[test]
fn a_node_that_will_start_cold_is_warned_about() {
    let warnings = |more: &str| {
        let shield = "[shield]\nlisten = '10.0.0.2:9182'\npeers = ['http://10.0.0.1:9182']\nsecret = '0123456789abcdef'\n";
        Case::toml(&format!("{UPSTREAM}{shield}{more}")).settings().warnings
    };
    let warned = warnings("");
    assert!(warned.len() == 1 && warned[0].starts_with("shield.warm_time: "), "{warned:?}");
    for more in ["warm_time = 'off'\n", "[journal.redis]\nurl = 'redis://127.0.0.1'\n", "[cache.redis]\nurl = 'redis://127.0.0.1'\n"] {
        assert_eq!(warnings(more), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn nodes_of_a_shield_have_tls_all_or_none() {
    let shield = |more: &str| format!("[shield]\nsecret = '0123456789abcdef'\n{more}");
    let peers = |scheme: &str| shield(&format!("peers = ['{scheme}://10.0.0.2:9182']\n"));
    refused_after(&peers("https"), 3, 10, "shield.peers[0]", "needs certificates", "[shield.tls]");
    let pki = Pki::new();
    pki.issue("node", &["node.fleet"], EC, 30);
    let table = |authority: &str| {
        let folder = pki.folder().display();
        format!("[shield.tls]\ncert_file = '{folder}/node.pem'\nkey_file = '{folder}/node.key'\n{authority}")
    };
    let ca = format!("ca_file = '{}'\n", pki.path("ca.pem").display());
    refused_after(&format!("{}{}", peers("http"), table(&ca)), 3, 10, "shield.peers[0]", "for all nodes", "https://10.0.0.2:9182");
    refused_after(&format!("{}{}", peers("https"), table("")), 4, 9, "shield.tls.ca_file", "authority of their own", "PEM");
    let key_as_ca = format!("ca_file = '{}'\n", pki.path("node.key").display());
    refused_after(
        &format!("{}{}", peers("https"), table(&key_as_ca)),
        7,
        11,
        "shield.tls.ca_file",
        "no certificate of an authority",
        "PEM",
    );
    let named = format!("{ca}server_name = 'a b'\n");
    refused_after(&format!("{}{}", peers("https"), table(&named)), 8, 15, "shield.tls.server_name", "not a name", "correct");
    let settings = Case::toml(&format!("{UPSTREAM}{}{}", peers("https"), table(&ca))).settings();
    assert!(settings.shield.tls.is_some());
    let printed = effective(&settings);
    assert_eq!(printed["shield"]["peers"], json!(["https://10.0.0.2:9182"]));
    assert_eq!(printed["shield"]["tls"]["cert_file"], json!(pki.path("node.pem")));
}

#[test]
fn the_listener_for_other_nodes_has_its_name_for_itself() {
    let listen = "[shield]\nsecret = '0123456789abcdef'\nlisten = '10.0.0.1:9182'\n";
    let listener = "[listeners.shield]\naddress = '127.0.0.1:8080'\n";
    refused_after(&format!("{listen}{listener}"), 4, 12, "listeners.shield", "the name of the listener for other nodes", "another name");
    Case::toml(&format!("{UPSTREAM}{listener}")).settings();
}
