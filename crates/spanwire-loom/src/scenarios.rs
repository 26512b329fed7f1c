//! The scenarios. Each is a sentence about what must hold in every interleaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loom::thread::{self, JoinHandle};

use crate::core::Patience::{Endless, Short};
use crate::core::Socket;
use crate::lead::Want;
use crate::poller::{Interest, Poller};

const EVER: u32 = u32::MAX;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

/// Runs `f` through every interleaving with at most `preemptions` preemptions, for as long as there is time.
fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let time = Duration::from_secs(number("SECS").unwrap_or(4));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(number("PREEMPT").map_or(preemptions, |p| p as usize));
    builder.max_branches = 20_000;
    builder.checkpoint_interval = 500;
    builder.max_duration = Some(time);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let began = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let took = began.elapsed();
    let how = if took < time { "to the end" } else { "as far as time allowed" };
    println!("{} interleavings in {took:.1?}, {how}", runs.load(Ordering::Relaxed));
}

/// `f` beside the driver, which is stopped when `f` is over.
fn with_driver(s: &Arc<Socket>, f: impl FnOnce()) {
    let driver = go(s, Socket::driver);
    f();
    s.kernel.stop();
    driver.join().unwrap();
}

fn go(s: &Arc<Socket>, f: impl FnOnce(&Socket) + Send + 'static) -> JoinHandle<()> {
    let s = s.clone();
    thread::spawn(move || f(&s))
}

fn join<const N: usize>(all: [JoinHandle<()>; N]) {
    for one in all {
        one.join().unwrap();
    }
}

/// The driver has the socket: it watches it, as after an idle time.
fn watched(s: &Arc<Socket>) {
    let mut st = s.lock();
    assert_eq!(st.lead.look(&s.link), crate::lead::Look::Armed);
    s.finish(st);
}

/// A caller was here just now: the socket is only on the driver's list.
fn listed(s: &Arc<Socket>) {
    let mut st = s.lock();
    let d = st.lead.take(Want::Recv, &s.link).expect("nobody leads yet");
    s.give(&mut st, d);
    s.finish(st);
}

// ------------------------------------------------------------ messages

#[test]
fn two_threads_get_one_message_each() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| assert!(s.recv(Endless)));
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_thread_and_a_task_get_one_message_each() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| assert!(s.recv_task(EVER)));
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn two_tasks_share_what_comes_at_once() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv_task(EVER)));
            let b = go(&s, |s| assert!(s.recv_task(EVER)));
            s.kernel.arrive(2);
            join([a, b]);
        });
    });
}

#[test]
fn a_task_after_a_thread_is_driven_in_the_background() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_thread_that_gives_up_passes_on_the_lead() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| {
                if s.recv(Short) {
                    s.kernel.arrive(1);
                }
            });
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_dropped_task_passes_on_its_wake() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| {
                if s.recv_task(1) {
                    s.kernel.arrive(1);
                }
            });
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_socket_that_nobody_waits_on_is_read_in_the_end() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv(Endless));
            });
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a]);
            s.kernel.arrive(1);
            s.until(|st| st.queue == 1);
        });
    });
}

#[test]
fn what_a_reader_left_unread_is_read_for_a_task() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            s.kernel.arrive(3);
            let a = go(&s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv_task(EVER));
                assert!(s.recv_task(EVER));
            });
            join([a]);
        });
    });
}

#[test]
fn a_stalled_pipe_goes_on_for_a_thread_and_a_task() {
    model(2, || {
        let s = Socket::new(1);
        with_driver(&s, || {
            let a = go(&s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv_task(EVER));
                assert!(s.recv_task(EVER));
            });
            s.kernel.arrive(3);
            join([a]);
        });
    });
}

#[test]
fn a_call_that_does_not_wait_takes_no_message_and_no_lead_from_those_who_do() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| {
                if s.try_recv() {
                    s.kernel.arrive(1);
                }
            });
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

// ------------------------------------------------------------ sending

#[test]
fn a_stalled_pipe_goes_on_while_a_sender_leads() {
    model(2, || {
        let s = Socket::new(1);
        with_driver(&s, || {
            let a = go(&s, |s| (0..3).for_each(|_| s.send(false)));
            s.kernel.arrive(2);
            assert!(s.recv(Endless));
            assert!(s.recv(Endless));
            (0..3).for_each(|_| s.kernel.peer_reads());
            join([a]);
        });
    });
}

