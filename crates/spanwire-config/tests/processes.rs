//! The two processes of config-sync, in threads: real sockets, real files, real hooks.
#![cfg(all(unix, feature = "sync"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spanwire_config::process::{Log, ProcessError, Stopper, shutdown};
use spanwire_config::sign::{Keyring, Secret};
use spanwire_config::{Limits, State, agent, relay, serve, store, tree};

#[path = "processes/control.rs"]
mod control;
#[path = "processes/files.rs"]
mod files;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a process logged, and who waits for more.
type Lines = Arc<(Mutex<Vec<String>>, Condvar)>;

/// A process in a thread; ended when dropped.
struct Running {
    lines: Lines,
    stopper: Option<Stopper>,
    thread: Option<JoinHandle<Result<(), ProcessError>>>,
}

impl Running {
    fn start(
        run: impl FnOnce(spanwire_config::process::Shutdown, Log) -> Result<(), ProcessError> + Send + 'static,
    ) -> Running {
        let (stopper, stop) = shutdown();
        let lines = Lines::default();
        let log = Log::new({
            let lines = lines.clone();
            move |line| {
                lines.0.lock().expect("no logger panics").push(line.to_owned());
                lines.1.notify_all();
            }
        });
        let thread = Some(std::thread::spawn(move || run(stop, log)));
        Running { lines, stopper: Some(stopper), thread }
    }

    fn serve(config: serve::Config) -> Running {
        Running::start(move |stop, log| serve::run(&config, &stop, &log))
    }

    fn agent(config: agent::Config) -> Running {
        Running::start(move |stop, log| agent::run(&config, &stop, &log))
    }

    fn lines(&self) -> Vec<String> {
        self.lines.0.lock().expect("no logger panics").clone()
    }

    #[track_caller]
    fn await_line(&self, part: &str) -> String {
        let found = |lines: &[String]| lines.iter().rev().find(|line| line.contains(part)).cloned();
        let lines = self.lines.0.lock().expect("no logger panics");
        let waited = self.lines.1.wait_timeout_while(lines, PATIENCE, |lines| found(lines).is_none());
        let lines = waited.expect("no logger panics").0.clone();
        found(&lines).unwrap_or_else(|| panic!("waited for {part:?} in {lines:#?}"))
    }

    /// It does not start, and says why.
    #[track_caller]
    fn refusal(mut self) -> String {
        let thread = self.thread.take().expect("not ended yet");
        await_that("the refusal", || thread.is_finished());
        thread.join().expect("it does not panic").expect_err("it is refused").to_string()
    }

    fn end(&mut self) -> Result<(), ProcessError> {
        self.stopper = None;
        let thread = self.thread.take().expect("ended once");
        thread.join().expect("it does not panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if std::thread::panicking() {
                eprintln!("its last words: {:#?}, {ended:?}", self.lines());
            }
        }
    }
}

#[track_caller]
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let latest = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < latest, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct World {
    temp: tempfile::TempDir,
    url: String,
}

