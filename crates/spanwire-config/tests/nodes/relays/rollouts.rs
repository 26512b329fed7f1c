//! Rollouts through relays: both states go down, each node takes its own, and what a relay passes on is as it came.

use super::*;
use crate::rollouts::{ask, labelled, labels, open, step};
use spanwire_config::rollout::{Audience, Stage};
use spanwire_config::{CohortNode, Step};

/// Another rollout, after that of [`open`].
fn open_next(a: &mut Authority) -> Position {
    let all = Stage { share: 10_000, ..Stage::default() };
    ask(a, 110, &puts([("a", "3")]), vec![all], false)
}

/// An authority, a relay, a relay below that, and below each a canary and another node.
struct Tree {
    a: Authority,
    r: [Relay; 2],
    n: Vec<Script<Replica>>,
    up: [Wire; 2],
    wires: Vec<Wire>,
}

impl Tree {
    fn new() -> Tree {
        let (mut a, mut near, mut far) = (authority(Settings::default()), Relay::new(50), Relay::new(51));
        commit(&mut a, &puts([("a", "1"), ("z", &"z".repeat(400))]));
        let up = [Wire::new(&mut a, &mut near), Wire::new(&mut near, &mut far)];
        let node = |n, of: &[(&str, &str)]| Script::new(Replica::new(labelled(n, of)));
        let canary = [("canary", "yes")];
        let mut n = vec![node(1, &canary), node(2, &[]), node(3, &canary), node(4, &[])];
        let wires =
            n.iter_mut().enumerate().map(|(i, n)| Wire::new(if i < 2 { &mut near } else { &mut far }, n));
        let wires = wires.collect();
        let mut tree = Tree { a, r: [near, far], n, up, wires };
        tree.flow();
        tree
    }

    /// Everything arrives everywhere, and is applied.
    fn flow(&mut self) {
        for _ in 0..8 {
            self.r.iter_mut().for_each(|r| r.advance(Duration::from_millis(100)));
            self.up[0].flow(&mut self.a, &mut self.r[0]);
            let (near, far) = self.r.split_at_mut(1);
            self.up[1].flow(&mut near[0], &mut far[0]);
            for (i, (n, wire)) in self.n.iter_mut().zip(&mut self.wires).enumerate() {
                wire.flow(&mut self.r[i / 2], n);
                while let Some(update) = n.recv() {
                    let at = update.position();
                    n.call(|p, cx| p.ack(cx, at, Level::Applied, false)).expect("it was given");
                }
                wire.flow(&mut self.r[i / 2], n);
            }
        }
    }

    fn beacon(&mut self) {
        self.a.advance(BEACON);
        self.r.iter_mut().for_each(|r| r.advance(BEACON));
        self.n.iter_mut().for_each(|n| n.advance(BEACON));
        self.flow();
    }

    fn has(&self) -> Vec<String> {
        let value = |n: &Script<Replica>| {
            let (_, state) = n.protocol.visible().expect("something");
            String::from_utf8_lossy(state.get("a").expect("there").value()).into_owned()
        };
        self.n.iter().map(value).collect()
    }

    /// Invariant 7: what each relay shows was heard from above, byte for byte.
    #[track_caller]
    fn check_passed(&self) {
        for (i, wire) in self.up[1..].iter().chain(&self.wires).enumerate() {
            let above = if i == 0 || i < 3 { &self.up[0] } else { &self.up[1] };
            for head in wire.heads() {
                assert!(above.heads().contains(&head), "{head:?} was not heard from above");
            }
        }
    }
}

#[test]
fn promise_19_canaries_behind_relays_get_what_nobody_else_gets_until_it_is_promoted() {
    let mut t = Tree::new();
    let at = open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    assert_eq!(t.has(), ["2", "1", "2", "1"]);
    for r in &t.r {
        assert_eq!(r.machine.held().map(|(head, _)| head.position.rev), Some(1));
        assert_eq!(r.machine.canary().map(|(head, _)| head.position), Some(at));
    }
    // Both HEADs stay as new as the authority's.
    for _ in 0..3 {
        t.beacon();
    }
    for n in &t.n {
        assert!(n.protocol.status(n.now()).fresh);
        assert_eq!(data(n), Data::Live);
    }
    // The authority counts them.
    let audience = t.a.protocol.canary().expect("open").audience.clone();
    let member = |n| CohortNode { node: Id([n; 16]), here: true, applied: true, refused: false };
    assert_eq!(t.a.protocol.cohort(at, &audience), [member(1), member(3)]);
    step(&mut t.a, 101, Step::Next);
    t.flow();
    assert_eq!(t.has(), ["2", "2", "2", "2"], "the second stage is for all nodes");
    step(&mut t.a, 102, Step::Promote);
    t.flow();
    for r in &t.r {
        assert!(r.machine.canary().is_none());
        assert_eq!(r.machine.held().map(|(head, _)| (head.position, head.audience.len())), Some((at, 0)));
    }
    t.beacon();
    for n in &t.n {
        assert_eq!(n.protocol.visible().map(|(head, _)| head.audience.len()), Some(0));
    }
    t.check_passed();
}

