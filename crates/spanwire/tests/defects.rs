//! Defects that were, each with the smallest program that shows it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use spanwire::protocol::publish::Slow;
use spanwire::protocol::{Overflow, Reason};
use spanwire::transport::StreamWriter;
use spanwire::{Event, Interest, Limit, Poller, Pub, Pull, Push, Socket, Sub, protocol};

#[path = "common/tapped.rs"]
mod tapped;
#[path = "common/wait.rs"]
mod wait;

use tapped::{Tap, Tapped};
use wait::{SOON, until};

/// A plain stream to a bound address, after it has said that it speaks `id`.
fn raw(url: &str, id: u8) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("tcp://").unwrap()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[0, b'S', b'P', 0, 0, id, 0, 0]).unwrap();
    stream
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// A bound socket that the driver has given back while a stranger's handshake has a deadline.
fn with_stranger() -> (Pull, TcpStream) {
    let pull = Pull::builder().handshake_timeout(Duration::from_millis(300)).build().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    let stranger = TcpStream::connect(at.url().strip_prefix("tcp://").unwrap()).unwrap();
    until("it is accepted", || pull.stats().accepted > 0);
    (pull, stranger)
}

#[test]
fn a_caller_that_waits_past_a_handshakes_deadline_sleeps() {
    let (pull, _stranger) = with_stranger();
    let before = cpu();
    pull.recv_timeout(Duration::from_millis(1500)).unwrap_err();
    let spent = cpu() - before;
    assert!(spent < Duration::from_millis(150), "{spent:?} of CPU for a wait");
}

#[test]
fn a_poller_that_waits_past_a_handshakes_deadline_sleeps() {
    let (pull, _stranger) = with_stranger();
    let mut poller = Poller::new().unwrap();
    poller.add(&pull, Interest::RECV).unwrap();
    let before = cpu();
    assert!(poller.wait(Some(Duration::from_millis(1500))).unwrap().is_empty());
    let spent = cpu() - before;
    assert!(spent < Duration::from_millis(150), "{spent:?} of CPU for a wait");
}

#[test]
fn any_number_of_pipes_may_be_closed_in_one_call() {
    const PIPES: usize = 3000;
    let pb = Pub::new().unwrap();
    pb.bind("inproc://many-closes").unwrap();
    let sub = Sub::builder().no_reconnect().build().unwrap();
    for n in 1..=PIPES {
        sub.connect("inproc://many-closes").unwrap();
        if n % 500 == 0 {
            assert!(sub.wait_for_peers(n, SOON) && pb.wait_for_peers(n, SOON));
        }
    }
    let close_all = move || {
        let ids: Vec<_> = pb.stats().pipes.iter().map(|p| p.pipe).collect();
        pb.with(|_, cx| ids.iter().for_each(|id| cx.close(*id, Reason::Slow)));
        pb.peers()
    };
    let small = std::thread::Builder::new().stack_size(512 * 1024).spawn(close_all).unwrap();
    assert_eq!(small.join().unwrap(), 0);
}

#[test]
fn a_frame_of_the_largest_length_is_no_overflow_where_there_is_no_limit() {
    let pull = Pull::builder().recv_max_size(usize::MAX).build().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    let mut bad = raw(at.url(), 0x50);
    bad.write_all(&[0xff; 40]).unwrap();
    assert!(pull.wait_for_peers(1, SOON));
    let mut good = raw(at.url(), 0x50);
    good.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x']).unwrap();
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "x");
}

#[test]
fn a_reconnect_delay_without_end_is_legal() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let push = Push::builder().reconnect(Duration::MAX, Duration::MAX).build().unwrap();
    let events = push.events();
    push.connect(&format!("tcp://{free}")).unwrap();
    loop {
        if let Event::ConnectRetry { delay, .. } = events.recv_timeout(SOON).unwrap() {
            assert!(delay >= Duration::MAX / 2);
            return;
        }
    }
}

#[test]
fn an_endpoint_that_is_closed_at_once_never_dials() {
    for round in 0..50 {
        let url = format!("inproc://closed-at-once-{round}");
        let push = Push::new().unwrap();
        push.connect(&url).unwrap().close();
        // A round of the loop, so that whatever was to be dialled has been.
        assert!(!push.wait_for_peers(1, Duration::from_millis(5)));
        let pull = Pull::new().unwrap();
        pull.bind(&url).unwrap();
        let good = Push::new().unwrap();
        good.connect(&url).unwrap();
        assert!(pull.wait_for_peers(1, SOON));
        assert_eq!(pull.stats().accepted, 1, "round {round}");
    }
}

fn newest_arrives(overflow: Overflow) {
    const LAST: u32 = 400;
    let pb = Pub::builder().slow(Slow::Drop(overflow)).send_queue(Limit::messages(1)).build().unwrap();
    let at = pb.bind("tcp://127.0.0.1:0").unwrap();
    let mut slow = raw(at.url(), 0x21);
    assert!(pb.wait_for_peers(1, SOON));
    for n in 0..=LAST {
        let mut body = vec![0; 60_000];
        body[..4].copy_from_slice(&n.to_be_bytes());
        pb.send(body).unwrap();
    }
    slow.read_exact(&mut [0; 8]).unwrap();
    let mut frame = vec![0; 8 + 60_000];
    let mut last = None;
    while last != Some(LAST) && slow.read_exact(&mut frame).is_ok() {
        last = Some(u32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]));
    }
    assert_eq!(last, Some(LAST));
}

