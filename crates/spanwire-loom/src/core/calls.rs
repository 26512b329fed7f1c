//! What callers do, and how a pipe is written to.
//!
//! Owns: nothing. Never: sleeps with the lock, but as its caller asks.

use super::*;
use crate::Token;

impl Socket {
    // ------------------------------------------------------------ what callers do

    pub(crate) fn take(&self, st: &mut State) -> Option<()> {
        st.queue = st.queue.checked_sub(1)?;
        if st.stalled && st.queue * 2 <= self.limit {
            st.unstalled = true;
        }
        if let Some(key) = st.on_recv.take() {
            st.open(key);
        }
        Some(())
    }

    pub(crate) fn recv(&self, patience: Patience) -> bool {
        self.wait_on(Want::Recv, patience, Socket::take).is_some()
    }

    pub(crate) fn try_recv(&self) -> bool {
        self.pump();
        let mut st = self.lock();
        let got = self.take(&mut st).is_some();
        self.finish(st);
        got
    }

    pub(crate) fn recv_task(&self, polls: u32) -> bool {
        self.task(Want::Recv, polls, Socket::take).is_some()
    }

    pub(crate) fn wait_key(&self, key: Key, patience: Patience) -> bool {
        self.wait_on(Want::Key(key), patience, |_, st| st.open.contains(&key).then_some(())).is_some()
    }

    pub(crate) fn key_task(&self, key: Key, polls: u32) -> bool {
        self.task(Want::Key(key), polls, |_, st| st.open.contains(&key).then_some(())).is_some()
    }

    /// Any call by which a protocol fires a key.
    pub(crate) fn open_key(&self, key: Key) {
        let mut st = self.lock();
        st.open(key);
        self.finish(st);
    }

    pub(crate) fn add_endpoint(&self) {
        let mut st = self.lock();
        st.fresh += 1;
        self.finish(st);
    }

    pub(crate) fn set_timer(&self, at: u32, key: Key) {
        let mut st = self.lock();
        st.timer_moved |= st.timer.is_none_or(|(first, _)| at < first);
        st.timer = Some((at, key));
        self.finish(st);
    }

    pub(crate) fn set_timer_lazily(&self, at: u32, key: Key) {
        let mut st = self.lock();
        st.lazily_moved |= st.timer.is_none_or(|(first, _)| at < first);
        st.timer = Some((at, key));
        self.finish(st);
    }

    /// A time of the engine's own: a retry, the end of the linger time.
    pub(crate) fn set_alarm(&self, at: u32, key: Key) {
        let mut st = self.lock();
        st.alarm_moved |= st.alarm.is_none_or(|(first, _)| at < first);
        st.alarm = Some((at, key));
        self.finish(st);
    }

    /// A handshake that has a deadline is on its way.
    pub(crate) fn with_handshake(&self, at: u32) {
        self.with_loop(|d| d.deadline = Some(at));
    }

    /// What comes next begins one.
    pub(crate) fn with_caller(&self, at: u32) {
        self.with_loop(|d| d.greets = Some(at));
    }

    fn with_loop(&self, f: impl FnOnce(&mut Drive)) {
        let mut st = self.lock();
        let mut d = st.lead.take(EITHER, &self.link).expect("nobody leads yet");
        f(&mut d);
        self.give(&mut st, d);
        self.finish(st);
    }

    /// A message from a source that is no descriptor.
    pub(crate) fn notify(&self, notifier: &Notifier) {
        self.lane.fetch_add(1, Ordering::Release);
        notifier.notify();
    }

    pub(crate) fn notifier(&self) -> Notifier {
        self.link.notes.as_ref().expect("made with notes").notifier(Token(0))
    }

    /// Waits, as a bystander that is no user, until the state is so.
    pub(crate) fn until(&self, is: impl Fn(&State) -> bool) {
        let mut st = self.lock();
        while !is(&st) {
            st = self.changed.wait(st).unwrap();
        }
    }

    pub(crate) fn close(&self, patience: Patience) {
        let mut st = self.lock();
        if !st.closed {
            st.closed = true;
            st.lead.wake_all();
            st = self.flush(st, 1);
        }
        let mut late = false;
        while st.out > 0 && !late {
            (st, late) = self.wait(st, Want::Key(CLOSED), patience);
        }
        self.finish(st);
    }

    // ------------------------------------------------------------ writing

    pub(crate) fn send(&self, hot: bool) {
        let put = |s: &Socket, st: &mut State| {
            let room = st.out < s.out_limit;
            st.out += u32::from(room);
            room.then_some(())
        };
        let mut st = self.lock();
        while !st.closed && put(self, &mut st).is_none() {
            (st, _) = self.wait(st, Want::Send, Endless);
        }
        if hot {
            Self::ask(&mut st);
        } else {
            st = self.flush(st, 2);
        }
        self.finish(st);
    }

    fn ask(st: &mut State) {
        if st.out > 0 && !st.writing && !st.blocked && !std::mem::replace(&mut st.asked, true) {
            st.ask = true;
        }
    }

    pub(super) fn flush<'a>(&'a self, mut st: Guard<'a>, mut rounds: u32) -> Guard<'a> {
        loop {
            if st.writing || st.blocked || st.out == 0 {
                return st;
            }
            if rounds == 0 {
                Self::ask(&mut st);
                return st;
            }
            rounds -= 1;
            st.writing = true;
            st.writable = false;
            drop(st);
            let wrote = self.kernel.write();
            st = self.lock();
            st.writing = false;
            if wrote {
                st.out -= 1;
                if st.closed && st.out == 0 {
                    st.open(CLOSED);
                }
            } else if st.writable {
                rounds += 1; // the edge came while we were in `write`
            } else {
                st.blocked = true;
            }
        }
    }

    /// The driver's visit to what was left to gather; `true` to come again.
    pub(super) fn visit(&self) -> bool {
        let mut st = self.lock();
        st.asked = false;
        st = self.flush(st, 1);
        st.ask = false;
        let more = st.asked;
        self.finish(st);
        more
    }
}
