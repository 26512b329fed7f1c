//! How connections are made, what arrives over them, and how they end.
//!
//! Owns: the moment of each delivery and of each dial. Never: calls a node (`Net::dispatch` does).

use std::time::Duration;

use spanwire::Message;

use super::links::{Arrival, Conn, Dir, Links};
use super::{Net, Pending, Slot};
use crate::sim::{Link, Node};

/// A connection that lived for this long, and for as long as the wait before it, is none that failed: as in a socket.
const STABLE: Duration = Duration::from_secs(1);

impl<N: Node> Net<N> {
    /// Whoever gave something back has done something since: it is offered again.
    pub(in crate::sim) fn unblock(&mut self, node: usize) {
        let Links { conns, touched, .. } = &mut self.links;
        for (link, conn) in conns {
            if conn.nodes.contains(&node) {
                let from = 1 - conn.side(node);
                if std::mem::take(&mut conn.dirs[from].blocked) {
                    touched.push(*link);
                }
            }
        }
    }

    /// Schedules the next delivery of each direction that has one.
    pub(in crate::sim) fn schedule(&mut self) {
        let mut touched = std::mem::take(&mut self.links.touched);
        for link in touched.drain(..) {
            for side in 0..2 {
                let Some(conn) = self.links.conns.get_mut(&link) else { continue };
                let (frozen, open) = (conn.frozen, conn.open[1 - side]);
                let dir = &mut conn.dirs[side];
                if dir.scheduled || dir.blocked || frozen || !open {
                    continue;
                }
                let time = match dir.queue.front() {
                    Some((ready, _)) => *ready,
                    None if dir.ended => dir.last,
                    None => continue,
                };
                dir.scheduled = true;
                self.at(time, Pending::Deliver { link, side });
            }
        }
        // Nothing touches one meanwhile: the room is used again.
        self.links.touched = touched;
    }

    /// The next message of a direction, for its receiver: what it is and to whom it goes.
    pub(in crate::sim) fn arrive(&mut self, link: Link, side: usize) -> Arrival {
        let stalled = |slots: &[Slot<N>], node: usize| slots[node].stalled;
        let Some(conn) = self.links.conns.get_mut(&link) else { return Arrival::Nothing };
        let to = conn.nodes[1 - side];
        let until = stalled(&self.slots, to);
        if until > self.now {
            self.at(until, Pending::Deliver { link, side });
            return Arrival::Nothing;
        }
        let dir = &mut conn.dirs[side];
        dir.scheduled = false;
        if conn.frozen || !conn.open[1 - side] {
            return Arrival::Nothing;
        }
        match dir.queue.pop_front() {
            Some((_, message)) => Arrival::Message { from: conn.nodes[side], to, route: conn.route, message },
            None if dir.ended => {
                self.close_end(link, 1 - side);
                Arrival::End { to }
            }
            None => Arrival::Nothing,
        }
    }

    pub(in crate::sim) fn is_open(&self, link: Link, side: usize) -> bool {
        self.links.conns.get(&link).is_some_and(|conn| conn.open[side])
    }

    /// After a delivery: a message given back, or room for the sender.
    pub(in crate::sim) fn arrived(
        &mut self,
        link: Link,
        side: usize,
        back: Option<Message>,
    ) -> Option<usize> {
        let now = self.now;
        let conn = self.links.conns.get_mut(&link)?;
        self.links.touched.push(link);
        let dir = &mut conn.dirs[side];
        if let Some(message) = back {
            dir.queue.push_front((now, message));
            dir.blocked = true;
            return None;
        }
        if dir.refused && dir.queue.len() <= conn.room / 2 && conn.open[side] {
            dir.refused = false;
            return Some(conn.nodes[side]);
        }
        None
    }

    /// A node ends a connection. With `loss`, what is on its way is lost.
    pub(in crate::sim) fn end(&mut self, link: Link, node: usize, loss: bool) {
        let Some(conn) = self.links.conns.get_mut(&link) else { return };
        let side = conn.side(node);
        if loss {
            conn.dirs.iter_mut().for_each(|dir| dir.queue.clear());
        }
        self.close_end(link, side);
    }

    /// One end is closed from now on; the node there knows.
    pub(in crate::sim) fn close_end(&mut self, link: Link, side: usize) {
        let now = self.now;
        let Some(conn) = self.links.conns.get_mut(&link) else { return };
        if !conn.open[side] {
            return;
        }
        conn.open[side] = false;
        conn.dirs[1 - side].queue.clear();
        let dir = &mut conn.dirs[side];
        dir.ended = true;
        dir.last = dir.last.max(now + conn.delay);
        let (route, both) = (conn.route, !conn.open[1 - side]);
        if both {
            self.links.conns.remove(&link);
        } else {
            self.links.touched.push(link);
        }
        let state = &mut self.routes[route];
        if side == 0 && state.conn == Some(link) {
            state.conn = None;
            if now.saturating_since(state.made.0) >= STABLE.max(state.made.1) {
                state.backoff = state.route.reconnect;
            }
            self.dial_later(route);
        }
    }

    pub(super) fn dial_later(&mut self, route: usize) {
        let state = &mut self.routes[route];
        if state.dialing || state.conn.is_some() {
            return;
        }
        state.dialing = true;
        let wait = state.backoff / 2 + self.rng.time(Duration::ZERO..state.backoff / 2);
        state.made.1 = wait;
        state.backoff = (state.backoff * 2).min(state.route.reconnect_max);
        self.at(self.now + wait, Pending::Dial { route });
    }

    /// A dial: `Some` if a connection stands.
    pub(in crate::sim) fn dial(&mut self, route: usize) -> Option<(Link, usize, usize)> {
        let now = self.now;
        let state = &self.routes[route];
        let (from, to) = (state.route.from, state.route.to);
        self.routes[route].dialing = false;
        if self.routes[route].conn.is_some() || self.slots[from].node.is_none() {
            return None;
        }
        if self.routes[route].cut
            || self.slots[to].node.is_none()
            || self.is_stalled(to)
            || self.is_stalled(from)
        {
            self.dial_later(route);
            return None;
        }
        self.links.next += 1;
        let (link, rng) = (Link(self.links.next), self.rng.fork());
        let state = &mut self.routes[route];
        let conn = Conn {
            route,
            nodes: [from, to],
            open: [true; 2],
            dirs: [Dir::default(), Dir::default()],
            frozen: false,
            room: state.route.room,
            delay: state.route.delay + state.extra,
            jitter: state.route.jitter,
            rng,
        };
        state.conn = Some(link);
        state.made.0 = now;
        self.links.conns.insert(link, conn);
        Some((link, from, to))
    }

    /// The end of a connection that its node has not heard of yet.
    pub(in crate::sim) fn broken(&mut self, link: Link, side: usize) -> Option<usize> {
        let conn = self.links.conns.get(&link)?;
        if !conn.open[side] {
            return None;
        }
        let node = conn.nodes[side];
        if self.is_stalled(node) {
            let until = self.slots[node].stalled;
            self.at(until, Pending::Close { link, side });
            return None;
        }
        self.close_end(link, side);
        Some(node)
    }
}
