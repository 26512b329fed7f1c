//! Protocols: what a socket *means*, as pure state machines over pipes.
//!
//! A protocol is told of pipes that opened, closed, became readable or writable, and of timers; it acts
//! through [`Cx`] alone. Time is an argument, so a test can hand it any hour. Waiting, waking, deadlines
//! and options are the socket's business and never enter a protocol: it says [`Cx::wake`] and does not
//! know who waits.
//!
//! Owns: the traits and the built-in machines. Never: I/O, threads, a clock, randomness of its own, a byte
//! stream.
//!
//! # Writing one
//!
//! Implement [`Protocol`] and, as the socket sends or receives, [`Sends`] and [`Receives`]; further verbs
//! are methods of your type, reached through [`Socket::with`](crate::Socket::with). A complete example, a
//! one-way protocol that gives every message to every peer and counts what a full peer loses:
//!
//! ```
//! use spanwire::protocol::*;
//! use spanwire::Message;
//!
//! /// Ids 0xf000 and up are left to users by the SP registry.
//! #[derive(Debug, Default)]
//! struct Shout { pipes: PipeMap<()> }
//!
//! impl Protocol for Shout {
//!     fn info(&self) -> ProtocolInfo { ProtocolInfo::new(0xf000, "shout", 0xf001, "hear") }
//!     fn pipe_opened(&mut self, _: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
//!         self.pipes.insert(pipe, ());
//!         Ok(())
//!     }
//!     fn pipe_closed(&mut self, _: &mut Cx<'_>, pipe: PipeId) { self.pipes.remove(pipe); }
//!     fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) { discard(cx, pipe); }
//!     fn readiness(&self) -> Readiness { Readiness { send: true, recv: false } }
//! }
//!
//! impl Sends for Shout {
//!     type Item = Message;
//!     fn send(&mut self, cx: &mut Cx<'_>, msg: Message) -> Result<(), Refused<Message>> {
//!         for pipe in self.pipes.keys() {
//!             cx.offer(pipe, &msg, Overflow::DropNewest); // a loss is counted by `offer`
//!         }
//!         Ok(())
//!     }
//! }
//! ```

mod balance;
#[cfg(test)]
mod check;
mod cx;
mod fair;
pub mod pair;
mod pipemap;
pub mod publish;
pub mod pull;
pub mod push;
pub mod raw;
pub mod rep;
pub mod req;
#[cfg(any(test, feature = "testkit"))]
pub mod script;
pub mod subscribe;
mod topics;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;

pub use crate::queue::Limit;
pub use balance::Balance;
pub(crate) use cx::{Clock, Effects, Pipe, Pipes};
pub use cx::{Control, Cx, DropReason, Offered, Overflow, PipeId, PipeInfo, PutError, Reason, Room};
pub use fair::FairQueue;
pub use pipemap::{PipeMap, Ring};
pub use topics::Topics;

use crate::Message;
pub use crate::time::Time;
use crate::wire::PeerHello;

