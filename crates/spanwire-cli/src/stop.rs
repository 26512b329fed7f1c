//! The end by a signal: the socket is closed in order, and whoever waits is told.
//!
//! The first SIGINT or SIGTERM closes the socket, which ends every wait on it; the second does not wait for
//! the linger.
//!
//! Owns: whether a signal came, and what that close said. Never: decides the exit code.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared with the thread that signals run on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    signalled: bool,
    /// Undelivered messages, or the error, of the close that the signal caused.
    closed: Option<Result<usize, String>>,
}

/// Exit code of a command that a signal ended before it was done, as shells have it for SIGINT.
pub(crate) const SIGNALLED: u8 = 130;

impl Stop {
    /// `close` will run once, at the first signal.
    pub(crate) fn on_signal(
        &self,
        close: impl Fn() -> Result<usize, String> + Clone + Send + 'static,
    ) -> Result<(), String> {
        let stop = self.clone();
        let handler = move || {
            if std::mem::replace(&mut stop.state().signalled, true) {
                std::process::exit(SIGNALLED.into());
            }
            stop.0.changed.notify_all();
            let (stop, close) = (stop.clone(), close.clone());
            // Elsewhere, so that a second signal finds this thread free.
            std::thread::spawn(move || {
                let result = close();
                stop.state().closed = Some(result);
                stop.0.changed.notify_all();
            });
        };
        ctrlc::set_handler(handler).map_err(|e| format!("failed to set up the signal handler: {e}"))
    }

    pub(crate) fn signalled(&self) -> bool {
        self.state().signalled
    }

    /// Sleeps; `false` if a signal ended it.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now().checked_add(time);
        let mut state = self.state();
        while !state.signalled {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return true;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// What the close said that the signal caused, once it has.
    pub(crate) fn closed(&self) -> Result<usize, String> {
        let waited = self.0.changed.wait_while(self.state(), |state| state.closed.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).closed.clone().unwrap_or(Ok(0))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
