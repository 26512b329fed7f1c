//! REP, the answering end of request and reply.
//!
//! Every request carries its own way back, so any number may be open at once and be answered in any order, by
//! any thread; one that is not answered is simply forgotten. Requests come from all peers in turn. One
//! well-formed request is looked up ahead, so that a queue full of malformed ones does not look readable.
//!
//! Owns: the turn order, the way back's meaning. Never: keeps a list of open requests, or answers one whose
//! connection is gone: nobody would hear it. Wire: 0x31, peer REQ 0x30; request and reply begin with the same
//! words, channel words (top bit clear) and then the id (top bit set). (SP request/reply RFC; nanomsg `rep.c`.)

use std::collections::VecDeque;
use std::mem;

use super::fair::FairQueue;
use super::{
    Cx, DropReason, PipeId, Protocol, ProtocolInfo, PutError, Readiness, Receives, Refused, Reject, WaitKey,
    write_off,
};
use crate::Message;

/// Words that a message may have in front, its id included: seven devices in a row. Of all implementations.
pub(super) const DEFAULT_TTL: u8 = 8;

/// Answers, or requests, that gathered leave when they are so many and as many as are still to come: below that a write
/// costs more than the other side's waiting.
pub(super) const GATHERED: usize = 64;

/// Who has so many to answer, or to collect, is about to send more: a write costs as much as sending about so many.
pub(super) const AT_HAND: usize = 16;

/// State of one REP socket.
#[derive(Debug)]
pub struct Rep {
    queue: FairQueue,
    ready: Option<Incoming>,
    ttl: u8,
}

/// A request, with its way back.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The connection it came from.
    pub pipe: PipeId,
    /// The words that the reply begins with.
    pub trace: Trace,
    /// What was asked.
    pub body: Message,
}

impl Incoming {
    #[inline]
    fn of(pipe: PipeId, mut body: Message) -> Incoming {
        let trace = Trace::of(&body);
        body.clear_header();
        Incoming { pipe, trace, body }
    }
}

/// The words in front of a request: one for each device that it passed, and the requester's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace(TraceRepr);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TraceRepr {
    /// An id and up to three devices: no allocation.
    Few(u8, [u32; 4]),
    Many(Box<[u32]>),
}

impl Trace {
    fn of(msg: &Message) -> Trace {
        let mut few = [0; 4];
        let header = msg.header();
        if header.len() > few.len() {
            return Trace(TraceRepr::Many(header.collect()));
        }
        let len = header.len() as u8;
        few.iter_mut().zip(header).for_each(|(to, word)| *to = word);
        Trace(TraceRepr::Few(len, few))
    }

    /// The words, outermost device first, the id last.
    pub fn words(&self) -> &[u32] {
        match &self.0 {
            TraceRepr::Few(len, words) => &words[..usize::from(*len)],
            TraceRepr::Many(words) => words,
        }
    }
}

impl Default for Rep {
    fn default() -> Self {
        Self::with_ttl(DEFAULT_TTL)
    }
}

impl Rep {
    /// Accepts requests that passed up to seven devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts requests with up to `ttl` words in front (1–255; 0 is taken as 1): their id, and one for each
    /// device on the way. Default 8; what has more is dropped and counted.
    pub fn with_ttl(ttl: u8) -> Self {
        Rep { queue: FairQueue::default(), ready: None, ttl: ttl.max(1) }
    }

    /// Sends `msg` as the answer to `to`. `Ok(false)`: the connection is gone; the answer is dropped and
    /// counted, since nobody waits for it any more.
    ///
    /// # Errors
    /// [`Refused::NotNow`] when the connection's queue is full; [`room_key`](Rep::room_key) is woken when it
    /// is worth another try.
    pub fn reply(
        &mut self,
        cx: &mut Cx<'_>,
        to: &Incoming,
        mut msg: Message,
    ) -> Result<bool, Refused<Message>> {
        let Some(sent) = self.reply_once(cx, to, &mut msg) else { return Err(Refused::NotNow(msg)) };
        // Who has many requests in flight goes on with the first answers while the others are made.
        let gathered = cx.unsent(to.pipe).0;
        let pending = cx.pending(to.pipe);
        if gathered >= GATHERED && gathered >= pending {
            cx.flush_now(to.pipe);
        } else if pending >= AT_HAND {
            cx.expect_more(to.pipe);
        }
        Ok(sent)
    }

