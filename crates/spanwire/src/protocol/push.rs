//! PUSH, the sending end of a pipeline.
//!
//! Each message goes to exactly one PULL peer: the next in turn whose queue has room. If none has, it is
//! handed back, and the socket decides whether its caller waits. What a peer had not begun to receive when
//! its connection ended goes to others, before everything newer.
//!
//! Owns: the turn order. Never: promises delivery by a peer that dies after its message was begun, or waits
//! for one slow peer. Wire: 0x50, peer PULL 0x51, no header (nanomsg `pipeline.h`).

use std::collections::VecDeque;

use super::balance::Balance;
use super::{Cx, PipeId, Protocol, ProtocolInfo, Readiness, Refused, Reject, Sends, discard};
use crate::Message;

/// State of one PUSH socket.
#[derive(Debug, Default)]
pub struct Push {
    balance: Balance,
    peers: usize,
    fail_without_peer: bool,
}

impl Push {
    /// Waits while there is no peer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether sending with no peer attached fails with [`Refused::NoPeer`]; default: no, it waits.
    #[must_use]
    pub fn fail_without_peer(mut self, fail: bool) -> Self {
        self.fail_without_peer = fail;
        self
    }
}

impl Protocol for Push {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x50, "push", 0x51, "pull").forwardable().zmtp("PUSH", &["PULL"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.peers += 1;
        self.balance.ready(cx, pipe);
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.peers -= 1;
        self.balance.reroute(cx, pipe);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        // A PULL peer has nothing to say.
        discard(cx, pipe);
    }

    fn writable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.balance.ready(cx, pipe);
    }

    fn readiness(&self) -> Readiness {
        // A refusal for want of a peer is an answer, too: only "not now" is not ready.
        let fails = self.fail_without_peer && self.peers == 0;
        Readiness { send: fails || self.balance.has_room(), recv: false }
    }

    fn held(&self) -> usize {
        self.balance.held()
    }
}

impl Sends for Push {
    type Item = Message;

    fn send(&mut self, cx: &mut Cx<'_>, msg: Message) -> Result<(), Refused<Message>> {
        if self.fail_without_peer && self.peers == 0 {
            return Err(Refused::NoPeer(msg));
        }
        self.balance.send(cx, msg).map(|_| ()).map_err(Refused::NotNow)
    }

    #[inline]
    fn send_held(&mut self, cx: &mut Cx<'_>, held: &mut Option<Message>) -> Result<(), Refused<()>> {
        if self.fail_without_peer && self.peers == 0 && held.is_some() {
            return Err(Refused::NoPeer(()));
        }
        self.balance.send_held(cx, held);
        if held.is_none() { Ok(()) } else { Err(Refused::NotNow(())) }
    }

