//! Rollouts: opened, counted, promoted, aborted, superseded, and found again after a crash.

use std::time::Duration;

use super::*;
use crate::Step;
use crate::rollout::{Audience, Gate, Plan, Stage, WHOLE};
use crate::source::LogCommit;

fn stage(percent: u16, gate: Option<Gate>) -> Stage {
    Stage { share: percent * 100, gate, ..Stage::default() }
}

fn gate(applied: u16, refusals: u32, bake: u64) -> Option<Gate> {
    Some(Gate { applied: applied * 100, refusals, bake: Duration::from_secs(bake) })
}

fn rolled(n: u64, k: &str, v: &str, stages: Vec<Stage>) -> Request {
    Request { rollout: Some(Plan { salt: id(7), stages }), ..put(n, k, v) }
}

fn superseding(n: u64, k: &str, v: &str) -> Request {
    Request { supersede: true, ..put(n, k, v) }
}

fn at(seconds: u64) -> Time {
    Time::from_start(Duration::from_secs(seconds))
}

fn node(n: u64, here: bool, applied: bool, refused: bool) -> CohortNode {
    CohortNode { node: id(n), here, applied, refused }
}

impl Rig {
    /// One that has a first revision with `a` = `1`.
    fn with_one() -> Rig {
        let mut rig = Rig::serving(settings());
        rig.committed(put(1, "a", "1"));
        rig
    }

    fn step(&mut self, n: u64, rev: u64, step: Step) -> Answer {
        self.ask_now(|ticket| AuthorityEvent::Rollout(ticket, id(n), place(1, rev), step))
    }

    /// The cohort is counted, twice: a stage's first count is of who is there.
    fn count(&mut self, seconds: u64, nodes: &[CohortNode]) {
        for _ in 0..2 {
            let Some(of) = self.machine.cohort() else { return };
            let actions = self.machine.handle(AuthorityEvent::Cohort(of, nodes.to_vec()), at(seconds));
            self.act(actions);
            self.sync_all();
        }
    }

    fn values(&self) -> [Option<String>; 2] {
        let value =
            |state: &State| state.get("a").map(|entry| String::from_utf8_lossy(entry.value()).into_owned());
        let durable = self.machine.durable().expect("durable");
        [value(&durable.state), value(&self.machine.for_all().expect("durable").state)]
    }

    fn open(&self) -> Option<(usize, bool)> {
        self.machine.rollout(at(0)).map(|(open, ..)| (open.stage, open.paused))
    }
}

fn both(newest: &str, all: &str) -> [Option<String>; 2] {
    [Some(newest.into()), Some(all.into())]
}

#[test]
fn invariant_06_a_rollout_is_durable_before_a_head_shows_it_and_each_stage_too() {
    let mut rig = Rig::with_one();
    let published = rig.published.len();
    let ticket = rig.commit(rolled(2, "a", "2", vec![stage(10, None), stage(50, None)]));
    assert_eq!((rig.answer(ticket), rig.published.len(), rig.open()), (None, published, None));
    rig.sync();
    assert!(matches!(rig.answer(ticket), Some(Answer::Committed { .. })));
    let head = rig.published.last().expect("published").head.clone();
    let audience = Audience::parse(&head.audience).expect("a cohort");
    assert_eq!((audience.rollout, audience.salt, audience.share), (id(2), id(7), 1_000));
    assert_eq!((head.prev_rev, head.position.rev), (2, 3));
    assert_eq!((rig.values(), rig.open()), (both("2", "1"), Some((0, false))));
    let next = rig.ask(|t| AuthorityEvent::Rollout(t, id(3), place(1, 3), Step::Next));
    assert!(rig.answer(next).is_none() && rig.shown.is_empty());
    rig.sync();
    assert!(
        matches!(rig.answer(next), Some(Answer::Committed { position, replay: false, .. }) if position.rev == 3)
    );
    let later = rig.shown.pop().expect("shown");
    assert_eq!(Audience::parse(&later.audience).map(|cohort| cohort.share), Some(5_000));
    let unchanged = |head: &Head| Head { audience: bytes::Bytes::new(), ..head.clone() };
    assert_eq!(unchanged(&later), unchanged(&head), "nothing but the audience");
    // After the last stage it is for all, at the same revision.
    assert!(matches!(rig.step(4, 3, Step::Next), Answer::Committed { .. }));
    assert_eq!(rig.shown.pop().map(|head| (head.audience.len(), head.position.rev)), Some((0, 3)));
    assert_eq!((rig.values(), rig.open()), (both("2", "2"), None));
}

