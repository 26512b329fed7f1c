//! The state folder of an agent: what is done when it is damaged, copied, somebody else's, or cannot be written.

use std::fs;

use spanwire_config::client::{ClientError, Commit};
use spanwire_config::sign::Keyring;
use spanwire_config::wire::client::Writable;
use spanwire_config::{agent, relay, serve};

use super::control::{FIRST, expecting, put, state};
use super::harness::{Running, World, await_that, text};

#[test]
fn promise_17_a_tampered_cache_is_refused_and_reported() {
    let w = World::with(&[("a", "1")]);
    w.ran();
    let slot = w.path("n.state/slot-a");
    let mut bytes = fs::read(&slot).expect("written");
    let at = bytes.len() - 33;
    bytes[at] ^= 1;
    fs::write(&slot, bytes).expect("ours");
    let agent = w.agent("n");
    agent.await_line("damaged, passed over");
    agent.await_line("state: Empty");
    // What is in the directory stays: it is the last good one for all that is known.
    assert_eq!(text(&w.path("n/a")), "1");
    w.write("src/a", "2");
    let _server = w.serve();
    w.await_equal("n");
}

#[test]
fn an_identity_that_cannot_be_written_holds_while_the_agent_runs() {
    let w = World::with(&[("a", "1")]);
    let (_server, agent) = w.server_and_agent();
    agent.ends();
    let identity = w.path("n.state/identity");
    let old = fs::read(&identity).expect("written");
    for _ in 0..2 {
        let agent = w.agent("n");
        agent.await_line("state: Live");
        agent.ends();
    }
    fs::write(&identity, old).expect("ours");
    // It reaches the server only when the file cannot be written any more.
    let mut config = w.agent_config("n");
    let (link, real) = (w.path("link.ipc"), w.path("s.ipc"));
    config.connect = vec![format!("ipc://{}", link.display())];
    let agent = Running::agent(config);
    agent.await_line("state: Cached");
    fs::remove_file(&identity).expect("ours");
    fs::create_dir(&identity).expect("ours");
    std::os::unix::fs::symlink(real, link).expect("writable");
    agent.await_line("not noted");
    agent.await_line("state: Live");
}

#[test]
fn a_copied_state_folder_is_noticed() {
    let w = World::with(&[("a", "1")]);
    let (_server, agent) = w.server_and_agent();
    agent.ends();
    let identity = fs::read(w.path("n.state/identity")).expect("written");
    // Started once more, then put back.
    let agent = w.agent("n");
    agent.await_line("state: Live");
    agent.ends();
    let agent = w.agent("n");
    agent.await_line("state: Live");
    agent.ends();
    fs::write(w.path("n.state/identity"), identity).expect("ours");
    let agent = w.agent("n");
    agent.await_line("older copy");
    agent.await_line("state: Live");
}

/// All that is in a folder, as a person copies it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        match entry.file_type().expect("readable").is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).expect("writable")),
        }
    }
}

#[test]
fn of_two_processes_on_copies_of_a_state_folder_both_say_so_and_both_are_shown() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let first = w.agent("n");
    server.await_line("applied 1/");
    copy(&w.path("n.state"), &w.path("m.state"));
    let second = w.agent("m");
    for agent in [&first, &second] {
        let said = agent.await_line("its start number is raised");
        assert!(said.starts_with("ALARM: ") && said.contains("copy of this state folder"), "{said}");
    }
    // One of them lives on as another node.
    let renewed = |agent: &Running| agent.lines().iter().any(|line| line.contains("takes a new node id"));
    await_that("one of them to take a new id", || renewed(&first) || renewed(&second));
    w.write("src/a", "2");
    for name in ["n", "m"] {
        server.await_line(&format!("node {name} ("));
        w.await_equal(name);
    }
    let ids = |name: &str| fs::read(w.path(name).join("identity")).expect("written")[8..24].to_vec();
    assert_ne!(ids("n.state"), ids("m.state"));
    assert!(!(renewed(&first) && renewed(&second)), "{:?} {:?}", first.lines(), second.lines());
}

#[test]
fn a_state_folder_of_another_namespace_or_cluster_is_refused() {
    let w = World::with(&[("a", "1")]);
    let (_server, agent) = w.server_and_agent();
    agent.ends();
    let change = |change: &dyn Fn(&mut agent::Config)| {
        let mut config = w.agent_config("n");
        change(&mut config);
        config
    };
    for config in [
        change(&|config| config.namespace = "other".into()),
        change(&|config| config.cluster = "other".into()),
    ] {
        let refused = Running::agent(config).refused().to_string();
        let named = [
            "of the namespace \"config\", and not of \"other\"",
            "of the cluster \"config-sync\", and not of \"other\"",
        ];
        assert!(named.iter().any(|named| refused.contains(named)), "{refused}");
    }
    assert_eq!(text(&w.path("n/a")), "1");
}

