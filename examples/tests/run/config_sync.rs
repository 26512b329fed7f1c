//! The program `config-sync`: its demo, its options, its exit codes.

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
        let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
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

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn the_demo_ends_with_all_equal() {
    let output = Command::new(program("config-sync")).arg("demo").stdin(Stdio::null()).output();
    let output = output.expect("the example was built");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.lines().last().is_some_and(|line| line.ends_with("all equal")), "{printed}");
}

#[test]
fn every_option_does_what_it_says() {
    let w = World::new();
    std::fs::create_dir(w.path("out")).expect("writable");
    std::fs::write(w.path("out/foreign"), "").expect("writable");
    let names = " --cluster c --namespace n";
    let server =
        w.serve(&format!("{names} --state {{}}/server --new-epoch 7 --rescan 1 --bind tcp://127.0.0.1:0"));
    let tcp = server.says("listening at tcp://");
    let tcp = tcp.strip_prefix("listening at ").expect("it begins so");
    let agent = w.agent(&format!(
        "{names} --connect {tcp} --state {{}}/agent --name web --label rack=7 --hook-limit 9 --take-over --on-change \
         env>{{}}/told"
    ));
    assert!(server.says("applied 7/").starts_with("node web "));
    assert!(w.path("server/log").exists() && w.path("agent/identity").exists());
    assert_eq!((text(&w.path("out/a")), w.path("out/foreign").exists()), ("1".into(), false));
    let told = text(&w.path("told"));
    assert!(told.lines().any(|line| line == "CONFIG_SYNC_EPOCH=7"), "{told}");
    // Another cluster is turned away.
    let stranger = w.run(&format!("agent --connect {tcp} --cluster other --out {{}}/stranger"));
    stranger.says("another cluster");
    agent.signal("-TERM");
    assert_eq!(agent.ends().0, Some(0));
    server.signal("-INT");
    assert_eq!(server.ends().0, Some(0));
    // An empty tree only on purpose.
    std::fs::remove_file(w.path("conf/a")).expect("ours");
    let server = w.serve(&format!("{names} --state {{}}/server --allow-empty"));
    server.says("0 keys");
}

#[test]
fn with_keys_only_what_they_signed_is_taken_and_a_check_command_may_refuse_it() {
    let w = World::new();
    for (file, id) in [("one", 1), ("two", 2)] {
        assert_eq!(w.run(&format!("keygen {{}}/{file} --id {id}")).ends().0, Some(0));
    }
    // Never over a key that is there.
    assert_eq!(w.run("keygen {}/one").ends().0, Some(2));
    let server = w.serve(" --key {}/two --trust {}/one.pub");
    let agent = w.agent(" --trust {}/one.pub --trust {}/two.pub --validate ./a");
    // Its one file is no program, so the command that it is fails.
    assert!(server.says("Check: ").contains("applied -"));
    agent.says("state: Held");
    agent.signal("-TERM");
    assert_eq!(agent.ends().0, Some(0));
    let agent = w.agent(" --trust {}/two.pub --validate-limit 9 --validate true");
    server.says("applied 1/");
    assert_eq!(text(&w.path("out/a")), "1");
    drop(agent);
    let stranger = w.run(&format!("agent --connect {} --trust {{}}/one.pub --out {{}}/stranger", w.url));
    stranger.says("no trusted key signed");
    assert!(!w.path("stranger/a").exists());
}

#[test]
fn a_request_that_makes_no_sense_is_2() {
    let w = World::new();
    std::fs::create_dir(w.path("out")).expect("writable");
    std::fs::write(w.path("out/precious"), "mine").expect("writable");
    for (running, why) in [
        (w.run("serve --dir {}/conf"), "--help"),
        (w.agent(" --label x"), "--help"),
        (w.agent(""), "--take-over"),
        (w.agent(" --state {}/out/state"), "--state"),
        (w.agent(" --trust {}/conf/a"), "not a key"),
        (w.serve(" --key {}/absent"), "absent"),
        (w.run("keygen {}/key --id 0"), "--help"),
        (w.serve(" --state {}/conf/state"), "--state"),
        (w.run("serve --bind tcp://127.0.0.1:0 --dir /"), "--state"),
        (w.run("agent --connect tcp://127.0.0.1:1 --out /proc --state {}/state"), "mount point"),
    ] {
        let (code, words) = running.ends();
        assert!(code == Some(2) && words.contains(why), "{code:?}: {words}");
    }
    assert_eq!(text(&w.path("out/precious")), "mine");
}

#[test]
fn a_folder_that_cannot_be_used_is_3_and_an_address_4() {
    let w = World::new();
    let taken = w.serve(" --state {}/taken");
    taken.says("listening at");
    for (code, running) in [
        (3, w.run("serve --bind tcp://127.0.0.1:0 --dir {}/absent")),
        (3, w.run("serve --bind tcp://127.0.0.1:0 --dir {}/conf --state {}/taken")),
        (3, w.run("agent --connect tcp://127.0.0.1:1 --out {}/conf/a --state {}/file")),
        (4, w.run("serve --bind nowhere://x --dir {}/conf")),
        (4, w.run("agent --connect tcp://no-port --out {}/other")),
    ] {
        let (ended, words) = running.ends();
        assert_eq!(ended, Some(code), "{words}");
    }
}

#[test]
fn a_tied_process_ends_with_whoever_started_it() {
    let w = World::new();
    let mut server = w.serve(" --tied");
    server.says("listening at");
    drop(server.child.stdin.take());
    assert_eq!(server.ends().0, Some(0));
}