impl World {
    fn new() -> World {
        let temp = tempfile::tempdir().expect("a folder");
        let url = format!("ipc://{}", temp.path().join("s.ipc").display());
        fs::create_dir(temp.path().join("src")).expect("writable");
        World { temp, url }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("below")).expect("writable");
        // Beside and renamed, so that nobody sees half of it.
        let temp = self.path("half");
        fs::write(&temp, text).expect("writable");
        fs::rename(&temp, path).expect("writable");
    }

    fn serve_config(&self) -> serve::Config {
        let mut config = serve::Config::new(self.path("src"));
        config.bind = vec![self.url.clone()];
        config.beacon = Duration::from_millis(100);
        config.debounce = Duration::from_millis(10);
        config
    }

    fn agent_config(&self, name: &str) -> agent::Config {
        let mut config = agent::Config::new(self.path(name));
        config.connect = vec![self.url.clone()];
        config.again = Duration::from_millis(50);
        config
    }

    fn tree(&self, below: &str) -> State {
        tree::read(&self.path(below), &Limits::default()).map(|t| t.state).unwrap_or_default()
    }

    #[track_caller]
    fn await_equal(&self, name: &str) {
        await_that(&format!("{name} to equal the source"), || self.tree(name) == self.tree("src"));
    }

    fn stored(&self, name: &str) -> Option<u64> {
        let dir = self.path(&format!("{name}.state"));
        store::peek(&dir, Limits::default().bytes).map(|(head, _)| head.position.rev)
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_change_reaches_the_directory_and_the_hook_learns_what_changed() {
    let w = World::new();
    w.write("src/a", "1");
    w.write("src/d/b", "2");
    let server = Running::serve(w.serve_config());
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
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let hooked = |w: &World| {
        let mut config = w.agent_config("n");
        config.on_change = Some(format!("echo $CONFIG_SYNC_CHANGED >> '{}'", w.path("hooks").display()));
        config
    };
    let mut agent = Running::agent(hooked(&w));
    server.await_line("applied 1/");
    // The same bytes written again: whoever has seen the file that comes after has read them, too.
    w.write("src/a", "1");
    w.write("src/b", "2");
    await_that("the hook of b", || text(&w.path("hooks")).contains('b'));
    assert_eq!((w.stored("n"), text(&w.path("hooks")).as_str()), (Some(2), "a\nb\n"));
    // Again, and both processes started again.
    w.write("src/a", "1");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    let server = Running::serve(w.serve_config());
    let agent = Running::agent(hooked(&w));
    server.await_line("applied 1/");
    agent.await_line("state: Live");
    assert_eq!((w.stored("n"), text(&w.path("hooks")).as_str()), (Some(2), "a\nb\n"));
}

#[test]
fn a_hook_that_fails_or_hangs_is_reported_and_the_files_stay() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
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
    let w = World::new();
    w.write("src/a", "good");
    w.write("src/d/b", "2");
    let mut server = Running::serve(w.serve_config());
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
    agent.end().expect("a farewell");
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
    agent.end().expect("a farewell");
    assert_eq!(text(&w.path("n/a")), "better");
    server.end().expect("a farewell");
    assert!(!server.lines().iter().any(|line| line.contains("visible 1/") && line.contains(":5,")));
}

#[test]
fn invariant_05_an_agent_with_keys_takes_only_what_they_signed() {
    let w = World::new();
    w.write("src/a", "1");
    let (old, new) = (Secret::from_seed(1, &[1; 32]), Secret::from_seed(2, &[2; 32]));
    let mut config = w.serve_config();
    (config.secret, config.keys) = (Some(old.clone()), old.public());
    let mut server = Running::serve(config.clone());
    let trusting = |name: &str, trust: &Keyring| {
        let mut config = w.agent_config(name);
        config.trust = trust.clone();
        Running::agent(config)
    };
    let mut agent = trusting("n", &old.public());
    server.await_line("applied 1/");
    w.await_equal("n");
    let stranger = trusting("m", &new.public());
    stranger.await_line("no trusted key signed");
    assert!(!w.path("m/a").exists());
    // The key is replaced: both are trusted for a while, and then what is in the folder is believed under the old one.
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    agent = trusting("n", &new.public());
    agent.await_line("last good revision in place");
    agent.end().expect("a farewell");
    let mut revoked = new.public();
    revoked.revoke(&old.public());
    agent = trusting("n", &revoked);
    agent.await_line("is revoked");
    agent.await_line("state: Empty");
    (config.secret, config.keys) = (Some(new.clone()), new.public());
    config.keys.add(&old.public());
    let _server = Running::serve(config);
    stranger.await_line("state: Live");
    agent.await_line("state: Live");
    w.await_equal("n");
}

#[test]
fn promise_17_an_agent_starts_without_any_server_and_repairs_drift() {
    let w = World::new();
    w.write("src/a", "1");
    w.write("src/b", "2");
    let mut server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    let good = w.tree("src");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    w.write("n/a", "by hand");
    w.write("n/stray", "");
    let agent = Running::agent(w.agent_config("n"));
    let line = agent.await_line("repaired");
    assert!(line.ends_with("differed from it: stray, a"), "{line}");
    assert_eq!(w.tree("n"), good);
}

