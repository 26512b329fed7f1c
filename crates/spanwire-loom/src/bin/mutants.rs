//! Breaks one rule at a time in a copy, and expects the model to notice.
//!
//! ```text
//! cargo run -p spanwire-loom --features mutants --bin mutants [-- WORD]
//! ```
//! Each mutant names the scenarios that stand for its rule; they are run first, and all others only if those pass.
//! `WORD` picks the mutants whose name holds it. Fails if one of them survives, or if there is none.
//!
//! Owns: a tree below `target/mutants`. Never: touches the sources.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use std::{env, fs, io};

const LEAD: &str = "crates/spanwire/src/engine/lead.rs";
const NOTES: &str = "crates/spanwire/src/engine/notes.rs";
const CORE: &str = "crates/spanwire-loom/src/core.rs";
const CALLS: &str = "crates/spanwire-loom/src/core/calls.rs";
const DRIVING: &str = "crates/spanwire-loom/src/core/driving.rs";
const POLLER: &str = "crates/spanwire-loom/src/poller.rs";
const KERNEL: &str = "crates/spanwire-loom/src/kernel.rs";

/// A rule, where it stands, and how it is broken.
struct Mutant {
    name: &'static str,
    file: &'static str,
    old: &'static str,
    new: &'static str,
    /// A part of the names of the scenarios that are run first.
    by: &'static str,
}

