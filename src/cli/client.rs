//! A small HTTP/1.1 client for the admin API and `get`: one request, one connection.

use super::{Failure, print};
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest answer of the admin API that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// For connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole exchange with the admin API: longer than the longest wait of a purge for the fleet (`journal.trust` + 1 s).
const ADMIN_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest token file.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Where a token is looked for that is given by no file.
const TOKEN_VARIABLE: &str = "TIERCEL_ADMIN_TOKEN";

/// How to reach the admin API.
#[derive(Debug, Clone, Args)]
pub struct AdminOptions {
    /// The admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9180")]
    pub admin: String,
    /// File with the admin token [default: the variable TIERCEL_ADMIN_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl AdminOptions {
    /// Posts to the API and prints its answer, in JSON or as an indented list.
    pub fn post_and_print(&self, path: &str, body: &Value) -> Result<(), Failure> {
        let answer = self.post(path, body)?;
        self.print(&answer)
    }

    /// Asks the API without a body, and prints its answer likewise.
    pub fn ask_and_print(&self, method: Method, path: &str) -> Result<(), Failure> {
        let answer = self.ask(method, path, Bytes::new())?;
        self.print(&answer)
    }

    pub fn print(&self, answer: &Value) -> Result<(), Failure> {
        match self.json {
            true => print(&format!("{answer:#}\n")),
            false => print(&readable(answer)),
        }
    }

    /// Posts to the API; an answer that is not 2xx is an error with the API's own words.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, Bytes::from(body.to_string()))
    }

    fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, Failure> {
        let base = Authority::parse(&self.admin).map_err(|error| Failure::Usage(format!("--admin: {error:#}")))?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &base.text);
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = self.token()? {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).context("the request cannot be made")?;
        let (status, bytes) = block_on(async {
            let exchange = async {
                let answer = send(&base, request).await?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
                Ok((status, body.map_err(|error| anyhow!("the answer ended early: {error}"))?.to_bytes()))
            };
            tokio::time::timeout(ADMIN_TIMEOUT, exchange)
                .await
                .map_err(|_| anyhow!("no answer from {} within {ADMIN_TIMEOUT:?}", self.admin))?
        })?;
        Ok(read_answer(status, &bytes)?)
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        let Some(file) = &self.token_file else { return Ok(std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty())) };
        let text = token_in(file).map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?;
        Ok(Some(text.trim().to_owned()))
    }
}

/// The text of a file or pipe; one that goes on for ever is read no further than any token reaches.
fn token_in(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(file)?.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > TOKEN_BYTES_MAX { Err(io::Error::other(format!("longer than {TOKEN_BYTES_MAX} bytes"))) } else { Ok(text) }
}

fn read_answer(status: StatusCode, bytes: &[u8]) -> anyhow::Result<Value> {
    let text = String::from_utf8_lossy(bytes);
    if !status.is_success() {
        let said = in_its_words(bytes).unwrap_or_else(|| text.trim().to_owned());
        let hint = if status == StatusCode::UNAUTHORIZED { format!(" (give --token-file or set {TOKEN_VARIABLE})") } else { String::new() };
        bail!("the server answered {status}{hint}: {said}");
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).with_context(|| format!("the server's answer is not JSON: {text}"))
}

/// Message and remedy of an error of the API.
fn in_its_words(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let error = answer.get("error")?;
    let part = |name| error.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (part("message"), part("remedy")) {
        (Some(message), Some(remedy)) => Some(format!("{message}\nremedy: {remedy}")),
        (message, _) => Some(message.or(error.as_str())?.to_owned()),
    }
}

/// Host and port of an `http://` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// As it goes into Host.
    pub text: String,
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `http://host:port`; a path may follow and is not looked at. A URL without scheme is taken as http.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = url.parse().with_context(|| format!("\"{url}\" is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("\"{url}\": only http:// URLs are taken");
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| anyhow!("\"{url}\" names no host"))?;
        let port = uri.port_u16().unwrap_or(80);
        let text = if uri.port_u16().is_some_and(|port| port != 80) { format!("{host}:{port}") } else { host.to_owned() };
        Ok(Self { text, host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
    }
}

/// A runtime for one command.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(future)
}

