//! Writing: who writes what was queued, and when.
//!
//! See `tx` for the policy. Every function here is called with the lock and gives it back; in between it may
//! have been open for one `write`.
//!
//! Owns: nothing. Never: blocks, or writes on a pipe that another thread writes on.

use std::io::ErrorKind;
use std::time::Instant;

use super::core::{Core, Guard, State};
use super::heat::Pass;
use super::tx::{FLUSH_AT, STREAK, Wrote};
use crate::protocol::{Pipe, PipeId, Reason};

fn pending(p: &Pipe) -> bool {
    !p.out.is_empty()
        || p.taken_messages > 0
        || p.taken_bytes > 0
        || !p.control.is_empty()
        || !p.tx.reply.is_empty()
}

fn is_left(p: &Pipe) -> bool {
    p.tx.left && pending(p) && !p.tx.writing && !p.tx.blocked && !p.is_one_way()
}

/// Whether more is likely to follow so soon that it pays to write it together: the pipe or the thread is hot,
/// or the peer of a message pipe is behind.
fn may_gather(p: &mut Pipe, pass: &mut Pass) -> bool {
    if p.tx.busy_peer {
        return true;
    }
    // Whole messages are handed over without a look at the clock.
    if !p.tx.is_stream() {
        return false;
    }
    // So much is worth a write of its own, unless more is as good as sure to follow.
    if p.out.bytes() >= FLUSH_AT {
        return p.tx.steady(pass.now());
    }
    let expects = std::mem::take(&mut p.expects);
    p.tx.hot(pass.now(), expects) || pass.hot()
}

impl Core {
    /// Decides for each pipe with something new whether to write now.
    pub(crate) fn write_dirty<'a>(&'a self, mut st: Guard<'a>) -> Guard<'a> {
        let mut pass = Pass::default();
        while let Some(id) = st.fx.dirty.pop() {
            st = self.write_one(st, id, &mut pass);
        }
        pass.done();
        st
    }

    fn write_one<'a>(&'a self, mut st: Guard<'a>, id: PipeId, pass: &mut Pass) -> Guard<'a> {
        let Some(p) = st.pipes.get_mut(id) else { return st };
        p.dirty = false;
        let urgent = std::mem::take(&mut p.urgent) || p.finishing.is_some();
        p.tx.appended = p.tx.appended.wrapping_add(1);
        if p.tx.writing || p.tx.blocked {
            return st; // the writer looks again when it returns; the WRITABLE edge wakes whoever drives
        }
        let due = p.tx.is_due(&p.out, p.info.send_limit.max_messages()) || p.out_full();
        if !due && !urgent && (p.tx.left || may_gather(p, pass)) {
            self.ask(&mut st, id);
            return st;
        }
        self.flush(st, id, 2, pass)
    }

    /// Bytes are left that nobody writes and no edge will announce: the driver minds them.
    fn ask(&self, st: &mut State, id: PipeId) {
        let Some(p) = st.pipes.get_mut(id) else { return };
        if !pending(p) || p.tx.writing || p.tx.blocked || p.is_one_way() {
            return;
        }
        p.tx.left = true;
        if !std::mem::replace(&mut p.tx.asked, true) {
            st.asked.push(id);
            st.ask = true;
        }
    }

    /// Whether bytes were left to gather.
    #[inline]
    pub(crate) fn has_left(&self, st: &State) -> bool {
        !st.asked.is_empty() && st.asked.iter().any(|id| st.pipes.get(*id).is_some_and(is_left))
    }

    /// Before its thread sleeps or its task waits, a caller writes what it left to gather.
    pub(crate) fn flush_left<'a>(&'a self, mut st: Guard<'a>) -> Guard<'a> {
        let left: Vec<PipeId> =
            st.asked.iter().copied().filter(|id| st.pipes.get(*id).is_some_and(is_left)).collect();
        let mut pass = Pass::default();
        for id in left {
            st = self.flush(st, id, 1, &mut pass);
        }
        pass.done();
        st
    }

