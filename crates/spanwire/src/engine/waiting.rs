//! Waiting: until a call into the protocol gives something, a thread leads or sleeps behind the leader, a task leaves
//! its waker, and a `Poller` serves what its own poll announced.
//!
//! Owns: the loops of those who wait. Never: decides who drives or who is woken (`lead` does); holds the lock while it
//! sleeps; keeps a loop beyond its call (a `Poller` alone does, and gives it back).

use std::task::{Poll as TaskPoll, Waker};
use std::time::{Duration, Instant};

use super::core::{CLOSED, Core, Guard, ROUNDS, State};
use super::drive::Drive;
use super::lead::{Parent as _, Want};
use super::sys::CALLERS_LEAD;
use super::waiters::{Parker, Who};
use crate::error::WaitError;
use crate::protocol::{Cx, Protocol, Time, WaitKey};

impl Core {
    fn satisfied(&self, st: &mut State, want: Want<WaitKey>) -> bool {
        match want {
            // Closing itself goes on waiting.
            Want::Key(key) => st.lead.leader_fired() || (st.is_closed() && key != CLOSED),
            _ if st.is_closed() => true,
            Want::Recv => self.ready_now(st).recv,
            Want::Send => self.ready_now(st).send,
            Want::Any => {
                let ready = self.ready_now(st);
                ready.recv || ready.send
            }
        }
    }

