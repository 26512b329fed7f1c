//! The command that judges a revision before anything of it is kept or shown.
//!
//! Owns: a copy of the new tree as files, in the state folder, made right before each run. Never: the directory that
//! is kept; an opinion of its own.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{self, Failure, Told};
use crate::process::Shutdown;
use crate::store::Store;
use crate::tree::{Output, TreeError};
use crate::{ChangeSet, Head, State, hook};

/// A command, and where it finds what it is to judge.
#[derive(Debug)]
pub(crate) struct Check {
    command: String,
    limit: Duration,
    /// Holds the tree, the list of what changed, and a staging folder.
    dir: PathBuf,
    tree: Output,
}

impl Check {
    pub(crate) fn open(store: &Store, command: &str, limit: Duration) -> Result<Check, TreeError> {
        let dir = store.dir().join("check");
        let tree = Output::open(&dir.join("tree"), &dir.join("staging"))?;
        Ok(Check { command: command.to_owned(), limit, dir, tree })
    }

    /// Runs it on these files of the revision, in the directory that holds them as the new tree. `changes` is how they
    /// differ from what is in `out`.
    pub(crate) fn run(
        &self,
        head: &Head,
        files: &State,
        changes: &ChangeSet,
        out: &std::path::Path,
        shutdown: &Shutdown,
    ) -> Result<(), Failure> {
        let not_run = |why: String| Failure::NotRun(why);
        // Only what differs from the tree before is written.
        self.tree.repair(files).map_err(|e| not_run(e.to_string()))?;
        let (tree, list) = (self.dir.join("tree"), self.dir.join("changed"));
        let changed = hook::lines(changes.keys());
        std::fs::write(&list, &changed).map_err(|e| not_run(format!("{}: {e}", list.display())))?;
        // A relative name means nothing in the directory that it runs in.
        let out = std::path::absolute(out).map_err(|e| not_run(format!("{}: {e}", out.display())))?;
        let told = Told { head, out: &out, changed: &changed, changed_file: &list };
        let mut run = command::shell(&self.command, &told);
        run.env("CONFIG_SYNC_NEW", &tree).current_dir(&tree);
        command::run(&mut run, self.limit, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::shutdown;

    #[test]
    fn the_command_finds_the_directory_by_a_relative_name_too() {
        let temp = tempfile::tempdir().expect("a folder");
        let store = Store::open(&temp.path().join("state")).expect("writable");
        let command =
            "case $CONFIG_SYNC_OUT in /*/some/out) ;; *) echo \"$CONFIG_SYNC_OUT\" >&2; false ;; esac";
        let check = Check::open(&store, command, Duration::from_secs(20)).expect("writable");
        let (_stopper, stop) = shutdown();
        let (head, files, changes) = (Head::default(), State::new(), ChangeSet::new());
        check.run(&head, &files, &changes, std::path::Path::new("some/out"), &stop).expect("absolute");
    }
}
