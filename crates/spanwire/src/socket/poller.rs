//! Waiting for several sockets at once, of any protocols.
//!
//! While it waits, a [`Poller`] leads the sockets that nobody else leads, so it needs no help of the
//! background driver and adds no thread. Readiness is a level: what is not taken is told again.
//!
//! Owns: a poll of its own over the sockets' polls. Never: takes an item.

use std::fmt;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Token};

use super::Socket;
use crate::engine::{CALLERS_LEAD, Core, Drive, END, Want, Who, count_forks, forks};
use crate::error::Error;
use crate::protocol::{Protocol, Readiness, WaitKey};

const WAKE: Token = Token(usize::MAX);

/// What to wait for on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    send: bool,
    recv: bool,
}

impl Interest {
    /// An item can be received.
    pub const RECV: Interest = Interest { send: false, recv: true };
    /// An item can be sent.
    pub const SEND: Interest = Interest { send: true, recv: false };
    /// Neither: only that the socket is closed.
    pub const END: Interest = Interest { send: false, recv: false };
    /// Either.
    pub const BOTH: Interest = Interest { send: true, recv: true };

    fn want(self) -> Want<WaitKey> {
        match (self.recv, self.send) {
            (true, false) => Want::Recv,
            (false, true) => Want::Send,
            (true, true) => Want::Any,
            (false, false) => Want::Key(END),
        }
    }
}

/// A socket that is ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Ready {
    /// The number that [`Poller::add`] gave it.
    pub key: usize,
    /// An item can be received.
    pub recv: bool,
    /// An item can be sent.
    pub send: bool,
    /// The socket is closed.
    pub closed: bool,
}

/// Waits for several sockets.
///
/// ```
/// # use spanwire::{Interest, Poller, Pull, Push};
/// # use std::time::Duration;
/// let (a, b) = (Pull::new()?, Pull::new()?);
/// let mut poller = Poller::new()?;
/// let (key_a, key_b) = (poller.add(&a, Interest::RECV)?, poller.add(&b, Interest::RECV)?);
/// let push = Push::new()?;
/// push.connect(b.bind("tcp://127.0.0.1:0")?.url())?;
/// push.send("hello")?;
/// let ready = poller.wait(Some(Duration::from_secs(5)))?;
/// assert_eq!(ready[0].key, key_b);
/// assert_eq!(b.try_recv()?, "hello");
/// # let _ = key_a;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Poller {
    poll: mio::Poll,
    waker: Arc<mio::Waker>,
    events: Events,
    members: Vec<Option<Member>>,
    /// Forks before this process: in a child the poll is still the parent's.
    born: u32,
}

struct Member {
    core: Arc<Core>,
    fd: RawFd,
    interest: Interest,
    /// An event of its poll was spent while somebody else led: no other announces what is left.
    missed: bool,
    /// Keeps the socket open.
    _socket: Box<dyn std::any::Any + Send>,
}

