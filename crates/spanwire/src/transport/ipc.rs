//! `ipc://HOST:PORT`.
use super::{Bag, Dialer, Listener, Transport};
use std::io;
/// The IPC transport.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipc;
/// Options.
#[derive(Clone, Debug, Default)]
pub struct IpcOptions {}
impl Transport for Ipc {
    fn schemes(&self) -> &'static [&'static str] {
        &["ipc"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
/// Credentials of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {}
