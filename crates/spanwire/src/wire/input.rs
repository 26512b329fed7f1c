//! What a decoder reads from: the bytes of a connection that were not consumed yet.
//!
//! Hides where they lie, so that the engine can read small frames through one buffer that all pipes share
//! and a large frame straight into its final place. Never: grows on a peer's word; [`Input::need`] is a hint, and memory
//! follows the bytes that arrive.

use bytes::Bytes;

use crate::Message;

/// Bytes received and not consumed.
#[derive(Debug)]
pub struct Input<'a> {
    source: Source<'a>,
    at: usize,
    need: usize,
}

#[derive(Debug)]
enum Source<'a> {
    /// Part of a buffer that is used again: bodies are copied out.
    Lent(&'a [u8]),
    /// A frame's own buffer: a large body is taken over.
    Own(Bytes),
}

impl<'a> Input<'a> {
    /// Reads from `bytes`; bodies are copied.
    pub fn new(bytes: &'a [u8]) -> Self {
        Input { source: Source::Lent(bytes), at: 0, need: 0 }
    }

    pub(crate) fn own(bytes: Bytes) -> Self {
        Input { source: Source::Own(bytes), at: 0, need: 0 }
    }

    /// All that is there.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Lent(b) => &b[self.at..],
            Source::Own(b) => &b[self.at..],
        }
    }

    /// Number of bytes that are there.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether nothing is there.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Consumes `n` bytes, or all if there are fewer.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        self.at += n.min(self.len());
    }

    /// Consumes `n` bytes as the body of a message; `None`, and nothing consumed, when there are fewer.
    #[inline]
    pub fn message(&mut self, n: usize) -> Option<Message> {
        let msg = match &self.source {
            Source::Lent(b) => Message::from_slice(b.get(self.at..self.at.checked_add(n)?)?),
            // A small one must not pin the whole.
            Source::Own(b) if n < b.len() / 2 => {
                Message::from_slice(b.get(self.at..self.at.checked_add(n)?)?)
            }
            Source::Own(b) if self.at.checked_add(n)? <= b.len() => {
                Message::from_bytes(b.slice(self.at..self.at + n))
            }
            Source::Own(_) => return None,
        };
        self.at += n;
        Some(msg)
    }

    /// The same into an empty message, if that is quicker.
    #[inline]
    pub(super) fn fill(&mut self, msg: &mut Message, n: usize) -> bool {
        let Source::Lent(b) = &self.source else { return false };
        let filled = msg.fill(&b[self.at..], n);
        self.at += if filled { n } else { 0 };
        filled
    }

    /// Says that nothing more can be decoded before `total` bytes, from here on, are there. A hint: it lets
    /// the engine read a large frame into one place.
    pub fn need(&mut self, total: usize) {
        self.need = total;
    }

    /// Bytes consumed so far, and the hint.
    pub(crate) fn done(&self) -> (usize, usize) {
        (self.at, self.need)
    }
}
