//! What the engine does under a socket's lock, step by step as in its `core.rs`, `waiting.rs`, `deliver.rs`,
//! `flush.rs`, `close.rs` and `driver.rs`, for a socket with one pipe and a protocol of nothing but a queue, keys and a
//! timer.
//!
//! Owns: the state. Never: decides who is told (that is `lead.rs`, the real one).

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::Waker;
use crate::kernel::{Kernel, NOW};
use crate::lead::{Lead, Leave, Look, Now, Owed, Parent, Waiter, Want};
use crate::notes::{Notes, Notifier};

mod calls;
mod driving;

pub(crate) type Key = u8;
/// Fired when all has left after a close.
pub(crate) const CLOSED: Key = 9;

/// How long a caller waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    Endless,
    /// The deadline passes at some moment, perhaps at once.
    Short,
}
use Patience::{Endless, Short};

// ------------------------------------------------------------ who waits

/// A place to sleep: a parked thread, or a task between two polls.
pub(crate) struct Parker {
    told: Mutex<bool>,
    cv: Condvar,
}

impl Parker {
    pub(crate) fn new() -> Arc<Parker> {
        Arc::new(Parker { told: Mutex::new(false), cv: Condvar::new() })
    }
    fn wake(&self) {
        *self.told.lock().unwrap() = true;
        self.cv.notify_all();
    }
    fn park(&self, patience: Patience) {
        if patience == Short {
            return thread::yield_now();
        }
        let mut told = self.told.lock().unwrap();
        while !*told {
            told = self.cv.wait(told).unwrap();
        }
        *told = false;
    }
}

pub(crate) enum Who {
    Thread(Arc<Parker>),
    Task(Arc<Parker>),
    Poller(Arc<Kernel>),
}

impl Waiter for Who {
    fn can_drive(&self) -> bool {
        !matches!(self, Who::Task(_))
    }
}

impl Who {
    fn wake(self) {
        match self {
            Who::Thread(parker) | Who::Task(parker) => parker.wake(),
            Who::Poller(kernel) => kernel.tell_outer(),
        }
    }
}

// ------------------------------------------------------------ the socket

/// The event loop: who owns the box, leads.
#[derive(Default)]
pub(crate) struct Drive {
    readable: bool,
    paused: bool,
    writable: bool,
    /// A notice came: the lane may hold something.
    lane: bool,
    got: u32,
    endpoints: u32,
    /// Its own deadline: a handshake on its way.
    deadline: Option<u32>,
    /// What is read next begins a handshake with this deadline.
    greets: Option<u32>,
}

impl Drive {
    pub(crate) fn sticky(&self) -> bool {
        (self.readable || self.lane) && !self.paused
    }
}

pub(crate) struct State {
    pub(crate) lead: Lead<Box<Drive>, Who, Key>,
    /// Received, not yet taken.
    pub(crate) queue: u32,
    stalled: bool,
    /// The stalled pipe has room again: for who drives.
    unstalled: bool,
    /// Keys whose time has come; each stays so.
    pub(crate) open: Vec<Key>,
    /// What arrives opens these keys, one for each message, instead of going to the queue.
    pub(crate) route: Vec<Key>,
    /// Opened by a caller at `recv`, as a protocol may.
    pub(crate) on_recv: Option<Key>,
    /// A new endpoint, for who drives.
    fresh: u32,
    /// Endpoints taken in.
    pub(crate) taken: u32,
    /// A protocol's timer, and the engine's; what each opens.
    timer: Option<(u32, Key)>,
    timer_moved: bool,
    /// The same of one that was set lazily.
    lazily_moved: bool,
    alarm: Option<(u32, Key)>,
    alarm_moved: bool,
    drive_deadline: Option<u32>,
    polled_until: Option<u32>,
    driver_until: Option<u32>,
    closed: bool,
    // The one pipe's sending side.
    out: u32,
    writing: bool,
    blocked: bool,
    writable: bool,
    asked: bool,
    ask: bool,
}

impl State {
    fn next_due(&self) -> Option<u32> {
        let (timer, alarm) = (self.timer.map(|t| t.0), self.alarm.map(|t| t.0));
        [timer, alarm, self.drive_deadline].into_iter().flatten().min()
    }
    pub(crate) fn due_with(&self, d: &Drive) -> Option<u32> {
        [self.next_due(), d.deadline].into_iter().flatten().min()
    }
    pub(crate) fn has_news(&self) -> bool {
        self.fresh > 0 || self.unstalled
    }
    fn due_earlier(&self) -> bool {
        match (self.next_due(), self.polled_until) {
            (Some(due), Some(until)) => due < until,
            (Some(_), None) => true,
            _ => false,
        }
    }
    pub(crate) fn sent_all(&self) -> bool {
        self.out == 0
    }
    fn open(&mut self, key: Key) {
        self.open.push(key);
        self.lead.fire(key);
    }
}

pub(crate) struct Link {
    kernel: Arc<Kernel>,
    /// A runtime's poll announces the socket. Changed under its lock.
    outside: AtomicBool,
    notes: Option<Arc<Notes>>,
}

