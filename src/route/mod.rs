//! Host and path to site and route: a pure matcher built from the settings, and what routes do to requests.
//!
//! A plain match (host, path, method) allocates nothing. Start reading at [`Router::find`].

mod cookies;
mod rewrite;
#[cfg(test)]
mod tests;

pub use cookies::{cookie_pairs, strip_cookies};
pub use rewrite::{redirect_location, rewrite};

use crate::config::settings::{BypassRule, PathMatch, Route, RouteMatch, Site};
use crate::semantics::condition::all_hold;
use crate::semantics::{Fields, Method, Target};
use std::collections::HashMap;
use std::sync::Arc;

type Hosts = HashMap<Box<str>, usize, foldhash::fast::RandomState>;

/// A site and one of its routes, with their indices in the settings.
pub type Found<'r> = (&'r Arc<Site>, &'r Arc<Route>, usize, usize);

/// The sites by host.
#[derive(Debug)]
pub struct Router {
    sites: Vec<Arc<Site>>,
    exact: Hosts,
    /// By what follows `*.`.
    suffixes: Hosts,
    default: Option<usize>,
}

impl Router {
    /// Of two sites with the same host the first wins; `config` refuses that before.
    pub fn new(sites: &[Arc<Site>]) -> Self {
        let mut router = Self { sites: sites.to_vec(), exact: Hosts::default(), suffixes: Hosts::default(), default: None };
        for (index, site) in sites.iter().enumerate() {
            if site.hosts.is_empty() {
                router.default.get_or_insert(index);
            }
            for host in &site.hosts {
                let (hosts, name) = match host.strip_prefix("*.") {
                    Some(suffix) => (&mut router.suffixes, suffix),
                    None => (&mut router.exact, host.as_str()),
                };
                hosts.entry(name.into()).or_insert(index);
            }
        }
        router
    }

    /// The site of the target's host and the first of its routes whose conditions all hold. `None`: no site has this host.
    pub fn find(&self, target: &Target, method: &Method, fields: &Fields) -> Option<Found<'_>> {
        let site_index = self.site(target.host())?;
        let site = &self.sites[site_index];
        let path = target.path();
        let is_right = |route: &Route| {
            let condition = &route.matcher;
            path_matches(&condition.path, path) && query_matches(condition, target) && request_matches(condition, method, fields)
        };
        let (route_index, route) = site.routes.iter().enumerate().find(|(_, route)| is_right(route))?;
        Some((site, route, site_index, route_index))
    }

    /// The routes that a GET or HEAD of this URL could take, whatever its fields: those whose conditions on the URL hold,
    /// up to the first that has no others. For purges, which know no request.
    pub fn possible(&self, target: &Target) -> Vec<&Arc<Route>> {
        let routes = self.site(target.host()).map_or(&[][..], |site| &self.sites[site].routes);
        let reads = [Method::GET, Method::HEAD];
        let mut possible = Vec::new();
        for route in routes.iter().filter(|route| url_matches(&route.matcher, target)) {
            let methods = &route.matcher.methods;
            if methods.is_empty() || reads.iter().any(|read| methods.contains(read)) {
                possible.push(route);
            }
            if route.matcher.headers.is_empty() && (methods.is_empty() || reads.iter().all(|read| methods.contains(read))) {
                break;
            }
        }
        possible
    }

    /// Index of the site of a host (as a target has it): exact, then the longest `*.suffix`, then the default.
    pub fn site(&self, host: &str) -> Option<usize> {
        let exact = self.exact.get(host).copied();
        exact.or_else(|| self.by_suffix(host)).or(self.default)
    }

    fn by_suffix(&self, host: &str) -> Option<usize> {
        if self.suffixes.is_empty() {
            return None;
        }
        host.bytes()
            .enumerate()
            .filter(|(at, byte)| *byte == b'.' && *at > 0)
            .find_map(|(at, _)| self.suffixes.get(&host[at + 1..]).copied())
    }

    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }
}

/// Whether all conditions hold.
pub fn matches(condition: &RouteMatch, target: &Target, method: &Method, fields: &Fields) -> bool {
    url_matches(condition, target) && request_matches(condition, method, fields)
}

/// Whether the conditions on what is not the URL hold.
fn request_matches(condition: &RouteMatch, method: &Method, fields: &Fields) -> bool {
    (condition.methods.is_empty() || condition.methods.contains(method)) && all_hold(&condition.headers, fields)
}

/// Whether the conditions on path and query hold.
fn url_matches(condition: &RouteMatch, target: &Target) -> bool {
    path_matches(&condition.path, target.path()) && query_matches(condition, target)
}

fn query_matches(condition: &RouteMatch, target: &Target) -> bool {
    condition.query.iter().all(|(name, value)| value.holds(query_values(target.query(), name)))
}

fn path_matches(condition: &PathMatch, path: &str) -> bool {
    match condition {
        PathMatch::Any => true,
        PathMatch::Prefix(prefix) => path.as_bytes().starts_with(prefix.as_bytes()),
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Pattern(pattern) => pattern.is_match(path),
    }
}

/// Values of a query parameter as they stand in the URL; a parameter without `=` has an empty one.
fn query_values<'q>(query: Option<&'q str>, name: &'q str) -> impl Iterator<Item = &'q [u8]> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value.as_bytes())
    })
}

/// The first bypass rule that holds for a request.
pub fn bypass<'a>(route: &'a Route, target: &Target, method: &Method, fields: &Fields) -> Option<&'a BypassRule> {
    route.bypass.iter().find(|rule| {
        let cookies = || rule.cookies.is_empty() || cookies::any(fields, &rule.cookies);
        matches(&rule.condition, target, method, fields) && cookies()
    })
}
