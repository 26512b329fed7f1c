//! Those who wait: for other content, or for a position.
//!
//! Owns: what a watcher has seen. Never: two items for one change, or one for content that was seen already; a queue.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;

use super::{Board, Snapshot};
use crate::{Key, Place, Position};

/// Content that differs from what was seen before.
#[derive(Clone, Debug)]
pub struct Changed {
    /// All of it.
    pub snapshot: Snapshot,
    /// Keys whose entries differ from those seen before, in order; deleted ones as well. Never empty.
    pub keys: Vec<Key>,
}

/// Sees each change of content after its making, the newest at once: as an iterator that waits, or with
/// [`changed`](Self::changed) and [`into_stream`](Self::into_stream) on any executor.
///
/// What changes while nobody asks comes as one item. A revision with the content that was seen already is none.
pub struct Watch {
    board: Arc<Board>,
    seen: Snapshot,
    prefix: Vec<u8>,
    sleeper: Option<u64>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What a look at the board gives a watcher: an item, or that there will be none.
fn look(seen: &mut Snapshot, prefix: &[u8], now: &Snapshot, closed: bool) -> Option<Option<Changed>> {
    if now.digest() != seen.digest() {
        let keys = seen.state().diff(now.state());
        let keys: Vec<Key> = keys.keys().filter(|key| key.as_bytes().starts_with(prefix)).cloned().collect();
        *seen = now.clone();
        if !keys.is_empty() {
            return Some(Some(Changed { snapshot: now.clone(), keys }));
        }
    }
    closed.then_some(None)
}

impl Watch {
    pub(super) fn new(board: Arc<Board>, prefix: &[u8]) -> Watch {
        let seen = board.now();
        Watch { board, seen, prefix: prefix.to_vec(), sleeper: None }
    }

    /// What it has seen: what was visible when it was made, then that of its last item.
    pub fn seen(&self) -> &Snapshot {
        &self.seen
    }

    /// A change that is there already.
    pub fn try_next(&mut self) -> Option<Changed> {
        look(&mut self.seen, &self.prefix, &self.board.now(), false).flatten()
    }

    /// Waits for at most so long; `None` also when the node has ended.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Changed> {
        let Watch { board, seen, prefix, .. } = self;
        let until = Instant::now().checked_add(timeout);
        board.wait(until, |now, closed| look(seen, prefix, now, closed)).flatten()
    }

    /// Waits, on any executor; `None` when the node has ended. May be dropped at any time.
    pub async fn changed(&mut self) -> Option<Changed> {
        std::future::poll_fn(|cx| self.poll_changed(cx)).await
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Changed>> {
        let Watch { board, seen, prefix, sleeper } = self;
        board.poll_differs(cx, sleeper, |now, closed| look(seen, prefix, now, closed))
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> WatchStream {
        WatchStream(self)
    }
}

impl Iterator for Watch {
    type Item = Changed;

    /// Waits; `None` when the node has ended.
    fn next(&mut self) -> Option<Changed> {
        let Watch { board, seen, prefix, .. } = self;
        board.wait(None, |now, closed| look(seen, prefix, now, closed)).flatten()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.board.forget(&mut self.sleeper);
    }
}

/// A [`Watch`] as a [`Stream`]; it ends when the node does.
#[derive(Debug)]
pub struct WatchStream(Watch);

impl Stream for WatchStream {
    type Item = Changed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Changed>> {
        self.0.poll_changed(cx)
    }
}

/// Why a position is not reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReached {
    /// Not in time.
    #[error("not before the deadline; visible is {}", shown(*.0))]
    TimedOut(Option<Position>),
    /// Another history is visible, in which that position is not.
    #[error("another epoch is visible: {0}")]
    Lost(Position),
    /// The node has ended.
    #[error("the node has ended")]
    Closed,
}

fn shown(at: Option<Position>) -> String {
    at.map_or("nothing".into(), |at| at.to_string())
}

/// What [`Node::wait_for`](super::Node::wait_for) waits for: a [`Position`], or a [`Place`], as a client is told where its
/// commit is. An epoch of the same number and of another incarnation is another history than a position's; a place does
/// not tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// This, or above it in its epoch.
    Position(Position),
    /// The same, of an epoch of this number.
    Place(Place),
}

impl From<Position> for Wanted {
    fn from(position: Position) -> Wanted {
        Wanted::Position(position)
    }
}

impl From<Place> for Wanted {
    fn from(place: Place) -> Wanted {
        Wanted::Place(place)
    }
}

impl Wanted {
    fn place(self) -> Place {
        match self {
            Wanted::Position(position) => position.into(),
            Wanted::Place(place) => place,
        }
    }

    fn is_in_epoch_of(self, at: Position) -> bool {
        match self {
            Wanted::Position(position) => position.epoch == at.epoch,
            Wanted::Place(place) => place.epoch == at.epoch.number,
        }
    }
}

/// Whether `now` is at or above `wanted` (`None`: at any revision).
pub(super) fn reached(
    now: &Snapshot,
    closed: bool,
    wanted: Option<Wanted>,
) -> Option<Result<Snapshot, NotReached>> {
    let there = now.position().map(|at| match wanted {
        Some(wanted) if wanted.is_in_epoch_of(at) => (at.rev >= wanted.place().rev).then(|| Ok(now.clone())),
        // A lower epoch may still rise.
        Some(wanted) if at.epoch.number < wanted.place().epoch => None,
        Some(_) => Some(Err(NotReached::Lost(at))),
        None => Some(Ok(now.clone())),
    });
    there.flatten().or_else(|| closed.then_some(Err(NotReached::Closed)))
}

/// The future of [`Node::wait_for_async`](super::Node::wait_for_async).
#[must_use = "a future does nothing unless it is awaited"]
#[derive(Debug)]
pub struct WaitFor {
    pub(super) board: Arc<Board>,
    pub(super) wanted: Option<Wanted>,
    pub(super) sleeper: Option<u64>,
}

impl Future for WaitFor {
    type Output = Result<Snapshot, NotReached>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let WaitFor { board, wanted, sleeper } = &mut *self;
        board.poll_moves(cx, sleeper, |now, closed| reached(now, closed, *wanted))
    }
}

impl Drop for WaitFor {
    fn drop(&mut self) {
        self.board.forget(&mut self.sleeper);
    }
}
