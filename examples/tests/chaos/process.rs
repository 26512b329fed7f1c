//! One process of config-sync: started, killed, stopped and continued, by its own process id; its words, as they come.
//!
//! Owns: the child, the thread that reads what it says. Never: another process, save what a killed one left behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// A line of a process.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) who: usize,
    pub(crate) at: Instant,
    pub(crate) text: String,
}

/// A process, or the place of one that is dead.
#[derive(Debug)]
pub(crate) struct Process {
    number: usize,
    program: PathBuf,
    args: Vec<String>,
    words: Sender<Line>,
    running: Option<(Child, JoinHandle<()>)>,
    stopped: bool,
    pub(crate) starts: u32,
}

impl Process {
    pub(crate) fn new(number: usize, program: &Path, args: Vec<String>, words: Sender<Line>) -> Process {
        let program = program.to_owned();
        Process { number, program, args, words, running: None, stopped: false, starts: 0 }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn start(&mut self) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        // Tied: it ends when this process does, however that ends.
        command.args(&self.args).arg("--tied");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.program.display()))?;
        let (who, words, said) = (self.number, self.words.clone(), child.stderr.take());
        let reader = std::thread::spawn(move || {
            for text in said.into_iter().flat_map(|said| BufReader::new(said).lines().map_while(Result::ok)) {
                if words.send(Line { who, at: Instant::now(), text }).is_err() {
                    return;
                }
            }
        });
        self.running = Some((child, reader));
        self.stopped = false;
        self.starts += 1;
        Ok(())
    }

    /// Whether it ended although nobody killed it.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let (child, _) = self.running.as_mut()?;
        Some(child.try_wait().ok()??.to_string())
    }

    /// `kill -9`. All that it said has been sent on when this returns.
    pub(crate) fn kill(&mut self) {
        let Some((mut child, reader)) = self.running.take() else { return };
        let _ = child.kill();
        let _ = child.wait();
        let _ = reader.join();
    }

    /// Stops it, or lets it go on.
    pub(crate) fn stop(&mut self, stop: bool) {
        if self.stopped == stop {
            return;
        }
        if let Some((child, _)) = &self.running {
            self.stopped = stop;
            let _ = kill_process(Pid::from_child(child), if stop { Signal::STOP } else { Signal::CONT });
        }
    }

    fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|(child, _)| child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the end of what killed processes left behind: the hook of an agent ends a little after it, and its words could
/// stand among those of the next life.
///
/// This process has to be the one that orphans are given to.
pub(crate) fn bury_orphans(known: &[&Process]) {
    let own = std::process::id();
    let children = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // "id (name) state parent …", and the name may hold anything.
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (parent == own).then_some(id)
    });
    for id in children.filter(|id| known.iter().all(|process| process.id() != Some(*id))) {
        let _ = waitpid(Pid::from_raw(id.cast_signed()), WaitOptions::empty());
    }
}
