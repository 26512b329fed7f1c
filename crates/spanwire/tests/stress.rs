//! The engine under every kind of user at once: blocking, timed, trying, async, polling and descriptor users of one socket,
//! with senders of all kinds. Nothing may be lost, doubled, or stuck.
//!
//! Seeded: a failure prints its seed. `SPANWIRE_STRESS_SECONDS` makes it run longer.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use spanwire::{Interest, Limit, Message, Poller, Pull, Push, RecvError, Rep, Req, SendError};

#[path = "common/executor.rs"]
mod executor;
#[path = "common/rng.rs"]
mod rng;

use executor::block_on;
use rng::Rng;

const GIVE_UP: Duration = Duration::from_secs(30);

/// Polls a future a few times, then drops it: what `select!` does.
fn poll_some<F: Future>(f: F, times: u64) -> Option<F::Output> {
    let mut f = std::pin::pin!(f);
    for _ in 0..times {
        if let Poll::Ready(out) = f.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(out);
        }
        std::thread::yield_now();
    }
    None
}

fn wait_fd(fd: RawFd, ms: i32) -> bool {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut p, 1, ms) == 1 }
}

fn receive(pull: &Pull, kind: u64, rng: &mut Rng) -> Result<Option<Message>, RecvError> {
    let got = match kind {
        0 => pull.recv_timeout(Duration::from_millis(200)),
        1 => pull.try_recv(),
        2 => pull.recv_timeout(Duration::from_micros(rng.below(300))),
        3 => poll_some(pull.recv_async(), rng.below(4)).unwrap_or(Err(RecvError::Empty)),
        4 => {
            let mut poller = Poller::new().unwrap();
            poller.add(pull, Interest::RECV).unwrap();
            poller.wait(Some(Duration::from_millis(rng.below(20)))).unwrap();
            pull.try_recv()
        }
        _ => {
            wait_fd(pull.readable_fd().unwrap(), rng.below(20) as i32);
            pull.try_recv()
        }
    };
    match got {
        Ok(m) => Ok(Some(m)),
        Err(RecvError::Empty | RecvError::TimedOut) => Ok(None),
        Err(e) => Err(e),
    }
}

fn send(push: &Push, msg: Message, kind: u64, rng: &mut Rng) {
    let mut msg = msg;
    loop {
        let sent = match kind {
            0 => push.send(msg),
            1 => push.try_send(msg),
            2 => push.send_timeout(msg, Duration::from_micros(rng.below(500))),
            _ => block_on(push.send_async(msg)),
        };
        match sent {
            Ok(()) => return,
            Err(SendError::Full(m) | SendError::TimedOut(m)) => msg = m,
            Err(e) => panic!("{e}"),
        }
        std::thread::yield_now();
    }
}

