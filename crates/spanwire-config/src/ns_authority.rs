//! One namespace at its authority: what is committed, in which order, and when it may be seen.
//!
//! A machine without I/O: [`NsAuthority::handle`] takes what happened and returns what is to be done. The
//! simulator and the real process drive the same code.
//!
//! ```text
//!            init, adopt, first commit (only where no node showed a HEAD)
//!   VACANT ───────────────────────────────────────────────► SERVING ◄─┐
//!                                     store error │   │ shown as old   │ new-epoch
//!                                                 ▼   ▼                │
//!                                                READONLY ─────────────┘
//!                                     (store error: left by a restart alone)
//! ```
//!
//! Commits gather while a sync is under way and become one batch with one HEAD at the next. Everything that
//! is said to anybody (an answer, a HEAD, a read) depends on durable state alone; an answer that depends on a
//! commit under way waits for it.
//!
//! Owns: order, compare-and-set, request ids, retention, the epoch, and who is right about history. Never: a disk,
//! a clock, a pipe, a signature of its own, or randomness that was not passed in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spanwire::protocol::Time;

use crate::authority::SEQ_BITS;
use crate::faults::planted;
use crate::sign::Keyring;
use crate::source::{Batch, LogCommit, MAX_AUTHOR, MAX_NOTE, Record, Recovered, Snapshot};
use crate::{
    Base, ChangeSet, ClusterId, Digest, Epoch, Head, Id, Limits, Origin, OverLimit, Position, Shown, State,
    chain,
};

#[cfg(test)]
mod tests;

/// A claim to an epoch number or revision beyond mine by more than this is ignored in a cluster without keys:
/// believing it could use the numbers up.
const LEAP: u64 = 1 << 32;

