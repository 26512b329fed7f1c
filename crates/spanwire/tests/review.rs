//! Defects that a reading of the engine found, each with the smallest program that shows it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use spanwire::protocol::publish::Slow;
use spanwire::protocol::{Overflow, Reason};
use spanwire::transport::{Bag, Connection, Dialer, Listener, Target, Tcp, Transport};
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
    slow.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
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

#[test]
fn the_peer_of_a_pipe_that_its_protocol_closes_is_told_at_once() {
    let pull = Pull::new().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    let mut peer = raw(at.url(), 0x50);
    assert!(pull.wait_for_peers(1, LONG));
    peer.read_exact(&mut [0; 8]).unwrap();
    let id = pull.stats().pipes[0].pipe;
    let began = Instant::now();
    pull.with(|_, cx| cx.close(id, Reason::Malformed));
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
}

/// Dials two addresses for one name.
struct Two([SocketAddr; 2]);

impl Transport for Two {
    fn schemes(&self) -> &'static [&'static str] {
        &["two"]
    }
    fn dialer(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Dialer>> {
        Ok(Box::new(Two(self.0)))
    }
    fn listen(&self, _: &str, _: &Bag) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Dialer for Two {
    fn needs_resolve(&self) -> bool {
        true
    }
    fn resolve(&self) -> io::Result<Vec<Target>> {
        Ok(self.0.iter().map(|at| Target::new(at.to_string(), *at)).collect())
    }
    fn dial(&self, to: Option<&Target>) -> io::Result<Connection> {
        let at = &to.unwrap().label;
        Tcp.dialer(&format!("tcp://{at}"), &Bag::default())?.dial(None)
    }
}

#[test]
fn of_two_addresses_that_answer_at_once_one_is_taken_and_works() {
    let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let two = Two([0, 1].map(|i| servers[i].local_addr().unwrap()));
    let pull = Socket::builder(protocol::pull::Pull::new()).transport(two).build().unwrap();
    let events = pull.events();
    pull.connect("two://x").unwrap();
    // The second is dialled when the first has said nothing for a quarter of a second.
    let mut peers = servers.map(|s| s.accept().unwrap().0);
    let hello = [0, b'S', b'P', 0, 0, 0x50, 0, 0];
    for peer in &mut peers {
        peer.read_exact(&mut [0; 8]).unwrap();
    }
    // While the lock is held the loop stands still with the first byte in its hands; then it finds the rest of both.
    pull.with(|_, _| {
        peers[0].write_all(&hello[..1]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        peers[0].write_all(&hello[1..]).unwrap();
        peers[1].write_all(&hello).unwrap();
    });
    assert!(pull.wait_for_peers(1, LONG));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(pull.peers(), 1);
    for peer in &mut peers {
        let _ = peer.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x']);
    }
    let got = pull.recv_timeout(Duration::from_secs(3));
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