#[test]
fn while_a_rollout_is_open_a_commit_is_told_so_unless_it_supersedes() {
    let mut rig = Rig::with_one();
    rig.committed(put(2, "b", "1"));
    // Said while the opening itself is with the store, too.
    let opening = rig.commit(rolled(3, "a", "2", vec![stage(10, None)]));
    let during = rig.commit(put(4, "b", "2"));
    assert!(rig.answer(during).is_none(), "it depends on what is not durable");
    rig.sync_all();
    assert!(matches!(rig.answer(opening), Some(Answer::Committed { .. })));
    assert_eq!(rig.answer(during), Some(Answer::Open(place(1, 4))));
    assert_eq!(rig.commit_now(put(5, "b", "2")), Answer::Open(place(1, 4)));
    assert_eq!(rig.commit_now(rolled(6, "b", "2", vec![stage(10, None)])), Answer::Open(place(1, 4)));
    let other = Request { expect: Some(place(1, 3)), ..superseding(7, "b", "2") };
    assert_eq!(
        rig.commit_now(other),
        Answer::Conflict { head: place(1, 4) },
        "expect is the rollout's revision"
    );
    let right = Request { expect: Some(place(1, 4)), ..superseding(8, "b", "2") };
    assert_eq!(rig.committed(right).rev, 5);
    // The operations apply to what all others have.
    assert_eq!((rig.values(), rig.open()), (both("1", "1"), None));
    assert_eq!(
        rig.machine.read(None).expect("newest").1.get("b").map(|b| b.value().to_vec()),
        Some(b"2".to_vec())
    );
    assert!(rig.machine.is_aborted(place(1, 4)) && !rig.machine.is_aborted(place(1, 3)));
    let head = rig.head();
    assert_eq!((head.prev_rev, head.audience.len()), (4, 0));
    assert_eq!(rig.committed(put(9, "b", "3")).rev, 6);
}

#[test]
fn what_opens_or_ends_a_rollout_is_alone_in_its_batch() {
    let mut rig = Rig::with_one();
    let first = rig.published.len();
    // The first is with the store; all others gather.
    rig.commit(put(2, "b", "1"));
    rig.commit(put(3, "c", "1"));
    rig.commit(put(4, "d", "1"));
    rig.commit(rolled(5, "a", "2", vec![stage(10, None)]));
    rig.commit(superseding(6, "e", "1"));
    rig.commit(put(7, "f", "1"));
    rig.commit(put(8, "g", "1"));
    rig.sync_all();
    let heads: Vec<(u64, bool)> =
        rig.published[first..].iter().map(|p| (p.head.position.rev, p.head.audience.is_empty())).collect();
    assert_eq!(heads, [(3, true), (5, true), (6, false), (7, true), (9, true)]);
    for published in &rig.published {
        assert_eq!(published.state.recompute(), published.head.digest);
    }
    assert_eq!(rig.values(), both("1", "1"));
}

#[test]
fn an_abort_goes_on_to_the_old_content_and_nobody_goes_back() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None)]));
    let Answer::Committed { position, .. } = rig.step(3, 3, Step::Abort) else { panic!() };
    assert_eq!((position.rev, rig.values()), (4, both("1", "1")));
    let (head, before) = (rig.head(), rig.published[rig.published.len() - 2].head.clone());
    assert_eq!((head.prev_rev, head.chain), (3, chain(&before.chain, 4, &head.digest)));
    assert_eq!(head.digest, rig.published[rig.published.len() - 3].head.digest);
    assert!(rig.machine.is_aborted(place(1, 3)));
    let Some((_, LogCommit { note, .. })) = rig.machine.history().next() else { panic!() };
    assert_eq!(note, "rollout aborted: 1:3");
    // Invariant 15: a repeat aborts nothing else.
    rig.committed(rolled(4, "a", "3", vec![stage(10, None)]));
    assert!(
        matches!(rig.step(3, 3, Step::Abort), Answer::Committed { position, replay: true, .. } if position.rev == 4)
    );
    assert_eq!(rig.open(), Some((0, false)));
}

