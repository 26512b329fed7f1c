//! The small world: what can come next, and what comes of it.
//!
//! Owns: links, disks, budgets of what may happen. Never: chance; time.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use spanwire::Message;
use spanwire_config::Step;

use super::nodes::{Disk, Node, beacon};
use super::oracle::Oracle;

/// How often what may happen does, at most.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bounds {
    /// Everybody is there and holds a first commit; else nobody is connected yet.
    pub(crate) begun: bool,
    /// The replicas are behind a relay.
    pub(crate) relay: bool,
    pub(crate) replicas: u8,
    pub(crate) commits: u8,
    pub(crate) crashes: u8,
    pub(crate) losses: u8,
    pub(crate) refusals: u8,
    pub(crate) beacons: u8,
    /// Steps of a rollout; with any, the second commit of all is one. Then the authority does not die: what its store
    /// recovers of a rollout is the simulator's, with the shipped log.
    pub(crate) steps: u8,
}

/// What can come next. Nodes are numbered, the authority first; links by who dials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Somebody commits.
    Commit,
    /// The operator has the open rollout go on, wait or end.
    Roll(Step),
    /// Who got no answer before the authority crashed asks again.
    Again(u8),
    /// What the authority's store writes is durable.
    Durable,
    /// The first message on its way arrives: at the dialler, or at the listener.
    Deliver {
        link: usize,
        up: bool,
    },
    /// One end of a lost pipe hears of it; what was still on its way to there is gone.
    Close {
        link: usize,
        up: bool,
    },
    Dial(usize),
    /// An application takes what is verified and keeps it on its disk.
    Keep(usize),
    /// … and shows it, and says so.
    Show(usize),
    /// … or refuses it.
    Refuse(usize),
    /// Its hook is done.
    Apply(usize),
    /// A relay's disk has what it was given.
    Stored(usize),
    /// A relay tells its table upward.
    Flush(usize),
    Beacon,
    /// A process dies. What the authority's store was writing is there after it, or not.
    Crash {
        node: usize,
        written: bool,
    },
    Start(usize),
    Lose(usize),
}

impl Event {
    /// It may come, and need not.
    pub(crate) fn is_optional(&self) -> bool {
        use Event::{Beacon, Commit, Crash, Lose, Refuse, Roll};
        matches!(self, Commit | Roll(_) | Refuse(_) | Beacon | Crash { .. } | Lose(_))
    }
}

/// One pipe. `[0]` is the dialler's end, `[1]` the listener's.
#[derive(Clone, Default, Debug)]
struct Wire {
    open: [bool; 2],
    lost: bool,
    /// On its way to that end.
    to: [VecDeque<Message>; 2],
}

/// All of it.
#[derive(Clone)]
pub(crate) struct World {
    left: Bounds,
    /// The second commit is a rollout.
    rollout: bool,
    committed: u8,
    nodes: Vec<Option<Rc<Node>>>,
    prints: Vec<u128>,
    disks: Vec<Disk>,
    /// By who dials; the authority's place is empty.
    wires: Vec<Wire>,
    oracle: Rc<Oracle>,
}

const AUTHORITY: usize = 0;

impl World {
    pub(crate) fn new(bounds: Bounds) -> Result<World, String> {
        let nodes = 1 + usize::from(bounds.relay) + usize::from(bounds.replicas);
        let mut world = World {
            left: bounds,
            rollout: bounds.steps > 0,
            committed: 0,
            nodes: vec![None; nodes],
            prints: vec![0; nodes],
            disks: vec![Disk::default(); nodes],
            wires: vec![Wire::default(); nodes],
            oracle: Rc::new(Oracle::new(nodes)),
        };
        (0..nodes).for_each(|node| world.start(node));
        if bounds.begun {
            world.begin()?;
        }
        Ok(world)
    }

    /// One order in which everybody comes to hold a first commit.
    fn begin(&mut self) -> Result<(), String> {
        let left = self.left;
        self.left = Bounds { commits: 0, crashes: 0, losses: 0, refusals: 0, beacons: 0, steps: 0, ..left };
        self.left.commits = 1;
        self.step(Event::Commit)?;
        while let Some(event) = self.events().into_iter().find(|event| !event.is_optional()) {
            self.step(event)?;
        }
        self.left = left;
        self.at_rest()
    }

    /// Whom a node dials.
    fn above(&self, node: usize) -> usize {
        if self.left.relay && node > 1 { 1 } else { AUTHORITY }
    }

    /// The node at an end of a link.
    fn end(&self, link: usize, up: bool) -> usize {
        if up { self.above(link) } else { link }
    }

