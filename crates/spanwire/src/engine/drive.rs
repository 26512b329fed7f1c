//! The event loop of a socket: the boxed value whose holder leads.
//!
//! It polls, accepts, dials, shakes hands and reads, all without the socket's lock, and leaves what it found
//! in lists; [`deliver`](super::deliver) takes them under the lock. Pipes are read in turn, each once a round.
//!
//! Owns: listeners, connections on their way, and the reading half of each pipe. Never: touches the socket's
//! state, writes on an attached pipe, or allocates on a peer's word.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::core::Core;
use super::pool::Pool;
use super::tx::Writer;
use crate::Message;
use crate::protocol::{PipeId, Reason, Time};
use crate::queue::Frames;
use crate::transport::{
    Connection, Dialer, Facts, Listener, MessagePipe, MessageReader, Registrar, Stream, StreamWriter, Target,
};
use crate::wire::{Decoder, Encoding, Hello, Inbox, Input, PeerHello, Side, Wire, WireError};

/// Token of the socket's own waker.
pub(crate) const WAKE: Token = Token(usize::MAX);
/// What is read at once, in bytes; the buffer is shared by all pipes of a socket.
const READ: usize = 256 * 1024;
/// A frame of which more than this is missing gets a buffer of its own, read straight into.
const OWN: usize = 32 * 1024;
/// Read behind a large frame: the head of the next, and not so much of its body that copying it would hurt.
const SPILL: usize = 1024;
const EVENTS: usize = 256;
/// Connections accepted from one listener in a round.
const ACCEPTS: usize = 32;
/// Connections of a socket that may be on their way at once; the oldest gives way.
const OPENING: usize = 1024;
/// After accept failed (out of descriptors), this long until it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a pipe that was finished waits for the peer to read to the end and close.
const DRAIN: Duration = Duration::from_secs(1);

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
        self.lock().as_mut().map(|listener| listener.accept())
    }

    pub(crate) fn close(&self) -> Option<Box<dyn Listener>> {
        self.lock().take()
    }
}

pub(crate) enum Conn {
    Listener {
        endpoint: u32,
        url: Arc<str>,
        door: Door,
        /// Accepting failed: until then it is not tried, and the failure was told.
        paused: Option<Time>,
    },
    Opening(Box<Opening>),
    Open(Box<Half>),
    /// Finished: only the end of the stream is awaited, so that closing does not reset what was sent.
    Draining(Rx, Time),
}

/// A connection on its way.
pub(crate) struct Opening {
    pub(crate) endpoint: u32,
    pub(crate) side: Side,
    url: Arc<str>,
    deadline: Time,
    /// The connection exists (as against a connect that is under way).
    established: bool,
    /// The peer's address, once it is known.
    remote: String,
    stage: Stage,
}

enum Stage {
    Stream(Box<dyn Stream>, Box<dyn Wire>),
    Greeting(Box<Greeting>),
    Pipe(Box<dyn MessagePipe>),
    Ready(Box<Attach>),
    Gone,
}

struct Greeting {
    rx: StreamRx,
    writer: Box<dyn StreamWriter>,
    encoding: Encoding,
    out: Vec<u8>,
    facts: Facts,
    wire: &'static str,
    inbox: Inbox,
}

/// All that a pipe is made of.
pub(crate) struct Attach {
    pub(crate) rx: Rx,
    pub(crate) writer: Writer,
    pub(crate) has_control: bool,
    pub(crate) peer: PeerHello,
    pub(crate) facts: Arc<Facts>,
    pub(crate) wire: &'static str,
    pub(crate) inbox: Inbox,
}

/// The reading half of a pipe.
pub(crate) struct Half {
    pub(crate) pipe: PipeId,
    rx: Rx,
    pub(crate) inbox: Inbox,
    readable: bool,
    queued: bool,
    /// The inbound queue is full: nothing is read until it has drained to half.
    pub(crate) paused: bool,
    /// Room in the inbound queue when the state was last seen: messages, bytes.
    pub(crate) room: (usize, usize),
}

pub(crate) enum Rx {
    Stream(StreamRx),
    Messages(Box<dyn MessageReader>),
}

