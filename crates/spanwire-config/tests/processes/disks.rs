//! An agent whose disk takes nothing, and how what is not on a disk is seen.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use spanwire_config::client::Client;
use spanwire_config::sign::Keyring;
use spanwire_config::{Node, serve, store};

use super::harness::{PATIENCE, Running, World, await_that, text};

impl World {
    /// Nothing of these names can be written in the state folder of `n`, where a directory stands in the way.
    fn blocked(&self, names: &[&str]) -> Vec<PathBuf> {
        self.blocked_in("n.state", names)
    }

    /// Nor in this one.
    fn blocked_in(&self, dir: &str, names: &[&str]) -> Vec<PathBuf> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(&format!("{dir}/{name}.new"))).collect();
        paths.iter().for_each(|path| fs::create_dir_all(path).expect("writable"));
        paths
    }
}

fn free(paths: &[PathBuf]) {
    paths.iter().for_each(|path| fs::remove_dir(path).expect("ours"));
}

#[test]
fn a_full_disk_is_an_alarm_once_and_what_it_cannot_keep_is_held_and_taken_when_there_is_room() {
    let w = World::with(&[("a", "1")]);
    let (server, agent) = w.server_and_agent();
    let blocked = w.blocked(&["slot-a", "slot-b", "slot-c"]);
    w.write("src/a", "2");
    let line = server.await_line("Storage");
    assert!(line.contains("applied 1/") && line.contains("slot-"), "{line}");
    // Several tries, and revisions between them.
    agent.await_lines(3, "refused");
    w.write("src/a", "3");
    agent.await_line(":3 refused");
    agent.await_line("state: Held");
    assert_eq!((text(&w.path("n/a")), w.stored("n")), ("1".into(), Some(1)));
    free(&blocked);
    agent.await_line("the disk takes revisions again");
    await_that("the newest", || text(&w.path("n/a")) == "3");
    w.write("src/a", "4");
    await_that("the next", || w.stored("n") == Some(4));
    let lines = agent.ends();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("ALARM: nothing new can be kept")).count(),
        1,
        "{lines:#?}"
    );
    assert_eq!(lines.iter().filter(|line| line.contains("takes revisions again")).count(), 1, "{lines:#?}");
}

#[test]
fn what_was_applied_is_noted_when_the_disk_takes_it_and_before_anything_newer_is_stored() {
    let w = World::with(&[("a", "1")]);
    let (server, agent) = w.server_and_agent();
    let blocked = w.blocked(&["applied"]);
    w.write("src/a", "2");
    agent.await_line("not noted as applied");
    // Its slot could be taken else, and with it what to go back to.
    w.write("src/a", "3");
    server.await_line("Storage");
    assert_eq!((text(&w.path("n/a")), w.stored("n")), ("2".into(), Some(2)));
    free(&blocked);
    await_that("the next", || w.stored("n") == Some(3));
    await_that("what it applied", || server.await_line("applied 1/").ends_with(":3"));
    agent.ends();
    server.ends();
    // Noted: with nothing owed, a hook does not run.
    let mut config = w.agent_config("n");
    config.on_change = Some(format!("echo ran >> '{}'", w.path("hooks").display()));
    let agent = Running::agent(config);
    agent.await_line("last good revision in place");
    assert_eq!(text(&w.path("hooks")), "");
    agent.ends();
}

#[test]
fn a_relay_whose_disk_is_full_serves_on_and_keeps_the_newest_when_there_is_room() {
    let w = World::with(&[("a", "1")]);
    let control = format!("ipc://{}", w.path("control.ipc").display());
    let server = Running::serve(serve::Config { control: vec![control.clone()], ..w.serve_config() });
    let client = Client::connect(&control, "config").expect("an address");
    let volatile = || {
        let status = client.status().expect("an answer");
        status.nodes.iter().find(|line| line.node.name == "one").map(|line| line.is_volatile())
    };
    let blocked = w.blocked_in("one", &["slot-a", "slot-b", "slot-c"]);
    let relay = w.relay("one", &["src"], Keyring::new());
    let _agent = w.agent_below("n", &["one"]);
    relay.await_line("is not kept on disk");
    w.await_equal("n");
    await_that("the mark", || volatile() == Some(true));
    free(&blocked);
    // No other revision comes.
    relay.await_line("the disk takes revisions again");
    await_that("no mark", || volatile() == Some(false));
    assert_eq!(store::peek(&w.path("one"), 1 << 20).map(|(head, _)| head.position.rev), Some(1));
    let lines = relay.ends();
    assert_eq!(lines.iter().filter(|line| line.starts_with("ALARM")).count(), 1, "{lines:#?}");
    server.ends();
}

#[test]
fn a_node_without_a_disk_is_told_of_as_volatile_and_one_with_a_disk_is_not() {
    let w = World::with(&[("a", "1")]);
    let control = format!("ipc://{}", w.path("control.ipc").display());
    let server = Running::serve(serve::Config { control: vec![control.clone()], ..w.serve_config() });
    let _agent = w.agent("n");
    server.await_line("applied 1/");
    let node = Node::builder().name("memory").connect(&w.url).start().expect("it starts");
    node.wait_ready(PATIENCE).expect("it comes");
    let line = server.await_line("volatile: not on its disk");
    assert!(line.contains("node memory") && line.contains("stored -, visible 1/"), "{line}");
    let status = Client::connect(&control, "config").expect("an address").status().expect("an answer");
    let mut nodes: Vec<(&str, bool)> =
        status.nodes.iter().map(|line| (line.node.name.as_str(), line.is_volatile())).collect();
    nodes.sort();
    assert_eq!(nodes, [("memory", true), ("n", false)]);
    node.close(Duration::from_secs(1));
}
