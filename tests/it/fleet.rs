//! Several nodes, and the Redis between them.

mod fire;
mod journal;
mod parts;
