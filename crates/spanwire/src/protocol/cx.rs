//! The only thing that a protocol can touch: its pipes, its timers, and what it wants to be told outside.
//!
//! [`Cx`] is a concrete struct over the real queues. Engine and test script share it, so a protocol that
//! passes its script runs the same code in a socket, and methods can be added without breaking anybody.
//!
//! Owns: the pipe table and the effects of one call. Never: carries effects out; a pipe that a protocol
//! closes is closed after the call has returned.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use super::{Time, TimerKey, WaitKey};
use crate::Message;
use crate::engine::Tx;
use crate::queue::{Batch, Limit, Outbound};
use crate::transport::Facts;

/// A pipe: one connection to one peer, as a protocol sees it.
///
/// The slot is reused; the word is not (for two thousand million pipes of a socket), so an id that outlived
/// its pipe finds nothing. The word is 31 bits and never 0: it is also the channel word of an SP backtrace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PipeId {
    slot: u32,
    word: u32,
}

impl PipeId {
    pub(crate) fn new(slot: u32, word: u32) -> Self {
        PipeId { slot, word }
    }
    /// Index for a table of one entry a pipe.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
    /// The channel word: 31 bits, not 0.
    pub fn word(self) -> u32 {
        self.word
    }
}

impl fmt::Debug for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PipeId({}#{:x})", self.slot, self.word)
    }
}

impl fmt::Display for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.word)
    }
}

/// Why a pipe was closed or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The peer ended the connection.
    Peer,
    /// The connection broke; the text is the system's.
    Broken(String),
    /// The peer did not finish its handshake in time.
    HandshakeTimeout,
    /// The peer's handshake is not that of this wire.
    BadHandshake,
    /// The peer speaks another protocol: its SP id, or its name.
    Mismatch(String),
    /// A frame was larger than `recv_max_size`.
    TooBig {
        /// Size that the peer announced, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A frame that the wire does not know.
    BadFrame(&'static str),
    /// This socket already has its peer (pair).
    Busy,
    /// The peer takes too slowly, and the socket was told to disconnect such ones.
    Slow,
    /// The peer sent what its protocol does not allow.
    Malformed,
    /// The application refused the peer.
    Denied(String),
    /// A reason of a protocol's own.
    Protocol(&'static str),
    /// This side closed the endpoint or the socket.
    Local,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Peer => f.write_str("closed by the peer"),
            Reason::Broken(why) => write!(f, "connection broken: {why}"),
            Reason::HandshakeTimeout => f.write_str("handshake not finished in time"),
            Reason::BadHandshake => f.write_str("not the handshake of this wire"),
            Reason::Mismatch(peer) => write!(f, "peer is no partner: {peer}"),
            Reason::TooBig { size, limit } => {
                write!(f, "frame of {size} bytes is over the limit of {limit} (recv_max_size)")
            }
            Reason::BadFrame(why) => write!(f, "bad frame: {why}"),
            Reason::Busy => f.write_str("busy: the socket has its peer"),
            Reason::Slow => f.write_str("peer too slow"),
            Reason::Malformed => f.write_str("malformed message"),
            Reason::Denied(why) => write!(f, "refused by the application: {why}"),
            Reason::Protocol(why) => f.write_str(why),
            Reason::Local => f.write_str("closed by this side"),
        }
    }
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// The queue was full and the new message gave way.
    Newest,
    /// The queue was full and the oldest message gave way.
    Oldest,
    /// A newer message took its place (keep-latest).
    Replaced,
    /// A reply whose connection is gone, or a channel word that names none.
    Unroutable,
    /// There was no peer.
    NoPeer,
    /// Larger than `recv_max_size`: its connection was closed.
    TooBig,
    /// Passed more devices than the TTL allows.
    Ttl,
    /// Not what the protocol's messages look like.
    Malformed,
    /// A reply to a request that has ended.
    Late,
    /// Matches no subscription.
    Filtered,
    /// Sent to a socket that does not receive.
    Unexpected,
    /// The pipe closed before the message was sent or received.
    PipeClosed,
    /// A reason of a protocol's own.
    Own(&'static str),
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropReason::Newest => "newest",
            DropReason::Oldest => "oldest",
            DropReason::Replaced => "replaced",
            DropReason::Unroutable => "unroutable",
            DropReason::NoPeer => "no-peer",
            DropReason::TooBig => "too-big",
            DropReason::Ttl => "ttl",
            DropReason::Malformed => "malformed",
            DropReason::Late => "late",
            DropReason::Filtered => "filtered",
            DropReason::Unexpected => "unexpected",
            DropReason::PipeClosed => "pipe-closed",
            DropReason::Own(why) => why,
        })
    }
}

