//! What goes to which pipe next: steps of the log, merged steps, snapshots; and who may send a large one.
//!
//! Owns: the log of steps, encodings, slots. Never: who is right.

use std::sync::Arc;

use spanwire::protocol::PipeId;

use super::cursor::{Sending, Standing};
use super::target::Which;
use super::{FLIGHT, Namespace, Step};
use crate::faults::planted;
use crate::wire::{Payload, snapshot_size};
use crate::{ChangeSet, Position, Shown};

/// What came of looking for a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// There is none, or not now.
    Nothing,
    /// It needs a slot.
    Waits,
    Begun,
}

impl Namespace {
    pub(super) fn append(&mut self, step: Step) {
        self.log_bytes += step.size;
        self.log.push_back(step);
        while (self.log.len() > self.settings.log_commits || self.log_bytes > self.settings.log_bytes)
            && !planted("log-unlimited")
        {
            match self.log.pop_front() {
                Some(old) => self.log_bytes -= old.size,
                None => break,
            }
        }
    }

    /// Index of the step that starts at `shown`.
    pub(super) fn step_from(&self, shown: &Shown) -> Option<usize> {
        let rev = shown.base.position.rev;
        let at = self.log.partition_point(|step| step.base.base.position.rev < rev);
        let same = |step: &&Step| {
            step.base == *shown || planted("log-by-revision") && step.base.base.position.rev == rev
        };
        self.log.get(at).filter(same).map(|_| at)
    }

    /// The steps before this index lead to `position`, which is current.
    fn log_end(&self, position: Position) -> usize {
        self.log.partition_point(|step| step.base.base.position.rev < position.rev)
    }

    /// What a position of the present epoch has, if the log or the head knows it.
    pub(super) fn known(&self, position: Position) -> Option<Shown> {
        let head = self.head()?.shown();
        let all = self.head_for_all().map(|all| all.shown());
        if let Some(current) = [Some(head), all].into_iter().flatten().find(|s| s.base.position == position) {
            return Some(current);
        }
        let at = self.log.partition_point(|step| step.base.base.position.rev < position.rev);
        self.log.get(at).map(|step| step.base).filter(|shown| shown.base.position == position)
    }

    /// Chooses the next transfer of a pipe; `free`: a slot is.
    pub(super) fn begin(&mut self, pipe: PipeId, free: bool) -> Next {
        let Some(cursor) = self.cursors.get(pipe) else { return Next::Nothing };
        let which = self.target(cursor);
        let Some((head, _)) = self.current(which) else { return Next::Nothing };
        let at_head = cursor.sent.is_some_and(|sent| sent.base.position == head.position);
        // A canary's node whose labels changed, or that the present stage leaves out: it goes on from there.
        let above = cursor.sent.is_some_and(|sent| sent.base.position > head.position);
        let may = cursor.standing == Standing::Clear
            || cursor.standing == Standing::Unjudged && planted("unjudged-is-served");
        if !cursor.wants
            || !may
            || cursor.refused.contains(&head.position) && !planted("resend-refused")
            || at_head && !cursor.force
            || above
        {
            return Next::Nothing;
        }
        if (cursor.flight.len() >= FLIGHT || cursor.flight_bytes() >= cursor.window)
            && !planted("flight-unlimited")
        {
            return Next::Nothing;
        }
        let Some(payload) = self.choose(pipe, which) else { return Next::Nothing };
        let Some(cursor) = self.cursors.get_mut(pipe) else { return Next::Nothing };
        if payload.size() > cursor.window && !cursor.slot {
            if !free && !planted("slots-unlimited") {
                return Next::Waits;
            }
            self.slots += 1;
            cursor.slot = true;
        }
        cursor.place = 0;
        cursor.sending = Some(Sending { payload, offset: 0 });
        Next::Begun
    }

    pub(super) fn choose(&mut self, pipe: PipeId, which: Which) -> Option<Arc<Payload>> {
        let cursor = self.cursors.get(pipe)?;
        let (head, _) = self.current(which)?;
        if let Some(sent) = cursor.sent.filter(|_| !cursor.force) {
            if sent.digest == head.digest {
                return Some(Arc::new(Payload::delta(head, sent.base, &ChangeSet::new())));
            }
            if let Some(delta) = self.delta_from(sent, which) {
                return Some(delta);
            }
        }
        self.snapshot_for(pipe, which)
    }

