//! A transport that does what the test says, when it says so: the moments that a real one only hits by chance.
//!
//! Each test is a defect that was.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use spanwire::protocol::*;
use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, MessagePipe, MessageReader, MessageWriter, Notifier, Registrar,
    StreamWriter, Target, Transport,
};
use spanwire::wire::{Hello, Inbox, PeerHello};
use spanwire::{Event, Interest, Limit, Message, Pair, Poller, Pull, Push, RecvError, Socket, device};

#[path = "common/tapped.rs"]
mod tapped;
#[path = "common/wait.rs"]
mod wait;

use tapped::{Tap, Tapped, tapped};
use wait::{SOON, until};

const TCP: &str = "tcp://127.0.0.1:0";

/// Dials connections that `make` makes, one an attempt.
struct Dials<F>(Arc<F>);

impl<F: Fn() -> io::Result<Connection> + Send + Sync + 'static> Transport for Dials<F> {
    fn schemes(&self) -> &'static [&'static str] {
        &["hand"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(Dials(self.0.clone())))
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(ErrorKind::Unsupported.into())
    }
}

impl<F: Fn() -> io::Result<Connection> + Send + Sync> Dialer for Dials<F> {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        (self.0)()
    }
}

// ------------------------------------------------------------ whole messages

/// A pipe of whole messages from a peer of SP id `id`; `recv` is the reader's.
struct Spout<R> {
    id: u16,
    notifier: Sender<Notifier>,
    recv: R,
}

/// Such pipes, and what announces something on each.
fn spout<R>(id: u16, recv: impl Fn() -> R + Send + Sync + 'static) -> (impl Transport, Receiver<Notifier>)
where
    R: FnMut(&mut Inbox) -> io::Result<bool> + Send + 'static,
{
    let (notifier, notifiers) = unbounded();
    let dial = move || {
        let spout = Spout { id, notifier: notifier.clone(), recv: recv() };
        Ok(Connection::Messages(Box::new(spout)))
    };
    (Dials(Arc::new(dial)), notifiers)
}

impl<R: FnMut(&mut Inbox) -> io::Result<bool> + Send + 'static> MessagePipe for Spout<R> {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        let _ = self.notifier.send(registrar.notifier());
        Ok(())
    }
    fn handshake(&mut self, _: &Hello) -> io::Result<Option<PeerHello>> {
        Ok(Some(PeerHello::sp(self.id)))
    }
    fn facts(&self) -> Facts {
        Facts::new("hand://here", "hand://there")
    }
    fn split(self: Box<Self>) -> io::Result<(Box<dyn MessageReader>, Box<dyn MessageWriter>)> {
        Ok((self, Box::new(Void)))
    }
}

impl<R: FnMut(&mut Inbox) -> io::Result<bool> + Send> MessageReader for Spout<R> {
    fn recv(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        (self.recv)(inbox)
    }
}

struct Void;

impl MessageWriter for Void {
    fn send(&mut self, batch: &mut VecDeque<Message>) -> io::Result<bool> {
        batch.clear();
        Ok(false)
    }
}

/// Takes nothing: what comes is dropped at once.
#[derive(Debug)]
struct Deaf;

impl Protocol for Deaf {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x51, "deaf", 0x50, "push")
    }
    fn pipe_opened(&mut self, _: &mut Cx<'_>, _: PipeId) -> Result<(), Reject> {
        Ok(())
    }
    fn pipe_closed(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        discard(cx, pipe);
    }
}

impl Receives for Deaf {
    type Item = Message;
    fn recv(&mut self, _: &mut Cx<'_>) -> Option<Message> {
        None
    }
}

