//! When to try again what failed: later after each failure, up to a bound, and not all nodes at once.
//!
//! Owns: the time of the next try. Never: a clock, or randomness of its own; a try.

use std::time::{Duration, Instant};

use spanwire::protocol::Time;

use crate::Id;

/// A clock that a wait can be counted on.
pub(crate) trait Clock: Copy + PartialOrd {
    /// So much later; `None`: later than the clock can tell, which is never.
    fn after(self, wait: Duration) -> Option<Self>;
}

impl Clock for Instant {
    fn after(self, wait: Duration) -> Option<Instant> {
        self.checked_add(wait)
    }
}

impl Clock for Time {
    fn after(self, wait: Duration) -> Option<Time> {
        Some(self + wait)
    }
}

/// The wait after a first failure, and the longest.
pub(crate) const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One thing that may fail several times in a row.
#[derive(Clone, Debug)]
pub(crate) struct Again<T = Instant> {
    first: Duration,
    most: Duration,
    failures: u32,
    at: Option<T>,
}

impl<T> Default for Again<T> {
    fn default() -> Again<T> {
        Again::new(WAIT.0, WAIT.1)
    }
}

impl<T> Again<T> {
    /// The wait doubles from `first` to `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Again<T> {
        Again { first, most: most.max(first), failures: 0, at: None }
    }
}

impl<T: Clock> Again<T> {
    /// It failed at `now`. A try that is due later already stays; else one is due after half to the whole of the wait,
    /// by `random`, which is any number. Whether this is the first failure in a row.
    pub(crate) fn failed(&mut self, now: T, random: u64) -> bool {
        let is_first = self.failures == 0;
        if self.at.is_none_or(|at| at <= now) {
            let whole = self.first.saturating_mul(1 << self.failures.min(20)).min(self.most);
            let half = u64::try_from((whole / 2).as_nanos()).unwrap_or(u64::MAX);
            let wait = whole.saturating_sub(Duration::from_nanos(random % half.saturating_add(1)));
            self.failures = self.failures.saturating_add(1);
            self.at = now.after(wait);
        }
        is_first
    }

    /// It went well, or is not wanted any more. Whether it had failed before.
    pub(crate) fn done(&mut self) -> bool {
        self.at = None;
        std::mem::take(&mut self.failures) > 0
    }

    /// When the next try is due, if one is.
    pub(crate) fn at(&self) -> Option<T> {
        self.at
    }

    /// Whether a try is due at `now`; once.
    pub(crate) fn is_due(&mut self, now: T) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

/// For [`Again::failed`]. Without randomness nodes may try at the same time, which is no harm to any of them alone.
pub(crate) fn random() -> u64 {
    Id::random().map_or(0, chance_of)
}

/// The same for a machine without randomness of its own, from the random id of its node.
pub(crate) fn chance_of(Id(bytes): Id) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(10);

    #[test]
    fn waits_double_to_the_bound_within_their_jitter_and_begin_anew_after_success() {
        let now = Instant::now();
        let mut waits = Vec::new();
        for random in [0, 1, u64::MAX / 3, u64::MAX - 1, u64::MAX] {
            let mut again = Again::new(FIRST, MOST);
            for turn in 0..1000_u32 {
                assert_eq!(again.failed(now, random), turn == 0);
                let wait = again.at().expect("due") - now;
                let whole = FIRST.saturating_mul(1 << turn.min(20)).min(MOST);
                assert!(wait >= whole / 2 && wait <= whole, "{turn}: {wait:?} of {whole:?}");
                waits.push(wait);
                assert!(!again.is_due(now));
                assert!(again.is_due(now + wait) && !again.is_due(now + wait), "due once");
            }
            assert!(again.done() && !again.done());
            assert!(again.failed(now, 0), "the first again");
            assert_eq!(again.at(), Some(now + FIRST));
        }
        waits.retain(|wait| *wait > MOST / 2);
        waits.sort();
        waits.dedup();
        assert!(waits.len() > 3, "not all at once: {waits:?}");
    }

    #[test]
    fn what_fails_again_before_the_next_try_neither_hurries_nor_puts_it_off() {
        let now = Instant::now();
        let mut again = Again::new(FIRST, MOST);
        again.failed(now, 0);
        assert!((1..100).all(|n| !again.failed(now + FIRST * n / 100, n.into())));
        assert_eq!(again.at(), Some(now + FIRST));
        // The next try is counted once.
        again.failed(now + FIRST, 0);
        assert_eq!(again.at(), Some(now + FIRST + FIRST * 2));
        // Beyond any clock: never, and no panic.
        let mut never = Again::new(Duration::MAX, FIRST);
        never.failed(now, 0);
        assert_eq!(never.at(), None);
    }
}
