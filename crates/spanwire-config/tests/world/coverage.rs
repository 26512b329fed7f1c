//! Which event met which state, of every machine in the simulated worlds, where somebody asked for that.
//!
//! Owns: the words for states and events, and what was seen of them in this thread. Never: a judgement; the tables of
//! what must be reached are `simulation/pairs.rs`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use spanwire::protocol::Time;
use spanwire_config::wire::{Ack, Frame, GoodbyeCode, Level, Nack, NackCode, WantReason};
use spanwire_config::{Data, Head, NsRelay, RelayEvent, Verdict};
use spanwire_testkit::sim::Event;

use super::nodes::Holding;

/// Machine, state, event.
pub(crate) type Pair = (&'static str, &'static str, &'static str);

thread_local! {
    /// How often each was seen.
    pub(crate) static SEEN: RefCell<BTreeMap<Pair, u64>> = const { RefCell::new(BTreeMap::new()) };
    /// Whether anybody wants to know: it costs a twentieth of a run.
    pub(crate) static ASKED: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn note(machine: &'static str, state: &'static str, event: &'static str) {
    if ASKED.get() {
        SEEN.with_borrow_mut(|seen| *seen.entry((machine, state, event)).or_default() += 1);
    }
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

/// The application of a namespace says something.
pub(crate) fn says(state: Data, event: &'static str) {
    note(REPLICA, data(state), event);
}

/// Something comes to a node, for each of its namespaces.
pub(crate) fn comes<'a>(holdings: impl Iterator<Item = Holding<'a>>, now: Time, event: &Event) {
    if !ASKED.get() {
        return;
    }
    let frame = match event {
        Event::Message(_, message) => Frame::decode(&message.clone().into_bytes()).ok(),
        _ => None,
    };
    holdings.for_each(|one| comes_for(one, now, event, frame.as_ref()));
}

fn comes_for(one: Holding<'_>, now: Time, event: &Event, frame: Option<&Frame>) {
    let says = |event: &'static str| says(one.status(now).data, event);
    let mine = |head: &&Head| head.namespace == one.name();
    match event {
        Event::Opened { .. } => says("pipe up"),
        Event::Closed(_) => says("pipe down"),
        Event::Timer => says("time"),
        Event::Writable(_) => {}
        Event::Message(..) => match frame {
            Some(Frame::Welcome(_)) => says("WELCOME"),
            Some(Frame::Goodbye(bye)) if bye.code == GoodbyeCode::StaleBoot => says("told of a higher boot"),
            Some(Frame::Waiting(name, _)) if name == one.name() => says("WAITING"),
            Some(Frame::Stale(..)) => says("told of a higher boot"),
            Some(Frame::Beacon(heads)) if !heads.iter().any(|head| mine(&head)) => {
                says("BEACON without a HEAD")
            }
            Some(Frame::Beacon(heads)) => {
                heads.iter().filter(mine).for_each(|head| says(relation(one, head)));
            }
            Some(Frame::Slice(slice)) if mine(&&slice.head) => {
                says(relation(one, &slice.head));
                says(if slice.base.is_some() { "DELTA" } else { "SNAPSHOT" });
            }
            _ => {}
        },
    }
}

/// What a HEAD is to what a replica holds.
fn relation(one: Holding<'_>, head: &Head) -> &'static str {
    let given = one.given.as_ref().map(|given| &given.head);
    let Some(held) = given.or(one.replica().visible().map(|(held, _)| held)) else {
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

/// What a sender hears of a namespace.
pub(crate) fn heard(frame: &Frame, name: &str) -> Option<&'static str> {
    Some(match frame {
        Frame::Want(_, wants) if wants.iter().all(|want| want.namespace != name) => return None,
        Frame::Ack(Ack { namespace, .. }) | Frame::Nack(Nack { namespace, .. }) if namespace != name => {
            return None;
        }
        Frame::Hello(hello) if hello.wants.iter().all(|want| want.namespace != name) => "HELLO without wants",
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