/// The bytes of a stream that are not decoded yet.
pub(crate) struct StreamRx {
    reader: Box<dyn Read + Send>,
    decoder: Box<dyn Decoder>,
    /// What was left of the last read: less than a frame, or all that came while the queue was full.
    partial: Vec<u8>,
    /// A large frame on its way.
    large: Option<Large>,
    pool: Arc<Pool>,
    /// `partial` holds whole frames: decode before reading more.
    undecoded: bool,
    /// A read that came back short has emptied the stream.
    short_is_empty: bool,
    /// The peer has ended its direction: read until that is seen.
    ending: bool,
    recv_max: usize,
}

/// A large frame on its way.
struct Large {
    /// Where it goes; from the pool it may be longer.
    buf: Vec<u8>,
    /// How much of it is there.
    have: usize,
    /// How long it will be.
    total: usize,
}

enum Filled {
    /// Nothing more until an edge.
    Empty,
    /// There may be more.
    More,
    End(Reason),
}

impl StreamRx {
    fn fill(&mut self, scratch: &mut Vec<u8>, inbox: &mut Inbox) -> Filled {
        if scratch.is_empty() {
            scratch.resize(READ, 0);
        }
        if self.large.is_some() {
            return self.fill_large(scratch, inbox);
        }
        let keep = self.partial.len();
        if scratch.len() <= keep {
            // Whole messages of a large frame, which wait for room: a read of no bytes would look like an end.
            scratch.resize(keep + READ, 0);
        }
        let mut end = keep;
        let mut filled = Filled::More;
        scratch[..keep].copy_from_slice(&self.partial);
        if !self.undecoded {
            let space = scratch.len() - keep;
            match self.reader.read(&mut scratch[keep..]) {
                Ok(0) => return Filled::End(Reason::Peer),
                Ok(n) => {
                    end += n;
                    if n < space && self.short_is_empty && !self.ending {
                        filled = Filled::Empty;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Filled::Empty,
                Err(e) if e.kind() == ErrorKind::Interrupted => return Filled::More,
                Err(e) => return Filled::End(broken(&e)),
            }
        }
        match self.decode(&scratch[..end], scratch.len(), inbox) {
            Some(reason) => Filled::End(reason),
            None => filled,
        }
    }

    /// Decodes `bytes`, which lie in a buffer of `full` bytes that others use next, and keeps the rest.
    fn decode(&mut self, bytes: &[u8], full: usize, inbox: &mut Inbox) -> Option<Reason> {
        let mut input = Input::new(bytes);
        let result = self.decoder.input(&mut input, inbox);
        let (used, need) = input.done();
        match result {
            Ok(()) => self.keep(&bytes[used..], need, inbox.wants_more(), full),
            Err(e) => Some(wire_reason(e)),
        }
    }

    /// Keeps what was not consumed, in the place that fits.
    fn keep(&mut self, rest: &[u8], mut need: usize, decoded_all: bool, full: usize) -> Option<Reason> {
        self.partial.clear();
        self.undecoded = !decoded_all && !rest.is_empty();
        if decoded_all && need <= rest.len() && rest.len() > full / 2 {
            need = rest.len() + OWN; // a decoder that gives no hint, and a frame larger than the buffer
        }
        // A little more than the shared buffer holds is large too: with the buffer full there would be no room to
        // read, which looks like the peer's end.
        if decoded_all && need > rest.len() && (need - rest.len() > OWN || need > full) {
            if need > self.recv_max.saturating_add(2 * READ) {
                return Some(Reason::TooBig { size: need as u64, limit: self.recv_max });
            }
            let mut buf = self.pool.take(need).unwrap_or_default();
            if buf.len() < rest.len() {
                buf.resize(rest.len(), 0);
            }
            buf[..rest.len()].copy_from_slice(rest);
            self.large = Some(Large { buf, have: rest.len(), total: need });
            self.partial = Vec::new();
            return None;
        }
        if rest.is_empty() && self.partial.capacity() > OWN {
            self.partial = Vec::new();
        }
        self.partial.extend_from_slice(rest);
        None
    }

    /// Reads on in a large frame, straight into its place; what comes behind it goes to `scratch`, so that a
    /// stream of large frames takes one read for each.
    fn fill_large(&mut self, scratch: &mut [u8], inbox: &mut Inbox) -> Filled {
        let Some(Large { buf, have, total }) = &mut self.large else { return Filled::More };
        if !inbox.wants_more() {
            return Filled::More;
        }
        if *have == buf.len() && buf.len() < *total {
            // Memory follows what has arrived: at most as much again.
            let grown = (*have * 2).max(2 * OWN).min(*total);
            buf.reserve_exact(grown - buf.len());
            buf.resize(grown, 0);
        }
        let end = buf.len().min(*total);
        let space = end - *have;
        let spill = if end == *total { &mut scratch[..SPILL] } else { &mut [] };
        let room = space + spill.len();
        let mut slices = [IoSliceMut::new(&mut buf[*have..end]), IoSliceMut::new(spill)];
        let n = match self.reader.read_vectored(&mut slices) {
            Ok(0) => return Filled::End(Reason::Peer),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Filled::Empty,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Filled::More,
            Err(e) => return Filled::End(broken(&e)),
        };
        let filled =
            if n < room && self.short_is_empty && !self.ending { Filled::Empty } else { Filled::More };
        *have += n.min(space);
        if *have < *total {
            return filled;
        }
        let Some(Large { buf, total, .. }) = self.large.take() else { return filled };
        let all = self.pool.lend(buf, total);
        let mut input = Input::own(all.clone());
        let result = self.decoder.input(&mut input, inbox);
        let (used, need) = input.done();
        drop(input);
        if let Err(e) = result {
            return Filled::End(wire_reason(e));
        }
        let behind = &scratch[..n - space];
        let ended = if used == all.len() {
            self.decode(behind, READ, inbox)
        } else {
            // A decoder that did not take all that it asked for: what is left goes before what came behind.
            self.keep(&[&all[used..], behind].concat(), need, inbox.wants_more(), READ)
        };
        ended.map_or(filled, Filled::End)
    }
}

fn broken(e: &std::io::Error) -> Reason {
    match e.kind() {
        ErrorKind::UnexpectedEof => Reason::Peer,
        _ => match e.get_ref().and_then(|inner| inner.downcast_ref::<WireError>()) {
            Some(wire) => wire_reason(wire.clone()),
            None => Reason::Broken(e.to_string()),
        },
    }
}

fn wire_reason(e: WireError) -> Reason {
    match e {
        WireError::BadHandshake => Reason::BadHandshake,
        WireError::TooBig { size, limit } => Reason::TooBig { size, limit },
        WireError::BadFrame(why) => Reason::BadFrame(why),
    }
}

/// The event loop itself: who owns the box, leads.
pub(crate) struct Drive {
    poll: Poll,
    events: Events,
    conns: Vec<Option<Conn>>,
    /// Connections to serve, in turn.
    ready: VecDeque<usize>,
    scratch: Vec<u8>,
    pool: Arc<Pool>,
    /// Handshakes that must be over, pauses, drains: times and tokens.
    deadlines: BTreeSet<(Time, usize)>,
    opening: usize,
    /// Tokens for what will be accepted, given under the lock.
    pub(crate) spare: Vec<usize>,
    pub(crate) jobs: Vec<Job>,
    notes: Vec<Token>,
    // For `deliver`:
    pub(crate) touched: Vec<usize>,
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
            pool: Arc::default(),
            deadlines: BTreeSet::new(),
            opening: 0,
            spare: Vec::new(),
            jobs: Vec::new(),
            notes: Vec::new(),
            touched: Vec::new(),
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
        !self.ready.is_empty() || !self.jobs.is_empty()
    }

    /// One round: jobs, a poll, and the service of what is ready. No lock is held. `true`: there may be more
    /// events than were seen.
    pub(crate) fn turn(&mut self, core: &Core, timeout: Option<Duration>) -> bool {
        self.trash.clear();
        while let Some(job) = self.jobs.pop() {
            self.run(core, job);
        }
        let mut timeout =
            if self.sticky() || !self.reports.is_empty() { Some(Duration::ZERO) } else { timeout };
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
                    if let Rx::Stream(rx) = &mut half.rx {
                        rx.ending |= closed;
                    }
                    if !half.queued && !half.paused {
                        half.queued = true;
                        self.ready.push_back(key);
                    }
                }
            }
            _ => self.ready.push_back(key),
        }
    }

    fn serve(&mut self, core: &Core, key: usize) {
        match self.conns.get_mut(key) {
            Some(Some(Conn::Open(_))) => self.read(key),
            Some(Some(Conn::Opening(_))) => self.step(core, key),
            Some(Some(Conn::Listener { .. })) => self.accept(core, key),
            Some(Some(Conn::Draining(rx, _))) => {
                let done = drained(rx, &mut self.scratch);
                if done {
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

    /// After the state was seen: how much more the pipe may bring in.
    pub(crate) fn set_room(&mut self, key: usize, room: Option<(usize, usize)>) {
        let Some(half) = self.half(key) else { return };
        half.room = room.unwrap_or((0, 0));
        half.paused = room.is_none();
        let undecoded = match &half.rx {
            Rx::Stream(rx) => rx.undecoded,
            Rx::Messages(_) => false,
        };
        if !half.paused && !half.queued && (half.readable || undecoded) {
            half.queued = true;
            self.ready.push_back(key);
        }
    }

    pub(crate) fn add_listener(&mut self, key: usize, endpoint: u32, url: Arc<str>, door: Door) {
        self.set(key, Conn::Listener { endpoint, url, door, paused: None });
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
        let half = Half { pipe, rx, inbox, readable: true, queued: true, paused: false, room };
        self.conns[key] = Some(Conn::Open(Box::new(half)));
        self.ready.push_back(key);
    }

    /// Lets go of a connection; `drain`: first lets the peer read to the end. `true`: its token is free.
    pub(crate) fn drop_conn(&mut self, key: usize, drain: bool) -> bool {
        let Some(conn) = self.conns.get_mut(key).and_then(Option::take) else { return false };
        match conn {
            Conn::Open(half) if drain => {
                let until = Time::now() + DRAIN;
                self.conns[key] = Some(Conn::Draining(half.rx, until));
                self.deadlines.insert((until, key));
                self.ready.push_back(key);
                return false;
            }
            Conn::Opening(opening) => {
                self.opening -= 1;
                self.deadlines.remove(&(opening.deadline, key));
                self.trash.push(Conn::Opening(opening));
            }
            conn => self.trash.push(conn),
        }
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
            let Some(Some(Conn::Listener { endpoint, url, door, paused })) = self.conns.get_mut(key) else {
                self.spare.push(token);
                return;
            };
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
            Job::Dial { endpoint, url, token, dialer, target } => match dialer.dial(target.as_ref()) {
                Ok(connection) => self.adopt(core, token, endpoint, Side::Dialer, url, connection),
                Err(e) => {
                    let url = target.map_or_else(|| url.to_string(), |t| format!("{url} ({})", t.label));
                    self.reports.push(Report::DialFailed { endpoint, token, url, error: e.to_string() });
                }
            },
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
                (stream.register(&registrar), Stage::Stream(stream, wire))
            }
            Connection::Messages(mut pipe) => (pipe.register(&registrar), Stage::Pipe(pipe)),
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
                    Stage::Pipe(pipe) if pipe.waiting() => {
                        o.deadline = now + core.cfg.handshake_timeout;
                        self.deadlines.insert((o.deadline, key));
                    }
                    _ => self.fail(key, Reason::HandshakeTimeout),
                },
                Some(Some(Conn::Listener { .. })) => self.accept(core, key),
                // A token is used again: one that had it before may have left its deadline.
                Some(Some(Conn::Draining(_, until))) if *until == at => self.free(key),
                _ => {}
            }
        }
    }

    // ------------------------------------------------------------ the handshake

    fn step(&mut self, core: &Core, key: usize) {
        let Some(Some(Conn::Opening(opening))) = self.conns.get_mut(key) else { return };
        match advance(core, opening, &mut self.scratch, &self.pool) {
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
        let inbox = &mut half.inbox;
        (inbox.budget_messages, inbox.budget_bytes) = half.room;
        let filled = match &mut half.rx {
            Rx::Stream(rx) => rx.fill(&mut self.scratch, inbox),
            Rx::Messages(reader) => match reader.recv(inbox) {
                Ok(true) => Filled::Empty,
                Ok(false) => Filled::More,
                Err(e) if e.kind() == ErrorKind::WouldBlock => Filled::Empty,
                Err(e) => Filled::End(broken(&e)),
            },
        };
        half.room = (inbox.budget_messages, inbox.budget_bytes);
        if !inbox.messages.is_empty() || !inbox.control.is_empty() || !inbox.reply.is_empty() {
            self.touched.push(key);
        }
        half.readable = matches!(filled, Filled::More);
        match filled {
            Filled::End(reason) => self.reports.push(Report::Dead { token: key, reason }),
            Filled::More if half.inbox.wants_more() => {
                half.queued = true;
                self.ready.push_back(key);
            }
            // Without room `deliver` decides, when it knows what is left in the queue.
            _ => {}
        }
    }
}

