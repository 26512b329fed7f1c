//! Two histories, epochs, restarts, and who is right.

use super::*;

#[test]
fn invariant_12_conflicting_incarnations_freeze_what_is_visible_until_a_higher_epoch() {
    let (_, mut r, link) = pair();
    r.lose(link.below);
    let before = r.protocol.visible().map(|(head, _)| head.clone());
    let mut b = rogue();
    for n in 0..5 {
        commit(&mut b, &puts([("a", &format!("rogue {n}"))]));
    }
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!((data(&r), r.recv().is_none()), (Data::Conflict, true));
    assert_eq!(r.protocol.visible().map(|(head, _)| head.clone()), before);
    assert!(link.slices().is_empty(), "that node gets no data in this epoch");
    assert!(b.protocol.status()[0].conflict);
    b.new_epoch(2);
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
        // What it reports is of the other history: it counts for nothing, and ends no alarm.
        let first = Position { epoch: epoch(1), rev: 1 };
        let reached = b.protocol.reached(first, Level::Stored);
        assert_eq!((b.protocol.status()[0].conflict, reached), (true, 0), "revision {lost}");
        assert_eq!(r.protocol.visible().map(|(head, _)| head.position), before);
    }
}

#[test]
fn promise_04_invariant_12_a_lower_epoch_is_ignored() {
    let (mut a, mut r, mut link) = pair();
    a.new_epoch(5);
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
    assert_eq!(old.memory.machine.highest().epoch, 5);
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
    let mut a = Authority::new(Settings::default(), a.memory.reopen(usize::MAX));
    r.lose(link.below);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert!(before.is_some() && seq(&link) > before, "{:?} after {before:?}", seq(&link));
    assert!(r.protocol.status(r.now()).fresh && link.slices().is_empty());
}

/// The same epoch number as [`authority`]'s, and another history.
pub(crate) fn rogue() -> Authority {
    authority_of(Settings::default(), NsSettings::default(), Id([9; 16]))
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
    let at = b.new_epoch(2);
    // The transfer is larger than a window: the word of the conflict comes in the middle of it.
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!(accept(&mut r, Level::Visible).position(), at);
    assert!(!b.protocol.status()[0].conflict);
}

