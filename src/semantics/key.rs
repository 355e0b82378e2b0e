//! The cache key (RFC 9111 §2): the normalised target, and what the route adds to it.
//!
//! Of a query the key has what the route says that counts, and nothing else of it goes upstream with a request whose answer
//! may be stored ([`KeyPolicy::query_of`]): what is not keyed must not shape what others get. Further parts stand on lines of
//! their own, escaped, so that no value can pass for another part: keys are equal only where all their parts are.

use super::class::ClientClass;
use super::no_vary_search::NoVarySearch;
use super::vary::write_value;
use super::{Fields, Target, forwarding, name, query};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Fixed-key 128-bit hash, equal on all nodes. Finds; never decides alone where bytes can be compared.
pub fn hash128(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// What a route makes of the target and fields for the cache key.
#[derive(Debug, Clone, Default)]
pub struct KeyPolicy {
    /// Sort query parameters by name, stable.
    pub query_sort: bool,
    /// Only these parameters count; `None`: all. A trailing `*` matches a prefix.
    pub query_allow: Option<Vec<String>>,
    /// These parameters do not count; a trailing `*` matches a prefix.
    pub query_ignore: Vec<String>,
    /// The parameters of [`super::tracking`] do not count, unless `query_allow` names what does.
    pub ignore_tracking: bool,
    /// Request fields whose values, normalised as for Vary, are part of the key.
    pub headers: Vec<String>,
    /// Cookies whose values are part of the key.
    pub cookies: Vec<String>,
    /// Classes of clients whose values are part of the key.
    pub classes: Vec<ClientClass>,
    /// The route, where more than scheme, host and path chose it: what it makes of a URL is not what others do.
    pub route: Option<String>,
}

impl KeyPolicy {
    /// Whether the key is the target as it is: no allocation beyond it.
    pub fn is_plain(&self) -> bool {
        self.keeps_query() && self.headers.is_empty() && self.cookies.is_empty() && self.classes.is_empty() && self.route.is_none()
    }
    /// Whether the query is part of the key as it is.
    pub fn keeps_query(&self) -> bool {
        !self.query_sort && self.query_allow.is_none() && self.query_ignore.is_empty() && !self.ignore_tracking
    }
    /// The query that counts of a target, if any does.
    pub fn query_of<'t>(&self, target: &'t Target) -> Option<Cow<'t, str>> {
        if self.keeps_query() {
            return target.query().map(Cow::Borrowed);
        }
        let mut counted = String::new();
        push_query(&mut counted, target.query(), self);
        (!counted.is_empty()).then(|| counted.split_off(1).into()) // without its question mark
    }
    /// Whether the values of this request field are part of the key.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|header| header.eq_ignore_ascii_case(name))
    }
    /// Whether a parameter counts. `parameter` is all of it, `name` its decoded name.
    fn counts(&self, name: &[u8], parameter: &str) -> bool {
        // Some origins part parameters at `;` too: `ignored=1;wanted=2` would then smuggle `wanted` past the key.
        if parameter.contains(';') {
            return true;
        }
        let allowed = match &self.query_allow {
            Some(allowed) => query::is_listed(name, allowed),
            None => !(self.ignore_tracking && super::tracking::is_listed(name)),
        };
        allowed && !query::is_listed(name, &self.query_ignore)
    }
}

/// The primary cache key: compared whole on every hit; the hash only finds it.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// The normalised URL (after the query rules), then one line per further part.
    text: Arc<str>,
    /// Length of the URL part of the text.
    url_length: u32,
    /// Length of what people are shown of it.
    shown_length: u32,
    /// In halves: alone it would have to stand at a multiple of sixteen.
    hash: [u64; 2],
}

// Each stored response has one.
const _: () = assert!(size_of::<CacheKey>() == 40);

