//! A protocol driven by hand: its real [`Cx`] and queues, with no socket, no thread, no clock.
//!
//! A test opens pipes, lets messages arrive, drains what was sent, and moves the clock. Re-exported by the
//! crate `spanwire-testkit`; it lives here because unit tests of `spanwire` that used the testkit would see
//! two different `spanwire` crates.

use std::time::Duration;

use super::{
    Clock, Cx, DropReason, Effects, PipeId, PipeInfo, Pipes, Protocol, Readiness, Reason, Receives, Refused,
    Reject, Sends, Time, WaitKey,
};
use crate::Message;
use crate::queue::Limit;

/// A protocol with its pipes and no I/O. A clone goes on from the same state: to try what else might have happened.
#[derive(Clone, Debug)]
pub struct Script<P> {
    /// The protocol; its own methods are called through [`call`](Script::call) where they need a `Cx`.
    pub protocol: P,
    /// Pipes that were closed, with the reason, in order.
    pub closed: Vec<(PipeId, Reason)>,
    pipes: Pipes,
    fx: Effects,
    now: Time,
}

impl<P: Protocol> Script<P> {
    /// Starts `protocol` at time zero, with seed 0.
    pub fn new(protocol: P) -> Self {
        Self::seeded(protocol, 0)
    }

    /// Starts `protocol` at time zero; `seed` is for [`Cx::random`].
    pub fn seeded(protocol: P, seed: u64) -> Self {
        let fx = Effects { rng: seed, ..Effects::default() };
        Script { protocol, closed: Vec::new(), pipes: Pipes::default(), fx, now: Time::ZERO }
    }

