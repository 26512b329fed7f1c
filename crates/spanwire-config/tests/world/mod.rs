//! The simulated world: scripts, links, disks, and the oracle.

use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;
use std::time::Duration;

use bytes::Bytes;
use spanwire::Message;
use spanwire::protocol::PipeId;
use spanwire::protocol::script::Script;
use spanwire_config::wire::{Frame, NackCode};
use spanwire_config::{
    ChangeSet, Digest, Distributor, Epoch, Head, Id, Key, Level, Origin, Position, Replica, ReplicaSettings,
    Settings, State, Update,
};

const NODES: usize = 4;
const KEYS: u64 = 12;

/// What may go wrong beyond links that are cut.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Faults {
    pub(crate) restarts: bool,
    pub(crate) tamper: bool,
}

/// What happened.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) commits: u64,
    pub(crate) epochs: u64,
    pub(crate) published: u64,
    pub(crate) refusals: u64,
    pub(crate) cuts: u64,
    pub(crate) restarts: u64,
    pub(crate) tampered: u64,
    pub(crate) digest_failures: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, o: Counts) {
        self.commits += o.commits;
        self.epochs += o.epochs;
        self.published += o.published;
        self.refusals += o.refusals;
        self.cuts += o.cuts;
        self.restarts += o.restarts;
        self.tampered += o.tampered;
        self.digest_failures += o.digest_failures;
    }
}

struct Link {
    above: PipeId,
    below: PipeId,
    down: VecDeque<Message>,
    up: VecDeque<Message>,
}

struct Node {
    id: Id,
    boot: u64,
    script: Script<Replica>,
    link: Option<Link>,
    closed: usize,
    /// What a restart finds.
    disk: Option<(Head, State, Level)>,
    given: Option<Update>,
    /// Visible to readers on this node, with what it was when they pinned it.
    shown: Option<(Position, State, Digest)>,
    truth: [Option<Position>; 3],
}

/// Everything.
pub(crate) struct World {
    seed: u64,
    random: u64,
    faults: Faults,
    counts: Counts,
    /// Every committed state there ever was.
    oracle: BTreeMap<(u64, u64), (Head, State)>,
    store: Option<(Head, State)>,
    epoch: u64,
    opened: u32,
    authority: Script<Distributor>,
    closed: usize,
    nodes: Vec<Node>,
    trace: u64,
    healed: bool,
}

fn settings(random: u64) -> Settings {
    Settings {
        log_commits: 1 + (random % 6) as usize,
        window: 2_000 + (random >> 8) as u32 % 10_000,
        slots: 1 + (random >> 40) as usize % 2,
        ..Settings::default()
    }
}

