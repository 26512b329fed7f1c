//! Several namespaces on one pipe, as the sender serves them; the node's side is spoken by hand.

use std::collections::BTreeMap;

use spanwire_config::wire::{
    Hello, Nack, NodeReport, Report, SLICE, Said, VERSION, decode_state, encode_state, snapshot_size,
};
use spanwire_config::{AuthorityEvent, NodeKind, NodeStatus, NotServed, Origin, Ticket};

use super::*;

const WINDOW: u64 = 256 << 10;

/// One server of several namespaces, each with its own authority.
pub(crate) struct Server {
    pub(crate) memories: BTreeMap<String, Memory>,
    pub(crate) sender: Script<Distributor>,
}

impl Server {
    pub(crate) fn new<const N: usize>(settings: Settings, names: [&str; N]) -> Server {
        let memory = |(n, name): (usize, &&str)| {
            let settings = NsSettings { namespace: (*name).into(), ..NsSettings::default() };
            ((*name).to_owned(), Memory::new(settings, Id([n as u8 + 1; 16])))
        };
        let memories: BTreeMap<String, Memory> = names.iter().enumerate().map(memory).collect();
        let settings = Settings { namespace: names[0].into(), ..settings };
        let sender = Distributor::new(settings, memories[names[0]].machine.origin());
        let all = |sender: Distributor, name: &&str| {
            sender.with_namespace(name, memories[*name].machine.origin()).expect("another")
        };
        let sender = Script::new(names[1..].iter().fold(sender, all));
        Server { memories, sender }
    }

    fn bring(&mut self, name: &str, actions: Vec<AuthorityAction>) {
        for action in actions {
            let left = self.sender.call(|d, cx| d.namespace(name).expect("served").perform(cx, action));
            left.expect("in order");
        }
    }

    pub(crate) fn commit(&mut self, name: &str, changes: &ChangeSet) -> Position {
        let (position, left) = self.memories.get_mut(name).expect("served").commit(changes);
        self.bring(name, left);
        position
    }

    /// The newest, as a node names it.
    fn claim(&self, name: &str) -> Claim {
        let served = self.sender.protocol.namespaces().iter().find(|served| served.name() == name);
        served.and_then(|served| served.head()).expect("committed").claim()
    }

    /// What nodes show is judged.
    fn look(&mut self) {
        let names: Vec<String> = self.memories.keys().cloned().collect();
        for name in names {
            let shown = self.sender.call(|d, _| d.namespace(&name).expect("served").take_shown());
            for event in shown {
                let left = self.memories.get_mut(&name).expect("served").tell(event);
                self.bring(&name, left);
            }
        }
    }

    pub(crate) fn hear(&mut self, pipe: PipeId, frame: Frame) {
        self.sender.arrive(pipe, [frame.encode()]);
        self.look();
    }

    fn drain(&mut self, pipe: PipeId) -> Vec<Frame> {
        self.sender.drain(pipe, usize::MAX).iter().map(frame).collect()
    }

    pub(crate) fn status(&self, name: &str) -> Vec<NodeStatus> {
        let of_name = |namespace: &&spanwire_config::Namespace| namespace.name() == name;
        self.sender.protocol.namespaces().iter().find(of_name).expect("served").status()
    }

    pub(crate) fn beacon_time(&mut self) {
        self.sender.advance(BEACON);
    }
}

fn want(name: &str) -> Want {
    Want { namespace: name.into(), ..Want::default() }
}

pub(crate) fn hello<const N: usize>(node: u8, wants: [&str; N]) -> Hello {
    Hello {
        node: Id([node; 16]),
        boot: 1,
        attempt: 1,
        kind: NodeKind::Replica,
        name: format!("n{node}"),
        labels: Vec::new(),
        proto_min: VERSION,
        proto_max: VERSION,
        cluster: Id::default(),
        window: WINDOW as u32,
        max_chunk: SLICE as u32,
        wants: wants.map(want).into(),
    }
}

fn large(n: u8) -> ChangeSet {
    let mut changes = ChangeSet::new();
    (0..16).for_each(|k| changes.put(key(&format!("k{k}")), 0, vec![n; 64 << 10]));
    changes
}