impl CacheKey {
    /// The key of a request on a route. Forwarding fields that are there count: whose word does not was rid of them.
    pub fn new(target: &Target, fields: &Fields, policy: &KeyPolicy) -> Self {
        if policy.is_plain() && !fields.has_any(forwarding::KEYED) {
            let length = target.as_str().len();
            return Self::of(Arc::clone(target.text()), length, length);
        }
        let mut text = String::with_capacity(target.as_str().len() + 64);
        text.push_str(target.without_query());
        push_query(&mut text, target.query(), policy);
        let url_length = text.len();
        push_parts(&mut text, fields, policy);
        push_route(&mut text, policy);
        push_forwarded(&mut text, target, fields);
        let shown_length = text.len();
        Self::of(text.into(), url_length, shown_length)
    }

    fn of(text: CacheKeyText, url_length: usize, shown_length: usize) -> Self {
        let hash = hash128(text.as_bytes());
        let (url_length, shown_length) = (url_length as u32, shown_length as u32);
        Self { hash: [(hash >> 64) as u64, hash as u64], text, url_length, shown_length }
    }

    /// This key with a last part that is not shown; see [`super::content::key`].
    pub fn with_content(&self, part: &str) -> Self {
        Self::of([&self.text, part].concat().into(), self.url_length as usize, self.shown_length as usize)
    }

    /// The key of all URLs that are equivalent to this one under a rule. It holds the rule: what was stored under another
    /// one is not found by it.
    ///
    /// A purge of any URL of its path matches it, since that URL may be one of them: its URL hash is the path's.
    #[must_use]
    pub fn under(&self, rule: &NoVarySearch) -> Self {
        let (path, query) = self.url().split_once('?').map_or((self.url(), None), |(path, query)| (path, Some(query)));
        let canonical = rule.canonical(query);
        let mut text = String::with_capacity(self.text.len() + canonical.len() + 64);
        text.push_str(path);
        if !canonical.is_empty() {
            text.push('?');
            text.push_str(&canonical);
        }
        let (shown, content) = self.text.split_at(self.shown_length as usize);
        let url_length = text.len();
        text.push_str(&shown[self.url_length as usize..]);
        text.push_str(SEARCH_RULE);
        text.push_str(&rule.text());
        let shown_length = text.len();
        text.push_str(content);
        Self::of(text.into(), url_length, shown_length)
    }

    /// Hash of authority and path, for what is said of all queries of a path; no URL has it as its own.
    pub fn search_hash(&self) -> u128 {
        search_hash(self.url_text())
    }

    /// The key of a part of what this is the key of: invalidated with it.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self::of([&self.text, "\n", name].concat().into(), self.url_length as usize, self.shown_length as usize)
    }

    /// The whole key as text; parts after the URL are on lines of their own.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// The key without content of requests, which may be long and nobody else's business.
    pub fn shown(&self) -> &str {
        &self.text[..self.shown_length as usize]
    }
    /// [`CacheKey::as_str`], shared.
    pub fn text(&self) -> &CacheKeyText {
        &self.text
    }
    /// The URL part.
    pub fn url(&self) -> &str {
        &self.text[..self.url_length as usize]
    }
    /// The URL part without its scheme: `authority/path?query`.
    pub fn url_text(&self) -> &str {
        let scheme = if self.text.starts_with("https") { "https://" } else { "http://" };
        self.url().get(scheme.len()..).unwrap_or_default()
    }
    /// Hash of the whole key.
    pub fn hash(&self) -> u128 {
        u128::from(self.hash[0]) << 64 | u128::from(self.hash[1])
    }
    /// Hash of authority, path and query after the route's rules: what a URL purge matches. Of a key for many URLs, see
    /// [`CacheKey::under`]. Not kept: it is asked for where something was purged, and a hit does without.
    pub fn url_hash(&self) -> u128 {
        // No other part can hold this: what they are made of is escaped.
        if self.shown()[self.url_length as usize..].contains(SEARCH_RULE) {
            self.search_hash()
        } else {
            hash128(self.url_text().as_bytes())
        }
    }
}

