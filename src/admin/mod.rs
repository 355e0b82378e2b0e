//! The admin listener (axum, a thread of its own) and the read-only metrics listener.

use crate::invalidation::{Mode, Receipt, Selector};
use std::pin::Pin;

/// What the admin API can do to the rest of the program; `server::assembly` implements it.
pub trait Control: Send + Sync + 'static {
    /// Invalidates; selectors are already normalised.
    fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt;
    fn receipt(&self, id: &str) -> Option<Receipt>;
    /// The `authority/path?query` that a URL is purged by, after the route's key rules.
    fn normalise_url(&self, url: &str) -> Result<String, String>;
    /// Whether something of this URL is in memory here.
    fn stored_here(&self, url: &str) -> bool;
    /// What the cache knows and would do for a request (`tiercel explain`).
    fn explain(&self, request: ExplainRequest) -> Result<serde_json::Value, String>;
    /// Re-reads the configuration whole or not at all; the error names every problem.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>>;
    /// `Ok` when requests are welcome; else why not.
    fn ready(&self) -> Result<(), String>;
    fn metrics(&self) -> String;
    /// The effective configuration, secrets masked.
    fn config(&self) -> serde_json::Value;
    fn status(&self) -> serde_json::Value;
    /// Most selectors in one call.
    fn selectors_per_call(&self) -> usize;
}

/// A request to be explained, not made.
#[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
pub struct ExplainRequest {
    pub url: String,
    #[serde(default = "get")]
    pub method: String,
    /// Request fields.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

fn get() -> String {
    "GET".into()
}
