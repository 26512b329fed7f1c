//! Relays: between an authority and nodes, and between each other.

mod disks;
mod histories;
mod rollouts;

use super::*;
use spanwire_config::relay::cached;
use spanwire_config::wire::{GoodbyeCode, MAX_PATH, NodeReport, Said};
use spanwire_config::{
    ChainMark, Distributor, Id, NodeKind, NodeStatus, NsRelay, RelayAction, RelayEvent, RelaySettings, State,
};

/// A relay: its two protocols, its machine, and a disk that takes everything at once.
pub(crate) struct Relay {
    pub(crate) upper: Script<Replica>,
    pub(crate) lower: Script<Distributor>,
    pub(crate) machine: NsRelay,
    cache: Option<(Head, State)>,
    /// The cache before that one.
    before: Option<(Head, State)>,
}

impl Relay {
    fn new(n: u8) -> Relay {
        Relay::restored(n, 0, None)
    }

    fn restored(n: u8, boot: u64, cache: Option<(Head, State)>) -> Relay {
        Relay::restored_of(n, boot, cache, None)
    }

    fn restored_of(n: u8, boot: u64, cache: Option<(Head, State)>, before: Option<(Head, State)>) -> Relay {
        let (all, canary) = cached(cache.clone(), before.clone());
        let node = Id([n; 16]);
        let settings = ReplicaSettings {
            node,
            boot,
            kind: NodeKind::Relay,
            name: format!("r{n}"),
            ..ReplicaSettings::default()
        };
        let upper = match canary.clone().or(all.clone()) {
            Some((head, state)) => Replica::restored(settings, head, state, Level::Stored),
            None => Replica::new(settings),
        };
        let machine = NsRelay::new(RelaySettings { node, ..RelaySettings::default() }, all);
        let machine = machine.with_canary(canary);
        let settings = Settings { server: node, ..Settings::default() };
        let lower = Distributor::new(settings, machine.origin());
        Relay { upper: Script::new(upper), lower: Script::new(lower), machine, cache, before }
    }

    /// Does what there is to be done, until there is nothing.
    fn turn(&mut self) {
        loop {
            let mut events = self.upper.call(|r, cx| r.relay_events(cx));
            events.extend(self.lower.call(|d, _| d.relay_events()));
            if events.is_empty() {
                return;
            }
            events.into_iter().for_each(|event| self.tell(event));
        }
    }

