//! The event loop of a socket: the boxed value whose holder leads.
//!
//! It polls, accepts, dials, shakes hands and reads, all without the socket's lock, and leaves what it found
//! in lists; [`deliver`](super::deliver) takes them under the lock. Pipes are read in turn, each once a round.
//!
//! Owns: listeners, connections on their way, and the reading half of each pipe. Never: touches the socket's
//! state, writes on an attached pipe, or allocates on a peer's word.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::contain::{contain, dispose};
use super::core::Core;
use super::handshake::{Attach, Opening, Stage, advance};
use super::rx::{Filled, Rx, broken};
use super::tx::Writer;
use crate::Message;
use crate::protocol::{PipeId, Reason, Time};
use crate::transport::{Connection, Dialer, Listener, Registrar, Target};
use crate::wire::{Inbox, Side};

/// Token of the socket's own waker.
pub(crate) const WAKE: Token = Token(usize::MAX);
const EVENTS: usize = 256;
/// Connections accepted from one listener in a round.
const ACCEPTS: usize = 32;
/// Connections of a socket that may be on their way at once; the oldest gives way.
const OPENING: usize = 1024;
/// After accept failed (out of descriptors), this long until it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Empty inboxes kept for the next turn.
const INBOXES: usize = 64;
/// How long a pipe that was finished waits for the peer to read to the end and close.
const DRAIN: Duration = Duration::from_secs(1);

