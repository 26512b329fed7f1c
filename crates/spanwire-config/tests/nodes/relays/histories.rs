//! What is reported after the authority's store came back as an old copy: each revision is of the history that its mark says.

use super::*;
use crate::rollouts::{ask, stage};
use spanwire::protocol::DropReason;
use spanwire_config::wait::{Goal, Look, Outcome, Wait};
use spanwire_config::wire::client::{Selector, WaitAsk};
use spanwire_config::{CohortNode, Place};

/// The same first commit as that of [`three`].
fn old_copy(settings: Settings) -> Authority {
    let mut old = authority(settings);
    commit(&mut old, &puts([("a", "1"), ("b", "2"), ("z", &"z".repeat(400))]));
    old
}

/// A relay and a node below it at revision 3 of what an authority has lost.
fn lost() -> (Relay, Script<Replica>, Wire) {
    let (mut a, mut r, mut n, mut upper, mut lower) = three();
    for value in ["4", "5"] {
        commit(&mut a, &puts([("a", value)]));
        upper.flow(&mut a, &mut r);
        lower.flow(&mut r, &mut n);
        accept(&mut n, Level::Applied);
        lower.flow(&mut r, &mut n);
    }
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    upper.cut(&mut a, &mut r);
    (r, n, lower)
}

/// … and the old copy, at revision 2 of its own.
fn another_history() -> (Authority, Relay, Script<Replica>, Wire, Wire, Position) {
    let (mut r, mut n, mut lower) = lost();
    let mut old = old_copy(Settings::default());
    let mut upper = Wire::new(&mut old, &mut r);
    // Its table may come before the relay is judged.
    upper.flow(&mut old, &mut r);
    let at = commit(&mut old, &puts([("a", "new")]));
    r.advance(Duration::from_millis(100));
    upper.flow(&mut old, &mut r);
    lower.flow(&mut r, &mut n);
    (old, r, n, upper, lower, at)
}

const LEVELS: [Level; 3] = [Level::Stored, Level::Visible, Level::Applied];

/// What node 1 is known to have reached.
fn known(a: &mut Authority) -> [Option<Position>; 3] {
    let node = status(a, 1);
    LEVELS.map(|level| node.at(level))
}

fn reached(a: &Authority, at: Position) -> [usize; 3] {
    LEVELS.map(|level| a.protocol.reached(at, level))
}

#[test]
fn what_is_reported_behind_a_relay_that_holds_another_history_reaches_nothing_of_this_one() {
    let (mut old, mut r, mut n, mut upper, mut lower, at) = another_history();
    for _ in 0..3 {
        assert_eq!(old.protocol.reached(at, Level::Stored), 0);
        r.advance(Duration::from_millis(100));
        upper.flow(&mut old, &mut r);
        lower.flow(&mut r, &mut n);
    }
    let (relay, node) = (status(&mut old, 50), status(&mut old, 1));
    assert!(relay.conflict && node.conflict && node.path == [Id([50; 16])], "{relay:?} {node:?}");
}

#[test]
fn what_was_reported_behind_a_relay_of_another_history_counts_for_nothing_once_the_node_is_elsewhere() {
    let (mut old, mut r, mut n, mut upper, lower, at) = another_history();
    lower.cut(&mut r, &mut n);
    let mut direct = Wire::new(&mut old, &mut n);
    direct.flow(&mut old, &mut n);
    let node = status(&mut old, 1);
    assert!(node.connected && node.path.is_empty() && node.conflict, "{node:?}");
    assert_eq!((node.stored, node.visible, node.applied), (None, None, None));
    assert_eq!(old.protocol.reached(at, Level::Stored), 0);
    // The relay says late what it knew.
    r.advance(Duration::from_millis(100));
    upper.flow(&mut old, &mut r);
    assert_eq!(status(&mut old, 1).stored, None);
    assert_eq!(old.protocol.reached(at, Level::Stored), 0);
}

