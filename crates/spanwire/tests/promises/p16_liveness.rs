//! Dead links are found, by the means of the system, as configured at each end.
//!
//! An idle one by keep-alive, which is on by default: after a minute. One with data on its way is not probed; by default
//! it ends when the system has sent the data again for long enough, on Linux some 15 minutes. Whoever wants to know
//! sooner sets `TcpOptions::user_timeout`. It is off by default because Linux counts with it the time for which a peer
//! that is alive has no room: back-pressure would end healthy connections, and lose what lies in the kernel.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use crossbeam_channel::Receiver;
use socket2::{SockFilter, SockRef};
use spanwire::transport::{Keepalive, TcpOptions};
use spanwire::{Event, Limit, Pair, Push, Reason};

use crate::common::*;

/// All connected tcp sockets of this process.
fn connections() -> Vec<RawFd> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd: &RawFd| {
            // SAFETY: open, and not closed meanwhile: this process does nothing else.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            let socket = SockRef::from(&fd);
            socket.peer_addr().is_ok_and(|at| at.is_ipv4())
        })
        .collect()
}

fn check(keepalive: Option<Keepalive>, user_timeout: Option<Duration>, options: Option<TcpOptions>) {
    let (a, b) = match options {
        None => (Pair::new().unwrap(), Pair::new().unwrap()),
        Some(options) => (
            Pair::builder().option(options.clone()).build().unwrap(),
            Pair::builder().option(options).build().unwrap(),
        ),
    };
    b.connect(a.bind(&tcp()).unwrap().url()).unwrap();
    b.send("x").unwrap();
    a.recv_timeout(SOON).unwrap();
    let both = connections();
    assert_eq!(both.len(), 2);
    for fd in both {
        // SAFETY: as above.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let socket = SockRef::from(&fd);
        assert_eq!(socket.keepalive().unwrap(), keepalive.is_some());
        if let Some(Keepalive { idle, interval, count }) = keepalive {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), idle);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), count);
        }
        assert_eq!(socket.tcp_user_timeout().unwrap(), user_timeout);
        assert!(socket.tcp_nodelay().unwrap());
    }
    drop(b.close(SOON));
    drop(a.close(SOON));
    until("their connections are gone", || connections().is_empty());
}

#[test]
fn promise_16_keepalive_is_on_and_the_user_timeout_off_by_default_and_both_as_configured_on_both_ends() {
    if !alone(
        "p16_liveness::promise_16_keepalive_is_on_and_the_user_timeout_off_by_default_and_both_as_configured_on_both_ends",
    ) {
        return;
    }
    let minute = Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3 };
    check(Some(minute), None, None);
    let own = Keepalive { idle: Duration::from_secs(7), interval: Duration::from_secs(2), count: 5 };
    let timeout = Some(Duration::from_millis(12_345));
    check(Some(own), timeout, Some(TcpOptions::default().keepalive(Some(own)).user_timeout(timeout)));
    check(None, None, Some(TcpOptions::default().keepalive(None).user_timeout(None)));
}

/// From now on nothing that is sent to this end arrives, nor is it answered: no data, acknowledgement, probe or reset.
fn black_hole(end: &impl std::os::fd::AsFd) {
    const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    SockRef::from(end).attach_filter(&[DROP_ALL]).expect("a socket takes a filter");
}

/// A peer of bytes that says it is `id`.
fn greeted(listener: &TcpListener, id: u16) -> TcpStream {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(&handshake(id)).expect("an open connection");
    stream.read_exact(&mut [0; 8]).expect("its greeting");
    stream
}

