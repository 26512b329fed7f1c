//! The reading half of a connection: bytes to messages, as many as there is room for.
//!
//! Small frames are read many at a time into a buffer that all pipes of a socket share; a large one is read
//! straight into the buffer that its message will own. Where large ones follow each other, the next is read so from its
//! first byte, on the guess that it is as long as the last.
//!
//! Owns: what was read and not yet decoded. Never: allocates on a peer's word (what a guess is made of has
//! arrived before), or lets a reader's or a decoder's panic out.

use std::io::{ErrorKind, IoSliceMut};

use super::contain::contain;
use crate::message::pool;
use crate::protocol::Reason;
use crate::transport::{MessageReader, StreamReader};
use crate::wire::{Decoder, Inbox, Input, WireError};

/// What is read at once at most, in bytes, into a buffer that all pipes share.
const READ: usize = 256 * 1024;
/// A read is not made for less.
const READ_LEAST: usize = 16 * 1024;
/// A frame of which more than this is missing gets a buffer of its own, read straight into.
const OWN: usize = 32 * 1024;
/// Read behind a large frame: the head of the next, and not so much of its body that copying it would hurt.
const SPILL: usize = 1024;
/// A larger frame is not guessed: that its first [`READ`] bytes are copied is little beside the rest.
const GUESS: usize = 1024 * 1024;
/// When less is missing of a large frame, an event may tell of any of it: nothing is gained with frames of 64 KiB.
const LOW_WATER_LEAST: usize = 64 * 1024;
/// An event is not kept waiting for more: so much the system's buffer must hold, for each connection that has it.
const LOW_WATER_MOST: usize = 1024 * 1024;

pub(crate) enum Rx {
    Stream(StreamRx),
    Messages(Box<dyn MessageReader>),
}

/// The bytes of a stream that are not decoded yet.
pub(crate) struct StreamRx {
    reader: Box<dyn StreamReader>,
    decoder: Box<dyn Decoder>,
    /// What was left of the last read: less than a frame, or all that came while the queue was full.
    partial: Vec<u8>,
    /// A large frame on its way.
    large: Option<Large>,
    /// How long the next frame may be: as long as the last, when that was large. 0: no guess.
    next: usize,
    /// `partial` holds whole frames: decode before reading more.
    undecoded: bool,
    /// A read that came back short has emptied the stream.
    short_is_empty: bool,
    /// The peer has ended its direction: read until that is seen.
    ending: bool,
    recv_max: usize,
    /// Of the messages that came last, framing included, on average.
    message_size: usize,
    /// An event tells of this many bytes.
    low_water: usize,
}

/// A large frame on its way.
struct Large {
    /// Where it goes; from the pool it may be longer.
    buf: Vec<u8>,
    /// How much of it is there.
    have: usize,
    /// How long it will be.
    total: usize,
    /// That is a guess: nothing of it was seen.
    guess: bool,
}

/// What a read found.
pub(crate) enum Filled {
    /// Nothing more until an edge.
    Empty,
    /// There may be more.
    More,
    End(Reason),
}

impl Rx {
    /// Reads what there is, as far as `inbox` has room.
    pub(crate) fn fill(&mut self, scratch: &mut Vec<u8>, inbox: &mut Inbox) -> Filled {
        let filled = contain(|| {
            Ok(match self {
                Rx::Stream(rx) => rx.fill(scratch, inbox),
                Rx::Messages(reader) => match reader.recv(inbox)? {
                    true => Filled::Empty,
                    false => Filled::More,
                },
            })
        });
        match filled {
            Ok(filled) => filled,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Filled::Empty,
            Err(e) => Filled::End(broken(&e)),
        }
    }

    /// Whether there are whole frames that only wait for room.
    pub(crate) fn is_undecoded(&self) -> bool {
        matches!(self, Rx::Stream(rx) if rx.undecoded)
    }

    /// From here on a short read is not taken for an empty stream: an end may lie behind it.
    pub(crate) fn end_is_near(&mut self) {
        if let Rx::Stream(rx) = self {
            rx.end_is_near();
        }
    }

