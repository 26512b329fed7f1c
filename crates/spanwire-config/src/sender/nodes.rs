//! The table of nodes: who they are, where they are, and what they reported, here or through relays.
//!
//! One record for each node, whatever it reports. Where a node is follows the highest attempt of its highest
//! boot; where a relay is follows the same rule, so a node behind relays is found by going up from one record
//! to the next. Owns: the truth of reports. Never: a pipe's cursor; a word of an earlier boot.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use spanwire::protocol::{PipeId, Time};

use crate::authority::CohortNode;
use crate::faults::planted;
use crate::rollout::Audience;
use crate::wire::{Ack, Hello, Level, MAX_PATH, Nack, NackCode, NodeKind, NodeReport};
use crate::{Head, Id, Position, ServerId};

/// What an authority knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node.
    pub node: Id,
    /// Replica or relay.
    pub kind: NodeKind,
    /// The name that it gave.
    pub name: String,
    /// The labels that it gave.
    pub labels: Vec<(String, String)>,
    /// Its start number.
    pub boot: u64,
    /// It uses a pipe that is open, here or to a relay that is connected.
    pub connected: bool,
    /// The relays between here and it, the one that it uses last.
    pub path: Vec<ServerId>,
    /// Highest position that it has on disk, of this boot's reports.
    pub stored: Option<Position>,
    /// Highest position that its readers see.
    pub visible: Option<Position>,
    /// Highest position that its hook acted on.
    pub applied: Option<Position>,
    /// What it refused or failed to act on, newest last; at most two.
    pub refused: Vec<(Position, NackCode, String)>,
    /// It holds something that contradicts the history served.
    pub conflict: bool,
}

impl NodeStatus {
    /// A node of which nothing is known but its name and start number.
    pub fn new(node: Id, boot: u64) -> NodeStatus {
        NodeStatus {
            node,
            kind: NodeKind::Replica,
            name: String::new(),
            labels: Vec::new(),
            boot,
            connected: false,
            path: Vec::new(),
            stored: None,
            visible: None,
            applied: None,
            refused: Vec::new(),
            conflict: false,
        }
    }

    /// What its readers see is not on its disk: a restart may lose it.
    pub fn is_volatile(&self) -> bool {
        // A report without the mark raises what is stored first.
        self.visible.is_some_and(|visible| self.stored.is_none_or(|stored| stored < visible))
    }

    /// Highest position at this level.
    pub fn at(&self, level: Level) -> Option<Position> {
        match level {
            Level::Stored => self.stored,
            Level::Visible => self.visible,
            Level::Applied => self.applied,
        }
    }

    /// What was reported of it is of another history: all, or up to there.
    fn forget(&mut self, to: Option<Position>) {
        for slot in [&mut self.stored, &mut self.visible, &mut self.applied] {
            slot.take_if(|at| to.is_none_or(|to| *at <= to));
        }
    }

