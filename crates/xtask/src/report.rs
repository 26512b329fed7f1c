//! What the steps of a run said, and how many tests ran in all.
//!
//! Owns: the counting and the closing line. Never: a test of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Steps that failed, and the sum of all test binaries.
#[derive(Debug)]
pub(crate) struct Report {
    /// When the last step ended.
    since: Instant,
    failed_steps: Vec<(String, String)>,
    total: Counts,
    /// Models that passed, and were not explored to their end.
    cut_short: u64,
}

/// What a model prints that had no time for all of its interleavings.
const CUT_SHORT: &str = "cut short: ";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Default for Report {
    fn default() -> Self {
        let (failed_steps, total) = (Vec::new(), Counts::default());
        Report { since: Instant::now(), failed_steps, total, cut_short: 0 }
    }
}

impl Report {
    /// Notes how a step ended, which began when the one before had.
    pub(crate) fn step(&mut self, name: &str, result: Result<(), String>) {
        let took = self.lap().as_secs();
        match result {
            Ok(()) => eprintln!("-- {name}: ok, {took} s"),
            Err(text) => {
                eprintln!("-- {name}: FAILED, {took} s: {text}");
                self.failed_steps.push((name.to_owned(), text));
            }
        }
    }

    /// Since the last step ended; the next begins now.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.since, now))
    }

    /// Runs tests, shows what they print, and adds their counts.
    pub(crate) fn count(&mut self, command: &mut Command) -> Result<(), String> {
        self.count_to(command, &mut std::io::stdout())
    }

    /// As [`count`](Self::count); what the tests print goes to `own`.
    pub(crate) fn count_to(&mut self, command: &mut Command, own: &mut dyn Write) -> Result<(), String> {
        let shown = crate::shown(command);
        eprintln!("$ {shown}");
        let started = command.stdout(Stdio::piped()).spawn();
        let mut child = started.map_err(|e| format!("failed to start {shown}: {e}"))?;
        let before = self.total;
        if let Some(out) = child.stdout.take() {
            // Bytes, not lines of text: a test may print anything.
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let _ = own.write_all(&line).and_then(|()| own.write_all(b"\n"));
                let line = String::from_utf8_lossy(&line);
                self.cut_short += u64::from(line.contains(CUT_SHORT));
                if let Some(counts) = parse(&line) {
                    self.total.add(counts);
                }
            }
        }
        let status = child.wait().map_err(|e| format!("failed to wait for {shown}: {e}"))?;
        match status.success() {
            true if self.total == before => Err(format!("{shown}: no test ran")),
            true => Ok(()),
            false => Err(format!("{shown}: {status}")),
        }
    }

    /// Adds what a report on its own counted.
    pub(crate) fn add(&mut self, other: Report) {
        self.failed_steps.extend(other.failed_steps);
        self.total.add(other.total);
        self.cut_short += other.cut_short;
    }

    /// Prints the failed steps and, last and alone on its line, the sum.
    pub(crate) fn finish(self) -> Result<(), String> {
        let Report { failed_steps, total, cut_short, .. } = self;
        for (name, text) in &failed_steps {
            println!("FAILED {name}: {text}");
        }
        if cut_short > 0 {
            println!("{cut_short} models had no time to be explored to their end; SECS gives them more");
        }
        println!("{}", total.line());
        let _ = std::io::stdout().flush();
        match (failed_steps.len(), total.failed) {
            (0, 0) => Ok(()),
            (steps, _) => Err(format!("{steps} steps failed")),
        }
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        let Counts { passed, failed, ignored } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
    }

    fn line(&self) -> String {
        let Counts { passed, failed, ignored } = self;
        match ignored {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {ignored} skipped"),
        }
    }
}

/// The counts of `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split("; ") {
        match part.split_once(' ') {
            Some((n, "passed")) => counts.passed = n.parse().ok()?,
            Some((n, "failed")) => counts.failed = n.parse().ok()?,
            Some((n, "ignored")) => counts.ignored = n.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted_and_any_other_is_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.5s";
        assert_eq!(parse(line), Some(Counts { passed: 12, failed: 3, ignored: 1 }));
        assert_eq!(parse("test result_is_kept ... ok"), None);
        assert_eq!(parse("running 3 tests"), None);
    }

    #[test]
    fn the_closing_line_names_skipped_tests_only_if_there_are_some() {
        let mut total = Counts { passed: 1, failed: 0, ignored: 0 };
        assert_eq!(total.line(), "1 passed, 0 failed");
        total.add(Counts { passed: 2, failed: 1, ignored: 4 });
        assert_eq!(total.line(), "3 passed, 1 failed, 4 skipped");
    }

    #[test]
    fn a_failed_step_fails_the_run_though_every_test_passed() {
        let mut report = Report { total: Counts { passed: 5, ..Counts::default() }, ..Report::default() };
        report.step("clippy", Err("no".to_owned()));
        assert!(report.finish().is_err());
    }

    #[cfg(unix)]
    #[test]
    fn tests_that_end_without_a_result_are_a_failure() {
        let mut report = Report::default();
        let echo = |text: &str| {
            let mut command = Command::new("echo");
            command.arg(text);
            command
        };
        // Not to stdout: this very run is counted by what is there.
        let mut own = Vec::new();
        assert!(report.count_to(&mut echo("hello"), &mut own).is_err());
        let line = "test result: ok. 2 passed; 0 failed; 0 ignored";
        assert!(report.count_to(&mut echo(line), &mut own).is_ok());
        assert!(report.count_to(&mut Command::new("false"), &mut own).is_err());
        assert_eq!(own, format!("hello\n{line}\n").into_bytes());
        assert_eq!(report.total, Counts { passed: 2, failed: 0, ignored: 0 });
        let cut = format!("test a ... {CUT_SHORT}a after 9 interleavings\n{line}");
        assert!(report.count_to(&mut echo(&cut), &mut own).is_ok());
        assert_eq!((report.cut_short, report.total.passed), (1, 4));
    }
}
