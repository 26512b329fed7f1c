//! A small executor: the futures of one thread, polled when they were woken.
//!
//! Owns: nothing that a socket knows of, which is its purpose. Never: spins.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

struct Flag {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Runs all `tasks` on this thread, to their ends.
#[track_caller]
pub(super) fn run_all<const N: usize>(tasks: [Pin<Box<dyn Future<Output = ()> + '_>>; N], limit: Duration) {
    let deadline = Instant::now() + limit;
    let thread = std::thread::current();
    let flag = || Arc::new(Flag { woken: AtomicBool::new(true), thread: thread.clone() });
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (task, flag())).collect();
    while !tasks.is_empty() {
        let mut polled = false;
        tasks.retain_mut(|(task, flag)| {
            if !flag.woken.swap(false, Ordering::AcqRel) {
                return true;
            }
            polled = true;
            task.as_mut().poll(&mut Context::from_waker(&Waker::from(flag.clone()))).is_pending()
        });
        if !polled {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {N} futures are not ready and nobody woke them", tasks.len());
            std::thread::park_timeout(left);
        }
    }
}
