//! No silent drop: what was offered was delivered, or counted by pipe and reason.

use std::net::Shutdown;
use std::time::Instant;

use spanwire::transport::TcpOptions;
use spanwire::{DropReason, Event, Limit, Overflow, Prefer, Pub, Reason, Slow, Sub};

use crate::common::*;

const OFFERED: u64 = 3000;

fn publisher(slow: Slow) -> Pub {
    Pub::builder()
        .slow(slow)
        .send_queue(Limit::messages(50))
        .option(TcpOptions::default().send_buffer(Some(16 << 10)))
        .build()
        .unwrap()
}

fn subscriber(url: &str) -> Sub {
    let sub = Sub::builder().queue(Limit::messages(10), Prefer::Oldest).build().unwrap();
    sub.subscribe("");
    sub.connect(url).unwrap();
    sub
}

fn body(n: u64) -> Vec<u8> {
    let mut body = n.to_be_bytes().to_vec();
    body.resize(1024, 7);
    body
}

/// Numbers received, which only rise; until the publisher is gone.
fn count(sub: Sub) -> std::thread::JoinHandle<u64> {
    let publisher_gone = sub.events();
    std::thread::spawn(move || {
        let (mut n, mut next) = (0, 0);
        loop {
            let gone = publisher_gone.try_iter().any(|e| matches!(e, Event::Disconnected { .. }));
            while let Ok(msg) = sub.recv_timeout(std::time::Duration::from_millis(if gone { 0 } else { 20 }))
            {
                let number = u64::from_be_bytes(msg[..8].try_into().unwrap());
                assert!(number >= next, "reordered or doubled");
                next = number + 1;
                n += 1;
            }
            if gone {
                return n;
            }
        }
    })
}

#[test]
fn promise_06_offered_is_delivered_plus_counted_drops_for_every_policy_and_peer() {
    use DropReason::{Newest, Oldest, Replaced};
    for (overflow, reason) in
        [(Overflow::DropNewest, Newest), (Overflow::DropOldest, Oldest), (Overflow::KeepLatest, Replaced)]
    {
        let publisher = publisher(Slow::Drop(overflow));
        let events = publisher.events();
        let url = publisher.bind(&tcp()).unwrap().url().to_owned();
        let good = [subscriber(&url), subscriber(&url)].map(count);
        let mut stopped = small_peer(&url, SUB);
        assert!(publisher.wait_for_peers(3, SOON));
        for n in 0..OFFERED {
            publisher.send(body(n)).unwrap();
        }
        let pipes = publisher.stats().pipes;
        assert_eq!(pipes.len(), 3);
        let here = format!("tcp://{}", stopped.local_addr().unwrap().as_socket().unwrap());
        for p in &pipes {
            let lost: u64 = p.drops.iter().map(|(_, n)| n).sum();
            assert_eq!(p.tx_msgs + lost, OFFERED, "{overflow:?}: what was dropped is not counted as sent");
        }
        let at = |remote: &str| remote == here || remote == here.trim_start_matches("tcp://");
        let dropped = |mine: bool| -> u64 {
            let pipes = pipes.iter().filter(|p| at(&p.remote) == mine);
            pipes.flat_map(|p| &p.drops).map(|(_, n)| n).sum()
        };
        let (own, of_others) = (dropped(true), dropped(false));
        assert!(own > 0, "{overflow:?}: nothing was dropped, the test shows nothing");
        assert!(pipes.iter().flat_map(|p| &p.drops).all(|(why, _)| *why == reason || *why == Newest));
        event(&events, |e| matches!(e, Event::Dropped { pipe: Some(_), .. }).then_some(()));
        let total = publisher.stats().all_dropped();
        assert_eq!(total, own + of_others);
        // The stopped one reads at last: what was queued for it arrives.
        let reader = std::thread::spawn(move || read_to_end(&mut stopped, false));
        assert_eq!(publisher.close(SOON).unwrap(), 0);
        let (frames, cut) = reader.join().unwrap();
        assert_eq!((frames.len() as u64 + own, cut), (OFFERED, 0), "{overflow:?}");
        let numbers: Vec<u64> =
            frames.iter().map(|f| u64::from_be_bytes(f[..8].try_into().unwrap())).collect();
        assert!(numbers.is_sorted());
        match overflow {
            Overflow::DropNewest => assert_eq!(numbers[..40], (0..40).collect::<Vec<_>>()),
            _ => assert_eq!(numbers.last(), Some(&(OFFERED - 1)), "{overflow:?}"),
        }
        let received: u64 = good.map(|t| t.join().unwrap()).iter().sum();
        assert_eq!(received + of_others, 2 * OFFERED, "{overflow:?}");
        assert_eq!(publisher.stats().all_dropped(), total, "{overflow:?}");
    }
}

