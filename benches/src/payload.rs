//! What is in a message: numbers that prove that none was lost, doubled or overtaken.
//!
//! A little-endian word holds, from the top: one bit, set once the warm-up is over; 15 bits, who sent it; 48
//! bits, the running number of that sender, or a mark: the end, or a probe that counts nothing. The word
//! stands first, behind the topic where there are topics. The rest is filler whose last byte is looked at.
//! Owns: numbering and checking. Never: clocks.

use crate::Result;
use crate::cell::{Cell, Shape};

/// What a message begins with that tells of a delivery gone wrong.
pub const WRONG: &str = "delivery: ";

/// In the word: this message is measured.
const MEASURED: u64 = 1 << 63;
/// Where the sender stands.
const SOURCE: u32 = 48;
const NUMBER: u64 = (1 << SOURCE) - 1;
/// As a number: the sender's last.
const END: u64 = NUMBER;
/// As a number: only to see whether it comes through.
const PROBE: u64 = NUMBER - 1;
const FILLER: u8 = 0xa5;
/// Bytes of a topic.
const TOPIC: usize = 8;

/// Topic number `i`, up to 2²⁴: eight bytes, of which neighbours share most.
pub fn topic(i: usize) -> [u8; TOPIC] {
    let mut text = *b"t/aaaaaa";
    for (place, letter) in text[2..].iter_mut().enumerate() {
        *letter += ((i >> (4 * (5 - place))) & 15) as u8;
    }
    text
}

/// What marks are published under: behind all other topics, for libraries that subscribe in alphabetical order.
pub const MARKS: [u8; TOPIC] = *b"t/zzzzzz";

fn place(cell: &Cell) -> usize {
    if matches!(cell.shape, Shape::Topics(_)) { TOPIC } else { 0 }
}

/// Makes bodies, one after the other, in one buffer.
#[derive(Debug)]
pub struct Maker {
    body: Vec<u8>,
    at: usize,
    source: u64,
    next: u64,
    phase: u64,
    topics: u64,
}

impl Maker {
    /// Bodies for the cell, from sender `source` of it.
    pub fn new(cell: &Cell, source: usize) -> Self {
        let (at, topics) = (place(cell), if let Shape::Topics(n) = cell.shape { n as u64 } else { 0 });
        let body = vec![FILLER; cell.size.max(at + 8)];
        Maker { body, at, source: (source as u64) << SOURCE, next: 0, phase: 0, topics }
    }

    /// From here on messages are measured.
    pub fn measure(&mut self) {
        self.phase = MEASURED;
    }

    /// The next body.
    #[inline]
    pub fn make(&mut self) -> &[u8] {
        let number = self.next;
        self.next += 1;
        if self.topics > 0 {
            // Spread over all topics, in no order that a cache would like.
            let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            self.body[..TOPIC].copy_from_slice(&topic((mixed % self.topics) as usize));
        }
        self.with(number)
    }

    /// The one made last was not taken.
    pub fn take_back(&mut self) {
        self.next -= 1;
    }

    /// The body that ends the run.
    pub fn end(&mut self) -> &[u8] {
        self.mark(END)
    }

    /// A body that counts nothing.
    pub fn probe(&mut self) -> &[u8] {
        self.mark(PROBE)
    }

    /// How many were made, marks not counted.
    pub fn made(&self) -> u64 {
        self.next
    }

    fn mark(&mut self, mark: u64) -> &[u8] {
        if self.topics > 0 {
            self.body[..TOPIC].copy_from_slice(&MARKS);
        }
        self.with(mark)
    }

    #[inline]
    fn with(&mut self, number: u64) -> &[u8] {
        let word = number | self.source | self.phase;
        self.body[self.at..self.at + 8].copy_from_slice(&word.to_le_bytes());
        &self.body
    }
}

/// What a message means for the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Of the warm-up.
    WarmUp,
    /// The first that is measured.
    First,
    /// Another one.
    Measured,
    /// A mark that ends nothing: a probe, or the end of one sender of several.
    Mark,
    /// The last, not counted.
    End,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    next: u64,
    measured: bool,
    ended: bool,
}

/// Checks bodies as they arrive.
#[derive(Debug)]
pub struct Checker {
    size: usize,
    at: usize,
    rows: Vec<Row>,
    open: usize,
    seen: u64,
    measured: u64,
    lossy: bool,
}

impl Checker {
    /// For the cell's bodies, from all its senders.
    pub fn new(cell: &Cell) -> Self {
        let (at, sources) = (place(cell), cell.shape.sources());
        let rows = vec![Row::default(); sources];
        Checker { size: cell.size.max(at + 8), at, rows, open: sources, seen: 0, measured: 0, lossy: false }
    }

    /// Messages may be missing, and the end may come again; doubled and overtaken ones are errors as ever.
    pub fn lossy(mut self, lossy: bool) -> Self {
        self.lossy = lossy;
        self
    }

