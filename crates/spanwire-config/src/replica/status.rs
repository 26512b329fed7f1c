//! What a receiver is made with, gives out and says of itself.
//!
//! Owns: the shapes and their defaults. Never: how they come about.

use std::time::Duration;

use crate::sign::Keyring;
use crate::wire::{NackCode, NamespaceStatus, NodeKind, SLICE};
use crate::{ClusterId, Head, Id, Key, Limits, Position, ServerId, State};

/// Settings of a [`Replica`](super::Replica).
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The cluster. Default: zeros.
    pub cluster: ClusterId,
    /// The namespace to hold: at most 128 bytes. Default: `config`.
    pub namespace: String,
    /// This node: random, and kept across restarts. Default: zeros; give each its own.
    pub node: Id,
    /// A relay serves to others what it holds; its node id is its server id. Default: a replica.
    pub kind: NodeKind,
    /// Start number: high 32 bits counted on disk at each start, low 32 bits random.
    pub boot: u64,
    /// For people: at most 256 bytes.
    pub name: String,
    /// At most 16 pairs of at most 96 bytes each.
    pub labels: Vec<(String, String)>,
    /// How many payload bytes may be on their way. Default: 256 KiB.
    pub window: u32,
    /// Largest slice, in bytes; at least 4 KiB. Default: 64 KiB.
    pub max_chunk: u32,
    /// What this node can hold. Larger states are refused.
    pub limits: Limits,
    /// Whose HEADs are believed. Empty: everybody's, since the cluster has no keys. Default: empty.
    pub trust: Keyring,
    /// How long *fresh* lasts after a sign of life of the authority. Default: 10 s.
    pub fresh: Duration,
    /// Time between beacons until an upstream says its own. Default: 1 s.
    pub beacon: Duration,
}

impl Default for ReplicaSettings {
    fn default() -> Self {
        ReplicaSettings {
            cluster: Id::default(),
            namespace: "config".into(),
            node: Id::default(),
            kind: NodeKind::Replica,
            boot: 0,
            name: String::new(),
            labels: Vec::new(),
            window: 256 << 10,
            max_chunk: SLICE as u32,
            limits: Limits::default(),
            trust: Keyring::new(),
            fresh: Duration::from_secs(10),
            beacon: Duration::from_secs(1),
        }
    }
}

/// A verified revision, whole.
#[derive(Clone, Debug)]
pub struct Update {
    /// Its HEAD, as it arrived.
    pub head: Head,
    /// Keys whose entries differ from the revision accepted before, in order. Empty when only the position
    /// rose.
    pub changed: Vec<Key>,
    /// All of its content. It stays as it is for as long as it is kept.
    pub state: State,
}

impl Update {
    /// Its position.
    pub fn position(&self) -> Position {
        self.head.position
    }
}

/// Where a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// Nothing verified yet.
    Empty,
    /// From disk, not confirmed by an upstream.
    Cached,
    /// Confirmed, and nothing newer is known.
    Live,
    /// Something newer is known and on its way.
    Behind,
    /// Something newer was refused; the last good one stays visible.
    Held,
    /// Two histories claim one place; what is visible stays, until a higher epoch comes.
    Conflict,
}

/// State of a replica, for people and for its application.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Where it stands.
    pub data: Data,
    /// What the application accepted.
    pub visible: Option<Position>,
    /// The newest that is held, or known and wanted: what was refused is not, see `refused`.
    pub newest: Option<Position>,
    /// The newest that was refused here and is above the visible one: position, why, and what the validator said.
    pub refused: Option<(Position, NackCode, String)>,
    /// The authority gave a sign of life within the time set, by this node's clock.
    pub fresh: bool,
    /// How long ago that was; `None`: not in this process life.
    pub rose: Option<Duration>,
    /// Bytes of a snapshot that is on its way: how many came, and of how many.
    pub arriving: Option<(u64, u64)>,
    /// The server sends to others first; its place among those that wait, 1 for the next.
    pub waiting: Option<u32>,
    /// The server of the pipe in use.
    pub upstream: Option<ServerId>,
    /// What that server says of the namespace.
    pub namespace: Option<NamespaceStatus>,
    /// A server knows a higher start number of this node than its own: this one.
    pub stale_boot: Option<u64>,
    /// The HEADs that contradict each other.
    pub evidence: Option<(Head, Head)>,
}

/// The application named a revision that it was not given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is neither given nor visible")]
pub struct Unexpected(pub Position);