#[test]
fn invariants_15_16_a_step_names_its_revision_and_its_request() {
    let mut rig = Rig::with_one();
    assert!(matches!(rig.step(2, 2, Step::Promote), Answer::Invalid(Invalid::Rollout(_))), "none is open");
    rig.committed(rolled(3, "a", "2", vec![stage(10, None)]));
    assert_eq!(rig.step(4, 2, Step::Promote), Answer::Conflict { head: place(1, 3) });
    // A repeat during its sync waits for it; another step is told to come again.
    let first = rig.ask(|t| AuthorityEvent::Rollout(t, id(5), place(1, 3), Step::Pause));
    let again = rig.ask(|t| AuthorityEvent::Rollout(t, id(5), place(1, 3), Step::Pause));
    let other = rig.ask(|t| AuthorityEvent::Rollout(t, id(6), place(1, 3), Step::Abort));
    assert_eq!((rig.answer(first), rig.answer(again), rig.answer(other)), (None, None, Some(Answer::Busy)));
    rig.sync_all();
    assert!(matches!(rig.answer(first), Some(Answer::Committed { replay: false, .. })));
    assert!(matches!(rig.answer(again), Some(Answer::Committed { replay: true, .. })));
    assert_eq!(rig.open(), Some((0, true)));
    assert!(matches!(rig.step(7, 3, Step::Resume), Answer::Committed { .. }));
    assert_eq!(rig.open(), Some((0, false)));
    // Known after a restart as well, and it does not pause again.
    let mut rig = rig.restart(After::Nothing);
    assert!(matches!(rig.step(5, 3, Step::Pause), Answer::Committed { replay: true, .. }));
    assert_eq!(rig.open(), Some((0, false)));
    // Its id is no commit's, a commit's id is no step's, and one that went on is none that aborts.
    let used = Answer::Invalid(Invalid::Used(place(1, 3)));
    assert_eq!(rig.commit_now(put(5, "a", "9")), used);
    assert_eq!(rig.step(5, 3, Step::Abort), used);
    assert_eq!(rig.step(3, 3, Step::Pause), used);
    assert_eq!(rig.open(), Some((0, false)));
}

#[test]
fn an_abort_is_somebodys_and_one_by_a_gate_has_its_time() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None)]));
    let by = By { author: "ana".into(), note: "too slow".into(), stamp: 77, expect: None };
    let abort = |ticket| AuthorityEvent::Rollout(ticket, id(3), place(1, 3), Step::Abort);
    let answer = rig.ask_now(|ticket| AuthorityEvent::By(Box::new(by.clone()), Box::new(abort(ticket))));
    assert!(matches!(answer, Answer::Committed { .. }), "{answer:?}");
    let told = |rig: &Rig| {
        let (_, commit) = rig.machine.history().next().expect("it is kept");
        (commit.author.clone(), commit.note.clone(), commit.stamp)
    };
    assert_eq!(told(&rig), ("ana".into(), "too slow".into(), 77));
    let long = By { author: "x".repeat(257), ..by };
    rig.committed(rolled(
        4,
        "a",
        "3",
        vec![stage(10, Some(Gate { applied: WHOLE, refusals: 0, bake: Duration::ZERO }))],
    ));
    let abort = |ticket| AuthorityEvent::Rollout(ticket, id(5), place(1, 5), Step::Abort);
    let answer = rig.ask_now(|ticket| AuthorityEvent::By(Box::new(long), Box::new(abort(ticket))));
    assert_eq!(answer, Answer::Invalid(Invalid::TooLong("author")));
    let refuses = CohortNode { node: id(1), here: true, applied: false, refused: true };
    for _ in 0..2 {
        let Some(of) = rig.machine.cohort() else { break };
        let by = By { stamp: 99, ..By::default() };
        let event = AuthorityEvent::By(Box::new(by), Box::new(AuthorityEvent::Cohort(of, vec![refuses])));
        let actions = rig.machine.handle(event, at(1));
        rig.act(actions);
        rig.sync_all();
    }
    assert_eq!(told(&rig), (String::new(), "rollout aborted by its gate: 1:5".into(), 99));
}

#[test]
fn a_promotion_under_way_is_not_superseded_with_what_was_before_it() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None)]));
    rig.ask(|t| AuthorityEvent::Rollout(t, id(3), place(1, 3), Step::Promote));
    let early = rig.commit(superseding(4, "b", "1"));
    assert_eq!(rig.answer(early), Some(Answer::Busy));
    rig.sync_all();
    rig.committed(superseding(4, "b", "1"));
    assert_eq!(rig.values(), both("2", "2"));
}

