//! `tcp://HOST:PORT`, a byte stream over TCP.
//!
//! Owns: the addresses' meaning, socket options, the non-blocking connect, accept. Never: a frame, a
//! handshake, a retry or a wait (the engine's); a name is looked up where the engine allows blocking.

mod address;
mod dialer;
mod listener;
mod options;
mod stream;
#[cfg(test)]
mod tests;

use std::io;

use dialer::TcpDialer;
use listener::TcpListener;
pub use options::{Keepalive, TcpOptions};

use super::{Bag, Dialer, Listener, Transport};

/// The tcp transport: `tcp://HOST:PORT`. Its options are [`TcpOptions`].
///
/// HOST is an IPv4 address, an IPv6 address in brackets (with `%eth0` or `%2` where it needs a scope), or a
/// name, which is looked up again before every attempt; its addresses are tried with the families in turn.
///
/// To bind, HOST may also be `*` or nothing for all interfaces, or the name of an interface
/// (`tcp://eth0:5555`), and PORT 0 for any that is free. All interfaces means both families on every
/// system, or IPv4 alone where the machine has no IPv6. Of the addresses of a name one is bound, IPv4 before
/// IPv6.
///
/// To connect, `tcp://SOURCE;HOST:PORT` also says the address or interface to connect from (as nanomsg's
/// `nn_tcp` has it).
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Transport for Tcp {
    fn schemes(&self) -> &'static [&'static str] {
        &["tcp"]
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(TcpDialer::new(url, options)?))
    }

    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::new(url, options)?))
    }
}
