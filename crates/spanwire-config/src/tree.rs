//! Directory trees as states: each file is a key, its path below the root with `/` between components.
//!
//! Reading never takes an unreadable file for an empty one, nor a vanished root for an empty tree. Writing
//! goes through descriptors of directories that were opened without following links, so no key can touch
//! anything outside the root: every file is written and synced in a staging folder beside, then put in place
//! by a rename.
//!
//! Owns: the mapping of keys to paths, and its checks. Never: follows a symbolic link; leaves half a file.

mod read;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::{Change, ChangeSet, Entry, Key, OverLimit, State};

pub use read::{Tree, read, read_settled};
pub(crate) use versions::{Built, Versions, names_revision};

/// Flag of an entry whose file is executable.
pub const EXECUTABLE: u16 = 1;

/// Longest component of a path, in bytes.
const COMPONENT: usize = 255;
/// Deepest tree, in directories below the root.
const DEPTH: usize = 64;

/// Why a tree cannot be read, or a state cannot be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The system says no.
    #[error("{path}: {error}")]
    Io {
        /// To what.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// A file kept changing while it was read.
    #[error("{0}: changes while it is read")]
    Unsettled(PathBuf),
    /// A key that is no path below a root.
    #[error("key {key} is no path: {why}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two keys that cannot be files side by side.
    #[error("keys {0} and {1} cannot both be files")]
    Clash(Key, Key),
    /// A symbolic link stands where a directory has to be; it is not followed.
    #[error("{0} is a symbolic link, which is not followed")]
    Link(PathBuf),
    /// Two directories are not on one file system, so that files cannot be put in place at once.
    #[error(
        "{0} is not on the file system of {1}, so files cannot be put in place at once: keep the state folder there"
    )]
    OtherFileSystem(PathBuf, PathBuf),
    /// Over the limits.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TreeError + '_ {
    move |error| TreeError::Io { path: path.to_owned(), error }
}

