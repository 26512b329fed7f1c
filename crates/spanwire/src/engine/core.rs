//! The state of one socket behind its lock, and the way through it: a call into the protocol, and leaving.
//!
//! Every path is lock, call the protocol, write what it queued, [`leave`](super::lead), unlock, wake whom the
//! lead names. Lock order: the state of one socket, then the driver's inbox, then the notices. Never two
//! sockets at once; never the lock across a system call that can block, a callback, or a wake.
//!
//! Owns: the state. Never: knows what a protocol means or how a transport works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam_channel::Sender;

use super::Notes;
use super::config::Config;
use super::contain::dispose;
use super::drive::{Conn, Door, Drive, Job, WAKE};
use super::driver::{Driver, driver};
use super::endpoint::Endpoint;
use super::lead::{self, Lead, Now, Owed, Parent, Todo};
use super::sys::{self, CALLERS_LEAD, Level};
use super::tx::Writer;
use super::waiters::Who;
use crate::error::Error;
use crate::events::{Event, Stats};
use crate::protocol::{Clock, Cx, Effects, PipeId, Pipes, Protocol, ProtocolInfo, Readiness, Time, WaitKey};
use crate::transport::Listener;

/// Fired whenever a pipe opens or closes: `wait_for_peers`.
pub(crate) const PEERS: WaitKey = WaitKey(u32::MAX, 0);
/// Fired when the last pipe of a closing socket has gone.
pub(crate) const CLOSED: WaitKey = WaitKey(u32::MAX, 1);

/// Never fired: who waits for it hears only of the socket's end.
pub(crate) const END: WaitKey = WaitKey(u32::MAX, 2);

/// Rounds for one socket before others have their turn.
pub(crate) const ROUNDS: usize = 16;

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
    /// When the driver comes by, by the last deadline that it took down.
    pub(crate) driver_until: Option<Time>,
    /// Kept while a runtime watches in the driver's place; dropping it ends that.
    #[cfg(feature = "tokio")]
    pub(crate) outside: Option<Box<dyn Send>>,
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
    pub(super) link: Link,
    pub(crate) notes: Arc<Notes>,
    pub(crate) registry: Arc<mio::Registry>,
    pub(crate) info: ProtocolInfo,
    pub(crate) cfg: Config,
    pub(crate) me: Weak<Core>,
    /// The protocol has panicked: the driver is to bury the socket.
    pub(crate) panicked: AtomicBool,
    born: u32,
}

/// The socket's place in the driver's poll.
pub(crate) struct Link {
    pub(super) nested: sys::nested::Nested,
    /// Another poll than the driver's announces it: that of a runtime. Changed under the socket's lock.
    pub(super) outside: AtomicBool,
    notes: Arc<Notes>,
    inner: RawFd,
    pub(crate) token: usize,
}

impl Parent for Link {
    fn arm(&self) -> bool {
        if !self.outside.load(Ordering::Relaxed) {
            self.nested.set(true);
        }
        !self.notes.sleep()
    }
    fn disarm(&self) {
        if !self.outside.load(Ordering::Relaxed) {
            self.nested.set(false);
        }
        self.notes.awake();
    }
    fn lags(&self) -> bool {
        self.outside.load(Ordering::Relaxed)
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
        let registry = Arc::new(poll.registry().try_clone().map_err(Error::System)?);
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
                driver_until: None,
                #[cfg(feature = "tokio")]
                outside: None,
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
            link: Link { nested, outside: AtomicBool::new(false), notes: notes.clone(), inner, token },
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
            moved: st.fx.timers.moved()
                || st.alarm_moved
                || st.fx.timers.moved_lazily() && !st.lead.is_looked_at(),
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
        if (leave.tell.post || leave.tell.list)
            && let Some(me) = self.me.upgrade()
            && let Ok(driver) = driver()
        {
            if leave.tell.post { driver.post(me) } else { driver.list(me) }
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

/// Differs between sockets and processes; not for secrets.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(Time::now().since_start().as_nanos() as u64);
    hasher.finish()
}
