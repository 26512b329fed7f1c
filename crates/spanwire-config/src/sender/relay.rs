//! The sender of a relay, and what relays below a sender tell it.
//!
//! The same cursors, transfers and table serve here; what differs is that HEADs go out as they came, and that
//! what the table says is told upward. Owns: REPORT and STALE on this side. Never: a HEAD that was not heard from
//! above, with the state that it names.

use spanwire::Message;
use spanwire::protocol::{Cx, DropReason, PipeId};

use super::Namespace;
use super::cursor::Standing;
use super::nodes::Turned;
use crate::faults::planted;
use crate::wire::{Frame, NodeReport, Report};
use crate::{Head, Id, RelayEvent};

/// Records of one REPORT: small enough that data has its turn.
const REPORT_RECORDS: usize = 128;

/// What is still to be told of the whole table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    First,
    Rest,
}

impl Namespace {
    /// What happened that a relay is to be told: at most one word about the table.
    pub fn relay_events(&mut self) -> Vec<RelayEvent> {
        let shown = std::mem::take(&mut self.shown).into_iter();
        let mut events: Vec<_> = shown.map(|(node, (head, _))| RelayEvent::Shown { node, head }).collect();
        if self.nodes.take_news() {
            events.push(RelayEvent::Changed);
        }
        events
    }

    /// Whether [`relay_events`](Self::relay_events) has something to tell.
    pub fn has_relay_events(&self) -> bool {
        !self.shown.is_empty() || self.nodes.has_news()
    }

    /// A later HEAD of a state that is served: with another audience it is for more nodes, or for all.
    pub(super) fn show_as(&mut self, cx: &mut Cx<'_>, head: Head) {
        let states = [&mut self.published, &mut self.canary].into_iter().flatten();
        let same = |served: &&mut Head| served.shown() == head.shown();
        let Some(served) = states.map(|(served, _)| served).find(same) else { return };
        if served.audience == head.audience {
            *served = head;
        } else {
            self.show_to(cx, head);
        }
    }

    /// All of the table is to be told upward, to a server that may know nothing of it, or too much.
    pub fn report_all(&mut self) {
        self.nodes.touch_all();
        self.telling = Some(Part::First);
    }

    /// What changed in the table and was not told upward: some of it.
    pub fn take_report(&mut self) -> Option<Report> {
        let mut nodes = self.nodes.take_changed(REPORT_RECORDS, self.settings.server);
        if planted("mark-made-anew") {
            nodes.iter_mut().for_each(|node| self.mark_anew(&mut node.said));
        }
        if nodes.is_empty() && self.telling.is_none() {
            return None;
        }
        let first = self.telling == Some(Part::First);
        let last = self.telling.is_some() && !self.nodes.has_changed();
        self.telling = self.telling.filter(|_| !last).map(|_| Part::Rest);
        Some(Report { namespace: self.settings.namespace.clone(), first, last, nodes })
    }

    /// It found no room above.
    pub fn put_back(&mut self, report: &Report) {
        self.nodes.put_back(&report.nodes);
        if report.first || report.last {
            self.telling = Some(if report.first { Part::First } else { Part::Rest });
        }
    }

    /// A node that a server above knows a higher boot of is told so, if it is here.
    pub(super) fn send_stale(&mut self, cx: &mut Cx<'_>, node: Id, boot: u64) {
        match self.nodes.route(node) {
            Some(pipe) if cx.put(pipe, Message::from(Frame::Stale(node, boot).encode())).is_ok() => {}
            // It is told again with the next report about it.
            _ => cx.count("stale-not-routed", 1),
        }
    }

    /// Processes that live on while a later start of the same node is here are told of it.
    pub(super) fn tell_earlier(&mut self, cx: &mut Cx<'_>) {
        for (pipe, node, boot) in self.nodes.take_earlier() {
            match cx.put(pipe, Message::from(Frame::Stale(node, boot).encode())) {
                Ok(_) => cx.count("earlier-lives", 1),
                // At the next beacon time.
                Err(_) => self.nodes.outlived(pipe, node, boot),
            }
        }
    }

    /// A relay tells of nodes below it.
    pub(super) fn on_report(&mut self, cx: &mut Cx<'_>, pipe: PipeId, report: Report) {
        let Some(cursor) = self.cursors.get_mut(pipe) else { return };
        let relay = cursor.node();
        if report.first {
            cursor.table = self.nodes.begin_table();
        }
        let table = cursor.table;
        for record in report.nodes {
            let id = record.status.node;
            // A relay speaks for itself by HELLO and ACK, and of nobody whose way does not begin with it.
            if record.status.path.first() != Some(&relay) || id == relay || id == self.settings.server {
                cx.dropped(Some(pipe), DropReason::Own("report-of-stranger"));
                continue;
            }
            self.on_record(cx, pipe, record, table);
        }
        if report.last {
            self.nodes.end_table(pipe, table, cx.now());
        }
        cx.wake(self.wait_key());
    }

    fn on_record(&mut self, cx: &mut Cx<'_>, pipe: PipeId, mut record: NodeReport, table: u64) {
        let id = record.status.node;
        let (cluster, namespace) = (self.settings.cluster, &self.settings.namespace);
        let head = record.head.take().filter(|head| head.cluster == cluster && head.namespace == *namespace);
        let placed =
            |head: &&Head| self.known(head.position).is_some_and(|known| known.base.chain == head.chain);
        record.head = head.as_ref().filter(|head| !placed(head)).cloned();
        let sifted = self.sift(&mut record.said, record.head.as_ref().map(Head::claim));
        record.status.conflict |= sifted.other;
        cx.count("claims-unproved", sifted.dropped);
        match self.nodes.reported(record, sifted.waits, (pipe, table), cx.now()) {
            Ok(()) => {}
            Err(Turned::Stale(boot)) => {
                // No room: the relay tells of it again after its next WELCOME.
                let _ = cx.put(pipe, Message::from(Frame::Stale(id, boot).encode()));
                return cx.count("stale-reports", 1);
            }
            Err(Turned::Full) => return cx.count("reports-too-many", 1),
        }
        self.tell_earlier(cx);
        // Who is right is for the authority to say.
        if let Some(head) = head.filter(|_| !self.passes) {
            self.show(cx, id, head, false);
        }
    }

    /// What a node showed stands in its record for as long as it cannot be placed.
    pub(super) fn note_unplaced(&mut self, pipe: PipeId) {
        let Some(cursor) = self.cursors.get(pipe) else { return };
        if self.passes {
            let unplaced = cursor.have.clone().filter(|_| cursor.standing == Standing::Unjudged);
            self.nodes.unplaced(cursor.node(), unplaced);
        }
    }
}
