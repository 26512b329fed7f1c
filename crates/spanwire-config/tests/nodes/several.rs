//! Several namespaces on one pipe, as the receiver holds them: what is the pipe's, and that no namespace feels another.

use spanwire::protocol::Receives;
use spanwire_config::sign::Secret;
use spanwire_config::wire::Hello;
use spanwire_config::{AuthorityEvent, Kept, NotServed, Ticket};

use super::namespaces::Server;
use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn settings() -> ReplicaSettings {
    ReplicaSettings { node: Id([1; 16]), namespace: "a".into(), ..ReplicaSettings::default() }
}

fn holding(settings: ReplicaSettings, names: &[&str]) -> Script<Replica> {
    let more =
        |replica: Replica, name: &&str| replica.with_namespace(name, Kept::default()).expect("another");
    Script::new(names.iter().fold(Replica::new(settings), more))
}

fn commit<const N: usize>(server: &mut Server, names: [&str; N], changes: &ChangeSet) {
    for name in names {
        server.commit(name, changes);
    }
}

/// A pipe between them, with what went over it.
struct Pair {
    above: PipeId,
    below: PipeId,
    down: Vec<Frame>,
    up: Vec<Frame>,
}

impl Pair {
    fn new(server: &mut Server, r: &mut Script<Replica>) -> Pair {
        let mut pair =
            Pair { above: server.sender.open(64), below: r.open(64), down: Vec::new(), up: Vec::new() };
        pair.flow(server, r);
        pair
    }

    fn flow(&mut self, server: &mut Server, r: &mut Script<Replica>) {
        self.flow_with(server, r, |_| {});
    }

    /// Moves what is there, with all HEADs changed on the way down, until nothing moves.
    fn flow_with(&mut self, server: &mut Server, r: &mut Script<Replica>, change: impl Fn(&mut Head)) {
        loop {
            let down = server.sender.drain(self.above, usize::MAX);
            let up = r.drain(self.below, usize::MAX);
            if down.is_empty() && up.is_empty() {
                return;
            }
            for message in down {
                let mut frame = frame(&message);
                match &mut frame {
                    Frame::Slice(slice) => change(&mut slice.head),
                    Frame::Beacon(heads) => heads.iter_mut().for_each(&change),
                    _ => {}
                }
                r.arrive(self.below, [frame.encode()]);
                self.down.push(frame);
            }
            for message in up {
                self.up.push(frame(&message));
                server.hear(self.above, frame(&message));
            }
        }
    }

    fn hellos(&self) -> Vec<&Hello> {
        self.up.iter().filter_map(|f| if let Frame::Hello(h) = f { Some(h) } else { None }).collect()
    }

    fn asked_again(&self) -> Vec<(WantReason, &str)> {
        let wants =
            self.up.iter().filter_map(|f| if let Frame::Want(r, w) = f { Some((*r, w)) } else { None });
        wants.flat_map(|(reason, wants)| wants.iter().map(move |want| (reason, &*want.namespace))).collect()
    }
}

/// The application takes and applies all there is.
fn accept_all(r: &mut Script<Replica>) -> Vec<(String, u64)> {
    let mut taken = Vec::new();
    while let Some(update) = r.recv() {
        let (name, at) = (update.head.namespace.clone(), update.position());
        r.call(|p, cx| p.namespace(&name).expect("held").ack(cx, at, Level::Applied, false)).expect("given");
        taken.push((name, at.rev));
    }
    taken
}

fn status(r: &Script<Replica>, name: &str) -> spanwire_config::ReplicaStatus {
    r.protocol.status_of(name, r.now()).expect("asked for")
}

/// Three namespaces with one commit each, applied on the node.
fn three(settings: ReplicaSettings, sender: Settings) -> (Server, Script<Replica>, Pair) {
    let (mut server, mut r) = (Server::new(sender, NAMES), holding(settings, &["b", "c"]));
    NAMES.iter().for_each(|name| commit(&mut server, [name], &puts([("k", name)])));
    let mut pair = Pair::new(&mut server, &mut r);
    assert_eq!(accept_all(&mut r), [("a".into(), 1), ("b".into(), 1), ("c".into(), 1)]);
    pair.flow(&mut server, &mut r);
    (server, r, pair)
}