/// What each WELCOME says of each namespace.
fn welcomes(frames: &[Frame]) -> Vec<Vec<(&str, NamespaceStatus)>> {
    let mut said = Vec::new();
    for frame in frames {
        if let Frame::Welcome(welcome) = frame {
            said.push(welcome.namespaces.iter().map(|(name, status)| (name.as_str(), *status)).collect());
        }
    }
    said
}

/// The namespaces of each beacon's HEADs.
fn beacons(frames: &[Frame]) -> Vec<Vec<&str>> {
    let mut shown = Vec::new();
    for frame in frames {
        if let Frame::Beacon(heads) = frame {
            shown.push(heads.iter().map(|head| head.namespace.as_str()).collect());
        }
    }
    shown
}

fn slices(frames: &[Frame]) -> Vec<&Slice> {
    frames
        .iter()
        .filter_map(|frame| if let Frame::Slice(slice) = frame { Some(&**slice) } else { None })
        .collect()
}

fn bytes(slices: &[&Slice]) -> u64 {
    slices.iter().map(|slice| slice.bytes.len() as u64).sum()
}

pub(crate) fn ack(name: &str, Claim { position, mark }: Claim) -> Frame {
    Frame::Ack(Ack { namespace: name.into(), position, mark, level: Level::Applied, volatile: false })
}

#[test]
fn a_hello_with_several_wants_is_answered_for_each_and_again_when_an_answer_changes() {
    let mut server = Server::new(Settings::default(), ["a", "b", "c"]);
    server.commit("a", &puts([("k", "a")]));
    let pipe = server.sender.open(64);
    server.hear(pipe, Frame::Hello(hello(1, ["b", "x", "a"])));
    let down = server.drain(pipe);
    assert_eq!(
        welcomes(&down),
        [vec![
            ("a", NamespaceStatus::Known),
            ("b", NamespaceStatus::Vacant),
            ("x", NamespaceStatus::Unknown)
        ]]
    );
    assert_eq!(beacons(&down), [["a"]]);
    assert_eq!(slices(&down).iter().map(|s| &*s.head.namespace).collect::<Vec<_>>(), ["a"]);
    // What is not wanted here changes nothing here.
    server.commit("c", &puts([("k", "c")]));
    assert_eq!(server.drain(pipe), []);
    server.commit("b", &puts([("k", "b")]));
    let down = server.drain(pipe);
    assert_eq!(
        welcomes(&down),
        [vec![("a", NamespaceStatus::Known), ("b", NamespaceStatus::Known), ("x", NamespaceStatus::Unknown)]]
    );
    assert_eq!(slices(&down).iter().map(|s| &*s.head.namespace).collect::<Vec<_>>(), ["b"]);
    // A further namespace, and one that does not exist, on the open pipe.
    server.hear(pipe, Frame::Want(WantReason::New, vec![want("c"), want("y")]));
    let down = server.drain(pipe);
    let last = &welcomes(&down)[0];
    assert_eq!(
        (last.len(), last[4], last[2]),
        (5, ("y", NamespaceStatus::Unknown), ("c", NamespaceStatus::Known))
    );
    assert_eq!(beacons(&down), [["a", "b", "c"]]);
    assert_eq!(slices(&down).iter().map(|s| &*s.head.namespace).collect::<Vec<_>>(), ["c"]);
    // Asked for once more: a fresh start of that one, and no other WELCOME.
    server.hear(pipe, Frame::Want(WantReason::Other, vec![want("c")]));
    let down = server.drain(pipe);
    assert_eq!((welcomes(&down).len(), slices(&down).len()), (0, 1));
}

