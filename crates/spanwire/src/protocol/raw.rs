//! Raw sockets: the halves that devices are made of.
//!
//! They pass on everything that a protocol puts in front of a message, so that a relay between two networks
//! loses nothing: a raw REP puts the word of the connection in front of a request and routes the reply by it;
//! a raw REQ adds nothing; a raw SUB filters nothing. Pipelines, pairs and publishers have no header, and
//! are their own raw form. On the wire raw and cooked are the same. (nanomsg `xreq.c`, `xrep.c`; RFC 3.)
//!
//! Owns: routing by the first word. Never: reads an id, resends, or remembers a request.

use super::balance::Balance;
use super::fair::FairQueue;
use super::rep::DEFAULT_TTL;
use super::{
    Control, Cx, DropReason, Offered, Overflow, PipeId, Protocol, ProtocolInfo, Readiness, Receives, Refused,
    Reject, Sends, write_off,
};
use crate::Message;

/// A pipeline's sending end loses nothing: it is its own raw form.
pub type RawPush = super::push::Push;
/// A pipeline's receiving end loses nothing: it is its own raw form.
pub type RawPull = super::pull::Pull;
/// A pair loses nothing: it is its own raw form.
pub type RawPair = super::pair::Pair;
/// A publisher loses nothing of a message: it is its own raw form.
pub type RawPub = super::publish::Pub;

/// Raw REP: requests with the connection's word in front, replies routed by theirs.
#[derive(Debug)]
pub struct RawRep {
    queue: FairQueue,
    ready: Option<(PipeId, Message)>,
    ttl: u8,
}

impl Default for RawRep {
    fn default() -> Self {
        Self::with_ttl(DEFAULT_TTL)
    }
}

impl RawRep {
    /// Accepts requests with up to eight words in front.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts requests with up to `ttl` words in front as they arrive (1–255; 0 is taken as 1). Default 8.
    pub fn with_ttl(ttl: u8) -> Self {
        RawRep { queue: FairQueue::default(), ready: None, ttl: ttl.max(1) }
    }

    fn look_ahead(&mut self, cx: &mut Cx<'_>) {
        if self.ready.is_none()
            && let Some((Some(pipe), mut msg)) = self.queue.take_stacked(cx, self.ttl)
        {
            msg.push_word_front(pipe.word());
            self.ready = Some((pipe, msg));
        }
    }
}

impl Protocol for RawRep {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x31, "rep", 0x30, "req").forwardable()
    }

    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        // The reply could not be routed back.
        self.queue.drop_pipe(cx, pipe);
        if self.ready.as_ref().is_some_and(|(from, _)| *from == pipe) {
            self.ready = None;
            cx.dropped(Some(pipe), DropReason::PipeClosed);
            self.look_ahead(cx);
        }
        write_off(cx, pipe);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.queue.readable(cx, pipe);
        self.look_ahead(cx);
    }

    /// Sending never waits: a reply that cannot leave at once is dropped and counted.
    fn readiness(&self) -> Readiness {
        Readiness { send: true, recv: self.ready.is_some() }
    }
}

impl Receives for RawRep {
    type Item = Message;

    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        let request = self.ready.take();
        self.look_ahead(cx);
        request.map(|(_, msg)| msg)
    }
}

impl Sends for RawRep {
    type Item = Message;

    fn send(&mut self, cx: &mut Cx<'_>, mut msg: Message) -> Result<(), Refused<Message>> {
        let Some(word) = msg.pop_header() else {
            return Err(Refused::Invalid(msg, "a raw reply begins with the word of its connection"));
        };
        // One queue full must not stop the replies for others.
        let sent = cx.find(word).map(|pipe| cx.offer(pipe, &msg, Overflow::DropNewest));
        if matches!(sent, None | Some(Offered::Gone)) {
            cx.dropped(None, DropReason::Unroutable);
        }
        Ok(())
    }
}

/// Raw REQ: requests go out as they are, to the next peer in turn; replies come in as they are, from all.
#[derive(Debug, Default)]
pub struct RawReq {
    outbound: Balance,
    inbound: FairQueue,
    ready: Option<Message>,
}

impl RawReq {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }

    fn look_ahead(&mut self, cx: &mut Cx<'_>) {
        if self.ready.is_none() {
            // The TTL is the replier's to check; this only bounds the words.
            self.ready = self.inbound.take_stacked(cx, u8::MAX).map(|(_, msg)| msg);
        }
    }
}

