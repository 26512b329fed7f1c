//! Turns: every round runs each contestant once, A B C A B C…, so that a noisy minute hits all alike.
//!
//! A sample is one contestant's run of one cell in fresh processes: this program, started again with the
//! hidden subcommand `side`. What the sender says it sent and the receiver says it saw must agree.
//! Owns: the processes, and ends each one of them. Never: measures inside itself.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select, unbounded};

use crate::Result;
use crate::cell::{Cell, Plan, Shape, Transport};
use crate::contestant::Entry;
use crate::machine::{Spent, Times};
use crate::side::{Numbers, Role};

/// All rounds of one contestant in one cell.
#[derive(Debug, Default)]
pub struct Row {
    /// The contestant's name.
    pub name: String,
    /// One for each round; none where it failed.
    pub samples: Vec<Option<Numbers>>,
    /// Why rounds failed, also such as were run again.
    pub failures: Vec<String>,
}

/// All rounds of one cell.
#[derive(Debug)]
pub struct Outcome {
    /// What was measured.
    pub cell: Cell,
    /// A row for each contestant, in their order.
    pub rows: Vec<Row>,
    /// For each round what others took of the machine meanwhile.
    pub spent: Vec<Spent>,
    /// Rounds that were run again for their noise, and do not count.
    pub discarded: usize,
}

/// How many rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// That count.
    pub count: usize,
    /// That may be run again because others took too much of the machine. The numbers are not looked at: a
    /// bad round in a quiet moment counts.
    pub spare: usize,
}

/// Runs a cell, and calls `tick` before each sample.
pub fn run(
    cell: Cell,
    contestants: &[&dyn Entry],
    rounds: Rounds,
    plan: &Plan,
    mut tick: impl FnMut(usize, &str),
) -> Outcome {
    let taking = contestants.iter().filter(|c| c.takes(&cell));
    let rows = taking.map(|c| Row { name: c.name().to_owned(), ..Row::default() }).collect();
    let mut outcome = Outcome { cell, rows, spent: Vec::new(), discarded: 0 };
    while outcome.spent.len() < rounds.count {
        let before = Times::now();
        let mut samples = Vec::new();
        for row in &mut outcome.rows {
            tick(outcome.spent.len(), &row.name);
            match sample(&row.name, &cell, plan) {
                Ok(numbers) => samples.push(Some(numbers)),
                Err(why) => {
                    row.failures.push(why.to_string());
                    samples.push(None);
                }
            }
        }
        let spent = Times::now().since(&before);
        if spent.is_noisy() && outcome.discarded < rounds.spare {
            outcome.discarded += 1;
            continue;
        }
        outcome.spent.push(spent);
        for (row, sample) in outcome.rows.iter_mut().zip(samples) {
            row.samples.push(sample);
        }
    }
    outcome
}

/// One run of one contestant.
///
/// # Errors
/// When a side fails, says nothing for too long, or the two disagree about what was sent.
pub fn sample(name: &str, cell: &Cell, plan: &Plan) -> Result<Numbers> {
    // Short, for a Unix socket's path has no room; removed with all that lies in it.
    let dir = tempfile::Builder::new().prefix("versus").tempdir()?;
    let url = ask_for(cell.transport, dir.path());
    if cell.transport == Transport::Inproc {
        let mut both = Side::start(name, Role::Both, &url, cell, plan)?;
        both.expect("done")?;
        both.tell()?;
        let numbers = Numbers::parse(&both.expect("result ")?)?;
        both.leave()?;
        return join(cell, &numbers, &numbers, numbers.get("cpu").unwrap_or(0.0));
    }
    let mut bound = Side::start(name, Role::Bound, &url, cell, plan)?;
    let url = bound.expect("at ")?;
    let mut dialed = Side::start(name, Role::Dialed, &url, cell, plan)?;
    both_done(&mut bound, &mut dialed)?;
    bound.tell()?;
    dialed.tell()?;
    let (at_bound, at_dialed) =
        (Numbers::parse(&bound.expect("result ")?)?, Numbers::parse(&dialed.expect("result ")?)?);
    bound.leave()?;
    dialed.leave()?;
    let cpu = at_bound.get("cpu").unwrap_or(0.0) + at_dialed.get("cpu").unwrap_or(0.0);
    join(cell, &at_bound, &at_dialed, cpu)
}

fn ask_for(transport: Transport, dir: &Path) -> String {
    match transport {
        Transport::Tcp => "tcp://127.0.0.1:0".to_owned(),
        Transport::Ipc => format!("ipc://{}", dir.join("s").display()),
        Transport::Inproc => "inproc://versus".to_owned(),
    }
}

