//! What a sender serves of one namespace: its states, its log, a cursor for each pipe, and its nodes.
//!
//! Whatever happens here leaves pipes to look at; the sender has them send, each namespace in its turn. Owns: cursors,
//! `seq` and signing, the table of nodes. Never: decides what is committed or who is right, a disk, a pipe's credit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, PipeMap, WaitKey};

use super::cursor::{Cursor, Standing};
use super::nodes::{NodeStatus, Nodes};
use super::offer::Taking;
use super::relay::Part;
use super::target::{Shown as Beacon, Which};
use super::transfer::size;
use super::{Origin, SEQ_BITS, Settings, Stale};
use crate::faults::planted;
use crate::wire::{Frame, Hello, Level, Payload};
use crate::{AuthorityEvent, ChangeSet, Head, Id, Position, Published, SENDER, Shown, State, Verdict, chain};

/// One step of the log.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) base: Shown,
    pub(super) changes: Arc<ChangeSet>,
    pub(super) size: usize,
}

impl Step {
    pub(super) fn new(base: Shown, changes: Arc<ChangeSet>) -> Step {
        Step { base, size: size(&changes), changes }
    }
}

/// One namespace of a [`Distributor`](super::Distributor).
#[derive(Clone, Debug)]
pub struct Namespace {
    pub(super) settings: Settings,
    /// Its place among those of the server.
    index: u32,
    /// The newest HEAD that is for all and its state; `None` until the first commit.
    pub(super) published: Option<(Head, State)>,
    /// The newest, while it is for a cohort alone.
    pub(super) canary: Option<(Head, State)>,
    /// HEADs are those of a server above, and go out as they came.
    pub(super) passes: bool,
    /// The whole table is being told upward: it is yet to begin, or to end.
    pub(super) telling: Option<Part>,
    seq: u64,
    pub(super) log: VecDeque<Step>,
    pub(super) log_bytes: usize,
    /// At most one encoded snapshot of each state: of the head, or of a revision that the log still reaches.
    pub(super) snapshots: [Option<Arc<Payload>>; 2],
    /// Steps to a present head, by where they start and lead. `None`: a snapshot is cheaper.
    pub(super) deltas: VecDeque<(Shown, Position, Option<Arc<Payload>>)>,
    /// One for each pipe that wants it or spoke of it.
    pub(super) cursors: PipeMap<Cursor>,
    pub(super) nodes: Nodes,
    /// Slots that its transfers hold.
    pub(super) slots: usize,
    /// Pipes to look at before the present call ends.
    pub(super) work: VecDeque<PipeId>,
    /// What WELCOME says of it is another since it was said.
    pub(super) told_anew: bool,
    /// What nodes showed and nobody has taken, one for each node; and whether the node waits for a verdict on it.
    pub(super) shown: BTreeMap<Id, (Head, bool)>,
    /// A state that a node was asked for, and one that came (or will not) and nobody has taken.
    pub(super) taking: Option<Taking>,
    pub(super) offered: Option<(Id, Option<State>)>,
}

impl Namespace {
    pub(super) fn new(settings: Settings, index: u32, origin: Origin) -> Self {
        let Origin { opened, last, canary, steps, passes } = origin;
        let opened = if planted("opened-not-in-seq") { 0 } else { opened };
        let mut this = Namespace {
            nodes: Nodes::new(settings.nodes, passes),
            passes,
            telling: None,
            settings,
            index,
            published: last,
            canary,
            seq: seq_of(opened),
            log: VecDeque::new(),
            log_bytes: 0,
            snapshots: [None, None],
            deltas: VecDeque::new(),
            cursors: PipeMap::default(),
            slots: 0,
            work: VecDeque::new(),
            told_anew: false,
            shown: BTreeMap::new(),
            taking: None,
            offered: None,
        };
        steps.into_iter().for_each(|step| this.append(step));
        this.published = this.published.take().map(|(head, state)| (this.issue(head), state));
        this.canary = this.canary.take().map(|(head, state)| (this.issue(head), state));
        this
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.namespace
    }

    /// The newest HEAD, be it for all or for a cohort; `None` before the first commit.
    pub fn head(&self) -> Option<&Head> {
        self.newest().map(|(head, _)| head)
    }

    /// The newest state, be it for all or for a cohort; `None` before the first commit.
    pub fn state(&self) -> Option<&State> {
        self.newest().map(|(_, state)| state)
    }

    /// Nodes known, connected or not, in the order of their ids.
    pub fn status(&self) -> Vec<NodeStatus> {
        self.nodes.status()
    }

    /// How many nodes are known to have reached `level` at `position` or later.
    pub fn reached(&self, position: Position, level: Level) -> usize {
        self.nodes.reached(position, level)
    }

