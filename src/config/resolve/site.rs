//! Sites and their routes.

use super::fields::{self, Edits};
use super::{cache, compression, https, label, limit, matching, net, redis, tls};
use crate::config::DEFAULT;
use crate::config::files::read_bytes;
use crate::config::raw::{RawAcceptEncoding, RawConfig, RawRateLimit, RawRedirect, RawRespond, RawRoute, RawSite, RouteKeys};
use crate::config::report::Report;
use crate::config::settings::*;
use crate::config::shape::join;
use crate::semantics::key::KeyPolicy;
use crate::semantics::policy::{AcceptEncoding, CachePolicy};
use bytes::Bytes;
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Longest fixed answer.
const RESPOND_BYTES_MAX: usize = 16 << 20;
const REDIRECT_STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// What the levels around a route have set so far.
#[derive(Debug, Clone)]
struct Base {
    cache: CachePolicy,
    redis: RedisAdmission,
    key: KeyPolicy,
    bypass: Vec<BypassRule>,
    request: Edits,
    response: Edits,
    rewrite: Vec<Rewrite>,
    host: UpstreamHost,
    strip_cookies: Vec<String>,
    purge_from: Vec<IpNet>,
    forward_tags: Vec<String>,
    cache_status: bool,
    show_key: bool,
    x_cache: bool,
    redirect_to_https: Option<u16>,
    hsts: Option<Hsts>,
    log_query: bool,
    rate_limit: Option<RateLimit>,
    compression: compression::Base,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            cache: CachePolicy::default(),
            redis: RedisAdmission::default(),
            key: KeyPolicy::default(),
            bypass: Vec::new(),
            request: Edits::default(),
            response: Edits::default(),
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
            compression: compression::Base::default(),
        }
    }
}

impl Base {
    /// One level further in. Values replace; edits and rewrites follow; bypass rules come first.
    /// `scope` is what a limit that is written here is called.
    fn with(&self, at: &str, scope: &str, raw: RouteKeys<'_>, report: &mut Report) -> Self {
        let mut base = self.clone();
        cache::apply(&join(at, "cache"), raw.cache, &mut base.cache, &mut base.key, report);
        redis::apply(&join(&join(at, "cache"), "redis"), &raw.cache.redis, &mut base.redis, report);
        let rules =
            raw.bypass.iter().enumerate().map(|(index, rule)| matching::bypass(&format!("{}[{index}]", join(at, "bypass")), rule, report));
        base.bypass = rules.collect::<Vec<_>>().into_iter().chain(base.bypass).collect();
        base.request.apply(&join(at, "request_headers"), raw.request_headers, true, report);
        base.response.apply(&join(at, "response_headers"), raw.response_headers, false, report);
        for (index, step) in raw.rewrite.iter().enumerate() {
            base.rewrite.extend(fields::rewrite(&format!("{}[{index}]", join(at, "rewrite")), step, report));
        }
        if let Some(host) = raw.host {
            base.host = upstream_host(&join(at, "host"), host, report);
        }
        if let Some(names) = raw.strip_cookies {
            base.strip_cookies = matching::cookies(&join(at, "strip_cookies"), names, report);
        }
        if let Some(networks) = raw.purge_allow {
            base.purge_from = net::networks(&format!("{}.allow", join(at, "purge")), networks, report);
        }
        if let Some(names) = raw.forward_tags {
            base.forward_tags = cache::field_names(&format!("{}.forward", join(at, "tags")), names, report);
        }
        base.cache.accept_encoding = match raw.accept_encoding {
            None => base.cache.accept_encoding,
            Some(RawAcceptEncoding::Normalise) => AcceptEncoding::Normalise,
            Some(RawAcceptEncoding::Identity) => AcceptEncoding::Identity,
            Some(RawAcceptEncoding::Forward) => AcceptEncoding::Forward,
        };
        base.compression.apply(&join(at, "compression"), raw.compression, report);
        base.cache.compression = base.compression.resolved();
        base.cache_status = raw.cache_status.unwrap_or(base.cache_status);
        base.show_key = raw.show_key.unwrap_or(base.show_key);
        base.x_cache = raw.x_cache.unwrap_or(base.x_cache);
        base.redirect_to_https = https::redirect(at, raw.redirect_to_https, base.redirect_to_https, report);
        base.hsts = https::hsts(&join(at, "hsts"), raw.hsts, base.hsts, report);
        base.log_query = raw.log_query.unwrap_or(base.log_query);
        if *raw.rate_limit != RawRateLimit::default() {
            base.rate_limit = limit::route(&join(at, "rate_limit"), scope, raw.rate_limit, report);
        }
        base
    }