/// Moves a connection on its way as far as it goes: `true` when it is ready to attach.
fn advance(
    core: &Core,
    opening: &mut Opening,
    scratch: &mut Vec<u8>,
    pool: &Arc<Pool>,
) -> Result<bool, Reason> {
    loop {
        match std::mem::replace(&mut opening.stage, Stage::Gone) {
            Stage::Stream(mut stream, wire) => {
                let established = stream.establish();
                if !matches!(established, Ok(true)) {
                    opening.stage = Stage::Stream(stream, wire);
                    established.map_err(|e| broken(&e))?;
                    return Ok(false);
                }
                opening.established = true;
                let (facts, short_is_empty) = (stream.facts(), stream.short_read_is_empty());
                opening.remote.clone_from(&facts.remote);
                let (reader, writer) = stream.split().map_err(|e| broken(&e))?;
                let name = wire.name();
                let mut out = Vec::new();
                let (decoder, encoding) = wire.start(&hello(core, opening), &mut out);
                let rx = StreamRx {
                    reader,
                    decoder,
                    partial: Vec::new(),
                    large: None,
                    pool: pool.clone(),
                    undecoded: false,
                    short_is_empty,
                    ending: false,
                    recv_max: core.cfg.recv_max_size,
                };
                let inbox = Inbox::default();
                opening.stage = Stage::Greeting(Box::new(Greeting {
                    rx,
                    writer,
                    encoding,
                    out,
                    facts,
                    wire: name,
                    inbox,
                }));
            }
            Stage::Greeting(mut greeting) => {
                let done = greet(&mut greeting, scratch);
                if !matches!(done, Ok(true)) {
                    opening.stage = Stage::Greeting(greeting);
                    done?;
                    return Ok(false);
                }
                opening.stage = Stage::Ready(Box::new(attach_stream(core, *greeting)?));
                return Ok(true);
            }
            Stage::Pipe(mut pipe) => {
                let greeted = pipe.handshake(&hello(core, opening));
                match greeted {
                    Ok(Some(peer)) => {
                        opening.established = true;
                        let facts = Arc::new(pipe.facts());
                        opening.remote.clone_from(&facts.remote);
                        admit(core, &peer, &facts)?;
                        let (reader, writer) = pipe.split().map_err(|e| broken(&e))?;
                        opening.stage = Stage::Ready(Box::new(Attach {
                            rx: Rx::Messages(reader),
                            writer: Writer::Messages { pipe: writer, batch: VecDeque::new() },
                            has_control: false,
                            peer,
                            facts,
                            wire: "messages",
                            inbox: Inbox::default(),
                        }));
                        return Ok(true);
                    }
                    Ok(None) => {
                        opening.stage = Stage::Pipe(pipe);
                        return Ok(false);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        opening.stage = Stage::Pipe(pipe);
                        return Ok(false);
                    }
                    Err(e) => {
                        opening.stage = Stage::Pipe(pipe);
                        return Err(broken(&e));
                    }
                }
            }
            stage => {
                opening.stage = stage;
                return Ok(false);
            }
        }
    }
}

