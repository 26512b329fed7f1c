//! What the two processes of config-sync share: ending, and words for people.
//!
//! Owns: the shutdown signal and the translation of socket events. Never: decides what a process does.

mod told;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use spanwire::Event;
use told::Connections;

use crate::sign::Keyring;
use crate::{Head, Id};

/// Ends a running [`serve`](crate::serve::run) or [`agent`](crate::agent::run) when it is dropped.
#[derive(Debug)]
pub struct Stopper(#[expect(dead_code, reason = "dropping it is the signal")] Sender<()>);

/// Told to a running process: end when the [`Stopper`] is dropped.
#[derive(Clone, Debug)]
pub struct Shutdown(pub(crate) Receiver<()>);

/// A connected pair.
pub fn shutdown() -> (Stopper, Shutdown) {
    let (sender, receiver) = crossbeam_channel::bounded(0);
    (Stopper(sender), Shutdown(receiver))
}

impl Shutdown {
    /// Whether the [`Stopper`] is gone.
    pub fn is_over(&self) -> bool {
        matches!(self.0.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }
}

/// Where progress goes, one line a call.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&str) + Send + Sync>);

impl Log {
    /// Each line goes to `line`. What would end it or move a cursor (in the name of a node or key, in the words of a
    /// command) is replaced.
    pub fn new(line: impl Fn(&str) + Send + Sync + 'static) -> Log {
        Log(Arc::new(line))
    }

    /// The same, for what is said of one namespace of several.
    pub(crate) fn of(&self, namespace: &str) -> Log {
        let (log, namespace) = (self.clone(), namespace.to_owned());
        Log::new(move |line| log.say(format_args!("{namespace}: {line}")))
    }

    pub(crate) fn say(&self, line: impl fmt::Display) {
        let plain = |c: char| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        (self.0)(&line.to_string().trim_end().chars().map(plain).collect::<String>());
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

/// Follows the events of a socket until it is closed, and logs what a person wants to know: each change once,
/// not each attempt.
pub(crate) fn follow(events: Receiver<Event>, log: Log) {
    std::thread::spawn(move || {
        let (mut failing, mut connections) = (BTreeSet::new(), Connections::default());
        loop {
            let event = match connections.due() {
                Some(due) => events.recv_deadline(due),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let now = Instant::now();
            connections.lasted(now).into_iter().for_each(|line| log.say(line));
            match event {
                Ok(Event::Connected { pipe, endpoint, facts, .. }) => {
                    failing.remove(&endpoint);
                    let line = connections.connected(pipe, endpoint, &facts.remote, now);
                    line.into_iter().for_each(|line| log.say(line));
                }
                Ok(Event::Disconnected { pipe, remote, reason, .. }) => {
                    let lines = connections.ended(pipe, &remote, &reason.to_string(), now);
                    lines.into_iter().for_each(|line| log.say(line));
                }
                Ok(Event::Rejected { endpoint, remote, reason }) => {
                    let line = connections.rejected(endpoint, &remote, &reason.to_string());
                    line.into_iter().for_each(|line| log.say(line));
                }
                Ok(Event::ConnectFailed { endpoint, url, error }) if failing.insert(endpoint) => {
                    log.say(format_args!("cannot reach {url}: {error}; trying on"));
                }
                Ok(Event::AcceptFailed { error, .. }) => log.say(format_args!("accept failed: {error}")),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
}

/// A server knows a later start of who is told so than its own.
pub(crate) const RAISED: &str = "ALARM: a later start of this node is known: the state folder is an older copy, or another process \
                                 runs with a copy of this state folder; its start number is raised";

/// Says so, if there are keys and all of them are revoked.
pub(crate) fn believes_nobody(keys: &Keyring, log: &Log) {
    if !keys.is_empty() && keys.ids().next().is_none() {
        log.say("ALARM: every key that is named is revoked: nothing that anybody signs is believed; name one that is valid (--trust)");
    }
}

/// What a state folder holds is of this namespace.
pub(crate) fn ours(dir: &Path, held: &Head, cluster: &str, namespace: &str) -> Result<(), ProcessError> {
    if held.cluster == Id::named(cluster) && held.namespace == namespace {
        return Ok(());
    }
    let why = foreign((held.cluster, &held.namespace), (cluster, namespace));
    Err(ProcessError::Refused(format!("the state folder {} {why}", dir.display())))
}

/// What is kept is of another namespace or cluster than what is named now. Of a cluster no name is kept: one that many
/// have is known by what it amounts to.
pub(crate) fn foreign(held: (Id, &str), (cluster, namespace): (&str, &str)) -> String {
    let usual = "config-sync";
    if held.0 == Id::named(cluster) {
        let of = held.1;
        format!(
            "is of the namespace {of:?}, and not of {namespace:?}: name that (--namespace), or another folder (--state)"
        )
    } else if held.0 == Id::named(usual) {
        format!(
            "is of the cluster {usual:?}, and not of {cluster:?}: name that (--cluster), or another folder (--state)"
        )
    } else {
        format!(
            "is of another cluster than {cluster:?}, of a name that is not kept: give that name (--cluster), or another \
             folder (--state)"
        )
    }
}

/// Why a process ends before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A folder cannot be used.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// A tree cannot be used.
    #[error(transparent)]
    Tree(#[from] crate::tree::TreeError),
    /// A template cannot be used.
    #[error(transparent)]
    Template(#[from] crate::agent::TemplateError),
    /// A socket cannot be used.
    #[error(transparent)]
    Socket(#[from] spanwire::Error),
    /// A directory would take the place of what was committed.
    #[error(
        "{} holds what was committed ({at}), and {} would change {changes} of its keys: serve without a directory \
         (config-sync serve without --dir); or, if the directory is what counts from now on, export what is there and \
         start with --replace{alone}",
        state.display(), dir.display()
    )]
    WouldReplace {
        /// The directory that was to be published.
        dir: std::path::PathBuf,
        /// The state folder.
        state: std::path::PathBuf,
        /// What it holds.
        at: crate::Position,
        /// Keys that would change.
        changes: usize,
        /// What `--replace` needs besides: empty, or that of several namespaces this one is served alone.
        alone: String,
    },
    /// What was asked for would do harm, or makes no sense.
    #[error("{0}")]
    Refused(String),
}

impl ProcessError {
    /// Exit code for a command: 2 for a request that makes no sense, 3 for a folder, file or template, 4 for a socket.
    pub fn exit_code(&self) -> u8 {
        match self {
            ProcessError::Refused(_) | ProcessError::WouldReplace { .. } => 2,
            ProcessError::Store(_) | ProcessError::Tree(_) | ProcessError::Template(_) => 3,
            ProcessError::Socket(_) => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_one_line_whatever_a_node_says() {
        let (sender, said) = crossbeam_channel::unbounded();
        let log = Log::new(move |line| sender.send(line.to_owned()).expect("it is read"));
        log.say("node a\u{1b}[2J: no\nnode b: yes\n");
        assert_eq!(said.try_iter().collect::<Vec<_>>(), ["node a\u{fffd}[2J: no node b: yes"]);
    }
}