/// Constant facts about a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProtocolInfo {
    /// Own SP id, 16 bits: the upper 12 name the protocol, the lower 4 the role. 0xf000–0xffff is for
    /// protocols of your own.
    pub id: u16,
    /// The only SP id that a peer may have.
    pub peer: u16,
    /// Own name, as in WebSocket sub-protocol names and in events.
    pub name: &'static str,
    /// The partner's name.
    pub peer_name: &'static str,
    /// Items keep everything that a device must pass on, so the socket may stand in one.
    pub forwardable: bool,
    /// Own ZMTP socket type and the types that may be its partners, for wires that speak ZMTP.
    pub zmtp: Option<(&'static str, &'static [&'static str])>,
}

impl ProtocolInfo {
    /// A protocol `name` with SP id `id`, whose peers must be `peer_name` with id `peer`.
    pub const fn new(id: u16, name: &'static str, peer: u16, peer_name: &'static str) -> Self {
        ProtocolInfo { id, peer, name, peer_name, forwardable: false, zmtp: None }
    }

    /// May stand in a device.
    #[must_use]
    pub const fn forwardable(mut self) -> Self {
        self.forwardable = true;
        self
    }

    /// Has a ZMTP socket type.
    #[must_use]
    pub const fn zmtp(mut self, own: &'static str, partners: &'static [&'static str]) -> Self {
        self.zmtp = Some((own, partners));
        self
    }

    /// Whether a peer that introduced itself like this is a partner. The only place where that is decided.
    pub fn accepts(&self, peer: &PeerHello) -> bool {
        match (peer.sp_id, &peer.name, self.zmtp) {
            (Some(id), _, _) => id == self.peer,
            (None, Some(name), Some((_, partners))) => partners.contains(&name.as_str()),
            _ => false,
        }
    }
}

/// Whether `send` and `recv` would succeed now: a level, not an edge.
///
/// It must be O(1) and exact: true exactly if the next call would not say "not now". Pollers spin on one
/// that is true too long, and hang on one that is false too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// `send` would take an item.
    pub send: bool,
    /// `recv` would give one.
    pub recv: bool,
}

/// Why [`Sends::send`] did not take an item. The item comes back.
#[non_exhaustive]
#[derive(PartialEq, Eq)]
pub enum Refused<T> {
    /// No room now; there may be later.
    NotNow(T),
    /// There is no peer, and the protocol was told to fail rather than wait.
    NoPeer(T),
    /// This item can never be sent; the text says why.
    Invalid(T, &'static str),
}

impl<T> Refused<T> {
    /// The item.
    pub fn into_inner(self) -> T {
        match self {
            Refused::NotNow(t) | Refused::NoPeer(t) | Refused::Invalid(t, _) => t,
        }
    }

    /// The item, and the reason alone.
    pub fn split(self) -> (T, Refused<()>) {
        match self {
            Refused::NotNow(t) => (t, Refused::NotNow(())),
            Refused::NoPeer(t) => (t, Refused::NoPeer(())),
            Refused::Invalid(t, why) => (t, Refused::Invalid((), why)),
        }
    }
}

impl Refused<()> {
    /// The reason, and the item again.
    pub(crate) fn of<T>(self, item: T) -> Refused<T> {
        match self {
            Refused::NotNow(()) => Refused::NotNow(item),
            Refused::NoPeer(()) => Refused::NoPeer(item),
            Refused::Invalid((), why) => Refused::Invalid(item, why),
        }
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotNow(_) => f.write_str("NotNow"),
            Refused::NoPeer(_) => f.write_str("NoPeer"),
            Refused::Invalid(_, why) => write!(f, "Invalid({why})"),
        }
    }
}

/// Why a protocol does not accept a pipe.
pub type Reject = Reason;

/// Names a timer of a protocol: a kind and a number of the protocol's choice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TimerKey(pub u32, pub u64);

/// Names one thing that somebody outside may wait for: a kind and a number of the protocol's choice.
///
/// The protocol says [`Cx::wake`] with it; callers wait with [`Socket::wait`](crate::Socket::wait).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WaitKey(pub u32, pub u64);

/// A scalability protocol: a state machine over pipes.
///
/// Every method is called under the socket's lock, never concurrently. None may block, do I/O, read a clock
/// or call user code. Three methods must be written; the rest have defaults.
///
/// A panic closes the socket, since its state is not to be trusted any more: who waits for it or calls it is told
/// `Closed`, its events end with [`Event::Panicked`](crate::Event::Panicked), other sockets are unharmed. If
/// that happens in a caller's thread, it unwinds there.
pub trait Protocol: Any + Send {
    /// Constant for the life of the protocol.
    fn info(&self) -> ProtocolInfo;

    /// A peer has attached: connected, and the handshake says it is a partner. `Err` refuses it; the pipe
    /// closes, an event tells why, and `pipe_closed` is *not* called.
    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject>;

    /// The pipe is gone; called once for each accepted pipe. [`Cx::take`] (whole messages that came before
    /// the end) and [`Cx::reclaim`] (what was not begun to be sent) still work, in this call only.
    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId);

    /// The peer has ended the connection, and messages from it are still pending, or may still be on their way
    /// in. `true`: the pipe stays, for receiving only, until they are taken (so what many short-lived peers sent is
    /// bounded by their pipes, as it was before); [`Cx::reclaim`] works in this call. `false`, the default: it
    /// closes, as soon as what is on its way in has come, as far as the queue has room.
    fn pipe_ended(&mut self, _cx: &mut Cx<'_>, _pipe: PipeId) -> bool {
        false
    }

    /// Messages were added to the pipe's inbound queue: once for each batch, and it may be spurious.
    ///
    /// A protocol that does not receive must take and drop them here ([`discard`]): a full queue stops
    /// reading the stream, and then even its end is not seen.
    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId);

    /// A `put` said [`Room::Full`] or was refused, and now half of the queue is free again, or 512 KiB. Or the application closes the
    /// pipe's endpoint: what is queued leaves, a further `put` says [`PutError::Gone`], and nobody is to wait for room.
    fn writable(&mut self, _cx: &mut Cx<'_>, _pipe: PipeId) {}

    /// A timer set by [`Cx::set_timer`] is due; it is no longer set.
    fn timer(&mut self, _cx: &mut Cx<'_>, _key: TimerKey) {}

    /// What `send` and `recv` would say now.
    fn readiness(&self) -> Readiness {
        Readiness::default()
    }

    /// Messages accepted from the application that are in no pipe yet: a close reports them as undelivered.
    fn held(&self) -> usize {
        0
    }

    /// The socket is closing: last words may be put, and pipes finished.
    fn closing(&mut self, _cx: &mut Cx<'_>) {}

    /// An out-of-band word of the peer's wire (a ZMTP subscription). SP has none.
    fn control(&mut self, _cx: &mut Cx<'_>, _pipe: PipeId, _control: Control<'_>) {}
}

/// A protocol whose socket sends.
pub trait Sends: Protocol {
    /// What is sent: [`Message`] for most.
    type Item: Send;
    /// Takes the item, or gives it back with the reason. Never waits.
    fn send(&mut self, cx: &mut Cx<'_>, item: Self::Item) -> Result<(), Refused<Self::Item>>;

    /// Takes the item out of `held`, or leaves it there and says why. The same as [`send`](Sends::send); worth writing where the
    /// item need not be moved, which costs more than to encode a small message.
    ///
    /// # Errors
    /// Why what is held was not taken.
    #[inline]
    fn send_held(&mut self, cx: &mut Cx<'_>, held: &mut Option<Self::Item>) -> Result<(), Refused<()>> {
        let Some(item) = held.take() else { return Ok(()) };
        self.send(cx, item).map_err(|refused| {
            let (item, why) = refused.split();
            *held = Some(item);
            why
        })
    }

    /// Takes items from the front of `items` until there are none, or one is refused: it stays in front, and this says why.
    /// The same as so many calls of [`send`](Sends::send); worth writing where many cost less together.
    ///
    /// # Errors
    /// Why the item that is in front now was not taken.
    fn send_many(&mut self, cx: &mut Cx<'_>, items: &mut VecDeque<Self::Item>) -> Result<(), Refused<()>> {
        while let Some(item) = items.pop_front() {
            if let Err(refused) = self.send(cx, item) {
                let (item, why) = refused.split();
                items.push_front(item);
                return Err(why);
            }
        }
        Ok(())
    }
}

/// A protocol whose socket receives.
pub trait Receives: Protocol {
    /// What is received: [`Message`] for most; a request with its way back for rep.
    type Item: Send;
    /// The next item, if there is one. Never waits.
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Self::Item>;

    /// Appends what is there to `into`, `max` items at most. The same as so many calls of [`recv`](Receives::recv); worth
    /// writing where many cost less together.
    fn recv_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Self::Item>, max: usize) {
        into.extend(std::iter::from_fn(|| self.recv(cx)).take(max));
    }
}

/// Takes and drops all that a peer sent to a socket that does not receive, counting it.
pub fn discard(cx: &mut Cx<'_>, pipe: PipeId) {
    while cx.take(pipe).is_some() {
        cx.dropped(Some(pipe), DropReason::Unexpected);
    }
}

/// In [`Protocol::pipe_closed`]: counts what the dead pipe had not begun to send as dropped.
pub fn write_off(cx: &mut Cx<'_>, pipe: PipeId) {
    while cx.reclaim(pipe).is_some() {
        cx.dropped(Some(pipe), DropReason::PipeClosed);
    }
}

/// Moves the stack of words at the front of a received message into its header: words with the top bit
/// clear, then one with it set, which is returned. At most `ttl` words, that one included (SP request/reply
/// RFC; nanomsg `rep.c`).
///
/// # Errors
/// [`DropReason::Malformed`] when the message ends first, [`DropReason::Ttl`] when there are more words.
pub fn split_stack(msg: &mut Message, ttl: u8) -> Result<u32, DropReason> {
    let mut last = msg.header().last();
    let mut count = msg.header_len();
    loop {
        if count > usize::from(ttl) {
            return Err(DropReason::Ttl);
        }
        match last {
            Some(word) if word & 0x8000_0000 != 0 => return Ok(word),
            _ => {}
        }
        last = Some(msg.shift_word().ok_or(DropReason::Malformed)?);
        count += 1;
    }
}

/// Whether two sockets may be joined by a device: both keep what must be passed on, and each one's partner
/// is the other.
pub fn may_forward(a: &ProtocolInfo, b: &ProtocolInfo) -> bool {
    a.forwardable && b.forwardable && a.peer == b.id && b.peer == a.id
}
