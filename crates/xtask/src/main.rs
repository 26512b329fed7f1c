//! Developer commands: `cargo xtask NAME`.
//!
//! Thin: it starts cargo and reports. `test` is the one command that decides whether a change is good; the
//! others are parts of it, or need a toolchain that not everybody has and are never part of it.
//!
//! Owns: which checks exist and how they are called. Never: skips a check because something is missing; says
//! that a check passed which it did not run.
#![forbid(unsafe_code)]

mod ahead;
mod chaos;
mod peers;
mod report;

use std::env;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use report::Report;

const HELP: &str = "\
cargo xtask COMMAND

  test            everything that a change must pass; installs the peers that are missing
  interop         only the tests against nanomsg and nng; installs the peers that are missing
  peers           only install the peers: nanocat, nngcat, and pynng in target/peers-venv
  portable        the sockets' tests as on systems without nested epoll
  loom            the models of the lead hand-over
  fuzz [NAME [S]] one fuzz target, or all, for S seconds each (60); needs nightly and cargo-fuzz
  miri [ARGS]     the unit tests of spanwire under miri; needs nightly with miri and rust-src
  tsan [ARGS]     the tests of spanwire under ThreadSanitizer; needs nightly with rust-src
  sim [SEEDS]     the simulated cluster of config-broadcast, optimised: so many seeds (10000), or A..B
  chaos [--seconds N] [--seed S] [--agents N]
                  config-sync as real processes that are killed, stopped and cut off: for 60 s, with 30 agents
  faults [NAMES]  each bug that can be planted in config-broadcast, or some, A,B: in how many seeds it is found
  versus [ARGS]   the benchmark beside other libraries, whose development packages must be there; ARGS go to
                  it: `--quick` takes 5 minutes, otherwise 30
  config-versus [ARGS]
                  config-broadcast beside etcd, which is installed if it is missing; ARGS go to it: `--quick` takes
                  10 minutes, otherwise 45
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(String::as_str) {
        Some("test") => test(),
        Some("interop") => interop(rest),
        Some("peers") => peers::ensure(&root()),
        Some("portable") => portable(&mut Report::default()),
        Some("loom") => {
            let mut report = Report::default();
            let counted = loom(&mut report);
            report.step("loom", counted);
            report.finish()
        }
        Some("fuzz") => fuzz(rest),
        Some("miri") => miri(rest),
        Some("tsan") => tsan(rest),
        Some("sim") => sim(rest),
        Some("chaos") => chaos::run(&mut Report::default(), rest, &mut std::io::stdout()),
        Some("faults") => run(faults("--release")
            .args(["--", "--nocapture"])
            .envs(rest.first().map(|names| ("FAULT", names)))),
        Some("versus") => {
            let build = ["run", "--release", "--package", "spanwire-benches", "--features", "peers"];
            run(cargo(build).args(["--bin", "versus", "--"]).args(rest))
        }
        Some("config-versus") => peers::ensure_etcd().and_then(|()| {
            let build = ["run", "--release", "--package", "spanwire-benches", "--features", "peers-etcd"];
            run(cargo(build).args(["--bin", "config-versus", "--"]).args(rest))
        }),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("no such command: {other}\n\n{HELP}")),
        None => Err(HELP.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{}", text.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// All steps run, whatever failed before: one run tells everything.
fn test() -> Result<(), String> {
    let mut report = Report::default();
    // Without its peers the interop tests fail one by one and say little: this says what to install.
    report.step("peers", peers::ensure(&root()));
    report.step("fmt", run(&mut cargo(["fmt", "--all", "--check"])));
    report
        .step("clippy", run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])));
    alone(&mut report);
    let ahead = ahead::build(vec![portable_tests(), loom_tests(), faults("--profile=dev"), chaos::tests()]);
    // The dev profile: an optimised build costs more than the tests gain by it.
    let counted = report.count(&mut cargo(["test", "--workspace", "--no-fail-fast"]));
    report.step("test", counted);
    // Of an example a workspace's test builds the program alone.
    let counted =
        report.count(&mut cargo(["test", "--package", "spanwire-examples", "--example", "config-sync"]));
    report.step("config-sync", counted);
    ahead.wait();
    eprintln!("-- builds ahead: waited {} s for them", report.lap().as_secs());
    let counted = portable(&mut report);
    report.step("portable", counted);
    if has_loom() {
        let counted = loom(&mut report);
        report.step("loom", counted);
    }
    beside_chaos(&mut report, |report| {
        let counted = every_fault(report);
        report.step("faults", counted);
        report.step("doc", doc());
    });
    report.finish()
}

/// The minute of chaos needs the machine now and then, and waits for conditions: `others`, which use no clock, run
/// meanwhile. What it prints comes after what they print.
fn beside_chaos(report: &mut Report, others: impl FnOnce(&mut Report)) {
    let chaos = std::thread::spawn(|| {
        let (mut report, mut printed) = (Report::default(), Vec::new());
        let counted = chaos::run(&mut report, &[], &mut printed);
        (report, printed, counted)
    });
    others(report);
    let counted = match chaos.join() {
        Ok((chaos, printed, counted)) => {
            let _ = std::io::stdout().write_all(&printed);
            report.add(chaos);
            counted
        }
        Err(_) => Err("the step panicked".to_owned()),
    };
    report.step("chaos", counted);
}

