use super::*;
use crate::config::settings::{Action, BypassRule, PathMatch, Rewrite, RouteMatch, Site, UpstreamHost};
use crate::semantics::condition::ValueMatch;
use crate::semantics::key::KeyPolicy;
use crate::semantics::policy::CachePolicy;
use proptest::prelude::*;

fn route(name: &str, matcher: RouteMatch) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matcher,
        action: Action::Respond { status: 200, content_type: "text/plain".into(), body: bytes::Bytes::new() },
        redis: Default::default(),
        cache: CachePolicy::default(),
        key: KeyPolicy::default(),
        bypass: Vec::new(),
        request_edits: Vec::new(),
        response_edits: Vec::new(),
        rewrite: Vec::new(),
        host: UpstreamHost::Preserve,
        strip_cookies: Vec::new(),
        purge_from: Vec::new(),
        forward_tags: Vec::new(),
        cache_status: true,
        show_key: false,
        x_cache: false,
        redirect_to_https: None,
        hsts: None,
        log_query: false,
        rate_limit: None,
    })
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::default() }
}

fn site(name: &str, hosts: &[&str], routes: Vec<Arc<Route>>) -> Arc<Site> {
    Arc::new(Site { name: name.into(), hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), client_certificates: None, routes })
}

fn sites() -> Vec<Arc<Site>> {
    let any = || vec![route("default", RouteMatch::default())];
    vec![
        site(
            "shop",
            &["shop.example", "*.shop.example"],
            vec![
                route("assets", path(PathMatch::Prefix("/assets/".into()))),
                route("robots", path(PathMatch::Exact("/robots.txt".into()))),
                route("images", path(PathMatch::Pattern(regex::Regex::new(r"\.(png|jpg)$").unwrap()))),
                route("write", RouteMatch { methods: vec![Method::POST], ..RouteMatch::default() }),
                route("beta", RouteMatch { headers: vec![("x-beta".into(), ValueMatch::Equals("1".into()))], ..RouteMatch::default() }),
                route("preview", RouteMatch { query: vec![("preview".into(), ValueMatch::Present)], ..RouteMatch::default() }),
                route("default", RouteMatch::default()),
            ],
        ),
        site("deep", &["*.eu.shop.example"], any()),
        site("rest", &[], any()),
    ]
}

fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in lines {
        fields.push(name, value).unwrap();
    }
    fields
}

fn name_of(router: &Router, url: &str, method: Method, lines: &[(&str, &str)]) -> String {
    let target = Target::from_url(url).unwrap();
    let (site, route, site_index, route_index) = router.find(&target, &method, &fields(lines)).unwrap();
    assert!(Arc::ptr_eq(&router.sites()[site_index], site) && Arc::ptr_eq(&site.routes[route_index], route));
    format!("{}/{}", site.name, route.name)
}

#[test]
fn hosts_are_found_exact_then_by_longest_suffix_then_by_default() {
    let router = Router::new(&sites());
    let site = |host: &str| router.site(host).map(|index| router.sites()[index].name.clone());
    for (host, want) in [
        ("shop.example", "shop"),
        ("www.shop.example", "shop"),
        ("a.b.shop.example", "shop"),
        ("x.eu.shop.example", "deep"),
        ("eu.shop.example", "shop"),
        ("notshop.example", "rest"),
        (".shop.example", "rest"),
        ("[::1]", "rest"),
    ] {
        assert_eq!(site(host).as_deref(), Some(want), "{host}");
    }
    let without_default = Router::new(&sites()[..2]);
    assert_eq!(without_default.site("other.example"), None);
}

#[test]
fn routes_are_tried_in_order() {
    let router = Router::new(&sites());
    let get = |url: &str, lines: &[(&str, &str)]| name_of(&router, url, Method::GET, lines);
    assert_eq!(get("http://shop.example/assets/a.png", &[]), "shop/assets");
    assert_eq!(get("http://shop.example/a.png", &[]), "shop/images");
    assert_eq!(get("http://shop.example/robots.txt", &[]), "shop/robots");
    assert_eq!(get("http://shop.example/robots.txt2", &[]), "shop/default");
    assert_eq!(get("http://shop.example:8080/", &[("X-Beta", "1")]), "shop/beta");
    assert_eq!(get("http://shop.example/", &[("X-Beta", "2")]), "shop/default");
    assert_eq!(get("http://shop.example/?a=1&preview", &[]), "shop/preview");
    assert_eq!(get("http://elsewhere.example/", &[]), "rest/default");
    assert_eq!(name_of(&router, "http://shop.example/x", Method::POST, &[]), "shop/write");
}

