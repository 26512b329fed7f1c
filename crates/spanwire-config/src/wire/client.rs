//! The messages between an operator's client and an authority: one request, one reply.
//!
//! They travel as bodies of SP request/reply, so which reply belongs to which request is not theirs to say. They
//! begin like all messages: version, type, flags. A page of a list is bounded by [`PAGE`], not by the list.
//!
//! Owns: the layout and its bounds. Never: meaning; an allocation that a peer's word alone asks for.

mod begin;
#[cfg(test)]
mod tests;

pub use begin::{BeginAsk, BeginWith, Holding, MAX_HOLDINGS};

use bytes::Bytes;

use super::{
    DecodeError, Level, MAX_LABELS, MAX_NAMESPACE, MAX_TEXT, NackCode, Reader, Result, VERSION, Write,
    decode_changes, decode_state, encode_changes, encode_state, get_position, put_position, start,
};
use crate::rollout::Plan;
use crate::{ChangeSet, Digest, Id, Key, Limits, Place, Position, State};

/// Bytes of entries, commits or nodes beyond which a page ends. One element may overshoot.
pub const PAGE: usize = 256 << 10;
/// Most commits in one reply to LOG.
pub const MAX_COMMITS: usize = 1024;
/// Most keys that a commit is listed with; its counts are of all.
pub const MAX_LISTED: usize = 64;
/// Most names in a selector.
pub const MAX_NAMES: usize = 1024;
/// Most nodes in one list.
pub const MAX_NODES: usize = 1 << 17;
/// Most refusals of one node.
const MAX_REFUSED: usize = 2;
/// Longest name of a node, and of a part of a label.
const MAX_NAME: usize = 256;

byte_enum!(
    /// What is wrong with a request.
    InvalidCode {
        /// Not understood: what it says is in the text.
        Malformed = 1,
        /// The authority does not serve this namespace.
        Namespace = 2,
        /// It would exceed a limit of the namespace.
        OverLimit = 3,
        /// Its author or note is too long.
        TooLong = 4,
        /// So far back nothing is kept; the oldest that is comes with it.
        Compacted = 5,
        /// There is no such position.
        NoSuch = 6,
        /// It cannot be done now.
        NotNow = 7,
        /// A plan that makes no sense, or a step of a rollout that is not there.
        Rollout = 8,
    }
);
byte_enum!(
    /// What an operator wants of an open rollout.
    Step {
        /// For all, now.
        Promote = 1,
        /// Nothing goes on by itself.
        Pause = 2,
        /// It goes on.
        Resume = 3,
        /// Back to what all others have, by one revision more.
        Abort = 4,
        /// The next stage; after the last: for all.
        Next = 5,
    }
);
byte_enum!(
    /// Whether an authority takes commits, and why not.
    Writable {
        /// It does.
        Yes = 0,
        /// There is no state: the first commit says so (expect (0, 0)), or an import begins it.
        Vacant = 1,
        /// The store failed.
        Store = 2,
        /// The store is an old copy.
        Old = 3,
        /// A directory at the authority is what it publishes.
        Directory = 4,
    }
);
byte_enum!(
    /// In which order LOG tells.
    Order {
        /// Newest first, below the bound.
        Back = 1,
        /// Oldest first, above the bound.
        Forward = 2,
    }
);

/// COMMIT, type 32: puts and deletes, applied whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitAsk {
    /// Names the request: a repeat commits nothing.
    pub request: Id,
    /// The namespace.
    pub namespace: String,
    /// Only if the newest position is this.
    pub expect: Option<Place>,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// For a cohort first, by this plan: it opens a rollout.
    pub rollout: Option<Plan>,
    /// If a rollout is open, this ends it: the content that all others have is what changes.
    pub supersede: bool,
    /// What.
    pub changes: ChangeSet,
}

/// READ, type 33: entries in key order, of one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadAsk {
    /// The namespace.
    pub namespace: String,
    /// Of which revision; `None`: the newest.
    pub at: Option<Place>,
    /// What the keys begin with.
    pub prefix: Bytes,
    /// Only keys above this: the last of the page before. Empty: from the first.
    pub after: Bytes,
    /// At most so many; 0: as many as fit in a page.
    pub max: u32,
}

/// Which nodes are meant: all of these names, if there are any, and all labels equal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// Names; empty: any.
    pub names: Vec<String>,
    /// Labels that a node must have.
    pub labels: Vec<(String, String)>,
}