#[test]
fn promise_17_a_tampered_cache_is_refused_and_reported() {
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    let slot = w.path("n.state/slot-a");
    let mut bytes = fs::read(&slot).expect("written");
    let at = bytes.len() - 33;
    bytes[at] ^= 1;
    fs::write(&slot, bytes).expect("ours");
    let agent = Running::agent(w.agent_config("n"));
    agent.await_line("damaged, passed over");
    agent.await_line("state: Empty");
    // What is in the directory stays: it is the last good one for all that is known.
    assert_eq!(text(&w.path("n/a")), "1");
    w.write("src/a", "2");
    let _server = Running::serve(w.serve_config());
    w.await_equal("n");
}

#[test]
fn revisions_do_not_fall_when_the_server_starts_again() {
    let w = World::new();
    let mut last = None;
    for n in 0..4 {
        w.write("src/a", &n.to_string());
        let mut server = Running::serve(w.serve_config());
        let mut agent = Running::agent(w.agent_config("n"));
        w.await_equal("n");
        await_that("a higher revision", || w.stored("n") > last);
        last = w.stored("n");
        agent.end().expect("a farewell");
        server.end().expect("a farewell");
    }
    assert_eq!(last, Some(4));
}

#[test]
fn promise_05_an_empty_tree_is_never_an_accident() {
    let w = World::new();
    w.write("src/a", "1");
    let mut config = w.serve_config();
    config.rescan = Duration::from_millis(20);
    let mut server = Running::serve(config.clone());
    let _agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    fs::remove_file(w.path("src/a")).expect("ours");
    server.await_line("--allow-empty");
    assert_eq!(text(&w.path("n/a")), "1");
    // The same for a tree that is gone.
    fs::remove_dir(w.path("src")).expect("ours");
    server.await_line("No such file");
    server.end().expect("a farewell");
    fs::create_dir(w.path("src")).expect("ours");
    config.allow_empty = true;
    let _server = Running::serve(config);
    await_that("the empty tree", || w.path("n").exists() && w.tree("n").is_empty());
}

#[test]
fn changes_are_found_by_reading_where_no_word_of_them_comes() {
    let w = World::new();
    w.write("src/a", "1");
    // A root that is a link: what it points to is replaced whole, and the watch keeps the old directory.
    let (link, other) = (w.path("link"), w.path("other"));
    std::os::unix::fs::symlink(w.path("src"), &link).expect("writable");
    let mut config = w.serve_config();
    config.dir = Some(link.clone());
    config.state = w.path("server.state");
    config.rescan = Duration::from_millis(50);
    let server = Running::serve(config);
    let _agent = Running::agent(w.agent_config("n"));
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
    let mut agent = Running::agent(w.agent_config("n"));
    assert!(matches!(agent.end(), Err(ProcessError::Refused(_))));
    assert_eq!(text(&w.path("n/precious")), "mine");
    let mut config = w.agent_config("n");
    config.take_over = true;
    w.write("src/a", "1");
    let _server = Running::serve(w.serve_config());
    let agent = Running::agent(config);
    w.await_equal("n");
    drop(agent);
}

#[test]
fn folders_inside_each_other_are_refused_and_nothing_is_left_in_them() {
    let w = World::new();
    w.write("src/a", "1");
    w.write("n/mine", "");
    for inside in ["state", "", "deep/er", "../src/x"] {
        let mut config = w.serve_config();
        config.state = w.path("src").join(inside);
        assert!(matches!(Running::serve(config).end(), Err(ProcessError::Refused(_))), "{inside}");
    }
    let mut config = w.agent_config("n");
    config.state = w.path("n/state");
    assert!(matches!(Running::agent(config).end(), Err(ProcessError::Refused(_))));
    let names = |dir: &str| -> Vec<_> {
        let entries = fs::read_dir(w.path(dir)).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name()).collect()
    };
    assert_eq!((names("src"), names("n")), (vec!["a".into()], vec!["mine".into()]));
}

