//! libzmq, by its C interface: one I/O thread, as it has by default.
//!
//! HWM is the bound in messages on each side. Messages are received into one `zmq_msg_t`, without a copy.
//! Requests in flight are between a dealer and a router. A pub socket is an xpub with `ZMQ_XPUB_NODROP`, which
//! waits for slow subscribers as a push socket does. Threads that share a socket take turns by a mutex.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::{Locked, text};
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, REFUSAL, Rep, Req, Topics};

const SUB: c_int = 2;
const REQ: c_int = 3;
const REP: c_int = 4;
const DEALER: c_int = 5;
const ROUTER: c_int = 6;
const PULL: c_int = 7;
const PUSH: c_int = 8;
const XPUB: c_int = 9;
const SUBSCRIBE: c_int = 6;
const LINGER: c_int = 17;
const SNDHWM: c_int = 23;
const RCVHWM: c_int = 24;
const SNDTIMEO: c_int = 28;
const LAST_ENDPOINT: c_int = 32;
const XPUB_NODROP: c_int = 69;
/// Of a context.
const MAX_SOCKETS: c_int = 2;
/// As a flag: another part follows.
const SNDMORE: c_int = 2;

/// `zmq_msg_t`.
#[repr(C, align(8))]
struct Msg([u8; 64]);

// As in zmq.h of libzmq 4.3.
unsafe extern "C" {
    fn zmq_version(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);
    fn zmq_errno() -> c_int;
    fn zmq_strerror(errno: c_int) -> *const c_char;
    fn zmq_ctx_new() -> *mut c_void;
    fn zmq_ctx_set(context: *mut c_void, option: c_int, value: c_int) -> c_int;
    fn zmq_socket(context: *mut c_void, kind: c_int) -> *mut c_void;
    fn zmq_close(socket: *mut c_void) -> c_int;
    fn zmq_setsockopt(socket: *mut c_void, option: c_int, value: *const c_void, len: usize) -> c_int;
    fn zmq_getsockopt(socket: *mut c_void, option: c_int, value: *mut c_void, len: *mut usize) -> c_int;
    fn zmq_bind(socket: *mut c_void, url: *const c_char) -> c_int;
    fn zmq_connect(socket: *mut c_void, url: *const c_char) -> c_int;
    fn zmq_send(socket: *mut c_void, body: *const c_void, len: usize, flags: c_int) -> c_int;
    fn zmq_msg_init(msg: *mut Msg) -> c_int;
    fn zmq_msg_recv(msg: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
    fn zmq_msg_send(msg: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
    fn zmq_msg_data(msg: *mut Msg) -> *mut c_void;
    fn zmq_msg_size(msg: *const Msg) -> usize;
}

fn check(code: c_int) -> Result<()> {
    if code >= 0 { Ok(()) } else { Err(last_error().into()) }
}

fn last_error() -> String {
    // SAFETY: neither call wants anything; the text is static.
    unsafe { text(zmq_strerror(zmq_errno())) }
}

/// The context of the process: inproc needs one for both sides. A context may be used by any thread.
fn context() -> Result<*mut c_void> {
    static CONTEXT: OnceLock<usize> = OnceLock::new();
    // SAFETY: the first call wants nothing, the second refuses a null context.
    let make = || unsafe {
        let context = zmq_ctx_new();
        // By default there is room for 1,023. A context that is null is refused below.
        zmq_ctx_set(context, MAX_SOCKETS, 4096);
        context as usize
    };
    let context = *CONTEXT.get_or_init(make) as *mut c_void;
    if context.is_null() { Err(last_error().into()) } else { Ok(context) }
}

fn message() -> Box<Msg> {
    let mut msg = Box::new(MaybeUninit::<Msg>::uninit());
    // SAFETY: there is room for a message, and zmq_msg_init, which never fails, makes one of it.
    unsafe {
        zmq_msg_init(msg.as_mut_ptr());
        msg.assume_init()
    }
}

/// A socket of any kind, with the message it receives into.
pub(super) struct Socket {
    socket: NonNull<c_void>,
    msg: Box<Msg>,
}

// SAFETY: a libzmq socket may move to another thread with a full fence between, which whatever moves a
// value in Rust is; it is not used by two at a time, since it is not `Sync`.
unsafe impl Send for Socket {}

impl Socket {
    fn new(kind: c_int, cell: &Cell) -> Result<Self> {
        // SAFETY: the context lives for ever.
        let socket = unsafe { zmq_socket(context()?, kind) };
        let socket = NonNull::new(socket).ok_or_else(last_error)?;
        let this = Socket { socket, msg: message() };
        let queue = c_int::try_from(cell.queue())?;
        for (option, value) in [(SNDHWM, queue), (RCVHWM, queue), (LINGER, 0)] {
            this.set(option, value)?;
        }
        if cell.shape == Shape::Full {
            this.set(SNDTIMEO, REFUSAL.as_millis() as c_int)?;
        }
        Ok(this)
    }

    fn set(&self, option: c_int, value: c_int) -> Result<()> {
        let len = size_of::<c_int>();
        // SAFETY: the socket is open, and these options are ints.
        check(unsafe { zmq_setsockopt(self.raw(), option, (&raw const value).cast(), len) })
    }

    fn raw(&self) -> *mut c_void {
        self.socket.as_ptr()
    }

    fn connected(kind: c_int, url: &str, cell: &Cell) -> Result<Self> {
        let this = Socket::new(kind, cell)?;
        this.connect(url)?;
        Ok(this)
    }

    fn connect(&self, url: &str) -> Result<()> {
        let url = CString::new(url)?;
        // SAFETY: the socket is open, the string ends with a zero.
        check(unsafe { zmq_connect(self.raw(), url.as_ptr()) })
    }

    fn bound(kind: c_int, url: &str, cell: &Cell) -> Result<(Self, String)> {
        let this = Socket::new(kind, cell)?;
        let url = this.bind(url)?;
        Ok((this, url))
    }

    fn bind(&self, url: &str) -> Result<String> {
        let url = CString::new(url)?;
        // SAFETY: the socket is open, the string ends with a zero.
        check(unsafe { zmq_bind(self.raw(), url.as_ptr()) })?;
        let mut real = [0u8; 256];
        let mut len = real.len();
        // SAFETY: `real` has room for `len` bytes.
        check(unsafe { zmq_getsockopt(self.raw(), LAST_ENDPOINT, real.as_mut_ptr().cast(), &mut len) })?;
        let real = real.split(|b| *b == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(real).into_owned())
    }

    /// The message received last.
    fn body(&mut self) -> &[u8] {
        // SAFETY: the message is initialised from `new` on; its data stay until the next receive or send,
        // which both borrow `self` mutably.
        unsafe {
            let (data, size) = (zmq_msg_data(&mut *self.msg), zmq_msg_size(&*self.msg));
            if data.is_null() { &[] } else { std::slice::from_raw_parts(data.cast::<u8>(), size) }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed only here. The message is a leak of one body at the process's end.
        unsafe { zmq_close(self.raw()) };
    }
}

impl Push for Socket {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the socket is open; the body is copied before the call returns.
        check(unsafe { zmq_send(self.raw(), body.as_ptr().cast(), body.len(), 0) })
    }
    async fn offer(&mut self, body: &[u8]) -> Result<bool> {
        // SAFETY: as in `send`; errno is only read.
        unsafe {
            match zmq_send(self.raw(), body.as_ptr().cast(), body.len(), 0) {
                code if code < 0 && zmq_errno() == libc::EAGAIN => Ok(false),
                code => check(code).map(|()| true),
            }
        }
    }
}

/// A router, which has the asker's name before each request.
pub(super) struct Router {
    socket: Socket,
    name: Box<Msg>,
}

impl Rep for Router {
    async fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        // SAFETY: socket and message are initialised; the old content is freed by the call.
        check(unsafe { zmq_msg_recv(&mut *self.name, self.socket.raw(), 0) })?;
        let seen = self.socket.recv(look).await?;
        // SAFETY: as above; a sent message is an empty, initialised one.
        check(unsafe { zmq_msg_send(&mut *self.name, self.socket.raw(), SNDMORE) })?;
        // SAFETY: the same.
        check(unsafe { zmq_msg_send(&mut *self.socket.msg, self.socket.raw(), 0) })?;
        Ok(seen)
    }
}

impl Pull for Socket {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        // SAFETY: socket and message are initialised; the old content is freed by the call.
        check(unsafe { zmq_msg_recv(&mut *self.msg, self.raw(), 0) })?;
        Ok(look(self.body()))
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
        let seen = self.recv(look).await?;
        // SAFETY: socket and message are initialised; a sent message is an empty, initialised one.
        check(unsafe { zmq_msg_send(&mut *self.msg, self.raw(), 0) })?;
        Ok(seen)
    }
}

