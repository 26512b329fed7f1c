//! Nodes, routes, connections and the queue of events to come.
//!
//! A connection has one bounded queue each way. Messages arrive whole and in order, after a delay; what is full
//! refuses; who stands still lets the queue fill.
//!
//! Owns: virtual time, and the order of events (by time, then by the order in which they were made). Never: a
//! clock, a hash table, or a decision that does not come from the seed.

mod faults;
mod flow;
mod links;
mod route;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;

pub use links::LinkView;
pub(super) use links::{Arrival, Links};
pub(super) use route::Lie;
pub use route::Route;
use route::RouteState;

use super::{Disk, Event, Io, Link, Node, Rng};

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

/// What is to happen, in order of time, and of what was made first.
#[derive(Debug)]
struct Due {
    /// No two are equal.
    at: (Time, u64),
    pending: Pending,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// The world as a model's operations and its oracle see it.
#[derive(Debug)]
pub struct Net<N: Node> {
    pub(super) now: Time,
    pub(super) slots: Vec<Slot<N>>,
    pub(super) routes: Vec<RouteState>,
    pub(super) links: Links,
    queue: BinaryHeap<Reverse<Due>>,
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
            queue: BinaryHeap::new(),
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
        self.links.conns.iter().map(|(link, conn)| conn.view(*link))
    }

    /// One connection, if an end of it is open.
    pub fn link(&self, link: Link) -> Option<LinkView> {
        self.links.conns.get(&link).map(|conn| conn.view(link))
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
        self.queue.push(Reverse(Due { at: (time.max(self.now), self.made), pending }));
    }

    pub(super) fn pop(&mut self) -> Option<Pending> {
        let Reverse(Due { at: (time, _), pending }) = self.queue.pop()?;
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
}
