//! Closing: refuse users, let what is queued leave, and tell how much did not.
//!
//! From the first call on, users get `Closed`. Pipes finish: each writes what it has and closes. The close is over
//! when the last pipe has gone, or at the deadline, when what is left is counted and dropped. A dropped
//! socket does the same in the background for its linger time; the driver keeps it alive until then.
//!
//! Owns: the order of these steps. Never: blocks in a drop.

use std::time::{Duration, Instant};

use super::core::{Alarm, CLOSED, Core, Phase, State};
use super::endpoint::Kind;
use super::lead::Want;
use crate::error::Error;
use crate::protocol::{Reason, Time};

/// How long a close that is over waits for a writer that is in the midst of a call: one that blocks breaks its
/// contract.
const WRITER: Duration = Duration::from_secs(1);

impl Core {
    /// Closes, waits until all has left or the time is over, and returns how many messages did not leave.
    pub(crate) fn close(&self, timeout: Duration) -> Result<usize, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut st = self.lock();
        self.begin_close(&mut st);
        let mut late = false;
        loop {
            if self.all_gone(&st) || late {
                self.give_up(&mut st);
                // A writer is on its way back from a call that does not block; it knows what it left.
                let patience = Instant::now() + WRITER;
                while st.pipes.len() > 0 && Instant::now() < patience {
                    (st, _) = self.wait(st, Want::Key(CLOSED), Some(patience));
                }
                let undelivered = std::mem::take(&mut st.undelivered); // told once
                self.finish(st);
                return Ok(undelivered);
            }
            (st, late) = self.wait(st, Want::Key(CLOSED), deadline);
        }
    }

    /// The last handle is gone: the same in the background, for the socket's linger time.
    pub(crate) fn close_in_background(&self) {
        if self.forked() {
            return; // a child must not touch the parent's poll
        }
        #[cfg(feature = "tokio")]
        self.come_back(); // the driver keeps it alive, so it is the driver that must hear of it
        let mut st = self.lock();
        self.begin_close(&mut st);
        if !self.cfg.linger.is_zero() {
            // One look at the writers: what is queued may be gone at once.
            st = self.write_dirty(st);
        }
        if self.all_gone(&st) || self.cfg.linger.is_zero() {
            self.give_up(&mut st);
        } else {
            st.set_alarm(Time::now() + self.cfg.linger, Alarm::Linger);
        }
        let stays = self.stays(&st);
        st.lead.keep_watched += u32::from(stays);
        self.finish(st);
        if stays && let (Some(me), Ok(driver)) = (self.me.upgrade(), super::driver::driver()) {
            driver.linger(me);
        }
    }

    fn begin_close(&self, st: &mut State) {
        if st.phase != Phase::Open {
            return;
        }
        st.phase = Phase::Closing;
        let held = self.held(st);
        self.call(st, |protocol, cx| protocol.closing(cx));
        st.undelivered += held.saturating_sub(self.held(st)); // given up: nobody would want it any more
        // What the protocol holds for a peer to come keeps the dialers going; nothing else does.
        let keep = self.held(st) > 0;
        let ends: Vec<u32> = st
            .endpoints
            .iter()
            .filter(|(_, e)| !(keep && matches!(e.kind, Kind::Dialer { .. })))
            .map(|(n, _)| *n)
            .collect();
        for endpoint in ends {
            self.end_endpoint(st, endpoint);
        }
        for id in st.pipes.ids() {
            self.call(st, |_, cx| cx.finish(id, Reason::Local));
        }
        st.lead.wake_all();
    }

    fn all_gone(&self, st: &State) -> bool {
        let hopeless = || self.held(st) == 0 || st.endpoints.is_empty();
        st.phase == Phase::Closed || (st.pipes.len() == 0 && hopeless())
    }

    /// Counts what is left, and ends everything.
    pub(crate) fn give_up(&self, st: &mut State) {
        if st.phase == Phase::Closed {
            return;
        }
        for id in st.pipes.ids() {
            self.close_pipe(st, id, Reason::Local, false);
        }
        st.undelivered += self.held(st);
        st.phase = Phase::Closed;
        for endpoint in st.endpoints.keys().copied().collect::<Vec<_>>() {
            self.end_endpoint(st, endpoint);
        }
        st.alarms.clear();
        st.subscribers.clear();
        st.fx.wakes.push(CLOSED);
        self.settle(st);
    }

    /// Whether the driver may let go of a socket that lingers.
    pub(crate) fn lingers(&self) -> bool {
        let mut st = self.lock();
        if st.phase == Phase::Closing && self.all_gone(&st) {
            self.give_up(&mut st);
        }
        let lingers = self.stays(&st);
        self.finish(st);
        lingers
    }

    /// Pipes have something to say, or their peers to read to the end (for a second at most).
    fn stays(&self, st: &State) -> bool {
        st.phase != Phase::Closed || st.draining > 0 || !st.fresh.is_empty()
    }
}
