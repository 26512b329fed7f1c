//! nng, by its C interface.
//!
//! Send and receive buffers are the bound in messages, where a socket has them. Messages are received and
//! answered without a copy; `nng_send` copies into one, as a caller with bytes in hand has to.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use super::text;
use crate::Result;
use crate::cell::Cell;
use crate::contestant::{Contestant, Pull, Push, Rep, Req};

const ENOTSUP: c_int = 9;

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
    fn nng_close(socket: Id) -> c_int;
    fn nng_socket_set_int(socket: Id, option: *const c_char, value: c_int) -> c_int;
    fn nng_socket_set_size(socket: Id, option: *const c_char, value: usize) -> c_int;
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
    fn new(open: Open) -> Result<Self> {
        let mut id = Id(0);
        // SAFETY: a place for a socket.
        check(unsafe { open(&mut id) })?;
        let this = Socket(id);
        for option in [c"send-buffer", c"recv-buffer"] {
            this.set_int(option, Cell::QUEUE as c_int)?;
        }
        // SAFETY: the socket is open, the option is a size; 0 is no limit.
        check(unsafe { nng_socket_set_size(id, c"recv-size-max".as_ptr(), 0) })?;
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

    fn connected(open: Open, url: &str) -> Result<Self> {
        let this = Socket::new(open)?;
        let url = CString::new(url)?;
        // SAFETY: the socket is open, the string ends with a zero, and null is allowed.
        check(unsafe { nng_dial(this.0, url.as_ptr(), std::ptr::null_mut(), 0) })?;
        Ok(this)
    }

    fn bound(open: Open, url: &str) -> Result<(Self, String)> {
        let this = Socket::new(open)?;
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
    fn send(&mut self, body: &[u8]) -> Result<()> {
        // SAFETY: the socket is open; the body is copied before the call returns.
        check(unsafe { nng_send(self.0, body.as_ptr().cast(), body.len(), 0) })
    }
}

impl Pull for Socket {
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
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
    fn request<R>(&mut self, body: &[u8], look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.send(body)?;
        self.recv(look)
    }
}

impl Rep for Socket {
    fn serve<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
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
    type Pull = Socket;
    type Req = Socket;
    type Rep = Socket;

    fn name(&self) -> &'static str {
        "nng"
    }
    fn version(&self) -> String {
        // SAFETY: wants nothing; the text is static.
        unsafe { text(nng_version()) }
    }
    fn push(&self, url: &str, _: &Cell) -> Result<Socket> {
        Socket::connected(nng_push0_open, url)
    }
    fn pull(&self, url: &str, _: &Cell) -> Result<(Socket, String)> {
        Socket::bound(nng_pull0_open, url)
    }
    fn req(&self, url: &str, _: &Cell) -> Result<Socket> {
        Socket::connected(nng_req0_open, url)
    }
    fn rep(&self, url: &str, _: &Cell) -> Result<(Socket, String)> {
        Socket::bound(nng_rep0_open, url)
    }
}