#[test]
fn a_hello_asks_for_all_and_each_is_held_and_reported() {
    let (mut server, mut r, mut pair) = three(settings(), Settings::default());
    let wants = |hello: &&Hello| hello.wants.iter().map(|want| want.namespace.clone()).collect::<Vec<_>>();
    assert_eq!(pair.hellos().iter().map(wants).collect::<Vec<_>>(), [NAMES]);
    for name in NAMES {
        assert_eq!(server.status(name)[0].applied, server.memories[name].machine.position());
        let status = status(&r, name);
        assert_eq!((status.data, status.namespace), (Data::Live, Some(NamespaceStatus::Known)));
    }
    // One beacon is a sign of life of all.
    server.beacon_time();
    pair.flow(&mut server, &mut r);
    assert!(NAMES.iter().all(|name| status(&r, name).fresh));
    // Each is given in its turn.
    commit(&mut server, NAMES, &puts([("k", "2")]));
    pair.flow(&mut server, &mut r);
    assert_eq!(accept_all(&mut r), [("a".into(), 2), ("b".into(), 2), ("c".into(), 2)]);
    assert_eq!(pair.asked_again(), []);
}

#[test]
fn a_namespace_is_added_on_an_open_pipe_before_welcome_or_without_any_pipe() {
    let mut server = Server::new(Settings::default(), NAMES);
    NAMES.iter().for_each(|name| commit(&mut server, [name], &puts([("k", name)])));
    let mut r = holding(settings(), &[]);
    let add = |r: &mut Script<Replica>, name: &str| {
        r.call(|p, cx| p.add_namespace(cx, name, Kept::default())).expect("another");
    };
    let (above, below) = (server.sender.open(64), r.open(64));
    // HELLO is on its way already.
    add(&mut r, "b");
    let mut pair = Pair { above, below, down: Vec::new(), up: Vec::new() };
    pair.flow(&mut server, &mut r);
    assert_eq!(accept_all(&mut r), [("a".into(), 1), ("b".into(), 1)]);
    add(&mut r, "c");
    add(&mut r, "d");
    pair.flow(&mut server, &mut r);
    assert_eq!(accept_all(&mut r), [("c".into(), 1)]);
    let asked = ["b", "c", "d"].map(|name| (WantReason::New, name));
    assert_eq!((pair.hellos().len(), pair.asked_again()), (1, asked.into()));
    assert_eq!(status(&r, "d").namespace, Some(NamespaceStatus::Unknown));
    assert_eq!(status(&r, "a").data, Data::Live);
    // Without a pipe the next HELLO asks for it.
    r.lose(pair.below);
    server.sender.lose(pair.above);
    add(&mut r, "e");
    let pair = Pair::new(&mut server, &mut r);
    let wants: Vec<&str> = pair.hellos()[0].wants.iter().map(|want| &*want.namespace).collect();
    assert_eq!((wants, pair.asked_again()), (vec!["a", "b", "c", "d", "e"], vec![]));
}

#[test]
fn the_credit_of_a_pipe_is_that_of_all_its_namespaces() {
    let (mut server, mut r, mut pair) = three(settings(), Settings::default());
    let large = "l".repeat(600 << 10);
    commit(&mut server, ["a", "b"], &puts([("large", &large)]));
    pair.flow(&mut server, &mut r);
    assert_eq!(accept_all(&mut r).len(), 2);
    let slices = pair.down.iter().filter_map(|f| if let Frame::Slice(s) = f { Some(s) } else { None });
    let came: u64 = slices.clone().map(|slice| slice.bytes.len() as u64).sum();
    // The two large ones came slice by slice in turn.
    let names: Vec<&str> = slices.skip(3).map(|slice| &*slice.head.namespace).collect();
    assert!(names.windows(2).filter(|two| two[0] != two[1]).count() > 10, "{names:?}");
    r.advance(BEACON);
    pair.flow(&mut server, &mut r);
    let taken = pair.up.iter().filter_map(|f| if let Frame::Credit(taken) = f { Some(*taken) } else { None });
    assert_eq!(taken.max(), Some(came));
}

#[test]
fn a_refusal_in_one_namespace_touches_no_other() {
    let (mut server, mut r, mut pair) = three(settings(), Settings::default());
    let at = ["a", "b"].map(|name| server.commit(name, &puts([("k", "2")])));
    pair.flow(&mut server, &mut r);
    let [a, b] = [r.recv().expect("a"), r.recv().expect("b")];
    assert_eq!([&*a.head.namespace, &*b.head.namespace], ["a", "b"]);
    // The same position may be refused in the one and accepted in the other.
    let refuse = |p: &mut Replica, cx: &mut spanwire::protocol::Cx<'_>| {
        p.namespace("b").expect("held").nack(cx, at[1], NackCode::Validator, "no")
    };
    r.call(refuse).expect("given");
    r.call(|p, cx| p.ack(cx, at[0], Level::Applied, false)).expect("given");
    pair.flow(&mut server, &mut r);
    assert_eq!(NAMES.map(|name| status(&r, name).data), [Data::Live, Data::Held, Data::Live]);
    assert_eq!((server.status("a")[0].applied, server.status("a")[0].refused.len()), (Some(at[0]), 0));
    assert_eq!(server.status("b")[0].refused[0].0, at[1]);
    // It is asked for anew, and the others are not.
    r.call(|p, cx| p.namespace("b").expect("held").retry(cx));
    pair.flow(&mut server, &mut r);
    assert_eq!(pair.asked_again(), [(WantReason::Retry, "b")]);
    assert_eq!(accept_all(&mut r), [("b".into(), 2)]);
}

