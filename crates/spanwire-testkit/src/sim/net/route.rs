//! Ways by which nodes connect, and what is wrong with one at present.
//!
//! Owns: what lasts from one connection of a way to the next. Never: a message, but to replay it.

use std::collections::VecDeque;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;

use crate::sim::Link;

/// A way by which a node connects to another, for ever again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The node that dials.
    pub from: usize,
    /// The node that listens.
    pub to: usize,
    /// Messages on their way in each direction, at most. Default: 32.
    pub room: usize,
    /// How long a message takes, at least. Default: 200 µs.
    pub delay: Duration,
    /// What may be added to that. Default: 1 ms.
    pub jitter: Duration,
    /// Wait before the first dial after a connection ended; doubles with each that fails, and with each connection
    /// that ends within a second. Default: 20 ms.
    pub reconnect: Duration,
    /// Longest wait between two dials. Default: 500 ms.
    pub reconnect_max: Duration,
}

impl Route {
    /// A route with the defaults.
    pub fn new(from: usize, to: usize) -> Route {
        Route {
            from,
            to,
            room: 32,
            delay: Duration::from_micros(200),
            jitter: Duration::from_millis(1),
            reconnect: Duration::from_millis(20),
            reconnect_max: Duration::from_millis(500),
        }
    }
}

#[derive(Debug)]
pub(in crate::sim) struct RouteState {
    pub(in crate::sim) route: Route,
    pub(super) conn: Option<Link>,
    pub(super) cut: bool,
    /// Counts cuts and delays, so that the end of one does not end a later one.
    pub(super) cuts: u32,
    pub(super) delays: u32,
    pub(super) extra: Duration,
    pub(super) backoff: Duration,
    /// When the connection was made, and the wait before it.
    pub(super) made: (Time, Duration),
    pub(super) dialing: bool,
    /// Faults that wait for a message, for each direction.
    pub(in crate::sim) lies: [Vec<Lie>; 2],
    /// Messages that passed, for replays.
    pub(in crate::sim) past: [VecDeque<Message>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Lie {
    Flip(u64),
    Lose,
    Replay(usize),
}