#[test]
fn bytes_left_by_a_sender_always_go_out() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| (0..2).for_each(|_| s.send(false)));
            (0..2).for_each(|_| s.kernel.peer_reads());
            join([a]);
        });
    });
}

#[test]
fn bytes_left_to_gather_go_out_while_a_receiver_leads() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| (0..2).for_each(|_| s.send(true)));
            let b = go(&s, |s| assert!(s.recv(Endless)));
            (0..2).for_each(|_| s.kernel.peer_reads());
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn bytes_left_to_gather_go_out_though_nobody_waits() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        with_driver(&s, || {
            s.send(true);
            s.kernel.peer_reads();
        });
    });
}

#[test]
fn bytes_appended_during_a_write_go_out() {
    model(2, || {
        let s = Socket::with(4, 2, false);
        with_driver(&s, || {
            let a = go(&s, |s| s.send(false));
            let b = go(&s, |s| (0..2).for_each(|_| s.send(false)));
            (0..3).for_each(|_| s.kernel.peer_reads());
            join([a, b]);
        });
    });
}

#[test]
fn two_senders_get_on_under_back_pressure() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| s.send(false));
            let b = go(&s, |s| (0..2).for_each(|_| s.send(false)));
            (0..3).for_each(|_| s.kernel.peer_reads());
            join([a, b]);
        });
    });
}

// ------------------------------------------------------------ keys

#[test]
fn a_key_fired_by_another_thread_reaches_who_waits_for_it() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            s.open_key(1);
            join([a]);
        });
    });
}

#[test]
fn a_key_fired_while_its_waiter_leads_asleep_interrupts_it() {
    model(3, || {
        let s = Socket::new(4);
        // No driver: nobody else could help.
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        s.open_key(1);
        join([a]);
    });
}

#[test]
fn a_key_fired_by_the_leaders_own_delivery_is_seen_by_it() {
    model(3, || {
        let s = Socket::new(4);
        s.lock().route = vec![1];
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_key_fired_by_the_leaders_delivery_reaches_a_follower() {
    model(2, || {
        let s = Socket::new(4);
        s.lock().route = vec![2, 1];
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(&s, |s| assert!(s.wait_key(2, Endless)));
            s.kernel.arrive(2);
            join([a, b]);
        });
    });
}

#[test]
fn a_key_fired_by_the_driver_reaches_thread_and_task() {
    model(2, || {
        let s = Socket::new(4);
        s.lock().route = vec![1];
        watched(&s);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(&s, |s| assert!(s.key_task(1, EVER)));
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

/// No thread leads: the driver holds the loop when the waiter comes, and is held up until it has parked.
#[test]
fn a_key_fired_by_the_driver_reaches_a_thread_parked_behind_it() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        let mut d = s.lock().lead.take_as_driver().expect("watched");
        s.lock().route = vec![1];
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        s.kernel.arrive(1);
        s.turn(&mut d, crate::kernel::NOW);
        let st = s.lock();
        let mut st = s.deliver(st, &mut d);
        s.give(&mut st, d);
        s.finish(st);
        join([a]);
    });
}

#[test]
fn a_key_fired_by_a_receiver_reaches_the_leader() {
    model(2, || {
        let s = Socket::new(4);
        s.lock().on_recv = Some(1);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(&s, |s| assert!(s.recv(Endless)));
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn two_waiters_for_two_keys_are_told_of_their_own() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(&s, |s| assert!(s.wait_key(2, Endless)));
            s.open_key(2);
            b.join().unwrap();
            s.open_key(1);
            a.join().unwrap();
        });
    });
}

#[test]
fn all_who_wait_for_a_key_are_told() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let b = go(&s, |s| assert!(s.wait_key(1, Endless)));
            let c = go(&s, |s| assert!(s.key_task(1, EVER)));
            s.open_key(1);
            join([a, b, c]);
        });
    });
}

/// A follower for a key takes over the lead from a receiver, and serves the receiver behind it.
#[test]
fn a_key_waiter_is_promoted_to_lead() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv(Endless)));
            let b = go(&s, |s| {
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
    });
}

