//! The background driver: one thread for the process, which drives every socket that no caller drives.
//!
//! It sleeps in a poll that holds all sockets' polls, and does four things: drives a watched socket that has an
//! event or a due timer; looks every tick at the sockets on its list, and watches those that nobody has used since; comes by
//! every [`MIND`] at pipes that a hot sender left to gather, less often where that takes long; keeps lingering sockets
//! alive. With nothing to do it sleeps without limit.
//!
//! Owns: the thread and its lists. Never: ends with a panic of a socket's protocol or transport; holds a socket's lock for longer than a call, or the table's lock
//! while it drives.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::core::{Core, Guard, ROUNDS};
use super::drive::Drive;
use super::lead::Look;
use super::sys::nested::{Nested, Parent};
use super::sys::{self};
use crate::protocol::Time;

/// A socket given back by its caller is looked at this often.
const TICK: Duration = Duration::from_millis(2);
/// A pipe left to gather is visited this often;
const MIND: Duration = Duration::from_micros(200);
/// where a round of visits takes long, so many times what it took between two of them: what many pipes write a little at a
/// time costs more than what is written,
const REST: u32 = 4;
/// but at least so often. With 2 ms, hundreds of busy sockets of a process wrote so little at a time that their writes were
/// a third of the CPU time; a round over so many takes 2 ms itself.
const MIND_MOST: Duration = Duration::from_millis(8);
const WAKE: Token = Token(usize::MAX);
const EVENTS: usize = 256;

pub(crate) struct Driver {
    parent: Parent,
    waker: mio::Waker,
    table: Mutex<slab::Slab<Weak<Core>>>,
    inbox: Mutex<Inbox>,
    /// Forks before its process: in a child it has no thread, and its poll is the parent's.
    born: u32,
    /// That of a forked child. In its memory alone: each process sees its own behind its ancestors'.
    next: OnceLock<Box<Driver>>,
}

#[derive(Default)]
struct Inbox {
    posts: Vec<Arc<Core>>,
    lingering: Vec<Arc<Core>>,
    sleep: Sleep,
}

/// How long the driver sleeps, if nobody wakes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Sleep {
    #[default]
    Awake,
    /// To its next tick at the latest.
    Tick,
    /// For longer.
    Long,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's driver, started at first use. No lock is taken that a thread of a forked process's parent could have
/// held: of two that start it at once, one is dropped.
pub(crate) fn driver() -> io::Result<&'static Driver> {
    static FIRST: OnceLock<Driver> = OnceLock::new();
    let mut last: Option<&'static Driver> = None;
    while let Some(driver) = last.map_or(FIRST.get(), |d| d.next.get().map(|next| &**next)) {
        if driver.born == sys::forks() {
            return Ok(driver);
        }
        last = Some(driver);
    }
    sys::count_forks();
    let poll = Poll::new()?;
    let waker = mio::Waker::new(poll.registry(), WAKE)?;
    let parent = Parent::of(&poll)?;
    let fresh = Driver {
        parent,
        waker,
        table: Mutex::default(),
        inbox: Mutex::default(),
        born: sys::forks(),
        next: OnceLock::new(),
    };
    // It begins when it is known that it is the one; otherwise it ends with the channel.
    let (begin, begun) = std::sync::mpsc::sync_channel::<&'static Driver>(1);
    std::thread::Builder::new().name("spanwire-driver".into()).spawn(move || {
        if let Ok(driver) = begun.recv() {
            Run::new(driver, poll).run();
        }
    })?;
    let won = match last {
        None => FIRST.set(fresh).is_ok(),
        Some(last) => last.next.set(Box::new(fresh)).is_ok(),
    };
    let there = last.map_or(FIRST.get(), |d| d.next.get().map(|next| &**next));
    let driver = there.ok_or_else(|| io::Error::other("no driver was started"))?; // not reached: one was set
    if won {
        let _ = begin.send(driver); // its thread waits for it
    }
    Ok(driver)
}

impl Driver {
    /// A place in the table for a socket that is being made.
    pub(crate) fn reserve(&self) -> usize {
        lock(&self.table).insert(Weak::new())
    }

    pub(crate) fn nest(&self, inner: &Poll, token: usize) -> io::Result<Nested> {
        Nested::add(&self.parent, inner, token)
    }

    pub(crate) fn enter(&self, token: usize, core: Weak<Core>) {
        if let Some(slot) = lock(&self.table).get_mut(token) {
            *slot = core;
        }
    }

    pub(crate) fn release(&self, token: usize) {
        lock(&self.table).try_remove(token);
    }