#[test]
fn one_beacon_shows_all_that_a_pipe_wants_and_one_at_most_is_pending() {
    let mut server = Server::new(Settings::default(), ["a", "b", "c"]);
    for name in ["a", "b"] {
        server.commit(name, &puts([("k", name)]));
    }
    let [both, one, idle] = [1, 2, 3].map(|_| server.sender.open(64));
    server.hear(both, Frame::Hello(hello(1, ["c", "b", "a"])));
    server.hear(one, Frame::Hello(hello(2, ["b"])));
    server.hear(idle, Frame::Hello(hello(3, [])));
    [both, one, idle].iter().for_each(|pipe| drop(server.drain(*pipe)));
    let mut seq = BTreeMap::new();
    for _ in 0..3 {
        server.beacon_time();
        let down = [both, one, idle].map(|pipe| server.drain(pipe));
        assert_eq!(
            down.each_ref().map(|down| beacons(down)),
            [vec![vec!["a", "b"]], vec![vec!["b"]], vec![vec![]]]
        );
        let Frame::Beacon(heads) = &down[0][0] else { panic!("{down:?}") };
        for head in heads {
            let before = seq.insert(head.namespace.clone(), head.seq);
            assert!(before < Some(head.seq), "{before:?} {}", head.seq);
        }
    }
    (0..5).for_each(|_| server.beacon_time());
    assert_eq!(beacons(&server.drain(both)).len(), 1);
}

