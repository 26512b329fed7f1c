//! Whom to believe: HEADs of this cluster under a trusted key, and servers that show what is new.
//!
//! Owns: the check of signatures, and which server is left for a while. Never: a word about what a HEAD means; a
//! server left that is the only one, but for what it shows being no HEAD of this cluster.

use spanwire::protocol::{Cx, DropReason, PipeId, Reason, Time};

use super::namespace::Complaint;
use super::{NsReplica, PATIENCE, Replica, endpoint};
use crate::Head;
use crate::faults::planted;
use crate::wire::NamespaceStatus;

/// So many HEADs in a row that are not to be believed, and the server is left.
const IN_A_ROW: u32 = 3;
const FOREIGN: &str = "shows HEADs of another cluster, or that no trusted key signed";
/// How long a server that was left comes last, in times of *fresh*.
const WHILE: u32 = 3;
/// Most endpoints that are remembered as left.
const MOST: usize = 64;

impl NsReplica {
    /// Whether a HEAD is one of this namespace, signed by a trusted key if there are keys. Others are counted,
    /// and several in a row end the pipe in use, over which they came.
    pub(super) fn believes(&mut self, cx: &mut Cx<'_>, pipe: PipeId, head: &Head) -> bool {
        let Some(doubt) = self.doubt(head) else {
            self.doubted = 0;
            return true;
        };
        cx.dropped(Some(pipe), DropReason::Own(doubt));
        self.doubted += 1;
        if self.doubted >= IN_A_ROW && !planted("forgeries-tolerated") {
            self.complaint = Some(Complaint::Leave(FOREIGN));
        }
        false
    }

    /// What is wrong with a HEAD before anything that it says is looked at.
    fn doubt(&mut self, head: &Head) -> Option<&'static str> {
        if head.cluster != self.settings.cluster || head.namespace != self.settings.namespace {
            return Some("foreign-head");
        }
        let trust = &self.settings.trust;
        if trust.is_empty() || planted("signature-unchecked") {
            return None;
        }
        let known = |signed: &Head| match planted("signature-by-position") {
            true => signed.position == head.position,
            false => signed == head,
        };
        if self.signed.as_ref().is_some_and(known) {
            return None;
        }
        if !trust.knows(head.key_id) {
            return if planted("unknown-key-taken") { None } else { Some("unknown-key") };
        }
        if !trust.verify(head) {
            return Some("bad-signature");
        }
        self.signed = Some(head.clone());
        None
    }
}

impl Replica {
    /// A HEAD of a namespace that nobody asked for: as foreign as one of another cluster.
    pub(super) fn on_stranger(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        cx.dropped(Some(pipe), DropReason::Own("foreign-head"));
        let Some(session) = self.sessions.get_mut(pipe) else { return };
        session.strangers += 1;
        if session.strangers >= IN_A_ROW {
            self.leave(cx, pipe, FOREIGN);
        }
    }

    /// Closes a pipe because of what its server does: it comes last for a while.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>, pipe: PipeId, why: &'static str) {
        let now = cx.now();
        self.left.retain(|_, at| now.saturating_since(*at) <= self.settings.fresh * WHILE);
        if self.left.len() < MOST {
            self.left.insert(endpoint(cx, pipe), now);
        }
        cx.count("upstreams-left", 1);
        cx.close(pipe, Reason::Protocol(why));
    }

    pub(super) fn is_left(&self, now: Time, endpoint: u32) -> bool {
        let recent = |at: &Time| now.saturating_since(*at) <= self.settings.fresh * WHILE;
        self.left.get(&endpoint).is_some_and(recent)
    }

    /// The pipe in use, if it lives and yet nothing that it showed rose for as long as *fresh* lasts, while another
    /// server stands by: two relays that were cut off together could keep each other alive for ever. A namespace that the
    /// server does not serve, or in which two histories contradict each other, is no reason to take the others elsewhere.
    pub(super) fn frozen(&self, now: Time) -> Option<PipeId> {
        let active = self.active?;
        let session = self.sessions.get(active)?;
        let server = session.server?;
        let other = self.sessions.iter().any(|(_, other)| other.server.is_some_and(|other| other != server));
        // Who is slow to say anything has said nothing wrong.
        let patience = self.settings.fresh.max(session.beacon * PATIENCE);
        let still = |ns: &NsReplica| {
            now.saturating_since(ns.fresh.map_or(ns.since, |rose| rose.max(ns.since))) > patience
        };
        let serves = |ns: &&NsReplica| {
            ns.conflict.is_none() && session.status_of(ns.name()) == Some(NamespaceStatus::Known)
        };
        let mut served = self.namespaces.iter().filter(serves).peekable();
        let frozen = match served.peek() {
            Some(_) => served.any(still),
            None => self.namespaces.iter().all(still),
        };
        (other && frozen).then_some(active)
    }
}