    /// Facts only add up; a later epoch is later.
    fn raise(&mut self, level: Level, at: Position) {
        let slot = match level {
            Level::Stored => &mut self.stored,
            Level::Visible => &mut self.visible,
            Level::Applied => &mut self.applied,
        };
        if slot.is_none_or(|old| old < at || old.epoch.partial_cmp(&at.epoch).is_none())
            || planted("status-overwritten")
        {
            *slot = Some(at);
        }
        if level == Level::Applied {
            // What is applied has got over every refusal up to it, those of earlier epochs among them.
            self.refused
                .retain(|(position, ..)| position.partial_cmp(&at) == Some(std::cmp::Ordering::Greater));
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    /// `connected` and `path` are found when they are asked for.
    status: NodeStatus,
    attempt: u32,
    here: bool,
    /// The pipe of this server that it uses.
    pipe: Option<PipeId>,
    /// The relay that it uses, or used last.
    behind: Option<ServerId>,
    left: Time,
    /// What it showed and could not be placed when it did.
    head: Option<Head>,
    /// What a relay reported of it together with such a HEAD, until that is judged.
    claimed: Option<Box<NodeStatus>>,
    /// The whole table of a relay in which it was last.
    table: u64,
    /// What it holds is not known: what it showed on its pipe here is not judged yet, or nothing was heard of it
    /// where it is.
    unjudged: bool,
}

impl Node {
    fn new(id: Id, boot: u64, now: Time) -> Node {
        Node {
            status: NodeStatus::new(id, boot),
            attempt: 0,
            here: false,
            pipe: None,
            behind: None,
            left: now,
            head: None,
            claimed: None,
            table: 0,
            unjudged: true,
        }
    }

    /// What it holds is of another history than what is served here, or not known to be of this.
    fn is_other(&self) -> bool {
        (self.status.conflict || self.unjudged || self.head.is_some()) && !planted("conflict-above-ignored")
    }

    fn uses(&mut self, pipe: PipeId) {
        (self.here, self.pipe, self.behind) = (true, Some(pipe), None);
    }

    fn leave(&mut self, now: Time) {
        (self.here, self.pipe, self.left) = (false, None, now);
    }
}

/// Why a node is turned away.
pub(super) enum Turned {
    /// A later boot of it is known: this one.
    Stale(u64),
    /// The table is full of nodes that are here.
    Full,
}

/// All nodes.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    max: usize,
    table: BTreeMap<Id, Node>,
    /// Whole tables of relays that began.
    tables: u64,
    /// Changed since it was told upward; kept by relays alone.
    changed: Option<BTreeSet<Id>>,
    /// Something has changed since this was asked last.
    news: bool,
    /// Processes that a later start of the same node came after, and that were not told: where each is, and of which
    /// start. At most one for each record.
    earlier: Vec<(PipeId, Id, u64)>,
}

impl Nodes {
    /// `relays`: what changes is noted, to be told upward.
    pub(super) fn new(max: usize, relays: bool) -> Self {
        let changed = relays.then(BTreeSet::new);
        Nodes {
            max: max.max(1),
            table: BTreeMap::new(),
            tables: 0,
            changed,
            news: false,
            earlier: Vec::new(),
        }
    }

    fn touch(&mut self, id: Id) {
        if let Some(changed) = &mut self.changed {
            changed.insert(id);
            self.news = true;
        }
    }

    /// The record of a node of this boot, made if there is none. `by`: the pipe that says so.
    fn admit(&mut self, id: Id, boot: u64, by: PipeId, now: Time) -> Result<&mut Node, Turned> {
        if let Some(known) = self.table.get(&id)
            && known.status.boot > boot
            && !planted("stale-boot-taken")
        {
            return Err(Turned::Stale(known.status.boot));
        }
        if !self.table.contains_key(&id) && self.table.len() >= self.max {
            let away = self.table.iter().filter(|(_, node)| !node.here);
            let longest = away.min_by_key(|(_, node)| node.left).map(|(id, _)| *id);
            let Some(longest) = longest else { return Err(Turned::Full) };
            self.table.remove(&longest);
        }
        if self.table.get(&id).is_some_and(|known| known.status.boot < boot) {
            // Another process: what the last one reported may be gone, and it reports again after WELCOME. Nobody
            // has come to it yet. The last one, if it lives on, is to know of it; by the same pipe it does.
            let way = self.route(id).filter(|pipe| *pipe != by);
            way.into_iter().for_each(|pipe| self.outlived(pipe, id, boot));
            if self.table.get(&id).is_some_and(|relay| relay.is_other() || !self.counts(relay)) {
                self.forsake(id);
            }
            self.table.remove(&id);
            self.empty(id, now);
        }
        self.touch(id);
        Ok(self.table.entry(id).or_insert_with(|| Node::new(id, boot, now)))
    }

    /// Notes that a process on this way is to be told of a later start of the same node.
    pub(super) fn outlived(&mut self, pipe: PipeId, id: Id, boot: u64) {
        self.earlier.retain(|(old, of, _)| (*old, *of) != (pipe, id));
        if self.earlier.len() < self.max {
            self.earlier.push((pipe, id, boot));
        }
    }

    /// Who is to be told.
    pub(super) fn take_earlier(&mut self) -> Vec<(PipeId, Id, u64)> {
        std::mem::take(&mut self.earlier)
    }

    /// Nobody is there any more to be told.
    pub(super) fn gone(&mut self, pipe: PipeId) {
        self.earlier.retain(|(old, ..)| *old != pipe);
    }

    /// Nobody is at this relay any more, as far as is known.
    fn empty(&mut self, relay: ServerId, now: Time) {
        let there = self.table.iter_mut().filter(|(_, node)| node.here && node.behind == Some(relay));
        let gone: Vec<Id> = there.map(|(id, node)| (node.leave(now), *id).1).collect();
        gone.into_iter().for_each(|id| self.touch(id));
    }

