//! The state folder of a server: revisions that never fall, and histories that were lost, damaged or put back.

use std::fs;
use std::time::Duration;

use spanwire_config::sign::Secret;
use spanwire_config::{Entry, Key, State, serve, store};

use super::harness::{Running, World, await_that, head, text};

#[test]
fn revisions_do_not_fall_when_the_server_starts_again() {
    let w = World::new();
    let mut last = None;
    for n in 0..4 {
        w.write("src/a", &n.to_string());
        let server = w.serve();
        let agent = w.agent("n");
        w.await_equal("n");
        await_that("a higher revision", || w.stored("n") > last);
        last = w.stored("n");
        agent.ends();
        server.ends();
    }
    assert_eq!(last, Some(4));
}

#[test]
fn a_lost_state_folder_of_the_server_freezes_nodes_until_a_new_epoch() {
    let w = World::with(&[("a", "1")]);
    w.ran();
    fs::remove_dir_all(w.path("src.state")).expect("ours");
    w.write("src/a", "2");
    // No node is there to tell that the folder was lost.
    let server = w.serve();
    server.await_line("revision 1/");
    let agent = w.agent("n");
    agent.await_line("ALARM: two histories");
    server.await_line("ALARM: holds another history");
    assert_eq!(text(&w.path("n/a")), "1");
    server.ends();
    let mut config = w.serve_config();
    config.new_epoch = Some(2);
    let _server = Running::serve(config);
    w.await_equal("n");
}

#[test]
fn a_damaged_log_of_the_server_is_refused_until_a_new_epoch_begins_without_it() {
    let w = World::with(&[("a", "1")]);
    let (server, agent) = w.server_and_agent();
    server.ends();
    let log = w.path("src.state/log/log");
    let mut bytes = fs::read(&log).expect("written");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).expect("ours");
    let refused = w.serve().refused();
    assert!(refused.to_string().contains("is damaged"), "{refused}");
    assert!(refused.to_string().contains("--new-epoch"), "{refused}");
    let mut config = w.serve_config();
    config.new_epoch = Some(2);
    w.write("src/a", "2");
    let server = Running::serve(config);
    server.await_line("log.damaged-1");
    server.await_line("applied 2/");
    w.await_equal("n");
    drop(agent);
    assert!(w.path("src.state/log.damaged-1/log").exists(), "kept for people");
}

#[test]
fn a_state_folder_without_a_log_goes_on_from_its_slots_in_a_new_epoch() {
    let w = World::with(&[("a", "1")]);
    let mut state = State::new();
    let key = Key::new("a").expect("short");
    state.put(key, Entry::new(0, "0"));
    let mut slots = store::Store::open(&w.path("src.state")).expect("writable");
    slots.save(&head(4, 30, &state), &state).expect("written");
    drop(slots);
    let server = w.serve();
    let _agent = w.agent("n");
    w.await_equal("n");
    assert!(server.await_line("a new epoch begins").contains("5/"), "{:?}", server.lines());
    assert!(server.await_line("revision 5/").contains(":32:"), "{:?}", server.lines());
}

/// A server that signs.
fn signed(w: &World, rescan: Duration) -> serve::Config {
    let secret = Secret::from_seed(1, &[3; 32]);
    let mut config = w.serve_config();
    (config.keys, config.rescan) = (secret.public(), rescan);
    config.secret = Some(secret);
    config
}

#[test]
fn invariant_07_a_log_put_back_from_a_copy_stops_commits_until_a_new_epoch() {
    let w = World::with(&[("a", "1")]);
    let config = || signed(&w, Duration::from_millis(100));
    let server = Running::serve(config());
    let agent = w.agent("n");
    server.await_line("applied 1/");
    server.ends();
    let log = w.path("src.state/log/log");
    let copy = fs::read(&log).expect("written");
    w.write("src/a", "2");
    let server = Running::serve(config());
    w.await_equal("n");
    server.await_line("visible 1/");
    server.ends();
    // The log of before; the mark tells of more than it has, so that has to be lost too.
    fs::write(&log, copy).expect("ours");
    fs::remove_file(w.path("src.state/log/mark")).expect("ours");
    w.write("src/a", "3");
    let server = Running::serve(config());
    server.await_line("commits stop until a new epoch begins");
    w.write("src/a", "4");
    server.await_line("the tree is not published");
    assert_eq!(text(&w.path("n/a")), "2", "the node keeps what it has");
    server.ends();
    let mut config = config();
    config.new_epoch = Some(2);
    let _server = Running::serve(config);
    w.await_equal("n");
    drop(agent);
}

