//! What a receiver holds of one namespace, what of it is on its way, and what is to be said about that.
//!
//! What is *visible* (the application accepted it), what is *given* (the application looks at it) and what is
//! *ready* (verified, waiting) are separate; a refusal goes back to visible, and nothing else ever goes back.
//!
//! Owns: verification, the order of positions, conflicts and refusals, freshness. Never: a pipe or its credit. What it has to
//! say, and what it has against a server, it leaves to the receiver, which does it before its present call ends.

use std::collections::BTreeSet;

use spanwire::protocol::{Cx, Time, TimerKey, WaitKey};

use super::reports::Reports;
use super::transfer::Assembly;
use super::{Data, ReplicaSettings, ReplicaStatus, Unexpected, Update, offer, relay};
use crate::faults::planted;
use crate::wire::{Level, NackCode, NodeKind, WantReason};
use crate::{Base, ChainMark, Claim, Head, Key, Position, RECEIVER, State};

/// What is said upward, in this order: what was reached is heard before what is asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Word {
    /// What was applied last, of a revision before the one that is visible: to who may not know it.
    Past,
    Report,
    Want(WantReason),
    Refusals,
}

/// What a server did that ends the pipe in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Complaint {
    /// It comes last for a while.
    Leave(&'static str),
    Close(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) head: Head,
    pub(super) state: State,
}

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) position: Position,
    pub(super) mark: ChainMark,
    pub(super) code: NackCode,
    pub(super) text: String,
}

pub(super) enum Verdict {
    Ignore,
    /// It names what is held.
    Same,
    Newer,
}

/// What a receiver has of a namespace when it starts: what its disk holds, which must have been checked (as
/// [`store`](crate::store) does). Default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub(super) held: Option<(Head, State, Level)>,
    pub(super) conflict: Option<(Head, Head)>,
    applied: Option<Claim>,
}

impl Kept {
    /// This revision, which the application shows already. `level` is what was reached for it.
    pub fn revision(head: Head, state: State, level: Level) -> Kept {
        Kept { held: Some((head, state, level)), ..Kept::default() }
    }

    /// … and this is the revision that the application acted on last, where it is an earlier one: a server that does not know
    /// is told of that, too.
    #[must_use]
    pub fn applied_before(self, applied: Option<Base>) -> Kept {
        Kept { applied: applied.map(|base| base.claim()), ..self }
    }

    /// … where two HEADs contradict each other since an earlier life: what is held, and the other.
    #[must_use]
    pub fn in_conflict(self, heads: Option<(Head, Head)>) -> Kept {
        Kept { conflict: heads.filter(|_| !planted("conflict-forgotten")), ..self }
    }
}

/// One namespace of a [`Replica`](super::Replica).
#[derive(Clone, Debug)]
pub struct NsReplica {
    pub(super) settings: ReplicaSettings,
    /// Its place among those of the receiver.
    index: u32,
    /// The last HEAD that a trusted key signed: all slices of a transfer carry the same.
    pub(super) signed: Option<Head>,
    /// HEADs in a row, on the pipe in use, that are not to be believed.
    pub(super) doubted: u32,
    pub(super) visible: Option<Held>,
    pub(super) given: Option<Held>,
    pub(super) ready: Option<Held>,
    pub(super) ready_changed: BTreeSet<Key>,
    /// What is said of `visible`.
    pub(super) reports: Reports,
    pub(super) hook_failed: Option<Refusal>,
    /// What the application acted on last.
    pub(super) applied: Option<Claim>,
    /// At most two, newest last.
    pub(super) refused: Vec<Refusal>,
    pub(super) assembly: Option<Assembly>,
    /// A fresh start was asked for: what does not fit is dropped without a word until it comes.
    pub(super) awaiting: bool,
    /// The newest HEAD above what is verified.
    pub(super) target: Option<Head>,
    /// Since when there is a target and nothing of it arrived.
    pub(super) behind: Option<Time>,
    /// Its place among those that wait for a transfer, as the pipe in use told it last, and the best that it had;
    /// `None` once something came.
    pub(super) place: Option<(u32, u32)>,
    pub(super) confirmed: bool,
    pub(super) conflict: Option<(Head, Head)>,
    /// Since when the server in use could have shown something.
    pub(super) since: Time,
    /// Highest `seq` seen in the epoch of the last HEAD, and when it last rose.
    pub(super) seq: Option<(Position, u64)>,
    pub(super) fresh: Option<Time>,
    was_fresh: bool,
    pub(super) relayed: relay::Relayed,
    pub(super) upload: Option<offer::Upload>,
    /// What is to be said on the pipe in use once there is room.
    pub(super) owed: BTreeSet<Word>,
    /// Something was reached that was not said. `true`: what follows is expected soon.
    pub(super) tells: Option<bool>,
    pub(super) complaint: Option<Complaint>,
}

