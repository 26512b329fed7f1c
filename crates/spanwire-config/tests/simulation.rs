//! An authority, sometimes a second server, and some nodes, each a real protocol, in a simulated world that cuts,
//! delays, crashes and lies. After every event an oracle compares everything with all that was ever committed.
//!
//! A failure names its seed and the few things that it takes. `SIM_SEEDS=A..B` runs those seeds;
//! `cargo xtask sim N` runs many, optimised, on all cores.

#[path = "simulation/authority.rs"]
mod authority;
#[path = "simulation/pairs.rs"]
mod pairs;
mod world;

use std::time::{Duration, Instant};

use spanwire_testkit::sim::{Sim, seeds};
use world::oracle::Counts;
use world::setup;
use world::tree::TreeCounts;

/// A world makes and drops small things all the time: with this allocator a run takes a tenth less.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the test may take where nobody asked for certain seeds, once it has run enough of them to judge the mixture.
const TIME: Duration = Duration::from_secs(15);
const ENOUGH: u64 = 50;

/// What each core counted in its share of the seeds that were asked for; how many they were, and how long that took.
fn on_all_cores<C: Send>(
    enough: u64,
    run: impl Fn(u64, &mut C) + Sync,
    start: impl Fn() -> C + Sync,
) -> (Vec<C>, u64, Duration) {
    let range = seeds(0..100_000);
    let (began, asked) = (Instant::now(), std::env::var_os("SIM_SEEDS").is_some());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let work = |worker: u64| {
        let (mut counts, mut ran) = (start(), 0_u64);
        for seed in range.clone().filter(|seed| seed % workers == worker) {
            if !asked && ran * workers >= enough && began.elapsed() > TIME {
                break;
            }
            run(seed, &mut counts);
            ran += 1;
        }
        (counts, ran)
    };
    let (mut all, mut ran) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|w| scope.spawn(move || work(w))).collect();
        for worker in workers {
            match worker.join() {
                Ok((counts, n)) => {
                    all.push(counts);
                    ran += n;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    assert!(ran > 0, "no seed was run");
    (all, ran, began.elapsed())
}

#[test]
fn promises_03_04_05_13_invariants_01_to_25_hold_whatever_happens() {
    let sim = Sim::new(setup);
    let run = |seed: u64, sum: &mut Counts| {
        let (outcome, counts) = sim
            .run_with(seed, |model, _| model.oracles.iter().map(|oracle| oracle.counts).collect::<Vec<_>>());
        if let Some(failure) = outcome.failure {
            panic!("{}", sim.shorten(seed, failure));
        }
        counts.into_iter().for_each(|counts| *sum += counts);
    };
    let (counts, ran, took) = on_all_cores(ENOUGH, run, Counts::default);
    let mut sum = Counts::default();
    counts.into_iter().for_each(|counts| sum += counts);
    println!("{ran} seeds in {took:.1?}: {sum:?}");
    // The mixture reaches what it is meant to test; a few seeds that somebody asked for need not.
    if ran >= ENOUGH {
        assert!(sum.commits > 20 * ran && sum.published > 20 * ran && sum.slices > 50 * ran, "{sum:?}");
        for few in [sum.refusals, sum.starts, sum.links, sum.tampered, sum.digest_failures, sum.conflicts] {
            assert!(few > ran / 10, "{sum:?}");
        }
        assert!(sum.waits > ran && sum.adopted > 0, "{sum:?}");
        assert!(sum.stale > 0 && sum.fail_overs > ran / 10, "{sum:?}");
        assert!(sum.rollouts > ran / 4 && sum.canaries > ran / 4 && sum.stages > 0, "{sum:?}");
    }
}

#[test]
fn invariants_07_14_18_23_26_hold_with_relays_between() {
    let sim = Sim::new(world::tree::setup);
    let run = |seed: u64, sum: &mut TreeCounts| {
        let (outcome, counts) = sim.run_with(seed, |model, _| model.counts);
        if let Some(failure) = outcome.failure {
            panic!("{}", sim.shorten(seed, failure));
        }
        *sum += counts;
    };
    let (counts, ran, took) = on_all_cores(ENOUGH, run, TreeCounts::default);
    let mut sum = TreeCounts::default();
    counts.into_iter().for_each(|counts| sum += counts);
    println!("{ran} trees in {took:.1?}: {sum:?}");
    if ran >= ENOUGH {
        assert!(sum.forwarded > 100 * ran && sum.reports > 10 * ran && sum.behind > ran, "{sum:?}");
        assert!(sum.fail_overs > ran / 20, "{sum:?}");
        assert!(sum.loops > 0 && sum.deep > 0, "{sum:?}");
        assert!(sum.lost > ran / 10 && sum.conflicts > ran, "{sum:?}");
        assert!(sum.rollouts > ran / 4 && sum.canaries > ran / 8, "{sum:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let sim = Sim::new(setup);
    for seed in 0..5 {
        assert_eq!(sim.run(seed), sim.run(seed));
    }
    assert_ne!(sim.run(7).hash, sim.run(8).hash);
}
