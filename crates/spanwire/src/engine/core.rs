//! The state of one socket behind its lock, and the two ways through it: a call into the protocol, and a wait.
//!
//! Every path is lock, call the protocol, write what it queued, [`leave`](super::lead), unlock, wake whom the
//! lead names. Lock order: the state of one socket, then the driver's inbox, then the notices. Never two
//! sockets at once; never the lock across a system call that can block, a callback, or a wake.
//!
//! Owns: the state. Never: knows what a protocol means or how a transport works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll as TaskPoll, Waker};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Notes;
use super::contain::dispose;
use super::drive::{Conn, Door, Drive, Job, WAKE};
use super::driver::{Driver, driver};
use super::endpoint::Endpoint;
use super::lead::{self, Lead, Now, Owed, Parent, Todo, Want};
use super::sys::{self, CALLERS_LEAD, Level};
use super::tx::Writer;
use super::waiters::{Parker, Who};
use crate::error::{Error, WaitError};
use crate::events::{Event, Stats};
use crate::protocol::{
    Clock, Cx, DropReason, Effects, Pipe, PipeId, Pipes, Protocol, ProtocolInfo, Readiness, Reason, Time,
    WaitKey,
};
use crate::queue::Limit;
use crate::transport::{Bag, Facts, Listener, Schemes};

/// Fired whenever a pipe opens or closes: `wait_for_peers`.
pub(crate) const PEERS: WaitKey = WaitKey(u32::MAX, 0);
/// Fired when the last pipe of a closing socket has gone.
pub(crate) const CLOSED: WaitKey = WaitKey(u32::MAX, 1);

/// Never fired: who waits for it hears only of the socket's end.
pub(crate) const END: WaitKey = WaitKey(u32::MAX, 2);

/// Rounds for one socket before others have their turn.
pub(crate) const ROUNDS: usize = 16;

/// The application's say on who may attach.
#[derive(Clone)]
pub(crate) struct Accept(pub(crate) Arc<AcceptFn>);

pub(crate) type AcceptFn = dyn Fn(&Facts) -> Result<(), String> + Send + Sync;

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accept(..)")
    }
}

/// Settings of a socket, fixed for its life.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) send_limit: Limit,
    pub(crate) recv_limit: Limit,
    pub(crate) linger: Duration,
    pub(crate) recv_max_size: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) reconnect: bool,
    pub(crate) send_priority: u8,
    pub(crate) recv_priority: u8,
    pub(crate) options: Bag,
    pub(crate) schemes: Schemes,
    pub(crate) accept: Option<Accept>,
}

/// Times at which the engine itself has something to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Alarm {
    Dial(u32),
    NextTarget(u32),
    Linger,
}

/// News for who drives.
pub(crate) enum Fresh {
    Listener {
        endpoint: u32,
        token: usize,
        url: Arc<str>,
        door: Door,
    },
    Drop {
        token: usize,
    },
    /// The peer may read to the end first. The writer, if its transport has not let everything out yet.
    Drain {
        token: usize,
        writer: Option<Box<Writer>>,
    },
    /// A write found the peer gone: what is there is read, up to the end or, if not `all`, as far as there is
    /// room.
    ReadOut {
        token: usize,
        all: bool,
    },
}

/// Dropped after unlocking: it may be a user's type.
#[expect(dead_code, reason = "held only to be dropped")]
pub(crate) enum Trash {
    Writer(Option<Box<Writer>>),
    Conns(Vec<Conn>),
    Endpoint(Endpoint),
    Listener(Option<Box<dyn Listener>>),
}

/// How far a socket is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Open,
    /// Refuses users, sends what is queued.
    Closing,
    Closed,
}