impl Protocol for RawReq {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x30, "req", 0x31, "rep").forwardable()
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.outbound.ready(cx, pipe);
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.outbound.reroute(cx, pipe);
        self.inbound.keep(cx, pipe);
        self.look_ahead(cx);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.inbound.readable(cx, pipe);
        self.look_ahead(cx);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.outbound.ready(cx, pipe);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: self.outbound.has_room(), recv: self.ready.is_some() }
    }

    fn held(&self) -> usize {
        self.outbound.held()
    }
}

impl Receives for RawReq {
    type Item = Message;

    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        let reply = self.ready.take();
        self.look_ahead(cx);
        reply
    }
}

impl Sends for RawReq {
    type Item = Message;

    fn send(&mut self, cx: &mut Cx<'_>, msg: Message) -> Result<(), Refused<Message>> {
        if msg.header_len() == 0 {
            return Err(Refused::Invalid(msg, "a raw request has its id in the header"));
        }
        self.outbound.send(cx, msg).map(|_| ()).map_err(Refused::NotNow)
    }
}

/// Raw SUB: everything that publishers send, unfiltered.
#[derive(Debug, Default)]
pub struct RawSub {
    queue: FairQueue,
}

impl RawSub {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Protocol for RawSub {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x21, "sub", 0x20, "pub").forwardable().zmtp("SUB", &["PUB", "XPUB"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        cx.control(pipe, Control::Subscribe(b""));
        Ok(())
    }

    fn pipe_ended(&mut self, _: &mut Cx<'_>, _: PipeId) -> bool {
        true // what it sent is still to be received
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.queue.keep(cx, pipe);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.queue.readable(cx, pipe);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: false, recv: !self.queue.is_empty() }
    }
}

impl Receives for RawSub {
    type Item = Message;

    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        self.queue.take(cx).map(|(_, msg)| msg)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::check::{self, Check};
    use crate::protocol::may_forward;
    use crate::protocol::script::Script;
    use crate::protocol::{
        pair::Pair, publish::Pub, pull::Pull, push::Push, rep::Rep, req::Req, subscribe::Sub,
    };

    const ID: u32 = 0x8000_0000;

    fn stacked(words: &[u32], body: &str) -> Message {
        let mut msg = Message::from(body);
        msg.set_header(words);
        msg
    }

    #[test]
    fn a_device_of_both_adds_one_word_on_the_way_and_takes_it_off_on_the_way_back() {
        let (mut front, mut back) = (Script::new(RawRep::new()), Script::new(RawReq::new()));
        let (client, other, server) = (front.open(9), front.open(9), back.open(9));
        front.arrive(client, [stacked(&[5, ID | 1], "ask").joined()]);
        back.send(front.recv().expect("a request")).expect("room");
        let request = back.drain(server, 1).remove(0);
        assert_eq!(request, stacked(&[client.word(), 5, ID | 1], "ask").joined());

        back.arrive(server, [stacked(&[client.word(), 5, ID | 1], "answer").joined()]);
        front.send(back.recv().expect("a reply")).expect("room");
        assert_eq!(front.drain(client, 9), [stacked(&[5, ID | 1], "answer").joined()]);
        assert_eq!(front.unsent(other), 0);
    }

    #[test]
    fn a_reply_that_cannot_leave_is_counted_and_never_in_the_way() {
        let mut s = Script::new(RawRep::new());
        let (full, gone) = (s.open(1), s.open(1));
        s.lose(gone);
        for word in [full.word(), full.word(), gone.word(), 0x7fff_fff0, ID | 1] {
            s.send(stacked(&[word, ID], "x")).expect("never refused");
        }
        assert_eq!((s.drops(DropReason::Newest), s.drops(DropReason::Unroutable)), (1, 3));
        assert!(matches!(s.send("no header"), Err(Refused::Invalid(..))));
        assert!(matches!(Script::new(RawReq::new()).send("no header"), Err(Refused::Invalid(..))));
    }

    #[test]
    fn the_ttl_is_checked_where_requests_come_in_and_nowhere_else() {
        let (mut rep, mut req) = (Script::new(RawRep::new()), Script::new(RawReq::new()));
        let (a, b) = (rep.open(9), req.open(9));
        let (eight, nine) = ([1, 1, 1, 1, 1, 1, 1, ID], [1, 1, 1, 1, 1, 1, 1, 1, ID]);
        rep.arrive(a, [stacked(&nine, "").joined(), "abc".into(), stacked(&eight, "").joined()]);
        let passed: Vec<u32> = rep.recv().expect("eight pass").header().collect();
        assert_eq!((passed[0], &passed[1..]), (a.word(), &eight[..]));
        assert_eq!((rep.recv(), rep.drops(DropReason::Ttl), rep.drops(DropReason::Malformed)), (None, 1, 1));
        req.arrive(b, ["abc".into(), stacked(&nine, "").joined()]);
        assert_eq!(req.recv(), Some(stacked(&nine, "")));
    }

