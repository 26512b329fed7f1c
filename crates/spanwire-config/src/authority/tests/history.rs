//! What nodes show, epochs, and adoption.

use super::*;

#[test]
fn invariant_13_a_vacant_authority_says_no_head_and_takes_no_commit() {
    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 1);
    let first = Request { expect: Some(place(0, 0)), ..put(1, "a", "1") };
    assert_eq!(rig.commit_now(first.clone()), Answer::ReadOnly(ReadOnly::Vacant));
    assert!(rig.published.is_empty() && rig.pending.is_none());
    // Where the namespace alone is unknown, a first commit begins it, if it says that it is the first.
    let mut rig = Rig::fresh(with_keys());
    assert_eq!(rig.commit_now(put(1, "a", "1")), Answer::ReadOnly(ReadOnly::Vacant));
    assert_eq!(rig.committed(first.clone()).rev, 1);
    assert!(matches!(rig.commit_now(first.clone()), Answer::Committed { replay: true, .. }));
    let mut known = rig.head();
    // But not where a node has shown a HEAD of it.
    let mut rig = Rig::fresh(with_keys());
    assert_eq!(rig.show(1, &known), Verdict::Recorded);
    assert_eq!(rig.commit_now(first.clone()), Answer::ReadOnly(ReadOnly::Vacant));
    // A HEAD that does not verify shows nothing.
    let mut rig = Rig::fresh(with_keys());
    known.seq += 1;
    assert_eq!(rig.show(1, &known), Verdict::Disregard);
    assert_eq!(rig.committed(first).rev, 1);
}

#[test]
fn a_node_that_shows_a_head_while_the_first_commit_is_written_freezes_what_came_of_it() {
    let mut other = Rig::serving(with_keys());
    other.committed(put(1, "a", "1"));
    let mut rig = Rig::fresh(with_keys());
    let ticket = rig.commit(Request { expect: Some(place(0, 0)), ..put(1, "a", "1") });
    assert_eq!(rig.show(1, &other.head()), Verdict::Recorded);
    rig.sync_all();
    assert!(matches!(rig.answer(ticket), Some(Answer::Committed { .. })));
    assert!(matches!(rig.machine.mode(), Mode::ReadOnly(ReadOnly::Old { .. })));
}

/// HEADs that contradict the history of `rig`, one of each kind.
fn contradictions(rig: &mut Rig) -> Vec<Head> {
    let (prev, head) = (signed(&rig.published[rig.published.len() - 2].head), rig.head());
    let change = |head: &Head, change: &dyn Fn(&mut Head)| {
        let mut head = head.clone();
        change(&mut head);
        secret().sign(&mut head);
        head
    };
    vec![
        change(&head, &|h| h.position.epoch.number += 1),
        change(&head, &|h| h.position.epoch.incarnation = id(66)),
        change(&prev, &|h| h.position.epoch.incarnation = id(66)),
        change(&head, &|h| h.position.rev += 1),
        change(&head, &|h| h.chain[0] ^= 1),
        change(&prev, &|h| h.chain[0] ^= 1),
        // Inside a batch: no HEAD was issued for it.
        change(&head, &|h| h.position.rev -= 1),
    ]
}

/// Revisions 1, 2 and 3..=6, the last in one batch.
fn some_history(settings: NsSettings) -> Rig {
    let mut rig = Rig::serving(settings);
    for n in 1..=5 {
        rig.commit(put(n, &format!("k{n}"), "x"));
    }
    rig.sync_all();
    rig
}

