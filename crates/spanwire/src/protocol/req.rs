//! REQ, the asking end of request and reply.
//!
//! Any number of requests at once, each with an id and its own answer, from any thread. A request goes to the
//! next peer in turn, or waits for one. It is sent again when no answer came within its resend interval, and
//! at once when the connection that carried it ends; with resend off it fails then. The deadline is the
//! caller's: it cancels.
//!
//! Owns: open requests, their ids, who carries them, when they are sent again. Never: waits, keeps an answer
//! that nobody asked for, or uses an id twice within 2^31 requests. Wire: 0x30, peer REP 0x31; request and
//! reply begin with the id, top bit set; ids count up from a random start. (SP request/reply RFC; nanomsg
//! `req.c`; an answer from another connection than the one asked is as good.)
//!
//! The id is also the place: its low bits index a table that doubles before it is half full, and a number
//! whose place is taken is left out. So finding a request hashes nothing. Requests stand in two linked lists
//! through that table: of their connection (or of those that wait for one), and of resend times. Requests with
//! the same interval are due in the order in which they were sent, so the second list needs no sorting; other
//! intervals go to a tree.

use std::collections::BTreeSet;
use std::mem;
use std::time::Duration;

use super::balance::Balance;
use super::{
    Cx, DropReason, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Refused, Reject, Time, TimerKey,
    WaitKey,
};
use crate::Message;

const ID: u32 = 0x8000_0000;
const RESEND: TimerKey = TimerKey(0, 0);
/// Ended requests count towards this, too, until they are collected.
const MOST: usize = 1 << 24;
/// A connection that ended so soon after it was given a request may have ended because of it.
const SOON: Duration = Duration::from_secs(1);
/// So many such ends in a row, and the request is given up.
const PATIENCE: u8 = 8;

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Failed {
    /// The connection that carried it ended, and resending is off: it may or may not have been served.
    ConnectionLost,
    /// Each connection that carried it ended at once, eight times in a row, with no other such request on it: the peer
    /// will not have it. Most likely it is larger than the peer takes.
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
    /// Requests that no connection carries, oldest first.
    waiting: List<PLACE>,
    /// Those among them whose connection ended at once: one of them may be what ends it. They go after all others and
    /// one at a time, so that the culprit is alone in the end, and the others have their answers.
    suspects: List<PLACE>,
    /// How many suspects are carried: none or one.
    out: usize,
    /// Requests that each connection carries, oldest first.
    carried: PipeMap<List<PLACE>>,
    due: Due,
}

/// When requests are to be sent again.
#[derive(Debug, Default)]
struct Due {
    /// Requests whose interval is `interval`: due in their order.
    common: List<DUE>,
    interval: Duration,
    others: BTreeSet<(Time, u32)>,
    /// When the timer rings. It may be too early, since answers do not touch it; then it is set anew.
    armed: Option<Time>,
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
            waiting: List::default(),
            suspects: List::default(),
            out: 0,
            carried: PipeMap::default(),
            due: Due::default(),
        }
    }
}

impl Req {
    /// Woken when there were as many open requests as there may be, and one has ended.
    pub const ROOM: WaitKey = WaitKey(1, 0);

    /// At most 100,000 open requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// At most `n` open requests (1 to 2^24; others are taken as the nearest). Default: 100,000.
    #[must_use]
    pub fn max_open(mut self, n: usize) -> Self {
        self.max_open = n.clamp(1, MOST);
        self
    }

