//! What a node is sent, accepts and refuses, and what that costs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{prop_assert_eq, proptest};

use super::*;

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
fn a_commit_that_changes_nothing_costs_a_step_without_operations() {
    let (mut a, mut r, mut link) = pair();
    link.down.clear();
    let mut same = puts([("a", "1")]);
    same.delete(key("absent"));
    let at = commit(&mut a, &same);
    link.flow(&mut a, &mut r);
    assert_eq!((link.slices().len(), link.payload()), (1, 0));
    let update = accept(&mut r, Level::Applied);
    assert_eq!((update.position(), update.changed), (at, vec![]));
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

/// The places that it was told.
fn places(link: &Link) -> Vec<u32> {
    let place = |frame: &Frame| if let Frame::Waiting(_, place) = frame { Some(*place) } else { None };
    link.down.iter().filter_map(place).collect()
}

#[test]
fn invariant_22_who_waits_for_a_slot_is_told_its_place_and_asks_nobody_else_while_that_gets_better() {
    let mut a = authority(Settings { slots: 1, ..Settings::default() });
    let mut changes = ChangeSet::new();
    (0..32).for_each(|n| changes.put(key(&format!("k{n}")), 0, vec![n; 64 << 10]));
    commit(&mut a, &changes);
    let (mut stopped, mut second, mut third) = (replica(1), replica(2), replica(3));
    let first = Link::new(&mut a, &mut stopped);
    a.arrive(first.above, stopped.drain(first.below, usize::MAX));
    let mut before = Link::new(&mut a, &mut second);
    before.flow(&mut a, &mut second);
    let mut behind = Link::new(&mut a, &mut third);
    behind.flow(&mut a, &mut third);
    let waiting = |r: &Script<Replica>| r.protocol.status(r.now()).waiting;
    assert_eq!((places(&before), places(&behind)), (vec![1], vec![2]));
    assert_eq!((waiting(&second), waiting(&third)), (Some(1), Some(2)));
    // The first in line goes; what has no better place is told nothing.
    a.lose(before.above);
    second.lose(before.below);
    assert_eq!(waiting(&second), None);
    for _ in 0..2 {
        a.advance(BEACON);
        third.advance(BEACON);
        behind.flow(&mut a, &mut third);
    }
    assert_eq!((places(&behind), waiting(&third)), (vec![2, 1], Some(1)));
    // The one that stopped is closed, and the slot is free.
    for _ in 0..9 {
        a.advance(BEACON);
        third.advance(BEACON);
        behind.flow(&mut a, &mut third);
    }
    assert_eq!((accept(&mut third, Level::Stored).state.keys(), waiting(&third)), (32, None));
    assert_eq!(places(&behind), [2, 1]);
}

#[test]
fn invariant_23_a_queue_that_moves_withholds_nothing_and_one_that_stands_does() {
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("a", "1")]));
    let mut r = replica(1);
    let mut link = Link::new(&mut a, &mut r);
    let asks =
        |link: &Link| link.up.iter().filter(|f| matches!(f, Frame::Want(WantReason::Other, _))).count();
    // Beacons and places come, and no data.
    let mut seconds = |link: &mut Link, place: &dyn Fn(u32) -> u32| {
        for second in 0..100 {
            a.advance(BEACON);
            r.advance(BEACON);
            let waiting = Frame::Waiting("config".into(), place(second)).encode();
            r.arrive(link.below, [waiting]);
            link.flow_with(&mut a, &mut r, |m| Some(m).filter(|m| !matches!(frame(m), Frame::Slice(_))));
        }
    };
    seconds(&mut link, &|second| 1_000 - second);
    assert_eq!(asks(&link), 0);
    // To go to and fro is to stand.
    seconds(&mut link, &|second| 901 + second % 2);
    assert_eq!(asks(&link), 3);
}

