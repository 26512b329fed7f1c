//! SUB, the receiving end of publish and subscribe.
//!
//! Topics are prefixes of the message. They are matched as soon as messages arrive, before the queue: what
//! does not match takes no room in it. When the queue is full, either the oldest gives way, or the publishers
//! are held back, as [`Prefer`] says. Without a topic nothing is received.
//!
//! Owns: topics, and a bounded queue. Never: sends anything to an SP publisher (nanomsg's would abort). Wire:
//! 0x21, peer PUB 0x20, no header (nanomsg `pubsub.h`, `trie.c`: topics are counted).

use super::fair::FairQueue;
use super::topics::Topics;
use super::{
    Control, Cx, DropReason, Limit, PipeId, PipeMap, Protocol, ProtocolInfo, Readiness, Receives, Reject,
};
use crate::Message;
use crate::queue::Batch;

/// What a full queue does with one message more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Prefer {
    /// The oldest in the queue is dropped and counted; publishers are never held back.
    #[default]
    Newest,
    /// It stays in its connection until there is room, and the publisher is held back in the end.
    Oldest,
}

/// State of one SUB socket.
#[derive(Debug, Default)]
pub struct Sub {
    topics: Topics,
    queue: Batch,
    limit: Limit,
    prefer: Prefer,
    /// What is still in the pipes: not empty only from when `queue` is full until it is empty.
    inbound: FairQueue,
    pipes: PipeMap<()>,
}

impl Sub {
    /// With a queue of its own within `limit` (default: 1,000 messages, 8 MiB).
    pub fn new(limit: Limit, prefer: Prefer) -> Self {
        Sub { limit, prefer, ..Self::default() }
    }

    /// Receives what begins with `topic`, from now on; the empty topic is everything. A topic may be
    /// subscribed several times, and counts: as many [`unsubscribe`](Sub::unsubscribe) end it.
    pub fn subscribe(&mut self, cx: &mut Cx<'_>, topic: &[u8]) {
        if self.topics.add(topic) {
            for pipe in self.pipes.keys() {
                cx.control(pipe, Control::Subscribe(topic));
            }
        }
    }

    /// Takes a subscription back; `false` if there was none. Queued messages that match nothing any more are
    /// dropped and counted.
    pub fn unsubscribe(&mut self, cx: &mut Cx<'_>, topic: &[u8]) -> bool {
        let Some(gone) = self.topics.remove(topic) else { return false };
        if gone {
            for pipe in self.pipes.keys() {
                cx.control(pipe, Control::Cancel(topic));
            }
            let topics = &self.topics;
            let filtered = self.queue.retain(|msg| topics.matches(msg));
            (0..filtered).for_each(|_| cx.dropped(None, DropReason::Filtered));
            self.fill(cx);
        }
        true
    }

    fn full(&self) -> bool {
        self.limit.reached(self.queue.len(), self.queue.bytes)
    }

    /// After messages were taken: when none is left, many that wait move up at once.
    #[inline]
    fn taken(&mut self, cx: &mut Cx<'_>) {
        if self.queue.is_empty() && !self.inbound.is_empty() {
            self.fill(cx);
        }
    }

    /// Moves what matches from the pipes to the queue.
    fn fill(&mut self, cx: &mut Cx<'_>) {
        let topics = &self.topics;
        let keep = (!topics.match_all()).then_some(|msg: &Message| topics.matches(msg));
        self.inbound.take_all(cx, self.limit, &mut self.queue, keep);
        while self.prefer == Prefer::Newest || !self.full() {
            let Some((pipe, msg)) = self.inbound.take(cx) else { return };
            if !self.topics.matches(&msg) {
                cx.dropped(pipe, DropReason::Filtered);
                continue;
            }
            while self.full() && self.queue.pop().is_some() {
                cx.dropped(None, DropReason::Oldest);
            }
            self.queue.push(msg);
        }
    }
}

impl Protocol for Sub {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x21, "sub", 0x20, "pub").zmtp("SUB", &["PUB", "XPUB"])
    }

    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.pipes.insert(pipe, ());
        self.topics.for_each(|topic| cx.control(pipe, Control::Subscribe(topic)));
        Ok(())
    }

    fn pipe_ended(&mut self, _: &mut Cx<'_>, _: PipeId) -> bool {
        true // what it sent is still to be received
    }

    fn pipe_closed(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.pipes.remove(pipe);
        self.inbound.keep(cx, pipe);
        self.fill(cx);
    }

    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.inbound.readable(cx, pipe);
        self.fill(cx);
    }

    fn readiness(&self) -> Readiness {
        Readiness { send: false, recv: !self.queue.is_empty() }
    }
}

impl Receives for Sub {
    type Item = Message;

    fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Message> {
        let msg = self.queue.pop();
        self.taken(cx);
        msg
    }

