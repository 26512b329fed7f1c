//! What a node on one pipe has of one namespace, and the transfer that is under way.
//!
//! Owns: what was sent and acknowledged. Never: what to send next; credit, which is the pipe's.

use crate::wire::{Ack, Hello, Payload};
use crate::{Claim, Head, Id, Position, Shown};
use std::collections::VecDeque;
use std::sync::Arc;

/// Reports kept for a node that is not judged yet: it says them of the one it shows and the one it was given.
const ACKS: usize = 4;

/// How what a node showed stands to the history served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It contradicts nothing.
    Clear,
    /// The log does not know it: beacons only, until it is judged.
    Unjudged,
    /// It contradicts: beacons only, in this epoch.
    Conflict,
}

/// A transfer under way.
#[derive(Clone, Debug)]
pub(super) struct Sending {
    pub(super) payload: Arc<Payload>,
    pub(super) offset: u64,
}

/// State of one namespace on one pipe.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// What it said of itself last; its wants are not kept.
    pub(super) hello: Arc<Hello>,
    /// The whole table that this relay tells, or told last.
    pub(super) table: u64,
    /// It wants the namespace over this pipe; else it only spoke of it.
    pub(super) wants: bool,
    pub(super) standing: Standing,
    pub(super) have: Option<Head>,
    /// What it went back to after it showed `have`, while that is not judged.
    pub(super) stays_at: Option<Position>,
    /// What it reported while it is not judged.
    pub(super) acks: Vec<Ack>,
    /// What it has for certain.
    pub(super) acked: Option<Shown>,
    /// What it has at least, even where nothing more is known of that: a snapshot must be above it.
    pub(super) floor: Option<Position>,
    /// What it will have when all that was sent has arrived.
    pub(super) sent: Option<Shown>,
    /// It asked for a snapshot.
    pub(super) force: bool,
    /// At most two.
    pub(super) refused: Vec<Position>,
    /// Transfers that were sent and not acknowledged, with their sizes.
    pub(super) flight: VecDeque<(Shown, u64)>,
    pub(super) sending: Option<Sending>,
    /// It holds one of the slots for transfers above one window.
    pub(super) slot: bool,
    /// It is in the line for one.
    pub(super) waits: bool,
    /// The place that it was told last among those that wait for one; 0: it does not wait.
    pub(super) place: u32,
    /// That of the pipe.
    pub(super) window: u64,
    /// It was asked for its state: slices may come up.
    pub(super) asked: bool,
}

impl Cursor {
    pub(super) fn new(hello: Arc<Hello>, window: u64) -> Self {
        Cursor {
            hello,
            table: 0,
            wants: false,
            standing: Standing::Clear,
            have: None,
            stays_at: None,
            acks: Vec::new(),
            acked: None,
            floor: None,
            sent: None,
            force: false,
            refused: Vec::new(),
            flight: VecDeque::new(),
            sending: None,
            slot: false,
            waits: false,
            place: 0,
            window,
            asked: false,
        }
    }

    pub(super) fn node(&self) -> Id {
        self.hello.node
    }

    /// The cursor starts again at `shown`; a transfer under way is dropped.
    pub(super) fn restart(&mut self, shown: Option<Shown>) {
        self.acked = shown;
        self.floor = shown.map(|shown| shown.base.position);
        self.sent = shown;
        self.sending = None;
        self.flight.clear();
    }

    pub(super) fn flight_bytes(&self) -> u64 {
        self.flight.iter().map(|(_, size)| size).sum()
    }

    /// Keeps a report until it is known what it is worth. `true`: the oldest was dropped for it.
    pub(super) fn keep(&mut self, ack: Ack) -> bool {
        self.acks.push(ack);
        let full = self.acks.len() > ACKS;
        if full {
            self.acks.remove(0);
        }
        full
    }

    /// The node has what was sent up to there. Whether that is what it was sent last, or showed.
    pub(super) fn acknowledge(&mut self, claim: Claim) -> bool {
        if let Some(at) = self.flight.iter().position(|(shown, _)| shown.base.claim() == claim)
            && let Some((shown, _)) = self.flight.drain(..=at).next_back()
        {
            self.acked = Some(shown);
            self.floor = Some(claim.position);
        }
        self.acked.is_some_and(|shown| shown.base.claim() == claim)
    }

    pub(super) fn refuse(&mut self, position: Position) {
        if !self.refused.contains(&position) {
            self.refused.push(position);
            if self.refused.len() > 2 {
                self.refused.remove(0);
            }
        }
    }
}