#[test]
fn a_slash_at_the_end_makes_no_difference() {
    let w = World::new();
    w.write("src/a", "1");
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
    let refused = Running::serve(config).end().expect_err("there is no place for it");
    assert!(
        matches!(refused, ProcessError::Refused(_)) && refused.to_string().contains("--state"),
        "{refused}"
    );
    // A mount point: nothing outside of it can be renamed into it.
    let mut config = agent::Config::new("/proc");
    config.connect = vec![w.url.clone()];
    config.state = w.path("state");
    let refused = Running::agent(config).end().expect_err("no file can be put in place");
    assert!(refused.to_string().contains("/proc/current"), "{refused}");
    assert!(!w.path("state").exists());
}

#[test]
fn what_keeps_the_last_good_revision_from_its_place_does_not_keep_the_agent_from_running() {
    let w = World::new();
    // A revision that no tree can hold, as another program might have stored it.
    let deep = "d/".repeat(70) + "f";
    let state: State =
        [(spanwire_config::Key::new(deep).expect("short"), spanwire_config::Entry::new(0, "x"))]
            .into_iter()
            .collect();
    let epoch = spanwire_config::Epoch { number: 1, incarnation: spanwire_config::Id([1; 16]) };
    let head = spanwire_config::Head {
        cluster: spanwire_config::Id::named("config-sync"),
        namespace: "config".into(),
        position: spanwire_config::Position { epoch, rev: 1 },
        digest: state.digest(),
        keys: state.keys(),
        bytes: state.bytes(),
        ..Default::default()
    };
    let mut slots = store::Store::open(&w.path("n.state")).expect("writable");
    slots.save(&head, &state).expect("written");
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

/// An agent with this hook, which finds `$HOOKS`, the file for its words.
fn hooked(w: &World, hook: &str) -> agent::Config {
    let mut config = w.agent_config("n");
    config.on_change = Some(format!("HOOKS='{}'; {hook}", w.path("hooks").display()));
    config
}

#[test]
fn what_failed_hooks_were_not_told_is_told_after_a_restart() {
    let w = World::new();
    w.write("src/a", "1");
    w.write("src/b", "1");
    w.write("src/c", "1");
    let server = Running::serve(w.serve_config());
    let mut agent = Running::agent(hooked(&w, "[ $CONFIG_SYNC_REVISION = 1 ] || { echo no >&2; exit 1; }"));
    server.await_line("applied 1/");
    fs::remove_file(w.path("src/b")).expect("ours");
    await_that("a failure", || agent.lines().iter().any(|line| line.starts_with("hook: exit")));
    w.write("src/a", "3");
    await_that("two failures", || {
        agent.lines().iter().filter(|line| line.starts_with("hook: exit")).count() == 2
    });
    agent.end().expect("a farewell");
    assert_eq!(w.stored("n"), Some(3));
    let _agent = Running::agent(hooked(&w, "echo $CONFIG_SYNC_REVISION $CONFIG_SYNC_CHANGED >> $HOOKS"));
    await_that("the hook", || text(&w.path("hooks")).ends_with('\n'));
    assert_eq!(text(&w.path("hooks")), "3 a b\n");
}

#[test]
fn a_hook_that_could_not_be_run_is_tried_again() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let mut agent = Running::agent(hooked(&w, "exit 1"));
    agent.await_line("hook: exit");
    agent.end().expect("a farewell");
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
    let w = World::new();
    w.write("src/a", "1");
    let _server = Running::serve(w.serve_config());
    let mut config = hooked(&w, "echo begun >> $HOOKS; sleep 1000; echo done >> $HOOKS");
    config.hook_limit = PATIENCE * 2;
    let mut agent = Running::agent(config);
    await_that("the hook", || text(&w.path("hooks")) == "begun\n");
    let began = Instant::now();
    agent.end().expect("a farewell");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let _agent = Running::agent(hooked(&w, "echo again >> $HOOKS"));
    await_that("it runs again", || text(&w.path("hooks")) == "begun\nagain\n");
}

