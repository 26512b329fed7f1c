//! Commits, their answers, and what is kept of them.

use super::*;

#[test]
fn invariant_06_nothing_is_said_of_a_commit_before_it_is_durable() {
    let mut rig = Rig::serving(settings());
    let published = rig.published.len();
    let ticket = rig.commit(put(1, "a", "1"));
    assert_eq!((rig.answer(ticket), rig.published.len()), (None, published));
    assert_eq!(rig.machine.read(None).expect("durable").1.keys(), 0, "and so does a read");
    rig.sync();
    let Some(Answer::Committed { position, replay: false, digest }) = rig.answer(ticket) else { panic!() };
    assert_eq!(position, rig.head().position);
    assert_eq!(digest, rig.head().digest);
    // And it survives a power cut right after.
    let again = rig.restart(After::Nothing);
    assert_eq!(again.head().position, position);
}

#[test]
fn one_sync_serves_all_that_gathered_during_the_one_before_and_they_share_one_head() {
    let mut rig = Rig::serving(settings());
    let (syncs, published) = (rig.disk().syncs(), rig.published.len());
    let tickets: Vec<Ticket> = (1..=100).map(|n| rig.commit(put(n, &format!("k{n}"), "x"))).collect();
    rig.sync_all();
    assert_eq!(rig.disk().syncs() - syncs, 2);
    let heads: Vec<&Head> = rig.published[published..].iter().map(|p| &p.head).collect();
    assert_eq!(heads.iter().map(|h| (h.prev_rev, h.position.rev)).collect::<Vec<_>>(), [(1, 2), (2, 101)]);
    assert_eq!(heads[1].chain, chain(&heads[0].chain, 101, &heads[1].digest));
    for (n, ticket) in tickets.iter().enumerate() {
        let Some(Answer::Committed { position, .. }) = rig.answer(*ticket) else { panic!("{n}") };
        assert_eq!(position.rev, n as u64 + 2, "a writer's commits keep their order");
    }
    // Revisions inside a batch can be read, and each commit has its own digest.
    for (position, commit) in rig.machine.history() {
        let (at, state) = rig.machine.read(Some(position.into())).expect("kept");
        assert_eq!((at, state.digest()), (position, commit.digest));
    }
    // What was published is the whole of the batch.
    let last = rig.published.last().expect("published");
    assert_eq!(last.changes.len(), 99);
}

#[test]
fn a_batch_has_bounds_and_so_has_what_gathers() {
    let mut rig = Rig::serving(NsSettings { batch_commits: 4, waiting_commits: 10, ..settings() });
    let tickets: Vec<Ticket> = (1..=12).map(|n| rig.commit(put(n, "k", &n.to_string()))).collect();
    assert_eq!(rig.answer(tickets[11]), Some(Answer::Busy), "one is with the store, ten wait");
    assert_eq!(rig.machine.gathered.len(), 3, "a state for each batch, not for each commit");
    rig.sync_all();
    let prev: Vec<u64> = rig.published.iter().map(|p| p.head.position.rev).collect();
    assert_eq!(prev, [1, 2, 6, 10, 12]);
}

#[test]
fn invariant_15_a_repeat_gets_the_first_outcome_during_the_sync_after_it_and_after_a_restart() {
    let mut rig = Rig::serving(settings());
    let first = rig.commit(put(1, "a", "1"));
    let second = rig.commit(put(2, "a", "2"));
    // While 1 is with the store and 2 waits.
    let (again1, again2) = (rig.commit(put(1, "a", "1")), rig.commit(put(2, "a", "2")));
    assert!([first, second, again1, again2].iter().all(|t| rig.answer(*t).is_none()));
    rig.sync();
    let Some(Answer::Committed { position, digest, .. }) = rig.answer(first) else { panic!() };
    let replay = Answer::Committed { position, digest, replay: true };
    assert_eq!(rig.answer(again1), Some(replay.clone()), "as soon as its own revision is durable");
    assert_eq!(rig.answer(again2), None);
    rig.sync();
    let Some(Answer::Committed { position: other, .. }) = rig.answer(again2) else { panic!() };
    assert_eq!((position.rev, other.rev), (2, 3));
    assert_eq!(rig.commit_now(put(1, "a", "1")), replay, "afterwards");
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(rig.commit_now(put(1, "a", "1")), replay, "after a power cut");
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(3));
}

