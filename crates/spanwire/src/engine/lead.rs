//! The lead of a socket: which thread drives its event loop, and who is told when that changes.
//!
//! Whoever holds the token `D` (the event loop itself, a box) drives; so two drivers at a time cannot be
//! written down. A caller that must wait takes the token if it lies here, else it queues as a follower. One
//! function, [`Lead::leave`], decides before every unlock who must be told, from the state alone; nothing
//! else wakes anybody. Giving the lead back is lazy: the background driver looks at the socket every tick
//! and watches it only once no caller has used it since.
//!
//! Owns: the token, the waiters, and the decision. Never: makes a system call (but through [`Parent`]),
//! wakes anybody itself (the caller carries a [`Todo`] out after unlocking), or knows pipes and messages.
//! Every method is called under the socket's lock.
//!
//! Invariants, at every unlock:
//! - L1: the token is here, or one thread holds it.
//! - L2: token here, not watched, and somebody waits ⇒ a notified thread is on its way; it comes back here and takes
//!   the lead or passes it on.
//! - L3: token here, not watched, nobody waits ⇒ the driver has this socket on its list.
//! - L4: an item is ready and a consumer waits ⇒ a notified consumer is on its way; a key was fired ⇒ all who wait
//!   for it are told.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;

/// One who waits: a thread or a `Poller` can take the lead, a task cannot.
pub(crate) trait Waiter {
    fn can_drive(&self) -> bool;
}

/// The socket's entry in the driver's own poll. Called under the socket's lock, never blocks.
pub(crate) trait Parent {
    /// `true`: there are notices already, the driver must be kicked.
    fn arm(&self) -> bool;
    fn disarm(&self);
    /// Not the driver watches but one that may stand still: no thread is to wait for it.
    fn lags(&self) -> bool;
}

/// What a caller waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want<K> {
    Recv,
    Send,
    /// Either: a `Poller`.
    Any,
    /// A key that the protocol fires.
    Key(K),
}

/// What the engine sees at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    pub(crate) can_recv: bool,
    pub(crate) can_send: bool,
}

/// What is owed to whoever drives, at an unlock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owed {
    /// Endpoints or connections to take in or let go, or jobs.
    pub(crate) news: bool,
    /// A pipe that was full has room again.
    pub(crate) unstalled: bool,
    /// A timer was set that is due before all others.
    pub(crate) moved: bool,
    /// A pipe waits to be writable.
    pub(crate) blocked: bool,
    /// Bytes were left to gather, which the driver is to mind.
    pub(crate) ask: bool,
}

/// Carry out after unlocking.
#[must_use]
#[derive(Debug)]
pub(crate) struct Leave<W> {
    /// Put this socket before the driver, now.
    pub(crate) post: bool,
    /// The same, but by its next tick is soon enough.
    pub(crate) list: bool,
    pub(crate) todo: Option<Todo<W>>,
}

/// Whom to tell.
#[must_use]
#[derive(Debug)]
pub(crate) struct Todo<W> {
    pub(crate) wake: [Option<W>; 3],
    pub(crate) wake_too: Vec<W>,
    /// Interrupt the leader's poll.
    pub(crate) nudge: bool,
    /// Put this socket before the driver, now.
    kick: bool,
    /// The same, by its next tick.
    list: bool,
}

impl<W> Todo<W> {
    fn none() -> Self {
        Todo { wake: [None, None, None], wake_too: Vec::new(), nudge: false, kick: false, list: false }
    }
    fn push(&mut self, w: W) {
        match self.wake.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(w),
            None => self.wake_too.push(w),
        }
    }
}

/// What the driver does with a socket on its list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// In use: look again at the next tick.
    Keep,
    /// Somebody minds it.
    Drop,
    /// It is watched from here on: drive it once, for what no descriptor announces.
    Armed,
}

