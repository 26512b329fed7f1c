//! What an authority answers.
//!
//! Owns: the layout of replies, and how a page of a list is bounded. Never: a decision.

use bytes::Bytes;

use super::{
    DecodeError, Holding, InvalidCode, MAX_COMMITS, MAX_HOLDINGS, MAX_LISTED, MAX_NODES, MAX_REFUSED,
    MAX_TEXT, NackCode, Reader, Result, Writable, Write, begin, decode_state, encode_state, get_labels,
    get_list, get_named, get_option, get_place, get_position, get_words, put_labels, put_list, put_named,
    put_option, put_place, put_position, put_words, start,
};
use crate::rollout::Plan;
use crate::wire::NodeKind;
use crate::{Digest, Id, Key, Limits, Place, Position, State};

/// The newest revision, as it is told to clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tip {
    /// Where it is; zeros before the first.
    pub position: Position,
    /// Of its content.
    pub digest: Digest,
    /// Number of keys.
    pub keys: u32,
    /// Bytes in keys and values.
    pub bytes: u64,
}

/// ENTRIES, type 69: a page of a revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entries {
    /// The revision, and what its whole content is.
    pub of: Tip,
    /// More follows above the last key.
    pub more: bool,
    /// The entries.
    pub entries: State,
}

/// A node in a list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Named {
    /// The node; zeros if no node of this name is known.
    pub node: Id,
    /// Its name.
    pub name: String,
}

/// A node that refuses, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusing {
    /// The node.
    pub node: Named,
    /// What it refused.
    pub position: Place,
    /// Why.
    pub code: NackCode,
    /// In its words.
    pub text: String,
}

/// WAITED, type 70: each selected node in exactly one list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waited {
    /// They reached it.
    pub ok: Vec<Named>,
    /// They refused it, or what contains it, or hold another history.
    pub refused: Vec<Refusing>,
    /// They are here, and have not reached it.
    pub behind: Vec<Named>,
    /// They are away, or no node of this name is known.
    pub silent: Vec<Named>,
}

/// What an authority knows of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeLine {
    /// The node.
    pub node: Named,
    /// The labels that it gave.
    pub labels: Vec<(String, String)>,
    /// A relay serves others, and is in no cohort and no wait.
    pub kind: NodeKind,
    /// It is here.
    pub connected: bool,
    /// It holds another history.
    pub conflict: bool,
    /// Highest position on its disk; (0, 0) for none.
    pub stored: Place,
    /// Highest position that its readers see.
    pub visible: Place,
    /// Highest position that its hook acted on.
    pub applied: Place,
    /// What it refused, newest last.
    pub refused: Vec<(Place, NackCode, String)>,
}

/// The rollout that is open.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RolloutLine {
    /// Its revision: the newest.
    pub at: Place,
    /// What everybody else has.
    pub for_all: Place,
    /// Its plan.
    pub plan: Plan,
    /// The stage that it is in, from 0.
    pub stage: u8,
    /// Nothing goes on by itself.
    pub paused: bool,
    /// Nodes of the cohort: who was here when the stage began, and who came since.
    pub nodes: u32,
    /// Of these, who is here and has applied it.
    pub applied: u32,
    /// Of these, who refused it or could not act on it.
    pub refused: u32,
    /// How long the stage lasts, in milliseconds; since the authority's start, if that was later.
    pub lasts_ms: u32,
}

/// NODES, type 73: the authority, and a page of its nodes in the order of their ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nodes {
    /// The newest revision.
    pub tip: Tip,
    /// Whether it takes commits.
    pub writable: Writable,
    /// Why not, and what to do.
    pub text: String,
    /// The oldest position that READ and REVERT reach.
    pub oldest: Place,
    /// Bounds of the namespace.
    pub limits: Limits,
    /// The rollout that is open.
    pub rollout: Option<RolloutLine>,
    /// More follow above the last id.
    pub more: bool,
    /// The nodes.
    pub nodes: Vec<NodeLine>,
}

