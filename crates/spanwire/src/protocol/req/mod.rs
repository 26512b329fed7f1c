//! REQ, the asking end of request and reply.
//!
//! Any number of requests at once, each with an id and its own answer, from any thread. A request goes to the
//! next peer in turn, or waits for one. When it is sent again, and when it is given up, is said in `resend.rs`. The
//! deadline is the caller's: it cancels.
//!
//! Owns: open requests, their ids, who carries them, when they are sent again. Never: waits, keeps an answer
//! that nobody asked for, or uses an id twice within 2^31 requests. Wire: 0x30, peer REP 0x31; request and
//! reply begin with the id, top bit set; ids count up from a random start. (SP request/reply RFC; nanomsg
//! `req.c`; an answer from another connection than the one asked is as good.)

mod due;
mod group;
mod resend;
mod table;
#[cfg(test)]
mod tests;

use std::mem;
use std::time::Duration;

use super::balance::Balance;
use super::rep::{AT_HAND, GATHERED};
use super::{
    Cx, DropReason, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Refused, Reject, TimerKey, WaitKey,
};
use crate::Message;
use due::Due;
use group::Groups;
pub use group::{GroupId, Reply};
use resend::{Carrier, Queue, TRIAL};
use table::{At, List, Request, Table};

const ID: u32 = 0x8000_0000;
/// Ended requests count towards this, too, until they are collected.
const MOST: usize = 1 << 24;

/// Names an open request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReqId(u32);

impl ReqId {
    /// Woken when the request has ended.
    pub fn key(self) -> WaitKey {
        WaitKey(0, u64::from(self.0))
    }

    /// The id as it goes on the wire, with its top bit set.
    pub fn word(self) -> u32 {
        self.0
    }
}

/// Why a request has ended without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failed {
    /// The connection that carried it ended, and resending is off: it may or may not have been served.
    #[error("the connection ended before the reply, and resending is off")]
    ConnectionLost,
    /// Connections that carried it ended at once, eight times in a row and each newly opened, with no other such
    /// request on it: the peer will not have it. Most likely it is larger than the peer takes.
    #[error("undeliverable: each connection that carried it ended at once; larger than the peer takes?")]
    Undeliverable,
}

/// State of one REQ socket.
#[derive(Debug)]
pub struct Req {
    table: Table,
    /// Last number given out; none yet before the first request.
    last: Option<u32>,
    /// Requests that have not ended.
    open: usize,
    max_open: usize,
    /// Nobody can collect an answer any more.
    closing: bool,
    balance: Balance,
    queue: Queue,
    carried: PipeMap<Carrier>,
    /// Connections that have opened so far.
    connections: u64,
    due: Due,
    groups: Groups,
}

impl Default for Req {
    fn default() -> Self {
        Req {
            table: Table::default(),
            last: None,
            open: 0,
            max_open: 100_000,
            closing: false,
            balance: Balance::default(),
            queue: Queue::default(),
            carried: PipeMap::default(),
            connections: 0,
            due: Due::default(),
            groups: Groups::default(),
        }
    }
}

impl Req {
    /// Woken when there were as many open requests as there may be, and that has changed.
    pub const ROOM: WaitKey = WaitKey(1, 0);

    /// At most 100,000 open requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// At most `n` open requests (1 to 2^24; others are taken as the nearest). Default: 100,000. One of a group counts until
    /// its end was collected.
    #[must_use]
    pub fn max_open(mut self, n: usize) -> Self {
        self.max_open = n.clamp(1, MOST);
        self
    }

    /// Opens a request: it leaves now, or waits for a connection. `resend`: how long after it left it is sent
    /// again; `None`, or zero as in nng and mangos: never, so that no peer gets it twice. Header words of `msg`
    /// are replaced.
    ///
    /// [`ReqId::key`] is woken when it has ended. Then [`poll`](Req::poll) it; or [`cancel`](Req::cancel) it.
    ///
    /// # Errors
    /// [`Refused::NotNow`] when too many are open; [`Req::ROOM`] is woken when that changes.
    pub fn open(
        &mut self,
        cx: &mut Cx<'_>,
        msg: Message,
        resend: Option<Duration>,
    ) -> Result<ReqId, Refused<Message>> {
        self.open_for(cx, None, msg, resend)
    }

