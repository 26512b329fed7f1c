//! Tables and CSV: medians with the worst and the best round, and how ours stands to peers, limits, targets.
//!
//! Owns: the arithmetic of a comparison. Never: leaves a failed or missing round out in silence.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Result;
use crate::cell::Metric;
use crate::contestant::{Entry, Standing};
use crate::machine::{self, Spent};
use crate::rounds::{Outcome, Row};
use crate::side::Numbers;
use crate::target::{self, Against, Verdict};

/// The middle and both ends of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median; of an even number the mean of the middle two.
    pub median: f64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
}

impl Summary {
    /// Of some rounds; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Summary { median: low.midpoint(high), min, max })
    }

    fn of_row(row: &Row, metric: &Metric) -> Option<Self> {
        Summary::of(row.samples.iter().flatten().filter_map(|s| s.get(metric.name)).collect())
    }

    /// Of one contestant's rounds.
    pub fn of_name(outcome: &Outcome, name: &str, metric: &Metric) -> Option<Self> {
        Summary::of_row(outcome.rows.iter().find(|row| row.name == name)?, metric)
    }
}

/// What the numbers were measured on, and with which versions; Markdown.
pub fn preamble(contestants: &[&dyn Entry]) -> String {
    let versions: Vec<String> =
        contestants.iter().map(|c| format!("{} {}", c.name(), c.version()).trim_end().to_owned()).collect();
    let load = machine::load().map_or("unknown".to_owned(), |l| format!("{l:.2}"));
    format!(
        "{} CPUs, {}, {}; load before: {load}\n{}\n",
        machine::cpus(),
        machine::processor(),
        machine::kernel(),
        versions.join(", ")
    )
}

/// A cell as Markdown tables: the contestants, and the targets.
pub fn table(outcome: &Outcome, contestants: &[&dyn Entry]) -> String {
    let metrics = outcome.cell.shape.metrics();
    let mut rows = vec![vec![outcome.cell.to_string()]];
    rows[0].extend(metrics.iter().map(|m| m.heading.to_owned()));
    for row in &outcome.rows {
        let cells = metrics.iter().map(|metric| match Summary::of_row(row, metric) {
            Some(Summary { median, min, max }) => {
                let d = metric.digits_of(median);
                format!("{median:.d$} ({min:.d$}–{max:.d$})")
            }
            None => "–".to_owned(),
        });
        let lossy = contestants.iter().any(|c| c.name() == row.name && c.is_lossy());
        let mark = if lossy && outcome.cell.shape.is_published() { " (lossy)" } else { "" };
        rows.push(std::iter::once(format!("{}{mark}", row.name)).chain(cells).collect());
    }
    for (heading, standing) in
        [("spanwire / best peer", Standing::Peer), ("spanwire / limit", Standing::Limit)]
    {
        let mut line = vec![heading.to_owned()];
        line.extend(metrics.iter().map(|metric| {
            let ours = Summary::of_name(outcome, "spanwire", metric);
            match (ours, target::best(outcome, metric, contestants, standing)) {
                (Some(ours), Some((best, who))) if best > 0.0 => {
                    format!("{:.2} × {who}", ours.median / best)
                }
                _ => "–".to_owned(),
            }
        }));
        if line[1..].iter().any(|text| text != "–") {
            rows.push(line);
        }
    }
    let mut text = align(&rows);
    let verdicts = target::judge(outcome, contestants);
    if !verdicts.is_empty() {
        text.push('\n');
        text.push_str(&verdict_table(&[(outcome.cell.to_string(), verdicts)]));
    }
    text.push_str(&noise(&outcome.spent, outcome.discarded));
    for row in &outcome.rows {
        if let Some(first) = row.failures.first() {
            let (failed, of) = (row.failures.len(), row.samples.len() + outcome.discarded);
            let retired = if row.retired { ", then not tried again" } else { "" };
            let _ = writeln!(text, "FAILED {} in {failed} of {of} rounds{retired}: {first}", row.name);
        }
    }
    text
}

/// Targets of several cells, and how they stand, as a Markdown table.
pub fn verdict_table(cells: &[(String, Vec<Verdict>)]) -> String {
    let heading = ["cell", "whose", "what", "target", "measured", "verdict"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (cell, verdicts) in cells {
        for verdict in verdicts {
            let target = verdict.target;
            let measured = match (verdict.have, target.against) {
                (None, _) => "–".to_owned(),
                (Some(have), Against::Nothing) => format!("{have:.2}"),
                (Some(have), _) => format!("{have:.2} × {}", verdict.rival),
            };
            rows.push(vec![
                cell.clone(),
                target.who.to_owned(),
                target.metric.heading.to_owned(),
                target.to_string(),
                measured,
                verdict.text(),
            ]);
        }
    }
    align(&rows)
}

/// A line on what disturbed the rounds that count.
pub(crate) fn noise(spent: &[Spent], discarded: usize) -> String {
    let worst = |share: fn(&Spent) -> f64| spent.iter().map(share).fold(0.0, f64::max) * 100.0;
    let noisy = spent.iter().filter(|s| s.is_noisy()).count();
    let mut text = format!(
        "at worst others took {:.0} % of the machine, its host {:.0} %",
        worst(|s| s.foreign),
        worst(|s| s.stolen)
    );
    if discarded > 0 {
        let _ = write!(text, "; {discarded} noisy rounds run again");
    }
    if noisy > 0 {
        let _ = write!(text, "; {noisy} of {} rounds NOISY, not to be quoted", spent.len());
    }
    text + "\n"
}

/// Columns of equal width, the first row above a rule.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if i == 0 {
            for width in &widths {
                let _ = write!(text, "|{:-<1$}", "", width + 2);
            }
            text.push_str("|\n");
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
    pub fn create(dir: &Path, contestants: &[&dyn Entry]) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|why| format!("cannot make {}: {why}", dir.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let path = dir.join(format!("{now}.csv"));
        let mut file = File::create(&path).map_err(|why| format!("cannot make {}: {why}", path.display()))?;
        for line in preamble(contestants).lines() {
            writeln!(file, "# {line}")?;
        }
        writeln!(file, "shape,transport,size,contestant,round,metric,value,foreign,stolen")?;
        Ok(Csv { path, file })
    }

    /// Adds a remark.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.file, "# {}", text.replace('\n', " "))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a cell.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, outcome: &Outcome) -> io::Result<()> {
        let Outcome { cell, rows, spent, discarded: _ } = outcome;
        for row in rows {
            for (round, (sample, spent)) in row.samples.iter().zip(spent).enumerate() {
                for (metric, value) in sample.iter().flat_map(Numbers::iter) {
                    writeln!(
                        self.file,
                        "{},{},{},{},{},{metric},{value},{:.3},{:.3}",
                        cell.shape,
                        cell.transport,
                        cell.size,
                        row.name,
                        round + 1,
                        spent.foreign,
                        spent.stolen
                    )?;
                }
            }
            for why in &row.failures {
                writeln!(self.file, "# FAILED {cell} {}: {}", row.name, why.replace('\n', " "))?;
            }
        }
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_of_even_numbers_the_middle_of_the_middle() {
        let of = |v: &[f64]| Summary::of(v.to_vec()).unwrap();
        assert_eq!(of(&[3.0, 1.0, 2.0]), Summary { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Summary::of(vec![]), None);
    }
}