impl NsReplica {
    pub(super) fn new(settings: ReplicaSettings, index: usize, kept: Kept) -> NsReplica {
        let mut this = NsReplica {
            settings,
            index: index as u32,
            signed: None,
            doubted: 0,
            visible: None,
            given: None,
            ready: None,
            ready_changed: BTreeSet::new(),
            reports: Reports::default(),
            hook_failed: None,
            applied: kept.applied,
            refused: Vec::new(),
            assembly: None,
            awaiting: false,
            target: None,
            behind: None,
            place: None,
            confirmed: false,
            conflict: kept.conflict,
            since: Time::default(),
            seq: None,
            fresh: None,
            was_fresh: false,
            relayed: relay::Relayed::default(),
            upload: None,
            owed: BTreeSet::new(),
            tells: None,
            complaint: None,
        };
        if let Some((head, state, level)) = kept.held {
            this.applied = this.applied.or((level == Level::Applied).then(|| head.claim()));
            this.reports = Reports::of(this.ack_of(&head, level, false));
            this.visible = Some(Held { head, state });
        }
        this
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.settings.namespace.as_str()
    }

    /// The revision that the application accepted last.
    pub fn visible(&self) -> Option<(&Head, &State)> {
        self.visible.as_ref().map(|held| (&held.head, &held.state))
    }

    /// Woken when [`Replica::status_of`](super::Replica::status_of) this namespace may have changed. A relay waits for all
    /// news in one place: its namespaces have the same.
    pub fn wait_key(&self) -> WaitKey {
        let index = if self.settings.kind == NodeKind::Relay { 0 } else { self.index };
        WaitKey(RECEIVER as u32, u64::from(index) << 8)
    }

    pub(super) fn woken(&self, cx: &mut Cx<'_>) {
        cx.wake(self.wait_key());
    }

    /// When what gathers is to be said.
    pub(super) fn timer(&self) -> TimerKey {
        TimerKey(1, self.index.into())
    }

    /// Where it stands; what the receiver knows of the server is left out.
    pub(super) fn status(&self, now: Time) -> ReplicaStatus {
        let visible = self.visible.as_ref().map(|held| held.head.position);
        let mut above = self.refused.iter().filter(|refusal| visible.is_none_or(|at| refusal.position > at));
        let refused = above.next_back();
        ReplicaStatus {
            data: self.data(),
            visible,
            newest: self.target.as_ref().or(self.tip().map(|held| &held.head)).map(|head| head.position),
            refused: refused.map(|refusal| (refusal.position, refusal.code, refusal.text.clone())),
            fresh: self.is_fresh(now),
            rose: self.fresh.map(|at| now.saturating_since(at)),
            arriving: self.arriving(),
            waiting: self.place.filter(|_| self.behind.is_some()).map(|(place, _)| place),
            upstream: None,
            namespace: None,
            stale_boot: None,
            evidence: self.conflict.clone(),
        }
    }

    fn is_fresh(&self, now: Time) -> bool {
        self.fresh.is_some_and(|at| now.saturating_since(at) <= self.settings.fresh)
    }

    pub(super) fn data(&self) -> Data {
        let newest = self.tip().map(|held| held.head.position);
        if self.conflict.is_some() {
            Data::Conflict
        } else if self.target.is_some() || self.ready.is_some() || self.given.is_some() {
            Data::Behind
        } else if self.refused.iter().any(|r| newest.is_none_or(|newest| r.position > newest)) {
            Data::Held
        } else if newest.is_none() {
            Data::Empty
        } else if self.confirmed {
            Data::Live
        } else {
            Data::Cached
        }
    }

    /// The newest that is verified.
    pub(super) fn tip(&self) -> Option<&Held> {
        self.ready.as_ref().or(self.given.as_ref()).or(self.visible.as_ref())
    }

    pub(super) fn retry(&mut self) {
        self.refused.clear();
        self.ask(WantReason::Retry);
    }

    /// The newest verified revision, once; the one given before is visible.
    pub(super) fn recv(&mut self, cx: &mut Cx<'_>) -> Option<Update> {
        self.ready.as_ref()?;
        if let Some(position) = self.given.as_ref().map(|given| given.head.position) {
            // It is the one given, so this cannot fail.
            let _ = self.reached(cx, position, Level::Visible, true, false);
        }
        let held = self.ready.take()?;
        let changed = std::mem::take(&mut self.ready_changed);
        self.reports.given();
        self.given = Some(held.clone());
        Some(Update { head: held.head, changed: changed.into_iter().collect(), state: held.state })
    }

    /// As [`Replica::ack`](super::Replica::ack). `more`: what follows is expected soon.
    pub(super) fn reached(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        level: Level,
        volatile: bool,
        more: bool,
    ) -> Result<(), Unexpected> {
        self.note(position, level, volatile)?;
        self.tells = Some(more);
        self.woken(cx);
        Ok(())
    }

