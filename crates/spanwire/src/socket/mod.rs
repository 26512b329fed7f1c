//! Sockets: what an application holds.
//!
//! [`Socket`] works with any [`Protocol`]; [`Push`], [`Pull`], [`Pub`], [`Sub`], [`Req`], [`Rep`] and [`Pair`]
//! are thin wrappers of it, made exactly as you make your own. A socket may be cloned and used from any
//! thread; a clone is the same socket, and it is closed when the last one is dropped.
//!
//! Owns: the typed face of the engine. Never: decides anything that a protocol or the engine decides.

mod batch;
mod builder;
pub mod device;
mod futures;
#[cfg(feature = "tokio")]
mod on_tokio;
mod patterns;
mod poller;
mod reqrep;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
#[cfg(unix)]
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

pub use batch::RequestSet;
pub use builder::{Builder, EndpointOptions};
pub use futures::{Iter, RecvFuture, RecvStream, SendFuture, WaitFuture};
pub use patterns::{Pair, Pub, Pull, Push, Sub};
pub use poller::{Interest, Poller, Ready};
pub use reqrep::{Pending, Rep, Req, Request, RequestError};

use crate::engine::{Core, EndpointConfig, PEERS, Want};
use crate::error::{Error, RecvError, SendError, WaitError};
use crate::events::{Event, Stats};
use crate::protocol::{Cx, Protocol, ProtocolInfo, Readiness, Receives, Refused, Sends, WaitKey};

/// A socket that speaks the protocol `P`.
///
/// ```
/// use spanwire::{Socket, protocol};
/// let pull = Socket::new(protocol::pull::Pull::new())?;
/// let push = Socket::new(protocol::push::Push::new())?;
/// push.connect(pull.bind("tcp://127.0.0.1:0")?.url())?;
/// push.send("hello")?;
/// assert_eq!(pull.recv()?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Socket<P>(Arc<Handle>, PhantomData<fn() -> P>);

/// Closes the socket when the last clone is gone.
struct Handle(Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close_in_background();
    }
}

impl<P> Clone for Socket<P> {
    fn clone(&self) -> Self {
        Socket(self.0.clone(), PhantomData)
    }
}

impl<P> fmt::Debug for Socket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.0, f)
    }
}

/// The protocol of a socket, by its type.
#[inline]
pub(crate) fn down<P: Protocol>(protocol: &mut dyn Protocol) -> &mut P {
    let any: &mut dyn Any = protocol;
    // `Socket<P>` is made from a `P` in one place, and the box is never replaced.
    any.downcast_mut().expect("a socket has the protocol that it was made with")
}

fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

impl<P: Protocol> Socket<P> {
    /// A socket with default settings.
    ///
    /// # Errors
    /// [`Error::System`] when the system has no more descriptors, or no thread for the driver.
    pub fn new(protocol: P) -> Result<Self, Error> {
        Self::builder(protocol).build()
    }

    /// Settings for a socket.
    pub fn builder(protocol: P) -> Builder<P> {
        Builder::new(protocol, |socket| socket)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.0
    }

    fn from_core(core: Arc<Core>) -> Self {
        Socket(Arc::new(Handle(core)), PhantomData)
    }

    /// Listens at `url`. As many endpoints as you like, of any transport, before or after the peers connect.
    ///
    /// # Errors
    /// [`Error::UnknownScheme`], or [`Error::Bind`] with the system's reason.
    pub fn bind(&self, url: &str) -> Result<Endpoint, Error> {
        self.bind_with(url, EndpointOptions::default())
    }

    /// Listens at `url` with settings of its own.
    ///
    /// # Errors
    /// As [`bind`](Socket::bind).
    pub fn bind_with(&self, url: &str, options: EndpointOptions) -> Result<Endpoint, Error> {
        let (id, real) = self.core().bind(url, self.endpoint_config(options)?)?;
        Ok(Endpoint { core: Arc::downgrade(self.core()), id, url: real.into() })
    }

    /// Connects to `url`, and again whenever the connection is lost. Returns at once: a peer that is not
    /// there yet is no error ([`events`](Socket::events) and [`wait_for_peers`](Socket::wait_for_peers) tell).
    ///
    /// # Errors
    /// [`Error::UnknownScheme`], or [`Error::Connect`] for an address that can never work.
    pub fn connect(&self, url: &str) -> Result<Endpoint, Error> {
        self.connect_with(url, EndpointOptions::default())
    }

