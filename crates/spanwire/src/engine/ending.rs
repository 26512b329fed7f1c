//! The ends of pipes: what becomes of one whose peer is gone, that cannot be written, or that this side closes.
//!
//! An end is found while reading or while writing, or wanted by the protocol, the application or a limit. While the
//! protocol wants what the peer has sent, the pipe stays until that is taken; then it goes, once, and what nobody has
//! any more is counted.
//!
//! Owns: the order of these steps. Never: reads, writes or closes a connection (who drives does, told by `Fresh`); ends
//! a pipe whose writer is out with a write, which completes the end when it is back.

use super::core::{CLOSED, Core, Fresh, PEERS, Phase, State, Trash};
use crate::events::Event;
use crate::protocol::{Clock, Cx, DropReason, Pipe, PipeId, Reason};

impl Core {
    /// The peer is gone, as the reading side found: all that it sent has been read. It may still be wanted.
    pub(crate) fn end_pipe(&self, st: &mut State, id: PipeId, reason: Reason) {
        let Some(p) = st.pipes.get_mut(id) else { return };
        if !p.open {
            return;
        }
        if p.tx.writing {
            // Its writer holds what the protocol may want back, and comes at once.
            p.tx.ending.get_or_insert_with(|| Box::new(reason));
            return;
        }
        let unread = p.unread.take();
        if matches!(reason, Reason::TooBig { .. }) && (unread.is_some() || p.ended.is_none()) {
            self.call(st, |_, cx| cx.dropped(Some(id), DropReason::TooBig));
        }
        let Some(p) = st.pipes.get_mut(id) else { return };
        if let Some(why) = p.ended.clone() {
            if unread.is_some() && p.inq.is_empty() {
                self.close_pipe(st, id, *why, false);
            }
            return;
        }
        // A write that failed has asked before.
        let asks =
            unread.is_none() && !p.inq.is_empty() && matches!(reason, Reason::Peer | Reason::Broken(_));
        let keep = asks && !st.is_closed() && self.may_stay(st, id, &reason);
        match st.pipes.get(id) {
            Some(p) if keep && !p.inq.is_empty() => {}
            _ => self.close_pipe(st, id, unread.map_or(reason, |why| *why), false),
        }
    }

    /// A write found the peer gone. What the peer sent before it went may lie unread in the system's buffer.
    pub(crate) fn write_failed(&self, st: &mut State, id: PipeId, reason: Reason) {
        let closed = st.is_closed();
        let Some(p) = st.pipes.get_mut(id) else { return };
        if !p.open || p.is_one_way() {
            return; // the reading side was first
        }
        if closed || p.finishing.is_some() {
            return self.close_pipe(st, id, reason, false);
        }
        p.unread = Some(Box::new(reason.clone()));
        let token = p.tx.token;
        let all = self.may_stay(st, id, &reason);
        st.fresh.push(Fresh::ReadOut { token, all });
    }

    /// Whether the protocol wants what a peer that is gone has sent, the rest of it perhaps still to be read.
    fn may_stay(&self, st: &mut State, id: PipeId, reason: &Reason) -> bool {
        let begun = |st: &State| st.pipes.get(id).is_some_and(Pipe::has_begun);
        let had_begun = begun(st);
        let stays = self.call(st, |protocol, cx| protocol.pipe_ended(cx, id));
        if had_begun && !begun(st) {
            // It took back what was not begun; what was, nobody has any more.
            self.call(st, |_, cx| cx.dropped(Some(id), DropReason::PipeClosed));
        }
        let Some(p) = st.pipes.get_mut(id) else { return false };
        if stays && p.open {
            p.ended = Some(Box::new(reason.clone()));
            let (endpoint, remote) = (p.info.endpoint, p.info.facts.remote.clone());
            self.say_gone(st, id, endpoint, remote, reason.clone());
            self.settle(st);
        }
        stays
    }

    pub(crate) fn say_gone(&self, st: &mut State, id: PipeId, endpoint: u32, remote: String, reason: Reason) {
        st.totals.detached += 1;
        st.emit(Event::Disconnected { pipe: id, endpoint, remote, reason: reason.clone() });
        st.fx.wakes.push(PEERS);
        self.endpoint_lost(st, endpoint, id, &reason);
    }

    /// Ends a pipe, once: the protocol hears of it, and what is left is counted. `drain`: the peer may read
    /// to the end of what was sent.
    pub(crate) fn close_pipe(&self, st: &mut State, id: PipeId, reason: Reason, drain: bool) {
        self.close_one(st, id, reason, drain);
        if !st.fx.closes.is_empty() || !st.fx.wakes.is_empty() {
            self.settle(st);
        }
    }

    /// The same without what follows from it: `settle` calls this in a loop, and one call of a protocol may close
    /// thousands of pipes, too many for a stack.
    pub(super) fn close_one(&self, st: &mut State, id: PipeId, reason: Reason, drain: bool) {
        let Some(p) = st.pipes.get_mut(id) else { return };
        p.open = false;
        if p.tx.writing {
            // Its writer holds what was not begun; it completes the close when it is back, at once.
            p.tx.dying.get_or_insert_with(|| Box::new((reason, drain)));
            return;
        }
        let had_begun = p.has_begun();
        let queued = p.out.len() + p.tx.writer.as_ref().map_or(0, |w| w.taken().0);
        let held = self.held(st);
        self.guard(|| st.protocol.pipe_closed(&mut Cx::new(&mut st.pipes, &mut st.fx, Clock::lazy()), id));
        let Some(mut p) = st.pipes.remove(id) else { return };
        st.blocked -= usize::from(p.tx.blocked);
        let token = p.tx.token;
        // A protocol that reclaims gets all but the message that was begun: nobody has that any more.
        let passed_over = usize::from(had_begun && !p.has_begun());
        let unsent = p.out.len() + p.tx.writer.as_ref().map_or(0, |w| w.taken().0) + passed_over;
        let lost = unsent + p.inq.len();
        count_gone(st, &p, lost);
        // Whether the protocol wrote it off or not, it did not leave; what it keeps is counted in the end, unless
        // that is over: then this pipe's writer was still on its way.
        match st.phase {
            Phase::Open => {}
            Phase::Closing => st.undelivered += queued.saturating_sub(self.held(st).saturating_sub(held)),
            Phase::Closed => st.undelivered += queued,
        }
        let mut writer = p.tx.writer.take();
        if drain {
            // The reading half keeps the connection: without this the peer would not hear of the end.
            let left = writer.take_if(|writer| !writer.shutdown());
            st.fresh.push(Fresh::Drain { token, writer: left });
        } else {
            st.fresh.push(Fresh::Drop { token });
        }
        st.trash.push(Trash::Writer(writer));
        if st.phase != Phase::Open && st.pipes.len() == 0 {
            st.fx.wakes.push(CLOSED);
        }
        if p.ended.is_none() {
            self.say_gone(st, id, p.info.endpoint, p.info.facts.remote.clone(), reason);
        }
    }
}

/// A pipe is gone, and with it `lost` messages that nobody has.
pub(crate) fn count_gone(st: &mut State, p: &Pipe, lost: usize) {
    let mut cx = Cx::new(&mut st.pipes, &mut st.fx, Clock::lazy());
    for _ in 0..lost {
        cx.dropped(None, DropReason::PipeClosed);
    }
    st.totals.tx_msgs += p.sent.0;
    st.totals.tx_bytes += p.sent.1;
    st.totals.rx_msgs += p.received.0;
    st.totals.rx_bytes += p.received.1;
}
