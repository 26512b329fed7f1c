//! What the conformance suite found: each a defect that was, reduced.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use spanwire::{Limit, Pull, Push, SendError};

const SOON: Duration = Duration::from_secs(10);

/// A plain connection to `url`.
fn plain(url: &str) -> TcpStream {
    TcpStream::connect(url.trim_start_matches("tcp://")).unwrap()
}

#[test]
fn a_handshake_that_comes_in_two_parts_is_waited_for() {
    // The rest of the first part was decoded again and again, and whoever drove the socket did nothing else.
    let pull = Pull::new().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    let mut slow = plain(at.url());
    slow.write_all(b"\0SP\0\0").unwrap();
    let mut good = plain(at.url());
    good.write_all(b"\0SP\0\0\x50\0\0").unwrap();
    // The answer shows that the first part was seen: connections are served in turn.
    let mut hello = [0; 8];
    good.set_read_timeout(Some(SOON)).unwrap();
    good.read_exact(&mut hello).unwrap();
    slow.write_all(b"\x50\0\0").unwrap();
    let (tell, told) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || tell.send(pull.wait_for_peers(2, SOON)));
    assert_eq!(told.recv_timeout(SOON), Ok(true));
}

/// A push whose one peer reads nothing, filled until nothing moves; with how many messages it took.
fn stuck(size: usize) -> (Push, TcpStream, u32) {
    let push = Push::builder().send_queue(Limit::messages(16)).build().unwrap();
    let at = push.bind("tcp://127.0.0.1:0").unwrap();
    let mut peer = plain(at.url());
    peer.write_all(b"\0SP\0\0\x51\0\0").unwrap();
    peer.read_exact(&mut [0; 8]).unwrap();
    let mut taken = 0;
    loop {
        match push.send_timeout(vec![7; size], if taken == 0 { SOON } else { Duration::from_millis(200) }) {
            Ok(()) => taken += 1,
            Err(SendError::TimedOut(_)) => return (push, peer, taken),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Whole messages of `size` that come out of a plain connection until its end.
fn whole(mut peer: TcpStream, size: usize) -> usize {
    let mut all = Vec::new();
    peer.set_read_timeout(Some(SOON)).unwrap();
    peer.read_to_end(&mut all).unwrap();
    all.len() / (8 + size)
}

#[test]
fn promise_07_a_message_that_left_in_part_counts_as_undelivered() {
    // Those not begun were counted, those that left whole were not, the one between them was forgotten.
    let (push, peer, taken) = stuck(1001);
    let undelivered = push.close(Duration::from_millis(1)).unwrap();
    assert_eq!(whole(peer, 1001) + undelivered, taken as usize);
}

#[test]
fn promise_06_a_message_that_left_in_part_when_its_peer_went_is_a_drop() {
    let (push, peer, taken) = stuck(1001);
    let events = push.events();
    let queued = push.stats().pipes[0].queued as u64;
    drop(peer); // with bytes unread: a reset
    while !matches!(events.recv_timeout(SOON).unwrap(), spanwire::Event::Disconnected { .. }) {}
    // What was not begun waits for the next peer.
    let pull = Pull::new().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    push.connect(at.url()).unwrap();
    assert_eq!(push.close(SOON).unwrap(), 0);
    // The one that was begun was among those queued (unless the system took it to its end).
    let dropped = push.stats().all_dropped();
    assert!(dropped <= 1, "{dropped} of {queued} queued, {taken} taken, were dropped");
    for _ in dropped..queued {
        pull.recv_timeout(SOON).expect("what was not dropped arrives");
    }
}

#[test]
fn an_address_is_free_when_its_close_has_returned() {
    // The listener was dropped later, by whoever drove the socket.
    let dir = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", dir.path().join("again").display());
    for url in ["tcp://127.0.0.1:0", &ipc, "inproc://free-again"] {
        let mut pull = Pull::new().unwrap();
        let url = pull.bind(url).unwrap().url().to_owned();
        pull.close(SOON).unwrap();
        for _ in 0..50 {
            pull = Pull::new().unwrap();
            let at = pull.bind(&url).unwrap_or_else(|e| panic!("after a close of the socket: {e}"));
            at.close();
            pull.bind(&url).unwrap_or_else(|e| panic!("after a close of the endpoint: {e}"));
            drop(pull);
            pull = Pull::new().unwrap();
            pull.bind(&url).unwrap_or_else(|e| panic!("after a drop: {e}"));
            pull.close(SOON).unwrap();
        }
    }
}
