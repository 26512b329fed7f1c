//! The messages between an operator's client and an authority: one request, one reply.
//!
//! They travel as bodies of SP request/reply, so which reply belongs to which request is not theirs to say. They
//! begin like all messages: version, type, flags. A page of a list is bounded by [`PAGE`], not by the list.
//!
//! Owns: the layout and its bounds. Never: meaning; an allocation that a peer's word alone asks for.

mod ask;
mod begin;
mod reply;
#[cfg(test)]
mod tests;

pub use ask::{
    Ask, CommitAsk, ImportAsk, LogAsk, ReadAsk, RevertAsk, RolloutAsk, Selector, StatusAsk, WaitAsk,
};
pub use begin::{BeginAsk, BeginWith, Holding, MAX_HOLDINGS};
pub use reply::{
    CommitLine, Commits, Entries, Named, NodeLine, Nodes, Refusing, Reply, RolloutLine, Tip, Waited,
};

use bytes::Bytes;

use super::{
    DecodeError, MAX_LABELS, MAX_NAMESPACE, MAX_TEXT, NackCode, Reader, Result, VERSION, Write,
    decode_changes, decode_state, encode_changes, encode_state, get_position, put_position, start,
};
use crate::{Digest, Id, Place, Position};

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
pub(crate) const MAX_NAME: usize = 256;

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
        /// The request id is that of another request, which was done.
        Used = 9,
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

fn begin(bytes: &Bytes) -> Result<(u8, Reader<'_>)> {
    let mut r = Reader::new(bytes);
    let (version, kind, _flags) = (r.u8()?, r.u8()?, r.u16()?);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    Ok((kind, r))
}
