//! Nodes, routes, connections and the queue of events to come.
//!
//! A connection has one bounded queue each way. Messages arrive whole and in order, after a delay; what is full
//! refuses; who stands still lets the queue fill.
//!
//! Owns: virtual time, and the order of events (by time, then by the order in which they were made). Never: a
//! clock, a hash table, or a decision that does not come from the seed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;

use super::plan::{Fault, Way};
use super::{Disk, Event, Io, Link, Node, Rng, SendError};

/// A connection that lived for this long, and for as long as the wait before it, is none that failed: as in a socket.
const STABLE: Duration = Duration::from_secs(1);

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
pub(super) struct RouteState {
    pub(super) route: Route,
    conn: Option<Link>,
    cut: bool,
    /// Counts cuts and delays, so that the end of one does not end a later one.
    cuts: u32,
    delays: u32,
    extra: Duration,
    backoff: Duration,
    /// When the connection was made, and the wait before it.
    made: (Time, Duration),
    dialing: bool,
    /// Faults that wait for a message, for each direction.
    pub(super) lies: [Vec<Lie>; 2],
    /// Messages that passed, for replays.
    pub(super) past: [VecDeque<Message>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    Flip(u64),
    Lose,
    Replay(usize),
}

#[derive(Debug, Default)]
struct Dir {
    queue: VecDeque<(Time, Message)>,
    last: Time,
    scheduled: bool,
    /// The receiver gave a message back.
    blocked: bool,
    /// The sender found no room.
    refused: bool,
    /// The sender's end is closed.
    ended: bool,
}

/// Side 0 dialled, side 1 listened.
#[derive(Debug)]
struct Conn {
    route: usize,
    nodes: [usize; 2],
    open: [bool; 2],
    dirs: [Dir; 2],
    /// Nothing passes.
    frozen: bool,
    room: usize,
    delay: Duration,
    jitter: Duration,
    rng: Rng,
}

impl Conn {
    fn side(&self, node: usize) -> usize {
        usize::from(self.nodes[0] != node)
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    conns: BTreeMap<Link, Conn>,
    next: u64,
    touched: Vec<Link>,
    /// Sent since the last look: for the trace and the oracle.
    pub(super) sent: Vec<(usize, usize, Link, Message)>,
}

impl Links {
    pub(super) fn has_room(&self, node: usize, link: Link) -> bool {
        self.conns.get(&link).is_some_and(|conn| {
            let side = conn.side(node);
            conn.open[side] && conn.dirs[side].queue.len() < conn.room
        })
    }

    pub(super) fn refuse(&mut self, node: usize, link: Link) {
        if let Some(conn) = self.conns.get_mut(&link) {
            let side = conn.side(node);
            conn.dirs[side].refused = true;
        }
    }

