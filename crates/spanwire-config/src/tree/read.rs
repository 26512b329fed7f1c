//! Reading a directory tree: every regular file becomes a key.
//!
//! Owns: what counts as one reading, and when a tree has come to rest. Never: takes an unreadable file for an empty one,
//! nor a vanished root for an empty tree; follows a symbolic link below the root.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{DEPTH, EXECUTABLE, TreeError, at, check_key, names};
use crate::{Entry, Key, Limits, OverLimit, State};

/// How often a file that changes while it is read is read again.
const AGAIN: u32 = 20;

/// A tree as it was read.
#[derive(Debug, Default)]
pub struct Tree {
    /// Its files.
    pub state: State,
    /// What is neither a file nor a directory and was passed over: path below the root, and what it is.
    pub passed_over: Vec<(PathBuf, &'static str)>,
    /// Directories without any file in them, below the root, deepest first.
    pub empty: Vec<PathBuf>,
    /// When the file or directory that changed last changed, in content or name: the later of both times that
    /// the system keeps, since a file that is moved here brings its old time of writing along.
    pub newest: Option<SystemTime>,
}

/// Reads the tree below `root`: every regular file. Symbolic links are not followed (but `root` itself may be
/// one); they and special files are passed over and listed.
///
/// # Errors
/// The first thing that cannot be read, or what is over `limits`. A file that vanishes while the tree is
/// read is an error too: read again.
pub fn read(root: &Path, limits: &Limits) -> Result<Tree, TreeError> {
    let dir = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at(root)(e.into()))?;
    let mut reading = Reading { root, limits, tree: Tree::default() };
    reading.dir(&dir, &mut Vec::new(), 0)?;
    limits.check(reading.tree.state.keys(), reading.tree.state.bytes())?;
    Ok(reading.tree)
}

/// How long after a change a tree is looked at twice. Times of files are coarse, so that two writes may leave
/// one time.
pub(super) const RECENT: Duration = Duration::from_secs(2);

/// Reads a tree that may be changing: where a file or a directory changed lately, until two readings `pause` apart are equal.
///
/// That catches writers that are at work, not one that writes half a file and rests longer than `pause`:
/// whoever writes a file should do it beside and rename.
///
/// # Errors
/// As [`read`]; [`TreeError::Unsettled`] when it did not come to rest.
pub fn read_settled(root: &Path, limits: &Limits, pause: Duration) -> Result<Tree, TreeError> {
    settle(root, limits, SystemTime::now, || std::thread::sleep(pause))
}

pub(super) fn settle(
    root: &Path,
    limits: &Limits,
    now: impl Fn() -> SystemTime,
    mut pause: impl FnMut(),
) -> Result<Tree, TreeError> {
    let mut last = read(root, limits)?;
    for _ in 0..AGAIN {
        let age = last.newest.map(|newest| now().duration_since(newest).unwrap_or_default());
        if age.is_none_or(|age| age >= RECENT) {
            return Ok(last);
        }
        pause();
        let next = read(root, limits)?;
        if next.state == last.state {
            return Ok(next);
        }
        last = next;
    }
    Err(TreeError::Unsettled(root.to_owned()))
}

struct Reading<'a> {
    root: &'a Path,
    limits: &'a Limits,
    tree: Tree,
}

impl Reading<'_> {
    fn path(&self, below: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(below))
    }

    /// Reads what is in `dir`; says how many files that were, with those below.
    fn dir(&mut self, dir: &OwnedFd, below: &mut Vec<u8>, depth: usize) -> Result<usize, TreeError> {
        let here = self.path(below);
        let io = |e: Errno| TreeError::Io { path: here.clone(), error: e.into() };
        if depth > DEPTH {
            return Err(io(Errno::NAMETOOLONG));
        }
        let names = names(dir).map_err(io)?;
        let facts = std::fs::File::from(dir.try_clone().map_err(at(&here))?).metadata().map_err(at(&here))?;
        self.changed((facts.mtime(), facts.mtime_nsec()), (facts.ctime(), facts.ctime_nsec()));
        let mut files = 0;
        for name in names {
            let length = below.len();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(&name);
            files += self.entry(dir, &name, below, depth)?;
            below.truncate(length);
        }
        if files == 0 && !below.is_empty() {
            self.tree.empty.push(OsStr::from_bytes(below).into());
        }
        Ok(files)
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        below: &mut Vec<u8>,
        depth: usize,
    ) -> Result<usize, TreeError> {
        let path = self.path(below);
        let io = |e: Errno| TreeError::Io { path: path.clone(), error: e.into() };
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let over = match kind {
            rustix::fs::FileType::Directory => {
                let next =
                    rustix::fs::openat(dir, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(io)?;
                return self.dir(&next, below, depth + 1);
            }
            rustix::fs::FileType::RegularFile => {
                let key = Key::new(&below).map_err(|_| TreeError::Key {
                    key: path.display().to_string(),
                    why: "over 1,024 bytes",
                })?;
                check_key(&key)?;
                let entry = self.file(dir, name, &key, &path)?;
                self.tree.state.put(key, entry);
                // Early, so that a huge tree does not fill memory before it is refused.
                self.limits.check(self.tree.state.keys(), self.tree.state.bytes())?;
                return Ok(1);
            }
            rustix::fs::FileType::Symlink => "symbolic link",
            rustix::fs::FileType::Fifo => "pipe",
            rustix::fs::FileType::Socket => "socket",
            _ => "device",
        };
        self.tree.passed_over.push((OsStr::from_bytes(below).into(), over));
        Ok(0)
    }

    /// Takes note of when something changed: seconds and nanoseconds since 1970, of content and of name.
    fn changed(&mut self, written: (i64, i64), named: (i64, i64)) {
        let (seconds, nanos) = written.max(named);
        let since = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        self.tree.newest = self.tree.newest.max(SystemTime::UNIX_EPOCH.checked_add(since));
    }

    /// Reads one file until it was the same before and after.
    fn file(&mut self, dir: &OwnedFd, name: &[u8], key: &Key, path: &Path) -> Result<Entry, TreeError> {
        for turn in 0..AGAIN {
            if turn > 0 {
                // Somebody writes it. There is no condition to await but time.
                std::thread::sleep(Duration::from_millis(10));
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| at(path)(e.into()))?;
            let mut file = File::from(file);
            let facts = |file: &File| {
                let m = file.metadata()?;
                Ok((m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.mode()))
            };
            let before = facts(&file).map_err(at(path))?;
            if before.1 > self.limits.value as u64 {
                let size = usize::try_from(before.1).unwrap_or(usize::MAX);
                return Err(OverLimit::Value { key: key.clone(), size, limit: self.limits.value }.into());
            }
            let mut value = Vec::new();
            (&mut file).take(self.limits.value as u64 + 1).read_to_end(&mut value).map_err(at(path))?;
            if facts(&file).map_err(at(path))? == before && value.len() as u64 == before.1 {
                self.changed((before.2, before.3), (before.4, before.5));
                let flags = if before.6 & 0o100 != 0 { EXECUTABLE } else { 0 };
                return Ok(Entry::new(flags, value));
            }
        }
        Err(TreeError::Unsettled(path.to_owned()))
    }
}
