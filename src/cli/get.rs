//! `tiercel get`.

use super::client::{Authority, block_on, header_argument, print_fields, send};
use super::{Failure, print, verdict};
use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Makes a request through a running server and prints status, fields, what the cache did, and how long it took.
#[derive(Debug, Args)]
pub struct Options {
    /// The URL as a client would ask for it; its host becomes Host
    #[arg(value_name = "URL")]
    url: String,
    /// The server's listener for clients
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    proxy: String,
    /// Ask for the head alone
    #[arg(short = 'I', long)]
    head: bool,
    /// A request field; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header_argument)]
    headers: Vec<(String, String)>,
    /// Write the body to this file; "-": to stdout, and everything else to stderr
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long to wait for the head, and between two parts of the body, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the exchange was like.
struct Exchange {
    head: http::response::Parts,
    body_bytes: u64,
    to_head: Duration,
    whole: Duration,
}

pub fn run(options: Options) -> Result<(), Failure> {
    let proxy = Authority::parse(&options.proxy).map_err(|error| Failure::Usage(format!("--proxy: {error:#}")))?;
    let request = request(&options).map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let mut sink = open_sink(options.output.as_deref())?;
    let exchange = block_on(exchange(&proxy, request, sink.as_mut(), Duration::from_secs(options.timeout)))?;
    let report = if options.json { as_json(&exchange) } else { as_text(&exchange) };
    match options.output.as_deref() == Some(Path::new("-")) {
        true => Ok(std::io::stderr().write_all(report.as_bytes()).context("cannot write to stderr")?),
        false => print(&report),
    }
}

fn request(options: &Options) -> anyhow::Result<Request<Full<Bytes>>> {
    let authority = Authority::parse(&options.url)?;
    let url = if options.url.contains("://") { options.url.clone() } else { format!("http://{}", options.url) };
    let uri: Uri = url.parse()?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let method = if options.head { Method::HEAD } else { Method::GET };
    let mut request = Request::builder().method(method).uri(target).header(header::CONNECTION, "close");
    if !options.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header(header::HOST, &authority.text);
    }
    let request = options.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    Ok(request.body(Full::default())?)
}

fn open_sink(output: Option<&Path>) -> anyhow::Result<Option<Box<dyn Write>>> {
    match output {
        None => Ok(None),
        Some(path) if path == Path::new("-") => Ok(Some(Box::new(std::io::stdout().lock()))),
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("cannot write to {}", path.display()))?;
            Ok(Some(Box::new(file)))
        }
    }
}

async fn exchange(
    proxy: &Authority,
    request: Request<Full<Bytes>>,
    sink: Option<&mut Box<dyn Write>>,
    timeout: Duration,
) -> anyhow::Result<Exchange> {
    let start = Instant::now();
    let answer = tokio::time::timeout(timeout, send(proxy, request)).await.map_err(|_| anyhow!("no answer within {timeout:?}"))??;
    let to_head = start.elapsed();
    let (head, body) = Response::into_parts(answer);
    let body_bytes = read_body(body, sink, timeout).await?;
    Ok(Exchange { head, body_bytes, to_head, whole: start.elapsed() })
}

async fn read_body(mut body: Incoming, mut sink: Option<&mut Box<dyn Write>>, timeout: Duration) -> anyhow::Result<u64> {
    let mut length = 0;
    while let Some(frame) =
        tokio::time::timeout(timeout, body.frame()).await.map_err(|_| anyhow!("the body stopped after {length} bytes"))?
    {
        let frame = frame.with_context(|| format!("the body ended early, after {length} bytes"))?;
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            if let Some(sink) = &mut sink {
                sink.write_all(data).context("cannot write the body")?;
            }
        }
    }
    if let Some(sink) = sink {
        sink.flush().context("cannot write the body")?;
    }
    Ok(length)
}

fn cache_status(exchange: &Exchange) -> Vec<u8> {
    let lines: Vec<&[u8]> = exchange.head.headers.get_all("cache-status").iter().map(http::HeaderValue::as_bytes).collect();
    lines.join(&b", "[..])
}

fn as_text(exchange: &Exchange) -> String {
    let mut text = format!("{:?} {}\n{}\n", exchange.head.version, exchange.head.status, print_fields(&exchange.head.headers));
    for line in verdict::in_words(&cache_status(exchange)) {
        text.push_str(&format!("cache   {line}\n"));
    }
    if let Some(age) = exchange.head.headers.get(header::AGE).and_then(|age| age.to_str().ok()) {
        text.push_str(&format!("age     {age} s\n"));
    }
    text.push_str(&format!("body    {} bytes\n", exchange.body_bytes));
    text.push_str(&format!("time    {:.1?} to the head, {:.1?} in all\n", exchange.to_head, exchange.whole));
    text
}

fn as_json(exchange: &Exchange) -> String {
    let fields = exchange.head.headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())));
    let report = json!({
        "status": exchange.head.status.as_u16(),
        "headers": fields.collect::<Vec<_>>(),
        "cache": verdict::in_words(&cache_status(exchange)),
        "body_bytes": exchange.body_bytes,
        "head_ms": exchange.to_head.as_secs_f64() * 1e3,
        "total_ms": exchange.whole.as_secs_f64() * 1e3,
    });
    format!("{report:#}\n")
}
