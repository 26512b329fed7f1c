//! What `notes` synchronizes by: named here, so that the loom model can put its own in the place of these.
//!
//! Owns: nothing. Never: more than these names.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
