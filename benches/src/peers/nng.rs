//! nng, by its C interface.
//!
//! Send and receive buffers are the bound in messages, where a socket has them. Messages are received and
//! answered without a copy; `nng_send` copies into one, as a caller with bytes in hand has to.
//! Its pub socket drops, whatever the buffer.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;

use super::text;
use crate::Result;
use crate::cell::{Cell, Shape};
use crate::contestant::{Contestant, Pull, Push, REFUSAL, Rep, Req, Topics, Void};

const ETIMEDOUT: c_int = 5;
const ENOTSUP: c_int = 9;
/// As a flag.
const NONBLOCK: c_int = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id(u32);

/// `nng_msg`.
#[repr(C)]
struct Msg {
    _opaque: [u8; 0],
}

type Open = unsafe extern "C" fn(*mut Id) -> c_int;

// As in nng.h of nng 1.5: sockets and listeners are structs of one number.
unsafe extern "C" {
    fn nng_version() -> *const c_char;
    fn nng_strerror(code: c_int) -> *const c_char;
    fn nng_push0_open(socket: *mut Id) -> c_int;
    fn nng_pull0_open(socket: *mut Id) -> c_int;
    fn nng_req0_open(socket: *mut Id) -> c_int;
    fn nng_rep0_open(socket: *mut Id) -> c_int;
    fn nng_pub0_open(socket: *mut Id) -> c_int;
    fn nng_sub0_open(socket: *mut Id) -> c_int;
    fn nng_close(socket: Id) -> c_int;
    fn nng_socket_set_int(socket: Id, option: *const c_char, value: c_int) -> c_int;
    fn nng_socket_set_size(socket: Id, option: *const c_char, value: usize) -> c_int;
    fn nng_socket_set_ms(socket: Id, option: *const c_char, value: i32) -> c_int;
    fn nng_socket_set(socket: Id, option: *const c_char, value: *const c_void, len: usize) -> c_int;
    fn nng_listen(socket: Id, url: *const c_char, listener: *mut Id, flags: c_int) -> c_int;
    fn nng_listener_get_int(listener: Id, option: *const c_char, value: *mut c_int) -> c_int;
    fn nng_dial(socket: Id, url: *const c_char, dialer: *mut Id, flags: c_int) -> c_int;
    fn nng_send(socket: Id, body: *const c_void, len: usize, flags: c_int) -> c_int;
    fn nng_recvmsg(socket: Id, msg: *mut *mut Msg, flags: c_int) -> c_int;
    fn nng_sendmsg(socket: Id, msg: *mut Msg, flags: c_int) -> c_int;
    fn nng_msg_body(msg: *mut Msg) -> *mut c_void;
    fn nng_msg_len(msg: *const Msg) -> usize;
    fn nng_msg_free(msg: *mut Msg);
}

fn check(code: c_int) -> Result<()> {
    // SAFETY: wants a number; the text is static.
    if code == 0 { Ok(()) } else { Err(unsafe { text(nng_strerror(code)) }.into()) }
}

/// A socket of any kind.
pub(super) struct Socket(Id);

impl Socket {
    fn new(open: Open, cell: &Cell) -> Result<Self> {
        let mut id = Id(0);
        // SAFETY: a place for a socket.
        check(unsafe { open(&mut id) })?;
        let this = Socket(id);
        for option in [c"send-buffer", c"recv-buffer"] {
            this.set_int(option, c_int::try_from(cell.queue())?)?;
        }
        // SAFETY: the socket is open, the option is a size; 0 is no limit.
        check(unsafe { nng_socket_set_size(id, c"recv-size-max".as_ptr(), 0) })?;
        if cell.shape == Shape::Full {
            // SAFETY: the socket is open, the option is a time.
            check(unsafe { nng_socket_set_ms(id, c"send-timeout".as_ptr(), REFUSAL.as_millis() as i32) })?;
        }
        Ok(this)
    }

    /// A socket that only sends has no receive buffer, and so on: that is no error.
    fn set_int(&self, option: &CStr, value: c_int) -> Result<()> {
        // SAFETY: the socket is open, and the string ends with a zero.
        match unsafe { nng_socket_set_int(self.0, option.as_ptr(), value) } {
            ENOTSUP => Ok(()),
            code => check(code),
        }
    }

    fn connected(open: Open, url: &str, cell: &Cell) -> Result<Self> {
        let this = Socket::new(open, cell)?;
        this.connect(url)?;
        Ok(this)
    }

    fn connect(&self, url: &str) -> Result<()> {
        let url = CString::new(url)?;
        // In the background, as all others connect.
        // SAFETY: the socket is open, the string ends with a zero, and null is allowed.
        check(unsafe { nng_dial(self.0, url.as_ptr(), std::ptr::null_mut(), NONBLOCK) })
    }

