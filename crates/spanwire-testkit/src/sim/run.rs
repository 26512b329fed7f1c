//! Running a seed, looking for one that fails, and shortening what failed.
//!
//! Owns: the loop, the order in which node, oracle and trace see an event, and the report. Never: keeps
//! anything from one run for the next.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use spanwire::Message;
use spanwire::protocol::Time;

use super::net::{Arrival, Lie, Net, Pending, Route};
use super::plan::{Step, What};
use super::{Event, Io, Link, Node};

/// Messages that a route remembers for replays.
const PAST: usize = 8;

/// A message that is sent or was just handled.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    /// Over which connection.
    pub link: Link,
    /// The node that sent it.
    pub from: usize,
    /// The node that it is for.
    pub to: usize,
    /// `false`: it was sent just now. `true`: its receiver has just handled it.
    pub arrived: bool,
    /// The message, as it was sent or as it arrived.
    pub message: &'a Message,
}

/// What is simulated: how nodes start, what their users do, and what must always hold.
///
/// A model is made anew for each run and lives beside the world: it is not part of any node, so it may know
/// everything, and it forgets nothing when a node does.
pub trait Model: Sized {
    /// A process.
    type Node: Node;
    /// What a plan can tell the model to do.
    type Op: Clone + fmt::Debug;

    /// Starts (or starts again) the process of a node, from what its disk holds.
    fn start(&mut self, node: usize, io: &mut Io<'_, <Self::Node as Node>::Disk>) -> Self::Node;

    /// Does one operation of the plan. It must not depend on those before it having been done: a plan is
    /// shortened by leaving lines out.
    ///
    /// # Errors
    /// What is wrong: the run has failed.
    fn operate(&mut self, net: &mut Net<Self::Node>, op: &Self::Op) -> Result<(), String>;

    /// Looks at a message when it is sent and when it was handled.
    ///
    /// # Errors
    /// What is wrong: the run has failed.
    fn passed(&mut self, _net: &Net<Self::Node>, _passage: &Passage<'_>) -> Result<(), String> {
        Ok(())
    }

    /// A process has just died.
    fn died(&mut self, _net: &Net<Self::Node>, _node: usize) {}

    /// The oracle, after every event. `node`: to which node it happened, if it was one.
    ///
    /// # Errors
    /// What is wrong: the run has failed. What is before the first colon names the kind of failure.
    fn check(&mut self, net: &Net<Self::Node>, node: Option<usize>) -> Result<(), String>;

    /// The faults are over.
    ///
    /// # Errors
    /// What is wrong: the run has failed.
    fn healed(&mut self, _net: &mut Net<Self::Node>) -> Result<(), String> {
        Ok(())
    }

    /// The time to settle is over: is everything as it should be now?
    ///
    /// # Errors
    /// What is wrong: the run has failed.
    fn settled(&mut self, _net: &Net<Self::Node>) -> Result<(), String> {
        Ok(())
    }

    /// Changes a message, as [`Fault::Flip`](super::Fault::Flip) asks; `None`: not this one, the next. Unless you
    /// say otherwise, one bit of it is turned.
    fn tamper(&mut self, message: &Message, random: u64) -> Option<Message> {
        let mut bytes = message.to_vec();
        let at = (random >> 3) as usize % bytes.len().max(1);
        *bytes.get_mut(at)? ^= 1 << (random & 7);
        Some(bytes.into())
    }

    /// Whether this message may be lost while later ones arrive. What pipes promise says no; a lying peer may.
    fn may_lose(&self, _message: &Message) -> bool {
        true
    }

    /// Whether this message may come once more.
    fn may_replay(&self, _message: &Message) -> bool {
        true
    }

    /// A message in a few words, for the trace.
    fn describe(&self, message: &Message) -> String {
        format!("{} bytes", message.len())
    }
}

/// A world before its first event.
#[derive(Debug)]
pub struct Setup<M: Model> {
    /// The model.
    pub model: M,
    /// The disks; there are as many nodes. All start at once.
    pub disks: Vec<<M::Node as Node>::Disk>,
    /// Who connects to whom.
    pub routes: Vec<Route>,
    /// What happens, in any order. Faults that are to be over by then belong before the end of `run`.
    pub plan: Vec<Step<M::Op>>,
    /// When faults end.
    pub run: Duration,
    /// How long the world then has to settle.
    pub settle: Duration,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The same for the same seed: over every event and every byte that passed.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// What went wrong, if anything.
    pub failure: Option<Failure>,
}

/// What went wrong in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the model said, or a panic.
    pub what: String,
    /// When.
    pub at: Duration,
    /// The last events before it, if they were asked for.
    pub trace: Vec<String>,
}

