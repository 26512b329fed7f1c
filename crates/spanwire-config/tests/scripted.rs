//! Sender and receiver, joined by hand: what each of them says, keeps and bounds.

use std::time::Duration;

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::PipeId;
use spanwire::protocol::script::Script;
use spanwire_config::wire::{Ack, Frame, NackCode, Slice, Want, WantReason};
use spanwire_config::{
    ChangeSet, CommitError, Data, Distributor, Epoch, Id, Key, Level, Limits, Origin, Position, Replica,
    ReplicaSettings, Settings, Update,
};

const BEACON: Duration = Duration::from_secs(1);

fn key(k: &str) -> Key {
    Key::new(k).expect("1 to 1,024 bytes")
}

fn puts<const N: usize>(pairs: [(&str, &str); N]) -> ChangeSet {
    let mut set = ChangeSet::new();
    pairs.iter().for_each(|(k, v)| set.put(key(k), 0, v.to_string()));
    set
}

fn epoch(number: u64) -> Epoch {
    Epoch { number, incarnation: Id([number as u8; 16]) }
}

fn authority(settings: Settings) -> Script<Distributor> {
    Script::new(Distributor::new(settings, Origin::begin(epoch(1))))
}

fn commit(a: &mut Script<Distributor>, changes: &ChangeSet) -> Position {
    a.call(|d, cx| d.commit(cx, changes)).expect("within limits").expect("a head")
}

fn replica(n: u8) -> Script<Replica> {
    let settings = ReplicaSettings { node: Id([n; 16]), name: format!("n{n}"), ..ReplicaSettings::default() };
    Script::new(Replica::new(settings))
}

/// One link between a sender and a receiver, with the messages that went over it.
struct Link {
    above: PipeId,
    below: PipeId,
    down: Vec<Frame>,
    up: Vec<Frame>,
}

fn frame(message: &Message) -> Frame {
    Frame::decode(&message.clone().into_bytes()).expect("what a protocol says can be read")
}

impl Link {
    fn new(a: &mut Script<Distributor>, r: &mut Script<Replica>) -> Link {
        Link { above: a.open(64), below: r.open(64), down: Vec::new(), up: Vec::new() }
    }

    /// Moves what is there, through `change` on the way down, until nothing moves.
    fn flow_with(
        &mut self,
        a: &mut Script<Distributor>,
        r: &mut Script<Replica>,
        mut change: impl FnMut(Message) -> Option<Message>,
    ) {
        loop {
            let (down, up) = (a.drain(self.above, usize::MAX), r.drain(self.below, usize::MAX));
            if down.is_empty() && up.is_empty() {
                return;
            }
            self.down.extend(down.iter().map(frame));
            self.up.extend(up.iter().map(frame));
            r.arrive(self.below, down.into_iter().filter_map(&mut change));
            a.arrive(self.above, up);
        }
    }

    fn flow(&mut self, a: &mut Script<Distributor>, r: &mut Script<Replica>) {
        self.flow_with(a, r, Some);
    }

    fn slices(&self) -> Vec<&Slice> {
        self.down.iter().filter_map(|f| if let Frame::Slice(s) = f { Some(&**s) } else { None }).collect()
    }

    fn payload(&self) -> u64 {
        self.slices().iter().map(|s| s.bytes.len() as u64).sum()
    }
}

fn accept(r: &mut Script<Replica>, level: Level) -> Update {
    let update = r.recv().expect("an update is ready");
    r.call(|p, cx| p.ack(cx, update.position(), level, false)).expect("it was given");
    update
}

fn data(r: &Script<Replica>) -> Data {
    r.protocol.status(r.now()).data
}

