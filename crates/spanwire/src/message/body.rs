//! The body of a message that does not lie in the message itself: the caller's own [`Bytes`], or a copy.
//!
//! A copy of middle size is made by one thread and dropped by another, thousands at a time: the allocator's worst case
//! (its lock is taken for each, and contended). So their buffers are used again: each thread
//! has a few of each size in its own drawer, and threads exchange them by the shelf that all share, as
//! many at a time as a drawer holds. Large copies come from [`pool`].
//!
//! Owns: a bounded number of idle buffers for each thread and for the process. Never: waits for the shelf's lock (a
//! forked child may have inherited it locked), or gives a body a buffer more than a quarter larger.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use bytes::{Buf, Bytes};

use super::pool;
use super::unique::Unique;

/// The smallest buffer, as a power of two; each doubling has [`STEPS`] sizes.
const LEAST: u32 = 7;
const STEPS: usize = 4;
/// Bodies below this size have buffers from here.
const MOST: usize = 16 * 1024;
const SIZES: usize = STEPS * (MOST.ilog2() - LEAST) as usize + 1;
/// Idle bytes of one size, or buffers if that is less, that a thread exchanges at a time; it keeps at most twice
/// as much.
const DRAWER: usize = 16 * 1024;
const DRAWER_BUFFERS: usize = 64;
/// Idle bytes on the shelf.
const SHELF: usize = 2 << 20;

/// The bytes.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Own(Bytes),
    Copy(Copied),
}

impl Body {
    /// The largest that [`copy`](Self::copy) makes in one piece.
    pub(super) const MOST_COPIED: usize = MOST - 1;

    #[inline(always)]
    pub(super) fn copy(body: &[u8]) -> Body {
        if body.len() < MOST { Body::Copy(Copied::new(body)) } else { Body::Own(pool::copy(body)) }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Body::Own(bytes) => bytes,
            Body::Copy(copied) => copied.as_ref(),
        }
    }

    /// Takes the first `n` bytes off, of which there are as many.
    pub(super) fn advance(&mut self, n: usize) {
        match self {
            Body::Own(bytes) => bytes.advance(n),
            Body::Copy(copied) => copied.start += n as u16,
        }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Body::Own(bytes) => bytes,
            Body::Copy(copied) => Bytes::from_owner(copied),
        }
    }
}

/// A copy of less than [`MOST`] bytes.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    /// There until the drop.
    buffer: Option<Arc<[u8]>>,
    start: u16,
    end: u16,
}

impl Copied {
    /// Made where it is wanted: moved there, its fields would be stored one by one and loaded together, for which the
    /// processor waits until the body before them has been stored as well. Only what fits into registers comes back from
    /// [`filled`].
    #[inline(always)]
    fn new(body: &[u8]) -> Copied {
        Copied { buffer: Some(filled(body)), start: 0, end: body.len() as u16 }
    }
}

/// A buffer with `body` at its beginning.
#[inline(never)]
fn filled(body: &[u8]) -> Arc<[u8]> {
    let mut buffer = take(size_of_body(body.len()));
    buffer.write(body);
    buffer.share()
}

impl AsRef<[u8]> for Copied {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], |buffer| &buffer[self.start.into()..self.end.into()])
    }
}

impl Drop for Copied {
    #[inline]
    fn drop(&mut self) {
        // The last reference gives it back; of two that go at once neither may be the last to see: then it is freed.
        if let Some(buffer) = Unique::last(&mut self.buffer) {
            give(buffer);
        }
    }
}

/// Which of the sizes holds so many bytes.
#[inline]
fn size_of_body(len: usize) -> usize {
    if len <= 1 << LEAST {
        return 0;
    }
    // Of 2^k < len <= 2^(k+1), in quarters.
    let k = (len - 1).ilog2();
    (k - LEAST) as usize * STEPS + ((len - 1 - (1 << k)) >> (k - STEPS.ilog2())) + 1
}

/// The bytes of a size.
#[inline]
fn bytes_of(size: usize) -> usize {
    let octave = (1 << LEAST) << (size / STEPS);
    octave + octave / STEPS * (size % STEPS)
}

/// How many are exchanged at a time.
#[inline]
fn drawer(size: usize) -> usize {
    (DRAWER / bytes_of(size)).clamp(1, DRAWER_BUFFERS)
}

type Buffers = Vec<Unique>;

thread_local! {
    static DRAWERS: RefCell<[Buffers; SIZES]> = const { RefCell::new([const { Vec::new() }; SIZES]) };
}

#[inline]
fn take(size: usize) -> Unique {
    // While a thread's locals are being destroyed it has none.
    DRAWERS
        .try_with(|drawers| {
            let drawer = &mut drawers.try_borrow_mut().ok()?[size];
            drawer.pop().or_else(|| refill(drawer, size))
        })
        .ok()
        .flatten()
        .unwrap_or_else(|| Unique::new(bytes_of(size)))
}

