//! What was reached and when it is said: a lone change at once, a stream of changes a few at a time.
//!
//! A report costs a server as much as a change costs it, and many at once run against the changes that are still going
//! out. Levels are facts that add up, so where changes come one after the other, a later report says what several
//! would.
//!
//! Owns: what is to be said of which revision, and the time until which it may gather. Never: holds a report back for
//! longer than [`GATHER`], or when half of what a server lets be on its way is not answered; forgets a fact that no
//! later one covers.

use std::time::Duration;

use spanwire::protocol::Time;

use crate::wire::{Ack, Level};

/// Changes of which each is verified less than this after the one before are a stream.
const STREAM: Duration = Duration::from_millis(250);
/// So many of a stream are reported at once, each by itself.
const AT_ONCE: u32 = 4;
/// Reports of a stream gather for three times the time from one change to the next, but no longer than this: when no change
/// has come by then, the stream is over.
const GATHER: Duration = Duration::from_millis(250);
/// With so many transfers to answer they are said in the pause behind the fan-out: half the time from one change to the
/// next later, but no later than this,
const SOON: (u64, Duration) = (3, Duration::from_millis(50));
/// with half of what a server has on its way at most, at once.
const HALF: u64 = crate::sender::FLIGHT as u64 / 2;

/// Transfers, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Taken {
    transfers: u64,
    bytes: u64,
}

/// The reports of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Reports {
    /// Of what is visible.
    now: Option<Ack>,
    /// Of revisions before, not said yet: what `now` does not say as well. At most two: of what is stored or applied.
    before: Vec<Ack>,
    /// Until when what is not said may wait.
    due: Option<Time>,
    /// The same for what is verified and not reached yet.
    planned: Option<Time>,
    /// When a transfer was verified last, how long that is after the one before, of late, and how many came one soon
    /// after the other.
    last: Option<Time>,
    interval: Duration,
    streak: u32,
    /// Transfers that were verified; of them, those up to what is given, visible, and reported.
    verified: Taken,
    given: Taken,
    visible: Taken,
    reported: Taken,
}

impl Reports {
    /// Of what a disk held.
    pub(super) fn of(report: Ack) -> Reports {
        Reports { now: Some(report), ..Reports::default() }
    }

    /// A transfer was verified.
    pub(super) fn verified(&mut self, bytes: usize, now: Time) {
        self.verified.transfers += 1;
        self.verified.bytes += bytes as u64;
        let gap = self.last.replace(now).map(|last| now.saturating_since(last));
        match gap.filter(|gap| *gap < STREAM) {
            Some(gap) => {
                self.streak = self.streak.saturating_add(1);
                self.interval = if self.streak == 1 { gap } else { (self.interval * 3 + gap) / 4 };
            }
            None => self.streak = 0,
        }
    }

    /// What is verified was given to the application.
    pub(super) fn given(&mut self) {
        self.given = self.verified;
    }

    /// What was given is visible.
    pub(super) fn shown(&mut self) {
        self.visible = self.given;
        if let Some(old) = self.now.take().filter(|_| self.due.is_some()) {
            self.before.push(old);
        }
    }

    /// The level that was reached with what is visible, and whether it is on disk.
    pub(super) fn reached(&self) -> Option<(Level, bool)> {
        self.now.as_ref().map(|ack| (ack.level, !ack.volatile))
    }

    /// What is to be said of what is visible.
    pub(super) fn set(&mut self, report: Ack) {
        // What is said of a later revision is true of those before it.
        let mut known = facts(&report);
        self.now = Some(report);
        for at in (0..self.before.len()).rev() {
            let both = known | facts(&self.before[at]);
            if std::mem::replace(&mut known, both) == both {
                self.before.remove(at);
            }
        }
    }

    /// When to say what will be reached with what was just verified, in a stream: whoever drives now need not be told again.
    pub(super) fn plan(&mut self, now: Time) -> Option<Time> {
        if !self.gathers(now) {
            return None;
        }
        let until = self.until(now);
        self.planned = Some(self.planned.or(self.due).map_or(until, |planned| planned.min(until)));
        self.planned
    }

    fn until(&self, now: Time) -> Time {
        now + if self.open() >= SOON.0 {
            (self.interval / 2).min(SOON.1)
        } else {
            (self.interval * 3).min(GATHER)
        }
    }

    /// Transfers that were verified and not reported.
    fn open(&self) -> u64 {
        self.verified.transfers - self.reported.transfers
    }

    /// Until when what was set may wait; `None`: it is to be said now. `more`: what is reached next follows soon.
    pub(super) fn may_wait(&mut self, now: Time, more: bool, window: u32) -> Option<Time> {
        if self.open() >= HALF || self.verified.bytes - self.reported.bytes >= u64::from(window / 2) {
            return None;
        }
        let until = if self.gathers(now) {
            self.planned.unwrap_or_else(|| self.until(now))
        } else if more {
            // Whoever drives next says it, unless it was said by then.
            now
        } else {
            return None;
        };
        let due = self.due.map_or(until, |due| due.min(until));
        self.due = Some(due);
        self.due
    }

    fn gathers(&self, now: Time) -> bool {
        self.streak > AT_ONCE && self.last.is_some_and(|at| now.saturating_since(at) < STREAM)
    }

    /// The time has come; nothing may be there to be said.
    pub(super) fn time(&mut self) {
        self.planned = None;
        if self.waits() && self.open() <= 1 {
            // It gathered nothing: who commits may wait for each report before the next change.
            self.streak = 0;
        }
    }

    /// Whether something waits to be said.
    pub(super) fn waits(&self) -> bool {
        self.due.is_some()
    }

    /// What is to be said, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Ack> {
        self.before.iter().chain(&self.now)
    }

    /// All of it was said to the server in use.
    pub(super) fn said(&mut self) {
        if self.now.is_none() {
            return;
        }
        self.before.clear();
        (self.due, self.planned) = (None, None);
        self.reported = self.visible;
    }
}

/// A bit each for stored, visible, applied.
fn facts(ack: &Ack) -> u8 {
    u8::from(!ack.volatile)
        | u8::from(ack.level >= Level::Visible) << 1
        | u8::from(ack.level >= Level::Applied) << 2
}