/// Settings of an [`NsAuthority`].
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
    /// There is no such position.
    #[error("there is no position {}:{}", .0.epoch, .0.rev)]
    NoSuch(Place),
    /// It cannot be done now.
    #[error("{0}")]
    NotNow(&'static str),
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
    /// The operator begins a namespace with this content; the id is random.
    Init(Ticket, Id, State),
    /// The operator begins a new epoch with the content of now; the id is random.
    NewEpoch(Ticket, Id),
    /// The operator takes the state over from the nodes: the highest that is for all, or the one named.
    Adopt(Ticket, Id, Option<Base>),
    /// A node sent its state after [`AuthorityAction::Offer`]; `None`: it did not, or is gone.
    Offered(Id, Option<State>),
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
    /// This is durable and the newest: bring it to the nodes.
    Publish(Published),
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
    node: Id,
    issued: u64,
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
    /// Recorded; there is nothing to serve yet.
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

/// A batch of the log, in memory.
#[derive(Debug)]
struct Kept {
    batch: Batch,
    size: usize,
}

/// A batch that gathers. Only the state at its end is kept, so that many waiting commits cost what they
/// change and not a state each.
#[derive(Debug)]
struct Gathered {
    tickets: Vec<Ticket>,
    commits: Vec<LogCommit>,
    state: State,
    size: usize,
}

/// What the store is writing.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, and it is nearly always a batch")]
enum Writing {
    Batch { batch: Batch, state: State, changes: Arc<ChangeSet>, replies: Vec<(Ticket, Answer)> },
    Frozen,
}

#[derive(Debug)]
struct Adopting {
    ticket: Ticket,
    incarnation: Id,
    /// Others who hold the same.
    left: Vec<Id>,
    node: Id,
    head: Head,
}

/// An epoch that begins when what is under way has ended.
#[derive(Debug)]
struct Beginning {
    ticket: Ticket,
    incarnation: Id,
    /// `None`: the content of then.
    content: Option<State>,
    from: Option<Position>,
}

/// One namespace at its authority: a machine without I/O, driven by [`handle`](NsAuthority::handle).
#[derive(Debug)]
pub struct NsAuthority {
    settings: NsSettings,
    mode: Mode,
    /// A commit may begin the namespace.
    fresh: Option<Id>,
    opened: u32,
    /// The newest durable state; its HEAD as it is stored.
    durable: Option<Snapshot>,
    base: Option<Snapshot>,
    log: VecDeque<Kept>,
    log_commits: usize,
    log_bytes: usize,
    /// Let go of in memory and still in the store.
    dropped: (usize, usize),
    compacting: bool,
    /// Durable commits of the log, and those under way.
    requests: BTreeMap<Id, (Position, Digest)>,
    writing: Option<Writing>,
    gathered: VecDeque<Gathered>,
    gathered_commits: usize,
    gathered_bytes: usize,
    /// Answers that wait until a revision is durable, in the order of those.
    answers: VecDeque<(u64, Ticket, Answer)>,
    beginning: Option<Beginning>,
    freeze: Option<Head>,
    /// Highest epoch number and revision in HEADs that are believed.
    highest: Place,
    /// What nodes showed last: for adoption, and for what a new epoch loses.
    held: BTreeMap<Id, Head>,
    conflicts: BTreeSet<Id>,
    adopting: Option<Adopting>,
    raising: bool,
}

type Actions = Vec<AuthorityAction>;

impl NsAuthority {
    /// Starts from what there is. `incarnation` is random; it names the epoch that a first commit begins.
    pub fn new(mut settings: NsSettings, opening: Opening, incarnation: Id) -> (Self, Actions) {
        while settings.namespace.len() > crate::wire::MAX_NAMESPACE {
            settings.namespace.pop();
        }
        settings.batch_commits = settings.batch_commits.clamp(1, crate::source::MAX_BATCH);
        let (recovered, fresh) = match opening {
            Opening::NoStore => (Recovered { opened: 1, ..Recovered::default() }, None),
            Opening::Unknown => (Recovered { opened: 1, ..Recovered::default() }, Some(incarnation)),
            // The store was made and a crash kept the first commit away.
            Opening::Restored(recovered) if recovered.last.is_none() => (*recovered, Some(incarnation)),
            Opening::Restored(recovered) => (*recovered, None),
        };
        let Recovered { opened, base, records, last, frozen, cut: _ } = recovered;
        let mode = match (&last, &frozen) {
            (None, _) => Mode::Vacant,
            (Some(_), Some(head)) => Mode::ReadOnly(ReadOnly::Old { shown: head.position }),
            (Some(_), None) => Mode::Serving,
        };
        let mut highest = last.as_ref().map(|last| Place::from(last.head.position)).unwrap_or_default();
        if let Some(frozen) = &frozen {
            highest = max_each(highest, frozen.position.into());
        }
        let mut this = NsAuthority {
            settings,
            mode,
            fresh,
            opened,
            durable: last,
            base,
            log: VecDeque::new(),
            log_commits: 0,
            log_bytes: 0,
            dropped: (0, 0),
            compacting: false,
            requests: BTreeMap::new(),
            writing: None,
            gathered: VecDeque::new(),
            gathered_commits: 0,
            gathered_bytes: 0,
            answers: VecDeque::new(),
            beginning: None,
            freeze: None,
            highest,
            held: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            adopting: None,
            raising: false,
        };
        for record in records {
            if let Record::Batch(batch) = record {
                this.keep(batch);
            }
        }
        let mut out = Vec::new();
        this.trim(&mut out);
        (this, out)
    }

    /// Where the machine is.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The newest durable position.
    pub fn position(&self) -> Option<Position> {
        self.durable.as_ref().map(|durable| durable.head.position)
    }

    /// The newest durable state, and its HEAD as it is stored: without `seq` and signature.
    pub fn durable(&self) -> Option<&Snapshot> {
        self.durable.as_ref()
    }

    /// What a [`Distributor`](crate::Distributor) of this namespace begins with.
    pub fn origin(&self) -> Origin {
        let Some(Snapshot { head, state }) = &self.durable else { return Origin::pending(self.opened) };
        let base = self.base.as_ref().map(|base| base.head.shown());
        Origin::restored(head.clone(), state.clone(), self.opened)
            .with_log(base, self.log.iter().map(|kept| &kept.batch))
    }

    /// How often the store was opened, this time included.
    pub fn opened(&self) -> u32 {
        self.opened
    }

    /// Highest epoch number and revision in HEADs that are believed: a new epoch goes above them.
    pub fn highest(&self) -> Place {
        self.highest
    }

    /// Nodes in conflict with this history, as they showed it in this epoch.
    pub fn conflicts(&self) -> impl Iterator<Item = Id> {
        self.conflicts.iter().copied()
    }

    /// What nodes hold and how many hold it: place and chain, digest, whether it is for all. Highest first.
    pub fn holdings(&self) -> Vec<(Base, Digest, bool, usize)> {
        let mut all: BTreeMap<_, (Base, usize)> = BTreeMap::new();
        for head in self.held.values() {
            let Position { epoch, rev } = head.position;
            let place = (epoch.number, rev, epoch.incarnation, head.chain);
            let key = (place, head.digest, head.audience.is_empty());
            all.entry(key).or_insert((head.base(), 0)).1 += 1;
        }
        all.into_iter().rev().map(|((.., digest, for_all), (at, n))| (at, digest, for_all, n)).collect()
    }

    /// The content at a position, durable ones only. `None`: the newest.
    ///
    /// # Errors
    /// [`Invalid::Compacted`], [`Invalid::NoSuch`].
    pub fn read(&self, at: Option<Place>) -> Result<(Position, State), Invalid> {
        let place = at.unwrap_or_else(|| self.position().map(Place::from).unwrap_or_default());
        let durable = self.durable.as_ref().ok_or(Invalid::NoSuch(place))?;
        if place == durable.head.position.into() {
            return Ok((durable.head.position, durable.state.clone()));
        }
        if place > durable.head.position.into() || place.rev == 0 {
            return Err(Invalid::NoSuch(place));
        }
        let mut state = match &self.base {
            Some(base) if place == base.head.position.into() => {
                return Ok((base.head.position, base.state.clone()));
            }
            Some(base) if place < base.head.position.into() => {
                return Err(Invalid::Compacted { oldest: base.head.position.into() });
            }
            base => base.as_ref().map(|base| base.state.clone()).unwrap_or_default(),
        };
        for kept in &self.log {
            let epoch = kept.batch.head.position.epoch;
            for commit in &kept.batch.commits {
                state.apply(&commit.changes);
                if (Place { epoch: epoch.number, rev: commit.rev }) == place {
                    return Ok((Position { epoch, rev: commit.rev }, state));
                }
            }
        }
        Err(Invalid::NoSuch(place))
    }

    /// The commits that are kept, newest first.
    pub fn history(&self) -> impl Iterator<Item = (Position, &LogCommit)> {
        self.log.iter().rev().flat_map(|kept| {
            let epoch = kept.batch.head.position.epoch;
            kept.batch.commits.iter().rev().map(move |c| (Position { epoch, rev: c.rev }, c))
        })
    }

    /// Commits and bytes that are kept.
    pub fn log_size(&self) -> (usize, usize) {
        (self.log_commits, self.log_bytes)
    }

    /// The next epoch gets at least this number: an operator's word about nodes that are not here.
    pub fn reserve_epoch(&mut self, number: u64) {
        self.highest.epoch = self.highest.epoch.max(number.saturating_sub(1));
    }

    /// Takes what happened; returns what is to be done, in order. No rule here depends on `now`: it is there
    /// because every machine of this crate has this shape.
    pub fn handle(&mut self, event: AuthorityEvent, _now: Time) -> Actions {
        let mut out = Vec::new();
        match event {
            AuthorityEvent::Commit(ticket, request) => self.on_commit(&mut out, ticket, request),
            AuthorityEvent::Durable(Ok(())) => self.on_durable(&mut out),
            AuthorityEvent::Durable(Err(why)) => self.fail(&mut out, &why),
            AuthorityEvent::Compacted(done) => {
                self.compacting = false;
                if let Err(why) = done {
                    out.push(AuthorityAction::Alarm(Alarm::Compaction(why)));
                }
            }
            AuthorityEvent::Raised(Ok(opened)) => {
                self.raising = false;
                self.opened = self.opened.max(opened);
                out.push(AuthorityAction::Reopened(self.opened));
            }
            AuthorityEvent::Raised(Err(why)) => {
                self.raising = false;
                self.fail(&mut out, &why);
            }
            AuthorityEvent::Shown { node, head, issued } => self.on_shown(&mut out, node, head, issued),
            AuthorityEvent::Recalled(recall, chain) => self.on_recalled(&mut out, recall, chain),
            AuthorityEvent::Init(ticket, incarnation, content) => {
                if !matches!(self.mode, Mode::Vacant) {
                    let why = Invalid::NotNow("the namespace has begun");
                    out.push(AuthorityAction::Reply(ticket, Answer::Invalid(why)));
                } else {
                    self.begin(&mut out, ticket, incarnation, Some(content), None);
                }
            }
            AuthorityEvent::NewEpoch(ticket, incarnation) => match &self.mode {
                Mode::Serving | Mode::ReadOnly(ReadOnly::Old { .. }) => {
                    let from = self.position();
                    self.begin(&mut out, ticket, incarnation, None, from);
                }
                Mode::Vacant => out.push(AuthorityAction::Reply(ticket, Answer::ReadOnly(ReadOnly::Vacant))),
                Mode::ReadOnly(why) => {
                    out.push(AuthorityAction::Reply(ticket, Answer::ReadOnly(why.clone())));
                }
            },
            AuthorityEvent::Adopt(ticket, incarnation, named) => {
                self.on_adopt(&mut out, ticket, incarnation, named);
            }
            AuthorityEvent::Offered(node, state) => self.on_offered(&mut out, node, state),
        }
        out
    }

    /// The newest position, commits under way included.
    fn tip(&self) -> Option<Position> {
        if let Some(last) = self.gathered.back().and_then(|last| last.commits.last()) {
            return self.tip_epoch().map(|epoch| Position { epoch, rev: last.rev });
        }
        match &self.writing {
            Some(Writing::Batch { batch, .. }) => Some(batch.head.position),
            _ => self.position(),
        }
    }

    fn tip_epoch(&self) -> Option<Epoch> {
        match &self.writing {
            Some(Writing::Batch { batch, .. }) => Some(batch.head.position.epoch),
            _ => self.position().map(|position| position.epoch),
        }
    }

    fn tip_state(&self) -> State {
        if let Some(last) = self.gathered.back() {
            return last.state.clone();
        }
        match &self.writing {
            Some(Writing::Batch { state, .. }) => state.clone(),
            _ => self.durable.as_ref().map(|durable| durable.state.clone()).unwrap_or_default(),
        }
    }

    /// Answers once all that is decided so far is durable: the answer may depend on it.
    fn answer(&mut self, out: &mut Actions, ticket: Ticket, answer: Answer) {
        let (durable, tip) = (self.position().map_or(0, |p| p.rev), self.tip().map_or(0, |p| p.rev));
        if tip <= durable {
            out.push(AuthorityAction::Reply(ticket, answer));
        } else {
            self.answers.push_back((tip, ticket, answer));
        }
    }

    fn on_commit(&mut self, out: &mut Actions, ticket: Ticket, request: Request) {
        let refuse = |out: &mut Actions, answer| out.push(AuthorityAction::Reply(ticket, answer));
        // Before the mode: what is durable is answered for even when nothing can be written.
        if let Some((position, digest)) = self.requests.get(&request.request).copied() {
            let answer = Answer::Committed { position, digest, replay: true };
            let durable = self.position().map_or(0, |p| p.rev);
            if position.rev <= durable {
                return refuse(out, answer);
            }
            if self.waits() >= self.settings.waiting_commits {
                return refuse(out, Answer::Busy);
            }
            // It waits for its own revision, not for later ones; the queue stays in the order of revisions.
            let at = self.answers.partition_point(|(rev, ..)| *rev <= position.rev);
            self.answers.insert(at, (position.rev, ticket, answer));
            return;
        }
        match &self.mode {
            Mode::ReadOnly(why) => return refuse(out, Answer::ReadOnly(why.clone())),
            Mode::Vacant if self.writing.is_some() => return refuse(out, Answer::Busy),
            // Only a commit that says so begins a namespace.
            Mode::Vacant if self.fresh.is_none() || request.expect.is_none() => {
                return refuse(out, Answer::ReadOnly(ReadOnly::Vacant));
            }
            Mode::Vacant | Mode::Serving => {}
        }
        if self.beginning.is_some()
            || self.waits() >= self.settings.waiting_commits
            || self.gathered_bytes >= self.settings.waiting_bytes
        {
            return refuse(out, Answer::Busy);
        }
        let head = self.tip().map(Place::from).unwrap_or_default();
        if request.expect.is_some_and(|expect| expect != head) && !planted("publish-without-compare") {
            return self.answer(out, ticket, Answer::Conflict { head });
        }
        let (changes, state) = match self.outcome(&request) {
            Ok(outcome) => outcome,
            Err(why) => return self.answer(out, ticket, Answer::Invalid(why)),
        };
        let (Some(rev), false) = (head.rev.checked_add(1), head.rev >= u64::MAX - LEAP) else {
            return refuse(out, Answer::Invalid(Invalid::NotNow("revisions are used up")));
        };
        let size = crate::wire::encode_changes(&changes).len() + request.author.len() + request.note.len();
        let commit = LogCommit {
            rev,
            request: request.request,
            author: request.author,
            note: request.note,
            stamp: request.stamp,
            digest: state.digest(),
            changes: Arc::new(changes),
        };
        if let Some(incarnation) = self.fresh {
            // Only here does a commit begin a namespace, at (0, 0) and where no node has shown a HEAD.
            let epoch = Epoch { number: self.highest.epoch.saturating_add(1), incarnation };
            let batch = self.batch(epoch, vec![commit], &state);
            return self.start(out, batch, state, vec![ticket]);
        }
        let Some(epoch) = self.tip_epoch() else { return refuse(out, Answer::ReadOnly(ReadOnly::Vacant)) };
        self.requests.insert(commit.request, (Position { epoch, rev }, commit.digest));
        self.gathered_commits += 1;
        self.gathered_bytes += size;
        let (most, full) = (self.settings.batch_commits, self.settings.batch_bytes);
        match self.gathered.back_mut().filter(|last| last.commits.len() < most && last.size < full) {
            Some(last) => {
                last.tickets.push(ticket);
                last.commits.push(commit);
                last.state = state;
                last.size += size;
            }
            None => {
                let (tickets, commits) = (vec![ticket], vec![commit]);
                self.gathered.push_back(Gathered { tickets, commits, state, size });
            }
        }
        self.next_batch(out);
    }

    /// Clients that wait for an answer.
    fn waits(&self) -> usize {
        self.gathered_commits + self.answers.len()
    }

    /// What a request leads to from the tip.
    fn outcome(&self, request: &Request) -> Result<(ChangeSet, State), Invalid> {
        if request.author.len() > MAX_AUTHOR {
            return Err(Invalid::TooLong("author"));
        }
        if request.note.len() > MAX_NOTE {
            return Err(Invalid::TooLong("note"));
        }
        let mut state = self.tip_state();
        let changes = match &request.intent {
            Intent::Change(changes) => {
                self.settings.limits.check_values(changes)?;
                state.effective(changes)
            }
            Intent::Revert(to) => state.diff(&self.read(Some(*to))?.1),
        };
        state.apply(&changes);
        self.settings.limits.check(state.keys(), state.bytes())?;
        Ok((changes, state))
    }

    /// The batch of `commits`, which lead to `state`, on top of what is durable.
    fn batch(&self, epoch: Epoch, commits: Vec<LogCommit>, state: &State) -> Batch {
        let (prev_rev, previous) = match &self.durable {
            Some(last) if last.head.position.epoch == epoch => (last.head.position.rev, last.head.chain),
            _ => (0, [0; 32]),
        };
        let rev = commits.last().map_or(0, |commit| commit.rev);
        let digest = state.digest();
        let head = Head {
            cluster: self.settings.cluster,
            namespace: self.settings.namespace.clone(),
            position: Position { epoch, rev },
            prev_rev,
            digest,
            keys: state.keys(),
            bytes: state.bytes(),
            chain: chain(&previous, rev, &digest),
            ..Head::default()
        };
        Batch { head, commits }
    }

    /// Gives the store its next batch, if it is free and there is one.
    fn next_batch(&mut self, out: &mut Actions) {
        if self.writing.is_some() {
            return;
        }
        let Some(epoch) = self.position().map(|position| position.epoch) else { return };
        let Some(Gathered { tickets, commits, state, size }) = self.gathered.pop_front() else { return };
        self.gathered_commits = self.gathered_commits.saturating_sub(commits.len());
        self.gathered_bytes = self.gathered_bytes.saturating_sub(size);
        let batch = self.batch(epoch, commits, &state);
        self.start(out, batch, state, tickets);
    }

    fn start(&mut self, out: &mut Actions, batch: Batch, state: State, tickets: Vec<Ticket>) {
        let epoch = batch.head.position.epoch;
        let mut replies = Vec::new();
        for commit in &batch.commits {
            self.requests.insert(commit.request, (Position { epoch, rev: commit.rev }, commit.digest));
        }
        for (ticket, commit) in tickets.into_iter().zip(&batch.commits) {
            let position = Position { epoch, rev: commit.rev };
            replies.push((ticket, Answer::Committed { position, digest: commit.digest, replay: false }));
        }
        let changes = batch.changes();
        if planted("publish-before-sync") {
            let before = self.durable.as_ref().map(|durable| durable.head.shown());
            let (head, state, changes) = (batch.head.clone(), state.clone(), changes.clone());
            out.push(AuthorityAction::Publish(Published { head, state, before, changes }));
        }
        out.push(AuthorityAction::Append(Record::Batch(batch.clone())));
        self.writing = Some(Writing::Batch { batch, state, changes, replies });
    }

    fn on_durable(&mut self, out: &mut Actions) {
        match self.writing.take() {
            Some(Writing::Batch { batch, state, changes, replies }) => {
                let before = self.durable.take().map(|durable| durable.head);
                let epoch = batch.head.position.epoch;
                let begins = before.as_ref().map(|head| head.position.epoch) != Some(epoch);
                if begins {
                    // Another history: what contradicted the old one is looked at again, and freezes only
                    // if it contradicts this one too.
                    self.conflicts.clear();
                    self.freeze = None;
                    self.fresh = None;
                    self.mode = Mode::Serving;
                }
                self.highest = max_each(self.highest, batch.head.position.into());
                let rev = batch.head.position.rev;
                self.durable = Some(Snapshot { head: batch.head.clone(), state });
                self.keep(batch);
                if !planted("publish-before-sync") {
                    self.publish(out, before.map(|head| head.shown()), changes);
                }
                out.extend(replies.into_iter().map(|(to, answer)| AuthorityAction::Reply(to, answer)));
                while self.answers.front().is_some_and(|(of, ..)| *of <= rev) {
                    if let Some((_, ticket, answer)) = self.answers.pop_front() {
                        out.push(AuthorityAction::Reply(ticket, answer));
                    }
                }
                self.trim(out);
                // What a node showed while the epoch was being written did not count for its number.
                let rival = (self.held.iter())
                    .find(|(_, head)| begins && head.position.epoch.number >= epoch.number)
                    .map(|(node, head)| (*node, head.clone()));
                if let Some((node, head)) = rival {
                    self.dispute(out, node, head);
                }
            }
            Some(Writing::Frozen) | None => {}
        }
        if self.writing.is_some() {
            // A dispute just now gave the store something to write.
        } else if let Some(head) = self.freeze.take() {
            out.push(AuthorityAction::Append(Record::Frozen(head)));
            self.writing = Some(Writing::Frozen);
        } else if self.beginning.is_some() && self.gathered.is_empty() {
            self.begin_now(out);
        } else {
            self.next_batch(out);
        }
    }

    /// Makes the durable state the one that is served.
    fn publish(&mut self, out: &mut Actions, before: Option<Shown>, changes: Arc<ChangeSet>) {
        if let Some(Snapshot { head, state }) = self.durable.clone() {
            out.push(AuthorityAction::Publish(Published { head, state, before, changes }));
        }
    }

    fn raise(&mut self, out: &mut Actions, above: u32) {
        if !std::mem::replace(&mut self.raising, true) {
            out.push(AuthorityAction::RaiseOpened(above));
        }
    }

    fn keep(&mut self, batch: Batch) {
        let epoch = batch.head.position.epoch;
        let mut size = 0;
        for commit in &batch.commits {
            size +=
                crate::wire::encode_changes(&commit.changes).len() + commit.author.len() + commit.note.len();
            self.requests.insert(commit.request, (Position { epoch, rev: commit.rev }, commit.digest));
        }
        self.log_commits += batch.commits.len();
        self.log_bytes += size;
        self.log.push_back(Kept { batch, size });
    }

    /// Keeps the log within its bounds, whole batches at a time, and never without its newest.
    fn trim(&mut self, out: &mut Actions) {
        while self.log.len() > 1
            && (self.log_commits > self.settings.log_commits || self.log_bytes > self.settings.log_bytes)
        {
            let Some(Kept { batch, size }) = self.log.pop_front() else { break };
            let mut state = self.base.take().map(|base| base.state).unwrap_or_default();
            for commit in &batch.commits {
                state.apply(&commit.changes);
                self.requests.remove(&commit.request);
            }
            self.log_commits -= batch.commits.len();
            self.log_bytes -= size;
            self.dropped.0 += batch.commits.len();
            self.dropped.1 += size;
            self.base = Some(Snapshot { head: batch.head, state });
        }
        // Rewriting the store costs its size, so it is done when half as much has gone.
        let (commits, bytes) = self.dropped;
        let state =
            self.durable.as_ref().map_or(0, |d| usize::try_from(d.state.bytes()).unwrap_or(usize::MAX));
        let due =
            commits > self.settings.log_commits / 2 || bytes > (self.settings.log_bytes / 2).max(state / 2);
        if due
            && !self.compacting
            && let Some(base) = &self.base
        {
            self.compacting = true;
            self.dropped = (0, 0);
            out.push(AuthorityAction::Compact(base.clone()));
        }
    }

    /// The store failed: what was under way is unknown, and nothing is tried again.
    fn fail(&mut self, out: &mut Actions, why: &str) {
        let reason = ReadOnly::Store(why.into());
        out.push(AuthorityAction::Alarm(Alarm::Store(why.into())));
        if let Some(Writing::Batch { batch, replies, .. }) = self.writing.take() {
            for commit in &batch.commits {
                self.requests.remove(&commit.request);
            }
            let answer = Answer::ReadOnly(reason.clone());
            out.extend(replies.into_iter().map(|(to, _)| AuthorityAction::Reply(to, answer.clone())));
        }
        self.abandon(out, &reason);
        self.freeze = None;
        self.mode = Mode::ReadOnly(reason);
    }

    /// Gives up all that is not with the store yet.
    fn abandon(&mut self, out: &mut Actions, why: &ReadOnly) {
        let answer = Answer::ReadOnly(why.clone());
        for gathered in std::mem::take(&mut self.gathered) {
            for commit in &gathered.commits {
                self.requests.remove(&commit.request);
            }
            out.extend(gathered.tickets.into_iter().map(|to| AuthorityAction::Reply(to, answer.clone())));
        }
        self.gathered_commits = 0;
        self.gathered_bytes = 0;
        let safe = self.tip().map_or(0, |tip| tip.rev);
        let (stay, go): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.answers).into_iter().partition(|(rev, ..)| *rev <= safe);
        // After a failure nothing is with the store, so `safe` is durable and nothing stays.
        self.answers = stay;
        out.extend(go.into_iter().map(|(_, ticket, _)| AuthorityAction::Reply(ticket, answer.clone())));
        if let Some(beginning) = self.beginning.take() {
            out.push(AuthorityAction::Reply(beginning.ticket, answer.clone()));
        }
    }

    fn on_shown(&mut self, out: &mut Actions, node: Id, head: Head, issued: u64) {
        let judge = |head: Head, verdict| AuthorityAction::Judge { node, head, verdict };
        let keys = !self.settings.keys.is_empty();
        let foreign = head.cluster != self.settings.cluster || head.namespace != self.settings.namespace;
        if foreign || keys && !self.settings.keys.verify(&head) {
            return out.push(judge(head, Verdict::Disregard));
        }
        let shown = Place::from(head.position);
        let mine = self.position().map(Place::from).unwrap_or_default();
        let leap = |theirs: u64, mine: u64| theirs.checked_sub(mine).is_some_and(|d| d > LEAP);
        if !keys && (leap(shown.epoch, mine.epoch) || leap(shown.rev, mine.rev)) {
            out.push(AuthorityAction::Alarm(Alarm::Leap { node, shown: head.position }));
            if self.conflicts.len() < self.settings.nodes {
                self.conflicts.insert(node);
            }
            return out.push(judge(head, Verdict::Conflict));
        }
        self.highest = max_each(self.highest, shown);
        if self.held.contains_key(&node) || self.held.len() < self.settings.nodes {
            self.held.insert(node, head.clone());
        }
        let Some(durable) = &self.durable else {
            // A namespace that a node has shown does not begin anew by a commit.
            self.fresh = None;
            return out.push(judge(head, Verdict::Recorded));
        };
        let own = durable.head.position;
        if head.position.epoch.number < own.epoch.number {
            return self.fine(out, node, head, issued);
        }
        if head.position.epoch != own.epoch || head.position.rev > own.rev {
            if planted("ahead-is-no-conflict") {
                return self.fine(out, node, head, issued);
            }
            return self.contradicts(out, node, head);
        }
        let rev = head.position.rev;
        let known = if rev == own.rev {
            Some(durable.head.chain)
        } else {
            let at = self.log.partition_point(|kept| kept.batch.head.position.rev < rev);
            let kept = self.log.get(at).map(|kept| &kept.batch.head);
            let base = self.base.as_ref().map(|base| &base.head);
            kept.into_iter().chain(base).find(|h| h.position == head.position).map(|h| h.chain)
        };
        match known {
            Some(chain) if chain == head.chain || planted("fork-is-no-conflict") => {
                self.fine(out, node, head, issued);
            }
            Some(_) => self.contradicts(out, node, head),
            // Inside the log every HEAD is known: this one was never issued.
            None if self.base.as_ref().is_none_or(|base| base.head.position.rev < rev) => {
                self.contradicts(out, node, head);
            }
            None => out.push(AuthorityAction::Recall(Recall { head, node, issued })),
        }
    }

    fn on_recalled(&mut self, out: &mut Actions, recall: Recall, chain: Result<Option<[u8; 32]>, String>) {
        let Recall { head, node, issued } = recall;
        match chain {
            // An epoch may have begun while the store was asked.
            _ if self.position().map(|p| p.epoch) != Some(head.position.epoch) => {
                self.on_shown(out, node, head, issued);
            }
            Ok(Some(chain)) if chain == head.chain => self.fine(out, node, head, issued),
            Ok(_) => self.contradicts(out, node, head),
            // Not known is not wrong. The node gets a snapshot, which is right whatever it holds.
            Err(why) => {
                out.push(AuthorityAction::Judge { node, head, verdict: Verdict::Disregard });
                self.fail(out, &why);
            }
        }
    }

    fn fine(&mut self, out: &mut Actions, node: Id, head: Head, issued: u64) {
        let same_epoch = self.position().map(|p| p.epoch) == Some(head.position.epoch);
        // Only a signature can make the count rise: an unsigned claim could use it up.
        if same_epoch && head.seq > issued && !self.settings.keys.is_empty() {
            self.raise(out, (head.seq >> SEQ_BITS) as u32);
        }
        self.conflicts.remove(&node);
        out.push(AuthorityAction::Judge { node, head, verdict: Verdict::Fine });
    }

    fn contradicts(&mut self, out: &mut Actions, node: Id, head: Head) {
        out.push(AuthorityAction::Judge { node, head: head.clone(), verdict: Verdict::Conflict });
        self.dispute(out, node, head);
    }

    /// A node holds what contradicts this history.
    fn dispute(&mut self, out: &mut Actions, node: Id, head: Head) {
        let shown = head.position;
        if self.conflicts.len() < self.settings.nodes {
            self.conflicts.insert(node);
        }
        if self.settings.keys.is_empty() && !self.settings.strict {
            out.push(AuthorityAction::Alarm(Alarm::Claim { node, shown }));
            return;
        }
        if !matches!(self.mode, Mode::Serving) {
            return;
        }
        out.push(AuthorityAction::Alarm(Alarm::OldStore { node, shown }));
        let why = ReadOnly::Old { shown };
        // What is with the store ends first; what is not goes no further.
        self.abandon(out, &why);
        self.mode = Mode::ReadOnly(why);
        if self.writing.is_some() {
            self.freeze = Some(head);
        } else {
            out.push(AuthorityAction::Append(Record::Frozen(head)));
            self.writing = Some(Writing::Frozen);
        }
    }

    fn begin(
        &mut self,
        out: &mut Actions,
        ticket: Ticket,
        incarnation: Id,
        content: Option<State>,
        from: Option<Position>,
    ) {
        if self.beginning.is_some() || self.durable.is_none() && self.writing.is_some() {
            return out.push(AuthorityAction::Reply(ticket, Answer::Busy));
        }
        self.beginning = Some(Beginning { ticket, incarnation, content, from });
        if self.writing.is_none() {
            self.begin_now(out);
        }
    }

    fn begin_now(&mut self, out: &mut Actions) {
        let Some(Beginning { ticket, incarnation, content, from }) = self.beginning.take() else { return };
        let own = self.position().map(Place::from).unwrap_or_default();
        let highest = if planted("epoch-not-compared") { own } else { max_each(self.highest, own) };
        let (Some(number), Some(rev)) = (highest.epoch.checked_add(1), highest.rev.checked_add(1)) else {
            let why = Invalid::NotNow("a node shows the highest number there is");
            return out.push(AuthorityAction::Reply(ticket, Answer::Invalid(why)));
        };
        let now = self.durable.as_ref().map(|durable| durable.state.clone()).unwrap_or_default();
        let state = content.unwrap_or_else(|| now.clone());
        let rev = if planted("rev-starts-anew") { 1 } else { rev };
        let commit = LogCommit {
            rev,
            request: incarnation,
            author: String::new(),
            note: "an epoch begins".into(),
            stamp: 0,
            digest: state.digest(),
            changes: Arc::new(now.diff(&state)),
        };
        let batch = self.batch(Epoch { number, incarnation }, vec![commit], &state);
        let position = batch.head.position;
        let mut lost: BTreeMap<_, (Position, usize)> = BTreeMap::new();
        for held in self.held.values().map(|head| head.position) {
            let beyond = from.is_none_or(|from| held.partial_cmp(&from).is_none_or(|order| order.is_gt()));
            if beyond {
                let key = (held.epoch.number, held.rev, held.epoch.incarnation);
                lost.entry(key).or_insert((held, 0)).1 += 1;
            }
        }
        let lost = lost.into_values().rev().collect();
        self.start(out, batch, state, Vec::new());
        if let Some(Writing::Batch { replies, .. }) = &mut self.writing {
            replies.push((ticket, Answer::Begun { position, lost }));
        }
    }

    fn on_adopt(&mut self, out: &mut Actions, ticket: Ticket, incarnation: Id, named: Option<Base>) {
        let refuse = |why| AuthorityAction::Reply(ticket, Answer::Invalid(Invalid::NotNow(why)));
        if !matches!(self.mode, Mode::Vacant) || self.writing.is_some() {
            return out.push(refuse("the namespace has begun"));
        }
        if self.adopting.is_some() {
            return out.push(AuthorityAction::Reply(ticket, Answer::Busy));
        }
        // A canary's state never passed its gate: only by name.
        let eligible = |head: &&Head| match named {
            Some(named) => head.base() == named,
            None => head.audience.is_empty(),
        };
        let best = self.held.values().filter(eligible).max_by_key(|head| Place::from(head.position)).cloned();
        let Some(best) = best else { return out.push(refuse("no node holds such a state")) };
        let rival = self.held.values().filter(eligible).any(|head| {
            let (a, b) = (head.position, best.position);
            a.epoch.number == b.epoch.number
                && (a.epoch != b.epoch
                    || a.rev == b.rev && (head.digest, head.chain) != (best.digest, best.chain))
        });
        if named.is_none() && rival {
            return out.push(refuse("nodes hold two histories under one number: name the position"));
        }
        let mut left: Vec<Id> = (self.held.iter())
            .filter(|(_, head)| head.shown() == best.shown())
            .map(|(node, _)| *node)
            .collect();
        let Some(node) = left.pop() else { return out.push(refuse("no node holds such a state")) };
        out.push(AuthorityAction::Offer(node, best.clone()));
        self.adopting = Some(Adopting { ticket, incarnation, left, node, head: best });
    }

    fn on_offered(&mut self, out: &mut Actions, node: Id, state: Option<State>) {
        let Some(mut adopting) = self.adopting.take_if(|adopting| adopting.node == node) else { return };
        if !matches!(self.mode, Mode::Vacant) || self.writing.is_some() {
            // It began in another way meanwhile, and what was committed since must not be undone.
            let why = Invalid::NotNow("the namespace has begun");
            return out.push(AuthorityAction::Reply(adopting.ticket, Answer::Invalid(why)));
        }
        let head = &adopting.head;
        // Recomputed: what came over the wire is believed for its content alone.
        let whole =
            state.filter(|s| (s.keys(), s.bytes(), s.recompute()) == (head.keys, head.bytes, head.digest));
        match (whole, adopting.left.pop()) {
            (Some(state), _) => {
                let from = Some(head.position);
                self.begin(out, adopting.ticket, adopting.incarnation, Some(state), from);
            }
            (None, Some(next)) => {
                adopting.node = next;
                out.push(AuthorityAction::Offer(next, adopting.head.clone()));
                self.adopting = Some(adopting);
            }
            (None, None) => {
                let why = Invalid::NotNow("no node sent the state that its HEAD names");
                out.push(AuthorityAction::Reply(adopting.ticket, Answer::Invalid(why)));
            }
        }
    }
}

/// The higher of each.
fn max_each(a: Place, b: Place) -> Place {
    Place { epoch: a.epoch.max(b.epoch), rev: a.rev.max(b.rev) }
}