#[test]
fn a_gate_passes_when_enough_have_applied_few_refuse_and_the_time_is_over() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, gate(75, 1, 60)), stage(50, gate(100, 0, 0))]));
    let some = |applied: u64, refused: u64| {
        (1..=4).map(|n| node(n, true, n <= applied, n > 4 - refused)).collect::<Vec<_>>()
    };
    rig.count(100, &[]);
    rig.count(10_000, &[]);
    assert_eq!(rig.open(), Some((0, false)), "an empty cohort passes nothing");
    rig.count(10_001, &some(2, 1));
    assert_eq!(rig.open(), Some((0, false)), "half are not three quarters");
    rig.count(10_002, &some(3, 1));
    assert_eq!(rig.open(), Some((1, false)));
    // The next stage is counted anew, and its time runs from its own start.
    let all: Vec<_> = (1..=9).map(|n| node(n, true, n != 9, false)).collect();
    rig.count(10_003, &all);
    assert_eq!(rig.open(), Some((1, false)));
    let (_, tally, _) = rig.machine.rollout(at(10_003)).expect("open");
    assert_eq!(tally, Tally { nodes: 9, applied: 8, refused: 0 });
    rig.count(10_004, &(1..=9).map(|n| node(n, true, true, false)).collect::<Vec<_>>());
    assert_eq!((rig.open(), rig.values()), (None, both("2", "2")));
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(3), "the same revision");
}

#[test]
fn a_gate_waits_for_its_bake_time_and_fails_by_refusals() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, gate(50, 1, 60))]));
    rig.count(0, &[node(1, true, true, false), node(2, true, false, true)]);
    rig.count(59, &[node(1, true, true, false), node(2, true, false, true)]);
    assert_eq!(rig.open(), Some((0, false)));
    rig.count(60, &[node(1, true, true, true), node(2, true, false, true)]);
    assert_eq!((rig.open(), rig.values()), (None, both("1", "1")), "two refusals are one too many");
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(4));
    assert!(rig.machine.is_aborted(place(1, 3)));
}

#[test]
fn who_left_counts_as_not_applied_and_who_joined_counts_over_a_restart_too() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, gate(100, 0, 0))]));
    rig.count(0, &[node(1, true, true, false), node(2, true, false, false), node(9, false, true, false)]);
    rig.count(1, &[node(1, true, true, false), node(2, false, true, false)]);
    assert_eq!(rig.open(), Some((0, false)), "2 has left");
    let mut rig = rig.restart(After::Nothing);
    assert_eq!((rig.open(), rig.values()), (Some((0, false)), both("2", "1")));
    rig.count(0, &[node(1, true, true, false)]);
    assert_eq!(rig.open(), Some((0, false)), "2 is not back");
    rig.count(1, &[node(1, true, true, false), node(2, true, true, false), node(3, true, false, false)]);
    assert_eq!(rig.open(), Some((0, false)), "3 is new, and has not applied it");
    rig.count(2, &[node(1, true, true, false), node(2, true, true, false), node(3, true, true, false)]);
    assert_eq!(rig.open(), None);
}

#[test]
fn a_paused_rollout_and_one_without_a_gate_do_not_go_on_by_themselves() {
    let done = [node(1, true, true, false)];
    let broken = [node(1, true, true, true)];
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, gate(100, 0, 0))]));
    rig.step(3, 3, Step::Pause);
    rig.count(0, &done);
    rig.count(1, &broken);
    assert_eq!(rig.open(), Some((0, true)));
    // Nor after a restart.
    let mut rig = rig.restart(After::Nothing);
    rig.count(2, &done);
    assert_eq!(rig.open(), Some((0, true)));
    rig.step(4, 3, Step::Resume);
    rig.count(3, &done);
    assert_eq!(rig.open(), None);
    rig.committed(rolled(5, "a", "3", vec![stage(10, None)]));
    rig.count(4, &done);
    rig.count(5, &broken);
    assert_eq!(rig.open(), Some((0, false)));
}

#[test]
fn a_count_of_another_stage_counts_for_nothing() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None), stage(50, gate(100, 0, 0))]));
    let old = rig.machine.cohort().expect("open");
    rig.step(3, 3, Step::Next);
    for _ in 0..3 {
        let nodes = vec![node(1, true, true, false)];
        let actions = rig.machine.handle(AuthorityEvent::Cohort(old.clone(), nodes), at(9));
        assert!(actions.is_empty(), "{actions:?}");
    }
    assert_eq!(rig.open(), Some((1, false)));
}