const fn mutant(
    name: &'static str,
    file: &'static str,
    old: &'static str,
    new: &'static str,
    by: &'static str,
) -> Mutant {
    Mutant { name, file, old, new, by }
}

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    // lead.rs: the decision
    mutant("a leader that leaves promotes no follower", LEAD,
        "if let Some(w) = self.pop_one_that_drives() {", "if let Some(w) = self.pop_one_that_drives().filter(|_| false) {",
        "a_thread_that_gives_up_passes_on_the_lead"),
    mutant("a waiter for a key is never promoted", LEAD,
        "let w = found.or_else(|| self.keyed.pop_front().map(|(_, _, w)| w))?;", "let w = found?;",
        "a_key_waiter_takes_over"),
    mutant("a promoted thread is not counted as on its way", LEAD,
        "        self.notified += 1;\n        self.waiting -= 1;\n        Some(w)", "        self.waiting -= 1;\n        Some(w)",
        "a_stalled_pipe_goes_on_while"),
    mutant("arming forgets what was left unread", LEAD,
        "parent.arm() || work || self.unread || self.missed;", "parent.arm() || work || self.missed;",
        "what_a_reader_left_unread"),
    mutant("arming forgets the notices that lie there", LEAD,
        "todo.kick |= parent.arm() || work ||", "parent.arm();\n            todo.kick |= work ||",
        "a_notice_that_lies_there"),
    mutant("arming forgets what came to a runtime while a thread led", LEAD,
        "self.unread || self.missed;", "self.unread;",
        "did_not_see_is_read_for_a_task"),
    mutant("an event for one who watches is lost on another who drives", LEAD,
        "        std::mem::take(&mut self.missed)", "        false",
        "one_after_the_other"),
    mutant("a runtime keeps the driver from knowing when it must come", DRIVING,
        "        if sooner {\n            self.post_and_finish(st);", "        if false {\n            self.post_and_finish(st);",
        "comes_up_while"),
    mutant("a deadline that found a runtime driving counts as known", DRIVING,
        "        st.driver_until = None;\n", "",
        "hears_of_the_deadline"),
    mutant("a thread waits behind a runtime", LEAD,
        "            if parent.lags()\n", "            if false\n",
        "stands_still"),
    mutant("a look without waiting leaves it to a runtime", CORE,
        " || self.link.lags())", ")",
        "stands_still"),
    mutant("a runtime that ends does not arm the driver", DRIVING,
        "        if st.lead.watched() {\n            self.kernel.arm();\n        }\n", "",
        "ends_leaves_its_task"),
    mutant("a runtime that ends puts nothing before the driver", DRIVING,
        "            self.kernel.arm();\n        }\n        self.post_and_finish(st);", "            self.kernel.arm();\n        }\n        self.finish(st);",
        "left_when_it_ended"),
    mutant("a watched socket is not kicked for work", LEAD,
        "            todo.kick |= work;\n", "",
        "by_the_driver_that_watches"),
    mutant("a sleeping receiver hears of no work", LEAD,
        "Some(Want::Recv) => now.can_recv || work,", "Some(Want::Recv) => now.can_recv,",
        "an_endpoint_is_taken_in_by_a_sleeping_leader"),
    mutant("a sleeping sender hears of no work", LEAD,
        "Some(Want::Send) => now.can_send || work,", "Some(Want::Send) => now.can_send,",
        "while_a_sender_leads"),
    mutant("a sleeping sender hears of no room", LEAD,
        "Some(Want::Send) => now.can_send || work,", "Some(Want::Send) => work,",
        "sender"),
    mutant("a sleeping waiter for a key hears of no work", LEAD,
        "Some(Want::Key(_)) => self.leader_fired || work,", "Some(Want::Key(_)) => self.leader_fired,",
        "a_leader_that_waits_for_a_key"),
    mutant("a key does not interrupt its sleeping leader", LEAD,
        "Some(Want::Key(_)) => self.leader_fired || work,", "Some(Want::Key(_)) => work,",
        "a_key_fired_while_its_waiter_leads"),
    mutant("a key fired while its waiter leads is forgotten", LEAD,
        "            self.leader_fired = true;\n        }\n        if self.waiting == 0 {", "        }\n        if self.waiting == 0 {",
        "a_key_fired_while_its_waiter_leads"),
    mutant("a key is fired for the first thread only", LEAD,
        "                self.fired.push(w);\n            }\n        }\n    }\n\n    fn pop(", "                self.fired.push(w);\n                return;\n            }\n        }\n    }\n\n    fn pop(",
        "two_may_close"),
    mutant("a key is not fired for tasks", LEAD,
        "if let Some(tasks) = self.keyed_tasks.remove(&key) {", "if let Some(tasks) = self.keyed_tasks.remove(&key).filter(|_| false) {",
        "a_task_that_waits_for_a_key"),
    mutant("who was told of a key is not counted as on its way", LEAD,
        "                self.waiting -= 1;\n                self.notified += 1;\n                self.fired.push(w);", "                self.waiting -= 1;\n                self.fired.push(w);",
        "a_receiver_is_promoted_after"),
    mutant("a dropped task for a key keeps its place", LEAD,
        " || self.cancel_task(key, id)", "",
        "who_has_given_up"),
    mutant("a waiter that gives up keeps its place in the count", LEAD,
        "self.waiting -= usize::from(found);", "",
        "who_has_given_up"),
    mutant("the quick way out forgets the sleeping leader", LEAD,
        "self.waiting == 0 && self.sleeping.is_none() && self.fired.is_empty();", "self.waiting == 0 && self.fired.is_empty();",
        "close_wakes_a_lone_leader"),
    mutant("the quick way out forgets who was told of a key", LEAD,
        "self.sleeping.is_none() && self.fired.is_empty();", "self.sleeping.is_none();",
        "a_task_that_waits_for_a_key"),
    mutant("the quick way out forgets followers", LEAD,
        "let quiet = self.waiting == 0 && self", "let quiet = self",
        "two_threads_get_one_message_each"),
    mutant("the quick way out forgets what must be done at once", LEAD,
        "let lazy = self.listed && !must && self.keep_watched == 0;", "let lazy = self.listed && self.keep_watched == 0;",
        "a_blocked_pipe_of_a_socket_that_is_only_listed"),
    mutant("what must be done at once waits for the driver's look", LEAD,
        "if self.waiting > 0 || must || self.keep_watched > 0 {", "if self.waiting > 0 || self.keep_watched > 0 {",
        "is_only_listed"),
    mutant("a task that waits is not driven", LEAD,
        "if self.waiting > 0 || must || self.keep_watched > 0 {", "if must || self.keep_watched > 0 {",
        "a_woken_task"),
    mutant("a socket is listed and the driver is not told", LEAD,
        "            self.listed = true;\n            todo.list = true;", "            self.listed = true;",
        "a_socket_that_nobody_waits_on"),
    mutant("the driver's look drops a socket that is in use", LEAD,
        "return Look::Keep;", "return Look::Drop;",
        "a_socket_that_nobody_waits_on"),
    mutant("the driver's look arms nothing", LEAD,
        "        parent.arm(); // the driver drives it right now\n", "",
        "is_only_listed_in_the_end"),
    mutant("the driver's look leaves the socket listed", LEAD,
        "        self.listed = false;\n        if self.token.is_none()", "        if self.token.is_none()",
        "a_socket_that_nobody_waits_on"),
    mutant("a caller that takes the lead leaves the socket watched", LEAD,
        "            self.watched = false;\n            parent.disarm();", "            parent.disarm();",
        "a_poller_for_both"),
    mutant("close does not tell who waits for a key", LEAD,
        "        while let Some((_, _, w)) = self.keyed.pop_front() {\n            self.waiting -= 1;", "        while let Some((_, _, w)) = self.keyed.pop_front().filter(|_| false) {\n            self.waiting -= 1;",
        "close_wakes_leader_follower_and_key_waiter"),
    mutant("close does not tell a task that waits for a key", LEAD,
        "for (_, tasks) in self.keyed_tasks.drain() {", "for (_, tasks) in self.keyed_tasks.drain().filter(|_| false) {",
        "close_wakes_tasks"),
    mutant("close does not tell a leader that waits for a key", LEAD,
        "        self.leader_fired = true;\n    }\n\n    pub(crate) fn watched", "    }\n\n    pub(crate) fn watched",
        "close_wakes_a_lone_leader_that_waits_for_a_key"),
    mutant("close tells no followers", LEAD,
        "            while let Some(w) = self.pop(recv) {", "            while let Some(w) = self.pop(recv).filter(|_| false) {",
        "close_wakes"),
    // Not here: that the driver leaves alone what it does not watch. It would be in the way of callers for a moment, and
    // nobody would be forgotten.
    // notes.rs
    mutant("taking a notice does not see what joined it", NOTES,
        "pending.swap(false, Ordering::AcqRel);", "pending.store(false, Ordering::Release);",
        "absorbed"),
    mutant("a notice does not look whether the loop sleeps", NOTES,
        "        if asleep {\n            self.notes.nudge();", "        if false && asleep {\n            self.notes.nudge();",
        "a_notice_wakes_a_sleeping_leader"),
    mutant("the loop sleeps although notices lie there", NOTES,
        "let quiet = list.is_empty();", "let quiet = true;",
        "a_notice"),
    mutant("the loop says that it sleeps after it has looked", NOTES,
        "        let quiet = list.is_empty();\n", "        let quiet = list.is_empty();\n        drop(list);\n",
        "a_notice"),
    mutant("a notice that was taken absorbs the next", NOTES,
        "            pending.swap(false, Ordering::AcqRel);\n", "            let _ = pending;\n",
        "a_notice"),
    // What core.rs must do
    mutant("the quick way past `leave` forgets bytes left to gather", LEAD,
        " && !owed.ask", "",
        "bytes_left_to_gather"),
    mutant("the quick way past `leave` forgets a new endpoint", LEAD,
        " && !owed.news", "",
        "by_the_driver_that_watches"),
    mutant("the quick way past `leave` forgets a stalled pipe with room", LEAD,
        " && !owed.unstalled", "",
        "a_stalled_pipe"),
    mutant("the quick way past `leave` forgets a timer", LEAD,
        " && !owed.moved", "",
        "a_timer"),
    mutant("the quick way past `leave` forgets an alarm", CORE,
        "moved: timer_moved || st.alarm_moved,", "moved: timer_moved,",
        "an_alarm"),
    mutant("a follower parks without telling anybody", CORE,
        "let id = st.lead.park(want, Who::Thread(me.clone()));\n        self.finish(st);", "let id = st.lead.park(want, Who::Thread(me.clone()));\n        drop(st);",
        "told_for_nothing"),
    mutant("a dropped future passes nothing on", CORE,
        "            st.lead.cancel(want, id);\n            self.finish(st);\n        }\n    }", "            st.lead.cancel(want, id);\n            drop(st);\n        }\n    }",
        "a_woken_task_that_is_dropped"),
    mutant("who gives up after it was told passes nothing on", CORE,
        "                self.finish(st);\n                return result;\n            }\n            (st, late)", "                if late { drop(st) } else { self.finish(st) }\n                return result;\n            }\n            (st, late)",
        "gives_up"),
    mutant("a timer moves and nobody is told", LEAD,
        "owed.news || (owed.moved && earlier())", "owed.news",
        "a_timer"),
    mutant("a timer set lazily is not told to the driver that watches", LEAD,
        "Some(_) => !self.watched,", "Some(_) => true,",
        "a_timer_set_lazily"),
    mutant("a timer set lazily is not told to a leader that sleeps", LEAD,
        "None => self.sleeping.is_none() && !self.watched,", "None => true,",
        "a_timer_set_lazily"),
    mutant("an alarm moves and nobody is told", CALLS,
        "        st.alarm_moved |= st.alarm.is_none_or(|(first, _)| at < first);\n", "",
        "an_alarm"),
    mutant("the driver that is to watch does not learn the next deadline", LEAD,
        "todo.kick = true; // the driver does not know our next deadline", "",
        "a_deadline_of_the_loop"),
    mutant("who gives the loop back keeps its deadline to himself", CORE,
        "st.drive_deadline = d.deadline;", "",
        "a_deadline_of_the_loop"),
    mutant("a leader sleeps past its next deadline", CORE,
        "let due = if patience == Short { NOW } else { st.due_with(d) };", "let due = if patience == Short { NOW } else { None };",
        "a_timer"),
    mutant("the driver sleeps although it left news", DRIVING,
        "let quiet = !d.sticky() && !st.has_news();", "let quiet = true;",
        "a_thread_and_a_task_get_one"),
    mutant("a writer ignores an edge seen during its write", CALLS,
        "} else if st.writable {", "} else if false {",
        "bytes_left_by_a_sender"),
    mutant("a writer leaves what was appended meanwhile to nobody", CALLS,
        "            if rounds == 0 {\n                Self::ask(&mut st);", "            if rounds == 0 {",
        "bytes"),
    mutant("a leader sleeps without a look at the notices", DRIVING,
        "(until != NOW && !self.notes_sleep())", "(until != NOW && self.link.notes.is_none() && !self.notes_sleep())",
        "a_notice_wakes_a_sleeping_leader"),
    mutant("a poller forgets an edge that it saw as a follower", POLLER,
        "self.missed |= event && !matches!(hold, Hold::Lead(_));", "",
        "a_poller"),
    mutant("a poller that was told does not say that it is back", POLLER,
        "st.lead.returned();", "",
        "a_thread_is_promoted_after_a_poller"),
    mutant("a poller leads and does not say for what it sleeps", POLLER,
        "s.before_sleep(&mut st, &drive, want);", "",
        "poller_that_leads"),
    mutant("arming does not look at what is pending (no kernel does this)", KERNEL,
        "            if k.pending() {\n                k.parent = true;", "            if false {\n                k.parent = true;",
        "a_task"),
];

