//! One thing to measure, its numbers, and what they should be.
//!
//! Owns: names, units, targets. Never: measures.

use std::fmt;
use std::time::Duration;

use crate::cell::Metric;
use crate::target::{Against, Target};

/// What is done to a server and its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Commits of one key at a steady rate, watched by so many nodes; on disk, with sync.
    Spread {
        /// Nodes.
        nodes: usize,
        /// Commits in each second.
        rate: u32,
    },
    /// The same at 100 commits a second, without and then with a tenth as many nodes that stopped: nothing is read for
    /// them, and their connections stay.
    Stopped(usize),
    /// So many nodes, connected and current, and nothing to say.
    Idle(usize),
    /// All connections of so many nodes are cut at once while nothing changes.
    Reconnect(usize),
    /// One key of 10,000 changes: for so many nodes that are here, then for the same after they were away.
    Change(usize),
    /// So many nodes that hold nothing start at once, with a state of 10 MiB.
    Cold(usize),
    /// So many writers commit one key at a time, as fast as they are answered.
    Commits {
        /// Writers, each with a connection of its own.
        writers: usize,
        /// The store is on a disk; otherwise in memory, where a sync costs nothing.
        sync: bool,
    },
}

/// Keys and bytes in each value that are there before a case begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Keys.
    pub keys: usize,
    /// Bytes in each value; at least 16.
    pub value: usize,
}

impl Case {
    /// What the server holds before it begins.
    pub fn content(&self) -> Content {
        match self {
            Case::Change(_) => Content { keys: 10_000, value: 64 },
            Case::Cold(_) => Content { keys: 10_240, value: 1024 },
            _ => Content { keys: 1000, value: 64 },
        }
    }

    /// Whether its store is on a disk.
    pub fn is_on_disk(&self) -> bool {
        !matches!(self, Case::Commits { sync: false, .. })
    }

    /// As much time as a sample may take that is not broken.
    pub fn patience(&self, measured: Duration) -> Duration {
        let more = if let Case::Cold(_) = self { 400 } else { 90 };
        measured * 4 + Duration::from_secs(more)
    }

    /// Whether all of `words` are said of it: `spread`, `spread-100 100/s`, `commits nosync`.
    pub fn is_meant(&self, words: &str) -> bool {
        let name = self.to_string();
        let known: Vec<&str> =
            name.split(' ').flat_map(|word| [word, word.split('-').next().unwrap_or(word)]).collect();
        words.split_whitespace().all(|word| known.contains(&word))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Spread { nodes, rate } => write!(f, "spread-{nodes} {rate}/s"),
            Case::Stopped(nodes) => write!(f, "stopped-{nodes}"),
            Case::Idle(nodes) => write!(f, "idle-{nodes}"),
            Case::Reconnect(nodes) => write!(f, "reconnect-{nodes}"),
            Case::Change(nodes) => write!(f, "change-{nodes}"),
            Case::Cold(nodes) => write!(f, "cold-{nodes}"),
            Case::Commits { writers, sync } => {
                write!(f, "commits-{writers} {}", if *sync { "sync" } else { "nosync" })
            }
        }
    }
}

impl std::str::FromStr for Case {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("no case {text:?}");
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (family, n) = name.split_once('-').ok_or_else(wrong)?;
        let n: usize = n.parse().ok().filter(|n| (1..=10_000).contains(n)).ok_or_else(wrong)?;
        match (family, rest) {
            ("spread", rate) => {
                let rate = rate.strip_suffix("/s").and_then(|rate| rate.parse().ok());
                let rate = rate.filter(|rate| (1..=1000).contains(rate)).ok_or_else(wrong)?;
                Ok(Case::Spread { nodes: n, rate })
            }
            ("stopped", "") => Ok(Case::Stopped(n)),
            ("idle", "") => Ok(Case::Idle(n)),
            ("reconnect", "") => Ok(Case::Reconnect(n)),
            ("change", "") => Ok(Case::Change(n)),
            ("cold", "") => Ok(Case::Cold(n)),
            ("commits", "sync" | "nosync") => Ok(Case::Commits { writers: n, sync: rest == "sync" }),
            _ => Err(wrong()),
        }
    }
}

/// The names of our two kinds of nodes.
const OURS: [&str; 2] = ["spanwire", "spanwire-node"];

const fn less(name: &'static str, heading: &'static str, digits: usize) -> Metric {
    Metric { name, heading, more_is_better: false, digits }
}