    /// A node goes another way. What was reported of it on the one before, and did not count there, is of another
    /// history, or not known to be of this; of what it has it speaks again.
    fn turn(&mut self, id: Id, way: impl FnOnce(&mut Node)) {
        let Some(node) = self.table.get(&id) else { return };
        let (before, counted) = (node.behind, self.counts(node));
        let Some(node) = self.table.get_mut(&id) else { return };
        way(node);
        if node.behind != before && !counted && !planted("way-left-counts") {
            node.status.forget(None);
        }
    }

    /// A relay that held another history is another process now, which may hold something else: what was reported behind
    /// it counts no more.
    fn forsake(&mut self, relay: ServerId) {
        let behind = |node: &&Node| self.between(node).any(|above| above.status.node == relay);
        let other: Vec<Id> = self.table.values().filter(behind).map(|node| node.status.node).collect();
        for id in other {
            self.table.get_mut(&id).into_iter().for_each(|node| node.status.forget(None));
        }
    }

    /// The highest start number of a node that is known.
    pub(super) fn boot(&self, id: Id) -> Option<u64> {
        self.table.get(&id).map(|node| node.status.boot)
    }

    /// A node said HELLO on `pipe`; `wants`: for what this is the table of.
    pub(super) fn enter(
        &mut self,
        hello: &Hello,
        pipe: PipeId,
        now: Time,
        wants: bool,
    ) -> Result<(), Turned> {
        let node = self.admit(hello.node, hello.boot, pipe, now)?;
        node.status.kind = hello.kind;
        node.status.name.clone_from(&hello.name);
        node.status.labels.clone_from(&hello.labels);
        // The highest attempt says where it is. A pipe in reserve says nothing of that.
        if hello.attempt >= node.attempt && wants {
            node.attempt = hello.attempt;
            self.turn(hello.node, |node| node.uses(pipe));
        }
        Ok(())
    }

    /// The record of a node, for words of this boot: those of an earlier one are late, and count for nothing.
    fn of(&mut self, id: Id, boot: u64) -> Option<&mut Node> {
        self.touch(id);
        self.table.get_mut(&id).filter(|node| node.status.boot == boot || planted("late-reports-count"))
    }

    /// The node uses `pipe` from now on.
    pub(super) fn moved(&mut self, id: Id, boot: u64, pipe: PipeId) {
        if let Some(node) = self.of(id, boot)
            && !(node.here && node.behind.is_some())
        {
            self.turn(id, |node| node.uses(pipe));
        }
    }

    /// The node of this boot, if it seems to have left, is still here on another pipe.
    pub(super) fn here(&mut self, id: Id, boot: u64, pipe: PipeId) {
        if let Some(node) = self.of(id, boot)
            && !node.here
        {
            self.turn(id, |node| node.uses(pipe));
        }
    }

    pub(super) fn left(&mut self, id: Id, pipe: PipeId, now: Time) {
        if let Some(node) = self.table.get_mut(&id)
            && (node.pipe == Some(pipe) || planted("late-end-counts"))
        {
            node.leave(now);
            self.touch(id);
        }
    }

    pub(super) fn acknowledged(&mut self, id: Id, boot: u64, ack: &Ack) {
        let Some(node) = self.of(id, boot) else { return };
        if let Some(shown) = node.head.take_if(|head| head.position < ack.position) {
            // It holds something of this history now. What it reached before may be of another.
            node.status.forget(Some(shown.position));
        }
        if !ack.volatile || planted("volatile-counts-as-stored") {
            node.status.raise(Level::Stored, ack.position);
        }
        if ack.level >= Level::Visible {
            node.status.raise(Level::Visible, ack.position);
        }
        if ack.level >= Level::Applied {
            node.status.raise(Level::Applied, ack.position);
        }
    }

    pub(super) fn refused(&mut self, id: Id, boot: u64, nack: &Nack) {
        let Some(Node { status, .. }) = self.of(id, boot) else { return };
        if nack.code == NackCode::Conflict {
            status.conflict = true;
        }
        status.refused.retain(|(position, ..)| *position != nack.position);
        status.refused.push((nack.position, nack.code, nack.text.clone()));
        if status.refused.len() > 2 {
            status.refused.remove(0);
        }
    }

    pub(super) fn conflict(&mut self, id: Id, conflict: bool) {
        if let Some(node) = self.table.get_mut(&id) {
            node.status.conflict = conflict;
            node.unjudged = false;
            self.touch(id);
        }
    }

