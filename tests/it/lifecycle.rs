//! End-to-end tests: lifecycle.
