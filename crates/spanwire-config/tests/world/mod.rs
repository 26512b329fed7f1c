//! The simulated cluster: an authority with its store, sometimes a second server (a mirror that lags, a rogue with
//! a history of its own, a twin with a copy of the store), and nodes with caches, validators and hooks.
//!
//! `oracle` checks the invariants; this file makes the world of a seed and does what its users do.

pub(crate) mod coverage;
mod failover;
mod nodes;
pub(crate) mod oracle;
mod relay;
pub(crate) mod tree;
mod waits;

use std::time::Duration;

use spanwire::Message;
use spanwire_config::rollout::{Gate, Plan, Stage};
use spanwire_config::sign::{Keyring, Secret};
use spanwire_config::wire::client::{Selector, WaitAsk};
use spanwire_config::wire::{Frame, Level, Slice, snapshot_size};
use spanwire_config::{
    ChangeSet, Epoch, Head, Id, Key, Limits, Place, ReplicaSettings, Settings, State, Step as Move,
};
use spanwire_testkit::sim::{Fault, Io, Mix, Model, Net, Passage, Rng, Route, Setup, Step, Way, What};

pub(crate) use nodes::Party;
use nodes::{Agent, BEACON, FRESH, Folder, HELLO, STALL, Server, key};
use oracle::{Keys, Oracle};

#[cfg(feature = "faults")]
pub(crate) use spanwire_config::faults::planted;

#[cfg(not(feature = "faults"))]
const fn planted(_: &str) -> bool {
    false
}

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

/// What users and operators do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// On one of the servers: keys with lengths and fills, keys to delete, and who refuses it.
    Commit { server: usize, puts: Vec<(usize, usize, u8)>, deletes: Vec<usize>, poison: Option<[u8; 2]> },
    /// The authority commits for a cohort first.
    Open { puts: Vec<(usize, usize, u8)>, deletes: Vec<usize>, poison: Option<[u8; 2]>, plan: Plan },
    /// The operator has the open rollout go on, wait or end; no step: a commit that supersedes it.
    Roll { step: Option<Move>, puts: Vec<(usize, usize, u8)> },
    /// Somebody looks whether the authority's store failed, and starts it again.
    Nurse,
    /// An operator begins a new epoch.
    NewEpoch { server: usize },
    /// Somebody waits for nodes to reach what is so many revisions below the newest: those of these numbers, or all, and
    /// of a group.
    Wait { server: usize, back: u64, level: Level, nodes: Vec<usize>, group: Option<usize>, lasts: Duration },
    /// Two writers race: both expect the newest position of now.
    Race,
    /// The store is lost, and a new history begins above the old one.
    LoseStore { down: Duration },
    /// The operator has the authority, if it has lost its store, take over what nodes hold: what is for all, or the one of
    /// this number among what they show.
    Adopt { named: Option<usize> },
    /// A node's folder is put back as it was so many starts ago, with its cache or without.
    PutBack { node: usize, starts: u32, cache: bool },
    /// The mirror (or the twin) starts again, on a copy of the authority's store.
    Refresh,
    /// A relay talks on and takes notice of nothing.
    Freeze { relay: usize, lasts: Duration },
    /// A relay dies when nothing else is wrong.
    Kill { relay: usize, down: Duration },
    /// Every connection breaks once more; or the authority starts again.
    Shake { restart: bool },
}

