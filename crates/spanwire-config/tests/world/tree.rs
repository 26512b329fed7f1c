//! The simulated cluster with relays: an authority, up to three relays in any tree (and now and then in a circle),
//! and nodes below them. Relays die, stand still, freeze while they talk on, and are lied to on their way. In some the
//! authority's store comes back as an old copy, and goes on from there.
//!
//! Its oracle knows what was committed, every HEAD that the authority issued, and what each node reached.

mod counts;
mod events;
mod histories;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;
use spanwire_config::rollout::admits;
use spanwire_config::wire::{Ack, Frame, Hello, NackCode};
use spanwire_config::{
    ChainMark, Claim, Epoch, Head, Id, Key, Level, Position, Replica, ReplicaSettings, Settings, State,
};
use spanwire_testkit::sim::{Io, Mix, Model, Net, Passage, Rng, Route, Setup, Step};

use super::failover::FailOvers;
use super::nodes::{Agent, BEACON, FRESH, Folder, HELLO, Holding, Party, STALL, Server, Space};
use super::oracle::memory::Intake;
use super::relay::Relay;
use super::{NAMES, Op, changes, commit, restart_if_failed, with_server};
pub(crate) use counts::TreeCounts;
use events::{kill, lose_caches};
use histories::{Fact, Histories, fact};

const RUN: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_secs(20);

/// In which namespace, and where.
type Place = (usize, u64, Id, u64);

fn place(ns: usize, at: &Position) -> Place {
    (ns, at.epoch.number, at.epoch.incarnation, at.rev)
}

fn fact_of(head: &Head) -> Fact {
    fact(number(&head.namespace), head)
}

/// The number of a namespace: all that anybody speaks of are those of the world.
fn number(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).unwrap_or(usize::MAX)
}

