//! One authority and some replicas, each a real protocol over a scripted `Cx`, on links that lose, delay and
//! cut. One thread, one seed, no clock but the script's. After every event each node is compared with an
//! oracle that records all committed states; a failure names its seed.

mod world;

use std::time::Duration;

use world::{Faults, World};

/// Runs one seed of each mixture of faults; returns what happened.
fn run(seed: u64, faults: Faults, steps: usize) -> world::Counts {
    let mut world = World::new(seed, faults);
    for _ in 0..steps {
        world.step();
        world.check();
    }
    // Invariant 23: once commits stop and some path stays up, every replica ends at the head within three
    // beacons, one reconnect and the transfer.
    world.heal();
    world.settle(Duration::from_secs(6));
    world.assert_converged();
    world.counts()
}

fn run_all(seeds: std::ops::Range<u64>, faults: Faults, steps: usize) -> world::Counts {
    let mut sum = world::Counts::default();
    for seed in seeds {
        sum += run(seed, faults, steps);
    }
    sum
}

#[test]
fn invariants_01_02_03_04_05_08_12_14_23_hold_through_cuts_and_restarts() {
    let sum = run_all(0..700, Faults { restarts: true, ..Faults::default() }, 160);
    // The mixture reaches what it is meant to test.
    assert!(sum.commits > 5_000 && sum.published > 5_000, "{sum:?}");
    assert!(sum.cuts > 1_000 && sum.restarts > 200 && sum.epochs > 100 && sum.refusals > 200, "{sum:?}");
}

#[test]
fn invariants_01_05_hold_when_payloads_are_corrupted() {
    let sum = run_all(10_000..10_300, Faults { tamper: true, ..Faults::default() }, 160);
    assert!(sum.tampered > 400 && sum.digest_failures > 200, "{sum:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let all = Faults { restarts: true, tamper: true };
    let trace = |seed| {
        let mut world = World::new(seed, all);
        (0..200).for_each(|_| world.step());
        world.trace()
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
