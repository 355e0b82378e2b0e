//! End-to-end and model tests of `coalesce`.
