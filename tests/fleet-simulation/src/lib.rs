//! The fleet's journal and its simulation, from the sources of the program.
#![cfg(test)]
// The modules have more than what is tested here.
#![allow(dead_code, unused_imports)]

#[path = "../../../src/config"]
mod config {
    pub mod settings;
}
#[path = "../../../src/faults.rs"]
mod faults;
#[path = "../../../src/invalidation/mod.rs"]
mod invalidation;
#[path = "../../../src/semantics/mod.rs"]
mod semantics;
#[path = "../../../src/sync.rs"]
mod sync;
