//! When the directory of a server is to be read again.
//!
//! Owns: the word of a change, and the time without one. Never: reads it.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use notify::Watcher;

use crate::process::{Log, Shutdown};

/// Watches the tree; a failure only means that changes are seen by the next reading.
pub(super) fn watch(
    dir: &Path,
    rescan: Duration,
    log: &Log,
) -> (Receiver<()>, Option<notify::RecommendedWatcher>) {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        use notify::event::{AccessKind, AccessMode, EventKind};
        // Reading is no change; reading the tree would cause the next reading.
        if let Ok(notify::Event { kind: EventKind::Access(how), .. }) = &event
            && *how != AccessKind::Close(AccessMode::Write)
        {
            return;
        }
        // One pending word is enough, whatever it was about.
        let _ = sender.try_send(());
    });
    let watcher = made.and_then(|mut watcher| {
        watcher.watch(dir, notify::RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => (receiver, Some(watcher)),
        Err(error) => {
            log.say(format_args!("the tree is read every {:?}: it cannot be watched: {error}", rescan));
            // The sender lives in the watcher; without it the channel would look closed.
            (crossbeam_channel::never(), None)
        }
    }
}

pub(super) enum Next {
    Read,
    Over,
}

/// Waits for a word of a change and quiet after it, for the time of a reading, or for the end.
pub(super) fn next(
    changed: &Receiver<()>,
    shutdown: &Shutdown,
    rescan: Duration,
    debounce: Duration,
) -> Next {
    crossbeam_channel::select! {
        recv(shutdown.0) -> _ => return Next::Over,
        recv(changed) -> _ => {}
        default(rescan) => return Next::Read,
    }
    // At most ten times the quiet time: a tree that never rests is read all the same.
    let latest = Instant::now() + debounce * 10;
    while Instant::now() < latest {
        match changed.recv_timeout(debounce) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if shutdown.is_over() { Next::Over } else { Next::Read }
}
