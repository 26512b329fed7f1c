//! Groups of requests: their ends are collected together, in the order in which they came.
//!
//! A request of a group leaves the table when it ends; its reply waits here, with how many are open yet. Whoever
//! waits is told once for as many as come before he looks: when the first is there, and when nothing is left to wait for.
//!
//! Owns: ends that are not collected. Never: decides how a request ends.

use std::collections::VecDeque;

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

#[derive(Clone, Debug, Default)]
struct Group {
    number: u32,
    /// Requests that have not ended.
    open: usize,
    /// At least those, oldest first.
    members: VecDeque<u32>,
    /// Ends in the order in which they came.
    ended: VecDeque<Reply>,
}

/// The groups of one socket.
#[derive(Clone, Debug, Default)]
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
            if group.ended.is_empty() {
                cx.wake(id.key());
            }
            group.ended.push_back(Reply { id: ReqId(request), result });
            self.kept += 1;
        } else if group.open == 0 && group.ended.is_empty() {
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
        let n = max.min(group.ended.len());
        into.extend(group.ended.drain(..n));
        if n > 0 && group.open == 0 && group.ended.is_empty() {
            // Others wait for what will not come. What a burst took returns.
            (group.members, group.ended) = (VecDeque::new(), VecDeque::new());
            cx.wake(id.key());
        }
        self.kept -= n;
        n
    }

    /// Requests that have not ended, and ends that are not collected.
    pub(super) fn left(&self, id: GroupId) -> (usize, usize) {
        self.get(id).map_or((0, 0), |group| (group.open, group.ended.len()))
    }

    /// The group is no more; gives its members, of which some may have ended, and how many ends nobody has collected.
    pub(super) fn remove(&mut self, id: GroupId) -> (VecDeque<u32>, usize) {
        if !self.contains(id) {
            return Default::default();
        }
        let group = self.slab.remove(id.slot as usize);
        self.kept -= group.ended.len();
        (group.members, group.ended.len())
    }
}
