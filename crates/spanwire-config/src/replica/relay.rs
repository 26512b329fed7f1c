//! The upper half of a relay: what a receiver says and hears that only a relay does.
//!
//! Owns: REPORT and STALE on this side, loops. Never: what is in the table.

use std::collections::{BTreeMap, BTreeSet};

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId, Reason, Receives as _};

use super::{CHANGED, Held, Replica, Update};
use crate::faults::planted;
use crate::wire::{Frame, Goodbye, GoodbyeCode, MAX_PATH, NodeKind, Report, WantReason, Welcome};
use crate::{Head, Id, Key, Position, RelayAction, RelayEvent, State, Unexpected, Upstream};

/// Words of STALE that wait to be routed; of more, the oldest are dropped, and come again.
const MOST_STALE: usize = 1_000;

/// What a relay's receiver has to tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Relayed {
    stale: BTreeMap<Id, u64>,
    /// What was told of the server above.
    upstream: Option<Upstream>,
    /// The HEAD that was told last.
    head: Option<Head>,
    /// A HEAD for all below the canary's, to be told.
    for_all: Option<Head>,
    /// A state for all that was verified and not told when the canary's came on top of it, and the keys that it changed.
    under: Option<(Held, BTreeSet<Key>)>,
    /// A canary whose data came before what it stands on was known to be for all. The server takes it for sent.
    out_of_turn: Option<Position>,
    conversations: u64,
    /// In which the pipe in use is.
    conversation: Option<(PipeId, u64)>,
}

impl Relayed {
    /// What waits below a canary's state.
    pub(super) fn under(&self) -> Option<&State> {
        self.under.as_ref().map(|(held, _)| &held.state)
    }
}

impl Replica {
    /// Whether this is a relay's.
    pub(super) fn relays(&self) -> bool {
        self.settings.kind == NodeKind::Relay
    }

    /// Whether the path that a server shows leads round, or too deep: it is left then.
    pub(super) fn refuses_path(&mut self, cx: &mut Cx<'_>, pipe: PipeId, welcome: &Welcome) -> bool {
        let round = welcome.path.contains(&self.settings.node) && !planted("loop-not-seen");
        let deep = welcome.path.len() >= MAX_PATH;
        if !self.relays() || !round && !deep {
            return false;
        }
        let (code, detail) = (GoodbyeCode::Loop, 0);
        let goodbye = Goodbye { code, detail, retry_after_ms: 0, alternates: Vec::new() };
        let _ = cx.put(pipe, Message::from(Frame::Goodbye(goodbye).encode()));
        cx.count("loops", 1);
        cx.finish(pipe, Reason::Protocol(if round { "servers form a loop" } else { "too many relays" }));
        true
    }

    /// While a rollout is open, what is for all is below what is held last.
    pub(super) fn note_for_all(&mut self, cx: &mut Cx<'_>, head: &Head) {
        let newer = |known: &Head| known.position < head.position || known.seq < head.seq;
        if self.relays()
            && head.audience.is_empty()
            && self.tip().is_some_and(|tip| !tip.head.audience.is_empty())
            && self.relayed.for_all.as_ref().is_none_or(newer)
        {
            self.relayed.for_all = Some(head.clone());
            cx.wake(CHANGED);
        }
    }

    /// Data of a canary that does not stand on what is held is not taken; once it does, it is asked for.
    pub(super) fn note_out_of_turn(&mut self, head: &Head) {
        if !self.stands(head) {
            self.relayed.out_of_turn = Some(head.position);
        }
    }

    /// A beacon shows news, which may have come too early: the server would not send it again by itself.
    pub(super) fn ask_in_turn(&mut self, cx: &mut Cx<'_>, news: &Head) {
        if self.relayed.out_of_turn.take_if(|early| *early == news.position).is_some() {
            self.ask(cx, WantReason::Other);
        }
    }

    /// A relay is told what is for all before what is for a cohort, even where both are verified at once.
    pub(super) fn put_under(&mut self, next: &Held) {
        if self.relays()
            && !next.head.audience.is_empty()
            && let Some(all) = self.ready.take_if(|ready| ready.head.audience.is_empty())
        {
            let mut changed = std::mem::take(&mut self.ready_changed);
            changed.extend(self.relayed.under.take().into_iter().flat_map(|(_, before)| before));
            self.relayed.under = Some((all, changed));
        }
    }

