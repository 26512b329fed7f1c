//! Whose a state folder is, and the end of one that was made for a start that failed.
//!
//! Owns: the note of its kind; taking away what this process alone has made. Never: takes away a folder in which something
//! was kept.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Store, StoreError, parse_identity};
use crate::folders;

/// Longest note that is read of a folder that may be anybody's, in bytes: a path.
const NOTE: u64 = 4096;

/// Note in the folder: which kind of process it is of.
const ROLE: &str = "role";

/// The kinds of processes that have a state folder of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Role {
    /// [`serve`](crate::serve).
    Server,
    /// [`relay`](crate::relay).
    Relay,
    /// [`agent`](crate::agent).
    Agent,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Relay => "relay",
            Role::Agent => "agent",
        }
    }

    /// For a sentence.
    pub(crate) fn of_one(self) -> &'static str {
        match self {
            Role::Server => "a server",
            Role::Relay => "a relay",
            Role::Agent => "an agent",
        }
    }
}

/// Whose the folder is, as it says itself or by what is in it; `None`: that cannot be told, or it is no state folder.
pub fn role(dir: &Path) -> Option<Role> {
    let noted = small(&dir.join(ROLE)).unwrap_or_default();
    let known =
        [Role::Server, Role::Relay, Role::Agent].into_iter().find(|role| role.name().as_bytes() == noted);
    // What each of them makes, in folders of before the note.
    known.or_else(|| {
        let there = |name: &str| dir.join(name).exists();
        match () {
            () if ["log", "namespaces", "source"].into_iter().any(there) => Some(Role::Server),
            () if there("out") => Some(Role::Agent),
            () => None,
        }
    })
}

/// A small file of what may be anybody's folder: nothing there holds this up (a pipe) or fills memory.
pub(crate) fn small(path: &Path) -> Option<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut bytes = Vec::new();
    let is_small = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= NOTE);
    (is_small && file.take(NOTE).read_to_end(&mut bytes).is_ok()).then_some(bytes)
}

/// Whether it is a state folder: it says who somebody is.
pub(crate) fn holds_identity(dir: &Path) -> bool {
    small(&dir.join("identity")).is_some_and(|bytes| parse_identity(&bytes).is_some())
}

/// A folder that was made now, for as long as it is not sure that it will be used.
#[derive(Debug)]
pub(super) struct New(NewDir);

impl Store {
    /// As [`open`](Store::open), for a process of this kind: another's folder is left as it is. A folder that this makes is
    /// taken away again with what is in it, unless [`keep`](Store::keep) is called or a log is begun in it.
    pub(crate) fn open_as(dir: &Path, wanted: Role) -> Result<Store, StoreError> {
        let found = role(dir);
        if let Some(found) = found.filter(|found| *found != wanted) {
            let dir = dir.to_owned();
            return Err(StoreError::Foreign { dir, of: found.of_one(), not: wanted.of_one() });
        }
        folders::not_kept(dir, dir)?;
        let new = NewDir::look(dir);
        let mut store = Store::open(dir)?;
        if store.identity.opened == 1 {
            store.new = Some(New(new));
        } else {
            new.keep();
        }
        if !store.path(ROLE).exists() {
            // On a full disk another start does it.
            let _ = store.set_note(ROLE, wanted.name().as_bytes());
        }
        Ok(store)
    }

    /// The folder stays, whatever becomes of this process.
    pub(crate) fn keep(&mut self) {
        if let Some(New(dir)) = self.new.take() {
            dir.keep();
        }
    }
}

impl Drop for Store {
    /// With the lock held.
    fn drop(&mut self) {
        let Some(New(dir)) = self.new.take() else { return };
        if !prune(&self.dir) {
            // Something was kept in it by now.
            return dir.keep();
        }
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Takes away the directories below that hold nothing but such; whether none is left.
fn prune(dir: &Path) -> bool {
    let inside = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.fold(true, |all, entry| {
        prune(&entry.path());
        fs::remove_dir(entry.path()).is_ok() && all
    })
}

/// A directory that may be about to be made. Unless it is kept, it is taken away at the end with those above it that
/// were not there either, as far as they are empty.
#[derive(Debug)]
pub(crate) struct NewDir(Vec<PathBuf>);

impl NewDir {
    pub(crate) fn look(dir: &Path) -> NewDir {
        let absent = |dir: &&Path| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err();
        NewDir(dir.ancestors().take_while(absent).map(Path::to_owned).collect())
    }

    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        // One that is not empty ends it.
        let _ = self.0.iter().try_for_each(fs::remove_dir);
    }
}
