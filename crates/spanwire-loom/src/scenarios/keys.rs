//! Keys: whoever waits for one is told, by a caller, the leader, a follower or the driver.

use super::{EVER, alone, driven, go, join, lead, leave, plain, turn, turn_and_leave, watched, with_driver};
use crate::core::Patience::{Endless, Short};
use crate::lead::Want;

#[test]
fn a_key_fired_by_another_thread_reaches_who_waits_for_it() {
    driven(3, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.open_key(1);
        join([a]);
    });
}

#[test]
fn a_key_fired_while_its_waiter_leads_asleep_interrupts_it() {
    alone(3, plain, |s| {
        // No driver: nobody else could help.
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.open_key(1);
        join([a]);
    });
}

#[test]
fn a_key_fired_by_the_leaders_own_delivery_is_seen_by_it() {
    alone(3, plain, |s| {
        s.lock().route = vec![1];
        with_driver(s, || {
            let a = go(s, |s| assert!(s.wait_key(1, Endless)));
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_key_fired_by_the_leaders_delivery_reaches_a_follower() {
    alone(2, plain, |s| {
        s.lock().route = vec![2, 1];
        with_driver(s, || {
            let a = go(s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(s, |s| assert!(s.wait_key(2, Endless)));
            s.kernel.arrive(2);
            join([a, b]);
        });
    });
}

#[test]
fn a_key_fired_by_the_driver_reaches_thread_and_task() {
    alone(2, plain, |s| {
        s.lock().route = vec![1];
        watched(s);
        with_driver(s, || {
            let a = go(s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(s, |s| assert!(s.key_task(1, EVER)));
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

/// No thread leads: the driver holds the loop when the waiter comes, and is held up until it has parked.
#[test]
fn a_key_fired_by_the_driver_reaches_a_thread_parked_behind_it() {
    alone(3, plain, |s| {
        watched(s);
        let d = s.lock().lead.take_as_driver().expect("watched");
        s.lock().route = vec![1];
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        s.kernel.arrive(1);
        turn_and_leave(s, d);
        join([a]);
    });
}

#[test]
fn a_key_fired_by_a_receiver_reaches_the_leader() {
    alone(2, plain, |s| {
        s.lock().on_recv = Some(1);
        with_driver(s, || {
            let a = go(s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(s, |s| assert!(s.recv(Endless)));
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn two_waiters_for_two_keys_are_told_of_their_own() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(s, |s| assert!(s.wait_key(2, Endless)));
        s.open_key(2);
        b.join().unwrap();
        s.open_key(1);
        a.join().unwrap();
    });
}

#[test]
fn all_who_wait_for_a_key_are_told() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(s, |s| assert!(s.wait_key(1, Endless)));
        let c = go(s, |s| assert!(s.key_task(1, EVER)));
        s.open_key(1);
        join([a, b, c]);
    });
}

/// A follower for a key takes over the lead from a receiver, and serves the receiver behind it.
#[test]
fn a_key_waiter_is_promoted_to_lead() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| {
            s.lock().on_recv = Some(2);
            assert!(s.wait_key(2, Endless));
            assert!(s.wait_key(1, Endless));
        });
        s.kernel.arrive(1);
        a.join().unwrap();
        s.lock().on_recv = None;
        s.open_key(2);
        s.lock().route = vec![1];
        s.kernel.arrive(1);
        b.join().unwrap();
    });
}

/// Without a driver: the one who is left must have been told to lead.
#[test]
fn a_key_waiter_takes_over_from_a_receiver_that_is_served() {
    alone(3, plain, |s| {
        s.lock().route = vec![1];
        let mut st = s.lock();
        st.queue = 0;
        let mut d = st.lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        drop(st);
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        let mut st = s.lock();
        s.refresh(&mut st, &mut d);
        s.give(&mut st, d);
        s.finish(st);
        s.kernel.arrive(1);
        join([a]);
    });
}

/// Whoever was told and is back must not count as on its way for ever, nor less than nobody.
#[test]
fn a_receiver_is_promoted_after_a_key_waiter_before_it_was_told_and_left() {
    alone(3, plain, |s| {
        let d = lead(s, Want::Recv);
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(s, |s| assert!(s.recv(Endless)));
        s.open_key(1);
        join([a]);
        leave(s, d);
        s.kernel.arrive(1);
        join([b]);
    });
}

#[test]
fn a_key_waiter_that_times_out_after_it_was_told_passes_on_the_lead() {
    driven(2, plain, |s| {
        let a = go(s, |s| {
            s.wait_key(1, Short);
        });
        let b = go(s, |s| assert!(s.recv(Endless)));
        s.open_key(1);
        s.kernel.arrive(1);
        join([a, b]);
    });
}

/// The leader leaves and promotes the key waiter, whose deadline passes at that moment.
#[test]
fn a_key_waiter_that_times_out_when_promoted_passes_on_the_lead() {
    alone(2, plain, |s| {
        let d = lead(s, Want::Recv);
        let a = go(s, |s| assert!(!s.wait_key(1, Short)));
        let b = go(s, |s| assert!(s.wait_key(2, Endless)));
        leave(s, d);
        s.open_key(2);
        join([a, b]);
    });
}

#[test]
fn a_task_that_waits_for_a_key_is_driven_in_the_background() {
    alone(3, plain, |s| {
        s.lock().route = vec![1];
        with_driver(s, || {
            let a = go(s, |s| assert!(s.key_task(1, EVER)));
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_task_that_waits_for_a_key_is_driven_after_a_caller_left() {
    alone(2, plain, |s| {
        s.lock().route = vec![1];
        with_driver(s, || {
            let a = go(s, |s| assert!(s.key_task(1, EVER)));
            let b = go(s, |s| {
                s.recv(Short);
            });
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_dropped_task_leaves_no_place_behind_for_its_key() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            s.key_task(1, 1);
        });
        let b = go(s, |s| assert!(s.key_task(1, EVER)));
        s.open_key(1);
        join([a, b]);
    });
}

/// While it was on its way nobody else was told of the message that came.
#[test]
fn a_key_waiter_told_for_nothing_passes_on_before_it_parks_again() {
    alone(3, plain, |s| {
        let mut d = lead(s, Want::Send);
        let a = go(s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(s, |s| assert!(s.recv(Endless)));
        let mut st = s.lock();
        st.lead.fire(1); // and nothing has changed for who waits
        s.finish(st);
        s.kernel.arrive(1);
        turn(s, &mut d);
        join([b]);
        s.open_key(1);
        join([a]);
    });
}

/// A place left behind would have the socket watched for nobody, and every `leave` compute for nothing.
#[test]
fn who_has_given_up_is_not_counted_as_waiting() {
    alone(3, plain, |s| {
        let d = lead(s, Want::Recv);
        assert!(!s.recv(Short));
        assert!(!s.wait_key(1, Short));
        assert!(!s.recv_task(1));
        assert!(!s.key_task(1, 1));
        leave(s, d);
        let st = s.lock();
        assert!(st.lead.listed && !st.lead.watched(), "nobody waits");
    });
}