impl Failure {
    /// What kind of failure: all before the first colon.
    pub fn kind(&self) -> &str {
        self.what.split(':').next().unwrap_or_default()
    }
}

/// A failure with the shortest plan that was found for it. Shows itself as a report.
#[derive(Clone, Debug)]
pub struct Found<O> {
    /// The seed.
    pub seed: u64,
    /// What goes wrong with the short plan.
    pub failure: Failure,
    /// The short plan.
    pub plan: Vec<Step<O>>,
    /// Lines of the plan that the seed gave.
    pub lines: usize,
    /// Runs that the shortening took.
    pub runs: usize,
}

impl<O: fmt::Debug> fmt::Display for Found<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.failure.what)?;
        writeln!(f, "at {:.6} s; ", self.failure.at.as_secs_f64())?;
        writeln!(f, "plan, {} of {} lines left after {} runs:", self.plan.len(), self.lines, self.runs)?;
        self.plan.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        writeln!(f, "last events:")?;
        self.failure.trace.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "again: SIM_SEEDS={}..{}", self.seed, self.seed + 1)
    }
}

/// A simulation: a function from a seed to a world.
#[derive(Clone, Debug)]
pub struct Sim<F> {
    setup: F,
    most_runs: usize,
}

impl<F, M> Sim<F>
where
    F: Fn(u64) -> Setup<M>,
    M: Model,
{
    /// `setup` makes the world of a seed: it must give the same for the same seed.
    pub fn new(setup: F) -> Self {
        Sim { setup, most_runs: 400 }
    }

    /// Most runs that shortening a plan may take. Default: 400.
    #[must_use]
    pub fn shorten_within(mut self, runs: usize) -> Self {
        self.most_runs = runs;
        self
    }

    /// Runs one seed.
    pub fn run(&self, seed: u64) -> Outcome {
        World::new((self.setup)(seed), seed, None, false).run().0
    }

    /// Runs one seed, and hands the model and the nodes over after it: for counters.
    pub fn run_with<R>(&self, seed: u64, look: impl FnOnce(&M, &Net<M::Node>) -> R) -> (Outcome, R) {
        let (outcome, world) = World::new((self.setup)(seed), seed, None, false).run();
        let result = look(&world.model, &world.net);
        (outcome, result)
    }

    /// Runs a seed's world with another plan, and keeps the last events.
    pub fn replay(&self, seed: u64, plan: &[Step<M::Op>]) -> Outcome {
        World::new((self.setup)(seed), seed, Some(plan.to_vec()), true).run().0
    }

    /// The first seed that fails, if one does, with a shortened plan.
    pub fn find(&self, seeds: Range<u64>) -> Option<Found<M::Op>> {
        seeds.into_iter().find_map(|seed| self.run(seed).failure.map(|failure| self.shorten(seed, failure)))
    }

    /// Runs seeds; the first that fails ends it.
    ///
    /// # Panics
    /// With the report of the failure: seed, shortened plan, last events.
    #[track_caller]
    pub fn check(&self, seeds: Range<u64>) {
        if let Some(found) = self.find(seeds) {
            panic!("{found}");
        }
    }

    /// Leaves out lines of a failing seed's plan for as long as it still fails in the same way.
    pub fn shorten(&self, seed: u64, failure: Failure) -> Found<M::Op> {
        let mut plan = (self.setup)(seed).plan;
        plan.sort_by_key(|step| step.at);
        let (lines, kind, mut runs) = (plan.len(), failure.kind().to_owned(), 0);
        let fails = |plan: &[Step<M::Op>], runs: &mut usize| {
            *runs += 1;
            let outcome = World::new((self.setup)(seed), seed, Some(plan.to_vec()), false).run().0;
            outcome.failure.is_some_and(|failure| failure.kind() == kind)
        };
        // Large pieces first, then smaller, then single lines until nothing more can go.
        let mut piece = plan.len().div_ceil(2);
        while piece > 0 && runs < self.most_runs {
            let (mut at, mut shorter) = (0, false);
            while at < plan.len() && runs < self.most_runs {
                let mut less = plan.clone();
                less.drain(at..(at + piece).min(less.len()));
                if fails(&less, &mut runs) {
                    plan = less;
                    shorter = true;
                } else {
                    at += piece;
                }
            }
            if !shorter || piece > 1 {
                piece /= 2;
            }
        }
        let failure = self.replay(seed, &plan).failure.unwrap_or(failure);
        Found { seed, failure, plan, lines, runs }
    }
}

