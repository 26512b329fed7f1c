//! The table of nodes: who they are, where they are, and what they reported, here or through relays.
//!
//! One record for each node, whatever it reports. Where a node is follows the highest attempt of its highest
//! boot; where a relay is follows the same rule, so a node behind relays is found by going up from one record
//! to the next. What a node claims has the mark of its history: an authority's sender lets in what is of the history served,
//! a relay's passes all on. Owns: how reports add up. Never: a pipe's cursor; a word of an earlier boot.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use spanwire::protocol::{PipeId, Time};

use crate::authority::CohortNode;
use crate::faults::planted;
use crate::rollout::Audience;
use crate::wire::{Ack, Hello, Level, MAX_PATH, Nack, NackCode, NodeKind, NodeReport, Said};
use crate::{ChainMark, Claim, Head, Id, Position, ServerId};

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
}

impl Said {
    /// Facts only add up; a later epoch is later.
    fn raise(&mut self, level: Level, at: Claim) {
        let slot = self.slot(level);
        let later = |old: Claim| {
            let (old, at) = (old.position, at.position);
            old < at || old.epoch.partial_cmp(&at.epoch).is_none()
        };
        if slot.is_none_or(later) || planted("status-overwritten") {
            *slot = Some(at);
        }
        if level == Level::Applied {
            // What is applied has got over every refusal up to it, those of earlier epochs among them.
            let above = |claim: &Claim| claim.position.partial_cmp(&at.position) == Some(Ordering::Greater);
            self.refused.retain(|(claim, ..)| above(claim));
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    /// `connected` and `path` are found when they are asked for, what it reached and refused is in `said`.
    status: NodeStatus,
    said: Said,
    attempt: u32,
    here: bool,
    /// The pipe of this server that it uses.
    pipe: Option<PipeId>,
    /// The relay that it uses, or used last.
    behind: Option<ServerId>,
    left: Time,
    /// What it showed and could not be placed when it did.
    head: Option<Head>,
    /// Levels at which it is there, as a relay reported with that: they count once it is judged to be of this history.
    waits: Vec<Level>,
    /// The whole table of a relay in which it was last.
    table: u64,
}

impl Node {
    fn new(id: Id, boot: u64, now: Time) -> Node {
        Node {
            status: NodeStatus::new(id, boot),
            said: Said::default(),
            attempt: 0,
            here: false,
            pipe: None,
            behind: None,
            left: now,
            head: None,
            waits: Vec::new(),
            table: 0,
        }
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
            node.uses(pipe);
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
            node.uses(pipe);
        }
    }

    /// The node of this boot, if it seems to have left, is still here on another pipe.
    pub(super) fn here(&mut self, id: Id, boot: u64, pipe: PipeId) {
        if let Some(node) = self.of(id, boot)
            && !node.here
        {
            node.uses(pipe);
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
        // It has gone on to what is held here.
        node.head.take_if(|head| head.position < ack.position);
        if !ack.volatile || planted("volatile-counts-as-stored") {
            node.said.raise(Level::Stored, ack.claim());
        }
        if ack.level >= Level::Visible {
            node.said.raise(Level::Visible, ack.claim());
        }
        if ack.level >= Level::Applied {
            node.said.raise(Level::Applied, ack.claim());
        }
    }

    /// `counts`: what it refuses is of the history served here. That two histories contradict each other it says of any.
    pub(super) fn refused(&mut self, id: Id, boot: u64, nack: &Nack, counts: bool) {
        let Some(Node { status, said: Said { refused, .. }, .. }) = self.of(id, boot) else { return };
        status.conflict |= nack.code == NackCode::Conflict;
        if counts {
            refused.retain(|(claim, ..)| claim.position != nack.position);
            refused.push((nack.claim(), nack.code, nack.text.clone()));
        }
        if refused.len() > 2 {
            refused.remove(0);
        }
    }

    pub(super) fn conflict(&mut self, id: Id, conflict: bool) {
        if let Some(node) = self.table.get_mut(&id) {
            node.status.conflict = conflict;
            self.touch(id);
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

    /// What a relay tells of a node, on its pipe: `path` is from the relay below this server, and `said` is what counts here.
    /// `waits`: levels that count once the HEAD is judged to be of this history.
    pub(super) fn reported(
        &mut self,
        report: NodeReport,
        waits: Vec<Level>,
        (pipe, table): (PipeId, u64),
        now: Time,
    ) -> Result<(), Turned> {
        let NodeReport { status, said, attempt, head } = report;
        let Some(at) = status.path.last().copied() else { return Ok(()) };
        let node = self.admit(status.node, status.boot, pipe, now)?;
        // An older word of where it is counts for nothing: it went on since.
        let newer = attempt > node.attempt || planted("attempt-ignored");
        let same = attempt == node.attempt && node.pipe.is_none();
        if status.connected && (newer || same) {
            (node.attempt, node.here, node.pipe, node.behind) = (attempt, true, None, Some(at));
        } else if !status.connected && (newer || same && node.behind == Some(at)) {
            node.leave(now);
            (node.attempt, node.behind) = (attempt, Some(at));
        }
        // What it reached it reached, whoever tells of it, and when.
        for level in [Level::Stored, Level::Visible, Level::Applied] {
            said.at(level).into_iter().for_each(|claim| node.said.raise(level, claim));
        }
        if attempt == node.attempt && node.behind == Some(at) {
            node.status = NodeStatus { connected: false, path: Vec::new(), ..status };
            node.said.refused = said.refused;
            (node.head, node.waits, node.table) = (head, waits, table);
        }
        Ok(())
    }

    /// What a node behind a relay showed is judged.
    pub(super) fn judged(&mut self, id: Id, head: &Head, fine: bool) {
        let Some(node) = self.table.get_mut(&id).filter(|node| node.head.as_ref() == Some(head)) else {
            return;
        };
        for level in std::mem::take(&mut node.waits) {
            if fine {
                node.said.raise(level, head.claim());
            }
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

    fn told(&self, id: Id, Node { status, said, .. }: &Node) -> NodeStatus {
        let position = |claim: Option<Claim>| claim.map(|claim| claim.position);
        let refused = said.refused.iter().map(|(claim, code, text)| (claim.position, *code, text.clone()));
        let mut status = NodeStatus {
            stored: position(said.stored),
            visible: position(said.visible),
            applied: position(said.applied),
            refused: refused.collect(),
            ..status.clone()
        };
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
        replicas.filter(|node| node.said.at(level).is_some_and(|at| at.position >= position)).count()
    }

    /// The replicas that an audience admits.
    pub(super) fn cohort(&self, at: Position, audience: &Bytes) -> Vec<CohortNode> {
        let Some(cohort) = Audience::parse(audience) else { return Vec::new() };
        let member = |node: &&Node| {
            node.status.kind == NodeKind::Replica && cohort.admits(node.status.node, &node.status.labels)
        };
        (self.table.values().filter(member))
            .map(|Node { status, said, .. }| CohortNode {
                node: status.node,
                here: self.route(status.node).is_some(),
                applied: said.applied.is_some_and(|applied| applied.position >= at),
                refused: said.refused.iter().any(|(claim, ..)| claim.position == at),
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
            let mut said = node.said.clone();
            if planted("mark-not-passed") {
                said.applied.iter_mut().for_each(|claim| claim.mark = ChainMark::default());
            }
            Some(NodeReport { status, said, attempt: node.attempt, head: node.head.clone() })
        };
        ids.into_iter().filter_map(record).collect()
    }

    /// What could not be told.
    pub(super) fn put_back(&mut self, nodes: &[NodeReport]) {
        nodes.iter().for_each(|node| self.touch(node.status.node));
    }
}
