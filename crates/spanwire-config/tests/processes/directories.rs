//! The directory that is published and the one that is kept: which are taken, what is done to them and what never.

use std::fs;
use std::time::Duration;

use spanwire_config::process::ProcessError;
use spanwire_config::{Entry, Key, Limits, State, agent, serve, store};

use super::harness::{Running, World, await_that, head, text};

#[test]
fn promise_17_an_agent_starts_without_any_server_and_repairs_drift() {
    let w = World::with(&[("a", "1"), ("b", "2")]);
    let (server, agent) = w.server_and_agent();
    let good = w.tree("src");
    agent.ends();
    server.ends();
    w.write("n/a", "by hand");
    w.write("n/stray", "");
    let agent = w.agent("n");
    let line = agent.await_line("repaired");
    assert!(line.ends_with("differed from it: stray, a"), "{line}");
    assert_eq!(w.tree("n"), good);
}

#[test]
fn promise_05_an_empty_tree_is_never_an_accident() {
    let w = World::with(&[("a", "1")]);
    let mut config = w.serve_config();
    config.rescan = Duration::from_millis(20);
    let server = Running::serve(config.clone());
    let _agent = w.agent("n");
    server.await_line("applied 1/");
    fs::remove_file(w.path("src/a")).expect("ours");
    server.await_line("--allow-empty");
    assert_eq!(text(&w.path("n/a")), "1");
    // The same for a tree that is gone.
    fs::remove_dir(w.path("src")).expect("ours");
    server.await_line("No such file");
    server.ends();
    fs::create_dir(w.path("src")).expect("ours");
    config.allow_empty = true;
    let _server = Running::serve(config);
    await_that("the empty tree", || w.path("n").exists() && w.tree("n").is_empty());
}

#[test]
fn changes_are_found_by_reading_where_no_word_of_them_comes() {
    let w = World::with(&[("a", "1")]);
    // A root that is a link: what it points to is replaced whole, and the watch keeps the old directory.
    let (link, other) = (w.path("link"), w.path("other"));
    std::os::unix::fs::symlink(w.path("src"), &link).expect("writable");
    let mut config = w.serve_config();
    config.dir = Some(link.clone());
    config.state = w.path("server.state");
    config.rescan = Duration::from_millis(50);
    let server = Running::serve(config);
    let _agent = w.agent("n");
    server.await_line("applied 1/");
    w.write("other/a", "2");
    fs::remove_file(&link).expect("ours");
    std::os::unix::fs::symlink(other, &link).expect("writable");
    await_that("the other tree", || text(&w.path("n/a")) == "2");
}

#[test]
fn a_directory_that_is_not_the_agents_is_not_touched() {
    let w = World::new();
    w.write("n/precious", "mine");
    let agent = w.agent("n");
    assert!(matches!(agent.refused(), ProcessError::Refused(_)));
    assert_eq!(text(&w.path("n/precious")), "mine");
    let mut config = w.agent_config("n");
    config.take_over = true;
    w.write("src/a", "1");
    let _server = w.serve();
    let agent = Running::agent(config);
    w.await_equal("n");
    drop(agent);
}

#[test]
fn folders_inside_each_other_are_refused_and_nothing_is_left_in_them() {
    let w = World::with(&[("a", "1")]);
    w.write("n/mine", "");
    for inside in ["state", "", "deep/er", "../src/x"] {
        let mut config = w.serve_config();
        config.state = w.path("src").join(inside);
        assert!(matches!(Running::serve(config).refused(), ProcessError::Refused(_)), "{inside}");
    }
    let mut config = w.agent_config("n");
    config.state = w.path("n/state");
    assert!(matches!(Running::agent(config).refused(), ProcessError::Refused(_)));
    let names = |dir: &str| -> Vec<_> {
        let entries = fs::read_dir(w.path(dir)).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name()).collect()
    };
    assert_eq!((names("src"), names("n")), (vec!["a".into()], vec!["mine".into()]));
}