#[test]
fn invariant_07_a_signed_head_of_a_lost_history_freezes_commits_until_a_new_epoch_over_restarts() {
    let count = contradictions(&mut some_history(with_keys())).len();
    for i in 0..count {
        let mut rig = some_history(with_keys());
        let shown = contradictions(&mut rig).swap_remove(i);
        let waiting = rig.commit(put(20, "a", "under way"));
        let gathered = rig.commit(put(21, "a", "gathered"));
        assert_eq!(rig.show(1, &shown), Verdict::Conflict, "{i}");
        // The sync under way ends first, what only gathered is refused at once.
        assert_eq!(rig.answer(waiting), None);
        assert!(matches!(rig.answer(gathered), Some(Answer::ReadOnly(ReadOnly::Old { .. }))), "{i}");
        rig.sync_all();
        assert!(matches!(rig.answer(waiting), Some(Answer::Committed { .. })), "{i}");
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })));
        assert!(matches!(rig.alarms.last(), Some(Alarm::OldStore { .. })));
        assert_eq!(rig.machine.conflicts().collect::<Vec<_>>(), [id(1)]);
        assert_eq!(rig.head().position.rev, 7, "serving goes on");
        // A restart does not forget it.
        let mut rig = rig.restart(After::Nothing);
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })), "{i}");
        let content = rig.machine.durable().expect("served").state.clone();
        let begun = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902)));
        let Answer::Begun { position, .. } = begun else { panic!("{begun:?}") };
        assert!(position.epoch.number > shown.position.epoch.number && position.rev > shown.position.rev);
        assert_eq!((rig.head().position, rig.head().prev_rev), (position, 0));
        assert_eq!(rig.machine.durable().map(|d| &d.state), Some(&content), "it repeats the content");
        assert_eq!(rig.show(1, &shown), Verdict::Fine, "an older epoch by now");
        rig.committed(put(22, "a", "x"));
    }
}

#[test]
fn invariant_07_without_keys_a_claim_is_counted_and_freezes_nobody_unless_strict() {
    let count = contradictions(&mut some_history(settings())).len();
    for i in 0..count {
        let mut rig = some_history(settings());
        let shown = contradictions(&mut rig).swap_remove(i);
        assert_eq!(rig.show(1, &shown), Verdict::Conflict, "{i}");
        assert!(matches!(rig.alarms.last(), Some(Alarm::Claim { .. })));
        assert_eq!(rig.machine.conflicts().count(), 1);
        rig.committed(put(22, "a", "x"));
        let mut rig = some_history(NsSettings { strict: true, ..settings() });
        assert_eq!(rig.show(1, &shown), Verdict::Conflict);
        assert!(matches!(rig.commit_now(put(22, "a", "x")), Answer::ReadOnly(ReadOnly::Old { .. })));
    }
}

#[test]
fn a_number_far_beyond_all_known_is_believed_only_if_it_is_signed() {
    let mut rig = some_history(settings());
    let mut far = rig.head();
    far.position.epoch.number += LEAP + 1;
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    assert!(matches!(rig.alarms.last(), Some(Alarm::Leap { .. })));
    let Answer::Begun { position, .. } = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902))) else {
        panic!()
    };
    assert_eq!(position.epoch.number, 2);
    let mut rig = some_history(with_keys());
    let mut far = rig.head();
    far.position.epoch.number += LEAP + 1;
    secret().sign(&mut far);
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    let Answer::Begun { position, .. } = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902))) else {
        panic!()
    };
    assert_eq!(position.epoch.number, far.position.epoch.number + 1);
    // Numbers that are used up are no panic.
    let mut rig = some_history(with_keys());
    far.position.rev = u64::MAX;
    secret().sign(&mut far);
    assert_eq!(rig.show(1, &far), Verdict::Conflict);
    let answer = rig.ask_now(|t| AuthorityEvent::NewEpoch(t, id(902)));
    assert!(matches!(answer, Answer::Invalid(Invalid::NotNow(_))), "{answer:?}");
}