/// Both ends, with one commit applied on the node.
fn pair() -> (Script<Distributor>, Script<Replica>, Link) {
    let (mut a, mut r) = (authority(Settings::default()), replica(1));
    commit(&mut a, &puts([("a", "1"), ("b", "2"), ("z", &"z".repeat(400))]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    link.flow(&mut a, &mut r);
    (a, r, link)
}

#[test]
fn a_node_gets_a_snapshot_then_steps_and_the_authority_knows_what_it_has() {
    let (mut a, mut r, mut link) = pair();
    assert!(link.slices()[0].base.is_none());
    assert_eq!(data(&r), Data::Live);
    let at = commit(&mut a, &puts([("b", "3")]));
    assert_eq!(a.protocol.reached(at, Level::Stored), 0);
    link.down.clear();
    link.flow(&mut a, &mut r);
    assert_eq!(link.slices().len(), 1);
    assert!(link.slices()[0].base.is_some() && link.payload() < 20);
    assert!(r.readiness().recv);
    let update = accept(&mut r, Level::Applied);
    assert_eq!(update.changed, [key("b")]);
    assert_eq!(update.state.get("b").map(|e| e.value().clone()), Some(Bytes::from("3")));
    assert!(!r.readiness().recv && r.recv().is_none());
    a.woken();
    link.flow(&mut a, &mut r);
    assert!(a.woken().contains(&a.protocol.wait_key()));
    assert_eq!(a.protocol.reached(at, Level::Applied), 1);
    let status = &a.protocol.status()[0];
    assert_eq!((status.name.as_str(), status.connected, status.applied), ("n1", true, Some(at)));
}

#[test]
fn an_empty_value_is_a_value_and_a_delete_is_not() {
    let (mut a, mut r, mut link) = pair();
    let mut changes = puts([("a", "")]);
    changes.delete(key("b"));
    commit(&mut a, &changes);
    link.flow(&mut a, &mut r);
    let update = accept(&mut r, Level::Visible);
    assert_eq!(update.state.get("a").map(|e| e.value().len()), Some(0));
    assert_eq!((update.state.get("b"), update.changed.len()), (None, 2));
}

#[test]
fn content_that_does_not_change_is_no_commit() {
    let (mut a, _, _) = pair();
    let before = a.protocol.head().cloned();
    let mut same = puts([("a", "1")]);
    same.delete(key("absent"));
    assert!(a.protocol.prepare(&same).expect("small").is_none());
    commit(&mut a, &same);
    assert_eq!(a.protocol.head().cloned(), before);
}

#[test]
fn a_node_that_holds_the_head_costs_one_head() {
    let (mut a, mut r, link) = pair();
    a.lose(link.above);
    r.lose(link.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(link.slices().is_empty());
    assert!(matches!(&link.down[..], [Frame::Welcome(_), Frame::Beacon(heads)] if heads.len() == 1));
    assert_eq!(data(&r), Data::Live);
    // It repeats what it had said, since the last pipe may have lost it.
    assert!(link.up.iter().any(|f| matches!(f, Frame::Ack(Ack { level: Level::Applied, .. }))));
}

#[test]
fn invariant_05_nothing_is_visible_before_its_digest_was_recomputed() {
    let (mut a, mut r, mut link) = pair();
    commit(&mut a, &puts([("a", "evil")]));
    let (mut broken, mut seen_by_app) = (0, None);
    link.down.clear();
    link.flow_with(&mut a, &mut r, |message| match frame(&message) {
        Frame::Slice(mut slice) if slice.base.is_some() => {
            broken += 1;
            slice.bytes = Bytes::from(
                slice.bytes.iter().map(|b| if *b == b'v' { b'V' } else { *b }).collect::<Vec<_>>(),
            );
            Some(Frame::Slice(slice).encode().into())
        }
        _ => Some(message),
    });
    assert_eq!(broken, 1);
    assert!(link.up.iter().any(|f| matches!(f, Frame::Want(WantReason::Digest, _))));
    assert_eq!(r.counted("digest-failures"), 1);
    // The answer is a snapshot, and that is what the application sees: once, and right.
    while let Some(update) = r.recv() {
        assert!(seen_by_app.replace(update).is_none());
    }
    let update = seen_by_app.expect("the snapshot");
    assert_eq!(update.state.get("a").map(|e| e.value().clone()), Some(Bytes::from("evil")));
    assert!(link.slices().iter().any(|s| s.base.is_none()));
}

#[test]
fn invariant_09_a_step_from_elsewhere_is_not_tried_and_a_fresh_start_is_asked_for() {
    let (mut a, mut r, mut link) = pair();
    // The first of two steps is lost, as no pipe does it: the second does not fit.
    commit(&mut a, &puts([("a", "2")]));
    a.drain(link.above, usize::MAX);
    let at = commit(&mut a, &puts([("b", "3")]));
    link.down.clear();
    link.flow(&mut a, &mut r);
    assert!(link.up.iter().any(|f| matches!(f, Frame::Want(WantReason::Other, _))));
    assert_eq!(r.counted("digest-failures"), 0);
    assert_eq!(accept(&mut r, Level::Applied).position(), at);
    // The same step once more, as no sender does it: nothing changes.
    let again: Vec<Vec<u8>> =
        link.down.iter().filter(|f| matches!(f, Frame::Slice(_))).map(Frame::encode).collect();
    r.arrive(link.below, again);
    assert!(r.recv().is_none());
    assert_eq!((r.counted("verified"), data(&r)), (2, Data::Live));
}

#[test]
fn a_snapshot_without_its_digest_ends_the_pipe() {
    let (mut a, mut r) = (authority(Settings::default()), replica(1));
    commit(&mut a, &puts([("a", "vvv")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow_with(&mut a, &mut r, |message| match frame(&message) {
        Frame::Slice(mut slice) => {
            slice.bytes = Bytes::from(
                slice.bytes.iter().map(|b| if *b == b'v' { b'V' } else { *b }).collect::<Vec<_>>(),
            );
            Some(Frame::Slice(slice).encode().into())
        }
        _ => Some(message),
    });
    assert_eq!((r.closed.len(), r.recv().is_none(), data(&r)), (1, true, Data::Behind));
}

#[test]
fn invariant_10_a_refusal_holds_until_something_newer_is_accepted() {
    let (mut a, mut r, mut link) = pair();
    let first = r.protocol.visible().map(|(head, _)| head.position);
    let bad = commit(&mut a, &puts([("a", "bad")]));
    link.flow(&mut a, &mut r);
    let update = r.recv().expect("the bad one");
    // Two more are on their way when it is refused: they are built on it.
    commit(&mut a, &puts([("c", "3")]));
    link.flow(&mut a, &mut r);
    r.call(|p, cx| p.nack(cx, update.position(), NackCode::Validator, "no good")).expect("given");
    link.down.clear();
    link.flow(&mut a, &mut r);
    let status = &a.protocol.status()[0];
    assert_eq!(status.refused, [(bad, NackCode::Validator, "no good".to_owned())]);
    // The newer one comes from where the node stayed, not from the refused one.
    assert_eq!(link.slices().iter().map(|s| s.base.map(|b| b.position)).collect::<Vec<_>>(), [first]);
    let update = r.recv().expect("the one after it");
    assert_eq!(update.changed, [key("a"), key("c")]);
    r.call(|p, cx| p.nack(cx, update.position(), NackCode::Check, "nor this")).expect("given");
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Held);
    assert_eq!(r.protocol.visible().map(|(head, _)| head.position), first);
    // Neither beacons nor a new pipe bring it back.
    for _ in 0..3 {
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow(&mut a, &mut r);
    }
    a.lose(link.above);
    r.lose(link.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(link.slices().is_empty() && r.recv().is_none());
    assert_eq!(data(&r), Data::Held);
    let good = commit(&mut a, &puts([("a", "good")]));
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position(), good);
    assert_eq!(data(&r), Data::Live);
}

#[test]
fn what_was_refused_comes_again_when_asked_for() {
    let (mut a, mut r, mut link) = pair();
    let at = commit(&mut a, &puts([("a", "big")]));
    link.flow(&mut a, &mut r);
    let update = r.recv().expect("given");
    r.call(|p, cx| p.nack(cx, update.position(), NackCode::Storage, "disk full")).expect("given");
    link.flow(&mut a, &mut r);
    assert!(r.recv().is_none());
    r.call(|p, cx| p.retry(cx));
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position(), at);
    link.flow(&mut a, &mut r);
    assert_eq!((a.protocol.reached(at, Level::Applied), &a.protocol.status()[0].refused[..]), (1, &[][..]));
}

#[test]
fn a_failed_hook_leaves_the_revision_visible_and_is_reported() {
    let (mut a, mut r, mut link) = pair();
    let at = commit(&mut a, &puts([("a", "2")]));
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Visible);
    r.call(|p, cx| p.nack(cx, at, NackCode::Hook, "exit 1")).expect("visible");
    link.flow(&mut a, &mut r);
    let status = a.protocol.status().remove(0);
    assert_eq!((status.visible, status.applied < Some(at)), (Some(at), true));
    assert_eq!(status.refused, [(at, NackCode::Hook, "exit 1".to_owned())]);
    // What is built on it is good.
    let next = commit(&mut a, &puts([("a", "3")]));
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position(), next);
}

#[test]
fn invariant_12_conflicting_incarnations_freeze_what_is_visible_until_a_higher_epoch() {
    let (_, mut r, link) = pair();
    r.lose(link.below);
    let before = r.protocol.visible().map(|(head, _)| head.clone());
    let rogue = Epoch { number: 1, incarnation: Id([99; 16]) };
    let mut b = Script::new(Distributor::new(Settings::default(), Origin::begin(rogue)));
    for n in 0..5 {
        commit(&mut b, &puts([("a", &format!("rogue {n}"))]));
    }
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!((data(&r), r.recv().is_none()), (Data::Conflict, true));
    assert_eq!(r.protocol.visible().map(|(head, _)| head.clone()), before);
    assert!(link.slices().is_empty(), "that node gets no data in this epoch");
    assert!(b.protocol.status()[0].conflict);
    assert!(matches!(
        b.protocol.prepare_epoch(epoch(1)).map(|_| ()),
        Err(CommitError::Epoch { new: 1, now: 1 })
    ));
    let prepared = b.protocol.prepare_epoch(epoch(2)).expect("above");
    b.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    link.flow(&mut b, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position().epoch, epoch(2));
    assert_eq!(data(&r), Data::Live);
}

#[test]
fn invariant_07_a_node_of_a_lost_history_is_listed_and_gets_no_data() {
    // A store put back from an older copy: the same epoch and incarnation, other commits.
    for lost in [1, 2, 5] {
        let (mut a, mut r, mut link) = pair();
        for n in 1..lost {
            commit(&mut a, &puts([("a", &format!("lost {n}"))]));
            link.flow(&mut a, &mut r);
            accept(&mut r, Level::Applied);
        }
        r.lose(link.below);
        let mut b = authority(Settings::default());
        commit(&mut b, &puts([("a", "other")]));
        commit(&mut b, &puts([("a", "another")]));
        let mut link = Link::new(&mut b, &mut r);
        // Its HELLO alone says it.
        b.arrive(link.above, r.drain(link.below, usize::MAX));
        assert_eq!((b.protocol.status()[0].conflict, b.counted("conflicts")), (true, 1), "revision {lost}");
        let before = r.protocol.visible().map(|(head, _)| head.position);
        link.flow(&mut b, &mut r);
        for n in 0..9 {
            commit(&mut b, &puts([("a", &format!("more {n}"))]));
            link.flow(&mut b, &mut r);
        }
        assert!(link.slices().is_empty() && r.recv().is_none(), "revision {lost}");
        assert_eq!(r.protocol.visible().map(|(head, _)| head.position), before);
    }
}

#[test]
fn promise_04_invariant_12_a_lower_epoch_is_ignored() {
    let (mut a, mut r, mut link) = pair();
    let prepared = a.protocol.prepare_epoch(epoch(5)).expect("above");
    a.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    link.flow(&mut a, &mut r);
    // Equal content: a step without operations, and no key has changed.
    assert_eq!(accept(&mut r, Level::Applied).changed, []);
    r.lose(link.below);
    let mut old = authority(Settings::default());
    for n in 0..9 {
        commit(&mut old, &puts([("a", &n.to_string())]));
    }
    let mut link = Link::new(&mut old, &mut r);
    link.flow(&mut old, &mut r);
    assert!(link.slices().is_empty() && r.recv().is_none());
    assert!(r.counted("upstream-behind") > 0);
    assert_eq!(old.protocol.highest_epoch(), 5);
    assert_eq!(r.protocol.visible().map(|(head, _)| head.position.epoch), Some(epoch(5)));
}

#[test]
fn promise_05_invariant_13_an_authority_that_has_not_loaded_its_state_shows_nothing() {
    let (mut a, mut r) = (authority(Settings::default()), replica(1));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    a.advance(BEACON * 2);
    link.flow(&mut a, &mut r);
    let heads = link.down.iter().filter(|f| matches!(f, Frame::Beacon(heads) if !heads.is_empty())).count();
    assert_eq!((heads, link.slices().len(), data(&r)), (0, 0, Data::Empty));
    // A tree that was read and is empty is something else: a state without keys.
    commit(&mut a, &ChangeSet::new());
    link.flow(&mut a, &mut r);
    assert!(accept(&mut r, Level::Applied).state.is_empty());
}

#[test]
fn invariant_19_a_stopped_node_costs_a_window_and_then_gets_one_merged_step() {
    let settings = Settings { log_commits: 500, ..Settings::default() };
    let (mut a, mut r) = (authority(settings), replica(1));
    let big: Vec<(String, String)> = (0..200).map(|n| (format!("k{n}"), "x".repeat(1000))).collect();
    let mut first = ChangeSet::new();
    big.iter().for_each(|(k, v)| first.put(key(k), 0, v.clone()));
    commit(&mut a, &first);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Stored);
    link.flow(&mut a, &mut r);
    link.down.clear();
    for n in 0..400 {
        commit(&mut a, &puts([("k7", &format!("{n}"))]));
    }
    assert!(a.unsent(link.above) <= 8, "deltas in flight: {}", a.unsent(link.above));
    // It wakes up: what was in flight, and one merged step for all the rest.
    for _ in 0..3 {
        link.flow(&mut a, &mut r);
        if r.readiness().recv {
            accept(&mut r, Level::Stored);
        }
    }
    assert!(link.slices().len() <= 10, "{} transfers", link.slices().len());
    // Invariant 21: bytes follow the change, not the number of commits.
    assert!(link.payload() < 400, "{} bytes", link.payload());
    assert_eq!(r.protocol.visible().map(|(h, _)| h.position), a.protocol.head().map(|h| h.position));
}

#[test]
fn invariant_19_the_log_is_bounded_in_commits_and_bytes() {
    let mut a = authority(Settings { log_commits: 10, log_bytes: 5000, ..Settings::default() });
    for n in 0..50 {
        commit(&mut a, &puts([("k", &n.to_string())]));
    }
    assert_eq!(a.protocol.log_size().0, 10);
    for n in 0..50 {
        commit(&mut a, &puts([("k", &format!("{n}{}", "x".repeat(1000)))]));
        assert!(a.protocol.log_size().1 <= 5000);
    }
}

#[test]
fn invariant_20_a_state_beyond_the_limits_is_refused_by_its_head() {
    let limits = Limits { bytes: 1000, ..Limits::default() };
    let settings = ReplicaSettings { node: Id([1; 16]), limits, ..ReplicaSettings::default() };
    let (mut a, mut r) = (authority(Settings::default()), Script::new(Replica::new(settings)));
    let at = commit(&mut a, &puts([("k", &"x".repeat(2000))]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(r.recv().is_none());
    let refused = &a.protocol.status()[0].refused;
    assert!(matches!(&refused[..], [(p, NackCode::TooLarge, _)] if *p == at), "{refused:?}");
}

#[test]
fn invariant_20_a_commit_beyond_the_limits_is_not_made() {
    let mut a =
        authority(Settings { limits: Limits { value: 10, keys: 2, bytes: 25 }, ..Settings::default() });
    let over = |a: &Script<Distributor>, c: ChangeSet| {
        matches!(a.protocol.prepare(&c), Err(CommitError::OverLimit(_)))
    };
    assert!(over(&a, puts([("k", "01234567890")])));
    assert!(over(&a, puts([("a", ""), ("b", ""), ("c", "")])));
    commit(&mut a, &puts([("a", "0123456789"), ("b", "0123456789")]));
    assert!(over(&a, puts([("b", ""), ("c", "")])));
}

#[test]
fn a_large_snapshot_is_bounded_by_the_window() {
    let (mut a, mut r) = (authority(Settings::default()), replica(1));
    let mut changes = ChangeSet::new();
    (0..32).for_each(|n| changes.put(key(&format!("k{n}")), 0, vec![n; 64 << 10]));
    commit(&mut a, &changes);
    let mut link = Link::new(&mut a, &mut r);
    a.arrive(link.above, r.drain(link.below, usize::MAX));
    let sent: Vec<Frame> = a.drain(link.above, usize::MAX).iter().map(frame).collect();
    let bytes: usize = sent.iter().map(|f| if let Frame::Slice(s) = f { s.bytes.len() } else { 0 }).sum();
    assert!(((256 << 10)..=(320 << 10)).contains(&bytes), "{bytes} without credit");
    r.arrive(link.below, sent.iter().map(|f| f.encode()));
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Stored).state.bytes(), a.protocol.state().expect("committed").bytes());
}

#[test]
fn invariant_22_a_reader_that_stopped_holds_a_slot_for_t_stall_at_most() {
    let mut a = authority(Settings { slots: 1, ..Settings::default() });
    let mut changes = ChangeSet::new();
    (0..32).for_each(|n| changes.put(key(&format!("k{n}")), 0, vec![n; 64 << 10]));
    commit(&mut a, &changes);
    let (mut stopped, mut other) = (replica(1), replica(2));
    let first = Link::new(&mut a, &mut stopped);
    a.arrive(first.above, stopped.drain(first.below, usize::MAX));
    let mut second = Link::new(&mut a, &mut other);
    second.flow(&mut a, &mut other);
    assert!(second.slices().is_empty(), "it waits for the slot");
    for _ in 0..11 {
        a.advance(BEACON);
        other.advance(BEACON);
        second.flow(&mut a, &mut other);
    }
    assert!(a.closed.iter().any(|(pipe, _)| *pipe == first.above));
    assert_eq!(accept(&mut other, Level::Stored).state.keys(), 32);
    // A pipe with nothing on its way is not stalled, however long it is quiet.
    second.flow(&mut a, &mut other);
    for _ in 0..30 {
        a.advance(BEACON);
        other.advance(BEACON);
        second.flow(&mut a, &mut other);
    }
    assert_eq!((a.closed.len(), other.closed.len()), (1, 0));
}

#[test]
fn promise_03_invariant_24_a_node_that_missed_the_last_change_sees_it_in_a_beacon() {
    let (mut a, mut r, mut link) = pair();
    commit(&mut a, &puts([("a", "lost")]));
    link.flow_with(&mut a, &mut r, |m| (!matches!(frame(&m), Frame::Slice(_))).then_some(m));
    assert_eq!(data(&r), Data::Live);
    a.advance(BEACON);
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Behind);
}

