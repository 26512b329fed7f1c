//! A socket that a tokio runtime drives, in place of the background driver.
//!
//! Owns: the task that does so, and the socket's place in the runtime's poll. Never: reads, writes or waits itself (the
//! engine does), or keeps a socket open.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::Socket;
use crate::engine::{CALLERS_LEAD, Core, contain};
use crate::error::Error;
use crate::protocol::Protocol;

impl<P: Protocol> Socket<P> {
    /// Has the tokio runtime in whose context this is called drive the socket, for all its clones: what arrives is read
    /// by a task of the runtime, on the thread that heard of it. A future that is awaited there, in a spawned task or in
    /// the `block_on` of a `current_thread` runtime, is then woken without a change of threads; without this call the
    /// library's background thread reads and wakes it. Everything else stays as it is: the socket may be used by other
    /// runtimes and threads as well.
    ///
    /// It ends when the runtime does, or when the socket is closed; the background thread then drives the socket again.
    /// While a runtime drives the socket a further call changes nothing. A runtime whose threads are all busy, or
    /// blocked, serves the socket late, as it does its own, and one of one thread only in `block_on`: nobody else reads
    /// for it then, nor writes what is queued, but a thread that calls the socket itself. So a program that blocks its
    /// runtime until a peer has all that it queued may wait for ever.
    ///
    /// Where the library runs without Linux's epoll this has no effect.
    ///
    /// # Errors
    /// [`Error::System`] outside a runtime, in one without I/O, and when the system has no more descriptors;
    /// [`Error::Closed`]; [`Error::Forked`].
    pub fn drive_on_tokio(&self) -> Result<(), Error> {
        let core = self.core();
        if core.forked() {
            return Err(Error::Forked);
        }
        let runtime = Handle::try_current().map_err(|why| Error::System(io::Error::other(why)))?;
        if !CALLERS_LEAD {
            return Ok(());
        }
        let place = contain(|| place(core)).map_err(Error::System)?;
        let task = Arc::new(OnceLock::new());
        if core.go_outside(Box::new(Ends(task.clone())))? {
            let back = Back(Arc::downgrade(core));
            // In a runtime that has ended the future is dropped at once.
            let _ = task.set(runtime.spawn(run(place, back)).abort_handle());
            if !core.is_outside() {
                drop(Ends(task)); // it came back before there was a task to end
            }
        }
        Ok(())
    }
}

/// The socket's poll in the runtime's, by a copy of its descriptor. It panics where the runtime has no I/O.
#[allow(
    deprecated,
    reason = "newer versions have it only as an unsafe function; a `Registry` owns its descriptor"
)]
fn place(core: &Core) -> io::Result<AsyncFd<mio::Registry>> {
    AsyncFd::with_interest(core.registry.try_clone()?, Interest::READABLE)
}

/// The task: a round for each event, and again until all has been seen.
async fn run(place: AsyncFd<mio::Registry>, back: Back) {
    while let Ok(mut ready) = place.readable().await {
        ready.clear_ready(); // before the round: what comes during it is another event
        loop {
            let Some(core) = back.0.upgrade() else { return };
            match core.survive(Core::drive_outside) {
                Some(true) => {}
                Some(false) => break,
                None => return, // a panic: the socket is closed
            }
            drop(core);
            tokio::task::yield_now().await;
        }
    }
}

/// Kept by the task: when it ends, of itself or with its runtime, the background driver goes on.
struct Back(Weak<Core>);

impl Drop for Back {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.come_back();
        }
    }
}

/// Kept by the socket: when it closes, the task ends.
struct Ends(Arc<OnceLock<AbortHandle>>);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(task) = self.0.get() {
            task.abort();
        }
    }
}