/// What a node did, over all its lives.
#[derive(Debug, Default)]
struct Truth {
    reached: [BTreeSet<Fact>; 3],
    shown: BTreeMap<usize, Head>,
    /// Highest `seq` that arrived in this life, by namespace and epoch, and when it rose.
    seqs: BTreeMap<(usize, u64, Id), u64>,
    rose: BTreeMap<usize, Time>,
    /// What came to it in this life, of each namespace.
    intake: BTreeMap<usize, Intake>,
    /// What it refused, or failed to act on.
    refused: BTreeSet<Fact>,
    /// What the authority itself sent it in this life.
    sent: BTreeSet<Fact>,
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
    /// One for each namespace.
    histories: Vec<Histories>,
    issued: BTreeSet<Vec<u8>>,
    truths: Vec<Truth>,
    /// What each relay has held: it forwards nothing else.
    held: Vec<BTreeSet<Fact>>,
    pub(crate) counts: TreeCounts,
    fail_overs: FailOvers,
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
    let copies = super::old_copies(seed, &mut plan);
    lose_caches(seed, relays, &mut plan);
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
            histories: (0..namespaces).map(|ns| Histories::new(ns, copies)).collect(),
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
        let spaces = net.disk(0).map(|disk| &disk.durable().spaces).into_iter().flatten();
        self.histories.iter_mut().zip(spaces).for_each(|(histories, space)| histories.learn(space));
    }

    /// The revision that a node names.
    fn named(&self, ns: usize, claim: Claim) -> Option<Fact> {
        let mut there = self.histories[ns].at(place(ns, &claim.position));
        there.find(|(_, chain)| ChainMark::of(chain) == claim.mark).copied()
    }

    /// Invariant 14: what a node names was committed; what a relay says it did before it says it, be it dead by now.
    fn check_ack(&mut self, net: &Net<Party>, from: usize, ack: &Ack) -> Result<(), String> {
        let (ns, at) = (number(&ack.namespace), ack.position);
        let Some(fact) = self.named(ns, ack.claim()) else {
            return Err(format!("invariant 14: node {from} names what nobody committed: {ack:?}"));
        };
        if !self.is_relay(from) {
            return Ok(());
        }
        let durable = net.disk(from).and_then(|disk| disk.durable().spaces[ns].history.as_ref());
        let stored = durable.map(|(head, _)| head.position);
        if !ack.volatile && stored.is_none_or(|stored| stored.partial_cmp(&at).is_none_or(|o| o.is_lt())) {
            return Err(format!("invariant 14: relay {from} says {at} is stored, not {stored:?}"));
        }
        self.truths[from].reached[0].extend((!ack.volatile).then_some(fact));
        self.truths[from].reached[1].insert(fact);
        Ok(())
    }

    fn is_relay(&self, node: usize) -> bool {
        (1..=self.relays).contains(&node)
    }

    /// Invariants 1, 2 and 3 for readers; 18.
    fn check_agent(&mut self, net: &Net<Party>, n: usize, ns: usize) -> Result<(), String> {
        let Some(node) = agent(net, n, ns) else { return Ok(()) };
        let truth = &mut self.truths[n];
        if let Some((head, _)) = net.disk(n).and_then(|disk| disk.durable().spaces[ns].history.as_ref()) {
            truth.reached[0].insert(fact(ns, head));
        }
        if let Some((head, state)) = &node.shown {
            let at = fact(ns, head);
            truth.reached[1].insert(at);
            if node.applied {
                truth.reached[2].insert(at);
            }
            let shown = truth.shown.insert(ns, head.clone());
            if shown.as_ref().map(|old| old.position) != Some(head.position) {
                let back = |old: &Head| {
                    head.position.partial_cmp(&old.position).is_none_or(std::cmp::Ordering::is_lt)
                };
                if shown.as_ref().is_some_and(back) {
                    return Err(format!("invariant 3: node {n} went back to {}", head.position));
                }
                // A relay serves whoever shows what it does not know and is below what it has.
                if truth.sent.contains(&at) {
                    self.histories[ns].check_step(n, shown.as_ref(), head)?;
                }
                if !admits(&head.audience, node.settings().node, &node.settings().labels) {
                    return Err(format!(
                        "invariant 11: node {n} shows {}, which is not for it",
                        head.position
                    ));
                }
                self.counts.canaries += u64::from(!head.audience.is_empty());
                let known = self.histories[ns].committed(&at);
                if known.is_none_or(|(known, content)| content != state || known.digest != head.digest) {
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

    /// Invariant 14, through relays too: of nodes of another history as well, in the table, in numbers and for gates.
    fn check_table(&mut self, net: &Net<Party>, ns: usize) -> Result<(), String> {
        let Some(server) = authority(net) else { return Ok(()) };
        let (served, histories) = (server.served(ns).namespace(), &self.histories[ns]);
        let head = served.head();
        let was = |id: Id, level: usize, at: &Position| {
            let facts = &self.truths[usize::from(id.0[0]) - 1].reached[level];
            histories.counts(facts, at, head, self.lies)
        };
        let levels = [Level::Stored, Level::Visible, Level::Applied];
        let status = served.status();
        for status in &status {
            for (at, level) in levels.into_iter().enumerate() {
                if let Some(said) = status.at(level).filter(|said| !was(status.node, at, said)) {
                    let n = status.node.0[0] - 1;
                    return Err(format!("invariant 14: node {n} never reached {level:?} at {said}"));
                }
            }
            let refused = status.refused.iter().filter(|(_, code, _)| *code != NackCode::Conflict);
            let facts = &self.truths[usize::from(status.node.0[0]) - 1].refused;
            if let Some((at, ..)) =
                refused.into_iter().find(|(at, ..)| !histories.counts(facts, at, head, false))
            {
                return Err(format!("invariant 14: {:?} never refused {at} of this history", status.node));
            }
            self.counts.conflicts += u64::from(status.conflict && !status.path.is_empty());
        }
        let Some(head) = head else { return Ok(()) };
        for (at, level) in levels.into_iter().enumerate() {
            let may =
                (1 + self.relays..net.len()).filter(|n| was(Id([*n as u8 + 1; 16]), at, &head.position));
            let (said, may) = (served.reached(head.position, level), may.count());
            if said > may {
                return Err(format!("invariant 14: {said} nodes reached {}, and {may} did", head.position));
            }
        }
        let cohort = server.served(ns).newest();
        if let (Some(at), Some(audience)) = cohort {
            let mut nodes = served.cohort(at, &audience).into_iter();
            if let Some(node) = nodes.find(|node| node.applied && !was(node.node, 2, &at)) {
                return Err(format!("rollout: {node:?} counts for the gate of {at}"));
            }
        }
        match &server.served(ns).wrong {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        }
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
            self.truths[node].shown.clear();
            return Party::Relay(Box::new(Relay::start(dials, self.log_commits, io)));
        }
        let truth = &mut self.truths[node];
        let spaces = io.disk.read().spaces.iter().enumerate();
        let held = spaces.filter_map(|(ns, space)| Some((ns, space.history.as_ref()?.0.clone())));
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
            Op::OldCopy { commits, down } => {
                net.crash(0, *down, true);
                self.learn(net);
                if let (Some(disk), Some(space)) = (net.disk_mut(0), self.histories[ns].go_back(*commits)) {
                    let mut folder = disk.read().clone();
                    folder.spaces[ns] = space;
                    disk.replace(folder);
                }
                self.counts.lost = self.histories.iter().map(|histories| u64::from(histories.lost)).sum();
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
            Op::PutBack { node, starts, cache } => {
                net.crash(*node, Duration::from_millis(50), false);
                if let Some(disk) = net.disk_mut(*node) {
                    let mut folder = disk.read().clone();
                    folder.opened = folder.opened.saturating_sub(*starts);
                    for space in folder.spaces.iter_mut().filter(|_| !cache) {
                        (space.history, space.before, space.level) = (None, None, None);
                    }
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
                if from == 0 {
                    self.truths[to].sent.insert(fact_of(&slice.head));
                }
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
                    let first = !truth.seqs.keys().any(|(of, ..)| *of == ns);
                    let known = truth
                        .seqs
                        .entry((ns, head.position.epoch.number, head.position.epoch.incarnation))
                        .or_default();
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
        if from == 0 {
            self.learn(net);
        }
        self.fail_overs.said(passage.link, from, &frame)?;
        match &frame {
            Frame::Ack(ack) => self.check_ack(net, from, ack)?,
            Frame::Nack(nack) if nack.code != NackCode::Conflict => {
                let Some(fact) = self.named(number(&nack.namespace), nack.claim()) else {
                    return Err(format!("invariant 14: node {from} refuses what nobody committed: {nack:?}"));
                };
                self.truths[from].refused.insert(fact);
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
            let held = [machine.held(), machine.canary()].map(|held| held.map(|(held, _)| fact_of(held)));
            if !held.contains(&Some(fact_of(head))) && !self.held[from].contains(&fact_of(head)) {
                return Err(format!("relay: {from} shows {} and holds {held:?}", head.position));
            }
        }
        Ok(())
    }

    fn died(&mut self, _net: &Net<Party>, node: usize) {
        self.fail_overs.died(node);
        let truth = &mut self.truths[node];
        (truth.seqs, truth.rose, truth.intake, truth.sent) = <_>::default();
    }

    fn check(&mut self, net: &Net<Party>, node: Option<usize>) -> Result<(), String> {
        if node.is_none_or(|node| node == 0) {
            self.learn(net);
        }
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
            self.held[n].extend(held.map(|(held, _)| fact_of(held)));
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
        for ns in 0..self.namespaces {
            if self.histories[ns].is_old {
                // Above every number that was ever used, as an operator who looked at the nodes would take it.
                let above = self.histories[ns].highest_epoch() + 1;
                with_server(net, 0, ns, |server, io| server.new_epoch(io, above, &State::new()));
                self.learn(net);
            }
            let last = with_server(net, 0, ns, |server, io| {
                let mut last = changes(&[], &[], None);
                last.put(Key::new("last").expect("short"), 0, "word");
                server.supersede(io, &last)
            });
            if last != Some(true) {
                return Err("model: the authority is not there".into());
            }
        }
        Ok(())
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