#[test]
fn what_was_reported_behind_a_relay_of_another_history_counts_for_nothing_once_that_has_lost_it() {
    let (mut old, mut r, mut n, upper, lower, at) = another_history();
    lower.cut(&mut r, &mut n);
    upper.cut(&mut old, &mut r);
    let mut r = Relay::restored(50, 1, None);
    let mut upper = Wire::new(&mut old, &mut r);
    upper.flow(&mut old, &mut r);
    assert_eq!((status(&mut old, 50).stored, status(&mut old, 50).conflict), (Some(at), false));
    assert_eq!(status(&mut old, 1).stored, None);
    assert_eq!(old.protocol.reached(at, Level::Stored), 0);
}

#[test]
fn what_is_reported_behind_a_relay_of_which_nothing_was_heard_counts_by_its_mark() {
    let (mut a, _, _, upper, _) = three();
    let at = a.protocol.head().map(Head::claim).expect("committed");
    let other = Claim { mark: ChainMark([7; 8]), ..at };
    // The way leads on to a relay that is not in the table, or only by its name.
    let far = |n: u8, path: &[u8], at: Option<Claim>| {
        let mut status = NodeStatus::new(Id([n; 16]), 1);
        status.path = path.iter().map(|n| Id([*n; 16])).collect();
        status.connected = at.is_some();
        let said = Said { stored: at, ..Said::default() };
        NodeReport { status, said, attempt: u32::from(at.is_some()), head: None }
    };
    let told = |nodes| {
        let report =
            spanwire_config::wire::Report { namespace: "config".into(), nodes, ..Default::default() };
        Frame::Report(Box::new(report)).encode()
    };
    // That of node 4 is not in the table at all.
    let nodes = vec![
        far(60, &[50], None),
        far(2, &[50, 60], Some(at)),
        far(3, &[50, 60], Some(other)),
        far(4, &[50, 61], Some(at)),
        far(5, &[50, 61], Some(other)),
    ];
    a.arrive(upper.above, [told(nodes)]);
    let stored = [2, 3, 4, 5].map(|n| status(&mut a, n).stored);
    assert_eq!(stored, [Some(at.position), None, Some(at.position), None]);
    assert_eq!([2, 3, 4, 5].map(|n| status(&mut a, n).conflict), [false, true, false, true]);
    assert_eq!(a.protocol.reached(at.position, Level::Stored), 3, "these two, and the one that was there");
}

/// Above the positions of the lost history and what would follow from them, so that who shows those is served by a relay
/// that does not know them.
fn go_on(old: &mut Authority) -> Position {
    commit(old, &puts([("a", "6")]));
    commit(old, &puts([("a", "7")]));
    commit(old, &puts([("a", "8")]))
}

#[test]
fn invariant_14_what_is_said_to_a_relay_that_lost_its_cache_counts_by_its_mark() {
    let (mut old, mut r, mut n, upper, lower, at) = another_history();
    lower.cut(&mut r, &mut n);
    upper.cut(&mut old, &mut r);
    let newest = go_on(&mut old);
    let mut r = Relay::restored(50, 1, None);
    let (mut upper, mut lower) = (Wire::new(&mut old, &mut r), Wire::new(&mut r, &mut n));
    upper.flow(&mut old, &mut r);
    lower.flow(&mut r, &mut n);
    let said =
        |f: &Frame| matches!(f, Frame::Ack(ack) if ack.position.rev == 3 && ack.level == Level::Applied);
    assert!(lower.up.iter().any(said), "it repeats what it reached of the lost history");
    r.advance(Duration::from_millis(100));
    upper.flow(&mut old, &mut r);
    assert_eq!((known(&mut old), reached(&old, at)), ([None; 3], [0; 3]));
    assert!(status(&mut old, 1).conflict && old.sender.counted("claims-unproved") > 0);
    // The relay cannot know, and brings it over: that counts, and no more than that.
    assert_eq!(accept(&mut n, Level::Stored).position(), newest);
    lower.flow(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut old, &mut r);
    assert_eq!(known(&mut old), [Some(newest), None, None]);
    assert!(!status(&mut old, 1).conflict);
}

