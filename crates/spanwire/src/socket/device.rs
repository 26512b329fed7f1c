//! Devices: two sockets joined, messages passed on both ways.
//!
//! A device stands between clients and servers that know only its address: raw rep towards the clients and
//! raw req towards the servers, pull and push, sub and pub. For request/reply the backtrace grows by one
//! word at each, and the TTL ends a loop.
//!
//! Owns: nothing. Never: looks at a message.

use crate::Message;
use crate::error::Error;
use crate::protocol::{Protocol, Receives, Sends, may_forward};

use super::Socket;

/// Messages moved with one lock.
const BATCH: usize = 256;

fn check<A: Protocol, B: Protocol>(a: &Socket<A>, b: &Socket<B>) -> Result<(), Error> {
    let (a, b) = (a.info(), b.info());
    if may_forward(&a, &b) { Ok(()) } else { Err(Error::NoDevice { a: a.name, b: b.name }) }
}

/// Passes messages on from `a` to `b`, until one of them is closed. For one-way patterns: pull to push, sub to
/// pub.
///
/// # Errors
/// [`Error::NoDevice`] when the two are no partners.
pub fn forward<A, B>(a: &Socket<A>, b: &Socket<B>) -> Result<(), Error>
where
    A: Receives<Item = Message>,
    B: Sends<Item = Message>,
{
    check(a, b)?;
    pump(a, b);
    Ok(())
}

/// Passes messages on both ways between `a` and `b`, until one of them is closed. For two-way patterns: raw
/// rep and raw req, pair and pair. Runs in this thread and one more.
///
/// # Errors
/// [`Error::NoDevice`] when the two are no partners; [`Error::System`] when there is no thread.
pub fn bridge<A, B>(a: &Socket<A>, b: &Socket<B>) -> Result<(), Error>
where
    A: Receives<Item = Message> + Sends<Item = Message>,
    B: Receives<Item = Message> + Sends<Item = Message>,
{
    check(a, b)?;
    std::thread::scope(|scope| {
        let back = std::thread::Builder::new().name("spanwire-device".into());
        back.spawn_scoped(scope, || pump(b, a)).map_err(Error::System)?;
        pump(a, b);
        Ok(())
    })
}

fn pump<A, B>(a: &Socket<A>, b: &Socket<B>)
where
    A: Receives<Item = Message>,
    B: Sends<Item = Message>,
{
    let mut batch = Vec::new();
    while a.recv_many(&mut batch, BATCH).is_ok() {
        for msg in batch.drain(..) {
            // What can never be sent (no backtrace) is that message's end, not the device's.
            if b.send(msg).is_err_and(|e| e.is_closed()) {
                let _ = a.close(std::time::Duration::ZERO);
                return;
            }
        }
    }
    let _ = b.close(std::time::Duration::from_secs(1));
}
