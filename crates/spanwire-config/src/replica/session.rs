//! One pipe of the receiver: whose it is, and the credit that all namespaces on it share.
//!
//! Owns: what the server said of itself and of each namespace, what came down and went up. Never: what a namespace holds.

use std::time::Duration;

use spanwire::protocol::Time;

use crate::ServerId;
use crate::faults::planted;
use crate::wire::NamespaceStatus;

/// One pipe to a server.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) opened: u64,
    pub(super) heard: Time,
    pub(super) beacon: Duration,
    /// `None` until WELCOME; nothing is said before that but HELLO.
    pub(super) server: Option<ServerId>,
    pub(super) path: Vec<ServerId>,
    /// What WELCOME said last of each namespace.
    pub(super) namespaces: Vec<(String, NamespaceStatus)>,
    /// Who it is, once more: another boot, or another pipe in use.
    pub(super) owes_hello: bool,
    pub(super) owes_credit: bool,
    /// Payload bytes that came, of whatever namespace, and those that the server knows to be taken.
    pub(super) taken: u64,
    pub(super) credited: u64,
    /// Payload bytes that were sent up, and that the server has taken.
    pub(super) sent_up: u64,
    pub(super) taken_up: u64,
    /// The smaller of both sides' windows: half of it is credited at once, or the sender would wait.
    pub(super) window: u32,
    /// HEADs in a row of namespaces that nobody asked for.
    pub(super) strangers: u32,
}

impl Session {
    pub(super) fn new(opened: u64, now: Time, beacon: Duration, window: u32) -> Session {
        Session {
            opened,
            heard: now,
            beacon,
            server: None,
            path: Vec::new(),
            namespaces: Vec::new(),
            owes_hello: false,
            owes_credit: false,
            taken: 0,
            credited: 0,
            sent_up: 0,
            taken_up: 0,
            window,
            strangers: 0,
        }
    }

    /// What the server says of a namespace.
    pub(super) fn status_of(&self, name: &str) -> Option<NamespaceStatus> {
        self.namespaces.iter().find(|(known, _)| known == name).map(|(_, status)| *status)
    }

    /// A slice was taken, to be kept or not. `true`: the server is to know of it.
    pub(super) fn took(&mut self, bytes: u64) -> bool {
        self.taken += bytes;
        self.taken - self.credited >= u64::from(self.window / 2) && !planted("credit-by-ack")
    }

    pub(super) fn may_send_up(&self) -> bool {
        self.sent_up - self.taken_up < u64::from(self.window)
    }
}