    fn route(self, name: String, matcher: RouteMatch, action: Action) -> Route {
        let dropped = self.rewrite.iter().flat_map(|step| if let Rewrite::DropQuery(names) = step { names.as_slice() } else { &[] });
        let mut key = self.key;
        for name in dropped {
            if !key.query_ignore.contains(name) {
                key.query_ignore.push(name.clone());
            }
        }
        let is_plain = matcher.headers.is_empty() && matcher.query.is_empty();
        key.route = (!is_plain).then(|| name.clone());
        Route {
            name,
            matcher,
            action,
            key,
            cache: self.cache,
            redis: self.redis,
            bypass: self.bypass,
            request_edits: self.request.finish(),
            response_edits: self.response.finish(),
            rewrite: self.rewrite,
            host: self.host,
            strip_cookies: self.strip_cookies,
            purge_from: self.purge_from,
            forward_tags: self.forward_tags,
            cache_status: self.cache_status,
            show_key: self.show_key,
            x_cache: self.x_cache,
            redirect_to_https: self.redirect_to_https,
            hsts: self.hsts,
            log_query: self.log_query,
            rate_limit: self.rate_limit,
        }
    }
}

fn upstream_host(path: &str, text: &str, report: &mut Report) -> UpstreamHost {
    match text {
        "preserve" => UpstreamHost::Preserve,
        "upstream" => UpstreamHost::Upstream,
        literal => {
            let host = literal.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(literal, |(host, _)| host);
            if !net::is_host(host) {
                report.problem(
                    path,
                    "not a host",
                    format!("\"{text}\""),
                    r#""preserve", "upstream", or a host such as "app.internal""#,
                    "write it without scheme and path",
                );
            }
            UpstreamHost::Literal(literal.to_owned())
        }
    }
}

/// All sites, in the order of their names. Where none is written, one upstream is enough for one. `node`: what this
/// server is called.
pub fn sites(raw: &RawConfig, node: &str, upstreams: &[Arc<Upstream>], report: &mut Report) -> Vec<Arc<Site>> {
    let mut base = Base::default();
    base.cache.targeted = base.cache.targeted.on(node);
    let base = base.with("", DEFAULT, raw.route_keys(), report);
    let sites: Vec<Arc<Site>> = if raw.sites.is_empty() {
        only_site(&base, upstreams, report).into_iter().map(Arc::new).collect()
    } else {
        raw.sites.iter().map(|(name, raw)| Arc::new(site(name, raw, &base, upstreams, report))).collect()
    };
    check_hosts(&raw.sites, report);
    sites
}

fn only_site(base: &Base, upstreams: &[Arc<Upstream>], report: &mut Report) -> Option<Site> {
    let upstream = match upstreams {
        [only] => only,
        [] => {
            report.problem(
                "upstreams",
                "no upstream at all",
                "",
                "",
                "write [upstreams.app] with endpoints = [\"http://127.0.0.1:3000\"], or give --upstream http://127.0.0.1:3000",
            );
            return None;
        }
        several => {
            let names: Vec<&str> = several.iter().map(|upstream| upstream.name.as_str()).collect();
            let remedy = format!("write [sites.default] with upstream = \"{}\"", names[0]);
            report.problem("sites", "several upstreams and no site that leads to one", names.join(", "), "", remedy);
            return None;
        }
    };
    let route = base.clone().route(DEFAULT.to_owned(), RouteMatch::default(), Action::Proxy(Arc::clone(upstream)));
    Some(Site { name: DEFAULT.to_owned(), hosts: Vec::new(), client_certificates: None, routes: vec![Arc::new(route)] })
}

fn site(name: &str, raw: &RawSite, base: &Base, upstreams: &[Arc<Upstream>], report: &mut Report) -> Site {
    let at = join("sites", name);
    label(&at, name, report);
    let base = base.with(&at, name, raw.route_keys(), report);
    let upstream = match &raw.upstream {
        Some(name) => net::find(&join(&at, "upstream"), name, upstreams, report),
        None => match upstreams {
            [only] => Some(only),
            several => several.iter().find(|upstream| upstream.name == DEFAULT),
        },
    };
    let context = Context { site: name, base: &base, upstreams, upstream, has_name: raw.upstream.is_some() };
    let mut routes: Vec<Arc<Route>> = Vec::new();
    for (index, raw) in raw.routes.iter().enumerate() {
        let at = format!("{}[{index}]", join(&at, "routes"));
        if let Some(last) = routes.last().filter(|last| matching::is_everything(&last.matcher)) {
            let what = format!("never reached: route \"{}\" before it matches everything", last.name);
            report.problem(&at, what, "", "the route without conditions comes last", "move it up, or give the other a condition");
        }
        routes.extend(context.route(&at, raw, index, &routes, report).map(Arc::new));
    }
    if !routes.last().is_some_and(|last| matching::is_everything(&last.matcher)) {
        routes.extend(context.catch_all(&at, &routes, report).map(Arc::new));
    }
    let hosts = net::hosts(&join(&at, "hosts"), raw.hosts.as_deref().unwrap_or_default(), report);
    let client_certificates = tls::site(&join(&at, "tls"), &raw.tls, report);
    Site { name: name.to_owned(), hosts, client_certificates, routes }
}