#[test]
fn an_abort_reaches_canaries_behind_relays_and_nobody_goes_back() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    step(&mut t.a, 101, Step::Abort);
    t.flow();
    assert_eq!(t.has(), ["1", "1", "1", "1"]);
    for n in &t.n {
        assert_eq!(n.protocol.visible().map(|(head, _)| head.position.rev), Some(3));
        assert_eq!(n.counted("digest-failures"), 0);
    }
    assert!(t.r.iter().all(|r| r.machine.canary().is_none()));
    ask(&mut t.a, 102, &puts([("a", "4")]), vec![], false);
    t.flow();
    assert_eq!(t.has(), ["4", "4", "4", "4"]);
    t.check_passed();
}

#[test]
fn a_relay_that_comes_during_a_rollout_gets_what_is_for_all_first() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    let mut late = Relay::new(60);
    let mut wire = Wire::new(&mut t.a, &mut late);
    wire.flow(&mut t.a, &mut late);
    let revs: Vec<u64> = wire.slices().iter().map(|slice| slice.head.position.rev).collect();
    assert_eq!(revs, [1, 2]);
    assert!(wire.slices()[1].base.is_some(), "one on top of the other");
    assert!(late.machine.held().is_some() && late.machine.canary().is_some());
}

#[test]
fn a_relay_takes_no_canary_that_does_not_stand_on_what_it_holds() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    let mut late = Script::new(Replica::new(labelled(9, &[("canary", "yes")])));
    let mut wire = Wire::new(&mut t.a, &mut late);
    wire.flow(&mut t.a, &mut late);
    assert_eq!(wire.slices().last().map(|slice| slice.head.position.rev), Some(2), "a snapshot");
    let replayed: Vec<Vec<u8>> =
        wire.down.iter().filter(|f| matches!(f, Frame::Slice(_))).map(Frame::encode).collect();
    let mut relay = Relay::new(60);
    let wire = Wire::new(&mut t.a, &mut relay);
    relay.upper.arrive(wire.below, replayed);
    relay.turn();
    assert!(relay.machine.canary().is_none() && relay.upper.protocol.visible().is_none());
    assert_eq!(relay.upper.counted("canary-out-of-turn"), 1);
}

#[test]
fn a_promotion_and_the_next_rollout_may_reach_a_relay_that_stood_still() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    step(&mut t.a, 101, Step::Promote);
    open_next(&mut t.a);
    let down = t.a.drain(t.up[0].above, usize::MAX);
    t.r[0].upper.arrive(t.up[0].below, down);
    t.r[0].turn();
    let revs =
        [t.r[0].machine.held(), t.r[0].machine.canary()].map(|held| held.map(|(head, _)| head.position.rev));
    assert_eq!(revs, [Some(2), Some(3)]);
}

#[test]
fn who_holds_what_a_server_gets_to_know_hears_for_whom_that_is_before_the_next_canary_comes() {
    let mut t = Tree::new();
    // A server that knows the first revision alone, and a relay that holds the canary's, from another.
    let mut behind = Relay::new(60);
    let mut up = Wire::new(&mut t.a, &mut behind);
    up.flow(&mut t.a, &mut behind);
    open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    t.up[0].cut(&mut t.a, &mut t.r[0]);
    let mut wire = Wire::new(&mut behind, &mut t.r[0]);
    wire.flow(&mut behind, &mut t.r[0]);
    // In one go it is for all, and the next is a canary.
    step(&mut t.a, 101, Step::Promote);
    let at = open_next(&mut t.a);
    up.flow(&mut t.a, &mut behind);
    wire.flow(&mut behind, &mut t.r[0]);
    for r in [&behind, &t.r[0]] {
        assert_eq!(r.machine.canary().map(|(head, _)| head.position), Some(at));
    }
    assert_eq!(t.r[0].upper.counted("canary-out-of-turn"), 0);
}

#[test]
fn a_canary_out_of_turn_is_asked_for_as_soon_as_it_stands() {
    let mut t = Tree::new();
    let mut r = Relay::new(60);
    // One message at a time finds room.
    let (above, below) = (t.a.open(1), r.upper.open(64));
    let mut wire = Wire { above, below, down: Vec::new(), up: Vec::new() };
    let rev = |r: &Relay| r.machine.canary().map(|(head, _)| head.position.rev);
    wire.flow(&mut t.a, &mut r);
    open(&mut t.a, &puts([("a", "2")]));
    wire.flow(&mut t.a, &mut r);
    assert_eq!(rev(&r), Some(2));
    // The word of the next stage takes the room of the one that it is for all.
    step(&mut t.a, 101, Step::Next);
    step(&mut t.a, 102, Step::Promote);
    wire.flow(&mut t.a, &mut r);
    let at = open_next(&mut t.a);
    wire.flow(&mut t.a, &mut r);
    assert_eq!((rev(&r), r.upper.counted("canary-out-of-turn")), (Some(2), 1));
    // The next beacon says it.
    t.a.advance(BEACON);
    wire.flow(&mut t.a, &mut r);
    assert_eq!(rev(&r), Some(at.rev));
    for _ in 0..3 {
        t.a.advance(BEACON);
        wire.flow(&mut t.a, &mut r);
    }
    let wants = wire.up.iter().filter(|f| matches!(f, Frame::Want(..))).count();
    assert_eq!(wants, 1, "once");
}

