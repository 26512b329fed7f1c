//! Every future is cancel-safe, every readiness source is level-triggered.

use std::future::poll_fn;
use std::os::fd::RawFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use spanwire::transport::{IpcOptions, TcpOptions};
use spanwire::{Limit, Message, Pull, Push, Rep, Req, RequestError};

use crate::common::*;

/// Ready after so many polls: what a `select!` is lost to.
async fn after(mut polls: u64) {
    poll_fn(|cx| {
        if polls == 0 {
            return Poll::Ready(());
        }
        polls -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn send_all(push: Push, sender: u32, n: u32, mut rng: Rng) -> u64 {
    let mut cancelled = 0;
    for i in 0..n {
        let body = [sender.to_be_bytes(), i.to_be_bytes()].concat();
        loop {
            tokio::select! {
                biased;
                sent = push.send_async(body.clone()) => {
                    sent.unwrap();
                    break;
                }
                // Dropped before it was ready, it has sent nothing.
                () = after(rng.below(3)) => cancelled += 1,
            }
        }
    }
    cancelled
}

/// One message, or up to `most` with one future, by futures that are dropped again and again; and how often.
async fn receive(pull: &Pull, most: usize, rng: &mut Rng, cancelled: &mut u64) -> Vec<(u32, u32)> {
    let mut got = Vec::new();
    loop {
        let many = most > 1 && rng.below(2) == 0;
        tokio::select! {
            biased;
            one = pull.recv_async(), if !many => {
                got.push(one.unwrap());
                break;
            }
            n = pull.recv_many_async(&mut got, most), if many => {
                assert!((1..=most).contains(&n.unwrap()));
                break;
            }
            () = after(rng.below(4)) => {
                *cancelled += 1;
                if rng.below(4) == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    let word = |msg: &Message, at: usize| u32::from_be_bytes(msg[at..at + 4].try_into().unwrap());
    got.iter().map(|msg| (word(msg, 0), word(msg, 4))).collect()
}

fn pushing(limit: Limit, small: &TcpOptions, small_ipc: &IpcOptions) -> Push {
    Push::builder().send_queue(limit).option(small.clone()).option(small_ipc.clone()).build().unwrap()
}

#[test]
fn promise_11_a_million_messages_through_cancelled_futures_none_lost_doubled_or_reordered() {
    for (seed, url) in urls().into_iter().enumerate() {
        let n = 112_000u32; // by each of three senders, over each of three transports
        let began = Instant::now();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let limit = Limit::messages(64);
        // Small buffers of the kernel, so that senders have to wait.
        let small = TcpOptions::default().send_buffer(Some(4096)).recv_buffer(Some(4096));
        let small_ipc = IpcOptions::default().send_buffer(Some(4096));
        let pull = Pull::builder().recv_queue(limit).option(small.clone()).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let shared = pushing(limit, &small, &small_ipc);
        shared.connect(&url).unwrap();
        let own = pushing(limit, &small, &small_ipc);
        own.connect(&url).unwrap();
        let senders: Vec<_> = [shared.clone(), shared, own]
            .into_iter()
            .zip(0u32..)
            .map(|(push, t)| runtime.spawn(send_all(push, t, n, Rng(seed as u64 * 10 + u64::from(t)))))
            .collect();
        let (mut next, mut cancelled) = ([0u32; 3], 0);
        let mut rng = Rng(seed as u64 + 99);
        let all = async {
            while next.iter().sum::<u32>() < 3 * n {
                let some = tokio::time::timeout(SOON, receive(&pull, 3, &mut rng, &mut cancelled));
                for (sender, i) in some.await.unwrap_or_else(|e| panic!("{url}: stuck: {e}")) {
                    assert_eq!(i, next[sender as usize], "{url}: of sender {sender}");
                    next[sender as usize] += 1;
                }
            }
        };
        runtime.block_on(all);
        let given_up: u64 = senders.into_iter().map(|t| runtime.block_on(t).unwrap()).sum();
        assert!(cancelled > 1000, "{url}: {cancelled} cancelled receives show nothing");
        assert!(given_up > 1000, "{url}: {given_up} cancelled sends show nothing");
        assert!(pull.try_recv().is_err(), "{url}");
        println!("{url}: {} in {:?}", 3 * n, began.elapsed());
    }
}

#[test]
fn promise_11_two_executors_and_a_blocking_thread_share_a_socket_and_each_message_goes_to_one() {
    for (seed, url) in urls().into_iter().enumerate() {
        let n = 10_000u32;
        let pull = Pull::builder().recv_queue(Limit::messages(20)).build().unwrap();
        let push = Push::builder().send_queue(Limit::messages(20)).build().unwrap();
        push.connect(pull.bind(&url).unwrap().url()).unwrap();
        const STOP: u32 = u32::MAX;
        let tokio_one = {
            let pull = pull.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(drain(pull, Rng(seed as u64)))
            })
        };
        let other_one = {
            let pull = pull.clone();
            std::thread::spawn(move || block_on(drain(pull, Rng(seed as u64 + 50))))
        };
        let blocking = {
            let pull = pull.clone();
            std::thread::spawn(move || {
                let mut got = Vec::new();
                loop {
                    let msg = pull.recv_timeout(SOON).unwrap();
                    match u32::from_be_bytes(msg[4..8].try_into().unwrap()) {
                        STOP => return got,
                        i => got.push(i),
                    }
                }
            })
        };
        async fn drain(pull: Pull, mut rng: Rng) -> Vec<u32> {
            let mut got = Vec::new();
            loop {
                match receive(&pull, 1, &mut rng, &mut 0).await[0] {
                    (_, STOP) => return got,
                    (_, i) => got.push(i),
                }
            }
        }
        block_on(send_all(push.clone(), 0, n, Rng(seed as u64 + 7)));
        for _ in 0..3 {
            push.send([[0; 4], STOP.to_be_bytes()].concat()).unwrap();
        }
        let parts = [tokio_one, other_one, blocking].map(|t| t.join().unwrap());
        for part in &parts {
            assert!(part.is_sorted(), "{url}: one receiver got them out of order");
        }
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>(), "{url}: lost or doubled");
    }
}

#[test]
fn promise_11_requests_may_be_dropped_at_any_await_and_the_others_get_their_own_replies() {
    for (seed, url) in urls().into_iter().enumerate() {
        let rep = Rep::new().unwrap();
        let req = Req::new().unwrap();
        req.connect(rep.bind(&url).unwrap().url()).unwrap();
        let closer = rep.clone();
        let server = std::thread::spawn(move || {
            for request in rep.iter() {
                let body = request.body().clone();
                if request.reply(body).is_err() {
                    return;
                }
            }
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let askers: Vec<_> = (0..4u32)
            .map(|t| {
                let (req, mut rng) = (req.clone(), Rng(seed as u64 * 10 + u64::from(t)));
                runtime.spawn(async move {
                    for i in 0..500u32 {
                        let body = [t.to_be_bytes(), i.to_be_bytes()].concat();
                        tokio::select! {
                            biased;
                            reply = req.request_async(body.clone()) => assert_eq!(reply.unwrap(), body[..]),
                            () = after(rng.below(5)) => {}
                        }
                        let reply = req.request_async(body.clone()).await;
                        assert_eq!(reply.unwrap(), body[..]);
                    }
                })
            })
            .collect();
        for asker in askers {
            runtime.block_on(asker).unwrap();
        }
        assert_eq!(req.outstanding(), 0, "{url}: a dropped request is forgotten");
        closer.close(SOON).unwrap();
        server.join().unwrap();
        let end = req.request_timeout("anybody?", Duration::from_millis(1));
        assert_eq!(end.unwrap_err(), RequestError::TimedOut);
    }
}

fn readable(fd: RawFd, patience: Duration) -> bool {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut p, 1, patience.as_millis() as i32) == 1 }
}

#[test]
fn promise_11_the_descriptor_is_readable_exactly_while_recv_would_give_something() {
    for (seed, url) in urls().into_iter().enumerate() {
        let mut rng = Rng(seed as u64);
        let pull = Pull::builder().recv_queue(Limit::messages(5)).build().unwrap();
        let push = Push::new().unwrap();
        push.connect(pull.bind(&url).unwrap().url()).unwrap();
        let fd = pull.readable_fd().unwrap();
        assert!(!readable(fd, Duration::ZERO), "{url}");
        for _ in 0..400 {
            let n = rng.below(12);
            for _ in 0..n {
                push.send("one").unwrap();
            }
            for left in (0..n).rev() {
                assert!(readable(fd, SOON), "{url}: {} are on their way", left + 1);
                // A level, not an edge: asked again, it says the same.
                assert!(readable(fd, Duration::ZERO), "{url}");
                match rng.below(3) {
                    0 => drop(pull.try_recv().unwrap()),
                    1 => drop(pull.recv().unwrap()),
                    _ => drop(block_on(pull.recv_async()).unwrap()),
                }
            }
            assert!(!readable(fd, Duration::ZERO), "{url}: nothing is there");
            assert!(pull.try_recv().is_err());
        }
        pull.close(Duration::ZERO).unwrap();
        assert!(readable(fd, Duration::ZERO), "{url}: a closed socket gives its error at once");
        assert!(pull.try_recv().unwrap_err().is_closed());
    }
}
