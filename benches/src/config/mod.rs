//! Config-broadcast measured beside etcd: what `config-versus` runs.
//!
//! A [`System`] is one that brings configuration from a server to nodes that watch it; a [`Case`] is one thing to
//! measure. A sample is one case of one system: a server process on an empty store, and one process with all nodes and
//! writers ([`measure`]). [`rounds`] starts both in turns, [`report`] makes tables, CSV and verdicts of what they say.
//! Owns: the method, which is the same for all. Never: knows what a good result is, but for the targets in [`case`].

pub mod case;
#[cfg(feature = "peers-etcd")]
pub mod etcd;
pub mod measure;
pub mod ours;
pub mod proxy;
pub mod raw;
pub mod report;
pub mod rounds;
pub mod sight;
pub mod system;

pub use case::Case;
pub use system::System;