#[test]
fn a_relay_that_starts_again_serves_both_states_from_its_cache() {
    let mut t = Tree::new();
    let at = open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    let cache = |r: &Relay| (r.cache.clone(), r.before.clone());
    let (newest, before) = cache(&t.r[0]);
    assert_eq!(newest.as_ref().map(|(head, _)| head.position), Some(at));
    let mut r = Relay::restored_of(50, 1, newest.clone(), before);
    let mut n = [labelled(7, &[("canary", "yes")]), labelled(8, &[])].map(|s| Script::new(Replica::new(s)));
    for (n, rev) in n.iter_mut().zip([2, 1]) {
        let mut wire = Wire::new(&mut r, n);
        wire.flow(&mut r, n);
        assert_eq!(accept(n, Level::Applied).position().rev, rev);
    }
    // A canary's state without what it stands on is none.
    let r = Relay::restored_of(50, 1, newest, None);
    assert!(
        r.machine.held().is_none() && r.machine.canary().is_none() && r.upper.protocol.visible().is_none()
    );
}

#[test]
fn a_relay_that_starts_again_after_a_stage_or_a_promotion_serves_what_was_for_whom_last() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    // Who there is without a server above: nodes that hold nothing, a canary and another.
    let serves = |r: &Relay| {
        let mut r = Relay::restored_of(50, 1, r.cache.clone(), r.before.clone());
        let nodes = [labelled(7, &[("canary", "yes")]), labelled(8, &[])];
        nodes.map(|settings| {
            let mut n = Script::new(Replica::new(settings));
            Wire::new(&mut r, &mut n).flow(&mut r, &mut n);
            accept(&mut n, Level::Applied).position().rev
        })
    };
    assert_eq!(serves(&t.r[0]), [2, 1]);
    step(&mut t.a, 101, Step::Next);
    t.flow();
    assert_eq!(serves(&t.r[0]), [2, 2], "the second stage is for all nodes");
    let for_all = |r: &Relay| Relay::restored_of(50, 1, r.cache.clone(), r.before.clone()).machine;
    assert_eq!(for_all(&t.r[0]).held().map(|(head, _)| head.position.rev), Some(1));
    step(&mut t.a, 102, Step::Promote);
    t.flow();
    assert_eq!(serves(&t.r[0]), [2, 2]);
    assert_eq!(for_all(&t.r[0]).held().map(|(head, _)| head.position.rev), Some(2));
    let canary = vec![Stage { labels: labels(&[("canary", "yes")]), share: 10_000, gate: None }];
    ask(&mut t.a, 103, &puts([("a", "3")]), canary, false);
    t.flow();
    assert_eq!(serves(&t.r[0]), [3, 2], "the next canary stands on what was promoted");
}

#[test]
fn what_is_promoted_while_the_disk_is_busy_is_written_before_the_next_canary() {
    let mut t = Tree::new();
    let canary = open(&mut t.a, &puts([("a", "2")]));
    let upper = ReplicaSettings { node: Id([60; 16]), kind: NodeKind::Relay, ..ReplicaSettings::default() };
    let mut upper = Script::new(Replica::new(upper));
    let settings = RelaySettings { node: Id([60; 16]), ..RelaySettings::default() };
    let mut machine = NsRelay::new(settings, None);
    let mut wire = Wire::new(&mut t.a, &mut upper);
    let mut writes = |t: &mut Tree, stored: Option<u64>| {
        wire.flow(&mut t.a, &mut upper);
        let stored = stored.map(|rev| RelayEvent::Stored(Position { rev, ..canary }, Ok(())));
        let events = stored.into_iter().chain(upper.call(|r, cx| r.relay_events(cx)));
        let actions: Vec<_> = events.flat_map(|event| machine.handle(event, upper.now())).collect();
        let write = |action| match action {
            RelayAction::Persist(head, _) => Some((head.position.rev, head.audience.is_empty())),
            _ => None,
        };
        actions.into_iter().filter_map(write).collect::<Vec<_>>()
    };
    assert_eq!(writes(&mut t, None), [(1, true)]);
    assert_eq!(writes(&mut t, Some(1)), [(2, false)]);
    step(&mut t.a, 101, Step::Promote);
    open_next(&mut t.a);
    assert_eq!(writes(&mut t, None), [], "one at a time");
    assert_eq!(writes(&mut t, Some(2)), [(2, true)]);
    assert_eq!(writes(&mut t, Some(2)), [(3, false)]);
    assert_eq!(writes(&mut t, Some(3)), []);
}

#[test]
fn invariant_11_below_a_relay_too() {
    let mut t = Tree::new();
    open(&mut t.a, &puts([("a", "2")]));
    t.flow();
    let cohort = |wire: &Wire| wire.heads().iter().any(|head| Audience::parse(&head.audience).is_some());
    let sent: Vec<bool> = t.wires.iter().map(cohort).collect();
    assert_eq!(sent, [true, false, true, false]);
}