const SPREAD: &[Metric] = &[
    less("p50", "p50 ms", 2),
    less("p99", "p99 ms", 2),
    less("ack_p50", "ack p50 ms", 2),
    less("ack_p99", "ack p99 ms", 2),
    less("growth", "last / first quarter", 2),
    less("cpu", "server CPU µs / event", 1),
    less("nodes_cpu", "nodes' CPU µs / event", 1),
];
const STOPPED: &[Metric] = &[
    less("moved", "p99 with / without", 2),
    less("p99", "p99 ms, with", 2),
    less("p99_without", "p99 ms, without", 2),
    less("rss", "server KiB / stopped node", 0),
    less("back", "back after ms", 0),
];
const IDLE: &[Metric] = &[
    less("rss", "server KiB / node", 1),
    less("cpu", "server CPU ms/s", 2),
    less("nodes_rss", "nodes' KiB / node", 1),
    less("connect", "all current after ms", 0),
];
const RECONNECT: &[Metric] = &[
    less("bytes", "bytes / node", 0),
    less("ms", "all current after ms", 0),
    less("idle_bytes", "idle bytes/s / node", 0),
    less("cpu", "server CPU µs / node", 0),
];
const CHANGE: &[Metric] = &[
    less("bytes", "bytes / node, here", 0),
    less("away_bytes", "bytes / node, back", 0),
    less("idle_bytes", "idle bytes/s / node", 0),
];
const COLD: &[Metric] = &[
    less("s", "all current after s", 2),
    less("cpu", "server CPU ms / node", 2),
    less("nodes_cpu", "nodes' CPU ms / node", 1),
    less("rss", "server peak MiB", 0),
];
const COMMITS: &[Metric] = &[
    Metric { name: "rate", heading: "commits/s", more_is_better: true, digits: 0 },
    less("p50", "p50 ms", 2),
    less("p99", "p99 ms", 2),
    less("cpu", "server CPU µs / commit", 0),
];

impl Case {
    /// What a sample holds, the most telling first.
    pub fn metrics(&self) -> &'static [Metric] {
        match self {
            Case::Spread { .. } => SPREAD,
            Case::Stopped(_) => STOPPED,
            Case::Idle(_) => IDLE,
            Case::Reconnect(_) => RECONNECT,
            Case::Change(_) => CHANGE,
            Case::Cold(_) => COLD,
            Case::Commits { .. } => COMMITS,
        }
    }

    /// What is to be reached, by both kinds of our nodes.
    pub fn targets(&self) -> Vec<Target> {
        let (etcd, alone) = (Against::One("etcd"), Against::Nothing);
        let wanted: &[(&str, Against, f64)] = match self {
            Case::Spread { nodes: 100, rate: 100 } => {
                &[("p50", etcd, 0.65), ("p99", etcd, 0.9), ("cpu", etcd, 0.3)]
            }
            Case::Spread { nodes: 1000, rate: 10 } => {
                &[("p50", etcd, 0.35), ("p99", etcd, 0.35), ("cpu", etcd, 0.3)]
            }
            // A backlog that grows makes the last quarter many times slower than the first.
            Case::Spread { nodes: 1000, rate: 100 } => {
                &[("p50", etcd, 0.3), ("growth", alone, 2.0), ("cpu", etcd, 0.3)]
            }
            // One window, in KiB.
            Case::Stopped(_) => &[("moved", alone, 1.1), ("rss", alone, 256.0)],
            Case::Idle(_) => &[("rss", etcd, 0.15)],
            Case::Reconnect(_) => &[("bytes", alone, 1024.0)],
            // One key of 10,000 is less than a hundredth of what there is: 790,000 bytes with framing.
            Case::Change(_) => &[("bytes", alone, 1024.0), ("away_bytes", alone, 2048.0)],
            _ => &[],
        };
        let target = |who: &'static str, (name, against, factor): &(&str, Against, f64)| {
            let metric = self.metrics().iter().find(|metric| metric.name == *name)?;
            Some(Target { who, metric, against: *against, factor: *factor })
        };
        let both = wanted.iter().flat_map(|wanted| OURS.map(|who| target(who, wanted)));
        both.flatten().collect()
    }
}

/// All cases, those with a target first, so that a run that is out of time has missed the least.
pub fn all() -> Vec<Case> {
    let spread = |nodes, rate| Case::Spread { nodes, rate };
    let commits = |writers, sync| Case::Commits { writers, sync };
    vec![
        spread(100, 100),
        spread(1000, 10),
        spread(1000, 100),
        Case::Stopped(100),
        Case::Idle(1000),
        Case::Reconnect(1000),
        Case::Change(100),
        commits(1, true),
        commits(16, true),
        commits(1, false),
        commits(16, false),
        spread(1, 10),
        spread(1, 100),
        spread(100, 10),
        Case::Cold(1000),
    ]
}

/// Those that `--quick` has time for: each target, and the commits.
pub fn is_quick(case: &Case) -> bool {
    match case {
        Case::Spread { nodes, rate } => nodes * *rate as usize >= 10_000,
        Case::Commits { sync, .. } => *sync,
        Case::Cold(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_found_by_its_name_comes_once_and_has_its_targets_in_what_it_measures() {
        let cases = all();
        for case in &cases {
            assert_eq!(case.to_string().parse(), Ok(*case));
            assert_eq!(cases.iter().filter(|c| c.is_meant(&case.to_string())).count(), 1, "{case}");
        }
        assert_eq!(cases.iter().map(|case| case.targets().len()).sum::<usize>(), 2 * 15);
        assert_eq!(cases.iter().filter(|case| case.is_meant("commits nosync")).count(), 2);
    }
}