    /// Reads and forgets; `true` at the end of the stream.
    pub(crate) fn drained(&mut self, scratch: &mut Vec<u8>) -> bool {
        const ROUNDS: usize = 16;
        let Rx::Stream(rx) = self else { return true };
        if scratch.is_empty() {
            *scratch = vec![0; READ];
        }
        for _ in 0..ROUNDS {
            match contain(|| rx.reader.read(scratch)) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != ErrorKind::WouldBlock,
            }
        }
        true // a peer that only talks and never listens is not waited for
    }
}

impl StreamRx {
    pub(super) fn new(
        reader: Box<dyn StreamReader>,
        decoder: Box<dyn Decoder>,
        short_is_empty: bool,
        recv_max: usize,
    ) -> Self {
        StreamRx {
            reader,
            decoder,
            partial: Vec::new(),
            large: None,
            next: 0,
            undecoded: false,
            short_is_empty,
            ending: false,
            recv_max,
            message_size: READ,
            low_water: 1,
        }
    }

    pub(crate) fn end_is_near(&mut self) {
        self.ending = true;
    }

    /// What is left belongs to a handshake: it takes more bytes, and no room.
    pub(crate) fn still_greets(&mut self) {
        self.undecoded = false;
    }

    /// The handshake is over: what is left of it may be whole frames.
    pub(crate) fn greeted(&mut self) {
        self.undecoded = !self.partial.is_empty();
    }

    pub(crate) fn fill(&mut self, scratch: &mut Vec<u8>, inbox: &mut Inbox) -> Filled {
        let filled = self.fill_once(scratch, inbox);
        if let Filled::Empty = filled {
            self.await_more();
        }
        filled
    }

    /// Before an event is awaited: it need not tell of less than is missing of a large frame.
    fn await_more(&mut self) {
        let missing = self.large.as_ref().map_or(0, |large| large.total - large.have);
        let low_water = if missing < LOW_WATER_LEAST { 1 } else { missing.min(LOW_WATER_MOST) };
        if std::mem::replace(&mut self.low_water, low_water) != low_water {
            self.reader.set_low_water(low_water);
        }
    }

