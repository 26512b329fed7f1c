//! What nodes say of a namespace: what they have, want, reached and refuse.
//!
//! Owns: how each word moves a cursor. Never: a verdict on what the log does not know.

use std::sync::Arc;

use spanwire::protocol::{Cx, DropReason, PipeId};

use super::Namespace;
use super::claims::Side;
use super::cursor::Standing;
use crate::faults::planted;
use crate::wire::{Ack, Hello, Nack, NackCode, NamespaceStatus, Want, WantReason};
use crate::{Head, Id, Position, Shown};

impl Namespace {
    /// Compares what a node showed with the log, and sets its cursor.
    pub(super) fn reassess(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        let (cluster, namespace) = (self.settings.cluster, &self.settings.namespace);
        cursor.have.take_if(|have| have.cluster != cluster || have.namespace != *namespace);
        let (node, Some(have)) = (cursor.node(), cursor.have.clone()) else {
            return self.stand(cx, pipe, Standing::Clear, None);
        };
        let known = self.known(have.position).filter(|known| known.base.chain == have.chain);
        let standing = if known.is_some() { Standing::Clear } else { Standing::Unjudged };
        self.stand(cx, pipe, standing, known);
        self.note_unplaced(pipe);
        self.show(cx, node, have, standing == Standing::Unjudged);
    }

    /// The cursor of a pipe starts again at `shown`.
    pub(super) fn stand(&mut self, cx: &mut Cx<'_>, pipe: PipeId, standing: Standing, shown: Option<Shown>) {
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        let before = std::mem::replace(&mut cursor.standing, standing);
        let unfinished = cursor.sending.take().filter(|_| planted("want-keeps-transfer"));
        cursor.restart(shown);
        cursor.sending = unfinished;
        if standing == Standing::Conflict && before != standing {
            cx.count("conflicts", 1);
        }
        // Until it is judged, it stands as it stood.
        if standing != Standing::Unjudged {
            self.nodes.conflict(cursor.node(), standing == Standing::Conflict);
        }
        if standing != Standing::Unjudged || self.passes {
            for ack in std::mem::take(&mut cursor.acks) {
                self.on_ack(cx, pipe, ack);
            }
        }
        self.release(pipe);
        cx.wake(self.wait_key());
    }

    /// Notes what a node showed, for who decides.
    pub(super) fn show(&mut self, cx: &mut Cx<'_>, node: Id, head: Head, waits: bool) {
        match self.shown.get(&node) {
            Some((_, true)) => return,
            None if self.shown.len() >= self.settings.nodes => return cx.count("shown-too-many", 1),
            _ => {}
        }
        self.shown.insert(node, (head, waits));
        cx.wake(self.shown_key());
        if self.passes {
            // A relay waits for all news from below in one place.
            cx.wake(self.wait_key());
        }
    }

    /// What WELCOME says of the namespace.
    pub(super) fn told(&self) -> NamespaceStatus {
        match self.published {
            Some(_) => NamespaceStatus::Known,
            // A relay gets it from above; an authority waits for its operator.
            None if self.passes => NamespaceStatus::Pending,
            None => NamespaceStatus::Vacant,
        }
    }

    /// This pipe wants the namespace.
    pub(super) fn is_wanted(&self, pipe: PipeId) -> bool {
        self.cursors.get(pipe).is_some_and(|cursor| cursor.wants)
    }

    /// A node said who it is. In a namespace that it does not want it counts only if it was there before. `old`: the
    /// other that it was on this pipe. `false`: there is no room for one more node.
    pub(super) fn said_hello(
        &mut self,
        cx: &mut Cx<'_>,
        pipe: PipeId,
        (hello, window): (&Arc<Hello>, u64),
        wants: bool,
        old: Option<Id>,
    ) -> bool {
        if let Some(old) = old {
            self.nodes.left(old, pipe, cx.now());
        }
        if let Some(cursor) = self.cursors.get_mut(pipe) {
            (cursor.hello, cursor.window) = (hello.clone(), window);
        }
        if !wants && !self.is_wanted(pipe) && self.nodes.boot(hello.node).is_none() {
            return true;
        }
        cx.wake(self.wait_key());
        self.nodes.enter(hello, pipe, cx.now(), wants).is_ok()
    }

