//! Receiving from all peers in turn.
//!
//! Messages stay in their pipes, where they are bounded and hold the peer back; this knows whose turn it is:
//! priorities first (1 before 16), round robin among equals (nanomsg `fq.c`). Whole messages that came
//! before a pipe's end are kept and delivered first, up to one pipe's bounds in all: otherwise peers that
//! connect, send and leave would fill the memory.
//!
//! Owns: the turn, and what dead pipes left. Never: empties a live pipe ahead of the application.

use super::{Cx, DropReason, Limit, PipeId, Ring, split_stack};
use crate::Message;
use crate::queue::Batch;

/// Where many are taken at a time and several peers have some, each has so many in its turn.
const TURN: usize = 16;

/// Fair queueing over pipes, for protocols that receive.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// Pipes with messages to take. Invariant: exactly those, so it is readiness, too.
    ring: Ring,
    left: Batch,
}

impl FairQueue {
    /// Messages arrived on `pipe`, or may have.
    pub fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        if cx.pending(pipe) > 0
            && let Some(priority) = cx.info(pipe).map(|info| info.recv_priority)
        {
            self.ring.insert(pipe, priority);
        }
    }

    /// `pipe` is gone: keeps what it brought, within its own inbound limit for all dead pipes together. The
    /// rest is dropped and counted.
    pub fn keep(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.ring.remove(pipe);
        let Some(limit) = cx.info(pipe).map(|info| info.recv_limit) else { return };
        while let Some(msg) = cx.take(pipe) {
            if limit.reached(self.left.len(), self.left.bytes) {
                cx.dropped(Some(pipe), DropReason::PipeClosed);
            } else {
                self.left.push(msg);
            }
        }
    }

    /// `pipe` is gone: what it brought is dropped and counted.
    pub fn drop_pipe(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.ring.remove(pipe);
        while cx.take(pipe).is_some() {
            cx.dropped(Some(pipe), DropReason::PipeClosed);
        }
    }

    /// The next message, and its pipe unless that is gone.
    #[inline]
    pub fn take(&mut self, cx: &mut Cx<'_>) -> Option<(Option<PipeId>, Message)> {
        if let Some(msg) = self.left.pop() {
            return Some((None, msg));
        }
        loop {
            let pipe = self.ring.front()?;
            let msg = cx.take(pipe);
            if cx.pending(pipe) == 0 {
                self.ring.remove(pipe);
            } else {
                self.ring.rotate(pipe);
            }
            if let Some(msg) = msg {
                return Some((Some(pipe), msg));
            }
        }
    }

    /// The next message, whoever sent it.
    #[inline]
    pub fn take_any(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        if !self.left.is_empty() {
            return self.left.pop();
        }
        loop {
            let pipe = self.ring.front()?;
            match cx.pending(pipe) {
                // Not so by the ring's invariant; to go on costs nothing.
                0 => {
                    self.ring.remove(pipe);
                    continue;
                }
                1 => self.ring.remove(pipe),
                _ => self.ring.rotate(pipe),
            }
            return cx.take(pipe);
        }
    }

    /// The next messages, whoever sent them, `max` at most. Several peers take turns of up to 16.
    pub fn take_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Message>, max: usize) {
        let full = into.len().saturating_add(max);
        while into.len() < full
            && let Some(msg) = self.left.pop()
        {
            into.push(msg);
        }
        while into.len() < full
            && let Some(pipe) = self.ring.front()
        {
            let most = if self.ring.len() > 1 { TURN } else { usize::MAX };
            cx.take_many(pipe, into, most.min(full - into.len()));
            if cx.pending(pipe) == 0 {
                self.ring.remove(pipe);
            } else {
                self.ring.rotate(pipe);
            }
        }
    }

    /// Moves all that waits and that `keep` says (or all of it) to the end of `into`, and drops the rest as filtered: if one
    /// peer has sent it all, and `into` stays within `limit`. Otherwise nothing is moved. Much cheaper than one by one.
    pub(super) fn take_all(
        &mut self,
        cx: &mut Cx<'_>,
        limit: Limit,
        into: &mut Batch,
        keep: Option<impl FnMut(&Message) -> bool>,
    ) {
        if let Some(pipe) = self.ring.front()
            && self.ring.len() == 1
            && self.left.is_empty()
            && cx.take_all(pipe, limit, into, keep)
        {
            self.ring.remove(pipe);
        }
    }

    /// The next message with a whole stack of at most `ttl` words in front ([`split_stack`]), which becomes
    /// its header. Others are dropped and counted.
    pub fn take_stacked(&mut self, cx: &mut Cx<'_>, ttl: u8) -> Option<(Option<PipeId>, Message)> {
        loop {
            let (pipe, mut msg) = self.take(cx)?;
            match split_stack(&mut msg, ttl) {
                Ok(_) => return Some((pipe, msg)),
                Err(why) => cx.dropped(pipe, why),
            }
        }
    }

    /// The same for many: the next ones, `max` at most, with their pipes. Several peers take turns of up to 16.
    pub(super) fn take_many_stacked(
        &mut self,
        cx: &mut Cx<'_>,
        ttl: u8,
        max: usize,
        mut each: impl FnMut(PipeId, Message),
    ) {
        let mut left = max;
        while left > 0
            && let Some(pipe) = self.ring.front()
        {
            let before = left;
            let most = if self.ring.len() > 1 { left.min(TURN) } else { left };
            while before - left < most
                && let Some(mut msg) = cx.take(pipe)
            {
                match split_stack(&mut msg, ttl) {
                    Ok(_) => {
                        left -= 1;
                        each(pipe, msg);
                    }
                    Err(why) => cx.dropped(Some(pipe), why),
                }
            }
            if cx.pending(pipe) == 0 {
                self.ring.remove(pipe);
            } else {
                self.ring.rotate(pipe);
            }
        }
    }

    /// Whether there is nothing to take.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.left.is_empty()
    }
}