/// What a protocol may know about a pipe.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipeInfo {
    /// Priority for sending, 1 (first) to 16; default 8. Of the endpoint.
    pub send_priority: u8,
    /// Priority for receiving, 1 (first) to 16; default 8. Of the endpoint.
    pub recv_priority: u8,
    /// The peer's SP id; 0 if its wire has none.
    pub peer_id: u16,
    /// Name of the wire: `sp`, or another's.
    pub wire: &'static str,
    /// Addresses, credentials: what the transport knows of the peer.
    pub facts: Arc<Facts>,
    /// Number of the endpoint within its socket.
    pub endpoint: u32,
    /// Whether this side dialled.
    pub dialed: bool,
    /// Bounds of the outbound queue.
    pub send_limit: Limit,
    /// Bounds of the inbound queue.
    pub recv_limit: Limit,
}

impl Default for PipeInfo {
    fn default() -> Self {
        PipeInfo {
            send_priority: 8,
            recv_priority: 8,
            peer_id: 0,
            wire: "sp",
            facts: Arc::new(Facts::default()),
            endpoint: 0,
            dialed: false,
            send_limit: Limit::DEFAULT,
            recv_limit: Limit::DEFAULT,
        }
    }
}

/// What [`Cx::put`] left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is room for more.
    More,
    /// That was the last that fits; [`Protocol::writable`](super::Protocol::writable) follows.
    Full,
}

/// Why [`Cx::put`] did not take a message. It comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum PutError {
    /// The queue is full; [`Protocol::writable`](super::Protocol::writable) follows.
    Full(Message),
    /// The pipe is closed or closing.
    Gone(Message),
}

impl PutError {
    /// The message.
    pub fn into_message(self) -> Message {
        match self {
            PutError::Full(msg) | PutError::Gone(msg) => msg,
        }
    }
}

/// What [`Cx::offer`] does when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// The new message is dropped.
    DropNewest,
    /// The oldest that the writer has not taken is dropped. If it has taken all, the new one waits behind them, one
    /// over the limit.
    DropOldest,
    /// All that the writer has not taken is dropped, full or not: the peer gets the newest, which may be one over
    /// the limit.
    KeepLatest,
    /// The peer is disconnected.
    Disconnect,
}

/// What [`Cx::offer`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// It is in the queue.
    Queued(Room),
    /// It was dropped, and counted; with [`Overflow::Disconnect`] the pipe closes, too.
    Dropped,
    /// The pipe is closed or closing.
    Gone,
}

