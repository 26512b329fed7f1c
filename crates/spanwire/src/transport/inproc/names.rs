//! The table of names: who listens, and who has dialled and waits for that.
//!
//! Owns: a name from the first that wants it to the last. Never: gives a notice under the table's lock; takes a
//! name of the parent's away in a forked child.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::link::{DIALER, LISTENER, Link, Pipe};
use super::lock;
use crate::transport::{Connection, Dialer, Listener, Notifier, Registrar, Target};

/// What is known of a name. It is in the table while it is bound or waited for.
#[derive(Default)]
pub(super) struct Name {
    pub(super) bound: bool,
    /// Of the listener, once it is registered.
    pub(super) notifier: Option<Notifier>,
    /// Dialled and not yet accepted, in order of arrival.
    pub(super) waiting: BTreeMap<u64, Arc<Link>>,
}

pub(super) fn names() -> MutexGuard<'static, HashMap<String, Name>> {
    static NAMES: OnceLock<Mutex<HashMap<String, Name>>> = OnceLock::new();
    lock(NAMES.get_or_init(Mutex::default))
}

#[derive(Debug)]
pub(super) struct InprocDialer {
    pub(super) name: String,
}

impl Dialer for InprocDialer {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let link = Arc::new(Link { process, name: self.name.clone(), number, ..Link::default() });
        Ok(Connection::Messages(Box::new(Pipe::new(link, DIALER))))
    }
}

#[derive(Debug)]
pub(super) struct InprocListener {
    /// As in a link.
    pub(super) process: u32,
    pub(super) name: String,
}

impl Listener for InprocListener {
    fn url(&self) -> String {
        format!("inproc://{}", self.name)
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        let notifier = registrar.notifier();
        if let Some(entry) = names().get_mut(&self.name) {
            entry.notifier = Some(notifier.clone());
        }
        // For those who waited already.
        notifier.notify();
        Ok(())
    }

    fn accept(&mut self) -> io::Result<Connection> {
        let next = names().get_mut(&self.name).and_then(|entry| entry.waiting.pop_first());
        let (_, link) = next.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(Connection::Messages(Box::new(Pipe::new(link, LISTENER))))
    }
}

impl Drop for InprocListener {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let mut names = names();
        if let Some(entry) = names.get_mut(&self.name) {
            entry.bound = false;
            entry.notifier = None;
            if entry.waiting.is_empty() {
                names.remove(&self.name);
            }
        }
    }
}
