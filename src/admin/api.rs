//! Routes and answers.

use super::auth::{self, Guard};
use super::connection::PeerAddress;
use super::purge::{self, PurgeQuery};
use super::{Control, ExplainRequest};
use crate::invalidation::stream::{NotForgotten, OtherNode, Stream, View};
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

type Shared = State<Arc<dyn Control>>;

/// Bytes of a request body.
const BODY_MAX: usize = 1024 * 1024;

const INDEX: &str = "\
tiercel admin

GET  /metrics         counters, Prometheus text format
GET  /healthz         200 while the process lives
GET  /readyz          200 while requests are welcome, else 503 with the reason
GET  /v1/status       what runs
GET  /v1/config       the configuration in use, secrets masked
POST /v1/purge        {\"urls\":[],\"tags\":[],\"groups\":[],\"prefixes\":[],\"hosts\":[],\"sites\":[],\"everything\":false,\"mode\":\"hard\"}
GET  /v1/purge/{id}   the receipt of a purge
GET  /v1/nodes        the nodes of the fleet
DELETE /v1/nodes/{name}   no purge waits any longer for a node that never comes back
POST /v1/explain      {\"url\":\"http://shop.example/\",\"method\":\"GET\",\"headers\":[[\"accept\",\"*/*\"]]}
GET  /v1/redis        the Redis servers in use, and how they do
POST /v1/reload       read the configuration again, whole or not at all
";

/// The routes, behind the guard.
pub(super) fn router(control: Arc<dyn Control>, guard: Guard, metrics_only: bool) -> Router {
    let mut router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).route("/readyz", get(readyz));
    if !metrics_only {
        router = router
            .route("/", get(async || INDEX))
            .route("/v1/status", get(async |State(control): Shared| Json(control.status())))
            .route("/v1/config", get(async |State(control): Shared| Json(control.config())))
            .route("/v1/purge", post(purge))
            .route("/v1/purge/{id}", get(receipt))
            .route("/v1/nodes", get(nodes))
            .route("/v1/nodes/{name}", delete(forget_node))
            .route("/v1/explain", post(explain))
            .route("/v1/redis", get(redis))
            .route("/v1/reload", post(reload));
    }
    router
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not allowed here", "see the Allow field of this answer")
        })
        .fallback(async || {
            Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path", "GET / of the admin listener lists what there is")
        })
        .layer(axum::middleware::from_fn_with_state(Arc::new(guard), auth::guard))
        .with_state(control)
}

/// An error as every client of the API gets it.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    remedy: String,
    /// Seconds, for Retry-After.
    retry_after: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status, message: message.into(), remedy: remedy.into(), retry_after: None }
    }

    /// 400.
    pub(super) fn bad(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message, remedy)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": { "message": self.message, "remedy": self.remedy } }));
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1: a 401 names a challenge.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

async fn metrics(State(control): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], control.metrics()).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(control): Shared) -> Result<String, Problem> {
    match control.ready() {
        Ok(()) => Ok(control.cut_off().map_or_else(
            || "ready\n".into(),
            |policy| {
                let is_name_taken = control.fleet().is_some_and(|fleet| fleet.is_name_taken());
                let why = if is_name_taken { " by another node that runs under its name (journal.node)" } else { "" };
                format!("ready, but cut off from the fleet's journal{why}: on_cutoff = \"{policy}\"\n")
            },
        )),
        Err(reason) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, "send requests to another node meanwhile")),
    }
}

async fn purge(
    State(control): Shared,
    ConnectInfo(peer): ConnectInfo<PeerAddress>,
    uri: Uri,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let query: Query<PurgeQuery> =
        Query::try_from_uri(&uri).map_err(|error| Problem::bad(error.body_text(), "the query may hold mode, wait and timeout"))?;
    let order = purge::parse(parse_json(body).await?, query.0, &*control)?;
    control.admit_purge(peer.0.ip(), order.len()).map_err(too_many_purges)?;
    let (status, answer) = purge::carry_out(order, &*control, &format!("admin:{}", peer.0)).await;
    Ok((status, Json(answer)))
}

