//! The simulated cluster with relays: an authority, up to three relays in any tree (and now and then in a circle),
//! and nodes below them. Relays die, stand still, freeze while they talk on, and are lied to on their way.
//!
//! Its oracle knows what was committed, every HEAD that the authority issued, and what each node reached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;
use spanwire_config::rollout::admits;
use spanwire_config::wire::{Frame, Hello};
use spanwire_config::{Epoch, Head, Id, Key, Level, Position, Replica, ReplicaSettings, Settings, State};
use spanwire_testkit::sim::{Io, Mix, Model, Net, Passage, Rng, Route, Setup, Step};

use super::failover::FailOvers;
use super::nodes::{Agent, BEACON, FRESH, Folder, HELLO, Holding, Party, STALL, Server, Space};
use super::oracle::memory::Intake;
use super::relay::Relay;
use super::{NAMES, Op, changes, commit, restart_if_failed, with_server};

const RUN: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_secs(20);

/// In which namespace, and where.
type Place = (usize, u64, Id, u64);

fn place(ns: usize, at: &Position) -> Place {
    (ns, at.epoch.number, at.epoch.incarnation, at.rev)
}

fn place_of(head: &Head) -> Place {
    place(number(&head.namespace), &head.position)
}

/// The number of a namespace: all that anybody speaks of are those of the world.
fn number(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).unwrap_or(usize::MAX)
}

/// What a node did, over all its lives.
#[derive(Debug, Default)]
struct Truth {
    reached: [BTreeSet<Place>; 3],
    shown: BTreeMap<usize, Position>,
    /// Highest `seq` that arrived in this life, by namespace and epoch number, and when it rose.
    seqs: BTreeMap<(usize, u64), u64>,
    rose: BTreeMap<usize, Time>,
    /// What came to it in this life, of each namespace.
    intake: BTreeMap<usize, Intake>,
}

/// The model with its oracle.
#[derive(Debug)]
pub(crate) struct Tree {
    namespaces: usize,
    relays: usize,
    /// Somebody on the way lies.
    lies: bool,
    routes: Vec<Route>,
    log_commits: usize,
    committed: BTreeMap<Place, (Head, State)>,
    issued: BTreeSet<Vec<u8>>,
    truths: Vec<Truth>,
    /// What each relay has held: it forwards nothing else.
    held: Vec<BTreeSet<Place>>,
    pub(crate) counts: TreeCounts,
    fail_overs: FailOvers,
}

/// What happened, so that a test can see that the mixture reaches what it is meant to test.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct TreeCounts {
    pub(crate) forwarded: u64,
    pub(crate) reports: u64,
    pub(crate) loops: u64,
    pub(crate) behind: u64,
    pub(crate) deep: u64,
    /// Revisions that were for a cohort, and how often one was shown by a node behind a relay.
    pub(crate) rollouts: u64,
    pub(crate) canaries: u64,
    /// Nodes whose relay died, and that had another way.
    pub(crate) fail_overs: u64,
}

