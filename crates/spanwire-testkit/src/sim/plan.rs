//! What is done to a world, and when: a list that can be made from a seed, printed, and shortened.
//!
//! Owns: the faults and how often each comes. Never: carries them out.

use std::fmt;
use std::time::Duration;

use super::Rng;

/// A direction of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the node that dials.
    Up,
    /// To the node that dials.
    Down,
}

/// Something goes wrong.
///
/// The last three do what no pipe does: they stand for a peer (or somebody on the way) that lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection of a route breaks; what was on its way is lost.
    Break {
        /// Which route.
        route: usize,
    },
    /// … and none can be made for a while.
    Cut {
        /// Which route.
        route: usize,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing passes any more. One end may hear of the end at once; each other hears of it late.
    HalfOpen {
        /// Which route.
        route: usize,
        /// Whether the dialling end hears of it at once (and dials again).
        dialer: bool,
        /// Whether the listening end hears of it at once.
        listener: bool,
        /// When the others hear of it.
        lasts: Duration,
    },
    /// Everything takes longer.
    Delay {
        /// Which route.
        route: usize,
        /// By so much.
        by: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// A process stands still, and goes on.
    Stall {
        /// Which node.
        node: usize,
        /// For how long.
        lasts: Duration,
    },
    /// A process dies, and is started again.
    Crash {
        /// Which node.
        node: usize,
        /// How long it is away.
        down: Duration,
        /// What was not synced is lost as well.
        power: bool,
    },
    /// A process dies in a sync of its disk.
    CrashAtSync {
        /// Which node.
        node: usize,
        /// After so many syncs that succeed.
        after: u32,
        /// That sync still makes everything durable.
        synced: bool,
        /// How long it is away.
        down: Duration,
    },
    /// The next syncs of a node's disk fail.
    FailSync {
        /// Which node.
        node: usize,
        /// So many.
        syncs: u32,
    },
    /// A message is changed: see [`Model::tamper`](super::Model::tamper).
    Flip {
        /// On which route.
        route: usize,
        /// In which direction.
        way: Way,
        /// How.
        random: u64,
    },
    /// A message is lost, and those after it are not.
    Lose {
        /// On which route.
        route: usize,
        /// In which direction.
        way: Way,
    },
    /// A message that passed before comes once more.
    Replay {
        /// On which route.
        route: usize,
        /// In which direction.
        way: Way,
        /// How many messages before.
        back: usize,
    },
}

/// What happens at one time of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What<O> {
    /// Somebody does something: a model's own operation.
    Op(O),
    /// Something goes wrong.
    Fault(Fault),
}

/// One line of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step<O> {
    /// Time since the start of the run.
    pub at: Duration,
    /// What happens then.
    pub what: What<O>,
}

impl<O> Step<O> {
    /// An operation of the model.
    pub fn op(at: Duration, op: O) -> Self {
        Step { at, what: What::Op(op) }
    }
}

impl<O: fmt::Debug> fmt::Display for Step<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.6} s  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Op(op) => write!(f, "{op:?}"),
            What::Fault(fault) => write!(f, "{fault:?}"),
        }
    }
}

/// How many faults of each kind a run gets, at most; half of that on average.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    /// [`Fault::Break`].
    pub breaks: usize,
    /// [`Fault::Cut`].
    pub cuts: usize,
    /// [`Fault::HalfOpen`].
    pub half_opens: usize,
    /// [`Fault::Delay`].
    pub delays: usize,
    /// [`Fault::Stall`].
    pub stalls: usize,
    /// [`Fault::Crash`].
    pub crashes: usize,
    /// [`Fault::CrashAtSync`].
    pub sync_crashes: usize,
    /// [`Fault::FailSync`].
    pub sync_failures: usize,
    /// [`Fault::Flip`].
    pub flips: usize,
    /// [`Fault::Lose`].
    pub losses: usize,
    /// [`Fault::Replay`].
    pub replays: usize,
    /// Longest time that a fault lasts.
    pub longest: Duration,
}

impl Mix {
    /// Faults for a world of so many nodes and routes within `run`, in no particular order. What lasts ends
    /// before the run does, but a half-open connection.
    pub fn plan<O>(&self, rng: &mut Rng, nodes: usize, routes: usize, run: Duration) -> Vec<Step<O>> {
        let mut steps = Vec::new();
        let all = [
            self.breaks,
            self.cuts,
            self.half_opens,
            self.delays,
            self.stalls,
            self.crashes,
            self.sync_crashes,
            self.sync_failures,
            self.flips,
            self.losses,
            self.replays,
        ];
        for (kind, most) in all.into_iter().enumerate() {
            for _ in 0..rng.below(most + 1) {
                let at = rng.time(Duration::ZERO..run);
                let fault = self.fault(kind, rng, nodes, routes, run - at);
                steps.push(Step { at, what: What::Fault(fault) });
            }
        }
        steps
    }

    fn fault(&self, kind: usize, rng: &mut Rng, nodes: usize, routes: usize, left: Duration) -> Fault {
        let (route, node) = (rng.below(routes), rng.below(nodes));
        // Short ones are as likely as long ones.
        let longest = self.longest / (1 << rng.below(6));
        let (lasts, endless) =
            (rng.time(Duration::ZERO..longest.min(left)), rng.time(Duration::ZERO..longest));
        let way = if rng.one_in(3) { Way::Up } else { Way::Down };
        match kind {
            0 => Fault::Break { route },
            1 => Fault::Cut { route, lasts },
            2 => {
                let told = rng.below(3);
                let lasts = endless + if rng.one_in(2) { self.longest * 8 } else { Duration::ZERO };
                Fault::HalfOpen { route, dialer: told == 1, listener: told == 2, lasts }
            }
            3 => Fault::Delay { route, by: lasts / 4, lasts },
            4 => Fault::Stall { node, lasts },
            5 => Fault::Crash { node, down: lasts, power: rng.one_in(2) },
            6 => Fault::CrashAtSync { node, after: rng.below(3) as u32, synced: rng.one_in(2), down: lasts },
            7 => Fault::FailSync { node, syncs: 1 + rng.below(2) as u32 },
            8 => Fault::Flip { route, way: Way::Down, random: rng.next() },
            9 => Fault::Lose { route, way },
            _ => Fault::Replay { route, way, back: 1 + rng.below(8) },
        }
    }
}