/// One commit of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitLine {
    /// Where it is.
    pub at: Place,
    /// Who asked for it.
    pub request: Id,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// Milliseconds since 1970 by the authority's clock; for people.
    pub stamp: u64,
    /// Of the content after it.
    pub digest: Digest,
    /// How many keys it put.
    pub puts: u32,
    /// How many keys it deleted.
    pub deletes: u32,
    /// The first of those keys, and whether it was put.
    pub keys: Vec<(Key, bool)>,
}

/// COMMITS, type 74: a page of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commits {
    /// The newest position.
    pub head: Place,
    /// More are kept beyond the last.
    pub more: bool,
    /// The commits, in the order asked for.
    pub commits: Vec<CommitLine>,
}

/// A reply.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Reply {
    /// Type 64: it is durable.
    Committed {
        /// Where.
        at: Place,
        /// Of the content there.
        digest: Digest,
        /// An earlier copy of the request did it.
        replay: bool,
    },
    /// Type 65: the newest position is another than expected.
    Conflict(Place),
    /// Type 66: it will never succeed as it is.
    Invalid {
        /// Why.
        code: InvalidCode,
        /// The oldest kept, for [`InvalidCode::Compacted`]; else (0, 0).
        oldest: Place,
        /// In words.
        text: String,
    },
    /// Type 67: not now.
    Busy {
        /// Try again after so many milliseconds.
        after_ms: u32,
        /// The rollout of this is open, and has to end first.
        rollout: Option<Place>,
    },
    /// Type 68: nothing is written here now.
    ReadOnly {
        /// Why.
        why: Writable,
        /// In words, and what to do.
        text: String,
    },
    /// Type 69.
    Entries(Box<Entries>),
    /// Type 70.
    Waited(Waited),
    /// Type 71: the rollout of what was waited for was aborted.
    Aborted,
    /// Type 72: the epoch changed, to this position.
    Lost(Place),
    /// Type 73.
    Nodes(Box<Nodes>),
    /// Type 74.
    Commits(Commits),
    /// Type 80: what nodes hold, the highest first.
    Holdings(Vec<Holding>),
    /// A type that this side does not know.
    Unknown(u8),
}

impl RolloutLine {
    fn encode(&self, out: &mut Vec<u8>) {
        put_place(out, self.at);
        put_place(out, self.for_all);
        self.plan.encode(out);
        out.u8(self.stage);
        out.u8(u8::from(self.paused));
        [self.nodes, self.applied, self.refused, self.lasts_ms].into_iter().for_each(|n| out.u32(n));
    }

    fn decode(r: &mut Reader<'_>) -> Result<RolloutLine> {
        Ok(RolloutLine {
            at: get_place(r)?,
            for_all: get_place(r)?,
            plan: Plan::decode(r)?,
            stage: r.u8()?,
            paused: r.bool()?,
            nodes: r.u32()?,
            applied: r.u32()?,
            refused: r.u32()?,
            lasts_ms: r.u32()?,
        })
    }
}

impl Tip {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, &self.position);
        out.raw(&self.digest.0);
        out.u32(self.keys);
        out.u64(self.bytes);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Tip> {
        Ok(Tip { position: get_position(r)?, digest: Digest(r.array()?), keys: r.u32()?, bytes: r.u64()? })
    }
}

impl Waited {
    fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, &self.ok, MAX_NODES, put_named);
        put_list(out, &self.refused, MAX_NODES, |out, refusing| {
            put_named(out, &refusing.node);
            put_refusal(out, refusing.position, refusing.code, &refusing.text);
        });
        put_list(out, &self.behind, MAX_NODES, put_named);
        put_list(out, &self.silent, MAX_NODES, put_named);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Waited> {
        Ok(Waited {
            ok: get_list(r, MAX_NODES, "nodes", get_named)?,
            refused: get_list(r, MAX_NODES, "nodes", |r| {
                let node = get_named(r)?;
                let (position, code, text) = get_refusal(r)?;
                Ok(Refusing { node, position, code, text })
            })?,
            behind: get_list(r, MAX_NODES, "nodes", get_named)?,
            silent: get_list(r, MAX_NODES, "nodes", get_named)?,
        })
    }
}

