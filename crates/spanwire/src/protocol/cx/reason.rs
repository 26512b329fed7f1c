//! Why pipes end and why messages are lost, and how many were lost for which reason.
//!
//! Owns: the reasons, their words, and counts by reason. Never: decides that something ends or is lost.

use std::fmt;

/// Why a pipe was closed or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The peer ended the connection.
    Peer,
    /// The connection broke; the text is the system's.
    Broken(String),
    /// The peer did not finish its handshake in time.
    HandshakeTimeout,
    /// The peer's handshake is not that of this wire.
    BadHandshake,
    /// The peer speaks another protocol: its SP id, or its name.
    Mismatch(String),
    /// A frame was larger than `recv_max_size`.
    TooBig {
        /// Size that the peer announced, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A frame that the wire does not know.
    BadFrame(&'static str),
    /// This socket already has its peer (pair).
    Busy,
    /// The peer takes too slowly, and the socket was told to disconnect such ones.
    Slow,
    /// The peer sent what its protocol does not allow.
    Malformed,
    /// The application refused the peer.
    Denied(String),
    /// A reason of a protocol's own.
    Protocol(&'static str),
    /// This side closed the endpoint or the socket.
    Local,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Peer => f.write_str("closed by the peer"),
            Reason::Broken(why) => write!(f, "connection broken: {why}"),
            Reason::HandshakeTimeout => f.write_str("handshake not finished in time"),
            Reason::BadHandshake => f.write_str("not the handshake of this wire"),
            Reason::Mismatch(peer) => write!(f, "peer is no partner: {peer}"),
            Reason::TooBig { size, limit } => {
                write!(f, "frame of {size} bytes is over the limit of {limit} (recv_max_size)")
            }
            Reason::BadFrame(why) => write!(f, "bad frame: {why}"),
            Reason::Busy => f.write_str("busy: the socket has its peer"),
            Reason::Slow => f.write_str("peer too slow"),
            Reason::Malformed => f.write_str("malformed message"),
            Reason::Denied(why) => write!(f, "refused by the application: {why}"),
            Reason::Protocol(why) => f.write_str(why),
            Reason::Local => f.write_str("closed by this side"),
        }
    }
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// The queue was full and the new message gave way.
    Newest,
    /// The queue was full and the oldest message gave way.
    Oldest,
    /// A newer message took its place (keep-latest).
    Replaced,
    /// A reply whose connection is gone, or a channel word that names none.
    Unroutable,
    /// There was no peer.
    NoPeer,
    /// Larger than `recv_max_size`: its connection was closed.
    TooBig,
    /// Passed more devices than the TTL allows.
    Ttl,
    /// Not what the protocol's messages look like.
    Malformed,
    /// A reply to a request that has ended.
    Late,
    /// Matches no subscription.
    Filtered,
    /// Sent to a socket that does not receive.
    Unexpected,
    /// The pipe closed before the message was sent or received.
    PipeClosed,
    /// A reason of a protocol's own.
    Own(&'static str),
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropReason::Newest => "newest",
            DropReason::Oldest => "oldest",
            DropReason::Replaced => "replaced",
            DropReason::Unroutable => "unroutable",
            DropReason::NoPeer => "no-peer",
            DropReason::TooBig => "too-big",
            DropReason::Ttl => "ttl",
            DropReason::Malformed => "malformed",
            DropReason::Late => "late",
            DropReason::Filtered => "filtered",
            DropReason::Unexpected => "unexpected",
            DropReason::PipeClosed => "pipe-closed",
            DropReason::Own(why) => why,
        })
    }
}

/// Counts by reason. A handful of reasons: a vector beats a map.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropCounts(Vec<(DropReason, u64)>);

impl DropCounts {
    pub(super) fn add(&mut self, why: DropReason) -> u64 {
        match self.0.iter_mut().find(|(w, _)| *w == why) {
            Some((_, n)) => {
                *n += 1;
                *n
            }
            None => {
                self.0.push((why, 1));
                1
            }
        }
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        self.0.iter().copied()
    }
}
