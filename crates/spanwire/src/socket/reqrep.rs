//! Request and reply, without lock-step: many requests at once on one socket, each with its own reply.
//!
//! Owns: the deadline of a request (the protocol knows none) and the way back of a reply. Never: an order of
//! calls that is an error.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::futures::WaitFuture;
use super::{Builder, Socket, deadline, down, refused, unsent};
use crate::Message;
use crate::engine::Want;
use crate::error::{Error, RecvError, SendError, WaitError};
use crate::protocol::rep::{self, Incoming};
use crate::protocol::req::{self, Failed, ReqId};
use crate::protocol::{Cx, PipeId, Protocol, Refused};

/// A request is sent again after this long without an answer, as in nanomsg, nng and mangos.
const RESEND: Duration = Duration::from_secs(60);

/// Asks its [`Rep`] peers. Any number of threads or tasks may ask at once on one socket; each gets its own reply.
///
/// ```
/// # use spanwire::{Rep, Req};
/// let rep = Rep::new()?;
/// let req = Req::new()?;
/// req.connect(rep.bind("tcp://127.0.0.1:0")?.url())?;
/// std::thread::spawn(move || {
///     let request = rep.recv().unwrap();
///     let reply = format!("hello, {}", String::from_utf8_lossy(&request));
///     request.reply(reply).unwrap();
/// });
/// assert_eq!(req.request("world")?, "hello, world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Req {
    socket: Socket<req::Req>,
    pub(super) resend: Option<Duration>,
}

impl Deref for Req {
    type Target = Socket<req::Req>;
    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}

impl Builder<req::Req, Req> {
    /// How long after it left an unanswered request is sent again; `None` or zero: never, and then it fails when its
    /// connection ends, unless it had not begun to leave. Default: 60 s. With it, a request whose connection ends is
    /// sent again at once.
    pub fn resend(self, resend: Option<Duration>) -> Self {
        self.rewrap(move |socket| Req { socket, resend })
    }

    /// Most requests open at once. Default: 100,000. One of a [`RequestSet`](super::RequestSet) counts until its reply was
    /// collected.
    pub fn max_open(mut self, n: usize) -> Self {
        self.protocol = self.protocol.max_open(n);
        self
    }
}

/// Why a request has no reply.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It was not sent; the message is in the error.
    #[error(transparent)]
    NotSent(SendError<Message>),
    /// No reply before the deadline. The request is forgotten: a late reply is dropped.
    #[error("no reply before the deadline")]
    TimedOut,
    /// The connection that carried it ended, and resending is off: it may or may not have been served.
    #[error("the connection ended before the reply, and resending is off")]
    ConnectionLost,
    /// Connections that carried it ended at once, eight times in a row and each newly opened: the peer will not have
    /// it. Most likely it is larger than the peer takes (`recv_max_size`).
    #[error("undeliverable: each connection that carried it ended at once; larger than the peer takes?")]
    Undeliverable,
    /// The socket was closed.
    #[error("the socket is closed")]
    Closed,
    /// The socket belongs to the parent of this forked process.
    #[error("the socket belongs to the parent process")]
    Forked,
}

