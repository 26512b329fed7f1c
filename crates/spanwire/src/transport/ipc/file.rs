//! The file of a bound path: made, kept apart from those of others, and removed.
//!
//! # Whose file it is
//!
//! A process that was killed leaves its file, and bind says that the address is in use. Only when the file is a
//! socket and a connect to it is refused is it stale and removed. Between the test and the removal another
//! process may do the same and bind, and its socket would be removed; between a bind and its listen, a live
//! socket looks stale. So everything from bind to listen happens under a lock on `.NAME.spanwire-bind` beside
//! it, which is empty and exists only meanwhile. Whoever finds it taken has lost against the one that holds it, and is
//! told that the address is in use; so is who finds there what is no such lock. (A temporary name that is renamed in
//! place would need no lock file but cannot tell which file it replaces.)

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::options::IpcOptions;
use crate::transport::sys;

/// Binds and listens at `path`, where a stale socket may lie.
pub(super) fn listen_at(path: &Path, options: &IpcOptions) -> io::Result<(Socket, OwnFile)> {
    let _lock = Lock::take(path)?;
    let address = SockAddr::unix(path)?;
    let socket = options.socket()?;
    match socket.bind(&address) {
        Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists) => {
            remove_stale(path, &address)?;
            socket.bind(&address)?;
        }
        other => other?,
    }
    // From here on the file is ours, and goes with `file` should anything fail.
    let file = OwnFile::new(path)?;
    if let Some(mode) = options.mode {
        // Before `listen` nobody can connect, so nobody comes in under the mode that the umask gave. (To
        // set the umask instead would change that of every thread.)
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.listen(options.backlog as i32)?;
    Ok((socket, file))
}

/// Removes the file at `path` if it is a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, what.to_owned());
    let before = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // It went meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // Asked first: to connect to a file of another kind is refused as well.
    if !before.file_type().is_socket() {
        return Err(in_use("address in use: a file that is not a socket is there"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Accepted, or its queue is full.
        Ok(()) => return Err(in_use("address in use: somebody listens there")),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            return Err(in_use("address in use: somebody listens there"));
        }
        Err(e) => {
            let why =
                format!("address in use: a socket is there, and whether anybody listens is not known: {e}");
            return Err(in_use(&why));
        }
    }
    match fs::symlink_metadata(path) {
        Ok(now) if (now.dev(), now.ino()) == (before.dev(), before.ino()) => fs::remove_file(path),
        Ok(_) => Err(in_use("address in use: another socket has just been bound there")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The lock under which a path is bound.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    pub(super) fn take(of: &Path) -> io::Result<Lock> {
        // A name that no program has for a file of its own, as `PATH.lock` would be.
        let mut name = OsString::from(".");
        name.push(of.file_name().unwrap_or_default());
        name.push(".spanwire-bind");
        let path = of.with_file_name(name);
        let taken = || io::Error::new(io::ErrorKind::AddrInUse, "another listener is being bound there");
        // A few rounds: the holder may remove its file between our open and our lock.
        for _ in 0..16 {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                // Whatever somebody put there is not followed and not waited for.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)?;
            let locked = file.metadata()?;
            if !locked.is_file() || locked.len() > 0 {
                let path = path.display();
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!(
                        "binding takes a lock on {path}, and what is there is no such lock: move it away"
                    ),
                ));
            }
            match sys::try_lock(&file) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(taken()),
                Err(e) => return Err(e),
            }
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Lock { path, _file: file });
                }
                _ => {}
            }
        }
        Err(taken())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked: nobody can lock this file afterwards and believe it to be the one.
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket's file, removed with it.
///
/// The listener still listens while this is dropped, so nobody finds the file stale meanwhile and puts
/// another in its place.
#[derive(Debug)]
pub(super) struct OwnFile {
    path: PathBuf,
    identity: (u64, u64),
    process: u32,
}

impl OwnFile {
    fn new(path: &Path) -> io::Result<OwnFile> {
        let made = fs::symlink_metadata(path)?;
        Ok(OwnFile {
            // The working directory may change until it is removed.
            path: std::path::absolute(path)?,
            identity: (made.dev(), made.ino()),
            process: std::process::id(),
        })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // In a forked child it is the parent's.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|there| {
            (there.dev(), there.ino()) == self.identity && self.process == std::process::id()
        });
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}
