//! Groups of requests: their ends are collected together, in the order in which they came.
//!
//! A request of a group leaves the table when it ends; its reply waits here, with how many are open yet. Whoever
//! waits is told once for as many as come before he looks: when the first is there, and when nothing is left to wait for.
//!
//! Owns: ends that are not collected. Never: decides how a request ends.

use std::collections::VecDeque;
use std::mem;
use std::vec;

use slab::Slab;

use super::{Failed, ReqId};
use crate::Message;
use crate::protocol::{Cx, WaitKey};

/// Members that have ended are swept out when they are so many more than those that have not.
const SWEEP: usize = 64;

/// Names a group of requests ([`Req::new_group`](super::Req::new_group)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupId {
    slot: u32,
    /// Not used twice within 2^32 groups.
    number: u32,
}

impl GroupId {
    /// Woken when a request of the group has ended and no other end waits to be collected, and when nothing of the
    /// group is left.
    pub fn key(self) -> WaitKey {
        WaitKey(2, u64::from(self.number))
    }
}

/// How a request of a group has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The request.
    pub id: ReqId,
    /// The reply, or why there is none.
    pub result: Result<Message, Failed>,
}

#[derive(Debug, Default)]
struct Group {
    number: u32,
    /// Requests that have not ended.
    open: usize,
    /// At least those, oldest first.
    members: VecDeque<u32>,
    /// Ends that are being collected, in the order in which they came.
    going: vec::IntoIter<Reply>,
    /// Those that came later.
    ended: Vec<Reply>,
}

impl Group {
    fn kept(&self) -> usize {
        self.going.len() + self.ended.len()
    }
}

/// The groups of one socket.
#[derive(Debug, Default)]
pub(super) struct Groups {
    slab: Slab<Group>,
    last: u32,
    /// Ends of all groups that are not collected.
    pub(super) kept: usize,
}

impl Groups {
    pub(super) fn insert(&mut self) -> GroupId {
        self.last = self.last.wrapping_add(1);
        let slot = self.slab.insert(Group { number: self.last, ..Group::default() });
        GroupId { slot: slot as u32, number: self.last }
    }

