//! A server of several namespaces, and everybody who asks for one of them.

use std::process::{Command, Stdio};

use super::super::program;
use super::{Running, World, json, text};

impl World {
    fn namespaces(&self, options: &str) -> String {
        let (url, control) = (&self.url, self.control());
        format!(
            "serve --bind {url} --control {control} --state {{}}/state --namespace web --namespace flags{options}"
        )
    }
}

#[test]
fn one_server_gives_the_agents_and_operators_of_each_namespace_their_own() {
    let w = World::new();
    let server = w.run(&w.namespaces(""));
    server.says("clients at");
    let _agents = [
        w.run(&format!("agent --connect {} --out {{}}/w1 --namespace web", w.url)),
        w.run(&format!("agent --connect {} --out {{}}/f1 --namespace flags", w.url)),
    ];
    let expect = ["--expect", "0:0"];
    // By the option, the environment, and the file of settings.
    assert_eq!(w.ok(&[&["set", "port", "80", "--namespace", "web"], &expect[..]].concat()), "1:1\n");
    std::fs::write(w.path("settings"), "namespace = 'flags'\n").expect("writable");
    let by = |name: &str, value: &str, args: &[&str]| {
        let mut command = Command::new(program("config-sync"));
        command.args(args).env("CONFIG_SYNC_CONTROL", w.control()).env(name, value);
        let output = command.stdin(Stdio::null()).output().expect("it was built");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let file = w.path("settings").to_string_lossy().into_owned();
    assert_eq!(by("CONFIG_SYNC_SETTINGS", &file, &[&["set", "dark", "on"], &expect[..]].concat()), "1:1\n");
    assert_eq!(by("CONFIG_SYNC_NAMESPACE", "flags", &["set", "dark", "off"]), "1:2\n");
    for (namespace, node) in [("web", "w1"), ("flags", "f1")] {
        assert_eq!(
            w.ok(&["wait", "--min", "1", "--timeout", "20", "--namespace", namespace]),
            format!("ok  {node}\n")
        );
        let status = json(&w.ok(&["status", "--json", "--namespace", namespace]));
        assert_eq!(
            (&status["namespace"], status["nodes"].as_array().map(Vec::len)),
            (&namespace.into(), Some(1))
        );
    }
    assert_eq!((text(&w.path("w1/port")), text(&w.path("f1/dark"))), ("80".into(), "off".into()));
    assert!(!w.path("w1/dark").exists() && !w.path("f1/port").exists());
    assert_eq!(w.ok(&["list", "--namespace", "web"]), "2  port\n");
    assert_eq!(w.ok(&["history", "--namespace", "flags"]).lines().count(), 2);
    let (code, _, err) = w.verb(&["status"]);
    assert!(code == Some(6) && err.contains("the 2 namespaces served here are web, flags"), "{err}");
    let words = server.says("flags: node f1");
    assert!(words.contains("here"), "{words}");
    // Killed, and started again: nobody misses anything.
    drop(server);
    let server = w.run(&w.namespaces(""));
    server.says("clients at");
    assert_eq!(w.ok(&["set", "port", "81", "--namespace", "web"]), "1:2\n");
    assert_eq!(w.ok(&["wait", "--min", "1", "--timeout", "20", "--namespace", "web"]), "ok  w1\n");
    assert_eq!(
        (text(&w.path("w1/port")), w.ok(&["get", "dark", "--namespace", "flags"])),
        ("81".into(), "off".into())
    );
    server.signal("-TERM");
    assert_eq!(server.ends().0, Some(0));
}

#[test]
fn of_several_namespaces_each_may_publish_a_directory_of_its_own() {
    let w = World::new();
    std::fs::write(w.path("settings"), "[serve]\nnamespace = ['web', 'flags']\n").expect("writable");
    let line = w.namespaces(" --dir web={}/conf").replace(" --namespace web --namespace flags", "");
    let server = w.run(&format!("{line} --settings {{}}/settings"));
    server.says("web: revision 1/");
    w.ok(&["set", "a", "2", "--expect", "0:0", "--namespace", "flags"]);
    assert_eq!(
        (w.ok(&["get", "a", "--namespace", "web"]), w.ok(&["get", "a", "--namespace", "flags"])),
        ("1".into(), "2".into())
    );
    let (code, _, err) = w.verb(&["set", "a", "3", "--namespace", "web"]);
    assert!(code == Some(6) && err.contains("conf on the server is what is published"), "{err}");
    server.signal("-TERM");
    assert_eq!(server.ends().0, Some(0));
    for (options, why) in [
        (" --dir {}/conf", "with several namespaces it is NAME=DIR"),
        (" --dir other={}/conf", "with several namespaces it is NAME=DIR"),
        (" --dir web={}/conf --dir web={}/conf", "the namespace web has a directory"),
        (" --namespace web", "the namespace web is there already"),
        (" --new-epoch 3", "are for one namespace"),
    ] {
        let (code, words) = w.run(&w.namespaces(options)).ends();
        assert!(code == Some(2) && words.contains(why), "{code:?}: {words}");
    }
    // Served alone it may be named as well, and its folder lies beside the directory.
    let server = w.run(&format!("serve --bind {} --namespace web --dir web={{}}/conf", w.url));
    server.says("revision 1/");
    assert!(w.path("conf.state/log/log").is_file());
    server.signal("-TERM");
    assert_eq!(server.ends().0, Some(0));
    let (code, words) = w.run(&format!("serve --bind {} --dir web={{}}/conf", w.url)).ends();
    assert!(code == Some(2) && words.contains("no namespace of that name is served"), "{code:?}: {words}");
    let (code, words) = w.run(&w.namespaces(" --dir web={}/conf").replace(" --state {}/state", "")).ends();
    assert!(code == Some(2) && words.contains("--state"), "{code:?}: {words}");
}

#[test]
fn a_comma_parts_namespaces_and_an_empty_name_is_none() {
    let w = World::new();
    let with = |namespace: &str, line: &str| {
        let folder = w.temp.path().to_str().expect("text");
        let mut command = Command::new(program("config-sync"));
        command.args(line.split(' ').map(|arg| arg.replace("{}", folder)));
        Running::spawn(command.env("CONFIG_SYNC_NAMESPACE", namespace).stdout(Stdio::null()))
    };
    let serve = format!("serve --bind {} --control {} --state {{}}/state", w.url, w.control());
    let server = with("web,flags", &serve);
    server.says("clients at");
    let (code, _, err) = w.verb(&["status"]);
    assert!(code == Some(6) && err.contains("the 2 namespaces served here are web, flags"), "{err}");
    let agent = format!("agent --connect {} --out {{}}/n", w.url);
    let relay = format!("relay --connect {} --bind ipc://{{}}/r.ipc --state {{}}/r", w.url);
    let status = format!("status --control {}", w.control());
    for line in [&agent, &relay, &status] {
        let (code, words) = with("web,flags", line).ends_with_all();
        assert!(code == Some(2) && words.contains("a comma parts namespaces"), "{code:?}: {words}");
    }
    for line in [&serve, &agent, &relay, &status] {
        let (code, words) = with("", line).ends_with_all();
        assert!(code == Some(2) && words.contains("an empty name is none"), "{code:?}: {words}");
    }
    let (code, words) = with("web,", &serve).ends_with_all();
    assert!(code == Some(2) && words.contains("an empty name is none"), "{code:?}: {words}");
}
