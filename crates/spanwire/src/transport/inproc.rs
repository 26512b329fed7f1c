//! `inproc://HOST:PORT`.
use super::{Bag, Dialer, Listener, Transport};
use std::io;
/// The INPROC transport.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inproc;
impl Transport for Inproc {
    fn schemes(&self) -> &'static [&'static str] {
        &["inproc"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