pub(crate) struct State {
    pub(crate) lead: Lead<Box<Drive>, Who, WaitKey>,
    pub(crate) protocol: Box<dyn Protocol>,
    pub(crate) pipes: Pipes,
    pub(crate) fx: Effects,
    pub(crate) fresh: Vec<Fresh>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) trash: Vec<Trash>,
    pub(crate) tokens: slab::Slab<()>,
    pub(crate) endpoints: BTreeMap<u32, Endpoint>,
    pub(crate) next_endpoint: u32,
    pub(crate) alarms: BTreeSet<(Time, Alarm)>,
    /// One was set that is due before all others: whoever sleeps may have to be told.
    alarm_moved: bool,
    /// Next deadline of the event loop itself, while it lies here.
    pub(crate) drive_deadline: Option<Time>,
    /// Until when whoever polls (a caller, or the driver) sleeps.
    pub(crate) polled_until: Option<Time>,
    /// Pipes whose kernel buffer is full.
    pub(crate) blocked: usize,
    /// Pipes with bytes left to gather.
    pub(crate) asked: Vec<PipeId>,
    /// The driver is to be told of `asked`.
    pub(crate) ask: bool,
    pub(crate) phase: Phase,
    /// The protocol has panicked; another stands in its place.
    pub(crate) ruined: bool,
    /// While closing: messages that will not be sent.
    pub(crate) undelivered: usize,
    /// Connections that are only awaited to be closed by their peers.
    pub(crate) draining: usize,
    pub(crate) level: Option<Level>,
    pub(crate) subscribers: Vec<Sender<Event>>,
    /// Counts of what is gone; those of live pipes are with the pipes.
    pub(crate) totals: Stats,
}

impl State {
    fn next_due(&self) -> Option<Time> {
        next_due(&self.fx, &self.alarms, self.drive_deadline)
    }

    pub(crate) fn set_alarm(&mut self, at: Time, alarm: Alarm) {
        self.alarm_moved |= self.alarms.first().is_none_or(|(first, _)| at < *first);
        self.alarms.insert((at, alarm));
    }

    /// Until when the event loop may sleep.
    pub(crate) fn due_with(&self, d: &Drive) -> Option<Time> {
        [self.next_due(), d.next_deadline()].into_iter().flatten().min()
    }

    /// Whether there is something that whoever drives must take in.
    pub(crate) fn has_news(&self) -> bool {
        !(self.fresh.is_empty() && self.jobs.is_empty() && self.fx.unstalled.is_empty())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase != Phase::Open
    }

    pub(crate) fn emit(&mut self, event: Event) {
        if self.subscribers.is_empty() {
            return;
        }
        let lost = &mut self.totals.events_lost;
        self.subscribers.retain(|s| match s.try_send(event.clone()) {
            Ok(()) => true,
            Err(crossbeam_channel::TrySendError::Full(_)) => {
                *lost += 1;
                true
            }
            Err(crossbeam_channel::TrySendError::Disconnected(_)) => false,
        });
    }

    pub(crate) fn random(&mut self) -> u64 {
        Cx::new(&mut self.pipes, &mut self.fx, Clock::lazy()).random()
    }
}

pub(crate) type Guard<'a> = MutexGuard<'a, State>;

/// One socket.
pub(crate) struct Core {
    st: Mutex<State>,
    link: Link,
    pub(crate) notes: Arc<Notes>,
    pub(crate) registry: mio::Registry,
    pub(crate) info: ProtocolInfo,
    pub(crate) cfg: Config,
    pub(crate) me: Weak<Core>,
    /// The protocol has panicked: the driver is to bury the socket.
    pub(crate) panicked: AtomicBool,
    born: u32,
}

/// The socket's place in the driver's poll.
pub(crate) struct Link {
    nested: sys::nested::Nested,
    notes: Arc<Notes>,
    inner: RawFd,
    pub(crate) token: usize,
}

impl Parent for Link {
    fn arm(&self) -> bool {
        self.nested.set(true);
        !self.notes.sleep()
    }
    fn disarm(&self) {
        self.nested.set(false);
        self.notes.awake();
    }
}

