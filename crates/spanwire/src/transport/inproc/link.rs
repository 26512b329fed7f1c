//! A connection, from the dial until its two ends know each other.
//!
//! Owns: what both ends share, and how they meet and part. Never: moves a message (`lane` does).

use std::io;
use std::sync::{Arc, Mutex};

use super::lane::{Lane, Reader, Writer};
use super::lock;
use super::names::names;
use crate::transport::{Facts, MessagePipe, MessageReader, MessageWriter, Notifier, Registrar};
use crate::wire::{Hello, PeerHello};

/// The sides of a link, as indices.
pub(super) const DIALER: usize = 0;
pub(super) const LISTENER: usize = 1;

/// What the two ends of a connection share.
#[derive(Default)]
pub(super) struct Link {
    /// The process: in a forked child a lock here may be held by a thread that does not exist there.
    pub(super) process: u32,
    pub(super) name: String,
    /// Of the dial: the order in which they wait.
    pub(super) number: u64,
    pub(super) meeting: Mutex<Meeting>,
    /// By the side that sends.
    pub(super) lanes: [Mutex<Lane>; 2],
}

/// How two sides come to know each other, by side.
#[derive(Default)]
pub(super) struct Meeting {
    hello: [Option<PeerHello>; 2],
    notifier: [Option<Notifier>; 2],
    gone: [bool; 2],
}

impl Link {
    /// This is a forked child's copy: the peer is in its parent, and hears nothing of its end.
    pub(super) fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    pub(super) fn end(&self, side: usize) {
        lock(&self.lanes[side]).ended = true;
    }

    pub(super) fn deafen(&self, side: usize) {
        let unread = {
            let mut lane = lock(&self.lanes[1 - side]);
            lane.deaf = true;
            lane.bytes = 0;
            std::mem::take(&mut lane.queue)
        };
        // Not under the lock: a body's owner may run code of its own when it is freed.
        drop(unread);
    }
}

/// One end of a connection, until it is split.
pub(super) struct Pipe {
    link: Arc<Link>,
    side: usize,
    recv_max: usize,
    split: bool,
}

impl Pipe {
    pub(super) fn new(link: Arc<Link>, side: usize) -> Self {
        Pipe { link, side, recv_max: 0, split: false }
    }
}

impl MessagePipe for Pipe {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        let own = registrar.notifier();
        lock(&self.link.meeting).notifier[self.side] = Some(own.clone());
        if self.side == DIALER {
            let listener = {
                let mut names = names();
                let entry = names.entry(self.link.name.clone()).or_default();
                entry.waiting.insert(self.link.number, self.link.clone());
                entry.notifier.clone()
            };
            if let Some(listener) = listener {
                listener.notify();
            }
        }
        // A descriptor would be writable now; the first call of `handshake` must not depend on the peer.
        own.notify();
        Ok(())
    }

    fn handshake(&mut self, me: &Hello) -> io::Result<Option<PeerHello>> {
        self.recv_max = me.recv_max;
        let (peer, tell, gone) = {
            let mut meeting = lock(&self.link.meeting);
            let first_time = meeting.hello[self.side].is_none();
            if first_time {
                let mut hello = PeerHello::sp(me.info.id);
                hello.name = Some(me.info.name.to_owned());
                meeting.hello[self.side] = Some(hello);
            }
            let other = 1 - self.side;
            let tell = meeting.notifier[other].clone().filter(|_| first_time);
            (meeting.hello[other].clone(), tell, meeting.gone[other])
        };
        if let Some(notifier) = tell {
            notifier.notify();
        }
        // The peer's name comes before its end: one that went because the protocols do not fit is told apart
        // from one that just went.
        if peer.is_none() && gone {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(peer)
    }

    fn waiting(&self) -> bool {
        let meeting = lock(&self.link.meeting);
        self.side == DIALER && meeting.notifier[1 - DIALER].is_none() && !meeting.gone[1 - DIALER]
    }

    fn facts(&self) -> Facts {
        let url = format!("inproc://{}", self.link.name);
        Facts::new(url.clone(), url)
    }

    fn split(mut self: Box<Self>) -> io::Result<(Box<dyn MessageReader>, Box<dyn MessageWriter>)> {
        let (own, peer) = {
            let meeting = lock(&self.link.meeting);
            (meeting.notifier[self.side].clone(), meeting.notifier[1 - self.side].clone())
        };
        let (Some(own), Some(peer)) = (own, peer) else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "split before the handshake was over"));
        };
        self.split = true;
        let reader =
            Reader { link: self.link.clone(), side: self.side, peer: peer.clone(), max: self.recv_max };
        let writer = Writer { link: self.link.clone(), side: self.side, peer };
        // What came before there was a reader gave its notice to the handshake.
        own.notify();
        Ok((Box::new(reader), Box::new(writer)))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.split || self.link.is_inherited() {
            return;
        }
        if self.side == DIALER {
            let mut names = names();
            if let Some(entry) = names.get_mut(&self.link.name) {
                entry.waiting.remove(&self.link.number);
                if entry.waiting.is_empty() && !entry.bound {
                    names.remove(&self.link.name);
                }
            }
        }
        self.link.end(self.side);
        self.link.deafen(self.side);
        let peer = {
            let mut meeting = lock(&self.link.meeting);
            meeting.gone[self.side] = true;
            meeting.notifier[1 - self.side].clone()
        };
        if let Some(peer) = peer {
            peer.notify();
        }
    }
}