    /// Connects to `url` with settings of its own.
    ///
    /// # Errors
    /// As [`connect`](Socket::connect).
    pub fn connect_with(&self, url: &str, options: EndpointOptions) -> Result<Endpoint, Error> {
        let id = self.core().connect(url, self.endpoint_config(options)?)?;
        Ok(Endpoint { core: Arc::downgrade(self.core()), id, url: url.into() })
    }

    fn endpoint_config(&self, options: EndpointOptions) -> Result<EndpointConfig, Error> {
        options.resolve(&self.core().cfg)
    }

    /// Closes the socket, for all its clones: whoever waits gets `Closed`, messages that are queued leave
    /// until `timeout`. Returns how many did not leave. To a peer on a stream, "left" means handed to the
    /// system, which delivers it unless the connection breaks.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn close(&self, timeout: Duration) -> Result<usize, Error> {
        self.core().close(timeout)
    }

    /// What happens to the socket from here on. Call it before `bind` and `connect` to miss nothing. Each
    /// call makes a channel of its own, of 1,024 events; what a full one loses is counted in
    /// [`Stats::events_lost`].
    pub fn events(&self) -> Receiver<Event> {
        const EVENTS: usize = 1024;
        let (sender, receiver) = crossbeam_channel::bounded(EVENTS);
        if !self.core().forked() {
            let mut st = self.core().lock();
            if !st.is_closed() {
                st.subscribers.push(sender);
            }
        }
        receiver
    }

    /// Counters, as they are now.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }

    /// Number of peers that are attached.
    pub fn peers(&self) -> usize {
        self.core().look_at(|st| st.pipes.live())
    }

    /// Waits until at least `n` peers are attached; `false` when they were not in time, or the socket closed.
    pub fn wait_for_peers(&self, n: usize, timeout: Duration) -> bool {
        let enough = |_: &mut dyn Protocol, cx: &mut Cx<'_>| (cx.pipes.live() >= n).then_some(());
        self.core().wait_on(Want::Key(PEERS), deadline(timeout), enough).is_ok()
    }

    /// Constant facts about the protocol.
    pub fn info(&self) -> ProtocolInfo {
        self.core().info
    }

    /// Whether `send` and `recv` would not wait now.
    pub fn readiness(&self) -> Readiness {
        self.core().readiness()
    }

    /// Runs `f` on the protocol, under the socket's lock: the door for verbs of your own protocol. It must
    /// not block, call into this or another socket, or call user code. On a closed socket it still runs. In a
    /// forked child it must not be called: the lock may be held by a thread that only the parent has.
    pub fn with<R>(&self, f: impl FnOnce(&mut P, &mut Cx<'_>) -> R) -> R {
        let core = self.core();
        let mut st = core.lock();
        let result = core.call(&mut st, |p, cx| f(down(p), cx));
        if core.forked() {
            drop(st); // a forked child must not touch what it shares with the parent
        } else {
            core.finish(st);
        }
        result
    }

    /// Runs `f` until it gives something; between two runs waits until the protocol says
    /// [`Cx::wake`] with `key`. `limit`: give up after that long; `None`: never.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`], [`WaitError::Closed`], [`WaitError::Forked`].
    pub fn wait<R>(
        &self,
        key: WaitKey,
        limit: Option<Duration>,
        mut f: impl FnMut(&mut P, &mut Cx<'_>) -> Option<R>,
    ) -> Result<R, WaitError> {
        self.core().wait_on(Want::Key(key), limit.and_then(deadline), |p, cx| f(down(p), cx))
    }

    /// The same as a future, for any executor. May be dropped at any time.
    pub fn wait_async<R, F>(&self, key: WaitKey, f: F) -> WaitFuture<P, F>
    where
        F: FnMut(&mut P, &mut Cx<'_>) -> Option<R>,
    {
        WaitFuture::new(self.clone(), Want::Key(key), f)
    }

    /// A descriptor for foreign event loops, readable exactly while `recv` would not wait (or the socket is closed). It belongs
    /// to the socket: poll it, do not read or close it.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Forked`].
    #[cfg(unix)]
    pub fn readable_fd(&self) -> Result<RawFd, Error> {
        self.core().readable_fd()
    }
}

impl<P: Sends> Socket<P> {
    /// Sends; waits for room, and for a first peer.
    ///
    /// # Errors
    /// The item comes back.
    #[inline]
    pub fn send(&self, item: impl Into<P::Item>) -> Result<(), SendError<P::Item>> {
        self.send_until(Some(item.into()), None)
    }

    /// Sends if there is room now.
    ///
    /// # Errors
    /// [`SendError::Full`] when there is not; the item comes back.
    pub fn try_send(&self, item: impl Into<P::Item>) -> Result<(), SendError<P::Item>> {
        let mut held = Some(item.into());
        let sent = self.core().try_on(|p, cx| down::<P>(p).send_held(cx, &mut held));
        told(sent, held, SendError::Full)
    }

    /// Sends; waits for room until `timeout`.
    ///
    /// # Errors
    /// [`SendError::TimedOut`] when there was none; the item comes back.
    pub fn send_timeout(
        &self,
        item: impl Into<P::Item>,
        timeout: Duration,
    ) -> Result<(), SendError<P::Item>> {
        self.send_until(Some(item.into()), deadline(timeout))
    }

    #[inline]
    fn send_until(
        &self,
        mut held: Option<P::Item>,
        deadline: Option<Instant>,
    ) -> Result<(), SendError<P::Item>> {
        // The quick way first: there is room. What is refused goes the slow way, with its error.
        if self.send_quickly(&mut held) { Ok(()) } else { self.send_slowly(held, deadline) }
    }

    fn send_quickly(&self, held: &mut Option<P::Item>) -> bool {
        self.core().quick(|p, cx| down::<P>(p).send_held(cx, held).ok()).is_some()
    }

    #[cold]
    fn send_slowly(
        &self,
        mut held: Option<P::Item>,
        deadline: Option<Instant>,
    ) -> Result<(), SendError<P::Item>> {
        let sent = self
            .core()
            .wait_on(Want::Send, deadline, |p, cx| answered(down::<P>(p).send_held(cx, &mut held)));
        told(sent, held, SendError::TimedOut)
    }

    /// Sends all of `items`, oldest first, with one lock for as many as fit; waits for room. Returns how many. A protocol that
    /// sends each to one peer gives several peers runs of them, and not one in turn each.
    ///
    /// # Errors
    /// What was not sent stays in `items`.
    pub fn send_many(&self, items: &mut VecDeque<P::Item>) -> Result<usize, SendError<()>> {
        let mut n = 0;
        while !items.is_empty() {
            let sent = self.core().wait_on(Want::Send, None, |p, cx| {
                let before = items.len();
                let sent = down::<P>(p).send_many(cx, items);
                let taken = before - items.len();
                n += taken;
                answered(sent).or((taken > 0).then_some(Ok(())))
            });
            told(sent, Some(()), SendError::Full)?;
        }
        Ok(n)
    }

    /// Sends as a future, for any executor. Dropped before it is ready, it has sent nothing.
    pub fn send_async(&self, item: impl Into<P::Item>) -> SendFuture<'_, P> {
        SendFuture::new(self, item.into())
    }
}

/// What ends a wait: all but that there is no room now.
fn answered(sent: Result<(), Refused<()>>) -> Option<Result<(), Refused<()>>> {
    match sent {
        Err(Refused::NotNow(())) => None,
        sent => Some(sent),
    }
}

/// The outcome of sending what is held if it was not taken. `not_now`: the error when there was no room.
fn told<T>(
    sent: Result<Result<(), Refused<()>>, WaitError>,
    held: Option<T>,
    not_now: fn(T) -> SendError<T>,
) -> Result<(), SendError<T>> {
    match (sent, held) {
        (Ok(Ok(())), _) => Ok(()),
        (Ok(Err(why)), Some(item)) => Err(refused(not_now)(why.of(item))),
        (Err(e), Some(item)) => Err(unsent(e, item)),
        (_, None) => Ok(()), // not reached: what was not sent is held
    }
}

pub(crate) fn refused<T>(not_now: fn(T) -> SendError<T>) -> impl Fn(Refused<T>) -> SendError<T> {
    move |e| match e {
        Refused::NotNow(item) => not_now(item),
        Refused::NoPeer(item) => SendError::NoPeer(item),
        Refused::Invalid(item, why) => SendError::Invalid(item, why),
    }
}

pub(crate) fn unsent<T>(e: WaitError, item: T) -> SendError<T> {
    match e {
        WaitError::TimedOut => SendError::TimedOut(item),
        WaitError::Closed => SendError::Closed(item),
        WaitError::Forked => SendError::Forked(item),
    }
}

impl From<WaitError> for RecvError {
    fn from(e: WaitError) -> RecvError {
        match e {
            WaitError::TimedOut => RecvError::TimedOut,
            WaitError::Closed => RecvError::Closed,
            WaitError::Forked => RecvError::Forked,
        }
    }
}

impl<P: Receives> Socket<P> {
    /// Receives; waits for an item.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    #[inline]
    pub fn recv(&self) -> Result<P::Item, RecvError> {
        if let Some(item) = self.core().quick(|p, cx| down::<P>(p).recv(cx)) {
            return Ok(item);
        }
        Ok(self.core().wait_on(Want::Recv, None, |p, cx| down::<P>(p).recv(cx))?)
    }

    /// Receives if something is there.
    ///
    /// # Errors
    /// [`RecvError::Empty`] when nothing is.
    pub fn try_recv(&self) -> Result<P::Item, RecvError> {
        let core = self.core();
        if let Some(item) = core.try_on(|p, cx| down::<P>(p).recv(cx))? {
            return Ok(item);
        }
        core.pump(); // what has arrived and nobody has read yet counts as there
        core.try_on(|p, cx| down::<P>(p).recv(cx))?.ok_or(RecvError::Empty)
    }

    /// Receives; waits until `timeout`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`] when nothing came.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<P::Item, RecvError> {
        Ok(self.core().wait_on(Want::Recv, deadline(timeout), |p, cx| down::<P>(p).recv(cx))?)
    }

    /// Waits for an item, then takes all that are there, up to `max`, with one lock. Returns how many were
    /// appended to `into`.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    pub fn recv_many(&self, into: &mut Vec<P::Item>, max: usize) -> Result<usize, RecvError> {
        Ok(self.core().wait_on(Want::Recv, None, |p, cx| take_many(down::<P>(p), cx, into, max))?)
    }

    /// The same as a future, for any executor. Dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    pub async fn recv_many_async(&self, into: &mut Vec<P::Item>, max: usize) -> Result<usize, RecvError> {
        Ok(WaitFuture::new(self.clone(), Want::Recv, |p: &mut P, cx: &mut Cx<'_>| {
            take_many(p, cx, into, max)
        })
        .await?)
    }

    /// Receives as a future, for any executor. Dropped before it is ready, it has taken nothing.
    pub fn recv_async(&self) -> RecvFuture<P> {
        RecvFuture::new(self.clone())
    }

    /// What is received, until the socket closes.
    pub fn iter(&self) -> Iter<P> {
        Iter::new(self.clone())
    }

    /// The same as a [`Stream`](futures_core::Stream).
    pub fn stream(&self) -> RecvStream<P> {
        RecvStream::new(self.clone())
    }
}

/// What is there, `max` at most; nothing when there is nothing.
fn take_many<P: Receives>(p: &mut P, cx: &mut Cx<'_>, into: &mut Vec<P::Item>, max: usize) -> Option<usize> {
    let before = into.len();
    p.recv_many(cx, into, max);
    (into.len() > before || max == 0).then(|| into.len() - before)
}

/// An address that a socket listens on or dials. Dropping it changes nothing; [`close`](Endpoint::close) ends
/// it.
#[derive(Clone)]
pub struct Endpoint {
    core: Weak<Core>,
    id: u32,
    url: Arc<str>,
}

impl Endpoint {
    /// The address: of a bound endpoint the real one, `:0` replaced by the port.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its number within the socket, as in events.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Ends it: no more connections come from it, and its pipes close once what is queued on them has left.
    pub fn close(&self) {
        if let Some(core) = self.core.upgrade() {
            core.close_endpoint(self.id);
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} {})", self.id, self.url)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}