#[test]
fn invariant_19_all_namespaces_of_a_pipe_share_one_window_and_take_turns_by_slices() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    for (n, name) in ["a", "b"].into_iter().enumerate() {
        server.commit(name, &large(n as u8));
    }
    let pipe = server.sender.open(64);
    server.hear(pipe, Frame::Hello(hello(1, ["a", "b"])));
    let (mut taken, mut order, mut got) = (0, Vec::new(), BTreeMap::<String, Vec<u8>>::new());
    loop {
        let down = server.drain(pipe);
        let came = slices(&down);
        if came.is_empty() {
            break;
        }
        // A slice may overshoot the window, and one account counts for both.
        assert!(bytes(&came) <= WINDOW + SLICE as u64, "{}", bytes(&came));
        for slice in &came {
            let got = got.entry(slice.head.namespace.clone()).or_default();
            assert_eq!(slice.offset, got.len() as u64, "each is contiguous");
            got.extend_from_slice(&slice.bytes);
            order.push(slice.head.namespace.clone());
        }
        taken += bytes(&came);
        server.hear(pipe, Frame::Credit(taken));
    }
    assert!(order.chunks_exact(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    for name in ["a", "b"] {
        let state = &server.memories[name].machine.durable().expect("committed").state;
        assert_eq!(got[name].len() as u64, snapshot_size(state.keys(), state.bytes()));
        assert_eq!(&decode_state(&Bytes::from(got[name].clone())).expect("a state"), state);
    }
    // Credit beyond what was sent on the pipe is no credit.
    server.hear(pipe, Frame::Credit(taken + 1));
    assert!(!server.sender.is_open(pipe));
}

#[test]
fn a_namespace_that_asks_anew_or_waits_holds_up_no_other() {
    let mut server = Server::new(Settings { slots: 1, ..Settings::default() }, ["a", "b", "c"]);
    server.commit("a", &large(1));
    server.commit("b", &large(2));
    server.commit("c", &puts([("k", "c")]));
    let pipe = server.sender.open(64);
    server.hear(pipe, Frame::Hello(hello(1, ["a", "b", "c"])));
    let down = server.drain(pipe);
    let waiting: Vec<_> = down.iter().filter(|f| matches!(f, Frame::Waiting(..))).collect();
    assert_eq!(waiting, [&Frame::Waiting("b".into(), 1)]);
    let of = |down: &[Frame], name: &str| slices(down).iter().filter(|s| s.head.namespace == name).count();
    // What is small passes between the slices of what is large.
    assert!(of(&down, "a") > 1 && of(&down, "c") == 1 && of(&down, "b") == 0);
    let mut taken = bytes(&slices(&down));
    server.hear(pipe, Frame::Credit(taken));
    taken += bytes(&slices(&server.drain(pipe)));
    // Asked for once more in the middle of it: that namespace begins anew, and the one in line has the slot.
    server.hear(pipe, Frame::Want(WantReason::Other, vec![want("a")]));
    server.hear(pipe, Frame::Credit(taken));
    let down = server.drain(pipe);
    assert_eq!(slices(&down).iter().find(|s| s.head.namespace == "b").map(|s| s.offset), Some(0));
    let mut ended = Vec::new();
    let mut down = down;
    while !slices(&down).is_empty() {
        ended.extend(slices(&down).iter().filter(|s| s.last).map(|s| s.head.namespace.clone()));
        taken += bytes(&slices(&down));
        server.hear(pipe, Frame::Credit(taken));
        down = server.drain(pipe);
    }
    assert_eq!(ended, ["b", "a"]);
}

#[test]
fn invariant_22_a_slot_goes_to_who_waits_longest_and_not_to_another_namespace_of_the_pipe() {
    let mut server = Server::new(Settings { slots: 1, ..Settings::default() }, ["a", "b"]);
    server.commit("a", &large(1));
    server.commit("b", &large(2));
    let [first, second] = [1, 2].map(|_| server.sender.open(64));
    server.hear(first, Frame::Hello(hello(1, ["a"])));
    server.hear(second, Frame::Hello(hello(2, ["a"])));
    server.hear(first, Frame::Want(WantReason::New, vec![want("b")]));
    let waits = |down: &[Frame]| -> Vec<Frame> {
        down.iter().filter(|f| matches!(f, Frame::Waiting(..))).cloned().collect()
    };
    assert_eq!(waits(&server.drain(second)), [Frame::Waiting("a".into(), 1)]);
    let mut down = server.drain(first);
    assert_eq!(waits(&down), [Frame::Waiting("b".into(), 2)]);
    let mut taken = 0;
    while !slices(&down).iter().any(|slice| slice.last) {
        taken += bytes(&slices(&down));
        server.hear(first, Frame::Credit(taken));
        down = server.drain(first);
    }
    assert!(slices(&down).iter().all(|slice| slice.head.namespace == "a"));
    assert!(!slices(&server.drain(second)).is_empty());
}

#[test]
fn invariant_22_a_pipe_that_goes_gives_back_the_slots_of_all_its_namespaces() {
    let mut server = Server::new(Settings { slots: 2, ..Settings::default() }, ["a", "b"]);
    server.commit("a", &large(1));
    server.commit("b", &large(2));
    let [first, second] = [1, 2].map(|_| server.sender.open(64));
    server.hear(first, Frame::Hello(hello(1, ["a", "b"])));
    server.hear(second, Frame::Hello(hello(2, ["a", "b"])));
    let places: Vec<_> =
        server.drain(second).into_iter().filter(|f| matches!(f, Frame::Waiting(..))).collect();
    assert_eq!(places, [Frame::Waiting("a".into(), 1), Frame::Waiting("b".into(), 2)]);
    server.sender.lose(first);
    let down = server.drain(second);
    let mut names: Vec<_> = slices(&down).iter().map(|s| s.head.namespace.clone()).collect();
    names.dedup();
    assert!(names.len() > 2, "both, in turn: {names:?}");
    for name in ["a", "b"] {
        assert_eq!(server.status(name).iter().map(|node| node.connected).collect::<Vec<_>>(), [false, true]);
    }
}

#[test]
fn what_is_said_of_one_namespace_is_said_of_no_other() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let at = ["a", "b"].map(|name| server.commit(name, &puts([("k", name)])));
    let pipe = server.sender.open(64);
    server.hear(pipe, Frame::Hello(hello(1, ["a", "b"])));
    server.drain(pipe);
    let claims = ["a", "b"].map(|name| server.claim(name));
    server.hear(pipe, ack("a", claims[0]));
    let nack = Nack {
        namespace: "b".into(),
        position: at[1],
        mark: claims[1].mark,
        stays_at: Position::default(),
        code: NackCode::Validator,
        text: "no".into(),
    };
    server.hear(pipe, Frame::Nack(nack.clone()));
    let (a, b) = (server.status("a"), server.status("b"));
    assert_eq!((a[0].applied, a[0].refused.len()), (Some(at[0]), 0));
    assert_eq!((b[0].applied, b[0].refused.len()), (None, 1));
    // The refusal holds in its namespace alone.
    server.commit("a", &puts([("k", "2")]));
    server.hear(pipe, Frame::Want(WantReason::Other, vec![want("a")]));
    let down = server.drain(pipe);
    assert!(slices(&down).iter().all(|s| s.head.namespace == "a"));
    // Of a namespace that is not here nothing can be said, and nobody is cut off for it.
    server.hear(pipe, ack("x", claims[0]));
    server.hear(pipe, Frame::Nack(Nack { namespace: "x".into(), ..nack }));
    assert!(server.sender.is_open(pipe));
}