/// What stands before the rule in a key of many URLs.
const SEARCH_RULE: &str = "\nno-vary-search ";

/// [`CacheKey::search_hash`] of a URL, given without its scheme.
pub fn search_hash(url_text: &str) -> u128 {
    let path = url_text.split('?').next().unwrap_or(url_text);
    hash128([path.as_bytes(), b"\n?"].concat().as_slice())
}

/// Appends `?` and the parameters that count.
fn push_query(text: &mut String, query: Option<&str>, policy: &KeyPolicy) {
    let Some(query) = query else { return };
    if policy.keeps_query() {
        text.push('?');
        text.push_str(query);
        return;
    }
    let named = query::parameters(query).map(|parameter| (query::name(parameter), parameter));
    let mut counted: Vec<(Cow<'_, [u8]>, &str)> = named.filter(|(name, parameter)| policy.counts(name, parameter)).collect();
    if policy.query_sort {
        counted.sort_by(|a, b| a.0.cmp(&b.0)); // stable: the order of repeats may have a meaning
    }
    for (at, (_, parameter)) in counted.iter().enumerate() {
        text.push(if at == 0 { '?' } else { '&' });
        text.push_str(parameter);
    }
}

/// Appends one line per field, cookie or class that is part of the key.
fn push_parts(text: &mut String, fields: &Fields, policy: &KeyPolicy) {
    let mut value = Vec::new();
    for name in &policy.headers {
        let name = name.to_ascii_lowercase();
        value.clear();
        write_value(&name, fields, &mut value);
        text.push_str("\nheader ");
        text.push_str(&name);
        if let [_, value @ ..] = &value[..] {
            push_value(text, value);
        }
    }
    for name in &policy.cookies {
        text.push_str("\ncookie ");
        text.push_str(name);
        for value in cookie_values(fields, name) {
            push_value(text, value);
        }
    }
    for class in &policy.classes {
        text.push_str("\nclass ");
        text.push_str(&class.name);
        push_value(text, class.of(fields).as_bytes());
    }
}

/// Appends a line for the route, where others answer the same URL.
fn push_route(text: &mut String, policy: &KeyPolicy) {
    if let Some(route) = &policy.route {
        text.push_str("\nroute");
        push_value(text, route.as_bytes());
    }
}

/// Appends one line per forwarding field that says something else than the target does.
fn push_forwarded(text: &mut String, target: &Target, fields: &Fields) {
    for (name, value) in forwarding::keyed(target, fields) {
        text.push_str("\nforwarded ");
        text.push_str(name.as_str());
        push_value(text, value);
    }
}

/// Appends `:` and a value, escaped: without bytes that could end its line or, a colon, pass for a further value.
fn push_value(text: &mut String, value: &[u8]) {
    text.push(':');
    for byte in value {
        match byte {
            b':' => text.push_str("\\x3a"),
            byte => text.extend(byte.escape_ascii().map(char::from)),
        }
    }
}

/// The values of all cookies of this name, in order (RFC 6265 §5.4).
fn cookie_values<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = fields.values(name::COOKIE).flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (super::fields::trim(&pair[..equals]) == name.as_bytes()).then(|| super::fields::trim(&pair[equals + 1..]))
    })
}