    /// Writes what has gathered, with the lock open, at most `rounds` times.
    fn flush<'a>(&'a self, mut st: Guard<'a>, id: PipeId, mut rounds: u32, pass: &mut Pass) -> Guard<'a> {
        loop {
            let Some(p) = st.pipes.get_mut(id) else { return st };
            if p.tx.writing || p.tx.blocked {
                return st;
            }
            if !pending(p) || p.is_one_way() {
                p.tx.left = false;
                if p.finishing.is_some() {
                    return self.finish_pipe(st, id);
                }
                return st;
            }
            if rounds == 0 {
                self.ask(&mut st, id); // appended meanwhile, and nobody else will write it
                return st;
            }
            rounds -= 1;
            let Some(mut writer) = p.tx.writer.take() else { return st };
            if let Err(e) = writer.load(&mut p.out, &mut p.control, &mut p.tx.reply) {
                p.tx.writer = Some(writer);
                self.write_failed(&mut st, id, Reason::Broken(e.to_string()));
                return st;
            }
            (p.taken_messages, p.taken_bytes) = writer.taken();
            let many = p.taken_messages > STREAK as usize;
            p.tx.writing = true;
            p.tx.writable = false;
            p.tx.left = false;
            drop(st);
            // Handing whole messages over costs less than to measure it.
            let began = writer.is_stream().then(Instant::now);
            let result = writer.write();
            let spent = began.map(|began| (began, Instant::now()));
            st = self.lock();
            // It is there, for closing waits for its writer, unless a panic of the protocol has ended everything.
            let Some(p) = st.pipes.get_mut(id) else { return st };
            // The edge came while the writer was away: what a transport buffers leaves on edges.
            let result = match result {
                Ok(wrote @ (Wrote::All | Wrote::AllToBusy)) if p.tx.writable => match writer.flush() {
                    Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
                    _ => Ok(wrote),
                },
                result => result,
            };
            (p.taken_messages, p.taken_bytes) = match result {
                Ok(Wrote::All | Wrote::AllToBusy) => (0, 0),
                _ => writer.taken(),
            };
            p.tx.writer = Some(writer);
            p.tx.writing = false;
            p.tx.busy_peer = matches!(result, Ok(Wrote::AllToBusy));
            if let Some((began, ended)) = spent {
                p.tx.wrote(began, ended, many);
                pass.wrote(ended, ended.saturating_duration_since(began), many);
            }
            if let Some(dying) = p.tx.dying.take() {
                let (reason, drain) = *dying;
                self.close_pipe(&mut st, id, reason, drain);
                return st;
            }
            if let Some(reason) = p.tx.ending.take() {
                self.end_pipe(&mut st, id, *reason);
                return st;
            }
            match result {
                Ok(Wrote::All | Wrote::AllToBusy) => {}
                Ok(Wrote::Some) => rounds += 1, // until the kernel says so
                Err(e) if e.kind() == ErrorKind::Interrupted => rounds += 1,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if p.tx.writable {
                        rounds += 1; // the edge came while we were in `write`
                    } else {
                        p.tx.blocked = true;
                        st.blocked += 1;
                    }
                }
                Err(e) => {
                    let reason = match e.kind() {
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Reason::Peer,
                        _ => Reason::Broken(e.to_string()),
                    };
                    self.write_failed(&mut st, id, reason);
                    return st;
                }
            }
            self.tell_room(&mut st, id);
        }
    }

    fn tell_room(&self, st: &mut State, id: PipeId) {
        if st.pipes.get_mut(id).is_some_and(Pipe::room_again) {
            self.call(st, |protocol, cx| protocol.writable(cx, id));
        }
    }

    /// A WRITABLE edge.
    pub(crate) fn on_writable<'a>(&'a self, mut st: Guard<'a>, id: PipeId) -> Guard<'a> {
        let Some(p) = st.pipes.get_mut(id) else { return st };
        p.tx.writable = true;
        if std::mem::replace(&mut p.tx.blocked, false) {
            st.blocked -= 1;
        }
        let Some(p) = st.pipes.get_mut(id) else { return st };
        // A transport that buffers is given the chance, but only where nobody writes.
        if let Some(writer) = &mut p.tx.writer
            && let Err(e) = writer.flush()
            && e.kind() != ErrorKind::WouldBlock
        {
            self.write_failed(&mut st, id, Reason::Broken(e.to_string()));
            return st;
        }
        let mut pass = Pass::default();
        st = self.flush(st, id, 4, &mut pass);
        pass.done();
        // The backlog has left: have the driver come by once more, and give the buffers back if it is quiet.
        if let Some(p) = st.pipes.get_mut(id)
            && !pending(p)
            && p.out.retains()
            && !std::mem::replace(&mut p.tx.asked, true)
        {
            st.asked.push(id);
            st.ask = true;
        }
        st
    }

    /// All that a finished pipe had to say has left: tells the peer, and closes.
    fn finish_pipe<'a>(&'a self, mut st: Guard<'a>, id: PipeId) -> Guard<'a> {
        let Some(p) = st.pipes.get(id) else { return st };
        let reason = p.finishing.as_deref().map_or(Reason::Local, Reason::clone);
        self.close_pipe(&mut st, id, reason, true);
        st
    }

    /// The driver's visit to the pipes that it minds: `true` while there is something to come back for.
    pub(crate) fn visit(&self) -> bool {
        let mut st = self.lock();
        let mut again = Vec::new();
        let asked = std::mem::take(&mut st.asked);
        for id in asked {
            let Some(p) = st.pipes.get_mut(id) else { continue };
            let alive = std::mem::replace(&mut p.tx.seen, p.tx.appended) != p.tx.appended;
            if alive || p.tx.writing {
                again.push(id); // still asked: what is appended from here on belongs to the next visit
            } else {
                p.tx.asked = false; // from here on the next append asks again
                if !pending(p) {
                    // It is quiet: a thousand pipes that were busy once must not keep their buffers.
                    p.out.release();
                    p.tx.release();
                }
            }
            // What the driver writes for others says nothing of the driver.
            st = self.flush(st, id, 1, &mut Pass::default());
        }
        st.asked.append(&mut again);
        let more = !st.asked.is_empty();
        st.ask = false; // the driver is here: it need not be told
        self.finish(st);
        more
    }
}