    /// Blocks until `want` may be satisfied, or the deadline (`true`): by leading, or behind the leader.
    pub(crate) fn wait<'a>(
        &'a self,
        mut st: Guard<'a>,
        want: Want<WaitKey>,
        deadline: Option<Instant>,
    ) -> (Guard<'a>, bool) {
        if !st.fx.dirty.is_empty() {
            st = self.write_dirty(st);
            return (st, false); // the lock was open: look again
        }
        // What this caller left to gather leaves before it sleeps.
        if self.has_left(&st) {
            return (self.flush_left(st), false);
        }
        let lead = if CALLERS_LEAD { st.lead.take(want, &self.link) } else { None };
        match lead {
            Some(drive) => self.wait_leading(st, drive, want, deadline),
            None => self.wait_behind(st, want, deadline),
        }
    }

    fn wait_leading<'a>(
        &'a self,
        st: Guard<'a>,
        d: Box<Drive>,
        want: Want<WaitKey>,
        deadline: Option<Instant>,
    ) -> (Guard<'a>, bool) {
        self.with_loop(d, |d| {
            let (mut st, mut looked) = (st, false);
            let spins_until = (!self.cfg.spin.is_zero()).then(|| Instant::now() + self.cfg.spin);
            loop {
                st = self.refresh(st, d);
                // Also a deadline in the past deserves one look at what has arrived.
                let late = looked && deadline.is_some_and(|at| Instant::now() >= at);
                if self.satisfied(&mut st, want) || late {
                    return (st, late);
                }
                // One that spins polls without sleeping. The deadline is looked at above.
                let now = spins_until.map(|_| Instant::now());
                let spins = now.filter(|now| spins_until.is_some_and(|until| *now < until));
                st = self.lead_once(st, d, want, spins.or(deadline));
                looked = true;
            }
        })
    }

    /// One round of a leader: sleeps in the poll until something happens, and delivers it.
    pub(crate) fn lead_once<'a>(
        &'a self,
        mut st: Guard<'a>,
        d: &mut Drive,
        want: Want<WaitKey>,
        deadline: Option<Instant>,
    ) -> Guard<'a> {
        let due = [st.due_with(d), deadline.map(Time::of)].into_iter().flatten().min();
        st.polled_until = due;
        st.lead.sleep(want);
        let leave = self.leave(&mut st);
        drop(st);
        self.carry_out(leave);
        let timeout = due.map(|at| at.instant().saturating_duration_since(Instant::now()));
        d.turn(self, timeout);
        let mut st = self.lock();
        st.lead.awake();
        st.polled_until = None;
        self.deliver(st, d)
    }

    /// A `Poller` leads: what it must tell before it sleeps in a poll of its own.
    pub(crate) fn before_sleep(&self, st: &mut State, d: &Drive, want: Want<WaitKey>) {
        st.polled_until = st.due_with(d);
        st.lead.sleep(want);
    }

    /// The `Poller`'s round: serves what its poll announced; `true` when `want` is satisfied.
    pub(crate) fn serve(&self, d: &mut Drive, want: Want<WaitKey>) -> bool {
        self.guard(|| self.serve_until(d, want))
    }

    fn serve_until(&self, d: &mut Drive, want: Want<WaitKey>) -> bool {
        self.notes.awake();
        for _ in 0..ROUNDS {
            let more = d.turn(self, Some(Duration::ZERO));
            let mut st = self.lock();
            st.lead.awake();
            st.polled_until = None;
            st = self.deliver(st, d);
            st = self.refresh(st, d);
            if self.satisfied(&mut st, want) {
                self.finish(st);
                if more {
                    self.notes.nudge(); // what it did not see has no edge any more
                }
                return true;
            }
            let again = more || d.sticky() || st.has_news();
            self.before_sleep(&mut st, d, want);
            self.finish(st);
            if !again && self.notes.sleep() {
                return false;
            }
        }
        self.notes.nudge(); // others have their turn, then this one again
        false
    }

    /// The leader gives the loop back. `leave` must follow.
    pub(crate) fn give(&self, st: &mut State, d: Box<Drive>) {
        st.drive_deadline = d.next_deadline();
        let unread = d.sticky();
        st.lead.give(d, unread);
    }

    fn wait_behind<'a>(
        &'a self,
        mut st: Guard<'a>,
        want: Want<WaitKey>,
        deadline: Option<Instant>,
    ) -> (Guard<'a>, bool) {
        let me = Parker::mine();
        me.arm();
        let id = st.lead.park(want, Who::Thread(me.clone()));
        let leave = self.leave(&mut st);
        drop(st);
        self.carry_out(leave);
        me.park(deadline);
        let mut st = self.lock();
        if !st.lead.cancel(want, id) {
            st.lead.returned();
            return (st, false);
        }
        // Still queued: the deadline, or a wake meant for an earlier wait of this thread.
        let late = deadline.is_some_and(|at| Instant::now() >= at);
        (st, late)
    }

    /// Runs `f` until it gives something; between two runs waits for `want`.
    #[inline]
    pub(crate) fn wait_on<R>(
        &self,
        want: Want<WaitKey>,
        deadline: Option<Instant>,
        mut f: impl FnMut(&mut dyn Protocol, &mut Cx<'_>) -> Option<R>,
    ) -> Result<R, WaitError> {
        if self.forked() {
            return Err(WaitError::Forked);
        }
        let mut st = self.lock();
        let mut late = false;
        loop {
            if st.is_closed() {
                self.finish(st);
                return Err(WaitError::Closed);
            }
            if let Some(result) = self.call(&mut st, &mut f) {
                self.finish(st);
                return Ok(result);
            }
            if late {
                self.finish(st);
                return Err(WaitError::TimedOut);
            }
            (st, late) = self.wait(st, want, deadline);
        }
    }

    /// One run of `f` on a socket that is open; nothing when it is not. The quick way of calls that find what
    /// they want: errors are for the slow way.
    #[inline]
    pub(crate) fn quick<R>(&self, f: impl FnOnce(&mut dyn Protocol, &mut Cx<'_>) -> Option<R>) -> Option<R> {
        if self.forked() {
            return None;
        }
        let mut st = self.lock();
        if st.is_closed() {
            return None;
        }
        let result = self.call(&mut st, f);
        self.finish(st);
        result
    }

    /// One run of `f` that does not wait.
    #[inline]
    pub(crate) fn try_on<R>(
        &self,
        f: impl FnOnce(&mut dyn Protocol, &mut Cx<'_>) -> R,
    ) -> Result<R, WaitError> {
        if self.forked() {
            return Err(WaitError::Forked);
        }
        let mut st = self.lock();
        if st.is_closed() {
            self.finish(st);
            return Err(WaitError::Closed);
        }
        let result = self.call(&mut st, f);
        self.finish(st);
        Ok(result)
    }

    /// A look that first lets what has arrived in: for a `try` that found nothing, when nobody reads ahead.
    pub(crate) fn pump(&self) {
        let mut st = self.lock();
        if CALLERS_LEAD
            && !st.is_closed()
            && (!st.lead.watched() || self.link.lags())
            && let Some(d) = st.lead.take(Want::Any, &self.link)
        {
            (st, ()) = self.with_loop(d, |d| {
                let st = self.refresh(st, d);
                let st = self.lead_once(st, d, Want::Any, Some(Instant::now()));
                (self.refresh(st, d), ())
            });
        }
        self.finish(st);
    }

    /// The same for a task: queues its waker when `f` gives nothing. `slot` belongs to the future.
    pub(crate) fn poll_on<R>(
        &self,
        want: Want<WaitKey>,
        slot: &mut Option<u64>,
        waker: &Waker,
        f: impl FnOnce(&mut dyn Protocol, &mut Cx<'_>) -> Option<R>,
    ) -> TaskPoll<Result<R, WaitError>> {
        if self.forked() {
            return TaskPoll::Ready(Err(WaitError::Forked));
        }
        let mut st = self.lock();
        if let Some(id) = slot.take() {
            st.lead.cancel(want, id);
        }
        if st.is_closed() {
            self.finish(st);
            return TaskPoll::Ready(Err(WaitError::Closed));
        }
        let result = self.call(&mut st, f);
        if let Some(result) = result {
            self.finish(st);
            return TaskPoll::Ready(Ok(result));
        }
        *slot = Some(st.lead.park(want, Who::Task(waker.clone())));
        // What this task left to gather leaves before it waits. It may become possible meanwhile, with the lock
        // open: `leave` looks again.
        if self.has_left(&st) {
            st = self.flush_left(st);
        }
        self.finish(st);
        TaskPoll::Pending
    }

    /// A future is dropped: if its task was woken for something it will not take, that is passed on.
    pub(crate) fn unpark(&self, want: Want<WaitKey>, slot: Option<u64>) {
        if let Some(id) = slot
            && !self.forked()
        {
            let mut st = self.lock();
            st.lead.cancel(want, id);
            self.finish(st);
        }
    }
}
