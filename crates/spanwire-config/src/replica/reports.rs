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

use crate::Position;
use crate::wire::{Ack, Level};

/// Changes of which each is reported less than this after the one before are a stream.
const STREAM: Duration = Duration::from_millis(250);
/// So many of a stream are reported at once, each by itself.
const AT_ONCE: u32 = 4;
/// Reports of a stream gather for so long: behind the fan-out of a change, and together, so that a server reads many at a
/// time.
const GATHER: Duration = Duration::from_millis(50);
/// With so many transfers to answer they are said after this time,
const SOON: (u64, Duration) = (3, Duration::from_millis(6));
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
    /// The revision of which was said last, when, and how many one soon after the other.
    said: Option<(Position, Time)>,
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
    pub(super) fn verified(&mut self, bytes: usize) {
        self.verified.transfers += 1;
        self.verified.bytes += bytes as u64;
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
        let open = self.verified.transfers - self.reported.transfers;
        now + if open >= SOON.0 { SOON.1 } else { GATHER }
    }

    /// Until when what was set may wait; `None`: it is to be said now. `more`: what is reached next follows soon.
    pub(super) fn may_wait(&mut self, now: Time, more: bool, window: u32) -> Option<Time> {
        let open = self.verified.transfers - self.reported.transfers;
        if open >= HALF || self.verified.bytes - self.reported.bytes >= u64::from(window / 2) {
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
        self.streak >= AT_ONCE && self.said.is_some_and(|(_, at)| now.saturating_since(at) < STREAM)
    }

    /// The time has come; nothing may be there to be said.
    pub(super) fn time(&mut self) {
        self.planned = None;
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
    pub(super) fn said(&mut self, now: Time) {
        let Some(position) = self.now.as_ref().map(|ack| ack.position) else { return };
        match self.said {
            Some((_, at)) if now.saturating_since(at) >= STREAM => self.streak = 0,
            Some((last, _)) if last != position => self.streak = self.streak.saturating_add(1),
            _ => {}
        }
        self.said = Some((position, now));
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