#[test]
fn invariant_07_what_cannot_be_looked_up_is_no_clean_slate_for_who_showed_it() {
    let mut rig = Rig::serving(NsSettings { log_commits: 4, ..with_keys() });
    for n in 1..=20 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    let old = signed(&rig.published[1].head);
    let mut lost = old.clone();
    lost.chain[5] ^= 1;
    secret().sign(&mut lost);
    // A store that failed to write still knows what it held: who is merely behind is served, the other history not.
    let fail_sync_at = Some(rig.disk().operations() + 1);
    rig.store().disk_mut().set_faults(Faults { fail_sync_at, ..Faults::default() });
    assert!(matches!(rig.commit_now(put(30, "a", "x")), Answer::ReadOnly(ReadOnly::Store(_))));
    assert_eq!((rig.show(1, &old), rig.show(2, &lost)), (Verdict::Fine, Verdict::Conflict));
    // One that cannot be read says nothing: there is no verdict yet, and it is looked up again when it is shown again.
    let mut rig = Rig::serving(NsSettings { log_commits: 4, ..with_keys() });
    for n in 1..=20 {
        rig.committed(put(n, "a", &n.to_string()));
    }
    let shown = AuthorityEvent::Shown { node: id(2), head: lost.clone(), issued: ISSUED };
    for alarms in [1, 0] {
        let asked = rig.machine.handle(shown.clone(), Time::default());
        let [AuthorityAction::Recall(recall)] = &asked[..] else { panic!("{asked:?}") };
        let unread = AuthorityEvent::Recalled(recall.clone(), Err("unreadable".into()));
        let actions = rig.machine.handle(unread, Time::default());
        let verdicts: Vec<_> = (actions.iter())
            .filter_map(
                |a| if let AuthorityAction::Judge { verdict, .. } = a { Some(*verdict) } else { None },
            )
            .collect();
        assert_eq!(verdicts, [Verdict::Recorded]);
        assert!(matches!(rig.machine.mode(), Mode::ReadOnly(ReadOnly::Store(_))));
        let alarmed = actions.iter().filter(|action| matches!(action, AuthorityAction::Alarm(_)));
        assert_eq!(alarmed.count(), alarms, "people hear of it once");
    }
    assert_eq!(rig.show(2, &lost), Verdict::Conflict);
}

#[test]
fn every_head_of_the_epoch_is_known_for_ever_though_its_commit_is_not() {
    let mut rig = Rig::serving(NsSettings { log_commits: 4, ..with_keys() });
    for n in 1..=40 {
        rig.committed(put(n, "a", &n.to_string()));
        // Two commits in one batch now and then, so that there are revisions without a HEAD.
        if n % 5 == 0 {
            let tickets = [1, 2, 3].map(|i| rig.commit(put(100 * n + i, "b", &n.to_string())));
            rig.sync_all();
            assert!(tickets.iter().all(|t| rig.answer(*t).is_some()));
        }
    }
    assert!(rig.compactions > 3, "{}", rig.compactions);
    assert!(rig.machine.log_size().0 <= 4 + 2);
    let heads: Vec<Head> = rig.published.iter().map(|p| signed(&p.head)).collect();
    let mut rig = rig.restart(After::Nothing);
    for head in &heads {
        assert_eq!(rig.show(1, head), Verdict::Fine, "{}", head.position);
    }
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    let issued: Vec<u64> = heads.iter().map(|h| h.position.rev).collect();
    let inside = (1..=40).find(|rev| !issued.contains(rev)).expect("a revision inside a batch");
    let mut forged = [heads[3].clone(), heads[3].clone()];
    forged[0].chain[5] ^= 1;
    forged[1].position.rev = inside;
    for head in &mut forged {
        secret().sign(head);
        assert_eq!(rig.restart(After::Kill).show(1, head), Verdict::Conflict);
    }
}

#[test]
fn a_head_with_a_higher_seq_raises_the_open_count_durably() {
    let mut rig = some_history(with_keys());
    let mut shown = rig.head();
    shown.seq = 9 << SEQ_BITS | 77;
    secret().sign(&mut shown);
    assert_eq!(rig.show(1, &shown), Verdict::Fine);
    assert_eq!((&rig.reopened[..], rig.machine.opened()), (&[10][..], 10));
    assert!(rig.restart(After::Nothing).machine.opened() > 10);
    // What was issued raises nothing, though every node shows it.
    let mut rig = some_history(with_keys());
    shown.seq = ISSUED;
    assert_eq!(rig.show(1, &signed(&shown)), Verdict::Fine);
    assert_eq!(rig.reopened, []);
    // Without keys a claim could use the count up.
    let mut rig = some_history(settings());
    shown.seq = 9 << SEQ_BITS;
    assert_eq!(rig.show(1, &shown), Verdict::Fine);
    assert_eq!(rig.reopened, []);
}

