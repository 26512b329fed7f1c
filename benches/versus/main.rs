//! `versus`: spanwire and its peers side by side, cell by cell, in interleaved rounds.
//!
//! Prints a table for each cell, and at the end all targets; writes the same text, a CSV file with every round,
//! and plots. It fails when anybody lost, doubled or overtook a message, when spanwire or a limit failed otherwise,
//! and when there was no time for a cell. A peer's failure is told, and so is a target that is missed.
//! Owns: the command line. Never: measures in its own process; that is done by `versus side …`.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use spanwire_benches::cell::{self, Cell, Plan, Shape, Share, Transport};
use spanwire_benches::contestant::{self, Entry, Job};
use spanwire_benches::report::{self, Csv};
use spanwire_benches::rounds::{self, Rounds};
use spanwire_benches::side::{Ends, Role};
use spanwire_benches::{Result, machine, plot, target};

/// Measures spanwire beside libzmq, nanomsg, nng, rzmq and zmq.rs (with --features peers), and beside raw
/// sockets and channels.
#[derive(Debug, Parser)]
#[command(name = "versus", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    inner: Option<Inner>,
    #[command(flatten)]
    matrix: Matrix,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// One side of a cell; versus starts this itself.
    #[command(hide = true)]
    Side(SideArgs),
}

#[derive(Debug, Args)]
struct Matrix {
    /// The cells that matter most, in short samples: within 5 minutes instead of 30.
    #[arg(long)]
    quick: bool,
    /// Only cells of which all words are said, as in "tcp stream 64" or "pub-8"; may be given again.
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// Says which cells there are, and runs none.
    #[arg(long)]
    list: bool,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    contestants: Vec<String>,
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How many rounds of a cell may be run again because others took more than 5 % of the machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    patience: u16,
    /// Seconds that are measured in each sample [default: 0.35, quick: 0.15].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Seconds of silence in each sample of an idle cell [default: 2, quick: 0.6].
    #[arg(long, value_name = "S")]
    idle_seconds: Option<f64>,
    /// Minutes after which no cell is begun [default: 28.5, quick: 4.7; with --only or --seconds none].
    #[arg(long, value_name = "MIN")]
    minutes: Option<f64>,
    /// Where text, CSV and plots go.
    #[arg(long, default_value = "target/versus")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct SideArgs {
    contestant: String,
    role: Role,
    url: String,
    shape: Shape,
    transport: Transport,
    size: usize,
    warm_up: f64,
    measured: f64,
    first: usize,
    count: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.inner {
        Some(Inner::Side(args)) => {
            let ends = Ends::stdio();
            let code = match side(&args, &ends) {
                Ok(()) => 0,
                Err(why) => {
                    // Nobody may be left to hear it; the code tells as well.
                    let _ = ends.say(format_args!("error: {why}"));
                    1
                }
            };
            // What libraries do when they are torn down is not measured, and may take long.
            std::process::exit(code)
        }
        None => match matrix(&cli.matrix) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("versus: {why}");
                ExitCode::FAILURE
            }
        },
    }
}

fn seconds(s: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(s).map_err(|why| format!("{s} seconds: {why}").into())
}

fn side(args: &SideArgs, ends: &Ends) -> Result<()> {
    machine::raise_files();
    let cell = Cell { shape: args.shape, transport: args.transport, size: args.size };
    let plan = Plan { warm_up: seconds(args.warm_up)?, measured: seconds(args.measured)? };
    let job = Job { cell: &cell, plan: &plan, share: Share { first: args.first, count: args.count } };
    let all = contestant::all();
    let found = all.iter().find(|c| c.name() == args.contestant);
    found.ok_or("no such contestant")?.run(&job, args.role, &args.url, ends)
}

