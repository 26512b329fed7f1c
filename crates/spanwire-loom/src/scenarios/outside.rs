//! A runtime that watches the socket in the driver's place, beside everybody else, and its end.

use std::sync::Arc;

use super::{EVER, alone, driven, go, join, noted, plain, roomy, watched};
use crate::core::Patience::{Endless, Short};
use crate::core::Socket;

/// Runs `f` while the runtime watches; then that ends.
fn outside(s: &Arc<Socket>, f: impl FnOnce()) {
    s.go_outside();
    let runtime = go(s, Socket::runtime);
    f();
    s.kernel.tell_outer();
    join([runtime]);
}

#[test]
fn a_runtime_reads_for_a_task() {
    driven(2, plain, |s| {
        outside(s, || {
            let a = go(s, |s| {
                assert!(s.recv_task(EVER));
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_thread_and_a_task_share_what_a_runtime_watches() {
    driven(2, plain, |s| {
        outside(s, || {
            let a = go(s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

/// The edge goes to the runtime, which finds a thread in the lead; that gives up, and only a task is left.
#[test]
fn what_a_thread_that_gives_up_did_not_see_is_read_for_a_task() {
    driven(2, plain, |s| {
        outside(s, || {
            let a = go(s, |s| {
                if s.recv(Short) {
                    s.kernel.arrive(1);
                }
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

/// News go to the driver, and an edge meanwhile to the runtime: each finds the other driving.
#[test]
fn the_driver_and_a_runtime_drive_one_after_the_other() {
    driven(2, plain, |s| {
        watched(s);
        outside(s, || {
            let a = go(s, |s| assert!(s.recv_task(EVER)));
            s.add_endpoint();
            s.kernel.arrive(1);
            join([a]);
            s.until(|st| st.taken == 1);
        });
    });
}

/// It drove, or the driver did, when the thread came: that one is not left behind a runtime that does not run.
#[test]
fn a_thread_does_not_wait_for_a_runtime_that_stands_still() {
    driven(2, plain, |s| {
        watched(s);
        s.go_outside();
        let a = go(s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        join([a]);
    });
}

#[test]
fn a_look_without_waiting_reads_where_a_runtime_stands_still() {
    alone(2, plain, |s| {
        watched(s);
        s.go_outside();
        s.kernel.arrive(1);
        assert!(s.try_recv());
    });
}

#[test]
fn a_runtime_that_ends_leaves_its_task_to_the_driver() {
    driven(2, plain, |s| {
        s.go_outside();
        let runtime = go(s, Socket::runtime);
        let a = go(s, |s| assert!(s.recv_task(EVER)));
        s.kernel.tell_outer();
        s.kernel.arrive(1);
        join([a, runtime]);
    });
}

/// The socket closes while the runtime's task drives: the driver's event finds the loop away.
#[test]
fn a_socket_that_comes_back_while_the_runtime_drives_is_driven() {
    driven(2, plain, |s| {
        watched(s);
        outside(s, || {
            let a = go(s, |s| assert!(s.recv_task(EVER)));
            s.kernel.arrive(1);
            s.come_back();
            join([a]);
        });
    });
}

#[test]
fn the_driver_has_the_clock_of_a_socket_that_a_runtime_drives() {
    driven(2, plain, |s| {
        watched(s);
        outside(s, || {
            let a = go(s, |s| assert!(s.key_task(1, EVER)));
            s.set_timer(1, 1);
            s.kernel.arrive(1);
            s.kernel.advance(1);
            join([a]);
        });
    });
}

#[test]
fn a_deadline_that_comes_up_while_a_runtime_drives_is_known_to_the_driver() {
    driven(2, plain, |s| {
        s.with_caller(1);
        outside(s, || {
            let a = go(s, |s| {
                assert!(s.recv_task(EVER));
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(1);
            s.kernel.advance(1);
            join([a]);
        });
    });
}

/// The first deadline finds the driver out of turn, as the runtime drives; the second is not to be forgotten for it.
#[test]
fn the_driver_hears_of_the_deadline_after_one_that_found_a_runtime_driving() {
    driven(2, plain, |s| {
        watched(s);
        s.set_timer(1, 1);
        s.set_alarm(2, 2);
        outside(s, || {
            s.kernel.arrive(1);
            s.kernel.advance(1);
            s.until(|st| st.open.contains(&1));
            s.kernel.advance(2);
            s.until(|st| st.open.contains(&2));
        });
    });
}

/// The edge is spent, and more is there than was read.
#[test]
fn what_a_runtime_left_when_it_ended_is_read_by_the_driver() {
    driven(2, roomy, |s| {
        watched(s);
        s.kernel.arrive(6);
        s.go_outside();
        let runtime = go(s, Socket::runtime);
        s.kernel.tell_outer();
        join([runtime]);
        s.until(|st| st.queue == 6);
    });
}

#[test]
fn a_notice_wakes_a_runtime() {
    driven(2, noted, |s| {
        outside(s, || {
            let notifier = s.notifier();
            let a = go(s, |s| assert!(s.recv_task(EVER)));
            s.notify(&notifier);
            join([a]);
        });
    });
}