#[test]
fn an_open_rollout_survives_any_crash_as_it_was_before_or_after_each_step() {
    let steps: [fn(&mut Rig) -> Ticket; 5] = [
        |rig| rig.commit(rolled(2, "a", "2", vec![stage(10, None), stage(50, None)])),
        |rig| rig.ask(|t| AuthorityEvent::Rollout(t, id(3), place(1, 3), Step::Next)),
        |rig| rig.ask(|t| AuthorityEvent::Rollout(t, id(4), place(1, 3), Step::Pause)),
        |rig| rig.ask(|t| AuthorityEvent::Rollout(t, id(5), place(1, 3), Step::Promote)),
        |rig| rig.commit(put(6, "a", "4")),
    ];
    let state = |rig: &Rig| (rig.open(), rig.values(), rig.machine.durable().map(|d| d.head.clone()));
    let mut rig = Rig::with_one();
    for step in steps {
        let before = state(&rig);
        step(&mut rig);
        // Before the sync: the record is lost, or half of it.
        assert_eq!(state(&rig.restart(After::Nothing)), before);
        rig.sync_all();
        let after = state(&rig);
        assert_ne!(after, before);
        assert_eq!(state(&rig.restart(After::Nothing)), after);
    }
}

#[test]
fn a_new_epoch_aborts_an_open_rollout() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None)]));
    let answer = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(77)));
    assert!(matches!(answer, Answer::Begun { position, .. } if position.epoch.number == 2), "{answer:?}");
    assert_eq!((rig.values(), rig.open()), (both("1", "1"), None));
    let rig = rig.restart(After::Nothing);
    assert_eq!((rig.values(), rig.open()), (both("1", "1"), None));
}

#[test]
fn a_plan_that_makes_no_sense_is_refused() {
    let mut rig = Rig::with_one();
    let wrong = [
        rolled(2, "a", "2", vec![]),
        rolled(3, "a", "2", vec![Stage { share: WHOLE + 1, ..Stage::default() }]),
        Request { supersede: true, ..rolled(4, "a", "2", vec![stage(10, None)]) },
    ];
    for request in wrong {
        let answer = rig.commit_now(request);
        assert!(matches!(answer, Answer::Invalid(Invalid::Rollout(_))), "{answer:?}");
    }
    let mut rig = Rig::fresh(settings());
    let first = Request { expect: Some(place(0, 0)), ..rolled(1, "a", "1", vec![stage(10, None)]) };
    assert!(matches!(rig.commit_now(first), Answer::Invalid(Invalid::Rollout(_))));
}

#[test]
fn a_store_that_fails_says_so_to_who_waits_for_a_step() {
    let mut rig = Rig::with_one();
    rig.committed(rolled(2, "a", "2", vec![stage(10, None)]));
    let ticket = rig.ask(|t| AuthorityEvent::Rollout(t, id(3), place(1, 3), Step::Promote));
    rig.say(AuthorityEvent::Durable(Err("disk".into())));
    assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    assert_eq!((rig.values(), rig.shown.len()), (both("2", "1"), 0));
}

#[test]
fn a_log_that_is_cut_keeps_the_open_rollout_and_what_ended_below_its_base() {
    let small = NsSettings { log_commits: 2, ..settings() };
    let mut rig = Rig::start(small, SimDisk::new(), Opening::NoStore, 1);
    rig.ask_now(|t| AuthorityEvent::Init(t, id(900), State::new()));
    rig.committed(put(1, "a", "1"));
    rig.committed(rolled(2, "a", "2", vec![stage(10, None), stage(20, None)]));
    rig.step(3, 3, Step::Next);
    for (n, step) in (100..140).zip([Step::Pause, Step::Resume].into_iter().cycle()) {
        rig.step(n, 3, step);
    }
    let mut rig = rig.restart(After::Nothing);
    assert_eq!((rig.open(), rig.values()), (Some((1, false)), both("2", "1")));
    rig.step(4, 3, Step::Promote);
    let compactions = rig.compactions;
    for n in 5..20 {
        rig.committed(put(n, "b", &n.to_string()));
        let again = rig.restart(After::Nothing);
        assert_eq!((again.open(), again.values()), (None, both("2", "2")));
    }
    assert!(rig.compactions > compactions);
}
