//! Transports: how to reach an address.
//!
//! A [`Transport`] parses its addresses, dials, and listens. What it yields is one of two kinds of
//! [`Connection`]: a byte stream with its [`Wire`] (tcp, ipc, a child's standard streams), where the engine
//! does framing, batching, limits and timeouts; or a pipe that moves whole messages itself (inproc, shared
//! memory). Reconnecting, backoff, handshake timeouts and events are the engine's in both cases.
//!
//! [`register`] makes a transport's schemes usable by every socket of the process;
//! [`Builder::transport`](crate::socket::Builder::transport) by one socket. The built-in ones use nothing that yours could not.
//!
//! Owns: the traits, and the table of schemes. Never: a protocol, a retry, a wait.
//!
//! # Writing one
//!
//! See the guide `docs/guide-custom-transport.md` and the example `custom_transport`; the crate
//! `spanwire-testkit` has the conformance suite that the built-in transports pass.

mod halves;
#[cfg(test)]
mod harness;
mod inproc;
#[cfg(unix)]
mod ipc;
mod sizes;
mod sys;
mod tcp;

use std::any::{Any, TypeId};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock, RwLock};

use mio::event::Source;
use mio::{Interest, Registry, Token};

pub use inproc::Inproc;
#[cfg(unix)]
pub use ipc::{Credentials, Ipc, IpcOptions};
pub use tcp::{Keepalive, Tcp, TcpOptions};

use crate::Message;
pub use crate::engine::Notifier;
use crate::wire::{Hello, Inbox, PeerHello, Wire};

/// Values by type: options for a transport, facts about a peer. Open to types of other crates.
#[derive(Clone, Default)]
pub struct Bag(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Bag {
    /// Puts a value, in place of one of the same type.
    pub fn set<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of this type.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref())
    }
}

impl fmt::Debug for Bag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bag({} values)", self.0.len())
    }
}

/// What a transport knows of a connection.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Facts {
    /// Own address, as text; empty when there is none.
    pub local: String,
    /// The peer's address, as text; empty when there is none.
    pub remote: String,
    /// More, by type: [`Credentials`] of an ipc peer, a TLS identity.
    pub more: Bag,
}

impl Facts {
    /// Two addresses and nothing more.
    pub fn new(local: impl Into<String>, remote: impl Into<String>) -> Self {
        Facts { local: local.into(), remote: remote.into(), more: Bag::default() }
    }
}

/// Where a transport registers what announces its readiness.
///
/// Registration is edge-triggered (mio): read and write until `WouldBlock`.
#[derive(Debug)]
pub struct Registrar<'a> {
    pub(crate) registry: &'a Arc<Registry>,
    pub(crate) token: Token,
    pub(crate) notifier: Notifier,
}

impl Registrar<'_> {
    /// Registers a source. Several may be registered under one connection (a child's stdin and stdout).
    ///
    /// # Errors
    /// Those of [`Registry::register`].
    pub fn source(&self, source: &mut dyn Source, interest: Interest) -> io::Result<()> {
        self.registry.register(&mut DynSource(source), self.token, interest)
    }

    /// What changes later, from any thread, what sources of this connection are registered for. May be kept and cloned.
    pub fn registration(&self) -> Registration {
        Registration { registry: self.registry.clone(), token: self.token }
    }

    /// Something that announces readiness from any thread, for connections that are no descriptor. May be
    /// kept and cloned; a notice after the connection has ended does nothing.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }
}

/// The place of a connection where readiness is announced, for a source that is to announce more or less than it was
/// registered for: a Unix socket tells of room with every read of its peer, also of room that nobody waits for.
#[derive(Clone, Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    token: Token,
}

impl Registration {
    /// Changes what `source`, which was registered for this connection, tells of. What it is ready for at that moment is
    /// told: nothing is missed between a `WouldBlock` and this call.
    ///
    /// # Errors
    /// Those of [`Registry::reregister`].
    pub fn change(&self, source: &mut dyn Source, interest: Interest) -> io::Result<()> {
        self.registry.reregister(&mut DynSource(source), self.token, interest)
    }
}

struct DynSource<'a>(&'a mut dyn Source);

impl Source for DynSource<'_> {
    fn register(&mut self, r: &Registry, t: Token, i: Interest) -> io::Result<()> {
        self.0.register(r, t, i)
    }
    fn reregister(&mut self, r: &Registry, t: Token, i: Interest) -> io::Result<()> {
        self.0.reregister(r, t, i)
    }
    fn deregister(&mut self, r: &Registry) -> io::Result<()> {
        self.0.deregister(r)
    }
}

