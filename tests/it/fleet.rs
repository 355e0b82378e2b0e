//! Several nodes, and the Redis between them.

mod parts;
mod shield;