/// Connects, sends, and returns the head; the body is still to be read.
pub async fn send(to: &Authority, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
    let connecting = TcpStream::connect((to.host.as_str(), to.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| anyhow!("no connection within {CONNECT_TIMEOUT:?}"));
    let stream = stream.and_then(|connected| Ok(connected?)).with_context(|| format!("cannot connect to {}", to.text))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak HTTP")?;
    // Ends with the exchange; its errors also reach the request or the body.
    tokio::spawn(connection);
    sender.send_request(request).await.with_context(|| format!("no answer from {}", to.text))
}

/// A request field as `-H` takes it: `name: value`.
pub fn header_argument(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write \"name: value\"")?;
    let (name, value) = (name.trim(), value.trim());
    header::HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("\"{name}\" is not a field name"))?;
    header::HeaderValue::from_str(value).map_err(|_| format!("{value:?} is not a field value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A method as `--method` takes it.
pub fn method_argument(text: &str) -> Result<Method, String> {
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("\"{text}\" is not a method"))
}

/// The fields of an answer, one line each.
pub fn print_fields(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {}\n", printable(&String::from_utf8_lossy(value.as_bytes())))).collect()
}

/// The text with its control characters escaped: none reaches the terminal.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A JSON tree as indented lines.
pub fn readable(tree: &Value) -> String {
    let mut text = String::new();
    write_readable(tree, 0, &mut text);
    text
}

fn write_readable(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(table) => {
            let width = table.iter().filter(|(_, value)| is_flat(value)).map(|(key, _)| key.chars().count()).max().unwrap_or(0);
            for (key, value) in table {
                match is_flat(value) {
                    true => text.push_str(&format!("{indent}{key:width$}  {}\n", flat(value))),
                    false => {
                        text.push_str(&format!("{indent}{key}\n"));
                        write_readable(value, depth + 1, text);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match is_flat(item) {
                    true => text.push_str(&format!("{indent}- {}\n", flat(item))),
                    false => {
                        text.push_str(&format!("{indent}-\n"));
                        write_readable(item, depth + 1, text);
                    }
                }
            }
        }
        value => text.push_str(&format!("{indent}{}\n", flat(value))),
    }
}

fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(table) => table.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    }
}

/// On one line.
fn flat(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::Object(_) => "none".into(),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn authorities_are_read_from_urls() {
        let read = |url: &str| Authority::parse(url).map(|to| (to.text, to.host, to.port)).ok();
        assert_eq!(read("http://127.0.0.1:9180"), Some(("127.0.0.1:9180".into(), "127.0.0.1".into(), 9180)));
        assert_eq!(read("shop.example/a?b"), Some(("shop.example".into(), "shop.example".into(), 80)));
        assert_eq!(read("http://[::1]:81/"), Some(("[::1]:81".into(), "::1".into(), 81)));
        assert_eq!(read("https://a"), None);
        assert_eq!(read("http://"), None);
    }

    #[test]
    fn trees_are_printed_as_lines() {
        let tree = json!({"key": "a\u{1b}[0m", "list": [1, true], "inner": {"none": null}, "steps": [{"a": 1}]});
        assert_eq!(readable(&tree), "inner\n  none  -\nkey   a\\u{1b}[0m\nlist  1, yes\nsteps\n  -\n    a  1\n");
    }

    #[test]
    fn fields_are_printed_as_they_came_but_for_control_characters() {
        let mut fields = HeaderMap::new();
        fields.insert(header::ETAG, header::HeaderValue::from_bytes(b"\"v\\1\"\t\xc3\xa9\xc2\x9b").unwrap());
        assert_eq!(print_fields(&fields), "etag: \"v\\1\"\\t\u{e9}\\u{9b}\n");
    }

    #[test]
    fn answers_that_refuse_say_why() {
        let refused = |body: &str| read_answer(StatusCode::UNAUTHORIZED, body.as_bytes()).unwrap_err().to_string();
        let hint = "the server answered 401 Unauthorized (give --token-file or set TIERCEL_ADMIN_TOKEN)";
        for (body, said) in [
            (r#"{"error":{"message":"no token","remedy":"send one"}}"#, "no token\nremedy: send one"),
            (r#"{"error":{"message":"no token"}}"#, "no token"),
            (r#"{"error":"no token"}"#, "no token"),
            (r#"{"error":{}}"#, r#"{"error":{}}"#),
            ("plain\n", "plain"),
        ] {
            assert_eq!(refused(body), format!("{hint}: {said}"));
        }
        assert!(read_answer(StatusCode::OK, b"<html>").is_err());
        assert_eq!(read_answer(StatusCode::NO_CONTENT, b"").unwrap(), Value::Null);
    }

    #[test]
    fn header_arguments_are_checked() {
        assert_eq!(header_argument("Accept: text/html"), Ok(("Accept".into(), "text/html".into())));
        assert!(header_argument("no colon").is_err());
        assert!(header_argument("a b: c").is_err());
        assert!(header_argument("a: b\nc").is_err());
    }
}
