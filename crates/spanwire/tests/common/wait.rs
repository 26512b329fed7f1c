//! Waiting for what gives no event, in the one place where these tests look again and again.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine; nothing is expected to need it.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Looks again and again until `f` gives something.
#[track_caller]
pub(crate) fn eventually<T>(what: impl Display, mut f: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(began.elapsed() < SOON, "never: {what}");
        // Counters and states are looked at from outside, and tell nobody that they changed.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same for a condition.
#[track_caller]
pub(crate) fn until(what: impl Display, mut f: impl FnMut() -> bool) {
    eventually(what, || f().then_some(()));
}
