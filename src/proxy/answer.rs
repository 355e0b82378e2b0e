//! Answers that we make ourselves: refusals, redirects, fixed answers, failures.

use super::admit::{LocalAnswer, Refused};
use super::deliver::{self, line};
use super::exchange::{Arrival, Exchange};
use super::flight::Failure;
use super::live::Routed;
use super::{Live, Proxy};
use crate::body::ResponseBody;
use crate::cache::StoredResponse;
use crate::clock;
use crate::config::settings::{Action, RateLimit};
use crate::limit::{self, Rejected};
use crate::listener::{Response, ResponseFields};
use crate::proxy::outcome::{CacheResult, Outcome, Source};
use crate::route;
use crate::semantics::cache_status::Forward;
use crate::semantics::reuse::{Validity, may_serve_on_error_to};
use crate::semantics::{Fields, StatusCode, date, name, proxy_status};
use bytes::Bytes;
use std::sync::Arc;

/// What is let through, for Allow.
pub const ALLOW: &str = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS";

/// A request that was not admitted.
pub fn refused(live: &Live, refused: &Refused) -> Response {
    let outcome = Outcome {
        result: CacheResult::Error,
        source: Source::Tiercel,
        error: Some(refused.error()),
        detail: Some(refused.reason.into()),
        ..Outcome::default()
    };
    let mut fields = text_fields();
    let status = proxy_status::member(&live.settings.server.name, refused.error(), Some(refused.reason));
    line(&mut fields, name::PROXY_STATUS, &status);
    line(&mut fields, name::VIA, live.via.as_bytes());
    text(refused.status, fields, format!("{}\n", refused.text), outcome)
}

/// What an authority asked for that looks whether a host is ours.
pub fn challenge(live: &Live, key_authorization: &str) -> Response {
    let outcome = Outcome { result: CacheResult::Local, source: Source::Tiercel, detail: Some("ACME".into()), ..Outcome::default() };
    let mut fields = text_fields();
    line(&mut fields, name::VIA, live.via.as_bytes());
    text(200, fields, key_authorization.to_owned(), outcome)
}

/// A request that came too early for a rate limit (RFC 6585 §4).
pub fn too_many_requests(arrival: &Arrival<'_>, limit: &RateLimit, rejected: Rejected) -> Response {
    let outcome = Outcome {
        result: CacheResult::Error,
        source: Source::Tiercel,
        error: Some("http_request_denied"),
        detail: Some("RATE-LIMIT".into()),
        ..arrival.outcome()
    };
    let mut fields = text_fields();
    let seconds = rejected.retry_after_seconds();
    line(&mut fields, name::RETRY_AFTER, seconds.to_string().as_bytes());
    for (name, value) in [("ratelimit-policy", limit::fields::policy(limit)), ("ratelimit", limit::fields::exhausted(rejected))] {
        let _ = fields.push(name, value); // visible ASCII
    }
    line(&mut fields, name::PROXY_STATUS, &proxy_status::member(&arrival.routed.node, "http_request_denied", Some("rate-limit")));
    line(&mut fields, name::VIA, arrival.routed.via.as_bytes());
    deliver::add_hsts(&mut fields, arrival.routed, &outcome);
    text(429, fields, format!("too many requests: try again in {seconds} s\n"), outcome)
}

/// An answer that the configuration gives.
pub fn local(arrival: &Arrival<'_>, answer: LocalAnswer) -> Response {
    let outcome = Outcome { result: CacheResult::Local, source: Source::Tiercel, ..arrival.outcome() };
    let mut fields = Fields::new();
    line(&mut fields, name::DATE, &date::format(clock::now().wall_ms));
    let (status, body) = match (answer, &arrival.routed.route.action) {
        (LocalAnswer::Redirect, Action::Redirect { status, location }) => {
            let location = route::redirect_location(location, &arrival.target);
            line(&mut fields, name::LOCATION, location.as_bytes());
            (*status, Bytes::new())
        }
        (LocalAnswer::ToHttps(port), _) => {
            let (host, path_and_query) = (arrival.target.host(), arrival.target.path_and_query());
            let port = if port == 443 { String::new() } else { format!(":{port}") };
            line(&mut fields, name::LOCATION, ["https://", host, &port, path_and_query].concat().as_bytes());
            (308, Bytes::new())
        }
        (LocalAnswer::Respond, Action::Respond { status, content_type, body }) => {
            line(&mut fields, name::CONTENT_TYPE, content_type.as_bytes());
            (*status, body.clone())
        }
        (answer, _) => {
            let _ = fields.push("allow", ALLOW); // a constant
            (if matches!(answer, LocalAnswer::Options) { 204 } else { 405 }, Bytes::new())
        }
    };
    deliver::edit(&mut fields, &arrival.routed.route.response_edits);
    line(&mut fields, name::VIA, arrival.routed.via.as_bytes());
    deliver::add_hsts(&mut fields, arrival.routed, &outcome);
    respond(status, fields, body, outcome)
}

