//! The program `config-sync`: its demo, its options, its exit codes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use spanwire_config::store::Store;
use spanwire_config::{Head, State};

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

#[test]
fn resync_discards_what_a_node_holds_and_nothing_else() {
    let w = World::new();
    let state = w.temp.path().join("n.state");
    let dir = state.to_str().expect("text");
    let resync = |more: &[&str]| w.verb(&[&["resync", "--state", dir], more].concat());
    assert_eq!(resync(&[]).0, Some(2), "it is to be said what becomes of it");
    let (code, _, err) = resync(&["--discard"]);
    assert_eq!((code, err.contains("no state folder"), state.exists()), (Some(2), true, false), "{err}");
    let mut store = Store::open(&state).expect("writable");
    let head = Head { digest: State::new().digest(), ..Head::default() };
    store.save(&head, &State::new()).expect("written");
    assert_eq!(resync(&["--discard"]).0, Some(3), "it is in use");
    let before = store.identity();
    drop(store);
    let (code, out, err) = resync(&["--discard"]);
    assert!(code == Some(0) && out.contains("discarded: "), "{out}{err}");
    let mut store = Store::open(&state).expect("free");
    assert!(store.load(1 << 20).newest.is_none());
    assert_eq!(store.identity().id, before.id);
    assert!(store.identity().boot > before.boot);
    drop(store);
    std::fs::create_dir(state.join("log")).expect("writable");
    assert_eq!(resync(&["--discard"]).0, Some(2), "a server's");
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn an_operator_changes_looks_goes_back_and_carries_away() {
    let w = World::new();
    let _server = w.serve_log();
    assert_eq!(w.ok(&["set", "a", "1", "--expect", "0:0", "-m", "begin"]), "1:1\n");
    std::fs::write(w.path("value"), "x\ny\nz").expect("writable");
    assert_eq!(w.ok(&["set", "d/t", "--file", "value"]), "1:2\n");
    assert_eq!((w.ok(&["get", "a"]), w.ok(&["get", "d/t"])), ("1".into(), "x\ny\nz".into()));
    assert_eq!(w.ok(&["set", "d/t", "x\nq\nz"]), "1:3\n");
    assert_eq!(w.ok(&["diff", "2"]), "changed d/t\n  - y\n  + q\n");
    assert_eq!(w.ok(&["diff", "1:1", "2"]), "added d/t\n  + x\n  + y\n  + z\n");
    assert_eq!(w.ok(&["list"]), "1  a\n5  d/t\n");
    assert_eq!(w.ok(&["delete", "a", "b"]), "1:4\n");
    assert_eq!(w.verb(&["get", "a"]).0, Some(1));
    assert_eq!(w.ok(&["get", "a", "--at", "3"]), "1");
    // A directory, and what is not in it goes, in one commit.
    std::fs::create_dir_all(w.path("tree/e")).expect("writable");
    std::fs::write(w.path("tree/e/f"), "new").expect("writable");
    assert_eq!(w.ok(&["apply", "tree", "--prefix", "d/", "--prune"]), "1:5\n");
    assert_eq!(w.ok(&["apply", "tree", "--prefix", "d/", "--prune"]), "1:5\n", "nothing to change");
    assert_eq!(w.ok(&["list"]), "3  d/e/f\n");
    std::fs::write(w.path("list"), r#"{"put": {"p": "1", "q": "2"}, "delete": ["d/e/f"]}"#)
        .expect("writable");
    assert_eq!(w.ok(&["apply", "list"]), "1:6\n");
    assert_eq!(w.ok(&["revert", "2"]), "1:7\n");
    assert_eq!(w.ok(&["list"]), "1  a\n5  d/t\n");
    let history = w.ok(&["history", "--json"]);
    let commits: Vec<_> = history.lines().map(json).collect();
    assert_eq!(commits.len(), 7);
    assert_eq!(
        (&commits[0]["note"], &commits[1]["put"], &commits[6]["author"]),
        (&"back to 1:2".into(), &serde_json::json!(["p", "q"]), &"me".into())
    );
    assert_eq!(w.ok(&["history", "-k", "-n", "1"]).lines().count(), 5, "four keys and the commit");
    w.ok(&["export", "file", "--at", "6"]);
    assert_eq!(w.ok(&["import", "file"]), "2:8\n");
    assert_eq!(w.ok(&["list"]), "1  p\n1  q\n");
    // What was printed by a request that had no answer may be repeated.
    let id = "0123456789abcdef0123456789abcdef";
    assert_eq!(w.ok(&["set", "a", "1", "--request", id]), "2:9\n");
    let (code, out, err) = w.verb(&["set", "a", "1", "--request", id]);
    assert_eq!((code, &out[..]), (Some(0), "2:9\n"), "{err}");
    // Each commit as it is made.
    let mut watch = Command::new(program("config-sync"));
    watch.args(["watch", "--json", "--after", "8", "--control", &w.control()]).stdout(Stdio::piped());
    let mut watch = watch.spawn().expect("the example was built");
    let mut lines = BufReader::new(watch.stdout.take().expect("it was piped")).lines();
    let mut next = || json(&lines.next().expect("a line").expect("text"));
    assert_eq!(next()["at"]["revision"], 9);
    w.ok(&["set", "a", "2"]);
    assert_eq!(next()["put"], serde_json::json!(["a"]));
    watch.kill().and_then(|()| watch.wait()).expect("it was started by us");
}

#[test]
fn an_operator_sees_and_waits_for_every_node() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let agent = |name: &str, hook: &str| {
        let args =
            format!("agent --connect {} --out {{}}/{name} --label half={hook} --on-change {hook}", w.url);
        w.run(&args)
    };
    let (_good, bad) = (agent("good", "true"), agent("bad", "false"));
    server.says("Hook");
    assert_eq!(w.ok(&["wait", "--level", "visible", "--min", "2"]), "ok  bad\nok  good\n");
    let wait = |more: &[&str]| w.verb(&[&["wait", "--timeout", "0.5"], more].concat());
    let (code, out, _) = wait(&[]);
    assert_eq!(code, Some(6), "a node refused");
    assert!(out.contains("refused  bad   1:1 Hook: exit status: 1"), "{out}");
    assert_eq!(wait(&["--label", "half=true"]).0, Some(0));
    let (code, out, _) = wait(&["--name", "good", "--name", "none", "--json"]);
    let lists = json(&out);
    assert_eq!(code, Some(7), "one is silent");
    assert_eq!((&lists["ok"][0]["name"], &lists["silent"][0]["name"]), (&"good".into(), &"none".into()));
    assert_eq!(wait(&["--label", "half=none"]).0, Some(7), "nobody");
    bad.signal("-TERM");
    server.says("node bad");
    w.ok(&["set", "a", "2"]);
    w.ok(&["wait", "--name", "good"]);
    let status = json(&w.ok(&["status", "--json"]));
    let node = |name: &str| {
        let nodes = status["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("{name} in {status}"))
    };
    assert_eq!((&node("good")["lag"], &node("good")["here"]), (&0.into(), &true.into()));
    assert_eq!((&node("bad")["here"], &node("bad")["applied"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(node("bad")["refused"][0]["code"], "Hook");
    let table = w.ok(&["status"]);
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).expect(name).to_owned();
    assert!(table.starts_with("config: revision 1:2, 1 keys, 2 bytes; takes commits; 1 of 2 nodes here\n"));
    assert_eq!(
        line("good").split_whitespace().collect::<Vec<_>>(),
        ["good", "here", "1:2", "1:2", "1:2", "0"]
    );
    assert!(line("bad").contains("away") && line("bad").contains("1:1 Hook: exit status: 1"), "{table}");
}

#[test]
fn an_operator_rolls_a_change_out_in_stages_and_takes_one_back() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let agent =
        |name: &str| w.run(&format!("agent --connect {} --out {{}}/{name} --label tier={name}", w.url));
    let (_canary, _other) = (agent("canary"), agent("other"));
    w.ok(&["wait", "--min", "2"]);
    let canary = "100%,tier=canary";
    assert_eq!(w.ok(&["set", "a", "2", "--rollout", canary, "--rollout", "100%"]), "1:2\n");
    assert_eq!(w.ok(&["wait"]), "ok  canary\n");
    assert_eq!((text(&w.path("canary/a")), text(&w.path("other/a"))), ("2".into(), "1".into()));
    let (code, _, err) = w.verb(&["set", "b", "1"]);
    assert!(code == Some(5) && err.contains("the rollout of 1:2 is open"), "{err}");
    let status = w.ok(&["status"]);
    assert!(status.contains("rollout of 1:2, all others at 1:1: stage 1 of 2;"), "{status}");
    let rollout = json(&w.ok(&["rollout", "status", "--json"]));
    assert_eq!((&rollout["stage"], &rollout["stages"][0]["labels"]["tier"]), (&1.into(), &"canary".into()));
    assert_eq!(w.ok(&["rollout", "pause"]), "1:2\n");
    assert!(w.ok(&["rollout", "status"]).contains("(paused)"));
    assert_eq!(w.verb(&["rollout", "abort", "--at", "1"]).0, Some(5), "another revision's");
    assert_eq!(w.ok(&["rollout", "abort"]), "1:3\n");
    assert_eq!(w.verb(&["rollout", "status"]).0, Some(6));
    assert_eq!(w.verb(&["wait", "--at", "2"]).0, Some(5), "aborted");
    w.ok(&["wait", "--min", "2"]);
    assert_eq!((text(&w.path("canary/a")), text(&w.path("other/a"))), ("1".into(), "1".into()));
    // Superseded: what all others have is changed.
    std::fs::create_dir(w.path("tree")).expect("writable");
    std::fs::write(w.path("tree/b"), "3").expect("writable");
    w.ok(&["set", "a", "4", "--rollout", canary, "--salt", "word"]);
    assert_eq!(w.ok(&["apply", "tree", "--supersede"]), "1:5\n");
    assert_eq!(w.ok(&["list"]), "1  a\n1  b\n");
    assert_eq!(w.ok(&["get", "a"]), "1");
    // And one that goes on by itself.
    w.ok(&["set", "a", "6", "--rollout", &format!("{canary},applied:100%")]);
    server.says("revision 1/");
    let latest = Instant::now() + PATIENCE;
    while text(&w.path("other/a")) != "6" && Instant::now() < latest {
        w.ok(&["wait", "--at", "5", "--level", "visible"]);
    }
    assert_eq!((text(&w.path("canary/a")), text(&w.path("other/a"))), ("6".into(), "6".into()));
    for wrong in ["10", "0%", "10%,what"] {
        assert_eq!(w.verb(&["set", "a", "7", "--rollout", wrong]).0, Some(2), "{wrong}");
    }
}

#[test]
fn scripts_tell_conflict_refusal_and_time_apart() {
    let w = World::new();
    let (code, _, err) = w.verb(&["status", "--timeout", "0.2"]);
    assert!(code == Some(7) && err.contains("--control"), "{err}");
    let server = w.serve_log();
    let (code, _, err) = w.verb(&["set", "a", "1"]);
    assert!(code == Some(6) && err.contains("expect 0:0"), "{err}");
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let (code, _, err) = w.verb(&["set", "a", "1", "--expect", "7"]);
    assert!(code == Some(5) && err.contains("the newest revision is 1:1"), "{err}");
    assert_eq!(w.verb(&["set", "", "1"]).0, Some(2));
    assert_eq!(w.verb(&["set", "a", "--file", "none"]).0, Some(3));
    std::fs::write(w.path("list"), r#"{"put": {"p": 1}}"#).expect("writable");
    assert_eq!(w.verb(&["apply", "list"]).0, Some(3));
    assert_eq!(w.verb(&["import", "list"]).0, Some(3));
    assert_eq!(w.verb(&["status", "--control", "nonsense"]).0, Some(4));
    assert_eq!(w.verb(&["revert", "9"]).0, Some(6));
    let (code, _, err) = w.verb(&["status", "--namespace", "other"]);
    assert!(code == Some(6) && err.contains("config"), "{err}");
    server.signal("-TERM");
    assert_eq!(server.ends().0, Some(0));
    // Where a directory is published, there is no other source of truth.
    let server = w.serve(&format!(" --control {}", w.control()));
    server.says("revision 1/");
    for change in [&["set", "a", "2"][..], &["adopt"]] {
        let (code, _, err) = w.verb(change);
        assert!(code == Some(6) && err.contains("conf on the server is what is published"), "{err}");
    }
    assert_eq!(w.ok(&["get", "a"]), "1");
}

#[test]
fn a_watch_ends_when_nobody_reads_it_any_more() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let mut command = Command::new(program("config-sync"));
    command.args(["watch", "--after", "1:1", "--control", &w.control()]).stdout(Stdio::piped());
    let mut watch = Running::spawn(&mut command);
    drop(watch.child.stdout.take());
    w.ok(&["set", "a", "2"]);
    assert_eq!(watch.ends().0, Some(0));
}

#[test]
fn a_lost_store_goes_on_from_what_a_node_holds() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let _agent = w.agent(" --name one");
    server.says("applied 1/");
    server.signal("-TERM");
    assert_eq!(server.ends().0, Some(0));
    std::fs::remove_dir_all(w.path("state")).expect("ours");
    let server = w.serve_log();
    server.says("connected");
    let latest = Instant::now() + PATIENCE;
    let table = loop {
        let (code, out, err) = w.verb(&["adopt"]);
        match code {
            Some(0) => break out,
            // It has not said what it holds yet.
            Some(6) if Instant::now() < latest => {}
            other => panic!("{other:?}: {err}"),
        }
    };
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), &rows[1][..3]), (2, &["1:1", "1", "all"][..]), "{table}");
    let (code, _, err) = w.verb(&["set", "a", "2"]);
    assert!(code == Some(6) && err.contains("adopt what they hold"), "{err}");
    assert_eq!(w.verb(&["adopt", "--at", "7"]).0, Some(2), "without its epoch");
    assert_eq!(w.verb(&["adopt", "--at", "1:7"]).0, Some(6));
    assert_eq!(w.ok(&["adopt", "--highest"]), "2:2\n");
    for late in [&["init"][..], &["adopt", "--highest"], &["adopt"]] {
        let (code, _, err) = w.verb(late);
        assert!(code == Some(6) && err.contains("nothing was lost here"), "{late:?}: {err}");
    }
    assert_eq!((w.ok(&["get", "a"]), w.ok(&["wait"])), ("1".into(), "ok  one\n".into()));
    assert_eq!(w.ok(&["new-epoch"]), "3:3\n");
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
fn whenever_an_agent_is_killed_its_link_leads_to_one_whole_revision() {
    let w = World::new();
    let server = w.serve_log();
    let put = |n: u32| {
        std::fs::write(w.path("list"), format!(r#"{{"put": {{"a": "{n}", "d/z": "{n}"}}}}"#))
            .expect("writable");
        let expect = if n == 1 { &["--expect", "0:0"][..] } else { &[] };
        w.ok(&[&["apply", "list"], expect].concat());
    };
    let shown = || {
        // Whoever enters by the link and stays inside reads one revision.
        let inside = std::fs::canonicalize(w.path("out/current")).ok()?;
        let (a, z) = (text(&inside.join("a")), text(&inside.join("d/z")));
        assert_eq!(a, z, "in {}", inside.display());
        a.parse::<u32>().ok()
    };
    let mut last = None;
    for n in 1..=18 {
        put(n);
        let agent = w.agent(" --layout versioned --keep 2");
        // At its start, when it has met the server, while or after it puts the revision in place.
        match n % 3 {
            0 => drop(agent.says("connected")),
            1 => drop(agent.says("revision 1/")),
            _ => {}
        }
        drop(agent);
        assert!(shown() >= last, "{last:?}, then {:?}", shown());
        last = shown();
    }
    let _agent = w.agent(" --layout versioned --keep 2");
    server.says("applied 1/");
    w.ok(&["wait", "--timeout", "20"]);
    assert_eq!(shown(), Some(18));
    assert!(
        std::fs::read_dir(w.path("out")).expect("it is there").count() <= 3,
        "two revisions and the link"
    );
}

#[test]
fn an_option_goes_before_the_environment_and_that_before_the_file() {
    let w = World::new();
    let file = |text: &str| {
        let text = text.replace("{}", w.temp.path().to_str().expect("text"));
        std::fs::write(w.path("settings"), text).expect("writable");
    };
    file(
        "control = 'ipc://{}/control.ipc'\nauthor = 'file'\n[serve]\nbind = ['ipc://{}/s.ipc', 'tcp://127.0.0.1:0']\n\
         state = '{}/state'\nrescan = 7\nallow-empty = true\n[agent]\nconnect = 'ipc://{}/s.ipc'\nname = 'file'\n\
         label = ['a=1', 'b=2']\nout = '{}/out'\n[set]\nnote = 'by file'\n",
    );
    let server = w.run("serve --settings {}/settings");
    server.says("listening at tcp://");
    let set = |args: &[&str], env: Option<&str>| {
        let mut command = Command::new(program("config-sync"));
        command.args(["set", "a", "1"]).args(args).env("CONFIG_SYNC_SETTINGS", w.path("settings"));
        command.envs(env.map(|author| ("CONFIG_SYNC_AUTHOR", author)));
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().expect("it was built").success());
        let last = json(w.ok(&["history", "-n", "1", "--json"]).trim_end());
        (last["author"].as_str().expect("text").to_owned(), last["note"].as_str().expect("text").to_owned())
    };
    let (by_file, by) = ("by file".to_owned(), |who: &str| who.to_owned());
    assert_eq!(set(&["--expect", "0:0"], None), (by("file"), by_file.clone()));
    assert_eq!(set(&[], Some("env")), (by("env"), by_file));
    assert_eq!(set(&["--author", "flag", "-m", "flag"], Some("env")), (by("flag"), by("flag")));
    let _agent = w.run("agent --settings={}/settings --name flag");
    assert!(server.says("applied 1/").starts_with("node flag "));
    let nodes = json(&w.ok(&["status", "--json"]));
    assert_eq!(nodes["nodes"][0]["labels"], serde_json::json!({"a": "1", "b": "2"}));
    // None is named by an empty name.
    let mut command = Command::new(program("config-sync"));
    let command = command.args(["keygen", &w.path("key").to_string_lossy()]).env("CONFIG_SYNC_SETTINGS", "");
    assert!(command.stdout(Stdio::null()).status().expect("it was built").success());
    for (text, code, why) in [
        ("x = 1", 2, "no verb has an option \"x\""),
        ("[serve]\nx = 1", 2, "serve: x: there is no such option"),
        ("[nothing]\nx = 1", 2, "there is no verb \"nothing\""),
        ("[serve]\nnew-epoch = 3", 2, "only on the command line"),
        ("[agent]\ntake-over = true", 2, "only on the command line"),
        ("[serve]\nallow-empty = 1", 2, "true or false"),
        ("[agent]\nname = ['a']", 2, "a text, a number, or a list"),
        ("[agent]\nkeep = 'many'", 2, "'--help'"),
        ("= 1", 2, "settings"),
    ] {
        file(text);
        let (ended, words) = w.run("agent --settings {}/settings --out {}/other").ends_with_all();
        assert!(ended == Some(code) && words.contains(why), "{text}: {ended:?} {words}");
    }
    assert_eq!(w.run("agent --settings {}/none --out {}/other").ends().0, Some(3));
}

/// Gives the words that are written to this pipe as they come; ends when all who write have ended.
fn piped(path: &Path) -> Receiver<String> {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo is there").success());
    let (sender, words) = channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Opened when the other end is.
        let lines = BufReader::new(std::fs::File::open(path).expect("ours")).lines();
        lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    words
}

#[test]
fn what_a_killed_agent_ran_ends_with_it_and_all_that_it_started() {
    let w = World::new();
    let _server = w.serve("");
    for option in ["validate", "on-change"] {
        let alive = w.path(option);
        // A process in the background, and one that waits for another: each holds the pipe open while it lives.
        let script = format!(
            "exec > {}\nsleep 1000 &\necho $CONFIG_SYNC_REVISION\nsh -c 'sleep 1000; true'\n",
            alive.display()
        );
        std::fs::write(w.path("script"), script).expect("writable");
        for round in 0..2 {
            let words = piped(&alive);
            // The last of its kind is no more when another runs.
            let agent = w.agent(&format!(" --{option} sh\t{{}}/script --name {option}"));
            assert_eq!(words.recv_timeout(PATIENCE).as_deref(), Ok("1"), "{option}, {round}");
            // By SIGKILL.
            drop(agent);
            let ended = words.recv_timeout(PATIENCE);
            assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "{option}, {round}");
            std::fs::remove_file(&alive).expect("ours");
        }
    }
}