#[test]
fn invariant_15_a_crash_between_durable_and_answer_is_covered_by_the_repeat() {
    let mut rig = Rig::serving(settings());
    let lost = rig.commit(put(1, "a", "1"));
    let record = rig.pending.take().expect("under way");
    rig.store().append_durable(&record).expect("written");
    assert_eq!(rig.answer(lost), None);
    let mut rig = rig.restart(After::Nothing);
    let answer = rig.commit_now(put(1, "a", "1"));
    assert!(matches!(answer, Answer::Committed { position, replay: true, .. } if position.rev == 2));
}

#[test]
fn a_request_older_than_the_window_conflicts_by_its_number_or_is_a_new_commit() {
    let mut rig = Rig::serving(NsSettings { log_commits: 5, ..settings() });
    let old = Request { expect: Some(place(1, 1)), ..put(1, "a", "1") };
    rig.committed(old.clone());
    for n in 2..=10 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    assert_eq!(rig.commit_now(old), Answer::Conflict { head: place(1, 11) });
    assert_eq!(rig.committed(put(1, "a", "1")).rev, 12);
    // What the log still has is remembered, as durably.
    let answer = rig.commit_now(put(9, "a", "9"));
    assert!(matches!(answer, Answer::Committed { position, replay: true, .. } if position.rev == 10));
}

#[test]
fn invariant_16_of_two_writers_one_wins_and_the_other_waits_for_what_beat_it() {
    let mut rig = Rig::serving(settings());
    let on = |n: u64, v: &str| Request { expect: Some(place(1, 1)), ..put(n, "a", v) };
    let (won, lost) = (rig.commit(on(1, "x")), rig.commit(on(2, "y")));
    assert_eq!(rig.answer(lost), None, "it depends on a commit that is not durable");
    rig.sync();
    assert!(matches!(rig.answer(won), Some(Answer::Committed { position, .. }) if position.rev == 2));
    assert_eq!(rig.answer(lost), Some(Answer::Conflict { head: place(1, 2) }));
    // The loser is not remembered: the same request on the right base goes through.
    let again = Request { expect: Some(place(1, 2)), ..put(2, "a", "y") };
    assert_eq!(rig.committed(again).rev, 3);
}

#[test]
fn invariant_16_a_conflict_with_what_failed_is_no_conflict_but_read_only() {
    let mut rig = Rig::serving(settings());
    let on = |n: u64| Request { expect: Some(place(1, 1)), ..put(n, "a", "x") };
    let (won, lost) = (rig.commit(on(1)), rig.commit(on(2)));
    rig.pending = None;
    rig.say(AuthorityEvent::Durable(Err("no".into())));
    for ticket in [won, lost] {
        assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    }
}

#[test]
fn a_failed_sync_ends_in_read_only_serving_goes_on_and_a_restart_heals() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    let tickets: Vec<Ticket> = (2..6).map(|n| rig.commit(put(n, "a", &n.to_string()))).collect();
    let repeat = rig.commit(put(3, "a", "3"));
    let published = rig.published.len();
    // The next operation is the write of the record, the one after it its sync.
    let fail_sync_at = Some(rig.disk().operations() + 1);
    rig.store().disk_mut().set_faults(Faults { fail_sync_at, ..Faults::default() });
    rig.sync_all();
    for ticket in tickets.into_iter().chain([repeat]) {
        assert!(matches!(rig.answer(ticket), Some(Answer::ReadOnly(ReadOnly::Store(_)))));
    }
    assert!(matches!(rig.alarms.last(), Some(Alarm::Store(_))));
    assert_eq!(rig.published.len(), published);
    // Serving goes on from the last durable head; a known request is answered, others are not taken.
    assert_eq!(rig.head().position.rev, 2);
    assert!(matches!(rig.commit_now(put(1, "a", "1")), Answer::Committed { replay: true, .. }));
    assert!(matches!(rig.commit_now(put(9, "a", "9")), Answer::ReadOnly(ReadOnly::Store(_))));
    let new_epoch = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(901)));
    assert!(matches!(new_epoch, Answer::ReadOnly(ReadOnly::Store(_))), "a restart alone leaves it");
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    assert_eq!(rig.committed(put(9, "a", "9")).rev, 3);
}

