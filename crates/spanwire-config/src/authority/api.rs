//! What an authority is told, what it answers, and what it wants done.
//!
//! Owns: words. Never: a decision.

use std::sync::Arc;

use bytes::Bytes;

use super::CohortNode;
use crate::rollout::Plan;
use crate::sign::Keyring;
use crate::source::{Record, Recovered, Snapshot};
use crate::wire::client::Step;
use crate::{Base, ChangeSet, ClusterId, Digest, Head, Id, Limits, OverLimit, Position, Shown, State};

/// Settings of an [`NsAuthority`](crate::NsAuthority).
#[derive(Clone, Debug)]
pub struct NsSettings {
    /// The cluster. Default: zeros.
    pub cluster: ClusterId,
    /// The namespace: at most 128 bytes. Default: `config`.
    pub namespace: String,
    /// Bounds of the namespace.
    pub limits: Limits,
    /// Most commits kept. Default: 10,000.
    pub log_commits: usize,
    /// Most bytes of commits kept. Default: 16 MiB.
    pub log_bytes: usize,
    /// Most commits in one batch. Default: 1,000; at most 10,000.
    pub batch_commits: usize,
    /// Bytes beyond which a batch takes no further commit. Default: 4 MiB.
    pub batch_bytes: usize,
    /// Most commits that gather during a sync; more are told BUSY. Default: 10,000.
    pub waiting_commits: usize,
    /// Bytes of gathered commits beyond which more are told BUSY. Default: 64 MiB.
    pub waiting_bytes: usize,
    /// Most nodes whose HEAD is remembered. Default: 10,000.
    pub nodes: usize,
    /// Which signatures of HEADs that nodes show are believed. Empty: a cluster without keys.
    pub keys: Keyring,
    /// Freeze on claims of a later history even without keys. Default: false.
    pub strict: bool,
}

impl Default for NsSettings {
    fn default() -> Self {
        NsSettings {
            cluster: Id::default(),
            namespace: "config".into(),
            limits: Limits::default(),
            log_commits: 10_000,
            log_bytes: 16 << 20,
            batch_commits: 1_000,
            batch_bytes: 4 << 20,
            waiting_commits: 10_000,
            waiting_bytes: 64 << 20,
            nodes: 10_000,
            keys: Keyring::new(),
            strict: false,
        }
    }
}

/// What an authority starts from.
#[derive(Clone, Debug)]
pub enum Opening {
    /// No store is here at all: it may have been lost, so nothing begins without the operator.
    NoStore,
    /// The authority has a store and knows nothing of this namespace: its first commit may begin it.
    Unknown,
    /// What the store holds.
    Restored(Box<Recovered>),
}

/// The caller's name for who asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A position as clients name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Place {
    /// Number of the epoch; 0 before the first.
    pub epoch: u64,
    /// Revision; 0 before the first.
    pub rev: u64,
}

impl From<Position> for Place {
    fn from(position: Position) -> Place {
        Place { epoch: position.epoch.number, rev: position.rev }
    }
}

/// What a commit is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Intent {
    /// Puts and deletes. What changes nothing is a commit all the same, so that its repeat is recognised.
    Change(ChangeSet),
    /// Give the namespace the content that it had there.
    Revert(Place),
}

/// A commit that a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names it, so that a repeat commits nothing. Random for each.
    pub request: Id,
    /// Commit only if the newest position is this; (0, 0): only as the first.
    pub expect: Option<Place>,
    /// What it does.
    pub intent: Intent,
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB.
    pub note: String,
    /// Milliseconds since 1970; printed only.
    pub stamp: u64,
    /// It is for a cohort first, by this plan. It goes alone, and opens a rollout.
    pub rollout: Option<Plan>,
    /// If a rollout is open, this ends it: the content that all others have is what changes.
    pub supersede: bool,
}

