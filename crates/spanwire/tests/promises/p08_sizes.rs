//! Size limits are real, the same on every transport, and loud; nothing is allocated on the word of a peer.

use std::io::Write;
use std::time::{Duration, Instant};

use spanwire::{Event, Pull, Push, Reason};

use crate::common::*;
use crate::memory;

/// A listener that has seen traffic, so that what it keeps for good is there; and a friend of it.
fn warm(url: &str, recv_max: usize) -> (Pull, Push, String) {
    let pull = Pull::builder().recv_max_size(recv_max).build().unwrap();
    let url = pull.bind(url).unwrap().url().to_owned();
    let push = Push::new().unwrap();
    push.connect(&url).unwrap();
    let mut stranger = peer(&url, PUSH);
    stranger.write_all(&frame(is_ipc(&url), b"hello")).unwrap();
    assert_eq!(pull.recv_timeout(SOON).unwrap(), "hello");
    drop(stranger);
    until("only the friend is left", || pull.peers() == 1);
    through(&pull, &push);
    (pull, push, url)
}

/// Some rounds of the event loop.
fn through(pull: &Pull, push: &Push) {
    for _ in 0..50 {
        push.send("round").unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap(), "round");
    }
}

fn head(ipc: bool, size: u64) -> Vec<u8> {
    let mut head = if ipc { vec![1] } else { Vec::new() };
    head.extend_from_slice(&size.to_be_bytes());
    head
}

#[test]
fn promise_08_a_header_of_two_to_the_63_costs_no_memory_and_is_named() {
    if !alone("p08_sizes::promise_08_a_header_of_two_to_the_63_costs_no_memory_and_is_named") {
        return;
    }
    for url in streams() {
        let (pull, _push, url) = warm(&url, 1 << 20);
        let events = pull.events();
        for size in [1u64 << 63, u64::MAX, (1 << 20) + 1] {
            let mut bad = peer(&url, PUSH);
            until("it attached", || pull.peers() == 2);
            let before = memory::watch();
            bad.write_all(&head(is_ipc(&url), size)).unwrap();
            let (reason, remote) = event(&events, |e| match e {
                Event::Disconnected { reason, remote, .. } => Some((reason, remote)),
                _ => None,
            });
            assert_eq!(reason, Reason::TooBig { size, limit: 1 << 20 });
            assert!(is_ipc(&url) || remote.contains("127.0.0.1:"), "{remote:?} does not name the peer");
            let grown = memory::peak() - before;
            assert!(grown < 64 << 10, "{url}: {grown} bytes for a header of {size}");
        }
    }
}

#[test]
fn promise_08_an_allowed_size_costs_memory_only_as_its_bytes_arrive() {
    if !alone("p08_sizes::promise_08_an_allowed_size_costs_memory_only_as_its_bytes_arrive") {
        return;
    }
    const MAX: usize = 512 << 20;
    for url in streams() {
        let (pull, push, url) = warm(&url, MAX);
        let mut bad = peer(&url, PUSH);
        until("it attached", || pull.peers() == 2);
        let before = memory::watch();
        bad.write_all(&head(is_ipc(&url), MAX as u64)).unwrap();
        through(&pull, &push);
        bad.write_all(&[7; 1000]).unwrap();
        through(&pull, &push);
        let grown = memory::peak() - before;
        assert!(grown < 192 << 10, "{url}: {grown} bytes for 1,000");
        // Memory follows what has arrived: for a megabyte, some megabytes.
        bad.write_all(&vec![7; 1 << 20]).unwrap();
        through(&pull, &push);
        let grown = memory::peak() - before;
        assert!(grown < 6 << 20, "{url}: {grown} bytes for 1 MiB");
        drop(bad);
        until("it went", || pull.peers() == 1);
        until("the memory is back", || {
            through(&pull, &push);
            memory::live() < before + (192 << 10)
        });
    }
}

#[test]
fn promise_08_one_byte_too_many_is_one_event_and_the_link_comes_back() {
    for url in urls() {
        let pull = Pull::new().unwrap();
        let events = pull.events();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let push =
            Push::builder().reconnect(Duration::from_millis(1), Duration::from_millis(50)).build().unwrap();
        push.connect(&url).unwrap();
        push.send(vec![7; 1 << 20]).unwrap();
        assert_eq!(pull.recv_timeout(SOON).unwrap().len(), 1 << 20, "{url}: the limit itself is allowed");
        push.send(vec![7; (1 << 20) + 1]).unwrap();
        let reason = event(&events, |e| match e {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
        assert_eq!(reason, Reason::TooBig { size: (1 << 20) + 1, limit: 1 << 20 }, "{url}");
        // The pusher goes on: it does not offer that message again and again.
        until("it is back", || push.stats().attached == 2 && push.peers() == 1);
        for _ in 0..3 {
            push.send("fine").unwrap();
            assert_eq!(pull.recv_timeout(SOON).unwrap(), "fine", "{url}");
        }
        let again = events.try_iter().filter(|e| matches!(e, Event::Disconnected { .. })).count();
        assert_eq!(again, 0, "{url}");
        assert_eq!((pull.stats().attached, pull.stats().detached), (2, 1), "{url}");
    }
}

#[test]
fn promise_08_who_sends_too_much_every_time_stays_on_the_curve() {
    for url in urls() {
        let pull = Pull::builder().recv_max_size(1000).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        while !stays_on_the_curve(&url) {}
    }
}

/// `false`: it took so long on this machine that a connection stood for a second. Then it was a stable one, after
/// which the curve rightly begins anew.
fn stays_on_the_curve(url: &str) -> bool {
    const STABLE: Duration = Duration::from_secs(1);
    let (min, max) = (Duration::from_millis(8), Duration::from_millis(100));
    let push = Push::builder().reconnect(min, max).build().unwrap();
    let events = push.events();
    push.connect(url).unwrap();
    for attempt in 0..6 {
        let began = Instant::now();
        assert!(push.wait_for_peers(1, SOON), "{url}");
        push.send(vec![7; 1001]).unwrap();
        let delay = event(&events, |e| match e {
            Event::ConnectRetry { delay, .. } => Some(delay),
            _ => None,
        });
        if began.elapsed() >= STABLE {
            return false;
        }
        let ceiling = (min * (1 << attempt)).min(max);
        assert!((ceiling / 2..=ceiling).contains(&delay), "{url}: attempt {attempt} waits {delay:?}");
    }
    true
}
