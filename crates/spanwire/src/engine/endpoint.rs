//! Endpoints: addresses that a socket listens on or dials, and when to try again.
//!
//! The reconnect policy is [`Backoff`]: it doubles from `reconnect_min` to
//! `reconnect_max`, each time a random half to the whole of it, and goes back to the start only after a connection that
//! lived for `STABLE` and for at least the last delay. It counts every kind of failure alike: refused,
//! unreachable, a wrong protocol, a handshake that timed out. So does a connection that this side ended for what the
//! peer did (a frame too large, a word of its protocol), unless it lived for longer than the longest delay.
//!
//! Owns: the state of each endpoint. Never: does I/O; dialling and resolving are jobs for whoever drives.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::drive::Door;
use crate::protocol::{PipeId, Reason, Time};
use crate::transport::{Dialer, Target};

/// A connection that lived this long, and as long as the delay before it, resets the backoff.
const STABLE: Duration = Duration::from_secs(1);
/// A second failure in a row waits at least about this long, whatever the configured minimum.
const FLOOR: Duration = Duration::from_millis(2);
/// While one address of a name does not answer, the next is tried beside it after this long (RFC 8305
/// recommends 250 ms).
pub(crate) const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// When to dial again.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    last: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max: max.max(min), failures: 0, last: Duration::ZERO }
    }

    /// The delay before the next attempt; `random` is any number. A first failure waits for half to the
    /// whole of `min`, a second for half to the whole of twice that, and so on up to `max`: nothing spins, few collide.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        // With a minimum of zero the first retry is immediate; the later ones must not spin.
        let base = if self.failures == 0 { self.min } else { self.min.max(FLOOR) };
        let ceiling = base.saturating_mul(1 << self.failures.min(20)).min(self.max.max(base));
        self.failures = self.failures.saturating_add(1);
        let half = ceiling / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        self.last = half.saturating_add(Duration::from_nanos(random % nanos.saturating_add(1)));
        self.last
    }

    /// A connection ended that had lived for `lived`. For a cause in what the peer did, it may end so each time,
    /// however long that takes: it is no success before such conversations are as rare as attempts in vain.
    pub(crate) fn lived(&mut self, lived: Duration, why: &Reason) {
        let least = match why {
            Reason::Peer | Reason::Broken(_) | Reason::Local => self.last,
            _ => self.max,
        };
        if lived >= STABLE.max(least) {
            self.failures = 0;
        }
    }
}

/// What an endpoint's connections get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndpointConfig {
    pub(crate) send_priority: u8,
    pub(crate) recv_priority: u8,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) reconnect: bool,
}

pub(crate) enum Kind {
    Listener {
        token: usize,
        door: Door,
    },
    Dialer {
        dialer: Arc<dyn Dialer>,
        backoff: Backoff,
        /// Addresses not yet tried in this attempt.
        targets: VecDeque<Target>,
        /// Connections on their way.
        attempts: Vec<usize>,
        /// The connection that made it.
        pipe: Option<PipeId>,
        since: Time,
        resolving: bool,
        /// The next attempt has its time.
        waiting: bool,
    },
}

pub(crate) struct Endpoint {
    pub(crate) url: Arc<str>,
    pub(crate) cfg: EndpointConfig,
    pub(crate) kind: Kind,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Listener { .. } => "listener",
            Kind::Dialer { .. } => "dialer",
        };
        write!(f, "{kind} {}", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn promise_14_delays_double_within_their_jitter_up_to_the_cap() {
        for random in [0, 1, u64::MAX / 3, u64::MAX] {
            let mut b = Backoff::new(MIN, MAX);
            let mut ceiling = MIN;
            for _ in 0..40 {
                let d = b.next(random);
                assert!(d >= ceiling / 2 && d <= ceiling, "{d:?} for {ceiling:?}");
                ceiling = (ceiling * 2).min(MAX);
            }
        }
    }

    #[test]
    fn promise_14_only_a_connection_that_lived_resets_the_delay() {
        let mut b = Backoff::new(MIN, MAX);
        for _ in 0..10 {
            b.next(0);
            b.lived(Duration::from_millis(5), &Reason::Peer); // accepted and refused, again and again
        }
        assert_eq!(b.next(0), MAX / 2);
        b.lived(Duration::from_secs(60), &Reason::Peer);
        assert_eq!(b.next(0), MIN / 2);
    }

    #[test]
    fn promise_14_what_ends_for_a_cause_resets_the_delay_only_after_the_longest() {
        let mut b = Backoff::new(MIN, MAX);
        for _ in 0..10 {
            b.next(0);
            b.lived(MAX - MIN, &Reason::Malformed);
        }
        assert_eq!(b.next(0), MAX / 2);
        b.lived(MAX, &Reason::Malformed);
        assert_eq!(b.next(0), MIN / 2);
    }

    #[test]
    fn promise_14_a_minimum_of_zero_retries_at_once_and_then_does_not_spin() {
        let mut b = Backoff::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(b.next(7), Duration::ZERO);
        assert!((0..10).all(|i| b.next(i) >= FLOOR / 2));
    }
}
