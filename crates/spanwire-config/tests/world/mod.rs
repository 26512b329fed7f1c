//! The simulated cluster: an authority with its store, sometimes a second server (a mirror that lags, a rogue with
//! a history of its own, a twin with a copy of the store), and nodes with caches, validators and hooks. One to three
//! namespaces share its pipes, disks and processes.
//!
//! `oracle` checks the invariants; this file makes the world of a seed and does what its users do.

mod agent;
pub(crate) mod coverage;
mod failover;
mod folder;
mod nodes;
pub(crate) mod oracle;
mod plan;
mod relay;
mod server;
pub(crate) mod tree;
mod waits;

use std::time::Duration;

use spanwire::Message;
use spanwire_config::sign::{Keyring, Secret};
use spanwire_config::wire::client::{Selector, WaitAsk};
use spanwire_config::wire::{Frame, Slice, snapshot_size};
use spanwire_config::{ChangeSet, Epoch, Head, Id, Key, Limits, Place, ReplicaSettings, Settings, State};
use spanwire_testkit::sim::{Fault, Io, Model, Net, Passage, Rng, Route, Setup};

pub(crate) use nodes::Party;
use nodes::{Agent, BEACON, FRESH, Folder, HELLO, Office, STALL, Server, Space, key};
use oracle::{Keys, Oracle};
pub(crate) use plan::Op;
use plan::{commit, lose, namespaces, old_copies, plan, rollouts, spread, wait_for};

#[cfg(feature = "faults")]
pub(crate) use spanwire_config::faults::planted;

#[cfg(not(feature = "faults"))]
const fn planted(_: &str) -> bool {
    false
}

/// Most namespaces of a world, and their names.
const NAMES: [&str; 3] = ["config", "b", "c"];
const KEYS: usize = 14;
const RUN: Duration = Duration::from_secs(6);
/// Several half-open pipes may hold the only slot, one after the other, each for as long as a stall takes.
const SETTLE: Duration = Duration::from_secs(20);
/// A process that is gone for good.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// What the second server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Second {
    None,
    /// It serves an older copy of the authority's store.
    Mirror,
    /// It has a history of its own under the same epoch number.
    Rogue,
    /// It was started on a copy of the store and commits as well.
    Twin,
}

/// The model: what is there, and the oracle.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// One for each namespace.
    pub(crate) oracles: Vec<Oracle>,
    second: Second,
    /// The twin is to start from a copy of the authority's store.
    fork: bool,
    servers: usize,
    /// What nodes show is judged some time after they showed it.
    lazy: bool,
    /// HEADs are signed, and nodes look at that: then who lies may change all of a HEAD.
    keys: bool,
    server_settings: Vec<Settings>,
    node_settings: Vec<ReplicaSettings>,
}

/// The key of the cluster.
fn secret() -> Secret {
    Secret::from_seed(1, &[7; 32])
}