#[test]
fn a_state_folder_of_another_kind_of_process_is_refused_and_it_is_said_whose_it_is() {
    let w = World::with(&[("a", "1")]);
    let (server, agent) = w.server_and_agent();
    let relay = w.relay("r", &["src"], Keyring::new());
    relay.await_line("revision ");
    [agent, relay, server].into_iter().for_each(|running| drop(running.ends()));
    let folders = [("src.state", "a server"), ("n.state", "an agent"), ("r", "a relay")];
    let start = |kind: &str, folder: &str| match kind {
        "a server" => Running::serve(serve::Config { state: w.path(folder), ..w.serve_config() }),
        "an agent" => Running::agent(agent::Config { state: w.path(folder), ..w.agent_config("m") }),
        _ => w.relay(folder, &["src"], Keyring::new()),
    };
    for known in [true, false] {
        for (folder, owner) in folders {
            if !known {
                // Of a version before this; a relay's has nothing then that a server's of long ago could not have.
                fs::remove_file(w.path(folder).join("role")).expect("written");
            }
            let identity = fs::read(w.path(folder).join("identity")).expect("written");
            for (_, kind) in
                folders.iter().filter(|(_, kind)| *kind != owner && (known || owner != "a relay"))
            {
                let refused = start(kind, folder).refused().to_string();
                assert!(refused.contains(&format!("the state folder of {owner}")), "{kind}: {refused}");
                assert!(refused.contains("--state"), "{refused}");
            }
            let now = fs::read(w.path(folder).join("identity")).expect("written");
            assert!(now == identity && !w.path("m").exists(), "nothing is touched");
        }
    }
    // Its own goes on with it, and notes that.
    start("a relay", "r").await_line("last good revision");
    assert!(start("an agent", "r").refused().to_string().contains("a relay"));
}

#[test]
fn a_start_that_fails_leaves_no_new_folder() {
    let w = World::with(&[("a", "1")]);
    let nowhere = || vec!["nowhere://x".to_owned()];
    let serving = serve::Config { state: w.path("x/y/s"), ..w.serve_config() };
    let keeping = agent::Config { state: w.path("x/y/n"), ..w.agent_config("o/p") };
    let mut several = serve::Config { bind: nowhere(), ..serving.clone() };
    several.further =
        ["b", "c"].map(|name| serve::Further { name: name.into(), dir: Some(w.path("src")) }).into();
    let mut small = serving.clone();
    small.limits.keys = 0;
    let relaying = relay::Config {
        connect: vec![w.url.clone()],
        bind: nowhere(),
        ..relay::Config::new(w.path("x/y/r"))
    };
    // One after the other.
    let fail = || {
        Running::serve(serve::Config { bind: nowhere(), ..serving.clone() }).refused();
        Running::serve(several.clone()).refused();
        let checking = agent::Config { validate: Some("true".into()), ..keeping.clone() };
        Running::agent(agent::Config { connect: nowhere(), ..checking }).refused();
        Running::relay(relaying.clone()).refused();
    };
    fail();
    // Not before it has read the tree.
    Running::serve(small).refused();
    assert!(!w.path("x").exists() && !w.path("o").exists());
    // A directory that holds what is somebody else's stays, and so does what was there before.
    w.write("o/p/mine", "1");
    fs::create_dir(w.path("x")).expect("writable");
    Running::agent(keeping.clone()).refused();
    assert!(w.path("o/p/mine").exists() && w.path("x").exists() && !w.path("x/y").exists());
    fs::remove_file(w.path("o/p/mine")).expect("ours");
    // What once started is kept.
    let server = Running::serve(serving.clone());
    let agent = Running::agent(keeping.clone());
    server.await_line("applied 1/");
    [server, agent].into_iter().for_each(|running| drop(running.ends()));
    let there = || ["s/log/log", "s/identity", "n/identity"].map(|file| w.path("x/y").join(file).exists());
    fail();
    assert_eq!(there(), [true; 3]);
}

#[test]
fn a_label_has_one_value_and_a_name_a_bound() {
    let w = World::with(&[("a", "1")]);
    let label = |value: &str| ("zone".to_owned(), value.to_owned());
    let config = agent::Config { labels: vec![label("eu"), label("us")], ..w.agent_config("n") };
    let refused = Running::agent(config).refused();
    assert!(refused.to_string().contains("zone has two values"), "{refused}");
    let config = agent::Config { name: "n".repeat(257), ..w.agent_config("n") };
    let refused = Running::agent(config).refused();
    assert!(refused.to_string().contains("the name has 257 bytes"), "{refused}");
    assert!(!w.path("n").exists() && !w.path("n.state").exists());
}

#[test]
fn a_state_folder_that_is_taken_away_from_a_server_stops_commits_and_put_back_has_all_that_was_acknowledged()
{
    let w = World::new();
    let server = Running::serve(w.log_config());
    let client = w.client();
    let first = client.commit(&expecting(FIRST, put(&[("a", "1")]))).expect("the first");
    fs::rename(w.path("state"), w.path("moved")).expect("ours");
    let second = Commit::new(put(&[("a", "2")])).expect("randomness");
    let refused = client.commit(&second).expect_err("it would be lost");
    let text = refused.to_string();
    assert!(matches!(refused, ClientError::ReadOnly { .. }) && text.contains("removed, moved or"), "{text}");
    let alarm = server.await_line("the store failed");
    assert!(alarm.starts_with("ALARM") && alarm.contains("Put it back"), "{alarm}");
    assert!(matches!(client.status().expect("an answer").writable, Writable::Store));
    // What it has is still served, and not what was refused.
    assert_eq!(client.list(b"", None).expect("read").1, state(&[("a", "1")]));
    server.ends();
    fs::rename(w.path("moved"), w.path("state")).expect("ours");
    let _server = Running::serve(w.log_config());
    // It may be there or not; asked again it is done once.
    let done = client.commit(&second).expect("committed");
    assert_eq!(done.at.rev, first.at.rev + 1);
}
