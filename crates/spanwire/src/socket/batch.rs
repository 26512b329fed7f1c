//! Requests and replies by the batch: one lock and one write for many.
//!
//! Owns: a set's place in the protocol. Never: a reply that it did not hand out, or an order among requests of
//! several threads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::futures::WaitFuture;
use super::{Rep, Req, Request, Socket, deadline, down, refused, unsent};
use crate::Message;
use crate::engine::Want;
use crate::error::{Error, RecvError, SendError, WaitError};
use crate::protocol::req::{self, GroupId, Reply, ReqId};
use crate::protocol::{Cx, Protocol, rep};

impl Req {
    /// A set of requests that are started by the batch, and whose replies are collected by the batch, in the order in which
    /// they come.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub fn request_set(&self) -> Result<RequestSet, Error> {
        match self.core().try_on(|p, _| down::<req::Req>(p).new_group()) {
            Ok(group) => Ok(RequestSet { req: self.clone(), group }),
            Err(WaitError::Forked) => Err(Error::Forked),
            Err(_) => Err(Error::Closed),
        }
    }
}

/// Requests in flight whose replies are collected together: many with one lock and one write, and their replies with
/// one lock. Any number of threads and tasks may start and collect at once; each reply is handed out once.
///
/// Each request ends as one of [`Req::start`] does: by a reply, or by what [`Failed`](crate::Failed) names. It has no deadline of
/// its own: [`cancel`](RequestSet::cancel) one that takes too long. Dropped, the set forgets what is left of it.
///
/// ```
/// # use spanwire::{Message, Rep, Req};
/// # use std::collections::{HashMap, VecDeque};
/// let rep = Rep::new()?;
/// let req = Req::new()?;
/// req.connect(rep.bind("tcp://127.0.0.1:0")?.url())?;
/// std::thread::spawn(move || {
///     let (mut requests, mut replies) = (Vec::new(), VecDeque::new());
///     while rep.recv_many(&mut requests, 64).is_ok() {
///         replies.extend(requests.drain(..).map(|request| {
///             let reply = Message::from(request.to_ascii_uppercase());
///             (request, reply)
///         }));
///         rep.reply_many(&mut replies).unwrap();
///     }
/// });
///
/// let set = req.request_set()?;
/// let mut words: VecDeque<Message> = ["one", "two", "three"].map(Message::from).into();
/// let mut ids = Vec::new();
/// assert_eq!(set.start_many(&mut words, &mut ids)?, 3);
/// let (mut replies, mut by_id) = (Vec::new(), HashMap::new());
/// while set.recv_many(&mut replies, 64).is_ok() {
///     for reply in replies.drain(..) {
///         by_id.insert(reply.id, reply.result?);
///     }
/// }
/// assert_eq!(by_id[&ids[1]], "TWO");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RequestSet {
    req: Req,
    group: GroupId,
}

/// What there is to collect, or that there will be nothing.
fn collect(
    p: &mut req::Req,
    cx: &mut Cx<'_>,
    group: GroupId,
    into: &mut Vec<Reply>,
    max: usize,
) -> Option<Result<usize, RecvError>> {
    let n = p.collect(cx, group, into, max);
    if n > 0 || max == 0 {
        Some(Ok(n))
    } else if p.left_in(group) == (0, 0) {
        Some(Err(RecvError::Empty))
    } else {
        None
    }
}