#[test]
fn three_beacon_times_without_a_word_end_the_pipe() {
    let (mut a, mut r, mut link) = pair();
    for _ in 0..10 {
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow(&mut a, &mut r);
    }
    assert!(r.closed.is_empty() && a.closed.is_empty());
    r.advance(BEACON * 5);
    assert_eq!(r.closed.len(), 1);
    assert_eq!(data(&r), Data::Cached);
}

#[test]
fn invariant_18_fresh_means_that_seq_rose_lately() {
    let (mut a, mut r, mut link) = pair();
    let fresh = |r: &Script<Replica>| r.protocol.status(r.now()).fresh;
    for _ in 0..5 {
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow(&mut a, &mut r);
    }
    assert!(fresh(&r));
    // A server that repeats an old HEAD keeps the pipe alive, and makes nothing fresh.
    let beacon = link.down.iter().rev().find(|f| matches!(f, Frame::Beacon(_))).expect("some").encode();
    for _ in 0..11 {
        r.advance(BEACON);
        r.arrive(link.below, [beacon.clone()]);
    }
    assert!(!fresh(&r) && r.closed.is_empty());
}

#[test]
fn a_second_server_is_kept_in_reserve_and_takes_over_at_once() {
    let (mut a, mut b, mut r) = (authority(Settings::default()), authority(Settings::default()), replica(1));
    commit(&mut a, &puts([("a", "1")]));
    commit(&mut b, &puts([("a", "1")]));
    let mut first = Link::new(&mut a, &mut r);
    first.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    let mut second = Link::new(&mut b, &mut r);
    second.flow(&mut b, &mut r);
    assert!(second.slices().is_empty());
    let at = commit(&mut b, &puts([("a", "2")]));
    second.flow(&mut b, &mut r);
    assert!(r.recv().is_none(), "a pipe in reserve carries nothing");
    r.lose(first.below);
    second.flow(&mut b, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position(), at);
    second.flow(&mut b, &mut r);
    assert_eq!(b.protocol.reached(at, Level::Applied), 1);
}

