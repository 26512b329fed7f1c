//! `tcp://HOST:PORT`.
use super::{Bag, Dialer, Listener, Transport};
use std::io;
/// The TCP transport.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;
/// Options.
#[derive(Clone, Debug, Default)]
pub struct TcpOptions {}
impl Transport for Tcp {
    fn schemes(&self) -> &'static [&'static str] {
        &["tcp"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
