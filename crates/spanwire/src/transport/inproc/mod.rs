//! `inproc://NAME`, whole messages handed from one socket of the process to another.
//!
//! Messages are moved in batches, their bodies never copied, their header words apart. The receiver is told when
//! its lane was empty, the sender, if it found no room, at half: a batch costs one notice.
//!
//! Owns: the table of names, and those queues. Never: copies a body, waits, or holds the table's lock while
//! messages move.
//!
//! Locks: the table's, then a link's meeting; a lane's lock stands alone. None is held when a notice is given.

mod lane;
mod link;
mod names;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use names::{InprocDialer, InprocListener, names};

use super::{Bag, Dialer, Listener, Transport, address, invalid};

/// The inproc transport: `inproc://NAME`. It has no options.
///
/// NAME is any text that is not empty; case matters. A connect may come before the bind and waits for it;
/// when a listener goes, those who wait go on waiting for the next one of that name.
///
/// Between the queues of the two sockets each direction has one of its own, on top of what the sockets allow: at
/// most 1,024 messages and 1 MiB of headers and bodies; a larger message passes alone. What lies in it when
/// its receiver goes is lost, as are bytes in the kernel's buffers when a stream's peer goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inproc;

impl Transport for Inproc {
    fn schemes(&self) -> &'static [&'static str] {
        &["inproc"]
    }

    fn dialer(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(InprocDialer { name: parse(url)? }))
    }

    fn listen(&self, url: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        let name = parse(url)?;
        let mut names = names();
        let entry = names.entry(name.clone()).or_default();
        if entry.bound {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        entry.bound = true;
        Ok(Box::new(InprocListener { process: std::process::id(), name }))
    }
}

fn parse(url: &str) -> io::Result<String> {
    match address(url, "inproc")? {
        "" => Err(invalid("bad address: no name")),
        name => Ok(name.to_owned()),
    }
}

/// Nothing here panics while it holds a lock, so what a poisoned one guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