/// The world of a seed.
pub(crate) fn setup(seed: u64) -> Setup<Cluster> {
    let mut rng = Rng::new(seed ^ 0x00c0_ffee);
    let second = match rng.below(12) {
        0..=4 => Second::None,
        5..=7 => Second::Mirror,
        8 | 9 => Second::Rogue,
        _ => Second::Twin,
    };
    let servers = 1 + usize::from(second != Second::None);
    let agents = 2 + rng.below(5);
    let lies = rng.one_in(3);
    let wide = !rng.one_in(4);
    let (lazy, keys) = (rng.one_in(4), rng.one_in(4));
    // A rogue may have a key of its own, that nobody trusts: under the same number or another.
    let foreign = keys && second == Second::Rogue && rng.one_in(2);
    let foreign_key = Secret::from_seed(1 + rng.below(2) as u32, &[8; 32]);

    let mut routes = Vec::new();
    for agent in 0..agents {
        let from = servers + agent;
        let mut to: Vec<usize> = if servers == 2 && !rng.one_in(4) { vec![0, 1] } else { vec![0] };
        if rng.one_in(2) {
            to.reverse();
        }
        // Two ways to one server: a pipe in reserve.
        if rng.one_in(4) {
            to.push(0);
        }
        routes.extend(to.into_iter().map(|to| Route {
            room: if wide { 512 } else { 1 + rng.below(12) },
            jitter: Duration::from_micros(200 + rng.next() % 20_000),
            ..Route::new(from, to)
        }));
    }
    let server_settings: Vec<Settings> = (0..servers)
        .map(|server| Settings {
            server: Id([0xa0 + server as u8; 16]),
            beacon: BEACON,
            window: 2_000 + rng.below(10_000) as u32,
            log_commits: 1 + rng.below(8),
            log_bytes: if rng.one_in(4) { 4_000 } else { 1 << 20 },
            slots: 1 + rng.below(2),
            // Shorter or longer than a replica waits before it asks again.
            stall: if rng.one_in(2) { STALL } else { STALL * 2 },
            hello: HELLO,
            secret: match foreign && server == 1 {
                true => Some(foreign_key.clone()),
                false => keys.then(secret),
            },
            ..Settings::default()
        })
        .collect();
    let small = rng.one_in(4);
    let node_settings: Vec<ReplicaSettings> = (0..agents)
        .map(|agent| ReplicaSettings {
            name: format!("n{agent}"),
            window: 3_000 + rng.below(9_000) as u32,
            max_chunk: 4_096,
            fresh: FRESH,
            beacon: BEACON,
            trust: if keys { secret().public() } else { Keyring::new() },
            limits: Limits { bytes: if small && agent == 0 { 6_000 } else { 1 << 20 }, ..Limits::default() },
            labels: group(agent),
            ..ReplicaSettings::default()
        })
        .collect();
    let namespaces = namespaces(seed);
    let disks = (0..servers + agents).map(|n| {
        // A twin claims the same history.
        let incarnation = Id([if second == Second::Twin { 1 } else { 1 + n as u8 }; 16]);
        let begin = Epoch { number: 1, incarnation };
        let spaces = vec![Space { begin, ..Space::default() }; namespaces];
        Folder { id: Id([n as u8 + 1; 16]), spaces, ..Folder::default() }
    });
    let mut plan = plan(&mut rng, second, servers, agents, &routes, lies);
    rollouts(seed, &mut plan);
    wait_for(seed, servers, agents, &mut plan);
    lose(seed, &mut plan);
    spread(seed, namespaces, &mut plan);
    Setup {
        model: Cluster {
            oracles: (0..namespaces)
                .map(|at| {
                    let keys = Keys { used: keys, foreign };
                    Oracle::new(at, servers, &routes, lies, second == Second::Twin, keys)
                })
                .collect(),
            second,
            fork: false,
            servers,
            lazy,
            keys,
            server_settings,
            node_settings,
        },
        disks: disks.collect(),
        routes,
        plan,
        run: RUN,
        settle: SETTLE,
    }
}

/// The labels of a node.
fn group(node: usize) -> Vec<(String, String)> {
    vec![("group".into(), ["a", "b"][node % 2].into())]
}

/// What an operator does about rollouts; whether one was opened.
fn roll(net: &mut Net<Party>, at: usize, op: &Op) -> bool {
    let mut opened = None;
    match op {
        Op::Open { puts, deletes, poison, plan } => {
            let changes = changes(puts, deletes, *poison);
            opened = with_server(net, 0, at, |server, io| server.open(io, &changes, plan));
        }
        Op::Roll { step, puts } => {
            let changes = changes(puts, &[], None);
            with_server(net, 0, at, |server, io| match step {
                Some(step) => server.step(io, *step),
                None if server.is_open() => {
                    server.supersede(io, &changes);
                }
                None => {}
            });
        }
        _ => {}
    }
    restart_if_failed(net, 0);
    opened == Some(true)
}

fn changes(puts: &[(usize, usize, u8)], deletes: &[usize], poison: Option<[u8; 2]>) -> ChangeSet {
    let mut changes = ChangeSet::new();
    let bad = Key::new("poison").expect("short");
    puts.iter().for_each(|(n, len, fill)| changes.put(key(*n), u16::from(fill & 3), vec![*fill; *len]));
    deletes.iter().for_each(|n| changes.delete(key(*n)));
    match poison {
        Some(masks) => changes.put(bad, 0, masks.to_vec()),
        None => changes.delete(bad),
    }
    changes
}

/// A slice that goes on beyond the end of what its HEAD announces.
fn swell(slice: &mut Slice) {
    let mut bytes = slice.bytes.to_vec();
    bytes.resize(bytes.len() + snapshot_size(slice.head.keys, slice.head.bytes) as usize + 1, 7);
    (slice.bytes, slice.last) = (bytes.into(), false);
}

