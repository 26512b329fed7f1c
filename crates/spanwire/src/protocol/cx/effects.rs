//! What calls into a protocol leave to be done: timers, wakes, closes, counts; and the clock of a call.
//!
//! Owns: the effects until they are taken. Never: carries one out, or reads the clock twice in a call.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use super::{DropCounts, DropReason, PipeId, Reason};
use crate::protocol::{Time, TimerKey, WaitKey};

/// Timers of one protocol: by key to change them, by time to find the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    /// A timer was set that is due before all others: whoever sleeps may have to be told.
    moved: bool,
    /// The same of one that may be late while its socket is looked after anyway.
    moved_lazily: bool,
    by_key: HashMap<TimerKey, Time>,
    by_time: BTreeSet<(Time, TimerKey)>,
}

impl Timers {
    #[inline]
    pub(super) fn set(&mut self, key: TimerKey, at: Time) {
        self.moved |= self.put(key, at);
    }
    pub(super) fn set_lazily(&mut self, key: TimerKey, at: Time) {
        self.moved_lazily |= self.put(key, at);
    }
    /// Whether it is due before all others now.
    #[inline]
    fn put(&mut self, key: TimerKey, at: Time) -> bool {
        if let Some(old) = self.by_key.insert(key, at) {
            if old == at {
                return false;
            }
            self.by_time.remove(&(old, key));
        }
        let first = self.next().is_none_or(|first| at < first);
        self.by_time.insert((at, key));
        first
    }
    #[inline]
    pub(crate) fn moved(&self) -> bool {
        self.moved
    }
    #[inline]
    pub(crate) fn moved_lazily(&self) -> bool {
        self.moved_lazily
    }
    #[inline]
    pub(crate) fn take_moved(&mut self) {
        (self.moved, self.moved_lazily) = (false, false);
    }
    pub(super) fn clear(&mut self, key: TimerKey) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
    }
    pub(crate) fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<TimerKey> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        self.by_key.remove(&key);
        Some(key)
    }
}

/// What calls into a protocol asked for; the engine or the script carries it out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    pub(crate) timers: Timers,
    pub(crate) wakes: Vec<WaitKey>,
    pub(crate) closes: Vec<(PipeId, Reason)>,
    /// Pipes with something new to send.
    pub(crate) dirty: Vec<PipeId>,
    /// Pipes that were full inbound and have drained far enough: they may be read again.
    pub(crate) unstalled: Vec<PipeId>,
    pub(crate) drops: DropCounts,
    /// Those among them that belong to no pipe.
    pub(crate) drops_of_none: DropCounts,
    /// Drop counts that reached a power of two: worth an event.
    pub(crate) drop_marks: Vec<(Option<PipeId>, DropReason, u64)>,
    pub(crate) own: Vec<(&'static str, u64)>,
    pub(crate) rng: u64,
}

/// The clock of a call: read at most once, and only if asked, since a read costs as much as a message.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The script's.
    #[cfg(any(test, feature = "testkit"))]
    At(Time),
    Lazy(Cell<Option<Time>>),
}

impl Clock {
    pub(crate) fn lazy() -> Self {
        Clock::Lazy(Cell::new(None))
    }
}