/// Whether everything worked.
fn matrix(args: &Matrix) -> Result<bool> {
    let cells = cells(args)?;
    if args.list {
        let mut out = std::io::stdout().lock();
        // Who reads it may have seen enough.
        let _ = cells.iter().try_for_each(|cell| writeln!(out, "{cell}"));
        return Ok(true);
    }
    let all = contestant::all();
    let names = &args.contestants;
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|c| c.name() != *name)) {
        let known: Vec<_> = all.iter().map(|c| c.name()).collect();
        return Err(format!("no contestant {unknown:?} in this build: {}", known.join(", ")).into());
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    let contestants: Vec<&dyn Entry> = all.iter().map(|c| &**c).filter(|c| chosen(c.name())).collect();

    let began = Instant::now();
    let limit = limit(args)?;
    let rounds = Rounds { count: args.rounds.into(), spare: args.patience.into() };
    let mut csv = Csv::create(&args.out, &contestants)?;
    let mut text = Text { file: File::create(csv.path().with_extension("md"))? };
    text.say(&report::preamble(&contestants))?;
    let files = machine::raise_files();
    let example = plan(args, &cells[0])?;
    text.say(&format!(
        "{} rounds, {:?} warm-up and {:?} measured in each sample; queues of 1000 messages; {files} files\n",
        args.rounds, example.warm_up, example.measured,
    ))?;
    let (mut good, mut outcomes, mut verdicts) = (true, Vec::new(), Vec::new());
    for cell in cells {
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            text.say(&format!("NOT RUN, out of time: {cell}"))?;
            csv.remark(&format!("NOT RUN {cell}"))?;
            good = false;
            continue;
        }
        let outcome = rounds::run(cell, &contestants, rounds, &plan(args, &cell)?, |round, name| {
            if std::io::stderr().is_terminal() {
                eprint!("\r{cell}: round {} {name}\x1b[K", round + 1);
                let _ = std::io::stderr().flush();
            }
        });
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        good &= outcome.is_good(&contestants);
        text.say(&report::table(&outcome, &contestants))?;
        csv.add(&outcome)?;
        verdicts.push((cell.to_string(), target::judge(&outcome, &contestants)));
        outcomes.push(outcome);
    }
    text.say(&format!("# All targets\n\n{}", report::verdict_table(&verdicts)))?;
    let met = verdicts.iter().flat_map(|(_, all)| all).filter(|v| v.is_met() == Some(true)).count();
    let of = verdicts.iter().map(|(_, all)| all.len()).sum::<usize>();
    text.say(&format!("{met} of {of} targets met; {:.0} s", began.elapsed().as_secs_f64()))?;
    let stem = csv.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for file in plot::all(&args.out, &stem, &outcomes)? {
        text.say(&format!("plot: {}", file.display()))?;
    }
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

/// After how long no cell is begun.
fn limit(args: &Matrix) -> Result<Option<Duration>> {
    let own = args.only.is_empty() && args.seconds.is_none() && args.idle_seconds.is_none();
    let minutes = match args.minutes {
        Some(minutes) => Some(minutes),
        None if own => Some(if args.quick { 4.7 } else { 28.5 }),
        None => None,
    };
    minutes.map(|m| seconds(m * 60.0)).transpose()
}

fn plan(args: &Matrix, cell: &Cell) -> Result<Plan> {
    let (warm_up, measured) = match (cell.shape, args.quick) {
        // What is put away once things are quiet has been put away by then.
        (Shape::Idle(_), quick) => (1.0, args.idle_seconds.unwrap_or(if quick { 0.6 } else { 2.0 })),
        (_, true) => (0.05, args.seconds.unwrap_or(0.15)),
        (_, false) => (0.15, args.seconds.unwrap_or(0.35)),
    };
    Plan { warm_up: seconds(warm_up)?, measured: seconds(measured)? }.check()
}

fn cells(args: &Matrix) -> Result<Vec<Cell>> {
    let all = cell::matrix();
    if let Some(nothing) = args.only.iter().find(|words| all.iter().all(|c| !c.is_meant(words))) {
        return Err(format!("no cell is {nothing:?}; --list tells them").into());
    }
    let named = |cell: &Cell| args.only.iter().any(|words| cell.is_meant(words));
    // Who names a cell wants it, quick or not.
    let wanted = |cell: &Cell| match args.only.is_empty() {
        true => !args.quick || cell::is_quick(cell),
        false => named(cell),
    };
    Ok(all.into_iter().filter(wanted).collect())
}
