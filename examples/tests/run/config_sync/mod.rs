//! The program `config-sync`: its demo, its options, its exit codes.
//!
//! Owns: how it is run here. Never: what is expected of it.

mod agents;
mod files;
mod namespaces;
mod operator;
mod options;
mod words;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::program;

/// Only a failure takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A started `config-sync`: killed when dropped, its words gathered meanwhile.
struct Running {
    child: Child,
    words: Receiver<String>,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = Command::new(program("config-sync"));
        command.args(args).stdout(Stdio::null());
        Running::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Running {
        let command = command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the example was built");
        let lines = BufReader::new(child.stderr.take().expect("it was piped")).lines();
        let (sender, words) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { child, words }
    }

    /// Waits for words with this in them.
    #[track_caller]
    fn says(&self, part: &str) -> String {
        let latest = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        while let Ok(line) = self.words.recv_timeout(latest.saturating_duration_since(Instant::now())) {
            if line.contains(part) {
                return line;
            }
            before.push(line);
        }
        panic!("it did not say {part:?}, but {before:?}")
    }

    /// Waits for its end; gives the exit code and the last words.
    #[track_caller]
    fn ends(mut self) -> (Option<i32>, String) {
        let latest = Instant::now() + PATIENCE;
        let left = || latest.saturating_duration_since(Instant::now());
        // They end when it does.
        let words = std::iter::from_fn(|| self.words.recv_timeout(left()).ok()).last().unwrap_or_default();
        assert!(!left().is_zero(), "it does not end; it said {words}");
        (self.child.wait().expect("it was started by us").code(), words)
    }

    /// The same with all its words.
    #[track_caller]
    fn ends_with_all(mut self) -> (Option<i32>, String) {
        let words: Vec<String> = std::iter::from_fn(|| self.words.recv_timeout(PATIENCE).ok()).collect();
        (self.child.wait().expect("it was started by us").code(), words.join("\n"))
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct World {
    temp: tempfile::TempDir,
    url: String,
}

impl World {
    fn new() -> World {
        let temp = tempfile::tempdir().expect("a folder");
        let url = format!("ipc://{}", temp.path().join("s.ipc").display());
        std::fs::create_dir(temp.path().join("conf")).expect("writable");
        std::fs::write(temp.path().join("conf/a"), "1").expect("writable");
        World { temp, url }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    /// Starts it with `{}` in its arguments for the folder.
    fn run(&self, line: &str) -> Running {
        let folder = self.temp.path().to_str().expect("text");
        let args: Vec<String> = line.split(' ').map(|arg| arg.replace("{}", folder)).collect();
        Running::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn serve(&self, options: &str) -> Running {
        self.run(&format!("serve --bind {} --dir {{}}/conf{options}", self.url))
    }

    fn agent(&self, options: &str) -> Running {
        self.run(&format!("agent --connect {} --out {{}}/out{options}", self.url))
    }
}

/// The operator's side of a world.
impl World {
    fn control(&self) -> String {
        format!("ipc://{}", self.path("control.ipc").display())
    }

    /// Starts a server without a directory, and waits until it serves.
    fn serve_log(&self) -> Running {
        let server =
            self.run(&format!("serve --state {{}}/state --bind {} --control {}", self.url, self.control()));
        server.says("clients at");
        server
    }

    /// Runs a verb to its end: exit code, standard output, error output.
    fn verb(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(program("config-sync"));
        // Settings come from the environment too.
        command.args(args).env("CONFIG_SYNC_CONTROL", self.control()).env("CONFIG_SYNC_AUTHOR", "me");
        let output = command.current_dir(self.temp.path()).stdin(Stdio::null()).output();
        let output = output.expect("the example was built");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Runs a verb that succeeds; gives what it printed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.verb(args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        out
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
