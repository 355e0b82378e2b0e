//! Several nodes, and the Redis between them.

mod crowd;
mod fire;
mod journal;
mod lease;
mod parts;
mod redis_tier;
mod setups;
mod shield;