/// This node, and the others as it sees them.
async fn nodes(State(control): Shared) -> Result<Json<Value>, Problem> {
    let View { node, applied, unappended, nodes } = fleet(&*control)?.view();
    let other = |other: &OtherNode| json!({"node": other.name, "on_cutoff": other.policy, "applied": other.applied, "unheard_ms": other.unheard_ms});
    let (cut_off, is_name_taken) = (control.cut_off().is_some(), control.fleet().is_some_and(|fleet| fleet.is_name_taken()));
    Ok(Json(json!({
        "node": node,
        "applied": applied,
        "cut_off": cut_off,
        "name_taken": is_name_taken,
        "unappended": unappended,
        "nodes": nodes.iter().map(other).collect::<Vec<_>>(),
    })))
}

async fn forget_node(
    State(control): Shared,
    ConnectInfo(peer): ConnectInfo<PeerAddress>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let outcome = fleet(&*control)?.forget(&name).await;
    let (actor, is_noted) = (format!("admin:{}", peer.0), outcome.is_ok());
    tracing::info!(actor, node = name, is_noted, "forget a node of the fleet");
    match outcome {
        Ok(()) => Ok(Json(json!({ "forgotten": name }))),
        Err(NotForgotten::Unknown) => {
            let remedy = "GET /v1/nodes lists those that are waited for; a node does not forget itself";
            Err(Problem::new(StatusCode::NOT_FOUND, format!("no other node of the fleet has the name `{name}`"), remedy))
        }
        Err(NotForgotten::NotNoted) => {
            let message = format!("Redis has not noted within some seconds that `{name}` is gone: purges may still wait for it");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, message, "ask again when Redis answers"))
        }
    }
}

fn fleet(control: &dyn Control) -> Result<Arc<Stream>, Problem> {
    let remedy = "configure [journal.redis] or [cache.redis] to make it part of one";
    control.fleet().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "this node belongs to no fleet", remedy))
}

fn too_many_purges(retry_after: u64) -> Problem {
    let remedy = format!("try again in {retry_after} s, purge by a key that they share, or raise purge.rate");
    Problem { retry_after: Some(retry_after), ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many purges", remedy) }
}

async fn receipt(State(control): Shared, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    match control.receipt(&id) {
        Some(receipt) => Ok(Json(receipt.json([]))),
        None => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no purge of this id is remembered",
            "receipts are kept for the last purges of this node",
        )),
    }
}

async fn explain(State(control): Shared, body: Body) -> Result<Json<Value>, Problem> {
    let request: ExplainRequest = parse_json(body).await?;
    let remedy = "give an absolute URL, a method, and headers as pairs";
    control.explain(request).await.map(Json).map_err(|error| Problem::bad(error, remedy))
}

async fn redis(State(control): Shared) -> Result<Json<Value>, Problem> {
    let remedy = "see that [cache.redis] and [journal.redis] lead to a Redis that answers; the log says what failed";
    control.redis_usage().await.map(Json).map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, remedy))
}

async fn reload(State(control): Shared) -> Result<Json<Value>, Problem> {
    let outcome = control.reload().await;
    outcome.map(Json).map_err(|refused| {
        let remedy = format!("nothing was changed: the configuration before stays in use; {}", refused.remedy);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, refused.message, remedy)
    })
}

async fn parse_json<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let Ok(bytes) = axum::body::to_bytes(body, BODY_MAX).await else {
        let message = format!("the body is larger than {BODY_MAX} bytes, or did not arrive whole");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message, "split the call"));
    };
    if bytes.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
        // serde would take an array for a struct, its elements for the fields in order
        return Err(Problem::bad("the body must be a JSON object", "docs/admin.md shows the body of each call"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| match error.path().to_string() {
        path if path == "." => error.into_inner().to_string(),
        path => format!("{path}: {}", error.into_inner()),
    });
    let parsed = parsed.and_then(|parsed| deserializer.end().map(|()| parsed).map_err(|error| error.to_string()));
    parsed.map_err(|message| Problem::bad(message, "docs/admin.md shows the body of each call"))
}