/// Without a driver: the one who is left must have been told to lead.
#[test]
fn a_key_waiter_takes_over_from_a_receiver_that_is_served() {
    model(3, || {
        let s = Socket::new(4);
        s.lock().route = vec![1];
        let mut st = s.lock();
        st.queue = 0;
        let mut d = st.lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        drop(st);
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
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
    model(3, || {
        let s = Socket::new(4);
        let d = s.lock().lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(&s, |s| assert!(s.recv(Endless)));
        s.open_key(1);
        join([a]);
        let mut st = s.lock();
        s.give(&mut st, d);
        s.finish(st);
        s.kernel.arrive(1);
        join([b]);
    });
}

#[test]
fn a_key_waiter_that_times_out_after_it_was_told_passes_on_the_lead() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.wait_key(1, Short);
            });
            let b = go(&s, |s| assert!(s.recv(Endless)));
            s.open_key(1);
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

/// The leader leaves and promotes the key waiter, whose deadline passes at that moment.
#[test]
fn a_key_waiter_that_times_out_when_promoted_passes_on_the_lead() {
    model(2, || {
        let s = Socket::new(4);
        let d = s.lock().lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        let a = go(&s, |s| assert!(!s.wait_key(1, Short)));
        let b = go(&s, |s| assert!(s.wait_key(2, Endless)));
        let mut st = s.lock();
        s.give(&mut st, d);
        s.finish(st);
        s.open_key(2);
        join([a, b]);
    });
}

#[test]
fn a_task_that_waits_for_a_key_is_driven_in_the_background() {
    model(3, || {
        let s = Socket::new(4);
        s.lock().route = vec![1];
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.key_task(1, EVER)));
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_task_that_waits_for_a_key_is_driven_after_a_caller_left() {
    model(2, || {
        let s = Socket::new(4);
        s.lock().route = vec![1];
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.key_task(1, EVER)));
            let b = go(&s, |s| {
                s.recv(Short);
            });
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_dropped_task_leaves_no_place_behind_for_its_key() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.key_task(1, 1);
            });
            let b = go(&s, |s| assert!(s.key_task(1, EVER)));
            s.open_key(1);
            join([a, b]);
        });
    });
}

/// While it was on its way nobody else was told of the message that came.
#[test]
fn a_key_waiter_told_for_nothing_passes_on_before_it_parks_again() {
    model(3, || {
        let s = Socket::new(4);
        let mut d = s.lock().lead.take(Want::Send, &s.link).expect("nobody leads yet");
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        let b = go(&s, |s| assert!(s.recv(Endless)));
        let mut st = s.lock();
        st.lead.fire(1); // and nothing has changed for who waits
        s.finish(st);
        s.kernel.arrive(1);
        s.turn(&mut d, crate::kernel::NOW);
        let st = s.lock();
        let st = s.deliver(st, &mut d);
        s.finish(st);
        join([b]);
        s.open_key(1);
        join([a]);
    });
}

/// A place left behind would have the socket watched for nobody, and every `leave` compute for nothing.
#[test]
fn who_has_given_up_is_not_counted_as_waiting() {
    model(3, || {
        let s = Socket::new(4);
        let d = s.lock().lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        assert!(!s.recv(Short));
        assert!(!s.wait_key(1, Short));
        assert!(!s.recv_task(1));
        assert!(!s.key_task(1, 1));
        let mut st = s.lock();
        s.give(&mut st, d);
        s.finish(st);
        let st = s.lock();
        assert!(st.lead.listed && !st.lead.watched(), "nobody waits");
    });
}

// ------------------------------------------------------------ what no descriptor announces

#[test]
fn an_endpoint_is_taken_in_by_a_sleeping_leader() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| assert!(s.recv(Endless)));
        s.add_endpoint();
        s.until(|st| st.taken == 1 || !st.lead.listed && !st.lead.watched());
        s.kernel.arrive(1);
        join([a]);
        assert!(s.lock().taken == 1 || s.lock().lead.watched());
    });
}

/// The leader wants a key and hears of nothing else.
#[test]
fn an_endpoint_is_taken_in_by_a_leader_that_waits_for_a_key() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
            s.add_endpoint();
            s.until(|st| st.taken == 1);
            s.open_key(1);
            join([a]);
        });
    });
}

