//! End-to-end and model tests of `http1`.