#[test]
fn revert_is_a_new_commit_and_what_is_compacted_says_so() {
    let mut rig = Rig::serving(NsSettings { log_commits: 6, ..settings() });
    for n in 1..=12 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    let Answer::Invalid(Invalid::Compacted { oldest }) =
        rig.commit_now(request(20, Intent::Revert(place(1, 2))))
    else {
        panic!()
    };
    assert_eq!(oldest, place(1, 7));
    assert_eq!(rig.machine.read(Some(place(1, 2))), Err(Invalid::Compacted { oldest }));
    assert_eq!(rig.machine.read(Some(place(1, 99))), Err(Invalid::NoSuch(place(1, 99))));
    assert_eq!(rig.machine.read(Some(place(2, 8))), Err(Invalid::NoSuch(place(2, 8))));
    for rev in oldest.rev..=13 {
        let (at, state) = rig.machine.read(Some(place(1, rev))).expect("kept");
        assert_eq!(at.rev, rev);
        assert_eq!(state.get("a").map(|e| e.value().to_vec()), Some((rev - 1).to_string().into_bytes()));
    }
    assert_eq!(rig.committed(request(21, Intent::Revert(oldest))).rev, 14);
    let now = rig.machine.read(None).expect("served").1;
    assert_eq!(now.get("a").map(|e| e.value().to_vec()), Some(b"6".to_vec()));
    // All the same after a restart.
    let rig = rig.restart(After::Nothing);
    assert_eq!(rig.machine.read(None).expect("served").1, now);
    assert_eq!(rig.machine.history().next().map(|(at, c)| (at.rev, c.author.as_str())), Some((14, "a")));
}

#[test]
fn what_exceeds_a_limit_is_invalid_and_changes_nothing() {
    let limits = Limits { value: 8, keys: 2, bytes: 24 };
    let mut rig = Rig::serving(NsSettings { limits, ..settings() });
    rig.committed(put(1, "a", "12345678"));
    let invalid = |rig: &mut Rig, request| matches!(rig.commit_now(request), Answer::Invalid(_));
    assert!(invalid(&mut rig, put(2, "a", "123456789")));
    assert!(invalid(&mut rig, Request { author: "x".repeat(257), ..put(4, "b", "1") }));
    assert!(invalid(&mut rig, Request { note: "x".repeat(1025), ..put(5, "b", "1") }));
    rig.committed(put(6, "b", "12345678"));
    assert!(invalid(&mut rig, put(7, "c", "1")));
    assert!(invalid(&mut rig, put(8, &"k".repeat(30), "1")));
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(3));
    // A request that was invalid is not remembered.
    let mut delete = ChangeSet::new();
    delete.delete(key("b"));
    rig.committed(request(9, Intent::Change(delete.clone())));
    assert_eq!(rig.committed(put(7, "c", "1")).rev, 5);
    // What changes nothing is a commit: its repeat must get the same answer whatever came between.
    let nothing = rig.committed(request(10, Intent::Change(delete)));
    assert_eq!(nothing.rev, 6);
}

#[test]
fn repeats_of_what_is_not_durable_yet_are_bounded_as_commits_are() {
    let mut rig = Rig::serving(NsSettings { waiting_commits: 4, ..settings() });
    let tickets: Vec<Ticket> = (0..9).map(|_| rig.commit(put(1, "a", "1"))).collect();
    let busy = tickets.iter().filter(|ticket| rig.answer(**ticket) == Some(Answer::Busy)).count();
    assert_eq!(busy, 4, "the first, four repeats, and no more");
    rig.sync_all();
    assert!(tickets.iter().all(|ticket| rig.answer(*ticket).is_some()));
}

