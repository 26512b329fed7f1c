//! The command `spanwire`: nanocat's job. Sends and receives messages from the shell.
//!
//! Messages go to the standard output and nothing else does; errors and `--events` go to the error output. The
//! exit code is 0 only if all that was asked for has happened (see `--help`).
//!
//! Owns: nothing but its arguments. Never: needs more of the library than its public face.
#![forbid(unsafe_code)]

mod args;
mod events;
mod format;
mod run;
mod stop;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match run::run(cli.socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => {
            if let Some(text) = end.text() {
                eprintln!("spanwire: {text}");
            }
            ExitCode::from(end.code())
        }
    }
}
