//! Defects that a reading of the engine found, each with the smallest program that shows it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use spanwire::protocol::publish::Slow;
use spanwire::protocol::{Overflow, Reason};
use spanwire::transport::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamWriter, Target, Tcp, Transport,
};
use spanwire::{Event, Interest, Limit, Poller, Pub, Pull, Push, Socket, Sub, protocol};

const LONG: Duration = Duration::from_secs(20);

/// A plain stream to a bound address, after it has said that it speaks `id`.
fn raw(url: &str, id: u8) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("tcp://").unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
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
    let began = Instant::now();
    while pull.stats().accepted == 0 {
        assert!(began.elapsed() < LONG);
        std::thread::yield_now();
    }
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
            assert!(sub.wait_for_peers(n, LONG) && pb.wait_for_peers(n, LONG));
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
    assert!(pull.wait_for_peers(1, LONG));
    let mut good = raw(at.url(), 0x50);
    good.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x']).unwrap();
    assert_eq!(pull.recv_timeout(LONG).unwrap(), "x");
}

#[test]
fn a_reconnect_delay_without_end_is_legal() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let push = Push::builder().reconnect(Duration::MAX, Duration::MAX).build().unwrap();
    let events = push.events();
    push.connect(&format!("tcp://{free}")).unwrap();
    loop {
        if let Event::ConnectRetry { delay, .. } = events.recv_timeout(LONG).unwrap() {
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
        assert!(pull.wait_for_peers(1, LONG));
        assert_eq!(pull.stats().accepted, 1, "round {round}");
    }
}

fn newest_arrives(overflow: Overflow) {
    const LAST: u32 = 400;
    let pb = Pub::builder().slow(Slow::Drop(overflow)).send_queue(Limit::messages(1)).build().unwrap();
    let at = pb.bind("tcp://127.0.0.1:0").unwrap();
    let mut slow = raw(at.url(), 0x21);
    assert!(pb.wait_for_peers(1, LONG));
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
struct Spied(Vec<SocketAddr>, Sender<Did>);

impl Spied {
    /// To these, and what is seen of it.
    fn on(servers: &[TcpListener]) -> (Spied, Receiver<Did>) {
        let (tell, seen) = unbounded();
        (Spied(servers.iter().map(|s| s.local_addr().unwrap()).collect(), tell), seen)
    }
}

impl Transport for Spied {
    fn schemes(&self) -> &'static [&'static str] {
        &["spied"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(self.clone()))
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Dialer for Spied {
    fn needs_resolve(&self) -> bool {
        true
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        Ok(self.0.iter().map(|at| Target::new(at.to_string(), *at)).collect())
    }
    fn dial(&self, to: Option<&Target>) -> io::Result<Connection> {
        let at = &to.unwrap().label;
        Ok(match Tcp.dialer(&format!("tcp://{at}"), &Bag::default())?.dial(None)? {
            Connection::Stream(stream, wire) => {
                Connection::Stream(Box::new(Seen(stream, self.1.clone())), wire)
            }
            other => other,
        })
    }
}

struct Seen<T>(T, Sender<Did>);

impl Stream for Seen<Box<dyn Stream>> {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        self.0.register(registrar)
    }
    fn establish(&mut self) -> io::Result<bool> {
        self.0.establish()
    }
    fn facts(&self) -> Facts {
        self.0.facts()
    }
    fn split(self: Box<Self>) -> io::Result<(Box<dyn Read + Send>, Box<dyn StreamWriter>)> {
        let (reader, writer) = self.0.split()?;
        Ok((Box::new(Seen(reader, self.1.clone())), Box::new(Seen(writer, self.1))))
    }
}

impl Read for Seen<Box<dyn Read + Send>> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into);
        let _ = self.1.send(Did::Read(*read.as_ref().unwrap_or(&0)));
        read
    }
}

impl Write for Seen<Box<dyn StreamWriter>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl StreamWriter for Seen<Box<dyn StreamWriter>> {
    fn shutdown(&mut self) -> io::Result<bool> {
        let _ = self.1.send(Did::EndWriting);
        self.0.shutdown()
    }
}

/// Waits until it did this.
#[track_caller]
fn saw(seen: &Receiver<Did>, what: Did) {
    while seen.recv_timeout(LONG).unwrap_or_else(|e| panic!("{what:?}: {e}")) != what {}
}

#[test]
fn the_peer_of_a_pipe_that_its_protocol_closes_is_told_at_once() {
    let servers = [TcpListener::bind("127.0.0.1:0").unwrap()];
    let (spied, seen) = Spied::on(&servers);
    let pull = Socket::builder(protocol::pull::Pull::new()).transport(spied).build().unwrap();
    pull.connect("spied://x").unwrap();
    let mut peer = servers[0].accept().unwrap().0;
    peer.write_all(&[0, b'S', b'P', 0, 0, 0x50, 0, 0]).unwrap();
    assert!(pull.wait_for_peers(1, LONG));
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
    pull.connect("spied://x").unwrap();
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
    assert!(pull.wait_for_peers(1, LONG));
    // The other one is let go.
    let (tell, ended) = unbounded();
    for mut peer in peers.each_ref().map(|peer| peer.try_clone().unwrap()) {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let _ = peer.read(&mut [0; 8]); // its end, or a reset
            tell.send(())
        });
    }
    ended.recv_timeout(LONG).expect("of one of the two the end comes");
    assert_eq!((pull.peers(), ended.len()), (1, 0));
    for peer in &mut peers {
        let _ = peer.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x']);
    }
    let got = pull.recv_timeout(LONG);
    assert!(got.is_ok(), "{got:?}, {:?}", events.try_iter().collect::<Vec<_>>());
}

#[test]
fn a_check_of_peers_that_panics_refuses_the_peer_and_harms_no_other_socket() {
    let picky = Pull::builder().accept(|_| panic!("the application's defect")).build().unwrap();
    let events = picky.events();
    let caller = Push::builder().no_reconnect().build().unwrap();
    caller.connect(picky.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    loop {
        if let Event::Rejected { reason: Reason::Denied(_), .. } = events.recv_timeout(LONG).unwrap() {
            break;
        }
    }
    let (pull, push) = (Pull::new().unwrap(), Push::new().unwrap());
    push.connect(pull.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    push.send_timeout("x", LONG).unwrap();
    assert_eq!(pull.recv_timeout(LONG).unwrap(), "x");
}