/// A way to reach addresses.
pub trait Transport: Send + Sync + 'static {
    /// The schemes it answers to, without `://`.
    fn schemes(&self) -> &'static [&'static str];

    /// Parses `url` for dialling. No I/O: called in `connect`, whose caller sees the error.
    ///
    /// # Errors
    /// `InvalidInput` with a text that says what is wrong with the address; `Unsupported` when this
    /// transport cannot dial.
    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>>;

    /// Binds `url`. Called in `bind`, whose caller sees the error.
    ///
    /// # Errors
    /// As the system says (`AddrInUse`, `PermissionDenied`), `InvalidInput` for a bad address,
    /// `Unsupported` when this transport cannot listen.
    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>>;
}

/// One address that a dialer may try.
#[derive(Clone)]
pub struct Target {
    /// For events and errors.
    pub label: String,
    /// Whatever the dialer needs, in a type of its own.
    pub data: Arc<dyn Any + Send + Sync>,
}

impl Target {
    /// A target with its label.
    pub fn new<T: Any + Send + Sync>(label: impl Into<String>, data: T) -> Self {
        Target { label: label.into(), data: Arc::new(data) }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.label)
    }
}

/// A parsed address to dial, again and again.
pub trait Dialer: Send + Sync {
    /// Whether [`resolve`](Dialer::resolve) must run before each attempt. Default: no.
    fn needs_resolve(&self) -> bool {
        false
    }

    /// Finds the addresses to try. May block: it runs on a thread of its own before every attempt, so a
    /// name is looked up again each time.
    ///
    /// # Errors
    /// Counts as a failed attempt: reported, and tried again after the backoff.
    fn resolve(&self) -> io::Result<Vec<Target>> {
        Ok(Vec::new())
    }

    /// Begins a connection to `target` (`None` without resolving). Never blocks: what is not there yet is
    /// waited for in [`Stream::establish`] or [`MessagePipe::handshake`].
    ///
    /// # Errors
    /// Counts as a failed attempt.
    fn dial(&self, target: Option<&Target>) -> io::Result<Connection>;
}

/// A bound address.
pub trait Listener: Send {
    /// The real address: `:0` replaced by the port.
    fn url(&self) -> String;

    /// Registers what announces a connection. Called once, before the first `accept`.
    ///
    /// # Errors
    /// The bind fails with it.
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()>;

    /// The next connection.
    ///
    /// # Errors
    /// `WouldBlock`: none now. Any other error is reported and pauses accepting for a while (out of
    /// descriptors), then it is tried again.
    fn accept(&mut self) -> io::Result<Connection>;
}

/// A connection that begins.
pub enum Connection {
    /// A byte stream and what is spoken on it.
    Stream(Box<dyn Stream>, Box<dyn Wire>),
    /// Moves whole messages itself.
    Messages(Box<dyn MessagePipe>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Connection::Stream(..) => "Connection::Stream",
            Connection::Messages(_) => "Connection::Messages",
        })
    }
}

/// A non-blocking byte stream on its way. One thread at a time, until it is split.
pub trait Stream: Send {
    /// Registers what announces readiness. Called once, before anything else.
    ///
    /// # Errors
    /// The connection fails with it.
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()>;

    /// Called at each event until it says `true`: the connect is done, a TLS handshake is over.
    ///
    /// # Errors
    /// The connection fails with it.
    fn establish(&mut self) -> io::Result<bool>;

    /// Whether a read that gave fewer bytes than asked for has emptied the stream, so that the next edge may be
    /// awaited without reading again. True for sockets behind epoll; false, the default, is always safe.
    fn short_read_is_empty(&self) -> bool {
        false
    }

    /// Addresses, and what else is known; asked once established.
    fn facts(&self) -> Facts;

    /// The two halves, which belong to different threads from here on. What both need (a TLS session) takes
    /// a lock of the transport's own.
    ///
    /// # Errors
    /// The connection fails with it.
    fn split(self: Box<Self>) -> io::Result<(Box<dyn StreamReader>, Box<dyn StreamWriter>)>;
}

/// The reading half of a stream. [`read_vectored`](Read::read_vectored) is worth having: large frames are read with it,
/// straight to where they stay.
pub trait StreamReader: Read + Send {
    /// From here on fewer than so many bytes are of no use (the rest of a large frame is awaited; 1: any are), so that
    /// the event that tells of them may wait until they are there. It must not wait where less will not become more: at
    /// the end of the stream, after a failure, with full buffers; and if they are there already, an event tells of it.
    /// Default: nothing, which is always right.
    fn set_low_water(&mut self, _bytes: usize) {}
}

