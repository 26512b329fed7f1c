//! A hook that fails, where the files go back to those that it succeeded for last.

use std::fs;

use spanwire_config::agent::{Config, Layout, OnFailure};

use super::harness::{Running, World, await_that, text};

impl World {
    /// An agent that goes back. Its hook writes revision, content and what changed, and fails for what is bad.
    fn restoring(&self, name: &str) -> Config {
        let mut config = self.agent_config(name);
        config.on_failure = OnFailure::Restore;
        config.on_change = Some(format!(
            "a=$(cat $CONFIG_SYNC_TREE/a); \
             echo $CONFIG_SYNC_REVISION $a: $CONFIG_SYNC_CHANGED >> '{}'; \
             case $a in bad*) echo no $a >&2; exit 7;; esac",
            self.path("hooks").display()
        ));
        config
    }

    /// The same in a copy of its folders, which name the directory that they were copied from.
    fn restored(&self, name: &str) -> Config {
        Config { take_over: true, ..self.restoring(name) }
    }

    fn hooks(&self) -> String {
        text(&self.path("hooks"))
    }
}

#[test]
fn after_a_failed_hook_the_files_before_are_put_back_once_and_the_next_revision_is_tried() {
    let w = World::with(&[("a", "good"), ("b", "1"), ("c", "1")]);
    let server = w.serve();
    let _agent = Running::agent(w.restoring("n"));
    server.await_line("applied 1/");
    let good = w.tree("src");
    fs::remove_file(w.path("src/b")).expect("ours");
    await_that("the delete", || w.hooks().lines().count() == 2);
    w.write("src/a", "bad");
    // What is told upward: the newest is shown and failed, and what stands in its place.
    let line = server.await_line("restored 1/");
    assert!(line.contains("Hook: exit status: 7: no bad; restored"), "{line}");
    let (levels, refused) = line.split_once("; refused").expect("both");
    assert!(levels.contains(":3, applied 1/") && levels.ends_with(":2"), "{line}");
    assert!(refused.contains(":3: Hook") && refused.ends_with(":2"), "{line}");
    assert_eq!((text(&w.path("n/a")), w.path("n/b").exists()), ("good".into(), false));
    assert_eq!(w.stored("n"), Some(3));
    // The next is compared with what is there.
    w.write("src/b", "1");
    w.write("src/a", "good");
    await_that("the next", || w.tree("n") == good);
    w.write("src/c", "2");
    server.await_line("applied 1/");
    await_that("its hook", || w.hooks().lines().any(|line| line.ends_with("c")));
    let hooks = w.hooks();
    let told: Vec<&str> = hooks.lines().collect();
    assert_eq!(told[..4], ["1 good: a b c", "2 good: b", "3 bad: a", "2 good: a"]);
    // Good again, whichever of the two files came first: no hook for a that is as it was.
    assert!(told[4..].iter().all(|line| line.contains("good:") && !line.contains(": a")), "{told:?}");
}

#[test]
fn killed_at_its_hook_or_on_the_way_back_it_tries_the_newest_again_and_goes_back_as_far_as_before() {
    let w = World::with(&[("a", "good")]);
    let server = w.serve();
    let mut config = w.restoring("n");
    // Each run leaves the folders as a kill in its midst would.
    let at = |below: &str| w.path(below).display().to_string();
    let copies = format!(
        "k={}$(cat '{}' 2>/dev/null | wc -l); cp -R '{}' $k; cp -R '{}' $k.state",
        at("kill"),
        at("hooks"),
        at("n"),
        at("n.state")
    );
    config.on_change = config.on_change.map(|hook| format!("{copies}; {hook}"));
    let agent = Running::agent(config);
    server.await_line("applied 1/");
    for (n, bad) in ["bad 2", "bad 3", "bad 4"].iter().enumerate() {
        w.write("src/a", bad);
        agent.await_lines(n + 1, "restored: ");
    }
    agent.ends();
    server.ends();
    // The first run was for revision 1; then for each that was bad, and back.
    let kills =
        ["kill1", "kill2", "kill3", "kill4", "kill5", "kill6", "n"].into_iter().zip([2, 2, 3, 3, 4, 4, 4]);
    for (name, rev) in kills {
        fs::remove_file(w.path("hooks")).expect("ours");
        // With no server: both are known from its own folder.
        let agent = Running::agent(w.restored(name));
        agent.await_line("restored: ");
        let expected = format!("{rev} bad {rev}: a\n1 good: a\n");
        assert_eq!((w.hooks(), text(&w.path(&format!("{name}/a")))), (expected, "good".into()), "{name}");
        assert_eq!(w.stored(name), Some(rev));
        let lines = agent.ends();
        assert_eq!(lines.iter().filter(|line| line.contains("hook: exit")).count(), 1, "{lines:#?}");
    }
    // With a server: what it is told of a node that was started again.
    let server = w.serve();
    let agent = Running::agent(w.restoring("n"));
    let line = server.await_line("restored 1/");
    let applied = line.split("applied ").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_default();
    assert!(applied.ends_with(":1") && line.contains(":4: Hook: "), "{line}");
    w.write("src/a", "better");
    await_that("what it applied", || server.await_line("applied 1/").ends_with(":5"));
    assert!(w.hooks().ends_with("5 better: a\n"), "{}", w.hooks());
    agent.ends();
}

#[test]
fn where_the_hook_fails_for_what_was_put_back_too_it_is_left_at_that() {
    let w = World::with(&[("a", "good"), ("b", "1")]);
    let server = w.serve();
    let mut config = w.restoring("n");
    let broken = w.path("broken");
    config.on_change =
        config.on_change.map(|hook| format!("{hook}; if [ -e '{}' ]; then exit 9; fi", broken.display()));
    let agent = Running::agent(config);
    server.await_line("applied 1/");
    w.write("broken", "");
    w.write("src/a", "bad");
    let line = server.await_line("failed, too");
    assert!(
        line.contains("status: 7") && line.contains("status: 9") && line.contains(":1; refused"),
        "{line}"
    );
    assert_eq!(text(&w.path("n/a")), "good");
    // All that the hook has not succeeded for since.
    fs::remove_file(&broken).expect("ours");
    w.write("src/a", "good");
    await_that("the next", || w.hooks().lines().count() == 4);
    agent.await_lines(2, "hook: done");
    assert_eq!(w.hooks(), "1 good: a b\n2 bad: a\n1 good: a\n3 good: a\n");
    let lines = agent.ends();
    assert_eq!(lines.iter().filter(|line| line.contains("hook: exit")).count(), 2, "{lines:#?}");
}

#[test]
fn without_a_revision_to_go_back_to_the_files_stay_and_a_directory_for_each_revision_is_gone_back_to() {
    let w = World::with(&[("a", "bad 1")]);
    let server = w.serve();
    let mut config = w.restoring("n");
    config.layout = Layout::Versioned { keep: 1 };
    let agent = Running::agent(config);
    agent.await_line("nothing to restore");
    assert!(server.await_line("Hook").contains("applied -"));
    assert_eq!(text(&w.path("n/current/a")), "bad 1");
    w.write("src/a", "good");
    server.await_line("applied 1/");
    w.write("src/a", "bad 3");
    server.await_line("restored 1/");
    assert_eq!(text(&w.path("n/current/a")), "good");
    w.write("src/a", "better");
    agent.await_lines(3, "hook: done");
    assert_eq!(text(&w.path("n/current/a")), "better");
    assert_eq!(w.hooks(), "1 bad 1: a\n2 good: a\n3 bad 3: a\n2 good: a\n4 better: a\n");
}