#[test]
fn an_identity_that_cannot_be_written_holds_while_the_agent_runs() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    let identity = w.path("n.state/identity");
    let old = fs::read(&identity).expect("written");
    for _ in 0..2 {
        let mut agent = Running::agent(w.agent_config("n"));
        agent.await_line("state: Live");
        agent.end().expect("a farewell");
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
fn a_link_put_into_the_directory_is_taken_away_and_not_followed() {
    let w = World::new();
    w.write("src/d/a", "1");
    w.write("outside/a", "precious");
    let server = Running::serve(w.serve_config());
    let agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
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
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
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
fn a_lost_state_folder_of_the_server_freezes_nodes_until_a_new_epoch() {
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    fs::remove_dir_all(w.path("src.state")).expect("ours");
    w.write("src/a", "2");
    // No node is there to tell that the folder was lost.
    let mut server = Running::serve(w.serve_config());
    server.await_line("revision 1/");
    let agent = Running::agent(w.agent_config("n"));
    agent.await_line("ALARM: two histories");
    server.await_line("ALARM: holds another history");
    assert_eq!(text(&w.path("n/a")), "1");
    server.end().expect("a farewell");
    let mut config = w.serve_config();
    config.new_epoch = Some(2);
    let _server = Running::serve(config);
    w.await_equal("n");
}

#[test]
fn a_copied_state_folder_is_noticed() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    let identity = fs::read(w.path("n.state/identity")).expect("written");
    // Started once more, then put back.
    let mut agent = Running::agent(w.agent_config("n"));
    agent.await_line("state: Live");
    agent.end().expect("a farewell");
    let mut agent = Running::agent(w.agent_config("n"));
    agent.await_line("state: Live");
    agent.end().expect("a farewell");
    fs::write(w.path("n.state/identity"), identity).expect("ours");
    let agent = Running::agent(w.agent_config("n"));
    agent.await_line("older copy");
    agent.await_line("state: Live");
}

#[test]
fn a_damaged_log_of_the_server_is_refused_until_a_new_epoch_begins_without_it() {
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    server.end().expect("a farewell");
    let log = w.path("src.state/log/log");
    let mut bytes = fs::read(&log).expect("written");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).expect("ours");
    let refused = Running::serve(w.serve_config()).end().expect_err("damage is not served");
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
    let w = World::new();
    w.write("src/a", "1");
    let mut state = State::new();
    let key = spanwire_config::Key::new("a").expect("short");
    state.put(key, spanwire_config::Entry::new(0, "0"));
    let epoch = spanwire_config::Epoch { number: 4, incarnation: spanwire_config::Id([4; 16]) };
    let head = spanwire_config::Head {
        cluster: spanwire_config::Id::named("config-sync"),
        namespace: "config".into(),
        position: spanwire_config::Position { epoch, rev: 30 },
        digest: state.digest(),
        keys: state.keys(),
        bytes: state.bytes(),
        ..Default::default()
    };
    let mut slots = store::Store::open(&w.path("src.state")).expect("writable");
    slots.save(&head, &state).expect("written");
    drop(slots);
    let server = Running::serve(w.serve_config());
    let _agent = Running::agent(w.agent_config("n"));
    w.await_equal("n");
    assert!(server.await_line("a new epoch begins").contains("5/"), "{:?}", server.lines());
    assert!(server.await_line("revision 5/").contains(":32:"), "{:?}", server.lines());
}