/// An out-of-band word between a protocol and the peer's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control<'a> {
    /// The peer is to send, or wants, messages with this prefix.
    Subscribe(&'a [u8]),
    /// No longer.
    Cancel(&'a [u8]),
}

/// Counts by reason. A handful of reasons: a vector beats a map.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropCounts(Vec<(DropReason, u64)>);

impl DropCounts {
    fn add(&mut self, why: DropReason) -> u64 {
        match self.0.iter_mut().find(|(w, _)| *w == why) {
            Some((_, n)) => {
                *n += 1;
                *n
            }
            None => {
                self.0.push((why, 1));
                1
            }
        }
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// One pipe: queues, limits, counts, and the engine's writing state.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) id: PipeId,
    pub(crate) info: PipeInfo,
    pub(crate) inq: Batch,
    pub(crate) out: Outbound,
    /// What the writer has taken and not yet written counts towards the limits.
    pub(crate) taken_messages: usize,
    pub(crate) taken_bytes: usize,
    pub(crate) open: bool,
    /// The outbound queue is full, of so many bytes, and whoever waits is not told yet of room.
    pub(crate) was_full: Option<usize>,
    /// The inbound queue is full, of so many bytes, and nothing is read.
    pub(crate) stalled: Option<usize>,
    pub(crate) urgent: bool,
    pub(crate) dirty: bool,
    pub(crate) finishing: Option<Reason>,
    /// The peer has gone; the pipe lives until what it sent is taken.
    pub(crate) ended: Option<Reason>,
    /// A write failed, and why: nothing is written any more, and what the peer sent before may still be on its way
    /// in.
    pub(crate) unread: Option<Reason>,
    pub(crate) control: Vec<(bool, Vec<u8>)>,
    /// Whether the wire knows control words.
    pub(crate) has_control: bool,
    pub(crate) drops: DropCounts,
    pub(crate) sent: (u64, u64),
    pub(crate) received: (u64, u64),
    pub(crate) tx: Tx,
}

/// Of a script's pipe, which has no writer.
#[cfg(any(test, feature = "testkit"))]
impl Clone for Pipe {
    fn clone(&self) -> Self {
        Pipe {
            id: self.id,
            info: self.info.clone(),
            inq: self.inq.clone(),
            out: self.out.clone(),
            finishing: self.finishing.clone(),
            ended: self.ended.clone(),
            unread: self.unread.clone(),
            control: self.control.clone(),
            drops: self.drops.clone(),
            tx: Tx::default(),
            ..*self
        }
    }
}

impl Pipe {
    /// Whether nothing may be written: there is nobody to read it.
    #[inline]
    pub(crate) fn is_one_way(&self) -> bool {
        self.unread.is_some() || self.ended.is_some()
    }

    /// Whether anything may be put.
    #[inline]
    fn sends(&self) -> bool {
        self.open && self.finishing.is_none() && !self.is_one_way()
    }

    /// Whether a message was written in part.
    pub(crate) fn has_begun(&self) -> bool {
        self.tx.has_begun()
    }

    #[inline]
    pub(crate) fn out_full(&self) -> bool {
        self.info
            .send_limit
            .reached(self.out.len() + self.taken_messages, self.out.bytes() + self.taken_bytes)
    }

    #[inline]
    pub(crate) fn in_full(&self) -> bool {
        self.info.recv_limit.reached(self.inq.len(), self.inq.bytes)
    }

    #[inline]
    fn push(&mut self, msg: Message, dirty: &mut Vec<PipeId>) -> Room {
        let size = msg.wire_len();
        self.out.push(msg);
        self.pushed(size, dirty)
    }

    #[inline]
    fn push_copy(&mut self, msg: &Message, dirty: &mut Vec<PipeId>) -> Room {
        self.out.push_copy(msg);
        self.pushed(msg.wire_len(), dirty)
    }

    #[inline]
    fn pushed(&mut self, size: usize, dirty: &mut Vec<PipeId>) -> Room {
        self.sent.0 += 1;
        self.sent.1 += size as u64;
        let full = self.out_full();
        if full {
            self.was_full = Some(self.out.bytes() + self.taken_bytes);
        }
        if !self.dirty {
            if !full && !self.urgent && self.tx.gathers(&self.out, self.info.send_limit.max_messages()) {
                self.tx.appended = self.tx.appended.wrapping_add(1); // there is nothing to decide
            } else {
                self.dirty = true;
                dirty.push(self.id);
            }
        }
        if full { Room::Full } else { Room::More }
    }

    /// Messages were taken: a full queue may be read again, and the end of a peer that has gone be told.
    #[inline]
    fn taken(&mut self, fx: &mut Effects) {
        if let Some(full) = self.stalled
            && self.info.recv_limit.drained(self.inq.len(), self.inq.bytes, full)
        {
            self.stalled = None;
            fx.unstalled.push(self.id);
        }
        if self.inq.is_empty()
            && self.open
            && self.unread.is_none()
            && let Some(why) = &self.ended
        {
            self.open = false;
            fx.closes.push((self.id, why.clone()));
        }
    }

    /// A message of `size` bytes that was queued will not leave here.
    fn unsend(&mut self, size: usize) {
        self.sent.0 = self.sent.0.saturating_sub(1);
        self.sent.1 = self.sent.1.saturating_sub(size as u64);
    }

    /// Was full, and has drained far enough: the protocol is to be told, once.
    #[inline]
    pub(crate) fn room_again(&mut self) -> bool {
        let Some(full) = self.was_full else { return false };
        let (messages, bytes) = (self.out.len() + self.taken_messages, self.out.bytes() + self.taken_bytes);
        let room = self.info.send_limit.drained(messages, bytes, full);
        if room {
            self.was_full = None;
        }
        room
    }
}

/// The pipes of one socket.
#[derive(Debug, Default)]
#[cfg_attr(any(test, feature = "testkit"), derive(Clone))]
pub(crate) struct Pipes {
    slab: slab::Slab<Pipe>,
    by_word: HashMap<u32, PipeId>,
    next: u32,
}

impl Pipes {
    pub(crate) fn new(seed: u32) -> Self {
        Pipes { next: seed & 0x7fff_ffff, ..Pipes::default() }
    }

    pub(crate) fn open(&mut self, info: PipeInfo) -> PipeId {
        loop {
            self.next = (self.next + 1) & 0x7fff_ffff;
            if self.next != 0 && !self.by_word.contains_key(&self.next) {
                break;
            }
        }
        let entry = self.slab.vacant_entry();
        let id = PipeId::new(entry.key() as u32, self.next);
        self.by_word.insert(id.word, id);
        entry.insert(Pipe {
            id,
            info,
            inq: Batch::default(),
            out: Outbound::default(),
            taken_messages: 0,
            taken_bytes: 0,
            open: true,
            was_full: None,
            stalled: None,
            urgent: false,
            dirty: false,
            finishing: None,
            ended: None,
            unread: None,
            control: Vec::new(),
            has_control: false,
            drops: DropCounts::default(),
            sent: (0, 0),
            received: (0, 0),
            tx: Tx::default(),
        });
        id
    }

    pub(crate) fn remove(&mut self, id: PipeId) -> Option<Pipe> {
        self.get(id)?;
        self.by_word.remove(&id.word);
        let pipe = self.slab.try_remove(id.slot());
        if self.slab.is_empty() {
            self.slab.shrink_to_fit();
            self.by_word.shrink_to_fit();
        }
        pipe
    }

    #[inline]
    pub(crate) fn get(&self, id: PipeId) -> Option<&Pipe> {
        self.slab.get(id.slot()).filter(|p| p.id == id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: PipeId) -> Option<&mut Pipe> {
        self.slab.get_mut(id.slot()).filter(|p| p.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pipe> {
        self.slab.iter().map(|(_, p)| p)
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Those whose peers are there.
    pub(crate) fn live(&self) -> usize {
        self.iter().filter(|p| p.ended.is_none()).count()
    }

    pub(crate) fn ids(&self) -> Vec<PipeId> {
        self.slab.iter().map(|(_, p)| p.id).collect()
    }
}

/// Timers of one protocol: by key to change them, by time to find the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    /// A timer was set that is due before all others: whoever sleeps may have to be told.
    moved: bool,
    by_key: HashMap<TimerKey, Time>,
    by_time: BTreeSet<(Time, TimerKey)>,
}

impl Timers {
    fn set(&mut self, key: TimerKey, at: Time) {
        if let Some(old) = self.by_key.insert(key, at) {
            if old == at {
                return;
            }
            self.by_time.remove(&(old, key));
        }
        self.moved |= self.next().is_none_or(|first| at < first);
        self.by_time.insert((at, key));
    }
    #[inline]
    pub(crate) fn moved(&self) -> bool {
        self.moved
    }
    #[inline]
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }
    fn clear(&mut self, key: TimerKey) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }
    pub(crate) fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<TimerKey> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }
}

/// What calls into a protocol asked for; the engine or the script carries it out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    pub(crate) timers: Timers,
    pub(crate) wakes: Vec<WaitKey>,
    pub(crate) closes: Vec<(PipeId, Reason)>,
    /// Pipes with something new to send.
    pub(crate) dirty: Vec<PipeId>,
    /// Pipes that were full inbound and have drained far enough: they may be read again.
    pub(crate) unstalled: Vec<PipeId>,
    pub(crate) drops: DropCounts,
    /// Those among them that belong to no pipe.
    pub(crate) drops_of_none: DropCounts,
    /// Drop counts that reached a power of two: worth an event.
    pub(crate) drop_marks: Vec<(Option<PipeId>, DropReason, u64)>,
    pub(crate) own: Vec<(&'static str, u64)>,
    pub(crate) rng: u64,
}

/// The clock of a call: read at most once, and only if asked, since a read costs as much as a message.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The script's.
    #[cfg(any(test, feature = "testkit"))]
    At(Time),
    Lazy(Cell<Option<Time>>),
}

impl Clock {
    pub(crate) fn lazy() -> Self {
        Clock::Lazy(Cell::new(None))
    }
}

/// What a protocol acts through. Valid for one call.
#[derive(Debug)]
pub struct Cx<'a> {
    pub(crate) pipes: &'a mut Pipes,
    pub(crate) fx: &'a mut Effects,
    clock: Clock,
}

