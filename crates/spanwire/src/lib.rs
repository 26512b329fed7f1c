//! spanwire: scalability-protocol sockets.
#![deny(missing_docs)]

mod engine;
mod error;
mod events;
mod message;
pub mod protocol;
mod queue;
mod time;
pub mod transport;
pub mod wire;

pub use message::{Header, Message};
pub use mio;
