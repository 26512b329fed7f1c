//! The engine: who moves the bytes.
//!
//! Each socket owns an event loop, and whoever waits for the socket drives it: a blocked caller reads,
//! accepts and reconnects for its own socket, so that one thread does what else takes two or four. When nobody waits,
//! one background thread for the process does it. What a caller sends, it writes itself when the pipe is
//! idle; when it sends faster than it can write, messages gather and leave together.
//!
//! | file | what it does |
//! |---|---|
//! | `lead` | who drives, and who is woken: the bookkeeping alone, checked by a loom model |
//! | `core` | the state behind its lock; calls into the protocol; leaving it |
//! | `config` | the settings of a socket |
//! | `waiting` | how a thread, a task or a `Poller` waits, and leads meanwhile |
//! | `ending` | the ends of pipes, and the count of what is lost with one |
//! | `drive` | the event loop: polls, accepts, dials, serves in turn |
//! | `handshake` | a connection on its way to become a pipe |
//! | `rx` | the reading half of a connection |
//! | `deliver` | between loop and state |
//! | `tx`, `heat`, `flush` | when and how a pipe is written |
//! | `setup`, `endpoint` | binding, dialling, trying again |
//! | `contain` | what a panic in a user's protocol or transport costs |
//! | `close` | flushing, linger, the count of what was lost |
//! | `driver` | the background thread |
//! | `outside` | a runtime that watches a socket in its place |
//! | `waiters` | how a thread, a task or a `Poller` that waits is woken |
//! | `stats` | the counters in one snapshot |
//! | `notes` | waking a loop without a descriptor |
//! | `sync` | what `notes` synchronizes by; the loom model has its own |
//! | `sys` | what needs `unsafe` |
//!
//! Owns: all threads of the library. Never: holds a lock across a call that can block, a callback, or a
//! wake; polls at intervals; lets one peer cost another its pipe.

mod close;
mod config;
mod contain;
mod core;
mod deliver;
mod drive;
mod driver;
mod ending;
mod endpoint;
mod flush;
mod handshake;
mod heat;
mod lead;
mod notes;
#[cfg(feature = "tokio")]
mod outside;
mod rx;
mod setup;
#[cfg(test)]
mod sizes;
mod stats;
mod sync;
mod sys;
mod tx;
mod waiters;
mod waiting;

pub(crate) use self::core::{Core, END, PEERS};
pub(crate) use config::{Accept, Config};
#[cfg(feature = "tokio")]
pub(crate) use contain::contain;
pub(crate) use drive::Drive;
pub(crate) use endpoint::EndpointConfig;
pub(crate) use lead::Want;
pub(crate) use notes::Notes;
pub use notes::Notifier;
pub(crate) use sys::{CALLERS_LEAD, count_forks, forks};
pub(crate) use tx::Tx;
pub(crate) use waiters::Who;