impl Parent for Link {
    fn arm(&self) -> bool {
        if !self.outside.load(Ordering::Relaxed) {
            self.kernel.arm();
        }
        self.notes.as_ref().is_some_and(|notes| !notes.sleep())
    }
    fn disarm(&self) {
        if !self.outside.load(Ordering::Relaxed) {
            self.kernel.disarm();
        }
        if let Some(notes) = &self.notes {
            notes.awake();
        }
    }
    fn lags(&self) -> bool {
        self.outside.load(Ordering::Relaxed)
    }
}

pub(crate) struct Socket {
    st: Mutex<State>,
    pub(crate) link: Link,
    pub(crate) kernel: Arc<Kernel>,
    /// Messages of a source without a descriptor and without a lock.
    lane: AtomicU32,
    lane_read: AtomicU32,
    /// For a scenario that waits for the state.
    changed: Condvar,
    limit: u32,
    out_limit: u32,
}

pub(crate) type Guard<'a> = MutexGuard<'a, State>;

/// What a `Poller` or a call for a moment asks for.
pub(crate) const EITHER: Want<Key> = Want::Any;

impl Socket {
    /// Queues of `limit` received and `out_limit` sent messages. `notes`: with a lane.
    pub(crate) fn with(limit: u32, out_limit: u32, notes: bool) -> Arc<Socket> {
        let kernel = Kernel::new();
        let notes = notes.then(|| Notes::new(Waker(kernel.clone())));
        Arc::new(Socket {
            st: Mutex::new(State {
                lead: Lead::new(Box::default()),
                queue: 0,
                stalled: false,
                unstalled: false,
                open: Vec::new(),
                route: Vec::new(),
                on_recv: None,
                fresh: 0,
                taken: 0,
                timer: None,
                timer_moved: false,
                lazily_moved: false,
                alarm: None,
                alarm_moved: false,
                drive_deadline: None,
                polled_until: None,
                driver_until: None,
                closed: false,
                out: 0,
                writing: false,
                blocked: false,
                writable: false,
                asked: false,
                ask: false,
            }),
            link: Link { kernel: kernel.clone(), outside: AtomicBool::new(false), notes },
            kernel,
            lane: AtomicU32::new(0),
            lane_read: AtomicU32::new(0),
            changed: Condvar::new(),
            limit,
            out_limit,
        })
    }

    pub(crate) fn new(limit: u32) -> Arc<Socket> {
        Socket::with(limit, 1, false)
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        self.st.lock().unwrap()
    }

    // ------------------------------------------------------------ leaving

