//! Driving a socket's loop: a round, the driver's thread, and a runtime in its place.
//!
//! Owns: nothing. Never: drives a loop that it did not take.

use super::*;

/// What driving left.
struct Driven {
    due: Option<u32>,
    again: bool,
}

impl Socket {
    // ------------------------------------------------------------ driving

    pub(super) fn notes_sleep(&self) -> bool {
        self.link.notes.as_ref().is_none_or(|notes| notes.sleep())
    }

    pub(crate) fn notes_awake(&self) {
        if let Some(notes) = &self.link.notes {
            notes.awake();
        }
    }

    pub(crate) fn refresh(&self, st: &mut State, d: &mut Drive) {
        if st.timer.is_some() || st.alarm.is_some() {
            let now = self.kernel.clock();
            if let Some((_, key)) = st.timer.take_if(|t| t.0 <= now) {
                st.open(key);
            }
            if let Some((_, key)) = st.alarm.take_if(|t| t.0 <= now) {
                st.open(key);
            }
            self.changed.notify_all();
        }
        let fresh = std::mem::take(&mut st.fresh);
        if fresh > 0 {
            d.endpoints += fresh;
            st.taken += fresh;
            self.changed.notify_all();
        }
        if std::mem::take(&mut st.unstalled) {
            d.paused = false;
            st.stalled = false;
        }
    }

    /// A round without the lock.
    pub(crate) fn turn(&self, d: &mut Drive, mut until: Option<u32>) {
        if d.sticky() || (until != NOW && !self.notes_sleep()) {
            until = NOW;
        }
        let (readable, writable) = self.kernel.poll(until);
        self.notes_awake();
        d.readable |= readable;
        d.writable |= writable;
        if let Some(notes) = &self.link.notes {
            let mut noted = Vec::new();
            notes.take(&mut noted);
            d.lane |= !noted.is_empty();
        }
        if d.deadline.is_some_and(|at| at <= self.kernel.clock()) {
            d.deadline = None;
            d.got += 1; // as if its outcome were a message
        }
        if d.paused {
            return;
        }
        if d.lane {
            let there = self.lane.load(Ordering::Acquire);
            if self.lane_read.load(Ordering::Relaxed) < there {
                self.lane_read.fetch_add(1, Ordering::Relaxed);
                d.got += 1;
            } else {
                d.lane = false;
            }
        }
        // One at a time, as into a short buffer: it stays readable.
        if d.readable {
            if self.kernel.read() {
                d.got += 1;
                d.deadline = d.greets.take().or(d.deadline);
            } else {
                d.readable = false;
            }
        }
    }

    pub(crate) fn deliver<'a>(&'a self, mut st: Guard<'a>, d: &mut Drive) -> Guard<'a> {
        for _ in 0..std::mem::take(&mut d.got) {
            match st.route.pop() {
                Some(key) => st.open(key),
                None => st.queue += 1,
            }
        }
        self.changed.notify_all();
        if st.queue >= self.limit {
            d.paused = true;
            st.stalled = true;
        }
        if std::mem::take(&mut d.writable) {
            st.writable = true;
            st.blocked = false;
            st = self.flush(st, 2);
        }
        st
    }

    // ------------------------------------------------------------ the driver

    fn drive(&self) -> Option<Driven> {
        let mut st = self.lock();
        st.driver_until = None;
        let d = st.lead.take_as_driver()?;
        let (mut st, driven) = self.drive_on(st, d);
        (st.driver_until, st.polled_until) = (driven.due, driven.due);
        self.finish(st);
        Some(driven)
    }

    fn drive_on<'a>(&'a self, mut st: Guard<'a>, mut d: Box<Drive>) -> (Guard<'a>, Driven) {
        self.notes_awake();
        let mut again = true;
        for _ in 0..4 {
            self.refresh(&mut st, &mut d);
            let leave = self.leave(&mut st);
            drop(st);
            self.carry_out(leave);
            self.turn(&mut d, NOW);
            st = self.lock();
            st = self.deliver(st, &mut d);
            let quiet = !d.sticky() && !st.has_news();
            if quiet && self.notes_sleep() {
                again = false;
                break;
            }
        }
        again |= st.lead.take_missed();
        let due = st.due_with(&d);
        self.give(&mut st, d);
        (st, Driven { due, again })
    }

    // ------------------------------------------------------------ a runtime in its place

    /// The socket is in the runtime's poll, and announced there from here on.
    pub(crate) fn go_outside(&self) {
        self.kernel.join();
        let st = self.lock();
        self.link.outside.store(true, Ordering::Relaxed);
        if st.lead.watched() {
            self.kernel.disarm();
        }
        self.post_and_finish(st);
    }

    /// The runtime's task, until it is told to end: then the driver watches again.
    pub(crate) fn runtime(&self) {
        loop {
            let (event, ends) = self.kernel.outer_waits(None);
            let mut ends = ends;
            while event && !ends && self.drive_outside() {
                thread::yield_now();
                ends = self.kernel.outer_is_told();
            }
            if ends {
                return self.come_back();
            }
        }
    }

    fn drive_outside(&self) -> bool {
        let mut st = self.lock();
        let Some(d) = st.lead.take_as_driver() else { return false };
        let (mut st, driven) = self.drive_on(st, d);
        let sooner = driven.due.is_some_and(|due| st.driver_until.is_none_or(|until| due < until));
        st.polled_until = if sooner { driven.due } else { st.driver_until };
        if sooner {
            self.post_and_finish(st);
        } else {
            self.finish(st);
        }
        driven.again
    }

    /// The runtime's end, or the socket's.
    pub(crate) fn come_back(&self) {
        let st = self.lock();
        if !self.link.outside.swap(false, Ordering::Relaxed) {
            return self.finish(st);
        }
        if st.lead.watched() {
            self.kernel.arm();
        }
        self.post_and_finish(st);
    }

    fn post_and_finish<'a>(&'a self, mut st: Guard<'a>) {
        let posted = std::mem::replace(&mut st.lead.posted, true);
        self.finish(st);
        if !posted {
            self.kernel.post();
        }
    }

    /// The driver's thread. A tick may come whenever it has nothing else to do.
    pub(crate) fn driver(&self) {
        let (mut listed, mut minds, mut again, mut due) = (false, false, false, None);
        loop {
            let woke = self.kernel.driver_waits(listed || minds || again, due);
            if woke.stop {
                return;
            }
            let idle = !woke.posted && !woke.event && !woke.due && !again;
            let mut drive = std::mem::take(&mut again) || woke.event;
            if woke.posted {
                let mut st = self.lock();
                st.lead.posted = false;
                listed |= st.lead.listed;
                let asked = st.asked;
                drive |= st.lead.watched();
                drop(st);
                if asked && !minds {
                    minds = self.visit();
                }
            } else if idle && minds {
                minds = self.visit();
            }
            if woke.due {
                due = None;
                drive = true;
            }
            if drive {
                self.drive_and_note(&mut due, &mut again);
            }
            if listed && idle {
                let mut st = self.lock();
                let look = st.lead.look(&self.link);
                self.finish(st);
                listed = look == Look::Keep;
                if look == Look::Armed {
                    self.drive_and_note(&mut due, &mut again);
                }
            }
        }
    }

    fn drive_and_note(&self, due: &mut Option<u32>, again: &mut bool) {
        if let Some(driven) = self.drive() {
            *due = driven.due;
            *again |= driven.again;
        }
    }
}
