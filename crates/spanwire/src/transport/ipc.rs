//! `ipc://PATH`, a byte stream over a Unix socket; `unix://PATH` is the same, and on Linux `abstract://NAME`.
//!
//! Owns: the addresses' meaning, the socket's file, its mode and its end, and the peer's credentials. Never: a
//! frame, a handshake, a retry or a wait (the engine's); never removes what is not a socket (but for the empty file
//! of its own lock), nor a socket that anybody listens on.
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
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::Interest;
use socket2::{Domain, SockAddr, Socket, Type};

use super::halves::Half;
use super::{
    Bag, Connection, Dialer, Facts, Listener, Registrar, Stream, StreamWriter, Target, Transport, invalid,
    sys,
};
use crate::wire::Sp;

/// Longest path or abstract name in bytes: `sun_path` without its final or leading NUL (107 on Linux).
const MAX_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

const ABSTRACT: bool = cfg!(any(target_os = "android", target_os = "linux"));

/// The ipc transport: `ipc://PATH`, `unix://PATH`, and on Linux `abstract://NAME`. Its options are
/// [`IpcOptions`].
///
/// PATH is relative to the working directory unless it begins with `/`, and has at most 107 bytes (103 on
/// some systems). The file is made by bind and removed when the endpoint closes; one that a dead process left is
/// replaced, one that anybody listens on, or that is no socket, is left alone (`AddrInUse`).
///
/// NAME is in a space of names without files; bytes may be written as `%XX`. To bind the empty name
/// is to get one from the kernel.
///
/// What is known of a peer has its [`Credentials`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipc;

/// How ipc sockets are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpcOptions {
    /// Permission bits of the socket's file, at most `0o777`, whatever the umask; in force before anybody can
    /// connect. To connect takes permission to write. Default: as the umask has it. Without meaning for
    /// abstract names and when connecting.
    pub mode: Option<u32>,
    /// Connections that may wait for accept; the kernel may lower it. At least 1. Default 1024.
    pub backlog: u32,
    /// Kernel send buffer in bytes (`SO_SNDBUF`). Default: the system's.
    pub send_buffer: Option<usize>,
    /// Kernel receive buffer in bytes (`SO_RCVBUF`). Default: the system's.
    pub recv_buffer: Option<usize>,
}

impl Default for IpcOptions {
    fn default() -> Self {
        IpcOptions { mode: None, backlog: 1024, send_buffer: None, recv_buffer: None }
    }
}

impl IpcOptions {
    /// Sets [`mode`](IpcOptions#structfield.mode).
    #[must_use]
    pub fn mode(mut self, mode: Option<u32>) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`backlog`](IpcOptions#structfield.backlog).
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Sets [`send_buffer`](IpcOptions#structfield.send_buffer).
    #[must_use]
    pub fn send_buffer(mut self, bytes: Option<usize>) -> Self {
        self.send_buffer = bytes;
        self
    }

    /// Sets [`recv_buffer`](IpcOptions#structfield.recv_buffer).
    #[must_use]
    pub fn recv_buffer(mut self, bytes: Option<usize>) -> Self {
        self.recv_buffer = bytes;
        self
    }

    fn from_bag(options: &Bag) -> io::Result<Self> {
        let options = options.get::<IpcOptions>().cloned().unwrap_or_default();
        if let Some(mode) = options.mode.filter(|mode| mode & !0o777 != 0) {
            return Err(invalid(format!("ipc mode {mode:#o} has more than permission bits")));
        }
        if options.backlog == 0 || options.backlog > i32::MAX as u32 {
            return Err(invalid("ipc backlog must be at least 1"));
        }
        let size_ok = |size: Option<usize>| size.is_none_or(|s| (1..=i32::MAX as usize).contains(&s));
        if !size_ok(options.send_buffer) || !size_ok(options.recv_buffer) {
            return Err(invalid("ipc buffer sizes must be from 1 byte to 2 GiB - 1"));
        }
        Ok(options)
    }

    /// A non-blocking, close-on-exec socket with its buffers.
    fn socket(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.recv_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(socket)
    }
}

/// Who is at the other end of an ipc connection, as the kernel says; in [`Facts::more`].
///
/// They are those of the peer's process when it connected or listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// Process; Linux only, and only one that this process can see.
    pub pid: Option<u32>,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// An address as understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Abstract(Vec<u8>),
}