#[test]
fn with_keep_latest_the_last_message_arrives_at_a_subscriber_that_was_slow() {
    newest_arrives(Overflow::KeepLatest);
}

#[test]
fn with_drop_oldest_the_last_message_arrives_at_a_subscriber_that_was_slow() {
    newest_arrives(Overflow::DropOldest);
}

/// What a connection was seen to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Did {
    /// Read so many bytes; 0: there were none yet.
    Read(usize),
    /// Say that it will write no more.
    EndWriting,
}

/// Tcp to any of some addresses, as of one name, that tells what it does.
#[derive(Clone)]
struct Spied(Vec<String>, Sender<Did>);

impl Spied {
    /// To these, and what is seen of it.
    fn on(servers: &[TcpListener]) -> (Tapped<(), Spied>, Receiver<Did>) {
        let (tell, seen) = unbounded();
        let urls = servers.iter().map(|s| format!("tcp://{}", s.local_addr().unwrap()));
        (Tapped::new(Spied(urls.collect(), tell)), seen)
    }
}

impl Tap for Spied {
    fn resolves(&self) -> bool {
        true
    }
    fn resolve(&self, _: &str) -> Vec<String> {
        self.0.clone()
    }
    fn read(&mut self, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
        let read = reader.read(into);
        let _ = self.1.send(Did::Read(*read.as_ref().unwrap_or(&0)));
        read
    }
    fn shutdown(&mut self, writer: &mut dyn StreamWriter) -> io::Result<bool> {
        let _ = self.1.send(Did::EndWriting);
        writer.shutdown()
    }
}

/// Waits until it did this.
#[track_caller]
fn saw(seen: &Receiver<Did>, what: Did) {
    while seen.recv_timeout(SOON).unwrap_or_else(|e| panic!("{what:?}: {e}")) != what {}
}

#[test]
fn the_peer_of_a_pipe_that_its_protocol_closes_is_told_at_once() {
    let servers = [TcpListener::bind("127.0.0.1:0").unwrap()];
    let (spied, seen) = Spied::on(&servers);
    let pull = Socket::builder(protocol::pull::Pull::new()).transport(spied).build().unwrap();
    pull.connect("tapped://x").unwrap();
    let mut peer = servers[0].accept().unwrap().0;
    peer.write_all(&[0, b'S', b'P', 0, 0, 0x50, 0, 0]).unwrap();
    assert!(pull.wait_for_peers(1, SOON));
    peer.read_exact(&mut [0; 8]).unwrap();
    let id = pull.stats().pipes[0].pipe;
    pull.with(|_, cx| cx.close(id, Reason::Malformed));
    // It was told by a drop of the connection only, a second later.
    saw(&seen, Did::EndWriting);
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn of_two_addresses_that_answer_at_once_one_is_taken_and_works() {
    let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let (spied, seen) = Spied::on(&servers);
    let pull = Socket::builder(protocol::pull::Pull::new()).transport(spied).build().unwrap();
    let events = pull.events();
    pull.connect("tapped://x").unwrap();
    // The second is dialled when the first has said nothing for a quarter of a second.
    let mut peers = servers.map(|s| s.accept().unwrap().0);
    let hello = [0, b'S', b'P', 0, 0, 0x50, 0, 0];
    for peer in &mut peers {
        peer.read_exact(&mut [0; 8]).unwrap();
    }
    // The loop has one byte in its hands. While the lock is held it stands still; then it finds the rest of both.
    peers[0].write_all(&hello[..1]).unwrap();
    saw(&seen, Did::Read(1));
    saw(&seen, Did::Read(0));
    pull.with(|_, _| {
        peers[0].write_all(&hello[1..]).unwrap();
        peers[1].write_all(&hello).unwrap();
    });
    assert!(pull.wait_for_peers(1, SOON));
    // The other one is let go.
    let (tell, ended) = unbounded();
    for mut peer in peers.each_ref().map(|peer| peer.try_clone().unwrap()) {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let _ = peer.read(&mut [0; 8]); // its end, or a reset
            tell.send(())
        });
    }
    ended.recv_timeout(SOON).expect("of one of the two the end comes");
    assert_eq!((pull.peers(), ended.len()), (1, 0));
    for peer in &mut peers {
        let _ = peer.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x']);
    }
    let got = pull.recv_timeout(SOON);
    assert!(got.is_ok(), "{got:?}, {:?}", events.try_iter().collect::<Vec<_>>());
}

#[test]
fn a_check_of_peers_that_panics_refuses_the_peer_and_harms_no_other_socket() {
    let picky = Pull::builder().accept(|_| panic!("the application's defect")).build().unwrap();
    let events = picky.events();
    let caller = Push::builder().no_reconnect().build().unwrap();
    caller.connect(picky.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    loop {
        if let Event::Rejected { reason: Reason::Denied(_), .. } = events.recv_timeout(SOON).unwrap() {
            break;
        }
    }
    let (pull, push) = (Pull::new().unwrap(), Push::new().unwrap());
    push.connect(pull.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    push.send_timeout("x", SOON).unwrap();
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "x");
}
