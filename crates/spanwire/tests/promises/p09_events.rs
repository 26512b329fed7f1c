//! Events name the peer and the reason; any call is legal when one comes; a peer that is there gets the first message.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spanwire::{Event, Pair, PipeId, Pub, Pull, Push, Reason, Sub};

use crate::common::*;

/// An event in few words; pipes by the order in which they attached.
fn word(e: Event, pipes: &mut Vec<PipeId>) -> String {
    let mut number = |pipe: PipeId| match pipes.iter().position(|p| *p == pipe) {
        Some(n) => n,
        None => {
            pipes.push(pipe);
            pipes.len() - 1
        }
    };
    match e {
        Event::Listening { endpoint, .. } => format!("{endpoint} listening"),
        Event::Connected { pipe, endpoint, dialed, .. } => {
            format!("{endpoint} connected {} {}", number(pipe), if dialed { "dialed" } else { "accepted" })
        }
        Event::Disconnected { pipe, endpoint, reason, .. } => {
            format!("{endpoint} disconnected {}: {reason}", number(pipe))
        }
        Event::Rejected { endpoint, reason, .. } => format!("{endpoint} rejected: {reason}"),
        Event::ConnectFailed { endpoint, .. } => format!("{endpoint} failed"),
        Event::ConnectRetry { endpoint, .. } => format!("{endpoint} retry"),
        Event::EndpointClosed { endpoint } => format!("{endpoint} closed"),
        other => format!("{other:?}"),
    }
}

#[test]
fn promise_09_a_listener_tells_exactly_what_happened_to_it() {
    for url in streams() {
        let pull = Pull::builder()
            .accept(|facts| match std::mem::take(&mut *VETO.lock().unwrap()) {
                Some(why) => Err(format!("{why}{}", if facts.local.is_empty() { "?" } else { "" })),
                None => Ok(()),
            })
            .build()
            .unwrap();
        let events = pull.events();
        let endpoint = pull.bind(&url).unwrap();
        let url = endpoint.url().to_owned();
        let (mut pipes, mut told) = (Vec::new(), Vec::new());
        let mut step = |n: usize| {
            for _ in 0..n {
                told.push(word(events.recv_timeout(SOON).unwrap(), &mut pipes));
            }
        };
        step(1);
        let first = Push::new().unwrap();
        first.connect(&url).unwrap();
        step(1);
        // It has heard the handshake, too: what is unread at an end would make that a reset.
        assert!(first.wait_for_peers(1, SOON));
        let second = peer(&url, PUSH);
        step(1);
        first.close(SOON).unwrap();
        step(1);
        drop(second);
        step(1);
        drop(peer(&url, SUB));
        step(1);
        dial(&url).write_all(b"GET /").unwrap();
        step(1);
        *VETO.lock().unwrap() = Some("not today".to_owned());
        let mut third = peer(&url, PUSH);
        step(1);
        assert_eq!(read_to_end(&mut third, false), (vec![], 0));
        let mut fourth = peer(&url, PUSH);
        step(1);
        let bad_type: &[u8] = if is_ipc(&url) { &[9; 9] } else { &[9; 8] };
        fourth.write_all(bad_type).unwrap();
        step(1);
        let _fifth = peer(&url, PUSH);
        step(1);
        endpoint.close();
        step(2);
        pull.close(SOON).unwrap();
        assert!(events.recv_timeout(SOON).is_err(), "nothing more, and the channel ends");
        let misfit = if is_ipc(&url) {
            "1 disconnected 2: bad frame: ipc type byte is not 1".to_owned()
        } else {
            format!(
                "1 disconnected 2: frame of {} bytes is over the limit of 1048576 (recv_max_size)",
                0x0909_0909_0909_0909u64
            )
        };
        let expected = [
            "1 listening",
            "1 connected 0 accepted",
            "1 connected 1 accepted",
            "1 disconnected 0: closed by the peer",
            "1 disconnected 1: closed by the peer",
            "1 rejected: peer is no partner: sub (SP id 0x21) where push (SP id 0x50) was expected",
            "1 rejected: not the handshake of this wire",
            "1 rejected: refused by the application: not today",
            "1 connected 2 accepted",
            &misfit,
            "1 connected 3 accepted",
            "1 closed",
            "1 disconnected 3: closed by this side",
        ];
        assert_eq!(told, expected, "{url}");
    }
}

static VETO: Mutex<Option<String>> = Mutex::new(None);

#[test]
fn promise_09_a_dialer_tells_exactly_what_happened_to_it() {
    for url in urls() {
        let push =
            Push::builder().reconnect(Duration::from_millis(1), Duration::from_millis(5)).build().unwrap();
        let events = push.events();
        let pull = Pull::new().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        push.connect(&url).unwrap();
        let (mut pipes, mut told) = (Vec::new(), Vec::new());
        for round in 0..3 {
            // Failures while nobody is there are as many as there is time for (with inproc: none).
            let mut tries = 0;
            let connected = loop {
                let word = word(events.recv_timeout(SOON).unwrap(), &mut pipes);
                match word.as_str() {
                    "1 failed" | "1 retry" => tries += 1,
                    _ => break word,
                }
            };
            assert!(tries % 2 == 0 || round > 0, "{url}: each failure is followed by its delay");
            told.push(connected);
            let holder = if round == 0 { pull.clone() } else { HOLDER.lock().unwrap().take().unwrap() };
            holder.close(SOON).unwrap();
            told.push(word(events.recv_timeout(SOON).unwrap(), &mut pipes));
            told.push(word(events.recv_timeout(SOON).unwrap(), &mut pipes));
            let again = Pull::new().unwrap();
            until("the address is free", || again.bind(&url).is_ok());
            *HOLDER.lock().unwrap() = Some(again);
        }
        push.close(SOON).unwrap();
        HOLDER.lock().unwrap().take();
        let expected: Vec<_> = (0..3)
            .flat_map(|n| {
                [
                    format!("1 connected {n} dialed"),
                    format!("1 disconnected {n}: closed by the peer"),
                    "1 retry".to_owned(),
                ]
            })
            .collect();
        assert_eq!(told, expected, "{url}");
    }
}