fn round(seed: u64) {
    let mut rng = Rng(seed);
    let url = match rng.below(3) {
        0 => "tcp://127.0.0.1:0".to_owned(),
        1 => {
            format!("ipc://{}/spanwire-stress-{}-{seed}", std::env::temp_dir().display(), std::process::id())
        }
        _ => format!("inproc://stress-{seed}"),
    };
    let total = 4000u64;
    let limit = Limit::messages(1 + rng.below(50) as usize);
    let spin = Duration::from_micros([0, 0, 20, 200][rng.below(4) as usize]);
    let pull = Pull::builder().recv_queue(limit).spin(spin).build().unwrap();
    let at = pull.bind(&url).unwrap().url().to_owned();
    let senders = 1 + rng.below(3);
    let receivers = 1 + rng.below(3);
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..total).map(|_| AtomicU64::new(0)).collect());
    let got = Arc::new(AtomicUsize::new(0));
    let next = Arc::new(AtomicU64::new(0));
    let size = rng.below(3) * 100;
    let one_push = rng.below(2) == 0;
    let new_push = move || Push::builder().send_queue(limit).spin(spin).build().unwrap();
    let shared = new_push();
    shared.connect(&at).unwrap();
    let mut threads = Vec::new();
    for _ in 0..senders {
        let push = if one_push { shared.clone() } else { new_push() };
        if !one_push {
            push.connect(&at).unwrap();
        }
        let (next, mut rng) = (next.clone(), Rng(rng.next()));
        threads.push(std::thread::spawn(move || {
            let kind = rng.below(4);
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    break;
                }
                let mut body = n.to_be_bytes().to_vec();
                body.resize(8 + size as usize, 7);
                send(&push, body.into(), kind, &mut rng);
                if rng.below(200) == 0 {
                    std::thread::yield_now();
                }
            }
            if !one_push {
                assert_eq!(push.close(GIVE_UP).unwrap(), 0);
            }
        }));
    }
    let began = Instant::now();
    for _ in 0..receivers {
        let (pull, seen, got, mut rng) = (pull.clone(), seen.clone(), got.clone(), Rng(rng.next()));
        let shared = shared.clone();
        threads.push(std::thread::spawn(move || {
            let fixed = rng.below(2) == 0;
            let mut kind = rng.below(6);
            while got.load(Ordering::Relaxed) < total as usize {
                if !fixed {
                    kind = rng.below(6);
                }
                if let Some(m) = receive(&pull, kind, &mut rng).unwrap() {
                    let n = u64::from_be_bytes(m[..8].try_into().unwrap());
                    assert_eq!(seen[n as usize].fetch_add(1, Ordering::Relaxed), 0, "doubled, seed {seed}");
                    got.fetch_add(1, Ordering::Relaxed);
                }
                assert!(
                    began.elapsed() < GIVE_UP,
                    "stuck at {got:?} of {total}, seed {seed} {pull:#?} {shared:#?}"
                );
            }
        }));
    }
    for t in threads {
        t.join().unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

fn seconds() -> u64 {
    std::env::var("SPANWIRE_STRESS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6)
}

#[test]
fn nothing_is_lost_or_doubled_whoever_waits_and_however() {
    let first = std::env::var("SPANWIRE_STRESS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1u64);
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < Duration::from_secs(seconds()) {
        round(first + rounds);
        rounds += 1;
    }
    eprintln!("{rounds} rounds from seed {first}");
    assert!(rounds > 0);
}

#[test]
fn requests_from_threads_and_tasks_each_get_their_own_reply() {
    let began = Instant::now();
    let mut seed = 1;
    while began.elapsed() < Duration::from_secs(seconds() / 2) {
        let spin = Duration::from_micros([0, 50][seed as usize / 2 % 2]);
        let rep = Rep::builder().spin(spin).build().unwrap();
        let at = rep.bind(if seed % 2 == 0 { "tcp://127.0.0.1:0" } else { "inproc://stress-rep" }).unwrap();
        let req = Req::builder().spin(spin).build().unwrap();
        req.connect(at.url()).unwrap();
        let servers: Vec<_> = (0..2)
            .map(|_| {
                let rep = rep.clone();
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    loop {
                        // Who holds requests does not wait: the other server may have taken what there was.
                        let more = if held.is_empty() { rep.recv() } else { rep.try_recv() };
                        match more {
                            Ok(request) => held.push(request), // answered out of order, in batches
                            Err(RecvError::Empty) => {}
                            Err(_) => return,
                        }
                        while held.len() > 3 || (!held.is_empty() && !rep.readiness().recv) {
                            let request = held.swap_remove(held.len() / 2);
                            let body = request.body().clone();
                            if request.reply(body).is_err() {
                                return;
                            }
                        }
                    }
                })
            })
            .collect();
        let askers: Vec<_> = (0..4u64)
            .map(|t| {
                let (req, rep) = (req.clone(), rep.clone());
                std::thread::spawn(move || {
                    let mut rng = Rng(seed * 100 + t);
                    let stuck = |e: String| -> Message { panic!("{e}, seed {seed} {req:#?} {rep:#?}") };
                    for i in 0..400u64 {
                        let body = [t.to_be_bytes(), i.to_be_bytes()].concat();
                        let reply = match rng.below(4) {
                            0 => req
                                .request_timeout(body.clone(), GIVE_UP)
                                .unwrap_or_else(|e| stuck(e.to_string())),
                            1 => block_on(req.request_async(body.clone())).unwrap(),
                            2 => {
                                let other = req.start(vec![0xff; 16]).unwrap();
                                let mine = req.start(body.clone()).unwrap();
                                drop(other); // forgotten: its reply is late
                                mine.wait_timeout(GIVE_UP).unwrap_or_else(|e| stuck(e.to_string()))
                            }
                            _ => {
                                let mut mine = req.start(body.clone()).unwrap();
                                match poll_some(&mut mine, rng.below(3)) {
                                    Some(reply) => reply.unwrap(),
                                    None => {
                                        mine.wait_timeout(GIVE_UP).unwrap_or_else(|e| stuck(e.to_string()))
                                    }
                                }
                            }
                        };
                        assert_eq!(reply, &body[..], "seed {seed}");
                    }
                })
            })
            .collect();
        for asker in askers {
            asker.join().unwrap();
        }
        rep.close(Duration::from_secs(1)).unwrap();
        for server in servers {
            server.join().unwrap();
        }
        seed += 1;
    }
}
