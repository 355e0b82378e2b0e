//! The one integration binary: every further one would link everything again.

mod admin;
mod architecture;
mod coalesce;
mod collapse;
mod config;
mod http1;
mod journal;
mod lifecycle;
mod observe;
mod rules;
mod serve;
mod support;
mod upstream;