/// The seeds that the environment asks for: `SIM_SEEDS=N` (the first N), or `SIM_SEEDS=A..B`; else `default`.
///
/// # Panics
/// When it asks for something else: other seeds than those that were meant show nothing.
pub fn seeds(default: Range<u64>) -> Range<u64> {
    match std::env::var("SIM_SEEDS") {
        Ok(text) => parse(&text).unwrap_or_else(|| panic!("SIM_SEEDS={text} is neither N nor A..B")),
        Err(_) => default,
    }
}

fn parse(text: &str) -> Option<Range<u64>> {
    match text.split_once("..") {
        Some((from, to)) => Some(from.trim().parse().ok()?..to.trim().parse().ok()?),
        None => Some(0..text.trim().parse().ok()?),
    }
}

struct World<M: Model> {
    model: M,
    net: Net<M::Node>,
    plan: Vec<Step<M::Op>>,
    run: Duration,
    settle: Duration,
}

impl<M: Model> World<M> {
    fn new(setup: Setup<M>, seed: u64, plan: Option<Vec<Step<M::Op>>>, record: bool) -> Self {
        let Setup { model, disks, routes, plan: own, run, settle } = setup;
        let mut plan = plan.unwrap_or(own);
        plan.sort_by_key(|step| step.at);
        let mut net = Net::new(seed, disks, routes);
        net.lines = record.then(VecDeque::new);
        World { model, net, plan, run, settle }
    }