    fn get_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.slab.get_mut(id.slot as usize).filter(|group| group.number == id.number)
    }

    fn get(&self, id: GroupId) -> Option<&Group> {
        self.slab.get(id.slot as usize).filter(|group| group.number == id.number)
    }

    pub(super) fn contains(&self, id: GroupId) -> bool {
        self.get(id).is_some()
    }

    /// A request joins. `is_open`: whether a member has not ended; asked of a few, from time to time.
    pub(super) fn join(&mut self, id: GroupId, request: u32, is_open: impl Fn(u32) -> bool) {
        let Some(group) = self.get_mut(id) else { return };
        if group.members.len() >= 2 * group.open + SWEEP {
            group.members.retain(|member| is_open(*member));
        }
        group.members.push_back(request);
        group.open += 1;
    }

    /// A request has ended; `how` is `None` when nobody is to be told.
    pub(super) fn leave(
        &mut self,
        cx: &mut Cx<'_>,
        id: GroupId,
        request: u32,
        how: Option<Result<Message, Failed>>,
    ) {
        let Some(group) = self.get_mut(id) else { return };
        group.open -= 1;
        if let Some(result) = how {
            if group.ended.is_empty() && group.going.len() == 0 {
                cx.wake(id.key());
            }
            group.ended.push(Reply { id: ReqId(request), result });
            self.kept += 1;
        } else if group.open == 0 && group.kept() == 0 {
            cx.wake(id.key());
        }
    }

    /// Moves ends to the end of `into`, `max` at most.
    pub(super) fn collect(
        &mut self,
        cx: &mut Cx<'_>,
        id: GroupId,
        into: &mut Vec<Reply>,
        max: usize,
    ) -> usize {
        let Some(group) = self.get_mut(id) else { return 0 };
        let before = into.len();
        into.extend(group.going.by_ref().take(max));
        let left = max - (into.len() - before);
        if left > 0 && left >= group.ended.len() {
            if into.is_empty() { mem::swap(into, &mut group.ended) } else { into.append(&mut group.ended) }
        } else if left > 0 {
            let next = Vec::with_capacity(group.ended.len());
            group.going = mem::replace(&mut group.ended, next).into_iter();
            into.extend(group.going.by_ref().take(left));
        }
        let n = into.len() - before;
        if n > 0 && group.open == 0 && group.kept() == 0 {
            // Others wait for what will not come. What a burst took returns.
            (group.members, group.ended, group.going) = Default::default();
            cx.wake(id.key());
        }
        self.kept -= n;
        n
    }

    /// Requests that have not ended, and ends that are not collected.
    pub(super) fn left(&self, id: GroupId) -> (usize, usize) {
        self.get(id).map_or((0, 0), |group| (group.open, group.kept()))
    }

    /// The group is no more; gives its members, of which some may have ended, and how many ends nobody has collected.
    pub(super) fn remove(&mut self, id: GroupId) -> (VecDeque<u32>, usize) {
        if !self.contains(id) {
            return Default::default();
        }
        let group = self.slab.remove(id.slot as usize);
        let kept = group.kept();
        self.kept -= kept;
        (group.members, kept)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::*;
    use super::*;
    use crate::protocol::script::Script;

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn group(s: &mut Script<Req>) -> GroupId {
        s.call(|p, _| p.new_group())
    }

    fn start(s: &mut Script<Req>, group: GroupId, resend: Option<Duration>) -> ReqId {
        s.call(|p, cx| p.open_in(cx, group, "x".into(), resend)).expect("there is room")
    }

    fn answer(s: &mut Script<Req>, pipe: PipeId, ids: impl IntoIterator<Item = ReqId>) {
        let msgs: Vec<Message> = ids
            .into_iter()
            .map(|id| {
                let mut msg = Message::from("y");
                msg.set_header(&[id.word()]);
                msg.joined()
            })
            .collect();
        s.arrive(pipe, msgs);
    }

    fn collect(s: &mut Script<Req>, group: GroupId, max: usize) -> Vec<Reply> {
        let mut got = Vec::new();
        let n = s.call(|p, cx| p.collect(cx, group, &mut got, max));
        assert_eq!(n, got.len());
        got
    }

    fn ids(replies: &[Reply]) -> Vec<ReqId> {
        replies.iter().map(|reply| reply.id).collect()
    }

    #[test]
    fn ends_are_collected_in_the_order_in_which_they_came_and_told_once() {
        let mut s = Script::new(Req::new());
        let pipe = s.open(99);
        let (one, other) = (group(&mut s), group(&mut s));
        let asked: Vec<ReqId> = (0..10).map(|_| start(&mut s, one, MINUTE)).collect();
        let apart = start(&mut s, other, MINUTE);
        answer(&mut s, pipe, asked.iter().rev().copied().take(8));
        assert_eq!(s.woken(), [one.key()], "once for all that are there");
        assert_eq!((s.protocol.left_in(one), s.protocol.left_in(other)), ((2, 8), (1, 0)));
        assert_eq!(s.protocol.poll(asked[9]), None, "it belongs to the group");
        let first = collect(&mut s, one, 3);
        assert!(first.iter().all(|reply| reply.result == Ok("y".into())));
        // Some come while others are being collected: they follow.
        answer(&mut s, pipe, [asked[0]]);
        assert_eq!(s.woken(), [], "there were some");
        let rest = collect(&mut s, one, 99);
        let order: Vec<usize> = (2..10).rev().chain([0]).collect();
        let got = ids(&[first, rest].concat());
        assert_eq!(got, order.iter().map(|at| asked[*at]).collect::<Vec<_>>());
        answer(&mut s, pipe, [asked[1], apart]);
        assert_eq!(s.woken(), [one.key(), other.key()]);
        assert_eq!(ids(&collect(&mut s, one, 1)), [asked[1]]);
        assert_eq!(s.woken(), [one.key()], "nothing is left to wait for");
        assert_eq!((collect(&mut s, one, 9).len(), s.protocol.left_in(one)), (0, (0, 0)));
        assert_eq!((s.protocol.outstanding(), s.all_drops()), (0, 0));
    }

    #[test]
    fn what_nobody_has_collected_counts_as_open() {
        let mut s = Script::new(Req::new().max_open(3));
        let pipe = s.open(99);
        let one = group(&mut s);
        let asked: Vec<ReqId> = (0..3).map(|_| start(&mut s, one, None)).collect();
        answer(&mut s, pipe, asked);
        s.woken();
        let again = |s: &mut Script<Req>| s.call(|p, cx| p.open_in(cx, one, "z".into(), None));
        assert_eq!(again(&mut s), Err(Refused::NotNow("z".into())));
        assert!(!s.readiness().send);
        assert_eq!(collect(&mut s, one, 1).len(), 1);
        assert_eq!(s.woken(), [Req::ROOM]);
        assert!(s.readiness().send);
        assert!(again(&mut s).is_ok());
        assert_eq!(again(&mut s), Err(Refused::NotNow("z".into())));
        s.call(|p, cx| p.remove_group(cx, one));
        assert!(s.readiness().send && s.woken().contains(&Req::ROOM));
    }

    #[test]
    fn a_connection_that_ends_fails_those_that_left_and_no_others() {
        let mut s = Script::new(Req::new());
        let pipe = s.open(99);
        let one = group(&mut s);
        let asked: Vec<ReqId> = (0..3).map(|_| start(&mut s, one, None)).collect();
        s.drain(pipe, 99);
        let unsent = start(&mut s, one, None);
        let again = start(&mut s, one, MINUTE);
        answer(&mut s, pipe, [asked[1]]);
        s.lose(pipe);
        let ends = collect(&mut s, one, 99);
        let lost = ends.iter().filter(|end| end.result == Err(Failed::ConnectionLost));
        let mut lost: Vec<ReqId> = lost.map(|end| end.id).collect();
        lost.sort_unstable();
        assert_eq!((ends.len(), ends[0].id, lost), (3, asked[1], vec![asked[0], asked[2]]));
        let next = s.open(99);
        assert_eq!(s.drain(next, 99).len(), 2);
        answer(&mut s, next, [again, unsent]);
        assert_eq!(ids(&collect(&mut s, one, 99)), [again, unsent]);
    }

    #[test]
    fn a_group_that_is_removed_is_forgotten_with_all_that_is_left_of_it() {
        let mut s = Script::new(Req::new());
        let (one, other) = (group(&mut s), group(&mut s));
        let waits = start(&mut s, one, None); // for a connection
        let pipe = s.open(99);
        let asked: Vec<ReqId> = (0..4).map(|_| start(&mut s, one, MINUTE)).collect();
        let apart = start(&mut s, other, MINUTE);
        answer(&mut s, pipe, [asked[0], asked[1]]);
        assert!(!s.call(|p, cx| p.cancel_in(cx, other, asked[2])), "not of this group");
        assert!(!s.call(|p, cx| p.cancel_in(cx, one, asked[0])), "it has ended");
        assert!(s.call(|p, cx| p.cancel_in(cx, one, asked[3])));
        assert_eq!(s.protocol.left_in(one), (2, 2));
        s.call(|p, cx| p.remove_group(cx, one));
        assert_eq!((s.protocol.outstanding(), s.drops(DropReason::Late)), (1, 2));
        answer(&mut s, pipe, [waits, asked[2], asked[3], apart]);
        assert_eq!(s.drops(DropReason::Late), 5);
        assert_eq!(ids(&collect(&mut s, other, 9)), [apart]);
        // Its place has a new owner; the old name finds nothing.
        let new = group(&mut s);
        assert_ne!(new, one);
        let refused = s.call(|p, cx| p.open_in(cx, one, "z".into(), None));
        assert!(matches!(refused, Err(Refused::Invalid(msg, _)) if msg == "z"));
        s.call(|p, cx| p.remove_group(cx, one));
        assert_eq!((s.protocol.left_in(new), s.protocol.left_in(one)), ((0, 0), (0, 0)));
    }

    #[test]
    fn whoever_waits_is_told_when_the_last_one_was_cancelled() {
        let mut s = Script::new(Req::new());
        let one = group(&mut s);
        let asked = [start(&mut s, one, None), start(&mut s, one, None)];
        assert!(s.call(|p, cx| p.cancel_in(cx, one, asked[0])));
        assert_eq!(s.woken(), []);
        assert!(s.call(|p, cx| p.cancel_in(cx, one, asked[1])));
        assert_eq!(s.woken(), [one.key()]);
    }

    #[test]
    fn memory_follows_what_is_open_however_long_the_oldest_waits() {
        let mut s = Script::new(Req::new());
        let pipe = s.open(99);
        let one = group(&mut s);
        start(&mut s, one, MINUTE);
        for _ in 0..1000 {
            let id = start(&mut s, one, MINUTE);
            s.drain(pipe, 99);
            answer(&mut s, pipe, [id]);
            assert_eq!(ids(&collect(&mut s, one, 9)), [id]);
            let members = s.protocol.groups.get(one).map_or(0, |group| group.members.len());
            assert!(members <= SWEEP + 3, "{members}");
        }
        s.call(|p, cx| p.remove_group(cx, one));
        assert_eq!(s.protocol.outstanding(), 0);
    }

    #[test]
    fn a_batch_leaves_as_a_whole_when_it_is_worth_a_write() {
        let mut s = Script::new(Req::new());
        let pipe = s.open(1000);
        let one = group(&mut s);
        for (many, leaves) in [(63, false), (1, true), (63, false), (200, true)] {
            let ids: Vec<ReqId> = s.call(|p, cx| {
                (0..many).filter_map(|_| p.open_in(cx, one, "x".into(), MINUTE).ok()).collect()
            });
            assert_eq!((ids.len(), s.flushed(pipe)), (many, leaves));
            if leaves {
                s.drain(pipe, 1000);
            }
        }
    }

    /// What the property below does next; numbers choose among what there is.
    #[derive(Clone, Copy, Debug)]
    enum Op {
        Start(usize, bool),
        Cancel(usize, usize),
        Collect(usize, usize),
        Replace(usize),
        Open,
        Lose(usize),
        Drain(usize, usize),
        Answer(usize),
        Advance(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (0usize..3, any::<bool>()).prop_map(|(group, resend)| Op::Start(group, resend)),
            1 => (0usize..3, 0usize..9).prop_map(|(group, at)| Op::Cancel(group, at)),
            2 => (0usize..3, 0usize..5).prop_map(|(group, max)| Op::Collect(group, max)),
            1 => (0usize..3).prop_map(Op::Replace),
            1 => Just(Op::Open),
            1 => (0usize..3).prop_map(Op::Lose),
            3 => (0usize..3, 0usize..4).prop_map(|(pipe, n)| Op::Drain(pipe, n)),
            4 => (0usize..99).prop_map(Op::Answer),
            1 => (0u64..90).prop_map(Op::Advance),
        ];
        proptest::collection::vec(op, 1..120)
    }

    proptest! {
        /// Whatever is started, answered, cancelled, lost and collected in whatever order: each request of a group ends once,
        /// in its group, or is never heard of again; the numbers are right; and no wake-up is missing.
        #[test]
        fn each_request_of_a_group_is_collected_once_and_whoever_waits_is_told(ops in ops(), most in 1usize..12) {
            let mut s = Script::new(Req::new().max_open(most));
            // What of each group was started and neither collected nor cancelled.
            let mut groups: Vec<(GroupId, Vec<ReqId>)> = (0..3).map(|_| (group(&mut s), Vec::new())).collect();
            let mut gone: Vec<ReqId> = Vec::new();
            let (mut pipes, mut seen) = (vec![s.open(3)], Vec::new());
            for op in ops {
                s.woken();
                let before: Vec<_> = groups.iter().map(|(id, _)| (*id, s.protocol.left_in(*id))).collect();
                let was_full = !s.readiness().send;
                match op {
                    Op::Start(at, resend) => {
                        let (id, started) = &mut groups[at];
                        let (id, resend) = (*id, if resend { MINUTE } else { None });
                        match s.call(|p, cx| p.open_in(cx, id, "x".into(), resend)) {
                            Ok(new) => started.push(new),
                            Err(why) => prop_assert!(was_full, "{why:?}"),
                        }
                    }
                    Op::Cancel(at, which) => {
                        let (id, started) = &mut groups[at];
                        if !started.is_empty() {
                            let (id, one) = (*id, started[which % started.len()]);
                            if s.call(|p, cx| p.cancel_in(cx, id, one)) {
                                started.retain(|started| *started != one);
                                gone.push(one);
                            }
                        }
                    }
                    Op::Collect(at, max) => {
                        let (id, started) = &mut groups[at];
                        for end in collect(&mut s, *id, max) {
                            let place = started.iter().position(|started| *started == end.id);
                            prop_assert!(place.is_some(), "{:?} is not of this group, or was collected before", end.id);
                            started.remove(place.unwrap_or(0));
                            gone.push(end.id);
                        }
                    }
                    Op::Replace(at) => {
                        let (id, started) = groups[at].clone();
                        s.call(|p, cx| p.remove_group(cx, id));
                        gone.extend(started);
                        groups[at] = (group(&mut s), Vec::new());
                    }
                    Op::Open => pipes.push(s.open(3)),
                    Op::Lose(at) => {
                        if !pipes.is_empty() {
                            let pipe = pipes.remove(at % pipes.len());
                            seen.retain(|(on, _)| *on != pipe);
                            s.lose(pipe);
                        }
                    }
                    Op::Drain(at, n) => {
                        if !pipes.is_empty() {
                            let pipe = pipes[at % pipes.len()];
                            let ids = s.drain(pipe, n).into_iter().filter_map(|mut msg| msg.pop_word());
                            seen.extend(ids.map(|id| (pipe, ReqId(id))));
                        }
                    }
                    Op::Answer(which) => {
                        // Some of them twice.
                        if !seen.is_empty() {
                            let (pipe, id) = seen[which % seen.len()];
                            answer(&mut s, pipe, [id]);
                        }
                    }
                    Op::Advance(seconds) => s.advance(Duration::from_secs(seconds)),
                }
                let woken = s.woken();
                let mut open = 0;
                for (id, started) in &groups {
                    let (left, kept) = s.protocol.left_in(*id);
                    prop_assert_eq!(left + kept, started.len());
                    open += left;
                    let Some((_, before)) = before.iter().find(|(old, _)| old == id) else { continue };
                    let must = (kept > 0 && before.1 == 0) || ((left, kept) == (0, 0) && *before != (0, 0));
                    prop_assert!(!must || woken.contains(&id.key()), "{op:?}: {before:?} became {:?}", (left, kept));
                }
                prop_assert_eq!(open, s.protocol.outstanding());
                let kept: usize = groups.iter().map(|(id, _)| s.protocol.left_in(*id).1).sum();
                prop_assert!(open + kept <= most);
                prop_assert!(!(was_full && s.readiness().send) || woken.contains(&Req::ROOM), "{op:?}");
            }
            // A peer that answers all: nothing stays behind.
            pipes.drain(..).for_each(|pipe| s.lose(pipe));
            let pipe = s.open(3);
            for _ in 0..=most {
                s.advance(Duration::from_secs(60));
                let ids: Vec<_> = s.drain(pipe, 9).into_iter().filter_map(|mut msg| msg.pop_word()).collect();
                answer(&mut s, pipe, ids.into_iter().map(ReqId));
            }
            for (id, mut started) in groups {
                let mut got = ids(&collect(&mut s, id, usize::MAX));
                got.sort_unstable();
                started.sort_unstable();
                prop_assert_eq!(&got, &started);
                prop_assert!(got.iter().all(|id| !gone.contains(id)), "ended twice");
                s.call(|p, cx| p.remove_group(cx, id));
            }
            prop_assert_eq!((s.protocol.outstanding(), s.protocol.held(), s.protocol.table.len), (0, 0, 0));
            prop_assert!(s.protocol.groups.slab.is_empty());
        }
    }
}