impl RequestSet {
    /// Starts a request, and returns its id at once.
    ///
    /// # Errors
    /// [`SendError::Full`] when too many requests are open.
    pub fn start(&self, msg: impl Into<Message>) -> Result<ReqId, SendError<Message>> {
        let mut held = Some(msg.into());
        let (group, resend) = (self.group, self.req.resend);
        let open = |p: &mut dyn Protocol, cx: &mut Cx<'_>| {
            held.take().map(|msg| down::<req::Req>(p).open_in(cx, group, msg, resend))
        };
        match (self.req.core().try_on(open), held) {
            (Ok(Some(opened)), _) => opened.map_err(refused(SendError::Full)),
            (Ok(None), held) => Err(SendError::Full(held.unwrap_or_default())), // not reached: it is held until it is tried
            (Err(e), held) => Err(unsent(e, held.unwrap_or_default())),
        }
    }

    /// Starts as many of `msgs`, oldest first, as may be open, with one lock and one write, and appends their ids to `ids`, in the
    /// same order. Returns at once, and how many; the others stay in `msgs`, for when replies have been collected.
    ///
    /// # Errors
    /// [`SendError::Full`] when not one may be opened. All stay in `msgs`.
    pub fn start_many(
        &self,
        msgs: &mut VecDeque<Message>,
        ids: &mut Vec<ReqId>,
    ) -> Result<usize, SendError<()>> {
        let all = msgs.len();
        let started = self.req.core().try_on(|p, cx| {
            let p = down::<req::Req>(p);
            while let Some(msg) = msgs.pop_front() {
                match p.open_in(cx, self.group, msg, self.req.resend) {
                    Ok(id) => ids.push(id),
                    Err(refused) => {
                        msgs.push_front(refused.into_inner());
                        break;
                    }
                }
            }
            all - msgs.len()
        });
        match started {
            Ok(0) if all > 0 => Err(SendError::Full(())),
            Ok(n) => Ok(n),
            Err(e) => Err(unsent(e, ())),
        }
    }

    /// Waits for a reply, of whichever request.
    ///
    /// # Errors
    /// [`RecvError::Empty`] when nothing is in flight, so that none will come; [`RecvError::Closed`], [`RecvError::Forked`].
    pub fn recv(&self) -> Result<Reply, RecvError> {
        self.recv_until(None)
    }

    /// Waits for a reply, of whichever request, until `timeout`. The requests stay open.
    ///
    /// # Errors
    /// As [`recv`](RequestSet::recv), and [`RecvError::TimedOut`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Reply, RecvError> {
        self.recv_until(deadline(timeout))
    }

    /// A reply, of whichever request, as a future for any executor. Dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    /// As [`recv`](RequestSet::recv).
    pub async fn recv_async(&self) -> Result<Reply, RecvError> {
        let mut one = Vec::with_capacity(1);
        self.recv_many_async(&mut one, 1).await?;
        one.pop().ok_or(RecvError::Empty)
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Result<Reply, RecvError> {
        let mut one = Vec::with_capacity(1);
        self.recv_many_until(&mut one, 1, deadline)?;
        one.pop().ok_or(RecvError::Empty)
    }

    /// Waits for a reply, then takes all that are there, up to `max`, with one lock. They are appended to `into` in the
    /// order in which they came; returns how many.
    ///
    /// # Errors
    /// As [`recv`](RequestSet::recv).
    pub fn recv_many(&self, into: &mut Vec<Reply>, max: usize) -> Result<usize, RecvError> {
        self.recv_many_until(into, max, None)
    }

    /// The same; waits until `timeout`. The requests stay open.
    ///
    /// # Errors
    /// As [`recv`](RequestSet::recv), and [`RecvError::TimedOut`].
    pub fn recv_many_timeout(
        &self,
        into: &mut Vec<Reply>,
        max: usize,
        timeout: Duration,
    ) -> Result<usize, RecvError> {
        self.recv_many_until(into, max, deadline(timeout))
    }

    /// The same as a future, for any executor. Dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    /// As [`recv`](RequestSet::recv).
    pub async fn recv_many_async(&self, into: &mut Vec<Reply>, max: usize) -> Result<usize, RecvError> {
        let (group, key) = (self.group, Want::Key(self.group.key()));
        let take = |p: &mut req::Req, cx: &mut Cx<'_>| collect(p, cx, group, into, max);
        WaitFuture::new(Socket::clone(&self.req), key, take).await?
    }

    fn recv_many_until(
        &self,
        into: &mut Vec<Reply>,
        max: usize,
        deadline: Option<Instant>,
    ) -> Result<usize, RecvError> {
        let key = Want::Key(self.group.key());
        self.req.core().wait_on(key, deadline, |p, cx| collect(down(p), cx, self.group, into, max))?
    }

    /// Forgets a request: a late reply is dropped and counted. `false`: it is not of this set, or has ended already; then
    /// its reply is there to be collected, unless it was.
    pub fn cancel(&self, id: ReqId) -> bool {
        !self.req.core().forked() && self.req.with(|p, cx| p.cancel_in(cx, self.group, id))
    }

    /// Requests of the set that have no reply yet, and replies that are not collected.
    pub fn in_flight(&self) -> (usize, usize) {
        if self.req.core().forked() { (0, 0) } else { self.req.with(|p, _| p.left_in(self.group)) }
    }
}