/// WAIT, type 34: answered when every selected node has reached or refused a position, or time is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitAsk {
    /// The namespace.
    pub namespace: String,
    /// What is to be reached.
    pub position: Place,
    /// How far.
    pub level: Level,
    /// In milliseconds.
    pub timeout_ms: u32,
    /// By whom: looked up once, at the start.
    pub selector: Selector,
}

/// STATUS, type 35: the authority and a page of its nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusAsk {
    /// The namespace.
    pub namespace: String,
    /// Only nodes above this id: the last of the page before.
    pub after: Option<Id>,
}

/// LOG, type 36: commits that are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogAsk {
    /// The namespace.
    pub namespace: String,
    /// Which way.
    pub order: Order,
    /// From where; backwards, (0, 0) is the newest.
    pub bound: Place,
    /// At most so many; 0: as many as fit in a page.
    pub max: u16,
    /// Forwards, how long to wait for a commit if there is none above the bound, in milliseconds.
    pub wait_ms: u32,
}

/// REVERT, type 37: a commit with the content of an earlier revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RevertAsk {
    /// As in COMMIT.
    pub request: Id,
    /// The namespace.
    pub namespace: String,
    /// As in COMMIT.
    pub expect: Option<Place>,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// As in COMMIT.
    pub rollout: Option<Plan>,
    /// As in COMMIT.
    pub supersede: bool,
    /// Which content.
    pub to: Place,
}

/// IMPORT, type 38: a new epoch begins with this content and nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportAsk {
    /// Names the request, and the epoch: it is its incarnation. Random.
    pub request: Id,
    /// The namespace.
    pub namespace: String,
    /// The content.
    pub state: State,
}