#[test]
fn invariant_15_an_id_that_was_used_for_something_else_is_refused_and_a_repeat_is_none() {
    let mut rig = Rig::serving(settings());
    let used = |at: Place| Answer::Invalid(Invalid::Used(at));
    // While it is with the store, while it waits, and afterwards.
    let (first, second) = (rig.commit(put(1, "a", "1")), rig.commit(put(2, "b", "1")));
    let others = [
        rig.commit(put(1, "a", "2")),
        rig.commit(put(1, "b", "1")),
        rig.commit(put(2, "b", "2")),
        rig.commit(request(2, Intent::Change(ChangeSet::new()))),
    ];
    assert!(others.iter().all(|t| rig.answer(*t).is_none()), "it depends on what is not durable");
    rig.sync();
    rig.sync();
    assert!([first, second].iter().all(|t| matches!(rig.answer(*t), Some(Answer::Committed { .. }))));
    let at = [place(1, 2), place(1, 2), place(1, 3), place(1, 3)];
    for (ticket, at) in others.iter().zip(at) {
        assert_eq!(rig.answer(*ticket), Some(used(at)));
    }
    assert_eq!(rig.commit_now(put(1, "a", "2")), used(place(1, 2)));
    assert_eq!(rig.commit_now(request(1, Intent::Revert(place(1, 1)))), used(place(1, 2)));
    // What had no effect is not kept, and asked for all the same.
    let mut wide = ChangeSet::new();
    wide.put(key("a"), 0, "1");
    wide.put(key("c"), 0, "1");
    wide.delete(key("none"));
    let wide = request(3, Intent::Change(wide));
    rig.committed(wide.clone());
    rig.committed(put(4, "a", "9"));
    let replayed = |answer: Answer| matches!(answer, Answer::Committed { replay: true, .. });
    assert!(replayed(rig.commit_now(wide.clone())));
    let mut more = wide.clone();
    let Intent::Change(changes) = &mut more.intent else { panic!() };
    changes.put(key("d"), 0, "1");
    assert_eq!(rig.commit_now(more), used(place(1, 4)), "one more");
    assert_eq!(rig.commit_now(put(3, "a", "1")), used(place(1, 4)), "one less, and what it had is missing");
    let mut rig = rig.restart(After::Nothing);
    assert!(replayed(rig.commit_now(wide)));
    assert_eq!(rig.commit_now(put(2, "x", "1")), used(place(1, 3)));
    assert_eq!(rig.machine.position().map(|p| p.rev), Some(5), "nothing came of all that");
}

#[test]
fn invariant_15_a_repeat_of_what_went_back_and_of_what_began_an_epoch_is_known_by_its_content() {
    let mut rig = Rig::serving(settings());
    rig.committed(put(1, "a", "1"));
    rig.committed(put(2, "a", "2"));
    let back = request(3, Intent::Revert(place(1, 2)));
    rig.committed(back.clone());
    assert!(matches!(rig.commit_now(back), Answer::Committed { replay: true, .. }));
    let other = request(3, Intent::Revert(place(1, 3)));
    assert_eq!(rig.commit_now(other), Answer::Invalid(Invalid::Used(place(1, 4))));
    let state: State = [(key("a"), crate::Entry::new(0, "imported"))].into_iter().collect();
    let import = |rig: &mut Rig, n: u64, state: &State| {
        rig.ask_now(|ticket| AuthorityEvent::Import(ticket, id(n), state.clone()))
    };
    assert!(matches!(import(&mut rig, 9, &state), Answer::Begun { .. }));
    assert!(matches!(import(&mut rig, 9, &state), Answer::Committed { replay: true, .. }));
    assert_eq!(import(&mut rig, 9, &State::new()), Answer::Invalid(Invalid::Used(place(2, 5))));
    assert_eq!(import(&mut rig, 2, &state), Answer::Invalid(Invalid::Used(place(1, 3))), "a commit's");
    assert_eq!(rig.commit_now(put(9, "a", "imported")), Answer::Invalid(Invalid::Used(place(2, 5))));
}