impl Place {
    fn parse(url: &str) -> io::Result<Place> {
        let bad = |what: String| invalid(format!("bad address: {what}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no scheme".into()))?;
        if scheme == "abstract" {
            let name = unescape(rest).map_err(|what| bad(what.into()))?;
            return match name.len() {
                _ if !ABSTRACT => Err(bad("abstract names exist on Linux only".into())),
                n if n > MAX_PATH => Err(bad(format!("the name has {n} bytes, at most {MAX_PATH} fit"))),
                _ => Ok(Place::Abstract(name)),
            };
        }
        match rest.len() {
            0 => Err(bad("no path".into())),
            _ if rest.contains('\0') => Err(bad("NUL in the path".into())),
            n if n > MAX_PATH => Err(bad(format!("the path has {n} bytes, at most {MAX_PATH} fit"))),
            _ => Ok(Place::File(rest.into())),
        }
    }

    fn address(&self) -> io::Result<SockAddr> {
        match self {
            Place::File(path) => SockAddr::unix(path),
            // Without any byte: the kernel chooses.
            Place::Abstract(name) if name.is_empty() => SockAddr::unix(""),
            Place::Abstract(name) => {
                use std::os::unix::ffi::OsStringExt;
                let with_nul = [b"\0", name.as_slice()].concat();
                SockAddr::unix(PathBuf::from(OsString::from_vec(with_nul)))
            }
        }
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let hex = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16)).map(|d| d as u8);
    let mut name = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err("'%' without two hexadecimal digits"),
            },
            byte => byte,
        });
    }
    Ok(name)
}

fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            byte => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

impl Transport for Ipc {
    fn schemes(&self) -> &'static [&'static str] {
        if ABSTRACT { &["ipc", "unix", "abstract"] } else { &["ipc", "unix"] }
    }

    fn dialer(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Dialer>> {
        let options = IpcOptions::from_bag(options)?;
        let place = Place::parse(url)?;
        if place == Place::Abstract(Vec::new()) {
            return Err(invalid("bad address: no name to connect to"));
        }
        Ok(Box::new(IpcDialer { place, url: url.to_owned(), options }))
    }

    fn listen(&self, url: &str, options: &Bag) -> io::Result<Box<dyn Listener>> {
        let options = IpcOptions::from_bag(options)?;
        let (socket, url, file) = match Place::parse(url)? {
            Place::File(path) => {
                let (socket, file) = listen_at(&path, &options)?;
                (socket, url.to_owned(), Some(file))
            }
            place => {
                let socket = options.socket()?;
                socket.bind(&place.address()?)?;
                socket.listen(options.backlog as i32)?;
                let name = abstract_name(&socket)?;
                (socket, format!("abstract://{}", escape(&name)), None)
            }
        };
        let listener = mio::net::UnixListener::from_std(socket.into());
        Ok(Box::new(IpcListener { _file: file, listener, url }))
    }
}

#[cfg(any(target_os = "android", target_os = "linux"))]
fn abstract_name(socket: &Socket) -> io::Result<Vec<u8>> {
    let address = socket.local_addr()?;
    Ok(address.as_abstract_namespace().unwrap_or_default().to_vec())
}