    /// What happened that a relay is to be told.
    pub fn relay_events(&mut self, cx: &mut Cx<'_>) -> Vec<RelayEvent> {
        let mut events = Vec::new();
        let upstream = self.upstream();
        if upstream != self.relayed.upstream {
            self.relayed.upstream.clone_from(&upstream);
            events.push(RelayEvent::Upstream(upstream));
        }
        // A promotion may be followed by the next canary before it is told.
        let held = self.given.as_ref().or(self.visible.as_ref()).map(|held| held.head.clone());
        if let Some(head) = held.filter(|head| self.relayed.head.as_ref() != Some(head)) {
            self.relayed.head = Some(head.clone());
            events.push(RelayEvent::Heard(head));
        }
        let for_all = self.ready.as_ref().is_some_and(|ready| ready.head.audience.is_empty());
        let mut under = self.relayed.under.take();
        if let Some((_, changed)) = under.take_if(|_| for_all) {
            // What came on top of it is for all by now.
            self.ready_changed.extend(changed);
        }
        if let Some((held, changed)) = under {
            let update = Update {
                head: held.head.clone(),
                changed: changed.into_iter().collect(),
                state: held.state.clone(),
            };
            // Given as by `recv`; what is ready follows at once, and says that this is visible.
            self.given = Some(held);
            events.push(RelayEvent::Verified(update));
        }
        while let Some(update) = self.recv(cx) {
            self.relayed.head = Some(update.head.clone());
            events.push(RelayEvent::Verified(update));
        }
        if let Some(head) = self.tip().map(|held| held.head.clone())
            && self.relayed.head.as_ref() != Some(&head)
        {
            self.relayed.head = Some(head.clone());
            events.push(RelayEvent::Heard(head));
        }
        events.extend(self.relayed.for_all.take().map(RelayEvent::Heard));
        let stale = std::mem::take(&mut self.relayed.stale);
        events.extend(stale.into_iter().map(|(node, boot)| RelayEvent::Stale { node, boot }));
        events
    }

    /// Whether [`relay_events`](Self::relay_events) has something to tell.
    pub fn has_relay_events(&self) -> bool {
        self.ready.is_some()
            || !self.relayed.stale.is_empty()
            || self.relayed.for_all.is_some()
            || self.relayed.head.as_ref() != self.tip().map(|held| &held.head)
            || self.relayed.upstream != self.upstream()
    }

    /// Does what a relay wants of its receiver; gives back what is not for servers above.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn perform_relay(
        &mut self,
        cx: &mut Cx<'_>,
        action: RelayAction,
    ) -> Result<Option<RelayAction>, Unexpected> {
        match action {
            RelayAction::Ack { position, level, volatile } => self.ack(cx, position, level, volatile)?,
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Tells the server above of nodes below. `false`: there is no room now, or no server.
    pub fn report(&mut self, cx: &mut Cx<'_>, report: &Report) -> bool {
        let Some(pipe) = self.active.filter(|_| self.relayed.upstream.is_some()) else { return false };
        // What is queued after this would fill the pipe: data above all is to have room.
        cx.unsent(pipe).0 < 16
            && cx.put(pipe, Message::from(Frame::Report(Box::new(report.clone())).encode())).is_ok()
    }

    /// The server of the pipe in use, once it has said WELCOME.
    fn upstream(&self) -> Option<Upstream> {
        let up = self.active.and_then(|pipe| self.pipes.get(pipe))?;
        let (server, path) = (up.server?, up.path.clone());
        let conversation = self.relayed.conversation.filter(|(pipe, _)| self.active == Some(*pipe))?.1;
        Some(Upstream { server, path, conversation })
    }

    /// The server of the pipe in use, welcomed, does not know what was said to others.
    pub(super) fn converse(&mut self) {
        let welcomed = |pipe: &PipeId| self.pipes.get(*pipe).is_some_and(|up| up.server.is_some());
        if let Some(pipe) = self.active.filter(welcomed) {
            self.relayed.conversations += 1;
            self.relayed.out_of_turn = None;
            self.relayed.conversation = Some((pipe, self.relayed.conversations));
        }
    }

    /// STALE: for this node, or for one below.
    pub(super) fn on_stale(&mut self, cx: &mut Cx<'_>, node: Id, boot: u64) {
        if node == self.settings.node {
            self.raise_boot(cx, boot);
        } else if self.relays() {
            let stale = &mut self.relayed.stale;
            let known = stale.entry(node).or_default();
            *known = boot.max(*known);
            if stale.len() > MOST_STALE {
                stale.pop_first();
                cx.count("stale-too-many", 1);
            }
            cx.wake(CHANGED);
        }
    }

    /// A server knows a boot of this node; one above its own matters.
    pub(super) fn raise_boot(&mut self, cx: &mut Cx<'_>, boot: u64) {
        if boot > self.settings.boot {
            self.stale_boot = Some(boot);
            cx.wake(CHANGED);
        }
    }
}
