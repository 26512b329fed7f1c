//! What servers say, and which of them is listened to: one pipe is in use, for all namespaces; the others stand by.
//!
//! Owns: WELCOME, GOODBYE, signs of life, fail-over; what is said of one namespace goes there. Never: what that means.

use std::time::Duration;

use spanwire::protocol::{Cx, DropReason, PipeId, Reason};

use super::namespace::{Complaint, NsReplica, Word};
use super::session::Session;
use super::{PATIENCE, Replica, TICK, endpoint};
use crate::Head;
use crate::faults::planted;
use crate::sender::BEACONS;
use crate::wire::{Frame, Goodbye, GoodbyeCode, NamespaceStatus, Slice, Welcome};

impl Replica {
    fn on_welcome(&mut self, cx: &mut Cx<'_>, pipe: PipeId, welcome: Welcome) {
        if self.refuses_path(cx, pipe, &welcome) {
            return;
        }
        let (now, in_use) = (cx.now(), self.active == Some(pipe));
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        let first = session.server.is_none();
        session.server = Some(welcome.server);
        session.path = welcome.path;
        session.beacon = Duration::from_millis(u64::from(welcome.beacon_ms)).clamp(BEACONS.0, BEACONS.1);
        session.window = self.settings.window.min(welcome.window);
        let before = std::mem::replace(&mut session.namespaces, welcome.namespaces);
        for ns in self.namespaces.iter_mut().filter(|_| in_use) {
            let known = (ns.name().to_owned(), NamespaceStatus::Known);
            if session.namespaces.contains(&known) && !before.contains(&known) {
                // It begins to be served.
                ns.since = now;
            }
            if first && !planted("reports-not-repeated") {
                // The last pipe may have lost them.
                ns.owed.extend([Word::Past, Word::Report, Word::Refusals]);
            }
            ns.woken(cx);
        }
        if first {
            self.pay(cx, pipe);
            if in_use {
                self.converse();
            }
        }
        self.schedule(cx);
    }

    fn on_goodbye(&mut self, cx: &mut Cx<'_>, pipe: PipeId, goodbye: &Goodbye) {
        if goodbye.code == GoodbyeCode::StaleBoot {
            self.raise_boot(cx, goodbye.detail);
        }
        cx.count("goodbyes", 1);
        cx.close(
            pipe,
            Reason::Protocol(match goodbye.code {
                GoodbyeCode::Version => "server speaks another version",
                GoodbyeCode::Cluster => "server of another cluster",
                GoodbyeCode::Denied => "server denies this node",
                GoodbyeCode::Loop => "servers form a loop",
                GoodbyeCode::Busy => "server is busy",
                GoodbyeCode::Limits => "server is at its limits",
                GoodbyeCode::StaleBoot => "server knows a later start of this node",
                GoodbyeCode::Closing => "server is closing",
            }),
        );
    }

    /// One message of a server. `false`: the pipe is given up.
    pub(super) fn on_frame(&mut self, cx: &mut Cx<'_>, pipe: PipeId, frame: Frame) -> bool {
        if let Some(session) = self.sessions.get_mut(pipe) {
            session.heard = cx.now();
        }
        let in_use = self.active == Some(pipe);
        match frame {
            Frame::Welcome(welcome) => self.on_welcome(cx, pipe, welcome),
            Frame::Beacon(_) if planted("beacon-ignored") => {}
            Frame::Beacon(heads) if in_use => {
                heads
                    .iter()
                    .for_each(|head| self.of_head(cx, pipe, head, |ns, cx| ns.on_shown(cx, pipe, head)));
            }
            Frame::Beacon(_) => {}
            Frame::Slice(slice) => self.on_slice(cx, pipe, *slice),
            Frame::Waiting(name, place) => match self.index_of(&name).filter(|_| in_use) {
                Some(at) => self.namespaces[at].on_waiting(cx, place),
                None => cx.dropped(Some(pipe), DropReason::Unexpected),
            },
            Frame::Stale(node, boot) => self.on_stale(cx, node, boot),
            Frame::Offer(name, position) => {
                match self.index_of(&name) {
                    Some(at) => self.namespaces[at].on_offer(cx, pipe, position),
                    None => cx.dropped(Some(pipe), DropReason::Own("offer-of-what-is-not-held")),
                }
                self.send_up(cx);
            }
            Frame::Credit(taken) if self.sessions.get(pipe).is_some_and(|up| taken <= up.sent_up) => {
                self.on_credit(cx, pipe, taken);
            }
            Frame::Goodbye(goodbye) => {
                self.on_goodbye(cx, pipe, &goodbye);
                return false;
            }
            Frame::Unknown { optional: true, .. } => cx.dropped(Some(pipe), DropReason::Unexpected),
            Frame::Unknown { .. } => {
                self.goodbye(cx, pipe, GoodbyeCode::Version, "message of unknown type");
                return false;
            }
            _ => {
                cx.dropped(Some(pipe), DropReason::Malformed);
                cx.close(pipe, Reason::Malformed);
                return false;
            }
        }
        true
    }