/// What the routes of a site share.
struct Context<'a> {
    /// Its name.
    site: &'a str,
    base: &'a Base,
    upstreams: &'a [Arc<Upstream>],
    upstream: Option<&'a Arc<Upstream>>,
    /// The site names an upstream, found or not.
    has_name: bool,
}

impl Context<'_> {
    fn route(&self, at: &str, raw: &RawRoute, index: usize, before: &[Arc<Route>], report: &mut Report) -> Option<Route> {
        let matcher = matching::route(at, raw, report);
        let name = match &raw.name {
            Some(name) => {
                label(&join(at, "name"), name, report);
                if before.iter().any(|route| route.name == *name) {
                    report.problem(
                        &join(at, "name"),
                        "a name that another route of this site has",
                        format!("\"{name}\""),
                        "",
                        "choose another name",
                    );
                }
                name.clone()
            }
            None => derived_name(raw, index, before),
        };
        let base = self.base.with(at, &format!("{}.{name}", self.site), raw.route_keys(), report);
        let action = self.action(at, raw, report)?;
        Some(base.route(name, matcher, action))
    }

    fn catch_all(&self, at: &str, before: &[Arc<Route>], report: &mut Report) -> Option<Route> {
        let action = self.proxy(at, report)?;
        Some(self.base.clone().route(unique(DEFAULT.to_owned(), before), RouteMatch::default(), action))
    }

    fn action(&self, at: &str, raw: &RawRoute, report: &mut Report) -> Option<Action> {
        let given = [("upstream", raw.upstream.is_some()), ("redirect", raw.redirect.is_some()), ("respond", raw.respond.is_some())];
        let given: Vec<&str> = given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key)).collect();
        if let [first, second, ..] = given.as_slice() {
            let what = format!("{first} and {second} contradict each other");
            report.problem(&join(at, second), what, "", "one of upstream, redirect, respond", format!("remove {second}"));
            return None;
        }
        match (&raw.upstream, &raw.redirect, &raw.respond) {
            (Some(name), ..) => {
                net::find(&join(at, "upstream"), name, self.upstreams, report).map(|upstream| Action::Proxy(Arc::clone(upstream)))
            }
            (_, Some(raw), _) => redirect(&join(at, "redirect"), raw, report),
            (.., Some(raw)) => respond(&join(at, "respond"), raw, report),
            _ => self.proxy(at, report),
        }
    }

    fn proxy(&self, at: &str, report: &mut Report) -> Option<Action> {
        if self.upstream.is_none() && !self.has_name {
            let names: Vec<&str> = self.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
            let remedy = match names.first() {
                Some(name) => format!("write upstream = \"{name}\""),
                None => "write [upstreams.app] with endpoints = [\"http://127.0.0.1:3000\"], and upstream = \"app\" here".into(),
            };
            report.problem(
                at,
                "leads to no upstream",
                "",
                if names.is_empty() { "no upstream is configured".into() } else { names.join(", ") },
                remedy,
            );
        }
        self.upstream.map(|upstream| Action::Proxy(Arc::clone(upstream)))
    }
}

/// `/assets/img/` is `assets-img`.
fn derived_name(raw: &RawRoute, index: usize, before: &[Arc<Route>]) -> String {
    let path = raw.path.as_deref().or(raw.exact.as_deref());
    let words =
        path.unwrap_or_default().split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.')).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-").chars().take(super::NAME_BYTES_MAX - 4).collect::<String>();
    let name = match path {
        _ if !name.is_empty() => name,
        Some(_) => DEFAULT.to_owned(),
        None => format!("route-{}", index + 1),
    };
    unique(name, before)
}

fn unique(name: String, before: &[Arc<Route>]) -> String {
    let is_taken = |name: &str| before.iter().any(|route| route.name == name);
    if !is_taken(&name) {
        return name;
    }
    (2..).map(|number| format!("{name}-{number}")).find(|name| !is_taken(name)).unwrap_or(name)
}

