//! What is in a message: a number that proves that none was lost, doubled or overtaken.
//!
//! The first eight bytes are a little-endian word: the running number, with the top bit set once the warm-up
//! is over; all bits set ends the run. The rest is filler whose last byte is looked at.
//! Owns: numbering and checking. Never: clocks.

use crate::Result;

/// In the word: this message is measured.
const MEASURED: u64 = 1 << 63;
/// The word that ends a run.
const END: u64 = u64::MAX;
const FILLER: u8 = 0xa5;

/// Makes bodies, one after the other, in one buffer.
#[derive(Debug)]
pub struct Maker {
    body: Vec<u8>,
    next: u64,
    phase: u64,
}

impl Maker {
    /// Bodies of `size` bytes, at least 8.
    pub fn new(size: usize) -> Self {
        Maker { body: vec![FILLER; size.max(8)], next: 0, phase: 0 }
    }

    /// From here on messages are measured.
    pub fn measure(&mut self) {
        self.phase = MEASURED;
    }

    /// The next body.
    #[inline]
    pub fn make(&mut self) -> &[u8] {
        let word = self.next | self.phase;
        self.next += 1;
        self.with(word)
    }

    /// The body that ends the run.
    pub fn end(&mut self) -> &[u8] {
        self.with(END)
    }

    /// How many were made, the end not counted.
    pub fn made(&self) -> u64 {
        self.next
    }

    #[inline]
    fn with(&mut self, word: u64) -> &[u8] {
        self.body[..8].copy_from_slice(&word.to_le_bytes());
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
    /// The last, not counted.
    End,
}

/// Checks bodies as they arrive.
#[derive(Debug)]
pub struct Checker {
    size: usize,
    next: u64,
    first: Option<u64>,
}

impl Checker {
    /// For bodies of `size` bytes, at least 8.
    pub fn new(size: usize) -> Self {
        Checker { size: size.max(8), next: 0, first: None }
    }

    /// Looks at the next body.
    ///
    /// # Errors
    /// When it is not the next one, whole.
    #[inline]
    pub fn look(&mut self, body: &[u8]) -> Result<Seen> {
        let Some((word, rest)) = body.split_first_chunk::<8>() else {
            return Err(format!("a message of {} bytes, not {}", body.len(), self.size).into());
        };
        if body.len() != self.size || rest.last().is_some_and(|b| *b != FILLER) {
            return Err(format!("a damaged message of {} bytes", body.len()).into());
        }
        let word = u64::from_le_bytes(*word);
        if word == END {
            return Ok(Seen::End);
        }
        let number = word & !MEASURED;
        if number != self.next {
            let what = if number > self.next { "lost" } else { "doubled" };
            return Err(format!(
                "message {number} came, {} was due: lost, doubled or overtaken ({what})",
                self.next
            )
            .into());
        }
        self.next += 1;
        match (word & MEASURED != 0, self.first) {
            (false, None) => Ok(Seen::WarmUp),
            (true, None) => {
                self.first = Some(number);
                Ok(Seen::First)
            }
            (true, Some(_)) => Ok(Seen::Measured),
            (false, Some(_)) => Err(format!("message {number} belongs to the warm-up").into()),
        }
    }

    /// How many came, the end not counted.
    pub fn seen(&self) -> u64 {
        self.next
    }

    /// How many of them were measured.
    pub fn measured(&self) -> u64 {
        self.first.map_or(0, |first| self.next - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(n: usize) -> Vec<Vec<u8>> {
        let mut maker = Maker::new(64);
        (0..n).map(|_| maker.make().to_vec()).collect()
    }

    #[test]
    fn an_unbroken_row_is_counted_from_the_first_measured_message() {
        let (mut maker, mut checker) = (Maker::new(8), Checker::new(8));
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::WarmUp);
        maker.measure();
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::First);
        assert_eq!(checker.look(maker.make()).unwrap(), Seen::Measured);
        assert_eq!(checker.look(maker.end()).unwrap(), Seen::End);
        assert_eq!((checker.seen(), checker.measured(), maker.made()), (3, 2, 3));
    }

    #[test]
    fn a_lost_a_doubled_and_an_overtaken_message_are_errors() {
        for order in [&[0usize, 2][..], &[0, 1, 1], &[0, 2, 1], &[1]] {
            let (bodies, mut checker) = (bodies(3), Checker::new(64));
            let all: Result<Vec<Seen>> = order.iter().map(|i| checker.look(&bodies[*i])).collect();
            assert!(all.is_err(), "{order:?} was accepted");
        }
    }

    #[test]
    fn a_short_a_long_and_a_damaged_body_are_errors() {
        let body = &bodies(1)[0];
        let mut damaged = body.clone();
        damaged[63] ^= 1;
        for wrong in [&body[..63], &body[..4], &[], &[&body[..], &[FILLER]].concat(), &damaged] {
            assert!(Checker::new(64).look(wrong).is_err(), "{} bytes were accepted", wrong.len());
        }
    }
}
