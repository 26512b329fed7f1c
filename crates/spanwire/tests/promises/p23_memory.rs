//! Memory returns after churn and after a backlog.
//!
//! The promise names 100,000 cycles for each protocol and transport. A cycle costs half a millisecond of CPU here, all of
//! them would cost a quarter of an hour; so there are 1,000, and allocations are counted as well as bytes: one that stays
//! in thirty cycles, however small, shows as it would in the whole number. `SPANWIRE_CYCLES=100000` runs all.

use std::cell::Cell;
use std::time::{Duration, Instant};

use spanwire::protocol::Protocol;
use spanwire::{Limit, Pair, Pub, Pull, Push, Rep, Req, Slow, Socket, Sub};

use crate::common::*;
use crate::memory::{count, live};

const WARM: usize = 40;

fn cycles() -> usize {
    std::env::var("SPANWIRE_CYCLES").map_or(1000, |text| text.parse().expect("a number of cycles"))
}

/// Waits until what is live is at most this: what goes in the background, goes soon.
fn settles(what: &str, most: usize) {
    falls(what, "bytes", most, live);
}

fn falls(what: &str, of: &str, most: usize, now: fn() -> usize) {
    // As text at the end, when it is told how it failed.
    let least = Cell::new(usize::MAX);
    until(format_args!("{what}: {least:?} {of} stay, {most} were expected at most"), || {
        least.set(least.get().min(now()));
        least.get() <= most
    });
}

/// What is live for good: the least that there is, when in twenty looks it has not become less.
fn rest() -> usize {
    least_of(live)
}

fn least_of(look: fn() -> usize) -> usize {
    let (mut least, mut same) = (usize::MAX, 0);
    until("memory comes to rest", || {
        let now = look();
        same = if now < least { 0 } else { same + 1 };
        least = least.min(now);
        same == 20
    });
    least
}

/// Waits for what mostly takes microseconds, which would be lost among the pauses of [`until`] here.
fn at_once(what: &str, mut f: impl FnMut() -> bool) {
    let latest = Instant::now() + Duration::from_millis(2);
    while !f() {
        if Instant::now() > latest {
            return until(what, f);
        }
        std::thread::yield_now();
    }
}

/// A client that comes and goes, again and again; the server's user does nothing meanwhile.
fn churn<A: Protocol, B: Protocol>(
    what: &str,
    url: &str,
    server: &Socket<A>,
    client: impl Fn() -> Socket<B>,
) {
    let url = server.bind(url).unwrap().url().to_owned();
    let stays = client();
    let cycle = |n: usize| {
        if n.is_multiple_of(2) {
            // A socket of its own.
            let own = client();
            own.connect(&url).unwrap();
            at_once("it attached", || server.peers() == 1 && own.peers() == 1);
            drop(own);
        } else {
            // An endpoint of one that stays.
            let endpoint = stays.connect(&url).unwrap();
            at_once("it attached", || server.peers() == 1 && stays.peers() == 1);
            endpoint.close();
            at_once("it went", || stays.peers() == 0);
        }
        at_once("it went", || server.peers() == 0);
    };
    (0..WARM).for_each(cycle);
    let (bytes, allocations) = (rest(), least_of(count));
    (0..cycles()).for_each(cycle);
    // Some table may have doubled once.
    settles(what, bytes + 16 * 1024);
    falls(what, "allocations", allocations + 32, count);
}

#[test]
fn promise_23_after_thousands_of_connections_of_every_kind_nothing_stays() {
    if !alone("p23_memory::promise_23_after_thousands_of_connections_of_every_kind_nothing_stays") {
        return;
    }
    for url in urls() {
        churn(&format!("pair {url}"), &url, &Pair::new().unwrap(), || (*Pair::new().unwrap()).clone());
    }
    for url in urls() {
        churn(&format!("push {url}"), &url, &Pull::new().unwrap(), || (*Push::new().unwrap()).clone());
    }
    for url in urls() {
        churn(&format!("pull {url}"), &url, &Push::new().unwrap(), || (*Pull::new().unwrap()).clone());
    }
    for url in urls() {
        churn(&format!("sub {url}"), &url, &Pub::new().unwrap(), || {
            let sub = Sub::new().unwrap();
            sub.subscribe("topic");
            (*sub).clone()
        });
    }
    for url in urls() {
        churn(&format!("req {url}"), &url, &Rep::new().unwrap(), || (*Req::new().unwrap()).clone());
    }
}

