//! Messages: each goes to one of those who wait, whoever they are and whoever leaves.

use super::{EVER, alone, driven, go, join, narrow, plain, turn_and_leave};
use crate::core::Patience::{Endless, Short};
use crate::core::{Parker, Who};
use crate::lead::Want;

#[test]
fn two_threads_get_one_message_each() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn a_thread_and_a_task_get_one_message_each() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| assert!(s.recv_task(EVER)));
        s.kernel.arrive(1);
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn two_tasks_share_what_comes_at_once() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv_task(EVER)));
        let b = go(s, |s| assert!(s.recv_task(EVER)));
        s.kernel.arrive(2);
        join([a, b]);
    });
}

#[test]
fn a_task_after_a_thread_is_driven_in_the_background() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv_task(EVER));
        });
        s.kernel.arrive(1);
        s.kernel.arrive(1);
        join([a]);
    });
}

#[test]
fn a_thread_that_gives_up_passes_on_the_lead() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| {
            if s.recv(Short) {
                s.kernel.arrive(1);
            }
        });
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn a_dropped_task_passes_on_its_wake() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| {
            if s.recv_task(1) {
                s.kernel.arrive(1);
            }
        });
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn a_socket_that_nobody_waits_on_is_read_in_the_end() {
    driven(3, plain, |s| {
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv(Endless));
        });
        s.kernel.arrive(1);
        s.kernel.arrive(1);
        join([a]);
        s.kernel.arrive(1);
        s.until(|st| st.queue == 1);
    });
}

#[test]
fn what_a_reader_left_unread_is_read_for_a_task() {
    driven(3, plain, |s| {
        s.kernel.arrive(3);
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv_task(EVER));
            assert!(s.recv_task(EVER));
        });
        join([a]);
    });
}

#[test]
fn a_stalled_pipe_goes_on_for_a_thread_and_a_task() {
    driven(2, narrow, |s| {
        let a = go(s, |s| {
            assert!(s.recv(Endless));
            assert!(s.recv_task(EVER));
            assert!(s.recv_task(EVER));
        });
        s.kernel.arrive(3);
        join([a]);
    });
}

#[test]
fn a_call_that_does_not_wait_takes_no_message_and_no_lead_from_those_who_do() {
    driven(2, plain, |s| {
        let a = go(s, |s| assert!(s.recv(Endless)));
        let b = go(s, |s| {
            if s.try_recv() {
                s.kernel.arrive(1);
            }
        });
        s.kernel.arrive(1);
        join([a, b]);
    });
}

/// A task that is told and dropped has a thread behind it, and only the driver leads.
#[test]
fn a_woken_task_that_is_dropped_passes_on_to_the_thread_behind_it() {
    alone(3, plain, |s| {
        let mut st = s.lock();
        let id = st.lead.park(Want::Recv, Who::Task(Parker::new()));
        s.finish(st);
        let d = s.lock().lead.take_as_driver().expect("watched");
        let a = go(s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        turn_and_leave(s, d);
        s.unpark(Want::Recv, Some(id));
        join([a]);
    });
}