    fn recv_many(&mut self, cx: &mut Cx<'_>, into: &mut Vec<Message>, max: usize) {
        self.queue.pop_many(into, max);
        self.taken(cx);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::check::{self, Check};
    use crate::protocol::script::Script;

    fn sub(n: usize, prefer: Prefer, topics: &[&str]) -> Script<Sub> {
        let mut s = Script::new(Sub::new(Limit::messages(n), prefer));
        for topic in topics {
            s.call(|p, cx| p.subscribe(cx, topic.as_bytes()));
        }
        s
    }

    fn unsubscribe(s: &mut Script<Sub>, topic: &str) -> bool {
        s.call(|p, cx| p.unsubscribe(cx, topic.as_bytes()))
    }

    fn all(s: &mut Script<Sub>) -> Vec<String> {
        std::iter::from_fn(|| s.recv()).map(|m| String::from_utf8_lossy(&m).into_owned()).collect()
    }

    #[test]
    fn without_a_topic_nothing_is_received_and_the_empty_one_is_everything() {
        let mut s = sub(9, Prefer::Newest, &[]);
        let a = s.open(9);
        s.arrive(a, ["1", ""]);
        assert_eq!((s.readiness().recv, s.drops(DropReason::Filtered)), (false, 2));
        s.call(|p, cx| p.subscribe(cx, b""));
        s.arrive(a, ["2", ""]);
        assert_eq!(all(&mut s), ["2", ""]);
    }

    #[test]
    fn several_and_overlapping_topics_give_each_message_once() {
        let mut s = sub(9, Prefer::Newest, &["a", "ab", "c"]);
        let a = s.open(9);
        s.arrive(a, ["a", "abc", "b", "cc", ""]);
        assert_eq!(all(&mut s), ["a", "abc", "cc"]);
        assert!(unsubscribe(&mut s, "a"));
        s.arrive(a, ["a", "abc"]);
        assert_eq!(all(&mut s), ["abc"]);
    }

    #[test]
    fn a_topic_subscribed_twice_is_left_twice() {
        let mut s = sub(9, Prefer::Newest, &["a", "a"]);
        let a = s.open(9);
        assert!(unsubscribe(&mut s, "a"));
        s.arrive(a, ["a1"]);
        assert_eq!(all(&mut s), ["a1"]);
        assert!(unsubscribe(&mut s, "a"));
        assert!(!unsubscribe(&mut s, "a"));
        s.arrive(a, ["a2"]);
        assert_eq!(all(&mut s).len(), 0);
    }

    #[test]
    fn what_does_not_match_takes_no_room() {
        for prefer in [Prefer::Newest, Prefer::Oldest] {
            let mut s = sub(2, prefer, &["a"]);
            let a = s.open(99);
            s.arrive(a, ["a1", "b", "b", "b", "a2", "b"]);
            assert_eq!(
                (all(&mut s), s.drops(DropReason::Filtered)),
                (vec!["a1".into(), "a2".to_string()], 4)
            );
        }
    }

    #[test]
    fn preferring_the_newest_drops_the_oldest_and_never_holds_back() {
        let mut s = sub(2, Prefer::Newest, &[""]);
        let a = s.open(1);
        for n in 1..=5 {
            assert_eq!(s.arrive(a, [n.to_string()]), 1);
        }
        assert_eq!((all(&mut s), s.drops(DropReason::Oldest)), (vec!["4".into(), "5".to_string()], 3));
    }

    #[test]
    fn preferring_the_oldest_holds_the_publishers_back_and_serves_them_in_turn() {
        let mut s = sub(1, Prefer::Oldest, &[""]);
        let (a, b) = (s.open(2), s.open(2));
        assert_eq!(s.arrive(a, ["a1", "a2", "a3"]), 2);
        assert_eq!(s.arrive(b, ["b1", "b2", "b3"]), 2);
        assert_eq!(s.arrive(a, ["a3", "a4"]), 1);
        assert_eq!(
            (all(&mut s), s.all_drops()),
            (["a1", "a2", "b1", "a3", "b2"].map(String::from).to_vec(), 0)
        );
    }

    #[test]
    fn unsubscribing_drops_what_no_longer_matches_and_makes_room() {
        let mut s = sub(2, Prefer::Oldest, &["a", "b"]);
        let a = s.open(9);
        s.arrive(a, ["a1", "a2", "b1", "a3", "b2"]);
        assert!(unsubscribe(&mut s, "a"));
        assert_eq!((all(&mut s), s.drops(DropReason::Filtered)), (vec!["b1".into(), "b2".to_string()], 3));
    }

    #[test]
    fn what_came_before_the_end_is_received() {
        let mut s = sub(1, Prefer::Oldest, &[""]);
        let a = s.open(9);
        s.arrive(a, ["1", "2", "3"]);
        s.lose(a);
        assert_eq!((all(&mut s), s.all_drops()), (["1", "2", "3"].map(String::from).to_vec(), 0));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted_and_readiness_is_exact(ops in check::ops(), n in 1usize..5, new in any::<bool>()) {
            let prefer = if new { Prefer::Newest } else { Prefer::Oldest };
            let mut s = sub(n, prefer, &["", "1", "2"]);
            let mut tally = check::run(&mut s, &ops, Check {
                recv: Some(Box::new(check::recv)),
                own: Some(Box::new(|s, n| {
                    let topic = ["", "1", "2", "3"][n / 2 % 4];
                    if n % 2 == 0 {
                        unsubscribe(s, topic);
                    } else {
                        s.call(|p, cx| p.subscribe(cx, topic.as_bytes()));
                    }
                })),
                ..Check::default()
            });
            prop_assert!(s.protocol.queue.len() <= n);
            tally.received += all(&mut s).len();
            prop_assert_eq!(tally.arrived as u64, tally.received as u64 + s.all_drops());
            prop_assert!(new || s.drops(DropReason::Oldest) == 0);
        }
    }
}
