//! A state sent up, to an authority that lost its own: what is visible here, as a SNAPSHOT.
//!
//! Owns: one such transfer, within the credit that the server gives. Never: a state other than the one asked for.

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId};

use super::Replica;
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

impl Replica {
    pub(super) fn on_offer(&mut self, cx: &mut Cx<'_>, pipe: PipeId, namespace: &str, position: Position) {
        let asked = self.visible.as_ref().filter(|held| held.head.position == position);
        let Some(held) = asked.filter(|_| namespace == self.settings.namespace) else {
            // The server waits for a while, and asks another node.
            return cx.dropped(Some(pipe), DropReason::Own("offer-of-what-is-not-held"));
        };
        let (head, bytes) = (held.head.clone(), Bytes::from(encode_state(&held.state)));
        self.upload = Some(Upload { pipe, head, bytes, offset: 0 });
        self.send_up(cx);
    }

    /// The server has taken this much of what was sent up on the pipe, and not more than that.
    pub(super) fn on_credit(&mut self, cx: &mut Cx<'_>, pipe: PipeId, taken: u64) {
        if let Some(up) = self.pipes.get_mut(pipe) {
            up.taken_up = up.taken_up.max(taken);
        }
        self.send_up(cx);
    }

    /// As much as there is credit and room for.
    pub(super) fn send_up(&mut self, cx: &mut Cx<'_>) {
        while let Some(upload) = &mut self.upload {
            let Some(up) = self.pipes.get_mut(upload.pipe) else {
                self.upload = None;
                return;
            };
            if up.sent_up - up.taken_up >= u64::from(up.window) {
                return;
            }
            let end = upload.bytes.len().min(upload.offset + SLICE);
            let bytes = upload.bytes.slice(upload.offset..end);
            let (length, last, offset) =
                (bytes.len() as u64, end == upload.bytes.len(), upload.offset as u64);
            let slice = Slice { head: upload.head.clone(), base: None, offset, last, bytes };
            if cx.put(upload.pipe, Message::from(Frame::Slice(Box::new(slice)).encode())).is_err() {
                // It goes on when there is room.
                return;
            }
            up.sent_up += length;
            upload.offset = end;
            if last {
                self.upload = None;
            }
        }
    }
}
