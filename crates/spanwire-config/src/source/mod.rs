//! The durable source of truth of one namespace: what was committed, in order, and nothing else.
//!
//! [`Source`] is what an authority needs of it, in five calls (load, append, range, compact, health) and two
//! small ones (the open count, and the chain of an old HEAD). [`Embedded`] is the one that lives in a folder
//! of this machine.
//!
//! Owns: durability, retention, the history of HEADs. Never: decides what is committed (that is
//! [`NsAuthority`](crate::NsAuthority)); hands out anything that is not durable.

mod disk;
mod embedded;
mod record;
#[cfg(any(test, feature = "testkit"))]
pub mod sim;
#[cfg(test)]
mod tests;
mod writer;

pub use disk::Disk;
#[cfg(all(unix, feature = "sync"))]
pub use disk::FsDisk;
pub use embedded::Embedded;
#[cfg(all(unix, feature = "sync"))]
pub(crate) use embedded::namespace_of;
pub use record::{Batch, LogCommit, MAX_AUTHOR, MAX_NOTE, Record};
pub(crate) use record::{MAX_BATCH, MAX_MEMBERS};

pub use writer::Writer;

use std::io;

use crate::rollout::Open;
use crate::{AuthorityAction, AuthorityEvent, Head, State};

/// A state and the HEAD that names it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Its HEAD, as it was made durable: without a `seq` and unsigned.
    pub head: Head,
    /// Its content.
    pub state: State,
}

/// What a source holds when it is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// How often it was opened, this time included. Durable.
    pub opened: u32,
    /// The state below the oldest commit that is kept; `None`: all are kept.
    pub base: Option<Snapshot>,
    /// All records above the base, oldest first.
    pub records: Vec<Record>,
    /// The newest durable state; `None`: there was no commit yet.
    pub last: Option<Snapshot>,
    /// The claim that froze this store as old, if no epoch began since.
    pub frozen: Option<Head>,
    /// The rollout of the newest, if one is open.
    pub rollout: Option<Open>,
    /// Bytes of an unfinished record that were cut off its end; never acknowledged.
    pub cut: u64,
}

/// Why a source does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The disk failed; after this the source writes no more until it is opened again.
    #[error("{what}: {error}")]
    Io {
        /// What was being done, and to which file.
        what: String,
        /// The system's words.
        error: io::Error,
    },
    /// Somebody took a file, or the folder that it is in, away; after this the source writes no more until it is
    /// opened again.
    #[error(
        "its {file} is not where it was: it, or the state folder, was removed, moved or replaced while it was in \
         use. Put it back before the restart; where it is lost, the restart tells how to go on"
    )]
    Gone {
        /// Which file.
        file: String,
    },
    /// What had been durable is not whole any more. It is not opened; adopt from a node or restore.
    #[error("{file} is damaged at byte {at}: {why}")]
    Damaged {
        /// Which file.
        file: String,
        /// Where.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// It belongs to another cluster or namespace.
    #[error("the store belongs to the namespace {namespace:?} of the cluster with the id {cluster}")]
    Foreign {
        /// The cluster that it is of.
        cluster: crate::Id,
        /// The namespace that it is of.
        namespace: String,
    },
    /// An earlier failure stopped it; a failed sync is never tried again.
    #[error("stopped by an earlier failure: {0}")]
    Stopped(String),
    /// Older than all that is kept.
    #[error("compacted; the oldest kept is revision {oldest}")]
    Compacted {
        /// The oldest revision that can still be had.
        oldest: u64,
    },
    /// A call that makes no sense now: before [`Source::load`], or out of order.
    #[error("{0}")]
    Misuse(&'static str),
}

/// How a source is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// Why it writes no more; `None`: it does.
    pub stopped: Option<String>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// HEADs whose whole batch is kept.
    pub heads: u64,
    /// HEADs of the epoch of which only the chain is kept.
    pub chains: u64,
}

/// A durable log of batches with a state below it.
///
/// One caller, and calls may block on the disk, so a caller that must not wait runs it in a thread of its own.
/// Nothing is retried inside: after an error other than [`SourceError::Compacted`] and
/// [`SourceError::Misuse`] what was asked is *unknown*, and opening again tells.
pub trait Source {
    /// Reads what is there, makes sure that all of it is durable, and raises the open count durably. Called
    /// once, first. `None`: there is nothing yet, and the first append makes it, with open count 1.
    ///
    /// # Errors
    /// [`SourceError::Damaged`], [`SourceError::Foreign`] and [`SourceError::Io`]: nothing may be served.
    fn load(&mut self) -> Result<Option<Recovered>, SourceError>;

    /// Appends a record. When this returns, it is durable.
    ///
    /// # Errors
    /// After any the source is stopped, and the record's fate unknown until it is opened again.
    fn append_durable(&mut self, record: &Record) -> Result<(), SourceError>;

    /// The batches above revision `rev`, oldest first, read and checked anew.
    ///
    /// # Errors
    /// [`SourceError::Compacted`], or what the disk says.
    fn range_since(&mut self, rev: u64) -> Result<Vec<Batch>, SourceError>;

    /// Lets go of all batches up to `base`, of which the chains of its epoch are kept. `base` must be the
    /// state of a HEAD that is in the log.
    ///
    /// # Errors
    /// If nothing was changed by it the source goes on as before; [`Source::health`] tells.
    fn compact(&mut self, base: &Snapshot) -> Result<(), SourceError>;

    /// How it is. Never blocks.
    fn health(&self) -> Health;

    /// Raises the open count durably above `above`, and returns it.
    ///
    /// # Errors
    /// As for [`append_durable`](Self::append_durable).
    fn raise_opened(&mut self, above: u32) -> Result<u32, SourceError>;

    /// The chain of the HEAD of `rev` in the present epoch; `None`: no HEAD was issued for it.
    ///
    /// # Errors
    /// What the disk says.
    fn chain_at(&mut self, rev: u64) -> Result<Option<[u8; 32]>, SourceError>;

    /// An orderly end: nothing is asked of it any more. Nothing depends on it. Default: nothing.
    fn end(&mut self) {}
}

/// Does what the machine of an authority wants of its store; returns how that went, for the machine, or what is
/// not the store's.
#[expect(clippy::result_large_err, reason = "not a failure: the action goes on to whose it is")]
pub fn perform<S: Source>(
    source: &mut S,
    action: AuthorityAction,
) -> Result<AuthorityEvent, AuthorityAction> {
    let words = |error: SourceError| error.to_string();
    Ok(match action {
        AuthorityAction::Append(record) => {
            AuthorityEvent::Durable(source.append_durable(&record).map_err(words))
        }
        AuthorityAction::Compact(base) => AuthorityEvent::Compacted(source.compact(&base).map_err(words)),
        AuthorityAction::RaiseOpened(above) => {
            AuthorityEvent::Raised(source.raise_opened(above).map_err(words))
        }
        AuthorityAction::Recall(recall) => {
            let chain = source.chain_at(recall.head.position.rev).map_err(words);
            AuthorityEvent::Recalled(recall, chain)
        }
        other => return Err(other),
    })
}
