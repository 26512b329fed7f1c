//! A source in a thread of its own, so that nobody who holds the machine waits for a disk.
//!
//! While a sync is under way the machine takes commits, and all that gathered goes with the next: that is what
//! makes one sync serve many.
//!
//! Owns: the source. Never: decides, reorders or repeats what it is told.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::{Health, Source, perform};
use crate::{AuthorityAction, AuthorityEvent};

enum Task {
    Act(Box<AuthorityAction>),
    Health(Sender<Health>),
}

/// The thread that writes. Ends, after what it was told, when this is dropped.
#[derive(Debug)]
pub struct Writer {
    /// Bounded by the machine: one append, one compaction and one raise at a time, and a look-up for each HEAD
    /// that a node shows.
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it over a source that is loaded. `tell` hears, in the writer's thread, how each action ended;
    /// it hands the event to the machine, and what the machine then says to [`perform`](Writer::perform).
    ///
    /// # Errors
    /// The system's, when there can be no thread.
    pub fn spawn<S: Source + Send + 'static>(
        mut source: S,
        mut tell: impl FnMut(AuthorityEvent) + Send + 'static,
    ) -> io::Result<Writer> {
        let (tasks, inbox) = channel();
        let work = move || {
            for task in inbox {
                let action = match task {
                    Task::Act(action) => *action,
                    Task::Health(to) => {
                        // Who asked may have gone.
                        let _ = to.send(source.health());
                        continue;
                    }
                };
                if let Ok(event) = perform(&mut source, action) {
                    tell(event);
                }
            }
            source.end();
        };
        let thread = std::thread::Builder::new().name("spanwire-store".into()).spawn(work)?;
        Ok(Writer { tasks: Some(tasks), thread: Some(thread) })
    }

    /// Does an action if it is the store's; gives back what is another's, or what cannot be done because the
    /// thread is gone (its `tell` panicked). Never waits.
    pub fn perform(&self, action: AuthorityAction) -> Option<AuthorityAction> {
        let stores = matches!(
            action,
            AuthorityAction::Append(_)
                | AuthorityAction::Compact(_)
                | AuthorityAction::RaiseOpened(_)
                | AuthorityAction::Recall(_)
        );
        if !stores {
            return Some(action);
        }
        match self.tasks.as_ref().map(|tasks| tasks.send(Task::Act(Box::new(action)))) {
            Some(Err(lost)) => match lost.0 {
                Task::Act(action) => Some(*action),
                Task::Health(_) => None,
            },
            _ => None,
        }
    }

    /// How the store is, after all that it was told so far.
    pub fn health(&self) -> Health {
        let (to, answer) = channel();
        let gone = || Health { stopped: Some("the writer has ended".into()), ..Health::default() };
        match self.tasks.as_ref().map(|tasks| tasks.send(Task::Health(to))) {
            Some(Ok(())) => answer.recv().unwrap_or_else(|_| gone()),
            _ => gone(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.tasks = None;
        // Dropped by its own `tell`, it cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}