#[test]
fn an_endpoint_is_taken_in_while_a_sender_leads() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| (0..3).for_each(|_| s.send(false)));
            s.add_endpoint();
            s.until(|st| st.taken == 1);
            (0..3).for_each(|_| s.kernel.peer_reads());
            join([a]);
        });
    });
}

#[test]
fn an_endpoint_is_taken_in_by_the_driver_that_watches() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        with_driver(&s, || {
            s.add_endpoint();
            s.until(|st| st.taken == 1);
        });
    });
}

#[test]
fn an_endpoint_of_a_socket_that_is_only_listed_is_taken_in_at_once() {
    model(3, || {
        let s = Socket::new(4);
        listed(&s);
        s.add_endpoint();
        assert!(s.lock().lead.watched(), "not at the driver's next look");
        with_driver(&s, || s.until(|st| st.taken == 1));
    });
}

#[test]
fn two_endpoints_are_both_taken_in_while_callers_come_and_go() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.recv(Short);
            });
            s.add_endpoint();
            let b = go(&s, Socket::add_endpoint);
            join([a, b]);
            s.until(|st| st.taken == 2);
        });
    });
}

#[test]
fn a_blocked_pipe_of_a_socket_that_is_only_listed_is_watched_at_once() {
    model(3, || {
        let s = Socket::with(4, 2, false);
        listed(&s);
        s.send(false);
        s.send(false);
        assert!(s.lock().lead.watched(), "not at the driver's next look");
        with_driver(&s, || (0..2).for_each(|_| s.kernel.peer_reads()));
    });
}

#[test]
fn a_stalled_pipe_goes_on_though_the_leader_waits_for_a_key() {
    model(2, || {
        let s = Socket::new(1);
        s.lock().route = vec![];
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
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
    model(3, || {
        let s = Socket::new(1);
        watched(&s);
        with_driver(&s, || {
            s.kernel.arrive(2);
            s.until(|st| st.queue == 1);
            assert!(s.try_recv());
            s.until(|st| st.queue == 1);
        });
    });
}

// ------------------------------------------------------------ times

#[test]
fn a_timer_set_by_another_thread_interrupts_a_leader_that_sleeps_without_limit() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        s.set_timer(5, 1);
        s.kernel.advance(5);
        // Without a driver, somebody must lead: the caller that waits does.
        join([a]);
    });
}

#[test]
fn a_timer_due_earlier_than_the_leader_sleeps_interrupts_it() {
    model(3, || {
        let s = Socket::new(4);
        s.set_timer(9, 2);
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        s.set_timer(5, 1);
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn a_timer_set_on_a_watched_socket_is_known_to_the_driver() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        with_driver(&s, || {
            s.set_timer(5, 1);
            s.kernel.advance(5);
            let a = go(&s, |s| assert!(s.key_task(1, EVER)));
            join([a]);
        });
    });
}

#[test]
fn a_timer_set_on_a_watched_socket_that_nobody_waits_on_fires() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        with_driver(&s, || {
            s.set_timer(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
        });
    });
}

#[test]
fn a_timer_set_before_a_task_waits_is_known_to_the_driver() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.recv(Short);
                s.set_timer(5, 1);
                assert!(s.key_task(1, EVER));
            });
            s.kernel.advance(5);
            join([a]);
        });
    });
}

#[test]
fn a_timer_set_between_two_calls_fires_though_nobody_comes_back() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.recv(Short);
                s.set_timer(5, 1);
                s.recv(Short);
            });
            s.kernel.advance(5);
            join([a]);
            s.until(|st| st.open.contains(&1));
        });
    });
}

#[test]
fn a_deadline_of_the_loop_passes_with_it_to_the_driver() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            s.with_handshake(5);
            let a = go(&s, |s| assert!(s.recv_task(EVER)));
            s.kernel.advance(5);
            join([a]);
        });
    });
}

#[test]
fn an_alarm_of_the_engine_interrupts_a_leader_that_sleeps_without_limit() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| assert!(s.wait_key(1, Endless)));
        s.set_alarm(5, 1);
        s.kernel.advance(5);
        join([a]);
    });
}