#[test]
fn invariant_14_what_a_relay_was_told_before_another_brought_it_over_counts_by_its_mark() {
    let ((mut r, mut n, mut lower), mut old) = (lost(), old_copy(Settings::default()));
    let at = commit(&mut old, &puts([("a", "new")]));
    let newest = go_on(&mut old);
    let mut s = Relay::new(51);
    let (mut top, mut upper) = (Wire::new(&mut old, &mut s), Wire::new(&mut s, &mut r));
    let mut pass = |old: &mut Authority, s: &mut Relay, r: &mut Relay| {
        for _ in 0..3 {
            r.advance(Duration::from_millis(100));
            top.flow(old, s);
            upper.flow(s, r);
            s.advance(Duration::from_millis(100));
        }
        top.flow(old, s);
    };
    pass(&mut old, &mut s, &mut r);
    assert_eq!(r.machine.held().map(|(head, _)| head.position), Some(newest), "it was brought over");
    let node = status(&mut old, 1);
    assert_eq!((node.path.len(), node.conflict), (2, true));
    assert_eq!((known(&mut old), reached(&old, at)), ([None; 3], [0; 3]));
    lower.flow(&mut r, &mut n);
    assert_eq!(accept(&mut n, Level::Applied).position(), newest);
    lower.flow(&mut r, &mut n);
    pass(&mut old, &mut s, &mut r);
    assert_eq!((known(&mut old), status(&mut old, 1).conflict), ([Some(newest); 3], false));
}

#[test]
fn invariant_14_neither_a_gate_nor_a_wait_counts_what_a_lost_history_applied() {
    let (mut r, mut n, mut lower) = lost();
    let mut old = old_copy(Settings::default());
    let at = ask(&mut old, 100, &puts([("a", "new")]), vec![stage(&[])], false);
    let mut upper = Wire::new(&mut old, &mut r);
    upper.flow(&mut old, &mut r);
    lower.flow(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut old, &mut r);
    let (canary, audience) = old.memory.machine.cohort().expect("open");
    let member = CohortNode { node: Id([1; 16]), here: true, applied: false, refused: false };
    assert_eq!((canary, old.protocol.cohort(at, &audience)), (at, vec![member]), "it was at revision 3");
    for level in LEVELS {
        let (namespace, position, selector) = ("config".into(), Place::from(at), Selector::default());
        let wait = WaitAsk { namespace, position, level, timeout_ms: 0, selector };
        let goal = Goal::of(&old.memory.machine, &wait).expect("there");
        let nodes = old.protocol.status();
        let waited = Wait::new(&goal, &wait.selector, &nodes).look(&old.protocol, &nodes, true);
        let Look::Ended(Outcome::Waited(waited)) = waited else { panic!("{waited:?}") };
        assert_eq!((waited.ok.len(), waited.refused.len()), (0, 1), "another history at {level:?}");
    }
}

/// Of a node on a pipe of the authority: it says that it applied this.
fn claims(a: &mut Authority, pipe: PipeId, Claim { position, mark }: Claim) {
    let ack = Ack { namespace: "config".into(), position, mark, level: Level::Applied, volatile: false };
    a.arrive(pipe, [Frame::Ack(ack).encode()]);
}

#[test]
fn invariant_14_an_ack_counts_if_the_log_has_it_or_if_it_was_sent() {
    let mut a = old_copy(Settings { log_commits: 2, ..Settings::default() });
    let (mut n, mut late) = (replica(2), replica(1));
    let mut first = Wire::new(&mut a, &mut n);
    first.flow(&mut a, &mut n);
    let mut heads = vec![a.protocol.head().map(Head::claim).expect("committed")];
    for value in ["2", "3", "4", "5"] {
        commit(&mut a, &puts([("a", value)]));
        heads.extend(a.protocol.head().map(Head::claim));
    }
    let mut link = Wire::new(&mut a, &mut late);
    link.flow(&mut a, &mut late);
    // Who showed nothing has what was sent to it.
    claims(&mut a, link.above, heads[2]);
    assert_eq!(known(&mut a), [None; 3]);
    let newest = a.protocol.head().cloned().into_iter().collect();
    let want = Want { namespace: "config".into(), have: newest, ..Want::default() };
    a.arrive(link.above, [Frame::Want(WantReason::Other, vec![want]).encode()]);
    let Claim { position, mark } = heads[4];
    let above = Claim { position: Position { rev: position.rev + 1, ..position }, mark };
    let other = Claim { position, mark: heads[3].mark };
    let drops = |a: &Authority| {
        ["ack-of-another-history", "ack-of-unknown"].map(|why| a.sender.drops(DropReason::Own(why)))
    };
    // The log reaches back to the third.
    let none = [(above, [1, 1]), (other, [2, 1]), (Claim { mark, ..heads[2] }, [3, 1]), (heads[1], [3, 2])];
    for (none, dropped) in none {
        claims(&mut a, link.above, none);
        assert_eq!((known(&mut a), drops(&a)), ([None; 3], dropped), "{none:?}");
    }
    for some in [heads[2], heads[4]] {
        claims(&mut a, link.above, some);
        assert_eq!(known(&mut a), [Some(some.position); 3]);
    }
    // The second is on its way to the other node.
    claims(&mut a, first.above, heads[1]);
    assert_eq!(status(&mut a, 2).applied, Some(heads[1].position));
    // What counted counts on.
    for value in ["6", "7", "8"] {
        commit(&mut a, &puts([("a", value)]));
    }
    assert_eq!((known(&mut a), drops(&a)), ([Some(position); 3], [3, 2]));
}

