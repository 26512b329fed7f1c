//! Length-prefixed frames, encoded in place, with their ends kept.
//!
//! A frame is `prefix`, the length as 64 bits big-endian, header words, body (SP over streams). Small bodies
//! are copied behind one another; a large one stays a shared segment between two runs of bytes, so it is
//! written without a copy. The ends make the queue a queue of *messages*: the oldest can be evicted, and
//! what was not begun can be taken back when the connection dies.
//!
//! Owns: the bytes. Never: writes them, or splits a frame that was begun.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;

use crate::Message;

/// Bodies from this size on are sent by reference: below, a copy costs less than a segment of its own.
const BY_REFERENCE: usize = 16 * 1024;
/// In `ends`: a shared segment follows these bytes.
const LARGE: u32 = 1 << 31;
/// Segments given to one vectored write.
pub(crate) const SEGMENTS: usize = 32;
/// A quiet pipe may keep this much.
const RETAIN: usize = 4 * 1024;
/// Buffers that grew beyond this are given back when they are empty. A thousand messages of 1 KiB fit: where a full queue's
/// buffer was given back each time and grew again, that was mapping and clearing its pages, a third of what such a message
/// cost. A quiet pipe keeps none ([`Frames::release`]).
const KEEP: usize = 1024 * 1024 + 64 * 1024;

#[derive(Clone)]
pub(crate) struct Frames {
    prefix: &'static [u8],
    /// Frames one behind the other, without the large bodies; valid from `start`.
    small: Vec<u8>,
    start: usize,
    /// For each frame its bytes in `small`, and [`LARGE`] if the front of `large` belongs behind them.
    ends: VecDeque<u32>,
    large: VecDeque<Bytes>,
    /// Bytes of the first frame that were already written.
    begun: usize,
    /// Bytes that are left to write.
    bytes: usize,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frames({} frames, {} bytes)", self.ends.len(), self.bytes)
    }
}

impl Frames {
    pub(crate) fn new(prefix: &'static [u8]) -> Self {
        Frames {
            prefix,
            small: Vec::new(),
            start: 0,
            ends: VecDeque::new(),
            large: VecDeque::new(),
            begun: 0,
            bytes: 0,
        }
    }