    /// The step from `sent` to the head, encoded once for all that are there; `None` when the log does not
    /// reach it, or a snapshot is cheaper.
    pub(super) fn delta_from(&mut self, sent: Shown, which: Which) -> Option<Arc<Payload>> {
        let (head, state) = self.current(which)?;
        let to = head.position;
        let kept =
            self.deltas.iter().find(|(from, of, _)| *from == sent && (*of == to || planted("stale-deltas")));
        if let Some((.., cached)) = kept {
            return cached.clone();
        }
        let end = self.log_end(to);
        let at = self.step_from(&sent).filter(|at| *at < end)?;
        let delta = if at + 1 == end {
            Some(Payload::delta(head, sent.base, &self.log[at].changes))
        } else {
            let mut merged = ChangeSet::new();
            self.log.range(at..end).for_each(|step| merged.merge(&step.changes));
            if planted("merge-backwards") {
                self.log.range(at..end).rev().for_each(|step| merged.merge(&step.changes));
            }
            if planted("merge-drops-deletes") {
                let all = std::mem::take(&mut merged);
                let puts = all.iter().filter(|(_, change)| matches!(change, crate::Change::Put(_)));
                puts.for_each(|(key, change)| merged.set(key.clone(), change.clone()));
            }
            let whole = snapshot_size(state.keys(), state.bytes());
            (size(&merged) as u64 <= whole / 2).then(|| Payload::delta(head, sent.base, &merged))
        };
        let delta = delta.map(Arc::new);
        if self.deltas.len() >= self.settings.slots.max(1) {
            self.deltas.pop_front();
        }
        self.deltas.push_back((sent, to, delta.clone()));
        delta
    }

    /// The shared snapshot: the one that is encoded, if the log reaches it and the node can use it; else a
    /// new one, and transfers of the old start again, so that there is never more than one.
    pub(super) fn snapshot_for(&mut self, pipe: PipeId, which: Which) -> Option<Arc<Payload>> {
        let (head, state) = self.current(which)?;
        let cursor = self.cursors.get(pipe)?;
        // Never below what was sent or is held: it would be ignored, and never acknowledged.
        let from = cursor.sent.map(|sent| sent.base.position).or(cursor.floor);
        if let Some(old) = &self.snapshots[which as usize] {
            let (at, end) = (old.head(), self.log_end(head.position));
            let leads = |step: usize| step < end;
            let reached = at.position == head.position || self.step_from(&at.shown()).is_some_and(leads);
            let useful = !cursor.refused.contains(&at.position) && from.is_none_or(|from| from < at.position)
                || planted("old-snapshot-for-all");
            if reached && useful {
                return Some(old.clone());
            }
            if at.position == head.position {
                // The node shows the head itself and still asks: nothing newer can be had.
                return None;
            }
        }
        if from.is_some_and(|from| from.partial_cmp(&head.position) != Some(std::cmp::Ordering::Less)) {
            return None;
        }
        let new = Arc::new(Payload::snapshot(head, state));
        if let Some(old) = self.snapshots[which as usize].replace(new.clone()) {
            for (other, cursor) in self.cursors.iter_mut() {
                if other != pipe && cursor.sending.as_ref().is_some_and(|s| Arc::ptr_eq(&s.payload, &old)) {
                    cursor.sending = None;
                    if std::mem::take(&mut cursor.slot) {
                        self.slots = self.slots.saturating_sub(1);
                    }
                    self.work.push_back(other);
                }
            }
        }
        Some(new)
    }

    /// The last slice of a transfer was put.
    pub(super) fn end(&mut self, pipe: PipeId) {
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        if let Some(sending) = cursor.sending.take() {
            let shown = sending.payload.head().shown();
            cursor.sent = Some(shown);
            cursor.force = false;
            cursor.flight.push_back((shown, sending.payload.size()));
        }
        self.release(pipe);
    }

    /// Gives a slot back; `run` gives it to who waits longest.
    pub(super) fn release(&mut self, pipe: PipeId) {
        if let Some(cursor) = self.cursors.get_mut(pipe)
            && std::mem::take(&mut cursor.slot)
            && !planted("slot-leaks")
        {
            self.slots = self.slots.saturating_sub(1);
        }
    }
}

/// Encoded size of a change set, in bytes.
pub(super) fn size(changes: &ChangeSet) -> usize {
    (changes.iter())
        .map(|(key, change)| {
            key.as_bytes().len()
                + match change {
                    crate::Change::Put(entry) => 9 + entry.value().len(),
                    crate::Change::Delete => 3,
                }
        })
        .sum()
}
