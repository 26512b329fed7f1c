//! The command that an agent runs after a change, and what it is still to be told of.
//!
//! Owns: the list of changed keys in the state folder. Never: decides when to run.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::command::{self, Failure, Told};
use crate::process::Shutdown;
use crate::store::{Store, StoreError};
use crate::{Head, Key};

/// The file with the list, in the state folder.
const LIST: &str = "changed";
/// No key of a tree: stands for all of them.
const ALL: &[u8] = b"/";

/// Keys that changed since the last run that succeeded: none is left out, some may be too many.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owed(BTreeSet<Key>);

impl Owed {
    /// What was noted before the newest revision was stored, if anything was.
    pub(crate) fn noted(store: &Store) -> Option<Owed> {
        let list = store.note(LIST)?;
        Some(Owed(list.split(|b| *b == b'\n').filter_map(|key| Key::new(key).ok()).collect()))
    }

    /// Notes it. Without a change there is nothing to write.
    pub(crate) fn note(&self, store: &Store) -> Result<(), StoreError> {
        let list = self.list();
        if store.note(LIST).is_some_and(|noted| noted == list) {
            return Ok(());
        }
        store.set_note(LIST, &list)
    }

    /// Adds what changed. Of more than `most` keys only that is known: all may have changed.
    pub(crate) fn add<'k>(&mut self, keys: impl Iterator<Item = &'k Key>, most: usize) {
        if self.0.contains(ALL) {
            return;
        }
        self.0.extend(keys.cloned());
        if self.0.len() > most {
            self.0 = Key::new(ALL).into_iter().collect();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn list(&self) -> Vec<u8> {
        lines(self.0.iter())
    }
}

/// Keys, one a line.
pub(crate) fn lines<'k>(keys: impl Iterator<Item = &'k Key>) -> Vec<u8> {
    keys.flat_map(|key| [key.as_bytes(), b"\n"]).flatten().copied().collect()
}

/// What to run, for how long at most, for which directory.
#[derive(Debug)]
pub(crate) struct Hook<'a> {
    pub(crate) command: &'a str,
    pub(crate) limit: Duration,
    pub(crate) out: &'a Path,
    /// Where the files of the revision are.
    pub(crate) tree: &'a Path,
}