#[test]
fn invariant_17_a_node_counts_only_where_it_asked() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let [pipe, reserve] = [1, 2].map(|_| server.sender.open(64));
    server.hear(reserve, Frame::Hello(hello(1, [])));
    assert_eq!((server.status("a").len(), server.status("b").len()), (0, 0));
    server.hear(pipe, Frame::Hello(hello(1, ["b"])));
    assert_eq!((server.status("a").len(), server.status("b").len()), (0, 1));
    // The pipe in use goes; the other takes over, with a further namespace.
    server.sender.lose(pipe);
    assert!(!server.status("b")[0].connected);
    server.hear(reserve, Frame::Hello(Hello { attempt: 2, ..hello(1, ["a", "b"]) }));
    assert!(server.status("a")[0].connected && server.status("b")[0].connected);
}

#[test]
fn invariant_14_a_boot_below_one_known_in_any_namespace_is_turned_away() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let [first, second] = [1, 2].map(|_| server.sender.open(64));
    server.hear(first, Frame::Hello(Hello { boot: 7, ..hello(1, ["a"]) }));
    server.hear(second, Frame::Hello(Hello { boot: 3, ..hello(1, ["b"]) }));
    let down = server.drain(second);
    let [Frame::Goodbye(goodbye)] = &down[..] else { panic!("{down:?}") };
    assert_eq!((goodbye.code, goodbye.detail), (GoodbyeCode::StaleBoot, 7));
    assert_eq!(server.status("b"), []);
}

#[test]
fn a_node_that_contradicts_in_one_namespace_is_served_in_the_other() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let mut other = Memory::new(NsSettings { namespace: "a".into(), ..NsSettings::default() }, Id([9; 16]));
    let _ = other.commit(&puts([("k", "of another history")]));
    let foreign = other.machine.durable().expect("committed").head.clone();
    for name in ["a", "b"] {
        server.commit(name, &puts([("k", name)]));
    }
    let pipe = server.sender.open(64);
    let mut hello = hello(1, ["a", "b"]);
    hello.wants[0].have = vec![foreign];
    server.hear(pipe, Frame::Hello(hello));
    let down = server.drain(pipe);
    assert_eq!(beacons(&down), [["a", "b"]]);
    assert!(slices(&down).iter().all(|slice| slice.head.namespace == "b") && !slices(&down).is_empty());
    assert_eq!((server.status("a")[0].conflict, server.status("b")[0].conflict), (true, false));
}

#[test]
fn a_relay_tells_of_its_nodes_in_each_namespace_apart() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let at = ["a", "b"].map(|name| server.commit(name, &puts([("k", name)])));
    let pipe = server.sender.open(64);
    server.hear(pipe, Frame::Hello(Hello { kind: NodeKind::Relay, ..hello(8, ["a", "b"]) }));
    let mut status = NodeStatus::new(Id([1; 16]), 1);
    (status.connected, status.path) = (true, vec![Id([8; 16])]);
    let said = Said { applied: Some(server.claim("b")), ..Said::default() };
    let nodes = vec![NodeReport { status, said, attempt: 1, head: None }];
    let report = |name: &str| {
        let report = Report { namespace: name.into(), first: true, last: true, nodes: nodes.clone() };
        Frame::Report(Box::new(report))
    };
    server.hear(pipe, report("b"));
    server.hear(pipe, report("x"));
    let replicas = |name: &str| server.status(name).iter().filter(|n| n.kind == NodeKind::Replica).count();
    assert_eq!((replicas("a"), replicas("b")), (0, 1));
    assert_eq!(server.status("b").iter().find_map(|node| node.applied), Some(at[1]));
}

