//! Turns: every round runs each system once, so that a noisy minute hits all alike.
//!
//! A sample has a server with an empty store, and a process for its nodes: this program, started again with the hidden
//! subcommand `nodes`. Owns: those processes and their folders. Never: measures inside itself.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::case::Case;
use super::system::{Server, System, start};
use crate::Result;
use crate::machine::{Spent, Times};
use crate::payload::WRONG;
use crate::rounds::Row;
use crate::side::Numbers;

/// All rounds of one case.
#[derive(Debug)]
pub struct Outcome {
    /// What was measured.
    pub case: Case,
    /// A row for each system, in their order.
    pub rows: Vec<Row>,
    /// For each round what others took of the machine meanwhile.
    pub spent: Vec<Spent>,
}

impl Outcome {
    /// Whether nothing was lost or doubled by anybody, and nothing failed but a peer.
    pub fn is_good(&self) -> bool {
        let good = |row: &Row| {
            row.failures.iter().all(|why| !row.name.starts_with("spanwire") && !why.contains(WRONG))
        };
        self.rows.iter().all(good)
    }
}

/// Where stores are, and how long is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// How long is measured in a sample, where that can be chosen.
    pub measured: Duration,
    /// A folder on the disk on which stores are made.
    pub disk: PathBuf,
    /// A folder in memory.
    pub memory: PathBuf,
}

/// Runs a case, and calls `tick` before each sample.
pub fn run(case: Case, systems: &[&dyn System], plan: &Plan, mut tick: impl FnMut(usize, &str)) -> Outcome {
    let row = |system: &&dyn System| Row { name: system.name().to_owned(), ..Row::default() };
    let mut outcome = Outcome { case, rows: systems.iter().map(row).collect(), spent: Vec::new() };
    for round in 0..plan.rounds {
        let before = Times::now();
        for (system, row) in systems.iter().zip(&mut outcome.rows) {
            tick(round, system.name());
            let numbers = sample(*system, case, plan).map_err(|why| row.failures.push(why.to_string()));
            row.samples.push(numbers.ok());
        }
        outcome.spent.push(Times::now().since(&before));
    }
    outcome
}

/// One run of one system.
///
/// # Errors
/// When a process fails, or says nothing for too long.
fn sample(system: &dyn System, case: Case, plan: &Plan) -> Result<Numbers> {
    let parent = if case.is_on_disk() { &plan.disk } else { &plan.memory };
    let dir = tempfile::Builder::new().prefix("config-versus-").tempdir_in(parent)?;
    let mut server = system.serve(dir.path())?;
    let said = nodes(system, &server, case, plan);
    if let Some(status) = server.child.try_wait()? {
        return Err(format!("the server ended: {status}").into());
    }
    Numbers::parse(&said?)
}

/// The process with all nodes.
fn nodes(system: &dyn System, server: &Server, case: Case, plan: &Plan) -> Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["nodes", system.name(), &case.to_string(), &server.place.nodes, &server.place.control]);
    command.args([server.child.id().to_string(), plan.measured.as_secs_f64().to_string()]);
    let mut child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    let said = thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).map(|_| said)
    });
    let until = Instant::now() + case.patience(plan.measured);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            None => {
                child.kill()?;
                child.wait()?;
                return Err("no word in time".into());
            }
        }
    };
    let said = said.join().map_err(|_| "a thread panicked")??;
    match said.trim_end().strip_prefix("result ") {
        Some(numbers) if status.success() => Ok(numbers.to_owned()),
        _ => Err(format!("{said} ({status})").into()),
    }
}