#[cfg(not(any(target_os = "android", target_os = "linux")))]
fn abstract_name(_socket: &Socket) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Binds and listens at `path`, where a stale socket may lie.
fn listen_at(path: &Path, options: &IpcOptions) -> io::Result<(Socket, OwnFile)> {
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
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(of: &Path) -> io::Result<Lock> {
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
struct OwnFile {
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

#[derive(Debug)]
struct IpcDialer {
    place: Place,
    url: String,
    options: IpcOptions,
}

impl Dialer for IpcDialer {
    fn dial(&self, _: Option<&Target>) -> io::Result<Connection> {
        let socket = self.options.socket()?;
        let pending = match socket.connect(&self.place.address()?) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
            // Not "under way" but refused: nothing would ever be told of this socket.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "the listener's backlog is full",
                ));
            }
            Err(e) => return Err(e),
        };
        let socket = mio::net::UnixStream::from_std(socket.into());
        Ok(stream(socket, pending, String::new(), self.url.clone()))
    }
}

#[derive(Debug)]
struct IpcListener {
    // Fields are dropped in this order: the file goes while the socket still listens.
    _file: Option<OwnFile>,
    listener: mio::net::UnixListener,
    url: String,
}

impl Listener for IpcListener {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.listener, Interest::READABLE)
    }

    fn accept(&mut self) -> io::Result<Connection> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => return Ok(stream(socket, false, self.url.clone(), String::new())),
                // That one is gone; each turn takes one off the listener's queue.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn stream(socket: mio::net::UnixStream, pending: bool, local: String, remote: String) -> Connection {
    Connection::Stream(Box::new(IpcStream { socket, pending, local, remote }), Box::new(Sp::IPC))
}

#[derive(Debug)]
struct IpcStream {
    socket: mio::net::UnixStream,
    /// The connect was under way when it was begun.
    pending: bool,
    local: String,
    remote: String,
}

impl Stream for IpcStream {
    fn register(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.source(&mut self.socket, Interest::READABLE | Interest::WRITABLE)
    }