fn ended(events: &Receiver<Event>) {
    let reason = event(events, |e| match e {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(matches!(&reason, Reason::Broken(why) if why.contains("timed out")), "{reason:?}");
}

/// What is queued is not brought to whoever gets the listener's port next.
fn abandon(push: &Push) {
    let _undelivered = push.close(Duration::ZERO).expect("it is open");
}

fn soon() -> TcpOptions {
    let probes = Keepalive { idle: Duration::from_secs(1), interval: Duration::from_secs(1), count: 1 };
    TcpOptions::default().keepalive(Some(probes))
}

#[test]
fn promise_16_an_idle_link_into_a_black_hole_is_ended_by_probes_told_and_dialled_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = Pair::builder().option(soon()).build().unwrap();
    let events = pair.events();
    pair.connect(&format!("tcp://{}", listener.local_addr().unwrap())).unwrap();
    let hole = greeted(&listener, PAIR);
    assert!(pair.wait_for_peers(1, SOON));
    black_hole(&hole);
    ended(&events);
    let mut again = greeted(&listener, PAIR);
    assert!(pair.wait_for_peers(1, SOON));
    again.write_all(&frame(false, b"by the new link")).unwrap();
    assert_eq!(&pair.recv_timeout(SOON).unwrap()[..], b"by the new link");
}

#[test]
fn promise_16_a_listener_finds_a_dialler_in_a_black_hole_and_takes_the_next() {
    let pair = Pair::builder().option(soon()).build().unwrap();
    let events = pair.events();
    let url = pair.bind(&tcp()).unwrap().url().to_owned();
    let at = url.strip_prefix("tcp://").unwrap();
    let dial = || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(&handshake(PAIR)).unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        stream
    };
    let hole = dial();
    assert!(pair.wait_for_peers(1, SOON));
    black_hole(&hole);
    ended(&events);
    let mut next = dial();
    next.write_all(&frame(false, b"from the next")).unwrap();
    assert_eq!(&pair.recv_timeout(SOON).unwrap()[..], b"from the next");
}

#[test]
fn promise_16_with_a_user_timeout_data_into_a_black_hole_ends_the_link_and_what_had_not_left_goes_by_the_next()
 {
    let options =
        TcpOptions::default().send_buffer(Some(16 << 10)).user_timeout(Some(Duration::from_millis(500)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let push = Push::builder()
        .send_queue(Limit::messages(2000))
        .option(options)
        .reconnect(Duration::from_millis(1), Duration::from_millis(10))
        .build()
        .unwrap();
    let events = push.events();
    push.connect(&format!("tcp://{}", listener.local_addr().unwrap())).unwrap();
    let hole = greeted(&listener, PULL);
    assert!(push.wait_for_peers(1, SOON));
    black_hole(&hole);
    (0..1000).for_each(|_| push.send_timeout(vec![7; 1000], SOON).unwrap());
    ended(&events);
    let mut again = greeted(&listener, PULL);
    let mut first = [0; 1008];
    again.read_exact(&mut first).unwrap();
    assert_eq!(first[..], frame(false, &[7; 1000])[..]);
    abandon(&push);
}

/// A peer that opens no window for so long is dead to the kernel, too (the reason why the option is off by default), and
/// takes the same way: an error of the connection, an event, a redial.
#[test]
fn promise_16_with_a_user_timeout_a_link_that_takes_nothing_for_so_long_is_ended_told_and_dialled_again() {
    let options =
        TcpOptions::default().send_buffer(Some(16 << 10)).user_timeout(Some(Duration::from_millis(500)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let push = Push::builder()
        .send_queue(Limit::messages(2000))
        .option(options)
        .reconnect(Duration::from_millis(1), Duration::from_millis(10))
        .build()
        .unwrap();
    let events = push.events();
    push.connect(&url).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let _stopped = greeted(&listener, PULL);
    assert!(push.wait_for_peers(1, SOON));
    (0..1000).for_each(|_| push.send_timeout(vec![7; 1000], SOON).unwrap());
    ended(&events);
    let _again = greeted(&listener, PULL);
    event(&events, |e| matches!(e, Event::Connected { .. }).then_some(()));
    until("what was queued goes on by the new link", || {
        push.stats().pipes.first().is_some_and(|p| p.tx_msgs > 0)
    });
    abandon(&push);
}