impl Drop for RequestSet {
    fn drop(&mut self) {
        if !self.req.core().forked() {
            self.req.with(|p, cx| p.remove_group(cx, self.group));
        }
    }
}

impl fmt::Debug for RequestSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSet").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Rep {
    /// Answers all of `replies`, oldest first, with one lock for as many as there is room for; waits while connections' queues are
    /// full. One that is full holds up only its own. Returns how many; replies to requesters that are gone count as
    /// answered, as with [`Request::reply`].
    ///
    /// # Errors
    /// What was not answered stays in `replies`. [`SendError::Invalid`] for a request of another socket, which is in front
    /// then.
    pub fn reply_many(&self, replies: &mut VecDeque<(Request, Message)>) -> Result<usize, SendError<()>> {
        self.reply_many_until(replies, None)
    }

    /// The same; waits until `timeout`. What was not answered stays in `replies`: answer it later, or drop it.
    ///
    /// # Errors
    /// As [`reply_many`](Rep::reply_many), and [`SendError::TimedOut`].
    pub fn reply_many_timeout(
        &self,
        replies: &mut VecDeque<(Request, Message)>,
        timeout: Duration,
    ) -> Result<usize, SendError<()>> {
        self.reply_many_until(replies, deadline(timeout))
    }

    fn reply_many_until(
        &self,
        replies: &mut VecDeque<(Request, Message)>,
        deadline: Option<Instant>,
    ) -> Result<usize, SendError<()>> {
        self.check_origin(replies)?;
        let all = replies.len();
        let room = Want::Key(rep::Rep::ROOM);
        let answer = |p: &mut dyn Protocol, cx: &mut Cx<'_>| answer(down(p), cx, replies);
        self.core().wait_on(room, deadline, answer).map_err(|e| unsent(e, ()))?;
        Ok(all)
    }

    /// The same as a future, for any executor. Dropped before it is ready, it has answered what is no more in `replies`.
    ///
    /// # Errors
    /// As [`reply_many`](Rep::reply_many).
    pub async fn reply_many_async(
        &self,
        replies: &mut VecDeque<(Request, Message)>,
    ) -> Result<usize, SendError<()>> {
        self.check_origin(replies)?;
        let all = replies.len();
        let answer = |p: &mut rep::Rep, cx: &mut Cx<'_>| answer(p, cx, replies);
        self.wait_async(rep::Rep::ROOM, answer).await.map_err(|e| unsent(e, ()))?;
        Ok(all)
    }

    /// Pipes of another socket may have the same names.
    fn check_origin(&self, replies: &mut VecDeque<(Request, Message)>) -> Result<(), SendError<()>> {
        let strange = |(request, _): &(Request, Message)| !Arc::ptr_eq(&request.socket.0, &self.0);
        match replies.iter().position(strange) {
            None => Ok(()),
            Some(at) => {
                let it = replies.remove(at);
                it.into_iter().for_each(|it| replies.push_front(it));
                Err(SendError::Invalid((), "a request of another socket"))
            }
        }
    }
}

/// Answers what there is room for; `None`: some are left.
fn answer(p: &mut rep::Rep, cx: &mut Cx<'_>, replies: &mut VecDeque<(Request, Message)>) -> Option<()> {
    p.reply_many(cx, replies, |request: &Request| &request.incoming);
    replies.is_empty().then_some(())
}
