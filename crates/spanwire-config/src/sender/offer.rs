//! A state taken from a node, for an authority that has none: OFFER goes down, and a SNAPSHOT comes up.
//!
//! One node is asked at a time. What comes is bounded by the size in the HEAD that the node showed, and credited as it
//! comes. Whether it has the digest that its HEAD names is looked at by who asked.
//!
//! Owns: the transfer from the first slice to the last. Never: an opinion on which state is right.

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId, Time};

use super::Namespace;
use crate::wire::{Frame, Slice, decode_state, snapshot_size};
use crate::{Head, Id, State};

/// A state on its way up.
#[derive(Clone, Debug)]
pub(super) struct Taking {
    node: Id,
    pipe: PipeId,
    head: Head,
    bytes: Vec<u8>,
    /// When the last of it came.
    since: Time,
}

impl Namespace {
    /// Asks this node for the state of its HEAD. A node that is not connected here, directly, has none to give.
    pub(super) fn offer(&mut self, cx: &mut Cx<'_>, node: Id, head: Head) {
        let here = self.cursors.iter_mut().find(|(_, cursor)| cursor.node() == node && cursor.wants);
        let Some((pipe, cursor)) = here else { return self.offered(cx, node, None) };
        cursor.asked = true;
        let offer = Frame::Offer(self.settings.namespace.clone(), head.position);
        if cx.put(pipe, Message::from(offer.encode())).is_err() {
            return self.offered(cx, node, None);
        }
        self.taking = Some(Taking { node, pipe, head, bytes: Vec::new(), since: cx.now() });
    }

    /// It is here, or will not come: for [`take_shown`](Self::take_shown).
    fn offered(&mut self, cx: &mut Cx<'_>, node: Id, state: Option<State>) {
        self.taking = None;
        self.offered = Some((node, state));
        cx.wake(self.shown_key());
    }

    /// The node on this pipe was asked for its state.
    pub(super) fn has_asked(&self, pipe: PipeId) -> bool {
        self.cursors.get(pipe).is_some_and(|cursor| cursor.asked)
    }

    /// A slice from a node that was asked.
    pub(super) fn on_offered(&mut self, cx: &mut Cx<'_>, pipe: PipeId, slice: &Slice) {
        let Some(taking) = self.taking.as_mut().filter(|taking| taking.pipe == pipe) else {
            return cx.dropped(Some(pipe), DropReason::Own("offer-too-late"));
        };
        if slice.offset == 0 {
            taking.bytes.clear();
        }
        let (node, head) = (taking.node, &taking.head);
        let end = taking.bytes.len() as u64 + slice.bytes.len() as u64;
        let fits = slice.base.is_none()
            && slice.head.shown() == head.shown()
            && slice.offset == taking.bytes.len() as u64
            && end <= snapshot_size(head.keys, head.bytes);
        if !fits {
            cx.dropped(Some(pipe), DropReason::Own("offer-out-of-step"));
            return self.offered(cx, node, None);
        }
        taking.bytes.extend_from_slice(&slice.bytes);
        taking.since = cx.now();
        if slice.last {
            let whole = decode_state(&Bytes::from(std::mem::take(&mut taking.bytes))).ok();
            self.offered(cx, node, whole);
        }
    }

    /// The pipe is gone.
    pub(super) fn offer_lost(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        if let Some(node) =
            self.taking.as_ref().filter(|taking| taking.pipe == pipe).map(|taking| taking.node)
        {
            self.offered(cx, node, None);
        }
    }

    /// A node that does not go on is not waited for.
    pub(super) fn offer_tick(&mut self, cx: &mut Cx<'_>) {
        let stall = self.settings.stall;
        let stalled = |taking: &&Taking| cx.now().saturating_since(taking.since) >= stall;
        if let Some(node) = self.taking.as_ref().filter(stalled).map(|taking| taking.node) {
            self.offered(cx, node, None);
        }
    }
}
