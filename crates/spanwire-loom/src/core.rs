//! What the engine does under a socket's lock, step by step as in its `core.rs`, `waiting.rs`, `deliver.rs`,
//! `flush.rs`, `close.rs` and `driver.rs`, for a socket with one pipe and a protocol of nothing but a queue, keys and a
//! timer.
//!
//! Owns: the state. Never: decides who is told (that is `lead.rs`, the real one).

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::kernel::{Kernel, NOW};
use crate::lead::{Lead, Leave, Look, Now, Owed, Parent, Waiter, Want};
use crate::notes::{Notes, Notifier};
use crate::{Token, Waker};

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

/// What driving left.
struct Driven {
    due: Option<u32>,
    again: bool,
}

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

    // ------------------------------------------------------------ driving

    fn notes_sleep(&self) -> bool {
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

    fn flush<'a>(&'a self, mut st: Guard<'a>, mut rounds: u32) -> Guard<'a> {
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
    fn visit(&self) -> bool {
        let mut st = self.lock();
        st.asked = false;
        st = self.flush(st, 1);
        st.ask = false;
        let more = st.asked;
        self.finish(st);
        more
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