    fn send_many(&mut self, cx: &mut Cx<'_>, msgs: &mut VecDeque<Message>) -> Result<(), Refused<()>> {
        if self.fail_without_peer && self.peers == 0 && !msgs.is_empty() {
            return Err(Refused::NoPeer(()));
        }
        self.balance.send_many(cx, msgs);
        if msgs.is_empty() { Ok(()) } else { Err(Refused::NotNow(())) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;
    use crate::protocol::{DropReason, PipeInfo};
    use crate::queue::Limit;

    fn send_all(s: &mut Script<Push>, msgs: &[&str]) {
        for msg in msgs {
            s.send(*msg).expect("there is room");
        }
    }

    fn open_at(s: &mut Script<Push>, send_priority: u8, n: usize) -> PipeId {
        let info = PipeInfo { send_priority, send_limit: Limit::messages(n), ..PipeInfo::default() };
        s.open_with(info).expect("any pull is welcome")
    }

    #[test]
    fn peers_take_turns_and_a_repeated_writable_gives_no_second_one() {
        let mut s = Script::new(Push::new());
        let (a, b) = (s.open(9), s.open(9));
        s.call(|p, cx| p.writable(cx, a));
        send_all(&mut s, &["1", "2", "3", "4"]);
        assert_eq!((s.sent(a), s.sent(b)), (vec!["1".into(), "3".into()], vec!["2".into(), "4".to_string()]));
    }

    #[test]
    fn a_full_peer_is_passed_over_until_it_drains() {
        let mut s = Script::new(Push::new());
        let (a, b) = (s.open(1), s.open(2));
        send_all(&mut s, &["1", "2", "3"]);
        assert!(!s.readiness().send);
        assert_eq!(s.send("4"), Err(Refused::NotNow("4".into())));
        assert_eq!(s.drain(a, 1).len(), 1);
        send_all(&mut s, &["4"]);
        assert_eq!((s.sent(a), s.sent(b)), (vec!["4".to_string()], vec!["2".into(), "3".into()]));
    }

    #[test]
    fn a_lower_priority_number_is_served_until_it_is_full() {
        let mut s = Script::new(Push::new());
        let (far, near) = (open_at(&mut s, 9, 9), open_at(&mut s, 1, 2));
        send_all(&mut s, &["1", "2", "3"]);
        assert_eq!((s.sent(near), s.sent(far)), (vec!["1".into(), "2".into()], vec!["3".to_string()]));
        send_all(&mut s, &["4"]);
        assert_eq!(s.sent(near), ["4"]);
    }

    #[test]
    fn without_a_peer_it_waits_or_fails_as_told() {
        let mut s = Script::new(Push::new());
        assert!(!s.readiness().send);
        assert_eq!(s.send("1"), Err(Refused::NotNow("1".into())));
        let mut s = Script::new(Push::new().fail_without_peer(true));
        assert!(s.readiness().send);
        assert_eq!(s.send("1"), Err(Refused::NoPeer("1".into())));
        let a = s.open(1);
        send_all(&mut s, &["1"]);
        assert_eq!(s.send("2"), Err(Refused::NotNow("2".into())));
        assert_eq!(s.sent(a), ["1"]);
    }

    #[test]
    fn a_peer_that_is_let_go_gets_what_is_queued_and_no_more() {
        let mut s = Script::new(Push::new());
        let a = s.open(9);
        send_all(&mut s, &["1"]);
        s.finish(a);
        assert!(!s.readiness().send);
        assert_eq!(s.send("2"), Err(Refused::NotNow("2".into())));
        let b = s.open(9);
        send_all(&mut s, &["2"]);
        assert_eq!((s.sent(a), s.sent(b)), (vec!["1".to_string()], vec!["2".to_string()]));
        assert_eq!((s.is_open(a), s.all_drops()), (false, 0));
    }

    #[test]
    fn a_peer_that_talks_is_counted_and_blocks_nothing() {
        let mut s = Script::new(Push::new());
        let a = s.open(2);
        assert_eq!(s.arrive(a, ["?", "!", "too much"]), 2);
        assert_eq!(s.drops(DropReason::Unexpected), 2);
        assert_eq!(s.arrive(a, ["?"]), 1);
    }

    #[test]
    fn promise_15_what_a_dead_peer_had_not_begun_goes_to_others_before_anything_newer() {
        let mut s = Script::new(Push::new());
        let (a, b) = (s.open(3), s.open(4));
        send_all(&mut s, &["1", "2", "3", "4", "5", "6"]);
        assert_eq!(s.drain(a, 1)[0], "1"); // begun, so it is the peer's
        s.lose(a);
        // One of "3" and "5" finds room; the other waits, and nothing overtakes it.
        assert_eq!((s.unsent(b), s.protocol.held()), (4, 1));
        assert_eq!(s.send("7"), Err(Refused::NotNow("7".into())));
        assert_eq!(s.sent(b), ["2", "4", "6", "3"]);
        send_all(&mut s, &["7"]);
        assert_eq!((s.sent(b), s.protocol.held()), (vec!["5".into(), "7".to_string()], 0));
    }

    #[test]
    fn promise_15_with_nobody_left_the_backlog_waits_for_the_next_peer_in_order() {
        let mut s = Script::new(Push::new());
        let a = s.open(9);
        send_all(&mut s, &["1", "2", "3"]);
        s.lose(a);
        assert_eq!((s.protocol.held(), s.readiness().send), (3, false));
        let b = s.open(2);
        assert_eq!(s.protocol.held(), 1);
        s.lose(b);
        let c = s.open(9);
        assert_eq!((s.sent(c), s.readiness().send), (vec!["1".into(), "2".into(), "3".to_string()], true));
    }

    #[test]
    fn promise_15_the_backlog_of_a_stopped_receiver_is_exactly_the_limit() {
        for (limit, size, expect) in
            [(Limit::messages(7), 10, 7), (Limit::bytes(1000), 100, 10), (Limit::bytes(1000), 400, 3)]
        {
            let mut s = Script::new(Push::new());
            let info = PipeInfo { send_limit: limit, ..PipeInfo::default() };
            s.open_with(info).expect("any pull is welcome");
            let taken = (0..100).take_while(|_| s.send(vec![0; size]).is_ok()).count();
            assert_eq!(taken, expect, "{limit:?}");
        }
    }

    #[test]
    fn many_at_once_go_in_runs_to_all_who_have_room_in_their_order() {
        let mut s = Script::new(Push::new());
        let (a, b) = (s.open(3), s.open(9));
        let mut msgs: VecDeque<Message> = (1..=9).map(|n| n.to_string().into()).collect();
        assert_eq!(s.call(|p, cx| p.send_many(cx, &mut msgs)), Ok(()));
        assert_eq!((s.sent(a).concat(), s.sent(b).concat()), ("123".into(), "456789".to_string()));
        // What nobody has room for stays, and is not sent twice.
        msgs = ('a'..='n').map(|letter| letter.to_string().into()).collect();
        assert_eq!(s.call(|p, cx| p.send_many(cx, &mut msgs)), Err(Refused::NotNow(())));
        assert_eq!((s.unsent(a), s.unsent(b), s.readiness().send), (3, 9, false));
        assert_eq!((s.sent(b).concat(), s.sent(a).concat()), ("abcdefgkl".into(), "hij".to_string()));
        assert_eq!(msgs, ["m", "n"]);
        let mut nobody = Script::new(Push::new().fail_without_peer(true));
        assert_eq!(nobody.call(|p, cx| p.send_many(cx, &mut msgs)), Err(Refused::NoPeer(())));
        assert_eq!(msgs, ["m", "n"]);
    }

    #[test]
    fn many_at_once_stop_at_the_limit_as_one_by_one() {
        for (limit, size, expect) in
            [(Limit::messages(7), 10, 7), (Limit::bytes(1000), 100, 10), (Limit::bytes(1000), 400, 3)]
        {
            let mut s = Script::new(Push::new());
            let info = PipeInfo { send_limit: limit, ..PipeInfo::default() };
            let pipe = s.open_with(info).expect("any pull is welcome");
            let mut msgs: VecDeque<Message> = (0..20).map(|_| vec![0; size].into()).collect();
            for _ in 0..2 {
                assert_eq!(s.call(|p, cx| p.send_many(cx, &mut msgs)), Err(Refused::NotNow(())));
                assert_eq!((s.unsent(pipe), msgs.len()), (expect, 20 - expect), "{limit:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_readiness_is_exact(ops in check::ops(), fail in any::<bool>()) {
            let mut s = Script::new(Push::new().fail_without_peer(fail));
            let tally = check::run(&mut s, &ops, Check { send: Some(Box::new(check::send)), ..Check::default() });
            prop_assert_eq!(tally.accepted, tally.drained + tally.unsent + s.protocol.held());
            prop_assert_eq!(tally.arrived as u64, s.drops(DropReason::Unexpected));
        }
    }
}
