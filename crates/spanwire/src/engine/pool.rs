//! Buffers for large frames, used again.
//!
//! A large body is read straight into the buffer that the application gets. Made anew for each message such a
//! buffer costs as much as its bytes (pages to map and to clear), so it comes back here when the last
//! reference to the message is dropped.
//!
//! Owns: a bounded number of idle buffers for each socket. Never: hands one out that is more than twice as
//! large as asked for: a message must not pin much more memory than it has bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

/// Idle buffers kept, and their bytes in all.
const MOST: usize = 16;
const MOST_BYTES: usize = 4 << 20;

/// Idle buffers of one socket. Each is initialized over its whole length.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle buffer of at least `size` bytes.
    pub(super) fn take(&self, size: usize) -> Option<Vec<u8>> {
        let mut idle = self.lock();
        let fits = |b: &Vec<u8>| b.len() >= size && b.len() / 2 <= size;
        let at = idle.iter().rposition(fits)?;
        Some(idle.swap_remove(at))
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut idle = self.lock();
        let bytes: usize = idle.iter().map(Vec::len).sum();
        if idle.len() < MOST && bytes + buffer.len() <= MOST_BYTES {
            idle.push(buffer);
        } else if buffer.len() <= MOST_BYTES && !idle.is_empty() {
            // Sizes have changed: what is asked for now takes the place of what was.
            idle.swap_remove(0);
        }
    }

    /// The first `len` bytes of `buffer`, which comes back here in the end.
    pub(super) fn lend(self: &Arc<Self>, buffer: Vec<u8>, len: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: Arc::downgrade(self) }).slice(..len)
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: Weak<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_reference_goes() {
        let pool = Arc::new(Pool::default());
        let lent = pool.lend(vec![7; 1000], 900);
        let part = lent.slice(10..20);
        drop(lent);
        assert!(pool.take(900).is_none(), "a part of it is still read");
        assert_eq!(part, [7; 10][..]);
        drop(part);
        assert_eq!(pool.take(900).map(|b| b.len()), Some(1000));
        assert!(pool.take(900).is_none());
    }

    #[test]
    fn idle_buffers_are_bounded_and_none_is_much_larger_than_asked_for() {
        let pool = Arc::new(Pool::default());
        for _ in 0..3 {
            let all: Vec<Bytes> = (0..40).map(|_| pool.lend(vec![0; 1 << 20], 1)).collect();
            drop(all);
            let idle = pool.lock();
            assert!(idle.len() <= MOST && idle.iter().map(Vec::len).sum::<usize>() <= MOST_BYTES);
        }
        assert!(pool.take(1000).is_none());
        assert!(pool.take(600_000).is_some());
        drop(pool.lend(vec![0; 5 << 20], 1));
        assert!(pool.take(4 << 20).is_none(), "too large to keep");
    }
}