    /// A new group of requests: its ends are [`collect`](Req::collect)ed. It must be [`remove_group`](Req::remove_group)d.
    pub fn new_group(&mut self) -> GroupId {
        self.groups.insert()
    }

    /// The same as [`open`](Req::open) for a request of a group: [`GroupId::key`] is woken, not [`ReqId::key`], and it must not be
    /// polled.
    ///
    /// # Errors
    /// [`Refused::NotNow`] as [`open`](Req::open); [`Refused::Invalid`] when there is no such group.
    pub fn open_in(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        msg: Message,
        resend: Option<Duration>,
    ) -> Result<ReqId, Refused<Message>> {
        if !self.groups.contains(group) {
            return Err(Refused::Invalid(msg, "its group is no more"));
        }
        self.open_for(cx, Some(group), msg, resend)
    }

    fn open_for(
        &mut self,
        cx: &mut Cx<'_>,
        group: Option<GroupId>,
        mut msg: Message,
        resend: Option<Duration>,
    ) -> Result<ReqId, Refused<Message>> {
        if !self.readiness().send {
            return Err(Refused::NotNow(msg));
        }
        self.table.reserve_one();
        let mut last = self.last.unwrap_or_else(|| cx.random() as u32);
        let id = loop {
            last = last.wrapping_add(1);
            if self.table.is_free(last | ID) {
                break last | ID;
            }
        };
        self.last = Some(last);
        msg.set_header(&[id]);
        // Where none waits before it, straight to a connection: the same as through the queue, and shorter.
        let sent = if self.queue.len() == 0 { self.balance.send_copy(cx, &msg) } else { None };
        let resend = resend.filter(|interval| !interval.is_zero());
        if sent.is_some() && resend.is_none() {
            msg = Message::new();
        }
        self.table.insert(Request { group, ..Request::new(id, msg, resend) });
        self.open += 1;
        if let Some(group) = group {
            self.groups.join(group, id, |id| self.table.get(id).is_some());
        }
        match sent {
            Some(pipe) => self.carry(cx, pipe, id),
            None => {
                self.queue.push_back(&mut self.table, cx, id);
                self.dispatch(cx);
            }
        }
        Ok(ReqId(id))
    }

    /// Whether the request has ended, and how. It is forgotten then; so must every request be, by this or by
    /// [`cancel`](Req::cancel).
    pub fn poll(&mut self, id: ReqId) -> Option<Result<Message, Failed>> {
        match self.table.get(id.0)?.at {
            At::Ended(how) => {
                let request = self.table.remove(id.0)?;
                Some(how.map(|()| request.msg))
            }
            At::Waiting | At::On(_) => None,
        }
    }

    /// Forgets a request: its deadline passed, or nobody wants the answer any more. An answer that comes
    /// later is dropped and counted.
    pub fn cancel(&mut self, cx: &mut Cx<'_>, id: ReqId) {
        self.forget(cx, id.0);
        self.dispatch_suspects(cx);
    }

    fn forget(&mut self, cx: &mut Cx<'_>, id: u32) {
        self.tell_room(cx);
        self.detach(cx, id);
        if let Some(group) = self.table.remove(id).and_then(|request| request.group) {
            self.groups.leave(cx, group, id, None);
        }
    }

    /// Forgets a request of `group`, as [`cancel`](Req::cancel). `false`: it is none of it, or has ended; then its end is
    /// there to be collected, unless it was.
    pub fn cancel_in(&mut self, cx: &mut Cx<'_>, group: GroupId, id: ReqId) -> bool {
        let is_open = self.table.get(id.0).is_some_and(|request| request.group == Some(group));
        if is_open {
            self.cancel(cx, id);
        }
        is_open
    }

    /// Appends the ends of requests of `group` to `into`, in the order in which they came, `max` at most, and forgets them.
    /// Returns how many.
    pub fn collect(&mut self, cx: &mut Cx<'_>, group: GroupId, into: &mut Vec<Reply>, max: usize) -> usize {
        self.tell_room(cx);
        self.groups.collect(cx, group, into, max)
    }