#[test]
fn invariant_23_a_node_that_says_what_it_took_at_beacon_time_has_not_stopped() {
    let seconds = Duration::from_secs;
    for (beacon, stall) in
        [(seconds(15), seconds(10)), (seconds(9), seconds(10)), (seconds(3_600), seconds(1))]
    {
        let (mut a, mut r) = (authority(Settings { beacon, stall, ..Settings::default() }), replica(1));
        let mut link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
        for n in 0..300 {
            if n % 7 == 0 {
                // Far less than half a window.
                commit(&mut a, &puts([("a", &n.to_string())]));
            }
            a.advance(BEACON);
            r.advance(BEACON);
            link.flow(&mut a, &mut r);
            while r.readiness().recv {
                accept(&mut r, Level::Applied);
                link.flow(&mut a, &mut r);
            }
        }
        assert_eq!((&a.closed[..], &r.closed[..]), (&[][..], &[][..]), "a beacon every {beacon:?}");
    }
    // One that takes nothing at all is still closed, only later.
    let (mut a, mut r) = (authority(Settings { beacon: seconds(15), ..Settings::default() }), replica(1));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    commit(&mut a, &puts([("a", "1")]));
    a.advance(seconds(29));
    assert!(a.is_open(link.above));
    (0..2).for_each(|_| a.advance(seconds(15)));
    assert!(!a.is_open(link.above));
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

#[test]
fn a_transfer_that_the_node_has_already_is_acknowledged_all_the_same() {
    let (mut a, mut r, mut link) = pair();
    r.call(|r, cx| r.retry(cx));
    let mut up = r.drain(link.below, usize::MAX);
    // As large as a window, so that nothing follows it before it is acknowledged.
    commit(&mut a, &puts([("a", &"2".repeat(300_000))]));
    loop {
        let down = a.drain(link.above, usize::MAX);
        if down.is_empty() {
            break;
        }
        r.arrive(link.below, down);
        let credit = r.drain(link.below, usize::MAX);
        a.arrive(link.above, credit);
    }
    accept(&mut r, Level::Applied);
    // The older request and the report come in one: the sender forgets what was in flight, and sends it again.
    up.extend(r.drain(link.below, usize::MAX));
    a.arrive(link.above, up);
    link.flow(&mut a, &mut r);
    let at = commit(&mut a, &puts([("a", "3")]));
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position(), at);
}

proptest! {
    #[test]
    fn invariant_08_what_was_deleted_stays_away_until_it_is_put_again(
        steps in proptest::collection::vec((0..4_u8, 0..6_u8), 1..60),
        log in 1..8_usize,
    ) {
        // A short log: who was away gets merged steps, or a snapshot.
        let mut a = authority(Settings { log_commits: log, ..Settings::default() });
        let mut r = replica(1);
        let mut link = Some(Link::new(&mut a, &mut r));
        let (mut alive, mut seen) = (BTreeSet::new(), BTreeMap::new());
        // At the end all of it arrives.
        for (what, n) in steps.into_iter().chain([(2, 0), (2, 0)]) {
            let name = key(&format!("k{n}"));
            let mut changes = ChangeSet::new();
            match what {
                0 => {
                    changes.put(name.clone(), 0, "v");
                    alive.insert(name);
                }
                1 => {
                    changes.delete(name.clone());
                    alive.remove(&name);
                }
                2 => {
                    let link = link.get_or_insert_with(|| Link::new(&mut a, &mut r));
                    link.flow(&mut a, &mut r);
                    while r.readiness().recv {
                        let update = accept(&mut r, Level::Stored);
                        let keys: BTreeSet<Key> = update.state.iter().map(|(key, _)| key.clone()).collect();
                        prop_assert_eq!(Some(&keys), seen.get(&update.position().rev));
                        link.flow(&mut a, &mut r);
                    }
                    continue;
                }
                _ => {
                    if let Some(link) = link.take() {
                        a.lose(link.above);
                        r.lose(link.below);
                    }
                    continue;
                }
            }
            let at = commit(&mut a, &changes);
            seen.insert(at.rev, alive.clone());
        }
        let visible = r.protocol.visible().map(|(head, _)| head.position);
        prop_assert_eq!(visible, a.protocol.head().map(|head| head.position));
    }
}
