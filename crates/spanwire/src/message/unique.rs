//! Writing to a buffer that nobody else has a reference to.
//!
//! [`Arc::get_mut`] finds that out with a locked instruction, which waits until all that was stored before is in the
//! cache: the body of the message before. Of the CPU time of 1 KiB bodies by inproc a seventh went with it.
//!
//! Owns: the only `unsafe` of messages. Never: a look at who has references; the caller knows.
#![expect(unsafe_code, reason = "the standard library's `Arc::get_mut_unchecked` is not stable")]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A buffer with one reference.
#[derive(Debug)]
pub(super) struct Unique(Arc<[u8]>);

impl Unique {
    /// Zeros.
    pub(super) fn new(len: usize) -> Unique {
        Unique(std::iter::repeat_n(0, len).collect())
    }

    /// Takes the last reference; `None`: there are others (or were, a moment ago).
    #[inline]
    pub(super) fn last(buffer: &mut Option<Arc<[u8]>>) -> Option<Unique> {
        // There are no weak ones: nothing in this crate makes any, and no buffer leaves it but in a `Bytes`.
        let buffer = buffer.take_if(|buffer| Arc::strong_count(buffer) == 1)?;
        // What others did with theirs before they dropped them comes before all that is written from here on.
        fence(Ordering::Acquire);
        Some(Unique(buffer))
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes the beginning. Panics where there is not as much room.
    #[inline]
    pub(super) fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.0.len(), "a buffer is as large as its body");
        // SAFETY: as much room is there (above). Nobody reads it or writes to it: this is the only reference, since
        // `new` and `last` give no other and `share` takes it away; and `bytes` cannot lie in it, as it is borrowed
        // from somebody else. That it was the last was found with the ordering that `Arc::get_mut` has.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                Arc::as_ptr(&self.0).cast::<u8>().cast_mut(),
                bytes.len(),
            );
        }
    }

    /// From here on there may be more references.
    #[inline]
    pub(super) fn share(self) -> Arc<[u8]> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_reference_is_taken_and_what_it_writes_is_read_by_all_that_come() {
        let mut buffer = Unique::new(4);
        buffer.write(&[]);
        buffer.write(&[1, 2, 3, 4]);
        let mut first = Some(buffer.share());
        let second = first.clone();
        assert!(Unique::last(&mut first).is_none());
        assert_eq!(second.as_deref(), Some(&[1, 2, 3, 4][..]));
        drop(second);
        let mut buffer = Unique::last(&mut first).expect("the other is gone");
        assert!(first.is_none() && Unique::last(&mut first).is_none());
        buffer.write(&[5, 6]);
        assert_eq!((buffer.len(), &buffer.share()[..]), (4, &[5, 6, 3, 4][..]));
    }

    #[test]
    #[should_panic(expected = "as large as its body")]
    fn more_than_there_is_room_for_is_not_written() {
        Unique::new(3).write(&[0; 4]);
    }

    #[test]
    fn what_the_last_but_one_read_is_read_before_it_is_written_over() {
        for n in 0..500u32 {
            let mut buffer = Unique::new(64);
            buffer.write(&[n as u8; 64]);
            let mut mine = Some(buffer.share());
            let theirs = mine.clone();
            let other = std::thread::spawn(move || theirs.is_some_and(|b| b[..] == [n as u8; 64]));
            let mut last = loop {
                if let Some(last) = Unique::last(&mut mine) {
                    break last;
                }
                std::hint::spin_loop();
            };
            last.write(&[!n as u8; 64]);
            assert!(other.join().expect("it does not panic"), "the other saw its own bytes alone");
        }
    }
}
