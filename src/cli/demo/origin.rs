//! The sample origin: a small site with pages, a JSON API, images, tagged articles, a slow route, a flaky route, a
//! large file and server-sent events. It counts what reaches it (`/origin/requests`).

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// What the origin remembers.
#[derive(Default)]
struct Site {
    requests: Mutex<BTreeMap<String, u64>>,
    down: AtomicBool,
    flaky: AtomicU64,
    products: AtomicU64,
}

type Shared = State<Arc<Site>>;

const LARGE_BYTES: usize = 32 << 20;
const ARTICLES: u32 = 20;

/// Starts the origin on a thread of its own; returns the bound address.
pub fn start(address: SocketAddr) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address).with_context(|| format!("the demo origin cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("demo-origin".into()).spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, site()).await
        })
    })?;
    Ok(bound)
}

fn site() -> Router {
    let site = Arc::new(Site::default());
    Router::new()
        .route("/", get(home))
        .route("/articles/{number}", get(article))
        .route("/api/products", get(products).post(add_product))
        .route("/images/{name}", get(image))
        .route("/slow", get(slow))
        .route("/flaky", get(flaky))
        .route("/language", get(language))
        .route("/account", get(account))
        .route("/large.bin", get(large))
        .route("/events", get(events))
        .route("/origin/requests", get(requests))
        .route("/origin/down", post(down))
        .route("/origin/up", post(up))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), count))
        .with_state(site)
}

/// Counts, and answers 503 while the origin plays dead.
async fn count(State(site): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let is_switch = path.starts_with("/origin/");
    if !is_switch {
        *site.requests.lock().entry(path).or_default() += 1;
        if site.down.load(Ordering::Relaxed) {
            return (StatusCode::SERVICE_UNAVAILABLE, "the sample origin is down\n").into_response();
        }
    }
    next.run(request).await
}

fn page(cache_control: &'static str, tags: &str, title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1>{body}<p><a href=\"/\">home</a></p></html>\n"
    );
    let etag = format!("\"{:016x}\"", crate::semantics::key::hash128(html.as_bytes()) as u64);
    let fields = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CACHE_CONTROL, cache_control.to_owned()),
        (header::ETAG, etag),
        (header::HeaderName::from_static("surrogate-key"), tags.to_owned()),
    ];
    (fields, html).into_response()
}

async fn home() -> Response {
    let articles: String = (1..=ARTICLES).map(|n| format!("<li><a href=\"/articles/{n}\">Article {n}</a></li>")).collect();
    let body = format!(
        "<p>A sample site behind Tiercel.</p><ul>{articles}</ul><p><img src=\"/images/kestrel.svg\" alt=\"a falcon\">\
         <a href=\"/api/products\">products</a> <a href=\"/slow\">slow</a> <a href=\"/flaky\">flaky</a> \
         <a href=\"/language\">language</a> <a href=\"/account\">account</a> <a href=\"/large.bin\">large</a> <a href=\"/events\">events</a></p>"
    );
    page("public, max-age=60, stale-while-revalidate=30", "home", "The Falcon Post", &body)
}

async fn article(Path(number): Path<u32>) -> Response {
    if number == 0 || number > ARTICLES {
        return (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, "max-age=5")], "no such article\n").into_response();
    }
    let author = number % 4;
    let tags = format!("article article-{number} author-{author}");
    page("public, max-age=300", &tags, &format!("Article {number}"), &format!("<p>By author {author}. Tagged <code>{tags}</code>.</p>"))
}

async fn products(State(site): Shared, fields: HeaderMap) -> Response {
    let added = site.products.load(Ordering::Relaxed);
    let etag = format!("\"products-{added}\"");
    let common = [(header::CACHE_CONTROL, "public, max-age=10".to_owned()), (header::ETAG, etag.clone())];
    if fields.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let list: Vec<_> =
        (0..5 + added).map(|id| serde_json::json!({"id": id, "name": format!("Product {id}"), "price": 9.5 + id as f64})).collect();
    (common, axum::Json(serde_json::json!({ "products": list }))).into_response()
}

/// A write: its answer invalidates the list (RFC 9111 §4.4).
async fn add_product(State(site): Shared) -> Response {
    site.products.fetch_add(1, Ordering::Relaxed);
    (StatusCode::CREATED, [(header::LOCATION, "/api/products")], "added\n").into_response()
}

async fn image(Path(name): Path<String>) -> Response {
    if !name.ends_with(".svg") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"96\" height=\"64\"><path d=\"M4 40 L48 8 L92 40 L48 30 Z\" fill=\"#345\"/></svg>\n";
    ([(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "public, max-age=86400, immutable")], svg).into_response()
}

async fn slow() -> Response {
    tokio::time::sleep(Duration::from_secs(1)).await;
    ([(header::CACHE_CONTROL, "public, max-age=30")], "that took a second\n").into_response()
}

/// Answers every other request with 503.
async fn flaky(State(site): Shared) -> Response {
    if site.flaky.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, "not now\n").into_response();
    }
    ([(header::CACHE_CONTROL, "public, max-age=2, stale-if-error=600")], "it worked this time\n").into_response()
}

async fn language(fields: HeaderMap) -> Response {
    let german = fields.get(header::ACCEPT_LANGUAGE).is_some_and(|value| value.as_bytes().starts_with(b"de"));
    let (language, text) = if german { ("de", "Guten Tag\n") } else { ("en", "Good day\n") };
    ([(header::CACHE_CONTROL, "public, max-age=60"), (header::VARY, "Accept-Language"), (header::CONTENT_LANGUAGE, language)], text)
        .into_response()
}

/// Never stored: it sets a cookie.
async fn account() -> Response {
    ([(header::CACHE_CONTROL, "max-age=60"), (header::SET_COOKIE, "session=demo; HttpOnly; SameSite=Lax")], "yours alone\n").into_response()
}

async fn large(fields: HeaderMap) -> Response {
    let _ = fields; // ranges are the cache's business
    let (send, receive) = mpsc::channel(2);
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b'L'; 64 << 10]);
        for _ in 0..LARGE_BYTES / piece.len() {
            if send.send(piece.clone()).await.is_err() {
                return;
            }
        }
    });
    let fields = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CACHE_CONTROL, "public, max-age=3600".to_owned()),
        (header::CONTENT_LENGTH, LARGE_BYTES.to_string()),
        (header::ETAG, "\"large-1\"".to_owned()),
    ];
    (fields, Body::new(Pieces(receive))).into_response()
}

async fn events() -> Response {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        for number in 0u64.. {
            if send.send(Bytes::from(format!("event: tick\ndata: {number}\n\n"))).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], Body::new(Pieces(receive))).into_response()
}

async fn requests(State(site): Shared) -> Response {
    let counts = site.requests.lock().clone();
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(counts)).into_response()
}

async fn down(State(site): Shared) -> &'static str {
    site.down.store(true, Ordering::Relaxed);
    "the sample origin answers 503 from now on\n"
}

async fn up(State(site): Shared) -> &'static str {
    site.down.store(false, Ordering::Relaxed);
    "the sample origin is back\n"
}

/// A body fed by a task.
struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(http_body::Frame::data(piece))))
    }
}
