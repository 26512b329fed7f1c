//! Notices: none is lost, whoever sleeps, watches or hands over.

use loom::thread;

use super::{EVER, alone, driven, go, join, listed, noted, with_driver};
use crate::core::Patience::{Endless, Short};
use crate::poller::{Interest, Poller};

#[test]
fn a_notice_wakes_a_sleeping_leader() {
    alone(3, noted, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        s.notify(&s.notifier());
        join([a]);
    });
}

#[test]
fn a_notice_wakes_the_driver_that_watches() {
    driven(3, noted, |s| {
        let a = go(s, |s| assert!(s.recv_task(EVER)));
        s.notify(&s.notifier());
        join([a]);
    });
}

#[test]
fn a_notice_given_while_nobody_leads_is_not_lost_when_the_socket_is_watched() {
    alone(3, noted, |s| {
        listed(s);
        let b = go(s, |s| s.notify(&s.notifier()));
        with_driver(s, || {
            let a = go(s, |s| assert!(s.recv_task(EVER)));
            join([a, b]);
        });
    });
}

/// `arm` itself finds the notice: then there is no nudge, and the driver must be told.
#[test]
fn a_notice_that_lies_there_when_the_socket_is_armed_is_served() {
    alone(3, noted, |s| {
        s.notify(&s.notifier());
        with_driver(s, || {
            let a = go(s, |s| assert!(s.recv_task(EVER)));
            join([a]);
        });
    });
}

#[test]
fn a_notice_reaches_a_socket_that_is_only_listed_in_the_end() {
    driven(3, noted, |s| {
        let a = go(s, |s| {
            s.recv(Short);
        });
        s.notify(&s.notifier());
        join([a]);
        s.notify(&s.notifier());
        s.until(|st| st.queue > 0);
    });
}

#[test]
fn a_notice_wakes_a_poller_that_leads() {
    alone(3, noted, |s| {
        let a = go(s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.notify(&s.notifier());
        join([a]);
    });
}

#[test]
fn a_notice_is_not_lost_while_a_thread_hands_over_to_a_task() {
    driven(2, noted, |s| {
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv_task(EVER));
        });
        let n = s.notifier();
        s.notify(&n);
        s.notify(&n);
        join([a]);
    });
}

/// The second notice may find the first one pending: what it stands for must then be seen with the first.
#[test]
fn a_notice_absorbed_by_a_pending_one_is_served_with_it() {
    alone(3, noted, |s| {
        let n = s.notifier();
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv(Endless));
        });
        let b = thread::spawn({
            let (s, n) = (s.clone(), n.clone());
            move || s.notify(&n)
        });
        s.notify(&n);
        join([a, b]);
    });
}