#[test]
fn promise_23_after_thousands_of_visits_by_strangers_nothing_stays() {
    if !alone("p23_memory::promise_23_after_thousands_of_visits_by_strangers_nothing_stays") {
        return;
    }
    use std::io::Write;
    for url in streams() {
        let pull = Pull::new().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let mut rng = Rng(23);
        let mut visit = |n: usize| {
            let mut stranger = dial(&url);
            let _ = match rng.below(4) {
                0 => stranger.write_all(b"nonsense"),
                1 => stranger.write_all(&handshake(PUSH)[..rng.below(8) as usize]),
                2 => stranger.write_all(&handshake(SUB)),
                _ => stranger.write_all(&[&handshake(PUSH)[..], &[1; 20]].concat()),
            };
            drop(stranger);
            until("it was seen", || {
                let stats = pull.stats();
                stats.rejected + stats.detached > n as u64
            });
        };
        (0..200).for_each(&mut visit);
        let before = rest();
        (200..2000).for_each(&mut visit);
        settles(&url, before + 16 * 1024);
    }
}

#[test]
fn promise_23_after_a_backlog_of_a_gigabyte_was_drained_nothing_stays() {
    if !alone("p23_memory::promise_23_after_a_backlog_of_a_gigabyte_was_drained_nothing_stays") {
        return;
    }
    for url in urls() {
        for size in [20, 200, 5000, 60_000] {
            drained(&url, size, (32 << 20) / size.max(200));
        }
        drained(&url, 60_000, (1 << 30) / 60_000 + 1);
    }
}

/// So many messages lie with the receiver, and are received.
fn drained(url: &str, size: usize, total: usize) {
    const BIG: Limit = Limit::messages(1 << 20).and_bytes(2 << 30);
    let pull = Pull::builder().recv_queue(BIG).build().unwrap();
    let push = Push::builder().send_queue(BIG).build().unwrap();
    push.connect(pull.bind(url).unwrap().url()).unwrap();
    let round = |n: usize| {
        for _ in 0..n {
            push.send(vec![7; size]).unwrap();
        }
        until("all of it lies with the receiver", || {
            pull.stats().pipes.first().is_some_and(|p| p.pending == n)
        });
        for _ in 0..n {
            assert_eq!(pull.recv_timeout(SOON).unwrap().len(), size);
        }
    };
    round(10);
    let before = rest();
    round(total);
    // Buffers that serve again: for bytes, and for as many small messages as one read may bring.
    settles(&format!("{url}, {size} bytes each"), before + (5 << 20));
}

#[test]
fn promise_23_what_a_slow_subscriber_held_up_is_freed_when_it_goes() {
    if !alone("p23_memory::promise_23_what_a_slow_subscriber_held_up_is_freed_when_it_goes") {
        return;
    }
    const BIG: Limit = Limit::messages(1 << 20).and_bytes(1 << 30);
    let publisher = Pub::builder().slow(Slow::Wait).send_queue(BIG).build().unwrap();
    let url = publisher.bind(&tcp()).unwrap().url().to_owned();
    let mut stopped = Vec::new();
    let round = |stopped: &mut Vec<_>| {
        stopped.push(small_peer(&url, SUB));
        until("it attached", || publisher.peers() == 1);
        (0..100_000).for_each(|_| publisher.send(vec![7; 200]).unwrap());
        assert!(publisher.stats().pipes[0].queued > 10_000);
        reset(stopped.remove(0));
        until("it went", || publisher.peers() == 0);
    };
    round(&mut stopped);
    let before = rest();
    (0..3).for_each(|_| round(&mut stopped));
    settles("stopped subscribers", before + (64 << 10));
}
