//! Bugs on purpose, one at a time: the simulated world has to find each of them.
//!
//! `cargo xtask faults` runs this; it needs the feature `faults`. For each bug it looks for the first seed that
//! fails, several times from different places, and prints how many seeds that took. `FAULT=NAME,NAME` picks some.

#![cfg(feature = "faults")]

mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use spanwire_config::faults::{ALL, plant};
use spanwire_testkit::sim::Sim;
use world::{setup, tree};

/// Seeds that a bug may take.
const MOST: u64 = 10_000;
/// Places from which it is looked for.
const TRIES: u64 = 5;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many seeds it took from each place (`None`: not found), and as what it showed itself first.
fn hunt(name: &'static str, tries: u64) -> (Vec<Option<u64>>, String) {
    plant(name);
    let of_relay = |(known, what): &&(&str, &str)| *known == name && what.starts_with("relay:");
    let relays = ALL.iter().any(|fault| of_relay(&fault));
    let (plain, tree) = (Sim::new(setup), Sim::new(tree::setup));
    let run = |seed| if relays { tree.run(seed) } else { plain.run(seed) };
    let mut kind = String::new();
    let most = number("FAULT_SEEDS").unwrap_or(MOST);
    let took = (0..tries).map(|place| {
        let from = place * 1_000_000;
        (from..from + most).find_map(|seed| {
            let failure = run(seed).failure?;
            if kind.is_empty() {
                failure.kind().clone_into(&mut kind);
            }
            Some(seed - from + 1)
        })
    });
    let took = took.collect();
    plant("");
    (took, kind)
}

#[test]
fn every_planted_fault_is_found() {
    // The panics of a bug are its findings; the report is enough.
    std::panic::set_hook(Box::new(|_| {}));
    let tries = number("FAULT_TRIES").unwrap_or(TRIES);
    let names: Vec<&str> = match std::env::var("FAULT") {
        Err(_) => ALL.iter().map(|(name, _)| *name).collect(),
        Ok(only) => only
            .split(',')
            .map(|name| match ALL.iter().find(|(known, _)| *known == name) {
                Some((known, _)) => *known,
                None => panic!("no planted fault is called {name:?}"),
            })
            .collect(),
    };
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = hunt(name, tries);
                    eprintln!("{name}: {result:?}");
                    if let Ok(mut found) = found.lock() {
                        found.insert(*name, result);
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let found = found.into_inner().expect("no worker panics while it holds this");
    println!("{:<28} {:>7} {:>7}  found as", "fault", "median", "worst");
    let (mut missing, mut medians) = (Vec::new(), Vec::new());
    for (name, (mut took, kind)) in found {
        took.sort_unstable_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        let text = |seeds: Option<u64>| seeds.map_or("-".to_owned(), |n| n.to_string());
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{name:<28} {:>7} {:>7}  {kind}", text(median), text(worst));
        match worst {
            Some(_) => medians.extend(median),
            None => missing.push(name),
        }
    }
    medians.sort_unstable();
    println!("{} found; median of medians {:?}", medians.len(), medians.get(medians.len() / 2));
    assert!(missing.is_empty(), "not found within {MOST} seeds: {missing:?}");
}

#[test]
fn every_listed_fault_is_planted_somewhere() {
    let sources = [
        include_str!("../src/authority/commits.rs"),
        include_str!("../src/authority/epochs.rs"),
        include_str!("../src/authority/judge.rs"),
        include_str!("../src/authority/repeats.rs"),
        include_str!("../src/authority/rollout.rs"),
        include_str!("../src/authority.rs"),
        include_str!("../src/sender.rs"),
        include_str!("../src/sender/claims.rs"),
        include_str!("../src/sender/hear.rs"),
        include_str!("../src/sender/namespace.rs"),
        include_str!("../src/sender/nodes.rs"),
        include_str!("../src/sender/relay.rs"),
        include_str!("../src/sender/talk.rs"),
        include_str!("../src/sender/target.rs"),
        include_str!("../src/sender/transfer.rs"),
        include_str!("../src/sender/turns.rs"),
        include_str!("../src/relay.rs"),
        include_str!("../src/replica.rs"),
        include_str!("../src/replica/handle.rs"),
        include_str!("../src/replica/heads.rs"),
        include_str!("../src/replica/namespace.rs"),
        include_str!("../src/replica/relay.rs"),
        include_str!("../src/replica/session.rs"),
        include_str!("../src/replica/talk.rs"),
        include_str!("../src/replica/transfer.rs"),
        include_str!("../src/replica/trust.rs"),
        include_str!("../src/replica/words.rs"),
        include_str!("../src/wait.rs"),
        include_str!("world/agent.rs"),
    ];
    for (name, _) in ALL {
        let quoted = format!("\"{name}\"");
        assert!(sources.iter().any(|source| source.contains(&quoted)), "{name} is planted nowhere");
    }
}