    /// Woken whenever [`status`](Self::status) may have changed: wait with it until
    /// [`reached`](Self::reached) says enough. A relay waits for all news from below in one place: its namespaces have the
    /// same.
    pub fn wait_key(&self) -> WaitKey {
        let index = if self.passes { 0 } else { self.index };
        WaitKey(SENDER as u32, u64::from(index) << 8)
    }

    /// Number of steps and bytes in the log.
    pub fn log_size(&self) -> (usize, usize) {
        (self.log.len(), self.log_bytes)
    }

    /// As [`Distributor::publish`](super::Distributor::publish); what follows on the pipes is left to be done.
    pub(super) fn publish(&mut self, cx: &mut Cx<'_>, published: Published) -> Result<Position, Stale> {
        let Published { mut head, state, before, changes } = published;
        let newest = self.head().map(Head::shown);
        if before != newest {
            let position = |shown: Option<Shown>| shown.map(|shown| shown.base.position);
            return Err(Stale { follows: position(before), newest: position(newest) });
        }
        let position = head.position;
        let new_epoch = before.is_some_and(|before| before.base.position.epoch != position.epoch);
        if planted("prev-rev-forgotten") {
            head.prev_rev = 0;
        }
        let head = self.issue(head);
        if self.canary.is_some() {
            self.take_back();
        }
        if !planted("stale-deltas") {
            self.deltas.clear();
        }
        match before {
            Some(base) if !new_epoch => {
                let empty = planted("abort-step-empty") && self.canary.is_some();
                self.append(Step::new(base, if empty { Arc::default() } else { changes }));
            }
            // Steps lead to revisions of one epoch; equal content is recognised by its digest.
            _ => {
                self.log.clear();
                self.log_bytes = 0;
            }
        }
        (self.published, self.canary) = match head.audience.is_empty() {
            true => (Some((head, state)), None),
            false => (self.published.take(), Some((head, state))),
        };
        let pipes: Vec<PipeId> = self.cursors.keys().collect();
        for pipe in &pipes {
            // Shown before there was anything to compare it with; or what no longer contradicts.
            let open = |cursor: &Cursor| cursor.standing != Standing::Clear;
            if (before.is_none() || new_epoch || self.passes) && self.cursors.get(*pipe).is_some_and(open) {
                self.reassess(cx, *pipe);
                // It may hold this already, and know another audience of it: before anything that stands on it.
                self.beacon_now(cx, *pipe);
            }
        }
        // They were told `vacant` or `pending`.
        self.told_anew |= before.is_none();
        self.work.extend(pipes);
        Ok(position)
    }

    /// Nodes showed or sent something that nobody has taken.
    pub fn has_shown(&self) -> bool {
        !self.shown.is_empty() || self.offered.is_some()
    }

    /// Woken when nodes showed something: wait with it until [`has_shown`](Self::has_shown), then
    /// [`take_shown`](Self::take_shown).
    pub fn shown_key(&self) -> WaitKey {
        WaitKey(SENDER as u32, u64::from(self.index) << 8 | 1)
    }

    /// What nodes showed in HELLO and WANT since this was last asked, for
    /// [`NsAuthority::handle`](crate::NsAuthority::handle): the last of each, but the first that waits for a
    /// verdict, so that no later word hides it. And what became of a state that a node was asked for.
    pub fn take_shown(&mut self) -> Vec<AuthorityEvent> {
        let issued = self.seq;
        let shown = std::mem::take(&mut self.shown).into_iter();
        let shown = shown.map(|(node, (head, _))| AuthorityEvent::Shown { node, head, issued });
        shown.chain(self.offered.take().map(|(node, state)| AuthorityEvent::Offered(node, state))).collect()
    }

    /// As [`Distributor::judge`](super::Distributor::judge); what follows on the pipes is left to be done.
    pub(super) fn judge(&mut self, cx: &mut Cx<'_>, node: Id, head: &Head, verdict: Verdict) {
        if verdict == Verdict::Recorded {
            // All is looked at again once there is something to serve, and at each beacon time.
            return;
        }
        self.nodes.judged(node, head, verdict == Verdict::Fine);
        let of_node = |(_, cursor): &(PipeId, &mut Cursor)| cursor.node() == node;
        let pipes: Vec<PipeId> = self.cursors.iter_mut().filter(of_node).map(|(pipe, _)| pipe).collect();
        for pipe in pipes {
            let Some(cursor) = self.cursors.get_mut(pipe) else { continue };
            let waits = cursor.standing == Standing::Unjudged;
            match &cursor.have {
                Some(have) if have == head => {}
                Some(have) if waits => {
                    let have = have.clone();
                    self.show(cx, node, have, true);
                    continue;
                }
                _ => continue,
            }
            match verdict {
                Verdict::Conflict => self.stand(cx, pipe, Standing::Conflict, None),
                Verdict::Fine if waits => {
                    // It may have gone back to what it shows to its readers in the meantime.
                    let stays = cursor.stays_at.take();
                    let shown = stays.map_or(Some(head.shown()), |at| self.known(at));
                    self.stand(cx, pipe, Standing::Clear, shown);
                    if let (Some(at), Some(cursor)) = (stays, self.cursors.get_mut(pipe)) {
                        cursor.floor = (at != Position::default()).then_some(at);
                    }
                }
                Verdict::Disregard if waits => self.stand(cx, pipe, Standing::Clear, None),
                _ => {}
            }
            self.work.push_back(pipe);
        }
    }

