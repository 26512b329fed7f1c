//! The operator's verbs, against a server that runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use spanwire_config::store::Store;
use spanwire_config::{Head, State};

use super::super::program;
use super::{PATIENCE, Running, World, json, text};

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
    // Who is not known yet may come while there is time; who comes in time is no failure.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| w.ok(&["wait", "--timeout", "20", "--name", "good", "--name", "late"]));
        let late = agent("late", "true");
        assert_eq!(waits.join().expect("no panic"), "ok  good\nok  late\n");
        drop(late);
    });
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
    assert!(table.starts_with("config: revision 1:2, 1 keys, 2 bytes; takes commits; 1 of 3 nodes here\n"));
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
    server.says("ALARM: nodes hold 1/");
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
    let (code, _, err) = w.verb(&["init"]);
    assert!(code == Some(6) && err.contains("nodes hold 1:1") && err.contains("--discard"), "{err}");
    assert_eq!(w.verb(&["adopt", "--at", "7"]).0, Some(2), "without its epoch");
    assert_eq!(w.verb(&["adopt", "--at", "1:7"]).0, Some(6));
    assert_eq!(w.ok(&["adopt", "--highest"]), "2:2\n");
    for late in [&["init"][..], &["adopt", "--highest"], &["adopt"]] {
        let (code, _, err) = w.verb(late);
        assert!(code == Some(6) && err.contains("nothing was lost here"), "{late:?}: {err}");
    }
    assert_eq!((w.ok(&["get", "a"]), w.ok(&["wait"])), ("1".into(), "ok  one\n".into()));
    // Who began each is in the history, and it begins only where the newest is what is expected.
    assert_eq!(w.verb(&["new-epoch", "--expect", "1:1"]).0, Some(5));
    assert_eq!(w.ok(&["new-epoch", "--expect", "2:2", "--author", "ana", "-m", "restored"]), "3:3\n");
    w.ok(&["export", "kept"]);
    assert_eq!(w.verb(&["import", "kept", "--expect", "2:2"]).0, Some(5));
    assert_eq!(w.ok(&["import", "kept", "--expect", "3:3"]), "4:4\n");
    let said = w.ok(&["history", "--json"]);
    let commits: Vec<_> = said.lines().map(json).collect();
    let by: Vec<_> = commits.iter().map(|c| (c["author"].as_str(), c["note"].as_str())).collect();
    let begins = Some("an epoch begins");
    assert_eq!(by[..3], [(Some("me"), begins), (Some("ana"), Some("restored")), (Some("me"), begins)]);
    assert!(commits[0]["time"].is_string(), "{said}");
}

#[test]
fn the_head_of_status_says_that_nodes_hold_another_history_and_that_two_have_one_name() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let agent = |out: &str| w.run(&format!("agent --connect {} --out {{}}/{out} --name one", w.url));
    let first = agent("o1");
    server.says("applied 1/");
    w.ok(&["set", "a", "2"]);
    w.ok(&["wait", "--min", "1"]);
    let second = agent("o2");
    w.ok(&["wait", "--min", "2", "--timeout", "20"]);
    let head =
        |table: &str| table.lines().take_while(|l| !l.starts_with("NODE")).collect::<Vec<_>>().join("\n");
    let table = w.ok(&["status"]);
    assert!(head(&table).contains("2 nodes that are here have the name one"), "{table}");
    drop((first, second, server));
    // A store that was lost, and a history that begins before any node tells of that.
    std::fs::remove_dir_all(w.path("state")).expect("ours");
    let server = w.serve_log();
    w.ok(&["set", "a", "other", "--expect", "0:0"]);
    let _first = agent("o1");
    server.says("ALARM: holds another history");
    let status = json(&w.ok(&["status", "--json"]));
    let table = w.ok(&["status"]);
    assert_eq!(status["conflicts"], 1, "{table}");
    assert!(head(&table).contains("1 node holds another history: this store may be an old copy"), "{table}");
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
fn where_nothing_listens_that_is_said_early_and_a_server_that_comes_later_still_answers() {
    let w = World::new();
    let status = |timeout: &str| {
        let mut command = Command::new(program("config-sync"));
        command.args(["status", "--control", &w.control(), "--timeout", timeout]).stdout(Stdio::null());
        Running::spawn(&mut command)
    };
    let (code, words) = status("1.5").ends_with_all();
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!((code, lines.len()), (Some(7), 2), "{words}");
    let nothing = format!("config-sync: cannot reach {}: ", w.control());
    assert!(lines[0].starts_with(&nothing) && lines[0].ends_with("; trying on"), "{words}");
    assert!(lines[1].starts_with(&nothing) && lines[1].contains("--control"), "{words}");
    // Said while it waits, and in time for a server that is yet to start.
    let waits = status("20");
    waits.says(&nothing);
    let _server = w.serve_log();
    assert_eq!(waits.ends().0, Some(0));
    // What listens there is for nodes.
    let (code, _, err) = w.verb(&["status", "--control", &w.url, "--timeout", "0.5"]);
    assert!(code == Some(7) && err.contains("answers as no control address does"), "{err}");
}

#[test]
fn a_value_over_the_limit_is_refused_whatever_its_size_and_no_more_is_read() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    for size in [(1 << 20) + 1, 70 << 20, 300 << 20] {
        let file = std::fs::File::create(w.path("big")).expect("writable");
        file.set_len(size).expect("sparse");
        let (code, out, err) = w.verb(&["set", "big", "--file", "big"]);
        assert_eq!((code, &out[..]), (Some(6), ""), "{err}");
        let told = format!("the value of big has {size} bytes; the limit is 1048576");
        assert!(err.contains(&told) && !err.contains("--request"), "{err}");
    }
    // Without an end.
    let (code, _, err) = w.verb(&["set", "big", "--file", "/dev/zero"]);
    assert!(code == Some(6) && err.contains("more than 1048576 bytes; the limit is 1048576"), "{err}");
    assert_eq!(w.ok(&["list"]), "1  a\n");
    let file = std::fs::File::create(w.path("big")).expect("writable");
    file.set_len(1 << 20).expect("sparse");
    assert_eq!(w.ok(&["set", "big", "--file", "big"]), "1:2\n");
}

#[test]
fn a_revision_above_the_newest_is_not_watched_for() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    for above in ["99:1", "1:2", "9"] {
        let (code, out, err) = w.verb(&["watch", "--after", above]);
        assert_eq!((code, &out[..]), (Some(6), ""), "{above}: {err}");
        assert!(err.contains(&format!("there is no revision {above}")), "{err}");
    }
}
