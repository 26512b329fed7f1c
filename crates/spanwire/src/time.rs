//! Monotonic time as protocols see it.
//!
//! A [`Time`] counts from an arbitrary start that is the same for the whole process. Never: wall-clock time;
//! nothing in this library decides by a wall clock.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A point on a monotonic clock, counted from an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Time(Duration);

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

impl Time {
    /// The start of the clock.
    pub const ZERO: Time = Time(Duration::ZERO);

    /// The time that is `since_start` after the start: for simulations.
    pub const fn from_start(since_start: Duration) -> Time {
        Time(since_start)
    }

    /// How long after the start this is.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long this is after `earlier`; zero if it is not.
    pub fn saturating_since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Reads the clock. Protocols never do: they ask [`Cx::now`](crate::protocol::Cx::now).
    pub(crate) fn now() -> Time {
        Time(start().elapsed())
    }

    pub(crate) fn of(at: Instant) -> Time {
        Time(at.saturating_duration_since(start()))
    }

    pub(crate) fn instant(self) -> Instant {
        start().checked_add(self.0).unwrap_or_else(|| start() + Duration::from_secs(1 << 32))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    /// Saturates: a deadline further away than the clock can count is "never".
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(d))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, earlier: Time) -> Duration {
        self.saturating_since(earlier)
    }
}
