//! What an agent runs: the hook after a change, and the check before it.

use std::fs;
use std::time::{Duration, Instant};

use spanwire_config::agent;

use super::harness::{PATIENCE, Running, World, await_that, text};

#[test]
fn a_change_reaches_the_directory_and_the_hook_learns_what_changed() {
    let w = World::with(&[("a", "1"), ("d/b", "2")]);
    let server = w.serve();
    let mut config = w.agent_config("n");
    let log = w.path("hooks");
    config.on_change = Some(format!(
        "printf '%s|%s|%s|%s\\n' \"$CONFIG_SYNC_EPOCH\" \"$CONFIG_SYNC_REVISION\" \
         \"$(echo $CONFIG_SYNC_CHANGED)\" \"$(echo $(cat $CONFIG_SYNC_CHANGED_FILE))\" >> '{}'",
        log.display()
    ));
    let _agent = Running::agent(config);
    server.await_line("applied 1/");
    assert_eq!(w.tree("n"), w.tree("src"));
    fs::remove_file(w.path("src/d/b")).expect("ours");
    await_that("the delete", || !w.path("n/d").exists());
    await_that("its hook", || text(&log).lines().count() == 2);
    assert_eq!(text(&log), "1|1|a d/b|a d/b\n1|2|d/b|d/b\n");
}

#[test]
fn promise_18_identical_content_runs_no_hook_even_over_restarts() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let hooked = |w: &World| {
        let mut config = w.agent_config("n");
        config.on_change = Some(format!("echo $CONFIG_SYNC_CHANGED >> '{}'", w.path("hooks").display()));
        config
    };
    let agent = Running::agent(hooked(&w));
    server.await_line("applied 1/");
    // The same bytes written again: whoever has seen the file that comes after has read them, too.
    w.write("src/a", "1");
    w.write("src/b", "2");
    // Done, and not only begun: one that is ended in its midst is owed.
    agent.await_lines(2, "hook: done");
    assert_eq!((w.stored("n"), text(&w.path("hooks")).as_str()), (Some(2), "a\nb\n"));
    // Again, and both processes started again.
    w.write("src/a", "1");
    agent.ends();
    server.ends();
    let server = w.serve();
    let agent = Running::agent(hooked(&w));
    server.await_line("applied 1/");
    agent.await_line("state: Live");
    assert_eq!((w.stored("n"), text(&w.path("hooks")).as_str()), (Some(2), "a\nb\n"));
}

#[test]
fn a_hook_that_fails_or_hangs_is_reported_and_the_files_stay() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let mut config = w.agent_config("n");
    config.hook_limit = Duration::from_millis(300);
    config.on_change =
        Some("case $CONFIG_SYNC_REVISION in 1) echo broken >&2; exit 7;; 2) sleep 1000;; esac".into());
    let _agent = Running::agent(config);
    let line = server.await_line("Hook");
    assert!(line.contains("broken") && line.contains('7'), "{line}");
    assert_eq!(w.tree("n"), w.tree("src"));
    w.write("src/a", "2");
    let line = server.await_line("not done after");
    assert!(line.contains("applied -"), "{line}");
    // The third succeeds, with what changed since the last that did.
    w.write("src/b", "3");
    let applied = server.await_line(", applied 1/");
    assert!(applied.contains(":3"), "{applied}");
    w.await_equal("n");
}