    fn fill_once(&mut self, scratch: &mut Vec<u8>, inbox: &mut Inbox) -> Filled {
        if scratch.is_empty() {
            *scratch = vec![0; READ]; // mapped, not written: what is never read costs no memory
        }
        if self.large.is_none() && self.next > 0 && self.partial.is_empty() && inbox.wants_more() {
            let (total, buf) = (self.next, pool::take(self.next));
            let buf = buf.unwrap_or_else(|| vec![0; total]);
            self.large = Some(Large { buf, have: 0, total, guess: true });
        }
        if self.large.is_some() {
            let filled = self.fill_large(scratch, inbox);
            if let Some(Large { buf, .. }) = self.large.take_if(|large| large.guess) {
                pool::give(buf); // nothing came
            }
            return filled;
        }
        let keep = self.partial.len();
        if scratch.len() <= keep {
            // Whole messages of a large frame, which wait for room: a read of no bytes would look like an end.
            scratch.resize(keep + READ, 0);
        }
        let mut end = keep;
        let mut filled = Filled::More;
        scratch[..keep].copy_from_slice(&self.partial);
        if !self.undecoded {
            let space = (scratch.len() - keep).min(self.read_size(inbox));
            match self.reader.read(&mut scratch[keep..keep + space]) {
                Ok(0) => return Filled::End(Reason::Peer),
                Ok(n) => {
                    end += n;
                    if n < space && self.short_is_empty && !self.ending {
                        filled = Filled::Empty;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Filled::Empty,
                Err(e) if e.kind() == ErrorKind::Interrupted => return Filled::More,
                Err(e) => return Filled::End(broken(&e)),
            }
        }
        match self.decode(&scratch[..end], scratch.len(), inbox) {
            Some(reason) => Filled::End(reason),
            None => filled,
        }
    }

    /// How much to read: as much as there is room for in the queue, if messages are as large as they were. What is too much
    /// would be copied to and fro until its turn comes.
    fn read_size(&self, inbox: &Inbox) -> usize {
        let room = inbox.budget_messages.saturating_mul(self.message_size).min(inbox.budget_bytes);
        room.clamp(READ_LEAST, READ)
    }

    /// Decodes `bytes`, which lie in a buffer of `full` bytes that others use next, and keeps the rest.
    fn decode(&mut self, bytes: &[u8], full: usize, inbox: &mut Inbox) -> Option<Reason> {
        let mut input = Input::new(bytes);
        let before = inbox.messages.len();
        let result = self.decoder.input(&mut input, inbox);
        let (used, need) = input.done();
        self.learn(inbox.messages.len() - before, used);
        match result {
            Ok(()) => self.keep(&bytes[used..], need, inbox.wants_more(), full),
            Err(e) => Some(wire_reason(e)),
        }
    }

    /// So many messages took so many bytes: what it says of the next.
    fn learn(&mut self, messages: usize, bytes: usize) {
        if let Some(each) = bytes.checked_div(messages) {
            let large = (OWN..=GUESS).contains(&each) && each * messages == bytes;
            self.next = if large { each } else { 0 };
            self.message_size = each;
        }
    }

    /// Keeps what was not consumed, in the place that fits.
    fn keep(&mut self, rest: &[u8], mut need: usize, decoded_all: bool, full: usize) -> Option<Reason> {
        self.partial.clear();
        self.undecoded = !decoded_all && !rest.is_empty();
        if decoded_all && need <= rest.len() && rest.len() > full / 2 {
            need = rest.len() + OWN; // a decoder that gives no hint, and a frame larger than the buffer
        }
        // A little more than the shared buffer holds is large too: with the buffer full there would be no room to
        // read, which looks like the peer's end.
        if decoded_all && need > rest.len() && (need - rest.len() > OWN || need > full) {
            if need > self.recv_max.saturating_add(2 * READ) {
                return Some(Reason::TooBig { size: need as u64, limit: self.recv_max });
            }
            let mut buf = pool::take(need).unwrap_or_default();
            if buf.len() < rest.len() {
                buf.resize(rest.len(), 0);
            }
            buf[..rest.len()].copy_from_slice(rest);
            self.large = Some(Large { buf, have: rest.len(), total: need, guess: false });
            self.partial = Vec::new();
            return None;
        }
        if rest.is_empty() && self.partial.capacity() > OWN {
            self.partial = Vec::new();
        }
        self.partial.extend_from_slice(rest);
        None
    }

    /// Reads on in a large frame, straight into its place; what comes behind it goes to `scratch`, so that a
    /// stream of large frames takes one read for each.
    fn fill_large(&mut self, scratch: &mut [u8], inbox: &mut Inbox) -> Filled {
        let Some(Large { buf, have, total, guess }) = &mut self.large else { return Filled::More };
        if !inbox.wants_more() {
            return Filled::More;
        }
        if *have == buf.len() && buf.len() < *total {
            // Memory follows what has arrived: at most as much again.
            let grown = (*have * 2).max(2 * OWN).min(*total);
            buf.reserve_exact(grown - buf.len());
            buf.resize(grown, 0);
        }
        let end = buf.len().min(*total);
        let space = end - *have;
        let spill = if end == *total { &mut scratch[..SPILL] } else { &mut [] };
        let room = space + spill.len();
        let mut slices = [IoSliceMut::new(&mut buf[*have..end]), IoSliceMut::new(spill)];
        let n = match self.reader.read_vectored(&mut slices) {
            Ok(0) => return Filled::End(Reason::Peer),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Filled::Empty,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Filled::More,
            Err(e) => return Filled::End(broken(&e)),
        };
        let filled =
            if n < room && self.short_is_empty && !self.ending { Filled::Empty } else { Filled::More };
        *have += n.min(space);
        if *have < *total {
            let guess = std::mem::take(guess);
            return if guess { self.check_guess(filled, inbox) } else { filled };
        }
        let Some(Large { buf, total, .. }) = self.large.take() else { return filled };
        let all = pool::lend(buf, total);
        let mut input = Input::own(all.clone());
        let before = inbox.messages.len();
        let result = self.decoder.input(&mut input, inbox);
        let (used, _) = input.done();
        drop(input);
        self.learn(inbox.messages.len() - before, used);
        if let Err(e) = result {
            return Filled::End(wire_reason(e));
        }
        let behind = &scratch[..n - space];
        let ended = if used == all.len() {
            self.decode(behind, READ, inbox)
        } else {
            // Other frames than were guessed, or a decoder that did not take all that it asked for: what is left goes
            // before what came behind, and may be whole with it.
            self.decode(&[&all[used..], behind].concat(), READ, inbox)
        };
        ended.map_or(filled, Filled::End)
    }

    /// Less came than a frame like the last: is it the beginning of one?
    fn check_guess(&mut self, filled: Filled, inbox: &mut Inbox) -> Filled {
        let Some(Large { buf, have, total, .. }) = self.large.take() else { return filled };
        let mut input = Input::new(&buf[..have]);
        let before = inbox.messages.len();
        let result = self.decoder.input(&mut input, inbox);
        let (used, need) = input.done();
        if let Err(e) = result {
            return Filled::End(wire_reason(e));
        }
        if used == 0 && need == total {
            self.large = Some(Large { buf, have, total, guess: false });
            return filled;
        }
        self.learn(inbox.messages.len() - before, used);
        let ended = self.keep(&buf[used..have], need, inbox.wants_more(), READ);
        pool::give(buf);
        ended.map_or(filled, Filled::End)
    }
}

/// The reason in an error of a connection.
pub(crate) fn broken(e: &std::io::Error) -> Reason {
    match e.kind() {
        ErrorKind::UnexpectedEof => Reason::Peer,
        _ => match e.get_ref().and_then(|inner| inner.downcast_ref::<WireError>()) {
            Some(wire) => wire_reason(wire.clone()),
            None => Reason::Broken(e.to_string()),
        },
    }
}

fn wire_reason(e: WireError) -> Reason {
    match e {
        WireError::BadHandshake => Reason::BadHandshake,
        WireError::TooBig { size, limit } => Reason::TooBig { size, limit },
        WireError::BadFrame(why) => Reason::BadFrame(why),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::Message;
    use crate::protocol::ProtocolInfo;
    use crate::wire::{Hello, Side, Sp, Wire};

    /// Receives `sizes` from a stream of which everything is there at once, and tells how it ended.
    fn receive(sizes: &[usize]) -> (Vec<usize>, Reason) {
        receive_in(sizes, &[usize::MAX])
    }

    /// A stream that gives pieces of these lengths, again and again; where one is 0, there is nothing for once.
    struct Pieces<'a> {
        bytes: std::io::Cursor<Vec<u8>>,
        lengths: std::iter::Cycle<std::slice::Iter<'a, usize>>,
        low_water: Arc<Mutex<Vec<usize>>>,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.read_vectored(&mut [IoSliceMut::new(into)])
        }
        fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> std::io::Result<usize> {
            let Some(mut left @ 1..) = self.lengths.next().copied() else {
                return Err(ErrorKind::WouldBlock.into());
            };
            let mut all = 0;
            for slice in into {
                let n = slice.len().min(left);
                let n = self.bytes.read(&mut slice[..n])?;
                (left, all) = (left - n, all + n);
            }
            Ok(all)
        }
    }

    impl StreamReader for Pieces<'_> {
        fn set_low_water(&mut self, bytes: usize) {
            self.low_water.lock().expect("one thread").push(bytes);
        }
    }

