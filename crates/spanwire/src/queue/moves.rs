//! Moving items from the front of a queue to the end of a vector, each as one run of bytes.
//!
//! One by one each item passes over the stack, stored there in odd pieces and loaded in even ones, for which a processor
//! waits: more than half of what receiving many small messages at once cost beyond their decoding.
//!
//! Owns: the only `unsafe` of the queues. Never: calls foreign code between the two steps that make a move.
#![expect(
    unsafe_code,
    reason = "the standard library moves runs between two queues or two vectors, not from one to the other"
)]

use std::collections::VecDeque;
use std::mem;
use std::ptr;

/// Moves the oldest of `from`, `max` at most, to the end of `into`.
pub(super) fn front<T>(from: &mut VecDeque<T>, into: &mut Vec<T>, max: usize) {
    let n = max.min(from.len());
    into.reserve(n);
    let (first, second) = from.as_slices();
    let of_first = n.min(first.len());
    let before = into.len();
    // SAFETY: `of_first` items lie in `first`, the other `n - of_first` in `second`, since both together are `from`. The
    // vector has room for `n` more (`reserve`), and is another allocation than the queue's, which is borrowed mutably.
    unsafe {
        let end = into.as_mut_ptr().add(before);
        ptr::copy_nonoverlapping(first.as_ptr(), end, of_first);
        ptr::copy_nonoverlapping(second.as_ptr(), end.add(of_first), n - of_first);
    }
    // From here on each is there twice: the queue lets go of its own without dropping them, which cannot panic, ...
    from.drain(..n).for_each(mem::forget);
    // SAFETY: ... and the vector takes them over: the `n` items behind the first `before` were written above.
    unsafe { into.set_len(before + n) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn each_is_moved_once_also_around_the_end_of_the_ring() {
        let item = Arc::new(());
        for capacity in 1..9 {
            for turned in 0..capacity {
                for max in 0..=capacity + 1 {
                    let mut from = VecDeque::with_capacity(capacity);
                    (0..turned).for_each(|n| from.push_back((n, item.clone())));
                    from.clear();
                    // What a pop at the front and a push at the back leave: the ring begins in the middle.
                    (0..capacity).for_each(|n| from.push_back((n, item.clone())));
                    for n in 0..turned {
                        from.pop_front();
                        from.push_back((capacity + n, item.clone()));
                    }
                    let mut into = vec![(99, item.clone())];
                    front(&mut from, &mut into, max);
                    assert_eq!(Arc::strong_count(&item), 1 + capacity + 1, "none was dropped");
                    let numbers: Vec<usize> = into[1..].iter().chain(&from).map(|(n, _)| *n).collect();
                    assert_eq!(numbers, (turned..turned + capacity).collect::<Vec<_>>());
                    assert_eq!(into.len(), 1 + max.min(capacity));
                }
            }
        }
        assert_eq!(Arc::strong_count(&item), 1, "each was dropped once");
    }
}
