//! What nodes say: who they are, what they have, want, took, reached and refuse.
//!
//! Owns: how each word moves a cursor. Never: a verdict on what the log does not know.

use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId, Reason};

use super::nodes::Turned;
use super::session::Standing;
use super::{Distributor, REPORTS, SHOWN};
use crate::faults::planted;
use crate::wire::{
    Ack, Frame, Goodbye, GoodbyeCode, Hello, MAX_WANTS, Nack, NackCode, NamespaceStatus, SLICE, VERSION,
    Want, WantReason, Welcome,
};
use crate::{Head, Id, Position, Shown};

impl Distributor {
    /// Compares what a node showed with the log, and sets its cursor.
    pub(super) fn reassess(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        let (cluster, namespace) = (self.settings.cluster, &self.settings.namespace);
        session.have.take_if(|have| have.cluster != cluster || have.namespace != *namespace);
        let (Some(node), Some(have)) = (session.node, session.have.clone()) else {
            return self.stand(cx, pipe, Standing::Clear, None);
        };
        let known = self.known(have.position).filter(|known| known.base.chain == have.chain);
        let standing = if known.is_some() { Standing::Clear } else { Standing::Unjudged };
        self.stand(cx, pipe, standing, known);
        self.note_unplaced(pipe);
        self.show(cx, node, have, standing == Standing::Unjudged);
    }

    /// The cursor of a pipe starts again at `shown`.
    pub(super) fn stand(&mut self, cx: &mut Cx<'_>, pipe: PipeId, standing: Standing, shown: Option<Shown>) {
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        let before = std::mem::replace(&mut session.standing, standing);
        let unfinished = session.sending.take().filter(|_| planted("want-keeps-transfer"));
        session.restart(shown);
        session.sending = unfinished;
        if standing == Standing::Conflict && before != standing {
            cx.count("conflicts", 1);
        }
        // Until it is judged, it stands as it stood.
        if let (Some(node), true) = (session.node, standing != Standing::Unjudged) {
            self.nodes.conflict(node, standing == Standing::Conflict);
            for ack in std::mem::take(&mut session.acks) {
                self.on_ack(cx, pipe, ack);
            }
        }
        self.release(pipe);
        cx.wake(REPORTS);
    }

    /// Notes what a node showed, for who decides.
    pub(super) fn show(&mut self, cx: &mut Cx<'_>, node: Id, head: Head, waits: bool) {
        match self.shown.get(&node) {
            Some((_, true)) => return,
            None if self.shown.len() >= self.settings.nodes => return cx.count("shown-too-many", 1),
            _ => {}
        }
        self.shown.insert(node, (head, waits));
        cx.wake(SHOWN);
        if self.passes {
            // A relay waits for all news from below in one place.
            cx.wake(REPORTS);
        }
    }

    pub(super) fn welcome(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(session) = self.sessions.get(pipe) else { return };
        if session.node.is_none() {
            return;
        }
        let known = match self.published {
            Some(_) => NamespaceStatus::Known,
            // A relay gets it from above; an authority waits for its operator.
            None if self.passes => NamespaceStatus::Pending,
            None => NamespaceStatus::Vacant,
        };
        let mut namespaces: Vec<_> =
            session.unknown.iter().map(|name| (name.clone(), NamespaceStatus::Unknown)).collect();
        if session.wants {
            namespaces.push((self.settings.namespace.clone(), known));
        }
        let welcome = Frame::Welcome(Welcome {
            server: self.settings.server,
            path: self.path.clone(),
            beacon_ms: u32::try_from(self.settings.beacon.as_millis()).unwrap_or(u32::MAX),
            window: self.settings.window,
            namespaces,
        });
        let owed = cx.put(pipe, Message::from(welcome.encode())).is_err();
        if let Some(session) = self.sessions.get_mut(pipe) {
            session.owes_welcome = owed;
        }
    }

    pub(super) fn goodbye(
        &mut self,
        cx: &mut Cx<'_>,
        pipe: PipeId,
        code: GoodbyeCode,
        detail: u64,
        why: &'static str,
    ) {
        let goodbye = Goodbye { code, detail, retry_after_ms: 0, alternates: Vec::new() };
        // If there is no room, the close says enough.
        let _ = cx.put(pipe, Message::from(Frame::Goodbye(goodbye).encode()));
        cx.finish(pipe, Reason::Protocol(why));
    }

    pub(super) fn on_hello(&mut self, cx: &mut Cx<'_>, pipe: PipeId, hello: Hello) {
        if !(hello.proto_min..=hello.proto_max).contains(&VERSION) {
            return self.goodbye(cx, pipe, GoodbyeCode::Version, 0, "no common version");
        }
        if hello.cluster != self.settings.cluster {
            return self.goodbye(cx, pipe, GoodbyeCode::Cluster, 0, "node of another cluster");
        }
        match self.nodes.enter(&hello, pipe, cx.now()) {
            Ok(()) => {}
            Err(Turned::Stale(boot)) => {
                return self.goodbye(cx, pipe, GoodbyeCode::StaleBoot, boot, "boot below one known");
            }
            Err(Turned::Full) => {
                return self.goodbye(cx, pipe, GoodbyeCode::Limits, 0, "too many nodes");
            }
        }
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        session.node = Some(hello.node);
        session.boot = hello.boot;
        session.kind = hello.kind;
        session.labels = hello.labels;
        session.window = u64::from(hello.window.min(self.settings.window));
        session.chunk = SLICE.min(hello.max_chunk as usize);
        self.on_wants(cx, pipe, WantReason::New, hello.wants);
        self.welcome(cx, pipe);
        self.beacon_now(cx, pipe);
        cx.wake(REPORTS);
    }