impl<'a> Cx<'a> {
    #[inline]
    pub(crate) fn new(pipes: &'a mut Pipes, fx: &'a mut Effects, clock: Clock) -> Self {
        Cx { pipes, fx, clock }
    }

    /// The time of this call: the same for all of it.
    pub fn now(&self) -> Time {
        match &self.clock {
            #[cfg(any(test, feature = "testkit"))]
            Clock::At(at) => *at,
            Clock::Lazy(read) => match read.get() {
                Some(at) => at,
                None => {
                    let at = Time::now();
                    read.set(Some(at));
                    at
                }
            },
        }
    }

    /// A random number, seeded by the socket (or the script), so that simulated runs repeat.
    pub fn random(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014): not for secrets.
        let seed = &mut self.fx.rng;
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Facts about a pipe; `None` when it is gone.
    pub fn info(&self, pipe: PipeId) -> Option<&PipeInfo> {
        self.pipes.get(pipe).map(|p| &p.info)
    }

    /// The live pipe with this channel word.
    pub fn find(&self, word: u32) -> Option<PipeId> {
        self.pipes.by_word.get(&word).copied()
    }

    /// Takes the next message that arrived on `pipe`.
    #[inline]
    pub fn take(&mut self, pipe: PipeId) -> Option<Message> {
        let p = self.pipes.get_mut(pipe)?;
        let msg = p.inq.pop();
        p.taken(self.fx);
        msg
    }