/// What to carry out after unlocking.
#[must_use]
pub(crate) struct Leave {
    tell: lead::Leave<Who>,
    trash: Vec<Trash>,
}

impl Core {
    pub(crate) fn new(protocol: Box<dyn Protocol>, cfg: Config) -> Result<Arc<Core>, Error> {
        let driver: &Driver = driver().map_err(Error::System)?;
        let poll = mio::Poll::new().map_err(Error::System)?;
        let notes = Notes::new(mio::Waker::new(poll.registry(), WAKE).map_err(Error::System)?);
        let registry = poll.registry().try_clone().map_err(Error::System)?;
        let inner = poll.as_raw_fd();
        let token = driver.reserve();
        let nested =
            driver.nest(&poll, token).inspect_err(|_| driver.release(token)).map_err(Error::System)?;
        let seed = seed();
        let info = protocol.info();
        let core = Arc::new_cyclic(|me| Core {
            st: Mutex::new(State {
                lead: Lead::new(Box::new(Drive::new(poll))),
                protocol,
                pipes: Pipes::new(seed as u32),
                fx: Effects { rng: seed, ..Effects::default() },
                fresh: Vec::new(),
                jobs: Vec::new(),
                trash: Vec::new(),
                tokens: slab::Slab::new(),
                endpoints: BTreeMap::new(),
                next_endpoint: 0,
                alarms: BTreeSet::new(),
                alarm_moved: false,
                drive_deadline: None,
                polled_until: None,
                blocked: 0,
                asked: Vec::new(),
                ask: false,
                phase: Phase::Open,
                ruined: false,
                undelivered: 0,
                draining: 0,
                level: None,
                subscribers: Vec::new(),
                totals: Stats::default(),
            }),
            link: Link { nested, notes: notes.clone(), inner, token },
            notes,
            registry,
            info,
            cfg,
            me: me.clone(),
            panicked: AtomicBool::new(false),
            born: sys::forks(),
        });
        driver.enter(token, core.me.clone());
        if !CALLERS_LEAD {
            let mut st = core.lock();
            st.lead.keep_watched = 1;
            core.finish(st);
        }
        Ok(core)
    }

