//! Tiercel: a multi-layer caching reverse proxy. The modules stand in the order in which a request meets them.

pub mod admin;
pub mod body;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod coalesce;
pub mod config;
pub mod faults;
pub mod http1;
pub mod http2;
pub mod invalidation;
pub mod limit;
pub mod listener;
pub mod observe;
pub mod pages;
pub mod proxy;
pub mod redis;
pub mod route;
pub mod semantics;
pub mod server;
pub mod shield;
pub mod sync;
pub mod tier;
pub mod tls;
pub mod transform;
pub mod upstream;
