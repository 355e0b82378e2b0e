//! vary