/// The text of a whole primary key, shared.
pub type CacheKeyText = Arc<str>;

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::ClassRule;
    use super::super::condition::ValueMatch;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_route_that_more_than_the_url_chose_has_keys_of_its_own() {
        let target = Target::from_url("http://a/b?c").unwrap();
        let key = |route: Option<&str>| {
            CacheKey::new(&target, &Fields::new(), &KeyPolicy { route: route.map(str::to_owned), ..KeyPolicy::default() })
        };
        assert_eq!(key(Some("beta:1")).as_str(), "http://a/b?c\nroute:beta\\x3a1");
        assert!(key(Some("beta")) != key(None) && key(Some("beta")) != key(Some("b")));
        assert_eq!(key(Some("beta")).url_hash(), key(None).url_hash(), "a purge of the URL reaches all");
    }

    #[test]
    fn a_plain_key_shares_the_text_of_its_target() {
        let target = Target::from_url("http://a/assets/app.js?v=1").unwrap();
        let key = CacheKey::new(&target, &Fields::new(), &KeyPolicy::default());
        assert!(Arc::ptr_eq(key.text(), target.text()));
    }

    #[test]
    fn cookies_are_found_by_exact_name() {
        let mut fields = Fields::new();
        fields.append(name::COOKIE, "aa=1; a=2;a = 3; b").unwrap();
        fields.append(name::COOKIE, "a=4=5").unwrap();
        let values: Vec<_> = cookie_values(&fields, "a").collect();
        assert_eq!(values, [&b"2"[..], b"3", b"4=5"]);
    }

    #[test]
    fn the_query_that_counts_is_the_one_of_the_key() {
        let policy = KeyPolicy { query_ignore: vec!["b".into()], ignore_tracking: true, ..KeyPolicy::default() };
        for (url, want) in [
            ("http://a/?b=1&c&gclid=2&utm_source=x", Some("c")),
            ("http://a/?b=1", None),
            ("http://a/?", None),
            ("http://a/", None),
            ("http://a/?c=1;b=2", Some("c=1;b=2")),
        ] {
            let target = Target::from_url(url).unwrap();
            assert_eq!(policy.query_of(&target).as_deref(), want, "{url}");
            let key = CacheKey::new(&target, &Fields::new(), &policy);
            assert_eq!(key.url().split_once('?').map(|(_, query)| query), want, "{url}");
        }
        let plain = Target::from_url("http://a/?").unwrap();
        assert_eq!(KeyPolicy::default().query_of(&plain).as_deref(), Some(""));
    }

    #[test]
    fn an_allow_list_alone_says_which_parameters_count() {
        let policy = KeyPolicy { query_allow: Some(vec!["utm_source".into()]), ignore_tracking: true, ..KeyPolicy::default() };
        let target = Target::from_url("http://a/?utm_source=x&utm_medium=y").unwrap();
        assert_eq!(policy.query_of(&target).as_deref(), Some("utm_source=x"));
    }

    #[test]
    fn a_key_under_a_rule_is_that_of_all_equivalent_urls_and_of_no_others() {
        let mut response = Fields::new();
        response.push("no-vary-search", "key-order, params=(\"a\")").unwrap();
        let rule = NoVarySearch::of(&response).unwrap().unwrap();
        let policy = KeyPolicy { headers: vec!["x".into()], ..KeyPolicy::default() };
        let exact = |url: &str| CacheKey::new(&Target::from_url(url).unwrap(), &Fields::new(), &policy);
        let under = |url| exact(url).under(&rule);
        assert_eq!(under("http://h/p?c=1&b&a=2").as_str(), "http://h/p?b=&c=1\nheader x\nno-vary-search key-order, params=(\"a\")");
        assert_eq!(under("http://h/p?c=1&b&a=2"), under("http://h/p?b=&a&c=%31"));
        assert_eq!(under("http://h/p"), under("http://h/p?"));
        for other in ["http://h/p?b&c=2", "http://h/q?b&c=1", "https://h/p?b&c=1", "http://h/p?b"] {
            assert_ne!(under("http://h/p?b&c=1"), under(other), "{other}");
        }
        assert_ne!(under("http://h/p?b=").hash(), exact("http://h/p?b=").hash());
        assert_eq!(under("http://h/p?b").url_hash(), search_hash("h/p?z"), "a purge of any query of the path");
        assert_ne!(under("http://h/p").url_hash(), exact("http://h/p").url_hash());
    }

    /// What a request says of the parts of its key, read in another way than the key does.
    type Said = (Option<Vec<u8>>, Vec<Vec<u8>>, bool, Option<Vec<u8>>);

    /// A request with one value per part, made of the bytes that parts are told apart by.
    fn request(header: Option<&str>, cookies: &[String], is_mobile: bool, forwarded: Option<&str>) -> (Fields, Said) {
        let mut fields = Fields::new();
        let bytes = |text: &str| super::super::fields::trim(text.as_bytes()).to_vec();
        for (name, value) in [("authorization", header), ("x-forwarded-host", forwarded), ("x-mobile", is_mobile.then_some("1"))] {
            if let Some(value) = value {
                fields.push(name, value).unwrap();
            }
        }
        for cookie in cookies {
            fields.push("cookie", format!("c={cookie}")).unwrap();
        }
        let forwarded = forwarded.filter(|value| value.trim_matches([' ', '\t']) != "a").map(bytes);
        (fields, (header.map(bytes), cookies.iter().map(|cookie| bytes(cookie)).collect(), is_mobile, forwarded))
    }

    proptest! {
        #[test]
        fn keys_are_equal_only_where_all_parts_are(
            a in ("[a\\\\:,nxé\t ]{0,3}|\\\\x3a|c:class", proptest::collection::vec("[a:\\\\ \"]{0,2}", 0..3), any::<bool>(), "[a:\\\\ ]{0,2}"),
            b in ("[a\\\\:,nxé\t ]{0,3}|\\\\x3a|c:class", proptest::collection::vec("[a:\\\\ \"]{0,2}", 0..3), any::<bool>(), "[a:\\\\ ]{0,2}"),
            absent in 0_u8..16, queries in ("[a&=:]{0,3}", "[a&=:]{0,3}"),
        ) {
            let rule = ClassRule { value: "mobile".into(), headers: vec![("x-mobile".into(), ValueMatch::Present)] };
            let class = ClientClass { name: "device".into(), rules: vec![rule], default: "desktop".into(), forward: None };
            let policy = KeyPolicy {
                headers: vec!["authorization".into()], cookies: vec!["c".into()], classes: vec![class], ..KeyPolicy::default()
            };
            fn there(absent: u8, bit: u8, text: &str) -> Option<&str> {
                (absent & bit == 0).then_some(text)
            }
            let (one, said) = request(there(absent, 1, &a.0), &a.1, a.2, there(absent, 2, &a.3));
            let (other, other_said) = request(there(absent, 4, &b.0), &b.1, b.2, there(absent, 8, &b.3));
            let target = |query: &str| Target::from_url(&format!("http://a/?{query}")).unwrap();
            let one = CacheKey::new(&target(&queries.0), &one, &policy);
            let other = CacheKey::new(&target(&queries.1), &other, &policy);
            prop_assert_eq!(one == other, said == other_said && queries.0 == queries.1, "{:?} {:?}", one, other);
            prop_assert_eq!(one.hash() == other.hash(), one == other);
        }

        #[test]
        fn parts_of_a_key_cannot_be_forged(a in proptest::collection::vec(any::<u8>(), 0..12), b in "[ -~]{0,12}", policy in 0..3) {
            let policy = KeyPolicy {
                headers: if policy == 1 { vec![] } else { vec!["x-a".into(), "x-b".into()] },
                cookies: if policy == 0 { vec![] } else { vec!["c".into()] },
                ..KeyPolicy::default()
            };
            let mut fields = Fields::new();
            let _ = fields.push("x-a", &a);
            let _ = fields.push("x-b", &b);
            let _ = fields.push("cookie", [b"c=", &a[..]].concat());
            let key = CacheKey::new(&Target::from_url("http://a/").unwrap(), &fields, &policy);
            prop_assert_eq!(key.as_str().lines().count(), 1 + policy.headers.len() + policy.cookies.len());
            prop_assert!(key.as_str().is_ascii());
        }
    }
}