/// What somebody without the key can make of a HEAD.
fn forge(head: &mut Head, namespaces: usize, random: u64) {
    // Where there is another, it may be said to be of that.
    match random % if namespaces > 1 { 9 } else { 8 } {
        0 => head.seq += 1 << 41,
        1 => head.position.rev += 1,
        2 => head.position.epoch.number += 1,
        3 => head.position.epoch.incarnation.0[0] ^= 1,
        4 => head.chain[0] ^= 1,
        5 => head.digest.0[0] ^= 1,
        6 => head.cluster.0[0] ^= 1,
        8 => {
            let mut others = NAMES[..namespaces].iter().filter(|name| **name != head.namespace);
            head.namespace = others.next_back().copied().unwrap_or_default().into();
        }
        _ => {
            head.seq += 1 << 41;
            let (number, seed) = (1 + (random >> 8 & 1) as u32, [9; 32]);
            Secret::from_seed(number, &seed).sign(head);
        }
    }
}

/// Somebody does something in a namespace of a server.
fn with_server<R>(
    net: &mut Net<Party>,
    server: usize,
    at: usize,
    f: impl FnOnce(&mut Office<'_>, &mut Io<'_, Folder>) -> R,
) -> Option<R> {
    net.with(server, |party, io| match party {
        Party::Server(server) => {
            let mut office = server.office(at);
            let result = f(&mut office, io);
            office.answer(io);
            Some(result)
        }
        _ => None,
    })
    .flatten()
}

/// Only a restart leads on from a store that failed.
fn restart_if_failed(net: &mut Net<Party>, server: usize) {
    let failed = |party: &Party| matches!(party, Party::Server(server) if server.has_failed());
    if net.node(server).is_some_and(failed) {
        net.crash(server, Duration::from_millis(30), false);
    }
}

impl Cluster {
    fn each(&mut self, check: impl FnMut(&mut Oracle) -> Result<(), String>) -> Result<(), String> {
        self.oracles.iter_mut().try_for_each(check)
    }