    pub(crate) fn prefix(&self) -> &'static [u8] {
        self.prefix
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that lie here, as against those of large bodies.
    #[inline]
    pub(crate) fn copied(&self) -> usize {
        self.small.len() - self.start
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    #[inline]
    pub(crate) fn push(&mut self, msg: &Message) {
        let len = msg.wire_len();
        if len >= BY_REFERENCE
            && let Some(body) = msg.shared_body()
        {
            return self.push_large(msg, body.clone());
        }
        let framed = self.prefix.len() + 8 + len;
        self.small.reserve(framed);
        self.small.extend_from_slice(self.prefix);
        self.small.extend_from_slice(&(len as u64).to_be_bytes());
        msg.append_to(&mut self.small);
        self.ends.push_back(framed as u32);
        self.bytes += framed;
    }

    #[cold]
    fn push_large(&mut self, msg: &Message, body: Bytes) {
        let before = self.small.len();
        self.small.extend_from_slice(self.prefix);
        self.small.extend_from_slice(&(msg.wire_len() as u64).to_be_bytes());
        for word in msg.header() {
            self.small.extend_from_slice(&word.to_be_bytes());
        }
        let small = self.small.len() - before;
        self.ends.push_back(small as u32 | LARGE);
        self.bytes += small + body.len();
        self.large.push_back(body);
    }

    /// Size of the first frame: bytes in `small`, bytes of its large segment.
    fn first(&self) -> Option<(usize, usize)> {
        let end = *self.ends.front()?;
        let large = if end & LARGE == 0 { 0 } else { self.large.front().map_or(0, Bytes::len) };
        Some(((end & !LARGE) as usize, large))
    }

    fn pop_first(&mut self) {
        if let Some(end) = self.ends.pop_front() {
            self.start += (end & !LARGE) as usize;
            if end & LARGE != 0 {
                self.large.pop_front();
            }
            self.begun = 0;
        }
        if self.ends.is_empty() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.small.clear();
        if self.small.capacity() > KEEP {
            self.small.shrink_to(KEEP);
        }
        self.ends.clear();
        self.large.clear();
        super::give_back(&mut self.ends);
        super::give_back(&mut self.large);
        (self.start, self.begun, self.bytes) = (0, 0, 0);
    }

    /// Gives the buffers of an empty queue back.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            *self = Frames::new(self.prefix);
        }
    }

    /// Whether it holds on to buffers.
    pub(crate) fn retains(&self) -> bool {
        self.small.capacity() > RETAIN
    }

    /// Whether a part of the first frame was written.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun > 0
    }

    /// Drops the oldest frame if it was not begun; returns the size of its message.
    pub(crate) fn evict(&mut self) -> Option<usize> {
        if self.begun > 0 {
            return None;
        }
        let (small, large) = self.first()?;
        self.bytes -= small + large;
        self.pop_first();
        self.compact();
        Some(small + large - self.prefix.len() - 8)
    }

    /// An evicting sender that never empties its queue would let `small` grow without end.
    fn compact(&mut self) {
        if self.start > 64 * 1024 && self.start * 2 > self.small.len() {
            self.small.drain(..self.start);
            self.start = 0;
        }
    }

    /// Takes the oldest frame back as a message, header and body joined unless the body is large. Skips one
    /// that was begun.
    pub(crate) fn reclaim(&mut self) -> Option<Message> {
        if self.begun > 0 {
            let (small, large) = self.first()?;
            self.bytes -= (small + large).saturating_sub(self.begun);
            self.pop_first();
        }
        let (small, large) = self.first()?;
        self.bytes -= small + large;
        let content = &self.small[self.start + self.prefix.len() + 8..self.start + small];
        let msg = match self.large.front() {
            Some(body) if large > 0 => {
                let words: Vec<u32> =
                    content.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]])).collect();
                let mut msg = Message::from_bytes(body.clone());
                msg.set_header(&words);
                msg
            }
            _ => Message::from_slice(content),
        };
        self.pop_first();
        Some(msg)
    }

    /// The whole as one slice, if no large segment is among it.
    #[inline]
    pub(crate) fn contiguous(&self) -> Option<&[u8]> {
        self.large.is_empty().then(|| &self.small[self.start + self.begun..])
    }

    /// Segments to write next, at most [`SEGMENTS`]; returns how many were filled.
    pub(crate) fn segments<'a>(&'a self, into: &mut [IoSlice<'a>; SEGMENTS]) -> usize {
        let (mut filled, mut run, mut at) = (0, self.start, self.start);
        let (mut large, mut skip) = (self.large.iter(), self.begun);
        for end in &self.ends {
            at += (end & !LARGE) as usize;
            if end & LARGE == 0 {
                continue;
            }
            let Some(body) = large.next() else { break };
            let head = &self.small[run..at];
            let (from, body_from) = (skip.min(head.len()), skip.saturating_sub(head.len()));
            skip = 0;
            for piece in [&head[from..], &body[body_from..]] {
                if !piece.is_empty() {
                    into[filled] = IoSlice::new(piece);
                    filled += 1;
                }
            }
            run = at;
            if filled + 3 > SEGMENTS {
                return filled;
            }
        }
        let tail = &self.small[run..];
        let tail = &tail[skip.min(tail.len())..];
        if !tail.is_empty() {
            into[filled] = IoSlice::new(tail);
            filled += 1;
        }
        filled
    }

    /// `n` bytes of what [`contiguous`](Self::contiguous) or [`segments`](Self::segments) gave were written.
    pub(crate) fn advance(&mut self, n: usize) {
        if n >= self.bytes {
            return self.clear();
        }
        self.bytes -= n;
        self.begun += n;
        while let Some((small, large)) = self.first() {
            if self.begun < small + large {
                break;
            }
            let rest = self.begun - small - large;
            self.pop_first();
            self.begun = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(prefix: &[u8], m: &Message) -> Vec<u8> {
        let mut v = prefix.to_vec();
        v.extend_from_slice(&(m.wire_len() as u64).to_be_bytes());
        m.append_to(&mut v);
        v
    }

    fn message(len: usize, words: u32) -> Message {
        let mut m = Message::from(vec![len as u8; len]);
        m.set_header(&(1..=words).collect::<Vec<_>>());
        m
    }

    fn write(f: &Frames) -> Vec<u8> {
        if let Some(all) = f.contiguous() {
            return all.to_vec();
        }
        let mut slices = [IoSlice::new(&[]); SEGMENTS];
        let n = f.segments(&mut slices);
        slices[..n].iter().flat_map(|s| s.to_vec()).collect()
    }

    proptest! {
        /// However the writes are cut, what leaves is the frames in order.
        #[test]
        fn any_cut_gives_the_same_bytes(
            sizes in proptest::collection::vec((0usize..40_000, 0u32..4), 1..30),
            cuts in proptest::collection::vec(1usize..50_000, 1..400),
        ) {
            let mut f = Frames::new(b"\x01");
            let mut want = vec![];
            for (len, words) in &sizes {
                let m = message(*len, *words);
                want.extend(frame(b"\x01", &m));
                f.push(&m);
            }
            prop_assert_eq!((f.len(), f.bytes()), (sizes.len(), want.len()));
            let (mut got, mut cuts) = (vec![], cuts.iter().cycle());
            while !f.is_empty() {
                let chunk = write(&f);
                let n = chunk.len().min(*cuts.next().unwrap());
                got.extend_from_slice(&chunk[..n]);
                f.advance(n);
                prop_assert_eq!(f.bytes(), want.len() - got.len());
            }
            prop_assert!(got == want);
        }

        /// Evicting and taking back give whole messages, oldest first, and never one that was begun.
        #[test]
        fn what_was_not_begun_comes_back(
            sizes in proptest::collection::vec((0usize..30_000, 0u32..3), 1..12), written in 0usize..60_000,
        ) {
            let mut f = Frames::new(b"");
            let all: Vec<Message> = sizes.iter().map(|(l, w)| message(*l, *w)).collect();
            all.iter().for_each(|m| f.push(m));
            let total = f.bytes();
            let written = written.min(total);
            let mut left = written;
            while left > 0 {
                let n = write(&f).len().min(left);
                f.advance(n);
                left -= n;
            }
            let mut back = vec![];
            while let Some(m) = f.reclaim() { back.push(m.joined()); }
            let (mut sum, mut expect) = (0, vec![]);
            for m in all {
                if sum >= written { expect.push(m.clone().joined()); }
                sum += frame(b"", &m).len();
            }
            prop_assert_eq!(back, expect);
            prop_assert_eq!((f.len(), f.bytes()), (0, 0));
        }
    }

    #[test]
    fn eviction_for_ever_does_not_grow_the_buffer() {
        let mut f = Frames::new(b"");
        let m = message(60, 0);
        for _ in 0..1000 {
            f.push(&m);
        }
        for _ in 0..100_000 {
            assert_eq!(f.evict(), Some(60));
            f.push(&m);
        }
        assert_eq!((f.len(), f.bytes()), (1000, 68_000));
        assert!(f.small.len() < 300_000, "{}", f.small.len());
    }
}
