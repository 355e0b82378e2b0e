//! What is made of bodies on their way: content codings.
//!
//! Which response is coded for whom is decided in `semantics::coding` and acted on in `proxy`; here are the codecs
//! ([`encoder`], [`decoder`]), a body that is coded or decoded as it comes ([`coded`]), and where that work is done ([`pool`]).

pub mod coded;
pub mod decoder;
mod delta;
pub mod encoder;
pub mod pool;