#[test]
fn a_boot_below_one_known_is_turned_away_and_the_node_told() {
    let mut a = authority(Settings::default());
    let with_boot = |boot| {
        Script::new(Replica::new(ReplicaSettings { node: Id([1; 16]), boot, ..ReplicaSettings::default() }))
    };
    let (mut new, mut old) = (with_boot(7), with_boot(3));
    Link::new(&mut a, &mut new).flow(&mut a, &mut new);
    Link::new(&mut a, &mut old).flow(&mut a, &mut old);
    assert_eq!(old.protocol.status(old.now()).stale_boot, Some(7));
    old.call(|r, _| r.set_identity(Id([1; 16]), 8));
    let mut link = Link::new(&mut a, &mut old);
    link.flow(&mut a, &mut old);
    assert!(link.down.iter().any(|f| matches!(f, Frame::Welcome(_))));
}

#[test]
fn a_node_of_another_cluster_is_turned_away() {
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("secret", "x")]));
    let settings = ReplicaSettings { cluster: Id([9; 16]), ..ReplicaSettings::default() };
    let mut r = Script::new(Replica::new(settings));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(matches!(&link.down[..], [Frame::Goodbye(_)]));
    assert_eq!((r.closed.len(), a.protocol.status().len()), (1, 0));
}

