//! Injected faults do what they say, and sockets live with them.

use std::time::Duration;

use spanwire::protocol::Protocol;
use spanwire::transport::{Inproc, Tcp, Transport};
use spanwire::{Builder, Pull, Push};
use spanwire_testkit::fault::{Faults, Faulty};

const SOON: Duration = Duration::from_secs(30);

fn quick<P: Protocol, S>(builder: Builder<P, S>) -> Builder<P, S> {
    builder.reconnect(Duration::from_millis(1), Duration::from_millis(10))
}

/// Sends numbers over `faulty` until `cuts` connections were cut and 500 numbers more have come.
fn survive(faulty: Faulty<impl Transport>, url: &str, cuts: u64) {
    let so_far = faulty.cuts();
    let pull = quick(Pull::builder()).build().expect("a socket");
    let at = pull.bind(url).expect("an address");
    let push = quick(Push::builder()).transport(faulty).build().expect("a socket");
    push.connect(at.url()).expect("it is dialled");
    std::thread::scope(|scope| {
        let sender = push.clone();
        scope.spawn(move || {
            let mut n = 0u64;
            while sender.send(n.to_be_bytes().repeat(20)).is_ok() {
                n += 1;
            }
        });
        let (mut last, mut after) = (None, 0);
        while after < 500 {
            let msg = pull.recv_timeout(SOON).expect("connections that are cut come back");
            let number: [u8; 8] = msg[..8].try_into().expect("eight bytes");
            assert_eq!(msg, number.repeat(20).as_slice(), "whole or not at all");
            let n = u64::from_be_bytes(number);
            assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
            last = Some(n);
            after += u64::from(so_far() >= cuts);
        }
        push.close(Duration::ZERO).expect("it closes");
    });
}

#[test]
fn what_comes_over_streams_that_are_cut_is_whole_and_in_order() {
    let faults = Faults::new(7).pieces(200).delay_one_in(20).cut_after(1..20_000);
    survive(Faulty::new(Tcp, faults), "tcp://127.0.0.1:0", 20);
}

#[test]
fn what_comes_over_message_pipes_that_are_cut_is_whole_and_in_order() {
    let faults = Faults::new(8).pieces(5).delay_one_in(20).cut_after(1..200);
    survive(Faulty::new(Inproc, faults), "inproc://cut", 20);
}

#[test]
fn without_faults_nothing_is_cut() {
    let faulty = Faulty::new(Tcp, Faults::default());
    let cuts = faulty.cuts();
    survive(faulty, "tcp://127.0.0.1:0", 0);
    assert_eq!(cuts(), 0);
}