fn hello(core: &Core, opening: &Opening) -> Hello {
    Hello::new(core.info, opening.side, core.cfg.recv_max_size, &*opening.url)
}

/// Both directions of a stream's handshake, as far as they go now.
fn greet(g: &mut Greeting, scratch: &mut Vec<u8>) -> Result<bool, Reason> {
    while g.inbox.peer.is_none() {
        match g.rx.fill(scratch, &mut g.inbox) {
            Filled::End(Reason::Peer) => {
                let _ = push_out(g); // our own half of the handshake may still tell the peer something
                return Err(Reason::Peer);
            }
            Filled::End(reason) => {
                g.out.append(&mut g.inbox.reply);
                let _ = push_out(g);
                return Err(reason);
            }
            Filled::Empty if g.inbox.peer.is_none() => {
                g.out.append(&mut g.inbox.reply);
                push_out(g)?;
                return Ok(false);
            }
            _ => {}
        }
        if g.inbox.peer.is_none() {
            // What is left is a part of the handshake, not messages that wait for room: it takes more bytes.
            g.rx.undecoded = false;
        }
        g.out.append(&mut g.inbox.reply);
        push_out(g)?;
    }
    push_out(g)?;
    Ok(g.out.is_empty())
}

fn push_out(g: &mut Greeting) -> Result<(), Reason> {
    while !g.out.is_empty() {
        match g.writer.write(&g.out) {
            Ok(0) => return Err(Reason::Broken("the connection takes no bytes".into())),
            Ok(n) => {
                g.out.drain(..n);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(&e)),
        }
    }
    let _ = g.writer.flush();
    Ok(())
}

