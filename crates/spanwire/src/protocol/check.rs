//! Any sequence of events against any protocol: is readiness exact, is every message accounted for?
//!
//! [`run`] plays the events; before each send and receive it compares what readiness said with what the call
//! then says, and does both once more at the end. It counts what went in and out; the sums that must hold
//! are the protocol's own and stand in its tests.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::script::Script;
use super::{PipeId, Protocol, Receives, Refused, Sends};
use crate::Message;

/// Something that happens to a protocol. Pipes are numbered modulo those that are open.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Open(usize),
    Lose(usize),
    /// The peer ends the connection.
    End(usize),
    /// A write finds the peer gone.
    FailWrite(usize),
    /// The application closes the endpoint.
    Finish(usize),
    Arrive(usize, usize),
    Drain(usize, usize),
    Send,
    Recv,
    Advance(u64),
    /// What only this protocol has: a cancel, an unsubscribe.
    Own(usize),
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => (1usize..5).prop_map(Op::Open),
        1 => any::<usize>().prop_map(Op::Lose),
        1 => any::<usize>().prop_map(Op::End),
        1 => any::<usize>().prop_map(Op::FailWrite),
        1 => any::<usize>().prop_map(Op::Finish),
        4 => (any::<usize>(), 0usize..4).prop_map(|(p, n)| Op::Arrive(p, n)),
        3 => (any::<usize>(), 0usize..4).prop_map(|(p, n)| Op::Drain(p, n)),
        6 => Just(Op::Send),
        4 => Just(Op::Recv),
        1 => (1u64..100).prop_map(Op::Advance),
        2 => any::<usize>().prop_map(Op::Own),
    ];
    vec(op, 1..80)
}

/// How a protocol is driven; what it lacks is left out.
#[expect(clippy::type_complexity, reason = "three closures, each named by its field")]
pub(super) struct Check<'a, P> {
    /// Sends message number `n`: whether it was not refused with "not now", and whether it was taken.
    pub(super) send: Option<Box<dyn FnMut(&mut Script<P>, usize) -> (bool, bool) + 'a>>,
    /// Receives: whether there was something.
    pub(super) recv: Option<Box<dyn FnMut(&mut Script<P>) -> bool + 'a>>,
    /// The `n`-th message that arrives.
    pub(super) arrives: Box<dyn FnMut(&mut Script<P>, usize) -> Message + 'a>,
    /// What was drained, one by one.
    pub(super) drained: Box<dyn FnMut(PipeId, &Message) + 'a>,
    pub(super) own: Option<Box<dyn FnMut(&mut Script<P>, usize) + 'a>>,
    pub(super) max_peers: usize,
}

impl<P> Default for Check<'_, P> {
    fn default() -> Self {
        Check {
            send: None,
            recv: None,
            arrives: Box::new(|_, n| Message::from(n.to_string())),
            drained: Box::new(|_, _| {}),
            own: None,
            max_peers: usize::MAX,
        }
    }
}

/// What went in and out.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sends: usize,
    pub(super) accepted: usize,
    /// For each accepted message the peers that there were.
    pub(super) copies: usize,
    pub(super) drained: usize,
    /// Still in the queues of open pipes.
    pub(super) unsent: usize,
    pub(super) arrived: usize,
    pub(super) received: usize,
    pub(super) peers: Vec<PipeId>,
    finishing: BTreeSet<PipeId>,
}

pub(super) fn send<P: Sends<Item = Message>>(s: &mut Script<P>, n: usize) -> (bool, bool) {
    match s.send(n.to_string()) {
        Ok(()) => (true, true),
        Err(Refused::NotNow(msg)) => {
            assert_eq!(msg, n.to_string().as_str(), "the message comes back");
            (false, false)
        }
        Err(_) => (true, false),
    }
}

pub(super) fn recv<P: Receives>(s: &mut Script<P>) -> bool {
    s.recv().is_some()
}

pub(super) fn run<P: Protocol>(s: &mut Script<P>, ops: &[Op], mut check: Check<'_, P>) -> Tally {
    let mut t = Tally::default();
    for op in ops.iter().chain(&[Op::Send, Op::Recv]) {
        let peer = |n: usize| (!t.peers.is_empty()).then(|| t.peers[n % t.peers.len()]);
        match *op {
            Op::Open(n) if t.peers.len() < check.max_peers => t.peers.push(s.open(n)),
            Op::Open(_) => {}
            Op::Lose(n) => {
                if let Some(pipe) = peer(n) {
                    s.lose(pipe);
                }
            }
            Op::End(n) => {
                if let Some(pipe) = peer(n) {
                    s.end(pipe);
                }
            }
            Op::FailWrite(n) => {
                if let Some(pipe) = peer(n) {
                    s.fail_write(pipe);
                }
            }
            Op::Finish(n) => {
                if let Some(pipe) = peer(n) {
                    t.finishing.insert(pipe);
                    s.finish(pipe);
                }
            }
            Op::Arrive(n, count) => {
                if let Some(pipe) = peer(n) {
                    for _ in 0..count {
                        let msg = (check.arrives)(s, t.arrived);
                        t.arrived += s.arrive(pipe, [msg]);
                    }
                }
            }
            Op::Drain(n, count) => {
                if let Some(pipe) = peer(n) {
                    let msgs = s.drain(pipe, count);
                    t.drained += msgs.len();
                    msgs.iter().for_each(|msg| (check.drained)(pipe, msg));
                }
            }
            Op::Send => {
                if let Some(send) = &mut check.send {
                    let said = s.readiness().send;
                    let peers = t.peers.iter().filter(|pipe| !t.finishing.contains(pipe)).count();
                    let (answered, taken) = send(s, t.sends);
                    assert_eq!(said, answered, "readiness to send is exact");
                    t.sends += 1;
                    t.accepted += usize::from(taken);
                    t.copies += if taken { peers } else { 0 };
                }
            }
            Op::Recv => {
                if let Some(recv) = &mut check.recv {
                    let said = s.readiness().recv;
                    let got = recv(s);
                    assert_eq!(said, got, "readiness to receive is exact");
                    t.received += usize::from(got);
                }
            }
            Op::Advance(ms) => s.advance(Duration::from_millis(ms)),
            Op::Own(n) => {
                if let Some(own) = &mut check.own {
                    own(s, n);
                }
            }
        }
        for (pipe, _) in s.closed.drain(..) {
            t.peers.retain(|p| *p != pipe);
        }
        if check.send.is_none() {
            assert!(!s.readiness().send, "what cannot send is never ready to");
        }
        if check.recv.is_none() {
            assert!(!s.readiness().recv, "what cannot receive is never ready to");
        }
    }
    t.unsent = t.peers.iter().map(|pipe| s.unsent(*pipe)).sum();
    t
}
