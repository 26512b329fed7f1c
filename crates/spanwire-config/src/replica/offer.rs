//! A state sent up, to an authority that lost its own: what is visible here, as a SNAPSHOT.
//!
//! Owns: one such transfer of each namespace, within the credit that the server gives. Never: a state other than the one asked for.

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId, PipeMap};

use super::session::Session;
use super::{NsReplica, Replica};
use crate::wire::{Frame, SLICE, Slice, encode_state};
use crate::{Head, Position};

/// A state on its way up.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pipe: PipeId,
    head: Head,
    bytes: Bytes,
    offset: usize,
}

impl NsReplica {
    pub(super) fn on_offer(&mut self, cx: &mut Cx<'_>, pipe: PipeId, position: Position) {
        let Some(held) = self.visible.as_ref().filter(|held| held.head.position == position) else {
            // The server waits for a while, and asks another node.
            return cx.dropped(Some(pipe), DropReason::Own("offer-of-what-is-not-held"));
        };
        let (head, bytes) = (held.head.clone(), Bytes::from(encode_state(&held.state)));
        self.upload = Some(Upload { pipe, head, bytes, offset: 0 });
    }

    /// A slice, if there is credit and room for one. `true`: there may be another.
    fn send_slice(&mut self, cx: &mut Cx<'_>, sessions: &mut PipeMap<Session>) -> bool {
        let Some(upload) = &mut self.upload else { return false };
        let Some(session) = sessions.get_mut(upload.pipe) else {
            self.upload = None;
            return false;
        };
        if !session.may_send_up() {
            return false;
        }
        let end = upload.bytes.len().min(upload.offset + SLICE);
        let bytes = upload.bytes.slice(upload.offset..end);
        let (length, last, offset) = (bytes.len() as u64, end == upload.bytes.len(), upload.offset as u64);
        let slice = Slice { head: upload.head.clone(), base: None, offset, last, bytes };
        if cx.put(upload.pipe, Message::from(Frame::Slice(Box::new(slice)).encode())).is_err() {
            // It goes on when there is room.
            return false;
        }
        session.sent_up += length;
        upload.offset = end;
        self.upload.take_if(|_| last);
        !last
    }
}

impl Replica {
    /// The server has taken this much of what was sent up on the pipe, and not more than that.
    pub(super) fn on_credit(&mut self, cx: &mut Cx<'_>, pipe: PipeId, taken: u64) {
        if let Some(session) = self.sessions.get_mut(pipe) {
            session.taken_up = session.taken_up.max(taken);
        }
        self.send_up(cx);
    }

    /// As much as there is credit and room for, a slice of each namespace in turn.
    pub(super) fn send_up(&mut self, cx: &mut Cx<'_>) {
        let mut more = true;
        while std::mem::take(&mut more) {
            for ns in &mut self.namespaces {
                more |= ns.send_slice(cx, &mut self.sessions);
            }
        }
    }
}