/// The tree that is broken: the model, and what it takes from the engine.
struct Tree {
    root: PathBuf,
    copy: PathBuf,
}

impl Tree {
    fn new() -> io::Result<Tree> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let copy = root.join("target/mutants");
        fs::create_dir_all(&copy)?;
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        let members = manifest.lines().map(|line| match line.starts_with("members") {
            true => "members = [\"crates/spanwire-loom\"]",
            false => line,
        });
        // Each mutant is compiled anew and run for seconds: the compiler's time counts more.
        let quick = "\n[profile.release.package.spanwire-loom]\nopt-level = 1\ndebug = 0\n";
        fs::write(copy.join("Cargo.toml"), members.collect::<Vec<_>>().join("\n") + quick)?;
        fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
        Ok(Tree { root, copy })
    }

    /// Puts the sources there afresh.
    fn restore(&self) -> io::Result<()> {
        let this = "crates/spanwire-loom";
        let mut more =
            ["Cargo.toml", "src/lib.rs", "src/bin/mutants.rs"].map(|f| format!("{this}/{f}")).to_vec();
        for file in fs::read_dir(self.root.join(this).join("src/scenarios"))? {
            more.push(format!("{this}/src/scenarios/{}", file?.file_name().display()));
        }
        let broken = [LEAD, NOTES, CORE, CALLS, DRIVING, POLLER, KERNEL].map(str::to_owned);
        for file in more.iter().chain(&broken) {
            let to = self.copy.join(file);
            fs::create_dir_all(to.parent().expect("below the copy"))?;
            fs::write(to, fs::read(self.root.join(file))?)?;
        }
        Ok(())
    }

    /// Runs the scenarios whose names hold `by`: what was printed, and whether one failed.
    fn run(&self, by: &str) -> io::Result<(String, bool)> {
        let output = Command::new(env::var("CARGO").unwrap_or("cargo".into()))
            .args(["test", "--release", "-p", "spanwire-loom", "--lib", "--", by])
            .current_dir(&self.copy)
            .env("RUSTFLAGS", "--cfg loom --cap-lints allow")
            .env("RUST_BACKTRACE", "0")
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_TARGET_DIR", self.copy.join("target"))
            .output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok((text, !output.status.success()))
    }

    /// The scenario that fails, if one does.
    fn finds(&self, mutant: &Mutant) -> io::Result<Option<String>> {
        self.restore()?;
        let text = fs::read_to_string(self.copy.join(mutant.file))?;
        let places = text.matches(mutant.old).count();
        assert_eq!(places, 1, "{}: found at {places} places", mutant.name);
        fs::write(self.copy.join(mutant.file), text.replace(mutant.old, mutant.new))?;
        for by in [mutant.by, "scenarios"] {
            let (text, failed) = self.run(by)?;
            assert!(text.contains("running "), "{} does not compile:\n{text}", mutant.name);
            assert!(!text.contains("running 0 tests"), "{}: no scenario is called {by}", mutant.name);
            if failed {
                let name = |line: &str| {
                    Some(line.strip_prefix("test scenarios::")?.strip_suffix(" ... FAILED")?.to_owned())
                };
                return Ok(Some(text.lines().find_map(name).unwrap_or_else(|| "the process died".into())));
            }
        }
        Ok(None)
    }
}

fn main() -> io::Result<ExitCode> {
    let word = env::args().nth(1).unwrap_or_default();
    let tree = Tree::new()?;
    let (mut tried, mut found) = (0, 0);
    for mutant in MUTANTS.iter().filter(|m| m.name.contains(&word)) {
        let began = Instant::now();
        let by = tree.finds(mutant)?;
        tried += 1;
        found += usize::from(by.is_some());
        let verdict = by.map_or("MISSED".into(), |by| format!("found by {by}"));
        println!("{:6.1?} {}: {verdict}", began.elapsed(), mutant.name);
    }
    println!("{found} of {tried} found");
    Ok(if tried > 0 && found == tried { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
