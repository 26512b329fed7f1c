//! Wires: bytes in, messages out. Handshake and framing of a byte stream, without I/O.
//!
//! A transport that yields a byte stream yields a [`Wire`] with it: [`Sp`] for tcp and ipc; a WebSocket or
//! ZMTP one belongs to a crate of its own, and a user's own is made the same way. The engine feeds the
//! [`Decoder`] what it read and writes what the encoder made; decoder and encoder are halves, since the
//! thread that reads and the thread that writes differ.
//!
//! Owns: the meaning of bytes on a stream. Never: reads, writes, waits, or allocates on a peer's word.

mod input;
mod sp;

use std::collections::VecDeque;
use std::fmt;

pub use input::Input;
pub use sp::Sp;

use crate::Message;
use crate::protocol::ProtocolInfo;

/// Who this side is, for its handshake.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Hello {
    /// The protocol.
    pub info: ProtocolInfo,
    /// Whether this side dialled or listened.
    pub side: Side,
    /// Largest message (header and body) to accept, in bytes.
    pub recv_max: usize,
    /// Address of the endpoint, as the application gave it.
    pub url: String,
}

impl Hello {
    /// For tests of a wire: dialling, 1 MiB at most.
    pub fn new(info: ProtocolInfo, side: Side, recv_max: usize, url: impl Into<String>) -> Self {
        Hello { info, side, recv_max, url: url.into() }
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Side {
    /// It called.
    Dialer,
    /// It was called.
    Listener,
}

/// Who the peer says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerHello {
    /// SP id, on wires that have it.
    pub sp_id: Option<u16>,
    /// Name of its socket type, on wires that have it.
    pub name: Option<String>,
}

impl PeerHello {
    /// A peer with an SP id.
    pub fn sp(id: u16) -> Self {
        PeerHello { sp_id: Some(id), name: None }
    }
    /// A peer with a named socket type.
    pub fn named(name: impl Into<String>) -> Self {
        PeerHello { sp_id: None, name: Some(name.into()) }
    }
}

/// The socket types that have an SP id by the SP RFCs and by nanomsg and nng.
const NAMES: [(u16, &str); 12] = [
    (0x10, "pair"),
    (0x11, "pair v1"),
    (0x20, "pub"),
    (0x21, "sub"),
    (0x30, "req"),
    (0x31, "rep"),
    (0x50, "push"),
    (0x51, "pull"),
    (0x62, "surveyor"),
    (0x63, "respondent"),
    (0x70, "bus"),
    (0x640, "star"),
];

/// Shows `rep (SP id 0x31)`, or the name.
impl fmt::Display for PeerHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.sp_id, &self.name) {
            (Some(id), _) => match NAMES.iter().find(|(known, _)| *known == id) {
                Some((_, name)) => write!(f, "{name} (SP id {id:#x})"),
                None => write!(f, "SP id {id:#x}"),
            },
            (None, Some(name)) => f.write_str(name),
            (None, None) => f.write_str("nameless"),
        }
    }
}

/// What is wrong with the peer's bytes. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// These bytes do not begin the handshake of this wire.
    #[error("not the handshake of this wire")]
    BadHandshake,
    /// The frame is larger than may be received.
    #[error("frame of {size} bytes is over the limit of {limit}")]
    TooBig {
        /// As announced, in bytes.
        size: u64,
        /// In bytes.
        limit: usize,
    },
    /// A frame that does not exist.
    #[error("bad frame: {0}")]
    BadFrame(&'static str),
}

/// A wire for one connection, before it starts.
pub trait Wire: Send {
    /// Its name: `sp` for ours.
    fn name(&self) -> &'static str;

    /// Appends to `out` what is said first, without waiting for the peer, and splits into the halves.
    fn start(self: Box<Self>, me: &Hello, out: &mut Vec<u8>) -> (Box<dyn Decoder>, Encoding);
}

