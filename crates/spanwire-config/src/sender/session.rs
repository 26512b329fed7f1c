//! One pipe of the sender: who is there, and the credit that all namespaces on it share.
//!
//! Owns: what went out and was taken, each way, and whose turn it is. Never: what a namespace sends.

use std::sync::Arc;
use std::time::Duration;

use spanwire::protocol::Time;

use crate::wire::Hello;

/// State of one pipe.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) opened: Time,
    /// What the node said of itself last, without its wants.
    pub(super) hello: Option<Arc<Hello>>,
    /// Namespaces that it asked for and that do not exist here.
    pub(super) unknown: Vec<String>,
    pub(super) owes_welcome: bool,
    pub(super) window: u64,
    pub(super) chunk: usize,
    /// The namespace whose slice is next, if it has one.
    pub(super) turn: usize,
    pub(super) sent_bytes: u64,
    /// Payload bytes that came up.
    pub(super) taken_up: u64,
    pub(super) owes_credit: bool,
    taken: u64,
    /// Since when bytes are on their way and none was taken.
    since: Option<Time>,
}

impl Session {
    pub(super) fn new(now: Time) -> Self {
        Session {
            opened: now,
            hello: None,
            unknown: Vec::new(),
            owes_welcome: false,
            window: 0,
            chunk: 0,
            turn: 0,
            sent_bytes: 0,
            taken_up: 0,
            owes_credit: false,
            taken: 0,
            since: None,
        }
    }

    pub(super) fn has_credit(&self) -> bool {
        self.sent_bytes - self.taken < self.window
    }

    /// A slice was put.
    pub(super) fn put(&mut self, len: u64, now: Time) {
        self.sent_bytes += len;
        if self.sent_bytes > self.taken {
            self.since.get_or_insert(now);
        }
    }

    /// The node took bytes off the pipe; at most `sent_bytes`.
    pub(super) fn take(&mut self, taken: u64, now: Time) {
        if taken > self.taken {
            self.taken = taken;
            self.since = (self.taken < self.sent_bytes).then_some(now);
        }
    }

    /// Bytes are on their way, and none was taken for `limit`.
    pub(super) fn stalled(&self, now: Time, limit: Duration) -> bool {
        self.since.is_some_and(|since| now.saturating_since(since) >= limit)
    }
}