impl Req {
    /// A socket with default settings.
    ///
    /// # Errors
    /// [`Error::System`] when the system has no more descriptors, or no thread for the driver.
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Settings for a socket.
    pub fn builder() -> Builder<req::Req, Self> {
        Builder::new(req::Req::new(), |socket| Req { socket, resend: Some(RESEND) })
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(&self, msg: impl Into<Message>) -> Result<Message, RequestError> {
        self.request_until(msg.into(), None)
    }

    /// Asks, and waits for the reply until `timeout`.
    ///
    /// # Errors
    /// [`RequestError::TimedOut`], or see [`RequestError`].
    pub fn request_timeout(
        &self,
        msg: impl Into<Message>,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        self.request_until(msg.into(), deadline(timeout))
    }

    fn request_until(&self, msg: Message, deadline: Option<Instant>) -> Result<Message, RequestError> {
        self.open(msg, Some(deadline)).map_err(RequestError::NotSent)?.wait_until(deadline)
    }

    /// Asks, as a future for any executor. Dropped, the request is forgotten.
    pub async fn request_async(&self, msg: impl Into<Message>) -> Result<Message, RequestError> {
        let mut held = Some(msg.into());
        let resend = self.resend;
        let opened = self
            .wait_async(req::Req::ROOM, |p, cx| match p.open(cx, held.take()?, resend) {
                Ok(id) => Some(Ok(id)),
                Err(Refused::NotNow(msg)) => {
                    held = Some(msg);
                    None
                }
                Err(e) => Some(Err(e)),
            })
            .await;
        match (opened, held) {
            (Ok(Ok(id)), _) => self.pending(id).await,
            (Ok(Err(e)), _) => Err(RequestError::NotSent(refused(SendError::Full)(e))),
            (Err(e), Some(msg)) => Err(RequestError::NotSent(unsent(e, msg))),
            (Err(e), None) => Err(e.into()),
        }
    }

    /// Asks, and returns at once: the reply is collected later, by thread or task.
    ///
    /// # Errors
    /// [`SendError::Full`] when too many requests are open.
    pub fn start(&self, msg: impl Into<Message>) -> Result<Pending, SendError<Message>> {
        self.open(msg.into(), None)
    }

    /// `wait`: whether to wait for a place, and until when.
    fn open(&self, msg: Message, wait: Option<Option<Instant>>) -> Result<Pending, SendError<Message>> {
        let mut held = Some(msg);
        let key = Want::Key(req::Req::ROOM);
        let opened = self.core().wait_on(key, wait.flatten(), |p, cx| {
            match down::<req::Req>(p).open(cx, held.take()?, self.resend) {
                Ok(id) => Some(Ok(id)),
                Err(Refused::NotNow(msg)) if wait.is_some() => {
                    held = Some(msg);
                    None
                }
                Err(e) => Some(Err(e)),
            }
        });
        match (opened, held) {
            (Ok(Ok(id)), _) => Ok(self.pending(id)),
            (Ok(Err(e)), _) => Err(refused(SendError::Full)(e)),
            (Err(e), msg) => Err(unsent(e, msg.unwrap_or_default())),
        }
    }

    fn pending(&self, id: ReqId) -> Pending {
        Pending { socket: self.socket.clone(), id, slot: None, done: false }
    }

    /// Number of requests that have no reply yet.
    pub fn outstanding(&self) -> usize {
        if self.core().forked() { 0 } else { self.with(|p, _| p.outstanding()) }
    }
}

/// A request that was sent, or waits for a connection. A future of its reply; or [`wait`](Pending::wait).
/// Dropped, the request is forgotten.
#[must_use = "a request whose Pending is dropped is forgotten"]
pub struct Pending {
    socket: Socket<req::Req>,
    id: ReqId,
    slot: Option<u64>,
    done: bool,
}

impl Pending {
    /// Waits for the reply.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn wait(self) -> Result<Message, RequestError> {
        self.wait_until(None)
    }

    /// Waits for the reply until `timeout`; then the request is forgotten.
    ///
    /// # Errors
    /// [`RequestError::TimedOut`], or see [`RequestError`].
    pub fn wait_timeout(self, timeout: Duration) -> Result<Message, RequestError> {
        self.wait_until(deadline(timeout))
    }

    fn wait_until(mut self, deadline: Option<Instant>) -> Result<Message, RequestError> {
        let id = self.id;
        let key = Want::Key(id.key());
        let got = self.socket.core().wait_on(key, deadline, |p, _| down::<req::Req>(p).poll(id));
        self.done = got.is_ok();
        ended(got)
    }
}

fn ended(got: Result<Result<Message, Failed>, WaitError>) -> Result<Message, RequestError> {
    match got {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(Failed::ConnectionLost)) => Err(RequestError::ConnectionLost),
        Ok(Err(Failed::Undeliverable)) => Err(RequestError::Undeliverable),
        Err(e) => Err(e.into()),
    }
}

impl From<WaitError> for RequestError {
    fn from(e: WaitError) -> RequestError {
        match e {
            WaitError::TimedOut => RequestError::TimedOut,
            WaitError::Closed => RequestError::Closed,
            WaitError::Forked => RequestError::Forked,
        }
    }
}

impl Future for Pending {
    type Output = Result<Message, RequestError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        let id = me.id;
        let key = Want::Key(id.key());
        let got =
            me.socket.core().poll_on(key, &mut me.slot, cx.waker(), |p, _| down::<req::Req>(p).poll(id));
        let got = ready!(got);
        me.done = got.is_ok();
        Poll::Ready(ended(got))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let id = self.id;
        self.socket.core().unpark(Want::Key(id.key()), self.slot.take());
        if !self.done && !self.socket.core().forked() {
            self.socket.with(|p, cx| p.cancel(cx, id));
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Answers its [`Req`] peers. Each [`Request`] knows its way back; several may be open at once, and be
/// answered in any order, from any thread, or not at all.
#[derive(Clone, Debug)]
pub struct Rep {
    socket: Socket<rep::Rep>,
}

impl Deref for Rep {
    type Target = Socket<rep::Rep>;
    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}

impl Builder<rep::Rep, Rep> {
    /// Most devices that a request may have passed, plus one: 1–255 (0 counts as 1). Default: 8. What has more
    /// is dropped and counted.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.protocol = rep::Rep::with_ttl(ttl);
        self
    }
}

impl Rep {
    /// A socket with default settings.
    ///
    /// # Errors
    /// [`Error::System`] when the system has no more descriptors, or no thread for the driver.
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Settings for a socket.
    pub fn builder() -> Builder<rep::Rep, Self> {
        Builder::new(rep::Rep::new(), |socket| Rep { socket })
    }

