//! Puts the program together and runs it: the only module that knows every concrete type.
//!
//! [`run`] is `tiercel run`; [`serve`] is the same with an announcement of one's own, for the demo.

mod accept;
mod assembly;
mod background;
mod certificates;
mod control;
mod lifecycle;
#[cfg(feature = "http3")]
mod quic;
mod sockets;
mod workers;

pub use assembly::{Listening, Server};
pub use lifecycle::{run, serve};
