//! Waiting for an event, and telling what came instead.
//!
//! Owns: the events of one socket. Never: sleeps.

use std::time::Instant;

use crossbeam_channel::Receiver;
use spanwire::protocol::Protocol;
use spanwire::{Event, Message, Reason, Socket};

use super::SOON;

/// The events of a socket, from here on.
pub(super) struct Watch {
    events: Receiver<Event>,
    seen: Vec<Event>,
}

impl Watch {
    pub(super) fn new<P: Protocol>(socket: &Socket<P>) -> Self {
        Watch { events: socket.events(), seen: Vec::new() }
    }

    /// The first event, not looked at yet, of which `f` makes something.
    #[track_caller]
    pub(super) fn until<R>(&mut self, what: &str, mut f: impl FnMut(&Event) -> Option<R>) -> R {
        let deadline = Instant::now() + SOON;
        loop {
            let event = match self.events.recv_deadline(deadline) {
                Ok(event) => event,
                Err(e) => {
                    let last = &self.seen[self.seen.len().saturating_sub(20)..];
                    panic!("waited for {what}: {e}; {} events, the last: {last:#?}", self.seen.len());
                }
            };
            let found = f(&event);
            self.seen.push(event);
            if let Some(found) = found {
                return found;
            }
        }
    }

    #[track_caller]
    pub(super) fn disconnected(&mut self) -> Reason {
        self.until("the end of a pipe", |event| match event {
            Event::Disconnected { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    /// All events so far, those that were waited for and those that came since.
    pub(super) fn all(&mut self) -> &[Event] {
        self.seen.extend(self.events.try_iter());
        &self.seen
    }
}

/// A message of `size` bytes that shows its number and whether it is whole.
pub(super) fn numbered(n: u32, size: usize) -> Vec<u8> {
    let number = n.to_be_bytes();
    (0..size).map(|i| number[i % 4] ^ (i / 4).to_le_bytes()[0] ^ (i >> 10).to_le_bytes()[0]).collect()
}

/// `msg` is [`numbered`] like that.
#[track_caller]
pub(super) fn check(msg: &Message, n: u32, size: usize) {
    assert_eq!(msg.len(), size, "size of message {n}");
    let want = numbered(n, size);
    if let Some(at) = msg.iter().zip(&want).position(|(got, want)| got != want) {
        panic!("message {n} of {size} bytes differs from byte {at} on");
    }
}