#[test]
fn invariant_12_a_conflict_outlives_a_restart_and_is_said_again_until_a_higher_epoch_comes() {
    let (mut a, mut r, old) = pair();
    let mut b = rogue();
    commit(&mut b, &puts([("a", "other")]));
    r.lose(old.below);
    let mut link = Link::new(&mut b, &mut r);
    link.flow(&mut b, &mut r);
    assert_eq!(data(&r), Data::Conflict);
    let evidence = r.protocol.status(r.now()).evidence;
    let (head, state) =
        r.protocol.visible().map(|(head, state)| (head.clone(), state.clone())).expect("held");
    drop(r);
    a.lose(old.above);
    let settings = ReplicaSettings { node: Id([1; 16]), boot: 1, ..ReplicaSettings::default() };
    let restored = Replica::restored(settings, head.clone(), state, Level::Applied);
    let mut r = Script::new(restored.in_conflict(evidence.clone()));
    assert_eq!((data(&r), r.protocol.status(r.now()).evidence), (Data::Conflict, evidence));
    // Not even its own history moves it.
    commit(&mut a, &puts([("a", "2")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    let said = |f: &Frame| matches!(f, Frame::Nack(nack) if nack.code == NackCode::Conflict);
    assert!(link.up.iter().any(said) && a.protocol.status()[0].conflict);
    assert_eq!((data(&r), r.readiness().recv), (Data::Conflict, false));
    let at = a.new_epoch(2);
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Visible).position(), at);
    assert_eq!((data(&r), r.protocol.status(r.now()).evidence), (Data::Live, None));
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
    a.new_epoch(2);
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

/// A server that was started again on a store put back as it was at revision 2, and went on; and a node of what
/// was lost, at revision 3.
fn put_back() -> (Authority, Script<Replica>) {
    let (mut a, mut r, mut link) = pair();
    commit(&mut a, &puts([("a", "2")]));
    commit(&mut a, &puts([("a", "lost")]));
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    r.lose(link.below);
    let mut b = Authority::new(Settings::default(), a.memory.reopen(2));
    for n in 0..5 {
        commit(&mut b, &puts([("a", &format!("other {n}"))]));
    }
    // Started once more, with a sender whose log reaches back no further than one step.
    let settings = Settings { log_commits: 1, ..Settings::default() };
    (Authority::new(settings, b.memory.reopen(usize::MAX)), r)
}

#[test]
fn invariant_07_who_shows_what_the_log_does_not_reach_gets_no_data_before_it_is_judged() {
    let (mut b, mut r) = put_back();
    let mut link = Link::new(&mut b, &mut r);
    // As if the machine were busy: words arrive, and nobody looks.
    b.sender.arrive(link.above, r.drain(link.below, usize::MAX));
    let said: Vec<Frame> = b.drain(link.above, usize::MAX).iter().map(frame).collect();
    assert!(matches!(&said[..], [Frame::Welcome(_), Frame::Beacon(_)]), "{said:?}");
    // A second word before the first is judged does not hide it.
    let want = Want { namespace: "config".into(), ..Want::default() };
    b.sender.arrive(link.above, [Frame::Want(WantReason::Other, vec![want]).encode()]);
    b.look();
    assert_eq!(b.memory.machine.conflicts().count(), 1);
    r.arrive(link.below, said.iter().map(Frame::encode));
    b.drain(link.above, usize::MAX);
    // And whoever shows it again is in conflict for the rest of the epoch.
    r.call(|r, cx| r.retry(cx));
    link.flow(&mut b, &mut r);
    assert!(link.slices().is_empty() && b.protocol.status()[0].conflict);
    b.new_epoch(2);
    link.flow(&mut b, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position().epoch, epoch(2));
    assert!(!b.protocol.status()[0].conflict);
}

#[test]
fn what_a_node_reports_before_it_is_judged_counts_once_it_is() {
    let (mut a, mut r, link) = pair();
    let at = r.protocol.visible().map(|(head, _)| head.position).expect("applied");
    for n in 0..5 {
        commit(&mut a, &puts([("a", &format!("more {n}"))]));
    }
    r.lose(link.below);
    let settings = Settings { log_commits: 1, ..Settings::default() };
    let mut a = Authority::new(settings, a.memory.reopen(usize::MAX));
    let mut link = Link::new(&mut a, &mut r);
    a.sender.arrive(link.above, r.drain(link.below, usize::MAX));
    r.arrive(link.below, a.drain(link.above, usize::MAX));
    let report = r.drain(link.below, usize::MAX);
    assert!(report.iter().any(|m| matches!(frame(m), Frame::Ack(_))));
    a.sender.arrive(link.above, report);
    assert_eq!(a.protocol.reached(at, Level::Applied), 0);
    a.look();
    assert_eq!(a.protocol.reached(at, Level::Applied), 1);
    link.flow(&mut a, &mut r);
    assert_eq!(accept(&mut r, Level::Applied).position().rev, 6);
}

#[test]
fn invariant_21_who_missed_one_commit_of_before_a_restart_gets_one_step() {
    let (mut a, mut r, link) = pair();
    r.lose(link.below);
    commit(&mut a, &puts([("b", "3")]));
    let mut a = Authority::new(Settings::default(), a.memory.reopen(usize::MAX));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert_eq!(link.slices().iter().map(|s| s.base.is_some()).collect::<Vec<_>>(), [true]);
    assert!(link.payload() < 20);
    accept(&mut r, Level::Applied);
}

#[test]
fn a_node_that_comes_back_raises_no_open_count_whatever_beacons_it_heard() {
    let secret = spanwire_config::sign::Secret::from_seed(1, &[3; 32]);
    let keys = NsSettings { keys: secret.public(), ..NsSettings::default() };
    let settings = Settings { secret: Some(secret.clone()), ..Settings::default() };
    let (mut a, mut r) = (authority_of(settings.clone(), keys, Id([1; 16])), replica(1));
    commit(&mut a, &puts([("a", "1")]));
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Applied);
    for _ in 0..3 {
        for _ in 0..2 {
            a.advance(BEACON);
            r.advance(BEACON);
            link.flow(&mut a, &mut r);
        }
        a.lose(link.above);
        r.lose(link.below);
        link = Link::new(&mut a, &mut r);
        link.flow(&mut a, &mut r);
    }
    assert_eq!(a.memory.machine.opened(), 1);
    let signed =
        |f: &Frame| matches!(f, Frame::Beacon(heads) if heads.iter().any(|h| secret.public().verify(h)));
    assert!(link.down.iter().any(signed));
    // A HEAD from a run that this store does not remember does raise it, and `seq` goes on above.
    let old = Authority::new(settings, a.memory.reopen(usize::MAX));
    let (head, seq) = (old.protocol.head().cloned().expect("committed"), 2 << 40);
    assert!(head.seq > seq);
    let want = Want { namespace: "config".into(), have: vec![head.clone()], ..Want::default() };
    a.arrive(link.above, [Frame::Want(WantReason::Other, vec![want]).encode()]);
    assert_eq!(a.memory.machine.opened(), 3);
    link.flow(&mut a, &mut r);
    a.advance(BEACON);
    link.flow(&mut a, &mut r);
    let highest = link.down.iter().filter_map(|f| match f {
        Frame::Beacon(heads) => heads.first().map(|head| head.seq),
        _ => None,
    });
    assert!(highest.max() > Some(head.seq));
}

#[test]
fn a_forged_epoch_number_uses_no_numbers_up() {
    let (mut a, _, link) = pair();
    let mut head = a.protocol.head().cloned().expect("committed");
    head.position.epoch.number = u64::MAX;
    let want = Want { namespace: "config".into(), have: vec![head], ..Want::default() };
    a.arrive(link.above, [Frame::Want(WantReason::Other, vec![want]).encode()]);
    assert_eq!(a.memory.machine.highest().epoch, 1);
    assert_eq!(a.new_epoch(2).epoch.number, 2);
}

#[test]
fn an_authority_without_a_state_says_vacant_to_every_node_and_known_once_it_has_one() {
    let (_, holder, old) = pair();
    // One that holds nothing, and one that holds what is lost here.
    let mut nodes = [replica(2), holder];
    nodes[1].lose(old.below);
    let mut a = authority(Settings::default());
    let mut links = nodes.each_mut().map(|n| Link::new(&mut a, n));
    let says = |a: &mut Authority, nodes: &mut [Script<Replica>; 2], links: &mut [Link; 2]| {
        links.iter_mut().zip(nodes.iter_mut()).for_each(|(link, n)| link.flow(a, n));
        nodes.each_ref().map(|n| n.protocol.status(n.now()).namespace)
    };
    assert_eq!(says(&mut a, &mut nodes, &mut links), [Some(NamespaceStatus::Vacant); 2]);
    a.advance(BEACON);
    assert_eq!(says(&mut a, &mut nodes, &mut links), [Some(NamespaceStatus::Vacant); 2]);
    for link in &links {
        assert!(link.slices().is_empty());
        assert!(link.down.iter().all(|f| !matches!(f, Frame::Beacon(heads) if !heads.is_empty())));
    }
    a.new_epoch(2);
    assert_eq!(says(&mut a, &mut nodes, &mut links), [Some(NamespaceStatus::Known); 2]);
    nodes.iter_mut().for_each(|n| drop(accept(n, Level::Applied)));
}

#[test]
fn a_node_that_shows_two_things_to_a_vacant_authority_keeps_it_busy_once() {
    let (a, mut r, link) = pair();
    let first = a.protocol.head().cloned().expect("committed");
    let second = Head { position: Position { rev: 7, ..first.position }, ..first.clone() };
    let memory = Memory::new(NsSettings::default(), Id([5; 16]));
    let mut b = Authority::new(Settings::default(), memory);
    r.lose(link.below);
    let (one, two) = (Link::new(&mut b, &mut r), b.open(64));
    let hello = r.drain(one.below, usize::MAX);
    // From two pipes at once, as it happens where one end of a pipe is not heard of yet.
    let other = hello.iter().map(|message| match frame(message) {
        Frame::Hello(mut hello) => {
            hello.wants.iter_mut().for_each(|want| want.have = vec![second.clone()]);
            Frame::Hello(hello).encode()
        }
        other => other.encode(),
    });
    let other: Vec<Vec<u8>> = other.collect();
    b.sender.arrive(one.above, hello);
    b.sender.arrive(two, other);
    b.look();
    assert_eq!(
        b.memory.machine.highest().rev,
        1,
        "the first word is kept, the second is told of on a reconnect"
    );
    assert!(!b.protocol.has_shown());
}
