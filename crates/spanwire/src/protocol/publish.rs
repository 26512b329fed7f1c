//! PUB, the sending end of publish and subscribe.
//!
//! Every message goes to every subscriber; these filter for themselves, as SP has no subscriptions on the
//! wire. (On a wire that has them, a subscriber gets what it asked for.) A subscriber that does not keep up
//! is treated as [`Slow`] says: by default it alone loses messages, and each loss is counted for it.
//!
//! Owns: who is blocked. Never: lets a slow subscriber take from the others, unless told to wait for it.
//! Wire: 0x20, peer SUB 0x21, no header (nanomsg `pubsub.h`); a subscriber says nothing.

use super::topics::Topics;
use super::{
    Control, Cx, DropReason, Offered, Overflow, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Reason,
    Refused, Reject, Room, Sends, discard, write_off,
};
use crate::Message;

/// What to do about a subscriber whose queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// It loses messages, or its connection, as the overflow says. Sending never waits.
    Drop(Overflow),
    /// Sending waits until all have room: a message goes to all subscribers or to none.
    Wait,
}

/// It loses the newest.
impl Default for Slow {
    fn default() -> Self {
        Slow::Drop(Overflow::DropNewest)
    }
}

/// A subscriber may hold this much here, on wires with subscriptions: topics, and bytes of topics.
const MOST_TOPICS: usize = 100_000;
const MOST_TOPIC_BYTES: usize = 16 << 20;

/// State of one PUB socket.
#[derive(Debug, Default)]
pub struct Pub {
    peers: PipeMap<Peer>,
    /// Number of peers that are blocked; only [`Slow::Wait`] blocks.
    blocked: usize,
    slow: Slow,
}

#[derive(Debug, Default)]
struct Peer {
    blocked: bool,
    /// What it asked for, on wires with subscriptions; `None`: it filters itself.
    wants: Option<Box<Topics>>,
}

impl Pub {
    /// With this treatment of slow subscribers.
    pub fn new(slow: Slow) -> Self {
        Pub { slow, ..Self::default() }
    }
}

impl Protocol for Pub {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x20, "pub", 0x21, "sub").forwardable().zmtp("PUB", &["SUB", "XSUB"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        let asks = cx.info(pipe).is_some_and(|info| info.wire == "zmtp");
        self.peers.insert(pipe, Peer { blocked: false, wants: asks.then(Box::default) });
        Ok(())
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.unblock(pipe);
        self.peers.remove(pipe);
        write_off(cx, pipe);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        discard(cx, pipe);
    }

    fn writable(&mut self, _: &mut Cx<'_>, pipe: PipeId) {
        self.unblock(pipe);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: self.blocked == 0, recv: false }
    }

    fn control(&mut self, cx: &mut Cx<'_>, pipe: PipeId, control: Control<'_>) {
        let Some(wants) = self.peers.get_mut(pipe).and_then(|peer| peer.wants.as_mut()) else { return };
        match control {
            Control::Subscribe(topic) => {
                wants.add(topic);
                if wants.len() > MOST_TOPICS || wants.bytes() > MOST_TOPIC_BYTES {
                    cx.close(pipe, Reason::Protocol("too many subscriptions"));
                }
            }
            Control::Cancel(topic) => {
                wants.remove(topic);
            }
        }
    }
}

impl Pub {
    fn unblock(&mut self, pipe: PipeId) {
        if let Some(peer) = self.peers.get_mut(pipe)
            && std::mem::take(&mut peer.blocked)
        {
            self.blocked -= 1;
        }
    }
}

impl Sends for Pub {
    type Item = Message;

