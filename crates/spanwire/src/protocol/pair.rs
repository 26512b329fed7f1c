//! PAIR, two peers that talk both ways.
//!
//! One peer at a time: a second one is refused while the first is there. What a peer had not begun to receive
//! when its connection ended is kept for the next one, before everything newer; what it had sent whole is
//! delivered, also when the next is there already.
//!
//! Owns: who the peer is. Never: gives its place to a newcomer. Wire: 0x10 on both sides, no header (nanomsg
//! `pair.h`).

use std::collections::VecDeque;

use super::balance::Balance;
use super::fair::FairQueue;
use super::{Cx, PipeId, Protocol, ProtocolInfo, Readiness, Reason, Receives, Refused, Reject, Sends};
use crate::Message;

/// Peers that are gone and have left something to receive; with more, a new one is refused until it is taken.
const ENDED: usize = 16;

/// State of one PAIR socket.
#[derive(Debug, Default)]
pub struct Pair {
    peer: Option<PipeId>,
    /// Pipes whose peers are gone, kept for what they brought.
    ended: usize,
    outbound: Balance,
    inbound: FairQueue,
}

impl Pair {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Protocol for Pair {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x10, "pair", 0x10, "pair").forwardable().zmtp("PAIR", &["PAIR"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        if self.peer.is_some() || self.ended >= ENDED {
            return Err(Reason::Busy);
        }
        self.peer = Some(pipe);
        self.outbound.ready(cx, pipe);
        Ok(())
    }

    fn pipe_ended(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> bool {
        self.peer = None;
        self.ended += 1;
        self.outbound.reroute(cx, pipe);
        true
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        if self.peer == Some(pipe) {
            self.peer = None;
            self.outbound.reroute(cx, pipe);
        } else {
            self.ended -= 1;
        }
        self.inbound.keep(cx, pipe);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.inbound.readable(cx, pipe);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.outbound.ready(cx, pipe);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: self.outbound.has_room(), recv: !self.inbound.is_empty() }
    }

    fn held(&self) -> usize {
        self.outbound.held()
    }
}

impl Sends for Pair {
    type Item = Message;

    fn send(&mut self, cx: &mut Cx<'_>, msg: Message) -> Result<(), Refused<Message>> {
        self.outbound.send(cx, msg).map(|_| ()).map_err(Refused::NotNow)
    }

    #[inline]
    fn send_held(&mut self, cx: &mut Cx<'_>, held: &mut Option<Message>) -> Result<(), Refused<()>> {
        self.outbound.send_held(cx, held);
        if held.is_none() { Ok(()) } else { Err(Refused::NotNow(())) }
    }

    fn send_many(&mut self, cx: &mut Cx<'_>, msgs: &mut VecDeque<Message>) -> Result<(), Refused<()>> {
        self.outbound.send_many(cx, msgs);
        if msgs.is_empty() { Ok(()) } else { Err(Refused::NotNow(())) }
    }
}

impl Receives for Pair {
    type Item = Message;

    #[inline]
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        self.inbound.take_any(cx)
    }

    fn recv_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Message>, max: usize) {
        self.inbound.take_many(cx, into, max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::PipeInfo;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;

    #[test]
    fn both_sides_send_and_receive() {
        let mut s = Script::new(Pair::new());
        assert_eq!((s.send("0"), s.readiness()), (Err(Refused::NotNow("0".into())), Readiness::default()));
        let a = s.open(2);
        s.send("1").expect("room");
        s.send("2").expect("room");
        assert_eq!(s.send("3"), Err(Refused::NotNow("3".into())));
        s.arrive(a, ["x"]);
        assert_eq!(
            (s.recv(), s.recv(), s.sent(a)),
            (Some("x".into()), None, vec!["1".into(), "2".to_string()])
        );
        s.send("3").expect("room again");
    }

    #[test]
    fn a_second_peer_is_refused_and_the_first_stays() {
        let mut s = Script::new(Pair::new());
        let a = s.open(9);
        assert_eq!(s.open_with(PipeInfo::default()), Err(Reason::Busy));
        s.send("1").expect("room");
        assert_eq!(s.sent(a), ["1"]);
        s.lose(a);
        s.open(9);
    }

    #[test]
    fn promise_15_what_the_dead_peer_had_not_begun_waits_for_the_next_one_and_is_bounded() {
        let mut s = Script::new(Pair::new());
        let a = s.open(3);
        for msg in ["1", "2", "3"] {
            s.send(msg).expect("room");
        }
        s.drain(a, 1);
        s.arrive(a, ["x", "y"]);
        s.lose(a);
        assert_eq!((s.protocol.held(), s.send("4")), (2, Err(Refused::NotNow("4".into()))));
        assert_eq!((s.recv(), s.recv(), s.recv()), (Some("x".into()), Some("y".into()), None));
        for _ in 0..5 {
            let b = s.open(1);
            assert_eq!((s.unsent(b), s.protocol.held()), (1, 1));
            s.lose(b);
        }
        let c = s.open(9);
        s.send("4").expect("room");
        assert_eq!((s.sent(c), s.all_drops()), (vec!["2".into(), "3".into(), "4".to_string()], 0));
    }

    #[test]
    fn what_a_peer_sent_before_it_went_is_received_beside_the_next_peer() {
        let mut s = Script::new(Pair::new());
        let a = s.open(2);
        s.send("1").expect("room");
        s.send("2").expect("room");
        s.drain(a, 1);
        s.fail_write(a);
        // The place is free, and what had not begun to leave goes to who takes it.
        let b = s.open(2);
        assert_eq!((s.sent(b), s.open_with(PipeInfo::default())), (vec!["2".to_string()], Err(Reason::Busy)));
        s.arrive(a, ["x"]);
        assert_eq!((s.recv(), s.is_open(a)), (Some("x".into()), true));
        s.arrive(a, ["y"]);
        s.arrive(b, ["z"]);
        s.end(a);
        let mut got =
            [s.recv(), s.recv(), s.recv()].map(|msg| msg.map(|m| String::from_utf8_lossy(&m).into_owned()));
        got.sort();
        assert_eq!(got, [None, Some("y".into()), Some("z".into())]);
        assert_eq!((s.is_open(a), s.is_open(b), s.all_drops()), (false, true, 0));
    }

    #[test]
    fn peers_that_come_say_something_and_go_are_bounded() {
        let mut s = Script::new(Pair::new());
        for n in 0..ENDED {
            let pipe = s.open(1);
            s.arrive(pipe, [n.to_string()]);
            s.end(pipe);
        }
        assert_eq!(s.open_with(PipeInfo::default()), Err(Reason::Busy));
        assert_eq!(s.recv(), Some("0".into()));
        s.open(1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted_and_readiness_is_exact(ops in check::ops()) {
            let mut s = Script::new(Pair::new());
            let mut tally = check::run(&mut s, &ops, Check {
                send: Some(Box::new(check::send)),
                recv: Some(Box::new(check::recv)),
                max_peers: 1,
                ..Check::default()
            });
            tally.received += std::iter::from_fn(|| s.recv()).count();
            prop_assert_eq!(tally.accepted, tally.drained + tally.unsent + s.protocol.held());
            prop_assert_eq!(tally.arrived as u64, tally.received as u64 + s.all_drops());
        }
    }
}