/// Whether `key` names a file below a root.
///
/// # Errors
/// [`TreeError::Key`]: `/` at the begin or the end, `//`, `.` or `..`, a NUL or a line break, a
/// component over 255 bytes, or more than 64 directories.
pub fn check_key(key: &Key) -> Result<(), TreeError> {
    let why = |why| Err(TreeError::Key { key: key.to_string(), why });
    if key.as_bytes().iter().any(|b| matches!(b, 0 | b'\n')) {
        return why("it contains NUL or a line break");
    }
    if key.as_bytes().iter().filter(|b| **b == b'/').count() > DEPTH {
        return why("more than 64 directories");
    }
    if key.as_bytes().starts_with(b"/") {
        return why("it begins with /, and keys lie below the directory");
    }
    if key.as_bytes().ends_with(b"/") {
        return why("it ends with /, and names no file");
    }
    for component in key.as_bytes().split(|b| *b == b'/') {
        match component {
            b"" => return why("it has // in it"),
            b"." => return why("one of its components is ."),
            b".." => return why("one of its components is .."),
            long if long.len() > COMPONENT => return why("component over 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a file tree can hold this state. `ignores_case`: names that differ only in case are one name.
///
/// # Errors
/// [`TreeError::Key`] and [`TreeError::Clash`] (a file `a` beside `a/b`).
pub fn check(state: &State, ignores_case: bool) -> Result<(), TreeError> {
    let mut folded: BTreeMap<String, &Key> = BTreeMap::new();
    for (key, _) in state.iter() {
        check_key(key)?;
        let bytes = key.as_bytes();
        for above in directories(bytes) {
            if state.get(above).is_some()
                && let Ok(above) = Key::new(above)
            {
                return Err(TreeError::Clash(above, key.clone()));
            }
        }
        if ignores_case {
            let name = String::from_utf8_lossy(bytes).to_lowercase();
            if let Some(other) = folded.insert(name, key) {
                return Err(TreeError::Clash(other.clone(), key.clone()));
            }
        }
    }
    if ignores_case {
        for (name, key) in &folded {
            for (i, _) in name.match_indices('/') {
                if let Some(above) = folded.get(&name[..i]) {
                    return Err(TreeError::Clash((*above).clone(), (*key).clone()));
                }
            }
        }
    }
    Ok(())
}

/// What is in a directory, in order.
fn names(dir: &OwnedFd) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Whether `root` is a mount point, so that nothing outside of it can be renamed into it.
pub(crate) fn is_mount_point(root: &Path) -> bool {
    let open = |path: &Path| rustix::fs::open(path, FOLDER, Mode::empty());
    match (open(&root.join("..")), open(root)) {
        (Ok(above), Ok(root)) => renames(&above, &root).is_ok_and(|possible| !possible),
        _ => false,
    }
}

/// Whether a file of one directory can be renamed into the other. A mount point between them forbids it, even
/// if both are on one device.
fn renames(from: &OwnedFd, to: &OwnedFd) -> Result<bool, Errno> {
    let same = rustix::fs::fstat(from)?.st_dev == rustix::fs::fstat(to)?.st_dev;
    // Nothing can get the name `.`, so nothing is renamed; which error that is tells the rest.
    Ok(same && rustix::fs::renameat(from, "none", to, ".") != Err(Errno::XDEV))
}

/// Whether `path` still names the directory that is open.
fn still_named(dir: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(dir), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.st_dev, open.st_ino) == (named.dev(), named.ino()),
        _ => false,
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory that holds exactly one state, and its staging folder beside it.
#[derive(Debug)]
pub struct Output {
    root: PathBuf,
    staging: PathBuf,
    dir: OwnedFd,
    stage: OwnedFd,
    ignores_case: bool,
}

/// Changes whose files are written and synced in the staging folder, not yet in place.
#[derive(Debug)]
pub struct Staged {
    puts: Vec<(Key, String)>,
    deletes: Vec<Key>,
}

impl Output {
    /// Opens `root`, and `staging` for files on their way; both are made if absent. They must be on one file
    /// system, since a rename between them has to be atomic.
    ///
    /// # Errors
    /// [`TreeError::Io`] and [`TreeError::OtherFileSystem`].
    pub fn open(root: &Path, staging: &Path) -> Result<Output, TreeError> {
        std::fs::create_dir_all(root).map_err(at(root))?;
        std::fs::create_dir_all(staging).map_err(at(staging))?;
        let open =
            |path: &Path| rustix::fs::open(path, FOLDER, Mode::empty()).map_err(|e| at(path)(e.into()));
        let (dir, stage) = (open(root)?, open(staging)?);
        if !renames(&stage, &dir).map_err(|e| at(root)(e.into()))? {
            return Err(TreeError::OtherFileSystem(staging.to_owned(), root.to_owned()));
        }
        let mut output =
            Output { root: root.to_owned(), staging: staging.to_owned(), dir, stage, ignores_case: false };
        output.sweep()?;
        output.ignores_case = output.probe()?;
        Ok(output)
    }

    /// Whether the file system takes names that differ only in case for one name.
    pub fn ignores_case(&self) -> bool {
        self.ignores_case
    }

    /// Whether the directory that is open still has its name.
    pub(crate) fn is_there(&self) -> bool {
        still_named(&self.dir, &self.root)
    }

    /// Whether nothing is in the directory.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn is_empty(&self) -> Result<bool, TreeError> {
        let mut entries = std::fs::read_dir(&self.root).map_err(at(&self.root))?;
        Ok(entries.next().is_none())
    }

    /// Leftovers of a crash, or of another layout.
    fn sweep(&self) -> Result<(), TreeError> {
        let io = |e: Errno| at(&self.staging)(e.into());
        names(&self.stage).map_err(io)?.iter().try_for_each(|name| delete(&self.stage, name).map_err(io))
    }

    fn probe(&self) -> Result<bool, TreeError> {
        let io = |e: Errno| at(&self.staging)(e.into());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&self.stage, "probe", flags, Mode::RUSR | Mode::WUSR).map_err(io)?;
        let same = rustix::fs::statat(&self.stage, "PROBE", AtFlags::SYMLINK_NOFOLLOW).is_ok();
        rustix::fs::unlinkat(&self.stage, "probe", AtFlags::empty()).map_err(io)?;
        Ok(same)
    }

    /// Writes and syncs the files of `changes` in the staging folder. Nothing is in place yet; a full disk
    /// shows here.
    ///
    /// # Errors
    /// [`TreeError`]; the directory is as it was.
    pub fn stage(&self, changes: &ChangeSet) -> Result<Staged, TreeError> {
        let mut staged = Staged { puts: Vec::new(), deletes: Vec::new() };
        self.sweep()?;
        for (n, (key, change)) in changes.iter().enumerate() {
            let Change::Put(entry) = change else {
                // What is no path is not there.
                staged.deletes.extend(check_key(key).is_ok().then(|| key.clone()));
                continue;
            };
            check_key(key)?;
            let name = format!("{n}");
            let path = self.staging.join(&name);
            let all = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
            let run = Mode::XUSR | Mode::XGRP | Mode::XOTH;
            // The umask takes away what the operator does not want.
            let mode = if entry.flags() & EXECUTABLE != 0 { all | run } else { all };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file =
                rustix::fs::openat(&self.stage, &name, flags, mode).map_err(|e| at(&path)(e.into()))?;
            let mut file = File::from(file);
            file.write_all(entry.value()).and_then(|()| file.sync_all()).map_err(at(&path))?;
            staged.puts.push((key.clone(), name));
        }
        Ok(staged)
    }

    /// Puts staged files in place by renames, one by one, and takes away what is deleted, with directories
    /// that are empty then.
    ///
    /// # Errors
    /// [`TreeError`]; some files may be new and others old. [`repair`](Self::repair) goes on from there.
    pub fn switch(&self, staged: Staged) -> Result<(), TreeError> {
        let Staged { puts, deletes } = staged;
        let put_keys: BTreeSet<&[u8]> = puts.iter().map(|(key, _)| key.as_bytes()).collect();
        let mut touched = BTreeSet::new();
        // Where a file becomes a directory or the other way, the old one has to go first; else it stays until
        // the new ones are there.
        let (first, last): (Vec<&Key>, Vec<&Key>) =
            deletes.iter().partition(|key| in_the_way(key.as_bytes(), &put_keys));
        for key in first {
            self.remove(key, &mut touched)?;
        }
        for (key, name) in &puts {
            let (parent, file) = self.parent(key, true)?.ok_or_else(|| self.gone(key))?;
            rustix::fs::renameat(&self.stage, name, &parent, file)
                .map_err(|e| at(&self.path(key))(e.into()))?;
            touched.insert(above(key));
        }
        for key in last {
            self.remove(key, &mut touched)?;
        }
        for below in touched {
            self.sync(&below)?;
        }
        Ok(())
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(OsStr::from_bytes(key.as_bytes()))
    }

    fn gone(&self, key: &Key) -> TreeError {
        at(&self.path(key))(io::ErrorKind::NotFound.into())
    }

    /// The directory that holds `key`, opened component by component without following links, and the name
    /// in it. `None` when it is absent and `make` is not set.
    fn parent<'k>(&self, key: &'k Key, make: bool) -> Result<Option<(OwnedFd, &'k [u8])>, TreeError> {
        let (dirs, file) = match key.as_bytes().iter().rposition(|b| *b == b'/') {
            Some(i) => (&key.as_bytes()[..i], &key.as_bytes()[i + 1..]),
            None => (&b""[..], key.as_bytes()),
        };
        Ok(self.walk(dirs, make)?.map(|dir| (dir, file)))
    }

    fn walk(&self, dirs: &[u8], make: bool) -> Result<Option<OwnedFd>, TreeError> {
        let mut here = self.dir.try_clone().map_err(at(&self.root))?;
        let mut path = self.root.clone();
        for component in dirs.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            path.push(OsStr::from_bytes(component));
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = |here: &OwnedFd| rustix::fs::openat(here, component, flags, Mode::empty());
            let next = match open(&here) {
                Err(Errno::NOENT) if make => {
                    let all = Mode::RWXU | Mode::RWXG | Mode::RWXO;
                    rustix::fs::mkdirat(&here, component, all).map_err(|e| at(&path)(e.into()))?;
                    rustix::fs::fsync(&here).map_err(|e| at(&path)(e.into()))?;
                    open(&here)
                }
                Err(Errno::NOENT) => return Ok(None),
                opened => opened,
            };
            here = match next {
                Ok(next) => next,
                Err(_) if is_link(here.as_fd(), component) => return Err(TreeError::Link(path)),
                Err(e) => return Err(at(&path)(e.into())),
            };
        }
        Ok(Some(here))
    }

    /// Deletes a file, then the directories above it that are empty.
    fn remove(&self, key: &Key, touched: &mut BTreeSet<Vec<u8>>) -> Result<(), TreeError> {
        if let Some((parent, file)) = self.parent(key, false)? {
            match rustix::fs::unlinkat(&parent, file, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(at(&self.path(key))(e.into())),
            }
        }
        let mut below = above(key);
        touched.insert(below.clone());
        while !below.is_empty() {
            let split = below.iter().rposition(|b| *b == b'/');
            let (up, name) = match split {
                Some(i) => (below[..i].to_vec(), below[i + 1..].to_vec()),
                None => (Vec::new(), below.clone()),
            };
            let Some(dir) = self.walk(&up, false)? else { break };
            match rustix::fs::unlinkat(&dir, &*name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => break,
                Err(e) => return Err(at(&self.root.join(OsStr::from_bytes(&below)))(e.into())),
            }
            touched.insert(up.clone());
            below = up;
        }
        Ok(())
    }

    fn sync(&self, below: &[u8]) -> Result<(), TreeError> {
        match self.walk(below, false) {
            Ok(Some(dir)) => rustix::fs::fsync(&dir).map_err(|e| at(&self.root)(e.into())),
            Ok(None) => Ok(()),
            // It has become a file.
            Err(TreeError::Io { error, .. }) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes the directory hold exactly `wanted`: finds what differs (changed by hand, left by a crash) and
    /// repairs it. What does not belong is deleted, whatever it is and however deep; it is neither read nor
    /// followed. Returns the keys and paths that differed, for people.
    ///
    /// # Errors
    /// [`TreeError`]: what could not be repaired; the rest is.
    pub fn repair(&self, wanted: &State) -> Result<Vec<String>, TreeError> {
        check(wanted, self.ignores_case)?;
        let mut comparison = Comparison {
            root: &self.root,
            dirs: wanted.iter().flat_map(|(key, _)| directories(key.as_bytes())).collect(),
            wanted,
            right: BTreeSet::new(),
            differed: Vec::new(),
            failed: None,
        };
        comparison.dir(&self.dir, &mut Vec::new());
        let Comparison { right, mut differed, failed, .. } = comparison;
        let mut missing = ChangeSet::new();
        for (key, entry) in wanted.iter().filter(|(key, _)| !right.contains(key.as_bytes())) {
            missing.set(key.clone(), Change::Put(entry.clone()));
        }
        differed.extend(missing.keys().map(Key::to_string));
        self.switch(self.stage(&missing)?)?;
        failed.map_or(Ok(differed), Err)
    }
}

/// A directory beside what it is to hold: deletes what does not belong there, and finds what is missing.
struct Comparison<'a> {
    root: &'a Path,
    wanted: &'a State,
    /// All directories above the keys wanted.
    dirs: BTreeSet<&'a [u8]>,
    /// Keys whose files are as they should be.
    right: BTreeSet<Vec<u8>>,
    differed: Vec<String>,
    /// The first thing that did not work.
    failed: Option<TreeError>,
}

impl Comparison<'_> {
    fn fail(&mut self, below: &[u8], error: Errno) {
        let path = self.root.join(OsStr::from_bytes(below));
        self.failed.get_or_insert(at(&path)(error.into()));
    }

    fn dir(&mut self, dir: &OwnedFd, below: &mut Vec<u8>) {
        let names = match names(dir) {
            Ok(names) => names,
            Err(error) => return self.fail(below, error),
        };
        for name in names {
            let length = below.len();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(&name);
            self.entry(dir, &name, below);
            below.truncate(length);
        }
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], below: &mut Vec<u8>) {
        use rustix::fs::FileType;
        let kind = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return,
            Err(error) => return self.fail(below, error),
        };
        let what = match kind {
            FileType::RegularFile => match self.wanted.get(&*below) {
                Some(entry) => {
                    // Over any other one the right one is renamed.
                    if holds(dir, name, entry) {
                        self.right.insert(below.clone());
                    }
                    return;
                }
                None => "",
            },
            FileType::Directory if self.dirs.contains(&**below) => {
                return match rustix::fs::openat(dir, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(next) => self.dir(&next, below),
                    Err(error) => self.fail(below, error),
                };
            }
            FileType::Directory => " (directory)",
            FileType::Symlink => " (symbolic link)",
            FileType::Fifo => " (pipe)",
            FileType::Socket => " (socket)",
            _ => " (device)",
        };
        match delete(dir, name) {
            Ok(()) => self.differed.push(format!("{}{what}", String::from_utf8_lossy(below))),
            Err(error) => self.fail(below, error),
        }
    }
}

