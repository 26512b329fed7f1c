//! What the conformance suite found: each a defect that was, reduced.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use spanwire::Pull;

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
