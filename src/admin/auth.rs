//! Who may ask: token, Host, and what a browser sends on behalf of a foreign page.

use super::Control;
use super::api::Problem;
use super::connection::PeerAddress;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// What every request is held against before it is routed.
pub(super) struct Guard {
    /// Who knows the token; `None`: there is nothing to guard.
    pub(super) control: Option<Arc<dyn Control>>,
    /// The listener is bound to loopback.
    pub(super) loopback: bool,
}

/// What needs no token: read by probes and Prometheus.
const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

pub(super) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let purging = guard.purging(&request);
    let mut response = match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let (Some((control, actor)), true) = (purging, response.status().is_client_error()) {
        control.refused_purge(&actor, response.status().as_u16(), response.status().canonical_reason().unwrap_or_default());
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl Guard {
    /// Who tries to purge, if the request is one to purge: a refusal is told about.
    fn purging(&self, request: &Request) -> Option<(Arc<dyn Control>, String)> {
        let is_purge = request.method() == Method::POST && request.uri().path() == "/v1/purge";
        let control = self.control.as_ref().filter(|_| is_purge)?;
        let peer = request.extensions().get::<ConnectInfo<PeerAddress>>()?;
        Some((Arc::clone(control), format!("admin:{}", peer.0.0)))
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        if self.loopback {
            check_host(request)?;
        }
        if !OPEN.contains(&request.uri().path()) {
            self.check_token(headers)?;
        }
        if request.method() == Method::POST {
            check_post(headers)?;
        }
        Ok(())
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = self.control.as_ref().and_then(|control| control.token()) else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        match given {
            Some(given) if same(given, token.expose().as_bytes()) => Ok(()),
            Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is wrong", "send the token of [admin] in the configuration")),
            None => Err(Problem::new(StatusCode::UNAUTHORIZED, "a token is needed", "send `Authorization: Bearer <token>`")),
        }
    }
}

/// The scheme's letter case does not matter (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares in a time that depends on the lengths alone.
fn same(given: &[u8], token: &[u8]) -> bool {
    let differing = given.iter().zip(token).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    given.len() == token.len() && differing == 0
}

/// A page may point a name of its own at loopback (DNS rebinding) and then read from here as its own origin; its
/// requests carry that name. So on loopback only addresses and `localhost` are names of this listener.
fn check_host(request: &Request) -> Result<(), Problem> {
    let named = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    match named.chain(target).all(is_local_name) {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "this Host is not a name of the admin listener",
            "ask by its address, such as 127.0.0.1, or as localhost",
        )),
    }
}

fn is_local_name(authority: &[u8]) -> bool {
    let Ok(authority) = std::str::from_utf8(authority) else { return false };
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, rest)) => (host, rest.strip_prefix(':').or(rest.is_empty().then_some("0"))),
        None => authority.split_once(':').map_or((authority, Some("0")), |(host, port)| (host, Some(port))),
    };
    port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        && (host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == bracketed.is_some()))
}

/// A browser sends a form or a script's simple request anywhere without asking; none of these can carry JSON, and all
/// that browsers send from a foreign page say where they come from.
fn check_post(headers: &HeaderMap) -> Result<(), Problem> {
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body && !is_json(headers) {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON", "send `Content-Type: application/json`"));
    }
    let foreign_origin = headers.get(header::ORIGIN).is_some_and(|origin| !is_own(origin, headers));
    let foreign_fetch = headers.get("sec-fetch-site").is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    if foreign_origin || foreign_fetch {
        return Err(Problem::new(StatusCode::FORBIDDEN, "the request comes from a page of another origin", "ask from a command line"));
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    let media_type = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    origin.as_bytes().strip_prefix(b"http://").is_some_and(|authority| Some(authority) == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local_names() {
        for good in ["127.0.0.1", "127.0.0.1:9180", "localhost", "LOCALHOST:9180", "[::1]", "[::1]:9180", "10.0.0.7:1"] {
            assert!(is_local_name(good.as_bytes()), "{good}");
        }
        for bad in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "[evil]:1", "127.0.0.1:x", "[127.0.0.1]"]
        {
            assert!(!is_local_name(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn tokens_are_the_same_only_as_a_whole() {
        assert!(same(b"secret", b"secret"));
        for other in [&b""[..], b"secre", b"secrets", b"Secret", b"sfcret"] {
            assert!(!same(other, b"secret"));
        }
        assert_eq!(bearer(b"bEARER  abc "), Some(&b"abc"[..]));
        assert_eq!((bearer(b"Basic abc"), bearer(b"Bear")), (None, None));
    }
}
