//! The few things that a store does to a folder, so that a test can stand in for the disk.
//!
//! Owns: names and bytes. Never: knows what is in a file, or retries.

use std::fmt::Debug;
use std::io;

/// A flat folder of files.
///
/// What is written may be lost, torn or re-ordered by a crash until [`sync`](Disk::sync) of that file has
/// returned; a name made, renamed or removed may be so until [`sync_dir`](Disk::sync_dir) has.
pub trait Disk: Debug + Send {
    /// Length of a file; `None` if there is none.
    ///
    /// # Errors
    /// The system's.
    fn len(&mut self, name: &str) -> io::Result<Option<u64>>;

    /// Exactly the bytes at `offset`.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` beyond the end.
    fn read_at(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`; makes the file if it is absent.
    ///
    /// # Errors
    /// The system's; any part may have been written.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()>;

    /// Makes what was written to a file durable.
    ///
    /// # Errors
    /// The system's; then what was written may be lost though it can still be read.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Whether what is written under this name is still the file that its path names. It is not once it, or the
    /// folder, was removed, moved or replaced by somebody else: then what is written is not found at the next
    /// start, whatever [`sync`](Disk::sync) returned.
    ///
    /// # Errors
    /// The system's, when it cannot tell.
    fn is_in_place(&mut self, name: &str) -> io::Result<bool>;

    /// Gives a file another name, in place of what has that name.
    ///
    /// # Errors
    /// The system's.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; none is no error.
    ///
    /// # Errors
    /// The system's.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&mut self) -> io::Result<()>;

    /// The names of all files.
    ///
    /// # Errors
    /// The system's.
    fn list(&mut self) -> io::Result<Vec<String>>;
}

#[cfg(all(unix, feature = "sync"))]
pub use fs::FsDisk;

#[cfg(all(unix, feature = "sync"))]
mod fs {
    use std::collections::HashMap;
    use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
    use std::path::{Path, PathBuf};

    use rustix::fs::FlockOperation;

    use super::Disk;

    /// A folder of the file system, locked for as long as this lives. Files have permissions 0600.
    #[derive(Debug)]
    pub struct FsDisk {
        dir: PathBuf,
        folder: File,
        open: HashMap<String, File>,
    }

    impl FsDisk {
        /// Opens the folder and locks it; makes it if it is absent.
        ///
        /// # Errors
        /// The system's; `WouldBlock` if another process has it open.
        pub fn open(dir: &Path) -> io::Result<FsDisk> {
            let absent = !dir.exists();
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            if let Some(parent) = dir.parent().filter(|parent| absent && !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
            let folder = File::open(dir)?;
            rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
            Ok(FsDisk { dir: dir.to_owned(), folder, open: HashMap::new() })
        }

        fn file(&mut self, name: &str, create: bool) -> io::Result<&File> {
            if !self.open.contains_key(name) {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(create).truncate(false).mode(0o600);
                self.open.insert(name.to_owned(), options.open(self.dir.join(name))?);
            }
            self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    /// Whether a path names the file of which `open` is told.
    fn names(path: &Path, open: &Metadata) -> io::Result<bool> {
        match fs::metadata(path) {
            Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
                _ => Err(error),
            },
        }
    }

    impl Disk for FsDisk {
        fn len(&mut self, name: &str) -> io::Result<Option<u64>> {
            match fs::metadata(self.dir.join(name)) {
                Ok(meta) => Ok(Some(meta.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        }

        fn read_at(&mut self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.file(name, false)?.read_exact_at(bytes, offset)
        }

        fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.file(name, true)?.write_all_at(bytes, offset)
        }

        fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
            self.file(name, true)?.set_len(len)
        }

        fn sync(&mut self, name: &str) -> io::Result<()> {
            // The length is among what is synced; only times are not.
            self.file(name, false)?.sync_data()
        }

        fn is_in_place(&mut self, name: &str) -> io::Result<bool> {
            let (path, folder) = (self.dir.join(name), self.folder.metadata()?);
            // What is not open yet is opened by its path: in another folder if that is what the path names now.
            Ok(names(&self.dir, &folder)? && names(&path, &self.file(name, false)?.metadata()?)?)
        }

        fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.dir.join(from), self.dir.join(to))?;
            self.open.remove(to);
            if let Some(file) = self.open.remove(from) {
                self.open.insert(to.to_owned(), file);
            }
            Ok(())
        }

        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.open.remove(name);
            match fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }

        fn sync_dir(&mut self) -> io::Result<()> {
            self.folder.sync_all()
        }

        fn list(&mut self) -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for file in fs::read_dir(&self.dir)? {
                // A name that is no text is none of the store's.
                names.extend(file?.file_name().into_string());
            }
            Ok(names)
        }
    }
}
