//! What the operator's verbs say of what would otherwise happen in silence.

use super::{World, json};

#[test]
fn a_request_id_that_was_used_for_something_else_is_refused() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "0", "--expect", "0:0"]);
    let id = "00112233445566778899aabbccddeeff";
    assert_eq!(w.ok(&["set", "a", "1", "--request", id]), "1:2\n");
    let (code, out, err) = w.verb(&["set", "a", "1", "--request", id]);
    assert_eq!((code, &out[..]), (Some(0), "1:2\n"));
    assert!(err.contains("an earlier copy"), "{err}");
    for other in [&["set", "a", "2"][..], &["set", "b", "1"], &["delete", "a"]] {
        let (code, out, err) = w.verb(&[other, &["--request", id]].concat());
        assert!(
            code == Some(6) && out.is_empty() && err.contains("used for something else, at 1:2"),
            "{err}"
        );
    }
    assert_eq!(w.ok(&["get", "a"]), "1");
}

#[test]
fn what_was_not_there_is_named_and_a_wait_for_more_nodes_than_there_are_says_so() {
    let w = World::new();
    let _server = w.serve_log();
    w.ok(&["set", "a", "0", "--expect", "0:0"]);
    let (code, _, err) = w.verb(&["delete", "a", "b", "c"]);
    assert!(code == Some(0) && err.contains("no key b") && err.contains("no key c"), "{err}");
    assert!(!err.contains("no key a"), "{err}");
    let (code, _, err) = w.verb(&["wait", "--name", "none", "--min", "5", "--timeout", "0"]);
    assert!(code == Some(7) && err.contains("1 silent") && err.contains("at least 5"), "{err}");
    let (code, _, err) = w.verb(&["status", "--namespace", "other"]);
    assert!(code == Some(6) && err.contains("no namespace \"other\""), "{err}");
}

#[test]
fn an_open_rollout_is_told_of_where_it_ends_and_where_its_content_goes() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let _agent = w.agent(" --name one --label canary=yes");
    server.says("applied 1/");
    let (code, _, err) = w.verb(&["set", "a", "2", "--rollout", "100%,canary=no"]);
    assert!(
        code == Some(0) && err.contains("no node that is here is in the first stage (100% of canary=no)"),
        "{err}"
    );
    assert_eq!(w.ok(&["rollout", "abort", "--author", "ana", "-m", "wrong label"]), "1:3\n");
    let newest = json(w.ok(&["history", "--json", "-n", "1"]).trim());
    assert_eq!((&newest["author"], &newest["note"]), (&"ana".into(), &"wrong label".into()));
    assert!(newest["time"].is_string(), "{newest}");
    let (code, _, err) = w.verb(&["set", "a", "2", "--rollout", "100%,canary=yes"]);
    assert!(code == Some(0) && !err.contains("first stage"), "{err}");
    w.ok(&["wait"]);
    // What is told of it is as new as what `wait` told.
    let open = json(w.ok(&["rollout", "status", "--json"]).trim());
    assert_eq!((&open["nodes"], &open["applied"]), (&1.into(), &1.into()), "{open}");
    let (_, _, err) = w.verb(&["export", "e"]);
    assert!(err.contains("1:4 is of a rollout that is open") && err.contains("--at 1:3"), "{err}");
    let (code, out, err) = w.verb(&["new-epoch"]);
    assert_eq!((code, &out[..]), (Some(0), "2:5\n"));
    assert!(err.contains("the rollout of 1:4 ends with its epoch"), "{err}");
    assert_eq!(w.ok(&["get", "a"]), "1");
}

#[test]
fn relays_are_counted_apart() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let _relay = w.run(&format!("relay --connect {} --bind ipc://{{}}/r.ipc --state {{}}/relay", w.url));
    server.says("node relay ");
    let _agent = w.run("agent --connect ipc://{}/r.ipc --out {}/out --name one");
    w.ok(&["wait", "--min", "1"]);
    let table = w.ok(&["status"]);
    assert!(
        table.starts_with("config: ") && table.contains("; 1 of 1 nodes, 1 of 1 relays here\n"),
        "{table}"
    );
    let status = json(w.ok(&["status", "--json"]).trim());
    let kinds: Vec<_> =
        status["nodes"].as_array().expect("a list").iter().map(|n| n["kind"].as_str()).collect();
    assert!(kinds.contains(&Some("relay")) && kinds.contains(&Some("replica")), "{status}");
    // Nobody waits for one.
    let (code, _, err) = w.verb(&["wait", "--name", "relay", "--name", "one", "--timeout", "1000"]);
    assert!(code == Some(2) && err.contains("relay is a relay") && err.contains("`status`"), "{err}");
    // A node may have its name.
    let _agent = w.run("agent --connect ipc://{}/r.ipc --out {}/out2 --name relay");
    w.ok(&["wait", "--min", "2", "--timeout", "20"]);
    assert_eq!(w.ok(&["wait", "--name", "relay"]), "ok  relay\n");
}

#[test]
fn nodes_of_one_name_are_told_apart_by_their_ids() {
    let w = World::new();
    let server = w.serve_log();
    w.ok(&["set", "a", "1", "--expect", "0:0"]);
    let agent = w.agent(" --name one");
    server.says("applied 1/");
    agent.signal("-TERM");
    assert_eq!(agent.ends().0, Some(0));
    // Its state folder is lost: it is another node now, and the one before stays away.
    std::fs::remove_dir_all(w.path("out.state")).expect("ours");
    w.ok(&["set", "a", "2"]);
    let _agent = w.agent(" --name one --take-over");
    server.says("applied 1/");
    let status = json(w.ok(&["status", "--json"]).trim());
    let id = |here: bool| {
        let nodes = status["nodes"].as_array().expect("a list");
        let node = nodes.iter().find(|node| node["here"] == here).expect("one of two");
        node["id"].as_str().expect("text")[..8].to_owned()
    };
    let (code, out, err) = w.verb(&["wait", "--name", "one", "--timeout", "1"]);
    assert_eq!(code, Some(7), "{err}");
    assert_eq!(out, format!("ok      one ({})\nsilent  one ({})\n", id(true), id(false)));
    assert!(err.contains("1 silent; 2 nodes have the name one"), "{err}");
    let table = w.ok(&["status"]);
    assert!(table.contains(&format!("one ({})  here", id(true))), "{table}");
    assert!(table.contains(&format!("one ({})  away", id(false))), "{table}");
}