#[inline]
fn give(buffer: Unique) {
    // The smallest size that holds as much is the one it was made for.
    let size = size_of_body(buffer.len());
    let _ = DRAWERS.try_with(|drawers| {
        if let Ok(mut drawers) = drawers.try_borrow_mut() {
            let mine = &mut drawers[size];
            mine.push(buffer);
            if mine.len() >= 2 * drawer(size) {
                clear_out(mine, size);
            }
        }
    });
}

/// Idle buffers of all threads.
struct Shelf {
    idle: [Buffers; SIZES],
    bytes: usize,
}

static SHELF_OF_ALL: Mutex<Shelf> = Mutex::new(Shelf { idle: [const { Vec::new() }; SIZES], bytes: 0 });

/// `None`: it is in use at this moment.
fn shelf() -> Option<MutexGuard<'static, Shelf>> {
    match SHELF_OF_ALL.try_lock() {
        Ok(shelf) => Some(shelf),
        Err(TryLockError::Poisoned(shelf)) => Some(shelf.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cold]
fn refill(mine: &mut Buffers, size: usize) -> Option<Unique> {
    if let Some(mut shelf) = shelf() {
        let idle = &mut shelf.idle[size];
        let from = idle.len().saturating_sub(drawer(size));
        mine.extend(idle.drain(from..));
        shelf.bytes -= mine.len() * bytes_of(size);
    }
    mine.pop()
}

/// A full drawer: half of it goes to the shelf.
#[cold]
fn clear_out(mine: &mut Buffers, size: usize) {
    let from = mine.len().saturating_sub(drawer(size));
    let out = mine.drain(from..);
    let added = out.len() * bytes_of(size);
    let mut gone = Vec::new(); // freed without the lock
    match shelf() {
        Some(mut shelf) => {
            if shelf.bytes + added > SHELF {
                // Sizes have changed, or a backlog is gone: what there is most of makes room.
                let most = (0..SIZES).max_by_key(|s| shelf.idle[*s].len() * bytes_of(*s)).unwrap_or(size);
                gone = std::mem::take(&mut shelf.idle[most]);
                shelf.bytes -= gone.len() * bytes_of(most);
            }
            shelf.idle[size].extend(out);
            shelf.bytes += added;
        }
        None => drop(out), // it happens rarely, and frees no more than a drawer
    }
    drop(gone);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_at_most_a_quarter_larger_than_its_body() {
        let mut sizes = Vec::new();
        for len in 1..MOST {
            let size = size_of_body(len);
            let bytes = bytes_of(size);
            assert!(bytes >= len && (bytes <= len + len / 4 || bytes == 1 << LEAST), "{len} in {bytes}");
            assert_eq!(size_of_body(bytes), size, "it is given back to where it was taken from");
            sizes.push(size);
        }
        sizes.dedup();
        assert_eq!(sizes, (0..SIZES).collect::<Vec<_>>());
    }

    #[test]
    fn a_buffer_is_used_again_when_its_last_reference_is_gone() {
        // In a thread of its own: its drawers are empty at first.
        let of = |body: &Body| body.as_slice().as_ptr();
        std::thread::spawn(move || {
            let first = Body::copy(&[1; 700]);
            let at = of(&first);
            let second = first.clone();
            drop(first);
            let other = Body::copy(&[2; 700]);
            assert_ne!(of(&other), at, "the second reference is still read");
            assert_eq!(second.as_slice(), [1; 700]);
            let bytes = second.into_bytes();
            let part = bytes.slice(100..200);
            drop(bytes);
            assert_eq!(part, [1; 100][..]);
            drop(part);
            let again = Body::copy(&[3; 690]);
            assert_eq!((of(&again), again.as_slice()), (at, &[3; 690][..]));
        })
        .join()
        .expect("the assertions hold");
    }

    #[test]
    fn what_one_thread_drops_another_uses() {
        const N: usize = 5000;
        let (sender, receiver) = crossbeam_channel::bounded::<Body>(100);
        let other = std::thread::spawn(move || {
            receiver.iter().enumerate().all(|(n, body)| body.as_slice() == [n as u8; 5001])
        });
        let mut seen = std::collections::HashSet::new();
        for n in 0..N {
            let body = Body::copy(&[n as u8; 5001]);
            seen.insert(body.as_slice().as_ptr() as usize);
            sender.send(body).expect("the other thread receives");
        }
        drop(sender);
        assert!(other.join().expect("it does not panic"), "each body came whole");
        assert!(seen.len() < N / 2, "{} buffers for {N} bodies", seen.len());
    }

    #[test]
    fn idle_buffers_are_bounded() {
        for len in [200, 3000, 16_000, 3000] {
            let all: Vec<Body> = (0..8 << 20).step_by(len).map(|_| Body::copy(&vec![7; len])).collect();
            drop(all);
            let size = size_of_body(len);
            let mine = DRAWERS.with_borrow(|drawers| drawers[size].len());
            assert!(mine <= 2 * drawer(size), "{mine} of {len} bytes");
            let shelf = SHELF_OF_ALL.lock().expect("nothing panics with it");
            let idle = shelf.idle.iter().enumerate().map(|(size, idle)| idle.len() * bytes_of(size));
            assert_eq!(idle.sum::<usize>(), shelf.bytes);
            assert!(shelf.bytes <= SHELF + DRAWER);
        }
    }
}
