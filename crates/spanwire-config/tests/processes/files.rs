//! What an agent makes of a revision below its directory: layouts, templates.

use std::fs;
use std::path::PathBuf;

use spanwire_config::agent::{self, Layout, Template};
use spanwire_config::{State, store};

use super::harness::{Running, World, await_that, text};

impl World {
    fn versioned(&self, name: &str, keep: usize) -> agent::Config {
        let mut config = self.agent_config(name);
        config.layout = Layout::Versioned { keep };
        config.on_change = Some(format!(
            "echo \"$CONFIG_SYNC_OUT $(basename $CONFIG_SYNC_TREE) $(cat $CONFIG_SYNC_TREE/a)\" >> '{}'",
            self.path("hooks").display()
        ));
        config
    }

    /// The name of the revision that the link leads to.
    fn current(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(self.path(name).join("current")).ok()
    }

    fn shown(&self, name: &str) -> State {
        self.tree(&format!("{name}/current"))
    }
}

#[test]
fn with_a_directory_for_each_revision_the_link_leads_to_the_newest_and_hooks_are_told_which() {
    let w = World::new();
    w.write("src/a", "1");
    w.write("src/d/b", "1");
    let server = Running::serve(w.serve_config());
    let agent = Running::agent(w.versioned("n", 2));
    for rev in 2..=4 {
        await_that("the hook", || text(&w.path("hooks")).lines().count() == rev - 1);
        w.write("src/a", &rev.to_string());
    }
    await_that("the last hook", || text(&w.path("hooks")).lines().count() == 4);
    assert_eq!(w.shown("n"), w.tree("src"));
    let (head, _) = store::peek(&w.path("n.state"), 1 << 20).expect("stored");
    let incarnation = head.position.epoch.incarnation;
    let out = w.path("n");
    let told: Vec<String> =
        (1..=4).map(|rev| format!("{} 1-{rev}-{incarnation:?} {rev}", out.display())).collect();
    assert_eq!(text(&w.path("hooks")).lines().collect::<Vec<_>>(), told);
    assert_eq!(fs::read_dir(&out).expect("it is there").count(), 3, "two revisions and the link");

    // Without any server, with drift in what is shown.
    let lines = agent.ends();
    assert!(lines.iter().all(|line| !line.contains("put right")), "nothing was wrong: {lines:#?}");
    server.ends();
    fs::write(out.join("current/a"), "mine").expect("writable");
    fs::remove_file(out.join("current/d/b")).expect("ours");
    fs::write(out.join("stray"), "").expect("writable");
    let agent = Running::agent(w.versioned("n", 2));
    agent.await_line("last good revision in place");
    assert_eq!((w.shown("n"), out.join("stray").exists()), (w.tree("src"), false));

    // The other layout, and back.
    agent.ends();
    let agent = Running::agent(w.agent_config("n"));
    agent.await_line("last good revision in place");
    assert_eq!(w.tree("n"), w.tree("src"));
    agent.ends();
    let _agent = Running::agent(w.versioned("n", 2));
    await_that("the link", || w.current("n").is_some());
    await_that("the files", || w.shown("n") == w.tree("src"));
    await_that("what was there before to go", || fs::read_dir(&out).expect("it is there").count() == 2);
}

impl World {
    fn templated(&self, name: &str, text: &str) -> agent::Config {
        self.write("templates/app.conf.j2", text);
        let mut config = self.agent_config(name);
        config.templates = vec![Template { source: self.path("templates"), dest: "made".into() }];
        config.on_change = Some(format!("echo $CONFIG_SYNC_CHANGED >> '{}'", self.path("hooks").display()));
        config
    }
}

#[test]
fn a_template_makes_a_file_of_each_revision_in_the_same_step_as_the_others() {
    let w = World::new();
    w.write("src/port", "80");
    let server = Running::serve(w.serve_config());
    let mut config = w.templated("n", "port = {{ keys.port }} of {{ name }}\n");
    // The command sees what is made, before anything of it is kept.
    config.validate = Some("! grep -q 'port = 0 ' made/app.conf".into());
    let agent = Running::agent(config.clone());
    let made = || text(&w.path("n/made/app.conf"));
    await_that("the first", || text(&w.path("hooks")) == "made/app.conf port\n");
    assert_eq!((text(&w.path("n/port")), made()), ("80".into(), "port = 80 of n\n".into()));
    w.write("src/port", "0");
    assert!(server.await_line("Check").contains("applied 1/"));
    // What the template needs is gone: refused with its words, and the last good one stays.
    w.write("src/other", "1");
    fs::remove_file(w.path("src/port")).expect("ours");
    let line = server.await_line("Validator");
    assert!(line.contains("undefined value") && line.contains("app.conf.j2:1"), "{line}");
    assert_eq!((text(&w.path("n/port")), made()), ("80".into(), "port = 80 of n\n".into()));
    // What is published under the name of what is made is refused, too.
    w.write("src/port", "81");
    await_that("the next", || made() == "port = 81 of n\n");
    w.write("src/made/app.conf", "published");
    assert!(server.await_line("a template makes it too").contains("Validator"));
    fs::remove_file(w.path("src/made/app.conf")).expect("ours");
    w.write("src/port", "82");
    await_that("the last", || made() == "port = 82 of n\n");
    await_that("its hook", || text(&w.path("hooks")).ends_with("\nmade/app.conf port\n"));
    // A hook that was ended with its agent runs again, and one that has written may not have ended yet.
    agent.await_lines(text(&w.path("hooks")).lines().count(), "hook: done");

    // Another template for the same revision: put in place at the next start, and the hook learns of it.
    agent.ends();
    let before = text(&w.path("hooks"));
    let again = w.templated("n", "PORT {{ keys.port }}\n");
    let agent = Running::agent(again.clone());
    await_that("the other", || made() == "PORT 82\n");
    await_that("its hook", || text(&w.path("hooks")) == format!("{before}made/app.conf\n"));
    agent.await_line("hook: done");
    agent.ends();
    let agent = Running::agent(again.clone());
    agent.await_line("state: Live");
    assert_eq!(text(&w.path("hooks")), format!("{before}made/app.conf\n"), "nothing changed");
    // One that cannot be rendered with the last good revision changes nothing.
    agent.ends();
    let _agent = Running::agent(w.templated("n", "{{ keys.none }}\n"));
    let line = server.await_line("is not put in place");
    assert!(line.contains("undefined value"), "{line}");
    assert_eq!((text(&w.path("n/port")), made()), ("82".into(), "PORT 82\n".into()));
    w.write("src/none", "1");
    await_that("the next that can be", || made() == "1\n" && text(&w.path("n/none")) == "1");
}

#[test]
fn a_template_that_cannot_be_understood_keeps_the_agent_from_starting() {
    let w = World::new();
    let why = Running::agent(w.templated("n", "{% if %}")).refused().to_string();
    assert!(why.contains("syntax error") && why.contains("app.conf.j2:1"), "{why}");
    assert!(!w.path("n").exists() && !w.path("n.state").exists());
}