    fn raw<R>(&mut self, f: impl FnOnce(&mut P, &mut Cx<'_>) -> R) -> R {
        f(&mut self.protocol, &mut Cx::new(&mut self.pipes, &mut self.fx, Clock::At(self.now)))
    }

    /// Any call into the protocol, as [`Socket::with`](crate::Socket::with) does it: pipes that it closes are closed after it
    /// returned.
    pub fn call<R>(&mut self, f: impl FnOnce(&mut P, &mut Cx<'_>) -> R) -> R {
        let result = self.raw(f);
        while !self.fx.closes.is_empty() {
            let (id, why) = self.fx.closes.remove(0);
            self.raw(|p, cx| p.pipe_closed(cx, id));
            let left = self.pipes.remove(id).map_or(0, |p| p.out.len() + p.inq.len());
            for _ in 0..left {
                self.raw(|_, cx| cx.dropped(None, DropReason::PipeClosed));
            }
            self.closed.push((id, why));
        }
        for id in std::mem::take(&mut self.fx.dirty) {
            if let Some(p) = self.pipes.get_mut(id) {
                p.dirty = false;
            }
            self.close_finished(id);
        }
        result
    }

    fn close_finished(&mut self, id: PipeId) {
        if let Some(p) = self.pipes.get(id)
            && let (Some(why), true) = (p.finishing.clone(), p.out.is_empty())
        {
            self.call(|_, cx| cx.close(id, *why));
        }
    }

    /// A peer attaches, with room for `n` messages each way.
    ///
    /// # Panics
    /// When the protocol refuses it; use [`open_with`](Script::open_with) to see the reason.
    #[track_caller]
    pub fn open(&mut self, n: usize) -> PipeId {
        let limit = Limit::messages(n);
        let info = PipeInfo { send_limit: limit, recv_limit: limit, ..PipeInfo::default() };
        self.open_with(info).expect("the protocol accepts the pipe")
    }

    /// A peer attaches.
    ///
    /// # Errors
    /// The protocol's reason for refusing it.
    pub fn open_with(&mut self, info: PipeInfo) -> Result<PipeId, Reject> {
        let id = self.pipes.open(info);
        match self.call(|p, cx| p.pipe_opened(cx, id)) {
            Ok(()) => Ok(id),
            Err(why) => {
                self.pipes.remove(id);
                Err(why)
            }
        }
    }

    /// The application closes the endpoint of `pipe`: once what is queued has left, it closes.
    pub fn finish(&mut self, pipe: PipeId) {
        self.call(|p, cx| {
            cx.finish(pipe, Reason::Local);
            p.writable(cx, pipe);
        });
    }

    /// Takes note whether the protocol said that more is about to follow on `pipe`.
    #[cfg(test)]
    pub(crate) fn expected(&mut self, pipe: PipeId) -> bool {
        self.pipes.get_mut(pipe).is_some_and(|p| std::mem::take(&mut p.expects))
    }

    /// The connection of `pipe` breaks.
    pub fn lose(&mut self, pipe: PipeId) {
        self.call(|_, cx| cx.close(pipe, Reason::Peer));
    }

    /// The peer of `pipe` ends the connection: what it sent before may still be taken, if the protocol wants it.
    pub fn end(&mut self, pipe: PipeId) {
        let Some(p) = self.pipes.get_mut(pipe) else { return };
        let (was_unread, pending) = (p.unread.take().is_some(), !p.inq.is_empty());
        if p.ended.is_some() {
            if was_unread && !pending {
                self.lose(pipe);
            }
        } else if pending && self.call(|p, cx| p.pipe_ended(cx, pipe)) {
            if let Some(p) = self.pipes.get_mut(pipe) {
                p.ended = Some(Box::new(Reason::Peer));
            }
        } else {
            self.lose(pipe);
        }
    }

    /// A write finds the peer of `pipe` gone. If the protocol wants what is still on its way in, it may
    /// [`arrive`](Script::arrive) until the [`end`](Script::end).
    pub fn fail_write(&mut self, pipe: PipeId) {
        match self.pipes.get(pipe) {
            Some(p) if p.ended.is_none() => {}
            _ => return,
        }
        if !self.call(|p, cx| p.pipe_ended(cx, pipe)) {
            self.lose(pipe);
        } else if let Some(p) = self.pipes.get_mut(pipe) {
            p.ended = Some(Box::new(Reason::Peer));
            p.unread = Some(Box::new(Reason::Peer));
        }
    }

    /// Messages arrive as one batch; returns how many the inbound queue took.
    pub fn arrive<M: Into<Message>>(&mut self, pipe: PipeId, msgs: impl IntoIterator<Item = M>) -> usize {
        let mut n = 0;
        if let Some(p) = self.pipes.get_mut(pipe) {
            for msg in msgs {
                if p.in_full() {
                    break;
                }
                let msg = msg.into();
                p.received.0 += 1;
                p.received.1 += msg.wire_len() as u64;
                p.inq.push(msg);
                n += 1;
            }
        }
        self.call(|p, cx| p.readable(cx, pipe));
        n
    }

    /// The writer of `pipe` takes up to `n` messages, header words apart.
    pub fn drain_apart(&mut self, pipe: PipeId, n: usize) -> Vec<Message> {
        let mut taken = Vec::new();
        let mut room = false;
        if let Some(p) = self.pipes.get_mut(pipe) {
            while taken.len() < n {
                match p.out.reclaim() {
                    Some(msg) => taken.push(msg),
                    None => break,
                }
            }
            room = p.room_again();
        }
        if room {
            self.call(|p, cx| p.writable(cx, pipe));
        }
        self.close_finished(pipe);
        taken
    }

    /// The writer of `pipe` takes up to `n` messages, as the peer of a stream receives them: header words
    /// joined to the front of the body.
    pub fn drain(&mut self, pipe: PipeId, n: usize) -> Vec<Message> {
        self.drain_apart(pipe, n).into_iter().map(Message::joined).collect()
    }

    /// All that is queued for `pipe`, as text.
    pub fn sent(&mut self, pipe: PipeId) -> Vec<String> {
        self.drain(pipe, usize::MAX).iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
    }

    /// Whether `pipe` is open: accepted, and not closed since.
    pub fn is_open(&self, pipe: PipeId) -> bool {
        self.pipes.get(pipe).is_some()
    }

    /// How much is queued for `pipe`: messages.
    pub fn unsent(&self, pipe: PipeId) -> usize {
        self.pipes.get(pipe).map_or(0, |p| p.out.len())
    }

    /// Whether the protocol asked for what is queued for `pipe` to leave at once, since this was called last.
    pub fn flushed(&mut self, pipe: PipeId) -> bool {
        self.pipes.get_mut(pipe).is_some_and(|p| std::mem::take(&mut p.urgent))
    }

    /// Moves the clock, firing timers in order, each at its own time.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.fx.timers.next().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            if let Some(key) = self.fx.timers.pop_due(self.now) {
                self.call(|p, cx| p.timer(cx, key));
            }
        }
        self.now = end;
    }

    /// Moves the clock to `time` at once (never back), then fires what is due, late: as for a process that was
    /// stopped meanwhile.
    pub fn jump_to(&mut self, time: Time) {
        self.now = self.now.max(time);
        while let Some(key) = self.fx.timers.pop_due(self.now) {
            self.call(|p, cx| p.timer(cx, key));
        }
    }

    /// The time of the script.
    pub fn now(&self) -> Time {
        self.now
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Time> {
        self.fx.timers.next()
    }

    /// What the protocol says of its readiness.
    pub fn readiness(&self) -> Readiness {
        self.protocol.readiness()
    }

    /// Messages dropped for this reason so far.
    pub fn drops(&self, why: DropReason) -> u64 {
        self.fx.drops.iter().find(|(w, _)| *w == why).map_or(0, |(_, n)| n)
    }

    /// All messages dropped so far.
    pub fn all_drops(&self) -> u64 {
        self.fx.drops.iter().map(|(_, n)| n).sum()
    }

    /// A counter of the protocol's own.
    pub fn counted(&self, name: &str) -> u64 {
        self.fx.own.iter().find(|(own, _)| *own == name).map_or(0, |(_, n)| *n)
    }

    /// The keys woken since the last call.
    pub fn woken(&mut self) -> Vec<WaitKey> {
        std::mem::take(&mut self.fx.wakes)
    }
}

impl<P: Sends> Script<P> {
    /// The application sends.
    ///
    /// # Errors
    /// What the protocol says.
    pub fn send(&mut self, item: impl Into<P::Item>) -> Result<(), Refused<P::Item>> {
        let item = item.into();
        self.call(|p, cx| p.send(cx, item))
    }
}

impl<P: Receives> Script<P> {
    /// The application receives.
    pub fn recv(&mut self) -> Option<P::Item> {
        self.call(|p, cx| p.recv(cx))
    }
}
