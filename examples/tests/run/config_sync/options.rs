//! Options, the environment, files of settings and of keys, and exit codes.

use std::process::{Command, Stdio};

use super::super::program;
use super::{World, json, text};

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
        ("[agent]\nname = ['a']", 2, "agent: name: a text in quotes, and no list"),
        ("[agent]\nlabel = [['a']]", 2, "agent: label: a text in quotes, or a list of those"),
        (
            "namespace = ['a', 'b']",
            2,
            "namespace, above all tables: is for every verb that has it, and some take one: put the list into [serve]",
        ),
        ("timeout = [1, 2]", 2, "timeout, above all tables: a number, without quotes, and no list"),
        ("control = 1979-05-27", 2, "control, above all tables: a text in quotes, or a list of those"),
        ("control = { a = 1 }", 2, "control, above all tables: a text or a number, and no table"),
        ("[agent]\nname = { a = 1 }", 2, "agent: name: a text in quotes"),
        ("[agent]\nkeep = 'many'", 2, "settings: agent: keep: a whole number, without quotes"),
        ("[agent]\nkeep = 1.5", 2, "settings: agent: keep: a whole number"),
        ("[agent]\nkeep = 0", 2, "'--help'"),
        ("[agent]\nout = 5", 2, "settings: agent: out: a text in quotes"),
        ("[agent]\nlabel = [true]", 2, "settings: agent: label: a text in quotes, or a list of those"),
        ("control = 5", 2, "settings: control, above all tables: a text in quotes"),
        ("timeout = '3'", 2, "settings: timeout, above all tables: a number, without quotes"),
        ("timeout = true", 2, "settings: timeout, above all tables: a number"),
        ("[set]\nexpect = 1.5", 2, "settings: set: expect: a number, or a text in quotes"),
        ("[set]\nexpect = 1\n[agent]\nlayout = 1", 2, "settings: agent: layout: a text in quotes"),
        ("timeout = 0.5\n[serve]\nnew-epoch = 3", 2, "only on the command line"),
        ("= 1", 2, "settings"),
    ] {
        file(text);
        let (ended, words) = w.run("agent --settings {}/settings --out {}/other").ends_with_all();
        assert!(ended == Some(code) && words.contains(why), "{text}: {ended:?} {words}");
    }
    assert_eq!(w.run("agent --settings {}/none --out {}/other").ends().0, Some(3));
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

#[test]
fn every_option_of_every_verb_has_a_line_of_help() {
    let w = World::new();
    let help = w.ok(&["--help"]);
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 20, "{help}");
    for verb in verbs.into_iter().filter(|verb| *verb != "help") {
        let help = w.ok(&[verb, "-h"]);
        let begins = |line: &str| {
            let depth = line.len() - line.trim_start().len();
            (2..=6).contains(&depth) && ["-", "<", "["].iter().any(|sign| line.trim_start().starts_with(sign))
        };
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines.windows(2).filter(|pair| begins(pair[0])) {
            // Beside it, or below where there is no room.
            let below = pair[1].starts_with("          ");
            assert!(pair[0].trim().contains("  ") || below, "{verb}: {}", pair[0]);
        }
    }
}

#[test]
fn a_key_that_cannot_be_written_is_2_and_help_says_so() {
    let w = World::new();
    std::fs::write(w.path("key"), "mine").expect("writable");
    for file in ["key", "none/key"] {
        let (code, _, err) = w.verb(&["keygen", file]);
        assert!(code == Some(2) && err.contains(file), "{err}");
    }
    assert_eq!(text(&w.path("key")), "mine");
    let help = w.ok(&["keygen", "--help"]);
    assert!(help.contains("exit code 2"), "{help}");
}

#[test]
fn a_server_that_cannot_listen_says_that_and_not_what_it_would_have_begun() {
    let w = World::new();
    for source in ["", " --dir {}/conf"] {
        for (bind, control) in [("none/s.ipc", "c.ipc"), ("s.ipc", "none/c.ipc")] {
            let (code, words) = w
                .run(&format!(
                    "serve --state {{}}/state{source} --bind tcp://127.0.0.1:0 --bind ipc://{{}}/{bind} --control \
                     ipc://{{}}/{control}"
                ))
                .ends_with_all();
            assert!(code == Some(4) && words.contains("none/"), "{code:?}: {words}");
            assert!(
                !words.contains("begins") && !words.contains("listening") && !words.contains("clients"),
                "{words}"
            );
        }
    }
}

#[test]
fn an_address_that_the_environment_has_empty_is_not_set() {
    let w = World::new();
    let run = |args: &[&str]| {
        let mut command = Command::new(program("config-sync"));
        command
            .args(args)
            .envs(["CONTROL", "BIND", "CONNECT"].map(|name| (format!("CONFIG_SYNC_{name}"), "")));
        let output = command.stdin(Stdio::null()).output().expect("it was built");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let (state, out) = (w.path("state"), w.path("out"));
    let (state, out) = (state.to_str().expect("text"), out.to_str().expect("text"));
    for (args, named) in [
        (&["status"][..], "--control"),
        (&["serve", "--state", state], "--bind"),
        (&["serve", "--state", state, "--bind", &w.url], "--control"),
        (&["agent", "--out", out], "--connect"),
    ] {
        let (code, words) = run(args);
        assert!(code == Some(2) && words.contains(named), "{args:?}: {code:?}: {words}");
    }
}
