//! PULL, the receiving end of a pipeline.
//!
//! Takes from all peers in turn. Messages wait in their connection's queue, so a peer that sends faster than
//! the application receives is held back. Whole messages that came before a connection ended are delivered.
//!
//! Owns: the turn order. Never: sends. Wire: 0x51, peer PUSH 0x50, no header (nanomsg `pipeline.h`).

use super::fair::FairQueue;
use super::{Cx, PipeId, Protocol, ProtocolInfo, Readiness, Receives, Reject};
use crate::Message;

/// State of one PULL socket.
#[derive(Debug, Default)]
pub struct Pull {
    queue: FairQueue,
}

impl Pull {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Protocol for Pull {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x51, "pull", 0x50, "push").forwardable().zmtp("PULL", &["PUSH"])
    }

    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
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

impl Receives for Pull {
    type Item = Message;

    #[inline]
    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        self.queue.take_any(cx)
    }

    fn recv_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Message>, max: usize) {
        self.queue.take_many(cx, into, max);
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

    fn all(s: &mut Script<Pull>) -> Vec<String> {
        std::iter::from_fn(|| s.recv()).map(|m| String::from_utf8_lossy(&m).into_owned()).collect()
    }

    #[test]
    fn peers_take_turns_however_much_one_has() {
        let mut s = Script::new(Pull::new());
        let (a, b) = (s.open(9), s.open(9));
        s.arrive(a, ["a1", "a2", "a3"]);
        s.arrive(b, ["b1"]);
        assert_eq!(all(&mut s), ["a1", "b1", "a2", "a3"]);
    }

    #[test]
    fn a_lower_priority_number_is_received_first() {
        let mut s = Script::new(Pull::new());
        let a = s.open(9);
        let b =
            s.open_with(PipeInfo { recv_priority: 1, ..PipeInfo::default() }).expect("any push is welcome");
        s.arrive(a, ["a1"]);
        s.arrive(b, ["b1", "b2"]);
        assert_eq!(all(&mut s), ["b1", "b2", "a1"]);
    }

    #[test]
    fn it_is_readable_exactly_while_something_is_there() {
        let mut s = Script::new(Pull::new());
        let a = s.open(9);
        s.call(|p, cx| p.readable(cx, a)); // spurious
        assert!(!s.readiness().recv);
        s.arrive(a, ["1"]);
        assert!(s.readiness().recv);
        assert_eq!(all(&mut s), ["1"]);
        assert!(!s.readiness().recv);
    }

    #[test]
    fn a_peer_that_sends_faster_than_we_receive_is_held_back() {
        let mut s = Script::new(Pull::new());
        let a = s.open(2);
        assert_eq!(s.arrive(a, ["1", "2", "3"]), 2);
        assert_eq!(s.recv(), Some("1".into()));
        assert_eq!(s.arrive(a, ["3"]), 1);
        assert_eq!((all(&mut s), s.all_drops()), (vec!["2".into(), "3".to_string()], 0));
    }

    #[test]
    fn what_many_short_lived_peers_sent_is_all_delivered() {
        let mut s = Script::new(Pull::new());
        for peer in 0..50 {
            let a = s.open(3);
            assert_eq!(s.arrive(a, (0..3).map(|n| format!("{peer}.{n}"))), 3);
            s.end(a);
        }
        assert!(s.closed.is_empty(), "each pipe bounds what its peer left");
        let mut got = 0;
        while s.recv().is_some() {
            got += 1;
        }
        assert_eq!((got, s.all_drops(), s.closed.len()), (150, 0, 50));
        let b = s.open(3);
        s.end(b);
        assert_eq!(s.closed.len(), 51, "one that left nothing goes at once");
    }

    #[test]
    fn what_came_before_the_end_is_delivered_and_first() {
        let mut s = Script::new(Pull::new());
        let a = s.open(9);
        s.arrive(a, ["1", "2"]);
        s.lose(a);
        let b = s.open(9);
        s.arrive(b, ["3"]);
        assert_eq!((all(&mut s), s.all_drops()), (vec!["1".into(), "2".into(), "3".to_string()], 0));
    }

    #[test]
    fn peers_that_send_and_leave_fill_one_queue_and_no_more() {
        for limit in [Limit::messages(3), Limit::bytes(25)] {
            let mut s = Script::new(Pull::new());
            for _ in 0..100 {
                let info = PipeInfo { recv_limit: limit, ..PipeInfo::default() };
                let a = s.open_with(info).expect("any push is welcome");
                assert_eq!(s.arrive(a, ["12345678", "12345678"]), 2);
                s.lose(a);
            }
            // 25 bytes: taken while there are fewer, so it overshoots by one.
            let kept = if limit == Limit::messages(3) { 3 } else { 4 };
            assert_eq!((all(&mut s).len(), s.drops(DropReason::PipeClosed)), (kept, 200 - kept as u64));
        }
    }

    fn many(s: &mut Script<Pull>, max: usize) -> Vec<Message> {
        let mut got = Vec::new();
        s.call(|p, cx| p.recv_many(cx, &mut got, max));
        got
    }

    #[test]
    fn many_at_once_are_as_many_as_asked_for_and_peers_take_turns_of_sixteen() {
        let mut s = Script::new(Pull::new());
        let (gone, a, b) = (s.open(99), s.open(99), s.open(99));
        s.arrive(gone, ["g"]);
        s.lose(gone);
        s.arrive(a, vec!["a"; 40]);
        s.arrive(b, vec!["b"; 20]);
        let turns = [("g", 1), ("a", 16), ("b", 16), ("a", 16), ("b", 4), ("a", 8)];
        let want: Vec<&str> = turns.into_iter().flat_map(|(who, n)| vec![who; n]).collect();
        assert_eq!(many(&mut s, 0), [""; 0]);
        assert_eq!(many(&mut s, 20), want[..20]);
        // The turn in which it stopped is over.
        assert_eq!(many(&mut s, 1), ["a"]);
        assert_eq!(many(&mut s, 99).len(), want.len() - 21);
        assert!(!s.readiness().recv);
    }

    #[test]
    fn many_at_once_let_a_peer_that_was_held_back_go_on() {
        let mut s = Script::new(Pull::new());
        let a = s.open(4);
        assert_eq!(s.arrive(a, ["1", "2", "3", "4", "5"]), 4);
        assert_eq!(many(&mut s, 3), ["1", "2", "3"]);
        assert_eq!(s.arrive(a, ["5", "6", "7", "8"]), 3);
        s.end(a);
        assert_eq!((many(&mut s, 9).len(), s.closed.len()), (4, 1), "and its end be seen");
    }

    proptest! {
        #[test]
        fn many_at_once_lose_nothing_and_keep_each_peers_order(
            sizes in proptest::collection::vec(0usize..40, 1..6), max in proptest::collection::vec(1usize..50, 1..9),
        ) {
            let mut s = Script::new(Pull::new());
            for (peer, n) in sizes.iter().enumerate() {
                let a = s.open(99);
                s.arrive(a, (0..*n).map(|i| Message::from([peer as u8, i as u8])));
            }
            let (mut next, mut max) = (vec![0u8; sizes.len()], max.into_iter().cycle());
            while s.readiness().recv {
                let most = max.next().unwrap_or(1);
                let got = many(&mut s, most);
                prop_assert!((1..=most).contains(&got.len()));
                for msg in got {
                    prop_assert_eq!(msg[1], next[msg[0] as usize]);
                    next[msg[0] as usize] += 1;
                }
            }
            prop_assert!(next.iter().zip(sizes).all(|(n, size)| usize::from(*n) == size));
        }

        #[test]
        fn nothing_is_lost_uncounted_and_readiness_is_exact(ops in check::ops()) {
            let mut s = Script::new(Pull::new());
            let mut tally = check::run(&mut s, &ops, Check { recv: Some(Box::new(check::recv)), ..Check::default() });
            tally.received += all(&mut s).len();
            prop_assert_eq!(tally.arrived as u64, tally.received as u64 + s.all_drops());
            prop_assert_eq!(s.all_drops(), s.drops(DropReason::PipeClosed));
        }
    }
}