    /// Sends answers, each to what `way` says of it, and takes out what was sent, or dropped as [`reply`](Rep::reply) says. What stays
    /// had no room, in its connection's queue; [`ROOM`](Rep::ROOM) is woken when it is worth another try.
    pub fn reply_many<T>(
        &mut self,
        cx: &mut Cx<'_>,
        answers: &mut VecDeque<(T, Message)>,
        way: impl Fn(&T) -> &Incoming,
    ) {
        // A full connection stays full until this call has returned: those to one peer keep their order.
        answers.retain_mut(|(to, msg)| {
            let to = way(to);
            let done = self.reply_once(cx, to, msg).is_some();
            if cx.unsent(to.pipe).0 >= GATHERED {
                cx.flush_now(to.pipe);
            }
            !done
        });
    }

    /// `None`: there is no room; the message is as it was.
    #[inline]
    fn reply_once(&mut self, cx: &mut Cx<'_>, to: &Incoming, msg: &mut Message) -> Option<bool> {
        msg.set_header(to.trace.words());
        if cx.put_copy(to.pipe, msg).is_some() {
            return Some(true);
        }
        match cx.put(to.pipe, mem::take(msg)) {
            Ok(_) => Some(true), // not reached: it took no copy
            Err(PutError::Full(mut back)) => {
                back.clear_header();
                *msg = back;
                None
            }
            Err(PutError::Gone(_)) => {
                cx.dropped(None, DropReason::Unroutable);
                Some(false)
            }
        }
    }

    /// Gives the next requests to `each`, `max` at most: the same as so many calls of [`recv`](Receives::recv), and cheaper.
    pub fn recv_each(&mut self, cx: &mut Cx<'_>, max: usize, mut each: impl FnMut(Incoming)) {
        if max == 0 {
            return;
        }
        let Some(first) = self.ready.take() else { return };
        each(first);
        self.queue.take_many_stacked(cx, self.ttl, max - 1, |pipe, msg| each(Incoming::of(pipe, msg)));
        self.look_ahead(cx);
    }

    /// Woken when any pipe has room for replies again, and when one is gone.
    pub const ROOM: WaitKey = WaitKey(1, 0);

    /// Woken when `pipe` has room for replies again, and when it is gone.
    pub fn room_key(pipe: PipeId) -> WaitKey {
        WaitKey(0, u64::from(pipe.word()))
    }

    fn look_ahead(&mut self, cx: &mut Cx<'_>) {
        if self.ready.is_none()
            && let Some((Some(pipe), msg)) = self.queue.take_stacked(cx, self.ttl)
        {
            self.ready = Some(Incoming::of(pipe, msg));
        }
    }
}

impl Protocol for Rep {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x31, "rep", 0x30, "req").zmtp("REP", &["REQ", "DEALER"])
    }

    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        // Unanswerable now: a requester that still wants an answer asks again.
        self.queue.drop_pipe(cx, pipe);
        if self.ready.as_ref().is_some_and(|ready| ready.pipe == pipe) {
            self.ready = None;
            cx.dropped(Some(pipe), DropReason::PipeClosed);
            self.look_ahead(cx);
        }
        write_off(cx, pipe);
        cx.wake(Self::room_key(pipe));
        cx.wake(Self::ROOM);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.queue.readable(cx, pipe);
        self.look_ahead(cx);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        cx.wake(Self::room_key(pipe));
        cx.wake(Self::ROOM);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: false, recv: self.ready.is_some() }
    }
}

impl Receives for Rep {
    type Item = Incoming;

    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Incoming> {
        let request = self.ready.take();
        self.look_ahead(cx);
        request
    }

