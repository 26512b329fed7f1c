//! Rollouts: a revision that is for a cohort first, and for all once its stages are over.
//!
//! ```text
//!                 next, gate passed             last stage passed, promote
//!            ┌──────────────┐  ┌─────────────────────────────────────────────► for all, the same revision
//!  COMMIT    ▼              │  │
//!  with a ──► stage n ──────┴──┤
//!  plan       (or paused)      └─────────────────────────────────────────────► one revision more, for all:
//!                                 abort, gate failed, supersede, new epoch       what all others have
//! ```
//!
//! Each arrow is durable before a HEAD shows it. Owns: stages, gates, who is counted. Never: looks at a node itself;
//! a revision below one that was shown.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use spanwire::protocol::Time;

use super::repeats::Asked;
use super::{
    Actions, Answer, AuthorityAction, By, Gathered, Invalid, Kept, LEAP, Mode, NsAuthority, Place, ReadOnly,
    Ticket, Writing,
};
use crate::faults::planted;
use crate::rollout::{Mark, Open, WHOLE};
use crate::source::{LogCommit, MAX_AUTHOR, MAX_MEMBERS, MAX_NOTE, Record, Snapshot};
use crate::wire::client::Step;
use crate::{Head, Id, Position};

/// Most steps of one rollout: the log cannot let go of them while it is open.
const MAX_MARKS: usize = 1_000;

/// A node of a cohort, as its reports tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CohortNode {
    /// The node.
    pub node: Id,
    /// It is connected.
    pub here: bool,
    /// It has applied the revision of the rollout.
    pub applied: bool,
    /// It refused that, or could not act on it.
    pub refused: bool,
}

/// How far a stage is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// The cohort's nodes that were here when the stage began, and those that came since.
    pub nodes: usize,
    /// Of these, who is here and has applied it.
    pub applied: usize,
    /// Of these, who refused it or could not act on it.
    pub refused: usize,
}

/// An open rollout, and what is counted of it.
#[derive(Clone, Debug)]
pub(super) struct Rollout {
    pub(super) open: Open,
    /// Since when the stage is counted in this process.
    since: Option<Time>,
    /// Members of the stage, and who came to it since.
    counted: BTreeSet<Id>,
    pub(super) marks: usize,
    tally: Tally,
}

impl Rollout {
    pub(super) fn new(open: Open) -> Rollout {
        let counted = open.members.clone().unwrap_or_default();
        Rollout { open, since: None, counted, marks: 0, tally: Tally::default() }
    }

    fn step(&mut self, mark: &Mark) {
        let before = self.open.stage;
        self.open.step(mark);
        if self.open.stage != before {
            (self.since, self.tally) = (None, Tally::default());
            self.counted.clear();
        }
        if let Some(members) = &mark.members {
            self.counted.extend(members.iter().copied());
        }
        self.marks += 1;
    }
}

impl NsAuthority {
    /// The open rollout, how far its stage is, and how long that lasts in this process.
    pub fn rollout(&self, now: Time) -> Option<(&Open, Tally, Duration)> {
        let rollout = self.rollout.as_ref()?;
        let since = rollout.since.map_or(Duration::ZERO, |since| now.saturating_since(since));
        Some((&rollout.open, rollout.tally, since))
    }

    /// The revision of the open rollout and its present audience: whose nodes
    /// [`AuthorityEvent::Cohort`](super::AuthorityEvent::Cohort) is to tell of.
    pub fn cohort(&self) -> Option<(Position, Bytes)> {
        self.rollout.as_ref()?;
        self.durable.as_ref().map(|durable| (durable.head.position, durable.head.audience.clone()))
    }

    /// The newest durable state that is for all, and its HEAD as it is stored.
    pub fn for_all(&self) -> Option<&Snapshot> {
        self.rollout.as_ref().map(|rollout| &rollout.open.for_all).or(self.durable.as_ref())
    }

    /// Whether this revision was for a cohort, and its rollout was aborted. As far as the log is kept.
    pub fn is_aborted(&self, place: Place) -> bool {
        let open = self.rollout.is_some().then(|| self.position().map(Place::from)).flatten();
        let base = self.base.iter().map(|base| &base.head);
        let heads = self.log.iter().map(|kept| &kept.batch.head).chain(base);
        let cohort = |head: &Head| !head.audience.is_empty() && Place::from(head.position) == place;
        open != Some(place) && heads.into_iter().any(cohort)
    }

    /// Whether the newest of all that is under way is a rollout's.
    pub(super) fn tip_is_open(&self) -> bool {
        match (self.gathered.back(), &self.writing) {
            (Some(last), _) => last.plan.is_some(),
            (None, Some(Writing::Batch { batch, .. })) => batch.plan.is_some(),
            (None, _) => self.rollout.is_some(),
        }
    }

