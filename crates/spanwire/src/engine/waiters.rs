//! Who waits for a socket: a thread that parks, a task, or a `Poller`.
//!
//! Owns: how each is woken. Never: decides who is (that is `lead`), or wakes under a lock.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread::Thread;
use std::time::Instant;

use super::lead::Waiter;

/// A thread's place to sleep.
#[derive(Debug)]
pub(crate) struct Parker {
    thread: Thread,
    told: AtomicBool,
}

impl Parker {
    /// This thread's.
    pub(crate) fn mine() -> Arc<Parker> {
        thread_local! {
            static MINE: Cell<Option<Arc<Parker>>> = const { Cell::new(None) };
        }
        let fresh = || Arc::new(Parker { thread: std::thread::current(), told: AtomicBool::new(false) });
        // While the thread's locals are being destroyed there is no slot: then a fresh one serves.
        MINE.try_with(|slot| {
            let mine = slot.take().unwrap_or_else(fresh);
            slot.set(Some(mine.clone()));
            mine
        })
        .unwrap_or_else(|_| fresh())
    }

    /// Before it is queued.
    pub(crate) fn arm(&self) {
        self.told.store(false, Ordering::Relaxed);
    }

    /// Sleeps until told, or until the deadline.
    pub(crate) fn park(&self, deadline: Option<Instant>) {
        while !self.told.load(Ordering::Acquire) {
            match deadline {
                None => std::thread::park(),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    std::thread::park_timeout(left);
                }
            }
        }
    }
}

/// One who waits.
#[derive(Debug)]
pub(crate) enum Who {
    Thread(Arc<Parker>),
    Task(Waker),
    Poller(Arc<mio::Waker>),
}

impl Waiter for Who {
    fn can_drive(&self) -> bool {
        !matches!(self, Who::Task(_))
    }
}

impl Who {
    pub(crate) fn wake(self) {
        match self {
            Who::Thread(parker) => {
                parker.told.store(true, Ordering::Release);
                parker.thread.unpark();
            }
            Who::Task(waker) => waker.wake(),
            Who::Poller(waker) => {
                // An error means that a wake is pending already.
                let _ = waker.wake();
            }
        }
    }
}
