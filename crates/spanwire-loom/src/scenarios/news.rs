//! News that no descriptor announces: an endpoint, a blocked pipe, a stalled one with room again.

use super::{alone, deep, driven, go, join, listed, narrow, plain, watched, with_driver};
use crate::core::Patience::{Endless, Short};
use crate::core::Socket;

#[test]
fn an_endpoint_is_taken_in_by_a_sleeping_leader() {
    driven(3, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        s.add_endpoint();
        s.until(|st| st.taken == 1);
        s.kernel.arrive(1);
        join([a]);
    });
}

/// The leader wants a key and hears of nothing else.
#[test]
fn an_endpoint_is_taken_in_by_a_leader_that_waits_for_a_key() {
    driven(3, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.add_endpoint();
        s.until(|st| st.taken == 1);
        s.open_key(1);
        join([a]);
    });
}

#[test]
fn an_endpoint_is_taken_in_while_a_sender_leads() {
    driven(2, plain, |s| {
        let a = go(s, |s| (0..3).for_each(|_| s.send(false)));
        s.add_endpoint();
        s.until(|st| st.taken == 1);
        (0..3).for_each(|_| s.kernel.peer_reads());
        join([a]);
    });
}

#[test]
fn an_endpoint_is_taken_in_by_the_driver_that_watches() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.add_endpoint();
            s.until(|st| st.taken == 1);
        });
    });
}

#[test]
fn an_endpoint_of_a_socket_that_is_only_listed_is_taken_in_at_once() {
    alone(3, plain, |s| {
        listed(s);
        s.add_endpoint();
        assert!(s.lock().lead.watched(), "not at the driver's next look");
        with_driver(s, || s.until(|st| st.taken == 1));
    });
}

#[test]
fn two_endpoints_are_both_taken_in_while_callers_come_and_go() {
    driven(2, plain, |s| {
        let a = go(s, |s| {
            s.recv(Short);
        });
        s.add_endpoint();
        let b = go(s, Socket::add_endpoint);
        join([a, b]);
        s.until(|st| st.taken == 2);
    });
}

#[test]
fn a_blocked_pipe_of_a_socket_that_is_only_listed_is_watched_at_once() {
    alone(3, deep, |s| {
        listed(s);
        s.send(false);
        s.send(false);
        assert!(s.lock().lead.watched(), "not at the driver's next look");
        with_driver(s, || (0..2).for_each(|_| s.kernel.peer_reads()));
    });
}

#[test]
fn a_stalled_pipe_goes_on_though_the_leader_waits_for_a_key() {
    alone(2, narrow, |s| {
        s.lock().route = vec![];
        with_driver(s, || {
            let a = go(s, |s| assert!(s.wait_key(1, Endless)));
            s.kernel.arrive(2);
            s.until(|st| st.queue == 1);
            s.lock().route = vec![1];
            let mut st = s.lock();
            // A call that does not wait takes the one message: room again.
            assert_eq!(s.take(&mut st), Some(()));
            s.finish(st);
            join([a]);
        });
    });
}

#[test]
fn a_stalled_pipe_goes_on_for_a_watched_socket_that_nobody_waits_on() {
    alone(3, narrow, |s| {
        watched(s);
        with_driver(s, || {
            s.kernel.arrive(2);
            s.until(|st| st.queue == 1);
            assert!(s.try_recv());
            s.until(|st| st.queue == 1);
        });
    });
}