    /// Puts a socket before the driver.
    pub(crate) fn post(&self, core: Arc<Core>) {
        self.give(Sleep::Tick, |inbox| inbox.posts.push(core));
    }

    /// The same, to be looked at by its next tick: a thousand sockets that are given back one after the other wake it
    /// once for a tick, not a thousand times.
    pub(crate) fn list(&self, core: Arc<Core>) {
        self.give(Sleep::Long, |inbox| inbox.posts.push(core));
    }

    /// Keeps a socket alive until it has closed.
    pub(crate) fn linger(&self, core: Arc<Core>) {
        self.give(Sleep::Tick, |inbox| inbox.lingering.push(core));
    }

    /// Wakes it if it sleeps for as long as `from`, which is not `Awake`, or longer.
    fn give(&self, from: Sleep, put: impl FnOnce(&mut Inbox)) {
        let mut inbox = lock(&self.inbox);
        put(&mut inbox);
        let wake = inbox.sleep >= from;
        if wake {
            inbox.sleep = Sleep::Awake;
        }
        drop(inbox);
        if wake {
            let _ = self.waker.wake(); // an error means that a wake is pending already
        }
    }

    fn core(&self, token: usize) -> Option<Arc<Core>> {
        lock(&self.table).get(token).and_then(Weak::upgrade)
    }
}

/// What the thread works with.
struct Run {
    driver: &'static Driver,
    /// Never closed, whatever ends the thread: all sockets name it by its number.
    poll: ManuallyDrop<Poll>,
    events: Events,
    /// Given back by callers, looked at every tick.
    list: Vec<Arc<Core>>,
    /// With pipes left to gather.
    minds: Vec<Arc<Core>>,
    /// The tokens of both.
    listed: HashSet<usize>,
    minded: HashSet<usize>,
    /// Driven, and not yet at the end of what was there.
    again: Vec<Arc<Core>>,
    lingering: Vec<Arc<Core>>,
    deadlines: BTreeSet<(Time, usize)>,
    due: HashMap<usize, Time>,
    tick: Instant,
    /// The next round of visits to those in `minds`.
    round: Instant,
}

impl Run {
    fn new(driver: &'static Driver, poll: Poll) -> Self {
        let now = Instant::now();
        Run {
            driver,
            poll: ManuallyDrop::new(poll),
            events: Events::with_capacity(EVENTS),
            list: Vec::new(),
            minds: Vec::new(),
            listed: HashSet::new(),
            minded: HashSet::new(),
            again: Vec::new(),
            lingering: Vec::new(),
            deadlines: BTreeSet::new(),
            due: HashMap::new(),
            tick: now,
            round: now,
        }
    }

    fn run(mut self) {
        sys::exact_timers();
        let mut posts = Vec::new();
        loop {
            self.sleep();
            {
                let mut inbox = lock(&self.driver.inbox);
                inbox.sleep = Sleep::Awake;
                std::mem::swap(&mut posts, &mut inbox.posts);
                self.lingering.append(&mut inbox.lingering);
            }
            if self.list.is_empty() {
                self.tick = Instant::now();
            }
            for core in posts.drain(..) {
                self.on_post(core);
            }
            for core in std::mem::take(&mut self.again) {
                self.drive(core);
            }
            let tokens: Vec<usize> =
                self.events.iter().map(|e| e.token()).filter(|t| *t != WAKE).map(|t| t.0).collect();
            for token in tokens {
                if let Some(core) = self.driver.core(token) {
                    self.drive(core);
                }
            }
            self.fire_deadlines();
            self.mind();
            self.look();
            self.lingering.retain(|core| core.survive(Core::lingers).unwrap_or(false));
        }
    }

    fn sleep(&mut self) {
        let now = Instant::now();
        let mut until: Option<Instant> = None;
        let mut sooner = |at: Instant| until = Some(until.map_or(at, |u| u.min(at)));
        if !self.list.is_empty() {
            sooner(self.tick + TICK);
        }
        if let Some((at, _)) = self.deadlines.first() {
            sooner(at.instant());
        }
        if !self.again.is_empty() {
            sooner(now);
        }
        let mut timeout = until.map(|at| at.saturating_duration_since(now));
        {
            let mut inbox = lock(&self.driver.inbox);
            if inbox.posts.is_empty() && inbox.lingering.is_empty() {
                inbox.sleep = if self.list.is_empty() { Sleep::Long } else { Sleep::Tick };
            } else {
                timeout = Some(Duration::ZERO);
            }
        }
        if !self.minds.is_empty() {
            let left = self.round.saturating_duration_since(now);
            let left = timeout.map_or(left, |t| t.min(left));
            if !left.is_zero() {
                sys::wait_fine(&self.poll, left);
            }
            timeout = Some(Duration::ZERO);
        }
        if self.poll.poll(&mut self.events, timeout).is_err() {
            self.events.clear(); // EINTR: nothing was seen
        }
    }