static HOLDER: Mutex<Option<Pull>> = Mutex::new(None);

#[test]
fn promise_09_events_carry_addresses_and_both_ends_agree_on_them() {
    let (a, b) = (Pair::new().unwrap(), Pair::new().unwrap());
    let (at_a, at_b) = (a.events(), b.events());
    let endpoint = a.bind(&tcp()).unwrap();
    b.connect(endpoint.url()).unwrap();
    let facts = |e: Event| match e {
        Event::Connected { pipe, facts, .. } => Some((pipe, facts)),
        _ => None,
    };
    let ((pipe, of_a), (_, of_b)) = (event(&at_a, facts), event(&at_b, facts));
    assert_eq!((&of_a.local, &of_a.remote), (&of_b.remote, &of_b.local));
    assert!(endpoint.url().ends_with(&of_b.remote) || of_b.remote == endpoint.url());
    assert_eq!(a.stats().pipes[0].pipe, pipe);
    assert_eq!(a.stats().pipes[0].remote, of_a.remote);
}

#[test]
fn promise_09_any_call_is_legal_when_an_event_comes() {
    for url in urls() {
        let pull = Pull::new().unwrap();
        let events = pull.events();
        let handler = {
            let pull = pull.clone();
            std::thread::spawn(move || {
                let mut closed = false;
                for e in events {
                    pull.stats();
                    pull.peers();
                    match e {
                        Event::Listening { .. } => drop(pull.bind(&inproc()).unwrap()),
                        Event::Connected { .. } => {
                            pull.connect(&inproc()).unwrap();
                            let _ = pull.try_recv();
                            closed = pull.close(SOON).is_ok();
                        }
                        _ => {}
                    }
                    if pull.peers() + pull.stats().pipes.len() == 0 && closed {
                        return;
                    }
                }
            })
        };
        let url = pull.bind(&url);
        let push = Push::new().unwrap();
        push.connect(url.unwrap().url()).unwrap();
        assert!(pull.recv().unwrap_err().is_closed());
        handler.join().unwrap();
    }
}

#[test]
fn promise_09_the_application_may_call_and_even_close_the_socket_while_it_is_asked_about_a_peer() {
    for url in urls() {
        let own: Arc<Mutex<Option<Pull>>> = Arc::default();
        let asked = own.clone();
        let pull = Pull::builder()
            .accept(move |_| {
                if let Some(pull) = asked.lock().unwrap().take() {
                    assert_eq!((pull.peers(), pull.stats().attached), (0, 0));
                    pull.bind(&inproc()).unwrap();
                    assert!(pull.try_recv().is_err());
                    assert_eq!(pull.close(Duration::ZERO).unwrap(), 0);
                }
                Ok(())
            })
            .build()
            .unwrap();
        *own.lock().unwrap() = Some(pull.clone());
        let push = Push::new().unwrap();
        push.connect(pull.bind(&url).unwrap().url()).unwrap();
        assert!(pull.recv().unwrap_err().is_closed(), "{url}");
    }
}

#[test]
fn promise_09_the_first_message_after_wait_for_peers_arrives_ten_thousand_times_of_ten_thousand() {
    for (n, url) in [(4000, tcp()), (3000, ipc()), (3000, inproc())] {
        for i in 0..n {
            let publisher = Pub::new().unwrap();
            let at = publisher.bind(&url).unwrap();
            let sub = Sub::new().unwrap();
            sub.subscribe("");
            sub.connect(at.url()).unwrap();
            assert!(publisher.wait_for_peers(1, SOON), "{url} {i}");
            publisher.send("first").unwrap();
            assert_eq!(sub.recv_timeout(SOON).unwrap_or_else(|e| panic!("{url} {i}: {e}")), "first");
            publisher.close(SOON).unwrap();
        }
    }
}

#[test]
fn promise_09_a_reason_reaches_both_ends_where_the_protocol_can_tell() {
    let a = Pair::new().unwrap();
    let events = a.events();
    let at = a.bind(&inproc()).unwrap();
    let b = Pair::new().unwrap();
    b.connect(at.url()).unwrap();
    assert!(a.wait_for_peers(1, SOON));
    let c = Pair::builder().no_reconnect().build().unwrap();
    let of_c = c.events();
    c.connect(at.url()).unwrap();
    event(&events, |e| matches!(e, Event::Rejected { reason: Reason::Busy, .. }).then_some(()));
    event(&of_c, |e| matches!(e, Event::EndpointClosed { .. }).then_some(()));
    assert_eq!(a.peers(), 1);
}
