//! The processes of config-sync, in threads: real sockets, real files, real hooks.
#![cfg(all(unix, feature = "sync"))]

mod harness;

mod control;
mod directories;
mod disks;
mod files;
mod folders;
mod histories;
mod hooks;
mod namespaces;
mod relays;
mod restore;
mod rollouts;
mod trust;