/// ROLLOUT, type 39: a step of the rollout that is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RolloutAsk {
    /// Names the request: a repeat changes nothing.
    pub request: Id,
    /// The namespace.
    pub namespace: String,
    /// The revision of the rollout.
    pub position: Place,
    /// Which step.
    pub step: Step,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ask {
    /// Type 32.
    Commit(CommitAsk),
    /// Type 33.
    Read(ReadAsk),
    /// Type 34.
    Wait(WaitAsk),
    /// Type 35.
    Status(StatusAsk),
    /// Type 36.
    Log(LogAsk),
    /// Type 37.
    Revert(RevertAsk),
    /// Type 38.
    Import(ImportAsk),
    /// Type 39.
    Rollout(RolloutAsk),
    /// Type 40: what nodes hold, of this namespace.
    Holdings(String),
    /// Type 41.
    Begin(BeginAsk),
    /// A type that this side does not know.
    Unknown(u8),
}

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
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeLine {
    /// The node.
    pub node: Named,
    /// The labels that it gave.
    pub labels: Vec<(String, String)>,
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

fn put_place(out: &mut Vec<u8>, place: Place) {
    out.u64(place.epoch);
    out.u64(place.rev);
}

fn get_place(r: &mut Reader<'_>) -> Result<Place> {
    Ok(Place { epoch: r.u64()?, rev: r.u64()? })
}

fn put_option<T>(out: &mut Vec<u8>, value: &Option<T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn get_option<'a, T>(
    r: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if r.bool()? { get(r).map(Some) } else { Ok(None) }
}

/// A string bounded by its length field alone: what is too long is the authority's to say.
fn put_words(out: &mut Vec<u8>, words: &str) {
    out.text(words, usize::from(u16::MAX));
}

fn get_words(r: &mut Reader<'_>, what: &'static str) -> Result<String> {
    r.string(usize::from(u16::MAX), what)
}

fn put_labels(out: &mut Vec<u8>, labels: &[(String, String)]) {
    let labels = &labels[..labels.len().min(MAX_LABELS)];
    out.u8(labels.len() as u8);
    for (name, value) in labels {
        out.text(name, MAX_NAME);
        out.text(value, MAX_NAME);
    }
}

fn get_labels(r: &mut Reader<'_>) -> Result<Vec<(String, String)>> {
    let len = usize::from(r.u8()?);
    r.list(len, MAX_LABELS, "labels", |r| Ok((r.string(MAX_NAME, "label")?, r.string(MAX_NAME, "label")?)))
}

/// A list with a u32 length; what is over `max` is cut.
fn put_list<T>(out: &mut Vec<u8>, list: &[T], max: usize, mut put: impl FnMut(&mut Vec<u8>, &T)) {
    let list = &list[..list.len().min(max)];
    out.u32(list.len() as u32);
    list.iter().for_each(|one| put(out, one));
}

fn get_list<T>(
    r: &mut Reader<'_>,
    max: usize,
    what: &'static str,
    get: impl FnMut(&mut Reader<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let len = usize::try_from(r.u32()?).map_err(|_| DecodeError::TooLong(what))?;
    r.list(len, max, what, get)
}

fn put_named(out: &mut Vec<u8>, named: &Named) {
    out.raw(&named.node.0);
    out.text(&named.name, MAX_NAME);
}

fn get_named(r: &mut Reader<'_>) -> Result<Named> {
    Ok(Named { node: Id(r.array()?), name: r.string(MAX_NAME, "name")? })
}

impl Ask {
    /// Its bytes. Lists that are over their bounds are cut to them.
    pub fn encode(&self) -> Vec<u8> {
        let begin = |kind, namespace: &str| {
            let mut out = start(kind);
            out.text(namespace, MAX_NAMESPACE);
            out
        };
        match self {
            Ask::Commit(ask) => {
                let mut out = begin(32, &ask.namespace);
                ask.put_common(&mut out);
                out.long(&encode_changes(&ask.changes));
                out
            }
            Ask::Read(ask) => {
                let mut out = begin(33, &ask.namespace);
                put_option(&mut out, &ask.at, |out, at| put_place(out, *at));
                out.short(&ask.prefix);
                out.short(&ask.after);
                out.u32(ask.max);
                out
            }
            Ask::Wait(ask) => {
                let mut out = begin(34, &ask.namespace);
                put_place(&mut out, ask.position);
                out.u8(ask.level as u8);
                out.u32(ask.timeout_ms);
                put_list(&mut out, &ask.selector.names, MAX_NAMES, |out, name| out.text(name, MAX_NAME));
                put_labels(&mut out, &ask.selector.labels);
                out
            }
            Ask::Status(ask) => {
                let mut out = begin(35, &ask.namespace);
                put_option(&mut out, &ask.after, |out, id| out.raw(&id.0));
                out
            }
            Ask::Log(ask) => {
                let mut out = begin(36, &ask.namespace);
                out.u8(ask.order as u8);
                put_place(&mut out, ask.bound);
                out.u16(ask.max);
                out.u32(ask.wait_ms);
                out
            }
            Ask::Revert(ask) => {
                let mut out = begin(37, &ask.namespace);
                ask.put_common(&mut out);
                put_place(&mut out, ask.to);
                out
            }
            Ask::Import(ask) => {
                let mut out = begin(38, &ask.namespace);
                out.raw(&ask.request.0);
                out.long(&encode_state(&ask.state));
                out
            }
            Ask::Rollout(ask) => {
                let mut out = begin(39, &ask.namespace);
                out.raw(&ask.request.0);
                put_place(&mut out, ask.position);
                out.u8(ask.step as u8);
                out
            }
            Ask::Holdings(namespace) => begin(40, namespace),
            Ask::Begin(ask) => {
                let mut out = begin(41, &ask.namespace);
                out.raw(&ask.request.0);
                ask.with.encode(&mut out);
                out
            }
            Ask::Unknown(kind) => start(*kind),
        }
    }

    /// The request that these bytes are.
    ///
    /// # Errors
    /// What is wrong with them. No value of a field makes it allocate more than the bytes themselves take.
    pub fn decode(bytes: &Bytes) -> Result<Ask> {
        let (kind, mut r) = begin(bytes)?;
        if !(32..=41).contains(&kind) {
            return Ok(Ask::Unknown(kind));
        }
        let namespace = r.string(MAX_NAMESPACE, "namespace")?;
        let ask = match kind {
            32 => {
                let (request, expect, author, note) = get_common(&mut r)?;
                let (rollout, supersede) = get_how(&mut r)?;
                let changes = decode_changes(&r.long()?)?;
                Ask::Commit(CommitAsk {
                    request,
                    namespace,
                    expect,
                    author,
                    note,
                    rollout,
                    supersede,
                    changes,
                })
            }
            33 => Ask::Read(ReadAsk {
                namespace,
                at: get_option(&mut r, get_place)?,
                prefix: r.short(Key::MAX, "prefix")?,
                after: r.short(Key::MAX, "key")?,
                max: r.u32()?,
            }),
            34 => Ask::Wait(WaitAsk {
                namespace,
                position: get_place(&mut r)?,
                level: Level::decode(&mut r)?,
                timeout_ms: r.u32()?,
                selector: Selector {
                    names: get_list(&mut r, MAX_NAMES, "names", |r| r.string(MAX_NAME, "name"))?,
                    labels: get_labels(&mut r)?,
                },
            }),
            35 => Ask::Status(StatusAsk { namespace, after: get_option(&mut r, |r| Ok(Id(r.array()?)))? }),
            36 => Ask::Log(LogAsk {
                namespace,
                order: Order::decode(&mut r)?,
                bound: get_place(&mut r)?,
                max: r.u16()?,
                wait_ms: r.u32()?,
            }),
            37 => {
                let (request, expect, author, note) = get_common(&mut r)?;
                let (rollout, supersede) = get_how(&mut r)?;
                let to = get_place(&mut r)?;
                Ask::Revert(RevertAsk { request, namespace, expect, author, note, rollout, supersede, to })
            }
            39 => Ask::Rollout(RolloutAsk {
                request: Id(r.array()?),
                namespace,
                position: get_place(&mut r)?,
                step: Step::decode(&mut r)?,
            }),
            40 => Ask::Holdings(namespace),
            41 => {
                Ask::Begin(BeginAsk { request: Id(r.array()?), namespace, with: BeginWith::decode(&mut r)? })
            }
            _ => Ask::Import(ImportAsk {
                request: Id(r.array()?),
                namespace,
                state: decode_state(&r.long()?)?,
            }),
        };
        r.end()?;
        Ok(ask)
    }

    /// The namespace that it is about.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Ask::Commit(CommitAsk { namespace, .. })
            | Ask::Read(ReadAsk { namespace, .. })
            | Ask::Wait(WaitAsk { namespace, .. })
            | Ask::Status(StatusAsk { namespace, .. })
            | Ask::Log(LogAsk { namespace, .. })
            | Ask::Revert(RevertAsk { namespace, .. })
            | Ask::Import(ImportAsk { namespace, .. })
            | Ask::Rollout(RolloutAsk { namespace, .. })
            | Ask::Holdings(namespace)
            | Ask::Begin(BeginAsk { namespace, .. }) => Some(namespace),
            Ask::Unknown(_) => None,
        }
    }
}

