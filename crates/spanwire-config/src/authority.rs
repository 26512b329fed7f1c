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

mod api;
mod commits;
mod epochs;
mod judge;
mod repeats;
mod rollout;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spanwire::protocol::Time;

pub use api::{
    Alarm, Answer, AuthorityAction, AuthorityEvent, By, Intent, Invalid, Mode, NsSettings, Opening, Place,
    Published, ReadOnly, Recall, Request, Ticket, Verdict,
};

use repeats::Asked;
use rollout::Rollout;
pub use rollout::{CohortNode, Tally};

/// Why nothing can be adopted, and no new namespace be begun.
const BEGUN: &str = "nothing was lost here: adopt and init are for a store that holds nothing; a new epoch begins \
                     with what is here (new-epoch), or with what was exported (import)";

use crate::faults::planted;
use crate::rollout::{Mark, Plan};
use crate::source::{Batch, LogCommit, Record, Recovered, Snapshot};
use crate::{Base, ChangeSet, Digest, Head, Id, Origin, Position, State};

/// A claim to an epoch number or revision beyond mine by more than this is ignored in a cluster without keys:
/// believing it could use the numbers up.
const LEAP: u64 = 1 << 32;

/// A batch of the log, in memory.
#[derive(Clone, Debug)]
struct Kept {
    batch: Batch,
    size: usize,
    /// Requests that were steps of its rollout.
    marks: Vec<Id>,
}

/// A batch that gathers. Only the state at its end is kept, so that many waiting commits cost what they
/// change and not a state each.
#[derive(Clone, Debug)]
struct Gathered {
    tickets: Vec<Ticket>,
    commits: Vec<LogCommit>,
    state: State,
    /// What is for all once this is durable.
    for_all: State,
    /// It opens a rollout.
    plan: Option<Arc<Plan>>,
    /// It opens or ends a rollout: nothing joins it.
    alone: bool,
    size: usize,
}

/// What the store is writing.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it, and it is nearly always a batch")]
enum Writing {
    Batch {
        batch: Batch,
        state: State,
        changes: Arc<ChangeSet>,
        replies: Vec<(Ticket, Answer)>,
    },
    /// And who is to be told, and whether as a replay.
    Mark {
        mark: Mark,
        replies: Vec<(Ticket, bool)>,
    },
    Frozen,
}

#[derive(Clone, Debug)]
struct Adopting {
    ticket: Ticket,
    incarnation: Id,
    by: By,
    /// Others who hold the same.
    left: Vec<Id>,
    node: Id,
    head: Head,
}

/// An epoch that begins when what is under way has ended.
#[derive(Clone, Debug)]
struct Beginning {
    ticket: Ticket,
    incarnation: Id,
    by: By,
    /// `None`: the content of then.
    content: Option<State>,
    from: Option<Position>,
}

/// One namespace at its authority: a machine without I/O, driven by [`handle`](NsAuthority::handle).
#[derive(Clone, Debug)]
pub struct NsAuthority {
    settings: NsSettings,
    mode: Mode,
    /// A commit may begin the namespace.
    fresh: Option<Id>,
    opened: u32,
    /// The newest durable state; its HEAD as it is stored.
    durable: Option<Snapshot>,
    /// The rollout of the newest durable state.
    rollout: Option<Rollout>,
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
        let Recovered { opened, base, records, last, frozen, rollout, cut: _ } = recovered;
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
            rollout: rollout.filter(|_| !planted("rollout-lost-by-restart")).map(Rollout::new),
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
            match record {
                Record::Batch(batch) => this.keep(batch),
                Record::Mark(mark) => this.kept_mark(&mark),
                Record::Frozen(_) => {}
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
        let (Some(newest), Some(all)) = (&self.durable, self.for_all()) else {
            return Origin::pending(self.opened);
        };
        let base = self.base.as_ref().map(|base| base.head.shown());
        let canary = self.rollout.as_ref().map(|_| (newest.head.clone(), newest.state.clone()));
        Origin::restored(all.head.clone(), all.state.clone(), self.opened)
            .with_log(base, self.log.iter().map(|kept| &kept.batch))
            .with_canary(canary)
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

    /// The oldest position that [`read`](Self::read) reaches; (0, 0) if nothing was let go of.
    pub fn oldest(&self) -> Place {
        self.base.as_ref().map(|base| base.head.position.into()).unwrap_or_default()
    }

    /// Commits and bytes that are kept.
    pub fn log_size(&self) -> (usize, usize) {
        (self.log_commits, self.log_bytes)
    }

    /// The next epoch gets at least this number: an operator's word about nodes that are not here.
    pub fn reserve_epoch(&mut self, number: u64) {
        self.highest.epoch = self.highest.epoch.max(number.saturating_sub(1));
    }

    /// Takes what happened; returns what is to be done, in order. Only the gates of a rollout look at `now`.
    pub fn handle(&mut self, event: AuthorityEvent, now: Time) -> Actions {
        self.handle_by(event, By::default(), now)
    }

    fn handle_by(&mut self, event: AuthorityEvent, by: By, now: Time) -> Actions {
        let mut out = Vec::new();
        match event {
            AuthorityEvent::By(by, event) => return self.handle_by(*event, *by, now),
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
                if self.repeated(&mut out, ticket, incarnation, Asked::Content(&content)) {
                    return out;
                }
                if !matches!(self.mode, Mode::Vacant) {
                    let why = Invalid::NotNow(BEGUN);
                    out.push(AuthorityAction::Reply(ticket, Answer::Invalid(why)));
                } else if self.permits(&mut out, ticket, &by) {
                    self.begin(&mut out, (ticket, incarnation, by), Some(content), None);
                }
            }
            AuthorityEvent::NewEpoch(ticket, incarnation)
                if self.repeated(&mut out, ticket, incarnation, Asked::Epoch) => {}
            AuthorityEvent::NewEpoch(ticket, incarnation) => match &self.mode {
                Mode::Serving | Mode::ReadOnly(ReadOnly::Old { .. }) => {
                    let from = self.position();
                    if self.permits(&mut out, ticket, &by) {
                        self.begin(&mut out, (ticket, incarnation, by), None, from);
                    }
                }
                Mode::Vacant => out.push(AuthorityAction::Reply(ticket, Answer::ReadOnly(ReadOnly::Vacant))),
                Mode::ReadOnly(why) => {
                    out.push(AuthorityAction::Reply(ticket, Answer::ReadOnly(why.clone())));
                }
            },
            AuthorityEvent::Import(ticket, incarnation, content) => {
                self.on_import(&mut out, (ticket, incarnation, by), content);
            }
            AuthorityEvent::Adopt(ticket, incarnation, named) => {
                self.on_adopt(&mut out, (ticket, incarnation, by), named);
            }
            AuthorityEvent::Offered(node, state) => self.on_offered(&mut out, node, state),
            AuthorityEvent::Rollout(ticket, request, at, step) => {
                self.on_rollout(&mut out, (ticket, request, by), at, step);
            }
            AuthorityEvent::Cohort(of, nodes) => self.on_cohort(&mut out, &of, &nodes, (now, by.stamp)),
        }
        out
    }
}

/// The higher of each.
fn max_each(a: Place, b: Place) -> Place {
    Place { epoch: a.epoch.max(b.epoch), rev: a.rev.max(b.rev) }
}
