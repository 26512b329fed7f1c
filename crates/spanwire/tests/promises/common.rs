//! What the promises' tests share: addresses, raw peers, waiting, a child process.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use socket2::{Domain, SockAddr, Socket, Type};
use spanwire::Event;

pub(crate) use crate::executor::block_on;
pub(crate) use crate::rng::Rng;
pub(crate) use crate::wait::{SOON, eventually, until};

/// By so much a deadline may be missed on a busy machine; on a quiet one it is a millisecond or two.
pub(crate) const LATE: Duration = Duration::from_secs(5);

/// SP ids.
pub(crate) const PAIR: u16 = 0x10;
pub(crate) const REP: u16 = 0x31;
pub(crate) const REQ: u16 = 0x30;
pub(crate) const PUSH: u16 = 0x50;
pub(crate) const PULL: u16 = 0x51;
pub(crate) const SUB: u16 = 0x21;

pub(crate) fn tcp() -> String {
    "tcp://127.0.0.1:0".into()
}

fn fresh() -> String {
    static N: AtomicU32 = AtomicU32::new(0);
    format!("spanwire-promise-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn ipc() -> String {
    format!("ipc://{}", std::env::temp_dir().join(fresh()).display())
}

pub(crate) fn inproc() -> String {
    format!("inproc://{}", fresh())
}

/// A fresh address of each transport.
pub(crate) fn urls() -> [String; 3] {
    [tcp(), ipc(), inproc()]
}

/// A fresh address of each transport with bytes.
pub(crate) fn streams() -> [String; 2] {
    [tcp(), ipc()]
}

impl Rng {
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// The first event that `pick` takes.
#[track_caller]
pub(crate) fn event<T>(events: &Receiver<Event>, mut pick: impl FnMut(Event) -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let event = events.recv_deadline(deadline).expect("the event comes before the deadline");
        if let Some(found) = pick(event) {
            return found;
        }
    }
}

fn socket(url: &str) -> (Socket, SockAddr) {
    let (domain, at) = match url.split_once("://").expect("an address has a scheme") {
        ("tcp", at) => (Domain::IPV4, SockAddr::from(at.parse::<SocketAddr>().expect("a numeric address"))),
        (_, path) => (Domain::UNIX, SockAddr::unix(path).expect("a short path")),
    };
    (Socket::new(domain, Type::STREAM, None).expect("a descriptor"), at)
}

/// A listener of bytes, and its real address.
pub(crate) fn listen(url: &str) -> (Socket, String) {
    let (socket, at) = socket(url);
    socket.bind(&at).expect("a free address");
    socket.listen(128).expect("a bound socket");
    let bound = socket.local_addr().expect("a bound socket").as_socket();
    (socket, bound.map_or_else(|| url.to_owned(), |at| format!("tcp://{at}")))
}

/// A peer of bytes, connected to a bound address.
pub(crate) fn dial(url: &str) -> Socket {
    dial_with(url, None)
}

/// The same with a kernel buffer for what it receives.
pub(crate) fn dial_with(url: &str, recv_buffer: Option<usize>) -> Socket {
    let (socket, at) = socket(url);
    if let Some(bytes) = recv_buffer {
        socket.set_recv_buffer_size(bytes).expect("a buffer size");
    }
    socket.connect(&at).expect("a listener is there");
    socket.set_read_timeout(Some(SOON)).expect("an open socket");
    socket.set_write_timeout(Some(SOON)).expect("an open socket");
    socket
}

pub(crate) fn handshake(id: u16) -> [u8; 8] {
    let [high, low] = id.to_be_bytes();
    [0, b'S', b'P', 0, high, low, 0, 0]
}

/// Says and hears the handshake.
pub(crate) fn greet(socket: &mut Socket, id: u16) {
    socket.write_all(&handshake(id)).expect("a listener that listens");
    socket.read_exact(&mut [0; 8]).expect("a listener's handshake");
}

/// A greeted raw peer.
pub(crate) fn peer(url: &str, id: u16) -> Socket {
    let mut socket = dial(url);
    greet(&mut socket, id);
    socket
}

/// A greeted raw peer with small buffers.
pub(crate) fn small_peer(url: &str, id: u16) -> Socket {
    let mut socket = dial_with(url, Some(4096));
    greet(&mut socket, id);
    socket
}

pub(crate) fn is_ipc(url: &str) -> bool {
    url.starts_with("ipc")
}

pub(crate) fn frame(ipc: bool, body: &[u8]) -> Vec<u8> {
    let mut bytes = if ipc { vec![1] } else { Vec::new() };
    bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Reads to the end: whole frames, and how many bytes of a cut one.
pub(crate) fn read_to_end(socket: &mut Socket, ipc: bool) -> (Vec<Vec<u8>>, usize) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
            Err(e) => panic!("the stream does not end: {e}"),
        }
    }
    let head = 8 + usize::from(ipc);
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while rest.len() >= head {
        let length = rest[head - 8..head].iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
        if rest.len() - head < length {
            break;
        }
        frames.push(rest[head..head + length].to_vec());
        rest = &rest[head + length..];
    }
    (frames, rest.len())
}

/// Ends a connection with a reset rather than an end of stream.
pub(crate) fn reset(socket: Socket) {
    let _ = socket.set_linger(Some(Duration::ZERO));
    drop(socket);
}

/// Raises the number of descriptors to what is allowed, and says how many that is.
pub(crate) fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one valid rlimit.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(1 << 16);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    limit.rlim_cur as usize
}

const CHILD: &str = "SPANWIRE_PROMISE_CHILD";

/// Runs a test alone in a process of its own: `true` in that process; in the parent `false`, after the child has passed.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let output = command(test).output().expect("the test binary runs again");
    assert!(
        output.status.success(),
        "{test} in its own process: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// This binary, to run one test in a process of its own.
pub(crate) fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test binary has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1").stdin(Stdio::null());
    command
}

/// Whether this process is such a child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}
