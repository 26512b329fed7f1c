//! Words on a pipe: HELLO and its answer, wants, beacons; what is said of one namespace goes there.
//!
//! Owns: what WELCOME and BEACON say, whatever the number of namespaces. Never: a cursor.

use std::collections::BTreeMap;
use std::sync::Arc;

use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId, Reason};

use super::target::{Shown, Which};
use super::{Distributor, Namespace};
use crate::Head;
use crate::faults::planted;
use crate::wire::{
    Frame, Goodbye, GoodbyeCode, Hello, MAX_WANTS, NamespaceStatus, NodeKind, SLICE, Slice, VERSION, Want,
    WantReason, Welcome,
};

impl Distributor {
    /// What is known of each namespace that this pipe asked for: first of those that are here.
    pub(super) fn welcome(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let Some(session) = self.sessions.get_mut(pipe).filter(|session| session.hello.is_some()) else {
            return;
        };
        let unknown = session.unknown.iter().map(|name| (name.clone(), NamespaceStatus::Unknown));
        let wanted = self.namespaces.iter().filter(|namespace| namespace.is_wanted(pipe));
        let known = wanted.map(|namespace| (namespace.name().to_owned(), namespace.told()));
        let welcome = Frame::Welcome(Welcome {
            server: self.settings.server,
            path: self.path.clone(),
            beacon_ms: u32::try_from(self.settings.beacon.as_millis()).unwrap_or(u32::MAX),
            window: self.settings.window,
            namespaces: known.chain(unknown).take(MAX_WANTS).collect(),
        });
        session.owes_welcome = cx.put(pipe, Message::from(welcome.encode())).is_err();
    }

