//! Every interleaving of what is synchronised by hand, as loom explores it.
#![cfg(test)]
// The modules have more than what is tested here.
#![allow(dead_code)]

mod flight;
mod journal;
#[path = "../../../src/sync.rs"]
mod sync;
