//! `cargo xtask chaos`: config-sync as real processes, in the test `chaos` of the examples.
//!
//! Owns: how that is asked for. Never: a kill of its own.

use std::io::Write;
use std::process::Command;

use crate::report::Report;
use crate::{cargo, run as run_command};

/// What may be asked for, and the variable that says it to the test.
const OPTIONS: [(&str, &str); 3] =
    [("--seconds", "CHAOS_SECONDS"), ("--seed", "CHAOS_SEED"), ("--agents", "CHAOS_AGENTS")];

/// Builds the program, runs the test, and counts it; what the test prints goes to `out`.
pub(crate) fn run(report: &mut Report, args: &[String], out: &mut dyn Write) -> Result<(), String> {
    let envs = envs(args)?;
    // A test that is named alone does not build the examples.
    run_command(&mut cargo(["build", "--package", "spanwire-examples", "--example", "config-sync"]))?;
    report.count_to(tests().args(["--", "--nocapture"]).envs(envs), out)
}

pub(crate) fn tests() -> Command {
    cargo(["test", "--package", "spanwire-examples", "--test", "chaos"])
}

fn envs(args: &[String]) -> Result<Vec<(&'static str, &str)>, String> {
    let mut args = args.iter();
    let mut envs = Vec::new();
    while let Some(option) = args.next() {
        let known = OPTIONS.iter().find(|(name, _)| name == option);
        let (name, variable) = known.ok_or_else(|| format!("chaos has no option {option}"))?;
        let value = args.next().filter(|value| value.parse::<u64>().is_ok());
        envs.push((*variable, value.ok_or_else(|| format!("{name} takes a number"))?.as_str()));
    }
    Ok(envs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_numbers_with_known_names() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let args = words("--seed 7 --seconds 600");
        assert_eq!(envs(&args), Ok(vec![("CHAOS_SEED", "7"), ("CHAOS_SECONDS", "600")]));
        assert!(envs(&words("--seed")).is_err() && envs(&words("--seed x")).is_err());
        assert!(envs(&words("--nodes 7")).is_err());
    }
}
