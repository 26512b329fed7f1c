//! Redial backs off for every kind of failure, never spins, and comes back.
//!
//! The promise names a minute without the server: with the default delays (100 ms to 5 s) some twenty attempts of each
//! client. Here the delays are 20 to 400 ms, and as many attempts are over in a few seconds.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use spanwire::{EndpointOptions, Event, Pull, Push, Reason};

use crate::common::*;

const CLIENTS: usize = 1000;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// As many attempts as one dialer can make in this time, if it always waits the least it may.
fn most_attempts(min: Duration, max: Duration, time: Duration) -> usize {
    let (mut attempts, mut at, mut ceiling) = (1, Duration::ZERO, min);
    loop {
        at += ceiling / 2;
        if at > time {
            return attempts;
        }
        attempts += 1;
        ceiling = (ceiling * 2).min(max);
    }
}

/// Slams the door in the face of whoever comes.
struct Slam {
    at: SocketAddr,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Slam {
    fn new(listener: TcpListener) -> Slam {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let at = listener.local_addr().unwrap();
        let (told, counter) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                drop(listener.accept().unwrap());
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Slam { at, stop, count, thread }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.at)); // for the `accept` in which it is
        self.thread.join().unwrap();
    }
}

#[test]
fn promise_14_a_herd_stays_under_the_curve_while_the_server_is_down_and_all_come_back() {
    if !alone(
        "p14_redial::promise_14_a_herd_stays_under_the_curve_while_the_server_is_down_and_all_come_back",
    ) {
        return;
    }
    assert!(descriptors() > 6 * CLIENTS, "too few descriptors to say anything");
    let (min, max) = (ms(20), ms(400));
    let pull = Pull::new().unwrap();
    let url = pull.bind(&tcp()).unwrap().url().to_owned();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let push = Push::builder().reconnect(min, max).build().unwrap();
            push.connect(&url).unwrap();
            push
        })
        .collect();
    assert!(pull.wait_for_peers(CLIENTS, SOON));
    // Down: first nobody listens, then somebody does who slams the door.
    let before = Instant::now();
    pull.close(SOON).unwrap();
    let attempts = || clients.iter().map(|c| c.stats().connects as usize).sum::<usize>() - CLIENTS;
    until("each has failed again and again", || clients.iter().all(|c| c.stats().connects >= 10));
    let address = url.trim_start_matches("tcp://").to_owned();
    let slam = Slam::new(TcpListener::bind(&address).unwrap());
    until("the door was slammed as often", || slam.count() >= 10 * CLIENTS);
    let (made, time) = (attempts(), before.elapsed());
    let most = CLIENTS * most_attempts(min, max, time);
    assert!(made <= most, "{made} attempts in {time:?}, more than {most}");
    slam.end();
    let again = Pull::new().unwrap();
    until("the address is free", || again.bind(&url).is_ok());
    let back = Instant::now();
    assert!(again.wait_for_peers(CLIENTS, SOON));
    println!("{CLIENTS} clients were back after {:?}; the cap is {max:?}", back.elapsed());
    for client in &clients {
        client.send("back").unwrap();
    }
    for _ in 0..CLIENTS {
        assert_eq!(again.recv_timeout(SOON).unwrap(), "back");
    }
}

/// The next delay, or the end of the endpoint.
fn delay(events: &Receiver<Event>) -> Option<Duration> {
    event(events, |e| match e {
        Event::ConnectRetry { delay, .. } => Some(Some(delay)),
        Event::EndpointClosed { .. } => Some(None),
        _ => None,
    })
}

fn on_the_curve(what: &str, events: &Receiver<Event>, min: Duration, max: Duration) {
    for attempt in 0..7 {
        let delay = delay(events).unwrap();
        let ceiling = (min * (1 << attempt)).min(max);
        assert!((ceiling / 2..=ceiling).contains(&delay), "{what}: attempt {attempt} waits {delay:?}");
    }
}