/// Whether the file is this entry. One that cannot be read is not.
fn holds(dir: &OwnedFd, name: &[u8], entry: &Entry) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return false };
    let (file, wanted) = (File::from(file), entry.value());
    let executable = entry.flags() & EXECUTABLE != 0;
    let looks_so = file.metadata().is_ok_and(|meta| {
        meta.is_file() && meta.size() == wanted.len() as u64 && (meta.mode() & 0o100 != 0) == executable
    });
    let mut value = Vec::new();
    // One byte more shows that it grew.
    looks_so && file.take(wanted.len() as u64 + 1).read_to_end(&mut value).is_ok() && value == *wanted
}

/// Deletes whatever has this name; a directory with all that is in it.
fn delete(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // What the system says of a directory: Linux the one, others the other.
        Err(Errno::ISDIR | Errno::PERM) => delete_directory(dir, name),
        Err(error) => Err(error),
    }
}

/// As deep as the directory is, this has two descriptors: it goes down by names and up by `..`. What is mounted
/// in it is not touched, since the place of it could not be deleted anyway.
fn delete_directory(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = FOLDER | OFlags::NOFOLLOW;
    let identity = |dir: &OwnedFd| rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino));
    let device = identity(dir)?.0;
    let open = |above: &OwnedFd, name: &[u8]| {
        let inside = rustix::fs::openat(above, name, flags, Mode::empty())?;
        if identity(&inside)?.0 == device { Ok(inside) } else { Err(Errno::XDEV) }
    };
    let mut here = open(dir, name)?;
    // The way down: the name of each directory, what the one above it is, and what is still in it.
    let mut way = vec![(name.to_vec(), identity(dir)?, names(&here)?)];
    while let Some((name, above, left)) = way.last_mut() {
        let Some(next) = left.pop_first() else {
            let up = rustix::fs::openat(&here, "..", flags, Mode::empty())?;
            if identity(&up)? != *above {
                // Somebody moved it: what is above now is not ours.
                return Err(Errno::BUSY);
            }
            rustix::fs::unlinkat(&up, &**name, AtFlags::REMOVEDIR)?;
            here = up;
            way.pop();
            continue;
        };
        match rustix::fs::unlinkat(&here, &*next, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                let above = identity(&here)?;
                here = open(&here, &next)?;
                way.push((next, above, names(&here)?));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The directories above a key, as keys of their own would be.
pub(crate) fn directories(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| &key[..i])
}

/// `key` lies above or below one of `puts`.
fn in_the_way(key: &[u8], puts: &BTreeSet<&[u8]>) -> bool {
    let inside = [key, b"/"].concat();
    let from = (Bound::Included(&*inside), Bound::Unbounded);
    let mut below = puts.range::<[u8], _>(from);
    below.next().is_some_and(|put| put.starts_with(&inside))
        || directories(key).any(|above| puts.contains(above))
}

/// The directory part of a key; empty for the root.
fn above(key: &Key) -> Vec<u8> {
    match key.as_bytes().iter().rposition(|b| *b == b'/') {
        Some(i) => key.as_bytes()[..i].to_vec(),
        None => Vec::new(),
    }
}

fn is_link(dir: impl AsFd, name: &[u8]) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink)
}

#[cfg(test)]
mod tests;