fn replica(node: &Node, window: u32) -> Script<Replica> {
    let settings = ReplicaSettings {
        node: node.id,
        boot: node.boot,
        window,
        max_chunk: 4096,
        ..ReplicaSettings::default()
    };
    Script::new(match &node.disk {
        Some((head, state, level)) => Replica::restored(settings, head.clone(), state.clone(), *level),
        None => Replica::new(settings),
    })
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> World {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
        let epoch = Epoch { number: 1, incarnation: Id([1; 16]) };
        let authority = Script::new(Distributor::new(settings(next(&mut random)), Origin::begin(epoch)));
        let nodes = (0..NODES)
            .map(|n| {
                let mut node = Node {
                    id: Id([n as u8 + 1; 16]),
                    boot: 1,
                    script: Script::new(Replica::new(ReplicaSettings::default())),
                    link: None,
                    closed: 0,
                    disk: None,
                    given: None,
                    shown: None,
                    truth: [None; 3],
                };
                node.script = replica(&node, 8_000);
                node
            })
            .collect();
        World {
            seed,
            random,
            faults,
            counts: Counts::default(),
            oracle: BTreeMap::new(),
            store: None,
            epoch: 1,
            opened: 1,
            authority,
            closed: 0,
            nodes,
            trace: 0,
            healed: false,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    fn dice(&mut self, n: u64) -> u64 {
        next(&mut self.random) % n
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
    }

    /// One random event.
    pub(crate) fn step(&mut self) {
        let n = self.dice(NODES as u64) as usize;
        let event = self.dice(100);
        self.note(event * 8 + n as u64);
        match event {
            0..10 => self.commit(),
            10..55 => self.carry(n, 6),
            55..75 => self.act(n),
            75..84 => {
                let ms = 20 + self.dice(600);
                self.advance(Duration::from_millis(ms));
            }
            84..92 => self.connect(n),
            92..95 => self.cut(n),
            95 if self.faults.restarts => self.restart_node(n),
            96 if self.faults.restarts && self.dice(3) == 0 => self.restart_authority(),
            97 if self.faults.restarts && self.dice(2) == 0 => self.new_epoch(),
            _ => self.act(n),
        }
        self.follow_closes();
    }

    fn commit(&mut self) {
        let mut changes = ChangeSet::new();
        for _ in 0..=self.dice(3) {
            let key = Key::new(format!("key/{}", self.dice(KEYS))).expect("short");
            match self.dice(4) {
                0 => changes.delete(key),
                _ => {
                    let big = self.dice(8) == 0;
                    let len = self.dice(if big { 9_000 } else { 300 }) as usize;
                    let fill = self.dice(256) as u8;
                    changes.put(key, self.dice(3) as u16, vec![fill; len]);
                }
            }
        }
        let Some(prepared) = self.authority.protocol.prepare(&changes).expect("within limits") else {
            return;
        };
        // Durable, then published; a crash may come between.
        self.persist(&prepared.head().clone(), prepared.state());
        self.counts.commits += 1;
        if self.faults.restarts && self.dice(80) == 0 {
            self.restart_authority();
            return;
        }
        self.authority.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    }

    fn persist(&mut self, head: &Head, state: &State) {
        let at = (head.position.epoch.number, head.position.rev);
        let old = self.oracle.insert(at, (head.clone(), state.clone()));
        assert!(old.is_none(), "seed {}: revision {at:?} was committed twice", self.seed);
        self.store = Some((head.clone(), state.clone()));
    }

    fn new_epoch(&mut self) {
        if self.store.is_none() {
            return;
        }
        self.epoch += 1;
        let epoch = Epoch { number: self.epoch, incarnation: Id([self.epoch as u8; 16]) };
        let prepared = self.authority.protocol.prepare_epoch(epoch).expect("above");
        self.persist(&prepared.head().clone(), prepared.state());
        self.authority.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
        self.counts.epochs += 1;
    }

    fn restart_authority(&mut self) {
        self.counts.restarts += 1;
        for n in 0..NODES {
            self.drop_link(n, false);
        }
        self.opened += 1;
        let origin = match &self.store {
            Some((head, state)) => Origin::restored(head.clone(), state.clone(), self.opened),
            None => Origin::begin(Epoch { number: 1, incarnation: Id([1; 16]) }),
        };
        let random = next(&mut self.random);
        self.authority = Script::new(Distributor::new(settings(random), origin));
        self.closed = 0;
    }

    fn restart_node(&mut self, n: usize) {
        self.counts.restarts += 1;
        self.drop_link(n, true);
        let window = 3_000 + self.dice(8_000) as u32;
        let node = &mut self.nodes[n];
        node.boot += 1;
        node.script = replica(node, window);
        node.closed = 0;
        node.given = None;
        // Invariant 4: the first visible after a restart is not below what was said to be stored.
        let disk = node.disk.as_ref().map(|(head, ..)| head.position);
        assert!(
            within(node.truth[0], disk),
            "seed {}: stored {:?}, found {disk:?}",
            self.seed,
            node.truth[0]
        );
        node.shown = node.disk.as_ref().map(|(head, state, _)| (head.position, state.clone(), head.digest));
    }

    fn connect(&mut self, n: usize) {
        if self.nodes[n].link.is_some() {
            return;
        }
        let above = self.authority.open(64);
        let below = self.nodes[n].script.open(64);
        self.nodes[n].link = Some(Link { above, below, down: VecDeque::new(), up: VecDeque::new() });
    }

    fn cut(&mut self, n: usize) {
        if self.nodes[n].link.is_some() {
            self.counts.cuts += 1;
            self.drop_link(n, true);
        }
    }

    /// What is on its way is lost; each side that lives hears of the end.
    fn drop_link(&mut self, n: usize, tell_authority: bool) {
        let node = &mut self.nodes[n];
        if let Some(link) = node.link.take() {
            node.script.lose(link.below);
            node.closed = node.script.closed.len();
            if tell_authority {
                self.authority.lose(link.above);
                self.closed = self.authority.closed.len();
            }
        }
    }

    /// A pipe that one side closed ends on the other, after what was sent before.
    fn follow_closes(&mut self) {
        for n in 0..NODES {
            let Some(link) = &self.nodes[n].link else { continue };
            let above = self.authority.closed[self.closed.min(self.authority.closed.len())..]
                .iter()
                .any(|(pipe, _)| *pipe == link.above);
            let below = self.nodes[n].script.closed.iter().any(|(pipe, _)| *pipe == link.below);
            if above || below {
                self.drop_link(n, true);
            }
        }
    }

    /// Moves some messages of one link in both directions.
    fn carry(&mut self, n: usize, most: u64) {
        let (down, up) = (self.dice(most), self.dice(most));
        let tamper = self.faults.tamper && !self.healed && self.dice(6) == 0;
        let fill = 1 + self.dice(4) as usize;
        let node = &mut self.nodes[n];
        let Some(link) = &mut node.link else { return };
        link.down.extend(self.authority.drain(link.above, fill));
        link.up.extend(node.script.drain(link.below, fill));
        for _ in 0..down {
            let Some(mut message) = link.down.pop_front() else { break };
            if tamper && let Some(flipped) = flip(&message, self.random) {
                message = flipped;
                self.counts.tampered += 1;
            }
            node.script.arrive(link.below, [message]);
        }
        for _ in 0..up {
            let Some(message) = link.up.pop_front() else { break };
            self.authority.arrive(link.above, [message]);
        }
        let size = link.down.len() as u64 * 31 + link.up.len() as u64;
        self.note(size);
    }

    /// The application on a node does one thing.
    fn act(&mut self, n: usize) {
        let (refuse, choice) = (!self.healed && self.dice(8) == 0, self.dice(6));
        let (seed, node) = (self.seed, &mut self.nodes[n]);
        let Some(update) = node.given.take() else {
            if choice == 0
                && let Some((head, _)) = node.script.protocol.visible().map(|(h, s)| (h.clone(), s.clone()))
            {
                let at = head.position;
                node.script.call(|r, cx| r.ack(cx, at, Level::Applied, true)).expect("visible");
                node.truth[2] = node.truth[2].max_of(at);
                node.truth[1] = node.truth[1].max_of(at);
                return;
            }
            node.given = node.script.recv();
            if let Some(update) = &node.given {
                self.counts.published += 1;
                // What differs from what this node shows is in `changed`.
                let before = node.shown.as_ref().map(|(_, state, _)| state.clone()).unwrap_or_default();
                for key in before.diff(&update.state).keys() {
                    assert!(update.changed.contains(key), "seed {seed}: {key} changed unsaid");
                }
                assert!(
                    node.shown.as_ref().is_none_or(|(at, ..)| *at < update.position()),
                    "seed {seed}: invariant 3: given {} after {:?}",
                    update.position(),
                    node.shown
                );
            }
            return;
        };
        let at = update.position();
        if refuse {
            self.counts.refusals += 1;
            node.script.call(|r, cx| r.nack(cx, at, NackCode::Validator, "no")).expect("given");
            return;
        }
        // Stored, then visible to readers.
        let head = update.head.clone();
        let level = [Level::Stored, Level::Visible, Level::Applied][choice as usize % 3];
        node.disk = Some((head, update.state.clone(), level));
        node.truth[0] = node.truth[0].max_of(at);
        if level >= Level::Visible {
            node.truth[1] = node.truth[1].max_of(at);
        }
        if level == Level::Applied {
            node.truth[2] = node.truth[2].max_of(at);
        }
        node.script.call(|r, cx| r.ack(cx, at, level, false)).expect("given");
        node.shown = Some((at, update.state.clone(), update.head.digest));
    }

    fn advance(&mut self, by: Duration) {
        self.authority.advance(by);
        for node in &mut self.nodes {
            node.script.advance(by);
        }
    }

    /// After every event.
    pub(crate) fn check(&mut self) {
        let seed = self.seed;
        for node in &self.nodes {
            let protocol = node.script.protocol.visible();
            assert_eq!(
                protocol.map(|(head, _)| head.position),
                node.shown.as_ref().map(|(at, ..)| *at),
                "seed {seed}: the protocol and the application agree on what is visible"
            );
            let Some((at, state, digest)) = &node.shown else { continue };
            let Some((head, truth)) = self.oracle.get(&(at.epoch.number, at.rev)) else {
                panic!("seed {seed}: invariant 1: {at} was never committed")
            };
            assert_eq!((head.position, head.digest), (*at, *digest), "seed {seed}: invariants 1, 7");
            // Invariants 2 and 8: byte for byte what was committed, nothing of before or after it.
            assert!(state == truth, "seed {seed}: invariant 1: content at {at} differs");
        }
        for status in self.authority.protocol.status() {
            let node = &self.nodes[usize::from(status.node.0[0]) - 1];
            for (said, true_) in [status.stored, status.visible, status.applied].iter().zip(&node.truth) {
                assert!(within(*said, *true_), "seed {seed}: invariant 14: {said:?} is above {true_:?}");
            }
        }
        let (steps, _) = self.authority.protocol.log_size();
        assert!(steps <= 6, "seed {seed}: invariant 19: {steps} steps in the log");
    }

    /// All links up, one more commit, nothing is refused or corrupted any more.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        let mut changes = ChangeSet::new();
        changes.put(Key::new("last").expect("short"), 0, "word");
        let prepared = self.authority.protocol.prepare(&changes).expect("small").expect("new");
        self.persist(&prepared.head().clone(), prepared.state());
        self.authority.call(|d, cx| d.publish(cx, prepared)).expect("nothing came between");
    }

    /// Time passes, messages flow, applications act; links that a side closed come back within 400 ms.
    pub(crate) fn settle(&mut self, time: Duration) {
        let turn = Duration::from_millis(50);
        for i in 0..time.as_millis() / turn.as_millis() {
            for n in 0..NODES {
                if i % 8 == 0 {
                    self.connect(n);
                }
                for _ in 0..8 {
                    self.carry(n, 9);
                    self.act(n);
                    self.follow_closes();
                }
            }
            self.advance(turn);
            self.follow_closes();
            self.check();
        }
        self.counts.digest_failures +=
            self.nodes.iter().map(|node| node.script.counted("digest-failures")).sum::<u64>();
    }

    /// Invariant 23, and that what each node shows still has the digest that it had (5, 2).
    pub(crate) fn assert_converged(&mut self) {
        let seed = self.seed;
        let head = self.authority.protocol.head().expect("healed with a commit").clone();
        for (n, node) in self.nodes.iter().enumerate() {
            let (at, state, digest) = node.shown.as_ref().unwrap_or_else(|| {
                panic!("seed {seed}: node {n} is empty: {:?}", node.script.protocol.status(node.script.now()))
            });
            assert_eq!(
                *at,
                head.position,
                "seed {seed}: invariant 23: node {n}: {:?}",
                node.script.protocol.status(node.script.now())
            );
            assert_eq!((state.recompute(), state.digest()), (*digest, head.digest), "seed {seed}");
        }
        assert_eq!(self.authority.protocol.reached(head.position, Level::Stored), NODES, "seed {seed}");
        for (head, state) in self.oracle.values().take(8) {
            assert_eq!(state.recompute(), head.digest, "seed {seed}: invariant 2: a pinned state changed");
        }
    }
}

trait MaxOf {
    fn max_of(self, at: Position) -> Self;
}

impl MaxOf for Option<Position> {
    fn max_of(self, at: Position) -> Self {
        Some(self.filter(|old| *old > at).unwrap_or(at))
    }
}

/// splitmix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The message with one bit of its payload changed, if it has payload.
fn flip(message: &Message, random: u64) -> Option<Message> {
    let Ok(Frame::Slice(mut slice)) = Frame::decode(&message.clone().into_bytes()) else { return None };
    let mut bytes = slice.bytes.to_vec();
    let at = random as usize % bytes.len().max(1);
    *bytes.get_mut(at)? ^= 1 << (random >> 32 & 7);
    slice.bytes = Bytes::from(bytes);
    Some(Frame::Slice(slice).encode().into())
}

/// Whether `said` is not above `truth`.
fn within(said: Option<Position>, truth: Option<Position>) -> bool {
    said.is_none_or(|said| truth.is_some_and(|truth| said <= truth))
}
