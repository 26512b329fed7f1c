//! What a client asks.
//!
//! Owns: the layout of requests. Never: a decision.

use bytes::Bytes;

use super::{
    BeginAsk, BeginWith, MAX_NAME, MAX_NAMES, MAX_NAMESPACE, Order, Reader, Result, Step, Write, begin,
    decode_changes, decode_state, encode_changes, encode_state, get_labels, get_list, get_option, get_place,
    get_words, put_labels, put_list, put_option, put_place, put_words, start,
};
use crate::rollout::Plan;
use crate::{ChangeSet, Id, Key, Level, Place, State};

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
    /// As in COMMIT.
    pub expect: Option<Place>,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
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
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
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
                put_common(&mut out, ask.request, &ask.expect, &ask.author, &ask.note);
                out.long(&encode_state(&ask.state));
                out
            }
            Ask::Rollout(ask) => {
                let mut out = begin(39, &ask.namespace);
                out.raw(&ask.request.0);
                put_place(&mut out, ask.position);
                out.u8(ask.step as u8);
                put_words(&mut out, &ask.author);
                put_words(&mut out, &ask.note);
                out
            }
            Ask::Holdings(namespace) => begin(40, namespace),
            Ask::Begin(ask) => {
                let mut out = begin(41, &ask.namespace);
                put_common(&mut out, ask.request, &ask.expect, &ask.author, &ask.note);
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
                author: get_words(&mut r, "author")?,
                note: get_words(&mut r, "note")?,
            }),
            40 => Ask::Holdings(namespace),
            41 => {
                let (request, expect, author, note) = get_common(&mut r)?;
                let with = BeginWith::decode(&mut r)?;
                Ask::Begin(BeginAsk { request, namespace, expect, author, note, with })
            }
            _ => {
                let (request, expect, author, note) = get_common(&mut r)?;
                let state = decode_state(&r.long()?)?;
                Ask::Import(ImportAsk { request, namespace, expect, author, note, state })
            }
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