    fn tell(&mut self, event: RelayEvent) {
        let now = self.lower.now();
        for action in self.machine.handle(event, now) {
            let left = self.lower.call(|d, cx| d.perform_relay(cx, action)).expect("in order");
            let Some(left) = left else { continue };
            match self.upper.call(|r, cx| r.perform_relay(cx, left)).expect("in order") {
                Some(RelayAction::Persist(head, state)) => {
                    let at = head.position;
                    let other = self.cache.as_ref().is_none_or(|(old, _)| old.position != at);
                    let old = self.cache.replace((head, state));
                    // A later HEAD takes the place of the one before, as in a state folder.
                    self.before = if other { old } else { self.before.take() };
                    self.tell(RelayEvent::Stored(at, Ok(())));
                }
                Some(RelayAction::Report { whole }) => {
                    if whole {
                        self.lower.protocol.report_all();
                    }
                    while let Some(report) = self.lower.protocol.take_report() {
                        assert!(self.upper.call(|r, cx| r.report(cx, &report)), "there is room");
                    }
                }
                Some(RelayAction::Alarm(_)) | None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    fn advance(&mut self, by: Duration) {
        self.upper.advance(by);
        self.lower.advance(by);
        self.turn();
        if self.machine.due().is_some_and(|due| due <= self.lower.now()) {
            self.tell(RelayEvent::Time);
        }
    }
}

/// Whatever serves.
trait Serves {
    fn sender(&mut self) -> &mut Script<Distributor>;
    fn after(&mut self);
}

impl Serves for Authority {
    fn sender(&mut self) -> &mut Script<Distributor> {
        &mut self.sender
    }
    fn after(&mut self) {
        self.look();
    }
}

impl Serves for Relay {
    fn sender(&mut self) -> &mut Script<Distributor> {
        &mut self.lower
    }
    fn after(&mut self) {
        self.turn();
    }
}

/// Whatever receives.
trait Receiving {
    fn receiver(&mut self) -> &mut Script<Replica>;
    fn after(&mut self);
}

impl Receiving for Script<Replica> {
    fn receiver(&mut self) -> &mut Script<Replica> {
        self
    }
    fn after(&mut self) {}
}

impl Receiving for Relay {
    fn receiver(&mut self) -> &mut Script<Replica> {
        &mut self.upper
    }
    fn after(&mut self) {
        self.turn();
    }
}

/// A pipe between a server and who is below it.
struct Wire {
    above: PipeId,
    below: PipeId,
    down: Vec<Frame>,
    up: Vec<Frame>,
}

impl Wire {
    fn new(server: &mut impl Serves, node: &mut impl Receiving) -> Wire {
        let (above, below) = (server.sender().open(64), node.receiver().open(64));
        Wire { above, below, down: Vec::new(), up: Vec::new() }
    }

    /// Moves what is there until nothing moves; whether anything did.
    fn flow(&mut self, server: &mut impl Serves, node: &mut impl Receiving) -> bool {
        let mut moved = false;
        loop {
            server.after();
            node.after();
            let down = server.sender().drain(self.above, usize::MAX);
            let up = node.receiver().drain(self.below, usize::MAX);
            if down.is_empty() && up.is_empty() {
                return moved;
            }
            moved = true;
            self.down.extend(down.iter().map(frame));
            self.up.extend(up.iter().map(frame));
            node.receiver().arrive(self.below, down);
            server.sender().arrive(self.above, up);
        }
    }

    fn cut(&self, server: &mut impl Serves, node: &mut impl Receiving) {
        server.sender().lose(self.above);
        node.receiver().lose(self.below);
        server.after();
        node.after();
    }

    fn slices(&self) -> Vec<&Slice> {
        self.down.iter().filter_map(|f| if let Frame::Slice(s) = f { Some(&**s) } else { None }).collect()
    }

    fn heads(&self) -> Vec<&Head> {
        let mut heads = Vec::new();
        for f in &self.down {
            match f {
                Frame::Beacon(shown) => heads.extend(shown),
                Frame::Slice(slice) => heads.push(&slice.head),
                _ => {}
            }
        }
        heads
    }
}

fn status(server: &mut impl Serves, n: u8) -> NodeStatus {
    let all = server.sender().protocol.status();
    let one = all.iter().find(|status| status.node == Id([n; 16]));
    one.unwrap_or_else(|| panic!("no node {n} in {all:?}")).clone()
}

/// An authority, a relay and a node below it, with one commit applied everywhere.
fn three() -> (Authority, Relay, Script<Replica>, Wire, Wire) {
    let (mut a, mut r, mut n) = (authority(Settings::default()), Relay::new(50), replica(1));
    commit(&mut a, &puts([("a", "1"), ("b", "2"), ("z", &"z".repeat(400))]));
    let mut upper = Wire::new(&mut a, &mut r);
    upper.flow(&mut a, &mut r);
    let mut lower = Wire::new(&mut r, &mut n);
    lower.flow(&mut r, &mut n);
    accept(&mut n, Level::Applied);
    lower.flow(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    (a, r, n, upper, lower)
}

#[test]
fn a_relay_forwards_what_it_verified_with_the_head_as_it_came() {
    let (mut a, mut r, mut n, mut upper, mut lower) = three();
    let at = commit(&mut a, &puts([("a", "3")]));
    upper.flow(&mut a, &mut r);
    lower.flow(&mut r, &mut n);
    let update = accept(&mut n, Level::Applied);
    assert_eq!(update.position(), at);
    assert_eq!(Some(&update.state), a.protocol.state());
    for head in lower.heads() {
        assert!(upper.heads().contains(&head), "{head:?} was not heard from above");
    }
    let last = lower.slices().last().copied().cloned().expect("a step");
    assert!(last.base.is_some(), "from its own log");
    assert_eq!(r.cache.as_ref().map(|(head, _)| head.position), Some(at));
}

#[test]
fn the_authority_knows_nodes_behind_a_relay_and_their_path() {
    let (mut a, mut r, mut n, mut upper, lower) = three();
    let at = a.protocol.head().map(|head| head.position);
    let (relay, node) = (status(&mut a, 50), status(&mut a, 1));
    assert_eq!((relay.kind, relay.connected, relay.path.len(), relay.stored), (NodeKind::Relay, true, 0, at));
    assert_eq!((node.kind, node.connected, node.path.clone()), (NodeKind::Replica, true, vec![Id([50; 16])]));
    assert_eq!((node.stored, node.visible, node.applied), (at, at, at));
    assert_eq!(a.protocol.reached(at.expect("committed"), Level::Visible), 1, "relays do not count");

    lower.cut(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    assert!(!status(&mut a, 1).connected);
    assert_eq!(status(&mut a, 1).applied, at, "what it reached it reached");
}

#[test]
fn a_relay_serves_from_its_cache_while_its_upstream_is_away() {
    let (_, r, ..) = three();
    let mut r = Relay::restored(50, 1, r.cache.clone());
    let mut n = replica(2);
    let mut wire = Wire::new(&mut r, &mut n);
    wire.flow(&mut r, &mut n);
    accept(&mut n, Level::Applied);
    assert_eq!(data(&n), Data::Live);
    assert!(!n.protocol.status(n.now()).fresh, "no seq rises");
}

#[test]
fn a_relay_with_nothing_says_pending_and_serves_once_it_has_something() {
    let (mut a, mut r, mut n) = (authority(Settings::default()), Relay::new(50), replica(1));
    let mut lower = Wire::new(&mut r, &mut n);
    lower.flow(&mut r, &mut n);
    assert!(lower.heads().is_empty());
    let says = |n: &Script<Replica>| n.protocol.status(n.now()).namespace;
    assert_eq!(says(&n), Some(NamespaceStatus::Pending));
    let mut upper = Wire::new(&mut a, &mut r);
    commit(&mut a, &puts([("a", "1")]));
    upper.flow(&mut a, &mut r);
    lower.flow(&mut r, &mut n);
    accept(&mut n, Level::Applied);
    assert_eq!(says(&n), Some(NamespaceStatus::Known));
}

#[test]
fn welcome_has_the_path_and_is_said_again_when_it_changes() {
    let (mut a, mut r, mut n, upper, mut lower) = three();
    let paths = |wire: &Wire| {
        let path = |f: &Frame| if let Frame::Welcome(w) = f { Some(w.path.clone()) } else { None };
        wire.down.iter().filter_map(path).collect::<Vec<_>>()
    };
    assert_eq!(paths(&lower), [vec![Id::default(), Id([50; 16])]]);
    upper.cut(&mut a, &mut r);
    lower.flow(&mut r, &mut n);
    assert_eq!(paths(&lower).last(), Some(&vec![Id([50; 16])]));
}

#[test]
fn a_loop_is_refused_by_who_sees_itself_in_the_path() {
    let (mut one, mut two) = (Relay::new(50), Relay::new(51));
    let mut wires = [Wire::new(&mut one, &mut two), Wire::new(&mut two, &mut one)];
    // Both took each other for a way to the authority before either said so.
    for _ in 0..10 {
        wires[0].flow(&mut one, &mut two);
        wires[1].flow(&mut two, &mut one);
    }
    let refused =
        |wire: &Wire| wire.up.iter().any(|f| matches!(f, Frame::Goodbye(g) if g.code == GoodbyeCode::Loop));
    assert!(wires.iter().any(refused));
    assert!(one.machine.upstream().is_none() || two.machine.upstream().is_none());
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let mut chain: Vec<Relay> = (0..MAX_PATH as u8).map(|n| Relay::new(50 + n)).collect();
    let mut a = authority(Settings::default());
    commit(&mut a, &puts([("a", "1")]));
    let mut wire = Wire::new(&mut a, &mut chain[0]);
    wire.flow(&mut a, &mut chain[0]);
    for n in 1..chain.len() {
        let (above, below) = chain.split_at_mut(n);
        let mut wire = Wire::new(&mut above[n - 1], &mut below[0]);
        wire.flow(&mut above[n - 1], &mut below[0]);
        let refused = wire.up.iter().any(|f| matches!(f, Frame::Goodbye(g) if g.code == GoodbyeCode::Loop));
        assert_eq!(refused, n + 1 == MAX_PATH, "relay {n} would be server {}", n + 2);
    }
}

#[test]
fn left_from_one_relay_does_not_undo_here_from_another() {
    let (mut a, mut r, mut n, mut upper, lower) = three();
    let mut s = Relay::new(51);
    let mut other = Wire::new(&mut a, &mut s);
    other.flow(&mut a, &mut s);
    // The node goes from one relay to the other; the other's word comes first.
    n.lose(lower.below);
    let mut moved = Wire::new(&mut s, &mut n);
    moved.flow(&mut s, &mut n);
    s.advance(Duration::from_millis(100));
    other.flow(&mut a, &mut s);
    assert_eq!(status(&mut a, 1).path, [Id([51; 16])]);
    r.lower.lose(lower.above);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    let node = status(&mut a, 1);
    assert!(node.connected, "{node:?}");
    assert_eq!(node.path, [Id([51; 16])]);
    // And where its relay is follows the relay's own word.
    other.cut(&mut a, &mut s);
    assert!(!status(&mut a, 1).connected);
    let mut below = Wire::new(&mut r, &mut s);
    below.flow(&mut r, &mut s);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    assert_eq!(status(&mut a, 1).path, [Id([50; 16]), Id([51; 16])]);
    // The relay that it left says late that it has gone: it went on since.
    let mut old = status(&mut a, 1);
    (old.path, old.connected) = (vec![Id([50; 16])], false);
    let late = NodeReport { status: old, said: Said::default(), attempt: 1, head: None };
    let report = Frame::Report(Box::new(spanwire_config::wire::Report {
        namespace: "config".into(),
        nodes: vec![late],
        ..Default::default()
    }));
    a.arrive(upper.above, [report.encode()]);
    assert!(status(&mut a, 1).connected);
}

/// A life of node 7.
fn born(boot: u64) -> Script<Replica> {
    let node = Id([7; 16]);
    Script::new(Replica::new(ReplicaSettings { node, boot, ..ReplicaSettings::default() }))
}

/// An authority of one revision, and a relay that has it.
fn relayed() -> (Authority, Relay, Wire) {
    let (mut a, mut r) = (authority(Settings::default()), Relay::new(50));
    commit(&mut a, &puts([("a", "1")]));
    let mut upper = Wire::new(&mut a, &mut r);
    upper.flow(&mut a, &mut r);
    (a, r, upper)
}

#[test]
fn a_node_behind_a_relay_is_told_of_its_higher_boot_and_says_hello_with_one_above() {
    let (mut a, mut r, mut upper) = relayed();
    let mut first = born(5);
    let mut direct = Wire::new(&mut a, &mut first);
    direct.flow(&mut a, &mut first);
    direct.cut(&mut a, &mut first);
    // Its folder is put back, and it comes through the relay.
    let mut again = born(3);
    let mut lower = Wire::new(&mut r, &mut again);
    let mut report = |r: &mut Relay, again: &mut Script<Replica>| {
        lower.flow(r, again);
        r.advance(Duration::from_millis(100));
        upper.flow(&mut a, r);
        lower.flow(r, again);
        status(&mut a, 7)
    };
    assert!(!report(&mut r, &mut again).connected, "an earlier boot counts for nothing");
    assert_eq!(again.protocol.status(again.now()).stale_boot, Some(5));
    again.call(|n, _| n.set_identity(Id([7; 16]), 6));
    again.advance(BEACON);
    let known = report(&mut r, &mut again);
    assert_eq!((known.boot, known.connected, known.path), (6, true, vec![Id([50; 16])]));
}

#[test]
fn an_earlier_life_behind_a_relay_is_told_of_a_later_one_elsewhere() {
    let (mut a, mut r, mut upper) = relayed();
    let told = |r: &Script<Replica>| r.protocol.status(r.now()).stale_boot;
    let (mut first, mut second) = (born(5), born(6));
    let mut lower = Wire::new(&mut r, &mut first);
    lower.flow(&mut r, &mut first);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    let mut direct = Wire::new(&mut a, &mut second);
    direct.flow(&mut a, &mut second);
    upper.flow(&mut a, &mut r);
    lower.flow(&mut r, &mut first);
    assert_eq!((told(&first), told(&second)), (Some(6), None));
    // It raises its own, and then the other is told, by what the relay reports.
    first.call(|n, _| n.set_identity(Id([7; 16]), 7));
    first.advance(BEACON);
    lower.flow(&mut r, &mut first);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    direct.flow(&mut a, &mut second);
    lower.flow(&mut r, &mut first);
    assert_eq!((told(&first), told(&second)), (None, Some(7)));
}

#[test]
fn invariant_07_what_a_relay_cannot_place_goes_up_whole_and_its_levels_wait() {
    // Two authorities on one history: the other's third revision is known to nobody here.
    let (mut a, mut twin) = (authority(Settings::default()), authority(Settings::default()));
    let mut n = replica(1);
    for at in [&mut a, &mut twin] {
        commit(at, &puts([("a", "1")]));
    }
    commit(&mut twin, &puts([("a", "other")]));
    let mut wire = Wire::new(&mut twin, &mut n);
    wire.flow(&mut twin, &mut n);
    accept(&mut n, Level::Applied);
    wire.flow(&mut twin, &mut n);
    wire.cut(&mut twin, &mut n);
    let lost = n.protocol.visible().map(|(head, _)| head.position).expect("applied");
    for n in 0..3 {
        commit(&mut a, &puts([("b", &n.to_string())]));
    }
    let mut r = Relay::new(50);
    let mut upper = Wire::new(&mut a, &mut r);
    upper.flow(&mut a, &mut r);
    let mut lower = Wire::new(&mut r, &mut n);
    lower.flow(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    let known = status(&mut a, 1);
    assert!(known.conflict && known.connected, "{known:?}");
    assert_eq!(
        (known.stored, known.visible, known.applied),
        (None, None, None),
        "{lost} is of another history"
    );
    // The relay cannot know: it brings the node to what it holds, and that counts.
    let at = accept(&mut n, Level::Stored).position();
    lower.flow(&mut r, &mut n);
    r.advance(Duration::from_millis(100));
    upper.flow(&mut a, &mut r);
    let known = status(&mut a, 1);
    assert_eq!((known.stored, known.applied, known.conflict), (Some(at), None, false));
}
