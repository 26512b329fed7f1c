//! Scalability-protocol (SP) sockets: pair, request/reply, publish/subscribe, pipeline.
//!
//! A socket speaks a pattern, not bytes: one socket, many peers, many endpoints; bind and connect in any
//! order; it reconnects by itself. On the wire it is compatible with nanomsg, nng and mangos. It is a library, not a server:
//! nothing to deploy, no context object, no runtime.
//!
//! ```
//! use spanwire::{Pull, Push};
//!
//! let pull = Pull::new()?;
//! let at = pull.bind("tcp://127.0.0.1:0")?; // port 0: the endpoint knows the real one
//!
//! let push = Push::new()?;
//! push.connect(at.url())?; // returns at once; reconnects for ever
//! push.send("hello")?; // waits under back-pressure
//!
//! assert_eq!(pull.recv()?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Sending and receiving come in four forms: `send`, `try_send`, `send_timeout`, `send_async`. Any thread and
//! any task may use a socket at once. For several sockets there is [`Poller`]; for a foreign event loop
//! [`Socket::readable_fd`]. Own protocols implement [`protocol::Protocol`], own transports [`transport::Transport`]; the
//! built-in ones use nothing that yours could not.
//!
//! Features, none by default: `tokio` for `Socket::drive_on_tokio`, by which a tokio runtime drives a socket in place of
//! the library's background thread; `testkit` for tests of protocols.
#![deny(missing_docs, unsafe_code)]

mod engine;
mod error;
mod events;
mod message;
pub mod protocol;
mod queue;
pub mod socket;
mod time;
pub mod transport;
pub mod wire;

pub use error::{Error, RecvError, SendError, WaitError};
pub use events::{Event, PipeStats, Stats};
pub use message::{Header, Message};
/// The version of mio whose types the transport traits use.
pub use mio;
pub use protocol::publish::Slow;
pub use protocol::req::{Failed, Reply, ReqId};
pub use protocol::subscribe::Prefer;
pub use protocol::{DropReason, Limit, Overflow, PipeId, Reason};
pub use socket::{
    Builder, Endpoint, EndpointOptions, Interest, Pair, Pending, Poller, Pub, Pull, Push, Rep, Req, Request,
    RequestError, RequestSet, Socket, Sub, device,
};

/// The README's and the guide's code, compiled and run.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/guide.md")]
    struct Guide;
}
