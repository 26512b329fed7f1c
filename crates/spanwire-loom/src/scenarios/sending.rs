//! Sending: all bytes go out, whoever leads, under back-pressure and without.

use super::{alone, deep, driven, go, join, narrow, plain, watched, with_driver};
use crate::core::Patience::Endless;

#[test]
fn a_stalled_pipe_goes_on_while_a_sender_leads() {
    driven(2, narrow, |s| {
        let a = go(s, |s| (0..3).for_each(|_| s.send(false)));
        s.kernel.arrive(2);
        assert!(s.recv(Endless));
        assert!(s.recv(Endless));
        (0..3).for_each(|_| s.kernel.peer_reads());
        join([a]);
    });
}

#[test]
fn bytes_left_by_a_sender_always_go_out() {
    driven(3, plain, |s| {
        let a = go(s, |s| (0..2).for_each(|_| s.send(false)));
        (0..2).for_each(|_| s.kernel.peer_reads());
        join([a]);
    });
}

#[test]
fn bytes_left_to_gather_go_out_while_a_receiver_leads() {
    driven(2, plain, |s| {
        let a = go(s, |s| (0..2).for_each(|_| s.send(true)));
        let b = go(s, |s| assert!(s.recv(Endless)));
        (0..2).for_each(|_| s.kernel.peer_reads());
        s.kernel.arrive(1);
        join([a, b]);
    });
}

#[test]
fn bytes_left_to_gather_go_out_though_nobody_waits() {
    alone(3, plain, |s| {
        watched(s);
        with_driver(s, || {
            s.send(true);
            s.kernel.peer_reads();
        });
    });
}

#[test]
fn bytes_appended_during_a_write_go_out() {
    driven(2, deep, |s| {
        let a = go(s, |s| s.send(false));
        let b = go(s, |s| (0..2).for_each(|_| s.send(false)));
        (0..3).for_each(|_| s.kernel.peer_reads());
        join([a, b]);
    });
}

#[test]
fn two_senders_get_on_under_back_pressure() {
    driven(2, plain, |s| {
        let a = go(s, |s| s.send(false));
        let b = go(s, |s| (0..2).for_each(|_| s.send(false)));
        (0..3).for_each(|_| s.kernel.peer_reads());
        join([a, b]);
    });
}
