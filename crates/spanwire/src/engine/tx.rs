//! The writing side of a pipe: what its writer has taken and not yet written, and when to write.
//!
//! One thread at a time is a pipe's writer: it takes the [`Writer`] out of the pipe, unlocks, writes, and puts
//! it back. Others only append. A lone message is written at once by its sender; a sender that comes back sooner than
//! its last write took, several times in a row, is *hot*: then messages gather and leave [`FLUSH_AT`] bytes at a
//! time ([`FLUSH_MIDDLE_AT`] when that is few messages, [`FLUSH_LARGE_AT`] of large bodies), and the driver minds the
//! pipe until it is quiet. One that was hot a moment ago is again at its second message.
//!
//! Owns: the writer and its unfinished bytes. Never: locks, or decides which pipe gets a message.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::time::{Duration, Instant};

use super::contain::contain;
use crate::Message;
use crate::protocol::Reason;
use crate::queue::{Frames, Outbound, SEGMENTS, give_back};
use crate::transport::{MessageWriter, StreamWriter};
use crate::wire::Encoder;

/// A hot sender writes when this much has gathered that is copied, in bytes, and half as many messages as its queue may
/// hold: another batch then has room while this one is written.
pub(super) const FLUSH_AT: usize = 32 * 1024;
/// The same however much room is left. Messages of 1 KiB went a third faster than with 32 KiB, since a write wakes the
/// peer; with 128 KiB they were slower again.
const FLUSH_MIDDLE_AT: usize = 96 * 1024;
/// The same with large bodies, which are not: a write wakes the peer, and that costs as much whatever it brings.
const FLUSH_LARGE_AT: usize = 256 * 1024;
/// Messages for a busy peer in the process are handed over so many at a time.
const HAND_OVER_AT: usize = 64;
/// What a backlog took is given back when it has shrunk to so many messages.
const SPARE: usize = 1024;
/// What a row of quick returns, or bytes that gathered, made of a sender is forgotten after a pause of this long.
pub(super) const FORGET: Duration = Duration::from_millis(5);
/// More quick returns than this make a sender hot.
pub(super) const STREAK: u32 = 4;
/// As many as count.
pub(super) const MOST: u32 = 2 * STREAK;
/// More than this, without one that was not quick, make it steady: requests of some size, each sent soon after the last
/// was answered, come back quickly as often as not.
const STEADY: u32 = 32;

/// The streak of a sender that comes back after `gap`; its last write took `cost`. A pause weakens it: the first message
/// after one leaves at once whatever was before, but the next finds a sender that was hot a moment ago hot again.
pub(super) fn streak(before: u32, gap: Duration, cost: Duration) -> (u32, bool) {
    if gap < cost {
        let now = (before + 1).min(MOST);
        (now, now > STREAK)
    } else if gap < FORGET {
        (before / 2, false)
    } else {
        (0, false)
    }
}

/// How a pipe's bytes leave, with what was taken from its queue and not yet written.
pub(crate) enum Writer {
    /// Length-prefixed frames, encoded in place.
    Framed { stream: Box<dyn StreamWriter>, current: Frames, reply: Vec<u8> },
    /// The wire's own encoder.
    Encoded {
        stream: Box<dyn StreamWriter>,
        encoder: Box<dyn Encoder>,
        bytes: Vec<u8>,
        at: usize,
        messages: usize,
    },
    /// Whole messages.
    Messages { pipe: Box<dyn MessageWriter>, batch: VecDeque<Message> },
}

/// What a write achieved.
pub(crate) enum Wrote {
    All,
    /// To a peer that has not taken yet what was sent before.
    AllToBusy,
    Some,
}

