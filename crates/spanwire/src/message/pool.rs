//! Buffers of large bodies, used again.
//!
//! A body made anew for each message costs as much as its bytes: the allocator gives the memory of a backlog
//! back to the system and gets it again, page by page, each to be mapped and cleared. So the buffers of bodies that were
//! copied or received come back here when the last reference to them is dropped, and the next body
//! lies in memory that is still in a cache.
//!
//! Owns: a bounded number of idle buffers for the process. Never: waits for its lock (a forked child may have
//! inherited it locked), or hands a buffer out that is more than twice as large as asked for: a message must not pin
//! much more memory than it has bytes.

use std::sync::{Mutex, MutexGuard, TryLockError};

use bytes::Bytes;

/// Bodies from this size on; for smaller ones the allocator is quicker.
const LEAST: usize = 16 * 1024;
/// Idle buffers kept, and their bytes in all.
const MOST: usize = 64;
const MOST_BYTES: usize = 4 << 20;

static POOL: Pool = Pool::new();

/// A copy of `body`.
#[inline]
pub(crate) fn copy(body: &[u8]) -> Bytes {
    if body.len() < LEAST { Bytes::copy_from_slice(body) } else { POOL.copy(body) }
}

/// An idle buffer of at least `size` bytes, initialized over its whole length.
pub(crate) fn take(size: usize) -> Option<Vec<u8>> {
    POOL.take(size)
}

/// Gives a buffer back that was not needed.
pub(crate) fn give(buffer: Vec<u8>) {
    POOL.give(buffer);
}

/// The first `len` bytes of `buffer`, which comes back here in the end.
pub(crate) fn lend(buffer: Vec<u8>, len: usize) -> Bytes {
    POOL.lend(buffer, len)
}

/// Idle buffers. Each is initialized over its whole length.
#[derive(Debug)]
struct Pool(Mutex<Idle>);

#[derive(Debug)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    const fn new() -> Self {
        Pool(Mutex::new(Idle { buffers: Vec::new(), bytes: 0 }))
    }

    /// `None`: it is in use at this moment.
    fn idle(&self) -> Option<MutexGuard<'_, Idle>> {
        match self.0.try_lock() {
            Ok(idle) => Some(idle),
            Err(TryLockError::Poisoned(idle)) => Some(idle.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn take(&self, size: usize) -> Option<Vec<u8>> {
        let mut idle = self.idle()?;
        let fits = |b: &Vec<u8>| b.len() >= size && b.len() / 2 <= size;
        // The one that came last: its bytes may still be in a cache.
        let at = idle.buffers.iter().rposition(fits)?;
        let buffer = idle.buffers.remove(at);
        idle.bytes -= buffer.len();
        Some(buffer)
    }

    fn give(&self, buffer: Vec<u8>) {
        let len = buffer.len();
        let mut gone = None; // freed without the lock
        if let Some(mut idle) = self.idle().filter(|_| (LEAST..=MOST_BYTES).contains(&len)) {
            if (idle.buffers.len() == MOST || idle.bytes + len > MOST_BYTES) && !idle.buffers.is_empty() {
                // Sizes may have changed: what is asked for now takes the place of what was asked for longest ago.
                let oldest = idle.buffers.remove(0);
                idle.bytes -= oldest.len();
                gone = Some(oldest);
            }
            if idle.bytes + len <= MOST_BYTES {
                idle.bytes += len;
                idle.buffers.push(buffer);
            }
        }
        drop(gone);
    }

    fn copy(&'static self, body: &[u8]) -> Bytes {
        let buffer = match self.take(body.len()) {
            Some(mut buffer) => {
                buffer[..body.len()].copy_from_slice(body);
                buffer
            }
            None => body.to_vec(),
        };
        self.lend(buffer, body.len())
    }

    fn lend(&'static self, buffer: Vec<u8>, len: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, len, pool: self })
    }
}

struct Lent {
    buffer: Vec<u8>,
    len: usize,
    pool: &'static Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others use the one of the process meanwhile.
    fn pool() -> &'static Pool {
        Box::leak(Box::new(Pool::new()))
    }

    #[test]
    fn a_buffer_comes_back_when_its_last_reference_goes() {
        let pool = pool();
        let lent = pool.lend(vec![7; 100_000], 90_000);
        let part = lent.slice(10..20);
        drop(lent);
        assert!(pool.take(90_000).is_none(), "a part of it is still read");
        assert_eq!(part, [7; 10][..]);
        drop(part);
        assert_eq!(pool.take(90_000).map(|b| b.len()), Some(100_000));
        assert!(pool.take(90_000).is_none());
    }

    #[test]
    fn a_copy_in_a_used_buffer_is_the_copy_and_no_more() {
        let pool = pool();
        drop(pool.lend(vec![7; 100_000], 100_000));
        let copy = pool.copy(&[8; 60_000]);
        assert_eq!(copy, [8; 60_000][..]);
        assert!(pool.take(60_000).is_none(), "the copy lies in it");
        drop(copy);
        assert_eq!(pool.take(60_000).map(|b| b.len()), Some(100_000));
    }

    #[test]
    fn idle_buffers_are_bounded_and_none_is_much_larger_than_asked_for() {
        let pool = pool();
        for size in [20_000, 1 << 20, 30_000] {
            let all: Vec<Bytes> = (0..200).map(|_| pool.lend(vec![0; size], 1)).collect();
            drop(all);
            let idle = pool.idle().expect("nobody else uses it");
            assert!(idle.buffers.len() <= MOST && idle.bytes <= MOST_BYTES);
            assert_eq!(idle.bytes, idle.buffers.iter().map(Vec::len).sum::<usize>());
        }
        assert!(pool.take(20_000).is_some(), "what was asked for last is what is there");
        drop(pool.lend(vec![0; 1 << 20], 1));
        assert!(pool.take(500_000).is_none());
        assert!(pool.take(600_000).is_some());
        drop(pool.lend(vec![0; 5 << 20], 1));
        assert!(pool.take(4 << 20).is_none(), "too large to keep");
        drop(pool.lend(vec![0; 1000], 1));
        assert!(pool.take(1000).is_none(), "too small to be worth it");
    }
}
