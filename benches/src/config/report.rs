//! Tables, CSV and verdicts of config-broadcast beside etcd.
//!
//! Owns: their text. Never: leaves a failed or missing round out in silence.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::rounds::Outcome;
use super::system::System;
use crate::cell::Metric;
use crate::report::{Summary, align, noise, verdict_table};
use crate::rounds::Row;
use crate::side::Numbers;
use crate::target::{Against, Verdict};
use crate::{Result, machine};

/// What the numbers were measured on, and with which versions.
pub fn preamble(systems: &[&dyn System]) -> String {
    let versions: Vec<String> = systems.iter().map(|s| format!("{} {}", s.name(), s.version())).collect();
    let load = machine::load().map_or("unknown".to_owned(), |load| format!("{load:.2}"));
    let (cpus, processor, kernel) = (machine::cpus(), machine::processor(), machine::kernel());
    format!("{cpus} CPUs, {processor}, {kernel}; load before: {load}\n{}\n", versions.join(", "))
}

fn summary(row: &Row, metric: &Metric) -> Option<Summary> {
    Summary::of(row.samples.iter().flatten().filter_map(|sample| sample.get(metric.name)).collect())
}

fn of_name(outcome: &Outcome, name: &str, metric: &Metric) -> Option<Summary> {
    summary(outcome.rows.iter().find(|row| row.name == name)?, metric)
}

/// How a case stands to its targets.
pub fn judge(outcome: &Outcome) -> Vec<Verdict> {
    let verdict = |target: crate::target::Target| {
        let median = |name| of_name(outcome, name, target.metric).map(|summary| summary.median);
        let (rival, name) = match target.against {
            Against::One(name) => (median(name), name),
            _ => (Some(1.0), ""),
        };
        let have =
            median(target.who).zip(rival.filter(|rival| *rival > 0.0)).map(|(ours, rival)| ours / rival);
        Verdict { target, have, rival: name.to_owned() }
    };
    let ran = |name| outcome.rows.iter().any(|row| row.name == name);
    outcome.case.targets().into_iter().filter(|target| ran(target.who)).map(verdict).collect()
}

/// A case as Markdown tables: medians (and both ends) of the systems, their ratio, the targets.
pub fn table(outcome: &Outcome) -> String {
    let metrics = outcome.case.metrics();
    let mut rows = vec![vec![outcome.case.to_string()]];
    rows[0].extend(metrics.iter().map(|metric| metric.heading.to_owned()));
    for row in &outcome.rows {
        let cell = |metric| match summary(row, metric) {
            Some(Summary { median, min, max }) => {
                let d = metric.digits_of(median);
                format!("{median:.d$} ({min:.d$}–{max:.d$})")
            }
            None => "–".to_owned(),
        };
        rows.push(std::iter::once(row.name.clone()).chain(metrics.iter().map(cell)).collect());
    }
    let ratio = |metric| match (of_name(outcome, "spanwire", metric), of_name(outcome, "etcd", metric)) {
        (Some(ours), Some(etcd)) if etcd.median > 0.0 => format!("{:.2}", ours.median / etcd.median),
        _ => "–".to_owned(),
    };
    rows.push(std::iter::once("spanwire / etcd".to_owned()).chain(metrics.iter().map(ratio)).collect());
    let mut text = align(&rows);
    let verdicts = judge(outcome);
    if !verdicts.is_empty() {
        text.push('\n');
        text.push_str(&verdict_table(&[(outcome.case.to_string(), verdicts)]));
    }
    text.push_str(&noise(&outcome.spent, 0));
    for row in &outcome.rows {
        if let Some(first) = row.failures.first() {
            let (failed, of) = (row.failures.len(), row.samples.len());
            let _ = writeln!(text, "FAILED {} in {failed} of {of} rounds: {first}", row.name);
        }
    }
    text
}

/// A file with a line for each number of each round.
#[derive(Debug)]
pub struct Csv {
    path: PathBuf,
    file: File,
}

impl Csv {
    /// A new file in `dir`, named after the time.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path, systems: &[&dyn System]) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|why| format!("cannot make {}: {why}", dir.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let path = dir.join(format!("{now}.csv"));
        let mut file = File::create(&path).map_err(|why| format!("cannot make {}: {why}", path.display()))?;
        for line in preamble(systems).lines() {
            writeln!(file, "# {line}")?;
        }
        writeln!(file, "case,system,round,metric,value,foreign,stolen")?;
        Ok(Csv { path, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a case.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, outcome: &Outcome) -> io::Result<()> {
        let Outcome { case, rows, spent } = outcome;
        for row in rows {
            for (round, (sample, spent)) in row.samples.iter().zip(spent).enumerate() {
                for (metric, value) in sample.iter().flat_map(Numbers::iter) {
                    let (round, name) = (round + 1, &row.name);
                    let (foreign, stolen) = (spent.foreign, spent.stolen);
                    writeln!(self.file, "{case},{name},{round},{metric},{value},{foreign:.3},{stolen:.3}")?;
                }
            }
            for why in &row.failures {
                writeln!(self.file, "# FAILED {case} {}: {}", row.name, why.replace('\n', " "))?;
            }
        }
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Case;

    #[test]
    fn a_ratio_is_of_medians_and_a_failed_round_is_told() {
        let sample = |p50: f64| Numbers::parse(&format!("p50={p50} p99=1 cpu=1")).ok();
        let row =
            |name: &str, samples, failures| Row { name: name.into(), samples, failures, retired: false };
        let outcome = Outcome {
            case: Case::Spread { nodes: 100, rate: 100 },
            rows: vec![
                row("spanwire", vec![sample(1.0), sample(9.0), sample(2.0)], vec![]),
                row("etcd", vec![sample(4.0), None, sample(4.0)], vec!["died".into()]),
            ],
            spent: Vec::new(),
        };
        let verdicts = judge(&outcome);
        assert_eq!(verdicts[0].have, Some(0.5));
        assert!(table(&outcome).contains("FAILED etcd in 1 of 3 rounds: died"), "{}", table(&outcome));
    }
}
