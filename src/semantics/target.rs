//! The effective request target (RFC 9110 §7.1).
//!
//! One normaliser feeds routing, cache key and upstream request: they all use the bytes of one
//! [`Target`]. Where a target could be read in two ways it is refused, not mended (RFC 9112 §3.2); what is
//! normalised is what RFC 3986 §6.2.2 and §6.2.3 call equivalent. How is in `normal`.

mod normal;

use super::key::hash128;
use super::{Fields, name};
use normal::{Builder, PathRules, has_scheme, split_absolute};
use std::fmt;
use std::sync::Arc;

pub use normal::decode;

/// A normalised http or https URL: `scheme://authority/path[?query]`.
///
/// Authority in lower case without userinfo, default port and the root's dot; the path begins with
/// `/`; there is no fragment, no dot segment, no control byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    text: Arc<str>,
    /// Where the authority begins: past `://`.
    authority_start: u32,
    path_start: u32,
    /// Where `?` is, or the length.
    path_end: u32,
}

/// Why a target was refused; each is a 400 unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("request target holds a byte that is not allowed")]
    Byte,
    #[error("request target is in no form that is served here")]
    Form,
    #[error("Host is missing")]
    HostMissing,
    #[error("Host is repeated")]
    HostRepeated,
    #[error("Host is malformed")]
    HostMalformed,
    #[error("Host disagrees with the absolute target")]
    HostDisagrees,
    #[error("userinfo in the target")]
    Userinfo,
    #[error("path is ambiguous: encoded slash, backslash or NUL, or a dot segment above the root")]
    Path,
}

impl TargetError {
    /// Token for log and metrics; `docs/http1.md` lists them.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Byte => "target-byte",
            Self::Form => "target-form",
            Self::HostMissing => "host-missing",
            Self::HostRepeated => "host-repeated",
            Self::HostMalformed => "host-malformed",
            Self::HostDisagrees => "host-disagrees",
            Self::Userinfo => "userinfo",
            Self::Path => "path-ambiguous",
        }
    }
}

impl Target {
    /// The target of a request line and its Host lines, normalised.
    ///
    /// Takes origin form, absolute form (then scheme and Host must agree), and `*` (as path `*`; for OPTIONS only,
    /// which the caller checks by [`Target::is_asterisk`]).
    /// Dot segments are removed, unreserved characters percent-decoded, hex digits upper-cased, an empty path is
    /// `/`. Encoded slashes (%2F), backslashes (raw or %5C), encoded control bytes and dot segments with a path
    /// parameter (`..;`) are refused unless `lenient_path` (then kept as they are, encoded). Bytes that are neither
    /// visible ASCII nor part of a valid percent-encoding, and fragments, are refused; in a query a `%` that encodes
    /// nothing becomes `%25`.
    ///
    /// A host is an IPv6 address in brackets or a name (RFC 3986 §3.2.2); percent-encoding in it only of unreserved
    /// characters.
    pub fn parse(scheme: Scheme, raw: &[u8], hosts: &Fields, lenient_path: bool) -> Result<Self, TargetError> {
        let mut lines = hosts.values(name::HOST);
        let host = lines.next().ok_or(TargetError::HostMissing)?;
        if lines.next().is_some() {
            return Err(TargetError::HostRepeated);
        }
        let rules = if lenient_path { PathRules::Lenient } else { PathRules::Strict };
        match raw {
            [b'/', ..] => Builder::new(scheme, host, raw.len())?.finish(raw, rules),
            b"*" => Builder::new(scheme, host, 1)?.finish_asterisk(),
            _ => {
                let (named, authority, rest) = split_absolute(raw)?;
                if named != scheme {
                    return Err(TargetError::Form);
                }
                let target = Builder::new(scheme, authority, rest.len())?;
                if target.text != Builder::new(scheme, host, 0)?.text {
                    return Err(TargetError::HostDisagrees);
                }
                target.finish(rest, rules)
            }
        }
    }

    /// The target whose [`Target::without_scheme`] this is: of http, unless that would leave out a default port.
    pub fn from_text(text: &str) -> Option<Self> {
        let read = |scheme| Self::from_url(&format!("{scheme}://{text}")).ok();
        ["http", "https"].into_iter().filter_map(read).find(|target| target.without_scheme() == text)
    }

    /// Builds a target from a URL as an operator writes it in a purge or on the command line. Encodes what a browser
    /// would encode; paths are read as with `lenient_path`.
    pub fn from_url(url: &str) -> Result<Self, TargetError> {
        let (scheme, authority, rest) = split_absolute(url.as_bytes())?;
        Builder::new(scheme, authority, rest.len())?.finish(rest, PathRules::Reference)
    }