    fn receive_in(sizes: &[usize], lengths: &'static [usize]) -> (Vec<usize>, Reason) {
        receive_and_tell(sizes, lengths, &Arc::default())
    }

    /// The same, and notes the low-water marks that were set.
    fn receive_and_tell(
        sizes: &[usize],
        lengths: &'static [usize],
        low_water: &Arc<Mutex<Vec<usize>>>,
    ) -> (Vec<usize>, Reason) {
        let mut bytes = b"\0SP\0\0\x50\0\0".to_vec();
        for size in sizes {
            bytes.extend((*size as u64).to_be_bytes());
            bytes.resize(bytes.len() + size, *size as u8);
        }
        let info = ProtocolInfo::new(0x51, "pull", 0x50, "push");
        let (decoder, _) =
            Box::new(Sp::TCP).start(&Hello::new(info, Side::Listener, 4 << 20, ""), &mut Vec::new());
        let mut rx = StreamRx::new(
            Box::new(Pieces {
                bytes: std::io::Cursor::new(bytes),
                lengths: lengths.iter().cycle(),
                low_water: Arc::clone(low_water),
            }),
            decoder,
            false,
            4 << 20,
        );
        let mut inbox = Inbox::with_budget(1000);
        let mut scratch = Vec::new();
        loop {
            if let Filled::End(reason) = rx.fill(&mut scratch, &mut inbox) {
                assert!(inbox.messages.iter().all(|m| m.iter().all(|b| *b == m.len() as u8)));
                return (inbox.messages.iter().map(Message::len).collect(), reason);
            }
        }
    }

