//! What the machine can do without a library: blocking sockets, and a channel between threads.
//!
//! `raw` writes the frames that SP has (64 bits of length, body), one write for each, and in a round trip one
//! read. `framed` gathers them to 64 KiB for each write: a stream cannot go faster. `raw+tick` has, in each process, a thread that wakes every 2 ms: on virtual
//! machines that alone keeps a CPU out of deep sleep and round trips short, so a library with a timer thread
//! is to be held against it. `channel` is crossbeam-channel, bounded as all queues are.

use std::collections::HashMap;
use std::io::{BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use spanwire::Message;

use crate::Result;
use crate::cell::{Cell, Shape, Transport};
use crate::contestant::{Contestant, Pull, Push, Rep, Req, Standing, Void};

/// Bytes that a stream's writer gathers, and that its reader asks for.
const BATCH: usize = 64 << 10;

/// Blocking sockets.
pub(super) struct Raw;

/// Blocking sockets that write frames in batches.
pub(super) struct Framed;

/// Blocking sockets in processes that tick.
pub(super) struct RawTick;

/// A bounded channel.
pub(super) struct Channel;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn dial(url: &str) -> Result<Box<dyn Stream>> {
    match url.split_once("://") {
        Some(("tcp", addr)) => {
            let stream = TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Some(("ipc", path)) => Ok(Box::new(UnixStream::connect(path)?)),
        _ => Err(format!("raw sockets have no {url}").into()),
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn bind(url: &str) -> Result<(Self, String)> {
        match url.split_once("://") {
            Some(("tcp", addr)) => {
                let listener = TcpListener::bind(addr)?;
                let url = format!("tcp://{}", listener.local_addr()?);
                Ok((Listener::Tcp(listener), url))
            }
            Some(("ipc", path)) => Ok((Listener::Unix(UnixListener::bind(path)?), url.to_owned())),
            _ => Err(format!("raw sockets have no {url}").into()),
        }
    }

    fn accept(&self) -> Result<Box<dyn Stream>> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept()?.0)),
        }
    }
}

/// Writes one frame at a time.
pub(super) struct RawPush {
    stream: Box<dyn Stream>,
    frame: Vec<u8>,
}

impl Push for RawPush {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        self.frame.extend_from_slice(body);
        Ok(self.stream.write_all(&self.frame)?)
    }
}

/// Gathers frames and writes 64 KiB at a time.
pub(super) struct FramedPush(BufWriter<Box<dyn Stream>>);

impl Push for FramedPush {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.0.write_all(&(body.len() as u64).to_be_bytes())?;
        Ok(self.0.write_all(body)?)
    }
    async fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

/// Reads 64 KiB and more at a time and takes frames off.
pub(super) struct RawPull {
    listener: Listener,
    stream: Option<Box<dyn Stream>>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl RawPull {
    /// Until `n` bytes lie at `start`.
    #[cold]
    fn fill(&mut self, n: usize) -> Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.listener.accept()?),
        };
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < n + BATCH {
            self.buffer.resize(n + BATCH, 0);
        }
        while self.end < n {
            match stream.read(&mut self.buffer[self.end..])? {
                0 => return Err("the stream ended".into()),
                got => self.end += got,
            }
        }
        Ok(())
    }
}

impl Pull for RawPull {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if self.end - self.start < 8 {
            self.fill(8)?;
        }
        let mut head = [0; 8];
        head.copy_from_slice(&self.buffer[self.start..self.start + 8]);
        let size = usize::try_from(u64::from_be_bytes(head))?;
        if size > 64 << 20 {
            return Err(format!("a frame of {size} bytes").into());
        }
        if self.end - self.start < 8 + size {
            self.fill(8 + size)?;
        }
        let seen = look(&self.buffer[self.start + 8..self.start + 8 + size]);
        self.start += 8 + size;
        Ok(seen)
    }
}

/// One frame out, one frame in.
pub(super) struct RawReq {
    stream: Box<dyn Stream>,
    frame: Vec<u8>,
}

impl Req for RawReq {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let Self { stream, frame } = self;
        frame[..8].copy_from_slice(&(body.len() as u64).to_be_bytes());
        frame[8..].copy_from_slice(body);
        stream.write_all(frame)?;
        stream.read_exact(frame)?;
        Ok(look(&frame[8..]))
    }
}

/// One frame in, the same out.
pub(super) struct RawRep {
    listener: Listener,
    stream: Option<Box<dyn Stream>>,
    frame: Vec<u8>,
}

impl Rep for RawRep {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.listener.accept()?),
        };
        stream.read_exact(&mut self.frame)?;
        let seen = look(&self.frame[8..]);
        stream.write_all(&self.frame)?;
        Ok(seen)
    }
}

impl Contestant for Raw {
    type Push = RawPush;
    type Sharer = Void;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;
    type Pull = RawPull;
    type Req = RawReq;
    type Rep = RawRep;