/// The world of a seed.
pub(crate) fn setup(seed: u64) -> Setup<Tree> {
    let mut rng = Rng::new(seed ^ 0x07ee_07ee);
    let (relays, agents) = (1 + rng.below(3), 1 + rng.below(4));
    let (nodes, mut pairs) = (1 + relays + agents, Vec::new());
    for relay in 1..=relays {
        // The first way leads up; the second anywhere, round in a circle among others.
        pairs.push((relay, rng.below(relay)));
        let other = rng.below(1 + relays);
        if rng.one_in(2) && other != relay {
            pairs.push((relay, other));
        }
    }
    for agent in 1 + relays..nodes {
        pairs.push((agent, 1 + rng.below(relays)));
        if rng.one_in(2) {
            pairs.push((agent, rng.below(1 + relays)));
        }
    }
    let routes: Vec<Route> = pairs
        .into_iter()
        .map(|(from, to)| Route {
            room: 512,
            jitter: Duration::from_micros(200 + rng.next() % 20_000),
            ..Route::new(from, to)
        })
        .collect();
    let lies = rng.one_in(4);
    let often = |rng: &mut Rng, n: usize| if rng.one_in(3) { 0 } else { n };
    let mix = Mix {
        breaks: often(&mut rng, 2 * routes.len()),
        cuts: often(&mut rng, 4),
        half_opens: often(&mut rng, 3),
        delays: often(&mut rng, 4),
        stalls: often(&mut rng, 4),
        crashes: often(&mut rng, 5),
        sync_crashes: often(&mut rng, 3),
        sync_failures: often(&mut rng, 3),
        flips: if lies { 6 } else { 0 },
        losses: 0,
        replays: if lies { 12 } else { 0 },
        longest: Duration::from_secs(2),
    };
    let mut plan = mix.plan(&mut rng, nodes, routes.len(), RUN);
    for _ in 0..10 + rng.below(30) {
        let at = rng.time(Duration::ZERO..RUN);
        plan.push(Step::op(at, commit(&mut rng, 0, false)));
    }
    for relay in 1..=relays {
        if rng.one_in(3) {
            let lasts = rng.time(Duration::ZERO..Duration::from_secs(3));
            plan.push(Step::op(rng.time(Duration::ZERO..RUN / 2), Op::Freeze { relay, lasts }));
        }
    }
    for node in 1 + relays..nodes {
        if rng.one_in(8) {
            let op = Op::PutBack { node, starts: 2, cache: true };
            plan.push(Step::op(rng.time(Duration::ZERO..RUN), op));
        }
    }
    if rng.one_in(3) {
        plan.push(Step::op(rng.time(Duration::ZERO..RUN), Op::NewEpoch { server: 0 }));
    }
    if rng.one_in(3) {
        // The last word on who is where must come from those who know, all of them.
        let at = RUN + rng.time(Duration::from_secs(4)..Duration::from_secs(6));
        plan.push(Step::op(at, Op::Shake { restart: true }));
    }
    super::rollouts(seed, &mut plan);
    kill(seed, relays, &mut plan);
    let namespaces = super::namespaces(seed);
    super::spread(seed, namespaces, &mut plan);
    let disks = (0..nodes).map(|n| Folder {
        id: Id([n as u8 + 1; 16]),
        spaces: vec![
            Space { begin: Epoch { number: 1, incarnation: Id([1; 16]) }, ..Space::default() };
            namespaces
        ],
        ..Folder::default()
    });
    Setup {
        model: Tree {
            namespaces,
            relays,
            lies,
            routes: routes.clone(),
            log_commits: 1 + rng.below(8),
            committed: BTreeMap::new(),
            issued: BTreeSet::new(),
            truths: (0..nodes).map(|_| Truth::default()).collect(),
            held: vec![BTreeSet::new(); nodes],
            counts: TreeCounts::default(),
            fail_overs: FailOvers::default(),
        },
        disks: disks.collect(),
        routes,
        plan,
        run: RUN,
        settle: SETTLE,
    }
}

/// In half of the worlds a relay dies long after all else, and there is something new at once.
fn kill(seed: u64, relays: usize, plan: &mut Vec<Step<Op>>) {
    // Apart from all else, as rollouts are.
    let mut rng = Rng::new(seed ^ 0x0026_0026);
    if rng.one_in(2) {
        return;
    }
    let at = RUN + rng.time(Duration::from_secs(9)..Duration::from_secs(11));
    let (relay, down) = (1 + rng.below(relays), rng.time(Duration::ZERO..Duration::from_millis(600)));
    plan.push(Step::op(at, Op::Kill { relay, down }));
    plan.push(Step::op(
        at + rng.time(Duration::ZERO..Duration::from_millis(100)),
        commit(&mut rng, 0, false),
    ));
}

fn agent(net: &Net<Party>, n: usize, ns: usize) -> Option<Holding<'_>> {
    if let Some(Party::Agent(agent)) = net.node(n) { agent.holding(ns) } else { None }
}

pub(super) fn relay(net: &Net<Party>, n: usize) -> Option<&Relay> {
    if let Some(Party::Relay(relay)) = net.node(n) { Some(relay) } else { None }
}

