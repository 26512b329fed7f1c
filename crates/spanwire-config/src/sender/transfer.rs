//! What goes to which pipe next: steps of the log, merged steps, snapshots; and who may send a large one.
//!
//! Owns: the log of steps, encodings, slots. Never: who is right.

use std::sync::Arc;

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, Reason};

use super::session::{Sending, Session, Standing};
use super::target::Which;
use super::{Distributor, FLIGHT, Step};
use crate::faults::planted;
use crate::wire::{Frame, Payload, snapshot_size};
use crate::{ChangeSet, Position, Shown};

impl Distributor {
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

    /// Works off the pipes that have something to look at.
    pub(super) fn run(&mut self, cx: &mut Cx<'_>) {
        loop {
            // Who had waited may need no slot any more: the next in line must not wait for another to free one.
            let free = self.slots < self.settings.slots;
            let next = match self.work.pop_front() {
                None if free => self.waiting.pop_front(),
                next => next,
            };
            let Some(pipe) = next else { return };
            self.pump(cx, pipe);
            let stopped = |session: &Session| session.sending.is_some() && !session.has_credit();
            if planted("stopped-reader-holds-up") && self.sessions.get(pipe).is_some_and(stopped) {
                return;
            }
        }
    }

    /// Sends on one pipe what credit and room allow.
    pub(super) fn pump(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        loop {
            let Some(session) = self.sessions.get(pipe) else { return };
            if session.sending.is_none() && !self.begin(pipe) {
                if self.waiting.back() == Some(&pipe) {
                    self.tell_place(cx, pipe, self.waiting.len());
                }
                return;
            }
            let Some(session) = self.sessions.get_mut(pipe) else { return };
            if !session.has_credit() && !planted("credit-ignored") {
                return;
            }
            let chunk = session.chunk;
            let Some(sending) = &mut session.sending else { return };
            let Some((message, len)) = sending.payload.slice(sending.offset, chunk) else {
                // Cannot be: a transfer ends with the slice that reaches its size.
                cx.close(pipe, Reason::Protocol("transfer out of step"));
                return;
            };
            let Ok(_room) = cx.put(pipe, message) else { return };
            sending.offset += len as u64;
            let done = sending.offset >= sending.payload.size();
            session.put(len as u64, cx.now());
            cx.count("slices", 1);
            if done {
                self.end(pipe);
            }
        }
    }

    /// Who waits for a slot is told its place, if that is another than it knows.
    fn tell_place(&mut self, cx: &mut Cx<'_>, pipe: PipeId, place: usize) {
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        if session.place != place {
            let frame = Frame::Waiting(self.settings.namespace.clone(), place);
            // Where there is no room there is something to read: it is said at the next beacon time.
            if cx.put(pipe, Message::from(frame.encode())).is_ok() {
                session.place = place;
            }
        }
    }

    /// The same for all who wait, at beacon time.
    pub(super) fn tell_places(&mut self, cx: &mut Cx<'_>) {
        for at in 0..self.waiting.len() {
            let pipe = self.waiting[at];
            // A beacon may be there, and nothing that is older.
            if cx.unsent(pipe).0 <= 1 {
                self.tell_place(cx, pipe, at + 1);
            }
        }
    }

    /// Chooses the next transfer of a pipe. `false`: there is none, or not now.
    pub(super) fn begin(&mut self, pipe: PipeId) -> bool {
        let Some(session) = self.sessions.get(pipe) else { return false };
        let which = self.target(session);
        let Some((head, _)) = self.current(which) else { return false };
        let at_head = session.sent.is_some_and(|sent| sent.base.position == head.position);
        // A canary's node whose labels changed, or that the present stage leaves out: it goes on from there.
        let above = session.sent.is_some_and(|sent| sent.base.position > head.position);
        let may = session.standing == Standing::Clear
            || session.standing == Standing::Unjudged && planted("unjudged-is-served");
        if !session.wants
            || !may
            || session.refused.contains(&head.position) && !planted("resend-refused")
            || at_head && !session.force
            || above
        {
            return false;
        }
        if (session.flight.len() >= FLIGHT || session.flight_bytes() >= session.window)
            && !planted("flight-unlimited")
        {
            return false;
        }
        let Some(payload) = self.choose(pipe, which) else { return false };
        let Some(session) = self.sessions.get_mut(pipe) else { return false };
        if payload.size() > session.window && !session.slot {
            if self.slots >= self.settings.slots && !planted("slots-unlimited") {
                if !self.waiting.contains(&pipe) {
                    self.waiting.push_back(pipe);
                }
                return false;
            }
            self.slots += 1;
            session.slot = true;
        }
        session.place = 0;
        session.sending = Some(Sending { payload, offset: 0 });
        true
    }

    pub(super) fn choose(&mut self, pipe: PipeId, which: Which) -> Option<Arc<Payload>> {
        let session = self.sessions.get(pipe)?;
        let (head, _) = self.current(which)?;
        if let Some(sent) = session.sent.filter(|_| !session.force) {
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
        let session = self.sessions.get(pipe)?;
        // Never below what was sent or is held: it would be ignored, and never acknowledged.
        let from = session.sent.map(|sent| sent.base.position).or(session.floor);
        if let Some(old) = &self.snapshots[which as usize] {
            let (at, end) = (old.head(), self.log_end(head.position));
            let leads = |step: usize| step < end;
            let reached = at.position == head.position || self.step_from(&at.shown()).is_some_and(leads);
            let useful = !session.refused.contains(&at.position)
                && from.is_none_or(|from| from < at.position)
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
            for (other, session) in self.sessions.iter_mut() {
                if other != pipe && session.sending.as_ref().is_some_and(|s| Arc::ptr_eq(&s.payload, &old)) {
                    session.sending = None;
                    if std::mem::take(&mut session.slot) {
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
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        if let Some(sending) = session.sending.take() {
            let shown = sending.payload.head().shown();
            session.sent = Some(shown);
            session.force = false;
            session.flight.push_back((shown, sending.payload.size()));
        }
        self.release(pipe);
    }

    /// Gives a slot back; `run` gives it to who waits longest.
    pub(super) fn release(&mut self, pipe: PipeId) {
        if let Some(session) = self.sessions.get_mut(pipe)
            && std::mem::take(&mut session.slot)
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
