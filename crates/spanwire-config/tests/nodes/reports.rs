//! Who is there, by which pipe, and what is known of it.

use spanwire_config::{Base, Kept, chain};

use super::*;

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

fn of_boot(boot: u64) -> Script<Replica> {
    Script::new(Replica::new(ReplicaSettings { node: Id([1; 16]), boot, ..ReplicaSettings::default() }))
}

fn told_of(r: &Script<Replica>) -> Option<u64> {
    r.protocol.status(r.now()).stale_boot
}

#[test]
fn of_two_lives_of_one_node_each_is_told_until_one_takes_another_id() {
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("a", "1")]));
    let (mut first, mut second) = (of_boot(5), of_boot(6));
    let mut one = Link::new(&mut a, &mut first);
    one.flow(&mut a, &mut first);
    let mut two = Link::new(&mut a, &mut second);
    two.flow(&mut a, &mut second);
    one.flow(&mut a, &mut first);
    assert_eq!((told_of(&first), told_of(&second)), (Some(6), None));
    let say_so = |r: &mut Script<Replica>, node, boot| {
        r.call(|r, _| r.set_identity(Id([node; 16]), boot));
        r.advance(Duration::from_secs(2));
    };
    say_so(&mut first, 1, 7);
    one.flow(&mut a, &mut first);
    two.flow(&mut a, &mut second);
    assert_eq!((told_of(&first), told_of(&second)), (None, Some(7)), "who raised its own is not told of it");
    say_so(&mut second, 1, 8);
    two.flow(&mut a, &mut second);
    one.flow(&mut a, &mut first);
    assert_eq!((told_of(&first), told_of(&second)), (Some(8), None));
    // Told again it has a living twin.
    say_so(&mut first, 2, 1);
    one.flow(&mut a, &mut first);
    two.flow(&mut a, &mut second);
    assert_eq!((told_of(&first), told_of(&second)), (None, None));
    let nodes: Vec<_> = a.protocol.status().iter().map(|n| (n.node.0[0], n.boot, n.connected)).collect();
    assert_eq!(nodes, [(1, 8, true), (2, 1, true)]);
}

#[test]
fn an_earlier_life_whose_queue_is_full_is_told_when_there_is_room() {
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("a", "1")]));
    let (mut first, mut second) = (of_boot(5), of_boot(6));
    let mut one = Link { above: a.open(1), ..Link::new(&mut a, &mut first) };
    one.flow(&mut a, &mut first);
    // A beacon takes the room.
    a.advance(BEACON);
    let mut two = Link::new(&mut a, &mut second);
    two.flow(&mut a, &mut second);
    one.flow(&mut a, &mut first);
    assert_eq!(told_of(&first), None);
    a.advance(BEACON);
    one.flow(&mut a, &mut first);
    assert_eq!(told_of(&first), Some(6));
    // It is said once, and not to who comes after it.
    let stale = |link: &Link| link.down.iter().filter(|frame| matches!(frame, Frame::Stale(..))).count();
    a.advance(BEACON);
    one.flow(&mut a, &mut first);
    assert_eq!((stale(&one), stale(&two)), (1, 0));
}