#[test]
fn status_says_what_is_not_on_a_disk() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    // Where directories stand in the way nothing can be written.
    let blocked = ["slot-a.new", "slot-b.new"].map(|name| w.path("relay").join(name));
    blocked.iter().for_each(|path| std::fs::create_dir_all(path).expect("writable"));
    let relay = w.run(&format!("relay --connect {} --bind ipc://{{}}/r.ipc --state {{}}/relay", w.url));
    assert!(relay.says("not kept on disk").starts_with("ALARM: "));
    let latest = Instant::now() + PATIENCE;
    let await_status = |volatile: bool| {
        loop {
            let status = json(&w.ok(&["status", "--json"]));
            if status["nodes"][0]["volatile"] == volatile {
                break;
            }
            assert!(Instant::now() < latest, "{volatile} in {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
        w.ok(&["status"])
    };
    let table = await_status(true);
    assert!(table.contains("relay  here, volatile  "), "{table}");
    blocked.iter().for_each(|path| std::fs::remove_dir(path).expect("ours"));
    relay.says("the disk takes revisions again");
    let table = await_status(false);
    assert!(table.contains("relay  here  1:1 "), "{table}");
}

#[test]
fn every_option_does_what_it_says() {
    let w = World::new();
    std::fs::create_dir(w.path("out")).expect("writable");
    std::fs::write(w.path("out/foreign"), "").expect("writable");
    std::fs::write(w.path("t"), "{{ keys.a }} of {{ name }}\n").expect("writable");
    let names = " --cluster c --namespace n";
    let server =
        w.serve(&format!("{names} --state {{}}/server --new-epoch 7 --rescan 1 --bind tcp://127.0.0.1:0"));
    let tcp = server.says("listening at tcp://");
    let tcp = tcp.strip_prefix("listening at ").expect("it begins so");
    let agent = w.agent(&format!(
        "{names} --connect {tcp} --state {{}}/agent --name web --label rack=7 --hook-limit 9 --take-over --on-change \
         env>{{}}/told --layout versioned --keep 2 --template {{}}/t:made"
    ));
    assert!(server.says("applied 7/").starts_with("node web "));
    assert!(w.path("server/log").exists() && w.path("agent/identity").exists());
    assert_eq!((text(&w.path("out/current/a")), w.path("out/foreign").exists()), ("1".into(), false));
    let told = text(&w.path("told"));
    assert!(
        told.lines().any(|line| line.starts_with("CONFIG_SYNC_TREE=") && line.contains("/out/7-")),
        "{told}"
    );
    assert_eq!(text(&w.path("out/current/made")), "1 of web\n");
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
fn an_agent_that_asks_for_a_namespace_that_nobody_has_is_told() {
    let w = World::new();
    let server = w.serve("");
    let agent = w.agent(" --namespace other");
    agent.says("namespace \"other\": this server has none of this name");
    drop(agent);
    server.says("disconnected: a local peer: ");
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
        (w.run("serve --dir {}/conf"), "no address to listen at (--bind)"),
        (w.run("agent --out {}/none"), "no server to connect to (--connect)"),
        (w.run("serve --bind tcp://127.0.0.1:0"), "no state folder (--state)"),
        (
            w.run("serve --bind tcp://127.0.0.1:0 --state {}/s"),
            "(--dir) nor an address for commits (--control)",
        ),
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
