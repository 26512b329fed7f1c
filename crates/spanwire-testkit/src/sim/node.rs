//! A process in the world: events in, actions out.
//!
//! Owns: the trait of a node, what a node may do ([`Io`]), and the adapter that makes a node of any protocol.
//! Never: time or chance that the world did not hand in.

use std::collections::BTreeMap;
use std::fmt;

use spanwire::Message;
use spanwire::protocol::script::Script;
use spanwire::protocol::{Cx, Limit, PipeId, PipeInfo, Protocol, Reason, Time};

use super::net::Links;
use super::{Disk, Rng};

/// One connection between two nodes. Each has a name of its own; none is used twice in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(pub(super) u64);

impl Link {
    /// Counts up over a run: a later connection has a higher number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link{}", self.0)
    }
}

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Event {
    /// A connection stands.
    Opened {
        /// Its name.
        link: Link,
        /// The route that it belongs to: its index in [`Setup::routes`](super::Setup::routes).
        route: usize,
        /// The node at the other end.
        peer: usize,
    },
    /// A connection is gone. What had arrived was delivered before.
    Closed(Link),
    /// A whole message arrived.
    Message(Link, Message),
    /// An [`Io::send`] was refused, and now half of the room is free again.
    Writable(Link),
    /// A time asked for by [`Io::wake_at`] has come. It may be spurious.
    Timer,
}

/// Why a message was not sent; it comes back.
#[derive(Debug)]
pub enum SendError {
    /// No room now; [`Event::Writable`] follows.
    Full(Message),
    /// The connection is gone.
    Gone(Message),
}

/// A process: it is told what happens and acts through [`Io`], at once and at no other time.
pub trait Node {
    /// What a crash leaves.
    type Disk: Clone + fmt::Debug;

    /// Something happened.
    fn handle(&mut self, event: Event, io: &mut Io<'_, Self::Disk>);
}

/// What a node can do while it handles an event.
#[derive(Debug)]
pub struct Io<'a, D> {
    /// Its disk.
    pub disk: &'a mut Disk<D>,
    pub(super) node: usize,
    pub(super) now: Time,
    pub(super) rng: &'a mut Rng,
    pub(super) links: &'a mut Links,
    pub(super) wake: Option<Time>,
    pub(super) closes: Vec<Link>,
    pub(super) back: Option<Message>,
}

impl<D: Clone> Io<'_, D> {
    /// The time: the same for the whole of one event.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Which node this is.
    pub fn node(&self) -> usize {
        self.node
    }

    /// Chance, from the seed of the run.
    pub fn rng(&mut self) -> &mut Rng {
        self.rng
    }

    /// Sends a whole message. It arrives, in order, unless the connection ends before.
    ///
    /// # Errors
    /// [`SendError`] gives it back.
    pub fn send(&mut self, link: Link, message: Message) -> Result<(), SendError> {
        if self.disk.crashed {
            return Ok(());
        }
        self.links.send(self.node, link, message, self.now)
    }

    /// Whether `send` would take a message.
    pub fn has_room(&self, link: Link) -> bool {
        self.links.has_room(self.node, link)
    }

    /// Ends a connection, after what was sent. [`Event::Closed`] does not follow here.
    pub fn close(&mut self, link: Link) {
        self.closes.push(link);
    }

    /// Asks for [`Event::Timer`] at `time`. The earliest time asked for counts; ask again for later ones.
    pub fn wake_at(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    /// Gives the message of this event back: there is no room for it. The connection stands still in this
    /// direction until the node has handled another event.
    pub fn give_back(&mut self, message: Message) {
        self.back = Some(message);
    }
}

/// A protocol as a node: any [`Protocol`] with its real `Cx` and queues.
///
/// A node with an application holds one of these, passes every event on to it, and then looks at the protocol.
#[derive(Debug)]
pub struct Scripted<P> {
    script: Script<P>,
    room: usize,
    pipes: BTreeMap<Link, PipeId>,
}

impl<P: Protocol> Scripted<P> {
    /// A protocol that was just started. `room`: messages in the queue of a pipe, each way. `seed`: for its
    /// [`Cx::random`].
    pub fn new(protocol: P, room: usize, seed: u64) -> Self {
        Scripted { script: Script::seeded(protocol, seed), room, pipes: BTreeMap::new() }
    }

    /// The protocol.
    pub fn protocol(&self) -> &P {
        &self.script.protocol
    }

    /// Its time: that of its last event.
    pub fn now(&self) -> Time {
        self.script.now()
    }

    /// A counter of the protocol's own.
    pub fn counted(&self, name: &str) -> u64 {
        self.script.counted(name)
    }

    /// Why pipes were closed so far, in order.
    pub fn closed(&self) -> impl Iterator<Item = &Reason> {
        self.script.closed.iter().map(|(_, why)| why)
    }

    /// Whether a connection is open in the protocol's eyes.
    pub fn is_open(&self, link: Link) -> bool {
        self.pipes.contains_key(&link)
    }

    /// The world speaks to the protocol.
    pub fn handle<D: Clone>(&mut self, event: Event, io: &mut Io<'_, D>) {
        self.script.jump_to(io.now());
        match event {
            Event::Opened { link, route, .. } => {
                let limit = Limit::messages(self.room);
                let mut info = PipeInfo::default();
                (info.send_limit, info.recv_limit, info.endpoint) = (limit, limit, route as u32);
                match self.script.open_with(info) {
                    Ok(pipe) => drop(self.pipes.insert(link, pipe)),
                    Err(_) => io.close(link),
                }
            }
            Event::Closed(link) => {
                if let Some(pipe) = self.pipes.get(&link) {
                    self.script.end(*pipe);
                }
            }
            Event::Message(link, message) => {
                if let Some(pipe) = self.pipes.get(&link)
                    && self.script.arrive(*pipe, [message.clone()]) == 0
                {
                    io.give_back(message);
                }
            }
            Event::Writable(_) | Event::Timer => {}
        }
        self.flush(io);
    }

    /// The application calls into the protocol; what that leads to is carried out.
    pub fn call<D: Clone, R>(&mut self, io: &mut Io<'_, D>, f: impl FnOnce(&mut P, &mut Cx<'_>) -> R) -> R {
        self.script.jump_to(io.now());
        let result = self.script.call(f);
        self.flush(io);
        result
    }

    fn flush<D: Clone>(&mut self, io: &mut Io<'_, D>) {
        let Scripted { script, pipes, .. } = self;
        for (&link, &pipe) in &*pipes {
            while script.unsent(pipe) > 0 && io.has_room(link) {
                for message in script.drain(pipe, 1) {
                    // There is room, so it cannot come back; a connection that is gone loses it.
                    let _ = io.send(link, message);
                }
            }
            if script.unsent(pipe) > 0 {
                io.links.refuse(io.node, link);
            }
        }
        // Draining may have closed pipes, too.
        pipes.retain(|link, pipe| {
            let open = script.is_open(*pipe);
            if !open {
                io.close(*link);
            }
            open
        });
        if let Some(at) = self.script.next_timer() {
            io.wake_at(at);
        }
    }
}
