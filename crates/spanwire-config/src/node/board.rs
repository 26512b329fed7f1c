//! What readers see, and who sleeps until it changes.
//!
//! Owns: the one visible snapshot, its replacement at once, and the sleepers. Never: calls user code or a waker while
//! it is locked; wakes a watcher for content that it has seen.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::Copied;
use crate::{Digest, Entry, Head, Key, Position, State};

/// A whole revision, pinned: it stays as it is for as long as it is kept. A clone costs nothing.
#[derive(Clone)]
pub struct Snapshot(Arc<Pinned>);

#[derive(Default)]
struct Pinned {
    head: Option<Head>,
    state: State,
    digest: Digest,
}

impl Snapshot {
    pub(super) fn new(head: Head, state: State) -> Snapshot {
        // It was verified: that of the state.
        let digest = head.digest;
        Snapshot(Arc::new(Pinned { head: Some(head), state, digest }))
    }

    /// Before the first revision.
    pub(super) fn nothing() -> Snapshot {
        let state = State::new();
        let digest = state.digest();
        Snapshot(Arc::new(Pinned { head: None, state, digest }))
    }

    /// The value of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&Bytes> {
        self.0.state.get(key).map(Entry::value)
    }

    /// All of it: keys in order, entries with their flags.
    pub fn state(&self) -> &State {
        &self.0.state
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Bytes)> {
        self.0.state.iter().map(|(key, entry)| (key, entry.value()))
    }

    /// Where in history it is; `None` before the first revision.
    pub fn position(&self) -> Option<Position> {
        self.head().map(|head| head.position)
    }

    /// The HEAD that names it; `None` before the first revision.
    pub fn head(&self) -> Option<&Head> {
        self.0.head.as_ref()
    }

    /// Names its content: equal content has an equal digest, whatever the revision.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position() {
            Some(position) => write!(f, "Snapshot({position}, {} keys)", self.0.state.keys()),
            None => f.write_str("Snapshot(nothing yet)"),
        }
    }
}

/// For what somebody sleeps.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// Content other than this.
    Differs(Digest),
    /// Any other revision.
    Moves,
}

#[derive(Debug)]
struct Wall {
    now: Snapshot,
    closed: bool,
    /// Why what is visible is not on disk.
    trouble: Option<String>,
    /// Why who the node is by now is not on disk.
    unnamed: Option<String>,
    copied: Option<Copied>,
    sleepers: BTreeMap<u64, (Until, Waker)>,
    next: u64,
    /// Threads that sleep.
    threads: usize,
}

/// The place of what is visible, shared by the node, its thread and those who watch.
#[derive(Debug)]
pub(super) struct Board {
    wall: Mutex<Wall>,
    changed: Condvar,
}

/// Who is to be woken after a change.
pub(super) struct Due<'a> {
    board: &'a Board,
    wakers: Vec<Waker>,
    threads: bool,
}

impl Due<'_> {
    pub(super) fn wake(self) {
        // To tell nobody costs a system call.
        if self.threads {
            self.board.changed.notify_all();
        }
        self.wakers.into_iter().for_each(Waker::wake);
    }
}

