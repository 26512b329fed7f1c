//! A transport around a transport, which does to its connections what networks do.
//!
//! [`Faulty`] hands on bytes in pieces, says "not now" although there is something, and cuts connections, all
//! by a seed: the same seed gives each connection, in the order in which they are made, the same faults.
//! Delays are counted in calls, never in time.
//!
//! Owns: the faults. Never: changes, reorders or drops a byte other than by cutting.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spanwire::Message;
use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, MessagePipe, MessageReader, MessageWriter, Notifier, Registrar,
    Stream, StreamReader, StreamWriter, Target, Transport,
};
use spanwire::wire::{Hello, Inbox, PeerHello};

/// What [`Faulty`] does. The default does nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    seed: u64,
    pieces: Option<usize>,
    delay: Option<u64>,
    cut: Option<Range<u64>>,
}

impl Faults {
    /// Nothing yet; `seed` decides all that follows.
    pub fn new(seed: u64) -> Self {
        Faults { seed, ..Faults::default() }
    }

    /// Reads and writes move 1 to `most` bytes (messages, on a transport of whole messages) each. 1: every
    /// single one.
    #[must_use]
    pub fn pieces(mut self, most: usize) -> Self {
        self.pieces = Some(most.max(1));
        self
    }

    /// Of the reads and writes one in `calls`, on average, says "not now" although there was something, and
    /// asks to be called again.
    #[must_use]
    pub fn delay_one_in(mut self, calls: u64) -> Self {
        self.delay = Some(calls.max(2));
        self
    }

    /// Each connection breaks after a number of bytes (messages, on a transport of whole messages) from
    /// this range, both directions counted together.
    #[must_use]
    pub fn cut_after(mut self, range: Range<u64>) -> Self {
        self.cut = (!range.is_empty()).then_some(range);
        self
    }
}

/// `T` with faults. It answers to the same schemes.
#[derive(Debug)]
pub struct Faulty<T> {
    inner: T,
    mint: Arc<Mint>,
}

impl<T: Transport> Faulty<T> {
    /// `inner` with `faults` on its connections, dialled and accepted.
    pub fn new(inner: T, faults: Faults) -> Self {
        Faulty { inner, mint: Arc::new(Mint { faults, made: AtomicU64::new(0), cuts: AtomicU64::new(0) }) }
    }

    /// Tells how many connections were cut so far, also after the transport was given to a socket.
    pub fn cuts(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let mint = self.mint.clone();
        move || mint.cuts.load(Ordering::Relaxed)
    }
}

/// Where connections get their faults from.
#[derive(Debug)]
struct Mint {
    faults: Faults,
    made: AtomicU64,
    cuts: AtomicU64,
}

impl Mint {
    fn wrap(self: &Arc<Self>, connection: Connection) -> Connection {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice(self.faults.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let left = self.faults.cut.as_ref().map_or(u64::MAX, |r| r.start + dice.below(r.end - r.start));
        let line = Line { mint: self.clone(), left: AtomicU64::new(left), cut: AtomicBool::new(false) };
        let line = Arc::new(line);
        match connection {
            Connection::Stream(inner, wire) => {
                Connection::Stream(Box::new(FaultyStream { inner, line, dice, notifier: None }), wire)
            }
            Connection::Messages(inner) => {
                Connection::Messages(Box::new(FaultyPipe { inner, line, dice, notifier: None }))
            }
        }
    }
}

impl<T: Transport> Transport for Faulty<T> {
    fn schemes(&self) -> &'static [&'static str] {
        self.inner.schemes()
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(FaultyDialer { inner: self.inner.dialer(url, options)?, mint: self.mint.clone() }))
    }

    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(FaultyListener { inner: self.inner.listen(url, options)?, mint: self.mint.clone() }))
    }
}

struct FaultyDialer {
    inner: Box<dyn Dialer>,
    mint: Arc<Mint>,
}

impl Dialer for FaultyDialer {
    fn needs_resolve(&self) -> bool {
        self.inner.needs_resolve()
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        self.inner.resolve()
    }
    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        self.inner.dial(target).map(|connection| self.mint.wrap(connection))
    }
}

struct FaultyListener {
    inner: Box<dyn Listener>,
    mint: Arc<Mint>,
}

impl Listener for FaultyListener {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.inner.register(registrar)
    }
    fn accept(&mut self) -> io::Result<Connection> {
        self.inner.accept().map(|connection| self.mint.wrap(connection))
    }
}

/// What the two halves of a connection share.
struct Line {
    mint: Arc<Mint>,
    left: AtomicU64,
    cut: AtomicBool,
}

/// The faults of one direction.
struct Lane {
    line: Arc<Line>,
    dice: Dice,
    notifier: Notifier,
}