fn put_refusal(out: &mut Vec<u8>, position: Place, code: NackCode, text: &str) {
    put_place(out, position);
    out.u8(code as u8);
    out.text(text, MAX_TEXT);
}

fn get_refusal(r: &mut Reader<'_>) -> Result<(Place, NackCode, String)> {
    Ok((get_place(r)?, NackCode::decode(r)?, r.string(MAX_TEXT, "text")?))
}

impl NodeLine {
    /// What its readers see is not on its disk: a restart may lose it.
    pub fn is_volatile(&self) -> bool {
        self.stored < self.visible
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_named(out, &self.node);
        put_labels(out, &self.labels);
        out.u8(self.kind as u8);
        out.u8(u8::from(self.connected));
        out.u8(u8::from(self.conflict));
        [self.stored, self.visible, self.applied].into_iter().for_each(|place| put_place(out, place));
        let refused = &self.refused[..self.refused.len().min(MAX_REFUSED)];
        out.u8(refused.len() as u8);
        for (position, code, text) in refused {
            put_refusal(out, *position, *code, text);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<NodeLine> {
        let (node, labels) = (get_named(r)?, get_labels(r)?);
        let (kind, connected, conflict) = (NodeKind::decode(r)?, r.bool()?, r.bool()?);
        let (stored, visible, applied) = (get_place(r)?, get_place(r)?, get_place(r)?);
        let len = usize::from(r.u8()?);
        let refused = r.list(len, MAX_REFUSED, "refused", get_refusal)?;
        Ok(NodeLine { node, labels, kind, connected, conflict, stored, visible, applied, refused })
    }
}

impl CommitLine {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_place(out, self.at);
        out.raw(&self.request.0);
        put_words(out, &self.author);
        put_words(out, &self.note);
        out.u64(self.stamp);
        out.raw(&self.digest.0);
        out.u32(self.puts);
        out.u32(self.deletes);
        let keys = &self.keys[..self.keys.len().min(MAX_LISTED)];
        out.u8(keys.len() as u8);
        for (key, put) in keys {
            out.short(key.as_bytes());
            out.u8(u8::from(*put));
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<CommitLine> {
        let (at, request) = (get_place(r)?, Id(r.array()?));
        let (author, note) = (get_words(r, "author")?, get_words(r, "note")?);
        let (stamp, digest) = (r.u64()?, Digest(r.array()?));
        let (puts, deletes) = (r.u32()?, r.u32()?);
        let len = usize::from(r.u8()?);
        let keys = r.list(len, MAX_LISTED, "keys", |r| {
            let key = Key::new(r.short(Key::MAX, "key")?).map_err(|_| DecodeError::Value("key"))?;
            Ok((key, r.bool()?))
        })?;
        Ok(CommitLine { at, request, author, note, stamp, digest, puts, deletes, keys })
    }
}

impl Nodes {
    fn encode(&self, out: &mut Vec<u8>) {
        self.tip.encode(out);
        out.u8(self.writable as u8);
        out.text(&self.text, MAX_TEXT);
        put_place(out, self.oldest);
        out.u64(self.limits.value as u64);
        out.u32(self.limits.keys);
        out.u64(self.limits.bytes);
        put_option(out, &self.rollout, |out, rollout| rollout.encode(out));
        out.u8(u8::from(self.more));
        put_list(out, &self.nodes, MAX_NODES, |out, node| node.encode(out));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Nodes> {
        Ok(Nodes {
            tip: Tip::decode(r)?,
            writable: Writable::decode(r)?,
            text: r.string(MAX_TEXT, "text")?,
            oldest: get_place(r)?,
            limits: Limits {
                value: usize::try_from(r.u64()?).map_err(|_| DecodeError::Value("limit"))?,
                keys: r.u32()?,
                bytes: r.u64()?,
            },
            rollout: get_option(r, RolloutLine::decode)?,
            more: r.bool()?,
            nodes: get_list(r, MAX_NODES, "nodes", NodeLine::decode)?,
        })
    }
}

impl Reply {
    /// Its bytes. Strings and lists that are over their bounds are cut to them.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Reply::Committed { .. } => 64,
            Reply::Conflict(_) => 65,
            Reply::Invalid { .. } => 66,
            Reply::Busy { .. } => 67,
            Reply::ReadOnly { .. } => 68,
            Reply::Entries(_) => 69,
            Reply::Waited(_) => 70,
            Reply::Aborted => 71,
            Reply::Lost(_) => 72,
            Reply::Nodes(_) => 73,
            Reply::Commits(_) => 74,
            Reply::Holdings(_) => 80,
            Reply::Unknown(kind) => *kind,
        };
        let mut out = start(kind);
        match self {
            Reply::Committed { at, digest, replay } => {
                put_place(&mut out, *at);
                out.raw(&digest.0);
                out.u8(u8::from(*replay));
            }
            Reply::Conflict(head) | Reply::Lost(head) => put_place(&mut out, *head),
            Reply::Invalid { code, oldest, text } => {
                out.u8(*code as u8);
                put_place(&mut out, *oldest);
                out.text(text, MAX_TEXT);
            }
            Reply::Busy { after_ms, rollout } => {
                out.u32(*after_ms);
                put_option(&mut out, rollout, |out, at| put_place(out, *at));
            }
            Reply::ReadOnly { why, text } => {
                out.u8(*why as u8);
                out.text(text, MAX_TEXT);
            }
            Reply::Entries(page) => {
                page.of.encode(&mut out);
                out.u8(u8::from(page.more));
                out.long(&encode_state(&page.entries));
            }
            Reply::Waited(waited) => waited.encode(&mut out),
            Reply::Nodes(nodes) => nodes.encode(&mut out),
            Reply::Commits(page) => {
                put_place(&mut out, page.head);
                out.u8(u8::from(page.more));
                put_list(&mut out, &page.commits, MAX_COMMITS, |out, commit| commit.encode(out));
            }
            Reply::Holdings(holdings) => {
                put_list(&mut out, holdings, MAX_HOLDINGS, |out, holding| holding.encode(out));
            }
            Reply::Aborted | Reply::Unknown(_) => {}
        }
        out
    }

    /// The reply that these bytes are.
    ///
    /// # Errors
    /// What is wrong with them. No value of a field makes it allocate more than the bytes themselves take.
    pub fn decode(bytes: &Bytes) -> Result<Reply> {
        let (kind, mut reader) = begin(bytes)?;
        let r = &mut reader;
        let reply = match kind {
            64 => Reply::Committed { at: get_place(r)?, digest: Digest(r.array()?), replay: r.bool()? },
            65 => Reply::Conflict(get_place(r)?),
            66 => Reply::Invalid {
                code: InvalidCode::decode(r)?,
                oldest: get_place(r)?,
                text: r.string(MAX_TEXT, "text")?,
            },
            67 => Reply::Busy { after_ms: r.u32()?, rollout: get_option(r, get_place)? },
            68 => Reply::ReadOnly { why: Writable::decode(r)?, text: r.string(MAX_TEXT, "text")? },
            69 => {
                let (of, more) = (Tip::decode(r)?, r.bool()?);
                Reply::Entries(Box::new(Entries { of, more, entries: decode_state(&r.long()?)? }))
            }
            70 => Reply::Waited(Waited::decode(r)?),
            71 => Reply::Aborted,
            72 => Reply::Lost(get_place(r)?),
            73 => Reply::Nodes(Box::new(Nodes::decode(r)?)),
            74 => {
                let (head, more) = (get_place(r)?, r.bool()?);
                let commits = get_list(r, MAX_COMMITS, "commits", CommitLine::decode)?;
                Reply::Commits(Commits { head, more, commits })
            }
            80 => Reply::Holdings(get_list(r, MAX_HOLDINGS, "holdings", Holding::decode)?),
            kind => return Ok(Reply::Unknown(kind)),
        };
        reader.end()?;
        Ok(reply)
    }
}