    /// The same without a word: one follows.
    pub(super) fn note(
        &mut self,
        position: Position,
        level: Level,
        volatile: bool,
    ) -> Result<(), Unexpected> {
        if self.given.as_ref().is_some_and(|given| given.head.position == position) {
            self.visible = self.given.take();
            self.hook_failed = None;
            self.reports.shown();
        } else if self.visible.as_ref().is_none_or(|visible| visible.head.position != position) {
            return Err(Unexpected(position));
        }
        if level == Level::Applied {
            self.hook_failed = None;
            self.applied = self.visible.as_ref().map(|visible| visible.head.claim());
        }
        // Levels of one revision only add up.
        let (level, kept) =
            self.reports.reached().map_or((level, !volatile), |(l, k)| (l.max(level), k || !volatile));
        let level = if planted("level-lowered") { level.min(Level::Visible) } else { level };
        if let Some(visible) = &self.visible {
            let report = self.ack_of(&visible.head, level, !kept);
            self.reports.set(report);
        }
        Ok(())
    }

    /// As [`Replica::nack`](super::Replica::nack).
    pub(super) fn refuses(
        &mut self,
        cx: &mut Cx<'_>,
        position: Position,
        code: NackCode,
        text: &str,
    ) -> Result<(), Unexpected> {
        let named = if code == NackCode::Hook { &self.visible } else { &self.given };
        let Some(named) = named.as_ref().filter(|named| named.head.position == position) else {
            return Err(Unexpected(position));
        };
        let mark = ChainMark::of(&named.head.chain);
        let refusal = Refusal { position, mark, code, text: text.to_owned() };
        if code == NackCode::Hook {
            self.hook_failed = Some(refusal);
        } else {
            self.refuse(refusal);
            // What is built on the refused one goes with it; the sender starts again from visible.
            self.given = None;
            let built_on_it = if planted("nack-does-not-go-back") { None } else { self.ready.take() };
            self.ready_changed.clear();
            self.assembly = None;
            self.awaiting = true;
            self.not_beyond(position);
            if let (Some(held), None) = (built_on_it, &self.target) {
                // It is known, and comes again from what is visible.
                self.target = Some(held.head);
                self.behind = Some(cx.now());
            }
        }
        self.say(Word::Refusals);
        self.woken(cx);
        Ok(())
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refused.retain(|r| r.position != refusal.position);
        self.refused.push(refusal);
        if self.refused.len() > 2 || planted("one-refusal-remembered") && self.refused.len() > 1 {
            self.refused.remove(0);
        }
    }

    /// Asks for a fresh start from what is verified.
    pub(super) fn ask(&mut self, reason: WantReason) {
        self.assembly = None;
        self.awaiting = true;
        self.say(Word::Want(reason));
    }

    /// Something is to be said on the pipe in use.
    pub(super) fn say(&mut self, word: Word) {
        if self.tells.take().is_some() || self.reports.waits() {
            // What was reached before is heard before.
            self.owed.insert(Word::Report);
        }
        self.owed.insert(word);
    }

    /// What waited for more is to be said.
    pub(super) fn gathered(&mut self) {
        self.reports.time();
        if self.reports.waits() {
            self.owed.insert(Word::Report);
        }
    }

    /// The pipe in use is another, or none: what it was told by the last one is over, and what it asked of it.
    pub(super) fn moved(&mut self, now: Time) {
        self.since = now;
        // HELLO asks for all.
        self.owed.retain(|word| !matches!(word, Word::Want(_)));
        self.place = None;
        // The next upstream has not withheld anything yet.
        self.behind = self.behind.map(|_| now);
        self.doubted = 0;
    }

    /// The pipe in use is gone.
    pub(super) fn left(&mut self, cx: &mut Cx<'_>) {
        if planted("conflict-ends") {
            self.conflict = None;
        }
        self.assembly = None;
        self.awaiting = false;
        self.confirmed = false;
        self.moved(cx.now());
        self.woken(cx);
    }

    /// At each beacon time. `others`: there is another server to go to.
    pub(super) fn tick(&mut self, cx: &mut Cx<'_>, others: bool) {
        let now = cx.now();
        if self.target.is_some()
            && !planted("withheld-data-tolerated")
            && self.behind.is_some_and(|since| now.saturating_since(since) >= self.settings.fresh * 3)
        {
            self.behind = Some(now);
            // It shows that there is more and does not send it.
            match others {
                true => self.complaint = Some(Complaint::Leave("withholds data")),
                false => self.ask(WantReason::Other),
            }
        }
        let fresh = self.is_fresh(now);
        if std::mem::replace(&mut self.was_fresh, fresh) != fresh {
            self.woken(cx);
        }
    }
}