/// What receives on a node, and its window.
pub(super) fn receiver(net: &Net<Party>, n: usize) -> Option<(&Replica, u32)> {
    match net.node(n)? {
        Party::Agent(agent) => Some((agent.socket.protocol(), agent.settings.window)),
        Party::Relay(relay) => Some((relay.upper.protocol(), relay.window)),
        Party::Server(_) => None,
    }
}

fn authority(net: &Net<Party>) -> Option<&Server> {
    if let Some(Party::Server(server)) = net.node(0) { Some(server) } else { None }
}

fn heads(frame: &Frame) -> Vec<&Head> {
    match frame {
        Frame::Beacon(heads) => heads.iter().collect(),
        Frame::Slice(slice) => vec![&slice.head],
        _ => Vec::new(),
    }
}

impl Tree {
    fn learn(&mut self, net: &Net<Party>) {
        let spaces = net.disk(0).map(|disk| &disk.durable().spaces);
        for (head, state) in spaces.into_iter().flatten().filter_map(|space| space.history.as_ref()) {
            self.committed.entry(place_of(head)).or_insert_with(|| (head.clone(), state.clone()));
        }
    }

    fn is_relay(&self, node: usize) -> bool {
        (1..=self.relays).contains(&node)
    }

    /// Invariants 1, 2 and 3 for readers; 18.
    fn check_agent(&mut self, net: &Net<Party>, n: usize, ns: usize) -> Result<(), String> {
        let Some(node) = agent(net, n, ns) else { return Ok(()) };
        let truth = &mut self.truths[n];
        if let Some((head, _)) = net.disk(n).and_then(|disk| disk.durable().spaces[ns].history.as_ref()) {
            truth.reached[0].insert(place_of(head));
        }
        if let Some((head, state)) = &node.shown {
            let at = place(ns, &head.position);
            truth.reached[1].insert(at);
            if node.applied {
                truth.reached[2].insert(at);
            }
            let shown = truth.shown.insert(ns, head.position);
            if shown != Some(head.position) {
                if shown.is_some_and(|old| head.position.partial_cmp(&old).is_none_or(|o| o.is_lt())) {
                    return Err(format!("invariant 3: node {n} went back to {}", head.position));
                }
                if !admits(&head.audience, node.settings().node, &node.settings().labels) {
                    return Err(format!(
                        "invariant 11: node {n} shows {}, which is not for it",
                        head.position
                    ));
                }
                self.counts.canaries += u64::from(!head.audience.is_empty());
                if self.committed.get(&at).is_none_or(|(known, content)| {
                    content != state || (known.digest, known.chain) != (head.digest, head.chain)
                }) {
                    return Err(format!("invariant 1: node {n} shows another {}", head.position));
                }
            }
        }
        let fresh = node.status(net.now()).fresh;
        let rose = truth.rose.get(&ns);
        if fresh && rose.is_none_or(|rose| net.now().saturating_since(*rose) > FRESH) {
            return Err(format!("invariant 18: node {n} says fresh; seq rose last at {rose:?}"));
        }
        Ok(())
    }

    /// Where each relay takes what it has from in the end: it is as new as the authority, and what it was told of the
    /// way up is the way.
    fn check_relays(&self, net: &Net<Party>, ns: usize, head: &Head) -> Result<(), String> {
        let above = |n: usize| relay(net, n).and_then(|relay| relay.machines[ns].upstream());
        for n in 1..=self.relays {
            let Some(relay) = relay(net, n) else { return Err(format!("model: relay {n} is down")) };
            let status = relay.upper.protocol().status_of(NAMES[ns], net.now()).expect("held");
            if relay.machines[ns].held().map(|(held, _)| held.position) != Some(head.position) {
                return Err(format!("invariant 23: relay {n} ends below {}: {status:?}", head.position));
            }
            if !status.fresh {
                return Err(format!("invariant 18: relay {n} is connected and not fresh: {status:?}"));
            }
            let mut way = Vec::new();
            let mut at = above(n).map(|upstream| upstream.server);
            while let Some(server) = at.filter(|_| way.len() <= self.relays) {
                way.insert(0, server);
                at = above(usize::from(server.0[0]) - 1).map(|upstream| upstream.server);
            }
            let told = above(n).map(|upstream| &upstream.path);
            if way.first() != Some(&Id([1; 16])) || told != Some(&way) {
                return Err(format!("path: relay {n} is at the end of {way:?}, and was told {told:?}"));
            }
        }
        Ok(())
    }

