//! One bad peer cannot stall a listener, nor can a thousand.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use spanwire::{Event, Pull, Push, Reason};

use crate::common::*;

#[test]
fn promise_02_a_good_client_attaches_among_a_thousand_bad_ones_of_each_kind() {
    // Both ends of some thousand connections are in this process: other tests could not have theirs.
    if !alone("p02_bad_peers::promise_02_a_good_client_attaches_among_a_thousand_bad_ones_of_each_kind") {
        return;
    }
    let n = 1000.min((descriptors().saturating_sub(500)) / 6);
    assert!(n >= 50, "too few descriptors to say anything");
    for url in streams() {
        let pull = Pull::new().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let silent: Vec<_> = (0..n).map(|_| dial(&url)).collect();
        let garbage: Vec<_> = (0..n)
            .map(|_| {
                let mut socket = dial(&url);
                let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
                socket
            })
            .collect();
        (0..n).for_each(|_| drop(dial(&url)));
        let push = Push::new().unwrap();
        let began = Instant::now();
        push.connect(&url).unwrap();
        push.send("good").unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "good", "{url}");
        println!(
            "{url}: {:?} until the good one had its message through, beside {n} of each",
            began.elapsed()
        );
        until("who talks nonsense or leaves is refused", || pull.stats().rejected >= 2 * n as u64);
        assert_eq!((pull.peers(), pull.stats().attached), (1, 1), "{url}");
        drop((silent, garbage));
        until("all strangers are gone", || pull.stats().rejected >= 3 * n as u64);
        push.send("still").unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "still", "{url}");
    }
}

#[test]
fn promise_02_a_silent_client_is_let_go_when_its_time_is_over_and_the_others_stay() {
    for url in streams() {
        let pull = Pull::builder().handshake_timeout(Duration::from_millis(300)).build().unwrap();
        let events = pull.events();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let push = Push::new().unwrap();
        push.connect(&url).unwrap();
        assert!(pull.wait_for_peers(1, SOON));
        let silent: Vec<_> = (0..20)
            .map(|i| {
                let mut socket = dial(&url);
                socket.write_all(&handshake(PUSH)[..i % 8]).unwrap(); // some stop half-way
                socket
            })
            .collect();
        for mut socket in silent {
            let mut said = Vec::new();
            let _ = socket.read_to_end(&mut said); // to the end, or to the reset
            assert_eq!(said, handshake(PULL), "{url}");
            event(&events, |e| {
                matches!(e, Event::Rejected { reason: Reason::HandshakeTimeout, .. }).then_some(())
            });
        }
        push.send("good").unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "good");
    }
}

#[test]
fn promise_02_more_silent_clients_than_there_is_room_for_push_out_the_oldest_only() {
    const ROOM: usize = 1024;
    const MORE: usize = 77;
    if !alone("p02_bad_peers::promise_02_more_silent_clients_than_there_is_room_for_push_out_the_oldest_only")
    {
        return;
    }
    assert!(descriptors() > 2 * (ROOM + MORE) + 100, "too few descriptors to say anything");
    // Nobody's time is over within this test: who goes was pushed out.
    let pull = Pull::builder().handshake_timeout(SOON * 2).build().unwrap();
    let events = pull.events();
    let url = pull.bind(&tcp()).unwrap().url().to_owned();
    let mut oldest: Vec<_> = (0..ROOM + MORE).map(|_| dial(&url)).collect();
    let mut others = oldest.split_off(MORE);
    for mut socket in oldest {
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        assert_eq!(said, handshake(PULL));
        event(&events, |e| {
            matches!(e, Event::Rejected { reason: Reason::HandshakeTimeout, .. }).then_some(())
        });
    }
    // All others are welcome still.
    for socket in &mut others {
        greet(socket, PUSH);
        socket.write_all(&frame(false, b"patient")).unwrap();
    }
    for _ in 0..ROOM {
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "patient");
    }
    let stats = pull.stats();
    assert_eq!((stats.accepted, stats.rejected), ((ROOM + MORE) as u64, MORE as u64));
}