    fn establish(&mut self) -> io::Result<bool> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        if self.pending {
            match self.socket.peer_addr() {
                Ok(_) => self.pending = false,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                Err(e) => return Err(e),
            }
        }
        Ok(!self.pending)
    }

    fn short_read_is_empty(&self) -> bool {
        sys::SHORT_IS_EMPTY
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.local.clone(), self.remote.clone());
        if let Some(credentials) = sys::peer_credentials(&self.socket) {
            facts.more.set(credentials);
        }
        facts
    }

    fn split(self: Box<Self>) -> io::Result<(Box<dyn io::Read + Send>, Box<dyn StreamWriter>)> {
        let (reader, writer) = Half::both(self.socket);
        Ok((Box::new(reader), Box::new(writer)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Loop, bag, refuses};
    use super::*;

    fn place(dir: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
        let path = dir.path().join(name);
        let url = format!("ipc://{}", path.display());
        (path, url)
    }

    fn bind(url: &str) -> io::Result<Box<dyn Listener>> {
        Ipc.listen(url, &Bag::default())
    }

    #[track_caller]
    fn in_use(url: &str, text: &str) {
        let error = bind(url).err().expect("bound twice");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(text), "{error}");
    }

    /// What a killed process leaves.
    fn leave_stale(path: &Path) {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists());
    }

    fn names_in(dir: &tempfile::TempDir) -> Vec<OsString> {
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn bytes_go_both_ways_an_end_is_seen_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (_, url) = place(&dir, "a");
        for url in [url.clone(), url.replace("ipc:", "unix:")] {
            let mut turn = Loop::new();
            let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
            assert_eq!((&a.facts.remote, &b.facts.local), (&url, &url));
            turn.carries(&mut a, &mut b, "there");
            turn.carries(&mut b, &mut a, "and back");
            assert!(a.writer.shutdown().unwrap());
            turn.ends(&mut b);
            turn.carries(&mut b, &mut a, "still open");
        }
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "stale");
        leave_stale(&path);
        let mut turn = Loop::new();
        let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
        turn.carries(&mut a, &mut b, "alive");
    }

    #[test]
    fn a_second_listener_is_refused_and_does_the_first_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "live");
        let mut turn = Loop::new();
        let mut first = bind(&url).unwrap();
        turn.register(|r| first.register(r));
        in_use(&url, "somebody listens");
        assert!(path.exists());
        // The probe of the second one is a connection that comes and goes.
        drop(turn.accept(&mut *first));
        let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
        let (mut a, mut b) = turn.meet(&*dialer, &mut *first);
        turn.carries(&mut a, &mut b, "unharmed");
        drop(first);
        bind(&url).unwrap();
    }

    #[test]
    fn a_listener_whose_backlog_is_full_is_alive_and_a_connect_to_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "full");
        let _listener = Ipc.listen(&url, &bag(IpcOptions::default().backlog(1))).unwrap();
        let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match dialer.dial(None) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100, "a backlog of one never fills");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        in_use(&url, "somebody listens");
        assert!(path.exists());
    }

    #[test]
    fn of_many_binders_that_find_a_stale_file_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let (path, url) = place(&dir, &format!("race{round}"));
            leave_stale(&path);
            let start = std::sync::Barrier::new(4);
            let bound: Vec<_> = std::thread::scope(|scope| {
                let binder = || {
                    start.wait();
                    bind(&url)
                };
                let binders: Vec<_> = (0..4).map(|_| scope.spawn(binder)).collect();
                binders.into_iter().map(|b| b.join().unwrap()).collect()
            });
            let errors: Vec<_> = bound.iter().filter_map(|b| b.as_ref().err()).collect();
            assert_eq!(errors.len(), 3, "{errors:?}");
            assert!(errors.iter().all(|e| e.kind() == io::ErrorKind::AddrInUse), "{errors:?}");
            // And the winner is reached.
            let mut winner = bound.into_iter().find_map(Result::ok).unwrap();
            let mut turn = Loop::new();
            turn.register(|r| winner.register(r));
            let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
            let _dialled = dialer.dial(None).unwrap();
            turn.accept(&mut *winner);
        }
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, file_url) = place(&dir, "file");
        fs::write(&file, "precious").unwrap();
        in_use(&file_url, "not a socket");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let (folder, folder_url) = place(&dir, "folder");
        fs::create_dir(&folder).unwrap();
        in_use(&folder_url, "not a socket");
        let (target, _) = place(&dir, "target");
        leave_stale(&target);
        let (link, link_url) = place(&dir, "link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        in_use(&link_url, "not a socket");
        assert!(folder.is_dir() && target.exists() && link.is_symlink());
    }

    #[test]
    fn a_path_that_another_is_binding_is_in_use_and_a_lock_left_behind_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "locked");
        let lock = Lock::take(&path).unwrap();
        in_use(&url, "being bound");
        drop(lock);
        fs::write(dir.path().join(".locked.spanwire-bind"), "").unwrap();
        let listener = bind(&url).unwrap();
        assert_eq!(names_in(&dir), ["locked"]);
        drop(listener);
    }

    #[test]
    fn a_file_that_is_not_our_lock_is_neither_removed_nor_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (_, url) = place(&dir, "x");
        // The customary name of an application's own lock or pid file.
        let own = dir.path().join("x.lock");
        fs::write(&own, "precious").unwrap();
        let held = File::open(&own).unwrap();
        sys::try_lock(&held).unwrap();
        drop(bind(&url).unwrap());
        assert_eq!(fs::read_to_string(&own).unwrap(), "precious");
        // Whoever took our name for something else is told, and keeps it.
        let odd = dir.path().join(".x.spanwire-bind");
        fs::write(&odd, "precious").unwrap();
        in_use(&url, ".x.spanwire-bind");
        assert_eq!(fs::read_to_string(&odd).unwrap(), "precious");
    }

    #[test]
    fn a_listener_removes_its_own_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "own");
        let listener = bind(&url).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let other = bind(&url).unwrap();
        drop(listener);
        assert!(path.exists(), "the other's file must stay");
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn the_mode_is_as_asked_for_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o666, 0o777] {
            let (path, url) = place(&dir, &format!("mode{mode:o}"));
            let _listener = Ipc.listen(&url, &bag(IpcOptions::default().mode(Some(mode)))).unwrap();
            assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn a_path_as_long_as_fits_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = MAX_PATH - dir.path().as_os_str().len() - 1;
        let (_, url) = place(&dir, &"p".repeat(room));
        let mut turn = Loop::new();
        let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
        turn.carries(&mut a, &mut b, "long");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_names_work_with_any_bytes_and_without_a_name() {
        let own = std::process::id();
        for url in [format!("abstract://spanwire-{own}"), format!("abstract://%00%ff%20/spanwire-{own}%25")] {
            let mut turn = Loop::new();
            let listener = bind(&url).unwrap();
            assert_eq!(listener.url().to_lowercase(), url);
            let second = bind(&url).err().unwrap();
            assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
            drop(listener);
            let (mut a, mut b) = turn.connect(&Ipc, &url, &Bag::default());
            turn.carries(&mut a, &mut b, "no file");
        }
        let mut turn = Loop::new();
        let (mut a, mut b) = turn.connect(&Ipc, "abstract://", &Bag::default());
        assert_ne!(a.facts.remote, "abstract://", "the kernel chose a name");
        turn.carries(&mut a, &mut b, "any name");
        let longest = format!("abstract://{:x<MAX_PATH$}", own);
        turn.connect(&Ipc, &longest, &Bag::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn both_ends_know_the_process_the_user_and_the_group_of_the_peer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "who");
        let mut turn = Loop::new();
        let mut listener = bind(&url).unwrap();
        turn.register(|r| listener.register(r));
        let made = fs::symlink_metadata(&path).unwrap();
        let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
        let (a, b) = turn.meet(&*dialer, &mut *listener);
        let us = Credentials { pid: Some(std::process::id()), uid: made.uid(), gid: made.gid() };
        assert_eq!(a.facts.more.get(), Some(&us));
        assert_eq!(b.facts.more.get(), Some(&us));
    }

    #[test]
    fn buffer_sizes_are_in_force() {
        let options = IpcOptions::default().send_buffer(Some(40_000)).recv_buffer(Some(50_000));
        let socket = options.socket().unwrap();
        assert!([40_000, 80_000].contains(&socket.send_buffer_size().unwrap()));
        assert!([50_000, 100_000].contains(&socket.recv_buffer_size().unwrap()));
        assert!(socket.nonblocking().unwrap());
    }

    #[test]
    fn a_bad_address_or_option_is_refused_in_words() {
        let long = format!("ipc://{}", "p".repeat(MAX_PATH + 1));
        let long_name = format!("abstract://{}", "n".repeat(MAX_PATH + 1));
        let mut bad = vec![
            ("ipc://", "no path"),
            ("unix://", "no path"),
            ("ipc://a\0b", "NUL"),
            (long.as_str(), "at most"),
            ("abstract://%", "two hexadecimal digits"),
            ("abstract://a%4", "two hexadecimal digits"),
            ("abstract://%zz", "two hexadecimal digits"),
        ];
        if ABSTRACT {
            bad.push((long_name.as_str(), "at most"));
        }
        for (url, text) in bad {
            refuses(Ipc.listen(url, &Bag::default()), url, text);
            refuses(Ipc.dialer(url, &Bag::default()), url, text);
        }
        if ABSTRACT {
            refuses(Ipc.dialer("abstract://", &Bag::default()), "abstract://", "no name to connect to");
        }
        for (options, text) in [
            (IpcOptions::default().mode(Some(0o1777)), "permission bits"),
            (IpcOptions::default().backlog(0), "backlog"),
            (IpcOptions::default().send_buffer(Some(0)), "buffer sizes"),
        ] {
            let error = Ipc.listen("ipc://x", &bag(options)).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_connect_to_nothing_fails_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, url) = place(&dir, "nothing");
        let dialer = Ipc.dialer(&url, &Bag::default()).unwrap();
        assert_eq!(dialer.dial(None).unwrap_err().kind(), io::ErrorKind::NotFound);
        leave_stale(&path);
        assert_eq!(dialer.dial(None).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