#[test]
fn an_alarm_of_the_engine_on_a_watched_socket_is_known_to_the_driver() {
    model(3, || {
        let s = Socket::new(4);
        watched(&s);
        with_driver(&s, || {
            s.set_alarm(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
        });
    });
}

// ------------------------------------------------------------ close

#[test]
fn close_wakes_a_lone_leader() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| assert!(!s.recv(Endless)));
        s.close(Endless);
        join([a]);
    });
}

#[test]
fn close_wakes_a_lone_leader_that_waits_for_a_key() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| assert!(!s.wait_key(1, Endless)));
        s.close(Endless);
        join([a]);
    });
}

#[test]
fn close_wakes_leader_follower_and_key_waiter() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(!s.recv(Endless)));
            let b = go(&s, |s| assert!(!s.recv(Endless)));
            let c = go(&s, |s| assert!(!s.wait_key(1, Endless)));
            s.close(Endless);
            join([a, b, c]);
        });
    });
}

#[test]
fn close_wakes_tasks_for_messages_and_for_keys() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(!s.recv_task(EVER)));
            let b = go(&s, |s| assert!(!s.key_task(1, EVER)));
            s.close(Endless);
            join([a, b]);
        });
    });
}

#[test]
fn close_wakes_a_blocked_sender_and_waits_until_all_has_left() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            s.send(false);
            s.send(false);
            let a = go(&s, |s| s.send(false));
            let b = go(&s, |s| {
                s.close(Endless);
                assert!(s.lock().sent_all());
            });
            (0..2).for_each(|_| s.kernel.peer_reads());
            join([b, a]);
        });
    });
}

#[test]
fn two_may_close_at_once() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            s.send(false);
            s.send(false);
            let a = go(&s, |s| s.close(Endless));
            let b = go(&s, |s| s.close(Endless));
            (0..2).for_each(|_| s.kernel.peer_reads());
            join([a, b]);
        });
    });
}

/// A task that is told and dropped has a thread behind it, and only the driver leads.
#[test]
fn a_woken_task_that_is_dropped_passes_on_to_the_thread_behind_it() {
    model(3, || {
        let s = Socket::new(4);
        let mut st = s.lock();
        let id = st.lead.park(Want::Recv, crate::core::Who::Task(crate::core::Parker::new()));
        s.finish(st);
        let mut d = s.lock().lead.take_as_driver().expect("watched");
        let a = go(&s, |s| assert!(s.recv(Endless)));
        s.kernel.arrive(1);
        s.turn(&mut d, crate::kernel::NOW);
        let st = s.lock();
        let mut st = s.deliver(st, &mut d);
        s.give(&mut st, d);
        s.finish(st);
        s.unpark(Want::Recv, Some(id));
        join([a]);
    });
}

// ------------------------------------------------------------ a `Poller`

#[test]
fn a_poller_that_leads_is_told_of_a_message() {
    model(3, || {
        let s = Socket::new(4);
        let a = go(&s, |s| {
            assert!(Poller::new(s, Interest::RECV).wait(Endless));
            assert!(s.try_recv());
        });
        s.kernel.arrive(1);
        join([a]);
    });
}

#[test]
fn a_poller_and_a_thread_get_one_message_each() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                let mut poller = Poller::new(s, Interest::RECV);
                while !s.try_recv() {
                    assert!(poller.wait(Endless));
                }
            });
            let b = go(&s, |s| assert!(s.recv(Endless)));
            s.kernel.arrive(1);
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

