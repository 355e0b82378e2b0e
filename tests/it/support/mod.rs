//! Real parts for tests: a scripted origin that can send broken and slow bytes, a raw client.
#![allow(dead_code)]

pub mod acme;
pub mod address;
pub mod arrival;
pub mod client;
pub mod document;
pub mod fleet;
pub mod h2;
pub mod h2_origin;
pub mod hit;
pub mod link;
pub mod origin;
pub mod pki;
pub mod process;
pub mod redis;
pub mod resource;
pub mod scripted;
pub mod server;
pub mod wire;
