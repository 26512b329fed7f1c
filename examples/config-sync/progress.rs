//! How far a long transfer is: a line on standard error that is written over, if that is a terminal.
//!
//! Owns: the line. Never: output where a file or a pipe takes it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A transfer that takes less is not worth a word.
const QUIET: Duration = Duration::from_millis(300);
const BETWEEN: Duration = Duration::from_millis(100);

/// The progress of one transfer; the line goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    terminal: bool,
    next: Instant,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(what: &'static str) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress { what, terminal, next: Instant::now() + QUIET, shown: false }
    }

    /// So many bytes of so many.
    pub(crate) fn at(&mut self, done: u64, whole: u64) {
        if !self.terminal || Instant::now() < self.next {
            return;
        }
        (self.next, self.shown) = (Instant::now() + BETWEEN, true);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let percent = done.min(whole) * 100 / whole.max(1);
        let line = format!("\r{}: {:.1} of {:.1} MiB ({percent} %)\x1b[K", self.what, mib(done), mib(whole));
        // A terminal that is gone is none.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
