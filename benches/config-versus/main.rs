//! `config-versus`: config-broadcast and etcd side by side, case by case, in interleaved rounds.
//!
//! Prints a table for each case, and at the end all targets; writes the same text, and a CSV file with every round. It
//! fails when anybody lost or doubled a commit, when spanwire failed otherwise, and when there was no time for a case.
//! A peer's failure is told, and so is a target that is missed. Owns: the command line. Never: measures in its own
//! process; that is done by `config-versus nodes …`.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use spanwire_benches::config::measure::Sample;
use spanwire_benches::config::report::{self, Csv};
use spanwire_benches::config::rounds::{self, Plan};
use spanwire_benches::config::system::{self, Place};
use spanwire_benches::config::{Case, System, case, ours, raw};
use spanwire_benches::report::verdict_table;
use spanwire_benches::{Result, machine};

/// Measures config-broadcast beside etcd (with --features peers-etcd, and Debian's etcd-server).
#[derive(Debug, Parser)]
#[command(name = "config-versus", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    inner: Option<Inner>,
    #[command(flatten)]
    matrix: Matrix,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// Our server; config-versus starts this itself.
    #[command(hide = true)]
    Serve { dir: PathBuf },
    /// The floor's server; config-versus starts this itself.
    #[command(hide = true)]
    Raw,
    /// All nodes of a sample; config-versus starts this itself.
    #[command(hide = true)]
    Nodes(NodesArgs),
}

#[derive(Debug, Args)]
struct NodesArgs {
    system: String,
    case: Case,
    nodes: String,
    control: String,
    server: u32,
    seconds: f64,
}

#[derive(Debug, Args)]
struct Matrix {
    /// The cases with a target, in 3 short rounds: within 10 minutes instead of 45.
    #[arg(long)]
    quick: bool,
    /// Only cases of which all words are said, as in "spread-100 100/s" or "commits"; may be given again. Any number
    /// goes, as in "cold-10".
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// Says which cases there are, and runs none.
    #[arg(long)]
    list: bool,
    /// Only these systems.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    systems: Vec<String>,
    /// Rounds; each runs every system once [default: 5, quick: 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Seconds that are measured in each sample [default: 5, quick: 3].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Minutes after which no case is begun [default: none].
    #[arg(long, value_name = "MIN")]
    minutes: Option<f64>,
    /// A folder on the disk to measure on, for stores.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    disk: PathBuf,
    /// A folder in memory, for stores without sync.
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Where text and CSV go.
    #[arg(long, default_value = "target/config-versus")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.inner {
        Some(Inner::Serve { dir }) => {
            machine::raise_files();
            ours::serve_until_told(dir).map(|()| true)
        }
        Some(Inner::Raw) => {
            machine::raise_files();
            raw::serve_until_told().map(|()| true)
        }
        Some(Inner::Nodes(args)) => nodes(args),
        None => matrix(&cli.matrix),
    };
    let code = match done {
        Ok(good) => u8::from(!good),
        Err(why) if cli.inner.is_some() => {
            // Nobody may be left to hear it; the code tells as well.
            let _ = writeln!(std::io::stdout(), "error: {why}");
            1
        }
        Err(why) => {
            eprintln!("config-versus: {why}");
            1
        }
    };
    if let Some(Inner::Nodes(_)) = cli.inner {
        // To take a thousand nodes down is not measured.
        std::process::exit(code.into());
    }
    ExitCode::from(code)
}

fn seconds(s: f64) -> Result<Duration> {
    let time = Duration::try_from_secs_f64(s).map_err(|why| format!("{s} seconds: {why}"))?;
    if time.is_zero() { Err("nothing is measured in 0 s".into()) } else { Ok(time) }
}

fn nodes(args: &NodesArgs) -> Result<bool> {
    machine::raise_files();
    let systems = system::all()?;
    let system = systems.iter().find(|system| system.name() == args.system).ok_or("no such system")?;
    let place = Place { nodes: args.nodes.clone(), control: args.control.clone() };
    let (case, server, measured) = (args.case, args.server, seconds(args.seconds)?);
    let numbers = Sample { system: &**system, case, place, server, measured }.run()?;
    writeln!(std::io::stdout(), "result {numbers}")?;
    Ok(true)
}

