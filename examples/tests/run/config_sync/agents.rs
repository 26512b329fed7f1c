//! Agents that are killed, and the demo.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use super::super::program;
use super::{PATIENCE, World, text};

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
fn an_agent_that_asks_for_a_namespace_that_nobody_has_is_told() {
    let w = World::new();
    let server = w.serve("");
    let agent = w.agent(" --namespace other");
    agent.says("namespace \"other\": this server has none of this name");
    drop(agent);
    server.says("disconnected: a local peer: ");
}
