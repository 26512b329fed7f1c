//! A command of the operator's, run by `sh -c` with a change in its environment.
//!
//! It runs in a process group with a guard, a process that waits for the agent's end and then kills the group: an agent
//! that was killed cannot, and the next one would run a command beside that of the last. What a command that has ended
//! left in the background has no guard.
//!
//! Owns: the process with its group, its time, the last words of its error output. Never: outlives the agent, needs
//! a thread, keeps a descriptor of a command that has ended.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::Head;
use crate::process::Shutdown;

/// Longest list of keys that is put into the environment, in bytes; the file has all of it.
const ENVIRONMENT: usize = 64 << 10;
/// Most of the error output that is kept, in bytes.
const WORDS: usize = 900;
/// What a pipe holds if nobody made it larger, in bytes: more was not left behind by a command that ended.
const PIPE: usize = 64 << 10;

/// Why the command did not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be run. The cause may pass.
    NotRun(String),
    /// It ran, and failed or took too long.
    Failed(String),
    /// It was ended because the agent ends.
    Ended,
}

/// What a command is told.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    pub(crate) head: &'a Head,
    /// The directory that is kept.
    pub(crate) out: &'a Path,
    /// Keys, one a line.
    pub(crate) changed: &'a [u8],
    /// The file that holds them.
    pub(crate) changed_file: &'a Path,
}

/// The command, not yet run.
pub(crate) fn shell(command: &str, told: &Told<'_>) -> Command {
    let Told { head, out, changed, changed_file } = told;
    let mut run = Command::new("sh");
    run.arg("-c")
        .arg(command)
        .env("CONFIG_SYNC_REVISION", head.position.rev.to_string())
        .env("CONFIG_SYNC_EPOCH", head.position.epoch.number.to_string())
        .env("CONFIG_SYNC_TOKEN", head.position.to_string())
        .env("CONFIG_SYNC_OUT", out)
        .env("CONFIG_SYNC_CHANGED_FILE", changed_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if changed.len() <= ENVIRONMENT {
        let lines = changed.strip_suffix(b"\n").unwrap_or(changed);
        run.env("CONFIG_SYNC_CHANGED", OsStr::from_bytes(lines));
    }
    run
}

/// Runs it to its end, for `limit` at most; its error output is the reason if it fails.
pub(crate) fn run(command: &mut Command, limit: Duration, shutdown: &Shutdown) -> Result<(), Failure> {
    let not_run = |e| Failure::NotRun(format!("cannot start sh: {e}"));
    let guard = Guard::start().map_err(not_run)?;
    // In the guard's group: what it starts can be ended with it.
    let mut child = command.process_group(guard.group()).spawn().map_err(not_run)?;
    let mut words = Words::of(&mut child);
    let status = wait(&mut child, &mut words, limit, shutdown).inspect_err(|_| guard.end(&mut child))?;
    if status.success() {
        return Ok(());
    }
    // Once more than the pipe holds: its end may have come between the last look and the exit.
    (0..=PIPE / Words::AT_ONCE).take_while(|_| words.more()).for_each(drop);
    Err(Failure::Failed(with(status.to_string(), &words)))
}

/// What became of it, and its last words, if it had any.
fn with(end: String, words: &Words) -> String {
    match words.text().trim_end() {
        "" => end,
        said => format!("{end}: {said}"),
    }
}

fn wait(
    child: &mut Child,
    words: &mut Words,
    limit: Duration,
    shutdown: &Shutdown,
) -> Result<ExitStatus, Failure> {
    // Later than the clock can tell is never.
    let until = Instant::now().checked_add(limit);
    loop {
        // A talkative command must not block on its pipe.
        let talking = words.more();
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if until.is_some_and(|until| Instant::now() >= until) => {
                return Err(Failure::Failed(with(format!("not done after {limit:?}"), words)));
            }
            Ok(None) if shutdown.is_over() => return Err(Failure::Ended),
            Ok(None) if talking => {}
            // There is no portable wait with a limit; commands are rare and this thread has nothing else to do.
            Ok(None) => drop(shutdown.0.recv_timeout(Duration::from_millis(5))),
            Err(e) => return Err(Failure::Failed(e.to_string())),
        }
    }
}

/// Error output, read without waiting for it. What the command left running in the background loses the pipe
/// when the command is done.
struct Words {
    pipe: Option<ChildStderr>,
    kept: Vec<u8>,
}

impl Words {
    const AT_ONCE: usize = 4 << 10;

    fn of(child: &mut Child) -> Words {
        let nonblocking = |pipe: &ChildStderr| rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).is_ok();
        Words { pipe: child.stderr.take().filter(nonblocking), kept: Vec::new() }
    }

    /// Reads some; whether there was any.
    fn more(&mut self) -> bool {
        let mut buffer = [0; Self::AT_ONCE];
        let Some(Ok(n @ 1..)) = self.pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) else { return false };
        self.kept.extend_from_slice(&buffer[..n]);
        // The last words say most.
        self.kept.drain(..self.kept.len().saturating_sub(WORDS));
        true
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// The first process of the group: when this process ends in whatever way, the pipe to it ends, and it kills the group.
struct Guard(Child);

impl Guard {
    fn start() -> std::io::Result<Guard> {
        let mut command = Command::new("sh");
        command.args(["-c", "read -r end || kill -s KILL 0"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Guard)
    }

    fn group(&self) -> i32 {
        // A process id always fits; 0, a group of its own, would only lose the guard.
        i32::try_from(self.0.id()).unwrap_or_default()
    }

    /// Ends the command and all in its group.
    fn end(&self, command: &mut Child) {
        if let Some(group) = rustix::process::Pid::from_raw(self.group()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = command.kill();
        let _ = command.wait();
    }
}

impl Drop for Guard {
    /// Ended before its pipe is, it kills nobody.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