fn begin(bytes: &Bytes) -> Result<(u8, Reader<'_>)> {
    let mut r = Reader::new(bytes);
    let (version, kind, _flags) = (r.u8()?, r.u8()?, r.u16()?);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    Ok((kind, r))
}

fn put_common(out: &mut Vec<u8>, request: Id, expect: &Option<Place>, author: &str, note: &str) {
    out.raw(&request.0);
    put_option(out, expect, |out, place| put_place(out, *place));
    put_words(out, author);
    put_words(out, note);
}

fn get_common(r: &mut Reader<'_>) -> Result<(Id, Option<Place>, String, String)> {
    let (request, expect) = (Id(r.array()?), get_option(r, get_place)?);
    Ok((request, expect, get_words(r, "author")?, get_words(r, "note")?))
}

fn put_how(out: &mut Vec<u8>, rollout: &Option<Plan>, supersede: bool) {
    put_option(out, rollout, |out, plan| plan.encode(out));
    out.u8(u8::from(supersede));
}

fn get_how(r: &mut Reader<'_>) -> Result<(Option<Plan>, bool)> {
    Ok((get_option(r, Plan::decode)?, r.bool()?))
}

impl CommitAsk {
    fn put_common(&self, out: &mut Vec<u8>) {
        put_common(out, self.request, &self.expect, &self.author, &self.note);
        put_how(out, &self.rollout, self.supersede);
    }
}

impl RevertAsk {
    fn put_common(&self, out: &mut Vec<u8>) {
        put_common(out, self.request, &self.expect, &self.author, &self.note);
        put_how(out, &self.rollout, self.supersede);
    }
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
        let (connected, conflict) = (r.bool()?, r.bool()?);
        let (stored, visible, applied) = (get_place(r)?, get_place(r)?, get_place(r)?);
        let len = usize::from(r.u8()?);
        let refused = r.list(len, MAX_REFUSED, "refused", get_refusal)?;
        Ok(NodeLine { node, labels, connected, conflict, stored, visible, applied, refused })
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
