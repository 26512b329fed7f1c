//! nanomsg, by its C interface.
//!
//! Its buffers are bounded in bytes. `NN_SNDBUF` and `NN_RCVBUF` would also set the system's socket buffers,
//! which stay as they are in this comparison, so only inproc gets the cell's bound. It has `TCP_NODELAY` off
//! by default; round trips set it. Its pub socket drops. It cannot tell which port it bound, so one that was free is handed to it.

use std::ffi::{CString, c_char, c_int, c_void};
use std::net::TcpListener;
use std::sync::Arc;

use super::text;
use crate::Result;
use crate::cell::{Cell, Shape, Transport};
use crate::contestant::{Contestant, Pull, Push, REFUSAL, Rep, Req, Topics, Void};

const AF_SP: c_int = 1;
const PUB: c_int = 2 * 16;
const SUB: c_int = 2 * 16 + 1;
const REQ: c_int = 3 * 16;
const REP: c_int = 3 * 16 + 1;
const PUSH: c_int = 5 * 16;
const PULL: c_int = 5 * 16 + 1;
const SOL_SOCKET: c_int = 0;
const SNDBUF: c_int = 2;
const RCVBUF: c_int = 3;
const SNDTIMEO: c_int = 4;
const RCVMAXSIZE: c_int = 16;
/// Of a sub socket.
const SUBSCRIBE: c_int = 1;
const TCP: c_int = -3;
const TCP_NODELAY: c_int = 1;
/// As a length: the library allocates.
const MSG: usize = usize::MAX;
/// Bodies up to this size are copied out into one buffer; larger ones are handed over, and so are answers with them.
const COPIED: usize = 1024;

// As in nn.h of nanomsg 1.1.
unsafe extern "C" {
    fn nn_errno() -> c_int;
    fn nn_strerror(errno: c_int) -> *const c_char;
    fn nn_socket(domain: c_int, protocol: c_int) -> c_int;
    fn nn_close(socket: c_int) -> c_int;
    fn nn_setsockopt(socket: c_int, level: c_int, option: c_int, value: *const c_void, len: usize) -> c_int;
    fn nn_bind(socket: c_int, url: *const c_char) -> c_int;
    fn nn_connect(socket: c_int, url: *const c_char) -> c_int;
    fn nn_send(socket: c_int, body: *const c_void, len: usize, flags: c_int) -> c_int;
    fn nn_recv(socket: c_int, body: *mut c_void, len: usize, flags: c_int) -> c_int;
    fn nn_freemsg(msg: *mut c_void) -> c_int;
}

fn check(code: c_int) -> Result<usize> {
    // SAFETY: neither call wants anything; the text is static.
    usize::try_from(code).map_err(|_| unsafe { text(nn_strerror(nn_errno())) }.into())
}

/// A socket of any kind.
pub(super) struct Socket {
    socket: c_int,
    buffer: [u8; COPIED],
    large: bool,
}

impl Socket {
    fn new(protocol: c_int, cell: &Cell) -> Result<Self> {
        // SAFETY: wants nothing but numbers.
        let socket = check(unsafe { nn_socket(AF_SP, protocol) })? as c_int;
        let this = Socket { socket, buffer: [0; COPIED], large: cell.size > COPIED };
        this.set(SOL_SOCKET, RCVMAXSIZE, -1)?;
        if cell.transport == Transport::Inproc {
            let bytes = c_int::try_from(cell.queue_bytes())?;
            this.set(SOL_SOCKET, SNDBUF, bytes)?;
            this.set(SOL_SOCKET, RCVBUF, bytes)?;
        }
        if cell.shape == Shape::Full {
            this.set(SOL_SOCKET, SNDTIMEO, REFUSAL.as_millis() as c_int)?;
        }
        if cell.transport == Transport::Tcp && cell.shape == Shape::RoundTrip {
            this.set(TCP, TCP_NODELAY, 1)?;
        }
        Ok(this)
    }

    fn subscribe(&self, topic: &[u8]) -> Result<()> {
        // SAFETY: the topic is copied before the call returns.
        check(unsafe { nn_setsockopt(self.socket, SUB, SUBSCRIBE, topic.as_ptr().cast(), topic.len()) })?;
        Ok(())
    }

    fn set(&self, level: c_int, option: c_int, value: c_int) -> Result<()> {
        let len = size_of::<c_int>();
        // SAFETY: these options are ints.
        check(unsafe { nn_setsockopt(self.socket, level, option, (&raw const value).cast(), len) })?;
        Ok(())
    }

    fn connected(protocol: c_int, url: &str, cell: &Cell) -> Result<Self> {
        let this = Socket::new(protocol, cell)?;
        this.connect(url)?;
        Ok(this)
    }

    fn connect(&self, url: &str) -> Result<()> {
        let url = CString::new(url)?;
        // SAFETY: the string ends with a zero.
        check(unsafe { nn_connect(self.socket, url.as_ptr()) })?;
        Ok(())
    }

