//! An id that is used again: for the same request, and for another one.

use super::*;
use crate::Step;
use crate::rollout::{Plan, Stage};

fn ops(n: u64, puts: &[(&str, &str)], deletes: &[&str]) -> Request {
    let mut changes = ChangeSet::new();
    puts.iter().for_each(|(k, v)| changes.put(key(k), 0, v.to_string()));
    deletes.iter().for_each(|k| changes.delete(key(k)));
    request(n, Intent::Change(changes))
}

fn rolled(n: u64, k: &str, v: &str) -> Request {
    let stages = vec![Stage { share: 1_000, ..Stage::default() }];
    Request { rollout: Some(Plan { salt: id(7), stages }), ..put(n, k, v) }
}

#[track_caller]
fn used(answer: &Answer, rev: u64) {
    assert_eq!(*answer, Answer::Invalid(Invalid::Used(place(1, rev))));
}

#[track_caller]
fn replayed(answer: &Answer, at: u64) {
    assert!(
        matches!(answer, Answer::Committed { position, replay: true, .. } if position.rev == at),
        "{answer:?}"
    );
}

#[test]
fn an_id_that_is_used_for_another_change_is_refused_and_a_true_repeat_is_not() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    // A part of it changes nothing.
    let first = ops(2, &[("a", "1"), ("b", "2")], &["c"]);
    rig.committed(first.clone());
    rig.committed(ops(3, &[("c", "3"), ("b", "4")], &["a"]));
    for mut rig in [rig.restart(After::Nothing), rig] {
        replayed(&rig.commit_now(first.clone()), 3);
        replayed(&rig.commit_now(put(1, "a", "1")), 2);
        used(&rig.commit_now(put(1, "a", "2")), 2);
        used(&rig.commit_now(put(1, "z", "1")), 2);
        used(&rig.commit_now(ops(1, &[("a", "1"), ("z", "1")], &[])), 2);
        used(&rig.commit_now(ops(1, &[], &["a"])), 2);
        used(&rig.commit_now(ops(2, &[("b", "2")], &["a"])), 3);
        used(&rig.commit_now(ops(2, &[], &[])), 3);
        used(&rig.commit_now(request(2, Intent::Revert(place(1, 2)))), 3);
        assert_eq!(rig.machine.position().map(|p| p.rev), Some(4), "and nothing was changed");
    }
}

#[test]
fn a_refusal_of_a_used_id_waits_for_what_used_it() {
    let mut rig = Rig::serving(settings());
    let (first, second) = (rig.commit(put(1, "a", "1")), rig.commit(ops(2, &[("a", "1"), ("b", "1")], &[])));
    let others = [rig.commit(put(1, "a", "2")), rig.commit(put(2, "b", "2"))];
    let same = rig.commit(ops(2, &[("a", "1"), ("b", "1")], &[]));
    assert!(others.iter().chain([&first, &second, &same]).all(|ticket| rig.answer(*ticket).is_none()));
    rig.sync_all();
    used(&rig.answer(others[0]).expect("durable"), 2);
    used(&rig.answer(others[1]).expect("durable"), 3);
    replayed(&rig.answer(same).expect("durable"), 3);
    // If that fails, nothing was used.
    let failed = [rig.commit(put(3, "a", "3")), rig.commit(put(3, "a", "4"))];
    rig.pending = None;
    rig.say(AuthorityEvent::Durable(Err("no".into())));
    for ticket in failed {
        assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    }
}

#[test]
fn an_id_that_is_used_for_a_request_of_another_kind_is_refused() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    rig.committed(rolled(2, "a", "2"));
    let step =
        |rig: &mut Rig, n, rev, step| rig.ask_now(|t| AuthorityEvent::Rollout(t, id(n), place(1, rev), step));
    used(&step(&mut rig, 1, 3, Step::Promote), 2);
    let paused = rig.ask(|t| AuthorityEvent::Rollout(t, id(9), place(1, 3), Step::Pause));
    assert_eq!(rig.commit_now(put(9, "a", "9")), Answer::Busy, "what it was is not durable yet");
    assert!(matches!(rig.answer(paused), Some(Answer::Committed { .. })));
    assert!(matches!(step(&mut rig, 8, 3, Step::Resume), Answer::Committed { .. }));
    used(&step(&mut rig, 2, 3, Step::Abort), 3);
    assert!(matches!(step(&mut rig, 3, 3, Step::Pause), Answer::Committed { replay: false, .. }));
    used(&rig.commit_now(put(3, "a", "2")), 3);
    used(&step(&mut rig, 3, 3, Step::Abort), 3);
    replayed(&step(&mut rig, 3, 3, Step::Pause), 3);
    assert!(matches!(step(&mut rig, 4, 3, Step::Abort), Answer::Committed { replay: false, .. }));
    for mut rig in [rig.restart(After::Nothing), rig] {
        replayed(&step(&mut rig, 4, 3, Step::Abort), 4);
        used(&step(&mut rig, 4, 3, Step::Promote), 4);
        used(&rig.commit_now(put(4, "b", "1")), 4);
        // The first one began the epoch.
        used(&rig.commit_now(ops(900, &[], &[])), 1);
        let one: State = [(key("a"), crate::Entry::new(0, "1"))].into_iter().collect();
        used(&rig.ask_now(|t| AuthorityEvent::Import(t, id(900), one.clone())), 1);
        replayed(&rig.ask_now(|t| AuthorityEvent::Import(t, id(900), State::new())), 1);
        used(&rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(1))), 2);
        used(&rig.ask_now(|t| AuthorityEvent::Import(t, id(1), one)), 2);
    }
}

#[test]
fn a_repeat_of_what_superseded_a_rollout_and_of_a_revert_gets_the_first_answer() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    rig.committed(rolled(2, "a", "2"));
    let over = Request { supersede: true, ..put(3, "b", "2") };
    rig.committed(over.clone());
    let back = request(4, Intent::Revert(place(1, 1)));
    rig.committed(back.clone());
    for mut rig in [rig.restart(After::Nothing), rig] {
        replayed(&rig.commit_now(over.clone()), 4);
        replayed(&rig.commit_now(back.clone()), 5);
        used(&rig.commit_now(Request { supersede: true, ..put(3, "b", "3") }), 4);
        used(&rig.commit_now(request(4, Intent::Revert(place(1, 2)))), 5);
    }
}