    fn run(mut self) -> (Outcome, Self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.go()));
        let failed = match result {
            Ok(Ok(())) => None,
            Ok(Err(what)) => Some(what),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
                Some(format!("panic: {text}"))
            }
        };
        let failure = failed.map(|what| Failure {
            what,
            at: self.net.now.since_start(),
            trace: self.net.lines.take().unwrap_or_default().into(),
        });
        (Outcome { hash: self.net.hash, events: self.net.events, failure }, self)
    }

    fn go(&mut self) -> Result<(), String> {
        for node in 0..self.net.len() {
            self.net.at(Time::ZERO, Pending::Start { node, deaths: 0 });
        }
        for index in 0..self.plan.len() {
            self.net.at(Time::from_start(self.plan[index].at), Pending::Step { index });
        }
        self.net.at(Time::from_start(self.run), Pending::Heal);
        self.net.at(Time::from_start(self.run + self.settle), Pending::End);
        while let Some(pending) = self.net.pop() {
            if matches!(pending, Pending::End) {
                return self.model.settled(&self.net);
            }
            let node = self.event(pending)?;
            self.after(node)?;
        }
        Ok(())
    }

    /// One event. Returns the node that it happened to.
    fn event(&mut self, pending: Pending) -> Result<Option<usize>, String> {
        let word = self.net.now.since_start().as_nanos() as u64;
        let mut happened = None;
        match pending {
            Pending::Deliver { link, side } => return self.deliver(link, side),
            Pending::Close { link, side } => {
                if let Some(node) = self.net.broken(link, side) {
                    self.net.note(|| format!("n{node} hears of the end of {link:?}"));
                    self.net.dispatch(node, Event::Closed(link));
                    happened = Some(node);
                }
            }
            Pending::Timer { node } => {
                if self.net.ring(node) {
                    self.net.dispatch(node, Event::Timer);
                    happened = Some(node);
                }
            }
            Pending::Dial { route } => {
                if let Some((link, from, to)) = self.net.dial(route) {
                    self.net.note(|| format!("{link:?} n{from} -> n{to} opens"));
                    self.net.mark(link.number());
                    self.net.dispatch(to, Event::Opened { link, route, peer: from });
                    self.after(Some(to))?;
                    self.net.dispatch(from, Event::Opened { link, route, peer: to });
                    happened = Some(from);
                }
            }
            Pending::Start { node, deaths } => {
                if self.net.may_start(node, deaths) {
                    self.net.note(|| format!("n{node} starts"));
                    self.net.slots[node].starts += 1;
                    let model = &mut self.model;
                    let (process, _) = self.net.io(node, |io| model.start(node, io));
                    self.net.put_back(node, process);
                    self.net.started(node);
                    happened = Some(node);
                }
            }
            Pending::Step { index } => match self.plan[index].what.clone() {
                What::Op(op) => {
                    self.net.note(|| format!("op {op:?}"));
                    self.model.operate(&mut self.net, &op)?;
                }
                What::Fault(fault) => {
                    self.net.note(|| format!("fault {fault:?}"));
                    self.net.fault(&fault);
                }
            },
            Pending::EndCut { route, cut } => self.net.end_cut(route, cut),
            Pending::EndDelay { route, delay } => self.net.end_delay(route, delay),
            Pending::Heal => {
                self.net.note(|| "faults end".to_owned());
                self.net.heal();
                // Those who were down are there before the model has its last word.
                self.net.at(self.net.now, Pending::Healed);
            }
            Pending::Healed => self.model.healed(&mut self.net)?,
            Pending::End => {}
        }
        self.net.mark(word ^ happened.map_or(0, |node| node as u64 + 1));
        Ok(happened)
    }

    fn deliver(&mut self, link: Link, side: usize) -> Result<Option<usize>, String> {
        let (from, to, route, message) = match self.net.arrive(link, side) {
            Arrival::Nothing => return Ok(None),
            Arrival::End { to } => {
                self.net.note(|| format!("n{to} hears of the end of {link:?}"));
                self.net.dispatch(to, Event::Closed(link));
                self.net.mark(link.number());
                return Ok(Some(to));
            }
            Arrival::Message { from, to, route, message } => (from, to, route, message),
        };
        let mut back = None;
        for message in self.lie(route, side, message) {
            // The one before it may have ended the connection.
            if !self.net.is_open(link, 1 - side) {
                break;
            }
            self.net.note(|| format!("{link:?} n{from} -> n{to} {}", self.model.describe(&message)));
            self.net.mark(link.number() ^ (to as u64) << 32);
            self.net.mark(self.net.now.since_start().as_nanos() as u64);
            self.net.mark_bytes(&message);
            back = self.net.dispatch(to, Event::Message(link, message.clone()));
            if back.is_some() {
                break;
            }
            // Before what was sent in answer, as the receiver saw it.
            let passage = Passage { link, from, to, arrived: true, message: &message };
            self.model.passed(&self.net, &passage)?;
            self.settle_sends()?;
        }
        let given_back = back.is_some();
        if let Some(sender) = self.net.arrived(link, side, back) {
            self.net.dispatch(sender, Event::Writable(link));
            self.after(Some(sender))?;
        }
        // A node that gave something back has done nothing that would make room.
        Ok((!given_back).then_some(to))
    }

    /// What becomes of a message on its way.
    fn lie(&mut self, route: usize, side: usize, message: Message) -> Vec<Message> {
        let state = &mut self.net.routes[route];
        let (lies, past) = (&mut state.lies[side], &mut state.past[side]);
        let mut arriving = vec![message.clone()];
        let mut at = 0;
        while at < lies.len() {
            let done = match lies[at] {
                Lie::Flip(random) => match self.model.tamper(&message, random) {
                    Some(other) if !arriving.is_empty() => {
                        arriving = vec![other];
                        true
                    }
                    _ => false,
                },
                Lie::Lose if self.model.may_lose(&message) => {
                    arriving.clear();
                    true
                }
                Lie::Lose => false,
                Lie::Replay(back) => match past.get(past.len().saturating_sub(back)) {
                    Some(old) if self.model.may_replay(old) => {
                        arriving.push(old.clone());
                        true
                    }
                    _ => false,
                },
            };
            if done {
                lies.remove(at);
                if self.net.lines.is_some() {
                    // Shown where the message itself would be.
                    let text = format!("a lie on route {route}");
                    if let Some(lines) = &mut self.net.lines {
                        lines.push_back(text);
                    }
                }
            } else {
                at += 1;
            }
        }
        if past.len() >= PAST {
            past.pop_front();
        }
        past.push_back(message);
        arriving
    }

    /// The model sees what was sent.
    fn settle_sends(&mut self) -> Result<(), String> {
        let mut sent = std::mem::take(&mut self.net.links.sent);
        for (from, to, link, message) in sent.drain(..) {
            let passage = Passage { link, from, to, arrived: false, message: &message };
            self.model.passed(&self.net, &passage)?;
        }
        // The model only looks, so nothing was sent meanwhile: the room is used again.
        self.net.links.sent = sent;
        Ok(())
    }

    /// After an event: what was sent, who died, what is due next, and the oracle.
    fn after(&mut self, node: Option<usize>) -> Result<(), String> {
        self.settle_sends()?;
        for dead in std::mem::take(&mut self.net.crashed) {
            self.model.died(&self.net, dead);
        }
        if let Some(node) = node {
            self.net.unblock(node);
        }
        self.net.schedule();
        self.model.check(&self.net, node)
    }
}