/// Whether everything worked.
fn matrix(args: &Matrix) -> Result<bool> {
    let cases = cases(args)?;
    if args.list {
        let mut out = std::io::stdout().lock();
        // Who reads it may have seen enough.
        let _ = cases.iter().try_for_each(|case| writeln!(out, "{case}"));
        return Ok(true);
    }
    let all = system::all()?;
    let names = &args.systems;
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|system| system.name() != *name)) {
        let known: Vec<_> = all.iter().map(|system| system.name()).collect();
        return Err(format!("no system {unknown:?} in this build: {}", known.join(", ")).into());
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let systems: Vec<&dyn System> = all.iter().map(|s| &**s).filter(|s| chosen(s.name())).collect();
    let plan = Plan {
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 5 }).into(),
        measured: seconds(args.seconds.unwrap_or(if args.quick { 3.0 } else { 5.0 }))?,
        disk: args.disk.clone(),
        memory: args.memory.clone(),
    };
    let limit = args.minutes.map(|minutes| seconds(minutes * 60.0)).transpose()?;
    let began = Instant::now();
    machine::raise_files();
    let mut csv = Csv::create(&args.out, &systems)?;
    let mut text = Text { file: File::create(csv.path().with_extension("md"))? };
    text.say(&report::preamble(&systems))?;
    text.say(&format!("{} rounds, {:?} measured in each sample\n", plan.rounds, plan.measured))?;
    let (mut good, mut verdicts) = (true, Vec::new());
    for case in cases {
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            text.say(&format!("NOT RUN, out of time: {case}"))?;
            good = false;
            continue;
        }
        let systems: Vec<&dyn System> = systems.iter().copied().filter(|s| s.measures(&case)).collect();
        let outcome = rounds::run(case, &systems, &plan, |round, name| {
            if std::io::stderr().is_terminal() {
                eprint!("\r{case}: round {} {name}\x1b[K", round + 1);
            }
        });
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        good &= outcome.is_good();
        text.say(&report::table(&outcome))?;
        csv.add(&outcome)?;
        verdicts.push((case.to_string(), report::judge(&outcome)));
    }
    text.say(&format!("# All targets\n\n{}", verdict_table(&verdicts)))?;
    let met = verdicts.iter().flat_map(|(_, all)| all).filter(|v| v.is_met() == Some(true)).count();
    let of = verdicts.iter().map(|(_, all)| all.len()).sum::<usize>();
    text.say(&format!("{met} of {of} targets met; {:.0} s", began.elapsed().as_secs_f64()))?;
    text.say(&format!("every round: {}", csv.path().display()))?;
    Ok(good)
}

/// Standard output, and a file with the same.
struct Text {
    file: File,
}

impl Text {
    fn say(&mut self, text: &str) -> Result<()> {
        // Whoever stopped reading may still want the files.
        let _ = writeln!(std::io::stdout(), "{text}");
        Ok(writeln!(self.file, "{text}")?)
    }
}

fn cases(args: &Matrix) -> Result<Vec<Case>> {
    let all = case::all();
    if args.only.is_empty() {
        return Ok(all.into_iter().filter(|case| !args.quick || case::is_quick(case)).collect());
    }
    // A whole name may be a case that the matrix has not.
    let named = |words: &String| {
        let meant: Vec<Case> = all.iter().filter(|case| case.is_meant(words)).copied().collect();
        if meant.is_empty() { words.parse().map(|case| vec![case]) } else { Ok(meant) }
    };
    let mut cases: Vec<Case> = Vec::new();
    for words in &args.only {
        let meant = named(words).map_err(|why| format!("{why}; --list tells them"))?;
        cases.extend(meant.into_iter().filter(|case| !cases.contains(case)).collect::<Vec<_>>());
    }
    Ok(cases)
}