    /// Of `group`: requests that have not ended, and ends that are not collected.
    pub fn left_in(&self, group: GroupId) -> (usize, usize) {
        self.groups.left(group)
    }

    /// Forgets a group with all that is left of it.
    pub fn remove_group(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        self.tell_room(cx);
        let (members, ended) = self.groups.remove(group);
        for _ in 0..ended {
            cx.dropped(None, DropReason::Late);
        }
        for id in members {
            // An id that has ended may be another's by now.
            if self.table.get(id).is_some_and(|request| request.group == Some(group)) {
                self.forget(cx, id);
            }
        }
        self.dispatch_suspects(cx);
    }

    /// Before a request ends, or its end is collected: who waits for room is to look again.
    fn tell_room(&self, cx: &mut Cx<'_>) {
        if self.open + self.groups.kept >= self.max_open {
            cx.wake(Self::ROOM);
        }
    }

    /// Number of requests that have not ended.
    pub fn outstanding(&self) -> usize {
        self.open
    }

    /// Takes a request that has not ended out of all lists.
    fn detach(&mut self, cx: &mut Cx<'_>, id: u32) {
        let Some(request) = self.table.get(id) else { return };
        match request.at {
            At::Ended(_) => return,
            At::Waiting => {
                self.queue.remove(&mut self.table, id);
            }
            At::On(pipe) => {
                self.queue.end_trial(cx, id);
                self.lift(pipe, id);
            }
        }
        self.open -= 1;
    }

    /// Takes a request off its connection. It must go to the queue, or end.
    fn lift(&mut self, pipe: PipeId, id: u32) {
        if let Some(carrier) = self.carried.get_mut(pipe) {
            carrier.requests.remove(&mut self.table, id);
        }
        self.due.remove(&mut self.table, id);
    }

    fn end(&mut self, cx: &mut Cx<'_>, id: u32, how: Result<Message, Failed>) {
        let group = self.table.get(id).and_then(|request| request.group);
        if let Some(group) = group {
            self.detach(cx, id);
            self.table.discard(id);
            return self.groups.leave(cx, group, id, Some(how));
        }
        self.tell_room(cx);
        self.detach(cx, id);
        if let Some(request) = self.table.get_mut(id) {
            let (answer, how) = match how {
                Ok(answer) => (answer, Ok(())),
                Err(why) => (Message::new(), Err(why)),
            };
            (request.msg, request.at) = (answer, At::Ended(how));
            cx.wake(ReqId(id).key());
        }
    }

    /// Sends what waits while there is room.
    fn dispatch(&mut self, cx: &mut Cx<'_>) {
        while self.balance.has_room()
            && let Some(id) = self.queue.next(&self.table, cx)
            && let Some(request) = self.table.get_mut(id)
        {
            let sent = match request.resend {
                Some(_) => self.balance.send_copy(cx, &request.msg),
                None => match self.balance.send(cx, mem::take(&mut request.msg)) {
                    Ok(pipe) => Some(pipe),
                    Err(msg) => {
                        request.msg = msg;
                        None
                    }
                },
            };
            match sent {
                Some(pipe) => {
                    self.queue.sent(&mut self.table, cx, id);
                    self.carry(cx, pipe, id);
                }
                None => break,
            }
        }
    }

    /// The next suspect may go, if the one that was out is back.
    fn dispatch_suspects(&mut self, cx: &mut Cx<'_>) {
        if self.queue.has_suspects() {
            self.dispatch(cx);
        }
    }