#[test]
fn a_lost_namespace_is_taken_from_a_node_while_another_is_served() {
    let mut before = Memory::new(NsSettings { namespace: "b".into(), ..NsSettings::default() }, Id([9; 16]));
    let _ = before.commit(&large(7));
    let (head, state) =
        before.machine.durable().map(|d| (d.head.clone(), d.state.clone())).expect("committed");
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    server.commit("a", &puts([("k", "a")]));
    let pipe = server.sender.open(64);
    let mut hello = hello(1, ["a", "b"]);
    hello.wants[1].have = vec![head.clone()];
    server.hear(pipe, Frame::Hello(hello));
    let adopt = AuthorityEvent::Adopt(Ticket(1), Id([5; 16]), None);
    let left = server.memories.get_mut("b").expect("served").tell(adopt);
    server.bring("b", left);
    let down = server.drain(pipe);
    assert!(down.contains(&Frame::Offer("b".into(), head.position)), "{down:?}");
    let payload = Bytes::from(encode_state(&state));
    for at in (0..payload.len()).step_by(SLICE) {
        let end = payload.len().min(at + SLICE);
        let slice = Slice {
            head: head.clone(),
            base: None,
            offset: at as u64,
            last: end == payload.len(),
            bytes: payload.slice(at..end),
        };
        server.hear(pipe, Frame::Slice(Box::new(slice)));
    }
    let down = server.drain(pipe);
    assert!(down.contains(&Frame::Credit(payload.len() as u64)));
    assert_eq!(server.memories["b"].machine.durable().map(|d| d.state.clone()), Some(state));
    // Of the other namespace nobody asked for anything.
    let head = server.memories["a"].machine.durable().expect("committed").head.clone();
    let slice = Slice { head, base: None, offset: 0, last: true, bytes: Bytes::new() };
    server.hear(pipe, Frame::Slice(Box::new(slice)));
    assert!(!server.sender.is_open(pipe));
}

#[test]
fn one_server_has_each_namespace_once_and_at_most_64() {
    let sender = || Distributor::new(Settings::default(), Origin::pending(1));
    let with = |sender: Distributor, name: &str| sender.with_namespace(name, Origin::pending(1));
    assert_eq!(with(sender(), "config").err(), Some(NotServed::Twice("config".into())));
    assert_eq!(with(sender(), &"n".repeat(129)).err(), Some(NotServed::Long(129)));
    let full = (1..64).fold(sender(), |sender, n| with(sender, &format!("n{n}")).expect("room"));
    assert_eq!((full.namespaces().len(), with(full, "one more").err()), (64, Some(NotServed::TooMany)));
}

#[test]
fn a_replica_of_one_namespace_is_served_beside_the_others() {
    let mut server = Server::new(Settings::default(), ["a", "b"]);
    let mut replicas = ["a", "b"].map(|name| {
        let (namespace, node) = (name.to_owned(), Id([name.as_bytes()[0]; 16]));
        Script::new(Replica::new(ReplicaSettings { namespace, node, ..ReplicaSettings::default() }))
    });
    let pipes = replicas.each_mut().map(|r| (server.sender.open(64), r.open(64)));
    for round in 0..3 {
        let at = ["a", "b"].map(|name| server.commit(name, &puts([("k", &format!("{name}{round}"))])));
        for ((r, (above, below)), at) in replicas.iter_mut().zip(pipes).zip(at) {
            let flow = |server: &mut Server, r: &mut Script<Replica>| loop {
                let (down, up) = (server.sender.drain(above, usize::MAX), r.drain(below, usize::MAX));
                if down.is_empty() && up.is_empty() {
                    return;
                }
                r.arrive(below, down);
                server.sender.arrive(above, up);
                server.look();
            };
            flow(&mut server, r);
            assert_eq!(accept(r, Level::Applied).position(), at);
            flow(&mut server, r);
        }
        for (name, at) in ["a", "b"].into_iter().zip(at) {
            assert_eq!(server.status(name)[0].applied, Some(at));
        }
    }
}
