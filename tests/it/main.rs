//! The one integration binary: every further one would link everything again.

mod admin;
mod architecture;
mod coalesce;
mod config;
mod http1;
mod journal;
mod observe;
mod rules;
mod support;
mod upstream;
