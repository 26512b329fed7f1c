//! Starts peers, tells them what to do, and reads what they saw.
//!
//! Owns: the peers' command lines and what they print. Never: waits without a deadline, or leaves a child behind.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spanwire::protocol::Protocol;
use spanwire::{Builder, Event, Socket};
use tempfile::TempDir;

/// Only a failure takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The other implementations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    Nanocat,
    Nngcat,
    Pynng,
    Nanomsg,
}

/// What the peer's socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Push,
    Pull,
    Pub,
    Sub,
    Req,
    Rep,
    Pair,
}

/// Which end the peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Binds,
    Connects,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Net {
    Tcp,
    Ipc,
}

/// Runs a check over both networks and with the peer at either end.
pub(crate) fn each(check: impl Fn(Net, Role)) {
    for net in [Net::Tcp, Net::Ipc] {
        for role in [Role::Binds, Role::Connects] {
            println!("{net:?}, the peer {role:?}"); // shown when the check fails
            check(net, role);
        }
    }
}

/// A folder for ipc addresses and for what peers shall send.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Place(TempDir::new().expect("a temporary folder can be made"))
    }

    /// A file with this content.
    pub(crate) fn file(&self, name: &str, body: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, body).expect("the temporary folder is writable");
        path
    }

    /// An address that is free, for a peer to bind.
    pub(crate) fn free(&self, net: Net) -> String {
        // Below the ports that the system gives to outgoing connections, so none of those takes it meanwhile.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if net == Net::Ipc {
            return format!("ipc://{}/{number}", self.0.path().display());
        }
        let start = std::process::id() as u16 % 8_000;
        let ports = (0..10_000).map(|i| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed) + i) % 10_000);
        let free = ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        format!("tcp://127.0.0.1:{}", free.expect("one of ten thousand ports is free"))
    }

    /// Binds or connects our socket, whichever the peer does not, and says where.
    pub(crate) fn meet<P: Protocol>(&self, ours: &Socket<P>, net: Net, peers: Role) -> String {
        match (peers, net) {
            (Role::Binds, _) => {
                let url = self.free(net);
                ours.connect(&url).expect("a good address");
                url
            }
            (Role::Connects, Net::Tcp) => bound(ours, "tcp://127.0.0.1:0"),
            (Role::Connects, Net::Ipc) => bound(ours, &self.free(net)),
        }
    }
}

fn bound<P: Protocol>(ours: &Socket<P>, url: &str) -> String {
    ours.bind(url).expect("a free address").url().to_owned()
}

/// The builder's result with short reconnect times: the peer often comes second.
pub(crate) fn ours<P: Protocol, S>(builder: Builder<P, S>) -> S {
    builder.reconnect(Duration::from_millis(10), Duration::from_millis(100)).build().expect("good options")
}

/// Waits for an event.
#[track_caller]
pub(crate) fn await_event(
    events: &crossbeam_channel::Receiver<Event>,
    wanted: impl Fn(&Event) -> bool,
) -> Event {
    let deadline = Instant::now() + PATIENCE;
    let mut others = Vec::new();
    loop {
        match events.recv_deadline(deadline) {
            Ok(event) if wanted(&event) => return event,
            Ok(event) => others.push(event),
            Err(_) => panic!("not in time; what came: {others:?}"),
        }
    }
}

/// What a peer shall do.
#[derive(Default)]
pub(crate) struct Told<'a> {
    /// What to send; nanocat and nngcat take the first only.
    pub(crate) files: &'a [PathBuf],
    /// Send again, every 50 ms if the peer can.
    pub(crate) again: bool,
    /// What a sub subscribes to; everything, if nothing is said.
    pub(crate) topic: Option<&'a str>,
}

/// A peer at work. It ends when this is dropped.
pub(crate) struct Running {
    child: Child,
    name: String,
    seen: mpsc::Receiver<Vec<u8>>,
    complaints: Arc<Mutex<String>>,
}

impl Peer {
    pub(crate) fn start(self, kind: Kind, role: Role, url: &str, told: &Told<'_>) -> Running {
        match self {
            Peer::Nanocat => Running::start(cat("nanocat", "", kind, role, url, told)),
            Peer::Nngcat => Running::start(cat("nngcat", "0", kind, role, url, told)),
            Peer::Pynng => Running::start(python("pynng", kind, role, url, told)),
            Peer::Nanomsg => Running::start(python("nanomsg", kind, role, url, told)),
        }
    }

    /// How often to look at what it sends again: nngcat's interval is a second, and many tests wait for it.
    pub(crate) fn repeats(self) -> usize {
        if self == Peer::Nngcat { 1 } else { 2 }
    }

    /// A device of the peer's library, bound at both addresses.
    pub(crate) fn device(self, pattern: &str, front: &str, back: &str) -> Running {
        let library = if self == Peer::Pynng { "pynng" } else { "nanomsg" };
        let mut command = helper();
        command.args([library, "device", pattern, front, back]);
        Running::start(command)
    }
}

