//! Checks: what is bounded stays bounded, and is told.

use std::time::{Duration, Instant};

use spanwire::{Event, Limit, Pull, Push, Reason, SendError};

use super::watch::{Watch, check, numbered};
use super::{SOON, Setup};

/// Besides its queue a stream's receiver holds at most one read (documented at `recv_queue`), in bytes.
const ONE_READ: usize = 256 << 10;
/// For so long nothing moves any more when a sender is stopped.
pub(super) const QUIET: Duration = Duration::from_millis(300);

/// With a receiver that does not receive, a sender gets `Full`, its message comes back, and what was taken is
/// within the limits of both queues and of the transport; then all of it arrives.
pub fn a_stopped_receiver_stops_its_sender_and_nothing_is_lost(setup: &Setup) {
    const SIZE: usize = 1000;
    const QUEUE: usize = 32;
    let pull = setup.on(Pull::builder()).recv_queue(Limit::messages(QUEUE)).build().expect("a socket");
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).send_queue(Limit::messages(QUEUE)).build().expect("a socket");
    setup.connect(&push, at.url());
    assert!(push.wait_for_peers(1, SOON));
    let bound = 2 * QUEUE + (ONE_READ + setup.in_transit) / SIZE + 2;
    let pending = || pull.stats().pipes.iter().map(|p| p.pending).sum::<usize>();
    let (mut sent, began) = (0, Instant::now());
    loop {
        match push.try_send(numbered(sent, SIZE)) {
            Ok(()) => sent += 1,
            Err(SendError::Full(msg)) => {
                check(&msg, sent, SIZE);
                let queued = push.stats().pipes.iter().map(|p| p.queued).sum::<usize>();
                assert!(queued <= QUEUE, "{queued} messages wait where {QUEUE} may");
                // What is on its way may still move on.
                match push.send_timeout(msg, QUIET) {
                    Ok(()) => sent += 1,
                    Err(SendError::TimedOut(_)) if pending() == QUEUE => break,
                    // Then whoever drives at the other end is held up by the machine.
                    Err(SendError::TimedOut(_)) => {
                        assert!(began.elapsed() < SOON, "{} of {QUEUE} messages arrived", pending());
                    }
                    Err(e) => panic!("message {sent}: {e}"),
                }
            }
            Err(e) => panic!("message {sent}: {e}"),
        }
        assert!(sent as usize <= bound, "{sent} messages were taken, {bound} are the most");
    }
    assert!(!push.readiness().send, "a socket that says Full is not ready");
    assert_eq!(pending(), QUEUE, "messages wait to be received");
    for n in 0..sent {
        check(&pull.recv_timeout(SOON).unwrap_or_else(|e| panic!("message {n} of {sent}: {e}")), n, SIZE);
    }
    push.send_timeout("goes on", SOON).expect("there is room again");
    assert_eq!(pull.recv_timeout(SOON).expect("a message"), "goes on");
    assert_eq!((push.stats().all_dropped(), pull.stats().all_dropped()), (0, 0));
}

/// A message at the limit arrives. One over it ends the connection with one event that has peer, size and limit; the
/// dialer waits before it comes back, and then all goes on.
pub fn a_message_over_the_limit_ends_its_connection_once_and_the_dialer_backs_off(setup: &Setup) {
    const LIMIT: usize = 1000;
    const MIN: Duration = Duration::from_millis(20);
    let pull = setup.on(Pull::builder()).recv_max_size(LIMIT).build().expect("a socket");
    let mut at_pull = Watch::new(&pull);
    let at = setup.bind(&pull);
    let push = setup.on(Push::builder()).reconnect(MIN, MIN).build().expect("a socket");
    let mut at_push = Watch::new(&push);
    setup.connect(&push, at.url());
    push.send_timeout(numbered(1, LIMIT), SOON).expect("the peer is there");
    check(&pull.recv_timeout(SOON).expect("a message at the limit"), 1, LIMIT);
    push.send_timeout(numbered(2, LIMIT + 1), SOON).expect("the sender does not know the limit");
    at_push.disconnected();
    let delay = at_push.until("the delay before the next attempt", |event| match event {
        Event::ConnectRetry { delay, .. } => Some(*delay),
        _ => None,
    });
    assert!(delay >= MIN / 2 && delay <= MIN, "the dialer comes back after {delay:?}");
    push.send_timeout(numbered(3, 3), SOON).expect("the peer is there again");
    check(&pull.recv_timeout(SOON).expect("a message"), 3, 3);
    let (mut attached, mut refused) = (Vec::new(), Vec::new());
    for event in at_pull.all() {
        match event {
            Event::Connected { pipe, facts, .. } => attached.push((*pipe, facts.remote.clone())),
            Event::Disconnected { pipe, remote, reason: Reason::TooBig { size, limit }, .. } => {
                refused.push(((*pipe, remote.clone()), *size, *limit));
            }
            Event::Listening { .. } => {}
            other => panic!("not expected: {other:?}"),
        }
    }
    assert_eq!(attached.len(), 2, "the first connection and the one after: {attached:?}");
    assert_eq!(refused, [(attached[0].clone(), LIMIT as u64 + 1, LIMIT)]);
}