    /// The content that is for all at the tip.
    pub(super) fn tip_for_all(&self) -> crate::State {
        let durable = || self.for_all().map(|all| all.state.clone()).unwrap_or_default();
        match (self.gathered.back(), &self.writing) {
            (Some(last), _) => last.for_all.clone(),
            (None, Some(Writing::Batch { batch, state, .. })) if batch.plan.is_none() => state.clone(),
            (None, _) => durable(),
        }
    }

    /// Whether a promotion is with the store: what comes after it depends on how that ends.
    pub(super) fn is_passing(&self) -> bool {
        matches!(&self.writing, Some(Writing::Mark { mark, .. }) if mark.passed)
    }

    pub(super) fn on_rollout(
        &mut self,
        out: &mut Actions,
        (ticket, request, by): (Ticket, Id, By),
        at: Place,
        step: Step,
    ) {
        let refuse = |out: &mut Actions, answer| out.push(AuthorityAction::Reply(ticket, answer));
        if self.repeated(out, ticket, request, Asked::Step(step, at)) {
            return;
        }
        if let Some(Writing::Mark { mark, replies }) = &mut self.writing
            && mark.request == request
        {
            let waits = replies.len();
            if waits >= self.settings.waiting_commits {
                return refuse(out, Answer::Busy);
            }
            replies.push((ticket, true));
            return;
        }
        match &self.mode {
            Mode::ReadOnly(why) => return refuse(out, Answer::ReadOnly(why.clone())),
            Mode::Vacant => return refuse(out, Answer::ReadOnly(ReadOnly::Vacant)),
            Mode::Serving => {}
        }
        if self.writing.is_some() || self.beginning.is_some() || !self.gathered.is_empty() {
            return refuse(out, Answer::Busy);
        }
        let head = self.position().map(Place::from).unwrap_or_default();
        if at != head {
            return refuse(out, Answer::Conflict { head });
        }
        let Some(rollout) = &self.rollout else {
            return refuse(out, Answer::Invalid(Invalid::Rollout("no rollout is open")));
        };
        if step != Step::Abort && step != Step::Promote && rollout.marks >= MAX_MARKS {
            let why = "the rollout has had too many steps: promote or abort it";
            return refuse(out, Answer::Invalid(Invalid::Rollout(why)));
        }
        let paused = rollout.open.paused;
        match step {
            Step::Promote => self.mark(out, Some(ticket), request, |mark| mark.passed = true),
            Step::Pause => self.mark(out, Some(ticket), request, |mark| mark.paused = true),
            Step::Resume => self.mark(out, Some(ticket), request, |mark| mark.paused = false),
            Step::Next => {
                let last = rollout.open.stage + 1 >= rollout.open.plan.stages.len();
                self.mark(out, Some(ticket), request, |mark| match last {
                    true => mark.passed = true,
                    false => (mark.stage, mark.paused) = (mark.stage + 1, paused),
                });
            }
            Step::Abort => {
                // It is the note of a commit as any other.
                if by.author.len() > MAX_AUTHOR || by.note.len() > MAX_NOTE {
                    let what = if by.author.len() > MAX_AUTHOR { "author" } else { "note" };
                    return refuse(out, Answer::Invalid(Invalid::TooLong(what)));
                }
                self.abort(out, vec![ticket], request, "rollout aborted", by);
            }
        }
    }

    /// Has a step of the open rollout written.
    fn mark(&mut self, out: &mut Actions, ticket: Option<Ticket>, request: Id, set: impl FnOnce(&mut Mark)) {
        let (Some(Rollout { open, .. }), Some(at)) = (&self.rollout, self.position()) else { return };
        let (stage, paused) = (open.stage as u8, open.paused);
        let mut mark = Mark { at, request, stage, paused, passed: false, members: None };
        set(&mut mark);
        if planted("stage-before-sync")
            && let Some(durable) = &self.durable
        {
            let stage = if mark.passed { usize::MAX } else { usize::from(mark.stage) };
            let audience = open.plan.audience(open.rollout, stage);
            out.push(AuthorityAction::Show(Head { audience, ..durable.head.clone() }));
        }
        out.push(AuthorityAction::Append(Record::Mark(mark.clone())));
        self.writing =
            Some(Writing::Mark { mark, replies: ticket.into_iter().map(|t| (t, false)).collect() });
    }