    #[inline]
    pub(crate) fn forked(&self) -> bool {
        self.born != sys::forks()
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_> {
        // After a panic under the lock the driver buries the socket (`contain`); until then its state is what it is.
        self.st.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn inner_fd(&self) -> RawFd {
        self.link.inner
    }

    // ------------------------------------------------------------ calls into the protocol

    /// Any call into the protocol. Pipes that it closes are closed after it has returned.
    #[inline]
    pub(crate) fn call<R>(&self, st: &mut State, f: impl FnOnce(&mut dyn Protocol, &mut Cx<'_>) -> R) -> R {
        let result =
            self.guard(|| f(&mut *st.protocol, &mut Cx::new(&mut st.pipes, &mut st.fx, Clock::lazy())));
        if !(st.fx.closes.is_empty() && st.fx.wakes.is_empty() && st.fx.drop_marks.is_empty()) {
            self.settle(st);
        }
        result
    }

    /// What the protocol says of its readiness.
    #[inline]
    pub(crate) fn ready_now(&self, st: &State) -> Readiness {
        self.guard(|| st.protocol.readiness())
    }

    pub(crate) fn held(&self, st: &State) -> usize {
        self.guard(|| st.protocol.held())
    }

    #[cold]
    pub(crate) fn settle(&self, st: &mut State) {
        loop {
            while let Some(key) = st.fx.wakes.pop() {
                st.lead.fire(key);
            }
            for (pipe, reason, count) in std::mem::take(&mut st.fx.drop_marks) {
                st.emit(Event::Dropped { pipe, reason, count });
            }
            if st.fx.closes.is_empty() {
                return;
            }
            for (id, reason) in std::mem::take(&mut st.fx.closes) {
                self.close_one(st, id, reason, true);
            }
        }
    }

    /// The peer is gone, as the reading side found: all that it sent has been read. It may still be wanted.
    pub(crate) fn end_pipe(&self, st: &mut State, id: PipeId, reason: Reason) {
        let Some(p) = st.pipes.get_mut(id) else { return };
        if !p.open {
            return;
        }
        if p.tx.writing {
            // Its writer holds what the protocol may want back, and comes at once.
            p.tx.ending.get_or_insert(reason);
            return;
        }
        let unread = p.unread.take();
        if matches!(reason, Reason::TooBig { .. }) && (unread.is_some() || p.ended.is_none()) {
            self.call(st, |_, cx| cx.dropped(Some(id), DropReason::TooBig));
        }
        let Some(p) = st.pipes.get_mut(id) else { return };
        if let Some(why) = p.ended.clone() {
            if unread.is_some() && p.inq.is_empty() {
                self.close_pipe(st, id, why, false);
            }
            return;
        }
        // A write that failed has asked before.
        let asks =
            unread.is_none() && !p.inq.is_empty() && matches!(reason, Reason::Peer | Reason::Broken(_));
        let keep = asks && !st.is_closed() && self.may_stay(st, id, &reason);
        match st.pipes.get(id) {
            Some(p) if keep && !p.inq.is_empty() => {}
            _ => self.close_pipe(st, id, unread.unwrap_or(reason), false),
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
        p.unread = Some(reason.clone());
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
            p.ended = Some(reason.clone());
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
    fn close_one(&self, st: &mut State, id: PipeId, reason: Reason, drain: bool) {
        let Some(p) = st.pipes.get_mut(id) else { return };
        p.open = false;
        if p.tx.writing {
            // Its writer holds what was not begun; it completes the close when it is back, at once.
            p.tx.dying.get_or_insert((reason, drain));
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

    // ------------------------------------------------------------ leaving

    /// Writes what the protocol queued, decides who must be told, unlocks, and tells.
    #[inline]
    pub(crate) fn finish<'a>(&'a self, mut st: Guard<'a>) {
        if !st.fx.dirty.is_empty() {
            st = self.write_dirty(st);
        }
        if Self::owes_nothing(&st) {
            return;
        }
        let leave = self.leave(&mut st);
        drop(st);
        self.carry_out(leave);
    }

    #[inline]
    fn owed(st: &State) -> Owed {
        Owed {
            news: !(st.fresh.is_empty() && st.jobs.is_empty()),
            unstalled: !st.fx.unstalled.is_empty(),
            moved: st.fx.timers.moved() || st.alarm_moved,
            blocked: st.blocked > 0,
            ask: st.ask,
        }
    }

    #[inline]
    fn owes_nothing(st: &State) -> bool {
        st.lead.owes_nothing(Self::owed(st)) && st.trash.is_empty() && st.level.is_none()
    }

    /// Asks the lead who must be told. The guard must be dropped next.
    #[inline]
    pub(crate) fn leave(&self, st: &mut State) -> Leave {
        if st.level.is_some() {
            self.show_level(st);
        }
        let owed = Self::owed(st);
        st.fx.timers.take_moved();
        (st.alarm_moved, st.ask) = (false, false);
        let closed = st.is_closed();
        let State { lead, protocol, fx, alarms, drive_deadline, polled_until, .. } = st;
        let next_due = || next_due(fx, alarms, *drive_deadline);
        let earlier = || match (next_due(), *polled_until) {
            (Some(due), Some(until)) => due < until,
            // Nobody sleeps, or sleeps without limit.
            (Some(_), None) => true,
            _ => false,
        };
        let now = || {
            let Readiness { send, recv } = self.guard(|| protocol.readiness());
            Now { can_recv: recv || closed, can_send: send || closed }
        };
        let tell = lead.leave(owed, earlier, || next_due().is_some(), now, &self.link);
        let trash = if st.trash.is_empty() { Vec::new() } else { std::mem::take(&mut st.trash) };
        Leave { tell, trash }
    }

    #[inline]
    pub(crate) fn carry_out(&self, leave: Leave) {
        if leave.tell.post
            && let Some(me) = self.me.upgrade()
            && let Ok(driver) = driver()
        {
            driver.post(me);
        }
        if let Some(todo) = leave.tell.todo {
            self.tell(todo);
        }
        if !leave.trash.is_empty() {
            dispose(leave.trash);
        }
    }

    #[cold]
    fn tell(&self, todo: Todo<Who>) {
        if todo.nudge {
            self.notes.nudge();
        }
        for who in todo.wake.into_iter().flatten().chain(todo.wake_too) {
            who.wake();
        }
    }

    #[cold]
    fn show_level(&self, st: &mut State) {
        let up = st.is_closed() || self.ready_now(st).recv;
        if let Some(level) = &mut st.level {
            level.show(up);
        }
    }

    // ------------------------------------------------------------ waiting

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
            loop {
                st = self.refresh(st, d);
                // Also a deadline in the past deserves one look at what has arrived.
                let late = looked && deadline.is_some_and(|at| Instant::now() >= at);
                if self.satisfied(&mut st, want) || late {
                    return (st, late);
                }
                st = self.lead_once(st, d, want, deadline);
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
            && !st.lead.watched()
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

    /// The exported descriptor: readable exactly while `recv` would not wait.
    pub(crate) fn readable_fd(&self) -> Result<RawFd, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let mut st = self.lock();
        if st.level.is_none() {
            st.level = Some(Level::new().map_err(Error::System)?);
            st.lead.keep_watched += 1; // nobody else would drive
        }
        let fd = st.level.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        self.finish(st);
        Ok(fd)
    }

    /// In a forked child the lock may be held by a thread that does not exist there: it is not touched.
    pub(crate) fn look_at<R: Default>(&self, f: impl FnOnce(&State) -> R) -> R {
        if self.forked() { R::default() } else { f(&self.lock()) }
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.look_at(|st| self.ready_now(st))
    }

    pub(crate) fn stats(&self) -> Stats {
        self.look_at(super::stats::snapshot)
    }
}

impl Drop for Core {
    /// Nobody has a handle, the driver holds none: out of the parent before the poll closes, since a forked
    /// child may still hold a copy of it.
    fn drop(&mut self) {
        if !self.forked() {
            self.link.nested.remove();
            if let Ok(driver) = driver() {
                driver.release(self.link.token);
            }
        }
    }
}

/// The whole state on one line, for bug reports; without it when another thread holds the lock.
impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Socket");
        out.field("protocol", &self.info.name);
        if let Ok(st) = self.st.try_lock() {
            let ready = st.protocol.readiness();
            out.field("phase", &st.phase)
                .field("ready", &(ready.send, ready.recv))
                .field("lead", &st.lead)
                .field("endpoints", &st.endpoints)
                .field("fresh", &st.fresh.len())
                .field("jobs", &st.jobs.len())
                .field("unstalled", &st.fx.unstalled)
                .field("dirty", &st.fx.dirty)
                .field("asked", &st.asked)
                .field("blocked", &st.blocked)
                .field("notes", &self.notes);
            for p in st.pipes.iter() {
                out.field("pipe", p);
            }
        }
        out.finish_non_exhaustive()
    }
}

/// When something is due next: a timer of the protocol, one of the engine, or of the loop while it lies here.
fn next_due(fx: &Effects, alarms: &BTreeSet<(Time, Alarm)>, drive_deadline: Option<Time>) -> Option<Time> {
    let alarm = alarms.first().map(|(at, _)| *at);
    [fx.timers.next(), alarm, drive_deadline].into_iter().flatten().min()
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

/// Differs between sockets and processes; not for secrets.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(Time::now().since_start().as_nanos() as u64);
    hasher.finish()
}
