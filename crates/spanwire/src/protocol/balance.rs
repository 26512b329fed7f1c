//! Sending each message to one peer: the next in turn that has room.
//!
//! Priorities first (1 before 16), round robin among equals (nanomsg `lb.c`). What a dead pipe had not begun
//! to send comes back and goes to other peers before anything newer.
//!
//! Owns: the turn, and what came back. Never: holds a message that the application could still hold: while
//! something waits here, nothing is taken.

use std::collections::VecDeque;

use super::{Cx, PipeId, Ring, Room};
use crate::Message;

/// Load balancing over pipes, for protocols that send to one peer at a time.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    /// Pipes with room. One that is full loses its turn until `writable`.
    ring: Ring,
    /// Taken back from dead pipes, oldest first. Invariant: not empty only while `ring` is, so that nothing
    /// newer overtakes it.
    stash: VecDeque<Message>,
}

impl Balance {
    /// Looks whether the pipe has room: call it when it opened and when it is `writable`.
    pub fn ready(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(priority) = cx.info(pipe).map(|info| info.send_priority) else { return };
        if cx.has_room(pipe) {
            self.ring.insert(pipe, priority);
        } else {
            self.ring.remove(pipe);
        }
        while let Some(msg) = self.stash.pop_front() {
            if let Err(msg) = self.send(cx, msg) {
                self.stash.push_front(msg);
                break;
            }
        }
        if self.stash.is_empty() {
            self.stash = VecDeque::new();
        }
    }

    /// The pipe is gone; what it had not begun to send is sent to others, or waits for one.
    pub fn reroute(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.ring.remove(pipe);
        // What comes back is older than what waits: a pipe gets the stash from the front.
        let mut back: VecDeque<Message> = std::iter::from_fn(|| cx.reclaim(pipe)).collect();
        back.append(&mut self.stash);
        while let Some(msg) = back.pop_front() {
            if let Err(msg) = self.send(cx, msg) {
                back.push_front(msg);
                break;
            }
        }
        self.stash = back;
    }

    /// The pipe is gone, and nothing is to be sent again.
    pub fn remove(&mut self, pipe: PipeId) {
        self.ring.remove(pipe);
    }

    /// Sends `msg` to the next in turn; says to whom.
    ///
    /// # Errors
    /// The message, when nobody has room.
    #[inline]
    pub fn send(&mut self, cx: &mut Cx<'_>, mut msg: Message) -> Result<PipeId, Message> {
        while let Some(pipe) = self.ring.front() {
            match cx.put(pipe, msg) {
                Ok(Room::More) => {
                    self.ring.rotate(pipe);
                    return Ok(pipe);
                }
                Ok(Room::Full) => {
                    self.ring.remove(pipe);
                    return Ok(pipe);
                }
                Err(refused) => {
                    self.ring.remove(pipe);
                    msg = refused.into_message();
                }
            }
        }
        Err(msg)
    }

    /// Sends what is held to the next in turn, if somebody has room; then nothing is held any more. The same as
    /// [`send`](Balance::send), without moving the message.
    #[inline]
    pub fn send_held(&mut self, cx: &mut Cx<'_>, held: &mut Option<Message>) {
        while let Some(pipe) = self.ring.front()
            && held.is_some()
        {
            match cx.put_held(pipe, held) {
                Room::More => self.ring.rotate(pipe),
                Room::Full => self.ring.remove(pipe),
            }
        }
    }

    /// Sends from the front of `msgs` as many as there is room for. Several peers get runs of about as many in turn, instead
    /// of one in turn each.
    pub fn send_many(&mut self, cx: &mut Cx<'_>, msgs: &mut VecDeque<Message>) {
        let run = msgs.len().div_ceil(self.ring.in_turn().max(1));
        while let Some(pipe) = self.ring.front()
            && !msgs.is_empty()
        {
            match cx.put_many(pipe, msgs, run) {
                Room::More => self.ring.rotate(pipe),
                Room::Full => self.ring.remove(pipe),
            }
        }
    }

    /// Sends a copy of `msg` to the next in turn; says to whom. `None`: nobody has room.
    #[inline]
    pub fn send_copy(&mut self, cx: &mut Cx<'_>, msg: &Message) -> Option<PipeId> {
        while let Some(pipe) = self.ring.front() {
            match cx.put_copy(pipe, msg) {
                Some(Room::More) => {
                    self.ring.rotate(pipe);
                    return Some(pipe);
                }
                Some(Room::Full) => {
                    self.ring.remove(pipe);
                    return Some(pipe);
                }
                None => self.ring.remove(pipe),
            }
        }
        None
    }

    /// Whether [`send`](Balance::send) would take a message.
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Messages that came back and wait for a peer.
    pub fn held(&self) -> usize {
        self.stash.len()
    }
}
