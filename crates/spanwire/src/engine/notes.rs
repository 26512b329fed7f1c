//! Notices to a socket's event loop from things that are no descriptor: inproc, a transport's own threads.
//!
//! A notice costs a system call only when the loop sleeps. The handshake with the sleeper is the lock around the
//! list: under it the sleeper looks at the list and says that it sleeps; under it a notifier adds to the list
//! and looks whether somebody sleeps. Whoever comes second sees the other. To say that it is awake
//! the loop needs no lock: a notifier that misses it wakes the loop for nothing. Who says that it sleeps next is
//! ordered after that by the socket's lock.
//!
//! Owns: the list and the waker. Never: touches the socket's state or its lock.

use std::fmt;
use std::sync::{Arc, PoisonError};

use mio::Token;

use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// The notices of one socket.
pub(crate) struct Notes {
    waker: mio::Waker,
    asleep: AtomicBool,
    list: Mutex<Vec<(Token, Arc<AtomicBool>)>>,
}

impl Notes {
    pub(crate) fn new(waker: mio::Waker) -> Arc<Notes> {
        Arc::new(Notes { waker, asleep: AtomicBool::new(false), list: Mutex::new(Vec::new()) })
    }

    fn list(&self) -> MutexGuard<'_, Vec<(Token, Arc<AtomicBool>)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop is about to sleep, or somebody watches it who does. `false`: there are notices, do not.
    pub(crate) fn sleep(&self) -> bool {
        let list = self.list();
        let quiet = list.is_empty();
        self.asleep.store(quiet, Ordering::Relaxed);
        quiet
    }

    /// The loop runs and will look at the notices before it sleeps.
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Takes the notices; from here on each source may give another.
    pub(crate) fn take(&self, into: &mut Vec<Token>) {
        for (token, pending) in self.list().drain(..) {
            // A swap, not a store: it must see what a notice that found this flag set stands for, also if its
            // source has no lock that would order the two.
            pending.swap(false, Ordering::AcqRel);
            into.push(token);
        }
    }

    /// Interrupts the poll of whoever leads or watches.
    pub(crate) fn nudge(&self) {
        // A full pipe or eventfd means a wake is pending already.
        let _ = self.waker.wake();
    }

    pub(crate) fn notifier(self: &Arc<Self>, token: Token) -> Notifier {
        Notifier { notes: self.clone(), token, pending: Arc::new(AtomicBool::new(false)) }
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").field("asleep", &self.asleep).finish_non_exhaustive()
    }
}

/// Tells a socket's event loop that a connection or a listener has something to do.
///
/// May be kept by any thread. A notice that was given and not yet taken absorbs further ones.
#[derive(Clone)]
pub struct Notifier {
    notes: Arc<Notes>,
    token: Token,
    pending: Arc<AtomicBool>,
}

impl Notifier {
    /// Has the owner of this connection or listener called again: its `establish`, `handshake`, `recv`, `send` or `accept`.
    pub fn notify(&self) {
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut list = self.notes.list();
        list.push((self.token, self.pending.clone()));
        let asleep = self.notes.asleep.swap(false, Ordering::Relaxed);
        drop(list);
        if asleep {
            self.notes.nudge();
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("token", &self.token).finish_non_exhaustive()
    }
}
