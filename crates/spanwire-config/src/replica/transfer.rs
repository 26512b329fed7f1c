//! A transfer from its first slice to a verified revision.
//!
//! Owns: assembly and verification. Never: an allocation by a size that was not checked; a revision without the
//! digest that its HEAD names.

use bytes::Bytes;
use spanwire::protocol::{Cx, DropReason, PipeId};

use super::namespace::{Complaint, Held, NsReplica, Verdict, Word};
use crate::faults::planted;
use crate::wire::{Level, Slice, WantReason, decode_changes, decode_state, snapshot_size};
use crate::{Base, Change, ChangeSet, Head, Key, Limits, State};

/// A transfer that arrives.
#[derive(Clone, Debug)]
pub(super) struct Assembly {
    pub(super) head: Head,
    pub(super) base: Option<Base>,
    pub(super) bytes: Vec<u8>,
}

impl NsReplica {
    /// A slice that came over the pipe in use.
    pub(super) fn on_slice(&mut self, cx: &mut Cx<'_>, pipe: PipeId, slice: Slice) {
        if slice.offset == 0 {
            self.assembly = None;
        }
        let verdict = self.on_head(cx, pipe, &slice.head);
        if !matches!(verdict, Verdict::Newer) {
            self.assembly = None;
            self.note_out_of_turn(&slice.head);
            cx.dropped(Some(pipe), DropReason::Own("not-news"));
            if matches!(verdict, Verdict::Same) && slice.last {
                // The sender does not know that it is here.
                self.say(Word::Report);
            }
            return;
        }
        if slice.offset == 0 && !self.start(&slice) {
            return;
        }
        self.behind = Some(cx.now());
        self.place = None;
        let Some(assembly) = &mut self.assembly else {
            // The rest of a transfer whose start was dropped.
            cx.dropped(Some(pipe), DropReason::Own("out-of-step"));
            return;
        };
        let fits = assembly.head.position == slice.head.position
            && assembly.base == slice.base
            && (assembly.bytes.len() as u64 == slice.offset || planted("accept-holes"));
        if !fits {
            self.ask(WantReason::Other);
            return;
        }
        let size = slice.offset + slice.bytes.len() as u64;
        let most = most(&self.settings.limits, &slice.head, slice.base.is_some());
        if size > most && !planted("transfer-size-unchecked") {
            self.failed(cx, pipe, slice.base.is_some());
            return;
        }
        assembly.bytes.extend_from_slice(&slice.bytes);
        if (slice.last || planted("half-snapshot"))
            && let Some(whole) = self.assembly.take()
        {
            self.verify(cx, pipe, whole);
        }
    }

    /// A transfer will come when others have theirs. That the queue moves is as good as data: nothing is withheld.
    pub(super) fn on_waiting(&mut self, cx: &mut Cx<'_>, place: u32) {
        let (before, best) = self.place.unwrap_or((0, u32::MAX));
        if place < best {
            self.behind = self.behind.map(|_| cx.now());
        }
        self.place = Some((place, best.min(place)));
        if place != before {
            self.woken(cx);
        }
    }

    pub(super) fn arriving(&self) -> Option<(u64, u64)> {
        let assembly = self.assembly.as_ref().filter(|assembly| assembly.base.is_none())?;
        Some((assembly.bytes.len() as u64, snapshot_size(assembly.head.keys, assembly.head.bytes)))
    }

    /// The first slice of a transfer. `false`: it does not fit what is held.
    fn start(&mut self, slice: &Slice) -> bool {
        if let Some(base) = slice.base
            && self.tip().map(|held| held.head.base()) != Some(base)
            && !planted("skip-base")
        {
            if !self.awaiting {
                self.ask(WantReason::Other);
            }
            return false;
        }
        self.awaiting = false;
        let mut bytes = Vec::new();
        if planted("announced-size-allocated") {
            bytes.reserve(snapshot_size(slice.head.keys, slice.head.bytes) as usize);
        }
        self.assembly = Some(Assembly { head: slice.head.clone(), base: slice.base, bytes });
        true
    }

