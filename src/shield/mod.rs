//! The origin shield: of all nodes of a fleet one asks the origin for a key (DESIGN section 8).
//!
//! `ring` says which, `hop` how nodes know each other, `replay` that nobody repeats what they said, `health` which of them
//! are asked at all. All four decide and do nothing else.

pub mod health;
pub mod hop;
pub mod replay;
pub mod ring;