    #[test]
    fn promise_15_requests_on_their_way_through_a_device_outlive_a_dead_server() {
        let mut s = Script::new(RawReq::new());
        let (a, b) = (s.open(9), s.open(9));
        for n in 1..=4 {
            s.send(stacked(&[ID | n], "x")).expect("room");
        }
        s.lose(a);
        let ids: Vec<u32> = s.drain(b, 9).into_iter().filter_map(|mut m| m.pop_word()).collect();
        assert_eq!(ids, [ID | 2, ID | 4, ID | 1, ID | 3]);
    }

    #[test]
    fn a_raw_sub_gets_everything() {
        let mut s = Script::new(RawSub::new());
        let a = s.open(2);
        assert_eq!(s.arrive(a, ["a", "", "b"]), 2);
        s.lose(a);
        assert_eq!((s.recv(), s.recv(), s.recv()), (Some("a".into()), Some("".into()), None));
    }

    #[test]
    fn only_what_loses_nothing_stands_in_a_device() {
        let (rep, req) = (RawRep::new().info(), RawReq::new().info());
        let (push, pull) = (Push::new().info(), Pull::new().info());
        let (publisher, sub) = (Pub::default().info(), RawSub::new().info());
        let pair = Pair::new().info();
        for (a, b) in [(rep, req), (pull, push), (sub, publisher), (pair, pair)] {
            assert!(may_forward(&a, &b) && may_forward(&b, &a), "{a:?} {b:?}");
        }
        let cooked = [Rep::new().info(), Req::new().info(), Sub::default().info()];
        for a in cooked {
            for b in [rep, req, publisher, sub, pair].into_iter().chain(cooked) {
                assert!(!may_forward(&a, &b), "{a:?} {b:?}");
            }
        }
        assert!(!may_forward(&rep, &rep) && !may_forward(&rep, &push));
    }

    fn arriving(n: usize) -> Message {
        match n % 4 {
            0 => "abc".into(),
            1 => stacked(&[1; 9], "no id").joined(),
            _ => stacked(&[1, ID], "x").joined(),
        }
    }

    proptest! {
        #[test]
        fn a_raw_req_loses_nothing_uncounted_and_its_readiness_is_exact(ops in check::ops()) {
            let mut s = Script::new(RawReq::new());
            let mut tally = check::run(&mut s, &ops, Check {
                send: Some(Box::new(|s: &mut Script<RawReq>, n| {
                    let taken = s.send(stacked(&[ID | n as u32], "x")).is_ok();
                    (taken, taken)
                })),
                recv: Some(Box::new(check::recv)),
                arrives: Box::new(|_, n| arriving(n)),
                ..Check::default()
            });
            tally.received += std::iter::from_fn(|| s.recv()).count();
            prop_assert_eq!(tally.accepted, tally.drained + tally.unsent + s.protocol.held());
            prop_assert_eq!(tally.arrived as u64, tally.received as u64 + s.all_drops());
        }

        #[test]
        fn a_raw_rep_loses_nothing_uncounted_and_its_readiness_is_exact(ops in check::ops()) {
            let mut s = Script::new(RawRep::new());
            let to = Cell::new(1);
            let mut tally = check::run(&mut s, &ops, Check {
                send: Some(Box::new(|s: &mut Script<RawRep>, _| {
                    (true, s.send(stacked(&[to.get(), ID], "x")).is_ok())
                })),
                recv: Some(Box::new(|s: &mut Script<RawRep>| match s.recv() {
                    Some(msg) => {
                        to.set(msg.header().next().expect("the connection's word"));
                        true
                    }
                    None => false,
                })),
                arrives: Box::new(|_, n| arriving(n)),
                ..Check::default()
            });
            tally.received += std::iter::from_fn(|| s.recv()).count();
            prop_assert_eq!(
                (tally.arrived + tally.accepted) as u64,
                (tally.received + tally.drained + tally.unsent) as u64 + s.all_drops()
            );
        }
    }
}
