//! Relays between a server and its agents.

use spanwire_config::sign::Keyring;
use spanwire_config::store;

use super::harness::{World, await_that};

#[test]
fn invariant_26_a_relay_that_ends_costs_its_agents_one_fail_over_and_no_revision() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let [one, two] = ["one", "two"].map(|name| w.relay(name, &["src"], Keyring::new()));
    let mut one = Some(one);
    let agents: Vec<_> = (0..4)
        .map(|n| {
            let servers = if n % 2 == 0 { ["one", "two"] } else { ["two", "one"] };
            w.agent_below(&format!("n{n}"), &servers)
        })
        .collect();
    (0..4).for_each(|n| w.await_equal(&format!("n{n}")));
    // The authority knows each of them, through its relay.
    for n in 0..4 {
        server.await_line(&format!("node n{n} ("));
    }
    for (n, text) in ["2", "3", "4"].into_iter().enumerate() {
        w.write("src/a", text);
        if let Some(one) = one.take_if(|_| n == 1) {
            one.ends();
        }
        (0..4).for_each(|n| w.await_equal(&format!("n{n}")));
    }
    for agent in &agents {
        let lines = agent.lines();
        let revisions: Vec<_> = lines.iter().filter(|line| line.starts_with("revision ")).collect();
        assert!(revisions.len() >= 3, "{lines:#?}");
    }
    let last = two.await_line("revision ");
    let at = last.split(':').take(2).collect::<Vec<_>>().join(":").replace("revision ", "");
    for n in 0..4 {
        let applied = format!("visible {at}, applied {at}");
        await_that(&format!("word of n{n} at {at}"), || {
            let node = format!("node n{n} (");
            server.lines().iter().any(|line| line.starts_with(&node) && line.contains(&applied))
        });
    }
}

#[test]
fn a_relay_serves_from_its_folder_while_no_server_answers() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let relay = w.relay("one", &["src"], Keyring::new());
    relay.await_line("revision ");
    await_that("the folder to hold it", || store::peek(&w.path("one"), 1 << 20).is_some());
    drop((relay, server));
    let relay = w.relay("one", &["src"], Keyring::new());
    relay.await_line("last good revision");
    let _agent = w.agent_below("late", &["one"]);
    w.await_equal("late");
}
