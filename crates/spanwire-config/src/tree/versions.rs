//! A directory for each revision, and a link `current` to the one that is shown.
//!
//! A revision is written whole where nobody looks, synced, moved to its name, and then `current` is switched by one
//! rename: a reader that enters by the link finds one revision, as long as it stays in. Files that did not change are
//! hard links to the revision before, each after a look at its content. A crash at any moment leaves `current` at a
//! whole revision, or absent if there was none.
//!
//! Owns: the names below the root, and how many revisions stay. Never: changes a file of a revision in place, or takes
//! away the one that `current` shows.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{FOLDER, Output, TreeError, above, at, check, delete, names, still_named};
use crate::{Position, State};

/// The link.
const CURRENT: &str = "current";
/// In the staging folder: the revision on its way, and files on their way into it.
const TREE: &str = "tree";
const FILES: &str = "files";

/// A root that holds one directory for each revision kept, and the link.
#[derive(Debug)]
pub(crate) struct Versions {
    root: PathBuf,
    dir: OwnedFd,
    staging: PathBuf,
    stage: OwnedFd,
    keep: usize,
    ignores_case: bool,
}

/// A revision that is written whole and synced, not yet at its place.
#[derive(Debug)]
pub(crate) struct Built {
    name: String,
    state: State,
}

/// `EPOCH-REV-INCARNATION`, as a person sorts it.
fn name_of(at: Position) -> String {
    format!("{}-{}-{:?}", at.epoch.number, at.rev, at.epoch.incarnation)
}

/// Epoch and revision, if it is the name of one.
fn parse(name: &[u8]) -> Option<(u64, u64)> {
    let mut parts = std::str::from_utf8(name).ok()?.split('-');
    let (epoch, rev, incarnation) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = incarnation.len() == 8 && incarnation.bytes().all(|b| b.is_ascii_hexdigit());
    (hex && parts.next().is_none()).then_some((epoch.parse().ok()?, rev.parse().ok()?))
}

/// Whether a directory of this name is a revision's.
pub(crate) fn names_revision(name: &[u8]) -> bool {
    parse(name).is_some()
}

impl Versions {
    /// Opens `root`, and `staging` for what is on its way; both are made if absent. `keep` revisions stay, the one
    /// shown included.
    pub(crate) fn open(root: &Path, staging: &Path, keep: usize) -> Result<Versions, TreeError> {
        // It looks at the file systems, and sweeps.
        let Output { root, staging, dir, stage, ignores_case } = Output::open(root, staging)?;
        Ok(Versions { root, dir, staging, stage, keep: keep.max(1), ignores_case })
    }

    pub(crate) fn ignores_case(&self) -> bool {
        self.ignores_case
    }

    /// Whether the root that is open still has its name.
    pub(crate) fn is_there(&self) -> bool {
        still_named(&self.dir, &self.root)
    }

    /// Whether nothing is in the root.
    pub(crate) fn is_empty(&self) -> Result<bool, TreeError> {
        Ok(names(&self.dir).map_err(|e| at(&self.root)(e.into()))?.is_empty())
    }

    /// Where the files of a revision are.
    pub(crate) fn path(&self, at: Position) -> PathBuf {
        self.root.join(name_of(at))
    }

