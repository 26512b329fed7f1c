//! Pipes as a socket keeps them: what names one, what is known of it, its queues and its counts.
//!
//! Owns: the table of pipes, and what one holds and may hold. Never: writes or reads a connection (the engine's),
//! or decides for whom a message is (a protocol's).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::{DropCounts, Effects, Reason, Room};
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
    /// More is about to follow.
    pub(crate) expects: bool,
    /// Why it closes once what is queued has left. This and the next two are boxed: most pipes never have any.
    pub(crate) finishing: Option<Box<Reason>>,
    /// The peer has gone; the pipe lives until what it sent is taken.
    pub(crate) ended: Option<Box<Reason>>,
    /// A write failed, and why: nothing is written any more, and what the peer sent before may still be on its way
    /// in.
    pub(crate) unread: Option<Box<Reason>>,
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
    pub(super) fn sends(&self) -> bool {
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
    pub(super) fn push(&mut self, msg: Message, dirty: &mut Vec<PipeId>) -> Room {
        let size = msg.wire_len();
        self.out.push(msg);
        self.pushed(1, size, dirty)
    }

    #[inline]
    pub(super) fn push_held(&mut self, held: &mut Option<Message>, dirty: &mut Vec<PipeId>) -> Room {
        let Some(size) = held.as_ref().map(Message::wire_len) else { return Room::More };
        self.out.push_held(held);
        self.pushed(1, size, dirty)
    }

    /// As many of `msgs` as there is room for, `max` at most.
    pub(super) fn push_many(
        &mut self,
        msgs: &mut VecDeque<Message>,
        max: usize,
        dirty: &mut Vec<PipeId>,
    ) -> Room {
        if self.out_full() {
            self.was_full.get_or_insert(self.out.bytes() + self.taken_bytes);
            return Room::Full;
        }
        let limit = self.info.send_limit;
        let room = limit.max_messages().saturating_sub(self.out.len() + self.taken_messages);
        let bytes = limit.max_bytes().saturating_sub(self.out.bytes() + self.taken_bytes);
        match self.out.push_many(msgs, max.min(room), bytes) {
            (0, _) => Room::More, // nothing was asked for
            (n, size) => self.pushed(n, size, dirty),
        }
    }

    #[inline]
    pub(super) fn push_copy(&mut self, msg: &Message, dirty: &mut Vec<PipeId>) -> Room {
        self.out.push_copy(msg);
        self.pushed(1, msg.wire_len(), dirty)
    }

    /// So many messages, of so many bytes, were queued.
    #[inline]
    fn pushed(&mut self, messages: usize, size: usize, dirty: &mut Vec<PipeId>) -> Room {
        self.sent.0 += messages as u64;
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
    pub(super) fn taken(&mut self, fx: &mut Effects) {
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
            fx.closes.push((self.id, Reason::clone(why)));
        }
    }

    /// A message of `size` bytes that was queued will not leave here.
    pub(super) fn unsend(&mut self, size: usize) {
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
            expects: false,
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

    /// The live pipe with this channel word.
    pub(super) fn find(&self, word: u32) -> Option<PipeId> {
        self.by_word.get(&word).copied()
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
