//! What a purge did and where, kept for a while (`GET /v1/purge/<id>`).

use super::{Mode, Position, Selector};

/// The answer to a purge.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Receipt {
    /// Purge id: 32 hex digits.
    pub id: String,
    pub mode: Mode,
    /// As normalised.
    pub selectors: Vec<Selector>,
    /// Position of the last of its entries, `epoch-ms-sequence`.
    pub position: Position,
    /// RFC 3339, UTC.
    pub issued_at: String,
    pub actor: String,
    /// `local`: this node has no fleet.
    pub acknowledged: &'static str,
    pub complete: bool,
}
