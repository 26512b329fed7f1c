//! spanwire measured: what `versus` runs, and the contestants.
//!
//! A [`Contestant`] is a messaging library, or raw sockets as the limit; a [`Cell`] is one thing to measure:
//! a shape of traffic, a transport, a size. [`side`] is what a process of a cell does, [`rounds`] starts
//! such processes in turns and gathers their samples, [`target`] says what they should be, [`report`] and
//! [`plot`] make tables, CSV and pictures of them. [`config`] does the same for config-broadcast, beside etcd.
//! Owns: the method. Never: knows what a good result is.
#![deny(missing_docs)]

pub mod cell;
pub mod config;
pub mod contestant;
pub mod machine;
pub mod payload;
pub mod peers;
pub mod plot;
pub mod report;
pub mod rounds;
pub mod side;
pub mod target;

pub use cell::{Cell, Shape, Transport};
pub use contestant::{Contestant, Entry, Standing};

/// What goes wrong in a measurement ends it, with a text that says what.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
