//! What spanwire is meant to reach in a cell, and whether it did.
//!
//! A target compares medians of one interleaved run: with the best peer, with a limit, with spanwire's blocking
//! form, or with a number. Owns: the targets. Never: rounds in spanwire's favour.

use std::fmt;

use crate::cell::{Cell, Metric, Shape, Transport};
use crate::contestant::{Entry, Standing};
use crate::report::Summary;
use crate::rounds::Outcome;

/// What is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Against {
    /// The peer that is best in the metric. A lossy one is none where messages are published.
    BestPeer,
    /// This contestant.
    One(&'static str),
    /// Nobody: the factor is the number itself.
    Nothing,
}

/// A ratio, or a number, to reach or to stay below.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Whose.
    pub who: &'static str,
    /// In what.
    pub metric: &'static Metric,
    /// Compared with what.
    pub against: Against,
    /// At least, where more is better, or at most.
    pub factor: f64,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.metric.more_is_better { '≥' } else { '≤' };
        let factor = self.factor;
        match self.against {
            Against::Nothing => write!(f, "{sign} {factor}"),
            Against::BestPeer => write!(f, "{sign} {factor} × best peer"),
            Against::One(name) => write!(f, "{sign} {factor} × {name}"),
        }
    }
}

/// The targets of a cell; none where it is only looked at.
pub fn of(cell: &Cell) -> Vec<Target> {
    use Against::{BestPeer, Nothing, One};
    let mut targets = Vec::new();
    let mut add = |who, metric, against, factor| {
        let metric = cell.shape.metric(metric);
        targets.extend(metric.map(|metric| Target { who, metric, against, factor }));
    };
    let (ours, inproc) = ("spanwire", cell.transport == Transport::Inproc);
    match (cell.shape, cell.size) {
        (Shape::Stream, size) if inproc => {
            let (peer, limit) = if size <= 1 << 10 { (1.5, Some(1.0)) } else { (1.0, None) };
            add(ours, "rate", BestPeer, peer);
            if let Some(limit) = limit {
                add(ours, "rate", One("channel"), limit);
            }
        }
        (Shape::Stream, size) => {
            let (peer, limit) = match size {
                0..=64 => (3.5, None),
                65..=1024 => (2.0, Some(0.8)),
                _ => (1.1, Some(0.9)),
            };
            add(ours, "rate", BestPeer, peer);
            if let Some(limit) = limit {
                add(ours, "rate", One("framed"), limit);
            }
            if size == 64 && cell.transport == Transport::Tcp {
                add(ours, "cpu", BestPeer, 0.3);
            }
        }
        (Shape::RoundTrip, size) if !inproc => {
            add(ours, "p50", One("raw"), if size <= 1 << 10 { 1.12 } else { 1.3 });
            add(ours, "p50", BestPeer, 1.0);
            if size <= 1 << 10 {
                add(ours, "p99", BestPeer, 1.0);
                add(ours, "p999", BestPeer, 1.0);
            }
        }
        (Shape::FanOut(8 | 64), _) => add(ours, "rate", BestPeer, 2.5),
        // libzmq has no other form than one by one.
        (Shape::Pipelined(256), _) => add("spanwire-batch", "rate", One("libzmq"), 5.0),
        (Shape::FanIn(1000), _) => {
            add(ours, "rss", Nothing, 2.4);
            add(ours, "connect", BestPeer, 1.0);
            add(ours, "rate", BestPeer, 2.0);
        }
        (Shape::Idle(1), _) => add(ours, "wakes", Nothing, 0.0),
        _ => {}
    }
    match cell.shape {
        Shape::Stream => add("spanwire-async", "rate", One(ours), 0.8),
        Shape::RoundTrip => add("spanwire-async", "p50", One(ours), 1.25),
        _ => {}
    }
    targets
}

/// A target, and how it went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The target.
    pub target: Target,
    /// The ratio, or the number; none when one of the two is missing.
    pub have: Option<f64>,
    /// Who the best peer was.
    pub rival: String,
}