    /// Credited as it is taken, whether it is kept or not, and whatever namespace it is of.
    fn on_slice(&mut self, cx: &mut Cx<'_>, pipe: PipeId, slice: Slice) {
        let took = |session: &mut Session| session.took(slice.bytes.len() as u64);
        let counts = !planted("credit-of-the-first") || slice.head.namespace == self.settings.namespace;
        if counts && self.sessions.get_mut(pipe).is_some_and(took) {
            self.say_credit(cx, pipe);
        }
        if self.active != Some(pipe) {
            return cx.dropped(Some(pipe), DropReason::Own("not-in-use"));
        }
        let head = slice.head.clone();
        self.of_head(cx, pipe, &head, |ns, cx| ns.on_slice(cx, pipe, slice));
    }

    /// A HEAD came over the pipe in use: it goes to its namespace, and then what follows from it is done.
    fn of_head(
        &mut self,
        cx: &mut Cx<'_>,
        pipe: PipeId,
        head: &Head,
        hear: impl FnOnce(&mut NsReplica, &mut Cx<'_>),
    ) {
        let Some(at) = self.index_of(&head.namespace) else { return self.on_stranger(cx, pipe) };
        let ns = &mut self.namespaces[at];
        hear(ns, cx);
        let fresh = ns.fresh.filter(|_| planted("fresh-of-all"));
        if fresh.is_some() {
            self.namespaces.iter_mut().for_each(|ns| ns.fresh = ns.fresh.max(fresh));
        }
        let ns = &self.namespaces[at];
        if let (0, Some(session)) = (ns.doubted, self.sessions.get_mut(pipe)) {
            session.strangers = 0;
        }
        self.settle(cx, at);
    }

    /// Does what a namespace left to be done.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>, at: usize) {
        self.speak(cx, at);
        let Some(complaint) = self.namespaces[at].complaint.take() else { return };
        match (complaint, self.active) {
            (Complaint::Leave(why), Some(pipe)) => self.leave(cx, pipe, why),
            (Complaint::Close(why), Some(pipe)) => cx.close(pipe, Reason::Protocol(why)),
            (_, None) => {}
        }
    }

    /// The pipe in use is gone: the first in reserve takes over.
    pub(super) fn fail_over(&mut self, cx: &mut Cx<'_>) {
        let rank = |(pipe, session): &(PipeId, &Session)| {
            let endpoint = endpoint(cx, *pipe);
            (session.server.is_none(), self.is_left(cx.now(), endpoint), endpoint, session.opened)
        };
        self.active = self.sessions.iter().min_by_key(rank).map(|(pipe, _)| pipe);
        if let Some(pipe) = self.active.filter(|_| !planted("reserve-silent")) {
            // A later attempt than that of any pipe before: this is where it is.
            self.say_hello(cx, pipe);
            self.namespaces
                .iter_mut()
                .for_each(|ns| ns.owed.extend([Word::Past, Word::Report, Word::Refusals]));
            self.speak_all(cx);
        }
    }

    pub(super) fn schedule(&mut self, cx: &mut Cx<'_>) {
        let shortest = self.sessions.iter().map(|(_, session)| session.beacon).min();
        match shortest {
            Some(beacon) => cx.set_timer(TICK, cx.now() + beacon),
            None => cx.clear_timer(TICK),
        }
        self.ticking = shortest.is_some();
    }

    pub(super) fn tick(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now();
        let pipes: Vec<PipeId> = self.sessions.keys().collect();
        for pipe in pipes {
            let Some(session) = self.sessions.get(pipe) else { continue };
            if now.saturating_since(session.heard) > session.beacon * PATIENCE
                && !planted("dead-upstream-kept")
            {
                cx.close(pipe, Reason::Protocol("no word for three beacon times"));
                continue;
            }
            if session.owes_hello {
                self.pay(cx, pipe);
            }
            let Some(session) = self.sessions.get(pipe) else { continue };
            if session.taken > session.credited && !planted("credit-by-ack") && !planted("small-credit-kept")
            {
                self.say_credit(cx, pipe);
            }
        }
        let others = self.sessions.len() > 1;
        for at in 0..self.namespaces.len() {
            self.namespaces[at].tick(cx, others);
            self.settle(cx, at);
        }
        if let Some(pipe) = self.frozen(now)
            && !planted("frozen-upstream-kept")
        {
            self.leave(cx, pipe, "shows nothing new of the authority");
        }
    }
}