#[test]
fn promise_13_invariant_14_an_ack_above_the_head_is_not_believed() {
    let (mut a, _, link) = pair();
    let head = a.protocol.head().expect("committed").position;
    for position in [Position { rev: head.rev + 1, ..head }, Position { epoch: epoch(9), rev: 1 }] {
        let ack = Ack { namespace: "config".into(), position, level: Level::Applied, volatile: false };
        a.arrive(link.above, [Frame::Ack(ack).encode()]);
    }
    assert_eq!(a.protocol.status()[0].applied, Some(head));
}

#[test]
fn what_is_no_message_ends_the_pipe_and_nothing_else() {
    let (mut a, mut r, link) = pair();
    let (mut other, mut seen) = (replica(2), 0);
    let mut second = Link::new(&mut a, &mut other);
    for bytes in [
        &b""[..],
        b"\x01\x63\x00\x00",
        b"\x01\x08\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x07\x01\x00\x00",
        b"\x01\x01",
    ] {
        let pipe = a.open(64);
        a.arrive(pipe, [bytes]);
        a.drain(pipe, usize::MAX);
        seen += 1;
        assert_eq!(a.closed.len(), seen, "{bytes:?}");
        let mut r = replica(3);
        let pipe = r.open(64);
        r.arrive(pipe, [bytes]);
        r.drain(pipe, usize::MAX);
        assert_eq!(r.closed.len(), 1, "{bytes:?}");
    }
    second.flow(&mut a, &mut other);
    assert!(other.readiness().recv);
    // An optional message of a type that is not known is passed over.
    let optional = Frame::Unknown { kind: 99, optional: true }.encode();
    a.arrive(link.above, [optional.clone()]);
    r.arrive(link.below, [optional]);
    assert_eq!((a.closed.len(), r.closed.len()), (seen, 0));
}