fn attach_stream(core: &Core, g: Greeting) -> Result<Attach, Reason> {
    let Greeting { mut rx, writer: stream, encoding, facts, wire, mut inbox, .. } = g;
    let Some(peer) = inbox.peer.take() else { return Err(Reason::BadHandshake) };
    let facts = Arc::new(facts);
    admit(core, &peer, &facts)?;
    rx.undecoded = !rx.partial.is_empty();
    let (writer, has_control) = match encoding {
        Encoding::LengthPrefixed(prefix) => {
            (Writer::Framed { stream, current: Frames::new(prefix), reply: Vec::new() }, false)
        }
        Encoding::Custom(encoder) => {
            (Writer::Encoded { stream, encoder, bytes: Vec::new(), at: 0, messages: 0 }, true)
        }
    };
    Ok(Attach { rx: Rx::Stream(rx), writer, has_control, peer, facts, wire, inbox })
}

/// Whether the peer is a partner, and the application wants it.
fn admit(core: &Core, peer: &PeerHello, facts: &Facts) -> Result<(), Reason> {
    if !core.info.accepts(peer) {
        return Err(Reason::Mismatch(format!(
            "{peer} where {} (SP id {:#x}) was expected",
            core.info.peer_name, core.info.peer
        )));
    }
    match &core.cfg.accept {
        // A panic there must not cost the driver its thread, nor a caller the loop in its hands.
        Some(accept) => std::panic::catch_unwind(AssertUnwindSafe(|| accept.0(facts)))
            .unwrap_or_else(|_| Err("the application's own check panicked".into()))
            .map_err(Reason::Denied),
        None => Ok(()),
    }
}