/// Why nothing can be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadOnly {
    /// There is no state, and the operator has not said what to do: init, or adopt from the nodes.
    #[error("vacant: init the namespace or adopt it from the nodes")]
    Vacant,
    /// The store failed. Restart: it recovers what is durable. A commit that got this answer may be durable.
    #[error("the store failed ({0}); restart")]
    Store(String),
    /// A node holds what this store does not know: it is an old copy, or another authority was there.
    #[error("a node shows {shown}: this store is old; begin a new epoch")]
    Old {
        /// What the node showed.
        shown: Position,
    },
}

/// What is wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// It would exceed a limit.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The author or the note is too long.
    #[error("the {0} is too long")]
    TooLong(&'static str),
    /// So far back nothing is kept.
    #[error("compacted; the oldest kept is {}:{}", oldest.epoch, oldest.rev)]
    Compacted {
        /// The oldest position that can still be had.
        oldest: Place,
    },
    /// The id of the request is that of another, which was done here.
    #[error("this request id was used for something else, at {}:{}: what is new takes a new id", .0.epoch, .0.rev)]
    Used(Place),
    /// There is no such position.
    #[error("there is no position {}:{}", .0.epoch, .0.rev)]
    NoSuch(Place),
    /// It cannot be done now.
    #[error("{0}")]
    NotNow(&'static str),
    /// A plan that makes no sense, or a step of a rollout that is not there.
    #[error("{0}")]
    Rollout(&'static str),
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// It is durable.
    Committed {
        /// Where.
        position: Position,
        /// Of the content there.
        digest: Digest,
        /// An earlier copy of the request did it.
        replay: bool,
    },
    /// The newest position is another than expected.
    Conflict {
        /// The newest.
        head: Place,
    },
    /// It will never succeed as it is.
    Invalid(Invalid),
    /// Try later.
    Busy,
    /// A rollout is open, of this: until it ends, only a commit that supersedes it is taken.
    Open(Place),
    /// Nothing can be written.
    ReadOnly(ReadOnly),
    /// An epoch began.
    Begun {
        /// With this.
        position: Position,
        /// What nodes hold that is beyond what it began from, and how many of them.
        lost: Vec<(Position, usize)>,
    },
}

/// Who begins an epoch, or takes a step of a rollout.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct By {
    /// Who: at most 256 bytes.
    pub author: String,
    /// Why: at most 1 KiB; if empty, what is done.
    pub note: String,
    /// Milliseconds since 1970 by the clock of who asks; printed, and used for nothing.
    pub stamp: u64,
    /// Only if this is the newest place; `None`: whatever it is.
    pub expect: Option<Place>,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AuthorityEvent {
    /// A client wants a commit.
    Commit(Ticket, Request),
    /// The record of [`AuthorityAction::Append`] is durable, or its fate is unknown.
    Durable(Result<(), String>),
    /// [`AuthorityAction::Compact`] ended.
    Compacted(Result<(), String>),
    /// [`AuthorityAction::RaiseOpened`] ended, with this count.
    Raised(Result<u32, String>),
    /// A node shows a HEAD: in HELLO, WANT or REPORT.
    Shown {
        /// Who.
        node: Id,
        /// What.
        head: Head,
        /// Highest `seq` that was issued by then.
        issued: u64,
    },
    /// The answer to [`AuthorityAction::Recall`].
    Recalled(Recall, Result<Option<[u8; 32]>, String>),
    /// The operator begins a namespace with this content; the id is random, and names the request too: its repeat gets
    /// the first one's answer. So it is with the three that follow. Each is nobody's, but in [`By`](Self::By).
    Init(Ticket, Id, State),
    /// The operator begins a new epoch with the content of now; the id is random.
    NewEpoch(Ticket, Id),
    /// The operator puts this content in the place of all there is, in a new epoch; the id is random.
    Import(Ticket, Id, State),
    /// The operator takes the state over from the nodes: the highest within the limits that is for all, or the one
    /// named.
    Adopt(Ticket, Id, Option<Base>),
    /// One of the four above, with who wants it; or a step of a rollout, or its cohort, of which only the time is taken.
    By(Box<By>, Box<AuthorityEvent>),
    /// A node sent its state after [`AuthorityAction::Offer`]; `None`: it did not, or is gone.
    Offered(Id, Option<State>),
    /// The operator wants this step of the rollout that is open at this position. The id names the request.
    Rollout(Ticket, Id, Place, Step),
    /// What the nodes of a cohort report, all that are known: [`NsAuthority::cohort`](crate::NsAuthority::cohort) says
    /// of which, and it is to be said again and again while that says one.
    Cohort((Position, Bytes), Vec<CohortNode>),
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AuthorityAction {
    /// Make this durable, then say [`AuthorityEvent::Durable`]. Never two at once.
    Append(Record),
    /// Let go of what is older than this, then say [`AuthorityEvent::Compacted`].
    Compact(Snapshot),
    /// Raise the open count durably above this, then say [`AuthorityEvent::Raised`].
    RaiseOpened(u32),
    /// Look up the chain of an old HEAD, then say [`AuthorityEvent::Recalled`].
    Recall(Recall),
    /// Answer a client.
    Reply(Ticket, Answer),
    /// This is durable and the newest: bring it to the nodes, all of them or those of its audience.
    Publish(Published),
    /// The newest has another audience from now on: this is its HEAD.
    Show(Head),
    /// What was shown is judged.
    Judge {
        /// Who showed it.
        node: Id,
        /// What was shown.
        head: Head,
        /// What it means.
        verdict: Verdict,
    },
    /// Ask this node for the state of its HEAD; answer with [`AuthorityEvent::Offered`].
    Offer(Id, Head),
    /// The store was opened so often by now: `seq` goes on above that.
    Reopened(u32),
    /// Something that people must hear.
    Alarm(Alarm),
}

/// A question to the store about a HEAD that left the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recall {
    /// The HEAD shown; what is asked is the chain of its revision.
    pub head: Head,
    pub(super) node: Id,
    pub(super) issued: u64,
}

/// A state that may be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// Its HEAD as it is stored: without `seq` and signature, which change with every issue.
    pub head: Head,
    /// The content.
    pub state: State,
    /// What was published before it.
    pub before: Option<Shown>,
    /// What leads from there to here.
    pub changes: Arc<ChangeSet>,
}

/// What a HEAD that a node showed means for the data it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It contradicts nothing: serve from there.
    Fine,
    /// It cannot be believed (no signature, another namespace): serve as if nothing was shown.
    Disregard,
    /// It contradicts this history: beacons only, in this epoch.
    Conflict,
    /// Recorded; there is nothing to serve yet, or nothing known of it: beacons only, until it is shown again.
    Recorded,
}

/// What people must hear.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Alarm {
    /// Commits have stopped: this store is an old copy.
    #[error(
        "node {node:?} shows {shown}, which this store does not know: commits stop until a new epoch begins"
    )]
    OldStore {
        /// Who.
        node: Id,
        /// What.
        shown: Position,
    },
    /// An unsigned claim contradicts; commits go on.
    #[error(
        "node {node:?} shows {shown}, which contradicts this history; without keys nobody can say who is right"
    )]
    Claim {
        /// Who.
        node: Id,
        /// What.
        shown: Position,
    },
    /// A number so high that it is not believed.
    #[error("node {node:?} shows {shown}, so far beyond all known that it is ignored")]
    Leap {
        /// Who.
        node: Id,
        /// What.
        shown: Position,
    },
    /// The store failed; commits have stopped.
    #[error("the store failed: {0}; commits stop until a restart")]
    Store(String),
    /// Old commits could not be let go of; all else goes on.
    #[error("compaction failed: {0}")]
    Compaction(String),
}

/// Where the machine is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nothing to serve.
    Vacant,
    /// Takes commits.
    Serving,
    /// Serves what is durable and takes no commits.
    ReadOnly(ReadOnly),
}