    /// WELCOME again, where it says something else now.
    pub(super) fn welcome_anew(&mut self, cx: &mut Cx<'_>) {
        for at in 0..self.namespaces.len() {
            if std::mem::take(&mut self.namespaces[at].told_anew) {
                let pipes: Vec<PipeId> = self.namespaces[at].cursors.keys().collect();
                pipes.into_iter().for_each(|pipe| self.welcome(cx, pipe));
            }
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

    /// `false`: the node is turned away.
    fn on_hello(&mut self, cx: &mut Cx<'_>, pipe: PipeId, mut hello: Hello) -> bool {
        let turned = if !(hello.proto_min..=hello.proto_max).contains(&VERSION) {
            Some((GoodbyeCode::Version, 0, "no common version"))
        } else if hello.cluster != self.settings.cluster {
            Some((GoodbyeCode::Cluster, 0, "node of another cluster"))
        } else {
            self.later_boot(&hello).map(|boot| (GoodbyeCode::StaleBoot, boot, "boot below one known"))
        };
        if let Some((code, detail, why)) = turned {
            self.goodbye(cx, pipe, code, detail, why);
            return false;
        }
        let Some(session) = self.sessions.get_mut(pipe) else { return false };
        let old = session.hello.as_ref().map(|old| old.node).filter(|old| *old != hello.node);
        let wants = std::mem::take(&mut hello.wants);
        let hello = Arc::new(hello);
        session.hello = Some(hello.clone());
        session.window = u64::from(hello.window.min(self.settings.window));
        session.chunk = SLICE.min(hello.max_chunk as usize);
        let said = (&hello, session.window);
        let room = self.namespaces.iter_mut().all(|namespace| {
            let wanted = wants.iter().any(|want| want.namespace == namespace.name());
            namespace.said_hello(cx, pipe, said, wanted, old)
        });
        self.namespaces.iter_mut().for_each(|namespace| namespace.tell_earlier(cx));
        if !room {
            self.goodbye(cx, pipe, GoodbyeCode::Limits, 0, "too many nodes");
            return false;
        }
        if !self.on_wants(cx, pipe, WantReason::New, wants) {
            return false;
        }
        self.welcome(cx, pipe);
        self.beacon(cx, pipe);
        true
    }

    /// A boot of this node that is above the one in its HELLO.
    fn later_boot(&self, hello: &Hello) -> Option<u64> {
        let known = self.namespaces.iter().filter_map(|namespace| namespace.nodes.boot(hello.node));
        known.max().filter(|known| *known > hello.boot && !planted("stale-boot-taken"))
    }

    /// `false`: there is no room for the node.
    fn on_wants(&mut self, cx: &mut Cx<'_>, pipe: PipeId, reason: WantReason, wants: Vec<Want>) -> bool {
        for want in wants {
            let at = self.index_of(&want.namespace);
            let Some(session) = self.sessions.get_mut(pipe) else { return false };
            let (Some(at), Some(hello)) = (at, &session.hello) else {
                if session.unknown.len() < MAX_WANTS && !session.unknown.contains(&want.namespace) {
                    session.unknown.push(want.namespace);
                }
                continue;
            };
            let namespace = &mut self.namespaces[at];
            if !namespace.on_want(cx, pipe, (hello, session.window), reason, want) {
                self.goodbye(cx, pipe, GoodbyeCode::Limits, 0, "too many nodes");
                return false;
            }
        }
        true
    }

    /// What a pipe asked for, by number.
    fn asked_for(&self, pipe: PipeId) -> (usize, usize) {
        let wanted = self.namespaces.iter().filter(|namespace| namespace.is_wanted(pipe)).count();
        (wanted, self.sessions.get(pipe).map_or(0, |session| session.unknown.len()))
    }

    /// One message of a node. `false`: it closed the pipe.
    pub(super) fn on_frame(&mut self, cx: &mut Cx<'_>, pipe: PipeId, frame: Frame) -> bool {
        let Some(session) = self.sessions.get_mut(pipe) else { return false };
        let Some(hello) = session.hello.clone() else {
            return match frame {
                Frame::Hello(hello) => self.on_hello(cx, pipe, hello),
                other => self.on_other(cx, pipe, other),
            };
        };
        match frame {
            // Once more where a node raised its boot, or where a pipe in reserve becomes the one in use.
            Frame::Hello(hello) => return self.on_hello(cx, pipe, hello),
            Frame::Want(reason, wants) => {
                let before = self.asked_for(pipe);
                if !self.on_wants(cx, pipe, reason, wants) {
                    return false;
                }
                if self.asked_for(pipe) != before {
                    self.welcome(cx, pipe);
                }
                self.beacon(cx, pipe);
            }
            Frame::Slice(slice) => return self.on_slice(cx, pipe, &slice),
            Frame::Credit(taken) if taken <= session.sent_bytes => session.take(taken, cx.now()),
            Frame::Report(_) if hello.kind != NodeKind::Relay => {
                cx.dropped(Some(pipe), DropReason::Own("report-of-no-relay"));
            }
            Frame::Ack(_) | Frame::Nack(_) | Frame::Report(_) => self.on_word(cx, pipe, &hello, frame),
            other => return self.on_other(cx, pipe, other),
        }
        true
    }

    /// What is said of one namespace.
    fn on_word(&mut self, cx: &mut Cx<'_>, pipe: PipeId, hello: &Arc<Hello>, frame: Frame) {
        let (of, unknown) = match &frame {
            Frame::Ack(ack) => (&ack.namespace, "ack-of-unknown"),
            Frame::Nack(nack) => (&nack.namespace, "nack-of-unknown"),
            Frame::Report(report) => (&report.namespace, "report-of-unknown"),
            _ => return,
        };
        let window = self.sessions.get(pipe).map_or(0, |session| session.window);
        let Some(at) = self.index_of(of) else { return cx.dropped(Some(pipe), DropReason::Own(unknown)) };
        let namespace = &mut self.namespaces[if planted("word-to-the-first") { 0 } else { at }];
        namespace.enter(pipe, hello, window);
        match frame {
            Frame::Ack(ack) => namespace.on_ack(cx, pipe, ack),
            Frame::Nack(nack) => namespace.on_nack(cx, pipe, nack),
            Frame::Report(report) => namespace.on_report(cx, pipe, *report),
            _ => {}
        }
    }

    /// What has a meaning only where it closes the pipe.
    fn on_other(&mut self, cx: &mut Cx<'_>, pipe: PipeId, frame: Frame) -> bool {
        match frame {
            Frame::Goodbye(_) => cx.close(pipe, Reason::Peer),
            Frame::Unknown { optional: true, .. } => cx.dropped(Some(pipe), DropReason::Unexpected),
            Frame::Unknown { .. } => {
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

    /// A slice from a node. `false`: nobody asked for it, and the pipe is closed.
    fn on_slice(&mut self, cx: &mut Cx<'_>, pipe: PipeId, slice: &Slice) -> bool {
        let at = self.index_of(&slice.head.namespace).filter(|at| self.namespaces[*at].has_asked(pipe));
        let (Some(at), Some(session)) = (at, self.sessions.get_mut(pipe)) else {
            cx.dropped(Some(pipe), DropReason::Malformed);
            cx.close(pipe, Reason::Malformed);
            return false;
        };
        session.taken_up += slice.bytes.len() as u64;
        // Cumulative: one that finds no room is made good by the next, or at the next beacon time.
        session.owes_credit = cx.put(pipe, Message::from(Frame::Credit(session.taken_up).encode())).is_err();
        self.namespaces[at].on_offered(cx, pipe, slice);
        true
    }

    /// The current HEADs of all that this pipe wants, each with a `seq` of its own.
    fn beacon(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        let mut heads = Vec::new();
        let mut wanted = false;
        for namespace in &mut self.namespaces {
            if let Some(cursor) = namespace.cursors.get(pipe).filter(|cursor| cursor.wants) {
                wanted = true;
                heads.extend(namespace.beacon_heads(namespace.shown_to(cursor)));
            }
        }
        if wanted {
            // A full queue is a sign of life by itself; the next beacon comes.
            let _ = cx.put(pipe, Message::from(Frame::Beacon(heads).encode()));
        }
    }

    pub(super) fn tick(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now();
        // A node may leave little credit unsaid until its beacon time.
        let stall = self.settings.stall.max(self.settings.beacon * 2);
        // Before a beacon takes the room.
        self.namespaces.iter_mut().for_each(|namespace| namespace.tell_earlier(cx));
        let mut beacons = Beacons::new(self);
        for (pipe, session) in self.sessions.iter_mut() {
            if session.owes_credit {
                let credit = Frame::Credit(session.taken_up).encode();
                session.owes_credit = cx.put(pipe, Message::from(credit)).is_err();
            }
            if session.hello.is_none() {
                if now.saturating_since(session.opened) >= self.settings.hello
                    && !planted("hello-awaited-for-ever")
                {
                    cx.close(pipe, Reason::HandshakeTimeout);
                }
            } else if session.stalled(now, stall) && !planted("stopped-readers-kept") {
                cx.close(pipe, Reason::Slow);
            } else if cx.unsent(pipe).0 == 0 {
                // Never more than one is pending: what is still queued says "alive" as well.
                let _ = cx.put(pipe, beacons.of(&self.namespaces, pipe));
            }
        }
        self.tell_places(cx);
        self.namespaces.iter_mut().for_each(|namespace| namespace.tick(cx));
    }
}

/// The beacons of one beacon time: each is encoded once for all pipes that are shown the same.
struct Beacons {
    heads: Vec<[Option<Head>; 2]>,
    made: BTreeMap<Vec<u8>, Message>,
    /// What the pipe in hand is shown of each namespace, a bit for each HEAD.
    shown: Vec<u8>,
}

impl Beacons {
    fn new(sender: &mut Distributor) -> Self {
        let heads = sender.namespaces.iter_mut();
        let heads =
            heads.map(|namespace| [Which::All, Which::Canary].map(|which| namespace.beacon_head(which)));
        Beacons { heads: heads.collect(), made: BTreeMap::new(), shown: Vec::new() }
    }

    fn of(&mut self, namespaces: &[Namespace], pipe: PipeId) -> Message {
        self.shown.clear();
        let most = if planted("beacon-of-the-first") { 1 } else { namespaces.len() };
        self.shown.extend(namespaces.iter().take(most).map(|namespace| {
            match namespace.cursors.get(pipe).filter(|cursor| cursor.wants) {
                None => 0,
                Some(cursor) => match namespace.shown_to(cursor) {
                    Shown::One(which) => 1 << which as u8,
                    Shown::Both => 3,
                },
            }
        }));
        if let Some(made) = self.made.get(&self.shown) {
            return made.clone();
        }
        let each = self.heads.iter().zip(&self.shown);
        let heads = each.flat_map(|(heads, shown)| {
            heads
                .iter()
                .enumerate()
                .filter(move |(which, _)| shown >> which & 1 != 0)
                .filter_map(|(_, head)| head.clone())
        });
        let message = Message::from(Frame::Beacon(heads.collect()).encode());
        self.made.insert(self.shown.clone(), message.clone());
        message
    }
}
