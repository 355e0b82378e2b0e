//! End-to-end tests: collapse.