#[test]
fn invariant_14_a_refusal_counts_if_the_log_has_what_it_names() {
    let mut a = old_copy(Settings::default());
    let mut n = replica(1);
    let mut link = Wire::new(&mut a, &mut n);
    link.flow(&mut a, &mut n);
    let Claim { position, mark } = a.protocol.head().map(Head::claim).expect("committed");
    let nack = |position: Position, mark: ChainMark, code: NackCode| {
        let (stays_at, text) = (Position::default(), "no".to_owned());
        Frame::Nack(Nack { namespace: "config".into(), position, mark, stays_at, code, text }).encode()
    };
    let above = Position { rev: 9, ..position };
    let words = [nack(above, mark, NackCode::Hook), nack(position, ChainMark([1; 8]), NackCode::Validator)];
    a.arrive(link.above, words);
    assert_eq!((status(&mut a, 1).refused.len(), a.sender.counted("refusals-unproved")), (0, 2));
    a.arrive(link.above, [nack(position, mark, NackCode::Validator)]);
    assert_eq!(status(&mut a, 1).refused, [(position, NackCode::Validator, "no".to_owned())]);
    // That it holds another history is no less true for what it names.
    a.arrive(link.above, [nack(above, mark, NackCode::Conflict)]);
    let node = status(&mut a, 1);
    assert_eq!((node.refused.len(), node.conflict), (1, true));
}

#[test]
fn invariant_14_what_a_record_shows_below_the_log_counts_once_it_is_judged() {
    let mut a = old_copy(Settings { log_commits: 1, ..Settings::default() });
    let first = a.protocol.head().cloned().expect("committed");
    for value in ["2", "3", "4"] {
        commit(&mut a, &puts([("a", value)]));
    }
    let mut r = Relay::new(50);
    let mut upper = Wire::new(&mut a, &mut r);
    upper.flow(&mut a, &mut r);
    let mut lost = first.clone();
    lost.chain[0] ^= 1;
    let told = |n: u8, shown: &Head| {
        let mut status = NodeStatus::new(Id([n; 16]), 1);
        (status.path, status.connected) = (vec![Id([50; 16])], true);
        // The hook has not run since something earlier.
        let at = Some(shown.claim());
        let applied = Some(Claim { mark: ChainMark([3; 8]), ..shown.claim() });
        let said = Said { stored: at, visible: at, applied, ..Said::default() };
        NodeReport { status, said, attempt: 1, head: Some(shown.clone()) }
    };
    let nodes = vec![told(1, &first), told(2, &lost)];
    let report = spanwire_config::wire::Report { namespace: "config".into(), nodes, ..Default::default() };
    // As if the machine were busy.
    a.sender.arrive(upper.above, [Frame::Report(Box::new(report)).encode()]);
    assert_eq!(known(&mut a), [None; 3]);
    a.look();
    assert_eq!(known(&mut a), [Some(first.position), Some(first.position), None]);
    let other = status(&mut a, 2);
    assert_eq!((other.stored, other.conflict, status(&mut a, 1).conflict), (None, true, false));
}