    /// The same target with another path and query (rewrites, relative references). Both are normalised, a missing
    /// first slash is added; dot segments cannot leave the root (RFC 3986 §5.2.4).
    pub fn with_path_and_query(&self, path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        if path.contains('?') {
            return Err(TargetError::Byte);
        }
        let mut rest = String::with_capacity(path.len() + query.map_or(0, str::len) + 2);
        if !path.starts_with('/') {
            rest.push('/');
        }
        rest.push_str(path);
        if let Some(query) = query {
            rest.push('?');
            rest.push_str(query);
        }
        Builder::new(self.scheme(), self.authority().as_bytes(), rest.len())?.finish(rest.as_bytes(), PathRules::Reference)
    }

    /// A reference such as Location, resolved against this target (RFC 3986 §5.2). Its fragment is dropped; schemes
    /// other than http and https are refused.
    pub fn resolve(&self, reference: &str) -> Result<Self, TargetError> {
        let reference = reference.split('#').next().unwrap_or(reference);
        if has_scheme(reference) {
            return Self::from_url(reference);
        }
        if reference.starts_with("//") {
            return Self::from_url(&format!("{}:{reference}", self.scheme().as_str()));
        }
        let (path, query) = match reference.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (reference, None),
        };
        if path.is_empty() {
            return self.with_path_and_query(self.path(), query.or_else(|| self.query()));
        }
        if path.starts_with('/') {
            return self.with_path_and_query(path, query);
        }
        let directory = self.path().rfind('/').map_or("/", |slash| &self.path()[..=slash]);
        self.with_path_and_query(&format!("{directory}{path}"), query)
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Whether this is `*`, the server as a whole (RFC 9110 §7.1): good for OPTIONS only.
    pub fn is_asterisk(&self) -> bool {
        self.path() == "*"
    }
    /// Scheme of the URL.
    pub fn scheme(&self) -> Scheme {
        if self.authority_start == 8 { Scheme::Https } else { Scheme::Http }
    }
    /// Host and, where it is not the default one, port.
    pub fn authority(&self) -> &str {
        &self.text[self.authority_start as usize..self.path_start as usize]
    }
    /// Host without port; IPv6 in brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let digits = authority.bytes().rev().take_while(u8::is_ascii_digit).count();
        authority[..authority.len() - digits].strip_suffix(':').unwrap_or(authority)
    }
    /// The port; the default one of the scheme where the authority has none.
    pub fn port(&self) -> &str {
        match self.authority()[self.host().len()..].strip_prefix(':') {
            Some(port) => port,
            None if self.scheme() == Scheme::Https => "443",
            None => "80",
        }
    }
    /// The path; begins with `/` unless the target is `*`.
    pub fn path(&self) -> &str {
        &self.text[self.path_start as usize..self.path_end as usize]
    }
    /// What follows the first `?`; `Some("")` where nothing does.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path_end as usize + 1..)
    }
    /// Path and query as they go into a request line.
    pub fn path_and_query(&self) -> &str {
        &self.text[self.path_start as usize..]
    }
    /// Scheme and authority: `http://shop.example`.
    pub fn origin(&self) -> &str {
        &self.text[..self.path_start as usize]
    }
    /// Everything but the scheme: `authority/path?query`.
    pub fn without_scheme(&self) -> &str {
        &self.text[self.authority_start as usize..]
    }
    /// Scheme, authority and path.
    pub fn without_query(&self) -> &str {
        &self.text[..self.path_end as usize]
    }
    /// [`Target::as_str`], shared.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }
    /// [`Target::without_scheme`], hashed: what a URL purge is matched on.
    pub fn url_hash(&self) -> u128 {
        hash128(self.without_scheme().as_bytes())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the client reached us, or is taken to have (trusted X-Forwarded-Proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(value: &[u8]) -> Fields {
        let mut fields = Fields::new();
        fields.append(name::HOST, value).unwrap();
        fields
    }

    #[test]
    fn parts_are_told_apart() {
        let target = Target::parse(Scheme::Https, b"/p/q?r=s?t", &host(b"Shop.Example:8443"), false).unwrap();
        assert_eq!(target.as_str(), "https://shop.example:8443/p/q?r=s?t");
        assert_eq!((target.scheme(), target.authority(), target.host()), (Scheme::Https, "shop.example:8443", "shop.example"));
        assert_eq!((target.path(), target.query(), target.path_and_query()), ("/p/q", Some("r=s?t"), "/p/q?r=s?t"));
        assert_eq!(target.origin(), "https://shop.example:8443");
        assert_eq!(target.url_hash(), Target::from_url("http://shop.example:8443/p/q?r=s?t").unwrap().url_hash());
        let star = Target::parse(Scheme::Http, b"*", &host(b"a"), false).unwrap();
        assert!(star.is_asterisk() && star.path_and_query() == "*" && star.authority() == "a");
        let six = Target::parse(Scheme::Http, b"/", &host(b"[0:0::1]:8080"), false).unwrap();
        assert_eq!((six.authority(), six.host()), ("[::1]:8080", "[::1]"));
        let empty = Target::parse(Scheme::Http, b"/?", &host(b"a"), false).unwrap();
        assert_eq!((empty.query(), empty.as_str()), (Some(""), "http://a/?"));
    }

    #[test]
    fn the_dot_of_the_root_names_no_other_host() {
        let parse = |raw: &[u8], name: &[u8]| Target::parse(Scheme::Http, raw, &host(name), false).map(|target| target.to_string());
        let want = Ok("http://shop.example:8080/a".to_owned());
        for name in ["shop.example:8080", "Shop.Example.:8080", "shop.example%2e:8080"] {
            assert_eq!(parse(b"/a", name.as_bytes()), want);
            assert_eq!(parse(b"http://shop.example.:8080/a", name.as_bytes()), want);
            assert_eq!(Target::from_url(&format!("http://{name}/a")).map(|target| target.to_string()), want);
        }
        for name in [".", "..", "shop.example..", ".:80"] {
            assert_eq!(parse(b"/a", name.as_bytes()), Err(TargetError::HostMalformed), "{name}");
        }
    }

    #[test]
    fn a_text_without_scheme_is_read_back_whatever_its_port() {
        for url in ["http://a/b?c", "https://a/b", "http://a:443/", "https://a:80/", "https://[::1]:80/"] {
            let target = Target::from_url(url).unwrap();
            assert_eq!(Target::from_text(target.without_scheme()).unwrap().without_scheme(), target.without_scheme());
        }
        assert_eq!(Target::from_text("A/b"), None);
    }

    proptest! {
        #[test]
        fn a_normalised_target_is_normal(
            raw in r#"(/|/\.|\.\.|%2e|%2E|%41|%[0-9a-f]{2}|%|;|[a-c]|\?|"|\[|\||\\|&|=|\+){0,12}"#,
            authority in "[a-zA-Z0-9.-]{1,8}(:[0-9]{0,5})?", lenient in any::<bool>()
        ) {
            let parse = |raw: &str, authority: &str| Target::parse(Scheme::Http, raw.as_bytes(), &host(authority.as_bytes()), lenient);
            if let Ok(target) = parse(&format!("/{raw}"), &authority) {
                let normal = Ok(target.clone());
                prop_assert_eq!(&parse(target.path_and_query(), target.authority()), &normal);
                prop_assert_eq!(&parse(target.as_str(), target.authority()), &normal);
                prop_assert_eq!(&Target::from_url(target.as_str()), &normal);
                prop_assert_eq!(&target.with_path_and_query(target.path(), target.query()), &normal);
                let dots = target.path().split('/').any(|segment| segment == "." || segment == "..");
                prop_assert!(!dots && target.path().starts_with('/') && target.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn no_bytes_panic(
            raw in proptest::collection::vec(any::<u8>(), 0..40), authority in proptest::collection::vec(any::<u8>(), 0..20),
            lenient in any::<bool>()
        ) {
            let mut fields = Fields::new();
            let _ = fields.append(name::HOST, &authority);
            let _ = Target::parse(Scheme::Http, &raw, &fields, lenient);
            let _ = Target::parse(Scheme::Https, &[b"https://", &raw[..]].concat(), &fields, lenient);
            if let Ok(target) = Target::parse(Scheme::Http, &[b"/", &raw[..]].concat(), &host(b"a"), lenient) {
                prop_assert_eq!(target.host(), "a");
            }
        }

        #[test]
        fn no_reference_panics_or_leaves_normal_form(reference in "(http:|//|/|\\.\\.|\\.|\\?|#|a|b|:|%2f|é| ){0,10}") {
            let base = Target::from_url("http://a/b/c/d;p?q").unwrap();
            if let Ok(target) = base.resolve(&reference) {
                prop_assert_eq!(Target::from_url(target.as_str()), Ok(target.clone()));
            }
        }
    }
}
