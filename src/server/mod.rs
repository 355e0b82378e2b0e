//! Puts the program together and runs it: the only module that knows every concrete type.
//!
//! [`run`] is `tiercel run`; [`Server::start`] is the same without signals, for the demo and for tests.

mod accept;
mod assembly;
mod background;
mod control;
mod lifecycle;
mod sockets;
mod workers;

pub use assembly::Server;
pub use lifecycle::{run, wait};