    fn bound(protocol: c_int, url: &str, cell: &Cell) -> Result<(Self, String)> {
        let this = Socket::new(protocol, cell)?;
        let mut tries = 0;
        loop {
            let real = match url.strip_suffix(":0") {
                Some(host) => format!("{host}:{}", free_port()?),
                None => url.to_owned(),
            };
            let text = CString::new(real.as_str())?;
            // SAFETY: the string ends with a zero.
            match check(unsafe { nn_bind(this.socket, text.as_ptr()) }) {
                Ok(_) => return Ok((this, real)),
                // Somebody was quicker.
                Err(_) if tries < 10 => tries += 1,
                Err(why) => return Err(why),
            }
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: a number; closed only here.
        unsafe { nn_close(self.socket) };
    }
}

impl Push for Socket {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the body is copied before the call returns.
        check(unsafe { nn_send(self.socket, body.as_ptr().cast(), body.len(), 0) })?;
        Ok(())
    }
    async fn offer(&mut self, body: &[u8]) -> Result<bool> {
        // SAFETY: as in `send`; errno is only read.
        unsafe {
            match nn_send(self.socket, body.as_ptr().cast(), body.len(), 0) {
                code if code < 0 && nn_errno() == libc::ETIMEDOUT => Ok(false),
                code => check(code).map(|_| true),
            }
        }
    }
}

/// One handle of a socket; any thread may use one.
pub(super) struct Sharer(Arc<Socket>);

impl Push for Sharer {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the body is copied before the call returns.
        check(unsafe { nn_send(self.0.socket, body.as_ptr().cast(), body.len(), 0) })?;
        Ok(())
    }
}

impl Pull for Socket {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if self.large {
            let (msg, seen) = self.take(look)?;
            // SAFETY: just received, not freed yet.
            unsafe { nn_freemsg(msg) };
            return Ok(seen);
        }
        // SAFETY: the buffer has as many bytes as are told.
        let size = check(unsafe { nn_recv(self.socket, self.buffer.as_mut_ptr().cast(), COPIED, 0) })?;
        Ok(look(self.buffer.get(..size).ok_or_else(|| format!("a message of {size} bytes"))?))
    }
}

impl Socket {
    /// Receives into a buffer of the library and shows it; it is to be freed or sent.
    fn take<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<(*mut c_void, R)> {
        let mut msg = std::ptr::null_mut::<c_void>();
        // SAFETY: with NN_MSG a place for a pointer is wanted.
        let size = check(unsafe { nn_recv(self.socket, (&raw mut msg).cast(), MSG, 0) })?;
        // SAFETY: it now points to that many bytes, ours until freed.
        let seen = look(unsafe { std::slice::from_raw_parts(msg.cast::<u8>(), size) });
        Ok((msg, seen))
    }
}

impl Req for Socket {
    async fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.send(body).await?;
        self.recv(look).await
    }
}

impl Rep for Socket {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let socket = self.socket;
        if self.large {
            let (msg, seen) = self.take(look)?;
            // SAFETY: just received, and with NN_MSG a pointer to it is wanted. A message that was sent is the library's;
            // after an error the process ends.
            check(unsafe { nn_send(socket, (&raw const msg).cast(), MSG, 0) })?;
            return Ok(seen);
        }
        let served = self.recv(|body| {
            let seen = look(body);
            // SAFETY: the body is copied before the call returns.
            (seen, check(unsafe { nn_send(socket, body.as_ptr().cast(), body.len(), 0) }))
        });
        let (seen, sent) = served.await?;
        sent?;
        Ok(seen)
    }
}

/// nanomsg.
pub(super) struct Nanomsg;

impl Contestant for Nanomsg {
    type Push = Socket;
    type Sharer = Sharer;
    type Pull = Socket;
    type Req = Socket;
    type Rep = Socket;
    type Ask = Void;
    type Serve = Void;
    type Pub = Socket;
    type Sub = Socket;

    fn name(&self) -> &'static str {
        "nanomsg"
    }
    fn version(&self) -> String {
        env!("VERSUS_NANOMSG_VERSION").to_owned()
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::Pipelined(_) => false,
            Shape::FanIn(n) => n <= 1000,
            _ => true,
        }
    }
    fn is_lossy(&self) -> bool {
        true
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(PUSH, url, cell)
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(PULL, url, cell)
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(REQ, url, cell)
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(REP, url, cell)
    }
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<Sharer>> {
        let socket = Arc::new(Socket::connected(PUSH, url, cell)?);
        Ok((0..n).map(|_| Sharer(socket.clone())).collect())
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(PUB, url, cell)
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Socket> {
        let socket = Socket::new(SUB, cell)?;
        for topic in topics {
            socket.subscribe(&topic)?;
        }
        socket.connect(url)?;
        Ok(socket)
    }
}