impl Lane {
    /// Before each call: may it go on, and for how much?
    fn enter(&mut self) -> io::Result<usize> {
        if self.line.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(ErrorKind::ConnectionReset, "cut by the fault injector"));
        }
        let faults = &self.line.mint.faults;
        if faults.delay.is_some_and(|calls| self.dice.below(calls) == 0) {
            // No edge will come for what is there already.
            self.notifier.notify();
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(faults.pieces.map_or(usize::MAX, |most| 1 + self.dice.below(most as u64) as usize))
    }

    /// After each call: `n` have passed.
    fn passed(&mut self, n: usize) {
        let take = |left: u64| Some(left.saturating_sub(n as u64));
        let before = self.line.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        if before.is_ok_and(|before| before <= n as u64) && !self.line.cut.swap(true, Ordering::AcqRel) {
            self.line.mint.cuts.fetch_add(1, Ordering::Relaxed);
            self.notifier.notify(); // the other half may be waiting for an edge
        }
    }
}

struct FaultyStream {
    inner: Box<dyn Stream>,
    line: Arc<Line>,
    dice: Dice,
    notifier: Option<Notifier>,
}

fn unregistered() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "split before it was registered")
}

impl Stream for FaultyStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.notifier = Some(registrar.notifier());
        self.inner.register(registrar)
    }

    fn establish(&mut self) -> io::Result<bool> {
        self.inner.establish()
    }

    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn split(mut self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)> {
        let notifier = self.notifier.take().ok_or_else(unregistered)?;
        let (reader, writer) = self.inner.split()?;
        let (mut dice, line) = (self.dice, self.line);
        let reading = Lane { line: line.clone(), dice: Dice(dice.roll()), notifier: notifier.clone() };
        let writing = Lane { line, dice: Dice(dice.roll()), notifier };
        Ok((Box::new(FaultyReader(reader, reading)), Box::new(FaultyWriter(writer, writing))))
    }
}

struct FaultyReader(Box<dyn StreamReader>, Lane);

impl Read for FaultyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.1.enter()?.min(buf.len());
        let got = self.0.read(&mut buf[..n])?;
        self.1.passed(got);
        Ok(got)
    }
}

impl StreamReader for FaultyReader {
    fn set_low_water(&mut self, bytes: usize) {
        self.0.set_low_water(bytes);
    }
}

struct FaultyWriter(Box<dyn StreamWriter>, Lane);

impl Write for FaultyWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.1.enter()?.min(buf.len());
        let put = self.0.write(&buf[..n])?;
        self.1.passed(put);
        Ok(put)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.1.line.mint.faults.pieces.is_none() {
            self.1.enter()?;
            let put = self.0.write_vectored(bufs)?;
            self.1.passed(put);
            return Ok(put);
        }
        let first = bufs.iter().find(|b| !b.is_empty());
        first.map_or(Ok(0), |first| self.write(first))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl StreamWriter for FaultyWriter {
    fn shutdown(&mut self) -> io::Result<bool> {
        self.0.shutdown()
    }
}

struct FaultyPipe {
    inner: Box<dyn MessagePipe>,
    line: Arc<Line>,
    dice: Dice,
    notifier: Option<Notifier>,
}

impl MessagePipe for FaultyPipe {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.notifier = Some(registrar.notifier());
        self.inner.register(registrar)
    }

    fn handshake(&mut self, me: &Hello) -> io::Result<Option<PeerHello>> {
        self.inner.handshake(me)
    }

    fn waiting(&self) -> bool {
        self.inner.waiting()
    }

    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn split(mut self: Box<Self>) -> io::Result<(Box<dyn MessageReader>, Box<dyn MessageWriter>)> {
        let notifier = self.notifier.take().ok_or_else(unregistered)?;
        let (reader, writer) = self.inner.split()?;
        let (mut dice, line) = (self.dice, self.line);
        let reading = Lane { line: line.clone(), dice: Dice(dice.roll()), notifier: notifier.clone() };
        let writing = Lane { line, dice: Dice(dice.roll()), notifier };
        Ok((Box::new(FaultyReceiver(reader, reading)), Box::new(FaultySender(writer, writing))))
    }
}

struct FaultyReceiver(Box<dyn MessageReader>, Lane);

impl MessageReader for FaultyReceiver {
    fn recv(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        // How many it pushes is between it and the inbox: here it is only delayed and cut.
        self.1.enter()?;
        let before = inbox.messages().len();
        let result = self.0.recv(inbox);
        let got = inbox.messages().len() - before;
        self.1.passed(got);
        result
    }
}

struct FaultySender(Box<dyn MessageWriter>, Lane);

impl MessageWriter for FaultySender {
    fn send(&mut self, batch: &mut VecDeque<Message>) -> io::Result<bool> {
        let n = match self.1.enter() {
            Ok(n) => n.min(batch.len()),
            // A writer says "not now" by leaving messages in the batch.
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        let later = batch.split_off(n);
        let result = self.0.send(batch);
        let put = n - batch.len();
        let all = batch.is_empty();
        batch.extend(later);
        self.1.passed(put);
        if all && !batch.is_empty() {
            self.1.notifier.notify();
        }
        result
    }

    fn shutdown(&mut self) -> io::Result<bool> {
        self.0.shutdown()
    }
}

/// splitmix64 (Steele, Lea and Flood 2014): enough for dice.
#[derive(Clone, Copy)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1; `n` is not 0.
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }
}

impl fmt::Debug for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dice(..)")
    }
}
