//! The upper half of a relay: what a receiver says and hears that only a relay does.
//!
//! What is verified and heard is told of each namespace apart; loops and conversations are the pipe's.
//!
//! Owns: REPORT and STALE on this side, loops. Never: what is in the table.

use std::collections::{BTreeMap, BTreeSet};

use spanwire::Message;
use spanwire::protocol::{Cx, PipeId};

use super::namespace::{Held, NsReplica};
use super::{Replica, Update};
use crate::faults::planted;
use crate::wire::{Frame, GoodbyeCode, MAX_PATH, NodeKind, Report, WantReason, Welcome};
use crate::{Head, Id, Key, Position, RelayEvent, State, Upstream};

/// Words of STALE that wait to be routed; of more, the oldest are dropped, and come again.
const MOST_STALE: usize = 1_000;

/// What a relay's receiver has to tell of a namespace.
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
}

impl Relayed {
    /// What waits below a canary's state.
    pub(super) fn under(&self) -> Option<&State> {
        self.under.as_ref().map(|(held, _)| &held.state)
    }
}

impl NsReplica {
    /// Whether this is a relay's.
    pub(super) fn relays(&self) -> bool {
        self.settings.kind == NodeKind::Relay
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
            self.woken(cx);
        }
    }

    /// Data of a canary that does not stand on what is held is not taken; once it does, it is asked for.
    pub(super) fn note_out_of_turn(&mut self, head: &Head) {
        if !self.stands(head) {
            self.relayed.out_of_turn = Some(head.position);
        }
    }

    /// A beacon shows news, which may have come too early: the server would not send it again by itself.
    pub(super) fn ask_in_turn(&mut self, news: &Head) {
        if self.relayed.out_of_turn.take_if(|early| *early == news.position).is_some() {
            self.ask(WantReason::Other);
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

    /// What happened that a relay is to be told. `upstream` is the present server.
    pub(super) fn relay_events(&mut self, cx: &mut Cx<'_>, upstream: Option<Upstream>) -> Vec<RelayEvent> {
        let mut events = Vec::new();
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

    pub(super) fn has_relay_events(&self, upstream: Option<&Upstream>) -> bool {
        self.ready.is_some()
            || !self.relayed.stale.is_empty()
            || self.relayed.for_all.is_some()
            || self.relayed.head.as_ref() != self.tip().map(|held| &held.head)
            || self.relayed.upstream.as_ref() != upstream
    }

    /// A node below has a later start than the one that was told.
    fn note_stale(&mut self, cx: &mut Cx<'_>, node: Id, boot: u64) {
        let stale = &mut self.relayed.stale;
        let known = stale.entry(node).or_default();
        *known = boot.max(*known);
        if stale.len() > MOST_STALE {
            stale.pop_first();
            cx.count("stale-too-many", 1);
        }
        self.woken(cx);
    }

    /// The server of the pipe in use does not know what was said to others.
    fn converses(&mut self) {
        self.relayed.out_of_turn = None;
    }
}

impl Replica {
    /// Whether the path that a server shows leads round, or too deep: it is left then.
    pub(super) fn refuses_path(&mut self, cx: &mut Cx<'_>, pipe: PipeId, welcome: &Welcome) -> bool {
        let round = welcome.path.contains(&self.settings.node) && !planted("loop-not-seen");
        let deep = welcome.path.len() >= MAX_PATH;
        if self.settings.kind != NodeKind::Relay || !round && !deep {
            return false;
        }
        cx.count("loops", 1);
        self.goodbye(
            cx,
            pipe,
            GoodbyeCode::Loop,
            if round { "servers form a loop" } else { "too many relays" },
        );
        true
    }

    /// Tells the server above of nodes below. `false`: there is no room now, or no server.
    pub fn report(&mut self, cx: &mut Cx<'_>, report: &Report) -> bool {
        let told = |at: usize| self.namespaces[at].relayed.upstream.is_some();
        let Some(pipe) = self.active.filter(|_| self.index_of(&report.namespace).is_some_and(told)) else {
            return false;
        };
        if planted("table-of-the-first") && report.namespace != self.settings.namespace {
            return true;
        }
        // What is queued after this would fill the pipe: data above all is to have room.
        cx.unsent(pipe).0 < 16
            && cx.put(pipe, Message::from(Frame::Report(Box::new(report.clone())).encode())).is_ok()
    }

    /// The server of the pipe in use, once it has said WELCOME.
    pub(super) fn upstream(&self) -> Option<Upstream> {
        let session = self.active.and_then(|pipe| self.sessions.get(pipe))?;
        let (server, path) = (session.server?, session.path.clone());
        let conversation = self.conversation.filter(|(pipe, _)| self.active == Some(*pipe))?.1;
        Some(Upstream { server, path, conversation })
    }

    /// The server of the pipe in use, welcomed, does not know what was said to others.
    pub(super) fn converse(&mut self) {
        let welcomed = |pipe: &PipeId| self.sessions.get(*pipe).is_some_and(|up| up.server.is_some());
        if let Some(pipe) = self.active.filter(welcomed) {
            self.conversations += 1;
            self.conversation = Some((pipe, self.conversations));
            self.namespaces.iter_mut().for_each(NsReplica::converses);
        }
    }

    /// STALE: for this node, or for one below, in whatever namespace it is known.
    pub(super) fn on_stale(&mut self, cx: &mut Cx<'_>, node: Id, boot: u64) {
        if node == self.settings.node {
            self.raise_boot(cx, boot);
        } else if self.settings.kind == NodeKind::Relay {
            self.namespaces.iter_mut().for_each(|ns| ns.note_stale(cx, node, boot));
        }
    }

    /// A server knows a boot of this node; one above its own matters.
    pub(super) fn raise_boot(&mut self, cx: &mut Cx<'_>, boot: u64) {
        if boot > self.settings.boot {
            self.stale_boot = Some(boot);
            self.woken(cx);
        }
    }
}