impl Board {
    pub(super) fn new() -> Board {
        let wall = Wall {
            now: Snapshot::nothing(),
            closed: false,
            trouble: None,
            unnamed: None,
            copied: None,
            sleepers: BTreeMap::new(),
            next: 0,
            threads: 0,
        };
        Board { wall: Mutex::new(wall), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Wall> {
        // Nobody panics with it but by running out of memory.
        self.wall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Snapshot {
        self.lock().now.clone()
    }

    pub(super) fn trouble(&self) -> Option<String> {
        let wall = self.lock();
        let all: Vec<&str> = wall.trouble.iter().chain(&wall.unnamed).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        self.lock().trouble = trouble;
    }

    pub(super) fn copied(&self) -> Option<Copied> {
        self.lock().copied
    }

    /// `unnamed`: why that is not on disk.
    pub(super) fn set_copied(&self, copied: Copied, unnamed: Option<String>) {
        let mut wall = self.lock();
        (wall.copied, wall.unnamed) = (Some(copied), unnamed);
    }

    /// Makes it what readers see. Those who sleep for it are given back, to be woken where nothing is locked.
    #[must_use = "nobody wakes by itself"]
    pub(super) fn publish(&self, snapshot: Snapshot) -> Due<'_> {
        let digest = snapshot.digest();
        let mut wall = self.lock();
        wall.now = snapshot;
        let due = |until: &Until| match until {
            Until::Differs(seen) => *seen != digest,
            Until::Moves => true,
        };
        let woken: Vec<u64> =
            wall.sleepers.iter().filter(|(_, (until, _))| due(until)).map(|(id, _)| *id).collect();
        let woken = woken.into_iter().filter_map(|id| wall.sleepers.remove(&id)).map(|(_, waker)| waker);
        let wakers = woken.collect();
        Due { board: self, wakers, threads: wall.threads > 0 }
    }

    pub(super) fn close(&self) {
        let mut wall = self.lock();
        wall.closed = true;
        let woken = std::mem::take(&mut wall.sleepers);
        drop(wall);
        self.changed.notify_all();
        woken.into_values().for_each(|(_, waker)| waker.wake());
    }

    /// Looks until `look` gives something: at what is visible, and whether the node is closed. `None`: not before
    /// `until`.
    pub(super) fn wait<R>(
        &self,
        until: Option<Instant>,
        mut look: impl FnMut(&Snapshot, bool) -> Option<R>,
    ) -> Option<R> {
        let mut wall = self.lock();
        loop {
            // Cloned, since a comparison of large states is not done under the lock.
            let (now, closed) = (wall.now.clone(), wall.closed);
            drop(wall);
            if let Some(found) = look(&now, closed) {
                return Some(found);
            }
            wall = self.lock();
            if !Arc::ptr_eq(&wall.now.0, &now.0) || wall.closed != closed {
                continue;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            wall.threads += 1;
            wall = match left {
                None => self.changed.wait(wall).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.changed.wait_timeout(wall, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            wall.threads -= 1;
        }
    }

    fn poll<R>(
        &self,
        cx: &Context<'_>,
        sleeper: &mut Option<u64>,
        mut look: impl FnMut(&Snapshot, bool) -> Result<R, Until>,
    ) -> Poll<R> {
        loop {
            let (now, closed) = {
                let mut wall = self.lock();
                sleeper.take().map(|id| wall.sleepers.remove(&id));
                (wall.now.clone(), wall.closed)
            };
            let until = match look(&now, closed) {
                Ok(found) => return Poll::Ready(found),
                Err(until) => until,
            };
            let mut wall = self.lock();
            if Arc::ptr_eq(&wall.now.0, &now.0) && wall.closed == closed {
                let id = wall.next;
                wall.next += 1;
                wall.sleepers.insert(id, (until, cx.waker().clone()));
                *sleeper = Some(id);
                return Poll::Pending;
            }
        }
    }

    /// As [`wait`](Self::wait), for a task: it sleeps until another revision is visible.
    pub(super) fn poll_moves<R>(
        &self,
        cx: &Context<'_>,
        sleeper: &mut Option<u64>,
        mut look: impl FnMut(&Snapshot, bool) -> Option<R>,
    ) -> Poll<R> {
        self.poll(cx, sleeper, |now, closed| look(now, closed).ok_or(Until::Moves))
    }

    /// The same, but the task sleeps until other content is visible than when it was last looked at.
    pub(super) fn poll_differs<R>(
        &self,
        cx: &Context<'_>,
        sleeper: &mut Option<u64>,
        mut look: impl FnMut(&Snapshot, bool) -> Option<R>,
    ) -> Poll<R> {
        self.poll(cx, sleeper, |now, closed| look(now, closed).ok_or(Until::Differs(now.digest())))
    }

    pub(super) fn forget(&self, sleeper: &mut Option<u64>) {
        if let Some(id) = sleeper.take() {
            self.lock().sleepers.remove(&id);
        }
    }
}
