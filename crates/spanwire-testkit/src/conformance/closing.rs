//! Checks: a close keeps its word.

use std::time::{Duration, Instant};

use spanwire::{Event, Limit, Pull, Push, RecvError, SendError};

use super::limits::QUIET;
use super::tasks::run_all;
use super::watch::{Watch, check, numbered};
use super::{SOON, Setup};

/// `close` waits for what is queued, whichever end it is, and says that nothing was left.
pub fn a_close_lets_what_is_queued_leave(setup: &Setup) {
    const ALL: u32 = 300;
    for dials in [true, false] {
        let pull = setup.on(Pull::builder()).build().expect("a socket");
        let push = setup.on(Push::builder()).build().expect("a socket");
        if dials {
            let at = setup.bind(&pull);
            setup.connect(&push, at.url());
        } else {
            let at = setup.bind(&push);
            setup.connect(&pull, at.url());
        }
        for n in 0..ALL {
            push.send_timeout(numbered(n, 1000), SOON).expect("there is room");
        }
        assert_eq!(push.close(SOON).expect("it closes"), 0, "undelivered");
        assert!(push.send("more").is_err_and(|e| e.is_closed()));
        for n in 0..ALL {
            let msg = pull.recv_timeout(SOON);
            check(&msg.unwrap_or_else(|e| panic!("message {n}, sender dials: {dials}: {e}")), n, 1000);
        }
    }
}

/// A receiver that takes nothing: `close` returns at its deadline with the number of messages that did not leave; the
/// others arrive.
pub fn a_close_that_is_too_short_tells_how_much_was_left(setup: &Setup) {
    const SIZE: usize = 1000;
    /// A transport that takes byte by byte, on a machine with much else to do, may stand still for a while: it is full if
    /// it still does after that.
    const STILL: u32 = 5;
    let little = Limit::messages(16);
    let pull = setup.on(Pull::builder()).recv_queue(little).build().expect("a socket");
    let mut watch = Watch::new(&pull);
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).send_queue(little).build().expect("a socket");
    setup.connect(&push, at.url());
    let (mut sent, mut still) = (0, 0);
    while still < STILL {
        match push.send_timeout(numbered(sent, SIZE), if sent == 0 { SOON } else { QUIET }) {
            Ok(()) => (sent, still) = (sent + 1, 0),
            Err(SendError::TimedOut(_)) => still += 1,
            Err(e) => panic!("message {sent}: {e}"),
        }
    }
    let left = push.close(Duration::from_millis(20)).expect("it closes");
    assert!(left > 0 && left <= 16, "{left} messages were left of a queue of 16");
    assert_eq!(push.close(Duration::ZERO).expect("closed"), 0, "it is told once");
    let mut received = 0;
    // From message to message: all of them at once may take a slow transport longer.
    let mut deadline = Instant::now() + SOON;
    loop {
        // Looked at before the queue: when the end has been seen, all that will ever come is there.
        let ended = watch.all().iter().any(|event| matches!(event, Event::Disconnected { .. }));
        match pull.recv_timeout(if ended { Duration::ZERO } else { Duration::from_millis(20) }) {
            Ok(msg) => {
                check(&msg, received, SIZE);
                received += 1;
                deadline = Instant::now() + SOON;
            }
            Err(RecvError::TimedOut) if ended => break,
            Err(RecvError::TimedOut) => {
                assert!(Instant::now() < deadline, "no end after {received} messages")
            }
            Err(e) => panic!("message {received}: {e}"),
        }
    }
    let told = sent as usize - left;
    if setup.keeps_transit {
        assert_eq!(received as usize, told, "of {sent} messages {left} were told to be left");
    } else {
        assert!(
            received as usize <= told,
            "of {sent} messages {left} were told to be left, {received} arrived"
        );
    }
}

/// Threads and tasks that wait in any call get `Closed`, also those on a clone.
pub fn a_close_wakes_whoever_waits(setup: &Setup) {
    let pull = setup.on(Pull::builder()).build().expect("a socket");
    let at = setup.bind(&pull);
    let peer = setup.on(Push::builder()).build().expect("a socket");
    setup.connect(&peer, at.url());
    let lonely = setup.on(Push::builder()).build().expect("a socket");
    assert!(peer.wait_for_peers(1, SOON));
    std::thread::scope(|scope| {
        let (sender, ready) = crossbeam_channel::bounded(4);
        let here = sender.clone();
        scope.spawn(|| {
            let here = here;
            here.send(()).expect("the test listens");
            assert_eq!(pull.recv().expect_err("nobody sends"), RecvError::Closed);
        });
        let here = sender.clone();
        scope.spawn(|| {
            let here = here;
            here.send(()).expect("the test listens");
            assert_eq!(pull.recv_timeout(SOON).expect_err("nobody sends"), RecvError::Closed);
        });
        let here = sender.clone();
        scope.spawn(|| {
            let here = here;
            here.send(()).expect("the test listens");
            let waiting = async { assert_eq!(pull.recv_async().await.err(), Some(RecvError::Closed)) };
            run_all([Box::pin(waiting)], SOON);
        });
        scope.spawn(|| {
            let here = sender;
            here.send(()).expect("the test listens");
            assert!(lonely.send("to nobody").is_err_and(|e| e.is_closed()));
        });
        for _ in 0..4 {
            ready.recv_timeout(SOON).expect("four wait");
        }
        // Whether they wait already or only begin to makes no difference to what they get.
        pull.clone().close(SOON).expect("it closes");
        lonely.clone().close(SOON).expect("it closes");
    });
}