#[test]
fn promise_14_every_kind_of_failure_counts_alike() {
    let (min, max) = (ms(4), ms(60));
    let dialer = || {
        let push = Push::builder().reconnect(min, max).handshake_timeout(ms(30)).build().unwrap();
        let events = push.events();
        (push, events)
    };
    // Nobody is there. (With inproc one waits for a listener: that is no failure.)
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    for url in [format!("tcp://{address}"), ipc()] {
        let (push, events) = dialer();
        push.connect(&url).unwrap();
        on_the_curve(&url, &events, min, max);
    }
    // Another protocol, told by either side first.
    for url in urls() {
        let other = Push::new().unwrap();
        let url = other.bind(&url).unwrap().url().to_owned();
        let (push, events) = dialer();
        push.connect(&url).unwrap();
        on_the_curve(&url, &events, min, max);
        assert_eq!(push.stats().attached, 0);
    }
    // Refused by the application.
    for url in urls() {
        let pull = Pull::builder().accept(|_| Err("no".into())).build().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        let (push, events) = dialer();
        push.connect(&url).unwrap();
        on_the_curve(&url, &events, min, max);
    }
    // Silent, and speaking nonsense.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (push, events) = dialer();
    push.connect(&format!("tcp://{}", silent.local_addr().unwrap())).unwrap();
    on_the_curve("silent", &events, min, max);
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = rude.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in rude.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let (push, events) = dialer();
    push.connect(&format!("tcp://{address}")).unwrap();
    on_the_curve("rude", &events, min, max);
    // A name that does not resolve.
    let (push, events) = dialer();
    push.connect("tcp://no-such-host.invalid:1").unwrap();
    for attempt in 0..2 {
        let delay = delay(&events).unwrap();
        assert!(delay <= min * (1 << attempt), "a name: {delay:?}");
    }
}

#[test]
fn promise_14_zero_is_valid_and_still_no_spin() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let slam = Slam::new(listener);
    let push = Push::builder().reconnect(ms(0), ms(0)).build().unwrap();
    let began = Instant::now();
    push.connect(&url).unwrap();
    until("it tries and tries", || slam.count() >= 20);
    let (made, time) = (push.stats().connects, began.elapsed());
    // The second in a row waits for a millisecond at least, and so do all that follow.
    assert!(u128::from(made) <= 3 + time.as_millis(), "{made} attempts in {time:?}");
    drop(push);
    slam.end();
}

#[test]
fn promise_14_never_is_valid_too() {
    for url in streams() {
        let pull = Pull::new().unwrap();
        let url = pull.bind(&url).unwrap().url().to_owned();
        // By the socket, and by the endpoint.
        let by_socket = Push::builder().no_reconnect().build().unwrap();
        let by_endpoint = Push::new().unwrap();
        let events = [by_socket.events(), by_endpoint.events()];
        by_socket.connect(&url).unwrap();
        by_endpoint.connect_with(&url, EndpointOptions::default().no_reconnect()).unwrap();
        assert!(pull.wait_for_peers(2, SOON));
        pull.close(SOON).unwrap();
        for events in &events {
            assert_eq!(delay(events), None, "{url}");
        }
        // And with a failure at the first attempt.
        by_socket.connect(&url).unwrap();
        assert_eq!(delay(&events[0]), None, "{url}");
        assert_eq!((by_socket.stats().connects, by_endpoint.stats().connects), (2, 1), "{url}");
        assert_eq!(by_socket.peers() + by_endpoint.peers(), 0);
    }
}

#[test]
fn promise_14_a_refused_client_does_not_keep_the_one_that_fits_waiting() {
    // A pair that has its peer refuses others, who stay on their curve until it is free.
    use spanwire::Pair;
    let server = Pair::new().unwrap();
    let events = server.events();
    let url = server.bind(&tcp()).unwrap().url().to_owned();
    let first = Pair::new().unwrap();
    first.connect(&url).unwrap();
    assert!(server.wait_for_peers(1, SOON));
    let second = Pair::builder().reconnect(ms(2), ms(20)).build().unwrap();
    second.connect(&url).unwrap();
    for _ in 0..5 {
        event(&events, |e| matches!(e, Event::Rejected { reason: Reason::Busy, .. }).then_some(()));
    }
    first.close(SOON).unwrap();
    // `second` may take itself for attached while it is refused: the server knows who has the place.
    event(&events, |e| matches!(e, Event::Disconnected { .. }).then_some(()));
    event(&events, |e| matches!(e, Event::Connected { .. }).then_some(()));
    server.send("welcome").unwrap();
    assert_eq!(second.recv_timeout(SOON).unwrap(), "welcome");
}