    fn request(&self, incoming: Incoming) -> Request {
        Request { socket: self.socket.clone(), incoming, answered: false }
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    pub fn recv(&self) -> Result<Request, RecvError> {
        self.socket.recv().map(|r| self.request(r))
    }

    /// A request, if one is there.
    ///
    /// # Errors
    /// [`RecvError::Empty`] when none is.
    pub fn try_recv(&self) -> Result<Request, RecvError> {
        self.socket.try_recv().map(|r| self.request(r))
    }

    /// Waits for a request until `timeout`.
    ///
    /// # Errors
    /// [`RecvError::TimedOut`] when none came.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Request, RecvError> {
        self.socket.recv_timeout(timeout).map(|r| self.request(r))
    }

    /// Waits for a request, then takes all that are there, up to `max`, with one lock. Returns how many were appended to
    /// `into`.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    pub fn recv_many(&self, into: &mut Vec<Request>, max: usize) -> Result<usize, RecvError> {
        let take = |p: &mut dyn Protocol, cx: &mut Cx<'_>| self.take_many(down(p), cx, into, max);
        Ok(self.socket.core().wait_on(Want::Recv, None, take)?)
    }

    /// The same as a future, for any executor. Dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::Forked`].
    pub async fn recv_many_async(&self, into: &mut Vec<Request>, max: usize) -> Result<usize, RecvError> {
        let take = |p: &mut rep::Rep, cx: &mut Cx<'_>| self.take_many(p, cx, into, max);
        Ok(WaitFuture::new(self.socket.clone(), Want::Recv, take).await?)
    }

    /// What is there, `max` at most; nothing when there is nothing.
    fn take_many(
        &self,
        p: &mut rep::Rep,
        cx: &mut Cx<'_>,
        into: &mut Vec<Request>,
        max: usize,
    ) -> Option<usize> {
        let before = into.len();
        p.recv_each(cx, max, |incoming| into.push(self.request(incoming)));
        (into.len() > before || max == 0).then(|| into.len() - before)
    }

    /// A request, as a future for any executor. Dropped before it is ready, it has taken nothing.
    pub async fn recv_async(&self) -> Result<Request, RecvError> {
        self.socket.recv_async().await.map(|r| self.request(r))
    }

    /// Requests, until the socket closes.
    pub fn iter(&self) -> impl Iterator<Item = Request> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}

/// A request that was received. It dereferences to its body; dropped, it is not answered.
pub struct Request {
    pub(super) socket: Socket<rep::Rep>,
    pub(super) incoming: Incoming,
    answered: bool,
}

impl Request {
    /// What was asked.
    pub fn body(&self) -> &Message {
        &self.incoming.body
    }

    /// The pipe it came from.
    pub fn pipe(&self) -> PipeId {
        self.incoming.pipe
    }

    /// Answers. Waits while the connection's queue is full. A requester whose connection is gone waits no more (it asks
    /// again by another): the reply is dropped and counted, and that is no error.
    ///
    /// # Errors
    /// The reply comes back when the socket is closed.
    pub fn reply(self, msg: impl Into<Message>) -> Result<(), SendError<Message>> {
        self.reply_until(msg.into(), None)
    }

    /// Answers; waits for room until `timeout`. The request stays yours: answer it later, or drop it.
    ///
    /// # Errors
    /// [`SendError::TimedOut`]; the reply comes back. [`SendError::Invalid`] when it was answered already.
    pub fn reply_timeout(
        &mut self,
        msg: impl Into<Message>,
        timeout: Duration,
    ) -> Result<(), SendError<Message>> {
        if self.answered {
            return Err(SendError::Invalid(msg.into(), "the request was answered already"));
        }
        self.reply_until(msg.into(), deadline(timeout))?;
        self.answered = true;
        Ok(())
    }

    fn reply_until(&self, msg: Message, deadline: Option<Instant>) -> Result<(), SendError<Message>> {
        let mut held = Some(msg);
        let key = Want::Key(rep::Rep::room_key(self.incoming.pipe));
        let sent = self.socket.core().wait_on(key, deadline, |p, cx| {
            match down::<rep::Rep>(p).reply(cx, &self.incoming, held.take()?) {
                Ok(_) => Some(()),
                Err(e) => {
                    held = Some(e.into_inner());
                    None
                }
            }
        });
        sent.map_err(|e| unsent(e, held.unwrap_or_default()))
    }

    /// Answers, as a future for any executor.
    ///
    /// # Errors
    /// The reply comes back when the socket is closed.
    pub async fn reply_async(self, msg: impl Into<Message>) -> Result<(), SendError<Message>> {
        let mut held = Some(msg.into());
        let key = rep::Rep::room_key(self.incoming.pipe);
        let sent = self
            .socket
            .wait_async(key, |p, cx| match p.reply(cx, &self.incoming, held.take()?) {
                Ok(_) => Some(()),
                Err(e) => {
                    held = Some(e.into_inner());
                    None
                }
            })
            .await;
        sent.map_err(|e| unsent(e, held.unwrap_or_default()))
    }
}

impl Deref for Request {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.incoming.body
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("body", &self.incoming.body).finish_non_exhaustive()
    }
}
