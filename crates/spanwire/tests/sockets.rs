//! Sockets end to end, every pattern over every transport.

use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use spanwire::{Pair, Pub, Pull, Push, RecvError, Rep, Req, Sub};

const SOON: Duration = Duration::from_secs(10);

/// A fresh address for each transport, and each use.
fn urls() -> Vec<String> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static N: AtomicU32 = AtomicU32::new(0);
    let n = N.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("spanwire-test-{}-{n}.ipc", std::process::id()));
    vec!["tcp://127.0.0.1:0".into(), format!("ipc://{}", dir.display()), format!("inproc://test-{n}")]
}

#[test]
fn requests_are_taken_many_at_a_time_and_each_has_its_own_way_back() {
    let rep = Rep::new().unwrap();
    let req = Req::new().unwrap();
    req.connect(rep.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
    let asked: Vec<_> = (0..500).map(|n| req.start(n.to_string()).unwrap()).collect();
    let server = std::thread::spawn(move || {
        let (mut got, mut answered) = (Vec::new(), 0);
        while answered < 500 {
            let n = rep.recv_many(&mut got, 7).unwrap();
            assert!((1..=7).contains(&n) && got.len() == n);
            answered += n;
            for request in got.drain(..).rev() {
                let body = request.body().clone();
                request.reply(body).unwrap();
            }
        }
        assert_eq!(rep.recv_many(&mut got, 0), Ok(0), "none is asked for");
    });
    for (n, asked) in asked.into_iter().enumerate() {
        assert_eq!(asked.wait().unwrap(), *n.to_string());
    }
    server.join().unwrap();
}

/// Whatever the receiver tells the system to wait for, nothing waits that is whole.
#[test]
fn large_and_small_messages_in_turn_all_arrive_however_their_bytes_come() {
    use std::io::Write as _;
    let sizes = [3 << 20, 5, 1 << 20, 200_000, 0, 200_000, 70_000, 1, 300_000];
    let pull = Pull::builder().recv_max_size(4 << 20).build().unwrap();
    let at = pull.bind("tcp://127.0.0.1:0").unwrap();
    let mut peer = std::net::TcpStream::connect(at.url().trim_start_matches("tcp://")).unwrap();
    let mut bytes = b"\0SP\0\0\x50\0\0".to_vec();
    peer.write_all(&bytes).unwrap();
    for piece in [150_000, 1_000_000, 13] {
        for size in sizes {
            bytes.clear();
            bytes.extend((size as u64).to_be_bytes());
            bytes.resize(8 + size, size as u8);
            let (most, last) = bytes.split_at(bytes.len().saturating_sub(piece));
            peer.write_all(most).unwrap();
            // Its end comes alone, after the receiver has seen, or not seen, the rest.
            std::thread::yield_now();
            peer.write_all(last).unwrap();
            // One at a time: the next cannot push it along.
            let got = pull.recv_timeout(SOON).unwrap();
            assert_eq!(got.len(), size);
            assert!(got.iter().all(|byte| *byte == size as u8));
        }
    }
    // The peer goes in the middle: its pipe does too, and soon.
    let events = pull.events();
    peer.write_all(&(1u64 << 20).to_be_bytes()).unwrap();
    peer.write_all(&[0; 100_000]).unwrap();
    drop(peer);
    assert_eq!(pull.recv_timeout(Duration::from_millis(1)), Err(RecvError::TimedOut));
    let gone = std::iter::from_fn(|| events.recv_timeout(SOON).ok());
    assert!({ gone }.any(|event| matches!(event, spanwire::Event::Disconnected { .. })));
}

#[test]
fn push_reaches_pull_in_order_on_every_transport() {
    for url in urls() {
        let pull = Pull::new().unwrap();
        let at = pull.bind(&url).unwrap();
        let push = Push::new().unwrap();
        push.connect(at.url()).unwrap();
        let sender = std::thread::spawn(move || {
            for i in 0..20_000u32 {
                push.send(i.to_be_bytes()).unwrap();
            }
            push.close(SOON).unwrap()
        });
        for i in 0..20_000u32 {
            assert_eq!(
                pull.recv_timeout(SOON).unwrap_or_else(|e| panic!("{url} {i}: {e}")),
                &i.to_be_bytes()
            );
        }
        assert_eq!(sender.join().unwrap(), 0, "{url}");
        assert_eq!(pull.try_recv().unwrap_err(), RecvError::Empty);
    }
}

#[test]
fn large_messages_come_back_whole() {
    for url in urls() {
        let rep = Rep::builder().recv_max_size(64 << 20).build().unwrap();
        let at = rep.bind(&url).unwrap();
        let req = Req::builder().recv_max_size(64 << 20).build().unwrap();
        req.connect(at.url()).unwrap();
        let echo = std::thread::spawn(move || {
            for _ in 0..7 {
                let request = rep.recv_timeout(SOON).unwrap();
                let body = request.body().clone();
                request.reply(body).unwrap();
            }
            rep.close(SOON).unwrap()
        });
        for size in [0usize, 1, 64, 65, 100_000, 1 << 20, 20 << 20] {
            let body: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
            let reply =
                req.request_timeout(body.clone(), SOON).unwrap_or_else(|e| panic!("{url} {size}: {e}"));
            assert!(reply == body[..], "{url} {size}");
        }
        assert_eq!(echo.join().unwrap(), 0);
    }
}

#[test]
fn a_subscriber_gets_what_it_asked_for() {
    for url in urls() {
        let publisher = Pub::new().unwrap();
        let at = publisher.bind(&url).unwrap();
        let sub = Sub::new().unwrap();
        sub.subscribe("a.");
        sub.connect(at.url()).unwrap();
        assert!(publisher.wait_for_peers(1, SOON), "{url}");
        for text in ["b.1", "a.1", "", "a.2"] {
            publisher.send(text).unwrap();
        }
        assert_eq!(sub.recv_timeout(SOON).unwrap(), "a.1");
        assert_eq!(sub.recv_timeout(SOON).unwrap(), "a.2");
    }
}

#[test]
fn pair_talks_both_ways_and_refuses_a_second_peer() {
    for url in urls() {
        let a = Pair::new().unwrap();
        let events = a.events();
        let at = a.bind(&url).unwrap();
        let b = Pair::new().unwrap();
        b.connect(at.url()).unwrap();
        b.send("ping").unwrap();
        assert_eq!(a.recv_timeout(SOON).unwrap(), "ping");
        a.send("pong").unwrap();
        assert_eq!(b.recv_timeout(SOON).unwrap(), "pong");
        let c = Pair::new().unwrap();
        c.connect(at.url()).unwrap();
        let refused = loop {
            if let spanwire::Event::Rejected { reason, .. } = events.recv_timeout(SOON).unwrap() {
                break reason;
            }
        };
        assert_eq!(refused, spanwire::Reason::Busy);
        a.send("still here").unwrap();
        assert_eq!(b.recv_timeout(SOON).unwrap(), "still here");
    }
}

#[test]
fn many_threads_ask_at_once_on_one_socket() {
    for url in urls() {
        let rep = Rep::new().unwrap();
        let at = rep.bind(&url).unwrap();
        let req = Req::new().unwrap();
        req.connect(at.url()).unwrap();
        let server = std::thread::spawn(move || {
            while let Ok(request) = rep.recv() {
                if &*request == b"stop" {
                    return request.reply("").unwrap();
                }
                let body = request.body().clone();
                request.reply(body).unwrap();
            }
        });
        let askers: Vec<_> = (0..4u32)
            .map(|t| {
                let req = req.clone();
                std::thread::spawn(move || {
                    for i in 0..500u32 {
                        let body = [t.to_be_bytes(), i.to_be_bytes()].concat();
                        assert_eq!(req.request_timeout(body.clone(), SOON).unwrap(), &body[..]);
                    }
                })
            })
            .collect();
        for asker in askers {
            asker.join().unwrap();
        }
        req.request_timeout("stop", SOON).unwrap();
        server.join().unwrap();
    }
}

#[test]
fn an_address_is_free_as_soon_as_its_endpoint_or_socket_is_closed() {
    for url in urls() {
        let pull = Pull::new().unwrap();
        let mut at = pull.bind(&url).unwrap();
        let real = at.url().to_owned();
        let push = Push::builder().reconnect(Duration::ZERO, Duration::from_millis(20)).build().unwrap();
        push.connect(&real).unwrap();
        for i in 0..20u32 {
            push.send(i.to_be_bytes()).unwrap();
            assert_eq!(pull.recv_timeout(SOON).unwrap(), &i.to_be_bytes());
            at.close();
            at = pull.bind(&real).unwrap_or_else(|e| panic!("round {i}: {e}"));
            assert!(pull.wait_for_peers(1, SOON));
        }
        pull.close(SOON).unwrap();
        Pull::new().unwrap().bind(&real).unwrap();
    }
}

#[test]
fn closing_wakes_whoever_waits_and_a_closed_socket_says_so() {
    // A thread cannot be seen to wait: in most of the rounds one does.
    for round in 0..50 {
        let pull = Pull::new().unwrap();
        let push = Push::new().unwrap();
        let there = Arc::new(Barrier::new(4));
        let wait = |call: Box<dyn FnOnce() -> bool + Send>| {
            let there = there.clone();
            std::thread::spawn(move || {
                there.wait();
                call()
            })
        };
        let (a, b, c) = (pull.clone(), pull.clone(), push.clone());
        let waits = [
            wait(Box::new(move || a.recv().unwrap_err().is_closed())),
            wait(Box::new(move || b.recv_timeout(SOON * 10).unwrap_err().is_closed())),
            wait(Box::new(move || c.send("nobody").unwrap_err().is_closed())),
        ];
        // A task can: it was told that there is nothing yet.
        let mut task = pin!(pull.recv_async());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(task.as_mut().poll(&mut cx).is_pending());
        there.wait();
        (0..round * 4).for_each(|_| std::thread::yield_now());
        while push.close(Duration::ZERO).unwrap() + pull.close(Duration::ZERO).unwrap() > 0 {}
        for wait in waits {
            assert!(wait.join().unwrap());
        }
        assert_eq!(task.poll(&mut cx), Poll::Ready(Err(RecvError::Closed)));
        assert!(push.send("x").unwrap_err().is_closed());
        assert!(pull.bind("tcp://127.0.0.1:0").unwrap_err().is_closed());
        assert!(!pull.wait_for_peers(1, SOON));
    }
}

#[test]
fn a_device_ends_with_either_of_its_sockets_and_loses_nothing_meanwhile() {
    use spanwire::{Socket, device, protocol};
    for close_front in [true, false] {
        let (front, back) = (Pull::new().unwrap(), Push::new().unwrap());
        let at = front.bind("tcp://127.0.0.1:0").unwrap();
        let pull = Pull::new().unwrap();
        back.connect(pull.bind("tcp://127.0.0.1:0").unwrap().url()).unwrap();
        let (a, b): (Socket<protocol::pull::Pull>, Socket<protocol::push::Push>) =
            ((*front).clone(), (*back).clone());
        let device = std::thread::spawn(move || device::forward(&a, &b));
        let push = Push::new().unwrap();
        push.connect(at.url()).unwrap();
        let sender =
            std::thread::spawn(move || (0..5000u32).for_each(|n| push.send(n.to_be_bytes()).unwrap()));
        for n in 0..5000u32 {
            assert_eq!(pull.recv_timeout(SOON).unwrap(), &n.to_be_bytes());
        }
        sender.join().unwrap();
        // Idle now: it waits for the next message, and hears of the end all the same.
        if close_front {
            front.close(SOON).unwrap();
        } else {
            back.close(SOON).unwrap();
        }
        device.join().unwrap().unwrap();
        assert!(front.recv().unwrap_err().is_closed());
    }
}

#[test]
fn a_message_over_the_limit_is_counted_as_dropped_and_a_wrong_partner_is_named() {
    for url in urls() {
        let pull = Pull::builder().recv_max_size(1000).build().unwrap();
        let events = pull.events();
        let at = pull.bind(&url).unwrap();
        let push = Push::new().unwrap();
        push.connect(at.url()).unwrap();
        push.send(vec![7; 1001]).unwrap();
        while pull.stats().dropped(spanwire::DropReason::TooBig) == 0 {
            assert!(pull.recv_timeout(Duration::from_millis(5)).is_err());
        }
        push.close(SOON).unwrap();
        let req = Req::new().unwrap();
        req.connect(at.url()).unwrap();
        let remote = loop {
            let event = events.recv_timeout(SOON).unwrap();
            if let spanwire::Event::Rejected { remote, reason: spanwire::Reason::Mismatch(_), .. } = event {
                break remote;
            }
        };
        assert!(url.starts_with("ipc") || !remote.is_empty(), "{url}");
    }
}
