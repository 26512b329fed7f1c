//! One direction of a connection: its queue, who takes from it and who puts into it.
//!
//! Owns: the bounds, and when the other side is told. Never: drops a message that found no room (it stays in the sender's
//! batch), or sums a batch while it holds the lock.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::link::Link;
use super::lock;
use crate::Message;
use crate::transport::{MessageReader, MessageWriter, Notifier};
use crate::wire::{Inbox, WireError};

/// Messages that one direction holds at most.
pub(super) const MAX_MESSAGES: usize = 1024;
/// Bytes, headers and bodies, that one direction holds at most; a larger message passes alone.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// A batch of no more messages is moved message by message, a larger one as a whole.
const COPIED: usize = 128;

/// One direction.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) queue: VecDeque<Message>,
    pub(super) bytes: usize,
    /// The largest that came since the queue was empty.
    largest: usize,
    /// The sender has something that did not fit.
    wants_room: bool,
    /// Nothing more will be sent.
    pub(super) ended: bool,
    /// Nothing more will be received.
    pub(super) deaf: bool,
}

impl Lane {
    /// Takes a whole batch at once, if there is room for all of it.
    fn take_batch(&mut self, batch: &mut VecDeque<Message>, bytes: usize, largest: usize) {
        if self.queue.len() + batch.len() > MAX_MESSAGES || self.bytes.saturating_add(bytes) > MAX_BYTES {
            return;
        }
        (self.bytes, self.largest) = (self.bytes + bytes, self.largest.max(largest));
        if batch.len() <= COPIED || !self.queue.is_empty() {
            // Its buffer stays with the sender: one that comes back from the receiver lies in the cache of another processor,
            // and each message put there waits for its place to come over.
            self.queue.append(batch);
        } else {
            std::mem::swap(&mut self.queue, batch);
        }
    }

    fn fits(&self, len: usize) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < MAX_MESSAGES && self.bytes.saturating_add(len) <= MAX_BYTES)
    }
}

/// Takes from the peer's lane.
pub(super) struct Reader {
    pub(super) link: Arc<Link>,
    pub(super) side: usize,
    pub(super) peer: Notifier,
    pub(super) max: usize,
}

impl MessageReader for Reader {
    fn recv(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        let (result, room) = {
            let mut lane = lock(&self.link.lanes[1 - self.side]);
            let before = lane.queue.len();
            let mut too_big = None;
            if lane.largest <= self.max {
                let bytes = lane.bytes;
                if inbox.take_all(&mut lane.queue, bytes) {
                    lane.bytes = 0;
                }
            }
            while inbox.wants_more() {
                // One over the limit stays where it is: the pipe is at its end, whoever asks again.
                let len = match lane.queue.front().map(Message::wire_len) {
                    Some(len) if len > self.max => {
                        too_big = Some(WireError::TooBig { size: len as u64, limit: self.max });
                        break;
                    }
                    Some(len) => len,
                    None => break,
                };
                if let Some(msg) = lane.queue.pop_front() {
                    lane.bytes -= len;
                    inbox.push(msg);
                }
            }
            let left = lane.queue.len();
            if left == 0 {
                lane.largest = 0;
            }
            let result = match too_big {
                Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                None if left == 0 && lane.ended => Err(io::ErrorKind::UnexpectedEof.into()),
                None => Ok(left == 0),
            };
            // Not at the first free place: the sender would be called for each message.
            let room =
                lane.wants_room && left < before && left <= MAX_MESSAGES / 2 && lane.bytes <= MAX_BYTES / 2;
            if room {
                lane.wants_room = false;
            }
            (result, room)
        };
        if room {
            self.peer.notify();
        }
        result
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.link.is_inherited() {
            self.link.deafen(self.side);
            self.peer.notify();
        }
    }
}

/// Puts into its own lane.
pub(super) struct Writer {
    pub(super) link: Arc<Link>,
    pub(super) side: usize,
    pub(super) peer: Notifier,
}

impl MessageWriter for Writer {
    fn send(&mut self, batch: &mut VecDeque<Message>) -> io::Result<bool> {
        // Summed before the lock is taken: the reader must not wait for that.
        // More than fit go one by one, as far as they fit; a long backlog is not summed again at each call.
        let (bytes, largest) = batch
            .iter()
            .take(MAX_MESSAGES + 1)
            .map(Message::wire_len)
            .fold((0usize, 0), |(sum, most), len| (sum.saturating_add(len), len.max(most)));
        let (tell, behind) = {
            let mut lane = lock(&self.link.lanes[self.side]);
            if lane.deaf || lane.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let was_empty = lane.queue.is_empty();
            lane.take_batch(batch, bytes, largest);
            while let Some(len) = batch.front().map(Message::wire_len).filter(|len| lane.fits(*len)) {
                lane.bytes = lane.bytes.saturating_add(len);
                lane.largest = lane.largest.max(len);
                lane.queue.extend(batch.pop_front());
            }
            lane.wants_room = !batch.is_empty();
            (was_empty && !lane.queue.is_empty(), !was_empty)
        };
        if tell {
            self.peer.notify();
        }
        Ok(behind)
    }

    fn shutdown(&mut self) -> io::Result<bool> {
        self.link.end(self.side);
        self.peer.notify();
        Ok(true)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.link.is_inherited() {
            self.link.end(self.side);
            self.peer.notify();
        }
    }
}