#[test]
fn a_lost_store_is_adopted_from_the_nodes_in_a_new_epoch_with_what_is_lost_listed() {
    let mut old = some_history(with_keys());
    let (low, low_state) = (signed(&old.published[1].head), old.published[1].state.clone());
    let (high, state) = (old.head(), old.machine.durable().expect("served").state.clone());
    old.committed(put(30, "a", "the newest"));
    let mut canary = Head { audience: bytes::Bytes::from_static(b"canary"), ..old.head() };
    secret().sign(&mut canary);

    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 3);
    let nobody = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert!(matches!(nobody, Answer::Invalid(Invalid::NotNow(_))));
    for (node, head) in [(1, &low), (2, &high), (3, &high), (4, &canary)] {
        assert_eq!(rig.show(node, head), Verdict::Recorded);
    }
    assert_eq!(rig.machine.holdings().len(), 3);
    // The highest for all, not the canary's. The first who is asked sends something else.
    let ticket = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert_eq!(rig.offers.last().map(|(n, h)| (*n, h.position)), Some((id(3), high.position)));
    rig.say(AuthorityEvent::Offered(id(9), Some(state.clone())));
    rig.say(AuthorityEvent::Offered(id(3), Some(low_state)));
    assert_eq!(rig.offers.last().map(|(n, _)| *n), Some(id(2)));
    rig.say(AuthorityEvent::Offered(id(2), Some(state.clone())));
    assert!(rig.published.is_empty(), "not durable yet");
    rig.sync_all();
    let Some(Answer::Begun { position, lost }) = rig.answer(ticket) else { panic!() };
    assert_eq!(lost, [(canary.position, 1)]);
    assert_eq!((position.epoch.number, position.rev), (2, canary.position.rev + 1));
    assert_eq!(rig.machine.durable().map(|d| &d.state), Some(&state));
    assert_eq!(rig.committed(put(31, "a", "on")).rev, position.rev + 1);
    // It is a store like any other now.
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(rig.committed(put(32, "a", "on")).rev, position.rev + 2);
}

#[test]
fn a_canary_is_adopted_by_name_alone_and_nobody_who_sends_rubbish() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let canary = Head { audience: bytes::Bytes::from_static(b"canary"), ..old.head() };
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &canary);
    let unnamed = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(903), None));
    assert!(matches!(unnamed, Answer::Invalid(Invalid::NotNow(_))));
    let failed = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(canary.base())));
    rig.say(AuthorityEvent::Offered(id(1), None));
    assert!(matches!(rig.answer(failed), Some(Answer::Invalid(Invalid::NotNow(_)))));
    let named = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(canary.base())));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(named), Some(Answer::Begun { .. })));
    // Two histories under one number are the operator's to choose from.
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    let mut rival = old.head();
    rival.position.epoch.incarnation = id(66);
    rig.show(1, &old.head());
    rig.show(2, &rival);
    let answer = rig.ask_now(|t| AuthorityEvent::Adopt(t, id(904), None));
    assert!(matches!(answer, Answer::Invalid(Invalid::NotNow(_))));
}

