//! Closing wakes everybody, and waits until all has left.

use super::{EVER, alone, driven, go, join, plain};
use crate::core::Patience::Endless;

#[test]
fn close_wakes_a_lone_leader() {
    alone(3, plain, |s| {
        let a = go(s, |s| assert!(!s.recv(Endless)));
        s.close(Endless);
        join([a]);
    });
}

#[test]
fn close_wakes_a_lone_leader_that_waits_for_a_key() {
    alone(3, plain, |s| {
        let a = go(s, |s| assert!(!s.wait_key(1, Endless)));
        s.close(Endless);
        join([a]);
    });
}

#[test]
fn close_wakes_leader_follower_and_key_waiter() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(!s.recv(Endless)));
        let b = go(s, |s| assert!(!s.recv(Endless)));
        let c = go(s, |s| assert!(!s.wait_key(1, Endless)));
        s.close(Endless);
        join([a, b, c]);
    });
}

#[test]
fn close_wakes_tasks_for_messages_and_for_keys() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(!s.recv_task(EVER)));
        let b = go(s, |s| assert!(!s.key_task(1, EVER)));
        s.close(Endless);
        join([a, b]);
    });
}

#[test]
fn close_wakes_a_blocked_sender_and_waits_until_all_has_left() {
    driven(2, plain, |s| {
        s.send(false);
        s.send(false);
        let a = go(s, |s| s.send(false));
        let b = go(s, |s| {
            s.close(Endless);
            assert!(s.lock().sent_all());
        });
        (0..2).for_each(|_| s.kernel.peer_reads());
        join([b, a]);
    });
}

#[test]
fn two_may_close_at_once() {
    driven(2, plain, |s| {
        s.send(false);
        s.send(false);
        let a = go(s, |s| s.close(Endless));
        let b = go(s, |s| s.close(Endless));
        (0..2).for_each(|_| s.kernel.peer_reads());
        join([a, b]);
    });
}