    /// Takes the next messages that arrived on `pipe`, `max` at most, and appends them to `into`.
    pub fn take_many(&mut self, pipe: PipeId, into: &mut Vec<Message>, max: usize) {
        if let Some(p) = self.pipes.get_mut(pipe) {
            p.inq.pop_many(into, max);
            p.taken(self.fx);
        }
    }

    /// Moves all that arrived on `pipe` and that `keep` says to the end of `into`, if that stays within `limit`, and drops
    /// the rest as filtered. `false`: it did nothing.
    pub(super) fn take_all(
        &mut self,
        pipe: PipeId,
        limit: Limit,
        into: &mut Batch,
        keep: impl FnMut(&Message) -> bool,
    ) -> bool {
        let Some(p) = self.pipes.get_mut(pipe) else { return false };
        if p.inq.len() + into.len() > limit.max_messages() || p.inq.bytes + into.bytes > limit.max_bytes() {
            return false;
        }
        let filtered = p.inq.retain(keep);
        into.append(&mut p.inq);
        p.taken(self.fx);
        (0..filtered).for_each(|_| self.dropped(Some(pipe), DropReason::Filtered));
        true
    }

    /// Looks at the next message that arrived on `pipe`.
    #[inline]
    pub fn peek(&self, pipe: PipeId) -> Option<&Message> {
        self.pipes.get(pipe)?.inq.messages.front()
    }

    /// How many messages have arrived on `pipe` and were not taken.
    #[inline]
    pub fn pending(&self, pipe: PipeId) -> usize {
        self.pipes.get(pipe).map_or(0, |p| p.inq.len())
    }

    /// Whether `put` would take a message now.
    #[inline]
    pub fn has_room(&self, pipe: PipeId) -> bool {
        self.pipes.get(pipe).is_some_and(|p| p.sends() && !p.out_full())
    }

    /// Messages and bytes (as framed) that are queued on `pipe` and not yet taken by its writer.
    pub fn unsent(&self, pipe: PipeId) -> (usize, usize) {
        self.pipes.get(pipe).map_or((0, 0), |p| (p.out.len(), p.out.bytes()))
    }