fn word(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// nanocat and nngcat have the same options, and their own names for the types.
fn cat(program: &str, version: &str, kind: Kind, role: Role, url: &str, told: &Told<'_>) -> Command {
    let mut command = Command::new(program);
    let end = if role == Role::Binds { "--bind" } else { "--connect" };
    command.arg(format!("--{}{version}", word(kind))).args([end, url]);
    if !matches!(kind, Kind::Push | Kind::Pub) {
        command.arg("--hex");
    }
    if let Some(file) = told.files.first() {
        // nanocat aborts on an empty file, but not on empty data.
        match file.metadata().is_ok_and(|about| about.len() == 0) {
            true => command.args(["--data", ""]),
            false => command.arg("--file").arg(file),
        };
    }
    if told.again {
        // nngcat knows whole seconds only.
        command.args(["--interval", if program == "nngcat" { "1" } else { "0.05" }]);
    }
    if program == "nngcat" && role == Role::Connects {
        // Otherwise it gives up when nobody is there yet.
        command.arg("--async");
    }
    if kind == Kind::Sub {
        command.args(["--subscribe", told.topic.unwrap_or("")]);
    }
    command
}

fn python(library: &str, kind: Kind, role: Role, url: &str, told: &Told<'_>) -> Command {
    let mut command = helper();
    let end = if role == Role::Binds { "bind" } else { "connect" };
    command.args([library, &word(kind), end, url]);
    for file in told.files {
        command.arg("--file").arg(file);
    }
    if told.again {
        command.args(["--interval", "50"]);
    }
    if let Some(topic) = told.topic {
        command.args(["--subscribe", topic]);
    }
    command
}

fn helper() -> Command {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(crate_root.join("../../target/peers-venv/bin/python"));
    command.arg(crate_root.join("tests/interop/peer.py"));
    command
}

impl Running {
    fn start(mut command: Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let name = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match piped.spawn() {
            Ok(child) => child,
            Err(e) => panic!("failed to start {name}: {e}; install the peers with `cargo xtask peers`"),
        };
        let (sender, seen) = mpsc::channel();
        let out = child.stdout.take().expect("it was piped");
        std::thread::spawn(move || read_lines(out, &sender));
        let complaints = Arc::new(Mutex::new(String::new()));
        let (mut err, into) = (child.stderr.take().expect("it was piped"), complaints.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut chunk) {
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Running { child, name, seen, complaints }
    }

    /// The signal by which it ended, if it did.
    pub(crate) fn crashed(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.signal())
    }

    /// The next message that the peer received, if it comes within `limit`.
    pub(crate) fn saw_within(&self, limit: Duration) -> Option<Vec<u8>> {
        match self.seen.recv_timeout(limit) {
            Ok(body) => Some(body),
            Err(RecvTimeoutError::Timeout) => None,
            // It may have ended because it did all it was told to: the caller knows whether that is too early.
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// The next message that the peer received.
    #[track_caller]
    pub(crate) fn saw(&self) -> Vec<u8> {
        match self.saw_within(PATIENCE) {
            Some(body) => body,
            None => panic!("{self:?} received nothing"),
        }
    }

    /// The next messages that the peer received, which must be these.
    #[track_caller]
    pub(crate) fn must_see(&self, bodies: &[&[u8]]) {
        for body in bodies {
            same(&self.saw(), body);
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "`{}` (it says: {:?})", self.name, complaints.trim())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whether it had ended by itself makes no difference.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two bodies are equal; if not, says so without printing a mebibyte.
#[track_caller]
pub(crate) fn same(got: &[u8], expected: &[u8]) {
    let differ = got.iter().zip(expected).position(|(a, b)| a != b);
    let start = |body: &[u8]| body[..body.len().min(40)].escape_ascii().to_string();
    assert!(
        got == expected,
        "got {} bytes {:?}, expected {} bytes {:?}, first difference at {differ:?}",
        got.len(),
        start(got),
        expected.len(),
        start(expected),
    );
}

fn read_lines(out: impl Read, to: &mpsc::Sender<Vec<u8>>) {
    for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
        // A test that has seen enough no longer listens.
        if message(&line).is_some_and(|body| to.send(body).is_err()) {
            return;
        }
    }
}

/// `got 6869` of the helper, `"\x68\x69"` of the cats; nothing else is a message.
fn message(line: &[u8]) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| match pair.len() {
        2 => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
        _ => None,
    };
    if let Some(hex) = line.strip_prefix(b"got ") {
        return hex.chunks(2).map(pair).collect();
    }
    let inner = line.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    inner.chunks(4).map(|byte| pair(byte.strip_prefix(b"\\x")?)).collect()
}

/// A body of this size without a pattern that a copy of the wrong piece would keep.
pub(crate) fn filled(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}

#[test]
fn what_peers_print_is_read_byte_by_byte() {
    assert_eq!(message(b"got 00ff61"), Some(vec![0, 255, b'a']));
    assert_eq!(message(b"got "), Some(vec![]));
    assert_eq!(message(br#""\x00\xff\x61""#), Some(vec![0, 255, b'a']));
    assert_eq!(message(br#""""#), Some(vec![]));
    for other in [&b"ready"[..], b"got 0", b"got zz", br#""abc""#, b"", b"\""] {
        assert_eq!(message(other), None, "{}", other.escape_ascii());
    }
}

#[test]
fn a_peer_that_ends_early_is_reported_with_what_it_said() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo oh no >&2"]);
    let gone = Running::start(command);
    assert_eq!(gone.saw_within(PATIENCE), None);
    let deadline = Instant::now() + PATIENCE;
    while !format!("{gone:?}").contains("oh no") {
        assert!(Instant::now() < deadline, "{gone:?}");
        std::thread::yield_now();
    }
}