/// What both sides know together, under the names of the shape's metrics.
fn join(cell: &Cell, bound: &Numbers, dialed: &Numbers, cpu: f64) -> Result<Numbers> {
    let mut all = Numbers::default();
    if !matches!(cell.shape, Shape::Idle { .. }) {
        // Of an inproc round trip the asking thread speaks for both: every answer was the right one.
        let sent = dialed.get("sent").ok_or("the sender did not say what it sent")?;
        let seen = bound.get("seen").or((cell.transport == Transport::Inproc).then_some(sent));
        if seen != Some(sent) {
            return Err(format!("{sent} messages were sent, {} came", seen.unwrap_or(0.0)).into());
        }
        let measured = bound.get("measured").or(dialed.get("measured")).filter(|n| *n > 0.0);
        let measured = measured.ok_or("nothing was measured")?;
        all.set("measured", measured);
        all.set("cpu", cpu / measured * 1e6);
    }
    for metric in cell.shape.metrics().iter().filter(|m| m.name != "cpu") {
        let value = bound.get(metric.name).or(dialed.get(metric.name));
        all.set(metric.name, value.ok_or_else(|| format!("no side measured {}", metric.name))?);
    }
    Ok(all)
}

/// Until both are done, in any order. The first that has trouble ends it, with what the other one says of it:
/// either may be the cause.
fn both_done(bound: &mut Side, dialed: &mut Side) -> Result<()> {
    let (mut from_bound, mut from_dialed) = (bound.lines.clone(), dialed.lines.clone());
    let late = at(bound.deadline);
    for _ in 0..2 {
        select! {
            recv(from_bound) -> line => {
                bound.check(line.map_err(|_| false), "done").map_err(|why| dialed.add_to(&*why))?;
                from_bound = never();
            }
            recv(from_dialed) -> line => {
                dialed.check(line.map_err(|_| false), "done").map_err(|why| bound.add_to(&*why))?;
                from_dialed = never();
            }
            recv(late) -> _ => return Err(format!("{}: not done in time", bound.who).into()),
        }
    }
    Ok(())
}

/// A process that does one side. Dropped, it is ended.
struct Side {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    deadline: Instant,
    who: String,
}

impl Side {
    fn start(name: &str, role: Role, url: &str, cell: &Cell, plan: &Plan) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("side").args([name, &role.to_string(), url]);
        command.args([cell.shape.to_string(), cell.transport.to_string(), cell.size.to_string()]);
        command.args([plan.warm_up, plan.measured].map(|d| d.as_secs_f64().to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let (tell, lines) = unbounded();
        // Ends with the child, whose end closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + plan.patience();
        Ok(Side { child, stdin, lines, deadline, who: format!("{name} ({role})") })
    }

    /// The rest of the next line, which must begin with `with`.
    fn expect(&mut self, with: &str) -> Result<String> {
        let line = self.lines.recv_deadline(self.deadline);
        self.check(line.map_err(|e| e.is_timeout()), with)
    }

    /// The rest of `line`, or what is wrong; instead of a line there may be a time-out (`true`) or an end.
    fn check(&mut self, line: std::result::Result<String, bool>, with: &str) -> Result<String> {
        let who = &self.who;
        match line {
            Ok(line) => match line.strip_prefix(with) {
                Some(rest) => Ok(rest.to_owned()),
                None => Err(format!("{who}: {line}").into()),
            },
            Err(true) => Err(format!("{who}: no word in time").into()),
            Err(false) => Err(format!("{who}: ended without a word: {}", self.child.wait()?).into()),
        }
    }

    /// The other side's trouble, and this one's if it has any soon.
    fn add_to(&self, why: &dyn Error) -> String {
        match self.lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) if line.starts_with("error") => format!("{why}; {}: {line}", self.who),
            _ => why.to_string(),
        }
    }

    /// Says go on.
    fn tell(&mut self) -> Result<()> {
        Ok(self.stdin.as_mut().ok_or("no standard input")?.write_all(b"\n")?)
    }

    /// Waits for its end, which must be a good one.
    fn leave(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{}: {status}", self.who).into()) }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> Cell {
        Cell { shape: Shape::Stream, transport: Transport::Tcp, size: 64 }
    }

    fn said(text: &str) -> Numbers {
        Numbers::parse(text).unwrap()
    }

    #[test]
    fn cpu_time_is_told_for_each_million_measured_messages() {
        let (bound, dialed) = (said("seen=30 measured=20 rate=2"), said("sent=30"));
        let all = join(&cell(), &bound, &dialed, 0.5).unwrap();
        assert_eq!(all, said("measured=20 cpu=25000 rate=2"));
    }

    #[test]
    fn a_receiver_that_saw_less_or_more_than_was_sent_fails_the_run() {
        for seen in [29, 31] {
            let bound = said(&format!("seen={seen} measured=20 rate=2"));
            assert!(join(&cell(), &bound, &said("sent=30"), 0.5).is_err(), "{seen} of 30 was accepted");
        }
        assert!(join(&cell(), &said("seen=30 measured=20 rate=2"), &said(""), 0.5).is_err());
    }
}
