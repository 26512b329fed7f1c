//! What a receiver has in memory, for who counts bytes.
//!
//! Owns: the list of it. Never: a limit; those are where states and slices are taken.

use super::NsReplica;
use super::transfer::most;
use crate::{Head, State};

/// What a receiver has in memory of a namespace: verified states, and what has come of the next.
///
/// Each state is within the limits of the settings. They share what they have in common.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Memory<'r> {
    /// What the application accepted.
    pub visible: Option<&'r State>,
    /// What it is looking at.
    pub given: Option<&'r State>,
    /// The newest that was verified, if it is neither of these.
    pub ready: Option<(&'r Head, &'r State)>,
    /// Only in a relay, and until it is told: what is for all, where what is ready is for a cohort and came on top of it.
    pub under: Option<&'r State>,
    /// The transfer that is on its way.
    pub transfer: Option<Arriving<'r>>,
}

/// A transfer that has begun and not ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Arriving<'r> {
    /// Where it leads.
    pub head: &'r Head,
    /// Bytes of payload that have come.
    pub bytes: usize,
    /// Most bytes of payload that it may have.
    pub most: u64,
    /// Bytes of memory that it has: what has come decides, not what was announced.
    pub allocated: usize,
}

impl NsReplica {
    /// What it has in memory.
    pub fn memory(&self) -> Memory<'_> {
        Memory {
            visible: self.visible.as_ref().map(|held| &held.state),
            given: self.given.as_ref().map(|held| &held.state),
            ready: self.ready.as_ref().map(|held| (&held.head, &held.state)),
            under: self.relayed.under(),
            transfer: self.assembly.as_ref().map(|assembly| Arriving {
                head: &assembly.head,
                bytes: assembly.bytes.len(),
                most: most(&self.settings.limits, &assembly.head, assembly.base.is_some()),
                allocated: assembly.bytes.capacity(),
            }),
        }
    }
}
