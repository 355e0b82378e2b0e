//! What the cache did, as a member of Cache-Status (RFC 9211).

use super::structured::{Text, write_item, write_string};

/// `fwd` (RFC 9211 §2.2): why the request went forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Miss,
    Request,
    Stale,
    Partial,
}

impl Forward {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

/// The parameters of our member, in the order of the RFC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    pub hit: bool,
    pub forward: Option<Forward>,
    pub forward_status: Option<u16>,
    /// Remaining freshness in seconds, negative when stale.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    /// Token: `MEMORY`, `SET-COOKIE`, ...
    pub detail: Option<&'a str>,
    /// Only where the route shows it.
    pub key: Option<&'a str>,
}

impl CacheStatus<'_> {
    /// Appends `name; hit; ttl=30; detail=MEMORY` to `out`, without allocating. `name` and `detail` are written as
    /// tokens where they are, else as strings; in a string, `"` and `\` are escaped and what is not printable ASCII
    /// is percent-encoded.
    ///
    /// `hit` and `fwd` exclude each other: `fwd` wins (§2.1). What has a meaning only with `fwd` is left out without it
    /// (§2.3, §2.5, §2.6).
    pub fn write(&self, name: &str, out: &mut impl Text) {
        write_item(name, out);
        match self.forward {
            Some(forward) => self.write_forward(forward, out),
            None if self.hit => out.put(b"; hit"),
            None => {}
        }
        if let Some(ttl) = self.ttl {
            out.put(b"; ttl=");
            out.put(itoa::Buffer::new().format(ttl.clamp(-INTEGER_MAX, INTEGER_MAX)).as_bytes());
        }
        if self.forward.is_some() && self.stored {
            out.put(b"; stored");
        }
        if self.forward.is_some() && self.collapsed {
            out.put(b"; collapsed");
        }
        if let Some(key) = self.key {
            out.put(b"; key=");
            write_string(key, out);
        }
        if let Some(detail) = self.detail {
            out.put(b"; detail=");
            write_item(detail, out);
        }
    }

    fn write_forward(&self, forward: Forward, out: &mut impl Text) {
        out.put(b"; fwd=");
        out.put(forward.as_str().as_bytes());
        if let Some(status) = self.forward_status {
            out.put(b"; fwd-status=");
            out.put(itoa::Buffer::new().format(status).as_bytes());
        }
    }
}

/// Largest Integer of structured fields (RFC 9651 §3.3.1).
const INTEGER_MAX: i64 = 999_999_999_999_999;

#[cfg(test)]
mod tests {
    use super::super::structured::string_member;
    use super::*;
    use proptest::prelude::*;

    fn written(status: CacheStatus<'_>) -> String {
        let mut out = Vec::new();
        status.write("tiercel", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn members_read_as_in_the_standard() {
        let hit = CacheStatus { hit: true, ttl: Some(30), detail: Some("MEMORY"), ..CacheStatus::default() };
        let forward = |forward| CacheStatus { forward: Some(forward), ..CacheStatus::default() };
        let cases = [
            (CacheStatus::default(), "tiercel"),
            (hit, "tiercel; hit; ttl=30; detail=MEMORY"),
            (CacheStatus { ttl: Some(-7), ..hit }, "tiercel; hit; ttl=-7; detail=MEMORY"),
            (CacheStatus { stored: true, ..forward(Forward::UriMiss) }, "tiercel; fwd=uri-miss; stored"),
            (CacheStatus { collapsed: true, ..forward(Forward::VaryMiss) }, "tiercel; fwd=vary-miss; collapsed"),
            (
                CacheStatus { forward_status: Some(304), ttl: Some(60), stored: true, ..forward(Forward::Stale) },
                "tiercel; fwd=stale; fwd-status=304; ttl=60; stored",
            ),
            (
                CacheStatus { detail: Some("SET-COOKIE"), key: Some("http://shop.example/a?b"), ..forward(Forward::Bypass) },
                "tiercel; fwd=bypass; key=\"http://shop.example/a?b\"; detail=SET-COOKIE",
            ),
        ];
        for (status, want) in cases {
            assert_eq!(written(status), want);
        }
    }

    #[test]
    fn every_reason_to_go_forward_is_a_token_of_the_standard() {
        use Forward::{Bypass, Method, Miss, Partial, Request, Stale, UriMiss, VaryMiss};
        let all = [Bypass, Method, UriMiss, VaryMiss, Miss, Request, Stale, Partial];
        let tokens: Vec<_> =
            all.into_iter().map(|reason| written(CacheStatus { forward: Some(reason), ..CacheStatus::default() })).collect();
        let want = ["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"];
        assert_eq!(tokens, want.map(|token| format!("tiercel; fwd={token}")));
    }

    #[test]
    fn parameters_without_meaning_are_left_out() {
        let hit = CacheStatus { hit: true, forward_status: Some(200), stored: true, collapsed: true, ..CacheStatus::default() };
        assert_eq!(written(hit), "tiercel; hit");
        assert_eq!(written(CacheStatus { hit: true, forward: Some(Forward::Stale), ..CacheStatus::default() }), "tiercel; fwd=stale");
    }

    #[test]
    fn what_is_no_token_is_written_as_a_string() {
        let detail = |text| written(CacheStatus { detail: Some(text), ..CacheStatus::default() });
        assert_eq!(detail("logged in"), "tiercel; detail=\"logged in\"");
        assert_eq!(detail("9lives"), "tiercel; detail=\"9lives\"");
        assert_eq!(detail(""), "tiercel; detail=\"\"");
        let mut out = Vec::new();
        CacheStatus::default().write("cache 3", &mut out);
        assert_eq!(out, b"\"cache 3\"");
    }

    #[test]
    fn a_ttl_beyond_the_integers_of_structured_fields_is_clamped() {
        let ttl = |ttl| written(CacheStatus { ttl: Some(ttl), ..CacheStatus::default() });
        assert_eq!(ttl(i64::MAX), "tiercel; ttl=999999999999999");
        assert_eq!(ttl(i64::MIN), "tiercel; ttl=-999999999999999");
    }

    #[test]
    fn a_key_is_escaped() {
        let key = CacheStatus { key: Some("http://a/\"b\\\nx-lang=é"), ..CacheStatus::default() };
        assert_eq!(written(key), r#"tiercel; key="http://a/\"b\\%0Ax-lang=%C3%A9""#);
    }

    proptest! {
        #[test]
        fn any_key_is_one_string_of_structured_fields(key in "\\PC*|[\\x00-\\x7f]*") {
            let line = written(CacheStatus { key: Some(&key), ..CacheStatus::default() });
            let read = string_member(line.strip_prefix("tiercel; key=").unwrap().as_bytes());
            prop_assert!(read.is_some(), "{}", line);
            if key.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                prop_assert_eq!(read.unwrap(), key);
            }
        }
    }
}
