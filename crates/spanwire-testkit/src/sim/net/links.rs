//! Connections: two bounded queues each, of messages that are on their way.
//!
//! Owns: what is on its way, and how long it takes. Never: decides when something arrives, or that a connection ends.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;

use crate::sim::{Link, Rng, SendError};

#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) queue: VecDeque<(Time, Message)>,
    pub(super) last: Time,
    pub(super) scheduled: bool,
    /// The receiver gave a message back.
    pub(super) blocked: bool,
    /// The sender found no room.
    pub(super) refused: bool,
    /// The sender's end is closed.
    pub(super) ended: bool,
}

/// Side 0 dialled, side 1 listened.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) route: usize,
    pub(super) nodes: [usize; 2],
    pub(super) open: [bool; 2],
    pub(super) dirs: [Dir; 2],
    /// Nothing passes.
    pub(super) frozen: bool,
    pub(super) room: usize,
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) rng: Rng,
}

impl Conn {
    pub(super) fn side(&self, node: usize) -> usize {
        usize::from(self.nodes[0] != node)
    }

    pub(super) fn view(&self, link: Link) -> LinkView {
        LinkView {
            link,
            route: self.route,
            dialer: (self.nodes[0], self.open[0]),
            listener: (self.nodes[1], self.open[1]),
            frozen: self.frozen,
        }
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(in crate::sim) struct Links {
    pub(super) conns: BTreeMap<Link, Conn>,
    pub(super) next: u64,
    pub(super) touched: Vec<Link>,
    /// Sent since the last look: for the trace and the oracle.
    pub(in crate::sim) sent: Vec<(usize, usize, Link, Message)>,
}

impl Links {
    pub(in crate::sim) fn has_room(&self, node: usize, link: Link) -> bool {
        self.conns.get(&link).is_some_and(|conn| {
            let side = conn.side(node);
            conn.open[side] && conn.dirs[side].queue.len() < conn.room
        })
    }

    pub(in crate::sim) fn refuse(&mut self, node: usize, link: Link) {
        if let Some(conn) = self.conns.get_mut(&link) {
            let side = conn.side(node);
            conn.dirs[side].refused = true;
        }
    }

    pub(in crate::sim) fn send(
        &mut self,
        node: usize,
        link: Link,
        message: Message,
        now: Time,
    ) -> Result<(), SendError> {
        let Some(conn) = self.conns.get_mut(&link) else { return Err(SendError::Gone(message)) };
        let side = conn.side(node);
        if !conn.open[side] {
            return Err(SendError::Gone(message));
        }
        if conn.dirs[side].queue.len() >= conn.room {
            conn.dirs[side].refused = true;
            return Err(SendError::Full(message));
        }
        let delay = conn.delay + conn.rng.time(Duration::ZERO..conn.jitter);
        let dir = &mut conn.dirs[side];
        let ready = dir.last.max(now + delay);
        dir.last = ready;
        self.sent.push((node, conn.nodes[1 - side], link, message.clone()));
        dir.queue.push_back((ready, message));
        self.touched.push(link);
        Ok(())
    }
}

/// A connection as the oracle sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkView {
    /// Its name.
    pub link: Link,
    /// Its route.
    pub route: usize,
    /// The dialling node, and whether its end is open.
    pub dialer: (usize, bool),
    /// The listening node, and whether its end is open.
    pub listener: (usize, bool),
    /// Nothing passes: it is half open.
    pub frozen: bool,
}

impl fmt::Display for LinkView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} n{} -> n{}", self.link, self.dialer.0, self.listener.0)
    }
}

/// What a delivery finds.
#[derive(Debug)]
pub(in crate::sim) enum Arrival {
    Nothing,
    Message { from: usize, to: usize, route: usize, message: Message },
    End { to: usize },
}