#[test]
fn a_flood_that_satisfies_nobody_costs_a_poller_neither_its_timeout_nor_its_other_sockets() {
    let noisy = Arc::new(AtomicBool::new(false));
    let noise = noisy.clone();
    let (transport, notifier) = spout(0x50, move || {
        let noise = noise.clone();
        move |inbox: &mut Inbox| {
            let noise = noise.load(Ordering::Relaxed);
            while noise && inbox.wants_more() {
                inbox.push(Message::from("noise"));
            }
            Ok(!noise)
        }
    });
    let deaf = Socket::builder(Deaf).transport(transport).build().unwrap();
    deaf.connect("hand://").unwrap();
    let notifier = notifier.recv_timeout(SOON).unwrap();
    assert!(deaf.wait_for_peers(1, SOON));
    let (pull, push) = (Pull::new().unwrap(), Push::new().unwrap());
    push.connect(pull.bind(TCP).unwrap().url()).unwrap();
    let mut poller = Poller::new().unwrap();
    poller.add(&deaf, Interest::RECV).unwrap();
    let key = poller.add(&pull, Interest::RECV).unwrap();
    let (tell, told) = bounded(1);
    std::thread::spawn(move || {
        // The poller leads both when the noise begins, unless the driver is faster.
        noisy.store(true, Ordering::Relaxed);
        notifier.notify();
        let nothing = poller.wait(Some(Duration::from_millis(50))).unwrap();
        push.send("signal").unwrap();
        let signal = poller.wait(Some(SOON)).unwrap();
        tell.send((nothing.len(), signal.len(), signal[0].key)).unwrap();
        noisy.store(false, Ordering::Relaxed);
        drop(poller);
    });
    assert_eq!(told.recv_timeout(SOON), Ok((0, 1, key)));
}

#[test]
fn what_was_read_for_a_pipe_that_was_closed_meanwhile_is_counted() {
    let (at, reading) = bounded::<()>(0);
    let (go, going) = bounded::<()>(0);
    let (gated, _notifiers) = spout(0x50, move || {
        let (at, going, mut once) = (at.clone(), going.clone(), true);
        move |inbox: &mut Inbox| {
            if std::mem::take(&mut once) {
                (0..3).for_each(|_| inbox.push(Message::from("read")));
                at.send(()).unwrap();
                going.recv().unwrap();
            }
            Ok(true)
        }
    });
    let pull = Pull::builder().transport(gated).no_reconnect().build().unwrap();
    let endpoint = pull.connect("hand://").unwrap();
    reading.recv_timeout(SOON).unwrap();
    endpoint.close();
    go.send(()).unwrap();
    until("all that was read is counted", || pull.stats().dropped(DropReason::PipeClosed) == 3);
    assert_eq!(pull.try_recv(), Err(RecvError::Empty));
}

/// Closes its first pipe while it accepts it.
#[derive(Debug, Default)]
struct Fickle {
    seen: usize,
}