    /// What the node showed on its pipe here is with the authority.
    pub(super) fn unjudged(&mut self, id: Id) {
        if let Some(node) = self.table.get_mut(&id) {
            node.unjudged = true;
        }
    }

    /// What a node showed here and cannot be placed: a relay tells it upward.
    pub(super) fn unplaced(&mut self, id: Id, head: Option<Head>) {
        if self.changed.is_some()
            && let Some(node) = self.table.get_mut(&id)
        {
            node.head = head;
            self.touch(id);
        }
    }

    /// What a relay tells of a node, on its pipe: `path` is from the relay below this server. `placed`: what the node showed is
    /// known here.
    pub(super) fn reported(
        &mut self,
        report: NodeReport,
        (pipe, table): (PipeId, u64),
        placed: bool,
        now: Time,
    ) -> Result<(), Turned> {
        let NodeReport { status: said, attempt, head } = report;
        let Some(at) = said.path.last().copied() else { return Ok(()) };
        let node = self.admit(said.node, said.boot, pipe, now)?;
        // An older word of where it is counts for nothing: it went on since.
        let newer = attempt > node.attempt || planted("attempt-ignored");
        let same = attempt == node.attempt && node.pipe.is_none();
        if said.connected && (newer || same) {
            self.turn(said.node, |node| {
                (node.attempt, node.here, node.pipe, node.behind) = (attempt, true, None, Some(at));
            });
        } else if !said.connected && (newer || same && node.behind == Some(at)) {
            self.turn(said.node, |node| {
                node.leave(now);
                (node.attempt, node.behind) = (attempt, Some(at));
            });
        }
        let known = self.table.get(&at).is_none_or(|relay| !relay.is_other() && self.counts(relay));
        let teller = said.path.first().and_then(|relay| self.table.get(relay));
        let vouched = teller.is_none_or(|relay| !relay.is_other());
        let waits = self.table.get(&said.node).is_some_and(|node| !self.counts(node));
        let Some(node) = self.table.get_mut(&said.node) else { return Ok(()) };
        let latest = attempt == node.attempt && node.behind == Some(at);
        if latest {
            node.status.kind = said.kind;
            node.status.name.clone_from(&said.name);
            node.status.labels.clone_from(&said.labels);
            node.status.refused.clone_from(&said.refused);
            node.status.conflict = said.conflict;
            node.table = table;
            node.unjudged = false;
        }
        match head.filter(|_| !placed) {
            None => {
                if latest {
                    (node.head, node.claimed) = (None, None);
                }
                // Where it is now it speaks for itself; what came by another way than who tells it waits with that.
                if latest && (vouched || waits) || known && vouched || planted("late-conflict-counts") {
                    claim(&mut node.status, &said);
                }
            }
            Some(head) if latest => (node.head, node.claimed) = (Some(head), Some(Box::new(said))),
            Some(_) => {}
        }
        Ok(())
    }

    /// What a node behind a relay showed is judged.
    pub(super) fn judged(&mut self, id: Id, head: &Head, fine: bool) {
        let Some(node) = self.table.get_mut(&id).filter(|node| node.head.as_ref() == Some(head)) else {
            return;
        };
        if let Some(said) = node.claimed.take().filter(|_| fine || planted("conflict-acks-count")) {
            claim(&mut node.status, &said);
        }
        node.status.conflict |= !fine;
        self.touch(id);
    }

    /// A relay begins to tell its whole table; the number of that.
    pub(super) fn begin_table(&mut self) -> u64 {
        self.tables += 1;
        self.tables
    }

    /// It has told all: who was behind it and was not in there has left.
    pub(super) fn end_table(&mut self, pipe: PipeId, table: u64, now: Time) {
        let behind = |id: &Id| self.table.get(id).is_some_and(|n| n.behind.is_some() && n.table != table);
        let gone: Vec<Id> =
            (self.table.keys()).filter(|id| behind(id) && self.route(**id) == Some(pipe)).copied().collect();
        for id in gone {
            if let Some(node) = self.table.get_mut(&id) {
                node.leave(now);
                self.touch(id);
            }
        }
    }

