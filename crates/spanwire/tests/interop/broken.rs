//! That these tests can fail: with one bit of our handshake wrong no peer may take us for a partner.
//!
//! Were it otherwise, the peers would not be looking at what we send, and the rest would prove little.

use std::io;

use spanwire::transport::{Bag, Connection, Dialer, Listener, Target, Tcp, Transport};
use spanwire::wire::{Decoder, Encoding, Hello, Sp, Wire};
use spanwire::{Event, Push};

use crate::harness::{Kind, Net, PATIENCE, Peer, Place, Role, Told, await_event, ours};

/// tcp with one bit of a byte of the handshake changed; `None` changes nothing.
#[derive(Clone, Copy)]
struct BadTcp {
    byte: Option<usize>,
}

impl Transport for BadTcp {
    fn schemes(&self) -> &'static [&'static str] {
        &["badtcp"]
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        let inner = Tcp.dialer(&url.replacen("badtcp://", "tcp://", 1), options)?;
        Ok(Box::new(BadDialer { inner, bad: *self }))
    }

    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct BadDialer {
    inner: Box<dyn Dialer>,
    bad: BadTcp,
}

impl Dialer for BadDialer {
    fn needs_resolve(&self) -> bool {
        self.inner.needs_resolve()
    }

    fn resolve(&self) -> io::Result<Vec<Target>> {
        self.inner.resolve()
    }

    fn dial(&self, target: Option<&Target>) -> io::Result<Connection> {
        match self.inner.dial(target)? {
            Connection::Stream(stream, _) => Ok(Connection::Stream(stream, Box::new(self.bad))),
            other => Ok(other),
        }
    }
}

impl Wire for BadTcp {
    fn name(&self) -> &'static str {
        "sp"
    }

    fn start(self: Box<Self>, me: &Hello, out: &mut Vec<u8>) -> (Box<dyn Decoder>, Encoding) {
        let began = out.len();
        let halves = Box::new(Sp::TCP).start(me, out);
        if let Some(byte) = self.byte {
            out[began + byte] ^= 0x20;
        }
        halves
    }
}

fn push(byte: Option<usize>) -> Push {
    ours(Push::builder().transport(BadTcp { byte }))
}

/// The zero, `SP`, the version, and the two bytes that name the protocol. (The last two are reserved, and
/// nanomsg does not look at them.)
const BYTES: std::ops::Range<usize> = 0..6;

#[test]
fn a_peer_refuses_a_handshake_with_one_wrong_byte_and_delivers_nothing_of_it() {
    for peer in [Peer::Nanocat, Peer::Nngcat, Peer::Pynng, Peer::Nanomsg] {
        let place = Place::new();
        let url = place.free(Net::Tcp);
        let bad_url = url.replacen("tcp://", "badtcp://", 1);
        let theirs = peer.start(Kind::Pull, Role::Binds, &url, &Told::default());
        // First one that is right, over the same transport: it delivers, so the peer is there.
        let good = push(None);
        good.connect(&bad_url).expect("a good address");
        good.send_timeout("before", PATIENCE).expect("the peer is there");
        theirs.must_see(&[b"before"]);

        for byte in BYTES {
            let bad = push(Some(byte));
            let events = bad.events();
            bad.connect(&bad_url).expect("a good address");
            // It looks attached to this side until the peer has read the handshake, so the message may be taken.
            let _ = bad.send_timeout(format!("byte {byte} is wrong"), PATIENCE / 100);
            await_event(&events, |event| {
                matches!(
                    event,
                    Event::Disconnected { .. } | Event::Rejected { .. } | Event::ConnectFailed { .. }
                )
            });
        }

        // Had anything of those been delivered, it would be seen before this.
        good.send_timeout("after", PATIENCE).expect("the peer is still there");
        theirs.must_see(&[b"after"]);
    }
}