    fn recv_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Incoming>, max: usize) {
        self.recv_each(cx, max, |incoming| into.push(incoming));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;

    const ID: u32 = 0x8000_0000;

    fn request(words: &[u32], body: &str) -> Message {
        let mut msg = Message::from(body);
        msg.set_header(words);
        msg.joined()
    }

    fn reply(s: &mut Script<Rep>, to: &Incoming, body: &str) -> Result<bool, Refused<Message>> {
        s.call(|p, cx| p.reply(cx, to, body.into()))
    }

    #[test]
    fn several_requests_are_open_at_once_and_answered_in_any_order() {
        let mut s = Script::new(Rep::new());
        let (a, b) = (s.open(9), s.open(9));
        s.arrive(a, [request(&[ID | 1], "a1"), request(&[5, 6, ID | 2], "a2")]);
        s.arrive(b, [request(&[ID | 1], "b1")]);
        let got: Vec<Incoming> = std::iter::from_fn(|| s.recv()).collect();
        let bodies: Vec<_> = got.iter().map(|r| (r.pipe, &r.body[..])).collect();
        assert_eq!(bodies, [(a, &b"a1"[..]), (a, b"a2"), (b, b"b1")]);
        assert!(got.iter().all(|r| r.body.header_len() == 0));
        for request in got.iter().rev() {
            assert!(reply(&mut s, request, "ok").expect("there is room"));
        }
        assert_eq!(s.drain(a, 9), [request(&[5, 6, ID | 2], "ok"), request(&[ID | 1], "ok")]);
        assert_eq!(s.drain(b, 9), [request(&[ID | 1], "ok")]);
    }

    #[test]
    fn more_answers_are_expected_while_many_requests_are_at_hand() {
        let mut s = Script::new(Rep::new());
        let a = s.open(1000);
        s.arrive(a, (0..20).map(|n| request(&[ID | n], "x")));
        let expected: Vec<bool> = std::iter::from_fn(|| {
            let one = s.recv()?;
            assert!(reply(&mut s, &one, "ok").expect("there is room"));
            Some(s.expected(a))
        })
        .collect();
        assert_eq!(
            expected.iter().rposition(|more| *more),
            Some(2),
            "16 wait behind the third and the look ahead"
        );
        assert!(expected[0] && !expected[19]);
    }

    #[test]
    fn of_many_requests_in_flight_the_first_are_answered_before_the_last_are_looked_at() {
        for (asked, leave) in [(63, vec![]), (100, vec![64]), (256, vec![128, 192, 256])] {
            let mut s = Script::new(Rep::new());
            let a = s.open(1000);
            s.arrive(a, (0..asked).map(|n| request(&[ID | n], "x")));
            let mut left = vec![];
            for n in 1..=asked {
                let one = s.recv().expect("a request");
                assert!(reply(&mut s, &one, "ok").expect("there is room"));
                if s.flushed(a) {
                    left.push(n);
                    s.drain(a, 1000);
                }
            }
            assert_eq!(left, leave, "of {asked}");
        }
    }

    #[test]
    fn words_that_arrive_apart_from_the_body_mean_the_same() {
        let mut s = Script::new(Rep::new());
        let a = s.open(9);
        let mut apart = Message::from("body");
        apart.set_header(&[7, ID | 1]);
        s.arrive(a, [apart]);
        let got = s.recv().expect("a request");
        assert_eq!((got.trace.words(), got.body), (&[7, ID | 1][..], "body".into()));
    }

    #[test]
    fn as_many_words_as_the_ttl_pass_and_one_more_does_not() {
        for ttl in [0u8, 1, 2, 8, 255] {
            let mut s = Script::new(Rep::with_ttl(ttl));
            let a = s.open(9);
            let most = usize::from(ttl.max(1));
            for (words, passes) in [(most, true), (most + 1, false)] {
                let mut trace = vec![3; words - 1];
                trace.push(ID);
                s.arrive(a, [request(&trace, "x")]);
                let got = s.recv();
                assert_eq!(got.is_some(), passes, "{words} words, ttl {ttl}");
                if let Some(got) = got {
                    assert_eq!(got.trace.words(), trace);
                }
            }
            assert_eq!((s.drops(DropReason::Ttl), s.closed.len()), (1, 0));
        }
    }

    #[test]
    fn malformed_requests_are_counted_and_are_not_readable() {
        let mut s = Script::new(Rep::new());
        let a = s.open(9);
        s.arrive(a, [Message::new(), "abc".into(), request(&[1, 2], ""), request(&[1, 2], "xyz")]);
        assert_eq!((s.readiness().recv, s.drops(DropReason::Malformed)), (false, 4));
        s.arrive(a, ["".into(), request(&[ID], "good"), "".into()]);
        assert!(s.readiness().recv);
        assert_eq!(s.recv().expect("a request").body, "good");
        assert!(!s.readiness().recv);
        assert!(s.closed.is_empty());
    }

    #[test]
    fn a_full_connection_gives_the_reply_back_and_tells_when_to_try_again() {
        let mut s = Script::new(Rep::new());
        let a = s.open(1);
        s.arrive(a, [request(&[ID | 1], "1")]);
        let one = s.recv().expect("a request");
        assert!(reply(&mut s, &one, "first").expect("there is room"));
        assert_eq!(reply(&mut s, &one, "second"), Err(Refused::NotNow("second".into())));
        s.woken();
        s.drain(a, 1);
        assert_eq!(s.woken(), [Rep::room_key(a), Rep::ROOM]);
        assert!(reply(&mut s, &one, "second").expect("there is room again"));
        s.lose(a);
        assert_eq!(s.woken(), [Rep::room_key(a), Rep::ROOM]);
        assert_eq!(s.drops(DropReason::PipeClosed), 1);
    }

    #[test]
    fn of_many_replies_one_full_connection_holds_up_only_its_own() {
        let mut s = Script::new(Rep::new());
        let (a, b, c) = (s.open(2), s.open(9), s.open(9));
        for pipe in [a, b, c] {
            s.arrive(pipe, (0..4).map(|n| request(&[ID | n], "x")));
        }
        let mut answers: VecDeque<(Incoming, Message)> = std::iter::from_fn(|| s.recv())
            .map(|to| {
                let body = Message::from(format!("{:x}", to.trace.words()[0]));
                (to, body)
            })
            .collect();
        assert_eq!(answers.len(), 2 + 4 + 4, "as many as came in");
        s.arrive(a, (2..4).map(|n| request(&[ID | n], "x")));
        answers.extend(std::iter::from_fn(|| s.recv()).map(|to| (to, Message::from("late"))));
        s.lose(c);
        s.call(|p, cx| p.reply_many(cx, &mut answers, |to| to));
        assert_eq!(s.drops(DropReason::Unroutable), 4);
        assert_eq!(answers.iter().map(|(to, _)| to.pipe).collect::<Vec<_>>(), [a, a]);
        let of = |s: &mut Script<Rep>, pipe| {
            let ids = s.drain(pipe, 9).into_iter().map(|mut msg| msg.pop_word().expect("an id") & !ID);
            ids.collect::<Vec<u32>>()
        };
        assert_eq!((of(&mut s, a), of(&mut s, b)), (vec![0, 1], vec![0, 1, 2, 3]));
        assert!(s.woken().contains(&Rep::ROOM));
        s.call(|p, cx| p.reply_many(cx, &mut answers, |to| to));
        assert!(answers.is_empty());
        assert_eq!(of(&mut s, a), [2, 3]);
    }

    #[test]
    fn many_are_received_as_one_by_one_and_peers_take_turns() {
        let mut s = Script::new(Rep::new());
        let (a, b) = (s.open(99), s.open(99));
        for pipe in [a, b] {
            let msgs = (0..40u32).map(|n| if n % 4 == 3 { "bad".into() } else { request(&[5, ID | n], "x") });
            s.arrive(pipe, msgs);
        }
        let mut got = Vec::new();
        for max in [0, 1, 40, 99] {
            s.call(|p, cx| p.recv_many(cx, &mut got, max));
        }
        assert_eq!((got.len(), s.drops(DropReason::Malformed), s.readiness().recv), (60, 20, false));
        assert!(got[..33].iter().any(|one| one.pipe == a) && got[..33].iter().any(|one| one.pipe == b));
        for pipe in [a, b] {
            let of = got.iter().filter(|one| one.pipe == pipe).map(|one| one.trace.words().to_vec());
            let due = (0..40).filter(|n| n % 4 != 3).map(|n| vec![5, ID | n]);
            assert!(of.eq(due));
        }
    }

    #[test]
    fn a_reply_to_a_vanished_connection_is_counted_even_when_its_slot_has_a_new_owner() {
        let mut s = Script::new(Rep::new());
        let a = s.open(9);
        s.arrive(a, [request(&[ID], "1"), request(&[ID | 1], "2"), request(&[ID | 2], "3")]);
        let one = s.recv().expect("a request");
        s.lose(a);
        // The one in hand and the one behind it cannot be answered any more.
        assert_eq!((s.readiness().recv, s.drops(DropReason::PipeClosed)), (false, 2));
        let b = s.open(9);
        assert_eq!(b.slot(), a.slot());
        assert_eq!(reply(&mut s, &one, "late"), Ok(false));
        assert_eq!((s.unsent(b), s.drops(DropReason::Unroutable)), (0, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted_and_readiness_is_exact(ops in check::ops()) {
            let mut s = Script::new(Rep::new());
            let open = RefCell::new(Vec::new());
            let answered = RefCell::new(0);
            let check = Check {
                recv: Some(Box::new(|s: &mut Script<Rep>| match s.recv() {
                    Some(request) => {
                        open.borrow_mut().push(request);
                        true
                    }
                    None => false,
                })),
                arrives: Box::new(|_, n| match n % 4 {
                    0 => "abc".into(),
                    1 => request(&[1, 2, 3, 4, 5, 6, 7, 8, ID], ""),
                    _ => request(&[1, ID | n as u32], "x"),
                }),
                own: Some(Box::new(|s, n| {
                    let mut open = open.borrow_mut();
                    if !open.is_empty() {
                        let at = n % open.len();
                        if reply(s, &open[at], "re").is_ok() {
                            open.remove(at);
                            *answered.borrow_mut() += 1;
                        }
                    }
                })),
                ..Check::default()
            };
            let tally = check::run(&mut s, &ops, check);
            let unread = std::iter::from_fn(|| s.recv()).count();
            let answered = *answered.borrow();
            prop_assert_eq!(
                (tally.arrived + answered) as u64,
                (tally.received + unread + tally.drained + tally.unsent) as u64 + s.all_drops()
            );
        }
    }
}