#[test]
fn a_want_for_what_is_not_here_is_answered() {
    let (mut a, _, link) = pair();
    let want = Want { namespace: "other".into(), ..Want::default() };
    a.drain(link.above, usize::MAX);
    a.arrive(link.above, [Frame::Want(WantReason::New, vec![want]).encode()]);
    let said: Vec<Frame> = a.drain(link.above, usize::MAX).iter().map(frame).collect();
    assert!(said.iter().any(|f| matches!(f, Frame::Welcome(w) if w.namespaces.len() == 2)), "{said:?}");
}

#[test]
fn the_table_of_nodes_is_bounded() {
    let mut a = authority(Settings { nodes: 3, ..Settings::default() });
    for n in 1..=9 {
        let mut r = replica(n);
        let mut link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
        a.lose(link.above);
    }
    let names: Vec<String> = a.protocol.status().into_iter().map(|s| s.name).collect();
    assert_eq!(names.len(), 3);
    assert!(names.contains(&"n9".to_owned()));
}

#[test]
fn seq_goes_on_rising_over_a_restart_of_the_authority() {
    let (mut a, mut r, mut link) = pair();
    for _ in 0..5 {
        a.advance(BEACON);
        r.advance(BEACON);
        link.flow(&mut a, &mut r);
    }
    let seq = |link: &Link| {
        let heads =
            link.down.iter().filter_map(|f| if let Frame::Beacon(heads) = f { heads.first() } else { None });
        heads.map(|head| head.seq).max()
    };
    let before = seq(&link);
    let (head, state) = (a.protocol.head().cloned(), a.protocol.state().cloned());
    let origin = Origin::restored(head.expect("committed"), state.expect("committed"), 2);
    let mut a = Script::new(Distributor::new(Settings::default(), origin));
    r.lose(link.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(before.is_some() && seq(&link) > before, "{:?} after {before:?}", seq(&link));
    assert!(r.protocol.status(r.now()).fresh && link.slices().is_empty());
}

#[test]
fn invariant_14_a_node_that_came_back_is_here_when_its_old_pipe_ends_late() {
    let (mut a, mut r, old) = pair();
    r.lose(old.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    // The authority hears of the old pipe's end only now.
    a.lose(old.above);
    assert!(a.protocol.status()[0].connected);
    a.lose(link.above);
    assert!(!a.protocol.status()[0].connected);
}

/// The same epoch number as [`authority`]'s, and another history.
fn rogue() -> Script<Distributor> {
    let epoch = Epoch { number: 1, incarnation: Id([9; 16]) };
    Script::new(Distributor::new(Settings::default(), Origin::begin(epoch)))
}

#[test]
fn a_conflict_of_an_earlier_epoch_said_again_on_a_new_pipe_does_not_keep_the_new_epoch_away() {
    let (_, mut r, old) = pair();
    let mut b = rogue();
    commit(&mut b, &puts([("a", "other"), ("large", &"x".repeat(600_000))]));
    r.lose(old.below);
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!(data(&r), Data::Conflict);
    r.lose(link.below);
    b.lose(link.above);
    let prepared = b.protocol.prepare_epoch(epoch(2)).expect("above");
    let at = b.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    // The transfer is larger than a window: the word of the conflict comes in the middle of it.
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!(accept(&mut r, Level::Visible).position(), at);
    assert!(!b.protocol.status()[0].conflict);
}

#[test]
fn a_refusal_said_again_on_a_new_pipe_does_not_bring_again_what_the_node_holds() {
    let (mut a, mut r, mut link) = pair();
    let bad = commit(&mut a, &puts([("b", "bad")]));
    link.flow(&mut a, &mut r);
    r.recv().expect("an update");
    r.call(|p, cx| p.nack(cx, bad, NackCode::Validator, "no")).expect("given");
    link.flow(&mut a, &mut r);
    let good = commit(&mut a, &puts([("b", "good")]));
    link.flow(&mut a, &mut r);
    // Given, and not answered when the pipe breaks.
    assert_eq!(r.recv().expect("an update").position(), good);
    r.lose(link.below);
    a.lose(link.above);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(link.up.iter().any(|f| matches!(f, Frame::Nack(n) if n.position == bad)));
    assert_eq!(link.slices().len(), 0);
}

#[test]
fn who_refuses_the_newest_as_too_large_is_not_behind_for_what_came_before_it() {
    let mut a = authority(Settings::default());
    let limits = Limits { bytes: 1_000, ..Limits::default() };
    let mut r = Script::new(Replica::new(ReplicaSettings { limits, ..ReplicaSettings::default() }));
    commit(&mut a, &puts([("a", "1")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    link.flow(&mut a, &mut r);
    // A beacon names the next one, its content is lost, and then comes one that does not fit.
    commit(&mut a, &puts([("a", "2")]));
    link.flow_with(&mut a, &mut r, |m| (!matches!(frame(&m), Frame::Slice(_))).then_some(m));
    a.advance(BEACON);
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Behind);
    commit(&mut a, &puts([("a", &"3".repeat(2_000))]));
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Held);
}

#[test]
fn after_a_refusal_what_is_known_to_be_newer_is_still_known() {
    let (mut a, mut r, mut link) = pair();
    let bad = commit(&mut a, &puts([("b", "bad")]));
    link.flow(&mut a, &mut r);
    r.recv().expect("an update");
    let good = commit(&mut a, &puts([("b", "good")]));
    link.flow(&mut a, &mut r);
    r.call(|p, cx| p.nack(cx, bad, NackCode::Validator, "no")).expect("given");
    assert_eq!((data(&r), r.protocol.status(r.now()).newest), (Data::Behind, Some(good)));
}

#[test]
fn invariant_14_words_that_come_late_over_an_old_pipe_do_not_say_where_a_node_is() {
    let (mut a, mut r, mut old) = pair();
    let mut new = Link::new(&mut a, &mut r);
    new.flow(&mut a, &mut r);
    old.flow(&mut a, &mut r);
    r.call(|p, cx| p.retry(cx));
    let late = r.drain(old.below, usize::MAX);
    assert!(!late.is_empty());
    r.lose(old.below);
    new.flow(&mut a, &mut r);
    a.arrive(old.above, late);
    a.lose(old.above);
    assert!(a.protocol.status()[0].connected);
}

#[test]
fn invariant_14_a_report_of_an_earlier_boot_does_not_count_for_the_present_one() {
    let (mut a, mut r, old) = pair();
    let at = r.protocol.visible().map(|(head, _)| head.position).expect("applied");
    r.call(|p, cx| p.ack(cx, at, Level::Applied, false)).expect("visible");
    let late = r.drain(old.below, usize::MAX);
    assert!(!late.is_empty());
    // The node lost its disk and was started again.
    let settings = ReplicaSettings { node: Id([1; 16]), boot: 1, ..ReplicaSettings::default() };
    let mut r = Script::new(Replica::new(settings));
    let mut new = Link::new(&mut a, &mut r);
    new.flow(&mut a, &mut r);
    a.arrive(old.above, late);
    assert_eq!((a.protocol.status()[0].boot, a.protocol.status()[0].applied), (1, None));
}

#[test]
fn invariant_12_a_conflict_outlives_the_refusal_of_the_revision_that_showed_it() {
    let (mut a, mut b, mut r) = (authority(Settings::default()), rogue(), replica(1));
    commit(&mut a, &puts([("a", "1")]));
    let at = commit(&mut b, &puts([("a", "other")]));
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    r.recv().expect("an update");
    r.lose(link.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    r.call(|p, cx| p.nack(cx, at, NackCode::Validator, "no")).expect("given");
    r.call(|p, cx| p.retry(cx));
    link.flow(&mut a, &mut r);
    assert!(!r.readiness().recv);
    assert_eq!(data(&r), Data::Conflict);
}

#[test]
fn invariant_18_a_repeated_head_of_an_old_epoch_is_no_sign_of_life() {
    let (mut a, mut r, mut link) = pair();
    a.advance(BEACON);
    link.flow(&mut a, &mut r);
    let old = link.down.iter().rfind(|f| matches!(f, Frame::Beacon(heads) if !heads.is_empty())).cloned();
    let prepared = a.protocol.prepare_epoch(epoch(2)).expect("above");
    a.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    // The node hears of the new epoch and does not get its content, so it still shows the old one.
    let no_slices = |m: Message| (!matches!(frame(&m), Frame::Slice(_))).then_some(m);
    link.flow_with(&mut a, &mut r, no_slices);
    a.advance(BEACON);
    link.flow_with(&mut a, &mut r, no_slices);
    assert!(r.protocol.status(r.now()).fresh);
    for _ in 0..11 {
        r.advance(BEACON);
        r.arrive(link.below, [Frame::Beacon(Vec::new()).encode()]);
    }
    assert!(!r.protocol.status(r.now()).fresh);
    r.arrive(link.below, [old.expect("a beacon with a HEAD").encode()]);
    assert!(!r.protocol.status(r.now()).fresh);
}

#[test]
fn an_old_head_that_is_repeated_does_not_make_who_refused_the_newest_behind() {
    let mut a = authority(Settings::default());
    let limits = Limits { bytes: 1_000, ..Limits::default() };
    let mut r = Script::new(Replica::new(ReplicaSettings { limits, ..ReplicaSettings::default() }));
    commit(&mut a, &puts([("a", "1")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow_with(&mut a, &mut r, |m| (!matches!(frame(&m), Frame::Slice(_))).then_some(m));
    let old = link.down.iter().rfind(|f| matches!(f, Frame::Beacon(heads) if !heads.is_empty())).cloned();
    let old = old.unwrap_or_else(|| {
        a.advance(BEACON);
        frame(&a.drain(link.above, usize::MAX)[0])
    });
    commit(&mut a, &puts([("a", &"2".repeat(2_000))]));
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Held);
    r.arrive(link.below, [old.encode()]);
    assert_eq!(data(&r), Data::Behind);
    a.advance(BEACON);
    link.flow(&mut a, &mut r);
    assert_eq!(data(&r), Data::Held);
}