/// Behind a leader that gives up, with no driver to help.
#[test]
fn a_poller_takes_over_from_a_leader_that_gives_up() {
    model(3, || {
        let s = Socket::new(4);
        let d = s.lock().lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        let a = go(&s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.kernel.arrive(1);
        let mut st = s.lock();
        s.give(&mut st, d);
        s.finish(st);
        join([a]);
    });
}

#[test]
fn a_thread_is_promoted_after_a_poller_that_was_told_has_left() {
    model(3, || {
        let s = Socket::new(4);
        let mut d = s.lock().lead.take(Want::Recv, &s.link).expect("nobody leads yet");
        let a = go(&s, |s| {
            assert!(Poller::new(s, Interest::RECV).wait(Endless));
            assert!(s.recv(Endless));
        });
        s.kernel.arrive(1);
        s.turn(&mut d, crate::kernel::NOW);
        let st = s.lock();
        let st = s.deliver(st, &mut d);
        s.finish(st);
        join([a]);
        let b = go(&s, |s| assert!(s.recv(Endless)));
        let mut st = s.lock();
        s.give(&mut st, d);
        s.finish(st);
        s.kernel.arrive(1);
        join([b]);
    });
}

#[test]
fn a_poller_that_gives_up_passes_on_the_lead() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| {
                Poller::new(s, Interest::RECV).wait(Short);
            });
            let b = go(&s, |s| assert!(s.recv(Endless)));
            s.kernel.arrive(1);
            join([a, b]);
        });
    });
}

#[test]
fn a_poller_for_both_directions_is_told_of_room() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            s.send(false);
            s.send(false);
            let a = go(&s, |s| assert!(Poller::new(s, Interest::BOTH).wait(Endless)));
            let b = go(&s, |s| {
                s.recv(Short);
            });
            s.kernel.peer_reads();
            join([a, b]);
        });
    });
}

#[test]
fn close_wakes_a_poller_that_leads_and_a_thread_behind_it() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
            let b = go(&s, |s| assert!(!s.recv(Endless)));
            s.close(Endless);
            join([a, b]);
        });
    });
}

#[test]
fn an_endpoint_is_taken_in_by_a_poller_that_leads() {
    model(3, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
            s.add_endpoint();
            s.until(|st| st.taken == 1);
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

#[test]
fn a_timer_set_by_another_thread_is_served_by_a_poller_that_leads() {
    model(2, || {
        let s = Socket::new(4);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
            s.set_timer(5, 1);
            s.kernel.advance(5);
            s.until(|st| st.open.contains(&1));
            s.kernel.arrive(1);
            join([a]);
        });
    });
}

// ------------------------------------------------------------ notices

#[test]
fn a_notice_wakes_a_sleeping_leader() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        let a = go(&s, |s| assert!(s.recv(Endless)));
        s.notify(&s.notifier());
        join([a]);
    });
}

#[test]
fn a_notice_wakes_the_driver_that_watches() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv_task(EVER)));
            s.notify(&s.notifier());
            join([a]);
        });
    });
}

#[test]
fn a_notice_given_while_nobody_leads_is_not_lost_when_the_socket_is_watched() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        listed(&s);
        let b = go(&s, |s| s.notify(&s.notifier()));
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv_task(EVER)));
            join([a, b]);
        });
    });
}

/// `arm` itself finds the notice: then there is no nudge, and the driver must be told.
#[test]
fn a_notice_that_lies_there_when_the_socket_is_armed_is_served() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        s.notify(&s.notifier());
        with_driver(&s, || {
            let a = go(&s, |s| assert!(s.recv_task(EVER)));
            join([a]);
        });
    });
}

#[test]
fn a_notice_reaches_a_socket_that_is_only_listed_in_the_end() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        with_driver(&s, || {
            let a = go(&s, |s| {
                s.recv(Short);
            });
            s.notify(&s.notifier());
            join([a]);
            s.notify(&s.notifier());
            s.until(|st| st.queue > 0);
        });
    });
}

#[test]
fn a_notice_wakes_a_poller_that_leads() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        let a = go(&s, |s| assert!(Poller::new(s, Interest::RECV).wait(Endless)));
        s.notify(&s.notifier());
        join([a]);
    });
}

#[test]
fn a_notice_is_not_lost_while_a_thread_hands_over_to_a_task() {
    model(2, || {
        let s = Socket::with(4, 1, true);
        with_driver(&s, || {
            let a = go(&s, |s| {
                assert!(s.recv(Endless));
                assert!(s.recv_task(EVER));
            });
            let n = s.notifier();
            s.notify(&n);
            s.notify(&n);
            join([a]);
        });
    });
}

/// The second notice may find the first one pending: what it stands for must then be seen with the first.
#[test]
fn a_notice_absorbed_by_a_pending_one_is_served_with_it() {
    model(3, || {
        let s = Socket::with(4, 1, true);
        let n = s.notifier();
        let a = go(&s, |s| {
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