    /// The relays between here and a node, the nearest one last; and the pipe.
    fn way(&self, id: Id) -> Option<(Vec<ServerId>, PipeId)> {
        let (mut path, mut node) = (Vec::new(), self.table.get(&id).filter(|node| node.here)?);
        while let Some(relay) = node.behind {
            // Deeper than any path, or in a circle: what is known is out of date.
            if path.len() >= MAX_PATH {
                return None;
            }
            path.push(relay);
            node = self.table.get(&relay).filter(|node| node.here)?;
        }
        Some((path, node.pipe?))
    }

    /// The pipe by which a node is reached.
    pub(super) fn route(&self, id: Id) -> Option<PipeId> {
        self.way(id).map(|(_, pipe)| pipe)
    }

    /// The relays between here and a node, or those that were, the one that it uses or used first.
    fn between<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        let above = |node: &&'a Node| node.behind.and_then(|relay| self.table.get(&relay));
        std::iter::successors(above(&node), above).take(MAX_PATH)
    }

    /// Whether what is reported of a node is of the history served here. What is behind a relay holds what the relay
    /// holds: if that is another history, or not known yet, its positions name something else.
    fn counts(&self, node: &Node) -> bool {
        !self.between(node).any(Node::is_other)
    }

    fn told(&self, id: Id, node: &Node) -> NodeStatus {
        let mut status = node.status.clone();
        if !self.counts(node) {
            status.conflict |= self.between(node).any(|relay| relay.status.conflict);
            (status.stored, status.visible, status.applied) = (None, None, None);
        }
        if let Some((mut path, _)) = self.way(id) {
            path.reverse();
            (status.connected, status.path) = (true, path);
        }
        status
    }

    pub(super) fn status(&self) -> Vec<NodeStatus> {
        self.table.iter().map(|(id, node)| self.told(*id, node)).collect()
    }

    pub(super) fn reached(&self, position: Position, level: Level) -> usize {
        let replicas = self.table.values().filter(|node| node.status.kind == NodeKind::Replica);
        let reached = |node: &&Node| node.status.at(level).is_some_and(|at| at >= position);
        replicas.filter(reached).filter(|node| self.counts(node)).count()
    }

    /// The replicas that an audience admits.
    pub(super) fn cohort(&self, at: Position, audience: &Bytes) -> Vec<CohortNode> {
        let Some(cohort) = Audience::parse(audience) else { return Vec::new() };
        let member = |node: &&Node| {
            node.status.kind == NodeKind::Replica && cohort.admits(node.status.node, &node.status.labels)
        };
        (self.table.values().filter(member))
            .map(|node| (node, &node.status))
            .map(|(node, status)| CohortNode {
                node: status.node,
                here: self.route(status.node).is_some(),
                applied: status.applied.is_some_and(|applied| applied >= at) && self.counts(node),
                refused: status.refused.iter().any(|(position, ..)| *position == at),
            })
            .collect()
    }

    /// All is to be told upward.
    pub(super) fn touch_all(&mut self) {
        let all = self.table.keys().copied();
        self.changed.iter_mut().for_each(|changed| changed.extend(all.clone()));
    }

    /// Whether there is news to tell upward; once for each.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    pub(super) fn has_changed(&self) -> bool {
        self.changed.as_ref().is_some_and(|changed| !changed.is_empty())
    }

    /// What changed of the next nodes in order; `server` is this one.
    pub(super) fn take_changed(&mut self, most: usize, server: ServerId) -> Vec<NodeReport> {
        let Some(changed) = &mut self.changed else { return Vec::new() };
        let ids: Vec<Id> = std::iter::from_fn(|| changed.pop_first()).take(most).collect();
        let record = |id: Id| {
            let node = self.table.get(&id)?;
            // Where the relay that it uses is now is not for this record to say.
            let mut status = NodeStatus { connected: node.here, ..node.status.clone() };
            status.path = std::iter::once(server).chain(node.behind).collect();
            node.claimed.iter().for_each(|said| claim(&mut status, said));
            Some(NodeReport { status, attempt: node.attempt, head: node.head.clone() })
        };
        ids.into_iter().filter_map(record).collect()
    }

    /// What could not be told.
    pub(super) fn put_back(&mut self, nodes: &[NodeReport]) {
        nodes.iter().for_each(|node| self.touch(node.status.node));
    }
}

/// Takes over the levels that were reported.
fn claim(status: &mut NodeStatus, said: &NodeStatus) {
    for level in [Level::Stored, Level::Visible, Level::Applied] {
        if let Some(at) = said.at(level) {
            status.raise(level, at);
        }
    }
}