pub(crate) struct Lead<D, W, K> {
    token: Option<D>,
    watched: bool,
    /// The leading caller is in its poll, or on the way into it, and waits for this.
    sleeping: Option<Want<K>>,
    /// What the leader waits for, asleep or not, and whether that key was fired.
    leading: Option<K>,
    leader_fired: bool,
    /// Rounds given back by callers; the driver compares it with what it saw a tick ago.
    polls: u32,
    seen: u32,
    pub(crate) listed: bool,
    /// Put before the driver, which has not looked yet.
    pub(crate) posted: bool,
    /// Given back while a pipe may hold more than was read: its edge is spent.
    unread: bool,
    /// An event came to who watches while another had the token: its edge is spent as well.
    missed: bool,
    /// Threads notified and not yet back under the lock.
    notified: u32,
    /// Exported descriptors, lingering: somebody must always watch.
    pub(crate) keep_watched: u32,
    recv: VecDeque<(u64, W)>,
    send: VecDeque<(u64, W)>,
    /// Threads that wait for a key: a handful.
    keyed: VecDeque<(u64, K, W)>,
    /// Tasks that wait for a key: may be many.
    keyed_tasks: HashMap<K, Vec<(u64, W)>>,
    /// Told of their key, to be woken by the next `leave`.
    fired: Vec<W>,
    /// Followers in all queues.
    waiting: usize,
    next_id: u64,
}

impl<D, W: Waiter, K: Copy + Eq + Hash> Lead<D, W, K> {
    pub(crate) fn new(token: D) -> Self {
        Lead {
            token: Some(token),
            watched: false,
            sleeping: None,
            leading: None,
            leader_fired: false,
            polls: 0,
            seen: 0,
            listed: false,
            posted: false,
            unread: false,
            missed: false,
            notified: 0,
            keep_watched: 0,
            recv: VecDeque::new(),
            send: VecDeque::new(),
            keyed: VecDeque::new(),
            keyed_tasks: HashMap::new(),
            fired: Vec::new(),
            waiting: 0,
            next_id: 0,
        }
    }

    /// A caller that must wait asks for the lead.
    pub(crate) fn take(&mut self, want: Want<K>, parent: &impl Parent) -> Option<D> {
        let token = self.token.take()?;
        if self.watched {
            self.watched = false;
            parent.disarm();
        }
        self.missed = false; // it polls itself
        self.leading = match want {
            Want::Key(key) => Some(key),
            _ => None,
        };
        self.leader_fired = false;
        Some(token)
    }

    /// The driver, or a runtime that watches in its place, after an event of the parent. `None`: the event was stale, or
    /// another drives, who [goes on](Lead::take_missed) for it.
    pub(crate) fn take_as_driver(&mut self) -> Option<D> {
        let token = if self.watched { self.token.take() } else { None };
        self.missed |= token.is_none();
        token
    }

    /// Whoever drives without being a caller, before it gives the token back: whether to come again, since an event came
    /// meanwhile to somebody else.
    pub(crate) fn take_missed(&mut self) -> bool {
        std::mem::take(&mut self.missed)
    }

    /// Either gives it back; `leave` must follow before the lock is dropped. `unread`: the last read may
    /// have left something, and no edge will tell.
    pub(crate) fn give(&mut self, token: D, unread: bool) {
        debug_assert!(self.token.is_none());
        self.unread = unread;
        self.token = Some(token);
        self.sleeping = None;
        self.leading = None;
        self.polls = self.polls.wrapping_add(1);
    }

    pub(crate) fn sleep(&mut self, want: Want<K>) {
        self.sleeping = Some(want);
    }

    pub(crate) fn awake(&mut self) {
        self.sleeping = None;
    }

    /// Whether the key that the leader waits for was fired since it asked.
    pub(crate) fn leader_fired(&mut self) -> bool {
        std::mem::take(&mut self.leader_fired)
    }