    fn bound(open: Open, url: &str, cell: &Cell) -> Result<(Self, String)> {
        let this = Socket::new(open, cell)?;
        let text = CString::new(url)?;
        let mut listener = Id(0);
        // SAFETY: the socket is open, the string ends with a zero.
        check(unsafe { nng_listen(this.0, text.as_ptr(), &mut listener, 0) })?;
        let Some(host) = url.strip_suffix(":0") else { return Ok((this, url.to_owned())) };
        let mut port = 0;
        // SAFETY: the listener is open, and a tcp one has this option, an int.
        check(unsafe { nng_listener_get_int(listener, c"tcp-bound-port".as_ptr(), &mut port) })?;
        let url = format!("{host}:{port}");
        Ok((this, url))
    }

    fn recvmsg(&mut self) -> Result<*mut Msg> {
        let mut msg = std::ptr::null_mut();
        // SAFETY: the socket is open; a place for a pointer.
        check(unsafe { nng_recvmsg(self.0, &mut msg, 0) })?;
        Ok(msg)
    }
}

/// Shows the body of `msg`.
///
/// # Safety
/// `msg` was received and neither sent nor freed.
unsafe fn show<R>(msg: *mut Msg, look: impl FnOnce(&[u8]) -> R) -> R {
    // SAFETY: the caller says so; an empty body may have any pointer but null.
    unsafe {
        let (body, len) = (nng_msg_body(msg), nng_msg_len(msg));
        if body.is_null() { look(&[]) } else { look(std::slice::from_raw_parts(body.cast::<u8>(), len)) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: a number; closed only here.
        unsafe { nng_close(self.0) };
    }
}

impl Push for Socket {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the socket is open; the body is copied before the call returns.
        check(unsafe { nng_send(self.0, body.as_ptr().cast(), body.len(), 0) })
    }
    async fn offer(&mut self, body: &[u8]) -> Result<bool> {
        // SAFETY: as in `send`.
        match unsafe { nng_send(self.0, body.as_ptr().cast(), body.len(), 0) } {
            ETIMEDOUT => Ok(false),
            code => check(code).map(|()| true),
        }
    }
}

/// One handle of a socket; any thread may use one.
pub(super) struct Sharer(Arc<Socket>);

impl Push for Sharer {
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the socket is open; the body is copied before the call returns.
        check(unsafe { nng_send(self.0.0, body.as_ptr().cast(), body.len(), 0) })
    }
}

impl Pull for Socket {
    async fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let msg = self.recvmsg()?;
        // SAFETY: just received; freed once.
        unsafe {
            let seen = show(msg, look);
            nng_msg_free(msg);
            Ok(seen)
        }
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
        let msg = self.recvmsg()?;
        // SAFETY: just received. A message that was sent is the library's; after an error the process ends.
        unsafe {
            let seen = show(msg, look);
            check(nng_sendmsg(self.0, msg, 0))?;
            Ok(seen)
        }
    }
}

/// nng.
pub(super) struct Nng;

impl Contestant for Nng {
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
        "nng"
    }
    fn version(&self) -> String {
        // SAFETY: wants nothing; the text is static.
        unsafe { text(nng_version()) }
    }
    fn takes(&self, cell: &Cell) -> bool {
        match cell.shape {
            Shape::Pipelined(_) => false,
            // It keeps them in a list.
            Shape::Topics(n) => n <= 1000,
            Shape::FanIn(n) => n <= 1000,
            _ => true,
        }
    }
    fn is_lossy(&self) -> bool {
        true
    }
    async fn push(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(nng_push0_open, url, cell)
    }
    async fn pull(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(nng_pull0_open, url, cell)
    }
    async fn req(&self, url: &str, cell: &Cell) -> Result<Socket> {
        Socket::connected(nng_req0_open, url, cell)
    }
    async fn rep(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(nng_rep0_open, url, cell)
    }
    async fn sharers(&self, url: &str, cell: &Cell, n: usize) -> Result<Vec<Sharer>> {
        let socket = Arc::new(Socket::connected(nng_push0_open, url, cell)?);
        Ok((0..n).map(|_| Sharer(socket.clone())).collect())
    }
    async fn publish(&self, url: &str, cell: &Cell) -> Result<(Socket, String)> {
        Socket::bound(nng_pub0_open, url, cell)
    }
    async fn subscribe(&self, url: &str, cell: &Cell, topics: Topics) -> Result<Socket> {
        let socket = Socket::new(nng_sub0_open, cell)?;
        for topic in topics {
            let option = c"sub:subscribe".as_ptr();
            // SAFETY: the socket is open; the topic is copied before the call returns.
            check(unsafe { nng_socket_set(socket.0, option, topic.as_ptr().cast(), topic.len()) })?;
        }
        socket.connect(url)?;
        Ok(socket)
    }
}