#[test]
fn invariant_10_what_the_check_command_refuses_is_held_and_the_last_good_stays() {
    let w = World::with(&[("a", "good"), ("d/b", "2")]);
    let server = w.serve();
    let checked = |w: &World| {
        let mut config = w.agent_config("n");
        // It stands in the new tree, and is told what is kept now.
        config.validate = Some(format!(
            "echo \"$(cat a) over $(cat \"$CONFIG_SYNC_OUT/a\"): $(echo $CONFIG_SYNC_CHANGED) $(cat d/b) $(echo $(ls))\" >> '{}'; \
             if grep -q bad a; then echo it is bad >&2; exit 3; fi; if grep -q slow a; then sleep 1000; fi",
            w.path("checks").display()
        ));
        config.validate_limit = Duration::from_millis(1_500);
        config.on_change = Some(format!("cat \"$CONFIG_SYNC_OUT/a\" >> '{}'", w.path("hooks").display()));
        config
    };
    let mut agent = Running::agent(checked(&w));
    server.await_line("applied 1/");
    w.write("src/a", "bad");
    let line = server.await_line("Check");
    assert!(line.contains("it is bad") && line.contains('3') && line.contains("applied 1/"), "{line}");
    agent.await_line("state: Held");
    assert_eq!((text(&w.path("n/a")), w.stored("n")), ("good".into(), Some(1)));
    // After a restart it is judged again, once.
    agent.ends();
    agent = Running::agent(checked(&w));
    agent.await_line("refused");
    agent.await_line("state: Held");
    assert_eq!(text(&w.path("n/a")), "good");
    // Too long is a refusal too, and what comes after is taken.
    w.write("src/a", "slow");
    server.await_line("not done after");
    w.write("src/a", "better");
    await_that("the next", || text(&w.path("n/a")) == "better");
    let checks = text(&w.path("checks"));
    let expected = "good over : a d/b 2 a d\nbad over good: a 2 a d\nbad over good: a 2 a d\n\
                    slow over good: a 2 a d\nbetter over good: a 2 a d\n";
    assert_eq!(checks, expected);
    await_that("its hook", || text(&w.path("hooks")) == "goodbetter");
    // An agent that ends while it waits for the command has taken nothing.
    w.write("src/a", "slow again");
    await_that("the command", || text(&w.path("checks")).contains("slow again"));
    agent.ends();
    assert_eq!(text(&w.path("n/a")), "better");
    let lines = server.ends();
    assert!(!lines.iter().any(|line| line.contains("visible 1/") && line.contains(":5,")));
}

/// An agent with this hook, which finds `$HOOKS`, the file for its words.
fn hooked(w: &World, hook: &str) -> agent::Config {
    let mut config = w.agent_config("n");
    config.on_change = Some(format!("HOOKS='{}'; {hook}", w.path("hooks").display()));
    config
}

#[test]
fn what_failed_hooks_were_not_told_is_told_after_a_restart() {
    let w = World::with(&[("a", "1"), ("b", "1"), ("c", "1")]);
    let server = w.serve();
    let agent = Running::agent(hooked(&w, "[ $CONFIG_SYNC_REVISION = 1 ] || { echo no >&2; exit 1; }"));
    server.await_line("applied 1/");
    fs::remove_file(w.path("src/b")).expect("ours");
    agent.await_line("hook: exit");
    w.write("src/a", "3");
    agent.await_lines(2, "hook: exit");
    agent.ends();
    assert_eq!(w.stored("n"), Some(3));
    let _agent = Running::agent(hooked(&w, "echo $CONFIG_SYNC_REVISION $CONFIG_SYNC_CHANGED >> $HOOKS"));
    await_that("the hook", || text(&w.path("hooks")).ends_with('\n'));
    assert_eq!(text(&w.path("hooks")), "3 a b\n");
}

#[test]
fn a_hook_that_could_not_be_run_is_tried_again() {
    let w = World::with(&[("a", "1")]);
    let server = w.serve();
    let agent = Running::agent(hooked(&w, "exit 1"));
    agent.await_line("hook: exit");
    agent.ends();
    // No list of what changed can be written.
    fs::remove_file(w.path("n.state/changed")).expect("ours");
    let blocked = w.path("n.state/changed.new");
    fs::create_dir(&blocked).expect("ours");
    let agent = Running::agent(hooked(&w, "echo $CONFIG_SYNC_CHANGED >> $HOOKS"));
    agent.await_line("hook: not run");
    assert_eq!(text(&w.path("hooks")), "");
    fs::remove_dir(&blocked).expect("ours");
    server.await_line(", applied 1/");
    assert_eq!(text(&w.path("hooks")), "a\n");
}

#[test]
fn an_agent_that_is_ended_does_not_wait_for_its_hook() {
    let w = World::with(&[("a", "1")]);
    let _server = w.serve();
    let mut config = hooked(&w, "echo begun >> $HOOKS; sleep 1000; echo done >> $HOOKS");
    config.hook_limit = PATIENCE * 2;
    let agent = Running::agent(config);
    await_that("the hook", || text(&w.path("hooks")) == "begun\n");
    let began = Instant::now();
    agent.ends();
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let _agent = Running::agent(hooked(&w, "echo again >> $HOOKS"));
    await_that("it runs again", || text(&w.path("hooks")) == "begun\nagain\n");
}
