//! libzmq, by its C interface: one I/O thread, as it has by default.
//!
//! HWM is the bound in messages on each side. Messages are received into one `zmq_msg_t`, without a copy.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::text;
use crate::Result;
use crate::cell::Cell;
use crate::contestant::{Contestant, Pull, Push, Rep, Req};

const REQ: c_int = 3;
const REP: c_int = 4;
const PULL: c_int = 7;
const PUSH: c_int = 8;
const LINGER: c_int = 17;
const SNDHWM: c_int = 23;
const RCVHWM: c_int = 24;
const LAST_ENDPOINT: c_int = 32;

/// `zmq_msg_t`.
#[repr(C, align(8))]
struct Msg([u8; 64]);

// As in zmq.h of libzmq 4.3.
unsafe extern "C" {
    fn zmq_version(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);
    fn zmq_errno() -> c_int;
    fn zmq_strerror(errno: c_int) -> *const c_char;
    fn zmq_ctx_new() -> *mut c_void;
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
    // SAFETY: the call wants nothing.
    let context = *CONTEXT.get_or_init(|| unsafe { zmq_ctx_new() } as usize) as *mut c_void;
    if context.is_null() { Err(last_error().into()) } else { Ok(context) }
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
    fn new(kind: c_int) -> Result<Self> {
        // SAFETY: the context lives for ever.
        let socket = unsafe { zmq_socket(context()?, kind) };
        let socket = NonNull::new(socket).ok_or_else(last_error)?;
        let mut msg = Box::new(MaybeUninit::<Msg>::uninit());
        // SAFETY: there is room for a message, and zmq_msg_init, which never fails, makes one of it.
        let msg = unsafe {
            zmq_msg_init(msg.as_mut_ptr());
            msg.assume_init()
        };
        let this = Socket { socket, msg };
        for (option, value) in [(SNDHWM, Cell::QUEUE as c_int), (RCVHWM, Cell::QUEUE as c_int), (LINGER, 0)] {
            // SAFETY: the socket is open, and these options are ints.
            check(unsafe {
                zmq_setsockopt(this.raw(), option, (&raw const value).cast(), size_of::<c_int>())
            })?;
        }
        Ok(this)
    }

    fn raw(&self) -> *mut c_void {
        self.socket.as_ptr()
    }

    fn connected(kind: c_int, url: &str) -> Result<Self> {
        let this = Socket::new(kind)?;
        let url = CString::new(url)?;
        // SAFETY: the socket is open, the string ends with a zero.
        check(unsafe { zmq_connect(this.raw(), url.as_ptr()) })?;
        Ok(this)
    }

    fn bound(kind: c_int, url: &str) -> Result<(Self, String)> {
        let this = Socket::new(kind)?;
        let url = CString::new(url)?;
        // SAFETY: the socket is open, the string ends with a zero.
        check(unsafe { zmq_bind(this.raw(), url.as_ptr()) })?;
        let mut real = [0u8; 256];
        let mut len = real.len();
        // SAFETY: `real` has room for `len` bytes.
        check(unsafe { zmq_getsockopt(this.raw(), LAST_ENDPOINT, real.as_mut_ptr().cast(), &mut len) })?;
        let real = real.split(|b| *b == 0).next().unwrap_or_default();
        Ok((this, String::from_utf8_lossy(real).into_owned()))
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
    fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the socket is open; the body is copied before the call returns.
        check(unsafe { zmq_send(self.raw(), body.as_ptr().cast(), body.len(), 0) })
    }
}

impl Pull for Socket {
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        // SAFETY: socket and message are initialised; the old content is freed by the call.
        check(unsafe { zmq_msg_recv(&mut *self.msg, self.raw(), 0) })?;
        Ok(look(self.body()))
    }
}

impl Req for Socket {
    fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.send(body)?;
        self.recv(look)
    }
}

impl Rep for Socket {
    fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let seen = self.recv(look)?;
        // SAFETY: socket and message are initialised; a sent message is an empty, initialised one.
        check(unsafe { zmq_msg_send(&mut *self.msg, self.raw(), 0) })?;
        Ok(seen)
    }
}

/// libzmq.
pub(super) struct Zmq;

impl Contestant for Zmq {
    type Push = Socket;
    type Pull = Socket;
    type Req = Socket;
    type Rep = Socket;

    fn name(&self) -> &'static str {
        "libzmq"
    }
    fn version(&self) -> String {
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: three places for ints.
        unsafe { zmq_version(&mut major, &mut minor, &mut patch) };
        format!("{major}.{minor}.{patch}")
    }
    fn push(&self, url: &str, _: &Cell) -> Result<Socket> {
        Socket::connected(PUSH, url)
    }
    fn pull(&self, url: &str, _: &Cell) -> Result<(Socket, String)> {
        Socket::bound(PULL, url)
    }
    fn req(&self, url: &str, _: &Cell) -> Result<Socket> {
        Socket::connected(REQ, url)
    }
    fn rep(&self, url: &str, _: &Cell) -> Result<(Socket, String)> {
        Socket::bound(REP, url)
    }
}
