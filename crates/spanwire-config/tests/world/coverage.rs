//! Which event met which state, of every machine in the simulated worlds.
//!
//! Owns: the words for states and events, and what was seen of them in this thread. Never: a judgement; the tables of
//! what must be reached are `simulation/pairs.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use spanwire::protocol::Time;
use spanwire_config::wire::{Ack, Frame, GoodbyeCode, Level, Nack, NackCode, WantReason};
use spanwire_config::{Data, Head, NsRelay, RelayEvent, Verdict};
use spanwire_testkit::sim::Event;

use super::nodes::Agent;

/// Machine, state, event.
pub(crate) type Pair = (&'static str, &'static str, &'static str);

thread_local! {
    /// How often each was seen.
    pub(crate) static SEEN: RefCell<BTreeMap<Pair, u64>> = const { RefCell::new(BTreeMap::new()) };
}

pub(crate) fn note(machine: &'static str, state: &'static str, event: &'static str) {
    SEEN.with_borrow_mut(|seen| *seen.entry((machine, state, event)).or_default() += 1);
}

pub(crate) const REPLICA: &str = "replica";
pub(crate) const SESSION: &str = "session";
pub(crate) const RELAY: &str = "relay";

fn data(data: Data) -> &'static str {
    match data {
        Data::Empty => "EMPTY",
        Data::Cached => "CACHED",
        Data::Live => "LIVE",
        Data::Behind => "BEHIND",
        Data::Held => "HELD",
        Data::Conflict => "CONFLICT",
    }
}

/// The application of a replica says something.
pub(crate) fn says(agent: &Agent, now: Time, event: &'static str) {
    note(REPLICA, data(agent.socket.protocol().status(now).data), event);
}

/// Something comes to a replica.
pub(crate) fn comes(agent: &Agent, now: Time, event: &Event) {
    match event {
        Event::Opened { .. } => says(agent, now, "pipe up"),
        Event::Closed(_) => says(agent, now, "pipe down"),
        Event::Timer => says(agent, now, "time"),
        Event::Writable(_) => {}
        Event::Message(_, message) => match Frame::decode(&message.clone().into_bytes()) {
            Ok(Frame::Welcome(_)) => says(agent, now, "WELCOME"),
            Ok(Frame::Goodbye(bye)) if bye.code == GoodbyeCode::StaleBoot => {
                says(agent, now, "told of a higher boot")
            }
            Ok(Frame::Waiting(..)) => says(agent, now, "WAITING"),
            Ok(Frame::Stale(..)) => says(agent, now, "told of a higher boot"),
            Ok(Frame::Beacon(heads)) if heads.is_empty() => says(agent, now, "BEACON without a HEAD"),
            Ok(Frame::Beacon(heads)) => heads.iter().for_each(|head| says(agent, now, relation(agent, head))),
            Ok(Frame::Slice(slice)) => {
                says(agent, now, relation(agent, &slice.head));
                says(agent, now, if slice.base.is_some() { "DELTA" } else { "SNAPSHOT" });
            }
            _ => {}
        },
    }
}

/// What a HEAD is to what a replica holds.
fn relation(agent: &Agent, head: &Head) -> &'static str {
    let given = agent.given.as_ref().map(|given| &given.head);
    let Some(held) = given.or(agent.socket.protocol().visible().map(|(held, _)| held)) else {
        return "HEAD where nothing is held";
    };
    let (mine, theirs) = (held.position, head.position);
    if !head.audience.is_empty() {
        return "HEAD for others";
    }
    match theirs.partial_cmp(&mine) {
        None => "HEAD that contradicts",
        Some(_) if theirs.epoch.number < mine.epoch.number => "HEAD of an earlier epoch",
        Some(_) if theirs.epoch.number > mine.epoch.number => "HEAD of a later epoch",
        Some(std::cmp::Ordering::Less) => "HEAD below",
        Some(std::cmp::Ordering::Equal) if head.chain != held.chain => "HEAD that contradicts",
        Some(std::cmp::Ordering::Equal) => "HEAD of what is held",
        Some(std::cmp::Ordering::Greater) => "HEAD above",
    }
}

/// What a sender hears.
pub(crate) fn heard(frame: &Frame) -> Option<&'static str> {
    Some(match frame {
        Frame::Hello(hello) if hello.wants.is_empty() => "HELLO without wants",
        Frame::Hello(_) => "HELLO",
        Frame::Want(WantReason::New, _) => "WANT new",
        Frame::Want(WantReason::Digest, _) => "WANT digest",
        Frame::Want(WantReason::Retry, _) => "WANT retry",
        Frame::Want(WantReason::Other, _) => "WANT other",
        Frame::Credit(_) => "CREDIT",
        Frame::Ack(Ack { volatile: true, .. }) => "ACK volatile",
        Frame::Ack(Ack { level: Level::Stored, .. }) => "ACK stored",
        Frame::Ack(Ack { level: Level::Visible, .. }) => "ACK visible",
        Frame::Ack(Ack { level: Level::Applied, .. }) => "ACK applied",
        Frame::Nack(Nack { code: NackCode::Hook, .. }) => "NACK hook",
        Frame::Nack(Nack { code: NackCode::Conflict, .. }) => "NACK conflict",
        Frame::Nack(_) => "NACK",
        _ => return None,
    })
}

/// A relay is told something.
pub(crate) fn told(machine: &NsRelay, event: &RelayEvent) {
    let state = match (machine.held().is_some(), machine.upstream().is_some()) {
        (false, false) => "nothing held, no server",
        (false, true) => "nothing held, a server",
        (true, false) => "held, no server",
        (true, true) => "held, a server",
    };
    let event = match event {
        RelayEvent::Verified(_) => "verified",
        RelayEvent::Heard(_) => "a later HEAD",
        RelayEvent::Upstream(None) => "server gone",
        RelayEvent::Upstream(Some(_)) => "server",
        RelayEvent::Shown { .. } => "a node shows",
        RelayEvent::Changed => "the table changed",
        RelayEvent::Stale { .. } => "STALE",
        RelayEvent::Stored(_, Ok(())) => "stored",
        RelayEvent::Stored(_, Err(_)) => "not stored",
        RelayEvent::Time => "time",
        _ => "renamed",
    };
    note(RELAY, state, event);
}

/// … and judges what a node below shows.
pub(crate) fn judged(verdict: Verdict) {
    let verdict = match verdict {
        Verdict::Fine => "fine",
        Verdict::Disregard => "disregarded",
        Verdict::Conflict => "in conflict",
        Verdict::Recorded => "recorded",
    };
    note(RELAY, "verdict", verdict);
}
