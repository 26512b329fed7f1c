//! Rollouts as nodes see them: two HEADs are current, and each node gets the newest that is for it.

use super::*;
use spanwire_config::rollout::{Audience, Plan, Stage, WHOLE};
use spanwire_config::{AuthorityEvent, CohortNode, Id, Intent, Place, Request, Step, Ticket};

pub(crate) fn labels(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn stage(of: &[(&str, &str)]) -> Stage {
    Stage { labels: labels(of), share: WHOLE, gate: None }
}

pub(crate) fn labelled(n: u8, of: &[(&str, &str)]) -> ReplicaSettings {
    ReplicaSettings { node: Id([n; 16]), labels: labels(of), ..ReplicaSettings::default() }
}

pub(crate) fn ask(
    a: &mut Authority,
    n: u8,
    changes: &ChangeSet,
    stages: Vec<Stage>,
    supersede: bool,
) -> Position {
    let rollout = (!stages.is_empty()).then_some(Plan { salt: Id([9; 16]), stages });
    let request = Request {
        request: Id([n; 16]),
        expect: a.memory.machine.position().map(Place::from),
        intent: Intent::Change(changes.clone()),
        author: String::new(),
        note: String::new(),
        stamp: 0,
        rollout,
        supersede,
    };
    let (position, left) = a.memory.commit_as(request);
    a.bring(left);
    position
}

/// For nodes with the label `canary` = `yes` first.
pub(crate) fn open(a: &mut Authority, changes: &ChangeSet) -> Position {
    ask(a, 100, changes, vec![stage(&[("canary", "yes")]), stage(&[])], false)
}

pub(crate) fn step(a: &mut Authority, n: u8, step: Step) {
    let at = a.memory.machine.position().map(Place::from).unwrap_or_default();
    let left = a.memory.tell(AuthorityEvent::Rollout(Ticket(0), Id([n; 16]), at, step));
    a.bring(left);
}

/// A node and its link to the authority.
struct End {
    r: Script<Replica>,
    link: Link,
}

impl End {
    fn new(a: &mut Authority, settings: ReplicaSettings) -> End {
        End::of(a, Script::new(Replica::new(settings)))
    }

    fn of(a: &mut Authority, mut r: Script<Replica>) -> End {
        let link = Link::new(a, &mut r);
        End { r, link }
    }

    /// Everything arrives, and is applied.
    fn flow(&mut self, a: &mut Authority) {
        loop {
            self.link.flow(a, &mut self.r);
            let Some(update) = self.r.recv() else { return };
            let at = update.position();
            self.r.call(|p, cx| p.ack(cx, at, Level::Applied, false)).expect("it was given");
        }
    }

    fn beacon(&mut self, a: &mut Authority) {
        a.advance(BEACON);
        self.r.advance(BEACON);
        self.flow(a);
    }

    fn has(&self, k: &str) -> Option<String> {
        let (_, state) = self.r.protocol.visible()?;
        state.get(k).map(|entry| String::from_utf8_lossy(entry.value()).into_owned())
    }

    fn at(&self) -> Option<u64> {
        self.r.protocol.visible().map(|(head, _)| head.position.rev)
    }
}

/// An authority with a first revision, and two nodes that have it: a canary and another.
fn world() -> (Authority, End, End) {
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("a", "1"), ("z", &"z".repeat(400))]));
    let mut canary = End::new(&mut a, labelled(1, &[("canary", "yes"), ("zone", "eu")]));
    let mut other = End::new(&mut a, labelled(2, &[("zone", "eu")]));
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!((canary.at(), other.at()), (Some(1), Some(1)));
    (a, canary, other)
}

fn beacons(link: &Link) -> Vec<&Head> {
    link.down.iter().filter_map(|f| if let Frame::Beacon(heads) = f { heads.last() } else { None }).collect()
}

#[test]
fn promise_19_a_canary_gets_what_nobody_else_gets_until_it_is_promoted() {
    let (mut a, mut canary, mut other) = world();
    let at = open(&mut a, &puts([("a", "2")]));
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!((canary.has("a"), other.has("a")), (Some("2".into()), Some("1".into())));
    // Each is shown what it is to have, and both are fresh by it.
    for (end, rev) in [(&mut canary, at.rev), (&mut other, 1)] {
        end.link.down.clear();
        end.beacon(&mut a);
        end.beacon(&mut a);
        assert_eq!(beacons(&end.link).last().map(|head| head.position.rev), Some(rev));
        assert_eq!(data(&end.r), Data::Live);
        assert!(end.r.protocol.status(end.r.now()).fresh);
    }
    let shown = canary.r.protocol.visible().map(|(head, _)| head.audience.len());
    assert!(shown > Some(0), "it is a cohort's");
    step(&mut a, 101, Step::Promote);
    canary.link.down.clear();
    other.link.down.clear();
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!((canary.has("a"), other.has("a")), (Some("2".into()), Some("2".into())));
    assert!(canary.link.slices().is_empty(), "it has it");
    assert_eq!(other.link.slices().len(), 1);
    // Who had it holds the HEAD for all from then on.
    assert_eq!(canary.r.protocol.visible().map(|(head, _)| head.audience.len()), Some(0));
}