#[test]
fn promise_06_a_slow_one_that_is_disconnected_is_told_apart_and_its_loss_counted() {
    let publisher = publisher(Slow::Drop(Overflow::Disconnect));
    let events = publisher.events();
    let url = publisher.bind(&tcp()).unwrap().url().to_owned();
    let mut stopped = small_peer(&url, SUB);
    assert!(publisher.wait_for_peers(1, SOON));
    for n in 0..OFFERED {
        publisher.send(body(n)).unwrap();
    }
    let reason = event(&events, |e| match e {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(reason, Reason::Slow);
    let stats = publisher.stats();
    assert!(stats.dropped(DropReason::Newest) == 1 && stats.dropped(DropReason::NoPeer) > 0, "{stats:?}");
    // One that was begun counts as dropped, too: nobody has it.
    let (frames, _cut) = read_to_end(&mut stopped, false);
    assert_eq!(frames.len() as u64 + stats.all_dropped(), OFFERED);
}

#[test]
fn promise_06_told_to_wait_a_publisher_loses_nothing_for_anybody() {
    let publisher = publisher(Slow::Wait);
    let url = publisher.bind(&tcp()).unwrap().url().to_owned();
    let good = [subscriber(&url), subscriber(&url)].map(count);
    let mut stopped = small_peer(&url, SUB);
    assert!(publisher.wait_for_peers(3, SOON));
    let sender = publisher.clone();
    let sender = std::thread::spawn(move || {
        for n in 0..OFFERED {
            sender.send(body(n)).unwrap();
        }
    });
    until("the stopped one holds the publisher back", || {
        publisher.stats().pipes.iter().any(|p| p.queued >= 50) && !publisher.readiness().send
    });
    assert!(!sender.is_finished());
    let reader = std::thread::spawn(move || read_to_end(&mut stopped, false));
    sender.join().unwrap();
    assert_eq!(publisher.stats().all_dropped(), 0);
    assert_eq!(publisher.close(SOON).unwrap(), 0);
    let (frames, cut) = reader.join().unwrap();
    assert_eq!((frames.len() as u64, cut), (OFFERED, 0));
    for t in good {
        assert_eq!(t.join().unwrap(), OFFERED);
    }
}

/// Everything as it comes: the publisher drops what a slow pipe has no room for, the subscriber the oldest that nobody
/// fetched, and what it did not subscribe to.
#[test]
fn promise_06_with_defaults_at_both_ends_what_was_not_received_is_counted_at_one_of_them() {
    const MANY: u64 = 20_000;
    for url in urls() {
        let (publisher, sub) = (Pub::new().unwrap(), Sub::new().unwrap());
        let events = sub.events();
        sub.subscribe("even");
        sub.connect(publisher.bind(&url).unwrap().url()).unwrap();
        assert!(publisher.wait_for_peers(1, SOON));
        for n in 0..MANY {
            let topic: &[u8] = if n.is_multiple_of(2) { b"even" } else { b"odd " };
            publisher.send([topic, &n.to_be_bytes()].concat()).unwrap();
        }
        assert_eq!(publisher.close(SOON).unwrap(), 0, "{url}");
        event(&events, |e| matches!(e, Event::Disconnected { .. }).then_some(()));
        let received: Vec<u64> = std::iter::from_fn(|| sub.try_recv().ok())
            .map(|msg| u64::from_be_bytes(msg[4..].try_into().unwrap()))
            .collect();
        assert!(received.windows(2).all(|pair| pair[0] < pair[1]), "{url}: reordered or doubled");
        let (here, there) = (sub.stats(), publisher.stats());
        assert!(here.dropped(DropReason::Oldest) > 0, "{url}: the test shows nothing");
        assert!(here.dropped(DropReason::Filtered) > 0, "{url}: the test shows nothing");
        assert_eq!(received.len() as u64 + here.all_dropped() + there.all_dropped(), MANY, "{url}");
    }
}

#[test]
fn promise_06_one_stopped_subscriber_takes_nothing_from_the_others() {
    let publisher = publisher(Slow::Drop(Overflow::DropNewest));
    let url = publisher.bind(&tcp()).unwrap().url().to_owned();
    let sub = subscriber(&url);
    assert!(publisher.wait_for_peers(1, SOON));
    // In step with the good one, which therefore never has more than one message on its way.
    let p99 = || {
        let step = |n| {
            let began = Instant::now();
            publisher.send(body(n)).unwrap();
            assert_eq!(sub.recv_timeout(SOON).unwrap(), body(n)[..]);
            began.elapsed()
        };
        let mut times: Vec<_> = (0..1000).map(step).collect();
        times.sort_unstable();
        times[990]
    };
    let alone = p99();
    let stopped = small_peer(&url, SUB);
    assert!(publisher.wait_for_peers(2, SOON));
    println!("p99 {alone:?}, beside one that is stopped {:?}", p99());
    let stats = publisher.stats();
    assert!(stats.dropped(DropReason::Newest) > 0);
    assert_eq!(stats.pipes.iter().filter(|p| p.drops.is_empty()).count(), 1);
    let _ = stopped.shutdown(Shutdown::Both);
}
