//! `versus`: spanwire and its peers side by side, cell by cell, in interleaved rounds.
//!
//! Prints a table for each cell and writes every round to a CSV file. It fails when a message was lost,
//! doubled or overtaken, and when a contestant failed otherwise.
//! Owns: the command line. Never: measures in its own process; that is done by `versus side …`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use spanwire_benches::Result;
use spanwire_benches::cell::{Cell, Plan, Shape, Transport};
use spanwire_benches::contestant::{self, Entry};
use spanwire_benches::report::{self, Csv};
use spanwire_benches::rounds::Rounds;
use spanwire_benches::side::{Ends, Role};

/// Measures spanwire beside libzmq, nanomsg, nng (with --features peers) and raw sockets.
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
    /// Short samples: 0.1 s of warm-up, 0.3 s measured.
    #[arg(long)]
    quick: bool,
    /// Rounds; each runs every contestant once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How many rounds of a cell may be run again because others took more than 5 % of the machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    patience: u16,
    /// Seconds that are measured in each sample [default: 2, quick: 0.3].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Bytes in each message, at least 8.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u32).range(8..=16 << 20))]
    sizes: Vec<u32>,
    /// tcp, ipc, inproc.
    #[arg(long, value_delimiter = ',', default_value = "tcp,ipc,inproc")]
    transports: Vec<Transport>,
    /// stream (push to pull), rtt (req and rep).
    #[arg(long, value_delimiter = ',', default_value = "stream,rtt")]
    shapes: Vec<Shape>,
    /// What connected pipes cost that say nothing; instead of the shapes.
    #[arg(long)]
    idle: bool,
    /// How many pipes are idle.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=400))]
    pipes: u16,
    /// Seconds of idleness in each sample.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    idle_seconds: f64,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the CSV file goes.
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
    let cell = Cell { shape: args.shape, transport: args.transport, size: args.size };
    let plan = Plan { warm_up: seconds(args.warm_up)?, measured: seconds(args.measured)? };
    let all = contestant::all();
    let found = all.iter().find(|c| c.name() == args.contestant);
    found.ok_or("no such contestant")?.run(args.role, &args.url, &cell, &plan, ends)
}

/// Whether everything worked.
fn matrix(args: &Matrix) -> Result<bool> {
    let all = contestant::all();
    if let Some(unknown) = args.only.iter().find(|name| all.iter().all(|c| c.name() != *name)) {
        let known: Vec<_> = all.iter().map(|c| c.name()).collect();
        return Err(format!("no contestant {unknown:?} in this build: {}", known.join(", ")).into());
    }
    let chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|n| n == name);
    let contestants: Vec<&dyn Entry> = all.iter().map(|c| &**c).filter(|c| chosen(c.name())).collect();

    let plan = plan(args)?;
    let mut csv = Csv::create(&args.out, &contestants)?;
    print!("{}", report::preamble(&contestants));
    println!(
        "{} rounds, {:?} warm-up and {:?} measured in each sample; queues of {} messages\n",
        args.rounds,
        plan.warm_up,
        plan.measured,
        Cell::QUEUE
    );
    let rounds = Rounds { count: args.rounds.into(), spare: args.patience.into() };
    let mut good = true;
    for cell in cells(args) {
        let outcome = spanwire_benches::rounds::run(cell, &contestants, rounds, &plan, |round, name| {
            if std::io::stderr().is_terminal() {
                eprint!("\r{cell}: round {} {name}\x1b[K", round + 1);
                let _ = std::io::stderr().flush();
            }
        });
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        good &= outcome.rows.iter().all(|row| row.failures.is_empty());
        println!("{}", report::table(&outcome, &contestants));
        csv.add(&outcome)?;
    }
    println!("every round: {}", csv.path().display());
    Ok(good)
}

fn plan(args: &Matrix) -> Result<Plan> {
    let (warm_up, measured) = match (args.idle, args.quick) {
        (true, _) => (1.0, args.idle_seconds),
        (false, true) => (0.1, args.seconds.unwrap_or(0.3)),
        (false, false) => (0.5, args.seconds.unwrap_or(2.0)),
    };
    Plan { warm_up: seconds(warm_up)?, measured: seconds(measured)? }.check()
}

fn cells(args: &Matrix) -> Vec<Cell> {
    let idle = vec![Shape::Idle { pipes: args.pipes.into() }];
    // Silence has no size.
    let (shapes, sizes) = if args.idle { (&idle, &args.sizes[..1]) } else { (&args.shapes, &args.sizes[..]) };
    let mut cells = Vec::new();
    for &shape in shapes {
        for &transport in &args.transports {
            for &size in sizes {
                // Idle threads of one process would say nothing about its pipes.
                if !(args.idle && transport == Transport::Inproc) {
                    cells.push(Cell { shape, transport, size: size as usize });
                }
            }
        }
    }
    cells
}
