//! Whose history a node speaks of: what it names, against what is served here.
//!
//! A position alone is the same in every history that a store has had; the mark beside it tells them apart. Owns: whether a
//! claim counts. Never: a claim that a relay passes on; a guess about what the log does not reach.

use super::Namespace;
use crate::faults::planted;
use crate::wire::{Level, Said};
use crate::{ChainMark, Claim};

/// What a claim names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// A revision of this history, or of an epoch before it.
    Ours,
    /// One of another history.
    Other,
    /// One below what the log reaches, or nothing is served yet.
    Unknown,
}

impl Namespace {
    /// Looks a claim up.
    pub(super) fn side(&self, claim: Claim) -> Side {
        use std::cmp::Ordering::{Equal, Less};
        let (Some(head), at) = (self.head(), claim.position) else { return Side::Unknown };
        match at.epoch.partial_cmp(&head.position.epoch) {
            // No position of this epoch can be taken for it.
            Some(Less) => return Side::Ours,
            Some(Equal) => {}
            _ => return Side::Other,
        }
        if let Some(known) = self.known(at) {
            let same = ChainMark::of(&known.base.chain) == claim.mark;
            return if same || planted("mark-ignored") { Side::Ours } else { Side::Other };
        }
        let reach = self.log.front().map_or(head.position.rev, |step| step.base.base.position.rev);
        match at.rev {
            rev if rev > head.position.rev && planted("above-head-counts") => Side::Ours,
            rev if rev < reach && planted("below-log-counts") => Side::Ours,
            rev if rev < reach => Side::Unknown,
            // Above the head, or no HEAD was issued for it.
            _ => Side::Other,
        }
    }

    /// Whether a refusal of this counts.
    pub(super) fn is_refusal(&self, claim: Claim) -> bool {
        self.passes || self.side(claim) == Side::Ours || planted("refusal-by-position")
    }

    /// A bug on purpose.
    pub(super) fn mark_anew(&self, said: &mut Said) {
        for level in [Level::Stored, Level::Visible, Level::Applied] {
            let Some(claim) = said.slot(level) else { continue };
            *claim = self.known(claim.position).map_or(*claim, |known| known.base.claim());
        }
    }

    /// Takes out what does not count here; which levels are at `shown`, and whether the newest of all was another history's.
    /// A relay takes all as it was said.
    pub(super) fn sift(&self, said: &mut Said, shown: Option<Claim>) -> Sifted {
        let mut sifted = Sifted::default();
        if self.passes {
            return sifted;
        }
        let mut newest: Option<Claim> = None;
        for level in [Level::Stored, Level::Visible, Level::Applied] {
            let Some(claim) = *said.slot(level) else { continue };
            let side = self.side(claim);
            if newest.is_none_or(|newest| newest.position < claim.position) {
                (newest, sifted.other) = (Some(claim), side == Side::Other);
            }
            if side != Side::Ours {
                *said.slot(level) = None;
                sifted.dropped += 1;
                sifted.waits.extend((shown == Some(claim)).then_some(level));
            }
        }
        let before = said.refused.len();
        said.refused.retain(|(claim, ..)| self.is_refusal(*claim));
        sifted.dropped += (before - said.refused.len()) as u64;
        sifted
    }
}

/// What was taken out.
#[derive(Clone, Debug, Default)]
pub(super) struct Sifted {
    /// Levels that are at what the node showed: they count if that is judged to be of this history.
    pub(super) waits: Vec<Level>,
    /// The newest that it named is another history's.
    pub(super) other: bool,
    /// Claims.
    pub(super) dropped: u64,
}
