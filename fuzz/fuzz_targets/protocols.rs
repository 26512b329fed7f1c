//! Any sequence of events and any bytes from a peer, for every protocol: no panic, and readiness is exact.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use spanwire::protocol::script::Script;
use spanwire::protocol::{
    PipeId, Receives, pair::Pair, pull::Pull, push::Push, raw::RawRep, raw::RawReq, rep::Rep, req::Req,
    subscribe::Sub,
};

fn receiver<P: Receives>(protocol: P, ops: &[(u8, u8, &[u8])]) {
    let mut s = Script::new(protocol);
    let mut pipes: Vec<PipeId> = Vec::new();
    for (op, which, bytes) in ops {
        let pipe = pipes.get(usize::from(*which) % pipes.len().max(1)).copied();
        match (op % 6, pipe) {
            (0, _) if pipes.len() < 8 => pipes.extend(s.open_with(Default::default())),
            (1, Some(pipe)) => {
                s.arrive(pipe, [*bytes]);
            }
            (2, Some(pipe)) => s.lose(pipe),
            (3, Some(pipe)) => s.end(pipe),
            (4, _) => {
                let ready = s.readiness().recv;
                assert_eq!(s.recv().is_some(), ready, "readiness is exact");
            }
            (_, Some(pipe)) => {
                s.drain(pipe, usize::from(*which));
            }
            _ => {}
        }
    }
}

fn requester(ops: &[(u8, u8, &[u8])]) {
    let mut s = Script::new(Req::new().max_open(16));
    let mut pipes: Vec<PipeId> = Vec::new();
    let mut open = Vec::new();
    for (op, which, bytes) in ops {
        let pipe = pipes.get(usize::from(*which) % pipes.len().max(1)).copied();
        match (op % 7, pipe) {
            (0, _) if pipes.len() < 8 => pipes.extend(s.open_with(Default::default())),
            (1, Some(pipe)) => {
                s.arrive(pipe, [*bytes]);
            }
            (2, Some(pipe)) => s.lose(pipe),
            (3, _) => {
                let resend = (which % 2 == 0).then(|| Duration::from_millis(u64::from(*which)));
                open.extend(s.call(|p, cx| p.open(cx, (*bytes).into(), resend)).ok());
            }
            (4, _) => s.advance(Duration::from_millis(u64::from(*which))),
            (5, Some(pipe)) => {
                // Answer what was asked.
                for request in s.drain(pipe, 4) {
                    s.arrive(pipe, [request]);
                }
            }
            _ => open.retain(|id| s.call(|p, _| p.poll(*id)).is_none()),
        }
    }
}

fuzz_target!(|data: (u8, Vec<(u8, u8, &[u8])>)| {
    let (kind, ops) = data;
    match kind % 8 {
        0 => receiver(Pull::new(), &ops),
        1 => receiver(Rep::new(), &ops),
        2 => receiver(Pair::new(), &ops),
        3 => receiver(RawRep::new(), &ops),
        4 => receiver(RawReq::new(), &ops),
        5 => receiver(Sub::default(), &ops),
        6 => {
            let mut s = Script::new(Push::new());
            let a = s.open(2);
            for (_, _, bytes) in &ops {
                s.arrive(a, [*bytes]);
                let ready = s.readiness().send;
                assert_eq!(s.send(*bytes).is_ok(), ready);
            }
        }
        _ => requester(&ops),
    }
});