thread_local! {
    /// What is read into. A thread reads for one socket at a time, so however many sockets it drives, one buffer serves,
    /// and stays in its cache.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Something to do for whoever drives.
pub(crate) enum Job {
    Dial { endpoint: u32, url: Arc<str>, token: usize, dialer: Arc<dyn Dialer>, target: Option<Target> },
    Resolve { endpoint: u32, dialer: Arc<dyn Dialer> },
}

/// What the loop found, for the state.
pub(crate) enum Report {
    Accepted {
        endpoint: u32,
        token: usize,
    },
    AcceptFailed {
        endpoint: u32,
        error: String,
    },
    DialFailed {
        endpoint: u32,
        token: usize,
        url: String,
        error: String,
    },
    /// A connection on its way came to nothing.
    Failed {
        endpoint: u32,
        token: usize,
        remote: String,
        established: bool,
        reason: Reason,
    },
    /// The handshake is over: the pipe may be opened.
    Ready {
        token: usize,
    },
    Dead {
        token: usize,
        reason: Reason,
    },
    Freed {
        token: usize,
    },
}

/// A listener, shared so that whoever closes its endpoint can end it there and then: when the close has
/// returned, the address is free. Its lock is taken after the state's, and never held for longer than `accept`.
#[derive(Clone)]
pub(crate) struct Door(Arc<Mutex<Option<Box<dyn Listener>>>>);

impl Door {
    pub(crate) fn new(listener: Box<dyn Listener>) -> Self {
        Door(Arc::new(Mutex::new(Some(listener))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Listener>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is closed.
    fn accept(&self) -> Option<io::Result<Connection>> {
        self.lock().as_mut().map(|listener| contain(|| listener.accept()))
    }

    pub(crate) fn close(&self) -> Option<Box<dyn Listener>> {
        self.lock().take()
    }
}

/// Boxed, every one: a socket has a place for each connection that it ever had at once.
pub(crate) enum Conn {
    Listener(Box<Listening>),
    Opening(Box<Opening>),
    Open(Box<Half>),
    Draining(Box<Draining>),
}

/// A bound address.
pub(crate) struct Listening {
    endpoint: u32,
    url: Arc<str>,
    door: Door,
    /// Accepting failed: until then it is not tried, and the failure was told.
    paused: Option<Time>,
}

/// Finished: the end of the stream is awaited, so that closing does not reset what was sent.
pub(crate) struct Draining {
    rx: Rx,
    /// A writer whose transport has not let everything out yet.
    writer: Option<Box<Writer>>,
    until: Time,
}

/// The reading half of a pipe.
pub(crate) struct Half {
    pub(crate) pipe: PipeId,
    rx: Rx,
    /// What it brought and is not delivered yet; at rest none, for a thousand of them would be as many empty buffers.
    inbox: Option<Box<Inbox>>,
    readable: bool,
    queued: bool,
    /// The inbound queue is full: nothing is read until it has drained to half.
    pub(crate) paused: bool,
    /// Room in the inbound queue when the state was last seen: messages, bytes.
    pub(crate) room: (usize, usize),
    /// The peer is gone, as a write found: what is there is read, and no more is awaited.
    last: Option<Last>,
}

/// How far the reading of a peer that is gone goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// To the end, when the queue has room for it.
    All,
    /// As far as there is room now.
    Room,
}

/// The event loop itself: who owns the box, leads.
pub(crate) struct Drive {
    poll: Poll,
    events: Events,
    conns: Vec<Option<Conn>>,
    /// Connections to serve, in turn.
    ready: VecDeque<usize>,
    /// During a turn: its thread's.
    scratch: Vec<u8>,
    /// Handshakes that must be over, pauses, drains: times and tokens.
    deadlines: BTreeSet<(Time, usize)>,
    opening: usize,
    /// Tokens for what will be accepted, given under the lock.
    pub(crate) spare: Vec<usize>,
    pub(crate) jobs: Vec<Job>,
    notes: Vec<Token>,
    // For `deliver`:
    pub(crate) touched: Vec<usize>,
    /// Empty, to be used again.
    #[expect(clippy::vec_box, reason = "a box goes to a connection and comes back")]
    inboxes: Vec<Box<Inbox>>,
    pub(crate) writable: Vec<PipeId>,
    pub(crate) reports: Vec<Report>,
    pub(crate) trash: Vec<Conn>,
}

impl Drive {
    pub(crate) fn new(poll: Poll) -> Self {
        Drive {
            poll,
            events: Events::with_capacity(EVENTS),
            conns: Vec::new(),
            ready: VecDeque::new(),
            scratch: Vec::new(),
            deadlines: BTreeSet::new(),
            opening: 0,
            spare: Vec::new(),
            jobs: Vec::new(),
            notes: Vec::new(),
            touched: Vec::new(),
            inboxes: Vec::new(),
            writable: Vec::new(),
            reports: Vec::new(),
            trash: Vec::new(),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether something can be done without an event.
    pub(crate) fn sticky(&self) -> bool {
        !self.ready.is_empty() || !self.jobs.is_empty() || !self.reports.is_empty()
    }

    /// One round: jobs, a poll, and the service of what is ready. No lock is held. `true`: there may be more
    /// events than were seen.
    pub(crate) fn turn(&mut self, core: &Core, timeout: Option<Duration>) -> bool {
        // While a thread's locals are being destroyed there is none: then a fresh one serves.
        self.scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
        let more = self.turn_once(core, timeout);
        let scratch = std::mem::take(&mut self.scratch);
        let _ = SCRATCH.try_with(|cell| cell.set(scratch));
        more
    }

    fn turn_once(&mut self, core: &Core, timeout: Option<Duration>) -> bool {
        if !self.trash.is_empty() {
            dispose(std::mem::take(&mut self.trash));
        }
        while let Some(job) = self.jobs.pop() {
            self.run(core, job);
        }
        let mut timeout = if self.sticky() { Some(Duration::ZERO) } else { timeout };
        if timeout != Some(Duration::ZERO) && !core.notes.sleep() {
            timeout = Some(Duration::ZERO);
        }
        // An error is EINTR: no events, and the caller comes again.
        let polled = self.poll.poll(&mut self.events, timeout).is_ok();
        core.notes.awake();
        let mut n = 0;
        if polled {
            let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
            for event in &events {
                n += 1;
                if event.token() != WAKE {
                    self.on_event(
                        event.token().0,
                        event.is_readable() || event.is_error(),
                        event.is_writable(),
                        event.is_read_closed() || event.is_error(),
                    );
                }
            }
            self.events = events;
        }
        let mut notes = std::mem::take(&mut self.notes);
        core.notes.take(&mut notes);
        for token in notes.drain(..) {
            self.on_event(token.0, true, true, false);
        }
        self.notes = notes;
        if !self.deadlines.is_empty() {
            self.expire(core);
        }
        for _ in 0..self.ready.len() {
            if let Some(key) = self.ready.pop_front() {
                self.serve(core, key);
            }
        }
        n == EVENTS
    }

    fn on_event(&mut self, key: usize, readable: bool, writable: bool, closed: bool) {
        let Some(Some(conn)) = self.conns.get_mut(key) else { return };
        match conn {
            Conn::Open(half) => {
                if writable {
                    self.writable.push(half.pipe);
                }
                if readable || closed {
                    half.readable = true;
                    if closed {
                        half.rx.end_is_near();
                    }
                    if !half.queued && !half.paused {
                        half.queued = true;
                        self.ready.push_back(key);
                    }
                }
            }
            Conn::Opening(opening) => {
                if closed {
                    opening.end_is_near();
                }
                self.ready.push_back(key);
            }
            _ => self.ready.push_back(key),
        }
    }

    fn serve(&mut self, core: &Core, key: usize) {
        match self.conns.get_mut(key) {
            Some(Some(Conn::Open(_))) => self.read(key),
            Some(Some(Conn::Opening(_))) => self.step(core, key),
            Some(Some(Conn::Listener(_))) => self.accept(core, key),
            Some(Some(Conn::Draining(d))) => {
                if d.writer.as_mut().is_some_and(|writer| writer.shutdown()) {
                    d.writer = None;
                }
                if d.rx.drained(&mut self.scratch) {
                    self.free(key);
                }
            }
            _ => {}
        }
    }

    fn free(&mut self, key: usize) {
        if let Some(conn) = self.conns.get_mut(key).and_then(Option::take) {
            if let Conn::Opening(_) = conn {
                self.opening -= 1;
            }
            self.trash.push(conn);
            self.reports.push(Report::Freed { token: key });
        }
    }

    fn set(&mut self, key: usize, conn: Conn) {
        if self.conns.len() <= key {
            self.conns.resize_with(key + 1, || None);
        }
        self.conns[key] = Some(conn);
    }

    // ------------------------------------------------------------ under the lock, from `deliver` and `refresh`

    pub(crate) fn half(&mut self, key: usize) -> Option<&mut Half> {
        match self.conns.get_mut(key) {
            Some(Some(Conn::Open(half))) => Some(half),
            _ => None,
        }
    }

    /// What an open connection brought, with its pipe. To be [kept](Self::keep) when it is empty.
    pub(crate) fn take_inbox(&mut self, key: usize) -> Option<(PipeId, Box<Inbox>)> {
        let half = self.half(key)?;
        Some((half.pipe, half.inbox.take()?))
    }

    /// For the next connection that brings something.
    pub(crate) fn keep(&mut self, inbox: Box<Inbox>) {
        if self.inboxes.len() < INBOXES {
            self.inboxes.push(inbox);
        }
    }

    /// After the state was seen: how much more the pipe may bring in.
    pub(crate) fn set_room(&mut self, key: usize, room: Option<(usize, usize)>) {
        let Some(half) = self.half(key) else { return };
        half.room = room.unwrap_or((0, 0));
        half.paused = room.is_none();
        if half.paused && half.last == Some(Last::Room) {
            self.reports.push(Report::Dead { token: key, reason: Reason::Peer });
            return;
        }
        if !half.paused && !half.queued && (half.readable || half.rx.is_undecoded()) {
            half.queued = true;
            self.ready.push_back(key);
        }
    }

    /// A write found the peer gone: reads what is there, and reports the end.
    pub(crate) fn read_out(&mut self, key: usize, all: bool) {
        let Some(half) = self.half(key) else { return };
        half.last = Some(if all { Last::All } else { Last::Room });
        half.readable = true;
        half.rx.end_is_near();
        if half.paused {
            if !all {
                self.reports.push(Report::Dead { token: key, reason: Reason::Peer });
            }
        } else if !half.queued {
            half.queued = true;
            self.ready.push_back(key);
        }
    }

    pub(crate) fn add_listener(&mut self, key: usize, endpoint: u32, url: Arc<str>, door: Door) {
        self.set(key, Conn::Listener(Box::new(Listening { endpoint, url, door, paused: None })));
        self.ready.push_back(key); // what announced itself before we knew has spent its edge
    }

    /// Takes the parts of a connection whose handshake is over.
    pub(crate) fn take_ready(&mut self, key: usize) -> Option<(u32, Side, Box<Attach>)> {
        match self.conns.get_mut(key)? {
            Some(Conn::Opening(opening)) => {
                let (endpoint, side) = (opening.endpoint, opening.side);
                match std::mem::replace(&mut opening.stage, Stage::Gone) {
                    Stage::Ready(attach) => Some((endpoint, side, attach)),
                    other => {
                        opening.stage = other;
                        None
                    }
                }
            }
            _ => None,
        }
    }

    /// The pipe of a connection was opened: from here on it is read.
    pub(crate) fn attach(&mut self, key: usize, pipe: PipeId, rx: Rx, inbox: Inbox, room: (usize, usize)) {
        self.opening -= 1;
        let inbox = (!inbox.is_idle()).then(|| Box::new(inbox));
        let half = Half { pipe, rx, inbox, readable: true, queued: true, paused: false, room, last: None };
        self.conns[key] = Some(Conn::Open(Box::new(half)));
        self.ready.push_back(key);
    }

    /// Lets go of a connection. `true`: its token is free.
    pub(crate) fn drop_conn(&mut self, key: usize) -> bool {
        let Some(conn) = self.conns.get_mut(key).and_then(Option::take) else { return false };
        if let Conn::Opening(opening) = &conn {
            self.opening -= 1;
            self.deadlines.remove(&(opening.deadline, key));
        }
        self.trash.push(conn);
        true
    }

    /// The same for an open one, but first lets the peer read to the end. `false`: it is not open.
    pub(crate) fn drain_conn(&mut self, key: usize, writer: Option<Box<Writer>>) -> bool {
        let Some(slot) = self.conns.get_mut(key) else { return false };
        let Some(Conn::Open(half)) = slot.take_if(|conn| matches!(conn, Conn::Open(_))) else { return false };
        let rx = half.rx;
        let until = Time::now() + DRAIN;
        self.set(key, Conn::Draining(Box::new(Draining { rx, writer, until })));
        self.deadlines.insert((until, key));
        self.ready.push_back(key);
        true
    }

    /// Takes back a dial that has not begun, from the jobs to come or from those that are here. `true`: its
    /// token is free.
    pub(crate) fn forget_dial(&mut self, to_come: &mut Vec<Job>, key: usize) -> bool {
        let others = |job: &Job| !matches!(job, Job::Dial { token, .. } if *token == key);
        let before = to_come.len() + self.jobs.len();
        to_come.retain(others);
        self.jobs.retain(others);
        to_come.len() + self.jobs.len() < before
    }

    // ------------------------------------------------------------ accepting and dialling

    fn registrar<'a>(core: &'a Core, key: usize) -> Registrar<'a> {
        Registrar { registry: &core.registry, token: Token(key), notifier: core.notes.notifier(Token(key)) }
    }

    fn accept(&mut self, core: &Core, key: usize) {
        for _ in 0..ACCEPTS {
            let Some(token) = self.spare.pop() else { break };
            let Some(Some(Conn::Listener(listening))) = self.conns.get_mut(key) else {
                self.spare.push(token);
                return;
            };
            let Listening { endpoint, url, door, paused } = &mut **listening;
            if paused.is_some_and(|until| Time::now() < until) {
                self.spare.push(token);
                return; // more have come; they wait with those that are there
            }
            let (endpoint, url) = (*endpoint, url.clone());
            let Some(accepted) = door.accept() else {
                self.spare.push(token);
                return; // closed a moment ago; the news is on its way
            };
            match accepted {
                Ok(connection) => {
                    *paused = None;
                    self.reports.push(Report::Accepted { endpoint, token });
                    self.adopt(core, token, endpoint, Side::Listener, url, connection);
                }
                Err(e) => {
                    self.spare.push(token);
                    match e.kind() {
                        ErrorKind::WouldBlock => {
                            *paused = None;
                            return;
                        }
                        // That connection is gone; the next may be good.
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                        _ => {}
                    }
                    let until = Time::now() + ACCEPT_PAUSE;
                    // Told once, and again when it had worked in between.
                    if paused.replace(until).is_none() {
                        self.reports.push(Report::AcceptFailed { endpoint, error: e.to_string() });
                    }
                    self.deadlines.insert((until, key));
                    return;
                }
            }
        }
        self.ready.push_back(key);
    }

    fn run(&mut self, core: &Core, job: Job) {
        match job {
            Job::Resolve { endpoint, dialer } => core.spawn_resolver(endpoint, dialer),
            Job::Dial { endpoint, url, token, dialer, target } => {
                match contain(|| dialer.dial(target.as_ref())) {
                    Ok(connection) => self.adopt(core, token, endpoint, Side::Dialer, url, connection),
                    Err(e) => {
                        let url = target.map_or_else(|| url.to_string(), |t| format!("{url} ({})", t.label));
                        self.reports.push(Report::DialFailed { endpoint, token, url, error: e.to_string() });
                    }
                }
            }
        }
    }

    fn adopt(
        &mut self,
        core: &Core,
        key: usize,
        endpoint: u32,
        side: Side,
        url: Arc<str>,
        connection: Connection,
    ) {
        if self.opening >= OPENING {
            self.evict_oldest();
        }
        let registrar = Self::registrar(core, key);
        let (registered, stage) = match connection {
            Connection::Stream(mut stream, wire) => {
                (contain(|| stream.register(&registrar)), Stage::Stream(stream, wire))
            }
            Connection::Messages(mut pipe) => (contain(|| pipe.register(&registrar)), Stage::Pipe(pipe)),
        };
        let deadline = Time::now() + core.cfg.handshake_timeout;
        self.opening += 1;
        self.deadlines.insert((deadline, key));
        let opening = Opening {
            endpoint,
            side,
            url,
            deadline,
            established: side == Side::Listener,
            remote: String::new(),
            stage,
            ending: false,
        };
        self.set(key, Conn::Opening(Box::new(opening)));
        match registered {
            Ok(()) => self.step(core, key),
            Err(e) => self.fail(key, broken(&e)),
        }
    }

    /// Too many strangers at the door: the one that has said nothing for longest goes.
    fn evict_oldest(&mut self) {
        let oldest = self
            .deadlines
            .iter()
            .map(|(_, key)| *key)
            .find(|key| matches!(self.conns.get(*key), Some(Some(Conn::Opening(_)))));
        if let Some(key) = oldest {
            self.fail(key, Reason::HandshakeTimeout);
        }
    }

    fn fail(&mut self, key: usize, reason: Reason) {
        let Some(Some(Conn::Opening(opening))) = self.conns.get_mut(key) else { return };
        let (endpoint, established) = (opening.endpoint, opening.established);
        let remote = std::mem::take(&mut opening.remote);
        let deadline = opening.deadline;
        self.deadlines.remove(&(deadline, key));
        self.opening -= 1;
        if let Some(conn) = self.conns[key].take() {
            self.trash.push(conn);
        }
        self.reports.push(Report::Failed { endpoint, token: key, remote, established, reason });
    }

    fn expire(&mut self, core: &Core) {
        let now = Time::now();
        while let Some((at, key)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            match self.conns.get_mut(key) {
                Some(Some(Conn::Opening(o))) if o.deadline == at => match &o.stage {
                    Stage::Pipe(pipe) if contain(|| Ok(pipe.waiting())).unwrap_or(false) => {
                        o.deadline = now + core.cfg.handshake_timeout;
                        self.deadlines.insert((o.deadline, key));
                    }
                    _ => self.fail(key, Reason::HandshakeTimeout),
                },
                Some(Some(Conn::Listener(_))) => self.accept(core, key),
                // A token is used again: one that had it before may have left its deadline.
                Some(Some(Conn::Draining(d))) if d.until == at => self.free(key),
                _ => {}
            }
        }
    }

    // ------------------------------------------------------------ the handshake

    fn step(&mut self, core: &Core, key: usize) {
        let Some(Some(Conn::Opening(opening))) = self.conns.get_mut(key) else { return };
        match advance(core, opening, &mut self.scratch) {
            Ok(false) => {}
            Ok(true) => {
                let deadline = opening.deadline;
                self.deadlines.remove(&(deadline, key));
                self.reports.push(Report::Ready { token: key });
            }
            Err(reason) => self.fail(key, reason),
        }
    }

    // ------------------------------------------------------------ reading

    fn read(&mut self, key: usize) {
        let Some(Some(Conn::Open(half))) = self.conns.get_mut(key) else { return };
        half.queued = false;
        if half.paused {
            return;
        }
        let mut inbox = half.inbox.take().or_else(|| self.inboxes.pop()).unwrap_or_default();
        (inbox.budget_messages, inbox.budget_bytes) = half.room;
        let filled = match half.rx.fill(&mut self.scratch, &mut inbox) {
            Filled::Empty if half.last.is_some() => Filled::End(Reason::Peer),
            filled => filled,
        };
        half.room = (inbox.budget_messages, inbox.budget_bytes);
        let wants_more = inbox.wants_more();
        half.readable = matches!(filled, Filled::More);
        half.queued = half.readable && wants_more;
        if inbox.is_idle() {
            self.keep(inbox);
        } else {
            half.inbox = Some(inbox);
            self.touched.push(key);
        }
        match filled {
            Filled::End(reason) => self.reports.push(Report::Dead { token: key, reason }),
            Filled::More if wants_more => self.ready.push_back(key),
            // Without room `deliver` decides, when it knows what is left in the queue.
            _ => {}
        }
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive")
            .field("conns", &self.conns.iter().flatten().count())
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// Messages that nobody will take.
pub(crate) fn forget(messages: &mut VecDeque<Message>) -> u64 {
    let n = messages.len() as u64;
    messages.clear();
    n
}
