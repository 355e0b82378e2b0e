//! A request on its way to the store, as `explain` goes it: the first line is the method, the second the URL, the rest field
//! lines `name:value`. The sender is a trusted proxy, and the routes look at all they can: Forwarded and X-Forwarded-*,
//! cookies, CDN-Loop, Max-Forwards, Host, the query, Accept-* and Vary fields in the key.
//!
//! What is admitted has a normal form: asked for by its normalised URL, the same request has the same key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use tiercel::config::settings::Rewrite;
use tiercel::proxy::Proxy;
use tiercel::route::{redirect_location, rewrite};
use tiercel::semantics::Target;
use tiercel_fuzz::at_once;

const CONFIG: &str = r#"
[server]
trusted_proxies = ["127.0.0.1"]
[upstreams.origin]
endpoints = ["http://127.0.0.1:9"]
[log.access]
target = "off"
[sites.shop]
hosts = ["shop.example", "*.shop.example"]
upstream = "origin"
strip_cookies = ["_ga*"]
cache.key = { query_sort = true, ignore_tracking = true, query_ignore = ["x*"], headers = ["accept-language", "x-a"], cookies = ["theme"] }
bypass = [{ reason = "preview", cookies = ["session"] }, { reason = "draft", query = { preview = { present = true } } }]
[[sites.shop.routes]]
path = "/old/"
redirect = { status = 308, location = "https://{host}/new{path}{query}" }
[sites.default]
upstream = "origin"
"#;

static PROXY: LazyLock<Arc<Proxy>> = LazyLock::new(|| tiercel_fuzz::proxy(&tiercel_fuzz::settings("admit", CONFIG)));

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (method, url) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let fields: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let Ok(explained) = at_once(PROXY.explain(url, method, &fields, "")) else { return };
    let normal = explained["url"].as_str().expect("a URL");
    assert!(!normal.bytes().any(|byte| !byte.is_ascii_graphic()), "{normal}");
    if normal.contains("://") && !normal.ends_with('*') && !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        let again = at_once(PROXY.explain(normal, method, &fields, "")).unwrap_or_else(|why| panic!("{normal}: {why}"));
        assert_eq!((&again["url"], &again["key"]), (&explained["url"], &explained["key"]));
    }
    assert_ne!(explained["way"], Value::Null);
    elsewhere(normal);
});

/// Rewriting keeps the authority and makes a target again; a redirect never leaves its line.
fn elsewhere(normal: &str) {
    static STEPS: LazyLock<Vec<Rewrite>> = LazyLock::new(|| {
        vec![
            Rewrite::StripPrefix("/api".into()),
            Rewrite::AddPrefix("/v1".into()),
            Rewrite::DropQuery(vec!["utm_*".into()]),
            Rewrite::SetQuery { name: "a b".into(), value: "&=#?".into() },
        ]
    });
    let Ok(target) = Target::from_url(normal) else { return };
    if let Ok(rewritten) = rewrite(&target, &STEPS) {
        assert_eq!((rewritten.origin(), Target::from_url(rewritten.as_str()).as_ref()), (target.origin(), Ok(&rewritten)));
    }
    let location = redirect_location("https://{host}/new{path}{query}", &target);
    assert!(location.starts_with("https://") && location.bytes().all(|byte| byte.is_ascii_graphic()), "{location}");
}