impl Verdict {
    /// Whether the target is reached.
    pub fn is_met(&self) -> Option<bool> {
        let Target { metric, factor, .. } = self.target;
        self.have.map(|have| if metric.more_is_better { have >= factor } else { have <= factor })
    }

    /// In words: `met`, `short by 12 %`, `short: 12 % too much`, `not measured`.
    pub fn text(&self) -> String {
        match (self.have, self.is_met()) {
            (_, Some(true)) => "met".to_owned(),
            (Some(have), Some(false)) => {
                let factor = self.target.factor;
                let (less, more) = if have < factor { (have, factor) } else { (factor, have) };
                if factor == 0.0 {
                    format!("short: {have:.2}, not 0")
                } else if self.target.metric.more_is_better {
                    format!("short by {:.0} %", (1.0 - less / more) * 100.0)
                } else {
                    format!("short: {:.0} % too much", (more / less - 1.0) * 100.0)
                }
            }
            _ => "not measured".to_owned(),
        }
    }
}

/// How `outcome` stands to the targets of its cell.
pub fn judge(outcome: &Outcome, contestants: &[&dyn Entry]) -> Vec<Verdict> {
    let ran = |name: &str| outcome.rows.iter().any(|row| row.name == name);
    let judged = of(&outcome.cell).into_iter().filter(|target| ran(target.who));
    judged
        .map(|target| {
            let value = |name: &str| {
                Summary::of_name(outcome, name, target.metric).map(|s| (s.median, name.to_owned()))
            };
            let rival = match target.against {
                Against::Nothing => Some((1.0, String::new())),
                Against::One(name) => value(name),
                Against::BestPeer => best(outcome, target.metric, contestants, Standing::Peer),
            };
            let (rival, name) = rival.map_or((None, String::new()), |(value, name)| (Some(value), name));
            let have = value(target.who).and_then(|(ours, _)| Some(ours / rival.filter(|r| *r > 0.0)?));
            Verdict { target, have, rival: name }
        })
        .collect()
}

/// The best median of those of a standing, and whose it is.
pub fn best(
    outcome: &Outcome,
    metric: &Metric,
    contestants: &[&dyn Entry],
    standing: Standing,
) -> Option<(f64, String)> {
    let counts =
        |c: &&&dyn Entry| c.standing() == standing && !(c.is_lossy() && outcome.cell.shape.is_published());
    let medians = contestants
        .iter()
        .filter(counts)
        .filter_map(|c| Some((Summary::of_name(outcome, c.name(), metric)?.median, c.name().to_owned())));
    medians.max_by(|a, b| {
        let order = a.0.total_cmp(&b.0);
        if metric.more_is_better { order } else { order.reverse() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(metric: &str, factor: f64, have: f64) -> Verdict {
        let metric = Shape::RoundTrip.metric(metric).or(Shape::Stream.metric(metric)).unwrap();
        let target = Target { who: "spanwire", metric, against: Against::BestPeer, factor };
        Verdict { target, have: Some(have), rival: String::new() }
    }

    #[test]
    fn what_is_short_says_by_how_much_in_both_directions() {
        assert_eq!(verdict("rate", 3.5, 3.5).text(), "met");
        assert_eq!(verdict("rate", 4.0, 3.0).text(), "short by 25 %");
        assert_eq!(verdict("p50", 1.0, 0.9).text(), "met");
        assert_eq!(verdict("p50", 1.0, 1.2).text(), "short: 20 % too much");
    }

    #[test]
    fn the_cells_with_a_target_have_it_in_the_metric_that_they_measure() {
        let count = |words| {
            let cells = crate::cell::matrix().into_iter().filter(|c| c.is_meant(words));
            cells.map(|c| of(&c).len()).sum::<usize>()
        };
        // best peer, CPU, and the async form
        assert_eq!(count("stream tcp 64"), 3);
        assert_eq!(count("rtt ipc 64"), 5);
        assert_eq!(count("fanin-1000"), 3);
        assert_eq!(count("pipeline-256"), 1);
    }
}
