//! How a new epoch begins by hand, and what nodes hold that one could begin with.
//!
//! Owns: the layout of both messages. Never: a decision.

use super::{
    DecodeError, Digest, Id, Place, Position, Reader, Result, Write, get_option, get_place, get_position,
    put_option, put_place, put_position,
};

/// Most states in one reply to HOLDINGS.
pub const MAX_HOLDINGS: usize = 256;

/// BEGIN, type 41: a new epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BeginAsk {
    /// Names the request, and is the incarnation of the epoch: a repeat begins no further one.
    pub request: Id,
    /// The namespace.
    pub namespace: String,
    /// Only if this is the newest place; `None`: whatever it is.
    pub expect: Option<Place>,
    /// Who.
    pub author: String,
    /// Why.
    pub note: String,
    /// With what.
    pub with: BeginWith,
}

/// What a new epoch begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeginWith {
    /// Nothing, where there is nothing: an authority without a store.
    Nothing,
    /// What is there.
    Same,
    /// The state of a node: of the highest revision that nodes hold, or of this one. Only where there is no store.
    Node(Option<Place>),
}

/// One state that nodes hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    /// Where it is in their history.
    pub position: Position,
    /// Of its content.
    pub digest: Digest,
    /// It is for all nodes, and not only for those of a rollout.
    pub for_all: bool,
    /// How many hold it.
    pub nodes: u32,
}

impl BeginWith {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            BeginWith::Nothing => out.u8(1),
            BeginWith::Same => out.u8(2),
            BeginWith::Node(at) => {
                out.u8(3);
                put_option(out, at, |out, place| put_place(out, *place));
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<BeginWith> {
        match r.u8()? {
            1 => Ok(BeginWith::Nothing),
            2 => Ok(BeginWith::Same),
            3 => Ok(BeginWith::Node(get_option(r, get_place)?)),
            _ => Err(DecodeError::Value("what an epoch begins with")),
        }
    }
}

impl Holding {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, &self.position);
        out.raw(&self.digest.0);
        out.u8(u8::from(self.for_all));
        out.u32(self.nodes);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Holding> {
        let (position, digest) = (get_position(r)?, Digest(r.array()?));
        Ok(Holding { position, digest, for_all: r.bool()?, nodes: r.u32()? })
    }
}