    fn start(&mut self, node: usize) {
        let disk = &mut self.disks[node];
        let started = match node {
            AUTHORITY => Node::server(disk),
            _ if self.left.relay && node == 1 => Node::relay(disk, node),
            _ => Node::agent(disk, node),
        };
        self.nodes[node] = Some(Rc::new(started));
        self.note(node);
    }

    /// What is to be tried next: all that can come, or where that finds the same, what can come to one node.
    ///
    /// What comes to a node and what comes to another may come in either order, with the same end. So where no crash
    /// and no loss can come any more, and nothing that others do adds to what can come to a node (each of its pipes
    /// has something for it, or will never again), that node goes first.
    pub(crate) fn events(&self) -> Vec<Event> {
        if self.left.crashes == 0 && self.left.losses == 0 {
            let first = (0..self.nodes.len()).filter(|n| self.is_apart(*n)).map(|n| self.events_of(n));
            if let Some(events) = first.into_iter().find(|events| !events.is_empty()) {
                return events;
            }
        }
        let mut events: Vec<Event> = (0..self.nodes.len()).flat_map(|n| self.events_of(n)).collect();
        for link in 1..self.wires.len() {
            let wire = &self.wires[link];
            let both = self.nodes[link].is_some() && self.nodes[self.above(link)].is_some();
            if both && wire.open == [false; 2] {
                events.push(Event::Dial(link));
            }
            if wire.open == [true; 2] && !wire.lost && self.left.losses > 0 {
                events.push(Event::Lose(link));
            }
        }
        events
    }

    /// The ends of links at a node.
    fn ends(&self, n: usize) -> impl Iterator<Item = (usize, bool)> {
        let all = (1..self.wires.len()).flat_map(|link| [(link, false), (link, true)]);
        all.filter(move |(link, up)| self.end(*link, *up) == n)
    }

    fn is_apart(&self, n: usize) -> bool {
        self.nodes[n].is_some()
            && self.ends(n).all(|(link, up)| {
                let (wire, end) = (&self.wires[link], usize::from(up));
                wire.open[end] && (wire.lost || !wire.to[end].is_empty())
            })
    }

    /// What can come to a node.
    fn events_of(&self, n: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(node) = &self.nodes[n] else { return vec![Event::Start(n)] };
        for (link, up) in self.ends(n) {
            let (wire, end) = (&self.wires[link], usize::from(up));
            if wire.open[end] {
                events.extend((!wire.to[end].is_empty()).then_some(Event::Deliver { link, up }));
                events.extend(wire.lost.then_some(Event::Close { link, up }));
            }
        }
        let mut half_written = false;
        match &**node {
            Node::Server(server) => {
                half_written = server.writing.is_some();
                // All but the first go on from one before.
                let may = |number: &u8| self.oracle.has_begun() || *number == 1;
                let open = server.machine.cohort().is_some();
                let next = (self.left.commits > 0).then_some(self.committed + 1).filter(may);
                // A commit would be told that one is open.
                let next = next.filter(|_| !self.rollout || !open && !half_written);
                if open && !half_written && self.left.steps > 0 {
                    let steps = [Step::Promote, Step::Abort, Step::Pause, Step::Resume];
                    events.extend(steps.map(Event::Roll));
                }
                events.extend(next.map(|_| Event::Commit));
                events.extend(half_written.then_some(Event::Durable));
                events.extend((self.left.beacons > 0).then_some(Event::Beacon));
                events.extend(self.oracle.unanswered().filter(may).map(Event::Again));
            }
            Node::Relay(relay) => {
                events.extend(relay.persisting.is_some().then_some(Event::Stored(n)));
                events.extend(relay.machine.due().is_some().then_some(Event::Flush(n)));
            }
            Node::Agent(agent) => {
                if agent.is_ready() {
                    events.push(Event::Keep(n));
                    // The last alone does, so that it is nobody else's business.
                    let last = n + 1 == self.nodes.len();
                    events.extend((last && self.left.refusals > 0).then_some(Event::Refuse(n)));
                }
                if agent.given.is_some() {
                    events.push(Event::Show(n));
                } else if agent.shown.is_some() && !agent.applied {
                    events.push(Event::Apply(n));
                }
            }
        }
        if self.left.crashes > 0 && !(self.rollout && n == AUTHORITY) {
            events.push(Event::Crash { node: n, written: false });
            events.extend(half_written.then_some(Event::Crash { node: n, written: true }));
        }
        events
    }

