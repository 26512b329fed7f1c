//! Config-broadcast: configuration goes from an authority to every replica, whole, verified and in order.
//!
//! A namespace is an ordered map from key to value. Each commit gives it a new revision; every replica ends
//! at the newest one, never shows a mixture or something unverified, never goes back, and tells the
//! authority what it holds. It is a scalability protocol like the others ([`Distributor`] 0xFCF0,
//! [`Replica`] 0xFCF1), built on the public traits of `spanwire` and nothing else. Messages and semantics are in
//! `docs/config-broadcast.md`.
//!
//! Owns: the model (keys, states, positions, digests), the messages, the two protocols, and on top of them
//! directory trees as states ([`tree`]), the verified disk cache ([`store`]), the durable log of an authority
//! ([`source`]), a replica for programs ([`Node`]), the processes of `config-sync`, and the [`client`] that commits, reads
//! and waits. Never: a door into `spanwire` that is not public; a decision by a wall clock.
//!
//! ```
//! use spanwire::protocol::Time;
//! use spanwire_config::{
//!     Answer, AuthorityAction, AuthorityEvent, ChangeSet, Id, Intent, Key, NsAuthority, NsSettings, Opening,
//!     Place, Request, Ticket,
//! };
//!
//! let mut changes = ChangeSet::new();
//! changes.put(Key::new("db/host")?, 0, "10.0.0.1");
//! let request = Request {
//!     request: Id::random()?,
//!     expect: Some(Place::default()), // the first
//!     intent: Intent::Change(changes),
//!     author: "me".into(),
//!     note: String::new(),
//!     stamp: 0,
//!     rollout: None, // for all at once
//!     supersede: false,
//! };
//! let (mut authority, _) = NsAuthority::new(NsSettings::default(), Opening::Unknown, Id::random()?);
//! let actions = authority.handle(AuthorityEvent::Commit(Ticket(1), request), Time::default());
//! assert!(matches!(actions[..], [AuthorityAction::Append(_)]), "durable first");
//! let actions = authority.handle(AuthorityEvent::Durable(Ok(())), Time::default());
//! assert!(matches!(
//!     &actions[..],
//!     [AuthorityAction::Publish(published), AuthorityAction::Reply(Ticket(1), Answer::Committed { .. })]
//!         if published.head.position.rev == 1
//! ));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod again;
#[cfg(all(unix, feature = "sync"))]
pub mod agent;
mod authority;
#[cfg(all(unix, feature = "sync"))]
mod check;
pub mod client;
#[cfg(all(unix, feature = "sync"))]
mod command;
#[cfg(all(unix, feature = "sync"))]
mod control;
mod digest;
mod driver;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(not(feature = "faults"))]
mod faults;
#[cfg(all(unix, feature = "sync"))]
mod folders;
#[cfg(all(unix, feature = "sync"))]
mod hook;
#[cfg(all(unix, feature = "sync"))]
mod layout;
mod model;
mod node;
mod position;
#[cfg(all(unix, feature = "sync"))]
pub mod process;
pub mod relay;
#[cfg(all(unix, feature = "sync"))]
mod render;
mod replica;
pub mod rollout;
mod sender;
#[cfg(all(unix, feature = "sync"))]
pub mod serve;
pub mod sign;
pub mod source;
#[cfg(all(unix, feature = "sync"))]
pub mod store;
#[cfg(all(unix, feature = "sync"))]
pub mod tree;
pub mod wait;
pub mod wire;

pub use authority::{
    Alarm, Answer, AuthorityAction, AuthorityEvent, By, CohortNode, Intent, Invalid, Mode, NsAuthority,
    NsSettings, Opening, Place, Published, ReadOnly, Recall, Request, Tally, Ticket, Verdict,
};
pub use digest::{Digest, LtHash};
pub use driver::Driver;
pub use model::{Change, ChangeSet, Entry, Key, KeyError, Limits, OverLimit, State};
pub use node::{
    Changed, Copied, Freshness, Node, NodeBuilder, NodeError, NotReached, Snapshot, Validator, WaitFor,
    Wanted, Watch, WatchStream,
};
pub use position::{Base, ChainMark, Claim, ClusterId, Epoch, Head, Id, Position, ServerId, Shown, chain};
pub use relay::{NsRelay, RelayAction, RelayAlarm, RelayEvent, RelaySettings, Upstream};
pub use replica::{
    Arriving, Data, Kept, Memory, NsReplica, NsReplicaMut, Replica, ReplicaSettings, ReplicaStatus,
    Unexpected, Update,
};
pub use sender::{Distributor, Namespace, NamespaceMut, NodeStatus, NotServed, Origin, Settings, Stale};
pub use wire::client::Step;
pub use wire::{Level, NackCode, NodeKind};

#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../docs/config-sync.md")]
    struct Guide;
}

/// SP id of the sending side: 0xFCF0.
pub const SENDER: u16 = 0xFCF0;
/// SP id of the receiving side: 0xFCF1.
pub const RECEIVER: u16 = 0xFCF1;