#[test]
fn an_agent_inside_of_anothers_directory_is_refused_whichever_started_first_and_nothing_is_deleted() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let refused = |config: agent::Config, parts: [&str; 2]| {
        let error = Running::agent(config).refused();
        let words = error.to_string();
        assert!(error.exit_code() == 3 && parts.iter().all(|part| words.contains(part)), "{words}");
    };
    let outer = w.agent("n");
    server.await_line("applied 1/");
    let (out, state) = (w.path("n").display().to_string(), w.path("n.state").display().to_string());
    // While it runs, and when it does not; by its directory, by a link to it, or by its state folder alone.
    std::os::unix::fs::symlink(w.path("n"), w.path("link")).expect("writable");
    let state_inside = agent::Config { state: w.path("n/m.state"), ..w.agent_config("m") };
    for outer in [Some(outer), None] {
        refused(w.agent_config("n/sub"), [&out, &state]);
        refused(w.agent_config("link/deep/er"), [&out, &state]);
        refused(agent::Config { state: w.path("b"), ..w.agent_config("n/sub") }, [&out, &state]);
        refused(state_inside.clone(), [&out, &state]);
        drop(outer);
    }
    assert!(!w.path("n/sub").exists() && !w.path("n/deep").exists() && !w.path("m").exists());
    // The outer one's state folder is not where it is looked for, and the inner one is there first.
    let inner = w.agent("o/deep/sub");
    await_that("the inner one", || text(&w.path("o/deep/sub/a")) == "1");
    let far = agent::Config { state: w.path("far"), take_over: true, ..w.agent_config("o") };
    let folder = w.path("o/deep/sub.state").display().to_string();
    refused(far.clone(), [&folder, "the state folder of an agent"]);
    inner.ends();
    refused(far.clone(), [&folder, "the state folder of an agent"]);
    assert!(w.path("o/deep/sub/a").exists() && w.path("o/deep/sub.state/identity").exists());
    fs::remove_dir_all(w.path("o/deep")).expect("ours");
    let outer = Running::agent(far.clone());
    w.await_equal("o");
    // It comes while the outer one runs, which says so when it would delete it, and at its start.
    let inner = w.agent("o/sub");
    await_that("the inner one", || text(&w.path("o/sub/a")) == "1");
    w.write("src/sub", "a file");
    outer.await_line("files are not in place");
    assert!(w.path("o/sub.state/identity").exists());
    outer.ends();
    refused(far, [&w.path("o/sub.state").display().to_string(), "the state folder of an agent"]);
    inner.ends();
}

#[test]
fn a_revision_that_has_a_state_folder_in_it_is_kept_as_any_other() {
    for layout in [agent::Layout::Flat, agent::Layout::Versioned { keep: 2 }] {
        let w = World::with(&[("a", "1")]);
        w.ran();
        // Somebody publishes a copy of one.
        for file in ["identity", "role", "out"] {
            fs::create_dir_all(w.path("src/x.state")).expect("writable");
            fs::copy(w.path("n.state").join(file), w.path("src/x.state").join(file)).expect("writable");
        }
        let server = w.serve();
        let config = agent::Config { layout, ..w.agent_config("m") };
        for _ in 0..2 {
            let agent = Running::agent(config.clone());
            agent.await_line("state: Live");
            server.await_line("node m ");
            await_that("the revision", || {
                let below = if layout == agent::Layout::Flat { "m" } else { "m/current" };
                w.tree(below) == w.tree("src")
            });
            agent.ends();
        }
    }
}

#[test]
fn a_slash_at_the_end_makes_no_difference() {
    let w = World::with(&[("a", "1")]);
    let mut config = serve::Config::new(w.path("src/"));
    config.bind = vec![w.url.clone()];
    assert_eq!(config.state, w.path("src.state"));
    let server = Running::serve(config);
    let mut config = agent::Config::new(w.path("n/"));
    config.connect = vec![w.url.clone()];
    assert_eq!((&config.state, &*config.name), (&w.path("n.state"), "n"));
    let _agent = Running::agent(config);
    server.await_line("node n ");
    server.await_line("applied 1/");
    w.await_equal("n");
    assert_eq!(w.tree("src").keys(), 1);
}