impl Hook<'_> {
    /// Runs the command with the change in its environment; its error output is the reason if it fails.
    pub(crate) fn run(
        &self,
        store: &Store,
        head: &Head,
        owed: &Owed,
        shutdown: &Shutdown,
    ) -> Result<(), Failure> {
        owed.note(store).map_err(|e| Failure::NotRun(e.to_string()))?;
        let (list, file) = (owed.list(), store.dir().join(LIST));
        let told = Told { head, out: self.out, changed: &list, changed_file: &file };
        let mut run = command::shell(self.command, &told);
        command::run(run.env("CONFIG_SYNC_TREE", self.tree), self.limit, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::process::{Stopper, shutdown};

    struct World {
        temp: tempfile::TempDir,
        store: Store,
        stop: Option<Stopper>,
        shutdown: Shutdown,
    }

    fn world() -> World {
        let temp = tempfile::tempdir().expect("a folder");
        let store = Store::open(&temp.path().join("state")).expect("writable");
        let (stop, shutdown) = shutdown();
        World { temp, store, stop: Some(stop), shutdown }
    }

    impl World {
        fn run(&self, command: &str, limit: Duration, owed: &[&str]) -> Result<(), Failure> {
            let hook = Hook { command, limit, out: self.temp.path(), tree: self.temp.path() };
            hook.run(&self.store, &Head::default(), &owed_of(owed), &self.shutdown)
        }

        fn file(&self, name: &str) -> String {
            std::fs::read_to_string(self.temp.path().join(name)).unwrap_or_default()
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    fn owed_of(keys: &[&str]) -> Owed {
        Owed(keys.iter().map(|key| Key::new(key).expect("short")).collect())
    }

    #[test]
    fn a_key_that_ends_in_a_blank_is_named_whole() {
        let w = world();
        w.run("printf '[%s]' \"$CONFIG_SYNC_CHANGED\" > \"$CONFIG_SYNC_OUT/told\"", LONG, &["a", "b \t"])
            .expect("it runs");
        assert_eq!(w.file("told"), "[a\nb \t]");
    }

    #[test]
    fn a_hook_is_ended_with_the_agent_and_has_any_limit() {
        let mut w = world();
        w.run("true", Duration::MAX, &["a"]).expect("it runs");
        let stop = w.stop.take();
        let runs = w.temp.path().join("runs");
        mknodat(CWD, &runs, FileType::Fifo, Mode::RWXU, 0).expect("writable");
        let ending = std::thread::spawn(move || {
            // Opened when the other end is: by the command, when it runs.
            let opened = std::fs::File::open(runs);
            drop(stop);
            // Kept open, or the command would end by a write that nobody reads.
            opened.expect("ours")
        });
        let began = Instant::now();
        let ended = w.run("echo > \"$CONFIG_SYNC_OUT/runs\"; sleep 1000", LONG * 10, &["a"]);
        assert!(matches!(ended, Err(Failure::Ended)), "{ended:?}");
        assert!(began.elapsed() < LONG);
        drop(ending.join().expect("it does not panic"));
    }

    /// Both ends of a pipe of this name, which commands open too.
    fn pipe(w: &World, name: &str) -> std::fs::File {
        let path = w.temp.path().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("writable");
        std::fs::File::options().read(true).write(true).open(path).expect("ours")
    }

    /// What comes out of it at the end of all who write to it, at the latest after a while.
    fn all_of(pipe: std::fs::File, path: &Path) -> Option<String> {
        // A reader that does not write, or it would wait for itself.
        let mut reader = std::fs::File::open(path).expect("ours");
        drop(pipe);
        let (sender, words) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(std::io::read_to_string(&mut reader)));
        words.recv_timeout(LONG).ok().and_then(Result::ok)
    }

    #[test]
    fn at_the_limit_all_ends_that_a_command_started() {
        let w = world();
        let command = "exec > \"$CONFIG_SYNC_OUT/$CONFIG_SYNC_CHANGED\"; sleep 1000 & (sleep 1000; true) & \
                       trap '' TERM; echo begun; sh -c 'sleep 1000; true'";
        let begun = (0..8).any(|n| {
            let name = n.to_string();
            let alive = pipe(&w, &name);
            // Until the limit is long enough for it to begin.
            let ended = w.run(command, Duration::from_millis(100 << n), &[&name]);
            assert!(
                matches!(&ended, Err(Failure::Failed(why)) if why.starts_with("not done after")),
                "{ended:?}"
            );
            let said = all_of(alive, &w.temp.path().join(&name)).expect("nobody writes any more");
            said == "begun\n"
        });
        assert!(begun);
    }

    #[test]
    fn what_a_command_left_in_the_background_outlives_it() {
        let w = world();
        let (mut go, alive) = (pipe(&w, "go"), pipe(&w, "alive"));
        let command = "cd \"$CONFIG_SYNC_OUT\"; exec > alive; (read -r word < go; echo $word) &";
        w.run(command, LONG, &["a"]).expect("it runs");
        // It waits, though nobody waits for it.
        go.write_all(b"go\n").expect("ours");
        assert_eq!(all_of(alive, &w.temp.path().join("alive")).as_deref(), Some("go\n"));
    }

    #[test]
    fn the_last_words_are_kept_of_a_talkative_command_and_none_of_what_it_leaves_behind() {
        let w = world();
        let talk =
            "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; echo last >&2; exit 3";
        match w.run(talk, LONG, &["a"]) {
            Err(Failure::Failed(why)) => {
                assert!(why.contains('3') && why.ends_with("last") && why.len() < 1000, "{why}");
            }
            other => panic!("{other:?}"),
        }
        // It is done when the command is, and nothing waits for the one in the background.
        let pipes = || {
            let open = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
            open.filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .filter(|to| to.to_string_lossy().starts_with("pipe:"))
                .count()
        };
        let (began, before) = (Instant::now(), pipes());
        for _ in 0..50 {
            w.run("sleep 5 &", LONG, &["a"]).expect("it runs");
        }
        // Other tests of this process have a few of their own.
        assert!(pipes() < before + 25, "{before}, then {}", pipes());
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn what_could_not_be_run_is_told_apart_from_what_failed() {
        let w = world();
        assert!(matches!(w.run("exit 1", LONG, &["a"]), Err(Failure::Failed(_))));
        // The list cannot be written.
        std::fs::create_dir(w.store.dir().join("changed.new")).expect("writable");
        assert!(matches!(w.run("true", LONG, &["b"]), Err(Failure::NotRun(_))));
    }

    #[test]
    fn the_list_is_kept_and_bounded() {
        let w = world();
        assert!(Owed::noted(&w.store).is_none());
        let mut owed = owed_of(&["a", "b "]);
        owed.note(&w.store).expect("written");
        assert_eq!(Owed::noted(&w.store).map(|owed| owed.0), Some(owed.0.clone()));
        let more: Vec<Key> = (0..10).map(|n| Key::new(format!("k{n}")).expect("short")).collect();
        owed.add(more.iter(), 5);
        owed.add(more.iter(), 5);
        assert_eq!(owed.list(), b"/\n");
    }
}
