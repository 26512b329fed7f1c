//! What happens in trees alone: to their relays.

use std::time::Duration;

use spanwire_testkit::sim::{Rng, Step, What};

use super::super::{Op, commit};
use super::RUN;

/// In half of the worlds a relay dies long after all else, and there is something new at once.
pub(super) fn kill(seed: u64, relays: usize, plan: &mut Vec<Step<Op>>) {
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

/// In half of the worlds in which an old copy of the store comes back a relay loses its cache soon after: what it hears of
/// then is of both histories.
pub(super) fn lose_caches(seed: u64, relays: usize, plan: &mut Vec<Step<Op>>) {
    // Apart from all else, as rollouts are.
    let mut rng = Rng::new(seed ^ 0x10_5e5c_ac4e);
    if rng.one_in(2) {
        return;
    }
    let came = |step: &Step<Op>| match &step.what {
        What::Op(Op::OldCopy { down, .. }) => Some(step.at + *down),
        _ => None,
    };
    for at in plan.iter().filter_map(came).collect::<Vec<_>>() {
        let at = at + rng.time(Duration::ZERO..Duration::from_secs(1));
        let op = Op::PutBack { node: 1 + rng.below(relays), starts: 0, cache: false };
        plan.push(Step::op(at.min(RUN - Duration::from_millis(60)), op));
    }
}