    /// One of them.
    pub(crate) fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Commit => {
                self.left.commits -= 1;
                self.committed += 1;
                let number = self.committed;
                Rc::make_mut(&mut self.oracle).asked(number);
                let cohort = (self.rollout && number == 2).then_some(self.nodes.len() - 1);
                self.with(AUTHORITY, |node, disk| server(node).commit(disk, number, cohort))?;
            }
            Event::Roll(step) => {
                self.left.steps -= 1;
                let number = self.left.steps;
                self.with(AUTHORITY, |node, disk| server(node).roll(disk, number, step))?;
            }
            Event::Again(number) => {
                Rc::make_mut(&mut self.oracle).asked(number);
                self.with(AUTHORITY, |node, disk| server(node).commit(disk, number, None))?;
            }
            Event::Durable => {
                self.write();
                self.with(AUTHORITY, |node, disk| server(node).durable(disk))?;
            }
            Event::Deliver { link, up } => {
                let end = usize::from(up);
                let Some(message) = self.wires[link].to[end].pop_front() else { return Ok(()) };
                self.with(self.end(link, up), |node, _| match node {
                    Node::Server(server) => server.talk.arrive(link, message),
                    Node::Agent(agent) => agent.talk.arrive(link, message),
                    Node::Relay(relay) if up => relay.lower.arrive(link, message),
                    Node::Relay(relay) => relay.upper.arrive(link, message),
                })?;
            }
            Event::Close { link, up } => {
                self.wires[link].to[usize::from(up)].clear();
                self.wires[link].open[usize::from(up)] = false;
                self.with(self.end(link, up), |node, _| match node {
                    Node::Server(server) => server.talk.close(link),
                    Node::Agent(agent) => agent.talk.close(link),
                    Node::Relay(relay) if up => relay.lower.close(link),
                    Node::Relay(relay) => relay.upper.close(link),
                })?;
            }
            Event::Dial(link) => {
                self.wires[link] = Wire { open: [true; 2], ..Wire::default() };
                for up in [true, false] {
                    self.with(self.end(link, up), |node, _| match node {
                        Node::Server(server) => server.talk.open(link),
                        Node::Agent(agent) => agent.talk.open(link),
                        Node::Relay(relay) if up => relay.lower.open(link),
                        Node::Relay(relay) => relay.upper.open(link),
                    })?;
                }
            }
            Event::Keep(n) => self.with(n, |node, disk| agent(node).keep(disk))?,
            Event::Show(n) => self.with(n, |node, _| agent(node).show())?,
            Event::Refuse(n) => {
                self.left.refusals -= 1;
                let mut refused = None;
                self.with(n, |node, _| refused = agent(node).refuse())?;
                Rc::make_mut(&mut self.oracle).refused(n, refused);
            }
            Event::Apply(n) => self.with(n, |node, disk| agent(node).apply(disk))?,
            Event::Stored(n) => self.with(n, |node, disk| relay(node).stored(disk))?,
            Event::Flush(n) => self.with(n, |node, _| relay(node).flush())?,
            Event::Beacon => {
                self.left.beacons -= 1;
                self.with(AUTHORITY, |node, _| beacon(&mut server(node).talk))?;
            }
            Event::Crash { node, written } => {
                self.left.crashes -= 1;
                if written {
                    self.write();
                }
                self.nodes[node] = None;
                Rc::make_mut(&mut self.oracle).died(node);
                for link in 1..self.wires.len() {
                    for up in [false, true] {
                        if self.end(link, up) == node && self.wires[link].open != [false; 2] {
                            let wire = &mut self.wires[link];
                            wire.lost = true;
                            wire.open[usize::from(up)] = false;
                            wire.to[usize::from(up)].clear();
                        }
                    }
                }
                self.prints[node] = 0;
            }
            Event::Start(node) => {
                self.start(node);
                Rc::make_mut(&mut self.oracle).starts(node, &self.disks[node])?;
            }
            Event::Lose(link) => {
                self.left.losses -= 1;
                self.wires[link].lost = true;
            }
        }
        Ok(())
    }

    /// What the authority's store writes gets into its log.
    fn write(&mut self) {
        let Some(Some(node)) = self.nodes.first() else { return };
        if let Node::Server(server) = &**node
            && let Some(record) = &server.writing
        {
            Arc::make_mut(&mut self.disks[AUTHORITY].log).push(record.clone());
            Rc::make_mut(&mut self.oracle).durable(record);
        }
    }

    /// Something happens to a node; what it says is on its way then, and all is checked.
    fn with(&mut self, n: usize, f: impl FnOnce(&mut Node, &mut Disk)) -> Result<(), String> {
        let Some(node) = &mut self.nodes[n] else { return Ok(()) };
        let node = Rc::make_mut(node);
        f(node, &mut self.disks[n]);
        node.settle(&self.disks[n]);
        let (sent, closed) = node.take();
        let oracle = Rc::make_mut(&mut self.oracle);
        oracle.check(n, node, &self.disks[n])?;
        for (link, message) in sent {
            oracle.sent(n, &message)?;
            // What goes down to its dialler, or up from it.
            let to = usize::from(link == n);
            let wire = &mut self.wires[link];
            if wire.open[to] && !wire.lost {
                wire.to[to].push_back(message);
            }
        }
        for link in closed {
            let own = usize::from(link != n);
            self.wires[link].open[own] = false;
            self.wires[link].lost = true;
            self.wires[link].to[own].clear();
        }
        self.note(n);
        Ok(())
    }

    /// Nothing can come any more but faults.
    pub(crate) fn at_rest(&self) -> Result<(), String> {
        let nodes: Vec<&Node> = self.nodes.iter().flatten().map(|node| &**node).collect();
        self.oracle.at_rest(&nodes, self.left.relay)
    }

    /// All of a node on which depends what it does.
    fn note(&mut self, n: usize) {
        let mut print = Print::default();
        let written = match self.nodes[n].as_deref() {
            None => Ok(()),
            Some(Node::Server(server)) => {
                let talk = &server.talk.script.protocol;
                write!(print, "{talk:?}{:?}{:?}", server.machine, server.writing)
            }
            Some(Node::Agent(agent)) => {
                let talk = &agent.talk.script.protocol;
                write!(print, "{talk:?}{:?}{:?}{}", agent.given, agent.shown, agent.applied)
            }
            Some(Node::Relay(relay)) => {
                let (upper, lower) = (&relay.upper.script.protocol, &relay.lower.script.protocol);
                write!(print, "{upper:?}{lower:?}{:?}{:?}", relay.machine, relay.persisting)
            }
        };
        written.expect("it takes any text");
        self.prints[n] = print.0;
    }

    /// The same for worlds that are alike.
    pub(crate) fn print(&self) -> u128 {
        let mut print = Print::default();
        self.prints.iter().for_each(|of_node| print.add(&of_node.to_le_bytes()));
        for wire in &self.wires {
            print.add(&[u8::from(wire.open[0]), u8::from(wire.open[1]), u8::from(wire.lost)]);
            for to in &wire.to {
                print.add(&[to.len() as u8]);
                for message in to {
                    print.add(&(message.len() as u32).to_le_bytes());
                    print.add(message);
                }
            }
        }
        let Bounds { commits, crashes, losses, refusals, beacons, steps, .. } = self.left;
        print.add(&[commits, crashes, losses, refusals, beacons, steps]);
        for disk in &self.disks {
            let kept = disk.kept.as_ref().map_or(0, |(head, _)| head.position.rev);
            let cohort = disk.kept.as_ref().is_some_and(|(head, _)| !head.audience.is_empty());
            print.add(&[
                disk.opened as u8,
                disk.log.len() as u8,
                kept as u8,
                u8::from(disk.applied),
                u8::from(cohort),
            ]);
        }
        self.oracle.write_to(&mut print).expect("it takes any text");
        print.0
    }
}