#[test]
fn two_histories_of_one_namespace_are_a_conflict_in_that_alone() {
    let (mut server, mut r, mut pair) = three(settings(), Settings::default());
    let other = |head: &mut Head| {
        if head.namespace == "b" {
            head.position.epoch.incarnation = Id([9; 16]);
        }
    };
    server.beacon_time();
    pair.flow_with(&mut server, &mut r, other);
    assert_eq!(NAMES.map(|name| status(&r, name).data), [Data::Live, Data::Conflict, Data::Live]);
    let conflicts = |f: &&Frame| matches!(f, Frame::Nack(n) if n.code == NackCode::Conflict);
    let said: Vec<_> = pair.up.iter().filter(conflicts).collect();
    assert!(matches!(said[..], [Frame::Nack(nack)] if nack.namespace == "b"), "{said:?}");
    commit(&mut server, NAMES, &puts([("k", "2")]));
    pair.flow(&mut server, &mut r);
    assert_eq!(accept_all(&mut r), [("a".into(), 2), ("c".into(), 2)]);
    // It does not take the others to another server, though nothing of it rises any more.
    let mut reserve = Pair::new(&mut server, &mut r);
    for _ in 0..30 {
        server.beacon_time();
        pair.flow(&mut server, &mut r);
        reserve.flow(&mut server, &mut r);
        r.advance(BEACON);
    }
    assert!(r.is_open(pair.below) && status(&r, "a").fresh && !status(&r, "b").fresh);
}

#[test]
fn invariant_05_three_doubtful_heads_of_one_namespace_in_a_row_end_the_pipe_and_two_nothing() {
    let secret = Secret::from_seed(1, &[1; 32]);
    let trusting = ReplicaSettings { trust: secret.public(), ..settings() };
    let signing = Settings { secret: Some(secret), ..Settings::default() };
    let (mut server, mut r, mut pair) = three(trusting, signing);
    let forged = |head: &mut Head| head.seq += u64::from(head.namespace == "b") << 41;
    let mut beacon = |server: &mut Server, r: &mut Script<Replica>, forge: bool| {
        server.beacon_time();
        match forge {
            true => pair.flow_with(server, r, forged),
            false => pair.flow(server, r),
        }
        r.advance(BEACON);
        r.is_open(pair.below)
    };
    // A good one of it between; those of the others are between all of them.
    assert!([true, true, false, true, true].into_iter().all(|forge| beacon(&mut server, &mut r, forge)));
    assert!(NAMES.iter().all(|name| status(&r, name).fresh));
    assert!(!beacon(&mut server, &mut r, true));
}

#[test]
fn heads_of_a_namespace_that_nobody_asked_for_are_as_foreign_as_those_of_another_cluster() {
    let (server, mut r, pair) = three(settings(), Settings::default());
    let stranger = server.memories["a"].machine.durable().expect("committed").head.clone();
    let stranger = Head { namespace: "x".into(), ..stranger };
    for open in [true, true, false] {
        r.arrive(pair.below, [Frame::Beacon(vec![stranger.clone()]).encode()]);
        assert_eq!(r.is_open(pair.below), open);
    }
}

#[test]
fn invariant_18_what_a_server_does_not_serve_takes_nothing_elsewhere_and_what_stands_still_does() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let mut other = Server::new(Settings { server: Id([8; 16]), ..Settings::default() }, ["a", "b"]);
    server.commit("a", &puts([("k", "a")]));
    // Of "b" it has nothing, and of "x" it does not know.
    let mut r = holding(settings(), &["b", "x"]);
    let mut pair = Pair::new(&mut server, &mut r);
    let mut reserve = Pair::new(&mut other, &mut r);
    accept_all(&mut r);
    let mut beacons = |server: &mut Server, r: &mut Script<Replica>, times: usize, still: Option<&str>| {
        for _ in 0..times {
            server.beacon_time();
            other.beacon_time();
            let old = |head: &mut Head| head.seq *= u64::from(Some(&*head.namespace) != still);
            pair.flow_with(server, r, old);
            reserve.flow(&mut other, r);
            r.advance(BEACON);
        }
        r.is_open(pair.below)
    };
    assert!(beacons(&mut server, &mut r, 30, None));
    assert_eq!(status(&r, "b").namespace, Some(NamespaceStatus::Vacant));
    // Once it is served it has as long as any other.
    server.commit("b", &puts([("k", "b")]));
    assert!(beacons(&mut server, &mut r, 30, None));
    assert!(beacons(&mut server, &mut r, 9, Some("b")));
    assert!(!beacons(&mut server, &mut r, 3, Some("b")));
}