    /// Queue a follower. A thread must then unlock (through `leave`) and park; a task unlocks.
    pub(crate) fn park(&mut self, want: Want<K>, waiter: W) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        match want {
            Want::Recv | Want::Any => self.recv.push_back((id, waiter)),
            Want::Send => self.send.push_back((id, waiter)),
            Want::Key(key) if waiter.can_drive() => self.keyed.push_back((id, key, waiter)),
            Want::Key(key) => self.keyed_tasks.entry(key).or_default().push((id, waiter)),
        }
        self.waiting += 1;
        id
    }

    /// A follower gives up (deadline, dropped future) or is back for another reason. `true`: it was still
    /// queued. `false`: it had been notified, and owes a `leave`.
    pub(crate) fn cancel(&mut self, want: Want<K>, id: u64) -> bool {
        let found = match want {
            Want::Recv | Want::Any => remove(&mut self.recv, |w| w.0 == id),
            Want::Send => remove(&mut self.send, |w| w.0 == id),
            Want::Key(key) => remove(&mut self.keyed, |w| w.0 == id) || self.cancel_task(key, id),
        };
        self.waiting -= usize::from(found);
        found
    }

    fn cancel_task(&mut self, key: K, id: u64) -> bool {
        let Some(tasks) = self.keyed_tasks.get_mut(&key) else { return false };
        let before = tasks.len();
        tasks.retain(|w| w.0 != id);
        let left = tasks.len();
        if left == 0 {
            self.keyed_tasks.remove(&key);
        }
        left < before
    }

    /// A notified thread is back under the lock.
    pub(crate) fn returned(&mut self) {
        self.notified -= 1;
    }

    /// The protocol said that whoever waits for `key` is to look again.
    pub(crate) fn fire(&mut self, key: K) {
        if self.leading == Some(key) {
            self.leader_fired = true;
        }
        if self.waiting == 0 {
            return;
        }
        if let Some(tasks) = self.keyed_tasks.remove(&key) {
            self.waiting -= tasks.len();
            self.fired.extend(tasks.into_iter().map(|(_, w)| w));
        }
        let mut at = 0;
        while at < self.keyed.len() {
            if self.keyed[at].1 != key {
                at += 1;
            } else if let Some((_, _, w)) = self.keyed.remove(at) {
                self.waiting -= 1;
                self.notified += 1;
                self.fired.push(w);
            }
        }
    }

    fn pop(&mut self, recv: bool) -> Option<W> {
        let queue = if recv { &mut self.recv } else { &mut self.send };
        let (_, w) = queue.pop_front()?;
        self.waiting -= 1;
        if w.can_drive() {
            self.notified += 1;
        }
        Some(w)
    }

    fn pop_one_that_drives(&mut self) -> Option<W> {
        let mut found = None;
        for queue in [&mut self.recv, &mut self.send] {
            if let Some(at) = queue.iter().position(|(_, w)| w.can_drive()) {
                found = queue.remove(at).map(|(_, w)| w);
                break;
            }
        }
        let w = found.or_else(|| self.keyed.pop_front().map(|(_, _, w)| w))?;
        self.notified += 1;
        self.waiting -= 1;
        Some(w)
    }

    /// Nobody waits, and somebody minds the socket: without `work` nobody must be told.
    #[inline]
    fn is_quiet(&self, must: bool) -> bool {
        let quiet = self.waiting == 0 && self.sleeping.is_none() && self.fired.is_empty();
        let lazy = self.listed && !must && self.keep_watched == 0;
        quiet && (self.token.is_none() || self.watched || lazy)
    }

    /// Whoever drives next looks at the timers soon, untold: a leader that is awake, or the driver at its next tick.
    #[inline]
    pub(crate) fn is_looked_at(&self) -> bool {
        match self.token {
            None => self.sleeping.is_none() && !self.watched,
            // On the driver's list, or put on it by the `leave` that follows.
            Some(_) => !self.watched,
        }
    }

    /// The common case, without a look at anything that a message does not touch: nobody waits, nothing is new, and
    /// somebody minds the socket. ([`leave`](Lead::leave) would say the same, at the price of building its answer: a
    /// fifth of a small message.)
    #[inline]
    pub(crate) fn owes_nothing(&self, owed: Owed) -> bool {
        self.is_quiet(owed.blocked) && !owed.ask && !owed.news && !owed.unstalled && !owed.moved
    }

    /// Before every unlock that may have changed something: who must be told?
    ///
    /// `earlier`: a timer is due before whoever polls comes back by himself. `dated`: there is one at all.
    #[inline]
    pub(crate) fn leave(
        &mut self,
        owed: Owed,
        earlier: impl FnOnce() -> bool,
        dated: impl FnOnce() -> bool,
        now: impl FnOnce() -> Now,
        parent: &impl Parent,
    ) -> Leave<W> {
        // What cannot wait for the driver's next look: a pipe is blocked on WRITABLE, an endpoint is new, a timer is
        // due earlier.
        let must = owed.news || (owed.moved && earlier());
        // What no descriptor announces waits for whoever drives.
        let work = must || owed.unstalled;
        let blocked = must || owed.blocked;
        let was_watched = self.watched;
        let mut todo =
            (work || !self.is_quiet(blocked)).then(|| self.leave_slow(work, blocked, now(), parent));
        if let Some(todo) = &mut todo
            && !was_watched
            && self.watched
            && dated()
        {
            todo.kick = true; // the driver does not know our next deadline
        }
        let (kick, list) = todo.as_ref().map_or((false, false), |t| (t.kick, t.list));
        let post = (owed.ask || kick) && !std::mem::replace(&mut self.posted, true);
        Leave { post, list, todo }
    }

    #[cold]
    fn leave_slow(&mut self, work: bool, must: bool, now: Now, parent: &impl Parent) -> Todo<W> {
        let mut todo = Todo::none();
        todo.wake_too = std::mem::take(&mut self.fired);
        // Consumers first. One notified thread at a time: it passes the baton itself, and until it runs
        // another wake would only cost. Tasks do not count, their executor may be busy.
        for (recv, can) in [(true, now.can_recv), (false, now.can_send)] {
            let front_drives =
                if recv { self.recv.front() } else { self.send.front() }.is_some_and(|(_, w)| w.can_drive());
            if can
                && (self.notified == 0 || !front_drives)
                && let Some(w) = self.pop(recv)
            {
                todo.push(w);
            }
        }
        // A sleeping leader is a waiter too.
        let served = match self.sleeping {
            Some(Want::Recv) => now.can_recv || work,
            Some(Want::Send) => now.can_send || work,
            Some(Want::Any) => now.can_recv || now.can_send || work,
            Some(Want::Key(_)) => self.leader_fired || work,
            None => false,
        };
        if served {
            self.sleeping = None;
            todo.nudge = true;
        }
        if self.token.is_none() {
            return todo; // someone leads and looks at the work before it sleeps
        }
        if self.watched {
            todo.kick |= work;
            if parent.lags()
                && self.notified == 0
                && let Some(w) = self.pop_one_that_drives()
            {
                todo.push(w);
            }
            return todo;
        }
        // Nobody leads.
        if self.notified > 0 {
            return todo; // a thread is on its way and will lead or pass it on
        }
        if let Some(w) = self.pop_one_that_drives() {
            todo.push(w);
            return todo;
        }
        if self.waiting > 0 || must || self.keep_watched > 0 {
            self.watched = true;
            todo.kick |= parent.arm() || work || self.unread || self.missed;
            self.missed = false;
        } else if !self.listed {
            self.listed = true;
            todo.list = true;
        }
        todo
    }

    /// The driver's tick for a listed socket.
    pub(crate) fn look(&mut self, parent: &impl Parent) -> Look {
        let moved = std::mem::replace(&mut self.seen, self.polls) != self.polls;
        if moved {
            return Look::Keep;
        }
        self.listed = false;
        if self.token.is_none() || self.watched {
            return Look::Drop; // a blocked caller leads; it will list the socket when it leaves
        }
        self.watched = true;
        parent.arm(); // the driver drives it right now
        Look::Armed
    }

    /// Close: the next `leave` tells everyone, the leader included.
    pub(crate) fn wake_all(&mut self) {
        for recv in [true, false] {
            while let Some(w) = self.pop(recv) {
                self.fired.push(w);
            }
        }
        while let Some((_, _, w)) = self.keyed.pop_front() {
            self.waiting -= 1;
            self.notified += 1;
            self.fired.push(w);
        }
        for (_, tasks) in self.keyed_tasks.drain() {
            self.waiting -= tasks.len();
            self.fired.extend(tasks.into_iter().map(|(_, w)| w));
        }
        self.leader_fired = true;
    }

    pub(crate) fn watched(&self) -> bool {
        self.watched
    }
}

impl<D, W, K: fmt::Debug> fmt::Debug for Lead<D, W, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead")
            .field("here", &self.token.is_some())
            .field("watched", &self.watched)
            .field("sleeping", &self.sleeping)
            .field("listed", &self.listed)
            .field("posted", &self.posted)
            .field("unread", &self.unread)
            .field("missed", &self.missed)
            .field("notified", &self.notified)
            .field("keep_watched", &self.keep_watched)
            .field("waiting", &(self.recv.len(), self.send.len(), self.keyed.len(), self.keyed_tasks.len()))
            .finish_non_exhaustive()
    }
}

fn remove<T>(queue: &mut VecDeque<T>, is: impl Fn(&T) -> bool) -> bool {
    queue.iter().position(is).is_some_and(|at| queue.remove(at).is_some())
}