    /// The authority counted one more opening of its store.
    pub(super) fn reopened(&mut self, opened: u32) {
        self.seq = self.seq.max(seq_of(opened));
    }

    /// A HEAD with a `seq` of its own, signed if there is a key; that of a server above as it came.
    pub(super) fn issue(&mut self, mut head: Head) -> Head {
        if self.passes && !planted("relay-issues") {
            return head;
        }
        self.seq += 1;
        head.seq = self.seq;
        if let Some(secret) = &self.settings.secret {
            secret.sign(&mut head);
        }
        head
    }

    /// Current HEADs, each with a `seq` of its own, for a beacon.
    pub(super) fn beacon_heads(&mut self, shown: Beacon) -> Vec<Head> {
        let heads = match shown {
            Beacon::One(which) => vec![self.beacon_head(which)],
            Beacon::Both => vec![self.beacon_head(Which::All), self.beacon_head(Which::Canary)],
        };
        heads.into_iter().flatten().collect()
    }

    pub(super) fn beacon_head(&mut self, which: Which) -> Option<Head> {
        let mut head = self.current(which).map(|(head, _)| head.clone());
        if planted("vacant-shows") && self.published.is_none() {
            head = self.cursors.iter().find_map(|(_, cursor)| cursor.have.clone());
        }
        if planted("chain-anew-for-beacon")
            && let Some(head) = &mut head
        {
            head.chain = chain(&head.chain, head.position.rev, &head.digest);
        }
        if planted("seq-stands-still") && !self.passes {
            self.seq -= 1;
        }
        head.map(|head| self.issue(head))
    }

    /// A beacon of this namespace alone.
    pub(super) fn beacon_now(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(cursor) = self.cursors.get(pipe).filter(|cursor| cursor.wants) else { return };
        let heads = self.beacon_heads(self.shown_to(cursor));
        // A full queue is a sign of life by itself; the next beacon comes.
        let _ = cx.put(pipe, Message::from(Frame::Beacon(heads).encode()));
    }

    /// The node on this pipe speaks of the namespace: from now on it has a cursor.
    pub(super) fn enter(&mut self, pipe: PipeId, hello: &Arc<Hello>, window: u64) {
        if !self.cursors.contains(pipe) {
            self.cursors.insert(pipe, Cursor::new(hello.clone(), window));
        }
    }

    /// The pipe is gone.
    pub(super) fn left(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        self.offer_lost(cx, pipe);
        self.nodes.gone(pipe);
        let Some(cursor) = self.cursors.remove(pipe) else { return };
        if cursor.slot && !planted("slot-kept-on-close") {
            self.slots = self.slots.saturating_sub(1);
        }
        let (node, boot) = (cursor.node(), cursor.hello.boot);
        self.nodes.left(node, pipe, cx.now());
        // Words on their way over an old pipe may have come after those over the new one.
        let other = |other: &Cursor| other.wants && (other.node(), other.hello.boot) == (node, boot);
        if let Some((other, _)) = self.cursors.iter().find(|(_, cursor)| other(cursor)) {
            self.nodes.here(node, boot, other);
        }
        cx.wake(self.wait_key());
    }

    /// At each beacon time.
    pub(super) fn tick(&mut self, cx: &mut Cx<'_>) {
        self.offer_tick(cx);
        for which in [Which::All, Which::Canary] {
            let newest = self.current(which).map(|(head, _)| head.position);
            let unused =
                |s: &mut Arc<Payload>| Arc::strong_count(s) == 1 && Some(s.head().position) != newest;
            self.snapshots[which as usize].take_if(unused);
        }
        // Encoded again where it is wanted again.
        self.deltas.retain(|(.., delta)| delta.as_ref().is_none_or(|delta| Arc::strong_count(delta) > 1));
        if self.published.is_some() {
            // Who still waits for a verdict is shown again: the word may have found no place.
            let waits = self.cursors.iter().filter(|(_, cursor)| cursor.standing == Standing::Unjudged);
            let waits = waits.filter_map(|(_, cursor)| Some((cursor.node(), cursor.have.clone()?)));
            for (node, have) in waits.collect::<Vec<_>>() {
                self.show(cx, node, have, true);
            }
        }
    }
}

/// The first `seq` of a run, less one.
fn seq_of(opened: u32) -> u64 {
    u64::from(opened & 0x00ff_ffff) << SEQ_BITS
}