#[test]
fn an_abort_goes_on_to_old_content_by_a_step_for_canaries_and_an_empty_one_for_all_others() {
    let (mut a, mut canary, mut other) = world();
    open(&mut a, &puts([("a", "2"), ("b", "new")]));
    canary.flow(&mut a);
    other.flow(&mut a);
    step(&mut a, 101, Step::Abort);
    canary.link.down.clear();
    other.link.down.clear();
    canary.flow(&mut a);
    other.flow(&mut a);
    for end in [&canary, &other] {
        assert_eq!((end.at(), end.has("a"), end.has("b")), (Some(3), Some("1".into()), None));
        assert_eq!(data(&end.r), Data::Live);
        assert_eq!(end.r.counted("digest-failures"), 0);
    }
    assert!(canary.link.payload() > 0 && other.link.payload() == 0);
    // A new release, for all.
    commit(&mut a, &puts([("a", "4")]));
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!((canary.has("a"), other.has("a")), (Some("4".into()), Some("4".into())));
}

#[test]
fn invariant_11_a_node_takes_nothing_that_is_not_for_it_whoever_sends_it() {
    let (mut a, mut canary, mut other) = world();
    open(&mut a, &puts([("a", "2")]));
    canary.flow(&mut a);
    // Who lies between sends it what went to the canary.
    let sent: Vec<Vec<u8>> = canary.link.down.iter().map(Frame::encode).collect();
    other.r.arrive(other.link.below, sent);
    assert!(other.r.recv().is_none());
    assert_eq!((other.at(), data(&other.r)), (Some(1), Data::Live));
    assert_eq!(other.r.protocol.status(other.r.now()).newest.map(|at| at.rev), Some(1));
}

#[test]
fn who_comes_during_a_rollout_gets_the_snapshot_of_its_own_state() {
    let (mut a, ..) = world();
    open(&mut a, &puts([("a", "2")]));
    let mut canary = End::new(&mut a, labelled(3, &[("canary", "yes")]));
    let mut other = End::new(&mut a, labelled(4, &[]));
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!((canary.has("a"), other.has("a")), (Some("2".into()), Some("1".into())));
    assert_eq!((canary.link.slices().len(), other.link.slices().len()), (1, 1));
}

#[test]
fn a_canary_that_refuses_keeps_what_is_for_all_and_gets_the_abort() {
    let (mut a, mut canary, _) = world();
    let bad = open(&mut a, &puts([("a", "bad")]));
    canary.link.flow(&mut a, &mut canary.r);
    canary.r.recv().expect("it is given");
    canary.r.call(|p, cx| p.nack(cx, bad, NackCode::Validator, "no")).expect("it was given");
    canary.flow(&mut a);
    canary.link.down.clear();
    canary.beacon(&mut a);
    assert!(canary.link.slices().is_empty());
    assert_eq!(beacons(&canary.link).last().map(|head| head.position.rev), Some(1), "what is for all");
    assert_eq!((canary.at(), data(&canary.r)), (Some(1), Data::Held));
    assert_eq!(
        a.protocol.cohort(bad, &a.protocol.canary().expect("open").audience),
        [CohortNode { node: Id([1; 16]), here: true, applied: false, refused: true }]
    );
    step(&mut a, 101, Step::Abort);
    canary.flow(&mut a);
    assert_eq!((canary.at(), canary.has("a"), canary.link.payload()), (Some(3), Some("1".into()), 0));
}

#[test]
fn who_was_behind_and_refuses_the_canary_gets_what_is_for_all() {
    let (mut a, mut canary, _) = world();
    a.lose(canary.link.above);
    canary.r.lose(canary.link.below);
    commit(&mut a, &puts([("a", "2")]));
    let bad = open(&mut a, &puts([("a", "bad")]));
    let mut canary = End::of(&mut a, canary.r);
    canary.link.flow(&mut a, &mut canary.r);
    let update = canary.r.recv().expect("it is given");
    assert_eq!(update.position(), bad);
    canary.r.call(|p, cx| p.nack(cx, bad, NackCode::Validator, "no")).expect("it was given");
    canary.flow(&mut a);
    assert_eq!((canary.at(), canary.has("a")), (Some(2), Some("2".into())));
    // A step cut at what is for all, not beyond it.
    assert!(canary.link.slices().last().is_some_and(|slice| slice.base.is_some()));
}

