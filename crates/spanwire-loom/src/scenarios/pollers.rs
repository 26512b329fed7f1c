//! The `Poller`: as a leader and as a follower, beside all others.

use super::{alone, driven, go, join, lead, leave, plain, turn};
use crate::core::Patience::{Endless, Short};
use crate::lead::Want;
use crate::poller::{Interest, Poller};

#[test]
fn a_poller_that_leads_is_told_of_a_message() {
    alone(3, plain, |s| {
        let a = go(s, |s| {
            assert!(Poller::new(s, Interest::RECV).wait(Endless));
            assert!(s.try_recv());
        });
        s.kernel.arrive(1);
        join([a]);
    });
}

#[test]
fn a_poller_and_a_thread_get_one_message_each() {
    driven(2, plain, |s| {
        let a = go(s, |s| {
            let mut poller = Poller::new(s, Interest::RECV);
            while !s.try_recv() {
                assert!(poller.wait(Endless));
            }
        });
        let b = go(s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        s.kernel.arrive(1);
        join([a, b]);
    });
}

/// Behind a leader that gives up, with no driver to help.
#[test]
fn a_poller_takes_over_from_a_leader_that_gives_up() {
    alone(3, plain, |s| {
        let d = lead(s, Want::Recv);
        let a = go(s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.kernel.arrive(1);
        leave(s, d);
        join([a]);
    });
}

#[test]
fn a_thread_is_promoted_after_a_poller_that_was_told_has_left() {
    alone(3, plain, |s| {
        let mut d = lead(s, Want::Recv);
        let a = go(s, |s| {
            assert!(Poller::new(s, Interest::RECV).wait(Endless));
            assert!(s.recv(Endless));
        });
        s.kernel.arrive(1);
        turn(s, &mut d);
        join([a]);
        let b = go(s, |s| assert!(s.recv(Endless)));
        leave(s, d);
        s.kernel.arrive(1);
        join([b]);
    });
}

#[test]
fn a_poller_that_gives_up_passes_on_the_lead() {
    driven(2, plain, |s| {
        let a = go(s, |s| {
            Poller::new(s, Interest::RECV).wait(Short);
        });
        let b = go(s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn a_poller_for_both_directions_is_told_of_room() {
    driven(2, plain, |s| {
        s.send(false);
        s.send(false);
        let a = go(s, |s| assert!(Poller::new(s, Interest::BOTH).wait(Endless)));
        let b = go(s, |s| {
            s.recv(Short);
        });
        s.kernel.peer_reads();
        join([a, b]);
    });
}

#[test]
fn close_wakes_a_poller_that_leads_and_a_thread_behind_it() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        let b = go(s, |s| assert!(!s.recv(Endless)));
        s.close(Endless);
        join([a, b]);
    });
}

#[test]
fn an_endpoint_is_taken_in_by_a_poller_that_leads() {
    driven(3, plain, |s| {
        let a = go(s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.add_endpoint();
        s.until(|st| st.taken == 1);
        s.kernel.arrive(1);
        join([a]);
    });
}

#[test]
fn a_timer_set_by_another_thread_is_served_by_a_poller_that_leads() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.set_timer(5, 1);
        s.kernel.advance(5);
        s.until(|st| st.open.contains(&1));
        s.kernel.arrive(1);
        join([a]);
    });
}