#[test]
fn init_takes_numbers_above_all_that_nodes_show_and_works_once() {
    let old = some_history(with_keys());
    let mut rig = Rig::start(with_keys(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &old.head());
    let Answer::Begun { position, lost } = rig.ask_now(|t| AuthorityEvent::Init(t, id(905), State::new()))
    else {
        panic!()
    };
    assert_eq!((position.epoch.number, position.rev), (2, 7));
    assert_eq!(lost, [(old.head().position, 1)]);
    assert!(rig.machine.durable().is_some_and(|d| d.state.is_empty()));
    let again = rig.ask_now(|t| AuthorityEvent::Init(t, id(906), State::new()));
    assert!(matches!(again, Answer::Invalid(_)));
}

#[test]
fn a_new_epoch_waits_for_what_gathers_and_commits_wait_for_it() {
    let mut rig = Rig::serving(settings());
    let before: Vec<Ticket> = (1..4).map(|n| rig.commit(put(n, "a", &n.to_string()))).collect();
    let epoch = rig.ask(|t| AuthorityEvent::NewEpoch(t, id(907)));
    let busy = rig.commit(put(9, "a", "9"));
    assert_eq!(rig.answer(busy), Some(Answer::Busy));
    rig.sync_all();
    assert!(before.iter().all(|t| matches!(rig.answer(*t), Some(Answer::Committed { .. }))));
    let Some(Answer::Begun { position, .. }) = rig.answer(epoch) else { panic!() };
    assert_eq!((position.epoch.number, position.rev), (2, 5));
    // What was committed in the old epoch is still known by its request, read and reverted to.
    assert!(matches!(rig.commit_now(put(2, "a", "2")), Answer::Committed { replay: true, .. }));
    rig.committed(request(20, Intent::Revert(place(1, 3))));
    assert_eq!(
        rig.machine.read(None).expect("served").1.get("a").map(|e| e.value().as_ref()),
        Some(&b"2"[..])
    );
}

#[test]
fn an_epoch_that_begins_while_a_node_shows_the_old_history_is_not_frozen_after_a_restart() {
    let mut rig = some_history(with_keys());
    let shown = contradictions(&mut rig).swap_remove(3);
    rig.ask(|t| AuthorityEvent::NewEpoch(t, id(907)));
    assert_eq!(rig.show(1, &shown), Verdict::Conflict);
    rig.sync_all();
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    rig.committed(put(20, "a", "x"));
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(*rig.machine.mode(), Mode::Serving);
    rig.committed(put(21, "a", "x"));
}

#[test]
fn a_state_that_is_adopted_late_does_not_replace_what_has_begun() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    rig.show(1, &old.head());
    let adopt = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), None));
    rig.ask(|t| AuthorityEvent::Init(t, id(904), State::new()));
    rig.sync_all();
    rig.committed(put(20, "a", "mine"));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(adopt), Some(Answer::Invalid(Invalid::NotNow(_)))));
    let now = rig.machine.read(None).expect("served").1;
    assert_eq!(now.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn of_two_chains_at_one_position_the_operator_names_one() {
    let old = some_history(settings());
    let state = old.machine.durable().expect("served").state.clone();
    let mut rig = Rig::start(settings(), SimDisk::new(), Opening::NoStore, 3);
    let mut rival = old.head();
    rival.chain[0] ^= 1;
    rig.show(1, &old.head());
    rig.show(2, &rival);
    assert_eq!(rig.machine.holdings().len(), 2);
    let named = rig.ask(|t| AuthorityEvent::Adopt(t, id(903), Some(old.head().base())));
    rig.say(AuthorityEvent::Offered(id(1), Some(state)));
    rig.sync_all();
    assert!(matches!(rig.answer(named), Some(Answer::Begun { .. })));
}

#[test]
fn a_sender_begins_with_the_log_that_the_store_had() {
    let rig = some_history(settings());
    let sender = crate::Distributor::new(crate::Settings::default(), rig.machine.origin());
    assert_eq!(sender.log_size().0, 2, "from 1 to 2, and the batch above it");
    assert_eq!(sender.head().map(|head| head.position), rig.machine.position());
}

#[test]
fn an_import_replaces_all_in_a_new_epoch_and_its_repeats_get_its_answer() {
    let mut content = State::new();
    content.put(key("b"), crate::Entry::new(0, "2"));
    let import = |n| {
        let content = content.clone();
        move |ticket| AuthorityEvent::Import(ticket, id(n), content)
    };
    let mut rig = Rig::serving(settings());
    let before = rig.commit(put(1, "a", "1"));
    let first = rig.ask(import(950));
    // It waits for the commit under way, and is not known before its own sync began.
    let busy = rig.ask(import(950));
    assert_eq!(rig.answer(busy), Some(Answer::Busy));
    rig.sync();
    assert!(matches!(rig.answer(before), Some(Answer::Committed { .. })));
    let repeat = rig.ask(import(950));
    assert_eq!((rig.answer(first), rig.answer(repeat)), (None, None), "durable first");
    rig.sync_all();
    let Some(Answer::Begun { position, .. }) = rig.answer(first) else { panic!() };
    assert_eq!((position.epoch.number, position.rev), (2, 3));
    let again = Answer::Committed { position, digest: content.digest(), replay: true };
    assert_eq!(rig.answer(repeat), Some(again.clone()));
    assert_eq!(rig.ask_now(import(950)), again);
    assert_eq!(rig.machine.read(None), Ok((position, content.clone())));
    let mut rig = rig.restart(After::Nothing);
    assert_eq!(rig.ask_now(import(950)), again);
    // Also where nothing else is taken: it ends what froze the store.
    let mut frozen = some_history(with_keys());
    let shown = contradictions(&mut frozen).swap_remove(3);
    assert_eq!(frozen.show(1, &shown), Verdict::Conflict);
    frozen.sync_all();
    assert!(matches!(frozen.machine.mode(), Mode::ReadOnly(ReadOnly::Old { .. })));
    assert!(matches!(frozen.ask_now(import(951)), Answer::Begun { .. }));
    assert_eq!(*frozen.machine.mode(), Mode::Serving);
    // Within the limits, and none of it where one is exceeded.
    let limits = Limits { value: 0, ..Limits::default() };
    let mut small = Rig::serving(NsSettings { limits, ..settings() });
    assert!(matches!(small.ask_now(import(952)), Answer::Invalid(Invalid::OverLimit(_))));
    assert_eq!(small.machine.position().map(|at| at.epoch.number), Some(1));
}

#[test]
fn an_epoch_is_begun_by_somebody_and_only_where_the_newest_is_what_was_expected() {
    let mut rig = Rig::serving(NsSettings::default());
    let at = |rig: &Rig| rig.machine.position().map(Place::from).expect("durable");
    let by = |expect| By { author: "ana".into(), note: "put right".into(), stamp: 7, expect: Some(expect) };
    let of = |by: By, event| AuthorityEvent::By(Box::new(by), Box::new(event));
    let (now, old) = (at(&rig), Place::default());
    for n in [910, 911] {
        let event = |t| match n {
            910 => AuthorityEvent::NewEpoch(t, id(n)),
            _ => AuthorityEvent::Import(t, id(n), State::new()),
        };
        let refused = rig.ask_now(|t| of(by(old), event(t)));
        assert!(matches!(refused, Answer::Conflict { head } if head == now), "{refused:?}");
    }
    let long = By { author: "x".repeat(257), ..By::default() };
    let refused = rig.ask_now(|t| of(long, AuthorityEvent::NewEpoch(t, id(912))));
    assert!(matches!(refused, Answer::Invalid(Invalid::TooLong("author"))), "{refused:?}");
    assert_eq!(at(&rig), now);
    let begun = rig.ask_now(|t| of(by(now), AuthorityEvent::NewEpoch(t, id(913))));
    assert!(matches!(begun, Answer::Begun { .. }), "{begun:?}");
    // A repeat gets the answer of the first, whatever the newest is by now.
    let again = rig.ask_now(|t| of(by(now), AuthorityEvent::NewEpoch(t, id(913))));
    assert!(matches!(again, Answer::Committed { replay: true, .. }), "{again:?}");
    let (_, commit) = rig.machine.history().next().expect("the epoch");
    assert_eq!((&commit.author[..], &commit.note[..], commit.stamp), ("ana", "put right", 7));
}