impl Writer {
    /// Takes what has gathered, if nothing is left from before. `control` and `reply` go first.
    ///
    /// # Errors
    /// The wire's encoder panicked.
    pub(crate) fn load(
        &mut self,
        out: &mut Outbound,
        control: &mut Vec<(bool, Vec<u8>)>,
        replies: &mut Vec<u8>,
    ) -> io::Result<()> {
        match (self, out) {
            (Writer::Framed { current, reply, .. }, Outbound::Framed(frames)) => {
                if current.is_empty() {
                    reply.append(replies);
                    std::mem::swap(current, frames);
                }
                control.clear();
            }
            (Writer::Encoded { encoder, bytes, at, messages, .. }, Outbound::Messages(batch))
                if *at == bytes.len() =>
            {
                bytes.clear();
                *at = 0;
                bytes.append(replies);
                *messages = batch.len();
                let encoded = contain(|| {
                    for (subscribe, topic) in control.drain(..) {
                        encoder.control(subscribe, &topic, bytes);
                    }
                    encoder.output(&mut batch.messages, bytes);
                    Ok(())
                });
                batch.messages.clear();
                batch.bytes = 0;
                return encoded;
            }
            (Writer::Messages { batch, .. }, Outbound::Messages(queue)) => {
                if batch.is_empty() {
                    std::mem::swap(batch, &mut queue.messages);
                    queue.bytes = 0;
                }
                control.clear();
                replies.clear();
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether bytes leave, as against whole messages.
    pub(crate) fn is_stream(&self) -> bool {
        !matches!(self, Writer::Messages { .. })
    }

    /// Messages and bytes taken and not yet written.
    pub(crate) fn taken(&self) -> (usize, usize) {
        match self {
            Writer::Framed { current, reply, .. } => (current.len(), current.bytes() + reply.len()),
            Writer::Encoded { bytes, at, messages, .. } => {
                if *at == bytes.len() {
                    (0, 0)
                } else {
                    (*messages, bytes.len() - at)
                }
            }
            Writer::Messages { batch, .. } => (batch.len(), batch.iter().map(|m| m.wire_len()).sum()),
        }
    }

    /// Whether a message was written in part, so that nobody can have it back.
    pub(crate) fn has_begun(&self) -> bool {
        match self {
            Writer::Framed { current, .. } => current.has_begun(),
            // Encoded ones all count as begun and stay counted in `taken`; whole messages are never in part.
            Writer::Encoded { .. } | Writer::Messages { .. } => false,
        }
    }

    /// Writes once. `WouldBlock`: an edge will tell of room.
    pub(crate) fn write(&mut self) -> io::Result<Wrote> {
        contain(|| self.write_once())
    }

    fn write_once(&mut self) -> io::Result<Wrote> {
        match self {
            Writer::Framed { stream, current, reply } => {
                if !reply.is_empty() {
                    let n = some(stream.write(reply)?)?;
                    reply.drain(..n);
                    return Ok(if reply.is_empty() && current.is_empty() { Wrote::All } else { Wrote::Some });
                }
                let n = match current.contiguous() {
                    Some([]) => 0,
                    Some(bytes) => some(stream.write(bytes)?)?,
                    None => {
                        let mut slices = [IoSlice::new(&[]); SEGMENTS];
                        let filled = current.segments(&mut slices);
                        some(stream.write_vectored(&slices[..filled])?)?
                    }
                };
                current.advance(n);
                Ok(if current.is_empty() { Wrote::All } else { Wrote::Some })
            }
            Writer::Encoded { stream, bytes, at, .. } => {
                if *at < bytes.len() {
                    *at += some(stream.write(&bytes[*at..])?)?;
                }
                Ok(if *at == bytes.len() { Wrote::All } else { Wrote::Some })
            }
            Writer::Messages { pipe, batch } => {
                let behind = pipe.send(batch)?;
                if batch.len() <= SPARE {
                    give_back(batch); // before the transport takes its buffer over with the rest
                }
                if batch.is_empty() && behind {
                    Ok(Wrote::AllToBusy)
                } else if batch.is_empty() {
                    Ok(Wrote::All)
                } else {
                    Err(ErrorKind::WouldBlock.into())
                }
            }
        }
    }

    /// On a writable edge: a transport that buffers (TLS) may have something left although we do not.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Writer::Framed { stream, .. } | Writer::Encoded { stream, .. } => contain(|| stream.flush()),
            Writer::Messages { .. } => Ok(()),
        }
    }

    /// Ends the sending direction. `false`: the transport has something left, and is to be asked again.
    pub(crate) fn shutdown(&mut self) -> bool {
        let over = contain(|| match self {
            Writer::Framed { stream, .. } | Writer::Encoded { stream, .. } => stream.shutdown(),
            Writer::Messages { pipe, .. } => pipe.shutdown(),
        });
        over.unwrap_or(true) // its failure changes nothing: the connection is at its end
    }

    /// Gives the buffers of a writer with nothing to write back.
    fn release(&mut self) {
        match self {
            Writer::Framed { current, .. } => current.release(),
            Writer::Encoded { bytes, at, .. } if *at == bytes.len() => (*bytes, *at) = (Vec::new(), 0),
            Writer::Messages { batch, .. } if batch.is_empty() => *batch = VecDeque::new(),
            _ => {}
        }
    }

    fn reclaim(&mut self) -> Option<Message> {
        match self {
            Writer::Framed { current, .. } => current.reclaim(),
            // Once encoded, a foreign wire's bytes cannot be told apart: they count as begun.
            Writer::Encoded { .. } => None,
            Writer::Messages { batch, .. } => batch.pop_front(),
        }
    }
}

fn some(n: usize) -> io::Result<usize> {
    if n == 0 { Err(ErrorKind::WriteZero.into()) } else { Ok(n) }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer(taken: {:?})", self.taken())
    }
}

