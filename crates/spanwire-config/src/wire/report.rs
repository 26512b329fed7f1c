//! What nodes say of revisions, and REPORT: what a relay tells of the nodes below it.
//!
//! Owns: the layout of a record. Never: more of a record than its bounds.

use super::{
    Ack, DecodeError, Level, MAX_LABELS, MAX_NAMESPACE, MAX_PATH, MAX_TEXT, Nack, NackCode, NodeKind, Reader,
    Result, Write, get_claim, put_claim, start,
};
use crate::{Claim, Head, Id, NodeStatus};

/// Most records of one REPORT.
pub const MAX_RECORDS: usize = 256;
/// Begins the whole table; ends it.
const FIRST: u8 = 1;
const LAST: u8 = 2;

impl Ack {
    /// The revision, and the history that it is of.
    pub fn claim(&self) -> Claim {
        Claim { position: self.position, mark: self.mark }
    }
}

impl Nack {
    /// The revision, and the history that it is of.
    pub fn claim(&self) -> Claim {
        Claim { position: self.position, mark: self.mark }
    }
}

/// What a node says of revisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// The highest that is on its disk.
    pub stored: Option<Claim>,
    /// The highest that its readers see.
    pub visible: Option<Claim>,
    /// The highest that its hook acted on.
    pub applied: Option<Claim>,
    /// What it refused or failed to act on, newest last; at most two.
    pub refused: Vec<(Claim, NackCode, String)>,
}

impl Said {
    /// The highest at this level.
    pub fn at(&self, level: Level) -> Option<Claim> {
        match level {
            Level::Stored => self.stored,
            Level::Visible => self.visible,
            Level::Applied => self.applied,
        }
    }

    pub(crate) fn slot(&mut self, level: Level) -> &mut Option<Claim> {
        match level {
            Level::Stored => &mut self.stored,
            Level::Visible => &mut self.visible,
            Level::Applied => &mut self.applied,
        }
    }
}

/// REPORT, up, from a relay: nodes below it, each whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The namespace.
    pub namespace: String,
    /// The whole table begins.
    pub first: bool,
    /// The whole table ends: who is below this relay and was not in it has left.
    pub last: bool,
    /// At most [`MAX_RECORDS`].
    pub nodes: Vec<NodeReport>,
}

/// One record of a REPORT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeReport {
    /// Who and where it is. `connected`: it is here; `path`: from the relay that speaks to the one that the node uses. What it
    /// reached and refused is in `said` alone.
    pub status: NodeStatus,
    /// What it said, as it said it.
    pub said: Said,
    /// Of its last HELLO that counted: orders what different relays say of where it is.
    pub attempt: u32,
    /// What it showed, where that could not be placed: it is to be judged.
    pub head: Option<Head>,
}

fn put_at(out: &mut Vec<u8>, at: Option<&Claim>) {
    out.u8(u8::from(at.is_some()));
    at.into_iter().for_each(|at| put_claim(out, at));
}

fn get_at(r: &mut Reader<'_>) -> Result<Option<Claim>> {
    r.bool()?.then(|| get_claim(r)).transpose()
}

impl NodeReport {
    fn encode(&self, out: &mut Vec<u8>) {
        let NodeStatus { node, name, labels, boot, kind, connected, path, conflict, .. } = &self.status;
        let Said { stored, visible, applied, refused } = &self.said;
        out.raw(&node.0);
        out.u64(*boot);
        out.u32(self.attempt);
        out.u8(*kind as u8);
        out.u8(u8::from(*connected));
        out.text(name, 256);
        let labels = &labels[..labels.len().min(MAX_LABELS)];
        out.u8(labels.len() as u8);
        for (name, value) in labels {
            out.text(name, 96);
            out.text(value, 96);
        }
        let path = &path[..path.len().min(MAX_PATH)];
        out.u8(path.len() as u8);
        path.iter().for_each(|server| out.raw(&server.0));
        for at in [stored, visible, applied] {
            put_at(out, at.as_ref());
        }
        out.u8(u8::from(*conflict));
        let refused = &refused[..refused.len().min(2)];
        out.u8(refused.len() as u8);
        for (at, code, text) in refused {
            put_claim(out, at);
            out.u8(*code as u8);
            out.text(text, MAX_TEXT);
        }
        out.u8(u8::from(self.head.is_some()));
        self.head.iter().for_each(|head| head.encode(out));
    }

    fn decode(r: &mut Reader<'_>) -> Result<NodeReport> {
        let mut status = NodeStatus::new(Id(r.array()?), r.u64()?);
        let attempt = r.u32()?;
        status.kind = NodeKind::decode(r)?;
        status.connected = r.bool()?;
        status.name = r.string(256, "name")?;
        let len = usize::from(r.u8()?);
        status.labels =
            r.list(len, MAX_LABELS, "labels", |r| Ok((r.string(96, "label")?, r.string(96, "label")?)))?;
        let len = usize::from(r.u8()?);
        status.path = r.list(len, MAX_PATH, "path", |r| r.array().map(Id))?;
        let (stored, visible, applied) = (get_at(r)?, get_at(r)?, get_at(r)?);
        status.conflict = r.bool()?;
        let len = usize::from(r.u8()?);
        let refused = r.list(len, 2, "refused", |r| {
            Ok((get_claim(r)?, NackCode::decode(r)?, r.string(MAX_TEXT, "text")?))
        })?;
        let said = Said { stored, visible, applied, refused };
        let head = r.bool()?.then(|| Head::decode(r)).transpose()?;
        Ok(NodeReport { status, said, attempt, head })
    }
}

impl Report {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = start(11);
        out.text(&self.namespace, MAX_NAMESPACE);
        out.u8((u8::from(self.first) * FIRST) | (u8::from(self.last) * LAST));
        let nodes = &self.nodes[..self.nodes.len().min(MAX_RECORDS)];
        out.u16(nodes.len() as u16);
        nodes.iter().for_each(|node| node.encode(&mut out));
        out
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Report> {
        let namespace = r.string(MAX_NAMESPACE, "namespace")?;
        let flags = r.u8()?;
        if flags & !(FIRST | LAST) != 0 {
            return Err(DecodeError::Value("table"));
        }
        let len = usize::from(r.u16()?);
        let nodes = r.list(len, MAX_RECORDS, "records", NodeReport::decode)?;
        Ok(Report { namespace, first: flags & FIRST != 0, last: flags & LAST != 0, nodes })
    }
}