    pub(super) fn on_wants(&mut self, cx: &mut Cx<'_>, pipe: PipeId, reason: WantReason, wants: Vec<Want>) {
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        for want in wants {
            if want.namespace != self.settings.namespace {
                if session.unknown.len() < MAX_WANTS && !session.unknown.contains(&want.namespace) {
                    session.unknown.push(want.namespace);
                }
                continue;
            }
            session.wants = true;
            session.refused = match reason {
                WantReason::Retry => Vec::new(),
                _ => want.refused.iter().map(|(position, _)| *position).collect(),
            };
            session.have = want.have.into_iter().next();
            session.force = reason == WantReason::Digest;
            session.stays_at = None;
            if let Some(node) = session.node {
                self.nodes.moved(node, session.boot, pipe);
            }
            self.reassess(cx, pipe);
            return;
        }
    }

    pub(super) fn on_nack(&mut self, cx: &mut Cx<'_>, pipe: PipeId, nack: Nack) {
        if nack.namespace != self.settings.namespace {
            return;
        }
        let stays_at = self.known(nack.stays_at);
        let newer = self.head().is_some_and(|h| h.position.epoch.number > nack.position.epoch.number);
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        if let Some(node) = session.node {
            self.nodes.refused(node, session.boot, &nack);
        }
        match nack.code {
            NackCode::Hook => {}
            // What is served is of a higher epoch: it ends the conflict, so the node must get it.
            NackCode::Conflict if newer => {
                if let Some(node) = session.node {
                    self.nodes.conflict(node, session.standing == Standing::Conflict);
                }
            }
            NackCode::Conflict => self.stand(cx, pipe, Standing::Conflict, None),
            // Said again on a new pipe: HELLO or WANT named it, so the cursor is right already.
            _ if session.refused.contains(&nack.position) => {}
            _ => {
                session.refuse(nack.position);
                let stays = session.acked.filter(|a| a.base.position == nack.stays_at).or(stays_at);
                let stays = if planted("nack-keeps-cursor") { session.sent } else { stays };
                session.restart(stays);
                session.stays_at = (session.standing == Standing::Unjudged).then_some(nack.stays_at);
                session.floor = (nack.stays_at != Position::default()).then_some(nack.stays_at);
                self.release(pipe);
            }
        }
        cx.wake(REPORTS);
    }

    pub(super) fn on_ack(&mut self, cx: &mut Cx<'_>, pipe: PipeId, ack: Ack) {
        let possible = self.head().is_some_and(|head| ack.position <= head.position);
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        match session.standing {
            // What is named is of another history.
            Standing::Conflict if !planted("conflict-acks-count") => {
                return cx.dropped(Some(pipe), DropReason::Own("ack-in-conflict"));
            }
            // It tells of what is shown, or is about to be: the one stands or falls with the other.
            standing if standing == Standing::Unjudged || !session.wants => {
                if session.keep(ack) {
                    cx.dropped(Some(pipe), DropReason::Own("ack-too-many"));
                }
                return;
            }
            _ => {}
        }
        // Who showed nothing has what was sent to it, and no more.
        let held = session.floor.is_some() || session.flies(ack.position) || planted("conflict-acks-count");
        if ack.namespace != self.settings.namespace || !possible || !held {
            return cx.dropped(Some(pipe), DropReason::Own("ack-of-unknown"));
        }
        session.acknowledge(ack.position);
        if let Some(node) = session.node {
            self.nodes.acknowledged(node, session.boot, &ack);
        }
        cx.wake(REPORTS);
    }

    /// One message of a node. `false`: it closed the pipe.
    pub(super) fn on_frame(&mut self, cx: &mut Cx<'_>, pipe: PipeId, frame: Frame) -> bool {
        let Some(session) = self.sessions.get_mut(pipe) else { return false };
        match (frame, session.node.is_some()) {
            // Once more where a node raised its boot, or where a pipe in reserve becomes the one in use.
            (Frame::Hello(hello), _) => {
                if let Some(old) = session.node.filter(|old| *old != hello.node) {
                    self.nodes.left(old, pipe, cx.now());
                }
                self.on_hello(cx, pipe, hello);
            }
            (Frame::Report(report), true) => self.on_report(cx, pipe, *report),
            (Frame::Want(reason, wants), true) => {
                let before = (session.wants, session.unknown.len());
                self.on_wants(cx, pipe, reason, wants);
                let after = self.sessions.get(pipe).map(|session| (session.wants, session.unknown.len()));
                if after != Some(before) {
                    self.welcome(cx, pipe);
                }
                self.beacon_now(cx, pipe);
            }
            (Frame::Slice(slice), true) => return self.on_offered(cx, pipe, &slice),
            (Frame::Credit(taken), true) if taken <= session.sent_bytes => session.take(taken, cx.now()),
            (Frame::Ack(ack), true) => self.on_ack(cx, pipe, ack),
            (Frame::Nack(nack), true) => self.on_nack(cx, pipe, nack),
            (Frame::Goodbye(_), _) => cx.close(pipe, Reason::Peer),
            (Frame::Unknown { optional: true, .. }, _) => cx.dropped(Some(pipe), DropReason::Unexpected),
            (Frame::Unknown { .. }, _) => {
                self.goodbye(cx, pipe, GoodbyeCode::Version, 0, "message of unknown type");
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
}