#[test]
fn invariant_07_a_node_of_a_lost_history_stops_commits_though_the_server_went_on_and_started_again() {
    let w = World::with(&[("a", "1")]);
    // So long that nothing but the node's own word can be the cause.
    let config = || signed(&w, Duration::from_secs(600));
    let server = Running::serve(config());
    let agent = w.agent("n");
    server.await_line("applied 1/");
    agent.ends();
    server.ends();
    let log = w.path("src.state/log/log");
    let copy = fs::read(&log).expect("written");
    w.write("src/a", "2");
    let server = Running::serve(config());
    let agent = w.agent("n");
    w.await_equal("n");
    server.await_line("visible 1/");
    agent.ends();
    server.ends();
    fs::write(&log, copy).expect("ours");
    fs::remove_file(w.path("src.state/log/mark")).expect("ours");
    for n in 3..6 {
        w.write("src/a", &n.to_string());
        let server = Running::serve(config());
        server.await_line("revision 1/");
        server.ends();
    }
    let server = Running::serve(config());
    server.await_line("listening");
    let _agent = w.agent("n");
    server.await_line("commits stop until a new epoch begins");
    assert_eq!(text(&w.path("n/a")), "2", "the node keeps what it has");
}

#[test]
fn invariant_13_a_lost_state_folder_begins_nothing_anew_where_a_node_tells_of_it() {
    let w = World::with(&[("a", "1")]);
    w.ran();
    fs::remove_dir_all(w.path("src.state")).expect("ours");
    // Its tree takes a while to come to rest; the node is there before that.
    w.write("src/a", "2");
    let mut config = w.serve_config();
    config.debounce = Duration::from_secs(1);
    let server = Running::serve(config.clone());
    server.await_line("listening");
    let agent = w.agent("n");
    server.await_line("--new-epoch 2");
    assert!(!server.lines().iter().any(|line| line.contains("revision ")), "{:#?}", server.lines());
    assert_eq!(text(&w.path("n/a")), "1");
    server.ends();
    config.new_epoch = Some(2);
    let server = Running::serve(config);
    w.await_equal("n");
    server.await_line("revision 2/");
    drop(agent);
}

#[test]
fn promise_05_an_empty_tree_is_no_accident_where_the_log_was_lost() {
    let w = World::with(&[("a", "1")]);
    let (server, agent) = w.server_and_agent();
    server.ends();
    // The disk with both is not there after a start of the machine.
    fs::remove_dir_all(w.path("src.state")).expect("ours");
    fs::remove_file(w.path("src/a")).expect("ours");
    let mut config = w.serve_config();
    config.new_epoch = Some(2);
    config.rescan = Duration::from_millis(20);
    let server = Running::serve(config);
    server.await_line("--allow-empty");
    assert_eq!(text(&w.path("n/a")), "1");
    // It comes back, and no further word is needed.
    w.write("src/a", "2");
    w.await_equal("n");
    drop((agent, server));
}

#[test]
fn what_makes_no_sense_to_serve_is_refused_before_anything_is_made() {
    let w = World::with(&[("a", "1")]);
    let mut config = serve::Config::new(w.path("src/a"));
    config.bind = vec!["tcp://127.0.0.1:0".into()];
    Running::serve(config).refused();
    assert!(!w.path("src/a.state").exists());
    // An epoch below the one that is here.
    let mut config = w.serve_config();
    config.new_epoch = Some(3);
    let server = Running::serve(config);
    server.await_line("listening at");
    server.ends();
    for number in [0, 2] {
        let mut config = w.serve_config();
        config.new_epoch = Some(number);
        let refused = Running::serve(config).refused();
        assert!(refused.to_string().contains("--new-epoch"), "{refused}");
    }
    // The one that is here may be said again, as in a unit file.
    let mut config = w.serve_config();
    config.new_epoch = Some(3);
    Running::serve(config).await_line("listening at");
}
