//! Requests always end: with their reply, or with the reason why there is none.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use socket2::Socket;
use spanwire::transport::TcpOptions;
use spanwire::{DropReason, Rep, Req, RequestError};

use crate::common::*;

const FAST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

fn requester(resend: Option<Duration>) -> Req {
    Req::builder().reconnect(FAST.0, FAST.1).resend(resend).build().unwrap()
}

/// What a raw replier does to one connection: says the handshake and its reply up to so many bytes in all, and goes.
fn serve(mut stream: Socket, ipc: bool, upto: usize, tell: &mpsc::Sender<Vec<u8>>) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&handshake(REP)[..upto.min(8)]).unwrap();
    if upto < 8 || stream.read_exact(&mut [0; 8]).is_err() {
        return;
    }
    loop {
        let mut head = vec![0; frame(ipc, b"").len()];
        if stream.read_exact(&mut head).is_err() {
            return; // the requester is done
        }
        let length = head.last_chunk().map_or(0, |length| u64::from_be_bytes(*length));
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request).unwrap();
        tell.send(request[4..].to_vec()).unwrap();
        let bytes = frame(ipc, &[&request[..], b"!"].concat()); // the id, and what was asked
        stream.write_all(&bytes[..bytes.len().min(upto - 8)]).unwrap();
        if upto < usize::MAX {
            return;
        }
    }
}

/// One connection after another is cut at the next byte; `ask` is called for each cut and for the whole.
fn cut_at_every_byte(
    resend: Option<Duration>,
    check: impl Fn(usize, usize, Result<spanwire::Message, RequestError>),
) {
    const ASKED: &[u8] = b"question";
    let whole = |ipc| handshake(REP).len() + frame(ipc, b"").len() + 4 + ASKED.len() + 1;
    let cuts = [false, true].into_iter().flat_map(|ipc| (0..=whole(ipc)).map(move |cut| (ipc, cut)));
    for (over_ipc, cut) in cuts {
        let whole = whole(over_ipc);
        let (listener, url) = listen(&if over_ipc { ipc() } else { tcp() });
        let (tell, seen) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let last = over.clone();
        let server = std::thread::spawn(move || {
            let mut upto = cut;
            loop {
                let (stream, _) = listener.accept().unwrap();
                if last.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream, over_ipc, upto, &tell);
                upto = usize::MAX; // the next ones are served
            }
        });
        let req = requester(resend);
        req.connect(&url).unwrap();
        let got = req.request_timeout(ASKED, SOON);
        let next = req.request_timeout("next", SOON);
        if cut < whole {
            assert_eq!(next.unwrap(), "next!", "cut at {cut}");
        }
        req.close(SOON).unwrap();
        over.store(true, Ordering::SeqCst);
        drop(dial(&url));
        server.join().unwrap();
        let mut counts: HashMap<Vec<u8>, usize> = HashMap::new();
        seen.try_iter().for_each(|request| *counts.entry(request).or_default() += 1);
        let times = counts.get(ASKED).copied().unwrap_or_default();
        if resend.is_none() {
            assert!(times <= 1 && counts.values().all(|n| *n == 1), "cut at {cut}: asked twice: {counts:?}");
        }
        check(cut, whole, got);
    }
}

#[test]
fn promise_10_with_resend_off_a_replier_killed_at_any_byte_is_an_error_at_once_and_never_asked_twice() {
    cut_at_every_byte(None, |cut, whole, got| match got {
        // Before the handshake was over nothing was sent, so the next connection served it.
        Ok(reply) => assert!(reply == "question!" && (cut < 8 || cut == whole), "cut at {cut}"),
        Err(e) => {
            assert!(e == RequestError::ConnectionLost && (8..whole).contains(&cut), "cut at {cut}: {e}")
        }
    });
}

#[test]
fn promise_10_with_resend_on_a_replier_killed_at_any_byte_costs_nothing() {
    cut_at_every_byte(Some(SOON), |cut, _, got| assert_eq!(got.unwrap(), "question!", "cut at {cut}"));
}

#[test]
fn promise_10_a_replier_that_goes_with_the_request_is_followed_by_another() {
    for url in urls() {
        let first = Rep::new().unwrap();
        let url = first.bind(&url).unwrap().url().to_owned();
        let req = requester(Some(SOON));
        req.connect(&url).unwrap();
        let pending = req.start("who?").unwrap();
        let taken = first.recv_timeout(SOON).unwrap();
        first.close(SOON).unwrap();
        drop((taken, first));
        let second = Rep::new().unwrap();
        until("the address is free", || second.bind(&url).is_ok());
        let again = second.recv_timeout(SOON).unwrap();
        assert_eq!(again.body(), "who?", "{url}");
        again.reply("the second").unwrap();
        assert_eq!(pending.wait_timeout(SOON).unwrap(), "the second", "{url}");
    }
}

