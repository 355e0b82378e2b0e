//! The one integration binary: every further one would link everything again.

mod admin;
mod allocations;
mod architecture;
mod coalesce;
mod collapse;
mod compose;
mod config;
mod conformance;
mod cut_off;
mod fleet;
mod http1;
mod http1_differential;
mod http1_split;
mod http2;
mod journal;
mod lease;
mod lifecycle;
mod observe;
mod panics;
mod redis;
mod rules;
mod serve;
mod sockets;
mod stopped;
mod support;
mod tls;
mod upstream;
mod upstream_differential;
mod upstream_http2;
#[expect(clippy::duplicate_mod, reason = "the same cases through the other codec, see `upstream::codec`")]
#[path = "upstream.rs"]
mod upstream_hyper;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