    /// A directory below `above` as the root of a tree; a link is not followed. `make`: an empty one in the place of
    /// whatever is there.
    fn tree(&self, above: &OwnedFd, path: PathBuf, name: &str, make: bool) -> Result<Output, TreeError> {
        let io = |e: Errno| at(&path)(e.into());
        if make {
            delete(above, name.as_bytes()).map_err(io)?;
            rustix::fs::mkdirat(above, name, Mode::RWXU | Mode::RWXG | Mode::RWXO).map_err(io)?;
        }
        let dir = rustix::fs::openat(above, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(io)?;
        let files = self.staging.join(FILES);
        match rustix::fs::mkdirat(&self.stage, FILES, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(at(&files)(e.into())),
        }
        let stage = rustix::fs::openat(&self.stage, FILES, FOLDER | OFlags::NOFOLLOW, Mode::empty());
        let stage = stage.map_err(|e| at(&files)(e.into()))?;
        Ok(Output { root: path, staging: files, dir, stage, ignores_case: self.ignores_case })
    }

    /// Writes and syncs a whole revision in the staging folder. `before`: the one that is shown, whose files serve
    /// where they are the same.
    pub(crate) fn stage(
        &self,
        position: Position,
        state: &State,
        before: Option<(Position, &State)>,
    ) -> Result<Built, TreeError> {
        check(state, self.ignores_case)?;
        let new = self.tree(&self.stage, self.staging.join(TREE), TREE, true)?;
        if let Some((shown, held)) = before
            && let Ok(old) = self.tree(&self.dir, self.path(shown), &name_of(shown), false)
        {
            link(&old, held, &new, state)?;
        }
        // What a link brought along that is not right (edited by hand) is written anew, like what is missing.
        new.repair(state)?;
        rustix::fs::fsync(&new.dir).map_err(|e| at(&new.root)(e.into()))?;
        Ok(Built { name: name_of(position), state: state.clone() })
    }

    /// Puts it at its place and shows it, then takes away what is kept no more.
    pub(crate) fn switch(&self, built: Built) -> Result<(), TreeError> {
        let Built { name, state } = built;
        if self.is_tree(&name) {
            // It was here before: seen, so not to be replaced.
            self.tree(&self.dir, self.root.join(&name), &name, false)?.repair(&state)?;
        } else {
            let io = |e: Errno| at(&self.root.join(&name))(e.into());
            delete(&self.dir, name.as_bytes()).map_err(io)?;
            rustix::fs::renameat(&self.stage, TREE, &self.dir, &name).map_err(io)?;
            self.sync()?;
        }
        self.show(&name)?;
        self.prune(&name).map(drop)
    }

    /// Makes the root hold this revision whole and the link to it, whatever is in it. Returns what differed, for
    /// people.
    pub(crate) fn repair(&self, position: Position, state: &State) -> Result<Vec<String>, TreeError> {
        let name = name_of(position);
        let mut differed = Vec::new();
        if self.is_tree(&name) {
            differed.extend(self.tree(&self.dir, self.path(position), &name, false)?.repair(state)?);
            if self.show(&name)? {
                differed.push(CURRENT.into());
            }
            differed.extend(self.prune(&name)?);
        } else {
            let built = self.stage(position, state, None)?;
            differed.push(name);
            self.switch(built)?;
        }
        Ok(differed)
    }

    fn is_tree(&self, name: &str) -> bool {
        let stat = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn sync(&self) -> Result<(), TreeError> {
        rustix::fs::fsync(&self.dir).map_err(|e| at(&self.root)(e.into()))
    }

    /// Switches the link; whether it had to be.
    fn show(&self, name: &str) -> Result<bool, TreeError> {
        let link = self.root.join(CURRENT);
        let io = |e: Errno| at(&link)(e.into());
        match rustix::fs::readlinkat(&self.dir, CURRENT, Vec::new()) {
            Ok(shown) if shown.as_bytes() == name.as_bytes() => return Ok(false),
            // A rename replaces a link or a file, and no directory.
            Err(Errno::INVAL) => delete(&self.dir, CURRENT.as_bytes()).map_err(io)?,
            _ => {}
        }
        delete(&self.stage, CURRENT.as_bytes()).map_err(io)?;
        rustix::fs::symlinkat(name, &self.stage, CURRENT).map_err(io)?;
        rustix::fs::renameat(&self.stage, CURRENT, &self.dir, CURRENT).map_err(io)?;
        self.sync()?;
        Ok(true)
    }

    /// Takes away revisions beyond those kept, the lowest first, and what does not belong here; returns the latter.
    fn prune(&self, shown: &str) -> Result<Vec<String>, TreeError> {
        let (mut others, mut foreign) = (BTreeSet::new(), Vec::new());
        for name in names(&self.dir).map_err(|e| at(&self.root)(e.into()))? {
            if name == shown.as_bytes() || name == CURRENT.as_bytes() {
                continue;
            }
            let is_tree = std::str::from_utf8(&name).is_ok_and(|name| self.is_tree(name));
            match parse(&name).filter(|_| is_tree) {
                Some(place) => drop(others.insert((place, name))),
                None => {
                    let path = self.root.join(OsStr::from_bytes(&name));
                    delete(&self.dir, &name).map_err(|e| at(&path)(e.into()))?;
                    foreign.push(String::from_utf8_lossy(&name).into_owned());
                }
            }
        }
        while others.len() >= self.keep {
            let Some((_, name)) = others.pop_first() else { break };
            let path = self.root.join(OsStr::from_bytes(&name));
            delete(&self.dir, &name).map_err(|e| at(&path)(e.into()))?;
        }
        Ok(foreign)
    }
}

/// Links the files of `held` that are the same in `state` from one tree into the other. One that cannot be linked is
/// written later.
fn link(old: &Output, held: &State, new: &Output, state: &State) -> Result<(), TreeError> {
    let mut touched = BTreeSet::new();
    for (key, _) in state.iter().filter(|(key, entry)| held.get(key.as_bytes()) == Some(*entry)) {
        let Ok(Some((from, file))) = old.parent(key, false) else { continue };
        let Some((to, _)) = new.parent(key, true)? else { continue };
        if rustix::fs::linkat(&from, file, &to, file, AtFlags::empty()).is_ok() {
            touched.insert(above(key));
        }
    }
    touched.iter().try_for_each(|below| new.sync(below))
}

#[cfg(test)]
mod tests;