/// Writing state of a pipe.
#[derive(Debug, Default)]
pub(crate) struct Tx {
    /// Absent while a thread writes with it.
    pub(crate) writer: Option<Box<Writer>>,
    /// A thread is in `write`; it looks at the queue again when it returns.
    pub(crate) writing: bool,
    /// The kernel is full: the next WRITABLE edge is awaited.
    pub(crate) blocked: bool,
    /// A WRITABLE edge arrived since the writer began: it would be lost if the writer then said "blocked".
    pub(crate) writable: bool,
    /// Bytes were left to gather; the driver minds them.
    pub(crate) left: bool,
    pub(crate) asked: bool,
    /// Bytes to answer the peer's wire with.
    pub(crate) reply: Vec<u8>,
    /// The pipe is to be closed as soon as its writer is back; `true`: let the peer read to the end.
    pub(crate) dying: Option<Box<(Reason, bool)>>,
    /// The reading side found the peer gone: to be told as soon as the writer is back.
    pub(crate) ending: Option<Box<Reason>>,
    /// Token of the connection in the event loop.
    pub(crate) token: usize,
    /// Appends so far, and at the driver's last visit.
    pub(crate) appended: u64,
    pub(crate) seen: u64,
    /// The peer of a message pipe is behind: it has something to take, so messages may gather.
    pub(crate) busy_peer: bool,
    streak: u32,
    /// Quick returns in a row.
    quick: u32,
    last: Option<(Instant, Duration)>,
}

impl Tx {
    /// What the dead pipe's writer had taken and not begun.
    pub(crate) fn reclaim(&mut self) -> Option<Message> {
        self.writer.as_mut()?.reclaim()
    }

    /// Whether so much has gathered that it is to be written. `most`: so many messages may be queued.
    #[inline]
    pub(crate) fn is_due(&self, out: &Outbound, most: usize) -> bool {
        (out.copied() >= FLUSH_AT && (out.len() >= most / 2 || out.copied() >= FLUSH_MIDDLE_AT))
            || out.bytes() >= FLUSH_LARGE_AT
            || (self.busy_peer && out.len() >= HAND_OVER_AT)
    }

    /// Whether another message just joins those that are there: the writer looks again when it returns, an edge is
    /// awaited, or the driver minds the pipe and it is not yet time.
    #[inline]
    pub(crate) fn gathers(&self, out: &Outbound, most: usize) -> bool {
        self.writing || self.blocked || (self.left && self.asked && !self.is_due(out, most))
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.writer.as_ref().is_some_and(|w| w.is_stream())
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.writer.as_ref().is_some_and(|w| w.has_begun())
    }

    pub(crate) fn release(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.release();
        }
    }

    /// `paid`: it took a good many messages that had gathered.
    pub(crate) fn wrote(&mut self, began: Instant, ended: Instant, paid: bool) {
        self.last = Some((ended, ended.saturating_duration_since(began)));
        if paid {
            self.streak = MOST;
        }
    }

    /// The sender came back sooner than the last write took, several times in a row: batching pays.
    /// `expects`: the protocol has more at hand to answer. Then a short pause does not count, if the last write was of
    /// many: the sender has waited for just that.
    pub(crate) fn hot(&mut self, now: Instant, expects: bool) -> bool {
        let Some((ended, cost)) = self.last else { return false };
        let gap = now.saturating_duration_since(ended);
        if expects && self.streak == MOST && gap < FORGET {
            return true;
        }
        self.quick = if gap < cost { self.quick.saturating_add(1) } else { 0 };
        let (streak, hot) = streak(self.streak, gap, cost);
        self.streak = streak;
        hot
    }

    /// The same for so long that more is as good as sure to follow.
    pub(crate) fn steady(&mut self, now: Instant) -> bool {
        self.hot(now, false) && self.quick > STEADY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_short_pause_more_that_is_expected_gathers_only_if_many_did_before() {
        let (at, cost, pause) = (Instant::now(), Duration::from_micros(5), Duration::from_micros(50));
        for (paid, pause, expects, hot) in [
            (true, pause, true, true),
            (true, pause, false, false), // a lone message
            (false, pause, true, false), // the last one left alone as well
            (true, FORGET, true, false),
        ] {
            let mut tx = Tx::default();
            tx.wrote(at - cost, at, paid);
            assert_eq!(tx.hot(at + pause, expects), hot, "{paid} {pause:?} {expects}");
        }
        // Who then comes back slowly is cold at once.
        let mut tx = Tx::default();
        tx.wrote(at - cost, at, true);
        assert!(!tx.hot(at + pause, false));
        assert!(!tx.hot(at + pause * 2, true));
    }
}