    /// Opens a request: it leaves now, or waits for a connection. `resend`: how long after it left it is sent
    /// again; `None`: never, so that no peer gets it twice. Header words of `msg` are replaced.
    ///
    /// [`ReqId::key`] is woken when it has ended. Then [`poll`](Req::poll) it; or [`cancel`](Req::cancel) it.
    ///
    /// # Errors
    /// [`Refused::NotNow`] when too many are open; [`Req::ROOM`] is woken when that changes.
    pub fn open(
        &mut self,
        cx: &mut Cx<'_>,
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
        self.table.insert(Request {
            id,
            msg,
            at: At::Waiting,
            resend,
            due: None,
            sent: Time::ZERO,
            ends: 0,
            links: Default::default(),
        });
        self.open += 1;
        self.waiting.push_back(&mut self.table, id);
        self.dispatch(cx);
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
        self.detach(cx, id.0);
        self.table.remove(id.0);
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
            At::Waiting if request.is_suspect() => self.suspects.remove(&mut self.table, id),
            At::Waiting => self.waiting.remove(&mut self.table, id),
            At::On(pipe) => {
                self.out -= usize::from(request.is_suspect());
                if let Some(list) = self.carried.get_mut(pipe) {
                    list.remove(&mut self.table, id);
                }
            }
        }
        self.due.remove(&mut self.table, id);
        if self.open >= self.max_open {
            cx.wake(Self::ROOM);
        }
        self.open -= 1;
    }

    fn end(&mut self, cx: &mut Cx<'_>, id: u32, how: Result<Message, Failed>) {
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
            && let Some(id) = self.waiting.front().or(self.suspects.front().filter(|_| self.out == 0))
            && let Some(request) = self.table.get_mut(id)
        {
            let msg = match request.resend {
                Some(_) => request.msg.clone(),
                None => mem::take(&mut request.msg),
            };
            match self.balance.send(cx, msg) {
                Ok(pipe) => {
                    request.at = At::On(pipe);
                    let resend = request.resend;
                    if resend.is_some() {
                        request.sent = cx.now();
                    }
                    if request.is_suspect() {
                        self.out += 1;
                        self.suspects.remove(&mut self.table, id);
                    } else {
                        self.waiting.remove(&mut self.table, id);
                    }
                    if let Some(list) = self.carried.get_mut(pipe) {
                        list.push_back(&mut self.table, id);
                    }
                    if let Some(interval) = resend {
                        self.due.insert(&mut self.table, cx, id, interval);
                    }
                }
                Err(msg) => {
                    request.msg = msg;
                    break;
                }
            }
        }
    }

    /// The connection of `id` ended: to be sent again at once, or given up.
    fn again(&mut self, cx: &mut Cx<'_>, id: u32) {
        let now = cx.now();
        let Some(request) = self.table.get_mut(id) else { return };
        let soon = now.saturating_since(request.sent) < SOON;
        if soon && request.ends + 1 >= PATIENCE {
            return self.end(cx, id, Err(Failed::Undeliverable));
        }
        let At::On(pipe) = mem::replace(&mut request.at, At::Waiting) else { return };
        self.out -= usize::from(request.is_suspect());
        request.ends = if soon { request.ends + 1 } else { 0 };
        let suspect = request.is_suspect();
        if let Some(list) = self.carried.get_mut(pipe) {
            list.remove(&mut self.table, id);
        }
        self.due.remove(&mut self.table, id);
        if suspect {
            self.suspects.push_front(&mut self.table, id);
        } else {
            self.waiting.push_front(&mut self.table, id);
        }
    }

    /// Always to the end: one answer never waits behind another.
    fn drain(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        while let Some(mut msg) = cx.take(pipe) {
            match msg.pop_word() {
                Some(id) if id & ID != 0 => match self.table.get(id) {
                    Some(Request { at: At::Waiting | At::On(_), .. }) => {
                        // Words behind the id belong to the body: a stream would have delivered them there.
                        self.end(cx, id, Ok(msg.joined()));
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
        ProtocolInfo::new(0x30, "req", 0x31, "rep").latency_bound().zmtp("REQ", &["REP", "ROUTER"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.carried.insert(pipe, List::default());
        self.balance.ready(cx, pipe);
        self.dispatch(cx);
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.drain(cx, pipe);
        self.balance.remove(pipe);
        // From the youngest to the oldest, so that the oldest is in front in the end.
        while let Some(id) = self.carried.get(pipe).and_then(List::back) {
            if self.closing || self.table.get(id).is_some_and(|request| request.resend.is_none()) {
                self.end(cx, id, Err(Failed::ConnectionLost));
                continue;
            }
            self.again(cx, id);
        }
        self.carried.remove(pipe);
        self.dispatch(cx);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.drain(cx, pipe);
        if self.suspects.len > 0 {
            self.dispatch(cx); // the one that was out may be answered
        }
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.balance.ready(cx, pipe);
        self.dispatch(cx);
    }

    fn timer(&mut self, cx: &mut Cx<'_>, _: TimerKey) {
        self.due.armed = None;
        if self.closing {
            return;
        }
        while let Some(id) = self.due.pop(&mut self.table, cx.now()) {
            if let Some(request) = self.table.get_mut(id)
                && let At::On(pipe) = mem::replace(&mut request.at, At::Waiting)
                && let Some(list) = self.carried.get_mut(pipe)
            {
                list.remove(&mut self.table, id);
                if self.table.get(id).is_some_and(Request::is_suspect) {
                    self.out -= 1;
                    self.suspects.push_back(&mut self.table, id);
                } else {
                    self.waiting.push_back(&mut self.table, id);
                }
            }
        }
        self.dispatch(cx);
        self.due.arm(&self.table, cx);
    }

    /// `send`: another request may be opened. `recv` never: each request has an answer of its own.
    fn readiness(&self) -> Readiness {
        Readiness { send: self.open < self.max_open && self.table.len < MOST, recv: false }
    }

    fn held(&self) -> usize {
        self.waiting.len + self.suspects.len
    }

    /// Requests that a connection has in its queue leave yet; there is no point in sending others.
    fn closing(&mut self, cx: &mut Cx<'_>) {
        self.closing = true;
        while let Some(id) = self.waiting.front().or(self.suspects.front()) {
            self.end(cx, id, Err(Failed::ConnectionLost));
        }
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Among those that no connection carries.
    Waiting,
    /// Sent, or queued to be sent, on this connection.
    On(PipeId),
    /// With an answer, in place of the request, or without; not collected yet.
    Ended(Result<(), Failed>),
}

#[derive(Debug)]
struct Request {
    id: u32,
    /// The request; later the answer. Empty once sent when it is never sent again.
    msg: Message,
    at: At,
    resend: Option<Duration>,
    /// When it is due, and whether that is in the common list.
    due: Option<(Time, bool)>,
    /// When its connection got it.
    sent: Time,
    /// Connections in a row that ended at once after they had got it.
    ends: u8,
    links: [Link; 2],
}

impl Request {
    /// Once may be chance.
    fn is_suspect(&self) -> bool {
        self.ends > 1
    }
}

/// Neighbours in a list; 0 is none, since ids have their top bit set.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    previous: u32,
    next: u32,
}

const PLACE: usize = 0;
const DUE: usize = 1;

/// Requests by id: at the place that the low bits name. Invariant: no two ids meet, which doubling keeps.
#[derive(Debug, Default)]
struct Table {
    /// Length: a power of two, or 0.
    slots: Vec<Option<Request>>,
    len: usize,
}

impl Table {
    const SMALL: usize = 64;

    #[inline]
    fn place(&self, id: u32) -> usize {
        id as usize & self.slots.len().wrapping_sub(1)
    }

    #[inline]
    fn get(&self, id: u32) -> Option<&Request> {
        self.slots.get(self.place(id))?.as_ref().filter(|request| request.id == id)
    }

    #[inline]
    fn get_mut(&mut self, id: u32) -> Option<&mut Request> {
        let place = self.place(id);
        self.slots.get_mut(place)?.as_mut().filter(|request| request.id == id)
    }

    /// Keeps the table less than half full, so that free places are found soon.
    fn reserve_one(&mut self) {
        if (self.len + 1) * 2 <= self.slots.len() {
            return;
        }
        let size = (self.slots.len() * 2).max(Self::SMALL);
        let old = mem::take(&mut self.slots);
        self.slots.resize_with(size, || None);
        for request in old.into_iter().flatten() {
            let place = self.place(request.id);
            self.slots[place] = Some(request);
        }
    }

    fn is_free(&self, id: u32) -> bool {
        self.slots[self.place(id)].is_none()
    }

    fn insert(&mut self, request: Request) {
        let place = self.place(request.id);
        self.slots[place] = Some(request);
        self.len += 1;
    }

    fn remove(&mut self, id: u32) -> Option<Request> {
        self.get(id)?;
        let place = self.place(id);
        let request = self.slots[place].take();
        self.len -= 1;
        // After a burst the memory returns; an ordinary load keeps its table.
        if self.len == 0 && self.slots.len() > 64 * Self::SMALL {
            self.slots = Vec::new();
        }
        request
    }
}

/// A list through the table, by link `L`. All operations are O(1).
#[derive(Debug, Default)]
struct List<const L: usize> {
    first: u32,
    last: u32,
    len: usize,
}

impl<const L: usize> List<L> {
    fn front(&self) -> Option<u32> {
        (self.first != 0).then_some(self.first)
    }

    fn back(&self) -> Option<u32> {
        (self.last != 0).then_some(self.last)
    }

    fn push_back(&mut self, table: &mut Table, id: u32) {
        self.join(table, self.last, id);
        self.join(table, id, 0);
        self.len += 1;
    }

    fn push_front(&mut self, table: &mut Table, id: u32) {
        self.join(table, id, self.first);
        self.join(table, 0, id);
        self.len += 1;
    }

    /// `id` must be in this list.
    fn remove(&mut self, table: &mut Table, id: u32) {
        let Some(request) = table.get_mut(id) else { return };
        let Link { previous, next } = mem::take(&mut request.links[L]);
        self.join(table, previous, next);
        self.len -= 1;
    }

    /// Makes two requests neighbours; 0 stands for the end.
    fn join(&mut self, table: &mut Table, previous: u32, next: u32) {
        match table.get_mut(previous) {
            Some(request) if previous != 0 => request.links[L].next = next,
            _ => self.first = next,
        }
        match table.get_mut(next) {
            Some(request) if next != 0 => request.links[L].previous = previous,
            _ => self.last = previous,
        }
    }
}

impl Due {
    fn insert(&mut self, table: &mut Table, cx: &mut Cx<'_>, id: u32, interval: Duration) {
        let at = cx.now() + interval;
        if self.common.len == 0 {
            self.interval = interval;
        }
        let common = interval == self.interval;
        if common {
            self.common.push_back(table, id);
        } else {
            self.others.insert((at, id));
        }
        if let Some(request) = table.get_mut(id) {
            request.due = Some((at, common));
        }
        self.arm_for(cx, at);
    }

    fn remove(&mut self, table: &mut Table, id: u32) {
        let Some((at, common)) = table.get_mut(id).and_then(|request| request.due.take()) else { return };
        if common {
            self.common.remove(table, id);
        } else {
            self.others.remove(&(at, id));
        }
    }

    fn next(&self, table: &Table) -> Option<(Time, u32)> {
        let common = self.common.front().and_then(|id| Some((table.get(id)?.due?.0, id)));
        let other = self.others.first().copied();
        [common, other].into_iter().flatten().min()
    }

    /// Takes out a request that is due.
    fn pop(&mut self, table: &mut Table, now: Time) -> Option<u32> {
        let (at, id) = self.next(table)?;
        if at > now {
            return None;
        }
        self.remove(table, id);
        Some(id)
    }

    fn arm(&mut self, table: &Table, cx: &mut Cx<'_>) {
        if let Some((at, _)) = self.next(table) {
            self.arm_for(cx, at);
        }
    }

    fn arm_for(&mut self, cx: &mut Cx<'_>, at: Time) {
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            cx.set_timer(RESEND, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::PipeInfo;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn open(s: &mut Script<Req>, body: &str, resend: Option<Duration>) -> ReqId {
        s.call(|p, cx| p.open(cx, body.into(), resend)).expect("few are open")
    }

    fn answer(id: u32, body: &str) -> Message {
        let mut msg = Message::from(body);
        msg.set_header(&[id]);
        msg.joined()
    }

    /// What the peer received: ids and bodies.
    fn asked(s: &mut Script<Req>, pipe: PipeId) -> Vec<(u32, String)> {
        let split = |mut m: Message| (m.pop_word().expect("an id"), String::from_utf8_lossy(&m).into_owned());
        s.drain(pipe, usize::MAX).into_iter().map(split).collect()
    }

    fn bodies(s: &mut Script<Req>, pipe: PipeId) -> Vec<String> {
        asked(s, pipe).into_iter().map(|(_, body)| body).collect()
    }

    #[test]
    fn many_are_open_at_once_and_each_gets_its_own_answer() {
        let mut s = Script::new(Req::new());
        let (a, b) = (s.open(999), s.open(999));
        let ids: Vec<ReqId> = (0..1000).map(|n| open(&mut s, &n.to_string(), MINUTE)).collect();
        let mut all = asked(&mut s, a);
        assert_eq!(all.len(), 500, "peers take turns");
        all.extend(asked(&mut s, b));
        for (id, body) in all.iter().rev() {
            s.arrive(a, [answer(*id, body)]); // whoever answers
        }
        assert_eq!(s.woken().len(), 1000);
        for (n, id) in ids.into_iter().enumerate() {
            assert_eq!(s.protocol.poll(id), Some(Ok(n.to_string().as_str().into())));
            assert_eq!(s.protocol.poll(id), None);
        }
        assert_eq!((s.protocol.outstanding(), s.all_drops()), (0, 0));
    }

    #[test]
    fn ids_count_up_from_a_random_start_with_the_top_bit_set() {
        let mut starts = vec![];
        for seed in 0..8 {
            let mut s = Script::seeded(Req::new(), seed);
            let a = s.open(9);
            for _ in 0..3 {
                open(&mut s, "x", MINUTE);
            }
            let ids: Vec<u32> = asked(&mut s, a).into_iter().map(|(id, _)| id).collect();
            assert!(ids.iter().all(|id| id & ID != 0));
            assert!(ids.windows(2).all(|w| w[1] == w[0].wrapping_add(1) | ID));
            starts.push(ids[0]);
        }
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 8);
    }

    #[test]
    fn a_request_that_stays_open_is_never_confused_with_later_ones() {
        let mut s = Script::new(Req::new());
        let a = s.open(9);
        let first = open(&mut s, "first", None);
        let [(old, _)] = asked(&mut s, a)[..] else { panic!("one request") };
        for n in 0..10_000 {
            let id = open(&mut s, "x", MINUTE);
            let (word, _) = asked(&mut s, a)[0].clone();
            assert_ne!(word, old, "{n}");
            s.arrive(a, [answer(word, "y")]);
            assert_eq!(s.protocol.poll(id), Some(Ok("y".into())));
        }
        s.arrive(a, [answer(old, "at last")]);
        assert_eq!(s.protocol.poll(first), Some(Ok("at last".into())));
    }

    #[test]
    fn a_request_without_a_connection_waits_for_one() {
        let mut s = Script::new(Req::new());
        let id = open(&mut s, "1", None);
        open(&mut s, "2", MINUTE);
        assert_eq!((s.protocol.held(), s.protocol.poll(id)), (2, None));
        let a = s.open(1);
        assert_eq!(bodies(&mut s, a), ["1"]);
        assert_eq!((bodies(&mut s, a), s.protocol.held()), (vec!["2".to_string()], 0));
    }

    #[test]
    fn peers_with_a_lower_priority_number_are_asked_first() {
        let mut s = Script::new(Req::new());
        let far = s.open(9);
        let near = PipeInfo { send_priority: 1, ..PipeInfo::default() };
        let near = s.open_with(near).expect("any rep is welcome");
        open(&mut s, "1", MINUTE);
        open(&mut s, "2", MINUTE);
        assert_eq!((s.unsent(far), s.unsent(near)), (0, 2));
    }

    #[test]
    fn promise_10_no_answer_in_time_asks_again_with_the_same_id_until_one_comes() {
        let mut s = Script::new(Req::new());
        let (a, b) = (s.open(9), s.open(9));
        let id = open(&mut s, "1", MINUTE);
        let first = asked(&mut s, a);
        s.advance(Duration::from_millis(59_999));
        assert_eq!(s.unsent(a) + s.unsent(b), 0);
        s.advance(Duration::from_millis(1));
        assert_eq!(asked(&mut s, b), first);
        s.advance(Duration::from_secs(60));
        assert_eq!(asked(&mut s, a), first);
        s.arrive(b, [answer(first[0].0, "yes"), answer(first[0].0, "twice")]);
        assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
        assert_eq!(s.drops(DropReason::Late), 1);
        s.advance(Duration::from_secs(600));
        assert_eq!((s.unsent(a) + s.unsent(b), s.next_timer()), (0, None));
    }

    #[test]
    fn promise_10_intervals_of_any_length_are_due_in_their_own_time() {
        let mut s = Script::new(Req::new());
        let a = s.open(99);
        for ms in [100u64, 100, 30, 500, 100, 20] {
            open(&mut s, &ms.to_string(), Some(Duration::from_millis(ms)));
        }
        s.sent(a);
        let mut seen = vec![];
        for now in (10..=100).step_by(10) {
            s.advance(Duration::from_millis(10));
            seen.extend(bodies(&mut s, a).into_iter().map(|body| format!("{now}:{body}")));
        }
        assert_eq!(
            seen,
            [
                "20:20", "30:30", "40:20", "60:30", "60:20", "80:20", "90:30", "100:100", "100:100",
                "100:100", "100:20"
            ]
        );
    }

    #[test]
    fn promise_10_when_the_connection_ends_it_is_asked_again_at_once_and_before_others() {
        let mut s = Script::new(Req::new());
        let a = s.open(9);
        for n in ["1", "2", "3"] {
            open(&mut s, n, MINUTE);
        }
        s.drain(a, 2);
        s.lose(a);
        open(&mut s, "4", MINUTE);
        assert_eq!(s.protocol.held(), 4);
        let b = s.open(9);
        assert_eq!(bodies(&mut s, b), ["1", "2", "3", "4"]);
    }

    #[test]
    fn promise_10_a_request_that_ends_each_connection_is_given_up_and_the_others_are_answered() {
        let mut s = Script::new(Req::new());
        let resend = Some(Duration::from_secs(60));
        let ids: Vec<ReqId> = ["a", "poison", "b", "c"]
            .map(|text| s.call(|p, cx| p.open(cx, text.into(), resend)).expect("room"))
            .to_vec();
        let mut connections = 0;
        while s.protocol.outstanding() > 0 {
            connections += 1;
            assert!(connections < 20, "it ends");
            let pipe = s.open(9);
            // The peer answers until it meets the poison; then the connection ends.
            loop {
                let asked = s.drain(pipe, 9);
                let Some(poison) = asked.iter().position(|m| m.ends_with(b"poison")) else {
                    s.arrive(pipe, asked.clone());
                    if asked.is_empty() {
                        break;
                    }
                    continue;
                };
                if connections > 2 {
                    // Slow to answer before: only who was alone with the poison is left unanswered.
                    s.arrive(pipe, asked[..poison].to_vec());
                }
                break;
            }
            s.lose(pipe);
            s.advance(Duration::from_millis(500));
        }
        let ended: Vec<_> = ids.iter().map(|id| s.protocol.poll(*id).expect("all have ended")).collect();
        assert_eq!(ended[1], Err(Failed::Undeliverable));
        assert!([0, 2, 3].iter().all(|n| ended[*n].is_ok()), "{ended:?}");
    }

    #[test]
    fn promise_10_with_resend_off_it_fails_at_once_and_is_asked_at_most_once() {
        let mut s = Script::new(Req::new());
        let (a, b) = (s.open(9), s.open(9));
        let (one, two) = (open(&mut s, "1", None), open(&mut s, "2", None));
        assert_eq!(bodies(&mut s, a), ["1"]);
        s.advance(Duration::from_secs(9999));
        s.lose(a);
        assert_eq!(s.protocol.poll(one), Some(Err(Failed::ConnectionLost)));
        assert_eq!((s.woken(), s.protocol.poll(two)), (vec![one.key()], None));
        assert_eq!((bodies(&mut s, b), s.next_timer()), (vec!["2".to_string()], None));
    }

    #[test]
    fn promise_10_an_answer_that_came_before_the_end_counts() {
        let mut s = Script::new(Req::new());
        let a = s.open(9);
        let id = open(&mut s, "1", None);
        let (word, _) = asked(&mut s, a)[0].clone();
        s.arrive(a, [answer(word, "yes")]);
        s.lose(a);
        assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
    }

    #[test]
    fn what_is_no_answer_is_counted_and_changes_nothing() {
        let mut s = Script::new(Req::new());
        let a = s.open(9);
        let id = open(&mut s, "1", MINUTE);
        let (word, _) = asked(&mut s, a)[0].clone();
        let bad = ["".into(), "abc".into(), answer(word & !ID, "clear"), answer(word ^ 1, "unknown")];
        s.arrive(a, bad);
        assert_eq!((s.drops(DropReason::Malformed), s.drops(DropReason::Late)), (3, 1));
        assert_eq!((s.protocol.poll(id), s.closed.len()), (None, 0));
        let mut apart = Message::from("yes");
        apart.set_header(&[word]);
        s.arrive(a, [apart]);
        assert_eq!(s.protocol.poll(id), Some(Ok("yes".into())));
    }

    #[test]
    fn a_cancelled_request_is_forgotten_and_its_answer_is_late() {
        let mut s = Script::new(Req::new());
        let waits = open(&mut s, "0", MINUTE);
        s.call(|p, cx| p.cancel(cx, waits));
        let a = s.open(9);
        let id = open(&mut s, "1", MINUTE);
        let (word, _) = asked(&mut s, a)[0].clone();
        s.call(|p, cx| p.cancel(cx, id));
        s.call(|p, cx| p.cancel(cx, id));
        assert_eq!((s.protocol.outstanding(), s.protocol.held()), (0, 0));
        s.arrive(a, [answer(word, "too late")]);
        s.advance(Duration::from_secs(60));
        s.lose(a);
        let b = s.open(9);
        assert_eq!((s.unsent(b), s.drops(DropReason::Late)), (0, 1));
    }

    #[test]
    fn too_many_are_refused_until_one_ends() {
        let mut s = Script::new(Req::new().max_open(2));
        let (one, _) = (open(&mut s, "1", MINUTE), open(&mut s, "2", MINUTE));
        let refused = s.call(|p, cx| p.open(cx, "3".into(), MINUTE));
        assert_eq!((refused, s.readiness().send), (Err(Refused::NotNow("3".into())), false));
        s.call(|p, cx| p.cancel(cx, one));
        assert_eq!(s.woken(), [Req::ROOM]);
        open(&mut s, "3", MINUTE);
    }

    #[test]
    fn promise_23_memory_returns_after_a_burst() {
        let mut s = Script::new(Req::new());
        let ids: Vec<ReqId> = (0..100_000).map(|_| open(&mut s, "x", MINUTE)).collect();
        for id in ids {
            s.call(|p, cx| p.cancel(cx, id));
        }
        assert_eq!(s.protocol.table.slots.capacity(), 0);
    }

    proptest! {
        /// Whatever peers do, each request that was not cancelled ends once a peer answers; with resend off
        /// none is asked twice.
        #[test]
        fn promise_10_every_request_ends(ops in check::ops(), most in 1usize..12) {
            const EVERY: [Option<Duration>; 4] =
                [None, Some(Duration::from_millis(50)), Some(Duration::from_millis(20)), MINUTE];
            let mut s = Script::new(Req::new().max_open(most));
            let open = RefCell::new(Vec::new());
            let seen = RefCell::new(Vec::new());
            let times = RefCell::new(HashMap::new());
            let ended = RefCell::new(0);
            let check = Check {
                send: Some(Box::new(|s: &mut Script<Req>, n| {
                    let resend = EVERY[n % 4];
                    match s.call(|p, cx| p.open(cx, n.to_string().into(), resend)) {
                        Ok(id) => {
                            open.borrow_mut().push((id, resend));
                            (true, true)
                        }
                        Err(_) => (false, false),
                    }
                })),
                arrives: Box::new(|_, n| match (n % 3, seen.borrow().last()) {
                    (0 | 1, Some(id)) => answer(*id, "yes"),
                    (0, _) => answer(1, "odd"),
                    _ => "abc".into(),
                }),
                drained: Box::new(|_, msg| {
                    let id = msg.clone().pop_word().expect("an id");
                    seen.borrow_mut().push(id);
                    *times.borrow_mut().entry(id).or_insert(0) += 1;
                }),
                own: Some(Box::new(|s, n| {
                    let mut open = open.borrow_mut();
                    if n % 3 == 0 && !open.is_empty() {
                        let at = n / 3 % open.len();
                        let (id, _) = open.remove(at);
                        s.call(|p, cx| p.cancel(cx, id));
                    }
                    open.retain(|(id, _)| {
                        let done = s.protocol.poll(*id).is_some();
                        *ended.borrow_mut() += usize::from(done);
                        !done
                    });
                })),
                ..Check::default()
            };
            let tally = check::run(&mut s, &ops, check);
            prop_assert!(s.protocol.outstanding() <= most);
            let mut peers = tally.peers;
            peers.push(s.open(1));
            for _ in 0..1000 {
                s.advance(Duration::from_secs(60));
                for pipe in &peers {
                    for (id, _) in asked(&mut s, *pipe) {
                        *times.borrow_mut().entry(id).or_insert(0) += 1;
                        s.arrive(*pipe, [answer(id, "yes")]);
                    }
                }
            }
            for (id, resend) in open.into_inner() {
                let told = s.protocol.poll(id);
                if resend.is_some() {
                    prop_assert_eq!(told, Some(Ok("yes".into())));
                } else {
                    prop_assert!(times.borrow().get(&id.word()).is_none_or(|n| *n == 1), "asked twice");
                    if told.is_none() {
                        // Asked before this loop, and the peer did not answer: its end settles it.
                        prop_assert_eq!(times.borrow().get(&id.word()).copied(), Some(1));
                        peers.drain(..).for_each(|pipe| s.lose(pipe));
                        prop_assert_eq!(s.protocol.poll(id), Some(Err(Failed::ConnectionLost)));
                    }
                }
            }
            prop_assert_eq!((s.protocol.outstanding(), s.protocol.held(), s.protocol.table.len), (0, 0, 0));
            prop_assert_eq!((s.protocol.due.common.len, s.protocol.due.others.len()), (0, 0));
        }
    }
}
