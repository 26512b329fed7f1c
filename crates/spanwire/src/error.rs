//! Errors: one for setting up, one for each operation. A failed send gives the item back.

use std::fmt;
use std::io;

/// Why a socket could not be made, bound, connected or closed.
///
/// The text names the address or the option; the system's error, where there is one, is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address has no scheme, or one that no transport answers to.
    #[error("no transport for {url:?}: known schemes are {known}")]
    UnknownScheme {
        /// As given.
        url: String,
        /// Schemes of this socket, separated by commas.
        known: String,
    },
    /// The endpoint could not be bound.
    #[error("failed to bind {url}: {source}")]
    Bind {
        /// As given.
        url: String,
        /// The system's or the transport's reason.
        source: io::Error,
    },
    /// The address cannot be dialled at all. (A peer that is not there is no error: it is tried again.)
    #[error("failed to connect to {url}: {source}")]
    Connect {
        /// As given.
        url: String,
        /// The transport's reason.
        source: io::Error,
    },
    /// An option has a value that it cannot have.
    #[error("invalid option {name}: {why}")]
    InvalidOption {
        /// Name of the builder's method.
        name: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The system refused a resource that every socket needs.
    #[error("failed to create a socket: {0}")]
    System(#[source] io::Error),
    /// The socket was closed.
    #[error("the socket is closed")]
    Closed,
    /// The socket belongs to the parent of this forked process.
    #[error("the socket was made before this process was forked: make a new one in the child")]
    Forked,
    /// Two sockets cannot be joined by a device.
    #[error("no device between {a} and {b}: their protocols must be partners, and forwardable")]
    NoDevice {
        /// Protocol of the first.
        a: &'static str,
        /// Protocol of the second.
        b: &'static str,
    },
}

impl Error {
    /// Whether the socket was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closed)
    }
}

/// Why an item was not sent. It comes back: [`into_inner`](SendError::into_inner).
#[derive(PartialEq, Eq, Clone)]
#[non_exhaustive]
pub enum SendError<T> {
    /// `try_send`: there is no room now, or no peer yet. `Req::start`, `RequestSet::start_many`: too many requests are open.
    Full(T),
    /// `send_timeout`: there was no room, or no peer, in time.
    TimedOut(T),
    /// The socket is closed.
    Closed(T),
    /// There is no peer, and the socket was told to fail rather than wait.
    NoPeer(T),
    /// This item can never be sent; the text says why.
    Invalid(T, &'static str),
    /// The socket belongs to the parent of this forked process.
    Forked(T),
}

impl<T> SendError<T> {
    /// The item.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Full(t)
            | SendError::TimedOut(t)
            | SendError::Closed(t)
            | SendError::NoPeer(t)
            | SendError::Invalid(t, _)
            | SendError::Forked(t) => t,
        }
    }

    /// Whether the socket was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, SendError::Closed(_))
    }

    /// Whether there was no room, at once or in time.
    pub fn is_full(&self) -> bool {
        matches!(self, SendError::Full(_) | SendError::TimedOut(_))
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Full(_) => f.write_str("not sent: no room, or no peer yet (see events())"),
            SendError::TimedOut(_) => {
                f.write_str("not sent: no room, or no peer, before the deadline (see events())")
            }
            SendError::Closed(_) => f.write_str("not sent: the socket is closed"),
            SendError::NoPeer(_) => f.write_str("not sent: there is no peer"),
            SendError::Invalid(_, why) => write!(f, "not sent: {why}"),
            SendError::Forked(_) => f.write_str("not sent: the socket belongs to the parent process"),
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "Full(..)",
            SendError::TimedOut(_) => "TimedOut(..)",
            SendError::Closed(_) => "Closed(..)",
            SendError::NoPeer(_) => "NoPeer(..)",
            SendError::Invalid(..) => "Invalid(..)",
            SendError::Forked(_) => "Forked(..)",
        })
    }
}

impl<T> std::error::Error for SendError<T> {}

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// `try_recv`: nothing is there now.
    #[error("nothing to receive now")]
    Empty,
    /// `recv_timeout`: nothing came in time.
    #[error("nothing received before the deadline")]
    TimedOut,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
    /// The socket belongs to the parent of this forked process.
    #[error("the socket belongs to the parent process")]
    Forked,
}

impl RecvError {
    /// Whether the socket was closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, RecvError::Closed)
    }
}

/// Why a wait for a key ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Not in time.
    #[error("not before the deadline")]
    TimedOut,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
    /// The socket belongs to the parent of this forked process.
    #[error("the socket belongs to the parent process")]
    Forked,
}