#[test]
fn invariant_26_all_fail_over_together_with_what_they_have() {
    let (mut server, mut r, pair) = three(settings(), Settings::default());
    server.commit("b", &puts([("k", "2")]));
    let mut reserve = Pair::new(&mut server, &mut r);
    assert_eq!(reserve.hellos()[0].wants, []);
    server.sender.lose(pair.above);
    r.lose(pair.below);
    reserve.flow(&mut server, &mut r);
    let hello = reserve.hellos()[1];
    let has = |want: &Want| (want.namespace.clone(), want.have.iter().map(|head| head.position.rev).sum());
    assert_eq!(hello.wants.iter().map(has).collect::<Vec<(_, u64)>>(), NAMES.map(|name| (name.into(), 1)));
    let acks = |f: &&Frame| matches!(f, Frame::Ack(ack) if ack.level == Level::Applied);
    assert_eq!(reserve.up.iter().filter(acks).count(), 3);
    assert_eq!(accept_all(&mut r), [("b".into(), 2)]);
    let slices: Vec<_> = reserve.down.iter().filter(|f| matches!(f, Frame::Slice(_))).collect();
    assert!(matches!(slices[..], [Frame::Slice(s)] if s.base.is_some()), "{slices:?}");
}

#[test]
fn what_two_authorities_lost_comes_up_a_slice_of_each_in_turn() {
    let (mut server, mut r, mut pair) = three(settings(), Settings::default());
    let large = "l".repeat(300 << 10);
    commit(&mut server, ["a", "b"], &puts([("large", &large)]));
    pair.flow(&mut server, &mut r);
    accept_all(&mut r);
    r.lose(pair.below);
    let mut lost = Server::new(Settings::default(), ["a", "b"]);
    let mut pair = Pair::new(&mut lost, &mut r);
    for name in ["a", "b"] {
        let adopt = AuthorityEvent::Adopt(Ticket(1), Id([9; 16]), None);
        let left = lost.memories.get_mut(name).expect("served").tell(adopt);
        left.into_iter().for_each(|action| {
            lost.sender
                .call(|d, cx| d.namespace(name).expect("served").perform(cx, action))
                .expect("in order");
        });
    }
    pair.flow(&mut lost, &mut r);
    for name in ["a", "b"] {
        let content = |server: &Server| server.memories[name].machine.durable().map(|d| d.state.clone());
        assert_eq!(content(&lost), content(&server));
    }
    let up =
        pair.up.iter().filter_map(|f| if let Frame::Slice(s) = f { Some(&*s.head.namespace) } else { None });
    let up: Vec<&str> = up.collect();
    assert!(up.len() > 8 && up[up.len() / 2 - 1] != up[up.len() / 2], "{up:?}");
}

#[test]
fn a_receiver_has_each_namespace_once_and_at_most_64() {
    let with = |replica: Replica, name: &str| replica.with_namespace(name, Kept::default());
    let one = || Replica::new(ReplicaSettings::default());
    assert_eq!(with(one(), "config").err(), Some(NotServed::Twice("config".into())));
    assert_eq!(with(one(), &"n".repeat(129)).err(), Some(NotServed::Long(129)));
    let full = (1..64).fold(one(), |replica, n| with(replica, &format!("n{n}")).expect("room"));
    assert_eq!((full.namespaces().len(), with(full, "one more").err()), (64, Some(NotServed::TooMany)));
    // All of them are in one HELLO.
    let full = (1..64).fold(one(), |replica, n| with(replica, &format!("n{n:0>127}")).expect("room"));
    let mut r = Script::new(full);
    let pipe = r.open(64);
    let [hello] = &r.drain(pipe, usize::MAX)[..] else { panic!("one HELLO") };
    assert!(matches!(frame(hello), Frame::Hello(hello) if hello.wants.len() == 64));
    assert!(r.call(Receives::recv).is_none());
}
