//! TLS: certificates, tickets, and how the two ends of a connection are set up (rustls, aws-lc-rs).
//!
//! [`certificate`] reads files and says what is wrong with them, [`x509`] what a certificate says of itself, [`ocsp`] what its
//! authority says of it, [`clients`] whose certificates clients may show, all pure; [`Server`] is what a listener shows to its
//! clients, and takes up files that change ([`watch`]); [`client::Client`] is how we meet upstreams. The handshakes themselves are in
//! [`crate::listener`] and [`crate::upstream`]. `acme` obtains certificates, and [`challenges`] are what its authority asks meanwhile.
//!
//! Invariants: a key of a session is never logged; a certificate that cannot be used never replaces one that can.

#[cfg(feature = "acme")]
pub mod acme;
pub mod certificate;
pub mod challenges;
pub mod client;
pub mod clients;
mod names;
pub mod ocsp;
mod provider;
mod server;
mod slow;
pub mod tickets;
mod watch;
pub mod x509;

pub use provider::{SUITES, provider};
pub use server::{ALPN_ACME, ALPN_HTTP1, ALPN_HTTP2, BuildError, Chosen, Expiries, Server, Sites};
pub use slow::run as run_elsewhere;
pub use watch::Refreshed;
