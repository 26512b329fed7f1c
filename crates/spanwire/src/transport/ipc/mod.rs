//! `ipc://PATH`, a byte stream over a Unix socket; `unix://PATH` is the same, and on Linux `abstract://NAME`.
//!
//! Owns: the addresses' meaning, the socket's file, its mode and its end, and the peer's credentials. Never: a
//! frame, a handshake, a retry or a wait (the engine's); never removes what is not a socket (but for the empty file
//! of its own lock), nor a socket that anybody listens on.

mod address;
mod dialer;
mod file;
mod listener;
mod options;
mod stream;
#[cfg(test)]
mod tests;

use std::io;

use address::ABSTRACT;
use dialer::IpcDialer;
use listener::IpcListener;
pub use options::IpcOptions;

use super::{Bag, Dialer, Listener, Transport};

/// The ipc transport: `ipc://PATH`, `unix://PATH`, and on Linux `abstract://NAME`. Its options are
/// [`IpcOptions`].
///
/// PATH is relative to the working directory unless it begins with `/`, and has at most 107 bytes (103 on
/// some systems). The file is made by bind and removed when the endpoint closes; one that a dead process left is
/// replaced, one that anybody listens on, or that is no socket, is left alone (`AddrInUse`).
///
/// NAME is in a space of names without files; bytes may be written as `%XX`. To bind the empty name
/// is to get one from the kernel.
///
/// What is known of a peer has its [`Credentials`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipc;

/// Who is at the other end of an ipc connection, as the kernel says; in [`Facts::more`](crate::transport::Facts::more).
///
/// They are those of the peer's process when it connected or listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// Process; Linux only, and only one that this process can see.
    pub pid: Option<u32>,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Transport for Ipc {
    fn schemes(&self) -> &'static [&'static str] {
        if ABSTRACT { &["ipc", "unix", "abstract"] } else { &["ipc", "unix"] }
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(IpcDialer::new(url, options)?))
    }

    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(IpcListener::new(url, options)?))
    }
}