    /// Invariant 14, through relays too.
    fn check_table(&self, net: &Net<Party>, ns: usize) -> Result<(), String> {
        let Some(server) = authority(net) else { return Ok(()) };
        for status in server.served(ns).namespace().status() {
            let n = usize::from(status.node.0[0]) - 1;
            let levels = [Level::Stored, Level::Visible, Level::Applied];
            for (level, reached) in levels.into_iter().zip(&self.truths[n].reached) {
                if let Some(at) = status.at(level).filter(|at| !reached.contains(&place(ns, at))) {
                    return Err(format!("invariant 14: node {n} never reached {level:?} at {at}"));
                }
            }
        }
        Ok(())
    }

    /// Invariants 23 and 26; and the authority knows all, and where it is.
    fn settled_in(&mut self, net: &Net<Party>, ns: usize) -> Result<(), String> {
        let Some(server) = authority(net) else { return Err("model: no authority".into()) };
        let served = server.served(ns).namespace();
        let Some(head) = served.head() else { return Err("model: no head".into()) };
        let table = served.status();
        let own = Id([1; 16]);
        self.check_relays(net, ns, head)?;
        for n in 1 + self.relays..net.len() {
            let Some(node) = agent(net, n, ns) else { return Err(format!("model: node {n} is down")) };
            let status = node.status(net.now());
            if node.shown.as_ref().map(|(head, _)| head.position) != Some(head.position) {
                return Err(format!("invariant 23: node {n} ends below {}: {status:?}", head.position));
            }
            if !status.fresh {
                return Err(format!("invariant 18: node {n} is connected and not fresh: {status:?}"));
            }
            let known = table.iter().find(|known| known.node == node.settings().node);
            let Some(known) = known else { return Err(format!("report: node {n} is not known")) };
            if known.applied != Some(head.position) || known.boot != node.settings().boot {
                return Err(format!("report: what node {n} reached is not known: {known:?}"));
            }
            let at = known.path.last().copied().unwrap_or(own);
            if !known.connected || status.upstream != Some(at) {
                return Err(format!("report: node {n} is at {:?}, not {known:?}", status.upstream));
            }
            self.counts.behind += u64::from(!known.path.is_empty());
            self.counts.deep += u64::from(known.path.len() > 1);
        }
        Ok(())
    }
}

impl Model for Tree {
    type Node = Party;
    type Op = Op;

    fn start(&mut self, node: usize, io: &mut Io<'_, Folder>) -> Party {
        if node == 0 {
            let settings = Settings {
                server: io.disk.read().id,
                beacon: BEACON,
                log_commits: self.log_commits,
                stall: STALL,
                hello: HELLO,
                ..Settings::default()
            };
            return Party::Server(Box::new(Server::start(settings, false, io)));
        }
        if self.is_relay(node) {
            let mine = |(route, of): (usize, &Route)| (of.from == node).then_some(route);
            let dials = self.routes.iter().enumerate().filter_map(mine).collect();
            return Party::Relay(Box::new(Relay::start(dials, self.log_commits, io)));
        }
        let truth = &mut self.truths[node];
        let spaces = io.disk.read().spaces.iter().enumerate();
        let held = spaces.filter_map(|(ns, space)| Some((ns, space.history.as_ref()?.0.position)));
        truth.shown = held.collect();
        let settings = ReplicaSettings {
            name: format!("n{node}"),
            window: 3_000 + io.rng().below(9_000) as u32,
            max_chunk: 4_096,
            fresh: FRESH,
            beacon: BEACON,
            labels: super::group(node),
            ..ReplicaSettings::default()
        };
        Party::Agent(Box::new(Agent::start(node, settings, io)))
    }