/// The writing half of a stream. `flush` is called on every writable edge, even with nothing to write.
pub trait StreamWriter: Write + Send {
    /// Ends the sending direction after all was written, where there is such a thing; `false`: call again at
    /// the next event.
    ///
    /// # Errors
    /// Ignored: the connection is at its end anyway.
    fn shutdown(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// A connection that moves whole messages. One thread at a time, until it is split.
pub trait MessagePipe: Send {
    /// Registers what announces readiness. Called once, before anything else.
    ///
    /// # Errors
    /// The connection fails with it.
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()>;

    /// Introduces this side and learns of the peer; called at each event until it gives the peer.
    ///
    /// # Errors
    /// The connection fails with it.
    fn handshake(&mut self, me: &Hello) -> io::Result<Option<PeerHello>>;

    /// Whether the other end is not there yet, so that there is nobody to be impatient with: the handshake
    /// timeout begins anew. Default: no.
    fn waiting(&self) -> bool {
        false
    }

    /// Addresses, and what else is known; asked after the handshake.
    fn facts(&self) -> Facts;

    /// The two halves, which belong to different threads from here on.
    ///
    /// # Errors
    /// The connection fails with it.
    fn split(self: Box<Self>) -> io::Result<(Box<dyn MessageReader>, Box<dyn MessageWriter>)>;
}

/// The receiving half of a message pipe.
pub trait MessageReader: Send {
    /// Pushes messages while [`Inbox::wants_more`]. `true`: nothing is left, an event will tell of more;
    /// `false`: more may be there.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has gone and all was taken; any error ends the pipe after the messages
    /// already pushed.
    fn recv(&mut self, inbox: &mut Inbox) -> io::Result<bool>;
}

/// The sending half of a message pipe.
pub trait MessageWriter: Send {
    /// Takes from the front of `batch` what fits now and leaves the rest; called again at the next event.
    /// `true`: the peer had not yet taken all that was sent before, so it is busy, and a few messages may be gathered for it.
    ///
    /// # Errors
    /// Ends the pipe. What is left in `batch` was not sent.
    fn send(&mut self, batch: &mut VecDeque<Message>) -> io::Result<bool>;

    /// Ends the sending direction after all was sent; `false`: call again at the next event.
    ///
    /// # Errors
    /// Ignored: the connection is at its end anyway.
    fn shutdown(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Transports by scheme.
#[derive(Clone, Default)]
pub(crate) struct Schemes(HashMap<&'static str, Arc<dyn Transport>>);

impl Schemes {
    pub(crate) fn add(&mut self, transport: Arc<dyn Transport>) {
        for scheme in transport.schemes() {
            self.0.insert(scheme, transport.clone());
        }
    }

    pub(crate) fn get(&self, scheme: &str) -> Option<Arc<dyn Transport>> {
        self.0.get(scheme).cloned()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }
}

impl fmt::Debug for Schemes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

fn process_wide() -> &'static RwLock<Schemes> {
    static SCHEMES: OnceLock<RwLock<Schemes>> = OnceLock::new();
    SCHEMES.get_or_init(|| {
        let mut schemes = Schemes::default();
        schemes.add(Arc::new(Tcp));
        #[cfg(unix)]
        schemes.add(Arc::new(Ipc));
        schemes.add(Arc::new(Inproc));
        RwLock::new(schemes)
    })
}

/// Makes a transport usable by every socket of the process, for its schemes. A later one replaces an
/// earlier one; endpoints that exist keep theirs.
pub fn register(transport: impl Transport) {
    process_wide().write().unwrap_or_else(std::sync::PoisonError::into_inner).add(Arc::new(transport));
}

pub(crate) fn lookup(scheme: &str) -> Option<Arc<dyn Transport>> {
    process_wide().read().unwrap_or_else(std::sync::PoisonError::into_inner).get(scheme)
}

pub(crate) fn scheme_names() -> Vec<&'static str> {
    let mut names: Vec<_> =
        process_wide().read().unwrap_or_else(std::sync::PoisonError::into_inner).names().collect();
    names.sort_unstable();
    names
}

/// What follows `://`.
fn address<'a>(url: &'a str, what: &str) -> io::Result<&'a str> {
    match url.split_once("://") {
        Some((_, rest)) => Ok(rest),
        None => Err(invalid(format!("{what} address has no scheme: {url:?}"))),
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}