#[test]
fn invariant_07_a_log_put_back_from_a_copy_stops_commits_until_a_new_epoch() {
    let w = World::new();
    w.write("src/a", "1");
    let secret = spanwire_config::sign::Secret::from_seed(1, &[3; 32]);
    let config = || {
        let mut config = w.serve_config();
        config.keys = secret.public();
        config.secret = Some(secret.clone());
        config.rescan = Duration::from_millis(100);
        config
    };
    let mut server = Running::serve(config());
    let agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    server.end().expect("a farewell");
    let log = w.path("src.state/log/log");
    let copy = fs::read(&log).expect("written");
    w.write("src/a", "2");
    let mut server = Running::serve(config());
    w.await_equal("n");
    server.await_line("visible 1/");
    server.end().expect("a farewell");
    // The log of before; the mark tells of more than it has, so that has to be lost too.
    fs::write(&log, copy).expect("ours");
    fs::remove_file(w.path("src.state/log/mark")).expect("ours");
    w.write("src/a", "3");
    let mut server = Running::serve(config());
    server.await_line("commits stop until a new epoch begins");
    w.write("src/a", "4");
    server.await_line("the tree is not published");
    assert_eq!(text(&w.path("n/a")), "2", "the node keeps what it has");
    server.end().expect("a farewell");
    let mut config = config();
    config.new_epoch = Some(2);
    let _server = Running::serve(config);
    w.await_equal("n");
    drop(agent);
}

#[test]
fn invariant_13_a_lost_state_folder_begins_nothing_anew_where_a_node_tells_of_it() {
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    fs::remove_dir_all(w.path("src.state")).expect("ours");
    // Its tree takes a while to come to rest; the node is there before that.
    w.write("src/a", "2");
    let mut config = w.serve_config();
    config.debounce = Duration::from_secs(1);
    let mut server = Running::serve(config.clone());
    server.await_line("listening");
    let agent = Running::agent(w.agent_config("n"));
    server.await_line("--new-epoch 2");
    assert!(!server.lines().iter().any(|line| line.contains("revision ")), "{:#?}", server.lines());
    assert_eq!(text(&w.path("n/a")), "1");
    server.end().expect("a farewell");
    config.new_epoch = Some(2);
    let server = Running::serve(config);
    w.await_equal("n");
    server.await_line("revision 2/");
    drop(agent);
}