    pub(crate) fn finish<'a>(&'a self, mut st: Guard<'a>) {
        if st.lead.owes_nothing(Self::owed(&st)) {
            return;
        }
        let leave = self.leave(&mut st);
        drop(st);
        self.carry_out(leave);
    }

    fn owed(st: &State) -> Owed {
        let timer_moved = st.timer_moved || st.lazily_moved && !st.lead.is_looked_at();
        Owed {
            news: st.fresh > 0,
            unstalled: st.unstalled,
            moved: timer_moved || st.alarm_moved,
            blocked: st.blocked,
            ask: st.ask,
        }
    }

    pub(crate) fn leave(&self, st: &mut State) -> Leave<Who> {
        let owed = Self::owed(st);
        (st.timer_moved, st.lazily_moved, st.alarm_moved, st.ask) = (false, false, false, false);
        let (earlier, dated) = (st.due_earlier(), st.next_due().is_some());
        let (can_recv, can_send) = (st.queue > 0 || st.closed, st.out < self.out_limit || st.closed);
        st.lead.leave(owed, || earlier, || dated, || Now { can_recv, can_send }, &self.link)
    }

    pub(crate) fn carry_out(&self, leave: Leave<Who>) {
        if leave.post || leave.list {
            self.kernel.post();
        }
        let Some(todo) = leave.todo else { return };
        if todo.nudge {
            self.kernel.wake();
        }
        for who in todo.wake.into_iter().flatten().chain(todo.wake_too) {
            who.wake();
        }
    }

    // ------------------------------------------------------------ waiting

    /// Whether receiving or sending would not wait.
    pub(crate) fn level(&self, st: &State, recv: bool, send: bool) -> bool {
        st.closed || (recv && st.queue > 0) || (send && st.out < self.out_limit)
    }

    fn satisfied(&self, st: &mut State, want: Want<Key>) -> bool {
        match want {
            Want::Key(_) => st.lead.leader_fired() || (st.closed && want != Want::Key(CLOSED)),
            _ if st.closed => true,
            Want::Recv => st.queue > 0,
            Want::Send => st.out < self.out_limit,
            Want::Any => st.queue > 0 || st.out < self.out_limit,
        }
    }

    fn wait<'a>(&'a self, mut st: Guard<'a>, want: Want<Key>, patience: Patience) -> (Guard<'a>, bool) {
        if st.asked && st.out > 0 && !st.writing && !st.blocked {
            return (self.flush(st, 1), false);
        }
        match st.lead.take(want, &self.link) {
            Some(drive) => self.wait_leading(st, drive, want, patience),
            None => self.wait_behind(st, want, patience),
        }
    }

    fn wait_leading<'a>(
        &'a self,
        mut st: Guard<'a>,
        mut d: Box<Drive>,
        want: Want<Key>,
        patience: Patience,
    ) -> (Guard<'a>, bool) {
        let mut late = false;
        loop {
            self.refresh(&mut st, &mut d);
            if self.satisfied(&mut st, want) || late {
                self.give(&mut st, d);
                return (st, late);
            }
            st = self.lead_once(st, &mut d, want, patience);
            late = patience == Short;
        }
    }

    fn lead_once<'a>(
        &'a self,
        mut st: Guard<'a>,
        d: &mut Drive,
        want: Want<Key>,
        patience: Patience,
    ) -> Guard<'a> {
        let due = if patience == Short { NOW } else { st.due_with(d) };
        st.polled_until = due;
        st.lead.sleep(want);
        let leave = self.leave(&mut st);
        drop(st);
        self.carry_out(leave);
        self.turn(d, due);
        let mut st = self.lock();
        st.lead.awake();
        st.polled_until = None;
        self.deliver(st, d)
    }

    pub(crate) fn before_sleep(&self, st: &mut State, d: &Drive, want: Want<Key>) {
        st.polled_until = st.due_with(d);
        st.lead.sleep(want);
    }

    /// The `Poller`'s round; `true` when `want` is satisfied.
    pub(crate) fn serve(&self, d: &mut Drive, want: Want<Key>) -> bool {
        self.notes_awake();
        loop {
            self.turn(d, NOW);
            let mut st = self.lock();
            st.lead.awake();
            st.polled_until = None;
            st = self.deliver(st, d);
            self.refresh(&mut st, d);
            if self.satisfied(&mut st, want) {
                self.finish(st);
                return true;
            }
            let again = d.sticky() || st.has_news();
            self.before_sleep(&mut st, d, want);
            self.finish(st);
            if !again && self.notes_sleep() {
                return false;
            }
        }
    }

    pub(crate) fn sleep_or_wake(&self, d: &Drive, missed: bool) {
        if missed || d.sticky() || !self.notes_sleep() {
            self.kernel.wake();
        }
    }

    pub(crate) fn give(&self, st: &mut State, d: Box<Drive>) {
        st.drive_deadline = d.deadline;
        let unread = d.sticky();
        st.lead.give(d, unread);
    }

    pub(crate) fn forget_sleep(&self, st: &mut State) {
        st.polled_until = None;
        self.notes_awake();
    }

    fn wait_behind<'a>(
        &'a self,
        mut st: Guard<'a>,
        want: Want<Key>,
        patience: Patience,
    ) -> (Guard<'a>, bool) {
        let me = Parker::new();
        let id = st.lead.park(want, Who::Thread(me.clone()));
        self.finish(st);
        me.park(patience);
        let mut st = self.lock();
        if !st.lead.cancel(want, id) {
            st.lead.returned();
            return (st, false);
        }
        (st, patience == Short)
    }

    /// `None`: closed, or late.
    pub(crate) fn wait_on<R>(
        &self,
        want: Want<Key>,
        patience: Patience,
        mut f: impl FnMut(&Socket, &mut State) -> Option<R>,
    ) -> Option<R> {
        let mut st = self.lock();
        let mut late = false;
        loop {
            let result = if st.closed { None } else { f(self, &mut st) };
            if result.is_some() || st.closed || late {
                self.finish(st);
                return result;
            }
            (st, late) = self.wait(st, want, patience);
        }
    }

    /// A task on some executor: polls, waits for its waker, polls again. `polls`: dropped after so many.
    pub(crate) fn task<R>(
        &self,
        want: Want<Key>,
        polls: u32,
        mut f: impl FnMut(&Socket, &mut State) -> Option<R>,
    ) -> Option<R> {
        let me = Parker::new();
        let mut slot = None;
        for _ in 0..polls {
            let mut st = self.lock();
            if let Some(id) = slot.take() {
                st.lead.cancel(want, id);
            }
            let result = if st.closed { None } else { f(self, &mut st) };
            if result.is_some() || st.closed {
                self.finish(st);
                return result;
            }
            slot = Some(st.lead.park(want, Who::Task(me.clone())));
            self.finish(st);
            me.park(if polls == u32::MAX { Endless } else { Short });
        }
        self.unpark(want, slot);
        None
    }

    /// A future is dropped.
    pub(crate) fn unpark(&self, want: Want<Key>, slot: Option<u64>) {
        if let Some(id) = slot {
            let mut st = self.lock();
            st.lead.cancel(want, id);
            self.finish(st);
        }
    }

    /// Reads ahead for a call that does not wait.
    fn pump(&self) {
        let mut st = self.lock();
        if !st.closed
            && (!st.lead.watched() || self.link.lags())
            && let Some(mut d) = st.lead.take(EITHER, &self.link)
        {
            self.refresh(&mut st, &mut d);
            st = self.lead_once(st, &mut d, EITHER, Short);
            self.refresh(&mut st, &mut d);
            self.give(&mut st, d);
        }
        self.finish(st);
    }
}