/// FNV-1a of 128 bits: quick without optimisation, and collisions are no danger among millions.
pub(crate) struct Print(u128);

impl Default for Print {
    fn default() -> Self {
        Print(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Print {
    /// Eight bytes at a time: this is most of what the tests do.
    fn add(&mut self, mut bytes: &[u8]) {
        while let Some((word, rest)) = bytes.split_first_chunk() {
            self.mix(u64::from_le_bytes(*word));
            bytes = rest;
        }
        let mut last = [0; 8];
        last[..bytes.len()].copy_from_slice(bytes);
        last[7] = bytes.len() as u8;
        self.mix(u64::from_le_bytes(last));
    }

    fn mix(&mut self, word: u64) {
        let mixed = (self.0 ^ u128::from(word)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        // What was high comes low: a product alone carries upward only.
        self.0 = mixed ^ (mixed >> 64);
    }
}

impl std::fmt::Write for Print {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

fn server(node: &mut Node) -> &mut super::nodes::Server {
    if let Node::Server(server) = node { server } else { panic!("it is the authority") }
}

fn agent(node: &mut Node) -> &mut super::nodes::Agent {
    if let Node::Agent(agent) = node { agent } else { panic!("it is a replica") }
}

fn relay(node: &mut Node) -> &mut super::nodes::Relay {
    if let Node::Relay(relay) = node { relay } else { panic!("it is the relay") }
}