/// How a member is waited for.
enum Hold {
    Lead(Box<Drive>),
    Behind(Vec<(Want<WaitKey>, u64)>),
    None,
}

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// [`Error::System`] when the system has no more descriptors.
    pub fn new() -> Result<Poller, Error> {
        count_forks();
        let poll = mio::Poll::new().map_err(Error::System)?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKE).map_err(Error::System)?);
        Ok(Poller { poll, waker, events: Events::with_capacity(64), members: Vec::new(), born: forks() })
    }

    fn forked(&self) -> bool {
        self.born != forks()
    }

    /// Adds a socket; returns the key that [`Ready`] names it by.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Forked`].
    pub fn add<P: Protocol>(&mut self, socket: &Socket<P>, interest: Interest) -> Result<usize, Error> {
        let core = socket.core().clone();
        if core.forked() || self.forked() {
            return Err(Error::Forked);
        }
        let key = self.members.iter().position(Option::is_none).unwrap_or(self.members.len());
        let fd = core.inner_fd();
        if CALLERS_LEAD {
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), Token(key), mio::Interest::READABLE)
                .map_err(Error::System)?;
        }
        let member = Member { core, fd, interest, missed: false, _socket: Box::new(socket.clone()) };
        match self.members.get_mut(key) {
            Some(slot) => *slot = Some(member),
            None => self.members.push(Some(member)),
        }
        Ok(key)
    }

    /// Takes a socket out; `false` if there was none with this key.
    pub fn remove(&mut self, key: usize) -> bool {
        let Some(member) = self.members.get_mut(key).and_then(Option::take) else { return false };
        if CALLERS_LEAD && !self.forked() {
            // It fails only if it is not there.
            let _ = self.poll.registry().deregister(&mut SourceFd(&member.fd));
        }
        true
    }

    /// Waits until a socket is ready, and returns all that are; an empty list at the timeout. `None`: no limit.
    ///
    /// # Errors
    /// [`Error::System`] when the poll itself fails; [`Error::Forked`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Ready>, Error> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        if self.forked() || self.members.iter().flatten().any(|m| m.core.forked()) {
            return Err(Error::Forked);
        }
        let mut late = timeout.is_some_and(|t| t.is_zero());
        loop {
            let mut holds = Vec::with_capacity(self.members.len());
            // A panic in one socket's protocol must not cost the others the loops that are held here.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let ready = self.hold_all(&mut holds);
                let slept = if ready.is_empty() {
                    self.sleep(&mut holds, if late { Some(Instant::now()) } else { deadline })
                } else {
                    Ok(false)
                };
                (ready, slept)
            }));
            let found = self.release_all(holds);
            let (mut ready, slept) = outcome.unwrap_or_else(|payload| resume_unwind(payload));
            if ready.is_empty() {
                ready = found;
            }
            late |= slept?;
            if !ready.is_empty() || late {
                return Ok(ready);
            }
        }
    }

    /// Takes the lead of each member, or a place behind its leader, unless something is ready already: then
    /// all that is.
    fn hold_all(&mut self, holds: &mut Vec<Hold>) -> Vec<Ready> {
        let mut ready = Vec::new();
        for (key, member) in self.members.iter_mut().enumerate() {
            let Some(Member { core, interest, missed, .. }) = member else {
                holds.push(Hold::None);
                continue;
            };
            let mut st = core.lock();
            if let Some(r) = level(key, *interest, st.is_closed(), core.ready_now(&st)) {
                ready.push(r);
            }
            if !ready.is_empty() {
                core.finish(st);
                holds.push(Hold::None); // only the levels of the rest are looked at
                continue;
            }
            if core.has_left(&st) {
                st = core.flush_left(st);
            }
            let want = interest.want();
            let lead = if CALLERS_LEAD { st.lead.take(want, core.link()) } else { None };
            match lead {
                Some(mut drive) => {
                    st = core.refresh(st, &mut drive);
                    core.before_sleep(&mut st, &drive, want);
                    core.finish(st);
                    if std::mem::take(missed) || drive.sticky() || !core.notes.sleep() {
                        core.notes.nudge(); // served below, by its own wake
                    }
                    holds.push(Hold::Lead(drive));
                }
                None => {
                    let mut places = Vec::new();
                    let end = *interest == Interest::END;
                    for (on, want) in
                        [(interest.recv, Want::Recv), (interest.send, Want::Send), (end, Want::Key(END))]
                    {
                        if on {
                            places.push((want, st.lead.park(want, Who::Poller(self.waker.clone()))));
                        }
                    }
                    core.finish(st);
                    holds.push(Hold::Behind(places));
                }
            }
        }
        ready
    }

    /// Sleeps and serves what is led, until something is ready or told; `true` at the deadline.
    fn sleep(&mut self, holds: &mut [Hold], deadline: Option<Instant>) -> Result<bool, Error> {
        loop {
            let mut until = deadline;
            for (member, hold) in self.members.iter().zip(&*holds) {
                if let (Some(member), Hold::Lead(drive)) = (member, hold)
                    && let Some(due) = member.core.lock().due_with(drive)
                {
                    let due = due.instant();
                    until = Some(until.map_or(due, |u| u.min(due)));
                }
            }
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut self.events, left) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => return Err(Error::System(e)),
                Err(_) => self.events.clear(),
                Ok(()) => {}
            }
            let now = Instant::now();
            let told = self.events.iter().any(|e| e.token() == WAKE);
            let events: Vec<usize> = self.events.iter().map(|e| e.token().0).collect();
            let mut any = false;
            for (key, (member, hold)) in self.members.iter_mut().zip(holds.iter_mut()).enumerate() {
                let Some(member) = member else { continue };
                let Hold::Lead(drive) = hold else {
                    member.missed |= events.contains(&key);
                    continue;
                };
                let due = member.core.lock().due_with(drive).is_some_and(|at| at.instant() <= now);
                if events.contains(&key) || due {
                    any |= member.core.serve(drive, member.interest.want());
                }
            }
            let late = deadline.is_some_and(|at| now >= at);
            if told || any || late {
                return Ok(late && !told && !any);
            }
        }
    }

    fn release_all(&mut self, holds: Vec<Hold>) -> Vec<Ready> {
        let mut ready = Vec::new();
        for (key, (member, hold)) in self.members.iter().zip(holds).enumerate() {
            let Some(Member { core, interest, .. }) = member else { continue };
            let mut st = core.lock();
            match hold {
                Hold::Lead(drive) => {
                    st.polled_until = None;
                    core.notes.awake();
                    core.give(&mut st, drive);
                }
                Hold::Behind(places) => {
                    for (want, id) in places {
                        if !st.lead.cancel(want, id) {
                            st.lead.returned();
                        }
                    }
                }
                Hold::None => {}
            }
            ready.extend(level(key, *interest, st.is_closed(), core.ready_now(&st)));
            core.finish(st);
        }
        ready
    }
}

fn level(key: usize, interest: Interest, closed: bool, now: Readiness) -> Option<Ready> {
    let (recv, send) = (interest.recv && now.recv, interest.send && now.send);
    (closed || recv || send).then_some(Ready { key, recv, send, closed })
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Poller({} sockets)", self.members.iter().flatten().count())
    }
}
