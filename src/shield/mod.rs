//! The origin shield: of all nodes of a fleet one asks the origin for a key (DESIGN section 8).
//!
//! `ring` says which, `hop` how nodes know each other, `replay` that nobody repeats what they said, `health` which of them
//! are asked at all: all four decide and do nothing else. [`Shield`] is the fleet as this node knows it, `client` its
//! connections. What is asked, and what is made of the answer, is for the request path to say.
//!
//! Invariants: nobody waits for itself (see [`ring`]); a failure of a peer is a miss, never an error of a request.

mod client;
pub mod health;
pub mod hop;
mod peers;
pub mod replay;
pub mod ring;

pub use client::Question;
pub use peers::{Admitted, Peer, Shield, is_probe};
