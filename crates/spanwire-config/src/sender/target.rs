//! Which of the current HEADs a node is to get: the newest that is for it.
//!
//! While a rollout is open two HEADs are current, each with its state: the newest for all, and the canary's. Owns: the
//! choice, by labels and id in HELLO and by what was refused; what is taken back when an audience changes or ends.
//! Never: membership itself.

use spanwire::protocol::{Cx, PipeId};

use super::Namespace;
use super::cursor::Cursor;
use crate::authority::CohortNode;
use crate::faults::planted;
use crate::rollout::admits;
use crate::wire::NodeKind;
use crate::{Head, Position, State};

/// What a beacon shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    One(Which),
    Both,
}

/// One of the current states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    All = 0,
    Canary = 1,
}

impl Namespace {
    /// The newest HEAD that is for all; `None` before the first.
    pub fn head_for_all(&self) -> Option<&Head> {
        self.published.as_ref().map(|(head, _)| head)
    }

    /// The HEAD of the open rollout.
    pub fn canary(&self) -> Option<&Head> {
        self.canary.as_ref().map(|(head, _)| head)
    }

    pub(super) fn newest(&self) -> Option<&(Head, State)> {
        self.canary.as_ref().or(self.published.as_ref())
    }

    pub(super) fn current(&self, which: Which) -> Option<&(Head, State)> {
        match which {
            Which::All => self.published.as_ref(),
            Which::Canary => self.canary.as_ref(),
        }
    }

    pub(super) fn target(&self, cursor: &Cursor) -> Which {
        let Some((head, _)) = &self.canary else { return Which::All };
        let refused = cursor.refused.contains(&head.position) && !planted("resend-refused");
        let meant = match cursor.hello.kind {
            NodeKind::Replica => {
                admits(&head.audience, cursor.node(), &cursor.hello.labels) || planted("canary-for-everybody")
            }
            NodeKind::Relay => self.has_for_all(cursor) || planted("canary-without-for-all"),
        };
        if meant && !refused { Which::Canary } else { Which::All }
    }

    /// A relay holds both states, one on top of the other: first what is for all.
    fn has_for_all(&self, cursor: &Cursor) -> bool {
        let has = cursor.sent.map(|sent| sent.base.position).or(cursor.floor);
        let all = self.published.as_ref().map(|(head, _)| head.position);
        all.zip(has).is_some_and(|(all, has)| all <= has)
    }

    /// The HEADs that a node is shown: a relay all, whatever it has.
    pub(super) fn shown_to(&self, cursor: &Cursor) -> Shown {
        match (cursor.hello.kind, &self.canary) {
            (NodeKind::Relay, Some(_)) => Shown::Both,
            _ => Shown::One(self.target(cursor)),
        }
    }

    /// The replicas of a cohort, here and behind relays.
    pub fn cohort(&self, at: Position, audience: &bytes::Bytes) -> Vec<CohortNode> {
        self.nodes.cohort(at, audience)
    }

    /// The newest has another audience: more nodes, or all.
    pub(super) fn show_to(&mut self, cx: &mut Cx<'_>, head: Head) {
        let Some((_, state)) = self.canary.take_if(|(old, _)| old.shown() == head.shown()) else { return };
        self.take_back();
        let head = self.issue(head);
        let position = head.position;
        let slot = if head.audience.is_empty() { &mut self.published } else { &mut self.canary };
        *slot = Some((head, state));
        let pipes: Vec<PipeId> = self.cursors.keys().collect();
        for pipe in &pipes {
            let holds = |cursor: &Cursor| cursor.sent.is_some_and(|sent| sent.base.position == position);
            // It has the content already.
            if self.cursors.get(*pipe).is_some_and(holds) {
                self.beacon_now(cx, *pipe);
            }
        }
        self.work.extend(pipes);
    }

    /// What is encoded for a cohort, or on its way, is of a HEAD that is not current any more.
    pub(super) fn take_back(&mut self) {
        self.deltas.clear();
        self.snapshots[Which::Canary as usize] = None;
        let under_way = |cursor: &Cursor| {
            cursor.sending.as_ref().is_some_and(|sending| !sending.payload.head().audience.is_empty())
        };
        let pipes: Vec<PipeId> =
            self.cursors.iter().filter(|(_, cursor)| under_way(cursor)).map(|(pipe, _)| pipe).collect();
        for pipe in pipes {
            if let Some(cursor) = self.cursors.get_mut(pipe) {
                cursor.sending = None;
            }
            self.release(pipe);
            self.work.push_back(pipe);
        }
    }
}