    /// Queues a message for the peer.
    ///
    /// # Errors
    /// [`PutError::Full`] and [`PutError::Gone`] give the message back.
    #[inline]
    pub fn put(&mut self, pipe: PipeId, msg: Message) -> Result<Room, PutError> {
        let Some(p) = self.pipes.get_mut(pipe) else { return Err(PutError::Gone(msg)) };
        if !p.sends() {
            return Err(PutError::Gone(msg));
        }
        if p.out_full() {
            p.was_full.get_or_insert(p.out.bytes() + p.taken_bytes);
            return Err(PutError::Full(msg));
        }
        Ok(p.push(msg, &mut self.fx.dirty))
    }

    /// Queues a copy of a message, or loses one as `overflow` says. Every loss is counted for the pipe.
    #[inline]
    pub fn offer(&mut self, pipe: PipeId, msg: &Message, overflow: Overflow) -> Offered {
        if overflow == Overflow::KeepLatest && self.pipes.get(pipe).is_some_and(Pipe::sends) {
            while self.evict(pipe, DropReason::Replaced).is_some() {}
        }
        let Some(p) = self.pipes.get_mut(pipe).filter(|p| p.sends()) else { return Offered::Gone };
        if p.out_full() {
            return self.offer_to_full(pipe, msg, overflow);
        }
        Offered::Queued(p.push_copy(msg, &mut self.fx.dirty))
    }

    #[cold]
    fn offer_to_full(&mut self, pipe: PipeId, msg: &Message, overflow: Overflow) -> Offered {
        loop {
            let Some(p) = self.pipes.get_mut(pipe) else { return Offered::Gone };
            p.was_full.get_or_insert(p.out.bytes() + p.taken_bytes);
            let evicts = matches!(overflow, Overflow::DropOldest | Overflow::KeepLatest);
            // All that fills the queue may be with the writer: then the newest waits behind it, one message more.
            if !p.out_full() || (evicts && p.out.is_empty()) {
                return Offered::Queued(p.push_copy(msg, &mut self.fx.dirty));
            }
            match overflow {
                Overflow::DropOldest if self.evict(pipe, DropReason::Oldest).is_some() => continue,
                Overflow::Disconnect => {
                    self.dropped(Some(pipe), DropReason::Newest);
                    self.close(pipe, Reason::Slow);
                }
                _ => self.dropped(Some(pipe), DropReason::Newest),
            }
            return Offered::Dropped;
        }
    }

    /// Drops the oldest message that the writer has not taken, counts it, and returns its size in bytes, header words
    /// counted, framing not.
    pub fn evict(&mut self, pipe: PipeId, why: DropReason) -> Option<usize> {
        let p = self.pipes.get_mut(pipe)?;
        let size = p.out.evict()?;
        p.unsend(size);
        self.dropped(Some(pipe), why);
        Some(size)
    }

    /// In [`Protocol::pipe_closed`](super::Protocol::pipe_closed) and
    /// [`Protocol::pipe_ended`](super::Protocol::pipe_ended): takes back a message that was not begun to be sent,
    /// oldest first. Header words are at the front of its body where the wire joins them.
    pub fn reclaim(&mut self, pipe: PipeId) -> Option<Message> {
        let p = self.pipes.get_mut(pipe)?;
        let msg = p.tx.reclaim().or_else(|| p.out.reclaim())?;
        p.unsend(msg.wire_len());
        Some(msg)
    }

    /// Lowers what `pipe` may queue; never raises it.
    pub fn limit_send(&mut self, pipe: PipeId, limit: Limit) {
        if let Some(p) = self.pipes.get_mut(pipe) {
            p.info.send_limit = p.info.send_limit.min(limit);
        }
    }

    /// Asks for what is queued on `pipe` to be written at once, and not to be gathered with what may follow.
    #[inline]
    pub fn flush_now(&mut self, pipe: PipeId) {
        if let Some(p) = self.pipes.get_mut(pipe) {
            p.urgent = true;
            if !p.dirty && !p.out.is_empty() {
                p.dirty = true;
                self.fx.dirty.push(pipe);
            }
        }
    }

    /// Gives a control word to the peer's wire. `false`: this wire has none (SP), and nothing is sent.
    pub fn control(&mut self, pipe: PipeId, control: Control<'_>) -> bool {
        let Some(p) = self.pipes.get_mut(pipe) else { return false };
        if !p.has_control || !p.open {
            return false;
        }
        p.control.push(match control {
            Control::Subscribe(topic) => (true, topic.to_vec()),
            Control::Cancel(topic) => (false, topic.to_vec()),
        });
        if !p.dirty {
            p.dirty = true;
            self.fx.dirty.push(pipe);
        }
        true
    }

