//! Devices: two sockets joined, messages passed on both ways.
//!
//! A device stands between clients and servers that know only its address: raw rep towards the clients and
//! raw req towards the servers, pull and push, sub and pub. For request/reply the backtrace grows by one
//! word at each, and the TTL ends a loop.
//!
//! Owns: nothing. Never: looks at a message.

use std::time::Duration;

use crate::Message;
use crate::error::{Error, SendError};
use crate::protocol::{DropReason, Protocol, Receives, Sends, may_forward};

use super::{Interest, Poller, Socket};

/// Messages moved between two looks at both sockets.
const BATCH: usize = 256;
/// When one side has ended: how long what is on its way may take to leave by the other.
const LAST: Duration = Duration::from_secs(1);

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
    pump(a, b, Duration::ZERO)
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
        let back = back.spawn_scoped(scope, || pump(b, a, LAST)).map_err(Error::System)?;
        let there = pump(a, b, LAST);
        // A panic in there would be this device's defect; the direction is at its end in any case.
        there.and(back.join().unwrap_or(Ok(())))
    })
}

/// `for_a`: the time in which what is queued on `a` may leave, if something is.
fn pump<A, B>(a: &Socket<A>, b: &Socket<B>, for_a: Duration) -> Result<(), Error>
where
    A: Receives<Item = Message>,
    B: Sends<Item = Message>,
{
    let end = pass_on(a, b);
    // The end of one is the end of the other; what is on its way may leave.
    let _ = a.close(for_a);
    let _ = b.close(LAST);
    end
}

/// Until one of them is closed. Waits for room before it takes a message, so that none is in between when the end comes.
fn pass_on<A, B>(a: &Socket<A>, b: &Socket<B>) -> Result<(), Error>
where
    A: Receives<Item = Message>,
    B: Sends<Item = Message>,
{
    let (mut room, mut more) = (Poller::new()?, Poller::new()?);
    room.add(a, Interest::END)?;
    room.add(b, Interest::SEND)?;
    more.add(a, Interest::RECV)?;
    more.add(b, Interest::END)?;
    loop {
        if room.wait(None)?.iter().any(|r| r.closed) || more.wait(None)?.iter().any(|r| r.closed) {
            return Ok(());
        }
        for _ in 0..BATCH {
            if !b.readiness().send {
                break;
            }
            let Ok(msg) = a.try_recv() else { break };
            match b.try_send(msg) {
                Ok(()) => {}
                // Somebody else sends on `b`, too, and took the room: then this one waits for it.
                Err(SendError::Full(msg)) => {
                    if b.send(msg).is_err() {
                        lost(a);
                    }
                }
                // What can never be sent (no backtrace) is that message's end, not the device's.
                Err(_) => lost(a),
            }
        }
    }
}

/// A message that was taken and could not be passed on is counted where it came from.
fn lost<A: Protocol>(a: &Socket<A>) {
    a.with(|_, cx| cx.dropped(None, DropReason::Unroutable));
}
