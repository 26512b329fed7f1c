//! Where in history a state is: epochs, positions, and the HEAD that names a state.
//!
//! Owns: their order and the chain that ties revisions to a history. Never: the content of a state.

use std::cmp::Ordering;
use std::fmt;

use bytes::Bytes;

use crate::Digest;

/// Sixteen bytes that name something: a node, a server, a cluster, an incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(pub [u8; 16]);

impl Id {
    /// A random one, from the system.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> std::io::Result<Id> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(std::io::Error::other)?;
        Ok(Id(id))
    }

    /// One derived from a name: the first 16 bytes of its BLAKE3 hash.
    pub fn named(name: &str) -> Id {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        Id(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Names a cluster.
pub type ClusterId = Id;
/// Names a server: an authority or, later, a relay.
pub type ServerId = Id;

/// One history of a namespace: a number, and random bytes that tell two claims to one number apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epoch {
    /// Rises with every new history of the namespace; 0 only before the first.
    pub number: u64,
    /// Random for each epoch.
    pub incarnation: Id,
}

impl PartialOrd for Epoch {
    /// By number. Two incarnations under one number are a conflict and have no order.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.number.cmp(&other.number) {
            Ordering::Equal if self.incarnation != other.incarnation => None,
            order => Some(order),
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.number, self.incarnation)
    }
}

/// A revision within an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Position {
    /// The history.
    pub epoch: Epoch,
    /// The revision in it: rises, and may have holes.
    pub rev: u64,
}

impl PartialOrd for Position {
    /// By epoch, then by revision; none between two incarnations of one epoch number.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.epoch.partial_cmp(&other.epoch).map(|order| order.then(self.rev.cmp(&other.rev)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.rev)
    }
}

/// Which history a revision is of, in short: the first 8 bytes of its [`chain`]. Where a store came back as an old copy, one
/// position names a revision of each history; with the mark beside it it names one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChainMark(pub [u8; 8]);

impl ChainMark {
    /// That of a revision with this chain.
    pub fn of(chain: &[u8; 32]) -> ChainMark {
        let [a, b, c, d, e, f, g, h, ..] = *chain;
        ChainMark([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for ChainMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A revision that a node names: what it reached, or refuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Claim {
    /// Where it is.
    pub position: Position,
    /// Of which history.
    pub mark: ChainMark,
}

/// What a step starts from: a position and the history that leads to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Base {
    /// The position.
    pub position: Position,
    /// Its chain.
    pub chain: [u8; 32],
}

impl Base {
    /// As a node names it.
    pub fn claim(&self) -> Claim {
        Claim { position: self.position, mark: ChainMark::of(&self.chain) }
    }
}

/// A base, and the digest of the content there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Position and chain.
    pub base: Base,
    /// Digest of the state there.
    pub digest: Digest,
}

/// Names one state of one namespace: its place in history, its content's digest, and (later) a signature.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// The cluster.
    pub cluster: ClusterId,
    /// The namespace: at most 128 bytes.
    pub namespace: String,
    /// Epoch and revision.
    pub position: Position,
    /// Revision of the HEAD before it in this epoch; 0 for the first.
    pub prev_rev: u64,
    /// Digest of the content.
    pub digest: Digest,
    /// Number of keys.
    pub keys: u32,
    /// Bytes in keys and values.
    pub bytes: u64,
    /// Names the history: see [`chain`].
    pub chain: [u8; 32],
    /// Whom it is for: empty for all, else a cohort ([`Audience`](crate::rollout::Audience)).
    pub audience: Bytes,
    /// Rises with every HEAD that is issued in an epoch, beacons included.
    pub seq: u64,
    /// Which key signed; 0 for none.
    pub key_id: u32,
    /// The signature; zeros for none.
    pub sig: Signature,
}

/// The place of an Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Default for Signature {
    fn default() -> Self {
        Signature([0; 64])
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == [0; 64] { "unsigned" } else { "signed" })
    }
}

impl Head {
    /// Position and chain.
    pub fn base(&self) -> Base {
        Base { position: self.position, chain: self.chain }
    }

    /// As a node names it.
    pub fn claim(&self) -> Claim {
        self.base().claim()
    }

    /// Position, chain and digest.
    pub fn shown(&self) -> Shown {
        Shown { base: self.base(), digest: self.digest }
    }
}

/// The chain of a revision: BLAKE3 of the previous chain (zeros for the first of an epoch), the revision (u64,
/// big-endian) and the digest.
pub fn chain(previous: &[u8; 32], rev: u64, digest: &Digest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous).update(&rev.to_be_bytes()).update(&digest.0);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64, incarnation: u8, rev: u64) -> Position {
        Position { epoch: Epoch { number, incarnation: Id([incarnation; 16]) }, rev }
    }

    #[test]
    fn the_epoch_decides_before_the_revision() {
        assert!(at(1, 1, 9) < at(2, 2, 1));
        assert!(at(2, 2, 1) < at(2, 2, 2));
        assert_eq!(at(2, 2, 2).partial_cmp(&at(2, 2, 2)), Some(Ordering::Equal));
    }

    #[test]
    fn two_incarnations_of_one_number_have_no_order() {
        assert_eq!(at(2, 1, 1).partial_cmp(&at(2, 2, 2)), None);
    }
}
