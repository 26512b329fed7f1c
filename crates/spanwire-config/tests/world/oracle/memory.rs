//! What a receiver has in memory: invariant 20.
//!
//! The oracle counts by itself what has come over each connection; of the receiver it asks what it has. Values that two
//! states share are one piece of memory, and are known by where they lie.

use std::collections::{BTreeMap, HashSet};

use spanwire_config::wire::{Slice, snapshot_size};
use spanwire_config::{Entry, Head, Memory, NsReplica, State};
use spanwire_testkit::sim::Link;

/// What a vector may have more than twice what is in it.
const LEAST: usize = 64;

/// What came to a receiver, since it last asked for a fresh start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intake {
    /// Bytes of the transfer that is on its way.
    came: BTreeMap<Link, usize>,
    /// Bytes of its own that what was verified, and not taken, had when it asked: whoever answers does not count them.
    carried: u64,
    /// What was on its way when it asked may be verified before the answer comes.
    asked: bool,
}

impl Intake {
    /// It said HELLO with a want, or WANT.
    pub(crate) fn asked(&mut self, replica: &NsReplica) {
        (self.carried, self.asked) = (waits(&replica.memory()).map_or(0, |(_, own)| own), true);
    }

    /// A slice was taken off a connection.
    pub(crate) fn took(&mut self, link: Link, slice: &Slice) {
        let came = self.came.entry(link).or_default();
        *came = if slice.offset == 0 { 0 } else { *came } + slice.bytes.len();
    }

    /// A connection is gone.
    pub(crate) fn ended(&mut self, is_open: impl Fn(Link) -> bool) {
        self.came.retain(|link, _| is_open(*link));
    }

    /// Invariant 20. `obeys`: whoever sends keeps to the window.
    pub(crate) fn check(
        &mut self,
        n: usize,
        replica: &NsReplica,
        window: u32,
        obeys: bool,
    ) -> Result<(), String> {
        let memory = replica.memory();
        match waits(&memory).filter(|_| self.asked) {
            Some((_, own)) => self.carried = self.carried.max(own),
            None if memory.ready.is_none() => {
                self.asked &= self.carried == 0;
                self.carried = 0;
            }
            None => {}
        }
        let Some(transfer) = memory.transfer else { return Ok(()) };
        let at = transfer.head.position;
        let came = self.came.values().copied().max().unwrap_or(0);
        if transfer.bytes > came || transfer.allocated > 2 * came + LEAST {
            return Err(format!(
                "invariant 20: node {n} has {} bytes for {at} in {} bytes of memory, and {came} came",
                transfer.bytes, transfer.allocated
            ));
        }
        if transfer.bytes as u64 > transfer.most {
            return Err(format!(
                "invariant 20: node {n} has {} bytes for {at}, which has {} at most",
                transfer.bytes, transfer.most
            ));
        }
        let Some((head, own)) = waits(&memory).filter(|_| obeys) else { return Ok(()) };
        // Beside what is visible and what the application looks at: one state on its way, and a window.
        let one = own.max(snapshot_size(transfer.head.keys, transfer.head.bytes));
        if own + transfer.bytes as u64 > one + self.carried + u64::from(window) {
            return Err(format!(
                "invariant 20: node {n} has {own} bytes of {} and {} bytes for {at}, with a window of {window}",
                head.position, transfer.bytes
            ));
        }
        Ok(())
    }
}

/// What is verified and not taken, and the bytes of its values that nothing else here has.
fn waits<'m>(memory: &'m Memory<'_>) -> Option<(&'m Head, u64)> {
    let (head, state) = memory.ready?;
    let lies_at = |entry: &Entry| entry.value().as_ptr();
    let others = [memory.visible, memory.given, memory.under].into_iter().flatten();
    let known: HashSet<*const u8> = others.flat_map(State::iter).map(|(_, entry)| lies_at(entry)).collect();
    let own = state.iter().filter(|(_, entry)| !known.contains(&lies_at(entry)));
    Some((head, own.map(|(_, entry)| entry.value().len() as u64).sum()))
}
