//! Times: a timer, an alarm or a deadline is known to whoever sleeps next.

use super::{EVER, alone, driven, go, join, plain, watched, with_driver};
use crate::core::Patience::{Endless, Short};

#[test]
fn a_timer_set_by_another_thread_interrupts_a_leader_that_sleeps_without_limit() {
    alone(3, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.set_timer(5, 1);
        s.kernel.advance(5);
        // Without a driver, somebody must lead: the caller that waits does.
        join([a]);
    });
}

#[test]
fn a_timer_due_earlier_than_the_leader_sleeps_interrupts_it() {
    alone(3, plain, |s| {
        s.set_timer(9, 2);
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.set_timer(5, 1);
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn a_timer_set_on_a_watched_socket_is_known_to_the_driver() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.set_timer(5, 1);
            s.kernel.advance(5);
            let a = go(s, |s| assert!(s.key_task(1, EVER)));
            join([a]);
        });
    });
}

#[test]
fn a_timer_set_on_a_watched_socket_that_nobody_waits_on_fires() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.set_timer(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
        });
    });
}

#[test]
fn a_timer_set_before_a_task_waits_is_known_to_the_driver() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            s.recv(Short);
            s.set_timer(5, 1);
            assert!(s.key_task(1, EVER));
        });
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn a_timer_set_between_two_calls_fires_though_nobody_comes_back() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            s.recv(Short);
            s.set_timer(5, 1);
            s.recv(Short);
        });
        s.kernel.advance(5);
        join([a]);
        s.until(|st| st.open.contains(&1));
    });
}

#[test]
fn a_timer_set_lazily_by_another_thread_interrupts_a_leader_that_sleeps() {
    alone(3, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.set_timer_lazily(5, 1);
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn a_timer_set_lazily_on_a_watched_socket_fires() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.set_timer_lazily(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
        });
    });
}

#[test]
fn a_timer_set_lazily_between_two_calls_fires_though_nobody_comes_back() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            s.recv(Short);
            s.set_timer_lazily(5, 1);
        });
        s.kernel.advance(5);
        join([a]);
        s.until(|st| st.open.contains(&1));
    });
}

#[test]
fn a_deadline_of_the_loop_passes_with_it_to_the_driver() {
    driven(3, plain, |s| {
        s.with_handshake(5);
        let a = go(s, |s| assert!(s.recv_task(EVER)));
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn an_alarm_of_the_engine_interrupts_a_leader_that_sleeps_without_limit() {
    alone(3, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.set_alarm(5, 1);
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn an_alarm_of_the_engine_on_a_watched_socket_is_known_to_the_driver() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.set_alarm(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
        });
    });
}