    fn send(&mut self, cx: &mut Cx<'_>, msg: Message) -> Result<(), Refused<Message>> {
        if self.blocked > 0 {
            return Err(Refused::NotNow(msg));
        }
        let (overflow, waits) = match self.slow {
            Slow::Drop(overflow) => (overflow, false),
            Slow::Wait => (Overflow::DropNewest, true),
        };
        // A peer that is being let go takes nothing more, and is none.
        let mut any = false;
        for (pipe, peer) in self.peers.iter_mut() {
            if peer.wants.as_ref().is_some_and(|topics| !topics.matches(&msg)) {
                any = true;
                continue;
            }
            // A loss is counted by `offer`, for this subscriber. Where it is waited for there is room, unless somebody
            // lowered the limit of its pipe meanwhile.
            let offered = cx.offer(pipe, &msg, overflow);
            any |= offered != Offered::Gone;
            if waits && !matches!(offered, Offered::Queued(Room::More) | Offered::Gone) {
                peer.blocked = true;
                self.blocked += 1;
            }
        }
        if !any {
            cx.dropped(None, DropReason::NoPeer);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::PipeInfo;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;

    const ALL: [Slow; 5] = [
        Slow::Drop(Overflow::DropNewest),
        Slow::Drop(Overflow::DropOldest),
        Slow::Drop(Overflow::KeepLatest),
        Slow::Drop(Overflow::Disconnect),
        Slow::Wait,
    ];

    /// Five messages for a subscriber with room for three, and for one with room for all.
    fn overload(slow: Slow) -> (Script<Pub>, Vec<String>, Vec<String>) {
        let mut s = Script::new(Pub::new(slow));
        let (tight, wide) = (s.open(3), s.open(99));
        for n in 1..=5 {
            s.send(n.to_string()).expect("only waiting refuses");
        }
        let (tight, wide) = (s.sent(tight), s.sent(wide));
        (s, tight, wide)
    }

    #[test]
    fn everybody_gets_everything_there_is_room_for() {
        let mut s = Script::new(Pub::default());
        assert!(s.readiness().send);
        s.send("nobody hears").expect("a publisher never waits by default");
        assert_eq!(s.drops(DropReason::NoPeer), 1);
        let (a, b) = (s.open(9), s.open(9));
        s.send("1").expect("room");
        assert_eq!((s.sent(a), s.sent(b)), (vec!["1".to_string()], vec!["1".to_string()]));
    }

    #[test]
    fn a_slow_subscriber_loses_the_newest_the_oldest_or_all_but_the_latest() {
        for (overflow, kept, why) in [
            (Overflow::DropNewest, vec!["1", "2", "3"], DropReason::Newest),
            (Overflow::DropOldest, vec!["3", "4", "5"], DropReason::Oldest),
            (Overflow::KeepLatest, vec!["5"], DropReason::Replaced),
        ] {
            let (s, tight, _) = overload(Slow::Drop(overflow));
            assert_eq!(tight, kept, "{overflow:?}");
            assert!(s.drops(why) > 0, "{overflow:?}");
        }
        let (_, _, wide) = overload(Slow::Drop(Overflow::DropNewest));
        assert_eq!(wide, ["1", "2", "3", "4", "5"]);
        let (_, _, wide) = overload(Slow::Drop(Overflow::DropOldest));
        assert_eq!(wide, ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn a_slow_subscriber_is_disconnected_if_told_so() {
        let (s, tight, wide) = overload(Slow::Drop(Overflow::Disconnect));
        assert_eq!((tight.len(), wide.len()), (0, 5));
        assert_eq!(s.closed.iter().map(|(_, why)| why.clone()).collect::<Vec<_>>(), [Reason::Slow]);
        assert_eq!((s.drops(DropReason::Newest), s.drops(DropReason::PipeClosed)), (1, 3));
    }

    #[test]
    fn waiting_gives_a_message_to_all_or_to_none() {
        let mut s = Script::new(Pub::new(Slow::Wait));
        let (a, b) = (s.open(1), s.open(9));
        s.send("1").expect("room");
        assert_eq!((s.send("2"), s.readiness().send), (Err(Refused::NotNow("2".into())), false));
        assert_eq!((s.unsent(a), s.unsent(b)), (1, 1));
        s.drain(a, 1);
        s.send("2").expect("room again");
        // The slow one's death must not leave the others waiting for ever.
        assert!(!s.readiness().send);
        s.lose(a);
        assert!(s.readiness().send);
        s.send("3").expect("room");
        assert_eq!(
            (s.sent(b), s.drops(DropReason::PipeClosed)),
            (vec!["1".into(), "2".into(), "3".to_string()], 1)
        );
    }

    #[test]
    fn a_subscriber_that_is_let_go_gets_what_is_queued_and_holds_nobody_up() {
        let mut s = Script::new(Pub::new(Slow::Wait));
        let (a, b) = (s.open(1), s.open(9));
        s.send("1").expect("room");
        s.finish(a);
        assert!(s.readiness().send);
        s.send("2").expect("room");
        assert_eq!((s.sent(a), s.sent(b)), (vec!["1".to_string()], vec!["1".into(), "2".to_string()]));
        let mut s = Script::new(Pub::new(Slow::Drop(Overflow::KeepLatest)));
        let a = s.open(9);
        s.send("1").expect("it never waits");
        s.finish(a);
        s.send("2").expect("it never waits");
        // As without a peer: told.
        assert_eq!((s.sent(a), s.drops(DropReason::NoPeer), s.all_drops()), (vec!["1".to_string()], 1, 1));
    }

    #[test]
    fn a_subscriber_that_talks_is_counted() {
        let mut s = Script::new(Pub::default());
        let a = s.open(9);
        s.arrive(a, ["?"]);
        assert_eq!(s.drops(DropReason::Unexpected), 1);
    }

    #[test]
    fn on_a_wire_with_subscriptions_a_peer_gets_what_it_asked_for() {
        let mut s = Script::new(Pub::default());
        let info = PipeInfo { wire: "zmtp", ..PipeInfo::default() };
        let z = s.open_with(info).expect("any subscriber is welcome");
        s.send("a0").expect("room");
        s.call(|p, cx| p.control(cx, z, Control::Subscribe(b"a")));
        s.send("a1").expect("room");
        s.send("b1").expect("room");
        s.call(|p, cx| p.control(cx, z, Control::Cancel(b"a")));
        s.send("a2").expect("room");
        assert_eq!((s.sent(z), s.all_drops()), (vec!["a1".to_string()], 0));
    }

    #[test]
    fn a_peer_cannot_fill_the_memory_with_subscriptions() {
        let mut s = Script::new(Pub::default());
        let info = PipeInfo { wire: "zmtp", ..PipeInfo::default() };
        let z = s.open_with(info).expect("any subscriber is welcome");
        let big = vec![7; MOST_TOPIC_BYTES];
        s.call(|p, cx| p.control(cx, z, Control::Subscribe(&big)));
        assert!(s.closed.is_empty());
        s.call(|p, cx| p.control(cx, z, Control::Subscribe(b"x")));
        assert_eq!(s.closed, [(z, Reason::Protocol("too many subscriptions"))]);
    }

    proptest! {
        /// For every policy: offered = delivered + queued + dropped, copy by copy.
        #[test]
        fn promise_06_no_policy_loses_a_copy_uncounted(ops in check::ops(), which in 0usize..5) {
            let mut s = Script::new(Pub::new(ALL[which]));
            let tally = check::run(&mut s, &ops, Check { send: Some(Box::new(check::send)), ..Check::default() });
            let other = s.drops(DropReason::NoPeer) + s.drops(DropReason::Unexpected);
            prop_assert_eq!(tally.copies as u64, (tally.drained + tally.unsent) as u64 + s.all_drops() - other);
            prop_assert_eq!(tally.arrived as u64, s.drops(DropReason::Unexpected));
            prop_assert!(tally.accepted == tally.sends || ALL[which] == Slow::Wait);
        }
    }
}