    /// Looks at the next body.
    ///
    /// # Errors
    /// When it is not the next one, whole.
    #[inline]
    pub fn look(&mut self, body: &[u8]) -> Result<Seen> {
        let Some((word, rest)) = body.get(self.at..).and_then(|b| b.split_first_chunk::<8>()) else {
            return Err(format!("{WRONG}a message of {} bytes, not {}", body.len(), self.size).into());
        };
        if body.len() != self.size || rest.last().is_some_and(|b| *b != FILLER) {
            return Err(format!("{WRONG}a damaged message of {} bytes", body.len()).into());
        }
        let word = u64::from_le_bytes(*word);
        let source = ((word & !MEASURED) >> SOURCE) as usize;
        let Some(row) = self.rows.get_mut(source) else {
            return Err(format!("{WRONG}a message of sender {source}, whom nobody knows").into());
        };
        let (number, measured) = (word & NUMBER, word & MEASURED != 0);
        if number >= PROBE {
            if number == END && !row.ended {
                row.ended = true;
                self.open -= 1;
                return Ok(if self.open == 0 { Seen::End } else { Seen::Mark });
            }
            let fine = number == PROBE || self.lossy;
            return if fine {
                Ok(Seen::Mark)
            } else {
                Err(format!("{WRONG}sender {source} ended twice").into())
            };
        }
        if number != row.next && !(self.lossy && number > row.next) {
            let what = if number > row.next { "lost or overtaken" } else { "doubled or overtaken" };
            let due = row.next;
            return Err(format!(
                "{WRONG}message {number} of sender {source} came, {due} was due: a message was {what}"
            )
            .into());
        }
        if row.ended || (row.measured && !measured) {
            return Err(format!("{WRONG}message {number} of sender {source} came too late").into());
        }
        (row.next, row.measured) = (number + 1, measured);
        self.seen += 1;
        if !measured {
            return Ok(Seen::WarmUp);
        }
        self.measured += 1;
        Ok(if self.measured == 1 { Seen::First } else { Seen::Measured })
    }

    /// How many came, marks not counted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How many of them were measured.
    pub fn measured(&self) -> u64 {
        self.measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Transport;

    fn cell(shape: Shape, size: usize) -> Cell {
        Cell { shape, transport: Transport::Tcp, size }
    }

    fn bodies(n: usize) -> Vec<Vec<u8>> {
        let mut maker = Maker::new(&cell(Shape::Stream, 64), 0);
        (0..n).map(|_| maker.make().to_vec()).collect()
    }

    fn checker() -> Checker {
        Checker::new(&cell(Shape::Stream, 64))
    }

    #[test]
    fn an_unbroken_row_is_counted_from_the_first_measured_message() {
        let cell = cell(Shape::Stream, 8);
        let (mut maker, mut checker) = (Maker::new(&cell, 0), Checker::new(&cell));
        assert_eq!(checker.look(maker.probe()).unwrap(), Seen::Mark);
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::WarmUp);
        maker.measure();
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::First);
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::Measured);
        assert_eq!(checker.look(maker.end()).unwrap(), Seen::End);
        assert!(checker.look(maker.end()).is_err(), "the end came twice");
        assert!(checker.look(maker.make()).is_err(), "a message came behind the end");
        assert_eq!((checker.seen(), checker.measured(), maker.made()), (3, 2, 4));
    }

    #[test]
    fn a_lost_a_doubled_and_an_overtaken_message_are_errors() {
        for order in [&[0usize, 2][..], &[0, 1, 1], &[0, 2, 1], &[1]] {
            let (bodies, mut checker) = (bodies(3), checker());
            let all: Result<Vec<Seen>> = order.iter().map(|i| checker.look(&bodies[*i])).collect();
            let why = all.err().unwrap_or_else(|| panic!("{order:?} was accepted"));
            assert!(why.to_string().starts_with(WRONG), "{why}: a peer would be forgiven");
        }
    }

    #[test]
    fn where_loss_is_allowed_doubling_is_not() {
        let bodies = bodies(5);
        let run = |order: &[usize]| -> Result<u64> {
            let mut checker = checker().lossy(true);
            for i in order {
                checker.look(&bodies[*i])?;
            }
            Ok(checker.seen())
        };
        assert_eq!(run(&[1, 4]).unwrap(), 2);
        assert!(run(&[1, 1]).is_err());
        assert!(run(&[2, 1]).is_err());
    }

    #[test]
    fn senders_are_numbered_apart_and_the_last_to_end_ends_the_run() {
        let cell = cell(Shape::FanIn(2), 64);
        let (mut a, mut b, mut checker) = (Maker::new(&cell, 0), Maker::new(&cell, 1), Checker::new(&cell));
        for body in [a.make().to_vec(), b.make().to_vec(), b.make().to_vec(), a.make().to_vec()] {
            assert_eq!(checker.look(&body).unwrap(), Seen::WarmUp);
        }
        assert_eq!(checker.look(a.end()).unwrap(), Seen::Mark);
        assert_eq!(checker.look(b.end()).unwrap(), Seen::End);
        let stranger = Maker::new(&cell, 2).make().to_vec();
        assert!(checker.look(&stranger).is_err());
    }

    #[test]
    fn a_short_a_long_and_a_damaged_body_are_errors() {
        let body = &bodies(1)[0];
        let mut damaged = body.clone();
        damaged[63] ^= 1;
        for wrong in [&body[..63], &body[..4], &[], &[&body[..], &[FILLER]].concat(), &damaged] {
            assert!(checker().look(wrong).is_err(), "{} bytes were accepted", wrong.len());
        }
    }

    #[test]
    fn topics_differ_and_stand_before_the_number() {
        let all: std::collections::HashSet<_> = (0..5000).map(topic).collect();
        assert_eq!(all.len(), 5000);
        let cell = cell(Shape::Topics(10), 64);
        let (mut maker, mut checker) = (Maker::new(&cell, 0), Checker::new(&cell));
        for _ in 0..100 {
            let body = maker.make();
            assert!((0..10).any(|i| body.starts_with(&topic(i))));
            checker.look(body).unwrap();
        }
    }
}