    fn operate(&mut self, net: &mut Net<Party>, op: &Op) -> Result<(), String> {
        let (ns, op) = if let Op::In(ns, op) = op { (*ns, &**op) } else { (0, op) };
        match op {
            Op::Commit { puts, deletes, poison, .. } => {
                let changes = changes(puts, deletes, *poison);
                with_server(net, 0, ns, |server, io| server.put(io, &changes));
                restart_if_failed(net, 0);
            }
            Op::Open { .. } | Op::Roll { .. } | Op::Nurse => {
                self.counts.rollouts += u64::from(super::roll(net, ns, op));
            }
            Op::NewEpoch { .. } => {
                with_server(net, 0, ns, |server, io| server.new_epoch(io, 0, &State::new()));
                restart_if_failed(net, 0);
            }
            Op::Freeze { relay, lasts } => {
                let until = net.now() + *lasts;
                net.with(*relay, |party, io| match party {
                    Party::Relay(relay) => relay.freeze(until, io),
                    Party::Server(_) | Party::Agent(_) => {}
                });
            }
            Op::Kill { relay, down } => {
                self.fail_overs.dies(net, *relay);
                net.crash(*relay, *down, false);
            }
            Op::Shake { .. } => net.crash(0, Duration::from_millis(30), false),
            Op::PutBack { node, starts, .. } => {
                net.crash(*node, Duration::from_millis(50), false);
                if let Some(disk) = net.disk_mut(*node) {
                    let mut folder = disk.read().clone();
                    folder.opened = folder.opened.saturating_sub(*starts);
                    disk.replace(folder);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Invariant 7: relays pass HEADs on as they came, and only those whose state they hold.
    fn passed(&mut self, net: &Net<Party>, passage: &Passage<'_>) -> Result<(), String> {
        let Ok(frame) = Frame::decode(&passage.message.clone().into_bytes()) else { return Ok(()) };
        let (from, to) = (passage.from, passage.to);
        match &frame {
            Frame::Slice(slice) if passage.arrived => {
                let intake = self.truths[to].intake.entry(number(&slice.head.namespace)).or_default();
                intake.took(passage.link, slice);
            }
            Frame::Hello(Hello { wants, .. }) | Frame::Want(_, wants) if !passage.arrived => {
                let held = receiver(net, from).into_iter().flat_map(|(replica, _)| replica.namespaces());
                for held in held.filter(|held| wants.iter().any(|want| want.namespace == held.name())) {
                    self.truths[from].intake.entry(number(held.name())).or_default().asked(held);
                }
            }
            _ => {}
        }
        if passage.arrived {
            self.fail_overs.heard(passage.link, to, &frame);
            if agent(net, to, 0).is_some() {
                let truth = &mut self.truths[to];
                for head in heads(&frame).into_iter() {
                    let ns = number(&head.namespace);
                    if agent(net, to, ns).is_none() {
                        continue;
                    }
                    let first = !truth.seqs.keys().any(|(of, _)| *of == ns);
                    let known = truth.seqs.entry((ns, head.position.epoch.number)).or_default();
                    if head.seq > *known {
                        *known = head.seq;
                        if !first {
                            truth.rose.insert(ns, net.now());
                        }
                    }
                }
            }
            return Ok(());
        }
        self.learn(net);
        self.fail_overs.said(passage.link, from, &frame)?;
        match &frame {
            Frame::Ack(ack) if self.is_relay(from) => {
                let ns = number(&ack.namespace);
                let durable = net.disk(from).and_then(|disk| disk.durable().spaces[ns].history.as_ref());
                let stored = durable.map(|(head, _)| head.position);
                if !ack.volatile
                    && stored.is_none_or(|stored| stored.partial_cmp(&ack.position).is_none_or(|o| o.is_lt()))
                {
                    let at = ack.position;
                    return Err(format!("invariant 14: relay {from} says {at} is stored, not {stored:?}"));
                }
                // It may have died since: what it says it does before it says it.
                self.truths[from].reached[0].extend((!ack.volatile).then_some(place(ns, &ack.position)));
                self.truths[from].reached[1].insert(place(ns, &ack.position));
            }
            Frame::Report(report) => self.counts.reports += report.nodes.len() as u64,
            Frame::Goodbye(goodbye) if goodbye.code == spanwire_config::wire::GoodbyeCode::Loop => {
                self.counts.loops += 1;
            }
            _ => {}
        }
        for head in heads(&frame) {
            let mut bytes = Vec::new();
            head.encode(&mut bytes);
            if from == 0 {
                self.issued.insert(bytes);
                continue;
            }
            self.counts.forwarded += 1;
            if !self.issued.contains(&bytes) {
                return Err(format!("invariant 7: relay {from} shows {} as nobody issued it", head.position));
            }
            // It may have died since it said that.
            let Some(at) = relay(net, from) else { continue };
            let machine = &at.machines[number(&head.namespace)];
            let held = [machine.held(), machine.canary()].map(|held| held.map(|(held, _)| held.position));
            if !held.contains(&Some(head.position)) && !self.held[from].contains(&place_of(head)) {
                return Err(format!("relay: {from} shows {} and holds {held:?}", head.position));
            }
        }
        Ok(())
    }

    fn died(&mut self, _net: &Net<Party>, node: usize) {
        self.fail_overs.died(node);
        let truth = &mut self.truths[node];
        (truth.seqs, truth.rose, truth.intake) = <_>::default();
    }

    fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Result<(), String> {
        self.learn(net);
        self.fail_overs.check(net.now())?;
        self.counts.fail_overs = self.fail_overs.seen;
        let Some(n) = node else { return Ok(()) };
        if let Some((replica, window)) = receiver(net, n) {
            for held in replica.namespaces() {
                let intake = self.truths[n].intake.entry(number(held.name())).or_default();
                intake.ended(|link| net.link(link).is_some_and(|view| view.dialer == (n, true)));
                intake.check(n, held, window, !self.lies)?;
            }
        }
        let machines = relay(net, n).into_iter().flat_map(|relay| &relay.machines);
        for machine in machines {
            if let Some((canary, _)) = machine.canary()
                && machine.held().map(|(held, _)| held.position.rev) != Some(canary.prev_rev)
            {
                return Err(format!(
                    "rollout: relay {n} holds {} and not what it stands on",
                    canary.position
                ));
            }
            let held = [machine.held(), machine.canary()].into_iter().flatten();
            self.held[n].extend(held.map(|(held, _)| place_of(held)));
            let up = machine.upstream();
            if up.is_some_and(|up| up.path.contains(&Id([n as u8 + 1; 16]))) {
                return Err(format!("loop: relay {n} takes what went through it: {up:?}"));
            }
        }
        (0..self.namespaces).try_for_each(|ns| match n {
            0 => self.check_table(net, ns),
            n => self.check_agent(net, n, ns),
        })
    }

    fn healed(&mut self, net: &mut Net<Party>) -> Result<(), String> {
        let last = |ns| {
            with_server(net, 0, ns, |server, io| {
                let mut last = changes(&[], &[], None);
                last.put(Key::new("last").expect("short"), 0, "word");
                server.supersede(io, &last)
            })
        };
        match (0..self.namespaces).map(last).all(|last| last == Some(true)) {
            true => Ok(()),
            false => Err("model: the authority is not there".into()),
        }
    }

    fn settled(&mut self, net: &Net<Party>) -> Result<(), String> {
        (0..self.namespaces).try_for_each(|ns| self.settled_in(net, ns))
    }

    fn tamper(&mut self, message: &Message, random: u64) -> Option<Message> {
        let mut frame = Frame::decode(&message.clone().into_bytes()).ok()?;
        let Frame::Slice(slice) = &mut frame else { return None };
        if random >> 20 & 3 == 0 {
            super::swell(slice);
            return Some(frame.encode().into());
        }
        let mut bytes = slice.bytes.to_vec();
        let at = (random >> 8) as usize % bytes.len().max(1);
        *bytes.get_mut(at)? ^= 1 << (random >> 4 & 7);
        slice.bytes = bytes.into();
        Some(frame.encode().into())
    }

    fn may_replay(&self, message: &Message) -> bool {
        let frame = Frame::decode(&message.clone().into_bytes());
        matches!(frame, Ok(Frame::Slice(_) | Frame::Beacon(_) | Frame::Credit(_) | Frame::Ack(_)))
    }

    fn describe(&self, message: &Message) -> String {
        super::oracle::describe(message)
    }
}