    fn on_post(&mut self, core: Arc<Core>) {
        let Some(post) = core.survive(Core::on_post) else { return };
        let token = core.link().token;
        if post.listed && self.listed.insert(token) {
            self.list.push(core.clone());
        }
        if post.asked && !self.minded.contains(&token) && core.survive(Core::visit).unwrap_or(false) {
            if self.minds.is_empty() {
                self.round = Instant::now() + MIND;
            }
            self.minded.insert(token);
            self.minds.push(core.clone());
        }
        if post.serve {
            self.drive(core);
        }
    }

    fn drive(&mut self, core: Arc<Core>) {
        let token = core.link().token;
        let Some(driven) = core.survive(Core::drive).flatten() else { return };
        if let Some(old) = self.due.remove(&token) {
            self.deadlines.remove(&(old, token));
        }
        if let Some(at) = driven.due {
            self.due.insert(token, at);
            self.deadlines.insert((at, token));
        }
        if driven.again {
            self.again.push(core);
        }
    }

    fn fire_deadlines(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Time::now();
        while let Some((at, token)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            self.due.remove(&token);
            if let Some(core) = self.driver.core(token) {
                self.drive(core);
            }
        }
    }

    fn mind(&mut self) {
        let began = Instant::now();
        if !self.minds.is_empty() && began >= self.round {
            let minded = &mut self.minded;
            self.minds.retain(|core| {
                core.survive(Core::visit).unwrap_or(false) || !minded.remove(&core.link().token)
            });
            let ended = Instant::now();
            self.round = ended + (ended.saturating_duration_since(began) * REST).clamp(MIND, MIND_MOST);
        }
    }

    fn look(&mut self) {
        if self.list.is_empty() || self.tick.elapsed() < TICK {
            return;
        }
        let mut armed = Vec::new();
        let listed = &mut self.listed;
        self.list.retain(|core| match core.survive(Core::look).unwrap_or(Look::Drop) {
            Look::Keep => true,
            look => {
                listed.remove(&core.link().token);
                if look == Look::Armed {
                    armed.push(core.clone());
                }
                false
            }
        });
        for core in armed {
            self.drive(core); // what no descriptor announces
        }
        self.tick = Instant::now();
    }
}

/// What a posted socket wants.
pub(crate) struct Post {
    listed: bool,
    asked: bool,
    serve: bool,
}

/// What driving a socket left.
pub(crate) struct Driven {
    pub(super) due: Option<Time>,
    pub(super) again: bool,
}

impl Core {
    fn on_post(&self) -> Post {
        let mut st = self.lock();
        st.lead.posted = false;
        Post { listed: st.lead.listed, asked: !st.asked.is_empty(), serve: st.lead.watched() }
    }

    /// The driver drives: `None` when somebody else does.
    fn drive(&self) -> Option<Driven> {
        let mut st = self.lock();
        // A deadline that brought it here is spent; who drives instead tells it of the next.
        st.driver_until = None;
        let d = st.lead.take_as_driver()?;
        let (mut st, driven) = self.drive_on(st, d);
        st.driver_until = driven.due;
        st.polled_until = driven.due;
        self.finish(st);
        Some(driven)
    }

    /// The rounds of one that is no caller: the driver, or a runtime.
    pub(super) fn drive_on<'a>(&'a self, mut st: Guard<'a>, d: Box<Drive>) -> (Guard<'a>, Driven) {
        self.with_loop(d, |d| {
            self.notes.awake();
            let mut again = true;
            for _ in 0..ROUNDS {
                st = self.refresh(st, d);
                let leave = self.leave(&mut st);
                drop(st);
                self.carry_out(leave);
                let more = d.turn(self, Some(Duration::ZERO));
                st = self.lock();
                st = self.deliver(st, d);
                let quiet = !more && !d.sticky() && !st.has_news();
                if quiet && self.notes.sleep() {
                    again = false;
                    break;
                }
            }
            again |= st.lead.take_missed();
            let due = st.due_with(d);
            (st, Driven { due, again })
        })
    }

    fn look(&self) -> Look {
        let mut st = self.lock();
        let look = st.lead.look(self.link());
        self.finish(st);
        look
    }
}