impl Protocol for Fickle {
    fn info(&self) -> ProtocolInfo {
        ProtocolInfo::new(0x51, "fickle", 0x50, "push")
    }
    fn pipe_opened(&mut self, cx: &mut Cx<'_>, pipe: PipeId) -> Result<(), Reject> {
        self.seen += 1;
        if self.seen == 1 {
            cx.close(pipe, Reason::Protocol("not you"));
        }
        Ok(())
    }
    fn pipe_closed(&mut self, _: &mut Cx<'_>, _: PipeId) {}
    fn readable(&mut self, cx: &mut Cx<'_>, pipe: PipeId) {
        discard(cx, pipe);
    }
}

#[test]
fn a_pipe_that_its_protocol_closes_while_it_opens_is_dialled_again() {
    let push = Push::new().unwrap();
    let url = push.bind(TCP).unwrap().url().to_owned();
    let fickle = Socket::new(Fickle::default()).unwrap();
    fickle.connect(&url).unwrap();
    until("a second connection", || fickle.with(|p, _| p.seen) == 2);
    until("it stays", || (fickle.peers(), push.peers()) == (1, 1));
}

// ------------------------------------------------------------ streams that buffer

/// Tcp that keeps what is written until it is flushed, or shut down, as TLS may; and what the test sees and says of it.
#[derive(Clone)]
struct Buffering {
    /// A write took bytes, and waits for `go`.
    wrote: Sender<()>,
    go: Receiver<()>,
    /// A read found nothing.
    read: Sender<()>,
    notifier: Sender<Notifier>,
    /// How often `shutdown` is called before it is done; what was written leaves with the last.
    shutdowns: usize,
    kept: Vec<u8>,
}

impl Tap for Buffering {
    fn registered(&self, registrar: &Registrar<'_>) {
        self.notifier.send(registrar.notifier()).unwrap();
    }
    fn read(&mut self, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
        let result = reader.read(into);
        if matches!(&result, Err(e) if e.kind() == ErrorKind::WouldBlock) {
            let _ = self.read.send(());
        }
        result
    }
    fn write(&mut self, writer: &mut dyn StreamWriter, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() == 8 {
            return writer.write(bytes); // the handshake
        }
        self.kept.extend_from_slice(bytes);
        let _ = self.wrote.send(());
        let _ = self.go.recv();
        Ok(bytes.len())
    }
    fn flush(&mut self, writer: &mut dyn StreamWriter) -> io::Result<()> {
        if self.shutdowns == 0 {
            let n = writer.write(&self.kept)?;
            self.kept.drain(..n);
        }
        writer.flush()
    }
    fn shutdown(&mut self, writer: &mut dyn StreamWriter) -> io::Result<bool> {
        self.shutdowns = self.shutdowns.saturating_sub(1);
        if self.shutdowns > 0 {
            return Ok(false);
        }
        self.flush(writer)?;
        writer.shutdown()
    }
}

struct Buffered {
    push: Push,
    peer: TcpStream,
    wrote: Receiver<()>,
    go: Sender<()>,
    read: Receiver<()>,
    notifier: Notifier,
}

/// A push over such a stream, and its plain peer.
fn buffered(shutdowns: usize) -> Buffered {
    let (wrote_tx, wrote) = unbounded();
    let (go, go_rx) = unbounded();
    let (read_tx, read) = unbounded();
    let (notifier_tx, notifier) = unbounded();
    let tap = Buffering {
        wrote: wrote_tx,
        go: go_rx,
        read: read_tx,
        notifier: notifier_tx,
        shutdowns,
        kept: Vec::new(),
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let push = Push::builder().transport(Tapped::new(tap)).build().unwrap();
    push.connect(&tapped(&format!("tcp://{}", listener.local_addr().unwrap()))).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(SOON)).unwrap();
    peer.write_all(b"\0SP\0\0\x51\0\0").unwrap();
    peer.read_exact(&mut [0; 8]).unwrap();
    assert!(push.wait_for_peers(1, SOON));
    Buffered { push, peer, wrote, go, read, notifier: notifier.recv_timeout(SOON).unwrap() }
}

#[test]
fn an_edge_during_a_write_lets_out_what_the_transport_kept() {
    let Buffered { push, mut peer, wrote, go, read, notifier } = buffered(0);
    let sender = std::thread::spawn(move || {
        push.send("kept").unwrap();
        push
    });
    wrote.recv_timeout(SOON).unwrap();
    // Each look at the reader begins a round of the loop, and ends the one before.
    for _ in 0..3 {
        while read.try_recv().is_ok() {}
        notifier.notify();
        read.recv_timeout(SOON).unwrap();
    }
    go.send(()).unwrap();
    let mut frame = [0; 12];
    peer.read_exact(&mut frame).expect("it leaves without another send");
    assert_eq!(&frame[8..], b"kept");
    drop(sender.join().unwrap());
}

#[test]
fn a_transport_that_has_something_left_at_the_end_is_asked_again() {
    let Buffered { push, mut peer, wrote, go, .. } = buffered(2);
    go.send(()).unwrap();
    push.send("kept").unwrap();
    wrote.recv_timeout(SOON).unwrap();
    assert_eq!(push.close(SOON).unwrap(), 0);
    // Any event will do; the socket waits a second for its peer at most.
    peer.write_all(&[0; 9]).unwrap();
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.get(8..), Some(&b"kept"[..]));
}

// ------------------------------------------------------------ devices

#[test]
fn when_one_side_of_a_bridge_ends_what_is_queued_on_the_other_may_leave() {
    // More than the kernel's buffers hold.
    const SENT: usize = 30;
    const SIZE: usize = 512 * 1024;
    let a = Pair::new().unwrap();
    let b = Pair::builder().send_queue(Limit::messages(SENT).and_bytes(SENT * SIZE * 2)).build().unwrap();
    let from = Pair::new().unwrap();
    from.connect(a.bind(TCP).unwrap().url()).unwrap();
    let to = Pair::builder().recv_queue(Limit::messages(2)).build().unwrap();
    b.connect(to.bind(TCP).unwrap().url()).unwrap();
    let bridge = {
        let (a, b) = (a.clone(), b.clone());
        std::thread::spawn(move || device::bridge(&a, &b))
    };
    (0..SENT).for_each(|_| from.send(vec![7; SIZE]).unwrap());
    until("all is queued beyond the bridge", || b.stats().tx_msgs == SENT as u64);
    a.close(Duration::ZERO).unwrap();
    for n in 0..SENT {
        assert_eq!(to.recv_timeout(SOON).map(|msg| msg.len()), Ok(SIZE), "{n}");
    }
    bridge.join().unwrap().unwrap();
    // Its end, too, is told to who listens on.
    let events = to.events();
    until("the bridge has gone", || {
        to.peers() == 0 || events.try_iter().any(|event| matches!(event, Event::Disconnected { .. }))
    });
}