/// Reads and forgets; `true` at the end of the stream.
fn drained(rx: &mut Rx, scratch: &mut Vec<u8>) -> bool {
    const ROUNDS: usize = 16;
    match rx {
        Rx::Stream(rx) => {
            if scratch.is_empty() {
                scratch.resize(READ, 0);
            }
            for _ in 0..ROUNDS {
                match rx.reader.read(scratch) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return e.kind() != ErrorKind::WouldBlock,
                }
            }
            true // a peer that only talks and never listens is not waited for
        }
        Rx::Messages(_) => true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ProtocolInfo;
    use crate::wire::Sp;

    /// Receives `sizes` from a stream of which everything is there at once, and tells how it ended.
    fn receive(sizes: &[usize]) -> (Vec<usize>, Reason) {
        let mut bytes = b"\0SP\0\0\x50\0\0".to_vec();
        for size in sizes {
            bytes.extend((*size as u64).to_be_bytes());
            bytes.resize(bytes.len() + size, 7);
        }
        let info = ProtocolInfo::new(0x51, "pull", 0x50, "push");
        let (decoder, _) =
            Box::new(Sp::TCP).start(&Hello::new(info, Side::Listener, 1 << 20, ""), &mut Vec::new());
        let mut rx = StreamRx {
            reader: Box::new(std::io::Cursor::new(bytes)),
            decoder,
            partial: Vec::new(),
            large: None,
            pool: Arc::default(),
            undecoded: false,
            short_is_empty: false,
            ending: false,
            recv_max: 1 << 20,
        };
        let mut inbox = Inbox::with_budget(1000);
        let mut scratch = Vec::new();
        loop {
            if let Filled::End(reason) = rx.fill(&mut scratch, &mut inbox) {
                return (inbox.messages.iter().map(Message::len).collect(), reason);
            }
        }
    }

    #[test]
    fn a_frame_a_little_larger_than_the_read_buffer_does_not_look_like_an_end() {
        // It filled the buffer, and the next read had no room: 0 bytes, as at the end of a stream.
        let around = [READ - OWN, READ - 8, READ, READ + OWN];
        for size in around.into_iter().flat_map(|at| at - 10..at + 10) {
            let sizes = [size, 3, size, 0];
            assert_eq!(receive(&sizes), (sizes.to_vec(), Reason::Peer), "{size}");
        }
    }
}