/// libzmq.
pub(super) struct Zmq;

impl Contestant for Zmq {
    type Push = Socket;
    type Sharer = Locked<Socket>;
    type Pull = Socket;
    type Req = Socket;
    type Rep = Socket;
    type Ask = Socket;
    type Serve = Router;
    type Pub = Socket;
    type Sub = Socket;

    fn name(&self) -> &'static str {
        "libzmq"
    }
    fn version(&self) -> String {
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: three places for ints.
        unsafe { zmq_version(&mut major, &mut minor, &mut patch) };
        format!("{major}.{minor}.{patch}")
    }
    fn takes(&self, _: &Cell) -> bool {
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
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<Locked<Socket>>> {
        Ok(Locked::shared(Socket::connected(PUSH, url, cell)?, n))
    }
    async fn ask(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(DEALER, url, cell)
    }
    async fn serve(&self, url: &str, cell: &Cell) -> Result<(Router, String)> {
        let (socket, url) = Socket::bound(ROUTER, url, cell)?;
        Ok((Router { socket, name: message() }, url))
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        let socket = Socket::new(XPUB, cell)?;
        socket.set(XPUB_NODROP, 1)?;
        let url = socket.bind(url)?;
        Ok((socket, url))
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Socket> {
        let socket = Socket::new(SUB, cell)?;
        // Subscriptions are messages to the publisher, and what is beyond the mark is dropped.
        socket.set(SNDHWM, 0)?;
        for topic in topics {
            // SAFETY: the socket is open; the topic is copied before the call returns.
            check(unsafe { zmq_setsockopt(socket.raw(), SUBSCRIBE, topic.as_ptr().cast(), topic.len()) })?;
        }
        socket.connect(url)?;
        Ok(socket)
    }
}
