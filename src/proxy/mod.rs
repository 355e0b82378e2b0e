//! The request path: the journey of a request on one page.

pub mod outcome;
