//! Real processes of config-sync under kills, stops and cuts: an authority, two relays, thirty agents, each with its
//! own folders on a real disk, joined by connections that the test can break. Commits go on all the while, and rollouts to
//! a share of the agents or to those with a label, which are promoted or aborted.
//!
//! The run is made of rounds. In each, processes are killed (`kill -9`) and started again, stopped and continued, links
//! cut or silenced, as a seed says; then everything is there again, and with no further step every node must come to
//! hold the newest revision. From outside are checked: what a node held was committed, with that digest; no node went
//! back, within a life or over a restart; no hook ran for a lower revision after a higher one, and each found whole
//! commits; no commit was lost or made twice; nobody held a revision that was never meant for it. The times from heal to equal are printed.
//!
//! `cargo xtask chaos [--seconds N] [--seed S] [--agents N]` runs it; the seed decides what is done when, not what the
//! machine makes of it.
#![cfg(target_os = "linux")]

mod cluster;
mod history;
mod link;
mod process;
mod rollouts;
mod writers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::{Cluster, Res};
use spanwire_testkit::sim::Rng;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Whole seconds would give neighbours in time the same run.
fn any_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64) % 1_000_000
}

fn play(cluster: &mut Cluster, rng: &mut Rng, seconds: u64) -> Res<()> {
    cluster.begin()?;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let lasts = Duration::from_secs(2 + rng.below(6) as u64);
        cluster.hurt(rng, lasts)?;
        cluster.heal()?;
        cluster.converge()?;
    }
    cluster.promote_the_last()?;
    cluster.look_at_everything()
}

#[test]
fn promises_04_05_13_everything_heals_by_itself_whatever_is_killed_stopped_or_cut() {
    let seed = number("CHAOS_SEED").unwrap_or_else(any_seed);
    let seconds = number("CHAOS_SECONDS").unwrap_or(60);
    let agents = number("CHAOS_AGENTS").unwrap_or(30) as usize;
    println!("seed {seed}, {seconds} s, {agents} agents");
    let temp = tempfile::tempdir().expect("a folder");
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::new(temp.path(), agents, &mut rng).expect("the machine lets it start");
    let result = play(&mut cluster, &mut rng, seconds);
    let words = cluster.summary();
    if let Err(why) = result {
        panic!("seed {seed}: {why}\n{words}\n{}", cluster.last_words());
    }
    println!("{words}");
    assert!(cluster.was_hurt(seconds), "too little was done to it: {words}");
}
