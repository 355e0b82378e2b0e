//! Real parts for tests: a scripted origin that can send broken and slow bytes, a raw client.
#![allow(dead_code)]

pub mod client;
pub mod hit;
pub mod origin;
pub mod resource;
pub mod server;