/// The model: what is there, and the oracle.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) oracle: Oracle,
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
    let disks = (0..servers + agents).map(|n| Folder {
        id: Id([n as u8 + 1; 16]),
        // A twin claims the same history.
        begin: Epoch {
            number: 1,
            incarnation: Id([if second == Second::Twin { 1 } else { 1 + n as u8 }; 16]),
        },
        ..Folder::default()
    });
    let mut plan = plan(&mut rng, second, servers, agents, &routes, lies);
    rollouts(seed, &mut plan);
    wait_for(seed, servers, agents, &mut plan);
    lose(seed, &mut plan);
    Setup {
        model: Cluster {
            oracle: Oracle::new(servers, &routes, lies, second == Second::Twin, Keys { used: keys, foreign }),
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

fn plan(
    rng: &mut Rng,
    second: Second,
    servers: usize,
    agents: usize,
    ways: &[Route],
    lies: bool,
) -> Vec<Step<Op>> {
    let routes = ways.len();
    let often = |rng: &mut Rng, n: usize| if rng.one_in(3) { 0 } else { n };
    let mix = Mix {
        breaks: often(rng, 2 * routes),
        cuts: often(rng, 4),
        half_opens: often(rng, 4),
        delays: often(rng, 4),
        stalls: often(rng, 4),
        crashes: often(rng, 4),
        sync_crashes: often(rng, 3),
        sync_failures: often(rng, 3),
        flips: if lies { 6 } else { 0 },
        losses: if lies { 8 } else { 0 },
        replays: if lies { 16 } else { 0 },
        longest: Duration::from_secs(3),
    };
    let mut plan = mix.plan(rng, servers + agents, routes, RUN);
    let commits = 10 + rng.below(50);
    let poisoned = rng.one_in(2);
    for _ in 0..commits {
        let server = if second == Second::None || second == Second::Mirror { 0 } else { rng.below(servers) };
        // In bursts, so that steps are merged and slots wanted.
        let at = rng.time(Duration::ZERO..RUN);
        for burst in 0..1 + if rng.one_in(6) { rng.below(8) } else { 0 } {
            let op = commit(rng, server, poisoned);
            let at = at + Duration::from_micros(burst as u64 * 50);
            plan.push(Step::op(at.min(RUN - Duration::from_micros(1)), op));
        }
    }
    let mut some = |plan: &mut Vec<Step<Op>>, one_in: usize, op: Op| {
        if rng.one_in(one_in) {
            plan.push(Step::op(rng.time(Duration::ZERO..RUN), op));
        }
    };
    some(&mut plan, 3, Op::NewEpoch { server: 0 });
    if matches!(second, Second::Rogue | Second::Twin) {
        some(&mut plan, 3, Op::NewEpoch { server: 1 });
        some(&mut plan, 3, Op::NewEpoch { server: 0 });
    }
    some(&mut plan, 2, Op::Race);
    some(&mut plan, 8, Op::LoseStore { down: Duration::from_millis(300) });
    for node in servers..servers + agents {
        some(&mut plan, 16, Op::PutBack { node, starts: 2, cache: true });
        some(&mut plan, 24, Op::PutBack { node, starts: 1, cache: false });
    }
    if matches!(second, Second::Mirror | Second::Twin) {
        (0..4).for_each(|_| some(&mut plan, 2, Op::Refresh));
    }
    if rng.one_in(4) {
        // A node loses its cache while words of its last life are still on their way.
        let (node, at) =
            (servers + rng.below(agents), rng.time(Duration::ZERO..RUN - Duration::from_secs(1)));
        let lasts = Duration::from_millis(150);
        for (route, _) in ways.iter().enumerate().filter(|(_, way)| way.from == node) {
            let fault = Fault::Delay { route, by: lasts * 3, lasts };
            plan.push(Step { at, what: What::Fault(fault) });
        }
        plan.push(Step::op(at - at / 64, commit(rng, 0, false)));
        plan.push(Step::op(at + lasts, Op::PutBack { node, starts: 0, cache: false }));
    }
    if rng.one_in(2) {
        let at = RUN + rng.time(Duration::from_secs(1)..Duration::from_secs(3));
        plan.push(Step::op(at, Op::Shake { restart: rng.one_in(2) }));
    }
    if lies {
        // The content of the last commit is withheld on some routes, while it is on its way.
        for route in (0..routes).filter(|_| rng.one_in(3)) {
            let at = RUN + Duration::from_micros(150);
            plan.push(Step { at, what: What::Fault(Fault::Lose { route, way: Way::Down }) });
        }
    }
    if rng.one_in(3) {
        // Hangs for longer than the world lasts: who waits for its end waits for ever.
        let fault = Fault::HalfOpen {
            route: rng.below(routes),
            dialer: rng.one_in(2),
            listener: false,
            lasts: FOR_EVER,
        };
        plan.push(Step { at: rng.time(RUN / 2..RUN), what: What::Fault(fault) });
    }
    plan
}

/// The labels of a node.
fn group(node: usize) -> Vec<(String, String)> {
    vec![("group".into(), ["a", "b"][node % 2].into())]
}

/// What an operator does about rollouts; whether one was opened.
fn roll(net: &mut Net<Party>, op: &Op) -> bool {
    let mut opened = None;
    match op {
        Op::Open { puts, deletes, poison, plan } => {
            let changes = changes(puts, deletes, *poison);
            opened = with_server(net, 0, |server, io| server.open(io, &changes, plan));
        }
        Op::Roll { step, puts } => {
            let changes = changes(puts, &[], None);
            with_server(net, 0, |server, io| match step {
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

/// In half of the worlds: a few rollouts, and what becomes of them.
fn rollouts(seed: u64, plan: &mut Vec<Step<Op>>) {
    // Apart from all else, so that the rest of a seed's world is what it is without them.
    let mut rng = Rng::new(seed ^ 0x0110_0ca7);
    if rng.one_in(2) {
        return;
    }
    let share = |rng: &mut Rng| [1_000, 3_000, 5_000, 10_000][rng.below(4)];
    for _ in 0..1 + rng.below(4) {
        let at = rng.time(Duration::ZERO..RUN - Duration::from_millis(500));
        let Op::Commit { puts, deletes, poison, .. } = commit(&mut rng, 0, true) else { return };
        let poison = poison.filter(|_| rng.one_in(2));
        let stages = (0..1 + rng.below(3)).map(|_| Stage {
            labels: match rng.below(3) {
                0 => Vec::new(),
                n => vec![("group".into(), ["a", "b"][n - 1].into())],
            },
            share: share(&mut rng),
            gate: (!rng.one_in(3)).then(|| Gate {
                applied: share(&mut rng),
                refusals: rng.below(2) as u32,
                bake: Duration::from_millis(100 * rng.below(6) as u64),
            }),
        });
        let stages = stages.collect();
        let salt = Id([rng.below(256) as u8; 16]);
        plan.push(Step::op(at, Op::Open { puts, deletes, poison, plan: Plan { salt, stages } }));
        for _ in 0..rng.below(4) {
            let at = rng.time(at..RUN - Duration::from_millis(400));
            let step = [
                Some(Move::Next),
                Some(Move::Promote),
                Some(Move::Abort),
                Some(Move::Pause),
                Some(Move::Resume),
                None,
            ][rng.below(6)];
            let puts = vec![(rng.below(KEYS), rng.below(300), rng.below(256) as u8)];
            plan.push(Step::op(at, Op::Roll { step, puts }));
        }
    }
    plan.push(Step::op(RUN - Duration::from_millis(50), Op::Nurse));
}

/// Questions who has reached what.
fn wait_for(seed: u64, servers: usize, agents: usize, plan: &mut Vec<Step<Op>>) {
    // Apart from all else, as rollouts are.
    let mut rng = Rng::new(seed ^ 0x0017_0017);
    for _ in 0..rng.below(16) {
        // Some last until long after the faults have ended.
        let longest = Duration::from_millis([50, 1_000, 8_000][rng.below(3)]);
        let op = Op::Wait {
            server: rng.below(servers),
            back: if rng.one_in(2) { 0 } else { rng.below(4) as u64 },
            level: [Level::Stored, Level::Visible, Level::Applied][rng.below(3)],
            nodes: if rng.one_in(3) { vec![rng.below(agents + 1), rng.below(agents)] } else { Vec::new() },
            group: rng.one_in(4).then(|| rng.below(2)),
            lasts: rng.time(Duration::ZERO..longest),
        };
        plan.push(Step::op(rng.time(Duration::ZERO..RUN + Duration::from_secs(2)), op));
    }
}

/// In some worlds: the store is lost, and the operator looks at what nodes hold.
fn lose(seed: u64, plan: &mut Vec<Step<Op>>) {
    // Apart from all else, as rollouts are.
    let mut rng = Rng::new(seed ^ 0x0ff3_0ff3);
    if !rng.one_in(5) {
        return;
    }
    let (at, down) = (rng.time(RUN / 6..RUN / 2), rng.time(Duration::ZERO..Duration::from_millis(200)));
    plan.push(Step::op(at, Op::LoseStore { down }));
    for _ in 0..1 + rng.below(4) {
        let named = rng.one_in(3).then(|| rng.below(4));
        plan.push(Step::op(
            at + down + rng.time(Duration::ZERO..Duration::from_millis(600)),
            Op::Adopt { named },
        ));
    }
    plan.push(Step::op(RUN - Duration::from_millis(50), Op::Nurse));
}

fn commit(rng: &mut Rng, server: usize, poisoned: bool) -> Op {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for _ in 0..=rng.below(4) {
        let key = rng.below(KEYS);
        if rng.one_in(4) {
            deletes.push(key);
        } else {
            let most = if rng.one_in(8) { 9_000 } else { 300 };
            puts.push((key, rng.below(most), rng.below(256) as u8));
        }
    }
    let poison = (poisoned && rng.one_in(4)).then(|| [rng.next() as u8 & rng.next() as u8, rng.next() as u8]);
    Op::Commit { server, puts, deletes, poison }
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
fn forge(head: &mut Head, random: u64) {
    match random % 8 {
        0 => head.seq += 1 << 41,
        1 => head.position.rev += 1,
        2 => head.position.epoch.number += 1,
        3 => head.position.epoch.incarnation.0[0] ^= 1,
        4 => head.chain[0] ^= 1,
        5 => head.digest.0[0] ^= 1,
        6 => head.cluster.0[0] ^= 1,
        _ => {
            head.seq += 1 << 41;
            let (number, seed) = (1 + (random >> 8 & 1) as u32, [9; 32]);
            Secret::from_seed(number, &seed).sign(head);
        }
    }
}

fn with_server<R>(
    net: &mut Net<Party>,
    server: usize,
    f: impl FnOnce(&mut Server, &mut Io<'_, Folder>) -> R,
) -> Option<R> {
    net.with(server, |party, io| match party {
        Party::Server(server) => {
            let result = f(server, io);
            server.answer(io);
            Some(result)
        }
        _ => None,
    })
    .flatten()
}

/// Only a restart leads on from a store that failed.
fn restart_if_failed(net: &mut Net<Party>, server: usize) {
    if with_server(net, server, |server, _| server.has_failed()) == Some(true) {
        net.crash(server, Duration::from_millis(30), false);
    }
}

impl Model for Cluster {
    type Node = Party;
    type Op = Op;

    fn start(&mut self, node: usize, io: &mut Io<'_, Folder>) -> Party {
        if node >= self.servers {
            self.oracle.node_starts(node, io.disk.read());
            let agent = node - self.servers;
            return Party::Agent(Box::new(Agent::start(agent, self.node_settings[agent].clone(), io)));
        }
        let copy = match self.second {
            Second::Mirror => node == 1,
            Second::Twin => node == 1 && std::mem::take(&mut self.fork),
            Second::Rogue | Second::None => false,
        };
        let authority = self.oracle.authority_folder();
        if copy && authority.history.is_some() {
            let files = authority.files.clone();
            io.disk.write().files = files;
            self.oracle.store_copied(node);
        }
        self.oracle.server_starts(node);
        let mut server = Server::start(self.server_settings[node].clone(), self.lazy, io);
        server.mirror = self.second == Second::Mirror && node == 1;
        Party::Server(Box::new(server))
    }

    fn operate(&mut self, net: &mut Net<Party>, op: &Op) -> Result<(), String> {
        match op {
            Op::Commit { server, puts, deletes, poison } => {
                let (changes, mut twice) = (changes(puts, deletes, *poison), None);
                let mut during = false;
                let anew = with_server(net, *server, |server, io| {
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
                if anew == Some(true) && self.oracle.seen(*server) > 0 {
                    return Err("invariant 13: a namespace that a node showed begins anew by a commit".into());
                }
                restart_if_failed(net, *server);
            }
            Op::Open { .. } | Op::Roll { .. } | Op::Nurse => {
                self.oracle.counts.rollouts += u64::from(roll(net, op));
            }
            Op::NewEpoch { server } => {
                let began = with_server(net, *server, |server, io| {
                    let begun = server.place() != Place::default();
                    begun.then(|| server.new_epoch(io, 0, &State::new())).flatten()
                });
                if let Some(position) = began.flatten()
                    && position.epoch.number <= self.oracle.seen(*server)
                {
                    return Err("invariant 12: a second epoch under a number that was seen".into());
                }
                restart_if_failed(net, *server);
            }
            Op::Wait { server, back, level, nodes, group: of, lasts } => {
                let until = net.now() + *lasts;
                let begun = with_server(net, *server, |server, _| {
                    let (head, audience) = server.newest();
                    let mut position = head.map(Place::from).unwrap_or_default();
                    position.rev = position.rev.saturating_sub(*back);
                    let selector = Selector {
                        names: nodes.iter().map(|n| format!("n{n}")).collect(),
                        labels: of.map(group).unwrap_or_default(),
                    };
                    let (namespace, timeout_ms) = ("config".into(), lasts.as_millis() as u32);
                    let ask = WaitAsk { namespace, position, level: *level, timeout_ms, selector };
                    let known = server.socket.protocol().status();
                    let number = server.wait(&ask, until);
                    (number, ask, known, (head, audience.filter(|_| *back == 0)))
                });
                if let Some((number, ask, known, newest)) = begun {
                    self.oracle.waits.begins((*server, number), ask, until, &known, newest);
                }
            }
            Op::Race => {
                let both = with_server(net, 0, |server, io| {
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
                    let number = self.oracle.highest_epoch().max(folder.begin.number) + 1;
                    folder.begin = Epoch { number, incarnation: Id([0x50 + number as u8; 16]) };
                    folder.history = None;
                    folder.files.clear();
                    disk.replace(folder.clone());
                    self.oracle.store_lost(folder);
                }
            }
            Op::Adopt { named } => {
                with_server(net, 0, |server, io| server.adopt(io, *named));
                restart_if_failed(net, 0);
            }
            Op::PutBack { node, starts, cache } => {
                net.crash(*node, Duration::from_millis(50), false);
                if let Some(disk) = net.disk_mut(*node) {
                    let mut folder = disk.read().clone();
                    folder.opened = folder.opened.saturating_sub(*starts);
                    if !cache {
                        (folder.history, folder.level, folder.conflict) = (None, None, None);
                    }
                    disk.replace(folder);
                    self.oracle.folder_put_back(*node);
                }
            }
            // Only among relays.
            Op::Freeze { .. } | Op::Kill { .. } => {}
            Op::Refresh => {
                self.fork = true;
                net.crash(1, Duration::from_millis(30), false);
            }
            Op::Shake { restart: true } => net.crash(0, Duration::from_millis(30), false),
            Op::Shake { restart: false } => {
                (0..self.oracle.routes.len()).for_each(|route| net.fault(&Fault::Break { route }));
            }
        }
        Ok(())
    }

    fn passed(&mut self, net: &Net<Party>, passage: &Passage<'_>) -> Result<(), String> {
        self.oracle.passed(net, passage)
    }

    fn died(&mut self, _net: &Net<Party>, node: usize) {
        self.oracle.died(node);
    }

    fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Result<(), String> {
        self.oracle.check(net, node)
    }

    /// One more commit that nobody refuses, above all that anybody saw.
    fn healed(&mut self, net: &mut Net<Party>) -> Result<(), String> {
        if matches!(self.second, Second::Rogue | Second::Twin) {
            net.crash(1, FOR_EVER, false);
        }
        let highest = self.oracle.highest_epoch();
        let foreign = matches!(self.second, Second::Rogue | Second::Twin);
        let own = with_server(net, 0, |server, _| server.place()).unwrap_or_default();
        if own == Place::default() || foreign || highest > own.epoch {
            // Above every number that was ever used, as an operator who looked at the nodes would take it.
            with_server(net, 0, |server, io| server.new_epoch(io, highest + 1, &State::new()));
            self.oracle.learn(net, 0)?;
        }
        let last = with_server(net, 0, |server, io| {
            let mut last = changes(&[], &[], None);
            last.put(Key::new("last").expect("short"), 0, "word");
            server.supersede(io, &last)
        });
        if last != Some(true) {
            return Err("model: the authority is not there after the faults".into());
        }
        if self.second == Second::Mirror {
            self.oracle.learn(net, 0)?;
            net.crash(1, Duration::from_millis(10), false);
        }
        self.oracle.healed(net);
        Ok(())
    }

    fn settled(&mut self, net: &Net<Party>) -> Result<(), String> {
        self.oracle.settled(net)
    }

    fn tamper(&mut self, message: &Message, random: u64) -> Option<Message> {
        let mut frame = Frame::decode(&message.clone().into_bytes()).ok()?;
        let cohort = random.is_multiple_of(4);
        let forged = self.keys && random >> 40 & 1 == 0;
        match &mut frame {
            Frame::Slice(slice) if forged => forge(&mut slice.head, random >> 16),
            Frame::Beacon(heads) if forged && !heads.is_empty() => {
                heads.iter_mut().for_each(|head| forge(head, random >> 16));
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
        self.oracle.counts.tampered += 1;
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