    /// `id` was put on `pipe`.
    fn carry(&mut self, cx: &mut Cx<'_>, pipe: PipeId, id: u32) {
        if let Some(carrier) = self.carried.get_mut(pipe) {
            carrier.requests.push_back(&mut self.table, id);
        }
        let Some(request) = self.table.get_mut(id) else { return };
        request.at = At::On(pipe);
        // With many in flight the peer begins with the first ones while the others are asked. Of a group they are asked by
        // the batch, which leaves as a whole.
        let batched = request.group.is_some();
        if let Some(interval) = request.resend {
            request.since = cx.now();
            self.due.insert(&mut self.table, cx, id, interval);
        }
        let gathered = cx.unsent(pipe).0;
        if gathered >= GATHERED && (batched || gathered >= self.open / 2) {
            cx.flush_now(pipe);
        } else if self.table.len - self.open >= AT_HAND {
            cx.expect_more(pipe); // who collects so many answers asks again, if it did before
        }
    }

    /// Marks what had not begun to leave when its connection ended.
    fn reclaim(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        while let Some(mut msg) = cx.reclaim(pipe) {
            // A cancelled one, or one that was sent again elsewhere, is just discarded.
            if let Some(id) = msg.pop_word()
                && let Some(request) = self.table.get_mut(id)
                && matches!(request.at, At::On(on) if on == pipe)
            {
                request.unsent = true;
                if request.resend.is_none() {
                    msg.set_header(&[id]);
                    request.msg = msg;
                }
            }
        }
    }

    /// Always to the end: one answer never waits behind another.
    fn drain(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        while let Some(mut msg) = cx.take(pipe) {
            match msg.pop_word() {
                Some(id) if id & ID != 0 => match self.table.get(id) {
                    Some(Request { at: At::Waiting | At::On(_), .. }) => {
                        // Words behind the id belong to the body: a stream would have delivered them there.
                        if msg.header_len() > 0 {
                            msg = msg.joined();
                        }
                        self.end(cx, id, Ok(msg));
                    }
                    _ => cx.dropped(Some(pipe), DropReason::Late),
                },
                _ => cx.dropped(Some(pipe), DropReason::Malformed),
            }
        }
    }
}

impl Protocol for Req {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x30, "req", 0x31, "rep").zmtp("REQ", &["REP", "ROUTER"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.connections += 1;
        self.carried.insert(pipe, Carrier { number: self.connections, requests: List::default() });
        self.balance.ready(cx, pipe);
        self.dispatch(cx);
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.drain(cx, pipe);
        self.balance.remove(pipe);
        if !self.closing {
            self.reclaim(cx, pipe);
        }
        // From the youngest to the oldest, so that the oldest is in front in the end.
        while let Some(Carrier { number, requests }) = self.carried.get(pipe)
            && let Some(id) = requests.back()
            && let Some(request) = self.table.get_mut(id)
        {
            let again = match self.closing {
                true => Err(Failed::ConnectionLost),
                false => request.after_end(cx, *number, self.connections),
            };
            match again {
                Ok(()) => {
                    self.lift(pipe, id);
                    self.queue.push_front(&mut self.table, cx, id);
                }
                Err(why) => self.end(cx, id, Err(why)),
            }
        }
        self.carried.remove(pipe);
        self.dispatch(cx);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.drain(cx, pipe);
        self.dispatch_suspects(cx);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.balance.ready(cx, pipe);
        self.dispatch(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, key: TimerKey) {
        if self.closing {
            return;
        }
        if key == TRIAL {
            self.queue.acquit(&mut self.table);
            return self.dispatch(cx);
        }
        self.due.rang();
        while let Some(id) = self.due.pop(&mut self.table, cx.now()) {
            if let Some(&Request { at: At::On(pipe), .. }) = self.table.get(id) {
                self.lift(pipe, id);
                self.queue.push_back(&mut self.table, cx, id);
            }
        }
        self.dispatch(cx);
        self.due.arm(&self.table, cx);
    }

    /// `send`: another request may be opened. `recv` never: each request has an answer of its own.
    fn readiness(&self) -> Readiness {
        let send = self.open + self.groups.kept < self.max_open && self.table.len < MOST;
        Readiness { send, recv: false }
    }

    fn held(&self) -> usize {
        self.queue.len()
    }

    /// Requests that a connection has in its queue leave yet; there is no point in sending others.
    fn closing(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        while let Some(id) = self.queue.front() {
            self.end(cx, id, Err(Failed::ConnectionLost));
        }
    }
}
