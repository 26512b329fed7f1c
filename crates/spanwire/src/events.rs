//! What happens to a socket, as events, and how much, as counters.
//!
//! Owns: the public types. Never: decides anything.

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::{DropReason, PipeId, Reason};
use crate::transport::Facts;

/// Something that happened to a socket. From [`Socket::events`](crate::Socket::events).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An endpoint is bound.
    Listening {
        /// Number of the endpoint.
        endpoint: u32,
        /// The real address.
        url: String,
    },
    /// A peer has attached: messages may flow.
    Connected {
        /// The pipe to it.
        pipe: PipeId,
        /// Number of the endpoint.
        endpoint: u32,
        /// Whether this side dialled.
        dialed: bool,
        /// Addresses, and what else is known of the peer.
        facts: Arc<Facts>,
    },
    /// A peer that had attached is gone.
    Disconnected {
        /// The pipe that was.
        pipe: PipeId,
        /// Number of the endpoint.
        endpoint: u32,
        /// The peer's address.
        remote: String,
        /// Why.
        reason: Reason,
    },
    /// A connection was refused, by this side or by its handshake.
    Rejected {
        /// Number of the endpoint.
        endpoint: u32,
        /// The peer's address, if it was known.
        remote: String,
        /// Why.
        reason: Reason,
    },
    /// An attempt to connect failed: refused, unreachable, a name that does not resolve.
    ConnectFailed {
        /// Number of the endpoint.
        endpoint: u32,
        /// What was tried.
        url: String,
        /// The system's words.
        error: String,
    },
    /// The next attempt to connect comes after this delay.
    ConnectRetry {
        /// Number of the endpoint.
        endpoint: u32,
        /// Time until then.
        delay: Duration,
    },
    /// Accepting failed (out of descriptors); it pauses and goes on by itself.
    AcceptFailed {
        /// Number of the endpoint.
        endpoint: u32,
        /// The system's words.
        error: String,
    },
    /// Messages were dropped: told at the 1st, 2nd, 4th, 8th … of a pipe and reason.
    Dropped {
        /// The pipe, if it is known and still there.
        pipe: Option<PipeId>,
        /// Why.
        reason: DropReason,
        /// How many so far, of this pipe (or of none) and this reason.
        count: u64,
    },
    /// The protocol panicked, and with that the socket was closed: its state is not to be trusted any more. The
    /// last event. (A panic of a transport or a wire costs its connection, as an error would.)
    Panicked,
    /// An endpoint was closed.
    EndpointClosed {
        /// Number of the endpoint.
        endpoint: u32,
    },
}

/// Counters of a socket. From [`Socket::stats`](crate::Socket::stats); names follow nng's and nanomsg's.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Messages that have left or are queued to.
    pub tx_msgs: u64,
    /// Their bytes, protocol headers counted, framing not.
    pub tx_bytes: u64,
    /// Messages that arrived.
    pub rx_msgs: u64,
    /// Their bytes, protocol headers counted, framing not.
    pub rx_bytes: u64,
    /// Dropped messages by reason.
    pub drops: Vec<(DropReason, u64)>,
    /// Counters of the protocol's own.
    pub own: Vec<(&'static str, u64)>,
    /// Connections accepted.
    pub accepted: u64,
    /// Attempts to connect.
    pub connects: u64,
    /// Attempts that failed.
    pub connect_errors: u64,
    /// Errors of accept.
    pub accept_errors: u64,
    /// Pipes that attached.
    pub attached: u64,
    /// Connections refused.
    pub rejected: u64,
    /// Pipes that are gone.
    pub detached: u64,
    /// Events that a full event channel lost.
    pub events_lost: u64,
    /// The pipes that are attached now.
    pub pipes: Vec<PipeStats>,
}

impl Stats {
    /// Messages dropped for this reason.
    pub fn dropped(&self, why: DropReason) -> u64 {
        self.drops.iter().find(|(w, _)| *w == why).map_or(0, |(_, n)| *n)
    }
    /// All messages dropped.
    pub fn all_dropped(&self) -> u64 {
        self.drops.iter().map(|(_, n)| n).sum()
    }
}

/// Counters of a pipe.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipeStats {
    /// The pipe.
    pub pipe: PipeId,
    /// Number of its endpoint.
    pub endpoint: u32,
    /// The peer's address.
    pub remote: String,
    /// Messages that have left or are queued to.
    pub tx_msgs: u64,
    /// Their bytes, protocol headers counted, framing not.
    pub tx_bytes: u64,
    /// Messages that arrived.
    pub rx_msgs: u64,
    /// Their bytes, protocol headers counted, framing not.
    pub rx_bytes: u64,
    /// Messages waiting to be sent.
    pub queued: usize,
    /// Their frames, in bytes.
    pub queued_bytes: usize,
    /// Messages waiting to be received.
    pub pending: usize,
    /// Dropped messages by reason.
    pub drops: Vec<(DropReason, u64)>,
}
