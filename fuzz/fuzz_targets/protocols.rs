//! Any sequence of events and any bytes from a peer, for every protocol: no panic, and readiness is exact. `recv` gives
//! something, and a send is refused for want of room, exactly when `readiness` says so; for Req the send is a request.
//! (Rep has no readiness to reply: it is asked for one connection.)
#![no_main]

use std::collections::VecDeque;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use spanwire::Message;
use spanwire::protocol::script::Script;
use spanwire::protocol::{
    PipeId, Protocol, Receives, Refused, Sends, pair::Pair, publish::Pub, publish::Slow, pull::Pull,
    push::Push, raw::RawRep, raw::RawReq, raw::RawSub, rep::Rep, req::Req, subscribe::Sub,
};

/// What the world does to any protocol; everything else is left to `act`.
fn world<P: Protocol>(protocol: P, ops: &[(u8, u8, &[u8])], mut act: impl FnMut(&mut Script<P>, u8, &[u8])) {
    let mut s = Script::new(protocol);
    let mut pipes: Vec<PipeId> = Vec::new();
    for (op, which, bytes) in ops {
        let pipe = pipes.get(usize::from(*which) % pipes.len().max(1)).copied();
        match (op % 9, pipe) {
            (0, _) if pipes.len() < 8 => pipes.extend(s.open_with(Default::default())),
            (1, Some(pipe)) => drop(s.arrive(pipe, [*bytes])),
            (2, Some(pipe)) => s.lose(pipe),
            (3, Some(pipe)) => s.end(pipe),
            (4, Some(pipe)) => drop(s.drain(pipe, usize::from(*which))),
            (5, Some(pipe)) => {
                // An answer: what it was sent comes back.
                for msg in s.drain(pipe, 4) {
                    s.arrive(pipe, [msg]);
                }
            }
            (6, _) => s.advance(Duration::from_millis(u64::from(*which))),
            _ => act(&mut s, *which, bytes),
        }
    }
}

fn receive<P: Receives>(s: &mut Script<P>) -> Option<P::Item> {
    let ready = s.readiness().recv;
    let got = s.recv();
    assert_eq!(got.is_some(), ready, "readiness to receive is exact");
    got
}

fn send<P: Sends<Item = Message>>(s: &mut Script<P>, msg: impl Into<Message>) {
    let ready = s.readiness().send;
    check(ready, s.send(msg));
}

/// What can never be sent is refused whether there is room or not.
fn check(ready: bool, sent: Result<(), Refused<Message>>) {
    match sent {
        Ok(()) => assert!(ready, "sent, although there was no room"),
        Err(Refused::NotNow(_)) => assert!(!ready, "refused, although there was room"),
        Err(_) => {}
    }
}

/// Receives, sends, and sends back what it received.
fn both<P: Sends<Item = Message> + Receives<Item = Message>>(s: &mut Script<P>, which: u8, bytes: &[u8]) {
    match which % 3 {
        0 => drop(receive(s)),
        1 => send(s, bytes),
        _ => {
            if let Some(msg) = receive(s) {
                send(s, msg);
            }
        }
    }
}

fn replier(ops: &[(u8, u8, &[u8])]) {
    let mut held = VecDeque::new();
    world(Rep::new(), ops, |s, which, bytes| match held.pop_front().filter(|_| which % 2 == 0) {
        Some(request) => drop(s.call(|p, cx| p.reply(cx, &request, bytes.into()))),
        None => held.extend(receive(s)),
    });
}

fn requester(ops: &[(u8, u8, &[u8])]) {
    let mut open = Vec::new();
    world(Req::new().max_open(16), ops, |s, which, bytes| {
        if which % 2 == 0 {
            return open.retain(|id| s.call(|p, _| p.poll(*id)).is_none());
        }
        let resend = (which % 4 == 1).then(|| Duration::from_millis(u64::from(which)));
        let ready = s.readiness().send;
        let asked = s.call(|p, cx| p.open(cx, bytes.into(), resend));
        open.extend(asked.as_ref().ok());
        check(ready, asked.map(drop));
    });
}

fuzz_target!(|data: (u8, Vec<(u8, u8, &[u8])>)| {
    let (kind, ops) = data;
    match kind % 11 {
        0 => world(Pull::new(), &ops, |s, _, _| drop(receive(s))),
        1 => world(Sub::default(), &ops, |s, which, bytes| match which % 3 {
            0 => s.call(|p, cx| p.subscribe(cx, bytes)),
            1 => drop(s.call(|p, cx| p.unsubscribe(cx, bytes))),
            _ => drop(receive(s)),
        }),
        2 => world(RawSub::new(), &ops, |s, _, _| drop(receive(s))),
        3 => world(Push::new(), &ops, |s, _, bytes| send(s, bytes)),
        4 => world(Pub::default(), &ops, |s, _, bytes| send(s, bytes)),
        5 => world(Pub::new(Slow::Wait), &ops, |s, _, bytes| send(s, bytes)),
        6 => world(Pair::new(), &ops, both),
        7 => world(RawReq::new(), &ops, both),
        8 => world(RawRep::new(), &ops, both),
        9 => replier(&ops),
        _ => requester(&ops),
    }
});
