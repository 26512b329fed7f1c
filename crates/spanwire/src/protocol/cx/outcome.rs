//! What a protocol may ask of a pipe, and what it is told.
//!
//! Owns: the words alone. Never: carries anything out (`Cx` does).

use crate::Message;

/// What [`Cx::put`](super::Cx::put) left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is room for more.
    More,
    /// That was the last that fits; [`Protocol::writable`](crate::protocol::Protocol::writable) follows.
    Full,
}

/// Why [`Cx::put`](super::Cx::put) did not take a message. It comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum PutError {
    /// The queue is full; [`Protocol::writable`](crate::protocol::Protocol::writable) follows.
    Full(Message),
    /// The pipe is closed or closing.
    Gone(Message),
}

impl PutError {
    /// The message.
    pub fn into_message(self) -> Message {
        match self {
            PutError::Full(msg) | PutError::Gone(msg) => msg,
        }
    }
}

/// What [`Cx::offer`](super::Cx::offer) does when the queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// The new message is dropped.
    DropNewest,
    /// The oldest that the writer has not taken is dropped. If it has taken all, the new one waits behind them, one
    /// over the limit.
    DropOldest,
    /// All that the writer has not taken is dropped, full or not: the peer gets the newest, which may be one over
    /// the limit.
    KeepLatest,
    /// The peer is disconnected.
    Disconnect,
}

/// What [`Cx::offer`](super::Cx::offer) did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// It is in the queue.
    Queued(Room),
    /// It was dropped, and counted; with [`Overflow::Disconnect`] the pipe closes, too.
    Dropped,
    /// The pipe is closed or closing.
    Gone,
}

/// An out-of-band word between a protocol and the peer's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control<'a> {
    /// The peer is to send, or wants, messages with this prefix.
    Subscribe(&'a [u8]),
    /// No longer.
    Cancel(&'a [u8]),
}