/// Each feature and each crate builds alone: in the workspace one may live on what another asked for.
fn alone(report: &mut Report) {
    report.step("no features", run(&mut cargo(["check", "--package", "spanwire", "--no-default-features"])));
    report.step("all features", run(&mut cargo(["check", "--package", "spanwire", "--all-features"])));
    for name in ["spanwire-config", "spanwire-testkit", "spanwire-cli"] {
        report.step(name, run(&mut cargo(["check", "--package", name])));
    }
}

fn interop(args: &[String]) -> Result<(), String> {
    peers::ensure(&root())?;
    run(cargo(["test", "--package", "spanwire", "--test", "interop", "--"]).args(args))
}

/// The sockets once more, as on systems where callers do not drive: the driver does, always.
fn portable(report: &mut Report) -> Result<(), String> {
    report.count(&mut portable_tests())
}

fn portable_tests() -> Command {
    // A target directory of its own, or the flag would throw every other build away.
    let tests = ["sockets", "stress", "times", "promises", "defects", "transport_faults", "transports"];
    let tests = tests.into_iter().flat_map(|test| ["--test", test]);
    let mut cargo = cargo(["test", "--no-fail-fast", "-p", "spanwire", "-p", "spanwire-testkit"]);
    cargo.env("RUSTFLAGS", "--cfg spanwire_portable").env("CARGO_TARGET_DIR", root().join("target/portable"));
    cargo.args(tests);
    cargo
}

fn doc() -> Result<(), String> {
    run(cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn has_loom() -> bool {
    root().join("crates/spanwire-loom").is_dir()
}

fn loom(report: &mut Report) -> Result<(), String> {
    if !has_loom() {
        return Err("there is no crates/spanwire-loom".to_owned());
    }
    report.count(&mut loom_tests())
}

fn loom_tests() -> Command {
    // A target directory of its own, or the flag would throw every other build away. Optimised: a model
    // explores millions of interleavings.
    let mut cargo = cargo(["test", "--release", "--package", "spanwire-loom"]);
    cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", root().join("target/loom"));
    cargo
}

/// On all cores; a failure prints its seed and the shortest plan that still fails.
fn sim(args: &[String]) -> Result<(), String> {
    let seeds = args.first().map_or("10000", String::as_str);
    let mut cargo = cargo([
        "test",
        "--release",
        "--package",
        "spanwire-config",
        "--features",
        "testkit",
        "--test",
        "simulation",
        "--",
        "--nocapture",
    ]);
    run(cargo.env("SIM_SEEDS", seeds))
}

/// The hunt for planted bugs.
fn faults(profile: &str) -> Command {
    let mut cargo =
        cargo(["test", "--package", "spanwire-config", "--features", "faults", "--test", "faults"]);
    cargo.arg(profile);
    cargo
}

/// Each of them once, in the profile of the tests: that the oracle looks.
fn every_fault(report: &mut Report) -> Result<(), String> {
    report.count(faults("--profile=dev").env("FAULT_TRIES", "1"))
}

fn fuzz(args: &[String]) -> Result<(), String> {
    let targets = root().join("fuzz/fuzz_targets");
    let seconds = args.get(1).map_or("60", String::as_str);
    let mut names = match args.first() {
        Some(name) => vec![name.clone()],
        None => stems(&targets)?,
    };
    names.sort();
    for name in names {
        let limit = format!("-max_total_time={seconds}");
        run(&mut nightly(["fuzz", "run", &name, "--", &limit]))?;
    }
    Ok(())
}

fn stems(folder: &Path) -> Result<Vec<String>, String> {
    let files = folder.read_dir().map_err(|e| format!("failed to list {}: {e}", folder.display()))?;
    Ok(files
        .filter_map(Result::ok)
        .filter_map(|file| Some(file.path().file_stem()?.to_string_lossy().into_owned()))
        .collect())
}

fn miri(args: &[String]) -> Result<(), String> {
    // Sockets are outside of what miri can do; the queues, messages, wires and protocols are inside.
    let mut cargo = nightly(["miri", "test", "--package", "spanwire", "--lib", "--"]);
    run(cargo.env("MIRIFLAGS", "-Zmiri-disable-isolation").args(args))
}

fn tsan(args: &[String]) -> Result<(), String> {
    let host = host()?;
    // The standard library is built too: a sanitizer that does not see it reports its locks as races.
    let mut cargo = nightly(["test", "-Zbuild-std", "--target", &host, "--package", "spanwire", "--tests"]);
    cargo.env("RUSTFLAGS", "-Zsanitizer=thread").env("CARGO_TARGET_DIR", root().join("target/tsan"));
    run(cargo.arg("--").args(args))
}

fn host() -> Result<String, String> {
    let out = Command::new("rustc").arg("-vV").output().map_err(|e| format!("failed to start rustc: {e}"))?;
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// The root of the workspace.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Through rustup's proxy: what cargo left in `CARGO` is the stable one.
fn nightly<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").args(args).current_dir(root()).env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// Shows the command, runs it, and tells whether it succeeded.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = shown(command);
    eprintln!("$ {shown}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(e) => Err(format!("failed to start {shown}: {e}")),
    }
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?"));
    let envs = command.get_envs().filter_map(|(k, v)| Some((k, v?)));
    let envs = envs.map(|(k, v)| format!("{}='{}' ", k.to_string_lossy(), v.to_string_lossy()));
    let words = std::iter::once(program).chain(command.get_args());
    envs.collect::<String>() + &words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