#[test]
fn a_directory_beside_which_nothing_lies_needs_a_state_folder_by_name() {
    let w = World::new();
    let mut config = serve::Config::new("/");
    config.bind = vec![w.url.clone()];
    let refused = Running::serve(config).refused();
    assert!(
        matches!(refused, ProcessError::Refused(_)) && refused.to_string().contains("--state"),
        "{refused}"
    );
    // A mount point: nothing outside of it can be renamed into it.
    let mut config = agent::Config::new("/proc");
    config.connect = vec![w.url.clone()];
    config.state = w.path("state");
    let refused = Running::agent(config).refused();
    assert!(refused.to_string().contains("/proc/current"), "{refused}");
    assert!(!w.path("state").exists());
}

#[test]
fn what_keeps_the_last_good_revision_from_its_place_does_not_keep_the_agent_from_running() {
    let w = World::new();
    // A revision that no tree can hold, as another program might have stored it.
    let deep = "d/".repeat(70) + "f";
    let state: State = [(Key::new(deep).expect("short"), Entry::new(0, "x"))].into_iter().collect();
    let mut slots = store::Store::open(&w.path("n.state")).expect("writable");
    slots.save(&head(1, 1, &state), &state).expect("written");
    drop(slots);
    let mut config = w.agent_config("n");
    // It is not tried again, and no clock overflows.
    config.again = Duration::MAX;
    let agent = Running::agent(config);
    agent.await_line("files are not in place: key d/d/");
    agent.await_line("state: Cached");
    w.write("src/a", "1");
    let mut config = w.serve_config();
    config.new_epoch = Some(2);
    let server = Running::serve(config);
    server.await_line("applied 2/");
    w.await_equal("n");
}

#[test]
fn a_link_put_into_the_directory_is_taken_away_and_not_followed() {
    let w = World::with(&[("d/a", "1")]);
    w.write("outside/a", "precious");
    let (server, agent) = w.server_and_agent();
    fs::remove_dir_all(w.path("n/d")).expect("ours");
    std::os::unix::fs::symlink(w.path("outside"), w.path("n/d")).expect("writable");
    w.write("src/d/a", "2");
    agent.await_line("is a symbolic link");
    server.await_line(", applied 1/");
    await_that("the repair", || text(&w.path("n/d/a")) == "2");
    assert_eq!(text(&w.path("outside/a")), "precious");
    assert!(!w.path("n/d").is_symlink());
}

#[test]
fn a_tree_that_this_node_cannot_hold_is_refused_and_the_last_one_stays() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let mut config = w.agent_config("n");
    config.limits = Limits { bytes: 100, ..Limits::default() };
    let _agent = Running::agent(config);
    server.await_line("applied 1/");
    w.write("src/big", &"x".repeat(1000));
    server.await_line("TooLarge");
    assert_eq!((text(&w.path("n/a")).as_str(), w.path("n/big").exists()), ("1", false));
    fs::remove_file(w.path("src/big")).expect("ours");
    w.write("src/a", "3");
    w.await_equal("n");
}

#[test]
fn a_directory_that_was_taken_away_or_replaced_is_kept_anew_with_the_next_revision() {
    for layout in [agent::Layout::Flat, agent::Layout::Versioned { keep: 2 }] {
        let w = World::with(&[("a", "1"), ("d/b", "1")]);
        let server = w.serve();
        let agent = Running::agent(agent::Config { layout, ..w.agent_config("n") });
        let shown = match layout {
            agent::Layout::Flat => "n",
            agent::Layout::Versioned { .. } => "n/current",
        };
        w.await_equal(shown);
        server.await_line("applied 1/");
        fs::remove_dir_all(w.path("n")).expect("ours");
        w.write("src/a", "2");
        agent.await_line("was taken away or replaced");
        w.await_equal(shown);
        server.await_line("applied 1/");
        // What is elsewhere now is not written to any more.
        fs::rename(w.path("n"), w.path("moved")).expect("ours");
        w.write("n/stray", "");
        w.write("src/a", "3");
        w.await_equal(shown);
        let moved = w.path(&shown.replacen('n', "moved", 1)).join("a");
        assert_eq!(text(&moved), "2");
        agent.ends();
        server.ends();
    }
}
