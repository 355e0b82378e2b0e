//! Several nodes, and the Redis between them.

mod fire;
mod journal;
mod parts;
mod redis_tier;
mod shield;