    pub(super) fn send(
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

#[derive(Debug)]
pub(super) struct Slot<N: Node> {
    pub(super) node: Option<N>,
    pub(super) disk: Disk<N::Disk>,
    stalled: Time,
    wake: Option<Time>,
    rng: Rng,
    pub(super) starts: u64,
    deaths: u64,
}

#[derive(Debug)]
pub(super) enum Pending {
    Deliver {
        link: Link,
        side: usize,
    },
    Close {
        link: Link,
        side: usize,
    },
    Timer {
        node: usize,
    },
    Dial {
        route: usize,
    },
    /// Unless it has died once more since.
    Start {
        node: usize,
        deaths: u64,
    },
    Step {
        index: usize,
    },
    EndCut {
        route: usize,
        cut: u32,
    },
    EndDelay {
        route: usize,
        delay: u32,
    },
    Heal,
    Healed,
    End,
}

/// The world as a model's operations and its oracle see it.
#[derive(Debug)]
pub struct Net<N: Node> {
    pub(super) now: Time,
    pub(super) slots: Vec<Slot<N>>,
    pub(super) routes: Vec<RouteState>,
    pub(super) links: Links,
    queue: BTreeMap<(Time, u64), Pending>,
    made: u64,
    rng: Rng,
    pub(super) hash: u64,
    pub(super) events: u64,
    pub(super) healed: bool,
    /// How long a process that dies in a sync is away.
    down: Vec<Duration>,
    pub(super) crashed: Vec<usize>,
    pub(super) lines: Option<VecDeque<String>>,
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

const LINES: usize = 60;

impl<N: Node> Net<N> {
    pub(super) fn new(seed: u64, disks: Vec<N::Disk>, routes: Vec<Route>) -> Self {
        let mut rng = Rng::new(seed);
        let down = vec![Duration::ZERO; disks.len()];
        let slots = disks.into_iter().map(|disk| Slot {
            node: None,
            disk: Disk::new(disk),
            stalled: Time::ZERO,
            wake: None,
            rng: rng.fork(),
            starts: 0,
            deaths: 0,
        });
        let slots = slots.collect();
        let routes = routes.into_iter().map(|route| RouteState {
            backoff: route.reconnect,
            route,
            conn: None,
            cut: false,
            cuts: 0,
            made: (Time::ZERO, Duration::ZERO),
            delays: 0,
            extra: Duration::ZERO,
            dialing: false,
            lies: [Vec::new(), Vec::new()],
            past: [VecDeque::new(), VecDeque::new()],
        });
        Net {
            now: Time::ZERO,
            slots,
            routes: routes.collect(),
            links: Links::default(),
            queue: BTreeMap::new(),
            made: 0,
            rng,
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            healed: false,
            down,
            crashed: Vec::new(),
            lines: None,
        }
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// A node; `None` while it is down.
    pub fn node(&self, node: usize) -> Option<&N> {
        self.slots.get(node).and_then(|slot| slot.node.as_ref())
    }

    /// A node's disk.
    pub fn disk(&self, node: usize) -> Option<&Disk<N::Disk>> {
        self.slots.get(node).map(|slot| &slot.disk)
    }

    /// A node's disk, to change from outside: a folder that is put back, lost or damaged. Only while it is down.
    pub fn disk_mut(&mut self, node: usize) -> Option<&mut Disk<N::Disk>> {
        self.slots.get_mut(node).filter(|slot| slot.node.is_none()).map(|slot| &mut slot.disk)
    }

    /// Whether a process stands still.
    pub fn is_stalled(&self, node: usize) -> bool {
        self.slots.get(node).is_some_and(|slot| slot.stalled > self.now)
    }

    /// How often a node was started.
    pub fn starts(&self, node: usize) -> u64 {
        self.slots.get(node).map_or(0, |slot| slot.starts)
    }

    /// Whether the faults of the plan are over.
    pub fn healed(&self) -> bool {
        self.healed
    }

    /// All connections with at least one open end, older ones first.
    pub fn links(&self) -> impl Iterator<Item = LinkView> {
        self.links.conns.iter().map(|(link, conn)| LinkView {
            link: *link,
            route: conn.route,
            dialer: (conn.nodes[0], conn.open[0]),
            listener: (conn.nodes[1], conn.open[1]),
            frozen: conn.frozen,
        })
    }

    /// One connection, if an end of it is open.
    pub fn link(&self, link: Link) -> Option<LinkView> {
        self.links().find(|view| view.link == link)
    }

    /// The application on a node does something. `None` if the node is down or stands still.
    pub fn with<R>(&mut self, node: usize, f: impl FnOnce(&mut N, &mut Io<'_, N::Disk>) -> R) -> Option<R> {
        if self.is_stalled(node) {
            return None;
        }
        let mut process = self.slots.get_mut(node)?.node.take()?;
        let (result, _) = self.io(node, |io| f(&mut process, io));
        self.put_back(node, process);
        Some(result)
    }

    /// A line for the trace of a failing run.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() >= LINES {
                lines.pop_front();
            }
            lines.push_back(format!("{:>9.6} s  {}", self.now.since_start().as_secs_f64(), line()));
        }
    }

    pub(super) fn mark(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }

    pub(super) fn mark_bytes(&mut self, bytes: &[u8]) {
        self.mark(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mark(u64::from_le_bytes(word));
        }
    }

    pub(super) fn at(&mut self, time: Time, pending: Pending) {
        self.made += 1;
        self.queue.insert((time.max(self.now), self.made), pending);
    }

    pub(super) fn pop(&mut self) -> Option<Pending> {
        let ((time, _), pending) = self.queue.pop_first()?;
        self.now = time;
        self.events += 1;
        Some(pending)
    }

    /// Calls a node with an `Io`, and carries out what it asked for. Returns a message that it gave back.
    pub(super) fn io<R>(
        &mut self,
        node: usize,
        f: impl FnOnce(&mut Io<'_, N::Disk>) -> R,
    ) -> (R, Option<Message>) {
        let slot = &mut self.slots[node];
        let mut io = Io {
            disk: &mut slot.disk,
            node,
            now: self.now,
            rng: &mut slot.rng,
            links: &mut self.links,
            wake: None,
            closes: Vec::new(),
            back: None,
        };
        let result = f(&mut io);
        let Io { wake, closes, back, .. } = io;
        if let Some(at) = wake
            && slot.wake.is_none_or(|old| at < old)
        {
            slot.wake = Some(at);
            self.at(at, Pending::Timer { node });
        }
        for link in closes {
            self.end(link, node, false);
        }
        (result, back)
    }

    pub(super) fn put_back(&mut self, node: usize, process: N) {
        let slot = &mut self.slots[node];
        slot.node = Some(process);
        if slot.disk.crashed {
            let down = self.down[node];
            self.crash(node, down, true);
        }
    }

    /// An event for a node. Gives a message back that the node has no room for.
    pub(super) fn dispatch(&mut self, node: usize, event: Event) -> Option<Message> {
        let mut process = self.slots[node].node.take()?;
        let ((), back) = self.io(node, |io| process.handle(event, io));
        self.put_back(node, process);
        back
    }

    /// Whoever gave something back has done something since: it is offered again.
    pub(super) fn unblock(&mut self, node: usize) {
        let mut again = Vec::new();
        for (link, conn) in &mut self.links.conns {
            if conn.nodes.contains(&node) {
                let from = 1 - conn.side(node);
                if std::mem::take(&mut conn.dirs[from].blocked) {
                    again.push(*link);
                }
            }
        }
        self.links.touched.extend(again);
    }

    /// Schedules the next delivery of each direction that has one.
    pub(super) fn schedule(&mut self) {
        for link in std::mem::take(&mut self.links.touched) {
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
    }

    /// The next message of a direction, for its receiver: what it is and to whom it goes.
    pub(super) fn arrive(&mut self, link: Link, side: usize) -> Arrival {
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

    pub(super) fn is_open(&self, link: Link, side: usize) -> bool {
        self.links.conns.get(&link).is_some_and(|conn| conn.open[side])
    }

    /// After a delivery: a message given back, or room for the sender.
    pub(super) fn arrived(&mut self, link: Link, side: usize, back: Option<Message>) -> Option<usize> {
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
    pub(super) fn end(&mut self, link: Link, node: usize, loss: bool) {
        let Some(conn) = self.links.conns.get_mut(&link) else { return };
        let side = conn.side(node);
        if loss {
            conn.dirs.iter_mut().for_each(|dir| dir.queue.clear());
        }
        self.close_end(link, side);
    }

    /// One end is closed from now on; the node there knows.
    pub(super) fn close_end(&mut self, link: Link, side: usize) {
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

    fn dial_later(&mut self, route: usize) {
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
    pub(super) fn dial(&mut self, route: usize) -> Option<(Link, usize, usize)> {
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
    pub(super) fn broken(&mut self, link: Link, side: usize) -> Option<usize> {
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

    /// A timer of a node: whether it is to be told.
    pub(super) fn ring(&mut self, node: usize) -> bool {
        let now = self.now;
        let slot = &mut self.slots[node];
        if slot.node.is_none() || slot.wake.is_none_or(|at| at > now) {
            return false;
        }
        if slot.stalled > now {
            let until = slot.stalled;
            self.at(until, Pending::Timer { node });
            return false;
        }
        slot.wake = None;
        true
    }

    /// Nothing passes on a connection any more, and what is on its way is lost.
    fn freeze(&mut self, link: Link) {
        if let Some(conn) = self.links.conns.get_mut(&link) {
            conn.frozen = true;
        }
    }

    /// A process dies now and is started again later. What it sent may still arrive, or not.
    pub fn crash(&mut self, node: usize, down: Duration, power: bool) {
        let Some(slot) = self.slots.get_mut(node) else { return };
        slot.disk.crash(power);
        slot.wake = None;
        slot.stalled = Time::ZERO;
        if slot.node.take().is_none() {
            return;
        }
        slot.deaths += 1;
        let deaths = slot.deaths;
        self.crashed.push(node);
        self.note(|| format!("n{node} dies"));
        let links: Vec<Link> =
            self.links.conns.iter().filter(|(_, c)| c.nodes.contains(&node)).map(|(l, _)| *l).collect();
        for link in links {
            let loss = self.rng.one_in(2);
            let frozen = self.links.conns.get(&link).is_some_and(|conn| conn.frozen);
            self.end(link, node, loss && !frozen);
        }
        self.at(self.now + down, Pending::Start { node, deaths });
    }

    /// A node may start: it has not, and its routes will dial.
    pub(super) fn may_start(&self, node: usize, deaths: u64) -> bool {
        self.slots[node].node.is_none() && self.slots[node].deaths == deaths
    }

    pub(super) fn started(&mut self, node: usize) {
        for route in 0..self.routes.len() {
            let state = &mut self.routes[route];
            if state.route.from == node && !state.dialing && state.conn.is_none() {
                state.backoff = state.route.reconnect;
                self.dial_later(route);
            }
        }
    }

    /// Carries out one fault, as a plan does it.
    pub fn fault(&mut self, fault: &Fault) {
        let last = |n: usize| n.saturating_sub(1);
        let route_of = |route: usize, routes: usize| route.min(last(routes));
        let (nodes, routes) = (self.slots.len(), self.routes.len());
        if nodes == 0 || routes == 0 {
            return;
        }
        match *fault {
            Fault::Break { route } => self.break_route(route_of(route, routes)),
            Fault::Cut { route, lasts } => {
                let route = route_of(route, routes);
                self.routes[route].cut = true;
                self.routes[route].cuts += 1;
                let cut = self.routes[route].cuts;
                self.break_route(route);
                self.at(self.now + lasts, Pending::EndCut { route, cut });
            }
            Fault::HalfOpen { route, dialer, listener, lasts } => {
                let Some(link) = self.routes[route_of(route, routes)].conn else { return };
                self.freeze(link);
                for (side, told) in [(0, dialer), (1, listener)] {
                    let at = if told { self.now } else { self.now + lasts };
                    self.at(at, Pending::Close { link, side });
                }
            }
            Fault::Delay { route, by, lasts } => {
                let route = route_of(route, routes);
                let state = &mut self.routes[route];
                state.delays += 1;
                state.extra = by;
                let delay = state.delays;
                self.set_delay(route);
                self.at(self.now + lasts, Pending::EndDelay { route, delay });
            }
            Fault::Stall { node, lasts } => {
                let slot = &mut self.slots[node.min(last(nodes))];
                if slot.node.is_some() {
                    slot.stalled = slot.stalled.max(self.now + lasts);
                }
            }
            Fault::Crash { node, down, power } => self.crash(node.min(last(nodes)), down, power),
            Fault::CrashAtSync { node, after, synced, down } => {
                let node = node.min(last(nodes));
                self.slots[node].disk.crash_at = Some((after, synced));
                self.down[node] = down;
            }
            Fault::FailSync { node, syncs } => self.slots[node.min(last(nodes))].disk.fail += syncs,
            Fault::Flip { route, way, random } => self.lie(route_of(route, routes), way, Lie::Flip(random)),
            Fault::Lose { route, way } => self.lie(route_of(route, routes), way, Lie::Lose),
            Fault::Replay { route, way, back } => {
                self.lie(route_of(route, routes), way, Lie::Replay(back));
            }
        }
    }

    fn lie(&mut self, route: usize, way: Way, lie: Lie) {
        self.routes[route].lies[usize::from(way == Way::Down)].push(lie);
    }

    fn break_route(&mut self, route: usize) {
        let Some(link) = self.routes[route].conn else { return };
        if let Some(conn) = self.links.conns.get_mut(&link) {
            conn.dirs.iter_mut().for_each(|dir| dir.queue.clear());
            conn.frozen = true;
        }
        // Who hears first is chance.
        let first = self.rng.below(2);
        self.at(self.now, Pending::Close { link, side: first });
        let later = self.rng.time(Duration::ZERO..Duration::from_millis(30));
        self.at(self.now + later, Pending::Close { link, side: 1 - first });
    }

    fn set_delay(&mut self, route: usize) {
        let state = &self.routes[route];
        let delay = state.route.delay + state.extra;
        if let Some(conn) = state.conn.and_then(|link| self.links.conns.get_mut(&link)) {
            conn.delay = delay;
        }
    }

    pub(super) fn end_cut(&mut self, route: usize, cut: u32) {
        if self.routes[route].cuts == cut {
            self.routes[route].cut = false;
        }
    }

    pub(super) fn end_delay(&mut self, route: usize, delay: u32) {
        if self.routes[route].delays == delay {
            self.routes[route].extra = Duration::ZERO;
            self.set_delay(route);
        }
    }

    /// All faults end; who is down starts. Half-open connections stay: peers must find those out.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        for route in 0..self.routes.len() {
            let (cut, delay) = (self.routes[route].cuts, self.routes[route].delays);
            self.end_cut(route, cut);
            self.end_delay(route, delay);
            self.routes[route].lies = [Vec::new(), Vec::new()];
        }
        for node in 0..self.slots.len() {
            let slot = &mut self.slots[node];
            slot.disk.crash_at = None;
            slot.disk.fail = 0;
            let deaths = slot.deaths;
            if slot.node.is_none() {
                self.at(self.now, Pending::Start { node, deaths });
            }
        }
    }
}

impl fmt::Display for LinkView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} n{} -> n{}", self.link, self.dialer.0, self.listener.0)
    }
}

/// What a delivery finds.
#[derive(Debug)]
pub(super) enum Arrival {
    Nothing,
    Message { from: usize, to: usize, route: usize, message: Message },
    End { to: usize },
}