#[test]
fn a_canary_whose_labels_changed_stays_until_there_is_something_newer() {
    let (mut a, mut canary, _) = world();
    open(&mut a, &puts([("a", "2")]));
    canary.flow(&mut a);
    let (head, state) = canary.r.protocol.visible().map(|(h, s)| (h.clone(), s.clone())).expect("visible");
    a.lose(canary.link.above);
    let settings = ReplicaSettings { boot: 1, ..labelled(1, &[("zone", "eu")]) };
    let mut canary = End::of(&mut a, Script::new(Replica::restored(settings, head, state, Level::Applied)));
    canary.flow(&mut a);
    canary.beacon(&mut a);
    canary.beacon(&mut a);
    assert!(canary.link.slices().is_empty(), "never back");
    assert_eq!(
        (canary.has("a"), beacons(&canary.link).last().map(|h| h.position.rev)),
        (Some("2".into()), Some(1))
    );
    assert!(canary.r.protocol.status(canary.r.now()).fresh);
    ask(&mut a, 101, &puts([("b", "3")]), vec![], true);
    canary.flow(&mut a);
    assert_eq!(
        (canary.has("a"), canary.has("b"), canary.at()),
        (Some("1".into()), Some("3".into()), Some(3))
    );
}

#[test]
fn a_stage_that_leaves_a_node_out_takes_nothing_from_it_and_owes_it_nothing() {
    let (mut a, mut canary, mut other) = world();
    let stages = vec![stage(&[("canary", "yes")]), stage(&[("zone", "us")])];
    let large = "x".repeat(1 << 20);
    ask(&mut a, 100, &puts([("a", "2"), ("b", &large)]), stages, false);
    canary.flow(&mut a);
    // It hears of it, and the content has not arrived when the stage is over.
    let mut late = End::new(&mut a, labelled(3, &[("canary", "yes")]));
    let hello = late.r.drain(late.link.below, usize::MAX);
    a.arrive(late.link.above, hello);
    let first = a.drain(late.link.above, usize::MAX);
    late.r.arrive(late.link.below, first);
    let newest = late.r.protocol.status(late.r.now()).newest.map(|at| at.rev);
    assert_eq!((data(&late.r), newest), (Data::Behind, Some(2)));
    step(&mut a, 101, Step::Next);
    for end in [&mut canary, &mut other, &mut late] {
        end.beacon(&mut a);
        end.beacon(&mut a);
    }
    let has = [&canary, &other, &late].map(|end| end.has("a"));
    assert_eq!(has, [Some("2".into()), Some("1".into()), Some("1".into())]);
    assert_eq!(data(&late.r), Data::Live, "nothing is on its way that does not come");
}

#[test]
fn an_abort_stops_what_is_on_its_way() {
    let (mut a, mut canary, _) = world();
    let large = "x".repeat(1 << 20);
    open(&mut a, &puts([("a", &large)]));
    let first = a.drain(canary.link.above, usize::MAX);
    assert!(!first.is_empty(), "some of it is under way");
    canary.r.arrive(canary.link.below, first);
    step(&mut a, 101, Step::Abort);
    canary.link.down.clear();
    canary.flow(&mut a);
    assert_eq!((canary.at(), canary.has("a")), (Some(3), Some("1".into())));
    assert!(canary.link.slices().iter().all(|slice| slice.head.position.rev == 3), "nothing more of it");
    assert_eq!(canary.r.counted("verified"), 2);
}

#[test]
fn a_wider_stage_reaches_those_that_it_takes_in_with_the_head_that_names_them() {
    let (mut a, mut canary, mut other) = world();
    open(&mut a, &puts([("a", "2")]));
    canary.flow(&mut a);
    // Encoded for the first stage already.
    let mut late = End::new(&mut a, labelled(3, &[("canary", "yes")]));
    late.flow(&mut a);
    step(&mut a, 101, Step::Next);
    canary.flow(&mut a);
    other.flow(&mut a);
    assert_eq!(other.has("a"), Some("2".into()));
    for end in [&canary, &other] {
        let audience = end.r.protocol.visible().and_then(|(head, _)| Audience::parse(&head.audience));
        assert_eq!(audience.map(|cohort| cohort.labels.len()), Some(0), "the second stage's HEAD");
    }
}

#[test]
fn a_server_that_starts_again_goes_on_with_both() {
    let (mut a, mut canary, mut other) = world();
    open(&mut a, &puts([("a", "2")]));
    canary.flow(&mut a);
    let memory = a.memory.reopen(usize::MAX);
    let mut a = Authority::new(Settings::default(), memory);
    canary.r.lose(canary.link.below);
    other.r.lose(other.link.below);
    let (mut canary, mut other) = (End::of(&mut a, canary.r), End::of(&mut a, other.r));
    let mut late = End::new(&mut a, labelled(3, &[("canary", "yes")]));
    for end in [&mut canary, &mut other, &mut late] {
        end.flow(&mut a);
    }
    assert!(canary.link.slices().is_empty() && other.link.slices().is_empty());
    assert_eq!(
        (canary.has("a"), other.has("a"), late.has("a")),
        (Some("2".into()), Some("1".into()), Some("2".into()))
    );
    step(&mut a, 101, Step::Abort);
    for end in [&mut canary, &mut other, &mut late] {
        end.flow(&mut a);
        assert_eq!((end.has("a"), end.at()), (Some("1".into()), Some(3)));
    }
}
