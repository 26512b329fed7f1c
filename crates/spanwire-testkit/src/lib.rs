//! Tests for your own transports and protocols.
//!
//! - [`conformance`]: the suite that every built-in transport passes. [`transport_conformance!`] makes one
//!   `#[test]` of each check.
//! - [`fault`]: a transport around a transport that splits, delays and cuts, by a seed.
//! - [`sim`]: a whole simulated world by a seed: nodes, connections, disks, faults, an oracle.
//! - [`script`]: a protocol driven by hand, with no socket, no thread and no clock.
//!
//! Owns: the checks. Never: a private door; all of it works on the public traits and sockets, as your own
//! code does.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod conformance;
pub mod fault;
pub mod sim;

pub use spanwire::protocol::script;

/// The guides' code, compiled and run.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../docs/guide-custom-transport.md")]
    struct CustomTransport;
    #[doc = include_str!("../../../docs/guide-custom-protocol.md")]
    struct CustomProtocol;
    #[doc = include_str!("../../../docs/guide-simulation.md")]
    struct Simulation;
}