fn redirect(at: &str, raw: &RawRedirect, report: &mut Report) -> Option<Action> {
    let status = raw.status.unwrap_or(308);
    if !REDIRECT_STATUSES.contains(&status) {
        report.problem(
            &join(at, "status"),
            "not a status for redirects",
            status.to_string(),
            "301, 302, 303, 307, 308",
            "write 308 (permanent) or 307 (for now)",
        );
    }
    let Some(location) = raw.location.clone().filter(|location| !location.is_empty()) else {
        report.problem(
            at,
            "a redirect needs a location",
            "",
            "a URL or a path; may hold {host}, {path}, {query}",
            "write location = \"https://{host}{path}{query}\"",
        );
        return None;
    };
    let unknown = location.split('{').skip(1).find(|rest| !["host}", "path}", "query}"].iter().any(|known| rest.starts_with(known)));
    if unknown.is_some() || !location.bytes().all(|b| b.is_ascii_graphic()) {
        report.problem(
            &join(at, "location"),
            "not a location",
            format!("\"{location}\""),
            "visible ASCII; {host}, {path}, {query} are filled in",
            "write for example \"https://{host}{path}{query}\"",
        );
    }
    Some(Action::Redirect { status, location })
}

fn respond(at: &str, raw: &RawRespond, report: &mut Report) -> Option<Action> {
    let status = raw.status.unwrap_or(200);
    if !(200..=599).contains(&status) {
        report.problem(&join(at, "status"), "not a status", status.to_string(), "200 to 599", "");
    }
    let content_type = raw.content_type.clone().unwrap_or_else(|| "text/plain; charset=utf-8".into());
    if content_type.is_empty() || !content_type.bytes().all(crate::semantics::fields::is_value_byte) {
        report.problem(&join(at, "content_type"), "not a field value", format!("{content_type:?}"), "a media type", "write \"text/plain\"");
    }
    let body = respond_body(at, raw, report)?;
    if body.len() > RESPOND_BYTES_MAX || (!body.is_empty() && matches!(status, 204 | 205 | 304)) {
        report.problem(
            at,
            "a body that cannot be sent",
            format!("{} bytes with status {status}", body.len()),
            "at most 16MiB; none with 204, 205, 304",
            "remove the body",
        );
    }
    Some(Action::Respond { status, content_type, body })
}

fn respond_body(at: &str, raw: &RawRespond, report: &mut Report) -> Option<Bytes> {
    let path = join(at, "body_file");
    match (&raw.body, &raw.body_file) {
        (Some(_), Some(file)) => {
            report.problem(&path, "body and body_file contradict each other", format!("\"{file}\""), "one of the two", "remove one");
            None
        }
        (Some(text), None) => Some(Bytes::from(text.clone())),
        (None, None) => Some(Bytes::new()),
        (None, Some(file)) => match read_bytes(&report.directory(&path).join(file), RESPOND_BYTES_MAX as u64) {
            Ok(bytes) => Some(Bytes::from(bytes)),
            Err(error) => {
                report.problem(
                    &path,
                    format!("cannot be read: {error}"),
                    format!("\"{file}\""),
                    "a readable file",
                    "create it, or correct the name",
                );
                None
            }
        },
    }
}

/// A host belongs to one site; and only one site may take what the others leave. By the lists as they are written: what
/// is no host was told before, and makes no other problem.
fn check_hosts(sites: &BTreeMap<String, RawSite>, report: &mut Report) {
    let mut taken: HashMap<String, &str> = HashMap::new();
    let mut default: Option<&str> = None;
    for (name, site) in sites {
        let at = join("sites", name);
        let hosts = site.hosts.as_deref().unwrap_or_default();
        if hosts.is_empty()
            && !report.is_removed(&join(&at, "hosts"))
            && let Some(other) = default.replace(name)
        {
            let what = format!("no hosts, like site \"{other}\"");
            report.problem(&at, what, "", "one default site", format!("write hosts = [\"...\"] in sites.{name} or sites.{other}"));
        }
        for (index, text) in hosts.iter().enumerate() {
            if let Some(host) = net::site_host(text)
                && let Some(other) = taken.insert(host, name)
            {
                let what = if other == name { "a host named twice".to_owned() } else { format!("a host that site \"{other}\" has, too") };
                let path = format!("{}[{index}]", join(&at, "hosts"));
                report.problem(&path, what, format!("\"{text}\""), "each host in one site", "remove it here or there");
            }
        }
    }
}
