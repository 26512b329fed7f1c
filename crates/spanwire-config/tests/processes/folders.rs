//! The state folder of an agent: what is done when it is damaged, copied, somebody else's, or cannot be written.

use std::fs;

use spanwire_config::agent;

use super::harness::{Running, World, text};

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
        assert!(refused.contains("config") && refused.contains("namespace"), "{refused}");
    }
    assert_eq!(text(&w.path("n/a")), "1");
}