    /// Closes `pipe`; what is queued on it is lost unless `pipe_closed`, which follows after this call has
    /// returned, takes it back.
    pub fn close(&mut self, pipe: PipeId, why: Reason) {
        if let Some(p) = self.pipes.get_mut(pipe)
            && p.open
        {
            p.open = false;
            self.fx.closes.push((pipe, why));
        }
    }

    /// Takes nothing more for `pipe`, lets what is queued leave, then closes it: for farewells.
    pub fn finish(&mut self, pipe: PipeId, why: Reason) {
        if let Some(p) = self.pipes.get_mut(pipe)
            && p.open
            && p.finishing.is_none()
        {
            p.finishing = Some(why);
            if !p.dirty {
                p.dirty = true;
                self.fx.dirty.push(pipe);
            }
        }
    }

    /// Sets or moves a timer.
    pub fn set_timer(&mut self, key: TimerKey, at: Time) {
        self.fx.timers.set(key, at);
    }

    /// Takes a timer away.
    pub fn clear_timer(&mut self, key: TimerKey) {
        self.fx.timers.clear(key);
    }

    /// Whoever waits for `key` is to look again.
    pub fn wake(&mut self, key: WaitKey) {
        self.fx.wakes.push(key);
    }

    /// Counts a dropped message, for `pipe` if it is known.
    pub fn dropped(&mut self, pipe: Option<PipeId>, why: DropReason) {
        self.fx.drops.add(why);
        let (pipe, count) = match pipe.and_then(|id| self.pipes.get_mut(id)) {
            Some(p) => (pipe, p.drops.add(why)),
            None => (None, self.fx.drops_of_none.add(why)),
        };
        // A message over the limit is told once, by the event of the connection that it cost.
        if count.is_power_of_two() && why != DropReason::TooBig {
            self.fx.drop_marks.push((pipe, why, count));
        }
    }

    /// Adds to a counter of the protocol's own; it shows in the socket's statistics.
    pub fn count(&mut self, name: &'static str, n: u64) {
        match self.fx.own.iter_mut().find(|(own, _)| *own == name) {
            Some((_, sum)) => *sum += n,
            None => self.fx.own.push((name, n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Frames;

    #[test]
    fn drops_of_no_pipe_are_told_by_their_own_count() {
        let (mut pipes, mut fx) = (Pipes::default(), Effects::default());
        let (a, gone) = (pipes.open(PipeInfo::default()), pipes.open(PipeInfo::default()));
        pipes.remove(gone);
        let mut cx = Cx::new(&mut pipes, &mut fx, Clock::lazy());
        let why = DropReason::Filtered;
        for pipe in [Some(a), Some(a), Some(a), Some(a), None, Some(gone), None, None] {
            cx.dropped(pipe, why);
        }
        let marks = [1, 2, 4].map(|n| (Some(a), why, n)).into_iter();
        assert_eq!(fx.drop_marks, marks.chain([1, 2, 4].map(|n| (None, why, n))).collect::<Vec<_>>());
        assert_eq!(fx.drops.iter().collect::<Vec<_>>(), [(why, 8)]);
    }

    #[test]
    fn a_message_that_is_evicted_or_taken_back_is_not_counted_as_sent() {
        for framed in [false, true] {
            let (mut pipes, mut fx) = (Pipes::default(), Effects::default());
            let a = pipes.open(PipeInfo::default());
            if framed {
                pipes.get_mut(a).expect("it is open").out = Outbound::Framed(Frames::new(b"\x01"));
            }
            let mut cx = Cx::new(&mut pipes, &mut fx, Clock::lazy());
            for size in [10, 20_000, 30, 40] {
                let mut msg = Message::from(vec![7; size]);
                msg.set_header(&[1, 2]);
                cx.put(a, msg).expect("room");
            }
            assert_eq!(cx.evict(a, DropReason::Oldest), Some(18), "framed: {framed}");
            assert_eq!(cx.evict(a, DropReason::Oldest), Some(20_008), "framed: {framed}");
            assert_eq!(cx.reclaim(a).map(|msg| msg.wire_len()), Some(38));
            assert_eq!(pipes.get(a).expect("it is open").sent, (1, 48), "framed: {framed}");
        }
    }
}