    /// A want, in HELLO or after it, of who said `hello`. `false`: there is no room for one more node.
    pub(super) fn on_want(
        &mut self,
        cx: &mut Cx<'_>,
        pipe: PipeId,
        (hello, window): (&Arc<Hello>, u64),
        reason: WantReason,
        want: Want,
    ) -> bool {
        let known = self.nodes.boot(hello.node).is_some();
        if !known && self.nodes.enter(hello, pipe, cx.now(), false).is_err() {
            return false;
        }
        self.enter(pipe, hello, window);
        let Some(cursor) = self.cursors.get_mut(pipe) else { return false };
        cursor.wants = true;
        cursor.refused = match reason {
            WantReason::Retry => Vec::new(),
            _ => want.refused.iter().map(|(position, _)| *position).collect(),
        };
        cursor.have = want.have.into_iter().next();
        cursor.force = reason == WantReason::Digest;
        cursor.stays_at = None;
        self.nodes.moved(cursor.node(), cursor.hello.boot, pipe);
        self.reassess(cx, pipe);
        true
    }

    pub(super) fn on_nack(&mut self, cx: &mut Cx<'_>, pipe: PipeId, nack: Nack) {
        let stays_at = self.known(nack.stays_at);
        let counts = self.is_refusal(nack.claim());
        let newer = self.head().is_some_and(|h| h.position.epoch.number > nack.position.epoch.number);
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        if !counts {
            cx.count("refusals-unproved", 1);
        }
        self.nodes.refused(cursor.node(), cursor.hello.boot, &nack, counts);
        match nack.code {
            NackCode::Hook => {}
            // What is served is of a higher epoch: it ends the conflict, so the node must get it.
            NackCode::Conflict if newer => {
                self.nodes.conflict(cursor.node(), cursor.standing == Standing::Conflict);
            }
            NackCode::Conflict => self.stand(cx, pipe, Standing::Conflict, None),
            // Said again on a new pipe: HELLO or WANT named it, so the cursor is right already.
            _ if cursor.refused.contains(&nack.position) => {}
            _ => {
                cursor.refuse(nack.position);
                let stays = cursor.acked.filter(|a| a.base.position == nack.stays_at).or(stays_at);
                let stays = if planted("nack-keeps-cursor") { cursor.sent } else { stays };
                cursor.restart(stays);
                cursor.stays_at = (cursor.standing == Standing::Unjudged).then_some(nack.stays_at);
                cursor.floor = (nack.stays_at != Position::default()).then_some(nack.stays_at);
                self.release(pipe);
            }
        }
        cx.wake(self.wait_key());
    }

    pub(super) fn on_ack(&mut self, cx: &mut Cx<'_>, pipe: PipeId, ack: Ack) {
        let side = self.side(ack.claim());
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        // What it was sent, or what it showed and was found to be of this history, may be below what the log reaches. Who
        // showed nothing has what was sent to it, and no more.
        let has = cursor.acknowledge(ack.claim()) || side == Side::Ours && cursor.floor.is_some();
        if !cursor.wants || cursor.standing == Standing::Unjudged && !self.passes {
            // It tells of what is shown, or is about to be: the one stands or falls with the other.
            if cursor.keep(ack) {
                cx.dropped(Some(pipe), DropReason::Own("ack-too-many"));
            }
            return;
        }
        if !has && !self.passes {
            let other = if side == Side::Other { "ack-of-another-history" } else { "ack-of-unknown" };
            return cx.dropped(Some(pipe), DropReason::Own(other));
        }
        self.nodes.acknowledged(cursor.node(), cursor.hello.boot, &ack);
        cx.wake(self.wait_key());
    }
}
