//! The queues of a pipe: inbound messages, and outbound ones that no writer has taken yet.
//!
//! Both are bounded in messages *and* bytes. A queue takes a message while it is below both limits, so
//! "has room" never depends on the message; it may overshoot by one. Outbound messages are framed in place
//! when the wire says how ([`Frames`]: half the cost of queueing them first), else kept as messages.
//!
//! Owns: the bytes and counts. Never: I/O, waiting, or who is served next.

mod frames;
mod moves;

use std::collections::VecDeque;

pub(crate) use frames::{Frames, SEGMENTS};

use crate::Message;

/// Bounds of a queue. It takes a message while it is below both, so it overshoots by at most one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    messages: usize,
    bytes: usize,
}

impl Limit {
    /// Default: 1,000 messages, 8 MiB.
    pub const DEFAULT: Limit = Limit { messages: 1000, bytes: 8 << 20 };

    /// At most `n` messages (at least 1), and the default number of bytes.
    pub const fn messages(n: usize) -> Limit {
        Limit { messages: if n == 0 { 1 } else { n }, ..Self::DEFAULT }
    }

    /// At most `n` bytes (at least 1), and the default number of messages.
    pub const fn bytes(n: usize) -> Limit {
        Limit { bytes: if n == 0 { 1 } else { n }, ..Self::DEFAULT }
    }

    /// The same with at most `n` bytes.
    #[must_use]
    pub const fn and_bytes(self, n: usize) -> Limit {
        Limit { bytes: if n == 0 { 1 } else { n }, ..self }
    }

    /// The same with at most `n` messages.
    #[must_use]
    pub const fn and_messages(self, n: usize) -> Limit {
        Limit { messages: if n == 0 { 1 } else { n }, ..self }
    }

    /// The bound in messages.
    pub const fn max_messages(&self) -> usize {
        self.messages
    }

    /// The bound in bytes.
    pub const fn max_bytes(&self) -> usize {
        self.bytes
    }

    /// The lower of both bounds.
    #[must_use]
    pub fn min(self, other: Limit) -> Limit {
        Limit { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    #[inline]
    pub(crate) fn reached(&self, messages: usize, bytes: usize) -> bool {
        messages >= self.messages || bytes >= self.bytes
    }

    /// Whether a queue that was full with `full` bytes has drained so far that whoever waited for room is told,
    /// once for many messages: to half, or by [`STEP`] bytes. In a queue of large bodies half may be tens of
    /// megabytes: memory that would be given back and taken anew, cold, each time.
    #[inline]
    pub(crate) fn drained(&self, messages: usize, bytes: usize, full: usize) -> bool {
        let half = messages <= self.messages / 2 && bytes <= self.bytes / 2;
        half || (bytes.saturating_add(STEP) <= full && !self.reached(messages, bytes))
    }
}

/// Of a queue that was full, so many bytes must have left before it takes more; or half, if that is less.
const STEP: usize = 512 * 1024;

impl Default for Limit {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A queue that is empty keeps room for this many messages, as many small ones as one read may bring; what a backlog
/// took beyond that is given back.
const KEEP: usize = 16 * 1024;

/// Gives back what a backlog took, of a queue that is empty or almost.
#[cold]
pub(crate) fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > KEEP {
        queue.shrink_to(KEEP);
    }
}

/// Messages in order, with their bytes counted.
#[derive(Clone, Default)]
pub(crate) struct Batch {
    pub(crate) messages: VecDeque<Message>,
    pub(crate) bytes: usize,
}

impl Batch {
    #[inline]
    pub(crate) fn push(&mut self, msg: Message) {
        self.bytes += msg.wire_len();
        self.messages.push_back(msg);
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Message> {
        // Measured where it lies: a message that is looked at on the stack is copied in odd pieces.
        self.bytes -= self.messages.front()?.wire_len();
        if self.messages.len() == 1 && self.messages.capacity() > KEEP {
            give_back(&mut self.messages); // before the last one is out: what follows stays a plain move
        }
        self.messages.pop_front()
    }

    /// Moves all of `other` behind what is here.
    pub(crate) fn append(&mut self, other: &mut Batch) {
        if self.messages.is_empty() {
            std::mem::swap(&mut self.messages, &mut other.messages);
        } else {
            self.messages.append(&mut other.messages);
        }
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Drops all but those that `keep` says; returns how many.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Message) -> bool) -> usize {
        let before = self.messages.len();
        let mut gone = 0;
        self.messages.retain(|msg| {
            let keeps = keep(msg);
            gone += if keeps { 0 } else { msg.wire_len() };
            keeps
        });
        self.bytes -= gone;
        before - self.messages.len()
    }

    /// Moves the oldest, `max` at most, to the end of `into`.
    pub(crate) fn pop_many(&mut self, into: &mut Vec<Message>, max: usize) {
        let before = into.len();
        moves::front(&mut self.messages, into, max);
        self.bytes -= into[before..].iter().map(Message::wire_len).sum::<usize>();
        if self.messages.is_empty() {
            give_back(&mut self.messages);
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} messages, {} bytes)", self.messages.len(), self.bytes)
    }
}

/// Outbound messages that no writer has taken yet.
#[derive(Clone, Debug)]
pub(crate) enum Outbound {
    Framed(Frames),
    Messages(Batch),
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound::Messages(Batch::default())
    }
}