    fn name(&self) -> &'static str {
        "raw"
    }
    fn version(&self) -> String {
        String::new()
    }
    fn standing(&self) -> Standing {
        Standing::Limit
    }
    fn takes(&self, cell: &Cell) -> bool {
        cell.transport != Transport::Inproc && matches!(cell.shape, Shape::Stream | Shape::RoundTrip)
    }
    async fn push(&self, url: &str, _: &Cell) -> Result<RawPush> {
        Ok(RawPush { stream: dial(url)?, frame: Vec::new() })
    }
    async fn pull(&self, url: &str, _: &Cell) -> Result<(RawPull, String)> {
        let (listener, url) = Listener::bind(url)?;
        Ok((RawPull { listener, stream: None, buffer: Vec::new(), start: 0, end: 0 }, url))
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<RawReq> {
        Ok(RawReq { stream: dial(url)?, frame: vec![0; 8 + cell.size] })
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(RawRep, String)> {
        let (listener, url) = Listener::bind(url)?;
        Ok((RawRep { listener, stream: None, frame: vec![0; 8 + cell.size] }, url))
    }
}

/// Once for the process.
fn tick() {
    static TICK: Once = Once::new();
    TICK.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_millis(2));
            }
        });
    });
}

impl Contestant for RawTick {
    type Push = RawPush;
    type Sharer = Void;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;
    type Pull = RawPull;
    type Req = RawReq;
    type Rep = RawRep;

    fn name(&self) -> &'static str {
        "raw+tick"
    }
    fn version(&self) -> String {
        String::new()
    }
    fn standing(&self) -> Standing {
        Standing::Limit
    }
    fn takes(&self, cell: &Cell) -> bool {
        Contestant::takes(&Raw, cell) && cell.shape == Shape::RoundTrip
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<RawPush> {
        tick();
        Raw.push(url, cell).await
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(RawPull, String)> {
        tick();
        Raw.pull(url, cell).await
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<RawReq> {
        tick();
        Raw.req(url, cell).await
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(RawRep, String)> {
        tick();
        Raw.rep(url, cell).await
    }
}

impl Contestant for Framed {
    type Push = FramedPush;
    type Sharer = Void;
    type Pull = RawPull;
    type Req = RawReq;
    type Rep = RawRep;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;

    fn name(&self) -> &'static str {
        "framed"
    }
    fn version(&self) -> String {
        String::new()
    }
    fn standing(&self) -> Standing {
        Standing::Limit
    }
    fn takes(&self, cell: &Cell) -> bool {
        Contestant::takes(&Raw, cell) && cell.shape == Shape::Stream
    }
    async fn push(&self, url: &str, _: &Cell) -> Result<FramedPush> {
        Ok(FramedPush(BufWriter::with_capacity(BATCH, dial(url)?)))
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(RawPull, String)> {
        Raw.pull(url, cell).await
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<RawReq> {
        Raw.req(url, cell).await
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(RawRep, String)> {
        Raw.rep(url, cell).await
    }
}

/// What has been bound and not been dialled yet: the dialler's ends, there and back.
static BOUND: Mutex<Option<HashMap<String, Ends>>> = Mutex::new(None);

/// Where one side sends and receives.
#[derive(Clone)]
pub(super) struct Ends {
    out: Sender<Message>,
    into: Receiver<Message>,
}

impl Ends {
    fn bind(url: &str, cell: &Cell) -> Ends {
        let ((there, here), (back, home)) = (bounded(cell.queue()), bounded(cell.queue()));
        let mut bound = BOUND.lock().unwrap_or_else(|e| e.into_inner());
        bound.get_or_insert_default().insert(url.to_owned(), Ends { out: there, into: home });
        Ends { out: back, into: here }
    }

    fn dial(url: &str) -> Result<Ends> {
        let mut bound = BOUND.lock().unwrap_or_else(|e| e.into_inner());
        bound.get_or_insert_default().remove(url).ok_or_else(|| format!("nothing is bound to {url}").into())
    }
}

impl Push for Ends {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.out.send(Message::from(body)).map_err(|_| "the channel is closed".into())
    }
}

impl Pull for Ends {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.into.recv()?))
    }
}

impl Req for Ends {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.send(body).await?;
        self.recv(look).await
    }
}

impl Rep for Ends {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let msg = self.into.recv()?;
        let seen = look(&msg);
        self.out.send(msg).map_err(|_| "the channel is closed")?;
        Ok(seen)
    }
}

impl Contestant for Channel {
    type Push = Ends;
    type Sharer = Ends;
    type Ask = Void;
    type Serve = Void;
    type Pub = Void;
    type Sub = Void;
    type Pull = Ends;
    type Req = Ends;
    type Rep = Ends;

    fn name(&self) -> &'static str {
        "channel"
    }
    fn version(&self) -> String {
        concat!("(crossbeam-channel ", env!("VERSUS_VERSION_CROSSBEAM_CHANNEL"), ")").to_owned()
    }
    fn standing(&self) -> Standing {
        Standing::Limit
    }
    fn takes(&self, cell: &Cell) -> bool {
        cell.transport == Transport::Inproc
            && matches!(cell.shape, Shape::Stream | Shape::RoundTrip | Shape::Senders(_))
    }
    async fn sharers(&self, url: &str, _: &Cell, n: usize) -> Result<Vec<Ends>> {
        let ends = Ends::dial(url)?;
        Ok((0..n).map(|_| ends.clone()).collect())
    }
    async fn push(&self, url: &str, _: &Cell) -> Result<Ends> {
        Ends::dial(url)
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Ends, String)> {
        Ok((Ends::bind(url, cell), url.to_owned()))
    }
    async fn req(&self, url: &str, _: &Cell) -> Result<Ends> {
        Ends::dial(url)
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Ends, String)> {
        Ok((Ends::bind(url, cell), url.to_owned()))
    }
}