/// `only-if-cached`, and nothing usable is stored (RFC 9111 §5.2.1.7).
pub fn not_cached(routed: &Routed, outcome: Outcome) -> Response {
    let outcome = Outcome { result: CacheResult::Error, source: Source::Tiercel, detail: Some("ONLY-IF-CACHED".into()), ..outcome };
    let mut fields = text_fields();
    deliver::add_own_lines(&mut fields, routed, &outcome);
    text(504, fields, "nothing usable is stored, and the request asked for no more\n".into(), outcome)
}

/// The fetch failed: a stale response where that is allowed, else an error.
pub fn failed(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    failure: &Failure,
    why: Forward,
    candidate: Option<&(Arc<StoredResponse>, Validity)>,
) -> Response {
    let now = clock::now();
    if let Some((stored, validity)) = candidate
        && failure.stale_may_be_served
        && may_serve_on_error_to(exchange.request(), &stored.head.facts, exchange.policy(), *validity, now)
    {
        let mut response = deliver::instead(proxy, exchange, stored, None, now);
        response.outcome.endpoint = failure.endpoint.clone();
        return response;
    }
    let outcome = Outcome {
        result: CacheResult::Error,
        source: Source::Tiercel,
        forward: Some(why),
        error: Some(failure.token),
        endpoint: failure.endpoint.clone(),
        ..exchange.outcome()
    };
    tracing::debug!(site = &*exchange.routed.site, error = failure.token, text = &*failure.text, "request failed");
    let mut fields = text_fields();
    if failure.status == 503 {
        line(&mut fields, name::RETRY_AFTER, b"1");
    }
    line(&mut fields, name::PROXY_STATUS, &proxy_status::member(&exchange.routed.node, failure.token, None));
    deliver::add_own_lines(&mut fields, &exchange.routed, &outcome);
    if is_grpc(exchange) {
        return grpc(fields, failure, outcome);
    }
    // The cause without internals: no addresses, no names of upstreams.
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_GATEWAY);
    text(failure.status, fields, format!("{}\n", status.canonical_reason().unwrap_or("error")), outcome)
}

fn is_grpc(exchange: &Exchange) -> bool {
    exchange.fields.text(name::CONTENT_TYPE).is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/grpc"))
}

/// Statuses of gRPC.
const INTERNAL: &str = "13";
const UNAVAILABLE: &str = "14";

/// A failure as clients of gRPC read it: the head is the trailers as well, and has the cause as a status of gRPC.
fn grpc(mut fields: Fields, failure: &Failure, outcome: Outcome) -> Response {
    let status = if failure.status == 400 { INTERNAL } else { UNAVAILABLE };
    for (name, value) in [("content-type", "application/grpc"), ("grpc-status", status), ("grpc-message", failure.token)] {
        let _ = fields.set(name, value); // constants
    }
    respond(200, fields, Bytes::new(), outcome)
}

/// The route has no upstream any more (a reload took it away between admission and fetch).
pub fn no_upstream(exchange: &Exchange) -> Response {
    let outcome =
        Outcome { result: CacheResult::Error, source: Source::Tiercel, error: Some("destination_not_found"), ..exchange.outcome() };
    let mut fields = text_fields();
    line(&mut fields, name::PROXY_STATUS, &proxy_status::member(&exchange.routed.node, "destination_not_found", None));
    text(500, fields, "Internal Server Error\n".into(), outcome)
}

/// An answer of ours, dated (RFC 9110 §6.6.1).
pub fn dated(mut response: Response) -> Response {
    if let ResponseFields::Own(fields) = &mut response.fields {
        line(fields, name::DATE, &date::format(clock::now().wall_ms));
    }
    response
}

/// JSON, for answers to PURGE.
pub fn json(status: u16, value: &impl serde::Serialize, outcome: Outcome) -> Response {
    let mut fields = Fields::new();
    line(&mut fields, name::DATE, &date::format(clock::now().wall_ms));
    line(&mut fields, name::CONTENT_TYPE, b"application/json");
    line(&mut fields, name::CACHE_CONTROL, b"no-store");
    let body = serde_json::to_vec(value).unwrap_or_default(); // maps with string keys always serialise
    respond(status, fields, body.into(), outcome)
}

fn text_fields() -> Fields {
    let mut fields = Fields::new();
    line(&mut fields, name::DATE, &date::format(clock::now().wall_ms));
    line(&mut fields, name::CONTENT_TYPE, b"text/plain; charset=utf-8");
    line(&mut fields, name::CACHE_CONTROL, b"no-store");
    fields
}

fn text(status: u16, fields: Fields, text: String, outcome: Outcome) -> Response {
    respond(status, fields, text.into(), outcome)
}

fn respond(status: u16, fields: Fields, body: Bytes, outcome: Outcome) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = if body.is_empty() { ResponseBody::Empty } else { ResponseBody::Full(body) };
    Response { status, fields: ResponseFields::Own(fields), body, close: false, outcome }
}