#[test]
fn invariant_14_what_is_reported_after_a_boot_was_raised_is_reported_of_that_boot() {
    let (mut a, mut r, mut link) = pair();
    let at = commit(&mut a, &puts([("a", "raised")]));
    link.flow(&mut a, &mut r);
    let update = r.recv().expect("the commit");
    // It learns of its later boot by another pipe, and reports on this one before the tick that says HELLO again.
    r.call(|r, _| r.set_identity(Id([1; 16]), 9));
    r.call(|r, cx| r.ack(cx, update.position(), Level::Applied, false)).expect("what was given");
    link.flow(&mut a, &mut r);
    r.advance(Duration::from_secs(2));
    link.flow(&mut a, &mut r);
    let status = a.protocol.status();
    let node = status.iter().find(|node| node.boot == 9).expect("its HELLO came");
    assert_eq!(node.applied, Some(at));
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
    let Claim { position: head, mark } = a.protocol.head().expect("committed").claim();
    for position in [Position { rev: head.rev + 1, ..head }, Position { epoch: epoch(9), rev: 1 }] {
        let ack = Ack { namespace: "config".into(), position, mark, level: Level::Applied, volatile: false };
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
fn who_was_cut_off_while_behind_does_not_leave_its_new_upstream_at_once() {
    let (mut a, mut r, mut link) = pair();
    let no_slices = |m: Message| (!matches!(frame(&m), Frame::Slice(_))).then_some(m);
    commit(&mut a, &puts([("a", "2")]));
    link.flow_with(&mut a, &mut r, no_slices);
    a.advance(BEACON);
    link.flow_with(&mut a, &mut r, no_slices);
    assert_eq!(data(&r), Data::Behind);
    a.lose(link.above);
    r.lose(link.below);
    r.advance(BEACON * 60);
    a.advance(BEACON * 60);
    let closed = r.closed.len();
    let (mut first, mut second) = (Link::new(&mut a, &mut r), Link::new(&mut a, &mut r));
    for _ in 0..3 {
        first.flow_with(&mut a, &mut r, no_slices);
        second.flow_with(&mut a, &mut r, no_slices);
        r.advance(BEACON);
        a.advance(BEACON);
    }
    assert_eq!((&r.closed[closed..], data(&r)), (&[][..], Data::Behind));
}

#[test]
fn a_message_that_is_not_known_and_not_optional_gets_a_word_before_the_end() {
    let (_, mut r, link) = pair();
    r.drain(link.below, usize::MAX);
    r.arrive(link.below, [Frame::Unknown { kind: 99, optional: false }.encode()]);
    let said: Vec<Frame> = r.drain(link.below, usize::MAX).iter().map(frame).collect();
    assert!(matches!(&said[..], [Frame::Goodbye(g)] if g.code == GoodbyeCode::Version), "{said:?}");
    assert_eq!(r.closed.len(), 1);
}

#[test]
fn a_report_that_comes_before_the_word_of_what_is_held_counts_after_it() {
    let (mut a, mut r, old) = pair();
    // A pipe in reserve, whose WELCOME comes when it is in use already: it says first what it reached.
    let mut new = Link::new(&mut a, &mut r);
    a.arrive(new.above, r.drain(new.below, usize::MAX));
    let at = commit(&mut a, &puts([("b", "3")]));
    r.arrive(old.below, a.drain(old.above, usize::MAX));
    accept(&mut r, Level::Visible);
    r.lose(old.below);
    a.lose(old.above);
    r.call(|r, cx| r.ack(cx, at, Level::Applied, false)).expect("visible");
    new.flow(&mut a, &mut r);
    let first = new.up.iter().find(|f| matches!(f, Frame::Ack(_) | Frame::Want(..)));
    assert!(matches!(first, Some(Frame::Ack(_))), "{:?}", new.up);
    assert_eq!(a.protocol.reached(at, Level::Applied), 1);
}

fn acks(link: &Link) -> Vec<(u64, Level)> {
    let ack = |f: &Frame| if let Frame::Ack(ack) = f { Some((ack.position.rev, ack.level)) } else { None };
    link.up.iter().filter_map(ack).collect()
}

/// Another commit is given to the application.
fn change(a: &mut Authority, r: &mut Script<Replica>, link: &mut Link) -> Position {
    let now = r.now();
    let position = commit(a, &puts([("a", &format!("{now:?}"))]));
    link.flow(a, r);
    assert_eq!(r.recv().expect("it came").position(), position);
    position
}

#[test]
fn a_lone_change_is_reported_in_one_message_or_in_two_where_the_hook_takes_long() {
    let (mut a, mut r, mut link) = pair();
    r.advance(Duration::from_secs(1));
    for slow in [false, true] {
        let at = change(&mut a, &mut r, &mut link);
        link.up.clear();
        r.call(|r, cx| r.ack_in_passing(cx, at, Level::Visible, true)).expect("it was given");
        link.flow(&mut a, &mut r);
        assert_eq!(acks(&link), [], "what follows may be there at once");
        if slow {
            r.advance(Duration::from_millis(1));
            link.flow(&mut a, &mut r);
            assert_eq!(a.protocol.reached(at, Level::Visible), 1);
        }
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it is visible");
        link.flow(&mut a, &mut r);
        assert_eq!(acks(&link).len(), if slow { 2 } else { 1 });
        assert_eq!(a.protocol.reached(at, Level::Applied), 1);
        r.advance(Duration::from_secs(1));
        link.flow(&mut a, &mut r);
        assert_eq!(acks(&link).len(), if slow { 2 } else { 1 }, "said once");
    }
}

#[test]
fn reports_of_a_stream_gather_and_each_is_said_in_the_pause_behind_a_change() {
    let (mut a, mut r, mut link) = pair();
    let mut due = std::collections::VecDeque::new();
    for n in 0..100 {
        let at = change(&mut a, &mut r, &mut link);
        r.call(|r, cx| r.ack_in_passing(cx, at, Level::Visible, true)).expect("it was given");
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it is visible");
        link.flow(&mut a, &mut r);
        // The first of them are said at once.
        assert!(n > 3 || a.protocol.reached(at, Level::Applied) == 1, "{n}");
        due.push_back((at, r.now() + Duration::from_millis(50)));
        for _ in 0..10 {
            r.advance(Duration::from_millis(1));
            link.flow(&mut a, &mut r);
            while let Some((at, _)) = due.pop_front_if(|(_, until)| *until <= r.now()) {
                assert_eq!(a.protocol.reached(at, Level::Applied), 1);
            }
        }
    }
    assert!((20..60).contains(&acks(&link).len()), "{}", acks(&link).len());
    // After a pause a change is a lone one again.
    r.advance(Duration::from_secs(1));
    link.flow(&mut a, &mut r);
    let at = change(&mut a, &mut r, &mut link);
    r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it was given");
    link.flow(&mut a, &mut r);
    assert_eq!(a.protocol.reached(at, Level::Applied), 1);
}

#[test]
fn reports_of_a_slow_stream_gather_for_a_quarter_of_a_second() {
    let (mut a, mut r, mut link) = pair();
    let mut due = std::collections::VecDeque::new();
    for _ in 0..50 {
        let at = change(&mut a, &mut r, &mut link);
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it was given");
        link.flow(&mut a, &mut r);
        due.push_back((at, r.now() + Duration::from_millis(250)));
        for _ in 0..10 {
            r.advance(Duration::from_millis(10));
            link.flow(&mut a, &mut r);
            while let Some((at, _)) = due.pop_front_if(|(_, until)| *until <= r.now()) {
                assert_eq!(a.protocol.reached(at, Level::Applied), 1);
            }
        }
    }
    assert!((15..25).contains(&acks(&link).len()), "{}", acks(&link).len());
}

#[test]
fn who_commits_when_the_last_change_is_reported_seldom_waits_for_reports_to_gather() {
    let (mut a, mut r, mut link) = pair();
    let (began, changes) = (r.now(), 100);
    for _ in 0..changes {
        let at = change(&mut a, &mut r, &mut link);
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it was given");
        link.flow(&mut a, &mut r);
        while a.protocol.reached(at, Level::Applied) == 0 {
            r.advance(Duration::from_millis(1));
            link.flow(&mut a, &mut r);
        }
        r.advance(Duration::from_millis(2));
    }
    // One of six waits, for three times as long as changes took of late.
    let each = r.now().saturating_since(began) / changes;
    assert!(each < Duration::from_millis(20), "{each:?}");
}

#[test]
fn invariant_14_what_gathered_of_a_revision_is_said_beside_less_of_a_later_one() {
    let (mut a, mut r, mut link) = pair();
    for _ in 0..9 {
        let at = change(&mut a, &mut r, &mut link);
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it was given");
        link.flow(&mut a, &mut r);
    }
    r.advance(Duration::from_millis(250));
    link.flow(&mut a, &mut r);
    link.up.clear();
    // On disk; applied and not on disk; visible.
    let mut reach = |level, volatile| {
        let at = change(&mut a, &mut r, &mut link);
        r.call(|r, cx| r.ack_in_passing(cx, at, level, volatile)).expect("it was given");
        at
    };
    let (stored, applied, visible) =
        (reach(Level::Stored, false), reach(Level::Applied, true), reach(Level::Visible, true));
    r.advance(Duration::from_millis(50));
    link.flow(&mut a, &mut r);
    let node = &a.protocol.status()[0];
    assert_eq!((node.stored, node.applied, node.visible), (Some(stored), Some(applied), Some(visible)));
    // A refusal does not come before what was reached before it.
    let at = change(&mut a, &mut r, &mut link);
    r.call(|r, cx| r.ack(cx, at, Level::Visible, true)).expect("it was given");
    link.up.clear();
    r.call(|r, cx| r.nack(cx, at, NackCode::Hook, "no")).expect("it is visible");
    link.flow(&mut a, &mut r);
    assert!(matches!(&link.up[..], [Frame::Ack(_), Frame::Nack(_)]), "{:?}", link.up);
}

#[test]
fn a_stream_that_is_fast_never_waits_for_a_report() {
    let (mut a, mut r, mut link) = pair();
    for n in 0..200 {
        let at = commit(&mut a, &puts([("a", &n.to_string())]));
        link.flow(&mut a, &mut r);
        let update = r.recv().expect("each came by itself");
        assert_eq!(update.position(), at);
        r.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("it was given");
        link.flow(&mut a, &mut r);
    }
    let reported = acks(&link);
    assert!(reported.len() <= 5 + 200 / 4, "{}", reported.len());
    assert!(reported.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 4), "half of what may be on its way");
    // Large ones: half of the window is not exceeded.
    let large = "x".repeat(100 << 10);
    for n in 0..4 {
        let at = commit(&mut a, &puts([("a", &format!("{n}{large}"))]));
        link.flow(&mut a, &mut r);
        accept(&mut r, Level::Applied);
        link.flow(&mut a, &mut r);
        assert!(n % 2 == 0 || a.protocol.reached(at, Level::Applied) == 1);
    }
}

#[test]
fn invariant_14_a_server_that_knows_nothing_hears_what_was_applied_though_the_newest_was_not() {
    let (mut a, mut r, mut link) = pair();
    let first = a.protocol.head().map(|head| head.position).expect("applied");
    let second = commit(&mut a, &puts([("a", "2")]));
    link.flow(&mut a, &mut r);
    accept(&mut r, Level::Stored);
    r.call(|p, cx| p.nack(cx, second, NackCode::Hook, "no")).expect("it is visible");
    link.flow(&mut a, &mut r);
    let told = |a: &Authority| {
        let status = a.protocol.status()[0].clone();
        (status.stored, status.applied, status.refused.len())
    };
    assert_eq!(told(&a), (Some(second), Some(first), 1));
    // The server starts again, with the node as it is.
    r.lose(link.below);
    let mut a = Authority::new(Settings::default(), a.memory);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert_eq!(told(&a), (Some(second), Some(first), 1));
    // So does the node, from what its disk holds.
    let (head, state) =
        r.protocol.visible().map(|(head, state)| (head.clone(), state.clone())).expect("held");
    let applied = a.memory.machine.history().nth(1).map(|(position, _)| position);
    assert_eq!(applied, Some(first));
    let settings = ReplicaSettings { node: Id([1; 16]), boot: 2, ..ReplicaSettings::default() };
    let base = Base { position: first, chain: chain(&[0; 32], first.rev, &digest_of(&a, first)) };
    let kept = Kept::revision(head, state, Level::Stored).applied_before(Some(base));
    let mut r = Script::new(Replica::keeping(settings, kept));
    a.lose(link.above);
    let mut link = Link::new(&mut a, &mut r);
    link.flow(&mut a, &mut r);
    assert_eq!(told(&a), (Some(second), Some(first), 0));
}

fn digest_of(a: &Authority, at: Position) -> spanwire_config::Digest {
    a.memory.machine.read(Some(at.into())).expect("kept").1.digest()
}
