//! The kernel's part: a socket's poll, nested in the driver's and in a `Poller`'s, all edge-triggered.
//!
//! One lock, as if every system call were atomic. An edge of the inner poll is kept until somebody polls it; the outer
//! polls are told at the moment of the edge, once, and when they begin to listen while one is pending.
//!
//! Owns: what has arrived, what was sent, the clock. Never: knows who leads.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

/// A time that has always come: polls with it do not sleep.
pub(crate) const NOW: Option<u32> = Some(0);
/// What the kernel takes before the peer has read.
const ROOM: u32 = 1;

#[derive(Default)]
struct K {
    clock: u32,
    /// Messages in the socket's receive buffer.
    bytes: u32,
    /// The inner poll's ready list: READABLE, WRITABLE, the waker.
    readable: bool,
    writable: bool,
    woken: bool,
    armed: bool,
    parent: bool,
    /// The `Poller`'s poll holds the inner one.
    joined: bool,
    outer: bool,
    outer_told: bool,
    posted: bool,
    stop: bool,
    sent: u32,
    peer_got: u32,
}

impl K {
    fn pending(&self) -> bool {
        self.readable || self.writable || self.woken
    }
}

/// One socket's view of the kernel, and the driver's inbox.
pub(crate) struct Kernel {
    k: Mutex<K>,
    inner: Condvar,
    parent: Condvar,
    outer: Condvar,
    peer: Condvar,
}

/// Why the driver's poll returned.
pub(crate) struct Woke {
    pub(crate) stop: bool,
    pub(crate) posted: bool,
    pub(crate) event: bool,
    pub(crate) due: bool,
}

impl Kernel {
    pub(crate) fn new() -> Arc<Kernel> {
        Arc::new(Kernel {
            k: Mutex::new(K::default()),
            inner: Condvar::new(),
            parent: Condvar::new(),
            outer: Condvar::new(),
            peer: Condvar::new(),
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut K) -> R) -> R {
        f(&mut self.k.lock().unwrap())
    }

    /// An edge of the inner poll, for all who listen.
    fn edge(&self, k: &mut K) {
        self.inner.notify_all();
        if k.armed {
            k.parent = true;
            self.parent.notify_all();
        }
        if k.joined {
            k.outer = true;
            self.outer.notify_all();
        }
    }

    pub(crate) fn arrive(&self, n: u32) {
        self.with(|k| {
            k.bytes += n;
            k.readable = true;
            self.edge(k);
        });
    }

    pub(crate) fn wake(&self) {
        self.with(|k| {
            k.woken = true;
            self.edge(k);
        });
    }

    /// Polls the inner poll: (READABLE, WRITABLE). `until`: no limit, or a time.
    pub(crate) fn poll(&self, until: Option<u32>) -> (bool, bool) {
        let mut k = self.k.lock().unwrap();
        while !k.pending() && until.is_none_or(|at| k.clock < at) {
            k = self.inner.wait(k).unwrap();
        }
        k.woken = false;
        (std::mem::take(&mut k.readable), std::mem::take(&mut k.writable))
    }

    /// Reads one message.
    pub(crate) fn read(&self) -> bool {
        self.with(|k| {
            let some = k.bytes > 0;
            k.bytes -= u32::from(some);
            some
        })
    }

    pub(crate) fn write(&self) -> bool {
        self.with(|k| {
            let room = k.sent - k.peer_got < ROOM;
            k.sent += u32::from(room);
            self.peer.notify_all();
            room
        })
    }

    /// The peer waits for a message and reads it; full no longer: a WRITABLE edge.
    pub(crate) fn peer_reads(&self) {
        let mut k = self.k.lock().unwrap();
        while k.sent == k.peer_got {
            k = self.peer.wait(k).unwrap();
        }
        k.peer_got += 1;
        k.writable = true;
        self.edge(&mut k);
    }

    // ------------------------------------------------------------ the clock

    pub(crate) fn clock(&self) -> u32 {
        self.with(|k| k.clock)
    }

    pub(crate) fn advance(&self, to: u32) {
        self.with(|k| {
            k.clock = to;
            self.inner.notify_all();
            self.parent.notify_all();
            self.outer.notify_all();
        });
    }

    // ------------------------------------------------------------ the driver's poll

    pub(crate) fn arm(&self) {
        self.with(|k| {
            k.armed = true;
            if k.pending() {
                k.parent = true;
                self.parent.notify_all();
            }
        });
    }

    pub(crate) fn disarm(&self) {
        self.with(|k| {
            k.armed = false;
            k.parent = false;
        });
    }

    pub(crate) fn post(&self) {
        self.with(|k| {
            k.posted = true;
            self.parent.notify_all();
        });
    }

    pub(crate) fn stop(&self) {
        self.with(|k| {
            k.stop = true;
            self.parent.notify_all();
        });
    }

    /// The driver's sleep. `busy`: it has something to come back for at once.
    pub(crate) fn driver_waits(&self, busy: bool, due: Option<u32>) -> Woke {
        let mut k = self.k.lock().unwrap();
        let past = |k: &K| due.is_some_and(|at| at <= k.clock);
        while !(k.posted || k.parent || k.stop || busy || past(&k)) {
            k = self.parent.wait(k).unwrap();
        }
        let due = past(&k);
        Woke {
            stop: k.stop,
            posted: std::mem::take(&mut k.posted),
            event: std::mem::take(&mut k.parent),
            due,
        }
    }

    // ------------------------------------------------------------ a `Poller`'s poll

    pub(crate) fn join(&self) {
        self.with(|k| {
            k.joined = true;
            k.outer |= k.pending();
        });
    }

    pub(crate) fn tell_outer(&self) {
        self.with(|k| {
            k.outer_told = true;
            self.outer.notify_all();
        });
    }

    pub(crate) fn outer_is_told(&self) -> bool {
        self.with(|k| std::mem::take(&mut k.outer_told))
    }

    /// The `Poller`'s sleep: (an event of the inner poll, told).
    pub(crate) fn outer_waits(&self, until: Option<u32>) -> (bool, bool) {
        let mut k = self.k.lock().unwrap();
        while !(k.outer || k.outer_told || until.is_some_and(|at| at <= k.clock)) {
            k = self.outer.wait(k).unwrap();
        }
        (std::mem::take(&mut k.outer), std::mem::take(&mut k.outer_told))
    }
}

/// The waker of a socket's poll.
pub struct Waker(pub(crate) Arc<Kernel>);

impl Waker {
    /// Interrupts the poll, now or the next time. Never fails here.
    pub fn wake(&self) -> std::io::Result<()> {
        self.0.wake();
        Ok(())
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker(..)")
    }
}
