//! Purges: the PURGE method, the admin API, cache groups (RFC 9875).

use super::*;
use crate::support::origin::Gate;

/// An origin whose responses carry their path as surrogate key, and a validator.
fn tagged(config: &str) -> Served {
    serve_with(config, |request| {
        let keys = request.path.trim_matches('/').replace('/', " ");
        let script = fresh("body").header("ETag", "\"v1\"").header("Surrogate-Key", &keys).header("Cache-Groups", "\"all\"");
        confirm_or(request, Script::status(304, ""), script)
    })
}

async fn store(served: &Served, path: &str, lines: &str) {
    served.get_with(path, lines).await;
    served.until_hit(path, lines).await;
}

const ALLOWED: &str = "[purge]\nallow = [\"127.0.0.0/8\"]\n";

async fn purge(served: &Served, path: &str, lines: &str) -> (u16, Value) {
    let answer = served.ask("PURGE", path, lines, "").await;
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

#[tokio::test]
async fn purge_is_off_by_default_and_for_listed_networks_only() {
    let served = tagged("");
    store(&served, "/a", "").await;
    let refused = served.ask("PURGE", "/a", "", "").await;
    assert_eq!((refused.status, refused.field("allow").is_some()), (405, true), "{}", refused.head);
    served.reload("[purge]\nallow = [\"192.0.2.0/24\"]\n").await;
    let (status, answer) = purge(&served, "/a", "").await;
    assert_eq!(status, 403);
    assert!(answer["error"]["remedy"].as_str().is_some_and(|remedy| remedy.contains("purge.allow")), "{answer}");
    served.reload(&format!("{ALLOWED}selectors_per_call = 2\n")).await;
    let (status, answer) = purge(&served, "/a", "Cache-Tag: k1,k2 k3\r\n").await;
    let error = &answer["error"];
    assert_eq!((status, error["message"].as_str()), (400, Some("3 keys in one PURGE; at most 2 are allowed")));
    assert!(error["remedy"].as_str().is_some_and(|remedy| remedy.contains("purge.selectors_per_call")), "{answer}");
    served.reload("[purge]\nallow = [\"192.0.2.0/24\"]\n").await;
    assert_eq!(purge(&served, "/a", "X-Forwarded-For: 192.0.2.1\r\n").await.0, 403, "who says so is not believed");
    assert!(served.get("/a").await.says("hit"));
    assert!(served.origin.requests("/a").iter().all(|request| request.method == "GET"), "PURGE never goes on");
}

#[tokio::test]
async fn purge_of_a_url_takes_all_its_variants_and_nothing_else() {
    let served = serve_with(ALLOWED, |_| fresh("body").header("Vary", "X-V"));
    for (path, lines) in [("/a", "X-V: 1\r\n"), ("/a", "X-V: 2\r\n"), ("/a?b", ""), ("/b", "")] {
        store(&served, path, lines).await;
    }
    let (status, answer) = purge(&served, "/a", "").await;
    assert_eq!((status, &answer["stored_here"], &answer["complete"], &answer["mode"]), (200, &json!(true), &json!(true), &json!("hard")));
    for lines in ["X-V: 1\r\n", "X-V: 2\r\n"] {
        assert!(!served.get_with("/a", lines).await.says("hit"), "{lines}");
    }
    assert!(served.get("/a?b").await.says("hit") && served.get("/b").await.says("hit"));
    assert_eq!(purge(&served, "/nothing", "").await.1["stored_here"], false);
}

/// Routes of one site that make different keys of one URL; which one a request takes hangs on more than the URL.
const ROUTES: &str = r#"
show_key = true
[purge]
allow = ["127.0.0.0/8"]
[cache.key]
query_ignore = ["session"]
[[sites.default.routes]]
methods = ["HEAD"]
cache.key = { query_allow = [] }
[[sites.default.routes]]
query = { preview = "1" }
cache.key = { query_ignore = ["preview"] }
[[sites.default.routes]]
headers = { x-device = "phone" }
cache.key = { query_sort = true, query_ignore = ["utm_*"] }
[[sites.default.routes]]
headers = { x-device = "app" }
cache.key = { query_allow = ["id"], query_ignore = [], headers = ["X-Device"] }
"#;

/// How a URL is purged: by command, by the admin API, by the PURGE method from whoever takes this route.
#[derive(Debug, Clone, Copy)]
enum By {
    Command,
    Admin,
    Purge(&'static str),
}

impl By {
    const ALL: [Self; 5] = [Self::Command, Self::Admin, Self::Purge(""), Self::Purge(PHONE), Self::Purge(APP)];

    /// Purges, and gives what the URL was normalised to.
    async fn purge(self, served: &Served, path: &str) -> Vec<String> {
        let url = format!("http://{HOST}{path}");
        let receipt = match self {
            Self::Command => {
                let admin = format!("http://{}", served.tiercel.admin);
                let arguments = ["purge", &url, "--json", "--admin", &admin];
                let output = std::process::Command::new(env!("CARGO_BIN_EXE_tiercel")).args(arguments).output().expect("the binary runs");
                serde_json::from_slice(&output.stdout).expect("JSON")
            }
            Self::Admin => served.admin("POST", "/v1/purge", &json!({ "urls": [&url] }).to_string()).await.1,
            Self::Purge(lines) => purge(served, path, lines).await.1,
        };
        assert_eq!((&receipt["stored_here"], &receipt["selectors"][0]["given"]), (&json!(true), &json!(url)), "{self:?}: {receipt}");
        let selectors = receipt["selectors"].as_array().expect("a list");
        assert!(selectors.iter().skip(1).all(|selector| selector.get("given").is_none()), "{receipt}");
        selectors.iter().map(|selector| selector["normalised"].as_str().expect("a text").to_owned()).collect()
    }
}

const PHONE: &str = "X-Device: phone\r\n";
const APP: &str = "X-Device: app\r\n";

#[tokio::test]
async fn purge_of_a_url_takes_what_any_route_stored_for_it() {
    let url = "/a?z=1&utm_source=x&id=7&session=9";
    let others =
        [("/a?z=1&utm_source=x&id=8", ""), ("/a?id=7&session=8&z=1", PHONE), ("/a?id=8", APP), ("/b?id=7", APP), ("/a?preview=1&z=1", "")];
    for by in By::ALL {
        let served = serve_with(ROUTES, |_| fresh("body"));
        for (path, lines) in [("/a", ""), (url, ""), (url, PHONE), (url, APP)].into_iter().chain(others) {
            store(&served, path, lines).await;
        }
        assert!(served.ask("HEAD", url, "", "").await.says("hit"));
        let keys = ["/a?z=1&utm_source=x&id=7", "/a", "/a?id=7&session=9&z=1", "/a?id=7"].map(|path| format!("{HOST}{path}"));
        assert_eq!(by.purge(&served, url).await, keys, "{by:?}");
        assert!(!served.ask("HEAD", url, "", "").await.says("hit"), "{by:?}");
        for lines in ["", PHONE, APP] {
            let answer = served.get_with(url, lines).await;
            assert!(answer.is_miss(), "{by:?} {lines}: {}", answer.head);
        }
        for (path, lines) in others {
            assert!(served.get_with(path, lines).await.says("hit"), "{by:?} {path} {lines}");
        }
    }
}

#[tokio::test]
async fn purge_of_a_url_looks_at_routes_that_its_query_chooses() {
    for by in By::ALL {
        let served = serve_with(ROUTES, |_| fresh("body"));
        for (path, lines) in [("/a?preview=1&b=2", ""), ("/a?b=2", ""), ("/a?b=3", "")] {
            store(&served, path, lines).await;
        }
        // What is behind the route that the query chooses cannot answer this URL.
        assert_eq!(by.purge(&served, "/a?preview=1&b=2").await, [format!("{HOST}/a?b=2"), format!("{HOST}/a")], "{by:?}");
        assert!(served.get("/a?preview=1&b=2").await.is_miss(), "{by:?}");
        assert!(served.get("/a?b=3").await.says("hit"), "{by:?}");
    }
}

#[tokio::test]
async fn an_unsafe_request_invalidates_its_url_under_every_route() {
    let served = serve_with(ROUTES, |_| fresh("body"));
    let url = "/a?z=1&utm_source=x&id=7&session=9";
    for lines in ["", PHONE, APP] {
        store(&served, url, lines).await;
    }
    store(&served, "/a?id=8", APP).await;
    served.ask("POST", url, "", "x").await;
    for lines in ["", PHONE, APP] {
        assert!(served.get_with(url, lines).await.is_miss(), "{lines}");
    }
    assert!(served.get_with("/a?id=8", APP).await.says("hit"));
}

#[tokio::test]
async fn a_prefix_that_reaches_into_the_query_ends_before_it_where_routes_change_queries() {
    for (config, normalised) in [(ROUTES, "shop.example/a"), ("", "shop.example/a?z=1&b")] {
        let served = serve_with(config, |_| fresh("body"));
        store(&served, "/a?z=1&b=2", PHONE).await;
        let (_, receipt) = served.admin("POST", "/v1/purge", r#"{"prefixes": ["Shop.example/a?z=1&b"]}"#).await;
        let described = json!({"kind": "prefix", "given": "Shop.example/a?z=1&b", "normalised": normalised});
        assert_eq!(receipt["selectors"], json!([described]));
        assert!(served.get_with("/a?z=1&b=2", PHONE).await.is_miss(), "{normalised}");
    }
}

#[tokio::test]
async fn the_dot_of_the_root_names_no_other_host() {
    let served = serve_with(&format!("{ALLOWED}[sites.shop]\nhosts = [\"shop.example.\"]\n"), |request| {
        fresh(&format!("{} {}", request.field("host").unwrap_or_default(), request.field("x-forwarded-host").unwrap_or_default()))
    });
    let dotted = "Host: Shop.Example.\r\n";
    assert_eq!(served.get_with("/a", dotted).await.text(), "shop.example shop.example", "the upstream sees what the key says");
    served.until_hit("/a", dotted).await;
    assert!(served.get("/a").await.says("hit"));
    assert!(served.get_with("http://shop.example./a", "").await.says("hit"));
    assert_eq!(purge(&served, "/a", dotted).await.1["stored_here"], true);
    assert!(served.get("/a").await.is_miss());
    served.until_hit("/a", "").await;
    for body in [json!({"urls": ["http://shop.example./a"]}), json!({"hosts": ["shop.example."]})] {
        served.admin("POST", "/v1/purge", &body.to_string()).await;
        assert!(served.get_with("/a", dotted).await.is_miss(), "{body}");
        served.until_hit("/a", "").await;
    }
    for host in ["shop.example..", ".", "shop.example..:80"] {
        assert_eq!(served.get_with("/a", &format!("Host: {host}\r\n")).await.status, 400, "{host}");
    }
}

#[tokio::test]
async fn purge_by_key_takes_everything_that_carries_it() {
    for field in ["Surrogate-Key: x k1\r\n", "xkey: k1\r\n", "Cache-Tag: x, k1\r\n"] {
        let served = tagged(ALLOWED);
        for path in ["/k1/a", "/k1/b", "/k2/a"] {
            store(&served, path, "").await;
        }
        assert_eq!(purge(&served, "/", field).await.0, 200);
        for path in ["/k1/a", "/k1/b"] {
            assert!(served.get(path).await.is_miss(), "{field}");
        }
        assert!(served.get("/k2/a").await.says("hit"), "{field}");
    }
}

#[tokio::test]
async fn a_soft_purge_makes_stale_what_is_then_confirmed() {
    for (path, field) in [("/k1", "Fastly-Soft-Purge: 1\r\n"), ("/", "xkey-softpurge: k1\r\n")] {
        let served = tagged(ALLOWED);
        store(&served, "/k1", "").await;
        let (status, answer) = purge(&served, path, field).await;
        assert_eq!((status, &answer["mode"]), (200, &json!("soft")));
        let answer = served.get("/k1").await;
        assert!(answer.says("fwd=stale") && answer.says("fwd-status=304"), "{field}{}", answer.head);
        assert!(served.until_hit("/k1", "").await.says("hit"));
    }
}

#[tokio::test]
async fn every_kind_of_selector_purges_hard_and_soft() {
    let served = tagged("");
    let selectors = [
        json!({"urls": ["http://shop.example/k1/a"]}),
        json!({"urls": ["HTTPS://SHOP.example:443/x/../k1/./a"]}),
        json!({"tags": ["k1"]}),
        json!({"keys": ["k1"]}),
        json!({"groups": [{"origin": "http://shop.example", "group": "all"}]}),
        json!({"prefixes": ["http://shop.example/k1/"]}),
        json!({"prefixes": ["shop.example/k"]}),
        json!({"hosts": ["Shop.Example"]}),
        json!({"sites": ["default"]}),
        json!({"everything": true}),
    ];
    let bystander = "Host: bystander.example\r\n";
    for selector in selectors {
        let is_wide = selector.get("sites").is_some()
            || selector.get("everything").is_some()
            || selector.get("tags").is_some()
            || selector.get("keys").is_some();
        for mode in ["hard", "soft"] {
            store(&served, "/k1/a", "").await;
            store(&served, "/k1/a", bystander).await;
            let mut body = selector.clone();
            body["mode"] = mode.into();
            let (status, receipt) = served.admin("POST", "/v1/purge", &body.to_string()).await;
            assert_eq!((status, &receipt["mode"], &receipt["complete"]), (200, &json!(mode), &json!(true)), "{receipt}");
            let answer = served.get("/k1/a").await;
            assert!(if mode == "hard" { answer.is_miss() } else { answer.says("fwd=stale") }, "{body}: {}", answer.head);
            assert_eq!(served.last("/k1/a").field("if-none-match").is_some(), mode == "soft", "{body}");
            assert_eq!(served.get_with("/k1/a", bystander).await.says("hit"), !is_wide, "{body}");
        }
    }
}

#[tokio::test]
async fn a_receipt_can_be_read_again() {
    let served = tagged("");
    let (_, receipt) = served.admin("POST", "/v1/purge?mode=soft", r#"{"urls": ["http://Shop.example:80/a?b"], "tags": ["k"]}"#).await;
    let id = receipt["id"].as_str().expect("an id");
    assert_eq!((receipt["selectors"][0]["normalised"].as_str(), &receipt["mode"]), (Some("shop.example/a?b"), &json!("soft")));
    let (status, again) = served.admin("GET", &format!("/v1/purge/{id}"), "").await;
    assert_eq!((status, &again["id"], &again["position"]), (200, &receipt["id"], &receipt["position"]));
    let (status, unknown) = served.admin("GET", "/v1/purge/0123456789abcdef", "").await;
    assert_eq!(status, 404);
    assert!(unknown["error"]["message"].is_string() && unknown["error"]["remedy"].is_string(), "{unknown}");
}

#[tokio::test]
async fn calls_that_cannot_be_meant_are_refused_and_purge_nothing() {
    let served = tagged("");
    store(&served, "/a", "").await;
    let many: Vec<String> = (0..101).map(|number| format!("k{number}")).collect();
    for body in [
        "{}".to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
        r#"{"urls": ["/a"]}"#.to_owned(),
        r#"{"everything": true, "mode": "medium"}"#.to_owned(),
        r#"{"everything": true, "url": []}"#.to_owned(),
        r#"{"everything": true, "timeout": "5"}"#.to_owned(),
        json!({"everything": true, "tags": [""]}).to_string(),
        json!({"everything": true, "sites": ["defualt"]}).to_string(),
        json!({ "everything": true, "tags": many }).to_string(),
    ] {
        let (status, answer) = served.admin("POST", "/v1/purge", &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer["error"]["message"].is_string() && answer["error"]["remedy"].is_string(), "{answer}");
    }
    assert!(served.get("/a").await.says("hit"));
}

#[tokio::test]
async fn what_was_being_fetched_when_it_was_purged_is_not_served_afterwards() {
    let gate = Gate::new();
    let served = serve({
        let gate = gate.clone();
        move |_| fresh("body").header("Surrogate-Key", "k").after(&gate)
    });
    for selector in [r#"{"urls": ["http://shop.example/a"]}"#, r#"{"tags": ["k"]}"#] {
        let before = served.origin.count("/a");
        let mut client = served.client().await;
        client.send(request("GET", "/a", "", "")).await;
        served.origin.until("the fetch", |origin| origin.count("/a") == before + 1).await;
        served.admin("POST", "/v1/purge", selector).await;
        gate.open();
        assert_eq!(client.answer(false).await.expect("an answer").text(), "body", "who asked before gets it");
        let answer = served.get("/a").await;
        assert!(!answer.says("hit") && !answer.says("collapsed"), "{}", answer.head);
        served.until_hit("/a", "").await;
        served.soften().await;
    }
}

#[tokio::test]
async fn groups_beyond_the_bound_take_their_whole_host_and_are_counted() {
    let named = |count: usize| (0..count).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
    let served = serve(move |request| match request.method.as_str() {
        "POST" => Script::status(200, "").header("Cache-Group-Invalidation", &named(128)),
        "PUT" => Script::status(200, "").header("Cache-Group-Invalidation", &named(129)),
        _ => fresh("body").header("Cache-Groups", if request.path == "/last" { "\"128\"" } else { "\"127\"" }),
    });
    let reached = async || {
        let (_, metrics) = served.admin("GET", "/metrics", "").await;
        let metrics = metrics.as_str().expect("text").to_owned();
        let sample = metrics.lines().find_map(|line| line.strip_prefix("tiercel_bound_reached_total{bound=\"invalidated_groups\"} "));
        sample.expect("it is there from the start").to_owned()
    };
    let other = "Host: other.example\r\n";
    for (path, lines) in [("/last", ""), ("/last-but-one", ""), ("/last", other)] {
        store(&served, path, lines).await;
    }
    served.ask("POST", "/write", "", "x").await;
    assert_eq!(reached().await, "0");
    assert!(served.get("/last").await.says("hit") && served.get("/last-but-one").await.is_miss());
    served.ask("PUT", "/write", "", "x").await;
    assert_eq!(reached().await, "1");
    assert!(served.get("/last").await.is_miss(), "too much rather than too little");
    assert!(served.get_with("/last", other).await.says("hit"));
}

#[tokio::test]
async fn groups_whose_names_hold_quotes_are_told_apart() {
    let served = serve(|request| fresh("body").header("Cache-Groups", if request.path == "/a" { r#""x\"a""# } else { r#""x\"b""# }));
    for path in ["/a", "/b"] {
        store(&served, path, "").await;
    }
    served.admin("POST", "/v1/purge", &json!({"groups": [{"origin": "http://shop.example", "group": "x\"a"}]}).to_string()).await;
    assert!(served.get("/a").await.is_miss() && served.get("/b").await.says("hit"));
}

#[tokio::test]
async fn a_cache_group_named_by_an_unsafe_answer_goes_for_that_origin() {
    let served = serve(|request| match request.method.as_str() {
        "POST" => Script::status(200, "").header("Cache-Group-Invalidation", "\"one\", \"three\""),
        "PUT" => Script::status(500, "").header("Cache-Group-Invalidation", "\"one\""),
        "GET" if request.path == "/says" => Script::ok("x").header("Cache-Group-Invalidation", "\"one\""),
        _ => fresh("body").header("Cache-Groups", if request.path == "/a" { "\"one\", \"two\"" } else { "\"two\"" }),
    });
    let other = "Host: other.example\r\n";
    for (path, lines) in [("/a", ""), ("/b", ""), ("/a", other)] {
        store(&served, path, lines).await;
    }
    served.ask("PUT", "/write", "", "x").await;
    served.get("/says").await;
    assert!(served.get("/a").await.says("hit"), "neither an error nor a safe method invalidates");
    served.ask("POST", "/write", "", "x").await;
    assert!(served.get("/a").await.is_miss());
    assert!(served.get("/b").await.says("hit"), "of another group");
    assert!(served.get_with("/a", other).await.says("hit"), "groups are of one origin");
}