#[test]
fn promise_05_an_empty_tree_is_no_accident_where_the_log_was_lost() {
    let w = World::new();
    w.write("src/a", "1");
    let mut server = Running::serve(w.serve_config());
    let agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    server.end().expect("a farewell");
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
fn invariant_07_a_node_of_a_lost_history_stops_commits_though_the_server_went_on_and_started_again() {
    let w = World::new();
    w.write("src/a", "1");
    let secret = spanwire_config::sign::Secret::from_seed(1, &[3; 32]);
    let config = || {
        let mut config = w.serve_config();
        config.keys = secret.public();
        config.secret = Some(secret.clone());
        // So long that nothing but the node's own word can be the cause.
        config.rescan = Duration::from_secs(600);
        config
    };
    let mut server = Running::serve(config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    let log = w.path("src.state/log/log");
    let copy = fs::read(&log).expect("written");
    w.write("src/a", "2");
    let mut server = Running::serve(config());
    let mut agent = Running::agent(w.agent_config("n"));
    w.await_equal("n");
    server.await_line("visible 1/");
    agent.end().expect("a farewell");
    server.end().expect("a farewell");
    fs::write(&log, copy).expect("ours");
    fs::remove_file(w.path("src.state/log/mark")).expect("ours");
    for n in 3..6 {
        w.write("src/a", &n.to_string());
        let mut server = Running::serve(config());
        server.await_line("revision 1/");
        server.end().expect("a farewell");
    }
    let server = Running::serve(config());
    server.await_line("listening");
    let _agent = Running::agent(w.agent_config("n"));
    server.await_line("commits stop until a new epoch begins");
    assert_eq!(text(&w.path("n/a")), "2", "the node keeps what it has");
}

#[test]
fn a_state_folder_of_another_namespace_or_cluster_is_refused() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let mut agent = Running::agent(w.agent_config("n"));
    server.await_line("applied 1/");
    agent.end().expect("a farewell");
    let change = |change: &dyn Fn(&mut agent::Config)| {
        let mut config = w.agent_config("n");
        change(&mut config);
        config
    };
    for config in [
        change(&|config| config.namespace = "other".into()),
        change(&|config| config.cluster = "other".into()),
    ] {
        let refused = Running::agent(config).refusal();
        assert!(refused.contains("config") && refused.contains("namespace"), "{refused}");
    }
    assert_eq!(text(&w.path("n/a")), "1");
}

impl World {
    fn relay(&self, name: &str, connect: &[&str]) -> Running {
        self.relay_with(name, connect, Keyring::new())
    }

    fn relay_with(&self, name: &str, connect: &[&str], keys: Keyring) -> Running {
        let mut config = relay::Config::new(self.path(name));
        config.keys = keys;
        config.connect = connect.iter().map(|of| self.url_of(of)).collect();
        config.bind = vec![self.url_of(name)];
        config.beacon = Duration::from_millis(100);
        Running::start(move |stop, log| relay::run(&config, &stop, &log))
    }

    /// The address of the server or of a relay.
    fn url_of(&self, name: &str) -> String {
        if name == "src" { self.url.clone() } else { format!("ipc://{}", self.path(name).display()) + ".ipc" }
    }

    fn agent_below(&self, name: &str, servers: &[&str]) -> Running {
        let mut config = self.agent_config(name);
        config.connect = servers.iter().map(|of| self.url_of(of)).collect();
        Running::agent(config)
    }
}

#[test]
fn invariant_26_a_relay_that_ends_costs_its_agents_one_fail_over_and_no_revision() {
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let (mut one, two) = (w.relay("one", &["src"]), w.relay("two", &["src"]));
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
        if n == 1 {
            one.end().expect("it ran well");
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
    let w = World::new();
    w.write("src/a", "1");
    let server = Running::serve(w.serve_config());
    let relay = w.relay("one", &["src"]);
    relay.await_line("revision ");
    await_that("the folder to hold it", || store::peek(&w.path("one"), 1 << 20).is_some());
    drop((relay, server));
    let relay = w.relay("one", &["src"]);
    relay.await_line("last good revision");
    let _agent = w.agent_below("late", &["one"]);
    w.await_equal("late");
}

#[test]
fn what_makes_no_sense_to_serve_is_refused_before_anything_is_made() {
    let w = World::new();
    w.write("src/a", "1");
    let mut config = serve::Config::new(w.path("src/a"));
    config.bind = vec!["tcp://127.0.0.1:0".into()];
    assert!(Running::serve(config).end().is_err());
    assert!(!w.path("src/a.state").exists());
    // An epoch below the one that is here.
    let mut config = w.serve_config();
    config.new_epoch = Some(3);
    let mut server = Running::serve(config);
    server.await_line("listening at");
    server.end().expect("a farewell");
    for number in [0, 2] {
        let mut config = w.serve_config();
        config.new_epoch = Some(number);
        let refused = Running::serve(config).end().expect_err("it is not begun");
        assert!(refused.to_string().contains("--new-epoch"), "{refused}");
    }
    // The one that is here may be said again, as in a unit file.
    let mut config = w.serve_config();
    config.new_epoch = Some(3);
    Running::serve(config).await_line("listening at");
}

#[test]
fn invariant_05_a_relay_with_keys_passes_nothing_on_that_they_did_not_sign() {
    let w = World::new();
    w.write("src/a", "1");
    let (key, other) = (Secret::generate(1).expect("random"), Secret::generate(1).expect("random"));
    let mut config = w.serve_config();
    config.secret = Some(key.clone());
    let server = Running::serve(config);
    let stranger = w.relay_with("stranger", &["src"], other.public());
    stranger.await_line("no trusted key signed");
    let _relay = w.relay_with("relay", &["src"], key.public());
    let _agent = w.agent_below("n", &["relay"]);
    server.await_line("applied 1/");
    w.await_equal("n");
    assert!(!stranger.lines().iter().any(|line| line.starts_with("revision ")), "{:#?}", stranger.lines());
}