    #[test]
    fn what_is_missing_of_a_large_frame_is_awaited_as_a_whole_and_of_a_guess_nothing() {
        const LARGE: usize = 300_000;
        // That another large one follows is a guess, until its first bytes are there.
        for (sizes, lengths, marks) in [
            // (The second read is as long as what is there: memory follows it.)
            (&[LARGE, 5][..], &[8 + 8 + 100_000, 0][..], &[200_000, 200_000 - 100_008, 1][..]),
            (&[100_000, 5, 5], &[8 + 8 + 100_000, 0, 13, 0], &[]),
            (&[3 << 20, 5], &[3 << 20, 0], &[1 << 20, 1]),
            (&[60_000, 60_000, 5], &[30_000, 0], &[]),
        ] {
            let told = Arc::default();
            assert_eq!(receive_and_tell(sizes, lengths, &told), (sizes.to_vec(), Reason::Peer));
            let told = told.lock().expect("one thread");
            assert_eq!(*told, marks, "{sizes:?}");
        }
    }

    /// Small messages without end; notes how much was asked for.
    struct Endless(Vec<u8>, Arc<Mutex<Vec<usize>>>);

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.1.lock().expect("one thread").push(into.len());
            let n = into.len().min(self.0.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            while self.0.len() < READ {
                self.0.extend(100u64.to_be_bytes());
                self.0.extend([7; 100]);
            }
            Ok(n)
        }
    }

    impl StreamReader for Endless {}

    #[test]
    fn no_more_is_read_than_the_queue_has_room_for() {
        let info = ProtocolInfo::new(0x51, "pull", 0x50, "push");
        let (decoder, _) =
            Box::new(Sp::TCP).start(&Hello::new(info, Side::Listener, 1 << 20, ""), &mut Vec::new());
        let asked = Arc::default();
        let reader = Endless(b"\0SP\0\0\x50\0\0".to_vec(), Arc::clone(&asked));
        let mut rx = StreamRx::new(Box::new(reader), decoder, false, 1 << 20);
        let (mut inbox, mut scratch) = (Inbox::with_budget(4000), Vec::new());
        for budget in [4000, 500, 500, 500, 1] {
            // Until there is no room: what was read and is whole is taken before more is read.
            inbox.budget_messages = budget;
            while inbox.wants_more() {
                assert!(matches!(rx.fill(&mut scratch, &mut inbox), Filled::More));
            }
        }
        let asked = asked.lock().expect("one thread");
        let largest = asked[asked.len() - 3..].iter().max();
        assert!(largest.is_some_and(|n| *n <= 500 * 108), "{asked:?}");
        assert_eq!(inbox.messages.len(), 5501);
    }

    #[test]
    fn a_frame_a_little_larger_than_the_read_buffer_does_not_look_like_an_end() {
        // It filled the buffer, and the next read had no room: 0 bytes, as at the end of a stream.
        let around = [READ - OWN, READ - 8, READ, READ + OWN];
        for size in around.into_iter().flat_map(|at| at - 10..at + 10) {
            let sizes = [size, 3, size, 0];
            assert_eq!(receive(&sizes), (sizes.to_vec(), Reason::Peer), "{size}");
        }
    }

    #[test]
    fn however_long_the_next_frame_is_and_however_it_comes_it_arrives_whole() {
        const LARGE: usize = 50_001;
        const SIZES: [usize; 14] =
            [LARGE, LARGE, LARGE, 3, LARGE, 200_003, LARGE, LARGE, LARGE - 1, LARGE, 1000, 1000, LARGE, 0];
        const WAYS: [&[usize]; 7] = [
            &[usize::MAX],
            &[LARGE + 8],
            &[LARGE + 8, 0],
            &[LARGE + 20, 0],
            &[5, 0, 40_000],
            &[30_000, 0, 7, 100_000],
            &[1, 2, 3, 0, 500_000],
        ];
        for way in WAYS {
            assert_eq!(receive_in(&SIZES, way), (SIZES.to_vec(), Reason::Peer), "{way:?}");
        }
    }
}