    /// One revision more, for all, with what all others have.
    fn abort(&mut self, out: &mut Actions, tickets: Vec<Ticket>, request: Id, what: &str, by: By) {
        let Some(at) = self.position() else { return };
        let state = self.tip_for_all();
        let changes = self.tip_state().diff(&state);
        let Some(rev) = at.rev.checked_add(1).filter(|rev| *rev < u64::MAX - LEAP) else { return };
        let commit = LogCommit {
            rev,
            request,
            author: by.author,
            note: match by.note {
                none if none.is_empty() => format!("{what}: {}:{}", at.epoch.number, at.rev),
                note => note,
            },
            stamp: by.stamp,
            digest: state.digest(),
            changes: changes.into(),
        };
        let words = commit.author.len() + commit.note.len();
        let size = crate::wire::encode_changes(&commit.changes).len() + words;
        let (commits, for_all) = (vec![commit], state.clone());
        let ends = Gathered { tickets, commits, state, for_all, plan: None, alone: true, size };
        self.gather(out, at.epoch, ends);
    }

    /// What the nodes of the present cohort report.
    pub(super) fn on_cohort(
        &mut self,
        out: &mut Actions,
        of: &(Position, Bytes),
        nodes: &[CohortNode],
        (now, stamp): (Time, u64),
    ) {
        let busy = self.writing.is_some() || self.beginning.is_some() || !self.gathered.is_empty();
        if self.mode != Mode::Serving || busy || self.cohort().as_ref() != Some(of) {
            return;
        }
        let most = self.settings.nodes;
        let Some(rollout) = &mut self.rollout else { return };
        let lasts = now.saturating_since(*rollout.since.get_or_insert(now));
        let here = nodes.iter().filter(|node| node.here).map(|node| node.node);
        if rollout.open.members.is_none() {
            // Over a restart too, who leaves counts as not having applied it.
            let members: Vec<Id> = here.take(most.min(MAX_MEMBERS)).collect();
            // Told at once, and counted by no gate before it is durable.
            let of = || nodes.iter().filter(|node| node.here).take(members.len());
            rollout.tally = Tally {
                nodes: members.len(),
                applied: of().filter(|node| node.applied).count(),
                refused: of().filter(|node| node.refused).count(),
            };
            return self.mark(out, None, Id::default(), |mark| mark.members = Some(members));
        }
        for node in here {
            if rollout.counted.len() < most {
                rollout.counted.insert(node);
            }
        }
        let counted = || nodes.iter().filter(|node| rollout.counted.contains(&node.node));
        let tally = Tally {
            nodes: rollout.counted.len(),
            applied: counted().filter(|node| node.here && node.applied).count(),
            refused: counted().filter(|node| node.refused).count(),
        };
        rollout.tally = tally;
        let open = &rollout.open;
        let Some(gate) = open.plan.stages.get(open.stage).and_then(|stage| stage.gate) else { return };
        if open.paused {
            return;
        }
        if tally.refused > usize::try_from(gate.refusals).unwrap_or(usize::MAX) {
            // Named after what it ends, so that it is one and the same whenever it is decided.
            let request = Id::named(&format!("{} aborted by its gate", of.0));
            let by = By { stamp, ..By::default() };
            return self.abort(out, Vec::new(), request, "rollout aborted by its gate", by);
        }
        let share = tally.applied as u128 * u128::from(WHOLE);
        let enough = share >= u128::from(gate.applied) * tally.nodes as u128 && tally.nodes > 0;
        if enough && lasts >= gate.bake && rollout.marks < MAX_MARKS || planted("gate-always-open") {
            let last = open.stage + 1 >= open.plan.stages.len();
            self.mark(out, None, Id::default(), |mark| match last {
                true => mark.passed = true,
                false => mark.stage += 1,
            });
        }
    }

    /// A step is durable.
    pub(super) fn on_marked(&mut self, out: &mut Actions, mark: &Mark, replies: Vec<(Ticket, bool)>) {
        let Some(durable) = self.durable.as_mut() else { return };
        let before = durable.head.audience.clone();
        if mark.passed {
            self.rollout = None;
            durable.head.audience = Bytes::new();
        } else if let Some(rollout) = &mut self.rollout {
            rollout.step(mark);
            durable.head.audience = rollout.open.audience();
        }
        let head = durable.head.clone();
        if mark.request != Id::default() {
            self.requests.insert(mark.request, (head.position, head.digest));
        }
        if let Some(kept) = self.log.back_mut() {
            kept.note(mark);
        }
        let (position, digest) = (head.position, head.digest);
        if head.audience != before {
            out.push(AuthorityAction::Show(head));
        }
        for (to, replay) in replies {
            out.push(AuthorityAction::Reply(to, Answer::Committed { position, digest, replay }));
        }
    }
}

impl Kept {
    /// A step of the rollout that this batch opened.
    pub(super) fn note(&mut self, mark: &Mark) {
        if mark.request != Id::default() {
            self.marks.push(mark.request);
        }
        if mark.passed {
            self.batch.head.audience = Bytes::new();
        }
    }
}