    /// Somebody does something in the namespace `at`.
    fn operate_in(&mut self, net: &mut Net<Party>, at: usize, op: &Op) -> Result<(), String> {
        match op {
            Op::In(at, op) => return self.operate_in(net, *at, op),
            Op::Commit { server, puts, deletes, poison } => {
                let (changes, mut twice) = (changes(puts, deletes, *poison), None);
                let mut during = false;
                let anew = with_server(net, *server, at, |server, io| {
                    let vacant = server.is_vacant();
                    let open = server.is_open();
                    let taken = server.put(io, &changes);
                    during = open && taken;
                    let stuck = server.is_vacant() || server.is_frozen() && io.rng().one_in(4);
                    if server.is_vacant() && io.rng().one_in(2) {
                        server.adopt(io, None);
                    } else if !taken && stuck && !io.disk.is_crashed() {
                        // Nodes show another history: only an operator leads on.
                        let mut content = State::new();
                        content.apply(&changes);
                        server.new_epoch(io, 0, &content);
                    }
                    if io.rng().one_in(4) {
                        twice = server.again(io);
                    }
                    vacant && taken
                });
                if during {
                    return Err("rollout: a commit was taken while one was open".into());
                }
                if let Some(wrong) = twice {
                    return Err(wrong);
                }
                if anew == Some(true) && self.oracles[at].seen(*server) > 0 {
                    return Err("invariant 13: a namespace that a node showed begins anew by a commit".into());
                }
                restart_if_failed(net, *server);
            }
            Op::Open { .. } | Op::Roll { .. } | Op::Nurse => {
                self.oracles[at].counts.rollouts += u64::from(roll(net, at, op));
            }
            Op::NewEpoch { server } => {
                let began = with_server(net, *server, at, |server, io| {
                    let begun = server.place() != Place::default();
                    begun.then(|| server.new_epoch(io, 0, &State::new())).flatten()
                });
                if let Some(position) = began.flatten()
                    && position.epoch.number <= self.oracles[at].seen(*server)
                {
                    return Err("invariant 12: a second epoch under a number that was seen".into());
                }
                restart_if_failed(net, *server);
            }
            Op::Wait { server, back, level, nodes, group: of, lasts } => {
                let until = net.now() + *lasts;
                let begun = with_server(net, *server, at, |server, _| {
                    let (head, audience) = server.newest();
                    let mut position = head.map(Place::from).unwrap_or_default();
                    position.rev = position.rev.saturating_sub(*back);
                    let selector = Selector {
                        names: nodes.iter().map(|n| format!("n{n}")).collect(),
                        labels: of.map(group).unwrap_or_default(),
                    };
                    let (namespace, timeout_ms) = (NAMES[at].into(), lasts.as_millis() as u32);
                    let ask = WaitAsk { namespace, position, level: *level, timeout_ms, selector };
                    let known = server.namespace().status();
                    let number = server.wait(&ask, until);
                    (number, ask, known, (head, audience.filter(|_| *back == 0)))
                });
                if let Some((number, ask, known, newest)) = begun {
                    self.oracles[at].waits.begins((*server, number), ask, until, &known, newest);
                }
            }
            Op::Race => {
                let both = with_server(net, 0, at, |server, io| {
                    let at = server.place();
                    server.put_at(io, &changes(&[(0, 10, 1)], &[], None), at)
                        && server.put_at(io, &changes(&[(1, 10, 2)], &[], None), at)
                });
                if both == Some(true) {
                    return Err("invariant 16: both of two racing commits were published".into());
                }
                restart_if_failed(net, 0);
            }
            Op::LoseStore { down } => {
                net.crash(0, *down, true);
                if let Some(disk) = net.disk_mut(0) {
                    let mut folder = disk.read().clone();
                    let space = &mut folder.spaces[at];
                    let number = self.oracles[at].highest_epoch().max(space.begin.number) + 1;
                    let begin = Epoch { number, incarnation: Id([0x50 + number as u8; 16]) };
                    *space = Space { begin, ..Space::default() };
                    self.oracles[at].store_lost(space.clone());
                    disk.replace(folder);
                }
            }
            Op::Adopt { named } => {
                with_server(net, 0, at, |server, io| server.adopt(io, *named));
                restart_if_failed(net, 0);
            }
            Op::PutBack { node, starts, cache } => {
                net.crash(*node, Duration::from_millis(50), false);
                if let Some(disk) = net.disk_mut(*node) {
                    let mut folder = disk.read().clone();
                    folder.opened = folder.opened.saturating_sub(*starts);
                    if !cache {
                        for space in &mut folder.spaces {
                            (space.history, space.level, space.conflict) = (None, None, None);
                        }
                    }
                    disk.replace(folder);
                    self.oracles.iter_mut().for_each(|oracle| oracle.folder_put_back(*node));
                }
            }
            // Only among relays.
            Op::Freeze { .. } | Op::Kill { .. } | Op::OldCopy { .. } => {}
            Op::Refresh => {
                self.fork = true;
                net.crash(1, Duration::from_millis(30), false);
            }
            Op::Shake { restart: true } => net.crash(0, Duration::from_millis(30), false),
            Op::Shake { restart: false } => {
                (0..self.oracles[0].routes.len()).for_each(|route| net.fault(&Fault::Break { route }));
            }
        }
        Ok(())
    }
}

impl Model for Cluster {
    type Node = Party;
    type Op = Op;

    fn start(&mut self, node: usize, io: &mut Io<'_, Folder>) -> Party {
        if node >= self.servers {
            let spaces = self.oracles.iter_mut().zip(&io.disk.read().spaces);
            spaces.for_each(|(oracle, space)| oracle.node_starts(node, space));
            let agent = node - self.servers;
            return Party::Agent(Box::new(Agent::start(agent, self.node_settings[agent].clone(), io)));
        }
        let copy = match self.second {
            Second::Mirror => node == 1,
            Second::Twin => node == 1 && std::mem::take(&mut self.fork),
            Second::Rogue | Second::None => false,
        };
        for (at, oracle) in self.oracles.iter_mut().enumerate() {
            let authority = oracle.authority_space();
            if copy && authority.history.is_some() {
                io.disk.write().spaces[at].files = authority.files.clone();
                oracle.store_copied(node);
            }
            oracle.server_starts(node);
        }
        let mut server = Server::start(self.server_settings[node].clone(), self.lazy, io);
        server.mirror = self.second == Second::Mirror && node == 1;
        Party::Server(Box::new(server))
    }

    fn operate(&mut self, net: &mut Net<Party>, op: &Op) -> Result<(), String> {
        self.operate_in(net, 0, op)
    }

    fn passed(&mut self, net: &Net<Party>, passage: &Passage<'_>) -> Result<(), String> {
        let Some(frame) = oracle::decode(passage.message) else { return Ok(()) };
        self.each(|oracle| oracle.passed(net, passage, &frame))
    }

