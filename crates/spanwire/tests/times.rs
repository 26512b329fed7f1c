//! Times that the engine sets itself, on sockets that nobody waits on or somebody sleeps on.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use spanwire::{Event, Push, SendError};

/// A PULL that shakes hands and then reads nothing.
fn deaf_pull(listener: &TcpListener) -> std::net::TcpStream {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(&[0, b'S', b'P', 0, 0, 0x51, 0, 0]).expect("the peer is there");
    stream.read_exact(&mut [0; 8]).expect("its greeting");
    stream
}

#[test]
fn a_dropped_socket_gives_up_a_stuck_peer_when_its_linger_time_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let push = Push::builder().linger(Duration::from_millis(100)).build().expect("a socket");
    let events = push.events();
    push.connect(&format!("tcp://{}", listener.local_addr().expect("an address"))).expect("an address");
    let mut peer = deaf_pull(&listener);
    assert!(push.wait_for_peers(1, Duration::from_secs(10)));
    let large = vec![7; 1 << 20];
    // More than the system and the queue hold: the pipe is stuck, and the driver watches for room.
    loop {
        match push.send_timeout(&large[..], Duration::from_millis(50)) {
            Ok(()) => {}
            Err(SendError::TimedOut(_)) => break,
            Err(e) => panic!("{e}"),
        }
    }
    let dropped = Instant::now();
    drop(push);
    // The socket's end closes its event channels.
    let last = loop {
        match events.recv_timeout(Duration::from_secs(5)) {
            Ok(Event::Disconnected { .. }) => break true,
            Ok(_) => {}
            Err(_) => break false,
        }
    };
    assert!(last, "still there {:?} after its linger time", dropped.elapsed());
    let mut rest = Vec::new();
    // It ends, by whatever means.
    let _ = peer.read_to_end(&mut rest);
}