#[test]
fn a_url_alone_could_take_every_route_up_to_the_first_that_asks_for_nothing_else() {
    let mut sites = sites();
    let read = |method| route("read", RouteMatch { methods: vec![method], ..RouteMatch::default() });
    sites.push(site(
        "api",
        &["api.example"],
        vec![read(Method::HEAD), read(Method::PUT), read(Method::GET), route("all", RouteMatch::default())],
    ));
    let router = Router::new(&sites);
    let names = |url: &str| router.possible(&Target::from_url(url).unwrap()).iter().map(|route| route.name.clone()).collect::<Vec<_>>();
    assert_eq!(names("http://shop.example/assets/x"), ["assets"]);
    assert_eq!(names("http://shop.example/x"), ["beta", "default"]);
    assert_eq!(names("http://shop.example/x?preview"), ["beta", "preview"]);
    assert_eq!(names("http://api.example/"), ["read", "read", "all"]);
    assert!(Router::new(&sites[..2]).possible(&Target::from_url("http://other.example/").unwrap()).is_empty());
}

#[test]
fn query_values_are_read_pair_by_pair() {
    let values = |query, name| query_values(query, name).map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>();
    assert_eq!(values(Some("a=1&b&&a=2=3"), "a"), ["1", "2=3"]);
    assert_eq!(values(Some("a=1&b"), "b"), [""]);
    assert!(values(None, "a").is_empty());
}

#[test]
fn cookies_are_stripped_by_name_and_by_prefix() {
    let mut request = fields(&[("Cookie", "a=1; _ga=2;_ga_x=3"), ("Cookie", "session=s; b"), ("accept", "*/*")]);
    let names = ["_ga*".to_owned(), "b".to_owned()];
    assert!(strip_cookies(&mut request, &names));
    assert_eq!(request.values("cookie").collect::<Vec<_>>(), [b"a=1; session=s"]);
    assert!(!strip_cookies(&mut request, &names));
    assert!(strip_cookies(&mut request, &["*".to_owned()]));
    assert!(!request.contains("cookie") && request.contains("accept"));
}

#[test]
fn the_first_bypass_rule_that_holds_gives_the_reason() {
    let rule = |reason: &str, condition, cookies: &[&str]| BypassRule {
        reason: reason.into(),
        condition,
        cookies: cookies.iter().map(|name| (*name).to_owned()).collect(),
    };
    let mut with_rules = Route::clone(&route("r", RouteMatch::default()));
    with_rules.bypass = vec![
        rule("logged-in", RouteMatch::default(), &["session", "auth_*"]),
        rule("preview", RouteMatch { headers: vec![("x-preview".into(), ValueMatch::Present)], ..RouteMatch::default() }, &[]),
    ];
    let target = Target::from_url("http://shop.example/").unwrap();
    let reason = |lines: &[(&str, &str)]| bypass(&with_rules, &target, &Method::GET, &fields(lines)).map(|rule| rule.reason.clone());
    assert_eq!(reason(&[]), None);
    assert_eq!(reason(&[("cookie", "x=1; auth_me=2")]).as_deref(), Some("logged-in"));
    assert_eq!(reason(&[("x-preview", ""), ("cookie", "sessions=1")]).as_deref(), Some("preview"));
}

#[test]
fn rewrites_are_carried_out_in_order() {
    let target = Target::from_url("http://shop.example/api/v1/items?utm_source=x&a=1").unwrap();
    let steps = [
        Rewrite::StripPrefix("/api".into()),
        Rewrite::Replace { pattern: regex::Regex::new("^/v1/(.*)$").unwrap(), with: "/$1.json".into() },
        Rewrite::AddPrefix("/backend/".into()),
        Rewrite::DropQuery(vec!["utm_*".into()]),
        Rewrite::SetQuery { name: "b".into(), value: "2".into() },
    ];
    assert_eq!(rewrite(&target, &steps).unwrap().as_str(), "http://shop.example/backend/items.json?a=1&b=2");
    assert_eq!(rewrite(&target, &[]).unwrap(), target);
}

#[test]
fn a_location_is_filled_in() {
    let target = Target::from_url("http://shop.example:8080/a?b=c").unwrap();
    assert_eq!(redirect_location("https://{host}{path}{query}", &target), "https://shop.example:8080/a?b=c");
    assert_eq!(redirect_location("/x{y", &target), "/x{y");
    let bare = Target::from_url("http://shop.example/{path}").unwrap();
    assert!(redirect_location("{path}", &bare).starts_with('/'), "what was filled in is not filled in again");
}

proptest! {
    #[test]
    fn stripping_leaves_no_named_cookie_and_loses_no_other(line in "[ab_=; ]{0,40}") {
        let mut request = fields(&[("cookie", &line)]);
        let before: Vec<Vec<u8>> = cookie_pairs(line.as_bytes()).filter(|(name, _)| !name.starts_with(b"a")).map(|(_, pair)| pair.to_vec()).collect();
        strip_cookies(&mut request, &["a*".to_owned()]);
        let after: Vec<Vec<u8>> = request.values("cookie").flat_map(cookie_pairs).map(|(_, pair)| pair.to_vec()).collect();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn any_host_has_a_site_where_there_is_a_default(host in "\\PC{0,20}") {
        prop_assert!(Router::new(&sites()).site(&host).is_some());
    }
}