    fn died(&mut self, _net: &Net<Party>, node: usize) {
        self.oracles.iter_mut().for_each(|oracle| oracle.died(node));
    }

    fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Result<(), String> {
        self.each(|oracle| oracle.check(net, node))?;
        let Some(server) = node.filter(|node| *node < self.servers) else { return Ok(()) };
        let slots = self.server_settings[server].slots;
        let large: Vec<_> = self.oracles.iter().flat_map(|oracle| oracle.large(net, server)).collect();
        match large.len() > slots {
            true => Err(format!("invariant 22: of at most {slots} large transfers at once: {large:?}")),
            false => Ok(()),
        }
    }

    /// One more commit in each namespace that nobody refuses, above all that anybody saw.
    fn healed(&mut self, net: &mut Net<Party>) -> Result<(), String> {
        let foreign = matches!(self.second, Second::Rogue | Second::Twin);
        if foreign {
            net.crash(1, FOR_EVER, false);
        }
        for (at, oracle) in self.oracles.iter_mut().enumerate() {
            let highest = oracle.highest_epoch();
            let own = with_server(net, 0, at, |server, _| server.place()).unwrap_or_default();
            if own == Place::default() || foreign || highest > own.epoch {
                // Above every number that was ever used, as an operator who looked at the nodes would take it.
                with_server(net, 0, at, |server, io| server.new_epoch(io, highest + 1, &State::new()));
                oracle.learn(net, 0)?;
            }
            let last = with_server(net, 0, at, |server, io| {
                let mut last = changes(&[], &[], None);
                last.put(Key::new("last").expect("short"), 0, "word");
                server.supersede(io, &last)
            });
            if last != Some(true) {
                return Err("model: the authority is not there after the faults".into());
            }
            oracle.learn(net, 0)?;
        }
        if self.second == Second::Mirror {
            net.crash(1, Duration::from_millis(10), false);
        }
        self.oracles.iter_mut().for_each(|oracle| oracle.healed(net));
        Ok(())
    }

    fn settled(&mut self, net: &Net<Party>) -> Result<(), String> {
        // Whoever leaves for one namespace leaves for all.
        let left = self.oracles.iter().flat_map(|oracle| oracle.in_vain.iter().copied()).collect();
        self.each(|oracle| oracle.settled(net, &left))
    }

    fn tamper(&mut self, message: &Message, random: u64) -> Option<Message> {
        let mut frame = Frame::decode(&message.clone().into_bytes()).ok()?;
        let cohort = random.is_multiple_of(4);
        let forged = self.keys && random >> 40 & 1 == 0;
        match &mut frame {
            Frame::Slice(slice) if forged => forge(&mut slice.head, self.oracles.len(), random >> 16),
            Frame::Beacon(heads) if forged && !heads.is_empty() => {
                heads.iter_mut().for_each(|head| forge(head, self.oracles.len(), random >> 16));
            }
            Frame::Slice(slice) if cohort => slice.head.audience = "canary".into(),
            Frame::Slice(slice) if random >> 20 & 3 == 0 => swell(slice),
            Frame::Slice(slice) => {
                let mut bytes = slice.bytes.to_vec();
                let at = (random >> 8) as usize % bytes.len().max(1);
                *bytes.get_mut(at)? ^= 1 << (random >> 4 & 7);
                slice.bytes = bytes.into();
            }
            Frame::Beacon(heads) if cohort && !heads.is_empty() => {
                heads.iter_mut().for_each(|head| head.audience = "canary".into());
            }
            _ => return None,
        }
        self.oracles[0].counts.tampered += 1;
        Some(frame.encode().into())
    }

    fn may_lose(&self, message: &Message) -> bool {
        // Who hides these hides everything, while its beacons say that it lives: this form has no way out of that.
        let frame = Frame::decode(&message.clone().into_bytes());
        !matches!(frame, Ok(Frame::Hello(_) | Frame::Want(..) | Frame::Welcome(_) | Frame::Goodbye(_)))
    }

    fn may_replay(&self, message: &Message) -> bool {
        matches!(
            Frame::decode(&message.clone().into_bytes()),
            Ok(Frame::Slice(_) | Frame::Beacon(_) | Frame::Credit(_) | Frame::Ack(_))
        )
    }

    fn describe(&self, message: &Message) -> String {
        oracle::describe(message)
    }
}
