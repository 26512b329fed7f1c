//! The options of ipc: what may be set, in which range, and how it reaches the socket.

use std::io;

use socket2::{Domain, SockRef, Socket, Type};

use crate::transport::{Bag, invalid, sizes};

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

    pub(super) fn from_bag(options: &Bag) -> io::Result<Self> {
        let options = options.get::<IpcOptions>().cloned().unwrap_or_default();
        if let Some(mode) = options.mode.filter(|mode| mode & !0o777 != 0) {
            return Err(invalid(format!("ipc mode {mode:#o} has more than permission bits")));
        }
        sizes::check("ipc", options.backlog, [options.send_buffer, options.recv_buffer])?;
        Ok(options)
    }

    /// A non-blocking, close-on-exec socket with its buffers.
    pub(super) fn socket(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        self.set_buffers(&SockRef::from(&socket))?;
        Ok(socket)
    }

    /// Of an accepted socket too, which has none of its listener's.
    pub(super) fn set_buffers(&self, socket: &SockRef<'_>) -> io::Result<()> {
        sizes::set_buffers(socket, self.send_buffer, self.recv_buffer)
    }
}
