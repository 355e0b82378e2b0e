//! The one integration binary: every further one would link everything again.

mod admin;
mod allocations;
mod architecture;
mod coalesce;
mod collapse;
mod config;
mod http1;
mod http1_differential;
mod journal;
mod lifecycle;
mod observe;
mod panics;
mod rules;
mod serve;
mod support;
mod upstream;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