/// How messages become bytes.
pub enum Encoding {
    /// Each message is `prefix`, the length of the rest as 64 bits big-endian, header words, body. The
    /// engine does this itself, in place.
    LengthPrefixed(&'static [u8]),
    /// The wire's own encoder.
    Custom(Box<dyn Encoder>),
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::LengthPrefixed(prefix) => write!(f, "LengthPrefixed({prefix:x?})"),
            Encoding::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// The receiving half: bytes to messages.
pub trait Decoder: Send {
    /// Takes whole frames off `input` and leaves the rest; called again with the rest and more. Sets
    /// `inbox.peer` once, when the handshake is over, and pushes messages while [`Inbox::wants_more`].
    ///
    /// # Errors
    /// The connection is closed with the error as its reason; messages already pushed are delivered.
    fn input(&mut self, input: &mut Input<'_>, inbox: &mut Inbox) -> Result<(), WireError>;
}

/// The sending half, for wires whose frames are not simply length-prefixed.
pub trait Encoder: Send {
    /// Appends the frames of all messages of `batch` to `out`, and empties it.
    fn output(&mut self, batch: &mut VecDeque<Message>, out: &mut Vec<u8>);

    /// Appends a control word (`subscribe`, or cancel); `false`: this wire has none.
    fn control(&mut self, _subscribe: bool, _topic: &[u8], _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// What a decoder, or the reader of a message transport, brings in.
///
/// Concrete, so that no dynamic call is made for each message.
#[derive(Debug, Default)]
pub struct Inbox {
    pub(crate) messages: VecDeque<Message>,
    pub(crate) bytes: usize,
    pub(crate) budget_messages: usize,
    pub(crate) budget_bytes: usize,
    /// The peer, once the handshake is over.
    pub peer: Option<PeerHello>,
    /// Control words of the peer: subscribe or cancel, and the topic.
    pub control: Vec<(bool, Vec<u8>)>,
    /// Bytes to answer the peer with at once (a pong, the answer of a handshake).
    pub reply: Vec<u8>,
}

impl Inbox {
    /// For tests: an inbox that wants up to `messages`.
    pub fn with_budget(messages: usize) -> Self {
        Inbox { budget_messages: messages, budget_bytes: usize::MAX, ..Inbox::default() }
    }

    /// Whether another message may be pushed: the pipe's inbound queue has room.
    #[inline]
    pub fn wants_more(&self) -> bool {
        self.budget_messages > 0 && self.budget_bytes > 0
    }

    /// Whether it holds nothing that is to be delivered.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.control.is_empty() && self.reply.is_empty()
    }

    /// Adds a message.
    #[inline]
    pub fn push(&mut self, msg: Message) {
        self.count(msg.wire_len());
        self.messages.push_back(msg);
    }

    /// Adds the next `n` bytes of `input` as a message; `false`, and nothing done, when there are fewer. The same as
    /// [`Input::message`] and [`push`](Inbox::push), and quicker.
    #[inline]
    pub fn take(&mut self, input: &mut Input<'_>, n: usize) -> bool {
        if n <= Message::MOST_FILLED {
            self.messages.push_back(Message::EMPTY);
            if self.messages.back_mut().is_some_and(|msg| input.fill(msg, n)) {
                self.count(n);
                return true;
            }
            self.messages.pop_back();
        }
        input.message(n).map(|msg| self.push(msg)).is_some()
    }

    #[inline]
    fn count(&mut self, len: usize) {
        self.budget_messages = self.budget_messages.saturating_sub(1);
        self.budget_bytes = self.budget_bytes.saturating_sub(len);
        self.bytes += len;
    }

    /// Takes the whole of `batch`, whose messages have `bytes` bytes (headers and bodies) in all, if nothing was
    /// pushed before and there is room for every one; else takes nothing and says `false`. Costs the same
    /// for any number.
    pub fn take_all(&mut self, batch: &mut VecDeque<Message>, bytes: usize) -> bool {
        if !self.messages.is_empty() || batch.len() > self.budget_messages || bytes > self.budget_bytes {
            return false;
        }
        self.budget_messages -= batch.len();
        self.budget_bytes -= bytes;
        self.bytes += bytes;
        std::mem::swap(&mut self.messages, batch);
        true
    }

    /// The messages pushed and not yet taken.
    pub fn messages(&mut self) -> &mut VecDeque<Message> {
        &mut self.messages
    }
}
