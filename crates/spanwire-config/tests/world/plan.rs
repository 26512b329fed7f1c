//! What happens in the world of a seed: faults, and what users and operators do.

use std::time::Duration;

use spanwire_config::rollout::{Gate, Plan, Stage};
use spanwire_config::wire::Level;
use spanwire_config::{Id, Step as Move};
use spanwire_testkit::sim::{Fault, Mix, Rng, Route, Step, Way, What};

use super::{FOR_EVER, KEYS, RUN, Second};

/// What users and operators do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// In the namespace of this number; all else in the first.
    In(usize, Box<Op>),
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
    /// The store comes back as it was so many commits ago, and another history goes on from there.
    OldCopy { commits: usize, down: Duration },
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

/// Of one namespace; `spread` makes it one of several.
pub(super) fn plan(
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

/// How many namespaces the world of a seed has.
pub(super) fn namespaces(seed: u64) -> usize {
    // Apart from all else, so that the rest of a seed's world is what it is with one.
    [1, 1, 2, 3][Rng::new(seed ^ 0x0a0a_5bace).below(4)]
}

/// What is done to namespaces is spread over them: each time another, but who lost its store is helped there.
pub(super) fn spread(seed: u64, namespaces: usize, plan: &mut [Step<Op>]) {
    let mut rng = Rng::new(seed ^ 0x0005_94ea);
    let lost = rng.below(namespaces);
    for step in plan {
        let What::Op(op) = &mut step.what else { continue };
        let at = match op {
            Op::Commit { .. } | Op::Open { .. } | Op::Roll { .. } => rng.below(namespaces),
            Op::NewEpoch { .. } | Op::Wait { .. } | Op::Race => rng.below(namespaces),
            Op::LoseStore { .. } | Op::OldCopy { .. } | Op::Adopt { .. } => lost,
            _ => 0,
        };
        if at > 0 {
            *op = Op::In(at, Box::new(op.clone()));
        }
    }
}

/// In half of the worlds: a few rollouts, and what becomes of them.
pub(super) fn rollouts(seed: u64, plan: &mut Vec<Step<Op>>) {
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
pub(super) fn wait_for(seed: u64, servers: usize, agents: usize, plan: &mut Vec<Step<Op>>) {
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
pub(super) fn lose(seed: u64, plan: &mut Vec<Step<Op>>) {
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

/// In a third of the worlds with relays an old copy of the store comes back, and there is something new soon; whether in this.
pub(super) fn old_copies(seed: u64, plan: &mut Vec<Step<Op>>) -> bool {
    // Apart from all else, as rollouts are.
    let mut rng = Rng::new(seed ^ 0x0007_c0b7);
    if !rng.one_in(3) {
        return false;
    }
    for _ in 0..1 + rng.below(2) {
        let at = rng.time(RUN / 6..RUN - Duration::from_millis(500));
        let (commits, down) = (1 + rng.below(5), rng.time(Duration::ZERO..Duration::from_millis(300)));
        plan.push(Step::op(at, Op::OldCopy { commits, down }));
        for _ in 0..rng.below(5) {
            let soon = down + rng.time(Duration::ZERO..Duration::from_millis(600));
            plan.push(Step::op((at + soon).min(RUN - Duration::from_millis(60)), commit(&mut rng, 0, false)));
        }
        // The operator's way out; else it is taken when the faults are over.
        if rng.one_in(4) {
            plan.push(Step::op(rng.time(at..RUN - Duration::from_millis(60)), Op::NewEpoch { server: 0 }));
        }
    }
    plan.push(Step::op(RUN - Duration::from_millis(50), Op::Nurse));
    true
}

pub(super) fn commit(rng: &mut Rng, server: usize, poisoned: bool) -> Op {
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
