//! The only thing that a protocol can touch: its pipes, its timers, and what it wants to be told outside.
//!
//! [`Cx`] is a concrete struct over the real queues. Engine and test script share it, so a protocol that
//! passes its script runs the same code in a socket, and methods can be added without breaking anybody.
//!
//! Owns: the pipe table and the effects of one call. Never: carries effects out; a pipe that a protocol
//! closes is closed after the call has returned.

mod effects;
mod outcome;
mod pipe;
mod reason;
#[cfg(test)]
mod tests;

pub(crate) use effects::{Clock, Effects};
pub use outcome::{Control, Offered, Overflow, PutError, Room};
pub(crate) use pipe::{Pipe, Pipes};
pub use pipe::{PipeId, PipeInfo};
use reason::DropCounts;
pub use reason::{DropReason, Reason};

use std::collections::VecDeque;

use super::{Time, TimerKey, WaitKey};
use crate::Message;
use crate::queue::{Batch, Limit};

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
    #[inline]
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
        self.pipes.find(word)
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

    /// Moves all that arrived on `pipe` and that `keep` says (or all of it) to the end of `into`, if that stays within `limit`, and drops
    /// the rest as filtered. `false`: it did nothing.
    pub(super) fn take_all(
        &mut self,
        pipe: PipeId,
        limit: Limit,
        into: &mut Batch,
        keep: Option<impl FnMut(&Message) -> bool>,
    ) -> bool {
        let Some(p) = self.pipes.get_mut(pipe) else { return false };
        if p.inq.len() + into.len() > limit.max_messages() || p.inq.bytes + into.bytes > limit.max_bytes() {
            return false;
        }
        let filtered = keep.map_or(0, |keep| p.inq.retain(keep));
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

    /// Queues the message that is held, if there is room: then none is held any more. The same as [`put`](Cx::put), without
    /// moving it. [`Room::Full`]: there is no room for another, or the pipe is closed or closing.
    #[inline]
    pub fn put_held(&mut self, pipe: PipeId, held: &mut Option<Message>) -> Room {
        let Some(p) = self.pipes.get_mut(pipe).filter(|p| p.sends()) else { return Room::Full };
        if p.out_full() {
            p.was_full.get_or_insert(p.out.bytes() + p.taken_bytes);
            return Room::Full;
        }
        p.push_held(held, &mut self.fx.dirty)
    }

    /// Queues the first of `msgs`, `max` at most, as far as there is room; what did not find any stays in `msgs`.
    /// [`Room::Full`]: there is no room for more, as after [`put`](Cx::put), or the pipe is closed or closing.
    pub fn put_many(&mut self, pipe: PipeId, msgs: &mut VecDeque<Message>, max: usize) -> Room {
        let Some(p) = self.pipes.get_mut(pipe).filter(|p| p.sends()) else { return Room::Full };
        p.push_many(msgs, max, &mut self.fx.dirty)
    }

    /// Queues a copy of a message for the peer. Cheaper than [`put`](Cx::put) of a clone where the wire says how to frame
    /// messages. `None`: the queue is full, or the pipe closed or closing.
    #[inline]
    pub fn put_copy(&mut self, pipe: PipeId, msg: &Message) -> Option<Room> {
        let p = self.pipes.get_mut(pipe).filter(|p| p.sends())?;
        if p.out_full() {
            p.was_full.get_or_insert(p.out.bytes() + p.taken_bytes);
            return None;
        }
        Some(p.push_copy(msg, &mut self.fx.dirty))
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

    /// Says that more is about to follow what was just queued on `pipe`, since what it answers is at hand. Then it may be
    /// gathered with that, if so it was a moment ago; who answers slowly is not held up by it.
    #[inline]
    pub fn expect_more(&mut self, pipe: PipeId) {
        if let Some(p) = self.pipes.get_mut(pipe) {
            p.expects = p.dirty; // else there is nothing to decide
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
            p.finishing = Some(Box::new(why));
            if !p.dirty {
                p.dirty = true;
                self.fx.dirty.push(pipe);
            }
        }
    }

    /// Sets or moves a timer.
    #[inline]
    pub fn set_timer(&mut self, key: TimerKey, at: Time) {
        self.fx.timers.set(key, at);
    }

    /// Sets or moves a timer that may be late by a few milliseconds: nobody is woken to take notice of it where the
    /// socket was just used and is looked at soon in any case. For what is most often done, and the timer cleared, by
    /// the caller who comes back.
    #[inline]
    pub fn set_timer_lazily(&mut self, key: TimerKey, at: Time) {
        self.fx.timers.set_lazily(key, at);
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