    /// A whole transfer: applied to a copy, and kept only if the copy has the digest that its HEAD names.
    fn verify(&mut self, cx: &mut Cx<'_>, pipe: PipeId, assembly: Assembly) {
        let Assembly { head, base, bytes } = assembly;
        let size = bytes.len();
        let bytes = Bytes::from(bytes);
        let before = self.tip().map(|held| held.state.clone()).unwrap_or_default();
        let built = match base {
            Some(_) => decode_changes(&bytes).map(|changes| {
                let mut state = before.clone();
                let changes = if planted("deletes-ignored") { puts_of(&changes) } else { changes };
                let over = self.settings.limits.check_values(&changes);
                state.apply(&changes);
                (state, changes.keys().cloned().collect::<Vec<_>>(), over)
            }),
            None => decode_state(&bytes).map(|state| {
                let state = if planted("snapshot-over-state") { over(&before, &state) } else { state };
                let changes = before.diff(&state);
                let over = self.settings.limits.check_values(&changes);
                (state, changes.keys().cloned().collect(), over)
            }),
        };
        let Ok((state, changed, over)) = built else { return self.failed(cx, pipe, base.is_some()) };
        let named = (head.keys, head.bytes, head.digest);
        if (state.keys(), state.bytes(), state.digest()) != named && !unchecked() {
            return self.failed(cx, pipe, base.is_some());
        }
        if let Err(over) = over {
            return self.too_large(cx, &head, &over);
        }
        cx.count("verified", 1);
        self.reports.verified(size, cx.now());
        if let Some(at) = self.reports.plan(cx.now()) {
            cx.set_timer_lazily(self.timer(), at);
        }
        self.accept(cx, Held { head, state }, changed);
    }

    fn accept(&mut self, cx: &mut Cx<'_>, held: Held, changed: Vec<Key>) {
        let position = held.head.position;
        if planted("ack-early") {
            let report = self.ack_of(&held.head, Level::Stored, false);
            self.reports.set(report);
            self.say(Word::Report);
        }
        if planted("changes-forgotten") {
            self.ready_changed.clear();
        }
        self.put_under(&held);
        self.ready_changed.extend(changed);
        self.ready = Some(held);
        self.confirmed = true;
        // Only a higher epoch gets here while two histories contradict each other: it ends that.
        self.conflict = None;
        if self
            .target
            .as_ref()
            .is_some_and(|target| target.position.partial_cmp(&position) != Some(std::cmp::Ordering::Greater))
        {
            self.target = None;
            self.behind = None;
        }
        self.woken(cx);
    }

    /// What arrived is not what its HEAD names.
    fn failed(&mut self, cx: &mut Cx<'_>, pipe: PipeId, delta: bool) {
        cx.count("digest-failures", 1);
        cx.dropped(Some(pipe), DropReason::Own("digest"));
        if delta {
            self.ask(WantReason::Digest);
        } else {
            self.assembly = None;
            self.complaint = Some(Complaint::Close("a snapshot without the digest that its HEAD names"));
        }
    }
}

/// Most bytes that a transfer to this HEAD may have.
pub(super) fn most(limits: &Limits, head: &Head, delta: bool) -> u64 {
    match delta {
        false => snapshot_size(head.keys, head.bytes),
        // Puts are within the new state; deletes within the old one, whose keys the limits bound.
        true => snapshot_size(limits.keys, limits.bytes).saturating_mul(2),
    }
}

/// Planted faults that let through what was not verified.
fn unchecked() -> bool {
    ["skip-digest", "accept-holes", "snapshot-over-state", "deletes-ignored", "half-snapshot"]
        .into_iter()
        .any(planted)
}

fn puts_of(changes: &ChangeSet) -> ChangeSet {
    let mut puts = ChangeSet::new();
    let kept = changes.iter().filter(|(_, change)| matches!(change, Change::Put(_)));
    kept.for_each(|(key, change)| puts.set(key.clone(), change.clone()));
    puts
}

fn over(before: &State, state: &State) -> State {
    let mut both = before.clone();
    state.iter().for_each(|(key, entry)| drop(both.put(key.clone(), entry.clone())));
    both
}
