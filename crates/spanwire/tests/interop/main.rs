//! Against the real peers: nanocat (libnanomsg 1.1), nngcat (libnng 1.5), pynng (nng 1.11), and libnanomsg itself.
//!
//! `cargo xtask peers` installs them; one that is missing fails the tests that need it. Every wait is for a
//! condition, with a deadline that only a failure meets.
#![cfg(unix)]

mod broken;
mod device;
mod harness;
mod matrix;
mod restart;
mod sizes;
