//! A loom model of how one socket is driven, over the real `lead.rs` and `notes.rs`.
//!
//! `spanwire`'s engine decides in one file who drives a socket's event loop and who is woken (`lead`), and in
//! another how a thing without a descriptor wakes that loop (`notes`). Both are compiled here as they are.
//! Around them stands a model: `kernel` for the nested, edge-triggered polls, `core` for the calls that
//! the engine makes under the socket's lock, `poller` for the `Poller`. Each test of `scenarios` is run
//! by loom through every interleaving with at most two or three preemptions. A lost wake-up is a deadlock,
//! which loom reports. (Two drivers at a time cannot be written down: the loop is one value.)
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p spanwire-loom
//! cargo run -p spanwire-loom --features mutants --bin mutants
//! ```
//! `SECS` bounds the seconds of one scenario (4 by default), `PREEMPT` replaces the bound on preemptions; a
//! scenario that was not explored to its end says so, and `cargo xtask loom` how many those were. Without `--cfg loom` this crate is empty.
//!
//! What it covers:
//! - The hand-over of the lead: leader, followers, tasks, `Poller`, `try_recv`, driver; by message, by room, by key;
//!   by deadline, by a dropped future, by close.
//! - Waiting for a key: told by a caller, by the leader's own delivery, by a follower's call, by the driver.
//! - News that no descriptor announces (an endpoint, a timer, a stalled pipe with room again) to a sleeping
//!   leader, to a watched socket and to one that is only on the driver's list.
//! - The lazy list of the driver, its inbox, what it minds, and its own deadlines.
//! - One pipe's writer: blocked, WRITABLE during a write, bytes appended during a write, bytes left to gather.
//! - A runtime that watches a socket in the driver's place: beside threads, tasks and the driver, its end, a close.
//! - Notices: against a leader's sleep, a watched socket and a listed one, one that absorbs another, and what
//!   a source that needs no lock of its own may rely on.
//!
//! What it does not:
//! - `core.rs`, `waiting.rs`, `driver.rs` and `socket/poller.rs` themselves: `core` and its parts follow their steps by hand. A
//!   change there is to be made here as well.
//! - Time, but for its order: a clock that a scenario moves, ticks that may come at any moment, deadlines of
//!   callers that may pass at any moment. *How soon* the driver steps in is not seen.
//! - Protocols, several pipes, several sockets, forks, exported descriptors, linger beyond "close waits until all
//!   has left", the portable mode in which the driver always drives.
//! - More than five threads, and interleavings with more preemptions than the bound.
//!
//! Owns: nothing at run time. Never: is a dependency of anything.

// `notes.rs` names mio's token and waker; here they are the model's.
#[cfg(all(loom, test))]
extern crate self as mio;

#[cfg(all(loom, test))]
pub mod core;
#[cfg(all(loom, test))]
pub mod kernel;
#[cfg(all(loom, test))]
#[path = "../../spanwire/src/engine/lead.rs"]
mod lead;
#[cfg(all(loom, test))]
#[expect(unreachable_pub, reason = "the engine exports it")]
#[path = "../../spanwire/src/engine/notes.rs"]
mod notes;
#[cfg(all(loom, test))]
pub mod poller;
#[cfg(all(loom, test))]
mod scenarios;

/// What `notes.rs` synchronizes by.
#[cfg(all(loom, test))]
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

#[cfg(all(loom, test))]
pub use self::kernel::Waker;

/// Names one thing in a poll.
#[cfg(all(loom, test))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(pub usize);