impl Outbound {
    #[inline]
    pub(crate) fn push(&mut self, msg: Message) {
        match self {
            Outbound::Framed(frames) => frames.push(&msg),
            Outbound::Messages(batch) => batch.push(msg),
        }
    }

    #[inline]
    pub(crate) fn push_held(&mut self, held: &mut Option<Message>) {
        match self {
            Outbound::Framed(frames) => {
                if let Some(msg) = held {
                    frames.push(msg);
                    *held = None;
                }
            }
            Outbound::Messages(batch) => {
                if let Some(msg) = held.take() {
                    batch.push(msg);
                }
            }
        }
    }

    /// Takes messages from the front of `from`, `max` at most, while those taken have fewer than `bytes` bytes as they are
    /// queued. Returns how many, and how many bytes they have without framing.
    pub(crate) fn push_many(
        &mut self,
        from: &mut VecDeque<Message>,
        max: usize,
        bytes: usize,
    ) -> (usize, usize) {
        let full = self.bytes().saturating_add(bytes);
        let (mut n, mut size) = (0, 0);
        match self {
            Outbound::Framed(frames) => {
                for msg in from.iter().take(max) {
                    if frames.bytes() >= full {
                        break;
                    }
                    size += msg.wire_len();
                    frames.push(msg);
                    n += 1;
                }
                from.drain(..n);
            }
            Outbound::Messages(batch) => {
                for len in from.iter().take(max).map(Message::wire_len) {
                    if batch.bytes + size >= full {
                        break;
                    }
                    size += len;
                    n += 1;
                }
                batch.bytes += size;
                if n == from.len() {
                    batch.messages.append(from);
                } else {
                    batch.messages.extend(from.drain(..n));
                }
            }
        }
        (n, size)
    }

    #[inline]
    pub(crate) fn push_copy(&mut self, msg: &Message) {
        match self {
            Outbound::Framed(frames) => frames.push(msg),
            Outbound::Messages(batch) => batch.push(msg.clone()),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Outbound::Framed(frames) => frames.len(),
            Outbound::Messages(batch) => batch.len(),
        }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Outbound::Framed(frames) => frames.bytes(),
            Outbound::Messages(batch) => batch.bytes,
        }
    }

    /// Bytes among them that are copied to be written, as against those that are held by reference.
    #[inline]
    pub(crate) fn copied(&self) -> usize {
        match self {
            Outbound::Framed(frames) => frames.copied(),
            Outbound::Messages(batch) => batch.bytes,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Outbound::Framed(frames) => frames.is_empty(),
            Outbound::Messages(batch) => batch.is_empty(),
        }
    }

    /// Gives the buffers of an empty queue back.
    pub(crate) fn release(&mut self) {
        match self {
            Outbound::Framed(frames) => frames.release(),
            Outbound::Messages(batch) if batch.is_empty() => *batch = Batch::default(),
            Outbound::Messages(_) => {}
        }
    }

    /// Whether it holds on to buffers.
    pub(crate) fn retains(&self) -> bool {
        match self {
            Outbound::Framed(frames) => frames.retains(),
            Outbound::Messages(batch) => batch.messages.capacity() > 64,
        }
    }

    /// Takes the oldest message out, to be sent elsewhere.
    pub(crate) fn reclaim(&mut self) -> Option<Message> {
        match self {
            Outbound::Framed(frames) => frames.reclaim(),
            Outbound::Messages(batch) => batch.pop(),
        }
    }

    /// Drops the oldest message; returns its size, framing not counted.
    pub(crate) fn evict(&mut self) -> Option<usize> {
        match self {
            Outbound::Framed(frames) => frames.evict(),
            Outbound::Messages(batch) => batch.pop().map(|m| m.wire_len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_at_half_or_after_a_step_and_never_while_there_is_none() {
        let few = Limit::messages(10);
        assert!(!few.drained(6, 600, 1000) && few.drained(5, 500, 1000));
        let large = Limit::messages(1000).and_bytes(1 << 30);
        let full = 1000 << 16;
        assert!(!large.drained(993, 993 << 16, full) && large.drained(992, 992 << 16, full));
        // The last message overshot the limit: what has left is a step, and yet the queue is full.
        let bytes = Limit::bytes(1 << 20);
        assert!(!bytes.drained(1, 1 << 20, 5 << 20) && bytes.drained(1, (1 << 20) - 1, 5 << 20));
    }
}
