//! The table of nodes: who they are, whether they are here, and what they reported.
//!
//! One record for each node, whatever it reports. Owns: the truth of reports. Never: a pipe's cursor.

use std::collections::BTreeMap;

use spanwire::protocol::{PipeId, Time};

use crate::faults::planted;
use crate::wire::{Ack, Hello, Level, Nack, NackCode};
use crate::{Id, Position};

/// What an authority knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node.
    pub node: Id,
    /// The name that it gave.
    pub name: String,
    /// The labels that it gave.
    pub labels: Vec<(String, String)>,
    /// Its start number.
    pub boot: u64,
    /// A pipe to it is open.
    pub connected: bool,
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
    /// Highest position at this level.
    pub fn at(&self, level: Level) -> Option<Position> {
        match level {
            Level::Stored => self.stored,
            Level::Visible => self.visible,
            Level::Applied => self.applied,
        }
    }
}

#[derive(Debug)]
struct Node {
    status: NodeStatus,
    attempt: u32,
    pipe: Option<PipeId>,
    left: Time,
}

/// Why a node is turned away.
pub(super) enum Turned {
    /// A later boot of it is known: this one.
    Stale(u64),
    /// The table is full of nodes that are here.
    Full,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    max: usize,
    table: BTreeMap<Id, Node>,
}

impl Nodes {
    pub(super) fn new(max: usize) -> Self {
        Nodes { max: max.max(1), table: BTreeMap::new() }
    }

    /// A node said HELLO on `pipe`.
    pub(super) fn enter(&mut self, hello: &Hello, pipe: PipeId, now: Time) -> Result<(), Turned> {
        if let Some(known) = self.table.get(&hello.node)
            && known.status.boot > hello.boot
            && !planted("stale-boot-taken")
        {
            return Err(Turned::Stale(known.status.boot));
        }
        if !self.table.contains_key(&hello.node) && self.table.len() >= self.max {
            let longest = self.table.iter().filter(|(_, n)| n.pipe.is_none()).min_by_key(|(_, n)| n.left);
            let Some(id) = longest.map(|(id, _)| *id) else { return Err(Turned::Full) };
            self.table.remove(&id);
        }
        let fresh = || Node {
            status: NodeStatus {
                node: hello.node,
                name: String::new(),
                labels: Vec::new(),
                boot: hello.boot,
                connected: false,
                stored: None,
                visible: None,
                applied: None,
                refused: Vec::new(),
                conflict: false,
            },
            attempt: 0,
            pipe: None,
            left: now,
        };
        let node = self.table.entry(hello.node).or_insert_with(fresh);
        if node.status.boot < hello.boot {
            // Another process: what the last one reported may be gone, and it reports again after WELCOME.
            *node = fresh();
        }
        node.status.name.clone_from(&hello.name);
        node.status.labels.clone_from(&hello.labels);
        // The highest attempt says where it is. A pipe in reserve (no wants) does not take it away.
        let reserve = hello.wants.is_empty() && node.pipe.is_some();
        if hello.attempt >= node.attempt && !reserve {
            node.attempt = hello.attempt;
            node.pipe = Some(pipe);
            node.status.connected = true;
        }
        Ok(())
    }

    /// The record of a node, for words of this boot: those of an earlier one are late, and count for nothing.
    fn of(&mut self, id: Id, boot: u64) -> Option<&mut Node> {
        self.table.get_mut(&id).filter(|node| node.status.boot == boot || planted("late-reports-count"))
    }

    /// The node uses `pipe` from now on.
    pub(super) fn moved(&mut self, id: Id, boot: u64, pipe: PipeId) {
        if let Some(node) = self.of(id, boot) {
            node.pipe = Some(pipe);
            node.status.connected = true;
        }
    }

    /// The node of this boot, if it seems to have left, is still here on another pipe.
    pub(super) fn here(&mut self, id: Id, boot: u64, pipe: PipeId) {
        if let Some(node) = self.of(id, boot)
            && node.pipe.is_none()
        {
            node.pipe = Some(pipe);
            node.status.connected = true;
        }
    }

    pub(super) fn left(&mut self, id: Id, pipe: PipeId, now: Time) {
        if let Some(node) = self.table.get_mut(&id)
            && (node.pipe == Some(pipe) || planted("late-end-counts"))
        {
            node.pipe = None;
            node.status.connected = false;
            node.left = now;
        }
    }

    pub(super) fn acknowledged(&mut self, id: Id, boot: u64, ack: &Ack) {
        let Some(Node { status, .. }) = self.of(id, boot) else { return };
        let raise = |slot: &mut Option<Position>| {
            // Facts only add up; a later epoch is later.
            if slot
                .is_none_or(|old| old < ack.position || old.epoch.partial_cmp(&ack.position.epoch).is_none())
                || planted("status-overwritten")
            {
                *slot = Some(ack.position);
            }
        };
        if !ack.volatile || planted("volatile-counts-as-stored") {
            raise(&mut status.stored);
        }
        if ack.level >= Level::Visible {
            raise(&mut status.visible);
        }
        if ack.level >= Level::Applied {
            raise(&mut status.applied);
            // What is applied has got over every refusal up to it, those of earlier epochs among them.
            status.refused.retain(|(position, ..)| {
                position.partial_cmp(&ack.position) == Some(std::cmp::Ordering::Greater)
            });
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
        }
    }

    pub(super) fn status(&self) -> Vec<NodeStatus> {
        self.table.values().map(|node| node.status.clone()).collect()
    }

    pub(super) fn reached(&self, position: Position, level: Level) -> usize {
        self.table.values().filter(|node| node.status.at(level).is_some_and(|at| at >= position)).count()
    }
}