#[test]
fn promise_10_a_request_that_is_not_answered_ends_at_its_deadline_and_its_late_reply_is_dropped() {
    for url in urls() {
        let rep = Rep::new().unwrap();
        let req = requester(None);
        req.connect(rep.bind(&url).unwrap().url()).unwrap();
        // Or it might not be sent before its deadline, and then never.
        assert!(req.wait_for_peers(1, SOON), "{url}");
        let (patience, began) = (Duration::from_millis(50), Instant::now());
        let got = req.request_timeout("first", patience);
        let took = began.elapsed();
        println!("{url}: a request with {patience:?} took {took:?}");
        assert!((patience..patience + LATE).contains(&took), "{url}: {took:?}");
        assert_eq!(got.unwrap_err(), RequestError::TimedOut, "{url}");
        assert_eq!(req.outstanding(), 0);
        let first = rep.recv_timeout(SOON).unwrap();
        let server = std::thread::spawn(move || {
            first.reply("late").unwrap();
            let second = rep.recv_timeout(SOON).unwrap();
            assert_eq!(second.body(), "second");
            second.reply("in time").unwrap();
            rep.close(SOON).unwrap()
        });
        assert_eq!(req.request_timeout("second", SOON).unwrap(), "in time", "{url}");
        server.join().unwrap();
        assert_eq!(req.stats().dropped(DropReason::Late), 1, "{url}");
    }
}

#[test]
fn promise_10_without_a_replier_a_request_waits_and_ends_at_its_deadline_or_with_the_first_that_comes() {
    for url in urls() {
        let req = requester(None);
        let rep = Rep::new().unwrap();
        let url = {
            let probe = Rep::new().unwrap();
            let url = probe.bind(&url).unwrap().url().to_owned();
            probe.close(SOON).unwrap();
            url
        };
        req.connect(&url).unwrap();
        let got = req.request_timeout("nobody?", Duration::from_millis(30));
        assert_eq!(got.unwrap_err(), RequestError::TimedOut);
        let pending = req.start("anybody?").unwrap();
        until("the address is free", || rep.bind(&url).is_ok());
        let request = rep.recv_timeout(SOON).unwrap();
        assert_eq!(request.body(), "anybody?", "{url}: what timed out was not sent");
        request.reply("me").unwrap();
        assert_eq!(pending.wait_timeout(SOON).unwrap(), "me");
    }
}

#[test]
fn promise_10_of_many_open_requests_each_ends_when_the_replier_is_killed_in_their_midst() {
    for url in urls() {
        let rep = Rep::new().unwrap();
        let url = rep.bind(&url).unwrap().url().to_owned();
        let req = requester(None);
        req.connect(&url).unwrap();
        let pending: Vec<_> = (0..200u32).map(|n| req.start(n.to_be_bytes()).unwrap()).collect();
        until("all have left", || rep.stats().rx_msgs == 200);
        let mut answered = Vec::new();
        for _ in 0..50 {
            let request = rep.recv_timeout(SOON).unwrap();
            answered.push(request.body().clone());
            let body = request.body().clone();
            request.reply(body).unwrap();
        }
        rep.close(SOON).unwrap();
        let (mut good, mut lost) = (0, 0);
        for (n, pending) in pending.into_iter().enumerate() {
            match pending.wait_timeout(SOON) {
                Ok(reply) => {
                    assert_eq!(reply, (n as u32).to_be_bytes()[..]);
                    good += 1;
                }
                Err(RequestError::ConnectionLost) => lost += 1,
                Err(e) => panic!("{url}: {e}"),
            }
        }
        assert_eq!((good, lost), (50, 150), "{url}: replies given before the end arrive");
        assert_eq!(req.outstanding(), 0);
    }
}

#[test]
fn promise_10_what_had_not_begun_to_leave_when_a_replier_was_killed_is_served_by_the_next() {
    const ASKED: usize = 200;
    for resend in [Some(SOON * 10), None] {
        let options = TcpOptions::default().send_buffer(Some(16 << 10));
        let req = Req::builder().resend(resend).option(options).build().unwrap();
        let url = req.bind(&tcp()).unwrap().url().to_owned();
        let stopped = small_peer(&url, REP);
        assert!(req.wait_for_peers(1, SOON));
        let pending: Vec<_> = (0..ASKED).map(|n| req.start(vec![n as u8; 16 << 10]).unwrap()).collect();
        drop(stopped);
        until("its end is seen", || req.stats().pipes.is_empty());
        let rep = Rep::new().unwrap();
        rep.connect(&url).unwrap();
        let stop = rep.clone();
        let server = std::thread::spawn(move || {
            while let Ok(request) = rep.recv() {
                let body = request.body().clone();
                let _ = request.reply(body);
            }
        });
        let mut lost = 0;
        for (n, pending) in pending.into_iter().enumerate() {
            match pending.wait_timeout(SOON) {
                Ok(reply) => assert_eq!(reply, vec![n as u8; 16 << 10][..]),
                Err(RequestError::ConnectionLost) if resend.is_none() => lost += 1,
                Err(e) => panic!("{n}: {e}"),
            }
        }
        assert!(lost < ASKED / 2, "{lost} had begun to leave");
        let stats = req.stats();
        // One may have been written in part.
        assert!(stats.dropped(DropReason::PipeClosed) <= 1, "{stats:?}");
        if resend.is_none() {
            assert_eq!(stats.tx_msgs, ASKED as u64, "each has left once");
        }
        drop(req);
        stop.close(SOON).unwrap();
        server.join().unwrap();
    }
}
